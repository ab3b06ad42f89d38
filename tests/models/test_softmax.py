"""The softmax over a catalogue or a sample of it, against plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

from rl4rec_cli.models import softmax
from rl4rec_cli.models.softmax import cross_entropy, draw_candidates


def _plain(states: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    logits = (states @ items.T).masked_fill(out, -math.inf)
    return torch.nn.functional.cross_entropy(logits, targets)


@pytest.mark.parametrize("at_once", [3, 1000])
def test_loss_and_gradients_are_those_of_the_masked_softmax(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    torch.manual_seed(0)
    states = torch.randn(11, 6, requires_grad=True)
    items = torch.randn(20, 6, requires_grad=True)
    targets = torch.randint(20, (11,))
    out = torch.rand(11, 20) < 0.3
    rows, columns = out.nonzero(as_tuple=True)  # some of them are targets
    assert out[torch.arange(11), targets].any()
    monkeypatch.setattr(softmax, "_CPU_LOGITS", 20 * at_once)

    loss = cross_entropy(states, items, draw_candidates(targets, 20, sampled=1, full_up_to=20), (rows, columns))
    ours = torch.autograd.grad(loss, (states, items))
    out[torch.arange(11), targets] = False
    exact = _plain(states, items, targets, out)
    theirs = torch.autograd.grad(exact, (states, items))

    torch.testing.assert_close(loss, exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_holds_all_targets_and_stands_for_the_rest() -> None:
    torch.manual_seed(1)
    targets = torch.randint(500, (40,))
    candidates = draw_candidates(targets, 500, sampled=100, full_up_to=499)
    assert candidates.ids_C is not None
    assert candidates.offsets_C is not None
    assert len(candidates.ids_C.unique()) == len(candidates.ids_C)
    assert torch.equal(candidates.ids_C[candidates.columns_P], targets)
    many = len(targets.unique())
    # Together the weights count every item once.
    assert candidates.offsets_C.exp().sum().item() == pytest.approx(500, abs=0.01)
    assert not candidates.offsets_C[:many].any()
    assert draw_candidates(targets, 500, sampled=100, full_up_to=500).ids_C is None
