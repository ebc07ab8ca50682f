"""Pictures of a finished run: canvases over time, and where the filter looks.

Rows are images, columns time steps, as in the write-up's figure of generated samples (README of
github.com/dojoteef/glas). Probabilities E[x|o_t] are drawn, ink dark, unsampled. Of text a row is a
time step: the likeliest line.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from glas_bench.config import RunConfig
from glas_bench.core import rollout, streams
from glas_bench.core.train import chosen, scoring
from glas_bench.data import Splits
from glas_bench.data.parse import ALPHABET
from glas_bench.likelihood import Categorical
from glas_bench.model import Glas, State, Step
from glas_bench.record import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 8
LINES = 4
COLUMNS = 16
"""Most time steps that are drawn; with more steps, evenly spread ones, the last among them."""
PRIOR_SAMPLES = 200
"""For the entropy of text."""
CHANGED = "#d55e00"


@dataclass(frozen=True)
class Subject:
    """One trained seed."""

    title: str
    model: Glas
    config: RunConfig
    splits: Splits
    seed: int


@dataclass(frozen=True)
class Traces:
    """What a seed's pictures show: E[x|o_t] of samples and of reconstructions."""

    prior_TBP: Tensor
    x_BP: Tensor
    canvases_TBP: Tensor
    footprints_TBLL: Tensor | None


def trace(subject: Subject, images: int | None = None) -> Traces:
    """Return the canvases over time of samples and of test images (8, or 4 lines of text)."""
    images = images or (LINES if is_text(subject) else IMAGES)
    with torch.inference_mode(), scoring(subject.model, subject.config, subject.splits):
        return Traces(_from_prior(subject, images), *_reconstructed(subject, images))


def is_text(subject: Subject) -> bool:
    """Return whether x is a line of text."""
    return isinstance(subject.model.likelihood, Categorical)


def draw(folder: Path, subject: Subject, traces: Traces | None = None) -> list[Path]:
    """Write the pictures of one seed, by default of its `trace`, into its folder; return the paths.

    `samples.png` from the prior, `reconstructions.png` of a seeded random draw of test images,
    of text `entropy.png`, and, where the variant has a filter, `filter.png`: the mean footprint on
    the latent matrix at each step over those images.

    Raises:
        ImportError: matplotlib is not installed.
        RunError: the folder cannot be written.
    """
    traces = traces or trace(subject)
    title = subject.title
    if subject.splits.origin != "published":
        title += f" ({subject.splits.origin})"
    samples, copies = f"{title}: samples from the prior", f"{title}: reconstructions"
    footprints = traces.footprints_TBLL
    with default_style():
        if is_text(subject):
            with torch.inference_mode(), scoring(subject.model, subject.config, subject.splits):
                many_TBP = _from_prior(subject, PRIOR_SAMPLES)
            pictures = {
                "samples.png": _lines(samples, traces.prior_TBP),
                "reconstructions.png": _lines(copies, traces.canvases_TBP, traces.x_BP, footprints),
                "entropy.png": _entropy(title, many_TBP),
            }
        else:
            shape = subject.splits.image_shape
            pictures = {
                "samples.png": _grid(samples, traces.prior_TBP, None, shape),
                "reconstructions.png": _grid(copies, traces.canvases_TBP, traces.x_BP, shape),
            }
        if footprints is not None:
            means = torch.stack([each.mean(0) for each in footprints])
            pictures["filter.png"] = _footprints(title, means)
        return [_save(folder / name, figure) for name, figure in pictures.items()]


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Draw and save under matplotlib's defaults, whatever a user's matplotlibrc says.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def _from_prior(subject: Subject, images: int) -> Tensor:
    """Return canvases [T, B, P] generated without any x."""
    model = subject.model
    shape = (model.steps, images, model.noise_size)
    noise = streams.normal(shape, subject.seed, "pictures-prior")
    canvases: list[Tensor] = []
    z_TBZ = rollout.sample_prior(model, noise.to(subject.splits.test.images.device))
    rollout.generate(
        model, z_TBZ, lambda t, made: canvases.append(model.likelihood.mean(made.canvas))
    )
    return torch.stack(canvases).float().cpu()


