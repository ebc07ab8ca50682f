"""The database of studies: opened, locked, called again after an outage; its rows as `Trial`s.

Its lock is a file beside sqlite, `pg_advisory_lock` on PostgreSQL. Both are free once their holder
has ended, however it ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from glas_bench import signals
from glas_bench.errors import RunError, UsageError
from glas_bench.record import created
from glas_bench.sweep import worker_id
from glas_bench.sweep.trial import NUMBERS, Trial
from glas_bench.text import redact, seed_ranges
from glas_bench.tracking.address import check_program, error_line, sqlite_file

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

T = TypeVar("T")

# Optuna's system attributes, which a dashboard does not show.
PLAN = "glas_bench:plan"
ABOUT = "glas_bench:about"
OWNER = "glas_bench:owner"
LOST = "glas_bench:lost"
MADE = "glas_bench:made"
"""Of every study that this package has made; plans of older versions show the same."""
BEGUN = "glas_bench:begun"

PATIENCE = 600.0
"""Seconds that a worker waits for a database that does not answer."""

PATIENCE_AT_FIRST = 15.0
PATIENCE_WHEN_STOPPED = 20.0

GRACE_BEATS = 6
"""Missed heartbeats after which a trial is silent."""

HOPELESS = re.compile(
    "authentication failed|no password supplied|does not exist|no pg_hba.conf entry"
    "|translate host name|not known|not a database|unable to open|no such column"
)
"""Answers of a database that waiting does not change."""

VALUE = "validation nll"
"""What a dashboard calls a trial's value: nats per image, mean over the seeds."""

METRICS = "study:metric_names"

LOCK_SECONDS = 120
ADVISORY_KEY = 0x67_6C_61_73  # "glas"


class StorageDown(RunError):  # noqa: N818 - a state of the world
    """The database does not answer."""


class _LockLost(Exception):  # noqa: N818 - the connection that held the lock is gone
    pass


def beat_seconds() -> float:
    """Return the seconds between two heartbeats.

    Raises:
        UsageError: GLAS_BENCH_BEAT_SECONDS is set and is no number of seconds.
    """
    text = os.environ.get("GLAS_BENCH_BEAT_SECONDS", "10")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds < math.inf:
        raise UsageError(f"GLAS_BENCH_BEAT_SECONDS={text}: give a number of seconds, 0.1 or more")
    return seconds


