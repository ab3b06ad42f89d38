"""Recommend for one history: the policy's text and the best items.

Decides: which items typed titles mean, and how an answer is printed.
Hides: how the run is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.dates import with_day
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.data.provenance import changed_data, is_own_data
from rl4rec_cli.data.titles import TitleIndex
from rl4rec_cli.errors import ConfigError, DataError, Rl4RecError, RunError
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.resolve import Overrides, find_run, resolve_target

if TYPE_CHECKING:
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever


@dataclass(frozen=True)
class Recommender:
    """A run's policy with its catalogue. It stays loaded between calls of `answer`."""

    policy: Policy
    builder: PromptBuilder
    retriever: VectorRetriever
    dataset: Dataset
    sampling: Sampling
    checkpoint: Mapping[str, Any]
    """What is known of the checkpoint that writes."""
    warning: str | None = None
    """What differs between the data that are there and those it was trained on."""

    def answer(self, history: Sequence[int], *, k: int, user: str | None = None) -> dict[str, Any]:
        """Returns the policy's text and its `k` best items, without the history.

        Raises:
            DataError: the text is unscorable.
        """
        from rl4rec_cli.policy.generation import generate_texts

        prompt = self.builder.build(user, history)
        text = generate_texts(self.policy, [prompt.ids], self.sampling, batch_size=1)[0]
        if not text:
            raise DataError("the policy wrote an empty text for this history", hint="try another checkpoint or history")
        matches = self.retriever.search([text], k, [list(history)] if self.dataset.mask_history else None)[0]
        if matches.items and not any(matches.scores):
            raise DataError(
                f"the policy wrote {text!r}, of which the embedder knows nothing",
                hint="try another checkpoint or history",
            )
        return {
            "checkpoint": self.checkpoint["name"],
            **({"warning": self.warning} if self.warning else {}),
            "history": [self._item(i) for i in history],
            "text": text,
            "items": [
                {"rank": rank, "score": round(score, 6), **self._item(i)}
                for rank, (i, score) in enumerate(zip(matches.items, matches.scores, strict=True), start=1)
            ],
        }

    @cached_property
    def _titles(self) -> TitleIndex:
        return TitleIndex([str(item["title"]) for item in self.dataset.items])

    def read_history(self, texts: Iterable[str]) -> list[int]:
        """Returns the items that typed texts mean. A text holds one title, or several with semicolons between them.

        Raises:
            DataError: no item in the catalogue is similar to a title.
        """
        return [self._match(title) for text in texts for title in self._titles.split(text)]

    def _match(self, title: str) -> int:
        """Returns the item with the typed title, else the one whose embedding is most similar."""
        exact = self._titles.find(title)
        if exact is not None:
            return exact
        matches = self.retriever.search([title], 1)[0]
        if not matches.items or matches.scores[0] <= 0:
            raise DataError(f"no item of {self.dataset.name} is like {title!r}")
        return matches.items[0]

    def _item(self, item: int) -> dict[str, Any]:
        return {"item_id": item, "title": self.dataset.items[item]["title"]}


