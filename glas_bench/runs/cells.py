"""Running cells: their seeds in this process, as one stack, or side by side.

On a GPU the seeds of a cell train in the command's own process, as one stack. On a CPU a single
seed runs in that process too; several seeds, or a cell beside its baseline, run each in a process
with its own threads, as many at a time as there are processors. The lock of a cell's folder is
inherited by its seed processes: it is free when the last of them has ended.

Both ways and the folder's lock are one file, for they end alike.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import environment, signals
from glas_bench.errors import GlasBenchError, RunError
from glas_bench.processes import Order, Pool
from glas_bench.record import RunFolder
from glas_bench.runs import worker

if TYPE_CHECKING:
    from glas_bench.data import Splits
    from glas_bench.study import Cell

Watch = Callable[["Cell", int, dict[str, Any]], None]
"""Called with a cell, a seed and an event of `worker`."""


def check_results(results: Path) -> None:
    """Refuse, before any training, a results folder that cannot be written or has no room.

    Raises:
        RunError: with what to do.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise RunError(
            f"cannot write into {results}: {error.strerror or error}. "
            "Choose another folder with --results or GLAS_BENCH_RESULTS."
        ) from error
    free = shutil.disk_usage(results).free
    if free < (needed := 200 * 2**20):
        raise RunError(
            f"only {free / 2**20:.0f} MiB are free below {results} and a run wants "
            f"{needed / 2**20:.0f} MiB. Make room, or choose another folder with --results."
        )


def run_cells(
    cells: Sequence[Cell],
    splits: Splits,
    results: Path,
    *,
    device: str,
    preset: str | None,
    data_file: Path | None = None,
    fresh: bool = False,
    watch: Watch = lambda cell, seed, event: None,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Train and score what is missing of the cells' seeds.

    Args:
        cells: all on the same data.
        splits: that data, on the CPU.
        results: where the run folders are.
        device: where to train.
        preset: as told in the record.
        data_file: where the data came from, if it is not a published file.
        fresh: start over, removing what these seeds had.
        watch: told of every event.

    Returns:
        For every (config_key, seed) its status, with a reason where there is one. A seed that was
        not begun because the process was asked to stop is `interrupted`.

    Raises:
        RunError: another process works in a folder, or a folder cannot be written.
    """
    with contextlib.ExitStack() as stack, signals.graceful():
        locks = {cell.key: stack.enter_context(cell.folder(results).locked()) for cell in cells}
        for cell in cells:
            folder = cell.folder(results)
            _prepare(cell, folder, splits, device, preset, data_file)
            for seed in cell.seeds if fresh else ():
                _remove(folder.seed(seed).path)
        jobs = []
        outcomes: dict[tuple[str, int], dict[str, Any]] = {}
        for cell, seed in [(each, seed) for each in cells for seed in each.seeds]:
            if status := worker.finished(cell.folder(results).seed(seed), cell.config):
                outcomes[cell.key, seed] = {"status": status}
                watch(cell, seed, {"event": "end", "status": status})
            else:
                jobs.append((cell, seed))
        if device.startswith("cuda"):
            return outcomes | _run_stacked(jobs, splits.to(device), results, watch)
        if len(jobs) == 1:
            return outcomes | _run_here(*jobs[0], splits.to(device), results, watch)
        return outcomes | _run_side_by_side(jobs, results, locks, device, data_file, watch)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:  # what is left of it must not pass for what is made anew
        raise RunError(f"cannot remove {folder}: {error.strerror or error}") from error


def _prepare(
    cell: Cell,
    folder: RunFolder,
    splits: Splits,
    device: str,
    preset: str | None,
    data_file: Path | None,
) -> None:
    from glas_bench.config import CORE_VERSION, check_settings
    from glas_bench.record import write_json

    bound = cell.variant.cls.bound(check_settings(cell.variant, cell.config.settings))
    about = {
        "variant": cell.variant.name,
        "reference": cell.variant.reference,
        "data_file": str(data_file.resolve()) if data_file else None,
        "source_hash": cell.variant.source_hash,
        "data_hash": splits.hash,
        "data_origin": splits.origin,
        "core_version": CORE_VERSION,
        "preset": preset,
        "bounds_nll": bound.holds,
        "bound_reason": bound.reason,
    }
    folder.prepare(cell.config, about)
    path = folder.path / "environment.json"
    if not path.is_file():
        write_json(path, environment.describe(device))


def _run_here(
    cell: Cell, seed: int, splits: Splits, results: Path, watch: Watch
) -> dict[tuple[str, int], dict[str, Any]]:
    folder = cell.folder(results).seed(seed)

    def tell(event: dict[str, Any]) -> None:
        watch(cell, seed, event)

    try:
        status = worker.run_seed(folder, cell.variant, cell.config, splits, tell)
        outcome: dict[str, Any] = {"status": status}
    except Exception as error:  # one seed's failure is a status, as it is in a process of its own
        outcome = worker.note_failure(folder, error, cell.variant.reference)
    tell({"event": "end", **outcome})
    return {(cell.key, seed): outcome}


def _run_stacked(
    jobs: Sequence[tuple[Cell, int]], splits: Splits, results: Path, watch: Watch
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run every cell's seeds in this process, as one stack."""
    from glas_bench.runs.together import run_together

    seeds: dict[str, list[int]] = {}
    for cell, seed in jobs:
        seeds.setdefault(cell.key, []).append(seed)
    outcomes: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in {cell.key: cell for cell, _ in jobs}.values():
        folders = [cell.folder(results).seed(seed) for seed in seeds[cell.key]]

        def tell(seed: int, event: dict[str, Any], cell: Cell = cell) -> None:
            watch(cell, seed, event)

        found = run_together(folders, cell.variant, cell.config, splits, tell)
        for seed, outcome in found.items():
            outcomes[cell.key, seed] = outcome
            watch(cell, seed, {"event": "end", **outcome})
    return outcomes


def _run_side_by_side(
    jobs: Sequence[tuple[Cell, int]],
    results: Path,
    locks: dict[str, int],
    device: str,
    data_file: Path | None,
    watch: Watch,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run every seed in a process of its own, as many at a time as there are processors."""
    cells = {cell.key: cell for cell, _ in jobs}
    outcomes: dict[tuple[str, int], dict[str, Any]] = {}

    def tell(place: tuple[str, int], event: dict[str, Any]) -> None:
        if event["event"] == "end":
            outcomes[place] = {key: value for key, value in event.items() if key != "event"}
        watch(cells[place[0]], place[1], event)

    def ended(place: tuple[str, int], how: str | None) -> None:
        if place in outcomes:
            return
        reason = {} if how is None else {"reason": f"its process {how}"}
        outcome = {"status": "interrupted" if how is None else "failed", **reason}
        with contextlib.suppress(GlasBenchError):
            cells[place[0]].folder(results).seed(place[1]).set_status(**outcome)
        tell(place, {"event": "end", **outcome})

    orders = {}
    for cell, seed in jobs:
        job = worker.Job(
            variant=cell.variant.reference,
            config=cell.config.model_dump(),
            results=str(results.resolve()),
            key=cell.key,
            seed=seed,
            device=device,
            data_file=str(data_file.resolve()) if data_file else None,
        )
        orders[cell.key, seed] = Order(
            "glas_bench.runs.worker", asdict(job), pass_fds=[locks[cell.key]]
        )
    places = environment.cores() // max((cell.config.threads for cell, _ in jobs), default=1)
    for place in Pool(tell, ended).run(orders, max(1, places)):
        outcomes[place] = {"status": "interrupted", "reason": "not begun"}
    return outcomes
