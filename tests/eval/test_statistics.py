"""Intervals, p-values and their corrections: by hand, by enumeration, by simulation."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.statistics import (
    Difference,
    holm,
    paired_difference,
    reads,
    seeds_difference,
    users_needed,
)
from rl4rec_cli.rewards.functions import ndcg


def within(found: float, chance: float, simulations: int) -> bool:
    """A share of simulations is the chance expected, but for what lies beyond three and a half standard errors."""
    return abs(found - chance) <= 3.5 * math.sqrt(chance * (1 - chance) / simulations)


def ndcg_pairs(rng: np.random.Generator, users: int, ours: float, theirs: float) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 of two methods that find so many targets, half of theirs being ours too; hits stand early in the list."""
    places = 1 / np.arange(1, 11)
    places /= places.sum()
    draw = rng.random(users)
    shared = min(ours, theirs) / 2
    found = [draw < ours, (draw < shared) | ((draw >= ours) & (draw < ours + theirs - shared))]
    both = [np.where(f, rng.choice(np.arange(1, 11), users, p=places), 99) for f in found]
    return ndcg(both[0], 10), ndcg(both[1], 10)


# --- the interval ---


@pytest.mark.parametrize(("ours", "theirs"), [(0.06, 0.055), (0.06, 0.011)], ids=["close", "far apart"])
def test_the_interval_covers_the_truth_95_times_in_100(ours: float, theirs: float) -> None:
    rng = np.random.default_rng(11)
    users, simulations = 1500, 1000
    places = 1 / np.arange(1, 11)
    truth = (ours - theirs) * float((places / places.sum()) @ (1 / np.log2(np.arange(2, 12))))
    below = above = 0
    for simulation in range(simulations):
        a, b = ndcg_pairs(rng, users, ours, theirs)
        found = paired_difference(a, b, resamples=600, seed=simulation)
        assert found.low < found.mean < found.high
        assert found.ties > 0.85 * users
        below += found.high < truth
        above += found.low > truth
    assert within(1 - (below + above) / simulations, 0.95, simulations)
    # Skewed data leave less on one side than on the other, but some on both.
    assert min(below, above) > 0.01 * simulations


def test_pairs_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(500) * 100
    found = paired_difference(base + 0.5 + rng.normal(0, 0.01, 500), base)
    assert found.mean == pytest.approx(0.5, abs=0.01)
    assert found.high - found.low < 0.01


def test_the_interval_is_that_of_normal_theory_and_is_reproducible() -> None:
    difference = np.random.default_rng(4).normal(1.0, 2.0, 4000)
    found = paired_difference(difference, np.zeros(4000))
    half = 1.96 * difference.std() / math.sqrt(4000)
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)
    assert paired_difference(difference, np.zeros(4000)) == found
    assert paired_difference(difference, np.zeros(4000), seed=1) != found


def test_the_interval_is_scipys() -> None:
    a, b = ndcg_pairs(np.random.default_rng(3), 3000, 0.08, 0.03)
    found = paired_difference(a, b)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=4000, batch=200, method="percentile", rng=1)
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_values_that_repeat_are_resampled_as_users_are() -> None:
    a, b = ndcg_pairs(np.random.default_rng(5), 2000, 0.06, 0.05)
    counted = paired_difference(a, b)
    # A trace of noise makes every value distinct: users and signs are then drawn one by one.
    noise = np.random.default_rng(6).random(2000) * 1e-9
    drawn = paired_difference(a + noise, b)
    width = counted.high - counted.low
    assert drawn.low == pytest.approx(counted.low, abs=0.04 * width)
    assert drawn.high == pytest.approx(counted.high, abs=0.04 * width)
    assert drawn.p_value == pytest.approx(counted.p_value, abs=4 * math.sqrt(0.5 / 10_000))
    assert drawn != counted


