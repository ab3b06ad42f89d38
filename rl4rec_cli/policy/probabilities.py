"""How probable the policy finds the completions that it wrote.

Decides: the probability of a text is that of all its tokens, the ending one included, under the policy itself: no
temperature, top-p, top-k or penalty, and no normalisation by length. So the probabilities of all completions add up to
1 at most, and those of different tokens that read alike may be added. The policy computes it in one pass, whatever
wrote the completion: beam search scores means over tokens, and engines sample at a temperature.
Hides: batches and padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from rl4rec_cli.errors import PolicyError
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.policy.generation import decode_texts, generate_grouped, writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.loading import Policy

_LOGITS = 1 << 26
"""Numbers that the head may return at a time."""


def generate_weighed(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[list[str]], list[list[float]]]:
    """Returns texts as `generation.generate_several`, and the log-probability of each.

    Equal texts of a prompt have the same one: the probabilities of their different tokens are added, those of the same
    tokens are counted once.

    Raises:
        PolicyError: see `log_probabilities`.
    """
    groups = generate_grouped(policy, prompts, sampling, count=count, batch_size=batch_size, progress=progress)
    rows = [(prompt, ids) for prompt, group in zip(prompts, groups, strict=True) for ids in group]
    flat = iter(log_probabilities(policy, *zip(*rows, strict=True), batch_size=batch_size) if rows else [])
    texts = [decode_texts(policy.tokenizer, group) for group in groups]
    weights = []
    for group, own_texts in zip(groups, texts, strict=True):
        logps = {tuple(ids): next(flat) for ids in group}
        sums: dict[str, float] = {}
        for ids, text in {tuple(ids): text for ids, text in zip(group, own_texts, strict=True)}.items():
            sums[text] = float(np.logaddexp(sums.get(text, -np.inf), logps[ids]))
        weights.append([sums[text] for text in own_texts])
    return texts, weights


@during(Phase.MEASURING)
def log_probabilities(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, batch_size: int
) -> list[float]:
    """Returns the log-probability of each completion after its prompt, the sum over its tokens.

    Args:
        prompts: B token sequences.
        completions: B token sequences, with the ending token where there is one.
        batch_size: most completions in a pass.

    Raises:
        PolicyError: one is not finite.
    """
    logps = np.zeros(len(prompts))
    lengths = [len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True)]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    model, vocabulary = policy.model, int(policy.model.config.vocab_size)
    with writing(model), torch.inference_mode():
        first = 0
        while first < len(order):
            # The last one of a batch is its longest; one more row is one more of its length.
            some = order[first : first + batch_size]
            while len(some) > 1 and len(some) * lengths[some[-1]] * vocabulary > _LOGITS:
                some = some[: len(some) // 2]
            first += len(some)
            # Padded on the right, which no token before it reads.
            ids_BL = torch.full((len(some), lengths[some[-1]]), policy.tokenizer.pad_token_id)
            mask_BL = torch.zeros_like(ids_BL)
            for place, row in enumerate(some):
                ids_BL[place, : lengths[row]] = torch.tensor([*prompts[row], *completions[row]])
                mask_BL[place, : lengths[row]] = 1
            logits_BLV = model(input_ids=ids_BL.to(policy.device), attention_mask=mask_BL.to(policy.device)).logits
            for place, row in enumerate(some):
                start, stop = len(prompts[row]) - 1, lengths[row] - 1
                logits_TV = logits_BLV[place, start:stop].float()
                tokens_T1 = torch.tensor(completions[row], device=logits_TV.device)[:, None]
                chosen_T = logits_TV.gather(1, tokens_T1)[:, 0] - logits_TV.logsumexp(1)
                logps[row] = float(chosen_T.double().sum())
    if not np.isfinite(logps).all():
        raise PolicyError(
            "the policy's probabilities are not finite: its training diverged",
            hint="lower trainer.learning_rate, or go back to an earlier checkpoint",
        )
    values: list[float] = logps.tolist()
    return values
