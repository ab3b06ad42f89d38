"""Hybrids in training: the policy is rewarded for the rank that its completion and a sequence model give together.

Decides: that a training example is scored by a model that was fitted without its user. The users are halved by their
places in the file, whatever they chose; the model of one half scores the other. Halves of users, not of examples: an
example of the same user holds the target, or what came before and after it. Validation users are scored by the model
of all training parts, which has not seen their targets, as `eval --fuse` does. One weight serves rewards, screening and
validation. A completion without meaning earns nothing: its hybrid would be the sequence model's own ranking. Of several
completions, a group's or those of a user who is measured, `generation.fusion` makes the one score that is joined.
Hides: `fused_scores.py`, which says what a fused score is; this module ranks by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, cast

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.hybrids import Fusion
from rl4rec_cli.eval.scoring import Measured, Scored, SparseScores, Task, VectorScores
from rl4rec_cli.eval.vector_method import VectorMethod
from rl4rec_cli.files.digests import sha256, sha256_of_json, sha256_of_tensors

# torch is imported where something is ranked, so that errors in the data show first.
if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rl4rec_cli.config.sections import GenerationSection, RunConfig
    from rl4rec_cli.eval.fused_scores import Fused
    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.hybrids import ScoreExamples
    from rl4rec_cli.eval.mixed_texts import TextsWithSequence
    from rl4rec_cli.ranking.fusing import Fusion as TextFusion
    from rl4rec_cli.retrieval.retriever import Ranking
    from rl4rec_cli.retrieval.several_texts import GroupRanks

HALVES_SEED = 20_050


def halves_of_users(dataset: Dataset) -> NDArray[np.int64]:
    """Returns the half that each training user is in, 0 or 1, `[users]`. What the users chose has no say."""
    users = len(dataset.training_users)
    halves_U = np.zeros(users, np.int64)
    halves_U[np.random.default_rng(HALVES_SEED).permutation(users)[::2]] = 1
    return halves_U


def without_half(dataset: Dataset, half: int) -> Dataset:
    """Returns the dataset of the users who are not in a half: what the model that scores this half is fitted on."""
    own, only = np.split(halves_of_users(dataset) != half, [len(dataset.users)])
    users = tuple(compress(dataset.users, own))
    return replace(
        dataset,
        name=f"{dataset.name}-half-{2 - half}",
        users=users,
        sequences=tuple(compress(dataset.sequences, own)),
        training_only_users=tuple(compress(dataset.training_only_users, only)),
        training_only=tuple(compress(dataset.training_only, only)),
        times=None,
        prompts={user: dataset.prompts[user] for user in users if user in dataset.prompts},
    )


class TrainingHybrid:
    """One dataset's hybrid in training. It fits the models, or reads them from the cache.

    Args:
        fusion: the sequence model.
        task: dataset, retriever and cache. Its examples are not read.
        weight: of the completion's own scores, above 0 and up to 1.
        open_half: fits the model on the dataset of half the users and returns its scores; by default as the fusion's.
    """

    def __init__(
        self, fusion: Fusion, task: Task, weight: float, open_half: Callable[[Dataset], ScoreExamples] | None = None
    ) -> None:
        self.fusion, self.weight, self._task = fusion, weight, task
        dataset = task.dataset
        self._half_of = dict(zip(dataset.training_users, halves_of_users(dataset).tolist(), strict=True))
        if open_half is None:

            def open_half(half: Dataset) -> ScoreExamples:
                return fusion.open_scores(replace(task, dataset=half))

        self._scorers = [open_half(without_half(dataset, half)) for half in (0, 1)]
        if dataset.has_validation:
            self._scorers.append(fusion.open_scores(task))
        self._fused: dict[tuple[int, type], Fused] = {}

    @property
    def label(self) -> str:
        """The sequence model's name in tables."""
        return self.fusion.label

    def text_ranks(
        self,
        texts: Sequence[str],
        users: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
    ) -> Ranking:
        """Ranks the targets of training examples by completions and the model that has not seen their users.

        Args:
            texts: `[B]` completions; so are `users`, `targets` and `histories`.

        Raises:
            DataError: a user is not the dataset's.
        """
        rows = zip(users, histories, targets, strict=True)
        examples = [Example(user, tuple(history), target) for user, history, target in rows]
        return self.vector_ranks(self._task.retriever.text_vectors(texts), examples)

    def vector_ranks(self, queries_BD: Tensor, examples: Sequence[Example]) -> Ranking:
        """Does what `text_ranks` does, by vectors. A zero one is unscorable and ranks last."""
        from rl4rec_cli.retrieval.retriever import Ranking

        scorable_B = queries_BD.ne(0).any(dim=1).cpu().numpy()
        ranks_B = np.full(len(examples), self._task.dataset.num_items)
        halves_B = np.array([self._half(example.user) for example in examples], np.int64)
        own = VectorScores(queries_BD, self._task.retriever.matrix)
        for half in (0, 1):
            rows = np.flatnonzero(scorable_B & (halves_B == half))
            if len(rows):
                some = [examples[row] for row in rows.tolist()]
                targets, masks = self._targets_and_masks(some)
                ranks_B[rows] = self._fuse(half, own.of(rows), some).at(self.weight).ranks(targets, masks).ranks
        return Ranking(ranks_B, scorable_B)

    def group_ranks(
        self,
        texts_of_groups: Sequence[Sequence[str]],
        users: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: TextFusion,
    ) -> GroupRanks:
        """Ranks the targets of groups as `SeveralTexts.group_ranks` does, together with the model as `text_ranks` does.

        Each set of texts has its own deviation, as it has where `eval --fuse` ranks these texts of a user.

        Args:
            texts_of_groups: `[G]` completions of each group; so are `users`, `targets` and `histories`.

        Raises:
            DataError: a user is not the dataset's.
        """
        import torch

        from rl4rec_cli.eval.fused_texts import FusedTexts
        from rl4rec_cli.retrieval.several_texts import first_rows, of_each_text

        rows = zip(users, histories, targets, strict=True)
        examples = [Example(user, tuple(history), target) for user, history, target in rows]
        vectors_TD = self._task.retriever.text_vectors([text for texts in texts_of_groups for text in texts])
        sizes_G = [len(texts) for texts in texts_of_groups]
        group_T = np.repeat(np.arange(len(examples)), sizes_G)
        own = self.vector_ranks(vectors_TD, [examples[group] for group in group_T.tolist()])
        firsts_Q = first_rows(texts_of_groups)
        whole_G = np.full(len(examples), self._task.dataset.num_items)
        without_Q = np.full(len(firsts_Q), self._task.dataset.num_items)
        halves_G = np.array([self._half(example.user) for example in examples], np.int64)
        for half in (0, 1):
            groups, rows = np.flatnonzero(halves_G == half).tolist(), halves_G[group_T[firsts_Q]] == half
            if groups:
                queries_QD = vectors_TD[torch.from_numpy(firsts_Q[rows]).to(vectors_TD.device)]
                texts, some = [texts_of_groups[group] for group in groups], [examples[group] for group in groups]
                own_scores = FusedTexts(texts, partial(_known, queries_QD), self._task.retriever.matrix, fusion)
                fused = cast("TextsWithSequence", self._fuse(half, own_scores, some))
                found = fused.leave_one_out(self.weight, *self._targets_and_masks(some))
                whole_G[groups], without_Q[rows] = found
        return of_each_text(texts_of_groups, own, whole_G, without_Q, self._task.dataset.num_items)

    def join(self, own: VectorScores | FusedTexts, examples: Sequence[Example]) -> Scored:
        """Returns the hybrid's scores of validation examples, by the model of all training parts."""
        return self._fuse(2, own, examples).at(self.weight)

    def measure(self, measured: Measured, examples: Sequence[Example], section: GenerationSection) -> Measured:
        """Measures the hybrid of completions that are measured, as `eval --fuse` does on the validation split.

        Args:
            section: how completions of one user are made one.
        """
        from rl4rec_cli.eval.policies import score_completions

        retriever, texts = self._task.retriever, measured.texts or []

        def scores(examples: Sequence[Example]) -> VectorScores | FusedTexts:
            return score_completions(texts, measured.log_probs, section, retriever)

        queries = retriever.text_vectors([text for several in texts for text in several])
        key: dict[str, object] = {
            "texts": sha256_of_json(texts if section.texts_per_user > 1 else [text for (text,) in texts]),
            "vectors": sha256_of_tensors({"queries": queries, "items": retriever.vectors_ND}),
        }
        if section.texts_per_user > 1:
            key["several"] = [section.fusion, measured.log_probs]
        method = VectorMethod(measured.name, measured.kind, scores, lambda examples: key)
        return self.fusion.measure_with(method, replace(self._task, examples=examples), "validation")

    def facts(self) -> dict[str, object]:
        """Returns what its ranks depend on besides the data: a run keeps it, and goes on with no other."""
        probe = [Example("", (0,), 0)]
        return {
            "sequence_model": self.fusion.sequence_model,
            "weight": self.weight,
            "models": [_digest(scores(probe)) for scores in self._scorers],
        }

    def _half(self, user: str) -> int:
        if user not in self._half_of:
            self._task.dataset.user_index(user)  # raises
        return self._half_of[user]

    def _fuse(self, model: int, own: VectorScores | FusedTexts, examples: Sequence[Example]) -> Fused:
        from rl4rec_cli.eval.fused_scores import fuse

        kind = model, type(own)  # the work on the catalogue is another one
        self._fused[kind] = fuse(own, self._scorers[model](examples), like=self._fused.get(kind))
        return self._fused[kind]

    def _targets_and_masks(self, examples: Sequence[Example]) -> tuple[list[int], list[tuple[int, ...]] | None]:
        histories = [example.history for example in examples]
        return [example.target for example in examples], histories if self._task.dataset.mask_history else None


