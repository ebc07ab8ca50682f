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
from glas_bench.report.table import TableRow, setting_list, value_of
from glas_bench.study.claims import METRICS, SHARES, Term, parse
from glas_bench.text import setting

FORM = "METRIC(VARIANT, setting=value, ...) > NUMBER, or the same with <"
DIFFERENCES = ("difference", "low", "high")
"""Suffixes of a metric: of the difference from the baseline, and of its interval's ends."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Condition:
    """A parsed expression."""

    text: str
    metric: str
    reference: Term
    above: bool
    limit: float


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
            f"Metrics: {', '.join(sorted(METRICS))}; of the difference from the baseline: "
            f"{differences}, and so for each metric."
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
    if part and term.metric in SHARES:
        raise UsageError(f"--fail-if {text!r}: shares of seeds have no interval; name a metric")
    metric = f"{term.metric}_{part}" if part else term.metric
    return Condition(text, metric, term, sign == ">", float(limit))


def tripped(condition: Condition, cells: Sequence[TableRow]) -> list[str]:
    """Return a line for each cell in which a condition holds; none where it does not.

    A cell without the number trips it: what cannot be shown to be right is not.

    Raises:
        UsageError: the condition is about no cell of the pages.
    """
    reference = condition.reference
    own = [cell for cell in cells if cell.variant == reference.variant]
    if not own:
        wrong = unknown("variant of these pages", reference.variant, {c.variant for c in cells})
        raise UsageError(f"--fail-if {condition.text!r}: {wrong}")
    fits = [cell for cell in own if _fits(cell, reference)]
    if not fits:
        got = setting_list({key: setting(value) for key, value in reference.settings.items()})
        labels = [cell.label for cell in own]
        raise UsageError(
            f"--fail-if {condition.text!r}: no cell of {reference.variant} has {got}."
            f"{nearest(f'{reference.variant} ({got})', labels)} There are: {', '.join(labels)}."
        )
    lines = []
    for cell in fits:
        value = _value(cell, condition)
        if value is None:
            text = f"has no number{_why_none(cell, condition.metric)}"
        elif value > condition.limit if condition.above else value < condition.limit:
            text = "is infinite" if math.isinf(value) else f"is {value:.4g}"
        else:
            continue
        lines.append(f"{condition.text}: {condition.metric} of {cell.label} {text}")
    return lines


def _fits(cell: TableRow, reference: Term) -> bool:
    for key, value in reference.settings.items():
        text = cell.settings.get(key, cell.first.get(f"params.{key}", ""))
        if not same_value(text, setting(value)):
            return False
    return True


def _why_none(cell: TableRow, metric: str) -> str:
    name, _, part = metric.rpartition("_")
    if part not in DIFFERENCES:
        return ""
    why = cell.first.get(f"{name}_apart") or "it is compared with no baseline by this metric"
    return f": {why}"


def _value(cell: TableRow, condition: Condition) -> float | None:
    metric, asked = condition.metric, condition.reference.condition
    if asked is not None:
        values = [value_of(row, asked.metric) for row in cell.finished]
        known = [asked.holds(value) for value in values if value is not None]
        return sum(known) / len(known) if known else None
    if metric in SHARES:
        failed, seeds = cell.failed_share()
        share = failed / seeds if seeds else None
        return 1 - share if share is not None and metric == "escaped_share" else share
    if cell.finished and cell.status(metric) == "infinite":
        return math.inf
    return cell.mean(metric)
