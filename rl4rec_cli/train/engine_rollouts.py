"""Learning from texts that another engine sampled.

Decides: how a text is weighed whose tokens the engine drew with other probabilities than the trainer computes (other
kernels, another precision), and what is logged of the distance.
Hides: TRL's switches. Its correction for vLLM is used where it has one (GRPO, and what is built on it); RLOO has none,
and gets the same for whole texts, which are what it learns from.

The weight is the ratio of both probabilities, cut where it is large (truncated importance sampling, Ionides 2008) or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from rl4rec_cli.train.health import MASKED

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import VllmSection

_RATIO = "importance_sampling_ratio"


class EngineRollouts:
    """What stands before a trainer of TRL's when an engine writes its texts: it logs how many weights were cut."""

    engine_settings: VllmSection
    _metrics: Any

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = cast(Any, super())._generate_and_score_completions(inputs)
        if (ratio := output.get(_RATIO)) is not None:
            mask = output["completion_mask"].bool()
            weights = ratio[mask] if ratio.shape == mask.shape else ratio.flatten()
            is_cut = (weights == 0) | (weights >= self.engine_settings.correction_max)
            self._metrics["train"][MASKED].append(float(is_cut.float().mean()) if len(weights) else 0.0)
        return output


class _HandedOver:
    """Stands where TRL keeps its own vLLM: ours is brought to the policy's weights when it writes."""

    def sync_weights(self) -> None:
        pass


def learn_from_engine(trainer: Any, settings: VllmSection) -> None:
    """Make a trainer of TRL's, in place, one whose texts come from an engine."""
    trainer.__class__ = type(type(trainer).__name__, (EngineRollouts, type(trainer)), {})
    trainer.engine_settings = settings
    if not hasattr(trainer, "vllm_importance_sampling_correction"):
        return  # RLOO: see `weigh_texts`
    trainer.use_vllm = True
    trainer.vllm_generation, trainer._last_loaded_step = _HandedOver(), -1
    trainer.vllm_importance_sampling_correction = settings.correction != "none"
    trainer.vllm_importance_sampling_mode = "token_truncate" if settings.correction == "auto" else settings.correction
    trainer.vllm_importance_sampling_clip_max = settings.correction_max
    trainer.vllm_importance_sampling_clip_min = None


def weigh_texts(
    output: dict[str, Any],
    sampled: Sequence[Sequence[float]],
    settings: VllmSection,
    metrics: Mapping[str, list[float]],
) -> None:
    """Weigh the advantages of RLOO's texts, in place.

    Args:
        output: TRL's batch of B texts, with `old_logps` `[B]`, the trainer's log-probabilities of whole texts.
        sampled: of B texts, the log-probabilities of their tokens as they were sampled.
        metrics: gets what is logged.
    """
    if settings.correction == "none":
        return
    old_B = output["old_logps"]
    lengths_B = output["completion_mask"].sum(1)  # 0: a text that is left out, as one that was cut can be
    gaps_B = old_B - torch.tensor([sum(logps) for logps in sampled]).to(old_B)
    gaps_B = torch.where(lengths_B > 0, gaps_B, 0.0)
    ratio_B = gaps_B.exp()
    if settings.correction == "sequence_mask":
        ratio_B = ratio_B.masked_fill(ratio_B > settings.correction_max, 0.0)
    else:
        ratio_B = ratio_B.clamp(max=settings.correction_max)
    output["advantages"] = output["advantages"] * ratio_B
    output[_RATIO] = ratio_B[:, None]
    each_B = gaps_B.abs() / lengths_B.clamp(min=1)
    metrics["sampling/sampling_logp_difference/mean"].append(float(each_B.mean()))
    metrics["sampling/sampling_logp_difference/max"].append(float(each_B.max()))
    metrics["sampling/importance_sampling_ratio/mean"].append(float(ratio_B.mean()))
