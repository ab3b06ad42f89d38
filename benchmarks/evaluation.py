"""What measuring a whole split costs: ranks, metrics and statistics of 22,363 users, each next to its limit or a peer.

    python benchmarks/evaluation.py                  # every table, about ten minutes on two busy cores
    python benchmarks/evaluation.py --quick          # does everything run? seconds
    python benchmarks/evaluation.py --only metrics   # or ranking, or statistics
    python benchmarks/evaluation.py --only large     # 100,000 users of 1,000,000 items: time and memory

Variants of one table take turns, as in `ranking.py`; median and quickest of all rounds are shown. Values that are timed
next to each other are checked to be equal first. ranx is compared where it is installed: `pip install ranx`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranking import Variants, blocked, peak_memory, show, take_turns, unit_vectors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.eval import statistics
from rl4rec_cli.eval.baseline import measure_baselines, open_baseline
from rl4rec_cli.eval.metrics import means, per_user
from rl4rec_cli.eval.scoring import Task
from rl4rec_cli.eval.statistics import paired_difference, seeds_difference
from rl4rec_cli.ranking.ranks import target_ranks
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

USERS, ITEMS, DIM, HISTORY = 22_363, 12_101, 384, 8
KS = (5, 10, 20)
NAMES = {"ndcg": "ndcg", "hit": "hit_rate", "mrr": "mrr"}
"""Ours and ranx's."""


class NoEmbedder:
    """Queries are given as vectors."""

    name = "none"

    def embed(self, texts: Any, *, query: bool = False, progress: Any = None) -> torch.Tensor:
        raise NotImplementedError


def rows_of(times: dict[str, list[float]], peers: dict[str, str], unit: float = 1e3) -> list[list[str]]:
    """Median, quickest, and for each peer of the table the ratio of medians and of the quickest."""
    rows = []
    for name, values in times.items():
        row = [name, f"{np.median(values) * unit:,.2f}", f"{min(values) * unit:,.2f}"]
        for peer in peers.values():
            row += [f"{np.median(values) / np.median(times[peer]):.3g}", f"{min(values) / min(times[peer]):.3g}"]
        rows.append(row)
    return rows


def header(peers: dict[str, str], unit: str = "ms") -> list[str]:
    return ["", f"median {unit}", f"min {unit}", *(cell for name in peers for cell in (f"÷ {name}", "(min)"))]


def table_ranking(users: int, items: int, dim: int, rounds: int) -> None:
    """Ranks of a split against the bare product; at most 1.3 times is wanted."""
    items_ND, queries_BD = unit_vectors(items, dim, 0), unit_vectors(users, dim, 1)
    draw = np.random.default_rng(2)
    targets = draw.integers(0, items, users)
    histories = [draw.integers(0, items, max(1, n)).tolist() for n in draw.poisson(HISTORY, users)]
    retriever = InProcessRetriever(NoEmbedder(), items_ND)
    targets_B = torch.from_numpy(targets)
    whole, blocks = "torch.matmul, whole (q @ E.T)", "torch.matmul, same blocks"
    variants: Variants = {
        whole: lambda: queries_BD @ items_ND.T,
        "torch.matmul, whole (E @ q.T)": lambda: items_ND @ queries_BD.T,
        blocks: blocked(lambda block, some: block @ some.T, queries_BD, items_ND),
        "target_ranks": lambda: target_ranks(queries_BD, retriever.matrix, targets_B, histories),
        "InProcessRetriever.vector_ranks": lambda: retriever.vector_ranks(queries_BD, targets.tolist(), histories),
    }
    some = slice(0, 50)
    scores_BN = queries_BD[some].double() @ items_ND.double().T
    for row, history in enumerate(histories[some]):
        goal = scores_BN[row, targets[row]].clone()
        scores_BN[row, history] = -np.inf
        scores_BN[row, targets[row]] = goal
    expected = (scores_BN >= scores_BN.gather(1, targets_B[some, None])).sum(1).numpy()
    got = retriever.vector_ranks(queries_BD[some], targets[some].tolist(), histories[some]).ranks
    print(f"### Ranks: {users:,} users x {items:,} items x {dim} dimensions, {HISTORY} masked items each\n")
    print(f"Of {len(got)} users {int((got != expected).sum())} have another rank than by float64 brute force.\n")
    times = take_turns(variants, rounds, rounds)
    peers = {"whole": whole, "blocks": blocks}
    show(header(peers, "s"), rows_of(times, peers, 1.0))


def two_methods(users: int) -> tuple[Ranking, Ranking]:
    """Ranks of two methods that agree in part; about one target in seventeen is among the first ten."""
    draw = np.random.default_rng(3)
    shared, own = draw.random(users), draw.random((2, users))
    places = np.where(draw.random((2, users)) < 0.5, shared, own)
    ranks = np.minimum(ITEMS, 1 + (ITEMS * places ** np.array([[2.5], [2.4]])).astype(np.int64))
    return Ranking(ranks[0], np.ones(users, np.bool_)), Ranking(ranks[1], np.ones(users, np.bool_))


