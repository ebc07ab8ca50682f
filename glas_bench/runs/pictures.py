"""Pictures of a finished run: canvases over time, and where the filter looks.

Rows are images, columns time steps, as in the write-up's figure of generated samples (README of
github.com/dojoteef/glas). Probabilities sigmoid(o_t) are drawn, ink dark, unsampled.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
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
from glas_bench.model import Glas, State, Step
from glas_bench.record import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 8
COLUMNS = 16
"""Most time steps that are drawn; with more steps, evenly spread ones, the last among them."""


@dataclass(frozen=True)
class Subject:
    """One trained seed."""

    title: str
    model: Glas
    config: RunConfig
    splits: Splits
    seed: int


def draw(folder: Path, subject: Subject, images: int = IMAGES) -> list[Path]:
    """Write the pictures of one seed into its folder; return their paths.

    `samples.png` from the prior, `reconstructions.png` of a seeded random draw of test images,
    and, where the variant has a filter, `filter.png`: the mean footprint on the latent matrix at
    each step over those images.

    Raises:
        ImportError: matplotlib is not installed.
        RunError: the folder cannot be written.
    """
    with torch.inference_mode(), scoring(subject.model, subject.config, subject.splits):
        prior_TBP = _from_prior(subject, images)
        x, canvases_TBP, footprints = _reconstructed(subject, images)
    shape, title = subject.splits.image_shape, subject.title
    if subject.splits.origin != "published":
        title += f" ({subject.splits.origin})"
    with default_style():
        pictures = {
            "samples.png": _grid(f"{title}: samples from the prior", prior_TBP, None, shape),
            "reconstructions.png": _grid(f"{title}: reconstructions", canvases_TBP, x, shape),
        }
        if footprints is not None:
            pictures["filter.png"] = _footprints(title, footprints)
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
    rollout.generate(model, z_TBZ, lambda t, made: canvases.append(torch.sigmoid(made.canvas)))
    return torch.stack(canvases).float().cpu()


def _reconstructed(subject: Subject, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return test images [B, P], their canvases [T, B, P], and footprints [T, L, L] if any."""
    model = subject.model
    x, labels = chosen(subject.splits, subject.splits.test, images, "pictures")
    shape = (model.steps, 1, len(x), model.noise_size)
    noise = streams.normal(shape, subject.seed, "pictures-reconstructions")
    canvases: list[Tensor] = []
    footprints: list[Tensor] = []

    def trace(t: int, state: State, step: Step) -> None:
        del t, step
        canvases.append(torch.sigmoid(state.generation.canvas))
        if model.has_filter:
            rows_y, rows_x, _ = model.filter_rows(state.recognition.hidden)
            footprints.append(footprint(rows_y, rows_x).mean(0))

    rollout.rollout(model, x, x, labels, noise.to(x.device), trace=trace)
    stacked = torch.stack(footprints).float().cpu() if footprints else None
    return x.cpu(), torch.stack(canvases).float().cpu(), stacked


def footprint(rows_y_BRL: Tensor, rows_x_BRL: Tensor) -> Tensor:
    """Return how much of a read comes from each cell of the matrix, [B, L, L], summing to 1."""
    weight = rows_y_BRL.abs().sum(1)[:, :, None] * rows_x_BRL.abs().sum(1)[:, None, :]
    return weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-12)


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
    figure.suptitle(title, fontsize=8)
    return figure, axis


def _save(path: Path, figure: Figure) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    return path
