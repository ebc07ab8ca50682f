"""All seeds of a cell in one program: parameters, optimiser and streams with a leading seed axis.

`torch.func.vmap` carries the model's own `begin`, `step` and `finish` over the seed axis, so every
variant trains here without knowing of it; gradients are taken outside vmap, clipping and Adam act
on the stacks. One step of all seeds is one function of tensors that stay where they are (`program`
in `programs`): data, order, counters, sums and flags lie on the device, and nothing waits for the
host until `collect`. A seed whose loss or gradient is not finite keeps its parameters from that
step on, and its step is noted on the device; the others go on.

`StackedTraining` moves the `Training`s that it is given: between two `collect`s the stack is what
is true, after one they are, in their own formats, checkpoints included. The same numbers as
training each alone, to rounding.

Shapes: S seeds, N training images; otherwise as in `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from glas_bench import programs, rollout, streams, train
from glas_bench.adam import BETA_1, BETA_2, EPSILON
from glas_bench.model import LSTM, Context, Glas, Linear, State, Terms
from glas_bench.train import PARTS, Diverged, Training

REASONS = ("", "the objective is not finite", "a gradient is not finite")

VALIDATION_ROWS = 250
"""Images of a seed that are validated at once."""


class Stack:
    """Parameters and buffers of models of one kind, with a leading axis.

    Args:
        models: alike but for their numbers, on one device; they are left as they are.
    """

    def __init__(self, models: Sequence[Glas]) -> None:
        self.skeleton = models[0]
        self.parameters = {
            name: torch.stack([dict(m.named_parameters())[name].detach() for m in models])
            for name, _ in models[0].named_parameters()
        }
        self.buffers = {
            name: torch.stack([dict(m.named_buffers())[name] for m in models])
            for name, _ in models[0].named_buffers()
        }
        for name, parameter in models[0].named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)

    @torch.no_grad()
    def unstack(self, models: Sequence[Glas]) -> None:
        """Copy every slice into its model."""
        for i, model in enumerate(models):
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(self.tensors[name][i])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {**self.parameters, **self.buffers}

    def at(self, precision: str) -> dict[str, Tensor]:
        """Return the tensors as they are multiplied: with bf16 the layers' kernels cast once."""
        if precision != "bf16":
            return self.tensors
        kernels = kernel_names(self.skeleton)
        return {
            name: tensor.to(torch.bfloat16) if name in kernels else tensor
            for name, tensor in self.tensors.items()
        }

    def call(self, function: Callable[..., Any], *, shared: int = 0) -> Callable[..., Any]:
        """Return a function of (tensors, arguments...) carried over the leading axis.

        Args:
            function: takes the model and arguments, which are trees of tensors.
            shared: so many of the last arguments have no such axis.
        """
        module = rollout.Program(self.skeleton, function)

        def one(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            named = {f"model.{name}": tensor for name, tensor in tensors.items()}
            return torch.func.functional_call(module, named, arguments)

        def mapped(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            axes = (0, *[0] * (len(arguments) - shared), *[None] * shared)
            return torch.func.vmap(one, in_dims=axes)(tensors, *arguments)

        return mapped


def kernel_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that `products.add` multiplies by."""
    names = set()
    for place, module in model.named_modules():
        start = f"{place}." if place else ""
        if isinstance(module, LSTM):
            names |= {f"{start}kernels.{name}" for name in module.kernels}
        elif isinstance(module, Linear):
            names.add(f"{start}weight")
    return frozenset(names)


class Rollout:
    """The recurrence of all seeds: as `rollout.rollout`, with a leading seed axis.

    Args:
        stack: the models.
        compile_step: whether the step is compiled.
        segment: with a number, activations are kept at every so many steps and computed again in
            between when gradients are taken: less memory, a third more work.
        generates: as in `rollout.rollout`.
        auxiliary: as in `rollout.rollout`.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        compile_step: bool = False,
        segment: int | None = None,
        generates: bool = True,
        auxiliary: rollout.Auxiliary | None = None,
    ) -> None:
        self.segment = segment
        self.generates = generates
        self.auxiliary = auxiliary
        self._begin = stack.call(self._begin_one)
        self._step = programs.compiled(stack.call(self._step_one, shared=1), compile_step)
        self._finish = stack.call(self._finish_one)

    def __call__(
        self, tensors: dict[str, Tensor], x: Tensor, labels: Tensor | None, noise: Tensor
    ) -> Terms:
        """Return terms [S, K, B] for images [S, B, P], labels [S, B] and noise [S, T, K, B, Z]."""
        seeds, steps, draws, images, _ = noise.shape
        noise_TSBZ = noise.transpose(0, 1).flatten(2, 3)
        seen = (x,) if labels is None else (x, labels)
        context, state = self._begin(tensors, seen, noise[:, 0, :, 0, 0])
        # zeros that a state begins with are expanded: give them the strides of every later step
        context, state = pytree.tree_map(lambda tensor: tensor.contiguous(), (context, state))
        sums = (x.new_zeros(seeds, draws * images), x.new_zeros(seeds, draws * images))
        times = torch.arange(steps, device=x.device)
        length = self.segment or steps
        for start in range(0, steps, length):
            part = noise_TSBZ[start : start + length], times[start : start + length]
            if self.segment is None:
                state, sums = self._stretch(tensors, context, state, sums, *part)
            else:
                state, sums = checkpoint(
                    self._stretch,
                    tensors,
                    context,
                    state,
                    sums,
                    *part,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
        recon, aux = self._finish(tensors, context, state)
        shape = (seeds, draws, images)
        return Terms(*(part.reshape(shape) for part in (recon, *sums, aux)))

    def _stretch(
        self,
        tensors: dict[str, Tensor],
        context: Any,
        state: State,
        sums: tuple[Tensor, Tensor],
        noise: Tensor,
        times: Tensor,
    ) -> tuple[State, tuple[Tensor, Tensor]]:
        charge, log_ratio = sums
        silent = state.generation
        for noise_SBZ, time in zip(noise.unbind(), times.unbind(), strict=True):
            state, now = self._step(tensors, context, state, noise_SBZ, time)
            if self.generates:
                charge, log_ratio = charge + now[0], log_ratio + now[1]
            else:
                state = state._replace(generation=silent)
        return state, (charge, log_ratio)

    # ---- one seed's part, inside vmap

    @staticmethod
    def _begin_one(model: Glas, seen: tuple[Tensor, ...], noise_K1: Tensor) -> Any:
        x, *labels = seen
        context, state = model.begin(x, x, labels[0] if labels else None)
        draws = noise_K1.shape[0]
        if draws > 1:
            context, state = rollout.repeat_rows((context, state), draws)
        return (context.x, context.products, *context[2:3][: len(labels)]), state

    @staticmethod
    def _context(parts: Any) -> Context:
        x, made, *labels = parts
        return Context(x, x, labels[0] if labels else None, made)

    @classmethod
    def _step_one(cls, model: Glas, parts: Any, state: State, noise: Tensor, t: Tensor) -> Any:
        state, step = model.step(cls._context(parts), state, noise, t)
        return state, (step.charge, step.log_ratio)

    def _finish_one(self, model: Glas, parts: Any, state: State) -> tuple[Tensor, Tensor]:
        context = self._context(parts)
        recon, aux = model.finish(context, state)
        if self.auxiliary is not None:
            aux = self.auxiliary(model, context, state)
        return recon, aux


class StackedTraining:
    """Seeds of one cell that train together.

    Args:
        trainings: of one cell, at the same position, on one device.
        segment: see `Rollout`.
        tell: is told what runs slower than it might.
        ways: what is tried, see `programs`.

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
        self.keys = torch.tensor([streams.derive(one.seed, "noise") for one in self.trainings])
        self.keys = self.keys.to(self.device)
        self.alive = torch.ones(seeds, dtype=torch.bool, device=self.device)
        self.failed_step = torch.full((seeds,), -1, dtype=torch.int64, device=self.device)
        self.reason = torch.zeros(seeds, dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(seeds, len(PARTS), dtype=torch.float64, device=self.device)
        self.place = torch.zeros(2, dtype=torch.int64, device=self.device)  # batch, step
        self.rate = torch.zeros((), dtype=torch.float64, device=self.device)
        self.epoch: int | None = None
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
        if self.epoch != self.first.at.epoch:
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
        sums = self.sums.tolist()
        for i, one in enumerate(self.trainings):
            if i in self.diverged:
                continue
            taken = self.taken if alive[i] else failed[i] - one.at.step
            one.at.batch += taken
            one.at.step += taken
            one.at.sums = dict(zip(PARTS, sums[i], strict=True))
            one.optimiser.load(self._optimiser_of(i))
            if not alive[i]:
                self.diverged[i] = Diverged(failed[i], REASONS[reason[i]])
        self.taken = 0
        return self.diverged

    def end_epoch(self) -> dict[int, dict[str, float]]:
        """Close a collected epoch; return the means of the seeds that are alive, by their place."""
        means = {
            i: one.end_epoch() for i, one in enumerate(self.trainings) if i not in self.diverged
        }
        self.go_on()
        return means

    def go_on(self) -> None:
        """Take note that the trainings have closed their epoch, and begin what phase follows."""
        alive = [one for i, one in enumerate(self.trainings) if i not in self.diverged]
        if alive:
            self.first = alive[0]
            if self.first.phase is not self.phase:
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
                terms = run(self.stack.at(self.config.precision), seen, marks, noise)
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
        self.stack = Stack([one.model for one in self.trainings])
        self.trained = {n: p for n, p in self.stack.parameters.items() if p.requires_grad}
        self.groups = group_names(self.first.model)
        self.moments = {
            n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.trained.items()
        }
        seeds = len(self.trainings)
        self.counts = {n: torch.zeros(seeds, device=self.device) for n in self.trained}
        for i, one in enumerate(self.trainings):
            for name, state in one.optimiser.state.items():
                if name in self.trained:
                    self.moments[name][0][i].copy_(state["exp_avg"])
                    self.moments[name][1][i].copy_(state["exp_avg_sq"])
                    self.counts[name][i] = float(state["step"])
        for i, one in enumerate(self.trainings):
            values = [one.at.sums[part] for part in PARTS]
            self.sums[i] = torch.tensor(values, dtype=torch.float64)
        self.epoch = None
        self.validations: dict[int, programs.Program] = {}
        self.program = programs.Program(
            self._build, self.device, kept=self._kept, tell=self.tell, ways=self.ways
        )

    def _optimiser_of(self, i: int) -> dict[str, dict[str, Tensor]]:
        """Return the optimiser's state of one seed; none for what was never moved."""
        return {
            name: {
                "step": self.counts[name][i].clone(),
                "exp_avg": self.moments[name][0][i].clone(),
                "exp_avg_sq": self.moments[name][1][i].clone(),
            }
            for name in self.trained
            if float(self.counts[name][i]) > 0
        }

    def _kept(self) -> list[Tensor]:
        """Return what a step changes."""
        mutable = (self.trained, self.moments, self.counts)
        flags = (self.alive, self.failed_step, self.reason, self.sums, self.place)
        return [*programs.tensors_of(mutable), *flags]

    # ---- data

    def _begin_epoch(self) -> None:
        """Lay order, pixels, learning rate and counters on the device."""
        at = self.first.at
        found = [one.epoch_images(at.epoch) for one in self.trainings]
        orders = torch.stack([order for _, order in found])
        # one set of pixels for all, unless each seed has drawn its own
        shared = self.config.binarisation != "dynamic"
        pixels = found[0][0] if shared else torch.stack([pixels for pixels, _ in found])
        if self.epoch is None:
            self.orders, self.pixels = orders.clone(), pixels if shared else pixels.clone()
        else:
            self.orders.copy_(orders)
            if not shared:
                self.pixels.copy_(pixels)
        for i, one in enumerate(self.trainings):
            if i not in self.diverged:
                values = [one.at.sums[part] for part in PARTS]
                self.sums[i].copy_(torch.tensor(values, dtype=torch.float64))
        self.place.copy_(torch.tensor([at.batch, at.step]))
        self.rate.fill_(self.first.learning_rate)
        self.epoch = at.epoch

    def _batch(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return images [S, B, P], labels [S, B] and noise [S, T, K, B, Z] of the step."""
        batch, model = self.config.batch, self.stack.skeleton
        within = self.place[0] * batch + torch.arange(batch, device=self.device)
        rows_SB = self.orders.index_select(1, within)
        if self.pixels.dim() == 2:
            images = self.pixels[rows_SB]
        else:
            seeds = torch.arange(len(rows_SB), device=self.device)[:, None]
            images = self.pixels[seeds, rows_SB]
        labels = self.first.splits.train.labels
        shape = (model.steps, model.draws, batch, model.noise_size)
        noise = streams.normals(self.keys, math.prod(shape), self.place[1])
        return (
            images.to(torch.float32),
            None if labels is None else labels[rows_SB],
            noise.reshape(-1, *shape),
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
        move = programs.compiled(_move, compile_parts)

        def step() -> None:
            images, labels, noise = self._batch()
            leaves = list(self.trained.values())
            with torch.enable_grad():
                tensors = self.stack.at(self.config.precision)
                terms = run(tensors, images, labels, noise)
                values_S = objective(tensors, terms)
                found = torch.autograd.grad(values_S.sum(), leaves, allow_unused=True)
            gradients = dict(zip(self.trained, found, strict=True))
            parts_S4 = torch.stack(
                [values_S, *(part.mean((1, 2)) for part in (terms.recon, terms.charge, terms.aux))],
                1,
            ).detach()
            self._update(move, parts_S4, gradients)

        return step

    @torch.no_grad()
    def _update(
        self, move: programs.Function, parts_S4: Tensor, gradients: Mapping[str, Tensor | None]
    ) -> None:
        """Clip, move what can be moved, and count."""
        norms = self._norms(gradients)
        finite = torch.isfinite(parts_S4[:, 0])
        smooth = torch.stack([torch.isfinite(norm) for norm in norms.values()]).all(0)
        good = self.alive & finite & smooth
        now_failed = self.alive & ~good
        self.failed_step.copy_(torch.where(now_failed, self.place[1], self.failed_step))
        self.reason.copy_(torch.where(now_failed, torch.where(finite, 2, 1), self.reason))
        self.alive.copy_(good)
        moved = [name for name, gradient in gradients.items() if gradient is not None]
        factors = {
            name: torch.clamp(train.CLIP_NORM / norm, max=1.0).to(torch.float32)
            for group, norm in norms.items()
            for name in self.groups[group]
        }
        move(
            [
                Moved(
                    self.trained[name],
                    gradient,
                    *self.moments[name],
                    self.counts[name],
                    factors[name],
                )
                for name in moved
                if (gradient := gradients[name]) is not None
            ],
            good,
            self.rate,
        )
        self.sums += torch.where(good[:, None], parts_S4.double(), 0.0)
        self.place += 1

    def _norms(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Return the norm [S] of every group's gradient, in float64."""
        norms = {}
        for group, names in self.groups.items():
            squares = [
                gradient.flatten(1).norm(dim=1).double().square()
                for name in names
                if (gradient := gradients.get(name)) is not None
            ]
            if squares:
                norms[group] = torch.stack(squares).sum(0).sqrt()
        return norms


def group_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of trained parameters in the groups of `train.clip_groups`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(piece)] for piece in group] for group in train.clip_groups(model)]
    return {group[0]: group for group in groups}


