"""Run folders with fabricated numbers, written by the record's own writers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glas_bench import evaluate
from glas_bench.config import CORE_VERSION, RunConfig, config_key, protocol_key
from glas_bench.record import RunFolder, SeedFolder, write_json
from glas_bench.registry import Variant

BEGAN = 1_760_000_000.0
IMAGES = 40


@dataclass(frozen=True)
class Arm:
    """What a cell's seeds come to, nats per image."""

    nll: float = 90.0
    seed_spread: float = 0.2
    gap: float = 2.0
    """elbo minus nll."""
    objective: float | None = None
    """The elbo by default."""
    scores: dict[str, Any] = field(default_factory=dict)


def per_image(arm: Arm, seed: int, images: int = IMAGES) -> np.ndarray:
    """Values whose images and seeds vary alike in every arm, as common data and streams make them.

    Their mean over images is the arm's nll but for the seed's part.
    """
    image_B = np.random.default_rng(0).normal(0, 12, images)
    rest_B = np.random.default_rng([seed, round(1000 * arm.nll)]).normal(0, 1, images)
    seeds = np.random.default_rng(1).normal(0, 1, 64)
    own = np.random.default_rng([round(1000 * arm.nll), 7]).normal(0, arm.seed_spread, 64)
    values: np.ndarray = arm.nll + image_B - image_B.mean() + rest_B - rest_B.mean()
    return values + 0.3 * seeds[seed] + own[seed]


def cell(
    results: Path, variant: Variant, config: RunConfig, preset: str = "laptop", data: str = "d1"
) -> RunFolder:
    """Write a cell's folder, without seeds."""
    folder = RunFolder(results, variant.name, config_key(config, variant.source_hash, data))
    bound = variant.cls.bound(variant.cls.Settings(**config.settings))
    about = {
        "variant": variant.name,
        "source_hash": variant.source_hash,
        "data_hash": data,
        "data_origin": "published",
        "core_version": CORE_VERSION,
        "preset": preset,
        "bounds_nll": bound.holds,
        "bound_reason": bound.reason,
    }
    folder.prepare(config, about)
    git = {"commit": "c0ffee" * 6, "dirty": False}
    write_json(folder.path / "environment.json", {"device": "cpu: test", "git": git})
    return folder


def epoch(
    seed: SeedFolder, number: int, value: float, validation: float | None, charge: float, at: float
) -> None:
    """Add the row of an epoch with this objective, which ended at a time."""
    seed.path.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"epoch": number, "phase": "main", "step": 390 * number}
    row |= {"objective": value, "recon": value - charge, "charge": charge, "aux": 0.0}
    row |= {"validation": validation, "validation_kind": "elbo", "learning_rate": 1e-3}
    row |= {"seconds": 2.0 * number, "images_per_second": 900.0, "time": at}
    seed.append_metrics(row)


def train(seed: SeedFolder, config: RunConfig, nll: float = 90.0) -> None:
    """Add the rows of all epochs, falling towards the end."""
    for number in range(1, config.epochs + 1):
        value, time = nll + 60 * 0.7**number + 0.2 * seed.seed, BEGAN + 2.0 * number
        epoch(seed, number, value, value + 0.5, 20.0, time)


def status(seed: SeedFolder, word: str, **about: Any) -> None:
    """Write a seed's status as of a fixed day."""
    seed.path.mkdir(parents=True, exist_ok=True)
    measured = {"seconds": 61.0, "peak_memory_bytes": 300 * 2**20, "parameters": 510_138}
    value = {"schema": 1, "status": word, **measured, **about, "updated": BEGAN + 3600}
    write_json(seed.path / "status.json", value, *seed.of)


def score(seed: SeedFolder, config: RunConfig, arm: Arm, images: int = IMAGES) -> str:
    """Score a seed; return the protocol's key."""
    protocol = evaluate.protocol(config) | {"images": "all"}
    nll_B = per_image(arm, seed.seed, images)
    found = {"nll": nll_B, "iw": nll_B + 0.4, "refit_iw": nll_B, "elbo": nll_B + arm.gap}
    found["objective"] = nll_B + arm.gap if arm.objective is None else nll_B * 0 + arm.objective
    numbers: dict[str, Any] = {name: float(values.mean()) for name, values in found.items()}
    objective = numbers["objective"]
    steps = int(config.settings.get("steps", 1))
    numbers |= dict.fromkeys(("elbo_status", "iw_status", "refit_iw_status"), "finite")
    numbers |= dict.fromkeys(("nll_bound_only", "bound_only", "failed"), False)
    numbers |= {"protocol": protocol, "split": "test", "images": images, "samples": config.samples}
    numbers |= {"objective": objective, "recon": objective - 20, "charge": 20.0, "aux": 0.0}
    numbers |= {"kl": 21.0, "v_mean": 3.5, "doubling_gain": 0.02, "nll_from": "refit_iw"}
    numbers |= {"refit_v_mean": 3.5, "refit_doubling_gain": 0.02}
    numbers |= {"kl_per_step": [21.0 / steps] * steps, "seconds": 5.0}
    numbers |= {"canvas_variance": [0.01 * (t + 1) for t in range(steps)]}
    numbers |= {"footprint_perplexity_per_step": [12.0] * steps, **arm.scores}
    absent = [name for name in found if numbers[name] is None]
    key = protocol_key(evaluate.protocol(config))
    seed.save_scores(key, numbers, {n: v for n, v in found.items() if n not in absent})
    return key


def finish(folder: RunFolder, config: RunConfig, arm: Arm, seeds: list[int]) -> None:
    """Train and score seeds."""
    for number in seeds:
        seed = folder.seed(number)
        train(seed, config, arm.nll)
        score(seed, config, arm)
        status(seed, "complete", epoch=config.epochs, step=390 * config.epochs)


def picture(path: Path) -> None:
    """Write a picture as `runs.pictures` does: a block of ink, nothing above it."""
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.zeros((80, 80)))
