"""A latent matrix that is never trained (approach 2).

The matrix is drawn once from `latent_init` and stays a buffer.

Source: Akoury 2017, README, unsuccessful approach 2. The original code has no such option (its
matrix is always trained and starts as U(0, 1e-3)); this design follows the README's prose. Rows of
a filter are weighted means, so reads of a frozen U(0, 1e-3) matrix hardly differ: the scale is a
setting because the failure in the write-up may depend on it.

What the write-up says happened: sometimes it is impossible to reconstruct, unless the filter is 1x1
or 2x2.
"""

from glas_bench.model import Glas


class FixedRandom(Glas):
    """GLAS over a frozen random matrix."""

    latent_trained = False
    write_up = "sometimes could not reconstruct, unless the filter was 1x1 or 2x2"
