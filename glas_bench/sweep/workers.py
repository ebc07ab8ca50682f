"""Several workers side by side: one a GPU, or processes that divide the processors."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from glas_bench import environment
from glas_bench.processes import OnEvent, Order, Pool
from glas_bench.sweep import storage
from glas_bench.sweep.worker import Job


def run_workers(job: Job, workers: int, url: str, on_event: OnEvent) -> list[tuple[int, str]]:
    """Run worker processes until the last has ended.

    Args:
        job: of each; with `cuda` they take the GPUs in turn.
        workers: how many.
        url: the database's.
        on_event: called with their events.

    Returns:
        Exit code and reason of every worker that ended before its time.
    """
    problems: list[tuple[int, str]] = []
    doing: dict[int, str] = {}
    reported: set[int] = set()  # workers that said how they ended

    def heard(index: int, event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            doing[index] = event["name"]
        elif event["event"] in ("end", "back", "wait", "done"):
            doing.pop(index, None)
        if event["event"] in ("stopped", "done"):
            reported.add(index)
        if event["event"] == "stopped":
            problems.append((event["code"], event["reason"]))
        on_event({**event, "worker": index})

    def ended(index: int, how: str | None) -> None:
        if how is None or index in reported:
            return
        reason = f"worker {index} {how}"
        if index in doing:
            reason += f"; others take over {doing[index]}"
        problems.append((1, reason))
        on_event({"event": "lost", "worker": index, "reason": reason})

    cores = max(1, environment.cores() // workers)
    shared = {storage.VARIABLE: url, "GLAS_BENCH_CORES": str(cores)}
    orders = {
        index: Order("glas_bench.sweep.worker", asdict(replace(job, device=device)), shared)
        for index, device in enumerate(_devices(job.device, workers))
    }
    Pool(heard, ended).run(orders, places=workers)
    return problems


def _devices(device: str, workers: int) -> list[str]:
    if device != "cuda":
        return [device] * workers
    gpus = environment.gpus()
    return [f"cuda:{index % gpus}" for index in range(workers)]


def default_workers(device: str, cells: int, threads: int) -> int:
    """Return how many workers a machine gets by default.

    One a GPU. On a CPU as many as it has processors for: a worker that has them for one seed alone
    runs seeds one after another, which saves each a process of its own and its imports of seconds.

    Args:
        device: as `environment.choose_device` returns it.
        cells: that are to be run; more workers than cells would be idle.
        threads: of a seed.
    """
    if device == "cpu":
        return max(1, min(environment.cores() // threads, cells))
    return environment.gpus() if device == "cuda" else 1
