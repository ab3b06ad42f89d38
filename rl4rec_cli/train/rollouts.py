"""Completions and their rewards, for every trainer of reinforcement learning.

Decides: how a batch of completions becomes rewards (one ranking, by the Scorer of each one's dataset), what of a step
is logged, and that training and evaluation generate with one code path (`policy/generation.py`).
Hides: what TRL asks of a rollout and of a reward function.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.policy.generation import decode_texts, write_ids, writing
from rl4rec_cli.rewards.custom import log_names
from rl4rec_cli.rewards.scorer import start_scores
from rl4rec_cli.train.batch_reward import BatchReward
from rl4rec_cli.train.health import MASKED
from rl4rec_cli.train.out_of_memory import used_gib

if TYPE_CHECKING:
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.rewards.credit import GroupScores
    from rl4rec_cli.rewards.scorer import Scorer


# What the trainers of `ppo.py` and `supervised.py` log beside what TRL does.
OWN_METRICS = (
    "policy_loss",
    "value_loss",
    "explained_variance",
    "approximate_kl",
    "returns_mean",
    "values_mean",
    "stopped_share",
    "sft_loss",
)
# What is logged where a completion is paid what its group loses without it.
GROUP_METRICS = ("own_reward", "group_reward", "group_rank")
# What is logged where an engine generates: TRL's names and ours.
ENGINE_METRICS = {
    MASKED: MASKED,
    "sampling/sampling_logp_difference/mean": "logp_difference",
    "sampling/sampling_logp_difference/max": "logp_difference_max",
    "sampling/importance_sampling_ratio/mean": "importance_ratio",
}


class RetrievalReward(BatchReward):
    """Ranks a batch once, however many rewards the ranks become.

    Args:
        scorers: by the datasets' names.
        shown: how many completions of a step go into `rollouts`.
    """

    __name__ = "retrieval"

    def __init__(self, scorers: Mapping[str, Scorer], tokenizer: Any, rollouts: JsonLines, *, shown: int) -> None:
        super().__init__(list(scorers), tokenizer, rollouts, shown=shown)
        self._scorers = scorers

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        target: Sequence[int],
        history: Sequence[Sequence[int]],
        user: Sequence[str],
        dataset: Sequence[str],
        log_metric: Any,
        trainer_state: Any,
        **_: Any,
    ) -> list[float]:
        start = time.perf_counter()
        texts = decode_texts(self._tokenizer, completion_ids)
        await_scores = start_scores(self._scorers, texts, target, history, dataset, user)
        distinct = len(set(texts)) / len(texts)
        scores = await_scores()
        names = log_names(scores.parts)
        for name, values in scores.parts.items():
            log_metric(f"reward/{names[name]}", float(values.mean()))
        log_metric("mean_rank", float(scores.ranks.mean()))
        groups = scores.groups
        if groups is not None:
            log_metric("own_reward", float(groups.own_rewards.mean()))
            log_metric("group_reward", float(groups.rewards.mean()))
            log_metric("group_rank", float(groups.ranks.mean()))
            for name, values in groups.parts.items():
                log_metric(f"group/{names[name]}", float(values.mean()))
        log_metric("distinct_texts", distinct)
        last = [(texts[row], f"rank {scores.ranks[row]:>6,}") for row in range(min(2, len(texts)))]
        self._keep(scores.rewards.tolist(), dataset, last)
        self.seconds += time.perf_counter() - start
        for row in range(min(self._shown, len(texts))):
            self._rollouts.write(
                {
                    "step": trainer_state.global_step + 1,
                    **({"dataset": dataset[row]} if len(self._scorers) > 1 else {}),
                    "user": user[row],
                    "text": texts[row],
                    "target": target[row],
                    "rank": scores.ranks[row],
                    "reward": scores.rewards[row],
                    **({} if groups is None else _of_group(groups, row)),
                }
            )
        return scores.rewards.tolist()


def _of_group(groups: GroupScores, row: int) -> dict[str, Any]:
    return {
        "own_reward": groups.own_rewards[row],
        "group_reward": groups.rewards[row],
        "group_rank": groups.ranks[row],
        "group_rank_without": groups.ranks_without[row],
    }


class Rollout:
    """TRL's `rollout_func`: prompts in, tokens out, by our own generation.

    Args:
        ids: tokens of each prompt text.
        sampling: how to sample.
        policy: its engine generates, if it has one, else the model as the trainer has it.
    """

    def __init__(self, ids: dict[str, tuple[int, ...]], sampling: Sampling, policy: Policy) -> None:
        self._ids = ids
        self._sampling = sampling
        self._policy = policy
        self.seconds = 0.0
        self.tokens = 0
        self.device = "cpu"
        self.handover: dict[str, float] = {}
        """Of the step: seconds and bytes of the weight sync to an engine."""
        self.logps: list[list[float]] | None = None
        """Of the last completions: the log-probabilities that an engine sampled their tokens with; else None."""

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of the prompts, as the prompt builder made them."""
        return [list(self._ids[prompt]) for prompt in prompts]

    def write(self, prompt_ids: list[list[int]], trainer: Any) -> list[list[int]]:
        """Samples a completion of the trainer's policy for each prompt, and returns its tokens."""
        from trl.models import unwrap_model_for_generation

        start = time.perf_counter()
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            ) as model,
            writing(model),
        ):
            completion_ids, self.logps = write_ids(self._policy, model, prompt_ids, self._sampling)
        for handover in self._policy.engine.take_handovers() if self._policy.engine is not None else ():
            self._add("handover_seconds", handover.seconds)
            self._add("handover_bytes", handover.bytes)
        self.seconds += time.perf_counter() - start
        self.tokens += sum(map(len, completion_ids))
        self.device = str(trainer.args.device)
        return completion_ids

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        prompt_ids = self.prompt_ids(prompts)
        completion_ids = self.write(prompt_ids, trainer)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": self.logps}

    def _add(self, name: str, value: float) -> None:
        self.handover[name] = round(self.handover.get(name, 0) + value, 4)


