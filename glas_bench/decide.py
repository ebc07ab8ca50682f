"""Verdicts on the claims of a study: what its records show by now, and what would decide the rest.

A verdict is a function of the study file and of the records of its seeds: every machine and every
later call comes to the same one. A look uses the scores of its own seeds, and two things besides:
AIS of a seed may come later, and where seeds are read from a csv, which has no values of images,
the spread over images is that of the arm's other seeds. At each look,
a number of seeds (`Study.looks`), the first seeds of all arms are compared (see `sequential`). The
first look that decides is the verdict; seeds that are added for other claims do not change it.

The level .05 is divided by the comparisons of all claims of the study. In nats, means are over the
seeds that left the mean image (`failed` is false), in other units over those that did not diverge.
Where the arms' shares of those differ clearly (Fisher's exact test at .05 over the looks), or one
arm beside a number lacks some, the claim ends undecided at that look, unless it has
`among: escaped`. A diverged seed counts as one that did not leave it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from glas_bench import sequential
from glas_bench.data import DATASETS
from glas_bench.data.sources import OWN
from glas_bench.errors import GlasBenchError, RunError, UsageError
from glas_bench.evaluate import scored_images
from glas_bench.record import SeedRecord, is_number, load_run, nll_prefix
from glas_bench.sequential import Difference, Share, ShareDifference
from glas_bench.stats import LOOSE, LOOSE_GAIN, different_draws, is_loose, mean_of
from glas_bench.study import Cell, Study
from glas_bench.study.claims import METRICS, Claim, Comparison, Term
from glas_bench.text import interval, setting

Array = npt.NDArray[np.float64]
Evidence = Difference | ShareDifference | Share

NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Arm:
    """The records of a cell's seeds."""

    cell: Cell
    seeds: Mapping[int, SeedRecord]

    @property
    def name(self) -> str:
        """Of the cell."""
        return self.cell.name

    @cached_property
    def protocol(self) -> str:
        """Of the scores that count."""
        return self.cell.protocol

    def ended(self, seed: int) -> bool:
        """Return whether a seed diverged, or has its scores."""
        record = self.seeds.get(seed)
        if record is None:
            return False
        complete = record.status == "complete" and self.protocol in record.scores
        return complete or record.status == "diverged"

    def scores(self, seed: int) -> Mapping[str, Any] | None:
        """Return the scores of a seed; None where it diverged."""
        record = self.seeds[seed]
        return record.scores[self.protocol] if record.status == "complete" else None

    def escaped(self, seed: int) -> bool:
        """Return whether a seed left the mean image."""
        scores = self.scores(seed)
        return scores is not None and scores["failed"] is False


@dataclass(frozen=True)
class Look:
    """What the first `seeds` seeds of each arm say."""

    number: int
    """From 1."""
    seeds: int
    word: str
    estimate: float | None = None
    """Left side less right side, in the metric's unit."""
    low: float | None = None
    """Of the repeated interval, which holds together over looks and claims."""
    high: float | None = None
    why: str = ""
    """Why there is no interval, or no verdict from it."""
    slack: float = 0.0
    """How much wider the interval is because scores may lie above -log p(x), nats."""


