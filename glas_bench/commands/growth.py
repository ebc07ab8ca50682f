"""How the cost of training grows with T, S and H, and that of scoring with K: table and figure.

Each size is varied with the others held; a straight line is fitted to seconds against the size, and
its worst relative miss is told, so that what does not grow in a line is seen. Against H the line is
fitted to the operations of a step, which grow with H^2; against S, on a CPU, to the seeds that one
core has to take, for they stand side by side until the cores are full.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glas_bench import environment, registry
from glas_bench.commands import bench
from glas_bench.commands.bench import Case
from glas_bench.core.train import Training, scoring
from glas_bench.model import Glas
from glas_bench.record import Partial
from glas_bench.yardstick.weights import Images, ModelFor, Weigher, Weights

STEPS = (4, 8, 16, 32)
SEEDS = (1, 2, 4)
SEEDS_ON_GPU = (1, 2, 4, 8, 16, 32)
HIDDEN = (64, 128, 256, 512)
SAMPLES = (10, 50, 100, 200)
ROUNDS = 5
COLUMNS = ("varied", "size", "work", "seconds", "line_seconds", "miss")


def measure(case: Case, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure all series around a case; write `growth.csv` and `growth.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    case = replace(case, reference=False)
    seeds = SEEDS_ON_GPU if case.device.startswith("cuda") else SEEDS
    measured: dict[Case, dict[str, Any]] = {}  # the series meet in the case itself

    def training(varied: str, size: int, one: Case) -> dict[str, Any]:
        if one not in measured:
            measured[one] = bench.measure(one, tell)
        found = measured[one]
        tell(f"{varied} = {size}: {found['seconds_per_step']:.4f} s a step")
        work = {"H": found["gflop_per_step"], "S": _turns(case.device, size)}.get(varied, size)
        return {"varied": varied, "size": size, "work": work, "seconds": found["seconds_per_step"]}

    series: dict[str, list[dict[str, Any]]] = {
        "T": [training("T", size, replace(case, steps=size)) for size in STEPS],
        "S": [training("S", size, replace(case, seeds=size)) for size in seeds],
        "H": [training("H", size, replace(case, hidden=size)) for size in HIDDEN],
        "K": _scoring(case, tell),
    }
    for rows in series.values():
        _fit(rows)
    found = [row for rows in series.values() for row in rows]
    with open(folder / "growth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    _draw(series, case, folder / "growth.png")
    return found


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [f"{'varied':>6}  {'size':>5}  {'seconds':>9}  {'line':>9}  {'miss':>5}"]
    lines += [
        f"{row['varied']:>6}  {row['size']:>5}  {row['seconds']:9.4f}  "
        f"{row['line_seconds']:9.4f}  {row['miss']:5.0%}"
        for row in rows
    ]
    return "\n".join(lines)


def _scoring(case: Case, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return seconds to weigh ten images with K draws each."""
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    splits = bench.made_up(case.batch).to(case.device)
    model = Training(variant, resolved, splits, 0).model
    labels = None if splits.train.labels is None else splits.train.labels[:10]
    images = Images(splits.train.images[:10], labels, tuple(range(10)))
    log_w = Weights()
    times: dict[int, list[float]] = {size: [] for size in SAMPLES}
    wait = bench.waiter(case.device)
    with scoring(model, resolved, splits):
        for _ in range(ROUNDS):
            for size in SAMPLES:
                weigher = Weigher(0, "growth", "iw", size, _always(model), log_w=log_w)
                wait()
                began = time.perf_counter()
                weigher(images, Partial())
                wait()
                times[size].append(time.perf_counter() - began)
    found = []
    for size, seconds in times.items():
        middle = statistics.median(seconds)
        tell(f"K = {size}: {middle:.4f} s for ten images")
        found.append({"varied": "K", "size": size, "work": size, "seconds": middle})
    return found


def _turns(device: str, seeds: int) -> int:
    """Return how many seeds a core has to take, one after another; on a GPU all of them."""
    return seeds if device.startswith("cuda") else math.ceil(seeds / environment.cores())


def _always(model: Glas) -> Callable[[Images], ModelFor]:
    return lambda images: lambda part: model


def _fit(rows: list[dict[str, Any]]) -> None:
    """Add the least-squares line's seconds to each row, and how far the row lies from it."""
    x = [float(row["work"]) for row in rows]
    y = [float(row["seconds"]) for row in rows]
    if len(set(x)) == 1:
        slope, start = 0.0, statistics.mean(y)
    else:
        slope, start = statistics.linear_regression(x, y)
    for row, at in zip(rows, x, strict=True):
        row["line_seconds"] = start + slope * at
        row["miss"] = row["seconds"] / row["line_seconds"] - 1


def _draw(series: dict[str, list[dict[str, Any]]], case: Case, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    seeds = ", ".join(str(row["size"]) for row in series["S"])
    about = {
        "T": "steps T",
        "S": "seeds S" if case.device.startswith("cuda") else f"seeds a core (S = {seeds})",
        "H": "GFLOP a step (H = " + ", ".join(map(str, HIDDEN)) + ")",
        "K": "draws K, ten images",
    }
    for axes, (varied, rows) in zip(figure.subplots(1, 4), series.items(), strict=True):
        work = [row["work"] for row in rows]
        axes.plot(work, [row["line_seconds"] for row in rows], color="0.6", linewidth=1)
        axes.plot(work, [row["seconds"] for row in rows], "o")
        axes.set(xlabel=about[varied], xlim=(0, None), ylim=(0, None))
        axes.set_ylabel("seconds" if varied == "K" else "seconds a step")
    figure.suptitle(
        f"{case.variant}: T = {case.steps}, S = {case.seeds}, H = {case.hidden}, B = {case.batch}, "
        f"{case.precision} but for what varies; {environment.device_name(case.device)}"
    )
    figure.savefig(path, dpi=120)
