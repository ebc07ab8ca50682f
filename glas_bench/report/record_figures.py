"""Figures of curves, arrays and pictures, which the csv does not hold: drawn from the records."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator

from glas_bench.record import SeedRecord
from glas_bench.registry import Variant
from glas_bench.report.figures import (
    DASHES,
    NATS,
    PALETTE,
    WIDTH,
    Drawing,
    Styles,
    by_table,
    panels,
    usual,
)
from glas_bench.report.table import NBSP, TableRow, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, int]
"""config_key and seed."""
Series = Mapping[Key, Sequence[tuple[float, float]]]
"""The points of a curve."""

COLUMNS = 3
MOST_LINES = 4
"""Curves in one panel; a variant with more cells has several."""
MOST_PANELS = 32
GREYS = ("0.45", "0.7", "0.25")
"""Of the baselines in other panels."""
MOST_PICTURES = 36
MOST_FOOTPRINTS = 8
MOST_ALIKE = 3
"""Footprints of one filter; variants of text whose lines are shown."""
TEXT_PIXELS = 60
"""A block of ink in a picture of `runs.pictures` that is smaller than this is text beside it."""


def from_records(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], variants: Mapping[str, Variant]
) -> Iterator[Drawing]:
    """Yield the figures that the records of a page's finished seeds have the data for.

    Variants are those of the cells, by name, as far as they are known.
    """
    if not records:
        return
    samples, filters = (
        [name for name, variant in sorted(variants.items()) if figure in variant.cls.figures]
        for figure in ("samples", "filter")
    )

    styles = Styles(cells)

    def of_table(some: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from _curves(some, records, styles)
        yield from _per_step(some, records, styles)
        yield from _samples(some, records, samples)
        yield from _footprints(some, records, filters)

    yield from by_table(cells, of_table)
    yield from _centres(cells)


def _keys(cell: TableRow) -> list[Key]:
    return [(row["config_key"], int(row["seed"])) for row in cell.finished]


def _curves(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], styles: Styles
) -> Iterator[Drawing]:
    series: dict[Key, list[tuple[float, float]]] = {}
    recon: set[Key] = set()
    for key in (key for cell in cells for key in _keys(cell) if key in records):
        points: dict[str, dict[float, float]] = {"elbo": {}, "recon": {}}
        for row in records[key].metrics:
            value = row.get("validation")
            if value is not None and math.isfinite(value):
                points[row.get("validation_kind") or "elbo"][float(row["epoch"])] = value
        kind = "elbo" if points["elbo"] else "recon"
        if len(points[kind]) > 1:
            series[key] = sorted(points[kind].items())
            recon |= {key} if kind == "recon" else set()
    yield from _panelled(
        "curves",
        "Learning curves",
        "Validation, nats per image, over epochs: the -ELBO of one draw, or the reconstruction "
        "alone where the recogniser has no density, which is less and has no baseline beside "
        "it. Runs with fewer than two epochs of finite values are left out.",
        ("epoch", f"validation, {NATS}"),
        cells,
        series,
        styles,
        recon,
    )


_STEPS = (
    (
        "kl_per_step",
        "KL per time step",
        f"KL(q_t || p), {NATS}",
        "How many nats the recogniser spends at each time step, on test images.",
    ),
    (
        "canvas_variance",
        "Variance between samples over time steps",
        "variance of E[x|o_t]",
        "Variance between samples of the prior of E[x|o_t], mean over the numbers of x: near zero "
        "where all samples look alike.",
    ),
    (
        "footprint_perplexity_per_step",
        "How many cells the filter looks at",
        "perplexity, cells",
        "Perplexity of the filter's footprint on the latent matrix, in cells: 1 for one cell.",
    ),
)


def _per_step(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], styles: Styles
) -> Iterator[Drawing]:
    scores: dict[Key, Mapping[str, Any]] = {
        key: records[key].scores.get(row.get("protocol_key", ""), {})
        for cell in cells
        for key, row in zip(_keys(cell), cell.finished, strict=True)
        if key in records
    }
    for name, title, axis, caption in _STEPS:
        series = {
            key: [(float(t), float(value)) for t, value in enumerate(document[name], 1)]
            for key, document in scores.items()
            if document.get(name) and None not in document[name]
        }
        about = (name.replace("_", "-"), title, caption, ("time step t", axis))
        yield from _panelled(*about, cells, series, styles)


def _panelled(
    name: str,
    title: str,
    caption: str,
    labels: tuple[str, str],
    cells: Sequence[TableRow],
    series: Series,
    styles: Styles,
    recon: Collection[Key] = (),
) -> Iterator[Drawing]:
    """Yield a figure of small panels, one a variant, each curve's baseline beside it.

    `labels` are those of x and y; the curves in `recon` are of the reconstruction alone. Without
    data there is no figure.
    """
    curves = {cell.name: [series[key] for key in _keys(cell) if key in series] for cell in cells}
    there = [cell for cell in cells if curves[cell.name]]
    if not there:
        return
    every = [
        _Panel(variant + (f" ({place})" if len(parts) > 1 else ""), part)
        for variant in dict.fromkeys(cell.variant for cell in there)
        for parts in [_parts([cell for cell in there if cell.variant == variant])]
        for place, part in enumerate(parts, 1)
    ]
    shown, by_name = every[:MOST_PANELS], {cell.name: cell for cell in there}
    for panel in shown:
        if any(key in recon for cell in panel.cells for key in _keys(cell)):
            panel.title += " (recon alone)"  # which no baseline stands beside
            continue
        others = (by_name.get(cell.first.get("compared_with", "")) for cell in panel.cells)
        panel.baselines = [*{c.name: c for c in others if c and c not in panel.cells}.values()]
    baselines = {cell.name: cell.title for panel in shown for cell in panel.baselines}
    caption += " Bold lines are means over seeds, thin ones single seeds"
    if baselines:
        caption += "; dotted grey lines the mean of the baseline that a curve is compared with"
        caption += f": {next(iter(baselines.values()))}" if len(baselines) == 1 else ""
    greys = {name: GREYS[i % len(GREYS)] for i, name in enumerate(baselines)}
    for panel in shown:
        heights = [y for cell in panel.cells for curve in curves[cell.name] for _, y in curve]
        panel.ends = min(heights), max(heights)
    low, high = usual([panel.ends for panel in shown])
    own = [panel for panel in shown if panel.ends[0] < low or panel.ends[1] > high]
    for panel in own:
        panel.title += " (own scale)"
    caption += ". A panel with (own scale) in its title would flatten the others" * bool(own)
    left_out = f" The first {MOST_PANELS} of {len(every)} panels."
    caption += "." + left_out * (len(every) > MOST_PANELS)
    pad = 0.05 * (high - low or 1)

    def mean(axis: Axes, cell: TableRow, **about: Any) -> None:
        points = pd.DataFrame([point for curve in curves[cell.name] for point in curve])
        means = points.groupby(0)[1].mean()
        marker = "o" if len(means) == 1 else ""
        axis.plot(means.index, means, marker=marker, markersize=3, linewidth=1.3, **about)

    def draw_panel(axis: Axes, panel: _Panel) -> None:
        """Draw each cell's mean over seeds, and each seed: a mean hides a collapse."""
        for cell in panel.baselines:
            label = f"baseline: {cell.label}"
            mean(axis, cell, color=greys[cell.name], dashes=(1, 1), label=label)
        for cell in panel.cells:
            place = styles.place(cell)
            colour = styles.colour(cell.variant, place)
            for curve in curves[cell.name] if len(curves[cell.name]) > 1 else ():
                axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.5, linewidth=0.5)
            is_named = len(panel.cells) > 1 or cell.settings
            label = cell.label if is_named else "_"  # else its title names it
            mean(axis, cell, color=colour, dashes=DASHES[place % len(DASHES)], label=label)
        axis.set_title(panel.title)

    def draw() -> Figure:
        columns = min(COLUMNS, len(shown))
        figure, axes = panels(1.9, len(shown), COLUMNS, more=0.4, sharex=True)
        for place, (axis, panel) in enumerate(zip(axes, shown, strict=True)):
            draw_panel(axis, panel)
            if panel not in own:
                axis.set_ylim(low - pad, high + pad)
                axis.tick_params(labelleft=place % columns == 0)
            axis.tick_params(labelbottom=place + columns >= len(shown))
        axes[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        lines = {str(line.get_label()): line for axis in axes for line in axis.get_lines()}
        names = [name for name in lines if not name.startswith("_")]
        if len(names) > len(baselines):
            figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(names) // 2))
            about: dict[str, Any] = {"loc": "outside upper center", "ncols": 2, "frameon": False}
            figure.legend([lines[name] for name in names], names, handlelength=3, **about)
        figure.supxlabel(labels[0])
        figure.supylabel(labels[1])
        return figure

    yield Drawing(name, title, caption, draw)


@dataclass(eq=False)
class _Panel:
    title: str
    cells: Sequence[TableRow]
    baselines: Sequence[TableRow] = ()
    """Those of its cells that are in other panels."""
    ends: tuple[float, float] = (0.0, 0.0)
    """Least and greatest y of its cells."""


def _parts(cells: Sequence[TableRow]) -> list[Sequence[TableRow]]:
    size = -(-len(cells) // -(-len(cells) // MOST_LINES))
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _samples(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], first: Collection[str]
) -> Iterator[Drawing]:
    """Yield samples of images of every cell, baselines first; of text, of three variants."""
    done = [cell for cell in cells if cell.finished]
    title = "Samples over time steps"
    if unit_of([cell.first for cell in cells]) == "image":
        some = sorted(done, key=lambda cell: not cell.first.get("is_baseline"))
        about = "Canvases of eight samples from the prior, a row each, one seed a cell; from left "
        about += "to right the first to the last time step. The write-up says that early steps of "
        about += "its model look alike and DRAW's do not."
        yield from _mosaic(some, records, "samples", title, about)
        return
    names = dict.fromkeys([*first, *(cell.variant for cell in done)])
    own = [next((cell for cell in done if cell.variant == name), None) for name in names]
    some = [cell for cell in own if cell][:MOST_ALIKE]
    beside = " beside ".join(f"`{cell.variant}`" for cell in some)
    seed = "one seed" + (f", {beside}" if len(some) > 1 else "")
    shown = f"A row is the likeliest line at a time step, {seed}: each character shaded by its "
    shown += "probability, with a bar below where it changed since the step before. "
    about = shown + "Four samples from the prior."
    yield from _mosaic(some, records, "samples", title, about, False)
    about = shown + "Four test lines, the true line below; to the right, where the variant has a "
    about += "filter, its footprint on the latent matrix (bright: a large share of the read)."
    title = "Reconstructions over time steps"
    yield from _mosaic(some, records, "reconstructions", title, about, False)
    about = "Mean entropy of a character, given the canvas, by place and time step, over samples "
    about += f"from the prior, {seed}; a uniform character has ln 28 = 3.33 nats."
    yield from _mosaic(some, records, "entropy", "Entropy of characters", about)


def _footprints(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], first: Collection[str]
) -> Iterator[Drawing]:
    """Yield footprints, of the filters first: three of each, and one of any other variant."""
    done = [cell for cell in cells if cell.finished]
    some: list[TableRow] = []
    for variant in dict.fromkeys([*first, *(cell.variant for cell in done)]):
        own = [cell for cell in done if cell.variant == variant]
        some += own[: MOST_ALIKE if variant in first else 1]
    yield from _mosaic(
        some,
        records,
        "filter",
        "Where the filter looks",
        "Mean footprint of the filter on the latent matrix from the first to the last time step, "
        "over a few test images, one seed a cell, at most three cells of a filter and one of any "
        "other variant; dark is a small share of the read, bright a large one, and each picture "
        "has its own scale.",
        most=MOST_FOOTPRINTS,
    )


