"""Claims: their verdicts, and how a page shows them.

The rows of a cell hold, in `claims`, as JSON, the verdicts on claims whose first cell it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from glas_bench import decide
from glas_bench.decide import NO_VERDICT
from glas_bench.record import SeedRecord
from glas_bench.report.columns import Notes, budget, table
from glas_bench.report.table import TableRow
from glas_bench.study import Study
from glas_bench.text import interval, p_value, setting

CLAIMS = (
    "A claim is judged at looks, after fixed numbers of seeds. Its interval compares the arms' "
    "means over seeds (Welch; the images' own error is added in quadrature) and is a repeated one: "
    "all intervals of all {comparisons} comparisons of this page, over all looks, hold together "
    "with probability .95 (Lan and DeMets 1983; Jennison and Turnbull 1989; alpha is divided by "
    "the comparisons). *Reproduced*: the whole interval lies more than the margin on the side that "
    "the claim predicts; *opposite*: on the other side; *no larger difference*: within the margin "
    "on both sides; *not reproduced*: short of the margin; otherwise *undecided*. The first look "
    "that decides is final. Means in nats are over seeds that left the mean image. Shares of seeds "
    "have exact intervals (Chan and Zhang 1999; Clopper and Pearson 1934)."
)


def write(
    study: Study, cells: Sequence[TableRow], seeds: Mapping[tuple[str, int], SeedRecord]
) -> None:
    """Judge the claims and write the verdicts into the rows of their first cells.

    A cell that was run on two editions of its data has two table rows; each edition is judged, and
    cells that have not begun belong to the first.
    """
    judged: dict[int, list[dict[str, Any]]] = {}
    editions = dict.fromkeys(data for cell in cells if (data := cell.says("data_hash")))
    first = next(iter(editions), "")
    for edition in editions or {"": None}:
        there = {cell.name: cell for cell in cells if (cell.says("data_hash") or first) == edition}
        arms = {}
        for cell in (cell for cell in study.cells if cell.name in there):
            key = there[cell.name].says("config_key")
            own = {seed: record for (other, seed), record in seeds.items() if other == key}
            arms[cell.name] = decide.Arm(replace(cell, key=key), own)
        for verdict in decide.judge(study, arms):
            names = verdict.comparison.cells
            if names[0] not in there:
                continue
            rows = [there[name] for name in dict.fromkeys(names) if name in there]
            document = verdict.document() | {
                "titles": [there[name].title if name in there else name for name in names],
                "at": {key: setting(value) for key, value in verdict.comparison.at.items()},
                "untuned": [each.label for each in rows if not each.first.get("tuned")],
                "slack": "nll" in verdict.claim.expectation.metrics
                and any(
                    row.get("nll_bound_only") == "true" for each in rows for row in each.finished
                ),
            }
            judged.setdefault(id(there[names[0]]), []).append(document)
    for row in cells:
        if id(row) in judged:
            row.write({"claims": json.dumps(judged[id(row)], sort_keys=True)})


def claims_of(cells: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return all judged comparisons of a page, by claim."""
    claims = [one for cell in cells for one in json.loads(cell.first.get("claims") or "[]")]
    return sorted(claims, key=lambda one: one["claim"])


def section(cells: Sequence[TableRow]) -> str:
    """Return the section on claims; nothing where there are none."""
    claims = claims_of(cells)
    if not claims:
        return ""
    notes = Notes("c")
    rows = _rows(cells, lambda one: notes.mark(_why(one)))
    lines = ["## Claims", ""]
    without = []
    if len({row["budget"] for row in rows}) == 1:
        lines += [f"At this budget: {rows[0]['budget']}.", ""]
        without = ["budget"]
    about = CLAIMS.format(comparisons=len(claims))
    return "\n".join([*lines, *table(rows, without), about, "", *notes.lines()])


def index(pages: Mapping[str, Sequence[TableRow]]) -> str:
    """Return the section on the verdicts of several pages, by their files; nothing without any."""
    rows = []
    for page, cells in pages.items():
        if {one["verdict"] for one in claims_of(cells)} <= {NO_VERDICT}:
            continue
        link = f"[{cells[0].first['study']}]({page}.md)"
        rows += [{name: row[name] for name in row if name} | {"page": link} for row in _rows(cells)]
    about = (
        "Claims, each with its repeated interval; those of a page all hold with probability .95."
    )
    return "\n".join(["## Verdicts", "", *table(rows), about, ""]) if rows else ""


