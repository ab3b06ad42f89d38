"""The `health` section: the signs that training goes wrong, and what happens then.

Decides: the rules, their thresholds and what each does by default.
Hides: nothing. `train/health.py` applies the rules to the logged steps.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl4rec_cli.config.base import Fraction, NonNegative, PositiveFloat, PositiveInt, Section

Action = Literal["off", "warn", "stop"]


class HealthSection(Section):
    """Each rule is `off`, warns, or stops the run; what it takes for a sign must hold for `window` logged steps."""

    window: PositiveInt = 5
    """Logged steps in a row that a sign must hold for."""
    entropy: Action = "warn"
    """The policy generates almost the same completion whatever is drawn, or its completions turn to noise."""
    entropy_below: NonNegative = 0.05
    """Entropy, in nats per token, that is too low."""
    entropy_share_below: Fraction = 0.05
    """Share of the first logged step's entropy that is too low."""
    entropy_above: PositiveFloat = 4.0
    """Entropy, in nats per token, that is too high where it is also so many times the first step's:"""
    entropy_share_above: Annotated[float, Field(gt=1.0)] = 3.0
    """Multiple of the first logged step's entropy."""
    length: Action = "warn"
    """Completions become very short or very long."""
    length_share_below: Fraction = 0.2
    """Share of the first logged step's mean length that is too short."""
    length_share_above: Annotated[float, Field(gt=1.0)] = 3.0
    """Multiple of the first logged step's mean length that is too long."""
    truncated: Action = "warn"
    """Completions are cut at `generation.max_completion_length`."""
    truncated_above: Fraction = 0.9
    """Share of the completions that is too large."""
    kl: Action = "warn"
    """The policy goes far from the reference policy (measured where trainer.beta > 0)."""
    kl_above: PositiveFloat = 1.0
    """Divergence, in nats per token, that is too large."""
    masked: Action = "warn"
    """Tokens or completions that the loss leaves out or weighs less, because the engine that generated them gave them
    other probabilities than the policy."""
    masked_above: Fraction = 0.2
    """Share that is too large."""
    zero_variance: Action = "warn"
    """Groups whose completions all have the same reward: the policy learns nothing from them."""
    zero_variance_above: Fraction = 0.9
    """Share of the groups that is too large."""
    overfit: Action = "warn"
    """The reward rises while the validation metric falls."""
    overfit_checks: Annotated[int, Field(ge=2)] = 3
    """Measurements of validation users in a row (each `eval.steps` steps) that must lie below the best one."""
    overfit_drop: Fraction = 0.1
    """How far below, as a share of the best."""
    non_finite: Literal["stop"] = "stop"
    """A loss or gradient that is not finite: always stops, before the weights take it in."""
