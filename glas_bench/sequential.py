"""Group-sequential comparisons of two arms: looks, repeated intervals, verdicts with a margin.

A claim is looked at after fixed numbers of seeds (`looks`). The error rate alpha is spent over the
looks by the Pocock-type function of Lan and DeMets (1983), alpha ln(1 + (e - 1) t) at the share t
of the most seeds, which gives each look its own nominal two-sided p. The repeated interval of a
look (Jennison and Turnbull 1989) is the estimate plus and minus quantile(1 - p/2) times its
standard error. All intervals of a claim hold together with probability 1 - alpha, so stopping for
any reason is allowed.

The unit is the seed: values are averaged over images first (the same images for every arm), one
number a seed and arm, and the arms' means are compared by Welch (1947); their numbers of seeds may
differ. The images are a sample too: their error is that of the mean over images of the difference
between the arms' means over seeds. The half widths of the two are added in quadrature (the method
of variance estimates recovery, Zou and Donner 2008).

A claim that the looks left are not likely to decide gets no more seeds (`chance_left`,
`share_chance_left`).

Seeds that never leave the mean image (collapsed) are a hurdle: their share is compared by Fisher's
exact test with an exact unconditional interval, and means are compared among seeds that escaped.

No library does this whole: AdaStop (Mathieu et al. 2024) tests "different or not" by permutation,
without a margin; confseq has intervals for every number of bounded or sub-Gaussian values, wider
than those of a few looks; R's gsDesign has the same boundaries (`sfLDPocock`); R's seqbench has a
margin, for paired losses and any number of them.

Shapes: K looks, R repetitions, S seeds, B images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Looks = TypeVar("Looks", bound=Sequence[int])
Word = Literal["reproduced", "opposite", "no larger difference", "not reproduced", "undecided"]

LOOKS = (5, 8, 12, 20)
"""Seeds of each arm at which a claim is looked at."""

ALPHA = 0.05
"""Error rate of all claims of a study together, over all looks."""

FUTILE = 0.05
"""No seeds are added to a claim which all looks that are left decide with less than this chance."""

NODES = 96
STEPS = 200
NUISANCE = 201
SPREADS = 8


@lru_cache(maxsize=256)
def nominal_p(looks: tuple[int, ...] = LOOKS, alpha: float = ALPHA) -> tuple[float, ...]:
    """Return the two-sided nominal p of each look, [K].

    Computed by the recursive integration of Armitage, McPherson and Rowe (1969): between looks the
    score of n seeds is a sum of independent normal increments, and the boundary of each look is
    solved so that the chance of crossing it first there is what the spending function allows.

    Args:
        looks: numbers of seeds, rising.
        alpha: two-sided error rate over all looks.

    Raises:
        ValueError: looks that do not rise or begin below 2, or an alpha outside (0, 1).
    """
    from scipy import optimize, stats

    check_looks(looks)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, got {alpha!r}")
    spent = [alpha * math.log1p((math.e - 1) * n / looks[-1]) for n in looks]
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    at, mass, before, nominal = np.zeros(1), np.ones(1), 0, []
    for n, more in zip(looks, np.diff([0.0, *spent]), strict=True):
        sd = math.sqrt(n - before)

        def excess(bound: float, at: Array, mass: Array, sd: float, more: float) -> float:
            tails = stats.norm.sf((bound - at) / sd) + stats.norm.cdf((-bound - at) / sd)
            return float(mass @ tails) - more

        bound = optimize.brentq(excess, 0.0, 12 * math.sqrt(n), args=(at, mass, sd, more))
        nominal.append(float(2 * stats.norm.sf(bound / math.sqrt(n))))
        places = bound * nodes
        density = (mass[:, None] * stats.norm.pdf(places[None], at[:, None], sd)).sum(0)
        at, mass, before = places, bound * weights * density, n
    return tuple(nominal)


def check_looks(looks: Looks) -> Looks:
    """Check looks, and return them.

    Raises:
        ValueError: none, one below 2, or looks that do not rise.
    """
    if not looks or looks[0] < 2 or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks are rising numbers of seeds from 2, got {list(looks)}")
    return looks


@dataclass(frozen=True)
class Difference:
    """A signed sum of arms' means, in nats per image or the metric's own unit."""

    estimate: float
    seed_error: float
    """Standard error from the spread of seeds (Welch)."""
    df: float
    """Welch's degrees of freedom; with fewer than five seeds in an arm, one less than those."""
    image_error: float
    """Standard error from the spread of images; 0 where values have no images."""
    seeds: tuple[int, ...]
    """Seeds of each arm."""
    below: float = 0.0
    """How far the truth may lie below the estimate, as the scores are bounds."""
    above: float = 0.0
    """The same above it."""

    @property
    def centre(self) -> float:
        """The middle of every interval."""
        return self.estimate + (self.above - self.below) / 2

    @property
    def slack(self) -> float:
        """What the bounds add to the half width of every interval."""
        return (self.below + self.above) / 2

    def half_width(self, p: float) -> float:
        """Return the half width of the interval at the nominal p of a look."""
        by_chance = half_width(self.seed_error, self.df, self.image_error, p)
        return float(by_chance) + self.slack

    def interval(self, p: float) -> tuple[float, float]:
        """Return the two-sided interval at the nominal p of a look."""
        half = self.half_width(p)
        return self.centre - half, self.centre + half


