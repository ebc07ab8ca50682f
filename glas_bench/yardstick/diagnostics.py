"""What a score does not show: where q spends its nats, where the filter reads, what has failed.

Every number comes from small, seeded sets: at most 1,000 images of a split, a few draws each. KL,
active units, footprints and the permuted latent matrix are about test images, `failed` is about
validation images, the canvas's variance about samples of the prior. Under soft binarisation images
are grey, as in the objective. Noise is addressed by (seed, purpose, image), see `core.streams`.

Burda et al. 2016 (arXiv 1509.00519), section 5.2, for active units. These depend on the axes of z:
a q whose means lie on one line that is no axis counts as many. `effective_dimensions` does not, it
is the participation ratio of the eigenvalues of a covariance (Gao et al. 2017, bioRxiv 214262),
here of E_q[z_t]. Shape suffixes: K draws, B
images, T steps, Z sample size, P pixels, R side of the filter, L side of the latent matrix.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glas_bench.config import RunConfig
from glas_bench.core import rollout, streams
from glas_bench.core.train import VALIDATION_IMAGES, chosen, scoring
from glas_bench.data import Splits
from glas_bench.divergences import kl_normal
from glas_bench.model import (
    Generation,
    Glas,
    Normal,
    StandardNormal,
    StandardUniform,
    State,
    Step,
    Terms,
    Uniform,
)
from glas_bench.record import finite
from glas_bench.yardstick.weights import Images

IMAGES = 1000
DRAWS = 4
"""Trajectories an image; their disagreement is subtracted from the variance over images."""

PERMUTATIONS = 4
"""Shuffles of the latent matrix that are averaged."""

PRIOR_SAMPLES = 64
ROWS = 1000
"""Rows (images x draws) at once."""

ACTIVE = 0.01
"""Variance over images, in units of the prior's, above which a unit is active."""

LEAST_KL = 1.0
"""Nats below which q has collapsed onto the prior."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings on one seed."""

    scores: dict[str, Any]
    """JSON-ready; null where a finding does not apply, or is no number."""
    arrays: dict[str, np.ndarray]
    """float64: `kl_per_step_dimension` [T, Z] in nats, where the steps' KL is a sum over
    dimensions, and `active_variance` [T, Z], Var_x(E_q[z]) in units of the prior's variance."""


