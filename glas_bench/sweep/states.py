"""Where every cell of a study stands, from its plan and its trials: for `status` and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glas_bench.sweep.plan import Document, Item
from glas_bench.sweep.trials import Row, belongs
from glas_bench.text import aligned, number

STATES = ("complete", "running", "waiting", "failed", "pruned", "not_applicable")


@dataclass(frozen=True)
class State:
    """A cell and how far it is."""

    item: Item
    status: str
    """One of `STATES`."""
    seeds: dict[int, str]
    """Status by seed: a cell's state while it has none of its own, then the seed's."""
    reason: str | None
    numbers: dict[str, float]
    owner: dict[str, Any] | None
    """Who runs it."""

    @property
    def document(self) -> dict[str, Any]:
        """The cell's part of the JSON document of `status`."""
        return {
            "cell": self.item.cell,
            "variant": self.item.variant,
            "params": self.item.params,
            "status": self.status,
            "seeds": [{"seed": seed, "status": status} for seed, status in self.seeds.items()],
            "reason": self.reason,
            "config_key": self.item.key,
            **self.numbers,
        }


def states(document: Document, rows: Sequence[Row]) -> list[State]:
    """Return the state of every planned cell, in the order of the plan."""
    items = [Item(**each) for each in document["cells"]]
    return [_state(document, item, rows) for item in items]


def _state(document: Document, item: Item, rows: Sequence[Row]) -> State:
    own = [row for row in rows if not row.is_search and belongs(item, row)]
    own = [row for row in own if row.number not in {each.retry_of for each in own}]
    if item.searched and own:  # its best values: those that were found last
        own = [row for row in own if row.key == own[-1].key]
    seeds = dict.fromkeys(item.seeds, "waiting")
    for row in own:
        outcomes = row.about.get("outcomes", {})
        for seed in set(row.seeds) & set(item.seeds):
            seeds[seed] = outcomes.get(str(seed), "not_applicable" if _is_na(row) else row.state)
    reasons = [str(row.about["reason"]) for row in own if row.about.get("reason")]
    running = [row for row in own if row.state == "running"]
    status = _joint([*(row.state for row in own if not _is_na(row)), *_uncovered(item, own)])
    if any(map(_is_na, own)):
        status = "not_applicable"
    if item.searched and not own:
        status, reasons, running = _searching(document, item, rows)
    numbers: dict[str, float] = {}
    for row in own:
        numbers |= {k: v for k, v in row.about.items() if isinstance(v, float) and k != "seconds"}
    return State(
        item=item,
        status=status,
        seeds=seeds,
        reason="; ".join(reasons) or None,
        numbers=numbers if len(own) == 1 else {},
        owner=running[0].owner if running else None,
    )


def _is_na(row: Row) -> bool:
    return row.about.get("status") == "not_applicable"


def _uncovered(item: Item, own: Sequence[Row]) -> list[str]:
    """Return `waiting` where a seed is in no trial yet."""
    return ["waiting"] if set(item.seeds) - {seed for row in own for seed in row.seeds} else []


def _joint(found: Sequence[str]) -> str:
    for status in ("running", "waiting", "failed", "pruned"):
        if status in found:
            return status
    return "complete"


def _searching(
    document: Document, item: Item, rows: Sequence[Row]
) -> tuple[str, list[str], list[Row]]:
    """Return status, reason and running trials of a cell whose best values are sought."""
    trials = [row for row in rows if row.is_search and (row.cell, row.key) == (item.cell, item.key)]
    running = [row for row in trials if row.state == "running"]
    count = Counter(row.state for row in trials if row.retry_of is None)
    done = count["complete"] + count["failed"]
    told = f"search: {done} of {document['trials']} trials"
    if count["failed"]:
        told += f", {count['failed']} failed"
    if done >= document["trials"] and not count["complete"]:
        return "failed", [told], running
    return "running" if running else "waiting", [told], running


# --------------------------------------------------------------------------- what is told


def counts(found: Sequence[State]) -> dict[str, int]:
    """Return how many cells are in each state, those that occur."""
    count = Counter(each.status for each in found)
    return {status: count[status] for status in STATES if count[status]}


def summary(found: Sequence[State]) -> str:
    """Return the counts in words."""
    told = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts(found).items())
    return f"{len(found)} cells: {told}"


def seconds_left(document: Document, rows: Sequence[Row], found: Sequence[State]) -> float | None:
    """Return about how long the rest will take, None where nothing is known yet.

    From the seconds that finished trials took for each unit of the cost of the seeds that they had
    to work on, shared by as many workers as run something now.
    """
    cost = {each["cell"]: each["cost"] for each in document["cells"]}
    spent = work = 0.0
    for row in rows:
        seconds = row.about.get("seconds") or 0.0
        if row.state == "complete" and seconds > 0:
            spent += seconds
            work += cost.get(row.cell, 0.0) * row.about.get("worked", len(row.seeds))
    if not work:
        return None
    left = 0.0
    for state in found:
        if state.status in ("waiting", "running"):
            undone = [seed for seed, s in state.seeds.items() if s in ("waiting", "running")]
            left += state.item.cost * len(undone)
            if state.item.searched:
                done = sum(row.is_search and row.cell == state.item.cell for row in rows)
                tuning = len(document["tuning_seeds"])
                left += state.item.cost * tuning * max(document["trials"] - done, 0)
    workers = {str(row.owner) for row in rows if row.state == "running"}
    return left * spent / work / max(len(workers), 1)


def document_of(document: Document, found: Sequence[State]) -> dict[str, Any]:
    """Return the JSON document of `status`."""
    return {
        "study": document["name"],
        "question": document["question"],
        "version": document["version"],
        "preset": document["preset"],
        "dataset": document["dataset"],
        "cells": [each.document for each in found],
        "skipped": document["skipped"],
        "counts": counts(found),
    }


def text(document: Document, found: Sequence[State]) -> str:
    """Return the table of `status`, reasons and skips below it."""
    rows = [["cell", "status", "seeds", "nll", "elbo"]]
    rows += [
        [
            each.item.cell,
            each.status.replace("_", " "),
            f"{_done(each)}/{len(each.seeds)}",
            number(each.numbers.get("nll")),
            number(each.numbers.get("elbo")),
        ]
        for each in found
    ]
    notes = [f"{each.item.cell}: {each.reason}" for each in found if each.reason]
    notes += [
        f"skipped: {skip['variant']}{_where(skip)}: {skip['reason']}"
        for skip in document["skipped"]
    ]
    head = f"{document['name']}: {document['question']}"
    lines = [head, "", *aligned(rows), "", *notes, *([""] if notes else []), summary(found)]
    return "\n".join(lines)


def _where(skip: dict[str, Any]) -> str:
    if skip["axis"]:
        return f" without {skip['axis']}"
    return "".join(f" {key}={value}" for key, value in skip["params"].items())


def _done(state: State) -> int:
    return sum(
        status in ("complete", "diverged", "not_applicable") for status in state.seeds.values()
    )
