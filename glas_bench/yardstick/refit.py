"""Refitting: one common recogniser for every decoder, so that arms are compared by what they model.

A variant's own q may be crippled (it sees x through five numbers a step), sharpened by a wrong
objective, without a density, or on a support that is not the prior's. None of that is p(x). So the
generative parameters are frozen and a new q is fitted to them on the negative ELBO, by the same
nets, steps and noise for every arm: the encoder of DRAW without attention (Gregor et al. 2015,
section 2) with a diagonal normal, and then gradient steps on each image's own means and log-stds
(semi-amortised inference: Kim, Wiseman, Miller, Sontag & Rush 2018, arXiv 1802.02550, section 3).

It infers in the space of standard-normal noise: z = prior.sample(eps), which is eps itself for
N(0, I) and Phi(eps) for U(0, 1). log p(x) is the same there, so one q serves every prior.

Shape suffixes as in `model`. Values are nats per image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glas_bench.config import RunConfig
from glas_bench.core import rollout, streams
from glas_bench.core.stacked import StackedTraining
from glas_bench.core.train import Diverged, Optimisation, Position
from glas_bench.data import Splits
from glas_bench.model import (
    Context,
    Generation,
    Glas,
    Memory,
    Normal,
    Phase,
    Recognition,
    RecurrentSettings,
    State,
    Step,
)
from glas_bench.ops import programs
from glas_bench.ops.adam import Adam
from glas_bench.record import Partial
from glas_bench.yardstick.weights import (
    Images,
    NotFinite,
    Tell,
    Tick,
    Weigher,
    Weights,
    step_of,
    with_shift,
)

CHUNK = 125
"""Images that are refined together; they influence one another by rounding only."""

CHUNK_ON_GPU = 2000
"""The same on a GPU."""

STILL_GAINING = 0.1
"""Nats gained in the last tenth of a fit above which it has not converged."""


@dataclass(frozen=True)
class Budget:
    """How a recogniser is fitted; part of the scoring protocol, the same for every arm."""

    share: float = 0.2
    """Steps, as a share of those that the arm was trained for: .12 costs .15 nats more than .25."""
    learning_rate: float = 2e-3
    """Adam's, constant for half of the steps and then linearly to 0."""
    checks: int = 10
    """Checks of the validation elbo, at equal distances; the best parameters are kept."""
    patience: int = 3
    """Checks without a gain after which fitting stops."""
    image_steps: int = 50
    """Gradient steps on an image's own means and log-stds."""
    image_steps_an_epoch: int = 5
    """At most this many of them for each epoch of the arm's training: smoke runs stay short."""
    image_learning_rate: float = 0.02
    """Adam's on these, linearly to 0."""

    def after(self, epochs: int) -> Budget:
        """Return the budget for an arm trained for this many epochs."""
        most = self.image_steps_an_epoch * epochs
        return replace(self, image_steps=min(self.image_steps, most))

    def as_protocol(self) -> dict[str, Any]:
        """Return the part of the scoring protocol that it makes."""
        return {"recogniser": "no-attention", **asdict(self)}


