"""Makes a Hugging Face folder of a language model's GGUF file: python scripts/convert_gguf.py FILE FOLDER

It needs the package gguf. The weights are written in bf16, as the quantised file has them: what quantising lost stays
lost. Three things are mended in what transformers reads from such a file.

- The end token is the one that the chat template writes after an answer, where the file names another. It pads, too,
  where the file names no padding.
- Texts are decoded as they are, without blanks taken out.
- The model is a plain one: one that is read from GGUF is marked as quantised, and cannot be saved.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl4rec_cli import console
from rl4rec_cli.errors import PolicyError, Rl4RecError, first_line
from rl4rec_cli.files.folders import problems, write_folder
from rl4rec_cli.models.turns import end_of_turn


def convert(file: Path, folder: Path, check: Callable[[Any, Any], None] = lambda model, tokenizer: None) -> None:
    """Writes the folder, whole or not at all.

    Args:
        check: gets model and tokenizer as the folder has them, and raises if they are not right.

    Raises:
        PolicyError: the file cannot be read, or its tokenizer has no end token. OSError: the folder cannot be written.
    """
    try:
        model, tokenizer = read(file)
    except PolicyError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are libraries that read it
        raise PolicyError(
            f"{file}: cannot be read as GGUF: {first_line(error)}", hint="is gguf installed? pip install gguf"
        ) from error

    def fill(temporary: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if (licence := file.with_name("LICENSE")).is_file():
            shutil.copy(licence, temporary / "LICENSE")
        check(AutoModelForCausalLM.from_pretrained(temporary), AutoTokenizer.from_pretrained(temporary))

    write_folder(folder, fill, size=sum(p.numel() * p.element_size() for p in model.parameters()))


def read(file: Path) -> tuple[Any, Any]:
    """Returns a plain model in bf16 and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    console.quiet_libraries()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    turn = end_of_turn(tokenizer)
    if turn is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(turn)
    if tokenizer.eos_token is None:
        raise PolicyError(f"{file}: its tokenizer has no end token", hint="take the repository that it was made from")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    stored = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    settings = stored.config.to_dict()
    config = type(stored.config)(
        **{
            name: value
            for name, value in settings.items()
            if name not in ("quantization_config", "_model_name_or_path")
        }
    )
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = config.max_position_embeddings
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(stored.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def is_whole(folder: Path) -> bool:
    """Whether the folder is there, and is what was written."""
    flaws = problems(folder)
    if flaws and folder.exists():
        console.log(f"{folder}: {'; '.join(flaws[:3])}: it is made anew")
    return not flaws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="where the model goes; must not exist")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists")
    if not arguments.file.is_file():
        parser.error(f"{arguments.file}: no such file")
    convert(arguments.file, arguments.folder)
    console.log(f"{arguments.folder}: a Hugging Face folder of {arguments.file.name}")


def run(command: Callable[[], None]) -> None:
    """Runs a script, and ends it by a message where the model cannot be made."""
    try:
        command()
    except (Rl4RecError, OSError) as error:
        hint = getattr(error, "hint", None)
        sys.exit(f"error: {error}" + (f"\nhint: {hint}" if hint else ""))


if __name__ == "__main__":
    run(main)
