"""Axes that are searched: TPE over ranges, or every choice once; then the best, reported anew.

A search is an optuna study of its own, `<study>/<cell>`, whose trials run on the tuning seeds and
are told the validation nll (nats per image, mean over those seeds). Every search gets as many
trials as the others. When its last is over, the best values become a trial of the study on its own
seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glas_bench.sweep.ledger import Ledger
from glas_bench.sweep.plan import Plan
from glas_bench.sweep.trials import ABOUT, BEGUN, Row, Task, begun, task_of
from glas_bench.text import seed_ranges, settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


class Searches:
    """The searches of a store's studies; all is called under its lock."""

    def __init__(self, store: Ledger) -> None:
        self.store = store

    def enumerate(self, plan: Plan, name: str) -> None:
        """Plan every combination where a search has choices alone."""
        from itertools import product

        space = {key: plan.study.space[key] for key in plan.items[name].searched}
        if any(each.choices is None for each in space.values()):
            return
        distributions, keys = self._choices(plan, name), list(space)
        have = [row.values for _, row in self._valid(plan, name)]
        every = product(*(distributions[key].choices for key in keys))
        for values in list(every)[: plan.study.trials]:
            params = dict(zip(keys, values, strict=True))
            if params not in have:
                self._add_trial(plan, name, params, distributions)

    def _add_trial(
        self, plan: Plan, name: str, params: dict[str, Any], distributions: dict[str, Any]
    ) -> None:
        item = plan.items[name]
        self.store.add(
            self.store.study_id(f"{plan.name}/{name}"),
            item,
            plan.study.tuning_seeds,
            settings=settings({**item.params, **params}),
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
                values = [cell.with_values({key: each}).config.flat()[key] for each in choices]
                found[key] = CategoricalDistribution(values)
        return found

    def next_trial(self, plan: Plan, name: str, most: int | None) -> tuple[Task | None, bool]:
        """Return a trial of a search to run, and whether one of it runs elsewhere.

        When the last is over, the best values become a trial of the study on its own seeds.
        """
        study_name = f"{plan.name}/{name}"
        rows = self.store.rows(study_name)
        for trial, row in rows:
            if self.store.is_own(row):
                return task_of(trial, row), False
        busy = self.store.revive(study_name, rows)
        rows = self._valid(plan, name)
        count = begun(rows)
        wanted = plan.study.trials
        if most is not None:
            wanted = min(wanted, most // len(plan.searches))
        for trial, row in rows:
            if row.state == "waiting" and (row.begun or count < wanted) and self.store.take(trial):
                return task_of(trial, row), False
        own = [row for _, row in rows if row.retry_of is None]
        if len(own) < plan.study.trials and count < wanted:
            return self._ask(plan, name), False
        if busy or sum(row.state not in ("waiting", "running") for row in own) < plan.study.trials:
            return None, busy
        self._report(plan, name, [row for _, row in rows])
        return self.store.claim_waiting(plan, None, ()), busy

    def _valid(self, plan: Plan, name: str) -> list[tuple[FrozenTrial, Row]]:
        """Return the trials of a search that are about what its cell now is."""
        key = plan.items[name].key
        found = self.store.rows(f"{plan.name}/{name}")
        return [(trial, row) for trial, row in found if row.cell and row.key == key]

    def _ask(self, plan: Plan, name: str) -> Task:
        """Return a trial with values drawn by TPE, which is told of running ones as bad ones."""
        import optuna

        study_name, item = f"{plan.name}/{name}", plan.items[name]
        drawn = len(self.store.rows(study_name))
        sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        study = optuna.load_study(
            study_name=study_name, storage=self.store.storage, sampler=sampler
        )
        with warnings.catch_warnings():  # the heartbeat is ours, and no Study.optimize beats
            warnings.simplefilter("ignore")
            trial = study.ask()
        values = self._draw(plan, name, trial)
        about = {"seeds": plan.study.tuning_seeds, "key": item.key, "protocol": item.protocol}
        self.store.storage.set_trial_system_attr(
            trial._trial_id, ABOUT, {**about, "is_search": True}
        )
        for key, value in (
            ("cell", item.cell),
            ("variant", item.variant),
            ("settings", settings({**item.params, **values})),
            ("seeds", seed_ranges(plan.study.tuning_seeds)),
        ):
            self.store.storage.set_trial_user_attr(trial._trial_id, key, value)
        self.store.storage.record_heartbeat(trial._trial_id)
        self.store.storage.set_trial_system_attr(trial._trial_id, BEGUN, True)
        self.store.sign(trial._trial_id)
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
        study_id, item = self.store.study_id(plan.name), plan.items[name]
        if not found:
            return
        best = min(found, key=lambda row: (row.value, row.number))
        settings, key, protocol = plan.reported(name, best.values)
        mine = [(trial, row) for trial, row in self.store.rows(plan.name) if row.cell == name]
        have: set[int] = set()
        for trial, row in mine:
            if (row.key, row.protocol, row.of) == (key, protocol, item.key) and not row.withdrawn:
                have |= set(row.seeds)
            elif row.state == "waiting":
                self.store.withdraw(trial._trial_id)
        if missing := [seed for seed in item.seeds if seed not in have]:
            about = {"key": key, "protocol": protocol, "settings": settings}
            self.store.add(study_id, item, missing, **about, values=best.values, of=item.key)
