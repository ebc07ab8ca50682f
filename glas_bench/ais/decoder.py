"""p(x|z) of a model as a function of standard-normal noise alone.

The prior makes the latents of the noise: eps itself under N(0, I), Phi(eps) under a uniform prior.
p(x) is the same, and one sampler serves every variant. The recogniser has no influence.

C chains, B images, R = C * B rows, P pixels, T steps, Z size of a sample, D = T * Z.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glas_bench.ais import hmc
from glas_bench.ais.annealing import Annealing
from glas_bench.ais.hmc import LogLikelihood
from glas_bench.core import rollout
from glas_bench.model import Glas
from glas_bench.ops import programs

ROWS = {"cpu": 640, "cuda": 8192}
"""Rows (chains x images) that are walked at once at most; on a CPU more rows are no faster."""

MEMORY_ON_CPU = 2**30
"""Bytes that a gradient may keep on a CPU; on a GPU it may keep a quarter of the device."""


@dataclass(frozen=True, eq=False)
class DecoderLikelihood:
    """log p(x|z) of images x [B, P] as a function of noise [C, B, T * Z].

    Args:
        model: whose generative half it is.
        x_BP: the images.
        gradients: by shape of the noise, the programs that give value and gradient; shared by
            the chunks of a run.
        sums: whether the canvas is one sum over time, see `rollout.canvas_is_a_sum`.
        tell: called with a message when a program falls back to a slower way.
        ways: what is tried; by default `programs.ways_on` the device.
    """

    model: Glas
    x_BP: Tensor
    gradients: dict[torch.Size, programs.Program]
    sums: bool
    tell: Callable[[str], None]
    ways: Sequence[str] | None

    def __call__(self, noise_CBD: Tensor) -> Tensor:
        """Return log p(x|z), [C, B] nats; differentiable."""
        return self._of(self.x_BP, noise_CBD)

    def value_and_slope(self, noise_CBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and its gradient; overwritten by the next call on a GPU."""
        if noise_CBD.shape not in self.gradients:
            self.gradients[noise_CBD.shape] = programs.Program(
                self._build, noise_CBD.device, tell=self.tell, ways=self.ways
            )
        value_CB, slope_CBD = self.gradients[noise_CBD.shape](self.x_BP, noise_CBD)
        return value_CB, slope_CBD

    def _build(self, compile_step: bool) -> programs.Function:
        own = self.model.decode if self.sums else self.model.generate
        step = programs.compiled_tree(own, compile_step)
        return lambda x, noise: hmc.value_and_slope(
            functools.partial(self._of, x, step=step), noise
        )

    def _of(self, x_BP: Tensor, noise_CBD: Tensor, step: rollout.Decode | None = None) -> Tensor:
        C, B, _ = noise_CBD.shape
        target = x_BP.expand(C, -1, -1).reshape(C * B, -1)
        paint = rollout.summed_canvas if self.sums else rollout.generate
        canvas_RP = paint(self.model, latents(self.model, noise_CBD), step=step)
        return self.model.log_likelihood(canvas_RP, target).view(C, B)


def log_likelihood_for(
    model: Glas,
    tell: Callable[[str], None] = lambda message: None,
    ways: Sequence[str] | None = None,
) -> Callable[[Tensor], LogLikelihood]:
    """Return the map from images x [B, P] to log p(x|z) as a function of noise [C, B, T * Z].

    `tell` and `ways` are those of `DecoderLikelihood`.
    """
    gradients: dict[torch.Size, programs.Program] = {}
    sums = rollout.canvas_is_a_sum(model)
    return lambda x_BP: DecoderLikelihood(model, x_BP, gradients, sums, tell, ways)


def latents(model: Glas, noise_CBD: Tensor) -> Tensor:
    """Return the latents [T, C * B, Z] of noise [C, B, T * Z]."""
    noise_TRZ = noise_CBD.reshape(-1, model.steps, model.noise_size).transpose(0, 1)
    return rollout.sample_prior(model, noise_TRZ)


def simulates(model: Glas) -> bool:
    """Return whether the model's `draw_pixels` belongs to its `log_likelihood`."""

    def owner(name: str) -> type:
        return next(base for base in type(model).__mro__ if name in vars(base))

    return issubclass(owner("draw_pixels"), owner("log_likelihood"))


def images_at_once(model: Glas, x_1P: Tensor, how: Annealing) -> int:
    """Return how many images fit into memory, from what one image's gradient keeps."""
    device = x_1P.device
    shape = (how.chains, 1, model.steps * model.noise_size)
    noise = torch.zeros(shape, device=device).requires_grad_()
    _, kept = programs.bytes_kept(lambda: log_likelihood_for(model)(x_1P)(noise))
    bytes_an_image = max(1, kept)
    room = MEMORY_ON_CPU
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // 4
    most = ROWS.get(device.type, ROWS["cpu"]) // how.chains
    return max(1, min(most, room // bytes_an_image))
