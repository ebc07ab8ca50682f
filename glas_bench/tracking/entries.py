"""What MLflow is told of a run folder: parameters, tags, curves, final numbers, files.

Pure: a `RunRecord` goes in, plain values come out, and nothing here knows how they are stored.
A cell becomes a parent run and each of its seeds a child run. Numbers that are not finite never
become metrics: their status is a tag (`elbo_status` and the like).

The file is as long as the list of what is told.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glas_bench.record import RunRecord, SeedRecord, count_statuses, join_statuses

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
"""MLflow's word for a seed's status; the tag `status` keeps ours."""

_PARTS = ("objective", "recon", "charge", "aux")
_NOT_CURVES = ("epoch", "step", "time", "phase", "validation", "validation_kind")
_RENAMED = {"seconds": "scoring_seconds"}  # `seconds` is the training time, as in `run --json`


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
    rows: list[list[Point]] = field(default_factory=list)  # one list an epoch, by epoch
    numbers: list[Point] = field(default_factory=list)  # final numbers and sweeps
    files: list[tuple[Path, str | None]] = field(default_factory=list)  # with their artifact folder
    began: float | None = None
    """When the first epoch ended, Unix seconds: tells a training from one that starts over."""


def of_cell(record: RunRecord) -> Entry:
    """Return the parent run of a cell."""
    statuses = [seed.status for seed in record.seeds.values()]
    times = [_span(record, seed) for seed in record.seeds.values()]
    status = RUN_STATUS[join_statuses(statuses)]
    ends = [end for _, end in times]
    return Entry(
        name=record.path.name,
        status=status,
        start=min((start for start, _ in times), default=_modified(record.path / "config.yaml")),
        end=max(ends) if ends and status not in ("RUNNING", "SCHEDULED") else None,
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
    """Return the child run of a seed.

    Args:
        record: of the cell.
        seed: of it.
        wanted: the protocol that a study asks for, whose numbers are given where there are any.
    """
    start, end = _span(record, seed)
    status = RUN_STATUS[seed.status]
    protocol = wanted if wanted in seed.scores else _protocol(record, seed)
    scores = seed.scores.get(protocol, {}) if protocol else {}
    folder = seed.folder.path
    numbers = [*_numbers(record, seed, protocol, scores, end), *_ais(_newest_ais(seed))]
    return Entry(
        name=f"{record.path.name} seed {seed.seed}",
        status=status,
        start=start,
        end=None if status in ("RUNNING", "SCHEDULED") else end,
        params={**_params(record), "seed": str(seed.seed)},
        tags={
            **_common_tags(record, seed.environment or record.environment),
            "glas_bench.kind": "seed",
            "status": seed.status,
            "reason": _text(seed.about.get("reason")),
            "diverged_step": _text(seed.about.get("step")) if seed.status == "diverged" else None,
            "protocol_key": protocol,
            **_score_tags(scores),
            "ais_status": _text(_newest_ais(seed).get("ais_status")),
            "ais_protocol_key": _ais_protocol(seed),
            "scores": json.dumps(sorted({point.name for point in numbers})) if scores else None,
        },
        rows=[_points(row) for row in seed.metrics],
        numbers=numbers,
        files=[
            *_there(folder / "eval", [f"{key}.json" for key in seed.scores], "eval"),
            *_there(folder, ["environment.json", "per_image.npz", "samples.png", "filter.png"]),
        ],
        began=seed.metrics[0]["time"] if seed.metrics else None,
    )


# --------------------------------------------------------------------------- parameters and tags


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
        **{
            name: _text(about.get(name))
            for name in ("data_origin", "data_hash", "source_hash", "core_version", "preset")
        },
        "bounds_nll": {True: "yes", False: "no"}.get(about.get("bounds_nll"), "not shown"),  # type: ignore[arg-type]
        "bound_reason": _text(about.get("bound_reason")),
        "git_commit": _text(git.get("commit")),
        "git_dirty": _text(git.get("dirty")),
        "mlflow.source.git.commit": _text(git.get("commit")),
        "device": _text(environment.get("device")),
    }


def _score_tags(scores: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what of the scores is no number: statuses, flags, the protocol."""
    fixed = (  # absent when unscored
        "elbo_status",
        "iw_status",
        "refit_iw_status",
        "bound_only",
        "nll_bound_only",
        "nll_from",
        "failed",
        "protocol",
    )
    found = {
        name: value
        for name, value in scores.items()
        if isinstance(value, str | bool) or name == "protocol"
    }
    ours = ("bounds_nll", "bound_reason")
    return {
        name: _text(value)
        for name, value in {**dict.fromkeys(fixed), **found}.items()
        if name not in ours
    }


