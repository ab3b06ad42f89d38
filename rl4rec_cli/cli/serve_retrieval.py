"""`rl4rec serve-retrieval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rl4rec_cli.cli.options import Sets, epilog
from rl4rec_cli.config.registries import EMBEDDERS

if TYPE_CHECKING:
    from rl4rec_cli.retrieval.service.serving import ServiceStatus, Serving


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
        _show_status(serving.read_status(section), connect=connect)
    else:
        serving.serve(section, [*(datasets or []), *(more or [])], num_gpus=num_gpus, ready=_show_loaded)


def _show_status(status: ServiceStatus, *, connect: bool) -> None:
    """Prints how the service is; with `connect` also what joins it from a shell and from a Python program."""
    from rl4rec_cli import console

    figures = dict(status.health)
    vectors = status.health["datasets"].items()
    figures["datasets"] = ", ".join(f"{name} {items:,} × {dim:,}" for name, (items, dim) in vectors)
    figures["item_vectors"] = ", ".join(f"{name} {words}" for name, words in status.health["item_vectors"].items())
    figures["replicas"] = ", ".join(status.health["replicas"])
    if figures["problem"] is None:
        del figures["problem"]
    console.figures(figures)
    status.check_loaded()
    if connect:
        console.result(f"In a shell:\n\n{status.shell_lines()}\n")
        console.result(f"In Python:\n\n{status.python_lines()}\n")


def _show_loaded(serving: Serving) -> None:
    """Prints what a service serves and how it is reached."""
    from rl4rec_cli import console

    service, datasets = serving.section.service, serving.datasets
    console.result(f"✓ Loaded {len(datasets)} dataset(s)")
    rows = [(name, f"{a['num_items']:,}", a["dim"], a["embedder"], a["emb_type"]) for name, a in datasets.items()]
    console.table("", ["dataset", "items", "dimensions", "embedder", "field"], rows)
    where = "this machine only" if serving.is_local else "other machines can reach it"
    actors = f"{service.shards} shard(s), {service.replicas} replica(s), {serving.num_gpus:g} GPU(s) each"
    console.result(f"{service.name} in namespace {service.namespace} at {serving.address} ({where}): {actors}")
    console.result(f"Train with it: {serving.train_command()}")
    console.log("From a shell or a program of your own: rl4rec serve-retrieval --status --connect prints the lines")
    console.log("Ctrl-C stops it")
