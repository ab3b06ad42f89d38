"""`rl4rec data import` beside the same steps in pandas: rows per second and peak memory, each in a process of its own.

    python benchmarks/importing.py [--rows 20000000] [--k-core 5]

The rows are made up, as CSV with gzip: users and items by a power law, times in whole seconds. Both read them, drop
repeats, take the k-core, put users in order of time and number the items. The import also writes the folder, reads it
back, compares and audits it; its parts are timed apart. The two results are compared. On a busy machine the processor's
time of a process says more than the clock's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make(path: Path, rows: int, seed: int = 0) -> None:
    """Writes rows of a made-up data set, in chunks."""
    import gzip

    import polars as pl

    rng = np.random.default_rng(seed)
    users, items = rows // 12, max(rows // 60, 100)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"user,item,time\n")
        for start in range(0, rows, 1 << 20):
            count = min(1 << 20, rows - start)
            frame = pl.DataFrame(
                {
                    "user": (users * rng.random(count) ** 1.5).astype(np.int64),
                    "item": (items * rng.random(count) ** 2.5).astype(np.int64),
                    "time": rng.integers(1_400_000_000, 1_600_000_000, count),
                }
            )
            text = frame.select(pl.format("AE{}XQ,B00{},{}", "user", "item", "time")).to_series().str.join("\n").item()
            file.write(text.encode() + b"\n")


def by_import(path: Path, k: int) -> dict[str, object]:
    """Imports by rl4rec, saves and audits."""
    from rl4rec_cli.data.audit.audit import audit_dataset
    from rl4rec_cli.data.importers.importing import import_files
    from rl4rec_cli.data.importers.options import ImportOptions
    from rl4rec_cli.data.saving import save_dataset

    started, cpu = time.perf_counter(), time.process_time()
    options = ImportOptions(k_core=k, title_from="item", ties="file")
    dataset = import_files("csv", [path], options, name="made-up").dataset
    imported, memory, cpu = time.perf_counter(), peak(), time.process_time() - cpu
    save_dataset(dataset, path.parent / "out")
    saved = time.perf_counter()
    audit_dataset(dataset)
    return {
        "seconds": imported - started,
        "cpu": cpu,
        "saving": saved - imported,
        "audit": time.perf_counter() - saved,
        "before saving": memory,
        "users": len(dataset.users),
        "items": dataset.num_items,
        "interactions": sum(map(len, dataset.sequences)),
    }


def by_pandas(path: Path, k: int) -> dict[str, object]:
    """The same steps in pandas, up to lists of item numbers in memory."""
    import pandas as pd

    started, cpu = time.perf_counter(), time.process_time()
    rows = pd.read_csv(path, dtype={"user": str, "item": str, "time": np.int64})
    rows = rows.sort_values(["user", "time"], kind="stable").drop_duplicates(["user", "item"])
    while True:
        users = rows.groupby("user")["item"].transform("size")
        items = rows.groupby("item")["user"].transform("size")
        keep = (users >= k) & (items >= k)
        if keep.all():
            break
        rows = rows[keep]
    rows["number"] = rows["item"].astype("category").cat.codes
    sequences = rows.groupby("user")["number"].agg(list)
    times = rows.groupby("user")["time"].agg(list)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "users": len(sequences),
        "items": int(rows["item"].nunique()),
        "interactions": int(times.map(len).sum()),
    }


def peak() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--only", choices=["rl4rec", "pandas"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, path = options.child
        result = {"rl4rec": by_import, "pandas": by_pandas}[way](Path(path), options.k_core)
        print(json.dumps({**result, "peak": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv.gz"
        make(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB packed, k-core {options.k_core}")
        results = {}
        for way in [options.only] if options.only else ["rl4rec", "pandas"]:
            command = [sys.executable, __file__, "--k-core", str(options.k_core), "--child", way, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way] = json.loads(done.stdout.splitlines()[-1])
            one = results[way]
            print(
                f"{way:8} {options.rows / one['seconds']:12,.0f} rows/s  {one['seconds']:7.1f} s "
                f"({one['cpu']:.1f} s of the processor)  "
                f"peak {one['peak']:5.2f} GiB  {one['users']:,} users, {one['items']:,} items, "
                f"{one['interactions']:,} interactions"
            )
            if "saving" in one:
                print(
                    f"         peak before saving {one['before saving']:.2f} GiB; saving, reading back and comparing "
                    f"{one['saving']:.1f} s; audit {one['audit']:.1f} s"
                )
    if len(results) == 2:
        a, b = results["rl4rec"], results["pandas"]
        same = all(a[name] == b[name] for name in ("users", "items", "interactions"))
        print(f"time {a['seconds'] / b['seconds']:.2f} × pandas', peak {a['peak'] / b['peak']:.2f} ×; same: {same}")


if __name__ == "__main__":
    main()
