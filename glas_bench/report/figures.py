"""Figures that are drawn from the csv alone, and how every figure is drawn.

Colours are seaborn's `colorblind`, doubled by markers and dashes, so that a grey print can be read.
The same numbers give the same bytes: nothing is drawn at random, and a PNG carries no date.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from glas_bench.report.table import (
    COMPARED,
    MOST_TABLES,
    Row,
    TableRow,
    table_rows,
    tables,
    unit_of,
    value_of,
)
from glas_bench.runs.pictures import default_style
from glas_bench.stats import ONE_SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NATS = "nats per image"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ((), (4, 1.5), (1, 1), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1))
DPI = 150
MOST_ROWS = 60
"""Rows of a figure with one row a cell."""
MOST_NAMES = 25
"""Cells in a legend."""
LEAST_CHARGE = 0.1
"""Nats below which a seed has collapsed; a scale that shows them presses all others together."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a page."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    unit: str = "image"
    """What one x is: "image", or "line" of text."""

    def about(self, study: str) -> dict[str, str]:
        """Return its entry in the csv, from which the page is made."""
        caption = self._worded(self.caption)
        return {"file": self.file(study), "title": self.title, "caption": caption}

    def file(self, study: str) -> str:
        """Return its file's name."""
        return f"{study}-{self.name}.png"

    def png(self) -> bytes:
        """Return the picture as PNG of 256 colours, without date and version, to be committed."""
        drawn, buffer = io.BytesIO(), io.BytesIO()
        with default_style():
            figure = self.draw()
            for text in figure.findobj(Text) if self.unit != "image" else ():
                text.set_text(self._worded(text.get_text()))
            figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
        whole = Image.open(drawn).convert("RGB")
        few = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, "png", optimize=True)
        return buffer.getvalue()

    def _worded(self, text: str) -> str:
        return re.sub(r"\bimage(s?\b)(?!=)", rf"{self.unit}\1", text)


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, **about: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes [rows][columns], in the style of all figures."""
    style: Any = sns.axes_style("whitegrid") | sns.plotting_context("paper")
    with mpl.rc_context({**style, "font.family": ["DejaVu Sans"]}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **about)
    return figure, axes


def colours(count: int) -> list[Any]:
    """Return so many colours; they repeat where there are more than the palette has."""
    palette = sns.color_palette("colorblind")
    return [palette[i % len(palette)] for i in range(count)]


def styles(frame: pd.DataFrame, column: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return seaborn's arguments that give each value of a column its own colour and marker.

    `names` are the values in their order, which may be more than those of the column.
    """
    present = list(dict.fromkeys(frame[column]))
    names = names or present
    order = [name for name in names if name in present]
    return {
        "hue": column,
        "hue_order": order,
        "style": column,
        "style_order": order,
        "palette": dict(zip(names, colours(len(names)), strict=True)),
        "markers": {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)},
    }


