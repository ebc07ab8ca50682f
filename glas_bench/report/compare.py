"""Cells compared image by image: differences and ranks.

Differences from a baseline are exploratory: no claim is about them, their p-values are adjusted for
the false discovery rate, and no verdict rests on them.

Results are written into the rows, so that the csv has them: `nll_difference`, `nll_low`,
`nll_high`, `nll_p`, `nll_p_bh`, `nll_pairs` (how many seeds and images) or `nll_apart` (why there
is no difference), the same for every metric that the study compares by; `rank`, `rank_to` and
`ranked_by`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from glas_bench.report.table import Row, TableRow, differing, tables
from glas_bench.stats import (
    ALPHA,
    PairedDifference,
    false_discovery_rate,
    pair_arms,
    paired_difference,
)

Values = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""By metric and (config_key, seed): nats [images]."""


@dataclass
class Comparison:
    """a minus b by one metric, or the reason why they cannot be compared."""

    metric: str
    result: PairedDifference | None = None
    why_not: str = ""
    p_bh: float | None = None
    """p, adjusted for the false discovery rate over the comparisons of the metric."""


@dataclass
class Comparisons:
    """The comparisons of a page, each made once; those of one metric are one family."""

    values: Values
    made: dict[tuple[Any, ...], Comparison] = field(default_factory=dict)

    def of(self, metric: str, a: TableRow, b: TableRow) -> Comparison:
        """Return a minus b; b minus a is another comparison."""
        identity = (metric, a.place, b.place)
        if identity not in self.made:
            self.made[identity] = compare(metric, a, b, self.values)
        return self.made[identity]

    def correct(self) -> None:
        """Adjust the p-values of each metric (Benjamini and Hochberg 1995).

        A pair counts once, in either direction.
        """
        families: dict[str, dict[frozenset[Any], list[Comparison]]] = {}
        for (metric, *pair), comparison in sorted(self.made.items(), key=lambda item: item[0]):
            if comparison.result is not None:
                families.setdefault(metric, {}).setdefault(frozenset(pair), []).append(comparison)
        for family in families.values():
            p_values = [each[0].result.p for each in family.values() if each[0].result is not None]
            for comparisons, p in zip(family.values(), false_discovery_rate(p_values), strict=True):
                for comparison in comparisons:
                    comparison.p_bh = p


def compare(metric: str, a: TableRow, b: TableRow, values: Values) -> Comparison:
    """Return a minus b, paired by the seeds, and the images, that both have."""
    comparison = Comparison(metric)
    if why := differing(a.common, b.common):
        comparison.why_not = f"they differ in {why} and cannot be compared"
        return comparison
    ended = [
        {int(row["seed"]): row for row in cell.seeds if row["status"] in ("complete", "diverged")}
        for cell in (a, b)
    ]
    both = [(ended[0][seed], ended[1][seed]) for seed in sorted(ended[0].keys() & ended[1].keys())]
    done = [pair for pair in both if all(row["status"] == "complete" for row in pair)]
    result = _difference(metric, a, b, done, len(both) - len(done), values)
    if isinstance(result, str):
        comparison.why_not = result
    else:
        comparison.result = result
    return comparison


def _difference(
    metric: str,
    a: TableRow,
    b: TableRow,
    done: Sequence[tuple[Row, Row]],
    diverged: int,
    values: Values,
) -> PairedDifference | str:
    """Return the difference over the seeds that both finished, or why there is none."""
    for cell in (a, b):
        if (status := cell.status(metric)) != "finite":
            return f"{metric} of {cell.label} is {status}"
    protocols = {row.get("ais_protocol_key", "") for pair in done for row in pair} - {""}
    if metric == "ais" and len(protocols) > 1:
        return "they were scored by different protocols of AIS"
    if not {row["seed"] for row in a.seeds} & {row["seed"] for row in b.seeds}:
        return "they have no seed in common"
    there, images = values.get(metric, {}), values.get("image", {})
    arms: tuple[dict[int, np.ndarray], ...] = ({}, {})
    for pair in done:
        keys = [(row["config_key"], int(row["seed"])) for row in pair]
        x, y = (images.get(key) for key in keys)
        if metric == "ais" and (x is None or y is None or not np.array_equal(x, y)):
            continue
        for arm, key in zip(arms, keys, strict=True):
            if key in there:
                arm[key[1]] = there[key]
    pairs = pair_arms(metric, *arms)
    if isinstance(pairs, str):
        return pairs
    return paired_difference(pairs.a_SB, pairs.b_SB, diverged=diverged)


