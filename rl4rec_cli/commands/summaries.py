"""Let a model summarise each user's history, as prompts for `prompts.json`.

Decides: what the model reads (by default only what comes before the training target, so that it sees no target); how
the answer becomes a prompt; what the user learns before using the texts; that a job resumes where it was interrupted.
Hides: `FILE.part`, which holds the texts written so far.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands.prompts import check_model, lost_items, make_prompts
from rl4rec_cli.data.audit.audit import audit_as_configured
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.parsing import text_flaw
from rl4rec_cli.data.prompts import PromptBuilder, TemplateTooLongError
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.files.digests import sha256_of_json
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.files.parts import held, part_of
from rl4rec_cli.files.reading import read_bytes
from rl4rec_cli.files.writing import check_writable, write_json

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import PromptSection, RunConfig
    from rl4rec_cli.data.audit.audit import Finding
    from rl4rec_cli.data.dataset import Dataset, Example

REQUEST = (
    "A customer chose these products, oldest first:\n{history}\n"
    "Describe in two sentences what this customer likes: kinds of products, brands and properties."
)
FRAME = "Describe in a few words the product that a customer will choose next. What is known of the customer: {summary}"
"""What matters comes first: a prompt that is too long is cut at its end."""
_ENGINE_CHUNK = 1024
"""Texts between two savings where an engine writes, which is kept busy by many."""
_BEGIN = b'{"settings": "'
"""Of `FILE.part`."""
_ABOUT_PROMPTS = ("prompts.json", "shared prompts")
"""What the names of the audit's checks of prompts hold."""


@dataclass(frozen=True)
class Summaries:
    """What was written."""

    file: Path
    figures: dict[str, Any]
    """Counts of users and texts, by name."""
    findings: list[Finding]
    """What the audit finds in the prompts."""
    warning: str | None
    """What the texts must not be used for; None for those of the training split."""
    live: Path | None
    """The dataset's own `prompts.json`, if the texts may take its place."""


def write_summaries(
    config: RunConfig,
    file: str | Path,
    *,
    split: Any = "train",
    users: int | None = None,
    templates: Sequence[str] = (),
) -> Summaries:
    """Writes `{user: prompt}`. It leaves out users with an empty summary: they get the template.

    Args:
        file: the file to write. `FILE.part` holds the summaries so far; the same command goes on from it.
        split: the model reads what comes before this split's target.
        users: the number of users, chosen as `eval.users` chooses them. Those without an example in it drop out.
        templates: the request to the model, with `{history}` (else `REQUEST`), and the prompt around its answer, with
            `{summary}` (else `FRAME`).

    Raises:
        ConfigError: FILE exists; FILE.part is damaged or has other settings; a template is neither of the two, or does
            not fit; the model is untrained.
        DataError: as in evaluation, or no user has an example in this split.
        PolicyError, EngineError: as in evaluation. FILE.part keeps the summaries written before.
    """
    request, frame = _request_and_frame(templates)
    check_model(config.policy, "--summaries")
    path = Path(file)
    check_writable(path)
    _refuse_existing(path)
    whole = open_dataset(config.data)
    dataset = replace(whole, prompts={})  # the model is asked, whatever prompts there are
    examples, users_without_example = _examples(dataset, split, users)

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.policy.loading import load_tokenizer_alone

    check_engine(config.generation, config.policy)
    prepare_backend(config.policy)
    tokenizer = load_tokenizer_alone(config.policy, dataset)
    section = config.prompt.of(dataset.name).model_copy(update={"template": request})
    try:
        builder = PromptBuilder(section, dataset, tokenizer)
    except TemplateTooLongError as error:
        raise ConfigError(
            error.message.replace("prompt.template", "what is asked"),
            hint="shorten it (--template), or raise prompt.max_prompt_length",
        ) from error
    _check_room(builder, frame)
    part = part_of(path)
    with held(part):
        _refuse_existing(path)  # another job may have ended meanwhile
        requests = make_prompts(builder, examples)
        digest = _digest(config, dataset, section, split, users, builder.digest(examples))
        summaries, cut_count = _read_part(part, digest, len(examples))
        try:
            cut_count += _write_rest(config, dataset, [prompt.ids for prompt in requests], part, summaries)
        except BaseException:
            if summaries:
                progress = f"{len(summaries):,} of {len(examples):,} summaries"
                console.log(f"{part} keeps {progress}: the same command goes on from there")
            else:
                part.unlink(missing_ok=True)
            raise
        prompts = {
            example.user: frame.replace("{summary}", summary)
            for example, summary in zip(examples, summaries, strict=True)
            if text_flaw(summary) is None and text_flaw(frame.replace("{summary}", summary)) is None
        }
        if not prompts:
            part.unlink()
            raise RunError(
                f"{config.policy.model} wrote nothing of any user", hint="another model, or ask otherwise (--template)"
            )
        _refuse_existing(path)
        write_json(path, prompts)
        part.unlink()
    figures = {
        "file": str(path),
        "users": len(prompts),
        "sequence_too_short": users_without_example,
        "nothing_written": len(examples) - len(prompts),
        "older_items_left_out": sum(lost_items(builder, e, p) for e, p in zip(examples, requests, strict=True)),
        "as_long_as_allowed": cut_count,
        "cut_to_fit": sum(builder.build_written(prompt).is_cut for prompt in prompts.values()),
    }
    findings = _findings(config, replace(whole, prompts=prompts))
    warning, live = None, None
    if split != "train":
        targets = "training target" if split == "validation" else "training and validation targets"
        warning = f"these texts know the {targets}: they are for evaluation on the {split} split alone"
    elif config.data.paths:
        live = Path(config.data.paths[0]) / "prompts.json"
    return Summaries(path, figures, findings, warning, live)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists", hint="move it away, or name another file")