@pytest.mark.parametrize("rounded", [True, False], ids=["counted", "one by one"])
def test_neither_the_order_of_users_nor_that_of_methods_matters(rounded: bool) -> None:
    rng = np.random.default_rng(7)
    a, b = ndcg_pairs(rng, 3000, 0.05, 0.04) if rounded else (rng.normal(0.1, 1, 300), rng.normal(0, 1, 300))
    found, other = paired_difference(a, b), paired_difference(b, a)
    assert (other.mean, other.low, other.high) == (-found.mean, -found.high, -found.low)
    assert (other.p_value, other.wins, other.losses) == (found.p_value, found.losses, found.wins)
    assert other.users_needed == found.users_needed
    order = rng.permutation(len(a))
    shuffled = paired_difference(a[order], b[order])
    assert shuffled == pytest.approx(found, rel=1e-9)


def test_memory_is_bounded() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(20_000), rng.random(20_000)
    tracemalloc.start()
    paired_difference(a, b, resamples=1000)  # 160 MB, were all samples held at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# --- the p-value ---


def every_flip(differences: list[int]) -> float:
    flips = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in signs_of(differences)]
    return sum(f >= abs(sum(differences)) for f in flips) / len(flips)


def signs_of(values: list[int]) -> itertools.product[tuple[int, ...]]:
    return itertools.product((-1, 1), repeat=len(values))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_p_of_a_few_users_is_that_of_every_flip(differences: list[int]) -> None:
    # Eighths, so that sums have no rounding; times .1, so that they have.
    for scale in (0.125, 0.1):
        values = np.array(differences) * scale
        found = paired_difference(values + 1, np.ones(len(values)), resamples=10)
        assert found.p_value == pytest.approx(every_flip(differences), rel=1e-9)


def test_p_by_hand() -> None:
    # Of the eight signs of 1 2 3 only +++ and --- reach 6: 2 / 8.
    assert paired_difference(np.array([1.0, 2, 3, 0]), np.zeros(4)).p_value == pytest.approx(0.25)


def test_p_of_hits_is_mcnemars() -> None:
    ours, theirs = np.zeros(5000), np.zeros(5000)
    ours[:240] = 1
    theirs[:200] = 1
    theirs[300:310] = 1
    found = paired_difference(ours, theirs)
    assert (found.wins, found.losses, found.ties) == (40, 10, 4950)
    assert found.p_value == pytest.approx(stats.binomtest(10, 50).pvalue, rel=1e-9)


def test_p_drawn_is_near_scipys_and_never_0() -> None:
    a, b = ndcg_pairs(np.random.default_rng(0), 2000, 0.05, 0.045)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=3000, rng=0, vectorized=False
    )
    assert 0.01 < theirs.pvalue < 0.5
    assert paired_difference(a, b).p_value == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(theirs.pvalue / 3000))
    far = paired_difference(*ndcg_pairs(np.random.default_rng(0), 2000, 0.5, 0.01))
    assert far.p_value == 1 / 10_001
    assert 0 < paired_difference(np.ones(3000), np.zeros(3000)).p_value < 1e-300


@pytest.mark.parametrize("digits", [1, 12], ids=["counted", "one by one"])
def test_p_of_many_users_is_that_of_normal_theory(digits: int) -> None:
    difference = np.random.default_rng(9).normal(0, 1, 20_000).round(digits)
    difference += (1.2 / math.sqrt(20_000) - difference.mean()).round(digits + 2)
    expected = float(stats.ttest_1samp(difference, 0).pvalue)
    assert 0.15 < expected < 0.35
    found = paired_difference(difference, np.zeros(20_000), resamples=4000)
    assert found.p_value == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize("hits", [False, True], ids=["drawn", "exact"])
