"""The MLflow store: opened with care, written to, and read back; the only importer of mlflow.

The run folder is the result and MLflow a disposable mirror of it: `sync` writes, `read_runs` gives
`report` its rows. The store is `MLFLOW_TRACKING_URI`, else `<results>/mlflow.db`; the experiment
that of a study, else `MLFLOW_EXPERIMENT_NAME`, else `glas-bench`. Nothing of mlflow is changed
outside these calls: no global tracking address, no environment variable, no word on stdout.

Whatever needs mlflow is in this one file, however long, so that nothing else imports it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

from glas_bench.errors import RunError, UsageError, unknown
from glas_bench.text import redact
from glas_bench.tracking import address, entries
from glas_bench.tracking.address import error_line, experiment_name, locked, tracking_uri
from glas_bench.tracking.entries import Point

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as Run

PAGE = 1000
"""Runs a page of a search."""

MOST_METRICS = 1000
MOST_PARAMS = 100  # and so many tags
"""What a call may log."""


_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set while mlflow is called: a dead server costs seconds instead of 247."""

_SQLITE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
"""The same for an sqlite file: a pooled connection would go on writing to a deleted one."""


# --------------------------------------------------------------------------- calling mlflow


class _RedactedStream(io.TextIOBase):
    """Passes text on with passwords masked, or drops it."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            self.stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, and remove them again."""
    ours = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def quiet_mlflow(debug: bool = False) -> Iterator[None]:
    """Call mlflow with short timeouts and without output; with `debug`, its output to stderr."""
    stream = _RedactedStream(sys.stderr if debug else None)
    with (
        _variables(_VARIABLES),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        if not debug:
            warnings.simplefilter("ignore")
        yield


# --------------------------------------------------------------------------- the store


class Store:
    """An open MLflow store, and the experiment of it that runs are written to."""

    def __init__(self, results: Path) -> None:
        self.results = results.resolve()
        self.uri = tracking_uri(results)
        self.database = address.sqlite_file(self.uri)
        self.experiment_id = self.key = ""
        self.born = 0
        with self.writing():
            self.client = self._connect()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock beside an sqlite file: several creators at once would destroy it."""
        if self.database is None:
            yield
            return
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self.database.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.database.with_name(self.database.name + ".lock"), "the database"):
            yield

    def _connect(self) -> MlflowClient:
        address.check_port(self.uri)
        from mlflow import MlflowClient

        with _variables({} if self.database is None else _SQLITE):
            if self.database is not None and not self.database.exists():
                self._create(self.database)
            return MlflowClient(tracking_uri=self.uri)

    def _create(self, database: Path) -> None:
        """Make the tables in a file that takes the database's place when they are all there.

        mlflow cannot go on from tables half made, which a full disk or a kill leaves behind.
        """
        from mlflow import MlflowClient

        # a name never used before: mlflow remembers connections by address
        fresh = database.with_name(f".{database.name}.{uuid.uuid4().hex}.new")
        try:
            MlflowClient(tracking_uri=self.uri.replace(str(database), str(fresh), 1))
            os.replace(fresh, database)
        finally:
            for path in database.parent.glob(f"{fresh.name}*"):
                path.unlink(missing_ok=True)

    def use(self, name: str) -> None:
        """Write to this experiment from now on; create it where it does not exist.

        One that this results folder's own database had before it was moved or copied keeps its
        artifacts where they were, so another takes its place.
        """
        with self.writing():
            there = self.client.get_experiment_by_name(name)
            if there is not None and there.lifecycle_stage == "deleted":
                self.client.restore_experiment(there.experiment_id)
            if there is not None and self._is_elsewhere(str(there.artifact_location)):
                self.client.rename_experiment(
                    there.experiment_id, f"{name} (moved, {there.experiment_id})"
                )
                self.client.delete_experiment(there.experiment_id)
                there = None
            there = there or self._create_experiment(name)
        self.experiment_id = str(there.experiment_id)
        self.born = int(there.creation_time or 0)
        self.key = f"{redact(self.uri)} {name}"

    def _is_elsewhere(self, artifacts: str) -> bool:
        if self.database is None or os.environ.get("MLFLOW_TRACKING_URI"):
            return False
        return fnmatch(artifacts, "file:*/artifacts") and artifacts != self._artifacts()

    def _create_experiment(self, name: str) -> Experiment:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # another process has just created it
            self.client.create_experiment(name, artifact_location=self._artifacts())
        if (created := self.client.get_experiment_by_name(name)) is None:
            raise RunError(f"experiment {name!r} cannot be created in {redact(self.uri)}")
        return created

    def _artifacts(self) -> str | None:
        """Return where files go: beside a database; a server knows its own place."""
        kind = urlsplit(self.uri).scheme.partition("+")[0]
        local = kind in ("sqlite", *address.DATABASES)
        return (self.results / "artifacts").as_uri() if local else None

    def experiments(self, names: Sequence[str] | None) -> dict[str, str]:
        """Return the experiments of these names by id; without names ours, if it is there.

        Raises:
            UsageError: there is none of such a name.
        """
        found = {name: self.client.get_experiment_by_name(name) for name in names or ()}
        if names is None:
            ours = self.client.get_experiment_by_name(experiment_name())
            found = {experiment_name(): ours} if ours else {}
        for name, experiment in found.items():
            if experiment is None:
                raise unknown(
                    "experiment", name, [each.name for each in self.client.search_experiments()]
                )
        return {str(e.experiment_id): name for name, e in found.items() if e is not None}

    def names(self) -> list[str]:
        """Return the names of all active experiments, page by page."""
        found: list[str] = []
        token = None
        while True:
            page = self.client.search_experiments(max_results=PAGE, page_token=token)
            found += [str(each.name) for each in page]
            token = page.token
            if not token:
                return sorted(found)

    def holds(self, name: str, query: str = "") -> bool:
        """Tell whether an experiment has a run, or one that a filter lets through."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return False
        ids = [str(experiment.experiment_id)]
        return bool(self.client.search_runs(ids, filter_string=query, max_results=1))

    def answers(self) -> bool:
        """Tell whether the store is still there."""
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:  # whatever it is, there is no talking to it
            return False
        return True

    def run(self, run_id: str) -> Run | None:
        """Return a run, or None where the store has none of this id or it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def find(self, identity: str) -> Run | None:
        """Return the run that carries our identity: one whose creation was never answered."""
        query = f"tags.`glas_bench.id` = '{identity}'"
        found = self.client.search_runs([self.experiment_id], filter_string=query, max_results=1)
        return found[0] if found else None

    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters, which are for ever, and set tags."""
        from mlflow.entities import Param, RunTag

        all_params = [Param(name, value) for name, value in params.items()]
        all_tags = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, max(len(all_params), len(all_tags)), MOST_PARAMS):
            chunk = slice(start, start + MOST_PARAMS)
            self.client.log_batch(
                run_id, params=all_params[chunk], tags=all_tags[chunk], synchronous=True
            )

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add values of metrics."""
        from mlflow.entities import Metric

        for start in range(0, len(points), MOST_METRICS):
            metrics = [Metric(*point) for point in points[start : start + MOST_METRICS]]
            self.client.log_batch(run_id, metrics=metrics, synchronous=True)

    def runs(self, experiment: str) -> list[Run]:
        """Return the active runs of an experiment; none where there is no such experiment."""
        there = self.client.get_experiment_by_name(experiment)
        if there is None:
            return []
        with _without_collector():
            return list(self.search([str(there.experiment_id)]))

    def download(self, run_id: str, artifact: str, folder: str) -> str:
        """Download an artifact below a folder; return its path."""
        return str(self.client.download_artifacts(run_id, artifact, folder))

    def search(self, experiments: list[str]) -> Iterator[Run]:
        """Return all runs of these experiments, page by page."""
        token = None
        while True:
            page = self.client.search_runs(experiments, max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


@contextlib.contextmanager
def reading(results: Path, debug: bool) -> Iterator[Store]:
    """Yield the store; what goes wrong becomes a RunError that names it.

    Raises:
        RunError: the store cannot be read.
    """
    with quiet_mlflow(debug):
        try:
            yield Store(results)
        except UsageError:
            raise
        except Exception as error:
            where = redact(tracking_uri(results))
            raise RunError(f"cannot read the runs in {where}: {error_line(error)}") from error


# --------------------------------------------------------------------------- store to frame


def experiments(results: Path, *, debug: bool = False) -> tuple[list[str], list[str]]:
    """Return the experiments that hold runs of ours, and those that hold others' alone.

    Raises:
        RunError: the store cannot be read.
    """
    ours, foreign = [], []
    with reading(results, debug) as store:
        for name in store.names():
            if store.holds(name, f"tags.`glas_bench.schema` = '{entries.SCHEMA}'"):
                ours.append(name)
            elif store.holds(name):
                foreign.append(name)
    return ours, foreign


def read_runs(
    results: Path,
    experiments: Sequence[str] | None = None,
    *,
    missing_ok: bool = False,
    debug: bool = False,
) -> pd.DataFrame:
    """Return one row a seed, from one paged search.

    Columns: `experiment`, `run_id`, `variant`, `config_key`, `seed`, `status` (ours), `start` and
    `end` (Unix milliseconds), then `params.*` and `tags.*` (text) and `metrics.*` (numbers; of
    the final ones only those of the scoring that stands for it). `frame.attrs["left_out"]` names
    runs that are not ours or are broken, `frame.attrs["known"]` lists the ids of all runs found.

    Args:
        results: the results folder, for the default store.
        experiments: their names; `experiment_name()` unless given.
        missing_ok: pass over experiments that the store does not have.
        debug: let mlflow's own messages through to stderr.

    Raises:
        RunError: the store cannot be read.
    """
    import pandas as pd

    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    left_out: list[str] = []
    known: list[str] = []
    with reading(results, debug) as store, _without_collector():
        if experiments is not None and missing_ok:
            there = set(store.names())
            experiments = [name for name in experiments if name in there]
        names = store.experiments(experiments)
        for run in store.search(list(names)) if names else ():
            known.append(str(run.info.run_id))
            _take(rows, left_out, run, names[str(run.info.experiment_id)])
    frame = pd.DataFrame([rows[key] for key in sorted(rows)], columns=None if rows else _COLUMNS)
    frame.attrs.update(left_out=sorted(left_out), known=known)
    return frame


def _take(
    rows: dict[tuple[str, str, int], dict[str, Any]], left_out: list[str], run: Run, name: str
) -> None:
    """Add a run's row, the one of two that stands for a seed, or say why it is left out."""
    who = f"{name}: {run.info.run_name}"
    if "glas_bench.schema" not in run.data.tags:
        left_out.append(f"{who} is not of glas-bench")
        return
    try:
        row = _row(run, name)
    except KeyError as error:
        left_out.append(f"{who} is broken: it lacks {error}")
    except ValueError as error:
        left_out.append(f"{who} is broken: {error}")
    else:
        identity = (name, row["config_key"], row["seed"]) if row else None
        if row and identity and _standing(rows.get(identity, row)) <= _standing(row):
            rows[identity] = row


