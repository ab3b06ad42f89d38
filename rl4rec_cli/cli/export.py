"""`rl4rec export`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Write a trained policy as others load it.",
        epilog=epilog(
            "rl4rec export runs/beauty --to merged --output beauty-16bit --dtype bf16",
            "rl4rec export runs/beauty --checkpoint best --to adapter --push-to-hub me/beauty-qwen",
        ),
    )(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="`merged`: one model; `adapter`: the adapter alone.")
    ] = "merged",
    checkpoint: Checkpoint = None,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder to write; default: export/FORM in the run.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Weights of a merged model: bf16, fp16, fp32; `auto`: as trained.")
    ] = "auto",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="Upload it too, as this repository (private).")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Write a trained policy as others load it, with a model card.

    A merged model is what was trained and measured, in plain weights: a base that was held in 4 or 8 bits is written
    out as it was computed with. Both forms load with plain transformers and PEFT, Unsloth and vLLM.
    """
    from rl4rec_cli import console
    from rl4rec_cli.commands import export as command

    def show(written: command.Export) -> None:
        console.result(str(written.folder))

    written = command.export(
        run,
        form=to,
        output=output,
        dtype=dtype,
        push_to=push_to_hub,
        public=public,
        checkpoint=checkpoint,
        show=show,
    )
    if written.repository is not None:
        console.result(written.repository)