def diagnose(model: Glas, config: RunConfig, splits: Splits, seed: int) -> Diagnosis:
    """Diagnose a trained model; its parameters and torch's global generator stay as they are.

    Args:
        model: on the device of the data; running statistics are frozen as for scoring.
        config: its cell.
        splits: the data.
        seed: the training seed, from which noise and permutation are derived.

    Returns:
        A `Diagnosis` with the scores

        - `diagnosed_images`, `diagnosed_draws`: test images, and draws of each;
        - `kl`, `kl_per_step` [T]: E KL(q_t || p) in nats; `kl_status` finite, infinite or
          undefined; `kl_from`: "closed form" or "draws", the sampled log q/p;
        - `active_units` among `active_units_of` = T * Z pairs of step and dimension,
          `active_dimensions`: dimensions of z that are active at some step; `active_units_rule`;
        - `effective_dimensions`: (sum of eigenvalues)^2 / sum of their squares, of the covariance
          over images of E_q[z_t], centred at each step and summed over steps; 0 where its trace is
          under 0.01 of the prior's variance;
        - `recon_per_step` [T]: -log p(x | canvas of step t), nats;
        - `footprint_perplexity`, `footprint_perplexity_per_step` [T], in cells, out of
          `footprint_cells`; `footprint_nowhere_share`: of reads whose filter misses the matrix;
        - `gate_perplexity`: the same of gates, in cells;
        - `permuted_elbo`, `permuted_elbo_change`: nats, the latent matrix's cells being shuffled,
          and the difference to the elbo of the same images and noise;
        - `failed` with `failed_reason`; `validation_recon`, `validation_kl`,
          `validation_baseline` in nats, of the likelihood's baseline;
        - `canvas_variance` [T]: between samples of the prior, of E[x|o_t];
          `early_canvas_variance`, its mean over the first quarter of steps.
    """
    with torch.inference_mode(), scoring(model, config, splits):
        x, labels = chosen(splits, splits.test, IMAGES, "diagnostics")
        images = Images(x, labels, tuple(range(len(x))))
        seen = look(model, images, seed)
        scores: dict[str, Any] = {"diagnosed_images": len(x), "diagnosed_draws": DRAWS}
        arrays: dict[str, np.ndarray] = {}
        for part in (_divergences(model, seen), _activity(model, seen, seed)):
            scores |= part.scores
            arrays |= part.arrays
        scores["effective_dimensions"] = _effective_dimensions(model, seen, seed)
        scores["recon_per_step"] = _numbers(seen.recon / (len(x) * DRAWS))
        scores |= _footprints(model, seen)
        scores |= _permuted(model, images, seed, seen)
        scores |= failure(model, splits, seed)
        variances = canvas_variance(model, seed, x.device)
        early = [math.nan if v is None else v for v in variances[: -(-len(variances) // 4)]]
        scores["canvas_variance"] = variances
        scores["early_canvas_variance"] = finite(statistics.fmean(early))
    return Diagnosis(scores, arrays)


# --------------------------------------------------------------------------- one pass over images


@dataclass(frozen=True)
class Seen:
    """Sums over images from one pass, float64; of means over draws where there are several."""

    images: int
    elbo: Tensor  # [] of the first draws, nats
    kl: Tensor  # [T, Z], or [T, 1] where there are no dimensions; nats
    kl_from: str
    mean: Tensor  # [T, Z] E_q[z_t]
    square: Tensor  # [T, Z] its square
    within: Tensor  # [T, Z] variance between draws of an image's E_q[z_t]
    product: Tensor  # [T, Z, Z] products of two different draws' E_q[z_t], averaged over draws
    recon: Tensor  # [T] of the canvas after step t, nats, over all draws
    means_from: str
    cells: Tensor  # [T] perplexity of the footprint, or of the gates, over all draws
    looks: Tensor  # [T] how many images and draws have one


def look(model: Glas, images: Images, seed: int) -> Seen:
    """Roll out `DRAWS` trajectories an image and sum the findings of every step over images."""
    p = model.prior()
    sums: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for rows in images.split(ROWS // DRAWS):
        here = images[rows]
        steps: list[dict[str, Tensor]] = []

        def trace(
            t: int, state: State, step: Step, x: Tensor = here.pixels_NP, steps: list[Any] = steps
        ) -> None:
            del t
            steps.append(_step(model, p, x, state, step, sources))

        terms = _trajectories(model, here, seed, DRAWS, trace)
        values = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
        values["elbo"] = _elbo(terms)
        sums = {name: value + sums.get(name, 0) for name, value in values.items()}
    return Seen(len(images), **sums, **sources)  # type: ignore[arg-type]


def _trajectories(
    model: Glas, images: Images, seed: int, draws: int, trace: rollout.Trace | None = None
) -> Terms:
    """Roll out the first draws of some images; their noise is the same among one draw or many."""
    x, noise = images.pixels_NP, images.noise(model, seed, "diagnostics", draws)
    return rollout.rollout(model, x, x, images.labels_N, noise, trace=trace)


def _elbo(terms: Terms) -> Tensor:
    """Return the sum over images of -log p(x|z) + log q/p of the first draws, nats."""
    return (terms.recon[0] + terms.log_ratio[0]).double().sum()


def _step(
    model: Glas, p: Any, x: Tensor, state: State, step: Step, sources: dict[str, str]
) -> dict[str, Tensor]:
    """Return the sums over images of one step; note in `sources` where KL and means come from."""
    kl, sources["kl_from"] = divergence(model, p, step)
    centre, sources["means_from"] = posterior_mean(step)
    centre_KBZ = centre.double().reshape(DRAWS, -1, *centre.shape[1:])
    mean_BZ = centre_KBZ.mean(0)
    cells = centre.new_full(centre.shape[:1], math.nan)
    if model.has_filter:
        rows_y, rows_x, _ = model.filter_rows(state.recognition.hidden)
        cells = footprint_perplexity(rows_y, rows_x)
    elif (weights := model.gate_weights(state.recognition.hidden)) is not None:
        cells = perplexity(weights)
    there = cells.isfinite()
    return {
        "kl": kl.sum(0) / DRAWS,
        "mean": mean_BZ.sum(0),
        "square": mean_BZ.square().sum(0),
        "within": centre_KBZ.var(0).sum(0),
        "product": _products(centre_KBZ),
        "recon": -model.log_likelihood(state.generation.canvas, x.repeat(DRAWS, 1)).double().sum(),
        "cells": torch.where(there, cells.double(), 0.0).sum(),
        "looks": there.double().sum(),
    }


def divergence(model: Glas, p: Any, step: Step) -> tuple[Tensor, str]:
    """Return KL(q_t || p) in nats, float64 [B, Z], and its source.

    A closed form where there is one: a normal or uniform q against the standard prior, or a q that
    offers `kl(p)`, elementwise; otherwise the sampled log q(z)/p(z). A variant with a `log_ratio`
    of its own gets that, [B, 1]: it need not be a sum over dimensions. nan without a density.
    """
    q, z = step.q, step.z
    if not model.has_density:
        return torch.full_like(z, math.nan).double(), "none"
    if type(model).log_ratio is not Glas.log_ratio:
        return step.log_ratio.double()[:, None], "draws"
    if isinstance(q, Normal) and isinstance(p, StandardNormal):
        return kl_normal(q.mean.double(), q.std.double()), "closed form"
    if isinstance(q, Uniform) and isinstance(p, StandardUniform):
        outside = (q.low < 0) | (q.high > 1)
        return torch.where(outside, math.inf, -q.log_width.double()), "closed form"
    if callable(getattr(q, "kl", None)):
        kl: Tensor = q.kl(p)
        return kl.double(), "closed form"
    ratio: Tensor = q.log_prob(z) - p.log_prob(z)
    return ratio.double(), "draws"


def posterior_mean(step: Step) -> tuple[Tensor, str]:
    """Return E_q[z_t | z_1 .. z_t-1], [B, Z], and its source: q's `mean`, or the draw."""
    q, z = step.q, step.z
    if isinstance(q, Uniform):
        return (q.low + q.high) / 2, "means"
    mean = getattr(q, "mean", None)
    if isinstance(mean, Tensor) and mean.shape == z.shape:
        return mean, "means"
    return z, "draws"


def _products(centre_KBZ: Tensor) -> Tensor:
    """Return the sum over images of c_j c_k', [Z, Z], averaged over draws j and k that differ."""
    total_BZ = centre_KBZ.sum(0)
    rows = centre_KBZ.flatten(0, 1)
    draws = len(centre_KBZ)
    return (total_BZ.mT @ total_BZ - rows.mT @ rows) / (draws * (draws - 1))


def footprint_perplexity(rows_y_BRL: Tensor, rows_x_BRL: Tensor) -> Tensor:
    """Return exp(entropy) of the footprint, [B] in cells: 1 for one cell, L * L for all alike.

    The footprint is the outer product of the column sums of |F_y| and |F_x|, scaled to sum to 1;
    its entropy is the sum of theirs. nan where a filter is zero everywhere.
    """

    def entropy(rows_BRL: Tensor) -> Tensor:
        return torch.log(perplexity(rows_BRL.double().abs().sum(-2)))

    return torch.exp(entropy(rows_y_BRL) + entropy(rows_x_BRL))


def perplexity(weights: Tensor) -> Tensor:
    """Return exp(entropy) of weights [..., N], scaled to sum to 1; nan where all are 0."""
    weights = weights.double()
    share = weights / weights.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(share, share).sum(-1))


# --------------------------------------------------------------------------- findings


def _divergences(model: Glas, seen: Seen) -> Diagnosis:
    """Return KL in all, per step, and per step and dimension."""
    if not model.has_density:
        names = ("kl", "kl_per_step", "kl_from")
        return Diagnosis({**dict.fromkeys(names), "kl_status": "undefined"}, {})
    kl_TZ = (seen.kl / seen.images).cpu()
    total, status = _status(float(kl_TZ.sum()))
    scores = {
        "kl": total,
        "kl_status": status,
        "kl_from": seen.kl_from,
        "kl_per_step": _numbers(kl_TZ.sum(-1)),
    }
    dimensions = kl_TZ.shape == seen.mean.shape
    return Diagnosis(scores, {"kl_per_step_dimension": kl_TZ.numpy()} if dimensions else {})


def _activity(model: Glas, seen: Seen, seed: int) -> Diagnosis:
    """Return which units are active.

    Var_x(E_q[z]) is the variance over images of the mean over K draws, less a K-th of the variance
    between an image's draws: free of bias, and the mean of the covariances between any two draws.
    """
    images = seen.images
    between = (seen.square - seen.mean.square() / images) / max(images - 1, 1)
    variance_TZ = between - seen.within / images / DRAWS
    scale = prior_variance(model, seed).to(variance_TZ.device)
    relative_TZ = (variance_TZ / scale).cpu()
    active_TZ = relative_TZ > ACTIVE
    scores = {
        "active_units": int(active_TZ.sum()),
        "active_dimensions": int(active_TZ.any(0).sum()),
        "active_units_of": active_TZ.numel(),
        "active_units_rule": f"Var_x(E_q[z]) > {ACTIVE} of the prior's variance; "
        f"E_q from {seen.means_from}",
    }
    return Diagnosis(scores, {"active_variance": relative_TZ.numpy()})


def prior_variance(model: Glas, seed: int) -> Tensor:
    """Return the variance of the prior, float64, [] or [Z]: known, or of 4,096 draws."""
    p = model.prior()
    known = {StandardNormal: 1.0, StandardUniform: 1 / 12}
    if type(p) in known:
        return torch.tensor(known[type(p)], dtype=torch.float64)
    device = next(model.parameters()).device
    noise = streams.normal((4096, model.noise_size), seed, "diagnostics-variance", device=device)
    variance: Tensor = p.sample(noise).double().var(0)
    return variance


def _effective_dimensions(model: Glas, seen: Seen, seed: int) -> float | None:
    """Return the participation ratio of the eigenvalues of Cov_x(E_q[z_t]), summed over steps."""
    mean_TZ = seen.mean / seen.images
    covariance = (seen.product / seen.images - mean_TZ[:, :, None] * mean_TZ[:, None, :]).sum(0)
    trace = float(covariance.trace())
    if trace < ACTIVE * float(prior_variance(model, seed).mean()):
        return 0.0
    return finite(trace**2 / float(covariance.square().sum()))


def _footprints(model: Glas, seen: Seen) -> dict[str, Any]:
    """Return how many cells the filter or the gates read; null where there are none."""
    cells_T, looks_T = seen.cells.cpu(), seen.looks.cpu()
    gates = not model.has_filter and bool(looks_T.sum())
    scores = {"gate_perplexity": finite(float(cells_T.sum() / looks_T.sum())) if gates else None}
    if not model.has_filter:
        names = ("perplexity", "perplexity_per_step", "cells", "nowhere_share")
        return scores | dict.fromkeys(f"footprint_{name}" for name in names)
    reads = seen.images * DRAWS * len(looks_T)
    return scores | {
        "footprint_perplexity": finite(float(cells_T.sum() / looks_T.sum())),
        "footprint_perplexity_per_step": _numbers(cells_T / looks_T),
        "footprint_cells": int(model.latent.numel()),
        "footprint_nowhere_share": 1 - float(looks_T.sum()) / reads,
    }


def _permuted(model: Glas, images: Images, seed: int, seen: Seen) -> dict[str, Any]:
    """Return the elbo with the latent matrix shuffled, and how much worse that is.

    The model's own matrix is not written to; the calls get a shuffled one in its place.
    """
    nothing = {"permuted_elbo": None, "permuted_elbo_change": None}
    matrix = getattr(model, "latent", None)
    if not (isinstance(matrix, Tensor) and model.has_density):
        return nothing
    generator = streams.generator(seed, "diagnostics-permutation")
    program = rollout.Program(model, lambda m, here: _elbo(_trajectories(m, here, seed, 1)))
    total = torch.zeros_like(seen.elbo)
    for _ in range(PERMUTATIONS):
        order = torch.randperm(matrix.numel(), generator=generator).to(matrix.device)
        shuffled = {"model.latent": matrix.flatten()[order].view_as(matrix)}
        for rows in images.split(ROWS):
            total = total + torch.func.functional_call(program, shuffled, (images[rows],))
    total = total / PERMUTATIONS
    return {
        "permuted_elbo": finite(float(total / seen.images)),
        "permuted_elbo_change": finite(float((total - seen.elbo) / seen.images)),
    }


# --------------------------------------------------------------------------- failure


def failure(model: Glas, splits: Splits, seed: int) -> dict[str, Any]:
    """Return whether a model has failed on validation images, and why.

    It has if its recon is not well below the baseline of the likelihood (20 nats below the
    pixel-wise Bernoulli's for images), or if q has a density and its KL is under 1 nat. Images and
    noise are those of `Training.validate`.
    """
    x, labels = chosen(splits, splits.validation, VALIDATION_IMAGES, "validation")
    shape = (model.steps, 1, len(x), model.noise_size)
    noise = streams.normal(shape, seed, "validation", device=x.device)
    p = model.prior()
    total = x.new_zeros(2, dtype=torch.float64)

    def trace(t: int, state: State, step: Step) -> None:
        del t, state
        total[1] += divergence(model, p, step)[0].sum()

    terms = rollout.rollout(model, x, x, labels, noise, trace=trace)
    total[0] = terms.recon.double().sum()
    recon, kl = (total / len(x)).tolist()
    known = splits.likelihood
    baseline = float(known.baseline_nll(splits.train.images, x).mean())
    reasons = []
    if not recon <= baseline - known.gain:  # so is what is not a number
        reasons.append(f"recon is not {known.gain:g} nats below the {known.baseline}'s")
    if model.has_density and not kl >= LEAST_KL:
        reasons.append(f"KL is under {LEAST_KL:g} nat")
    return {
        "failed": bool(reasons),
        "failed_reason": "; ".join(reasons) or None,
        "validation_recon": finite(recon),
        "validation_kl": finite(kl),
        "validation_baseline": baseline,
    }


# --------------------------------------------------------------------------- samples


def canvas_variance(model: Glas, seed: int, device: torch.device) -> list[float | None]:
    """Return the variance between samples of E[x|o_t], averaged over pixels, for every t.

    Near zero where all samples look alike, at most 1/4 (a little more in a small sample).
    """
    shape = (model.steps, PRIOR_SAMPLES, model.noise_size)
    noise = streams.normal(shape, seed, "diagnostics-prior", device=device)
    variances: list[Tensor] = []

    def trace(t: int, generation: Generation) -> None:
        del t
        variances.append(model.likelihood.mean(generation.canvas.double()).var(0).mean())

    rollout.generate(model, rollout.sample_prior(model, noise), trace)
    return _numbers(torch.stack(variances))


# --------------------------------------------------------------------------- JSON


def _numbers(values: Tensor) -> list[float | None]:
    return [finite(value) for value in values.tolist()]


def _status(value: float) -> tuple[float | None, str]:
    if math.isnan(value):
        return None, "undefined"
    return finite(value), "finite" if math.isfinite(value) else "infinite"