def _known(vectors_QD: Tensor, texts: Sequence[str]) -> Tensor:
    return vectors_QD


def _digest(scored: VectorScores | SparseScores) -> str:
    """Returns SHA-256 (hex) of a fitted model's part that does not depend on the example."""
    if isinstance(scored, SparseScores):
        return sha256(np.ascontiguousarray(scored.base_N).data)
    return sha256_of_tensors({"items": scored.items.vectors_ND.cpu().contiguous()})


def check_training_hybrid(config: RunConfig, dataset: Dataset, fusion: Fusion) -> None:
    """Checks that the models of a run's hybrid can be fitted on this dataset, and that it can be measured.

    Raises:
        DataError: half of the users have nothing to learn from, or there are fewer than two validation users.
    """
    for half in (0, 1):
        if all(len(part) < 2 for part in without_half(dataset, half).training_parts):
            raise DataError(
                f"dataset {dataset.name}: reward.fuse={config.reward.fuse} fits {fusion.label} on each half of the "
                "users, and in one of them no training part has two items, so nothing follows anything",
                hint="leave out reward.fuse, or give more users",
            )
    if dataset.has_validation:
        measured = choose_examples(dataset, "validation", config.eval.users)
        fusion.check(dataset, measured, "validation", method=config.trainer.tuned_name)


def open_training_hybrid(
    config: RunConfig, task: Task, fusion: Fusion, open_half: Callable[[Dataset], ScoreExamples] | None = None
) -> TrainingHybrid:
    """Fits what a run's hybrid needs for a dataset.

    The weight is `reward.fuse_weight`. The one that validation users choose for the last item's text would say what a
    text is worth that nobody trained, which beside a strong model is next to nothing: completions would then hardly
    change their rewards. One that followed the policy would move them.

    Args:
        open_half: as for `TrainingHybrid`.

    Raises:
        DataError: as `check_training_hybrid`.
    """
    dataset, weight = task.dataset, config.reward.fuse_weight
    check_training_hybrid(config, dataset, fusion)
    hybrid = TrainingHybrid(fusion, task, weight, open_half)
    console.log(
        f"Rewards are of the rank by the completion ({weight:g}) and {hybrid.label} ({1 - weight:g}) together on "
        f"{dataset.name} (reward.fuse_weight). Each half of the users is scored by the {hybrid.label} of the other half"
    )
    return hybrid