def test_p_keeps_its_level_and_is_uniform_where_nothing_differs(hits: bool) -> None:
    rng = np.random.default_rng(2)
    simulations = 2000
    p_values = np.empty(simulations)
    for i in range(simulations):
        a, b = ndcg_pairs(rng, 400, 0.2, 0.2)
        swap = rng.random(400) < 0.5  # interchangeable, exactly
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        p_values[i] = paired_difference(
            (a > 0) * 1.0 if hits else a, (b > 0) * 1.0 if hits else b, resamples=199, seed=i
        ).p_value
    for level in (0.01, 0.05, 0.1, 0.2, 0.5, 0.8):
        error = 3.5 * math.sqrt(level * (1 - level) / simulations)
        share = (p_values <= level).mean()
        assert share <= level + error
        # About 80 users differ: a step of the exact p is at most the chance of one count and its mirror, near .18.
        assert share >= level - error - (0.18 if hits else 0.0)


# --- what else is told of a difference ---


def test_effect_size_relative_lift_and_counts_by_hand() -> None:
    found = paired_difference(np.array([1.0, 0.5, 0.0, 0.5, 0.5]), np.array([0.5, 0.0, 0.25, 0.5, 0.0]))
    differences = [0.5, 0.5, -0.25, 0.0, 0.5]
    assert found.mean == pytest.approx(0.25)
    assert found.effect_size == pytest.approx(0.25 / np.std(differences, ddof=1))
    assert found.relative == pytest.approx(0.25 / 0.25)
    assert (found.wins, found.losses, found.ties) == (3, 1, 1)
    assert found._asdict().keys() == set(Difference._fields)


def nominal_power(effect: float, users: int) -> float:
    bar = stats.t.ppf(0.975, users - 1)
    return float(stats.nct.sf(bar, users - 1, effect * math.sqrt(users)))


def test_users_needed_has_the_power_it_says() -> None:
    rng = np.random.default_rng(1)
    # (1.960 + .842)² / .09 + 1.92 = 89.1
    assert users_needed(0.3) == users_needed(-0.3) == 90
    assert users_needed(0.8) == 15
    for effect in (0.8, 0.3):
        users, simulations = users_needed(effect), 20_000
        assert users is not None
        for count, enough in ((users, True), (users - 2, False)):
            p_values = stats.ttest_1samp(rng.normal(effect, 1, (simulations, count)), 0, axis=1).pvalue
            share, exact = (p_values < 0.05).mean(), nominal_power(effect, count)
            assert within(share, exact, simulations)
            assert (exact >= 0.8) == enough
    assert users_needed(0.0) is None


def test_users_needed_of_a_measured_difference_has_its_power_under_the_permutation_test() -> None:
    rng = np.random.default_rng(8)
    large = paired_difference(*ndcg_pairs(rng, 400_000, 0.10, 0.06), resamples=10)
    users, simulations = large.users_needed, 500
    assert users is not None
    assert 500 < users < 5000
    seen = sum(
        paired_difference(*ndcg_pairs(rng, users, 0.10, 0.06), resamples=399, seed=i).p_value < 0.05
        for i in range(simulations)
    )
    # The difference that was measured is itself off by about 2 %, which moves the power by about .02.
    assert abs(seen / simulations - 0.8) < 0.02 + 3.5 * math.sqrt(0.16 / simulations)


# --- inputs at the edge ---


@pytest.mark.parametrize("size", [1, 50])
def test_no_difference_is_zero(size: int) -> None:
    values = np.random.default_rng(0).random(size)
    found = paired_difference(values, values.copy())
    assert found == Difference(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0, 0, size, None)
    assert reads(found, found.p_value) == "no difference shown"


def test_one_user_has_no_width_and_shows_nothing() -> None:
    found = paired_difference(np.array([0.75]), np.array([0.25]), resamples=100)
    assert found == Difference(0.5, 0.5, 0.5, 1.0, None, 2.0, 1, 0, 0, None)
    assert reads(found, found.p_value) == "no difference shown"


