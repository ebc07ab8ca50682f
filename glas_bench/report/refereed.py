"""A page's section on the referee, from the rows of its csv: what AIS says of the runs it was asked
about, beside their nll on the same images."""

from __future__ import annotations

from collections.abc import Sequence

from glas_bench.report.cells import NBSP, Cell, Row, number
from glas_bench.report.markdown import plain, table

ABOUT = (
    "Annealed importance sampling (Neal 2001; Wu et al. 2017) needs no q. ais minus nll: the mean "
    "over the images that it walked, paired, ± its standard error; below zero it is slack of the "
    "bound. ais: nll of all scored images plus that. It is *accepted* where the estimates at N and "
    "2N temperatures agree within 0.5 nats in the mean over images, and so do walks to and from "
    "images that the model has made (BDMC gap, Grosse et al. 2015); else it has no number. It is "
    "of few images and single runs, and ranks nothing."
)

COLUMNS = (
    *("variant", "seed", "images", "N (chains)", "2N minus N", "BDMC gap", "referee"),
    *("nll", "ais minus nll", "ais"),
)


def section(found: Sequence[Cell]) -> str:
    """Return the section's markdown; nothing where no run was refereed."""
    asked = [(cell, row) for cell in found for row in cell.finished if row.get("ais_status")]
    if not asked:
        return ""
    rows = [_line(cell, row) for cell, row in asked]
    return "\n".join(["## The referee", "", *table(COLUMNS, rows), ABOUT, ""])


def _line(cell: Cell, row: Row) -> list[str]:
    nll, less = number(row, "nll"), number(row, "ais_less_nll")
    return [
        cell.title,
        row["seed"],
        plain(number(row, "ais_images"), 0),
        f"{plain(number(row, 'ais_temperatures'), 0)} ({plain(number(row, 'ais_chains'), 0)})",
        _with_error(row, "ais_change"),
        _with_error(row, "ais_gap"),
        row["ais_status"],
        plain(nll),
        _with_error(row, "ais_less_nll"),
        plain(None if nll is None or less is None else nll + less),
    ]


def _with_error(row: Row, column: str) -> str:
    value, error = number(row, column), number(row, f"{column}_error")
    if value is None:
        return "–"
    return plain(value, signed=True) + (f"{NBSP}±{NBSP}{error:.2f}" if error is not None else "")
