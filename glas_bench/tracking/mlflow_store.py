"""The MLflow store: opened, written to and read; the only importer of mlflow.

It is `MLFLOW_TRACKING_URI`, by default `<results>/mlflow.db`. Nothing of mlflow is changed outside
these calls: no global tracking address, no environment variable, no output on stdout.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar
from urllib.parse import urlsplit

from glas_bench import __version__
from glas_bench.errors import RunError
from glas_bench.record import created
from glas_bench.text import redact
from glas_bench.tracking import address, entries
from glas_bench.tracking.address import error_line, locked, tracking_uri
from glas_bench.tracking.entries import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Run
    from mlflow.store.entities import PagedList

T = TypeVar("T")

PAGE = 1000
"""Runs in a page of a search."""

MOST_METRICS = 1000
"""Values that one call may log."""

_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set while mlflow is called: a dead server costs seconds instead of 247."""

_SQLITE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
"""The same for an sqlite file: a pooled connection would go on writing to a deleted one."""

_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "nll",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
}
"""Tags of an experiment: MLflow's pages open on its runs and not on traces of an application."""


class _Redacted(io.TextIOBase):
    """Passes text on with passwords masked."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        self.stream.flush()
        return len(text)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, and remove them again."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def quiet_mlflow(debug: bool = False) -> Iterator[None]:
    """Call mlflow with short timeouts and without output; with `debug`, its output to stderr."""
    out = _Redacted(sys.stderr) if debug else io.StringIO()
    with _variables(_VARIABLES), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield


class Store:
    """An open MLflow store, and the experiment of it that runs are written to."""

    def __init__(self, results: Path) -> None:
        self.results = results.resolve()
        self.uri = tracking_uri(results)
        self.database = address.sqlite_file(self.uri)
        kind = urlsplit(self.uri).scheme.partition("+")[0]
        self.is_local = kind in ("sqlite", *address.DATABASES)  # artifacts lie beside run folders
        self.experiment_id = self.key = ""
        self.born = 0
        with self.writing():
            self.client = self._connect()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of an sqlite file: several processes creating it at once would break it."""
        if self.database is None:
            yield
            return
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self.database.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.database.with_name(self.database.name + ".lock"), "the database"):
            yield

    def _connect(self) -> MlflowClient:
        address.check_port(self.uri)
        import sqlalchemy
        from mlflow import MlflowClient

        with _variables({} if self.database is None else _SQLITE):
            if self.database is not None and not self.database.exists():
                self._create(self.database)
            elif self.is_local:
                engine = sqlalchemy.create_engine(self.uri)
                address.check_program(
                    self.uri, sqlalchemy.inspect(engine).get_table_names(), "MLflow"
                )
                engine.dispose()
            return MlflowClient(tracking_uri=self.uri)

    def _create(self, database: Path) -> None:
        """Create the tables in a file that takes the database's place when it is complete.

        mlflow cannot use half-made tables, which a full disk or a kill leaves behind.
        """
        from mlflow import MlflowClient

        # a name never used before: mlflow caches connections by address
        fresh = database.with_name(f".{database.name}.{uuid.uuid4().hex}.new")
        try:
            created(fresh)
            MlflowClient(tracking_uri=address.sqlite_url(fresh.absolute()))
            os.replace(fresh, database)
        finally:
            for path in database.parent.glob(f"{fresh.name}*"):
                path.unlink(missing_ok=True)

    def use(self, name: str, question: str | None = None) -> None:
        """Write to this experiment from now on; create it where it does not exist.

        Its description is the question, unless it has one.

        One that this results folder's own database had before it was moved or copied keeps its
        artifacts where they were, so another takes its place.
        """
        from mlflow.exceptions import MlflowException

        artifacts = (self.results / "artifacts").as_uri() if self.is_local else None
        is_own = self.database is not None and not os.environ.get("MLFLOW_TRACKING_URI")
        with self.writing():
            there = self.client.get_experiment_by_name(name)
            if there is not None and there.lifecycle_stage == "deleted":
                self.client.restore_experiment(there.experiment_id)
            place = str(there.artifact_location) if there is not None else ""
            moved = is_own and fnmatch(place, "file:*/artifacts") and place != artifacts
            if there is not None and moved:
                id = there.experiment_id
                self.client.rename_experiment(id, f"{name} (moved, {id})")
                self.client.delete_experiment(id)
                there = None
            if there is None:
                with contextlib.suppress(MlflowException):  # another process has just created it
                    self.client.create_experiment(name, artifact_location=artifacts)
                there = self.client.get_experiment_by_name(name)
            if there is None:
                raise RunError(f"experiment {name!r} cannot be created in {redact(self.uri)}")
            about = _EXPERIMENT | ({"mlflow.note.content": question} if question else {})
            for key in about.keys() - there.tags.keys():
                self.client.set_experiment_tag(there.experiment_id, key, about[key])
        self.experiment_id = str(there.experiment_id)
        self.born = int(there.creation_time or 0)
        self.key = f"{redact(self.uri)} {name}"

    def answers(self) -> bool:
        """Return whether the store still answers."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception:  # mlflow has no common error for it
            return False
        return True

    def run(self, run_id: str) -> Run | None:
        """Return a run, or None where it does not exist or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def find(self, identity: str) -> Run | None:
        """Return the run with our identity; its id is lost if its creation was not answered."""
        query = f"tags.`glas_bench.id` = '{identity}'"
        runs = self.client.search_runs([self.experiment_id], filter_string=query, max_results=1)
        return runs[0] if runs else None

    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters, which cannot be changed later, and set tags; at most 100 of each."""
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
            synchronous=True,
        )

    def log_data(self, run: Run, data: Mapping[str, str]) -> None:
        """Name the splits that a run was trained, chosen and scored on, with the data's hash."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        there = {each.dataset.name for each in run.inputs.dataset_inputs} if run.inputs else set()
        inputs = [
            DatasetInput(
                Dataset(
                    f"{data['name']} {split}",
                    data["hash"][:36],  # all that MLflow takes
                    "local",
                    json.dumps({"origin": data["origin"], "sha256": data["hash"]}),
                ),
                [InputTag("mlflow.data.context", split)],
            )
            for split in ("train", "validation", "test")
            if f"{data['name']} {split}" not in there
        ]
        if inputs:
            self.client.log_inputs(run.info.run_id, inputs)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add values of metrics."""
        from mlflow.entities import Metric

        for start in range(0, len(points), MOST_METRICS):
            metrics = [Metric(*point) for point in points[start : start + MOST_METRICS]]
            self.client.log_batch(run_id, metrics=metrics, synchronous=True)

    def log_model(self, run_id: str, folder: Path, pixels: int) -> None:
        """Log a copy of a run folder with one seed as the model `model` of its run."""
        import numpy as np
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import ModelSignature
        from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

        images = Schema([TensorSpec(np.dtype(np.float32), (-1, pixels))])
        params = ParamSchema([ParamSpec("sample", "boolean", False), ParamSpec("seed", "long", 0)])
        model = self.client.create_logged_model(
            self.experiment_id, name="model", source_run_id=run_id
        )
        with tempfile.TemporaryDirectory() as scratch:
            pyfunc.save_model(
                f"{scratch}/model",
                loader_module="glas_bench.tracking.served",
                data_path=str(folder),
                signature=ModelSignature(images, images, params),
                pip_requirements=[f"glas-bench=={__version__}"],
            )
            self.client.log_model_artifacts(model.model_id, f"{scratch}/model")
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])

    def runs(self, experiment: str) -> list[Run]:
        """Return the active runs of an experiment; none where there is no such experiment."""
        there = self.client.get_experiment_by_name(experiment)
        if there is None:
            return []
        ids = [str(there.experiment_id)]
        gc.disable()  # it takes half the time of reading thousands of runs
        try:
            return _all_pages(
                lambda token: self.client.search_runs(ids, max_results=PAGE, page_token=token)
            )
        finally:
            gc.enable()


def _all_pages(page: Callable[[str | None], PagedList[T]]) -> list[T]:
    some = page(None)
    items = list(some)
    while some.token:
        some = page(some.token)
        items += some
    return items


@contextlib.contextmanager
def reading(results: Path, debug: bool) -> Iterator[Store]:
    """Yield the store; what goes wrong becomes a RunError that names it.

    Raises:
        RunError: the store cannot be read.
    """
    with quiet_mlflow(debug):
        try:
            yield Store(results)
        except Exception as error:
            where = redact(tracking_uri(results))
            raise RunError(f"cannot read the runs in {where}: {error_line(error)}") from error


def experiments(results: Path, *, debug: bool = False) -> tuple[list[str], list[str]]:
    """Return the experiments that have runs of ours, and those that only have other runs.

    Raises:
        RunError: the store cannot be read.
    """
    ours, foreign = [], []
    with reading(results, debug) as store:

        def has_run(id: str, query: str = "") -> bool:
            return bool(store.client.search_runs([id], filter_string=query, max_results=1))

        for experiment in _all_pages(
            lambda token: store.client.search_experiments(max_results=PAGE, page_token=token)
        ):
            if has_run(experiment.experiment_id, f"tags.`glas_bench.schema` = '{entries.SCHEMA}'"):
                ours.append(str(experiment.name))
            elif has_run(experiment.experiment_id):
                foreign.append(str(experiment.name))
    return sorted(ours), sorted(foreign)
