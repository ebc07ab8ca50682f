"""Prior U(0, 1) by the probability integral transform of the read itself (approach 3, second way).

No heads and no draw: z = Phi((a - mean) / std), with mean and (biased) std of each feature of the
read a over the batch, at each step, std at least 1e-6. So Z is the size of a read, not a setting.
The charge is ln(1 + 12 (mean of z over the batch - 1/2)^2), averaged over features, the same for
every row of a batch.

Source: Akoury 2017, README, unsuccessful approach 3, and `EstimatedSampler` of
`glas/model/sample.py`, which averages over features where the other variants sum; gradients flow
through the moments, as there. The floor and the scoring differ: the original takes the moments of
the test batch; here all three moments, including that of the charge, are frozen on fixed training
images, so that an image's score does not depend on its batch.

Standardising forces the mean of z to about 1/2: the charge is almost zero, and q is a point. The
rest is a deterministic autoencoder. There is no elbo and no iw; `nll` comes from a refit.

What the write-up says happened: nothing about the outcome of this approach.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from glas_bench.divergences import moment_chi2
from glas_bench.model import FilterSettings, Glas, Memory, StandardUniform

SMALLEST_STD = 1e-6


class Point(NamedTuple):
    """A posterior without a density: all its mass on one z."""

    z: Tensor  # [B, Z]
    batch_mean: Tensor  # [1, Z] mean of z over the batch

    def sample(self, noise: Tensor, /) -> Tensor:
        """Return z, whatever the noise."""
        del noise
        return self.z


class UniformPit(Glas):
    """GLAS that standardises its reads to uniforms."""

    bounds_nll = False
    why = "q is a point, whose KL is infinite, and the charge is next to nothing wherever it lies"
    has_density = False
    statistics_of = ("read_mean", "read_std", "z_mean")

    class Settings(FilterSettings):
        """Those of a filter; Z follows from its size."""

        sample_size: ClassVar[Any] = property(lambda self: self.filter_size**2)  # type: ignore[misc]

    def build_heads(self, read_size: int) -> None:
        for name in self.statistics_of:
            self.register_buffer(name, torch.zeros(self.steps, read_size))

    def posterior(self, read_BA: Tensor, t: Tensor) -> Point:
        held = self.statistics(read_BA) if self.training else self.frozen(t)
        mean, std, z_mean = (held[name] for name in self.statistics_of)
        return Point(torch.special.ndtr((read_BA - mean) / std), z_mean[None])

    def statistics(self, read_BA: Tensor) -> Memory:
        var, mean = torch.var_mean(read_BA, 0, correction=0)
        std = var.clamp(min=SMALLEST_STD**2).sqrt()
        z_mean = torch.special.ndtr((read_BA - mean) / std).mean(0)
        return {"read_mean": mean, "read_std": std, "z_mean": z_mean}

    def frozen(self, t: Tensor) -> Memory:
        """Return the moments of step t that scoring holds fixed."""
        steps = {name: self.get_buffer(name) for name in self.statistics_of}
        return {name: buffer.index_select(0, t[None])[0] for name, buffer in steps.items()}

    def prior(self) -> StandardUniform:
        return StandardUniform()

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        return moment_chi2(q.batch_mean, 1 / 2, 1 / 12).mean(-1).expand(z.shape[0])
