"""The database of studies: plan once, claim, beat, tell. The only importer of optuna.

A cell is a trial; all its seeds train together. A search has an optuna study of its own,
`<study>/<cell>`, and its best values become a trial of the study itself. One lock is held while the
schema is made, a study planned, a trial claimed or told; every call goes on after an outage.

A running trial is taken over when its process is known to have ended (same machine), or when its
heartbeat is old by the database's own clock at two looks between which the database has answered
throughout: after a restart every heartbeat is old, and the living beat again before the second.

All of optuna's ways are in this one file, however long, so that nothing else knows of them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from glas_bench import signals
from glas_bench.errors import RunError, UsageError
from glas_bench.sweep import owner
from glas_bench.sweep.plan import Document, Item, Plan, differences, digest, words
from glas_bench.tracking.addresses import explain, redact, sqlite_file

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial
    from sqlalchemy import Connection

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that a worker waits for a database that does not answer."""

PATIENCE_AT_FIRST = 15.0
PATIENCE_WHEN_STOPPED = 20.0

GRACE_BEATS = 6
"""Beats missed after which a trial of another machine counts as abandoned."""

WATCHED_BEATS = 2.5
"""Beats for which it is watched before it is taken."""

MOST_LOST = 5
"""Workers that may die over one cell before it counts as failed."""

HOPELESS = re.compile(
    "authentication failed|no password supplied|does not exist|no pg_hba.conf entry"
    "|translate host name|not known|not a database|unable to open"
)
"""What a database says that no waiting mends."""

LOCK_SECONDS = 120
ADVISORY_KEY = 0x67_6C_61_73  # "glas"
STATIC = ("retry_of", "is_search", "values")
"""What a trial is told at its making besides seeds, key and protocol."""

PLAN = "glas_bench:plan"
ABOUT = "glas_bench:about"
OWNER = "glas_bench:owner"
LOST = "glas_bench:lost"
BEGUN = "glas_bench:begun"
WITHDRAWN = "glas_bench:withdrawn"


class StorageDown(RunError):  # noqa: N818 - a state of the world
    """The database does not answer."""


class _LockLost(Exception):  # noqa: N818 - the connection that held the lock has gone
    pass


