"""`rl4rec serve-retrieval`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Sets, epilog
from rl4rec_cli.config.registries import EMBEDDERS


def add_to(app: typer.Typer) -> None:
    app.command(
        "serve-retrieval",
        epilog=epilog(
            "rl4rec serve-retrieval --datasets data/beauty data/toys --emb-type review_description --num-gpus 1",
            "rl4rec serve-retrieval --status --connect",
        ),
    )(serve_retrieval)


def serve_retrieval(
    # `--datasets A B`: the option takes one value, what follows it lands in the argument.
    more: Annotated[list[str] | None, typer.Argument(metavar="[PATH]...", help="More dataset folders.")] = None,
    datasets: Annotated[
        list[str] | None, typer.Option(metavar="PATH...", help="Dataset folders; several may follow.")
    ] = None,
    embedder: Annotated[str | None, typer.Option(metavar="NAME", help=f"{EMBEDDERS.quoted()} or a plug-in.")] = None,
    emb_type: Annotated[str | None, typer.Option(metavar="FIELD", help="Field of the items that is embedded.")] = None,
    actor_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name the service is found by: RetrievalService.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Ray namespace: rl4rec.")] = None,
    num_gpus: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="GPUs of each actor; one where there is one.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join, instead of starting one here.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Say how a running service is, and stop.")] = False,
    connect: Annotated[
        bool, typer.Option("--connect", help="With --status: the lines that join it, for a shell and for Python.")
    ] = False,
    sets: Sets = None,
) -> None:
    """Embed and rank for several trainers: a Ray service.

    Runs until Ctrl-C or SIGTERM. Needs `pip install 'rl4rec[ray]'`.
    """
    from rl4rec_cli.config.layering import load_config

    flags = {
        "retrieval.embedder": embedder,
        "retrieval.emb_type": emb_type,
        "retrieval.service.name": actor_name,
        "retrieval.service.namespace": namespace,
        "retrieval.service.address": address,
    }
    values = {key: value for key, value in flags.items() if value is not None}
    section = load_config(algorithm=None, flags=values, sets=sets or []).retrieval
    from rl4rec_cli.retrieval.service import serving

    if status or connect:
        serving.show_status(section, connect=connect)
    else:
        serving.serve(section, [*(datasets or []), *(more or [])], num_gpus=num_gpus)
