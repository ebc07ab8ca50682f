"""Figures that take curves, arrays or pictures of the runs: what the csv does not hold.

A figure is a function of its own, one below the other, which makes the file long.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glas_bench.report.figures import DASHES, NATS, Drawing, blank, by_table, colours
from glas_bench.report.records import Run
from glas_bench.report.table import TableRow, short
from glas_bench.tracking import mlflow_store as store

Key = tuple[str, int]
Series = Mapping[Key, Sequence[tuple[float, float]]]
"""Points of a curve by (config_key, seed)."""

CURVES = ("validation/elbo", "validation/recon")
COLUMNS = 4
MOST_LINES = 4
"""Curves in one panel; a variant with more cells has several."""
MOST_PANELS = 32
MOST_PICTURES = 8
TITLE_PIXELS = 60
"""What is lower than this, at the top of a picture of `runs.pictures`, is a line of its title."""
FILTERS = ("cauchy", "gaussian", "grid")


class Looks:
    """What a page's runs left behind that is worth a picture; read once, when it is made.

    Args:
        found: the page's cells.
        runs: the MLflow rows of their finished seeds.
        results: the results folder.
    """

    def __init__(self, found: Sequence[TableRow], runs: Sequence[Run], results: Path) -> None:
        self.found = found
        self.runs = runs
        self.results = results

    def drawings(self) -> Iterator[Drawing]:
        """Yield the figures that there is data for."""
        if not self.runs:
            return
        yield from by_table(self.found, self._of_table)
        yield from self._centres()

    def _of_table(self, some: Sequence[TableRow]) -> Iterator[Drawing]:
        yield from self._curves(some)
        yield from self._steps(some)
        yield from self._samples(some)
        yield from self._filters(some)

    # ---- curves

    def _runs(self, some: Sequence[TableRow]) -> list[Run]:
        """Return the runs of cells' finished seeds."""
        keys = {key for cell in some for key in _keys(cell)}
        return [run for run in self.runs if (run["config_key"], int(run["seed"])) in keys]

    def _curves(self, some: Sequence[TableRow]) -> Iterator[Drawing]:
        found = store.curves(self._runs(some), self.results, CURVES)
        series: dict[Key, list[tuple[float, float]]] = {}
        alone: set[Key] = set()
        for key, curves in found.items():
            name = next((name for name in CURVES if curves.get(name)), "")
            points = curves.get(name, [])
            if len(points) > 1:
                series[key] = [(float(x), y) for x, y in points]
                alone |= {key} if name == "validation/recon" else set()
        yield from _panelled(
            "curves",
            "Learning curves",
            "Validation, nats per image, over epochs: the -ELBO of one draw, or the reconstruction "
            "alone where the recogniser has no density, which is less and has no baseline beside "
            "it. What has not two epochs of finite values has no panel.",
            ("epoch", f"validation, {NATS}"),
            some,
            series,
            alone,
        )

    def _steps(self, some: Sequence[TableRow]) -> Iterator[Drawing]:
        scores = store.scores(self._runs(some), self.results)
        for name, title, axis, caption in _PER_STEP:
            series = {key: _per_step(document, name) for key, document in scores.items()}
            series = {key: points for key, points in series.items() if points}
            named = name.replace("_", "-")
            yield from _panelled(named, title, caption, ("time step t", axis), some, series)

    # ---- pictures

    def _samples(self, some: Sequence[TableRow]) -> Iterator[Drawing]:
        published = [_as_published(variant, some) for variant in ("cauchy", "draw")]
        chosen = [cell for cell in published if cell is not None]
        yield from self._mosaic(
            chosen,
            "samples.png",
            "samples",
            "Samples over time steps",
            "Canvases of eight samples from the prior over time steps, one seed"
            + (", `cauchy` beside `draw`" if len(chosen) > 1 else "")
            + ". The write-up says that early steps of its model look alike and DRAW's do not.",
            columns=2,
        )

    def _filters(self, some: Sequence[TableRow]) -> Iterator[Drawing]:
        chosen: list[TableRow] = []
        done = [cell for cell in some if cell.finished]
        for variant in dict.fromkeys([*FILTERS, *(cell.variant for cell in done)]):
            own = [cell for cell in done if cell.variant == variant]
            chosen += own[: 3 if variant in FILTERS else 1]
        yield from self._mosaic(
            chosen,
            "filter.png",
            "filter",
            "Where the filter looks",
            "Mean footprint of the filter on the latent matrix at each time step, over eight test "
            "images, one seed a cell, at most three cells of a filter and one of any other "
            "variant; dark is a small share of the read, bright a large one, and each picture has "
            "its own scale.",
            columns=2,
        )

    def _mosaic(
        self, some: Sequence[TableRow], file: str, name: str, title: str, caption: str, columns: int
    ) -> Iterator[Drawing]:
        first = {_keys(cell)[0]: cell for cell in some}
        runs = [run for run in self.runs if (run["config_key"], int(run["seed"])) in first]
        there = store.pictures(runs, self.results, file)
        told = [(first[key], there[key]) for key in first if key in there]
        if len(told) > MOST_PICTURES:
            caption += f" The first {MOST_PICTURES} of {len(told)} cells."
        if told:
            yield Drawing(name, title, caption, lambda: _beside(told[:MOST_PICTURES], columns))

    # ---- grids

    def _centres(self) -> Iterator[Drawing]:
        with_grid = [c for c in self.found if c.finished and c.first.get("params.grid")]
        if not with_grid:
            return
        first = with_grid[0].first
        size = int(first.get("params.latent_size") or 9)
        sizes = {int(cell.first.get("params.filter_size") or 5) for cell in with_grid}
        yield Drawing(
            "centres",
            "Filter centres of the three grids",
            f"Where the kernels sit on a latent matrix of {size} x {size} before training (offset "
            "0, stride 1), along one axis; the shaded part is the matrix. The original grid's slip "
            "puts most of them outside.",
            lambda: _grids(size, sorted(sizes)),
        )


