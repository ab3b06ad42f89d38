"""`rl4rec train`: a command for each algorithm of `config/algorithms.py`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rl4rec_cli.cli.options import Grouped, configure, epilog, find_task, parse_rewards, parse_seeds
from rl4rec_cli.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, EXAMPLES, PLAIN_EXAMPLES, Algorithm
from rl4rec_cli.config.aliases import PLAIN_OPTIONS
from rl4rec_cli.config.registries import PAIR_REWARDS, REWARDS
from rl4rec_cli.config.tasks import DEFAULT_TASK, TASKS
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.commands.train import TrainedRun
    from rl4rec_cli.config.sections import RunConfig

app = typer.Typer(
    help="Train a policy.",
    epilog=epilog(
        rl4rec("train", DEFAULT_ALGORITHM, "--quick-test"),
        rl4rec("train", DEFAULT_ALGORITHM, "--resume", f"runs/beauty-{DEFAULT_ALGORITHM}"),
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)


DATA, MODEL, TRAINING, RUN = "Data and reward", "Model", "Training", "Run"
"""Panels of the help."""
_RL, _POLICY = {"groups", "single"}, {"groups", "single", "supervised", "pairs"}
ONLY = {
    "num_generations": {"groups"},
    **dict.fromkeys(("temperature", "k"), _RL),
    **dict.fromkeys(
        (
            "prompt_file",
            "reward",
            "model",
            "task",
            "max_samples",
            "reward_config",
            "lora_r",
            "load_in_4bit",
            "bf16",
            "fp16",
            "max_new_tokens",
        ),
        _POLICY,
    ),
}
"""Options that not every kind of algorithm has."""


def _option(*names: str, panel: str, metavar: str | None = None, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)


def _add(name: str, algorithm: Algorithm) -> None:
    """Adds the command of an algorithm. All commands have the same signature, except for the options in `ONLY`."""

    def train(
        recipe: Annotated[
            list[str] | None,
            _option(
                *("-r", "--recipe"),
                panel=DATA,
                metavar="RECIPE",
                help="Packaged recipe or file; later ones win. Repeatable. Default: the one for this machine.",
            ),
        ] = None,
        task: Annotated[
            str | None, _option(panel=DATA, metavar="NAME", help=f"{' or '.join(TASKS)}; {DEFAULT_TASK} by default.")
        ] = None,
        quick_test: Annotated[
            bool, _option("--quick-test", panel=DATA, help="The recipe of the task's quick test on top.")
        ] = False,
        dataset: Annotated[
            list[str] | None,
            _option(
                panel=DATA, metavar="PATH", help="Dataset folder, or a name in data/. Repeat for several together."
            ),
        ] = None,
        max_samples: Annotated[
            int | None, _option(panel=DATA, metavar="N", help="Preference data: only the first N pairs.")
        ] = None,
        sequential_file: Annotated[
            str | None, _option(panel=DATA, metavar="FILE", help="Sequences, if not the folder's sequential_data.txt.")
        ] = None,
        prompt_file: Annotated[
            str | None, _option(panel=DATA, metavar="FILE", help="Users' prompts, if not the folder's prompts.json.")
        ] = None,
        reward: Annotated[
            list[str] | None,
            _option(
                panel=DATA,
                metavar="NAME[=W]",
                help=f"{REWARDS.listed()}, weighted. Preference: {PAIR_REWARDS.listed()}. Repeatable.",
            ),
        ] = None,
        reward_config: Annotated[
            str | None, _option(panel=DATA, metavar="FILE", help="Preference data: JSON or YAML, settings of rewards.")
        ] = None,
        k: Annotated[int | None, _option("-k", "--k", panel=DATA, metavar="K", help="Cut-off of the rewards.")] = None,
        model: Annotated[
            str | None, _option(panel=MODEL, metavar="NAME", help="`tiny`, a preset, a Hugging Face name or a folder.")
        ] = None,
        lora_r: Annotated[
            int | None, _option(panel=MODEL, metavar="R", help="Train an adapter of this rank, not all weights.")
        ] = None,
        load_in_4bit: Annotated[
            bool, _option("--load-in-4bit", panel=MODEL, help="Hold what is below the adapter in 4 bits.")
        ] = False,
        bf16: Annotated[bool, _option("--bf16", panel=MODEL, help="Compute in bf16.")] = False,
        fp16: Annotated[bool, _option("--fp16", panel=MODEL, help="Compute in fp16.")] = False,
        learning_rate: Annotated[
            float | None, _option(panel=TRAINING, metavar="X", help="Peak learning rate; not the warm start's.")
        ] = None,
        batch_size: Annotated[
            int | None,
            _option(panel=TRAINING, metavar="N", help="Prompts (sft: examples, retriever: users) per micro-batch."),
        ] = None,
        num_generations: Annotated[
            int | None, _option(panel=TRAINING, metavar="N", help="Completions per prompt: the group.")
        ] = None,
        max_steps: Annotated[int | None, _option(panel=TRAINING, metavar="N", help="Most optimiser steps.")] = None,
        epochs: Annotated[
            float | None, _option(panel=TRAINING, metavar="X", help="Passes over the examples, within --max-steps.")
        ] = None,
        temperature: Annotated[
            float | None, _option(panel=TRAINING, metavar="X", help="Sampling temperature of the completions.")
        ] = None,
        max_new_tokens: Annotated[
            int | None, _option(panel=TRAINING, metavar="N", help="Longest completion, in tokens.")
        ] = None,
        run_name: Annotated[str | None, _option(panel=RUN, metavar="NAME", help="Name of the run folder.")] = None,
        output: Annotated[
            str | None, _option(panel=RUN, metavar="DIR", help="Folder that run folders are made in.")
        ] = None,
        seeds: Annotated[
            str | None, _option(panel=RUN, metavar="N,N,…", help="One run for each of these seeds.")
        ] = None,
        report_to: Annotated[
            list[str] | None,
            _option(
                panel=RUN, metavar="NAME", help="tensorboard, wandb or trackio, beside the run folder. Repeatable."
            ),
        ] = None,
        sets: Annotated[
            list[str] | None,
            _option(
                "--set", panel=RUN, metavar="KEY=VALUE", help="Any other: `rl4rec settings` shows them. Repeatable."
            ),
        ] = None,
        resume: Annotated[
            str | None, _option(panel=RUN, metavar="RUN", help="Go on with this run folder, by its own recipe.")
        ] = None,
        allow_partial: Annotated[
            bool, _option("--allow-partial", panel=RUN, help="Resume even with a changed recipe or a state missing.")
        ] = False,
        dry_run: Annotated[bool, _option("--dry-run", panel=RUN, help="Print the configuration and stop.")] = False,
    ) -> None:
        task = task or algorithm.task
        values = locals()
        if bf16 and fp16:
            raise ConfigError("--bf16 and --fp16: give one of them")
        several_seeds = parse_seeds(seeds) if seeds is not None else ()
        flags: dict[str, Any] = {key: values[name] for name, key in PLAIN_OPTIONS.items()}
        flags["data.path"] = dataset or None
        flags["policy.quantization"] = "4bit" if load_in_4bit else None
        flags["trainer.precision"] = "bf16" if bf16 else "fp16" if fp16 else None
        flags["reward.functions"] = parse_rewards(reward) if reward else None
        flags["logging.report_to"] = [name for text in report_to for name in text.split(",")] if report_to else None
        recipes = [*_run_recipe(resume, seeds), *(recipe or [])]
        own_task = find_task(task, recipes)
        config = configure(
            algorithm=name,
            recipes=[*recipes, *([own_task.quick_test] if quick_test else [])],
            task=own_task,
            reward_config=reward_config,
            flags={key: value for key, value in flags.items() if value is not None},
            sets=sets or [],
        )
        run_seeds = several_seeds or (config.run.seed,)
        if dry_run:
            _dry_run(config, run_seeds, is_new=resume is None)
            return
        from rl4rec_cli import console
        from rl4rec_cli.commands import train as command

        folder = Path(resume) if resume is not None else None
        runs = command.train(config, run_seeds, resume=folder, allow_partial=allow_partial, show=_show)
        if runs:
            from rl4rec_cli.cli.results import print_all_seeds

            print_all_seeds(runs)
            console.log(command.next_commands(runs[-1].run, runs[-1].datasets))

    signature = inspect.signature(train, eval_str=True)
    kind = algorithm.kind
    parameters = [p for option, p in signature.parameters.items() if kind in ONLY.get(option, {kind})]
    train.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    examples = epilog(*(f"{rl4rec('train', name)} {options}" for options in EXAMPLES.get(name, PLAIN_EXAMPLES)))
    app.command(name, cls=Grouped, help=algorithm.help, short_help=algorithm.summary, epilog=examples)(train)


def _dry_run(config: RunConfig, seeds: Sequence[int], *, is_new: bool) -> None:
    """Prints the configuration on standard output, and where the run would go on standard error."""
    from rl4rec_cli import console
    from rl4rec_cli.commands.dry_run import dry_run
    from rl4rec_cli.config.layering import dump_config

    plan = dry_run(config, seeds, is_new=is_new, show=lambda config: console.result(dump_config(config)))
    for line in plan.lines():
        console.log(line)
    console.log(f"seeds: {', '.join(map(str, seeds))}")
    if config.data.path is None and config.data.synthetic is None:
        console.log("dataset: none yet; give --dataset PATH, or --quick-test for synthetic data")


def _show(trained: TrainedRun) -> None:
    from rl4rec_cli.cli.results import print_trained

    print_trained(trained)


def _run_recipe(resume: str | None, seeds: str | None) -> list[str]:
    """Returns the recipe of the run to resume."""
    from rl4rec_cli.runs.making import recipe_of

    if resume is None:
        return []
    if seeds is not None:
        raise ConfigError("--seeds cannot be given with --resume: a run has its own seed")
    return [str(recipe_of(Path(resume)))]


for name, algorithm in ALGORITHMS.items():
    _add(name, algorithm)
