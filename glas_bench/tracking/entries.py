"""What MLflow shows of a run folder: parameters, tags, curves, final numbers, data, files.

Functions of a `RunRecord`, which know nothing of the store. A cell becomes a parent run, with the
means over its seeds, and each of its seeds a child run. A number that is not finite is no metric; a
tag has its status (`elbo_status` and the like). No clock is a metric: a run's duration is the time
of its training and scoring, without pauses; a cell's is the sum over its seeds.

MLflow's charts have a section for each prefix of a metric's name, sorted, then the names without
one, then `system/`. A metric whose last step is 0 is a bar and not a curve.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glas_bench.config import DEFAULT_PRESET
from glas_bench.record import RunRecord, SeedRecord, count_statuses, is_number, join_statuses
from glas_bench.text import plain, seed_ranges, setting, settings

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

MAIN = (
    *("nll", "elbo", "iw", "refit_iw", "ais", "objective", "recon", "charge", "aux", "kl"),
    *("bits_per_character", "effective_dimensions", "active_units", "escape_epoch"),
)
"""Final numbers under their own names; the others' begin with `yardstick/`."""

_COUNTS = (
    *("images", "samples", "iw_samples", "diagnosed_images", "diagnosed_draws"),
    *("refit_steps", "refit_total_steps", "active_units_of", "footprint_cells"),
)
"""No results: the tag `protocol` and the files have them."""

_SYSTEM = ("images_per_second", "peak_memory_bytes", "parameters")
_ABOUT = ("data_origin", "data_hash", "source_hash", "core_version", "preset", "bound_reason")
_NOT_CURVES = ("epoch", "step", "time", "seconds", "phase", "validation", "validation_kind")


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
    data: Mapping[str, str] = field(default_factory=dict)  # name, hash, origin
    began: float | None = None
    """When the first epoch ended, Unix seconds; another time means another training."""


def of_cell(record: RunRecord, note: Mapping[str, Any]) -> Entry:
    """Return the parent run of a cell; `note` is `read_note` of its study."""
    statuses = [seed.status for seed in record.seeds.values()]
    return Entry(
        _name(record, note),
        *_span(record, [*record.seeds.values()]),
        params=_params(record),
        tags={
            **_common_tags(record, record.environment, note),
            "glas_bench.kind": "cell",
            "status": ", ".join(f"{n} {word}" for word, n in count_statuses(statuses).items()),
            "seeds": ", ".join(str(seed) for seed in record.seeds),
        },
        numbers=_means(record, _wanted(record, note)),
        data=_data(record),
        files=_there(record.path, ["config.yaml", "environment.json"]),
    )


def of_seed(record: RunRecord, seed: SeedRecord, note: Mapping[str, Any]) -> Entry:
    """Return the child run of a seed of a cell; `note` as in `of_cell`."""
    protocol = record.protocol_of(seed.seed, _wanted(record, note))
    folder = seed.folder.path
    pictures = [f"{name}.png" for name in ("samples", "reconstructions", "filter", "entropy")]
    return Entry(
        f"{_name(record, note)} seed {seed.seed}",
        *_span(record, [seed]),
        params={**_params(record), "seed": str(seed.seed)},
        tags={
            **{name: _text(value) for name, value in seed.words(protocol).items()},
            **_common_tags(record, seed.environment or record.environment, note),
            "glas_bench.kind": "seed",
            "status": seed.status,
            "reason": _text(seed.about.get("reason")),
            "diverged_step": _text(seed.about.get("step")) if seed.status == "diverged" else None,
            "scores": None,  # of older versions
        },
        rows=[_points(row) for row in seed.metrics],
        numbers=_numbers(seed, protocol),
        data=_data(record),
        files=[
            *_there(folder / "eval", [f"{key}.json" for key in seed.scores], "eval"),
            *_there(folder, ["environment.json", "per_image.npz", *pictures]),
            *_there(folder, ["metrics.jsonl", "status.json"]),
        ],
        began=seed.metrics[0]["time"] if seed.metrics else None,
    )


def _wanted(record: RunRecord, note: Mapping[str, Any]) -> str | None:
    """Return the key of the protocol that the study scores the cell by."""
    protocol: str | None = note.get("folders", {}).get(record.path.resolve().name)
    return protocol


def _name(record: RunRecord, note: Mapping[str, Any]) -> str:
    """Return the cell's name in its study, or the variant and what is not its default."""
    own, about = record.path.resolve().name, record.about
    if own in note.get("names", {}):
        return str(note["names"][own])
    if "differs" not in about:  # an older version made it
        return own
    preset = {} if about["preset"] == DEFAULT_PRESET else {"preset": about["preset"]}
    return f"{record.config.variant} {settings({**preset, **about['differs']})}".strip()


