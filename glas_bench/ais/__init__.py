"""Annealed importance sampling: log p(x) of a latent-variable model from its decoder alone.

Chains walk from the prior N(0, I) to the posterior through p(z) p(x|z)^beta and gather a weight
whose mean is p(x) (Neal 2001, "Annealed importance sampling"), as Wu, Burda, Salakhutdinov &
Grosse do for decoders (2017, "On the quantitative analysis of decoder-based generative models",
arXiv:1611.04273): 16 chains, Hamiltonian moves of ten leapfrog steps. The logarithm of the mean
weight lies below log p(x) on average. A walk back from an exact posterior sample, which simulated
images have, lies above it, and the gap bounds the error of both (Grosse, Ghahramani & Adams 2015,
"Sandwiching the marginal likelihood using bidirectional Monte Carlo", arXiv:1511.02543).

`annealing` and `hmc` make a walk and say where that departs from Wu et al., `decoder` turns a model
into a log likelihood, `referee` estimates finished runs, `verdict` accepts an estimate or not.

C chains, B images, D latents. All values are in nats.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glas_bench.ais.annealing import AISResult as AISResult
from glas_bench.ais.annealing import Annealing as Annealing
from glas_bench.ais.annealing import Course, Pilot, Walk, joined, mean_and_error
from glas_bench.ais.annealing import schedule as schedule
from glas_bench.ais.hmc import LogLikelihood as LogLikelihood
from glas_bench.ais.hmc import Walkers

LikelihoodFor = Callable[[Tensor], LogLikelihood]  # images -> their log p(x|z)
Simulate = Callable[[Tensor, Callable[[int], Tensor]], Tensor]
Run = Callable[[str, int, Callable[[], Course]], dict[str, Tensor]]
"""Given a course's name, its number of images and what makes it, returns its outcome."""


@dataclass(frozen=True)
class Bidirectional:
    """Both bounds on simulated images; the gap, in nats, bounds the error of either."""

    forward: AISResult
    reverse: AISResult
    gap_B: Tensor
    """Upper less lower estimate of each image."""
    gap: float
    gap_error: float
    """Standard error of the mean gap over images; infinite with one image."""


def _run(name: str, images: int, make: Callable[[], Course]) -> dict[str, Tensor]:
    del name, images
    course = make()
    while not course.finished:
        course.advance()
    return course.outcome()


def walks(
    log_likelihood_for: LikelihoodFor,
    x_B: Tensor,
    latent_size: int,
    index: Sequence[int],
    hows: Sequence[Annealing],
    *,
    start_BD: Tensor | None = None,
    run: Run = _run,
) -> list[AISResult]:
    """Estimate log p(x) of the images x [B, ...] by one walk for each of `hows`.

    Args:
        log_likelihood_for: maps a chunk of the images to its log p(x|z).
        x_B: the images.
        latent_size: D.
        index: names of the images' noise: an image has the same noise in any subset.
        hows: alike but for their temperatures; one pilot run per chunk sets the steps of all.
        start_BD: posterior samples; the last walk goes back from them.
        run: runs a course, here or from where it was left.

    Raises:
        ValueError: a log likelihood of another shape, or one that is not finite at `start_BD`.
    """
    parts: list[list[AISResult]] = [[] for _ in hows]
    for chunk, s in enumerate(hows[0].slices(len(x_B))):
        look, images = log_likelihood_for(x_B[s]), s.stop - s.start
        pilot = functools.partial(Pilot, look, latent_size, hows[0], index[s])
        steps_KB = run(f"{chunk}-pilot", images, pilot)["step_size_KB"]
        for i, how in enumerate(hows):
            start = start_BD[s] if start_BD is not None and i == len(hows) - 1 else None
            walk = functools.partial(Walk, look, latent_size, how, index[s], steps_KB, start)
            parts[i].append(AISResult(**run(f"{chunk}-{i}", images, walk)))
    return [joined(results) for results in parts]


def anneal(
    log_likelihood_for: LikelihoodFor, x_B: Tensor, latent_size: int, how: Annealing
) -> AISResult:
    """Estimate log p(x) of the images x [B, ...] by one walk; see `walks`."""
    return walks(log_likelihood_for, x_B, latent_size, range(len(x_B)), [how])[0]


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
) -> Tensor:
    """Return an estimate [batch] of log p(x), float64, in nats, under the prior N(0, I).

    It is the logarithm of the mean weight over chains, which lies below log p(x) on average.
    `anneal` returns more, a chunk of images at a time.

    Args:
        log_likelihood: maps z [chains, batch, latent_size] to log p(x|z) [chains, batch], nats;
            differentiable.
        latent_size: numbers in a z.
        batch: number of images.
        chains: independent walks an image.
        temperatures: steps of the inverse temperature from 0 to 1; with 1, importance sampling
            from the prior.
        leapfrog: gradients a move.
        seed: all noise is derived from it.
        device: of the chains; by default torch's.
        dtype: of the chains; by default torch's.

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
    images = torch.empty(batch, 0)  # they are in log_likelihood
    return anneal(lambda _: log_likelihood, images, latent_size, how).log_p_B


def bidirectional(
    log_likelihood_for: LikelihoodFor,
    simulate: Simulate,
    latent_size: int,
    images: int,
    how: Annealing,
    *,
    run: Run = _run,
) -> Bidirectional:
    """Simulate images, and estimate their log p(x) from below and from above; see `walks`."""
    index = range(images)
    z_BD, x_B = simulated(simulate, latent_size, index, how)
    forward, reverse = walks(
        log_likelihood_for, x_B, latent_size, index, (how, how), start_BD=z_BD, run=run
    )
    gap_B = reverse.log_p_B - forward.log_p_B
    return Bidirectional(forward, reverse, gap_B, *mean_and_error(gap_B))


@torch.no_grad()
def simulated(
    simulate: Simulate, latent_size: int, index: Sequence[int], how: Annealing
) -> tuple[Tensor, Tensor]:
    """Return z [B, D] from the prior and images x [B, ...] drawn given them.

    `simulate` gets z and a function that returns standard normals, [B, count], given their count.
    """
    noise = how.noise("simulated", index)
    z_BD = noise(1, latent_size, 0)[0]
    return z_BD, simulate(z_BD, lambda count: noise(1, count, 1)[0])


def seconds_a_move(
    log_likelihood: LogLikelihood, latent_size: int, images: int, how: Annealing
) -> float:
    """Return the seconds that a move of these images takes, the mean of three after a warm-up."""
    noise = how.noise("clock", range(images))
    walkers = Walkers(log_likelihood, noise(how.chains, latent_size, 0))
    step_B = torch.full((images,), 0.01, device=noise.device, dtype=noise.dtype)

    def clock() -> float:
        if noise.device.type == "cuda":
            torch.cuda.synchronize(noise.device)
        return time.perf_counter()

    for number in range(4):
        if number == 1:
            before = clock()
        walkers.move(0.5, step_B, noise(how.chains, latent_size + 2, number), how.leapfrog)
    return (clock() - before) / 3
