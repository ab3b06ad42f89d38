"""Finds a policy's parts: a folder or a name of the Hub, and for an adapter its base.

Decides: which folders are models, where an adapter's base may be, and the messages when it is not there.
Hides: `adapter_config.json`.

Nothing here imports torch: errors in a folder show before anything is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, PolicyError, first_line
from rl4rec_cli.files.folders import MANIFEST, problems
from rl4rec_cli.files.kinds import odd_file
from rl4rec_cli.files.paths import expand
from rl4rec_cli.models import hub
from rl4rec_cli.models.names import PRESETS, repository_of
from rl4rec_cli.runs.folder import BASE
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection

ADAPTER = "adapter_config.json"
CARRIED = "base"
"""The folder in an exported adapter that holds a base available nowhere else."""
_BASE = "base_model_name_or_path"
MODEL_TRIES = (
    "give a Hugging Face causal language model by name or folder, a run's checkpoint, `tiny`, or one of "
    + ", ".join(PRESETS)
)


@dataclass(frozen=True)
class Source:
    """The places of a policy's parts."""

    model: str
    """The base's weights: a folder or a Hub name."""
    options: dict[str, Any]
    """Revision and trust of the base."""
    adapter: Path | None
    tokenizer: str
    tokenizer_options: dict[str, Any]

    @property
    def remote(self) -> str:
        """The name whose absence on the Hub an error would be about."""
        return self.model if Path(self.tokenizer).is_dir() else self.tokenizer


def find_source(section: PolicySection, backend: str) -> Source:
    """Returns the places of the parts of the policy that a section names.

    Raises:
        PolicyError: a folder that is no model, does not exist, is damaged, has files of other kinds than their names
            say, or an adapter without its base.
    """
    name = repository_of(section.model, backend=backend, quantization=section.quantization)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    folder = Path(name)
    refuse_gguf(folder)
    _check_folder(folder)
    has_adapter = (folder / ADAPTER).is_file()
    if folder.is_dir() and not has_adapter and not (folder / "config.json").is_file():
        raise PolicyError(f"{name}: a folder without config.json or {ADAPTER}", hint=MODEL_TRIES)
    if not folder.exists() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise PolicyError(f"{name}: no such folder", hint=MODEL_TRIES)
    if not has_adapter:
        return Source(name, options, None, name, options)
    base, revision = read_base(folder)
    _check_folder(Path(base))
    base_options = {**options, "revision": revision or "main"}
    # Adapters are often published without the tokenizer, which is then the base's.
    own = (folder / "tokenizer_config.json").is_file()
    return Source(base, base_options, folder, name if own else base, options if own else base_options)


def refuse_gguf(path: Path) -> None:
    """Refuses a GGUF file, or a folder that holds one in the place of a model's files.

    Raises:
        PolicyError: so it is, with the way to convert it. transformers would read it with the end token that the file
            names, often a wrong one, and could not save what was trained.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not files or (path.is_dir() and any((path / name).is_file() for name in ("config.json", ADAPTER))):
        return
    if path.is_file() and path.suffix != ".gguf":
        raise PolicyError(f"{path}: a file, not a folder", hint=MODEL_TRIES)
    converter = command_line("python", "scripts/convert_gguf.py", str(files[0]), f"models/{files[0].stem.lower()}")
    raise PolicyError(
        f"{files[0]} is a GGUF file, and a policy is trained from a Hugging Face folder",
        hint=f"convert it, in rl4rec's source folder: `{converter}`; or name the repository that it was made from",
    )


def _check_folder(folder: Path) -> None:
    check_files(folder)  # first: "is a pointer" says more than "is not whole"
    check_whole(folder)


_EDITED = (
    "adapter_config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files that people edit, for instance after they moved the base of an adapter."""
_compared: set[tuple[Any, ...]] = set()
"""Folders that were whole, by their files' sizes and times: a process checks each once."""


def check_whole(folder: Path) -> None:
    """Compares a checkpoint or an export with its manifest: damaged weights would load without an error.

    It leaves out files that a policy does not need (a training's state, a README). It accepts a folder without a
    manifest (logged for a checkpoint).

    Raises:
        PolicyError: a file is missing, or differs from the manifest.
    """
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and folder.parent.name == "checkpoints":
            console.log(f"{folder}: has no {MANIFEST}, so that nothing says whether its files are whole")
        return
    files = sorted(path for path in folder.iterdir() if path.is_file())
    state = (folder.resolve(), *((f.name, f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ino) for f in files))
    if state in _compared:
        return
    damages, changes = _differences(folder)
    if damages:
        raise PolicyError(f"{folder} is damaged: {'; '.join(damages[:3])}", hint=_whole_ones(folder))
    for change in changes:
        console.log(f"{folder}: {change}; it is taken as it is")
    _compared.add(state)


def _differences(folder: Path) -> tuple[list[str], list[str]]:
    """Returns a folder's damages, and its changes that may be somebody's edits."""
    differences = problems(folder, only=lambda name: not name.endswith((".pt", ".pth", ".md")))
    changes = [d for d in differences if d.startswith(_EDITED) and not d.endswith(" is missing")]
    return [d for d in differences if d not in changes], changes


def _whole_ones(damaged: Path) -> str:
    """Returns a hint: which checkpoints can replace a damaged one."""
    others = damaged.parent.glob("checkpoint_*") if damaged.parent.name == "checkpoints" else ()
    names = [path.name for path in sorted(others) if path != damaged and not _differences(path)[0]]
    short = [name.removeprefix("checkpoint_") for name in names if name != BASE]
    if not short:
        return "copy it again from where it came, or train or export it again"
    return f"whole checkpoints of this run: {', '.join(short)} (--checkpoint {short[-1]}); or copy this one again"


