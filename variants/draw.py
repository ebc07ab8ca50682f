"""DRAW: Gaussian attention on the image, for reading and writing, and no latent matrix.

Read: two 2x2 patches, of x and of x - sigmoid(o_{t-1}), through one filter made from d_{t-1}, which
belongs to the recogniser. Write: a 5x5 patch from d_t, spread over the canvas by its own filter
with the inverse of its gain, which belongs to p(x|z). q reads e_t directly, as in `no-attention`.

Source: Gregor et al. 2015 (arXiv 1502.04623), sections 2 and 3, equations 19 to 29, whose setting
for MNIST is T = 64, 256 units, z = 100, read 2x2, write 5x5; in the original code
`glas/model/reader.py` and `GaussianAttention` in `glas/model/attention.py`, where attention on the
image is an option that no configuration uses. Unlike DRAW, rows are divided by max(sum, 1e-3)
(`floor`); unlike the code, the grid is `centred` and the gain is not clipped.

What the write-up says happened: early canvases of GLAS look alike, where those of DRAW describe the
whole distribution at every step; it gives no number. DRAW's own, a bound on static MNIST, is 80.97
nats; 87.40 without attention is unverified (`no-attention`).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from glas_bench import filters
from glas_bench.model import LSTM, Context, Linear, Memory, RecurrentSettings, State
from glas_bench.variants.no_attention import NoAttention

Rows = tuple[Tensor, Tensor, Tensor]


class Draw(NoAttention):
    """DRAW with attention."""

    generative = ("decoder", "write", "write_filter")
    write_up = "its early samples describe the whole distribution, those of GLAS look alike"
    figures = ("samples",)
    citations = [  # noqa: RUF012
        {
            "dataset": "mnist-static",
            "nats": 80.97,
            "estimator": "variational bound",
            "split": "test",
            "source": "Chen et al., arXiv 1611.02731",
            "verified": True,
            "bound": True,
            "remark": "quoted there",
            "epochs": None,
        },
        {
            "dataset": "omniglot",
            "nats": 96.50,
            "estimator": "variational bound",
            "split": "test",
            "source": "Chen et al., arXiv 1611.02731",
            "verified": True,
            "bound": True,
            "remark": "quoted there",
            "epochs": None,
        },
    ]

    needs_square = True  # images as high as wide

    class Settings(RecurrentSettings):
        """The two filters, over the image."""

        sample_size: int = Field(100, ge=1, description="Z, size of a sample z_t")
        read_size: int = Field(2, ge=1, le=28, description="side of the patches read")
        write_size: int = Field(5, ge=1, le=28, description="side of the patch written")
        grid: Literal["original", "slip-mended", "centred"] = Field(
            "centred", description="where the kernels sit: DRAW's, or as the original code"
        )
        floor: Literal["1e-3", "logsumexp"] = Field(
            "1e-3", description="rows are divided by max(their sum, 1e-3), or normalised exactly"
        )
        filter_init: Literal["glorot", "small"] = Field(
            "glorot", description="weights of the filters' layers: Glorot, or Glorot x 0.01"
        )

    def build_recognition(self) -> None:
        self.side = math.isqrt(self.pixels)
        if self.side**2 != self.pixels:
            raise ValueError(f"draw needs square images; {self.pixels} pixels are no square")
        hidden = self.settings.hidden
        self.encoder = LSTM(hidden, read=2 * self.settings.read_size**2, decoder=hidden)
        self.read_filter = self.filter_layer()
        self.mean = Linear(hidden, self.sample_size)
        self.log_std = Linear(hidden, self.sample_size)

    def build_generation(self) -> None:
        hidden = self.settings.hidden
        self.decoder = LSTM(hidden, input=self.decoder_input_size)
        self.write = Linear(hidden, self.settings.write_size**2)
        self.write_filter = self.filter_layer()

    def filter_layer(self) -> Linear:
        """Return a layer that gives a filter's five numbers (equation 21)."""
        small = self.settings.filter_init == "small"
        return Linear(self.settings.hidden, 5, 0.01 if small else 1.0)

    def image_rows(self, numbers_B5: Tensor, filter_size: int) -> Rows:
        """Return F_y and F_x over the image, [B, R, side] each, and log_gain [B]."""
        g_x, g_y, log_stride, log_variance, log_gain = numbers_B5.unbind(-1)

        offsets_2B = torch.stack([g_y, g_x])
        centres = filters.grid_centres(
            filter_size, self.side, offsets_2B, log_stride, self.settings.grid
        )
        kernel = filters.gaussian_log_kernel(centres, self.side, log_variance)
        rows_y, rows_x = filters.normalise_rows(kernel, self.settings.floor).unbind()
        return rows_y, rows_x, log_gain

    def products(self, x: Tensor) -> Memory:
        return {}

    def encode(self, context: Context, state: State) -> tuple[Tensor, Tensor]:
        d_BH = state.generation.hidden
        seen = self.image_rows(self.read_filter(d_BH), self.settings.read_size)
        error = self.error_image(context, state)
        patches = [
            filters.read_matrix(image.view(-1, self.side, self.side), *seen)
            for image in (context.x, error)
        ]
        gates = self.encoder.gates(
            self.encoder.bias,
            read=torch.cat(patches, -1),
            decoder=d_BH,
            hidden=state.recognition.hidden,
        )
        hidden, cell = self.encoder(gates, state.recognition.cell)
        return hidden, cell

    def paint(self, d_BH: Tensor) -> Tensor:
        size = self.settings.write_size
        rows_y, rows_x, log_gain = self.image_rows(self.write_filter(d_BH), size)
        patch = self.write(d_BH).view(-1, size, size)
        return filters.read_matrix(patch, rows_y.mT, rows_x.mT, -log_gain)