def step_record(logs: dict[str, Any], reward: BatchReward, rollout: Rollout) -> dict[str, Any] | None:
    """Returns a step's record for `training_log.jsonl` from TRL's logs, or None if they are of no step.

    `kl` is towards the reference policy, `approximate_kl` towards the policy that generated; both in nats per token.
    `logp_difference` is the mean distance, and `logp_difference_max` the largest, between the log-probabilities that an
    engine sampled with and the trainer's, in nats per token. `masked_share` is the share of tokens (of completions,
    where whole ones are weighed) whose weight this distance cut or left out. `handover_seconds` and `handover_bytes`
    are of the weight sync to the engine. `clip_share` is the share of tokens with a clipped policy ratio.
    `tokens_per_second` counts generated tokens over the time of generation. `memory_gib` is the most held on the GPU;
    on the CPU, what the process holds. `avg_reward/NAME` is there if the run has several datasets and the step has
    completions for this one. With `reward.credit: marginal`, `avg_reward` and its like are what completions are paid;
    `own_reward` is what they would earn for their own ranks, and `group_reward`, `group_rank` and `group/NAME` are
    those of whole groups.
    """
    if "loss" not in logs:
        return None
    rewards = reward.rewards()
    record = {
        "loss": logs["loss"],
        "avg_reward": float(rewards.mean()),
        "min_reward": float(rewards.min()),
        "max_reward": float(rewards.max()),
        "std_reward": float(rewards.std()),
        **{f"avg_reward/{name}": value for name, value in reward.by_dataset().items()},
        "kl": logs.get("kl"),
        "entropy": logs.get("entropy"),
        "learning_rate": logs.get("learning_rate"),
        "grad_norm": logs.get("grad_norm"),
        "zero_variance_share": logs.get("frac_reward_zero_std"),
        "clip_share": logs.get("clip_ratio/region_mean"),
        **{name: logs[name] for name in OWN_METRICS if name in logs},
        "mean_length": logs.get("completions/mean_length"),
        "truncated_share": logs.get("completions/clipped_ratio"),
        "mean_rank": logs.get("mean_rank"),
        "distinct_texts": logs.get("distinct_texts"),
        **{name: logs[name] for name in GROUP_METRICS if name in logs},
        **{ours: logs[theirs] for theirs, ours in ENGINE_METRICS.items() if theirs in logs},
        **{name: value for name, value in logs.items() if name.startswith(("reward/", "group/", "groups/"))},
        "step_seconds": logs.get("step_time"),
        "generation_seconds": round(rollout.seconds, 4),
        "reward_seconds": round(reward.seconds, 4),
        "tokens_per_second": round(rollout.tokens / rollout.seconds, 1) if rollout.seconds else None,
        **rollout.handover,
        "memory_gib": round(used_gib(rollout.device), 3),
    }
    rollout.handover = {}
    rollout.seconds = reward.seconds = 0.0
    rollout.tokens = 0
    return record
