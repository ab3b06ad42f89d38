"""SASRec: the sequential baseline that a text-writing policy has to beat, trained here rather than quoted.

Decides: the model (Kang & McAuley 2018, "Self-Attentive Sequential Recommendation": a small causal transformer over
item ids, item embeddings tied between input and output); its loss (softmax cross-entropy over the whole catalogue at
every position of the training part, which Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss", and Petrov &
Macdonald 2023, "gSASRec", show to be what makes SASRec strong); that a logit is a cosine divided by a temperature
rather than a dot product (on Amazon Beauty, validation NDCG@10 .032 against .023 after three epochs); and that it is
selected on validation alone.
Hides: batching, the loss's memory, training, the cache of trained models.

The model is read as query vectors and item vectors, so that its ranks come from the same kernel, masks and tie rule as
everyone's. Histories are padded on the right and attention is causal: padding is never attended to.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.errors import DataError, first_line
from rl4rec_cli.files.digests import sha256_of_json, sha256_of_tensors
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.writing import replacing
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.ranking import ranks
from rl4rec_cli.rewards.functions import ndcg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example

FORMAT = "rl4rec-sasrec-1"
"""Of the cached files and of the code that trains: raise it when a change of this module changes the model."""
VALIDATION_SEED = 20_030
"""Draws the users that early stopping looks at, where there are more than `validation_users`."""
_CPU_LOGITS, _GPU_LOGITS = 1 << 21, 1 << 26
"""Logits held at once: 8 MB, which a CPU's cache holds, and 256 MB."""
_QUERY_POSITIONS = 1 << 14


