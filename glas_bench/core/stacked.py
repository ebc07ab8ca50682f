"""All seeds of a cell in one program: parameters, optimiser and streams with a leading seed axis.

The stack itself, its recurrence and its Adam are in `stack`. One step of all seeds is one function
of tensors that stay where they are (`program` in `ops.programs`): data, order, counters, sums and
flags lie on the device, and nothing waits for the host until `collect`. A seed whose loss or
gradient is not finite keeps its parameters from that step on, and its step is noted on the device;
the others go on.

`StackedTraining` moves the `Training`s that it is given: between two `collect`s the stack is what
is true, after one they are, in their own formats, checkpoints included. The same numbers as
training each alone, to rounding.

Shapes: S seeds, N training images; otherwise as in `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from glas_bench.core import streams, train
from glas_bench.core.stack import Deck, Rollout, Stack, StackedAdam, group_names, move
from glas_bench.core.train import PARTS, Diverged, Training
from glas_bench.ops import programs

REASONS = ("", "the objective is not finite", "a gradient is not finite")

VALIDATION_ROWS = 250
"""Images of a seed that are validated at once."""


class StackedTraining:
    """Seeds of one cell that train together.

    Args:
        trainings: of one cell, at the same position, on one device.
        segment: see `Rollout`.
        tell: is told what runs slower than it might.
        ways: what is tried, see `ops.programs`.

    Raises:
        ValueError: the trainings do not stand at the same position.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        *,
        segment: int | None = None,
        tell: Callable[[str], None] = lambda message: None,
        ways: Sequence[str] | None = None,
    ) -> None:
        self.trainings = list(trainings)
        places = {(one.at.epoch, one.at.batch, one.at.step) for one in self.trainings}
        if len(places) != 1:
            raise ValueError(f"seeds that train together must stand together, got {places}")
        self.first = self.trainings[0]
        self.config = self.first.config
        self.device = self.first.device
        self.segment = segment
        self.tell = tell
        self.ways = ways
        seeds = len(self.trainings)
        keys = torch.tensor([streams.derive(one.seed, "noise") for one in self.trainings])
        self.deck = Deck(keys.to(self.device))
        self.alive = torch.ones(seeds, dtype=torch.bool, device=self.device)
        self.failed_step = torch.full((seeds,), -1, dtype=torch.int64, device=self.device)
        self.reason = torch.zeros(seeds, dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(seeds, len(PARTS), dtype=torch.float64, device=self.device)
        self.rate = torch.zeros((), dtype=torch.float64, device=self.device)
        self.taken = 0
        self.diverged: dict[int, Diverged] = {}
        self._stack()

    # ---- what the loop sees

    @property
    def epoch_done(self) -> bool:
        """Whether the current epoch has all its steps."""
        return self.first.at.batch + self.taken == self.first.steps_per_epoch

    @property
    def steps_done(self) -> int:
        """Steps taken in all, those that are not collected yet included."""
        return self.first.at.step + self.taken

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or no seed is left."""
        return self.first.finished or len(self.diverged) == len(self.trainings)

    def step(self) -> None:
        """Let every seed take one step; on a GPU this returns before it is taken."""
        if self.deck.epoch != self.first.at.epoch:
            self._begin_epoch()
        self.program()
        self.taken += 1

    def collect(self) -> dict[int, Diverged]:
        """Wait for the device and bring every training to where its seed stands.

        Returns:
            The seeds (by their place) that have diverged, each at its step with the parameters
            that it had before it.
        """
        if not self.taken:  # the trainings may stand in a new epoch already
            return self.diverged
        self.stack.unstack([one.model for one in self.trainings])
        alive, failed, reason = self.alive.tolist(), self.failed_step.tolist(), self.reason.tolist()
        sums, states = self.sums.tolist(), self.adam.states()
        for i, one in enumerate(self.trainings):
            if i in self.diverged:
                continue
            taken = self.taken if alive[i] else failed[i] - one.at.step
            one.at.batch += taken
            one.at.step += taken
            one.at.sums = dict(zip(PARTS, sums[i], strict=True))
            one.optimiser.load(states[i])
            if not alive[i]:
                self.diverged[i] = Diverged(failed[i], REASONS[reason[i]])
        self.taken = 0
        self._follow_the_living()
        return self.diverged

    def _follow_the_living(self) -> None:
        """Let a seed that goes on say where the stack stands."""
        alive = [one for i, one in enumerate(self.trainings) if i not in self.diverged]
        if alive:
            self.first = alive[0]

    def end_epoch(self) -> dict[int, dict[str, float]]:
        """Close a collected epoch; return the means of the seeds that are alive, by their place."""
        means = {
            i: one.end_epoch() for i, one in enumerate(self.trainings) if i not in self.diverged
        }
        self.go_on()
        return means

    def go_on(self) -> None:
        """Take note that the trainings have closed their epoch, and begin what phase follows."""
        self._follow_the_living()
        if len(self.diverged) < len(self.trainings) and self.first.phase is not self.phase:
            self._stack()

    def validate(self) -> list[tuple[str, float]]:
        """Return of every seed what `Training.validate` does, of all in one program.

        Seeds with running statistics are validated one by one: each freezes its own.
        """
        first, model = self.first, self.stack.skeleton
        if model.statistics_of:
            return [one.validate() for one in self.trainings]
        x, labels = train.chosen(
            first.splits, first.splits.validation, train.VALIDATION_IMAGES, "validation"
        )
        seeds = [streams.derive(one.seed, "validation") for one in self.trainings]
        shape = (model.steps, 1, len(x), model.noise_size)
        noise = streams.normals(torch.tensor(seeds, device=self.device), math.prod(shape))
        noise = noise.reshape(-1, *shape)
        total = torch.zeros(len(seeds), dtype=torch.float64, device=self.device)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(x), device=self.device), VALIDATION_ROWS):
                given = [x[rows], noise[:, :, :, rows]]
                given += [] if labels is None else [labels[rows]]
                total += self._validation_of(len(rows))(*given)
        model.train(was_training)
        kind = "elbo" if model.has_density else "recon"
        return [(kind, value / len(x)) for value in total.tolist()]

    def _validation_of(self, rows: int) -> programs.Program:
        """Return the program that sums over so many images, [S]."""
        if rows in self.validations:
            return self.validations[rows]

        def build(compile_step: bool) -> programs.Function:
            run = Rollout(self.stack, compile_step=compile_step)
            seeds = len(self.trainings)

            def validation(x: Tensor, noise: Tensor, *labels: Tensor) -> Tensor:
                seen = x.expand(seeds, *x.shape)
                marks = labels[0].expand(seeds, -1) if labels else None
                terms = run(self.stack.tensors, seen, marks, noise)
                values = terms.recon
                if self.stack.skeleton.has_density:
                    values = values + terms.log_ratio
                return values.double().sum((1, 2))

            return validation

        self.validations[rows] = programs.Program(
            build, self.device, tell=self.tell, ways=self.ways
        )
        return self.validations[rows]

    # ---- the stack

    def _stack(self) -> None:
        """Take over parameters, optimiser and position from the trainings."""
        self.phase = self.first.phase
        models = [one.model for one in self.trainings]
        self.stack = Stack(models, self.config.precision, like=self.first.model)
        self.adam = StackedAdam(self.stack, group_names(self.first.model))
        for i, one in enumerate(self.trainings):
            self.adam.load(i, one.optimiser.state)
        for i, one in enumerate(self.trainings):
            values = [one.at.sums[part] for part in PARTS]
            self.sums[i] = torch.tensor(values, dtype=torch.float64)
        self.deck.epoch = None
        self.validations: dict[int, programs.Program] = {}
        self.program = programs.Program(
            self._build, self.device, kept=self._kept, tell=self.tell, ways=self.ways
        )

    def _kept(self) -> list[Tensor]:
        """Return what a step changes."""
        flags = (self.alive, self.failed_step, self.reason, self.sums, self.deck.place)
        return [*self.adam.tensors, *flags]

    # ---- data

    def _begin_epoch(self) -> None:
        """Lay order, pixels, learning rate and counters on the device."""
        at = self.first.at
        self.deck.lay(
            at.epoch,
            [one.epoch_images(at.epoch) for one in self.trainings],
            # one set of pixels for all, unless each seed has drawn its own
            shared=self.config.binarisation != "dynamic",
            batch=at.batch,
            step=at.step,
        )
        for i, one in enumerate(self.trainings):
            if i not in self.diverged:
                values = [one.at.sums[part] for part in PARTS]
                self.sums[i].copy_(torch.tensor(values, dtype=torch.float64))
        self.rate.fill_(self.first.learning_rate)

    def _batch(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return images [S, B, P], labels [S, B] and noise [S, T, K, B, Z] of the step."""
        batch, model = self.config.batch, self.stack.skeleton
        rows_SB = self.deck.rows(batch)
        labels = self.first.splits.train.labels
        return (
            self.deck.images(rows_SB),
            None if labels is None else labels[rows_SB],
            self.deck.noise(model.steps, model.draws, batch, model.noise_size),
        )

    # ---- one step

    def _build(self, compile_parts: bool) -> Callable[[], None]:
        phase = self.phase
        run = Rollout(
            self.stack,
            compile_step=compile_parts,
            segment=self.segment,
            generates=phase.generates,
            auxiliary=phase.auxiliary,
        )
        objective = self.stack.call(
            lambda model, terms: (
                model.objective(terms) if phase.objective is None else phase.objective(model, terms)
            ).mean()
        )
        moves = programs.compiled(move, compile_parts)

        def step() -> None:
            images, labels, noise = self._batch()
            leaves = list(self.adam.trained.values())
            with torch.enable_grad():
                tensors = self.stack.tensors
                terms = run(tensors, images, labels, noise)
                values_S = objective(tensors, terms)
                found = torch.autograd.grad(values_S.sum(), leaves, allow_unused=True)
            gradients = dict(zip(self.adam.trained, found, strict=True))
            parts_S4 = torch.stack(
                [values_S, *(part.mean((1, 2)) for part in (terms.recon, terms.charge, terms.aux))],
                1,
            ).detach()
            self._update(moves, parts_S4, gradients)

        return step

    @torch.no_grad()
    def _update(
        self, moves: programs.Function, parts_S4: Tensor, gradients: Mapping[str, Tensor | None]
    ) -> None:
        """Clip, move what can be moved, and count."""
        norms = self.adam.norms(gradients)
        finite = torch.isfinite(parts_S4[:, 0])
        smooth = torch.stack([torch.isfinite(norm) for norm in norms.values()]).all(0)
        good = self.alive & finite & smooth
        now_failed = self.alive & ~good
        self.failed_step.copy_(torch.where(now_failed, self.deck.place[1], self.failed_step))
        self.reason.copy_(torch.where(now_failed, torch.where(finite, 2, 1), self.reason))
        self.alive.copy_(good)
        self.adam.step(gradients, norms, good, self.rate, moves)
        self.sums += torch.where(good[:, None], parts_S4.double(), 0.0)
        self.deck.place += 1
