"""`--fail-if`: a number that a page must not have, in the grammar of claims.

`elbo(cauchy) > 90`, `nll(gaussian, grid=centred) > 95`, `failed_share(fixed-random) > 0.2`; and of
the difference from a cell's baseline, paired as on its page, or of an end of its 95 % interval:
`nll_low(mine) > 0` where mine is shown to be worse, `nll_high(mine) > 0` where it is not shown to
be better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glas_bench.config import same_value
from glas_bench.errors import UsageError, nearest, unknown
from glas_bench.report.table import COMPARED, TableRow, setting_list
from glas_bench.study.claims import METRICS, SHARES, Term, parse
from glas_bench.study.claims import Condition as Bound
from glas_bench.text import setting

FORM = "METRIC(VARIANT, setting=value, ...) > NUMBER, or the same with <"
DIFFERENCES = ("difference", "low", "high")
"""Suffixes of a metric: of the difference from the baseline, and of its interval's ends."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Condition:
    """A parsed expression."""

    text: str
    term: Term
    bound: Bound
    """Of the metric, which may have a suffix of `DIFFERENCES`."""


def read(text: str) -> Condition:
    """Parse an expression.

    Raises:
        UsageError: it does not have that form, or its metric is unknown.
    """
    match = re.fullmatch(rf"\s*([^<>()]*\([^<>()]*\))\s*([<>])\s*({_NUMBER})\s*", text)
    if match is None:
        differences = ", ".join(f"nll_{part}" for part in DIFFERENCES)
        raise UsageError(
            f"--fail-if {text!r} cannot be read; write {FORM}, e.g. 'elbo(cauchy) > 90'. "
            f"Metrics: {', '.join(sorted({*METRICS} - {'share'}))}; of the difference from the "
            f"baseline: {differences}, and so for {', '.join(COMPARED[1:])}."
        )
    side, sign, limit = match.groups()
    name, _, settings = side.partition("(")
    metric, _, part = name.strip().rpartition("_")
    if part in DIFFERENCES:
        side = f"{metric}({settings}"
    else:
        part = ""
    try:
        (term,) = parse(f"{side} {sign} 0").terms
    except UsageError as error:
        raise UsageError(f"--fail-if {text!r}: {error}") from error
    if part and term.metric not in COMPARED:
        allowed = ", ".join(COMPARED)
        raise UsageError(f"--fail-if {text!r}: cells are compared by {allowed} alone")
    metric = f"{term.metric}_{part}" if part else term.metric
    return Condition(text, term, Bound(metric, sign, float(limit)))


def tripped(condition: Condition, cells: Sequence[TableRow]) -> list[str]:
    """Return a line for each cell in which a condition holds; none where it does not.

    A cell without the number trips it: what cannot be shown to be right is not.

    Raises:
        UsageError: the condition is about no cell of the pages.
    """
    term, metric = condition.term, condition.bound.metric
    own = [cell for cell in cells if cell.variant == term.variant]
    if not own:
        wrong = unknown("variant of these pages", term.variant, {c.variant for c in cells})
        raise UsageError(f"--fail-if {condition.text!r}: {wrong}")
    fits = [cell for cell in own if _fits(cell, term)]
    if not fits:
        got = setting_list({key: setting(value) for key, value in term.settings.items()})
        labels = [cell.label for cell in own]
        raise UsageError(
            f"--fail-if {condition.text!r}: no cell of {term.variant} has {got}."
            f"{nearest(f'{term.variant} ({got})', labels)} There are: {', '.join(labels)}."
        )
    lines = []
    for cell in fits:
        value = _value(cell, condition)
        if value is None:
            text = f"has no number{_why_none(cell, metric)}"
        elif condition.bound.holds(value):
            text = "is infinite" if math.isinf(value) else f"is {value:.4g}"
        else:
            continue
        lines.append(f"{condition.text}: {metric} of {cell.label} {text}")
    return lines


def _fits(cell: TableRow, term: Term) -> bool:
    own, first = cell.settings, cell.first
    return all(
        same_value(own.get(key, first.get(f"params.{key}", "")), setting(value))
        for key, value in term.settings.items()
    )


def _why_none(cell: TableRow, metric: str) -> str:
    name, _, part = metric.rpartition("_")
    if part not in DIFFERENCES:
        return ""
    why = cell.first.get(f"{name}_apart") or "it is compared with no baseline by this metric"
    return f": {why}"


def _value(cell: TableRow, condition: Condition) -> float | None:
    metric = condition.bound.metric
    if metric in SHARES:  # as in claims, a diverged seed has failed
        diverged = cell.count.get("diverged", 0)
        failed, seeds = cell.failed_share()
        share = (failed + diverged) / (seeds + diverged) if seeds + diverged else None
        return 1 - share if share is not None and metric == "escaped_share" else share
    if cell.finished and cell.status(metric) == "infinite":
        return math.inf
    return cell.mean(metric)
