"""A worker: claims a cell, runs it, tells what came of it, and again, until nothing is left.

In the command's own process where there is one worker, else as child processes (`workers`). The
database's address comes in the environment, since it may hold a password.
"""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from glas_bench import environment, processes, signals
from glas_bench.errors import AlreadyRunning, DataError, GlasBenchError, RunError
from glas_bench.record import SeedFolder
from glas_bench.runs import cells, outcome
from glas_bench.study import Cell
from glas_bench.sweep.database import PATIENCE
from glas_bench.sweep.plan import Plan, digest
from glas_bench.sweep.store import Store
from glas_bench.sweep.trials import Result, Task, Wait

Tell = Callable[[dict[str, Any]], None]

POLL = 2.0
"""Seconds between two looks while others run what is left; less where beats are shorter."""

NUMBERS = ("nll", "elbo", "iw", "refit_iw", "objective")
"""What a trial shows of its cell: means over seeds, nats per image."""


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    study: str
    preset: str | None
    dataset: str | None
    seeds: list[int] | None
    results: str
    device: str
    digest: str
    """Of the plan: a study file edited since is noticed."""
    most: int | None


def work(plan: Plan, store: Store, job: Job, tell: Tell) -> None:
    """Run tasks until nothing is left, or the process is asked to stop.

    Args:
        plan: the study.
        store: its database.
        job: as given.
        tell: called with events: `{"event": "begin" | "end" | "seed" | "wait", "cell", ...}`.

    Raises:
        StorageDown: the database has not answered for too long; run folders have all results.
        RunError: the results folder cannot be written.
    """
    busy: list[str] = []  # cells that another process works on, outside of this study
    while not signals.requested():
        cells.check_results(plan.results)
        claimed = store.claim(plan, job.most, busy)
        if claimed is None:
            return
        if isinstance(claimed, Wait):
            tell({"event": "wait"})
            _rest(min(POLL, 2 * store.beat))
            busy.clear()
            continue
        tell({"event": "begin", "cell": claimed.cell, "name": claimed.name})
        try:
            with store.beating(claimed):
                result = run_task(plan, claimed, job.device, tell)
        except AlreadyRunning as error:
            store.give_back(claimed)
            busy.append(claimed.cell)
            tell({"event": "back", "cell": claimed.cell, "reason": str(error)})
            _rest(1.0)
            continue
        except (RunError, DataError):  # this machine's trouble: another may do better
            store.give_back(claimed)
            raise
        except OSError as error:  # no process, no temporary file: this machine's as well
            store.give_back(claimed)
            raise RunError(f"this machine cannot run cells: {error}") from error
        except Exception as error:
            traceback.print_exc()
            result = Result("failed", reason=f"{type(error).__name__}: {error}")
        if result is None:
            store.give_back(claimed)
            tell({"event": "back", "cell": claimed.cell, "reason": "asked to stop"})
            continue
        if result.status == "failed":
            try:
                _check_machine(plan, job.device)
            except RunError as error:  # then it was hardly the cell's fault
                store.give_back(claimed, f"{error} ({result.reason})")
                raise
        store.finish(claimed, result)
        tell({"event": "end", "cell": claimed.cell, "name": claimed.name, **asdict(result)})


def _check_machine(plan: Plan, device: str) -> None:
    """Refuse to go on where all that is left would fail as well.

    Raises:
        RunError: the results folder cannot be written or is full, or the GPU is gone.
    """
    cells.check_results(plan.results)
    environment.check_answers(device)


def _rest(seconds: float) -> None:
    """Sleep, unless asked to stop."""
    until = time.monotonic() + seconds * (0.75 + random.random() / 2)
    while time.monotonic() < until and not signals.requested():
        time.sleep(0.05)


def run_task(plan: Plan, task: Task, device: str, tell: Tell) -> Result | None:
    """Run a cell's seeds; return what came of it, or None where it was asked to stop.

    Raises:
        AlreadyRunning: another process works in the cell's folder.
        RunError: the folder cannot be written.
    """
    cell = plan.cell(task.cell, task.values)
    splits = plan.splits(cell.config)
    began = time.monotonic()
    worked = sum(_status(cell, plan.results, seed) is None for seed in task.seeds)

    def watch(_: Cell, seed: int, event: dict[str, Any]) -> None:
        tell({"event": "seed", "cell": task.cell, "name": task.name, "seed": seed, "of": event})

    outcomes: dict[Any, dict[str, Any]] = {}
    for seeds in _sittings(task.seeds, device, cell):
        outcomes |= cells.run_cells(
            [replace(cell, seeds=tuple(seeds))],
            splits,
            plan.results,
            device=device,
            preset=plan.study.preset,
            watch=watch,
        )
    by_seed = {seed: outcomes[cell.key, seed] for seed in task.seeds}
    if any(each["status"] == "interrupted" for each in by_seed.values()):
        return None
    found = result_of(cell, plan.results, by_seed, strict=task.is_search)
    return replace(found, seconds=time.monotonic() - began, worked=worked)


