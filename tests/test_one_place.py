"""Each fact stands in one place: nobody compares names to find out what something does.

A kind has names (algorithms, say). What others want to know of one its own section or module answers, so that a new
one is added in one place. This counts the comparisons with a kind's names outside the modules that define it: zero.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.config.importers import IMPORTERS
from rl4rec_cli.config.plugins import Registry
from rl4rec_cli.config.registries import BASELINES, EMBEDDERS, REWARDS
from rl4rec_cli.config.tasks import TASKS
from rl4rec_cli.config.trainer import trainer_sections

PACKAGE = Path(__file__).parents[1] / "rl4rec_cli"
ALSO_ENGINES = frozenset({"vllm"})
"""Names that mean something else elsewhere: compared with an attribute of the kind they count all the same."""
ALSO_FORMATS = frozenset({"csv"})
"""Names of sources that are formats of results, too."""
BACKENDS = frozenset({"config/sections.py", "plan/placement.py", "retrieval/service/cluster.py"})


@dataclass(frozen=True)
class Kind:
    """What a comparison is looked for of."""

    label: str
    names: frozenset[str]
    """Texts that are only ever a name of this kind."""
    attributes: frozenset[str]
    """Attributes that hold such a name: a comparison of one with any literal text counts."""
    classes: frozenset[str] = frozenset()
    """Classes of the kind's sections: asking by `isinstance` is a comparison, too."""
    own: frozenset[str] = field(default_factory=frozenset)
    """Modules that define the kind, as paths below the package."""


def modules_of(registry: Registry) -> set[str]:
    """The modules that hold what a registry names, as paths below the package."""
    modules = {target.partition(":")[0] for target in registry.built_in.values()}
    return {module.removeprefix("rl4rec_cli.").replace(".", "/") + ".py" for module in modules}


KINDS = [
    Kind(
        "algorithm",
        names=frozenset(ALGORITHMS),
        attributes=frozenset({"algorithm"}),
        classes=frozenset(section.__name__ for section in trainer_sections().values()),
        own=frozenset({"config/algorithms.py", "config/trainer.py"})
        | {f"train/algorithms/{algorithm.module}.py" for algorithm in ALGORITHMS.values()},
    ),
    Kind(
        "reward",
        names=frozenset(REWARDS.built_in),
        attributes=frozenset({"reward_type"}),
        # A metric may have a reward's name: they are two lists. `reward` and `tasks` name the default.
        own=frozenset({"config/registries.py", "config/tasks.py", "eval/metrics.py", "config/reward.py"})
        | modules_of(REWARDS),
    ),
    Kind(
        "baseline",
        names=frozenset(BASELINES.built_in),
        attributes=frozenset({"baselines"}),
        classes=frozenset({"Untrained", "Fusion", "ZeroShot"}),
        own=frozenset({"config/registries.py"}) | modules_of(BASELINES),
    ),
    Kind(
        "embedder",
        names=frozenset(EMBEDDERS.built_in) - ALSO_ENGINES,
        attributes=frozenset({"embedder"}),
        classes=frozenset(target.partition(":")[2] for target in EMBEDDERS.built_in.values()),
        own=frozenset({"config/registries.py"}) | modules_of(EMBEDDERS),
    ),
    Kind(
        "source",
        names=frozenset(IMPORTERS.built_in) - ALSO_FORMATS,
        attributes=frozenset({"source"}),
        classes=frozenset(target.partition(":")[2] for target in IMPORTERS.built_in.values()),
        own=frozenset({"config/importers.py"}) | modules_of(IMPORTERS),
    ),
    Kind("task", names=frozenset(TASKS), attributes=frozenset({"task"}), own=frozenset({"config/tasks.py"})),
    Kind("retrieval backend", names=frozenset({"ray", "in-process"}), attributes=frozenset(), own=BACKENDS),
]


def comparisons(tree: ast.AST, kind: Kind) -> Iterator[int]:
    """Lines that compare with a name of the kind: by operators, `match`, a dict keyed by names, or `isinstance`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {text for side in sides for text in _texts(side)}
            is_held = any(isinstance(side, ast.Attribute) and side.attr in kind.attributes for side in sides)
            if texts & kind.names or (is_held and texts):
                yield node.lineno
        elif isinstance(node, ast.match_case):
            values = {text for part in ast.walk(node.pattern) for text in _texts(getattr(part, "value", None))}
            if values & kind.names:
                yield node.pattern.lineno
        elif isinstance(node, ast.Dict):
            if {text for key in node.keys for text in _texts(key)} & kind.names:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            asked |= {part.attr for part in ast.walk(node.args[1]) if isinstance(part, ast.Attribute)}
            if asked & kind.classes:
                yield node.lineno


def _texts(node: ast.AST | None) -> Iterator[str]:
    """The literal texts that an operand is, or that a literal collection holds."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from _texts(element)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_nobody_compares_names(kind: Kind) -> None:
    places = [
        f"rl4rec_cli/{name}:{line}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if (name := file.relative_to(PACKAGE).as_posix()) not in kind.own
        for line in comparisons(ast.parse(file.read_text(encoding="utf-8")), kind)
    ]
    assert not places, f"{len(places)} comparisons with a name of kind {kind.label}; ask what it names instead"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('trainer.algorithm == "ppo"', 1),
        ('"rloo" != name', 1),
        ('name in ("grpo", "other")', 1),
        ('trainer.algorithm not in ["new"]', 1),
        ("is_new = trainer.algorithm == other", 0),
        ('{"sft": 1}[name]', 1),
        ("isinstance(trainer, PpoSection)", 1),
        ("isinstance(trainer, (int, trainer.SftSection))", 1),
        ('match name:\n    case "sft" | "x":\n        pass', 1),
        ('match name:\n    case "x":\n        pass', 0),
        ('log("sft")', 0),
        ('kind == "head"', 0),
    ],
)
def test_comparisons_are_seen(code: str, count: int) -> None:
    assert len(list(comparisons(ast.parse(code), KINDS[0]))) == count
