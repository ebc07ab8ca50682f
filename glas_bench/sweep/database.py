"""The database itself: opened, locked, and called again after an outage.

One lock is held while the schema is made, a study planned, a trial claimed or told: a file beside
sqlite, `pg_advisory_lock` on PostgreSQL, free when its holder has ended, however it ended.
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
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from glas_bench import signals
from glas_bench.errors import RunError, UsageError
from glas_bench.sweep import owner
from glas_bench.sweep.trials import Row, row_of
from glas_bench.tracking.address import explain, redact, sqlite_file

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import Connection

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that a worker waits for a database that does not answer."""

PATIENCE_AT_FIRST = 15.0
PATIENCE_WHEN_STOPPED = 20.0

GRACE_BEATS = 6
"""Beats missed after which a trial of another machine counts as abandoned."""

HOPELESS = re.compile(
    "authentication failed|no password supplied|does not exist|no pg_hba.conf entry"
    "|translate host name|not known|not a database|unable to open"
)
"""What a database says that no waiting mends."""

VALUE = "validation nll"
"""What a dashboard calls a trial's value: nats per image, mean over the seeds."""

LOCK_SECONDS = 120
ADVISORY_KEY = 0x67_6C_61_73  # "glas"


class StorageDown(RunError):  # noqa: N818 - a state of the world
    """The database does not answer."""


class _LockLost(Exception):  # noqa: N818 - the connection that held the lock has gone
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
    """An open database of studies.

    Args:
        url: from `addresses.storage_url`.
        read_only: for `status`: nothing is made where nothing is.
        patience: seconds to wait for it; a worker's parent has just found it there.

    Raises:
        RunError: it does not answer, or is no database of ours.
    """

    def __init__(
        self, url: str, *, read_only: bool = False, patience: float = PATIENCE_AT_FIRST
    ) -> None:
        self.url = url
        self.file = sqlite_file(url)
        self.owner = owner.me()
        self.beat = beat_seconds()
        self._ids: dict[str, int] = {}
        self._outages = _prepare_optuna()
        if self.file is not None and not read_only:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock_engine = self._engine()
        self._outages += (self._lock_engine.dialect.dbapi.Error,)  # some reach us unwrapped
        self.storage: RDBStorage = self.through(self._open, patience)

    def _arguments(self) -> dict[str, Any]:
        """Return arguments of SQLAlchemy's create_engine: a dead server is noticed in seconds."""
        if self.file is not None:
            return {"connect_args": {"timeout": 60}}
        connect = {"connect_timeout": 5, "keepalives_idle": 10, "tcp_user_timeout": 20_000}
        return {"pool_pre_ping": True, "connect_args": connect}

    def _engine(self) -> Any:
        import sqlalchemy
        from sqlalchemy.pool import NullPool

        try:
            return sqlalchemy.create_engine(self.url, poolclass=NullPool, **self._arguments())
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--storage {redact(self.url)}: {error.name} is not installed; "
                "pip install -e '.[postgres]' in the checkout"
            ) from error
        except Exception as error:
            raise UsageError(f"--storage {redact(self.url)}: {explain(error)}") from error

    def _open(self) -> RDBStorage:
        from optuna.storages import RDBStorage

        with self.locked():
            return RDBStorage(
                self.url,
                engine_kwargs=self._arguments(),
                heartbeat_interval=max(1, math.ceil(self.beat)),
                grace_period=max(1, math.ceil(GRACE_BEATS * self.beat)),
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the one lock; it is free when its holder has ended, however it ended."""
        if self.file is None:
            with self._lock_engine.connect() as connection:
                yield from self._hold_advisory(connection)
            return
        from filelock import FileLock, Timeout

        try:
            with FileLock(f"{self.file}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise _LockLost from error
        except PermissionError as error:
            raise RunError(f"cannot write {self.file}.lock: {error.strerror}") from error

    def _hold_advisory(self, connection: Connection) -> Iterator[None]:
        from sqlalchemy import text

        connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_KEY})
        yield
        unlock = text("SELECT pg_advisory_unlock(:key)")
        if not connection.execute(unlock, {"key": ADVISORY_KEY}).scalar():
            raise _LockLost

    def through(self, action: Callable[[], T], patience: float = PATIENCE) -> T:
        """Return what an action returns; while the database is away, try again, ever slower.

        Raises:
            StorageDown: for too long.
        """
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return action()
            except self._outages as error:
                self._ids.clear()
                self.forget()
                most = min(patience, PATIENCE_WHEN_STOPPED) if signals.requested() else patience
                if patience == PATIENCE_AT_FIRST and HOPELESS.search(_first_line(error)):
                    most = 0.0
                if time.monotonic() - began > most:
                    raise StorageDown(
                        f"the database {redact(self.url)} does not answer: {_first_line(error)}"
                    ) from None
            if hasattr(self, "storage"):
                self.storage.engine.dispose()
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2.0, pause * 1.6)

    def forget(self) -> None:
        """Forget what was seen before an outage."""

    def study_id(self, name: str) -> int:
        """Return optuna's id of a study.

        Raises:
            KeyError: there is none of that name.
        """
        if name not in self._ids:
            self._ids[name] = self.storage.get_study_id_from_name(name)
        return self._ids[name]

    def make_study(self, name: str) -> int:
        """Return optuna's id of a study, which is made where it is not there."""
        from optuna.study import StudyDirection

        try:
            return self.study_id(name)
        except KeyError:
            study_id = self.storage.create_new_study([StudyDirection.MINIMIZE], name)
            self.storage.set_study_system_attr(study_id, "study:metric_names", [VALUE])
            self._ids[name] = study_id
            return self._ids[name]

    def rows(self, name: str) -> list[tuple[FrozenTrial, Row]]:
        """Return all trials of a study, as they are and as plain values."""
        trials = self.storage.get_all_trials(self.study_id(name), deepcopy=False)
        return [(trial, row_of(name, trial)) for trial in trials]

    def close(self) -> None:
        """Let go of all connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()


def _prepare_optuna() -> tuple[type[Exception], ...]:
    """Quieten optuna; return what it and SQLAlchemy raise when the database is away.

    Who loses the connection that held the lock may meet another's writes before it notices: a
    trial that is over by now, a row that is there already. Then too it is to look again.
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