@dataclass(frozen=True)
class Verdict:
    """What is known of one comparison of a claim."""

    claim: Claim
    comparison: Comparison
    word: str
    """Of `sequential.Word`, or "no verdict"."""
    why: str
    looks: tuple[Look, ...]
    """Those taken, up to the first that decides."""
    planned: tuple[int, ...]
    """Seeds of each arm at every look that may be taken."""
    level: float
    """Two-sided error rate of the comparison over its looks."""
    escaped: tuple[tuple[int, int], ...] = ()
    """By arm, seeds that means are of (in nats, that left the mean image), and seeds, at the last
    look taken."""
    escape_p: float | None = None
    """Of a log-rank test that two arms leave the mean image at the same epochs; exploratory."""
    wanted: int | None = None
    """Seeds of each arm that the next look takes; None where no more seeds would help."""
    outlook: str = ""
    """What more seeds would do."""

    @property
    def decided(self) -> bool:
        """Whether it is settled, either way."""
        return self.word not in ("undecided", NO_VERDICT)

    @property
    def last(self) -> Look | None:
        """The last look with an interval."""
        return next((look for look in reversed(self.looks) if look.low is not None), None)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        claim, last = self.claim, self.last
        return {
            "claim": claim.number,
            "text": " ".join(claim.text.split()),
            "source": claim.source,
            "expect": claim.expect,
            "metric": " and ".join(claim.expectation.metrics),
            "unit": claim.expectation.unit,
            "margin": claim.margin,
            "cells": list(self.comparison.cells),
            "at": self.comparison.at,
            "verdict": self.word,
            "why": self.why,
            "estimate": last.estimate if last else None,
            "low": last.low if last else None,
            "high": last.high if last else None,
            "looks": [asdict(look) for look in self.looks],
            "planned": list(self.planned),
            "level": self.level,
            "escaped": [list(pair) for pair in self.escaped],
            "escape_p": self.escape_p,
            "wanted": self.wanted,
            "outlook": self.outlook,
        }


def arms_in(study: Study, keys: Mapping[str, str | None], results: Path) -> dict[str, Arm]:
    """Return the arms of a study, by name of the cell, from its run folders below `results`.

    `keys` has the config_key of each cell, which names its run folder; None where it has none.
    """
    cells = (replace(cell, key=keys.get(cell.name) or "") for cell in study.cells)
    return {cell.name: Arm(cell, _seeds(cell, results)) for cell in cells if cell.key}


def _seeds(cell: Cell, results: Path) -> dict[int, SeedRecord]:
    with contextlib.suppress(UsageError, RunError):  # missing or broken; running it mends it
        return load_run(cell.folder(results).path).seeds
    return {}


def judge(study: Study, arms: Mapping[str, Arm]) -> list[Verdict]:
    """Return the verdict on every comparison of a study's claims, in their order.

    `arms` are by name of the cell; a cell without one has no seeds yet.
    """
    pairs = [(claim, each) for claim in study.claims for each in claim.comparisons]
    level = sequential.ALPHA / max(1, len(pairs))
    judged = []
    for claim, comparison in pairs:
        why = ""
        if not study.verdicts:
            why = f"preset {study.preset} gives none: sweep with --preset laptop, short or paper"
        elif claim.preset not in (None, study.preset):
            why = f"it is about preset {claim.preset}"
        word = NO_VERDICT if why else "undecided"
        verdict = Verdict(claim, comparison, word, why, (), study.looks, level)
        if not why:
            there = [arms.get(each) or Arm(study.by_name[each], {}) for each in comparison.cells]
            verdict = _judged(verdict, study, there)
        judged.append(verdict)
    return judged


def seeds_at(study: Study, seeds: int) -> list[int]:
    """Return the first seeds: the study's own, and those after them that no search tunes on."""
    after = itertools.count(max(study.own_seeds) + 1)
    more = (seed for seed in after if seed not in study.tuning_seeds)
    return list(itertools.islice(itertools.chain(study.own_seeds, more), seeds))


def seeds_to_run(study: Study, verdicts: Sequence[Verdict]) -> dict[str, list[int]]:
    """Return by cell the seeds of all looks taken so far and of the next one where it may decide.

    A cell that no claim is about has the seeds of the first look.
    """
    counts = dict.fromkeys((cell.name for cell in study.cells), study.looks[0])
    for verdict in verdicts:
        taken = max((look.seeds for look in verdict.looks), default=0)
        for cell in verdict.comparison.cells:
            counts[cell] = max(counts[cell], taken, verdict.wanted or 0)
    return {cell: seeds_at(study, count) for cell, count in counts.items()}


