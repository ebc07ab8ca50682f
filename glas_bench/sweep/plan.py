"""What a study's cells are once the data is known: the JSON document that is stored with the study.

Two plans are compared cell by cell. A cell is unchanged if it trains the same (`key`), is scored
the same (`protocol`) and has the same seeds and baseline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import data
from glas_bench.config import CORE_VERSION, PROTOCOL_VERSION
from glas_bench.study import Cell, Study
from glas_bench.sweep.trial import Trial, search_name

if TYPE_CHECKING:
    from glas_bench.config import RunConfig
    from glas_bench.data import Splits

Document = dict[str, Any]

VERSIONS = {"core_version": CORE_VERSION, "protocol_version": PROTOCOL_VERSION}
"""What a plan is laid out by; it is part of every cell's key and protocol."""


class Plan:
    """A study laid out on its data; `results` is where run folders are.

    Raises:
        DataError: its data cannot be had.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        splits: dict[tuple[str, str], Splits] | None = None,
    ) -> None:
        self.study = study
        self.name = study.name
        self.results = results
        self._splits = {} if splits is None else splits
        self.cells = {
            cell.name: cell if cell.not_applicable else cell.on(self.splits(cell.config))
            for cell in study.cells
        }
        self.document = plan_document(study, self.cells.values())
        self.entries: dict[str, Document] = {each["cell"]: each for each in self.document["cells"]}
        self.searches = [cell.name for cell in study.cells if cell.searched]
        """Names of the cells whose axes are searched."""
        self.studies = [self.name, *(search_name(self.name, cell) for cell in self.searches)]
        """Names of its optuna studies: its own, and one for each search."""

    def with_seeds(self, seeds: Mapping[str, Sequence[int]]) -> Plan:
        """Return the plan with other seeds for the cells that are named."""
        return Plan(self.study.with_seeds(seeds), self.results, self._splits)

    def splits(self, config: RunConfig) -> Splits:
        """Return the data of a config, on the CPU."""
        kind = (config.dataset, config.binarisation)
        if kind not in self._splits:
            self._splits[kind] = data.load(*kind)
        return self._splits[kind]

    def with_values(self, name: str, values: Mapping[str, Any]) -> Cell:
        """Return a planned cell with values for its searched axes.

        Raises:
            DataError: its data cannot be had.
            UsageError: a value is not allowed.
        """
        cell = self.cells[name]
        if not values:
            return cell
        cell = cell.with_values(values)
        return cell.on(self.splits(cell.config))

    def cell_of(self, trial: Trial) -> Cell:
        """Return the cell that a trial runs, with the trial's values and seeds."""
        return self.with_values(trial.cell, trial.values).with_seeds(trial.seeds)

    def wants(self, trial: Trial) -> bool:
        """Return whether a trial is about what one of the cells now is."""
        entry = self.entries.get(trial.cell)
        return entry is not None and trial.belongs(entry)


def plan_document(study: Study, cells: Iterable[Cell]) -> Document:
    """Return what is stored with a study, as plain JSON; keys are null where data is unknown."""
    own = ("name", "question", "version", "preset", "dataset", "seeds", "tuning_seeds", "trials")
    document = {
        **{key: getattr(study, key) for key in own},
        **VERSIONS,
        "space": {key: each.model_dump(exclude_none=True) for key, each in study.space.items()},
        "cells": [_entry(cell) for cell in cells],
        "skipped": [asdict(each) for each in study.skipped],
        "claims": [
            {key: getattr(each, key) for key in ("text", "source", "expect")}
            for each in study.claims
        ],
        "judged_by": {"looks": study.looks, "margins": [each.margin for each in study.claims]},
    }
    plain: Document = json.loads(json.dumps(document))
    return plain


