"""Annealed importance sampling: log p(x) of a latent-variable model from its decoder alone.

Chains walk from the prior N(0, I) to the posterior through p(z) p(x|z)^beta and gather a weight
whose mean is p(x) (Neal 2001, "Annealed importance sampling"), as Wu, Burda, Salakhutdinov &
Grosse do for decoders (2017, "On the quantitative analysis of decoder-based generative models",
arXiv:1611.04273): 16 chains, Hamiltonian moves of ten leapfrog steps (Neal 2011, "MCMC using
Hamiltonian dynamics"), temperatures on a sigmoid from -4 to 4. The logarithm of the mean weight
lies below log p(x) on average. A walk back from an exact posterior sample, which simulated images
have, lies above it, and the gap bounds the error of both (Grosse, Ghahramani & Adams 2015,
"Sandwiching the marginal likelihood using bidirectional Monte Carlo", arXiv:1511.02543).

Where we depart from Wu et al.: they adapt the step size on the way, which costs the weights their
unbiasedness. Here a pilot run of its own adapts one step size per image and stretch of the
schedule towards an acceptance of .65, and the walks use them as they are. Each move's step is
multiplied by U(.6, 1.2), without which trajectories resonate. Where log p(x|z) or its gradient is
not finite it counts as -inf with a gradient of zero: a move that ends there is rejected, a prior
draw there has weight zero, and the moves stay exact (any field of z alone may push a trajectory).

Randomness: each image owns a torch.Generator seeded from (seed, purpose, image index), and each
move of it draws one block [chains, latents + 2] (momenta, acceptance, jitter). So the numbers of an
image do not depend on which images are computed beside it, but to rounding.

C chains, B images, D latents, K stretches of the schedule. All values are in nats.

One file: the moves mean nothing without the noise and schedule that they share with the walk.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LogLikelihood = Callable[[Tensor], Tensor]  # z [C, B, D] -> log p(x|z) [C, B], differentiable
Progress = Callable[[int, int], None]  # moves done, moves in all
Tick = Callable[[], None]

LEAST_STEP, FIRST_STEP, MOST_STEP = 1e-4, 0.1, 0.5
WARM_UP = 24  # adapting moves at the prior, before the pilot's walk
STRETCHES = 16


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How a walk is made."""

    chains: int = 16
    temperatures: int = 1000
    """Steps of beta from 0 to 1; with 1 it is importance sampling from the prior."""
    leapfrog: int = 10
    """Gradients a move."""
    seed: int = 0
    pilot: int = 200
    """Temperatures of the pilot run."""
    acceptance: float = 0.65
    """What the pilot run adapts towards."""
    chunk: int | None = None
    """Images at a time; all unless said."""
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

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype, torch's own unless said."""
        device = torch.get_default_device() if self.device is None else torch.device(self.device)
        return device, self.dtype or torch.get_default_dtype()

    def slices(self, images: int) -> list[slice]:
        """Return the chunks of so many images."""
        if images < 1:
            raise ValueError("there must be at least one image")
        size = self.chunk or images
        return [slice(i, min(i + size, images)) for i in range(0, images, size)]

    def moves(self, walks: int, *, pilot: bool) -> int:
        """Return the moves that a chunk takes."""
        return walks * (self.temperatures - 1) + pilot * (WARM_UP + self.pilot)


@dataclass(frozen=True)
class AISResult:
    """Estimates of log p(x), and how they came about."""

    log_p_B: Tensor
    """Float64; below log p(x) on average, or above it on a walk back."""
    error_B: Tensor
    """Its standard error from the spread of the chains' weights; infinite with one chain.

    It says too little once the spread passes a nat or so, and on a walk back, whose chains share
    their start: judge by images, the gap, and more temperatures.
    """
    log_w_CB: Tensor
    """Float64 log-weights of the chains."""
    spread_B: Tensor
    """Their standard deviation over the chains; 0 with one chain."""
    acceptance_B: Tensor
    """Mean acceptance of the moves."""
    step_size_KB: Tensor
    """The frozen step sizes, along the schedule from the prior to the posterior."""


@dataclass(frozen=True)
class Bidirectional:
    """Both bounds on simulated images; the gap bounds the error of either."""

    forward: AISResult
    reverse: AISResult
    gap_B: Tensor
    """Upper less lower estimate of each image."""
    gap: float
    """The mean gap."""
    gap_error: float
    """Its standard error over images; infinite with one image."""


