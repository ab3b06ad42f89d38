"""Memory that is measured by real steps: on the CPU, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rl4rec_cli.commands.peak import measure_peaks
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.plan.memory import Surroundings, estimate
from rl4rec_cli.policy.facts import policy_facts


def config(*sets: str) -> RunConfig:
    small = (
        "data.synthetic={users: 40, items: 24}",
        "retrieval.embedder=lsa",
        "policy.device=cpu",
        "policy.tiny={hidden_size: 512, layers: 6}",
        "generation.max_completion_length=6",
        "trainer.batch_size=2",
        "trainer.num_generations=2",
        "trainer.gradient_accumulation_steps=1",
        "trainer.warm_start=null",
    )
    return load_config(algorithm="grpo", sets=[*small, *sets])


@pytest.mark.slow
def test_steps_take_weights_gradients_and_the_optimisers_state() -> None:
    """The second step meets the optimiser's state of the first: four numbers of four bytes for each weight."""
    one = config()
    facts = policy_facts(one.policy)
    (peak,) = measure_peaks(one)
    assert (peak.phase, peak.is_warm_start) == ("grpo", False)
    assert 1 <= peak.text_tokens <= 6 < peak.prompt_tokens <= one.prompt.max_prompt_length
    lengths = Surroundings(on_gpu=False, prompt_tokens=peak.prompt_tokens, text_tokens=peak.text_tokens, items=24)
    predicted = estimate(one, facts, lengths).bytes
    assert 16 * facts.parameters < peak.bytes < 2 * predicted


def test_a_step_that_fails_and_one_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Rl4RecError, match=r"^the measured step failed: .*nothing-here"):
        measure_peaks(config(f"policy.model={tmp_path / 'nothing-here'}"))
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(Rl4RecError, match="the measured step was ended by SIGKILL") as caught:
        measure_peaks(config())
    assert "it does not fit" in str(caught.value.hint)
