"""What tests of a retriever's history query share: its run, and settings of policies that write in its space."""

from __future__ import annotations

from contextlib import redirect_stderr
from pathlib import Path

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.runs.folder import Run

ITEMS = 40


def make_retriever(folder: Path, minilm: str, *sets: str, name: str = "one") -> Run:
    """Trains a projection over `folder/shop`, which is made if it is not there."""
    if not (folder / "shop").exists():
        save_dataset(synthesize(80, ITEMS, 1), folder / "shop")
    settings = [
        *(f"data.path={folder / 'shop'}", f"retrieval.model={minilm}", f"retrieval.emb_dir={folder / 'emb'}"),
        *("retrieval.device=cpu", f"run.output_dir={folder / 'runs'}", f"run.name={name}", "eval.cache_dir=null"),
        *("trainer.batch_size=8", "trainer.max_steps=30", "trainer.num_train_epochs=99", "trainer.dim=16"),
        *("trainer.residual_min_count=1", "eval.steps=10", "eval.baselines=[]"),
        *sets,
    ]
    with redirect_stderr((folder / "said.txt").open("w", encoding="utf-8", buffering=1)):
        (trained,) = train(load_config(algorithm="retriever", recipes=["retriever"], sets=settings))
    return trained.run


WARM = "trainer.warm_start={batch_size: 8, max_steps: 80, num_train_epochs: 20, learning_rate: 0.01}"
"""An untrained policy writes nothing, or words that no item has."""


def policy_sets(retriever: Run, folder: Path) -> tuple[str, ...]:
    """Settings of a tiny policy, laid over the recipe `quick-test`.

    Args:
        folder: where the retriever was made.
    """
    return (
        *("retrieval.embedder=sentence-transformers", f"retrieval.model={retriever.final}"),
        *(f"data.path={folder / 'shop'}", "data.synthetic=null", f"retrieval.emb_dir={folder / 'emb'}"),
        *("data.train_targets=last", "prompt.max_history=2", "prompt.max_prompt_length=48"),
        *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
        *("trainer.batch_size=4", "trainer.max_steps=2", "trainer.num_generations=4", "trainer.warm_start=null"),
        *("eval.baselines=[]", "eval.steps=2", "eval.step_users=40", "logging.rollouts=1000", "logging.steps=1"),
        *("generation.max_completion_length=6", "run.name=policy"),
    )
