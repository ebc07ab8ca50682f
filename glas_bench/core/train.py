"""The optimisation loop, one step at a time: of a seed of a cell, and of whatever is fitted.

A step's numbers depend on the parameters and on noise, order and binarisation addressed by (seed,
purpose, epoch or step), see `streams`. The loop knows neither clock nor files nor progress bars;
its driver calls it for one step after another.

Adam (Kingma & Ba 2015), each gradient tensor clipped to norm 5, and one of two schedules of the
learning rate: `steps`, the original's x0.1 every `decay_epochs` epochs down to 1e-5
(`glas/model/` at 004c76f), or `linear`, which falls to 0 over the steps of a phase. Either may
begin with a warm-up, over which the rate rises in proportion to the step. The last partial batch of
an epoch is dropped; the loss is the batch mean, nats per image.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glas_bench import data
from glas_bench.config import RunConfig, check_settings
from glas_bench.core import rollout, streams
from glas_bench.data import Split, Splits, binarise, random_subset
from glas_bench.errors import UsageError
from glas_bench.model import Glas, Phase, Terms, matches
from glas_bench.ops import linear
from glas_bench.ops.adam import Adam
from glas_bench.registry import Variant

CLIP_NORM = 5.0
LOWEST_LEARNING_RATE = 1e-5
VALIDATION_IMAGES = 1000
STATISTICS_IMAGES = 1000
PARTS = ("objective", "recon", "charge", "aux")


class Diverged(Exception):  # noqa: N818 - a state that is reported, not an error
    """A loss or gradient that is not finite; the optimiser has not moved."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


