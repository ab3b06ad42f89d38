"""TensorBoard and Weights & Biases get what `training_log.jsonl` has; both are run here, the latter offline."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import RunError
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import create_run
from rl4rec_cli.train.trackers import Reports, open_reports

SECRET = "5ec2e7" * 6 + "abcd"
SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "data.train_targets=last", "prompt.max_history=2"),
    *("prompt.max_prompt_length=48", "generation.max_completion_length=5", "policy.tiny.hidden_size=32"),
    *("policy.tiny.heads=2", "policy.tiny.vocab_size=400", "trainer.batch_size=4", "trainer.num_generations=4"),
    *("trainer.max_steps=4", "trainer.num_train_epochs=99", "logging.steps=1", "health.window=3", "eval.steps=2"),
    "health.truncated=warn",
    *("eval.users=6", "eval.baselines=[untrained]", "eval.cache_dir=null", "eval.step_users=9", "run.name=run"),
    'trainer.warm_start={"batch_size": 8, "max_steps": 6, "learning_rate": 0.01}',
)
RECORD = {"phase": "grpo", "step": 1, "loss": 0.5, "avg_reward": 0.25, "kl": None}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")


def recipe(folder: Path, *report_to: str, sets: tuple[str, ...] = ()) -> RunConfig:
    flags = {"run.output_dir": str(folder), "logging.report_to": list(report_to)}
    return load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=[*SMALL, *sets])


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def history(folder: Path) -> list[dict[str, Any]]:
    """What the one offline run wrote. The file is a LevelDB log of protocol buffers behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, part, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no head begins so near a block's end
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = (b"" if kind in (1, 2) else part) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(part)
            if record.HasField("history"):
                items = record.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def test_a_run_reports_to_both(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(recipe(tmp_path, "tensorboard", "wandb"), (0,))
    err = capfd.readouterr().err
    run = tmp_path / "run"
    assert f"TensorBoard: tensorboard --logdir {run}/tensorboard" in err
    assert f"Weights & Biases: offline; to upload it: wandb sync {run}/wandb/offline-run-" in err
    assert "wandb:" not in err
    log = lines(run / "warm_start_log.jsonl") + lines(run / "training_log.jsonl")
    steps = [r for r in log if r["phase"] == "grpo" and "health" not in r]
    assert any("health" in r for r in log)  # a policy this young does not end its texts

    shown = scalars(run / "tensorboard")
    for record in steps:
        for name, value in numbers(record).items():
            assert shown[name][record["step"]] == pytest.approx(value, rel=1e-5), name
    warm = scalars(run / "tensorboard" / "warm_start")
    assert warm["warm_start/loss"] == {r["step"]: pytest.approx(r["loss"]) for r in log if r["phase"] == "sft"}
    validation = lines(run / "validation_log.jsonl")
    assert shown["validation/ndcg@10"] == {r["step"]: pytest.approx(r["ndcg@10"]) for r in validation}
    methods = json.loads((run / "eval" / "validation.json").read_text())["methods"]
    assert shown["final/tuned policy/ndcg@10"] == {4: pytest.approx(methods["tuned policy"]["ndcg@10"])}

    rows = history(run)
    assert [r["loss"] for r in rows if "loss" in r] == [r["loss"] for r in steps]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4]
    assert [r["warm_start/step"] for r in rows if "warm_start/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["validation/ndcg@10"] for r in rows if "validation/ndcg@10" in r] == [r["ndcg@10"] for r in validation]
    for path in (p for p in run.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_results_stand_alone_on_standard_output() -> None:
    """transformers says on standard output that WANDB_MODE is offline, as soon as it is imported."""
    code = (
        "from rl4rec_cli import console; console.quiet_libraries(); from transformers import Trainer; print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    run = create_run(recipe(tmp_path, "tensorboard", "wandb"), dataset="d")

    def interrupted() -> None:
        with open_reports(run) as reports:
            for step in (1, 2, 3):
                reports.step({**RECORD, "step": step})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_reports(run, done=1) as reports:
        reports.step({**RECORD, "step": 2, "loss": 0.1})
    assert scalars(run.folder / "tensorboard")["loss"] == {1: 0.5, 2: pytest.approx(0.1)}
    ids = [path.name.split("-", 3)[-1] for path in (run.folder / "wandb").glob("offline-run-*")]
    assert len(ids) == 2
    assert min(ids) in max(ids)  # W&B numbers the folders of one identity that were made in one second


def test_a_tracker_that_fails_is_named_and_left(capfd: pytest.CaptureFixture[str]) -> None:
    class Full:
        def log(self, numbers: Any, *, step: int, group: str) -> None:
            raise OSError("no space left")

        finish = log

    class Good:
        seen: list[Any]

        def log(self, numbers: Any, *, step: int, group: str) -> None:
            self.seen.append((group, step, numbers))

        def finish(self, final: Any, *, failed: bool) -> None:
            self.seen.append(failed)

    good = Good()
    good.seen = []
    reports = Reports({"wandb": Full(), "tensorboard": good}, "grpo")
    reports.step(RECORD)
    reports.step({**RECORD, "phase": "sft"})
    reports.finish(failed=True)
    assert good.seen == [
        ("", 1, {"step": 1.0, "loss": 0.5, "avg_reward": 0.25}),
        ("warm_start", 1, {"warm_start/step": 1.0, "warm_start/loss": 0.5, "warm_start/avg_reward": 0.25}),
        True,
    ]
    assert capfd.readouterr().err == "wandb failed and gets no more numbers: OSError: no space left\n"


def test_one_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    run = create_run(recipe(tmp_path, "wandb"), dataset="d")
    with pytest.raises(RunError, match="wandb: cannot start it: No API key") as caught, open_reports(run):
        pass
    assert "WANDB_MODE=offline" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))
    folder = ("--output", str(tmp_path / "runs"))
    assert main(["train", "grpo", "--quick-test", "--report-to", f"tensorboard,{name}", *folder]) == 2
    err = capfd.readouterr().err
    assert f"error: --report-to {name}: {name} is not installed\nhint: pip install 'rl4rec[{name}]'" in err
    assert not (tmp_path / "runs").exists()


def test_wandb_without_a_login_is_refused_before_a_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from rl4rec_cli.train.trackers import check_trackers

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    folder = ("--output", str(tmp_path / "runs"))
    assert main(["train", "grpo", "--quick-test", "--report-to", "wandb", *folder]) == 2
    err = capfd.readouterr().err
    assert "error: --report-to wandb: nobody is logged in\nhint: log in with `wandb login`, or set WANDB_MODE=" in err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    check_trackers(["wandb"])
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])


def test_one_that_does_not_exist(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", "--quick-test", "--report-to", "wandbb", "--dry-run"]) == 2
    err = capfd.readouterr().err
    assert "logging.report_to: must be 'tensorboard', 'wandb' or 'trackio'" in err
    assert "(--report-to)" in err


def test_trackio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio", reason="needs trackio: pip install 'rl4rec[trackio]'")
    run: Run = create_run(recipe(tmp_path, "trackio"), dataset="d")
    with open_reports(run) as reports:
        reports.step({**RECORD, "phase": "sft", "step": 7})
        reports.step(RECORD)
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
    assert [(step, json.loads(numbers)) for step, numbers in rows] == [
        (7, {"warm_start/step": 7.0, "warm_start/loss": 0.5, "warm_start/avg_reward": 0.25}),
        (1, {"loss": 0.5, "avg_reward": 0.25}),
    ]
    assert capfd.readouterr().out == ""
