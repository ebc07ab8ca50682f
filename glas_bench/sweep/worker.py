"""A worker: claims a trial, runs it, ends it, and again, until nothing is left.

A single worker works in the command's own process, several each in a process that is given a `Job`:
one a GPU, or processes that divide the processors.
The database's address comes in the environment, for it may hold a password.
"""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glas_bench import environment, processes, signals, study
from glas_bench.errors import AlreadyRunning, DataError, GlasBenchError, RunError, UsageError
from glas_bench.processes import OnEvent, Order, Pool
from glas_bench.runs import cells
from glas_bench.study import Cell
from glas_bench.sweep import storage
from glas_bench.sweep.database import PATIENCE, Database
from glas_bench.sweep.plan import Plan, digest
from glas_bench.sweep.queue import Queue
from glas_bench.sweep.trial import NUMBERS, Progress, Trial
from glas_bench.text import count

POLL = 2.0
"""Seconds between two claims while others run the rest; less where heartbeats are closer."""


Problem = tuple[int, str]
"""Exit code and reason of what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a worker trains, and what it leaves."""

    device: str = "cpu"
    most: int | None = None
    """Trials of the study's whole life."""
    until: float | None = None
    """Unix time from which on no trial is begun, and no further seed of one."""
    pruner: str | None = None
    """median or halving, which ends trials of a search early; never those on a study's own seeds"""

    @property
    def is_over(self) -> bool:
        """Whether the time has come."""
        return self.until is not None and time.time() >= self.until


@dataclass(frozen=True, kw_only=True)
class Job(Limits):
    """What a worker process is given."""

    study: str
    preset: str | None = None
    dataset: str | None = None
    seeds: list[int] | None = None
    results: str
    digest: str
    """Of the plan: a study file that was edited since is refused."""
    by_cell: dict[str, list[int]] = field(default_factory=dict)
    """Seeds of each cell."""


def work(plan: Plan, queue: Queue, limits: Limits, on_event: OnEvent) -> None:
    """Run trials until nothing is left, or the process is asked to stop.

    Args:
        plan: the study.
        queue: where its trials are.
        limits: the device, and when to stop before that.
        on_event: called with `{"event": "begin" | "seed" | "end" | "back" | "wait", "cell", ...}`.

    Raises:
        StorageDown: the database has not answered for too long; run folders have all results.
        RunError: the results folder cannot be written.
    """
    elsewhere: list[str] = []  # cells that a process outside of this study runs

    def give_back(trial: Trial, reason: str) -> None:
        queue.give_back(trial)
        on_event({"event": "back", "cell": trial.cell, "reason": reason})

    while not signals.requested() and not limits.is_over:
        cells.check_results(plan.results, room=False)
        trial, others = queue.claim(plan, limits.most, elsewhere)
        if trial is None:
            if not others:
                return
            on_event({"event": "wait"})
            _rest(min(POLL, 2 * queue.database.beat))
            elsewhere.clear()
            continue
        on_event({"event": "begin", "cell": trial.cell, "name": trial.name, "seeds": trial.seeds})
        try:
            progress = Progress(trial.seeds)
            with queue.beating(trial, progress, limits.pruner):
                ended = run_trial(plan, trial, limits, on_event, progress)
        except AlreadyRunning as error:
            give_back(trial, str(error))
            elsewhere.append(trial.cell)
            _rest(1.0)
            continue
        except (RunError, DataError, OSError) as error:  # this machine's: another may do better
            queue.give_back(trial)
            if isinstance(error, OSError):  # no process, no temporary file
                raise RunError(f"this machine cannot run cells: {error}") from error
            raise
        except Exception as error:
            traceback.print_exc()
            ended = replace(trial, status="failed", reason=f"{type(error).__name__}: {error}")
        if ended.status == "interrupted":
            give_back(trial, "asked to stop" if signals.requested() else "the time is over")
            continue
        if ended.status == "failed":
            try:  # where all that is left would fail as well, it was hardly the cell's fault
                cells.check_results(plan.results)
                environment.check_answers(limits.device)
            except RunError as error:
                queue.give_back(trial, f"{error} ({ended.reason})")
                raise
        queue.finish(ended)
        on_event({"event": "end", "name": trial.name, **asdict(ended)})


