"""The index: every page whose csv lies in the folder, with its verdicts in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glas_bench.errors import GlasBenchError
from glas_bench.report import csv_file, page
from glas_bench.report.cells import KEYS, cells, complete
from glas_bench.report.markdown import table

COLUMNS = ("question", "claims", "ended", *KEYS.values())
"""What the index is made from."""


def render(out: Path) -> tuple[str, list[str]]:
    """Return the index's markdown, and what could not be read."""
    rows: list[list[str]] = []
    problems = []
    for path in sorted(out.glob("*.csv")):
        try:
            found = csv_file.read(path, COLUMNS)
        except GlasBenchError as error:
            problems.append(str(error))
            continue
        made = cells(found)
        done, of = complete(made)
        name = found[0]["study"]
        rows.append(
            [
                f"[{name}]({path.stem}.md)",
                found[0].get("question") or "runs by hand",
                f"{done} of {of}",
                max((row.get("ended", "") for row in found), default="") or "–",
                page.verdicts(made),
                f"[csv]({path.name})",
            ]
        )
    return "\n".join(_lines(rows)), problems


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        "# glas-bench report",
        "",
        "Which change to a recurrent VAE helps, which does not, and by how much: one page a study, "
        "each made from the csv beside it (`glas-bench report FILE.csv` renders it again).",
        "",
    ]
    if not rows:
        return [*lines, "No runs yet: `glas-bench run --variant hellinger`.", ""]
    columns = ["study", "question", "cells complete", "newest run", "verdicts", "data"]
    return [*lines, *table(columns, rows), page.STATISTICS, ""]
