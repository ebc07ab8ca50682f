"""The published model as an eager loop on made-up images: what `bench` compares the core with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glas_bench.config import RunConfig
from glas_bench.core import streams
from glas_bench.core.train import CLIP_NORM
from glas_bench.data import Split, Splits
from glas_bench.ops.programs import Program

PIXELS, CLASSES = 784, 10

BATCHES = 8
"""Batches of made-up images that a bench trains on."""


def made_up(batch: int, batches: int = BATCHES) -> Splits:
    """Return random binary images, enough for `batches` of an epoch."""
    generator = streams.generator(0, "bench")
    count = batches * batch
    images = (torch.rand(count, PIXELS, generator=generator) < 0.13).to(torch.uint8)
    split = Split(images, torch.arange(count) % CLASSES, None)
    few = Split(images[:2], torch.arange(2), None)
    return Splits(
        name="mnist-5k",
        binarisation="static",
        origin="made up",
        hash="0" * 64,
        classes=CLASSES,
        pixels=PIXELS,
        image_shape=(28, 28),
        train=split,
        validation=few,
        test=few,
    )


class Loop(nn.Module):
    """The published model of a cell's sizes as an eager loop, with torch's own optimiser.

    With `once` the product of x is computed once, and all other inputs of an LSTM make one product;
    else all inputs are concatenated and multiplied at every step, one product for the input and one
    for the hidden state, as `nn.LSTMCell` does.
    """

    def __init__(self, resolved: RunConfig, device: str, once: bool) -> None:
        super().__init__()
        sizes = resolved.settings
        self.steps, self.latents = sizes["steps"], sizes["sample_size"]
        self.hidden = hidden = sizes["hidden"]
        self.side, self.reads = sizes["latent_size"], sizes["filter_size"]
        self.precision, self.batch, self.once = resolved.precision, resolved.batch, once
        if once:
            self.from_x = nn.Linear(PIXELS, 4 * hidden)
            self.encoder: nn.Module = nn.Linear(PIXELS + 2 * hidden, 4 * hidden, bias=False)
            self.decoder: nn.Module = nn.Linear(self.latents + hidden, 4 * hidden)
        else:
            self.encoder = nn.LSTMCell(2 * PIXELS + hidden, hidden)
            self.decoder = nn.LSTMCell(self.latents, hidden)
        self.filter = nn.Linear(hidden, 5)
        self.matrix = nn.Parameter(torch.rand(self.side, self.side) * 1e-3)
        self.mean = nn.Linear(self.reads**2, self.latents)
        self.log_std = nn.Linear(self.reads**2, self.latents)
        self.write = nn.Linear(hidden, PIXELS)
        self.to(device)
        self.adam = torch.optim.Adam(self.parameters(), lr=1e-3, capturable=device != "cpu")
        self.images = made_up(self.batch).train.images.to(device)
        self.take: Callable[[Tensor], None] = self.train_on
        self.taken = 0

    def capture(self, tell: Callable[[str], None]) -> None:
        """Let further steps replay one CUDA graph; `tell` is called where there is none."""
        device, ways = self.images.device, ["captured uncompiled", "eager"]
        train_on = self.train_on
        self.take = Program(lambda compiled: train_on, device, tell=tell, ways=ways)

    def step(self) -> None:
        """Train on one batch."""
        start = self.taken % BATCHES * self.batch
        self.take(self.images[start : start + self.batch])
        self.taken += 1

    def train_on(self, images: Tensor) -> None:
        """Take a step on images [B, P]; nothing in it waits for the device."""
        x = images.float()
        self.adam.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(x)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters():
            nn.utils.clip_grad_norm_([parameter], CLIP_NORM)
        self.adam.step()

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean over the batch of -log p(x|z) + KL, nats."""
        zeros = x.new_zeros(len(x), self.hidden)
        encoder, decoder = (zeros, zeros), (zeros, zeros)
        canvas, divergence = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        fixed = self.from_x(x) if self.once else None
        for _ in range(self.steps):
            error = x - torch.sigmoid(canvas)
            if fixed is not None:
                seen = torch.cat([error, decoder[0], encoder[0]], 1)
                encoder = _gated(fixed + self.encoder(seen), encoder[1])
            else:
                encoder = self.encoder(torch.cat([x, error, decoder[0]], 1), encoder)
            read = self.attend(encoder[0])
            mean, log_std = self.mean(read), self.log_std(read)
            z = mean + log_std.exp() * torch.randn_like(mean)
            kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std
            divergence = divergence + kl.sum(1)
            if fixed is not None:
                decoder = _gated(self.decoder(torch.cat([z, decoder[0]], 1)), decoder[1])
            else:
                decoder = self.decoder(z, decoder)
            canvas = canvas + self.write(decoder[0])
        missed = F.binary_cross_entropy_with_logits(canvas, x, reduction="none").sum(1)
        return (missed + divergence).mean()

    def attend(self, hidden: Tensor) -> Tensor:
        """Read the latent matrix through a Cauchy filter, [B, R * R]."""
        g_x, g_y, log_stride, log_scale, log_gain = self.filter(hidden).float().unbind(1)
        rows_y, rows_x = (self.rows(g, log_stride, log_scale) for g in (g_y, g_x))
        patch = rows_y @ self.matrix @ rows_x.mT
        read: Tensor = log_gain.exp()[:, None] * patch.flatten(1)
        return read

    def rows(self, offset: Tensor, log_stride: Tensor, log_scale: Tensor) -> Tensor:
        """Return the rows of one axis, [B, R, L]."""
        centre = (self.side + 1) / 2 * (offset + 1)
        stride = (self.side - 1 / max(self.reads - 1, 1)) * log_stride.exp()
        grid = torch.arange(self.reads, device=offset.device) - (self.reads + 1) / 2
        centres = centre[:, None] + grid * stride[:, None]
        away = torch.arange(self.side, device=offset.device) - centres[:, :, None]
        scale = log_scale.exp()[:, None, None]
        kernel = 1 / (math.pi * scale * (1 + (away / scale) ** 2))
        normalised: Tensor = kernel / kernel.sum(2, keepdim=True).clamp(min=1e-3)
        return normalised


def _gated(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    enter, forget, candidate, leave = gates.chunk(4, 1)
    cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell
