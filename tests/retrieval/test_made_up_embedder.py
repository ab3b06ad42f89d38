"""A new embedder takes its module, its settings and its line: everything else asks the embedder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up import copy_package, insert_after, run_commands

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.registries import EMBEDDERS
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, PluginError
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.service import joining

LINE = '        "hashes": "rl4rec_cli.retrieval.embedders.hashes:Hashes",\n'
SETTING = """    hash_dim: PositiveInt = 48
    \"\"\"Dimensions of `hashes`.\"\"\"
"""
MODULE = '''
"""Texts to vectors by hashed words."""

from __future__ import annotations

import zlib

from rl4rec_cli.retrieval.embedder import EmbedderKind


class Hashes(EmbedderKind):
    settings = ("hash_dim",)

    @property
    def identity(self):
        return f"hashes-{self.dim}"

    @property
    def dim(self):
        return getattr(self.section, "hash_dim", 48)

    def open(self, dataset):
        return HashEmbedder(self.identity, self.dim)


class HashEmbedder:
    def __init__(self, name, dim):
        self.name, self._dim = name, dim

    def embed(self, texts, *, query=False, progress=None):
        import torch

        from rl4rec_cli.retrieval.embedding import each_once

        def embed(batch):
            rows = torch.zeros(len(batch), self._dim)
            for row, text in zip(rows, batch, strict=True):
                for word in text.lower().split():
                    row[zlib.crc32(word.encode()) % self._dim] += 1
            return rows

        return each_once(texts, embed, self.name, batch_size=16, progress=progress)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the made-up embedder in it: the three places, as a person would fill them in."""
    package = copy_package(tmp_path_factory.mktemp("source"))
    insert_after(package / "config" / "registries.py", '    "rl4rec.embedders",\n    {\n', LINE)
    insert_after(package / "config" / "sections.py", '    """Dimensions of `lsa`."""\n', SETTING)
    (package / "retrieval" / "embedders" / "hashes.py").write_text(MODULE, encoding="utf-8")
    return package


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset."""
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(synthesize(users=60, items=40, seed=3), folder)
    return folder


@pytest.mark.slow
def test_a_made_up_embedder_is_planned_embeds_and_ranks(package: Path, shop: Path, tmp_path: Path) -> None:
    chosen = ["--set", "retrieval.embedder=hashes", "--set", "policy.model=tiny"]
    baselines = ["last_item", "history_mean", "bm25"]
    (listed, planned, embedded, measured, refused), errors = run_commands(
        *(package, tmp_path),
        ["settings", "hash_dim"],
        ["plan", "--dataset", str(shop), "--json", *chosen, "--set", "retrieval.hash_dim=24"],
        ["embed", str(shop), "--embedder", "hashes"],
        ["eval", "--dataset", str(shop), "--baselines", ",".join(baselines), "--json", *chosen],
        ["embed", str(shop), "--embedder", "hashed"],
    )
    assert [code for code, _ in (listed, planned, embedded, measured)] == [0] * 4, errors
    assert "Dimensions of `hashes`" in listed[1]
    assert json.loads(planned[1])["phases"]
    (file,) = (tmp_path / "data_emb").iterdir()  # which `eval` read
    assert file.name.endswith("_text_hashes-48.safetensors")
    assert json.loads(measured[1])

    assert refused[0] == 2
    assert re.search(r"must be .*'lsa'.*, not 'hashed'; did you mean hashes\?", errors)
    assert "'hashes', 'sentence-transformers'" in errors


def install(site: Path, target: str, name: str = "outside") -> None:
    """An installed package that offers an embedder."""
    info = site / "hash_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hash-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[rl4rec.embedders]\n{name} = {target}\n")
    (site / "hash_plugin.py").write_text(MODULE + "\nnothing = 7\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "hash_plugin", raising=False)
    return site


def test_an_installed_package_brings_an_embedder(
    site: Path, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    with pytest.raises(ConfigError, match=r"must be 'sentence-transformers', .*, not 'outside'"):
        load_config(algorithm="grpo", sets=["retrieval.embedder=outside"])
    install(site, "hash_plugin:Hashes")
    section = load_config(algorithm="grpo", sets=["retrieval.embedder=outside"]).retrieval
    assert "hash_plugin" not in sys.modules  # it is imported where it is used
    section = section.model_copy(update={"emb_dir": str(tmp_path / "emb"), "device": "cpu", "backend": "in-process"})
    dataset = make_dataset()
    retriever = open_retriever(section, dataset)
    texts = [str(dataset.items[item]["text"]) for item in range(3)]
    assert retriever.target_ranks(texts, [0, 1, 2], [[], [], []]).ranks.tolist() == [1, 1, 1]
    (file,) = (tmp_path / "emb").iterdir()
    assert file.name == f"{dataset.name}_text_hashes-48.safetensors"
    assert torch.equal(open_retriever(section, dataset).vectors_ND, retriever.vectors_ND)


def test_what_is_no_embedder_is_refused(site: Path) -> None:
    install(site, "hash_plugin:nothing")
    with pytest.raises(PluginError, match=r"embedder outside: hash_plugin:nothing is no subclass of .*EmbedderKind"):
        find_embedder(RetrievalSection(embedder="outside"))


def test_a_type_is_asked_of_the_embedder(site: Path) -> None:
    install(site, "hash_plugin:Hashes")
    with pytest.raises(ConfigError, match=r"retrieval\.dtype=fp16 goes with .*; outside computes in fp32"):
        load_config(algorithm="grpo", sets=["retrieval.embedder=outside", "retrieval.dtype=fp16"])


def test_each_setting_is_of_all_embedders_or_of_some_or_of_the_place() -> None:
    own = {key for name in EMBEDDERS.built_in for key in EMBEDDERS.load(name).settings}
    groups = [joining._VECTORS, joining._WHERE, joining._HOW, own]
    assert set.union(*groups) == RetrievalSection.model_fields.keys()
    assert sum(map(len, groups)) == len(RetrievalSection.model_fields)