class Recogniser(Glas):
    """The encoder of `no-attention` for a decoder that is held fixed."""

    Settings = RecurrentSettings
    trained: Glas
    shift: tuple[Tensor, Tensor] | None = None
    """What `Weights` adds to an image's means and log-stds, [B, T, Z] each."""

    @classmethod
    def of(cls, trained: Glas, seed: int) -> Recogniser:
        """Return a fresh recogniser for a trained model, in the space of its noise."""
        settings = RecurrentSettings(
            steps=trained.steps,
            hidden=trained.begin_generation(1).hidden.shape[-1],  # which the encoder reads
            sample_size=trained.noise_size,
        )
        start = streams.derive(seed, "refit")
        self: Any = rollout.build(cls, settings, trained.pixels, 0, start, trained.likelihood)
        self.to(next(trained.parameters()).device)
        self.trained = trained.requires_grad_(False)
        return self  # type: ignore[no-any-return]

    def build_attention(self) -> int:
        return int(self.settings.hidden)

    def build_generation(self) -> None:
        """Make nothing: the decoder is the trained model's."""

    # ---- recognition

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        return e_BH, memory

    def step(
        self, context: Context, state: State, noise_BZ: Tensor, t: Tensor
    ) -> tuple[State, Step]:
        """Take a step; the noise may come with what is added to means and log-stds, [B, 3 Z].

        So the loop hands out each step's part: a selection by t would have a gradient as large as
        all steps together, at every step.
        """
        noise_BZ, *shift = torch.split(noise_BZ, self.noise_size, -1)
        if shift:
            added = dict(zip(("mean", "log_std"), shift, strict=True))
            context = context._replace(products=context.products | added)
        return super().step(context, state, noise_BZ, t)

    def infer(self, context: Context, state: State, t: Tensor) -> tuple[Any, Tensor, Recognition]:
        q, read, recognition = super().infer(context, state, t)
        if "mean" in context.products:
            added, log_std = context.products["mean"], context.products["log_std"]
            q = Normal(q.mean + added, q.std * log_std.exp())
        return q, read, recognition

    # ---- generation: the trained model's

    def begin_generation(self, rows: int) -> Generation:
        return self.trained.begin_generation(rows)

    def generate(self, generation: Generation, z_BZ: Tensor, t: Tensor) -> Generation:
        return self.trained.generate(generation, self.trained.prior().sample(z_BZ), t)

    def log_likelihood(self, canvas_BP: Tensor, target_BP: Tensor) -> Tensor:
        return self.trained.log_likelihood(canvas_BP, target_BP)


# --------------------------------------------------------------------------- fitting


