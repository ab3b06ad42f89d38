"""What a model makes of each user's history, as prompts for `prompts.json`.

Decides: what is read (by default only what comes before the training target, so that a text gives no target away), how
the answer becomes a prompt, and that a job that was ended goes on where it stood.
Hides: the texts written so far, in `FILE.part`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.data.dataset import open_dataset
from rl4rec_cli.data.parsing import text_flaw
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.eval.evaluate import audit_line
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.prompting import check_model
from rl4rec_cli.runs import JsonLines, check_writable, write_json

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example

REQUEST = (
    "A customer chose these products, oldest first:\n{history}\n"
    "Describe in two sentences what this customer likes: kinds of products, brands and properties."
)
FRAME = "Describe in a few words the product that a customer will choose next. What is known of the customer: {summary}"
"""What matters comes first: a prompt that is too long is cut at its end."""
_CHUNKS = {"transformers": 256, "vllm": 4096}
"""Texts between two savings: an engine is kept busy by many."""


def write_summaries(
    config: RunConfig,
    file: str,
    *,
    split: Any,
    users: int | None,
    templates: Sequence[str],
    as_json: bool,
) -> None:
    """Write `{user: prompt}`; a user of whom nothing was written is left out, and so gets the template.

    Args:
        file: to write. `FILE.part` holds what is done; the same command goes on from it.
        split: whose targets no text may know: each is written from what comes before this split's target.
        templates: what the model is asked, with `{history}` (else `REQUEST`), and the prompt that is made of the
            answer, with `{summary}` (else `FRAME`).

    Raises:
        ConfigError: FILE exists, or FILE.part is of other settings; a template that is neither; an untrained model.
        DataError, PolicyError, EngineError: as in evaluation; what was written until then is kept.
    """
    request, frame = _request_and_frame(templates)
    check_model(config, "--summaries")
    path = Path(file)
    check_writable(path)
    if path.exists():
        raise ConfigError(f"{path} exists", hint="move it away, or name another file")
    whole = open_dataset(config.data)
    dataset = replace(whole, prompts={})  # the model is asked, whatever prompts there are
    examples = choose_examples(dataset, split, users)

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.retrieval.embedding import model_identity

    check_engine(config)
    prepare_backend(config.policy)
    section = config.prompt.of(dataset.name).model_copy(update={"template": request})
    about = {
        "dataset": dataset.digest,
        "model": model_identity(config.policy.model),
        "load": config.policy.model_dump(mode="json"),
        "prompt": section.model_dump(mode="json"),
        "generation": config.generation.model_dump(mode="json"),
        "temperature": config.eval.temperature,
        "seed": config.run.seed,
        "split": split,
        "users": users,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    part = path.with_name(path.name + ".part")
    with _held(part):
        done = _read_part(part, digest)
        if done:
            console.log(f"{part}: {len(done):,} of {len(examples):,} are written already")
        _write_rest(config, dataset, examples[len(done) :], section, part, digest, done)
        prompts = {
            example.user: frame.replace("{summary}", summary)
            for example, summary in zip(examples, done, strict=True)
            if text_flaw(summary) is None
        }
        if not prompts:
            part.unlink()
            raise RunError(
                f"{config.policy.model} wrote nothing of any user", hint="another model, or ask otherwise (--template)"
            )
        write_json(path, prompts)
        part.unlink()
    short = len(dataset.users) - len(examples) if users is None else 0
    left_out = {"too_short_a_history": short, "nothing_written": len(examples) - len(prompts)}
    line = audit_line(config, replace(whole, prompts=prompts), None)
    if as_json:
        console.print_json({"file": str(path), "users": len(prompts), "left_out": left_out, "audit": line})
        return
    console.result(str(path))
    console.log(
        f"prompts of {len(prompts):,} users; left out: {short:,} whose sequence is too short for the {split} split, "
        f"{left_out['nothing_written']:,} of whom nothing was written"
    )
    if split != "train":
        console.log(
            f"warning: they are written with the targets before the {split} split's in sight: use them for it alone"
        )
    live = Path(next(iter(config.data.paths))) / "prompts.json"
    if path.absolute() != live.absolute():
        console.log(f"to use them: copy {path} to {live}")


def _request_and_frame(templates: Sequence[str]) -> tuple[str, str]:
    given = {"{history}": REQUEST, "{summary}": FRAME}
    for template in templates:
        fields = [field for field in given if field in template]
        if len(fields) != 1:
            raise ConfigError(
                f"--template {template!r}: must contain {{history}} (what is asked) or {{summary}} (the prompt made of "
                "the answer), and not both"
            )
        given[fields[0]] = template
    return given["{history}"], given["{summary}"]


@contextmanager
def _held(part: Path) -> Iterator[None]:
    """Nobody else writes to the file meanwhile.

    Raises:
        RunError: another process does, or it cannot be written.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("a")
    except OSError as error:
        raise RunError(f"{part}: cannot write it: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{part}: another process writes to it, or it cannot be locked ({error.strerror or error})",
                hint="wait for it to end, or stop it",
            ) from error
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:  # nothing was begun
                part.unlink()


def _read_part(part: Path, digest: str) -> list[str]:
    """The summaries written so far, in the order of the examples.

    Raises:
        ConfigError: they were written with other settings.
    """
    lines = part.read_text(encoding="utf-8").split("\n")
    whole, cut = lines[:-1], lines[-1]
    try:
        records = [json.loads(line) for line in whole]
        if records and records[0]["settings"] != digest:
            raise ConfigError(
                f"{part} was written with another dataset, model or settings", hint="delete it, or name another file"
            )
        done = [summary for record in records[1:] for summary in record["summaries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{part} is damaged: {error}", hint="delete it") from error
    if cut:  # what was being written when the job was ended
        part.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return done


def _write_rest(
    config: RunConfig,
    dataset: Dataset,
    examples: Sequence[Example],
    section: Any,
    part: Path,
    digest: str,
    done: list[str],
) -> None:
    """Append the summaries of `examples` to `done` and to the file, some at a time."""
    if not examples:
        return
    from transformers import set_seed

    from rl4rec_cli.policy.generation import Sampling, generate_texts
    from rl4rec_cli.policy.loading import load_policy
    from rl4rec_cli.policy.vllm_engine import make_engine

    policy = load_policy(config.policy, dataset=dataset, seed=config.run.seed)
    policy.engine = make_engine(config)
    log = None
    try:
        try:
            builder = PromptBuilder(section, dataset, policy.tokenizer)
        except ConfigError as error:  # the request takes the template's place
            said = [text and text.replace("prompt.template", "what is asked") for text in (error.message, error.hint)]
            raise ConfigError(said[0] or "", hint=said[1]) from error
        sampling = Sampling.from_section(config.generation, temperature=config.eval.temperature)
        log = JsonLines(part)
        if not part.stat().st_size:
            log.write({"settings": digest})
        size = _CHUNKS[config.generation.engine]
        with console.progress(len(examples), "Writing summaries") as advance:
            for start in range(0, len(examples), size):
                some = examples[start : start + size]
                prompts = [builder.build(example.user, example.history).ids for example in some]
                set_seed(config.run.seed + len(done))  # the same texts, wherever an earlier job was ended
                texts = generate_texts(policy, prompts, sampling, batch_size=config.eval.batch_size, progress=advance)
                # One line, whatever the model's paragraphs: it stands inside another text.
                summaries = [" ".join(text.split()) for text in texts]
                log.write({"summaries": summaries})
                done += summaries
    finally:
        if log is not None:
            log.close()
        policy.close()
