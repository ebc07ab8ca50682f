"""Importance weights of whole trajectories, image by image, in nats.

Weights use the sampled log ratio log q/p, never the analytic KL. Noise is addressed by (seed,
purpose, image, block of draws), so neither chunk size nor a subset changes what an image is scored
with, and the first k of K draws are the same draws.

Burda et al. 2016 (arXiv 1509.00519), section 3. Shape suffixes: K draws, B images, T steps, Z
sample size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glas_bench.core import rollout, streams
from glas_bench.errors import GlasBenchError
from glas_bench.model import Glas, Step
from glas_bench.ops import linear, programs
from glas_bench.record import Partial

ROWS = 1024
"""Rows (images x draws) that are scored at once on a CPU."""

ROWS_ON_GPU = 32 * ROWS
"""The same on a GPU."""

NOISE_BLOCK = 100
"""Draws of an image that share a block of noise: the first k of K draws do not depend on K."""

SWEEP = (1, 5, 10, 50, 100, 500, 1000, 5000)

PerImage = dict[str, np.ndarray]
"""Values by name, [images] each."""

Tick = Callable[[str, int, int], None]
"""Called with a stage, what is done of it and its total; it may raise to stop."""

Tell = Callable[[str], None]
"""Called with a message when a program falls back to a slower way."""


class NotFinite(GlasBenchError):  # noqa: N818 - a finding
    """A score is not a number: the seed is reported as failed, never as a number."""


def importance_weighted_nll(log_w_KB: Tensor) -> Tensor:
    """Return -log mean_k w_k, [B] nats: an upper bound of -log p(x) in expectation.

    Args:
        log_w_KB: log importance weights log p(x, z) - log q(z|x); -inf where z leaves p's support.
    """
    return math.log(log_w_KB.shape[0]) - torch.logsumexp(log_w_KB, 0)


def effective_sample_size(log_w_KB: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2, [B] in [1, K]; 0 where every weight is 0 (Kong 1992).

    Args:
        log_w_KB: as for `importance_weighted_nll`.
    """
    twice = 2 * torch.logsumexp(log_w_KB, 0) - torch.logsumexp(2 * log_w_KB, 0)
    return torch.where(torch.isfinite(twice), twice.exp(), torch.zeros_like(twice))


def variance(log_w_KB: Tensor) -> Tensor:
    """Return v = Var(log w) over draws, [B] nats^2; inf where a weight is 0, 0 for one draw."""
    if log_w_KB.shape[0] == 1:
        return torch.zeros_like(log_w_KB[0])
    v = log_w_KB.var(0)
    return torch.where(torch.isfinite(log_w_KB).all(0), v, torch.full_like(v, math.inf))


