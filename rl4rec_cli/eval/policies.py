"""Measures policies: they complete a prompt for every example, and the completions are ranked.

Decides: what a policy's measurement depends on, which is its key in the cache.
Hides: when a policy is loaded, and that only one is at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.data.dates import day_line, with_day, writes_day
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.plan.phases import Phase, during

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.scoring import Measured, Scored, Task, VectorScores
    from rl4rec_cli.eval.vector_method import VectorMethod
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.retrieval.trained import TrainedRetriever

    Measurable = Policy | TrainedRetriever


@during(Phase.MEASURING)
def measure_policy(
    name: str,
    policy: Measurable,
    config: RunConfig,
    dataset: Dataset,
    retriever: VectorRetriever,
    examples: Sequence[Example],
    *,
    reads: Sequence[Example] | None = None,
    join: Callable[[VectorScores | FusedTexts, Sequence[Example]], Scored] | None = None,
) -> Measured:
    """Generates completions for every example and ranks its target by them; a retriever's query is the history itself.

    The run's seed decides the completions if `eval.temperature` is above 0.

    Args:
        reads: the policy reads these examples' histories instead, one for each example (probes).
        join: returns the scores of each example's completions and of a sequence model together (training).

    Raises:
        PolicyError: as `check_vectors_fit`, before anything is written.
    """
    from rl4rec_cli.eval.scoring import measure
    from rl4rec_cli.eval.vector_method import history_scores
    from rl4rec_cli.retrieval.trained import TrainedRetriever

    reads = reads if reads is not None else examples
    if isinstance(policy, TrainedRetriever):
        return measure(name, history_scores(policy)(reads), dataset, examples, kind="policy")
    check_vectors_fit(len(reads), config.generation, retriever)
    texts, log_probs = write_texts(name, policy, config, dataset, reads)
    own = score_completions(texts, log_probs, config.generation, retriever)
    scored: Scored = own if join is None else join(own, examples)
    return measure(name, scored, dataset, examples, kind="policy", texts=texts, log_probs=log_probs)


def check_vectors_fit(users: int, section: GenerationSection, retriever: VectorRetriever) -> None:
    """Checks that the vectors of several completions of each user can be held, before the completions are written.

    It counts them once, as unequal completions: what ranking needs besides is small beside them.

    Raises:
        PolicyError: they cannot; the hint says how many can.
    """
    from rl4rec_cli.plan.machine import USABLE, free_bytes
    from rl4rec_cli.plan.memory import human

    if section.texts_per_user == 1 or not users:
        return
    matrix = retriever.matrix
    each, room = 4 * matrix.dim * users, int(USABLE * free_bytes(str(matrix.device)))
    if section.texts_per_user * each <= room:
        return
    most = room // each
    fewer = f"set generation.texts_per_user to {most} or fewer, or measure" if most else "measure"
    raise PolicyError(
        f"generation.texts_per_user={section.texts_per_user}: the vectors of so many completions of {users:,} users "
        f"take {human(section.texts_per_user * each)}, and {human(room)} can be used ({matrix.device})",
        hint=f"{fewer} fewer users (eval.users, in training eval.step_users)",
    )


def score_completions(
    texts: Sequence[Sequence[str]],
    log_probs: Sequence[Sequence[float]] | None,
    section: GenerationSection,
    retriever: VectorRetriever,
) -> VectorScores | FusedTexts:
    """Returns the scores of examples' completions, those of one example as one.

    Args:
        log_probs: of each completion, where they weigh as much as they are probable.
    """
    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.scoring import VectorScores

    if section.texts_per_user == 1:
        return VectorScores(retriever.text_vectors([text for (text,) in texts]), retriever.matrix)
    return FusedTexts(texts, retriever.text_vectors, retriever.matrix, section.fusion, log_probs)


def sampling_of(config: RunConfig) -> Sampling:
    """Returns how completions are generated that are measured, or recommended by."""
    from rl4rec_cli.engine.sampling import Sampling

    sampling = Sampling.from_section(config.generation, temperature=config.eval.temperature)
    return replace(sampling, num_beams=config.generation.num_beams)


@during(Phase.MEASURING)
def write_texts(
    name: str, policy: Policy, config: RunConfig, dataset: Dataset, examples: Sequence[Example]
) -> tuple[list[list[str]], list[list[float]] | None]:
    """Returns the texts of the policy's completions, `generation.texts_per_user` for each example.

    And the log-probability of each, where `generation.text_weights` asks for it.
    """
    from transformers import set_seed

    from rl4rec_cli.policy.generation import generate_several
    from rl4rec_cli.policy.probabilities import generate_weighed

    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    prompts = [builder.build(example.user, example.history).ids for example in examples]
    sampling, count = sampling_of(config), config.generation.texts_per_user
    total = len(prompts) if sampling.num_beams > 1 else len(prompts) * count
    set_seed(config.run.seed)
    with console.progress(total, f"Writing completions: {name}") as advance:
        how: Any = {"count": count, "batch_size": config.eval.batch_size, "progress": advance}
        if config.generation.weighs_texts:
            return generate_weighed(policy, prompts, sampling, **how)
        return generate_several(policy, prompts, sampling, **how), None


class Retrievers:
    """The trained retrievers of one evaluation, as `Models` are its policies."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self._config, self._task = config, task
        self._loaded: dict[str, TrainedRetriever] = {}

    def retriever(self, folder: str) -> TrainedRetriever:
        """Returns the retriever of a checkpoint."""
        from rl4rec_cli.retrieval.trained_opening import open_trained

        if folder not in self._loaded:
            self._loaded[folder] = open_trained(self._config, self._task.dataset, self._task.retriever, folder)
        return self._loaded[folder]

    def close(self) -> None:
        """Releases what is loaded."""
        self._loaded.clear()

    def measure(self, name: str, model: str, *, reads: Sequence[Example] | None = None, what: str = "") -> Measured:
        """Does what `measure_policy` does, through the cache."""
        from rl4rec_cli.eval.cache import cached

        task, retriever = self._task, self.retriever(model)

        def compute() -> Measured:
            return measure_policy(
                name, retriever, self._config, task.dataset, task.retriever, task.examples, reads=reads
            )

        return cached(task, self._key(name, model, what=what), compute)

    def _key(self, name: str, model: str, *, what: str = "") -> dict[str, object]:
        """Returns the weights, and what they were trained on."""
        return {"trained": self.retriever(model).digest, "name": name, "reads": what}

    def vector_method(self, name: str, model: str) -> VectorMethod:
        """Returns the retriever as a method that scores any examples by the queries of their histories."""
        from rl4rec_cli.eval.vector_method import VectorMethod, history_scores

        scores = history_scores(self.retriever(model))
        return VectorMethod(name, "policy", scores, lambda examples: self._key(name, model))


