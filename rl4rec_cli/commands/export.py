"""Export a run for other programs, with a model card, on disk or the Hub: a policy's adapter or one merged model, or a
retriever's folder of sentence-transformers.

Decides: which files belong to an export; that nothing is merged into quantised weights; that an adapter goes to the Hub
only if its base is there, too; that a new repository is private unless the user asks for a public one.
Hides: `huggingface_hub`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, PolicyError, RunError, first_line
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.resolve import find_run
from rl4rec_cli.files.folders import MANIFEST, write_folder
from rl4rec_cli.files.writing import why_unwritable
from rl4rec_cli.policy.sources import ADAPTER, CARRIED, read_base
from rl4rec_cli.report.model_card import model_card, retriever_card
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection

FORMS = ("merged", "adapter")
DTYPES = ("auto", "bf16", "fp16", "fp32")
_FILES = ("adapter_*", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    form: str
    """`merged`, `adapter` or `retriever`."""
    files: tuple[str, ...]
    """Below the folder, sorted."""
    repository: str | None = None
    """Address of the repository on the Hub, if it was uploaded."""


def export(
    run: str | Path,
    *,
    form: str = "merged",
    output: str | Path | None = None,
    dtype: str = "auto",
    push_to: str | None = None,
    public: bool = False,
    checkpoint: str | None = None,
    show: Callable[[Export], None] = lambda export: None,
) -> Export:
    """Writes the export of a run, and uploads it if the user asks for it: `rl4rec export`.

    Args:
        run: run folder or checkpoint.
        form: `merged`: one model; `adapter`: the adapter alone.
        output: the folder to write; `export/FORM` in the run by default (`export/retriever` for a retriever, which
            has no forms).
        dtype: the weights of a merged model: `bf16`, `fp16`, `fp32`, or `auto`, as trained.
        push_to: the repository of the Hub to upload to.
        public: make a new repository public.
        checkpoint: one of the run's checkpoints; its last by default.
        show: shows what was written before it is uploaded.

    Raises:
        ConfigError: the form or the type does not exist, or does not fit the run.
        RunError: the folder is not a run, or the output path holds something else.
        PolicyError: the policy cannot be loaded, merged, written or uploaded.
    """
    _check_words(form, dtype, push_to, public=public)
    match = find_run(str(run), checkpoint)
    if match is None:
        raise RunError(f"{run}: not a run folder or a checkpoint of one", hint="runs are made by `rl4rec train`")
    source_run, source = match[0], Path(match[1])
    options: Any = {"form": form, "dtype": dtype, "push_to": push_to, "public": public, "show": show}
    if not source_run.config.trainer.trains_policy:
        return _export_retriever(source_run, source, _folder(output, source_run, "retriever"), **options)
    has_adapter = (source / ADAPTER).is_file()
    if form == "adapter" and not has_adapter:
        raise ConfigError(f"{source}: all its weights were trained, there is no adapter", hint="use --to merged")
    base = read_base(source)[0] if has_adapter else source_run.config.policy.model
    if form == "adapter" and push_to is not None and Path(base).is_dir():
        raise ConfigError(
            f"--push-to-hub: the base of this adapter is a folder of this machine, {base}", hint="use --to merged"
        )
    folder = _folder(output, source_run, form)
    if push_to is not None:
        _check_login()
    console.log(checkpoint_line(describe_checkpoint(source_run, source)))
    _write(source_run, source, folder, form=form, dtype=dtype, base=base)
    return _show_and_upload(folder, form, push_to, show, public=public)


def _folder(output: str | Path | None, run: Run, form: str) -> Path:
    """Returns the folder to write.

    Raises:
        RunError: it is there already, or cannot be written.
    """
    folder = Path(output) if output is not None else run.folder / "export" / form
    if folder.exists():
        raise RunError(f"{folder}: is there already", hint="name another --output, or remove it")
    if (reason := why_unwritable(folder)) is not None:  # before a model is loaded
        raise RunError(f"{folder}: cannot be written: {reason}", hint="name another --output")
    return folder


def _show_and_upload(
    folder: Path, form: str, push_to: str | None, show: Callable[[Export], None], *, public: bool
) -> Export:
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    written = Export(folder, form, tuple(files))
    show(written)
    if push_to is None:
        return written
    return replace(written, repository=_upload(folder, push_to, public=public))


def _export_retriever(
    run: Run,
    checkpoint: Path,
    folder: Path,
    *,
    form: str,
    dtype: str,
    push_to: str | None,
    public: bool,
    show: Callable[[Export], None],
) -> Export:
    """Copies the folder of sentence-transformers with what the retriever knows besides, and writes its card."""
    if form != FORMS[0] or dtype != "auto":
        raise ConfigError("--to and --dtype are for policies: a retriever is exported as it is", hint="leave them out")
    if not (checkpoint / "modules.json").is_file():
        raise RunError(
            f"{checkpoint}: not a folder of sentence-transformers",
            hint="the final checkpoint of a run whose embedder is a model (retrieval.embedder) is one",
        )
    if push_to is not None:
        _check_login()
    console.log(checkpoint_line(describe_checkpoint(run, checkpoint)))
    no_part = {MANIFEST, "progress.json", "recipe.yaml"}
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name not in no_part]

    def fill(temporary: Path) -> None:
        for file in files:
            target = temporary / file.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (temporary / "README.md").write_text(retriever_card(run, checkpoint), encoding="utf-8")

    try:
        write_folder(folder, fill, size=sum(file.stat().st_size for file in files))
    except OSError as error:
        raise RunError(f"{folder}: cannot write the export: {error.strerror or error}") from error
    return _show_and_upload(folder, "retriever", push_to, show, public=public)


def _check_words(form: str, dtype: str, push_to: str | None, *, public: bool) -> None:
    if form not in FORMS:
        if re.search(r"[48].?bit", form):
            raise ConfigError(
                f"--to {form}: nothing is merged into quantised weights, whose steps are larger than what was learnt",
                hint="use --to merged and quantise that, or --to adapter and load its base in 4 bits",
            )
        raise ConfigError(f"--to {form}: must be {' or '.join(FORMS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be {', '.join(DTYPES)}")
    if form == "adapter" and dtype != "auto":
        raise ConfigError("--dtype is for merged models: an adapter stays as it is", hint="leave it out")
    if public and push_to is None:
        raise ConfigError("--public is for --push-to-hub", hint="give --push-to-hub NAME, or leave it out")
    if push_to is not None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(push_to)
        except HFValidationError as error:
            raise ConfigError(f"--push-to-hub {push_to}: {first_line(error)}", hint="e.g. me/beauty") from error


def _write(run: Run, checkpoint: Path, folder: Path, *, form: str, dtype: str, base: str) -> None:
    section = run.config.policy.model_copy(update={"backend": "hf", "fast_inference": False})
    size = sum(file.stat().st_size for file in checkpoint.glob("adapter_*"))
    reference = _Trained(section, checkpoint, run.config.prompt.template)
    policy: Any = None
    base_folder = Path(base) if form == "adapter" and Path(base).is_dir() else None
    if form == "merged":
        from rl4rec_cli.policy.merging import load_merged

        policy = load_merged(section, checkpoint, dtype=dtype)
        size = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    if base_folder is not None:
        base_files = _files_of_model(base_folder)
        size += sum(file.stat().st_size for file in base_files)
        console.log(f"The base goes along, as {folder / CARRIED}: {base_folder} is a folder of this machine")
    weights = "" if policy is None else str(policy.model.dtype).removeprefix("torch.")
    card = model_card(run, checkpoint, form=form, base=base, weights=weights)

    def fill(temporary: Path) -> None:
        if policy is not None:
            policy.model.save_pretrained(temporary)
            policy.tokenizer.save_pretrained(temporary)
            reference.check_merged(temporary, policy.model)
        else:
            for file in sorted(checkpoint.iterdir()):
                if file.is_file() and any(fnmatch(file.name, pattern) for pattern in _FILES):
                    shutil.copyfile(file, temporary / file.name)
            if base_folder is not None:
                (temporary / CARRIED).mkdir()
                for file in base_files:
                    shutil.copyfile(file, temporary / CARRIED / file.name)
                _name_base(temporary / ADAPTER, folder.resolve() / CARRIED)
            reference.check_adapter(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")

    try:
        write_folder(folder, fill, size=size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PolicyError(f"{folder}: cannot write the export of about {size:,} bytes: {reason}") from error


def _files_of_model(folder: Path) -> list[Path]:
    """Returns the files of a model's folder that its loaders may read."""
    patterns = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.bin")
    no_part = {MANIFEST, "progress.json", "validation.json", "trainer_state.json", "critic.safetensors"}
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in no_part]
    return [file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns)]


