"""Names of methods in plots: short enough, and never the same for two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.report.plot_names import LONGEST, short_names


def test_long_names_lose_what_they_share() -> None:
    names = [f"grpo-amazon_beauty-qwen2.5-0.5b-s{seed}-20261126-120501" for seed in (0, 1)]
    assert list(short_names([*names, "last item"]).values()) == ["…s0-…", "…s1-…", "last item"]
    other = "grpo-amazon_beauty-qwen2.5-0.5b-s0-20261126-120501/checkpoint_best"
    short = short_names([names[0], other])
    assert short[names[0]].endswith("120501")
    assert short[other].endswith("checkpoint_best")


def test_a_single_long_name_keeps_both_ends() -> None:
    [name] = short_names(["grpo-amazon_beauty-qwen2.5-0.5b-s0-20261126-120501"]).values()
    assert name == "grpo-amazon_…1126-120501"[:12] + "…" + "0261126-120501"[-13:]


@given(st.lists(st.text(st.sampled_from("ab-_/. s01"), min_size=1, max_size=60), min_size=1, max_size=9))
def test_names_fit_and_stay_apart(labels: list[str]) -> None:
    names = short_names(labels)
    assert set(names) == set(labels)
    assert all(len(name) <= LONGEST for name in names.values())
    assert len(set(names.values())) == len(set(labels))
    if len({label.strip() for label in labels}) == len(set(labels)) and max(map(len, labels)) <= LONGEST:
        assert names == {label: label.strip() for label in labels}
