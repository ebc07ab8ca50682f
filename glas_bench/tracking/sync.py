"""Run folders to MLflow (`sync`) and back (`fetch`).

`sync` may be called at any time, by any number of processes, any number of times. A folder's
`tracking.json` keeps the ids of its runs by store; what a run already holds is read from the store;
a run that the store has lost is created again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench.errors import GlasBenchError, RunError
from glas_bench.record import (
    RunFolder,
    RunRecord,
    SeedFolder,
    SeedRecord,
    load_run,
    read_json,
    read_note,
    write_json,
)
from glas_bench.tracking import entries
from glas_bench.tracking.address import error_line, experiment_name, locked
from glas_bench.tracking.entries import Entry, Point
from glas_bench.tracking.mlflow_store import MOST_METRICS, Store, quiet_mlflow, reading

if TYPE_CHECKING:
    from glas_bench.tracking.mlflow_store import Run

FILES = "glas_bench.files"
"""Tag of a run: its artifacts and the digests of their contents, set when all are uploaded."""

MODEL = "glas_bench.model"
"""Tag of a run whose model is logged."""

MANY = 10
"""Folders from which on one search for all runs is faster than a request for each."""


@dataclass(frozen=True)
class SyncReport:
    """What a sync did."""

    runs: int = 0  # run folders that MLflow now holds
    failures: list[tuple[str, str]] = field(default_factory=list)  # run folders with the error
    changed: int = 0  # of `runs`, those with something new


def sync(
    folders: Sequence[Path],
    results: Path,
    *,
    experiment: str | None = None,
    debug: bool = False,
    models: bool = False,
) -> SyncReport:
    """Mirror run folders to MLflow; errors of MLflow or of a folder are returned, not raised.

    Args:
        folders: run folders, anywhere.
        results: the results folder, for the default store and its artifacts.
        experiment: a study's; by default see `experiment_name`.
        debug: let mlflow's own messages through to stderr.
        models: log the models of complete seeds too.
    """
    if not folders:
        return SyncReport()
    done, changed, failures = 0, 0, []
    name = experiment_name(experiment)
    with quiet_mlflow(debug):
        try:
            store = Store(results)
            note = read_note(results, name)
            store.use(name, note.get("question"))
            is_there: Callable[[str], Any] = store.run
            if len(folders) > MANY:
                is_there = {run.info.run_id for run in store.runs(name)}.__contains__
        except Exception as error:
            return SyncReport(0, [(str(folder), error_line(error)) for folder in folders])
        for index, folder in enumerate(folders):
            try:
                changed += _sync_folder(store, folder, is_there, note, models)
                done += 1
            except Exception as error:  # the other folders may succeed
                failures.append((str(folder), error_line(error)))
                if not isinstance(error, GlasBenchError) and not store.answers():
                    failures += [(str(rest), error_line(error)) for rest in folders[index + 1 :]]
                    break
    return SyncReport(done, failures, changed)


def _sync_folder(
    store: Store,
    folder: Path,
    is_there: Callable[[str], Any],
    note: Mapping[str, Any],
    models: bool,
) -> bool:
    """Mirror a folder; return whether there was anything new."""
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder: it has no config.yaml")
    with locked(folder / "tracking.lock", "this folder's mirror"):
        RunFolder.at(folder).settle_if_free()
        ledger = _Ledger(folder, store)
        stamp = _stamp(folder, note)
        is_same = ledger.kept.get("stamp") == stamp and all(map(is_there, ledger.runs.values()))
        if is_same and not models:
            return False
        record = load_run(folder)
        ledger.kept.pop("stamp", None)
        try:
            with store.writing():
                parent = _Put(store, ledger, "cell", entries.of_cell(record, note)).run_id
            for seed in record.seeds.values():
                if seed.broken:  # the store may have what was sound
                    continue
                entry = entries.of_seed(record, seed, note)
                with store.writing():
                    put = _Put(store, ledger, str(seed.seed), entry, parent)
                    if models and seed.status == "complete":
                        put.log_model(record, seed)
            ledger.kept["stamp"] = stamp
        finally:
            ledger.save()
    if problems := record.problems:
        raise RunError(problems[0])
    return True


def _stamp(folder: Path, note: Mapping[str, Any]) -> str:
    """Return a digest of what a study notes of a folder, and of its files' sizes and times."""
    kinds = {".yaml", ".json", ".jsonl", ".npz", ".png"}
    files = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds and path.name != "tracking.json" and path.is_file()
    ]
    noted = [note.get(key) for key in ("question", "command")]
    noted += [note.get(key, {}).get(folder.resolve().name) for key in ("folders", "names")]
    document = json.dumps([entries.SCHEMA, FILES, noted, *files])
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


# --------------------------------------------------------------------------- one folder


