"""`rl4rec compare` through the real command. One small run is trained; its last checkpoints make a second one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Ended, rl4rec

from rl4rec_cli.rewards.functions import ndcg

RL4REC = [sys.executable, "-m", "rl4rec_cli.cli.main"]
SMALL = [
    *("data.synthetic.users=60", "data.synthetic.items=30", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("generation.max_completion_length=8", "prompt.max_history=2", "trainer.batch_size=8", "logging.steps=1"),
    *("trainer.num_generations=4", "trainer.max_steps=2", "trainer.warm_start.max_steps=40", "eval.baselines=[]"),
]


def result(process: Ended) -> Any:
    """Standard output as JSON, in which `NaN` is an error."""
    assert process.returncode == 0, process.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(process.stdout, parse_constant=refuse)


def copied(run: Path, name: str, **changes: str) -> Path:
    """Another run of the same training, with other words in its configuration."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    for old, new in changes.items():
        assert f"{old}: " in text
        text = re.sub(rf"(?m)(^|[ ,{{]){old}: [^,}}\n]*", rf"\g<1>{old}: {new}", text, count=1)
    (copy / "config.yaml").write_text(text)
    return copy


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/a` and `runs/b`, which is the same before reinforcement learning."""
    folder = tmp_path_factory.mktemp("work")
    sets = [part for text in [*SMALL, "run.name=a"] for part in ("--set", text)]
    process = rl4rec("train", "grpo", "--quick-test", *sets, cwd=folder)
    assert process.returncode == 0, process.stderr
    b = copied(folder / "runs" / "a", "b", seed="1")
    shutil.rmtree(b / "checkpoints" / "checkpoint_final")
    (b / "checkpoints" / "checkpoint_start").rename(b / "checkpoints" / "checkpoint_final")
    return folder


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "data_baselines" not in p.parts}


def test_two_runs_and_a_baseline(work: Path) -> None:
    before = files(work)
    command = [*RL4REC, "compare", "runs/a", "runs/b", "popularity"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False)
    assert process.returncode == 0, process.stderr
    assert files(work) == before  # nothing is written unless asked
    lines = process.stdout.splitlines()
    assert lines[0] == "synthetic-60x30-s0, validation split, 60 users"
    assert [line.split()[0] for line in lines[2:5]] == ["a", "b", "popularity"]
    assert lines[6] == "Paired differences in ndcg@10, every pair, p adjusted over 3 (Holm), 60 users"
    assert [line.split("  ")[0] for line in lines[8:11]] == ["a − b", "a − popularity", "b − popularity"]
    assert lines[-1].startswith("Verdict: on 60 validation users b reaches ndcg@10 ")
    assert "runs/a: Test split opened 0 times." in lines
    assert "Audit: " in process.stdout
    assert "Traceback" not in process.stderr


def test_json_has_everything_and_eval_says_the_same(work: Path) -> None:
    found = result(rl4rec("compare", "runs/a", "popularity", "--users", "40", "--json", cwd=work))
    assert found["users"] == len(found["records"]) == 40
    [pair] = found["pairs"]
    a, popularity = (
        ndcg(np.array([record["ranks"][label][0] for record in found["records"]]), 10) for label in ("a", "popularity")
    )
    assert pair["mean"] == pytest.approx((a - popularity).mean())
    assert (pair["wins"], pair["losses"]) == ((a > popularity).sum(), (a < popularity).sum())
    shown = found["most_different"]
    assert len(shown["ours_better"]) == min(10, sum(u["difference"] >= 0 for u in shown["ours_better"]))
    assert found["rewards"]["a"][0]["steps"] == [1, 2]
    assert found["contestants"]["a"]["is"] == ["runs/a/checkpoints/checkpoint_final"]

    told = ["--baselines", "popularity", "--users", "40", "--set", "eval.probes=false", "--json"]
    evaluated = result(rl4rec("eval", "runs/a", *told, cwd=work))
    assert evaluated["methods"]["tuned policy"] == found["methods"]["a"]
    assert evaluated["methods"]["popularity"] == found["methods"]["popularity"]
    same = evaluated["differences"]["popularity"]
    assert {key: pair[key] for key in same if key != "p_holm"} == {k: v for k, v in same.items() if k != "p_holm"}


def test_the_test_split_opens_in_every_run_and_files_are_written_where_asked(work: Path) -> None:
    command = ["compare", "runs/a", "runs/b", "runs/a/checkpoints/checkpoint_start", "--split", "test"]
    process = rl4rec(*command, "--html", "out/new/page.html", "--markdown", "out/page.md", cwd=work)
    assert process.returncode == 0, process.stderr
    for run in ("runs/a", "runs/b"):  # once, though two checkpoints of `a` were measured
        assert f"{run}: Test split opened 1 time (20" in process.stdout
        assert len((work / run / "test_openings.jsonl").read_text().splitlines()) == 1
    assert "wrote out/new/page.html" in process.stderr
    assert sorted(p.name for p in (work / "out").rglob("*")) == ["new", "page.html", "page.md"]
    text = (work / "out" / "new" / "page.html").read_text()
    assert "Test split opened: runs/a 1 time, runs/b 1 time." in text
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    markdown = (work / "out" / "page.md").read_text()
    assert "Test split opened 1 time (20" in markdown
    assert "## Paired differences" in markdown

    again = result(rl4rec("compare", "runs/a", "runs/b", "--split", "test", "--json", cwd=work))
    assert [one["count"] for one in again["test_openings"]["a"]] == [2]
    assert [one["count"] for one in again["test_openings"]["b"]] == [2]


def test_seeds_of_one_method(work: Path) -> None:
    found = result(rl4rec("compare", "runs/a,runs/b", "last_item", "--json", cwd=work))
    group, baseline = found["methods"]
    assert (group, baseline) == ("a, b (2 seeds)", "last_item")
    [pair] = found["pairs"]
    assert pair["seeds"]["count"] == 2
    ranks = np.array([record["ranks"][group] for record in found["records"]]).T
    assert ndcg(ranks, 10).mean() == pytest.approx(found["methods"][group]["ndcg@10"])
    assert found["contestants"][group]["seeds"] == [1, 42]


FUSED = ["--fuse", "transitions", "--split", "test", "--users", "40"]


def test_runs_are_fused_with_a_sequence_model(work: Path) -> None:
    process = rl4rec("compare", "runs/a", "runs/b", *FUSED, "--html", "fused.html", "--markdown", "fused.md", cwd=work)
    assert process.returncode == 0, process.stderr
    labels = ["a", "b", "a + transitions", "b + transitions", "last item + transitions"]
    lines = process.stdout.splitlines()
    assert [re.split(r"  +", line)[0] for line in lines[2:7]] == labels
    [title] = [line for line in lines if line.startswith("Paired differences")]
    assert title.endswith("every pair, each hybrid against last item + transitions, p adjusted over 5 (Holm), 40 users")
    verdicts = [line for line in lines if line.startswith("Verdict: on 40 test users ")]
    assert len(verdicts) == 5
    assert verdicts[3].startswith("Verdict: on 40 test users a + transitions reaches ndcg@10 ")
    assert " last item + transitions (" in verdicts[3]
    for name in ("fused.html", "fused.md"):
        assert "b + transitions" in (work / name).read_text().replace("\\", "")

    again = rl4rec("compare", "runs/a", "runs/b", *FUSED, "--json", cwd=work)
    found = result(again)
    assert "Writing completions" not in again.stderr
    assert [(pair["ours"], pair["theirs"]) for pair in found["pairs"]] == [
        *(("a", "b"), ("a", labels[4]), ("b", labels[4])),
        *((labels[2], labels[4]), (labels[3], labels[4])),
    ]
    assert {label: found["contestants"][label]["kind"] for label in labels[2:]} == {
        **dict.fromkeys(labels[2:4], "hybrid"),
        labels[4]: "baseline",
    }
    assert found["settings"].keys().isdisjoint({"policy.model"})
    assert all(set(cells) == {"a", "b"} for cells in found["settings"].values())
    [notes] = found["contestants"]["a + transitions"]["notes"]
    assert len(notes["weights"]) == 1

    # `eval` says the same of the same users, and shows the pair by itself.
    command = ["eval", "runs/a", *FUSED, "--baselines", "popularity", "--set", "eval.probes=false"]
    evaluated = result(rl4rec(*command, "--json", cwd=work))
    names = ["popularity", "last item + transitions", "tuned policy", "tuned policy + transitions"]
    assert list(evaluated["methods"]) == names
    assert evaluated["methods"][names[3]] == found["methods"]["a + transitions"]
    assert evaluated["methods"][names[1]] == found["methods"][labels[4]]
    assert evaluated["hybrids"]["mean"] == pytest.approx(found["pairs"][3]["mean"])
    assert f"the best hybrid with it, {names[3]}, reaches " in evaluated["verdict"]
    printed = rl4rec(*command, cwd=work).stdout.splitlines()
    title = printed.index("tuned policy + transitions minus …, ndcg@10, 40 users")
    assert re.split(r"  +", printed[title + 2])[0] == "last item + transitions"


def test_seeds_of_one_method_are_fused_each(work: Path) -> None:
    """On validation users, each half of whom chooses the weight for the other."""
    found = result(rl4rec("compare", "runs/a,runs/b", "popularity", "--fuse", "transitions", "--json", cwd=work))
    group, hybrid, without = "a, b (2 seeds)", "a, b (2 seeds) + transitions", "last item + transitions"
    assert list(found["methods"]) == [group, "popularity", hybrid, without]
    pair = found["pairs"][-1]
    assert (pair["ours"], pair["theirs"], pair["seeds"]["count"]) == (hybrid, without, 2)
    assert all(len(notes["weights"]) <= 2 for notes in found["contestants"][hybrid]["notes"])


def test_titles_that_are_html_stay_text(work: Path) -> None:
    data = work / "hostile"
    assert rl4rec("data", "synth", data, "--users", "40", "--items", "25", cwd=work).returncode == 0
    items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
    for item in items:
        item["title"] = f"<script>alert({item['item_id']})</script> {item['title']}"
    (data / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    command = ["compare", "popularity", "last_item", "--dataset", "hostile", "-r", "quick-test"]
    process = rl4rec(*command, "--html", "hostile.html", "--markdown", "hostile.md", cwd=work)
    assert process.returncode == 0, process.stderr
    text = (work / "hostile.html").read_text()
    assert "&lt;script&gt;alert(" in text
    assert "<script" not in text
    markdown = (work / "hostile.md").read_text()
    assert r"\<script\>alert(" in markdown
    assert not re.search(r"(?<!\\)<", markdown)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["runs/a"], 2, "error: compare needs at least two, and runs/a is alone"),
        ([], 2, "error: missing argument"),
        (["runs/a", "popularty"], 1, "hint: did you mean popularity?"),
        (["runs/a", "runs/c"], 1, "error: runs/c: no run, model or baseline of this name"),
        (["runs/a", "runs/a"], 2, "error: runs/a is named twice"),
        (["runs/a", "runs/b", "--html", "runs"], 2, "error: runs: is a folder"),
        (
            ["runs/a", "runs/b", "--markdown", "runs/a/config.yaml/x"],
            2,
            "config.yaml/x: cannot be written: Not a directory",
        ),
        (["runs/a", "runs/b", "--split", "train"], 2, "eval.split"),
        (["runs/a", "runs/b", "--users", "0"], 2, "--users"),
        (["runs/a", "runs/b", "--fuse", "bm25"], 2, "eval.fuse"),
        (["runs/a", "runs/b", "--fuse", "sasrec", "--users", "1"], 2, "there are fewer than two (1 validation user)"),
    ],
)
def test_usage(work: Path, args: list[str], code: int, said: str) -> None:
    process = rl4rec("compare", *args, cwd=work)
    assert (process.returncode, process.stdout) == (code, "")
    assert said in process.stderr
    assert "Traceback" not in process.stderr


def test_other_data_and_other_retrieval_are_refused(work: Path) -> None:
    """And measured where the command says on what, and by what."""
    other = copied(work / "runs" / "a", "other-data", users="50")
    process = rl4rec("compare", "runs/a", "runs/other-data", "--split", "test", cwd=work)
    assert (process.returncode, process.stdout) == (2, "")
    assert "synthetic-60x30-s0 (digest " in process.stderr
    assert "runs/other-data has synthetic-50x30-s0 (digest " in process.stderr
    openings = (other / "test_openings.jsonl").read_text() if (other / "test_openings.jsonl").exists() else ""
    assert openings == ((work / "runs" / "a" / "test_openings.jsonl").read_text() if openings else "")

    copied(work / "runs" / "a", "other-retrieval", lsa_dim="8", seed="3")
    command = ["compare", "runs/a", "runs/other-retrieval", "--json"]
    refused = rl4rec(*command, cwd=work)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "retrieval.lsa_dim 128 / 8" in refused.stderr
    assert "--set retrieval.lsa_dim=128" in refused.stderr
    chosen = result(rl4rec(*command, "--set", "retrieval.lsa_dim=128", cwd=work))
    assert chosen["methods"]["a"] == chosen["methods"]["other-retrieval"]  # the same weights
    assert chosen["pairs"][0]["reads"] == "no difference shown"
    assert chosen["pairs"][0]["ties"] == 60
