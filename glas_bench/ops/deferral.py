"""Gradients of weights that are multiplied at every time step, made once from all steps.

A weight that is multiplied T times has T gradients. Adding them up, each as large as the weight,
moves more memory than the products themselves. `linear`'s tape avoids that by hand-written rules;
here it is done in plain tensor operations, which `torch.func.vmap` and `torch.compile` can handle:

- `list_calls` finds the calls of `linear.add` in a step;
- within the step (`Deferral.add`) call i multiplies its inputs, side by side,
  by a copy of its kernels that takes no gradient, and adds zeros, `taps[i]`. It keeps the inputs;
- the gradient of a tap is that of the result of its call. `gradients` makes those of the weights
  from them and the inputs, with one product over steps and rows for each call.

A kernel is laid out, and cast, once for all steps. Kernels that are no parameters, and uses of a
parameter other than by `linear.add`, get their gradients by autograd as always.

Shapes: S seeds, T steps, B rows, `in` and `out` sizes of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glas_bench.ops import linear


class Call(NamedTuple):
    """A call of `linear.add` in a step whose kernels are parameters."""

    kernels: tuple[str, ...]  # their names
    sizes: tuple[int, ...]  # `in` of each
    transposed: bool  # how they lie
    bias: str | None  # the name of the base, where it is a parameter
    rows: int  # B
    out: int


def list_calls(step: Callable[[], Any], parameters: Mapping[str, Tensor]) -> list[Call | None]:
    """Return the calls of `linear.add` in a step, None for those that autograd is left with."""
    all_names = {id(parameter): name for name, parameter in parameters.items()}
    calls: list[Call | None] = []

    def add(
        base: Tensor, inputs: Sequence[tuple[Tensor, Tensor]], transposed: bool, low: bool
    ) -> Tensor:
        made = linear.add_plain(base, inputs, transposed, low)
        names = tuple(all_names[id(k)] for _, k in inputs if id(k) in all_names)
        sizes = tuple(value.shape[-1] for value, _ in inputs)
        call = Call(names, sizes, transposed, all_names.get(id(base)), *made.shape)
        calls.append(call if len(names) == len(inputs) else None)
        return made

    with linear.precision("fp32", add):
        step()
    return calls


class Deferral:
    """The calls of `linear.add` in one step.

    Args:
        calls: as `list_calls` returns them.
        kernels: of every call but None, its kernels below each other, [in, out].
        taps: zeros [B, out] of the dtype of these, for each of them.
    """

    def __init__(
        self, calls: Sequence[Call | None], kernels: Sequence[Tensor], taps: Sequence[Tensor]
    ) -> None:
        self.calls = calls
        self.kernels = kernels
        self.taps = taps
        self.place = 0
        self.given: list[Tensor] = []
        """Inputs of the calls so far, side by side, [B, in]."""

    def add(
        self, base: Tensor, inputs: Sequence[tuple[Tensor, Tensor]], transposed: bool, low: bool
    ) -> Tensor:
        """Return base + sum of value @ kernel, see `linear.add`."""
        call = self.calls[self.place]
        self.place += 1
        if call is None:
            return linear.add_plain(base, inputs, transposed, low)
        kernel, tap = self.kernels[len(self.given)], self.taps[len(self.given)]
        given = torch.cat([value.to(kernel.dtype) for value, _ in inputs], -1)
        self.given.append(given.detach())
        if call.bias is not None:
            base = base.detach()
        return base + (given @ kernel + tap).to(base.dtype)


# --------------------------------------------------------------------------- stacks of seeds


def stacked_kernels(
    calls: Sequence[Call | None], stacks: Mapping[str, Tensor], dtype: torch.dtype | None
) -> list[Tensor]:
    """Return the kernels of every call below each other, [S, in, out], cast and without gradient.

    Args:
        calls: None is left out.
        stacks: the parameters, with a leading axis S.
        dtype: of products; by default that of the parameters.
    """
    laid_out = []
    for call in calls:
        if call is not None:
            kernels = [stacks[name].detach().to(dtype) for name in call.kernels]
            kernels = [kernel.mT if call.transposed else kernel for kernel in kernels]
            laid_out.append(kernels[0] if len(kernels) == 1 else torch.cat(kernels, 1))
    return laid_out


def gradients(
    calls: Sequence[Call | None],
    stacks: Mapping[str, Tensor],
    given: Sequence[Sequence[Tensor]],
    arrived: Sequence[Sequence[Tensor | None]],
) -> dict[str, Tensor]:
    """Return the gradients of parameters by name, [S, ...], as far as the calls make them.

    Args:
        calls: as for `stacked_kernels`.
        stacks: the parameters that want a gradient, with a leading axis S.
        given: of every step, the inputs [S, B, in] of its calls.
        arrived: of every step, the gradients [S, B, out] of its taps; None where nothing came.
    """
    made: dict[str, Tensor] = {}
    for place, call in enumerate(call for call in calls if call is not None):
        steps = [t for t, of_step in enumerate(arrived) if of_step[place] is not None]
        wanted = [name for name in (*call.kernels, call.bias) if name in stacks]
        if not steps or not wanted:
            continue
        results = torch.cat([arrived[t][place] for t in steps], 1)  # type: ignore[misc]
        sums = torch.promote_types(results.dtype, torch.float32)
        parts = {} if call.bias is None else {call.bias: results.sum(1, dtype=sums)}
        if wanted != [call.bias]:
            inputs = torch.cat([given[t][place] for t in steps], 1)  # [S, T B, in]
            pieces = torch.split(torch.bmm(inputs.mT, results), list(call.sizes), 1)
            for name, piece in zip(call.kernels, pieces, strict=True):
                parts[name] = piece.mT if call.transposed else piece
        for name, part in parts.items():
            if name in stacks:
                part = part.to(stacks[name].dtype)
                made[name] = made[name] + part if name in made else part
    return made
