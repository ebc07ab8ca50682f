"""A page's markdown, from the rows of its csv and from nothing else.

One page from its head to what it does not cover, which is why the file is long.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glas_bench.report import refereed
from glas_bench.report.cells import (
    DRAWN,
    KEYS,
    NBSP,
    Cell,
    Row,
    Section,
    cells,
    complete,
    differing,
    number,
    planned,
    protocol,
    short,
    statuses,
    tables,
)
from glas_bench.report.judge import NONE
from glas_bench.report.markdown import Notes, plain, table, without
from glas_bench.text import duration

DIFFERENCES = (
    "Differences are paired by image and by seed; interval and p from the two-way (seed x image) "
    "random-effects variance (with one seed: over images alone). An interval is of its comparison "
    "alone; p is adjusted by Holm over all of the page's comparisons of that metric (rows with "
    "their baselines, and claims), so that an interval may leave out 0 where p is large."
)

STATISTICS = (
    f"{DIFFERENCES} A "
    "claim is *reproduced* when that p is below .05 and the whole 95 % interval lies more than 0.5 "
    "nats on the side it predicts, *not reproduced* when the whole interval lies short of that, "
    "else *undecided*; shares of seeds by exact McNemar, without a margin. Verdicts take five "
    "seeds, of which at most one in five may have diverged."
)

COLUMNS = (
    "elbo: the negative ELBO, one draw from the variant's own q; iw: the importance-weighted bound "
    "with K draws from it; refit_iw: the same with a common q that was refitted to the frozen "
    "decoder; objective: what was minimised, struck through where it is not shown to bound; "
    "v: Var(log w) of the importance weights that {metric} comes from, mean over images, and the "
    "share of images above 10; failed: seeds with a validation recon not 20 nats better than the "
    "pixel-wise Bernoulli, or under 1 nat of KL."
)
COMPARED = ("nll", "elbo", "iw", "refit_iw")
"""Metrics whose differences from the baseline have a column."""

GAP = "gap: nll minus an objective that is not shown to bound; at most so much is hidden."

STILL_GAINING = 0.1
"""Nats in the last tenth of a refit that are said, as in `yardstick.refit`, which takes torch."""

RANKS = (
    "Rows are in the order of {metric}. rank: the places that a row may have, after the rows shown "
    "to be better and before those shown to be worse (paired difference, more than one seed, "
    "p < .05, not adjusted)."
)

NOT_COVERED = (
    "- Text: applying the model to a text data set is future work in the write-up and is in no "
    "version of its code; images alone are covered.\n"
    "- Published numbers are of the budget and the split that their sources give or leave out; a "
    "page of another budget stands beside them and neither confirms nor refutes them.\n"
)


def render(rows: Sequence[Row]) -> str:
    """Return the markdown of a page."""
    found = cells(rows)
    parts = [
        _head(rows, found),
        _claims(found),
        _tables(found),
        refereed.section(found),
        _figures(rows, found),
        _reproduction(found),
        _coverage(rows, found),
        "## Not covered\n\n" + NOT_COVERED,
    ]
    return "\n".join(part for part in parts if part)


# --------------------------------------------------------------------------- head


def _head(rows: Sequence[Row], found: Sequence[Cell]) -> str:
    first = rows[0]
    lines = [f"# {first['study']}", ""]
    if first.get("question"):
        lines += [first["question"], ""]
    else:
        lines += ["Runs that were made by hand, one by one; no study plans them.", ""]
    if any(row.get("look") for row in rows):
        lines += [
            "**A look at the harness, no verdicts**: its preset is for a first look.",
            "",
        ]
    lines += [
        "Nats per image on the test split, lower is better, of the last epoch's parameters: means "
        "over finished seeds, ± their standard deviation.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in _facts(rows, found)]
    return "\n".join([*lines, ""])


def _facts(rows: Sequence[Row], found: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yield what a page's numbers are, as pairs."""
    first = rows[0]
    if first.get("command"):
        yield "repeat it", f"`{first['command']}`"
    yield "coverage", coverage(found)
    yield "newest run", max((row.get("ended", "") for row in rows), default="") or "none yet"
    commits = {
        row["commit"] + (" with uncommitted changes" if row.get("dirty") else "")
        for row in rows
        if row.get("commit")
    }
    yield "commit", ", ".join(sorted(commits)) or "unknown"
    ran = [row for row in rows if row["status"] == "complete"] or rows
    yield "devices", _every(rows, "device")
    yield "data", "; ".join(sorted({_data(row) for row in ran}))
    yield "estimators", _estimators(ran)
    yield "budget", "; ".join(sorted({budget(row) for row in ran}))
    yield "seeds", first.get("seeds") or _seeds_of(rows)


