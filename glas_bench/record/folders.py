"""The folder of a seed, and the folder of a cell with its lock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from glas_bench.config import CORE_VERSION, RunConfig, config_key
from glas_bench.errors import AlreadyRunning, GlasBenchError, RunError
from glas_bench.record.files import (
    SCHEMA,
    checked,
    os_errors,
    read_checkpoint,
    read_json,
    signed,
    write_atomically,
    write_checkpoint,
    write_json,
    write_text,
)
from glas_bench.record.scores import (
    AFTER_TRAINING,
    FINISHED,
    STATUSES,
    Scores,
    Status,
    is_number,
)

if TYPE_CHECKING:
    import numpy as np

KEPT_CHECKPOINTS = 2

PROBE_SECONDS = 0.5
"""How long a lock may be held by a process that only looks whether another works there."""


class SeedFolder:
    """The folder of one seed; `key` is its cell's, by default by the name of the folder above."""

    def __init__(self, path: Path, seed: int, key: str = "") -> None:
        self.path = path
        self.seed = seed
        self.of = (key or path.resolve().parent.name.rpartition("-")[2], seed)

    def read(self) -> tuple[Status, dict[str, Scores], list[dict[str, Any]]]:
        """Return the status, the scores of every protocol by its key, and the rows of epochs.

        Raises:
            RunError: a file is missing or broken, or belongs to another seed or cell.
        """
        with os_errors(f"read {self.path}"):
            os.listdir(self.path)
            if (self.path / "environment.json").exists():
                read_json(self.path / "environment.json")
            about, scores, rows = self.status(), self.all_scores(), self.metrics()
            lost = ""
            if about["status"] == "waiting" and (scores or self.checkpoints()):
                lost = "status.json"
            if about["status"] == "complete" and about.get("protocol") not in (None, *scores):
                lost = f"eval/{about['protocol']}.json"
        if lost:
            raise RunError(f"{self.path / lost} is missing")
        if about.get("metrics") not in (None, self._metrics_digest()):
            raise RunError(f"cannot read {self.path / 'metrics.jsonl'}: damaged, edited or missing")
        return about, scores, rows

    # ---- status

    def status(self) -> Status:
        """Return `status.json`; without one, the seed is waiting."""
        path = self.path / "status.json"
        if not path.exists():
            return {"status": "waiting"}
        status = read_json(path, *self.of)
        if status.get("status") not in STATUSES:
            raise RunError(f"cannot read {path}: it has no status")
        return cast(Status, status)

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
        if status in FINISHED:  # they change no more
            value["metrics"] = self._metrics_digest()
        write_json(self.path / "status.json", value, *self.of)

    def finished(self, protocol: str) -> str | None:
        """Return `complete` or `diverged` where nothing is left to do by a protocol, else None.

        With a broken file, the seed continues from its checkpoint.
        """
        with contextlib.suppress(RunError):
            about, scores, _ = self.read()
            status = about["status"]
            if status == "diverged" or (status == "complete" and protocol in scores):
                return status
        return None

    def note_killed(self) -> None:
        """Call a seed interrupted that was at work; it ended when it last wrote.

        The caller holds the lock: no process is at work.
        """
        status: dict[str, Any] = {}
        with contextlib.suppress(RunError):
            status = dict(self.status())
        if status.pop("status", None) in ("training", "scoring"):
            last = max(path.stat().st_mtime for path in self.path.rglob("*") if path.is_file())
            status |= {"updated": last, "reason": "its process was killed"}
            self.set_status("interrupted", **status)

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
            rows = [json.loads(line) for line in whole.splitlines()]
            if not all(isinstance(row, dict) and is_number(row.get("epoch")) for row in rows):
                raise ValueError("a line is no epoch's")
            return rows
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

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rows by those of a checkpoint."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        write_text(self.path / "metrics.jsonl", "".join(lines))

    def _metrics_digest(self) -> str:
        path = self.path / "metrics.jsonl"
        return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()

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
        write_checkpoint(path, state, *self.of)
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
        states = (read_checkpoint(path, device, *self.of) for path in self.checkpoints())
        return next((state for state in states if state is not None), None)

    # ---- scores

    def scores(self, protocol: str) -> Scores | None:
        """Return the scores of a protocol, or None where there are no sound ones."""
        with contextlib.suppress(RunError):
            return self.all_scores(protocol).get(protocol)
        return None

    def all_scores(self, protocol: str = "[0-9a-f]*") -> dict[str, Scores]:
        """Return the scores of every protocol, or of one, by its key.

        Raises:
            RunError: a file is broken, or belongs to another seed or cell.
        """
        found = {}
        paths = sorted(self.path.glob(f"eval/{protocol}.json"))
        paths = [path for path in paths if path.stem.isalnum()]  # no copies by hand
        stored = self.per_image() if paths else {}
        for path in paths:
            scores = read_json(path, *self.of, path.stem)
            right, arrays = scores.pop("per_image", None), _of_protocol(stored, path.stem)
            if right != _arrays_digest(arrays) if right else _unlike(scores, arrays):
                raise RunError(f"{self.path / 'per_image.npz'} does not belong to {path}")
            found[path.stem] = cast(Scores, scores)
        return found

    def save_scores(
        self, protocol: str, scores: Mapping[str, Any], per_image: Mapping[str, np.ndarray]
    ) -> None:
        """Write per-image values and then, last of all, the scores."""
        import numpy as np

        own = {f"{protocol}/{name}": np.asarray(values) for name, values in per_image.items()}
        kept: dict[str, np.ndarray] = {}
        try:
            kept = self.per_image()
        except RunError as error:
            if isinstance(error.__cause__, PermissionError):  # it may be sound
                raise
        kept |= own
        write_atomically(
            self.path / "per_image.npz",
            lambda file: np.savez_compressed(file, **kept),  # type: ignore[arg-type]
        )
        document = {"schema": SCHEMA, "time": time.time(), **scores}
        document["per_image"] = _arrays_digest(_of_protocol(own, protocol))
        write_json(self.path / "eval" / f"{protocol}.json", document, *self.of, protocol)

    def per_image(self, protocol: str | None = None) -> dict[str, np.ndarray]:
        """Return per-image values, nats [images], by `<protocol>/<name>`; a protocol's by name.

        Raises:
            RunError: the file is broken.
        """
        import numpy as np

        path = self.path / "per_image.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored.items())
        except Exception as error:  # a damaged file may raise anything
            why = getattr(error, "strerror", None) or "damaged, or no file of arrays"
            raise RunError(f"cannot read {path}: {why}") from error
        return arrays if protocol is None else _of_protocol(arrays, protocol)


