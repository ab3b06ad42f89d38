"""Which library is chosen, and what is refused before anything is loaded. Nothing here needs Unsloth or a GPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rl4rec_cli.config.policy import LoraSection, PolicySection, TinySection
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.models.names import PRESETS, find_model, find_preset, repository_of
from rl4rec_cli.policy import backend
from rl4rec_cli.policy.backend import check_policy, choose_backend, import_unsloth, prepare_backend
from rl4rec_cli.policy.pretrained import lora_targets

LORA = LoraSection()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that packages are there or not, and a GPU."""

    def pretend(*packages: str, gpu: bool = False) -> None:
        monkeypatch.setattr(backend, "find_spec", lambda name: object() if name in packages else None)
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)

    return pretend


EVERYTHING = ("unsloth", "bitsandbytes", "vllm", "vllm_bnb_plugin")


def test_auto_says_which_and_why(machine: Any) -> None:
    def chosen(**settings: Any) -> tuple[str, str]:
        found = choose_backend(PolicySection(**settings))
        return found.name, found.reason

    machine(*EVERYTHING, gpu=True)
    assert chosen(lora=LORA) == ("unsloth", "there is a GPU, and unsloth is installed")
    assert chosen(lora=LORA, device="cuda:1")[0] == "unsloth"
    assert chosen() == ("hf", "no adapter is trained (policy.lora)")
    assert chosen(lora=LORA, device="cpu") == ("hf", "no GPU is used")
    assert chosen(lora=LORA, backend="hf")[0] == "hf"
    machine("bitsandbytes", gpu=True)
    assert chosen(lora=LORA) == ("hf", "unsloth is not installed")
    machine(*EVERYTHING)
    assert chosen(lora=LORA) == ("hf", "no GPU is used")
    assert chosen(lora=LORA, backend="unsloth")[0] == "unsloth"