def test_all_differ_alike() -> None:
    found = paired_difference(np.full(40, 0.3), np.full(40, 0.2))
    assert found.low == found.high == found.mean == pytest.approx(0.1)
    assert found.p_value == pytest.approx(2.0**-39)
    assert found.effect_size is found.users_needed is None


def test_theirs_is_zero() -> None:
    assert paired_difference(np.array([0.5, 0.0]), np.zeros(2)).relative is None


def test_a_sum_that_is_zero_but_for_rounding_is_no_effect() -> None:
    found = paired_difference(np.array([0.1, 0.2, -0.3]), np.zeros(3))
    assert (found.effect_size, found.users_needed, found.p_value) == (0.0, None, 1.0)


def test_nobody_has_no_mean() -> None:
    found = paired_difference(np.zeros(0), np.zeros(0))
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert reads(found, found.p_value) == "no difference shown"


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        ([0.1, math.nan], [0.0, 0.0], "ours: value 1 is nan"),
        ([0.1, 0.0], [math.inf, 0.0], "theirs: value 0 is inf"),
        ([0.1, 0.2], [0.1], "2 of our values and 1 of theirs"),
        ([[0.1], [0.2]], [[0.1], [0.2]], r"ours: need one value per user, got shape \[2, 1\]"),
    ],
)
def test_values_that_cannot_be_compared(ours: list[float], theirs: list[float], word: str) -> None:
    with pytest.raises(DataError, match=word):
        paired_difference(np.array(ours), np.array(theirs))


# --- several comparisons, and the verdict ---


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5, 0.9]).tolist() == [1.0, 1.0, 1.0]
    assert holm([0.04]).tolist() == [0.04]
    assert holm([]).tolist() == []


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12), data=st.data())
def test_holm_is_monotone_never_smaller_and_blind_to_order(p_values: list[float], data: st.DataObject) -> None:
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, len(raw) * raw)).all()  # no worse than Bonferroni
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()
    order = data.draw(st.permutations(range(len(raw))))
    assert holm(raw[order]).tolist() == adjusted[order].tolist()
    # Rejecting step by step, as Holm wrote it.
    rejected = set()
    for step, i in enumerate(np.argsort(raw, kind="stable")):
        if (len(raw) - step) * raw[i] > 0.05:
            break
        rejected.add(int(i))
    assert {int(i) for i in np.flatnonzero(adjusted <= 0.05)} == rejected


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_holm_takes_probabilities_only(value: float) -> None:
    with pytest.raises(DataError, match="p-value"):
        holm([0.5, value])


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.01, 0.03, 0.049, "higher"),
        (-0.03, -0.01, 0.049, "lower"),
        (0.01, 0.03, 0.05, "no difference shown"),
        (-0.01, 0.03, 0.001, "no difference shown"),
        (0.0, 0.03, 0.001, "no difference shown"),
        (math.nan, math.nan, 0.001, "no difference shown"),
        (0.01, 0.03, math.nan, "no difference shown"),
    ],
)
def test_verdict(low: float, high: float, p: float, verdict: str) -> None:
    assert reads(Difference(0.02, low, high), p) == verdict


# --- several seeds ---

USERS, TRUTH = 150, 0.02


def draw_seeds(rng: np.random.Generator, seeds: int, seed_std: float) -> np.ndarray:
    """`[seeds, USERS]` differences around `TRUTH`; users vary by .2, the rest by .3."""
    by_seed, by_user = rng.normal(0, seed_std, (seeds, 1)), rng.normal(0, 0.2, (1, USERS))
    return TRUTH + by_seed + by_user + rng.normal(0, 0.3, (seeds, USERS))


def test_variance_components_are_found_again() -> None:
    rng = np.random.default_rng(0)
    found = np.array(
        [
            [d.seed_variance, d.user_variance, d.rest_variance, d.seed_std**2]
            for d in (seeds_difference(draw_seeds(rng, 5, 0.2), np.zeros(USERS), resamples=2) for _ in range(400))
        ]
    )
    for values, truth in zip(found.T, (0.04, 0.04, 0.09, 0.04 + 0.09 / USERS), strict=True):
        assert abs(values.mean() - truth) < 3.5 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(("seeds", "seed_std"), [(2, 0.1), (3, 0.0), (3, 0.05), (3, 0.2), (5, 0.03)])
