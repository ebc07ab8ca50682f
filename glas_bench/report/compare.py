"""Arms paired image by image: differences, Holm's correction over a study, possible ranks.

What it finds is written into the rows, so that the csv has it: `nll_difference`, `nll_low`,
`nll_high`, `nll_p`, `nll_p_holm`, `nll_pairs` (how many seeds and images) or `nll_apart` (why there
is none), the same for every metric that the study compares by; `rank`, `rank_to` and `ranked_by`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from glas_bench.report.cells import Cell, Row, apart, sections
from glas_bench.stats import ALPHA, PairedDifference, holm, mcnemar_exact, paired_difference
from glas_bench.study.claims import SHARES

Values = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""By metric and (config_key, seed): nats [images]."""


@dataclass
class Shares:
    """Two cells' shares of seeds that could not reconstruct, seed by seed."""

    only_a: int
    only_b: int
    failed: tuple[int, int]
    """Seeds that failed in a and in b, of those compared."""
    seeds: int
    """Seeds that both arms finished and that are compared here."""
    estimate: float
    """a's share minus b's."""
    p: float
    diverged: int = 0
    """Seeds that are missing here because an arm diverged."""


@dataclass
class Comparison:
    """a minus b by one metric, or why there is no such thing."""

    metric: str
    a: Cell
    b: Cell
    difference: PairedDifference | None = None
    shares: Shares | None = None
    why_not: str = ""
    seeds: int = 0
    """Seeds that both arms have run, finished or diverged."""
    p_holm: float | None = None
    family: int = 1
    """Comparisons that its p was adjusted over."""

    @property
    def p(self) -> float | None:
        """The p-value before correction."""
        found = self.difference or self.shares
        return found.p if found else None


@dataclass
class Comparisons:
    """A page's comparisons, each made once; all of one metric are one family."""

    values: Values
    made: dict[tuple[str, str, tuple[str, ...], str, tuple[str, ...]], Comparison] = field(
        default_factory=dict
    )

    def of(self, metric: str, a: Cell, b: Cell) -> Comparison:
        """Return a minus b; asked for the other way round, it is another comparison."""
        identity = (metric, a.name, a.common, b.name, b.common)
        if identity not in self.made:
            self.made[identity] = compare(metric, a, b, self.values)
        return self.made[identity]

    def correct(self) -> None:
        """Adjust the p-values of each metric by Holm; a pair counts once, whichever way round."""
        for metric in sorted({identity[0] for identity in self.made}):
            families: dict[frozenset[tuple[str, tuple[str, ...]]], list[Comparison]] = {}
            for identity, found in sorted(self.made.items(), key=lambda item: item[0]):
                if identity[0] == metric and found.p is not None:
                    pair = frozenset({identity[1:3], identity[3:5]})
                    families.setdefault(pair, []).append(found)
            adjusted = holm([_p(each[0]) for each in families.values()])
            for same, p in zip(families.values(), adjusted, strict=True):
                for found in same:
                    found.p_holm = p
                    found.family = len(families)


def _p(found: Comparison) -> float:
    assert found.p is not None
    return found.p


def compare(metric: str, a: Cell, b: Cell, values: Values) -> Comparison:
    """Return a minus b, paired by the seeds, and the images, that both have."""
    found = Comparison(metric, a, b)
    if why := apart(a, b):
        found.why_not = f"they differ in {why} and cannot be compared"
        return found
    ran = [_by_seed(cell) for cell in (a, b)]
    both = sorted(set(ran[0]) & set(ran[1]))
    ended = [seed for seed in both if all(_ended(rows[seed]) for rows in ran)]
    found.seeds = len(ended)
    done = [seed for seed in ended if all(rows[seed]["status"] == "complete" for rows in ran)]
    if metric in SHARES:
        told = [[rows[seed].get("failed", "") for seed in done] for rows in ran]
        _shares(found, told, len(ended) - len(done))
        return found
    for cell in (a, b):
        if word := next((w for w in (cell.status(metric),) if w != "finite"), ""):
            found.why_not = f"{metric} of {cell.label} is {word}"
            return found
    if metric == "ais" and len(_ais_protocols([rows[seed] for rows in ran for seed in done])) > 1:
        found.why_not = "they were scored by different protocols of AIS"
        return found
    there = values.get(metric, {})
    keys = [[(rows[seed]["config_key"], seed) for seed in done] for rows in ran]
    paired = [
        (there[x], there[y])
        for x, y in zip(*keys, strict=True)
        if x in there and y in there and _same_images(metric, x, y, values)
    ]
    if not paired:
        found.why_not = f"no seed of both has {metric}" if both else "they have no seed in common"
    elif len({row.shape for pair in paired for row in pair}) > 1:
        found.why_not = "they were scored on different images"
    elif not all(np.isfinite(row).all() for pair in paired for row in pair):
        found.why_not = f"{metric} is infinite for some images"
    elif paired[0][0].size < 2:
        found.why_not = "one image has no spread"
    else:
        arms = [np.stack([pair[i] for pair in paired]) for i in (0, 1)]
        found.difference = paired_difference(*arms, diverged=len(ended) - len(done))
    return found


def _same_images(metric: str, x: tuple[str, int], y: tuple[str, int], values: Values) -> bool:
    """Tell whether two scorings by AIS are of the same images; other scores are of all."""
    if metric != "ais":
        return True
    images = values.get("image", {})
    return x in images and y in images and np.array_equal(images[x], images[y])