class _Ledger:
    """A folder's `tracking.json`: the ids of its runs in a store, of the cell and of each seed."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.path = folder / "tracking.json"
        try:
            self.document = read_json(self.path)
        except RunError:  # missing or broken: the runs are found in the store, or created again
            self.document = {}
        self.is_new = "id" not in self.document
        self.id = self.document.setdefault("id", uuid.uuid4().hex)
        stores: dict[str, Any] = self.document.setdefault("stores", {})
        self.kept: dict[str, Any] = stores.get(store.key, {})
        if self.kept.get("born") != store.born or "runs" not in self.kept:  # of an older version
            self.kept = {"born": store.born, "runs": {}}
        stores[store.key] = self.kept
        self.runs: dict[str, str] = self.kept["runs"]
        if self.is_new:
            self.save()  # before any run is created: the id finds a run whose creation was cut

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.document)


class _Put:
    """Makes an MLflow run equal to an entry; writes only what differs."""

    def __init__(
        self, store: Store, ledger: _Ledger, name: str, entry: Entry, parent: str | None = None
    ) -> None:
        self.store = store
        self.client = store.client
        self.entry = entry
        began = None if entry.began is None else repr(entry.began)
        own = {"glas_bench.id": f"{ledger.id}/{name}", "glas_bench.began": began}
        self.tags = {**entry.tags, **own, "mlflow.parentRunId": parent}
        self.run = self._open(ledger, name)
        self.run_id = str(self.run.info.run_id)
        self._log()
        self._files()
        self._status()

    def _open(self, ledger: _Ledger, name: str) -> Run:
        """Return the entry's run; create it where there is none of this training."""
        run = self.store.run(ledger.runs[name]) if name in ledger.runs else None
        if run is None and not ledger.is_new:
            run = self.store.find(f"{ledger.id}/{name}")
        began = run and run.data.tags.get("glas_bench.began")
        if run and began and began != self.tags["glas_bench.began"]:  # it started over since
            self.client.delete_run(run.info.run_id)
            run = None
        run = run or self.client.create_run(
            self.store.experiment_id,
            start_time=self.entry.start,
            tags={key: value for key, value in self.tags.items() if value is not None},
            run_name=self.entry.name,
        )
        if ledger.runs.get(name) != run.info.run_id:
            ledger.runs[name] = run.info.run_id
            ledger.save()
        return run

    def _log(self) -> None:
        data = self.run.data
        params = {k: v for k, v in self.entry.params.items() if k not in data.params}
        tags = {k: v for k, v in self.tags.items() if v is not None and data.tags.get(k) != v}
        self.store.describe(self.run_id, params, tags)
        for key in [key for key, value in self.tags.items() if value is None and key in data.tags]:
            self.client.delete_tag(self.run_id, key)
        self.store.log_data(self.run, self.entry.data)
        rows = self._new_rows()
        size = MOST_METRICS // max((len(row) for row in rows), default=1)
        for start in range(0, len(rows), size):  # an epoch is logged in one call
            chunk = rows[start : start + size]
            self.store.log(self.run_id, [point for row in chunk for point in row])
        self.store.log(self.run_id, self._new_numbers())

    def _new_rows(self) -> list[list[Point]]:
        """Return the epochs that the store lacks.

        The store is asked: the answer to a call may have been lost, and a resumed training writes
        epochs again, with other times.
        """
        rows = [row for row in self.entry.rows if row]
        history = self.client.get_metric_history(self.run_id, rows[0][0].name) if rows else []
        have = max((point.step for point in history), default=0)
        return [row for row in rows if row[0].step > have]

    def _new_numbers(self) -> list[Point]:
        """Return the final numbers that differ from the store's latest.

        A curve over the number of weights (`iw_sweep`) is compared by its last point.
        """
        latest = {point.name: point for point in sorted(self.entry.numbers, key=lambda p: p.step)}
        stale = {
            name for name, point in latest.items() if self.run.data.metrics.get(name) != point.value
        }
        return [point for point in self.entry.numbers if point.name in stale]

    def _files(self) -> None:
        """Upload the files that have changed, then the tag with the digests of all of them."""
        there = json.loads(self.run.data.tags.get(FILES, "{}"))
        digests = {}
        for path, folder in self.entry.files:
            name = f"{folder}/{path.name}" if folder else path.name
            with tempfile.TemporaryDirectory() as scratch:  # a training may be writing it
                copy = Path(shutil.copy(path, scratch))
                digests[name] = _digest(copy)
                if there.get(name) != digests[name]:
                    self.client.log_artifact(self.run_id, str(copy), folder)
        if digests != there:
            self.store.describe(self.run_id, {}, {FILES: json.dumps(digests)})

    def log_model(self, record: RunRecord, seed: SeedRecord) -> None:
        """Log the model of a seed, once."""
        if MODEL in self.run.data.tags:
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, f"{record.config.variant}-{record.config_key}")
            left_out = shutil.ignore_patterns("*.png", "partial*", ".*")
            shutil.copytree(seed.folder.path, copy / seed.folder.path.name, ignore=left_out)
            shutil.copy(record.path / "config.yaml", copy)
            pixels = math.prod(record.about.get("image_shape", (28, 28)))
            self.store.log_model(self.run_id, copy, pixels)
        self.store.describe(self.run_id, {}, {MODEL: "logged"})

    def _status(self) -> None:
        entry, info = self.entry, self.run.info
        if info.run_name != entry.name:
            self.client.update_run(self.run_id, name=entry.name)
        if entry.end is None:
            if info.status != entry.status:
                self.client.update_run(self.run_id, status=entry.status)
        elif (info.status, info.end_time) != (entry.status, entry.end):
            self.client.set_terminated(self.run_id, status=entry.status, end_time=entry.end)


