"""The walk of annealed importance sampling, and the pilot run that sets its steps.

Temperatures lie on a sigmoid from -4 to 4, as in Wu, Burda, Salakhutdinov & Grosse 2017
(arXiv:1611.04273). They adapt the step size on the way, at the cost of unbiased weights; here a
pilot run adapts one step size per image and stretch of the schedule, which the walks use unchanged.

They aim at an acceptance of .65, we at .9, which leaves less bias at equal cost (16 chains, ten
leapfrog steps, 64 images of a linear-Gaussian decoder with 64 latents; nats below log p(x), +-):

    target                         .65        .8         .9         .95
    30 soft directions, N = 100    .58 (.11)  .48 (.12)  .25 (.09)  .24 (.07)
    10 stiff directions, N = 100   2.99 (.23) 1.87 (.20) 1.74 (.20) 1.28 (.15)
    10 stiff directions, N = 300   .84 (.13)  .51 (.10)  .33 (.10)  .27 (.08)
    the same with 1,600 latents, N = 100, 12 images
                                   3.2 (.7)   1.7 (.5)   1.3 (.3)   .9 (.4)

On a trained `cauchy` (T = 8, N = 100) .9 takes the chains' spread from 1.75 to 1.16 nats, .95 no
further. Where the likelihood is cut off (-inf) .65 is better; no decoder here does that.

C chains, B images, D latents, N moves, K stretches of the schedule. All values are in nats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glas_bench.ais.hmc import LogLikelihood, Noise, Walkers

LEAST_STEP, FIRST_STEP, MOST_STEP = 1e-4, 0.1, 0.5
WARM_UP = 24  # adapting moves at the prior, before the pilot's walk
STRETCHES = 16
FEW = 30  # effective chains below which their weights alone understate the error


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How a walk is made."""

    chains: int = 16
    temperatures: int = 1000
    """Steps of beta from 0 to 1; with 1 it is importance sampling from the prior."""
    leapfrog: int = 10
    """Gradients a move."""
    seed: int = 0
    pilot: int = 100
    """Temperatures of the pilot run; 200 and 400 gave no other bias, 32 a larger one."""
    acceptance: float = 0.9
    """What the pilot run adapts towards."""
    chunk: int | None = None
    """Images at a time; by default all."""
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("chains", "temperatures", "leapfrog", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.pilot < STRETCHES:
            raise ValueError(f"pilot must be at least {STRETCHES}, got {self.pilot}")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance must lie between 0 and 1, got {self.acceptance}")

    def noise(self, purpose: str, index: Sequence[int]) -> Noise:
        """Return the images' noise for a purpose, on the device (by default torch's)."""
        device = torch.get_default_device() if self.device is None else torch.device(self.device)
        return Noise(self.seed, purpose, index, device, self.dtype or torch.get_default_dtype())

    def slices(self, images: int) -> list[slice]:
        """Return the chunks of this number of images."""
        if images < 1:
            raise ValueError("there must be at least one image")
        size = self.chunk or images
        return [slice(i, min(i + size, images)) for i in range(0, images, size)]

    def moves(self, walks: int, *, pilot: bool) -> int:
        """Return the moves that a chunk takes."""
        return walks * (self.temperatures - 1) + pilot * (WARM_UP + self.pilot)


@dataclass(frozen=True)
class AISResult:
    """Estimates of log p(x), and the walks that gave them."""

    log_p_B: Tensor
    """Float64; below log p(x) on average, or above it on a walk back."""
    error_B: Tensor
    """Its standard error, see `log_mean_weight`; too small on a walk back, whose chains share their
    start: judge that by images and the gap."""
    log_w_CB: Tensor
    """Float64 log-weights of the chains."""
    spread_B: Tensor
    """Their standard deviation over the chains; 0 with one chain."""
    acceptance_B: Tensor
    """Mean acceptance of the moves."""
    step_size_KB: Tensor
    """The frozen step sizes, along the schedule from the prior to the posterior."""


def joined(parts: Sequence[AISResult]) -> AISResult:
    """Join the results of consecutive chunks of images."""
    names = [f.name for f in dataclasses.fields(AISResult)]
    return AISResult(*(torch.cat([getattr(part, n) for part in parts], -1) for n in names))


def schedule(temperatures: int) -> list[float]:
    """Return beta from exactly 0 to exactly 1 on a sigmoid from -4 to 4."""
    raw = [1 / (1 + math.exp(-4.0 * (2 * i / temperatures - 1))) for i in range(temperatures + 1)]
    return [0.0, *((b - raw[0]) / (raw[-1] - raw[0]) for b in raw[1:-1]), 1.0]


def mean_and_error(values_B: Tensor) -> tuple[float, float]:
    """Return the mean over images and its standard error; infinite with one image."""
    n = len(values_B)
    error = float(values_B.std()) / math.sqrt(n) if n > 1 else math.inf
    return float(values_B.mean()), error


# --------------------------------------------------------------------------- pilot and walk


class Course:
    """A sequence of moves of one chunk's chains; it can stop and continue after any of them.

    An image's numbers do not depend on the images beside it, but for rounding.

    Args:
        log_likelihood: of the chunk's images.
        latent_size: D.
        how: the moves.
        noise: the images' noise; block 0 places the chains and block i is move i's.
        moves: how many there are.
        start_CBD: where the chains start; by default at draws from the prior.
    """

    kept: tuple[str, ...] = ()
    """Names of the tensors of the state, besides the chains' places."""

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        latent_size: int,
        how: Annealing,
        noise: Noise,
        moves: int,
        start_CBD: Tensor | None = None,
    ) -> None:
        self.how = how
        self.noise = noise
        self.moves = moves
        self.done = 0
        if start_CBD is None:
            start_CBD = noise(how.chains, latent_size, 0)
        self.walkers = Walkers(log_likelihood, start_CBD)
        self.blocks = torch.arange(moves + 1, device=noise.device)

    @property
    def finished(self) -> bool:
        """Whether all moves are made."""
        return self.done >= self.moves

    def advance(self) -> None:
        """Make the next move."""
        raise NotImplementedError

    def outcome(self) -> dict[str, Tensor]:
        """Return the results of a finished course, by name."""
        raise NotImplementedError

    def move(self, beta: float, step_B: Tensor) -> Tensor:
        """Move all chains at p(z) p(x|z)^beta; return their acceptance probability [C, B]."""
        self.done += 1
        C, _, D = self.walkers.z_CBD.shape
        noise_CBX = self.noise(C, D + 2, self.blocks[self.done])
        return self.walkers.move(beta, step_B, noise_CBX, self.how.leapfrog)

    def state(self) -> dict[str, Tensor]:
        """Return what the course needs to continue."""
        own = {name: getattr(self, name) for name in self.kept}
        return {"done": torch.tensor(self.done), "z_CBD": self.walkers.z_CBD, **own}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of the same images, settings and noise."""
        self.done = int(state["done"])
        z_CBD = state["z_CBD"].to(self.noise.device, self.noise.dtype)
        self.walkers = Walkers(self.walkers.log_likelihood, z_CBD)
        for name in self.kept:
            setattr(self, name, state[name].to(self.noise.device))


class Pilot(Course):
    """A short walk that adapts its step sizes, which the walks then use as they are."""

    kept = ("log_step_B", "path_NB")

    def __init__(
        self, log_likelihood: LogLikelihood, latent_size: int, how: Annealing, index: Sequence[int]
    ) -> None:
        moves = how.moves(0, pilot=True)
        super().__init__(log_likelihood, latent_size, how, how.noise("pilot", index), moves)
        self.betas = [0.0] * WARM_UP + schedule(how.pilot)[1:]
        like = {"dtype": torch.float64, "device": self.noise.device}
        self.log_step_B = torch.full((len(index),), math.log(FIRST_STEP), **like)  # type: ignore[call-overload]
        self.path_NB = torch.zeros(moves, len(index), **like)  # type: ignore[call-overload]

    def advance(self) -> None:
        alive_CB = self.walkers.value_CB.isfinite()
        step_B = self.log_step_B.exp().to(self.noise.dtype)
        chance_CB = self.move(self.betas[self.done], step_B)
        excess_CB = (chance_CB - self.how.acceptance).where(alive_CB, 0)
        rate = 0.5 if self.done <= WARM_UP else 0.25
        change_B = rate * excess_CB.sum(0) / alive_CB.sum(0).clamp(min=1)
        least, most = math.log(LEAST_STEP), math.log(MOST_STEP)
        self.log_step_B = (self.log_step_B + change_B).clamp(least, most)
        self.path_NB[self.done - 1] = self.log_step_B

    def outcome(self) -> dict[str, Tensor]:
        """Return the mean step size of each stretch, [K, B]."""
        stretches = self.path_NB[WARM_UP:].tensor_split(STRETCHES)
        step_KB = torch.stack([s_NB.mean(0) for s_NB in stretches]).exp().to(self.noise.dtype)
        return {"step_size_KB": step_KB}


class Walk(Course):
    """A walk from the prior to the posterior, or back from a posterior sample `start_BD`.

    Both ways visit the same points in opposite order: a weight over [beta_{t-1}, beta_t], then a
    move at the end that the walk comes to.

    Raises:
        ValueError: log p(x|z) is not finite at the z that an image was drawn from.
    """

    kept = ("log_w_CB", "chance_B")

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        latent_size: int,
        how: Annealing,
        index: Sequence[int],
        step_size_KB: Tensor,
        start_BD: Tensor | None = None,
    ) -> None:
        self.back = start_BD is not None
        N = how.temperatures
        # Walks of different length are independent, so that their agreement says something.
        noise = how.noise(f"{'back' if self.back else 'forth'}-{N}", index)
        start_CBD = None
        if start_BD is not None:
            start_CBD = start_BD.to(noise.device, noise.dtype).expand(how.chains, -1, -1)
        super().__init__(log_likelihood, latent_size, how, noise, N - 1, start_CBD)
        if self.back and not bool(self.walkers.value_CB.isfinite().all()):
            raise ValueError("log p(x|z) is not finite at the z that an image was drawn from")
        self.betas = schedule(N)
        self.step_size_KB = step_size_KB.to(noise.device, noise.dtype)
        self.log_w_CB = torch.zeros_like(self.walkers.value_CB)
        self.chance_B = torch.zeros_like(self.log_w_CB[0])
        self._weigh(N if self.back else 1)

    def advance(self) -> None:
        N = self.how.temperatures
        arrival = N - self.done - 1 if self.back else self.done + 1
        chance_CB = self.move(self.betas[arrival], step_at(self.step_size_KB, arrival / N))
        self.chance_B = self.chance_B + chance_CB.mean(0)
        self._weigh(arrival if self.back else arrival + 1)

    def _weigh(self, t: int) -> None:
        """Add the weight over [beta_{t-1}, beta_t]."""
        change = self.betas[t] - self.betas[t - 1]
        self.log_w_CB = self.log_w_CB + change * self.walkers.value_CB

    def outcome(self) -> dict[str, Tensor]:
        """Return the fields of an `AISResult`."""
        # Going back the mean of the inverse weights estimates 1 / p(x).
        sign = -1 if self.back else 1
        log_mean_B, error_B = log_mean_weight(sign * self.log_w_CB)
        return {
            "log_p_B": sign * log_mean_B,
            "error_B": error_B,
            "log_w_CB": self.log_w_CB,
            "spread_B": self.log_w_CB.std(0, correction=min(1, self.how.chains - 1)),
            "acceptance_B": self.chance_B / max(1, self.moves),
            "step_size_KB": self.step_size_KB,
        }


def step_at(step_size_KB: Tensor, share: float) -> Tensor:
    """Return the step sizes at a share of the schedule, between the stretches' middles."""
    last = len(step_size_KB) - 1
    place = min(max(share * (last + 1) - 0.5, 0.0), float(last))
    k = min(int(place), last - 1)
    return step_size_KB[k].lerp(step_size_KB[k + 1], place - k)