def _examples(dataset: Dataset, split: Any, users: int | None) -> tuple[list[Example], int]:
    """Returns the split's examples of the users that an evaluation of this size measures, and how many have none."""
    eval_users = set(dataset.users)
    if users is not None:
        eval_users = {example.user for example in choose_examples(dataset, "validation", users)}
    examples = [example for example in choose_examples(dataset, split, None) if example.user in eval_users]
    if not examples:
        raise DataError(
            f"none of {len(eval_users):,} users has a {split} example: the sequences are too short",
            hint="more --users, or --split validation",
        )
    return examples, len(eval_users) - len(examples)


def _check_room(builder: PromptBuilder, frame: str) -> None:
    """Refuses a frame so long that the prompt would be cut before the summary.

    Raises:
        ConfigError: the frame is too long.
    """
    if builder.build_written(frame.partition("{summary}")[0] + "{summary}").is_cut:
        raise ConfigError(
            "the prompt made of the answer has no room for it in "
            f"prompt.max_prompt_length={builder.section.max_prompt_length}: {frame[:200]!r}",
            hint="shorten it (--template), or raise prompt.max_prompt_length",
        )


def _digest(
    config: RunConfig, dataset: Dataset, section: PromptSection, split: str, users: int | None, prompts: str
) -> str:
    """Returns the digest of everything that the texts depend on."""
    from rl4rec_cli.policy.pretrained import policy_identity

    about = {
        "dataset": dataset.digest,
        "model": policy_identity(config.policy.model),
        "load": config.policy.model_dump(mode="json"),
        "prompt": section.model_copy(update={"date": None}).model_dump(mode="json"),  # the prompts say it
        "prompts": prompts,
        "generation": config.generation.model_dump(mode="json"),
        "eval": [config.eval.temperature, config.eval.batch_size],
        "seed": config.run.seed,
        "split": split,
        "users": users,
    }
    return sha256_of_json(about)


def _findings(config: RunConfig, dataset: Dataset) -> list[Finding]:
    """Returns the audit's findings about the prompts."""
    findings = audit_as_configured(dataset, config).findings
    return [finding for finding in findings if any(name in finding.check for name in _ABOUT_PROMPTS)]


