"""Recommend for one history: the best items, and what the policy wrote to find them.

Decides: which items typed titles mean, what an answer holds, and that a sequence model has its say where `eval.fuse`
names one.
Hides: how the run is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands.recommendation import Fusing, Item, RankedItem, Recommendation
from rl4rec_cli.data.dataset import FIT_WORDS, Dataset
from rl4rec_cli.data.dates import with_day
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.data.provenance import CHOOSE, changed_data, check_unseen, is_own_data
from rl4rec_cli.data.titles import TitleIndex
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.history_hybrid import named_fusion
from rl4rec_cli.eval.hybrids import choosers
from rl4rec_cli.eval.measuring import open_task
from rl4rec_cli.eval.policies import Models, open_models, sampling_of
from rl4rec_cli.eval.resolve import Overrides, find_run, resolve_target
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Fit
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.hybrids import Hybrid
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import Found, VectorRetriever
    from rl4rec_cli.retrieval.trained import TrainedRetriever
    from rl4rec_cli.runs.folder import Run


@dataclass(frozen=True)
class Writer:
    """A policy with its prompts."""

    policy: Policy
    builder: PromptBuilder
    sampling: Sampling
    generation: GenerationSection
    """How many texts of a history there are, and how they are ranked as one."""
    seed: int
    """Of several texts that are sampled."""
    batch_size: int
    """Texts generated at once: `eval.batch_size`."""

    @property
    def count(self) -> int:
        """Texts of a history."""
        return self.generation.texts_per_user

    def write(self, history: Sequence[int], user: str | None) -> tuple[list[str], list[float] | None]:
        """Returns the policy's texts. Several depend on the history alone, and not on answers before.

        And the log-probability of each, where `generation.text_weights` asks for it.
        """
        from transformers import set_seed

        from rl4rec_cli.policy.generation import generate_several
        from rl4rec_cli.policy.probabilities import generate_weighed

        prompt = self.builder.build(user, history)
        if self.count > 1:
            set_seed(self.seed)
        how: Any = {"count": self.count, "batch_size": self.batch_size}
        if self.generation.weighs_texts:
            [texts], [log_probs] = generate_weighed(self.policy, [prompt.ids], self.sampling, **how)
            return texts, log_probs
        return generate_several(self.policy, [prompt.ids], self.sampling, **how)[0], None


@dataclass(frozen=True)
class Recommender:
    """A run's policy or retriever with its catalogue. It stays loaded between calls of `answer`."""

    source: Writer | TrainedRetriever
    """Where a query comes from: a policy writes it, a retriever makes it of the history."""
    retriever: VectorRetriever
    dataset: Dataset
    checkpoint: Mapping[str, Any]
    """What is known of the checkpoint that answers."""
    warning: str | None = None
    """What differs between the data that are there and those it was trained on."""
    hybrid: Hybrid | None = None
    """What ranks along with the query."""
    fitted_on: Fit = "train"
    """What the policy or the retriever was fitted on."""

    def answer(self, history: Sequence[int], *, k: int = 10, user: str | None = None) -> Recommendation:
        """Returns the `k` best items by the query, and by the hybrid's model, without the history's; and the text.

        Args:
            history: item ids, oldest first.
            user: whose prompt of `prompts.json` is read, if there is one; None: the template's.

        Raises:
            DataError: nothing can be ranked by the text; with a hybrid, nor by the sequence model.
        """
        exclude = [list(history)] if self.dataset.mask_history else None
        texts, log_probs = self.source.write(history, user) if isinstance(self.source, Writer) else ([], None)
        if self.hybrid is not None:
            matches = self._fused(self.hybrid, texts, log_probs, history, k)
        elif isinstance(self.source, Writer):
            matches = self._by_texts(texts, log_probs, self.source, k, exclude)
        else:
            matches = self.source.search([history], k, exclude)[0]
        return Recommendation(
            checkpoint=str(self.checkpoint["name"]),
            history=tuple(Item(i, self._title(i)) for i in history),
            texts=tuple(texts),
            log_probs=None if log_probs is None else tuple(log_probs),
            items=tuple(
                RankedItem(rank, round(score, 6), i, self._title(i))
                for rank, (i, score) in enumerate(zip(matches.items, matches.scores, strict=True), start=1)
            ),
            user=user,
            warning=self.warning,
            fitted_on=self.fitted_on,
            fused=None if self.hybrid is None else Fusing(self.hybrid.label, self.hybrid.weight, self.hybrid.fitted_on),
            fusion=self.source.generation.fusion if len(texts) > 1 and isinstance(self.source, Writer) else None,
        )

    def _by_texts(
        self,
        texts: Sequence[str],
        log_probs: Sequence[float] | None,
        source: Writer,
        k: int,
        exclude: Sequence[Sequence[int]] | None,
    ) -> Found:
        if not any(texts):
            raise DataError(
                "the policy wrote an empty completion for this history", hint="try another checkpoint or history"
            )
        if source.count == 1:
            [matches] = self.retriever.search(texts, k, exclude)
            is_known = any(matches.scores) or not matches.items
        else:
            weights = None if log_probs is None else [log_probs]
            [matches] = self.retriever.fused_search([texts], k, exclude, source.generation.fusion, weights)
            is_known = bool(self.retriever.text_vectors(texts).ne(0).any())
        if not is_known:
            raise DataError(
                f"the policy wrote {' | '.join(texts)!r}, of which the embedder knows nothing",
                hint="try another checkpoint or history",
            )
        return matches

    def _fused(
        self,
        hybrid: Hybrid,
        texts: Sequence[str],
        log_probs: Sequence[float] | None,
        history: Sequence[int],
        k: int,
    ) -> Found:
        from rl4rec_cli.eval.policies import score_completions
        from rl4rec_cli.eval.scoring import VectorScores
        from rl4rec_cli.retrieval.retriever import Found

        own: VectorScores | FusedTexts
        if isinstance(self.source, Writer):
            weights = None if log_probs is None else [log_probs]
            own = score_completions([texts], weights, self.source.generation, self.retriever)
        else:
            own = VectorScores(self.source.queries([history]), self.source.matrix)
        ids_K, scores_K = hybrid.best(own, history, k, mask=self.dataset.mask_history)
        if not scores_K.any() and len(set(history)) < self.dataset.num_items:
            raise DataError(
                f"the policy wrote {' | '.join(texts)!r}, and neither the embedder nor {hybrid.label} can rank by it"
                if texts
                else f"neither the retriever nor {hybrid.label} can rank for this history",
                hint="try another checkpoint or history",
            )
        return Found(ids_K.tolist(), scores_K.tolist())

    def history_of(self, user: str) -> tuple[int, ...]:
        """Returns a user's whole sequence: recommendations come after everything that is known.

        Raises:
            DataError: there is no such user.
        """
        return self.dataset.sequences[self.dataset.user_index(user)]

    @cached_property
    def _titles(self) -> TitleIndex:
        return TitleIndex([str(item["title"]) for item in self.dataset.items])

    def read_history(self, texts: Iterable[str]) -> list[int]:
        """Returns the items that typed texts mean. A text holds one title, or several with semicolons between them.

        Raises:
            DataError: no item in the catalogue is similar to a title.
        """
        return [self._match(title) for text in texts for title in self._titles.split(text)]

    def _match(self, title: str) -> int:
        """Returns the item with the typed title, else the one whose embedding is most similar."""
        exact = self._titles.find(title)
        if exact is not None:
            return exact
        matches = self.retriever.search([title], 1)[0]
        if not matches.items or matches.scores[0] <= 0:
            raise DataError(f"no item of {self.dataset.name} is like {title!r}")
        return matches.items[0]

    def _title(self, item: int) -> str:
        return str(self.dataset.items[item]["title"])


