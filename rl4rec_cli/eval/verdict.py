"""The verdict: one sentence, made from the statistics.

Decides: what may be claimed. A method is better only where its interval excludes 0 and its p value, adjusted over all
comparisons, is below .05; otherwise "no difference shown".
Hides: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.eval.evaluation import Evaluation


def verdict(evaluation: Evaluation) -> str:
    """By how much the subject beats the best baseline and the policy it started from, or that it does not.

    Without a subject: which baseline is best. Failed probes are named.
    """
    means = {m.name: float(evaluation.metric(m.name).mean()) for m in evaluation.methods}
    where = f"on {len(evaluation.examples):,} {evaluation.split} users"
    baselines = [m.name for m in evaluation.methods if m.kind == "baseline"]
    best = max(baselines, key=means.__getitem__, default=None)
    metric, ours = evaluation.headline, evaluation.subject
    if ours is None:
        if best is None:
            return "nothing but ceilings was measured."
        return f"{where} the best baseline is {best} ({metric} {means[best]:.4f}); no policy was measured."
    parts = []
    for role, other in (("the best baseline", best), ("the policy it started from", _start(evaluation))):
        if other is not None:
            parts.append(against(evaluation.differences[other], f"{role}, {other} ({means[other]:.4f})"))
    text = f"{where} {ours} reaches {metric} {means[ours]:.4f}"
    text += f": {', and '.join(parts)}" if parts else ", and nothing was measured beside it"
    failed = [probe.finding for probe in evaluation.probes if probe.passed is False]
    if failed:
        text += "; BUT " + ", and ".join(failed)
    return text + "."


def against(difference: Mapping[str, Any], other: str) -> str:
    """`+.0031 [+.0010, +.0052] above last item (.0397), p <.001`, or that no difference is shown."""
    from rl4rec_cli.eval.evaluation import p_text

    p = p_text(difference["p_holm"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    numbers = f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}], {p}"
    if difference["reads"] == "no difference shown":
        return f"no difference shown from {other} ({numbers})"
    return f"{'above' if difference['reads'] == 'higher' else 'below'} {other} ({numbers})"


def _start(evaluation: Evaluation) -> str | None:
    from rl4rec_cli.config.trainer import trainer_sections

    names = {section.start_name for section in trainer_sections().values()}
    return next((m.name for m in evaluation.methods if m.name in names and m.name != evaluation.subject), None)