def _standing(row: Mapping[str, Any]) -> tuple[bool, int]:
    """Return what makes one of two runs of a seed stand for it: complete, then begun later."""
    return row["status"] == "complete", int(row["start"])


_COLUMNS = ["experiment", "run_id", "variant", "config_key", "seed", "status", "start", "end"]


def _row(run: Run, experiment: str) -> dict[str, Any] | None:
    """Return a seed's row, or None for a cell's run; KeyError or ValueError for another's run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    if tags["glas_bench.schema"] != entries.SCHEMA:
        raise ValueError(f"schema {tags['glas_bench.schema']}, and {entries.SCHEMA} is read here")
    if tags["glas_bench.kind"] == "cell":
        return None
    final = set(json.loads(tags.get("scores", '["seconds"]')))
    if tags["status"] not in entries.RUN_STATUS:
        raise ValueError(f"status {tags['status']!r}")
    return {
        "experiment": experiment,
        "run_id": run.info.run_id,
        "variant": tags["variant"],
        "config_key": tags["config_key"],
        "seed": int(params["seed"]),
        "status": tags["status"],
        "start": run.info.start_time,
        "end": run.info.end_time,
        **{f"params.{name}": params[name] for name in sorted(params)},
        **{f"tags.{name}": tags[name] for name in sorted(tags)},
        **{
            f"metrics.{name}": metrics[name]
            for name in sorted(metrics)
            if name in final or name in ("learning_rate", "images_per_second") or "/" in name
        },
    }


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the garbage collector: it takes half the time of reading thousands of runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def per_image(
    rows: Sequence[Mapping[str, Any]],
    results: Path,
    metrics: Sequence[str],
    *,
    debug: bool = False,
) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """Return, by metric and (config_key, seed), the per-image values that rows of `read_runs` have.

    They are nats [images]; `ais` and `image`, which images those are, come from the newest AIS. A
    run whose values cannot be had, or were not scored, is left out.
    """
    import numpy as np

    found: dict[str, dict[tuple[str, int], np.ndarray]] = {metric: {} for metric in metrics}
    with _Files(results, debug) as files:
        for row in rows:
            where = str(row["config_key"]), int(row["seed"])
            try:
                with np.load(files.path(row, "per_image.npz"), allow_pickle=False) as stored:
                    there = set(stored.files)
                    for metric in metrics:
                        by_ais = metric in ("ais", "image")
                        protocol = row.get(f"tags.{'ais_' if by_ais else ''}protocol_key")
                        if (name := f"{protocol}/{metric}") in there:
                            found[metric][where] = stored[name]
            except Exception:  # unreachable or broken: the report goes without this difference
                continue
    return found


def scores(
    rows: Sequence[Mapping[str, Any]], results: Path, *, debug: bool = False
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return, by (config_key, seed), the whole JSON of the scoring that stands for a run."""
    found = {}
    with _Files(results, debug) as files:
        for row in rows:
            try:
                path = files.path(row, f"eval/{row['tags.protocol_key']}.json")
                document = json.loads(path.read_text(encoding="utf-8"))
            except Exception:  # unreachable or broken: a figure goes without this seed
                continue
            if isinstance(document, dict):
                found[str(row["config_key"]), int(row["seed"])] = document
    return found


