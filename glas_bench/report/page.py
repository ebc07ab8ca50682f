"""The markdown of a page, from the rows of its csv and nothing else; and the index of all pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glas_bench.errors import GlasBenchError
from glas_bench.record import join_statuses
from glas_bench.report import csv_file, verdicts
from glas_bench.report.columns import (
    DIFFERENCES,
    Notes,
    budget,
    decimal,
    listed,
    measured,
    results,
    table,
)
from glas_bench.report.table import (
    KEYS,
    MOST_TABLES,
    Row,
    Table,
    TableRow,
    complete,
    coverage,
    differing,
    drawn_as,
    protocol,
    short,
    statuses,
    table_rows,
    tables,
    unit_of,
    value_of,
)
from glas_bench.text import calibrated, count, data_origin, seed_ranges

REFEREE = (
    "Annealed importance sampling (Neal 2001; Wu et al. 2017) needs no q. ais minus nll: the "
    "paired mean over the images that AIS scored, ± its standard error; below zero it is slack of "
    "the bound. ais: nll over all scored images plus this difference. AIS is *accepted* where the "
    "means over images at N and 2N temperatures agree within 0.5 nats, and so do forward and "
    "backward annealing on images sampled from the model (BDMC gap, Grosse et al. 2015); "
    "otherwise it has no number. It covers few images of single runs and ranks nothing."
)

NO_TEXT = (
    "- Text: the write-up leaves text data to future work, and no version of its code has it; this "
    "page covers images alone.\n"
)
NOT_COVERED = (
    "- Published numbers: they hold for the budget and the split of their sources, where these are "
    "known; results at another budget neither confirm nor refute them.\n"
)

TITLE = "# glas-bench report"
"""First line of the index."""

INDEX = "README"
"""Its file's stem."""

OF_PAGES = (
    "All variants of these pages; a seed that pages share is drawn once. Compare "
    "directions among the seeds of one variant."
)
"""What the index says below each of its figures."""

ARCHIVE = "archive/README.md"
"""Where a folder of pages keeps those of earlier protocols."""

INDEXED = (
    *("question", "claims", "ended", "updates", "config_key", "is_baseline"),
    *("effective_dimensions", "nll", *KEYS.values()),
)
"""Columns of a csv that the index is made from."""


def render(rows: Sequence[Row]) -> str:
    """Return the markdown of a page."""
    cells = table_rows(rows)
    has_text = any(row.get("binarisation") == "none" for row in rows)
    parts = [
        _head(rows, cells),
        verdicts.section(cells),
        _tables(cells),
        _referee(cells),
        _figures(rows, cells),
        _reproduction(cells),
        _coverage(rows, cells),
        "## Not covered\n\n" + NO_TEXT * (not has_text) + NOT_COVERED,
    ]
    return "\n".join(part for part in parts if part)


def _head(rows: Sequence[Row], cells: Sequence[TableRow]) -> str:
    by_hand = "Runs made one by one with `glas-bench run`; they belong to no study."
    lines = [f"# {rows[0]['study']}", "", rows[0].get("question") or by_hand, ""]
    if any(row.get("look") for row in rows):
        lines += ["**A look at the harness, no verdicts**: its preset is for a first look.", ""]
    lines += [
        f"Numbers are nats per {unit_of(rows)} on the test split, with the parameters of the last "
        "epoch; lower is better. Means over finished seeds, ± their standard deviation.",
        "",
    ]
    if scored := next((row for row in rows if row.get("bigram_nll")), None):
        about = calibrated(float(scored["unigram_nll"]), float(scored["bigram_nll"]))
        lines += [f"An image on this page is a line of 28 characters, one-hot. {about}", ""]
    lines += [f"- {name}: {value}" for name, value in _facts(rows, cells)]
    return "\n".join([*lines, ""])