def summary(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return how many of the comparisons that are judged here are decided, from their documents.

    Empty where none is judged.
    """
    words = [one["verdict"] for one in verdicts if one["verdict"] != NO_VERDICT]
    decided = sum(word != "undecided" for word in words)
    return f"{decided} of {len(words)} claims decided" if words else ""


def heading(one: Mapping[str, Any]) -> str:
    """Return the number and the text of a verdict's document: what is claimed, and where."""
    at = "".join(f", {key}={setting(value)}" for key, value in one["at"].items())
    return f"claim {one['claim']}: {' '.join(one['expect'].split())}{at}"


def finding(one: Mapping[str, Any]) -> str:
    """Return the word of a verdict's document, the look, and the interval."""
    looks = [look for look in one["looks"] if look["low"] is not None]
    if not looks:
        return str(one["verdict"])
    last, unit = looks[-1], "" if one["unit"] == "share" else one["unit"]
    return (
        f"{one['verdict']} at look {last['number']} of {len(one['planned'])} "
        f"({last['seeds']} seeds): {interval(last['estimate'], last['low'], last['high'], unit)}"
    )


# --------------------------------------------------------------------------- one comparison


def _judged(verdict: Verdict, study: Study, arms: Sequence[Arm]) -> Verdict:
    """Take one look after another until one decides, or one's seeds are not there."""
    claim, looks = verdict.claim, verdict.planned
    levels = sequential.nominal_p(looks, verdict.level)
    guards = sequential.nominal_p(looks)
    taken: list[Look] = []
    difference: Evidence | None = None
    hurdle = ""
    escaped: tuple[tuple[int, int], ...] = ()
    looked: list[int] = []
    for number, (count, p) in enumerate(zip(looks, levels, strict=True), 1):
        seeds = seeds_at(study, count)
        if short := _short(arms, seeds):
            why = f"look {number} of {len(looks)} waits for {count} seeds of each arm: {short}"
            verdict = replace(verdict, why=why, wanted=count)
            break
        escaped = tuple((sum(_counts(claim, arm, seed) for seed in seeds), count) for arm in arms)
        looked = seeds
        shares = dict(zip([arm.name for arm in arms], escaped, strict=True))
        hurdle = _hurdle(claim, shares, guards[number - 1])
        try:
            difference = _compared(claim, arms, seeds)
            slack = _slack(claim, arms, seeds)
        except _NoNumber as error:
            look = Look(number, count, "undecided", why=hurdle or str(error))
            lacking = isinstance(error, _Lacking)  # seeds that are added would lack it too
            difference = None
        else:
            if isinstance(difference, Difference):
                difference = replace(difference, below=slack[0], above=slack[1])
            low, high = difference.interval(p)
            word = sequential.word(low, high, claim.margin, claim.expectation.direction)
            word = "undecided" if hurdle else word
            look = Look(number, count, word, difference.estimate, low, high, hurdle, sum(slack))
            lacking = False
        taken.append(look)
        verdict = replace(verdict, word=look.word, why=look.why)
        if hurdle or lacking or verdict.decided:
            break
    else:
        verdict = replace(verdict, outlook="no look is left")
    escape_p = _log_rank(arms, looked)
    verdict = replace(verdict, looks=tuple(taken), escaped=escaped, escape_p=escape_p)
    if verdict.decided or hurdle:
        return verdict
    if difference is None:
        if verdict.wanted is None or not taken:
            return verdict
        chance = sequential.chance_of_seeds(escaped, looks[-1], least=2)
        return verdict if chance >= sequential.FUTILE else _futile(verdict, chance)
    if isinstance(difference, Difference):
        if difference.estimate == difference.seed_error == difference.image_error == 0:
            return replace(verdict, why="both sides are equal on every seed", wanted=None)
        verdict = replace(verdict, outlook=_outlook(verdict, difference, levels))
    if verdict.wanted is None or taken[-1].low is None:
        return verdict
    left = len(taken)
    chance = _chance_left(claim, difference, looks[left:], levels[left:])
    return verdict if chance >= sequential.FUTILE else _futile(verdict, chance)


def _futile(verdict: Verdict, chance: float) -> Verdict:
    """Return a verdict that gets no more seeds, as they are not likely to decide."""
    likely = "less than .01" if chance < 0.01 else f"at most {chance:.2f}"
    last = verdict.planned[-1]
    why = f"more seeds, up to {last} an arm, decide with probability {likely}: none are added"
    return replace(verdict, wanted=None, why=why)


def _chance_left(
    claim: Claim, found: Evidence, looks: Sequence[int], levels: Sequence[float]
) -> float:
    """Return an upper bound on the probability that one of the looks that are left decides."""
    margin, direction = claim.margin, claim.expectation.direction
    if isinstance(found, Difference):
        return float(sequential.chance_left(found, looks, levels, margin, direction))
    return sequential.share_chance_left(found, looks, levels, margin, direction)


def _short(arms: Sequence[Arm], seeds: Sequence[int]) -> str:
    """Return which arms lack ended seeds, and how many they have; empty where none does."""
    missing = {
        arm.name: sum(map(arm.ended, seeds)) for arm in arms if not all(map(arm.ended, seeds))
    }
    return ", ".join(f"{name} has {count}" for name, count in missing.items())


def _counts(claim: Claim, arm: Arm, seed: int) -> bool:
    """Return whether a seed counts in a mean: in nats, or if asked, those that left the mean image.

    In other units those that did not diverge; a seed that did has an `escape_epoch`, past all.
    """
    unit = claim.expectation.unit
    if unit in ("nats", "share") or claim.among_escaped:
        return arm.escaped(seed)
    return unit == METRICS["escape_epoch"].unit or arm.scores(seed) is not None


def _left(claim: Claim) -> str:
    """Return what a seed did that counts in a mean."""
    in_nats = claim.expectation.unit == "nats"
    return "left the mean image" if in_nats or claim.among_escaped else "did not diverge"


def _hurdle(claim: Claim, counts: Mapping[str, tuple[int, int]], p: float) -> str:
    """Return why means do not decide a claim: the arms' shares of seeds that count differ.

    Or the only arm, beside a number, has seeds that do not count. Empty where neither is so, or
    where the claim is about the seeds that left the mean image. More seeds are not likely to change
    that, so none are added. `p` is that of a look at .05, which is not divided among claims: it
    withholds verdicts, and a smaller one would let more through.
    """
    if claim.expectation.unit == "share" or claim.among_escaped:
        return ""
    cure = (
        "means do not decide and no seeds are added; a claim about those that left the mean image "
        "says `among: escaped`, one about shares escaped_share"
    )
    pairs = list(itertools.combinations(counts.items(), 2))
    for (name, a), (other, b) in pairs:
        if sequential.share_difference(a, b).p * len(pairs) < p:
            return (
                f"{a[0]} of {a[1]} seeds of {name} and {b[0]} of {b[1]} of {other} {_left(claim)}: "
                f"that differs clearly, so {cure}"
            )
    for name, (some, seeds) in counts.items() if not pairs else ():
        if some < seeds:
            return f"{some} of {seeds} seeds of {name} {_left(claim)}, so {cure}"
    return ""


def _log_rank(arms: Sequence[Arm], seeds: Sequence[int]) -> float | None:
    """Return the p of a log-rank test of two arms' epochs of escape; None where all are alike."""
    from scipy import stats

    cells = {arm.name: arm for arm in arms}
    if len(cells) != 2:
        return None
    samples, escaped = [], list[int]()
    for arm in cells.values():
        last = arm.cell.config.epochs
        epochs = [(arm.scores(seed) or {}).get("escape_epoch") for seed in seeds]
        escaped += [epoch for epoch in epochs if epoch is not None]
        ends = [last if arm.scores(seed) else _reached(arm.seeds[seed]) for seed in seeds]
        times = [end if each is None else each for each, end in zip(epochs, ends, strict=True)]
        samples.append(stats.CensoredData.right_censored(times, [each is None for each in epochs]))
    if not escaped:
        return None
    with np.errstate(invalid="ignore"):  # all of them in the same epoch: 0 / 0
        p = float(stats.logrank(samples[0], samples[1]).pvalue)
    return p if math.isfinite(p) else None


def _reached(record: SeedRecord) -> int:
    """Return the last epoch of a seed that diverged."""
    return int(record.metrics[-1]["epoch"]) if record.metrics else 0


# --------------------------------------------------------------------------- values


class _NoNumber(Exception):  # noqa: N818 - a finding
    """Why seeds cannot be compared."""


class _Lacking(_NoNumber):
    """A seed lacks a metric."""


def _compared(claim: Claim, arms: Sequence[Arm], seeds: Sequence[int]) -> Evidence:
    """Return the sum of a claim's terms over these seeds, less its constant.

    Raises:
        _NoNumber: a metric is missing, too few seeds count, or those of an arm are all equal.
    """
    expectation = claim.expectation
    terms = list(zip(expectation.terms, arms, strict=True))
    _check_alike(terms, seeds)
    if expectation.unit == "share":
        counts = [
            (sum(_meets(term, arm, seed) for seed in seeds), len(seeds)) for term, arm in terms
        ]
        if len(counts) == 1:
            sign = expectation.terms[0].sign
            return Share(*counts[0], sign * expectation.constant, sign)
        first, second = counts if expectation.terms[0].sign > 0 else counts[::-1]
        return sequential.share_difference(first, second)
    by_cell: dict[str, dict[int, Array]] = {}
    for name in dict.fromkeys(arm.name for _, arm in terms):
        own = [(term, arm) for term, arm in terms if arm.name == name]
        arm = own[0][1]
        used = [seed for seed in seeds if _counts(claim, arm, seed)]
        if len(used) < 2:
            raise _NoNumber(
                f"{len(used)} of {len(seeds)} seeds of {name} {_left(claim)}: a mean takes two"
            )
        by_cell[name] = values = {seed: _sum([t for t, _ in own], arm, seed) for seed in used}
        by_image = any(METRICS[term.metric].per_image for term, _ in own)
        if by_image and any(each.size < 2 for each in values.values()):
            by_cell[name] = _with_images([t for t, _ in own], arm, values)
    try:
        difference = sequential.contrast(list(by_cell.values()), expectation.constant)
    except ValueError as error:
        raise _NoNumber(str(error)) from error
    if difference.estimate == difference.seed_error == 0:  # the same models
        return difference
    for name, values in by_cell.items():
        if len({float(each.mean()) for each in values.values()}) == 1:  # of whole numbers
            raise _NoNumber(f"all seeds of {name} are equal: how far others may lie is not known")
    return difference


def _with_images(terms: Sequence[Term], arm: Arm, values: Mapping[int, Array]) -> dict[int, Array]:
    """Return values of images [B] for the seeds of which the mean alone is known.

    The others that have some are those of all looks: the first seeds may all be read from a csv.

    Raises:
        _NoNumber: no seed of the arm has values of two images.
    """
    known = []
    for seed in (seed for seed in arm.seeds if arm.ended(seed) and arm.escaped(seed)):
        with contextlib.suppress(_NoNumber):  # a later look's, which says nothing of this one
            known += [each for each in [_sum(terms, arm, seed)] if each.size > 1]
    if not known:
        raise _NoNumber(f"no seed of {arm.name} has values of two images: score two or more")
    return sequential.with_images(values, known)


def _check_alike(terms: Sequence[tuple[Term, Arm]], seeds: Sequence[int]) -> None:
    """Refuse AIS by different protocols, iw of different K, and seeds counted by a loose `nll`.

    Raises:
        _Lacking: chains, temperatures, images or numbers of draws differ between seeds, or a share
            depends on an `nll` that may lie far above -log p(x).
    """
    named = [
        (term.condition.metric if term.condition else term.metric, term, arm) for term, arm in terms
    ]
    asked = (arm for metric, _, arm in named if metric == "ais")
    keys = {arm.seeds[seed].ais[0] for arm in asked for seed in seeds if arm.escaped(seed)}
    if len(keys - {None}) > 1:
        raise _Lacking("they were scored by different protocols of AIS")
    for metric, term, arm in named:
        if metric == "nll" and term.condition and (why := _why_loose(arm, seeds)):
            raise _Lacking(f"seeds are counted by it, and {why}")
    weighed = [arm for metric, _, arm in named if metric == "iw"]
    found = [arm.scores(seed) or {} for arm in weighed for seed in seeds if arm.escaped(seed)]
    if why := different_draws(scores.get("iw_samples") for scores in found):
        raise _Lacking(why)


def _sum(terms: Sequence[Term], arm: Arm, seed: int) -> Array:
    """Return the signed sum of a cell's terms for one seed: [B] of common images, or [1].

    Raises:
        _NoNumber: it lacks a metric, or its metrics are of different images.
    """
    whole, by_image = 0.0, list[tuple[int, dict[int, float]]]()
    for term in terms:
        images, values = _value(term.metric, arm, seed)
        if images is None:
            whole += term.sign * values.item()
        else:
            by_image.append((term.sign, dict(zip(images, values.tolist(), strict=True))))
    if not by_image:
        return np.array([whole])
    common = [image for image in by_image[0][1] if all(image in known for _, known in by_image)]
    if not common:
        raise _Lacking(f"the metrics of seed {seed} of {arm.name} have no image in common")
    return np.array([whole + sum(sign * known[i] for sign, known in by_image) for i in common])


def _value(metric: str, arm: Arm, seed: int) -> tuple[list[int] | None, Array]:
    """Return the images and values [B] of a seed; no images, and [1], where there is one value.

    Raises:
        _NoNumber: the seed has none.
    """
    record, scores = arm.seeds[seed], arm.scores(seed) or {}
    if not METRICS[metric].per_image:
        return None, np.array([_scalar(metric, arm, seed)])
    key = arm.protocol
    if metric == "ais":
        ais_key, ais = record.ais
        if ais_key is None or ais.get("ais_status") != "accepted":
            raise _Lacking(
                f"seed {seed} of {arm.name} has no accepted AIS: run `glas-bench evaluate "
                f"{arm.cell.key} --seed {seed} --estimator ais`"
            )
        key = ais_key
    try:
        stored = record.per_image(key)
    except GlasBenchError as error:
        raise _Lacking(f"seed {seed} of {arm.name}: {error}") from error
    if metric not in stored:
        if not stored and is_number(scores.get(metric)):  # read from a page's csv
            return None, np.array([scores[metric]])
        raise _Lacking(f"seed {seed} of {arm.name} has no {metric}")
    values = np.asarray(stored[metric], np.float64)
    if not np.isfinite(values).all():
        raise _Lacking(f"{metric} of {arm.name} is not finite on seed {seed}")
    if metric == "ais":
        return [int(image) for image in stored["image"]], values
    asked, dataset = scores["protocol"]["images"], arm.cell.config.dataset
    if asked == "all":
        return list(range(len(values))), values
    if dataset in OWN:
        raise _Lacking(f"which images of {dataset} were scored is not recorded: set images to all")
    return scored_images(DATASETS[dataset].sizes[2], asked).tolist(), values


def _scalar(metric: str, arm: Arm, seed: int) -> float:
    value = (arm.scores(seed) or {}).get(metric)
    if metric == "escape_epoch" and value is None:
        return float(arm.cell.config.epochs + 1)
    if value is None:
        raise _Lacking(f"seed {seed} of {arm.name} has no {metric}")
    return float(value)


def _meets(term: Term, arm: Arm, seed: int) -> bool:
    """Return whether a seed counts in a share; one that diverged has failed and meets nothing."""
    if term.metric == "escaped_share":
        return arm.escaped(seed)
    if term.metric == "failed_share":
        return not arm.escaped(seed)
    assert term.condition is not None
    if arm.scores(seed) is None:
        return False
    metric = term.condition.metric
    value = (
        float(_value(metric, arm, seed)[1].mean())
        if METRICS[metric].per_image
        else _scalar(metric, arm, seed)
    )
    return term.condition.holds(value)


def _slack(claim: Claim, arms: Sequence[Arm], seeds: Sequence[int]) -> tuple[float, float]:
    """Return how far bounds may lie from -log p(x), which widens an interval below and above, nats.

    -log p(x) is at most the gap of AIS below its estimate (bidirectional Monte Carlo, Grosse,
    Ghahramani and Adams 2015). `nll` lies further above it the more its log weights vary: where it
    `is_loose`, AIS of one seed or more has to measure by how much. Of each number, the mean over
    seeds, with two of its errors over images.

    Raises:
        _Lacking: no seed of an arm whose `nll` is so loose has an accepted AIS.
    """
    slack = [0.0, 0.0]
    for term, arm in zip(claim.expectation.terms, arms, strict=True):
        own = {seed: arm.seeds[seed].ais[1] for seed in seeds if arm.escaped(seed)}
        side = 0 if term.sign > 0 else 1
        if term.metric == "ais":
            slack[side] += fmean([_gap(ais) for ais in own.values()])
        elif term.metric == "nll" and (why := _why_loose(arm, seeds)):
            accepted = [
                ais
                for ais in own.values()
                if ais.get("ais_status") == "accepted" and "nll" in ais.get("paired", {})
            ]
            if not accepted:
                raise _Lacking(
                    f"{why}; measure how far: run `glas-bench evaluate {arm.cell.key} --seed "
                    f"{min(own)} --estimator ais`"
                )
            slack[side] += fmean([_below_nll(ais) + _gap(ais) for ais in accepted])
    return slack[0], slack[1]


def _why_loose(arm: Arm, seeds: Sequence[int]) -> str:
    """Return why `nll` of an arm may lie far above -log p(x); empty where it does not."""
    own = [scores for seed in seeds if arm.escaped(seed) and (scores := arm.scores(seed))]
    v, gain = (
        mean_of([one.get(f"{nll_prefix(one)}{name}") for one in own])
        for name in ("v_mean", "doubling_gain")
    )
    if not own or not is_loose(v, gain):
        return ""
    found = "is not finite" if v is None else f"is {v:.0f}"
    found += "" if gain is None else f", and all weights gain {gain:.2f} nats over half of them"
    return (
        f"nll of {arm.name} is only a bound: the variance of its log weights {found}; above "
        f"{LOOSE:g}, or {LOOSE_GAIN:g} nats, it may lie far above -log p(x)"
    )


def _gap(ais: Mapping[str, Any]) -> float:
    return _at_most(ais["gap"], ais["gap_error"])


def _below_nll(ais: Mapping[str, Any]) -> float:
    paired = ais["paired"]["nll"]
    return _at_most(-float(paired["difference"]), paired["error"])


def _at_most(value: float | None, error: float | None) -> float:
    """Return a value with two of its errors, 0 or more.

    Raises:
        _Lacking: it has no error.
    """
    if value is None or error is None:
        raise _Lacking("AIS of one image has no error: run it with two --images or more")
    return max(0.0, value + 2 * error)


# --------------------------------------------------------------------------- planning


def _outlook(verdict: Verdict, difference: Difference, levels: Sequence[float]) -> str:
    """Return what more seeds would do if the estimate and the spreads held."""
    margin, direction = verdict.claim.margin, verdict.claim.expectation.direction
    unit = verdict.claim.expectation.unit
    half = difference.half_width(levels[len(verdict.looks) - 1])
    resolved = (
        f"a true difference of {margin + 2 * half:.2g} {unit} would probably be decided by now"
    )
    if verdict.wanted is None:
        return resolved
    need = sequential.seeds_to_decide(difference, levels[-1], margin, direction)
    if need is None:
        return f"{resolved}; more than 1000 seeds would decide"
    more = need - max(difference.seeds)
    if need > verdict.planned[-1]:
        return f"{resolved}; {more} more seeds decide with probability .8 if the estimate holds"
    p = levels[len(verdict.looks)]
    chance = sequential.chance_to_decide(difference, verdict.wanted, p, margin, direction)
    return (
        f"{resolved}; the next look decides with probability {float(chance):.2f}, and {more} more "
        "seeds with .8, if the estimate holds"
    )
