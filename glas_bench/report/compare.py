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
from dataclasses import replace
from itertools import combinations

import numpy as np

from glas_bench.report.table import TableRow, differing, draws_of, tables, value_of
from glas_bench.sequential import with_images
from glas_bench.stats import (
    ALPHA,
    PairedDifference,
    different_draws,
    false_discovery_rate,
    pair_arms,
    paired_difference,
)

Values = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""By metric and (config_key, seed): nats [images]."""


def compare(metric: str, a: TableRow, b: TableRow, values: Values) -> PairedDifference | str:
    """Return a minus b, paired by the seeds and images that both have, or why there is none.

    A seed that was read from a csv has a mean alone (see `sequential.with_images`).
    """
    if why := differing(a.common, b.common):
        return f"they differ in {why} and cannot be compared"
    for cell in (a, b):
        if (status := cell.status(metric)) != "finite":
            return f"{metric} of {cell.label} is {status}"
    by_seed = [{int(row["seed"]): row for row in cell.seeds} for cell in (a, b)]
    both = [
        [arm[seed] for arm in by_seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())
    ]
    ended = [two for two in both if {row["status"] for row in two} <= {"complete", "diverged"}]
    done = [two for two in ended if {row["status"] for row in two} == {"complete"}]
    if metric == "iw" and (why := different_draws(draws_of(row for two in done for row in two))):
        return why
    if not both:
        return "they have no seed in common"
    there = values.get(metric, {})
    arms: tuple[dict[int, np.ndarray], ...] = ({}, {})
    for two in done:
        for arm, row in zip(arms, two, strict=True):
            key = row["config_key"], int(row["seed"])
            if key in there:
                arm[key[1]] = there[key]
            elif (mean := value_of(row, metric)) is not None:  # read from a csv
                arm[key[1]] = np.array([mean])
    complete = [_with_images(arm, cell, there) for arm, cell in zip(arms, (a, b), strict=True)]
    pairs = pair_arms(metric, *complete)
    if isinstance(pairs, str):
        return pairs
    found = paired_difference(pairs.a_SB, pairs.b_SB, diverged=len(ended) - len(done))
    means = sum(min(arm[seed].size for arm in arms) < 2 for seed in pairs.seeds)
    return (
        replace(found, label=f"{found.label}, {means} of the seeds by their means")
        if means
        else found
    )


def _with_images(
    arm: Mapping[int, np.ndarray], cell: TableRow, there: Mapping[tuple[str, int], np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Return values of images [B] for all seeds of an arm; none where no seed of it has any.

    Seeds that have some may be seeds that the page does not plan.
    """
    keys = {row["config_key"] for row in cell.finished}
    known = [values for (key, _), values in there.items() if key in keys]
    if all(values.size > 1 for values in arm.values()) or len({each.shape for each in known}) > 1:
        return arm
    return with_images(arm, known) if known else {}


def write_comparisons(cells: Sequence[TableRow], values: Values, metrics: Sequence[str]) -> None:
    """Compare the cells of a page with their baselines, rank them, and write both into the rows.

    Args:
        cells: of the page.
        values: per-image values of the metrics.
        metrics: by which cells are compared with their baselines; the p-values of each are adjusted
            as one family (Benjamini and Hochberg 1995).
    """
    baselines = [(cell, other) for cell in cells if (other := baseline_of(cell, cells))]
    for cell, other in baselines:
        cell.write({"compared_with": other.name})
    for metric in metrics:
        made = [(cell, compare(metric, cell, other, values)) for cell, other in baselines]
        known = [(cell, one) for cell, one in made if isinstance(one, PairedDifference)]
        tested = [(cell, one) for cell, one in known if one.seeds > 1]  # one seed has no p
        adjusted = false_discovery_rate([one.p for _, one in tested])
        for cell, one in known:
            estimate, low, high, _ = one
            _write(cell, metric, {"difference": estimate, "low": low, "high": high})
            cell.write({f"{metric}_pairs": one.label})
        for (cell, one), p_bh in zip(tested, adjusted, strict=True):
            _write(cell, metric, {"p": one.p, "p_bh": p_bh})
        for cell, why in made:
            if isinstance(why, str):
                cell.write({f"{metric}_apart": why})
    write_ranks(cells, values)


def _write(cell: TableRow, metric: str, numbers: Mapping[str, float]) -> None:
    cell.write({f"{metric}_{name}": repr(value) for name, value in numbers.items()})


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


def ranked_by(cells: Sequence[TableRow]) -> str:
    """Return what a table is ranked by: nll, or iw where a row with weights lacks nll."""
    weighed = [cell for cell in cells if cell.mean("iw") is not None]
    return "iw" if any(cell.mean("nll") is None for cell in weighed) else "nll"


def write_ranks(cells: Sequence[TableRow], values: Values) -> None:
    """Write into the rows which ranks they may have: after the rows shown to be better, and before
    those shown to be worse; none where no seed left the mean image. A row whose bound is loose may
    lie anywhere below it, so it is not shown to be worse.

    So Mogstad, Romano, Shaikh and Wilhelm 2024, section 3, form confidence sets of ranks; here
    each pair is tested at its own level, so a set holds of its row alone, not of all at once.
    """
    for table in tables(cells):
        metric = ranked_by(table.rows)
        order = [cell for cell in table.rows if cell.mean(metric) is not None and cell.escaped]
        seeds = [{row["seed"] for row in cell.finished} for cell in order]
        better, worse = [0] * len(order), [0] * len(order)
        for (i, a), (j, b) in combinations(enumerate(order), 2):
            if len(seeds[i] & seeds[j]) < 2:  # one distinguishes images, not what others would give
                continue
            one = compare(metric, a, b, values)
            if isinstance(one, PairedDifference) and one.seeds > 1 and one.p < ALPHA:
                lower, upper = (j, i) if one.estimate > 0 else (i, j)
                if order[upper].is_loose(metric):
                    continue
                better[upper] += 1
                worse[lower] += 1
        for above, below, cell in zip(better, worse, order, strict=True):
            ranks = {"rank": str(1 + above), "rank_to": str(len(order) - below)}
            cell.write(ranks | {"ranked_by": metric})
