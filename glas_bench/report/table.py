"""Which rows of a csv may share a table: seeds grouped into cells, cells into tables.

A `Row` is one seed as the csv has it: text by column, empty where there is no value.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glas_bench.record import FINISHED, nll_prefix
from glas_bench.stats import is_loose, mean_of
from glas_bench.text import count

Row = dict[str, str]

NBSP = "\u00a0"
"""Keeps what belongs together on one line of a page."""

KEYS = {
    "data": "dataset",
    "contents": "data_hash",
    "binarisation": "binarisation",
    "precision": "params.precision",
    "K": "samples",
    "scoring": "protocol_key",
    "epochs": "params.epochs",
    "T": "params.steps",
    "H": "params.hidden",
    "B": "params.batch",
    "core": "core_version",
    "look": "look",
}
"""What the rows of one table have in common, and the column that holds it."""

COMPARED = ("nll", "elbo", "iw", "refit_iw")
"""Metrics whose differences from the baseline are shown."""

MOST_TABLES = 6
"""Tables of a page that have figures: of runs by hand there may be very many."""

_DESCRIPTIONS = {
    "contents": "the data's contents",
    "scoring": "the scoring protocol",
    "core": "version of the core",
    "look": "preset",
}


def value_of(row: Mapping[str, str], column: str) -> float | None:
    """Return a column's number, or None where it has none."""
    text = row.get(column, "")
    return float(text) if text else None


def draws_of(rows: Iterable[Mapping[str, str]]) -> set[int]:
    """Return with how many draws of their own q rows were scored, as `iw`."""
    return {round(k) for row in rows if (k := value_of(row, "iw_samples"))}


def unit_of(rows: Sequence[Row]) -> str:
    """Return what one x of the rows is: "image", or "line" of text."""
    return "line" if all(row.get("binarisation") == "none" for row in rows) else "image"


def drawn_as(binarisation: str) -> str:
    """Return how x came to be discrete."""
    return "characters" if binarisation == "none" else f"{binarisation} binarisation"


def short(value: str) -> str:
    """Return a setting's value as a reader writes it: 1 for 1.0."""
    return value.removesuffix(".0")


def setting_list(settings: Mapping[str, str]) -> str:
    """Return settings as tables and figures spell them: `grid = centred, draws = 5`."""
    return ", ".join(f"{key} = {short(value)}" for key, value in settings.items())


@dataclass
class TableRow:
    """The seeds of one cell in one table."""

    name: str
    variant: str
    seeds: list[Row]
    common: tuple[str, ...] = ()
    """The values of `KEYS`."""

    @property
    def place(self) -> tuple[str, tuple[str, ...]]:
        """What identifies it on a page."""
        return self.name, self.common

    @property
    def first(self) -> Row:
        """The row of its first seed, for what all seeds share."""
        return self.seeds[0]

    @property
    def finished(self) -> list[Row]:
        """The seeds that ended with numbers."""
        return [row for row in self.seeds if row["status"] == "complete"]

    @property
    def count(self) -> dict[str, int]:
        """How many seeds have each status."""
        return dict(sorted(Counter(row["status"] for row in self.seeds).items()))

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings that distinguish it from other cells of its variant."""
        settings: dict[str, str] = json.loads(self.first.get("settings") or "{}")
        return settings

    @property
    def title(self) -> str:
        """Its variant and settings, as markdown."""
        settings = self.label.removeprefix(self.variant)
        return f"`{self.variant}`" + settings.replace(" = ", f"{NBSP}={NBSP}")

    @property
    def label(self) -> str:
        """Its variant and settings, as plain text."""
        return self.variant + (f" ({setting_list(self.settings)})" if self.settings else "")

    def write(self, columns: Mapping[str, str]) -> None:
        """Write columns into the rows of all seeds."""
        for row in self.seeds:
            row |= columns

    def says(self, column: str) -> str:
        """Return a column's text of the first seed that has any."""
        return next((row[column] for row in self.seeds if row.get(column)), "")

    def mean(self, column: str) -> float | None:
        """Return the mean over finished seeds, if each of them has the number."""
        return mean_of([value_of(row, column) for row in self.finished])

    def spread(self, column: str) -> float | None:
        """Return the standard deviation over finished seeds, if there are two and all have it."""
        if self.mean(column) is None or len(self.finished) < 2:
            return None
        return statistics.stdev(float(row[column]) for row in self.finished)

    def weights(self, name: str, metric: str) -> float | None:
        """Return the mean over seeds of `v_mean` or `doubling_gain` of a metric's log weights."""
        return mean_of(
            [
                value_of(row, (nll_prefix(row) if metric == "nll" else "") + name)
                for row in self.finished
            ]
        )

    def is_loose(self, metric: str) -> bool:
        """Return whether a metric is importance-weighted and may lie far above -log p(x)."""
        if metric not in ("nll", "iw"):
            return False
        return is_loose(*(self.weights(name, metric) for name in ("v_mean", "doubling_gain")))

    def difference(self, metric: str) -> tuple[float, float, float, float | None] | None:
        """Return the difference from its baseline, the ends of its interval, and the adjusted p."""
        estimate, low, high, p = (
            value_of(self.first, f"{metric}_{name}")
            for name in ("difference", "low", "high", "p_bh")
        )
        if estimate is None or low is None or high is None:
            return None
        return estimate, low, high, p

    def status(self, metric: str) -> str:
        """Return `finite`, or the worst of the seeds': `infinite`, `undefined`, `refused` (AIS)."""
        there = {row.get(f"{metric}_status", "") for row in self.finished}
        return next((one for one in ("infinite", "undefined", "refused") if one in there), "finite")

    @property
    def escaped(self) -> bool:
        """Whether any finished seed left the mean image, or is not known not to have."""
        return not self.finished or any(row.get("failed") != "true" for row in self.finished)

    def failed_share(self) -> tuple[int, int]:
        """Return how many finished seeds failed to reconstruct, and how many were checked."""
        flags = [row.get("failed", "") for row in self.finished]
        return flags.count("true"), flags.count("true") + flags.count("false")


