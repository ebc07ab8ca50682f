"""What a seed of a cell costs on this machine, from a few steps on random pixels."""

from __future__ import annotations

import time

import torch

from glas_bench import environment
from glas_bench.config import RunConfig
from glas_bench.core.train import Training
from glas_bench.data import DATASETS, Split, Splits
from glas_bench.data.parse import PIXELS
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
    return int(_updates(config) * config.settings.get("steps", 1) * config.batch * draws)


def _updates(config: RunConfig) -> int:
    """Return the optimiser's steps of a run on published data."""
    return DATASETS[config.dataset].sizes[0] // config.batch * config.epochs


def core_hours(cell: Cell) -> float:
    """Return about how many hours of one core a seed of a cell takes here, scoring included."""
    times_longer, settings = 1.0, cell.config.settings
    if (T := settings.get("steps", 1)) > MOST_TIME_STEPS:
        times_longer = T / MOST_TIME_STEPS
        settings = {**settings, "steps": MOST_TIME_STEPS}
    # nothing is scored
    config = cell.config.model_copy(update={"images": "all", "settings": settings})
    images = torch.randint(2, (config.batch, PIXELS), dtype=torch.uint8)
    classes = DATASETS[config.dataset].classes
    labels = torch.arange(config.batch) % classes if classes else None
    split = Split(images, labels, None)
    kind = (config.dataset, config.binarisation, "random pixels", "", classes, PIXELS, (28, 28))
    environment.prepare_torch(1, "fp32")
    training = Training(cell.variant, config, Splits(*kind, split, split, split), seed=0)
    times = []
    for _ in range(STEPS + 1):
        began = time.process_time()  # what other processes take meanwhile does not count
        training.step()
        times.append(time.process_time() - began)
        if training.epoch_done:
            training.end_epoch()
    return min(times[1:]) * times_longer * _updates(config) * (1 + SCORING) / 3600
