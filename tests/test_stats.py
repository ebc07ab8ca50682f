"""Intervals on data with a known truth, the verdict's error rates, and published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from glas_bench.stats import (
    PairedDifference,
    false_discovery_rate,
    mean_squares,
    pair_arms,
    paired_difference,
    resolvable,
    two_way_interval,
)

IMAGES = 500


def differences(seeds, seed_sd, image_sd, rest_sd, truth=0.0, repetitions=4000, images=IMAGES):
    """Yield blocks [R, S, B] of simulated differences."""
    rng = np.random.default_rng([seeds, round(1000 * seed_sd), round(1000 * image_sd)])
    for _ in range(repetitions // 500):
        d_RSB = rng.normal(0, 1, (500, seeds, images)) * rest_sd
        d_RSB += rng.normal(0, 1, (500, seeds, 1)) * seed_sd
        d_RSB += rng.normal(0, 1, (500, 1, images)) * image_sd
        yield d_RSB + truth


# The mean of 500 images at spread 4 has a standard error of .18; of 3 seeds at .3, one of .17.
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("seed_sd", "image_sd", "rest_sd"),
    [
        (0.3, 0.0, 0.0),  # seeds alone
        (0.3, 0.0, 4.0),
        (0.0, 4.0, 0.0),  # images alone
        (0.0, 4.0, 4.0),
        (0.0, 0.0, 4.0),  # the rest alone
        (0.3, 4.0, 2.0),
        (1.0, 4.0, 1.0),  # seeds ahead
        (0.1, 4.0, 2.0),  # images ahead
    ],
)
def test_the_interval_covers_the_truth(seeds, seed_sd, image_sd, rest_sd):
    covered = below = total = 0
    for d_RSB in differences(seeds, seed_sd, image_sd, rest_sd, truth=1.5):
        interval = two_way_interval(d_RSB)
        covered += ((interval.low <= 1.5) & (interval.high >= 1.5)).sum()
        below += (interval.high < 1.5).sum()
        total += d_RSB.shape[0]
    assert total >= 4000
    assert 0.92 <= covered / total <= 0.975
    missed = total - covered
    assert abs(below - missed / 2) < 4 * math.sqrt(missed / 4), "misses fall on one side"


def test_two_seeds_never_end_in_a_negative_variance():
    missed = 0
    for d_RSB in differences(2, 0.0, 0.0, 4.0, images=40):
        interval = two_way_interval(d_RSB)
        assert bool((interval.high >= interval.low).all())
        assert bool(np.isfinite(interval.p).all())
        missed += (interval.p < 0.05).sum()
    assert missed / 4000 < 0.08


def test_the_mean_squares_are_those_of_a_plain_loop():
    d_SB = np.random.default_rng(0).normal(1, 2, (4, 7))
    S, B = d_SB.shape
    cells = list(itertools.product(range(S), range(B)))
    mean = sum(d_SB[cell] for cell in cells) / (S * B)
    seed = [sum(d_SB[s]) / B for s in range(S)]
    image = [sum(d_SB[:, b]) / S for b in range(B)]
    ms_seed = B * sum((m - mean) ** 2 for m in seed) / (S - 1)
    ms_image = S * sum((m - mean) ** 2 for m in image) / (B - 1)
    rest = sum((d_SB[s, b] - seed[s] - image[b] + mean) ** 2 for s, b in cells)
    ms_rest = rest / ((S - 1) * (B - 1))
    got = mean_squares(d_SB)
    assert [float(x) for x in got] == pytest.approx([ms_seed, ms_image, ms_rest])

    difference = paired_difference(d_SB, np.zeros_like(d_SB))
    variance = (ms_seed + max(ms_image - ms_rest, 0)) / (S * B)
    spread = ms_seed**2 * (S + 1) / (S - 1) ** 2 + ms_image**2 / (B - 1)
    spread += ms_rest**2 / ((S - 1) * (B - 1))
    df = min(max((variance * S * B) ** 2 / spread, 3), 6)
    assert difference.df == pytest.approx(df)
    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(variance)
    assert difference.low == pytest.approx(mean - half)
    assert difference.high == pytest.approx(mean + half)
    assert difference.mean_squares == pytest.approx((ms_seed, ms_image, ms_rest))


def test_seeds_alone_give_the_t_interval_over_seeds():
    means_S = np.array([0.3, -0.1, 0.8, 0.5])
    difference = paired_difference(np.repeat(means_S[:, None], 50, 1), np.zeros((4, 50)))
    known = scipy_stats.ttest_1samp(means_S, 0)
    low, high = known.confidence_interval()
    assert (difference.low, difference.high) == pytest.approx((low, high))
    assert (difference.p, difference.df) == pytest.approx((known.pvalue, 3))


def test_one_seed_is_the_paired_t_over_images():
    rng = np.random.default_rng(1)
    a_B, b_B = rng.normal(90, 20, 60), rng.normal(91, 20, 60)
    known = scipy_stats.ttest_rel(a_B, b_B)
    low, high = known.confidence_interval()
    for a, b in [(a_B, b_B), (a_B[None], b_B[None])]:
        difference = paired_difference(a, b)
        assert tuple(difference) == pytest.approx((np.mean(a_B - b_B), low, high, known.pvalue))
        assert difference.label == "one seed: images only"
        assert (difference.seeds, difference.images) == (1, 60)


def test_it_unpacks_as_estimate_low_high_p():
    difference = paired_difference(np.full((3, 4), 2.0), np.full((3, 4), 3.0))
    estimate, low, high, p = difference
    assert (estimate, low, high, p) == (-1.0, -1.0, -1.0, 0.0)
    assert tuple(paired_difference(np.ones((3, 4)), np.ones((3, 4)))) == (0.0, 0.0, 0.0, 1.0)


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_swapping_the_arms_mirrors_the_interval(seeds, images, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (2, seeds, images))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (-back.high, -back.low) == pytest.approx((there.low, there.high))
    assert back.p == pytest.approx(there.p)
    assert (there.p < 0.05) == (there.low > 0 or there.high < 0)


def test_diverged_seeds_are_carried():
    difference = paired_difference(np.eye(4), np.zeros((4, 4)), diverged=1)
    assert difference.diverged == 1
    assert difference.label == "4 seeds x 4 images; 1 diverged"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 9)), np.zeros((4, 9)), "a has 5 seeds x 9 images, b has 4 x 9"),
        (np.zeros((5, 9)), np.zeros((5, 8)), "b has 5 x 8"),
        (np.zeros((2, 2)), np.array([[1, np.nan], [np.inf, 1]]), "b holds 2 of 4 values"),
        (np.array([[-np.inf, 0.0]]), np.zeros((1, 2)), "a holds 1 of 2 values"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "a must be a table"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), "a must be a table"),
        (np.zeros((3, 1)), np.zeros((3, 1)), "one image has no spread"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b)


def test_arms_are_paired_by_the_seeds_that_both_have():
    a = {2: np.array([1.0, 2.0]), 0: np.array([3.0, 4.0]), 1: np.array([9.0, 9.0])}
    b = {0: np.array([1.0, 0.0]), 2: np.array([0.0, 1.0]), 5: np.array([9.0, 9.0])}
    seeds, a_SB, b_SB = pair_arms("nll", a, b)
    assert seeds == [0, 2]
    assert (a_SB - b_SB).tolist() == [[2.0, 4.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ({0: [1.0, 2.0]}, {1: [1.0, 2.0]}, "no seed of both has iw"),
        ({0: [1.0, 2.0]}, {0: [1.0, 2.0, 3.0]}, "they were scored on different images"),
        ({0: [1.0, np.inf]}, {0: [1.0, 2.0]}, "iw is infinite for some images"),
        ({0: [1.0]}, {0: [2.0]}, "one image has no spread"),
    ],
)
def test_arms_that_cannot_be_paired_have_a_reason(a, b, reason):
    assert pair_arms("iw", a, b) == reason


def test_the_false_discovery_rate_on_a_known_example():
    # R: p.adjust(c(.01, .04, .03, .005), "BH"); then the step-up alone, and the cap
    assert false_discovery_rate([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.02, 0.04, 0.04, 0.02]
    )
    assert false_discovery_rate([0.5, 0.9]) == pytest.approx([0.9, 0.9])
    assert false_discovery_rate([]) == []
    with pytest.raises(ValueError, match="p"):
        false_discovery_rate([0.5, float("nan")])


def measured(mean_squares, seeds=5):
    return PairedDifference(0.0, 0.0, 0.0, 1.0, seeds, IMAGES, 10.0, "", 0, mean_squares)


def test_what_is_called_resolvable_is_found_four_times_in_five():
    nats = resolvable(measured((4 + 500 * 0.09, 4 + 8 * 2.25, 4.0), seeds=8))
    found = [two_way_interval(d_RSB).p < 0.05 for d_RSB in differences(8, 0.3, 1.5, 2.0, nats)]
    assert 0.75 < np.mean(found) < 0.85


def test_seeds_that_agree_by_chance_promise_nothing():
    """A seed mean square below that of the rest is noise: the rest stands in for it."""
    lucky, plain = (measured((seed, 9.0, 4.0)) for seed in (1e-3, 4.0))
    assert resolvable(lucky) == resolvable(plain)


def test_one_seed_resolves_nothing_that_can_be_named():
    assert resolvable(measured(None, seeds=1)) is None
