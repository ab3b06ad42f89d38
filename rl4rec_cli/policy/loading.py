"""Policies: the language model that writes, loaded, built or saved.

Decides: where a policy comes from (`tiny`, the Hub, a folder, a run's checkpoint), its type and device, its adapter.
Hides: transformers and PEFT loading, and everything a model's files would otherwise smuggle in: a policy's
`generation_config` holds token ids and nothing else, so that no temperature, top-k or penalty is inherited.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.whole_folders import write_folder

if TYPE_CHECKING:
    from rl4rec_cli.config import LoraSection, PolicySection, TinySection
    from rl4rec_cli.data.dataset import Dataset

TINY = "tiny"
MODEL_TRIES = "give a Hugging Face causal language model by name or folder, a run's checkpoint, or `tiny`"


@dataclass
class Policy:
    model: Any
    """A transformers causal language model, or a PEFT model around one."""
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_policy(
    section: PolicySection, *, dataset: Dataset | None = None, seed: int = 0, trainable: bool = False
) -> Policy:
    """Load or build the policy a configuration names.

    Args:
        section: what to load.
        dataset: catalogue the `tiny` policy's tokenizer is trained on.
        seed: initialisation of `tiny` and of a new adapter.
        trainable: add the configured LoRA adapter, or make an existing one trainable.

    Raises:
        PolicyError: not found, not a causal language model, damaged.
        ConfigError: settings that do not go together.
    """
    console.quiet_libraries()
    from transformers import set_seed

    set_seed(seed)
    device = _device(section.device)
    if section.model == TINY:
        if dataset is None:
            raise ConfigError("the tiny policy is built from a dataset", hint="give --dataset")
        if trainable and section.lora is not None:
            raise ConfigError(
                "policy.lora cannot be used with the tiny policy: an adapter needs a stored base",
                hint="train all its weights: policy.lora=null",
            )
        model, tokenizer = build_tiny(section.tiny, dataset)
        model = model.to(_dtype(section.dtype, device))
    else:
        model, tokenizer = _load_pretrained(section, device, trainable=trainable)
    model = model.to(device)
    if section.model != TINY:
        _check_causal(model, section.model)
    _own_generation_config(model, tokenizer)
    if trainable and section.lora is not None and not _is_peft(model):
        model = _add_lora(model, section.lora, section.revision)
    model.eval()
    return Policy(model, tokenizer, section.model)


def _load_pretrained(section: PolicySection, device: str, *, trainable: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = section.model
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    adapter = Path(source) / "adapter_config.json"
    if Path(source).is_dir() and not adapter.is_file() and not (Path(source) / "config.json").is_file():
        raise PolicyError(f"{source}: a folder without config.json or adapter_config.json", hint=MODEL_TRIES)
    if not Path(source).exists() and (Path(source).is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise PolicyError(f"{source}: no such folder", hint=MODEL_TRIES)
    model_source, model_options = source, options
    try:
        if adapter.is_file():
            saved = json.loads(adapter.read_text())
            model_source = saved["base_model_name_or_path"]
            model_options = {**options, "revision": saved.get("revision") or "main"}
        # Adapters are often published without the tokenizer, which is then the base's.
        own_tokenizer = not adapter.is_file() or (Path(source) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(
            source if own_tokenizer else model_source,
            padding_side="left",
            **(options if own_tokenizer else model_options),
        )
        both: Any = AutoModelForCausalLM.from_pretrained(
            model_source, dtype=_dtype(section.dtype, device), output_loading_info=True, **model_options
        )
        model, loaded = both
        if adapter.is_file():
            from peft import PeftModel

            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys")
                model = PeftModel.from_pretrained(model, source, is_trainable=trainable)
    except Exception as error:  # a damaged file fails in as many ways as there are libraries that read it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"cannot load the policy {source!r}: {reason}", hint=MODEL_TRIES) from error
    # transformers fills what a file lacks with random numbers and a warning.
    if lacking := sorted(loaded["missing_keys"]):
        raise PolicyError(
            f"cannot load the policy {source!r}: {len(lacking)} of its weights are in no file, as {lacking[0]}",
            hint=MODEL_TRIES,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise PolicyError(f"the tokenizer of {source!r} has no end-of-sequence token", hint="texts could never end")
    return model, tokenizer


def build_tiny(section: TinySection, dataset: Dataset) -> tuple[Any, Any]:
    """A small Llama with random weights and a byte-level BPE trained on the catalogue.

    Weights are drawn from torch's global generator; `load_policy` seeds it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    bpe.train_from_iterator(
        _tokenizer_texts(dataset),
        trainers.BpeTrainer(
            vocab_size=section.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            intermediate_size=4 * section.hidden_size,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            num_key_value_heads=section.heads,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )
    return model, tokenizer


