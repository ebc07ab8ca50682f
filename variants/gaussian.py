"""A Gaussian filter over the latent matrix in place of the Cauchy filter.

Kernel exp(-(a - c)^2 / 2v) with v = exp(the fourth number), as in the original code, evaluated on
the same grid and normalised in the same way.

Source: Akoury 2017, README, the paragraph on attention, and `glas/model/attention.py`; the filter
is that of DRAW (Gregor et al. 2015, section 3.2). On the original grid most kernels are outside the
matrix, where a Gaussian underflows and a Cauchy does not: compare at `grid: centred`.

What the write-up says happened: like every attention tried but the Cauchy filter, it optimised the
cost poorly.
"""

from torch import Tensor

from glas_bench.filters import gaussian_log_kernel
from glas_bench.model import Glas


class Gaussian(Glas):
    """GLAS with DRAW's filter."""

    write_up = "poor optimisation of the cost, where the Cauchy filter did better"
    figures = ("filter",)

    def log_kernel(self, centres_BR: Tensor, log_scale_B: Tensor) -> Tensor:
        return gaussian_log_kernel(centres_BR, self.settings.latent_size, log_scale_B)
