"""Several workers side by side: one a GPU, or processes that divide the processors."""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from glas_bench import environment, signals
from glas_bench.processes import Beside
from glas_bench.sweep import storage
from glas_bench.sweep.worker import Job

Tell = Callable[[dict[str, Any]], None]


class Crew:
    """Worker processes and what they tell.

    Args:
        jobs: one a worker.
        url: the database's; handed over in the environment.
        tell: called with their events.
    """

    def __init__(self, jobs: list[Job], url: str, tell: Tell) -> None:
        self.tell = tell
        self.events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.problems: list[tuple[int, str]] = []
        """Exit code and reason of workers that ended before their time."""
        self.doing: dict[int, str] = {}
        self.running: dict[int, Beside] = {}
        self.told: set[int] = set()
        cores = max(1, environment.cores() // len(jobs))
        for index, job in enumerate(jobs):
            self._start(index, job, url, cores)

    def _start(self, index: int, job: Job, url: str, cores: int) -> None:
        self.running[index] = Beside(
            "glas_bench.sweep.worker",
            asdict(job),
            lambda event: self.events.put((index, event)),
            surroundings={storage.VARIABLE: url, "GLAS_BENCH_CORES": str(cores)},
        )

    def wait(self) -> None:
        """Pass events on until the last worker has ended."""
        stopped = False
        try:
            while self.running:
                if signals.requested() and not stopped:
                    stopped = True
                    for process in self.running.values():
                        process.stop()
                with contextlib.suppress(queue.Empty):
                    self._take(*self.events.get(timeout=0.2))
        finally:
            for process in self.running.values():
                process.close()

    def _take(self, index: int, event: dict[str, Any] | None) -> None:
        if event is None:
            self._ended(index)
            return
        if event["event"] == "begin":
            self.doing[index] = event["name"]
        elif event["event"] in ("end", "back", "wait", "done"):
            self.doing.pop(index, None)
        if event["event"] in ("stopped", "done"):
            self.told.add(index)
        if event["event"] == "stopped":
            self.problems.append((event["code"], event["reason"]))
        self.tell({**event, "worker": index})

    def _ended(self, index: int) -> None:
        process = self.running.pop(index)
        code, last = process.ended_by
        if index not in self.told and not (signals.requested() and code == -signal.SIGTERM):
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            doing = (
                f" over {self.doing[index]}, which others take over" if index in self.doing else ""
            )
            reason = f"worker {index} {how}{doing}" + (f": {last}" if last else "")
            self.problems.append((1, reason))
            self.tell({"event": "lost", "worker": index, "reason": reason})
        process.close()


def devices(device: str, workers: int) -> list[str]:
    """Return the device of every worker: GPUs in turn where any may be taken.

    Args:
        device: as `environment.choose_device` returns it.
        workers: how many.
    """
    if device != "cuda":
        return [device] * workers
    import torch

    count = max(1, torch.cuda.device_count())
    return [f"cuda:{index % count}" for index in range(workers)]


def default_workers(device: str, cells: int, threads: int) -> int:
    """Return how many workers a machine gets unless told.

    One a GPU. On a CPU as many as it has processors for: a worker that has them for one seed alone
    runs seeds one after another, which saves each a process of its own and its imports of seconds.

    Args:
        device: as `environment.choose_device` returns it.
        cells: that are to be run; more workers than cells would be idle.
        threads: of a seed.
    """
    if device == "cpu":
        return max(1, min(environment.cores() // threads, cells))
    if device != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def jobs(job: Job, workers: int) -> list[Job]:
    """Return a job for every worker."""
    return [replace(job, device=device) for device in devices(job.device, workers)]