# --------------------------------------------------------------------------- all of a page


def write_comparisons(cells: Sequence[TableRow], values: Values, metrics: Sequence[str]) -> None:
    """Compare the cells of a page with their baselines, rank them, and write both into the rows.

    Args:
        cells: of the page.
        values: per-image values of the metrics.
        metrics: by which cells are compared with their baselines.
    """
    made = Comparisons(values)
    baselines = [(cell, other) for cell in cells if (other := baseline_of(cell, cells))]
    for cell, baseline in baselines:
        for metric in metrics:
            made.of(metric, cell, baseline)
    made.correct()
    for cell, baseline in baselines:
        columns = {"compared_with": baseline.name}
        for metric in metrics:
            about = _columns(made.of(metric, cell, baseline))
            columns |= {f"{metric}_{name}": value for name, value in about.items()}
        cell.write(columns)
    write_ranks(cells, values)


def baseline_of(cell: TableRow, cells: Sequence[TableRow]) -> TableRow | None:
    """Return what a cell is compared with: as planned, else the control with nearest settings."""
    if planned := cell.first.get("baseline"):
        fits = [other for other in cells if other.name == planned]
        same = [other for other in fits if other.common == cell.common]
        return next(iter(same + fits), None)
    if cell.first.get("is_baseline") or cell.first.get("preset"):  # a study plans its baselines
        return None
    controls = [
        other for other in cells if other.first.get("is_baseline") and other.common == cell.common
    ]

    def disagreements(other: TableRow) -> tuple[int, str]:
        mine, theirs = cell.first, other.first
        names = [name for name in mine if name.startswith("params.") and theirs.get(name)]
        return sum(mine[name] != theirs[name] for name in names), other.name

    return min(controls, key=disagreements, default=None)


def _columns(comparison: Comparison) -> Row:
    """Return a comparison as the csv has it."""
    result = comparison.result
    if result is None:
        return {"apart": comparison.why_not}
    estimate, low, high, p = result
    numbers = {"difference": estimate, "low": low, "high": high, "p": p}
    numbers |= {} if comparison.p_bh is None else {"p_bh": comparison.p_bh}
    return {name: repr(float(value)) for name, value in numbers.items()} | {"pairs": result.label}


# --------------------------------------------------------------------------- ranks


def ranked_by(cells: Sequence[TableRow]) -> str:
    """Return what a table is ranked by: nll, or iw where a row with weights lacks nll."""
    weighed = [cell for cell in cells if cell.mean("iw") is not None]
    return "iw" if any(cell.mean("nll") is None for cell in weighed) else "nll"


def write_ranks(cells: Sequence[TableRow], values: Values) -> None:
    """Write into the rows which ranks they may have: after the rows shown to be better, and before
    those shown to be worse; none where no seed left the mean image.

    So Mogstad, Romano, Shaikh and Wilhelm 2024, section 3, form confidence sets of ranks; here
    each pair is tested at its own level, so a set holds of its row alone, not of all at once.
    """
    for table in tables(cells):
        metric = ranked_by(table.rows)
        order = [cell for cell in table.rows if cell.mean(metric) is not None and cell.escaped]
        better, worse = [0] * len(order), [0] * len(order)
        for (i, a), (j, b) in combinations(enumerate(order), 2):
            if sign := _shown(metric, a, b, values):
                better[i if sign > 0 else j] += 1
                worse[j if sign > 0 else i] += 1
        for above, below, cell in zip(better, worse, order, strict=True):
            ranks = {"rank": str(1 + above), "rank_to": str(len(order) - below)}
            cell.write(ranks | {"ranked_by": metric})


def _shown(metric: str, a: TableRow, b: TableRow, values: Values) -> int:
    """Return the sign of a minus b where it is shown with p not adjusted, else 0.

    One seed distinguishes images, not what another seed would give.
    """
    seeds = [{row["seed"] for row in cell.finished} for cell in (a, b)]
    if len(seeds[0] & seeds[1]) < 2:
        return 0
    result = compare(metric, a, b, values).result
    if result is None or result.seeds < 2 or result.p >= ALPHA:
        return 0
    return 1 if result.estimate > 0 else -1
