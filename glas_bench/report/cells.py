"""Seeds put together into cells, and cells into sections: rows that may share a table.

A row is one seed as the csv has it: text by column, empty where there is nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Row = dict[str, str]

NBSP = "\u00a0"
"""Keeps what belongs together on one line of a page."""

FINISHED = frozenset({"complete", "diverged", "not_applicable"})
"""Statuses of a seed of which nothing more is to come."""

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
"""What rows of one table have in common, and the column that says it."""

DRAWN = 6
"""Tables of a page that have figures: of what was run by hand there may be very many."""

IN_WORDS = {
    "contents": "the data's contents",
    "scoring": "the scoring protocol",
    "core": "version of the core",
    "look": "preset",
}


def number(row: Mapping[str, str], column: str) -> float | None:
    """Return a column's number, None where it has none."""
    text = row.get(column, "")
    return float(text) if text else None


def protocol(row: Mapping[str, str]) -> dict[str, Any]:
    """Return what the row was scored by; nothing where that is not known."""
    try:
        found = json.loads(row.get("protocol", ""))
    except ValueError:  # none, or cut short by a server's limit
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class Cell:
    """A cell's seeds as the record has them."""

    name: str
    variant: str
    seeds: list[Row]
    common: tuple[str, ...] = ()
    """The values of `KEYS`."""

    @property
    def first(self) -> Row:
        """The row of its first seed, for what all seeds share."""
        return self.seeds[0]

    @property
    def key(self) -> str:
        """Its config_key; empty where it has no run."""
        return next((row["config_key"] for row in self.seeds if row.get("config_key")), "")

    @property
    def finished(self) -> list[Row]:
        """The seeds that ended with numbers."""
        return [row for row in self.seeds if row["status"] == "complete"]

    @property
    def count(self) -> dict[str, int]:
        """How many seeds have each status."""
        statuses = [row["status"] for row in self.seeds]
        return {status: statuses.count(status) for status in sorted(set(statuses))}

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to come of it."""
        return all(row["status"] in FINISHED for row in self.seeds)

    @cached_property
    def settings(self) -> dict[str, str]:
        """What tells it from other cells of its variant."""
        found: dict[str, str] = json.loads(self.first.get("settings") or "{}")
        return found

    @property
    def title(self) -> str:
        """Its variant and settings, as markdown."""
        told = (f"{key}{NBSP}={NBSP}{short(value)}" for key, value in self.settings.items())
        return f"`{self.variant}`" + (f" ({', '.join(told)})" if self.settings else "")

    @property
    def label(self) -> str:
        """The same as plain text, for figures."""
        told = ", ".join(f"{key}={short(value)}" for key, value in self.settings.items())
        return self.variant + (f" ({told})" if told else "")

    def says(self, column: str) -> str:
        """Return what the first row that says anything says."""
        return next((row[column] for row in self.seeds if row.get(column)), "")

    def values(self, column: str) -> list[float]:
        """Return the numbers of the finished seeds that have one."""
        found = [number(row, column) for row in self.finished]
        return [value for value in found if value is not None]

    def mean(self, column: str) -> float | None:
        """Return the mean over finished seeds, if each of them has the number."""
        values = self.values(column)
        complete = bool(values) and len(values) == len(self.finished)
        return math.fsum(values) / len(values) if complete else None

    def spread(self, column: str) -> float | None:
        """Return the standard deviation over finished seeds, if there are two."""
        mean, values = self.mean(column), self.values(column)
        if mean is None or len(values) < 2:
            return None
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def status(self, metric: str) -> str:
        """Return `finite`, or the worst of the seeds': `infinite`, `undefined`, `refused` (AIS)."""
        told = {row.get(f"{metric}_status", "") for row in self.finished}
        return next(
            (word for word in ("infinite", "undefined", "refused") if word in told), "finite"
        )

    def failed_share(self) -> tuple[int, int]:
        """Return how many finished seeds could not reconstruct, of how many that were looked at."""
        told = [row.get("failed", "") for row in self.finished]
        return told.count("true"), told.count("true") + told.count("false")


@dataclass
class Section:
    """Cells that may share a table."""

    common: dict[str, str]
    cells: list[Cell] = field(default_factory=list)


