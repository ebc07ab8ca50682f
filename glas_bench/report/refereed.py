"""A page's section on the referee, from the rows of its csv: what AIS says of the runs it was asked
about, beside their nll on the same images."""

from __future__ import annotations

from collections.abc import Sequence

from glas_bench.report.cells import NBSP, Cell, Row, number, protocol
from glas_bench.report.markdown import Notes, plain, table

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
    notes = Notes("ais")
    rows = [_line(cell, row, notes) for cell, row in asked]
    return "\n".join(["## The referee", "", *table(COLUMNS, rows), ABOUT, "", *notes.lines()])


def _line(cell: Cell, row: Row, notes: Notes) -> list[str]:
    nll, less = number(row, "nll"), number(row, "ais_less_nll")
    beside = _with_error(row, "ais_less_nll")
    if less is not None and not _by_its_own_protocol(row):
        less = None
        beside = "–" + notes.mark(
            "AIS was set beside the run's own scores, and these are of another K or other images"
        )
    return [
        cell.title,
        row["seed"],
        plain(number(row, "ais_images"), 0),
        f"{plain(number(row, 'ais_temperatures'), 0)} ({plain(number(row, 'ais_chains'), 0)})",
        _with_error(row, "ais_change"),
        _with_error(row, "ais_gap"),
        row["ais_status"],
        plain(nll),
        beside,
        plain(None if nll is None or less is None else nll + less),
    ]


def _by_its_own_protocol(row: Row) -> bool:
    scored = protocol(row)
    return all(str(scored.get(name)) == row.get(f"params.{name}") for name in ("samples", "images"))


def _with_error(row: Row, column: str) -> str:
    value, error = number(row, column), number(row, f"{column}_error")
    if value is None:
        return "–"
    return plain(value, signed=True) + (f"{NBSP}±{NBSP}{error:.2f}" if error is not None else "")
