"""`rl4rec_cli.api`: its names are there, importing it is free, and docs/python.md works as it stands."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec_cli import api
from rl4rec_cli.data.opening import RecommendationDataset, load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import DataError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"


def test_every_name_is_there_and_the_lists_agree() -> None:
    tree = ast.parse(Path(api.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == api._HOMES
    assert sorted(api.__all__) == sorted(typed)
    for name, module in typed.items():
        assert getattr(api, name) is getattr(importlib.import_module(str(module)), name)
    assert set(api.__all__) <= set(dir(api))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        api.nothing  # noqa: B018


def test_importing_it_is_free() -> None:
    heavy = ("torch", "transformers", "trl", "ray", "datasets", "numpy", "pydantic", "yaml")
    code = f"import rl4rec_cli.api, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_functions_and_classes_are_documented() -> None:
    values = {name: getattr(api, name) for name in api.__all__}
    sections = {name for name in values if name.endswith(("Section", "Config"))}  # docs/settings.md has their fields
    assert [name for name, value in values.items() if not value.__doc__ and name not in sections] == []


def test_a_dataset_by_the_names_of_its_files(tmp_path: Path) -> None:
    save_dataset(synthesize(10, 20, 0), tmp_path / "toy")
    sequences = tmp_path / "toy" / "sequential_data.txt"
    assert RecommendationDataset(sequences).digest == load_dataset(tmp_path / "toy").digest
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"u1": "likes mint"}')
    elsewhere = sequences.rename(tmp_path / "sequences.txt")
    dataset = RecommendationDataset(elsewhere, prompts, folder=tmp_path / "toy")
    assert dataset.prompts == {"u1": "likes mint"}
    with pytest.raises(DataError):
        RecommendationDataset(elsewhere)


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("".join(blocks))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("120 users, 40 items, such as ")
    assert lines[1] == "{'u1': 'A customer who likes mint. Next:'}"
    assert (tmp_path / "policy" / "config.json").is_file()
    assert (tmp_path / "ab.md").is_file()
    assert any(line.startswith("{'loss':") for line in lines)
    assert "data/nowhere" in lines[-1]


def test_the_page_names_every_function() -> None:
    page = PAGE.read_text(encoding="utf-8")
    functions = [name for name in api.__all__ if name[0].islower()]
    unnamed = {name for name in functions if not re.search(rf"\b{name}\b", page)}
    assert unnamed <= {"audit_dataset", "build_examples", "calculate_ndcg", "dump_config", "open_retriever"}
