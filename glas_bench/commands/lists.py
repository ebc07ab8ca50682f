"""What `studies` and `runs` do: list the shipped studies, and the runs of a results folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glas_bench import study
from glas_bench.commands import Answer
from glas_bench.errors import GlasBenchError
from glas_bench.record import (
    FINISHED,
    RunFolder,
    count_statuses,
    find_run,
    find_runs,
    os_errors,
)
from glas_bench.runs.cost import core_hours, work
from glas_bench.text import aligned, byte_size, count, duration


def studies(preset: str | None) -> Answer:
    """List the shipped studies with the core hours that they take on this machine.

    Raises:
        UsageError: no such preset.
    """
    timed = study.load("smoke", "laptop").cells[0]
    hours_of_work = core_hours(timed) / work(timed)
    documents: list[dict[str, Any]] = []
    for name, path in study.shipped().items():
        loaded = study.load(str(path), preset)
        cells = [cell for cell in loaded.cells if not cell.not_applicable]
        searches = sum(bool(cell.searched) for cell in cells)
        tuning = loaded.trials * len(loaded.tuning_seeds) if searches else 0
        hours = sum(work(c) * (len(c.seeds) + tuning * bool(c.searched)) for c in cells)
        documents.append(
            {
                "study": name,
                "question": " ".join(loaded.question.split()),
                "preset": loaded.preset,
                "dataset": loaded.dataset,
                "cells": len(loaded.cells),
                "claims": len(loaded.claims),
                "runs": sum(len(cell.seeds) for cell in cells) + searches * tuning,
                "core_hours": round(hours * hours_of_work, 2),
            }
        )
    width = max(len(each["question"]) for each in documents)
    head = ["study", "preset", "cells", "claims", "runs", "core hours", "question".ljust(width)]
    rows = [head]
    for each in documents:
        numbers = [str(each[key]) for key in ("cells", "claims", "runs")]
        row = [each["study"], each["preset"], *numbers, f"{each['core_hours']:.1f}"]
        rows.append([*row, each["question"].ljust(width)])
    lines = [
        *aligned(rows, drop=["question".ljust(width)]),
        f"core hours here, by some steps of {timed.variant.name} and the work of each cell; "
        "`sweep STUDY --dry-run` lists its cells",
    ]
    return Answer("\n".join(lines), documents)


def runs(results: Path) -> Answer:
    """List the runs of a results folder."""
    documents = [_about(path) for path in find_runs(results)]
    rows = [["run", "data", "epochs", "seeds", "size", "changed"]]
    for each in documents:
        statuses = [f"{number} {status}" for status, number in each["seeds"].items()]
        rows.append(
            [
                each["run"],
                each["dataset"] or "",
                str(each["epochs"] or ""),
                ", ".join(statuses) or each["problem"] or "none",
                byte_size(each["bytes"]),
                f"{duration(max(0.0, time.time() - each['changed']))} ago",
            ]
        )
    done = sum(each["finished"] for each in documents)
    total = byte_size(sum(each["bytes"] for each in documents))
    last = f"{count(len(documents), 'run')}, {done} finished, {total} in {results / 'runs'}"
    return Answer("\n".join([*(aligned(rows) if documents else []), last]), documents)


def _about(path: Path) -> dict[str, Any]:
    """Return what the list says of a run, JSON-ready."""
    folder, problem, statuses = RunFolder.at(path), None, []
    config = None
    try:
        config = folder.config()[0]
        statuses = [folder.seed(seed).status()["status"] for seed in folder.seeds()]
    except GlasBenchError as error:
        problem = str(error)
    with os_errors(f"read {path}"):
        files = [each.lstat() for each in path.rglob("*") if not each.is_dir()]
        changed = max((each.st_mtime for each in files), default=path.stat().st_mtime)
    return {
        "run": path.name,
        "path": str(path),
        "variant": config and config.variant,
        "dataset": config and config.dataset,
        "epochs": config and config.epochs,
        "seeds": count_statuses(statuses),
        "finished": bool(statuses) and all(status in FINISHED for status in statuses),
        "bytes": sum(each.st_size for each in files),
        "changed": changed,
        "problem": problem,
    }


def to_remove(results: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the list says of runs that are to be removed.

    Raises:
        UsageError: no run has such a name, or more than one.
    """
    paths = {find_run(results, name).resolve() for name in names}
    return [_about(path) for path in sorted(paths)]


def remove(documents: Sequence[dict[str, Any]]) -> Answer:
    """Remove runs, all their seeds, from the disk; MLflow keeps its copies.

    Raises:
        AlreadyRunning: a process works in one; those before it are removed.
    """
    for each in documents:
        path = Path(each["path"])
        with RunFolder.at(path).locked(), os_errors(f"remove {path}"):
            shutil.rmtree(path)
    size = byte_size(sum(each["bytes"] for each in documents))
    return Answer(f"removed {count(len(documents), 'run')}, {size}")