def _tokenizer_texts(dataset: Dataset) -> list[str]:
    """Titles as they stand in prompts: at the start of a line, and after a space."""
    return [text for item in dataset.items for text in (str(item["title"]), " " + str(item["title"]))]


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """Refuse a model whose numbers are not finite, or that reads ahead (transformers loads BERT as a causal model)."""
    model.eval()
    ids_BT = torch.tensor([[0, 0], [0, 1]], device=next(model.parameters()).device)
    logits_BV = model(input_ids=ids_BT).logits[:, 0].float()
    if not torch.isfinite(logits_BV).all():
        raise PolicyError(f"the policy {name!r} computes numbers that are not finite", hint="its weights are damaged")
    # Far more than rounding in half precision, far less than what another word does.
    if (logits_BV[0] - logits_BV[1]).norm() > 0.05 * (logits_BV[0] - logits_BV[0].mean()).norm():
        raise PolicyError(f"{name!r} is not a causal language model: it reads ahead", hint=MODEL_TRIES)


def _own_generation_config(model: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    given = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = given if isinstance(given, list) else [] if given is None else [given]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


def _add_lora(model: Any, section: LoraSection, revision: str | None) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets = section.target_modules
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                revision=revision,  # of the base, which whoever loads the adapter must load too
                r=section.r,
                lora_alpha=section.alpha,
                lora_dropout=section.dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
            ),
        )
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"policy.lora.target_modules={targets!r}: {str(error).splitlines()[0]}",
            hint="`all-linear` adapts every linear layer but the head",
        ) from error


def _is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"policy.device={device} is no device", hint="auto, cpu, cuda, cuda:1 …") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"policy.device={device}, but torch sees no GPU", hint="use auto or cpu")
    return device


def _dtype(precision: str, device: str) -> torch.dtype:
    """`auto`: bf16 where the GPU has it, else fp32."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return named[precision]
    return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32


def save_policy(policy: Policy, folder: Path) -> None:
    """Write model (or adapter) and tokenizer, readable by plain `from_pretrained`.

    Written beside and renamed, so that a folder of this name is whole. An existing one is replaced.

    Raises:
        PolicyError: it cannot be written; what was there before is untouched.
    """
    write_checkpoint(policy, folder)


def write_checkpoint(
    policy: Policy, folder: Path, more: Callable[[Path], None] = lambda folder: None, *, size: int = 0
) -> None:
    """As `save_policy`, with more files.

    Args:
        more: writes them into the folder it is given.
        size: bytes they take, about.

    Raises:
        PolicyError: it cannot be written; what was there before is untouched.
    """
    # TRL adds a frozen copy of the adapter named "ref" for the KL term: it is no part of the policy.
    kept: dict[str, Sequence[str]] = {"selected_adapters": ["default"]} if _is_peft(policy.model) else {}
    saved = [p for n, p in policy.model.named_parameters() if not kept or ("lora_" in n and ".ref." not in n)]
    size += sum(p.numel() * p.element_size() for p in saved)

    def fill(temporary: Path) -> None:
        policy.model.save_pretrained(temporary, **kept)
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


def load_weights(model: Any, folder: Path) -> None:
    """Give a model (or its adapter) the weights of a checkpoint of the same model, in place.

    Raises:
        PolicyError: they are of another model.
    """
    from safetensors.torch import load_file

    if _is_peft(model):
        from peft import set_peft_model_state_dict

        weights = load_file(folder / "adapter_model.safetensors")
        result: Any = set_peft_model_state_dict(model, weights, "default")
        wrong = list(result.unexpected_keys)
    else:
        missing, wrong = {name for name, _ in model.named_parameters()}, list[str]()
        for file in sorted(folder.glob("model*.safetensors")):
            part = load_file(file)
            wrong += model.load_state_dict(part, strict=False).unexpected_keys
            missing -= part.keys()
        wrong += sorted(missing)
    if wrong:
        raise PolicyError(f"{folder}: the weights are of another model: {len(wrong)} do not fit, as {wrong[0]}")
