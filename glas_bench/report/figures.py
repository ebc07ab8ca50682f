"""Figures that are drawn from the csv alone, and how every figure is drawn.

Colours are seaborn's `colorblind`, doubled by markers and dashes, so that a grey print is read too.
The same numbers give the same bytes: nothing is drawn at random, and a PNG carries no date.

A figure is a function of its own, one below the other, which makes the file long.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from glas_bench.report.table import MOST_TABLES, Row, TableRow, table_rows, tables, value_of
from glas_bench.stats import ONE_SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NATS = "nats per image"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ((), (4, 1.5), (1, 1), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1))
DPI = 150
MARGIN = 0.5
"""Nats that a verdict asks for."""
MOST_ROWS = 60
"""Rows that a figure of one row a cell can take."""
MOST_NAMES = 25
"""Cells that a legend can name."""
LEAST_CHARGE = 0.1
"""Nats below which a seed has collapsed: on a scale with room for them all others lie together."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a page."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]

    def about(self, study: str) -> dict[str, str]:
        """Return what the page says of it."""
        return {"file": self.file(study), "title": self.title, "caption": self.caption}

    def file(self, study: str) -> str:
        """Return its file's name."""
        return f"{study}-{self.name}.png"

    def png(self) -> bytes:
        """Draw it."""
        return png(self.draw())


def png(figure: Figure) -> bytes:
    """Return a figure as PNG of 256 colours, without date and version: pages are committed."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    whole = Image.open(drawn).convert("RGB")
    few = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, **about: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes [rows][columns], in the style of all figures."""
    style: dict[str, Any] = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("paper"),
        "font.family": ["DejaVu Sans"],
    }
    with mpl.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **about)
    return figure, axes


def colours(count: int) -> list[Any]:
    """Return so many colours that the colour-blind can tell apart, as far as there are."""
    palette = sns.color_palette("colorblind")
    return [palette[i % len(palette)] for i in range(count)]