def from_csv(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield the figures that the rows of a csv have the data for."""
    axes = json.loads(rows[0].get("axes") or "[]")

    def of_table(cells: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from _differences(cells)
        for key in axes:
            yield from _axis(key, cells)
        yield from _modes(cells)
        yield from _objectives(cells)
        yield from _charges(cells)

    yield from (replace(each, unit=unit_of(rows)) for each in _looks(rows))
    yield from by_table(table_rows(rows), of_table)


def by_table(
    cells: Sequence[TableRow], draw: Callable[[Sequence[TableRow]], Iterator[Drawing]]
) -> Iterator[Drawing]:
    """Yield the figures of each table: cells that cannot share a table share no figure either."""
    groups = tables(cells)
    for place, table in enumerate(groups[:MOST_TABLES], 1):
        unit = unit_of([cell.first for cell in table.rows])
        for drawing in (replace(each, unit=unit) for each in draw(table.rows)):
            if len(groups) == 1:
                yield drawing
            else:
                title = f"{drawing.title} (table {place})"
                yield replace(drawing, name=f"{drawing.name}-{place}", title=title)


# --------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class _Difference:
    """One cell minus its baseline by one metric, nats per image."""

    cell: TableRow
    estimate: float
    low: float
    high: float
    is_significant: bool
    is_of_one_seed: bool
    seeds: list[float]
    """Of the single seeds, where there are several."""

    @property
    def reach(self) -> float:
        """Greatest distance from zero of its interval and its seeds."""
        return max(map(abs, (self.low, self.high, *self.seeds)))


def _difference(cell: TableRow, metric: str, cells: Sequence[TableRow]) -> _Difference | None:
    estimate, low, high, p = (
        value_of(cell.first, f"{metric}_{name}") for name in ("difference", "low", "high", "p_bh")
    )
    if estimate is None or low is None or high is None:
        return None
    baselines = [other for other in cells if other.name == cell.first.get("compared_with")]
    theirs = {row["seed"]: value_of(row, metric) for c in baselines[:1] for row in c.finished}
    pairs = [(value_of(row, metric), theirs.get(row["seed"])) for row in cell.finished]
    seeds = [x - y for x, y in pairs if x is not None and y is not None]
    return _Difference(
        cell,
        *(estimate, low, high),
        is_significant=p is not None and p < 0.05,
        is_of_one_seed=cell.first.get(f"{metric}_pairs", "").startswith(ONE_SEED),
        seeds=seeds if len(seeds) > 1 else [],
    )


def _differences(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    by_metric = {}
    for metric in COMPARED:
        made = (_difference(cell, metric, cells) for cell in cells)
        if some := [one for one in made if one is not None]:
            by_metric[metric] = some
    if not by_metric:
        return
    labels = {one.cell.name: one.cell.label for some in by_metric.values() for one in some}
    estimates = {one.cell.name: one.estimate for one in next(iter(by_metric.values()))}
    order = sorted(labels, key=lambda name: (estimates.get(name, math.inf), name))
    cut = f" The best {MOST_ROWS} of {len(order)} cells." if len(order) > MOST_ROWS else ""
    order = order[:MOST_ROWS]
    places = {name: len(order) - i for i, name in enumerate(order)}
    shown = {
        metric: own
        for metric, some in by_metric.items()
        if (own := [one for one in some if one.cell.name in places])
    }
    ranges = {metric: _range(own) for metric, own in shown.items()}
    caption = (
        "Cell minus baseline, nats per image: the estimate with its 95 % interval, paired by seed "
        "and image. Left of zero is better than the baseline"
    )
    caption += (
        ". Exploratory: no verdict rests on it. Hollow: p, adjusted for the false discovery rate, "
        ">= .05. A cross: one seed, with an interval over images alone."
    )
    if any(one.seeds for own in shown.values() for one in own):
        caption += " Upright strokes: single seeds."
    if any(each.cuts for each in ranges.values()):
        caption += " An arrow: the interval, or a seed, extends beyond the picture."

    def draw() -> Figure:
        count = len(shown)
        figure, axes = blank(3.2 + 3.0 * count, 0.9 + 0.24 * len(places), 1, count, sharey=True)
        for axis, colour, metric in zip(axes[0], colours(count), shown, strict=True):
            _forest(axis, shown[metric], ranges[metric], places, colour)
            axis.set_xlabel(f"{metric} - baseline, {NATS}")
        axes[0][0].set_yticks(list(places.values()), [labels[name] for name in places])
        axes[0][0].set_ylim(0.3, len(places) + 0.7)
        return figure

    yield Drawing("differences", "Differences from the baseline", caption + cut, draw)


@dataclass(frozen=True)
class _Range:
    """The part of the differences by one metric that is shown."""

    limit: float
    """Nats on either side of zero beyond which intervals are cut."""
    cuts: bool
    linear: float
    """The scale is linear up to here and logarithmic beyond; infinite where it is linear."""


def _range(some: Sequence[_Difference]) -> _Range:
    """Return a range with every estimate, and with intervals and seeds as far as most of them go.

    One outlier presses all others together. An interval or a seed that is one is cut; for an
    estimate, the scale is linear near zero and logarithmic beyond.
    """
    reaches = sorted(one.reach for one in some)
    median = reaches[len(reaches) // 2]
    limit = max(1.1 * max(abs(one.estimate) for one in some), 2 * median)
    cuts = reaches[-1] > 1.5 * limit
    limit = limit if cuts else reaches[-1]
    is_wide = len(reaches) > 2 and limit > 20 * max(median, 0.5)
    return _Range(
        limit=limit,
        cuts=cuts,
        linear=max(2.0, 2 * median) if is_wide else math.inf,
    )


def _forest(
    axis: Axes,
    some: Sequence[_Difference],
    shown: _Range,
    places: Mapping[str, float],
    colour: Any,
) -> None:
    """Draw differences with their intervals and seeds, cut where the picture ends."""
    limit = shown.limit
    axis.axvline(0, color="0.3", linewidth=0.8)
    for one in some:
        y = places[one.cell.name]
        line, mark = (":", "x") if one.is_of_one_seed else ("-", "o")
        ends = [max(one.low, -limit), min(one.high, limit)]
        axis.plot(ends, [y, y], line, color=colour, linewidth=1.4, solid_capstyle="butt")
        if inside := [value for value in one.seeds if abs(value) <= limit]:
            axis.plot(inside, [y] * len(inside), "|", color=colour, alpha=0.6, markersize=6)
        face = colour if one.is_significant else "white"
        axis.plot([one.estimate], [y], mark, color=colour, markerfacecolor=face, markersize=4.5)
        if min((one.low, *one.seeds)) < -limit:
            axis.plot([-limit], [y], "<", color=colour, markersize=4.5)
        if max((one.high, *one.seeds)) > limit:
            axis.plot([limit], [y], ">", color=colour, markersize=4.5)
    if shown.linear < math.inf:
        axis.set_xscale("symlog", linthresh=shown.linear)
        axis.xaxis.set_major_formatter(FuncFormatter(_round))
    axis.grid(axis="y", linewidth=0.4)


def _round(value: float, _: object) -> str:
    """Return the label of a tick of a logarithmic scale: of 1, 2, 5, 10, 20 and so on alone."""
    return f"{value:g}" if f"{abs(value):e}"[0] in "0125" else ""


# --------------------------------------------------------------------------- claims


def _looks(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield a figure of the claims' intervals, look after look, where a look was taken."""
    first = {row["cell"]: row for row in reversed(rows)}
    claims = [one for row in first.values() for one in json.loads(row.get("claims") or "[]")]
    claims.sort(key=lambda one: one["claim"])
    taken = {
        index: looks
        for index, one in enumerate(claims)
        if (looks := [look for look in one["looks"] if look["low"] is not None])
    }
    if not taken:
        return

    def draw() -> Figure:
        columns = min(3, len(taken))
        lines = math.ceil(len(taken) / columns)
        figure, axes = blank(3.4 * columns, 2.7 * lines, lines, columns)
        places = [axis for row in axes for axis in row]
        for axis, (index, looks) in zip(places, taken.items(), strict=False):
            _interval_by_look(axis, claims[index], looks)
        for axis in places[len(taken) :]:
            axis.set_visible(False)
        return figure

    yield Drawing(
        "looks",
        "Claims, look after look",
        "Left side less right side of each comparison with its repeated interval after each number "
        "of seeds; all intervals hold together. Grey: the margin. Filled: the look that decided.",
        draw,
    )


def _interval_by_look(
    axis: Axes, one: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]
) -> None:
    """Draw the intervals of one comparison over its looks."""
    colour = colours(1)[0]
    if one["margin"]:
        axis.axhspan(-one["margin"], one["margin"], color="0.9", zorder=0)
    axis.axhline(0, color="0.3", linewidth=0.8)
    for look in looks:
        x, face = look["seeds"], "white" if look["word"] == "undecided" else colour
        axis.plot([x, x], [look["low"], look["high"]], "-", color=colour, linewidth=1.4)
        axis.plot([x], [look["estimate"]], "o", color=colour, markerfacecolor=face)
    axis.set_xticks(one["planned"])
    axis.set_xlim(one["planned"][0] - 1.5, one["planned"][-1] + 1.5)
    at = "".join(f", {key} = {value}" for key, value in one["at"].items())
    axis.set_title(f"claim {one['claim']}{at}\n{one['verdict']}", fontsize=8)
    axis.set(xlabel="seeds of each arm", ylabel=one["unit"] if one["unit"] != "nats" else NATS)