# --------------------------------------------------------------------------- back to run folders


@dataclass(frozen=True)
class Fetched:
    """Run folders of an experiment."""

    folders: list[Path]  # a cell may have several, with different seeds or with the same
    left_out: list[str]  # runs without a folder, each with the reason


def fetch(results: Path, experiment: str, *, debug: bool = False) -> Fetched:
    """Return the run folders of an experiment's runs, with copies of those that are elsewhere.

    A seed whose run folder is not in the results folder is downloaded from its run's artifacts to
    `<results>/fetched/<run id>/<variant>-<config_key>`: whole or not at all, only the files whose
    content has changed since, and no checkpoints. With `debug`, mlflow's messages go to stderr.

    Raises:
        RunError: the store cannot be read.
    """
    folders: dict[Path, None] = {}  # a set that keeps its order
    left_out: list[str] = []
    with reading(results, debug) as store:
        runs = store.runs(experiment)
        cells = {run.info.run_id: run for run in runs}
        for run in sorted(runs, key=lambda run: (str(run.info.run_name), run.info.start_time)):
            try:
                if (number := _seed_of(run)) is None:
                    continue
                tags = run.data.tags
                name = _file_name(f"{tags['variant']}-{tags['config_key']}")
                folder = results / "runs" / name
                if not _is_here(folder, number, run):
                    cell = cells[tags["mlflow.parentRunId"]]
                    folder = results / "fetched" / str(run.info.run_id) / name
                    _copy(store, folder, {"": cell, f"seed-{number}": run})
                folders[folder] = None
            except KeyError as error:
                left_out.append(f"{run.info.run_name} is broken: it lacks {error}")
            except (GlasBenchError, ValueError) as error:
                left_out.append(f"{run.info.run_name} {error}")
            except Exception as error:
                if not store.answers():
                    raise
                left_out.append(f"{run.info.run_name} cannot be fetched: {error_line(error)}")
    return Fetched(list(folders), left_out)


def _seed_of(run: Run) -> int | None:
    tags = run.data.tags
    if (schema := tags.get("glas_bench.schema")) is None:
        raise RunError("is not of glas-bench")
    if schema != entries.SCHEMA:
        raise RunError(f"is broken: schema {schema}, and {entries.SCHEMA} is read here")
    return None if tags["glas_bench.kind"] == "cell" else int(run.data.params["seed"])


def _is_here(folder: Path, number: int, run: Run) -> bool:
    """Return whether a run folder has the training that a run mirrors."""
    seed = SeedFolder(folder / f"seed-{number}", number)
    try:
        began = next((repr(row["time"]) for row in seed.metrics()), None)
    except RunError:
        return False
    return seed.path.is_dir() and began == run.data.tags.get("glas_bench.began")


def _copy(store: Store, target: Path, runs: Mapping[str, Run]) -> None:
    """Make a folder of the files of runs, each run's in a subfolder, where it is not there yet.

    Raises:
        RunError: a file is not there as its run's tag says.
    """
    files = [
        (run.info.run_id, artifact, Path(folder, artifact), digest)
        for folder, run in runs.items()
        for artifact, digest in _listed(run)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / "lock", "this copy"):
        if all(_digest(target / path) == digest for *_, path, digest in files):
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            for run_id, artifact, path, digest in files:
                copy = Path(scratch, "whole", path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if _digest(target / path) == digest:
                    shutil.copy2(target / path, copy)
                    continue
                shutil.move(store.client.download_artifacts(run_id, artifact, scratch), copy)
                if _digest(copy) != digest:
                    raise RunError(f"is being written: {artifact} has changed; report it again")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(Path(scratch, "whole"), target)


def _listed(run: Run) -> list[tuple[str, str]]:
    if FILES not in run.data.tags:
        raise RunError(
            "was mirrored without all of its files; give `glas-bench sync` where its folder is"
        )
    files = json.loads(run.data.tags[FILES])
    return [("/".join(map(_file_name, name.split("/"))), digest) for name, digest in files.items()]


def _file_name(name: str) -> str:
    """Return a name from the store if it can be that of a file, which stays in its folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"is broken: no file of a run folder is named {name!r}")
    return name
