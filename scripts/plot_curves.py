"""Draw a run's learning curves as a picture for docs/results.

python scripts/plot_curves.py runs/NAME docs/results/NAME.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

WINDOW = 25


def smooth(values: list[float]) -> np.ndarray:
    """Mean of the last WINDOW values, so that the curve says nothing of the future."""
    sums = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw(axis: Any, steps: list[int], values: list[float], label: str) -> None:
    (line,) = axis.plot(steps, smooth(values), label=f"{label}, mean of {WINDOW}")
    axis.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    axis.set_title(label)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def main(run: Path, picture: Path) -> None:
    logs = [run / name for name in ("warm_start_log.jsonl", "training_log.jsonl")]
    records = [json.loads(line) for log in logs if log.is_file() for line in log.read_text().splitlines()]
    tuned = [r for r in records if r["phase"] == "grpo" and "loss" in r]
    warm = [r for r in records if r["phase"] == "sft"]
    metrics = sorted(name for name in tuned[0] if name.startswith("reward/"))
    panels = [(warm, "loss", "warm start: loss")] if warm else []
    panels += [(tuned, "avg_reward", "reward (optimised)")]
    panels += [(tuned, name, name.removeprefix("reward/") + " of sampled texts (metric)") for name in metrics]
    panels += [(tuned, "mean_rank", "rank of the target, mean"), (tuned, "entropy", "entropy per token")]
    panels += [(tuned, "mean_length", "length in tokens")]
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.4 * columns, 3.1 * rows), squeeze=False)
    for axis, (lines, name, title) in zip(axes.flat, panels, strict=False):
        draw(axis, [r["step"] for r in lines], [r[name] for r in lines], title)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
