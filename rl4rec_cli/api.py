"""The product from Python: what the commands do as functions that return results, and classes for loops of one's own.

```python
from rl4rec_cli.api import load_config, recommend, train

[trained] = train(load_config(algorithm="grpo", recipes=["quick-test"]))
[answer] = recommend(trained.run.folder, users=["u42"])
```

Decides: which names are public, and that each is imported when it is first used.
Hides: where they live. docs/python.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.commands.compare import compare
    from rl4rec_cli.commands.doctor import doctor
    from rl4rec_cli.commands.dry_run import dry_run
    from rl4rec_cli.commands.evaluate import evaluate
    from rl4rec_cli.commands.export import Export, export
    from rl4rec_cli.commands.placement import check_memory, place
    from rl4rec_cli.commands.prompts import preview_prompts, sweep_templates
    from rl4rec_cli.commands.recommend import Recommendation, Recommender, open_recommender, recommend
    from rl4rec_cli.commands.summaries import write_summaries
    from rl4rec_cli.commands.train import TrainedRun, train
    from rl4rec_cli.config.layering import dump_config, load_config
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.data.audit.audit import audit_as_configured, audit_dataset
    from rl4rec_cli.data.dataset import Dataset, Example, build_examples
    from rl4rec_cli.data.opening import RecommendationDataset, load_dataset
    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.stats import dataset_stats
    from rl4rec_cli.data.synthetic import synthesize
    from rl4rec_cli.errors import Rl4RecError
    from rl4rec_cli.eval.comparison import Comparison
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.resolve import Overrides
    from rl4rec_cli.report.run_page import write_report
    from rl4rec_cli.retrieval.embedding_files import embed_dataset
    from rl4rec_cli.retrieval.opening import open_retriever
    from rl4rec_cli.retrieval.service.serving import read_status, serve
    from rl4rec_cli.rewards.functions import RLRewardFunction, calculate_ndcg, create_reward_function
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.train.rec_policy import DummyRecPolicy, RecPolicy
    from rl4rec_cli.train.rl_trainer import RLTrainer

__all__ = [
    "Comparison",
    "Dataset",
    "DummyRecPolicy",
    "Evaluation",
    "Example",
    "Export",
    "Overrides",
    "RLRewardFunction",
    "RLTrainer",
    "RecPolicy",
    "Recommendation",
    "RecommendationDataset",
    "Recommender",
    "RetrievalSection",
    "Rl4RecError",
    "RunConfig",
    "Scorer",
    "TrainedRun",
    "audit_as_configured",
    "audit_dataset",
    "build_examples",
    "calculate_ndcg",
    "check_memory",
    "compare",
    "create_reward_function",
    "dataset_stats",
    "doctor",
    "dry_run",
    "dump_config",
    "embed_dataset",
    "evaluate",
    "export",
    "load_config",
    "load_dataset",
    "open_recommender",
    "open_retriever",
    "place",
    "preview_prompts",
    "read_status",
    "recommend",
    "save_dataset",
    "serve",
    "sweep_templates",
    "synthesize",
    "train",
    "write_report",
    "write_summaries",
]

_MODULES = {
    "commands.compare": ("compare",),
    "commands.doctor": ("doctor",),
    "commands.dry_run": ("dry_run",),
    "commands.evaluate": ("evaluate",),
    "commands.export": ("Export", "export"),
    "commands.placement": ("check_memory", "place"),
    "commands.prompts": ("preview_prompts", "sweep_templates"),
    "commands.recommend": ("Recommendation", "Recommender", "open_recommender", "recommend"),
    "commands.summaries": ("write_summaries",),
    "commands.train": ("TrainedRun", "train"),
    "config.layering": ("dump_config", "load_config"),
    "config.sections": ("RetrievalSection", "RunConfig"),
    "data.audit.audit": ("audit_as_configured", "audit_dataset"),
    "data.dataset": ("Dataset", "Example", "build_examples"),
    "data.opening": ("RecommendationDataset", "load_dataset"),
    "data.saving": ("save_dataset",),
    "data.stats": ("dataset_stats",),
    "data.synthetic": ("synthesize",),
    "errors": ("Rl4RecError",),
    "eval.comparison": ("Comparison",),
    "eval.evaluation": ("Evaluation",),
    "eval.resolve": ("Overrides",),
    "report.run_page": ("write_report",),
    "retrieval.embedding_files": ("embed_dataset",),
    "retrieval.opening": ("open_retriever",),
    "retrieval.service.serving": ("read_status", "serve"),
    "rewards.functions": ("RLRewardFunction", "calculate_ndcg", "create_reward_function"),
    "rewards.scorer": ("Scorer",),
    "train.rec_policy": ("DummyRecPolicy", "RecPolicy"),
    "train.rl_trainer": ("RLTrainer",),
}
"""The names of each module, as above. `tests/test_api.py` compares the two."""
_HOMES = {name: f"rl4rec_cli.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
