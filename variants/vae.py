"""A plain VAE, 784-200-200-50 and back, with tanh layers: the calibration point (T = 1).

No recurrence, no attention. A number published for MNIST with a fixed binarisation is 88.71 nats,
with one stochastic layer and 5,000 importance weights (Burda et al. 2016, arXiv 1509.00519; quoted
from memory: number, table and split are unverified).

Source: Kingma & Welling 2014 (arXiv 1312.6114); sizes and tanh as in Burda et al. 2016, section 5.
Optimiser and schedule are those of every variant here, and the output bias starts at zero.

What the write-up says happened: nothing; it is our calibration.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from glas_bench.model import (
    BaseSettings,
    Generation,
    Glas,
    Linear,
    Memory,
    Normal,
    Recognition,
    State,
)


class Vae(Glas):
    """A VAE with one stochastic layer."""

    citations = [  # noqa: RUF012
        {
            "dataset": "mnist-static",
            "nats": 88.71,
            "estimator": "importance-weighted bound, 5,000 draws",
            "source": "Burda et al., arXiv 1509.00519",
            "bound": True,
            "remark": "quoted from memory",
            "is_elbo": False,
            "beside": "nll",
            "steps": None,
            "epochs": None,
        },
    ]

    class Settings(BaseSettings):
        """Sizes of the MLPs; presets leave them as they are."""

        sample_size: int = Field(50, ge=1, description="Z, size of the sample")
        hidden: int = Field(200, ge=1, description="units of each of the two tanh layers")

    def build_recognition(self) -> None:
        self.encoder = mlp(self.pixels, self.settings.hidden)
        self.mean = Linear(self.settings.hidden, self.sample_size)
        self.log_std = Linear(self.settings.hidden, self.sample_size)

    def build_generation(self) -> None:
        self.decoder = mlp(self.sample_size, self.settings.hidden)
        self.write = Linear(self.settings.hidden, self.pixels)

    def products(self, x: Tensor) -> Memory:
        return {}

    def infer(self, context: Any, state: State, t: Tensor) -> tuple[Normal, Tensor, Recognition]:
        read = self.encoder(context.x)
        return self.posterior(read, t), read, state.recognition

    def generate(self, generation: Generation, z_BZ: Tensor, t: Tensor) -> Generation:
        return generation._replace(canvas=self.write(self.decoder(z_BZ)))


def mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Return two tanh layers with Glorot weights."""
    layers = [Linear(inputs, hidden), nn.Tanh(), Linear(hidden, hidden), nn.Tanh()]
    return torch.nn.Sequential(*layers)