def half_width(
    seed_error: npt.ArrayLike, df: npt.ArrayLike, image_error: npt.ArrayLike, p: float
) -> Array:
    """Return the half width of an interval at nominal p, elementwise."""
    from scipy import stats

    by_seeds = stats.t.isf(p / 2, np.asarray(df, np.float64)) * np.asarray(seed_error)
    by_images = stats.norm.isf(p / 2) * np.asarray(image_error)
    return np.hypot(by_seeds, by_images)


def contrast(arms: Sequence[Mapping[int, Array]], minus: float = 0.0) -> Difference:
    """Return the sum of the arms' means, less a constant.

    With one of two arms negative it is a difference, with two of four a difference of differences,
    with one arm beside a constant a comparison with a number. Welch's degrees of freedom are too
    many where an arm of few seeds has the larger spread: of two or three seeds with a standard
    deviation of 4 beside five with 1, an interval at .0015 misses 18 or 5 times as often as it
    says. Those of the smallest arm are never too many (Mickey and Brown 1966).

    Args:
        arms: signed values by seed, [B] each of the same images; [1] where there are none.
        minus: constant that is subtracted.

    Raises:
        ValueError: fewer than two seeds in an arm, values of different images, or a value that is
            not finite.
    """
    estimate, variance, spread, by_image, counts = -minus, 0.0, 0.0, None, []
    for arm in arms:
        if len(arm) < 2:
            raise ValueError(f"two seeds an arm have a spread, got {len(arm)}")
        values_SB = np.stack([np.asarray(values, np.float64) for values in arm.values()])
        if by_image is not None and by_image.shape != values_SB.shape[1:]:
            raise ValueError(f"arms have values of {by_image.size} and {values_SB.shape[1]} images")
        if not np.isfinite(values_SB).all():
            raise ValueError("a value is not finite")
        means_S = values_SB.mean(1)
        error = means_S.var(ddof=1) / len(arm)
        estimate += means_S.mean()
        variance += error
        spread += error**2 / (len(arm) - 1)
        by_image = values_SB.mean(0) + (0 if by_image is None else by_image)
        counts.append(len(arm))
    assert by_image is not None
    least = min(counts) - 1
    df = variance**2 / spread if spread > 0 and least >= 4 else least
    images = by_image.std(ddof=1) / math.sqrt(by_image.size) if by_image.size > 1 else 0.0
    return Difference(float(estimate), math.sqrt(variance), float(df), float(images), tuple(counts))


def with_images(arm: Mapping[int, Array], known: Sequence[Array]) -> dict[int, Array]:
    """Return an arm whose seeds with a mean alone, [1], have values of images, [B].

    About its mean such a seed is taken to be as `known`, seeds of the arm with values of images,
    are on average. The seeds' error is that of all seeds; the images' error is that of the fewer
    seeds in `known`, which is larger in expectation.
    """
    about_B = np.mean(known, 0)
    about_B = about_B - about_B.mean()
    return {
        seed: values if values.size > 1 else values.item() + about_B for seed, values in arm.items()
    }


def word(low: float, high: float, margin: float, direction: int) -> Word:
    """Return what a repeated interval says of a claim.

    Args:
        low: lower end of the interval of a - b.
        high: upper end.
        margin: the smallest difference that matters, in the unit of the metric.
        direction: sign of a - b that the claim predicts.
    """
    low, high = sorted((direction * low, direction * high))
    if low > margin:
        return "reproduced"
    if high < -margin:
        return "opposite"
    if -margin < low and high < margin:
        return "no larger difference"
    if high < margin:
        return "not reproduced"
    return "undecided"


# --------------------------------------------------------------------------- shares of seeds


@dataclass(frozen=True)
class ShareDifference:
    """Share of a's seeds minus share of b's."""

    estimate: float
    a: tuple[int, int]
    """Seeds of a with the property, and all seeds of a."""
    b: tuple[int, int]
    p: float
    """Fisher's exact two-sided p."""

    @property
    def arms(self) -> tuple[tuple[int, int], ...]:
        """Seeds with the property, and all seeds, of each arm."""
        return self.a, self.b

    def limits(self, seeds: int, p: float) -> tuple[Array, Array]:
        """Return the intervals for every pair of counts of so many seeds, as `share_limits`."""
        return share_limits(seeds, seeds, p)

    def interval(self, p: float) -> tuple[float, float]:
        """Return the exact unconditional interval at the nominal p of a look."""
        low, high = share_limits(self.a[1], self.b[1], p)
        place = self.a[0], self.b[0]
        return float(low[place]), float(high[place])