def _request_and_frame(templates: Sequence[str]) -> tuple[str, str]:
    template_by_field: dict[str, str] = {}
    for template in templates:
        fields = [field for field in ("{history}", "{summary}") if field in template]
        if len(fields) != 1:
            raise ConfigError(
                f"--template {template!r}: must contain {{history}} (what is asked) or {{summary}} (the prompt made of "
                "the answer), and not both"
            )
        if fields[0] in template_by_field:
            raise ConfigError(f"--template: two with {fields[0]}", hint="with --summaries give one of each at most")
        template_by_field[fields[0]] = template
    return template_by_field.get("{history}", REQUEST), template_by_field.get("{summary}", FRAME)


def _read_part(part: Path, digest: str, total: int) -> tuple[list[str], int]:
    """Returns the summaries so far, in the order of the examples, and how many of them were cut at the limit.

    It also makes the file ready for the next ones.

    Raises:
        ConfigError: the file has other settings, is damaged, or is not a file of summaries.
    """
    raw = read_bytes(part)
    lines = raw.split(b"\n")[:-1]
    summaries: list[str] = []
    cut_count = 0
    try:
        if not (raw.startswith(_BEGIN) or _BEGIN.startswith(raw)):
            raise ValueError("it does not begin as a file of summaries does")
        records = [json.loads(line.decode("utf-8")) for line in lines]
        for record in records[1:]:
            texts = record["summaries"]
            whole = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            if not whole or record["start"] != len(summaries):
                raise ValueError(f"what follows summary {len(summaries)} does not belong there")
            "".join(texts).encode()  # no lone surrogates, which JSON can hold and no file can
            summaries += texts
            cut_count += int(record["cut"])
        if len(summaries) > total:
            raise ValueError(f"it holds {len(summaries):,} summaries of {total:,} users")
        settings = records[0]["settings"] if records else digest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{part} is damaged: {error}", hint="move it away to begin anew") from error
    if settings != digest and summaries:
        raise ConfigError(
            f"{part} was written with another dataset, model or settings",
            hint="delete it to begin anew, or name another file",
        )
    if summaries:
        console.log(f"{part}: {len(summaries):,} of {total:,} summaries are there already")
    # What was being written when the job was ended goes; so do other settings without a summary.
    os.truncate(part, sum(len(line) + 1 for line in lines) if settings == digest else 0)
    if settings != digest or not records:
        log = JsonLines(part)
        log.write({"settings": digest})
        log.close()
    return summaries, cut_count


def _write_rest(
    config: RunConfig, dataset: Dataset, prompts: Sequence[tuple[int, ...]], part: Path, done: list[str]
) -> int:
    """Appends the missing summaries to `done` and to the file, some at a time. Returns how many were cut."""
    if len(done) == len(prompts):
        return 0
    from transformers import set_seed

    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.generation import decode_texts, ending_ids, generate_completions
    from rl4rec_cli.policy.opening import open_policy

    policy = open_policy(config, dataset)
    log = JsonLines(part)
    try:
        sampling = Sampling.from_section(config.generation, temperature=config.eval.temperature)
        batch, ends, cut_total = config.eval.batch_size, set(ending_ids(policy.model, policy.tokenizer)), 0
        size = batch if policy.engine is None else _ENGINE_CHUNK
        with console.progress(len(prompts) - len(done), "Writing summaries") as advance:
            for start in range(len(done), len(prompts), size):
                set_seed(config.run.seed + start)  # the same texts, wherever an earlier job was ended
                some = prompts[start : start + size]
                completions = generate_completions(policy, some, sampling, batch_size=batch, progress=advance)
                cut_count = sum(not ends.intersection(ids[-1:]) for ids in completions)
                # One line, whatever the model's paragraphs: it stands inside another text.
                summaries = [" ".join(text.split()) for text in decode_texts(policy.tokenizer, completions)]
                log.write({"start": start, "summaries": summaries, "cut": cut_count})
                done += summaries
                cut_total += cut_count
        return cut_total
    finally:
        log.close()
        policy.close()
