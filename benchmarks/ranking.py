"""How fast and how lean exact ranking is, against the bare product and the usual alternatives.

    python benchmarks/ranking.py                 # the tables of docs/results/ranking.md, about ten minutes on two cores
    python benchmarks/ranking.py --quick         # does everything run? seconds
    python benchmarks/ranking.py --only holding  # memory and time of retrieval.storage and retrieval.memory_map
    python benchmarks/ranking.py --only fused --threads 1  # several texts of a user as one
    python benchmarks/ranking.py --only device   # on a CUDA GPU: tiles, the fused kernel, matmul + topk, reading alone

What a run prints is a section of that page, to be pasted as it is.

Variants of one table take turns, round after round, so that other work on the machine falls on all of them alike; the
median of all rounds is shown and, for ratios that hold on a busy machine, the quickest. Targets are drawn from the
whole catalogue: most stand in the middle of the scores, where near-ties are thickest, which is the worst case.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rl4rec_cli.ranking import counting
from rl4rec_cli.ranking.blocks import blocks_of
from rl4rec_cli.ranking.exact_scores import Queries
from rl4rec_cli.ranking.fused import fused_search, fused_target_ranks
from rl4rec_cli.ranking.leave_one_out import leave_one_out_ranks
from rl4rec_cli.ranking.products import product
from rl4rec_cli.ranking.ranks import ItemMatrix, search, target_ranks
from rl4rec_cli.retrieval.embedding_rows import map_rows

Variants = dict[str, Callable[[], object]]
MIB = 1 << 20


def unit_vectors(n: int, dim: int, seed: int) -> Tensor:
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1, out=vectors)


def resident(field: str) -> int:
    """Bytes of a field of this process's status, such as RssAnon."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} in /proc/self/status: memory is measured on Linux only")


@contextmanager
def peak_memory(out: dict[str, float]) -> Iterator[None]:
    """Peak of anonymous memory (no file pages), over its start, in MiB, sampled every half millisecond."""
    gc.collect()
    # Freed memory that the allocator keeps would hide what the next call takes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    start, done = resident("RssAnon"), threading.Event()
    peak = start

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        out["extra"], out["total"] = (peak - start) / MIB, peak / MIB


