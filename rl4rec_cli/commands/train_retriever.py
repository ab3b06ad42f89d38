"""One run that trains a retriever, from the encoder's vectors to its table.

Decides: the order of the steps, and that the result is the best measurement of validation users.
Hides: the network and its files (`retrieval/trained.py`), and how it is trained (`train/algorithms/retriever.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rl4rec_cli import console
from rl4rec_cli.commands.run_checks import check_settings
from rl4rec_cli.commands.train_policy import telling_how_to_go_on
from rl4rec_cli.commands.trained_run import TrainedRun
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.runs.folder import TRAINING_LOG, Run
from rl4rec_cli.runs.making import create_run
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.train.arguments import resolve_precision
from rl4rec_cli.train.checkpoints import Place, cut_logs
from rl4rec_cli.train.environments import Histories
from rl4rec_cli.train.examples import training_examples
from rl4rec_cli.train.trackers import Reports, open_reports

if TYPE_CHECKING:
    from rl4rec_cli.commands.trained_run import CatalogueData, Show
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.trained import TrainedRetriever


def check(config: RunConfig, datasets: Sequence[Dataset], *, is_new: bool) -> None:
    """Raises the errors that would otherwise end the run later, after the items are embedded.

    Raises:
        ConfigError: several datasets; see also `run_checks.check_settings`.
        EmbeddingError: the encoder's folder cannot be used.
    """
    from rl4rec_cli.retrieval.embedder import find_embedder

    if len(datasets) > 1:
        names = ", ".join(dataset.name for dataset in datasets)
        raise ConfigError(
            f"a retriever is trained on one dataset, and {len(datasets)} are named: {names}",
            hint="its items have vectors of their own, which no other catalogue shares: train one for each",
        )
    check_settings(config, datasets, is_new=is_new)
    find_embedder(config.retrieval).check()
    section = cast("RetrieverSection", config.trainer)
    if section.tunes_encoder:
        from rl4rec_cli.retrieval.embedders.models import check_tunable

        check_tunable(config.retrieval)
        examples = training_examples(config.training_data, datasets[0], seed=config.run.seed)
        if len({example.user for example in examples}) < 2:
            raise ConfigError(
                f"dataset {datasets[0].name} has one user to train on: negatives are what other users chose",
                hint="train on more users (data.train_users), or a projection: trainer.kind=projection",
            )


def announce(config: RunConfig) -> None:
    """Logs what becomes of an encoder that is no model."""
    from rl4rec_cli.retrieval.embedder import find_embedder

    if find_embedder(config.retrieval).model is None:
        console.log(
            f"Embedder {config.retrieval.embedder} is no model: the retriever ranks for histories, but no other run "
            "can embed its texts by it (that takes retrieval.embedder=sentence-transformers)"
        )


def prepare(config: RunConfig, *, is_new: bool) -> None:
    """Silences the libraries."""
    console.quiet_libraries()


def train_one(
    config: RunConfig,
    data: CatalogueData,
    show: Show,
    run: Run | None = None,
    place: Place | None = None,
    *,
    allow_partial: bool = False,
) -> TrainedRun:
    """Trains and measures. A resumed run starts at `place`, and is locked already."""
    from transformers import set_seed

    from rl4rec_cli.eval.baseline import open_baselines
    from rl4rec_cli.retrieval.trained_opening import open_trained
    from rl4rec_cli.train.outcome import Outcome

    start_time = time.perf_counter()
    (dataset,) = data.datasets
    encoder = data.retrievers[dataset.name]
    users = training_examples(config.training_data, dataset, seed=config.run.seed)
    histories = Histories(dataset, encoder, users)
    set_seed(config.run.seed)
    retriever = open_trained(config, dataset, encoder)
    resolve_precision(config.trainer, str(retriever.device))
    outcome = Outcome(config, [histories], data.audits)
    with ExitStack() as stack:
        if run is None:
            run = create_run(config, dataset=dataset.name, digest=data.digest, datasets=data.digests)
            stack.enter_context(run.locked())
        stack.enter_context(telling_how_to_go_on(run, retriever))
        reports = stack.enter_context(open_reports(run, done=place.step if place is not None else 0))
        console.log(f"Run {run.folder} (seed {config.run.seed}, {retriever.about})")
        outcome.measure_baselines()
        if any(baseline.is_start for baseline in open_baselines(config.eval.baselines)):
            outcome.measure(config.trainer.start_name, retriever)
        if not run.start.is_dir():
            retriever.write(run.start)
        _learn(run, place or Place(0), retriever, histories, reports)
        outcome.measure(config.trainer.tuned_name, retriever)
        outcome.finish(run)
        trained_run = TrainedRun(run, outcome.evaluations, data.datasets, time.perf_counter() - start_time)
        outcome.show_and_save(run, reports, partial(show, trained_run))
    return trained_run


def _learn(run: Run, place: Place, retriever: TrainedRetriever, histories: Histories, reports: Reports) -> None:
    """Trains, from `place` on, until `checkpoint_final` exists, and leaves its weights in the retriever."""
    from rl4rec_cli.train.phase import train_phase
    from rl4rec_cli.train.prolonging import write_final
    from rl4rec_cli.train.validation import Validation

    config = run.config
    cut_logs(run, [config.trainer.algorithm], place)
    if place.phase:
        retriever.load(run.final)
        return
    log, rollouts = JsonLines(run.folder / TRAINING_LOG, also=reports.step), JsonLines(run.folder / "rollouts.jsonl")
    try:
        validation = Validation(run, retriever, [histories], report=reports.validation)
        steps, _ = train_phase(
            config.trainer, run, retriever, [histories], log, rollouts, resume=place.checkpoint, validation=validation
        )
    finally:
        log.close()
        rollouts.close()
    if run.best.is_dir():
        retriever.load(run.best)
        console.log(f"The retriever is that of the {validation.best_line()}")

    def write_model(folder: Path) -> None:
        if retriever.has_model:
            retriever.write_model(folder)

    write_final(retriever, run, steps=steps, beside=write_model)
    if retriever.has_model:
        embedder = [word for text in settings_of_others(run, retriever) for word in ("--set", text)]
        dataset = [word for path in config.data.paths for word in ("--dataset", path)]
        console.log(f"For other runs: {rl4rec('train', 'grpo', *dataset, *embedder)}")


def settings_of_others(run: Run, retriever: TrainedRetriever) -> list[str]:
    """Returns the settings by which another run embeds texts as this retriever was trained to."""
    own = {"emb_type": run.config.retrieval.emb_type, "query_prompt": retriever.reads.get("query_prompt", "")}
    # The embedder is named, too: the recipe of a machine without a GPU has one that reads no model.
    return [
        "retrieval.embedder=sentence-transformers",
        f"retrieval.model={run.final}",
        *(
            f"retrieval.{name}={json.dumps(value)}"
            for name, value in own.items()
            if value != RetrievalSection.model_fields[name].default
        ),
    ]
