"""Trains SASRec: softmax cross-entropy over the whole catalogue at every position of the training part.

Decides: the loss, which makes SASRec strong according to Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss", and
Petrov & Macdonald 2023, "gSASRec"; and that validation alone selects the weights.
Hides: batches of like length.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.sasrec_model import SasRec, SasRecSettings, build_model, cut, item_vectors, next_states, pad
from rl4rec_cli.models.softmax import cross_entropy, draw_candidates
from rl4rec_cli.ranking import ranks
from rl4rec_cli.rewards.functions import ndcg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example

VALIDATION_SEED = 20_030
"""Draws the users for early stopping if there are more than `validation_users`."""


def train_model(
    dataset: Dataset, settings: SasRecSettings, seed: int, device: str, *, rounds: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Returns the model with its best weights on validation, and the summary.

    Args:
        rounds: train for as many, and take the last weights without looking at validation.
    """
    windows = training_windows(dataset, settings.max_length)
    examples = _validation_examples(dataset, settings) if rounds is None else []
    lengths = np.fromiter((len(window) - 1 for window in windows), np.int64, len(windows))
    generator = np.random.default_rng(seed)
    model = build_model(dataset.num_items, settings).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    steps = len(epoch_batches(lengths, settings.batch_positions, np.random.default_rng(seed)))
    epochs = math.ceil(max(1, settings.min_steps / (settings.rounds * steps)))  # of each round
    best, best_round, weights, ending = -1.0, 0, {}, "rounds"
    start_time = time.monotonic()
    with console.progress(settings.rounds, "Training SASRec", every=math.inf) as advance:
        for number in range(1, settings.rounds + 1):
            batches = [b for _ in range(epochs) for b in epoch_batches(lengths, settings.batch_positions, generator)]
            model.train()
            losses: list[float] = []
            for step, rows in enumerate(batches):
                in_time = (time.monotonic() - start_time) / max(60 * settings.max_minutes, 1e-9)
                if in_time >= 1 and losses:
                    ending = "time"
                    break
                share = (number - 1 + step / len(batches)) / settings.rounds
                # A rate that never falls costs more than steps: late in a time that will not do, it follows the clock.
                share = max(share, in_time) if in_time > 0.5 else share
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * _schedule(share)
                losses.append(_step(model, optimizer, [windows[row] for row in rows], settings, device))
            advance(1)
            if rounds is not None:
                weights, best_round = model.state_dict(), number
                seconds = time.monotonic() - start_time
                console.log(f"SASRec round {number} of {rounds}: loss {np.mean(losses):.4f}, {seconds:.0f} s")
                if number == rounds or ending == "time":
                    break
                continue
            score = _validation_ndcg(SasRec(model, settings, {}, device), dataset, examples)
            if score > best:
                best, best_round, weights = score, number, copy.deepcopy(model.state_dict())
            console.log(
                f"SASRec round {number}: loss {np.mean(losses):.4f}, validation ndcg@10 {score:.4f} "
                f"(best {best:.4f}, round {best_round}), {time.monotonic() - start_time:.0f} s"
            )
            if ending == "rounds" and number - best_round >= settings.patience:
                ending = "no better"
            if ending != "rounds":
                break
    model.load_state_dict(weights)
    summary = {
        "rounds": number,
        "epochs": number * epochs,
        "best_round": best_round,
        "validation_ndcg@10": best if examples else None,
        "validation_users": len(examples),
        "seconds": round(time.monotonic() - start_time, 1),
        "stopped": ending,
    }
    return model, summary


def training_windows(dataset: Dataset, max_length: int) -> list[tuple[int, ...]]:
    """Cuts the training parts into windows of at most `max_length` + 1 items.

    The model reads all but a window's last item and predicts all but its first. Windows overlap by one item, so that
    it predicts everything but a sequence's first item exactly once.

    Raises:
        DataError: no training part has two items.
    """
    windows = []
    for part in dataset.training_parts:
        for stop in range(len(part), 1, -max_length):
            windows.append(part[max(0, stop - max_length - 1) : stop])
    if not windows:
        raise DataError(
            f"dataset {dataset.name}: SASRec has nothing to learn from: no sequence is longer than three items",
            hint="leave the baseline out",
        )
    return windows


def epoch_batches(
    lengths: NDArray[np.int64], positions: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Returns every row once, in random batches of like length: it sorts rows in random pools of about 50 batches."""
    order = generator.permutation(len(lengths))
    pool = max(1, int(50 * positions / lengths.mean()))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool):
        some = order[start : start + pool]
        batches.extend(cut(some[np.argsort(lengths[some], kind="stable")], lengths, positions))
    generator.shuffle(batches)  # type: ignore[arg-type]  # any mutable sequence
    return batches


def softmax_loss(states_PD: Tensor, items_ND: Tensor, targets_P: Tensor, settings: SasRecSettings) -> Tensor:
    """Returns the cross-entropy of the full softmax, or of a sampled one for more than `full_softmax_items` items."""
    candidates = draw_candidates(
        targets_P, len(items_ND), sampled=settings.sampled_items, full_up_to=settings.full_softmax_items
    )
    items_CD = items_ND if candidates.ids_C is None else items_ND[candidates.ids_C]
    return cross_entropy(states_PD, items_CD, candidates)


def _schedule(share: float) -> float:
    """Returns the learning rate over its peak after `share` of training: a linear warm-up times a half cosine."""
    return min(share + 0.002, 0.05) / 0.05 * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def _step(model: Any, optimizer: Any, windows: Sequence[Sequence[int]], settings: SasRecSettings, device: str) -> float:
    ids_BT, used_BT = pad([window[:-1] for window in windows], device)
    targets_BT, _ = pad([window[1:] for window in windows], device)
    states_PD = next_states(model, ids_BT, settings)[used_BT]
    loss = softmax_loss(states_PD, item_vectors(model), targets_BT[used_BT], settings)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def _validation_examples(dataset: Dataset, settings: SasRecSettings) -> list[Example]:
    examples = build_examples(dataset, "validation")
    if len(examples) <= settings.validation_users:
        return examples
    rows = np.random.default_rng(VALIDATION_SEED).choice(len(examples), settings.validation_users, replace=False)
    return [examples[row] for row in sorted(rows)]


def _validation_ndcg(sasrec: SasRec, dataset: Dataset, examples: Sequence[Example]) -> float:
    """Returns NDCG@10 over the whole catalogue, by the kernel that ranks everywhere."""
    histories = [example.history for example in examples]
    ranks_B = ranks.target_ranks(
        sasrec.queries(histories),
        ranks.ItemMatrix(sasrec.items_ND),
        torch.tensor([example.target for example in examples], dtype=torch.long),
        histories if dataset.mask_history else None,
    )
    return float(ndcg(ranks_B.numpy(), 10).mean())
