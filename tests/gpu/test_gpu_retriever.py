"""A retriever that is trained on the device is the one that is trained on the CPU, within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config

pytestmark = pytest.mark.gpu


def test_it_learns_what_it_learns_on_the_cpu(tmp_path: Path, device: str) -> None:
    """Without dropout and samples, which each device draws for itself; the items lie on the device."""

    def weights(name: str, where: str) -> dict[str, torch.Tensor]:
        sets = [
            *("data.synthetic.users=40", "data.synthetic.items=30", "trainer.batch_size=8", "trainer.max_steps=6"),
            *("trainer.residual_dropout=0", "trainer.dropout=0", "trainer.text_share=0", "eval.baselines=[untrained]"),
            *(f"run.output_dir={tmp_path}", f"run.name={name}", "eval.cache_dir=null", f"retrieval.device={where}"),
        ]
        (trained,) = train(load_config(algorithm="retriever", recipes=["quick-test"], sets=sets))
        assert len(trained.evaluations) == 1
        return load_file(trained.run.final / "retriever.safetensors")

    here, there = weights("here", "cpu"), weights("there", device)
    assert here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, atol=2e-3, rtol=0)
