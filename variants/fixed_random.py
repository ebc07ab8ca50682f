"""A latent matrix that is never trained (approach 2).

The matrix is drawn once from `latent_init` and stays a buffer.

Source: Akoury 2017, README, unsuccessful approach 2. It is no option of the original code, where
the matrix is always trainable and starts as U(0, 1e-3): this is designed from the README's prose.
Rows of a filter are weighted means, so a frozen U(0, 1e-3) matrix gives reads that hardly differ:
the scale is a parameter because the write-up's failure is entangled with it.

What the write-up says happened: sometimes it is not possible to reconstruct at all, unless the
filter is 1x1 or 2x2.
"""

from glas_bench.model import Glas


class FixedRandom(Glas):
    """GLAS over a frozen random matrix."""

    latent_trained = False
    write_up = "sometimes could not reconstruct, unless the filter was 1x1 or 2x2"
