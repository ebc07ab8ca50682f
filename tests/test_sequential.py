"""Group-sequential statistics: published boundaries, and error rates by simulation."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from glas_bench import sequential
from glas_bench.sequential import (
    Difference,
    Share,
    chance_left,
    chance_to_decide,
    contrast,
    half_width,
    nominal_p,
    seeds_to_decide,
    share_chance_left,
    share_difference,
    share_limits,
    word,
)

REPETITIONS = 8000
WORDS = ("reproduced", "opposite", "no larger difference", "not reproduced", "undecided")


# --------------------------------------------------------------------------- looks


def test_the_nominal_levels_of_the_shipped_looks():
    # simulated with 10^6 normal paths: .0179 .0138 .0158 .0226
    assert nominal_p((5, 8, 12, 20), 0.05) == pytest.approx(
        [0.0179, 0.0138, 0.0159, 0.0226], abs=2e-4
    )
    # equally spaced: R's gsDesign(k=4, sfu=sfLDPocock, test.type=2, alpha=.025) has z of
    # 2.368, 2.368, 2.358, 2.350
    z = stats.norm.isf(np.array(nominal_p((5, 10, 15, 20), 0.05)) / 2)
    assert z == pytest.approx([2.368, 2.368, 2.358, 2.350], abs=1e-2)
    assert nominal_p((7,), 0.05) == pytest.approx([0.05])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=5, unique=True).map(sorted),
    st.floats(0.001, 0.2),
)
def test_all_of_alpha_is_spent_and_no_more(looks, alpha):
    p = nominal_p(tuple(looks), alpha)
    rng = np.random.default_rng(0)
    steps = np.sqrt(np.diff([0, *looks])) * rng.standard_normal((40_000, len(looks)))
    z = steps.cumsum(1) / np.sqrt(looks)
    crossed = (np.abs(z) > stats.norm.isf(np.array(p) / 2)).any(1).mean()
    assert crossed == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 40_000))


@pytest.mark.parametrize("looks", [(), (1, 5), (5, 5), (8, 5)])
def test_looks_that_cannot_be_are_refused(looks):
    with pytest.raises(ValueError, match="looks are rising numbers of seeds from 2"):
        nominal_p(looks)


# --------------------------------------------------------------------------- the interval


def simulate(
    delta,
    sd_a,
    sd_b,
    *,
    margin=2.0,
    image_sd=4.0,
    images=500,
    claims=1,
    escape=1.0,
    rare=0.0,
    futile=sequential.FUTILE,
):
    """Return the share of each word, the mean number of seeds, and the share of claims whose
    interval misses the truth at some look until a verdict is reached (first) and at any look.

    `escape` is the share of seeds that escape; the others are left out of the means, as they are of
    the interval among escaped seeds. `rare` is the share of one arm's seeds that lie 10.7 nats
    above its others, as seeds of `cauchy` with one effective dimension do.
    """
    looks = sequential.LOOKS
    rng = np.random.default_rng([round(100 * abs(delta)), round(100 * sd_a)])
    levels = nominal_p(looks, 0.05 / claims)
    most, shape = looks[-1], (REPETITIONS, looks[-1])
    arms = [delta + sd_a * rng.standard_normal(shape), sd_b * rng.standard_normal(shape)]
    alive = [rng.random(shape) < escape for _ in arms]
    if rare:
        arms[0] += 10.7 * ((rng.random(shape) < rare) - rare)
    shift = rng.standard_normal(REPETITIONS) * image_sd / math.sqrt(images)
    known = image_sd * np.sqrt(rng.chisquare(images - 1, REPETITIONS) / (images - 1) / images)
    ended = np.full(REPETITIONS, "undecided", dtype=object)
    seeds = np.full(REPETITIONS, most)
    open_, missed, ever = (np.full(REPETITIONS, value) for value in (True, False, False))
    for n, p in zip(looks, levels, strict=True):
        kept = [
            np.where(on[:, :n], arm[:, :n], np.nan) for arm, on in zip(arms, alive, strict=True)
        ]
        counts = [np.isfinite(arm).sum(1) for arm in kept]
        usable = (counts[0] > 1) & (counts[1] > 1)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # an arm without two escaped seeds
            parts = [np.nanvar(arm, 1, ddof=1) / c for arm, c in zip(kept, counts, strict=True)]
            total = parts[0] + parts[1]
            df = total**2 / sum(v**2 / (c - 1) for v, c in zip(parts, counts, strict=True))
            least = np.minimum(*counts) - 1
            df = np.where(least < 4, least, df)
            estimate = np.nanmean(kept[0], 1) - np.nanmean(kept[1], 1) + shift
        half = half_width(np.sqrt(total), np.where(usable, df, 1.0), known, p)
        low, high = estimate - half, estimate + half
        outside = usable & ((low > delta) | (high < delta))
        ever |= outside
        missed |= outside & open_
        for i in np.flatnonzero(open_ & usable):
            said = word(low[i], high[i], margin, 1)
            if said != "undecided":
                ended[i], seeds[i], open_[i] = said, n, False
        if futile and n < most:
            now = Difference(estimate, np.sqrt(total), df, known, (n, n))
            left = looks.index(n) + 1
            given_up = chance_left(now, looks[left:], levels[left:], margin, 1) < futile
            seeds[open_ & given_up] = n
            open_ &= ~given_up
    shares = {each: float((ended == each).mean()) for each in WORDS}
    return shares, seeds.mean(), missed.mean(), ever.mean()


@pytest.mark.parametrize(
    ("delta", "sd", "words", "share", "never", "most"),
    [
        (0.0, 1.5, ("no larger difference", "not reproduced"), 0.92, "reproduced", 12.5),
        (5.0, 1.5, ("reproduced",), 0.98, "opposite", 8),
        (10.0, 5.0, ("reproduced",), 0.97, "opposite", 10),
        (-5.0, 1.5, ("opposite", "not reproduced"), 0.99, "reproduced", 8),
    ],
)
def test_clear_cases_are_settled_with_few_seeds(delta, sd, words, share, never, most):
    shares, seeds, missed, _ = simulate(delta, sd, sd)
    assert sum(shares[each] for each in words) > share
    assert shares[never] == 0
    assert seeds < most
    assert missed < 0.054
    if delta < 0:
        assert shares["opposite"] > 0.5  # the rest is short of the margin before it is beyond it


@pytest.mark.parametrize(("delta", "wrong"), [(2.0, "reproduced"), (-2.0, "opposite")])
def test_at_the_margin_a_wrong_word_is_rare(delta, wrong):
    shares, _, _, ever = simulate(delta, 1.5, 1.5)
    assert shares[wrong] < 0.035
    assert shares["no larger difference"] < 0.035
    assert ever < 0.056


@pytest.mark.parametrize(("sd_a", "sd_b"), [(1.5, 1.5), (0.5, 4.0), (5.0, 5.0), (0.1, 0.1)])
@pytest.mark.parametrize("image_sd", [0.0, 4.0, 12.0])
def test_intervals_hold_together_over_all_looks(sd_a, sd_b, image_sd):
    _, _, missed, ever = simulate(1.0, sd_a, sd_b, image_sd=image_sd)
    assert missed <= ever < 0.064  # .05, and Welch's t at five seeds of unequal spread


@pytest.mark.parametrize(("claims", "escape"), [(4, 1.0), (1, 0.9)])
def test_the_family_of_m_claims_holds_and_the_interval_among_escaped_seeds(claims, escape):
    _, _, _, ever = simulate(1.0, 1.5, 1.5, claims=claims, escape=escape)
    assert claims * ever < 0.064


@pytest.mark.parametrize("sd_b", [1.0, 4.0])
def test_an_interval_of_few_escaped_seeds_is_as_wide_as_it_has_to_be(sd_b):
    """Half of the seeds escape: two or three of five, where Welch's t has too many degrees."""
    _, _, _, ever = simulate(1.0, 4.0, sd_b, claims=8, escape=0.5)
    assert 8 * ever < 0.064


