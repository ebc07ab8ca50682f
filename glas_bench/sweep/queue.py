"""The queue of a study's trials: planned once, claimed, ended, taken over from dead workers.

A cell is a trial; all its seeds train together. A running trial is taken over when its process is
known to have ended (same machine), or when its heartbeat was old by the database's own clock twice,
`WATCHED_BEATS` apart, and the database answered throughout: after a restart every heartbeat is old,
and living workers beat again in between.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from glas_bench.errors import UsageError
from glas_bench.processes import repeating
from glas_bench.sweep import worker_id
from glas_bench.sweep.database import PATIENCE_AT_FIRST, Database
from glas_bench.sweep.plan import Document, Plan, differences, digest, rejudged
from glas_bench.sweep.search import Search
from glas_bench.sweep.trial import Progress, Trial, count_begun, search_name, standing

P = ParamSpec("P")
T = TypeVar("T")

WATCHED_BEATS = 2.5
"""Heartbeats for which a silent trial of another machine is watched before it is taken over."""

MOST_LOST = 5
"""Workers that may die over one cell before it counts as failed."""


def _exclusive(method: Callable[Concatenate[Queue, P], T]) -> Callable[Concatenate[Queue, P], T]:
    """Run a method under the database's lock, and again after an outage."""

    @functools.wraps(method)
    def run(self: Queue, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def action() -> T:
            with self.database.locked():
                return method(self, *args, **kwargs)

        return self.database.through(action)

    return run


class Queue:
    """The trials of all studies in a database, and this process as one of its workers."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._watched: dict[tuple[int, int], float] = {}
        """When a trial was first seen silent, by its id and the outages before."""

    # ---- planning

    @_exclusive
    def plan(
        self, plan: Plan, *, extend: bool, retry_failed: bool, more_seeds: bool = False
    ) -> Plan:
        """Store the plan, add the trials that it wants and the database has not; return the plan.

        With `more_seeds` it may differ from the stored plan in the seeds of its cells, and takes
        over those that the stored plan has.

        Raises:
            UsageError: the study has another plan and is not to be extended, or is not ours.
        """
        for name in plan.studies:
            self.database.check_own(name)
        old = self.database.plan(plan.name)
        if old and more_seeds:
            plan = plan.with_seeds(_with_stored(plan, old))
        same = not old or digest(old, not more_seeds) == digest(plan.document, not more_seeds)
        if old and not extend and not (same and not rejudged(old, plan.document)):
            lines = "\n  ".join(differences(old, plan.document) or ["settings of its cells"])
            seeds_alone = not same and digest(old, False) == digest(plan.document, False)
            decide = "With --decide it keeps the seeds that it has and adds those it needs. "
            hint = decide if plan.study.claims and seeds_alone else ""
            raise UsageError(
                f"study {plan.name} is planned already, and not as {plan.study.path} says:\n"
                f"  {lines}\n{hint}With --extend what is new is run and the new plan takes the old "
                "one's place; under another name it is a study of its own."
            )
        searches = [Search(self.database, plan, cell) for cell in plan.searches]
        for search in searches:
            search.check()
        self.database.make_study(plan.name)
        if old != plan.document:
            self.database.store_plan(plan.document)
        self._reconcile(plan)
        for search in searches:
            search.prepare()
        if retry_failed:
            for search in searches:
                self._repeat(search.name, search.diverged().__contains__)
            for study in plan.studies:
                self._repeat(study, lambda trial: trial.status == "failed" and trial.cell != "")
        return plan

    def _reconcile(self, plan: Plan) -> None:
        """Add trials of the seeds that no trial has; withdraw waiting ones that are not wanted."""
        trials = self.database.trials(plan.name)
        for trial in trials:
            if trial.status == "waiting" and not plan.wants(trial):
                self.database.withdraw(trial)
        for entry in plan.entries.values():
            if not entry["searched"]:
                own = [trial for trial in trials if trial.belongs(entry)]
                new = Trial.planned(plan.name, entry, entry["seeds"])
                self.database.add_missing(new, own)

    def _repeat(self, study: str, chosen: Callable[[Trial], bool]) -> list[str]:
        """Add trials that take the place of those chosen, which are over; return their cells."""
        again = [trial for trial in standing(self.database.trials(study)) if chosen(trial)]
        for trial in again:
            new = replace(trial, status="waiting", retry_of=trial.number)
            self.database.add(new, self.database.distributions(trial) if trial.is_search else None)
        return [trial.cell for trial in again]

    @_exclusive
    def settle(self, plan: Plan, ended: Callable[[Trial], Trial | None]) -> None:
        """End waiting trials, and those of workers that died, whose results are there already.

        `ended` returns a trial as its run folder on this machine ends it, or None.
        """
        self._revive(self.database.trials(plan.name))
        for trial in self.database.trials(plan.name):
            end = ended(trial) if trial.status == "waiting" and plan.wants(trial) else None
            if end and self.database.take(trial):
                self.database.end(end)

    @_exclusive
    def renew(self, plan: Plan, is_gone: Callable[[Trial], bool]) -> list[str]:
        """Repeat complete trials whose results are gone; return their cells.

        Trials of searches are not repeated: only their values are used.
        """
        return self._repeat(
            plan.name, lambda t: t.status == "complete" and plan.wants(t) and is_gone(t)
        )

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
        trials = {study: self.database.trials(study) for study in plan.studies}
        for trial in itertools.chain(*trials.values()):
            if self.database.is_own(trial):
                return trial, False  # claimed, and the answer was lost
        busy = False
        for each in trials.values():
            busy |= self._revive(each)
        if taken := self._take_waiting(plan, most, last):
            return taken, busy
        searches = [Search(self.database, plan, cell) for cell in plan.searches]
        for search in sorted(searches, key=lambda each: count_begun(trials[each.name])):
            taken = search.next_trial(most)
            if taken is None:
                search.add_best()
                taken = self._take_waiting(plan, most)
            if taken:
                return taken, busy
        return None, busy

    def _take_waiting(self, plan: Plan, most: int | None, last: Sequence[str] = ()) -> Trial | None:
        """Return the first of the study's own trials that waits, now this worker's.

        Cells that claims compare come before the others: the verdicts are there sooner.
        """
        trials = self.database.trials(plan.name)
        full = most is not None and count_begun(trials) >= most
        compared = plan.study.compared
        trials.sort(key=lambda each: (each.cell in last, each.cell not in compared, each.number))
        taken = (
            self.database.take(trial)
            for trial in trials
            if trial.status == "waiting" and plan.wants(trial) and (trial.begun or not full)
        )
        return next(filter(None, taken), None)

    # ---- workers that died

    def _revive(self, trials: Sequence[Trial]) -> bool:
        """Set a study's trials waiting whose workers are gone; return whether others still run."""
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
        """Set a trial waiting whose worker died over it; fail it, with `last`, if too many did."""
        if (lost := trial.lost + 1) >= MOST_LOST:
            reason = f"{lost} workers died over it, {last}"
            self.database.end(replace(trial, status="failed", reason=reason))
        else:
            self.database.set_waiting(trial, lost)

    def beating(
        self, trial: Trial, progress: Progress, pruner: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Record heartbeats of a trial and its progress meanwhile, through any outage.

        Where `pruner` (median or halving) gives up a trial of a search, it is to be pruned; trials
        of a study's own seeds never are.
        """

        def beat() -> None:
            curve = {**progress.curve}
            self.database.heartbeat(trial, curve)
            if pruner and trial.is_search and curve and not progress.pruned:
                progress.pruned = self.database.should_prune(trial, pruner)

        return repeating(beat, self.database.beat)

    # ---- ending

    @_exclusive
    def finish(self, trial: Trial) -> None:
        """Write how a trial of this worker ended; what another worker has written stands."""
        if self.database.is_own(self.database.current(trial)):
            self.database.end(trial)

    @_exclusive
    def give_back(self, trial: Trial, trouble: str | None = None) -> None:
        """Set a trial of this worker waiting again; a cell that meets `trouble` often fails."""
        if self.database.is_own(self.database.current(trial)):
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

        def read() -> tuple[Document, list[Trial]] | None:
            if (document := self.database.plan(name)) is None:
                return None
            trials = self.database.trials(name)
            for entry in document["cells"]:
                if entry["searched"]:
                    with contextlib.suppress(KeyError):  # it is planned at this moment
                        trials += self.database.trials(search_name(name, entry["cell"]))
            return document, trials

        try:
            return self.database.through(read, PATIENCE_AT_FIRST)
        finally:  # it may be called from a thread that ends
            self.database.storage.remove_session()


def _with_stored(plan: Plan, old: Document) -> dict[str, list[int]]:
    """Return by cell its seeds and those that the stored plan has of the same cell."""
    same = (
        (entry, stored)
        for stored in old["cells"]
        if (entry := plan.entries.get(stored["cell"]))
        and (entry["key"], entry["protocol"]) == (stored["key"], stored["protocol"])
    )
    return {entry["cell"]: sorted({*entry["seeds"], *stored["seeds"]}) for entry, stored in same}
