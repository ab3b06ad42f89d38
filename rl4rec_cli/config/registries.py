"""What rl4rec itself offers by name, one line each; plug-ins of installed packages join them (`plugins.py`).

A line says where the code is. The code is imported when its name is used, so that checking a configuration needs none.
"""

from __future__ import annotations

from rl4rec_cli.config.importers import IMPORTERS
from rl4rec_cli.config.plugins import Registry

REWARDS = Registry(
    "reward",
    "rl4rec.rewards",
    {
        "ndcg": "rl4rec_cli.rewards.functions:NDCG",
        "hit": "rl4rec_cli.rewards.functions:HIT",
        "mrr": "rl4rec_cli.rewards.functions:MRR",
        "mixed": "rl4rec_cli.rewards.functions:MIXED",
    },
    also="module:attr",
)
"""`--reward NAME`. The code is a `RankReward`, or one that reads texts, as a user's own (`rewards/custom.py`)."""

PAIR_REWARDS = Registry(
    "preference reward",
    "rl4rec.preference_rewards",
    {
        "accuracy": "rl4rec_cli.preference.rewards:Accuracy",
        "similarity": "rl4rec_cli.preference.rewards:Similarity",
        "length": "rl4rec_cli.preference.rewards:Length",
        "custom": "rl4rec_cli.preference.rewards:Custom",
    },
    also="a reward model (OWNER/NAME or a folder) or module:attr",
)
"""`--reward NAME` of the task `preference`. The code is a `PairReward` (`preference/rewards.py`), or a function that is
called as TRL calls one."""

BASELINES = Registry(
    "baseline",
    "rl4rec.baselines",
    {
        "popularity": "rl4rec_cli.eval.baselines:popularity",
        "last_item": "rl4rec_cli.eval.baselines:last_item",
        "history_text": "rl4rec_cli.eval.baselines:history_text",
        "history_mean": "rl4rec_cli.eval.baselines:history_mean",
        "decayed_mean": "rl4rec_cli.eval.baselines:decayed_mean",
        "bm25": "rl4rec_cli.eval.baselines:bm25",
        "transitions": "rl4rec_cli.eval.baselines:transitions",
        "transitions_2": "rl4rec_cli.eval.baselines:transitions_2",
        "sasrec": "rl4rec_cli.eval.baselines:sasrec",
        "fusion": "rl4rec_cli.eval.hybrids:fusion",
        "fusion_transitions": "rl4rec_cli.eval.hybrids:fusion_transitions",
        "nearest_history_item": "rl4rec_cli.eval.baselines:nearest_history_item",
        "target_text": "rl4rec_cli.eval.baselines:target_text",
        "untrained": "rl4rec_cli.eval.baselines:untrained",
        "zero_shot": "rl4rec_cli.eval.sweep:zero_shot",
    },
)
"""`--baselines NAME` and `rl4rec compare … NAME`. The code is a `Baseline` (`eval/baseline.py`)."""

HYBRIDS = {"sasrec": "fusion", "transitions": "fusion_transitions"}
"""The baseline that `eval.fuse` adds for a sequence model."""

EMBEDDERS = Registry(
    "embedder",
    "rl4rec.embedders",
    {
        "sentence-transformers": "rl4rec_cli.retrieval.embedders.sentence_transformers:SentenceTransformers",
        "vllm": "rl4rec_cli.retrieval.embedders.vllm:Vllm",
        "lsa": "rl4rec_cli.retrieval.embedders.lsa:Lsa",
    },
)
"""`retrieval.embedder`. The code is an `EmbedderKind` (`retrieval/embedder.py`)."""

REGISTRIES = (REWARDS, PAIR_REWARDS, EMBEDDERS, BASELINES, IMPORTERS)
"""What `rl4rec doctor` lists plug-ins of."""