def check_files(folder: Path) -> None:
    """Refuses a model's folder in which a file is of another kind than its name says.

    Raises:
        PolicyError: such a file, or a folder that cannot be read.
    """
    try:
        odd = odd_file(folder)
    except OSError as error:
        raise PolicyError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error
    if odd is not None:
        path, what, way_out = odd
        raise PolicyError(f"{path} is {what}", hint=way_out)


def read_base(adapter: Path) -> tuple[str, str | None]:
    """Returns an adapter's base, an existing folder or a Hub name, and its revision.

    Raises:
        PolicyError: the adapter names no base, or a folder that is not on this machine.
    """
    file = adapter / ADAPTER
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(
            f"{file}: cannot be read: {error}", hint="save the adapter again, or copy it again"
        ) from error
    base_name = settings.get(_BASE) if isinstance(settings, dict) else None
    if not isinstance(base_name, str) or not base_name.strip():
        lacks = (
            f"has no {_BASE}"
            if not isinstance(settings, dict) or _BASE not in settings
            else f"has {_BASE}={base_name!r}"
        )
        raise PolicyError(
            f"{file} {lacks}: nothing says which model this adapter belongs on",
            hint=f'write it there: "{_BASE}": the folder or the Hub\'s name of the model it was trained on',
        )
    base = find_base(adapter, base_name)
    if _is_path(base) and not Path(base).is_dir():
        raise PolicyError(
            f"{adapter}: its base model {base_name} is not on this machine",
            hint=f"put the base's folder beside it, as {adapter.resolve().parent / _last(base_name)}, or write where "
            f"it is into {_BASE} of {file}",
        )
    revision = settings.get("revision")
    return base, revision if isinstance(revision, str) else None


def find_base(adapter: Path, recorded: str) -> str:
    """Returns an adapter's base: inside it (an export) or beside it (a run), or else the recorded one.

    So an export or a run can be moved. Its own base comes before the recorded place: another run may have taken that
    name since.
    """
    if not _is_path(recorded):
        return recorded
    inside, beside = adapter.resolve() / CARRIED, adapter.resolve().parent / _last(recorded)
    own = {CARRIED: inside, BASE: beside}.get(_last(recorded))
    places = [own, Path(recorded), inside, beside]
    # A run's `checkpoint_start` may be an adapter on another run's: no base, though it has the name of one.
    is_base = (place for place in places if place is not None and place.is_dir() and not (place / ADAPTER).is_file())
    return str(next(is_base, recorded))


def _is_path(name: str) -> bool:
    """Whether a name can only be a folder's, on any system: the Hub's names have one `/` at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name[1:2] == ":"


def _last(name: str) -> str:
    return PureWindowsPath(name).name if "\\" in name else Path(name).name


def cannot_load(what: str, error: Exception, *, names: str) -> PolicyError:
    """Returns the error of a library that reads models as a PolicyError of one line.

    Args:
        what: the part that could not be loaded.
        names: its name on the Hub.
    """
    if (explanation := hub.explain(error, names)) is not None:
        message, hint = explanation
        return PolicyError(f"cannot load {what}: {message}", hint=hint)
    reason = first_line(error)
    return PolicyError(f"cannot load {what}: {reason}", hint=MODEL_TRIES)


def with_own_adapter(section: PolicySection) -> PolicySection:
    """Returns the section with the settings of the adapter that it names, if it names one: its training goes on.

    Args:
        section: of a new run.

    Raises:
        ConfigError: the section has settings of another adapter. PolicyError: the adapter cannot be read, or is no
            LoRA adapter.
    """
    from rl4rec_cli.config.policy import LoraSection

    folder = expand(section.model)
    if not (folder / ADAPTER).is_file():
        return section
    settings = _read_adapter(folder)
    if settings.get("peft_type") != "LORA":
        raise PolicyError(
            f"{folder}: an adapter of kind {settings.get('peft_type')}, and only LoRA adapters are trained here",
            hint="merge it into its base first, by PEFT's merge_and_unload",
        )
    targets = settings.get("target_modules")
    own = LoraSection(
        r=settings["r"],
        alpha=settings["lora_alpha"],
        dropout=settings.get("lora_dropout") or 0.0,
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets or ())),
    )
    lora = section.lora
    for name in sorted(lora.model_fields_set) if lora is not None else ():
        theirs, ours = getattr(lora, name), getattr(own, name)
        if name == "seed" or theirs == ours or (name == "target_modules" and _same_modules(theirs, ours)):
            continue
        raise ConfigError(
            f"policy.lora.{name}={_written(theirs)}, but {section.model} is an adapter with {_written(ours)}, which "
            "goes on being trained as it is",
            hint="leave policy.lora out (--set policy.lora=null takes it out of a recipe); for a new adapter, merge "
            "this one into its base first",
        )
    return section.model_copy(update={"lora": own})


def _read_adapter(folder: Path) -> dict[str, Any]:
    """Reads an adapter's configuration and checks its `r` and `lora_alpha`.

    Raises:
        PolicyError: the file cannot be read, or lacks one of them.
    """
    read_base(folder)  # raises if the file cannot be read
    settings: dict[str, Any] = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    is_lora = settings.get("peft_type") == "LORA"
    if is_lora and not all(type(settings.get(name)) is int and settings[name] > 0 for name in ("r", "lora_alpha")):
        raise PolicyError(
            f"{folder / ADAPTER}: r and lora_alpha must be whole numbers above 0",
            hint="save the adapter again, or copy it again",
        )
    return settings


def _same_modules(asked: Any, own: Any) -> bool:
    """Whether both name the same modules; `auto` and `all-linear` agree with any."""
    if isinstance(asked, str):
        return asked in ("auto", "all-linear")
    return not isinstance(own, str) and set(asked) == set(own)


def _written(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