def _sittings(seeds: Sequence[int], device: str, cell: Cell) -> list[list[int]]:
    """Return seeds as they are given to `run_cells`.

    A worker that has no processors for two seeds at once runs one after another in its own process,
    which saves each the start of a process of its own.
    """
    if device == "cpu" and environment.cores() < 2 * cell.config.threads:
        return [[seed] for seed in seeds]
    return [list(seeds)]


def finished(cell: Cell, results: Path, seeds: Sequence[int]) -> Result | None:
    """Return the result of a cell that its run folder has already, or None."""
    by_seed = {}
    for seed in seeds:
        status = _status(cell, results, seed)
        if status is None:
            return None
        by_seed[seed] = {"status": status}
    return result_of(cell, results, by_seed)


def _status(cell: Cell, results: Path, seed: int) -> str | None:
    """Return how a seed ended, or None where there is work left to do."""
    from glas_bench.runs import worker

    return worker.finished(cell.folder(results).seed(seed), cell.config)


def result_of(
    cell: Cell, results: Path, by_seed: Mapping[int, dict[str, Any]], *, strict: bool = False
) -> Result:
    """Return what a cell's seeds amount to; a diverged seed counts as finished.

    Args:
        cell: what was run.
        results: where its run folder is.
        by_seed: statuses, with reasons, by seed.
        strict: no value unless every seed has one: a search is not won by a setting that diverges.
    """
    statuses = {str(seed): str(each["status"]) for seed, each in by_seed.items()}
    folder = cell.folder(results)
    rows = [
        outcome.seed_row(folder.seed(seed), cell.protocol, each) for seed, each in by_seed.items()
    ]
    numbers = {}
    for name in NUMBERS:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            numbers[name] = sum(values) / len(values)
    reasons = [
        f"seed {row['seed']} {row['status']}: {row['reason'] or 'no reason told'}"
        for row in rows
        if row["status"] not in ("complete", "not_applicable")
    ]
    failed = [seed for seed, status in statuses.items() if status == "failed"]
    values = [
        _validation(folder.seed(int(seed)), cell.protocol)
        for seed, status in statuses.items()
        if status == "complete"
    ]
    known = [value for value in values if value is not None]
    enough = len(known) == len(by_seed) if strict else bool(known)
    return Result(
        status="failed" if failed else "complete",
        value=sum(known) / len(known) if enough else None,
        reason="; ".join(reasons) or None,
        outcomes=statuses,
        numbers=numbers,
    )


def _validation(folder: SeedFolder, protocol: str) -> float | None:
    """Return a seed's validation nll, nats per image; where it has none, its last validation."""
    scores = folder.scores(protocol) or {}
    if (value := scores.get("validation_nll")) is not None:
        return value
    rows = folder.metrics()
    return rows[-1].get("validation") if rows else None


# --------------------------------------------------------------------------- as a process


def main() -> NoReturn:
    """Do the job given on stdin."""
    processes.serve(_serve)


def _serve(order: dict[str, Any], tell: Tell, inbox: object) -> int:
    del inbox
    try:
        _do(Job(**order), tell)
    except GlasBenchError as error:
        tell({"event": "stopped", "reason": str(error), "code": error.exit_code})
    except Exception as error:
        traceback.print_exc()
        tell({"event": "stopped", "reason": f"{type(error).__name__}: {error}", "code": 1})
    else:
        tell({"event": "done"})
    return signals.exit_code() if signals.requested() else 0


def _do(job: Job, tell: Tell) -> None:
    from glas_bench import study
    from glas_bench.sweep import storage

    results = Path(job.results)
    precision = environment.default_precision(job.device)
    found = study.load(job.study, job.preset, job.dataset, seeds=job.seeds, precision=precision)
    plan = Plan(found, results)
    if digest(plan.document()) != job.digest:
        raise RunError(f"{job.study}, a variant or the data has changed since; give it again")
    url = storage.storage_url(None, results)
    with contextlib.closing(Store(url, patience=PATIENCE)) as store:
        work(plan, store, job, tell)


if __name__ == "__main__":
    main()
