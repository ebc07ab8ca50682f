"""Which pages there are, and what each should hold: a study, or what was run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glas_bench import study
from glas_bench.config import PRESETS, parse_seeds
from glas_bench.data import DATASETS
from glas_bench.errors import GlasBenchError, RunError, UsageError, unknown
from glas_bench.record import note_of, read_json
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
        return " ".join(parts)


def asked(references: Sequence[str], results: Path) -> list[Plan]:
    """Return the plans of studies that were named: a name, NAME@PRESET@DATASET, or a file.

    Raises:
        UsageError: there is no such study, or its file has a fault.
    """
    found = {plan.name: plan for plan in (_named(each, results) for each in references)}
    return list(found.values())


def everything(experiments: Sequence[str], results: Path) -> tuple[list[Plan], list[str]]:
    """Return a plan for all that has runs or was begun here, and what no plan can be had for.

    Args:
        experiments: of the MLflow store, those with runs of ours.
        results: the results folder.
    """
    names = sorted({*experiments, *noted(results)})
    plans, problems = [], []
    for name in names:
        try:
            plans.append(_named(name, results))
        except GlasBenchError as error:
            if name in experiments:
                plans.append(Plan(name, None))
            problems.append(f"{name}: {error}")
    return plans, problems


def noted(results: Path) -> list[str]:
    """Return the names of the studies that were begun in a results folder."""
    return sorted(path.stem for path in (results / "studies").glob("*.json"))


def _named(reference: str, results: Path) -> Plan:
    if reference == experiment_name():
        return Plan(reference, None)
    note = note_of(results, reference)
    if note.is_file():
        return Plan(reference, _from_note(reference, note))
    base, *others = reference.split("@") if "/" not in reference else [reference]
    preset = next((word for word in others if word in PRESETS), None)
    dataset = next((word for word in others if word in DATASETS), None)
    for word in others:
        if word not in (preset, dataset):
            raise unknown("preset or data set", word, [*PRESETS, *DATASETS])
    is_file = base.endswith((".yaml", ".yml")) or "/" in base
    try:
        found = study.load(base, preset, dataset)
    except UsageError as error:
        known = [*study.shipped(), *noted(results), experiment_name()]
        if is_file or base.replace("_", "-") in study.shipped():
            raise
        raise unknown("study", reference, known) from error
    note = note_of(results, found.name)  # of its own name: it may have been swept with other seeds
    if note.is_file() and (not is_file or _file_of(read_json(note)) == found.path.resolve()):
        return Plan(found.name, _from_note(found.name, note))
    return Plan(found.name, found)


def _file_of(about: dict[str, Any]) -> Path:
    return Path(str(about.get("file", "")))


def _from_note(name: str, note: Path) -> Study:
    about = read_json(note)
    base, *others = name.split("@")
    preset = about.get("preset") or next((word for word in others if word in PRESETS), None)
    dataset = about.get("dataset") or next((word for word in others if word in DATASETS), None)
    file = _file_of(about)
    if not file.is_file():  # made elsewhere, or moved since
        if base not in study.shipped():
            raise RunError(
                f"the study's file {file.name or 'is not known and'} is no longer where it was; "
                "name it: glas-bench report PATH"
            )
        file = study.shipped()[base]
    seeds = about.get("seeds")
    found = study.load(str(file), preset, dataset, seeds=parse_seeds(seeds) if seeds else None)
    if found.name != name:
        raise RunError(f"{file.name} is now the study {found.name}; sweep it under that name")
    return found