def coverage(found: Sequence[Cell]) -> str:
    """Return in a line how many cells are complete, and what the others are."""
    done, of = complete(found)
    counts = Counter(status for seeds in planned(found).values() for status in seeds.values())
    told = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    return f"{done} of {of} cells complete (seeds: {told})"


def _data(row: Row) -> str:
    origin = row.get("data_origin") or "published"
    other = "" if origin == "published" else f", {origin}, not the published data"
    images = f", {row['images']} test images" if row.get("images") else ""
    return f"{row['dataset']}, {row['binarisation']} binarisation{other}{images}"


def _estimators(rows: Sequence[Row]) -> str:
    """Return which estimators were scored, with every K."""
    scored = [row for row in rows if row.get("protocol")]
    ks = sorted({int(row["samples"]) for row in scored if row.get("samples")})
    names = sorted({name for row in scored for name in protocol(row).get("estimators", ())})
    told = ", ".join(names) or "elbo, iw"
    k = f"; K = {', '.join(map(str, ks))}" if ks else ""
    if "refit" not in names:
        return told + k
    return f"{told}{k}; nll is the smaller of iw and refit_iw, chosen on validation images"


def budget(row: Row) -> str:
    """Return what a row may spend."""
    names = (("params.epochs", "epochs"), ("updates", "updates"))
    told = [f"{row[name]} {word}" for name, word in names if row.get(name)]
    sizes = (("params.batch", "B"), ("params.steps", "T"), ("params.hidden", "H"))
    told += [f"{word} = {row[name]}" for name, word in sizes if row.get(name)]
    return ", ".join([*told, row.get("params.precision", "")]).rstrip(", ")


def _every(rows: Sequence[Row], name: str) -> str:
    return ", ".join(sorted({row.get(name, "") for row in rows} - {""})) or "unknown"


def _seeds_of(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({int(row["seed"]) for row in rows})))


# --------------------------------------------------------------------------- claims


