"""Trials as plain values: what of a cell the database holds, and what a worker is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glas_bench.sweep.plan import Item

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ABOUT = "glas_bench:about"
OWNER = "glas_bench:owner"
LOST = "glas_bench:lost"
BEGUN = "glas_bench:begun"
WITHDRAWN = "glas_bench:withdrawn"
"""Optuna's system attributes: what a dashboard need not show."""

STATIC = ("retry_of", "is_search", "values", "of")
"""What a trial is told at its making besides seeds, key and protocol."""


@dataclass(frozen=True)
class Task:
    """A claimed trial."""

    study: str
    trial_id: int
    number: int
    cell: str
    seeds: list[int]
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the axes that are searched."""
    is_search: bool = False

    @property
    def name(self) -> str:
        """What a user sees."""
        return f"{self.cell} trial {self.number}" if self.is_search else self.cell


@dataclass(frozen=True)
class Wait:
    """Nothing to claim yet: other workers run what is left."""


@dataclass(frozen=True)
class Result:
    """What came of a task."""

    status: str
    """complete or failed."""
    value: float | None = None
    """Validation, nats per image, mean over the seeds; None where no seed has a number."""
    reason: str | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    """Status by seed."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Means over seeds, by metric."""
    seconds: float = 0.0
    """How long this sitting took."""
    worked: int = 0
    """Seeds that it had to work on: others were finished before."""


@dataclass(frozen=True)
class Row:
    """A trial, as plain values."""

    study: str
    number: int
    state: str
    """waiting, running, complete, failed or pruned."""
    cell: str
    key: str | None
    protocol: str | None
    seeds: list[int]
    retry_of: int | None
    is_search: bool
    of: str | None
    """Of a search's best values: the config_key of the cell that was searched."""
    withdrawn: bool
    begun: bool
    values: dict[str, Any]
    value: float | None
    about: dict[str, Any]
    """User attributes: status, reason, outcomes, seconds, worked and numbers."""
    owner: dict[str, Any] | None


def row_of(study: str, trial: FrozenTrial) -> Row:
    """Return a trial of optuna's as plain values."""
    states = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}
    about = trial.system_attrs.get(ABOUT, {})
    state = states.get(trial.state.name, trial.state.name.lower())
    value = trial.values[0] if trial.values else None
    return Row(
        study=study,
        number=trial.number,
        state=state,
        cell=str(trial.user_attrs.get("cell", "")),
        key=about.get("key"),
        protocol=about.get("protocol"),
        seeds=list(about.get("seeds", [])),
        retry_of=about.get("retry_of"),
        is_search=bool(about.get("is_search")),
        of=about.get("of"),
        withdrawn=bool(trial.system_attrs.get(WITHDRAWN)),
        begun=bool(trial.system_attrs.get(BEGUN)),
        values={**(about.get("values") or {}), **trial.params},
        value=value if value is not None and math.isfinite(value) else None,
        about=dict(trial.user_attrs),
        owner=trial.system_attrs.get(OWNER),
    )


def task_of(trial: FrozenTrial, row: Row) -> Task:
    """Return a trial as a worker is given it."""
    return Task(
        row.study, trial._trial_id, row.number, row.cell, row.seeds, row.values, row.is_search
    )


def begun(rows: Sequence[tuple[FrozenTrial, Row]]) -> int:
    """Return how many trials were ever begun; one that is run once more counts once."""
    return sum(row.begun for _, row in rows if row.retry_of is None)


def belongs(item: Item, row: Row) -> bool:
    """Tell whether a trial is about what a cell now is."""
    if row.withdrawn or row.cell != item.cell:
        return False
    if item.searched:
        return row.of == item.key  # `_report` says whether its values still are the best
    return (row.key, row.protocol) == (item.key, item.protocol)


def item_of(trial: FrozenTrial, row: Row) -> Item:
    """Return the cell that a trial is about, as far as the trial knows."""
    return Item(
        cell=row.cell,
        variant=str(trial.user_attrs.get("variant", "")),
        params={},
        key=row.key,
        protocol=row.protocol,
        seeds=row.seeds,
        baseline=None,
        not_applicable=None,
        searched=[],
        cost=1.0,
    )