@dataclass
class Position:
    """Where an optimisation stands; saved in every checkpoint."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # steps taken in the current epoch
    step: int = 0  # steps taken in all
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    seconds: float = 0.0  # spent in steps, over all processes


class Optimisation:
    """A model moved by Adam: its data, noise, phases and position.

    `Training` optimises a seed of a cell, `yardstick.refit.Fit` a recogniser. `core.stacked` takes
    the same steps for several of one kind in one program.

    Args:
        model: what is optimised; it is moved to the device of the data.
        phases: what is trained, one after another.
        config: the cell.
        splits: the data, on the device to train on.
        seed: every stream is derived from it.
    """

    noise_stream: ClassVar[str] = "noise"
    order_stream: ClassVar[str] = "order"
    pixels_stream: ClassVar[str] = "binarisation"

    def __init__(
        self, model: Glas, phases: Sequence[Phase], config: RunConfig, splits: Splits, seed: int
    ) -> None:
        self.config = config
        self.splits = splits
        self.seed = seed
        self.device = splits.train.images.device
        self.model = model.to(self.device)
        self.phases = tuple(phases)
        self.batch = min(config.batch, len(splits.train.images))
        self.steps_per_epoch = len(splits.train.images) // self.batch
        self.ends = list(itertools.accumulate(phase.epochs for phase in self.phases))
        """Epochs after which each phase is over."""
        self.total_steps = self.ends[-1] * self.steps_per_epoch
        self.labels = splits.train.labels
        self.at = Position()
        self._begin_phase(self.phases[0])
        self._epoch_data: tuple[int, Tensor, Tensor] | None = None
        self.tape = linear.tape_for(self.device, self.model.steps)

    # ---- one step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.at.epoch >= self.ends[-1]

    @property
    def redraws(self) -> bool:
        """Whether the pixels of every epoch are drawn again."""
        return self.config.binarisation == "dynamic"

    def learning_rate_at(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step of an epoch; every phase has the whole schedule."""
        config, start = self.config, self.ends[self.phases.index(self.phase)] - self.phase.epochs
        done = step - start * self.steps_per_epoch
        rate = config.learning_rate * min(1.0, (done + 1) / max(1, config.warmup_steps))
        if config.schedule == "linear":
            return rate * (1 - done / (self.phase.epochs * self.steps_per_epoch))
        decayed = rate * 0.1 ** ((epoch - start) // config.decay_epochs)
        return max(decayed, min(rate, LOWEST_LEARNING_RATE))

    @property
    def learning_rate(self) -> float:
        """Of the current step."""
        return self.learning_rate_at(self.at.epoch, self.at.step)

    def step(self) -> None:
        """Take one optimisation step.

        Raises:
            Diverged: the loss or a gradient is not finite; the parameters are as before.
        """
        images, labels, noise = self._batch()
        self.model.zero_grad()
        with linear.precision(self.config.precision, self.tape):
            terms = rollout.rollout(
                self.model,
                images,
                images,
                labels,
                noise,
                generates=self.phase.generates,
                auxiliary=self.phase.auxiliary,
            )
        objective = mean_objective(self.phase, self.model, terms)
        value = float(objective.detach())
        if not math.isfinite(value):
            raise Diverged(self.at.step, "the objective is not finite")
        objective.backward()  # type: ignore[no-untyped-call]
        if not clip_gradients(self.clip_groups, CLIP_NORM):
            raise Diverged(self.at.step, "a gradient is not finite")
        self.optimiser.step(self.learning_rate)
        self.at.sums["objective"] += value
        for part in PARTS[1:]:
            self.at.sums[part] += float(getattr(terms, part).detach().mean())
        self.at.step += 1
        self.at.batch += 1

    @property
    def epoch_done(self) -> bool:
        """Whether the current epoch has all its steps."""
        return self.at.batch == self.steps_per_epoch

    def end_epoch(self) -> dict[str, float]:
        """Close a finished epoch; return its means over steps, nats per image."""
        means = {part: total / self.steps_per_epoch for part, total in self.at.sums.items()}
        self.at = Position(self.at.epoch + 1, 0, self.at.step, seconds=self.at.seconds)
        if not self.finished:
            place = bisect.bisect_right(self.ends[:-1], self.at.epoch)
            following = self.phases[place]  # a fit may go on in its only one
            if following is not self.phase:
                self._change_phase(following)
        return means

    # ---- what a step is made of

    def _batch(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return images [B, P], labels [B] and noise [T, K, B, Z] of the current step."""
        at = self.at
        if self._epoch_data is None or self._epoch_data[0] != at.epoch:
            self._epoch_data = (at.epoch, *self.epoch_images(at.epoch))
        _, pixels, order = self._epoch_data
        rows = order[at.batch * self.batch : (at.batch + 1) * self.batch]
        labels = None if self.labels is None else self.labels[rows]
        shape = (self.model.steps, self.model.draws, self.batch, self.model.noise_size)
        noise = streams.normal(
            shape, self.seed, self.noise_stream, block=at.step, device=self.device
        )
        return pixels[rows].to(torch.float32), labels, noise

    def epoch_images(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the pixels of an epoch, binarised for it if `redraws`, and their order."""
        pixels = self.splits.train.images
        if self.redraws:
            generator = streams.generator(self.seed, self.pixels_stream, epoch)
            pixels = binarise(pixels.cpu(), generator).to(self.device)
        generator = streams.generator(self.seed, self.order_stream, epoch)
        return pixels, torch.randperm(len(pixels), generator=generator).to(self.device)

    # ---- phases

    def _begin_phase(self, phase: Phase) -> None:
        """Choose what is trained and start a new optimiser."""
        self.phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not matches(name, phase.frozen))
        named = self.model.named_parameters()
        trained: dict[str, Tensor] = {name: p for name, p in named if p.requires_grad}
        self.optimiser = Adam(trained)
        self.clip_groups = [[trained[name] for name in each] for each in clip_groups(self.model)]

    def _change_phase(self, phase: Phase) -> None:
        """Keep what the phase keeps, draw everything else again, restart the optimiser."""
        self.model.cpu()
        kept = {
            name: tensor.clone()
            for name, tensor in self.model.state_dict().items()
            if matches(name, phase.keep)
        }
        rollout.reinitialise(self.model, self.seed)
        self.model.load_state_dict(kept, strict=False)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.derive(self.seed, "phase", phase.name))
            self.model.between_phases(self.phase, phase)
        self.model.to(self.device)
        self._begin_phase(phase)

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """Return all that is needed to continue, tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state,
            "position": {**vars(self.at), "sums": dict(self.at.sums)},
            "phase": self.phase.name,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same cell and seed."""
        self.at = Position(**state["position"])
        self._begin_phase(next(p for p in self.phases if p.name == state["phase"]))
        self.model.load_state_dict(state["model"])
        if "optimiser" in state:  # the last checkpoint of a run has none
            self.optimiser.load(state["optimiser"])
        self._epoch_data = None


class Training(Optimisation):
    """One seed of a cell, from initialisation to its last epoch.

    Args:
        variant: from the registry.
        config: the cell.
        splits: the data, on the device to train on.
        seed: every stream is derived from it.

    Raises:
        UsageError: the data does not fit the config (labels missing, batch larger than the data).
    """

    def __init__(self, variant: Variant, config: RunConfig, splits: Splits, seed: int) -> None:
        check_applicable(variant, config, splits)
        self.variant = variant
        settings = check_settings(variant, config.settings)
        sizes = splits.pixels, splits.classes
        model = rollout.build(variant.cls, settings, *sizes, seed, splits.likelihood)
        phases = model.phases(config.epochs)
        if sum(phase.epochs for phase in phases) != config.epochs:
            raise UsageError(f"{variant.name}: its phases do not add up to epochs={config.epochs}")
        super().__init__(model, phases, config, splits, seed)

    @torch.no_grad()
    def validate(self) -> tuple[str, float]:
        """Return what validation measures and its value, nats per image.

        One draw on a fixed, seeded set of at most 1,000 validation images, with the same noise
        each epoch: `elbo` where q has a density, `recon` otherwise. The value may be infinite.
        """
        x, labels = chosen(self.splits, self.splits.validation, VALIDATION_IMAGES, "validation")
        shape = (self.model.steps, 1, len(x), self.model.noise_size)
        noise = streams.normal(shape, self.seed, "validation", device=self.device)
        with scoring(self.model, self.config, self.splits):
            total = 0.0
            kind = "elbo" if self.model.has_density else "recon"
            for rows in torch.split(torch.arange(len(x)), 250):
                seen = x[rows], x[rows], None if labels is None else labels[rows]
                terms = rollout.rollout(self.model, *seen, noise[:, :, rows])
                values = terms.recon + terms.log_ratio if kind == "elbo" else terms.recon
                total += float(values.double().sum())
        return kind, total / len(x)