def _numbers(seed: SeedRecord, protocol: str | None) -> list[Point]:
    """Return the final numbers of a seed, the main ones first, as MLflow lists them.

    The step of a sweep is its number of weights.
    """
    points = []
    for name, value, time, weights in seed.numbers(protocol):
        if "seconds" not in name and name not in _COUNTS:
            group = "system/" if name in _SYSTEM else "" if name in MAIN else "yardstick/"
            points.append(Point(group + name, value, round(1000 * time), weights or 0))
    points.sort(key=lambda each: MAIN.index(each.name) if each.name in MAIN else len(MAIN))
    return points


def _means(record: RunRecord, wanted: str | None) -> list[Point]:
    """Return the means over the seeds that the commonest protocol scored."""
    protocols = {seed: record.protocol_of(seed, wanted) for seed in record.seeds}
    counts = Counter(key for key in protocols.values() if key).most_common(1)
    by_name: dict[tuple[str, int], list[Point]] = {}
    for protocol, _ in counts:
        for seed in (record.seeds[n] for n, own in protocols.items() if own == protocol):
            for point in _numbers(seed, protocol):
                by_name.setdefault((point.name, point.step), []).append(point)
    return [
        Point(name, sum(p.value for p in some) / len(some), max(p.time for p in some), step)
        for (name, step), some in by_name.items()
        if len(some) == counts[0][1]  # a mean over some of the seeds would mislead
    ]


def _data(record: RunRecord) -> dict[str, str]:
    about = {key: str(record.about.get(f"data_{key}")) for key in ("hash", "origin")}
    return {"name": record.config.dataset, **about}


def _description(record: RunRecord, note: Mapping[str, Any]) -> str:
    """Return the question, the study and the commands that make a cell again, as Markdown."""
    parts = []
    if "question" in note:
        parts += [f"**{note['question']}**", f"Study {note['study']}:"]
        parts.append(f"    {note['command']}")
    if "differs" in record.about:
        about = record.about
        options = {"variant": about["reference"], "preset": about["preset"]}
        options |= {"data-file": about["data_file"], "seeds": seed_ranges([*record.seeds])}
        pairs = [f"{key}={setting(value)}" for key, value in about["differs"].items()]
        options = {key: value for key, value in options.items() if value}
        words = [f"--{key} {shlex.quote(value)}" for key, value in options.items()]
        words += [f"--set {shlex.quote(pair)}" for pair in pairs]
        parts.append("This cell alone:" if parts else "The same again:")
        parts.append(f"    glas-bench run {' '.join(words)}")
    return "\n\n".join(parts)


def _params(record: RunRecord) -> dict[str, str]:
    return {key: _text(value) or "" for key, value in record.config.flat().items()}


def _common_tags(
    record: RunRecord, environment: Mapping[str, Any], note: Mapping[str, Any]
) -> dict[str, str | None]:
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
        "mlflow.source.name": "glas-bench",
        "mlflow.note.content": _text(_description(record, note) or None),
        "device": _text(environment.get("device")),
    }


def _text(value: Any) -> str | None:
    """Return text as it is and other values as JSON, cut to MLflow's limit."""
    text = plain(value)
    if len(text) > MOST_TEXT:
        text = text[: MOST_TEXT - 1] + "…"
    return None if value is None else text


def _points(row: Mapping[str, Any]) -> list[Point]:
    """Return the points of an epoch, with its own time: logging them twice is harmless."""
    named = {
        f"{'system' if name in _SYSTEM else 'train'}/{name}": value
        for name, value in row.items()
        if name not in _NOT_CURVES
    }
    named[f"validation/{row.get('validation_kind') or 'elbo'}"] = row.get("validation")
    time, step = round(row["time"] * 1000), row["epoch"]
    return [
        Point(name, float(value), time, step) for name, value in named.items() if is_number(value)
    ]


def _span(record: RunRecord, seeds: Sequence[SeedRecord]) -> tuple[str, int, int | None]:
    """Return status, start and end of seeds, as an `Entry` has them.

    The end is that of uninterrupted work, one seed after another.
    """
    status = RUN_STATUS[join_statuses(seed.status for seed in seeds)]
    waiting = (record.path / "config.yaml").stat().st_mtime_ns // 1_000_000
    start = min((round(1000 * seed.began) or waiting for seed in seeds), default=waiting)
    seconds = [
        seed.about.get("seconds", 0.0) + sum(s.get("seconds", 0.0) for s in seed.scores.values())
        for seed in seeds
    ]
    ended = start + round(1000 * sum(seconds))
    return status, start, None if status in ("RUNNING", "SCHEDULED") else ended


def _there(
    folder: Path, names: Sequence[str], target: str | None = None
) -> list[tuple[Path, str | None]]:
    return [(folder / name, target) for name in names if (folder / name).is_file()]
