"""What the plots of a training log show.

Decides: which numbers of `training_log.jsonl` and `validation_log.jsonl` share a plot, their names and units, and which
steps a plot marks. Values that were not logged are not drawn.
Hides: how a plot is drawn (`report/plots.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4rec_cli.config.registries import REWARDS
from rl4rec_cli.eval.metrics import metric_names
from rl4rec_cli.report import plots
from rl4rec_cli.report.html import Figure

Record = Mapping[str, Any]
EPOCHS = 12
"""More epochs than these are not marked."""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: the text above it.
        lines: keys of the log, with their names in the legend. A key that ends with `/` stands for all that begin so.
        unit: the unit of the axis.
        words: what a reader must know to read the plot.
        form: the form of the axis: `ranks` (logarithmic, 1 at the top) or `share` (0 to 100 %).
    """

    title: str
    lines: Mapping[str, str]
    unit: str
    words: str = ""
    form: str = ""


PANELS = (
    Panel(
        "Reward",
        {
            "avg_reward": "reward, as optimised",
            "own_reward": "for a completion's own rank",
            "group_reward": "of the group, fused",
            "reward/": "",
        },
        "mean of the completions",
        "Of the completions that were written for learning from, on training users.",
    ),
    Panel(
        "Reward by dataset",
        {"avg_reward/": ""},
        "mean of the completions",
        "Where several datasets are trained on together: of the completions whose example is of this one.",
    ),
    Panel("Rank of the target", {"mean_rank": "mean rank"}, "mean rank", "1 is best; logarithmic.", "ranks"),
    Panel(
        "Divergence",
        {"kl": "from the reference policy", "approximate_kl": "from the policy that wrote the completions"},
        "nats per token",
    ),
    Panel(
        "Entropy",
        {"entropy": "entropy"},
        "nats per token",
        "Near 0 the completions of a prompt are all the same, and the policy learns nothing more.",
    ),
    Panel("Length", {"mean_length": "mean length"}, "tokens"),
    Panel(
        "Shares",
        {
            "zero_variance_share": "groups of one reward",
            "truncated_share": "completions cut at the limit",
            "distinct_texts": "distinct completions",
            "clip_share": "clipped tokens",
            "stopped_share": "updates stopped by target_kl",
        },
        "share",
        "Groups whose completions all have one reward do not show which is better. What stayed at 0 is left out.",
        "share",
    ),
    Panel(
        "Groups of one reward",
        {
            "groups/zero_variance": "found",
            "groups/refilled": "replaced",
            "groups/left_out": "left out",
            "groups/drawn": "drawn in their place",
        },
        "groups a step",
    ),
    Panel("Loss", {"loss": "loss", "policy_loss": "of the policy", "sft_loss": "supervised"}, "loss"),
    Panel("Loss of the critic", {"value_loss": "value loss"}, "loss"),
    Panel(
        "Variance that the critic explains",
        {"explained_variance": "explained variance"},
        "share of 1",
        "1: the values are the returns; 0: a constant does as well.",
    ),
    Panel("Accuracy", {"mean_token_accuracy": "accuracy"}, "tokens", "Tokens of the completion to write.", "share"),
    Panel(
        "Pairs", {"pair_accuracy": "ordered as the data do"}, "pairs", "Of the answers that are learnt from.", "share"
    ),
    Panel("Margin", {"margin": "chosen before rejected"}, "nats times beta", "More than at the start."),
    Panel("Gradient", {"grad_norm": "norm"}, "norm before clipping"),
)


def figures_of(
    records: Sequence[Record], phase: str, *, k: int, limit: int, marks: Sequence[tuple[int, str]]
) -> list[Figure]:
    """Returns a figure for every panel that has something to show.

    Args:
        records: the records of one phase, in order.
        phase: the phase's name.
        k: cut-off of the rewards.
        limit: most tokens of a completion.
        marks: see `plots.curves`.
    """
    figures = []
    for number, panel in enumerate(PANELS):
        curves, same = _curves(records, panel, k)
        if curves:
            words = [panel.words, f"At most {limit:,} tokens." if panel.title == "Length" else "", same]
            drawing = plots.curves(
                f"{phase}-{number}",
                curves,
                xlabel=f"step of {phase}",
                ylabel=panel.unit,
                ranks=panel.form == "ranks",
                share=panel.form == "share",
                marks=marks,
            )
            figures.append((panel.title, " ".join(filter(None, words)), drawing))
    return figures


