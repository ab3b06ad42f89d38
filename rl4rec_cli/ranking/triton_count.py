"""Counting above a threshold without a tile of scores: one Triton kernel for a GPU.

Decides: how a block of scores is multiplied, compared and forgotten in registers. Hides: Triton.

Each program multiplies some items with some queries in float32 (`input_precision="ieee"`: fused multiply-adds, no TF32
and no bf16 parts, which the error bound of `ranking` counts on), compares each score with its query's two thresholds,
adds how many surely reach the goal to a counter of each query, and appends to a list the few in between. What leaves
the processor is these counters and that list.

Importing this module imports triton, which needs `TRITON_INTERPRET=1` beforehand to run on a CPU (tests do that).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ITEMS, TEXTS, DIMS = 128, 64, 32
"""Of a program's block; with fewer texts than `TEXTS`, the next power of 2 from 16 on."""
_WARPS = 8
"""With 4 the scores of a block do not fit a thread's registers: the compiler puts them into memory (seen on sm_80 and
sm_90)."""


# Not compiled anew for every number of texts, and for the last items, which are no multiple of 16.
@triton.jit(do_not_specialize=["first", "stop", "texts", "room"])
def count_above(  # type: ignore[no-untyped-def]
    items_ptr,
    scales_ptr,
    queries_ptr,
    low_ptr,
    high_ptr,
    sure_ptr,
    near_ptr,
    found_ptr,
    number_ptr,
    first,
    stop,
    texts,
    room,
    dim: tl.constexpr,
    is_scaled: tl.constexpr,
    block_items: tl.constexpr,
    block_texts: tl.constexpr,
    block_dims: tl.constexpr,
):
    """Program (t, i): texts t·block_texts …, items first + i·block_items … of `first` to `stop`."""
    # Texts vary first: programs that run at the same time read the same items.
    columns = tl.program_id(0) * block_texts + tl.arange(0, block_texts)
    rows = tl.program_id(1) * block_items + tl.arange(0, block_items)
    is_item, is_text = rows < stop - first, columns < texts
    items = items_ptr + (rows.to(tl.int64) + first)[:, None] * dim
    queries = queries_ptr + columns.to(tl.int64)[None, :] * dim
    if is_scaled:
        scales = tl.load(scales_ptr + first + rows, mask=is_item, other=0.0)
    scores = tl.zeros([block_items, block_texts], tl.float32)
    for d in range(0, dim, block_dims):
        dims = d + tl.arange(0, block_dims)
        is_dim = dims < dim
        item = tl.load(items + dims[None, :], mask=is_item[:, None] & is_dim[None, :], other=0.0).to(tl.float32)
        if is_scaled:  # the stored copy, as `ItemMatrix.block` makes it, to the last bit
            item = item * scales[:, None]
        query = tl.load(queries + dims[:, None], mask=is_dim[:, None] & is_text[None, :], other=0.0)
        scores = tl.dot(item, query, scores, input_precision="ieee")
    low = tl.load(low_ptr + columns, mask=is_text, other=float("inf"))
    high = tl.load(high_ptr + columns, mask=is_text, other=float("inf"))
    is_pair = is_item[:, None] & is_text[None, :]
    is_sure = is_pair & (scores >= high[None, :])
    is_near = is_pair & (scores >= low[None, :]) & (scores < high[None, :])
    tl.atomic_add(sure_ptr + columns, tl.sum(is_sure.to(tl.int32), 0), mask=is_text)
    near = tl.sum(is_near.to(tl.int32), 0)
    some = tl.sum(near, 0)
    if some > 0:
        tl.atomic_add(near_ptr + columns, near, mask=is_text)
        begin = tl.atomic_add(number_ptr, some)
        flags = is_near.to(tl.int32)
        of_row = tl.sum(flags, 1)
        before = tl.cumsum(of_row, 0) - of_row
        places = begin + before[:, None] + tl.cumsum(flags, 1) - 1
        pairs = rows.to(tl.int64)[:, None] * texts + columns[None, :]
        tl.store(found_ptr + places, pairs, mask=is_near & (places < room))


@dataclass(frozen=True)
class Counted:
    """What a range of items holds for each text.

    Attributes:
        sure_B: items whose score reaches the upper threshold, int32 `[B]`.
        near_B: items between the thresholds, int32 `[B]`.
        pairs_M: place in the range × B + text of those, int64, in any order; None where there are too many.
    """

    sure_B: Tensor
    near_B: Tensor
    pairs_M: Tensor | None


def count_range(
    items_ND: Tensor,
    scales_N: Tensor | None,
    queries_BD: Tensor,
    low_B: Tensor,
    high_B: Tensor,
    *,
    start: int,
    stop: int,
    room: int,
) -> Counted:
    """Count items `start` to `stop` against each text's thresholds.

    Args:
        items_ND: the stored copy, contiguous: float32, float16 or int8.
        scales_N: float32, what int8 codes are multiplied with; None for the other types.
        queries_BD: float32, contiguous; its first `len(low_B)` rows are the texts.
        low_B: float32; a score below it surely does not reach the goal.
        high_B: float32; a score from it on surely does.
        room: most pairs that are listed.
    """
    texts, dim, device = len(low_B), items_ND.shape[1], items_ND.device
    sure_B, near_B = (torch.zeros(texts, dtype=torch.int32, device=device) for _ in range(2))
    number, pairs_M = (
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.empty(room, dtype=torch.int64, device=device),
    )
    width = min(TEXTS, max(16, triton.next_power_of_2(texts)))
    grid = (triton.cdiv(texts, width), triton.cdiv(stop - start, ITEMS))
    tensors = (items_ND, low_B if scales_N is None else scales_N, queries_BD, low_B, high_B, sure_B, near_B, pairs_M)
    sizes = {"dim": dim, "is_scaled": scales_N is not None}
    blocks = {"block_items": ITEMS, "block_texts": width, "block_dims": DIMS}
    with torch.cuda.device_of(items_ND):
        count_above[grid](*tensors, number, start, stop, texts, room, **sizes, **blocks, num_warps=_WARPS)
    listed = int(number)
    return Counted(sure_B, near_B, pairs_M[:listed] if listed <= room else None)