def _rest(seconds: float) -> None:
    until = time.monotonic() + seconds * (0.75 + random.random() / 2)
    while time.monotonic() < until and not signals.requested():
        time.sleep(0.05)


def run_trial(
    plan: Plan, trial: Trial, limits: Limits, on_event: OnEvent, progress: Progress
) -> Trial:
    """Run a trial's seeds; return it with how it ended: complete, failed, pruned or interrupted.

    Raises:
        AlreadyRunning: another process works in the cell's folder.
        RunError: the folder cannot be written.
    """
    cell = plan.cell_of(trial)
    began = time.monotonic()
    worked = list(cell.finished(plan.results).values()).count(None)
    cells.check_results(plan.results, room=worked > 0)

    def watch(_: Cell, seed: int, event: dict[str, Any]) -> None:
        about = {"cell": trial.cell, "name": trial.name, "seed": seed}
        on_event({"event": "seed", **about, "of": event})
        if event["event"] == "epoch":
            progress.add(seed, event["epoch"], event["validation"])
        if progress.pruned and event["event"] in ("train", "epoch"):
            raise signals.Stopped

    # A worker without processors for two seeds at once runs one after another in its own process.
    apart = limits.device == "cpu" and environment.cores() < 2 * cell.config.threads
    outcomes: dict[tuple[str, int], dict[str, Any]] = {}
    with contextlib.suppress(signals.Stopped):  # it is pruned, and its seeds' processes have ended
        for seeds in [(seed,) for seed in cell.seeds] if apart else [cell.seeds]:
            if outcomes and (limits.is_over or progress.pruned):
                break
            outcomes |= cells.run_cells(
                [cell.with_seeds(seeds)],
                plan.splits(cell.config),
                plan.results,
                device=limits.device,
                preset=plan.study.preset,
                watch=watch,
            )
    left = {"status": "interrupted"}
    by_seed = {seed: outcomes.get((cell.key, seed), left) for seed in cell.seeds}
    ended = end_of(trial, cell, plan.results, by_seed)
    if progress.pruned and ended.status == "interrupted" and not signals.requested():
        reason = f"pruned after epoch {max(progress.curve)}"
        ended = replace(ended, status="pruned", value=None, reason=reason, curve=progress.curve)
    return replace(ended, seconds=time.monotonic() - began, worked=worked)


def finished(plan: Plan, trial: Trial) -> Trial | None:
    """Return a trial as the run folder ends it, or None where there is work left to do."""
    cell = plan.cell_of(trial)
    statuses = cell.finished(plan.results)
    if None in statuses.values():
        return None
    return end_of(trial, cell, plan.results, {seed: {"status": s} for seed, s in statuses.items()})


def end_of(trial: Trial, cell: Cell, results: Path, by_seed: Mapping[int, dict[str, Any]]) -> Trial:
    """Return a trial with what its seeds amount to; a diverged seed counts as finished.

    A trial of a search has a value only if every seed has one: no setting that diverges wins.
    `by_seed` has their statuses, with reasons.
    """
    values: dict[str, list[float]] = {"validation": []}
    reasons = []
    scored = Progress([seed for seed, one in by_seed.items() if one["status"] == "complete"])
    for seed, outcome in by_seed.items():
        folder, status = cell.folder(results).seed(seed), outcome["status"]
        if status == "complete":
            scores = folder.scores(cell.protocol) or {}
            known: dict[str, Any] = {name: scores.get(name) for name in NUMBERS}
            rows = folder.metrics()
            for row in rows:
                scored.add(seed, row["epoch"], row.get("validation"))
            known["validation"] = scores.get("validation_nll")
            if known["validation"] is None and rows:
                known["validation"] = rows[-1].get("validation")
            for name, value in known.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
        else:
            reason = outcome.get("reason") or folder.status().get("reason")
            reasons.append(f"seed {seed} {status}: {reason or 'no reason given'}")
    outcomes = {str(seed): str(outcome["status"]) for seed, outcome in by_seed.items()}
    means = {name: sum(each) / len(each) for name, each in values.items() if each}
    if trial.is_search and len(values["validation"]) < len(by_seed):
        means.pop("validation", None)
    return replace(
        trial,
        status=next((s for s in ("interrupted", "failed") if s in outcomes.values()), "complete"),
        value=means.pop("validation", None),
        reason="; ".join(reasons) or None,
        outcomes=outcomes,
        numbers=means,
        curve=scored.curve,
    )