def test_unsloth_means_a_4bit_adapter_unless_it_is_told_otherwise() -> None:
    section = PolicySection(backend="unsloth")
    assert (section.lora, section.quantization) == (LORA, "4bit")
    assert PolicySection.model_validate(section.model_dump()) == section
    section = PolicySection(backend="unsloth", lora=None)
    assert (section.lora, section.quantization) == (None, "none")
    section = PolicySection(backend="unsloth", quantization="none", lora=LoraSection(r=4))
    assert (section.lora, section.quantization) == (LoraSection(r=4), "none")
    assert PolicySection().lora is None


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no unsloth": ({"backend": "unsloth"}, {"packages": ("bitsandbytes",)}, "unsloth is not installed"),
    "no bitsandbytes": (
        {"quantization": "4bit", "lora": LORA},
        {"packages": ()},
        "policy.quantization=4bit: bitsandbytes is not installed",
    ),
    "all weights in 4 bits": ({"quantization": "4bit"}, {}, "quantised weights cannot be trained"),
    "all weights in 8 bits": ({"quantization": "8bit"}, {}, "quantised weights cannot be trained"),
    "all weights of tiny": ({"backend": "unsloth", "lora": None}, {}, "trains an adapter"),
    "narrow": ({"backend": "unsloth", "tiny": TinySection(hidden_size=48)}, {}, "cannot be held in 4 bits"),
    "8 bits on the CPU": ({"backend": "unsloth", "quantization": "8bit"}, {}, "no 8-bit weights without a GPU"),
    "fp16 on the CPU": ({"backend": "unsloth", "dtype": "fp16"}, {}, "no fp16 without a GPU"),
    "fp4": ({"backend": "unsloth", "four_bit": {"quant_type": "fp4"}}, {}, "knows nf4 with double"),
    "compute type": ({"backend": "unsloth", "four_bit": {"compute_dtype": "bf16"}}, {}, "computes in policy.dtype"),
    "vllm on the CPU": ({"backend": "unsloth", "fast_inference": True}, {}, "needs backend unsloth and a GPU"),
    "vllm with hf": ({"fast_inference": True}, {"gpu": True}, "here it is policy.backend=auto \\(hf: no adapter"),
    "no vllm": (
        {"backend": "unsloth", "fast_inference": True},
        {"gpu": True, "packages": ("unsloth", "bitsandbytes")},
        "vllm is not installed",
    ),
    "checkpointing": ({"lora": LORA}, {"checkpointing": "unsloth"}, "gradient_checkpointing=unsloth needs backend uns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_together_is_refused(case: str, machine: Any) -> None:
    settings, given, said = REFUSED[case]
    machine(*given.get("packages", EVERYTHING), gpu=given.get("gpu", False))
    with pytest.raises(ConfigError, match=said) as caught:
        check_policy(
            PolicySection.model_validate(settings), trainable=True, gradient_checkpointing=given.get("checkpointing", 0)
        )
    assert caught.value.hint


def test_what_goes_together_is_not_refused(machine: Any) -> None:
    machine(*EVERYTHING, gpu=True)
    for settings in (
        {},
        {"backend": "unsloth"},
        {"backend": "unsloth", "quantization": "8bit"},
        {"backend": "unsloth", "fast_inference": True},
        {"quantization": "8bit", "lora": LORA, "backend": "hf"},
    ):
        check_policy(PolicySection.model_validate(settings), trainable=True, gradient_checkpointing=True)
    # A quantised model without an adapter can be measured.
    check_policy(PolicySection(quantization="4bit"), trainable=False)


def test_unsloth_is_never_imported_too_late(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers  # noqa: F401

    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(PolicyError, match="unsloth must be imported before trl, transformers, peft; already") as caught:
        import_unsloth()
    assert "transformers" in str(caught.value)
    machine()
    with pytest.raises(ConfigError, match="unsloth is not installed"):
        prepare_backend(PolicySection(backend="unsloth"))
    prepare_backend(PolicySection(backend="hf", lora=LORA))


def test_choosing_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from rl4rec_cli.config.policy import LoraSection, PolicySection\n"
        "from rl4rec_cli.policy.backend import check_policy\n"
        "check_policy(PolicySection(lora=LoraSection(), device='cpu', model='gpt2'), trainable=True)\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'unsloth'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Presets


def test_a_short_name_is_its_repository_for_each_backend() -> None:
    name, full, small = "qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit"
    assert repository_of(name, backend="hf", quantization="4bit") == full
    assert repository_of(name, backend="unsloth", quantization="none") == full
    assert repository_of(name.upper(), backend="unsloth", quantization="4bit") == small
    assert repository_of("gpt2", backend="unsloth", quantization="4bit") == "openai-community/gpt2"
    for other in (full, small, "some/other", "/a/folder"):
        assert repository_of(other, backend="unsloth", quantization="4bit") == other
    assert find_preset(full) is find_preset(small) is PRESETS[name]
    assert find_preset("some/other") is None


def test_a_folder_of_a_presets_name_is_the_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_preset("gpt2") is None
    assert repository_of("gpt2", backend="hf", quantization="none") == "gpt2"


def test_a_plain_name_is_the_folder_in_models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, it is the Hub's repository; `tiny` is never a stored model."""
    from rl4rec_cli.config.layering import load_config

    monkeypatch.chdir(tmp_path)
    repository = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert repository_of("SmolLM2-135m", backend="hf", quantization="none") == repository
    assert load_config(algorithm="grpo", flags={"policy.model": "smollm2-135m"}).policy.model == "smollm2-135m"
    assert find_preset("smollm2-135m") is PRESETS["smollm2-135m"]
    for name in ("smollm2-135m", "own", "tiny"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("smollm2-135m", "own"):
        folder = f"models/{name}"
        assert load_config(algorithm="grpo", flags={"policy.model": name}).policy.model == folder
        assert repository_of(name, backend="hf", quantization="none") == folder
        assert repository_of(name, backend="unsloth", quantization="4bit") == folder
        assert find_preset(name) is None
    assert load_config(algorithm="grpo", flags={"policy.model": "tiny"}).policy.model == "tiny"
    assert find_model("./own") == "./own"
    (tmp_path / "own").mkdir()
    assert find_model("own") == "own"


def test_all_presets_of_the_specification_are_there() -> None:
    assert list(PRESETS) == [
        *("gpt2", "smollm2-135m", "gemma-3-1b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"),
        *("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "gemma-2-9b"),
    ]
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.targets


def test_lora_targets() -> None:
    assert lora_targets(LORA, "gpt2") == ["c_attn", "c_proj", "c_fc"]
    assert lora_targets(LORA, "google/gemma-2-9b-it") == list(PRESETS["gemma-2-9b"].targets)
    assert lora_targets(LORA, "some/other") == "all-linear"
    assert lora_targets(LoraSection(target_modules="all-linear"), "gpt2") == "all-linear"
    assert lora_targets(LoraSection(target_modules=("q_proj",)), "gpt2") == ["q_proj"]
