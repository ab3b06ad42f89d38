"""Build one `RunConfig` from defaults, recipes, flags and ``--set``.

Decides: the order of the layers (defaults < the command's algorithm < recipes, left to right < a file of reward
settings < flags < ``--set``), and
which parts of a recipe an algorithm reads.
Hides: how the layers merge (`layers.py`), and which checks the result must pass (`agreement.py`).

Sections merge; lists and plain values replace, and so does `reward.functions`. `null` resets an optional section.
In a recipe, `trainer.grpo: {…}` and `trainer.sft: {…}` hold values that only that algorithm reads, so that one
recipe serves several commands. An algorithm without a block reads the block of the algorithm that it is `like`.
`data.path` and `data.synthetic` are alternatives: a layer that sets one drops the other from the layers below. A layer
that sets another folder drops the files that belong to the folder below (`data.sequential_file`, `data.prompt_file`).
For these rules the command line (flags and ``--set``) is one layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from rl4rec_cli.config import schema
from rl4rec_cli.config.agreement import (
    REWARD_FUNCTIONS,
    check_baselines,
    check_embedder_settings,
    check_rewards,
    check_sections_agree,
)
from rl4rec_cli.config.algorithms import DEFAULT_ALGORITHM
from rl4rec_cli.config.aliases import OPTIONS, flag_of
from rl4rec_cli.config.dataset_folders import find_folder
from rl4rec_cli.config.layers import COMMAND, Layer, Tree, nested, value_at
from rl4rec_cli.config.recipes import find_recipe, packaged_recipes, read_recipe
from rl4rec_cli.config.reward_file import read_reward_file
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import trainer_sections
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.models.names import find_model
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.strict_yaml import YamlError, dump_yaml, load_yaml

__all__ = ["dump_config", "find_recipe", "load_config", "packaged_recipes"]

# The flag that sets a key, for messages; any other key that comes as a flag is named by itself.
FLAGS = {key: flag_of(key) for key in OPTIONS.values()} | {
    "retrieval.embedder": "--embedder",
    "retrieval.model": "--model",
    "retrieval.dtype": "--dtype",
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


def load_config(
    *,
    algorithm: str | None,
    recipes: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    allow_custom_rewards: bool = False,
    is_run: bool = False,
    reward_config: str | None = None,
) -> RunConfig:
    """Merges recipes, flags and ``--set`` over the defaults.

    Args:
        algorithm: the command's algorithm; None takes it from the recipes.
        recipes: names of packaged recipes, or paths (with a `/`, or ending in `.yaml` or `.json`).
        flags: the flags' values, as dotted keys or nested: `{"data.path": "beauty"}`, `{"data": {"path": "beauty"}}`.
        sets: `section.key=value` texts.
        allow_custom_rewards: accept `module:attr` rewards from any layer. Only for commands that run no reward
            code; elsewhere such code must be named by the flag ``--reward`` itself.
        is_run: the first recipe is a run's own configuration. Its names existed when the run was made. A plug-in that
            is no longer installed raises its error when it is used, so that the run can be opened without it.
        reward_config: a file of reward settings (`reward_file.py`), a layer between recipes and flags.

    Raises:
        ConfigError: lists every problem, each with its key and the layer it came from.
    """
    tree = Tree()
    files = list(_read_recipes(recipes, tree))
    if reward_config is not None:
        files += read_reward_file(reward_config, tree)
    pairs = [pair for text in sets if (pair := _split_set(text, tree))]
    tree.algorithm = _choose_algorithm(algorithm, files, pairs, tree)
    line = list(_flag_layers(flags or {}, tree.algorithm))
    flag_rewards: dict[str, Any] = next(
        (rewards for layer in line if (rewards := value_at(layer.values, REWARD_FUNCTIONS))), {}
    )
    line += [layer for path, text in pairs if (layer := _set_layer(path, text, tree))]

    tree.merge(Layer(COMMAND, {"trainer": {"algorithm": tree.algorithm}}))
    for layers in [*([layer] for layer in files), line]:
        tree.drop_alternatives(layers)
        for layer in layers:
            _select_trainer(layer, tree)
            tree.merge(layer)

    config = _validate(tree)
    trusted_source = files[0].source if is_run and files else None
    check_rewards(tree, None if allow_custom_rewards else flag_rewards, trusted_source)
    check_baselines(tree, trusted_source)
    if config is not None:
        check_sections_agree(config, tree)
        check_embedder_settings(config, tree, [*([layer] for layer in files), line])
    if config is None or tree.problems:
        problems = list(dict.fromkeys(tree.problems))
        if len(problems) > 1:
            problems = [f"{len(problems)} problems in the configuration", *(f"  {problem}" for problem in problems)]
        raise ConfigError("\n".join(problems), hint="; ".join(dict.fromkeys(tree.hints)) or None)
    return _with_folders(config)


def dump_config(config: RunConfig) -> str:
    """Returns the whole configuration as YAML. Read as a recipe, it gives an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def _with_folders(config: RunConfig) -> RunConfig:
    """Replaces plain names of datasets in `data/` and of a model in `models/` by their folders."""
    folders = tuple(find_folder(path) for path in config.data.paths)
    if folders != config.data.paths:
        data = config.data.model_copy(update={"path": folders if len(folders) > 1 else folders[0]})
        config = config.model_copy(update={"data": data})
    model = find_model(config.policy.model)
    if model != config.policy.model:
        config = config.model_copy(update={"policy": config.policy.model_copy(update={"model": model})})
    return config


