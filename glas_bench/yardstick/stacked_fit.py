"""Fits of several seeds in one program, as `stacked` trains them: what a GPU is given.

`StackedFit` moves the `Fit`s that it is given; after `collect` they stand where the stack does, so
that one can be kept, looked at and taken up alone, on any device. The same numbers as fitting each
alone, to rounding.

Images are weighed seed by seed all the same: there one seed's rows fill a GPU.

Shapes: S seeds, N training images; otherwise as in `model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glas_bench.core import streams
from glas_bench.core.stack import Deck, Rollout, Stack, StackedAdam, group_names, move
from glas_bench.ops import programs
from glas_bench.record import Partial
from glas_bench.yardstick.refit import Fit
from glas_bench.yardstick.weights import NotFinite, Tick


class StackedFit:
    """Fits of one cell's seeds that take their steps together.

    Args:
        fits: at the same step, on one device.
        segment: see `core.stack.Rollout`.
        tell: is told what runs slower than it might.
        ways: what is tried, see `ops.programs`.

    Raises:
        ValueError: the fits do not stand at the same step.
    """

    def __init__(
        self,
        fits: Sequence[Fit],
        *,
        segment: int | None = None,
        tell: Callable[[str], None] = lambda message: None,
        ways: Sequence[str] | None = None,
    ) -> None:
        if len({fit.step for fit in fits}) != 1:
            raise ValueError(f"fits must stand together, got {[fit.step for fit in fits]}")
        self.fits = list(fits)
        self.first = self.fits[0]
        self.segment = segment
        self.device = self.first.validation.pixels_NP.device
        keys = torch.tensor([streams.derive(fit.seed, "refit") for fit in fits])
        self.deck = Deck(keys.to(self.device))
        precision = self.first.config.precision
        self.stack = Stack([fit.recogniser for fit in fits], precision)
        self.adam = StackedAdam(self.stack, group_names(self.first.recogniser))
        for i, fit in enumerate(fits):
            self.adam.load(i, fit.adam.state)
        self.good = torch.ones(len(self.fits), dtype=torch.bool, device=self.device)
        self.rate = torch.zeros((), dtype=torch.float64, device=self.device)
        self.step_number = self.first.step
        self.program = programs.Program(
            self._build, self.device, kept=self._kept, tell=tell, ways=ways
        )

    def step(self) -> None:
        """Let every fit take one step; on a GPU this returns before it is taken."""
        epoch, batch = divmod(self.step_number, self.first.steps_per_epoch)
        if self.deck.epoch != epoch:
            self._begin_epoch(epoch, batch)
        self.rate.fill_(self.first.learning_rate_at(self.step_number))
        self.program()
        self.step_number += 1

    def collect(self) -> list[Fit]:
        """Bring the fits to where the stack stands; return those that are still good.

        One whose gradient was not finite stays at the step before it was last collected.
        """
        good, states = self.good.tolist(), self.adam.states()
        with torch.no_grad():
            for i, fit in enumerate(self.fits):
                if good[i]:
                    for name, parameter in fit.parameters.items():
                        parameter.copy_(self.stack.parameters[name][i])
                    fit.adam.load(states[i])
                    fit.step = self.step_number
        return [fit for fit, is_good in zip(self.fits, good, strict=True) if is_good]

    def stop(self, fit: Fit) -> None:
        """Move one of the fits no further."""
        self.good[self.fits.index(fit)] = False

    def _kept(self) -> list[Tensor]:
        return [*self.adam.tensors, self.good, self.deck.place]

    def _begin_epoch(self, epoch: int, batch: int) -> None:
        self.deck.lay(
            epoch,
            [fit.epoch_images(epoch) for fit in self.fits],
            shared=self.first.splits.binarisation == "static",
            batch=batch,
            step=self.step_number,
        )

    def _build(self, compile_parts: bool) -> Callable[[], None]:
        run = Rollout(self.stack, compile_step=compile_parts, segment=self.segment)
        moves = programs.compiled(move, compile_parts)
        leaves = list(self.adam.trained.values())
        model = self.first.recogniser

        def step() -> None:
            x = self.deck.images(self.deck.rows(self.first.batch))
            noise = self.deck.noise(model.steps, 1, self.first.batch, model.noise_size)
            with torch.enable_grad():
                terms = run(self.stack.tensors, x, None, noise)
                values_S = (terms.recon + terms.charge).mean((1, 2))
                found = torch.autograd.grad(values_S.sum(), leaves, allow_unused=True)
            gradients = dict(zip(self.adam.trained, found, strict=True))
            with torch.no_grad():
                norms = self.adam.norms(gradients)
                for norm in norms.values():
                    self.good.logical_and_(torch.isfinite(norm))
                self.adam.step(gradients, norms, self.good, self.rate, moves)
                self.deck.place += 1

        return step


def fit_together(
    fits: Sequence[Fit],
    name: str,
    partial: Sequence[Partial],
    tick: Tick = lambda stage, done, total: None,
    *,
    segment: int | None = None,
    tell: Callable[[str], None] = lambda message: None,
    ways: Sequence[str] | None = None,
) -> None:
    """Take the fits of one cell's seeds to their ends, those furthest behind first.

    A fit whose gradient or elbo is not finite is left where it was kept last: whoever goes on with
    it alone comes to the error.

    Args:
        fits: of one cell, their models in scoring mode.
        name: under which they are kept.
        partial: where each is kept.
        tick: called after each step; it may raise to stop.
        segment: see `core.stack.Rollout`.
        tell: is told what runs slower than it might.
        ways: what is tried, see `ops.programs`.
    """
    places = dict(zip(fits, partial, strict=True))
    for fit, place in places.items():
        fit.take_up(name, place)
    active = [fit for fit in fits if not fit.finished]
    while active:
        steps = sorted({fit.step for fit in active})
        until = steps[1] if len(steps) > 1 else active[0].total_steps
        behind = [fit for fit in active if fit.step == steps[0]]
        stack = StackedFit(behind, segment=segment, tell=tell, ways=ways)
        going = _advance(stack, until, name, places, tick)
        active = [fit for fit in active if not fit.finished and (fit not in behind or fit in going)]


def _advance(
    stack: StackedFit, until: int, name: str, places: dict[Fit, Partial], tick: Tick
) -> list[Fit]:
    """Take steps until one number of them; return the fits that are still good."""
    going, began = stack.fits, time.perf_counter()
    while going and stack.step_number < until:
        stack.step()
        is_mark = stack.step_number in stack.first.marks
        if is_mark or stack.step_number == until or any(places[fit].due for fit in going):
            going = [fit for fit in stack.collect() if fit in going]
            for fit in going:
                fit.seconds += (time.perf_counter() - began) / len(going)
            began = time.perf_counter()
            for fit in list(going):
                try:
                    if is_mark:
                        fit.look()
                    fit.keep(name, places[fit])
                except NotFinite:
                    going.remove(fit)
                if fit.finished or fit not in going:
                    stack.stop(fit)
            going = [fit for fit in going if not fit.finished]
        tick("fit", stack.step_number, stack.first.total_steps)
    return going