@dataclass(frozen=True)
class SasRecSettings:
    """How SASRec is built and trained. The defaults were chosen on Amazon Beauty's validation split."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 50
    """Items of a history that are read, its last ones."""
    dropout: float = 0.5
    learning_rate: float = 1e-3
    temperature: float = 0.07
    """What the cosine of a state and an item is divided by."""
    batch_positions: int = 512
    """Positions of a batch, padding included."""
    rounds: int = 20
    """How often validation is looked at. A round is an epoch, or several where data are few (`min_steps`). Over all
    rounds the learning rate rises linearly for a twentieth and falls to zero in a half cosine."""
    min_steps: int = 1500
    """Optimiser steps that all rounds together have at least."""
    patience: int = 5
    """Rounds without a better validation NDCG@10 after which training ends."""
    validation_users: int = 5000
    max_minutes: float = 60.0
    """Training ends after so long, with the best weights until then; the learning rate has fallen to zero by then."""
    full_softmax_items: int = 200_000
    """Up to this many items the loss is the full softmax; above, a sampled one."""
    sampled_items: int = 20_000
    """Items drawn for each batch of the sampled softmax."""


class SasRec:
    """A trained SASRec.

    Attributes:
        items_ND: item vectors, float32 `[num_items, hidden_size]`, on the CPU.
        summary: what training came to: `rounds`, `epochs`, `best_round`, `validation_ndcg@10`, `validation_users`,
            `seconds`, and what ended it: `stopped` is `rounds`, `no better` or `time`.
    """

    def __init__(self, model: Any, settings: SasRecSettings, summary: dict[str, Any], device: str) -> None:
        self.settings, self.summary = settings, summary
        self._model, self._device = model.eval(), device
        self.items_ND: Tensor = _items(model).detach().to("cpu", torch.float32).clone()

    @torch.no_grad()
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """What each history asks for: float32 `[len(histories), hidden_size]` on the CPU.

        A query's dot product with `items_ND` is the logit of that item coming next. Of a history, the last
        `max_length` items are read; how histories are batched moves a query by rounding only.

        Raises:
            DataError: a history is empty or has an item outside the catalogue.
        """
        lengths = _check(histories, len(self.items_ND))
        queries_BD = torch.empty(len(histories), self.items_ND.shape[1])
        order = np.argsort(lengths, kind="stable")
        for rows in _cut(order, np.minimum(lengths, self.settings.max_length), _QUERY_POSITIONS):
            recent = [histories[row][-self.settings.max_length :] for row in rows]
            ids_BT, used_BT = _pad(recent, self._device)
            states_BTD = _states(self._model, ids_BT, self.settings)
            last_B = used_BT.sum(1) - 1
            queries_BD[torch.from_numpy(rows)] = states_BTD[torch.arange(len(rows)), last_B].float().cpu()
        return queries_BD


def open_sasrec(
    dataset: Dataset,
    *,
    cache_dir: Path | None,
    seed: int = 0,
    settings: SasRecSettings = SasRecSettings(),
    device: str = "cpu",
) -> SasRec:
    """The dataset's SASRec: from `cache_dir` if it was trained before with this seed and these settings, else trained.

    It is trained on the training part of every sequence and selected on the validation targets; test targets are never
    looked at. A cached file that is damaged or not what its name says is reported and made again.

    Args:
        cache_dir: folder of trained models; None keeps nothing.
        device: `auto`, `cpu`, `cuda` …

    Raises:
        DataError: no training part has two items.
    """
    device = resolve_device(device, "device")
    identity = {"dataset": dataset.digest, "settings": asdict(settings), "seed": seed}
    path = None if cache_dir is None else _cache_path(cache_dir, dataset.name, identity)
    if path is not None and (cached := _load(path, dataset, identity, settings, device)) is not None:
        return cached
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        model, summary = _train(dataset, settings, seed, device)
    if path is not None:
        _save(path, model, identity, summary)
    return SasRec(model, settings, summary, device)


# The model


def _build(num_items: int, settings: SasRecSettings) -> Any:
    """GPT-2's blocks are SASRec's with the normalisation first; its token embeddings are the items."""
    console.quiet_libraries()
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(
        GPT2Config(
            vocab_size=num_items,
            n_positions=settings.max_length,
            n_embd=settings.hidden_size,
            n_layer=settings.layers,
            n_head=settings.heads,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            initializer_range=0.02,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _items(model: Any) -> Tensor:
    """Item vectors `[N, D]`, of unit length."""
    return torch.nn.functional.normalize(model.wte.weight, dim=1)


def _states(model: Any, ids_BT: Tensor, settings: SasRecSettings) -> Tensor:
    """What comes next after every position, `[B, T, D]`."""
    states_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(states_BTD, dim=-1) / settings.temperature


# Batches


def _check(histories: Sequence[Sequence[int]], num_items: int) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    for row, history in enumerate(histories):
        if not len(history) or not (min(history) >= 0 and max(history) < num_items):
            what = "is empty" if not len(history) else f"has an item that is not among the {num_items:,} items"
            raise DataError(f"history {row} {what}")
    return lengths


def _pad(rows: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]`, padded on the right, and which of them are used."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    used_BT = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids_BT = np.zeros(used_BT.shape, np.int64)
    ids_BT[used_BT] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(used_BT).to(device)


def _cut(order: NDArray[np.int64], lengths: NDArray[np.int64], positions: int) -> Iterator[NDArray[np.int64]]:
    """`order` in pieces of at most `positions` positions once padded, at least one row each."""
    start = widest = 0
    for stop, row in enumerate(order):
        widest = max(widest, int(lengths[row]))
        if stop > start and (stop - start + 1) * widest > positions:
            yield order[start:stop]
            start, widest = stop, int(lengths[row])
    if start < len(order):
        yield order[start:]


def _training_windows(dataset: Dataset, max_length: int) -> list[tuple[int, ...]]:
    """The training parts, in windows of at most `max_length` + 1 items (the first ones are read, the last predicted).

    Windows overlap by one item, so that everything but a sequence's first item is predicted exactly once.
    """
    windows = []
    for sequence in dataset.sequences:
        part = sequence[:-2]
        for stop in range(len(part), 1, -max_length):
            windows.append(part[max(0, stop - max_length - 1) : stop])
    if not windows:
        raise DataError(
            f"dataset {dataset.name}: SASRec has nothing to learn from: no sequence is longer than three items",
            hint="leave the baseline out",
        )
    return windows


def _epoch_batches(
    lengths: NDArray[np.int64], positions: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Every row once, in random batches of like length: rows are sorted within random pools of about fifty batches."""
    order = generator.permutation(len(lengths))
    pool = max(1, int(50 * positions / lengths.mean()))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool):
        some = order[start : start + pool]
        batches.extend(_cut(some[np.argsort(lengths[some], kind="stable")], lengths, positions))
    generator.shuffle(batches)  # type: ignore[arg-type]  # any mutable sequence
    return batches


