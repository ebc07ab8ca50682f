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

from glas_bench.errors import UsageError, nearest, unknown
from glas_bench.report.table import TableRow
from glas_bench.study.claims import METRICS, SHARES, Reference, parse
from glas_bench.text import setting

FORM = "METRIC(VARIANT, setting=value, ...) > NUMBER, or the same with <"
DIFFERENCES = ("difference", "low", "high")
"""What there is of the difference from the baseline: `nll_difference`, `nll_low`, `nll_high`."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Condition:
    """A parsed expression."""

    text: str
    metric: str
    reference: Reference
    above: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Tell whether a value is on the wrong side."""
        return value > self.limit if self.above else value < self.limit


def read(text: str) -> Condition:
    """Parse an expression.

    Raises:
        UsageError: it has not that form, or names a metric that there is not.
    """
    match = re.fullmatch(rf"\s*([^<>()]*\([^<>()]*\))\s*([<>])\s*({_NUMBER})\s*", text)
    if match is None:
        raise UsageError(
            f"--fail-if {text!r} cannot be read; write {FORM}, e.g. 'elbo(cauchy) > 90'. "
            f"Metrics: {', '.join(sorted(METRICS))}; of the difference from the baseline: "
            f"{', '.join(f'nll_{part}' for part in DIFFERENCES)}, and so for each metric."
        )
    side, sign, limit = match.groups()
    side, part = _split(side)
    try:
        parsed = parse(f"{side} {sign} {side}")
    except UsageError as error:
        raise UsageError(f"--fail-if {text!r}: {error}") from error
    metric = f"{parsed.metric}_{part}" if part else parsed.metric
    if part and parsed.metric in SHARES:
        raise UsageError(f"--fail-if {text!r}: shares of seeds have no interval; name a metric")
    return Condition(text, metric, parsed.left, sign == ">", float(limit))


def _split(side: str) -> tuple[str, str]:
    """Return a side without what it says of a difference, and that."""
    name, bracket, rest = side.partition("(")
    metric, _, part = name.strip().rpartition("_")
    return (f"{metric}{bracket}{rest}", part) if part in DIFFERENCES else (side, "")


def tripped(condition: Condition, found: Sequence[TableRow]) -> list[str]:
    """Return why a condition holds, a line for each cell in which it does; nothing: it does not.

    A cell without the number trips it: what cannot be shown to be right is not.

    Raises:
        UsageError: it means no cell of the pages.
    """
    reference = condition.reference
    own = [cell for cell in found if cell.variant == reference.variant]
    if not own:
        raise UsageError(
            f"--fail-if {condition.text!r}: "
            f"{unknown('variant of these pages', reference.variant, {c.variant for c in found})}"
        )
    meant = [cell for cell in own if _fits(cell, reference)]
    if not meant:
        got = ", ".join(f"{key}={setting(value)}" for key, value in reference.settings.items())
        there = [cell.label for cell in own]
        raise UsageError(
            f"--fail-if {condition.text!r}: no cell of {reference.variant} has {got}."
            f"{nearest(f'{reference.variant} ({got})', there)} There are: {', '.join(there)}."
        )
    lines = []
    for cell in meant:
        value = _value(cell, condition.metric)
        if value is None:
            why = _why_none(cell, condition.metric)
            lines.append(f"{condition.text}: {condition.metric} of {cell.label} has no number{why}")
        elif condition.holds(value):
            shown = "infinite" if math.isinf(value) else f"{value:.4g}"
            lines.append(f"{condition.text}: {condition.metric} of {cell.label} is {shown}")
    return lines


def _fits(cell: TableRow, reference: Reference) -> bool:
    def value_of(key: str) -> str:
        return cell.settings.get(key, cell.first.get(f"params.{key}", ""))

    return all(_same(value_of(key), value) for key, value in reference.settings.items())


def _same(told: str, value: object) -> bool:
    if told == setting(value):
        return True
    try:
        return float(told) == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _why_none(cell: TableRow, metric: str) -> str:
    """Say why there is no difference, where one was asked for."""
    name, _, part = metric.rpartition("_")
    if part not in DIFFERENCES:
        return ""
    told = cell.first.get(f"{name}_apart") or "it is compared with no baseline by this metric"
    return f": {told}"


def _value(cell: TableRow, metric: str) -> float | None:
    if metric in SHARES:
        failed, known = cell.failed_share()
        return failed / known if known else None
    if cell.finished and cell.status(metric) == "infinite":
        return math.inf
    return cell.mean(metric)