@dataclass(frozen=True)
class Task:
    """A claimed trial."""

    study: str
    trial_id: int
    number: int
    cell: str
    seeds: list[int]
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the axes that are searched."""
    is_search: bool = False

    @property
    def name(self) -> str:
        """What a user sees."""
        return f"{self.cell} trial {self.number}" if self.is_search else self.cell


@dataclass(frozen=True)
class Wait:
    """Nothing to claim yet: other workers run what is left."""


@dataclass(frozen=True)
class Result:
    """What came of a task."""

    status: str
    """complete or failed."""
    value: float | None = None
    """Validation, nats per image, mean over the seeds; None where no seed has a number."""
    reason: str | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    """Status by seed."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Means over seeds, by metric."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A trial, as plain values."""

    study: str
    number: int
    state: str
    """waiting, running, complete, failed or pruned."""
    cell: str
    key: str | None
    protocol: str | None
    seeds: list[int]
    retry_of: int | None
    is_search: bool
    withdrawn: bool
    begun: bool
    values: dict[str, Any]
    value: float | None
    about: dict[str, Any]
    """User attributes: status, reason, outcomes, seconds and numbers."""
    owner: dict[str, Any] | None


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


class Store:
    """An open database of studies.

    Args:
        url: from `addresses.storage_url`.
        read_only: for `status`: nothing is made where nothing is.

    Raises:
        RunError: it does not answer, or is no database of ours.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        self.file = sqlite_file(url)
        self.owner = owner.me()
        self.beat = beat_seconds()
        self._looks: dict[int, float] = {}  # when a stale trial was first seen so
        self._ids: dict[str, int] = {}
        self._outages: tuple[type[Exception], ...] = (*_prepare_optuna(), _LockLost)
        if self.file is not None and not read_only:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock_engine = self._engine()
        self.storage: RDBStorage = self._through(self._open, PATIENCE_AT_FIRST)

    # ---- the database

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
                "pip install 'glas-bench[postgres]'"
            ) from error
        except Exception as error:
            raise UsageError(f"--storage {redact(self.url)}: {explain(error)}") from error

    def _open(self) -> RDBStorage:
        from optuna.storages import RDBStorage

        with self._locked():
            return RDBStorage(
                self.url,
                engine_kwargs=self._arguments(),
                heartbeat_interval=max(1, math.ceil(self.beat)),
                grace_period=max(1, math.ceil(GRACE_BEATS * self.beat)),
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
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

    def _through(self, action: Callable[[], T], patience: float = PATIENCE) -> T:
        """Return what an action returns; while the database is away, try again, ever slower.

        Raises:
            StorageDown: for too long.
        """
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return action()
            except self._outages as error:
                self._looks.clear()
                self._ids.clear()
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

    def _study_id(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = self.storage.get_study_id_from_name(name)
        return self._ids[name]

    def _make_study(self, name: str) -> int:
        from optuna.study import StudyDirection

        try:
            return self._study_id(name)
        except KeyError:
            self._ids[name] = self.storage.create_new_study([StudyDirection.MINIMIZE], name)
            return self._ids[name]

    def _rows(self, name: str) -> list[tuple[FrozenTrial, Row]]:
        trials = self.storage.get_all_trials(self._study_id(name), deepcopy=False)
        return [(trial, _row(name, trial)) for trial in trials]

    def _rows_of(self, plan: Plan, search: str) -> list[tuple[FrozenTrial, Row]]:
        return self._rows(f"{plan.name}/{search}")

    # ---- planning

    def plan(self, plan: Plan, *, extend: bool, retry_failed: bool) -> None:
        """Store the plan, and make a trial of whatever it has and the database has not.

        Raises:
            UsageError: the study is planned already, otherwise, and is not to be extended.
        """
        self._through(lambda: self._plan(plan, extend, retry_failed))

    def _plan(self, plan: Plan, extend: bool, retry_failed: bool) -> None:
        with self._locked():
            study_id = self._make_study(plan.name)
            new = plan.document()
            old = self.storage.get_study_system_attrs(study_id).get(PLAN)
            if old is not None and digest(old) != digest(new) and not extend:
                told = "\n  ".join(differences(old, new) or ["settings of its cells"])
                raise UsageError(
                    f"study {plan.name} is planned already, and not as {plan.study.path} says:\n"
                    f"  {told}\nWith --extend what is new is run and the new plan takes the old "
                    "one's place; under another name it is a study of its own."
                )
            if old != new:
                self.storage.set_study_system_attr(study_id, PLAN, new)
                for key in ("question", "version", "preset", "dataset"):
                    self.storage.set_study_user_attr(study_id, key, new[key])
            self._reconcile(plan, study_id)
            for name in plan.searches:
                self._make_study(f"{plan.name}/{name}")
                self._enumerate(plan, name)
            if retry_failed:
                for name in [plan.name, *(f"{plan.name}/{each}" for each in plan.searches)]:
                    self._retry(name)

    def _reconcile(self, plan: Plan, study_id: int) -> None:
        """Make trials of the seeds that no trial has; withdraw what waits and is not wanted."""
        rows = self._rows(plan.name)
        for trial, row in rows:
            item = plan.items.get(row.cell)
            if row.state == "waiting" and (item is None or not belongs(item, row)):
                self._withdraw(trial._trial_id)
        for item in plan.items.values():
            if not item.searched:
                self._cover(study_id, item, [row for _, row in rows])

    def _cover(self, study_id: int, item: Item, rows: Sequence[Row]) -> None:
        have = {seed for row in rows if belongs(item, row) for seed in row.seeds}
        missing = [seed for seed in item.seeds if seed not in have]
        if missing:
            self._add(study_id, item, missing)

    def _add(self, study_id: int, item: Item, seeds: Sequence[int], **about: Any) -> None:
        """Make a waiting trial; of what is not applicable, one that is over.

        Args:
            study_id: optuna's.
            item: the cell.
            seeds: those to run.
            about: what is otherwise than the item says: `settings`, `key`, `protocol`, optuna's
                `params` and `distributions`, and the names in `STATIC`.
        """
        from optuna.trial import TrialState, create_trial

        static = {"seeds": list(seeds), "key": item.key, "protocol": item.protocol}
        static |= {key: value for key, value in about.items() if key in static or key in STATIC}
        shown = {
            "cell": item.cell,
            "variant": item.variant,
            "settings": about.get("settings", words(item.params)),
            "seeds": _spans(seeds),
        }
        if item.not_applicable:
            shown |= {"status": "not_applicable", "reason": item.not_applicable}
        self.storage.create_new_trial(
            study_id,
            create_trial(
                state=TrialState.PRUNED if item.not_applicable else TrialState.WAITING,
                params=about.get("params", {}),
                distributions=about.get("distributions", {}),
                user_attrs=shown,
                system_attrs={ABOUT: static},
            ),
        )

    def _withdraw(self, trial_id: int) -> None:
        from optuna.trial import TrialState

        self.storage.set_trial_system_attr(trial_id, WITHDRAWN, True)
        self.storage.set_trial_user_attr(trial_id, "status", "withdrawn")
        self.storage.set_trial_state_values(trial_id, TrialState.PRUNED)

    def _retry(self, name: str) -> None:
        rows = [row for _, row in self._rows(name)]
        again = {row.retry_of for row in rows}
        for trial, row in self._rows(name):
            if row.state == "failed" and row.number not in again and not row.withdrawn:
                item = _item_of(trial, row)
                self._add(
                    self._study_id(name),
                    item,
                    row.seeds,
                    retry_of=row.number,
                    settings=trial.user_attrs.get("settings", ""),
                    params=trial.params,
                    distributions=trial.distributions,
                    is_search=row.is_search,
                    values=row.values,
                )

    def settle(self, plan: Plan, result_of: Callable[[Row], Result | None]) -> int:
        """Tell the results of waiting trials that are there already; return how many.

        Args:
            plan: the study.
            result_of: returns what a run folder on this machine has of a trial, or None.
        """

        def action() -> int:
            done = 0
            with self._locked():
                for trial, row in self._rows(plan.name):
                    if row.state != "waiting" or row.cell not in plan.items:
                        continue
                    if not belongs(plan.items[row.cell], row):
                        continue
                    result = result_of(row)
                    if result is not None and self._take(trial):
                        self._tell(trial._trial_id, result)
                        done += 1
            return done

        return self._through(action)

    # ---- claiming

    def claim(
        self, plan: Plan, most: int | None = None, last: Sequence[str] = ()
    ) -> Task | Wait | None:
        """Return a task for this worker, `Wait` while others run the rest, None when all is over.

        Args:
            plan: the study.
            most: trials of the study's whole life; more are not begun.
            last: cells to leave to others as long as there is something else.
        """
        return self._through(lambda: self._claim(plan, most, last))

    def _claim(self, plan: Plan, most: int | None, last: Sequence[str]) -> Task | Wait | None:
        with self._locked():
            rows = self._rows(plan.name)
            for trial, row in rows:
                if row.state == "running" and (row.owner or {}).get("token") == self.owner["token"]:
                    return _task(trial, row)  # claimed, and the answer got lost
            busy = self._revive(plan.name, rows)
            left = None if most is None else most - _begun(rows)
            task = self._claim_waiting(plan, left, last)
            if task is not None:
                return task
            for name in sorted(plan.searches, key=lambda each: _begun(self._rows_of(plan, each))):
                task, others = self._search(plan, name, most)
                if task is not None:
                    return task
                busy |= others
            return Wait() if busy else None

    def _claim_waiting(self, plan: Plan, left: int | None, last: Sequence[str]) -> Task | None:
        waiting = [
            (trial, row)
            for trial, row in self._rows(plan.name)
            if row.state == "waiting"
            and (left is None or left > 0 or row.begun)
            and row.cell in plan.items
            and belongs(plan.items[row.cell], row)
        ]
        waiting.sort(key=lambda each: (each[1].cell in last, each[1].number))
        for trial, row in waiting:
            if self._take(trial):
                return _task(trial, row)
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        """Make a waiting trial this worker's; its heart beats before it runs."""
        from optuna.trial import TrialState

        self.storage.record_heartbeat(trial._trial_id)
        self.storage.set_trial_system_attr(trial._trial_id, BEGUN, True)
        if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return False
        self._sign(trial._trial_id)
        return True

    def _sign(self, trial_id: int) -> None:
        self.storage.set_trial_system_attr(trial_id, OWNER, self.owner)
        self.storage.set_trial_user_attr(trial_id, "worker", owner.told(self.owner))

    def _revive(self, name: str, rows: Sequence[tuple[FrozenTrial, Row]]) -> bool:
        """Set trials waiting whose workers have gone; tell whether any still runs."""
        from optuna.trial import TrialState

        running = [(trial, row) for trial, row in rows if row.state == "running"]
        stale = set(self.storage._get_stale_trial_ids(self._study_id(name))) if running else set()
        now, busy = time.monotonic(), False
        for trial, row in running:
            trial_id = trial._trial_id
            gone = row.owner is None or owner.is_gone(row.owner)  # unsigned: cut short in a claim
            if not gone and trial_id in stale:
                first = self._looks.setdefault(trial_id, now)
                gone = now - first >= WATCHED_BEATS * self.beat
            elif not gone:
                self._looks.pop(trial_id, None)
            if not gone:
                busy = True
                continue
            if not row.cell:  # killed while its values were drawn
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                continue
            lost = trial.system_attrs.get(LOST, 0) + (row.owner is not None)
            self.storage.set_trial_system_attr(trial_id, OWNER, None)
            self.storage.set_trial_system_attr(trial_id, LOST, lost)
            if lost >= MOST_LOST:
                reason = f"{lost} workers died over it, last {owner.told(row.owner)}"
                self._tell(trial_id, Result("failed", reason=reason))
            else:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
        return busy

    # ---- searching

    def _enumerate(self, plan: Plan, name: str) -> None:
        """Plan every combination where a search has choices alone."""
        from itertools import product

        space = {key: plan.study.space[key] for key in plan.items[name].searched}
        study_name = f"{plan.name}/{name}"
        if any(each.choices is None for each in space.values()):
            return
        distributions, keys = self._choices(plan, name), list(space)
        have = [row.values for _, row in self._rows(study_name)]
        every = product(*(distributions[key].choices for key in keys))
        for values in list(every)[: plan.study.trials]:
            params = dict(zip(keys, values, strict=True))
            if params not in have:
                self._add_trial(plan, name, params, distributions)

    def _add_trial(
        self, plan: Plan, name: str, params: dict[str, Any], distributions: dict[str, Any]
    ) -> None:
        item = plan.items[name]
        self._add(
            self._study_id(f"{plan.name}/{name}"),
            item,
            plan.study.tuning_seeds,
            settings=words({**item.params, **params}),
            params=params,
            distributions=distributions,
            is_search=True,
        )

    def _choices(self, plan: Plan, name: str) -> dict[str, Any]:
        """Return the distributions of choices, in the values that a config has."""
        from optuna.distributions import CategoricalDistribution

        cell, found = plan.study.by_name[name], {}
        for key in cell.searched:
            choices = plan.study.space[key].choices
            if choices is not None:
                values = [cell.with_values({key: each}).flat()[key] for each in choices]
                found[key] = CategoricalDistribution(values)
        return found

    def _search(self, plan: Plan, name: str, most: int | None) -> tuple[Task | None, bool]:
        """Return a trial of a search to run, and whether one of it runs elsewhere.

        When the last is over, the best values become a trial of the study on its own seeds.
        """
        study_name = f"{plan.name}/{name}"
        rows = self._rows(study_name)
        for trial, row in rows:
            if row.state == "running" and (row.owner or {}).get("token") == self.owner["token"]:
                return _task(trial, row), False
        busy = self._revive(study_name, rows)
        rows = [each for each in self._rows(study_name) if each[1].cell]
        begun = _begun(rows)
        wanted = plan.study.trials
        if most is not None:
            wanted = min(wanted, most // len(plan.searches))
        for trial, row in rows:
            if row.state == "waiting" and (row.begun or begun < wanted) and self._take(trial):
                return _task(trial, row), False
        own = [row for _, row in rows if row.retry_of is None]
        if len(own) < plan.study.trials and begun < wanted:
            return self._ask(plan, name), False
        if busy or sum(row.state not in ("waiting", "running") for row in own) < plan.study.trials:
            return None, busy
        self._report(plan, name, [row for _, row in rows])
        return self._claim_waiting(plan, None, ()), busy

    def _ask(self, plan: Plan, name: str) -> Task:
        """Return a trial with values drawn by TPE, which is told of running ones as bad ones."""
        import optuna

        study_name, item = f"{plan.name}/{name}", plan.items[name]
        drawn = len(self._rows(study_name))
        sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        study = optuna.load_study(study_name=study_name, storage=self.storage, sampler=sampler)
        trial = study.ask()
        values = self._draw(plan, name, trial)
        about = {"seeds": plan.study.tuning_seeds, "key": None, "protocol": None, "is_search": True}
        self.storage.set_trial_system_attr(trial._trial_id, ABOUT, about)
        for key, value in (
            ("cell", item.cell),
            ("variant", item.variant),
            ("settings", words({**item.params, **values})),
            ("seeds", _spans(plan.study.tuning_seeds)),
        ):
            self.storage.set_trial_user_attr(trial._trial_id, key, value)
        self.storage.record_heartbeat(trial._trial_id)
        self.storage.set_trial_system_attr(trial._trial_id, BEGUN, True)
        self._sign(trial._trial_id)
        return Task(
            study_name, trial._trial_id, trial.number, name, plan.study.tuning_seeds, values, True
        )

    def _draw(self, plan: Plan, name: str, trial: Trial) -> dict[str, Any]:
        space = {key: plan.study.space[key] for key in plan.items[name].searched}
        choices, values = self._choices(plan, name), {}
        for key, axis in sorted(space.items(), key=lambda each: each[1].at_most is not None):
            if key in choices:
                values[key] = trial.suggest_categorical(key, choices[key].choices)
                continue
            assert axis.low is not None
            assert axis.high is not None
            high = min(axis.high, values.get(str(axis.at_most), axis.high))
            if axis.whole:
                values[key] = trial.suggest_int(key, int(axis.low), int(high), log=axis.log)
            else:
                values[key] = trial.suggest_float(key, axis.low, high, log=axis.log)
        return values

    def _report(self, plan: Plan, name: str, rows: Sequence[Row]) -> None:
        """Plan the best values of a search on the reporting seeds."""
        found = [row for row in rows if row.state == "complete" and row.value is not None]
        study_id, item = self._study_id(plan.name), plan.items[name]
        if not found:
            return
        best = min(found, key=lambda row: (row.value, row.number))
        settings, key, protocol = plan.reported(name, best.values)
        mine = [(trial, row) for trial, row in self._rows(plan.name) if row.cell == name]
        have: set[int] = set()
        for trial, row in mine:
            if (row.key, row.protocol) == (key, protocol) and not row.withdrawn:
                have |= set(row.seeds)
            elif row.state == "waiting":
                self._withdraw(trial._trial_id)
        if missing := [seed for seed in item.seeds if seed not in have]:
            about = {"key": key, "protocol": protocol, "settings": settings}
            self._add(study_id, item, missing, **about, values=best.values)

    # ---- beating and telling

    @contextlib.contextmanager
    def beating(self, task: Task) -> Iterator[None]:
        """Beat for a task, through whatever outage of the database."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.is_set():
                try:
                    self.storage.record_heartbeat(task.trial_id)
                except Exception:  # it is away: the next beat may reach it
                    self.storage.engine.dispose()
                    stop.wait(min(1.0, self.beat))
                else:
                    stop.wait(self.beat)
                finally:
                    self.storage.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)

    def finish(self, task: Task, result: Result) -> None:
        """Tell a task's result; one that another worker has told already stands."""

        def action() -> None:
            with self._locked():
                if self._is_mine(task):
                    self._tell(task.trial_id, result)

        self._through(action)

    def give_back(self, task: Task) -> None:
        """Set a task waiting again."""
        from optuna.trial import TrialState

        def action() -> None:
            with self._locked():
                if self._is_mine(task):
                    self.storage.set_trial_system_attr(task.trial_id, OWNER, None)
                    self.storage.set_trial_state_values(task.trial_id, TrialState.WAITING)

        self._through(action)

    def _is_mine(self, task: Task) -> bool:
        from optuna.trial import TrialState

        trial = self.storage.get_trial(task.trial_id)
        signed = trial.system_attrs.get(OWNER) or {}
        return trial.state == TrialState.RUNNING and signed.get("token") == self.owner["token"]

    def _tell(self, trial_id: int, result: Result) -> None:
        from optuna.trial import TrialState

        about: dict[str, Any] = {"status": result.status, "seconds": round(result.seconds, 3)}
        about |= {"reason": result.reason} if result.reason else {}
        about |= {"outcomes": result.outcomes} if result.outcomes else {}
        about |= {name: round(value, 4) for name, value in result.numbers.items()}
        for key, value in about.items():
            self.storage.set_trial_user_attr(trial_id, key, value)
        if result.status == "failed":
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return
        # a cell whose seeds all diverged is complete and has no number: the worst there is
        value = math.inf if result.value is None else result.value
        self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])

    # ---- reading

    def names(self) -> list[str]:
        """Return the names of all studies of ours, searches left out."""
        return sorted(
            each.study_name
            for each in self._through(self.storage.get_all_studies, PATIENCE_AT_FIRST)
            if PLAN in each.system_attrs
        )

    def read(self, name: str) -> tuple[Document, list[Row]] | None:
        """Return a study's plan and its trials, its searches' among them; None: no such study."""
        return self._through(lambda: self._read(name), PATIENCE_AT_FIRST)

    def _read(self, name: str) -> tuple[Document, list[Row]] | None:
        try:
            document = self.storage.get_study_system_attrs(self._study_id(name)).get(PLAN)
        except KeyError:
            return None
        if document is None:
            return None
        rows = [row for _, row in self._rows(name)]
        for item in document["cells"]:
            if item["searched"]:
                with contextlib.suppress(KeyError):
                    rows += [row for _, row in self._rows(f"{name}/{item['cell']}")]
        return document, rows

    def close(self) -> None:
        """Let go of all connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()


def _prepare_optuna() -> tuple[type[Exception], ...]:
    """Quieten optuna; return what it and SQLAlchemy raise when the database is away."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return (
        sqlalchemy.exc.OperationalError,
        sqlalchemy.exc.InterfaceError,
        sqlalchemy.exc.InternalError,
        sqlalchemy.exc.TimeoutError,
        sqlalchemy.exc.PendingRollbackError,
        optuna.exceptions.StorageInternalError,
    )


