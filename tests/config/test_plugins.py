"""Names that mean rl4rec's own code or an installed package's plug-in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.plugins import Registry, plugins
from rl4rec_cli.errors import ConfigError, PluginError

GROUP = "rl4rec.tests"
REGISTRY = Registry("tool", GROUP, {"join": "os.path:join"})


def install(folder: Path, package: str, entries: str, module: str = "VALUE = 7\n", group: str = GROUP) -> None:
    """A small installed package: its metadata and one module, importable by the package's name."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    (folder / f"{package}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_plugin_is_listed_without_being_imported_and_loaded_by_name(site: Path) -> None:
    install(site, "plug_a", "seven = plug_a:VALUE")
    (plugin,) = plugins(GROUP)
    assert str(plugin) == "seven of plug_a 1.2"
    assert REGISTRY.names() == ["join", "seven"]
    assert REGISTRY.plugin("seven") == plugin
    assert "plug_a" not in sys.modules
    assert REGISTRY.load("seven") == 7


def test_rl4recs_own_name_wins_and_the_plugin_is_said_to_be_unused(site: Path) -> None:
    install(site, "plug_b", "join = plug_b:VALUE\nan odd one = plug_b:VALUE")
    assert REGISTRY.load("join")("a", "b") == "a/b"
    assert REGISTRY.names() == ["join"]
    problems = {plugin.name: problem for plugin, problem in REGISTRY.offers()}
    assert "rl4rec's own" in problems["join"]
    assert "letters, digits" in problems["an odd one"]


def test_a_name_of_two_packages_is_an_error_that_names_both(site: Path) -> None:
    install(site, "plug_c", "twice = plug_c:VALUE")
    install(site, "plug_d", "twice = plug_d:VALUE")
    assert REGISTRY.names() == ["join"]
    assert all("2 packages" in problem for _, problem in REGISTRY.offers())
    with pytest.raises(ConfigError, match=r"tool twice is offered by plug_c 1\.2, plug_d 1\.2"):
        REGISTRY.load("twice")


@pytest.mark.parametrize(
    ("module", "target", "cause"),
    [
        (
            "import nothing_of_this_name\n",
            "plug_e:VALUE",
            "ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("raise SystemExit(3)\n", "plug_e:VALUE", "SystemExit: 3"),
        ("VALUE = 7\n", "plug_e:OTHER", "has no attribute 'OTHER'"),
        ("VALUE = 7\n", "plug_gone:VALUE", "No module named 'plug_gone'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_names_package_entry_point_and_cause(
    site: Path, module: str, target: str, cause: str
) -> None:
    install(site, "plug_e", f"broken = {target}", module)
    sys.modules.pop("plug_e", None)
    with pytest.raises(PluginError) as error:
        REGISTRY.load("broken")
    assert f"plug-in broken of plug_e 1.2: {GROUP} entry point `broken = {target}`" in error.value.message
    assert cause in error.value.message


def test_an_unknown_name_lists_what_there_is(site: Path) -> None:
    install(site, "plug_f", "seven = plug_f:VALUE")
    with pytest.raises(ConfigError, match="unknown tool 'eight'") as error:
        REGISTRY.load("eight")
    assert error.value.hint == "it can be join, seven"


def test_a_recipe_may_name_plugins_and_nothing_of_them_is_imported(site: Path) -> None:
    install(site, "plug_g", "wordy = plug_g:VALUE", group="rl4rec.rewards")
    install(site, "plug_h", "newest = plug_h:VALUE", group="rl4rec.baselines")
    config = load_config(algorithm="grpo", sets=["reward.functions={wordy: 1}", "eval.baselines=[newest]"])
    assert (config.reward.functions, config.eval.baselines) == ({"wordy": 1.0}, ("newest",))
    assert {"plug_g", "plug_h"}.isdisjoint(sys.modules)
    for key, meant in (("reward.functions={wodry: 1}", "wordy"), ("eval.baselines=[newset]", "newest")):
        with pytest.raises(ConfigError, match=f"did you mean {meant}"):
            load_config(algorithm="grpo", sets=[key])
    install(site, "plug_i", "wordy = plug_i:VALUE", group="rl4rec.rewards")
    with pytest.raises(ConfigError, match=r"reward wordy is offered by plug_g 1\.2, plug_i 1\.2 \(--set\)"):
        load_config(algorithm="grpo", sets=["reward.functions={wordy: 1}"])


def test_a_runs_own_configuration_opens_without_its_plugins(tmp_path: Path) -> None:
    recipe = tmp_path / "config.yaml"
    recipe.write_text("reward: {functions: {gone: 1}}\neval: {baselines: [gone]}\n")
    config = load_config(algorithm="grpo", recipes=[str(recipe)], is_run=True)
    assert config.eval.baselines == ("gone",)
    with pytest.raises(ConfigError, match=r"eval\.baselines: unknown baseline `other`"):
        load_config(algorithm="grpo", recipes=[str(recipe)], sets=["eval.baselines=[other]"], is_run=True)
    with pytest.raises(ConfigError, match="unknown reward `gone`"):
        load_config(algorithm="grpo", recipes=[str(recipe)])
