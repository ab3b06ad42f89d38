"""Opens the policy that a run configuration names, with the engine that generates for it."""

from __future__ import annotations

from collections.abc import Sequence

from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Texts
from rl4rec_cli.engine.vllm import make_engine
from rl4rec_cli.plan.placement import engine_share
from rl4rec_cli.policy.backend import choose_backend
from rl4rec_cli.policy.facts import policy_facts, retrieval_facts
from rl4rec_cli.policy.loading import Policy, load_policy


def open_policy(config: RunConfig, dataset: Texts, *, model: str | None = None, trainable: bool = False) -> Policy:
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


def load_for_training(
    config: RunConfig, section: PolicySection | None = None, datasets: Sequence[Texts] | None = None
) -> Policy:
    """Loads a policy for a trainer, without an engine.

    Args:
        section: loads this one instead of the configured one.
        datasets: catalogues for training the `tiny` policy's tokenizer.

    Raises:
        PolicyError, ConfigError: see `load_policy`.
    """
    section = section or config.policy
    # With transformers it is the trainer's alone.
    is_unsloth, is_engine = choose_backend(section).name == "unsloth", section.fast_inference
    share = None
    if is_engine:
        share = engine_share(config, policy_facts(section), retrieval_facts(config))
    return load_policy(
        section,
        dataset=datasets,
        seed=config.run.seed,
        trainable=True,
        max_length=config.max_length,
        gradient_checkpointing=config.trainer.gradient_checkpointing if is_unsloth else False,
        engine_share=share,
    )