class Fit(Optimisation):
    """A recogniser that is optimised for a trained model; it can continue from any step.

    `total_steps` are those of the budget, which early stopping may leave unspent. Of the checks,
    `elbo` has what each gave on the validation images, nats per image, and `best_step` is the step
    of the best, whose parameters are kept.

    Args:
        trained: the model, in scoring mode.
        config: its cell.
        splits: the data.
        seed: the training seed, from which the fit's streams are derived.
        validation: the images that stop the fit early.
        budget: the same for every arm.
    """

    noise_stream = "refit"
    order_stream = "refit-order"
    pixels_stream = "refit-binarisation"

    model: Recogniser

    def __init__(
        self,
        trained: Glas,
        config: RunConfig,
        splits: Splits,
        seed: int,
        validation: Images,
        budget: Budget,
    ) -> None:
        phase = Phase(
            "refit",
            config.epochs,
            objective=lambda model, terms: (terms.recon + terms.charge).mean(0),
            frozen=("trained",),
        )
        super().__init__(Recogniser.of(trained, seed), (phase,), config, splits, seed)
        self.labels = None
        self.validation = validation
        self.budget = budget
        self.total_steps = max(1, round(budget.share * self.total_steps))
        marks = (round(self.total_steps * (i + 1) / budget.checks) for i in range(budget.checks))
        self.marks = sorted({mark for mark in marks if mark > 0})
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.elbo: list[float] = []

    @property
    def redraws(self) -> bool:
        """Images are binary under any binarisation."""
        return self.splits.binarisation in ("dynamic", "soft")

    def learning_rate_at(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step: held for half of the budget, then linear to 0."""
        del epoch
        return self.budget.learning_rate * min(1.0, 2 * (1 - step / self.total_steps))

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the last checks gained nothing."""
        checks_since_best = len(self.elbo) - 1 - self._best_check() if self.elbo else 0
        return self.at.step >= self.total_steps or checks_since_best >= self.budget.patience

    def _best_check(self) -> int:
        return min(range(len(self.elbo)), key=lambda check: self.elbo[check])

    @property
    def last_gain(self) -> float | None:
        """Nats by which the last check was better than any before it; None before the second."""
        if len(self.elbo) < 2:
            return None
        return max(0.0, min(self.elbo[:-1]) - self.elbo[-1])

    @property
    def converged(self) -> bool | None:
        """Whether the last tenth gained at most 0.1 nats."""
        return None if self.last_gain is None else self.last_gain <= STILL_GAINING

    def run(self, name: str, partial: Partial, tick: Tick) -> Recogniser:
        """Fit, or continue from the state kept under this name; return the best recogniser.

        Raises:
            NotFinite: the elbo or its gradient is not finite.
        """
        self.resume(name, partial)
        while not self.finished:
            began = time.perf_counter()
            try:
                self.step()
            except Diverged as error:
                raise NotFinite(f"{error.reason} at step {error.step} of a fit") from error
            self.after_step()
            self.at.seconds += time.perf_counter() - began
            self.keep(name, partial)
            tick("fit", self.at.step, self.total_steps)
        return self.result()

    def after_step(self) -> None:
        """Close an epoch that is done, and check the elbo where that is due.

        Raises:
            NotFinite: the elbo is not finite.
        """
        if self.epoch_done:
            self.end_epoch()
        if self.at.step in self.marks:
            self.check()

    @torch.no_grad()
    def check(self) -> None:
        """Note the elbo on the validation images, the same noise each time, and keep the best.

        Raises:
            NotFinite: it is not finite.
        """
        total = 0.0
        for rows in self.validation.split(_chunk_on(self.model)):
            here = self.validation[rows]
            noise = here.noise(self.model, self.seed, "refit-validation", 1)
            terms = rollout.rollout(self.model, here.as_float(), here.as_float(), None, noise)
            total += float((terms.recon + terms.charge).double().sum())
        if not math.isfinite(total):
            raise NotFinite(f"the refitted elbo is not finite at step {self.at.step} of a fit")
        self.elbo.append(total / len(self.validation))
        if self._best_check() == len(self.elbo) - 1:
            self.best_step = self.at.step
            self.best = {name: p.detach().clone() for name, p in self.optimiser.parameters.items()}

    def result(self) -> Recogniser:
        """Return the best recogniser, its parameters frozen."""
        with torch.no_grad():
            for name, parameter in self.optimiser.parameters.items():
                parameter.copy_(self.best[name]).requires_grad_(False)
        return self.model

    # ---- what is kept

    def resume(self, name: str, partial: Partial) -> None:
        """Continue from the state kept under this name, if there is one."""
        if state := partial.load(name, self.device, shared=True):
            self.load(state)

    def keep(self, name: str, partial: Partial) -> None:
        """Keep the state of the fit, if it is finished or a write is due."""
        if partial.due or self.finished:
            partial.keep(name, self.state(), shared=True)

    def state(self) -> dict[str, Any]:
        """Return all that is needed to continue, without the trained model's parameters."""
        state: dict[str, Any] = {
            "step": self.at.step,
            "seconds": self.at.seconds,
            "best_step": self.best_step,
            "elbo": list(self.elbo),
            "best": self.best,
        }
        if not self.finished:
            parameters = {name: p.detach() for name, p in self.optimiser.parameters.items()}
            state |= {"parameters": parameters, "adam": self.optimiser.state}
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same cell and seed."""
        epoch, batch = divmod(state["step"], self.steps_per_epoch)
        self.at = Position(epoch, batch, state["step"], seconds=state["seconds"])
        self.best_step, self.best = state["best_step"], dict(state["best"])
        self.elbo = list(state["elbo"])
        if "adam" in state:
            with torch.no_grad():
                for name, parameter in self.optimiser.parameters.items():
                    parameter.copy_(state["parameters"][name])
            self.optimiser.load(state["adam"])


def fit_stacked(
    fits: Sequence[Fit],
    name: str,
    partials: Sequence[Partial],
    tick: Tick = lambda stage, done, total: None,
    *,
    tell: Tell = lambda message: None,
    ways: Sequence[str] | None = None,
) -> None:
    """Fit the recognisers of one cell's seeds in one program, those furthest behind first.

    A fit whose elbo or gradient is not finite stops where it is; running it alone raises the error.
    Images are weighed seed by seed all the same: the rows of one seed fill a GPU.

    The state of each fit is kept under `name` in its partial; `ways` are those of `ops.programs`.
    """
    for fit, partial in zip(fits, partials, strict=True):
        fit.resume(name, partial)
    active = [i for i, fit in enumerate(fits) if not fit.finished]
    while active:
        step, until = sorted({*(fits[i].at.step for i in active), fits[active[0]].total_steps})[:2]
        behind = [i for i in active if fits[i].at.step == step]
        stack = StackedTraining([fits[i] for i in behind], tell=tell, ways=ways)
        failed, began = set(), time.perf_counter()
        while stack.going and stack.steps_done < until:
            stack.step()
            due = stack.steps_done in fits[behind[0]].marks or stack.steps_done == until
            if due or stack.epoch_done or any(partials[behind[k]].due for k in stack.going):
                stack.collect()
                spent = (time.perf_counter() - began) / max(1, len(stack.going))
                for k in list(stack.going):
                    fit = fits[behind[k]]
                    fit.at.seconds += spent
                    try:
                        fit.after_step()
                    except NotFinite:
                        failed.add(behind[k])
                        stack.leave(k)
                        continue
                    fit.keep(name, partials[behind[k]])
                    if fit.finished:
                        stack.leave(k)
                stack.go_on()
                began = time.perf_counter()
            tick("fit", stack.steps_done, fits[behind[0]].total_steps)
        failed |= {behind[k] for k in stack.diverged}
        active = [i for i in active if not fits[i].finished and i not in failed]


# --------------------------------------------------------------------------- an image's own


class Refiner:
    """Moves images' own means and log-stds down their own elbo.

    The model is a fitted recogniser, its parameters frozen; `ways` are those of `ops.programs`.
    """

    def __init__(
        self,
        model: Recogniser,
        budget: Budget,
        tell: Tell = lambda message: None,
        ways: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.budget = budget
        self.tell = tell
        self.ways = ways
        self.programs: dict[torch.Size, programs.Program] = {}

    def __call__(self, images: Images, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Return what is added to each image's means and log-stds, [B, T, Z] each.

        These steps have noise of their own: weights drawn with the same noise would flatter q.

        Args:
            images: a chunk; the images do not influence one another.
            seed: the training seed.
            purpose: names the noise, together with the images.
        """
        x, steps = images.as_float(), self.budget.image_steps
        shape = (len(images), self.model.steps, self.model.noise_size)
        moved = {name: x.new_zeros(shape) for name in ("mean", "log_std")}
        adam = Adam(moved)
        if x.shape not in self.programs:
            self.programs[x.shape] = programs.Program(
                self._build, x.device, tell=self.tell, ways=self.ways
            )
        for step in range(steps):
            noise = images.noise(self.model, seed, f"{purpose}-refine", 1, step).contiguous()
            gradients = self.programs[x.shape](x, noise, *moved.values())
            for tensor, gradient in zip(moved.values(), gradients, strict=True):
                tensor.grad = gradient
            adam.step(self.budget.image_learning_rate * (1 - step / steps))
        return moved["mean"], moved["log_std"]

    def _build(self, compile_step: bool) -> programs.Function:
        model = self.model
        take = step_of(model, compile_step)

        def gradients(x: Tensor, noise: Tensor, *shift: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in shift]
                terms = rollout.rollout(model, x, x, None, with_shift(noise, leaves), step=take)
                made = torch.autograd.grad((terms.recon + terms.charge).sum(), leaves)
                # Adam's kernel reads memory in order, whatever the strides
                return tuple(gradient.contiguous() for gradient in made)

        return gradients


def weigher(
    model: Recogniser,
    seed: int,
    purpose: str,
    stage: str,
    samples: int,
    budget: Budget,
    rows: int,
    tell: Tell = lambda message: None,
) -> Weigher:
    """Return a `Weigher` by a fitted recogniser, refined image by image."""
    refine = Refiner(model, budget, tell)

    def prepare(images: Images) -> Callable[[slice], Glas]:
        mean, log_std = refine(images, seed, purpose)

        def model_for(part: slice) -> Glas:
            model.shift = (mean[part], log_std[part])
            return model

        return model_for

    chunk, log_w = _chunk_on(model), Weights(tell)
    return Weigher(seed, purpose, stage, samples, prepare, chunk=chunk, rows=rows, log_w=log_w)


def _chunk_on(model: Glas) -> int:
    return CHUNK_ON_GPU if next(model.parameters()).is_cuda else CHUNK
