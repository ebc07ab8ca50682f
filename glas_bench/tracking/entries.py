"""What MLflow shows of a run folder: parameters, tags, curves, final numbers, files.

Functions of a `RunRecord`, which know nothing of the store. A cell becomes a parent run and each of
its seeds a child run. A number that is not finite is no metric; a tag has its status (`elbo_status`
and the like).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glas_bench.record import RunRecord, SeedRecord, count_statuses, is_number, join_statuses

SCHEMA = "1"
"""Version of the names below, the tag `glas_bench.schema` of every run of ours."""

MOST_TEXT = 5000
"""Characters of a parameter or tag that every MLflow server takes."""

RUN_STATUS = {
    "waiting": "SCHEDULED",
    "training": "RUNNING",
    "scoring": "RUNNING",
    "complete": "FINISHED",
    "not_applicable": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow's word for a status; ours is in the tag `status`."""

_ABOUT = ("data_origin", "data_hash", "source_hash", "core_version", "preset", "bound_reason")
_NOT_CURVES = ("epoch", "step", "time", "phase", "validation", "validation_kind")


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    time: int  # Unix milliseconds
    step: int


@dataclass(frozen=True)
class Entry:
    """What one MLflow run holds."""

    name: str
    status: str  # MLflow's word
    start: int  # Unix milliseconds
    end: int | None  # the same; None while it goes on
    params: dict[str, str]
    tags: dict[str, str | None]  # None: no such tag
    files: list[tuple[Path, str | None]]  # with their artifact folder
    rows: Sequence[list[Point]] = ()  # one list an epoch, by epoch
    numbers: Sequence[Point] = ()  # final numbers and sweeps
    began: float | None = None
    """When the first epoch ended, Unix seconds; another time means another training."""


def of_cell(record: RunRecord) -> Entry:
    """Return the parent run of a cell."""
    statuses = [seed.status for seed in record.seeds.values()]
    return Entry(
        record.path.name,
        *_span(record, [*record.seeds.values()]),
        params=_params(record),
        tags={
            **_common_tags(record, record.environment),
            "glas_bench.kind": "cell",
            "status": ", ".join(f"{n} {word}" for word, n in count_statuses(statuses).items()),
            "seeds": ", ".join(str(seed) for seed in record.seeds),
        },
        files=_there(record.path, ["config.yaml", "environment.json"]),
    )


def of_seed(record: RunRecord, seed: SeedRecord, wanted: str | None = None) -> Entry:
    """Return the child run of a seed of a cell; `wanted` as in `RunRecord.protocol_of`."""
    protocol = record.protocol_of(seed.seed, wanted)
    epoch = int(seed.about.get("epoch") or (seed.metrics[-1]["epoch"] if seed.metrics else 0))
    numbers = [
        Point(name, value, round(1000 * time), epoch if weights is None else weights)
        for name, value, time, weights in seed.numbers(protocol)
    ]
    folder = seed.folder.path
    return Entry(
        f"{record.path.name} seed {seed.seed}",
        *_span(record, [seed]),
        params={**_params(record), "seed": str(seed.seed)},
        tags={
            **{name: _text(value) for name, value in seed.words(protocol).items()},
            **_common_tags(record, seed.environment or record.environment),
            "glas_bench.kind": "seed",
            "status": seed.status,
            "reason": _text(seed.about.get("reason")),
            "diverged_step": _text(seed.about.get("step")) if seed.status == "diverged" else None,
            "scores": None,  # of older versions
        },
        rows=[_points(row) for row in seed.metrics],
        numbers=numbers,
        files=[
            *_there(folder / "eval", [f"{key}.json" for key in seed.scores], "eval"),
            *_there(folder, ["environment.json", "per_image.npz", "samples.png", "filter.png"]),
            *_there(folder, ["metrics.jsonl", "status.json"]),
        ],
        began=seed.metrics[0]["time"] if seed.metrics else None,
    )


def _params(record: RunRecord) -> dict[str, str]:
    return {key: _text(value) or "" for key, value in record.config.flat().items()}


def _common_tags(record: RunRecord, environment: Mapping[str, Any]) -> dict[str, str | None]:
    git = environment.get("git") or {}
    about = record.about
    return {
        "glas_bench.schema": SCHEMA,
        "variant": record.config.variant,
        "config_key": record.config_key,
        "dataset": record.config.dataset,
        "binarisation": record.config.binarisation,
        **{name: _text(about.get(name)) for name in _ABOUT},
        "bounds_nll": {True: "yes", False: "no"}.get(about.get("bounds_nll"), "not shown"),  # type: ignore[arg-type]
        "git_commit": _text(git.get("commit")),
        "git_dirty": _text(git.get("dirty")),
        "mlflow.source.git.commit": _text(git.get("commit")),
        "device": _text(environment.get("device")),
    }


def _text(value: Any) -> str | None:
    """Return text as it is and other values as JSON, cut to MLflow's limit."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _points(row: Mapping[str, Any]) -> list[Point]:
    """Return the points of an epoch, with its own time: logging them twice is harmless."""
    named = {
        (name if name in ("learning_rate", "images_per_second") else f"train/{name}"): value
        for name, value in row.items()
        if name not in _NOT_CURVES
    }
    named[f"validation/{row.get('validation_kind') or 'elbo'}"] = row.get("validation")
    time, step = round(row["time"] * 1000), row["epoch"]
    return [
        Point(name, float(value), time, step) for name, value in named.items() if is_number(value)
    ]


def _span(record: RunRecord, seeds: Sequence[SeedRecord]) -> tuple[str, int, int | None]:
    """Return status, start and end of seeds, as an `Entry` has them."""
    status = RUN_STATUS[join_statuses(seed.status for seed in seeds)]
    waiting = (record.path / "config.yaml").stat().st_mtime_ns // 1_000_000
    start = min((round(1000 * seed.began) or waiting for seed in seeds), default=waiting)
    ends = [round(1000 * seed.ended) or waiting for seed in seeds]
    return status, start, None if status in ("RUNNING", "SCHEDULED") else max(ends)


def _there(
    folder: Path, names: Sequence[str], target: str | None = None
) -> list[tuple[Path, str | None]]:
    return [(folder / name, target) for name in names if (folder / name).is_file()]