def _facts(rows: Sequence[Row], cells: Sequence[TableRow]) -> Iterator[tuple[str, str]]:
    first = rows[0]
    if first.get("command"):
        yield "command", f"`{first['command']}`"
    yield "coverage", coverage(cells)
    yield "newest run", newest(rows) or "none yet"
    dirty = " with uncommitted changes"
    known = (row for row in rows if row.get("commit"))
    yield "commit", listed(row["commit"] + dirty * bool(row.get("dirty")) for row in known)
    yield "devices", listed(row.get("device", "") for row in rows)
    ran = [row for row in rows if row["status"] == "complete"] or rows
    yield "data", "; ".join(sorted({_data(row) for row in ran}))
    yield "estimators", _estimators(ran)
    yield "budget", "; ".join(sorted({budget(row) for row in ran}))
    yield "seeds", seed_ranges(sorted({int(row["seed"]) for row in ran}))
    for file in sorted({row.get("read_from", "") for row in ran} - {""}):
        some = count(sum(row.get("read_from") == file for row in ran), "seed")
        yield "read from", f"{file}, without values of single images or curves: {some}"


def newest(rows: Sequence[Row]) -> str:
    """Return the day of the newest run; empty where there is none."""
    return max(row.get("ended", "") for row in rows)


def _data(row: Row) -> str:
    other = data_origin(row.get("data_origin"))
    parts = [f"{row['dataset']}, {drawn_as(row['binarisation'])}{other}"]
    parts += [count(int(row["images"]), f"test {unit_of([row])}")] if row.get("images") else []
    return ", ".join(parts)


def _estimators(rows: Sequence[Row]) -> str:
    ks = sorted({int(row["samples"]) for row in rows if row.get("protocol") and row.get("samples")})
    names = sorted({name for row in rows for name in protocol(row).get("estimators", ())})
    text = ", ".join(names) or "elbo, iw"
    text += f"; K = {', '.join(map(str, ks))}" if ks else ""
    if "refit" not in names:
        return text
    return f"{text}; nll is the smaller of iw and refit_iw, chosen on validation images"


def _tables(cells: Sequence[TableRow]) -> str:
    groups = tables(cells)
    lines = ["## Tables", ""]
    if not groups:
        return "\n".join([*lines, "No cell has been started.", ""])
    if len(groups) > 1:
        apart = differing(*(list(group.common.values()) for group in groups))
        lines += [
            f"{len(groups)} tables: rows that differ in {apart} are not comparable, "
            "so each group has its own.",
            "",
        ]
    if any(group.compared for group in groups):
        lines += [DIFFERENCES, ""]
    planned = {name: len(seeds) for name, seeds in statuses(cells).items()}
    counts = {name: len({group.common[name] for group in groups}) for name in KEYS}
    named = [name for name, count in counts.items() if count > 1]
    if counts["data"] == counts["contents"]:
        named = [name for name in named if name != "contents"]  # the data sets' names are enough
    for place, group in enumerate(groups, 1):
        lines += [f"### {place}. {_heading(group, named)}", "", *results(place, group, planned)]
    return "\n".join(lines)


def _heading(group: Table, named: Sequence[str]) -> str:
    """Return a table's name: its data, and all in which it differs from the page's others."""
    common = group.common
    images = {row["images"] for cell in group.rows for row in cell.seeds if row.get("images")}
    parts = [common["data"], drawn_as(common["binarisation"])]
    unit = unit_of([cell.first for cell in group.rows])
    plural = "s" * (images != {"1"})
    parts += [f"{' or '.join(sorted(images))} test {unit}{plural}"] if images else []
    words = {
        "contents": f"contents {common['contents'][:8] or 'unknown'}",
        "precision": common["precision"] or "fp32",
        "scoring": f"protocol {common['scoring'][:8] or 'none'}",
        "core": f"core {common['core'] or 'unknown'}",
        "look": "a preset for a first look" if common["look"] else "no preset for a first look",
    }
    shown = (name for name in named if name not in ("data", "binarisation"))
    return ", ".join([*parts, *(words.get(n, f"{n} = {common[n] or 'none'}") for n in shown)])


def _referee(cells: Sequence[TableRow]) -> str:
    asked = [(cell, row) for cell in cells for row in cell.finished if row.get("ais_status")]
    if not asked:
        return ""
    notes = Notes("ais")
    rows = [_refereed(cell, row, notes) for cell, row in asked]
    return "\n".join(["## The referee", "", *table(rows), REFEREE, "", *notes.lines()])


