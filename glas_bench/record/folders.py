"""The folder of a seed, and the folder of a cell with its lock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from glas_bench.config import RunConfig
from glas_bench.errors import AlreadyRunning, RunError
from glas_bench.record.files import (
    SCHEMA,
    os_errors,
    read_checkpoint,
    read_json,
    write_atomically,
    write_checkpoint,
    write_json,
    write_text,
)
from glas_bench.record.scores import AFTER_TRAINING, FINISHED, STATUSES, Scores, Status

if TYPE_CHECKING:
    import numpy as np

KEPT_CHECKPOINTS = 2

PROBE_SECONDS = 0.5
"""How long a lock may be held by a process that only looks whether another works there."""


class SeedFolder:
    """The folder of one seed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed

    # ---- status

    def status(self) -> Status:
        """Return `status.json`; without one, the seed is waiting."""
        if not (self.path / "status.json").is_file():
            return {"status": "waiting"}
        return cast(Status, read_json(self.path / "status.json"))

    def set_status(self, status: str, **about: Any) -> None:
        """Write `status.json`: the status, and other fields of `Status`.

        A complete seed stays complete while it is scored again, however that ends, until it is
        trained again.
        """
        assert status in STATUSES, status
        with contextlib.suppress(RunError):
            if status in AFTER_TRAINING and self.status().get("status") == "complete":
                return
        value = {"schema": SCHEMA, "status": status, "updated": time.time(), **about}
        write_json(self.path / "status.json", value)

    def finished(self, protocol: str) -> str | None:
        """Return `complete` or `diverged` where nothing is left to do by a protocol, else None.

        With a broken `status.json` or score, the seed continues from its checkpoint.
        """
        with contextlib.suppress(RunError, KeyError):
            status = self.status()["status"]
            if status == "diverged" or (status == "complete" and self.scores(protocol) is not None):
                return status
        return None

    def note_killed(self) -> None:
        """Call a seed interrupted that was at work; it ended when it last wrote.

        The caller holds the lock: no process is at work.
        """
        status: dict[str, Any] = {}
        with contextlib.suppress(RunError):
            status = dict(self.status())
        if status.get("status") in ("training", "scoring"):
            last = max(path.stat().st_mtime for path in self.path.rglob("*") if path.is_file())
            about = status | {"updated": last, "reason": "its process was killed"}
            self.set_status("interrupted", **{k: about[k] for k in about.keys() - {"status"}})

    def remove_leftovers(self) -> None:
        """Remove files that killed processes left half-written. The caller holds the lock."""
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("eval/.*.tmp")):
            path.unlink(missing_ok=True)

    # ---- metrics

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row an epoch, without a torn last line."""
        try:
            text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            return [json.loads(line) for line in whole.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.path / 'metrics.jsonl'}: {error}") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add the row of a finished epoch."""
        path = self.path / "metrics.jsonl"
        line = json.dumps(row, allow_nan=False) + "\n"
        with os_errors(f"write {path}"), open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the rows of the first `epochs` epochs, those of a checkpoint."""
        rows = [row for row in self.metrics() if row["epoch"] <= epochs]
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        write_text(self.path / "metrics.jsonl", "".join(lines))

    # ---- checkpoints

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        by_step = [
            (int(match[1]), path)
            for path in self.path.glob("checkpoint-*.pt")
            if (match := re.fullmatch(r"checkpoint-(\d+)\.pt", path.name))
        ]
        return [path for _, path in sorted(by_step, reverse=True)]

    def save_checkpoint(self, step: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint; remove those of later steps, and all but the newest `keep`.

        Training is behind a later step only if that checkpoint is broken.
        """
        path = self.path / f"checkpoint-{step:08d}.pt"
        write_checkpoint(path, state)
        there = self.checkpoints()
        kept = [each for each in there if each.name <= path.name][:keep]
        for other in {*there} - {*kept}:
            other.unlink(missing_ok=True)
        return path

    def load_checkpoint(self, device: Any = "cpu") -> dict[str, Any] | None:
        """Return the state of the newest checkpoint whose digest matches, or None.

        Raises:
            RunError: the disk or the memory fails; starting over would lose the checkpoints.
        """
        states = (read_checkpoint(path, device) for path in self.checkpoints())
        return next((state for state in states if state is not None), None)

    # ---- scores

    def scores(self, protocol: str) -> Scores | None:
        """Return the scores of a protocol, or None where it has not been scored."""
        path = self.path / "eval" / f"{protocol}.json"
        return cast(Scores, read_json(path)) if path.is_file() else None

    def all_scores(self) -> dict[str, Scores]:
        """Return the scores of every protocol by its key."""
        paths = sorted(self.path.glob("eval/*.json"))
        return {path.stem: cast(Scores, read_json(path)) for path in paths}

    def save_scores(
        self, protocol: str, scores: Mapping[str, Any], per_image: Mapping[str, np.ndarray]
    ) -> None:
        """Write per-image values and then, last of all, the scores."""
        import numpy as np

        own = {f"{protocol}/{name}": values for name, values in per_image.items()}
        kept = self.per_image() | own
        write_atomically(
            self.path / "per_image.npz",
            lambda file: np.savez_compressed(file, **kept),  # type: ignore[arg-type]
        )
        document = {"schema": SCHEMA, "time": time.time(), **scores}
        write_json(self.path / "eval" / f"{protocol}.json", document)

    def per_image(self, protocol: str | None = None) -> dict[str, np.ndarray]:
        """Return per-image values, nats [images], by `<protocol>/<name>`; a protocol's by name."""
        import numpy as np

        path = self.path / "per_image.npz"
        if not path.is_file():
            return {}
        prefix = "" if protocol is None else f"{protocol}/"
        with np.load(path, allow_pickle=False) as stored:
            return {
                name.removeprefix(prefix): value
                for name, value in stored.items()
                if name.startswith(prefix)
            }