def schedule(temperatures: int, rad: float = 4.0) -> list[float]:
    """Return beta from exactly 0 to exactly 1 on a sigmoid from -rad to rad."""
    raw = [1 / (1 + math.exp(-rad * (2 * i / temperatures - 1))) for i in range(temperatures + 1)]
    return [0.0, *((b - raw[0]) / (raw[-1] - raw[0]) for b in raw[1:-1]), 1.0]


class _Noise:
    """Standard normals from one generator an image."""

    def __init__(self, how: Annealing, purpose: str, index: Sequence[int]) -> None:
        self.device, self.dtype = how.place()
        self.generators = []
        for i in index:
            digest = hashlib.blake2b(f"{how.seed} {purpose} {i}".encode(), digest_size=7).digest()
            generator = torch.Generator(self.device)
            self.generators.append(generator.manual_seed(int.from_bytes(digest)))

    def __call__(self, rows: int, columns: int) -> Tensor:
        """Return [rows, B, columns]."""
        size = (len(self.generators), rows, columns)
        noise = torch.empty(size, device=self.device, dtype=self.dtype)
        for i, generator in enumerate(self.generators):
            noise[i].normal_(generator=generator)
        return noise.transpose(0, 1)


@dataclass
class _Walkers:
    """The chains' state: where they are, with log p(x|z) and its gradient there."""

    log_likelihood: LogLikelihood
    z_CBD: Tensor
    value_CB: Tensor = field(init=False)
    slope_CBD: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.value_CB, self.slope_CBD = self.look(self.z_CBD)

    def look(self, z_CBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and its gradient, or -inf and 0 where either is not finite."""
        with torch.enable_grad():
            z_CBD = z_CBD.detach().requires_grad_()
            value_CB = self.log_likelihood(z_CBD)
            if value_CB.shape != z_CBD.shape[:2]:
                raise ValueError(
                    f"log_likelihood must return [chains, batch] = {list(z_CBD.shape[:2])}, "
                    f"got {list(value_CB.shape)}"
                )
            slope = None
            if value_CB.requires_grad:
                (slope,) = torch.autograd.grad(value_CB.sum(), z_CBD, allow_unused=True)
        slope_CBD = torch.zeros_like(z_CBD) if slope is None else slope
        value_CB = value_CB.detach().double()
        sound_CB = value_CB.isfinite() & slope_CBD.isfinite().all(-1)
        return value_CB.where(sound_CB, -torch.inf), slope_CBD.where(sound_CB[..., None], 0)

    def move(self, beta: float, step_B: Tensor, noise: _Noise, leapfrog: int) -> Tensor:
        """Make one Hamiltonian move at p(z) p(x|z)^beta; return its acceptance probability."""
        C, _, D = self.z_CBD.shape
        noise_CBX = noise(C, D + 2)
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


def _pilot(
    log_likelihood: LogLikelihood,
    latent_size: int,
    how: Annealing,
    index: Sequence[int],
    tick: Tick,
) -> Tensor:
    """Return step sizes [K, B] adapted along a short walk of its own."""
    noise = _Noise(how, "pilot", index)
    walkers = _Walkers(log_likelihood, noise(how.chains, latent_size))
    log_step_B = torch.full((len(index),), math.log(FIRST_STEP), dtype=torch.float64)
    log_step_B = log_step_B.to(noise.device)
    betas = schedule(how.pilot)
    path = []
    for i, beta in enumerate([0.0] * WARM_UP + betas[1:]):
        step_B = log_step_B.exp().to(noise.dtype)
        alive_CB = walkers.value_CB.isfinite()
        chance_CB = walkers.move(beta, step_B, noise, how.leapfrog)
        excess_CB = (chance_CB - how.acceptance).where(alive_CB, 0)
        rate = 0.5 if i < WARM_UP else 0.25
        log_step_B = log_step_B + rate * excess_CB.sum(0) / alive_CB.sum(0).clamp(min=1)
        log_step_B = log_step_B.clamp(math.log(LEAST_STEP), math.log(MOST_STEP))
        path.append(log_step_B)
        tick()
    stretches = torch.stack(path[WARM_UP:]).tensor_split(STRETCHES)
    return torch.stack([s_NB.mean(0) for s_NB in stretches]).exp().to(noise.dtype)


def _step_at(step_size_KB: Tensor, share: float) -> Tensor:
    """Return the step sizes at a share of the schedule, between the stretches' middles."""
    last = len(step_size_KB) - 1
    place = min(max(share * (last + 1) - 0.5, 0.0), float(last))
    k = min(int(place), last - 1)
    return step_size_KB[k].lerp(step_size_KB[k + 1], place - k)


def _walk(
    walkers: _Walkers,
    step_size_KB: Tensor,
    how: Annealing,
    noise: _Noise,
    tick: Tick,
    *,
    back: bool,
) -> tuple[Tensor, Tensor]:
    """Return log-weights [C, B] and the mean acceptance [B] of a walk from or to the prior.

    Both ways visit the same points in opposite order: a weight over [beta_{t-1}, beta_t], then a
    move at the end that the walk comes to.
    """
    betas, N = schedule(how.temperatures), how.temperatures
    log_w_CB = torch.zeros_like(walkers.value_CB)
    acceptance_B = torch.zeros_like(log_w_CB[0])
    for t in range(N, 0, -1) if back else range(1, N + 1):
        log_w_CB = log_w_CB + (betas[t] - betas[t - 1]) * walkers.value_CB
        arrival = t - 1 if back else t
        if 0 < arrival < N:
            step_B = _step_at(step_size_KB, arrival / N)
            chance_CB = walkers.move(betas[arrival], step_B, noise, how.leapfrog)
            acceptance_B = acceptance_B + chance_CB.mean(0) / (N - 1)
            tick()
    return log_w_CB, acceptance_B


def _log_mean(log_w_CB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the mean weight over chains and its standard error."""
    C = len(log_w_CB)
    log_mean_B = log_w_CB.logsumexp(0) - math.log(C)
    if C == 1:
        return log_mean_B, torch.full_like(log_mean_B, torch.inf)
    error_B = (log_w_CB - log_mean_B).exp().std(0) / math.sqrt(C)
    return log_mean_B, error_B.where(log_mean_B.isfinite(), torch.inf)


def _anneal(
    log_likelihood: LogLikelihood,
    latent_size: int,
    index: Sequence[int],
    how: Annealing,
    tick: Tick,
    start_BD: Tensor | None = None,
    step_size_KB: Tensor | None = None,
) -> AISResult:
    """Walk all images of one chunk at once."""
    if step_size_KB is None:
        step_size_KB = _pilot(log_likelihood, latent_size, how, index, tick)
    back = start_BD is not None
    noise = _Noise(how, "back" if back else "forth", index)
    if start_BD is None:
        z_CBD = noise(how.chains, latent_size)
    else:
        z_CBD = start_BD.to(noise.device, noise.dtype).expand(how.chains, -1, -1)
    walkers = _Walkers(log_likelihood, z_CBD)
    if back and not bool(walkers.value_CB.isfinite().all()):
        raise ValueError("log p(x|z) is not finite at the z that an image was drawn from")
    log_w_CB, acceptance_B = _walk(walkers, step_size_KB, how, noise, tick, back=back)
    # Going back the mean of the inverse weights estimates 1 / p(x).
    log_mean_B, error_B = _log_mean(-log_w_CB if back else log_w_CB)
    log_p_B = -log_mean_B if back else log_mean_B
    spread_B = log_w_CB.std(0, correction=min(1, how.chains - 1))
    return AISResult(log_p_B, error_B, log_w_CB, spread_B, acceptance_B, step_size_KB)


def _ticker(progress: Progress | None, total: int) -> Tick:
    if progress is None:
        return lambda: None
    done = itertools.count(1)
    return lambda: progress(next(done), total)


def _anneal_chunks(
    log_likelihood_for: Callable[[Tensor], LogLikelihood],
    x_B: Tensor,
    latent_size: int,
    index: Sequence[int],
    how: Annealing,
    tick: Tick,
    start_BD: Tensor | None = None,
    step_size_KB: Tensor | None = None,
) -> AISResult:
    parts = []
    for s in how.slices(len(x_B)):
        start = None if start_BD is None else start_BD[s]
        steps = None if step_size_KB is None else step_size_KB[:, s]
        look = log_likelihood_for(x_B[s])
        parts.append(_anneal(look, latent_size, index[s], how, tick, start, steps))
    names = [f.name for f in dataclasses.fields(AISResult)]
    return AISResult(*(torch.cat([getattr(part, n) for part in parts], -1) for n in names))


def anneal(
    log_likelihood_for: Callable[[Tensor], LogLikelihood],
    x_B: Tensor,
    latent_size: int,
    how: Annealing,
    *,
    image_index: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> AISResult:
    """Estimate log p(x) of the images x [B, ...], a chunk of them at a time.

    ``log_likelihood_for`` maps a chunk of the images to its log p(x|z). ``image_index`` names the
    images to their generators (0..B-1 unless said), so that an image has one noise in any subset.
    """
    index = range(len(x_B)) if image_index is None else [int(i) for i in image_index]
    if len(index) != len(x_B):
        raise ValueError(f"image_index names {len(index)} images, x has {len(x_B)}")
    tick = _ticker(progress, len(how.slices(len(x_B))) * how.moves(1, pilot=True))
    return _anneal_chunks(log_likelihood_for, x_B, latent_size, index, how, tick)


def annealed_importance_sampling(
    log_likelihood: LogLikelihood,
    latent_size: int,
    batch: int,
    *,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    image_index: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return an estimate [batch] of log p(x), float64, in nats, under the prior N(0, I).

    ``log_likelihood`` maps z [chains, batch, latent_size] to log p(x|z) [chains, batch] and can be
    differentiated. ``image_index`` names the images to their generators, for a batch that is part
    of a larger one. ``anneal`` does the chunking and tells more.
    """
    how = Annealing(
        chains=chains,
        temperatures=temperatures,
        leapfrog=leapfrog,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    return anneal(
        lambda _: log_likelihood,
        torch.empty(batch, 0),  # the images are in log_likelihood
        latent_size,
        how,
        image_index=image_index,
        progress=progress,
    ).log_p_B


def bidirectional(
    log_likelihood_for: Callable[[Tensor], LogLikelihood],
    simulate: Callable[[Tensor, torch.Generator], Tensor],
    latent_size: int,
    images: int,
    how: Annealing,
    *,
    progress: Progress | None = None,
) -> Bidirectional:
    """Simulate images, and estimate their log p(x) from below and from above.

    ``simulate`` draws x [B, ...] given z [B, D] from the prior, with a generator on the device.
    """
    z_BD = _Noise(how, "simulated", range(images))(1, latent_size)[0]
    device, _ = how.place()
    with torch.no_grad():
        x_B = simulate(z_BD, torch.Generator(device).manual_seed(how.seed))
    tick = _ticker(progress, len(how.slices(images)) * how.moves(2, pilot=True))
    walk = functools.partial(
        _anneal_chunks, log_likelihood_for, x_B, latent_size, range(images), how, tick
    )
    forward = walk()
    reverse = walk(start_BD=z_BD, step_size_KB=forward.step_size_KB)
    gap_B = reverse.log_p_B - forward.log_p_B
    error = float(gap_B.std()) / math.sqrt(images) if images > 1 else math.inf
    return Bidirectional(forward, reverse, gap_B, float(gap_B.mean()), error)


def seconds_ahead(
    log_likelihood_for: Callable[[Tensor], LogLikelihood],
    x_B: Tensor,
    latent_size: int,
    how: Annealing,
    *,
    walks: int = 1,
    trials: int = 3,
) -> float:
    """Return the seconds that a pilot run and so many walks will take, from a few timed moves."""
    first = how.slices(len(x_B))[0]
    noise = _Noise(how, "clock", range(first.stop))
    walkers = _Walkers(log_likelihood_for(x_B[first]), noise(how.chains, latent_size))
    step_B = torch.full((first.stop,), 0.01, device=noise.device, dtype=noise.dtype)

    def clock() -> float:
        if noise.device.type == "cuda":
            torch.cuda.synchronize(noise.device)
        return time.perf_counter()

    walkers.move(0.5, step_B, noise, how.leapfrog)  # the first move pays for warming up
    before = clock()
    for _ in range(trials):
        walkers.move(0.5, step_B, noise, how.leapfrog)
    a_move = (clock() - before) / trials
    return a_move * how.moves(walks, pilot=True) * len(x_B) / len(step_B)
