"""Measure a policy next to its baselines, on the same users, ranks and masks.

Decides: which users and texts are measured, what a result holds and how its table reads.
Hides: loading of runs and models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.data.dataset import Split, build_examples, open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.metrics import means, metric_names, per_user
from rl4rec_cli.eval.statistics import Difference, paired_difference
from rl4rec_cli.layering import dump_config
from rl4rec_cli.runs import Run, open_run, strict, write_json, write_jsonl, write_text

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

EVAL_SEED = 20_010
"""Draws the measured users where there are more than `eval.users`: the same ones for every run and every model."""
TUNED = "tuned policy"


def start_name(config: RunConfig) -> str:
    """What the policy is called that training started from (after the warm start, where there was one)."""
    return "before SFT" if config.trainer.algorithm == "sft" else "before RL"


@dataclass(frozen=True)
class Measured:
    """One method's ranks over a split."""

    name: str
    ranking: Ranking
    texts: list[str] | None = None


@dataclass(frozen=True)
class Evaluation:
    """All methods over the same examples."""

    split: Split
    examples: list[Example]
    ks: tuple[int, ...]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Parts of the examples by name, `[B]` each, whose means are reported too."""
    methods: list[Measured] = field(default_factory=list)

    def method(self, name: str) -> Measured | None:
        return next((m for m in self.methods if m.name == name), None)

    def difference(self, ours: str, theirs: str, metric: str) -> Difference:
        """Paired difference of two methods in a metric such as `ndcg@10`."""
        a, b = self.method(ours), self.method(theirs)
        if a is None or b is None:
            raise DataError(f"no {ours if a is None else theirs!r} among {[m.name for m in self.methods]}")
        return paired_difference(per_user(a.ranking, self.ks)[metric], per_user(b.ranking, self.ks)[metric])

    @property
    def headline(self) -> str:
        """The metric that is compared: `ndcg@10`, or the cut-off nearest to 10."""
        return f"ndcg@{min(self.ks, key=lambda k: abs(k - 10))}"

    def as_json(self) -> dict[str, Any]:
        """Means of every method, and the last policy's differences from the others."""
        ours, others = self.methods[-1].name, self.methods[:-1] if self.methods[-1].texts is not None else []
        return {
            "split": self.split,
            "users": len(self.examples),
            "metric": self.headline,
            "methods": {m.name: means(m.ranking, self.ks) for m in self.methods},
            "slices": {
                name: {"users": int(chosen.sum())}
                | {m.name: means(m.ranking, self.ks, chosen)[self.headline] for m in self.methods}
                for name, chosen in self.slices.items()
            },
            "differences": {m.name: self.difference(ours, m.name, self.headline)._asdict() for m in others},
        }

    def records(self) -> list[dict[str, Any]]:
        """One record per user: target, and every method's rank and text."""
        return [
            {
                "user": example.user,
                "target": example.target,
                "ranks": {m.name: int(m.ranking.ranks[row]) for m in self.methods},
                "texts": {m.name: m.texts[row] for m in self.methods if m.texts is not None},
            }
            for row, example in enumerate(self.examples)
        ]


def choose_examples(dataset: Dataset, split: Split, users: int | None) -> list[Example]:
    """The split's examples, or a fixed draw of them, in file order.

    Raises:
        DataError: the split is empty.
    """
    examples = build_examples(dataset, split)
    if not examples:
        raise DataError(f"dataset {dataset.name} has no {split} examples", hint="see `rl4rec data stats`")
    if users is None or users >= len(examples):
        return examples
    rows = np.random.default_rng(EVAL_SEED).choice(len(examples), users, replace=False)
    return [examples[i] for i in sorted(rows)]


def start_evaluation(config: RunConfig, dataset: Dataset, split: Split) -> Evaluation:
    """The users to measure, and the baselines' slices of them; methods are added as they are measured.

    Raises:
        DataError: the split is empty.
    """
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.metrics import target_slices

    examples = choose_examples(dataset, split, config.eval.users)
    slices = target_slices(training_counts(dataset), [e.target for e in examples])
    return Evaluation(split, examples, config.eval.ks, slices)