class Database:
    """An open database, and this process as one of its workers.

    Args:
        url: from `storage.storage_url`.
        patience: seconds to wait for it to answer at first.

    Raises:
        RunError: it does not answer, or is no database of studies.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE_AT_FIRST) -> None:
        import sqlalchemy
        from sqlalchemy.pool import NullPool

        self.url = url
        self.file = sqlite_file(url)
        self.owner = worker_id.own_id()
        self.beat = beat_seconds()
        self.outages = 0
        self._making: set[str] = set()
        self._errors = _prepare_optuna()
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        unpooled = {"poolclass": NullPool}  # each connection opens the file that is there now
        self._arguments: dict[str, Any] = {"connect_args": {"timeout": 60}, **unpooled}
        if self.file is None:  # a dead server is noticed in seconds, its connections are dropped
            connect = {"connect_timeout": 5, "keepalives_idle": 10, "tcp_user_timeout": 20_000}
            self._arguments = {"pool_pre_ping": True, "connect_args": connect}
        try:
            engine: Any = sqlalchemy.create_engine(url, **self._arguments | unpooled)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--storage {redact(url)}: {error.name} is not installed; "
                "pip install -e '.[postgres]' in the checkout"
            ) from error
        except Exception as error:
            raise UsageError(f"--storage {redact(url)}: {error_line(error)}") from error
        self._lock_engine = engine
        self._errors += (engine.dialect.dbapi.Error,)  # some reach us unwrapped
        self.storage: RDBStorage = self.through(self._open, patience)
        self.study_id = self.storage.get_study_id_from_name  # KeyError where there is none

    def _open(self) -> RDBStorage:
        import sqlalchemy
        from optuna.storages import RDBStorage

        with self.locked():
            if self.file is not None:
                created(self.file)
            tables = sqlalchemy.inspect(self._lock_engine).get_table_names()
            check_program(self.url, tables, "Optuna")
            try:
                return RDBStorage(
                    self.url,
                    engine_kwargs=self._arguments,
                    heartbeat_interval=max(1, math.ceil(self.beat)),
                    grace_period=max(1, math.ceil(GRACE_BEATS * self.beat)),
                )
            except RuntimeError as error:  # its tables have another schema
                raise RunError(f"{redact(self.url)} is of another Optuna: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    # ---- the lock, and outages

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock."""
        if self.file is None:
            with self._lock_engine.connect() as connection:
                ask = connection.exec_driver_sql
                ask(f"SET lock_timeout = '{LOCK_SECONDS}s'")
                ask(f"SELECT pg_advisory_lock({ADVISORY_KEY})")
                yield
                if not ask(f"SELECT pg_advisory_unlock({ADVISORY_KEY})").scalar():
                    raise _LockLost
            return
        from filelock import FileLock, Timeout

        path = self.file.with_name(f"{self.file.name}.lock")
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(FileLock(path, LOCK_SECONDS, created(path)))
            except Timeout as error:
                raise _LockLost from error
            except PermissionError as error:
                raise RunError(f"cannot write {path}: {error.strerror}") from error
            yield

    def through(self, action: Callable[[], T], patience: float = PATIENCE) -> T:
        """Return what an action returns; while the database is away, try again, ever slower.

        Raises:
            StorageDown: it is away for longer than `patience` seconds.
        """
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return action()
            except self._errors as error:
                self.outages += 1
                most = min(patience, PATIENCE_WHEN_STOPPED) if signals.requested() else patience
                if patience == PATIENCE_AT_FIRST and HOPELESS.search(_first_line(error)):
                    most = 0.0
                if time.monotonic() - began > most:
                    raise StorageDown(
                        f"the database {redact(self.url)} does not answer: {_first_line(error)}"
                    ) from None
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2.0, pause * 1.6)

    # ---- studies

    def check_own(self, name: str) -> bool:
        """Return whether a study is there.

        Raises:
            UsageError: it is somebody else's: it does not have what every study of ours has.
        """
        try:
            attributes = self.storage.get_study_system_attrs(self.study_id(name))
        except KeyError:
            return False
        ours = attributes.keys() & {PLAN, MADE} or attributes.get(METRICS) == [VALUE]
        if not ours and name not in self._making:
            raise UsageError(
                f"{redact(self.url)} has a study {name!r} that glas-bench did not make. Nothing of "
                "it was changed: give this study another name, or another database by --storage."
            )
        return True

    def make_study(self, name: str) -> None:
        """Make a study, unless it is there.

        Raises:
            UsageError: it is somebody else's.
        """
        from optuna.study import StudyDirection

        if not self.check_own(name):
            self._making.add(name)  # the answer may be lost
            self.storage.create_new_study([StudyDirection.MINIMIZE], name)
        if name in self._making:
            self.storage.set_study_system_attr(self.study_id(name), MADE, True)
            self.storage.set_study_system_attr(self.study_id(name), METRICS, [VALUE])
            self._making.remove(name)

    def names(self) -> list[str]:
        """Return the names of all planned studies; searches are not among them."""
        studies = self.storage.get_all_studies()
        return sorted(each.study_name for each in studies if PLAN in each.system_attrs)

    def plan(self, name: str) -> dict[str, Any] | None:
        """Return the plan's document stored with a study, or None."""
        with contextlib.suppress(KeyError):
            return self.storage.get_study_system_attrs(self.study_id(name)).get(PLAN)
        return None

    def store_plan(self, document: Mapping[str, Any]) -> None:
        """Store a plan with its study."""
        study_id = self.study_id(document["name"])
        self.storage.set_study_system_attr(study_id, PLAN, dict(document))
        for key in ("question", "version", "preset", "dataset"):
            self.storage.set_study_user_attr(study_id, key, document[key])

    # ---- trials read

    def trials(self, study: str) -> list[Trial]:
        """Return all trials of a study."""
        rows = self.storage.get_all_trials(self.study_id(study), deepcopy=False)
        return [_trial(study, row) for row in rows]

    def current(self, trial: Trial) -> Trial:
        """Return a trial as the database has it now."""
        return _trial(trial.study, self.storage.get_trial(trial.id))

    def is_own(self, trial: Trial) -> bool:
        """Return whether this process runs a trial."""
        return trial.status == "running" and (trial.owner or {}).get("token") == self.owner["token"]

    def distributions(self, trial: Trial) -> dict[str, BaseDistribution]:
        """Return what the values of a search's trial are drawn from."""
        return dict(self.storage.get_trial(trial.id).distributions)

    def silent(self, study: str) -> set[int]:
        """Return ids of running trials whose last heartbeat is old by the database's own clock."""
        return set(self.storage._get_stale_trial_ids(self.study_id(study)))

    # ---- trials written

    def add(
        self, trial: Trial, distributions: Mapping[str, BaseDistribution] | None = None
    ) -> None:
        """Store a new trial, which waits, or is over where its cell is not applicable.

        Of a search's trial `distributions` are what its values are drawn from.
        """
        from optuna.trial import TrialState, create_trial

        if distributions is None:
            distributions = self._axes(trial)
        shown, about = _attributes(trial)
        over = trial.status == "not_applicable"
        if over:
            shown |= {"status": trial.status, "reason": trial.reason}
        self.storage.create_new_trial(
            self.study_id(trial.study),
            create_trial(
                state=TrialState.PRUNED if over else TrialState.WAITING,
                params={name: trial.params[name] for name in distributions},
                distributions=dict(distributions),
                user_attrs=shown,
                system_attrs={ABOUT: about},
            ),
        )

    def _axes(self, trial: Trial) -> dict[str, BaseDistribution]:
        """Return distributions of a trial's parameters that have its values and all stored ones.

        Optuna takes no new choice into a study, and ranks only parameters that have the same
        distribution in all trials. A study's axes are open: where a variant or a value is new, the
        rows of the other trials are rewritten. The caller holds the lock.
        """
        from optuna.distributions import distribution_to_json, json_to_distribution
        from optuna.storages._rdb.models import TrialModel, TrialParamModel
        from sqlalchemy.orm import Session

        axes, study_id = {}, self.study_id(trial.study)
        with Session(self.storage.engine) as session, session.begin():
            own = session.query(TrialParamModel).join(TrialModel).filter_by(study_id=study_id)
            for name, value in trial.params.items():
                query = own.filter(TrialParamModel.param_name == name)
                rows: list[Any] = query.order_by(TrialParamModel.param_id).all()
                stored = [
                    json_to_distribution(row.distribution_json).to_external_repr(row.param_value)
                    for row in rows
                ]
                axes[name] = new = _distribution([*stored, value])
                written = distribution_to_json(new)
                for row, old in zip(rows, stored, strict=True):
                    row.param_value, row.distribution_json = new.to_internal_repr(old), written
        return axes

    def add_missing(self, trial: Trial, others: Iterable[Trial]) -> None:
        """Store a new trial with those of its seeds that no other trial has, if any."""
        covered = {seed for other in others for seed in other.seeds}
        if missing := [seed for seed in trial.seeds if seed not in covered]:
            self.add(replace(trial, seeds=missing))

    def adopt(self, trial: Trial) -> Trial:
        """Describe a running trial that optuna has just made; return it, run by this process."""
        shown, about = _attributes(trial)
        self._write(trial, {ABOUT: about}, **shown)
        self.storage.record_heartbeat(trial.id)
        self._write(trial, {BEGUN: True})
        return self._signed(trial)

    def take(self, trial: Trial) -> Trial | None:
        """Return a waiting trial, now run by this process, or None where another took it.

        Its heart beats before it runs.
        """
        self.storage.record_heartbeat(trial.id)
        self._write(trial, {BEGUN: True})
        return self._signed(trial) if self._set_state(trial, "RUNNING") else None

    def _signed(self, trial: Trial) -> Trial:
        self._write(trial, {OWNER: self.owner}, worker=worker_id.described(self.owner))
        return self.current(trial)

    def heartbeat(self, trial: Trial, curve: Mapping[int, float]) -> None:
        """Record that a trial's worker is alive, and its validation so far; from any thread."""
        try:
            self.storage.record_heartbeat(trial.id)
            self._report(trial, curve)
        finally:
            self.storage.remove_session()

    def _report(self, trial: Trial, curve: Mapping[int, float]) -> None:
        if curve:
            there = self.storage.get_trial(trial.id).intermediate_values
            for epoch, value in sorted(curve.items()):
                if there.get(epoch) != value:
                    self.storage.set_trial_intermediate_value(trial.id, epoch, value)

    def should_prune(self, trial: Trial, pruner: str) -> bool:
        """Return whether a running trial is worse so far than others of its study were."""
        import optuna
        from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner

        rule: BasePruner = MedianPruner() if pruner == "median" else SuccessiveHalvingPruner()
        study = optuna.load_study(study_name=trial.study, storage=self.storage, pruner=rule)
        return rule.prune(study, self.storage.get_trial(trial.id))

    def set_waiting(self, trial: Trial, lost: int | None = None) -> None:
        """Set a running trial waiting; `lost` is how many workers have died over it by now."""
        self._write(trial, {OWNER: None} if lost is None else {OWNER: None, LOST: lost})
        self._set_state(trial, "WAITING")

    def withdraw(self, trial: Trial) -> None:
        """End a waiting trial that the study no longer wants."""
        self._write(trial, {}, status="withdrawn")
        self._set_state(trial, "PRUNED")

    def end(self, trial: Trial) -> None:
        """Write how a running trial ended, its state last."""
        optional = {"worked": trial.worked, "reason": trial.reason, "outcomes": trial.outcomes}
        shown: dict[str, Any] = {key: value for key, value in optional.items() if value}
        shown |= {name: round(value, 4) for name, value in trial.numbers.items()}
        self._report(trial, trial.curve)
        self._write(trial, {}, status=trial.status, seconds=round(trial.seconds, 3), **shown)
        if trial.status in ("failed", "pruned"):
            self._set_state(trial, "FAIL" if trial.status == "failed" else "PRUNED")
        else:  # seeds that all diverged have no number: the worst there is
            self._set_state(trial, "COMPLETE", math.inf if trial.value is None else trial.value)

    def _write(self, trial: Trial, hidden: Mapping[str, Any], **shown: Any) -> None:
        for key, value in hidden.items():
            self.storage.set_trial_system_attr(trial.id, key, value)
        for key, value in shown.items():
            self.storage.set_trial_user_attr(trial.id, key, value)

    def _set_state(self, trial: Trial, name: str, value: float | None = None) -> bool:
        from optuna.trial import TrialState

        values = None if value is None else [value]
        return self.storage.set_trial_state_values(trial.id, TrialState[name], values)


