"""Annealed importance sampling: log p(x) of a latent-variable model from its decoder alone.

Chains walk from the prior N(0, I) to the posterior through p(z) p(x|z)^beta and gather a weight
whose mean is p(x) (Neal 2001, "Annealed importance sampling"), as Wu, Burda, Salakhutdinov &
Grosse do for decoders (2017, "On the quantitative analysis of decoder-based generative models",
arXiv:1611.04273): 16 chains, Hamiltonian moves of ten leapfrog steps. The logarithm of the mean
weight lies below log p(x) on average. A walk back from an exact posterior sample, which simulated
images have, lies above it, and the gap bounds the error of both (Grosse, Ghahramani & Adams 2015,
"Sandwiching the marginal likelihood using bidirectional Monte Carlo", arXiv:1511.02543).

How a walk is made, and where that departs from Wu et al., is told in `annealing` and `hmc`.
`decoder` makes a trained model such a log likelihood, `referee` estimates finished runs, `verdict`
accepts an estimate or says what to raise.

C chains, B images, D latents. All values are in nats.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glas_bench.ais.annealing import AISResult, Annealing, Course, Pilot, Walk, joined, schedule
from glas_bench.ais.hmc import LogLikelihood, Walkers

__all__ = [
    "AISResult",
    "Annealing",
    "Bidirectional",
    "LogLikelihood",
    "anneal",
    "annealed_importance_sampling",
    "bidirectional",
    "sandwich",
    "schedule",
    "seconds_a_move",
    "seconds_ahead",
    "simulated",
]

Progress = Callable[[int, int], None]  # moves done, moves in all
Tick = Callable[[], None]
Simulate = Callable[[Tensor, Callable[[int], Tensor]], Tensor]


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


def _run(course: Course, tick: Tick) -> None:
    while not course.finished:
        course.advance()
        tick()


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
        look = log_likelihood_for(x_B[s])
        if step_size_KB is None:
            pilot = Pilot(look, latent_size, how, index[s])
            _run(pilot, tick)
            steps_KB = pilot.step_sizes()
        else:
            steps_KB = step_size_KB[:, s]
        start = None if start_BD is None else start_BD[s]
        walk = Walk(look, latent_size, how, index[s], steps_KB, start)
        _run(walk, tick)
        parts.append(walk.result())
    return joined(parts)


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
    images to their noise (0..B-1 unless said), so that an image has one noise in any subset.

    Raises:
        ValueError: a log likelihood of another shape, or an ``image_index`` of another length.
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

    It is the logarithm of the mean weight over chains, which lies below log p(x) on average.
    ``anneal`` does the chunking and tells more.

    Args:
        log_likelihood: maps z [chains, batch, latent_size] to log p(x|z) [chains, batch], nats;
            it is differentiated by z.
        latent_size: numbers in a z.
        batch: how many images it is about.
        chains: independent walks an image.
        temperatures: steps of the inverse temperature from 0 to 1; with 1, importance sampling
            from the prior.
        leapfrog: gradients a move.
        seed: from which all noise is derived.
        device: where chains walk; torch's default unless said.
        dtype: of the chains; torch's default unless said.
        image_index: names the images to their noise, for a batch that is part of a larger one.
        progress: called with the moves done and their total.

    Raises:
        ValueError: a number below its least, or a log likelihood of another shape.
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
    simulate: Simulate,
    latent_size: int,
    images: int,
    how: Annealing,
    *,
    progress: Progress | None = None,
) -> Bidirectional:
    """Simulate images, and estimate their log p(x) from below and from above."""
    z_BD, x_B = simulated(simulate, latent_size, range(images), how)
    tick = _ticker(progress, len(how.slices(images)) * how.moves(2, pilot=True))
    walk = functools.partial(
        _anneal_chunks, log_likelihood_for, x_B, latent_size, range(images), how, tick
    )
    forward = walk()
    reverse = walk(start_BD=z_BD, step_size_KB=forward.step_size_KB)
    return sandwich(forward, reverse)


@torch.no_grad()
def simulated(
    simulate: Simulate, latent_size: int, index: Sequence[int], how: Annealing
) -> tuple[Tensor, Tensor]:
    """Return z [B, D] from the prior and images x [B, ...] drawn given them.

    ``simulate`` gets z and a function that gives so many standard normals an image, [B, count].
    """
    noise = how.noise("simulated", index)
    z_BD = noise(1, latent_size, 0)[0]
    return z_BD, simulate(z_BD, lambda count: noise(1, count, 1)[0])


def sandwich(forward: AISResult, reverse: AISResult) -> Bidirectional:
    """Return the gap between both ways on the same simulated images."""
    gap_B = reverse.log_p_B - forward.log_p_B
    images = len(gap_B)
    error = float(gap_B.std()) / math.sqrt(images) if images > 1 else math.inf
    return Bidirectional(forward, reverse, gap_B, float(gap_B.mean()), error)


# --------------------------------------------------------------------------- time ahead


def seconds_a_move(
    log_likelihood: LogLikelihood,
    latent_size: int,
    images: int,
    how: Annealing,
    *,
    trials: int = 3,
) -> float:
    """Return the seconds that a move of a chunk of so many images takes, from a few of them."""
    noise = how.noise("clock", range(images))
    walkers = Walkers(log_likelihood, noise(how.chains, latent_size, 0))
    step_B = torch.full((images,), 0.01, device=noise.device, dtype=noise.dtype)

    def clock() -> float:
        if noise.device.type == "cuda":
            torch.cuda.synchronize(noise.device)
        return time.perf_counter()

    before = clock()
    for number in range(trials + 1):
        if number == 1:  # the move before paid for warming up
            before = clock()
        walkers.move(0.5, step_B, noise(how.chains, latent_size + 2, number), how.leapfrog)
    return (clock() - before) / trials


def seconds_ahead(
    log_likelihood_for: Callable[[Tensor], LogLikelihood],
    x_B: Tensor,
    latent_size: int,
    how: Annealing,
    *,
    walks: int = 1,
) -> float:
    """Return the seconds that a pilot run and so many walks will take, from a few timed moves."""
    images = int(how.slices(len(x_B))[0].stop)
    a_move = seconds_a_move(log_likelihood_for(x_B[:images]), latent_size, images, how)
    return a_move * how.moves(walks, pilot=True) * len(x_B) / images
