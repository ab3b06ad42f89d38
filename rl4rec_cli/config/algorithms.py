"""The table of algorithms, one line for each.

Decides: their names, where the section and the trainer of each are, and what `rl4rec train` shows of it.
Hides: nothing. It imports nothing heavy, because the command line reads it for its help. The sections answer every
other question about an algorithm (`trainer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["groups", "single", "supervised", "pairs", "retriever"]


@dataclass(frozen=True)
class Algorithm:
    section: str
    """Class in `config/trainer.py`."""
    module: str
    """Module in `train/algorithms`, with `open_lesson` and `make_trainer`."""
    kind: Kind
    """Several completions per prompt, one per prompt, none of its own, pairs of given ones, or no policy at all. It
    decides which options the command has."""
    summary: str
    """One sentence of help that fits into 80 columns beside the name."""
    task: str | None = None
    """Its task where the command names none; None: the default."""
    recipe: str | None = None
    """Its recipe where the command names none; None: the one for the machine."""

    @property
    def help(self) -> str:
        """The summary for the command's own help, in whole words."""
        if self.kind == "supervised":
            return f"Supervised fine-tuning: {self.summary[:1].lower()}{self.summary[1:]}"
        return self.summary.replace("RL", "Reinforcement learning", 1)


DEFAULT_ALGORITHM = "grpo"
ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm("GrpoSection", "grpo", "groups", "RL: raise the rank of the item the user chose next (GRPO)."),
    "ppo": Algorithm("PpoSection", "ppo", "single", "RL with a critic, one completion per prompt (PPO)."),
    "rloo": Algorithm("RlooSection", "rloo", "groups", "RL with the other completions of a prompt as baseline (RLOO)."),
    "reinforce": Algorithm("ReinforceSection", "ppo", "single", "RL with the batch's mean as baseline (REINFORCE)."),
    "sft": Algorithm("SftSection", "sft", "supervised", "Learn to write the next item's text (the warm start)."),
    "dpo": Algorithm("DpoSection", "dpo", "pairs", "Learn from chosen and rejected answers (DPO).", "preference"),
    "retriever": Algorithm(
        "RetrieverSection",
        "retriever",
        "retriever",
        "Fit an embedder to histories and next items.",
        recipe="retriever",
    ),
}
EXAMPLES = {
    "grpo": ("--quick-test --seeds 0,1,2", "-r beauty-cpu --dataset data/beauty --set trainer.max_steps=200"),
    "ppo": ("--quick-test", "-r beauty-cpu --dataset data/beauty --set trainer.lam=1 --set trainer.target_kl=0.05"),
    "rloo": ("--quick-test", "-r beauty-cpu --dataset data/beauty --set trainer.beta=0.02"),
    "reinforce": ("--quick-test", "-r beauty-cpu --dataset data/beauty --set trainer.batch_size=64"),
    "sft": ("--quick-test", "-r beauty-grpo --dataset data/beauty --output runs/sft"),
    "dpo": ("--quick-test", "--dataset ultrafeedback --max-samples 5000"),
    "retriever": ("--quick-test", "-r retriever --dataset data/beauty --seeds 0,1,2"),
}
"""Options of the two commands that end a help, where they are not `PLAIN_EXAMPLES`."""
PLAIN_EXAMPLES = ("--quick-test", "-r beauty-cpu --dataset data/beauty --set trainer.max_steps=200")
