"""Matrix products on a CPU, each by whoever makes it fastest.

Large kernels that meet few rows many times are laid out once as oneDNN multiplies them (`Packed`);
other products in float32 are numpy's, whose OpenBLAS beats `torch.mm`. On each of two busy cores of
an AMD EPYC with AVX-512, GFLOP/s, medians:

    rows x in x out                     oneDNN, packed   numpy   torch.mm
    128 x 1296 x 1024  encoder                      98      70         68
    128 x 1024 x 1040  its backward                102      86         85
    128 x 281 x 1024   decoder                      95      85         73
    8192 x 1296 x 1024 scoring                      96     101         71

In bfloat16 all of it is oneDNN's, 185 packed and 170 by `torch.mm` for the encoder. No gradient is
asked of what is multiplied here. Shapes: B rows, `in` and `out` sizes of a kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FEW_ROWS = 1024
"""With more rows a kernel's way into the cache is a small part of the product."""

LARGE = 2**17
"""Numbers of a kernel from which on what oneDNN saves shows."""

MANY_CALLS = 32
"""A step of training with kernels laid out was slower at 8 and 16 calls, faster at 32 and 64."""


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right."""
    if left.dtype == torch.bfloat16:
        return left @ right
    made = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype)
    with np.errstate(all="ignore"):  # what is not finite is told by whoever trains
        np.matmul(left.numpy(), right.numpy(), out=made.numpy())
    return made


def spare(width: int, dtype: torch.dtype) -> int:
    """Return how many more numbers a row takes to lie no multiple of 4 KiB apart.

    Rows that do share few lines of the cache.
    """
    size = torch.empty((), dtype=dtype).element_size()
    return 64 // size if dtype != torch.bfloat16 and width * size % 4096 == 0 else 0


class Packed:
    """A kernel as oneDNN multiplies it, by the operators that torch's own compiler uses.

    Args:
        kernel: [in, out], float32 or bfloat16.
        rows: B of the products to come.
    """

    def __init__(self, kernel: Tensor, rows: int) -> None:
        # oneDNN takes [out, in]; it is slow to lay out a transposed one
        self.kernel = torch.ops.mkldnn._reorder_linear_weight(kernel.mT.contiguous(), rows)

    @staticmethod
    def pays(kernel: Tensor, rows: int, calls: int) -> bool:
        """Tell whether so many products with B rows win back the time of laying the kernel out."""
        known = kernel.dtype in (torch.float32, torch.bfloat16)
        pays = kernel.numel() >= LARGE and calls >= MANY_CALLS and rows <= FEW_ROWS
        return pays and known and _has_onednn()

    def multiply(self, left: Tensor, base: Tensor | None = None) -> Tensor:
        """Return base [out] or [B, out], of left's dtype, + left [B, in] @ kernel."""
        linear = torch.ops.mkldnn._linear_pointwise
        made: Tensor
        if base is not None and base.dim() == 2:
            made = linear.binary(left, base.contiguous(), self.kernel, None, "add")
        else:
            made = linear(left, self.kernel, base, "none", [], "")
        return made


def _has_onednn() -> bool:
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in operators)
