"""The tidy csv of a page: one row a seed, everything as text, the same bytes for the same rows."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from glas_bench.errors import UsageError
from glas_bench.record.scores import STATUSES
from glas_bench.report.records import SCHEMA
from glas_bench.report.table import COMPARED, Row

FIRST = (
    *("study", "cell", "variant", "seed", "status", "reason", "diverged_step", "rank", "rank_to"),
    *("ranked_by", "nll", "nll_from", "nll_bound_only", "compared_with"),
    *("nll_difference", "nll_low", "nll_high", "nll_p", "nll_p_bh", "nll_pairs", "nll_apart"),
    *("elbo_difference", "elbo_low", "elbo_high", "elbo_p", "elbo_p_bh", "elbo_pairs"),
    *("elbo_apart", "elbo", "elbo_status", "iw", "iw_status", "samples", "refit_iw", "v_mean"),
    *("objective", "objective_gap", "recon", "charge", "kl", "aux", "bounds_nll", "failed"),
    *("tuned", "seconds", "scoring_seconds", "images_per_second", "peak_memory_bytes"),
    *("parameters", "dataset", "binarisation", "images", "protocol_key", "protocol"),
    *("config_key", "commit", "dirty", "device", "ended"),
)
"""Columns that come first, in this order; the others follow by name."""

ONCE = ("figures", "skipped", "remarks")
"""Columns of JSON about the whole page, which only the first row has in the file."""

NEEDED = ("schema", "study", "cell", "variant", "seed", "status")


def write(rows: Sequence[Row]) -> bytes:
    """Return the csv of a page's rows."""
    names = {name for row in rows for name, value in row.items() if value}
    names |= set(NEEDED)
    columns = [name for name in FIRST if name in names]
    columns += sorted(names - set(columns))
    table = pd.DataFrame([[row.get(name, "") for name in columns] for row in rows], columns=columns)
    for name in set(ONCE) & set(columns):
        table[name] = table[name].mask(table[name].duplicated(), "")
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue().encode()


def read(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a csv that `write` wrote, or some of their columns.

    Raises:
        UsageError: there is no such file, or `write` did not write it.
    """
    try:
        wanted = None if columns is None else {*columns, *NEEDED}.__contains__
        table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=wanted)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UsageError(f"{path} cannot be read as csv: {error}") from error
    missing = [name for name in NEEDED if name not in table.columns]
    if missing or table.empty:
        lacks = f"it lacks {', '.join(missing)}" if missing else "it has no rows"
        raise UsageError(f"{path} is no csv of `glas-bench report`: {lacks}")
    for name in set(ONCE) & set(table):
        table[name] = next(filter(None, table[name]), "")
    rows: list[Row] = table.to_dict("records")  # type: ignore[assignment]
    if {row["schema"] for row in rows} != {SCHEMA}:
        raise UsageError(
            f"{path} was written by another version of glas-bench, and this one reads schema "
            f"{SCHEMA}: report its study again, or read the page beside it"
        )
    if len({row["study"] for row in rows}) > 1:
        raise UsageError(f"{path} holds more than one study; one page has one csv")
    for line, row in enumerate(rows, 2):
        for name, value in row.items():
            if value.lower() in ("true", "false"):  # capitals, where a spreadsheet saved it
                row[name] = value.lower()
        for name, fits in _FITS.items():
            if (value := row.get(name, "")) and not fits(value):
                raise UsageError(
                    f"{path}:{line}: {name} {value!r} is not as `glas-bench report` writes it; was "
                    "it saved by a spreadsheet? Report the study again"
                )
    return rows


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


_NUMBERS = ("nll", "elbo", "iw", "refit_iw", "v_mean", "objective", "recon", "charge", "kl", "aux")
_COMPARISON = ("difference", "low", "high", "p", "p_bh")
_FITS: dict[str, Callable[[str], object]] = {
    "seed": str.isdecimal,
    "status": STATUSES.__contains__,
    "config_key": lambda text: not re.fullmatch(r"[\d.,]+E\+?\d+", text),
    **dict.fromkeys(("failed", "bound_only", "nll_bound_only"), ("true", "false").__contains__),
    **dict.fromkeys(("rank", "rank_to"), str.isdecimal),
    **dict.fromkeys(_NUMBERS, _is_number),
    **{f"{a}_{b}": _is_number for a in COMPARED for b in _COMPARISON},
}
"""By column, whether a value in it is one; a spreadsheet has its own ways of writing them."""