def _entry(cell: Cell) -> Document:
    """Return a cell as the document has it; `cost` is steps of recurrence a seed, in any unit."""
    return {
        "cell": cell.name,
        "variant": cell.variant.name,
        "params": cell.params,
        "key": cell.key or None,
        "protocol": cell.protocol if cell.key else None,
        "seeds": cell.seeds,
        "baseline": cell.baseline,
        "not_applicable": cell.not_applicable,
        "searched": cell.searched,
        "cost": float(cell.config.epochs * int(cell.config.settings.get("steps", 1))),
    }


def digest(document: Document, seeds: bool = True) -> str:
    """Return the SHA-256 of a plan without the texts that change nothing of what is run.

    Without `seeds` it is that of the plan with any number of seeds. How claims are judged is left
    to `rejudged`: plans that older versions stored do not have it.
    """
    without = {"question", "skipped", "judged_by", *VERSIONS} | (set() if seeds else {"seeds"})
    hashed = {key: value for key, value in document.items() if key not in without}
    if not seeds:
        hashed["cells"] = [{**cell, "seeds": None} for cell in document["cells"]]
    hashed["claims"] = [each["expect"] for each in document["claims"]]
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def outdated(document: Document, study: Study | None) -> tuple[set[str], str]:
    """Return the cells of a stored plan that are not what the study now plans, and why.

    From versions and protocols alone, without data. A plan that was stored without versions is an
    older one, unless it has a protocol that the study has now.
    """
    protocols = {cell.name: cell.protocol for cell in study.cells} if study else {}
    same = {
        cell["cell"]: protocols.get(cell["cell"]) == cell["protocol"] for cell in document["cells"]
    }
    versions = {key: document.get(key) for key in VERSIONS}
    if versions != VERSIONS and not (None in versions.values() and any(same.values())):
        then, now = (
            f"core {each['core_version']}, protocol {each['protocol_version']}"
            for each in (versions, VERSIONS)
        )
        made = "an older one" if None in versions.values() else then
        why = f"made by another version of the training core or protocol ({made}; now {now})"
        return set(same), why
    other = {name for name, is_same in same.items() if name in protocols and not is_same}
    return other, "scored by another protocol"


def rejudged(old: Document, new: Document) -> str:
    """Return how a new plan judges the same claims otherwise than the stored one, or nothing."""
    were, now = old.get("judged_by"), new.get("judged_by")
    before, claims = ([each["expect"] for each in plan["claims"]] for plan in (old, new))
    if not were or not now or were == now or not claims or claims != before:
        return ""
    changed = ", ".join(_changes(were, now, now))
    return f"{changed}: chosen after results were seen, they no longer keep the error rate of .05"


def differences(old: Document, new: Document) -> list[str]:
    """Return how a new plan differs from the stored one, one line a difference."""
    before = {each["cell"]: each for each in old["cells"]}
    after = {each["cell"]: each for each in new["cells"]}

    both = [name for name in after if name in before]
    lists = {
        "new cells": [name for name in after if name not in before],
        "cells that are gone": [name for name in before if name not in after],
    }
    for what, key in (
        ("cells that train otherwise", "key"),
        ("cells that are scored otherwise", "protocol"),
        ("cells with other seeds", "seeds"),
        ("cells with another baseline", "baseline"),
    ):
        lists[what] = [name for name in both if before[name][key] != after[name][key]]
    lines = [f"{what}: {_some(names)}" for what, names in lists.items() if names]
    expected = [[each["expect"] for each in plan["claims"]] for plan in (old, new)]
    if expected[0] != expected[1]:
        lines.append("other claims")
    keys = (*VERSIONS, "version", "preset", "dataset", "space", "trials", "tuning_seeds")
    return [*lines, *_changes(old, new, keys), *filter(None, [rejudged(old, new)])]


def _changes(old: Document, new: Document, keys: Iterable[str]) -> list[str]:
    return [
        f"{key} {json.dumps(new[key])} where it was {json.dumps(old[key])}"
        for key in keys
        if key in old and old[key] != new[key]
    ]


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + rest