# --------------------------------------------------------------------------- modes


def _modes(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    """Yield a figure of nll against effective dimensions, a point a seed."""
    frame = _frame(cells, "effective_dimensions", "nll")
    if frame.empty:
        return

    def draw() -> Figure:
        names = list(dict.fromkeys(frame["label"]))[:MOST_NAMES]
        some = frame[frame["label"].isin(names)]
        figure, axes = blank(7.4, 4.2)
        about = styles(some, "label", names)
        sns.scatterplot(
            some, x="effective_dimensions", y="nll", ax=axes[0][0], s=28, alpha=0.75, **about
        )
        axes[0][0].set(xlabel="effective dimensions of E_q z", ylabel=f"nll, {NATS}")
        axes[0][0].ticklabel_format(useOffset=False)
        _legend(figure, axes[0][0], "outside right upper", fontsize=7)
        return figure

    yield Drawing(
        "modes",
        "Effective dimensions and nll",
        "Each seed's nll against the effective dimensions of E_q z_t over images (participation "
        "ratio): seeds that let another direction through end lower.",
        draw,
    )


# --------------------------------------------------------------------------- numeric axes


def _axis(key: str, cells: Sequence[TableRow]) -> Iterator[Drawing]:
    """Yield a figure of metrics along an axis of the study, where any line has two points."""
    rows = []
    for cell in (cell for cell in cells if key in cell.settings):
        rest = ", ".join(f"{name}={text}" for name, text in cell.settings.items() if name != key)
        about = {
            "line": cell.variant + (f" ({rest})" if rest else ""),
            key: float(cell.settings[key]),
        }
        for row in cell.finished:
            failed = {"true": 1.0, "false": 0.0}.get(row.get("failed", ""))
            numbers = {metric: value_of(row, metric) for metric in ("nll", "elbo")}
            rows.append({**about, **numbers, "failed": failed})
    frame = pd.DataFrame(rows, columns=["line", key, "nll", "elbo", "failed"])
    if not (frame.groupby("line")[key].nunique() > 1).any():
        return
    labels = {"nll": f"nll, {NATS}", "elbo": f"elbo, {NATS}"}
    if shares := bool((frame["failed"] == 1).any()):
        labels["failed"] = "share of seeds that failed"
    labels = {metric: label for metric, label in labels.items() if frame[metric].notna().any()}

    def draw() -> Figure:
        figure, axes = blank(4.2 * len(labels), 3.6, 1, len(labels))
        style = styles(frame, "line")
        dashes = [DASHES[i % len(DASHES)] for i in range(len(style["hue_order"]))]
        for axis, (metric, label) in zip(axes[0], labels.items(), strict=True):
            about: dict[str, Any] = {"data": frame, "x": key, "y": metric, "ax": axis, **style}
            sns.scatterplot(**about, alpha=0.35, legend=False, s=14)
            sns.lineplot(**about, dashes=dashes, errorbar=None, legend=axis is axes[0][0])
            axis.set(ylabel=label, xticks=sorted(frame[key].unique()))
            if metric == "failed":
                axis.set_ylim(-0.05, 1.05)
        _legend(figure, axes[0][0], "outside lower center", ncols=2)
        return figure

    yield Drawing(
        f"axis-{key}",
        f"Along {key}",
        f"Means over seeds along `{key}` (dots: single seeds), nats per image"
        + ("; and the share of seeds that could not reconstruct." if shares else "."),
        draw,
    )


def _legend(figure: Figure, axis: Axes, place: Any, **about: Any) -> None:
    """Move the legend of an axis to the figure."""
    handles: Any
    handles, labels = axis.get_legend_handles_labels()
    if (own := axis.get_legend()) is not None:
        own.remove()
    figure.legend(handles, labels, loc=place, frameon=False, **about)


# --------------------------------------------------------------------------- objectives


def _objectives(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    kinds = {"yes": "bounds -log p(x)", "no": "bounds nothing", "not shown": "not shown to bound"}
    frame = _frame(cells, "objective", "nll")
    if frame.empty:
        return
    frame["kind"] = [kinds[cell.says("bounds_nll")] for cell in frame["cell"]]
    means = ((cell, cell.mean("objective"), cell.mean("nll")) for cell in cells)
    hidden = [
        (objective - nll, cell.name, cell.label)
        for cell, objective, nll in means
        if objective is not None and nll is not None and nll - objective > 1
    ]
    names = [label for *_, label in sorted(hidden)][:MOST_NAMES]

    def draw() -> Figure:
        figure, axes = blank(12.4 if names else 6.2, 4.6, 1, 2 if names else 1)
        _scatter(axes[0][0], frame, "kind", list(kinds.values()))
        axes[0][0].legend(loc="best", frameon=False, fontsize=8)
        if names:  # they lie close together where others are far from their bounds
            some = pd.concat([frame[frame["label"] == name] for name in names])
            _scatter(axes[0][1], some, "label")
            size = 8 if len(names) < 12 else 6
            _legend(figure, axes[0][1], "outside right upper", fontsize=size)
        return figure

    yield Drawing(
        "objective",
        "What objectives hide",
        "Each seed's objective against its nll, nats per image. On the diagonal the two agree; "
        "above it the objective lies below our smallest bound on -log p(x): an objective that "
        "bounds nothing hides at most this much. On the right: the cells whose objective lies "
        "more than a nat below their nll, where there are any.",
        draw,
    )


def _frame(cells: Sequence[TableRow], x: str, y: str) -> pd.DataFrame:
    """Return a row for each finished seed that has both numbers, with its cell and label."""
    rows = [
        {"cell": cell, "label": cell.label, x: float(row[x]), y: float(row[y])}
        for cell in cells
        for row in cell.finished
        if row.get(x) and row.get(y)
    ]
    return pd.DataFrame(rows, columns=["cell", "label", x, y])


def _scatter(axis: Axes, frame: pd.DataFrame, by: str, names: Sequence[str] = ()) -> None:
    """Draw nll against the objective, a point a seed, and as much of the diagonal as is near."""
    about = styles(frame, by, names)
    sns.scatterplot(frame, x="objective", y="nll", ax=axis, s=25, alpha=0.75, **about)
    x, y = frame["objective"], frame["nll"]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    pad = 0.04 * (high - low or 1)
    axis.axline((low, low), slope=1, color="0.3", linewidth=0.8, dashes=(4, 2))
    axis.set(
        xlim=(low - pad, x.max() + 3 * pad),
        ylim=(y.min() - pad, y.max() + pad),
        xlabel=f"objective, {NATS}",
        ylabel=f"nll, {NATS}",
    )


# --------------------------------------------------------------------------- charges


def _charges(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    """Yield a figure of charges against KL, where a variant is known to charge too little."""
    ratios = {cell.variant: value_of(cell.first, "least_kl_per_charge") for cell in cells}
    least = {variant: ratio for variant, ratio in ratios.items() if ratio is not None}
    frame = _frame(cells, "charge", "kl")
    if not any(cell.variant in least for cell in frame["cell"]):
        return
    weights = [float(cell.first.get("params.charge_weight") or 1) for cell in frame["cell"]]
    frame["charge"] *= weights
    frame["name"] = [
        cell.variant + ("" if weight == 1 else f" (charge_weight={weight:g})")
        for cell, weight in zip(frame["cell"], weights, strict=True)
    ]
    every, frame = len(frame), frame[frame[["charge", "kl"]].min(axis=1) > LEAST_CHARGE]
    unseen = every - len(frame)
    cut = f" {unseen} of {every} seeds lie below {LEAST_CHARGE} nats." if unseen else ""
    bounds = " ".join(
        f"The dashed line is the least that the sampler of `{variant}` can cost: {ratio:g} times "
        "its charge."
        for variant, ratio in least.items()
    )

    def draw() -> Figure:
        figure, axes = blank(6.6, 4.4)
        axis = axes[0][0]
        if not frame.empty:
            _costs(figure, axis, frame.sort_values("name", kind="stable"), list(least.values()))
        axis.set(xlabel=f"charge, {NATS}", ylabel=f"true KL(q || p), {NATS}")
        return figure

    yield Drawing(
        "charge",
        "What is charged and what it costs",
        "Each seed's charge, times the weight that its objective gives it, against the true "
        "KL(q || p) summed over steps, nats per image. On the solid line the charge is the KL. "
        f"{bounds}{cut}",
        draw,
    )


def _costs(figure: Figure, axis: Axes, frame: pd.DataFrame, least: Sequence[float]) -> None:
    """Draw KL against the charge on logarithmic scales, with the least ratios of the two."""
    axis.set(xscale="log", yscale="log")
    about = {"x": "charge", "y": "kl", "s": 25, "alpha": 0.75, **styles(frame, "name")}
    sns.scatterplot(frame, ax=axis, **about)
    low, high = frame[["charge", "kl"]].min().min(), frame[["charge", "kl"]].max().max()
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(_round))
        # between powers of ten there is room for names where there are few of them
        room = math.log10(high / low) < 2.5
        side.set_minor_formatter(FuncFormatter(_round) if room else NullFormatter())
    axis.axline((1, 1), (10, 10), color="0.3", linewidth=0.9)
    for ratio in least:
        axis.axline((1, ratio), (10, 10 * ratio), color="0.3", linewidth=0.9, dashes=(4, 2))
    axis.set(
        xlim=(0.7 * frame["charge"].min(), 1.4 * frame["charge"].max()),
        ylim=(0.7 * low, 1.4 * high),
    )
    _legend(figure, axis, "outside right upper")