def _name_base(config: Path, base: Path) -> None:
    """Writes the folder of an adapter's base into its configuration. PEFT loads the base from there, until it moves."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(base)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


class _Trained:
    """The logits of a checkpoint. An export must compute the same.

    Args:
        section: the policy settings of training.
        template: the run's prompt. Its first tokens are the input.
    """

    def __init__(self, section: PolicySection, checkpoint: Path, template: str) -> None:
        from rl4rec_cli.policy.agreement import logits_of, probe_sequences
        from rl4rec_cli.policy.loading import load_policy

        self._section = section
        policy = load_policy(section.model_copy(update={"model": str(checkpoint)}))
        rows = policy.model.get_input_embeddings().weight.shape[0]
        self._sequences = probe_sequences(policy.tokenizer, template, vocabulary=min(rows, len(policy.tokenizer)))
        self._logits = logits_of(policy.model, self._sequences)
        self._dtype = policy.model.dtype
        self._is_quantised = section.quantization != "none"

    def check_adapter(self, folder: Path) -> None:
        """Refuses an adapter that, loaded with its base, is another policy.

        Raises:
            PolicyError: its logits are not those of the checkpoint.
        """
        from rl4rec_cli.policy.loading import load_policy

        policy = load_policy(self._section.model_copy(update={"model": str(folder)}))
        self._compare(policy.model, "the exported adapter is not what was trained")

    def check_merged(self, folder: Path, model: Any) -> None:
        """Refuses a folder that plain transformers reads as another model.

        Args:
            model: the model that was written to the folder.

        Raises:
            PolicyError: its logits are not those of the checkpoint.
        """
        from transformers import AutoModelForCausalLM

        plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
        self._compare(
            plain.to(model.device), "the merged model is not what was trained", hint="export it with --to adapter; "
        )

    def _compare(self, model: Any, otherwise: str, *, hint: str = "") -> None:
        from rl4rec_cli.policy.agreement import largest_difference, limit_of, logits_of

        difference = largest_difference(self._logits, logits_of(model, self._sequences))
        limit = limit_of(self._dtype, model.dtype, is_quantised=self._is_quantised)
        if difference > limit:
            raise PolicyError(
                f"{otherwise}: its logits differ by {difference:.2g} of their size, where rounding explains "
                f"{limit:g}; nothing was written",
                hint=f"{hint}please report this with the model's name",
            )
        console.log(f"Read back: logits differ by {difference:.1e} of their size from the trained policy's")


def _check_login() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise PolicyError("--push-to-hub: nobody is logged in", hint="`hf auth login`, or the variable HF_TOKEN")


def _upload(folder: Path, name: str, *, public: bool) -> str:
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        # Of a repository that is there already, `private` changes nothing.
        repository = api.create_repo(name, private=not public, exist_ok=True)
        # The manifest is for folders on disk.
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Upload from rl4rec",
            ignore_patterns=["manifest.json"],
        )
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PolicyError(
            f"cannot upload to {name}: {reason}",
            hint=f"the export is in {folder}; `{command_line('hf', 'upload', name, folder)}` tries again",
        ) from error
    return str(repository)
