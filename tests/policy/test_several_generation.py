"""Several completions of a prompt: samples, and the best of a beam search."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.policy.generation import (
    decode_texts,
    generate_grouped,
    generate_ids,
    generate_several,
    generate_texts,
    write_ids,
)
from rl4rec_cli.policy.loading import Policy, load_policy
from rl4rec_cli.policy.probabilities import generate_weighed, log_probabilities

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


@torch.no_grad()
def direct(policy: Policy, prompt: list[int], ids: list[int]) -> float:
    """The log-probability by a pass of its own, without padding."""
    logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return float(logits.double().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_log_probabilities_are_those_of_a_pass_of_its_own(
    policy: Policy, prompts: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    rows = [prompt for prompt in prompts for _ in range(4)]
    hot = replace(SAMPLED, temperature=1.7, top_k=40, repetition_penalty=1.3)
    completions = generate_ids(policy.model, policy.tokenizer, rows, hot)
    wanted = [direct(policy, prompt, ids) for prompt, ids in zip(rows, completions, strict=True)]
    found = log_probabilities(policy, rows, completions, batch_size=at_once)
    assert found == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr("rl4rec_cli.policy.probabilities._LOGITS", 1)
    assert log_probabilities(policy, rows, completions, batch_size=64) == pytest.approx(wanted, abs=1e-4)


def test_beams_have_the_sums_of_what_transformers_scores(policy: Policy, prompts: Any) -> None:
    texts, weights = generate_weighed(policy, prompts, BEAMS, count=3, batch_size=64)
    assert texts == generate_several(policy, prompts, BEAMS, count=3, batch_size=64)
    groups = generate_grouped(policy, prompts, BEAMS, count=3, batch_size=64)
    for prompt, group, own_texts, own_weights in zip(prompts, groups, texts, weights, strict=True):
        out = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            **{"num_beams": 5, "num_return_sequences": 3, "do_sample": False, "max_new_tokens": 6},
            **{"output_scores": True, "return_dict_in_generate": True, "pad_token_id": policy.tokenizer.pad_token_id},
        )
        # The sums over tokens; `sequences_scores` are means.
        sums = policy.model.compute_transition_scores(out.sequences, out.scores, out.beam_indices).sum(1)
        assert log_probabilities(policy, [prompt] * 3, group, batch_size=2) == pytest.approx(sums.tolist(), abs=1e-3)
        for text, weight in zip(own_texts, own_weights, strict=True):
            alike = [float(value) for value, other in zip(sums, own_texts, strict=True) if other == text]
            assert weight == pytest.approx(float(np.logaddexp.reduce(alike)), abs=1e-3)


def test_equal_texts_have_the_sum_of_their_different_tokens(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = policy.tokenizer(TEXTS[0])["input_ids"]
    whole = policy.tokenizer("soap")["input_ids"]
    ended = [*whole, policy.tokenizer.eos_token_id]
    other = policy.tokenizer("mint")["input_ids"]
    assert decode_texts(policy.tokenizer, [whole, ended]) == ["soap", "soap"]
    written = [[whole, ended, whole, other]]
    monkeypatch.setattr("rl4rec_cli.policy.probabilities.generate_grouped", lambda *a, **more: written)
    [texts], [weights] = generate_weighed(policy, [prompt], SAMPLED, count=4, batch_size=8)
    assert texts == ["soap", "soap", "soap", "mint"]
    both = math.log(sum(math.exp(direct(policy, prompt, ids)) for ids in (whole, ended)))
    assert weights == pytest.approx([both, both, both, direct(policy, prompt, other)], abs=1e-4)
