"""From defaults, recipes, flags and ``--set`` to one `RunConfig`.

Decides: the order of the layers (defaults < the command's algorithm < recipes, left to right < flags < ``--set``),
how they merge, and where custom reward code may be named: plug-ins anywhere, `module:attr` by ``--reward`` alone.
Hides: which layer a value came from, until something is wrong with it.

Sections merge; lists and plain values replace, and so does `reward.functions`. `null` resets an optional section.
In a recipe, `trainer.grpo: {…}` and `trainer.sft: {…}` hold values that only that algorithm reads, so that one
recipe serves several commands; an algorithm without a block there reads that of the one that it is `like`.
`data.path` and `data.synthetic` are alternatives: a layer that gives one drops the other from the layers below, and
one that gives another folder drops the files that went with the folder below (`data.sequential_file`,
`data.prompt_file`). The command line (flags and ``--set``) is one layer there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from rl4rec_cli.config import schema
from rl4rec_cli.config.algorithms import DEFAULT_ALGORITHM
from rl4rec_cli.config.aliases import OPTIONS, flag_of
from rl4rec_cli.config.dataset_folders import find_folder, is_same_folder
from rl4rec_cli.config.plugins import Registry
from rl4rec_cli.config.recipes import find_recipe, packaged_recipes, read_recipe
from rl4rec_cli.config.registries import BASELINES, REWARDS
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import trainer_sections
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.shell import command_line, rl4rec
from rl4rec_cli.strict_yaml import YamlError, dump_yaml, load_yaml

__all__ = ["dump_config", "find_recipe", "load_config", "packaged_recipes"]

COMMAND = "the command"
REWARD_FUNCTIONS = ("reward", "functions")
ALTERNATIVES = (("data", "path"), ("data", "synthetic"))
FILES_OF_ONE = (("data", "sequential_file"), ("data", "prompt_file"))
"""What goes with the one folder that `data.path` names."""
# The flag that sets a key, for messages; any other key that comes as a flag is named by itself.
FLAGS = {key: flag_of(key) for key in OPTIONS.values()} | {
    "retrieval.embedder": "--embedder",
    "retrieval.model": "--model",
    "retrieval.emb_type": "--emb-type",
    "retrieval.device": "--device",
    "retrieval.batch_size": "--batch-size",
    "retrieval.service.name": "--actor-name",
    "retrieval.service.namespace": "--namespace",
    "retrieval.service.address": "--address",
    "eval.split": "--split",
    "eval.users": "--users",
    "eval.baselines": "--baselines",
}


@dataclass
class _Layer:
    source: str
    values: dict[str, Any]
    adds_to: schema.Path | None = None
    """A mapping of the user's own keys that this layer adds one entry to, instead of replacing it."""


@dataclass
class _Tree:
    """The merged values, where each came from, and everything found wrong on the way."""

    algorithm: str = DEFAULT_ALGORITHM
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[schema.Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def merge(self, layer: _Layer) -> None:
        if layer.adds_to:
            lower = _get(self.values, layer.adds_to)
            if lower is None:
                lower = schema.default_at(layer.adds_to, self.algorithm)
            entries = {**(lower if isinstance(lower, dict) else {}), **_get(layer.values, layer.adds_to)}
            kept = {key: value for key, value in entries.items() if value is not None}
            layer = _Layer(layer.source, _nested(layer.adds_to, kept))
        self._merge(self.values, layer.values, layer.source, ())

    def _merge(self, target: dict[str, Any], overlay: Mapping[str, Any], source: str, path: schema.Path) -> None:
        for key, value in overlay.items():
            here = (*path, key)
            is_section = schema.section_at(here, self.algorithm) is not None
            if value is None and is_section and not schema.takes_null(here, self.algorithm):
                continue  # `trainer:` with every line below it commented out
            if isinstance(value, dict) and is_section:
                if not isinstance(target.get(key), dict):
                    self._put(target, here, {}, source)
                self._merge(target[key], value, source, here)
            else:
                self._put(target, here, value, source)

    def _put(self, target: dict[str, Any], path: schema.Path, value: Any, source: str) -> None:
        self._forget(path)
        target[path[-1]] = value
        self.origins[path] = source

    def _forget(self, path: schema.Path) -> None:
        for known in [p for p in self.origins if p[: len(path)] == path]:
            del self.origins[known]

    def drop_alternatives(self, layers: Sequence[_Layer]) -> None:
        """Forget what lower layers gave where these layers give exactly one of the alternatives."""
        named = {
            path: value for layer in layers for path in ALTERNATIVES if (value := _get(layer.values, path)) is not None
        }
        if len(named) == 1:
            below, (path, value) = _get(self.values, ALTERNATIVES[0]), next(iter(named.items()))
            if path != ALTERNATIVES[0] or (below is not None and not is_same_folder(below, value)):
                self._drop(FILES_OF_ONE)
            self._drop(set(ALTERNATIVES) - set(named))

    def _drop(self, paths: Iterable[schema.Path]) -> None:
        for section, key in paths:
            if isinstance(self.values.get(section), dict):
                self.values[section].pop(key, None)
                self._forget((section, key))

    def source(self, path: schema.Path) -> str:
        """The layers that gave the values below `path`, or the one that gave the value at or above it."""
        below = dict.fromkeys(s for p, s in self.origins.items() if len(p) > len(path) and p[: len(path)] == path)
        below.pop(COMMAND, None)  # it gives trainer.algorithm only, which is never what is wrong
        if below:
            return ", ".join(below)
        return next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), "default")


