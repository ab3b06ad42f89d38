"""A run's recipe is whole, or is known not to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.errors import RunError
from rl4rec_cli.runs.making import create_run, open_run, recipe_text


def test_a_configuration_that_is_cut_anywhere_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    config = load_config(algorithm="grpo", sets=["run.name=r", f"run.output_dir={tmp_path}"])
    run = create_run(config, dataset="d")
    assert open_run(run.folder).config == config
    path = run.folder / "config.yaml"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    cuts = ["".join(lines[:n]) for n in range(len(lines))]  # between two lines YAML itself sees nothing
    for text in [*cuts, whole[: len(whole) // 2], whole[:-2]]:
        path.write_text(text)
        with pytest.raises(RunError, match=r"config\.yaml: is cut"):
            open_run(run.folder)


def test_a_configuration_that_was_edited_or_is_of_an_older_version_still_opens(tmp_path: Path) -> None:
    config = load_config(algorithm="grpo", sets=["run.name=r", f"run.output_dir={tmp_path}"])
    run = create_run(config, dataset="d")
    path = run.folder / "config.yaml"
    path.write_text(recipe_text(config) + "# mine\n")
    assert open_run(run.folder).config == config
    path.write_text("".join(line for line in recipe_text(config).splitlines(keepends=True) if line[0] != "#"))
    assert open_run(run.folder).config == config
