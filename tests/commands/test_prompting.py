"""`rl4rec prompts`: what is shown is what is read, templates are measured fairly, summaries know no target."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.cli.prompts import print_preview, print_summaries, print_sweep
from rl4rec_cli.commands.prompts import PromptPreview, TemplateSweep, preview_prompts, sweep_templates
from rl4rec_cli.commands.summaries import Summaries, write_summaries
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.audit.audit import audit_dataset
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.metrics import means
from rl4rec_cli.eval.policies import measure_policy
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import load_policy

Options = dict[str, Any]
REQUEST = "Bought:\n{history}\nLikes:"
ASKED: Options = {"split": "train", "users": None, "templates": [REQUEST]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_dataset(synthesize(60, 30, 3), tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def config(data: Path, tiny_folder: Path) -> Any:
    return configured(data, tiny_folder)


def configured(data: Path, model: Path | str, **flags: Any) -> Any:
    given = {
        "data.path": str(data),
        "policy.model": str(model),
        "eval.cache_dir": None,
        "eval.batch_size": 4,
        "generation.max_completion_length": 5,
        "retrieval.embedder": "lsa",
        "prompt.max_prompt_length": 200,
    }
    return load_config(algorithm="grpo", flags={**given, **flags})


def show(config: Any, *, as_json: bool, **asked: Any) -> PromptPreview:
    """What `rl4rec prompts` does: makes the preview and prints it."""
    preview = preview_prompts(config, **asked)
    has_figures = asked.get("user") is None
    print_preview(preview, prompt_file=config.data.prompt_file, has_figures=has_figures, as_json=as_json)
    return preview


def sweep(config: Any, *, as_json: bool, **asked: Any) -> TemplateSweep:
    """What `rl4rec prompts --template` does."""
    result = sweep_templates(config, **asked)
    print_sweep(result, as_json=as_json)
    return result


def summarise(config: Any, file: str, *, as_json: bool, **asked: Any) -> Summaries:
    """What `rl4rec prompts --summaries` does."""
    written = write_summaries(config, file, **asked)
    print_summaries(written, as_json=as_json)
    return written


def test_what_is_shown_is_what_is_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"prompt.template": "{history}\nNext:", "prompt.max_prompt_length": 20, "prompt.max_history": 3}
    config = configured(data, "tiny", **short)
    preview = show(config, split="test", users=None, user=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == [vars(prompt) for prompt in preview.prompts]
    dataset = load_dataset(data)
    policy = load_policy(config.policy, dataset=dataset)
    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    examples = build_examples(dataset, "test")
    read = [builder.build(e.user, e.history) for e in examples]
    assert [p["text"] for p in found["prompts"]] == [p.text for p in read]
    assert [p["tokens"] for p in found["prompts"]] == [len(p.ids) for p in read]
    titles = [str(item["title"]) for item in dataset.items]
    shown = [sum(titles[i] in p.text.split("\n") for i in e.history[-3:]) for e, p in zip(examples, read, strict=True)]
    assert [p["items"] for p in found["prompts"]] == shown
    tokens = sorted(len(p.ids) for p in read)
    assert found["figures"]["tokens"]["most"] == tokens[-1] <= 20
    assert found["figures"]["tokens"]["median"] == int(np.median(tokens))
    assert found["figures"]["tokens"]["p95"] == tokens[math.ceil(0.95 * (len(tokens) - 1))]
    assert (found["figures"]["from_prompts_json"], found["figures"]["cut_to_fit"]) == (0, 0)
    left_out = sum(n < min(3, len(e.history)) for n, e in zip(shown, examples, strict=True))
    assert found["figures"]["older_items_left_out"] == left_out > 0


def test_one_user_and_texts_of_prompts_json(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (data / "prompts.json").write_text(json.dumps({"u1": "loves red " + "scarves " * 200}))
    config = configured(data, "tiny", **{"prompt.max_prompt_length": 128})
    show(config, split="validation", users=None, user="u1", as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("# validation, user u1: 12")
    assert "from prompts.json, cut to fit" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("loves red scarves")
    show(config, split="validation", users=None, user=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {"prompts": 60, "from_prompts_json": 1, "cut_to_fit": 1, "model": "tiny"}.items() <= found["figures"].items()
    show(configured(data, "tiny"), split="validation", users=None, user=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    tokens = sorted(p["tokens"] for p in found["prompts"])
    assert np.median(tokens) < tokens[math.ceil(0.95 * 59)] == found["figures"]["tokens"]["p95"]
    assert [p["user"] for p in found["prompts"] if p["from_prompts_json"] or p["cut_to_fit"]] == ["u1"]
    with pytest.raises(DataError, match="no user 'u0'"):
        show(config, split="validation", users=None, user="u0", as_json=False)


def test_templates_are_measured_as_eval_measures_them(
    config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import rl4rec_cli.policy.generation as generation
    from rl4rec_cli.eval.examples import choose_examples
    from rl4rec_cli.retrieval.opening import open_retriever

    def second_line(policy: Any, prompts: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[str]:
        return [policy.tokenizer.decode(ids).split("\n")[1] for ids in prompts]

    monkeypatch.setattr(generation, "generate_texts", second_line)
    own, other = config.prompt.template, "Bought:\nNo idea\n{history}"
    result = sweep(config, split="validation", users=30, templates=[other, own, other], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (result.templates, result.evaluation.headline) == (found["templates"], found["metric"])
    assert found["templates"] == {"own prompt": own, "prompt 1": other}
    assert list(found["differences"]) == ["prompt 1"]
    dataset = load_dataset(config.data.path)
    examples = choose_examples(dataset, "validation", 30)
    retriever, policy = open_retriever(config.retrieval, dataset), load_policy(config.policy, dataset=dataset)
    for name, template in found["templates"].items():
        changed = config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": template})})
        measured = measure_policy("x", policy, changed, dataset, retriever, examples)
        assert found["methods"][name] == means(measured.ranking, config.eval.ks)
    assert found["methods"]["prompt 1"] != found["methods"]["own prompt"]
    gain = found["methods"]["prompt 1"]["ndcg@10"] - found["methods"]["own prompt"]["ndcg@10"]
    assert found["differences"]["prompt 1"]["mean"] == pytest.approx(gain)
    sweep(config, split="validation", users=30, templates=[other], as_json=False)
    assert "Best here: " in capsys.readouterr().out


def test_a_sweep_that_would_mislead_is_refused(config: Any, data: Path) -> None:
    asked: Options = {"users": 10, "templates": ["all"], "as_json": True}
    with pytest.raises(ConfigError, match="chosen on validation users"):
        sweep(config, split="test", **asked)
    with pytest.raises(ConfigError, match="learned nothing"):
        sweep(configured(data, "tiny"), split="validation", **asked)
    with pytest.raises(ConfigError, match=r"must contain \{history\}"):
        sweep(config, split="validation", **{**asked, "templates": ["hello"]})
    (data / "prompts.json").write_text('{"u1": "x"}')
    with pytest.raises(ConfigError, match=r"has prompts\.json"):
        sweep(config, split="validation", **asked)


@pytest.mark.parametrize(
    "template",
    [
        *("it's \\ {history}\t\n'quoted' # b", "[{history}]", "- a:\n{history} “x”\n"),
        "\u2028{history}\u0085\u200b\u200d\ufeff\x7f\x9b\xa0\u3000😀\U000e0041\\u2028",
    ],
)
def test_the_best_template_goes_into_a_shell_and_comes_back(
    template: str, config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess

    import rl4rec_cli.policy.generation as generation

    asked: list[int] = []

    def one_title(policy: Any, prompts: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[str]:
        asked.append(len(prompts))
        return ["Veltra"] * len(prompts) if len(asked) > 1 else ["of nothing"] * len(prompts)

    monkeypatch.setattr(generation, "generate_texts", one_title)
    sweep(config, split="validation", users=30, templates=[template], as_json=False)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("use it: --set ")
    said = subprocess.run(["bash", "-c", f"printf %s {line[14:]}"], capture_output=True, check=True)
    again = load_config(algorithm="grpo", sets=[said.stdout.decode()])
    assert again.prompt.template == template


def test_only_a_template_that_is_too_long_is_left_out(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    long = "{history}" + " word" * 300
    sweep(config, split="validation", users=10, templates=[long, "{history}"], as_json=True)
    said = capsys.readouterr()
    assert list(json.loads(said.out)["templates"].values()) == [config.prompt.template, "{history}"]
    assert f"Prompt {long!r} left out" in said.err
    wrong = config.model_copy(update={"prompt": config.prompt.model_copy(update={"item_template": "{nothing}"})})
    with pytest.raises(ConfigError, match="has a field 'nothing'"):
        sweep(wrong, split="validation", users=10, templates=["all"], as_json=True)


def test_summaries_are_what_the_model_writes_of_the_past(config: Any, tmp_path: Path) -> None:
    file = tmp_path / "out" / "p.json"
    frame = "Likes {summary}? Name one more."
    summarise(config, str(file), **{**ASKED, "templates": [frame, REQUEST]}, as_json=False)
    dataset = load_dataset(config.data.path)
    policy = load_policy(config.policy, dataset=dataset)
    section = config.prompt.model_copy(update={"template": REQUEST})
    builder = PromptBuilder(section, dataset, policy.tokenizer)
    expected = {}
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        if len(sequence) > 3:
            ids = builder.build(None, sequence[:-3]).ids
            text = generate_texts(policy, [ids], Sampling(5, 0.0), batch_size=1)[0]
            if " ".join(text.split()):
                expected[user] = f"Likes {' '.join(text.split())}? Name one more."
    assert json.loads(file.read_text()) == expected
    assert list(file.parent.iterdir()) == [file]


def writes(monkeypatch: pytest.MonkeyPatch, write: Callable[[Any, Sequence[Sequence[int]]], list[str]]) -> None:
    """A model that writes these texts, and ends each."""
    import rl4rec_cli.policy.generation as generation

    def completions(policy: Any, prompts: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        end = policy.tokenizer.eos_token_id
        return [[*policy.tokenizer(text)["input_ids"], end] for text in write(policy, prompts)]

    monkeypatch.setattr(generation, "generate_completions", completions)


def echo(monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None) -> list[int]:
    """A model that says what it was asked, and is ended at some call; gives the sizes of the calls."""
    calls: list[int] = []

    def write(policy: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        import torch

        if fail_at is not None and len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return [f"{policy.tokenizer.decode(ids)} {torch.randint(10**6, (1,)).item()}" for ids in prompts]

    writes(monkeypatch, write)
    return calls


def test_no_summary_knows_a_target(
    config: Any, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    echo(monkeypatch)
    written = summarise(config, str(data / "prompts.json"), **ASKED, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said == {**written.figures, "findings": []}
    assert written.file == data / "prompts.json"
    dataset = load_dataset(data)
    assert said["users"] == len(dataset.prompts) == sum(len(s) > 3 for s in dataset.sequences)
    titles = [str(item["title"]) for item in dataset.items]
    assert len(set(titles)) == len(titles)
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        for item in set(sequence[-3:]) - set(sequence[:-3]):
            assert titles[item] not in dataset.prompts.get(user, "")
    assert audit_dataset(dataset).leaks == 0
    assert said["findings"] == []
    # And with the test split's histories the audit sees it.
    (data / "prompts.json").unlink()
    summarise(config, str(data / "prompts.json"), **{**ASKED, "split": "test"}, as_json=True)
    assert any("training target's title" in found for found in json.loads(capsys.readouterr().out)["findings"])
    assert "training target" in str(audit_dataset(load_dataset(data)).findings)


def test_what_the_audit_finds_is_said_before_they_are_used(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    echo(monkeypatch)
    summarise(config, str(tmp_path / "a.json"), **ASKED, as_json=False)
    assert [line[:17] for line in capsys.readouterr().err.splitlines()] == ["to use them: --pr"]
    every = config.model_copy(update={"data": config.data.model_copy(update={"train_targets": "all"})})
    summarise(every, str(tmp_path / "b.json"), **ASKED, as_json=False)
    err = capsys.readouterr().err
    assert "warning: training target's title in" in err
    assert "think about the above; then, to use them: --prompt-file " in err
    summarise(config, str(tmp_path / "c.json"), **{**ASKED, "split": "validation"}, as_json=False)
    err = capsys.readouterr().err
    assert "these texts know the training target: they are for evaluation on the validation split alone" in err
    assert "to use them" not in err
    summarise(config, str(tmp_path / "d.json"), **{**ASKED, "split": "test"}, as_json=True)
    assert "these texts know the training and validation targets" in capsys.readouterr().err


def test_users_are_those_that_an_evaluation_measures(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4rec_cli.eval.examples import choose_examples

    echo(monkeypatch)
    whole = load_dataset(data)
    dataset = replace(whole, sequences=tuple(s[-3:] if i % 2 else s for i, s in enumerate(whole.sequences)))
    save_dataset(dataset, tmp_path / "cut")
    config = configured(tmp_path / "cut", tiny_folder)
    summarise(config, str(tmp_path / "p.json"), **{**ASKED, "users": 20}, as_json=True)
    measured = {e.user for e in choose_examples(dataset, "validation", 20)}
    with_past = {u for u, s in zip(dataset.users, dataset.sequences, strict=True) if len(s) > 3}
    assert json.loads((tmp_path / "p.json").read_text()).keys() == measured & with_past
    assert json.loads(capsys.readouterr().out)["sequence_too_short"] == len(measured - with_past) > 0
    [chosen] = (e.user for e in choose_examples(whole, "validation", 1))
    short = tuple(s[-3:] if user == chosen else s for user, s in zip(whole.users, whole.sequences, strict=True))
    save_dataset(replace(whole, sequences=short), tmp_path / "short")
    config = configured(tmp_path / "short", tiny_folder)
    with pytest.raises(DataError, match="none of 1 users has a train example: the sequences are too short"):
        summarise(config, str(tmp_path / "q.json"), **{**ASKED, "users": 1}, as_json=True)
    assert not list(tmp_path.glob("q.json*"))


def test_a_job_that_was_ended_goes_on_to_the_same_texts(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, file, part = tmp_path / "whole.json", tmp_path / "p.json", tmp_path / "p.json.part"
    calls = echo(monkeypatch)
    summarise(config, str(whole), **ASKED, as_json=True)
    sizes = list(calls)
    assert len(sizes) > 4
    calls = echo(monkeypatch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        summarise(config, str(file), **ASKED, as_json=True)
    assert not file.exists()
    with part.open("a") as torn:
        torn.flush()
        torn.buffer.write('{"start": 12, "summaries": ["torn in the middle of é'.encode()[:-1])
    calls = echo(monkeypatch)
    summarise(config, str(file), **ASKED, as_json=True)
    assert calls == sizes[3:]
    assert file.read_bytes() == whole.read_bytes()
    assert not part.exists()
    assert "12 of " in capsys.readouterr().err


def test_nothing_is_overwritten_or_mixed(
    config: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, part = tmp_path / "p.json", tmp_path / "p.json.part"
    echo(monkeypatch, fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        summarise(config, str(file), **ASKED, as_json=True)
    kept = part.read_bytes()

    def refused(error: type[Exception], said: str, **other: Any) -> None:
        with pytest.raises(error, match=said):
            summarise(config, str(file), **{**ASKED, **other}, as_json=True)
        assert part.read_bytes() == kept

    refused(ConfigError, "another dataset, model or settings", templates=["{history}\n"])
    refused(ConfigError, "another dataset, model or settings", split="test")
    for wrong in ("hello", "{history} {summary}"):
        refused(ConfigError, r"must contain \{history\} .* or \{summary\}", templates=[wrong])
    with part.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(RunError, "another process writes to it")
    file.write_text("mine")
    refused(ConfigError, r"p\.json exists")
    assert file.read_text() == "mine"
    file.unlink()
    with pytest.raises(ConfigError, match="learned nothing"):
        summarise(configured(data, "tiny"), str(file), **ASKED, as_json=True)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"start": 4, "summaries": "abcd", "cut": 0}',
        b'{"start": 4, "summaries": [1, null], "cut": 0}',
        b'{"start": 8, "summaries": ["a"], "cut": 0}',
        b'{"start": 4, "summaries": %s, "cut": 0}' % json.dumps(["a"] * 60).encode(),
        b'{"start": 4}',
        b'{"start": 4, "summaries": ["a"]}',
        b"[" * 100_000,
        b'{"start": 4, "summaries": ["\xc3"], "cut": 0}',
        b'{"start": 4, "summaries": ["\\ud800"], "cut": 0}',
    ],
)
def test_a_damaged_file_of_what_is_done_is_refused(
    damage: bytes, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "p.json.part"
    echo(monkeypatch, fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        summarise(config, str(tmp_path / "p.json"), **ASKED, as_json=True)
    with part.open("ab") as file:
        file.write(damage + b"\n")
    kept = part.read_bytes()
    with pytest.raises(ConfigError, match=r"p\.json\.part is damaged"):
        summarise(config, str(tmp_path / "p.json"), **ASKED, as_json=True)
    assert part.read_bytes() == kept


def test_what_was_begun_without_a_summary_is_no_obstacle(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, part = tmp_path / "p.json", tmp_path / "p.json.part"
    for torn in ("", '{"settings"', '{"settings": "of another job"}\n{"start": 0, "summ'):
        part.write_text(torn)
        echo(monkeypatch, fail_at=1)
        with pytest.raises(KeyboardInterrupt):
            summarise(config, str(file), **ASKED, as_json=True)
        assert [list(json.loads(line)) for line in part.read_text().splitlines()] == [
            ["settings"],
            ["start", "summaries", "cut"],
        ]
        part.unlink()
    echo(monkeypatch)
    for other in (b'{"my": "data, without a newline"}', b"\n"):
        part.write_bytes(other)
        with pytest.raises(
            ConfigError, match=r"p\.json\.part is damaged: it does not begin as a file of summaries does"
        ):
            summarise(config, str(file), **ASKED, as_json=True)
        assert part.read_bytes() == other


def test_a_file_made_meanwhile_is_not_overwritten(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.json"

    def write(policy: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        file.write_text("mine")
        return ["text"] * len(prompts)

    writes(monkeypatch, write)
    with pytest.raises(ConfigError, match=r"p\.json exists"):
        summarise(config, str(file), **ASKED, as_json=True)
    assert file.read_text() == "mine"
    assert (tmp_path / "p.json.part").exists()


def test_texts_longer_than_the_model_reads_are_refused(config: Any, tmp_path: Path) -> None:
    long = {"prompt": config.prompt.model_copy(update={"max_prompt_length": 2048})}
    with pytest.raises(ConfigError, match="reads 2,048 at most"):
        summarise(config.model_copy(update=long), str(tmp_path / "p.json"), **ASKED, as_json=True)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_model_that_writes_nothing_leaves_no_file(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes(monkeypatch, lambda policy, prompts: [" \n"] * len(prompts))
    with pytest.raises(RunError, match="wrote nothing of any user"):
        summarise(config, str(tmp_path / "p.json"), **ASKED, as_json=True)
    with pytest.raises(ConfigError, match="what is asked alone has"):
        summarise(
            config, str(tmp_path / "p.json"), **{**ASKED, "templates": ["{history}" + " word" * 200]}, as_json=True
        )
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_what_ran_against_a_limit_is_told(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text is cut where the model did not end it, however few words it is; a prompt where it is not read whole."""
    import rl4rec_cli.policy.generation as generation

    done: list[int] = []

    def completions(policy: Any, prompts: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        text, end = policy.tokenizer("Hats.\n\nWool.")["input_ids"], [policy.tokenizer.eos_token_id]
        made = [[*text, *(end if (len(done) + i) % 3 else [])] for i in range(len(prompts))]
        done.extend([0] * len(prompts))
        return made

    monkeypatch.setattr(generation, "generate_completions", completions)
    summarise(config, str(tmp_path / "p.json"), **ASKED, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["as_long_as_allowed"] == math.ceil(len(done) / 3) > 5
    assert told["cut_to_fit"] == 0

    def some(policy: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        return ["wool " * (300 if i % 2 else 1) for i in range(len(prompts))]

    writes(monkeypatch, some)
    summarise(config, str(tmp_path / "q.json"), **ASKED, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["as_long_as_allowed"] == 0
    long = sum(text.count("wool") > 1 for text in json.loads((tmp_path / "q.json").read_text()).values())
    assert told["cut_to_fit"] == long > 5
    # And one that has no room for any summary is refused before any is written.
    for frame in (" word" * 300 + "{summary}", None):
        brief = {"prompt": config.prompt.model_copy(update={"max_prompt_length": 200 if frame else 64})}
        templates = [REQUEST, *([frame] if frame else [])]
        brief["prompt"] = brief["prompt"].model_copy(update={"template": "{history}"})
        with pytest.raises(ConfigError, match="the prompt made of the answer has no room for it"):
            summarise(
                config.model_copy(update=brief),
                str(tmp_path / "r.json"),
                **{**ASKED, "templates": templates},
                as_json=True,
            )
    assert not (tmp_path / "r.json.part").exists()


def test_made_up_data_has_no_folder_to_copy_to(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    echo(monkeypatch)
    made_up = load_config(
        algorithm="grpo", flags={"data.synthetic.users": 60, "data.synthetic.items": 30, "data.synthetic.seed": 3}
    ).data
    summarise(config.model_copy(update={"data": made_up}), str(tmp_path / "p.json"), **ASKED, as_json=False)
    assert "to use them" not in capsys.readouterr().err
    assert (tmp_path / "p.json").is_file()


def test_the_command_refuses_options_that_do_not_go_together(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rl4rec_cli.cli.main import main

    for args in (("--template", "all"), ("--summaries", "x.json"), ("--users", "3")):
        assert main(["prompts", str(data), "--user", "u1", *args]) == 2
        assert "leave out --users, --template and --summaries" in capsys.readouterr().err


def test_the_command_hands_on_what_it_is_given(
    data: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4rec_cli.cli.main import main

    echo(monkeypatch)
    sets = ("prompt.max_prompt_length=400", "retrieval.embedder=lsa", "eval.cache_dir=null")
    given = ["prompts", str(data), "--json", *(part for text in sets for part in ("--set", text))]
    model = ["--model", str(tiny_folder)]
    assert main([*given, "--users", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], len(found["prompts"]), found["figures"]["model"]) == ("validation", 7, "tiny")
    assert main([*given, *model, "--template", "{history}", "--users", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["users"], found["templates"]["prompt 1"], found["model"]) == (9, "{history}", str(tiny_folder))
    assert main([*given, *model, "--summaries", str(data / "p.json"), "--template", "{summary}?"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    dataset, written = load_dataset(data), json.loads((data / "p.json").read_text())
    titles = [str(item["title"]) for item in dataset.items]
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        if len(sequence) > 3:
            assert titles[sequence[-4]] in written[user]
            assert written[user].endswith("?")
            assert all(titles[i] not in written[user] for i in set(sequence[-3:]) - set(sequence[:-3]))
