"""The leakage audit: what in a dataset gives targets away, or bends the measurement.

Decides: which checks there are and their order.
Hides: `prompts.py` (what prompts tell), `texts.py` (what item texts tell), `sequences.py` (ids, ties,
twins, copies) and `findings.py` (when a share is more than chance).

Leave-one-out shares users between the splits by design: that is no finding. Nothing here is quadratic in users or
items, and nothing imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rl4rec_cli.data.audit.findings import Audit, Check, Example, Finding

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import PromptSection, RunConfig
    from rl4rec_cli.data.dataset import Dataset

__all__ = ["Audit", "Check", "Example", "Finding", "audit_as_configured", "audit_dataset"]


def audit_as_configured(dataset: Dataset, config: RunConfig) -> Audit:
    """Audits a dataset for the use that a run's configuration makes of it; see `audit_dataset`."""
    return audit_dataset(
        dataset,
        prompt=config.prompt,
        train_targets=config.data.train_targets,
        emb_type=config.retrieval.emb_type,
    )


def audit_dataset(
    dataset: Dataset,
    *,
    prompt: PromptSection | None = None,
    train_targets: Literal["last", "all"] = "last",
    emb_type: str = "text",
) -> Audit:
    """Looks for everything in `dataset` that gives targets away or bends the measurement.

    It takes a second or two for 200,000 interactions. The same dataset gives the same audit.

    Args:
        prompt: template and limits of prompts; None: the default section.
        train_targets: which training examples a run makes (`data.train_targets`).
        emb_type: field of the items that the embedder reads (`retrieval.emb_type`).

    Raises:
        ConfigError: `prompt.item_template` does not fit the items.
        DataError: the field `emb_type` is missing in some item.
    """
    from rl4rec_cli.config.sections import PromptSection
    from rl4rec_cli.data.audit.prompts import WrittenPrompts, ids_shown, prompt_checks
    from rl4rec_cli.data.audit.sequences import sequence_checks
    from rl4rec_cli.data.audit.texts import Texts, text_checks

    texts = Texts(dataset, (prompt or PromptSection()).of(dataset.name), emb_type)
    prompt_texts = WrittenPrompts(texts)
    checks = (
        *prompt_checks(prompt_texts, train_targets),
        *text_checks(texts),
        *sequence_checks(texts, ids_shown=ids_shown(prompt_texts)),
    )
    return Audit(dataset.name, checks)