def measure_baselines(
    names: Sequence[str], dataset: Dataset, retriever: InProcessRetriever, examples: Sequence[Example]
) -> list[Measured]:
    """The named baselines that need no language model."""
    from rl4rec_cli.eval.baselines import baseline_ranking

    return [
        Measured(name.replace("_", " "), baseline_ranking(name, dataset, retriever, examples))
        for name in names
        if name != "untrained"
    ]


def measure_policy(
    name: str,
    policy: Policy,
    config: RunConfig,
    dataset: Dataset,
    retriever: InProcessRetriever,
    examples: Sequence[Example],
) -> Measured:
    """Write a text for every example and rank its target.

    The texts are drawn with the run's seed when `eval.temperature` is above 0.
    """
    from transformers import set_seed

    from rl4rec_cli.policy.generation import Sampling, generate_texts

    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    prompts = [builder.build(example.user, example.history).ids for example in examples]
    sampling = Sampling.from_section(config.generation, temperature=config.eval.temperature)
    set_seed(config.run.seed)
    with console.progress(len(prompts), f"Writing texts: {name}") as advance:
        texts = generate_texts(policy, prompts, sampling, batch_size=config.eval.batch_size, progress=advance)
    ranking = retriever.target_ranks(texts, [e.target for e in examples], [e.history for e in examples])
    return Measured(name, ranking, texts)


def print_evaluation(evaluation: Evaluation, *, title: str) -> None:
    """The table, then how far the last method is from each of the others."""
    names = metric_names(evaluation.ks)
    rows = []
    for method in evaluation.methods:
        values = means(method.ranking, evaluation.ks)
        rows.append([method.name, *(f"{values[name]:.4f}" for name in names)])
    console.table(title, ["method", *names], rows)
    print_differences(evaluation)


def print_differences(evaluation: Evaluation) -> None:
    """`ours - theirs: +.0123 [+.0100, +.0146]` for every other method."""
    if evaluation.methods[-1].texts is None:
        return
    ours, metric = evaluation.methods[-1].name, evaluation.headline
    rows = []
    for other in evaluation.methods[:-1]:
        d = evaluation.difference(ours, other.name, metric)
        verdict = "higher" if d.low > 0 else "lower" if d.high < 0 else "no difference shown"
        rows.append([other.name, f"{d.mean:+.4f}", f"[{d.low:+.4f}, {d.high:+.4f}]", verdict])
    if rows:
        console.result("")
        console.table(
            f"{ours} minus …, {metric}, {len(evaluation.examples):,} users",
            ["method", "difference", "95 % interval", "verdict"],
            rows,
        )


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """`SPLIT.json` and `SPLIT_users.jsonl`."""
    write_json(folder / f"{evaluation.split}.json", evaluation.as_json())
    write_jsonl(folder / f"{evaluation.split}_users.jsonl", evaluation.records())


def evaluate_run(
    target: str | None,
    *,
    split: str | None,
    users: int | None,
    baselines: str | None,
    sets: Sequence[str],
    recipes: Sequence[str],
    dataset: str | None,
    as_json: bool,
) -> None:
    """`rl4rec eval`: measure a run, one of its checkpoints, a model, or (no target) the baselines alone."""
    run, checkpoint, config = _resolve(target, split, users, baselines, sets, recipes, dataset)
    data = open_dataset(config.data)
    evaluation = start_evaluation(config, data, config.eval.split)
    examples = evaluation.examples

    from rl4rec_cli.retrieval.retriever import open_retriever

    retriever = open_retriever(config.retrieval, data)
    evaluation.methods.extend(measure_baselines(config.eval.baselines, data, retriever, examples))
    if checkpoint is not None:
        untrained = _untrained(run, config) if "untrained" in config.eval.baselines else None
        for name, model in ((start_name(config), untrained), (TUNED if run is not None else checkpoint, checkpoint)):
            if model is not None:
                policy = _load(config, model, data)
                evaluation.methods.append(measure_policy(name, policy, config, data, retriever, examples))
    if not evaluation.methods:
        raise ConfigError("nothing to measure", hint="name a run or a model, or baselines with --baselines")
    folder = None
    if run is not None and checkpoint is not None:
        folder = _result_folder(run, checkpoint, config)
        save_evaluation(evaluation, folder)
        if folder.name != "eval":
            write_text(folder / "config.yaml", dump_config(config))
    if as_json:
        console.print_json(strict(evaluation.as_json()))
        return
    print_evaluation(evaluation, title=f"{data.name}, {evaluation.split} split, {len(examples):,} users")
    if folder is not None:
        console.log(f"per-user records: {folder / f'{evaluation.split}_users.jsonl'}")


