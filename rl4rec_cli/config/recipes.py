"""Recipe files: the packaged ones by name, the user's own by path.

Decides: what counts as a path, how a recipe's comment header is read, how a file that is not a recipe is reported.
Hides: where the packaged files are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rl4rec_cli.config import schema
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.kinds import recognise
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import check_regular
from rl4rec_cli.strict_yaml import MAX_BYTES, YamlError, load_yaml

RECIPE_FILES = (".yaml", ".yml", ".json")
"""Endings by which a name is the path of a file; JSON is read as the YAML that it is."""


@dataclass(frozen=True)
class Recipe:
    """A packaged recipe: its name, its text, and its comment header (`purpose`, `hardware`, `time`, `command`)."""

    name: str
    text: str
    header: dict[str, str]


def packaged_recipes() -> dict[str, Recipe]:
    """Returns the recipes of the package, by name."""
    recipes = {}
    for entry in sorted(_folder().iterdir(), key=lambda entry: entry.name.removesuffix(".yaml")):
        if entry.name.endswith(".yaml"):
            name, text = entry.name.removesuffix(".yaml"), entry.read_text(encoding="utf-8")
            recipes[name] = Recipe(name, text, _header(text))
    return recipes


def _folder() -> Traversable:
    """Returns the folder of the packaged recipes: in the package, or beside it in an uninstalled source tree."""
    if find_spec("rl4rec_cli.recipes") is not None:
        return resources.files("rl4rec_cli.recipes")
    return Path(__file__).parents[2] / "recipes"


def _header(text: str) -> dict[str, str]:
    """Reads the `# Key: value` lines at the top of a recipe. A comment line indented further continues the value."""
    header: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if match := re.match(r"# (\w+):\s+(.*)", line):
            key = match[1].lower()
            header[key] = match[2].strip()
        elif key and line.startswith("#  "):
            header[key] += " " + line[1:].strip()
    return header


def find_recipe(name: str) -> Recipe:
    """Returns a packaged recipe by its name.

    Raises:
        ConfigError: no packaged recipe has that name.
    """
    recipes = packaged_recipes()
    if name not in recipes:
        match = schema.closest(name, recipes)
        did_you_mean = f"; did you mean `{match}`?" if match else ""
        raise ConfigError(
            f"unknown recipe `{name}`{did_you_mean}",
            hint="`rl4rec recipes list` shows the packaged ones; a file's path has a `/` or ends in `.yaml` or `.json`",
        )
    return recipes[name]


def copy_recipe(name: str, dest: str | None, *, force: bool = False) -> Path:
    """Writes a packaged recipe to `dest` (a file, or a folder to write `NAME.yaml` in) and returns the file.

    Raises:
        ConfigError: the recipe does not exist, the file exists and `force` is off, or it cannot be written.
    """
    recipe = find_recipe(name)
    path = expand(dest or f"{name}.yaml")
    if path.is_dir():
        path /= f"{name}.yaml"
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(recipe.text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already", hint="name another file, or overwrite it with --force") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    return path


def read_recipe(name: str) -> dict[str, Any]:
    """Reads a recipe by packaged name or by path (with a `/`, or ending in `.yaml`, `.yml` or `.json`).

    Raises:
        ConfigError: the recipe does not exist, or is not a YAML mapping.
    """
    try:
        is_path = "/" in name or name.endswith(RECIPE_FILES)
        values = load_yaml(_read_text(Path(name)) if is_path else find_recipe(name).text)
    except OSError as error:
        raise ConfigError(f"cannot read recipe {name}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {name} is not UTF-8 text (byte {error.start})") from None
    except YamlError as error:
        raise ConfigError(f"recipe {name}:{'' if str(error)[:1].isdigit() else ' '}{error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"recipe {name} must hold sections such as `data:` and `trainer:`, not {schema.short(values)}"
        )
    return values or {}


def _read_text(path: Path) -> str:
    path = expand(path)
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if (odd := recognise(data)) is not None:
        raise ConfigError(f"recipe {path} is {odd.what}", hint=odd.way_out(path))
    if len(data) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES:,} bytes")
    return data.decode("utf-8-sig")
