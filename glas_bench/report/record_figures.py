"""Figures of curves, arrays and pictures, which the csv does not hold: drawn from the records."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator

from glas_bench.record import SeedRecord
from glas_bench.registry import Variant
from glas_bench.report.figures import DASHES, NATS, Drawing, blank, by_table, colours
from glas_bench.report.table import TableRow, unit_of

Key = tuple[str, int]
"""config_key and seed."""
Series = Mapping[Key, Sequence[tuple[float, float]]]
"""The points of a curve."""

COLUMNS = 4
MOST_LINES = 4
"""Curves in one panel; a variant with more cells has several."""
MOST_PANELS = 32
MOST_PICTURES = 8
MOST_ALIKE = 3
"""Footprints of one filter."""
TITLE_PIXELS = 60
"""A block of ink lower than this, at the top of a picture of `runs.pictures`, is its title."""


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

    def of_table(some: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from _curves(some, records)
        yield from _per_step(some, records)
        yield from _samples(some, records, samples)
        yield from _footprints(some, records, filters)

    yield from by_table(cells, of_table)
    yield from _centres(cells)


def _keys(cell: TableRow) -> list[Key]:
    return [(row["config_key"], int(row["seed"])) for row in cell.finished]


# --------------------------------------------------------------------------- curves


def _curves(cells: Sequence[TableRow], records: Mapping[Key, SeedRecord]) -> Iterator[Drawing]:
    """Yield the figure of the -ELBO over epochs, or of the reconstruction where there is none."""
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


def _per_step(cells: Sequence[TableRow], records: Mapping[Key, SeedRecord]) -> Iterator[Drawing]:
    """Yield a figure of each diagnostic that a scoring has for every time step."""
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
        yield from _panelled(*about, cells, series)


def _panelled(
    name: str,
    title: str,
    caption: str,
    labels: tuple[str, str],
    cells: Sequence[TableRow],
    series: Series,
    recon: Collection[Key] = (),
) -> Iterator[Drawing]:
    """Yield a figure of small panels, one a variant, the baseline in each; none without data.

    `labels` are those of x and y; the curves in `recon` are of the reconstruction alone.
    """
    if not series:
        return
    panels = list(_panels(cells, series))
    baseline = next((cell for cell in cells if cell.first.get("is_baseline")), None)
    caption += " Bold lines are means over seeds, thin ones single seeds"
    if baseline is not None and len(panels) > 1:
        caption += f"; dashed grey, in the others' panels, the mean of {baseline.title}, "
        caption += "the baseline"
    left_out = f" The first {MOST_PANELS} of {len(panels)} panels."
    caption += "." + left_out * (len(panels) > MOST_PANELS)
    shown = panels[:MOST_PANELS]

    def draw() -> Figure:
        columns = min(COLUMNS, len(shown))
        rows = -(-len(shown) // columns)
        width = 2.6 * columns + 0.4 if columns > 1 else 4.6
        figure, axes = blank(width, 2.3 * rows + 0.5, rows, columns, sharex=True, sharey=True)
        for axis, (panel, some) in zip(axes.flat, shown, strict=False):
            other = any(key in recon for cell in some for key in _keys(cell))
            if baseline is not None and baseline not in some and not other:
                means = _frame([baseline], series).groupby("x")["y"].mean()
                axis.plot(means.index, means, color="0.45", dashes=(3, 2), linewidth=1.3)
            is_named = len(some) > 1 or bool(some[0].settings)
            _draw_lines(axis, _frame(some, series), is_named)
            axis.set_title(panel + (" (recon alone)" if other else ""), fontsize=8)
            if is_named:
                axis.legend(fontsize=6, framealpha=0.7, edgecolor="none", handlelength=2.2)
            axis.set(xlabel="", ylabel="")
        axes.flat[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        figure.supxlabel(labels[0], fontsize=9)
        figure.supylabel(labels[1], fontsize=9)
        return figure

    yield Drawing(name, title, caption, draw)


def _panels(cells: Sequence[TableRow], series: Series) -> Iterator[tuple[str, list[TableRow]]]:
    """Yield a title and its cells, by variant, in the order of the page."""
    there = [cell for cell in cells if any(key in series for key in _keys(cell))]
    for name in dict.fromkeys(cell.variant for cell in there):
        some = [cell for cell in there if cell.variant == name]
        count = -(-len(some) // MOST_LINES)
        size = -(-len(some) // count)
        for place in range(count):
            more = f" ({place + 1})" if count > 1 else ""
            yield name + more, some[place * size : (place + 1) * size]


def _frame(cells: Sequence[TableRow], series: Series) -> pd.DataFrame:
    """Return the points of the cells' curves."""
    points = [
        {"line": cell.setting_list or cell.variant, "seed": key[1], "x": x, "y": y}
        for cell in cells
        for key in _keys(cell)
        for x, y in series.get(key, ())
    ]
    return pd.DataFrame(points, columns=["line", "seed", "x", "y"])


def _draw_lines(axis: Any, frame: pd.DataFrame, legend: bool) -> None:
    """Draw each cell's mean over seeds, and each seed: a mean hides a collapse."""
    names = list(dict.fromkeys(frame["line"]))
    about: dict[str, Any] = {"x": "x", "y": "y", "hue": "line", "hue_order": names}
    about |= {"palette": colours(len(names)), "ax": axis}
    dashes = [DASHES[i % len(DASHES)] for i in range(len(names))]
    style: dict[str, Any] = {"style": "line", "style_order": names, "dashes": dashes}
    if frame["x"].nunique() == 1:
        style |= {"marker": "o", "markersize": 3}
    sns.lineplot(frame, **about, **style, errorbar=None, legend=legend, linewidth=1.3)
    several = frame[frame.groupby("line")["seed"].transform("nunique") > 1]
    if not several.empty:
        each: dict[str, Any] = {"units": "seed", "estimator": None, "legend": False}
        sns.lineplot(several, **about, **each, alpha=0.4, linewidth=0.5)


