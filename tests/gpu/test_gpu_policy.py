"""A policy on the device computes and writes what it does on the CPU; an embedder there gives the same vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy

pytestmark = pytest.mark.gpu
WORDS = ["rose", "hand", "cream", "mint", "shower", "gel", "honey", "lip", "balm"]


def load(folder: Path, device: str, dtype: str = "fp32") -> Policy:
    return load_policy(PolicySection(model=str(folder), device=device, dtype=dtype))


def prompts(policy: Policy) -> list[list[int]]:
    return [policy.tokenizer(text)["input_ids"] for text in ("rose hand cream\n", "mint shower gel; honey lip balm\n")]


@torch.no_grad()
def logits(policy: Policy) -> torch.Tensor:
    device = next(policy.model.parameters()).device
    rows = [policy.model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in prompts(policy)]
    return torch.cat(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_logits_are_those_of_the_cpu(dtype: str, tolerance: float, tiny_folder: Path, device: str) -> None:
    policy = load(tiny_folder, device, dtype)
    assert next(policy.model.parameters()).device.type == device.partition(":")[0]
    torch.testing.assert_close(logits(policy), logits(load(tiny_folder, "cpu")), rtol=0, atol=tolerance)


def test_the_most_likely_texts_are_those_of_the_cpu(tiny_folder: Path, device: str) -> None:
    there, here = load(tiny_folder, device), load(tiny_folder, "cpu")
    how = Sampling(8, 0.0)
    assert generate_texts(there, prompts(there), how, batch_size=2) == generate_texts(
        here, prompts(here), how, batch_size=2
    )


def test_a_seed_gives_the_same_samples(tiny_folder: Path, device: str) -> None:
    policy = load(tiny_folder, device)
    written = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        written.append(generate_texts(policy, prompts(policy) * 8, Sampling(8, 1.0), batch_size=16))
    assert written[0] == written[1] != written[2]


def test_an_embedder_gives_the_vectors_of_the_cpu(tmp_path: Path, device: str) -> None:
    from rl4rec_cli.retrieval.embedders.sentence_transformers import SentenceTransformerEmbedder

    folder = save_random_embedder(tmp_path)
    texts = [" ".join(WORDS[i % 9 : i % 9 + 3]) for i in range(20)] + [""]
    there, here = (
        SentenceTransformerEmbedder(folder, device=name, batch_size=8).embed(texts) for name in (device, "cpu")
    )
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    torch.testing.assert_close(here[:20].norm(dim=1), torch.ones(20))


def save_random_embedder(folder: Path) -> str:
    """A BERT with random weights and a vocabulary of words, as a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    base = str(folder / "base")
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(base)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(base)
    module = Transformer(base)
    whole = str(folder / "embedder")
    SentenceTransformer(modules=[module, Pooling(64)], device="cpu").save(whole)
    return whole
