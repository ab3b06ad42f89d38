#!/bin/sh
# Install the pinned PyTorch into the environment of the given Python: the CUDA build where there is an NVIDIA GPU,
# else the CPU build, which saves several gigabytes of CUDA libraries.
set -eu
python=$1
version=$("$python" - <<'PY'
import re, pathlib
print(re.search(r'"torch==([\d.]+)"', pathlib.Path("pyproject.toml").read_text())[1])
PY
)
"$python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$version')" 2>/dev/null && exit 0
pip="$python -m pip install --quiet --disable-pip-version-check"
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    exec $pip "torch==$version"
fi
# The CPU build is not in every package index: first as the user's pip is set up, then from PyTorch's own index,
# which uv knows.
echo "installing torch $version (CPU build)"
$pip "torch==$version+cpu" 2>/dev/null && exit 0
$pip uv && "$python" -m uv pip install --quiet --python "$python" --torch-backend cpu "torch==$version" 2>/dev/null && exit 0
echo "warning: no CPU build of torch $version found; installing the default build, which brings CUDA libraries" >&2
exec $pip "torch==$version"