@pytest.mark.parametrize(("claims", "least", "most"), [(1, 0.1, 0.2), (8, 0.02, 0.06)])
def test_a_rare_mode_of_one_arm_is_missed_more_often_than_the_level_says(claims, least, most):
    _, _, _, ever = simulate(0.5, 1.0, 1.0, rare=0.05, claims=claims)
    assert least < ever < most


def test_an_interval_over_all_seeds_does_not_cover_where_some_collapse():
    # a tenth of the seeds at +97 nats: with five seeds the nominal 95 % interval covers far less
    rng = np.random.default_rng(0)
    a_RS = 1.5 * rng.standard_normal((REPETITIONS, 5)) + 97 * (rng.random((REPETITIONS, 5)) < 0.1)
    half_R = stats.t.isf(0.025, 4) * a_RS.std(1, ddof=1) / math.sqrt(5)
    low, high = a_RS.mean(1) - half_R, a_RS.mean(1) + half_R
    assert ((low < 9.7) & (high > 9.7)).mean() < 0.65


@given(st.integers(2, 7), st.integers(2, 7), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_the_difference_is_welchs(seeds_a, seeds_b, images, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(90, 3, (seeds_a, images)), rng.normal(88, 1, (seeds_b, images))
    known = stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False)
    got = contrast([dict(enumerate(a)), dict(enumerate(-b))])
    assert got.estimate == pytest.approx(a.mean() - b.mean())
    least = min(seeds_a, seeds_b) - 1
    assert got.df == pytest.approx(known.df if least >= 4 else least)
    assert got.estimate / got.seed_error == pytest.approx(known.statistic)
    d_B = a.mean(0) - b.mean(0)
    assert got.image_error == pytest.approx(d_B.std(ddof=1) / math.sqrt(images))
    half_t = stats.t.isf(0.01, got.df) * got.seed_error
    half_z = stats.norm.isf(0.01) * got.image_error
    low, high = got.interval(0.02)
    assert high - low == pytest.approx(2 * math.hypot(half_t, half_z))


def test_means_alone_take_their_spread_over_images_from_other_seeds():
    rng = np.random.default_rng(2)
    inside, ratio = [], []
    for _ in range(1000):
        common_B = rng.normal(0, 12, 40)
        arms = [
            rng.normal(mean, 0.3, (6, 1))
            + common_B
            + rng.normal(0, 3, 40)
            + rng.normal(0, 4, (6, 40))
            for mean in (91.0, -90.0)
        ]
        arms[1] -= 2 * common_B
        whole = contrast([dict(enumerate(arm)) for arm in arms])
        few = [
            {s: v if s > 3 else v.mean(keepdims=True) for s, v in enumerate(arm)} for arm in arms
        ]
        got = contrast([sequential.with_images(arm, [arm[4], arm[5]]) for arm in few])
        assert (got.estimate, got.seed_error) == pytest.approx((whole.estimate, whole.seed_error))
        low, high = got.interval(0.05)
        inside.append(low < 1.0 < high)
        ratio.append(got.image_error**2 / whole.image_error**2)
    assert np.mean(inside) > 0.94
    assert np.mean(ratio) > 1.0


def test_a_difference_of_differences_has_the_errors_of_four_arms():
    rng = np.random.default_rng(0)
    arms = [dict(enumerate(rng.normal(90, 2, (n, 40)))) for n in (5, 6, 7, 8)]
    signs = (1, -1, -1, 1)
    pairs = zip(signs, arms, strict=True)
    got = contrast([{s: sign * values for s, values in arm.items()} for sign, arm in pairs])
    means = [np.stack(list(arm.values())).mean(1) for arm in arms]
    parts = np.array([each.var(ddof=1) / each.size for each in means])
    estimate = sum(sign * each.mean() for sign, each in zip(signs, means, strict=True))
    assert got.estimate == pytest.approx(estimate)
    assert got.seed_error == pytest.approx(math.sqrt(sum(parts)))
    assert got.df == pytest.approx(sum(parts) ** 2 / sum(parts**2 / np.array([4, 5, 6, 7])))
    assert got.seeds == (5, 6, 7, 8)


def test_against_a_number_it_is_the_t_test_of_one_sample():
    values = np.random.default_rng(1).normal(20, 3, (6, 1))
    got = contrast([dict(enumerate(values))], minus=20.25)
    known = stats.ttest_1samp(values[:, 0], 20.25)
    assert (got.df, got.image_error) == (5, 0)
    assert got.estimate / got.seed_error == pytest.approx(known.statistic)
    low, high = got.interval(0.05)
    assert (low, high) == pytest.approx(np.array(known.confidence_interval(0.95)) - 20.25)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((2, 3)), "two seeds an arm"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "3 and 4 images"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_compared(a, b, message):
    with pytest.raises(ValueError, match=message):
        contrast([dict(enumerate(a)), dict(enumerate(b))])


def test_equal_values_have_no_spread_and_no_error():
    few = contrast(
        [dict(enumerate([[1.0], [2.0], [4.0]])), dict(enumerate([[0.0]] * 3 + [[1.0]] * 4))]
    )
    assert few.df == 2
    found = contrast([dict(enumerate(np.ones((3, 1)))), dict(enumerate(-np.ones((4, 1))))])
    assert (found.estimate, found.seed_error, found.df) == (0, 0, 2)


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (2.1, 9.0, "reproduced"),
        (-9.0, -2.1, "opposite"),
        (-1.9, 1.9, "no larger difference"),
        (-5.0, 1.9, "not reproduced"),
        (-1.9, 5.0, "undecided"),
        (2.0, 5.0, "undecided"),
        (-5.0, 5.0, "undecided"),
    ],
)
def test_words(low, high, expected):
    assert word(low, high, 2.0, 1) == expected
    assert word(-high, -low, 2.0, -1) == expected