def open_recommender(
    target: str | Path,
    *,
    users: Sequence[str] = (),
    dataset: str | None = None,
    sets: Sequence[str] = (),
    checkpoint: str | None = None,
    fuse: str | None = None,
) -> Recommender:
    """Opens the recommender of a run folder or of one of its checkpoints, and logs which checkpoint it is.

    Args:
        dataset: one of the run's datasets, by name or folder.
        users: the users to recommend for. An unknown one is refused before anything is loaded.
        sets: settings other than the run's, as `KEY=VALUE`.
        checkpoint: one of the run's checkpoints, see `find_checkpoint`.
        fuse: the sequence model, or the retriever's history query, that ranks along with the completion, as
            `eval.fuse`. The first time, the policy writes for validation users, who choose the weight.

    Raises:
        RunError: the folder is not a run.
        DataError: a user does not exist, or nobody can choose the weight.
        ConfigError: the run has several datasets and none is chosen, or a setting does not exist.
    """
    run_and_folder = find_run(str(target), checkpoint)
    if run_and_folder is None:
        raise RunError(f"{target}: not a run folder or a checkpoint of one", hint="runs are made by `rl4rec train`")
    run, folder = run_and_folder
    _, _, config = resolve_target(str(target), Overrides(sets=sets, dataset=dataset, checkpoint=checkpoint, fuse=fuse))
    if not is_own_data(run, config.data):
        data_name = ", ".join(config.data.paths) or "other synthetic data"
        raise ConfigError(f"{data_name}: the run was not trained on it", hint="recommend knows a run's own items")
    data = open_dataset(config.data)
    for user in users:
        data.user_index(user)
    fusion = named_fusion(config.eval.fuse, config.retrieval, data, "eval.fuse")
    if fusion is not None:
        fusion.check(data, (), "test", config.eval.fuse_weights, method=config.trainer.tuned_name)
        if data.has_validation:
            check_unseen(data, "validation", [folder, find_embedder(config.retrieval).model], use=CHOOSE)

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.retrieval.opening import FIRST_WAIT, open_retriever

    if config.trainer.trains_policy:
        check_engine(config.generation, config.policy)
        prepare_backend(config.policy)
        # before the minutes of embedding
        check_tokenizer(config.policy.model_copy(update={"model": folder}), config.max_length)
    retriever = open_retriever(config.retrieval, data, config.data.paths, first_wait=FIRST_WAIT)
    examples = choosers(data) if fusion is not None and data.has_validation else ()
    task = open_task(config.eval, data, retriever, examples)
    models = open_models(config, task, started=run.day)
    hybrid = None
    if fusion is not None:
        method = models.vector_method(config.trainer.tuned_name, folder)
        hybrid = fusion.open_hybrid(method, task)
        texts = "the completions" if config.generation.texts_per_user > 1 else "the completion"
        what = texts if config.trainer.trains_policy else "the retriever"
        console.log(
            f"Ranked by {what}, weight {hybrid.weight:g}, and {hybrid.label} together. {hybrid.label} is fitted on "
            f"{FIT_WORDS[hybrid.fitted_on]}; validation users chose the weight, and how long it was trained"
        )
    source: Writer | TrainedRetriever
    if isinstance(models, Models):
        source = _writer(models.policy(folder), config, data, run)
    else:
        source = models.retriever(folder)
    recommender = Recommender(
        source=source,
        retriever=retriever,
        dataset=data,
        checkpoint=describe_checkpoint(run, Path(folder)),
        warning=changed_data(run, config.data, data),
        hybrid=hybrid,
        fitted_on=run.config.data.fit,
    )
    console.log(checkpoint_line(recommender.checkpoint))
    console.log(_fit_line(run))
    if recommender.warning:
        console.log(f"Warning: {recommender.warning}")
    return recommender


