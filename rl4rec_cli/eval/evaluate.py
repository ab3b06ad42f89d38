"""Measure a policy next to its baselines, on the same users, ranks and masks.

Decides: which users and texts are measured, in which order, and what may be read from the cache.
Hides: loading of runs and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.data.dataset import Split
from rl4rec_cli.data.dates import day_line, with_day, writes_day
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.data.provenance import changed_data
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.evaluation import Evaluation, print_evaluation, save_evaluation
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.resolve import resolve_target, untrained
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.files.writing import kept_after, strict, warn_unwritable, write_text
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.runs.folder import Run

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.probes import Probe
    from rl4rec_cli.eval.scoring import Measured, Task
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever

TUNED = "tuned policy"
NEEDS_POLICY = ("untrained", "zero_shot")


def start_name(config: RunConfig) -> str:
    """What the policy is called that training started from (after the warm start, where there was one)."""
    return config.trainer.start_name


def start_evaluation(config: RunConfig, dataset: Dataset, split: Split) -> Evaluation:
    """The users to measure and their slices; methods are added as they are measured.

    Raises:
        DataError: the split is empty.
    """
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import user_slices
    from rl4rec_cli.eval.metrics import target_slices

    examples = choose_examples(dataset, split, config.eval.users)
    slices = {**target_slices(training_counts(dataset), [e.target for e in examples]), **user_slices(examples)}
    about = {"dataset": dataset.name, "dataset_digest": dataset.digest}
    return Evaluation(split, examples, config.eval.ks, slices, about=about)


def open_task(config: RunConfig, dataset: Dataset, retriever: VectorRetriever, examples: Sequence[Example]) -> Task:
    """What the baselines of a configuration are measured on."""
    from rl4rec_cli.eval.scoring import Task

    cache = Path(config.eval.cache_dir).expanduser() if config.eval.cache_dir is not None else None
    return Task(dataset, retriever, examples, cache=cache)


@during(Phase.MEASURING)
def measure_baselines(config: RunConfig, task: Task, split: Split) -> list[Measured]:
    """The configured baselines that need no policy."""
    from rl4rec_cli.eval.baselines import last_item_queries, measure_baseline, measure_fusion

    found = []
    for name in config.eval.baselines:
        if name == "fusion":
            found.append(measure_fusion("last item + SASRec", task, split, last_item_queries(task)))
        elif name not in NEEDS_POLICY:
            found.append(measure_baseline(name, task))
    return found


@during(Phase.MEASURING)
def measure_policy(
    name: str,
    policy: Policy,
    config: RunConfig,
    dataset: Dataset,
    retriever: VectorRetriever,
    examples: Sequence[Example],
    *,
    reads: Sequence[Example] | None = None,
) -> Measured:
    """Write a text for every example and rank its target.

    The texts are drawn with the run's seed when `eval.temperature` is above 0.

    Args:
        reads: whose histories the policy reads, one for each example, where they are not the examples' own (probes).
    """
    from rl4rec_cli.eval.scoring import VectorScores, measure

    texts = write_texts(name, policy, config, dataset, reads if reads is not None else examples)
    scored = VectorScores(retriever.text_vectors(texts), retriever.matrix)
    return measure(name, scored, dataset, examples, kind="policy", texts=texts)


@during(Phase.MEASURING)
def write_texts(
    name: str, policy: Policy, config: RunConfig, dataset: Dataset, examples: Sequence[Example]
) -> list[str]:
    """What the policy writes for each example."""
    from transformers import set_seed

    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.generation import generate_texts

    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    prompts = [builder.build(example.user, example.history).ids for example in examples]
    sampling = Sampling.from_section(config.generation, temperature=config.eval.temperature)
    set_seed(config.run.seed)
    with console.progress(len(prompts), f"Writing texts: {name}") as advance:
        return generate_texts(policy, prompts, sampling, batch_size=config.eval.batch_size, progress=advance)


def finish(evaluation: Evaluation, dataset: Dataset) -> None:
    """Add what is reported beside the ranks once all methods are measured."""
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import behaviour

    counts = training_counts(dataset)
    for method in evaluation.methods:
        evaluation.behaviour[method.name] = behaviour(method, dataset, evaluation.examples, counts)


def note_checkpoint(evaluation: Evaluation, run: Run, folder: Path) -> None:
    """Say in a result which of a run's checkpoints it is of."""
    evaluation.about["checkpoint"] = about = describe_checkpoint(run, folder)
    evaluation.about["checkpoint_line"] = checkpoint_line(about, split=evaluation.split)


