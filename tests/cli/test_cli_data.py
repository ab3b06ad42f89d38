"""Errors in data and embeddings through the real command: exit code, message, and that they come first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import Ended, rl4rec
from safetensors.torch import load_file, save_file

RL4REC = [sys.executable, "-m", "rl4rec_cli.cli.main"]
ITEMS = [{"item_id": i, "title": f"title {i}", "text": f"text {i}"} for i in range(6)]
ROWS = ["ann 0 1 2 3", "bob 3 4 5 0", "eve 5 4 3 2 1"]
# What a command had imported when it was done, on the last line of standard error.
PROBE = """
import sys
from rl4rec_cli.cli.main import main
code = main(sys.argv[1:])
print(*[m for m in ("torch", "transformers", "sklearn", "datasets") if m in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def folder(
    where: Path, *, items: list[str] | bytes | None = None, rows: list[str] | bytes | None = None, **files: str
) -> Path:
    """A valid dataset folder, but for what is given."""
    where.mkdir(parents=True)
    given = {"items.jsonl": items if items is not None else [json.dumps(i) for i in ITEMS]}
    given["sequential_data.txt"] = rows if rows is not None else ROWS
    for name, content in given.items():
        data = content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode()
        (where / name).write_bytes(data)
    for name, text in files.items():
        (where / f"{name}.json").write_text(text)
    return where


def refused(done: subprocess.CompletedProcess[str] | Ended, *said: str) -> None:
    """Exit 2, nothing on standard output, one error with these words, a hint, no traceback."""
    assert (done.returncode, done.stdout) == (2, "")
    told = [line for line in done.stderr.splitlines() if not line.startswith("Audit: ")]  # said before the error
    assert told[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr


# Dataset folders


def test_a_missing_folder(tmp_path: Path) -> None:
    done = rl4rec("data", "stats", tmp_path / "nowhere")
    refused(done, f"{tmp_path / 'nowhere'}", "no such dataset folder", "hint: ")


def test_an_empty_folder_lacks_both_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    refused(rl4rec("data", "stats", tmp_path / "d"), "items.jsonl: the file is missing", "sequential_data.txt: the")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items": b""}, "items.jsonl: the file is empty"),
        ({"rows": b" \n\n"}, "sequential_data.txt: the file is empty"),
        ({"rows": [*ROWS, "kim 0 1 99"]}, "sequential_data.txt:4: items: unknown item id 99"),
        ({"rows": [*ROWS, "kim 0 1"]}, "sequential_data.txt:4: items: 2 items; at least 3 are needed"),
        ({"items": [*map(json.dumps, ITEMS), json.dumps(ITEMS[2])]}, "items.jsonl:7: item_id: 2 stands already in"),
        ({"rows": [*ROWS, "ann 3 4 5"]}, 'sequential_data.txt:4: user_id: "ann" stands already in line 1'),
        ({"items": "\n".join(map(json.dumps, ITEMS)).encode() + b"\xe9"}, "items.jsonl:6: not valid UTF-8: byte 0xe9"),
        ({"rows": "ann 0 1 2\n".encode("utf-16")}, "sequential_data.txt: the file is UTF-16, not UTF-8"),
        ({"rows": b"ann 0 1 2\nb\xe9a 1 2 3\n"}, "sequential_data.txt:2: not valid UTF-8: byte 0xe9 at offset 1"),
        ({"items": [json.dumps({**i, "item_id": 2 * i["item_id"]}) for i in ITEMS], "rows": ["a 0 2 4"]}, "ids must"),
        ({"items": [*map(json.dumps, ITEMS[:5]), '{"item_id": 5, "title": "x"']}, "items.jsonl:6: not valid JSON"),
        ({"items": [*map(json.dumps, ITEMS[:5]), '{"item_id": 5, "title": " ", "text": "x"}']}, "items.jsonl:6: title"),
        ({"meta": '{"mask_history": "yes"}'}, "meta.json:1: mask_history: must be true or false"),
        ({"prompts": '{"nobody": "x"}'}, "prompts.json:1: nobody: no such user"),
    ],
)  # fmt: skip
def test_each_fault_of_a_folder(change: dict[str, object], said: str, tmp_path: Path) -> None:
    refused(rl4rec("data", "stats", folder(tmp_path / "d", **change)), "1 problem\n", said)  # type: ignore[arg-type]


def test_all_faults_at_once(tmp_path: Path) -> None:
    items = [*map(json.dumps, ITEMS), "no json", '{"item_id": 0, "title": "x", "text": "y"}']
    where = folder(tmp_path / "d", items=items, rows=["ann 0 1 2", "ann 1 2 3", "bob 0 1", "eve 0 x 2"], meta="[]")
    done = rl4rec("data", "stats", where)
    refused(done, f"error: {where}: 6 problems\n")
    for place in ("items.jsonl:7: ", "items.jsonl:8: ", "data.txt:2: ", "data.txt:3: ", "data.txt:4: ", "meta.json: "):
        assert place in done.stderr


# Commands that train, measure or embed tell it before they load anything.

BAD = "sequential_data.txt:2: items: unknown item id 9"


@pytest.mark.parametrize(
    "args",
    [
        "train grpo -r beauty-cpu --dataset {}",
        "train sft --quick-test --dataset {}",
        "eval --dataset {}",
        "eval tiny --dataset {}",
        "embed {}",
        "recommend run --user ann",
    ],
)
def test_a_bad_dataset_is_told_before_anything_heavy_is_imported(args: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "bad", rows=["ann 0 1 2", "bob 0 1 9"])
    (tmp_path / "run" / "checkpoints" / "checkpoint_final").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{path: {where}}}\n")
    command = [sys.executable, "-c", PROBE, *args.format(where).split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    refused(done, BAD)
    assert done.stderr.splitlines()[-1] == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "run"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ("train grpo --quick-test --set run.name=there --output .", 1, "there: this run is there already"),
        ("train grpo --quick-test --reward ./none.py:f", 2, "reward file ./none.py: no such file"),
        ("train sft --quick-test --set trainer.batch_size=999999", 2, "one step takes 999999 examples"),
        ("recommend there --user ann", 1, "there: not a run folder or a checkpoint of one"),
        ("recommend run --user nobody", 2, "has no user 'nobody'"),
        ("eval run/checkpoints/checkpoint_step_9", 1, "no such checkpoint\nhint: there: checkpoint_final"),
        ("recommend empty --user ann", 1, "empty: no checkpoint in it yet"),
    ],
)
def test_other_faults_that_need_nothing_heavy(args: str, code: int, said: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "good")
    (tmp_path / "there").mkdir()
    for name, inside in (("run", "checkpoints/checkpoint_final"), ("empty", "checkpoints")):
        (tmp_path / name / inside).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(f"data: {{path: {where}}}\n")
    command = [sys.executable, "-c", PROBE, *args.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == ""


# Synthetic data


def test_synth_writes_a_folder_once(tmp_path: Path) -> None:
    args = ("data", "synth", "toy", "--users", "30", "--items", "20", "--seed", "3")
    done = rl4rec(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote toy: 30 users, 20 items" in done.stderr
    stats = rl4rec("data", "stats", "toy", "--json", cwd=tmp_path)
    figures = json.loads(stats.stdout)
    assert (figures["users"], figures["items"]) == (30, 20)
    before = (tmp_path / "toy" / "items.jsonl").read_bytes()
    refused(rl4rec(*args, cwd=tmp_path), "toy: already exists and is not an empty folder", "hint: ")
    assert (tmp_path / "toy" / "items.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    (tmp_path / "file").write_text("")
    refused(rl4rec("data", "synth", "file/toy", cwd=tmp_path), "file/toy: cannot be written: ")


# Embeddings


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data") / "good")


def test_embed_writes_what_it_says(good: Path, tmp_path: Path) -> None:
    own = ("--set", "retrieval.lsa_dim=2")
    command = [*RL4REC, "embed", str(good), "--embedder", "lsa", *own, "--out", "vectors/x.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (0, "vectors/x.safetensors\n")
    vectors = load_file(tmp_path / "vectors" / "x.safetensors")["embeddings"]
    assert vectors.shape == (len(ITEMS), 2)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(ITEMS)))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--out vectors.npy --embedder lsa", "vectors.npy: embeddings are written as .safetensors or .pt"),
        ("--emb-type brand --embedder lsa", "field 'brand' is missing"),
        ("--model ./nowhere", "cannot load the embedding model './nowhere'"),
        ("--out file/x.pt --embedder lsa", "file/x.pt: cannot be written: "),
        ("--out folder.pt --embedder lsa", "folder.pt: is a folder"),
        ("--device cuda:77 --model x", "retrieval.device=cuda:77, but torch sees no GPU"),
        ("--embedder lsi", "did you mean lsa?"),
    ],
)
def test_embed_errors(args: str, said: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt").mkdir()
    refused(rl4rec("embed", good, *args.split(), cwd=tmp_path), said)
    assert not list(tmp_path.rglob("*.safetensors"))


def vectors(rows: int = 6, dim: int = 4) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)))


