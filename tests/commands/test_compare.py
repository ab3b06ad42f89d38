"""Comparisons made by hand, their pages, and who may be compared; nothing is trained here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import BACKGROUNDS, COLOURS, HOSTILE, check_page, draw_quietly, needs_browser, screenshot

from rl4rec_cli.cli.results import print_comparison
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.eval.comparison import Comparison, averaged, paired, reward_curves
from rl4rec_cli.eval.evaluation import Evaluation
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.eval.scoring import Measured
from rl4rec_cli.eval.statistics import holm, paired_difference, seeds_difference
from rl4rec_cli.eval.systems import (
    Member,
    System,
    check_retrieval,
    differing_settings,
    mixed_groups,
    open_systems,
    shared_dataset,
)
from rl4rec_cli.files.writing import strict
from rl4rec_cli.report import compare_page
from rl4rec_cli.retrieval.retriever import Ranking
from rl4rec_cli.rewards.functions import ndcg
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import create_run

USERS, ITEMS = 80, 60
MakeDataset = Callable[..., Dataset]


def comparison(make_dataset: MakeDataset, *systems: tuple[str, int], said: str = "a text", title: str = "thing") -> Any:
    """Systems `(label, seeds)` with ranks drawn for each; 0 seeds make a baseline."""
    dataset = make_dataset([f"{title} {i}" for i in range(ITEMS)], sequences=[[0, 1, 2, 3]] * USERS)
    examples = [Example(f"u{i}", (0, 1, i % 7), 20 + i % 30) for i in range(USERS)]
    evaluation = Evaluation(
        "validation", examples, (5, 10), {"even": np.arange(USERS) % 2 == 0, "none": np.zeros(USERS, bool)}
    )
    evaluation.about = {"dataset": dataset.name, "dataset_digest": "d" * 64}
    generator = np.random.default_rng(5)
    entered, measured = [], {}
    for place, (label, seeds) in enumerate(systems):
        members = []
        each = []
        for seed in range(max(1, seeds)):
            config = RunConfig.model_validate({"run": {"seed": seed}})
            run = Run(Path("nowhere") / f"{label}{seed}", config) if seeds else None
            members.append(Member(label, label, run, "model" if seeds else None, config))
            ranks = np.minimum(ITEMS, 1 + generator.geometric(0.04 + 0.05 * place, USERS))
            texts = [[f"{said} {i}"] for i in range(USERS)] if seeds else None
            top = np.tile(np.arange(10), (USERS, 1))
            kind: Any = "policy" if seeds else "baseline"
            each.append(Measured(label, Ranking(ranks, np.ones(USERS, bool)), texts, kind, top))
        entered.append(System(label, tuple(members)))
        measured[label] = each
    about = {"remarks": [], "audit": {}, "test_openings": {}, "version": "1", "time": "now", "command": ["rl4rec"]}
    return Comparison(evaluation, dataset, entered, measured, about)


def test_every_pair_of_three_and_the_first_against_all_of_four(make_dataset: MakeDataset) -> None:
    three = comparison(make_dataset, ("a", 1), ("b", 1), ("c", 0))
    assert [(p["ours"], p["theirs"]) for p in three.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    four = comparison(make_dataset, ("a", 1), ("b", 1), ("c", 0), ("d", 1))
    assert [(p["ours"], p["theirs"]) for p in four.pairs] == [("a", "b"), ("a", "c"), ("a", "d")]
    assert "a against every other" in compare_page.tested_line(strict(four.as_json()))
    adjusted = holm([p["p_value"] for p in four.pairs])
    assert [p["p_holm"] for p in four.pairs] == adjusted.tolist()


def test_wins_losses_means_and_users_are_those_of_the_records(make_dataset: MakeDataset) -> None:
    report = comparison(make_dataset, ("a", 1), ("b", 3), ("c", 0)).as_json()
    records = report["records"]
    value = {label: np.array([ndcg(np.array(r["ranks"][label]), 10).mean() for r in records]) for label in "abc"}
    for label in "abc":
        assert report["methods"][label]["ndcg@10"] == pytest.approx(value[label].mean())
        low, high = report["intervals"][label]["ndcg@10"]
        assert 0 <= low < value[label].mean() < high <= 1
    for pair in report["pairs"]:
        gaps = value[pair["ours"]] - value[pair["theirs"]]
        assert pair["mean"] == pytest.approx(gaps.mean())
        assert pair["wins"] == (gaps > 1e-9).sum()
        assert pair["losses"] == (gaps < -1e-9).sum()
        assert pair["wins"] + pair["losses"] + pair["ties"] == USERS
    gaps = value["a"] - value["b"]
    assert [r["difference"] for r in records] == pytest.approx(gaps.tolist())
    shown = report["most_different"]
    assert [u["difference"] for u in shown["ours_better"]] == pytest.approx(sorted(gaps)[::-1][:10])
    assert [u["difference"] for u in shown["theirs_better"]] == pytest.approx(sorted(gaps)[:10])
    best = shown["ours_better"][0]
    record = next(r for r in records if r["user"] == best["user"])
    assert [one["rank"] for one in best["sides"]["b"]] == record["ranks"]["b"]
    assert best["sides"]["a"][0]["text"] == record["texts"]["a"][0]
    assert best["target"] == f"thing {record['target']}"


def test_users_who_tie_by_the_metric_are_told_apart_by_rank(make_dataset: MakeDataset) -> None:
    found = comparison(make_dataset, ("a", 1), ("b", 1))
    ours, theirs = np.full(USERS, 40), np.full(USERS, 40)
    theirs[:3] = (41, 59, 50)  # all beyond every cut-off
    for label, ranks in (("a", ours), ("b", theirs)):
        found.measured[label][0] = replace(found.measured[label][0], ranking=Ranking(ranks, np.ones(USERS, bool)))
    shown = found.most_different("a", "b")
    assert [u["user"] for u in shown["ours_better"]] == ["u1", "u2", "u0"]
    assert shown["theirs_better"] == []


def test_a_difference_between_single_runs_is_that_of_eval() -> None:
    ours, theirs = np.random.default_rng(0).random((2, 1, 50))
    found = paired(ours, theirs)
    assert found.pop("seeds") is None
    assert found == paired_difference(ours[0], theirs[0])._asdict()


def test_seeds_widen_the_interval_and_mirror() -> None:
    generator = np.random.default_rng(1)
    ours, theirs = generator.random((3, 40)) + 0.1, generator.random((1, 40))
    over = seeds_difference(ours, theirs[0])
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert (one["low"], one["high"], one["p_value"]) == (over.low, over.high, over.p_value)
    assert (other["low"], other["high"]) == (-over.high, -over.low)
    assert other["mean"] == pytest.approx(-over.mean)
    assert (one["wins"], one["losses"]) == (other["losses"], other["wins"])
    assert one["seeds"]["means"] == [-mean for mean in other["seeds"]["means"]]
    assert one["seeds"]["users_low"] == over.users_low == -other["seeds"]["users_high"]
    assert one["users_needed"] is None
    both = paired(ours, generator.random((3, 40)))
    assert both["seeds"]["count"] == 3
    alone = paired(ours[:, :1], theirs[:, :1])  # one user: nothing is known of others
    assert alone["p_value"] == 1


def test_equal_seeds_stand_in_the_same_rows(make_dataset: MakeDataset) -> None:
    found = comparison(make_dataset, ("a", 3), ("b", 3))
    seeds = {"a": (0, 1, 2), "b": (3, 2, 1)}
    found.systems = [
        System(
            c.label,
            tuple(
                replace(e, run=Run(Path("x"), RunConfig.model_validate({"run": {"seed": seed}})))
                for e, seed in zip(c.members, seeds[c.label], strict=True)
            ),
        )
        for c in found.systems
    ]
    a, b = (found.headline[label] for label in "ab")
    ours, theirs = found._aligned("a", "b")
    assert np.array_equal(ours, a[[1, 2, 0]])
    assert np.array_equal(theirs, b[[2, 1, 0]])


def test_the_same_values_in_another_order_tie() -> None:
    values = np.array([[0.1], [0.2], [0.3], [0.7]])
    orders = [values[list(order)] for order in itertools.permutations(range(4))]
    assert len({float(each.mean()) for each in orders}) > 1  # or there is nothing to hold here
    assert len({float(averaged(each)[0]) for each in orders}) == 1


def test_a_cut_off_log_line_and_rewards_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "training_log.jsonl").write_text(
        '{"phase": "sft", "step": 1, "loss": 2}\n{"step": 1, "avg_reward": 0.5}\n{"step": 2, "avg_reward": NaN}\n'
        '{"step": 3, "avg_reward": null}\n[1]\n{"step": 4, "avg_reward": 1}\n{"step": 5, "avg_re'
    )
    config = RunConfig()
    member = Member("a", "a", Run(tmp_path, config), "model", config)
    assert reward_curves(System("a", (member,))) == [{"run": "a", "steps": [1, 4], "values": [0.5, 1]}]


# The page.


def test_the_page_shows_everything_and_asks_for_nothing(make_dataset: MakeDataset) -> None:
    report = strict(comparison(make_dataset, ("a", 2), ("b", 2), ("c", 0)).as_json())
    report["rewards"] = {"a": [{"run": "a0", "steps": [1, 2, 3], "values": [0.1, 0.3, 0.2]}]}
    text = compare_page.as_html(report)
    found = check_page(text)
    assert found.tags.count("figure") == found.tags.count("svg") == 8
    assert found.tags.count("article") == 20
    assert "http:" not in text
    assert "https:" not in text
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    shown = " ".join(found.texts)
    for pair in report["pairs"]:
        assert f"{pair['mean']:+.4f}" in shown
    assert "Over seeds" in shown
    assert compare_page.as_html(report) == text  # the same result gives the same file


def test_hostile_titles_texts_and_names_stay_text(
    make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "_$x^2$ <b>&"
    report = comparison(make_dataset, (name, 1), ("b", 0), said=f"{HOSTILE}\x1b[2J\u202e", title=HOSTILE).as_json()
    report = strict(report)
    found = check_page(compare_page.as_html(report))
    whole = "".join(found.texts)
    assert HOSTILE in whole
    assert whole.count(name) > 5
    assert f"\u200a{name}" in whole  # in the plots: no formula, and not left out of a legend for its `_`
    assert "\x1b" not in whole
    assert "\u202e" not in whole

    text = compare_page.as_markdown(report)
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"(?<!\\)[`$]", text)
    assert not re.search(r"(?<!\\)://", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1

    print_comparison(report)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "Verdict: on 80 validation users" in printed


@pytest.mark.parametrize("ranks", [1, 60])
def test_nobody_differs(make_dataset: MakeDataset, ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(make_dataset, ("a", 1), ("b", 0))
    for label in "ab":
        flat = Ranking(np.full(USERS, ranks), np.ones(USERS, bool))
        found.measured[label][0] = replace(found.measured[label][0], ranking=flat)
    report = strict(found.as_json())
    assert report["verdicts"][0].endswith("(+0.0000 [+0.0000, +0.0000], p = 1).")
    assert "no difference shown from b" in report["verdicts"][0]
    check_page(compare_page.as_html(report))
    compare_page.as_markdown(report)
    print_comparison(report)
    assert "serves better" not in capsys.readouterr().out


# Who may be compared.


def make_run(folder: Path, name: str, *sets: str) -> str:
    """A run that was never trained: a folder with a configuration and an empty checkpoint."""
    given = [f"run.output_dir={folder}", f"run.name={name}", "retrieval.embedder=lsa"]
    given += ["data.synthetic.users=20", "data.synthetic.items=25"]
    config = load_config(algorithm="grpo", recipes=[], sets=[*given, *sets])
    run = create_run(config, dataset="toy")
    run.final.mkdir(parents=True)
    return str(run.folder)


def opened(*words: str, sets: tuple[str, ...] = (), dataset: str | None = None) -> tuple[list[System], RunConfig]:
    return open_systems(words, Overrides(sets=sets, dataset=dataset))


def check_opened(*words: str, sets: tuple[str, ...] = ()) -> None:
    systems, base = opened(*words, sets=sets)
    check_retrieval(systems, base.retrieval)


def test_runs_keep_their_settings_and_models_take_the_first_runs(tmp_path: Path, tiny_folder: Path) -> None:
    a = make_run(tmp_path, "a", "prompt.max_history=3", "policy.revision=abc", "generation.top_k=5")
    b = make_run(tmp_path, "b", "prompt.max_history=7")
    systems, base = opened("popularity", a, b, str(tiny_folder))
    assert [(c.label, c.kind) for c in systems] == [
        *(("popularity", "baseline"), ("a", "run"), ("b", "run"), (tiny_folder.name, "model"))
    ]
    histories = [c.members[0].config.prompt.max_history for c in systems]
    assert histories == [3, 3, 7, 3]
    model = systems[3].members[0].config
    assert (model.generation.top_k, model.policy.revision, model.policy.model) == (5, None, str(tiny_folder))
    assert base == systems[1].members[0].config
    assert differing_settings(systems) == {
        "prompt.max_history": {"a": "3", "b": "7"},
        "policy.revision": {"a": "abc", "b": "null"},
        "generation.top_k": {"a": "5", "b": "0"},
    }
    pinned = opened(a, str(tiny_folder), sets=("policy.revision=def",))[0][1].members[0].config
    assert pinned.policy.revision == "def"


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m-s0", "m-s1", "n-s0", "n-s1"):
        make_run(tmp_path / "runs", name, f"run.seed={name[-1]}")
    make_run(tmp_path / "other", "m-s0")
    monkeypatch.chdir(tmp_path)

    def labels(*words: str) -> list[str]:
        return [c.label for c in opened(*words)[0]]

    assert labels("runs/m-s1,runs/m-s0", "runs/n-s0,runs/n-s1") == ["m (2 seeds)", "n (2 seeds)"]
    assert labels("runs/n-s1,runs/m-s0", "bm25") == ["n-s1, m-s0 (2 seeds)", "bm25"]
    assert labels("runs/m-s0", "other/m-s0") == ["runs/m-s0", "other/m-s0"]
    step = tmp_path / "runs" / "m-s0" / "checkpoints" / "checkpoint_step_1"
    step.mkdir()
    assert labels("runs/m-s0", str(step)) == ["m-s0", "m-s0/checkpoint_step_1"]
    assert opened("runs/m-s1,runs/m-s0", "bm25")[0][0].seeds == [0, 1]
    Path(make_run(tmp_path, "a")).rename("a,b")  # a folder of this very name is no group
    assert labels("a,b", "bm25") == ["a,b", "bm25"]


@pytest.mark.parametrize(
    ("words", "error", "told", "hint"),
    [
        (["runs/a-s0"], ConfigError, "needs at least two, and runs/a-s0 is alone", "popularity"),
        (["runs/a-s0", "runs/a-s0"], ConfigError, "runs/a-s0 is named twice", ""),
        (["runs/a-s0", "runs/a-s0/checkpoints/checkpoint_final"], ConfigError, "are the same", ""),
        (["runs/a-s0,runs/a-s1", "runs/a-s0"], ConfigError, "runs/a-s0 is named twice", ""),
        (["runs/a-s0", "popularty"], RunError, "no run, model or baseline", "did you mean popularity?"),
        (["runs/a-s0", "runs/a-s2"], RunError, "no run, model or baseline", "runs/a-s1"),
        (["runs/a-s0", "a-s1"], RunError, "no run, model or baseline", "did you mean runs/a-s1"),
        (["runs/a-s0", "./x y"], RunError, "no run, model or baseline", "baselines: popularity"),
        (["runs/a-s0", "runs"], RunError, "runs: neither a run", ""),
        (["runs/a-s0", "untrained"], ConfigError, "belongs to a run", "checkpoint_start"),
        (["runs/a-s0", "runs/a-s0/checkpoints/checkpoint_step_9"], RunError, "no such checkpoint", "checkpoint_final"),
        (["popularity", "bm25"], ConfigError, "no dataset to compare on", "--dataset"),
        (["runs/a-s0,", "bm25"], ConfigError, "a name is missing beside a comma", ""),
        (["runs/a-s0,bm25", "sasrec"], ConfigError, "bm25: names with commas are several seeds", "by spaces"),
        (["runs/a-s0,runs/b-s0", "bm25"], ConfigError, "both have seed 0", "by spaces"),
        (["runs/a-s0,runs/a-s1", "runs/b-s0,runs/b-s1,runs/b-s2"], ConfigError, "a (2 seeds) against b (3", "as many"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    error: type[Exception],
    told: str,
    hint: str,
) -> None:
    for name in ("a-s0", "a-s1", "b-s0", "b-s1", "b-s2"):
        make_run(tmp_path / "runs", name, f"run.seed={name[-1]}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        opened(*words)
    assert told in str(caught.value)
    assert hint in (getattr(caught.value, "hint", "") or "")


def test_groups_that_differ_in_more_than_their_seed_are_told(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", "run.seed=1", "trainer.learning_rate=1e-3")
    b = make_run(tmp_path, "b", "run.seed=2", "trainer.learning_rate=1e-4", "policy.lora.r=4")
    systems, _ = opened(f"{a},{b}", "bm25")
    [remark] = mixed_groups(systems)
    assert remark == (
        "a, b (2 seeds): its runs differ in policy.lora, trainer.learning_rate too, not in their seed alone."
    )
    assert not mixed_groups(opened(a, b)[0])


def test_all_are_measured_on_one_dataset(tmp_path: Path) -> None:
    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.synthetic import synthesize

    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", "data.synthetic.users=30")
    with pytest.raises(ConfigError) as caught:
        shared_dataset(*opened(a, b))
    digests = [synthesize(users, 25, 0).digest[:12] for users in (20, 30)]
    for word in ("synthetic-20x25-s0", "synthetic-30x25-s0", b, *digests):
        assert word in caught.value.message
    assert "--dataset PATH" in (caught.value.hint or "")

    save_dataset(synthesize(20, 25, 0), tmp_path / "same")  # another place, the same data
    data, remarks = shared_dataset(*opened(a, b, dataset=str(tmp_path / "same")))
    assert data.digest[:12] == digests[0]
    assert remarks == [f"b was trained on synthetic-30x25-s0 (digest {digests[1]}), not on what is measured."]
    c = make_run(tmp_path, "c", "data.synthetic=null", f"data.path={tmp_path / 'gone'}")
    _, remarks = shared_dataset(*opened(a, c, dataset=str(tmp_path / "same")))
    assert remarks == ["c: the dataset it was trained on is not there to be compared."]


def test_all_are_ranked_alike(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", "retrieval.device=cpu")
    b = make_run(tmp_path, "b", "retrieval.lsa_dim=16", "retrieval.batch_size=3")
    with pytest.raises(ConfigError) as caught:
        check_opened(a, b)
    assert f"{a} and {b} rank by different retrieval settings: retrieval.lsa_dim 128 / 16" in caught.value.message
    assert "--set retrieval.lsa_dim=128" in (caught.value.hint or "")
    check_opened(a, b, sets=("retrieval.lsa_dim=32",))
    c = make_run(tmp_path, "c", "retrieval.embedder=sentence-transformers", "retrieval.model=some/model")
    with pytest.raises(ConfigError, match=r"retrieval\.embedder lsa / sentence-transformers"):
        check_opened(a, c)
    model = ("retrieval.embedder=sentence-transformers", "retrieval.model=some/model")
    d = make_run(tmp_path, "d", *model, "retrieval.dtype=bf16")
    with pytest.raises(ConfigError, match=r"different retrieval settings: retrieval\.dtype fp32 / bf16$"):
        check_opened(c, d)


# In a browser.


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_draws_the_page_and_has_nothing_to_say(
    make_dataset: MakeDataset, tmp_path: Path, width: int, scheme: str
) -> None:
    report = strict(comparison(make_dataset, ("a", 1), ("b", 1), ("c", 0), said=HOSTILE, title=HOSTILE).as_json())
    report["rewards"] = {"a": [{"run": "a0", "steps": [1, 2, 3], "values": [0.1, 0.3, 0.2]}]}
    file = tmp_path / "page.html"
    file.write_text(compare_page.as_html(report), encoding="utf-8")
    found = draw_quietly(file, width, scheme)
    assert found.tags.count("svg") == 8
    assert "script" not in found.tags

    pixels = screenshot(file, width, scheme)
    assert tuple(pixels[0, 0]) == BACKGROUNDS[scheme]
    for colour in COLOURS[scheme][:3]:  # the bars of the three systems
        assert (pixels == colour).all(axis=2).sum() > 500, colour