# The loss


class _SoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy of a softmax over the candidates, never holding `[positions, candidates]`.

    The gradient of both inputs is made in the forward pass, a few positions at a time: softmax minus one-hot, times
    the other input.
    """

    @staticmethod
    def forward(ctx: Any, states_PD: Tensor, items_CD: Tensor, targets_P: Tensor, offsets_C: Tensor | None) -> Tensor:
        count, candidates = len(states_PD), len(items_CD)
        held = _CPU_LOGITS if states_PD.device.type == "cpu" else _GPU_LOGITS
        rows = max(1, held // candidates)
        state_grads_PD, item_grads_CD = torch.empty_like(states_PD), torch.zeros_like(items_CD)
        total = torch.zeros((), dtype=torch.float64, device=states_PD.device)
        for start in range(0, count, rows):
            some_RD, targets_R1 = states_PD[start : start + rows], targets_P[start : start + rows, None]
            logits_RC = some_RD @ items_CD.T
            if offsets_C is not None:
                logits_RC += offsets_C
            shares_RC = torch.softmax(logits_RC, dim=1)
            total -= shares_RC.gather(1, targets_R1).clamp_min(1e-30).log().double().sum()
            shares_RC.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1, dtype=shares_RC.dtype))
            torch.mm(shares_RC, items_CD, out=state_grads_PD[start : start + rows])
            item_grads_CD.addmm_(shares_RC.T, some_RD)
        ctx.save_for_backward(state_grads_PD.div_(count), item_grads_CD.div_(count))
        return (total / count).to(states_PD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        state_grads_PD, item_grads_CD = ctx.saved_tensors
        return grads[0] * state_grads_PD, grads[0] * item_grads_CD, None, None


def _loss(states_PD: Tensor, items_ND: Tensor, targets_P: Tensor, settings: SasRecSettings) -> Tensor:
    """Cross-entropy of the full softmax, or of a sampled one for catalogues above `full_softmax_items`.

    Sampled: the batch's targets and `sampled_items` uniform draws stand for the catalogue, each draw that is no target
    weighing as many items as it stands for, so that the estimate of every softmax's sum is unbiased given the batch.
    """
    if len(items_ND) <= settings.full_softmax_items:
        return _SoftmaxLoss.apply(states_PD, items_ND, targets_P, None)
    targets_M = torch.unique(targets_P)
    drawn = torch.unique(torch.randint(len(items_ND), (settings.sampled_items,), device=targets_P.device))
    others = drawn[~torch.isin(drawn, targets_M)]
    weight = math.log(max(1, len(items_ND) - len(targets_M)) / max(1, len(others)))
    offsets_C = torch.cat([torch.zeros(len(targets_M)), torch.full((len(others),), weight)]).to(items_ND)
    items_CD = items_ND[torch.cat([targets_M, others])]
    return _SoftmaxLoss.apply(states_PD, items_CD, torch.searchsorted(targets_M, targets_P), offsets_C)


# Training


def _train(dataset: Dataset, settings: SasRecSettings, seed: int, device: str) -> tuple[Any, dict[str, Any]]:
    """The model with its best weights on validation, and the summary."""
    windows = _training_windows(dataset, settings.max_length)
    examples = _validation_examples(dataset, settings)
    lengths = np.fromiter((len(window) - 1 for window in windows), np.int64, len(windows))
    generator = np.random.default_rng(seed)
    model = _build(dataset.num_items, settings).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    steps = len(_epoch_batches(lengths, settings.batch_positions, np.random.default_rng(seed)))
    epochs = math.ceil(max(1, settings.min_steps / (settings.rounds * steps)))  # of each round
    best, best_round, weights, stopped = -1.0, 0, {}, "rounds"
    started = time.monotonic()
    with console.progress(settings.rounds, "Training SASRec", every=math.inf) as advance:
        for number in range(1, settings.rounds + 1):
            batches = [b for _ in range(epochs) for b in _epoch_batches(lengths, settings.batch_positions, generator)]
            model.train()
            losses: list[float] = []
            for step, rows in enumerate(batches):
                in_time = (time.monotonic() - started) / max(60 * settings.max_minutes, 1e-9)
                if in_time >= 1 and losses:
                    stopped = "time"
                    break
                share = (number - 1 + step / len(batches)) / settings.rounds
                # A rate that never falls costs more than steps: late in a time that will not do, it follows the clock.
                share = max(share, in_time) if in_time > 0.5 else share
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * _schedule(share)
                losses.append(_step(model, optimizer, [windows[row] for row in rows], settings, device))
            score = _validation_ndcg(SasRec(model, settings, {}, device), dataset, examples)
            advance(1)
            if score > best:
                best, best_round, weights = score, number, copy.deepcopy(model.state_dict())
            console.log(
                f"SASRec round {number}: loss {np.mean(losses):.4f}, validation ndcg@10 {score:.4f} "
                f"(best {best:.4f}, round {best_round}), {time.monotonic() - started:.0f} s"
            )
            if stopped == "rounds" and number - best_round >= settings.patience:
                stopped = "no better"
            if stopped != "rounds":
                break
    model.load_state_dict(weights)
    summary = {
        "rounds": number,
        "epochs": number * epochs,
        "best_round": best_round,
        "validation_ndcg@10": best,
        "validation_users": len(examples),
        "seconds": round(time.monotonic() - started, 1),
        "stopped": stopped,
    }
    return model, summary


def _schedule(share: float) -> float:
    """The learning rate's part of its peak after `share` of training: a linear warm-up, then a half cosine to zero."""
    return min(share + 0.002, 0.05) / 0.05 * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def _step(model: Any, optimizer: Any, windows: Sequence[Sequence[int]], settings: SasRecSettings, device: str) -> float:
    ids_BT, used_BT = _pad([window[:-1] for window in windows], device)
    targets_BT, _ = _pad([window[1:] for window in windows], device)
    states_PD = _states(model, ids_BT, settings)[used_BT]
    loss = _loss(states_PD, _items(model), targets_BT[used_BT], settings)
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
    """NDCG@10 over the whole catalogue, as it is measured everywhere."""
    histories = [example.history for example in examples]
    ranks_B = ranks.target_ranks(
        sasrec.queries(histories),
        ranks.ItemMatrix.from_tensor(sasrec.items_ND),
        torch.tensor([example.target for example in examples], dtype=torch.long),
        histories if dataset.mask_history else None,
    )
    return float(ndcg(ranks_B.numpy(), 10).mean())


