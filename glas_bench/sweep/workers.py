"""Several workers side by side: one a GPU, or processes that divide the processors."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from glas_bench import environment
from glas_bench.errors import UsageError
from glas_bench.processes import OnEvent, Order, Pool
from glas_bench.sweep import storage
from glas_bench.sweep.worker import Job
from glas_bench.text import count

Problem = tuple[int, str]
"""Exit code and reason of what went wrong."""


def run_workers(job: Job, workers: int, url: str, on_event: OnEvent) -> list[Problem]:
    """Run so many worker processes to their end; return the problems of those that failed.

    With device `cuda` they take the GPUs in turn.
    """
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
    """Return how many workers a machine gets by default for cells with so many threads a seed.

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