def open_recommender(
    target: str,
    *,
    users: Sequence[str] = (),
    dataset: str | None = None,
    sets: Sequence[str] = (),
    checkpoint: str | None = None,
) -> Recommender:
    """Opens the recommender of a run folder or of one of its checkpoints.

    Args:
        dataset: one of the run's datasets, by name or folder.
        users: the users to recommend for. An unknown one is refused before anything is loaded.
        sets: settings other than the run's, as `KEY=VALUE`.
        checkpoint: one of the run's checkpoints, see `find_checkpoint`.

    Raises:
        RunError: the folder is not a run.
        DataError: a user does not exist.
        ConfigError: the run has several datasets and none is chosen, or a setting does not exist.
    """
    run_and_folder = find_run(target, checkpoint)
    if run_and_folder is None:
        raise RunError(f"{target}: not a run folder or a checkpoint of one", hint="runs are made by `rl4rec train`")
    run, folder = run_and_folder
    _, _, config = resolve_target(target, Overrides(sets=sets, dataset=dataset, checkpoint=checkpoint))
    if not is_own_data(run, config.data):
        data_name = ", ".join(config.data.paths) or "other synthetic data"
        raise ConfigError(f"{data_name}: the run was not trained on it", hint="recommend knows a run's own items")
    data = open_dataset(config.data)
    for user in users:
        data.user_index(user)

    from rl4rec_cli.policy.backend import check_engine, prepare_backend

    check_engine(config)
    prepare_backend(config.policy)
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.policy.opening import open_policy
    from rl4rec_cli.retrieval.opening import FIRST_WAIT, open_retriever

    check_tokenizer(config.policy.model_copy(update={"model": folder}))  # before the minutes of embedding
    retriever = open_retriever(config.retrieval, data, config.data.paths, first_wait=FIRST_WAIT)
    policy = open_policy(config, data, model=folder)
    config = with_day(config, policy.tokenizer, started=run.day)
    return Recommender(
        policy=policy,
        builder=PromptBuilder(config.prompt, data, policy.tokenizer),
        retriever=retriever,
        dataset=data,
        sampling=Sampling.from_section(config.generation, temperature=config.eval.temperature),
        checkpoint=describe_checkpoint(run, Path(folder)),
        warning=changed_data(run, config.data, data),
    )


def recommend(
    run: str,
    *,
    users: Sequence[str],
    is_list: bool,
    titles: Sequence[str],
    dataset: str | None,
    k: int,
    sets: Sequence[str],
    as_json: bool,
    interactive: bool,
    checkpoint: str | None = None,
) -> None:
    """Answers for users of the dataset, for titles, or for what the user types: `rl4rec recommend`.

    A user's history is the whole sequence: recommendations come after everything that is known.

    Args:
        is_list: print a list of answers, as JSON with one line for each user.

    Raises:
        DataError: there is no answer. With several users, the answers that exist are printed first.
    """
    recommender = open_recommender(run, users=users, dataset=dataset, sets=sets, checkpoint=checkpoint)
    console.log(checkpoint_line(recommender.checkpoint))
    if recommender.warning:
        console.log(f"Warning: {recommender.warning}")
    if interactive:
        console.log("Titles chosen so far, oldest first, separated by semicolons. An empty line ends.")
        for line in _lines():
            try:
                _show(recommender.answer(recommender.read_history([line]), k=k), as_json=as_json)
            except Rl4RecError as error:
                console.log(f"error: {error.message}")
        return
    if not users:
        _show(recommender.answer(recommender.read_history(titles), k=k), as_json=as_json)
        return
    failures: list[DataError] = []
    for user in users:
        history = list(recommender.dataset.sequences[recommender.dataset.user_index(user)])
        try:
            answer = recommender.answer(history, k=k, user=user)
        except DataError as error:
            if not is_list:
                raise
            console.log(f"error: user {console.clean(user)}: {error.message}")
            failures.append(error)
            continue
        if is_list and as_json:
            console.result(json.dumps({"user": user, **answer}, ensure_ascii=False, allow_nan=False))
            continue
        if is_list:
            console.result(f"# user {console.clean(user)}")
        _show(answer, as_json=as_json)
    if failures:
        raise DataError(f"{len(failures):,} of {len(users):,} users have no answer", hint=failures[0].hint)


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input(_prompt())
        except EOFError:
            return
        if not line.strip("; \t"):
            return
        yield line


def _prompt() -> str:
    """Returns the prompt for `input`, which prints on standard output: off a terminal only answers belong there."""
    if console.is_terminal(sys.stdout):
        return "> "
    print("> ", end="", file=sys.stderr, flush=True)
    return ""


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(answer)
        return
    console.table("History", ["item", "title"], [[i["item_id"], i["title"]] for i in answer["history"]])
    console.result(f"\nText: {console.clean(answer['text'])}\n")
    rows = [[i["rank"], i["item_id"], f"{i['score']:.4f}", i["title"]] for i in answer["items"]]
    console.table("Recommended", ["rank", "item", "score", "title"], rows)
