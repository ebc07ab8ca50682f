"""Softmax gates over the columns of the latent matrix; the read is the whole gated matrix.

As in `sigmoid`, with gates that sum to 1: over the L columns, or over all L * L cells with
`gates: cells`.

Source: Akoury 2017, README, the paragraph on attention, and `SimpleAttention` in
`glas/model/attention.py`; Li et al. 2016 (arXiv 1602.07416), who try both squashing functions.
`gates: columns` is the original.

What the write-up says happened: as for `sigmoid`, it optimised the cost poorly, and hardly reduced
the size of the problem, since gates cannot focus on one portion of the latent space.
"""

from torch import Tensor

from glas_bench.variants.sigmoid import Sigmoid


class Softmax(Sigmoid):
    """GLAS with softmax gates."""

    def squash(self, numbers: Tensor) -> Tensor:
        """Return gates in (0, 1) that sum to 1."""
        return numbers.softmax(-1)