def load_config(
    *,
    algorithm: str | None,
    recipes: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    allow_custom_rewards: bool = False,
    is_run: bool = False,
) -> RunConfig:
    """Lay recipes, flags and ``--set`` on top of the defaults.

    Args:
        algorithm: the command's algorithm; None takes it from the recipes.
        recipes: names of packaged recipes, or paths (with a `/`, or ending in `.yaml` or `.json`).
        flags: what flags gave, as dotted keys or nested: `{"data.path": "beauty"}`, `{"data": {"path": "beauty"}}`.
        sets: `section.key=value` texts.
        allow_custom_rewards: accept `module:attr` rewards from any layer. Only for commands that run no reward
            code; elsewhere such code must be named by the flag ``--reward`` itself.
        is_run: the first recipe is a run's own configuration. What it names was there when the run was made; a
            plug-in that is no longer installed is told where it is used, so that the run can be opened without it.

    Raises:
        ConfigError: with every problem found, each with its key and the layer it came from.
    """
    tree = _Tree()
    files = list(_read_recipes(recipes, tree))
    pairs = [pair for text in sets if (pair := _split_set(text, tree))]
    tree.algorithm = _choose_algorithm(algorithm, files, pairs, tree)
    line = list(_flag_layers(flags or {}, tree.algorithm))
    flagged: dict[str, Any] = next((rewards for layer in line if (rewards := _get(layer.values, REWARD_FUNCTIONS))), {})
    line += [layer for path, text in pairs if (layer := _set_layer(path, text, tree))]

    tree.merge(_Layer(COMMAND, {"trainer": {"algorithm": tree.algorithm}}))
    for layers in [*([layer] for layer in files), line]:
        tree.drop_alternatives(layers)
        for layer in layers:
            _select_trainer(layer, tree)
            tree.merge(layer)

    config = _validate(tree)
    trusted = files[0].source if is_run and files else None
    _check_rewards(tree, None if allow_custom_rewards else flagged, trusted)
    _check_baselines(tree, trusted)
    if config is not None:
        _check_sections_agree(config, tree)
    if config is None or tree.problems:
        problems = list(dict.fromkeys(tree.problems))
        if len(problems) > 1:
            problems = [f"{len(problems)} problems in the configuration", *(f"  {problem}" for problem in problems)]
        raise ConfigError("\n".join(problems), hint="; ".join(dict.fromkeys(tree.hints)) or None)
    return _with_folders(config)


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML; read as a recipe, it gives an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def _with_folders(config: RunConfig) -> RunConfig:
    """Plain names of datasets in `data/` become their folders."""
    folders = tuple(find_folder(path) for path in config.data.paths)
    if folders == config.data.paths:
        return config
    data = config.data.model_copy(update={"path": folders if len(folders) > 1 else folders[0]})
    return config.model_copy(update={"data": data})


