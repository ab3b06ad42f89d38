"""The critic of PPO: what reward it expects before each token of a completion.

Decides: what the critic is (a small network on the policy's hidden states, or on those of its own LoRA adapter over
the shared base), that it starts by expecting 0, and the file it is kept in.
Hides: how it gets hidden states out of a model, and how it switches adapters.

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
    """Collects the hidden states that the language-model head reads. They cost no pass of their own.

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
        seed: of the initialisation. The global generator stays untouched: a critic changes no sampled completion.

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
        """Returns the parameters that the critic learns, by name."""
        parameters = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        if self.has_adapter:
            parameters |= {name: p for name, p in self._model.named_parameters() if f".{ADAPTER}." in name}
        return parameters

    def values(self, hidden_BTH: Tensor) -> Tensor:
        """`[B, T]` float32 values, in units of the reward, from `[B, T, hidden]` states."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return self.head(hidden_BTH.float()).squeeze(-1)

    def read(self, ids_BL: Tensor, mask_BL: Tensor, tokens: int) -> Tensor:
        """`[B, tokens, hidden]` states of the critic's own adapter, each before one of the last `tokens` tokens."""
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
        """Unfreezes the critic's adapter. Activating another adapter freezes it, and then it gets no gradient."""
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the critic's weights, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads the critic's weights.

        Raises:
            PolicyError: the weights are another critic's.
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
        """Writes the critic's file into a checkpoint."""
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / CRITIC_FILE)

    def load(self, folder: Path) -> None:
        """Reads the critic's file from a checkpoint.

        Raises:
            PolicyError: the file is missing, damaged, or another critic's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(folder / CRITIC_FILE)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{folder / CRITIC_FILE}: cannot read the critic: {error}") from error
        self.load_state_dict(state)

    def remove(self) -> None:
        """Removes the critic's adapter from the policy's model."""
        if self.has_adapter:
            self._model.delete_adapter(ADAPTER)


def _add_adapter(model: Any) -> None:
    """Adds an adapter that starts as a copy of the policy's: what the policy can tell apart, the critic can."""
    model.add_adapter(ADAPTER, model.peft_config[POLICY_ADAPTER])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{ADAPTER}." in name:
                parameter.copy_(model.get_parameter(name.replace(f".{ADAPTER}.", f".{POLICY_ADAPTER}.")))