class Moved(NamedTuple):
    """A stack of parameters [S, ...] with all that moves it."""

    parameter: Tensor
    gradient: Tensor
    mean: Tensor  # Adam's first moment
    square: Tensor  # its second
    steps: Tensor  # [S] taken so far
    factor: Tensor  # [S] by which the gradient is clipped


def _move(stacks: list[Moved], good: Tensor, rate: Tensor) -> None:
    """Take Adam's step in place for the seeds [S] that are `good`; the others stay as they are."""
    for parameter, gradient, mean, square, steps, factor in stacks:
        shape = (-1, *[1] * (parameter.dim() - 1))
        alive = good.view(shape)
        clipped = gradient * factor.view(shape)
        now = steps + 1
        mean_ = torch.lerp(mean, clipped, 1 - BETA_1)
        square_ = square * BETA_2 + clipped * clipped * (1 - BETA_2)
        size = (rate / (1 - BETA_1 ** now.double())).to(parameter.dtype).view(shape)
        root = (1 - BETA_2 ** now.double()).sqrt().to(parameter.dtype).view(shape)
        change = size * mean_ / (square_.sqrt() / root + EPSILON)
        parameter.copy_(torch.where(alive, parameter - change, parameter))
        mean.copy_(torch.where(alive, mean_, mean))
        square.copy_(torch.where(alive, square_, square))
        steps.copy_(torch.where(good, now, steps))
