"""Prior U(0, 1), uniform q, and a charge on q's mean only (approach 3, first way).

q = U(m - d, m + d) with d = sqrt(3) exp(log_var / 2), so that m and exp(log_var) are its mean and
variance; the charge is the sum over dimensions and steps of ln(1 + 12 (m - 1/2)^2).

Source: Akoury 2017, README, unsuccessful approach 3, and `UniformSampler` of
`glas/model/sample.py`. The README means the chi2 divergence; the code charges ln(1 + (E_q - E_p)^2
/ Var_p), which by Hammersley, Chapman and Robbins is a *lower* bound of ln(1 + chi2) and may be
less or more than the KL. We keep that charge, with one draw per step and without a weight that
grows over training.

Width costs nothing, nor does leaving [0, 1], where KL and chi2 are both infinite: q starts as
U(-1.7, 1.7), and while it leaves [0, 1] elbo and iw are infinite. `uniform-kl` is the same idea
charged with its own divergence.

What the write-up says happened: nothing about the outcome of this approach.
"""

from typing import Any

import torch
from torch import Tensor

from glas_bench.divergences import moment_chi2
from glas_bench.model import Glas, Linear, StandardUniform, Uniform


class UniformChi2(Glas):
    """GLAS over U(0, 1) with a moment bound as its charge."""

    bounds_nll = False
    why = "the charge sees the mean alone: narrowing q, or leaving the prior's support, is free"

    def build_heads(self, read_size: int) -> None:
        self.mean = Linear(read_size, self.sample_size)
        self.log_var = Linear(read_size, self.sample_size)

    def posterior(self, read_BA: Tensor, t: Tensor) -> Uniform:
        mean = self.mean(read_BA)
        half = 3**0.5 * torch.exp(self.log_var(read_BA) / 2)
        return Uniform(mean - half, mean + half, torch.log(2 * half))

    def prior(self) -> StandardUniform:
        return StandardUniform()

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        return moment_chi2((q.low + q.high) / 2, 1 / 2, 1 / 12).sum(-1)