# --------------------------------------------------------------------------- shares


@pytest.mark.parametrize("seeds", [(5, 5), (8, 8), (12, 5), (20, 20)])
@pytest.mark.parametrize("p", [0.0035, 0.0226])
def test_intervals_of_shares_cover_by_exact_enumeration(seeds, p):
    low, high = share_limits(*seeds, p)
    missed = []
    for shares in itertools.product(np.linspace(0.01, 0.99, 37), repeat=2):
        pmf_a, pmf_b = (
            stats.binom.pmf(np.arange(n + 1), n, share)
            for n, share in zip(seeds, shares, strict=True)
        )
        a, b = shares
        mass = pmf_a[:, None] * pmf_b
        missed.append(float(mass[(low > a - b) | (high < a - b)].sum()))
    assert max(missed) <= p
    assert max(missed) > 0.5 * p  # no wider than it has to be


def test_intervals_of_shares_mirror():
    low, high = share_limits(6, 9, 0.02)
    other_low, other_high = share_limits(9, 6, 0.02)
    np.testing.assert_allclose(low, -other_high.T, atol=1e-9)
    np.testing.assert_allclose(high, -other_low.T, atol=1e-9)


def test_share_difference():
    found = share_difference((5, 5), (0, 5))
    assert found.estimate == 1
    assert found.p == pytest.approx(2 / math.comb(10, 5))
    low, high = found.interval(0.02)
    assert 0 < low < 1 <= high