def mean_objective(phase: Phase, model: Glas, terms: Terms) -> Tensor:
    """Return what a phase minimises, [] nats per image: its objective, or the model's own."""
    objective = phase.objective(model, terms) if phase.objective else model.objective(terms)
    return objective.mean()


def check_applicable(variant: Variant, config: RunConfig, splits: Splits | None = None) -> None:
    """Refuse what cannot run, as far as possible before any data is opened.

    Raises:
        UsageError: the variant needs labels that the data set has not, or square images, or a
            batch or the scored images are more than there are.
    """
    if reason := not_applicable(variant, config):
        raise UsageError(reason)
    size, _, test = data.info(config.dataset).sizes
    if splits is None and not size:  # a user's own, not opened yet
        return
    if splits is not None:
        size, test = len(splits.train.images), len(splits.test.images)
        height, width = splits.image_shape
        if getattr(variant.cls, "needs_square", False) and height != width:
            raise UsageError(
                f"{variant.name} needs square images; {splits.origin} has {height} x {width}"
            )
    if config.batch > size:
        raise UsageError(
            f"batch {config.batch} is larger than the {size} training images of "
            f"{config.dataset}; set batch to at most that"
        )
    if isinstance(config.images, int) and config.images > test:
        raise UsageError(
            f"images {config.images}: {config.dataset} has {test} test images; set images to at "
            "most that, or to all"
        )


def not_applicable(variant: Variant, config: RunConfig) -> str | None:
    """Return why the variant cannot run on the data set, or None where it can."""
    if not variant.cls.needs_labels or data.info(config.dataset).labels is not None:
        return None
    having = [name for name, info in data.DATASETS.items() if info.labels]
    return (
        f"{variant.name} needs labels and {config.dataset} has none; "
        f"use --dataset {' or '.join(having)}"
    )


@contextlib.contextmanager
def scoring(model: Glas, config: RunConfig, splits: Splits) -> Iterator[None]:
    """Put a model into scoring mode: its running statistics frozen on a fixed training chunk."""
    device = splits.train.images.device
    if model.statistics_of:
        x, labels = chosen(splits, splits.train, STATISTICS_IMAGES, "statistics")
        shape = (model.steps, 1, len(x), model.noise_size)
        noise = streams.normal(shape, 0, "statistics", device=device)
        with linear.precision(config.precision):
            rollout.freeze_statistics(model, x, labels, noise)
    was_training = model.training
    model.eval()
    try:
        with linear.precision(config.precision):
            yield
    finally:
        model.train(was_training)


def chosen(splits: Splits, split: Split, most: int, purpose: str) -> tuple[Tensor, Tensor | None]:
    """Return at most `most` targets [B, P] and labels [B] of a split, a seeded random draw."""
    images = splits.targets(split)
    rows = random_subset(len(images), min(most, len(images)), purpose).to(images.device)
    labels = None if split.labels is None else split.labels[rows]
    return images[rows].to(torch.float32), labels


def clip_groups(model: nn.Module) -> list[list[str]]:
    """Return the names of trained parameters in groups that are clipped as one tensor.

    The pieces of a kernel kept in one `nn.ParameterDict` are a group, as one concatenated tensor
    would be; every other parameter is a group of its own.
    """
    pieces = {
        id(piece): name
        for name, module in model.named_modules()
        if isinstance(module, nn.ParameterDict)
        for piece in module.values()
    }
    groups: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(pieces.get(id(parameter), name), []).append(name)
    return list(groups.values())


def clip_gradients(groups: list[list[Tensor]], limit: float) -> bool:
    """Scale each group's gradient to a norm of at most `limit`; return whether all are finite.

    Nothing is scaled when a norm is not finite.
    """
    clipped = []
    for group in groups:
        gradients = [tensor.grad for tensor in group if tensor.grad is not None]
        norm = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in gradients))
        if not math.isfinite(norm):
            return False
        if norm > limit:
            clipped.append((gradients, limit / norm))
    for gradients, factor in clipped:
        torch._foreach_mul_(gradients, factor)
    return True
