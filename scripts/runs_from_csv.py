"""Write run folders from the csv of a page, where the folders themselves are lost or elsewhere.

    python scripts/runs_from_csv.py results/grid-slip@laptop.csv --results RESULTS

A sweep with `--decide` then goes on where the page ended, and `glas-bench report` puts old and new
seeds on one page, which names the csv. Such a seed has its numbers, to the last digit, but no
model, no curves and no values of single images: it is in no paired difference, and the images'
error of a claim comes from the other seeds of its cell (`glas_bench.decide`). Copy the run folders
instead where there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glas_bench.config import CORE_VERSION
from glas_bench.errors import GlasBenchError, UsageError
from glas_bench.record import RunFolder, Scores, write_json
from glas_bench.report import csv_file, plans
from glas_bench.report.table import Row
from glas_bench.study import Cell
from glas_bench.sweep.plan import Plan
from glas_bench.text import count

SWEEPS = {"iw_sweep": "iw_samples", "refit_iw_sweep": "samples"}
"""Columns of the bound by the most draws, and the columns that say how many those are."""


def main() -> None:
    """Write the folders; exit with 2 where the csv cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("csv", type=Path, help="of a study's page, by `glas-bench report`")
    parser.add_argument("--results", type=Path, required=True, help="folder to write runs into")
    parser.add_argument("--study", metavar="FILE", help="where glas-bench does not ship the study")
    given = parser.parse_args()
    try:
        written, there = read_back(given.csv, given.results, given.study)
    except GlasBenchError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    left = f"; {there} were there already" if there else ""
    print(f"{count(written, 'seed')} of {given.csv} written to {given.results / 'runs'}{left}")


def read_back(csv: Path, results: Path, study: str | None = None) -> tuple[int, int]:
    """Write a run folder for each finished seed of a csv; return how many, and how many there were.

    `study` is its file; by default the shipped one by the name that the csv has.

    Raises:
        UsageError: it is no csv of a study that this version has, or a row is of a cell that the
            study plans no more: its variant's source, a setting, the data or the core differs.
        RunError: a folder cannot be written.
    """
    rows = csv_file.read(csv)
    planned = plans.find(study or rows[0]["study"], results).study
    if planned is None:
        raise UsageError(f"{csv} has runs of no study: run them again")
    cells = {cell.key: cell for cell in Plan(planned, results).cells.values()}
    done = [row for row in rows if row["status"] in ("complete", "diverged")]
    for row in done:
        cell = cells.get(row["config_key"])
        if cell is None or (row["status"] == "complete" and row["protocol_key"] != cell.protocol):
            raise UsageError(
                f"{csv}: seed {row['seed']} of {row['cell']} was trained or scored otherwise than "
                f"this version does (config {row['config_key']}, core {row.get('core_version')})"
            )
    name = f"`{csv.name}` (sha256 {hashlib.sha256(csv.read_bytes()).hexdigest()[:12]})"
    new = [row for row in done if _write(row, cells[row["config_key"]], results, name)]
    return len(new), len(done) - len(new)


def _write(row: Row, cell: Cell, results: Path, csv: str) -> bool:
    """Write one seed; return whether it was not there."""
    folder = cell.folder(results)
    seed = folder.seed(int(row["seed"]))
    if seed.path.exists():
        return False
    _describe(row, cell, folder)
    git = {"commit": row.get("commit"), "dirty": bool(row.get("dirty"))}
    write_json(seed.path / "environment.json", {"device": row.get("device"), "git": git})
    ended = datetime.fromisoformat(row["ended"]).replace(tzinfo=UTC).timestamp()
    if row["status"] == "complete":
        scores = {name: _score(name, row) for name in {*Scores.__annotations__} - {"schema"}}
        there = {name: value for name, value in scores.items() if value is not None}
        seed.save_scores(cell.protocol, {**there, "time": ended}, {})
    measured = ("seconds", "images_per_second", "peak_memory_bytes", "parameters")
    about: dict[str, Any] = {name: _number(row.get(name)) for name in measured}
    about |= {"device": row.get("device"), "read_from": csv, "updated": ended}
    if row["status"] == "diverged":
        about |= {"step": _number(row.get("diverged_step")), "reason": row.get("reason")}
    else:
        about["protocol"] = cell.protocol
    seed.set_status(row["status"], **about)
    return True


def _describe(row: Row, cell: Cell, folder: RunFolder) -> None:
    """Write what the cell is, where its folder does not say so yet."""
    own = ("source_hash", "data_hash", "data_origin", "preset", "bound_reason")
    bounds = {"yes": True, "no": False}.get(row["bounds_nll"])
    names = {"variant": cell.variant.name, "reference": cell.variant.reference}
    about = {**names, **{name: row.get(name) for name in own}, "bounds_nll": bounds}
    folder.prepare(cell.config, {**about, "core_version": CORE_VERSION, "data_file": None})
    if not folder.is_sound():
        write_json(folder.path / "environment.json", {"device": row.get("device")})


def _score(name: str, row: Row) -> Any:
    """Return a field of `Scores` from its column; None where the csv has none."""
    text = row.get({"seconds": "scoring_seconds"}.get(name, name), "")
    if not text:
        return None
    if name in SWEEPS:
        return {str(int(float(row[SWEEPS[name]]))): float(text)}
    try:
        value = json.loads(text)
    except ValueError:  # a word
        return {"yes": True, "no": False}.get(text, text) if name == "bounds_nll" else text
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(text: str | None) -> float | None:
    return float(text) if text else None


if __name__ == "__main__":
    main()
