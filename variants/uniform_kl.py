"""Prior U(0, 1) with a uniform q inside it, charged with its KL (what approach 3 should have been).

Two heads: width w = sigmoid(h1 + 4), lower end a = (1 - w) sigmoid(h2), q = U(a, a + w). Then KL =
-ln w = ln(1 + chi2) exactly, as is every Renyi divergence of positive order: for a uniform q the
correct chi2 divergence is the KL. At the start w is about 0.98, 0.02 nats per dimension.

Source: Akoury 2017, README, unsuccessful approach 3; it is in no commit of the original code, whose
`UniformSampler` is `uniform-chi2`. The two heads and the 4 are ours: they keep q inside the prior's
support, where the divergence is finite. It does not depend on the position of the interval.

What the write-up says happened: nothing about the outcome of this approach.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glas_bench.model import Glas, Linear, StandardUniform, Uniform

WIDE = 4.0
"""q starts almost as wide as the prior: sigmoid(4) = 0.98."""


class UniformKl(Glas):
    """GLAS over U(0, 1)."""

    bounds_nll = True
    why = "the charge -ln w is the KL divergence: the objective is the negative ELBO"

    def build_heads(self, read_size: int) -> None:
        self.width = Linear(read_size, self.sample_size)
        self.place = Linear(read_size, self.sample_size)

    def posterior(self, read_BA: Tensor, t: Tensor) -> Uniform:
        log_width = F.logsigmoid(self.width(read_BA) + WIDE)
        # 1 - w without cancellation; a + w is at most 1
        low = -torch.expm1(log_width) * torch.sigmoid(self.place(read_BA))
        return Uniform(low, (low + log_width.exp()).clamp(max=1), log_width)

    def prior(self) -> StandardUniform:
        return StandardUniform()

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        charge: Tensor = -q.log_width.sum(-1)
        return charge
