"""Check that the parts of a configuration go together, and that the names in it exist.

Decides: which sections do not go together; where custom reward code may be named: plug-ins anywhere, `module:attr`
by ``--reward`` alone.
Hides: the wording of the problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl4rec_cli.config import schema
from rl4rec_cli.config.layers import Layer, Tree, value_at
from rl4rec_cli.config.plugins import Registry
from rl4rec_cli.config.registries import BASELINES, EMBEDDERS
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.tasks import DEFAULT_TASK, TASKS, Task
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.shell import command_line

REWARD_FUNCTIONS = ("reward", "functions")


def check_sections_agree(config: RunConfig, tree: Tree) -> None:
    """Adds to the tree's problems the sections that do not go together."""
    trainer, normalize = config.trainer, config.reward.normalize_rewards
    _check_task(config, tree)
    if trainer.has_adapter_critic and config.policy.lora is None:
        source = tree.source(("trainer", "critic"))
        tree.problems.append(f"trainer.critic: an adapter of the critic's own needs a policy with one ({source})")
        tree.hints.append("give policy.lora, e.g. --set policy.lora.r=16, or use trainer.critic=head")
    if config.policy.fast_inference and trainer.holds_reference:
        source = tree.source(("policy", "fast_inference"))
        problem = "with trainer.beta above 0 the engine would be given the reference, too"
        tree.problems.append(f"policy.fast_inference: {problem} ({source})")
        tree.hints.append("set trainer.beta to 0, or leave policy.fast_inference out")
    if config.policy.fast_inference and trainer.has_adapter_critic:
        source = tree.source(("trainer", "critic"))
        problem = "with policy.fast_inference the engine would be given the critic's adapter, too"
        tree.problems.append(f"trainer.critic: {problem} ({source})")
        tree.hints.append("use trainer.critic=head, or leave policy.fast_inference out")
    _check_completions_agree(config, tree)
    if config.generation.share_prompts and trainer.has_groups and trainer.gradient_checkpointing:
        source = tree.source(("generation", "share_prompts"))
        problem = "gradient checkpointing keeps no keys and values of a prompt"
        tree.problems.append(f"generation.share_prompts: {problem} ({source})")
        tree.hints.append("leave out trainer.gradient_checkpointing, or set generation.share_prompts to false")
    if config.reward.pays_marginal and trainer.learns_from_rewards and not trainer.has_groups:
        source = tree.source(("reward", "credit"))
        problem = f"{trainer.algorithm} has one completion per prompt, and so no group that could lose by it"
        tree.problems.append(f"reward.credit: {problem} ({source})")
        tree.hints.append("set reward.credit to own, or train by grpo or rloo")
    for key in ("file", "service.dataset"):
        value = config.retrieval.file if key == "file" else config.retrieval.service.dataset
        if value is not None and len(config.data.paths) > 1:
            source = tree.source(("retrieval", *key.split(".")))
            tree.problems.append(f"retrieval.{key}: is of one dataset, and data.path names several ({source})")
            tree.hints.append("leave it out; embeddings are found by their dataset's name in retrieval.emb_dir")
    if normalize not in trainer.normalizations:
        source = tree.source(("reward", "normalize_rewards"))
        *others, last = trainer.normalizations
        problem = f"with {trainer.algorithm} it must be {', '.join(others)} or {last}, not '{normalize}' ({source})"
        tree.problems.append(f"reward.normalize_rewards: {problem}")


def _check_task(config: RunConfig, tree: Tree) -> None:
    """Refuses settings that only another task reads: they would be ignored in silence."""
    task = config.run.task
    for other, key in ((name, key) for name, one in TASKS.items() if name != task for key in one.settings):
        path = tuple(key.split("."))
        if key not in config.task.settings and _value(config, path) != schema.default_at(path, tree.algorithm):
            tree.problems.append(f"{key}: is of the task {other}, and this run's is {task} ({tree.source(path)})")
            tree.hints.append(f"leave it out, or give {command_line('--task', other)}")
    for phase in config.trainer.phases:
        taught = getattr(phase, "target", None)
        if taught is not None and taught not in config.task.taught:
            path = ("trainer", "target") if phase is config.trainer else ("trainer", "warm_start", "target")
            problem = f"the task {task} has {' and '.join(config.task.taught)} to teach, not {taught}"
            tree.problems.append(f"{'.'.join(path)}: {problem} ({tree.source(path)})")
    supervision = getattr(config.trainer, "taught", None)
    if supervision is not None and supervision.texts_per_example > 1:
        problem = "a mixed loss teaches one text after each prompt, and the warm start teaches both"
        tree.problems.append(f"trainer.sft_weight: {problem} ({tree.source(('trainer', 'sft_weight'))})")
        tree.hints.append("set trainer.warm_start.target=next")
    if config.trainer.compares_answers and not config.task.has_pairs:
        having = next(name for name, one in TASKS.items() if one.has_pairs)
        problem = f"{config.trainer.algorithm} learns from pairs of answers, and the task {task} has none"
        tree.problems.append(f"run.task: {problem} ({tree.source(('run', 'task'))})")
        tree.hints.append(f"give {command_line('--task', having)}")
    if not config.task.has_catalogue and not config.trainer.trains_policy:
        problem = f"{config.trainer.algorithm} trains on a catalogue, and the task {task} has none"
        tree.problems.append(f"run.task: {problem} ({tree.source(('run', 'task'))})")


def _value(config: RunConfig, path: schema.Path) -> Any:
    """Returns the value of a key; the default of a trainer's that this algorithm has not."""
    value: Any = config
    for name in path:
        value = getattr(value, name, None)
    return value


