"""Keeps MLflow up to date from a process beside the training, which cannot disturb it.

mlflow takes seconds to import, prints to stdout, may crash, and may hang in a socket that cannot be
interrupted. In a child process of low priority none of that reaches the training. The child syncs
the run folders every half minute, and once more on `finish`. Addresses and passwords are not in
its arguments; its output goes to `<results>/mlflow.log`, passwords masked.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import processes, signals
from glas_bench.processes import ChildProcess, OnEvent, Order

if TYPE_CHECKING:
    from glas_bench.tracking.sync import SyncReport

EVERY = 30.0
"""Seconds between two syncs."""

PATIENCE, PATIENCE_WHEN_STOPPED = 120.0, 10.0
"""Seconds to wait for the last sync; and after SIGTERM or Ctrl-C."""

LOG_BYTES = 2**20
"""Size at which the log starts over."""


class Mirror:
    """The parent's side. No method raises, or waits longer than its timeout.

    Args:
        results: the results folder.
        folders: run folders to mirror, each as soon as it exists.
        experiment: a study's; by default see `address.experiment_name`.
        every: seconds between two syncs.
        models: log the models of complete seeds too.
    """

    def __init__(
        self,
        results: Path,
        folders: Sequence[Path],
        *,
        experiment: str | None = None,
        every: float = EVERY,
        models: bool = False,
    ) -> None:
        self.results = results.resolve()
        self.folders = [folder.resolve() for folder in folders]
        self.about = {"experiment": experiment, "every": every, "models": models}
        self.child: ChildProcess | None = None
        self.reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.problem = "it was not started"

    def __enter__(self) -> Mirror:
        """Start the child process; a log that has grown too large starts over."""
        log = self.results / "mlflow.log"
        folders = [str(folder) for folder in self.folders]
        order = {"results": str(self.results), "folders": folders, **self.about}
        try:
            self.results.mkdir(parents=True, exist_ok=True)
            if log.is_file() and log.stat().st_size > LOG_BYTES:
                log.unlink()
            child = Order("glas_bench.tracking.mirror", order)
            self.child = ChildProcess(child, self.reports.put, open(log, "ab"))
        except OSError as error:
            self.problem = f"it could not be started: {error}"
        return self

    def __exit__(self, *_: object) -> None:
        """End the process at once."""
        if self.child is not None:
            self.child.close()

    def add(self, folder: Path) -> None:
        """Mirror one more run folder from the next sync on."""
        if (folder := folder.resolve()) not in self.folders:
            self.folders.append(folder)
            if self.child is not None:
                self.child.send({"folder": str(folder)})

    def finish(self, timeout: float | None = None) -> SyncReport:
        """Sync a last time; what is not done in time is reported as a failure.

        Args:
            timeout: seconds; by default `PATIENCE`, or `PATIENCE_WHEN_STOPPED`.
        """
        from glas_bench.tracking.sync import SyncReport

        if timeout is None:
            timeout = PATIENCE_WHEN_STOPPED if signals.requested() else PATIENCE
        try:
            if self.child is not None:
                self.child.send("finish")
                if report := self.reports.get(timeout=timeout):
                    done = SyncReport(**report)
                    failed = [(folder, _not_mirrored(why)) for folder, why in done.failures]
                    return replace(done, failures=failed)
                self.problem = f"its process died, see {self.results / 'mlflow.log'}"
        except queue.Empty:
            self.problem = f"no answer within {timeout:.0f} s"
        message = _not_mirrored(self.problem)
        return SyncReport(0, [(str(folder), message) for folder in _that_exist(self.folders)])


def _not_mirrored(why: str) -> str:
    return (
        f"not mirrored to MLflow: {why}; the run folder has everything; run `glas-bench sync` later"
    )


def _that_exist(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if (folder / "config.yaml").is_file()]


# --------------------------------------------------------------------------- the child's side


def _serve(order: dict[str, Any], tell: OnEvent, inbox: queue.Queue[Any]) -> int:
    """Sync now and then; after `finish` once more, and answer with that report."""
    from glas_bench.tracking.sync import sync

    for number in signals.EXIT_CODES:  # the parent decides when to end
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    folders, last = [Path(folder) for folder in order["folders"]], False
    while True:
        there, results = _that_exist(folders), Path(order["results"])
        about = {"experiment": order["experiment"], "models": order["models"]}
        report = sync(there, results, **about, debug=True)
        for failed, message in report.failures:
            print(f"{time.strftime('%F %T')} {failed}: {message}", flush=True)
        if last:
            tell(asdict(report))
            return 0
        if os.fstat(2).st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        due = time.monotonic() + order["every"]
        with contextlib.suppress(queue.Empty):
            while not last:
                message = inbox.get(timeout=max(0.0, due - time.monotonic()))
                last = message == "finish"
                if not last:
                    folders.append(Path(message["folder"]))


if __name__ == "__main__":
    processes.serve(_serve)
