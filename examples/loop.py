"""A training run, read from top to bottom: dataset → prompts → policy → ranks → rewards → GRPO update → evaluation.

    python examples/loop.py            # no GPU, no download; about a minute

`rl4rec train grpo --quick-test` does the same with all that a real run needs: checkpoints, resume, health rules,
baselines, a report. This is the loop alone, on the same prompts, ranker and rewards. Seeds 0, 1 and 2 gain .043, .021
and .034 NDCG@10 on the validation users; another processor draws other completions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from rl4rec_cli.api import (
    Example,
    RecPolicy,
    Scorer,
    build_examples,
    load_config,
    open_retriever,
    synthesize,
)
from rl4rec_cli.data.prompts import Prompt
from rl4rec_cli.eval.metrics import per_user
from rl4rec_cli.eval.statistics import paired_difference
from rl4rec_cli.retrieval.retriever import Ranking, Retriever

WARM_STEPS, WARM_BATCH, WARM_RATE = 180, 16, 3e-3
STEPS, PROMPTS, GROUP, RATE = 90, 32, 8, 2e-3
METRIC = "ndcg@10"


def main(seed: int = 0) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    # 1. Dataset. A user's last item is the test target, and the one before it the validation target. The training
    #    examples, pairs of a history and its next item, come from what is before both.
    dataset = synthesize(users=1000, items=200, seed=0)
    training = build_examples(dataset, "train", train_targets="all")
    held_out = build_examples(dataset, "validation")
    print(f"{dataset.num_items} items, {len(training):,} training examples, {len(held_out):,} held-out users")

    # 2. Retriever and scorer. The retriever embeds a completion (here by TF-IDF and LSA, fitted on the catalogue) and
    #    ranks it against every item. The scorer turns the rank of the item that the user really chose into a reward:
    #    NDCG@10, and a little for every rank, since most completions miss the first ten.
    config = load_config(algorithm="reinforce", recipes=["quick-test"])
    retriever = open_retriever(config.retrieval, dataset)
    scorer = Scorer(retriever, config.reward)

    # 3. Policy. A two-layer Llama with random weights and a tokenizer trained on the catalogue.
    policy = RecPolicy.from_config(config, dataset)
    model = policy.policy.model

    # 4. Warm start. A policy that has never written a title earns nothing, and nothing can be learnt from that. So it
    #    first learns by maximum likelihood to copy the title of the last item.
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARM_RATE, weight_decay=0.0)
    for step in range(WARM_STEPS):
        batch = [training[row] for row in rng.choice(len(training), WARM_BATCH, replace=False)]
        titles = [dataset.items[example.history[-1]]["title"] for example in batch]
        logps_BT, mask_BT = policy.log_probabilities(build_prompts(policy, batch), titles)
        update(model, optimizer, -(logps_BT * mask_BT).sum() / mask_BT.sum(), WARM_RATE * (1 - step / WARM_STEPS))
    before = evaluate(policy, retriever, held_out)

    # 5. GRPO (Shao et al. 2024, arXiv:2402.03300). Each prompt gets a group of sampled completions. A completion's
    #    advantage is what it earned above its group's mean: the group is the baseline, so no critic is needed. Each
    #    batch is used for one update, so the policy is the one that sampled: its ratio to that is 1, clipping would do
    #    nothing, and the gradient of the ratio is the gradient of the log-probability.
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    order = rng.permutation(len(training))
    for step in range(STEPS):
        batch = [training[row] for row in order[step * PROMPTS : (step + 1) * PROMPTS] for _ in range(GROUP)]
        prompts = build_prompts(policy, batch)
        completions = policy.generate(prompts)
        scores = scorer.score(completions, [e.target for e in batch], [e.history for e in batch])
        rewards_PG = torch.tensor(scores.rewards, dtype=torch.float32).view(PROMPTS, GROUP)
        advantages_B = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).flatten()
        logps_BT, mask_BT = policy.log_probabilities(prompts, completions)
        loss = -(advantages_B[:, None] * logps_BT * mask_BT).sum() / mask_BT.sum()
        update(model, optimizer, loss, RATE * (1 - step / STEPS))
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step + 1:2}  reward {scores.rewards.mean():.4f}  {completions[0]!r}", flush=True)

    # 6. Evaluation. The most likely completion for each held-out user, ranked by the same retriever, beside a baseline:
    #    a search with the last item's title, which is what the warm start taught.
    after = evaluate(policy, retriever, held_out)
    last_item = rank(retriever, [dataset.items[e.history[-1]]["title"] for e in held_out], held_out)
    for name, ranking in (("last item", last_item), ("before GRPO", before), ("after GRPO", after)):
        print(f"{name:12} {METRIC} {per_user(ranking, [10])[METRIC].mean():.4f}")
    gain = paired_difference(per_user(after, [10])[METRIC], per_user(before, [10])[METRIC])
    print(f"gain {gain.mean:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f} over {len(held_out):,} users")


def build_prompts(policy: RecPolicy, examples: Sequence[Example]) -> list[Prompt]:
    return policy.build_prompts([example.history for example in examples])


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def evaluate(policy: RecPolicy, retriever: Retriever, examples: Sequence[Example]) -> Ranking:
    completions = policy.generate(build_prompts(policy, examples), temperature=0.0)
    return rank(retriever, completions, examples)


def rank(retriever: Retriever, texts: Sequence[str], examples: Sequence[Example]) -> Ranking:
    """Exact ranks in the whole catalogue. Items of the history are not ranked; ties count against the text."""
    return retriever.target_ranks(texts, [e.target for e in examples], [e.history for e in examples])


if __name__ == "__main__":
    started = time.perf_counter()
    main(*map(int, sys.argv[1:2]))  # a seed
    print(f"{time.perf_counter() - started:.0f} s")
