"""Where the filters look, what their rows weigh, and what they read.

`test_model` and `test_variants_attention` compare whole reads, with gradients, with plain loops.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glas_bench.filters import (
    FLOORS,
    GRIDS,
    bare_grid_rows,
    cauchy_log_kernel,
    content_read,
    gated_read,
    gaussian_log_kernel,
    grid_centres,
    normalise_rows,
    read_matrix,
)

pytestmark = pytest.mark.usefixtures("float64")

KERNELS = {"cauchy": cauchy_log_kernel, "gaussian": gaussian_log_kernel}
ZERO = torch.zeros((), dtype=torch.float64)
close = torch.testing.assert_close
few = settings(max_examples=40, deadline=None, derandomize=True)


def normals(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)


def centres_of(filter_size, matrix_size, grid, offset=0.0, log_stride=0.0):
    numbers = torch.tensor(offset), torch.tensor(log_stride)
    return grid_centres(filter_size, matrix_size, *numbers, grid)


# --- the grids -------------------------------------------------------------------------------

FIFTHS = (0, 6.75, 13.5, 20.25, 27)
INITIAL_CENTRES = [
    # matrix, original, slip-mended, centred
    (9, (-21.25, -12.5, -3.75, 5, 13.75), (-1, 1, 3, 5, 7), (0, 2, 4, 6, 8)),
    (40, (-236 / 3, -39, 2 / 3, 121 / 3), (-12, 1, 14, 27), (0, 13, 26, 39)),
    (9, (-7, 1), (-7, 1), (0, 8)),
    (9, (-3,), (-3,), (4,)),
    (28, (-68.75, -41, -13.25, 14.5, 42.25), (-5.75, 1, 7.75, 14.5, 21.25), FIFTHS),
    (1, (1,), (1,), (0,)),
    (9, [5 + 8.875 * (i - 5) for i in range(9)], range(9), range(9)),
]


@pytest.mark.parametrize(("matrix", "positions"), [(m, p) for m, *p in INITIAL_CENTRES])
def test_where_the_centres_lie_at_the_start(matrix, positions):
    for grid, expected in zip(GRIDS, positions, strict=True):
        got = centres_of(len(expected), matrix, grid)
        close(got, torch.tensor(expected, dtype=torch.float64))


def test_the_good_grid_can_be_learned_from_the_published_one():
    learned = centres_of(5, 9, "original", offset=0.2, log_stride=math.log(2 / 8.75))
    close(learned, centres_of(5, 9, "centred"))
    assert math.log(2 / 8.75) == pytest.approx(-1.476, abs=5e-4)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (centres_of, (5, 9, "center"), "original, slip-mended, centred: got 'center'"),
        (centres_of, (10, 9, "centred"), "between 1 and the matrix size, 9: got 10"),
        (centres_of, (0, 9, "original"), "between 1 and the matrix size, 9: got 0"),
        (normalise_rows, (torch.zeros(2, 3), "0.001"), r"1e-3, logsumexp: got '0.001'"),
        (gated_read, (torch.zeros(3, 3), torch.zeros(3), "rows"), "columns, cells: got 'rows'"),
    ],
)
def test_what_does_not_fit_or_exist_is_refused_by_name(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


# --- the kernels and their rows --------------------------------------------------------------


@pytest.mark.parametrize("log_width", [-2.0, 0.0, 1.5])
def test_kernels_are_their_formulas(log_width):
    centres = torch.tensor([-3.0, 0.0, 2.5, 40.0])
    s = v = math.exp(log_width)
    distance = torch.arange(6.0) - centres[:, None]
    cauchy, gaussian = (k(centres, 6, torch.tensor(log_width)) for k in KERNELS.values())
    close(cauchy, torch.log(1 / (math.pi * s * (1 + (distance / s) ** 2))))
    close(gaussian, -(distance**2) / (2 * v))


@few
@given(st.floats(-60, 60), st.floats(-4, 3), st.sampled_from(sorted(KERNELS)))
def test_rows_sum_to_what_their_floor_says(centre, log_width, name):
    log_kernel = KERNELS[name](torch.tensor([centre]), 9, torch.tensor(log_width))
    raw = log_kernel.exp().sum().item()
    for floor, total in (("1e-3", raw / max(raw, 1e-3)), ("logsumexp", 1)):
        rows = normalise_rows(log_kernel, floor)
        assert rows.sum().item() == pytest.approx(total, rel=1e-12)
        assert (rows >= 0).all()


def test_only_the_cauchy_filter_finds_its_way_back_from_far_outside():
    """The gradient of what a row reads with respect to its centre, three spans off the matrix."""
    slopes = {}
    for name, floor in itertools.product(KERNELS, FLOORS):
        centre = torch.tensor([-21.25], dtype=torch.float32, requires_grad=True)
        rows = normalise_rows(KERNELS[name](centre, 9, torch.zeros((), dtype=centre.dtype)), floor)
        (slope,) = torch.autograd.grad((rows * torch.arange(9)).sum(), centre)
        slopes[name, floor] = slope.abs().item()
    assert slopes["gaussian", "1e-3"] == 0
    assert 0 < slopes["gaussian", "logsumexp"] < 1e-8  # alive, but all on the nearest cell
    assert slopes["cauchy", "1e-3"] == pytest.approx(slopes["cauchy", "logsumexp"], rel=1e-4)
    assert slopes["cauchy", "1e-3"] > 1e-2


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("floor", FLOORS)
def test_rows_stay_finite_at_any_width_with_finite_gradients_in_float32(name, floor):
    log_width = torch.tensor([-60.0, -20, 0, 20, 60], dtype=torch.float32, requires_grad=True)
    # the first centre lies on a cell: the Cauchy density has its pole there
    centres = torch.tensor([[2.0, 2.3, -500.0]] * 5, dtype=torch.float32, requires_grad=True)
    rows = normalise_rows(KERNELS[name](centres, 9, log_width), floor)
    assert rows.isfinite().all()
    weights = torch.arange(27.0).reshape(3, 9)
    for slope in torch.autograd.grad((rows * weights).sum(), (log_width, centres)):
        assert slope.isfinite().all()


# --- the reads -------------------------------------------------------------------------------


def test_content_read_finds_the_row_that_the_key_names():
    matrix = normals(5, 5, seed=6)
    strong, weak, against = (
        content_read(matrix, size * matrix[3], torch.tensor(strength)).reshape(5, 5)
        for size, strength in ((7, 400.0), (1, 0.0), (-1, -400.0))
    )
    close(strong.norm(dim=-1), torch.eye(5)[3])
    close(weak.norm(dim=-1), torch.full((5,), 0.2))
    close(against, strong)


# --- every read alike ------------------------------------------------------------------------


def filter_read(name, grid, floor):
    def read(matrix, numbers):
        offset_y, offset_x, log_stride, log_width, log_gain = numbers.unbind(-1)
        rows_y, rows_x = (
            normalise_rows(
                KERNELS[name](grid_centres(3, 5, offset, log_stride, grid), 5, log_width), floor
            )
            for offset in (offset_y, offset_x)
        )
        return read_matrix(matrix, rows_y, rows_x, log_gain)

    return read


def bare_read(matrix, numbers):
    offset, log_stride, scale, log_gain, _ = numbers.unbind(-1)
    rows = bare_grid_rows(grid_centres(3, 5, offset, log_stride, "original"), 5, scale)
    return read_matrix(matrix, rows, rows, log_gain)


READS = {
    **{
        f"{name}-{grid}-{floor}": filter_read(name, grid, floor)
        for name, grid, floor in itertools.product(KERNELS, ("original", "centred"), FLOORS)
    },
    "bare": bare_read,
    "content": lambda matrix, numbers: content_read(matrix, numbers, numbers[..., 0]),
    "columns": lambda matrix, numbers: gated_read(matrix, torch.sigmoid(numbers)),
    "cells": lambda matrix, numbers: gated_read(
        matrix, numbers[..., None] * numbers[..., None, :], over="cells"
    ),
}


def stacked_inputs(dtype):
    """A latent matrix for each of 3 seeds, and the numbers of a batch of 4."""
    return normals(3, 5, 5, seed=1, dtype=dtype), normals(3, 4, 5, seed=2, dtype=dtype)


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_axes_and_vmap_over_seeds_give_what_the_loop_gives(name, dtype):
    read, (matrix, numbers) = READS[name], stacked_inputs(dtype)
    loop = torch.stack([read(m, n) for m, n in zip(matrix, numbers, strict=True)])
    assert loop.dtype == dtype
    assert loop.abs().max() > 0
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    close(torch.func.vmap(read)(matrix, numbers), loop, **tolerance)
    close(read(matrix[1], numbers[1, 2]), loop[1, 2], **tolerance)
    close(read(matrix[1], numbers)[1], loop[1], **tolerance)
    close(read(matrix, numbers[:, 0]), loop[:, 0], **tolerance)  # a matrix for each element


@pytest.mark.parametrize(
    "name",
    ["cauchy-original-1e-3", "gaussian-centred-logsumexp", "bare", "content", "columns", "cells"],
)
def test_one_graph_holds_the_read(name):
    read = torch.func.vmap(READS[name])
    torch.compiler.reset()
    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    inputs = stacked_inputs(torch.float64)
    close(compiled(*inputs), read(*inputs))
