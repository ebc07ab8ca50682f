"""Figures that are drawn from the csv alone, and how every figure is drawn.

A variant has one colour on a page, of seaborn's `colorblind`, doubled by markers and dashes, so
that a grey print can be read. Every figure is as wide as a page's text, in one size of type. The
same numbers give the same bytes: nothing is drawn at random, and no file carries a date.
"""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from glas_bench.report.table import (
    COMPARED,
    MOST_TABLES,
    Row,
    TableRow,
    setting_list,
    table_rows,
    tables,
    unit_of,
    value_of,
)
from glas_bench.report.verdicts import claims_of, word
from glas_bench.runs.pictures import default_style
from glas_bench.stats import ONE_SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NATS = "nats per image"
WIDTH = 7.0
"""Inches, of every figure."""
FIRST = (0.1, 0.1, 0.1)
"""The colour of a page's baseline."""
PALETTE = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 4, 5, 9)]
"""The colours of all others: without those that are pale, and without grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">")
SIZES = {"*": 9, "P": 7, "X": 7}
DASHES = ((), (4, 1.5), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1), (8, 2))
SHADES = ((0.0, "w"), (0.5, "w"), (0.4, "k"), (0.7, "w"))
"""How much of white or black the colour of a variant's first, second, ... cell is mixed with."""
DPI = 150
FONTS = (
    *("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize", "figure.titlesize"),
    *("legend.fontsize", "legend.title_fontsize", "xtick.labelsize", "ytick.labelsize"),
)
POINTS = 8
STYLE: Any = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    **dict.fromkeys(FONTS, POINTS),
    "font.family": ["DejaVu Sans"],
    "svg.hashsalt": "glas-bench",  # names in an SVG are otherwise drawn at random
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}
UNDATED: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
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

    def picture(self, kind: str = "png") -> bytes:
        """Return it as png (256 colours, to be committed), svg or pdf; the same bytes each time."""
        drawn, buffer = io.BytesIO(), io.BytesIO()
        with default_style(), mpl.rc_context(STYLE):
            figure = self.draw()
            for text in figure.findobj(Text) if self.unit != "image" else ():
                text.set_text(self._worded(text.get_text()))
            figure.savefig(drawn, format=kind, dpi=DPI, metadata=UNDATED[kind])
        if kind != "png":
            return drawn.getvalue()
        whole = Image.open(drawn).convert("RGB")
        few = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, "png", optimize=True)
        return buffer.getvalue()

    def _worded(self, text: str) -> str:
        return re.sub(r"\bimage(s?\b)(?!=)", rf"{self.unit}\1", text)