@dataclass(frozen=True)
class Share:
    """Share of seeds with a property, less a constant."""

    count: int
    seeds: int
    constant: float
    sign: int = 1
    """-1 for the constant less the share."""

    @property
    def arms(self) -> tuple[tuple[int, int], ...]:
        """Seeds with the property, and all seeds, of the one arm."""
        return ((self.count, self.seeds),)

    @property
    def estimate(self) -> float:
        """Share less constant, or the reverse."""
        return self.sign * (self.count / self.seeds - self.constant)

    def limits(self, seeds: int, p: float) -> tuple[Array, Array]:
        """Return the intervals for every count of so many seeds, [seeds + 1] each."""
        from scipy import stats

        counts = (stats.binomtest(count, seeds) for count in range(seeds + 1))
        ends = np.array([each.proportion_ci(1 - p, "exact") for each in counts])
        low, high = np.sort(self.sign * (ends - self.constant)).T
        return low, high

    def interval(self, p: float) -> tuple[float, float]:
        """Return the exact interval (Clopper and Pearson 1934) at the nominal p of a look."""
        low, high = self.limits(self.seeds, p)
        return float(low[self.count]), float(high[self.count])


def share_difference(a: tuple[int, int], b: tuple[int, int]) -> ShareDifference:
    """Return the difference of two shares, each as (count, seeds)."""
    from scipy import stats

    table = np.array([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]])
    p = float(stats.fisher_exact(table).pvalue)
    return ShareDifference(a[0] / a[1] - b[0] / b[1], a, b, p)


@lru_cache(maxsize=256)
def share_limits(seeds_a: int, seeds_b: int, p: float) -> tuple[Array, Array]:
    """Return the exact interval of the difference of two shares for every pair of counts.

    The unconditional test of Chan and Zhang (1999) is inverted: a difference belongs to the
    interval where neither tail, at its largest over the common nuisance share, is below p/2. Tables
    are ordered by Agresti and Caffo's (2000) statistic.

    Args:
        seeds_a: seeds of a.
        seeds_b: seeds of b.
        p: two-sided level.

    Returns:
        Low and high ends, [seeds_a + 1, seeds_b + 1] each, to 1/STEPS.
    """
    from scipy import stats

    counts_a, counts_b = np.arange(seeds_a + 1), np.arange(seeds_b + 1)
    share_a = ((counts_a + 1) / (seeds_a + 2))[:, None]
    share_b = ((counts_b + 1) / (seeds_b + 2))[None]
    variance = share_a * (1 - share_a) / (seeds_a + 2) + share_b * (1 - share_b) / (seeds_b + 2)
    low, high = np.full(variance.size, 1.0), np.full(variance.size, -1.0)
    for delta in np.linspace(-1, 1, 2 * STEPS + 1):
        statistic = np.round((share_a - share_b - delta) / np.sqrt(variance), 9).ravel()
        nuisance = np.linspace(max(0.0, -delta), min(1.0, 1 - delta), NUISANCE)
        other = np.clip(nuisance + delta, 0, 1)
        pmf_a = np.asarray(stats.binom.pmf(counts_a, seeds_a, other[:, None]))
        pmf_b = np.asarray(stats.binom.pmf(counts_b, seeds_b, nuisance[:, None]))
        mass = (pmf_a[:, :, None] * pmf_b[:, None]).reshape(NUISANCE, -1)
        order = np.argsort(statistic, kind="stable")
        below = mass[:, order].cumsum(1).max(0)
        above = mass[:, order[::-1]].cumsum(1).max(0)
        # tables with the same statistic share the tail of the last of them
        ranked = statistic[order]
        tail_below = below[np.searchsorted(ranked, statistic, "right") - 1]
        tail_above = above[np.searchsorted(-ranked[::-1], -statistic, "right") - 1]
        inside = (tail_below > p / 2) & (tail_above > p / 2)
        low[inside] = np.minimum(low[inside], delta)
        high[inside] = np.maximum(high[inside], delta)
    shape = variance.shape
    step = 1 / STEPS
    return np.maximum(low - step, -1).reshape(shape), np.minimum(high + step, 1).reshape(shape)


# --------------------------------------------------------------------------- planning