def short(value: str) -> str:
    """Return a setting's value as a reader writes it: 1 for 1.0."""
    return value.removesuffix(".0")


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Return the cells of a page's rows, in their order, each with what its table has in common.

    A seed without scores has no K of its own, one without a run no data: they belong where their
    cell's other seeds do, or where the page has but one place for them. A variant without
    recurrence has neither T nor H, and stands beside those that agree with it in all else.
    """
    known = [_common(row) for row in rows]
    whole: dict[str, set[tuple[str, ...]]] = {}
    for row, common in zip(rows, known, strict=True):
        if all(common[:-1]):
            whole.setdefault(row["cell"], set()).add(common)
    everywhere = sorted(set().union(*whole.values()))
    found: dict[tuple[str, tuple[str, ...]], Cell] = {}
    for row, common in zip(rows, known, strict=True):
        place = common
        if not all(common[:-1]):
            place = _placed(common, sorted(whole.get(row["cell"], ())), everywhere)
        cell = found.setdefault((row["cell"], place), Cell(row["cell"], row["variant"], [], place))
        cell.seeds.append(row)
    return list(found.values())


def _common(row: Row) -> tuple[str, ...]:
    """Return a row's values of `KEYS`; H is the size of a recurrence, where there is one."""
    told = {name: row.get(column, "") for name, column in KEYS.items()}
    if not told["T"]:
        told["H"] = ""
    return tuple(told.values())


def _placed(
    common: tuple[str, ...], own: Sequence[tuple[str, ...]], whole: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
    for candidates in (own, whole):
        fits = [other for other in candidates if _agree(common, other)]
        if len(fits) == 1:
            return fits[0]
    return common


def _agree(common: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(a in ("", b) for a, b in zip(common[:-1], other[:-1], strict=True)) and (
        common[-1] == other[-1]
    )


def sections(found: Sequence[Cell]) -> list[Section]:
    """Return the cells by what they have in common, smaller budgets first."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found:
        groups.setdefault(cell.common, []).append(cell)
    return [
        Section(dict(zip(KEYS, common, strict=True)), groups[common])
        for common in sorted(groups, key=lambda values: tuple(map(_order, values)))
    ]


def tables(found: Sequence[Cell]) -> list[Section]:
    """Return a page's tables, in their order: the sections of the cells that have been begun."""
    return sections([cell for cell in found if cell.key])


def differing(found: Sequence[Section]) -> str:
    """Return in words what keeps sections apart."""
    return ", ".join(
        IN_WORDS.get(name, name)
        for name in KEYS
        if len({section.common[name] for section in found}) > 1
    )


def apart(a: Cell, b: Cell) -> str:
    """Return in words what keeps two cells from one table; nothing where they may share one."""
    pairs = zip(KEYS, a.common, b.common, strict=True)
    return ", ".join(IN_WORDS.get(name, name) for name, x, y in pairs if x != y)


def planned(found: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Return each planned cell's seeds with their statuses, by the cell's name.

    A cell whose seeds were scored otherwise, or run on other data, stands in several tables and is
    one cell nevertheless. Of a seed that stands in several, it is a status that is not finished.
    """
    told: dict[str, dict[str, str]] = {}
    for cell in found:
        seeds = told.setdefault(cell.name, {})
        for row in cell.seeds:
            if seeds.get(row["seed"], "complete") in FINISHED:
                seeds[row["seed"]] = row["status"]
    return told


def complete(found: Sequence[Cell]) -> tuple[int, int]:
    """Return of how many planned cells nothing more is to come, and how many there are."""
    told = planned(found).values()
    return sum(FINISHED.issuperset(seeds.values()) for seeds in told), len(told)


def _order(text: str) -> tuple[float, str]:
    """Return what sorts numbers as numbers."""
    return (float(text), "") if text.isdecimal() else (-1.0, text)


def statuses(cell: Cell) -> Iterator[tuple[str, list[Row]]]:
    """Yield each status that is not `complete` with its seeds."""
    for status in cell.count:
        if status != "complete":
            yield status, [row for row in cell.seeds if row["status"] == status]
