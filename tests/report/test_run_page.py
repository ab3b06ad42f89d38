"""The page of a run: of runs made by hand in every state, and of one that was really trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import BACKGROUNDS, COLOURS, HOSTILE, Page, check_page, draw_quietly, needs_browser, screenshot

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.console import clean
from rl4rec_cli.errors import RunError
from rl4rec_cli.files.folders import write_folder
from rl4rec_cli.report import plots
from rl4rec_cli.report.run_page import as_html, read_logged, write_report
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import create_run, open_run
from rl4rec_cli.train.checkpoints import checkpoint_states

RL4REC = [sys.executable, "-m", "rl4rec_cli.cli.main"]
RL = ("grpo", "rloo", "ppo", "reinforce")


def make(folder: Path, algorithm: str = "grpo", *sets: str) -> Run:
    """A run folder without a log."""
    given = [f"run.output_dir={folder}", "run.name=made", "data.synthetic.users=20", "data.synthetic.items=25"]
    config = load_config(algorithm=algorithm, recipes=[], sets=[*given, *sets])
    return create_run(config, dataset="synthetic")


def write(run: Run, name: str, records: Iterable[Any], end: str = "") -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (run.folder / name).write_text("".join(f"{line}\n" for line in lines) + end)


def step(phase: str, number: int, **more: Any) -> dict[str, Any]:
    """A line as `train/rollouts.py` and `train/sft.py` make it, made up."""
    common = {"phase": phase, "step": number, "epoch": 1, "batch": number, "seconds": number / 2, "loss": 1 / number}
    if phase == "sft":
        return {**common, "mean_token_accuracy": 1 - 1 / number, "grad_norm": 0.5, **more}
    own = {"avg_reward": 0.1 + number / 1000, "std_reward": 0.1, "kl": None, "entropy": 1 / number, "mean_length": 7.0}
    if phase == "ppo":
        own |= {"approximate_kl": 0.01, "policy_loss": 0.1, "value_loss": 0.2, "explained_variance": -0.1 * number}
    shares = {"zero_variance_share": 0.5, "truncated_share": 0.0, "mean_rank": 90.0 - number % 9, "reward/ndcg": 0.1}
    return {**common, **own, **shares, **more}


def rollout(number: int, **more: Any) -> dict[str, Any]:
    return {"step": number, "user": "u1", "text": f"text {number}", "target": 3, "rank": 1234, "reward": 0.25, **more}


def page(run: Run) -> tuple[Page, str]:
    """The checked page and its words."""
    found = check_page(as_html(read_logged(open_run(run.folder))))
    return found, " ".join(" ".join(found.texts).split())


def titles(found: Page) -> list[str]:
    """Of the figures."""
    words = [text.strip() for text in found.texts]
    return [text for text in words if text in ALL_TITLES]


ALL_TITLES = {
    *("Reward", "Validation", "Rank of the target", "Divergence", "Entropy", "Length", "Shares", "Loss"),
    *("Loss of the critic", "Variance that the critic explains", "Accuracy", "Gradient", "Groups of one reward"),
}


@pytest.mark.parametrize("algorithm", RL)
def test_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    run = make(tmp_path, algorithm)
    write(run, "training_log.jsonl", [*(step("sft", i) for i in (1, 2)), *(step(algorithm, i) for i in range(1, 50))])
    found, said = page(run)
    shown = titles(found)
    assert shown[:2] == ["Reward", "Rank of the target"]
    assert ("Divergence" in shown) == ("Loss of the critic" in shown) == (algorithm == "ppo")  # the others' kl is null
    assert shown[-3:] == ["Loss", "Accuracy", "Gradient"]  # of the warm start, below
    assert found.tags.count("svg") == found.tags.count("figure") == len(shown)
    assert f"Not finished (10,000 at most): 2 steps of sft in 1 s, 49 steps of {algorithm} in 24 s." in said or (
        algorithm == "reinforce"
    )
    assert f"rl4rec train {algorithm} --resume {run.folder}" in said
    assert "Not measured yet." in said
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_supervised_alone(tmp_path: Path) -> None:
    run = make(tmp_path, "sft")
    write(run, "training_log.jsonl", [step("sft", i) for i in (1, 2, 3)])
    found, said = page(run)
    assert titles(found) == ["Loss", "Accuracy", "Gradient"]
    assert "Training: sft" in said
    assert "Warm start" not in said
    assert "No completions are logged" in said


def test_a_run_that_came_no_further_than_its_warm_start(tmp_path: Path) -> None:
    run = make(tmp_path)
    write(run, "training_log.jsonl", [step("sft", 1)])
    found, said = page(run)
    assert titles(found) == ["Loss", "Accuracy", "Gradient"]
    assert "Not finished (the warm start alone was begun): 1 step of sft" in said
    assert "Training:" not in said


def test_half_a_line_and_numbers_that_are_none(tmp_path: Path) -> None:
    run = make(tmp_path)
    records = [step("grpo", 1), step("grpo", 2, avg_reward=None, entropy=None), step("grpo", 3), "[1]", '{"loss": 1}']
    write(run, "training_log.jsonl", records, end='{"phase": "grpo", "step": 4, "avg_re')
    write(run, "rollouts.jsonl", [rollout(1)], end='{"step": 1, "use')
    found, said = page(run)
    assert "3 steps of grpo" in said
    assert "training_log.jsonl: 3 lines are no records and are left out" in said
    assert "rollouts.jsonl: 1 line is no record and is left out" in said
    assert found.tags.count("article") == 1


def test_gone_on_with_and_several_epochs(tmp_path: Path) -> None:
    run = make(tmp_path)
    first = [step("grpo", i, epoch=1 + i // 20, seconds=float(i)) for i in range(1, 31)]
    second = [step("grpo", i, epoch=1 + i // 20, seconds=float(i - 30)) for i in range(31, 51)]
    write(run, "training_log.jsonl", [*first, *second])
    found, said = page(run)
    assert "50 steps of grpo in 50 s" in said  # 30 before and 20 after
    assert "Dashed lines: a new epoch begins. r: the run was gone on with here." in said
    assert [text.strip() for text in found.texts].count("r") == found.tags.count("svg")


def test_warnings_are_told_and_marked(tmp_path: Path) -> None:
    run = make(tmp_path)
    warning = {"phase": "grpo", "step": 3, "health": "entropy", "action": "stop", "seen": "it is low", "advice": "less"}
    write(run, "training_log.jsonl", [*(step("grpo", i) for i in (1, 2, 3)), warning])
    found, said = page(run)
    assert "Step 3 of grpo: health.entropy (the run was stopped): it is low. To mend it: less" in said
    assert [text.strip() for text in found.texts].count("!") == found.tags.count("svg")
    assert "3 steps of grpo" in said


def test_texts_with_their_targets_titles(tmp_path: Path) -> None:
    from rl4rec_cli.data.opening import open_dataset

    run = make(tmp_path)
    write(run, "training_log.jsonl", [step("grpo", 1)])
    records = [rollout(i, text=f"s{i}-{n}", target=i % 25) for i in range(1, 41) for n in range(9)]
    write(run, "rollouts.jsonl", [*records, rollout(41, text=""), rollout(42, text="x" * 5000, user=HOSTILE)])
    found, said = page(run)
    assert found.tags.count("article") == 6
    assert "step 1 " in said
    assert "step 42 " in said
    assert said.count("s1-") == 6
    assert str(open_dataset(run.config.data).items[1]["title"]) in said
    assert "rank 1,234" in said
    assert "(0.2500)" in said
    assert f"{'x' * 600}… (4,400 characters more)" in said


def test_hostile_texts_titles_and_settings_stay_text(tmp_path: Path) -> None:
    run = make(tmp_path, "grpo", f"prompt.template={HOSTILE} {{history}}")
    write(run, "training_log.jsonl", [step("grpo", 1, **{f"reward/{HOSTILE}": 0.2})])
    write(run, "rollouts.jsonl", [rollout(1, text=f"{HOSTILE}\x1b[2J\u202e", user=HOSTILE)])
    (run.folder / "env.json").write_text(json.dumps({"command": [HOSTILE], "versions": {HOSTILE: "1"}}))
    found, _ = page(run)
    whole = "".join(found.texts)
    assert whole.count(HOSTILE) >= 5
    assert "\x1b" not in whole
    assert "\u202e" not in whole


def test_without_its_dataset_targets_have_their_ids(tmp_path: Path) -> None:
    run = make(tmp_path, "grpo", "data.synthetic=null", f"data.path={tmp_path / 'gone'}")
    write(run, "training_log.jsonl", [step("grpo", 1)])
    write(run, "rollouts.jsonl", [rollout(1)])
    said = page(run)[1]
    assert "next: item 3" in said
    assert "Targets are shown by their id, as the dataset cannot be read" in said

    other = make(tmp_path / "other")
    write(other, "training_log.jsonl", [step("grpo", 1)])
    write(other, "rollouts.jsonl", [rollout(1)])
    result = {"verdict": "v.", "kinds": {}, "methods": {}, "differences": {}, "users": 1, "subject": "s", "metric": "m"}
    write_json(other.folder / "eval" / "validation.json", {**result, "dataset_digest": "another"})
    said = page(other)[1]
    assert "next: item 3" in said
    assert "the dataset is not the one that the run was trained on" in said


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_checkpoints_whole_damaged_and_put_aside(tmp_path: Path) -> None:
    run = make(tmp_path)
    write(run, "training_log.jsonl", [step("grpo", 1)])

    def fill(step: int | None, *names: str) -> Any:
        def into(folder: Path) -> None:
            for name in names:
                (folder / name).write_bytes(b"0" * 1500)
            if step is not None:
                (folder / "progress.json").write_text(json.dumps({"phase": "grpo", "step": step, "dataset": "d"}))

        return into

    write_folder(run.step(2), fill(2, "model.safetensors", "optimizer.pt"), size=1)
    write_folder(run.step(10), fill(10, "model.safetensors", "optimizer.pt"), size=1)
    write_folder(run.step(12), fill(12, "model.safetensors", "optimizer.pt"), size=1)
    write_folder(run.final, fill(None, "model.safetensors"), size=1)
    (run.step(10) / "model.safetensors").write_bytes(b"0" * 1499 + b"1")
    (run.step(12) / "optimizer.pt").unlink()
    (run.checkpoints / "damaged_step_4").mkdir()
    before = sorted(run.folder.rglob("*"))
    states = checkpoint_states(run)
    assert sorted(run.folder.rglob("*")) == before  # nothing is put aside by looking
    assert [(s.name, s.step, bool(s.problems), s.missing) for s in states] == [
        ("checkpoint_step_2", 2, False, ()),
        ("checkpoint_step_10", 10, True, ()),
        ("checkpoint_step_12", 12, False, ("optimizer.pt",)),
        ("checkpoint_final", None, False, ()),
        ("damaged_step_4", None, True, ()),
    ]
    said = page(run)[1]
    assert "DAMAGED: model.safetensors is not what was written" in said
    assert "to go on with it optimizer.pt is missing" in said
    assert "DAMAGED: put aside as damaged (no manifest.json)" in said
    assert "Trained, but not measured: 1 step of grpo" in said


def test_the_openings_of_the_test_split_are_told(tmp_path: Path) -> None:
    from rl4rec_cli.eval.openings import record_opening

    run = make(tmp_path)
    write(run, "training_log.jsonl", [step("grpo", 1)])
    assert "Test split opened" not in page(run)[1]
    record_opening(run)
    assert "Test split opened 1 time (20" in page(run)[1]
    path = run.folder / "test_openings.jsonl"
    path.write_text(path.read_text().replace('"opening": 1', '"opening": 2'))
    assert "WARNING: line 1 of test_openings.jsonl was changed" in page(run)[1]


def test_a_run_at_work(tmp_path: Path) -> None:
    run = make(tmp_path)
    write(run, "training_log.jsonl", [step("grpo", 1)])
    with run.locked():
        assert "A process is at work on this run." in page(run)[1]
    assert "A process is at work" not in page(run)[1]


def test_settings_that_are_not_the_defaults(tmp_path: Path) -> None:
    run = make(tmp_path, "grpo", "trainer.beta=0.125", "trainer.warm_start.max_steps=77", "policy.lora.r=3")
    write(run, "training_log.jsonl", [step("grpo", 1)])
    said = page(run)[1]
    for row in ("trainer.beta 0.125 0.0", "trainer.warm_start.max_steps 77 10000", "policy.lora set null"):
        assert row in said
    assert "trainer.num_iterations 1" not in said


# Thousands of steps.


def test_thinning_keeps_the_ends_the_extremes_and_the_gaps() -> None:
    steps = np.arange(20_000.0)
    values = np.sin(steps / 900)
    values[7_777], values[13_131], values[15_000:15_400] = 9.0, -9.0, np.nan
    thin, kept = plots._thinned(steps, values)
    assert len(thin) <= 5 * plots.STRETCHES
    assert {0.0, 7_777.0, 13_131.0, 19_999.0} <= set(thin.tolist())
    assert (np.nanmax(kept), np.nanmin(kept)) == (9.0, -9.0)
    assert np.isnan(kept).any()
    assert (values[thin.astype(int)][~np.isnan(kept)] == kept[~np.isnan(kept)]).all()
    short = plots._thinned(steps[:300], values[:300])
    assert (short[1] == values[:300]).all()


def test_the_trailing_mean_leaves_gaps_out() -> None:
    values = np.array([1.0, np.nan, 3.0, *([5.0] * 10)])
    means = plots._trailing_mean(values, 10)
    assert means[0] == 1
    assert np.isnan(means[1])
    assert means[2] == 2
    assert means[11] == pytest.approx((3 + 9 * 5) / 10)
    assert means[12] == 5


def test_a_page_of_ten_thousand_steps_stays_small(tmp_path: Path) -> None:
    run = make(tmp_path)
    noise = np.random.default_rng(0).random(10_001)
    write(
        run, "training_log.jsonl", [step("grpo", i, avg_reward=noise[i], entropy=noise[-i]) for i in range(1, 10_001)]
    )
    write(run, "rollouts.jsonl", [rollout(i) for i in range(1, 10_001)])
    text = as_html(read_logged(open_run(run.folder)))
    assert len(text) < 1_000_000
    assert "step 10,000" in text


# The command.


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder") as caught:
        write_report(str(tmp_path), None)
    assert "rl4rec train" in (caught.value.hint or "")
    run = make(tmp_path)
    with pytest.raises(RunError, match="nothing is logged in it yet"):
        write_report(str(run.folder), None)
    (run.folder / "training_log.jsonl").write_text('{"phase": "grpo", "st')
    with pytest.raises(RunError, match="nothing is logged in it yet"):
        write_report(str(run.folder), None)
    assert not (run.folder / "report.html").exists()


SMALL = (
    *("data.synthetic.users=60", "data.synthetic.items=30", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("generation.max_completion_length=8", "prompt.max_history=2", "trainer.batch_size=8", "logging.steps=1"),
    *("trainer.num_generations=4", "trainer.max_steps=6", "trainer.warm_start.max_steps=20", "eval.steps=2"),
    *("eval.baselines=[popularity, untrained]", "logging.save_steps=4", "run.name=real", "eval.cache_dir=null"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/real` in a folder, trained by the real command, with `runs/real/report.html` by the real command."""
    folder = tmp_path_factory.mktemp("work")
    sets = [part for text in SMALL for part in ("--set", text)]
    for command in (["train", "grpo", "--quick-test", *sets], ["report", "runs/real"]):
        done = subprocess.run([*RL4REC, *command], capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/real/report.html\n"
    return folder


@pytest.mark.slow
def test_a_real_run(trained: Path) -> None:
    text = (trained / "runs" / "real" / "report.html").read_text()
    found = check_page(text)
    said = " ".join(" ".join(found.texts).split())
    assert "Finished: 20 steps of sft in" in said
    assert "On 60 validation users tuned policy reaches ndcg@10" in said
    assert {"Reward", "Validation", "Entropy", "Length", "Loss"} <= set(titles(found))
    assert "Best ndcg@10" in said
    assert "http:" not in text
    assert "https:" not in text
    for name in ("checkpoint_start", "checkpoint_step_4", "checkpoint_best", "checkpoint_final"):
        assert name in said
    assert "DAMAGED" not in said
    result = json.loads((trained / "runs" / "real" / "eval" / "validation.json").read_text())
    for name, values in result["methods"].items():
        assert f"{name} " + " ".join(f"{value:.4f}" for value in values.values()) in said
    d = result["differences"]["popularity"]
    assert f"popularity {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" in said
    log = [json.loads(line) for line in (trained / "runs" / "real" / "rollouts.jsonl").open()]
    assert all(clean(record["text"]) in found.texts for record in log[:4] if record["text"].strip())


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_draws_the_real_run_and_has_nothing_to_say(trained: Path, width: int, scheme: str) -> None:
    file = trained / "runs" / "real" / "report.html"
    found = draw_quietly(file, width, scheme)
    assert found.tags.count("svg") >= 8
    assert "script" not in found.tags
    pixels = screenshot(file, width, scheme)
    assert tuple(pixels[0, 0]) == BACKGROUNDS[scheme]
    for colour in COLOURS[scheme][:2]:  # the first two lines of the plots
        assert (pixels == colour).all(axis=2).sum() > 200, colour


@pytest.mark.slow
def test_the_command_says_what_is_wrong(trained: Path) -> None:
    (trained / "empty").mkdir()
    for args, code, said in (
        (["empty"], 1, "error: empty: not a run folder (no config.yaml)\nhint: runs are made by `rl4rec train`"),
        (["runs/real", "--out", "empty"], 2, "error: empty: is a folder"),
        ([], 2, "error: missing argument"),
    ):
        command = [*RL4REC, "report", *args]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=trained, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
