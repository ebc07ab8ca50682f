"""A bare linear filter over the latent matrix, scale * (position - centre), without a kernel.

A row is a straight line through zero at its centre, divided by max(its sum, 1e-3); the fourth
number of the filter's layer is the slope itself, not a logarithm. A row with a negative sum is
multiplied by 1000 instead of normalised. Reads then reach 1e6, which is too much for the heads of
q: in float32 it diverges at the first step. This is not corrected; the mildest setting we tried,
`grid: centred`, `filter_init: small` and `filter_size: 1`, trained for two epochs on two of four
seeds.

Source: Akoury 2017, `GridAttention` in `glas/model/attention.py`, the base class of the code's
Gaussian and Cauchy filters and a value of its attention option. Only the choice of grid differs.
`floor: logsumexp` is not allowed: rows of either sign have no logarithm.

What the write-up says happened: nothing; the README does not name this filter.
"""

from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from glas_bench.filters import bare_grid_rows
from glas_bench.model import FilterSettings, Glas


class Grid(Glas):
    """GLAS with the bare grid of the original code."""

    figures = ("filter",)

    class Settings(FilterSettings):
        """Those of a filter, with one floor."""

        floor: Literal["1e-3"] = Field("1e-3", description="rows are divided by max(sum, 1e-3)")

        @field_validator("floor", mode="before")
        @classmethod
        def _no_logarithm(cls, value: object) -> object:
            if value == "logsumexp":
                raise ValueError(
                    "this filter's rows are of either sign and have no logarithm; leave it at 1e-3"
                )
            return value

    def kernel_rows(self, centres_BR: Tensor, scale_B: Tensor) -> Tensor:
        return bare_grid_rows(centres_BR, self.settings.latent_size, scale_B)