def _reconstructed(subject: Subject, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return test images [B, P], their canvases [T, B, P], and any footprints [T, B, L, L]."""
    model = subject.model
    x, labels = chosen(subject.splits, subject.splits.test, images, "pictures")
    shape = (model.steps, 1, len(x), model.noise_size)
    noise = streams.normal(shape, subject.seed, "pictures-reconstructions")
    canvases: list[Tensor] = []
    footprints: list[Tensor] = []

    def keep(t: int, state: State, step: Step) -> None:
        del t, step
        canvases.append(model.likelihood.mean(state.generation.canvas))
        if model.has_filter:
            rows_y, rows_x, _ = model.filter_rows(state.recognition.hidden)
            footprints.append(footprint(rows_y, rows_x))

    rollout.rollout(model, x, x, labels, noise.to(x.device), trace=keep)
    stacked = torch.stack(footprints).float().cpu() if footprints else None
    return x.cpu(), torch.stack(canvases).float().cpu(), stacked


def footprint(rows_y_BRL: Tensor, rows_x_BRL: Tensor) -> Tensor:
    """Return how much of a read comes from each cell of the matrix, [B, L, L], summing to 1."""
    weight = rows_y_BRL.abs().sum(1)[:, :, None] * rows_x_BRL.abs().sum(1)[:, None, :]
    return weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-12)


def written(mean_BP: Tensor) -> tuple[list[str], Tensor]:
    """Return the likeliest line of each row, and the probability of its characters [B, places]."""
    best = Categorical().places(mean_BP).max(-1)
    lines = ["".join(ALPHABET[symbol] for symbol in line) for line in best.indices.tolist()]
    return lines, best.values


def _columns(steps: int) -> list[int]:
    count = min(steps, COLUMNS)
    return sorted({round(i) for i in np.linspace(0, steps - 1, count)})


def _grid(
    title: str, canvases_TBP: Tensor, targets_BP: Tensor | None, shape: tuple[int, int]
) -> Figure:
    """Return a figure with a row an image and a column a time step; the targets stand last."""
    columns = {f"t={t + 1}": canvases_TBP[t] for t in _columns(len(canvases_TBP))}
    if targets_BP is not None:
        columns["image"] = targets_BP
    tiles = torch.stack([*columns.values()], 1).reshape(-1, len(columns), *shape)
    figure, axis = _mosaic(title, tiles.double().numpy(), [*columns])
    axis.images[0].set(cmap="gray_r", clim=(0, 1))
    axis.set_ylabel("images", fontsize=7)
    return figure


def _footprints(about: str, footprints_TLL: Tensor) -> Figure:
    """Return one row of heat maps, a column a time step, with one colour scale."""
    steps = _columns(len(footprints_TLL))
    title = f"{about}:\nwhere the filter looks on the latent matrix"
    names = [f"t={t + 1}" for t in steps]
    figure, axis = _mosaic(title, footprints_TLL[steps].double().numpy()[None], names)
    axis.images[0].set(cmap="viridis", clim=(0, float(footprints_TLL.max())))
    bar = figure.colorbar(axis.images[0], ax=axis, fraction=0.03, pad=0.02)
    bar.set_label("share of the read", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    return figure


def _lines(
    title: str,
    canvases_TBP: Tensor,
    targets_BP: Tensor | None = None,
    footprints_TBLL: Tensor | None = None,
) -> Figure:
    """Return a figure with a panel a line and a row a time step; the targets stand below."""
    from matplotlib.figure import Figure

    steps = _columns(len(canvases_TBP))
    made = [written(canvases_TBP[t]) for t in steps]
    names = [f"t={t + 1}" for t in steps] + ["true"] * (targets_BP is not None)
    count, places = made[0][1].shape
    width, brightest, beside = float(places), 0.0, ""
    if footprints_TBLL is not None:
        width, brightest = places + 2.4, float(footprints_TBLL.max())
        beside = "; right: where the filter looks on the latent matrix"
    wide, high = min(count, 2), -(-count // 2)
    size = (0.16 * width * wide + 1.5, (0.26 * len(names) + 0.3) * high + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False)
    for b, axis in enumerate(axes.flat[:count]):
        shades = torch.stack([p_BN[b] for _, p_BN in made]).numpy()
        ink = axis.imshow(shades, cmap="Blues", clim=(0, 1), alpha=0.6, aspect="auto")
        lines = [each[b] for each, _ in made]
        lines += [] if targets_BP is None else [written(targets_BP)[0][b]]
        for row, line in enumerate(lines):
            for place, symbol in enumerate(line):
                if symbol != " ":
                    style = {"family": "monospace", "fontsize": 8, "ha": "center", "va": "center"}
                    axis.text(place, row, symbol, **style).set_in_layout(False)
        changed = np.array(changes(lines[: len(steps)])).reshape(-1, 2)
        left = changed[:, 1] - 0.4
        axis.hlines(changed[:, 0] + 0.4, left, left + 0.8, color=CHANGED, linewidth=2)
        for row, look_LL in enumerate(
            () if footprints_TBLL is None else footprints_TBLL[steps, b].numpy()
        ):
            at = (places + 0.2, places + 1.9, row + 0.45, row - 0.45)
            axis.imshow(look_LL, extent=at, clim=(0, brightest), aspect="auto")
        axis.set(xlim=(-0.5, width - 0.5), ylim=(len(lines) - 0.5, -0.5))
        axis.set_yticks(range(len(lines)), names)
        axis.set_xticks(*_places(places))
        axis.tick_params(length=0, labelsize=6)
        axis.spines[:].set_visible(False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    bar = figure.colorbar(ink, ax=axes, fraction=0.02, pad=0.02, aspect=40)
    bar.set_label("probability of the character", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    below = f"place in the line (orange bar: changed since the step before{beside})"
    figure.supxlabel(below, fontsize=7)
    figure.suptitle(title + ", the likeliest line at each step", fontsize=8)
    return figure


def _places(count: int) -> tuple[list[int], list[str]]:
    """Return ticks at the first place and at every seventh."""
    ticks = [0, *range(6, count, 7)]
    return ticks, [str(place + 1) for place in ticks]


def changes(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Return where a line differs from the one before: row and place."""
    return [
        (row, place)
        for row in range(1, len(lines))
        for place, symbol in enumerate(lines[row])
        if symbol != lines[row - 1][place]
    ]


def _entropy(about: str, canvases_TBP: Tensor) -> Figure:
    """Return a heat map of the mean entropy of a character, nats, by place and time step."""
    from matplotlib.figure import Figure

    p_TBNS = Categorical().places(canvases_TBP.double())
    entropy_TN = torch.special.entr(p_TBNS).sum(-1).mean(1).numpy()
    steps, places = entropy_TN.shape
    figure = Figure(figsize=(6.4, 1.6 + 0.16 * min(steps, 24)), layout="constrained")
    axis = figure.subplots()
    top = math.log(p_TBNS.shape[-1])
    shown = axis.imshow(entropy_TN, clim=(0, top), aspect="auto")
    axis.set_xticks(*_places(places))
    axis.set_yticks(_columns(steps), [str(t + 1) for t in _columns(steps)])
    axis.tick_params(length=2, labelsize=7)
    axis.set_xlabel("place in the line", fontsize=7)
    axis.set_ylabel("time step t", fontsize=7)
    bar = figure.colorbar(shown, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label(f"nats (uniform: {top:.2f})", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    figure.suptitle(
        f"{about}:\nmean entropy of a character, {PRIOR_SAMPLES} samples from the prior", fontsize=8
    )
    return figure


def _mosaic(title: str, tiles: np.ndarray, names: list[str]) -> tuple[Figure, Any]:
    """Return a figure of tiles [rows, columns, height, width] with a name below each column."""
    from matplotlib.figure import Figure

    rows, columns, height, width = tiles.shape
    gap = max(1, width // 14)
    apart = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    sheet = apart.swapaxes(1, 2).reshape(rows * (height + gap), -1)[:-gap, :-gap]
    figure = Figure(
        figsize=(max(4.5, 0.6 * columns + 0.6), max(1.5, 0.6 * rows + 0.7)), layout="constrained"
    )
    axis = figure.subplots()
    axis.imshow(sheet, interpolation="nearest")
    axis.set_xticks([j * (width + gap) + width / 2 - 0.5 for j in range(columns)], names)
    axis.set_yticks([])
    axis.tick_params(length=0, labelsize=6)
    axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure, axis


def _save(path: Path, figure: Figure) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    return path
