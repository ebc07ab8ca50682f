"""The min-chi2 sampler charged with its own KL (approach 5, charged honestly).

z = s (1 + m s), s ~ N(0, 1), as in `min-chi2`; the charge is the KL of z to N(0, 1), a function of
|m| only: about 3.5 m^2 near 0 and 1.5 m^2 for large |m|, where `min-chi2` charges ln(1 + m^2).

Source: Akoury 2017, README, unsuccessful approach 5, and `glas/model/sample.py`; this charge is
ours. It is a spline over a quadrature table: the sampled log ratio ln q/p has no finite gradient
mean, because q has a pole at the end of its support.

What the write-up says happened: nothing about this charge; see `min-chi2`.
"""

from typing import Any

from torch import Tensor

from glas_bench.divergences import min_chi2_kl
from glas_bench.variants.min_chi2 import MinChi2


class MinChi2Kl(MinChi2):
    """GLAS with the sampler of one head, charged with its KL."""

    bounds_nll = True
    why = "the charge is the KL divergence of the law that is drawn from: a negative ELBO"
    write_up = ""
    published = {}  # noqa: RUF012

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        return min_chi2_kl(q.mean).sum(-1)
