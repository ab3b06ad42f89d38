"""Loads, builds and saves policies: the language models that write.

Decides: where a policy comes from (`tiny`, the Hub, a folder, a run's checkpoint), and which files a checkpoint has.
Hides: where models are read (pretrained.py), and the generation settings in a model's files. A policy's
`generation_config` holds token ids and nothing else, so that it inherits no temperature, top-k or penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.files.folders import write_folder
from rl4rec_cli.models.adapters import is_peft
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.models.names import TINY
from rl4rec_cli.models.turns import end_of_turn
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.policy.backend import check_policy, choose_backend, prepare_backend
from rl4rec_cli.policy.pretrained import find_dtype, load_pretrained, read_tokenizer
from rl4rec_cli.policy.sources import check_whole

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection, TinySection
    from rl4rec_cli.data.dataset import Texts
    from rl4rec_cli.engine.vllm import VllmEngine


@dataclass
class Policy:
    model: Any
    """A transformers causal language model, or a PEFT model around one."""
    tokenizer: Any
    name: str
    backend: str = "hf"
    """The library that loaded it: `hf` or `unsloth`."""
    engine: VllmEngine | None = None
    """Generates in the model's place."""

    def write(self, folder: Path, more: Callable[[Path], None] = lambda folder: None, *, size: int = 0) -> None:
        """Writes a checkpoint, see `write_checkpoint`."""
        write_checkpoint(self, folder, more, size=size)

    def load(self, folder: Path) -> None:
        """Loads the weights of a checkpoint, see `load_weights`."""
        load_weights(self.model, folder)

    def close(self) -> None:
        """Ends the engine, if there is one."""
        if self.engine is not None:
            self.engine.close()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@during(Phase.LOADING)
def load_policy(
    section: PolicySection,
    *,
    dataset: Texts | Sequence[Texts] | None = None,
    seed: int = 0,
    trainable: bool = False,
    max_length: int | None = None,
    gradient_checkpointing: bool | str = False,
    engine_share: float | None = None,
) -> Policy:
    """Loads or builds the policy that a configuration names.

    Args:
        section: what to load.
        dataset: catalogue, or catalogues, for training the `tiny` policy's tokenizer.
        seed: initialises `tiny` and a new adapter.
        trainable: adds the configured LoRA adapter, or makes an existing one trainable.
        max_length: longest prompt and completion together, in tokens.
        gradient_checkpointing: the trainer's; Unsloth needs it when it loads.
        engine_share: share of the GPU for the engine of `policy.fast_inference`; Unsloth's default if None.

    Raises:
        PolicyError: not found, not a causal language model, damaged.
        ConfigError: settings that do not go together, or a model without room for `max_length` tokens.
    """
    choice = check_policy(section, trainable=trainable, gradient_checkpointing=gradient_checkpointing)
    prepare_backend(section)
    console.quiet_libraries()
    from transformers import set_seed

    set_seed(seed)
    device = resolve_device(section.device, "policy.device")
    if section.model == TINY:
        if dataset is None:
            raise ConfigError("the tiny policy is built from a dataset", hint="give --dataset")
        if section.lora is not None and trainable:
            raise ConfigError(
                "policy.lora cannot be used with a tiny policy that is not stored: an adapter needs a stored base",
                hint="save the policy first and name its folder, as `rl4rec train` does",
            )
        model, tokenizer = build_tiny(section.tiny, dataset if isinstance(dataset, Sequence) else [dataset])
        model = model.to(find_dtype(section.dtype, device, trains_all=trainable)).to(device)
        policy = Policy(model, tokenizer, section.model)
    else:
        backend = choice.name
        model, tokenizer = load_pretrained(
            section,
            backend,
            device,
            trainable=trainable,
            seed=seed,
            max_length=max_length,
            gradient_checkpointing=gradient_checkpointing,
            engine_share=engine_share,
        )
        policy = Policy(model, tokenizer, section.model, backend)
    _own_generation_config(policy.model, tokenizer)
    policy.model.eval()
    return policy


def load_tokenizer_alone(section: PolicySection, dataset: Texts) -> Any:
    """Loads the tokenizer that `load_policy` would, without the weights.

    Args:
        dataset: catalogue for training the `tiny` policy's tokenizer.

    Raises:
        PolicyError: not found, damaged.
    """
    console.quiet_libraries()
    if section.model == TINY:
        return _tiny_tokenizer(section.tiny, [dataset])
    return read_tokenizer(section, choose_backend(section).name)


