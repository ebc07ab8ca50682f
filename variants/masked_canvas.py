"""A canvas of T * Z latents, filled Z cells at a time and fixed once filled (approach 1).

Step t draws z_t as usual, charges it once, and writes it into cells of its own; the decoder reads
the whole canvas at every step, and cells that are not filled yet are 0. At 64 x 25 the canvas is a
40 x 40 matrix in 5 x 5 blocks: step t (from 0) fills the block in block row t // 8 and block column
t % 8, the block row by row. The decoder is dense, so the position of blocks matters only for
pictures; the canvas is stored as [T, Z].

Source: Akoury 2017, README, unsuccessful approach 1, read as: the used portion is fixed and later
steps optimise the rest; `masked-progressive` is the other reading. It is in no commit of the
original code: this design follows its prose. It has (T - 1) * Z * 4H more decoder weights than the
control (1.6 million at the published size).

What the write-up says happened: a mask makes the model much harder to optimise.
"""

import torch
from torch import Tensor

from glas_bench.model import Generation, Glas, Memory


class MaskedCanvas(Glas):
    """GLAS whose decoder reads a canvas of latents that fills up."""

    write_up = "using a mask significantly reduced the ability to optimise the model"

    @property
    def decoder_input_size(self) -> int:
        return self.steps * self.sample_size

    def begin_generation(self, rows: int) -> Generation:
        start = super().begin_generation(rows)
        empty = start.canvas.new_zeros(rows, self.steps, self.sample_size)
        return start._replace(memory={"latents": empty})

    def decoder_input(
        self, generation: Generation, z_BZ: Tensor, t: Tensor
    ) -> tuple[Tensor, Memory]:
        now_T1 = (torch.arange(self.steps, device=t.device) == t).to(z_BZ.dtype)[:, None]
        latents_BTZ = generation.memory["latents"] + now_T1 * z_BZ[:, None, :]
        return latents_BTZ.flatten(1), {"latents": latents_BTZ}