def sweep_sizes(samples: int) -> list[int]:
    """Return the numbers of weights that are reported beside K itself; half of it is among them."""
    return sorted({size for size in SWEEP if size < samples} | {max(1, samples // 2), samples})


@dataclass(frozen=True)
class Images:
    """Images to score, on the model's device, each with the name of its noise."""

    pixels_NP: Tensor
    labels_N: Tensor | None
    names: tuple[int, ...]  # rows in the split that they are of

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> Images:
        labels = None if self.labels_N is None else self.labels_N[rows]
        return Images(self.pixels_NP[rows], labels, self.names[rows])

    def as_float(self) -> Tensor:
        """Return pixels as float32, [B, P]."""
        return self.pixels_NP.to(torch.float32)

    def split(self, size: int) -> Iterator[slice]:
        """Yield consecutive slices of at most `size` images."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def noise(self, model: Glas, seed: int, purpose: str, draws: int, block: int = 0) -> Tensor:
        """Return each image's noise from the start of a block on, [T, draws, B, Z].

        A block holds `NOISE_BLOCK` draws; more draws continue in the next blocks.
        """
        each = model.steps * model.noise_size
        blocks = math.ceil(draws / NOISE_BLOCK)
        keys = streams.keys(seed, purpose, self.names).to(self.pixels_NP.device)[:, None]
        of = block + torch.arange(blocks, device=keys.device)
        in_block = min(draws, NOISE_BLOCK)
        noise = streams.normals(keys.expand(-1, blocks), in_block * each, of)
        noise = noise.reshape(len(self), blocks * in_block, model.steps, model.noise_size)
        return noise[:, :draws].permute(2, 1, 0, 3)


@dataclass(frozen=True)
class Weigher:
    """How images are weighed.

    `prepare` is called with each chunk of images before it is weighed, and returns the model for
    any slice of it: a recogniser may have parameters of an image's own.
    """

    seed: int
    purpose: str  # names the noise
    stage: str  # names the work, for progress and for partial work
    samples: int
    prepare: Callable[[Images], Callable[[slice], Glas]]
    chunk: int = ROWS
    rows: int = ROWS
    log_w: Weights = field(default_factory=lambda: Weights(), repr=False, compare=False)

    def __call__(
        self, images: Images, partial: Partial, tick: Tick = lambda stage, done, total: None
    ) -> PerImage:
        """Return `elbo`, `iw` for every K of the sweep, `v` and `ess`, [N] each.

        Raises:
            NotFinite: a weight is not a number.
        """
        stored = {name: value.numpy() for name, value in partial.load(self.stage).items()}
        chunks = [stored] if stored else []
        start = len(stored["iw"]) if stored else 0
        for rows in images.split(self.chunk):
            if rows.stop <= start:
                continue
            here = images[rows]
            model_for = self.prepare(here)
            for part in here.split(max(1, self.rows // self.samples)):
                if rows.start + part.stop > start:  # kept work may end inside a part
                    part = slice(max(part.start, start - rows.start), part.stop)
                    chunks.append(self._weigh(model_for(part), here[part]))
                    done = rows.start + part.stop
                    if partial.due or done == len(images):
                        values = joined(chunks)
                        partial.keep(self.stage, {k: torch.from_numpy(values[k]) for k in values})
                    tick(self.stage, done, len(images))
        return joined(chunks)

    @torch.inference_mode()
    def _weigh(self, model: Glas, images: Images) -> PerImage:
        x, parts = images.as_float(), []
        at_once = max(1, self.rows // len(images) // NOISE_BLOCK) * NOISE_BLOCK
        for start in range(0, self.samples, at_once):
            draws = min(at_once, self.samples - start)
            noise = images.noise(model, self.seed, self.purpose, draws, start // NOISE_BLOCK)
            parts.append(self.log_w(model, x, images.labels_N, noise))
        log_w_KB = torch.cat(parts).double()
        values = {
            "iw": importance_weighted_nll(log_w_KB),
            "v": variance(log_w_KB),
            "ess": effective_sample_size(log_w_KB),
        }
        for size in sweep_sizes(self.samples):
            groups = len(log_w_KB) // size  # disjoint, and averaged
            of_groups = log_w_KB[: groups * size].reshape(groups, size, -1).transpose(0, 1)
            values[f"iw_{size}"] = importance_weighted_nll(of_groups).mean(0)
        return as_numbers(values, images)


class Weights:
    """Log importance weights of rollouts of the same shapes, many times: see `ops.programs`.

    A recogniser's parameters of an image's own (`shift`) are taken at every call; all other tensors
    of the model must stay where they are.
    """

    def __init__(
        self, tell: Tell = lambda message: None, ways: Sequence[str] | None = None
    ) -> None:
        self.tell = tell
        self.ways = ways
        self.programs: dict[tuple[object, ...], programs.Program] = {}

    def __call__(self, model: Glas, x: Tensor, labels: Tensor | None, noise_TKBZ: Tensor) -> Tensor:
        """Return log w [K, B]."""
        given: list[Tensor] = [x, noise_TKBZ.contiguous()]
        given += [] if labels is None else [labels]
        shift: tuple[Tensor, ...] | None = getattr(model, "shift", None)
        given += shift or ()
        key = (id(model), shift is None, *(tensor.shape for tensor in given))
        if key not in self.programs:
            build = functools.partial(_weights_program, model, labels is not None)
            self.programs[key] = programs.Program(build, x.device, tell=self.tell, ways=self.ways)
        log_w: Tensor = self.programs[key](*given)
        return log_w.clone()


def with_shift(noise_TKBZ: Tensor, shift: Sequence[Tensor]) -> Tensor:
    """Return noise side by side with an image's own parameters [B, T, Z], [T, K, B, 3 Z]."""
    parts = [part.transpose(0, 1)[:, None].expand_as(noise_TKBZ) for part in shift]
    return torch.cat([noise_TKBZ, *parts], -1)


def step_of(model: Glas, compile_step: bool) -> Callable[..., Any]:
    """Return the model's step for `rollout`, without read, q and z, which are not used there."""
    if not compile_step:
        return model.step

    def few(*arguments: Any) -> Any:
        state, now = model.step(*arguments)
        return state, now.charge, now.log_ratio

    for buffer in rollout.statistics(model).values():
        programs.any_length(buffer, 0)
    take = programs.compiled_tree(few, True)

    def step(*arguments: Any) -> Any:
        state, charge, log_ratio = take(*arguments)
        return state, Step(charge, log_ratio, read=charge, q=None, z=charge)

    return step


def _weights_program(model: Glas, labelled: bool, compile_step: bool) -> Callable[..., Tensor]:
    take = step_of(model, compile_step)
    device = next(model.parameters()).device
    tape = None if compile_step else linear.tape_for(device, 1)

    def log_w(x: Tensor, noise: Tensor, *others: Tensor) -> Tensor:
        labels, shift = (others[0], others[1:]) if labelled else (None, others)
        if shift:
            noise = with_shift(noise, shift)
        with linear.precision(tape=tape):
            return rollout.rollout(model, x, x, labels, noise, step=take).log_w

    return log_w


def rows_on(device: torch.device) -> int:
    """Return the rows to score at once on a device."""
    return ROWS_ON_GPU if device.type == "cuda" else ROWS


def joined(chunks: Sequence[PerImage]) -> PerImage:
    """Join the values of consecutive chunks of images."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def as_numbers(tensors: dict[str, Tensor], images: Images) -> PerImage:
    """Return values as float64 arrays.

    Raises:
        NotFinite: one is not a number.
    """
    values = {name: value.double().cpu().numpy() for name, value in tensors.items()}
    for name, value in values.items():
        if np.isnan(value).any():
            raise NotFinite(f"{name} of image {images.names[0]} or after is not a number")
    return values
