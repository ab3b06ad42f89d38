"""A run that was interrupted and goes on is the run that was not: to the last digit, on the CPU."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.errors import ConfigError, PolicyError, RunError
from rl4rec_cli.files import folders
from rl4rec_cli.files.folders import problems
from rl4rec_cli.policy.loading import load_policy, save_policy
from rl4rec_cli.runs.making import open_run
from rl4rec_cli.train import resumable
from rl4rec_cli.train.checkpoints import changed_keys

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "data.train_targets=last"),
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=5"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.max_steps=8", "trainer.learning_rate=0.01", "trainer.num_train_epochs=99"),
    *("eval.users=6", "eval.baselines=[untrained]", "logging.steps=1", "logging.rollouts=1000"),
    *("logging.save_steps=1", "logging.save_total_limit=2", "eval.steps=3", "eval.temperature=1", "eval.step_users=9"),
)
GROUPS = ("trainer.num_generations=4", "trainer.warm_start=null")
PPO = ("trainer.warm_start=null", "trainer.batch_size=8", "trainer.mini_batch_size=4", "trainer.ppo_epochs=2")
# What an algorithm is tried with: 24 users are 6 batches of 4, so that 8 steps cross an epoch.
VARIANTS = {
    "sft": ("sft", ()),
    "sft, accumulated, logged every third step": (
        "sft",
        ("trainer.gradient_accumulation_steps=2", "logging.steps=3"),
    ),
    "grpo": ("grpo", GROUPS),
    "grpo, two updates from a batch": ("grpo", (*GROUPS, "trainer.num_iterations=2")),
    "grpo, accumulated, three updates, logged every third step": (
        "grpo",
        (*GROUPS, "trainer.gradient_accumulation_steps=2", "trainer.num_iterations=3", "logging.steps=3"),
    ),
    "grpo with a reference": ("grpo", (*GROUPS, "trainer.beta=0.1", "trainer.lr_scheduler_type=cosine")),
    "grpo, zero variance, refilled": (
        "grpo",
        (*GROUPS, "trainer.zero_variance=refill", "reward.rank_shaping=0", "trainer.num_iterations=2"),
    ),
    "grpo, paid by the group, refilled, logged every third step": (
        "grpo",
        (*GROUPS, "reward.credit=marginal", "trainer.zero_variance=refill", "logging.steps=3"),
    ),
    "grpo, paid by the group's hybrid, two texts measured": (
        "grpo",
        (*GROUPS, "reward.credit=marginal", "reward.fuse=transitions", "generation.texts_per_user=2"),
    ),
    "grpo, with supervision, two updates": (
        "grpo",
        (*GROUPS, "trainer.sft_weight=0.5", "trainer.gradient_accumulation_steps=2", "trainer.num_iterations=2"),
    ),
    "grpo, screened by its own texts": ("grpo", (*GROUPS, "trainer.screen_by=policy", "trainer.screen_rank=20")),
    "rloo, accumulated, two updates from a batch": (
        "rloo",
        (*GROUPS, "trainer.gradient_accumulation_steps=2", "trainer.num_iterations=2"),
    ),
    "ppo": ("ppo", (*PPO, "trainer.beta=0.05", "trainer.target_kl=0.01")),
    "ppo, with supervision": ("ppo", (*PPO, "trainer.sft_weight=0.5")),
    "ppo, accumulated": ("ppo", (*PPO, "trainer.gradient_accumulation_steps=2", "logging.steps=3")),
    "reinforce": ("reinforce", ("trainer.warm_start=null",)),
    "reinforce, fused": (
        "reinforce",
        ("trainer.warm_start=null", "reward.fuse=transitions", "trainer.screen_by=policy", "trainer.screen_rank=20"),
    ),
    "grpo with an adapter": ("grpo", (*GROUPS, "policy.lora.r=4")),
}
# The step that is being made when the process dies: in the first epoch, at its end, in the second one.
CASES = [
    *((name, at) for name in ("sft", "grpo") for at in (1, 6, 7)),
    *((name, at) for name in VARIANTS if "," in name or name == "ppo" for at in (5, 7)),
    *((name, 3) for name in ("grpo with a reference", "reinforce", "grpo with an adapter")),
]
TIMES = ("seconds", "step_seconds", "generation_seconds", "reward_seconds", "tokens_per_second", "memory_gib")


class Killed(BaseException):
    """The process is gone: nothing of what would be done after it is done."""


def recipe(folder: Path, algorithm: str, *sets: str) -> RunConfig:
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags={"run.output_dir": str(folder)},
        sets=[*SMALL, "run.name=run", "eval.cache_dir=null", *sets],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines() if line
    ]


def outcome(folder: Path) -> tuple[list[Any], list[Any], dict[str, Any], list[Any]]:
    """Log, texts, results and the final weights of a run."""
    weights = load_file(next((folder / "checkpoints" / "checkpoint_final").glob("*model.safetensors")))
    users = folder / "eval" / "validation_users.jsonl"
    texts = folder / "rollouts.jsonl"
    log = [r for file in sorted(folder.glob("*_log.jsonl")) for r in lines(file)]
    return log, lines(texts) if texts.is_file() else [], {k: weights[k] for k in sorted(weights)}, lines(users)


def assert_same(one: Path, other: Path) -> None:
    for ours, theirs in zip(outcome(one), outcome(other), strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        else:
            assert ours == theirs


def go_on(folder: Path, *sets: str, allow_partial: bool = False) -> None:
    run = open_run(folder)
    config = load_config(algorithm=run.config.trainer.algorithm, recipes=[str(folder / "config.yaml")], sets=sets)
    train(config, (config.run.seed,), resume=folder, allow_partial=allow_partial)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the process die while step `at + 1` of a phase is made, the given number of phases from now."""

    def arrange(at: int, *, phase: int = 0) -> None:
        left = [phase]
        step = resumable.Resumable.training_step

        def dying(self: Any, *args: Any, **options: Any) -> Any:
            loss = step(self, *args, **options)
            if self.state.global_step == at and left[0] == 0:
                monkeypatch.undo()
                monkeypatch.setattr(resumable.Keeper, "_keep_last", lambda self: None)
                raise Killed
            return loss

        begin = resumable.Keeper.on_train_end

        def ended(self: Any, *args: Any, **options: Any) -> None:
            left[0] -= 1
            begin(self, *args, **options)

        monkeypatch.setattr(resumable.Resumable, "training_step", dying)
        monkeypatch.setattr(resumable.Keeper, "on_train_end", ended)

    return arrange


