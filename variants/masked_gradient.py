"""A mask under which cells that were read earlier are not trained further (approach 1).

M_t is that of `masked-progressive`; the read is that of the published model, and the gradient of
each cell of the latent matrix is multiplied by 1 - M_{t-1}: a_t = A(e_t, L) in value, and
dL = (1 - M_{t-1}) * dA/dL at step t. No gradient flows through M.

Source: Akoury 2017, README, unsuccessful approach 1. It is in no commit of the original code: this
design follows its prose, read as: a used portion is no longer optimised. `masked-progressive`
removes it, `masked-canvas` fixes it. Reads are unchanged, so only training differs from the
published model.

What the write-up says happened: a mask makes the model much harder to optimise.
"""

from torch import Tensor

from glas_bench.filters import read_matrix
from glas_bench.model import Memory
from glas_bench.variants.masked_progressive import MaskedProgressive


class MaskedGradient(MaskedProgressive):
    """GLAS over a latent matrix whose cells are trained until they have been read."""

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        fixed = self.latent.detach()
        matrix = fixed + (1 - memory["mask"]) * (self.latent - fixed)
        rows_y, rows_x, log_gain = self.filter_rows(e_BH)
        return read_matrix(matrix, rows_y, rows_x, log_gain), self.used(memory, rows_y, rows_x)