def _text(value: Any) -> str | None:
    """Return a value as MLflow keeps it: text as it is, anything else as JSON, cut to its limit."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


# --------------------------------------------------------------------------- numbers


def _points(row: Mapping[str, Any]) -> list[Point]:
    """Return the points of an epoch, with the epoch's own time: logging them twice is harmless."""
    named = {
        (name if name in ("learning_rate", "images_per_second") else f"train/{name}"): value
        for name, value in row.items()
        if name not in _NOT_CURVES
    }
    named[f"validation/{row.get('validation_kind') or 'elbo'}"] = row.get("validation")
    time, step = round(row["time"] * 1000), row["epoch"]
    return [Point(name, float(value), time, step) for name, value in named.items() if _is(value)]


def _numbers(
    record: RunRecord,
    seed: SeedRecord,
    protocol: str | None,
    scores: Mapping[str, Any],
    end: int,
) -> Iterator[Point]:
    """Return the final numbers; a mapping by number (`iw_sweep`) is a curve over that number."""
    epoch = int(seed.about.get("epoch") or (seed.metrics[-1]["epoch"] if seed.metrics else 0))
    for name in ("seconds", "peak_memory_bytes", "parameters"):
        if _is(seed.about.get(name)):
            yield Point(name, float(seed.about[name]), end, epoch)
    if protocol is None:
        return
    time = _modified(seed.folder.path / "eval" / f"{protocol}.json")
    for name, value in scores.items():
        if name in ("schema", "protocol"):
            continue
        if _is(value):
            yield Point(_RENAMED.get(name, name), float(value), time, epoch)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                if _is(part) and str(key).isdecimal():
                    yield Point(name, float(part), time, int(key))
                elif _is(part):
                    yield Point(f"{name}/{key}", float(part), time, epoch)


def _ais(scores: Mapping[str, Any]) -> Iterator[Point]:
    """Return what AIS found, each name beginning with `ais`.

    `ais` itself, and what it lies above a run's own estimates, only if it was accepted.
    """
    protocol = scores.get("protocol") or {}
    found = {name: value for name, value in scores.items() if name not in ("schema", "time")}
    found |= {name: protocol.get(name) for name in ("chains", "temperatures")}
    if _accepted(scores):
        for estimate, one in (scores.get("paired") or {}).items():
            found[f"less_{estimate}"] = one["difference"]
            found[f"less_{estimate}_error"] = one["error"]
    else:
        found.pop("ais", None)
    for name, value in found.items():
        if _is(value):
            full = name if name.startswith("ais") else f"ais_{name}"
            yield Point(full, float(value), round(scores.get("time", 0.0) * 1000), 0)


def _accepted(scores: Mapping[str, Any]) -> bool:
    return scores.get("ais_status") == "accepted"


def _is(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _protocol(record: RunRecord, seed: SeedRecord) -> str | None:
    """Return the key of the scoring that stands for a seed where no study says which.

    Of those that most seeds of the cell have, so that they stay together, and on most test images,
    the newest that ranks it (it has `nll`) where there is one, else the newest with weights; a
    scoring by AIS alone never stands for a seed.
    """
    have = Counter(key for each in record.seeds.values() for key in each.scores)

    def order(key: str) -> tuple[int, float, bool, float, str]:
        scores = seed.scores[key]
        images = (scores.get("protocol") or {}).get("images", "all")
        size = math.inf if images == "all" else float(images)
        return have[key], size, scores.get("nll") is not None, scores.get("time", 0.0), key

    weighed = [key for key in seed.scores if not _by_ais(seed.scores[key])]
    return max(weighed, key=order, default=None)


def _newest_ais(seed: SeedRecord) -> Mapping[str, Any]:
    """Return the newest scoring by AIS, or nothing."""
    found = [scores for scores in seed.scores.values() if _by_ais(scores)]
    return max(found, key=lambda scores: scores.get("time", 0.0), default={})


def _ais_protocol(seed: SeedRecord) -> str | None:
    """Return the key of the newest scoring by AIS."""
    newest = _newest_ais(seed)
    return next((key for key, scores in seed.scores.items() if scores is newest), None)


def _by_ais(scores: Mapping[str, Any]) -> bool:
    return (scores.get("protocol") or {}).get("estimators") == ["ais"]


# --------------------------------------------------------------------------- times and files


def _span(record: RunRecord, seed: SeedRecord) -> tuple[int, int]:
    """Return when a seed began and was last written, Unix milliseconds."""
    updated = seed.about.get("updated") or _modified(record.path / "config.yaml") / 1000
    if not seed.metrics:
        return round(updated * 1000), round(updated * 1000)
    first = seed.metrics[0]
    began = first["time"] - (first.get("seconds") or 0.0)
    return round(began * 1000), round(max(updated, seed.metrics[-1]["time"]) * 1000)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def _there(
    folder: Path, names: Sequence[str], target: str | None = None
) -> list[tuple[Path, str | None]]:
    return [(folder / name, target) for name in names if (folder / name).is_file()]
