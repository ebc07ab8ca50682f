"""Hamiltonian moves of many chains at once, for annealed importance sampling.

Neal 2011, "MCMC using Hamiltonian dynamics", with the kinetic energy of N(0, I). Each move's step
is multiplied by U(.6, 1.2), without which trajectories resonate. Where log p(x|z) or its gradient
is not finite it counts as -inf with a gradient of zero: a move that ends there is rejected, and the
moves stay exact (any field of z alone may push a trajectory). Nothing here waits for the device.

C chains, B images, D latents. Values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glas_bench.core import streams

LogLikelihood = Callable[[Tensor], Tensor]  # z [C, B, D] -> log p(x|z) [C, B], differentiable


class Noise:
    """Standard normals by (seed, purpose, image, block, position), the same on every device.

    An image's numbers depend neither on the images beside it nor on what was drawn before; the
    first chains of many are the chains of few.
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        index: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.keys_B = streams.keys(seed, f"ais-{purpose}", index).to(device)

    def __call__(self, rows: int, columns: int, block: Tensor | int) -> Tensor:
        """Return [rows, B, columns]."""
        flat = streams.normals(self.keys_B, rows * columns, block).to(self.dtype)
        return flat.view(-1, rows, columns).transpose(0, 1).contiguous()


def value_and_slope(log_likelihood: LogLikelihood, z_CBD: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) [C, B] and its gradient [C, B, D], both without a graph.

    Raises:
        ValueError: the value has another shape.
    """
    with torch.enable_grad():
        z_CBD = z_CBD.detach().requires_grad_()
        value_CB = log_likelihood(z_CBD)
        if value_CB.shape != z_CBD.shape[:2]:
            raise ValueError(
                f"log_likelihood must return [chains, batch] = {list(z_CBD.shape[:2])}, "
                f"got {list(value_CB.shape)}"
            )
        slope = None
        if value_CB.requires_grad:
            (slope,) = torch.autograd.grad(value_CB.sum(), z_CBD, allow_unused=True)
    return value_CB.detach(), torch.zeros_like(z_CBD) if slope is None else slope


@dataclass
class Walkers:
    """The chains' places, with log p(x|z) and its gradient there.

    A method `value_and_slope` of the log likelihood takes precedence over autograd.
    """

    log_likelihood: LogLikelihood
    z_CBD: Tensor
    value_CB: Tensor = field(init=False)  # float64
    slope_CBD: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.value_CB, self.slope_CBD = self.look(self.z_CBD)

    def look(self, z_CBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and its gradient, or -inf and 0 where either is not finite."""
        own = getattr(self.log_likelihood, "value_and_slope", None)
        value_CB, slope_CBD = own(z_CBD) if own else value_and_slope(self.log_likelihood, z_CBD)
        value_CB = value_CB.double()
        sound_CB = value_CB.isfinite() & slope_CBD.isfinite().all(-1)
        return value_CB.where(sound_CB, -torch.inf), slope_CBD.where(sound_CB[..., None], 0)

    def move(self, beta: float, step_B: Tensor, noise_CBX: Tensor, leapfrog: int) -> Tensor:
        """Make one move at p(z) p(x|z)^beta; return its acceptance probability [C, B].

        Args:
            beta: inverse temperature.
            step_B: step size of each image.
            noise_CBX: standard normals, X = D + 2: momenta, acceptance, jitter.
            leapfrog: gradients along the trajectory.
        """
        D = self.z_CBD.shape[-1]
        start_CBD = momentum_CBD = noise_CBX[..., :D]
        log_u_CB = torch.special.log_ndtr(noise_CBX[..., D].double())
        jitter_CB = 0.6 + 0.6 * torch.special.ndtr(noise_CBX[..., D + 1])
        step_CB1 = (step_B * jitter_CB)[..., None]

        z_CBD, slope_CBD = self.z_CBD, self.slope_CBD
        momentum_CBD = momentum_CBD + step_CB1 / 2 * (beta * slope_CBD - z_CBD)
        for i in range(leapfrog):
            z_CBD = z_CBD + step_CB1 * momentum_CBD
            value_CB, slope_CBD = self.look(z_CBD)
            last = step_CB1 / 2 if i == leapfrog - 1 else step_CB1
            momentum_CBD = momentum_CBD + last * (beta * slope_CBD - z_CBD)

        change_CB = beta * (value_CB - self.value_CB) if beta > 0 else torch.zeros_like(value_CB)
        change_CB = change_CB + _half_square(self.z_CBD) + _half_square(start_CBD)
        change_CB = change_CB - _half_square(z_CBD) - _half_square(momentum_CBD)
        sound_CB = value_CB.isfinite() & ~change_CB.isnan()
        chance_CB = change_CB.clamp(max=0).exp().where(sound_CB, 0)
        taken_CB = log_u_CB < chance_CB.log()
        self.z_CBD = torch.where(taken_CB[..., None], z_CBD, self.z_CBD)
        self.slope_CBD = torch.where(taken_CB[..., None], slope_CBD, self.slope_CBD)
        self.value_CB = torch.where(taken_CB, value_CB, self.value_CB)
        return chance_CB


def _half_square(a_CBD: Tensor) -> Tensor:
    return a_CBD.double().square().sum(-1) / 2