def validation_figure(records: Sequence[Record], metric: str, *, writes: bool = True) -> list[Figure]:
    """Returns the validation metrics at the cut-off of `metric` (`ndcg@10`), or no figure if none were measured.

    Args:
        metric: what steps are compared by; one without a cut-off is drawn alone.
        writes: what is trained writes completions.
    """
    points = [r for r in records if _number(r.get(metric)) is not None]
    if not points:
        return []
    steps = [r["step"] for r in points]
    k = metric.partition("@")[2]
    drawn = metric_names((int(k),)) if k else [metric]
    names = [name for name in drawn if all(_number(r.get(name)) is not None for r in points)]
    lines = [
        plots.Curve(name, steps, [r[name] for r in points], place, is_measured=True) for place, name in enumerate(names)
    ]
    best = max(points, key=lambda r: r[metric])
    words = (
        f"{points[-1].get('users', 0):,} held-out users{', the most likely completion for each' if writes else ''}. "
        f"Best {metric}: {best[metric]:.4f} after step {best['step']:,}."
    )
    of = {key: key.partition("/")[2] for key in points[0] if key.startswith(f"{metric}/")}
    over = "mean over datasets" if of else "mean over users"
    figures = [("Validation", words, plots.curves("validation", lines, xlabel="step", ylabel=over))]
    if of:
        by_dataset = [
            plots.Curve(name, steps, [_number(r.get(key)) for r in points], place, is_measured=True)
            for place, (key, name) in enumerate(of.items())
        ]
        drawing = plots.curves("validation-datasets", by_dataset, xlabel="step", ylabel=f"{metric}, mean over users")
        figures.append((f"Validation by dataset, {metric}", "", drawing))
    return figures


def step_marks(records: Sequence[Record], warned: Sequence[int]) -> list[tuple[int, str]]:
    """Returns the steps at which an epoch began (""), the run was resumed ("r") or a health rule warned ("!")."""
    epochs = [
        (now["step"], "")
        for before, now in itertools.pairwise(records)
        if now.get("epoch", 1) != before.get("epoch", 1)
    ]
    resumptions = [(first["step"], "r") for first in _segments(records)[1:]]
    return [*(epochs if len(epochs) < EPOCHS else []), *resumptions, *((step, "!") for step in dict.fromkeys(warned))]


def seconds_of(records: Sequence[Record]) -> float:
    """Returns the duration of a phase. Its clock starts again whenever the run is resumed."""
    ends = [0.0]
    for record in records:
        now = _number(record.get("seconds")) or 0.0
        if now < ends[-1]:
            ends.append(now)
        else:
            ends[-1] = now
    return sum(ends)


def _segments(records: Sequence[Record]) -> list[Record]:
    """Returns the first record of every stretch that one process logged."""
    first_records: list[Record] = list(records[:1])
    for before, now in itertools.pairwise(records):
        if (_number(now.get("seconds")) or 0.0) < (_number(before.get("seconds")) or 0.0):
            first_records.append(now)
    return first_records


def _curves(records: Sequence[Record], panel: Panel, k: int) -> tuple[list[plots.Curve], str]:
    """Returns the lines of a plot, and the remarks on lines that would cover another."""
    names = dict.fromkeys(name for record in records for name in record)
    keys = {
        name: label or _reward_name(name.removeprefix(key), k)
        for key, label in panel.lines.items()
        for name in (filter(key.__eq__, names) if label else (n for n in names if n.startswith(key)))
    }
    curves: list[plots.Curve] = []
    same = []
    for name, label in keys.items():
        own = [r for r in records if name in r]
        values = [_number(r[name]) for r in own]
        if all(value is None for value in values) or (panel.title == "Shares" and not any(values)):
            continue
        curve = plots.Curve(label, [r["step"] for r in own], values, len(curves))
        twin = next((c for c in curves if panel.title == "Reward" and _alike(c, curve)), None)
        if twin is not None:
            same.append(f"{label} is the same line.")
        else:
            curves.append(curve)
    return curves, " ".join(same)


def _reward_name(name: str, k: int) -> str:
    return f"{name}@{k}" if name in REWARDS.built_in else name


def _alike(one: plots.Curve, other: plots.Curve) -> bool:
    pairs = zip(one.values, other.values, strict=False)
    return list(one.steps) == list(other.steps) and all(
        a is not None and b is not None and abs(a - b) < 1e-6 for a, b in pairs
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