def _mosaic(
    cells: Sequence[TableRow],
    records: Mapping[Key, SeedRecord],
    name: str,
    title: str,
    caption: str,
    are_tiles: bool = True,
    most: int = MOST_PICTURES,
) -> Iterator[Drawing]:
    """Yield a figure of a picture of each cell's first seed that has one.

    Of tiles the text beside them is cut off; others are drawn large, one below the other.
    """
    there: list[tuple[TableRow, Path]] = []
    for cell in cells:
        own = (records[key].folder.path / f"{name}.png" for key in _keys(cell) if key in records)
        there += [(cell, path) for path in own if path.is_file()][:1]
    if len(there) > most:
        caption += f" The first {most} of {len(there)} cells."
    pictures = [(cell.label, path.read_bytes()) for cell, path in there[:most]]
    if pictures:
        yield Drawing(name, title, caption, lambda: _side_by_side(pictures, are_tiles))


def _side_by_side(pictures: Sequence[tuple[str, bytes]], are_tiles: bool) -> Figure:
    images = [_cut(imread(io.BytesIO(png), format="png"), are_tiles) for _, png in pictures]
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    columns = min(max(2, min(4, round(3 * ratio))) if are_tiles else 1, len(images))
    height = WIDTH / max(columns, 2 if are_tiles else 1) * ratio + 0.3
    figure, axes = panels(height, len(images), columns)
    for axis, image, (name, _) in zip(axes, images, pictures, strict=True):
        axis.imshow(image, interpolation="lanczos")
        whole = name.replace(" = ", f"{NBSP}={NBSP}")
        axis.set_title(textwrap.fill(whole, 96 // columns))
        axis.axis("off")
    return figure


def _cut(image: np.ndarray, are_tiles: bool) -> np.ndarray:
    """Cut off the title of a picture, which gets a new name; of tiles, all text beside them."""
    ink: np.ndarray = np.any(image[..., :3] < 0.98, axis=2)
    top, bottom = _span(np.any(ink, axis=1))
    if not are_tiles:
        return image[max(top - 4, 0) :]
    left, right = _span(np.any(ink[top:bottom], axis=0))  # leaves out a scale, which may be higher
    top, bottom = _span(np.any(ink[:, left:right], axis=1))
    return image[top:bottom, left:right]


def _span(ink: np.ndarray) -> tuple[int, int]:
    """Return the first and the last place of what is larger than text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.view(np.int8), [0]])))
    large = [
        (start, end)
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if end - start >= TEXT_PIXELS
    ]
    return (int(large[0][0]), int(large[-1][1])) if large else (0, len(ink))


def _centres(cells: Sequence[TableRow]) -> Iterator[Drawing]:
    """Yield the centres of each grid along one axis of the matrix, a row a grid and filter size."""
    with_grid = [cell.first for cell in cells if cell.finished and cell.first.get("params.grid")]
    if not with_grid:
        return
    size = int(with_grid[0].get("params.latent_size") or 9)
    filters = sorted({int(row.get("params.filter_size") or 5) for row in with_grid})

    def draw() -> Figure:
        import torch

        from glas_bench.filters import GRIDS, grid_centres

        rows = [(grid, count) for count in filters for grid in GRIDS]
        figure, (axis,) = panels(0.8 + 0.25 * len(rows))
        axis.axvspan(-0.5, size - 0.5, color="0.88", zorder=0)
        zero = torch.zeros(())
        for i, (grid, count) in enumerate(rows):
            centres = grid_centres(count, size, zero, zero, grid).tolist()
            y = [len(rows) - i] * count
            axis.plot(centres, y, "osD"[i % 3], color=("0.1", "0.45", "0.65")[i % 3], markersize=6)
        names = [f"{grid}, {count}x{count}" for grid, count in rows]
        axis.set_yticks(range(len(rows), 0, -1), names)
        axis.set_ylim(0.4, len(rows) + 0.6)
        axis.set_xlabel("position along one axis of the latent matrix, cells")
        return figure

    yield Drawing(
        "centres",
        "Filter centres of the three grids",
        f"Where the kernels sit on a latent matrix of {size} x {size} before training (offset "
        "0, stride 1), along one axis; the shaded part is the matrix. The original grid's slip "
        "puts most of them outside.",
        draw,
    )


def of_searches(searches: Mapping[str, Any]) -> Iterator[Drawing]:
    """Yield a figure of each search with a winner: validation nll over every axis."""
    for cell, search in searches.items():
        tried = [each for each in search["trials"] if each["validation_nll"] is not None]
        if search["winner"] is None:
            continue
        axes = sorted(search["winner"]["values"])
        left_out = len(search["trials"]) - len(tried)
        yield Drawing(
            f"search-{re.sub(r'[^a-z0-9]+', '-', cell.lower()).strip('-')}",
            f"Search of {cell}",
            f"Each point is a trial, the ring is the winner. Validation nll, {NATS}, mean over the "
            f"tuning seeds; {left_out} of {len(search['trials'])} trials have no number.",
            functools.partial(_search, axes, tried, search["winner"]),
        )


def _search(
    names: Sequence[str], tried: Sequence[Mapping[str, Any]], won: Mapping[str, Any]
) -> Figure:
    figure, axes = panels(2.4, len(names), 3, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        values = [each["values"][name] for each in tried]
        best = won["values"][name]
        numeric = all(type(each) in (int, float) for each in values)
        if not numeric:
            values, best = [str(each) for each in values], str(best)
        elif min(values) > 0 and max(values) > 20 * min(values):
            axis.set_xscale("log")
        axis.plot(values, [each["validation_nll"] for each in tried], "o", color=PALETTE[0])
        ring: Any = {"markersize": 12, "markerfacecolor": "none", "color": "black"}
        axis.plot([best], [won["validation_nll"]], "o", **ring)
        axis.set_xlabel(name)
    axes[0].set_ylabel(f"validation nll, {NATS}")
    return figure
