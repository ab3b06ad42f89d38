"""`rl4rec train grpo|ppo|rloo|reinforce|sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rl4rec_cli.cli.options import Recipes, Sets, epilog, parse_rewards, parse_seeds

app = typer.Typer(
    help="Train a policy.",
    epilog=epilog("rl4rec train grpo --quick-test", "rl4rec train grpo --resume runs/beauty-grpo"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _add(algorithm: str, summary: str, *examples: str) -> None:
    """All algorithms have the same signature; what differs is in the configuration's `trainer` section."""

    @app.command(algorithm, help=summary, epilog=epilog(*examples))
    def train(
        recipe: Recipes = None,
        dataset: Annotated[
            list[str] | None, typer.Option(metavar="PATH", help="Dataset folder. Repeat to train on several together.")
        ] = None,
        model: Annotated[
            str | None, typer.Option(metavar="NAME", help="`tiny`, a preset, a Hugging Face name or a folder.")
        ] = None,
        output: Annotated[str | None, typer.Option(metavar="DIR", help="Folder that run folders are made in.")] = None,
        seeds: Annotated[str | None, typer.Option(metavar="N,N,…", help="One run for each of these seeds.")] = None,
        reward: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME[=W]", help="ndcg, hit, mrr, mixed or module:attr, weighted. Repeatable."),
        ] = None,
        quick_test: Annotated[bool, typer.Option("--quick-test", help="The recipe quick-test on top.")] = False,
        report_to: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME", help="tensorboard, wandb or trackio, beside the run folder. Repeatable."),
        ] = None,
        sets: Sets = None,
        resume: Annotated[
            str | None, typer.Option(metavar="RUN", help="Go on with this run folder, by its own recipe.")
        ] = None,
        allow_partial: Annotated[
            bool, typer.Option("--allow-partial", help="Resume even with a changed recipe or a state missing.")
        ] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and stop.")] = False,
    ) -> None:
        from rl4rec_cli.layering import load_config

        flags: dict[str, Any] = {"data.path": dataset or None, "policy.model": model, "run.output_dir": output}
        flags["reward.functions"] = parse_rewards(reward) if reward else None
        flags["logging.report_to"] = [name for text in report_to for name in text.split(",")] if report_to else None
        config = load_config(
            algorithm=algorithm,
            recipes=[*_run_recipe(resume, seeds), *(recipe or []), *(["quick-test"] if quick_test else [])],
            flags={key: value for key, value in flags.items() if value is not None},
            sets=sets or [],
        )
        chosen = parse_seeds(seeds) if seeds is not None else (config.run.seed,)
        if dry_run:
            from rl4rec_cli.cli.dry_run import show

            show(config, chosen)
            return
        from rl4rec_cli.train.session import train as run

        run(config, chosen, resume=Path(resume) if resume is not None else None, allow_partial=allow_partial)


def _run_recipe(resume: str | None, seeds: str | None) -> list[str]:
    """The recipe of the run to go on with."""
    from rl4rec_cli.errors import ConfigError
    from rl4rec_cli.runs import recipe_of

    if resume is None:
        return []
    if seeds is not None:
        raise ConfigError("--seeds cannot be given with --resume: a run has its own seed")
    return [str(recipe_of(Path(resume)))]


_add(
    "grpo",
    "Reinforcement learning: raise the rank of the item the user chose next (GRPO).",
    "rl4rec train grpo --quick-test --seeds 0,1,2",
    "rl4rec train grpo -r beauty-cpu --dataset data/beauty --set trainer.max_steps=200",
)
_add(
    "ppo",
    "Reinforcement learning with a critic, one text per prompt (PPO).",
    "rl4rec train ppo --quick-test",
    "rl4rec train ppo -r beauty-cpu --dataset data/beauty --set trainer.lam=1 --set trainer.target_kl=0.05",
)
_add(
    "rloo",
    "Reinforcement learning with the other texts of a prompt as baseline (RLOO).",
    "rl4rec train rloo --quick-test",
    "rl4rec train rloo -r beauty-cpu --dataset data/beauty --set trainer.beta=0.02",
)
_add(
    "reinforce",
    "Reinforcement learning with the batch's mean as baseline, one text per prompt (REINFORCE).",
    "rl4rec train reinforce --quick-test",
    "rl4rec train reinforce -r beauty-cpu --dataset data/beauty --set trainer.batch_size=64",
)
_add(
    "sft",
    "Supervised fine-tuning: learn to write the next item's text (the warm start).",
    "rl4rec train sft --quick-test",
    "rl4rec train sft -r beauty-grpo --dataset data/beauty --output runs/sft",
)
