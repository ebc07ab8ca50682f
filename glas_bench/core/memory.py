"""What a stack of seeds takes on a device, and how it is cut so that it fits.

What a step keeps for its gradients is counted, not guessed: one seed's rollout of one and of two
steps is run with hooks on what autograd saves, which gives the bytes a step and the bytes a
rollout. It is an upper bound for the compiled step, which keeps less.
"""

from __future__ import annotations

import gc
import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glas_bench.core import streams
from glas_bench.core.stack import Rollout, Stack
from glas_bench.core.train import Training
from glas_bench.ops import programs
from glas_bench.text import byte_size

SHARE = 0.85
"""Of the memory that is free, what may be planned with."""

COPIES = 5
"""Of every parameter: itself, its gradient, two moments, and room to move it."""

NOISE_BYTES = 24
"""A number of noise: itself and the words that it is made from, while they last."""

WORTH_STACKING = 4
"""Seeds together below which it is better to compute activations again than to cut further."""


@dataclass(frozen=True)
class Plan:
    """How a cell's seeds are trained.

    Attributes:
        seeds: so many are asked for.
        together: so many train in one program.
        segment: steps between kept activations, None where all are kept.
        needed: bytes that `together` seeds are expected to take.
        whole: bytes that all seeds would take with all activations kept.
        free: bytes that may be planned with.
    """

    seeds: int
    together: int
    segment: int | None
    needed: int
    whole: int
    free: int

    @property
    def text(self) -> str | None:
        """What was done to make it fit, or None where nothing had to be."""
        done = []
        if self.together < self.seeds:
            done.append(f"{self.together} of {self.seeds} seeds train at a time")
        if self.segment is not None:
            done.append(
                f"activations are kept every {self.segment} steps and computed again in between"
            )
        if not done:
            return None
        return (
            f"{self.seeds} seeds together would take {byte_size(self.whole)} of the "
            f"{byte_size(self.free)} to be had: {' and '.join(done)} ({byte_size(self.needed)})"
        )


@dataclass(frozen=True)
class Need:
    """Bytes that one seed takes.

    Attributes:
        fixed: parameters with their copies, noise, and what a rollout keeps beside its steps.
        step: what a step keeps for its gradients.
        state: what flows from a step to the next.
        steps: T.
    """

    fixed: int
    step: int
    state: int
    steps: int

    def total(self, segment: int | None = None) -> int:
        """Return the bytes of a seed with activations kept as `Plan.segment` says."""
        if segment is None:
            return self.fixed + self.steps * self.step
        return self.fixed + math.ceil(self.steps / segment) * self.state + segment * self.step


def need(training: Training) -> Need:
    """Return what a seed of a cell takes in training."""
    stack = Stack([training.model], training.config.precision)
    run = Rollout(stack, generates=training.phase.generates, auxiliary=training.phase.auxiliary)
    model, batch = training.model, training.config.batch
    images = training.splits.train.images[:batch].to(torch.float32)[None]
    labels = training.splits.train.labels
    seen = None if labels is None else labels[:batch][None]

    def kept(steps: int) -> int:
        shape = (steps, model.draws, batch, model.noise_size)
        noise = streams.normal(shape, 0, "memory", device=training.device)[None]
        own = {tensor.untyped_storage().data_ptr() for tensor in stack.tensors.values()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            terms = run(stack.tensors, images, seen, noise)
            values = sum(part.sum() for part in terms)
        del values, terms
        return sum(found.values())

    one, two = kept(1), kept(2)
    step = max(two - one, 0)
    state = sum(tensor.nbytes for tensor in programs.tensors_of(_first_state(training, images[0])))
    parameters = sum(p.nbytes for p in stack.parameters.values())
    noise = model.steps * model.draws * batch * model.noise_size * NOISE_BYTES
    fixed = COPIES * parameters + noise + max(one - step, 0)
    return Need(fixed, step, model.draws * state, model.steps)


def _first_state(training: Training, images: Tensor) -> Any:
    with torch.no_grad():
        return training.model.begin(images, images, None)[1]


def plan(training: Training, seeds: int, free: int | None = None) -> Plan:
    """Return how so many seeds of a cell are trained on the device of one of them.

    Args:
        training: one of the seeds.
        seeds: how many.
        free: bytes that may be taken; a share of what the device has free unless said.
    """
    one = need(training)
    available = int(SHARE * free_bytes(training.device)) if free is None else free
    whole = seeds * one.total()
    together = min(seeds, available // one.total())
    if together >= min(seeds, WORTH_STACKING):
        return Plan(seeds, together, None, together * one.total(), whole, available)
    segment = max(1, round(math.sqrt(one.steps)))
    cut = one.total(segment)
    together = max(1, min(seeds, available // cut))
    return Plan(seeds, together, segment, together * cut, whole, available)


def free_bytes(device: torch.device | str) -> int:
    """Return the bytes that are free on a device, what is no longer used among them."""
    device = torch.device(device)
    if device.type == "cuda":
        release()
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return sys.maxsize  # a system that does not tell: nothing is cut


def release() -> None:
    """Give back what finished stacks held: they and their graphs refer to each other, so that only
    the collector finds them, and the allocator keeps what it has got."""
    gc.collect()
    torch.cuda.empty_cache()
