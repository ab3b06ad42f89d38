"""Opens the policy that a run configuration names, with the engine that generates for it."""

from __future__ import annotations

from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.engine.vllm import make_engine
from rl4rec_cli.policy.loading import Policy, load_policy


def open_policy(config: RunConfig, dataset: Dataset, *, model: str | None = None, trainable: bool = False) -> Policy:
    """Loads the policy that a run configuration names, and gives it the engine that the configuration names.

    Args:
        model: loads this one instead, such as a checkpoint.

    Raises:
        PolicyError, ConfigError: see `load_policy`.
    """
    section = config.policy if model is None else config.policy.model_copy(update={"model": model})
    policy = load_policy(
        section,
        dataset=dataset,
        seed=config.run.seed,
        trainable=trainable,
        max_length=config.max_length,
        engine_share=config.generation.vllm.memory_share,
    )
    policy.engine = make_engine(config)
    return policy
