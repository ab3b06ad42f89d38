"""Policies: built, loaded, saved and made to write, on random tiny models."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.policy import GenerationSection, LoraSection, PolicySection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.files import folders
from rl4rec_cli.models.adapters import is_peft
from rl4rec_cli.policy.generation import decode_texts, generate_ids, generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy
from rl4rec_cli.policy.pretrained import policy_identity

Make = Callable[..., Dataset]
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
LONGER = Sampling(max_new_tokens=16, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0)
TEXTS = ("rose hand cream\n", "mint", "lavender bath salt and cedar beard oil\n", "honey lip balm\ncharcoal")


def load(model: Path | str, *, trainable: bool = False, seed: int = 0, **options: Any) -> Policy:
    section = PolicySection(model=str(model), device="cpu", dtype="fp32", **options)
    return load_policy(section, trainable=trainable, seed=seed)


def build(dataset: Dataset, seed: int) -> Policy:
    return load_policy(PolicySection(device="cpu"), dataset=dataset, seed=seed)


def prompts_of(policy: Policy, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    return [policy.tokenizer(text)["input_ids"] for text in texts]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def copy_of(folder: Path, target: Path) -> Path:
    """A model as others keep it: without the manifest by which damages to our own are noticed."""
    shutil.copytree(folder, target)
    (target / "manifest.json").unlink()
    return target


def refusal(model: Path | str, kind: type[Exception] = PolicyError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- tiny ---


def test_tiny_is_the_same_for_the_same_seed(make_dataset: Make) -> None:
    one, two, other = (build(make_dataset(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(w, weights(two.model)[n]) for n, w in weights(one.model).items())
    assert not all(torch.equal(w, weights(other.model)[n]) for n, w in weights(one.model).items())
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert one.model.config.vocab_size == len(one.tokenizer)
    text = "rose hand cream\n\u00e4\u00df \U0001f9f4 unseen"
    assert one.tokenizer.decode(one.tokenizer(text)["input_ids"]) == text


def test_tiny_needs_a_dataset_and_an_adapter_a_stored_base(make_dataset: Make) -> None:
    with pytest.raises(ConfigError, match="built from a dataset"):
        load_policy(PolicySection())
    with pytest.raises(ConfigError, match="tiny"):
        load_policy(PolicySection(lora=LoraSection()), dataset=make_dataset(), trainable=True)


# --- generation ---


def test_a_saved_policy_writes_the_same_by_plain_from_pretrained(tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = load(tiny_folder)
    ours = generate_texts(policy, prompts_of(policy), GREEDY, batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert tokenizer.padding_side == "left"
    for text, expected in zip(TEXTS, ours, strict=True):
        given = tokenizer(text, return_tensors="pt")
        out = plain.generate(**given, max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip() == expected
    assert len(set(ours)) > 1


def test_the_batch_does_not_change_a_text(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    prompts = prompts_of(policy)
    assert len({len(p) for p in prompts}) > 1
    together = generate_texts(policy, prompts, GREEDY, batch_size=4)
    assert together == [generate_texts(policy, [p], GREEDY, batch_size=1)[0] for p in prompts]
    assert together == generate_texts(policy, prompts[::-1], GREEDY, batch_size=3)[::-1]
    seen: list[int] = []
    generate_texts(policy, prompts, GREEDY, batch_size=3, progress=seen.append)
    assert seen == [3, 1]
    assert generate_texts(policy, [], GREEDY, batch_size=3) == []


def test_temperature_zero_is_greedy_and_sampling_follows_the_seed(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    prompts = prompts_of(policy)
    assert generate_texts(policy, prompts, GREEDY, batch_size=4) == generate_texts(
        policy, prompts, GREEDY, batch_size=4
    )
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(generate_texts(policy, prompts, SAMPLED, batch_size=4))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    state = torch.get_rng_state()
    generate_texts(policy, prompts, GREEDY, batch_size=4)
    assert state.equal(torch.get_rng_state())


def test_texts_written_in_parts_are_the_same_texts(tiny_folder: Path) -> None:
    policy = load_policy(PolicySection(model=str(tiny_folder), device="cpu"))
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13], [14, 15]]
    seen: list[int] = []
    policy.model.register_forward_pre_hook(lambda *_, **given: seen.append(0))

    def write(size: int | None) -> list[list[int]]:
        seen.clear()
        return generate_ids(
            policy.model, policy.tokenizer, prompts, Sampling(max_new_tokens=3, temperature=0.0, batch_size=size)
        )

    whole, passes = write(None), len(seen)
    assert write(2) == whole
    assert len(seen) > passes
    assert write(100) == whole


def test_sampling_of_a_section() -> None:
    section = GenerationSection(max_completion_length=9, temperature=0.7, top_p=0.9, top_k=3, repetition_penalty=1.1)
    assert Sampling.from_section(section) == Sampling(9, 0.7, 0.9, 3, 1.1)
    assert Sampling.from_section(section, temperature=0.0) == Sampling(9, 0.0, 0.9, 3, 1.1)


def test_every_setting_is_used(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    prompts = prompts_of(policy)

    def drawn(**changes: Any) -> list[list[int]]:
        torch.manual_seed(0)
        sampling = Sampling(**{"max_new_tokens": 10, "temperature": 1.0, **changes})
        return generate_ids(policy.model, policy.tokenizer, prompts, sampling)

    greedy = drawn(temperature=0.0)
    assert drawn(top_k=1) == drawn(top_p=1e-6) == drawn(temperature=1e-4) == greedy != drawn()
    assert drawn(temperature=0.0, repetition_penalty=50.0) != greedy
    assert max(map(len, drawn(max_new_tokens=4))) == 4


SMUGGLED = {
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 12,
    "min_length": 60,
    "suppress_tokens": list(range(3, 200)),
    "bad_words_ids": [[i] for i in range(200, 260)],
    "forced_bos_token_id": 300,
    "num_beams": 4,
    "max_length": 3,
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_nothing_is_inherited_from_a_models_files(tiny_folder: Path, tmp_path: Path, file: str) -> None:
    folder = copy_of(tiny_folder, tmp_path / "smuggler")
    if file == "config.json":  # where older models keep them
        (folder / "generation_config.json").unlink()
    own = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**own, **SMUGGLED}))
    clean, smuggler = load(tiny_folder), load(folder)
    for sampling in (GREEDY, SAMPLED):
        texts = []
        for policy in (clean, smuggler):
            torch.manual_seed(3)
            texts.append(generate_texts(policy, prompts_of(policy), sampling, batch_size=4))
        assert texts[0] == texts[1]
    save_policy(smuggler, tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not set(kept) & set(SMUGGLED)


def test_nothing_is_inherited_through_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path / "smuggler")
    (folder / "generation_config.json").write_text(json.dumps({**SMUGGLED, "eos_token_id": 2, "pad_token_id": 0}))
    clean, smuggler = (load(f, trainable=True, lora=LoraSection(r=2)) for f in (tiny_folder, folder))
    save_policy(smuggler, tmp_path / "adapter")
    expected = generate_texts(clean, prompts_of(clean), GREEDY, batch_size=4)
    assert generate_texts(smuggler, prompts_of(smuggler), GREEDY, batch_size=4) == expected
    again = load(tmp_path / "adapter")
    assert generate_texts(again, prompts_of(again), GREEDY, batch_size=4) == expected


def test_texts_end_at_the_first_end_token(tiny_folder: Path, tmp_path: Path) -> None:
    free = load(tiny_folder)
    prompts = prompts_of(free)
    whole = generate_ids(free.model, free.tokenizer, prompts, LONGER)
    # Two tokens that the model is about to write become end tokens, beside its own.
    ends = [whole[0][3], whole[1][5]]
    folder = copy_of(tiny_folder, tmp_path / "ends")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    policy = load(folder)
    assert set(policy.model.generation_config.eos_token_id) == {policy.tokenizer.eos_token_id, *ends}
    ended = generate_ids(policy.model, policy.tokenizer, prompts, LONGER)
    for cut, full in zip(ended, whole, strict=True):
        first = next((i for i, token in enumerate(full) if token in {*ends, policy.tokenizer.eos_token_id}), None)
        assert cut == (full if first is None else full[: first + 1])
    assert len(ended[0]) <= 4
    assert len(ended[1]) <= 6


def test_texts_are_decoded_without_special_tokens(tiny_folder: Path) -> None:
    tokenizer = load(tiny_folder).tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(" rose cream \n")["input_ids"], tokenizer.eos_token_id]
    assert decode_texts(tokenizer, [ids, [tokenizer.eos_token_id], []]) == ["rose cream", "", ""]


def test_a_tokenizer_without_padding_gets_some(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path / "no-pad")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    policy, whole = load(folder), load(tiny_folder)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id
    assert generate_texts(policy, prompts_of(policy), GREEDY, batch_size=4) == generate_texts(
        whole, prompts_of(whole), GREEDY, batch_size=4
    )
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert "no end-of-sequence token" in refusal(folder)


def test_the_repetition_penalty_does_not_see_the_padding(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    end = policy.tokenizer.eos_token_id
    policy.tokenizer.pad_token = policy.tokenizer.eos_token

    def about_to_end(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        """The end is the most likely token, by less than the penalty."""
        logits = logits.clone()
        logits[..., end] = 1.05 * logits.max(dim=-1).values
        return logits

    policy.model.lm_head.register_forward_hook(about_to_end)
    sampling = Sampling(max_new_tokens=8, temperature=0.0, repetition_penalty=3.0)
    prompts = prompts_of(policy)
    assert generate_ids(policy.model, policy.tokenizer, prompts, sampling) == [[end]] * 4


# --- adapters ---


def tuned(folder: Path) -> Policy:
    """A policy with an adapter that has an effect."""
    policy = load(folder, trainable=True, lora=LoraSection(r=4), seed=3)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return policy


def test_an_adapter_reloads_here_and_by_peft(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = tuned(tiny_folder)
    trained = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    expected = generate_texts(policy, prompts_of(policy), GREEDY, batch_size=4)
    base = load(tiny_folder)
    assert expected != generate_texts(base, prompts_of(base), GREEDY, batch_size=4)
    policy.model.add_adapter("ref", policy.model.peft_config["default"])
    save_policy(policy, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "ref").exists()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load(tmp_path / "adapter")
    assert not any(p.requires_grad for p in again.model.parameters())
    assert generate_texts(again, prompts_of(again), GREEDY, batch_size=4) == expected
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "adapter")
    by_peft = Policy(plain.eval(), again.tokenizer, "plain")
    assert generate_texts(by_peft, prompts_of(by_peft), GREEDY, batch_size=4) == expected
    training = load(tmp_path / "adapter", trainable=True, lora=LoraSection(r=4))
    assert [n for n, p in training.model.named_parameters() if p.requires_grad] == trained


def test_an_adapter_without_a_tokenizer_uses_its_bases(tiny_folder: Path, tmp_path: Path) -> None:
    policy = tuned(tiny_folder)
    save_policy(policy, tmp_path / "adapter")
    for file in (tmp_path / "adapter").iterdir():
        if not file.name.startswith("adapter"):
            file.unlink()
    again = load(tmp_path / "adapter")
    assert generate_texts(again, prompts_of(again), GREEDY, batch_size=4) == generate_texts(
        policy, prompts_of(policy), GREEDY, batch_size=4
    )


def test_an_adapter_on_another_base_writes_other_texts(tiny_folder: Path, tmp_path: Path) -> None:
    """By this name what it wrote is kept: a base that was trained anew in its place must change it."""
    base, adapter = copy_of(tiny_folder, tmp_path / "base"), tmp_path / "adapter"
    save_policy(tuned(base), adapter)
    before = policy_identity(str(adapter))
    assert before == policy_identity(str(adapter))
    shutil.copytree(adapter, tmp_path / "other" / "adapter")
    assert policy_identity(str(tmp_path / "other" / "adapter")) == before
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"here")
    assert policy_identity(str(adapter)) != before
    assert policy_identity("gpt2") == "gpt2"
    (adapter / "adapter_config.json").write_text("{")
    assert policy_identity(str(adapter)) != before  # loading it says what is wrong


def test_a_damaged_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_policy(tuned(tiny_folder), tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()  # by which it would be noticed
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-10])
    refusal(tmp_path / "adapter")
    save_file({n: t for n, t in tensors.items() if "layers.1" not in n}, tmp_path / "other")
    (tmp_path / "other").replace(file)
    assert "missing adapter keys" in refusal(tmp_path / "adapter")


def test_lora_on_a_checkpoint_follows_the_seed(tiny_folder: Path) -> None:
    one, two, other = (load(tiny_folder, trainable=True, lora=LoraSection(r=2), seed=s) for s in (1, 1, 2))
    a = {n: w for n, w in weights(one.model).items() if "lora_A" in n}
    assert a
    assert all(torch.equal(w, weights(two.model)[n]) for n, w in a.items())
    assert not any(torch.equal(w, weights(other.model)[n]) for n, w in a.items())
    assert not is_peft(load(tiny_folder, lora=LoraSection(r=2)).model)


@pytest.mark.parametrize("targets", ["nothing_like_it", ("q_proj_typo",), "*proj"])
def test_unknown_lora_targets(tiny_folder: Path, targets: Any) -> None:
    message = refusal(tiny_folder, ConfigError, trainable=True, lora=LoraSection(target_modules=targets))
    assert message.startswith("policy.lora.target_modules=")


# --- what cannot be loaded ---


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "./nowhere", "a/b/c", "", "with blank"])
def test_a_model_that_is_not_there(name: str) -> None:
    assert name in refusal(name)


def test_folders_that_are_no_models(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "without config.json" in refusal(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    refusal(tmp_path / "file")
    for name, content in {"config.json": "{", "tokenizer.json": "{}", "model.safetensors": "x"}.items():
        folder = copy_of(tiny_folder, tmp_path / f"bad-{name}")
        (folder / name).write_text(content)
        refusal(folder)
    folder = copy_of(tiny_folder, tmp_path / "no-weights")
    (folder / "model.safetensors").unlink()
    refusal(folder)
    adapter = tmp_path / "adapter"
    save_policy(tuned(tiny_folder), adapter)
    for content in ("{", "{}", "[]", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": "no/base"}'):
        (adapter / "adapter_config.json").write_text(content)
        refusal(adapter)


def test_damaged_weights(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(tiny_folder, tmp_path / "damaged")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refusal(folder)
    file.write_bytes(whole)
    tensors = load_file(file)
    first = sorted(tensors)[0]
    lacking = {n: t for n, t in tensors.items() if n != first}
    save_file(lacking, folder / "other.safetensors", metadata={"format": "pt"})
    (folder / "other.safetensors").replace(file)
    assert "in no file" in refusal(folder)
    spoilt = {n: torch.full_like(t, float("nan")) for n, t in tensors.items()}
    save_file(spoilt, folder / "other.safetensors", metadata={"format": "pt"})
    (folder / "other.safetensors").replace(file)
    assert "not finite" in refusal(folder)
    narrow = {n: t[..., :-1].contiguous() for n, t in tensors.items()}
    save_file(narrow, folder / "other.safetensors", metadata={"format": "pt"})
    (folder / "other.safetensors").replace(file)
    refusal(folder)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertModel"])
def test_a_model_that_is_not_causal(tiny_folder: Path, tmp_path: Path, head: str) -> None:
    import transformers

    folder = tmp_path / "bert"
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    # Weights large enough for attention to matter; fresh ones hardly tell one token from another.
    config = transformers.BertConfig(vocab_size=600, initializer_range=1.0, **size)
    getattr(transformers, head)(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, folder / name)
    assert ("reads ahead" if head == "BertForMaskedLM" else "in no file") in refusal(folder)


def test_a_model_that_is_no_language_model(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path / "vit")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    refusal(folder)


def test_a_hostile_pickle_does_not_run(tiny_folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = copy_of(tiny_folder, tmp_path / "hostile")
    (folder / "model.safetensors").unlink()
    adapter = tmp_path / "adapter"
    save_policy(tuned(tiny_folder), adapter)
    (adapter / "adapter_model.safetensors").unlink()
    for file in (folder / "pytorch_model.bin", adapter / "adapter_model.bin"):
        for write in (lambda f: torch.save({"a": Evil()}, f), lambda f: f.write_bytes(pickle.dumps(Evil()))):
            write(file)
            refusal(file.parent)
    assert not (tmp_path / "executed").exists()


def test_a_models_own_code_does_not_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path / "hostile")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("short", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_in_sixteen_bits_write_and_their_adapter_learns_in_32(
    short: str, kind: torch.dtype, tiny_folder: Path
) -> None:
    section = PolicySection(model=str(tiny_folder), device="cpu", dtype=short, lora=LoraSection(r=2))  # type: ignore[arg-type]
    policy = load_policy(section, trainable=True)
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert {p.dtype for n, p in policy.model.named_parameters() if n not in trained} == {kind}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert len(generate_texts(policy, prompts_of(policy), GREEDY, batch_size=4)) == 4
    ids = torch.arange(3, 20)[None]
    policy.model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())


def test_devices_that_are_not_there(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="is no device"):
        load_policy(PolicySection(model=str(tiny_folder), device="my gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"policy\.device=cuda.*no GPU"):
            load_policy(PolicySection(model=str(tiny_folder), device="cuda"))


# --- saving ---


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoint_is_replaced_whole(make_dataset: Make, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "checkpoint_final"
    save_policy(build(make_dataset(), 1), folder)
    (folder / "left_over.bin").write_text("of the old one")
    first = contents(folder)
    policy = build(make_dataset(), 2)
    save_policy(policy, folder)
    assert "left_over.bin" not in contents(folder)
    assert contents(folder)["model.safetensors"] != first["model.safetensors"]
    loaded = weights(load(folder).model)
    assert all(torch.equal(w, loaded[n]) for n, w in weights(policy.model).items())
    assert [p.name for p in folder.parent.iterdir()] == ["checkpoint_final"]


class Crash(BaseException):
    pass


def until_crash(real: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise Crash
        return real(*args, **options)

    return call


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_whole_checkpoint_stands_at_every_step_of_a_replacement(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool
) -> None:
    """A crash comes at each call that renames or removes, in turn; nothing is done after it."""

    if not can_swap:
        monkeypatch.setattr(folders, "_swap", lambda one, other: False)
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        if not folders._swap(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this filesystem cannot exchange two names in one step")
    folder = tmp_path / "checkpoints" / "checkpoint"
    old, new = build(make_dataset(), 1), build(make_dataset(), 2)
    save_policy(old, folder)
    before = contents(folder)
    save_policy(new, folder)
    after = contents(folder)
    for crash_at in range(1, 20):
        shutil.rmtree(folder.parent)
        save_policy(old, folder)
        left = iter(range(crash_at - 1))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", until_crash(Path.replace, left))
            patch.setattr(shutil, "rmtree", until_crash(shutil.rmtree, left))
            try:
                save_policy(new, folder)
                break
            except Crash:
                pass
        standing = [contents(path) for path in folder.parent.iterdir()]
        assert before in standing or after in standing
        if can_swap:
            assert contents(folder) in (before, after)
    assert 3 < crash_at < 19
    assert contents(folder) == after


def test_a_save_that_breaks_off_leaves_the_previous_checkpoint(make_dataset: Make, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_policy(build(make_dataset(), 1), folder)
    before = contents(folder)
    policy = build(make_dataset(), 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Under 64 bytes the first file fails, under 100,000 the weights.
    for limit in (64, 3000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(PolicyError, match=r"cannot write the checkpoint of about [\d,]+ bytes") as caught:
                save_policy(policy, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(folder) in caught.value.message
        assert "\n" not in caught.value.message
        assert contents(folder) == before
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_places_that_cannot_be_written(tiny_folder: Path, tmp_path: Path) -> None:
    policy = load(tiny_folder)
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "checkpoint"):
        with pytest.raises(PolicyError, match="cannot write the checkpoint"):
            save_policy(policy, folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="cannot write the checkpoint"):
        save_policy(policy, tmp_path / "link")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "file", "link"]
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_what_a_killed_process_left_is_not_mixed_in(tiny_folder: Path, tmp_path: Path) -> None:
    left = tmp_path / f".checkpoint.{os.getpid()}.tmp"
    left.mkdir()
    (left / "stale.bin").write_text("old")
    save_policy(load(tiny_folder), tmp_path / "checkpoint")
    assert "stale.bin" not in contents(tmp_path / "checkpoint")


def test_a_diverged_policy_is_named(tiny_folder: Path) -> None:
    policy = load_policy(PolicySection(model=str(tiny_folder), device="cpu"))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(PolicyError, match="not finite: its training diverged"):
        generate_texts(policy, [[5, 6]], Sampling(max_new_tokens=2, temperature=1.0), batch_size=1)
