"""`data.fit=train_and_validation`: everything trained sees the validation targets, nothing measures them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands import catalogue
from rl4rec_cli.commands.compare import compare
from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.recommend import recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection, RunConfig
from rl4rec_cli.data.dataset import Dataset, Example, build_examples, count_train_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.provenance import check_unseen
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.baselines import open_transitions, training_counts
from rl4rec_cli.eval.hybrids import Fusion, last_item
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.eval.sasrec import SasRecSettings, open_sasrec
from rl4rec_cli.eval.scoring import Task
from rl4rec_cli.retrieval.opening import open_retriever

SMALL = SasRecSettings(hidden_size=16, layers=1, heads=1, rounds=4, min_steps=8, patience=4, batch_positions=64)


def _config(folder: Path, name: str, *more: str, algorithm: str = "retriever") -> RunConfig:
    sets = [
        *("data.synthetic.users=40", "data.synthetic.items=30", "trainer.batch_size=8", "trainer.max_steps=6"),
        *("eval.baselines=[transitions]", f"run.output_dir={folder}", f"run.name={name}", "eval.cache_dir=null"),
        *("data.fit=train_and_validation", *more),
    ]
    return load_config(algorithm=algorithm, recipes=["quick-test"], sets=sets)


def test_the_training_part_ends_before_the_last_item(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(sequences=[[0, 1, 2, 3, 4], [5, 4, 3]])
    both = replace(dataset, fit="train_and_validation")
    assert both.training_parts == ((0, 1, 2, 3), (5, 4))
    assert dataset.training_parts == ((0, 1, 2), (5,))
    assert [(e.history, e.target) for e in build_examples(both, "train")] == [((0, 1, 2), 3), ((5,), 4)]
    assert len(build_examples(both, "train", train_targets="all")) == sum(count_train_examples(both, "all")) == 4
    assert build_examples(both, "test") == build_examples(dataset, "test")
    with pytest.raises(DataError, match="no validation split"):
        build_examples(both, "validation")
    assert both.digest != dataset.digest
    assert both.items_digest() == dataset.items_digest()
    counts = training_counts(both) - training_counts(dataset)
    assert counts.tolist() == np.bincount([3, 4], minlength=6).tolist()


def test_everything_leaves_nothing_to_measure(make_dataset: Callable[..., Dataset]) -> None:
    dataset = replace(make_dataset(sequences=[[0, 1, 2, 3, 4], [5, 4, 3]]), fit="everything")
    assert dataset.training_parts == dataset.sequences
    assert [(e.history, e.target) for e in build_examples(dataset, "train")] == [((0, 1, 2, 3), 4), ((5, 4), 3)]
    assert len({replace(dataset, fit=fit).digest for fit in ("train", "train_and_validation", "everything")}) == 3
    for split in ("validation", "test"):
        with pytest.raises(DataError, match="nothing is held out to be measured on"):
            build_examples(dataset, split)  # type: ignore[arg-type]


def test_a_retriever_of_everything_recommends_and_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that `recommend` prints for a run that knows less."""
    (first,) = train(_config(tmp_path, "first", "data.fit=train"))
    capsys.readouterr()
    [answer] = recommend(first.run.folder, users=["u3"], k=3)
    assert answer.fitted_on == "train"
    said = capsys.readouterr().err
    command_line = next(line for line in said.splitlines() if "On everything that is known: " in line)
    words = shlex.split(command_line.partition("On everything that is known: ")[2])
    assert main(words[1:]) == 0
    run = tmp_path / "first-everything"
    said = capsys.readouterr().err
    assert "the validation and test targets are trained on" in said
    assert "--split test" not in said
    capsys.readouterr()
    [answer] = recommend(
        run, users=["u3"], k=3, fuse="transitions", sets=["eval.fuse_weights={trained retriever: 0.6}"]
    )
    assert (answer.fitted_on, answer.as_json()["fitted_on"]) == ("everything", "everything")
    assert "Fitted on everything that is known" in capsys.readouterr().err
    retrievers = [
        load_file(folder / "checkpoints" / "checkpoint_final" / "retriever.safetensors")["text.weight"]
        for folder in (first.run.folder, run)
    ]
    assert not torch.equal(*retrievers)
    for attempt in (
        lambda: evaluate(run, Overrides(split="test")),
        lambda: evaluate(run),
        lambda: evaluate(first.run.folder, Overrides(split="test", sets=["data.fit=everything"])),
        lambda: compare([run, "popularity"], Overrides(split="test")),
    ):
        with pytest.raises(DataError, match="nothing is held out to be measured on"):
            attempt()
    on_test = Overrides(split="test", sets=["data.fit=train"])
    openings = run / "test_openings.jsonl"
    for attempt in (
        lambda: evaluate(run, on_test),
        lambda: evaluate(run, Overrides(sets=["data.fit=train"])),
        lambda: compare([first.run.folder, run], on_test),
        lambda: compare([run / "checkpoints" / "checkpoint_start", "popularity"], on_test),
    ):
        with pytest.raises(DataError, match=r"(test|validation) targets cannot be measured with .*data.fit=everything"):
            attempt()
    assert not openings.exists()