def from_csv(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield the figures that the rows of a csv have the data for."""
    axes = json.loads(rows[0].get("axes") or "[]")

    def of_table(some: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from _forest_of(some)
        for key in axes:
            yield from _axis_of(key, some)
        yield from _objectives(some)
        yield from _charges(some)

    yield from by_table(table_rows(rows), of_table)


def by_table(
    found: Sequence[TableRow], draw: Callable[[Sequence[TableRow]], Iterator[Drawing]]
) -> Iterator[Drawing]:
    """Yield the figures of each table, for what cannot share a table shares no figure either."""
    groups = tables(found)
    for place, section in enumerate(groups[:MOST_TABLES], 1):
        for drawing in draw(section.rows):
            if len(groups) == 1:
                yield drawing
            else:
                title = f"{drawing.title} (table {place})"
                yield replace(drawing, name=f"{drawing.name}-{place}", title=title)


# --------------------------------------------------------------------------- differences


def _forest_of(some: Sequence[TableRow]) -> Iterator[Drawing]:
    told = {
        metric: [cell for cell in some if cell.first.get(f"{metric}_difference")]
        for metric in ("nll", "elbo", "iw", "refit_iw")
    }
    told = {metric: those for metric, those in told.items() if those}
    if not told:
        return
    order = _by_difference(told)
    cut = f" The best {MOST_ROWS} of {len(order)} cells." if len(order) > MOST_ROWS else ""
    order = order[:MOST_ROWS]
    kept = {cell.name for cell in order}
    shown = {
        metric: own
        for metric, some in told.items()
        if (own := [cell for cell in some if cell.name in kept])
    }
    seeds = {
        metric: {cell.name: _seed_differences(cell, metric, some) for cell in own}
        for metric, own in shown.items()
    }
    ranges = {metric: _range(own, metric, seeds[metric]) for metric, own in shown.items()}
    caption = (
        "Cell minus baseline, nats per image: the estimate with its 95 % interval, paired by seed "
        "and image. Left of zero is better than the baseline"
    )
    if any(each.shows_margin for each in ranges.values()):
        caption += "; the grey band is the margin of 0.5 nats that a verdict asks for"
    caption += (
        ". Hollow: Holm-adjusted p >= .05. A cross: one seed, whose interval knows of images alone."
    )
    if any(values for own in seeds.values() for values in own.values()):
        caption += " Upright strokes: the single seeds."
    if any(each.cuts for each in ranges.values()):
        caption += " An arrow: the interval, or a seed, lies beyond the picture."
    yield Drawing(
        "differences",
        "Differences from the baseline",
        caption + cut,
        lambda: _forest(shown, order, ranges, seeds),
    )


def _seed_differences(cell: TableRow, metric: str, some: Sequence[TableRow]) -> list[float]:
    """Return a cell minus its baseline seed by seed, where several seeds have both."""
    planned = cell.first.get("compared_with")
    baseline = next((other for other in some if other.name == planned), None)
    if baseline is None:
        return []
    there = {row["seed"]: value_of(row, metric) for row in baseline.finished}
    pairs = [(value_of(row, metric), there.get(row["seed"])) for row in cell.finished]
    found = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return found if len(found) > 1 else []


@dataclass(frozen=True)
class _Range:
    """What of the differences by one metric is shown."""

    limit: float
    """Nats on either side of zero beyond which intervals are cut."""
    cuts: bool
    linear: float
    """The scale is linear up to here and logarithmic beyond; infinite where it is linear."""
    shows_margin: bool
    """Whether the margin of a verdict is wide enough to be seen."""


def _range(some: Sequence[TableRow], metric: str, seeds: Mapping[str, Sequence[float]]) -> _Range:
    """Return what is shown: every estimate, and intervals and seeds as far as most of them go.

    One outlier presses all others together. Where it is an interval or a seed, it is cut; where it
    is an estimate, the scale is linear near zero and logarithmic beyond.
    """
    ends = [_ends(cell, metric) for cell in some]
    reaches = sorted(
        max(map(abs, (low, high, *seeds[cell.name])))
        for cell, (_, low, high) in zip(some, ends, strict=True)
    )
    median = reaches[len(reaches) // 2]
    limit = max(1.1 * max(abs(estimate) for estimate, _, _ in ends), 2 * median)
    cuts = reaches[-1] > 1.5 * limit
    limit = limit if cuts else reaches[-1]
    is_wide = len(reaches) > 2 and limit > 20 * max(median, 0.5)
    width = min(max(high for *_, high in ends), limit) - max(min(low for _, low, _ in ends), -limit)
    return _Range(
        limit=limit,
        cuts=cuts,
        linear=max(2.0, 2 * median) if is_wide else math.inf,
        shows_margin=is_wide or 0.01 * width <= 2 * MARGIN,
    )


def _ends(cell: TableRow, metric: str) -> tuple[float, float, float]:
    """Return a difference's estimate and the ends of its interval."""
    estimate, low, high = (
        value_of(cell.first, f"{metric}_{name}") for name in ("difference", "low", "high")
    )
    assert estimate is not None
    assert low is not None
    assert high is not None
    return estimate, low, high


def _forest(
    told: Mapping[str, Sequence[TableRow]],
    order: Sequence[TableRow],
    ranges: Mapping[str, _Range],
    seeds: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    height = 0.9 + 0.24 * len(order)
    figure, axes = blank(3.2 + 3.0 * len(told), height, 1, len(told), sharey=True)
    places = {cell.name: len(order) - i for i, cell in enumerate(order)}
    for axis, (metric, some), colour in zip(axes[0], told.items(), colours(len(told)), strict=True):
        shown = ranges[metric]
        if shown.shows_margin:
            axis.axvspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        axis.axvline(0, color="0.3", linewidth=0.8)
        for cell in some:
            own = seeds[metric][cell.name]
            _interval(axis, places[cell.name], cell, metric, shown, own, colour)
        axis.set_xlabel(f"{metric} - baseline, {NATS}")
        if shown.linear < math.inf:
            axis.set_xscale("symlog", linthresh=shown.linear)
            axis.xaxis.set_major_formatter(FuncFormatter(_round))
        axis.grid(axis="y", linewidth=0.4)
    axes[0][0].set_yticks(list(places.values()), [cell.label for cell in order])
    axes[0][0].set_ylim(0.3, len(order) + 0.7)
    return figure


def _interval(
    axis: Axes,
    y: float,
    cell: TableRow,
    metric: str,
    shown: _Range,
    seeds: Sequence[float],
    colour: Any,
) -> None:
    """Draw one difference, its interval and seeds cut where the picture ends."""
    estimate, low, high = _ends(cell, metric)
    p = value_of(cell.first, f"{metric}_p_holm")
    one_seed = cell.first.get(f"{metric}_pairs", "").startswith(ONE_SEED)
    line, mark = (":", "x") if one_seed else ("-", "o")
    face = colour if p is not None and p < 0.05 else "white"
    left, right = max(low, -shown.limit), min(high, shown.limit)
    axis.plot([left, right], [y, y], line, color=colour, linewidth=1.4, solid_capstyle="butt")
    inside = [value for value in seeds if abs(value) <= shown.limit]
    if inside:
        axis.plot(inside, [y] * len(inside), "|", color=colour, alpha=0.6, markersize=6)
    axis.plot([estimate], [y], mark, color=colour, markerfacecolor=face, markersize=4.5)
    for edge, furthest, arrow in (
        (-shown.limit, min((low, *seeds)), "<"),
        (shown.limit, max((high, *seeds)), ">"),
    ):
        if abs(furthest) > shown.limit and furthest * edge > 0:
            axis.plot([edge], [y], arrow, color=colour, markersize=4.5)


def _by_difference(told: Mapping[str, Sequence[TableRow]]) -> list[TableRow]:
    """Return all cells that have a difference, the best first."""
    metric = next(iter(told))
    every = {cell.name: cell for some in told.values() for cell in some}

    def order(cell: TableRow) -> tuple[float, str]:
        value = value_of(cell.first, f"{metric}_difference")
        return math.inf if value is None else value, cell.name

    return sorted(every.values(), key=order)


def _round(value: float, _: object) -> str:
    """Return the label of a tick of a logarithmic scale: of 1, 2, 5, 10, 20 and so on alone."""
    return f"{value:g}" if f"{abs(value):e}"[0] in "0125" else ""


# --------------------------------------------------------------------------- numeric axes


def _axis_of(key: str, some: Sequence[TableRow]) -> Iterator[Drawing]:
    told = [cell for cell in some if key in cell.settings and cell.finished]
    lines = _lines(told, key)
    if not any(len({cell.settings[key] for cell in those}) > 1 for those in lines.values()):
        return
    shares = any(row.get("failed") == "true" for cell in told for row in cell.finished)
    yield Drawing(
        f"axis-{key}",
        f"Along {key}",
        f"Means over seeds along `{key}` (dots: single seeds), nats per image"
        + ("; and the share of seeds that could not reconstruct." if shares else "."),
        lambda: _along(key, lines, shares),
    )


def _lines(told: Sequence[TableRow], key: str) -> dict[str, list[TableRow]]:
    """Return the cells that differ in one setting alone, by what they share."""
    lines: dict[str, list[TableRow]] = {}
    for cell in told:
        rest = [f"{name}={value}" for name, value in cell.settings.items() if name != key]
        name = cell.variant + (f" ({', '.join(rest)})" if rest else "")
        lines.setdefault(name, []).append(cell)
    return {
        name: sorted(some, key=lambda cell: float(cell.settings[key]))
        for name, some in lines.items()
    }


def _along(key: str, lines: Mapping[str, Sequence[TableRow]], shares: bool) -> Figure:
    metrics = [
        metric
        for metric in ("nll", "elbo")
        if any(cell.values(metric) for some in lines.values() for cell in some)
    ] + ["failed"] * shares
    figure, axes = blank(4.2 * len(metrics), 3.6, 1, len(metrics))
    for axis, metric in zip(axes[0], metrics, strict=True):
        for i, (name, some) in enumerate(lines.items()):
            colour = colours(i + 1)[i]
            points = [
                (float(cell.settings[key]), value)
                for cell in some
                for value in _seed_values(cell, metric)
            ]
            if not points:
                continue
            frame = pd.DataFrame(points, columns=["x", "y"])
            axis.plot(
                frame["x"],
                frame["y"],
                MARKERS[i % len(MARKERS)],
                color=colour,
                alpha=0.35,
                markersize=3.5,
            )
            means = frame.groupby("x")["y"].mean()
            axis.plot(
                means.index,
                means.to_numpy(),
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                dashes=DASHES[i % len(DASHES)],
                markersize=5,
                label=name,
            )
        axis.set_xlabel(key)
        axis.set_xticks(sorted({float(cell.settings[key]) for s in lines.values() for cell in s}))
        if metric == "failed":
            axis.set_ylim(-0.05, 1.05)
        axis.set_ylabel("share of seeds that failed" if metric == "failed" else f"{metric}, {NATS}")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure


def _seed_values(cell: TableRow, metric: str) -> list[float]:
    if metric != "failed":
        return cell.values(metric)
    return [float(row["failed"] == "true") for row in cell.finished if row.get("failed")]


# --------------------------------------------------------------------------- objectives


def _objectives(found: Sequence[TableRow]) -> Iterator[Drawing]:
    told = [cell for cell in found if cell.values("objective") and cell.values("nll")]
    if not told:
        return
    yield Drawing(
        "objective",
        "What objectives hide",
        "Each seed's objective against its nll, nats per image. On the diagonal the two agree; "
        "above it the objective lies below our smallest bound on -log p(x): of a cell that bounds "
        "nothing, at most so much is hidden. On the right, by themselves, are the cells whose "
        "objective lies more than a nat below their nll, where there are any.",
        lambda: _objective(told),
    )


def _objective(told: Sequence[TableRow]) -> Figure:
    hidden = _hidden(told)
    figure, axes = blank(12.4 if hidden else 6.2, 4.6, 1, 2 if hidden else 1)
    axis = axes[0][0]
    kinds = {"yes": "bounds -log p(x)", "no": "bounds nothing", "not shown": "not shown to bound"}
    for (kind, name), marker, colour in zip(
        kinds.items(), ("o", "X", "s"), colours(3), strict=True
    ):
        some = [cell for cell in told if cell.says("bounds_nll") == kind]
        if some:
            pairs = [pair for cell in some for pair in _pairs(cell, "objective", "nll")]
            _points(axis, pairs, marker, colour, name)
    _diagonal(axis, told)
    axis.legend(loc="best", frameon=False, fontsize=8)
    if hidden:  # they lie close together where others are far from their bounds
        axis = axes[0][1]
        for i, cell in enumerate(hidden):
            marker, colour = MARKERS[i % len(MARKERS)], colours(i + 1)[i]
            _points(axis, _pairs(cell, "objective", "nll"), marker, colour, cell.label)
        _diagonal(axis, hidden)
        figure.legend(
            *axis.get_legend_handles_labels(),
            loc="outside right upper",
            frameon=False,
            fontsize=8 if len(hidden) < 12 else 6,
        )
    return figure


def _points(
    axis: Axes, points: Sequence[tuple[float, float]], marker: str, colour: Any, label: str
) -> None:
    """Draw one metric against another, a point a seed."""
    if points:
        axis.plot(
            *zip(*points, strict=True),
            marker,
            color=colour,
            label=label,
            markersize=5,
            alpha=0.75,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )


def _diagonal(axis: Axes, told: Sequence[TableRow]) -> None:
    """Draw as much of the diagonal as is near."""
    every = [pair for cell in told for pair in _pairs(cell, "objective", "nll")]
    low = min(min(pair) for pair in every)
    high = max(max(pair) for pair in every)
    pad = 0.04 * (high - low or 1)
    axis.axline((low, low), slope=1, color="0.3", linewidth=0.8, dashes=(4, 2))
    xs = [x for x, _ in every]
    ys = [y for _, y in every]
    axis.set_xlim(min(*xs, *ys) - pad, max(xs) + 3 * pad)  # some of the diagonal is seen
    axis.set_ylim(min(ys) - pad, max(ys) + pad)
    axis.set_xlabel(f"objective, {NATS}")
    axis.set_ylabel(f"nll, {NATS}")


def _pairs(cell: TableRow, x: str, y: str) -> list[tuple[float, float]]:
    found = [(value_of(row, x), value_of(row, y)) for row in cell.finished]
    return [(a, b) for a, b in found if a is not None and b is not None]


def _hidden(told: Sequence[TableRow]) -> list[TableRow]:
    """Return the cells whose objective says a nat too little or more, the worst first."""
    found = []
    for cell in told:
        objective, nll = cell.mean("objective"), cell.mean("nll")
        if objective is not None and nll is not None and nll - objective > 1:
            found.append((objective - nll, cell.name, cell))
    return [cell for _, _, cell in sorted(found, key=lambda each: each[:2])][:MOST_NAMES]


# --------------------------------------------------------------------------- charges


def _charges(found: Sequence[TableRow]) -> Iterator[Drawing]:
    told = [cell for cell in found if _charged(cell)]
    if not any(cell.variant == "min-chi2" for cell in told):
        return
    pairs = [pair for cell in told for pair in _charged(cell)]
    unseen = sum(min(pair) <= LEAST_CHARGE for pair in pairs)
    cut = f" {unseen} of {len(pairs)} seeds lie below {LEAST_CHARGE} nats." if unseen else ""
    yield Drawing(
        "charge",
        "What is charged and what it costs",
        "Each seed's charge, times the weight that its objective gives it, against the true "
        "KL(q || p) summed over steps, nats per image. On the solid line the charge is the KL. "
        "The dashed line is the least that the sampler of `min-chi2` can cost: 2.725 times its "
        f"charge.{cut}",
        lambda: _charge(told),
    )


def _charged(cell: TableRow) -> list[tuple[float, float]]:
    """Return each seed's charge, times what its objective weighs it with, and its true KL."""
    return [(_weight(cell) * charge, kl) for charge, kl in _pairs(cell, "charge", "kl")]


def _weight(cell: TableRow) -> float:
    return float(cell.first.get("params.charge_weight") or 1)


def _charge(told: Sequence[TableRow]) -> Figure:
    figure, axes = blank(6.6, 4.4)
    axis = axes[0][0]
    weighed = sorted({(cell.variant, _weight(cell)) for cell in told})
    for i, (variant, weight) in enumerate(weighed):
        some = [cell for cell in told if (cell.variant, _weight(cell)) == (variant, weight)]
        points = [pair for cell in some for pair in _charged(cell) if min(pair) > LEAST_CHARGE]
        name = variant if weight == 1 else f"{variant} (charge_weight={weight:g})"
        _points(axis, points, MARKERS[i % len(MARKERS)], colours(i + 1)[i], name)
    every = [pair for cell in told for pair in _charged(cell)]
    if every := [pair for pair in every if min(pair) > LEAST_CHARGE]:
        axis.set_xscale("log")
        axis.set_yscale("log")
        decades = math.log10(max(map(max, every)) / min(map(min, every)))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(FuncFormatter(_round))
            # between powers of ten there is room for names where there are few of them
            side.set_minor_formatter(FuncFormatter(_round) if decades < 2.5 else NullFormatter())
        axis.axline((1, 1), (10, 10), color="0.3", linewidth=0.9)
        axis.axline((1, 2.725), (10, 27.25), color="0.3", linewidth=0.9, dashes=(4, 2))
        flat = [value for pair in every for value in pair]
        axis.set_xlim(0.7 * min(x for x, _ in every), 1.4 * max(x for x, _ in every))
        axis.set_ylim(0.7 * min(flat), 1.4 * max(flat))
    axis.set_xlabel(f"charge, {NATS}")
    axis.set_ylabel(f"true KL(q || p), {NATS}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