class Models:
    """The policies of one evaluation: loaded when a text is wanted that is not in the cache.

    Args:
        task: dataset, examples and cache.
        share: other models, whose loaded policy is used.
        started: the day that a run was begun on, which its prompts write where they write one.
    """

    def __init__(
        self, config: RunConfig, task: Task, *, share: Models | None = None, started: str | None = None
    ) -> None:
        self._config, self._task = config, task
        self._started: str | None = started or (share._started if share is not None else None)
        self._tokenizers: dict[str, Any] = {} if share is None else share._tokenizers
        self._loaded: dict[str, Policy] = {} if share is None else share._loaded
        self._identities: dict[str, str] = {} if share is None else share._identities  # gigabytes are read for one

    def policy(self, model: str) -> Policy:
        """The policy of a folder or Hub name; the last one is kept."""
        from rl4rec_cli.policy.opening import open_policy

        if model not in self._loaded:
            self.close()  # before the next one is loaded: two may not fit
            self._loaded[model] = open_policy(self._config, self._task.dataset, model=model)
        return self._loaded[model]

    def close(self) -> None:
        """Let go of the policy that is loaded, and of its engine."""
        for policy in self._loaded.values():
            policy.close()
        self._loaded.clear()

    def _tokenizer(self, model: str) -> Any:
        from rl4rec_cli.policy.loading import load_tokenizer_alone

        if model not in self._tokenizers:
            section = self._config.policy.model_copy(update={"model": model})
            self._tokenizers[model] = tokenizer = load_tokenizer_alone(section, self._task.dataset)
            if writes_day(tokenizer, chat=self._config.prompt.chat):
                console.log(day_line(str(with_day(self._config, tokenizer, started=self._started).prompt.date)))
        return self._tokenizers[model]

    def measure(
        self, name: str, model: str, *, reads: Sequence[Example] | None = None, what: str = "", config: Any = None
    ) -> Measured:
        """As `measure_policy`, kept in the cache under the model's files, the prompts, and all settings its texts
        depend on.
        """
        from rl4rec_cli.eval.cache import cached
        from rl4rec_cli.policy.pretrained import policy_identity
        from rl4rec_cli.retrieval.embedding import lsa_name, model_identity

        task, tokenizer = self._task, self._tokenizer(model)
        config = with_day(config or self._config, tokenizer, started=self._started)
        if model not in self._identities:
            self._identities[model] = policy_identity(model)
        embedder = (
            model_identity(config.retrieval.model)
            if config.retrieval.embedder != "lsa"
            else lsa_name(config.retrieval.lsa_dim)
        )
        key = {
            "policy": self._identities[model],
            "name": name,
            "reads": what,
            "prompts": PromptBuilder(config.prompt, task.dataset, tokenizer).digest(reads or task.examples),
            "sections": [
                config.prompt.model_copy(update={"date": None}).model_dump(mode="json"),  # the prompts say it
                config.generation.model_dump(mode="json"),
            ],
            "load": config.policy.model_copy(update={"model": "", "lora": None}).model_dump(mode="json"),
            "temperature": config.eval.temperature,
            "seed": config.run.seed,
            "vectors": task.retriever.digest,
            "embedder": [embedder, config.retrieval.query_prompt, *_own_kind(config)],
        }

        def compute() -> Measured:
            policy = self.policy(model)
            return measure_policy(name, policy, config, task.dataset, task.retriever, task.examples, reads=reads)

        return cached(task, key, compute)

    def queries(self, name: str, model: str) -> Callable[[Sequence[Example]], Tensor]:
        """Vectors of what a policy writes for any examples."""

        def vectors(examples: Sequence[Example]) -> Tensor:
            same = tuple(examples) == tuple(self._task.examples)
            others = replace(self._task, examples=examples)
            models = self if same else Models(self._config, others, share=self, started=self._started)
            return self._task.retriever.text_vectors(models.measure(name, model).texts or [])

        return vectors


def _own_kind(config: RunConfig) -> list[str]:
    """What else than the model moves a text's vector: another engine, in the last bits."""
    return ["vllm"] if config.retrieval.embedder == "vllm" else []


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
    checkpoint: str | None = None,
    files: Mapping[str, str | None] | None = None,
) -> None:
    """`rl4rec eval`: measure a run, one of its checkpoints, a model, or (no target) the baselines alone."""
    run, model, config = resolve_target(target, split, users, baselines, sets, recipes, dataset, checkpoint, files)
    data = open_dataset(config.data)
    evaluation = start_evaluation(config, data, config.eval.split)
    evaluation.about["audit"] = audit_line(config, data, next(iter(config.data.paths), None))
    if run is not None and model is not None:
        note_checkpoint(evaluation, run, Path(model))
        if as_json:  # else it stands in the table
            console.log(evaluation.about["checkpoint_line"])
        if (changed := changed_data(run, config.data, data)) is not None:
            evaluation.about["data_line"] = f"WARNING: {changed}. The result is kept beside those of the run."
            console.log(evaluation.about["data_line"])
    _note_openings(evaluation, run)
    if run is not None and model is not None:
        warn_unwritable(_result_folder(run, model, config, data)[0])

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.retrieval.retriever import FIRST_WAIT, open_retriever

    if model is not None:
        check_engine(config)
        prepare_backend(config.policy)
        check_tokenizer(config.policy.model_copy(update={"model": model}))  # before the minutes of embedding
    retriever = open_retriever(config.retrieval, data, config.data.paths, first_wait=FIRST_WAIT)
    task = open_task(config, data, retriever, evaluation.examples)
    evaluation.methods.extend(measure_baselines(config, task, evaluation.split))
    if model is not None:
        models = Models(config, task, started=run.day if run is not None else None)
        try:
            _measure_policies(evaluation, run, model, config, task, models)
        finally:
            models.close()
    if not evaluation.methods:
        raise ConfigError("nothing to measure", hint="name a run or a model, or baselines with --baselines")
    finish(evaluation, data)
    folder, is_own = None, True
    if run is not None and model is not None:
        folder, is_own = _result_folder(run, model, config, data)

    def keep() -> None:
        if folder is not None:
            save_evaluation(evaluation, folder)
            if not is_own:
                write_text(folder / "config.yaml", dump_config(config))

    with kept_after(keep, folder or Path()):
        if as_json:
            console.print_json(strict(evaluation.as_json()))
        else:
            title = f"{data.name}, {evaluation.split} split, {len(evaluation.examples):,} users"
            print_evaluation(evaluation, title=title, whole=True)
    if folder is not None and not as_json:
        console.log(f"per-user records: {folder / f'{evaluation.split}_users.jsonl'}")


