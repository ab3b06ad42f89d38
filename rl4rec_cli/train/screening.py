"""Which training examples reinforcement learning sees.

Decides: that an example is hopeless when its target is far from everything the user chose last: whatever the policy
writes from the history, the rewards of a group hardly differ. Only training targets are looked at.
Hides: ranking them in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl4rec_cli import console

if TYPE_CHECKING:
    from rl4rec_cli.config_trainer import RlSection
    from rl4rec_cli.data.dataset import Example
    from rl4rec_cli.retrieval.retriever import VectorRetriever

_PART = 16_384


def screen_examples(
    section: RlSection, retriever: VectorRetriever, examples: Sequence[Example], *, name: str | None = None
) -> list[Example]:
    """The examples whose target the last item's own vector ranks within `screen_rank`, in their order; else all.

    How many are kept is logged, for it is another training set.

    Args:
        name: of the dataset, where there are several.
    """
    if section.screen_rank is None:
        return list(examples)
    kept: list[Example] = []
    for start in range(0, len(examples), _PART):
        part = examples[start : start + _PART]
        queries_BD = retriever.item_vectors([e.history[-1] for e in part])
        ranks_B = retriever.vector_ranks(queries_BD, [e.target for e in part], [e.history for e in part]).ranks
        kept += [e for e, rank in zip(part, ranks_B, strict=True) if rank <= section.screen_rank]
    of = f" of {name}" if name is not None else ""
    console.log(
        f"Screened: {len(kept):,} of {len(examples):,} training examples{of} have their target within the first "
        f"{section.screen_rank:,} items by the last item's text"
    )
    return kept
