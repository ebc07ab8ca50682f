"""What a study's cells are once the data is known: the document that is stored with the study.

Two plans are compared cell by cell. A cell is what it was if it trains the same (`key`), is scored
the same (`protocol`) and wants no other seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import data
from glas_bench.study import Cell, Study
from glas_bench.text import settings

if TYPE_CHECKING:
    from glas_bench.config import RunConfig
    from glas_bench.data import Splits

Document = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A cell as the database knows it."""

    cell: str
    variant: str
    params: dict[str, Any]
    key: str | None
    """config_key: what is trained. Of a search, at the defaults of the axes searched."""
    protocol: str | None
    seeds: list[int]
    baseline: str | None
    not_applicable: str | None
    searched: list[str]
    cost: float
    """Steps of recurrence that a seed trains, in any unit: for the time that is left."""


class Plan:
    """A study laid out on its data.

    Args:
        study: as loaded.
        results: where run folders are.
        data_of: loads a data set under a binarisation.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        data_of: Callable[[str, str], Splits] = lambda name, kind: data.load(name, kind),
    ) -> None:
        self.study = study
        self.results = results
        self._data_of = data_of
        self._splits: dict[tuple[str, str], Splits] = {}
        self.items = {cell.name: self._item(cell) for cell in study.cells}

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.name

    @property
    def searches(self) -> list[str]:
        """Names of the cells whose axes are searched."""
        return [name for name, item in self.items.items() if item.searched]

    def document(self) -> Document:
        """Return what is stored with the study, as plain JSON."""
        study = self.study
        space = {key: each.model_dump(exclude_none=True) for key, each in study.space.items()}
        whole = {
            "name": study.name,
            "question": study.question,
            "version": study.version,
            "preset": study.preset,
            "dataset": study.dataset,
            "seeds": study.seeds,
            "tuning_seeds": study.tuning_seeds,
            "trials": study.trials,
            "space": space,
            "cells": [asdict(item) for item in self.items.values()],
            "skipped": [asdict(each) for each in study.skipped],
            "claims": [
                {"text": each.text, "source": each.source, "expect": each.expect}
                for each in study.claims
            ],
        }
        plain_document: Document = json.loads(json.dumps(whole))
        return plain_document

    def splits(self, resolved: RunConfig) -> Splits:
        """Return the data of a config, on the CPU."""
        place = (resolved.dataset, resolved.binarisation)
        if place not in self._splits:
            self._splits[place] = self._data_of(*place)
        return self._splits[place]

    def cell(self, name: str, values: Mapping[str, Any] | None = None) -> Cell:
        """Return what is run for a planned cell, with values for the axes that are searched.

        Raises:
            DataError: its data cannot be had.
            UsageError: a value is not allowed.
        """
        cell = self.study.by_name[name]
        cell = cell.with_values(values) if values else cell
        return cell.on(self.splits(cell.config))

    def reported(self, name: str, values: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return settings in words, config_key and protocol_key of a search's best values."""
        cell = self.cell(name, values)
        return settings(cell.params), cell.key, cell.protocol

    def _item(self, cell: Cell) -> Item:
        runs = cell.not_applicable is None
        return Item(
            cell=cell.name,
            variant=cell.variant.name,
            params=cell.params,
            key=cell.on(self.splits(cell.config)).key if runs else None,
            protocol=cell.protocol if runs else None,
            seeds=list(cell.seeds),
            baseline=cell.baseline,
            not_applicable=cell.not_applicable,
            searched=list(cell.searched),
            cost=float(cell.config.epochs * int(cell.config.settings.get("steps", 1))),
        )


def digest(document: Document) -> str:
    """Return the SHA-256 of all of a plan that matters; texts do not."""
    told = {key: value for key, value in document.items() if key not in ("question", "skipped")}
    told["claims"] = [each["expect"] for each in document["claims"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def differences(old: Document, new: Document) -> list[str]:
    """Return in words what a new plan has otherwise than the one that is stored."""
    before = {each["cell"]: each for each in old["cells"]}
    after = {each["cell"]: each for each in new["cells"]}
    found = []
    for told, names in (
        ("new cells", [name for name in after if name not in before]),
        ("cells that are gone", [name for name in before if name not in after]),
        ("cells that train otherwise", _changed(before, after, "key")),
        ("cells that are scored otherwise", _changed(before, after, "protocol")),
        ("cells with other seeds", _changed(before, after, "seeds")),
        ("cells with another baseline", _changed(before, after, "baseline")),
    ):
        if names:
            found.append(f"{told}: {_some(names)}")
    expects = [[each["expect"] for each in plan["claims"]] for plan in (old, new)]
    if expects[0] != expects[1]:
        found.append("other claims")
    for key in ("version", "preset", "dataset", "space", "trials", "tuning_seeds"):
        if old[key] != new[key]:
            found.append(f"{key} {json.dumps(new[key])} where it was {json.dumps(old[key])}")
    return found


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> list[str]:
    return [name for name in after if name in before and before[name][key] != after[name][key]]


def _some(names: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
