"""Chains of elementwise operations with hand-written gradients.

Autograd's own rules give the same numbers to rounding, in more operations: 1 to 3 % of a step. They
are used where a tape of `linear` records; each caller has plain tensor operations beside them. None
of these can be differentiated twice, vmapped or compiled. They stay until CORE_VERSION rises, since
removing them changes the last bits of every run.

Shapes: B rows, H hidden units, R filter size, L matrix size, `...` any leading axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Lstm(torch.autograd.Function):
    """The elementwise part of an LSTM: hidden and cell [B, H] from gates [B, 4H] and cell.

    tanh(a) is taken as 2 sigmoid(2a) - 1, a fifth of the time of torch's own on a CPU, and within
    1e-7 of it in float32.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        size = cell.shape[-1]
        doubled = gates.clone()
        doubled[:, 2 * size : 3 * size].mul_(2)
        open_ = doubled.sigmoid_()
        enter, forget, candidate, leave = open_.chunk(4, dim=-1)
        candidate.mul_(2).sub_(1)
        now = torch.mul(forget, cell).addcmul_(enter, candidate)
        squashed = torch.mul(now, 2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(open_, squashed, cell)
        return leave * squashed, now

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        by_hidden, by_cell = gradients
        open_, squashed, cell = ctx.saved_tensors
        enter, forget, candidate, leave = open_.chunk(4, dim=-1)
        found = torch.empty_like(open_)
        to_enter, to_forget, to_candidate, to_leave = found.chunk(4, dim=-1)
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward
        room = by_hidden * squashed
        sigmoid_backward(room, leave, grad_input=to_leave)
        now = tanh_backward(torch.mul(by_hidden, leave, out=room), squashed).add_(by_cell)
        sigmoid_backward(torch.mul(now, candidate, out=room), enter, grad_input=to_enter)
        sigmoid_backward(torch.mul(now, cell, out=room), forget, grad_input=to_forget)
        torch.mul(now, enter, out=room)
        tanh_backward.grad_input(room, candidate, grad_input=to_candidate)
        return found, now.mul_(forget) if ctx.needs_input_grad[1] else None


class Missing(torch.autograd.Function):
    """x - sigmoid(canvas)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, canvas: Tensor) -> Tensor:
        painted = torch.sigmoid(canvas)
        ctx.save_for_backward(painted)
        return x - painted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        (painted,) = ctx.saved_tensors
        to_x = gradient if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        return to_x, torch.ops.aten.sigmoid_backward(gradient, painted).neg_()


class KlNormal(torch.autograd.Function):
    """KL(N(m, s^2) || N(0, 1)), elementwise."""

    @staticmethod
    def forward(ctx: FunctionCtx, mean: Tensor, std: Tensor) -> Tensor:
        ctx.save_for_backward(mean, std)
        more = std - 1
        squares = torch.mul(mean, mean).addcmul_(more, more)
        return more.sub_(torch.log(std)).add_(squares, alpha=0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        mean, std = ctx.saved_tensors
        return gradient * mean, torch.sub(std, std.reciprocal()).mul_(gradient)


class GridCentres(torch.autograd.Function):
    """a + b offset + grid stride e^log_stride, [..., R], from offset and log_stride [...]."""

    @staticmethod
    def forward(
        ctx: Any, offset: Tensor, log_stride: Tensor, grid_R: Tensor, a: float, b: float
    ) -> Tensor:
        steps = torch.exp(log_stride)[..., None] * grid_R
        ctx.save_for_backward(steps)
        ctx.b, ctx.shapes = b, (offset.shape, log_stride.shape)
        return torch.add(steps, (b * offset).add_(a)[..., None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        (steps,) = ctx.saved_tensors
        of_offset, of_stride = ctx.shapes
        by_offset = gradient.sum(-1).mul_(ctx.b).sum_to_size(of_offset)
        by_stride = (gradient * steps).sum(-1).sum_to_size(of_stride)
        return by_offset, by_stride, None, None, None


class CauchyLogKernel(torch.autograd.Function):
    """ln s - ln pi - 2 ln hypot(d, s), [..., R, L], from centres [..., R] and ln s [...]."""

    @staticmethod
    def forward(ctx: Any, centres: Tensor, cells_L: Tensor, log_scale: Tensor) -> Tensor:
        distance = centres[..., None] - cells_L
        scale = torch.exp(log_scale)[..., None, None]
        length = torch.hypot(distance, scale)
        ctx.save_for_backward(distance, scale, length)
        ctx.of_scale = log_scale.shape
        base = (log_scale - math.log(math.pi))[..., None, None]
        return torch.sub(base, torch.log(length), alpha=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        distance, scale, length = ctx.saved_tensors
        pull = torch.div(gradient, length)
        by_centre = torch.mul(pull, distance).div_(length).sum(-1).mul_(-2)
        share = pull.mul_(scale).div_(length).mul_(scale)
        by_scale = torch.sub(gradient, share, alpha=2).sum((-2, -1)).sum_to_size(ctx.of_scale)
        return by_centre, None, by_scale


class FlooredRows(torch.autograd.Function):
    """e^log_kernel / max(sum over the last axis, floor), [..., L]."""

    @staticmethod
    def forward(ctx: Any, log_kernel: Tensor, floor: float) -> Tensor:
        rows = torch.exp(log_kernel)
        total = rows.sum(-1, keepdim=True)
        above = (total >= floor).to(total.dtype)
        rows.div_(total.clamp_(min=floor))
        ctx.save_for_backward(rows, above)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        rows, above = ctx.saved_tensors
        found = gradient * rows
        shared = found.sum(-1, keepdim=True).mul_(above)
        return found.addcmul_(rows, shared, value=-1), None


class ReadMatrix(torch.autograd.Function):
    """e^log_gain vec(F_y M F_x^T), [B, R * R], of rows [B, R, L] and one matrix [L, L]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, matrix: Tensor, rows_y: Tensor, rows_x: Tensor, log_gain: Tensor
    ) -> Tensor:
        half = (rows_y.flatten(0, 1) @ matrix).view(rows_y.shape)
        gain = torch.exp(log_gain)[:, None]
        read = torch.bmm(half, rows_x.mT).flatten(1).mul_(gain)
        ctx.save_for_backward(matrix, rows_y, rows_x, gain, half, read)
        return read

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        matrix, rows_y, rows_x, gain, half, read = ctx.saved_tensors
        by_gain = torch.mul(gradient, read).sum(1)
        patch = (gradient * gain).unflatten(1, (rows_y.shape[1], -1))
        by_x = torch.bmm(patch.mT, half)
        by_half = torch.bmm(patch, rows_x).flatten(0, 1)
        by_y = (by_half @ matrix.mT).view(rows_y.shape)
        by_matrix = rows_y.flatten(0, 1).mT @ by_half if ctx.needs_input_grad[0] else None
        return by_matrix, by_y, by_x, by_gain
