"""The weights that vLLM receives: which tensors, by which names, and in which files.

Decides: that files lie in memory where there is room and belong to this user alone. They disappear with the process
that wrote them; if that was killed, the next one removes them.
Hides: PEFT's names for an adapter's tensors, and the merge.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rl4rec_cli.errors import EngineError, RunError
from rl4rec_cli.files.locks import take_lock
from rl4rec_cli.models.adapters import is_peft

_FOLDER, _LOCK = "rl4rec-vllm-", ".lock"


def make_folder(owner: Any, size: int) -> tuple[Path, Any]:
    """Makes a folder for files of `size` bytes, in memory where there is room.

    It also removes the folders of killed processes, which take up memory until then.

    Returns:
        The folder, and a function that removes it. It runs at the latest when `owner` is gone.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1.1 * size
    place = memory if has_room else Path(tempfile.gettempdir())
    for leftover in place.glob(f"{_FOLDER}*"):
        with suppress(OSError, RunError):  # another user's, or another process removes it too
            # A folder without a lock is one that another process is making at this moment.
            if (leftover / _LOCK).stat().st_uid == os.getuid() and (lock := take_lock(leftover / _LOCK)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=place))
    lock = take_lock(folder / "new", mode=0o600)
    (folder / "new").rename(folder / _LOCK)  # others see the lock only after this process holds it
    return folder, weakref.finalize(owner, _remove, folder, lock)


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Returns the adapter's tensors, or all tensors of a model without an adapter, on the CPU."""
    if not is_peft(model):
        return _on_cpu(model.state_dict())
    from peft import get_peft_model_state_dict

    return _on_cpu(get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False))


def adapts_tied_ends(model: Any) -> bool:
    """Whether an adapter changes the embedding or the head of a base that shares weights between them.

    vLLM has one matrix for both then: an adapter on one end would change the other, or neither.
    """
    if not is_peft(model):
        return False
    plain = model.get_base_model()
    if not getattr(plain.config.get_text_config(), "tie_word_embeddings", False):
        return False
    return any(hasattr(end, "base_layer") for end in (plain.get_input_embeddings(), plain.get_output_embeddings()))


@torch.no_grad()
def whole_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Returns all weights with the adapter merged in, by their names without an adapter, on the CPU."""
    if not is_peft(model):
        return _on_cpu(model.state_dict())
    plain = model.get_base_model()
    state = {n.replace(".base_layer.", "."): w for n, w in plain.state_dict().items() if "lora_" not in n}
    for name, module in plain.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    return _on_cpu(state)


def _on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> int:
    """Writes tensors into a file and returns its size in bytes.

    Raises:
        EngineError: the file cannot be written, as for want of room.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        places: set[int] = set()
        apart = {}
        for name, tensor in tensors.items():  # tied weights share memory, which `save_file` refuses
            apart[name] = tensor.clone() if tensor.data_ptr() in places else tensor
            places.add(tensor.data_ptr())
        path.unlink(missing_ok=True)  # a new file: vLLM may still read the one before
        save_file(apart, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise EngineError(
            f"{path}: cannot hand the weights to vLLM: {error}", hint="make room in memory-backed storage (/dev/shm)"
        ) from error
    return path.stat().st_size
