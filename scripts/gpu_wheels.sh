#!/bin/sh
# Collect wheels for a GPU machine without network: Linux x86-64, Python 3.12, torch with CUDA 13, and beside it
# transformers, accelerate, scikit-learn, pandas, pyarrow, matplotlib, PyYAML, Jinja2, rich, pytest and hypothesis.
#
#     sh scripts/gpu_wheels.sh FOLDER              # here, with an index at hand
#     python -m pip install --no-index --no-deps --upgrade --target SITE FOLDER/*.whl     # there
#     PYTHONPATH=SITE python scripts/gpu_check.py --first
#
# What that machine has in another version than the pinned one (typer, peft, sentence-transformers) comes along, and
# stands before it on the path. pyarrow (53 MiB) and vLLM (hundreds) do not travel. PYTHON names the Python whose pip is
# asked. Fails where the folder outgrows 64 MiB.
set -eu
folder=${1:?usage: sh scripts/gpu_wheels.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
limit=$((64 * 1024 * 1024))
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What rl4rec needs: versions of constraints.txt, by which the tests ran.
for name in trl datasets dill multiprocess requests urllib3 charset-normalizer xxhash peft sentence-transformers typer \
    bm25s pydantic pydantic_core annotated-types annotated-doc typing-inspection fsspec; do
    grep -i "^$name==" "$here/constraints.txt"
done >"$work/wanted"
# Unsloth and bitsandbytes with what they need, less what such a machine has.
grep -v '^#' "$here/requirements-unsloth-cpu.txt" | grep -viE '^(einops|protobuf|sentencepiece)==' >>"$work/wanted"

platforms=
for tag in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms="$platforms --platform manylinux_${tag}_x86_64"; done
# shellcheck disable=SC2086  # the platforms are words of their own
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    --dest "$work/wheels" --requirement "$work/wanted"

# The same wheels without what no such machine loads, and RECORD without it, too.
"$python" - "$work/wheels" "$folder" <<'PY'
import re
import sys
import zipfile
from pathlib import Path

DROPPED = {
    "bitsandbytes": r"bitsandbytes/libbitsandbytes_(?!cpu\.|cuda13)",  # other CUDA releases, ROCm, XPU
    "unsloth": r"studio/",  # a web application
}
source, folder = map(Path, sys.argv[1:])
for wheel in sorted(source.glob("*.whl")):
    dropped = re.compile(DROPPED.get(wheel.name.partition("-")[0], r"(?!)"))
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if dropped.match(entry.filename):
                continue
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if not dropped.match(line.lstrip('"'))).encode()
            new.writestr(entry, data, zipfile.ZIP_DEFLATED)
PY
size=0
for wheel in "$folder"/*.whl; do size=$((size + $(wc -c <"$wheel"))); done
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $((size / 1024 / 1024)) MiB"
[ "$size" -lt "$limit" ] || { echo "error: more than 64 MiB" >&2; exit 1; }
