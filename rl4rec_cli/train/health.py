"""Whether a run is going wrong.

Decides: which signs of it logged steps and validation measurements can show, what a run then reports, and that it
reports a sign once: it repeats one only after the sign was gone for a whole window.
Hides: windows and starting values. Nothing here knows a trainer: records go in, findings come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import HealthError, PolicyError

if TYPE_CHECKING:
    from rl4rec_cli.config.health import HealthSection

MASKED = "masked_share"
"""Key of a record: the share of tokens (or completions) that importance sampling cut or left out; engines only."""


@dataclass(frozen=True)
class Finding:
    """A rule that has begun to hold."""

    rule: str
    step: int
    seen: str
    """The numbers and steps that show it."""
    advice: str
    """What to change."""
    stops: bool

    def record(self, phase: str) -> dict[str, Any]:
        """Its line in `training_log.jsonl`."""
        return {
            "phase": phase,
            "step": self.step,
            "health": self.rule,
            "action": "stop" if self.stops else "warn",
            "seen": self.seen,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class _Rule:
    """A rule over one number of the record. `limits(first)` returns the least and the greatest healthy value."""

    key: str
    what: str
    unit: str
    limits: Callable[[float], tuple[float, float]]
    too_low: str
    too_high: str


class Health:
    """Reads a phase's records in order. With its `state`, a resumed phase reports what an uninterrupted one reports."""

    def __init__(self, section: HealthSection) -> None:
        self._section = section
        self._rules = {name: rule for name, rule in _rules(section).items() if getattr(section, name) != "off"}
        self._first: dict[str, float] = {}
        self._seen: dict[str, list[tuple[int, float]]] = {}
        self._holds: list[str] = []
        self._rewards: list[float] = []
        self._checks: list[tuple[int, float, float | None]] = []

    def see(self, record: Mapping[str, Any]) -> list[Finding]:
        """Returns the rules that begin to hold with a logged step."""
        step, findings = int(record["step"]), []
        # A credit says nothing of how good a group is: where all are alike it is 0, be they right or wrong.
        reward = _number(record.get("group_reward", record.get("avg_reward")))
        if reward is not None:
            self._rewards = [*self._rewards, reward][-self._section.window :]
        for name, rule in self._rules.items():
            value = _number(record.get(rule.key))
            if value is None:
                continue
            first = self._first.setdefault(name, value)
            low, high = rule.limits(first)
            window = self._seen[name] = [*self._seen.get(name, []), (step, value)][-self._section.window :]
            is_full = len(window) == self._section.window
            if is_full and all(v < low for _, v in window):
                findings += self._begin(name, step, f"{_seen(rule, window)}{_below(low, first)}", rule.too_low)
            elif is_full and all(v > high for _, v in window):
                findings += self._begin(name, step, f"{_seen(rule, window)}{_above(high, first)}", rule.too_high)
            elif is_full and all(low <= v <= high for _, v in window):
                self._end(name)
        return findings

    def see_validation(self, step: int, metric: str, value: float) -> list[Finding]:
        """Takes in a measurement after `step` steps. Reports a reward that rises while the validation metric falls."""
        section = self._section
        if section.overfit == "off":
            return []
        reward = sum(self._rewards) / len(self._rewards) if self._rewards else None
        self._checks.append((step, value, reward))
        best = max(self._checks, key=lambda check: (check[1], -check[0]))
        last = self._checks[-section.overfit_checks :]
        if best is self._checks[-1]:
            self._end("overfit")
        is_down = best[0] < last[0][0] and all(v < best[1] * (1 - section.overfit_drop) for _, v, _ in last)
        before, now = best[2], last[-1][2]
        if not is_down or before is None or now is None or now <= before:
            return []
        course = ", ".join(f"{v:.4f}" for _, v, _ in last)
        return self._begin(
            "overfit",
            step,
            f"{metric} of validation users fell from {best[1]:.4f} after step {best[0]:,} to {course} at steps "
            f"{last[0][0]:,} to {step:,}, while the mean reward rose from {before:.4f} to {now:.4f}",
            "the policy learns what is rewarded and not what is wanted: evaluate checkpoint_best, lower "
            "trainer.learning_rate or trainer.max_steps, raise trainer.beta, or train on more users",
        )

    def _begin(self, name: str, step: int, seen: str, advice: str) -> list[Finding]:
        if name in self._holds:
            return []
        stops = getattr(self._section, name) == "stop"
        if stops:  # a run that goes on after a stop gets a whole window before the rule can stop it again
            self._seen[name] = []
            self._checks = [] if name == "overfit" else self._checks
        else:
            self._holds.append(name)
        return [Finding(name, step, seen, advice, stops)]

    def _end(self, name: str) -> None:
        if name in self._holds:
            self._holds.remove(name)

    def state(self) -> dict[str, Any]:
        return {
            "first": dict(self._first),
            "seen": {name: [list(pair) for pair in window] for name, window in self._seen.items()},
            "holds": list(self._holds),
            "rewards": list(self._rewards),
            "checks": [list(check) for check in self._checks],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        size = self._section.window
        self._first = dict(state["first"])
        self._seen = {name: [(int(s), float(v)) for s, v in window][-size:] for name, window in state["seen"].items()}
        self._holds = [name for name in state["holds"] if getattr(self._section, name) == "warn"]
        self._rewards = list(state["rewards"])[-size:]
        self._checks = [(int(s), float(v), r) for s, v, r in state["checks"]]


def stop_for(findings: Sequence[Finding]) -> None:
    """Stops the run if a finding is of a rule that stops it.

    Raises:
        HealthError: a finding is.
    """
    for finding in findings:
        if finding.stops:
            raise HealthError(
                f"stopped by health.{finding.rule} after step {finding.step:,}: {finding.seen}",
                hint=f"{finding.advice}; to go on as it is, resume with --set health.{finding.rule}=warn",
            )


def check_finite(name: str, value: float, *, step: int) -> None:
    """The rule `non_finite`: stops before a number that is not finite changes the weights.

    Raises:
        PolicyError: `value` is not finite.
    """
    if not math.isfinite(value):
        raise PolicyError(
            f"step {step}: the {name} is not finite; the step is left out",
            hint="lower trainer.learning_rate or trainer.max_grad_norm, or train in bf16 or fp32",
        )


def _rules(section: HealthSection) -> dict[str, _Rule]:
    return {
        "entropy": _Rule(
            *("entropy", "the policy's entropy", " nats per token"),
            lambda first: (
                max(section.entropy_below, section.entropy_share_below * first),
                max(section.entropy_above, section.entropy_share_above * first),
            ),
            "the policy has all but stopped trying other completions: lower trainer.learning_rate, raise "
            "generation.temperature or trainer.beta, or go back to checkpoint_best",
            "completions turn to noise: lower trainer.learning_rate, trainer.entropy_coef or generation.temperature, "
            "raise trainer.beta, or go back to checkpoint_best",
        ),
        "length": _Rule(
            *("mean_length", "the completions' mean length", " tokens"),
            lambda first: (section.length_share_below * first, section.length_share_above * first),
            "completions collapse: raise trainer.beta, lower trainer.learning_rate, or use a reward that asks for "
            "more words",
            "completions blow up: lower generation.max_completion_length or trainer.learning_rate, raise trainer.beta, "
            "or use a loss that does not favour long completions (of grpo: trainer.loss_type=dr_grpo)",
        ),
        "truncated": _Rule(
            *("truncated_share", "the share of completions cut at generation.max_completion_length", ""),
            lambda first: (-math.inf, section.truncated_above),
            "",
            "the policy does not end its completions: raise generation.max_completion_length, set "
            "trainer.mask_truncated_completions=true, or give it a longer warm start",
        ),
        "kl": _Rule(
            *("kl", "the divergence from the reference policy", " nats per token"),
            lambda first: (-math.inf, section.kl_above),
            "",
            "the policy runs away from what it started as: raise trainer.beta or lower trainer.learning_rate",
        ),
        "masked": _Rule(
            *(MASKED, "the share left out or cut by importance sampling", ""),
            lambda first: (-math.inf, section.masked_above),
            "",
            "the engine's probabilities are not the policy's: sample with generation.top_p=1 and top_k=0, correct by "
            "token instead of by completion, or load both in the same precision",
        ),
        "zero_variance": _Rule(
            *("zero_variance_share", "the share of groups whose completions all have one reward", ""),
            lambda first: (-math.inf, section.zero_variance_above),
            "",
            "there is almost nothing to learn from: raise trainer.num_generations or generation.temperature, use "
            "trainer.zero_variance=refill, or a reward with more values (in a catalogue reward.rank_shaping=0.1, and "
            "trainer.screen_rank keeps examples within reach)",
        ),
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _seen(rule: _Rule, window: Sequence[tuple[int, float]]) -> str:
    (first, _), (last, value) = window[0], window[-1]
    steps = f"from step {first:,} to step {last:,}" if len(window) > 1 else f"at step {last:,}"
    low, high = min(v for _, v in window), max(v for _, v in window)
    return f"{rule.what} is {value:.3g}{rule.unit}, {steps} between {low:.3g} and {high:.3g}"


def _below(limit: float, first: float) -> str:
    return f": below {limit:.3g} (at the start {first:.3g})"


def _above(limit: float, first: float) -> str:
    return f": above {limit:.3g} (at the start {first:.3g})"