class RunFolder:
    """The folder of a cell, with a folder for each seed."""

    def __init__(self, results: Path, variant: str, key: str) -> None:
        self.path = results / "runs" / f"{variant}-{key}"
        self.key = key

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Return the run folder at any path."""
        folder = cls.__new__(cls)
        folder.path = path.resolve()
        folder.key = folder.path.name.rpartition("-")[2]
        return folder

    def seed(self, seed: int) -> SeedFolder:
        """Return the folder of a seed."""
        return SeedFolder(self.path / f"seed-{seed}", seed)

    def prepare(self, config: RunConfig, about: Mapping[str, Any]) -> None:
        """Write `config.yaml`, with what `about` says of the cell, where it does not exist yet."""
        if not (self.path / "config.yaml").is_file():
            document = {"schema": SCHEMA, "config_key": self.key, **about}
            document["config"] = config.model_dump()
            write_text(self.path / "config.yaml", yaml.safe_dump(document, sort_keys=False))

    def seeds(self) -> list[int]:
        """Return the seeds that have a folder."""
        matches = (re.fullmatch(r"seed-(\d+)", path.name) for path in self.path.glob("seed-*"))
        return sorted(int(match[1]) for match in matches if match)

    def set_aside(self, seed: int) -> None:
        """Let a seed start over; what it has is kept until `settle` finds the new one finished."""
        with os_errors(f"move {self.seed(seed).path}"), contextlib.suppress(FileNotFoundError):
            os.replace(self.seed(seed).path, self._aside(seed))

    def _aside(self, seed: int) -> Path:
        return self.path / f".seed-{seed}.before"

    def settle(self) -> list[int]:
        """Settle what ended early, however it did; the caller holds the lock.

        Seeds that were at work are called interrupted. Of seeds that started over, the results
        from before are put back unless the new ones are finished; those seeds are returned.
        """
        restored = []
        for path in self.path.glob(".seed-*.before"):
            seed = self.seed(int(path.name.split("-")[1].split(".")[0]))
            done = False
            with contextlib.suppress(RunError):
                done = seed.status()["status"] in FINISHED
            with os_errors(f"put back {seed.path}"):
                if not done:
                    shutil.rmtree(seed.path, ignore_errors=True)
                    os.replace(path, seed.path)
                    restored.append(seed.seed)
                else:
                    shutil.rmtree(path)
        for number in self.seeds():
            self.seed(number).note_killed()
        return restored

    def settle_if_free(self) -> None:
        """Settle the folder, unless a process works in it, or it cannot be written."""
        with contextlib.suppress(RunError, OSError):
            statuses = {self.seed(seed).status()["status"] for seed in self.seeds()}
            early = statuses & {"training", "scoring"} or any(self.path.glob(".seed-*.before"))
            if early and (self.path / "lock").is_file():  # a copy from MLflow has none
                with self.locked(patience=0.0):
                    self.settle()

    @contextlib.contextmanager
    def locked(self, patience: float = PROBE_SECONDS) -> Iterator[int]:
        """Hold the folder's lock; yield its file descriptor for child processes to inherit.

        The lock belongs to the open file: it is released when the last process with the descriptor
        ends, however it ends. `patience` is how many seconds to wait for it.

        Raises:
            AlreadyRunning: another process works in the folder.
            RunError: the lock file cannot be written or locked.
        """
        import fcntl

        path = self.path / "lock"
        with contextlib.ExitStack() as cleanup:
            with os_errors(f"write {path}"):
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                cleanup.callback(os.close, lock)
            with os_errors(f"lock {path}"):  # on a file system without locks, for example
                until = time.monotonic() + patience
                while True:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError as error:
                        if time.monotonic() < until:
                            time.sleep(0.05)
                            continue
                        holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
                        raise AlreadyRunning(
                            f"already running: {holder or 'another process'} works in {self.path}. "
                            "Wait for it, or stop it; its work is kept."
                        ) from error
            with os_errors(f"write {path}"):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield lock
