"""Squared Hellinger distance in place of the KL divergence (approach 4).

The charge is the sum over dimensions and steps of H^2 = 1 - BC(q, p). Near the prior it is KL/4, so
`cauchy` with charge_weight 0.25 charges alike there. H^2 is at most 1, so far from the prior it
charges less, and a control that ends with the same KL needs a smaller weight.

Source: Akoury 2017, README, unsuccessful approach 4, and `glas/utils/ops.py`, whose formula is
exactly 1 - BC. The sum over dimensions is not the joint H^2 (affinities multiply); we keep it
because the original trained on it.

It bounds nothing: 2 H^2 <= KL, so at q = p(z|x) the objective is at least KL/2 below -log p(x), and
the charge is at most 1 nat per dimension and step.

What the write-up says happened: only that this divergence need not bound as the KL does; it gives
no number.
"""

from typing import Any

from torch import Tensor

from glas_bench.divergences import squared_hellinger_normal
from glas_bench.model import Glas


class Hellinger(Glas):
    """GLAS charged with the squared Hellinger distance."""

    bounds_nll = False
    why = "2 H^2 <= KL: at its optimum recon + H^2 lies below -log p(x)"
    write_up = "listed as unsuccessful: it need not bound as the KL does; no number is given"

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        return squared_hellinger_normal(q.mean, q.std).sum(-1)
