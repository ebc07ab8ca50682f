"""How the cost of training grows with T, S and H, and that of scoring with K: table and figure.

    python results/bench/growth.py --steps 8 --hidden 128 --batch 64

Each size is varied with the others held; a straight line is fitted to seconds against the size, and
each point's relative distance from it is printed. Against H the line is fitted to the operations of
a step, which grow with H^2; against S, on a CPU, to the seeds per core, for they run side by side
until the cores are full.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from glas_bench import environment, registry
from glas_bench.commands import bench
from glas_bench.commands.bench import Case
from glas_bench.core.train import Training, scoring
from glas_bench.record import Partial
from glas_bench.text import aligned
from glas_bench.yardstick.weights import Images, Weigher, Weights

STEPS = (4, 8, 16, 32)
SEEDS = (1, 2, 4)
SEEDS_ON_GPU = (1, 2, 4, 8, 16, 32)
HIDDEN = (64, 128, 256, 512)
SAMPLES = (10, 50, 100, 200)
ROUNDS = 5
COLUMNS = ("varied", "size", "work", "seconds", "line_seconds", "miss")


def main() -> None:
    """Measure, print the table, and write `growth.csv` and `growth.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="cauchy")
    for name, default in (("steps", 8), ("hidden", 128), ("batch", 64), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    given = vars(parser.parse_args())
    folder = given.pop("folder")
    given["device"] = environment.choose_device(given["device"])
    print(table(measure(Case(**given), folder, lambda line: print(line, file=sys.stderr))))


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
        work = {"H": found["gflop_per_step"], "S": turns(case.device, size)}.get(varied, size)
        return {"varied": varied, "size": size, "work": work, "seconds": found["seconds_per_step"]}

    series: dict[str, list[dict[str, Any]]] = {
        "T": [training("T", size, replace(case, steps=size)) for size in STEPS],
        "S": [training("S", size, replace(case, seeds=size)) for size in seeds],
        "H": [training("H", size, replace(case, hidden=size)) for size in HIDDEN],
        "K": scoring_series(case, tell),
    }
    for rows in series.values():
        fit(rows)
    found = [row for rows in series.values() for row in rows]
    with open(folder / "growth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    draw(series, case, folder / "growth.png")
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        [
            row["varied"],
            str(row["size"]),
            f"{row['seconds']:.4f}",
            f"{row['line_seconds']:.4f}",
            f"{row['miss']:.0%}",
        ]
        for row in rows
    ]
    return "\n".join(aligned([["varied", "size", "seconds", "line", "miss"], *lines]))


def scoring_series(case: Case, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return seconds to weigh ten images with K draws each."""
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    splits = bench.made_up(case.batch).to(case.device)
    model = Training(variant, resolved, splits, 0).model
    labels = None if splits.train.labels is None else splits.train.labels[:10]
    images = Images(splits.train.images[:10], labels, tuple(range(10)))
    log_w = Weights()
    times: dict[int, list[float]] = {size: [] for size in SAMPLES}
    with scoring(model, resolved, splits):
        for _ in range(ROUNDS):
            for size in SAMPLES:
                weigher = Weigher(0, "growth", "iw", size, lambda _: lambda _: model, log_w=log_w)
                weigh = functools.partial(weigher, images, Partial())
                times[size].append(bench.seconds(weigh, device=case.device))
    found = []
    for size, seconds in times.items():
        middle = statistics.median(seconds)
        tell(f"K = {size}: {middle:.4f} s for ten images")
        found.append({"varied": "K", "size": size, "work": size, "seconds": middle})
    return found


def turns(device: str, seeds: int) -> int:
    """Return the seeds per core; on a GPU all of them."""
    return seeds if device.startswith("cuda") else math.ceil(seeds / environment.cores())


def fit(rows: list[dict[str, Any]]) -> None:
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


def draw(series: dict[str, list[dict[str, Any]]], case: Case, path: Path) -> None:
    """Draw every series with its line."""
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


if __name__ == "__main__":
    main()
