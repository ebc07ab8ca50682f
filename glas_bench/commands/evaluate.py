"""Scoring a finished run under another protocol: more weights, fewer images, or by the referee."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from glas_bench import display, evaluate, signals
from glas_bench.errors import unknown
from glas_bench.record import RunFolder
from glas_bench.runs.trained import Trained, load_trained
from glas_bench.runs.worker import Stopped, prepare_torch

ESTIMATORS = (*evaluate.ESTIMATORS, "ais")


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
    path: Path,
    seed: int | None,
    samples: int | None,
    images: int | None,
    estimators: list[str],
    device: str,
) -> list[dict[str, Any]]:
    """Score the finished seeds of a run; what is already scored is read back.

    Raises:
        UsageError: no such run, seed or estimator.
        RunError: another process works in the folder, or it cannot be loaded.
        Stopped: the process was asked to stop; the same call goes on from there.
    """
    with RunFolder.at(path).locked(), display.make_display() as shown:
        return [
            _one(each, samples, images, estimators, shown)
            for each in load_trained(path, seed, device)
        ]


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
    from glas_bench.ais import referee

    with RunFolder.at(path).locked(), display.make_display() as shown:
        found = []
        for each in load_trained(path, seed, device):
            _prepare(each)
            show = functools.partial(shown.show, f"{path.name} seed {each.seed}")
            found.append(referee.score(each, images, temperatures, chains, tell=show))
        return found


def _prepare(trained: Trained) -> None:
    """Score with the threads and the arithmetic of the run, as it was scored first."""
    config = trained.record.config
    prepare_torch(config.threads, config.precision)


def _one(
    trained: Trained,
    samples: int | None,
    images: int | None,
    estimators: list[str],
    shown: display.Display,
) -> dict[str, Any]:
    scorer = evaluate.Scorer(
        trained.model,
        trained.record.config,
        trained.splits,
        trained.seed,
        samples=samples,
        images=images,
        estimators=estimators,
    )
    _prepare(trained)
    name = f"{trained.record.path.name} seed {trained.seed}"

    def tick(stage: str, done: int, total: int) -> None:
        if signals.requested():
            raise Stopped
        shown.show(name, {"event": "score", "stage": stage, "done": done, "total": total})

    with signals.graceful():
        scores = evaluate.score_into(trained.record.seeds[trained.seed].folder, scorer, tick)
    return {"seed": trained.seed, "protocol_key": scorer.key, **scores}


def text(rows: list[dict[str, Any]]) -> str:
    """Return the scores as tables, nats per image: every estimator with the sweep over K."""
    from glas_bench.text import aligned, number

    sizes = list(rows[0]["iw_sweep"])
    head = ["seed", "q", "images", "elbo", *(f"iw, K={size}" for size in sizes), "v", "ESS"]
    table = []
    for row in rows:
        for q, prefix in (("own", ""), ("refit", "refit_")):
            if (sweep := row.get(f"{prefix}iw_sweep")) is None or sweep[sizes[-1]] is None:
                continue
            table.append(
                [
                    str(row["seed"]),
                    q,
                    str(row["images"]),
                    number(row[f"{prefix}elbo"]),
                    *(number(sweep[size]) for size in sizes),
                    number(row[f"{prefix}v_mean"]),
                    number(row[f"{prefix}ess_mean"], 1),
                ]
            )
    lines = aligned([head, *table])
    for row in rows:
        if row["nll"] is not None:
            by = "own q" if row["nll_from"] == "iw" else "the refitted q"
            bound = ", a bound only" if row["nll_bound_only"] else ""
            lines.append(f"seed {row['seed']}: nll {number(row['nll'])} by {by}{bound}")
    if any(row["bound_only"] or row.get("refit_bound_only") for row in rows):
        lines += ["", "bound only: over 5 % of the images have Var(log w) > 10."]
    return "\n".join(lines)