_PER_STEP: tuple[tuple[str, str, str, str], ...] = (
    (
        "kl_per_step",
        "KL per time step",
        f"KL(q_t || p), {NATS}",
        "How many nats the recogniser spends at each time step, on test images.",
    ),
    (
        "canvas_variance",
        "Variance between samples over time steps",
        "variance of sigmoid(o_t)",
        "Variance between samples of the prior of the canvas sigmoid(o_t), mean over pixels: near "
        "zero where all samples look alike.",
    ),
    (
        "footprint_perplexity_per_step",
        "How many cells the filter looks at",
        "perplexity, cells",
        "Perplexity of the filter's footprint on the latent matrix, in cells: 1 for one cell.",
    ),
)


def _per_step(document: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    values = document.get(name)
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return []
    return [(float(t), float(value)) for t, value in enumerate(values, 1)] if values else []


def _as_published(variant: str, some: Sequence[TableRow]) -> TableRow | None:
    """Return a variant's cell with its own settings, or any that there is."""
    there = [cell for cell in some if cell.variant == variant and cell.finished]
    own = [cell for cell in there if cell.first.get("as_published") == "yes"]
    return next(iter([*own, *there]), None)


def _panelled(
    name: str,
    title: str,
    caption: str,
    axes: tuple[str, str],
    some: Sequence[TableRow],
    series: Series,
    alone: Collection[Key] = (),
) -> Iterator[Drawing]:
    """Yield a figure of small panels, one a variant, the baseline in each; none without data.

    Args:
        axes: labels of x and y.
        some: the cells of one table.
        series: the curves that there are.
        alone: those that are of the reconstruction alone.
    """
    if not series:
        return
    panels = list(_panels(some, series))
    told = " Bold lines are means over seeds, thin ones the single seeds"
    baseline = next((cell for cell in some if cell.first.get("is_baseline")), None)
    if baseline is not None and len(panels) > 1:
        told += f"; dashed grey, in the others' panels, the mean of {baseline.title}, the baseline"
    cut = f" The first {MOST_PANELS} of {len(panels)} panels." if len(panels) > MOST_PANELS else ""
    yield Drawing(
        name,
        title,
        f"{caption}{told}.{cut}",
        lambda: _draw_panels(panels[:MOST_PANELS], baseline, axes, series, alone),
    )


def _draw_panels(
    panels: Sequence[tuple[str, list[TableRow]]],
    baseline: TableRow | None,
    labels: tuple[str, str],
    series: Series,
    alone: Collection[Key] = (),
) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = 2.6 * columns + 0.4 if columns > 1 else 4.6
    figure, axes = blank(width, 2.3 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    flat = [axis for row in axes for axis in row]
    for axis, (title, some) in zip(flat, panels, strict=False):
        other = any(key in alone for cell in some for key in _keys(cell))
        if baseline is not None and baseline not in some and not other:
            _lines(axis, baseline, series, "0.45", (3, 2), None)
        for i, cell in enumerate(some):
            told = ", ".join(f"{key}={short(value)}" for key, value in cell.settings.items())
            label = told or cell.variant
            _lines(axis, cell, series, colours(i + 1)[i], DASHES[i % len(DASHES)], label)
        axis.set_title(title + (" (recon alone)" if other else ""), fontsize=8)
        if len(some) > 1 or some[0].settings:
            axis.legend(fontsize=6, framealpha=0.7, edgecolor="none", loc="best", handlelength=2.2)
    flat[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(labels[0], fontsize=9)
    figure.supylabel(labels[1], fontsize=9)
    return figure


def _panels(found: Sequence[TableRow], series: Series) -> Iterator[tuple[str, list[TableRow]]]:
    """Yield a title and its cells; the control's own panel first, then by variant."""
    there = [cell for cell in found if any(key in series for key in _keys(cell))]
    names = list(dict.fromkeys(cell.variant for cell in there))
    for name in names:
        some = [cell for cell in there if cell.variant == name]
        count = -(-len(some) // MOST_LINES)
        size = -(-len(some) // count)
        for place in range(count):
            more = f" ({place + 1})" if count > 1 else ""
            yield name + more, some[place * size : (place + 1) * size]


def _keys(cell: TableRow) -> list[Key]:
    return [(row["config_key"], int(row["seed"])) for row in cell.finished]


def _lines(
    axis: Any, cell: TableRow, series: Series, colour: Any, dashes: Any, label: str | None
) -> None:
    """Draw a cell's mean over seeds, and in its own panel each seed: a mean hides a collapse."""
    curves = [dict(series[key]) for key in _keys(cell) if key in series]
    if not curves:
        return
    xs = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[x] for x in xs] for curve in curves])
    marker = "o" if len(xs) == 1 else None
    axis.plot(
        xs,
        values.mean(0),
        color=colour,
        dashes=dashes,
        linewidth=1.3,
        label=label,
        marker=marker,
        markersize=3,
    )
    if len(curves) > 1 and label is not None:
        axis.plot(xs, values.T, color=colour, alpha=0.4, linewidth=0.5)


def _beside(told: Sequence[tuple[TableRow, bytes]], columns: int) -> Figure:
    """Put pictures that were drawn of runs beside one another, each under its cell's name."""
    from matplotlib.image import imread

    images = [_without_title(imread(io.BytesIO(content), format="png")) for _, content in told]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    width = (7.0 if ratio < 0.9 else 3.8) * columns
    figure, axes = blank(width, (width / columns * ratio + 0.25) * rows, rows, columns)
    flat = [axis for row in axes for axis in row]
    for axis, image, (cell, _) in zip(flat, images, told, strict=False):
        axis.imshow(image, interpolation="lanczos")
        axis.set_title(cell.label, fontsize=9)
    for axis in flat:
        axis.axis("off")
    return figure


def _without_title(image: np.ndarray) -> np.ndarray:
    """Cut off the lines of text above a picture: it is named anew."""
    ink = (image[..., :3] < 0.98).any((1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.view(np.int8), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start >= TITLE_PIXELS:
            return image[max(start - 4, 0) :]
    return image


def _grids(size: int, filters: Sequence[int]) -> Figure:
    """Draw the centres of each grid along one axis of the matrix, a row a grid and filter size."""
    import torch

    from glas_bench.filters import GRIDS, grid_centres

    rows = [(grid, count) for count in filters for grid in GRIDS]
    figure, axes = blank(6.4, 0.8 + 0.3 * len(rows))
    axis = axes[0][0]
    axis.axvspan(-0.5, size - 0.5, color="0.88", zorder=0)
    zero = torch.zeros(())
    for i, (grid, count) in enumerate(rows):
        centres = grid_centres(count, size, zero, zero, grid).tolist()
        colour = colours(3)[i % 3]
        axis.plot(centres, [len(rows) - i] * count, "osD"[i % 3], color=colour, markersize=6)
    axis.set_yticks(
        [len(rows) - i for i in range(len(rows))],
        [f"{grid}, {count}x{count}" for grid, count in rows],
    )
    axis.set_ylim(0.4, len(rows) + 0.6)
    axis.set_xlabel("position along one axis of the latent matrix, cells")
    return figure