def panels(
    height: float, count: int = 1, most: int = 1, more: float = 0.0, **about: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes: `count` panels, at most `most` side by side.

    It is `height` inches high for each row of panels, and `more`.
    """
    columns = min(most, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows + more), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **about).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


class Styles:
    """How the cells of a page are drawn: a variant's colour, and which of its cells one is.

    The baseline comes first, so it looks alike on pages that have the same one.
    """

    def __init__(self, cells: Sequence[TableRow]) -> None:
        baselines = [cell for cell in cells if cell.first.get("is_baseline")]
        self.cells: dict[str, list[str]] = {}
        for cell in (*baselines, *cells):
            own = self.cells.setdefault(cell.variant, [])
            own += [cell.name] if cell.name not in own else []
        self.variants = list(self.cells)

    def place(self, cell: TableRow) -> int:
        """Return which of its variant's cells it is, from 0."""
        return self.cells[cell.variant].index(cell.name)

    def colour(self, variant: str, place: int = 0) -> Any:
        """Return the colour of a variant, shaded for each of its cells."""
        share, other = SHADES[place % len(SHADES)]
        index = self.variants.index(variant)
        own = PALETTE[(index - 1) % len(PALETTE)] if index else FIRST
        return tuple((1 - share) * np.array(own) + share * np.array(to_rgb(other)))

    def marker(self, variant: str, place: int = 0) -> str:
        """Return the marker of a variant's cell; with its colour it tells 77 variants apart."""
        return MARKERS[(self.variants.index(variant) + place) % len(MARKERS)]

    def of(self, cell: TableRow) -> dict[str, Any]:
        """Return colour and marker of a cell."""
        place = self.place(cell)
        return {
            "color": self.colour(cell.variant, place),
            "marker": self.marker(cell.variant, place),
        }


def usual(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return a range that takes in the given ones but for outliers, where they flatten the rest.

    An outlier lies further than three times the distance of the quartiles from the nearer one
    (Tukey 1977, "far out"). Outliers flatten the rest where it has less than a third of the whole.
    """
    ends = np.array(ranges).ravel()
    low, high = np.quantile(ends, [0.25, 0.75])
    rest = ends[(ends >= low - 3 * (high - low)) & (ends <= high + 3 * (high - low))]
    if np.ptp(ends) <= 3 * np.ptp(rest):
        rest = ends
    return float(rest.min()), float(rest.max())


def from_csv(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield the figures that the rows of a csv have the data for."""
    axes = json.loads(rows[0].get("axes") or "[]")
    every = table_rows(rows)
    styles = Styles(every)

    def of_table(cells: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from _differences(cells, styles)
        for key in axes:
            yield from _axis(key, cells, styles)
        yield from _modes(cells, styles)
        yield from _objectives(cells, styles)
        yield from _charges(cells, styles)

    yield from (replace(each, unit=unit_of(rows)) for each in _looks(every))
    yield from by_table(every, of_table)


def of_pages(pages: Iterable[Sequence[TableRow]]) -> Iterator[Drawing]:
    """Yield the figures of several pages together: by table, the modes of all their variants.

    A seed that pages share is drawn once. Where one page alone has a table, its own figure shows
    the same.
    """
    merged: dict[tuple[str, tuple[str, ...]], dict[tuple[str, str], Row]] = {}
    shared: dict[tuple[str, ...], set[str]] = {}
    for cell in (cell for cells in pages for cell in cells if cell.finished):
        own = merged.setdefault((cell.variant, cell.common), {})
        shared.setdefault(cell.common, set()).add(cell.first["study"])
        for row in cell.finished:
            own.setdefault((row.get("config_key", ""), row["seed"]), row | {"settings": ""})
    every = [
        TableRow(variant, variant, list(rows.values()), common)
        for (variant, common), rows in merged.items()
        if len(shared[common]) > 1
    ]
    styles = Styles(every)
    yield from by_table(every, lambda cells: _modes(cells, styles))


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
    def ends(self) -> tuple[float, float]:
        """The least and the greatest of its interval and its seeds."""
        return min([self.low, *self.seeds]), max([self.high, *self.seeds])


def _difference(cell: TableRow, metric: str, cells: Sequence[TableRow]) -> _Difference | None:
    if (found := cell.difference(metric)) is None:
        return None
    estimate, low, high, p = found
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


def _differences(cells: Sequence[TableRow], styles: Styles) -> Iterator[Drawing]:
    every = {metric: [_difference(cell, metric, cells) for cell in cells] for metric in COMPARED}
    by_metric = {
        metric: [one for one in some if one] for metric, some in every.items() if any(some)
    }
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
    ranges = {metric: usual([one.ends for one in own]) for metric, own in shown.items()}
    caption = (
        "Cell minus baseline, nats per image: the estimate with its 95 % interval, paired by seed "
        "and image. Left of zero is better than the baseline. Exploratory: no verdict rests on it. "
        "Hollow: p, adjusted for the false discovery rate, >= .05. A cross: one seed, with an "
        "interval over images alone."
    )
    drawn = [(one, *ranges[metric]) for metric, own in shown.items() for one in own]
    if any(one.seeds for one, *_ in drawn):
        caption += " Upright strokes: single seeds."
    if any(one.ends[0] < low or one.ends[1] > high for one, low, high in drawn):
        caption += " An arrow: beyond the picture."

    def draw() -> Figure:
        figure, axes = panels(0.7 + 0.2 * len(places), len(shown), 2, sharey=True)
        for axis, metric in zip(axes, shown, strict=True):
            _forest(axis, shown[metric], ranges[metric], places, styles)
            axis.set_xlabel(f"{metric} - baseline, {NATS}")
        axes[0].set_yticks(list(places.values()), [labels[name] for name in places])
        axes[0].set_ylim(0.3, len(places) + 0.7)
        return figure

    yield Drawing("differences", "Differences from the baseline", caption + cut, draw)


def _forest(
    axis: Axes,
    some: Sequence[_Difference],
    shown: tuple[float, float],
    places: Mapping[str, float],
    styles: Styles,
) -> None:
    low, high = shown
    pad = 0.04 * (high - low or 1)
    axis.axvline(0, color="0.3", linewidth=0.8)
    for one in some:
        y, colour = places[one.cell.name], styles.colour(one.cell.variant)
        line, mark = (":", "x") if one.is_of_one_seed else ("-", "o")
        ends = np.clip([one.low, one.high], low, high)
        axis.plot(ends, [y, y], line, color=colour, linewidth=1.4, solid_capstyle="butt")
        if inside := [value for value in one.seeds if low <= value <= high]:
            axis.plot(inside, [y] * len(inside), "|", color=colour, alpha=0.6, markersize=6)
        face = colour if one.is_significant else "white"
        if low <= one.estimate <= high:
            axis.plot([one.estimate], [y], mark, color=colour, markerfacecolor=face, markersize=4.5)
        beyond = ((low, "<", one.ends[0] < low), (high, ">", one.ends[1] > high))
        for end, arrow, is_beyond in beyond:
            if is_beyond:
                axis.plot([end], [y], arrow, color=colour, markerfacecolor=face, markersize=4.5)
    axis.set_xlim(min(low, 0) - pad, max(high, 0) + pad)
    axis.grid(axis="y", linewidth=0.4)


def _round(value: float, _: object) -> str:
    """Return the label of a tick of a logarithmic scale: of 1, 2, 5, 10, 20 and so on alone."""
    return f"{value:g}" if f"{abs(value):e}"[0] in "0125" else ""


def _looks(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    by_claim = [
        (one, [look for look in one["looks"] if look["low"] is not None])
        for one in claims_of(cells)
    ]
    taken = [(one, looks) for one, looks in by_claim if looks]
    if not taken:
        return

    def draw() -> Figure:
        figure, axes = panels(2.4, len(taken), 3)
        for axis, (one, looks) in zip(axes, taken, strict=True):
            _interval_by_look(axis, one, looks)
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
    colour = PALETTE[0]
    if one["margin"]:
        axis.axhspan(-one["margin"], one["margin"], color="0.9", zorder=0)
    axis.axhline(0, color="0.3", linewidth=0.8)
    for look in looks:
        x, face = look["seeds"], "white" if look["word"] == "undecided" else colour
        axis.plot([x, x], [look["low"], look["high"]], "-", color=colour, linewidth=1.4)
        axis.plot([x], [look["estimate"]], "o", color=colour, markerfacecolor=face)
    axis.set_xticks(one["planned"])
    axis.set_xlim(one["planned"][0] - 1.5, one["planned"][-1] + 1.5)
    title = "".join(f", {key} = {value}" for key, value in one["at"].items())
    title = textwrap.fill(f"claim {one['claim']}{title}", 32)
    axis.set_title(f"{title}\n{word(one)}")
    axis.set(xlabel="seeds of each arm", ylabel=one["unit"] if one["unit"] != "nats" else NATS)


def _modes(cells: Sequence[TableRow], styles: Styles) -> Iterator[Drawing]:
    frame = _frame(cells, "effective_dimensions", "nll")
    if frame.empty:
        return
    ends = frame.groupby("label")["nll"].agg(["min", "max"])
    low, high = usual([*ends.itertuples(index=False, name=None)])
    beyond = int((~frame["nll"].between(low, high)).sum())
    pad = 0.04 * (high - low or 1)

    def draw() -> Figure:
        figure, (axis,) = panels(3.8)
        _points(axis, frame, "effective_dimensions", "nll", styles)
        axis.set(xlabel="effective dimensions of E_q z", ylabel=f"nll, {NATS}")
        axis.set_ylim(low - pad, high + pad)
        axis.ticklabel_format(useOffset=False)
        figure.legend(loc="outside right upper", frameon=False)
        return figure

    cut = f" {beyond} of {len(frame)} seeds lie beyond the picture." if beyond else ""
    yield Drawing(
        "modes",
        "Effective dimensions and nll",
        "Each seed's nll against the effective dimensions of E_q z_t over images (participation "
        "ratio): seeds that let another direction through end lower." + cut,
        draw,
    )


def _points(axis: Axes, frame: pd.DataFrame, x: str, y: str, styles: Styles) -> None:
    """Draw a point a seed, in the style of its cell; the first cells are named."""
    for place, (label, some) in enumerate(frame.groupby("label", sort=False)):
        about = styles.of(some["cell"].iloc[0])
        about |= {"label": label} if place < MOST_NAMES else {}
        edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.5, "linestyle": ""}
        size = SIZES.get(about["marker"], 6)
        axis.plot(some[x], some[y], markersize=size, alpha=0.85, **edge, **about)


def _axis(key: str, cells: Sequence[TableRow], styles: Styles) -> Iterator[Drawing]:
    rows = []
    for cell in (cell for cell in cells if key in cell.settings):
        rest = {name: text for name, text in cell.settings.items() if name != key}
        about = {
            "variant": cell.variant,
            "line": cell.variant + (f" ({setting_list(rest)})" if rest else ""),
            key: float(cell.settings[key]),
        }
        for row in cell.finished:
            failed = {"true": 1.0, "false": 0.0}.get(row.get("failed", ""))
            numbers = {metric: value_of(row, metric) for metric in ("nll", "elbo")}
            rows.append({**about, **numbers, "failed": failed})
    frame = pd.DataFrame(rows, columns=["variant", "line", key, "nll", "elbo", "failed"])
    if not (frame.groupby("line")[key].nunique() > 1).any():
        return
    labels = {"nll": f"nll, {NATS}", "elbo": f"elbo, {NATS}"}
    if shares := bool((frame["failed"] == 1).any()):
        labels["failed"] = "share of seeds that failed"
    labels = {metric: label for metric, label in labels.items() if frame[metric].notna().any()}

    def draw() -> Figure:
        figure, axes = panels(3.2, len(labels), len(labels))
        for variant, some in frame.groupby("variant", sort=False):
            for place, (line, own) in enumerate(some.groupby("line", sort=False)):
                about: dict[str, Any] = {"color": styles.colour(str(variant), place)}
                about |= {"marker": styles.marker(str(variant), place)}
                dashes = DASHES[(styles.variants.index(str(variant)) + place) % len(DASHES)]
                means = own.groupby(key)[[*labels]].mean()
                for axis, metric in zip(axes, labels, strict=True):
                    axis.plot(own[key], own[metric], **about, ls="", alpha=0.35, markersize=3)
                    axis.plot(means.index, means[metric], **about, dashes=dashes, label=line)
        for axis, (metric, label) in zip(axes, labels.items(), strict=True):
            axis.set(xlabel=key, ylabel=label, xticks=sorted(frame[key].unique()))
            if metric == "failed":
                axis.set_ylim(-0.05, 1.05)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
        return figure

    yield Drawing(
        f"axis-{key}",
        f"Along {key}",
        f"Means over seeds along `{key}` (dots: single seeds), nats per image"
        + ("; and the share of seeds that could not reconstruct." if shares else "."),
        draw,
    )


def _objectives(cells: Sequence[TableRow], styles: Styles) -> Iterator[Drawing]:
    found = [
        (nll, objective, cell)
        for cell in cells
        if (objective := cell.mean("objective")) is not None
        and (nll := cell.mean("nll")) is not None
    ]
    if not found:
        return
    found.sort(key=lambda one: (one[0], one[2].name))
    cut = f" The best {MOST_ROWS} of {len(found)} cells." if len(found) > MOST_ROWS else ""
    shown = found[:MOST_ROWS]
    low, high = usual([(min(one[:2]), max(one[:2])) for one in shown])
    pad = 0.04 * (high - low or 1)
    beyond = sum(not low <= min(one[:2]) <= max(one[:2]) <= high for one in shown)
    cut += " An arrow: beyond the picture." if beyond else ""

    def draw() -> Figure:
        figure, (axis,) = panels(0.9 + 0.2 * len(shown))
        for place, (nll, objective, cell) in enumerate(shown):
            colour, y = styles.colour(cell.variant), -place
            inside = np.clip([nll, objective], low, high)
            axis.plot(inside, [y, y], color=colour, linewidth=1.4)
            kind = "s" if cell.says("bounds_nll") == "yes" else "X"
            for value, at, marker in zip((nll, objective), inside, ("o", kind), strict=True):
                arrow = "<" if value < low else ">" if value > high else marker
                face = colour if marker == "o" else "white"
                axis.plot([at], [y], arrow, color=colour, markerfacecolor=face, markersize=6)
        axis.set_yticks([-i for i in range(len(shown))], [cell.label for *_, cell in shown])
        axis.set(xlim=(low - pad, high + pad), ylim=(0.6 - len(shown), 0.6), xlabel=NATS)
        axis.grid(axis="y", linewidth=0.4)
        ends = {"nll": ("o", "0.3"), "objective that bounds it": ("s", "w")}
        ends["objective not shown to bound it"] = ("X", "w")
        for label, (marker, face) in ends.items():
            axis.plot([], [], marker, color="0.3", markerfacecolor=face, label=label)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return figure

    yield Drawing(
        "objective",
        "What objectives hide",
        "Means over seeds, nats per image, the best nll first. A bound lies to the right of nll or "
        "on it. An objective that bounds nothing may lie to its left, by which it hides at most "
        "the length of the line." + cut,
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


def _charges(cells: Sequence[TableRow], styles: Styles) -> Iterator[Drawing]:
    ratios = {cell.variant: value_of(cell.first, "least_kl_per_charge") for cell in cells}
    least = {variant: ratio for variant, ratio in ratios.items() if ratio is not None}
    frame = _frame(cells, "charge", "kl")
    if not any(cell.variant in least for cell in frame["cell"]):
        return
    frame["charge"] *= [float(c.first.get("params.charge_weight") or 1) for c in frame["cell"]]
    every, frame = len(frame), frame[frame[["charge", "kl"]].min(axis=1) > LEAST_CHARGE]
    unseen = every - len(frame)
    cut = f" {unseen} of {every} seeds lie below {LEAST_CHARGE} nats." if unseen else ""
    bounds = " ".join(
        f"The dashed line is the least that the sampler of `{variant}` can cost: {ratio:g} times "
        "its charge."
        for variant, ratio in least.items()
    )

    def draw() -> Figure:
        figure, (axis,) = panels(4.0)
        if not frame.empty:
            _costs(axis, frame, list(least.values()), styles)
            figure.legend(loc="outside right upper", frameon=False)
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


def _costs(axis: Axes, frame: pd.DataFrame, least: Sequence[float], styles: Styles) -> None:
    """Draw KL against the charge on logarithmic scales, with the least ratios of the two."""
    axis.set(xscale="log", yscale="log")
    _points(axis, frame, "charge", "kl", styles)
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