def pictures(
    rows: Sequence[Mapping[str, Any]], results: Path, name: str, *, debug: bool = False
) -> dict[tuple[str, int], bytes]:
    """Return, by (config_key, seed), a picture that was drawn of a run, where there is one."""
    found = {}
    with _Files(results, debug) as files:
        for row in rows:
            with contextlib.suppress(Exception):  # unreachable: a figure goes without
                found[str(row["config_key"]), int(row["seed"])] = files.path(row, name).read_bytes()
    return found


def curves(
    rows: Sequence[Mapping[str, Any]], results: Path, names: Sequence[str], *, debug: bool = False
) -> dict[tuple[str, int], dict[str, list[tuple[int, float]]]]:
    """Return, by (config_key, seed), the points (epoch, value) of the curves that a run has."""
    found = {}
    with reading(results, debug) as store:
        for row in rows:
            there = [name for name in names if _is_there(row.get(f"metrics.{name}"))]
            found[str(row["config_key"]), int(row["seed"])] = {
                name: sorted(
                    {
                        point.step: float(point.value)
                        for point in store.client.get_metric_history(row["run_id"], name)
                    }.items()
                )
                for name in there
            }
    return found


def _is_there(value: Any) -> bool:
    return value is not None and value == value  # pandas fills up with nan


class _Files:
    """Files of runs: from the run folder where it is here, else from the run's artifacts."""

    def __init__(self, results: Path, debug: bool) -> None:
        self.results = results
        self.debug = debug
        self.store: Store | None = None

    def __enter__(self) -> _Files:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(quiet_mlflow(self.debug))
        self.scratch = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def path(self, row: Mapping[str, Any], name: str) -> Path:
        """Return where a run's file lies now."""
        cell = f"{row['variant']}-{row['config_key']}"
        path = self.results / "runs" / cell / f"seed-{row['seed']}" / name
        if path.is_file():
            return path
        self.store = self.store or Store(self.results)
        target = self.scratch / str(row["run_id"])
        target.mkdir(exist_ok=True)
        return Path(self.store.client.download_artifacts(row["run_id"], name, str(target)))
