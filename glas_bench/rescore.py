"""Scoring a finished run under another protocol: more weights, fewer images, or by the referee."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from glas_bench import evaluate
from glas_bench.errors import unknown
from glas_bench.record import RunFolder, write_atomically
from glas_bench.trained import Trained, load_trained

ESTIMATORS = ("iw", "ais")


def check_estimators(text: str) -> list[str]:
    """Return the estimators named, and refuse one that is not there.

    Raises:
        UsageError: with the names of those that are.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ESTIMATORS:
            raise unknown("estimator", name, ESTIMATORS)
    return names


def rescore(
    path: Path, seed: int | None, samples: int | None, images: int | None, device: str
) -> list[dict[str, Any]]:
    """Score the finished seeds of a run; what is already scored is read back.

    Raises:
        UsageError: no such run or seed.
        RunError: another process works in the folder, or it cannot be loaded.
    """
    folder = RunFolder(path.parents[1], *path.name.rsplit("-", 1))
    with folder.locked():
        return [_one(each, samples, images) for each in load_trained(path, seed, device)]


def refereed(
    path: Path,
    seed: int | None,
    images: int | None,
    temperatures: int,
    chains: int,
    device: str,
) -> list[dict[str, Any]]:
    """Score the finished seeds of a run by AIS; what is already scored is read back.

    Raises:
        UsageError: no such run or seed, or a number that cannot be.
        RunError: another process works in the folder, or it cannot be loaded.
        Stopped: the process was asked to stop; the same call goes on from there.
    """
    from glas_bench import progress, referee

    folder = RunFolder(path.parents[1], *path.name.rsplit("-", 1))
    with folder.locked(), progress.make_display() as display:
        return [
            referee.score(
                each,
                images,
                temperatures,
                chains,
                tell=functools.partial(display.show, f"{path.name} seed {each.seed}"),
            )
            for each in load_trained(path, seed, device)
        ]


def _one(trained: Trained, samples: int | None, images: int | None) -> dict[str, Any]:
    folder = trained.record.seeds[trained.seed].folder
    scorer = evaluate.Scorer(
        trained.model,
        trained.record.config,
        trained.splits,
        trained.seed,
        samples=samples,
        images=images,
    )
    scores = folder.scores(scorer.key)
    if scores is None:
        partial = folder.path / "eval" / f"{scorer.key}.partial.npz"
        progress = evaluate.Progress(partial, write_atomically)
        started = time.perf_counter()
        scores, per_image = scorer.score(progress)
        scores["seconds"] = round(time.perf_counter() - started, 3)
        folder.save_scores(scorer.key, scores, per_image)
        progress.remove()
        scores = folder.scores(scorer.key) or {}
    return {"seed": trained.seed, "protocol_key": scorer.key, **scores}


def text(rows: list[dict[str, Any]]) -> str:
    """Return the scores as a table, nats per image, with the sweep over K."""
    from glas_bench.outcome import aligned
    from glas_bench.progress import number

    sizes = list(rows[0]["iw_sweep"])
    head = ["seed", "images", "elbo", *(f"iw, K={size}" for size in sizes), "v", "ESS"]
    table = [
        [
            str(row["seed"]),
            str(row["images"]),
            number(row["elbo"]),
            *(number(row["iw_sweep"][size]) for size in sizes),
            number(row["v_mean"]),
            number(row["ess_mean"], 1),
        ]
        for row in rows
    ]
    lines = aligned([head, *table])
    if any(row["bound_only"] for row in rows):
        lines += ["", "bound only: over 5 % of the images have Var(log w) > 10."]
    return "\n".join(lines)