def with_nan() -> torch.Tensor:
    broken = vectors()
    broken[3, 1] = float("nan")
    return broken


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (vectors(5), "5 rows, but dataset good has 6 items"),
        (vectors()[0], "shape [4], expected [num_items, dim]"),
        (torch.ones(6, 4, dtype=torch.long), "expected floating point"),
        (with_nan(), "1 rows are not finite, first row 3 (item 3)"),
        ("truncated", "not a whole .pt file"),
        (None, "no such embedding file"),
    ],
)
def test_an_embedding_file_that_cannot_be_used(content: object, said: str, good: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.pt"
    if isinstance(content, torch.Tensor):
        torch.save(content, file)
    elif content is not None:
        torch.save(vectors(), file)
        file.write_bytes(file.read_bytes()[:-200])
    # The model does not exist: the file is looked at first.
    args = ("--set", f"retrieval.file={file}", "--set", "retrieval.model=./nowhere", "--baselines", "last_item")
    refused(rl4rec("eval", "--dataset", good, *args, cwd=tmp_path), f"{file}: ", said)


def test_an_embedding_file_of_another_dataset(good: Path, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", items=[json.dumps({**i, "text": f"other {i['item_id']}"}) for i in ITEMS])
    file = tmp_path / "e.safetensors"
    assert rl4rec("embed", other, "--embedder", "lsa", "--out", file, cwd=tmp_path).returncode == 0
    args = ("--set", f"retrieval.file={file}", "--set", "retrieval.model=./nowhere", "--baselines", "last_item")
    refused(rl4rec("eval", "--dataset", good, *args, cwd=tmp_path), f"{file}: made from other items", "hint: make it")
    refused(rl4rec("eval", "--dataset", other, *args, cwd=tmp_path), "made by 'lsa-128-words-2'", "'./nowhere'")
    save_file({"a": vectors(), "b": vectors()}, file)
    refused(rl4rec("eval", "--dataset", good, *args, cwd=tmp_path), "holds tensors ['a', 'b']")


# The page of `data stats`


def test_stats_writes_a_page_too(tmp_path: Path) -> None:
    where = folder(tmp_path / "d")
    (where / "times.txt").write_text("ann 0 0 86400 86400\nbob 1 2 3 4\neve 1 2 3 4 5\n")
    done = rl4rec("data", "stats", where, "--json", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["targets_tied_in_time"] == {"validation": 0, "test": 1}
    assert f"wrote {tmp_path / 'page.html'}" in done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_that_cannot_be_written_is_told_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(
        rl4rec("data", "stats", tmp_path / "nowhere", "--html", tmp_path / "file" / "page.html"), "cannot be written"
    )
    refused(rl4rec("data", "stats", tmp_path / "nowhere", "--html", tmp_path), "is a folder")


@pytest.mark.parametrize("time", ["1700000000000000", "-1e15", "nan"])
def test_times_that_are_no_dates(time: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "d")
    rows = ["ann 0 0 0 0", "bob 1 2 3 4", f"eve {' '.join([time] * 5)}"]
    (where / "times.txt").write_text("\n".join(rows))
    refused(rl4rec("data", "stats", where, "--html", tmp_path / "page.html"), "times.txt:3", "seconds since 1970")
    assert not (tmp_path / "page.html").exists()