def log_mean_weight(log_w_CB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the mean weight over chains and its standard error.

    The error is infinite with one chain. With few effective chains the spread of the weights is too
    small: the largest weight may not have been drawn. There the error is that of a mean of
    log-normal weights, matched in its moments (Fenton 1960): ln(1 + (exp(s^2) - 1) / C) for its
    square, s the chains' spread. Of 16 simulated log-normal weights it is .94 to 1.40 times the
    true error for spreads up to 4 nats, where the weights' own falls from .99 to .19 of it.
    """
    C = len(log_w_CB)
    log_mean_B = log_w_CB.logsumexp(0) - math.log(C)
    if C == 1:
        return log_mean_B, torch.full_like(log_mean_B, torch.inf)
    w_CB = (log_w_CB - log_mean_B).exp()  # mean 1
    error_B = w_CB.std(0) / math.sqrt(C)
    effective_B = C / w_CB.square().mean(0)
    error_B = torch.where(effective_B < FEW, torch.maximum(error_B, _log_normal(log_w_CB)), error_B)
    return log_mean_B, error_B.where(log_mean_B.isfinite(), torch.inf)


def _log_normal(log_w_CB: Tensor) -> Tensor:
    """Return the error [B] if finite log-weights are normal and the others a matter of chance."""
    C = len(log_w_CB)
    alive_CB = log_w_CB.isfinite()
    n_B = alive_CB.sum(0).double().clamp(min=1)
    mean_B = log_w_CB.where(alive_CB, 0).sum(0) / n_B
    off_CB = (log_w_CB - mean_B).where(alive_CB, 0)
    variance_B = off_CB.square().sum(0) / (n_B - 1)  # nan where one chain alone is alive
    of_weights_B = torch.logaddexp((n_B - 1).log(), variance_B) - n_B.log()
    return (of_weights_B + (C - n_B) / (n_B * C)).sqrt().nan_to_num(torch.inf)
