"""Layers, merging, YAML and error messages of the configuration."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.config.layering import dump_config, load_config, packaged_recipes
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import GrpoSection, SftSection, trainer_sections
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.strict_yaml import MAX_BYTES, YamlError, dump_yaml, load_yaml


def load(*sets: str, algorithm: str | None = "grpo", recipes: Any = (), flags: Any = None, **more: Any) -> RunConfig:
    return load_config(algorithm=algorithm, recipes=recipes, flags=flags or {}, sets=sets, **more)


def fails(*sets: str, **how: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*sets, **how)
    return caught.value


def recipe(folder: Path, text: str, name: str = "own") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Order and merging


def test_nothing_given_is_the_defaults() -> None:
    assert load() == RunConfig()
    assert load(algorithm=None) == RunConfig()
    assert load(algorithm="sft") == RunConfig(trainer=SftSection())


def test_each_layer_wins_over_those_below(tmp_path: Path) -> None:
    low = recipe(tmp_path, "policy: {model: a}\ntrainer: {max_steps: 1, beta: 0.1, epsilon: 0.3}", "low")
    high = recipe(tmp_path, "policy: {model: b}\ntrainer: {max_steps: 2, beta: 0.2}", "high")
    assert load(recipes=[low, high]).policy.model == "b"
    assert load(recipes=[high, low]).policy.model == "a"
    assert load(recipes=[low, high], flags={"policy.model": "c"}).policy.model == "c"
    config = load("policy.model=d", "trainer.max_steps=3", recipes=[low, high], flags={"policy.model": "c"})
    assert config.policy.model == "d"
    assert isinstance(config.trainer, GrpoSection)
    assert (config.trainer.max_steps, config.trainer.beta, config.trainer.epsilon) == (3, 0.2, 0.3)


def test_flags_may_be_nested_as_well_as_dotted() -> None:
    dotted = load(flags={"data.path": "x", "eval.users": 5})
    assert dotted == load(flags={"data": {"path": "x"}, "eval": {"users": 5}})
    assert dotted.data.path == "x"


def test_mappings_merge_lists_replace(tmp_path: Path) -> None:
    one = recipe(tmp_path, "policy: {lora: {r: 4, target_modules: [a, b]}}\neval: {ks: [1, 2, 3]}", "one")
    two = recipe(tmp_path, "policy: {lora: {dropout: 0.5, target_modules: [c]}}\neval: {ks: [9]}", "two")
    config = load(recipes=[one, two])
    assert config.policy.lora is not None
    assert (config.policy.lora.r, config.policy.lora.dropout) == (4, 0.5)
    assert config.policy.lora.target_modules == ("c",)
    assert config.eval.ks == (9,)


def test_null_resets_an_optional_section_and_an_empty_one_is_nothing(tmp_path: Path) -> None:
    on = recipe(tmp_path, "policy: {lora: {r: 4}}\ntrainer: {warm_start: {max_steps: 5}}", "on")
    off = recipe(tmp_path, "policy: {lora: null}\ntrainer:\n  # max_steps: 1\n", "off")
    assert load(recipes=[on]).policy.lora is not None
    config = load("trainer.warm_start=null", recipes=[on, off])
    assert config.policy.lora is None
    assert config == RunConfig()
    # What comes after a reset starts from the defaults, not from what was reset.
    again = load("policy.lora.dropout=0.1", recipes=[on, off])
    assert again.policy.lora is not None
    assert again.policy.lora.r == 16


def test_reward_functions_replace_but_a_set_of_one_adds(tmp_path: Path) -> None:
    hit = recipe(tmp_path, "reward: {functions: {hit: 1}}")
    assert load(recipes=[hit]).reward.functions == {"hit": 1.0}
    assert load("reward.functions.mrr=0.5", recipes=[hit]).reward.functions == {"hit": 1.0, "mrr": 0.5}
    assert load("reward.functions.mrr=0.5").reward.functions == {"ndcg": 1.0, "mrr": 0.5}
    assert load("reward.functions.mrr=1", "reward.functions.ndcg=null").reward.functions == {"mrr": 1.0}
    assert load(recipes=[hit], flags={"reward.functions": {"ndcg": 1.0, "hit": 0.0}}).reward.functions == {
        "ndcg": 1.0,
        "hit": 0.0,
    }


def test_a_later_source_of_data_drops_the_earlier_one(tmp_path: Path) -> None:
    folder = recipe(tmp_path, "data: {path: here, train_users: 7}")
    config = load(recipes=["quick-test"], flags={"data.path": "x"})
    assert (config.data.path, config.data.synthetic) == ("x", None)
    config = load(recipes=[folder, "quick-test"])
    assert config.data.path is None
    assert config.data.synthetic is not None
    assert config.data.train_users == 7
    error = fails("data.synthetic.users=5", flags={"data.path": "x"})
    assert error.message == "data: give data.path or data.synthetic, not both (--dataset, --set)"


def test_another_dataset_drops_the_files_that_went_with_the_one_below(tmp_path: Path) -> None:
    own = recipe(tmp_path, f"data: {{path: {tmp_path}/a, prompt_file: p.json, sequential_file: s.txt}}")
    assert load(recipes=[own]).data.prompt_file == "p.json"
    assert load(recipes=[own], flags={"data.path": f"{tmp_path}/x/../a"}).data.sequential_file == "s.txt"
    other = load(recipes=[own], flags={"data.path": "b"}).data
    assert (other.path, other.prompt_file, other.sequential_file) == ("b", None, None)
    assert load(recipes=[own], flags={"data.path": "b", "data.prompt_file": "q.json"}).data.prompt_file == "q.json"
    assert load(recipes=[own, "quick-test"]).data.prompt_file is None


def test_files_of_their_own_go_with_one_dataset_folder() -> None:
    error = fails(flags={"data.path": ["a", "b"], "data.prompt_file": "p.json"})
    assert error.message.startswith("data: data.prompt_file goes with one dataset folder (data.path), and several are")
    assert "none is named" in fails("data.sequential_file=s.txt").message


def test_a_reference_policy_alone_gets_the_usual_weight() -> None:
    config = load("trainer.use_ref_model=true")
    assert config.trainer.beta == 0.04  # type: ignore[union-attr]
    assert load("trainer.use_ref_model=true", "trainer.beta=0.1").trainer.beta == 0.1  # type: ignore[union-attr]
    assert "set beta above 0" in fails("trainer.use_ref_model=true", "trainer.beta=0").message
    assert "beta: 0.04" in dump_config(config)


def test_a_json_file_is_a_recipe_without_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text('{"trainer": {"max_steps": 7}, "run": {"seed": 3}}')
    config = load(recipes=["own.json"])
    assert (config.trainer.max_steps, config.run.seed) == (7, 3)
    assert "cannot read recipe none.json: no such file" in fails(recipes=["none.json"]).message


def test_a_plain_name_of_a_dataset_means_the_folder_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/shop").mkdir(parents=True)
    Path("data/toys").mkdir()
    assert load(flags={"data.path": "shop"}).data.path == "data/shop"
    assert load(flags={"data.path": ["shop", "toys"]}).data.paths == ("data/shop", "data/toys")
    assert load(recipes=[recipe(tmp_path, "data: {path: toys}")]).data.path == "data/toys"
    Path("shop").mkdir()  # what is here goes before
    assert load(flags={"data.path": "shop"}).data.path == "shop"
    assert load(flags={"data.path": "./toys"}).data.path == "./toys"
    assert load(flags={"data.path": "none"}).data.path == "none"


def test_one_recipe_serves_several_algorithms(tmp_path: Path) -> None:
    both = recipe(
        tmp_path, "trainer: {max_steps: 9, learning_rate: 1e-3, grpo: {beta: 0.5, max_steps: 8}, sft: {target: last}}"
    )
    grpo, sft = load(recipes=[both]), load(recipes=[both], algorithm="sft")
    assert isinstance(grpo.trainer, GrpoSection)
    assert isinstance(sft.trainer, SftSection)
    assert (grpo.trainer.beta, grpo.trainer.max_steps) == (0.5, 8)
    assert (sft.trainer.target, sft.trainer.max_steps) == ("last", 9)
    bad = recipe(tmp_path, "trainer: {sft: {taget: last}}", "bad")
    assert (
        f"trainer.sft.taget: unknown key; did you mean `trainer.target`? (recipe {bad})" in fails(recipes=[bad]).message
    )


def test_the_algorithm_comes_from_the_recipe_where_the_command_has_none(tmp_path: Path) -> None:
    sft = recipe(tmp_path, "trainer: {algorithm: sft, target: last}")
    assert isinstance(load(recipes=[sft], algorithm=None).trainer, SftSection)
    assert isinstance(load("trainer.algorithm=sft", algorithm=None).trainer, SftSection)


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce", "sft"])
def test_packaged_recipes(name: str, algorithm: str) -> None:
    found = packaged_recipes()[name]
    load(recipes=[name], algorithm=algorithm)
    assert set(found.header) == {"purpose", "hardware", "time", "command"}
    assert all(found.header.values())
    assert len(found.text.splitlines()) <= 40


def test_there_are_recipes() -> None:
    assert {"quick-test", "beauty-cpu", "beauty-grpo"} <= set(packaged_recipes())


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("[a, 1]", ["a", 1]),
        ("{a: b}", {"a": "b"}),
        ("'5'", "5"),
        ("-.inf", -math.inf),
        ("=", "="),
    ],
)
def test_plain_words(text: str, value: Any) -> None:
    loaded = load_yaml(text)
    assert loaded == value
    assert type(loaded) is type(value)


BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BILLION_LAUGHS, "aliases are not read"),
        ("run: {seed: 1}\nrun: {seed: 2}", "2:1: the key `run` is given twice"),
        ("run: {seed: 1, seed: 2}", "the key `seed` is given twice"),
        ("!!python/object/apply:os.system [echo]", "tag"),
        ("run: !!python/name:os.system x", "tag"),
        ("run: !!binary aGk=", "tag"),
        ("1: x", "not text"),
        ("null: x", "not text"),
        ("? [a, b]\n: x", "not text"),
        ("[" * 90_000, "levels deep"),
        ("{a: " * 20_000, "levels deep"),
        ("a: " + "x" * MAX_BYTES, "larger than"),
        ("a: [1", "expected"),
        ("a: 1\n--- \nb: 2", "more than one document"),
        ("a: \x07", "not allowed"),
        ("a: !!int x", "not a whole number"),
        ("- a", "must hold sections"),
        ("text", "must hold sections"),
    ],
)
def test_hostile_or_broken_recipes(tmp_path: Path, text: str, said: str) -> None:
    path = recipe(tmp_path, text)
    message = fails(recipes=[path]).message
    assert said in message
    assert path in message
    assert len(message) < 400


def test_unreadable_recipes(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("run: {name: é}".encode("latin-1"))
    assert "is not UTF-8 text (byte 12)" in fails(recipes=[str(tmp_path / "latin.yaml")]).message
    assert "is a directory" in fails(recipes=[f"{tmp_path}/"]).message
    assert "no such file" in fails(recipes=["./none.yaml"]).message
    # A byte order mark and Windows line ends are no reason to refuse.
    (tmp_path / "win.yaml").write_bytes("\ufeffrun:\r\n  seed: 7\r\n".encode())
    assert load(recipes=[str(tmp_path / "win.yaml")]).run.seed == 7


def test_set_takes_text_as_it_is_where_text_is_asked_for() -> None:
    config = load("run.name=2024", "prompt.template={history}: next", "prompt.system=", "policy.revision=12e4567")
    assert config.run.name == "2024"
    assert config.prompt.template == "{history}: next"
    assert config.prompt.system == ""
    assert config.policy.revision == "12e4567"
    assert load("prompt.system=null").prompt.system is None
    assert load("prompt.system='null'").prompt.system == "null"


# Errors


def test_all_problems_at_once_each_with_its_layer(tmp_path: Path) -> None:
    bad = recipe(tmp_path, "policy: {dtype: b16}\ntrainer: {num_generation: 4, learning_rate: fast}\ntrainers: {}")
    error = fails("trainer.beta=-1", "nonsense", "eval.ks=[1, x]", recipes=[bad, "quik-test"], flags={"eval.users": 0})
    lines = error.message.splitlines()
    assert lines[0] == "9 problems in the configuration"
    for expected in (
        f"policy.dtype: must be 'auto', 'fp32', 'bf16' or 'fp16', not 'b16'; did you mean bf16? (recipe {bad})",
        f"trainer.num_generation: unknown key; did you mean `trainer.num_generations`? (recipe {bad})",
        f"trainer.learning_rate: must be a number, not 'fast' (recipe {bad})",
        f"trainers: unknown key; did you mean `trainer`? (recipe {bad})",
        "trainer.beta: must be greater than or equal to 0, not -1 (--set)",
        "--set 'nonsense': must be section.key=value",
        "eval.ks: must be a whole number, not 'x' (--set)",
        "eval.users: must be greater than or equal to 1, not 0 (--users)",
        "unknown recipe `quik-test`; did you mean `quick-test`?",
    ):
        assert f"  {expected}" in lines
    assert error.exit_code == 2
    assert error.hint is not None
    assert "rl4rec recipes list" in error.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr=1", "lr: unknown key"),
        ("learning_rate=1", "did you mean `trainer.learning_rate`"),
        ("policy.learning_rate=1", "did you mean `trainer.learning_rate`"),
        ("policy.lora.rank=1", "policy.lora.rank: unknown key; there are r, alpha, dropout, target_modules"),
        ("trainer.max_steps=true", "trainer.max_steps: must be a whole number, not true"),
        ("trainer.max_steps='5'", "trainer.max_steps: must be a whole number, not '5'"),
        ("trainer.gradient_checkpointing=yes", "must be true or false or 'unsloth', not 'yes'"),
        ("trainer.learning_rate=.inf", "trainer.learning_rate: must be a finite number"),
        ("trainer.learning_rate=.nan", "trainer.learning_rate: must be"),
        ("reward.functions.ndcg=.inf", "reward.functions.ndcg: must be a finite number"),
        ("trainer=5", "trainer: must be a mapping"),
        ("policy.lora=5", "policy.lora: must be a section"),
        ("reward.functions={}", "reward.functions: must have at least 1 item"),
        ("reward.functions.ndgc=1", "unknown reward `ndgc`; did you mean ndcg?"),
        ("run.name=../x", "run.name: must match pattern"),
        ("trainer.beta=[1", "trainer.beta: cannot read '[1': 1:3"),
        ("=x", "must be section.key=value"),
        ("run..name=x", "must be section.key=value"),
        ("trainer.algorithm=kto", f"trainer.algorithm: must be one of {', '.join(ALGORITHMS)}, not 'kto'"),
        ("trainer.algorithm=sft", "is for sft, this command trains with grpo"),
        ("trainer.target=last", "trainer.target: belongs to sft, not to grpo"),
        ("run.output_dir=\udcff", "'run.output_dir': is not UTF-8 text"),
    ],
)
def test_one_problem(text: str, said: str) -> None:
    message = fails(text).message
    assert said in message
    assert "\n" not in message
    assert "--set" in message


def test_a_grpo_recipe_for_sft_is_one_problem(tmp_path: Path) -> None:
    path = recipe(tmp_path, "trainer: {algorithm: grpo, beta: 0.1, num_generations: 8}")
    error = fails(recipes=[path], algorithm="sft")
    assert error.message == f"trainer.algorithm: recipe {path} is for grpo, this command trains with sft"
    assert error.hint == "use `rl4rec train grpo`"
    other = recipe(tmp_path, "trainer: {num_generations: 8}", "other")
    message = fails(recipes=[other], algorithm="sft").message
    *others, last = [name for name, of in trainer_sections().items() if "num_generations" in of.model_fields]
    owners = f"{', '.join(others)} and {last}"
    assert message.startswith(f"trainer.num_generations: belongs to {owners}, not to sft; under `trainer.grpo`")


def test_custom_reward_code_needs_the_flag(tmp_path: Path) -> None:
    path = recipe(tmp_path, "reward: {functions: {ndcg: 1, 'own.py:bonus': 0.5}}")
    error = fails(recipes=[path])
    assert error.message == f"reward.functions: only --reward may name custom code, `own.py:bonus` (recipe {path})"
    assert error.hint == "if you trust that code, add --reward own.py:bonus=0.5"
    assert "only --reward may name" in fails("reward.functions.my.mod:attr=0").message
    assert "only --reward may name" in fails("reward.functions={'m:a': 1}").message
    # Another name on the flag does not open the door.
    assert "`m:a`" in fails("reward.functions.m:a=1", flags={"reward.functions": {"m:b": 1.0}}).message
    named = {"own.py:bonus": 0.5, "ndcg": 1.0}
    assert load(recipes=[path], flags={"reward.functions": named}).reward.functions == named
    assert load(recipes=[path], flags={"reward": {"functions": named}}).reward.functions == named
    assert "own.py:bonus" in load(recipes=[path], allow_custom_rewards=True).reward.functions


# Properties

TEXT = st.one_of(
    st.sampled_from(
        ["", "null", "on", "5e-6", "1", "true", "~", "- a", "a: b", "#", "a\nb", "\n", " a ", "|", "é\u2028\x85"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(allow_nan=False), TEXT),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(TEXT, below, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_yaml_round_trip(value: Any) -> None:
    assert load_yaml(dump_yaml(value)) == value


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@#\n ,?<=~.0e1\t"), max_size=40))
def test_any_text_loads_or_is_refused(text: str) -> None:
    with suppress(YamlError):
        load_yaml(text)


SPARSE = st.fixed_dictionaries(
    {},
    optional={
        "run": st.fixed_dictionaries({}, optional={"output_dir": TEXT, "seed": st.integers(0, 2**31 - 1)}),
        "data": st.one_of(
            st.fixed_dictionaries({"path": TEXT}), st.fixed_dictionaries({"synthetic": st.just({"users": 3})})
        ),
        "prompt": st.fixed_dictionaries({}, optional={"separator": TEXT, "system": st.none() | TEXT}),
        "policy": st.fixed_dictionaries(
            {}, optional={"lora": st.none() | st.fixed_dictionaries({"target_modules": st.lists(TEXT) | TEXT})}
        ),
        "reward": st.fixed_dictionaries(
            {},
            optional={
                "functions": st.dictionaries(
                    st.sampled_from(["ndcg", "hit", "mrr"]), st.floats(-1e12, 1e12), min_size=1
                )
            },
        ),
        "trainer": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(0, 1, allow_subnormal=True),
                "warm_start": st.none() | st.fixed_dictionaries({"learning_rate": st.floats(0, 1)}),
            },
        ),
        "eval": st.fixed_dictionaries({"ks": st.lists(st.integers(1, 50), min_size=1, max_size=3)}),
    },
)


@settings(max_examples=100, deadline=None)
@example(low={}, high={"data": {"path": "\0"}}, algorithm="grpo")
@given(low=SPARSE, high=SPARSE, algorithm=st.sampled_from(["grpo", "sft"]))
def test_a_dump_is_a_recipe_that_gives_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, low: dict[str, Any], high: dict[str, Any], algorithm: str
) -> None:
    if algorithm == "sft":
        for layer in (low, high):
            layer.get("trainer", {}).pop("warm_start", None)
    folder = tmp_path_factory.mktemp("layers")
    paths = [recipe(folder, dump_yaml(low), "low"), recipe(folder, dump_yaml(high), "high")]
    config = load(recipes=paths, algorithm=algorithm)
    dumped = recipe(folder, dump_config(config), "dumped")
    assert load(recipes=[dumped], algorithm=algorithm) == config
    assert load(recipes=[dumped], algorithm=None) == config
    # The highest layer's own values are there as it gave them, and laying it on again changes nothing.
    assert load(recipes=[dumped, paths[1]], algorithm=algorithm) == config
    for section, values in high.items():
        for key, value in values.items():
            if not isinstance(value, dict):
                found = getattr(getattr(config, section), key)
                assert (list(found) if isinstance(found, tuple) else found) == value


# Settings that the embedder does not read


@pytest.mark.parametrize("how", ["set", "flag", "later recipe"])
def test_a_model_that_the_embedder_does_not_read_is_refused(tmp_path: Path, how: str) -> None:
    """A run with `lsa` would ignore the model, and its figures would be those of another embedder."""
    fitted = recipe(tmp_path, "retrieval: {embedder: lsa}", "fitted")
    named = recipe(tmp_path, "retrieval: {model: folder}", "named")
    recipes = {"later recipe": [fitted, named]}.get(how, [fitted])
    sets = ["retrieval.model=folder"] if how == "set" else []
    error = fails(*sets, recipes=recipes, flags={"retrieval.model": "folder"} if how == "flag" else {})
    assert f"retrieval.model: embedder lsa (recipe {fitted}) does not read it" in error.message
    assert "retrieval.embedder=sentence-transformers" in str(error.hint)


def test_an_embedder_may_be_laid_over_a_model_and_a_whole_configuration_names_both(tmp_path: Path) -> None:
    fitted = recipe(tmp_path, "retrieval: {embedder: lsa}", "fitted")
    named = recipe(tmp_path, "retrieval: {model: folder}", "named")
    config = load(recipes=[named, fitted])
    assert config.retrieval.embedder == "lsa"
    assert load(recipes=[recipe(tmp_path, dump_config(config), "whole")]) == config
    assert load("retrieval.lsa_dim=8", recipes=[named, fitted]).retrieval.lsa_dim == 8
    assert "retrieval.lsa_dim" in fails("retrieval.lsa_dim=8", recipes=[named]).message
    assert load("retrieval.embedder=vllm", "retrieval.model=folder", recipes=[fitted]).retrieval.model == "folder"
