"""The day that a chat template writes is one day for a run, and prompts are known by what they are."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.data import dates
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.runs.making import open_run

DATED = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}\n"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}\n{% endif %}"
SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=4"),
    *("retrieval.lsa_dim=16", "trainer.batch_size=4", "trainer.num_generations=2", "trainer.max_steps=2"),
    *("trainer.warm_start=null", "eval.users=8", "eval.baselines=[]", "eval.steps=null", "eval.probes=false"),
)


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dated") / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "manifest.json").unlink()
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


def is_today(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    class Clock(datetime.date):
        @classmethod
        def today(cls) -> Clock:
            return cls.fromisoformat(day)

    monkeypatch.setattr(dates, "date", Clock)


def test_prompts_write_the_day_that_is_set(model: Path, make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    is_today(monkeypatch, "2030-01-02")
    for day, written in [(None, "02 Jan 2030"), ("2026-11-26", "26 Nov 2026")]:
        section = PromptSection(template="{history}", date=day)
        assert written in PromptBuilder(section, make_dataset(), tokenizer).build(None, [0]).text
    assert dates.writes_day(tokenizer, chat="auto")
    assert not dates.writes_day(tokenizer, chat="never")
    config = load_config(algorithm="grpo")
    assert dates.with_day(config, tokenizer).prompt.date == "2030-01-02"
    assert dates.with_day(config, tokenizer, started="2029-12-31").prompt.date == "2029-12-31"
    set_before = load_config(algorithm="grpo", sets=["prompt.date=2026-11-26"])
    assert dates.with_day(set_before, tokenizer) == set_before
    tokenizer.chat_template = PLAIN
    assert dates.with_day(config, tokenizer) == config
    for bad in ("2026-02-30", "26.11.2026"):
        with pytest.raises(ConfigError, match=r"prompt\.date"):
            load_config(algorithm="grpo", sets=[f"prompt.date={bad}"])


def test_a_run_keeps_its_day_and_refuses_other_prompts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"policy.model": str(model), "run.output_dir": str(tmp_path), "run.name": "r"}
    sets = [*SMALL, f"eval.cache_dir={tmp_path / 'cache'}"]
    config = load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=sets)
    is_today(monkeypatch, "2030-01-02")
    train.train(config, (1,))
    assert "writes the date into every prompt: 2030-01-02" in capsys.readouterr().err
    run = tmp_path / "r"
    assert open_run(run).config.prompt.date == "2030-01-02"

    def measured() -> tuple[dict[str, str], bool]:
        assert main(["eval", str(run), "--json"]) == 0
        output = capsys.readouterr()
        lines = (run / "eval" / "validation_users.jsonl").read_text().splitlines()
        texts = {r["user"]: r["texts"]["tuned policy"] for r in map(json.loads, lines)}
        return texts, "Writing completions" in output.err

    texts, _ = measured()
    is_today(monkeypatch, "2030-01-03")
    assert measured()[0] == texts
    # Of an older version, which kept no day: it is the one it was begun on.
    path, env = run / "config.yaml", run / "env.json"
    path.write_text(re.sub(r"date: .*2030-01-02.*", "date: null", path.read_text()))
    env.write_text(json.dumps({**json.loads(env.read_text()), "started": "2030-01-02T08:00:00+00:00"}))
    assert open_run(run).config.prompt.date is None
    kept = {file.name for file in (tmp_path / "cache").iterdir()}
    assert measured()[0] == texts
    assert {file.name for file in (tmp_path / "cache").iterdir()} == kept  # the same prompts are read back
    path.write_text(path.read_text().replace("date: null", "date: '2030-01-02'"))
    # Another template is another prompt: measured anew, and training does not go on with it.
    final = run / "checkpoints" / "checkpoint_final"
    (final / "chat_template.jinja").write_text(PLAIN)
    measured()
    assert {file.name for file in (tmp_path / "cache").iterdir()} > kept
    shutil.rmtree(final)
    shutil.rmtree(run / "eval")
    (model / "chat_template.jinja").write_text(PLAIN)
    try:
        config = load_config(algorithm="grpo", recipes=[str(path)])
        with pytest.raises(RunError, match="its prompts are not those it was begun with"):
            train.train(config, (1,), resume=run)
        train.train(config, (1,), resume=run, allow_partial=True)
        assert "Going on all the same" in capsys.readouterr().err
    finally:
        (model / "chat_template.jinja").write_text(DATED)