def claims_of(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return all judged comparisons of a page, by claim."""
    told = [one for cell in found for one in json.loads(cell.first.get("claims") or "[]")]
    return sorted(told, key=lambda one: one["claim"])


def _claims(found: Sequence[Cell]) -> str:
    told = claims_of(found)
    if not told:
        return ""
    by_cell = {cell.name: cell for cell in found}
    notes = Notes("c")
    rows = []
    seen = set()
    for one in told:
        new = one["claim"] not in seen
        seen.add(one["claim"])
        rows.append(
            [
                str(one["claim"]) if new else "",
                f"{one['text']} ({one['source']})" if new else "",
                f"{one['left']} {'>' if '>' in one['expect'] else '<'} {one['right']}",
                one["metric"],
                _measured(one, notes),
                f"**{one['verdict']}**{notes.mark(_why(one))}",
                budget(by_cell[one["right_cell"]].first),
            ]
        )
    columns = ["", "claim", "as a comparison", "metric", "left minus right [95 %]", "verdict"]
    columns.append("budget")
    lines = ["## Claims", ""]
    if len({row[-1] for row in rows}) == 1:
        lines += [f"At this budget: {rows[0][-1]}.", ""]
        columns, rows = without(columns, rows, "budget")
    lines += [*table(columns, rows), STATISTICS, ""]
    return "\n".join([*lines, *notes.lines()])


def _measured(one: Mapping[str, Any], notes: Notes) -> str:
    if one["estimate"] is None:
        return "–"
    if one["low"] is None:
        return f"{one['estimate']:+.2f} ({one['pairs']}), p = {_p(one['p_holm'])}"
    return _interval(one["estimate"], one["low"], one["high"], one["p_holm"]) + notes.mark(
        f"paired over {one['pairs']}"
    )


def _why(one: Mapping[str, Any]) -> str:
    why = str(one["why"])
    if one["verdict"] != NONE and one["untuned"]:
        why += f"; {one['untuned']}"
    if one.get("slack"):
        why += "; part of the difference may be slack of the bounds"
    return why


def _interval(estimate: float, low: float, high: float, p: float | None) -> str:
    return f"{estimate:+.2f}{NBSP}[{low:+.2f},{NBSP}{high:+.2f}], p{NBSP}={NBSP}{_p(p)}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 1e-16" if value < 1e-16 else f"{value:.2g}"


def verdicts(found: Sequence[Cell]) -> str:
    """Return the verdicts in one line."""
    told = claims_of(found)
    if not told:
        return "no claims"
    if {one["verdict"] for one in told} == {NONE}:
        return f"no verdicts: {told[0]['why'].partition(':')[0]}"
    lines = []
    for number_ in sorted({one["claim"] for one in told}):
        own = [one for one in told if one["claim"] == number_]
        parts = []
        for one in own:
            at = ", ".join(f"{key} = {value}" for key, value in one["at"].items())
            parts.append(one["verdict"] + (f" ({at})" if at else ""))
        lines.append(f"`{own[0]['expect']}`: {', '.join(parts)}")
    return "; ".join(lines)


# --------------------------------------------------------------------------- tables


def _tables(found: Sequence[Cell]) -> str:
    """Return a table for each section, of the cells that have been begun."""
    groups = tables(found)
    lines = ["## Tables", ""]
    if not groups:
        return "\n".join([*lines, "No cell has been begun.", ""])
    if len(groups) > 1:
        lines += [
            f"{len(groups)} tables: rows that differ in {differing(groups)} are not comparable "
            "and never share one.",
            "",
        ]
    if not claims_of(found) and any(
        _is_compared(section.cells, metric) for section in groups for metric in COMPARED
    ):
        lines += [DIFFERENCES, ""]
    seeds = {name: len(own) for name, own in planned(found).items()}
    apart = [name for name in KEYS if len({section.common[name] for section in groups}) > 1]
    if len({s.common["data"] for s in groups}) == len({s.common["contents"] for s in groups}):
        apart = [name for name in apart if name != "contents"]  # the names tell them apart
    for place, section in enumerate(groups, 1):
        lines += [f"### {place}. {_heading(section, apart)}", ""]
        lines += _section(place, section, seeds)
    return "\n".join(lines)


def _draws(found: Sequence[Cell]) -> list[str]:
    """Say which rows train with several draws an image, whose steps cost as many times more."""
    several: dict[str, list[str]] = {}
    for cell in found:
        draws = cell.first.get("params.draws", "")
        if draws.isdecimal() and int(draws) > 1:
            several.setdefault(draws, []).append(f"`{cell.variant}`")
    return [
        f"In training {', '.join(dict.fromkeys(names))} takes {draws} draws an image: "
        f"{draws} times the work a step."
        for draws, names in several.items()
    ]


def _heading(section: Section, apart: Sequence[str]) -> str:
    """Return a section's name: its data, and all that keeps it from the page's others."""
    common = section.common
    images = {row["images"] for cell in section.cells for row in cell.seeds if row.get("images")}
    told = [common["data"], f"{common['binarisation']} binarisation"]
    told += [f"{' or '.join(sorted(images))} test images"] if images else []
    words = {
        "contents": f"contents {common['contents'][:8] or 'unknown'}",
        "precision": common["precision"] or "fp32",
        "scoring": f"protocol {common['scoring'][:8] or 'none'}",
        "core": f"core {common['core'] or 'unknown'}",
        "look": "a preset for a first look" if common["look"] else "no preset for a first look",
    }
    shown = (name for name in apart if name not in ("data", "binarisation"))
    return ", ".join([*told, *(words.get(n, f"{n} = {common[n] or 'none'}") for n in shown)])


def _section(place: int, section: Section, seeds: Mapping[str, int]) -> list[str]:
    """Return a section's lines below its heading; `seeds` is how many are planned, by cell."""
    common = section.common
    notes = Notes(str(place))
    order = sorted(section.cells, key=_by_mean)
    metric = next((cell.first["ranked_by"] for cell in order if cell.first.get("rank")), "nll")
    shown = [f"{name} = {common[name] or 'none'}" for name in ("K", "epochs", "T", "H", "B")]
    lines = [f"{common['precision'] or 'fp32'}, {', '.join(shown)}.", ""]
    compared = [name for name in COMPARED if _is_compared(order, name)]
    columns = ["rank", "variant", f"{metric} (K = {common['K']})"]
    columns += [f"{name} minus baseline [95 %]" for name in compared]
    columns += [
        "elbo",
        "iw",
        f"v of {metric} (over 10)",
        "objective",
        "gap",
        "aux",
        "seeds",
        "failed",
        "tuned",
    ]
    names = {cell.name: cell.title for cell in order}
    rows = []
    for cell in order:
        rows.append(
            [
                _ranks(cell),
                cell.title,
                _ranked(cell, metric, notes),
                *(_difference(cell, name, names, notes) for name in compared),
                _estimate(cell, "elbo", notes),
                _estimate(cell, "iw", notes),
                _v(cell, metric),
                *_objective(cell, notes),
                _seeds(cell, seeds[cell.name], notes),
                _failed(cell),
                "tuned" + notes.mark(cell.first["tuned"]) if cell.first.get("tuned") else "untuned",
            ]
        )
    if not any(cell.first.get("tuned") for cell in order):
        lines += ["Every row is untuned: nobody searched its learning rate.", ""]
        columns, rows = without(columns, rows, "tuned")
    about = [COLUMNS.format(metric=metric)]
    if not any(cell.mean("aux") for cell in order):
        columns, rows = without(columns, rows, "aux")
    if all(cell.says("bounds_nll") == "yes" for cell in order):
        columns, rows = without(columns, rows, "gap")
    else:
        about.append(GAP)
    about += _draws(order)
    lines += [*table(columns, rows), " ".join(about), ""]
    if sum(bool(cell.first.get("rank")) for cell in order) > 1:
        lines += [RANKS.format(metric=metric), ""]
    if metric == "nll":
        lines += _still_gaining(order)
    return [*lines, *_costs(order, notes), *notes.lines()]


def _by_mean(cell: Cell) -> tuple[float, str]:
    value = cell.mean(cell.first.get("ranked_by", "nll"))
    return math.inf if value is None else value, cell.name


def _is_compared(order: Sequence[Cell], metric: str) -> bool:
    return any(cell.first.get(f"{metric}_difference") for cell in order)


def _ranks(cell: Cell) -> str:
    first, last = cell.first.get("rank", ""), cell.first.get("rank_to", "")
    return first if first == last else f"{first}–{last}"


def _ranked(cell: Cell, metric: str, notes: Notes) -> str:
    text = _estimate(cell, metric, notes)
    if cell.mean(metric) is None:
        return text
    if metric == "nll":
        sources = {row.get("nll_from", "") for row in cell.finished} - {""}
        text += f" {' / '.join(sorted(sources))}"
    tag = "nll_bound_only" if metric == "nll" else "bound_only"
    if any(row.get(tag) == "true" for row in cell.finished):
        text += notes.mark(
            "a bound only: the log weights of over 5 % of the images have a variance above 10"
        )
    return f"**{text}**" if "[^" not in text else f"**{text.replace('[^', '**[^', 1)}"


def _gains(cell: Cell) -> list[float]:
    """Return what the refits that nll comes from gained in their last tenth, nats per image."""
    refitted = [row for row in cell.finished if row.get("nll_from") == "refit_iw"]
    return [gain for row in refitted if (gain := number(row, "refit_last_gain")) is not None]


def _still_gaining(order: Sequence[Cell]) -> list[str]:
    """Return a line where refits that nll comes from had not settled."""
    gains = [gain for cell in order for gain in _gains(cell)]
    large = [gain for gain in gains if gain > STILL_GAINING]
    if not large:
        return []
    return [
        f"{len(large)} of the {len(gains)} refits that nll comes from were still gaining more than "
        f"{STILL_GAINING} nats in their last tenth, up to {max(large):.2f}: it is that much looser "
        "at least (below, the largest of a row's seeds).",
        "",
    ]


def _estimate(cell: Cell, metric: str, notes: Notes) -> str:
    """Return mean and spread, or the footnoted reason for their absence."""
    mean, spread, status = cell.mean(metric), cell.spread(metric), cell.status(metric)
    if not cell.finished:
        return "–"
    if status == "infinite":
        return "∞" + notes.mark(
            f"infinite {metric}: the recogniser leaves the prior's support, where p(z) = 0"
        )
    if status == "undefined" and mean is None:
        return "undefined" + notes.mark(f"undefined {metric}: the recogniser has no density")
    return plain(mean) + (f"{NBSP}±{NBSP}{spread:.2f}" if spread is not None else "")


def _difference(cell: Cell, metric: str, names: Mapping[str, str], notes: Notes) -> str:
    first = cell.first
    if not first.get("compared_with"):
        return "baseline" if first.get("is_baseline") else "–"
    told = [number(first, f"{metric}_{name}") for name in ("difference", "low", "high", "p_holm")]
    estimate, low, high, p = told
    if estimate is None or low is None or high is None:
        why = first.get(f"{metric}_apart")
        known = bool(why and cell.finished)
        return "–" + (notes.mark(f"no difference in {metric}: {why}") if known else "")
    pairs = first[f"{metric}_pairs"]
    beside = notes.mark(f"paired over {pairs}, against {names[first['compared_with']]}")
    return _interval(estimate, low, high, p) + beside


def _v(cell: Cell, metric: str) -> str:
    """Return Var(log w) of the weights that the ranked number came from, and the share over 10."""
    if not cell.finished:
        return "–"
    told: dict[str, list[float | None]] = {"v_mean": [], "v_over_10_share": []}
    for row in cell.finished:
        refitted = metric == "nll" and row.get("nll_from") == "refit_iw"
        for name, values in told.items():
            values.append(number(row, f"refit_{name}" if refitted else name))
    means = [_mean(values) for values in told.values()]
    wide = f"{NBSP}({100 * means[1]:.0f}{NBSP}%)" if means[1] else ""
    return plain(means[0]) + wide


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, if every value is there."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _objective(cell: Cell, notes: Notes) -> tuple[str, str, str]:
    """Return what was optimised, struck through where it bounds nothing, its gap there, and aux."""
    objective, nll = cell.mean("objective"), cell.mean("nll")
    aux = plain(cell.mean("aux")) if cell.mean("aux") else "–"
    text = plain(objective)
    if objective is None or cell.says("bounds_nll") == "yes":
        return text, "–", aux
    gap = None if nll is None else nll - objective
    reason = cell.says("bound_reason").rstrip(".")
    why = f": {reason}" if reason else ""
    word = "does not bound" if cell.says("bounds_nll") == "no" else "is not shown to bound"
    mark = notes.mark(f"the objective of {cell.title} {word} the negative log-likelihood{why}")
    return f"~~{text}~~{mark}", plain(gap, signed=True), aux


def _seeds(cell: Cell, of: int, notes: Notes) -> str:
    """Return n of N planned with every other status, each footnoted with its reason."""
    text = f"{len(cell.finished)} of {of}"
    if len(cell.seeds) < of:
        text += notes.mark(f"the other seeds of {cell.title} stand in another table")
    for status, these in statuses(cell):
        text += f", {len(these)} {status.replace('_', ' ')}"
        told: dict[str, list[str]] = {}
        for row in these:
            step = row.get("diverged_step", "")
            parts = (f"step {step}" if step else "", row.get("reason", ""))
            if why := ", ".join(part for part in parts if part):
                told.setdefault(why, []).append(row["seed"])
        for why, seeds in told.items():
            who = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"
            text += notes.mark(f"{cell.title}, {who}: {status.replace('_', ' ')}, {why}")
    return text


def _failed(cell: Cell) -> str:
    failed, known = cell.failed_share()
    return f"{failed} of {known}" if known else "–"


def _costs(order: Sequence[Cell], notes: Notes) -> list[str]:
    """Return what the rows cost, as a table of its own: machines may differ."""
    rows = []
    for cell in order:
        if not cell.finished:
            continue
        memory = cell.mean("peak_memory_bytes")
        parameters = cell.mean("parameters")
        seconds = [cell.mean(name) for name in ("seconds", "scoring_seconds")]
        rows.append(
            [
                cell.title,
                "–" if parameters is None else f"{parameters:,.0f}",
                *("–" if value is None else duration(value) for value in seconds),
                plain(cell.mean("images_per_second"), 0),
                "–" if memory is None else f"{memory / 2**20:,.0f} MiB",
                plain(max(_gains(cell), default=None)),
                _every(cell.finished, "device"),
            ]
        )
    if not rows:
        return []
    devices = {row[-1] for row in rows}
    columns = ["variant", "parameters", "training", "scoring", "images/s", "peak memory"]
    columns.append("the refit's last gain")
    if len(devices) == 1:
        rows = [row[:-1] for row in rows]
    else:
        columns.append(
            "device" + notes.mark("rows of different machines: times and speeds do not compare")
        )
    return ["Means a seed:", "", *table(columns, rows)]


# --------------------------------------------------------------------------- figures


def figures_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a page's figures: file, title, caption."""
    found: list[dict[str, str]] = json.loads(rows[0].get("figures") or "[]")
    return found


def _figures(rows: Sequence[Row], found: Sequence[Cell]) -> str:
    lines = []
    if len(tables(found)) > DRAWN:
        lines += [f"Of the first {DRAWN} tables alone.", ""]
    for one in figures_of(rows):
        lines += [f"### {one['title']}", "", f"![{one['title']}](figures/{one['file']})", ""]
        lines += [one["caption"], ""]
    return "\n".join(["## Figures", "", *lines]) if figures_of(rows) else ""


# --------------------------------------------------------------------------- reproduction


def _reproduction(found: Sequence[Cell]) -> str:
    rows: list[list[str]] = []
    notes = Notes("r")
    for cell in found:
        if cell.first.get("as_published") != "yes":
            continue
        for one in json.loads(cell.first.get("published") or "[]"):
            if one["dataset"] in _stands_for(cell):
                rows.append(_beside(cell, one, notes))
    if not rows:
        return ""
    columns = ["variant", "published", "estimator", "split", "source", "ours: elbo", "nll"]
    lines = ["## Reproduction", "", *table([*columns, "difference of the elbo"], rows)]
    lines += [
        "*unverified*: which split, or what exactly, the number is of could not be established.",
        "",
    ]
    return "\n".join([*lines, *notes.lines()])


_SHORT = {"sample_size": "Z", "hidden": "H", "batch": "B"}


def _stands_for(cell: Cell) -> set[str]:
    """Return the data sets whose published numbers a cell stands beside."""
    own = cell.first["dataset"]
    return {own} if own != "mnist-5k" else {"mnist-static"}


def _beside(cell: Cell, one: Mapping[str, Any], notes: Notes) -> list[str]:
    """Return a published number beside ours; no difference where the two are not alike."""
    first = cell.first
    nats = f"{'<= ' if one['bound'] else ''}{one['nats']:.2f}"
    if not one["verified"]:
        nats += " *unverified*"
    if one["remark"]:
        nats += notes.mark(one["remark"])
    reasons = []
    if first["dataset"] != one["dataset"]:
        reasons.append(f"{first['dataset']} here, {one['dataset']} there")
    if one["grey"] and first["binarisation"] != "soft":
        reasons.append(f"{first['binarisation']} targets here, grey ones there")
    if not one["is_elbo"]:
        ours = plain(cell.mean("objective"))
        reasons.append(f"it is what is called objective here, which is {ours}")
    if one["steps"] and first.get("params.steps") not in ("", None, str(one["steps"])):
        reasons.append(f"T = {first['params.steps']} here, {one['steps']} there")
    for key, value in one.get("departs", {}).items():
        name = _SHORT.get(key, key)
        reasons.append(f"{name} = {short(first.get(f'params.{key}', ''))} here, {value} there")
    if first.get("params.epochs") not in ("", None, "250"):
        theirs = "250 in the original's code" if one.get("epochs", 250) else "theirs not known"
        reasons.append(f"{first['params.epochs']} epochs here, {theirs}")
    elbo = cell.mean("elbo")
    apart = "not alike" + notes.mark("; ".join(reasons)) if reasons else "–"
    if not reasons and elbo is not None:
        apart = plain(elbo - one["nats"], signed=True)
    return [
        cell.title,
        nats,
        one["estimator"],
        one["split"],
        one["source"],
        _estimate(cell, "elbo", notes),
        _estimate(cell, "nll", notes),
        apart,
    ]


# --------------------------------------------------------------------------- coverage


def _coverage(rows: Sequence[Row], found: Sequence[Cell]) -> str:
    first = rows[0]
    lines = ["## Coverage", "", f"{coverage(found)}.", ""]
    left = [cell for cell in found if len(cell.finished) < len(cell.seeds)]
    if left:
        told = []
        for cell in left:
            count = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in cell.count.items())
            reasons = dict.fromkeys(
                row["reason"]
                for row in cell.seeds
                if row.get("reason") and row["status"] != "complete"
            )
            told.append([cell.title, _state(cell), count, "; ".join(reasons) or "–"])
        lines += table(["cell", "state", "seeds", "why"], told)
    skipped = json.loads(first.get("skipped") or "[]")
    if skipped:
        lines += ["Not planned, by the study itself:", ""]
        lines += [f"- {_skip(one)}: {one['why']}" for one in skipped]
        lines.append("")
    remarks = json.loads(first.get("remarks") or "[]")
    if remarks:
        lines += ["Besides:", "", *(f"- {text}" for text in remarks), ""]
    return "\n".join(lines)


def _state(cell: Cell) -> str:
    """Return one word for a cell that is not complete in every seed."""
    if set(cell.count) == {"not_applicable"}:
        return "not applicable"
    for status in ("failed", "interrupted", "training", "scoring", "waiting"):
        if status in cell.count:
            return "running" if status in ("training", "scoring") else status
    return "complete"


def _skip(one: Mapping[str, Any]) -> str:
    if one["axis"]:
        return f"`{one['variant']}` along {one['axis']}"
    told = ", ".join(f"{key} = {value}" for key, value in one["params"].items())
    return f"`{one['variant']}` at {told}"