def _result_folder(run: Run, checkpoint: str, config: RunConfig) -> Path:
    """Where a result is kept: another checkpoint, users or settings than the run's own never replace the run's."""
    name = "" if Path(checkpoint).name == run.newest_checkpoint().name else Path(checkpoint).name
    as_run = config.model_copy(update={"eval": config.eval.model_copy(update={"split": run.config.eval.split})})
    if as_run != run.config:
        name = f"{name or 'variant'}-{hashlib.sha256(dump_config(config).encode()).hexdigest()[:8]}"
    return run.folder / "eval" / name


def find_run(target: str) -> tuple[Run, str] | None:
    """The run that a path names, and the checkpoint meant: a run folder, or one of its checkpoints; else None.

    Raises:
        RunError: a run without a checkpoint, or without this one.
    """
    path = Path(target)
    if (path / "config.yaml").is_file():
        run = open_run(path)
        return run, str(run.newest_checkpoint())
    whole = path.resolve()  # also from inside `checkpoints`, where the path says nothing of the run
    if whole.parent.name != "checkpoints" or not (whole.parent.parent / "config.yaml").is_file():
        return None
    if not path.is_dir():
        there = ", ".join(sorted(p.name for p in whole.parent.glob("checkpoint_*"))) or "none"
        raise RunError(f"{path}: no such checkpoint", hint=f"there: {there}")
    return open_run(whole.parent.parent if path.parent.name != "checkpoints" else path.parent.parent), str(path)


def _resolve(
    target: str | None,
    split: str | None,
    users: int | None,
    baselines: str | None,
    sets: Sequence[str],
    recipes: Sequence[str],
    dataset: str | None,
) -> tuple[Run | None, str | None, RunConfig]:
    from rl4rec_cli.layering import load_config

    flags: dict[str, Any] = {"eval": {}}
    if split is not None:
        flags["eval"]["split"] = split
    if users is not None:
        flags["eval"]["users"] = users
    if baselines is not None:
        flags["eval"]["baselines"] = [] if baselines == "none" else [b.strip() for b in baselines.split(",")]
    if dataset is not None:
        flags["data"] = {"path": dataset, "synthetic": None}
    layers: dict[str, Any] = {"flags": flags, "sets": sets, "allow_custom_rewards": True}
    found = find_run(target) if target is not None else None
    if found is not None:
        run, checkpoint = found
        own = str(run.folder / "config.yaml")
        return run, checkpoint, load_config(algorithm=None, recipes=[own, *recipes], **layers)
    if target is not None:
        flags["policy"] = {"model": target}
    config = load_config(algorithm="grpo", recipes=recipes, **layers)
    if target is not None and config.data.path is None and config.data.synthetic is None:
        raise RunError(
            f"{target}: not a run folder or a checkpoint of one, and a model needs a dataset to be measured on",
            hint=f"rl4rec eval {target} --dataset PATH",
        )
    return None, target, config


def _untrained(run: Run | None, config: RunConfig) -> str | None:
    """The policy before reinforcement learning; None for a plain model, which is its own."""
    if run is None:
        return None
    return str(run.start) if run.start.is_dir() else config.policy.model


def _load(config: RunConfig, model: str, dataset: Dataset) -> Policy:
    from rl4rec_cli.policy.loading import load_policy

    section = config.policy.model_copy(update={"model": model})
    return load_policy(section, dataset=dataset, seed=config.run.seed)
