"""Models of one kind with a leading axis, the seeds of a cell: parameters, data, time and Adam.

`torch.func.vmap` maps the model's own `begin`, `step` and `finish` over the seed axis, so variants
need no code for it; gradients are taken outside vmap, clipping and Adam act on the stacks. Nothing
here waits for the host.

Shapes: S seeds; otherwise as in `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from glas_bench.core import rollout, streams, train
from glas_bench.model import LSTM, Context, Glas, Linear, State, Terms
from glas_bench.ops import adam, deferral, linear, programs
from glas_bench.ops.adam import BETA_1, BETA_2, EPSILON


class Stack:
    """Parameters and buffers of models of one kind, with a leading axis.

    Args:
        models: alike but for their numbers, on one device; they are not changed.
        precision: of the layers' products.
        like: the model whose trained parameters are those of the stack; by default the first.
    """

    def __init__(
        self, models: Sequence[Glas], precision: str = "fp32", like: Glas | None = None
    ) -> None:
        self.skeleton = like or models[0]
        self.low = precision == "bf16"
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for name, parameter in self.skeleton.named_parameters():
            stacked = torch.stack([model.get_parameter(name).detach() for model in models])
            self.parameters[name] = stacked.requires_grad_(parameter.requires_grad)
        for name, _ in self.skeleton.named_buffers():
            self.buffers[name] = torch.stack([model.get_buffer(name) for model in models])

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

    def call(
        self, function: Callable[..., Any], *, shared: int = 0, cast: bool = True
    ) -> Callable[..., Any]:
        """Return a function of (tensors, arguments...) carried over the leading axis.

        Args:
            function: takes the model and arguments, which are trees of tensors.
            shared: number of last arguments without such an axis.
            cast: whether kernels are cast where the precision asks for it.
        """
        module = rollout.Program(self.skeleton, function)
        low = kernel_names(self.skeleton) if self.low and cast else ()

        def one(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            named = {
                f"model.{name}": tensor.to(torch.bfloat16) if name in low else tensor
                for name, tensor in tensors.items()
            }
            return torch.func.functional_call(module, named, arguments)

        def mapped(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            axes = (0, *[0] * (len(arguments) - shared), *[None] * shared)
            return torch.func.vmap(one, in_dims=axes)(tensors, *arguments)

        return mapped


def kernel_names(model: Glas) -> frozenset[str]:
    """Return the names of the weights that `linear.add` multiplies by."""
    names = set()
    for place, module in model.named_modules():
        if isinstance(module, LSTM):
            names |= {f"{place}.kernels.{name}" for name in module.kernels}
        elif isinstance(module, Linear):
            names.add(f"{place}.weight")
    return frozenset(names)


class Rollout:
    """The recurrence of all seeds: as `rollout.rollout`, with a leading seed axis.

    Args:
        stack: the models.
        compile_step: whether the step is compiled.
        generates: as in `rollout.rollout`.
        auxiliary: as in `rollout.rollout`.
        defers: whether the steps' gradients of weights are left to `gradients`.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        compile_step: bool = False,
        generates: bool = True,
        auxiliary: rollout.Auxiliary | None = None,
        defers: bool = False,
    ) -> None:
        self.stack = stack
        self.generates = generates
        self.auxiliary = auxiliary
        self.defers = defers
        self.calls: list[deferral.Call | None] | None = None if defers else []
        self.given: list[list[Tensor]] = []
        self.taps: list[list[Tensor]] = []
        self._begin = stack.call(self._begin_one)
        step = stack.call(self._step_one, shared=1, cast=not defers)
        if compile_step:
            for name, buffer in rollout.statistics(stack.skeleton).items():
                programs.any_length(buffer, 0)
                programs.any_length(stack.buffers[name], 1)
        self._step = programs.compiled(step, compile_step)
        self._finish = stack.call(self._finish_one)

    def __call__(
        self, tensors: dict[str, Tensor], x: Tensor, labels: Tensor | None, noise: Tensor
    ) -> Terms:
        """Return terms [S, K, B] for images [S, B, P], labels [S, B] and noise [S, T, K, B, Z]."""
        seeds, steps, draws, images, _ = noise.shape
        # contiguous: strides that depend on T would compile the step again for another T
        noise_TSBZ = noise.transpose(0, 1).flatten(2, 3).contiguous()
        seen = (x,) if labels is None else (x, labels)
        context, state = self._begin(tensors, seen, noise[:, 0, :, 0, 0])
        # zeros that a state begins with are expanded: give them the strides of every later step
        context, state = pytree.tree_map(lambda tensor: tensor.contiguous(), (context, state))
        silent = state.generation
        charge = log_ratio = x.new_zeros(seeds, draws * images)
        times = torch.arange(steps, device=x.device)
        if self.calls is None:
            self.calls = self._list_calls(tensors, context, state, noise_TSBZ[0], times[0])
        dtype = torch.bfloat16 if self.stack.low else None
        kernels = deferral.stacked_kernels(self.calls, self.stack.parameters, dtype)
        zero = noise.new_zeros((), dtype=dtype, requires_grad=True)
        self.given, self.taps = [], []
        for noise_SBZ, time in zip(noise_TSBZ.unbind(), times.unbind(), strict=True):
            # zeros that take gradients and no memory
            taps = [zero.expand(seeds, call.rows, call.out) for call in self.calls if call]
            state, now, given = self._step(tensors, context, state, noise_SBZ, kernels, taps, time)
            self.given.append(given)
            self.taps.append(taps)
            if self.generates:
                charge, log_ratio = charge + now[0], log_ratio + now[1]
            else:
                state = state._replace(generation=silent)
        recon, aux = self._finish(tensors, context, state)
        shape = (seeds, draws, images)
        return Terms(*(part.reshape(shape) for part in (recon, charge, log_ratio, aux)))

    def gradients(self, value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Return the gradients by parameters [S, ...] of a value [] made from the last rollout."""
        assert self.calls is not None
        taps = [tap for of_step in self.taps for tap in of_step]
        found = torch.autograd.grad(value, [*leaves.values(), *taps], allow_unused=True)
        arrived = iter(found[len(leaves) :])
        by_step = [[next(arrived) for _ in of_step] for of_step in self.taps]
        late = deferral.gradients(self.calls, leaves, self.given, by_step)
        self.given, self.taps = [], []
        gradients: dict[str, Tensor | None] = dict(zip(leaves, found, strict=False))
        for name, gradient in late.items():
            early = gradients[name]
            gradients[name] = gradient if early is None else early + gradient
        return gradients

    @torch.no_grad()
    def _list_calls(self, tensors: dict[str, Tensor], *arguments: Any) -> list[Any]:
        """Return the calls of `linear.add` in a step, from one that is not used otherwise."""
        calls: list[list[deferral.Call | None]] = []

        def listed(model: Glas, parts: Any, state: State, noise: Tensor, t: Tensor) -> Tensor:
            def step() -> None:
                model.step(self._context(parts), state, noise, t)

            calls.append(deferral.list_calls(step, dict(model.named_parameters())))
            return noise

        self.stack.call(listed, shared=1)(tensors, *arguments)
        return calls[0]

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

    def _step_one(
        self,
        model: Glas,
        parts: Any,
        state: State,
        noise: Tensor,
        kernels: list[Tensor],
        taps: list[Tensor],
        t: Tensor,
    ) -> Any:
        context = self._context(parts)
        if not taps:
            state, step = model.step(context, state, noise, t)
            return state, (step.charge, step.log_ratio), []
        calls = deferral.Deferral(self.calls or [], kernels, taps)
        with linear.precision("fp32", calls.add):
            state, step = model.step(context, state, noise, t)
        return state, (step.charge, step.log_ratio), calls.given

    def _finish_one(self, model: Glas, parts: Any, state: State) -> tuple[Tensor, Tensor]:
        context = self._context(parts)
        recon, aux = model.finish(context, state)
        if self.auxiliary is not None:
            aux = self.auxiliary(model, context, state)
        return recon, aux


class EpochBatches:
    """The training images of an epoch on the device, and the batch and noise of the current step.

    The counter lies on the device too, so that a captured step takes the next batch at each replay.

    Args:
        keys: of the seeds' noise, int64 [S], on the device.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self.place = keys.new_zeros(2)  # batch of the epoch, step of the run
        self.epoch: int | None = None

    def begin(
        self,
        at: train.Position,
        data: Sequence[tuple[Tensor, Tensor]],
        *,
        shared: bool,
    ) -> None:
        """Put an epoch on the device; later ones take the place of the first.

        Args:
            at: the next step.
            data: pixels [N, P] and order [N] of every seed.
            shared: whether the pixels are the same for all seeds and epochs.
        """
        orders = torch.stack([order for _, order in data])
        pixels = data[0][0] if shared else torch.stack([pixels for pixels, _ in data])
        if self.epoch is None:
            self.orders, self.pixels = orders, pixels
        else:
            self.orders.copy_(orders)
            if not shared:
                self.pixels.copy_(pixels)
        self.place.copy_(torch.tensor([at.batch, at.step]))
        self.epoch = at.epoch

    def rows(self, size: int) -> Tensor:
        """Return which images the batch holds, [S, B]."""
        within = self.place[0] * size + torch.arange(size, device=self.place.device)
        return self.orders.index_select(1, within)

    def images(self, rows_SB: Tensor) -> Tensor:
        """Return images as float32, [S, B, P]."""
        if self.pixels.dim() == 2:
            return self.pixels[rows_SB].to(torch.float32)
        seeds = torch.arange(len(rows_SB), device=rows_SB.device)[:, None]
        return self.pixels[seeds, rows_SB].to(torch.float32)

    def noise(self, normals: programs.Function, *shape: int) -> Tensor:
        """Return every seed's noise of this step, [S, ...]; `normals` is `streams.normals_at`."""
        count = math.prod(shape)
        made: Tensor = normals(streams.counters(count, self.keys.device), self.keys, self.place[1])
        return made[:, :count].reshape(-1, *shape)


class StackedAdam:
    """Clips and moves the trained parameters of a stack, each seed as `adam.Adam` would alone.

    Args:
        stack: what is moved, in place.
        groups: names of parameters that are clipped as one tensor, see `train.clip_groups`.
    """

    def __init__(self, stack: Stack, groups: Sequence[Sequence[str]]) -> None:
        self.trained = {n: p for n, p in stack.parameters.items() if p.requires_grad}
        self.groups = groups
        self.moments = {
            n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.trained.items()
        }
        self.counts = {n: p.new_zeros(len(p)) for n, p in self.trained.items()}

    @property
    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        return pytree.tree_leaves((self.trained, self.moments, self.counts))

    def load(self, i: int, states: adam.State) -> None:
        """Continue seed i from the state of an optimiser of its own."""
        for name, state in states.items():
            if name in self.trained:
                self.moments[name][0][i].copy_(state["exp_avg"])
                self.moments[name][1][i].copy_(state["exp_avg_sq"])
                self.counts[name][i] = float(state["step"])

    def states(self) -> list[adam.State]:
        """Return every seed's state, without parameters that were never moved."""
        if not self.counts:
            return [{}]
        moved_SN = (torch.stack(list(self.counts.values()), 1) > 0).tolist()
        return [
            {
                name: {
                    "step": self.counts[name][i].clone(),
                    "exp_avg": self.moments[name][0][i].clone(),
                    "exp_avg_sq": self.moments[name][1][i].clone(),
                }
                for name, was_moved in zip(self.trained, moved, strict=True)
                if was_moved
            }
            for i, moved in enumerate(moved_SN)
        ]

    def moved(self, gradients: Mapping[str, Tensor | None]) -> list[list[Moved]]:
        """Return the parameters with a gradient [S, ...] and their moments, in their groups."""
        groups = [
            [
                Moved(self.trained[name], gradient, *self.moments[name], self.counts[name])
                for name in names
                if (gradient := gradients.get(name)) is not None
            ]
            for names in self.groups
        ]
        return [group for group in groups if group]


class Moved(NamedTuple):
    """A stack of parameters [S, ...] with all that moves it."""

    parameter: Tensor
    gradient: Tensor
    mean: Tensor  # Adam's first moment
    square: Tensor  # its second
    steps: Tensor  # [S] taken so far


class Progress(NamedTuple):
    """Where the seeds stand, on the device."""

    alive: Tensor  # bool [S]: whether the seed still moves
    failed_step: Tensor  # int64 [S]; -1 while it does
    reason: Tensor  # int64 [S]: 1 the objective is not finite, 2 a gradient
    sums: Tensor  # float64 [S, parts] of the epoch
    place: Tensor  # int64 [2] of `EpochBatches`


@torch.no_grad()
def update(groups: list[list[Moved]], progress: Progress, parts_SN: Tensor, rate: Tensor) -> None:
    """Clip every group, take Adam's step for the seeds that can take it, and count, in place.

    Args:
        groups: parameters that are clipped as one tensor each, with their gradients.
        progress: where the seeds stand.
        parts_SN: what is summed over the epoch, the objective first.
        rate: the learning rate, [].
    """
    norms = [
        torch.stack([m.gradient.flatten(1).norm(dim=1).double().square() for m in group])
        .sum(0)
        .sqrt()
        for group in groups
    ]
    finite = torch.isfinite(parts_SN[:, 0])
    smooth = torch.stack([torch.isfinite(norm) for norm in norms]).all(0)
    good = progress.alive & finite & smooth
    failed = progress.alive & ~good
    progress.failed_step.copy_(torch.where(failed, progress.place[1], progress.failed_step))
    progress.reason.copy_(torch.where(failed, torch.where(finite, 2, 1), progress.reason))
    progress.alive.copy_(good)
    for group, norm in zip(groups, norms, strict=True):
        _move(group, torch.clamp(train.CLIP_NORM / norm, max=1.0).to(torch.float32), good, rate)
    progress.sums.add_(torch.where(good[:, None], parts_SN.double(), 0.0))
    progress.place.add_(1)


def _move(group: list[Moved], factor: Tensor, good: Tensor, rate: Tensor) -> None:
    """Take Adam's step along gradients times a factor [S] for the seeds [S] that are `good`."""
    for parameter, gradient, mean, square, steps in group:
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