def _refereed(cell: TableRow, row: Row, notes: Notes) -> dict[str, str]:
    def signed(column: str) -> str:
        error = value_of(row, f"{column}_error")
        return decimal(value_of(row, column), error=error, signed=True)

    def count(column: str) -> str:
        return decimal(value_of(row, column), 0)

    nll, less, beside = value_of(row, "nll"), value_of(row, "ais_less_nll"), signed("ais_less_nll")
    scored = protocol(row)
    alike = all(str(scored.get(n)) == row.get(f"params.{n}") for n in ("samples", "images"))
    if less is not None and not alike:
        less = None
        beside = "–" + notes.mark(
            "AIS was compared with other scores of the run, by another K or on other images"
        )
    return {
        "variant": cell.title,
        "seed": row["seed"],
        "images": count("ais_images"),
        "N (chains)": f"{count('ais_temperatures')} ({count('ais_chains')})",
        "2N minus N": signed("ais_change"),
        "BDMC gap": signed("ais_gap"),
        "referee": row["ais_status"],
        "nll": decimal(nll),
        "ais minus nll": beside,
        "ais": decimal(None if nll is None or less is None else nll + less),
    }


def figures_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a page's figures: file, title, caption."""
    figures: list[dict[str, str]] = json.loads(rows[0].get("figures") or "[]")
    return figures


def _figures(rows: Sequence[Row], cells: Sequence[TableRow]) -> str:
    figures = figures_of(rows)
    if not figures:
        return ""
    lines = ["## Figures", ""]
    if len(tables(cells)) > MOST_TABLES:
        lines += [f"Of the first {MOST_TABLES} tables alone.", ""]
    for one in figures:
        lines += [f"### {one['title']}", "", *_figure(one)]
    return "\n".join(lines)


def _reproduction(cells: Sequence[TableRow]) -> str:
    notes = Notes("r")
    rows = [
        _beside(cell, one, notes)
        for cell in cells
        if cell.first.get("as_published") == "yes"
        for one in json.loads(cell.first.get("published") or "[]")
        if one["dataset"] == cell.first["dataset"].replace("mnist-5k", "mnist-static")
    ]
    if not rows:
        return ""
    lines = [
        *("## Reproduction", "", *table(rows)),
        "*unverified*: the split, or the exact quantity, could not be established.",
        "",
    ]
    return "\n".join([*lines, *notes.lines()])


_SYMBOLS = {"sample_size": "Z", "hidden": "H", "batch": "B"}


def _beside(cell: TableRow, one: Mapping[str, Any], notes: Notes) -> dict[str, str]:
    """Return a published number beside ours; no difference where the two are not alike."""
    nats = f"{'<= ' * one['bound']}{one['nats']:.2f}{' *unverified*' * (not one['verified'])}"
    elbo, reasons = cell.mean("elbo"), list(_unlike(cell, one))
    nats += notes.mark(one["remark"]) if one["remark"] else ""
    apart = decimal(None if elbo is None else elbo - one["nats"], signed=True)
    if reasons:
        apart = "not alike" + notes.mark("; ".join(reasons))
    return {
        "variant": cell.title,
        "published": nats,
        "estimator": one["estimator"],
        "split": one["split"],
        "source": one["source"],
        "ours: elbo": measured(cell, "elbo", notes),
        "nll": measured(cell, "nll", notes),
        "difference of the elbo": apart,
    }


def _unlike(cell: TableRow, one: Mapping[str, Any]) -> Iterator[str]:
    first = cell.first
    if first["dataset"] != one["dataset"]:
        yield f"{first['dataset']} here, {one['dataset']} there"
    if one["grey"] and first["binarisation"] != "soft":
        yield f"{first['binarisation']} targets here, grey ones there"
    if not one["is_elbo"]:
        beside = one.get("beside", "objective")
        yield f"it corresponds to {beside}, which is {decimal(cell.mean(beside))} here"
    if one["steps"] and first.get("params.steps") not in ("", None, str(one["steps"])):
        yield f"T = {first['params.steps']} here, {one['steps']} there"
    for key, value in one.get("departs", {}).items():
        ours = short(first.get(f"params.{key}", ""))
        yield f"{_SYMBOLS.get(key, key)} = {ours} here, {value} there"
    if first.get("params.epochs") not in ("", None, "250"):
        theirs = "250 in the original's code" if one.get("epochs", 250) else "unknown there"
        yield f"{count(int(first['params.epochs']), 'epoch')} here, {theirs}"


