"""Rewards: ranks to numbers. `create_reward_function` and `RLRewardFunction` are for library users."""

from rl4rec_cli.rewards.functions import RLRewardFunction, create_reward_function

__all__ = ["RLRewardFunction", "create_reward_function"]
