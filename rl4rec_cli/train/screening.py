"""Which training examples reinforcement learning sees.

Decides: that an example is hopeless when its target ranks too low, and solved when it ranks high enough, by the last
item's own text or by the starting policy's completion. The rewards of such an example's group would hardly differ.
Screening looks at training targets only.
Hides: ranking in parts, and that the policy generates once for it: a resumed run trains on the same examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.digests import sha256_of_json
from rl4rec_cli.files.writing import write_text

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.data.dataset import Example
    from rl4rec_cli.eval.training_hybrid import TrainingHybrid
    from rl4rec_cli.retrieval.retriever import VectorRetriever

_PART = 16_384

Write = Callable[[Sequence["Example"]], list[str]]


def screen_examples(
    section: TrainerSection,
    retriever: VectorRetriever,
    examples: Sequence[Example],
    *,
    write: Write,
    kept_in: Path,
    name: str | None = None,
    hybrid: TrainingHybrid | None = None,
) -> list[Example]:
    """Returns the examples whose target is neither hopeless nor solved (`trainer.screen_*`), in their order.

    Without these settings it returns all. It logs how many remain, because the training set is another one.

    Args:
        write: returns the starting policy's most likely completion for each example.
        kept_in: file of the ranks by the policy.
        name: of the dataset, where there are several.
        hybrid: ranks along with the texts, as rewards are ranked.

    Raises:
        ConfigError: no example remains. RunError: the file cannot be written.
    """
    if section.ranks_to_learn is None:
        return list(examples)
    first, last = section.ranks_to_learn
    last = last or retriever.num_items
    if section.ranks_by_policy:
        ranks, by = _by_policy(retriever, examples, write, kept_in, hybrid), "what the starting policy writes"
    else:
        ranks, by = _by_last_item(retriever, examples, hybrid), "the last item's text"
    by += f" and {hybrid.label}" if hybrid is not None else ""
    reachable = [e for e, rank in zip(examples, ranks, strict=True) if first <= rank <= last]
    place = f"rank {first:,} to {last:,} by {by}"
    summary = f"{len(reachable):,} of {len(examples):,} training examples have their target at {place}"
    if not reachable:
        raise ConfigError(summary, hint="raise trainer.screen_rank, or lower trainer.screen_solved")
    console.log(f"Screened: {summary}")
    return reachable


def _by_last_item(retriever: VectorRetriever, examples: Sequence[Example], hybrid: TrainingHybrid | None) -> list[int]:
    ranks: list[int] = []
    for start in range(0, len(examples), _PART):
        part = examples[start : start + _PART]
        queries_BD = retriever.item_vectors([e.history[-1] for e in part])
        if hybrid is not None:
            ranking = hybrid.vector_ranks(queries_BD, part)
        else:
            ranking = retriever.vector_ranks(queries_BD, [e.target for e in part], [e.history for e in part])
        ranks += ranking.ranks.tolist()
    return ranks


def _by_policy(
    retriever: VectorRetriever,
    examples: Sequence[Example],
    write: Write,
    kept_in: Path,
    hybrid: TrainingHybrid | None,
) -> list[int]:
    cached_ranks = _read_ranks(kept_in) if kept_in.is_file() else []
    if len(cached_ranks) == len(examples):
        return cached_ranks
    ranks: list[int] = []
    texts = write(examples)
    for start in range(0, len(examples), _PART):
        part = examples[start : start + _PART]
        own, targets, histories = texts[start : start + _PART], [e.target for e in part], [e.history for e in part]
        if hybrid is not None:
            ranking = hybrid.text_ranks(own, [e.user for e in part], targets, histories)
        else:
            ranking = retriever.target_ranks(own, targets, histories)
        ranks += ranking.ranks.tolist()
    write_text(kept_in, json.dumps({"ranks": ranks, "sha256": sha256_of_json(ranks)}) + "\n")
    return ranks


def _read_ranks(path: Path) -> list[int]:
    """Returns the cached ranks, or none if the file is damaged (logged)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["sha256"] != sha256_of_json(content["ranks"]):
            raise ValueError("its content does not match its checksum")
        return [int(rank) for rank in content["ranks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "no checksum" if isinstance(error, KeyError) else error
        console.log(f"{path}: not usable ({reason}): the starting policy is asked again")
        return []
