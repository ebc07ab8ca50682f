"""The markdown of a page, from the rows of its csv and nothing else; and the index of all pages."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glas_bench.errors import GlasBenchError
from glas_bench.record import join_statuses
from glas_bench.report import csv_file
from glas_bench.report.compare import NONE
from glas_bench.report.table import (
    COMPARED,
    KEYS,
    MOST_TABLES,
    NBSP,
    Row,
    Table,
    TableRow,
    complete,
    coverage,
    differing,
    protocol,
    short,
    statuses,
    table_rows,
    tables,
    value_of,
)
from glas_bench.text import duration

DIFFERENCES = (
    "Differences are paired by image and by seed. Interval and p come from the two-way (seed x "
    "image) random-effects variance; with one seed, from images alone. Each interval is of one "
    "comparison; p is adjusted by Holm over all comparisons of that metric on the page (rows with "
    "their baselines, and claims), so an interval may exclude 0 although p is large."
)

STATISTICS = (
    f"{DIFFERENCES} A claim is *reproduced* when that p is below .05 and the whole 95 % interval "
    "lies more than 0.5 nats on the side that it predicts, *not reproduced* when the whole "
    "interval lies short of that, and otherwise *undecided*. Shares of seeds are compared by "
    "McNemar's exact test, without a margin. A verdict needs five seeds; at most one in five may "
    "have diverged."
)

COLUMNS = (
    "elbo: the negative ELBO, one draw from the variant's own q; iw: the importance-weighted bound "
    "with K draws from it; refit_iw: the same with a common q that was refitted to the frozen "
    "decoder; objective: what training minimised, struck through where it is not shown to bound; "
    "v: Var(log w) of the importance weights that {metric} comes from, mean over images, and the "
    "share of images above 10; failed: seeds with a validation recon not 20 nats better than the "
    "pixel-wise Bernoulli, or under 1 nat of KL."
)

GAP = "gap: nll minus an objective that is not shown to bound, which hides at most this much."

STILL_GAINING = 0.1
"""Nats in the last tenth of a refit, as in `yardstick.refit`, which imports torch."""

RANKS = (
    "Rows are sorted by {metric}. rank: the possible ranks of a row, after all rows shown to be "
    "better and before all rows shown to be worse (paired difference, more than one seed, p < .05, "
    "not adjusted)."
)

REFEREE = (
    "Annealed importance sampling (Neal 2001; Wu et al. 2017) needs no q. ais minus nll: the "
    "paired mean over the images that AIS scored, ± its standard error; below zero it is slack of "
    "the bound. ais: nll over all scored images plus this difference. AIS is *accepted* where the "
    "means over images at N and 2N temperatures agree within 0.5 nats, and so do forward and "
    "backward annealing on images sampled from the model (BDMC gap, Grosse et al. 2015); "
    "otherwise it has no number. It covers few images of single runs and ranks nothing."
)

NOT_COVERED = (
    "- Text: the write-up leaves text data to future work, and no version of its code has it; this "
    "page covers images alone.\n"
    "- Published numbers: they hold for the budget and the split of their sources, where these are "
    "known; results at another budget neither confirm nor refute them.\n"
)

INDEXED = ("question", "claims", "ended", *KEYS.values())
"""Columns of a csv that the index is made from."""


def render(rows: Sequence[Row]) -> str:
    """Return the markdown of a page."""
    cells = table_rows(rows)
    parts = [
        _head(rows, cells),
        _claims(cells),
        _tables(cells),
        _referee(cells),
        _figures(rows, cells),
        _reproduction(cells),
        _coverage(rows, cells),
        "## Not covered\n\n" + NOT_COVERED,
    ]
    return "\n".join(part for part in parts if part)


# --------------------------------------------------------------------------- markdown


class Notes:
    """The footnotes of a section, numbered in the order in which they are made."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a note."""
        text = " ".join(text.split())
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.prefix}-{self.texts.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        """Yield the notes themselves, each a paragraph."""
        for place, text in enumerate(self.texts, 1):
            yield f"[^{self.prefix}-{place}]: {text}"
            yield ""


def table(rows: Sequence[Mapping[str, str]], without: Collection[str] = ()) -> list[str]:
    """Return the lines of a markdown table, and an empty one; the keys of the rows are columns."""
    columns = [name for name in rows[0] if name not in without]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        texts = (row[name].replace("|", "\\|").replace("\n", " ") for name in columns)
        lines.append("| " + " | ".join(texts) + " |")
    return [*lines, ""]


def decimal(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a number as a table has it."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def _with_error(value: float | None, error: float | None, signed: bool = False) -> str:
    more = "" if value is None or error is None else f"{NBSP}±{NBSP}{error:.2f}"
    return decimal(value, signed=signed) + more


def _interval(estimate: float, low: float, high: float, p: float | None) -> str:
    return f"{estimate:+.2f}{NBSP}[{low:+.2f},{NBSP}{high:+.2f}], p{NBSP}={NBSP}{_p(p)}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 1e-16" if value < 1e-16 else f"{value:.2g}"


# --------------------------------------------------------------------------- head


def _head(rows: Sequence[Row], cells: Sequence[TableRow]) -> str:
    first = rows[0]
    question = first.get("question")
    lines = [f"# {first['study']}", ""]
    lines += [
        question or "Runs made one by one with `glas-bench run`; they belong to no study.",
        "",
    ]
    if any(row.get("look") for row in rows):
        lines += ["**A look at the harness, no verdicts**: its preset is for a first look.", ""]
    lines += [
        "Numbers are nats per image on the test split, with the parameters of the last epoch; "
        "lower is better. Means over finished seeds, ± their standard deviation.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in _facts(rows, cells)]
    return "\n".join([*lines, ""])


def _facts(rows: Sequence[Row], cells: Sequence[TableRow]) -> Iterator[tuple[str, str]]:
    """Yield what a page's numbers are, as pairs."""
    first = rows[0]
    if first.get("command"):
        yield "command", f"`{first['command']}`"
    yield "coverage", coverage(cells)
    yield "newest run", _newest(rows) or "none yet"
    commits = (row.get("commit", "") + _DIRTY * bool(row.get("dirty")) for row in rows)
    yield "commit", _every(text for text in commits if text != _DIRTY)
    ran = [row for row in rows if row["status"] == "complete"] or rows
    yield "devices", _every(row.get("device", "") for row in rows)
    yield "data", "; ".join(sorted({_data(row) for row in ran}))
    yield "estimators", _estimators(ran)
    yield "budget", "; ".join(sorted({budget(row) for row in ran}))
    seeds = sorted({int(row["seed"]) for row in rows})
    yield "seeds", first.get("seeds") or ", ".join(map(str, seeds))


_DIRTY = " with uncommitted changes"


def _newest(rows: Sequence[Row]) -> str:
    return max(row.get("ended", "") for row in rows)


def _every(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts) - {""})) or "unknown"


def _data(row: Row) -> str:
    origin = row.get("data_origin") or "published"
    other = "" if origin == "published" else f", {origin}, not the published data"
    images = f", {row['images']} test images" if row.get("images") else ""
    return f"{row['dataset']}, {row['binarisation']} binarisation{other}{images}"


def _estimators(rows: Sequence[Row]) -> str:
    """Return which estimators were scored, with every K."""
    ks = sorted({int(row["samples"]) for row in rows if row.get("protocol") and row.get("samples")})
    names = sorted({name for row in rows for name in protocol(row).get("estimators", ())})
    text = ", ".join(names) or "elbo, iw"
    text += f"; K = {', '.join(map(str, ks))}" if ks else ""
    if "refit" not in names:
        return text
    return f"{text}; nll is the smaller of iw and refit_iw, chosen on validation images"


def budget(row: Row) -> str:
    """Return the budget of a row: epochs, updates, sizes and precision."""
    counts = (("params.epochs", "epochs"), ("updates", "updates"))
    sizes = (("params.batch", "B"), ("params.steps", "T"), ("params.hidden", "H"))
    parts = [f"{row[name]} {word}" for name, word in counts if row.get(name)]
    parts += [f"{word} = {row[name]}" for name, word in sizes if row.get(name)]
    return ", ".join([*parts, row.get("params.precision", "")]).rstrip(", ")


# --------------------------------------------------------------------------- claims


def claims_of(cells: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return all judged comparisons of a page, by claim."""
    claims = [one for cell in cells for one in json.loads(cell.first.get("claims") or "[]")]
    return sorted(claims, key=lambda one: one["claim"])


def _claims(cells: Sequence[TableRow]) -> str:
    claims = claims_of(cells)
    if not claims:
        return ""
    by_name = {cell.name: cell for cell in cells}
    notes = Notes("c")
    rows = []
    seen: set[int] = set()
    for one in claims:
        is_new = one["claim"] not in seen
        seen.add(one["claim"])
        rows.append(
            {
                "": str(one["claim"]) if is_new else "",
                "claim": f"{one['text']} ({one['source']})" if is_new else "",
                "as a comparison": f"{one['left']} {'>' if '>' in one['expect'] else '<'} "
                f"{one['right']}",
                "metric": one["metric"],
                "left minus right [95 %]": _measured(one, notes),
                "verdict": f"**{one['verdict']}**{notes.mark(_why(one))}",
                "budget": budget(by_name[one["right_cell"]].first),
            }
        )
    lines = ["## Claims", ""]
    without = []
    if len({row["budget"] for row in rows}) == 1:
        lines += [f"At this budget: {rows[0]['budget']}.", ""]
        without = ["budget"]
    return "\n".join([*lines, *table(rows, without), STATISTICS, "", *notes.lines()])


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


def verdicts(cells: Sequence[TableRow]) -> str:
    """Return the verdicts in one line."""
    claims = claims_of(cells)
    if not claims:
        return "no claims"
    if {one["verdict"] for one in claims} == {NONE}:
        return f"no verdicts: {claims[0]['why'].partition(':')[0]}"
    by_claim: dict[str, list[str]] = {}
    for one in claims:
        at = ", ".join(f"{key} = {value}" for key, value in one["at"].items())
        own = by_claim.setdefault(f"{one['claim']} {one['expect']}", [])
        own.append(one["verdict"] + (f" ({at})" if at else ""))
    return "; ".join(
        f"`{name.partition(' ')[2]}`: {', '.join(words)}" for name, words in by_claim.items()
    )


# --------------------------------------------------------------------------- tables


def _tables(cells: Sequence[TableRow]) -> str:
    """Return a table for each group of comparable cells that have been begun."""
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
    if not claims_of(cells) and any(_compared(group.rows) for group in groups):
        lines += [DIFFERENCES, ""]
    planned = {name: len(seeds) for name, seeds in statuses(cells).items()}
    counts = {name: len({group.common[name] for group in groups}) for name in KEYS}
    named = [name for name, count in counts.items() if count > 1]
    if counts["data"] == counts["contents"]:
        named = [name for name in named if name != "contents"]  # the data sets' names are enough
    for place, group in enumerate(groups, 1):
        lines += [f"### {place}. {_heading(group, named)}", "", *_table(place, group, planned)]
    return "\n".join(lines)


def _heading(group: Table, named: Sequence[str]) -> str:
    """Return a table's name: its data, and all in which it differs from the page's others."""
    common = group.common
    images = {row["images"] for cell in group.rows for row in cell.seeds if row.get("images")}
    parts = [common["data"], f"{common['binarisation']} binarisation"]
    parts += [f"{' or '.join(sorted(images))} test images"] if images else []
    words = {
        "contents": f"contents {common['contents'][:8] or 'unknown'}",
        "precision": common["precision"] or "fp32",
        "scoring": f"protocol {common['scoring'][:8] or 'none'}",
        "core": f"core {common['core'] or 'unknown'}",
        "look": "a preset for a first look" if common["look"] else "no preset for a first look",
    }
    shown = (name for name in named if name not in ("data", "binarisation"))
    return ", ".join([*parts, *(words.get(n, f"{n} = {common[n] or 'none'}") for n in shown)])


def _table(place: int, group: Table, planned: Mapping[str, int]) -> list[str]:
    """Return a table's lines below its heading; `planned` is the number of seeds by cell."""
    common = group.common
    notes = Notes(str(place))
    order = sorted(group.rows, key=_by_mean)
    metric = next((cell.first["ranked_by"] for cell in order if cell.first.get("rank")), "nll")
    compared = _compared(order)
    names = {cell.name: cell.title for cell in order}
    rows = [
        {
            "rank": _ranks(cell),
            "variant": cell.title,
            f"{metric} (K = {common['K']})": _ranked(cell, metric, notes),
            **{
                f"{name} minus baseline [95 %]": _difference(cell, name, names, notes)
                for name in compared
            },
            "elbo": _estimate(cell, "elbo", notes),
            "iw": _estimate(cell, "iw", notes),
            f"v of {metric} (over 10)": _v(cell, metric),
            "objective": _objective(cell, notes),
            "gap": _gap(cell),
            "aux": decimal(cell.mean("aux") or None),
            "seeds": _seeds(cell, planned[cell.name], notes),
            "failed": _failed(cell),
            "tuned": _tuned(cell, notes),
        }
        for cell in order
    ]
    shown = [f"{name} = {common[name] or 'none'}" for name in ("K", "epochs", "T", "H", "B")]
    lines = [f"{common['precision'] or 'fp32'}, {', '.join(shown)}.", ""]
    about = [COLUMNS.format(metric=metric)]
    without = []
    if not any(cell.first.get("tuned") for cell in order):
        lines += ["Every row is untuned: no learning rate was searched.", ""]
        without += ["tuned"]
    if not any(cell.mean("aux") for cell in order):
        without += ["aux"]
    if all(cell.says("bounds_nll") == "yes" for cell in order):
        without += ["gap"]
    else:
        about += [GAP]
    lines += [*table(rows, without), " ".join([*about, *_draws(order)]), ""]
    if sum(bool(cell.first.get("rank")) for cell in order) > 1:
        lines += [RANKS.format(metric=metric), ""]
    if metric == "nll":
        lines += _still_gaining(order)
    return [*lines, *_costs(order, notes), *notes.lines()]


def _by_mean(cell: TableRow) -> tuple[float, str]:
    value = cell.mean(cell.first.get("ranked_by", "nll"))
    return math.inf if value is None else value, cell.name


def _compared(cells: Sequence[TableRow]) -> list[str]:
    """Return the metrics by which any cell has a difference from its baseline."""
    return [name for name in COMPARED if any(c.first.get(f"{name}_difference") for c in cells)]


def _draws(cells: Sequence[TableRow]) -> list[str]:
    """Say which rows train with several draws an image, whose steps cost as many times more."""
    several: dict[str, dict[str, None]] = {}
    for cell in cells:
        draws = cell.first.get("params.draws", "")
        if draws.isdecimal() and int(draws) > 1:
            several.setdefault(draws, {})[f"`{cell.variant}`"] = None
    return [
        f"{', '.join(names)} trains with {draws} draws per image: {draws} times the work of a step."
        for draws, names in several.items()
    ]


def _ranks(cell: TableRow) -> str:
    first, last = cell.first.get("rank", ""), cell.first.get("rank_to", "")
    return first if first == last else f"{first}–{last}"


def _ranked(cell: TableRow, metric: str, notes: Notes) -> str:
    text = _estimate(cell, metric, notes)
    if cell.mean(metric) is None:
        return text
    if metric == "nll":
        sources = {row.get("nll_from", "") for row in cell.finished} - {""}
        text += f" {' / '.join(sorted(sources))}"
    tag = "nll_bound_only" if metric == "nll" else "bound_only"
    if not any(row.get(tag) == "true" for row in cell.finished):
        return f"**{text}**"
    why = "only a bound: the log weights of over 5 % of the images have a variance above 10"
    return f"**{text}**{notes.mark(why)}"


def _estimate(cell: TableRow, metric: str, notes: Notes) -> str:
    """Return mean and spread, or the footnoted reason for their absence."""
    mean, status = cell.mean(metric), cell.status(metric)
    if not cell.finished:
        return "–"
    if status == "infinite":
        return "∞" + notes.mark(
            f"infinite {metric}: the recogniser leaves the prior's support, where p(z) = 0"
        )
    if status == "undefined" and mean is None:
        return "undefined" + notes.mark(f"undefined {metric}: the recogniser has no density")
    return _with_error(mean, cell.spread(metric))


def _difference(cell: TableRow, metric: str, names: Mapping[str, str], notes: Notes) -> str:
    first = cell.first
    if not first.get("compared_with"):
        return "baseline" if first.get("is_baseline") else "–"
    estimate, low, high, p = (
        value_of(first, f"{metric}_{name}") for name in ("difference", "low", "high", "p_holm")
    )
    if estimate is None or low is None or high is None:
        why = first.get(f"{metric}_apart")
        mark = notes.mark(f"no difference in {metric}: {why}") if why and cell.finished else ""
        return "–" + mark
    pairs = f"paired over {first[f'{metric}_pairs']}, against {names[first['compared_with']]}"
    return _interval(estimate, low, high, p) + notes.mark(pairs)


def _v(cell: TableRow, metric: str) -> str:
    """Return Var(log w) of the weights that the ranked number came from, and the share over 10."""

    def mean(name: str) -> float | None:
        values = [
            value_of(row, f"refit_{name}" if refitted else name)
            for row in cell.finished
            for refitted in [metric == "nll" and row.get("nll_from") == "refit_iw"]
        ]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None

    share = mean("v_over_10_share")
    return decimal(mean("v_mean")) + (f"{NBSP}({100 * share:.0f}{NBSP}%)" if share else "")


def _objective(cell: TableRow, notes: Notes) -> str:
    """Return what was optimised, struck through where it bounds nothing."""
    objective, bounds = cell.mean("objective"), cell.says("bounds_nll")
    if objective is None or bounds == "yes":
        return decimal(objective)
    reason = cell.says("bound_reason").rstrip(".")
    word = "does not bound" if bounds == "no" else "is not shown to bound"
    note = f"the objective of {cell.title} {word} the negative log-likelihood"
    return f"~~{decimal(objective)}~~" + notes.mark(note + (f": {reason}" if reason else ""))


def _gap(cell: TableRow) -> str:
    """Return nll minus an objective that bounds nothing."""
    objective, nll = cell.mean("objective"), cell.mean("nll")
    if objective is None or nll is None or cell.says("bounds_nll") == "yes":
        return "–"
    return decimal(nll - objective, signed=True)


def _seeds(cell: TableRow, planned: int, notes: Notes) -> str:
    """Return n of N planned with every other status, each footnoted with its reason."""
    text = f"{len(cell.finished)} of {planned}"
    if len(cell.seeds) < planned:
        text += notes.mark(f"the other seeds of {cell.title} are in another table")
    for status, count in cell.count.items():
        if status == "complete":
            continue
        word = status.replace("_", " ")
        text += f", {count} {word}"
        by_reason: dict[str, list[str]] = {}
        for row in cell.seeds:
            step = f"step {row['diverged_step']}" if row.get("diverged_step") else ""
            reason = ", ".join(filter(None, (step, row.get("reason", ""))))
            if row["status"] == status and reason:
                by_reason.setdefault(reason, []).append(row["seed"])
        for reason, seeds in by_reason.items():
            who = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
            text += notes.mark(f"{cell.title}, {who}: {word}, {reason}")
    return text


def _failed(cell: TableRow) -> str:
    failed, checked = cell.failed_share()
    return f"{failed} of {checked}" if checked else "–"


def _tuned(cell: TableRow, notes: Notes) -> str:
    about = cell.first.get("tuned")
    return "tuned" + notes.mark(about) if about else "untuned"


def _gains(cell: TableRow) -> list[float]:
    """Return what the refits that nll comes from gained in their last tenth, nats per image."""
    refitted = [row for row in cell.finished if row.get("nll_from") == "refit_iw"]
    return [gain for row in refitted if (gain := value_of(row, "refit_last_gain")) is not None]


def _still_gaining(cells: Sequence[TableRow]) -> list[str]:
    """Return a line where refits that nll comes from had not settled."""
    gains = [gain for cell in cells for gain in _gains(cell)]
    large = [gain for gain in gains if gain > STILL_GAINING]
    if not large:
        return []
    return [
        f"{len(large)} of the {len(gains)} refits that nll comes from still gained more than "
        f"{STILL_GAINING} nats in their last tenth, up to {max(large):.2f}: their nll is looser "
        "by at least that much (the next table has the largest gain of each row).",
        "",
    ]


def _costs(order: Sequence[TableRow], notes: Notes) -> list[str]:
    """Return what the rows cost, as a table of its own: machines may differ."""
    cells = [cell for cell in order if cell.finished]
    if not cells:
        return []
    devices = [_every(row.get("device", "") for row in cell.finished) for cell in cells]
    differ = "the rows ran on different machines: times and speeds are not comparable"
    mark = notes.mark(differ) if len(set(devices)) > 1 else ""
    rows = []
    for cell, device in zip(cells, devices, strict=True):
        memory, parameters = cell.mean("peak_memory_bytes"), cell.mean("parameters")
        times = [cell.mean(name) for name in ("seconds", "scoring_seconds")]
        training, scoring = ("–" if time is None else duration(time) for time in times)
        rows.append(
            {
                "variant": cell.title,
                "parameters": "–" if parameters is None else f"{parameters:,.0f}",
                "training": training,
                "scoring": scoring,
                "images/s": decimal(cell.mean("images_per_second"), 0),
                "peak memory": "–" if memory is None else f"{memory / 2**20:,.0f} MiB",
                "last gain of the refit": decimal(max(_gains(cell), default=None)),
                f"device{mark}": device,
            }
        )
    return ["Means per seed:", "", *table(rows, () if mark else ("device",))]


# --------------------------------------------------------------------------- the referee


def _referee(cells: Sequence[TableRow]) -> str:
    """Return the section on AIS; nothing where no run was scored by it."""
    asked = [(cell, row) for cell in cells for row in cell.finished if row.get("ais_status")]
    if not asked:
        return ""
    notes = Notes("ais")
    rows = [_refereed(cell, row, notes) for cell, row in asked]
    return "\n".join(["## The referee", "", *table(rows), REFEREE, "", *notes.lines()])


def _refereed(cell: TableRow, row: Row, notes: Notes) -> dict[str, str]:
    """Return a run's numbers by AIS beside its nll on the same images."""

    def signed(column: str) -> str:
        return _with_error(value_of(row, column), value_of(row, f"{column}_error"), signed=True)

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


# --------------------------------------------------------------------------- figures


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
        lines += [f"### {one['title']}", "", f"![{one['title']}](figures/{one['file']})", ""]
        lines += [one["caption"], ""]
    return "\n".join(lines)


# --------------------------------------------------------------------------- reproduction


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
    nats = f"{'<= ' if one['bound'] else ''}{one['nats']:.2f}"
    if not one["verified"]:
        nats += " *unverified*"
    if one["remark"]:
        nats += notes.mark(one["remark"])
    reasons = list(_unlike(cell, one))
    elbo = cell.mean("elbo")
    apart = "not alike" + notes.mark("; ".join(reasons)) if reasons else "–"
    if not reasons and elbo is not None:
        apart = decimal(elbo - one["nats"], signed=True)
    return {
        "variant": cell.title,
        "published": nats,
        "estimator": one["estimator"],
        "split": one["split"],
        "source": one["source"],
        "ours: elbo": _estimate(cell, "elbo", notes),
        "nll": _estimate(cell, "nll", notes),
        "difference of the elbo": apart,
    }


def _unlike(cell: TableRow, one: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what our run is not the published one."""
    first = cell.first
    if first["dataset"] != one["dataset"]:
        yield f"{first['dataset']} here, {one['dataset']} there"
    if one["grey"] and first["binarisation"] != "soft":
        yield f"{first['binarisation']} targets here, grey ones there"
    if not one["is_elbo"]:
        ours = decimal(cell.mean("objective"))
        yield f"it corresponds to objective, which is {ours} here"
    if one["steps"] and first.get("params.steps") not in ("", None, str(one["steps"])):
        yield f"T = {first['params.steps']} here, {one['steps']} there"
    for key, value in one.get("departs", {}).items():
        ours = short(first.get(f"params.{key}", ""))
        yield f"{_SYMBOLS.get(key, key)} = {ours} here, {value} there"
    if first.get("params.epochs") not in ("", None, "250"):
        theirs = "250 in the original's code" if one.get("epochs", 250) else "unknown there"
        yield f"{first['params.epochs']} epochs here, {theirs}"


# --------------------------------------------------------------------------- coverage


def _coverage(rows: Sequence[Row], cells: Sequence[TableRow]) -> str:
    lines = ["## Coverage", "", f"{coverage(cells)}.", ""]
    left = []
    for cell in cells:
        unfinished = [row for row in cell.seeds if row["status"] != "complete"]
        if unfinished:
            counts = (f"{n} {status.replace('_', ' ')}" for status, n in cell.count.items())
            reasons = dict.fromkeys(row["reason"] for row in unfinished if row.get("reason"))
            why = "; ".join(reasons) or "–"
            state = join_statuses(cell.count)
            about = {"state": _STATES.get(state, state), "seeds": ", ".join(counts), "why": why}
            left.append({"cell": cell.title, **about})
    lines += table(left) if left else []
    if skipped := json.loads(rows[0].get("skipped") or "[]"):
        lines += ["Left out by the study:", ""]
        lines += [*(f"- {_skip(one)}: {one['why']}" for one in skipped), ""]
    if remarks := json.loads(rows[0].get("remarks") or "[]"):
        lines += ["Notes:", "", *(f"- {text}" for text in remarks), ""]
    return "\n".join(lines)


_STATES = {
    "training": "running",
    "scoring": "running",
    "diverged": "complete",
    "not_applicable": "not applicable",
}
"""Words for a cell's joined status, where they differ."""


def _skip(one: Mapping[str, Any]) -> str:
    if one["axis"]:
        return f"`{one['variant']}` along {one['axis']}"
    settings = ", ".join(f"{key} = {value}" for key, value in one["params"].items())
    return f"`{one['variant']}` at {settings}"


# --------------------------------------------------------------------------- index


def index(out: Path) -> tuple[str, list[str]]:
    """Return the markdown of the list of all pages whose csv is in a folder, and the problems."""
    lines = [
        "# glas-bench report",
        "",
        "Which change to a recurrent VAE helps, which does not, and by how much: one page per "
        "study, rendered from the csv beside it (again with `glas-bench report FILE.csv`).",
        "",
    ]
    entries: list[dict[str, str]] = []
    problems = []
    for path in sorted(out.glob("*.csv")):
        try:
            rows = csv_file.read(path, INDEXED)
        except GlasBenchError as error:
            problems.append(str(error))
            continue
        cells = table_rows(rows)
        entries.append(
            {
                "study": f"[{rows[0]['study']}]({path.stem}.md)",
                "question": rows[0].get("question") or "runs by hand",
                "cells complete": " of ".join(map(str, complete(cells))),
                "newest run": _newest(rows) or "–",
                "verdicts": verdicts(cells),
                "data": f"[csv]({path.name})",
            }
        )
    if not entries:
        return "\n".join(
            [*lines, "No runs yet: `glas-bench run --variant hellinger`.", ""]
        ), problems
    return "\n".join([*lines, *table(entries), STATISTICS, ""]), problems