def _of_protocol(arrays: Mapping[str, np.ndarray], protocol: str) -> dict[str, np.ndarray]:
    prefix = f"{protocol}/"
    return {n.removeprefix(prefix): each for n, each in arrays.items() if n.startswith(prefix)}


def _arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        sha.update(f"{name}{values.dtype}{values.shape}".encode() + values.tobytes())
    return sha.hexdigest()


def _unlike(scores: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether scores without a digest have none of these arrays, or not their means."""
    return not arrays or any(
        is_number(scores.get(name)) and not abs(arrays[name].mean() - scores[name]) < 1e-2
        for name in {"nll", "elbo", "iw", "refit_iw", "objective"} & arrays.keys()
    )


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
        match = re.fullmatch(r".+-([0-9a-f]{12})", folder.path.name)
        folder.key = match[1] if match else ""  # a copy under another name
        return folder

    def seed(self, seed: int) -> SeedFolder:
        """Return the folder of a seed."""
        return SeedFolder(self.path / f"seed-{seed}", seed, self.key)

    def prepare(self, config: RunConfig, about: Mapping[str, Any]) -> None:
        """Write `config.yaml`, with what `about` says of the cell, where there is no sound one."""
        with contextlib.suppress(RunError):
            self.config()
            return
        document = {"schema": SCHEMA, "config_key": self.key, **about}
        document["config"] = config.model_dump()
        write_text(self.path / "config.yaml", yaml.safe_dump(signed(document), sort_keys=False))

    def config(self) -> tuple[RunConfig, str, dict[str, Any]]:
        """Return what `config.yaml` says: the config, its key, and the rest.

        Raises:
            RunError: it is missing or broken, was edited, or is another cell's.
            NewerRecord: a newer version wrote it.
        """
        path = self.path / "config.yaml"
        try:
            document = checked(path, yaml.safe_load(path.read_text(encoding="utf-8")))
            document.pop("schema")
            config, key = RunConfig(**document.pop("config")), document.pop("config_key")
            made = (str(document.get(name)) for name in ("source_hash", "data_hash"))
            current = document.get("core_version") == CORE_VERSION  # older ones have no digest
            if (current and config_key(config, *made) != key) or self.key not in ("", key):
                raise ValueError(f"its settings are not those of {self.key}")
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from error
        return config, key, document

    def is_sound(self) -> bool:
        """Return whether what describes the cell can be read as it was written."""
        with contextlib.suppress(RunError):
            self.config()
            read_json(self.path / "environment.json")
            return True
        return False

    def seeds(self) -> list[int]:
        """Return the seeds that have a folder."""
        names: list[str] = []
        with os_errors(f"read {self.path}"), contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.path)
        matches = (re.fullmatch(r"seed-(\d+)", name) for name in names)
        return sorted({int(match[1]) for match in matches if match})

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
            early = any(self.path.glob(".seed-*.before"))
            for seed in self.seeds():
                with contextlib.suppress(GlasBenchError):
                    early |= self.seed(seed).status()["status"] in ("training", "scoring")
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