def _trial(study: str, row: FrozenTrial) -> Trial:
    """Return a row of optuna's as a trial; one killed while its values were drawn has no cell."""
    status = "failed" if row.state.name == "FAIL" else row.state.name.lower()
    shown, hidden = row.user_attrs, row.system_attrs
    about = {"key": None, "protocol": None, "seeds": [], **hidden.get(ABOUT, {})}
    about["best_of"] = about.pop("of", None)
    if about.get("is_search"):
        about["values"] = row.params
    about["params"] = row.params
    known = ("reason", "outcomes", "seconds", "worked")
    value = row.values[0] if row.values else None
    return Trial(
        study=study,
        id=row._trial_id,
        number=row.number,
        status=shown.get("status", status) if status == "pruned" else status,
        begun=bool(hidden.get(BEGUN)),
        lost=hidden.get(LOST, 0),
        owner=hidden.get(OWNER),
        value=value if value is not None and math.isfinite(value) else None,
        numbers={name: shown[name] for name in NUMBERS if name in shown},
        **{key: shown.get(key, "") for key in ("cell", "variant", "settings")},
        **{key: shown[key] for key in known if key in shown},
        **about,
    )


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Return a distribution that has these values: a range of numbers, or choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = list(dict.fromkeys(values))
    if any(isinstance(each, bool | str) for each in known):
        return CategoricalDistribution(known)
    low, high = min(known), max(known)
    if all(isinstance(each, int) for each in known):
        return IntDistribution(low, high)
    return FloatDistribution(low, high)


def _attributes(trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a dashboard shows of a trial, and the rest of what it is about."""
    shown = {key: getattr(trial, key) for key in ("cell", "variant", "settings")}
    optional = {
        "retry_of": trial.retry_of,
        "is_search": trial.is_search or None,
        "values": None if trial.is_search else trial.values or None,  # those have `params`
        "of": trial.best_of,
    }
    return shown | {"seeds": seed_ranges(trial.seeds)}, {
        "seeds": trial.seeds,
        "key": trial.key,
        "protocol": trial.protocol,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _prepare_optuna() -> tuple[type[Exception], ...]:
    """Quieten optuna; return what it and SQLAlchemy raise when the database is away.

    A process that lost the connection that held the lock may meet another's writes before it
    notices: a trial that is over by now, a row that is there already. That is tried again too.
    """
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        optuna.exceptions.UpdateFinishedTrialError,
        _LockLost,
    )


def _first_line(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return redact(" ".join(str(cause).split()) or type(cause).__name__)[:300]
