"""`rl4rec embed`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Sets, epilog
from rl4rec_cli.config.registries import EMBEDDERS


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=epilog(
            "rl4rec embed data/beauty --model sentence-transformers/all-MiniLM-L6-v2 --out beauty.pt",
            "rl4rec embed data/beauty --embedder lsa --set retrieval.lsa_dim=64 --out lsa.pt",
        )
    )(embed)


def embed(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    embedder: Annotated[str | None, typer.Option(metavar="NAME", help=f"{EMBEDDERS.quoted()} or a plug-in.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="sentence-transformers model or folder.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="TYPE", help="Computed in `fp32`, `bf16` or `fp16`.")] = None,
    emb_type: Annotated[str | None, typer.Option(metavar="FIELD", help="Field of the items that is embedded.")] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="File to write, .safetensors or .pt.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="`auto`, `cpu`, `cuda`, `cuda:1` …")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Texts embedded at once.")] = None,
    sets: Sets = None,
) -> None:
    """Embed a dataset's items and store the vectors."""
    from rl4rec_cli import console
    from rl4rec_cli.config.layering import load_config

    flags = {"embedder": embedder, "model": model, "dtype": dtype, "emb_type": emb_type, "device": device}
    values = {f"retrieval.{k}": v for k, v in {**flags, "batch_size": batch_size}.items() if v is not None}
    section = load_config(algorithm=None, flags=values, sets=sets or []).retrieval
    from rl4rec_cli.data.opening import load_dataset

    source = load_dataset(dataset)  # its errors are told before torch is imported
    from rl4rec_cli.retrieval.embedding_files import embed_dataset

    console.result(str(embed_dataset(source, section, out)))
