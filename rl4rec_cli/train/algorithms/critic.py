"""The critic of PPO: what reward it expects before each token of a text.

Decides: what the critic is (a small network on the policy's hidden states, or on those of its own LoRA adapter over
the shared base), that it starts by expecting 0, and the file it is kept in.
Hides: how hidden states are got out of a model, and switching adapters.

The critic is no part of the policy: a checkpoint holds it in a file beside the policy's (`critic.safetensors`), which
`from_pretrained` does not look at, and an exported policy has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl4rec_cli.errors import ConfigError, PolicyError

CRITIC_FILE = "critic.safetensors"
ADAPTER = "critic"
POLICY_ADAPTER = "default"


@contextmanager
def lm_head_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Collect the hidden states that the language-model head reads: they cost no pass of their own.

    Yields:
        a list that grows by one `[B, …, hidden]` tensor for each pass through the model.
    """
    inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


class Critic:
    """Values of token positions.

    Args:
        model: the policy's model.
        kind: `head` or `adapter`.
        seed: initialisation. The global generator is left alone: a critic changes no text that is sampled.

    Raises:
        ConfigError: an adapter of its own where the policy has none.
    """

    def __init__(self, model: Any, kind: str, *, seed: int) -> None:
        self.has_adapter = kind == "adapter"
        self._model = model
        if self.has_adapter and POLICY_ADAPTER not in getattr(model, "peft_config", {}):
            raise ConfigError(
                "trainer.critic: an adapter of the critic's own needs a policy with one",
                hint="give policy.lora, e.g. --set policy.lora.r=16, or use trainer.critic=head",
            )
        device = next(model.parameters()).device
        width = model.get_output_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)).to(device)
            if self.has_adapter:
                _add_adapter(model)
        last = self.head[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What the critic learns, by name."""
        parameters = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        if self.has_adapter:
            parameters |= {name: p for name, p in self._model.named_parameters() if f".{ADAPTER}." in name}
        return parameters

    def values(self, hidden_BTH: Tensor) -> Tensor:
        """`[B, T]` float32 values, in units of the reward, from `[B, T, hidden]` states."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return self.head(hidden_BTH.float()).squeeze(-1)

    def read(self, ids_BL: Tensor, mask_BL: Tensor, tokens: int) -> Tensor:
        """`[B, tokens, hidden]` states of the critic's own adapter, before each of the last tokens was written."""
        with self._active():
            backbone = self._model.base_model.model.base_model
            states_BLH = backbone(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        return states_BLH[:, -tokens - 1 : -1]

    @contextmanager
    def _active(self) -> Iterator[None]:
        self._model.set_adapter(ADAPTER)
        try:
            yield
        finally:
            self._model.set_adapter(POLICY_ADAPTER)
            self.unfreeze()

    def unfreeze(self) -> None:
        """Whoever activates another adapter freezes this one, and a frozen one gets no gradient."""
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights.

        Raises:
            PolicyError: they are another critic's.
        """
        own = self.named_parameters()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise PolicyError(
                "the stored critic is of another kind or size than this one",
                hint="use the trainer.critic and the policy it was stored with",
            )
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write its file into a checkpoint."""
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / CRITIC_FILE)

    def load(self, folder: Path) -> None:
        """Read its file from a checkpoint.

        Raises:
            PolicyError: there is none, it is damaged, or it is another critic's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(folder / CRITIC_FILE)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{folder / CRITIC_FILE}: cannot read the critic: {error}") from error
        self.load_state_dict(state)

    def remove(self) -> None:
        """Take its adapter off the policy's model."""
        if self.has_adapter:
            self._model.delete_adapter(ADAPTER)


def _add_adapter(model: Any) -> None:
    """An adapter that starts as a copy of the policy's: what the policy can tell apart, the critic can."""
    model.add_adapter(ADAPTER, model.peft_config[POLICY_ADAPTER])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{ADAPTER}." in name:
                parameter.copy_(model.get_parameter(name.replace(f".{ADAPTER}.", f".{POLICY_ADAPTER}.")))