def _nested(path: schema.Path, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def _get(values: Any, path: schema.Path) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _read_recipes(names: Sequence[str], tree: _Tree) -> Iterator[_Layer]:
    for name in names:
        try:
            yield _Layer(f"recipe {name}", read_recipe(name))
        except ConfigError as error:
            tree.problems.append(error.message)
            tree.hints += [error.hint] if error.hint else []


def _flag_layers(flags: Mapping[str, Any], algorithm: str, prefix: schema.Path = ()) -> Iterator[_Layer]:
    for key, value in flags.items():
        path = (*prefix, *key.split("."))
        if isinstance(value, Mapping) and schema.section_at(path, algorithm):
            yield from _flag_layers(value, algorithm, path)
        else:
            name = ".".join(path)
            yield _Layer(FLAGS.get(name, name), _nested(path, value))


def _split_set(text: str, tree: _Tree) -> tuple[schema.Path, str] | None:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        tree.problems.append(f"--set {schema.short(text)}: must be section.key=value")
        return None
    return path, value


def _set_layer(path: schema.Path, text: str, tree: _Tree) -> _Layer | None:
    adds_to = None
    for length in range(1, len(path)):  # what follows reward.functions is one key, dots and all
        if schema.takes_mapping(path[:length], tree.algorithm):
            adds_to = path[:length]
            path = (*adds_to, ".".join(path[length:]))
            break
    takes_text = schema.takes_text(path, tree.algorithm)
    try:
        value = load_yaml(text) if text.strip() else ""
    except YamlError as error:
        if not takes_text:
            tree.problems.append(f"{'.'.join(path)}: cannot read {schema.short(text)}: {error} (--set)")
            return None
        value = text
    # Where text is asked for, `--set run.name=2024` and `--set prompt.template={history}` mean what they say.
    if takes_text and not isinstance(value, str | list | None):
        value = text
    return _Layer("--set", _nested(path, value), adds_to)


def _choose_algorithm(
    command: str | None, files: Sequence[_Layer], pairs: Sequence[tuple[schema.Path, str]], tree: _Tree
) -> str:
    known = trainer_sections()
    named = [(layer.source, _get(layer.values, ("trainer", "algorithm"))) for layer in files]
    named += [("--set", text.strip()) for path, text in pairs if path == ("trainer", "algorithm")]
    chosen = command or DEFAULT_ALGORITHM
    for source, name in named:
        if name is None or name == command:
            continue
        if not isinstance(name, str) or name not in known:
            given = schema.short(name)
            tree.problems.append(f"trainer.algorithm: must be one of {', '.join(known)}, not {given} ({source})")
        elif command:
            tree.problems.append(f"trainer.algorithm: {source} is for {name}, this command trains with {command}")
            tree.hints.append(f"use `{rl4rec('train', name)}`")
        else:
            chosen = name
    return chosen


def _select_trainer(layer: _Layer, tree: _Tree) -> None:
    """Keep of a layer's trainer section what the algorithm reads; check the rest where it lies."""
    trainer = layer.values.get("trainer")
    if not isinstance(trainer, dict):
        return
    if trainer.get("algorithm", tree.algorithm) != tree.algorithm:  # reported, or replaced by a higher layer
        layer.values = {**layer.values, "trainer": {}}
        return
    sections = trainer_sections()
    shared = {key: value for key, value in trainer.items() if key not in sections}
    own = sections[tree.algorithm]
    for name in sections:
        block = trainer.get(name)
        if block is None:
            continue
        if not isinstance(block, dict) or "algorithm" in block:
            tree.problems.append(f"trainer.{name}: must be a section of trainer keys ({layer.source})")
        elif name == tree.algorithm:
            shared = {**shared, **block}
        else:
            aside = _Tree(name, {"trainer": {"algorithm": name, **block}}, {("trainer",): layer.source})
            _validate(aside)
            tree.problems += [problem.replace("trainer.", f"trainer.{name}.", 1) for problem in aside.problems]
            if name == own.like and trainer.get(tree.algorithm) is None:
                shared |= {key: value for key, value in block.items() if key in own.model_fields}
    layer.values = {**layer.values, "trainer": shared}


def _validate(tree: _Tree) -> RunConfig | None:
    if bad := next(_not_unicode(tree.values), None):
        tree.problems.append(f"{'.'.join(bad)!a}: is not UTF-8 text ({tree.source(bad)})")
        return None
    try:
        # Strict JSON mode: lists become tuples, and neither `true` nor "5" passes for a number.
        return RunConfig.model_validate_json(json.dumps(tree.values), strict=True)
    except ValidationError as error:
        for path, said in schema.explain(error.errors(include_url=False), tree.algorithm):
            tree.problems.append(f"{'.'.join(path)}: {said} ({tree.source(path)})")
    return None


def _not_unicode(value: Any, path: schema.Path = ()) -> Iterator[schema.Path]:
    """Bytes of the command line that are not UTF-8 arrive as surrogates, which no file can hold."""
    if isinstance(value, str):
        if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            yield path
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from _not_unicode(key, (*path, key))
            yield from _not_unicode(below, (*path, key))
    elif isinstance(value, list):
        for below in value:
            yield from _not_unicode(below, path)


def _check_sections_agree(config: RunConfig, tree: _Tree) -> None:
    """What one section asks of another."""
    trainer, normalize = config.trainer, config.reward.normalize_rewards
    if trainer.has_adapter_critic and config.policy.lora is None:
        source = tree.source(("trainer", "critic"))
        tree.problems.append(f"trainer.critic: an adapter of the critic's own needs a policy with one ({source})")
        tree.hints.append("give policy.lora, e.g. --set policy.lora.r=16, or use trainer.critic=head")
    if config.policy.fast_inference and trainer.holds_reference:
        source = tree.source(("policy", "fast_inference"))
        said = "with trainer.beta above 0 the engine would be given the reference, too"
        tree.problems.append(f"policy.fast_inference: {said} ({source})")
        tree.hints.append("set trainer.beta to 0, or leave policy.fast_inference out")
    if config.policy.fast_inference and trainer.has_adapter_critic:
        source = tree.source(("trainer", "critic"))
        said = "with policy.fast_inference the engine would be given the critic's adapter, too"
        tree.problems.append(f"trainer.critic: {said} ({source})")
        tree.hints.append("use trainer.critic=head, or leave policy.fast_inference out")
    for key in ("file", "service.dataset"):
        value = config.retrieval.file if key == "file" else config.retrieval.service.dataset
        if value is not None and len(config.data.paths) > 1:
            source = tree.source(("retrieval", *key.split(".")))
            tree.problems.append(f"retrieval.{key}: is of one dataset, and data.path names several ({source})")
            tree.hints.append("leave it out; embeddings are found by their dataset's name in retrieval.emb_dir")
    if normalize not in trainer.normalizations:
        source = tree.source(("reward", "normalize_rewards"))
        *others, last = trainer.normalizations
        said = f"with {trainer.algorithm} it must be {', '.join(others)} or {last}, not '{normalize}' ({source})"
        tree.problems.append(f"reward.normalize_rewards: {said}")


def _check_rewards(tree: _Tree, flagged: Mapping[str, Any] | None, trusted: str | None) -> None:
    """`module:attr` may name any file: such code runs only if the user names it by ``--reward`` in this very command.

    Args:
        trusted: the layer whose names are not looked up.
    """
    functions = _get(tree.values, REWARD_FUNCTIONS)
    for name, weight in functions.items() if isinstance(functions, dict) else ():
        source = tree.source((*REWARD_FUNCTIONS, name))
        if ":" in name:
            if flagged is not None and name not in flagged:
                tree.problems.append(f"reward.functions: only --reward may name custom code, `{name}` ({source})")
                tree.hints.append(f"if you trust that code, add {command_line('--reward', f'{name}={weight}')}")
        elif source != trusted:
            _check_name(REWARDS, "reward.functions", name, source, tree)


def _check_baselines(tree: _Tree, trusted: str | None) -> None:
    names, source = _get(tree.values, ("eval", "baselines")), tree.source(("eval", "baselines"))
    for name in names if isinstance(names, list | tuple) and source != trusted else ():
        if isinstance(name, str):  # else it is told as a wrong type
            _check_name(BASELINES, "eval.baselines", name, source, tree)


def _check_name(registry: Registry, key: str, name: str, source: str, tree: _Tree) -> None:
    """A name means something of rl4rec's own, or one package's plug-in, of which nothing is imported."""
    try:
        if name in registry.built_in or registry.plugin(name) is not None:
            return
    except ConfigError as error:  # several packages'
        tree.problems.append(f"{key}: {error.message} ({source})")
        tree.hints += [error.hint] if error.hint else []
        return
    names = registry.names()
    match = schema.closest(name, names)
    meant = f"did you mean {match}?" if match else f"it can be {registry.listed(names)}"
    tree.problems.append(f"{key}: unknown {registry.kind} `{name}`; {meant} ({source})")
