"""Addressing by content: the cosine of a key with the rows of the latent matrix, through a softmax.

a_t = vec(w_t * rows), the rows normalised to length 1, w_t = softmax(strength * cos(key, row_l));
key [L] and strength are two linear layers of e_t.

Source: Akoury 2017, README, the paragraph on attention, and `ContentAttention` in
`glas/model/attention.py`; Graves et al. 2014 (Neural Turing Machines, arXiv 1410.5401), section
3.3.1. As in the code, and unlike that paper, the strength has either sign and the read is all
weighted rows, not their sum. Only the directions of rows matter, so reads are the same at the start
for `latent_init` 1e-3, 0.1 and 1; what differs is how fast training turns a row.

What the write-up says happened: like every attention tried but the Cauchy filter, it optimised the
cost poorly.
"""

from torch import Tensor

from glas_bench.filters import content_read, content_weights
from glas_bench.model import Glas, LatentSettings, Linear, Memory


class Content(Glas):
    """GLAS with the content addressing of a Neural Turing Machine."""

    Settings = LatentSettings
    write_up = "poor optimisation of the cost, where the Cauchy filter did better"

    def build_attention(self) -> int:
        self.build_latent()
        size = int(self.settings.latent_size)
        self.key = Linear(self.settings.hidden, size)
        self.strength = Linear(self.settings.hidden, 1)
        return size**2

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        strength = self.strength(e_BH).squeeze(-1)
        return content_read(self.latent, self.key(e_BH), strength), memory

    def gate_weights(self, e_BH: Tensor) -> Tensor:
        strength = self.strength(e_BH).squeeze(-1)
        weights_BL = content_weights(self.latent, self.key(e_BH), strength)
        return weights_BL.repeat_interleave(self.latent.shape[-1], dim=-1)
