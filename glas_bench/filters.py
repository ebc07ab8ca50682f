"""Attention over a matrix: reads by filters, by content and by gates.

All functions are pure and elementwise over the leading axes (`...`, usually the batch B); they run
under `torch.func.vmap`, `torch.compile` and autograd in float32 and float64.

Shapes: R filter size, L matrix size, `...` any leading axes. Positions are 0-based cells a = 0 ..
L-1 along an axis; `centres` are c [..., R], rows are [..., R, L] and other numbers [...].

Sources: DRAW (Gregor et al. 2015, arXiv 1502.04623, sections 3.2 and 3.3) for the grid, the
Gaussian kernel and the read; `glas/model/attention.py` of github.com/dojoteef/glas for the Cauchy
and the bare grid kernel, the gates and the content read; Neural Turing Machines (Graves et al.
2014, arXiv 1410.5401, section 3.3.1) for the addressing by content.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from glas_bench.errors import nearest

GRIDS = ("original", "slip-mended", "centred")
FLOORS = ("1e-3", "logsumexp")
GATES = ("columns", "cells")

ROW_SUM_FLOOR = 1e-3  # `EPSILON` of the original code, the least divisor of a row


def grid_centres(
    filter_size: int, matrix_size: int, offset: Tensor, log_stride: Tensor, grid: str
) -> Tensor:
    """Return the centres of the filter's R kernels along one axis of the matrix, in 0-based cells.

        centre_i = centre + grid_i * stride,    i = 0 .. R-1

    | grid          | centre                 | grid_i        | stride / exp(log_stride) |
    |---------------|------------------------|---------------|--------------------------|
    | `original`    | (L+1)/2 (1+offset)     | i - (R+1)/2   | L - 1/(R-1)              |
    | `slip-mended` | (L+1)/2 (1+offset)     | i - (R+1)/2   | (L-1)/(R-1)              |
    | `centred`     | (L+1)/2 (1+offset) - 1 | i - (R-1)/2   | (L-1)/(R-1)              |

    with R-1 replaced by 1 when R = 1. `centred` is DRAW's equation in 0-based positions. `original`
    is what the original code computes: its stride lacks a pair of brackets, and its grid and
    centre count from 1 while its cells count from 0. `slip-mended` adds the brackets and keeps the
    mixed origin, which separates the two mistakes.

    Args:
        filter_size: R, kernels along the axis; 1 <= R <= L.
        matrix_size: L, cells along the axis.
        offset: 0 is the middle of the matrix, -1 and 1 are near its ends.
        log_stride: natural logarithm of the stride relative to the full span.
        grid: one of `GRIDS`.

    Raises:
        ValueError: an unknown grid, or a filter that does not fit the matrix.
    """
    _check_name("grid", grid, GRIDS)
    if not 1 <= filter_size <= matrix_size:
        raise ValueError(
            f"filter_size must lie between 1 and the matrix size, {matrix_size}: got {filter_size}"
        )
    R, L = filter_size, matrix_size
    span = L - 1 / max(R - 1, 1) if grid == "original" else (L - 1) / max(R - 1, 1)
    index_R = torch.arange(R, dtype=offset.dtype, device=offset.device)
    half = (L + 1) / 2
    if grid == "centred":
        first = half - 1
        grid_R = index_R - (R - 1) / 2
    else:
        first = half
        grid_R = index_R - (R + 1) / 2
    centre = first + half * offset
    stride = span * torch.exp(log_stride)
    return centre[..., None] + grid_R * stride[..., None]


def cauchy_log_kernel(centres: Tensor, matrix_size: int, log_scale: Tensor) -> Tensor:
    """Return the log of a Cauchy density at every cell: ln 1 / (pi s (1 + ((a - c) / s)^2)).

    Computed as ln s - ln pi - ln(s^2 + (a - c)^2), which neither overflows nor loses its gradient
    for tiny s. The original code clips s and pi s (1 + ..) at 1e-3; here nothing is clipped, so the
    two agree for s > 1e-3. Scales are in cells.
    """
    distance = _distances(centres, matrix_size)
    log_s = log_scale[..., None, None]
    return log_s - math.log(math.pi) - 2 * torch.log(torch.hypot(distance, torch.exp(log_s)))


def gaussian_log_kernel(centres: Tensor, matrix_size: int, log_variance: Tensor) -> Tensor:
    """Return the log of an unnormalised Gaussian at every cell: -(a - c)^2 / (2 v).

    DRAW's kernel (section 3.2); the log variance, in cells squared, is the learned number. The
    original code clips 2 v at 1e-3; here nothing is clipped, so the two agree for v > 5e-4.
    """
    deviations = _distances(centres, matrix_size) * torch.exp(-log_variance / 2)[..., None, None]
    return -deviations.square() / 2


def normalise_rows(log_kernel: Tensor, floor: str) -> Tensor:
    """Return filter rows from a log kernel: F[i, a] = kernel[i, a] / Z_i, not negative.

    Args:
        log_kernel: [..., R, L].
        floor: `1e-3` as published, Z_i = max(sum_a kernel[i, a], 1e-3): a row outside the matrix
            fades to zero, with its gradient. `logsumexp`, Z_i = sum_a: every row sums to 1.

    Raises:
        ValueError: an unknown floor.
    """
    _check_name("floor", floor, FLOORS)
    if floor == "logsumexp":
        return torch.softmax(log_kernel, dim=-1)
    kernel = torch.exp(log_kernel)
    return kernel / kernel.sum(-1, keepdim=True).clamp(min=ROW_SUM_FLOOR)


def bare_grid_rows(centres: Tensor, matrix_size: int, scale: Tensor) -> Tensor:
    """Return the rows of the original's `grid`: a straight line through zero at the centre.

        row[i, a] = scale (a - c_i) / max(sum_a scale (a - c_i), 1e-3)

    The sum is scale L ((L-1)/2 - c_i). If it is positive the row sums to 1, with negative entries
    for a centre inside the matrix; otherwise the row is multiplied by 1000 and sums to less than 0.
    `GridAttention` of `glas/model/attention.py` has no other kernel, and its fourth number is the
    slope itself, per cell and of either sign, not a logarithm. Such rows have no logarithm, so the
    floor `logsumexp` does not apply.
    """
    line = scale[..., None, None] * -_distances(centres, matrix_size)
    return line / line.sum(-1, keepdim=True).clamp(min=ROW_SUM_FLOOR)


def read_matrix(matrix: Tensor, rows_y: Tensor, rows_x: Tensor, log_gain: Tensor) -> Tensor:
    """Return the read of a filter: exp(log_gain) vec(F_y M F_x^T), [..., R * R] row by row.

    DRAW's section 3.3; F_y goes over the rows of M, F_x over its columns. M is [L, L], or
    [..., L, L] for one matrix (or image) per element.
    """
    patch = rows_y @ matrix @ rows_x.mT
    return torch.exp(log_gain)[..., None] * patch.flatten(-2)


def content_read(matrix: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    """Return a read by content, [..., L * L]: softmax(strength cos(key, row_l)) times the rows.

    The addressing of a Neural Turing Machine (section 3.3.1 of its paper) has a positive strength.
    Here, as in `ContentAttention` of `glas/model/attention.py`, the strength has either sign (below
    0 it prefers the rows least similar to the key), and the read is all rows, normalised to length
    1 and weighted, not their sum.

    Args:
        matrix: [L, L] or [..., L, L]; its rows are the memories.
        key: [..., L]; only its direction matters.
        strength: [...]; 0 gives all rows the same weight.
    """
    weights = content_weights(matrix, key, strength)
    return (weights[..., None] * F.normalize(matrix, dim=-1)).flatten(-2)


def content_weights(matrix: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    """Return softmax(strength cos(key, row_l)), [..., L], of the rows of a matrix.

    Args and source as for `content_read`.
    """
    cosine = (F.normalize(matrix, dim=-1) @ F.normalize(key, dim=-1)[..., None]).squeeze(-1)
    return torch.softmax(strength[..., None] * cosine, dim=-1)


def gated_read(matrix: Tensor, gates: Tensor, over: str = "columns") -> Tensor:
    """Return the matrix times gates, [..., L * L] row by row: vec(gates * M).

    `columns` is `SimpleAttention` of `glas/model/attention.py`: one gate for each column, the same
    for all rows. `cells` is the element-wise attention of Li et al. 2016 (arXiv 1602.07416).

    Args:
        matrix: M, [L, L] or [..., L, L].
        gates: [..., L] over `columns`, [..., L, L] over `cells`.
        over: one of `GATES`; shapes cannot tell a batch of L gate vectors from gates over cells.

    Raises:
        ValueError: an unknown `over`.
    """
    _check_name("over", over, GATES)
    gates_LL = gates[..., None, :] if over == "columns" else gates
    return (gates_LL * matrix).flatten(-2)


def _distances(centres: Tensor, matrix_size: int) -> Tensor:
    """Return the signed distances c - a of centres `[..., R]` from all cells, `[..., R, L]`."""
    cells_L = torch.arange(matrix_size, dtype=centres.dtype, device=centres.device)
    return centres[..., None] - cells_L


def _check_name(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise ValueError(
            f"{what} must be one of {', '.join(allowed)}: got {name!r}.{nearest(name, allowed)}"
        )
