"""The fused kernel: it counts what tiles do, keeps float32 products, and is used only where it is quicker.

A machine without a GPU runs it by Triton's interpreter and compiles it for GPUs that are not there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.ranking import counting
from rl4rec_cli.ranking.ranks import ItemMatrix, target_ranks

# Where there is no GPU, triton is kept apart: see the Makefile.
APART = Path(sys.prefix) / "triton"
IS_THERE = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not IS_THERE and not (APART / "triton").is_dir(), reason="needs triton, which `make test` installs on Linux, x86-64"
)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, that finds triton."""
    found = {} if IS_THERE else {"PYTHONPATH": os.pathsep.join([str(APART), os.environ.get("PYTHONPATH", "")])}
    everything = {**os.environ, **found, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=everything)


@needs_triton
def test_the_kernel_counts_what_tiles_count() -> None:
    done = run(str(Path(__file__).with_name("interpreted.py")), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the same ")


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from rl4rec_cli.ranking.triton_count import _WARPS, DIMS, ITEMS, TEXTS, count_above

pointers = {"scales": "fp32", "queries": "fp32", "low": "fp32", "high": "fp32"}
pointers |= {"sure": "i32", "near": "i32", "found": "i64", "number": "i32"}
sizes = {"dim": 384, "block_items": ITEMS, "block_texts": TEXTS, "block_dims": DIMS}
for capability, kind in ((80, "fp32"), (90, "fp32"), (90, "fp16"), (90, "i8"), (120, "fp32")):
    signature = {"items_ptr": f"*{kind}", **{f"{name}_ptr": f"*{of}" for name, of in pointers.items()}}
    signature |= {name: "i32" for name in ("first", "stop", "texts", "room")}
    constants = {**sizes, "is_scaled": kind == "i8"}
    source = ASTSource(count_above, signature | {name: "constexpr" for name in constants}, constants)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": _WARPS})
    text = made.asm["ptx"]
    print(capability, kind, text.count("fma.rn.f32") > 500, "mma" in text, "tf32" in text, ".f16x2" in text)
"""


@needs_triton
def test_it_compiles_to_float32_products_for_gpus(tmp_path: Path) -> None:
    """No product by tensor cores, whose inputs would be rounded: the error bound does not cover that."""
    done = run("-c", COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(" True False False False") for line in lines), lines


# When it is used


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a GPU: every work is worth the kernel; what is said."""
    lines: list[str] = []
    monkeypatch.setattr(console, "log", lines.append)
    monkeypatch.setattr(counting, "_quicker", {})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return lines


def count_range(items_ND: Any, scales_N: Any, queries_BD: Any, low_B: Any, high_B: Any, **at: Any) -> Any:
    """What the kernel does, in torch."""
    scores_NB = items_ND[at["start"] : at["stop"]].float() @ queries_BD[: len(low_B)].T
    near = (scores_NB >= low_B) & (scores_NB < high_B)
    pairs_M = near.view(-1).nonzero()[:, 0]
    return SimpleNamespace(sure_B=(scores_NB >= high_B).sum(0), near_B=near.sum(0), pairs_M=pairs_M)


def rank(monkeypatch: pytest.MonkeyPatch, kernel: Any, texts: int = 20) -> bool:
    """Whether the ranks are right where `kernel` may be used."""
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(3000, 16, generator=generator), torch.randn(texts, 16, generator=generator)
    items, targets = ItemMatrix(vectors), torch.arange(texts)
    expected = target_ranks(queries, items, targets)
    monkeypatch.setattr(counting, "_kernel", lambda *_: SimpleNamespace(count_range=kernel))
    ours = target_ranks(queries, items, targets)
    monkeypatch.setattr(counting, "_kernel", lambda *_: None)
    return torch.equal(ours, expected)


@pytest.mark.parametrize(("quicker", "word"), [(True, "the fused kernel"), (False, "tiles")])
def test_each_work_is_timed_once(quicker: bool, word: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = [], [0.0]

    def counted(*args: Any, **at: Any) -> Any:
        calls.append(at)
        clock[0] += 1.0 if quicker else 3.0
        return count_range(*args, **at)

    tiles = counting.count_by_tiles

    def by_tiles(*args: Any) -> Any:
        clock[0] += 2.0
        return tiles(*args)

    monkeypatch.setattr(counting, "count_by_tiles", by_tiles)
    monkeypatch.setattr(counting, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert rank(monkeypatch, counted)
    assert said == [
        f"Ranking 20 texts x 3,000 items x 16 dimensions, fp32: {word} "
        f"(fused kernel {1000.0 if quicker else 3000.0} ms, tiles 2000.0 ms)"
    ]
    assert len(calls) == (3 if quicker else 2)
    calls.clear()
    assert rank(monkeypatch, counted, texts=17)  # about as many texts
    assert (len(calls), len(said)) == (int(quicker), 1)
    assert rank(monkeypatch, counted, texts=70)
    assert len(said) == 2


def test_a_kernel_that_does_not_run_or_counts_otherwise_is_told_and_left(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find\nC compiler")

    def wrong(*args: Any, **at: Any) -> Any:
        found = count_range(*args, **at)
        found.sure_B[0] += 1
        return found

    assert rank(monkeypatch, fails)
    assert rank(monkeypatch, wrong, texts=70)
    assert said == [
        "Ranking by tiles of scores: the fused kernel does not run here (RuntimeError: Failed to find C compiler)",
        "Ranking by tiles of scores: the fused kernel counts otherwise (70 texts x 3,000 items x 16 dimensions, fp32); "
        "please report it",
    ]
    assert rank(monkeypatch, fails)
    assert len(said) == 2


def test_an_error_of_the_data_is_the_users(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*_: Any, **__: Any) -> Any:
        raise EmbeddingError("item embedding 7 is not finite")

    with pytest.raises(EmbeddingError, match="item embedding 7"):
        rank(monkeypatch, bad)


def test_never_on_a_cpu() -> None:
    items = ItemMatrix(torch.randn(3000, 16))
    assert counting._kernel(items, 1 << 20) is None
