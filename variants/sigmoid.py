"""Sigmoid gates over the columns of the latent matrix; the read is the whole gated matrix.

a_t = vec(g_t * L) with g_t = sigmoid(W e_t + b): by default L gates, one per column, the same for
all rows. `gates: cells` gives every cell its own gate, the element-wise form of Li et al. 2016.

Source: Akoury 2017, README, the paragraph on attention, and `SimpleAttention` in
`glas/model/attention.py`, which has as many gates as the matrix has columns; Li et al. 2016 (arXiv
1602.07416). `gates: columns` is the original.

What the write-up says happened: it optimised the cost poorly, and hardly reduced the size of the
problem, since gates cannot focus on one portion of the latent space.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from glas_bench.filters import gated_read
from glas_bench.model import Glas, LatentSettings, Linear, Memory


class Sigmoid(Glas):
    """GLAS with sigmoid gates."""

    write_up = "poor optimisation; it cannot focus on an explicit portion of the latent space"

    class Settings(LatentSettings):
        """A latent matrix and its gates."""

        gates: Literal["columns", "cells"] = Field(
            "columns", description="a gate for each column, as the original code, or for each cell"
        )

    def build_attention(self) -> int:
        self.build_latent()
        size = int(self.settings.latent_size)
        self.gates = Linear(
            self.settings.hidden, size if self.settings.gates == "columns" else size**2
        )
        return size**2

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        return gated_read(self.latent, self.gate_values(e_BH), over=self.settings.gates), memory

    def gate_values(self, e_BH: Tensor) -> Tensor:
        """Return gates [B, L] over columns, or [B, L, L] over cells."""
        gates = self.squash(self.gates(e_BH))
        return gates.view(-1, *self.latent.shape) if self.settings.gates == "cells" else gates

    def gate_weights(self, e_BH: Tensor) -> Tensor:
        return gated_read(torch.ones_like(self.latent), self.gate_values(e_BH), self.settings.gates)

    def squash(self, numbers: Tensor) -> Tensor:
        """Return gates in (0, 1)."""
        return numbers.sigmoid()
