"""Rewards: ranks to numbers. `create_reward_function`, `RLRewardFunction`, `calculate_ndcg` for library users."""

from rl4rec_cli.rewards.functions import RLRewardFunction, calculate_ndcg, create_reward_function

__all__ = ["RLRewardFunction", "calculate_ndcg", "create_reward_function"]
