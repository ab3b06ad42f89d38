"""The plan of a retriever's training: by its own sizes, wherever the item vectors are."""

from __future__ import annotations

import pytest

from rl4rec_cli.commands.placement import brief, check_memory, complain, place
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import ConfigError, Rl4RecError


def _config(*sets: str) -> RunConfig:
    return load_config(algorithm="retriever", recipes=["quick-test"], sets=list(sets))


def test_it_is_planned_by_its_own_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = place(_config()), place(_config("trainer.max_sequence=400", "trainer.batch_size=512"))
    assert small.fits
    assert brief(small)[0].startswith("placement: retriever on cpu; batch 64 users")
    assert large.estimate.bytes > 5 * small.estimate.bytes
    assert {"weights", "optimizer", "item matrix", "activations"} <= small.estimate.peak.parts.keys()
    without = place(_config("trainer.residual=false"))
    assert without.estimate.peak.parts["weights"] < small.estimate.peak.parts["weights"]


def test_one_that_does_not_fit_names_its_settings() -> None:
    config = _config("trainer.batch_size=100000", "trainer.max_sequence=10000")
    placement = place(config)
    assert not placement.fits
    with pytest.raises(Rl4RecError, match="the retriever needs") as error:
        complain(config.policy, placement)
    assert "trainer.max_sequence" in str(error.value.hint)


def test_a_step_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="measures policies only"):
        check_memory(_config())


def test_a_tuned_encoder_is_planned_by_the_encoder() -> None:
    base = ["retrieval.embedder=sentence-transformers", "retrieval.model=mixedbread-ai/mxbai-embed-large-v1"]
    full, lora = (place(_config(*base, f"trainer.kind={kind}")).estimate.peak.parts for kind in ("full", "lora"))
    assert full["weights"] + full["gradients"] + full["optimizer"] == 16 * 335_141_888
    assert lora["optimizer"] < full["optimizer"] / 100
    assert lora["weights"] > full["weights"]
    plain, checkpointed = (
        place(_config(*base, "trainer.kind=full", more)).estimate.peak.parts["activations"]
        for more in ("trainer.mini_batch_size=null", "trainer.gradient_checkpointing=true")
    )
    assert plain > 3 * full["activations"] > 9 * checkpointed


def test_an_encoder_that_does_not_fit_names_its_settings() -> None:
    base = ["retrieval.embedder=sentence-transformers", "trainer.kind=full", "trainer.mini_batch_size=100000"]
    config = _config(*base, "retrieval.model=mixedbread-ai/mxbai-embed-large-v1")
    with pytest.raises(Rl4RecError, match="the retriever needs") as error:
        complain(config.policy, place(config))
    assert "trainer.mini_batch_size" in str(error.value.hint)
