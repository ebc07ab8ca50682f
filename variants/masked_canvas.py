"""A canvas of T * Z latents, filled Z cells at a time and fixed once filled (approach 1).

Step t draws z_t as ever, charges it once, and puts it into cells that no other step touches; the
decoder reads the whole canvas at every step, cells not filled yet being 0. At 64 x 25 the canvas
is a 40 x 40 matrix in 5 x 5 blocks: step t (from 0) fills the block in block row t // 8 and block
column t % 8, the block row by row. The decoder is dense, so how blocks lie is a matter of drawing
alone; the canvas is kept as [T, Z].

Source: Akoury 2017, README, unsuccessful approach 1, in the reading in which the portion used is
fixed and later steps optimise what is left; see `masked-progressive` for the other. It is in no
commit of the original code: this is designed from its prose. The price of it is (T - 1) * Z * 4H
more decoder weights than the control has (1.6 million at the published size).

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