def _ais_protocols(rows: Sequence[Row]) -> set[str]:
    """Return the keys of the protocols that AIS scored rows by."""
    return {row.get("ais_protocol_key", "") for row in rows} - {""}


def _by_seed(cell: Cell) -> dict[int, Row]:
    return {int(row["seed"]): row for row in cell.seeds}


def _ended(row: Row) -> bool:
    return row["status"] in ("complete", "diverged")


def _shares(found: Comparison, told: Sequence[Sequence[str]], diverged: int) -> None:
    pairs = [pair for pair in zip(*told, strict=True) if all(pair)]
    if not pairs:
        found.why_not = "no seed of both was looked at"
        return
    only_a = sum(a == "true" and b == "false" for a, b in pairs)
    only_b = sum(a == "false" and b == "true" for a, b in pairs)
    share = (only_a - only_b) / len(pairs)
    p = mcnemar_exact(only_a, only_b)
    failed = (sum(a == "true" for a, _ in pairs), sum(b == "true" for _, b in pairs))
    found.shares = Shares(only_a, only_b, failed, len(pairs), share, p, diverged)


# --------------------------------------------------------------------------- baselines


def baseline_of(cell: Cell, found: Sequence[Cell]) -> Cell | None:
    """Return what a cell is compared with: as planned, else the control nearest to it."""
    if planned := cell.first.get("baseline"):
        fits = [other for other in found if other.name == planned]
        same = [other for other in fits if other.common == cell.common]
        return next(iter([*same, *fits]), None)
    if cell.first.get("is_baseline") or cell.first.get("preset"):  # a study plans its baselines
        return None
    controls = [
        other for other in found if other.first.get("is_baseline") and other.common == cell.common
    ]

    def disagreements(other: Cell) -> tuple[int, str]:
        mine, theirs = cell.first, other.first
        names = [name for name in mine if name.startswith("params.") and theirs.get(name)]
        return sum(mine[name] != theirs[name] for name in names), other.name

    return min(controls, key=disagreements, default=None)


def write_differences(found: Sequence[Cell], metrics: Sequence[str], made: Comparisons) -> None:
    """Write each cell's differences from its baseline into its rows; `made` is corrected."""
    for cell in found:
        baseline = baseline_of(cell, found)
        if baseline is None:
            continue
        for metric in metrics:
            for name, value in columns(made.of(metric, cell, baseline)).items():
                for row in cell.seeds:
                    row[f"{metric}_{name}"] = value
        for row in cell.seeds:
            row["compared_with"] = baseline.name


def columns(found: Comparison) -> Row:
    """Return a comparison as the csv has it."""
    difference = found.difference
    if difference is None:
        return {"apart": found.why_not}
    estimate, low, high, p = difference
    numbers = {"difference": estimate, "low": low, "high": high, "p": p, "p_holm": found.p_holm}
    told = {name: repr(float(value)) for name, value in numbers.items() if value is not None}
    return {**told, "pairs": difference.label}


# --------------------------------------------------------------------------- ranks


def ranked_by(found: Sequence[Cell]) -> str:
    """Return what a table is ranked by: nll, or iw where a row with weights lacks nll."""
    weighed = [cell for cell in found if cell.mean("iw") is not None]
    lacks = any(cell.mean("nll") is None for cell in weighed)
    return "iw" if weighed and lacks else "nll"


def write_ranks(found: Sequence[Cell], values: Values) -> None:
    """Write into the rows which ranks they may have: those that no row shown to be better, and none
    shown to be worse, takes.

    So Mogstad, Romano, Shaikh and Wilhelm 2024, section 3, form confidence sets of ranks; here
    each pair is tested at its own level, so a set holds of its row alone, not of all at once.
    """
    for section in sections(found):
        metric = ranked_by(section.cells)
        order = [cell for cell in section.cells if cell.mean(metric) is not None]
        above, below = [0] * len(order), [0] * len(order)
        for (i, a), (j, b) in combinations(enumerate(order), 2):
            if sign := _shown(metric, a, b, values):
                above[i if sign > 0 else j] += 1
                below[j if sign > 0 else i] += 1
        for better, worse, cell in zip(above, below, order, strict=True):
            for row in cell.seeds:
                row |= {"rank": str(1 + better), "rank_to": str(len(order) - worse)}
                row["ranked_by"] = metric


def _shown(metric: str, a: Cell, b: Cell, values: Values) -> int:
    """Return the sign of a minus b where it is shown, p not adjusted, else 0.

    One seed tells images apart, not what another seed would do.
    """
    finished = [{row["seed"] for row in cell.finished} for cell in (a, b)]
    if len(finished[0] & finished[1]) < 2:
        return 0
    found = compare(metric, a, b, values).difference
    if found is None or found.seeds < 2 or found.p >= ALPHA:
        return 0
    return 1 if found.estimate > 0 else -1


def pairs_to_correct(
    found: Sequence[Cell], metrics: Sequence[str]
) -> Iterator[tuple[str, Cell, Cell]]:
    """Yield every comparison of a cell with its baseline."""
    for cell in found:
        baseline = baseline_of(cell, found)
        for metric in metrics if baseline is not None else ():
            assert baseline is not None
            yield metric, cell, baseline