def take_turns(
    variants: Variants, rounds: int, slow_rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each variant, in turns; what takes over ten times the quickest gets fewer rounds."""
    first: dict[str, float] = {}
    for name, run in variants.items():
        run()
        begin = clock()
        run()
        first[name] = clock() - begin
    limit = 10 * min(first.values())
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds):
        for name, run in variants.items():
            if i >= slow_rounds and first[name] > limit:
                continue
            begin = clock()
            run()
            times[name].append(clock() - begin)
    return times


def blocked(multiply: Callable[[Tensor, Tensor], Tensor], queries: Tensor, items: Tensor) -> Callable[[], None]:
    """The bare product over the very tiles that ranking uses; the scores are dropped."""
    matrix = ItemMatrix(items)
    prepared = Queries(queries, matrix)
    edges, chunks = list(blocks_of(prepared, matrix, 1)), list(prepared.chunks())

    def run() -> None:
        for start, stop in edges:
            for first, last in chunks:
                multiply(items[start:stop], queries[first:last])

    return run


def faiss_flat(queries: Tensor, items: Tensor, k: int) -> Callable[[], object] | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    # faiss leaves BLAS aside for few queries by default, which is much slower.
    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items.numpy())
    return lambda: index.search(queries.numpy(), k)


def show(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    for line in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


def masks_for(texts: int, items: int) -> list[list[int]]:
    return np.random.default_rng(2).integers(0, items, (texts, 10)).tolist()


def table_sizes(texts: int, count: int, dim: int, rounds: int, slow: int) -> list[str]:
    """One size against the bare product and the alternatives; gives its line of the summary."""
    items, queries = unit_vectors(count, dim, 0), unit_vectors(texts, dim, 1)
    targets = torch.randint(0, count, (texts,), generator=torch.Generator().manual_seed(2))
    masks = masks_for(texts, count)
    matrix = ItemMatrix(items)
    k = min(10, count)

    def sort_all() -> Tensor:
        order = torch.argsort(queries @ items.T, dim=1, descending=True)
        return (order == targets[:, None]).nonzero()[:, 1] + 1

    variants: Variants = {
        "torch.matmul, whole (q @ E.T)": lambda: queries @ items.T,
        "torch.matmul, whole (E @ q.T)": lambda: items @ queries.T,
        "torch.matmul, same blocks": blocked(lambda block, some: block @ some.T, queries, items),
        "oneDNN product, same blocks": blocked(product, queries, items),
        "target_ranks, exact": lambda: target_ranks(queries, matrix, targets),
        "target_ranks, exact, 10 masked each": lambda: target_ranks(queries, matrix, targets, masks),
        "search k=10, exact": lambda: search(queries, matrix, k),
        "matmul + argsort + find": sort_all,
        "matmul + torch.topk k=10": lambda: torch.topk(queries @ items.T, k, dim=1),
    }
    flat = faiss_flat(queries, items, k)
    if flat is not None:
        variants["faiss-cpu flat k=10, BLAS"] = flat
    times = take_turns(variants, rounds, slow)
    quickest = {name: min(values) for name, values in times.items()}
    whole, blocks = "torch.matmul, whole (E @ q.T)", "torch.matmul, same blocks"
    rows = []
    for name, values in times.items():
        memory: dict[str, float] = {}
        with peak_memory(memory):
            variants[name]()
        rows.append(
            [
                name,
                f"{np.median(values) * 1e3:.1f}",
                f"{quickest[name] * 1e3:.1f}",
                f"{np.median(values) / np.median(times[whole]):.2f}",
                f"{quickest[name] / quickest[whole]:.2f}",
                f"{np.median(values) / np.median(times[blocks]):.2f}",
                f"{quickest[name] / quickest[blocks]:.2f}",
                f"{quickest[name] / quickest['oneDNN product, same blocks']:.2f}",
                f"{memory['extra']:.0f}",
            ]
        )
    print(f"### {texts} texts x {count:,} items x {dim} dimensions, fp32\n")
    show(
        ["", "median ms", "min ms", "÷ whole", "(min)", "÷ blocks", "(min)", "÷ oneDNN (min)", "extra MiB"],
        rows,
    )

    def ratio(name: str, *others: str) -> str:
        """Median over the best median of the others."""
        known = [float(np.median(times[other])) for other in others if other in times]
        return f"{np.median(times[name]) / min(known):.2f}" if known else "not installed"

    ranks, found, flat_name = "target_ranks, exact", "search k=10, exact", "faiss-cpu flat k=10, BLAS"
    return [
        f"{texts} x {count:,} x {dim}",
        f"{np.median(times[ranks]) * 1e3:.1f}",
        ratio(ranks, blocks),
        ratio(ranks, whole, "torch.matmul, whole (q @ E.T)"),
        f"{np.median(times[found]) * 1e3:.1f}",
        ratio(found, flat_name),
        ratio(found, "matmul + torch.topk k=10"),
        f"{max(float(row[-1]) for row in rows if row[0].startswith((ranks, found))):.0f}",
    ]


def table_device(device: str, texts: int, count: int, dim: int, rounds: int) -> None:
    """One size on a GPU, each way of ranking by itself, against reading the matrix once and copying it."""
    items, queries = unit_vectors(count, dim, 0).to(device), unit_vectors(texts, dim, 1).to(device)
    targets = torch.randint(0, count, (texts,), generator=torch.Generator().manual_seed(2))
    k, on_gpu = min(10, count), torch.device(device).type == "cuda"
    matrices = {name: ItemMatrix(items, storage=name) for name in ("fp32", "fp16")}  # type: ignore[arg-type]

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        def timed() -> object:
            done = run()
            if on_gpu:
                torch.cuda.synchronize()
            return done

        return timed

    def ranks(storage: str, *, by_kernel: bool) -> Callable[[], object]:
        def run() -> object:
            counting._try_both = lambda *_: by_kernel
            counting._quicker.clear()
            return target_ranks(queries, matrices[storage], targets)

        return run

    copy = torch.empty_like(items)
    variants: Variants = {
        "copy of the matrix, fp32": lambda: copy.copy_(items),
        "torch.matmul, whole": lambda: items @ queries.T,
        "matmul + torch.topk k=10": lambda: torch.topk(queries @ items.T, k, dim=1),
    }
    for name, matrix in matrices.items():
        variants[f"target_ranks by tiles, {name}"] = ranks(name, by_kernel=False)
        if counting._kernel(matrix, texts) is not None:
            variants[f"target_ranks by the fused kernel, {name}"] = ranks(name, by_kernel=True)
    variants["search k=10, fp32"] = lambda: search(queries, matrices["fp32"], k)
    times = take_turns({name: waiting(run) for name, run in variants.items()}, rounds, rounds)
    whole, moved = np.median(times["torch.matmul, whole"]), items.numel() * items.element_size()
    print(f"### {texts} texts x {count:,} items x {dim} dimensions on {device}\n")
    rows = []
    for name, values in times.items():
        extra = 0.0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            variants[name]()
            extra = (torch.cuda.max_memory_allocated() - before) / MIB
        median = float(np.median(values))
        rate = moved * (2 if name.startswith("copy") else 1) / median / 1e9
        rows.append([name, f"{median * 1e3:.2f}", f"{median / whole:.2f}", f"{rate:.0f}", f"{extra:.0f}"])
    show(["", "median ms", "÷ matmul", "GB/s of the fp32 matrix (copy: both ways)", "extra MiB"], rows)


def table_storage(texts: int, count: int, dim: int, rounds: int, slow: int) -> None:
    """Storage types: same ranks, another time, for targets anywhere and for targets near the top."""
    items, queries = unit_vectors(count, dim, 0), unit_vectors(texts, dim, 1)
    anywhere = torch.randint(0, count, (texts,), generator=torch.Generator().manual_seed(2))
    matrices = {name: ItemMatrix(items, storage=name) for name in ("fp32", "fp16", "int8")}  # type: ignore[arg-type]
    top = search(queries, matrices["fp32"], min(100, count))[0][:, -1]
    variants: Variants = {"torch.matmul, same blocks": blocked(lambda block, some: block @ some.T, queries, items)}
    wrong = {}
    expected = [target_ranks(queries, matrices["fp32"], targets) for targets in (anywhere, top)]
    best = search(queries, matrices["fp32"], 10)[0]
    for name, matrix in matrices.items():
        variants[f"{name}: ranks, targets anywhere"] = lambda matrix=matrix: target_ranks(queries, matrix, anywhere)
        variants[f"{name}: ranks, targets at rank 100"] = lambda matrix=matrix: target_ranks(queries, matrix, top)
        variants[f"{name}: search k=10"] = lambda matrix=matrix: search(queries, matrix, 10)
        wrong[f"{name}: ranks, targets anywhere"] = int((target_ranks(queries, matrix, anywhere) != expected[0]).sum())
        wrong[f"{name}: ranks, targets at rank 100"] = int((target_ranks(queries, matrix, top) != expected[1]).sum())
        wrong[f"{name}: search k=10"] = int((search(queries, matrix, 10)[0] != best).any(1).sum())
    # What low precision alone would give: the shift that re-scoring removes.
    shift = {}
    scores = queries @ items.half().float().T
    goals = scores.gather(1, anywhere[:, None])
    shift["fp16: ranks, targets anywhere"] = int(((scores >= goals).sum(1) - expected[0]).abs().max())
    del scores
    times = take_turns(variants, rounds, slow)
    base = times["torch.matmul, same blocks"]
    print(f"### Storage: {texts} texts x {count:,} items x {dim} dimensions\n")
    rows = [
        [
            name,
            f"{np.median(values) * 1e3:.1f}",
            f"{min(values) * 1e3:.1f}",
            f"{np.median(values) / np.median(base):.2f}",
            f"{min(values) / min(base):.2f}",
            str(wrong.get(name, "")),
            str(shift.get(name, "")),
        ]
        for name, values in times.items()
    ]
    show(["", "median ms", "min ms", "÷ blocks", "(min)", "texts unlike fp32", "shift without re-scoring"], rows)


def table_scaling(quick: bool, rounds: int) -> None:
    """Time against items and against texts."""
    dim, sizes = 384, [50_000, 100_000, 200_000, 400_000]
    if quick:
        sizes = [1000, 2000, 4000]
    every, queries = unit_vectors(sizes[-1], dim, 0), unit_vectors(1024, dim, 1)
    targets = torch.randint(0, sizes[0], (1024,), generator=torch.Generator().manual_seed(2))
    variants: Variants = {}
    work = {}
    for count in sizes:
        name = f"64 texts x {count:,} items"
        matrix = ItemMatrix(every[:count])
        variants[name] = lambda matrix=matrix: target_ranks(queries[:64], matrix, targets[:64])
        work[name] = 64 * count
    matrix = ItemMatrix(every[: sizes[0]])
    for texts in (128, 256, 512, 1024):
        name = f"{texts} texts x {sizes[0]:,} items"
        variants[name] = lambda matrix=matrix, texts=texts: target_ranks(queries[:texts], matrix, targets[:texts])
        work[name] = texts * sizes[0]
    times = take_turns(variants, rounds, rounds)
    print(f"### Scaling ({dim} dimensions, fp32)\n")
    rows = [
        [
            name,
            f"{np.median(values) * 1e3:.1f}",
            f"{min(values) * 1e3:.1f}",
            f"{np.median(values) / work[name] * 1e9:.2f}",
            f"{min(values) / work[name] * 1e9:.2f}",
        ]
        for name, values in times.items()
    ]
    show(["", "median ms", "min ms", "ns per pair", "(min)"], rows)


def table_fused(users: int, count: int, dim: int, rounds: int) -> None:
    """Several texts of a user as one, each rule against the bare product of as many texts; in processor time.

    Threads that wait for others by turning round would count as work: to be run with `--threads 1`.
    """
    items, targets_U = unit_vectors(count, dim, 0), torch.randint(0, count, (users,))
    matrix = ItemMatrix(items)
    rows = []
    for each in (1, 4, 16):
        # Texts of a user are alike: about .8 in cosine.
        queries = unit_vectors(users, dim, 1).repeat_interleave(each, 0) + 0.5 * unit_vectors(users * each, dim, 2)
        queries = torch.nn.functional.normalize(queries, dim=1)
        top_U = fused_search(queries, [each] * users, matrix, min(100, count))[0][:, -1]
        whole, blocks = "torch.matmul, whole (E @ q.T)", "torch.matmul, same blocks"
        variants: Variants = {
            whole: lambda queries=queries: items @ queries.T,
            blocks: blocked(lambda block, some: block @ some.T, queries, items),
            "oneDNN product, same blocks": blocked(product, queries, items),
            "target_ranks of each text": lambda queries=queries, each=each: target_ranks(
                queries, matrix, targets_U.repeat_interleave(each)
            ),
        }
        for fusion in ("logsumexp", "max", "mean", "rrf"):
            call = {"fusion": fusion}
            variants[f"{fusion}: ranks, targets anywhere"] = lambda q=queries, n=each, call=call: fused_target_ranks(
                q, [n] * users, matrix, targets_U, **call
            )
            variants[f"{fusion}: ranks, and without each text"] = lambda q=queries, n=each, call=call: (
                leave_one_out_ranks(q, [n] * users, matrix, targets_U, **call)
            )
            if fusion == "logsumexp":
                variants[f"{fusion}: ranks, targets at rank 100"] = lambda q=queries, n=each, t=top_U: (
                    fused_target_ranks(q, [n] * users, matrix, t)
                )
            variants[f"{fusion}: search k=10"] = lambda q=queries, n=each, call=call: fused_search(
                q, [n] * users, matrix, 10, **call
            )
        times = take_turns(variants, rounds, 2, time.process_time)
        for name, values in times.items():
            memory: dict[str, float] = {}
            with peak_memory(memory):
                variants[name]()
            ratios = [
                f"{choose(values) / choose(times[base]):.2f}"
                for base in (whole, blocks, "oneDNN product, same blocks")
                for choose in (np.median, min)
            ]
            ms = f"{np.median(values) * 1e3:.1f}"
            rows.append([f"{each}", name, ms, f"{min(values) * 1e3:.1f}", *ratios, f"{memory['extra']:.0f}"])
    print(f"### Fused: {users} users, 1 to 16 texts each, x {count:,} items x {dim} dimensions, fp32\n")
    heads = ["texts", "", "median ms of processor", "min", "÷ whole", "(min)", "÷ blocks", "(min)", "÷ oneDNN", "(min)"]
    show([*heads, "extra MiB"], rows)


WAYS = {
    "fp32 in memory": ("fp32", False),
    "fp32 in the mapped file": ("fp32", True),
    "fp16 beside the mapped file": ("fp16", True),
    "int8 beside the mapped file": ("int8", True),
}


def opened(path: Path, storage: str, *, is_mapped: bool) -> ItemMatrix:
    """Item vectors as `retrieval.storage` and `retrieval.memory_map` hold them."""
    from safetensors.torch import load_file

    vectors = map_rows(path, "embeddings") if is_mapped else load_file(path)["embeddings"].clone()
    return ItemMatrix(vectors, storage=storage)  # type: ignore[arg-type]


def memory_of_a_way(path: Path, name: str, texts: int) -> None:
    """In a process of its own: MiB that one way adds, in memory and as pages of the file, and the most in memory."""
    storage, is_mapped = WAYS[name]
    import safetensors.torch  # noqa: F401  not to be counted, as what a first product brings

    target_ranks(torch.eye(8), ItemMatrix(torch.eye(8)), torch.arange(8))
    before, files = resident("RssAnon"), resident("RssFile")
    seen: dict[str, float] = {}
    with peak_memory(seen):
        matrix = opened(path, storage, is_mapped=is_mapped)
        own = resident("RssAnon") - before
        queries = unit_vectors(texts, matrix.dim, 1)
        target_ranks(queries, matrix, torch.arange(texts))
    print(own / MIB, seen["extra"], (resident("RssFile") - files) / MIB)


def table_holding(texts: int, count: int, dim: int, rounds: int, folder: str | None) -> None:
    """What each way of holding item vectors takes, in a process of its own, and how long ranks take, in turns."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="rl4rec-bench-", dir=folder) as temporary:
        path = Path(temporary) / "items.safetensors"
        save_file({"embeddings": unit_vectors(count, dim, 0)}, path)
        memory = {}
        for name in WAYS:
            words = [sys.executable, __file__, "--way", name, str(path), "--texts", str(texts)]
            memory[name] = [float(n) for n in subprocess.check_output(words, text=True).split()]
        matrices = {name: opened(path, storage, is_mapped=mapped) for name, (storage, mapped) in WAYS.items()}
        queries = unit_vectors(texts, dim, 1)
        anywhere = torch.randint(0, count, (texts,), generator=torch.Generator().manual_seed(2))
        top = search(queries, matrices["fp32 in memory"], min(100, count))[0][:, -1]
        expected = [target_ranks(queries, matrices["fp32 in memory"], targets) for targets in (anywhere, top)]
        variants: Variants = {}
        for name, matrix in matrices.items():
            variants[name] = lambda matrix=matrix: target_ranks(queries, matrix, anywhere)
            variants[f"{name}, top"] = lambda matrix=matrix: target_ranks(queries, matrix, top)
        times = take_turns(variants, rounds, rounds)
        rows = []
        for name, matrix in matrices.items():
            ranks = [target_ranks(queries, matrix, targets) for targets in (anywhere, top)]
            wrong = sum(int((ours != theirs).sum()) for ours, theirs in zip(ranks, expected, strict=True))
            ratios = [
                f"{np.median(times[name + end]) / np.median(times['fp32 in memory' + end]):.2f}"
                for end in ("", ", top")
            ]
            ms = f"{np.median(times[name]) * 1e3:.0f}"
            rows.append([name, *(f"{n:.0f}" for n in memory[name]), ms, *ratios, str(wrong)])
        print(f"### Ways to hold item vectors: {texts} texts x {count:,} items x {dim} dimensions\n")
        heads = ["", "MiB held", "most MiB while opened and ranked", "MiB of the file's pages", "ranks ms"]
        show([*heads, "÷ fp32 in memory", "÷ (targets at rank 100)", "ranks unlike fp32"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="threads of torch and faiss; torch's own choice by default")
    parser.add_argument("--only", choices=["sizes", "storage", "holding", "scaling", "fused", "device"])
    parser.add_argument("--way", nargs=2, metavar=("NAME", "FILE"), help="used by --only holding: measure one")
    parser.add_argument("--texts", type=int, default=64, help="of --way")
    parser.add_argument("--device", default="cuda", help="of --only device")
    parser.add_argument("--folder", help="where the file of --only holding is made; the system's temporary folder")
    args = parser.parse_args()
    if args.way:
        memory_of_a_way(Path(args.way[1]), args.way[0], args.texts)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds, slow = (2, 1) if args.quick else (args.rounds, 2)
    threads = torch.get_num_threads()
    load = f", load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"## {threads} {'thread' if threads == 1 else 'threads'}\n", flush=True)
    print(f"torch {torch.__version__}, {rounds} rounds in turns{load} at the start\n", flush=True)
    sizes = [(64, 20_000, 1024), (64, 200_000, 384), (64, 1_000_000, 384), (4096, 20_000, 384)]
    if args.quick:
        sizes = [(8, 2000, 64), (64, 5000, 32)]
    if args.only in (None, "sizes"):
        lines = [table_sizes(*size, rounds, slow) for size in sizes]
        print("### In short\n")
        show(
            [
                "texts x items x dimensions",
                "ranks ms",
                "÷ matmul, same blocks",
                "÷ matmul, whole (the better)",
                "search ms",
                "÷ faiss",
                "÷ matmul + topk",
                "extra MiB",
            ],
            lines,
        )
    if args.only in (None, "storage"):
        table_storage(*((16, 4000, 64) if args.quick else (64, 200_000, 384)), rounds, slow)
    if args.only in (None, "holding"):
        table_holding(*((16, 4000, 64) if args.quick else (64, 1_000_000, 384)), rounds, args.folder)
    if args.only in (None, "scaling"):
        table_scaling(args.quick, rounds)
    if args.only in (None, "fused"):
        for size in [(8, 2000, 64)] if args.quick else [(64, 12_000, 384), (64, 20_000, 1024)]:
            table_fused(*size, rounds)
    if args.only == "device":
        if args.device.startswith("cuda"):
            print(f"{torch.cuda.get_device_name(args.device)}\n", flush=True)
        for texts, count, dim in sizes:
            table_device(args.device, texts, count, dim, rounds)


if __name__ == "__main__":
    main()
