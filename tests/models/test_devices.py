"""Words of device settings: what each means, and the setting is named where one means nothing."""

from __future__ import annotations

import pytest
import torch

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.models.devices import gpu_index, resolve_device


@pytest.mark.parametrize("is_there", [False, True])
def test_auto_is_a_gpu_where_there_is_one(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert resolve_device("cpu", "policy.device") == "cpu"
    assert resolve_device("auto", "policy.device") == ("cuda" if is_there else "cpu")
    if is_there:
        assert resolve_device("cuda:1", "policy.device") == "cuda:1"
    else:
        with pytest.raises(ConfigError, match=r"retrieval\.device=cuda:1, but torch sees no GPU"):
            resolve_device("cuda:1", "retrieval.device")


def test_the_index_of_a_gpu() -> None:
    assert [gpu_index(word, "policy.device") for word in ("auto", "cuda", "cuda:0", "cuda:3")] == [0, 0, 0, 3]


@pytest.mark.parametrize("word", ["my gpu", "cuda:x", "CUDA:0"])
def test_a_word_that_means_no_device_is_named_with_its_setting(word: str) -> None:
    for read in (resolve_device, gpu_index):
        with pytest.raises(ConfigError, match=f"policy.device={word} is no device") as caught:
            read(word, "policy.device")
        assert caught.value.hint == "auto, cpu, cuda, cuda:1 …"
