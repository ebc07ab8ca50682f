"""A normal q charged with ln(1 + chi2) to the prior (what approach 5 should have been).

q = N(m, s^2) with s^2 = 2 sigmoid(h), because chi2(q || p) is finite only for s^2 < 2; the charge
is the sum over dimensions and steps of ln(1 + chi2(q || p)). Since 1 + chi2 multiplies over the
dimensions of a step, their sum is ln(1 + chi2) of that step, at least its KL. `fixed_width: true`
sets s = 1 and has no second head: the charge is then m^2, twice the KL, which is the smallest
correction of `min-chi2`.

Source: Akoury 2017, README, unsuccessful approach 5, and the comment in `ChiSquaredSampler` of
`glas/model/sample.py`, which aims at this bound, KL <= ln(1 + chi2); the code has another charge
and another q. The closed form is the Renyi divergence of order 2 (Gil et al. 2013, Information
Sciences 249).

What the write-up says happened: nothing; it is the correction of `min-chi2`.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from glas_bench.divergences import log1p_chi2_normal
from glas_bench.model import FilterSettings, Glas, Linear, Normal


class Chi2(Glas):
    """GLAS charged with an upper bound of the KL divergence."""

    bounds_nll = True
    why = "ln(1 + chi2) is at least the KL divergence: a bound, looser than the ELBO"

    class Settings(FilterSettings):
        """Those of a filter, and whether q has its own width."""

        fixed_width: bool = Field(False, description="true: s = 1, the prior's width")

    def build_heads(self, read_size: int) -> None:
        self.mean = Linear(read_size, self.sample_size)
        if not self.settings.fixed_width:
            self.width = Linear(read_size, self.sample_size)

    def posterior(self, read_BA: Tensor, t: Tensor) -> Normal:
        mean = self.mean(read_BA)
        if self.settings.fixed_width:
            return Normal(mean, torch.ones_like(mean))
        log_variance = math.log(2) + F.logsigmoid(self.width(read_BA))
        return Normal(mean, torch.exp(log_variance / 2))

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        return log1p_chi2_normal(q.mean, q.std).sum(-1)