# --------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("delta", "sd", "claims", "fewer"),
    [(2.0, 1.5, 1, 5.0), (2.0, 3.5, 4, 7.0), (0.0, 3.5, 4, 4.0), (4.0, 1.5, 1, 0.0)],
)
def test_seeds_that_are_not_likely_to_decide_are_saved(delta, sd, claims, fewer):
    shares, seeds, _, ever = simulate(delta, sd, sd, claims=claims)
    whole, most, _, _ = simulate(delta, sd, sd, claims=claims, futile=0)
    assert seeds < most - fewer
    assert shares["undecided"] - whole["undecided"] < 0.02  # verdicts that are given up
    assert claims * ever < 0.064


def test_the_chance_of_looks_that_are_left_is_met():
    looks, levels, sd = sequential.LOOKS[2:], nominal_p()[2:], 3.0
    rng = np.random.default_rng(3)
    now = rng.standard_normal((2, 4000, 8)) * sd
    more = rng.standard_normal((2, 4000, 12)) * sd
    truth_R = rng.normal(0, 3, 4000)

    def seen(arms):
        n = arms.shape[-1]
        variances = arms.var(-1, ddof=1) / n
        total = variances.sum(0)
        df = total**2 * (n - 1) / (variances**2).sum(0)
        estimate = truth_R + arms[0].mean(-1) - arms[1].mean(-1)
        return Difference(estimate, np.sqrt(total), df, np.zeros(4000), (n, n))

    chance_R = chance_left(seen(now), looks, levels, 2.0, 1)
    every = np.concatenate([now, more], -1)
    decided_R = np.zeros(4000, bool)
    for n, p in zip(looks, levels, strict=True):
        one = seen(every[..., :n])
        half = half_width(one.seed_error, one.df, 0.0, p)
        decided_R |= np.array(
            [
                word(e - h, e + h, 2.0, 1) != "undecided"
                for e, h in zip(one.estimate, half, strict=True)
            ]
        )
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6)):  # a bound: looks are added up
        some = (chance_R >= low) & (chance_R < high)
        assert some.sum() > 100
        assert chance_R[some].mean() - 0.15 < decided_R[some].mean() < chance_R[some].mean() + 0.03