def _fit_line(run: Run) -> str:
    """Says what a run was fitted on, and which command makes one that knows everything."""
    fit, algorithm = run.config.data.fit, run.config.trainer.algorithm
    line = f"Fitted on {FIT_WORDS[fit]} (data.fit={fit})"
    if fit == "everything":
        return f"{line}."
    name = f"{run.folder.resolve().name}-everything"
    whole = ("-r", run.folder / "config.yaml", "--set", "data.fit=everything", "--run-name", name)
    return f"{line}. On everything that is known: {rl4rec('train', algorithm, *whole)}"


def _writer(policy: Policy, config: RunConfig, data: Dataset, run: Run) -> Writer:
    config = with_day(config, policy.tokenizer, started=run.day)
    builder = PromptBuilder(config.prompt, data, policy.tokenizer)
    return Writer(policy, builder, sampling_of(config), config.generation, config.run.seed, config.eval.batch_size)


def recommend(
    run: str | Path,
    *,
    users: Sequence[str] = (),
    titles: Sequence[str] = (),
    dataset: str | None = None,
    k: int = 10,
    sets: Sequence[str] = (),
    checkpoint: str | None = None,
    fuse: str | None = None,
    go_on: bool = False,
    show: Callable[[Recommendation], None] = lambda recommendation: None,
) -> list[Recommendation]:
    """Recommends for users of the run's dataset, or for one history of titles: `rl4rec recommend`.

    A user's history is the whole sequence. For more questions to the same policy, `open_recommender` loads it once.

    Args:
        run: run folder or checkpoint.
        users: names of users; one answer for each, in this order.
        titles: without users, the titles of one history, oldest first.
        dataset: one of the run's datasets, by name or folder, if it has several.
        k: the number of items.
        sets: settings other than the run's, as `KEY=VALUE`.
        checkpoint: one of the run's checkpoints; its last by default.
        fuse: what ranks along with the completion, see `open_recommender`.
        go_on: after a user without an answer, log the error and go on with the others.
        show: shows each answer as soon as it is there.

    Raises:
        ConfigError: neither users nor titles; see also `open_recommender`. RunError: as `open_recommender`.
        DataError: there is no answer. With `go_on`, the answers that exist are shown first.
    """
    if not users and not titles:
        raise ConfigError("nothing to recommend for: give users or titles")
    recommender = open_recommender(run, users=users, dataset=dataset, sets=sets, checkpoint=checkpoint, fuse=fuse)
    if not users:
        answer = recommender.answer(recommender.read_history(titles), k=k)
        show(answer)
        return [answer]
    answers: list[Recommendation] = []
    failures: list[DataError] = []
    for user in users:
        try:
            answer = recommender.answer(recommender.history_of(user), k=k, user=user)
        except DataError as error:
            if not go_on:
                raise
            console.log(f"error: user {console.clean(user)}: {error.message}")
            failures.append(error)
            continue
        show(answer)
        answers.append(answer)
    if failures:
        raise DataError(f"{len(failures):,} of {len(users):,} users have no answer", hint=failures[0].hint)
    return answers