def test_the_interval_over_seeds_covers_the_truth(seeds: int, seed_std: float) -> None:
    rng = np.random.default_rng(1)
    simulations = 500
    covered = covered_by_users = rejected = 0
    for _ in range(simulations):
        found = seeds_difference(draw_seeds(rng, seeds, seed_std) - TRUTH, np.zeros(USERS), resamples=200)
        covered += found.low <= 0 <= found.high
        covered_by_users += found.users_low <= 0 <= found.users_high
        rejected += found.p_value < 0.05
        assert (found.low <= 0 <= found.high) == (found.p_value >= 0.05)
    assert rejected == simulations - covered
    # Wider than it need be where seeds and users weigh alike.
    assert 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / simulations) <= covered / simulations
    if seed_std == 0.2:
        assert covered_by_users / simulations < 0.5


def test_seeds_that_decide_leave_a_t_test_of_their_means() -> None:
    base = np.linspace(0, 1, 50)
    shifts = np.array([0.1, 0.3, 0.2])
    found = seeds_difference(base + shifts[:, None], base)
    expected = stats.ttest_1samp(shifts, 0)
    assert found.seed_means == pytest.approx(shifts)
    assert found.seed_std == pytest.approx(0.1)
    assert found.seed_variance == pytest.approx(0.01)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.users_low == pytest.approx(found.users_high)  # with these seeds, all users gain alike
    assert reads(found, found.p_value) == "no difference shown"  # .2 ± .25


def test_equal_seeds_leave_the_interval_over_users() -> None:
    difference = np.random.default_rng(0).normal(0.2, 1, 400)
    found = seeds_difference(np.stack([difference] * 3), np.zeros(400))
    expected = stats.ttest_1samp(difference, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.seed_variance, found.rest_variance) == pytest.approx((0, 0), abs=1e-12)
    assert found.user_variance == pytest.approx(difference.var(ddof=1))
    alone = paired_difference(difference, np.zeros(400))
    assert (found.users_low, found.users_high) == pytest.approx((alone.low, alone.high))


def test_seeds_of_both_are_paired_by_row() -> None:
    rng = np.random.default_rng(0)
    starts = rng.random((4, 60))
    found = seeds_difference(starts + 0.1, starts)
    assert found.mean == pytest.approx(0.1)
    assert found.seed_std == pytest.approx(0, abs=1e-12)
    assert found.low == pytest.approx(0.1)


def test_what_one_seed_or_one_user_cannot_tell() -> None:
    values = np.random.default_rng(0).random((1, 40))
    found = seeds_difference(values, np.zeros(40))
    alone = paired_difference(values[0], np.zeros(40))
    assert (found.mean, found.users_low, found.users_high) == (alone.mean, alone.low, alone.high)
    assert found.seed_means == (alone.mean,)
    assert np.isnan([found.low, found.high, found.p_value, found.seed_std, found.seed_variance]).all()
    assert reads(found, found.p_value) == "no difference shown"
    assert math.isnan(seeds_difference(np.array([[0.5], [0.7]]), np.zeros(1)).low)


def test_no_difference_under_any_seed() -> None:
    found = seeds_difference(np.ones((3, 20)), np.ones(20))
    assert (found.mean, found.low, found.high, found.p_value, found.seed_std) == (0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("ours", "theirs"), [((3, 5), (2, 5)), ((3, 5), (4,)), ((5,), (5,)), ((0, 5), (5,)), ((3, 0), (0,))]
)
def test_seeds_that_cannot_be_compared(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        seeds_difference(np.zeros(ours), np.zeros(theirs))
