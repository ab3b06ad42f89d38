"""GRPO on retrieval rewards (TRL's `GRPOTrainer`).

Decides: how a group of texts becomes rewards (one ranking per batch, by the Scorer that evaluation uses), and what
of a step is logged.
Hides: TRL. Generation is ours (`policy/generation.py`) through TRL's `rollout_func`, so that training and evaluation
write texts with one code path.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.policy.generation import Sampling, decode_texts, generate_ids
from rl4rec_cli.train.arguments import number_of_steps, release, shared_arguments, steps_per_epoch
from rl4rec_cli.train.callbacks import PeriodicCheckpoints, StepLog

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from trl import GRPOConfig

    from rl4rec_cli.config import GrpoSection, RunConfig
    from rl4rec_cli.data.dataset import Example
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.runs import JsonLines, Run


class RetrievalReward:
    """The one reward function TRL calls: ranks a batch once, whatever rewards are made of the ranks.

    Keeps what the next logged step reports: the rewards of its texts and the time taken.
    """

    __name__ = "retrieval"

    def __init__(self, scorer: Scorer, tokenizer: Any, rollouts: JsonLines, *, shown: int) -> None:
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._rollouts = rollouts
        self._shown = shown
        self.seconds = 0.0
        self._rewards: list[float] = []
        self._is_reported = False

    def rewards(self) -> NDArray[np.float64]:
        """Rewards since the last call; those of the last batch again where a step learns from it once more."""
        self._is_reported = True
        return np.asarray(self._rewards)

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        target: Sequence[int],
        history: Sequence[Sequence[int]],
        user: Sequence[str],
        log_metric: Any,
        trainer_state: Any,
        **_: Any,
    ) -> list[float]:
        started = time.perf_counter()
        texts = decode_texts(self._tokenizer, completion_ids)
        scores = self._scorer.score(texts, target, history)
        for name, values in scores.parts.items():
            log_metric(f"reward/{name}", float(values.mean()))
        log_metric("mean_rank", float(scores.ranks.mean()))
        log_metric("distinct_texts", len(set(texts)) / len(texts))
        if self._is_reported:
            self._rewards, self._is_reported = [], False
        self._rewards.extend(scores.rewards.tolist())
        self.seconds += time.perf_counter() - started
        for row in range(min(self._shown, len(texts))):
            self._rollouts.write(
                {
                    "step": trainer_state.global_step + 1,
                    "user": user[row],
                    "text": texts[row],
                    "target": target[row],
                    "rank": scores.ranks[row],
                    "reward": scores.rewards[row],
                }
            )
        return scores.rewards.tolist()


class Rollout:
    """TRL's `rollout_func`: prompts in, tokens out, by our own generation.

    Args:
        ids: tokens of each prompt text.
        sampling: how to write.
    """

    def __init__(self, ids: dict[str, tuple[int, ...]], sampling: Sampling) -> None:
        self._ids = ids
        self._sampling = sampling
        self.seconds = 0.0

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        from trl.models import unwrap_model_for_generation

        started = time.perf_counter()
        prompt_ids = [list(self._ids[prompt]) for prompt in prompts]
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        ) as model:
            was_training = model.training
            model.eval()
            completion_ids = generate_ids(model, trainer.processing_class, prompt_ids, self._sampling)
            model.train(was_training)
        self.seconds += time.perf_counter() - started
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def grpo_arguments(
    section: GrpoSection, config: RunConfig, policy: Policy, *, steps: int, output_dir: Path
) -> GRPOConfig:
    """TRL's configuration of our settings."""
    from trl import GRPOConfig

    # TRL loads the reference policy of full fine-tuning by the policy's name, as another type and of another revision
    # unless it is told: the divergence would not begin at 0.
    reference = {
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "revision": config.policy.revision,
        "trust_remote_code": config.policy.trust_remote_code,
    }
    return GRPOConfig(
        **shared_arguments(section, config, output_dir=output_dir, device=str(policy.device)),
        model_init_kwargs=reference if section.beta > 0 else None,
        max_steps=steps,
        per_device_train_batch_size=section.batch_size * section.num_generations,
        num_generations=section.num_generations,
        num_iterations=section.num_iterations,
        loss_type=section.loss_type,
        epsilon=section.epsilon,
        epsilon_high=section.epsilon_high,
        beta=section.beta,
        scale_rewards=config.reward.scale_rewards,
        mask_truncated_completions=section.mask_truncated_completions,
        max_completion_length=config.generation.max_completion_length,
        temperature=config.generation.temperature,
        top_p=config.generation.top_p,
        top_k=config.generation.top_k,
        repetition_penalty=config.generation.repetition_penalty,
        use_vllm=False,
    )


def train_grpo(
    config: RunConfig,
    run: Run,
    policy: Policy,
    examples: Sequence[Example],
    builder: PromptBuilder,
    scorer: Scorer,
    log: JsonLines,
    rollouts: JsonLines,
) -> None:
    """Raise the reward of the policy's texts, in place.

    Raises:
        ConfigError: settings that do not go together.
        RewardError, EmbeddingError: in a step; the policy of the last whole step is saved first, as after anything
            else that ends the training early.
    """
    from datasets import Dataset as HfDataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    section = config.trainer
    if section.algorithm != "grpo":
        raise ConfigError(f"trainer.algorithm is {section.algorithm}, not grpo")
    steps = number_of_steps(section, len(examples))
    prompts = [builder.build(example.user, example.history) for example in examples]
    rows = [
        {"prompt": prompt.text, "user": e.user, "target": e.target, "history": list(e.history)}
        for prompt, e in zip(prompts, examples, strict=True)
    ]
    rollout = Rollout({p.text: p.ids for p in prompts}, Sampling.from_section(config.generation))
    reward = RetrievalReward(scorer, policy.tokenizer, rollouts, shown=config.logging.rollouts)

    def describe(logs: dict[str, Any]) -> dict[str, Any] | None:
        if "loss" not in logs:
            return None
        rewards = reward.rewards()
        record = {
            "loss": logs["loss"],
            "avg_reward": float(rewards.mean()),
            "min_reward": float(rewards.min()),
            "max_reward": float(rewards.max()),
            "std_reward": float(rewards.std()),
            "kl": logs.get("kl"),
            "entropy": logs.get("entropy"),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "zero_variance_share": logs.get("frac_reward_zero_std"),
            "mean_length": logs.get("completions/mean_length"),
            "truncated_share": logs.get("completions/clipped_ratio"),
            "mean_rank": logs.get("mean_rank"),
            "distinct_texts": logs.get("distinct_texts"),
            **{name: value for name, value in logs.items() if name.startswith("reward/")},
            "step_seconds": logs.get("step_time"),
            "generation_seconds": round(rollout.seconds, 4),
            "reward_seconds": round(reward.seconds, 4),
        }
        rollout.seconds = reward.seconds = 0.0
        return record

    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=policy.model,
            args=grpo_arguments(section, config, policy, steps=steps, output_dir=Path(scratch)),
            train_dataset=HfDataset.from_list(rows),
            processing_class=policy.tokenizer,
            reward_funcs=cast(Any, reward),
            rollout_func=rollout,
        )
        trainer.remove_callback(PrinterCallback)
        batches = steps_per_epoch(section, len(examples))
        trainer.add_callback(StepLog(log, describe, phase="grpo", batches_per_epoch=batches))
        saver = PeriodicCheckpoints(run, policy, every=config.logging.save_steps, keep=config.logging.save_total_limit)
        trainer.add_callback(saver)
        with saver.on_failure(trainer):
            trainer.train()
        release(trainer)
    policy.model.eval()