def _first_line(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return redact(" ".join(str(cause).split()) or type(cause).__name__)[:300]


def _row(study: str, trial: FrozenTrial) -> Row:
    states = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}
    about = trial.system_attrs.get(ABOUT, {})
    state = states.get(trial.state.name, trial.state.name.lower())
    value = trial.values[0] if trial.values else None
    return Row(
        study=study,
        number=trial.number,
        state=state,
        cell=str(trial.user_attrs.get("cell", "")),
        key=about.get("key"),
        protocol=about.get("protocol"),
        seeds=list(about.get("seeds", [])),
        retry_of=about.get("retry_of"),
        is_search=bool(about.get("is_search")),
        withdrawn=bool(trial.system_attrs.get(WITHDRAWN)),
        begun=bool(trial.system_attrs.get(BEGUN)),
        values={**(about.get("values") or {}), **trial.params},
        value=value if value is not None and math.isfinite(value) else None,
        about=dict(trial.user_attrs),
        owner=trial.system_attrs.get(OWNER),
    )


def _task(trial: FrozenTrial, row: Row) -> Task:
    return Task(
        row.study, trial._trial_id, row.number, row.cell, row.seeds, row.values, row.is_search
    )


def _begun(rows: Sequence[tuple[FrozenTrial, Row]]) -> int:
    return sum(row.begun for _, row in rows if row.retry_of is None)


def belongs(item: Item, row: Row) -> bool:
    """Tell whether a trial is about what a cell now is."""
    if row.withdrawn or row.cell != item.cell:
        return False
    if item.searched:
        return True  # `_report` says whether its values still are the best
    return (row.key, row.protocol) == (item.key, item.protocol)


def _item_of(trial: FrozenTrial, row: Row) -> Item:
    return Item(
        cell=row.cell,
        variant=str(trial.user_attrs.get("variant", "")),
        params={},
        key=row.key,
        protocol=row.protocol,
        seeds=row.seeds,
        baseline=None,
        not_applicable=None,
        searched=[],
        cost=1.0,
    )


def _spans(seeds: Sequence[int]) -> str:
    """Return seeds as `0-3,7`."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], seed]
        else:
            parts.append([seed])
    return ",".join("-".join(map(str, part)) for part in parts)