# The cache


def _cache_path(folder: Path, name: str, identity: dict[str, Any]) -> Path:
    key = sha256_of_json([FORMAT, identity])
    return Path(folder) / f"sasrec_{file_name(name)}_{key[:16]}.safetensors"


def _save(path: Path, model: Any, identity: dict[str, Any], summary: dict[str, Any]) -> None:
    """One file, weights and JSON together, written beside and renamed."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: value.to("cpu").contiguous() for name, value in model.state_dict().items()}
    note = {
        "identity": identity,
        "summary": summary,
        "sha256": sha256_of_tensors(weights),
        "summary_sha256": sha256_of_json(summary),
    }
    try:
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata={"format": FORMAT, "rl4rec": json.dumps(note)})
    except (OSError, SafetensorError) as error:
        # The model is there and good: losing it would cost more than training it again next time.
        console.log(f"warning: {path}: cannot keep the trained SASRec: {error}")


def _load(
    path: Path, dataset: Dataset, identity: dict[str, Any], settings: SasRecSettings, device: str
) -> SasRec | None:
    """The cached model, or None where there is none that can be used, which is said."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        note = json.loads(metadata["rl4rec"])
        if metadata.get("format") != FORMAT or note["identity"] != identity:
            raise ValueError("made from other data or with other settings")
        # safetensors does not notice a flipped byte.
        is_whole = note["sha256"] == sha256_of_tensors(weights)
        summary_digest = sha256_of_json(note["summary"])
        if not is_whole or note.get("summary_sha256", summary_digest) != summary_digest:
            raise ValueError("its content does not match its checksum")
        model = _build(dataset.num_items, settings)
        model.load_state_dict(weights)
        return SasRec(model.to(device), settings, dict(note["summary"]), device)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        console.log(f"warning: {path}: not usable, SASRec is trained again: {reason}")
        return None
