"""Learning from completions that another engine sampled.

Decides: how a completion is weighed whose tokens the engine drew with other probabilities than the trainer computes
(other kernels, another precision), and what is logged of the distance.
Hides: TRL's switches. GRPO and the trainers built on it use TRL's correction for vLLM. RLOO has none, and gets the same
for whole completions, which are what it learns from.

The weight is the ratio of both probabilities, cut where it is large (truncated importance sampling, Ionides 2008) or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from rl4rec_cli.train.health import MASKED

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import VllmSection

_CORRECTION, _RATIO = "vllm_importance_sampling_correction", "importance_sampling_ratio"


class EngineRollouts:
    """Stands before one of TRL's trainers and logs how many weights the correction for an engine cut.

    Args:
        engine: settings of the engine that generates; None: the policy generates itself.
    """

    use_vllm: Any
    vllm_generation: Any
    vllm_importance_sampling_correction: Any
    vllm_importance_sampling_mode: Any
    vllm_importance_sampling_clip_max: Any
    vllm_importance_sampling_clip_min: Any
    _last_loaded_step: Any
    _metrics: Any

    def __init__(self, *args: Any, engine: VllmSection | None = None, **trl: Any) -> None:
        super().__init__(*args, **trl)
        self.engine_settings = engine
        if engine is not None and hasattr(self, _CORRECTION):  # RLOO has none: see `weigh_texts`
            self.use_vllm = True
            self.vllm_generation, self._last_loaded_step = _HandedOver(), -1
            self.vllm_importance_sampling_correction = engine.correction != "none"
            self.vllm_importance_sampling_mode = engine.correction
            self.vllm_importance_sampling_clip_max = engine.correction_max
            self.vllm_importance_sampling_clip_min = None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = cast(Any, super())._generate_and_score_completions(inputs)
        settings, ratio = self.engine_settings, output.get(_RATIO)
        if settings is not None and ratio is not None:
            mask = output["completion_mask"].bool()
            weights = ratio[mask] if ratio.shape == mask.shape else ratio.flatten()
            is_cut = (weights == 0) | (weights >= settings.correction_max)
            self._metrics["train"][MASKED].append(float(is_cut.float().mean()) if len(weights) else 0.0)
        return output


class _HandedOver:
    """Stands where TRL keeps its own vLLM. Ours gets the policy's weights when it generates."""

    def sync_weights(self) -> None:
        pass


def weigh_texts(
    output: dict[str, Any],
    sampled: Sequence[Sequence[float]],
    settings: VllmSection,
    metrics: Mapping[str, list[float]],
) -> None:
    """Weighs the advantages of RLOO's completions, in place.

    Args:
        output: TRL's batch of B completions, with `old_logps` `[B]`, the trainer's log-probabilities of whole ones.
        sampled: of B completions, the log-probabilities that the engine sampled their tokens with.
        metrics: gets the logged values.
    """
    if settings.correction == "none":
        return
    old_B = output["old_logps"]
    lengths_B = output["completion_mask"].sum(1)  # 0: a completion that is left out, as truncated ones can be
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