def _read_recipes(names: Sequence[str], tree: Tree) -> Iterator[Layer]:
    for name in names:
        try:
            yield Layer(f"recipe {name}", read_recipe(name))
        except ConfigError as error:
            tree.problems.append(error.message)
            tree.hints += [error.hint] if error.hint else []


def _flag_layers(flags: Mapping[str, Any], algorithm: str, prefix: schema.Path = ()) -> Iterator[Layer]:
    for key, value in flags.items():
        path = (*prefix, *key.split("."))
        if isinstance(value, Mapping) and schema.section_at(path, algorithm):
            yield from _flag_layers(value, algorithm, path)
        else:
            name = ".".join(path)
            yield Layer(FLAGS.get(name, name), nested(path, value))


def _split_set(text: str, tree: Tree) -> tuple[schema.Path, str] | None:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        tree.problems.append(f"--set {schema.short(text)}: must be section.key=value")
        return None
    return path, value


def _set_layer(path: schema.Path, text: str, tree: Tree) -> Layer | None:
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
    return Layer("--set", nested(path, value), adds_to)


def _choose_algorithm(
    command: str | None, files: Sequence[Layer], pairs: Sequence[tuple[schema.Path, str]], tree: Tree
) -> str:
    sections = trainer_sections()
    choices = [(layer.source, value_at(layer.values, ("trainer", "algorithm"))) for layer in files]
    choices += [("--set", text.strip()) for path, text in pairs if path == ("trainer", "algorithm")]
    algorithm = command or DEFAULT_ALGORITHM
    for source, name in choices:
        if name is None or name == command:
            continue
        if not isinstance(name, str) or name not in sections:
            value = schema.short(name)
            tree.problems.append(f"trainer.algorithm: must be one of {', '.join(sections)}, not {value} ({source})")
        elif command:
            tree.problems.append(f"trainer.algorithm: {source} is for {name}, this command trains with {command}")
            tree.hints.append(f"use `{rl4rec('train', name)}`")
        else:
            algorithm = name
    return algorithm


def _select_trainer(layer: Layer, tree: Tree) -> None:
    """Keeps the part of a layer's trainer section that the algorithm reads, and checks the rest in place."""
    trainer = layer.values.get("trainer")
    if not isinstance(trainer, dict):
        return
    if trainer.get("algorithm", tree.algorithm) != tree.algorithm:  # reported, or replaced by a higher layer
        layer.values = {**layer.values, "trainer": {}}
        return
    sections = trainer_sections()
    values = {key: value for key, value in trainer.items() if key not in sections}
    own = sections[tree.algorithm]
    for name in sections:
        block = trainer.get(name)
        if block is None:
            continue
        if not isinstance(block, dict) or "algorithm" in block:
            tree.problems.append(f"trainer.{name}: must be a section of trainer keys ({layer.source})")
        elif name == tree.algorithm:
            values = {**values, **block}
        else:
            aside = Tree(name, {"trainer": {"algorithm": name, **block}}, {("trainer",): layer.source})
            _validate(aside)
            tree.problems += [problem.replace("trainer.", f"trainer.{name}.", 1) for problem in aside.problems]
            if name == own.like and trainer.get(tree.algorithm) is None:
                values |= {key: value for key, value in block.items() if key in own.model_fields}
    layer.values = {**layer.values, "trainer": values}


def _validate(tree: Tree) -> RunConfig | None:
    if bad := next(_not_unicode(tree.values), None):
        tree.problems.append(f"{'.'.join(bad)!a}: is not UTF-8 text ({tree.source(bad)})")
        return None
    try:
        # Strict JSON mode: lists become tuples, and neither `true` nor "5" passes for a number.
        return RunConfig.model_validate_json(json.dumps(tree.values), strict=True)
    except ValidationError as error:
        for path, problem in schema.explain(error.errors(include_url=False), tree.algorithm):
            tree.problems.append(f"{'.'.join(path)}: {problem} ({tree.source(path)})")
    return None


def _not_unicode(value: Any, path: schema.Path = ()) -> Iterator[schema.Path]:
    """Finds bytes of the command line that are not UTF-8. They arrive as surrogates, which no file can hold."""
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
