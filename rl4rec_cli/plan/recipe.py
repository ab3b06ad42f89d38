"""The recipe of a training run that names none.

Decides: which packaged recipe suits the machine and the named model, and the reason that the user reads.
Hides: how to tell, without torch, whether there is a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.models.names import TINY


@dataclass(frozen=True)
class MachineRecipe:
    recipe: str
    reason: str


def choose_recipe(model: str | None, sets: Sequence[str], gpus: Sequence[str] = ()) -> MachineRecipe:
    """Returns the recipe for this machine, or for one with these GPUs.

    Args:
        model: the value of `--model`; None without it.
        sets: `policy.model=…` and `policy.device=…` among them count.
        gpus: as `--gpu` has them.

    Raises:
        Rl4RecError: there may be a GPU, but `find_machine` cannot look at it.
    """
    values = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in sets)}
    model = values.get("policy.model", model)
    device = values.get("policy.device", "auto")
    if model == TINY:
        return MachineRecipe("cpu", "the tiny policy")
    if device.startswith("cuda") or (device == "auto" and (gpus or _has_gpu())):
        if gpus or find_spec("unsloth") is not None:
            return MachineRecipe("gpu", "there is a GPU: LoRA over 4 bits, by Unsloth")
        if find_spec("bitsandbytes") is not None:
            return MachineRecipe("gpu", "there is a GPU, but no unsloth: LoRA over 4 bits, by transformers")
        return MachineRecipe("lora", "there is a GPU, but neither unsloth nor bitsandbytes: LoRA over whole weights")
    where = "no GPU is used" if device != "auto" else "no GPU here"
    if model is not None:
        return MachineRecipe("lora", f"{where}: LoRA on {model}, slow on a CPU")
    return MachineRecipe("cpu", f"{where}: a tiny policy, warm-started, and the embedder lsa, which needs no download")


def _has_gpu() -> bool:
    from rl4rec_cli.plan.machine import find_machine

    try:
        return bool(find_machine().gpus)
    except Rl4RecError as error:
        raise Rl4RecError(
            f"no recipe is given, and whether one for a GPU suits is not known: {error.message}",
            hint="name one: -r cpu, -r gpu, or -r lora",
        ) from error