def _rows(
    cells: Sequence[TableRow], mark: Callable[[Mapping[str, Any]], str] = lambda one: ""
) -> list[dict[str, str]]:
    """Return a table's rows, one a comparison, with a mark at the verdict."""
    by_name, seen, rows = {cell.name: cell for cell in cells}, set(), []
    for one in claims_of(cells):
        is_new = one["claim"] not in seen
        arms = [by_name[name].first for name in one["cells"] if name in by_name]
        seen.add(one["claim"])
        rows.append(
            {
                "": str(one["claim"]) if is_new else "",
                "claim": f"{one['text']} ({one['source']})" if is_new else "",
                "as a comparison": f"`{one['expect']}`" + (f" at {at}" if (at := _at(one)) else ""),
                "left minus right": _measured(one),
                "look": _look(one),
                "verdict": f"**{word(one)}**{mark(one)}",
                "budget": budget(next((row for row in arms if row.get("updates")), arms[0])),
            }
        )
    return rows


def word(one: Mapping[str, Any]) -> str:
    """Return a verdict; of an undecided claim also whether it has seeds, and gets more."""
    if one["verdict"] != "undecided":
        return str(one["verdict"])
    if not one["looks"]:
        return "no look yet"
    return "undecided so far" if one["wanted"] else "undecided"


def _at(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in one["at"].items())


def _measured(one: Mapping[str, Any]) -> str:
    """Return the estimate with its repeated interval, in the metric's unit."""
    if one["estimate"] is None:
        return "–"
    unit = "" if one["unit"] == "share" else one["unit"]
    return interval(one["estimate"], one["low"], one["high"], unit).replace("-", "−")


def _look(one: Mapping[str, Any]) -> str:
    """Return the last look taken, of how many, and its seeds."""
    if not one["looks"]:
        return f"none of {len(one['planned'])}"
    last = one["looks"][-1]
    return (
        f"{last['number']} of {len(one['planned'])} ({last['seeds']} of at most "
        f"{one['planned'][-1]} seeds)"
    )


def _why(one: Mapping[str, Any]) -> str:
    parts = [one["why"]] if one["why"] else []
    if one["unit"] != "share" and one["escaped"]:
        counts = dict(zip(one["titles"], one["escaped"], strict=True))
        if any(some < seeds for some, seeds in counts.values()):
            left = (f"{some} of {seeds} of {name}" for name, (some, seeds) in counts.items())
            in_nats = one["unit"] == "nats"
            what = "seeds that left the mean image" if in_nats else "seeds in the means"
            parts.append(f"{what}: {', '.join(left)}")
            if in_nats and one["escape_p"] is not None:
                parts.append(
                    f"log-rank of the epochs in which they did: {p_value(one['escape_p'])}"
                )
    if one["margin"]:
        parts.append(f"margin {one['margin']:g} {one['unit']}")
    parts += [one["outlook"]] if one["outlook"] else []
    if one["verdict"] != NO_VERDICT and one["untuned"]:
        parts.append(f"untuned: {', '.join(one['untuned'])}")
    if measured := (one["looks"] or [{}])[-1].get("slack"):
        parts.append(
            f"its interval includes {measured:.2f} nats by which, measured by AIS, its bounds may "
            "lie above -log p(x)"
        )
    elif one.get("slack"):
        parts.append("part of the difference may be slack of the bounds")
    return "; ".join(parts)


def counted(cells: Sequence[TableRow]) -> str:
    """Return how many comparisons ended with each verdict."""
    claims = claims_of(cells)
    counts = Counter(map(word, claims))
    if counts.keys() <= {NO_VERDICT}:
        return in_one_line(cells)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def in_one_line(cells: Sequence[TableRow]) -> str:
    """Return the verdicts in one line."""
    claims = claims_of(cells)
    if not claims:
        return "no claims"
    if {one["verdict"] for one in claims} == {NO_VERDICT}:
        return f"no verdicts: {claims[0]['why'].partition(':')[0]}"
    by_claim: dict[tuple[int, str], list[str]] = {}
    for one in claims:
        found = word(one) + (f" ({at})" if (at := _at(one)) else "")
        by_claim.setdefault((one["claim"], one["expect"]), []).append(found)
    return "; ".join(f"`{text}`: {', '.join(words)}" for (_, text), words in by_claim.items())
