"""Which pages there are, and what each should hold: a study, or what was run by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glas_bench import study
from glas_bench.config import PRESETS, parse_seeds
from glas_bench.data import DATASETS
from glas_bench.errors import RunError, UsageError, unknown
from glas_bench.record import read_note
from glas_bench.study import Study
from glas_bench.text import seed_ranges
from glas_bench.tracking.address import experiment_name


@dataclass(frozen=True)
class Plan:
    """A page to be made."""

    name: str
    """Of the study, which is that of its MLflow experiment too."""
    study: Study | None
    """None: what was run by hand, which nobody planned."""

    @property
    def command(self) -> str:
        """What repeats it, if one command does."""
        if self.study is None:
            return ""
        base, *others = self.name.split("@")
        shipped = study.shipped().get(base)
        own = shipped is not None and shipped.read_bytes() == self.study.path.read_bytes()
        parts = ["glas-bench sweep", base if own else self.study.path.name]
        parts += [f"--preset {word}" for word in others if word in PRESETS]
        parts += [f"--dataset {word}" for word in others if word not in PRESETS]
        if self.study.seeds != self.study.own_seeds:
            parts.append(f"--seeds {seed_ranges(self.study.seeds)}")
        elif self.study.claims and self.study.verdicts:
            parts.append("--decide")
        return " ".join(parts)


def searches(name: str, results: Path) -> dict[str, Any]:
    """Return what a study's searches have tried, by cell; nothing where they ran elsewhere."""
    with contextlib.suppress(RunError):  # a broken note is named where its study is read
        return dict(read_note(results, name).get("searches", {}))
    return {}


def noted(results: Path) -> list[str]:
    """Return the names of the studies that were begun in a results folder."""
    return sorted(path.stem for path in (results / "studies").glob("*.json"))


def find(reference: str, results: Path) -> Plan:
    """Return the plan of a study: a name, NAME@PRESET@DATASET, or a file; or of runs by hand.

    Raises:
        UsageError: there is no such study, or its file has a fault.
        RunError: the file of a study that was begun is no longer what it was.
    """
    if reference == experiment_name():
        return Plan(reference, None)
    for name in (reference, reference.replace("_", "-")):
        if "/" not in name and (note := read_note(results, name)):
            return Plan(name, _from_note(name, note))
    base, *others = reference.split("@") if "/" not in reference else [reference]
    is_file = base.endswith((".yaml", ".yml")) or "/" in base
    preset, dataset = _preset_and_dataset(others)
    if wrong := [word for word in others if word not in (preset, dataset)]:
        raise unknown("preset or data set", wrong[0], [*PRESETS, *DATASETS])
    try:
        own = study.load(base, preset, dataset)
    except UsageError as error:
        if is_file or base.replace("_", "-") in study.shipped():
            raise
        known = [*study.shipped(), *noted(results), experiment_name()]
        raise unknown("study", reference, known) from error
    note = read_note(results, own.name)  # of its own name: it may have been swept with other seeds
    if note and (not is_file or Path(str(note.get("file", ""))) == own.path.resolve()):
        own = _from_note(own.name, note)
    return Plan(own.name, own)


def _preset_and_dataset(words: Sequence[str]) -> tuple[str | None, str | None]:
    preset = next((word for word in words if word in PRESETS), None)
    return preset, next((word for word in words if word in DATASETS), None)


def _from_note(name: str, note: Mapping[str, Any]) -> Study:
    """Return a study as it was begun."""
    base, *others = name.split("@")
    preset, dataset = _preset_and_dataset(others)
    file = Path(str(note.get("file", "")))
    if not file.is_file():  # made elsewhere, or moved since
        if base not in study.shipped():
            where = f"{file} is not there" if file.name else "is not known"
            raise RunError(f"the study's file {where}; give its path in place of {name}")
        file = study.shipped()[base]
    own = study.load(
        str(file),
        note.get("preset") or preset,
        dataset,
        seeds=parse_seeds(note["seeds"]) if note.get("seeds") else None,
    )
    if own.name != name or note.get("dataset", own.dataset) != own.dataset:
        raise RunError(
            f"{file.name} is now the study {own.name} on {own.dataset}; sweep it under that name"
        )
    return own