def open_models(
    config: RunConfig, task: Task, *, share: Models | Retrievers | None = None, started: str | None = None
) -> Models | Retrievers:
    """Returns what measures the runs of a configuration; see `Models`."""
    if not config.trainer.trains_policy:
        return Retrievers(config, task)
    return Models(config, task, share=share if isinstance(share, Models) else None, started=started)


def _generation_key(section: GenerationSection) -> dict[str, Any]:
    """Returns the settings that completions and ranks depend on, without those that one likeliest text does not have.

    So what earlier versions kept is still read.
    """
    key = section.model_dump(mode="json")
    left_out = ["texts_per_user", "fusion"] if section.texts_per_user == 1 else []
    unsaid = (("num_beams", 1), ("text_weights", "equal"))
    return {name: value for name, value in key.items() if name not in left_out and (name, value) not in unsaid}


class Models:
    """The policies of one evaluation. It loads one when the cache lacks its completions.

    Args:
        task: dataset, examples and cache.
        share: other models, whose loaded policy it uses too.
        started: the day of the run's start, for prompts that contain a date.
    """

    def __init__(
        self, config: RunConfig, task: Task, *, share: Models | None = None, started: str | None = None
    ) -> None:
        self._config, self._task = config, task
        self._started: str | None = started or (share._started if share is not None else None)
        self._tokenizers: dict[str, Any] = {} if share is None else share._tokenizers
        self._loaded: dict[str, Policy] = {} if share is None else share._loaded
        self._identities: dict[str, str] = {} if share is None else share._identities  # gigabytes are read for one
        self._measured: dict[tuple[str, tuple[Example, ...]], Measured] = {} if share is None else share._measured

    def policy(self, model: str) -> Policy:
        """Returns the policy of a folder or Hub name. It keeps the last one loaded."""
        from rl4rec_cli.policy.opening import open_policy

        if model not in self._loaded:
            self.close()  # before the next one is loaded: two may not fit
            self._loaded[model] = open_policy(self._config, self._task.dataset, model=model)
        return self._loaded[model]

    def close(self) -> None:
        """Releases the loaded policy and ends its engine."""
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
        """Does what `measure_policy` does, once, and through the cache."""
        from rl4rec_cli.eval.cache import cached

        task, config = self._task, self._dated(config or self._config, model)
        key = self._key(name, model, config, reads=reads, what=what)

        def compute() -> Measured:
            policy = self.policy(model)
            return measure_policy(name, policy, config, task.dataset, task.retriever, task.examples, reads=reads)

        own = json.dumps(key, sort_keys=True, default=str), tuple(task.examples)
        if own not in self._measured:
            self._measured[own] = cached(task, key, compute)
        return self._measured[own]

    def _dated(self, config: RunConfig, model: str) -> RunConfig:
        return with_day(config, self._tokenizer(model), started=self._started)

    def _key(
        self, name: str, model: str, config: RunConfig, *, reads: Sequence[Example] | None = None, what: str = ""
    ) -> dict[str, object]:
        """Returns the model's files, the prompts, and all settings that the completions and ranks depend on."""
        from rl4rec_cli.policy.pretrained import policy_identity
        from rl4rec_cli.retrieval.embedder import find_embedder

        task, tokenizer = self._task, self._tokenizer(model)
        if model not in self._identities:
            self._identities[model] = policy_identity(model)
        embedder = find_embedder(config.retrieval)
        return {
            "policy": self._identities[model],
            "name": name,
            "reads": what,
            "prompts": PromptBuilder(config.prompt, task.dataset, tokenizer).digest(reads or task.examples),
            "sections": [
                config.prompt.model_copy(update={"date": None}).model_dump(mode="json"),  # the prompts say it
                _generation_key(config.generation),
            ],
            "load": config.policy.model_copy(update={"model": "", "lora": None}).model_dump(mode="json"),
            "temperature": config.eval.temperature,
            "seed": config.run.seed,
            "vectors": task.retriever.digest,
            "embedder": [embedder.identity, config.retrieval.query_prompt, *embedder.variant],
        }

    def vector_method(self, name: str, model: str) -> VectorMethod:
        """Returns the policy as a method that scores any examples by the vectors of its completions."""
        from rl4rec_cli.eval.vector_method import VectorMethod

        def of(examples: Sequence[Example]) -> Models:
            return Models(self._config, replace(self._task, examples=examples), share=self, started=self._started)

        def scores(examples: Sequence[Example]) -> VectorScores | FusedTexts:
            measured = of(examples).measure(name, model)
            return score_completions(
                measured.texts or [], measured.log_probs, self._config.generation, self._task.retriever
            )

        def key(examples: Sequence[Example]) -> dict[str, object]:
            return of(examples)._key(name, model, self._dated(self._config, model))

        return VectorMethod(name, "policy", scores, key)
