"""Products of the layers' weights: their precision, their gradients and the backend of each.

A layer calls `add` (a base plus inputs times kernels) and `lstm` and gets plain tensor operations,
which every transform of torch can handle. Under a tape (`precision`) they are recorded for one
backward pass by hand-written rules, which do no work over t that can be done once: the inputs of a
kernel are kept side by side for all steps, one product makes its gradient at the end, a bias is
summed once, and inputs that are the zeros of the first step are not multiplied. Training on a CPU
records; `deferral` does the same in a step that is mapped over seeds. All give the same numbers to
rounding.

On a CPU, large kernels that multiply few rows many times are laid out once for oneDNN (`Packed`);
other products in float32 are numpy's, whose OpenBLAS beats `torch.mm`. On each of two busy cores of
an AMD EPYC with AVX-512, GFLOP/s, medians:

    rows x in x out                     oneDNN, packed   numpy   torch.mm
    128 x 1296 x 1024  encoder                      98      70         68
    128 x 1024 x 1040  its backward                102      86         85
    128 x 281 x 1024   decoder                      95      85         73
    8192 x 1296 x 1024 scoring                      96     101         71

In bfloat16 oneDNN makes all of them, 185 packed and 170 by `torch.mm` for the encoder.
`precision("bf16")` casts what is multiplied, a weight once a rollout, and adds up in float32;
everything else stays in float32.

Shapes: B rows, `in` and `out` sizes of a kernel, T calls of one kernel in a rollout.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Recorder = Callable[[Tensor, Sequence[tuple[Tensor, Tensor]], bool, bool], Tensor]
"""Takes the place of `add_plain`: of a tape, or of a part of `deferral`."""


class _Mode:
    """How products are made; a process has one current mode."""

    def __init__(self, low: bool, add: Recorder) -> None:
        self.low = low
        self.add = add
        self.casts: dict[tuple[int, int, bool], tuple[Tensor, Tensor]] = {}

    def cast(self, weight: Tensor) -> Tensor:
        """Return a weight in bfloat16, cast once while this mode lasts and the weight stays."""
        if torch.compiler.is_compiling():  # a compiled call keeps no casts for the next
            return weight.to(torch.bfloat16)
        version = 0 if weight.is_inference() else weight._version
        # a cast made in inference mode cannot be used where gradients are taken
        key = id(weight), version, torch.is_inference_mode_enabled()
        if key not in self.casts:
            self.casts[key] = weight, weight.to(torch.bfloat16)
        return self.casts[key][1]


@contextlib.contextmanager
def precision(name: str | None = None, tape: Tape | Recorder | None = None) -> Iterator[None]:
    """Make the layers' products at a precision, and record them where there is a tape.

    Args:
        name: fp32 (or tf32, set on the device) or bf16; by default the current one.
        tape: a `Tape` keeps the inputs of one rollout and its backward pass at a time; none where
            gradients are not enabled. One used in inference mode cannot be used outside it.
    """
    global _current
    if isinstance(tape, Tape):
        tape.begin()
        tape = tape.add
    # not `tape or add_plain`: torch 2.11 cannot compile whether a method is true
    before, recorder = _current, add_plain if tape is None else tape
    _current = _Mode(before.low if name is None else name == "bf16", recorder)
    try:
        yield
    finally:
        _current = before


def tape_for(device: torch.device, steps: int) -> Tape | None:
    """Return a tape where recording pays: on a CPU."""
    return Tape(steps) if device.type == "cpu" else None


# --------------------------------------------------------------------------- what layers ask for


def add(base: Tensor, inputs: Sequence[tuple[Tensor, Tensor]], transposed: bool = False) -> Tensor:
    """Return base + sum of value @ kernel over the inputs, [B, out].

    Args:
        base: [out] or [B, out].
        inputs: values [B, in] with their kernels, [in, out], or [out, in] where `transposed`.
        transposed: how the kernels lie.
    """
    return _current.add(base, inputs, transposed, _current.low)


def add_plain(
    base: Tensor, inputs: Sequence[tuple[Tensor, Tensor]], transposed: bool, low: bool
) -> Tensor:
    """Return what `add` does, by plain operations whatever is recorded."""
    for value, kernel in inputs:
        if low and kernel.dtype != torch.bfloat16:
            kernel = _current.cast(kernel)
        was_cast = kernel.dtype == torch.bfloat16  # here or by the caller
        kernel = kernel.mT if transposed else kernel
        if was_cast:
            base = base + (value.to(torch.bfloat16) @ kernel).to(base.dtype)
        else:
            base = torch.addmm(base, value, kernel)
    return base


_current = _Mode(False, add_plain)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden state and cell, [B, H] each, of an LSTM from gates [B, 4H].

    Gates stand in the order input, forget, candidate, output.
    """
    enter, forget, candidate, leave = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