def lists_of(given: Ranking, longest: int) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """What the others read: for each user the target, and the first items with falling scores."""
    qrels, runs = {}, {}
    for user, rank in enumerate(given.ranks):
        items = [f"i{(user * 31 + place) % ITEMS}" for place in range(1, longest + 1)]
        target = f"i{(user * 31 + rank) % ITEMS}"
        qrels[f"u{user:06d}"] = {target: 1}
        runs[f"u{user:06d}"] = {item: float(-place) for place, item in enumerate(items)}
    return qrels, runs


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def table_metrics(users: int, rounds: int, slow: int) -> None:
    """NDCG, Hit and MRR of a split from ranks; at most 10 ms for 20,000 users is wanted."""
    import pytrec_eval

    given, _ = two_methods(users)
    qrels, runs = lists_of(given, max(KS))
    ours = "rl4rec: per_user and means, from ranks"

    def measure() -> dict[str, float]:
        return {name: float(values.mean()) for name, values in per_user(given, KS).items()}

    wanted = {f"{metric}.{','.join(map(str, KS))}" for metric in ("ndcg_cut", "success")} | {"recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, wanted)
    variants: Variants = {ours: measure, "pytrec_eval: evaluate, from lists": lambda: evaluator.evaluate(runs)}
    found = per_user(given, KS)
    theirs = evaluator.evaluate(runs)
    worst = 0.0
    for k in KS:
        for name, key in (("ndcg", f"ndcg_cut_{k}"), ("hit", f"success_{k}")):
            reference = np.array([theirs[user][key] for user in runs])
            worst = max(worst, np.abs(found[f"{name}@{k}"] - reference).max())
        reference = np.array([theirs[user]["recip_rank"] * theirs[user][f"success_{k}"] for user in runs])
        worst = max(worst, np.abs(found[f"mrr@{k}"] - reference).max())
    agreement = [f"pytrec_eval {worst:.1e}"]
    building: list[float] = []
    try:
        import ranx
    except ImportError:
        print("ranx is not installed and is left out: pip install ranx\n")
    else:
        warnings.filterwarnings("ignore", module="ranx")
        metrics = [f"{name}@{k}" for name in NAMES.values() for k in KS]
        ranx.evaluate(ranx.Qrels(qrels), ranx.Run(runs), metrics)  # compiles
        for _ in range(slow):
            seconds, built = timed(lambda: (ranx.Qrels(qrels), ranx.Run(runs)))
            building.append(seconds)
        variants["ranx: evaluate, from built objects"] = lambda: ranx.evaluate(*built, metrics)
        values = ranx.evaluate(*built, metrics, return_mean=False, save_results_in_run=False)
        gaps = [np.abs(found[f"{our}@{k}"] - values[f"{their}@{k}"]).max() for our, their in NAMES.items() for k in KS]
        agreement.append(f"ranx {max(gaps):.1e}")
        worst = max(worst, *gaps)
    if worst > 1e-9:
        raise SystemExit(f"values differ: {', '.join(agreement)}")
    # As `rl4rec eval` does it: the headline of every slice too.
    hot = np.random.default_rng(4).random(users) < 0.6
    variants["rl4rec: means of all, hot and cold users"] = lambda: [means(given, KS, c) for c in (None, hot, ~hot)]
    times = take_turns(variants, rounds, slow)
    if building:
        times["ranx: building Qrels and Run"] = building
    print(f"### {len(found)} metrics of {users:,} users\n")
    print(f"Largest difference of any user's value: {', '.join(agreement)}.\n")
    peers = {"rl4rec": ours}
    show(header(peers), rows_of(times, peers))


def table_statistics(users: int, rounds: int, slow: int, resamples: int) -> None:
    """Bootstrap and permutation test over users."""
    from scipy import stats

    a, b = (per_user(given, KS) for given in two_methods(users))
    draw = np.random.default_rng(5)
    metric = {name: (a[name], b[name]) for name in ("ndcg@10", "hit@10")}
    metric["all distinct"] = (draw.random(users), draw.random(users))
    differences = {name: x - y for name, (x, y) in metric.items()}

    def bootstrap(name: str) -> Callable[[], object]:
        return lambda: statistics._bootstrap_interval(differences[name], resamples, np.random.default_rng(0))

    def flips(name: str) -> Callable[[], object]:
        return lambda: statistics._sign_flip_p(differences[name], resamples, np.random.default_rng(0))

    def scipy_bootstrap() -> Any:
        given = (differences["ndcg@10"],)
        return stats.bootstrap(given, np.mean, n_resamples=resamples, batch=100, method="percentile", rng=0)

    def scipy_flips() -> Any:
        def mean(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
            return (x - y).mean(axis=axis)

        kind: dict[str, Any] = {"permutation_type": "samples", "n_resamples": resamples, "batch": 100, "rng": 0}
        return stats.permutation_test(metric["ndcg@10"], mean, vectorized=True, **kind)

    ours, scipys = paired_difference(*metric["ndcg@10"], resamples=resamples), scipy_bootstrap().confidence_interval
    print(f"### Statistics: {users:,} users, {resamples:,} resamples\n")
    print(f"ndcg@10: {len(np.unique(differences['ndcg@10']))} distinct differences, {ours.ties:,} of them ties.")
    print(f"Interval: [{ours.low:+.6f}, {ours.high:+.6f}]; scipy.stats: [{scipys.low:+.6f}, {scipys.high:+.6f}].")
    print(f"p: {ours.p_value:.4f}; scipy.stats: {scipy_flips().pvalue:.4f}.\n")
    if not np.allclose((ours.low, ours.high), scipys, atol=0.1 * (ours.high - ours.low)):
        raise SystemExit("the intervals differ")
    seeds_SB = np.stack([metric["ndcg@10"][0][draw.permutation(users)] for _ in range(3)])
    whole = "paired_difference, ndcg@10"
    variants: Variants = {
        whole: lambda: paired_difference(*metric["ndcg@10"], resamples=resamples),
        "  its bootstrap": bootstrap("ndcg@10"),
        "  its permutation test": flips("ndcg@10"),
        "paired_difference, hit@10": lambda: paired_difference(*metric["hit@10"], resamples=resamples),
        "paired_difference, all distinct": lambda: paired_difference(*metric["all distinct"], resamples=resamples),
        "  its bootstrap ": bootstrap("all distinct"),
        "  its permutation test ": flips("all distinct"),
        "seeds_difference, 3 seeds": lambda: seeds_difference(seeds_SB, metric["ndcg@10"][1], resamples=resamples),
        "scipy.stats.bootstrap, ndcg@10": scipy_bootstrap,
        "scipy.stats.permutation_test, ndcg@10": scipy_flips,
    }
    times = take_turns(variants, rounds, slow)
    peers = {"the first": whole}
    show(header(peers), rows_of(times, peers))


def table_large(users: int, items: int, dim: int) -> None:
    """What a large evaluation holds beside its input: vectors, histories and the sequences are there before."""
    draw = np.random.default_rng(3)
    lengths = np.maximum(4, draw.poisson(HISTORY, users))
    rows = [tuple(draw.integers(0, items, n).tolist()) for n in lengths]
    item = {"title": "item", "text": "item"}  # one for all: texts are not what is measured
    dataset = Dataset("large", (item,) * items, tuple(f"u{i}" for i in range(users)), tuple(rows), {}, True, {})
    retriever = InProcessRetriever(NoEmbedder(), unit_vectors(items, dim, 0))
    examples = build_examples(dataset, "test")
    task = Task(dataset, retriever, examples)
    table, found = [], None
    for name in ("last_item", "decayed_mean", "popularity", "transitions_2"):
        memory: dict[str, float] = {}
        started = time.perf_counter()
        with peak_memory(memory):
            [found] = measure_baselines([open_baseline(name)], task, "test")
        seconds = time.perf_counter() - started
        table.append([f"{name}: ranks and ten best of every user", f"{seconds:,.1f}", f"{memory['extra']:,.0f}"])
    assert found is not None
    memory, started = {}, time.perf_counter()
    with peak_memory(memory):
        values = per_user(found.ranking, KS)["ndcg@10"]
        paired_difference(values, np.roll(values, 1))
    table.append(["metrics, interval and p value", f"{time.perf_counter() - started:,.1f}", f"{memory['extra']:,.0f}"])
    print(f"### {users:,} users, {items:,} items x {dim} dimensions, evaluated in a stream\n")
    whole = users * items * 4 / 2**30
    print(f"The matrix of all scores, which nobody holds, would take {whole:,.0f} GiB.\n")
    show(["", "seconds", "extra anonymous MiB"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    parser.add_argument("--only", choices=["ranking", "metrics", "statistics", "large"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds, slow, users = (2, 1, 2000) if args.quick else (args.rounds, 3, USERS)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds in turns, {load}\n", flush=True
    )
    if args.only in (None, "ranking"):
        table_ranking(*((500, 2000, 64) if args.quick else (USERS, ITEMS, DIM)), rounds)
    if args.only == "large":
        table_large(*((2_000, 20_000, 16) if args.quick else (100_000, 1_000_000, 32)))
    if args.only in (None, "metrics"):
        table_metrics(users, 10 * rounds, slow)
    if args.only in (None, "statistics"):
        table_statistics(users, rounds, slow, 500 if args.quick else statistics.RESAMPLES)


if __name__ == "__main__":
    main()
