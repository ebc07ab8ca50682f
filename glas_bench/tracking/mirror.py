"""A mirror that cannot hurt: MLflow is kept up to date by a process beside the training.

A process and not a thread, because what MLflow can do to a training is then nothing at all: its
import of seconds, the interpreter's lock, a crash, its words on stdout, a socket that never answers
and cannot be interrupted stay over there, at low priority. The process gets its orders on stdin, so
no address or password is in its arguments, syncs the folders every half minute, once more on
`finish`, and ends when stdin closes: it cannot outlive its parent, however that dies. What it has
to say goes to `<results>/mlflow.log`, without passwords.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from glas_bench import processes
from glas_bench.processes import ChildProcess, Order, Tell

if TYPE_CHECKING:
    from glas_bench.tracking.sync import SyncReport

EVERY = 30.0
"""Seconds between two syncs."""

LOG_BYTES = 2**20
"""Size at which the log begins anew."""

ADVICE = "the run folder has everything; run `glas-bench sync` later"


class Mirror:
    """The parent's handle of the process. None of its methods raises, or waits longer than told.

    Args:
        results: the results folder.
        folders: run folders to mirror; one that is not there yet is taken up when it is.
        experiment: a study's; else `addresses.experiment_name()`.
        every: seconds between two syncs.
    """

    def __init__(
        self,
        results: Path,
        folders: Sequence[Path],
        *,
        experiment: str | None = None,
        every: float = EVERY,
    ) -> None:
        self.results = results.resolve()
        self.folders = [folder.resolve() for folder in folders]
        self.order = {
            "results": str(self.results),
            "folders": [str(folder) for folder in self.folders],
            "experiment": experiment,
            "every": every,
        }
        self.child: ChildProcess | None = None
        self.reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.trouble = "it was not started"

    def __enter__(self) -> Mirror:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process; it does its heavy imports over there."""
        try:
            self.results.mkdir(parents=True, exist_ok=True)
            self.child = ChildProcess(
                Order("glas_bench.tracking.mirror", self.order),
                self.reports.put,
                _open_log(self.results / "mlflow.log"),
            )
        except OSError as error:
            self.trouble = f"it could not be started: {error}"

    def add(self, folder: Path) -> None:
        """Mirror one more run folder from the next sync on."""
        if (folder := folder.resolve()) not in self.folders:
            self.folders.append(folder)
            if self.child is not None:
                self.child.send({"folder": str(folder)})

    def finish(self, timeout: float = 30.0) -> SyncReport:
        """Have everything mirrored once more and end the process.

        Waits at most `timeout` seconds; what is not done then is reported as a failure.
        """
        from glas_bench.tracking.sync import SyncReport

        try:
            if report := self._last_report(timeout):
                return SyncReport(**report)
        finally:
            self.close()
        there = [folder for folder in self.folders if (folder / "config.yaml").is_file()]
        message = f"not mirrored to MLflow: {self.trouble}; {ADVICE}"
        return SyncReport(0, [(str(folder), message) for folder in there])

    def _last_report(self, timeout: float) -> dict[str, Any] | None:
        if self.child is None:
            return None
        self.child.send("finish")
        try:
            report = self.reports.get(timeout=timeout)
        except queue.Empty:
            self.trouble = f"no answer within {timeout:.0f} s"
            return None
        if report is None:
            self.trouble = f"its process died, see {self.results / 'mlflow.log'}"
        return report

    def close(self) -> None:
        """End the process at once."""
        child, self.child = self.child, None
        if child is not None:
            child.close()


def _open_log(path: Path) -> IO[bytes]:
    """Open the log to append to; one that has grown begins anew."""
    if path.is_file() and path.stat().st_size > LOG_BYTES:
        path.unlink()
    return open(path, "ab")


# --------------------------------------------------------------------------- as a process


def main() -> NoReturn:
    """Mirror as ordered on stdin."""
    processes.serve(_serve)


def _serve(order: dict[str, Any], tell: Tell, inbox: queue.Queue[Any]) -> int:
    """Sync now and then; after `finish` once more, whose report is the answer."""
    from glas_bench.tracking.sync import sync

    for number in (signal.SIGINT, signal.SIGTERM):  # the parent checkpoints and says when to end
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    folders, last = [Path(folder) for folder in order["folders"]], False
    while True:
        there = [folder for folder in folders if (folder / "config.yaml").is_file()]
        report = sync(there, Path(order["results"]), experiment=order["experiment"], debug=True)
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
                if message == "finish":
                    last = True
                else:
                    folders.append(Path(message["folder"]))


if __name__ == "__main__":
    main()
