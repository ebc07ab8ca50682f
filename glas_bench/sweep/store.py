"""Plan once, claim, beat, tell: what a worker asks of the database.

A cell is a trial; all its seeds train together.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from glas_bench.errors import UsageError
from glas_bench.sweep.database import PATIENCE_AT_FIRST
from glas_bench.sweep.ledger import Ledger
from glas_bench.sweep.plan import Document, Item, Plan, differences, digest
from glas_bench.sweep.search import Searches
from glas_bench.sweep.trials import (
    OWNER,
    Result,
    Row,
    Task,
    Wait,
    begun,
    belongs,
    item_of,
    task_of,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PLAN = "glas_bench:plan"


class Store(Ledger):
    """An open database of studies, and this process in it."""

    def __init__(
        self, url: str, *, read_only: bool = False, patience: float = PATIENCE_AT_FIRST
    ) -> None:
        super().__init__(url, read_only=read_only, patience=patience)
        self.searches = Searches(self)

    # ---- planning

    def plan(self, plan: Plan, *, extend: bool, retry_failed: bool) -> None:
        """Store the plan, and make a trial of whatever it has and the database has not.

        Raises:
            UsageError: the study is planned already, otherwise, and is not to be extended.
        """
        self.through(lambda: self._plan(plan, extend, retry_failed))

    def _plan(self, plan: Plan, extend: bool, retry_failed: bool) -> None:
        with self.locked():
            study_id = self.make_study(plan.name)
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
                self.make_study(f"{plan.name}/{name}")
                self.searches.enumerate(plan, name)
            if retry_failed:
                for name in [plan.name, *(f"{plan.name}/{each}" for each in plan.searches)]:
                    self._retry(name)

    def _reconcile(self, plan: Plan, study_id: int) -> None:
        """Make trials of the seeds that no trial has; withdraw what waits and is not wanted."""
        rows = self.rows(plan.name)
        for trial, row in rows:
            item = plan.items.get(row.cell)
            if row.state == "waiting" and (item is None or not belongs(item, row)):
                self.withdraw(trial._trial_id)
        for item in plan.items.values():
            if not item.searched:
                self._cover(study_id, item, [row for _, row in rows])

    def _cover(self, study_id: int, item: Item, rows: Sequence[Row]) -> None:
        have = {seed for row in rows if belongs(item, row) for seed in row.seeds}
        missing = [seed for seed in item.seeds if seed not in have]
        if missing:
            self.add(study_id, item, missing)

    def _retry(self, name: str) -> None:
        rows = [row for _, row in self.rows(name)]
        again = {row.retry_of for row in rows}
        for trial, row in self.rows(name):
            if row.state == "failed" and row.cell and row.number not in again:
                self._once_more(name, trial, row)

    def _once_more(self, name: str, trial: FrozenTrial, row: Row) -> None:
        """Plan a trial that is over once more; the new one takes its place."""
        self.add(
            self.study_id(name),
            item_of(trial, row),
            row.seeds,
            retry_of=row.number,
            settings=trial.user_attrs.get("settings", ""),
            params=trial.params,
            distributions=trial.distributions,
            is_search=row.is_search,
            values=row.values,
            of=row.of,
        )

    def settle(self, plan: Plan, result_of: Callable[[Row], Result | None]) -> int:
        """Tell the results of waiting trials that are there already; return how many.

        What workers held that have died waits again before that.

        Args:
            plan: the study.
            result_of: returns what a run folder on this machine has of a trial, or None.
        """

        def action() -> int:
            done = 0
            with self.locked():
                self.revive(plan.name, self.rows(plan.name))
                for trial, row in self.rows(plan.name):
                    if row.state != "waiting" or row.cell not in plan.items:
                        continue
                    if not belongs(plan.items[row.cell], row):
                        continue
                    result = result_of(row)
                    if result is not None and self.take(trial):
                        self.tell(trial._trial_id, result)
                        done += 1
            return done

        return self.through(action)

    def renew(self, plan: Plan, is_gone: Callable[[Row], bool]) -> list[str]:
        """Plan complete trials once more whose results are no longer there; return their cells.

        Args:
            plan: the study.
            is_gone: tells so of a trial; searches' own trials have told all that is wanted of them.
        """

        def action() -> list[str]:
            found = []
            with self.locked():
                rows = self.rows(plan.name)
                again = {row.retry_of for _, row in rows}
                for trial, row in rows:
                    item = plan.items.get(row.cell)
                    if item is None or row.state != "complete" or row.number in again:
                        continue
                    if belongs(item, row) and is_gone(row):
                        self._once_more(plan.name, trial, row)
                        found.append(row.cell)
            return found

        return self.through(action)

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
        return self.through(lambda: self._claim(plan, most, last))

    def _claim(self, plan: Plan, most: int | None, last: Sequence[str]) -> Task | Wait | None:
        with self.locked():
            rows = self.rows(plan.name)
            for trial, row in rows:
                if self.is_own(row):
                    return task_of(trial, row)  # claimed, and the answer got lost
            busy = self.revive(plan.name, rows)
            left = None if most is None else most - begun(rows)
            task = self.claim_waiting(plan, left, last)
            if task is not None:
                return task
            for name in sorted(
                plan.searches, key=lambda each: begun(self.rows(f"{plan.name}/{each}"))
            ):
                task, others = self.searches.next_trial(plan, name, most)
                if task is not None:
                    return task
                busy |= others
            return Wait() if busy else None

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
            with self.locked():
                if self._is_mine(task):
                    self.tell(task.trial_id, result)

        self.through(action)

    def give_back(self, task: Task, trouble: str | None = None) -> None:
        """Set a task waiting again.

        Args:
            task: of this worker.
            trouble: what befell the machine over it; a cell that does so again and again fails.
        """
        from optuna.trial import TrialState

        def action() -> None:
            with self.locked():
                if not self._is_mine(task):
                    return
                if trouble is not None:
                    self.lose(self.storage.get_trial(task.trial_id), trouble)
                    return
                self.storage.set_trial_system_attr(task.trial_id, OWNER, None)
                self.storage.set_trial_state_values(task.trial_id, TrialState.WAITING)

        self.through(action)

    def _is_mine(self, task: Task) -> bool:
        from optuna.trial import TrialState

        trial = self.storage.get_trial(task.trial_id)
        signed = trial.system_attrs.get(OWNER) or {}
        return trial.state == TrialState.RUNNING and signed.get("token") == self.owner["token"]

    # ---- reading

    def names(self) -> list[str]:
        """Return the names of all studies of ours, searches left out."""
        return sorted(
            each.study_name
            for each in self.through(self.storage.get_all_studies, PATIENCE_AT_FIRST)
            if PLAN in each.system_attrs
        )

    def read(self, name: str) -> tuple[Document, list[Row]] | None:
        """Return a study's plan and its trials, its searches' among them; None: no such study."""
        return self.through(lambda: self._read(name), PATIENCE_AT_FIRST)

    def _read(self, name: str) -> tuple[Document, list[Row]] | None:
        try:
            document = self.storage.get_study_system_attrs(self.study_id(name)).get(PLAN)
        except KeyError:
            return None
        if document is None:
            return None
        rows = [row for _, row in self.rows(name)]
        for item in document["cells"]:
            if item["searched"]:
                with contextlib.suppress(KeyError):
                    rows += [row for _, row in self.rows(f"{name}/{item['cell']}")]
        return document, rows