def _serve(order: dict[str, Any], on_event: OnEvent, _: object) -> int:
    try:
        run_job(Job(**order), on_event)
    except GlasBenchError as error:
        on_event({"event": "stopped", "reason": str(error), "code": error.exit_code})
    except Exception as error:
        traceback.print_exc()
        on_event({"event": "stopped", "reason": f"{type(error).__name__}: {error}", "code": 1})
    else:
        on_event({"event": "done"})
    return signals.exit_code() if signals.requested() else 0


def run_job(job: Job, on_event: OnEvent) -> None:
    """Lay the study out again, and work.

    Raises:
        RunError: it is no longer the study that was planned.
    """
    results = Path(job.results)
    precision = environment.default_precision(job.device)
    loaded = study.load(job.study, job.preset, job.dataset, seeds=job.seeds, precision=precision)
    plan = Plan(loaded.with_seeds(job.by_cell), results)
    if digest(plan.document) != job.digest:
        raise RunError(
            f"{job.study}, a variant or the data changed since the command began; run it again"
        )
    url = storage.storage_url(None, results)
    with contextlib.closing(Database(url, patience=PATIENCE)) as database:
        work(plan, Queue(database), job, on_event)


def run_workers(job: Job, workers: int, url: str, on_event: OnEvent) -> list[Problem]:
    """Run worker processes, on the GPUs in turn; return the problems of those that fail."""
    problems: list[Problem] = []
    doing: dict[int, str] = {}
    reported: set[int] = set()  # workers that said how they ended

    def heard(index: int, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            doing[index] = event["name"]
        elif kind in ("end", "back", "wait", "done"):
            doing.pop(index, None)
        if kind in ("stopped", "done"):
            reported.add(index)
        if kind == "stopped":
            problems.append((event["code"], event["reason"]))
        on_event(event)

    def ended(index: int, how: str | None) -> None:
        if how is None or index in reported:
            return
        left = f"; others take over {doing[index]}" if index in doing else ""
        problems.append((1, f"worker {index} {how}{left}"))
        on_event({"event": "lost", "reason": problems[-1][1]})

    cores = max(1, environment.cores() // workers)
    shared = {storage.VARIABLE: url, "GLAS_BENCH_CORES": str(cores)}
    orders = {}
    for index in range(workers):
        device = f"cuda:{index % environment.gpus()}" if job.device == "cuda" else job.device
        content = asdict(replace(job, device=device))
        orders[index] = Order("glas_bench.sweep.worker", content, shared)
    Pool(heard, ended).run(orders, places=workers)
    return problems


def default_workers(device: str, cells: int, threads: int) -> int:
    """Return how many workers a machine gets by default; `threads` are those of a seed.

    One a GPU. On a CPU as many as it has processors for: a worker that has them for one seed alone
    runs seeds one after another, which saves each a process of its own and its imports of seconds.
    """
    if device == "cpu":
        return max(1, min(environment.cores() // threads, cells))
    return environment.gpus() if device == "cuda" else 1


def check_workers(device: str, workers: int) -> None:
    """Refuse several workers on one GPU: they take turns, and one runs its cells in a row anyway.

    Raises:
        UsageError: there are more workers than GPUs.
    """
    if device == "cpu":
        return
    most = default_workers(device, 1, 1)
    if workers > most:
        raise UsageError(
            f"--workers {workers} on {count(most, 'GPU')}: the seeds of a cell train as one stack, "
            f"and workers on one GPU only take turns; give at most {most}, or leave it out"
        )


if __name__ == "__main__":
    processes.serve(_serve)