_STATES = {
    "training": "running",
    "scoring": "running",
    "diverged": "complete",
    "not_applicable": "not applicable",
}
"""Words for a cell's joined status, where they differ."""


def _coverage(rows: Sequence[Row], cells: Sequence[TableRow]) -> str:
    lines = ["## Coverage", "", f"{coverage(cells)}.", ""]
    left = []
    for cell in cells:
        unfinished = [row for row in cell.seeds if row["status"] != "complete"]
        if unfinished:
            state = join_statuses(cell.count)
            counts = (f"{n} {status.replace('_', ' ')}" for status, n in cell.count.items())
            reasons = dict.fromkeys(row["reason"] for row in unfinished if row.get("reason"))
            left.append(
                {
                    "cell": cell.title,
                    "state": _STATES.get(state, state),
                    "seeds": ", ".join(counts),
                    "why": "; ".join(reasons) or "–",
                }
            )
    lines += table(left) if left else []
    if skipped := json.loads(rows[0].get("skipped") or "[]"):
        lines += ["Left out by the study:", ""]
        lines += [*(f"- {_skip(one)}: {one['why']}" for one in skipped), ""]
    if remarks := json.loads(rows[0].get("remarks") or "[]"):
        lines += ["Notes:", "", *(f"- {text}" for text in remarks), ""]
    return "\n".join(lines)


def _skip(one: Mapping[str, Any]) -> str:
    if one["axis"]:
        return f"`{one['variant']}` along {one['axis']}"
    settings = ", ".join(f"{key} = {value}" for key, value in one["params"].items())
    return f"`{one['variant']}` at {settings}"


def read_pages(folder: Path) -> tuple[dict[str, list[TableRow]], list[str]]:
    """Return by file stem what the index shows of each csv in a folder; and the problems."""
    pages: dict[str, list[TableRow]] = {}
    problems = []
    for path in sorted(folder.glob("*.csv")):
        try:
            pages[path.stem] = table_rows(csv_file.read(path, INDEXED))
        except GlasBenchError as error:
            problems.append(str(error))
    return pages, problems


def index(
    pages: Mapping[str, Sequence[TableRow]], figures: Sequence[Mapping[str, str]], has_archive: bool
) -> str:
    """Return the markdown of the list of all pages, with figures of all of them together."""
    lines = [
        TITLE,
        "",
        "Which change to a recurrent VAE helps, which does not, and by how much: one page per "
        "study, rendered from the csv beside it (again with `glas-bench report FILE.csv`).",
        "",
    ]
    entries = [
        {
            "study": f"[{cells[0].first['study']}]({stem}.md)",
            "question": cells[0].first.get("question") or "runs by hand",
            "cells complete": " of ".join(map(str, complete(cells))),
            "newest run": newest([row for cell in cells for row in cell.seeds]) or "–",
            "verdicts": verdicts.counted(cells),
            "data": f"[csv]({stem}.csv)",
        }
        for stem, cells in pages.items()
    ]
    none = ["No runs yet: `glas-bench run --variant hellinger`.", ""]
    lines += table(entries) if entries else none
    lines += [verdicts.index(pages)] if entries else []
    for one in figures:
        lines += [f"## {one['title']}", "", *_figure(one)]
        lines += [OF_PAGES, ""]
    if has_archive:
        lines += [f"Pages of earlier protocols are in the [archive]({ARCHIVE}).", ""]
    return "\n".join(lines)


def _figure(one: Mapping[str, str]) -> list[str]:
    return [f"![{one['title']}](figures/{one['file']})", "", one["caption"], ""]
