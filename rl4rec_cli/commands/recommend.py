"""One history in, a text and the best items out.

Decides: which items typed titles mean, and how an answer reads.
Hides: loading of the run.
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
    """A run's policy with its catalogue; `answer` may be called again and again."""

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
        """The policy's text and its `k` best items, history left out.

        Raises:
            DataError: the text says nothing the embedder knows.
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
        """The items that typed texts mean, each one title or several with semicolons.

        Raises:
            DataError: nothing in the catalogue is like one of them.
        """
        return [self._match(title) for text in texts for title in self._titles.split(text)]

    def _match(self, title: str) -> int:
        """The item a typed title means: the same title, else the one most like it by embedding."""
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
    """The recommender of a run folder or one of its checkpoints.

    Args:
        dataset: which of a run's several datasets, by name or folder.
        users: whom it is for; one who is unknown is found out before anything is loaded.
        sets: settings other than the run's, as `KEY=VALUE`.
        checkpoint: which one of a run's, see `find_checkpoint`.

    Raises:
        RunError: not a run. DataError: no such user. ConfigError: several datasets, and none is chosen; a setting that
            is none.
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
    """`rl4rec recommend`: answer for users of the dataset, for titles, or for whatever is typed.

    A user's history is the whole sequence: what is recommended comes after everything that is known.

    Args:
        is_list: answers are a list, whose JSON has one line for each user.

    Raises:
        DataError: no answer; of several users' answers, those that there are come out first.
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
    """The prompt for `input`, which writes to standard output: that is for answers where it is no terminal."""
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
