"""Several completions of a prompt: samples, and the best of a beam search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.policy.generation import decode_texts, generate_ids, generate_several, generate_texts, write_ids
from rl4rec_cli.policy.loading import Policy, load_policy

TEXTS = ("soap", "A customer chose rose hand cream", "mint")
SAMPLED = Sampling(max_new_tokens=6, temperature=1.0)
BEAMS = Sampling(max_new_tokens=6, temperature=0.0, num_beams=5)


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return load_policy(PolicySection(model=str(tiny_folder), device="cpu"))


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    return [policy.tokenizer(text)["input_ids"] for text in TEXTS]


def test_samples_differ_and_follow_the_seed(policy: Policy, prompts: Any) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(generate_several(policy, prompts, SAMPLED, count=4, batch_size=64))
    assert [len(texts) for texts in drawn[0]] == [4, 4, 4]
    assert all(len(set(texts)) > 1 for texts in drawn[0])
    assert drawn[0] == drawn[1] != drawn[2]
    torch.manual_seed(1)
    flat = generate_texts(policy, [p for p in prompts for _ in range(4)], SAMPLED, batch_size=64)
    assert drawn[0] == [flat[:4], flat[4:8], flat[8:]]


def test_beams_are_those_of_transformers_whatever_the_batch(policy: Policy, prompts: Any) -> None:
    seen: list[int] = []
    several = generate_several(policy, prompts, BEAMS, count=3, batch_size=64, progress=seen.append)
    assert sum(seen) == 3
    for prompt, texts in zip(prompts, several, strict=True):
        out = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=5,
            num_return_sequences=3,
            do_sample=False,
            max_new_tokens=6,
            pad_token_id=policy.tokenizer.pad_token_id,
        )
        assert texts == decode_texts(policy.tokenizer, out[:, len(prompt) :].tolist())
    assert any(len(set(texts)) == 3 for texts in several)
    assert several == generate_several(policy, prompts, BEAMS, count=3, batch_size=5)
    assert several == generate_several(policy, prompts, replace(BEAMS, batch_size=2), count=3, batch_size=64)
    assert [texts[0] for texts in several] == generate_texts(policy, prompts, BEAMS, batch_size=64)


def test_engines_are_not_asked_for_beams(policy: Policy, prompts: Any) -> None:
    class Engine:
        def write(self, *arguments: Any) -> Any:
            raise AssertionError("asked")

    with pytest.raises(PolicyError, match="engines sample only"):
        write_ids(replace(policy, engine=Engine()), policy.model, prompts, BEAMS)
    assert len(generate_ids(policy.model, policy.tokenizer, prompts, replace(BEAMS, num_return_sequences=2))) == 6
