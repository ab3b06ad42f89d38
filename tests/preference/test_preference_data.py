"""Preference data from files, folders and the Hub, and the prompts that are held out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from rl4rec_cli.config.pairs import PairsSection
from rl4rec_cli.config.sections import DataSection
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.preference import sources
from rl4rec_cli.preference.data import PairsDataset, open_pairs, split_pairs
from rl4rec_cli.preference.records import Pair, Turn

ROWS = [{"prompt": f"ask {n}", "chosen": f"good {n}", "rejected": f"bad {n}", "score": n} for n in range(20)]


def open_at(path: Path | str, **pairs: Any) -> PairsDataset:
    return open_pairs(DataSection(path=str(path), pairs=PairsSection(**pairs)))


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """The same rows in every form of file."""
    data = datasets.Dataset.from_list(ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    data.to_parquet(tmp_path / "p.parquet")
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": data.select([0]), "train": data}).save_to_disk(str(tmp_path / "dict"))
    lines = jsonl(tmp_path / "l.jsonl", ROWS)
    (tmp_path / "lines.json").write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n"))
    names = ("l.jsonl", "a.json", "lines.json", "p.parquet", "one", "dict")
    return [tmp_path / name for name in names]


def test_every_form_gives_the_same_pairs(places: list[Path]) -> None:
    opened = [open_at(place) for place in places]
    assert {one.digest for one in opened} == {opened[0].digest}
    assert len(opened[0].train) == 18
    assert len(opened[0].held_out) == 2
    assert opened[0].train[0].columns["score"] in range(20)
    assert opened[0].name == "l"


def test_max_samples_is_the_beginning(places: list[Path]) -> None:
    for place in places:
        some = open_at(place, max_samples=5, held_out=0.0)
        assert [pair.chosen for pair in some.train] == [f"good {n}" for n in range(5)]


def test_lines_after_max_samples_are_not_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "l.jsonl", [*ROWS[:3], {"prompt": "no answers"}])
    assert len(open_at(path, max_samples=3, held_out=0.0).train) == 3


def test_whole_prompts_are_held_out() -> None:
    """Pairs of one prompt stay together; the seed draws; order and copies of pairs draw no others."""
    pairs = [Pair((Turn("user", f"q{n % 50}"),), f"good {n}", f"bad {n}", is_chat=False) for n in range(200)]
    section = PairsSection(held_out=0.2)
    data = split_pairs("x", pairs, section)
    held = {pair.key for pair in data.held_out}
    assert len(held) == 10
    assert not held & {pair.key for pair in data.train}
    assert len(data.train) + len(data.held_out) == 200
    assert {pair.key for pair in split_pairs("x", pairs[::-1] + pairs[:7], section).held_out} == held
    assert {pair.key for pair in split_pairs("x", pairs, PairsSection(held_out=0.2, seed=1)).held_out} != held
    assert not split_pairs("x", pairs, PairsSection(held_out=0.0)).has_validation


def test_too_few_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 prompt, too few to hold one out"):
        open_at(jsonl(tmp_path / "l.jsonl", ROWS[:1]))


def test_bad_lines_are_all_named_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps(ROWS[0]).encode()
    lines = [
        good,
        b'{"prompt": "a", "rejected": "b"}',
        b"",
        b"{",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "prompt": "b"}',
    ]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as error:
        open_at(path)
    assert "4 of 5 records are no pairs" in error.value.message
    places = [problem.removeprefix(str(path)) for problem in error.value.problems]
    assert [place.split(":")[1] for place in places] == ["2", "4", "5", "6"]
    assert "`chosen` is missing" in places[0]
    assert "not valid JSON" in places[1]
    assert "not valid UTF-8: byte 0xff" in places[2]
    assert "stands twice" in places[3]
    assert error.value.exit_code == 2


def test_bad_lines_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "l.jsonl", [*ROWS, {"prompt": "a"}, {"prompt": "b"}])
    assert len(open_at(path, bad_records="leave_out", held_out=0.0).train) == 20
    assert "2 of 22 records are no pairs and are left out: `chosen` is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("x.parquet", b"PAR1 broken", "cannot be read as Parquet"),
        ("x.csv", b"a,b", "not a file that is read here"),
        ("x.json", b"[1, 2", "not valid JSON"),
        ("x.json", b"[1, 2]", "none of 2 records is a pair"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        open_at(tmp_path / name)
    assert reason in str(error.value)


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder saved by datasets"):
        open_at(tmp_path)


def test_splits_of_folders(places: list[Path]) -> None:
    folder = places[-1]
    assert len(open_at(folder, split="test", held_out=0.0).train) == 1
    with pytest.raises(DataError, match="no split 'dev'"):
        open_at(folder, split="dev")
    with pytest.raises(ConfigError, match="is a file, and has none"):
        open_at(places[0], split="train")


def test_unknown_words() -> None:
    with pytest.raises(DataError, match="did you mean ultrafeedback"):
        open_at("ultrafeedbak")
    with pytest.raises(DataError, match="no such file"):
        open_at("some/file.jsonl")


class TestHub:
    """`datasets.load_dataset` is replaced: no test reaches the Hub."""

    @staticmethod
    def serve(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool) -> Iterator[Any]:
            calls.append((name, subset, split, streaming))
            if isinstance(result, Exception):
                raise result
            return iter(result)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    def test_short_names_and_any_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.serve(monkeypatch, ROWS)
        for name in sources.PUBLISHED:
            assert len(open_at(name, held_out=0.0).train) == 20
        assert calls[0] == ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs", False)
        open_at("me/mine", subset="helpful", split="dev", streaming=True, max_samples=4)
        assert calls[-1] == ("me/mine", "helpful", "dev", True)

    def test_bad_records_are_left_out(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        equal = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"}
        self.serve(monkeypatch, [*ROWS, equal])
        assert len(open_at("hh_rlhf", held_out=0.0).train) == 20
        assert "1 of 21 records are no pairs and are left out: `chosen` and `rejected` are the same" in (
            capsys.readouterr().err
        )

    @pytest.mark.parametrize(
        ("error", "reason", "hint"),
        [
            (
                RuntimeError("Dataset scripts are no longer supported, but found x.py"),
                "loading script",
                "openai_summarize",
            ),
            (ConnectionError("Couldn't reach"), "the Hub cannot be reached", "hf download --repo-type dataset"),
            (datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist"), "no such data set on the Hub", "name"),
            (ValueError("Unknown split"), "Unknown split", "data.pairs.split"),
        ],
    )
    def test_errors(self, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, hint: str) -> None:
        self.serve(monkeypatch, error)
        with pytest.raises(DataError) as raised:
            open_at("openai/summarize_from_feedback")
        assert reason in raised.value.message
        assert hint in str(raised.value.hint)


def test_streaming_needs_an_end() -> None:
    with pytest.raises(ValueError, match="max_samples"):
        PairsSection(streaming=True)
