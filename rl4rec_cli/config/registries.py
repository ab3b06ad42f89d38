"""What rl4rec itself offers by name, one line each; plug-ins of installed packages join them (`plugins.py`).

A line says where the code is; it is imported when its name is used, so that a configuration is checked without it.
"""

from __future__ import annotations

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