def audit_line(config: RunConfig, dataset: Dataset, path: str | None) -> str:
    """The leakage audit's one line; also logged, for whoever only sees the log.

    Args:
        path: the dataset's folder, where there is one.
    """
    from rl4rec_cli.data.audit.audit import audit_as_configured

    line = audit_as_configured(dataset, config).one_line(path or "PATH")
    console.log(line)
    return line


def _note_openings(evaluation: Evaluation, run: Run | None) -> None:
    """Say how often the run's test split was opened.

    Where it is opened now, that is recorded before anything is measured: an evaluation that fails half-way counts too.
    """
    from rl4rec_cli.eval.openings import read_openings, record_opening

    if run is None:
        if evaluation.split == "test":
            evaluation.about["test_openings_line"] = "Test split opened; not recorded, as no run was named."
        return
    openings = record_opening(run) if evaluation.split == "test" else read_openings(run)
    if openings.count or openings.problem:
        evaluation.about["test_openings"] = openings.as_json()
        evaluation.about["test_openings_line"] = openings.line()


def _measure_policies(
    evaluation: Evaluation, run: Run | None, checkpoint: str, config: RunConfig, task: Task, models: Models
) -> None:
    from rl4rec_cli.eval.baselines import measure_fusion
    from rl4rec_cli.eval.sweep import best_zero_shot

    ours = TUNED if run is not None else checkpoint
    start = untrained(run, config)
    if start is not None and "untrained" in config.eval.baselines:
        evaluation.methods.append(models.measure(start_name(config), start))
    if "zero_shot" in config.eval.baselines:
        evaluation.methods.append(best_zero_shot(models, start or checkpoint, config, task))
    measured = models.measure(ours, checkpoint)
    evaluation.methods.append(measured)
    evaluation.subject = ours
    if "fusion" in config.eval.baselines:
        joined = f"{ours} + SASRec"
        queries = models.queries(ours, checkpoint)
        evaluation.methods.append(measure_fusion(joined, task, evaluation.split, queries, kind="policy"))
    if config.eval.probes:
        evaluation.probes.extend(_probe(evaluation, measured, start, models, checkpoint, config, task))


def _probe(
    evaluation: Evaluation,
    measured: Measured,
    start: str | None,
    models: Models,
    checkpoint: str,
    config: RunConfig,
    task: Task,
) -> list[Probe]:
    from rl4rec_cli.eval import probes

    metric, examples = evaluation.headline, evaluation.examples
    found = []
    begun = evaluation.method(start_name(config)) if start is not None else None
    if begun is not None:
        found.append(probes.second_embedder(config, task.dataset, examples, measured, begun, metric))
    for name, change in ((probes.SHUFFLED, probes.shuffled), (probes.OTHER, probes.exchanged)):
        again = models.measure(f"{measured.name}, {name}", checkpoint, reads=change(examples), what=name)
        found.append(probes.history_probe(name, measured, again, metric, examples, is_order=name == probes.SHUFFLED))
    return found


def _result_folder(run: Run, checkpoint: str, config: RunConfig, dataset: Dataset) -> tuple[Path, bool]:
    """Where a result is kept, and whether it is the run's own result.

    Another checkpoint, users, settings or data than the run's own never replace the run's. The result of a run is that
    of its last step, once it is trained to its end.
    """
    name = Path(checkpoint).resolve().name
    name = "" if name == run.final.name else name
    if changed_data(run, config.data, dataset) is not None:
        name = "-".join(filter(None, (name, "data", dataset.digest[:8])))
    as_run = config.model_copy(update={"eval": config.eval.model_copy(update={"split": run.config.eval.split})})
    folder = run.folder / "eval"
    if len(run.config.data.paths) > 1 and set(config.data.paths) <= set(run.config.data.paths):
        as_run, folder = as_run.model_copy(update={"data": run.config.data}), run.results(dataset.name)
    if as_run != run.config:
        name = f"{name or 'variant'}-{sha256(dump_config(config).encode())[:8]}"
    return folder / name, not name
