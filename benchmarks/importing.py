"""`rl4rec data import` beside the same steps in pandas and in RecBole: rows per second and peak memory.

    python benchmarks/importing.py [--rows 20000000] [--k-core 5] [--recbole VENV]

Each runs in a process of its own. The rows are made up, as CSV with gzip: users and items by a power law, times in
whole seconds. All read them, drop
repeats, take the k-core, put users in order of time and number the items. The import also writes the folder, reads it
back, compares and audits it; its parts are timed apart. The results are compared. On a busy machine the processor's
time of a process says more than the clock's.

With `--recbole` the rows are one of RecBole's atomic files (`.inter`, not packed), and RecBole itself reads it, too:
its `create_dataset` with the same duplicates and k-core, then `build` for leave-one-out in order of time. RecBole needs
an older numpy than rl4rec and so has a virtual environment of its own in VENV, which is made where there is none.
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
    is_atomic = path.suffix == ".inter"
    header, row = ("user,item,time", "AE{}XQ,B00{},{}")
    if is_atomic:
        header, row = ("user_id:token\titem_id:token\ttimestamp:float", "AE{}XQ\tB00{}\t{}")
    with path.open("wb") if is_atomic else gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{header}\n".encode())
        for start in range(0, rows, 1 << 20):
            count = min(1 << 20, rows - start)
            frame = pl.DataFrame(
                {
                    "user": (users * rng.random(count) ** 1.5).astype(np.int64),
                    "item": (items * rng.random(count) ** 2.5).astype(np.int64),
                    "time": rng.integers(1_400_000_000, 1_600_000_000, count),
                }
            )
            text = frame.select(pl.format(row, "user", "item", "time")).to_series().str.join("\n").item()
            file.write(text.encode() + b"\n")


def by_import(path: Path, k: int) -> dict[str, object]:
    """Imports by rl4rec, saves and audits."""
    from rl4rec_cli.data.audit.audit import audit_dataset
    from rl4rec_cli.data.importers.importing import import_files
    from rl4rec_cli.data.importers.options import ImportOptions
    from rl4rec_cli.data.saving import save_dataset

    started, cpu = time.perf_counter(), time.process_time()
    options = ImportOptions(k_core=k, title_from="item", ties="file")
    source = "recbole" if path.suffix == ".inter" else "csv"
    dataset = import_files(source, [path], options, name="made-up").dataset
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
    separator = "\t" if path.suffix == ".inter" else ","
    rows = pd.read_csv(
        path,
        sep=separator,
        names=["user", "item", "time"],
        header=0,
        dtype={"user": str, "item": str, "time": np.int64},
    )
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


def by_recbole(path: Path, k: int) -> dict[str, object]:
    """RecBole's reading, filtering, numbering and splitting of its atomic file. Runs in its own environment."""
    from recbole.config import Config
    from recbole.data import create_dataset

    settings = {
        "data_path": str(path.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "rm_dup_inter": "first",
        "user_inter_num_interval": f"[{k},inf)",
        "item_inter_num_interval": f"[{k},inf)",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "use_gpu": False,
    }
    sys.argv = sys.argv[:1]  # RecBole reads settings of its own from it
    config = Config(model="Pop", dataset=path.parent.name, config_dict=settings)
    config["data_path"] = str(path.parent)
    started, cpu = time.perf_counter(), time.process_time()
    dataset = create_dataset(config)
    users, items, interactions = dataset.user_num - 1, dataset.item_num - 1, dataset.inter_num
    dataset.build()
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "users": int(users),
        "items": int(items),
        "interactions": int(interactions),
    }


RECBOLE = ("recbole==1.2.1", "numpy<2", "pandas<3", "scipy<1.16", "setuptools<81", "torch==2.13.0")
"""RecBole names numpy's types by names that numpy 2 does not have."""


def recbole_python(folder: Path) -> str:
    """Returns the interpreter of RecBole's environment, which it makes if there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if subprocess.run([str(python), "-c", "import recbole"], stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", *RECBOLE], check=True)
    return str(python)


def peak() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--only", choices=["rl4rec", "pandas", "recbole"])
    parser.add_argument("--recbole", type=Path, metavar="VENV", help="measure RecBole, too, which is installed there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, path = options.child
        result = {"rl4rec": by_import, "pandas": by_pandas, "recbole": by_recbole}[way](Path(path), options.k_core)
        print(json.dumps({**result, "peak": peak()}))
        return
    pythons = {"rl4rec": sys.executable, "pandas": sys.executable}
    if options.recbole is not None:
        pythons["recbole"] = recbole_python(options.recbole)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "made-up"  # RecBole finds a data set by its folder's name
        folder.mkdir()
        path = folder / ("made-up.inter" if options.recbole is not None else "rows.csv.gz")
        make(path, options.rows)
        print(f"{options.rows:,} rows, {path.name} of {path.stat().st_size / 2**20:,.0f} MiB, k-core {options.k_core}")
        results = {}
        for way in [options.only] if options.only else pythons:
            command = [pythons[way], __file__, "--k-core", str(options.k_core), "--child", way, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way] = json.loads(done.stdout.splitlines()[-1])
            one = results[way]
            print(
                f"{way:8} {options.rows / one['seconds']:12,.0f} rows/s  {one['seconds']:7.1f} s "
                f"({one['cpu']:.1f} s of the processor)  "
                f"peak {one['peak']:5.2f} GiB  {one['users']:,} users, {one['items']:,} items, "
                f"{one['interactions']:,} interactions",
                flush=True,
            )
            if "saving" in one:
                print(
                    f"         peak before saving {one['before saving']:.2f} GiB; saving, reading back and comparing "
                    f"{one['saving']:.1f} s; audit {one['audit']:.1f} s"
                )
    ours = results.pop("rl4rec", None)
    for way, theirs in results.items() if ours is not None else ():
        same = all(ours[name] == theirs[name] for name in ("users", "items", "interactions"))
        print(
            f"rl4rec by {way}: processor's time {ours['cpu'] / theirs['cpu']:.2f}, time "
            f"{ours['seconds'] / theirs['seconds']:.2f}, peak {ours['before saving'] / theirs['peak']:.2f} "
            f"({ours['peak'] / theirs['peak']:.2f} with saving and audit); same counts: {same}"
        )


if __name__ == "__main__":
    main()
