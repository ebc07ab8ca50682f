"""The queue of a study's trials: planned once, claimed, ended, taken over from dead workers.

A cell is a trial; all its seeds train together. A running trial is taken over when its process is
known to have ended (same machine), or when its heartbeat is old by the database's own clock at two
looks between which the database has answered throughout: after a restart every heartbeat is old,
and the living beat again before the second look.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from glas_bench.errors import UsageError
from glas_bench.sweep import worker_id
from glas_bench.sweep.database import PATIENCE_AT_FIRST, Database
from glas_bench.sweep.plan import Document, Plan, differences, digest
from glas_bench.sweep.search import Search
from glas_bench.sweep.trial import Trial, count_begun, search_name

P = ParamSpec("P")
T = TypeVar("T")

WATCHED_BEATS = 2.5
"""Heartbeats for which a silent trial of another machine is watched before it is taken over."""

MOST_LOST = 5
"""Workers that may die over one cell before it counts as failed."""


def _exclusive(
    method: Callable[Concatenate[Queue, P], T],
) -> Callable[Concatenate[Queue, P], T]:
    """Run a method under the database's lock, and again after an outage."""

    @functools.wraps(method)
    def run(self: Queue, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def action() -> T:
            with self.database.locked():
                return method(self, *args, **kwargs)

        return self.database.through(action)

    return run


class Queue:
    """The trials of all studies in a database, and this process as one of its workers.

    Args:
        url: from `storage.storage_url`.
        read_only: no folder is made where there is none.
        patience: seconds to wait for the database to answer at first.

    Raises:
        RunError: it does not answer, or is no database of studies.
    """

    def __init__(
        self, url: str, *, read_only: bool = False, patience: float = PATIENCE_AT_FIRST
    ) -> None:
        self.database = Database(url, read_only=read_only, patience=patience)
        self._watched: dict[tuple[int, int], float] = {}
        """When a trial was first seen silent, by its id and the outages before."""

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    # ---- planning

    @_exclusive
    def plan(self, plan: Plan, *, extend: bool, retry_failed: bool) -> None:
        """Store the plan, and add the trials that it wants and the database has not.

        Raises:
            UsageError: the study has another plan and is not to be extended.
        """
        self.database.make_study(plan.name)
        old = self.database.plan(plan.name)
        if old is not None and digest(old) != digest(plan.document) and not extend:
            lines = "\n  ".join(differences(old, plan.document) or ["settings of its cells"])
            raise UsageError(
                f"study {plan.name} is planned already, and not as {plan.study.path} says:\n"
                f"  {lines}\nWith --extend what is new is run and the new plan takes the old "
                "one's place; under another name it is a study of its own."
            )
        if old != plan.document:
            self.database.store_plan(plan.document)
        self._reconcile(plan)
        for cell in plan.searches:
            self.database.make_study(search_name(plan.name, cell))
            Search(self.database, plan, cell).enumerate()
        if retry_failed:
            for name in [plan.name, *(search_name(plan.name, cell) for cell in plan.searches)]:
                self._retry_failed(name)

    def _reconcile(self, plan: Plan) -> None:
        """Add trials of the seeds that no trial has; withdraw waiting ones that are not wanted."""
        trials = self.database.trials(plan.name)
        for trial in trials:
            if trial.status == "waiting" and not _is_wanted(trial, plan):
                self.database.withdraw(trial)
        for entry in plan.entries.values():
            if entry["searched"]:
                continue
            covered = {seed for each in trials if each.belongs(entry) for seed in each.seeds}
            if missing := [seed for seed in entry["seeds"] if seed not in covered]:
                self.database.add(Trial.planned(plan.name, entry, missing))

    def _retry_failed(self, study: str) -> None:
        trials = self.database.trials(study)
        repeated = {trial.retry_of for trial in trials}
        for trial in trials:
            if trial.status == "failed" and trial.cell and trial.number not in repeated:
                self._repeat(trial)

    def _repeat(self, trial: Trial) -> None:
        """Add a trial that takes the place of one that is over."""
        again = replace(trial, status="waiting", retry_of=trial.number)
        self.database.add(again, self.database.distributions(trial))

    @_exclusive
    def settle(self, plan: Plan, ended: Callable[[Trial], Trial | None]) -> None:
        """End waiting trials whose results are there already.

        Trials of workers that have died are set waiting before that.

        Args:
            plan: the study.
            ended: returns a trial as its run folder on this machine ends it, or None.
        """
        self._revive(self.database.trials(plan.name))
        for trial in self.database.trials(plan.name):
            if trial.status == "waiting" and _is_wanted(trial, plan):
                end = ended(trial)
                if end is not None and self.database.take(trial) is not None:
                    self.database.end(end)

    @_exclusive
    def renew(self, plan: Plan, is_gone: Callable[[Trial], bool]) -> list[str]:
        """Repeat complete trials whose results are no longer there; return their cells.

        Trials of searches are not repeated: their values are all that is wanted of them.

        Args:
            plan: the study.
            is_gone: returns whether a trial's results are missing.
        """
        trials = self.database.trials(plan.name)
        repeated = {trial.retry_of for trial in trials}
        gone = [
            trial
            for trial in trials
            if trial.status == "complete"
            and trial.number not in repeated
            and _is_wanted(trial, plan)
            and is_gone(trial)
        ]
        for trial in gone:
            self._repeat(trial)
        return [trial.cell for trial in gone]

    # ---- claiming

    @_exclusive
    def claim(
        self, plan: Plan, most: int | None = None, last: Sequence[str] = ()
    ) -> tuple[Trial | None, bool]:
        """Return a trial for this worker, if any is left, and whether others still run some.

        Args:
            plan: the study.
            most: trials of the study's whole life; more are not begun.
            last: cells to leave to others as long as there is something else.
        """
        trials = self.database.trials(plan.name)
        for trial in trials:
            if self.database.is_own(trial):
                return trial, False  # claimed, and the answer was lost
        busy = self._revive(trials)
        trials = self.database.trials(plan.name)
        left = None if most is None else most - count_begun(trials)
        if (taken := self._take_waiting(plan, trials, left, last)) is not None:
            return taken, busy
        searches = [Search(self.database, plan, cell) for cell in plan.searches]
        for search in sorted(
            searches, key=lambda each: count_begun(self.database.trials(each.name))
        ):
            taken, others = self._next_of_search(plan, search, most)
            if taken is not None:
                return taken, busy
            busy |= others
        return None, busy

    def _take_waiting(
        self, plan: Plan, trials: Sequence[Trial], left: int | None, last: Sequence[str]
    ) -> Trial | None:
        """Return the first of the study's own trials that waits, now this worker's."""
        waiting = [
            trial
            for trial in trials
            if trial.status == "waiting"
            and (left is None or left > 0 or trial.begun)
            and _is_wanted(trial, plan)
        ]
        waiting.sort(key=lambda each: (each.cell in last, each.number))
        taken = (self.database.take(trial) for trial in waiting)
        return next((trial for trial in taken if trial is not None), None)

    def _next_of_search(
        self, plan: Plan, search: Search, most: int | None
    ) -> tuple[Trial | None, bool]:
        """Return a trial of a search, or of its best values, and whether others run some."""
        trials = self.database.trials(search.name)
        for trial in trials:
            if self.database.is_own(trial):
                return trial, False
        if self._revive(trials):
            return search.next_trial(most), True
        taken = search.next_trial(most)
        if taken is None and search.add_best():
            best = [t for t in self.database.trials(plan.name) if t.cell == search.cell.name]
            taken = self._take_waiting(plan, best, None, ())
        return taken, False

    # ---- workers that died

    def _revive(self, trials: Sequence[Trial]) -> bool:
        """Set trials waiting whose workers are gone; return whether others still run some.

        Args:
            trials: all of one study.
        """
        running = [trial for trial in trials if trial.status == "running"]
        silent = self.database.silent(running[0].study) if running else set()
        busy = False
        for trial in running:
            if not self._is_gone(trial, silent):
                busy = True
            elif not trial.cell:  # killed while its values were drawn
                self.database.end(replace(trial, status="failed"))
            elif trial.owner is None:  # killed while it was claimed
                self.database.set_waiting(trial)
            else:
                self._lose(trial, f"last {worker_id.described(trial.owner)}")
        return busy

    def _is_gone(self, trial: Trial, silent: set[int]) -> bool:
        if trial.owner is None or worker_id.is_gone(trial.owner):
            return True
        watch = (trial.id, self.database.outages)
        if trial.id not in silent:
            self._watched.pop(watch, None)
            return False
        now = time.monotonic()
        return now - self._watched.setdefault(watch, now) >= WATCHED_BEATS * self.database.beat

    def _lose(self, trial: Trial, last: str) -> None:
        """Set a trial waiting whose worker died over it; fail it where too many did.

        Args:
            trial: which ran.
            last: about the last of them, for the reason.
        """
        lost = trial.lost + 1
        if lost >= MOST_LOST:
            reason = f"{lost} workers died over it, {last}"
            self.database.end(replace(trial, status="failed", reason=reason))
        else:
            self.database.set_waiting(trial, lost)

    @contextlib.contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Record heartbeats of a trial, through any outage of the database."""
        stop = threading.Event()
        pause = self.database.beat

        def beat() -> None:
            while not stop.is_set():
                try:
                    self.database.heartbeat(trial)
                except Exception:  # the database is away: the next heartbeat may reach it
                    stop.wait(min(1.0, pause))
                else:
                    stop.wait(pause)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)

    # ---- ending

    @_exclusive
    def finish(self, trial: Trial) -> None:
        """Write how a trial of this worker ended; what another worker has written stands."""
        if self.database.is_own(self.database.current(trial)):
            self.database.end(trial)

    @_exclusive
    def give_back(self, trial: Trial, trouble: str | None = None) -> None:
        """Set a trial of this worker waiting again.

        Args:
            trial: as it was claimed.
            trouble: what broke the machine over it; a cell that does so again and again fails.
        """
        if not self.database.is_own(self.database.current(trial)):
            return
        if trouble is None:
            self.database.set_waiting(trial)
        else:
            self._lose(trial, trouble)

    # ---- reading

    def names(self) -> list[str]:
        """Return the names of all planned studies."""
        return self.database.through(self.database.names, PATIENCE_AT_FIRST)

    def read(self, name: str) -> tuple[Document, list[Trial]] | None:
        """Return a study's plan and its trials with those of its searches; None: no such study."""
        return self.database.through(lambda: self._read(name), PATIENCE_AT_FIRST)

    def _read(self, name: str) -> tuple[Document, list[Trial]] | None:
        try:
            document = self.database.plan(name)
        except KeyError:
            return None
        if document is None:
            return None
        trials = self.database.trials(name)
        for entry in document["cells"]:
            if entry["searched"]:
                with contextlib.suppress(KeyError):
                    trials += self.database.trials(search_name(name, entry["cell"]))
        return document, trials


def _is_wanted(trial: Trial, plan: Plan) -> bool:
    entry = plan.entries.get(trial.cell)
    return entry is not None and trial.belongs(entry)
