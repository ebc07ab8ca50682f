"""Single trials: made, taken, revived, told, withdrawn; all under the database's lock.

A running trial is taken over when its process is known to have ended (same machine), or when its
heartbeat is old by the database's own clock at two looks between which the database has answered
throughout: after a restart every heartbeat is old, and the living beat again before the second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glas_bench.sweep import owner
from glas_bench.sweep.database import PATIENCE_AT_FIRST, Database
from glas_bench.sweep.plan import Item, Plan
from glas_bench.sweep.trials import (
    ABOUT,
    BEGUN,
    LOST,
    OWNER,
    STATIC,
    WITHDRAWN,
    Result,
    Row,
    Task,
    belongs,
    task_of,
)
from glas_bench.text import seed_ranges, settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

WATCHED_BEATS = 2.5
"""Beats for which a trial of another machine is watched before it is taken."""

MOST_LOST = 5
"""Workers that may die over one cell before it counts as failed."""


class Ledger(Database):
    """An open database, and what may happen to a trial in it."""

    def __init__(
        self, url: str, *, read_only: bool = False, patience: float = PATIENCE_AT_FIRST
    ) -> None:
        self.looks: dict[int, float] = {}  # when a stale trial was first seen so
        super().__init__(url, read_only=read_only, patience=patience)

    def forget(self) -> None:
        self.looks.clear()

    def is_own(self, row: Row) -> bool:
        """Tell whether a trial runs in this process's name."""
        return row.state == "running" and (row.owner or {}).get("token") == self.owner["token"]

    def add(self, study_id: int, item: Item, seeds: Sequence[int], **about: Any) -> None:
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
            "settings": about.get("settings", settings(item.params)),
            "seeds": seed_ranges(seeds),
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

    def withdraw(self, trial_id: int) -> None:
        """Take back a waiting trial that the study no longer wants."""
        from optuna.trial import TrialState

        self.storage.set_trial_system_attr(trial_id, WITHDRAWN, True)
        self.storage.set_trial_user_attr(trial_id, "status", "withdrawn")
        self.storage.set_trial_state_values(trial_id, TrialState.PRUNED)

    def claim_waiting(self, plan: Plan, left: int | None, last: Sequence[str]) -> Task | None:
        """Return the first trial of the study itself that waits, now this worker's."""
        waiting = [
            (trial, row)
            for trial, row in self.rows(plan.name)
            if row.state == "waiting"
            and (left is None or left > 0 or row.begun)
            and row.cell in plan.items
            and belongs(plan.items[row.cell], row)
        ]
        waiting.sort(key=lambda each: (each[1].cell in last, each[1].number))
        for trial, row in waiting:
            if self.take(trial):
                return task_of(trial, row)
        return None

    def take(self, trial: FrozenTrial) -> bool:
        """Make a waiting trial this worker's; its heart beats before it runs."""
        from optuna.trial import TrialState

        self.storage.record_heartbeat(trial._trial_id)
        self.storage.set_trial_system_attr(trial._trial_id, BEGUN, True)
        if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return False
        self.sign(trial._trial_id)
        return True

    def sign(self, trial_id: int) -> None:
        """Put this process's name to a running trial."""
        self.storage.set_trial_system_attr(trial_id, OWNER, self.owner)
        self.storage.set_trial_user_attr(trial_id, "worker", owner.told(self.owner))

    def revive(self, name: str, rows: Sequence[tuple[FrozenTrial, Row]]) -> bool:
        """Set trials waiting whose workers have gone; tell whether any still runs."""
        from optuna.trial import TrialState

        running = [(trial, row) for trial, row in rows if row.state == "running"]
        stale = set(self.storage._get_stale_trial_ids(self.study_id(name))) if running else set()
        now, busy = time.monotonic(), False
        for trial, row in running:
            trial_id = trial._trial_id
            gone = row.owner is None or owner.is_gone(row.owner)  # unsigned: cut short in a claim
            if not gone and trial_id in stale:
                first = self.looks.setdefault(trial_id, now)
                gone = now - first >= WATCHED_BEATS * self.beat
            elif not gone:
                self.looks.pop(trial_id, None)
            if not gone:
                busy = True
                continue
            if not row.cell:  # killed while its values were drawn
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                continue
            if row.owner is None:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
            else:
                self.lose(trial, f"last {owner.told(row.owner)}")
        return busy

    def lose(self, trial: FrozenTrial, last: str) -> None:
        """Set a trial waiting whose worker died over it; one over which too many died has failed.

        Args:
            trial: that was running.
            last: about the last of them, for the reason.
        """
        from optuna.trial import TrialState

        trial_id = trial._trial_id
        lost = trial.system_attrs.get(LOST, 0) + 1
        self.storage.set_trial_system_attr(trial_id, OWNER, None)
        self.storage.set_trial_system_attr(trial_id, LOST, lost)
        if lost >= MOST_LOST:
            self.tell(trial_id, Result("failed", reason=f"{lost} workers died over it, {last}"))
        else:
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def tell(self, trial_id: int, result: Result) -> None:
        """Write a running trial's result, its state last."""
        from optuna.trial import TrialState

        about: dict[str, Any] = {"status": result.status, "seconds": round(result.seconds, 3)}
        about |= {"worked": result.worked} if result.worked else {}
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