def _task(tree: Tree) -> Task:
    name = value_at(tree.values, ("run", "task"))
    return TASKS.get(name if isinstance(name, str) else DEFAULT_TASK, TASKS[DEFAULT_TASK])


def _check_completions_agree(config: RunConfig, tree: Tree) -> None:
    texts, beams = config.generation.texts_per_user, config.generation.num_beams
    source = tree.source(("generation", "num_beams" if beams > 1 else "texts_per_user"))
    if beams > 1 and config.eval.temperature > 0:
        tree.problems.append(f"generation.num_beams: beam search does not sample, so eval.temperature is 0 ({source})")
        tree.hints.append("leave one of them out")
    if beams > 1 and config.policy.fast_inference:
        tree.problems.append(f"generation.num_beams: the engine of policy.fast_inference samples only ({source})")
        tree.hints.append("leave one of them out")
    if texts > 1 and beams == 1 and config.eval.temperature == 0:
        problem = "at eval.temperature 0 all completions of a user are the same"
        tree.problems.append(f"generation.texts_per_user: {problem} ({source})")
        tree.hints.append(f"sample them (eval.temperature=1), or search them (generation.num_beams={texts})")
    if texts == 1 and config.generation.weighs_texts:
        where = tree.source(("generation", "text_weights"))
        tree.problems.append(f"generation.text_weights: one completion has nothing to be weighed against ({where})")
        tree.hints.append("set generation.texts_per_user above 1, or leave it out")
    if (texts > 1 or beams > 1) and not config.trainer.trains_policy:
        key = "num_beams" if beams > 1 else "texts_per_user"
        tree.problems.append(f"generation.{key}: a retriever writes no completions ({source})")
        tree.hints.append("leave it out")


def check_embedder_settings(config: RunConfig, tree: Tree, layers: Sequence[Sequence[Layer]]) -> None:
    """Refuses settings that some embedder reads and the configured one does not: they would be ignored in silence.

    A recipe may lay another embedder over a model. A setting counts only where it comes after the embedder, or on the
    command line.

    Args:
        layers: low to high; the last holds the command line.
    """
    chosen = config.retrieval.embedder
    if chosen not in EMBEDDERS.built_in:
        return  # a plug-in is not imported before it is used
    read = {name: tuple(EMBEDDERS.load(name).settings) for name in EMBEDDERS.built_in}
    for key in dict.fromkeys(key for keys in read.values() for key in keys if key not in read[chosen]):
        path, last = ("retrieval", key), len(layers) - 1
        setter, chooser = _last_layer(layers, path), _last_layer(layers, ("retrieval", "embedder"))
        if setter is None or (setter < last and setter <= (-1 if chooser is None else chooser)):
            continue
        source, embedder = tree.source(path), f"{chosen} ({tree.source(('retrieval', 'embedder'))})"
        tree.problems.append(f"retrieval.{key}: embedder {embedder} does not read it ({source})")
        readers = [name for name, keys in read.items() if key in keys]
        tree.hints.append(f"leave it out, or give retrieval.embedder={readers[0]}")


def _last_layer(layers: Sequence[Sequence[Layer]], path: schema.Path) -> int | None:
    """The highest place in `layers` that sets a value, or None."""
    places = [n for n, group in enumerate(layers) if any(value_at(layer.values, path) is not None for layer in group)]
    return places[-1] if places else None


def check_rewards(tree: Tree, flagged: Mapping[str, Any] | None, trusted: str | None) -> None:
    """Checks the names of rewards. `module:attr` can name any file, so this command's ``--reward`` itself must name it.

    Args:
        trusted: the layer whose names are not looked up.
    """
    functions, task = value_at(tree.values, REWARD_FUNCTIONS), _task(tree)
    for name, weight in functions.items() if isinstance(functions, dict) else ():
        source = tree.source((*REWARD_FUNCTIONS, name))
        if ":" in name:
            if flagged is not None and name not in flagged:
                tree.problems.append(f"reward.functions: only --reward may name custom code, `{name}` ({source})")
                tree.hints.append(f"if you trust that code, add {command_line('--reward', f'{name}={weight}')}")
        elif source != trusted and not (task.names_models and "/" in name):
            _check_name(task.rewards, "reward.functions", name, source, tree)


def check_baselines(tree: Tree, trusted: str | None) -> None:
    """Checks that every baseline is rl4rec's own or a plug-in. `trusted` is as in `check_rewards`."""
    names, source = value_at(tree.values, ("eval", "baselines")), tree.source(("eval", "baselines"))
    for name in names if isinstance(names, list | tuple) and source != trusted else ():
        if isinstance(name, str):  # else it is told as a wrong type
            _check_name(BASELINES, "eval.baselines", name, source, tree)


def _check_name(registry: Registry, key: str, name: str, source: str, tree: Tree) -> None:
    """Checks that a name is rl4rec's own or the plug-in of exactly one package. It imports nothing of the plug-in."""
    try:
        if name in registry.built_in or registry.plugin(name) is not None:
            return
    except ConfigError as error:  # several packages'
        tree.problems.append(f"{key}: {error.message} ({source})")
        tree.hints += [error.hint] if error.hint else []
        return
    names = registry.names()
    match = schema.closest(name, names)
    suggestion = f"did you mean {match}?" if match else f"it can be {registry.listed(names)}"
    tree.problems.append(f"{key}: unknown {registry.kind} `{name}`; {suggestion} ({source})")
