"""Loads reward code that is not rl4rec's: a user's own, `module:attr`, and plug-ins of installed packages.

Decides: how such code is imported, which kinds of objects are rewards, and how errors name its file and line.
Hides: modules that are files.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.registries import REWARDS
from rl4rec_cli.errors import RewardError
from rl4rec_cli.rewards.functions import RankReward, RLRewardFunction

if TYPE_CHECKING:
    from rl4rec_cli.retrieval.retriever import Retriever


def load_reward(name: str) -> RankReward | TextReward:
    """Loads a reward by name: rl4rec's own, a plug-in's, or a user's by `module:attr`.

    `module` may be a dotted name or a path to a `.py` file.

    Raises:
        ConfigError: there is no reward of this name, or several packages offer one. PluginError: a plug-in cannot be
            imported. RewardError: a user's module cannot be imported, or the name is of something that is no reward.
    """
    if is_custom(name):
        return _load_custom(name)
    code = REWARDS.load(name)
    module = sys.modules[REWARDS.target(name).partition(":")[0]]
    return _text_reward(name, code, str(getattr(module, "__file__", module.__name__)))


def is_custom(name: str) -> bool:
    """Whether a reward's name points to user code (`module:attr`)."""
    return ":" in name


def code_line(name: str) -> str | None:
    """Returns a line that says whose code a reward runs, or None if it is rl4rec's."""
    file, _, attribute = name.rpartition(":")
    if is_custom(name):
        return f"Reward {attribute}: running your code in {file}, as --reward asks"
    plugin = REWARDS.plugin(name)
    return f"Reward {name}: running code of {plugin.package}, an installed plug-in" if plugin is not None else None


def log_names(names: Iterable[str]) -> dict[str, str]:
    """Returns each reward's name in logs.

    A user's file loses its folder (`my.py:words`), unless two names would become one.
    """
    short = {}
    for name in names:
        file, colon, attribute = name.rpartition(":")
        short[name] = f"{Path(file).name}{colon}{attribute}" if file.endswith(".py") else name
    return {name: name if list(short.values()).count(own) > 1 else own for name, own in short.items()}


@dataclass(frozen=True)
class TextReward:
    """A reward that reads texts, as its module defines it.

    `code` is a function `f(generated_texts, target_items, history_items, **kwargs)`, an `RLRewardFunction` subclass,
    or an instance of one.
    """

    name: str
    code: Any
    file: str
    """The file that defines it, or its module's name."""

    def bind(self, retriever: Retriever, k: int) -> Callable[..., Sequence[float]]:
        """Returns the callable: `code`, or if that is a class, an instance made with the retriever and k.

        Raises:
            RewardError: the class cannot be instantiated.
        """
        code: Any = self.code  # what `isclass` narrows cannot be called
        if not inspect.isclass(code):
            return code
        try:
            return self.code(retriever, k=k)
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"reward {self.name!r}: {code.__name__}(retriever, k={k}) raised {type(error).__name__}: {error}"
                f"{where_raised(error, self.file)}"
            ) from error


def reward_of_code(code: Any) -> tuple[str, RankReward | TextReward]:
    """Returns a reward that a program holds, and its name: that of the function or the class.

    Args:
        code: a function, an `RLRewardFunction` subclass or an instance of one.

    Raises:
        RewardError: it is none of these.
    """
    owner = code if inspect.isroutine(code) or inspect.isclass(code) else type(code)
    name = getattr(owner, "__name__", type(code).__name__)
    try:
        file = inspect.getsourcefile(owner) or str(owner.__module__)
    except TypeError:  # a class of a notebook's cell, or of no file
        file = str(owner.__module__)
    return name, _text_reward(name, code, file)


def _text_reward(name: str, code: Any, file: str) -> RankReward | TextReward:
    """Returns the object of a name as a reward.

    Raises:
        RewardError: it is no reward.
    """
    if isinstance(code, RankReward):
        return code
    if inspect.isclass(code) and not issubclass(code, RLRewardFunction):
        raise RewardError(
            f"reward {name!r}: class {code.__name__} is not an RLRewardFunction",
            hint="subclass rl4rec_cli.rewards.RLRewardFunction, or give a function",
        )
    if not callable(code):
        raise RewardError(f"reward {name!r}: {name.rpartition(':')[2]} is a {type(code).__name__}, not a function")
    return TextReward(name, code, file)


def _load_custom(name: str) -> RankReward | TextReward:
    return _text_reward(name, *load_code(name))


def load_code(name: str) -> tuple[Any, str]:
    """Returns the object that `module:attr` names, and the file that defines it.

    Raises:
        RewardError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _import_module(module_name)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        raise RewardError(
            f"reward {name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
            f"{'' if is_missing else where_raised(error, module_name)}",
            hint="name the file instead: path/to/file.py:function" if is_missing else None,
        ) from error
    code = getattr(module, attribute, None)
    if code is None:
        raise RewardError(f"reward {name!r}: module {module_name!r} has no attribute {attribute!r}")
    return code, str(getattr(module, "__file__", module_name))


def where_raised(error: BaseException, file: str) -> str:
    """Returns ` (file:line)`: the last line of the user's file in the traceback, or else where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).resolve() == Path(file).resolve()] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def definition(function: Any, file: str) -> str:
    """Returns `file:line` of a reward's code."""
    function = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return file if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def as_number(value: Any) -> float | None:
    """Returns a reward function's value for a text as a float, or None if it is no number."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return None


def _import_module(name: str) -> Any:
    if not name.endswith(".py"):
        # The script `rl4rec` does not look in the current folder, where a user's own module mostly is.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise RewardError(f"reward file {path}: no such file")
    # Dataclasses and pickle need the module in `sys.modules`; no other module has this name.
    spec = importlib.util.spec_from_file_location(f"rl4rec-reward {path.resolve()}", path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward file {path}: not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