def test_what_began_with_a_model_of_the_targets_is_not_measured_on_them(tmp_path: Path) -> None:
    more = ("trainer.warm_start=null", "trainer.num_generations=2", "trainer.max_steps=1", "eval.users=10")
    (both,) = train(_config(tmp_path, "both", *more, algorithm="grpo"))
    starts = f"policy.model={both.run.final}"
    with pytest.raises(DataError, match="validation targets cannot be measured with"):
        train(_config(tmp_path, "validates", *more, starts, "data.fit=train", algorithm="grpo"))
    assert not (tmp_path / "validates").exists()
    dataset = open_dataset(both.run.config.data)
    check_unseen(dataset, "test", [str(both.run.final)])  # of which it has seen nothing
    check_unseen(replace(dataset, items=dataset.items[::-1]), "validation", [str(both.run.final)])  # other data
    (everything,) = train(_config(tmp_path, "on", *more, starts, "data.fit=everything", algorithm="grpo"))
    (later,) = train(_config(tmp_path, "later", *more, f"policy.model={everything.run.final}", algorithm="grpo"))
    with pytest.raises(DataError, match=f"{everything.run.final}.*data.fit=everything"):
        evaluate(later.run.folder, Overrides(split="test"))


def test_a_hybrid_recommends_by_a_sequence_model_that_knows_everything() -> None:
    dataset = synthesize(60, 40, 3)
    retriever = open_retriever(RetrievalSection(embedder="lsa", device="cpu"), dataset)
    task = Task(dataset, retriever, ())
    fitted: list[str] = []

    def open_scores(task: Task) -> object:
        fitted.append(task.dataset.fit)
        return open_transitions(task)

    hybrid = Fusion("transitions", open_scores).open_hybrid(last_item(task), task)  # type: ignore[arg-type]
    assert fitted == ["train", "everything"]
    example = Example("", dataset.sequences[0], 0)
    ids, more = hybrid.sequence_scores([example]).extra(0)  # type: ignore[union-attr]
    followers = [other for row in dataset.sequences for one, other in pairwise(row) if one == example.history[-1]]
    assert dict(zip(ids.tolist(), more.tolist(), strict=True)) == Counter(followers)
    with_everything = replace(dataset, fit="everything")
    assert (
        open_sasrec(with_everything, cache_dir=None, settings=SMALL).summary["rounds"]
        == (open_sasrec(dataset, cache_dir=None, settings=SMALL).summary["best_round"])
    )


def test_sasrec_trains_as_long_as_validation_chose(tmp_path: Path) -> None:
    dataset = synthesize(60, 40, 3)
    both = replace(dataset, fit="train_and_validation")
    chosen = open_sasrec(dataset, cache_dir=tmp_path, settings=SMALL)
    fitted = open_sasrec(both, cache_dir=tmp_path, settings=SMALL)
    assert fitted.summary["rounds"] == chosen.summary["best_round"]
    assert fitted.summary["validation_users"] == 0
    assert not torch.equal(fitted.items_ND, chosen.items_ND)
    # Planted: other test targets change nothing.
    planted = replace(both, sequences=tuple((*row[:-1], (row[-1] + 5) % 40) for row in both.sequences))
    assert torch.equal(open_sasrec(planted, cache_dir=None, settings=SMALL).items_ND, fitted.items_ND)


def test_the_retriever_learns_from_validation_targets_and_never_from_test_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "checkpoints" / "checkpoint_final" / "retriever.safetensors")

    config = _config(tmp_path, "both")
    (run,) = train(config)
    assert run.evaluations == {}
    assert not (run.run.folder / "validation_log.jsonl").exists()
    assert "--split test" in capsys.readouterr().err
    dataset = open_dataset(config.data)
    for name, changed in (("test", -1), ("validation", -2)):
        rows = [list(row) for row in dataset.sequences]
        for row in rows:
            row[changed] = (row[changed] + 7) % 30
        planted = replace(dataset, sequences=tuple(map(tuple, rows)))
        monkeypatch.setattr(catalogue, "open_datasets", lambda section, planted=planted: [planted])
        train(_config(tmp_path, name))
    monkeypatch.undo()
    first, same, other = weights("both"), weights("test"), weights("validation")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["text.weight"], other["text.weight"])

    with pytest.raises(DataError, match="no validation split"):
        evaluate(run.run.folder)
    evaluation = evaluate(run.run.folder, Overrides(split="test"))
    assert evaluation.about["fit"] == "train_and_validation"
    assert {method.name for method in evaluation.methods} >= {"transitions", "trained retriever"}
    assert train(config, resume=run.run.folder) == []


def test_a_policy_is_trained_so_too(tmp_path: Path) -> None:
    more = ("trainer.warm_start=null", "trainer.num_generations=2", "trainer.max_steps=2")
    (run,) = train(_config(tmp_path, "policy", *more, algorithm="grpo"))
    assert run.evaluations == {}
    evaluation = evaluate(run.run.folder, Overrides(split="test", users=10, sets=["eval.probes=false"]))
    assert {method.name for method in evaluation.methods} == {"transitions", "tuned policy"}