def check_tokenizer(section: PolicySection, max_length: int | None) -> None:
    """Reads the tokenizer of a stored policy once, to find errors early.

    Args:
        max_length: longest prompt and completion together, in tokens.

    Raises:
        PolicyError: not found, damaged, without an end token, or with tokens that the model has no rows for.
        ConfigError: a model without room for `max_length` tokens.
    """
    if section.model != TINY:
        console.quiet_libraries()
        read_tokenizer(section, choose_backend(section).name, max_length)


def build_tiny(section: TinySection, datasets: Sequence[Texts]) -> tuple[Any, Any]:
    """Builds a small Llama with random weights and a byte-level BPE trained on the catalogues.

    Torch's global generator draws the weights; `load_policy` seeds it.

    Returns:
        Model and tokenizer.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer(section, datasets)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            intermediate_size=4 * section.hidden_size,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            num_key_value_heads=section.heads,
            head_dim=section.head_width,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )
    return model, tokenizer


def _tiny_tokenizer(section: TinySection, datasets: Sequence[Texts]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    bpe.train_from_iterator(
        [text for dataset in datasets for text in dataset.tokenizer_texts],
        trainers.BpeTrainer(
            vocab_size=section.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def _own_generation_config(model: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    own_ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = own_ends if isinstance(own_ends, list) else [] if own_ends is None else [own_ends]
    turn = end_of_turn(tokenizer)
    if turn is not None and turn not in (tokenizer.eos_token_id, *ends):
        console.log(
            f"The chat template ends a turn by {tokenizer.convert_ids_to_tokens(turn)}, and the model's files name "
            f"{tokenizer.eos_token} as the end: both end a completion"
        )
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *ends, *([] if turn is None else [turn])]))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


@during(Phase.SAVING)
def save_policy(policy: Policy, folder: Path) -> None:
    """Writes model (or adapter) and tokenizer, for plain `from_pretrained`.

    It fills a temporary folder and renames it, so that a folder of this name is whole. It replaces an existing one.

    Raises:
        PolicyError: the folder cannot be written; an existing one is untouched.
    """
    write_checkpoint(policy, folder)


@during(Phase.SAVING)
def write_checkpoint(
    policy: Policy, folder: Path, more: Callable[[Path], None] = lambda folder: None, *, size: int = 0
) -> None:
    """Writes what `save_policy` does, and more files.

    Args:
        more: writes them into its argument, a folder.
        size: their approximate bytes.

    Raises:
        PolicyError: the folder cannot be written; an existing one is untouched.
    """
    # TRL adds a frozen copy of the adapter named "ref" for the KL term: it is no part of the policy.
    save_options: dict[str, Sequence[str]] = {"selected_adapters": ["default"]} if is_peft(policy.model) else {}
    parameters = [
        p for n, p in policy.model.named_parameters() if not save_options or ("lora_" in n and ".ref." not in n)
    ]
    size += sum(p.numel() * p.element_size() for p in parameters)

    def fill(temporary: Path) -> None:
        policy.model.save_pretrained(temporary, **save_options)
        policy.tokenizer.save_pretrained(temporary)
        more(temporary)

    try:
        write_folder(folder, fill, size=size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PolicyError(
            f"{folder}: cannot write the checkpoint of about {size:,} bytes: {reason}",
            hint="make room or name another --output; what was written before is whole",
        ) from error


@during(Phase.LOADING)
def load_weights(model: Any, folder: Path) -> None:
    """Loads the weights of a checkpoint into a model of the same kind (or its adapter), in place.

    Raises:
        PolicyError: the weights belong to another model, or are damaged.
    """
    from safetensors.torch import load_file

    check_whole(folder)
    if is_peft(model):
        from peft import set_peft_model_state_dict

        weights = load_file(folder / "adapter_model.safetensors")
        result: Any = set_peft_model_state_dict(model, weights, "default")
        wrong = list(result.unexpected_keys)
    else:
        absent, wrong = {name for name, _ in model.named_parameters()}, list[str]()
        for file in sorted(folder.glob("model*.safetensors")):
            part = load_file(file)
            wrong += model.load_state_dict(part, strict=False).unexpected_keys
            absent -= part.keys()
        wrong += sorted(absent)
    if wrong:
        raise PolicyError(f"{folder}: the weights are of another model: {len(wrong)} do not fit, as {wrong[0]}")