@pytest.mark.parametrize(("a", "b", "margin"), [(3, 5, 0.0), (5, 5, 0.0), (1, 1, 0.6)])
def test_the_chance_that_shares_are_decided_is_met(a, b, margin):
    looks, levels, rng = sequential.LOOKS, nominal_p(), np.random.default_rng(a)
    now = share_difference((a, 5), (b, 5))
    chance = share_chance_left(now, looks[1:], levels[1:], margin, -1)
    share = [rng.beta(count + 0.5, 5.5 - count, 4000) for count in (a, b)]
    count, seeds, decided = [np.full(4000, a), np.full(4000, b)], 5, np.zeros(4000, bool)
    for n, p in zip(looks[1:], levels[1:], strict=True):
        count = [c + rng.binomial(n - seeds, s) for c, s in zip(count, share, strict=True)]
        low, high = (ends[tuple(count)] for ends in share_limits(n, n, p))
        words = [word(*each, margin, -1) for each in zip(low, high, strict=True)]
        decided |= np.array([each != "undecided" for each in words])
        seeds = n
    assert decided.mean() < chance + 0.02  # a bound: looks are added up
    assert decided.mean() > chance / len(looks[1:]) - 0.02


def test_the_chance_that_one_share_is_decided_is_exact_where_one_look_is_left():
    share = Share(4, 5, 0.5)
    p, mass = 0.02, stats.betabinom(15, 4.5, 1.5).pmf(np.arange(16))
    decides = [
        word(*Share(4 + more, 20, 0.5).interval(p), 0.0, 1) != "undecided" for more in range(16)
    ]
    assert 0.1 < mass @ decides < 0.9
    assert share_chance_left(share, [20], [p], 0.0, 1) == pytest.approx(mass @ decides)


def test_seeds_to_decide_decides_in_four_cases_of_five():
    sd, truth, margin, p = 3.0, 4.0, 2.0, 0.02
    now = Difference(truth, sd * math.sqrt(2 / 5), 8.0, 0.0, (5, 5))
    n = seeds_to_decide(now, p, margin, 1)
    assert n is not None
    rng, decided = np.random.default_rng(0), []
    for seeds in (n, n - 4):
        a, b = (mean + sd * rng.standard_normal((4000, seeds)) for mean in (truth, 0))
        variances = [arm.var(1, ddof=1) / seeds for arm in (a, b)]
        error, estimate = np.sqrt(sum(variances)), a.mean(1) - b.mean(1)
        df = error**4 * (seeds - 1) / sum(each**2 for each in variances)
        half = half_width(error, df, 0.0, p)
        words = [word(e - h, e + h, margin, 1) for e, h in zip(estimate, half, strict=True)]
        decided.append(1 - words.count("undecided") / 4000)
    assert 0.77 < decided[0] < 0.86
    assert decided[1] < decided[0]


def test_nothing_decides_a_difference_at_the_margin():
    at_margin = Difference(2.0, 1.0, 8.0, 0.0, (5, 5))
    assert seeds_to_decide(at_margin, 0.02, 2.0, 1) is None
    assert chance_to_decide(at_margin, 1000, 0.02, 2.0, 1) == pytest.approx(0.02, abs=2e-3)