whole_runs: dict[str, Path] = {}


def whole(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of a variant, made once."""
    if name not in whole_runs:
        algorithm, sets = VARIANTS[name]
        folder = tmp_path_factory.mktemp("whole")
        train(recipe(folder, algorithm, *sets), (3,))
        whole_runs[name] = folder / "run"
    return whole_runs[name]


@pytest.mark.parametrize(("name", "at"), CASES)
def test_killed_at_a_step(
    name: str, at: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kill: Callable[..., None]
) -> None:
    algorithm, sets = VARIANTS[name]
    kill(at)
    with pytest.raises(Killed):
        train(recipe(tmp_path, algorithm, *sets), (3,))
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint_final").exists()
    go_on(tmp_path / "run")
    assert_same(whole(name, tmp_path_factory), tmp_path / "run")


def lora(folder: Path, name: str) -> RunConfig:
    """GRPO on an adapter, with a reference, after a warm start."""
    base = folder / "base"
    if not base.exists():
        config = recipe(folder, "grpo", *GROUPS)
        save_policy(load_policy(config.policy, dataset=open_dataset(config.data), seed=7), base)
    warm = json.dumps({"batch_size": 4, "max_steps": 6, "learning_rate": 0.01})
    return recipe(
        *(folder, "grpo", f"run.name={name}", "trainer.num_generations=4", f"trainer.warm_start={warm}"),
        *(f"policy.model={base}", "policy.lora.r=4", "policy.lora.dropout=0.1", "trainer.beta=0.1"),
    )


def test_killed_in_the_warm_start_and_again_after_it(tmp_path: Path, kill: Callable[..., None]) -> None:
    train(lora(tmp_path, "whole"), (3,))
    config = lora(tmp_path, "run")
    folder = tmp_path / "run" / "checkpoints"
    kill(4)
    with pytest.raises(Killed):
        train(config, (3,))
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint_warm_3", "checkpoint_warm_4"]
    kill(3, phase=1)
    with pytest.raises(Killed):
        go_on(tmp_path / "run")
    left = sorted(p.name for p in folder.iterdir())
    assert left == ["checkpoint_best", "checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    logs = [tmp_path / "run" / name for name in ("warm_start_log.jsonl", "training_log.jsonl")]
    logs[1].write_text("".join(log.read_text() for log in logs))  # as earlier versions wrote it
    logs[0].unlink()
    go_on(tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert {r["phase"] for r in lines(tmp_path / "run" / "warm_start_log.jsonl")} == {"sft"}
    assert {r["phase"] for r in lines(tmp_path / "run" / "training_log.jsonl")} == {"grpo"}


def test_killed_before_anything_was_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kill: Callable[..., None]
) -> None:
    algorithm, sets = VARIANTS["grpo"]
    kill(0)
    with pytest.raises(Killed):
        train(recipe(tmp_path, algorithm, *sets), (3,))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    go_on(tmp_path / "run")
    assert_same(whole("grpo", tmp_path_factory), tmp_path / "run")


def test_the_best_on_validation_users_is_kept(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measuring draws numbers of its own (eval.temperature is 1 here), and changes nothing of the training."""
    run = open_run(whole("grpo", tmp_path_factory))
    measured = lines(run.folder / "validation_log.jsonl")
    assert [(r["step"], r["users"]) for r in measured] == [(3, 9), (6, 9), (8, 9)]
    best = max(measured, key=lambda r: (r["ndcg@10"], -r["step"]))
    assert [r["step"] for r in measured if r["best"]][-1] == best["step"]
    said = json.loads((run.best / "validation.json").read_text())
    assert said == {"step": best["step"], "ndcg@10": best["ndcg@10"], "users": 9}
    assert problems(run.best) == []
    never = recipe(tmp_path, "grpo", *VARIANTS["grpo"][1], "eval.steps=null", "logging.save_total_limit=9")
    train(never, (3,))
    before = open_run(tmp_path / "run")
    assert_equal_weights(run.best, before.final if best["step"] == 8 else before.step(best["step"]))
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint_best").exists()
    assert_equal_weights(run.final, tmp_path / "run" / "checkpoints" / "checkpoint_final")


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# What is gone on from


@pytest.fixture
def stopped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its first seven steps, and checkpoints of the last two; a copy of one made once."""
    if "stopped" not in whole_runs:
        folder = tmp_path_factory.mktemp("stopped")
        algorithm, sets = VARIANTS["grpo"]
        train(recipe(folder, algorithm, *sets, "logging.save_total_limit=3"), (3,))
        for name in ("checkpoint_final", "checkpoint_step_8"):
            shutil.rmtree(folder / "run" / "checkpoints" / name)
        shutil.rmtree(folder / "run" / "eval")
        whole_runs["stopped"] = folder / "run"
    shutil.copytree(whole_runs["stopped"], tmp_path / "run")
    return tmp_path / "run"


def damage_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut_file(folder: Path) -> None:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte": (damage_byte, "model.safetensors is not what was written"),
    "a file cut short": (cut_file, "optimizer.pt has "),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    "an empty manifest": (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json is damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no recipe": (lambda folder: (folder / "recipe.yaml").unlink(), "recipe.yaml is missing"),
    "an empty folder": (lambda folder: [p.unlink() for p in folder.iterdir()], "no manifest.json"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(
    how: str, stopped: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, said = DAMAGE[how]
    spoil(stopped / "checkpoints" / "checkpoint_step_7")
    go_on(stopped)
    err = capfd.readouterr().err
    assert "checkpoint_step_7 is damaged (" in err
    assert said in err
    assert "going on after step 6" in err
    assert (stopped / "checkpoints" / "damaged_step_7").is_dir()
    assert_same(whole("grpo", tmp_path_factory), stopped)


def test_the_limit_never_counts_what_was_put_aside(stopped: Path) -> None:
    damage_byte(stopped / "checkpoints" / "checkpoint_step_7")
    go_on(stopped, "logging.save_total_limit=1")
    assert {p.name for p in (stopped / "checkpoints").iterdir() if "step" in p.name} == {
        "damaged_step_7",
        "checkpoint_step_8",
    }


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "algorithm.pt"])
def test_a_missing_state_is_refused_unless_allowed(name: str, stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (stopped / "checkpoints" / "checkpoint_step_7" / name).unlink()
    with pytest.raises(RunError, match=rf"checkpoint_step_7: {name} is missing") as caught:
        go_on(stopped)
    assert "--allow-partial" in str(caught.value.hint)
    before = lines(stopped / "training_log.jsonl")
    go_on(stopped, allow_partial=True)
    assert "--allow-partial" in capfd.readouterr().err
    after = lines(stopped / "training_log.jsonl")
    assert [r["step"] for r in after if "health" not in r] == list(range(1, 9))
    assert after[:7] == before[:7]
    if name == "scheduler.pt":
        rates = [[r["learning_rate"] for r in log if "health" not in r] for log in (after, before)]
        assert rates[0] == rates[1]


def test_a_changed_recipe_is_refused_by_its_keys(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sets = ("trainer.learning_rate=0.02", "reward.k=5", "logging.save_steps=3", "eval.users=7")
    with pytest.raises(RunError) as caught:
        go_on(stopped, *sets)
    message = caught.value.message
    assert "trainer.learning_rate was 0.01, is 0.02" in message
    assert "reward.k was 10, is 5" in message
    assert "save_steps" not in message
    assert "users" not in message
    go_on(stopped, *sets, allow_partial=True)
    assert "trainer.learning_rate was 0.01, is 0.02" in capfd.readouterr().err
    with pytest.raises(RunError, match=r"data\.synthetic\.users was 24, is 30"):
        go_on(stopped, "data.synthetic.users=30")


def test_texts_that_are_too_long_now_are_written_anew(tmp_path: Path, kill: Callable[..., None]) -> None:
    """Killed between two updates from one batch, and gone on with where texts are to be shorter."""
    algorithm, sets = VARIANTS["grpo, two updates from a batch"]
    kill(5)
    with pytest.raises(Killed):
        train(recipe(tmp_path, algorithm, *sets), (3,))
    go_on(tmp_path / "run", "generation.max_completion_length=2", allow_partial=True)
    # Texts are written for every second step, and again for the sixth.
    assert {r["step"] for r in lines(tmp_path / "run" / "rollouts.jsonl")} == {1, 3, 5, 6, 7}


def test_a_finished_run_says_so(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    go_on(stopped)
    capfd.readouterr()
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("[!.]*")}
    go_on(stopped)
    assert "is finished" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("[!.]*")} == before


def test_a_run_killed_before_it_was_measured_is_measured(
    stopped: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    go_on(stopped)
    shutil.rmtree(stopped / "eval")
    go_on(stopped)
    assert_same(whole("grpo", tmp_path_factory), stopped)


def test_a_log_whose_last_line_is_cut(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("training_log.jsonl", "rollouts.jsonl"):
        with (stopped / name).open("ab") as file:
            file.write(b'{"phase": "grpo", "step": 8, "loss": 0.')
    go_on(stopped)
    assert_same(whole("grpo", tmp_path_factory), stopped)


def test_another_process_in_the_folder(stopped: Path) -> None:
    with open_run(stopped).locked(), pytest.raises(RunError, match=r"another process trains this run \(process \d+ on"):
        go_on(stopped)
    go_on(stopped)


def test_what_a_killed_save_left_is_removed(stopped: Path) -> None:
    folder = stopped / "checkpoints"
    (folder / ".checkpoint_step_8.123.tmp").mkdir()
    (folder / "checkpoint_step_7").rename(folder / ".checkpoint_step_7.123.old")  # between the two renames
    go_on(stopped)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    log = lines(stopped / "training_log.jsonl")
    assert [r["step"] for r in log if "health" not in r] == list(range(1, 9))


class Fault:
    """The file operations of a save, of which the given one fails."""

    def __init__(self, at: int) -> None:
        self.left = at

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args, **options)

        return call


@pytest.mark.slow
def test_a_fault_at_every_operation_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops and says why; the checkpoint before is whole, and no part of the new one is left."""
    config = recipe(tmp_path, "grpo", *GROUPS, "trainer.max_steps=3", "logging.save_total_limit=1", "eval.baselines=[]")
    train(config, (3,))
    expected = outcome(tmp_path / "run")[2]
    for at in range(1, 40):
        shutil.rmtree(tmp_path / "run")
        fault = Fault(at)
        with monkeypatch.context() as patch:
            save = resumable.Keeper._save

            def failing(self: Any, snapshot: Any, save: Any = save, patch: Any = patch, fault: Any = fault) -> Any:
                if snapshot.step == 2:
                    patch.setattr(folders, "torch_save", fault.wrap(folders.torch_save))
                    patch.setattr(resumable, "torch_save", fault.wrap(resumable.torch_save))
                    for name in ("sync", "sha256_of_file", "_put_in_place"):
                        patch.setattr(folders, name, fault.wrap(getattr(folders, name)))
                    patch.setattr(Path, "replace", fault.wrap(Path.replace))
                    patch.setattr(Path, "write_text", fault.wrap(Path.write_text))
                return save(self, snapshot)

            patch.setattr(resumable.Keeper, "_save", failing)
            said = None
            try:
                train(config, (3,))
            except PolicyError as error:
                said = error.message
        if said is None:
            break
        assert "cannot write the checkpoint of about" in said
        names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
        assert names in ({"checkpoint_start", "checkpoint_step_1"}, {"checkpoint_start", "checkpoint_step_2"})
        for name in names:
            assert folders.problems(tmp_path / "run" / "checkpoints" / name) == []
        if at % 6 == 1:
            go_on(tmp_path / "run")
            again = outcome(tmp_path / "run")[2]
            assert [name for name in expected if not torch.equal(expected[name], again[name])] == []
    assert 15 < at < 39


def test_which_keys_count_as_changed() -> None:
    before = {"reward": {"functions": {"ndcg": 1.0}, "k": 10}, "logging": {"steps": 1}, "old": 1}
    assert changed_keys(before, before) == []
    assert changed_keys(before, {**before, "logging": {"steps": 2}, "new": 3}) == []
    # Ranks are the same with each: a run may go on where memory is less.
    held, otherwise = ({"retrieval": {"storage": s, "memory_map": m}} for s, m in (("auto", "auto"), ("int8", "on")))
    assert changed_keys(held, otherwise) == []
    now = {**before, "reward": {"functions": {"ndcg": 1.0, "hit": 1.0}, "k": 10}}
    assert changed_keys(before, now) == ['reward.functions was {"ndcg": 1.0}, is {"ndcg": 1.0, "hit": 1.0}']


def test_a_number_that_is_not_finite_stops_before_the_weights_take_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = resumable.Resumable.training_step

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == 2:
            with torch.no_grad():  # as an overflow would
                monkeypatch.setattr(self, "compute_loss", lambda *a, **o: self.model.lm_head.weight.sum() * torch.nan)
        return step(self, *args, **options)

    monkeypatch.setattr(resumable.Resumable, "training_step", broken)
    config = recipe(tmp_path, "sft")
    with pytest.raises(PolicyError, match="step 3: the loss is not finite; the step is left out"):
        train(config, (3,))
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint_step_2" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in kept.values())
    assert [r["step"] for r in lines(tmp_path / "run" / "training_log.jsonl")] == [1, 2]


PROLONGED = {
    "grpo": ("grpo", (*GROUPS, "trainer.num_iterations=2")),
    "sft": ("sft", ("trainer.lr_scheduler_type=constant_with_warmup", "trainer.warmup_steps=3")),
    "ppo": ("ppo", PPO),
}


@pytest.mark.parametrize("name", PROLONGED)
def test_a_prolonged_run_is_the_run_that_was_long_from_the_start(
    name: str, tmp_path: Path, kill: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """With a rate that does not fall; killed on its way, the shorter run's policy and results stay."""
    algorithm, sets = PROLONGED[name]
    sets = ("trainer.lr_scheduler_type=constant", "logging.save_steps=2", "eval.steps=4", *sets)
    train(recipe(tmp_path, algorithm, *sets, "trainer.max_steps=12", "run.name=whole"), (3,))
    train(recipe(tmp_path, algorithm, *sets, "trainer.max_steps=8", "run.name=short"), (3,))
    short = tmp_path / "short"
    before = outcome(short)
    kill(10)
    with pytest.raises(Killed):
        go_on(short, "trainer.max_steps=12")
    assert outcome(short)[2].keys() == before[2].keys()
    assert all(torch.equal(outcome(short)[2][key], before[2][key]) for key in before[2])
    assert outcome(short)[3] == before[3]
    capfd.readouterr()
    go_on(short)  # by its own recipe, which says 12 now
    assert "Learning rate" not in capfd.readouterr().err
    assert_same(tmp_path / "whole", short)
    assert lines(short / "eval" / "after_step_8" / "validation_users.jsonl") == before[3]
    go_on(short)
    assert "is finished" in capfd.readouterr().err


def test_a_rate_that_had_fallen_to_zero_goes_on_by_the_longer_schedule(
    stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    go_on(stopped)
    capfd.readouterr()
    go_on(stopped, "trainer.max_steps=16")
    err = capfd.readouterr().err
    assert "the checkpoint's schedule had come to 0 after step 8; linear over 16 steps goes on at 0.005." in err
    log = [r for r in lines(stopped / "training_log.jsonl") if "health" not in r]
    assert [r["step"] for r in log] == list(range(1, 17))
    assert [r["learning_rate"] for r in log[8:]] == pytest.approx([0.01 * (16 - at) / 16 for at in range(8, 16)])


def test_what_cannot_be_prolonged_is_said(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    go_on(stopped)
    with pytest.raises(ConfigError, match="has 8 steps already, and with this configuration it has 8") as caught:
        go_on(stopped, "trainer.num_train_epochs=100")
    assert "the smaller of both ends a run" in str(caught.value.hint)
    with pytest.raises(RunError, match=r"trainer\.max_steps was 8, is 6"):
        go_on(stopped, "trainer.max_steps=6")
    with pytest.raises(RunError, match=r"trainer\.learning_rate was 0\.01, is 0\.02"):
        go_on(stopped, "trainer.max_steps=16", "trainer.learning_rate=0.02")
    for folder in (stopped / "checkpoints").glob("checkpoint_step_*"):
        shutil.rmtree(folder)
    with pytest.raises(RunError, match="nothing is left to go on from"):
        go_on(stopped, "trainer.max_steps=16")
