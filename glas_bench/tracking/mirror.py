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
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from glas_bench import environment

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
        self.process: subprocess.Popen[bytes] | None = None
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
            with _open_log(self.results / "mlflow.log") as log:
                command, surroundings = environment.child("glas_bench.tracking.mirror")
                self.process = subprocess.Popen(
                    command,
                    env=surroundings,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is the parent's to answer
                )
            self._tell(json.dumps(self.order))
        except OSError as error:
            self.trouble = f"it could not be started: {error}"

    def add(self, folder: Path) -> None:
        """Mirror one more run folder from the next sync on."""
        if (folder := folder.resolve()) not in self.folders:
            self.folders.append(folder)
            with contextlib.suppress(OSError):
                self._tell(json.dumps({"folder": str(folder)}))

    def finish(self, timeout: float = 30.0) -> SyncReport:
        """Have everything mirrored once more and end the process.

        Waits at most `timeout` seconds; what is not done then is told as a failure.
        """
        from glas_bench.tracking.sync import SyncReport

        try:
            with contextlib.suppress(OSError):  # one that has died is told of by its silence
                self._tell("finish")
            line = self._answer(timeout)
            if line:
                return SyncReport.parse(line)
        finally:
            self.close()
        there = [folder for folder in self.folders if (folder / "config.yaml").is_file()]
        message = f"not mirrored to MLflow: {self.trouble}; {ADVICE}"
        return SyncReport(0, [(str(folder), message) for folder in there])

    def close(self) -> None:
        """End the process at once."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)

    def _tell(self, line: str) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def _answer(self, timeout: float) -> str:
        """Return the line that the process ends with, or nothing."""
        if self.process is None:
            return ""
        assert self.process.stdout is not None
        number, text = self.process.stdout.fileno(), b""
        until = time.monotonic() + timeout
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([number], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.trouble = f"no answer within {timeout:.0f} s"
                return ""
            piece = os.read(number, 65536)
            if not piece:
                self.trouble = f"its process died, see {self.results / 'mlflow.log'}"
                return ""
            text += piece
        return text.decode()


def _open_log(path: Path) -> IO[bytes]:
    """Open the log to append to; one that has grown begins anew."""
    if path.is_file() and path.stat().st_size > LOG_BYTES:
        path.unlink()
    return open(path, "ab")


# --------------------------------------------------------------------------- as a process


def main() -> None:
    """Mirror as ordered on stdin."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent checkpoints and says when to end
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    order = json.loads(sys.stdin.buffer.readline())
    finish = threading.Event()
    threading.Thread(target=_listen, args=(order, finish), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to the log
    out.write(_mirror(order, finish).line() + "\n")
    out.flush()
    os._exit(0)


def _mirror(order: dict[str, Any], finish: threading.Event) -> SyncReport:
    """Sync until told to finish; return what the last sync did."""
    from glas_bench.tracking.sync import sync

    results = Path(order["results"])
    while True:
        last = finish.is_set()
        folders = [Path(folder) for folder in order["folders"]]
        there = [folder for folder in folders if (folder / "config.yaml").is_file()]
        report = sync(there, results, experiment=order["experiment"], debug=True)
        for folder, message in report.failures:
            print(f"{time.strftime('%F %T')} {folder}: {message}", flush=True)
        if last:
            return report
        if os.fstat(2).st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        finish.wait(order["every"])


def _listen(order: dict[str, Any], finish: threading.Event) -> None:
    """Wait for more folders and for `finish`; end this process when stdin is closed."""
    for line in sys.stdin.buffer:
        if line.strip() == b"finish":
            finish.set()
        else:
            order["folders"].append(json.loads(line)["folder"])
    os._exit(1)


if __name__ == "__main__":
    main()
