"""Every private name of TRL and transformers that the trainers rely on is there in the pinned versions, and listed.

Where a version is raised and a test here fails, it says which name moved: read what became of it before mending the
list.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rl4rec_cli
from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.train.library_names import ATTRIBUTES, BATCH, LOGS, METHODS, SWITCHES
from rl4rec_cli.train.resumable import Resumable
from rl4rec_cli.train.rollouts import ENGINE_METRICS, OWN_METRICS

PACKAGE = Path(rl4rec_cli.__file__).parent
MODULES = sorted({algorithm.module for algorithm in ALGORITHMS.values()})
OURS = ("reward/", "groups/", "mean_rank", "distinct_texts", "masked_share", *OWN_METRICS)
"""Names in logs that are ours."""


def class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@cache
def tree_of(where: Any) -> ast.Module:
    """The code of a module, or of the module that a class stands in."""
    module = where if isinstance(where, ModuleType | Path) else import_module(where.__module__)
    return ast.parse(module.read_text() if isinstance(module, Path) else inspect.getsource(module))


@cache
def body_of(kind: type) -> ast.ClassDef:
    own = (node for node in ast.walk(tree_of(kind)) if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    return next(own)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


@cache
def sets(kind: type) -> frozenset[str]:
    """Attributes that the code of a class sets, on itself or on what it is handed."""
    attributes = (node for node in ast.walk(body_of(kind)) if isinstance(node, ast.Attribute))
    annotated = {
        node.target.id
        for node in ast.walk(body_of(kind))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    return frozenset({node.attr for node in attributes if isinstance(node.ctx, ast.Store)} | annotated)


def strings(code: ast.AST) -> set[str]:
    texts = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    parts = (node.values for node in ast.walk(code) if isinstance(node, ast.JoinedStr))
    # f"{mode}/step_time" and the like: the fixed part alone is looked for
    return texts | {str(part.value) for values in parts for part in values if isinstance(part, ast.Constant)}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in METHODS.items() for name in names])
def test_a_method_is_there_with_its_parameters(kind: str, name: str) -> None:
    method = vars(class_of(kind)).get(name)
    assert method is not None, f"{kind} defines no {name}"
    assert tuple(inspect.signature(method).parameters)[1:] == METHODS[kind][name]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ATTRIBUTES.items() for name in names])
def test_an_attribute_is_set_where_it_was(kind: str, name: str) -> None:
    of = class_of(kind)
    assert name in sets(of) or name in vars(of), f"{kind} sets no {name}"


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_read_by_the_trainer(name: str) -> None:
    nodes = (node for node in ast.walk(body_of(class_of("trl.GRPOTrainer"))) if isinstance(node, ast.Attribute))
    assert any(node.attr == name and isinstance(node.ctx, ast.Load) for node in nodes)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in BATCH.items() for name in names])
def test_a_batch_has_the_key(kind: str, name: str) -> None:
    body = body_of(class_of(kind))
    methods = {node.name: node for node in body.body if isinstance(node, ast.FunctionDef)}
    assert name in strings(methods["_generate_and_score_completions"]) | strings(methods["_compute_loss"])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in LOGS.items() for name in names])
def test_a_name_is_logged(kind: str, name: str) -> None:
    assert name in strings(tree_of(class_of(kind)))


# Completeness: what our code uses


def own_classes(trainer: type) -> list[type]:
    return [kind for kind in trainer.__mro__ if kind.__module__.startswith("rl4rec_cli.")]


def used_by(kind: type) -> set[str]:
    """Private names that a class defines, or uses of itself or of what stands behind it."""
    names = {node.name for node in body_of(kind).body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(body_of(kind)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()", "cast(Any, super())"):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def owner(trainer: type, name: str) -> type | None:
    """The first class of a library in a trainer's order that has a name."""
    behind = (kind for kind in trainer.__mro__ if not kind.__module__.startswith("rl4rec_cli."))
    return next((kind for kind in behind if name in vars(kind) or (kind is not object and name in sets(kind))), None)


def trainers() -> Iterator[type]:
    """The trainers that the modules of the algorithms declare."""
    for name in MODULES:
        module = import_module(f"rl4rec_cli.train.algorithms.{name}")
        declared = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Resumable)]
        own = [kind for kind in declared if kind.__module__ == module.__name__]
        assert own, f"{name} declares no trainer"
        yield from own


@cache
def relied_on() -> frozenset[tuple[str, str]]:
    """Class and name, of all names of a library that our trainers' own code uses."""
    pairs = set()
    for trainer in trainers():
        of = own_classes(trainer)
        ours = {name for kind in of for name in (*vars(kind), *sets(kind))}
        for name in set().union(*map(used_by, of)):
            kind = owner(trainer, name)
            assert kind is not None or name in ours, f"{trainer.__name__} uses {name}, which nobody has"
            if kind is not None:
                pairs.add((f"{kind.__module__.partition('.')[0]}.{kind.__name__}", name))
    return frozenset(pairs)


def test_every_name_of_a_library_that_a_trainer_uses_is_listed() -> None:
    listed = {(kind, name) for table in (METHODS, ATTRIBUTES) for kind, names in table.items() for name in names}
    assert relied_on() - listed == set()


def test_every_method_that_is_listed_is_used() -> None:
    assert {(kind, name) for kind, names in METHODS.items() for name in names} - relied_on() == set()


BY_TEXT = ("getattr", "setattr", "hasattr", "delattr", "pop")
"""Calls that may name an attribute by a text."""


def others() -> Iterator[tuple[str, str]]:
    """Private names that are asked of something else than `self`, by file, and those that a text names."""
    for path in sorted((PACKAGE / "train").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
                yield path.name, node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_TEXT:
                yield from ((path.name, str(of.value)) for of in node.args if isinstance(of, ast.Constant))


def test_no_private_name_is_used_beside_the_list() -> None:
    listed = {name for table in (METHODS, ATTRIBUTES) for names in table.values() for name in names}
    assert {(file, name) for file, name in others() if is_private(name) and name not in listed} == set()
    assert ("snapshot.py", "_step") in set(others())


def test_every_key_of_a_batch_and_every_name_in_logs_that_is_read_is_listed() -> None:
    keys, logs = set(), set(ENGINE_METRICS)
    for path in sorted((PACKAGE / "train").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Subscript(value=ast.Name(id=of), slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                    pass
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=of), attr="get"), args=[ast.Constant(value=key), *_]
                ):
                    pass
                case ast.Compare(left=ast.Constant(value=str(key)), comparators=[ast.Name(id=of)]):
                    pass
                case _:
                    continue
            if of in ("output", "inputs"):
                keys.add(key)
            if of == "logs":
                logs.add(key)
    of_ppo = {"values", "returns"}
    assert keys
    assert keys - of_ppo - set().union(*BATCH.values()) == set()
    assert {name for name in logs if not name.startswith(OURS)} - set().union(*LOGS.values()) == set()
