"""A mask that removes what earlier steps have read from the latent matrix (approach 1).

M_0 = 0; a_t = A(e_t, (1 - M_{t-1}) * L); the footprint f_t of the filter is the outer product of
the column sums of F_y and F_x, scaled to sum to 1; then
M_t = M_{t-1} + (1 - M_{t-1}) * min(1, rate * (L * L / T) * f_t). No gradient flows through M.
T uniform reads leave about exp(-rate) of each cell; a narrow filter empties its cells sooner.

Source: Akoury 2017, README, unsuccessful approach 1. It is in no commit of the original code: this
design follows its prose, read as: a used portion is removed; in `masked-canvas` it is fixed, in
`masked-gradient` it is no longer trained. M depends on x, so it belongs to the recogniser.

What the write-up says happened: a mask makes the model much harder to optimise.
"""

import torch
from pydantic import Field
from torch import Tensor

from glas_bench.filters import read_matrix
from glas_bench.model import FilterSettings, Glas, Memory, Recognition


class MaskedProgressive(Glas):
    """GLAS over a latent matrix that is used up."""

    write_up = "using a mask significantly reduced the ability to optimise the model"

    class Settings(FilterSettings):
        """Those of a filter, and how fast it uses up the matrix."""

        rate: float = Field(
            1.0, ge=0, description="how fast reads empty cells: T even ones leave about exp(-rate)"
        )

    def begin_recognition(self, x: Tensor) -> Recognition:
        mask = x.new_zeros(x.shape[0], *self.latent.shape)
        # a tensor: a step that divides by T would be compiled again for another T
        most = x.new_full((x.shape[0], 1, 1), self.settings.rate * (mask[0].numel() / self.steps))
        return super().begin_recognition(x)._replace(memory={"mask": mask, "most": most})

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        mask = memory["mask"]
        rows_y, rows_x, log_gain = self.filter_rows(e_BH)
        read = read_matrix((1 - mask) * self.latent, rows_y, rows_x, log_gain)
        return read, self.used(memory, rows_y, rows_x)

    def used(self, memory: Memory, rows_y: Tensor, rows_x: Tensor) -> Memory:
        """Return the mask after a read."""
        mask, most = memory["mask"], memory["most"]
        removed = most * footprint(rows_y, rows_x)
        return {"mask": mask + (1 - mask) * removed.clamp(max=1), "most": most}


def footprint(rows_y: Tensor, rows_x: Tensor) -> Tensor:
    """Return a read's weight of each cell, [B, L, L], summing to 1; no gradient."""
    y, x = (share(rows.detach().sum(-2)) for rows in (rows_y, rows_x))
    return y[..., :, None] * x[..., None, :]


def share(weights: Tensor) -> Tensor:
    """Return weights >= 0 divided by their sum, [B, L]; zeros for a sum of 0."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