def chance_to_decide(
    difference: Difference, seeds: npt.ArrayLike, p: float, margin: float, direction: int
) -> Array:
    """Return the probability that a look with `seeds` an arm ends in a verdict.

    The estimate and the spreads are taken as the truth.

    Args:
        difference: as known now.
        seeds: seeds an arm, any shape.
        p: nominal two-sided p of the look.
        margin: the smallest difference that matters.
        direction: sign that the claim predicts.
    """
    from scipy import stats

    n = np.asarray(seeds, dtype=np.float64)
    now = len(difference.seeds) / sum(1 / each for each in difference.seeds)
    error = difference.seed_error * np.sqrt(now / n)
    half = half_width(error, np.maximum(difference.df * n / now, 1.0), difference.image_error, p)
    half += difference.slack
    spread = np.maximum(np.hypot(error, difference.image_error), 1e-12)
    estimate = direction * difference.centre
    return np.asarray(
        stats.norm.sf((margin + half - estimate) / spread)
        + stats.norm.cdf((margin - half - estimate) / spread)
    )


def seeds_to_decide(difference: Difference, p: float, margin: float, direction: int) -> int | None:
    """Return the least number of seeds an arm that decides with probability .8, None beyond 1000.

    Arguments as in `chance_to_decide`.
    """
    seeds = np.arange(max(difference.seeds) + 1, 1001)
    enough = chance_to_decide(difference, seeds, p, margin, direction) >= 0.8
    return int(seeds[enough.argmax()]) if enough.any() else None


def chance_left(
    difference: Difference,
    looks: Sequence[int],
    levels: Sequence[float],
    margin: float,
    direction: int,
) -> Array:
    """Return an upper bound on the probability that one of the looks that are left decides.

    Predicted from the seeds that are there, of which a later look has its share, with a flat prior
    on the difference and on the log of its spread (Spiegelhalter, Freedman and Blackburn 1986). The
    probabilities of the looks are added up. To stop where it is small takes nothing from the error
    rate, which the boundaries keep whether a trial goes on or not.

    Args:
        difference: as known now; its numbers may be arrays of one shape.
        looks: seeds an arm of each look that is left.
        levels: nominal two-sided p of each.
        margin: the smallest difference that matters.
        direction: sign that the claim predicts.
    """
    from scipy import stats

    now = len(difference.seeds) / sum(1 / each for each in difference.seeds)
    estimate, error, df, images = (
        np.asarray(each, np.float64)[..., None]
        for each in (
            direction * difference.centre,
            difference.seed_error,
            difference.df,
            difference.image_error,
        )
    )
    # the variance that is not known, as multiples of the one that was seen, each as likely
    spread = df / stats.chi2.ppf((np.arange(SPREADS) + 0.5) / SPREADS, df)
    chance = np.zeros(estimate.shape[:-1])
    for n, p in zip(looks, levels, strict=True):
        share = now / n
        moved = error * np.sqrt(spread * (1 - share))
        later = error * np.sqrt(share * (share + (1 - share) * spread))
        half = half_width(later, df / share, images, p) + difference.slack
        decides = stats.norm.sf((margin + half - estimate) / np.maximum(moved, 1e-12))
        decides += stats.norm.cdf((margin - half - estimate) / np.maximum(moved, 1e-12))
        chance += decides.mean(-1)
    return np.minimum(chance, 1.0)


def chance_of_seeds(arms: Sequence[tuple[int, int]], seeds: int, least: int) -> float:
    """Return the probability that `least` of so many seeds count in every arm.

    As in `share_chance_left`, beta-binomial with Jeffreys' prior on each arm's share.

    Args:
        arms: seeds that count, and seeds, of each arm by now.
        seeds: seeds an arm in the end.
        least: how many of them must count.
    """
    from scipy import stats

    chance = 1.0
    for count, now in arms:
        more = stats.betabinom(seeds - now, count + 0.5, now - count + 0.5)
        chance *= float(more.sf(least - count - 1))
    return chance


def share_chance_left(
    shares: Share | ShareDifference,
    looks: Sequence[int],
    levels: Sequence[float],
    margin: float,
    direction: int,
) -> float:
    """Return an upper bound on the probability that one of the looks that are left decides.

    As `chance_left`, of shares: how many of an arm's further seeds have the property is
    beta-binomial, with Jeffreys' prior on the arm's share.

    Args:
        shares: as known now.
        looks: seeds an arm of each look that is left.
        levels: nominal two-sided p of each.
        margin: the smallest difference that matters.
        direction: sign that the claim predicts.
    """
    from scipy import stats

    chance = 0.0
    for n, p in zip(looks, levels, strict=True):
        mass = np.ones(())
        for count, seeds in shares.arms:
            more = np.arange(n + 1) - count
            later = stats.betabinom.pmf(more, n - seeds, count + 0.5, seeds - count + 0.5)
            mass = np.multiply.outer(mass, later)
        ends = zip(*map(np.ravel, shares.limits(n, p)), strict=True)
        decides = [word(low, high, margin, direction) != "undecided" for low, high in ends]
        chance += float(mass.ravel() @ decides)
    return min(chance, 1.0)