# --------------------------------------------------------------------------- on a CPU

FEW_ROWS = 1024
"""With more rows, loading a kernel into the cache is a small part of the product."""

LARGE = 2**17
"""Numbers of a kernel below which oneDNN saves nothing that can be measured."""

MANY_CALLS = 32
"""Training with kernels laid out was slower at 8 and 16 calls, faster at 32 and 64."""


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right."""
    if left.dtype == torch.bfloat16:
        return left @ right
    made = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype)
    with np.errstate(all="ignore"):  # the caller checks that values are finite
        np.matmul(left.numpy(), right.numpy(), out=made.numpy())
    return made


def spare(width: int, dtype: torch.dtype) -> int:
    """Return the numbers to add to a row so that rows do not lie a multiple of 4 KiB apart.

    Such rows would share few lines of the cache.
    """
    size = torch.empty((), dtype=dtype).element_size()
    return 64 // size if dtype != torch.bfloat16 and width * size % 4096 == 0 else 0


class Packed:
    """A kernel in oneDNN's own layout, by the operators that torch's compiler uses.

    Args:
        kernel: [in, out], float32 or bfloat16.
        rows: B of the products to come.
    """

    def __init__(self, kernel: Tensor, rows: int) -> None:
        # oneDNN takes [out, in]; it is slow to lay out a transposed one
        self.kernel = torch.ops.mkldnn._reorder_linear_weight(kernel.mT.contiguous(), rows)

    @staticmethod
    def pays(kernel: Tensor, rows: int, calls: int) -> bool:
        """Return whether `calls` products with B rows are worth laying the kernel out."""
        known = kernel.dtype in (torch.float32, torch.bfloat16)
        pays = kernel.numel() >= LARGE and calls >= MANY_CALLS and rows <= FEW_ROWS
        return pays and known and has_onednn(kernel.dtype)

    def multiply(self, left: Tensor, base: Tensor | None = None) -> Tensor:
        """Return base [out] or [B, out], of left's dtype, + left [B, in] @ kernel."""
        linear = torch.ops.mkldnn._linear_pointwise
        made: Tensor
        if base is not None and base.dim() == 2:
            made = linear.binary(left, base.contiguous(), self.kernel, None, "add")
        else:
            made = linear(left, self.kernel, base, "none", [], "")
        return made


