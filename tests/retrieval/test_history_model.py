"""The trained retriever's network against numpy, position by position."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl4rec_cli.retrieval.history_model import HistoryModel


def _model(num_items: int = 12, *, dim: int = 5, max_history: int = 4, residual: bool = True) -> HistoryModel:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, 8), dim=1)
    has_one = torch.arange(num_items) % 3 > 0 if residual else None
    model = HistoryModel(vectors, dim=dim, max_history=max_history, residual_N=has_one, residual_dropout=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def _items(model: HistoryModel, *, by_text: bool = False) -> np.ndarray:
    part = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    x = model.vectors_ND.double().numpy() @ part["text.weight"].T + part["text.bias"]
    if model.residual is not None and not by_text:
        x = x + part["residual.weight"] * model.residual_N.numpy()[:, None]
    return np.stack([_unit(row) for row in x])


def _query(model: HistoryModel, history: np.ndarray) -> np.ndarray:
    part = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    recent = history[::-1][: len(part["recency"])]
    weights = np.exp(part["recency"][: len(recent)])
    mean = (weights[:, None] * recent).sum(0) / weights.sum()
    scale = 0.3 * math.sqrt(history.shape[1])
    return _unit(scale * mean + part["last.weight"] @ (scale * history[-1]) + part["last.bias"])


@pytest.mark.parametrize("residual", [True, False])
def test_items_and_queries_are_those_of_the_formula(residual: bool) -> None:
    model = _model(residual=residual)
    items = _items(model)
    np.testing.assert_allclose(model.items().detach().numpy(), items, atol=1e-6)
    history = np.array([3, 1, 1, 7, 0, 11, 4])
    queries = model.queries(model.items(torch.tensor(history)[None])).detach().numpy()[0]
    for place in range(len(history)):
        np.testing.assert_allclose(queries[place], _query(model, items[history[: place + 1]]), atol=1e-5)


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=9), min_size=1, max_size=5))
def test_neither_padding_nor_later_items_are_read(histories: list[list[int]]) -> None:
    model = _model()
    longest = max(map(len, histories))
    ids = torch.zeros(len(histories), longest, dtype=torch.long)
    for row, history in enumerate(histories):
        ids[row, : len(history)] = torch.tensor(history)
    together = model.queries(model.items(ids))
    for row, history in enumerate(histories):
        alone = model.queries(model.items(torch.tensor([history])))[0]
        torch.testing.assert_close(together[row, : len(history)], alone, atol=1e-6, rtol=0)


def test_a_text_is_a_history_of_one_item_without_its_own_vector() -> None:
    model = _model()
    alone = model.items(torch.tensor([5]), by_text=True)
    torch.testing.assert_close(model.text_queries(alone), model.queries(alone[None])[0])
    np.testing.assert_allclose(alone.detach().numpy()[0], _items(model, by_text=True)[5], atol=1e-6)


def test_own_vectors_are_left_out_whole_in_training_and_only_there() -> None:
    model = _model()
    by_text, whole = model.items(by_text=True), model.items()
    torch.manual_seed(3)
    some = model.train().items()
    is_text = torch.isclose(some, by_text, atol=1e-6).all(1)
    is_whole = torch.isclose(some, whole, atol=1e-6).all(1)
    assert (is_text | is_whole).all()
    has_one = model.residual_N
    assert not is_whole[has_one].all()
    assert not is_text[has_one].all()


def test_the_start_is_near_the_texts_own_cosine() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(30, 8) + 0.5, dim=1)
    model = HistoryModel(vectors, dim=8, max_history=3, residual_N=torch.ones(30, dtype=torch.bool)).eval()
    centred = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    items: Tensor = model.items().detach()
    torch.testing.assert_close(items @ items.T, centred @ centred.T, atol=1e-5, rtol=0)
    queries = model.text_queries(items).detach()
    torch.testing.assert_close(queries, items, atol=1e-5, rtol=0)


def test_two_processes_start_alike_whatever_the_signs_of_directions() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    first, second = (HistoryModel(vectors.clone(), dim=4, max_history=3) for _ in range(2))
    assert torch.equal(first.text.weight, second.text.weight)
    assert (first.text.weight.gather(1, first.text.weight.abs().argmax(1, keepdim=True)) > 0).all()
