"""What a seed of a cell costs on this machine, from a few steps on random pixels."""

from __future__ import annotations

import math
import time

import torch

from glas_bench import data, environment
from glas_bench.config import RunConfig
from glas_bench.core.train import Diverged, Training
from glas_bench.data import DATASETS, Split, Splits
from glas_bench.study import Cell

STEPS = 3
"""Steps that are timed, after one that is not."""

MOST_TIME_STEPS = 8
"""T of a timed step; one of more time steps takes as many times longer."""

SCORING = 0.25
"""Scoring's part of training's time, at most, at the sizes of `laptop`."""


def work(cell: Cell) -> int:
    """Return updates x time steps x trajectories: what training takes grows about with it."""
    config = cell.config
    draws = config.settings.get("draws", cell.variant.cls.draws)
    return int(updates(config) * config.settings.get("steps", 1) * config.batch * draws)


def updates(config: RunConfig, images: int | None = None) -> int:
    """Return the optimiser's steps of a run; `images` are by default those published."""
    size = DATASETS[config.dataset].sizes[0] if images is None else images
    return size // config.batch * config.epochs


def core_hours(cell: Cell, splits: Splits | None = None) -> float:
    """Return about how many hours of one core a seed of a cell takes here, scoring included.

    A user's own data is opened where `splits` is not given. A cell that diverges in the steps that
    are timed costs no more than they took.

    Raises:
        UsageError: it is not there.
    """
    times_longer, settings = 1.0, cell.config.settings
    if (T := settings.get("steps", 1)) > MOST_TIME_STEPS:
        times_longer = T / MOST_TIME_STEPS
        settings = {**settings, "steps": MOST_TIME_STEPS}
    # nothing is scored
    config = cell.config.model_copy(update={"images": "all", "settings": settings})
    if splits is None and not updates(config):
        splits = data.load(config.dataset, config.binarisation)
    size, shape = (len(splits.train.images), splits.image_shape) if splits else (None, (28, 28))
    P, classes = math.prod(shape), DATASETS[config.dataset].classes
    kept = torch.uint8 if config.binarisation in ("static", "none") else torch.float32
    images = torch.randint(2, (config.batch, P), dtype=kept)
    labels = torch.arange(config.batch) % classes if classes else None
    split = Split(images, labels, None)
    kind = (config.dataset, config.binarisation, "random pixels", "", classes, P, shape)
    environment.prepare_torch(1, "fp32")
    training = Training(cell.variant, config, Splits(*kind, split, split, split), seed=0)
    times: list[float] = []
    for _ in range(STEPS + 1):
        began = time.process_time()  # what other processes take meanwhile does not count
        try:
            training.step()
        except Diverged:
            return (sum(times) + time.process_time() - began) / 3600
        times.append(time.process_time() - began)
        if training.epoch_done:
            training.end_epoch()
    return min(times[1:]) * times_longer * updates(config, size) * (1 + SCORING) / 3600
