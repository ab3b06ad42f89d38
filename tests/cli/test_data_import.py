"""`rl4rec data import` through the real command: what it prints and leaves, and that it leaves nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from forked import rl4rec

MOVIELENS = Path(os.environ.get("RL4REC_REALDATA") or Path(__file__).parents[2] / "data") / "ml-latest-small"


def raw(folder: Path) -> tuple[Path, Path]:
    rows = [f"u{u},i{(u * 3 + n) % 12},{n // 2},{1 + n % 5}" for u in range(12) for n in range(8)]
    (folder / "plays.csv").write_text("\n".join(["listener,track,played_at,stars", *rows, "u1,i1,-4,5"]))
    (folder / "tracks.csv").write_text("\n".join(["track,title,genre", *(f"i{i},Song {i},pop" for i in range(12))]))
    return folder / "plays.csv", folder / "tracks.csv"


def test_the_same_command_gives_the_same_bytes_and_says_what_it_did(tmp_path: Path) -> None:
    plays, tracks = raw(tmp_path)
    columns = ["--user", "listener", "--item", "track", "--time", "played_at", "--titles", tracks]
    options = [*columns, "--min-rating", "2", "--k-core", "3", "--name", "mine"]
    done = rl4rec("data", "import", "csv", plays, tmp_path / "a", *options)
    again = rl4rec("data", "import", "csv", plays, tmp_path / "b", *options)
    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["items.jsonl", "meta.json", "sequential_data.txt", "times.txt"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert "rated below 2" in done.stdout
    assert f"{plays}:98" in done.stdout  # where the negative time stands
    assert "Audit: " in done.stderr
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert meta["import"]["rows"]["read"] == 97
    assert [drop["reason"] for drop in meta["import"]["rows"]["dropped"]][:2] == ["negative time", "rated below 2"]
    assert meta["import"]["options"]["k_core"] == 3
    assert meta["time_ties"]["test"] > 0
    stats = json.loads(rl4rec("data", "stats", tmp_path / "a", "--json").stdout)
    assert stats["targets_tied_in_time"] == meta["time_ties"]
    assert stats["times"]["first"] == "1970-01-01 00:00:00+00:00"
    audit = json.loads(rl4rec("data", "audit", tmp_path / "a", "--json").stdout)
    ties = next(check for check in audit["checks"] if check["name"] == "same-time ties")
    assert ties["result"] == "warning"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    plays, tracks = raw(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = rl4rec("data", "import", "csv", plays, tmp_path / "a", "--titles", tracks, "--user", "who")
    assert done.returncode == 2
    assert "hint: " in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = rl4rec("data", "import", "csv", tmp_path / "nowhere.csv", tmp_path / "full")
    assert (done.returncode, "already exists" in done.stderr) == (2, True)  # before anything is read


def test_a_split_in_time_trains_on_users_without_targets(tmp_path: Path) -> None:
    rows = [f"u{u},i{i},{i + u}" for u in range(10) for i in range(8)]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,time", *rows]))
    out = tmp_path / "split"
    done = rl4rec("data", "import", "csv", tmp_path / "rows.csv", out, "--title-from", "item", "--split-time", "7")
    assert done.returncode == 0, done.stderr
    names = ("sequential_data.txt", "training_only.txt")
    measured, only = ((out / name).read_text().splitlines() for name in names)
    # User u chose at u, u + 1, … u + 7: from u7 on nothing before the split, and u0 only once from then on.
    assert [line.split()[0] for line in measured] == ["u1", "u2", "u3", "u4", "u5", "u6"]
    assert [line.split()[0] for line in only] == ["u0"]
    assert [len(line.split()) - 1 for line in (*measured, *only)] == [6 + 2, 5 + 2, 4 + 2, 3 + 2, 2 + 2, 1 + 2, 7]
    stats = json.loads(rl4rec("data", "stats", out, "--json").stdout)
    assert stats["users_who_only_train"] == len(only)
    assert stats["interactions"] == sum(len(line.split()) - 1 for line in (*measured, *only))


@pytest.mark.realdata
@pytest.mark.skipif(
    not (MOVIELENS / "ratings.csv").is_file(),  # an imported folder may have the name, too
    reason=f"no {MOVIELENS}/ratings.csv; set RL4REC_REALDATA to the folder that has ml-latest-small",
)
def test_movielens_latest_small(tmp_path: Path) -> None:
    done = rl4rec("data", "import", "movielens", MOVIELENS, tmp_path / "ml")
    assert done.returncode == 0, done.stderr
    stats = json.loads(rl4rec("data", "stats", tmp_path / "ml", "--json").stdout)
    assert (stats["users"], stats["items"], stats["interactions"]) == (610, 3650, 90274)
    items = [json.loads(line) for line in (tmp_path / "ml/items.jsonl").read_text().splitlines()]
    assert next(item for item in items if item["source_id"] == "11")["title"] == "The American President (1995)"