@dataclass
class Table:
    """Cells that may share a table."""

    common: dict[str, str]
    rows: list[TableRow] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What its rows are ranked by."""
        return next(
            (cell.first["ranked_by"] for cell in self.order if cell.first.get("rank")), "nll"
        )

    @property
    def order(self) -> list[TableRow]:
        """Its rows, the best first; then those of which no seed left the mean image; then those
        without a number."""

        def by_mean(cell: TableRow) -> tuple[bool, bool, float, str]:
            value = cell.mean(cell.first.get("ranked_by", "nll"))
            return value is None, not cell.escaped, value or 0.0, cell.name

        return sorted(self.rows, key=by_mean)

    @property
    def compared(self) -> list[str]:
        """The metrics by which any of its rows has a difference from its baseline."""
        return [m for m in COMPARED if any(c.first.get(f"{m}_difference") for c in self.rows)]


def table_rows(rows: Sequence[Row]) -> list[TableRow]:
    """Return the cells of a page's rows, in their order, each with what its table has in common.

    A seed without scores has no K, and one without a run no data hash: both go where the cell's
    other seeds are, or where the page has only one place for them. A variant without recurrence
    has neither T nor H, and goes beside cells that agree with it in everything else.
    """
    commons = [_common(row) for row in rows]
    known: dict[str, set[tuple[str, ...]]] = {}
    for row, common in zip(rows, commons, strict=True):
        if all(common[:-1]):
            known.setdefault(row["cell"], set()).add(common)
    everywhere = set().union(*known.values())
    by_place: dict[tuple[str, tuple[str, ...]], TableRow] = {}
    for row, common in zip(rows, commons, strict=True):
        for candidates in () if all(common[:-1]) else (known.get(row["cell"], set()), everywhere):
            fits = [other for other in candidates if _agree(common, other)]
            if len(fits) == 1:
                common = fits[0]
                break
        new = TableRow(row["cell"], row["variant"], [], common)
        by_place.setdefault(new.place, new).seeds.append(row)
    return list(by_place.values())


def _agree(common: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether values agree with others where they are known; the look always is."""
    pairs = zip(common[:-1], other[:-1], strict=True)
    return common[-1] == other[-1] and all(a in ("", b) for a, b in pairs)


def _common(row: Row) -> tuple[str, ...]:
    """Return a row's values of `KEYS`; H is left out where there is no recurrence."""
    values = {name: row.get(column, "") for name, column in KEYS.items()}
    if not values["T"]:
        values["H"] = ""
    return tuple(values.values())


def tables(cells: Sequence[TableRow]) -> list[Table]:
    """Return a page's tables of the cells that have runs, smaller budgets first."""
    groups: dict[tuple[str, ...], list[TableRow]] = {}
    for cell in cells:
        if cell.says("config_key"):  # one of its seeds has a run
            groups.setdefault(cell.common, []).append(cell)

    def order(common: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
        return tuple((float(t), "") if t.isdecimal() else (-1.0, t) for t in common)

    return [
        Table(dict(zip(KEYS, common, strict=True)), groups[common])
        for common in sorted(groups, key=order)
    ]


def differing(*commons: Sequence[str]) -> str:
    """Return a list of the `KEYS` in which values differ; empty where all agree."""
    pairs = zip(KEYS, zip(*commons, strict=True), strict=True)
    return ", ".join(_DESCRIPTIONS.get(name, name) for name, each in pairs if len(set(each)) > 1)


def statuses(cells: Sequence[TableRow]) -> dict[str, dict[str, str]]:
    """Return the status of every seed by the cell's name.

    A cell that was scored by two protocols, or run on other data, is in several tables and counts
    once. A seed that is in several has a status that is not final, if one of them is not.
    """
    by_cell: dict[str, dict[str, str]] = {}
    for cell in cells:
        seeds = by_cell.setdefault(cell.name, {})
        for row in cell.seeds:
            if seeds.get(row["seed"], "complete") in FINISHED:
                seeds[row["seed"]] = row["status"]
    return by_cell


def complete(cells: Sequence[TableRow]) -> tuple[int, int]:
    """Return how many planned cells have no seed left to run, and how many there are."""
    by_cell = statuses(cells).values()
    return sum(FINISHED.issuperset(seeds.values()) for seeds in by_cell), len(by_cell)


def seed_counts(cells: Sequence[TableRow]) -> dict[str, int]:
    """Return how many seeds have each status, sorted by that."""
    counts = Counter(status for seeds in statuses(cells).values() for status in seeds.values())
    return dict(sorted(counts.items()))


def coverage(cells: Sequence[TableRow]) -> str:
    """Return in one line how many cells are complete, and the statuses of their seeds."""
    done, planned = complete(cells)
    counts = seed_counts(cells).items()
    listed = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts)
    return f"{done} of {count(planned, 'cell')} complete (seeds: {listed})"


def protocol(row: Row) -> dict[str, Any]:
    """Return the scoring protocol of a row; empty where it is not known."""
    try:
        value = json.loads(row.get("protocol", ""))
    except ValueError:  # none, or one that was edited in a csv
        return {}
    return value if isinstance(value, dict) else {}