def has_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has these operators in a dtype; bfloat16 takes a CPU with AVX-512."""
    operators = ["_reorder_linear_weight", "_linear_pointwise"]
    low = dtype == torch.bfloat16
    operators += ["_is_mkldnn_bf16_supported"] * low
    if not (torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, each) for each in operators)):
        return False
    return not low or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# --------------------------------------------------------------------------- recorded


class Tape:
    """Keeps the inputs of every kernel for one backward pass.

    Args:
        steps: calls of a kernel that are expected in a rollout; more are taken, in more pieces.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.kernels: dict[tuple[int, ...], _Kernel] = {}
        self.room: dict[tuple[object, ...], Tensor] = {}

    def begin(self) -> None:
        """Forget the last rollout; its memory is used again."""
        self.kernels = {}

    def add(
        self,
        base: Tensor,
        inputs: Sequence[tuple[Tensor, Tensor]],
        transposed: bool,
        low: bool,
    ) -> Tensor:
        """Record and return base + sum of value @ kernel."""
        weights = [weight for _, weight in inputs]
        bias = base if base.dim() == 1 else None
        key = tuple(id(weight) for weight in weights)
        if key not in self.kernels:
            self.kernels[key] = _Kernel(self, weights, bias, transposed, low)
        kernel = self.kernels[key]
        values = [value for value, _ in inputs]
        result: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            kernel, kernel.token, None if bias is base else base, *values
        )
        return result

    def space(self, *key: object, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of this shape, the same for the same key in every rollout."""
        whole = (*key, shape, dtype)
        if whole not in self.room:
            *outer, width = shape
            apart = width + spare(width, dtype)
            self.room[whole] = torch.empty((*outer, apart), dtype=dtype)[..., :width]
        return self.room[whole]


class _Kernel:
    """Weights that are multiplied together, with the inputs and gradients of their calls."""

    def __init__(
        self,
        tape: Tape,
        weights: list[Tensor],
        bias: Tensor | None,
        transposed: bool,
        low: bool,
    ) -> None:
        self.tape = tape
        self.key = len(tape.kernels)
        self.transposed = transposed
        self.dtype = torch.bfloat16 if low else weights[0].dtype
        kernels = [weight.detach().mT if transposed else weight.detach() for weight in weights]
        self.ends = [0, *itertools.accumulate(kernel.shape[0] for kernel in kernels)]
        self.out = kernels[0].shape[1]
        self.bias = None if bias is None else bias.detach()
        self.whole = self._side_by_side(kernels)
        self.keeps = torch.is_grad_enabled()  # else each call takes the place of the one before
        self.steps = tape.steps if self.keeps else 1
        self.packed: dict[tuple[int, int], Packed | None] = {}
        self.calls = 0
        self.zero_calls = 0  # leading calls whose inputs from `zeros_from` on were zeros
        self.zeros_from = 0
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.arrived: list[int] = []
        trained = [*weights, *([] if bias is None else [bias])]
        self.token: Tensor = _Collect.apply(self, *trained)  # type: ignore[no-untyped-call]

    def _side_by_side(self, kernels: list[Tensor]) -> Tensor:
        """Return the kernels below each other, [in, out], in the dtype of products."""
        if len(kernels) == 1 and kernels[0].dtype == self.dtype:
            return kernels[0]
        shape = (self.ends[-1], self.out)
        whole = self.tape.space("whole", self.key, shape=shape, dtype=self.dtype)
        for start, end, kernel in zip(self.ends, self.ends[1:], kernels, strict=False):
            whole[start:end].copy_(kernel)
        return whole

    def call(self, values: Sequence[Tensor]) -> tuple[int, Tensor, int]:
        """Lay the inputs of a call side by side; return its number, them, and how many were used.

        Trailing inputs that are zeros by construction (a number expanded) are left out.
        """
        number, rows = self.calls, values[0].shape[0]
        if self.keeps:
            self.calls += 1
        piece, slot = divmod(number, self.steps)
        if slot == 0:
            where = ("inputs", self.key, piece)
            shape = (self.steps, rows, self.ends[-1])
            self.inputs.append(self.tape.space(*where, shape=shape, dtype=self.dtype))
        given = self.inputs[piece][slot]
        count = len(values)
        while count > 1 and _constant(values[count - 1]):
            count -= 1
        for start, end, value in zip(self.ends, self.ends[1:], values[:count], strict=False):
            given[:, start:end].copy_(value)
        if count < len(values):
            given[:, self.ends[count] :] = 0
            if self.zero_calls == number and self.zeros_from in (0, count):
                self.zero_calls, self.zeros_from = number + 1, count
        return number, given[:, : self.ends[count]], count

    def forward(self, given: Tensor, base: Tensor | None) -> Tensor:
        """Return base [B, out], or the bias, + given [B, first inputs] @ kernels."""
        start = self.bias if base is None else base
        assert start is not None
        width = given.shape[1]
        packed = self._packed(given, 0, width)
        if packed is not None and given.dtype == start.dtype:
            return packed.multiply(given, start)
        kernel = self.whole[:width]
        made = matmul(given, kernel) if packed is None else packed.multiply(given)
        return made.to(start.dtype).add_(start)

    def backward(self, gradient: Tensor, start: int, end: int) -> Tensor:
        """Return the gradient of inputs, [B, end - start], from that of a result, [B, out]."""
        packed = self._packed(gradient, end, start)
        if packed is not None:
            return packed.multiply(gradient)
        return matmul(gradient, self.whole[start:end].mT)

    def _packed(self, left: Tensor, start: int, end: int) -> Packed | None:
        """Return a part of the kernels laid out for left, if that is worth it.

        With `start` > `end` the part is transposed. A first call may be the only one, and parts
        without the last inputs belong to it.
        """
        if self.calls < 2:
            return None
        where = start, end
        if where not in self.packed:
            part = self.whole[start:end] if start < end else self.whole[end:start].mT
            calls = self.tape.steps if self.ends[-1] in where else 1
            pays = Packed.pays(part, len(left), calls)
            self.packed[where] = Packed(part, len(left)) if pays else None
        return self.packed[where]

    def arrive(self, number: int, gradient: Tensor) -> Tensor:
        """Keep the gradient of a call's result; return it in the dtype of products."""
        piece, slot = divmod(number, self.steps)
        while piece >= len(self.gradients):
            where = ("gradients", self.key, len(self.gradients))
            shape = (*self.inputs[piece].shape[:2], self.out)
            self.gradients.append(self.tape.space(*where, shape=shape, dtype=self.dtype))
        kept = self.gradients[piece][slot]
        kept.copy_(gradient)
        self.arrived.append(number)
        return kept

    def collect(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of the weights, and of the bias last, from all calls at once."""
        gradients: list[Tensor | None] = [None] * len(wanted)
        for number in sorted(set(range(self.calls)) - set(self.arrived)):
            piece, slot = divmod(number, self.steps)
            if piece < len(self.gradients):
                self.gradients[piece][slot] = 0
        if not self.gradients:
            return gradients
        pieces = range(len(self.gradients))
        if any(wanted[: len(self.ends) - 1]):
            whole = _total([self._gradient(piece) for piece in pieces])
            for i, (start, end) in enumerate(itertools.pairwise(self.ends)):
                if wanted[i]:
                    part = whole[start:end]
                    part = part.mT if self.transposed else part
                    gradients[i] = part.to(
                        torch.promote_types(part.dtype, torch.float32)
                    ).contiguous()
        if self.bias is not None and wanted[-1]:
            dtype = self.bias.dtype
            used = [self.gradients[piece][: self._used(piece)].flatten(0, 1) for piece in pieces]
            gradients[-1] = _total([gradient.sum(0, dtype=dtype) for gradient in used])
        return gradients

    def _used(self, piece: int) -> int:
        return min(self.calls - piece * self.steps, self.steps)

    def _gradient(self, piece: int) -> Tensor:
        """Return the gradient of the kernels below each other, [in, out], from some calls."""
        used = self._used(piece)
        given, gradient = self.inputs[piece][:used], self.gradients[piece][:used]
        if self.dtype == torch.bfloat16:  # its sums are rounded: one product makes all
            made = given.flatten(0, 1).mT @ gradient.flatten(0, 1)
            return made if len(self.gradients) == 1 else made.float()
        first = min(self.zero_calls, used) if piece == 0 else 0
        made = matmul(given[first:].flatten(0, 1).mT, gradient[first:].flatten(0, 1))
        if first:
            end = self.ends[self.zeros_from]
            early = given[:first, :, :end].flatten(0, 1)
            made[:end] += matmul(early.mT, gradient[:first].flatten(0, 1))
        return made


def _total(tensors: list[Tensor]) -> Tensor:
    """Return the sum of at least one tensor, in place of the first."""
    first, *others = tensors
    for other in others:
        first += other
    return first


def _constant(value: Tensor) -> bool:
    """Return whether a tensor is one number expanded, as the zeros of a first state are."""
    return not value.requires_grad and value.dim() > 0 and not any(value.stride())


class _Collect(torch.autograd.Function):
    """Stands between a kernel's weights and its calls; its backward pass comes after all theirs."""

    @staticmethod
    def forward(ctx: Any, kernel: _Kernel, *trained: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.kernel = kernel
        return trained[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        return None, *ctx.kernel.collect(ctx.needs_input_grad[1:])


class _Product(torch.autograd.Function):
    """base (or the kernel's bias) + values @ kernel, one call of a kernel."""

    @staticmethod
    def forward(
        ctx: Any, kernel: _Kernel, token: Tensor, base: Tensor | None, *values: Tensor
    ) -> Tensor:
        ctx.kernel = kernel
        ctx.number, given, ctx.count = kernel.call(values)
        return kernel.forward(given, base)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kernel: _Kernel = ctx.kernel
        _, token, base, *values = ctx.needs_input_grad
        kept = kernel.arrive(ctx.number, gradient) if token else gradient.to(kernel.dtype)
        gradients: list[Tensor | None] = [None] * len(values)
        wanted = [i for i, needed in enumerate(values) if needed and i < ctx.count]
        if wanted:
            # they usually lie together: one product makes the gradients of all
            first, last = wanted[0], wanted[-1]
            start = kernel.ends[first]
            made = kernel.backward(kept, start, kernel.ends[last + 1]).to(gradient.dtype)
            for i in wanted:
                gradients[i] = made[:, kernel.ends[i] - start : kernel.ends[i + 1] - start]
        return None, None, gradient if base else None, *gradients
