"""Several optimisations of one kind in one program: every tensor has a leading seed axis.

The stack itself, its recurrence and its Adam are in `stack`. One step of all seeds is one function
of tensors that stay where they are (`ops.programs`): data, order, counters, sums and flags lie on
the device, and nothing waits for the host until `collect`. A seed whose loss or gradient is not
finite keeps its parameters from that step on, and the device notes its step; the others continue.

`StackedTraining` moves the optimisations that it is given. Between two calls of `collect` only the
stack is up to date; after one they are too, in their own formats, checkpoints included. The numbers
are those of training each alone, to rounding.

Shapes: S seeds, N training images; otherwise as in `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glas_bench.core import streams, train
from glas_bench.core.stack import EpochBatches, Progress, Rollout, Stack, StackedAdam, update
from glas_bench.core.train import PARTS, Diverged, Optimisation
from glas_bench.ops import programs

REASONS = ("", "the objective is not finite", "a gradient is not finite")

VALIDATION_ROWS = 250
"""Images of a seed that are validated at once."""


class StackedTraining:
    """Optimisations of one cell's seeds that take their steps together.

    Args:
        trainings: of one cell, at the same position, on one device.
        tell: called with a message when a program falls back to a slower way.
        ways: what is tried, see `ops.programs`.

    Raises:
        ValueError: the trainings do not stand at the same position.
    """

    def __init__(
        self,
        trainings: Sequence[Optimisation],
        *,
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
        self.tell = tell
        self.ways = ways
        self.going = list(range(len(self.trainings)))
        """Places of the trainings that still move."""
        self.diverged: dict[int, Diverged] = {}
        self.taken = 0
        """Steps taken that the trainings do not count yet."""
        keys = [streams.derive(one.seed, one.noise_stream) for one in self.trainings]
        self.batches = EpochBatches(torch.tensor(keys).to(self.device))
        seeds = len(self.trainings)
        self.progress = Progress(
            alive=torch.ones(seeds, dtype=torch.bool, device=self.device),
            failed_step=torch.full((seeds,), -1, dtype=torch.int64, device=self.device),
            reason=torch.zeros(seeds, dtype=torch.int64, device=self.device),
            sums=torch.zeros(seeds, len(PARTS), dtype=torch.float64, device=self.device),
            place=self.batches.place,
        )
        self.rate = torch.zeros((), dtype=torch.float64, device=self.device)
        self._stack()

    # ---- what the driver sees

    @property
    def prepared(self) -> bool:
        """Whether the step is compiled and captured, where it is going to be."""
        return self.program.function is not None

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
        return not self.going or self.first.finished

    def step(self) -> None:
        """Take one step of every seed; on a GPU this returns before it is done."""
        at = self.first.at
        if self.batches.epoch != at.epoch:
            self._begin_epoch()
        self.rate.fill_(self.first.learning_rate_at(at.epoch, at.step + self.taken))
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
        alive, failed, reason, sums, _ = (tensor.tolist() for tensor in self.progress)
        states = self.adam.states()
        for i in list(self.going):
            one = self.trainings[i]
            taken = self.taken if alive[i] else failed[i] - one.at.step
            one.at.batch += taken
            one.at.step += taken
            one.at.sums = dict(zip(PARTS, sums[i], strict=True))
            one.optimiser.load(states[i])
            if not alive[i]:
                self.diverged[i] = Diverged(failed[i], REASONS[reason[i]])
                self.going.remove(i)
        self.taken = 0
        self._follow()
        return self.diverged

    def leave(self, i: int) -> None:
        """Move one of the collected trainings no further."""
        self.progress.alive[i] = False
        self.going.remove(i)
        self._follow()

    def _follow(self) -> None:
        """Take the stack's position from a seed that continues."""
        if self.going:
            self.first = self.trainings[self.going[0]]

    def end_epoch(self) -> dict[int, dict[str, float]]:
        """Close a collected epoch; return the means of the seeds that continue, by their place."""
        means = {i: self.trainings[i].end_epoch() for i in self.going}
        self.go_on()
        return means

    def go_on(self) -> None:
        """Begin the next phase if the trainings, whose epoch is closed, have done so."""
        if self.going and self.first.phase is not self.phase:
            self._stack()

    def validate(self) -> list[tuple[str, float]]:
        """Return of every seed what `Training.validate` does, of all in one program.

        Seeds with running statistics are validated one by one: each freezes its own.
        """
        first, model = self.first, self.stack.skeleton
        if model.statistics_of:
            return [one.validate() for one in self.trainings if isinstance(one, train.Training)]
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
                if len(rows) not in self.validations:
                    self.validations[len(rows)] = programs.Program(
                        self._build_validation, self.device, tell=self.tell, ways=self.ways
                    )
                total += self.validations[len(rows)](*given)
        model.train(was_training)
        kind = "elbo" if model.has_density else "recon"
        return [(kind, value / len(x)) for value in total.tolist()]

    def _build_validation(self, compile_step: bool) -> programs.Function:
        """Return the function that sums over images, [S]; a program serves one number of them."""
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

    # ---- the stack

    def _stack(self) -> None:
        """Take over parameters, optimiser and sums from the trainings."""
        self.phase = self.first.phase
        models = [one.model for one in self.trainings]
        self.stack = Stack(models, self.config.precision, like=self.first.model)
        self.adam = StackedAdam(self.stack, train.clip_groups(self.first.model))
        for i, one in enumerate(self.trainings):
            self.adam.load(i, one.optimiser.state)
        self.batches.epoch = None
        self.validations: dict[int, programs.Program] = {}
        ways = self.ways or programs.ways_on(self.device, self.first.total_steps)
        self.program = programs.Program(
            self._build,
            self.device,
            kept=lambda: [*self.adam.tensors, *self.progress],
            tell=self.tell,
            ways=ways,
        )

    def _begin_epoch(self) -> None:
        """Put order, pixels, counters and sums of the trainings on the device."""
        at = self.first.at
        data = [one.epoch_images(at.epoch) for one in self.trainings]
        self.batches.begin(at, data, shared=not self.first.redraws)
        for i in self.going:
            values = [self.trainings[i].at.sums[part] for part in PARTS]
            self.progress.sums[i].copy_(torch.tensor(values, dtype=torch.float64))

    # ---- one step

    def _batch(self, normals: programs.Function) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return images [S, B, P], labels [S, B] and noise [S, T, K, B, Z] of the step."""
        batch, labels, model = self.first.batch, self.first.labels, self.stack.skeleton
        rows_SB = self.batches.rows(batch)
        return (
            self.batches.images(rows_SB),
            None if labels is None else labels[rows_SB],
            self.batches.noise(normals, model.steps, model.draws, batch, model.noise_size),
        )

    def _build(self, compile_parts: bool) -> Callable[[], None]:
        phase = self.phase
        run = Rollout(
            self.stack,
            compile_step=compile_parts,
            generates=phase.generates,
            auxiliary=phase.auxiliary,
            defers=True,
        )
        objective = self.stack.call(lambda model, terms: train.mean_objective(phase, model, terms))
        normals = programs.compiled(streams.normals_at, compile_parts, any_size=True)
        updates = programs.compiled(update, compile_parts)

        def step() -> None:
            images, labels, noise = self._batch(normals)
            with torch.enable_grad():
                tensors = self.stack.tensors
                terms = run(tensors, images, labels, noise)
                values_S = objective(tensors, terms)
                gradients = run.gradients(values_S.sum(), self.adam.trained)
            parts_S4 = torch.stack(
                [values_S, *(part.mean((1, 2)) for part in (terms.recon, terms.charge, terms.aux))],
                1,
            ).detach()
            updates(self.adam.moved(gradients), self.progress, parts_S4, self.rate)

        return step