# --------------------------------------------------------------------------- pictures


def _samples(
    cells: Sequence[TableRow], records: Mapping[Key, SeedRecord], first: Collection[str]
) -> Iterator[Drawing]:
    """Yield the samples of the variants that the figure is of, as published where there is one."""
    some = []
    for variant in first:
        done = [cell for cell in cells if cell.variant == variant and cell.finished]
        own = [cell for cell in done if cell.first.get("as_published") == "yes"]
        some += (own or done)[:1]
    beside = " beside ".join(f"`{cell.variant}`" for cell in some)
    seed = "one seed" + (f", {beside}" if len(some) > 1 else "")
    title = "Samples over time steps"
    if unit_of([cell.first for cell in cells]) == "image":
        about = f"Canvases of eight samples from the prior over time steps, {seed}. The write-up "
        about += "says that early steps of its model look alike and DRAW's do not."
        yield from _mosaic(some, records, "samples.png", "samples", title, about)
        return
    shown = f"A row is the likeliest line at a time step, {seed}: each character shaded by its "
    shown += "probability, with a bar below where it changed since the step before. "
    about = shown + "Four samples from the prior."
    yield from _mosaic(some, records, "samples.png", "samples", title, about, 1)
    about = shown + "Four test lines, the true line below; to the right, where the variant has a "
    about += "filter, its footprint on the latent matrix (bright: a large share of the read)."
    title = "Reconstructions over time steps"
    yield from _mosaic(some, records, "reconstructions.png", "reconstructions", title, about, 1)
    about = "Mean entropy of a character, given the canvas, by place and time step, over samples "
    about += f"from the prior, {seed}; a uniform character has ln 28 = 3.33 nats."
    yield from _mosaic(some, records, "entropy.png", "entropy", "Entropy of characters", about)


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
        "filter.png",
        "filter",
        "Where the filter looks",
        "Mean footprint of the filter on the latent matrix at each time step, over a few test "
        "images, one seed a cell, at most three cells of a filter and one of any other "
        "variant; dark is a small share of the read, bright a large one, and each picture has "
        "its own scale.",
    )


def _mosaic(
    cells: Sequence[TableRow],
    records: Mapping[Key, SeedRecord],
    file: str,
    name: str,
    title: str,
    caption: str,
    columns: int = 2,
) -> Iterator[Drawing]:
    """Yield a figure of a picture of each cell's first seed; none where there is no such file."""
    there = [
        (cell, path)
        for cell in cells
        if (key := _keys(cell)[0]) in records
        and (path := records[key].folder.path / file).is_file()
    ]
    if len(there) > MOST_PICTURES:
        caption += f" The first {MOST_PICTURES} of {len(there)} cells."
    pictures = [(cell.label, path.read_bytes()) for cell, path in there[:MOST_PICTURES]]
    if pictures:
        yield Drawing(name, title, caption, lambda: _side_by_side(pictures, columns))


def _side_by_side(pictures: Sequence[tuple[str, bytes]], columns: int) -> Figure:
    """Draw pictures beside one another, or large in one column, each below its name."""
    images = [_without_title(imread(io.BytesIO(png), format="png")) for _, png in pictures]
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    width = 10.0 if columns == 1 else 7.0 if ratio < 0.9 else 3.8
    columns = min(columns, len(images))
    width, rows = width * columns, -(-len(images) // columns)
    figure, axes = blank(width, (width / columns * ratio + 0.25) * rows, rows, columns)
    for axis, image, (name, _) in zip(axes.flat, images, pictures, strict=False):
        axis.imshow(image, interpolation="lanczos")
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def _without_title(image: np.ndarray) -> np.ndarray:
    """Cut off the lines of text above a picture, which gets a new name."""
    ink = (image[..., :3] < 0.98).any((1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.view(np.int8), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start >= TITLE_PIXELS:
            return image[max(start - 4, 0) :]
    return image


# --------------------------------------------------------------------------- grids


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
        figure, axes = blank(6.4, 0.8 + 0.3 * len(rows))
        axis = axes[0][0]
        axis.axvspan(-0.5, size - 0.5, color="0.88", zorder=0)
        zero = torch.zeros(())
        for i, (grid, count) in enumerate(rows):
            centres = grid_centres(count, size, zero, zero, grid).tolist()
            y = [len(rows) - i] * count
            axis.plot(centres, y, "osD"[i % 3], color=colours(3)[i % 3], markersize=6)
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


# --------------------------------------------------------------------------- searches


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
    figure, axes = blank(3.2 * len(names), 2.8, 1, len(names), sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        values = [each["values"][name] for each in tried]
        best = won["values"][name]
        numeric = all(type(each) in (int, float) for each in values)
        if not numeric:
            values, best = [str(each) for each in values], str(best)
        elif min(values) > 0 and max(values) > 20 * min(values):
            axis.set_xscale("log")
        axis.plot(values, [each["validation_nll"] for each in tried], "o", color=colours(1)[0])
        ring = {"markersize": 12, "markerfacecolor": "none", "color": "black"}
        axis.plot([best], [won["validation_nll"]], "o", **ring)
        axis.set_xlabel(name)
    axes[0][0].set_ylabel(f"validation nll, {NATS}")
    return figure
