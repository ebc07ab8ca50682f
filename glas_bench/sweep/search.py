"""Axes that are searched: TPE over ranges, or every choice once; then the best on other seeds.

A search is an optuna study of its own, `<study>/<cell>`, whose trials run on the tuning seeds and
whose value is the validation nll (nats per image, mean over those seeds). All searches of a study
get the same number of trials. After the last of them the best values become a trial of the study,
on the study's seeds.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from glas_bench.errors import UsageError
from glas_bench.sweep.database import Database
from glas_bench.sweep.plan import Plan
from glas_bench.sweep.trial import Trial, best, count_begun, search_name

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial


class Search:
    """The search of one cell's axes; all methods are called under the database's lock."""

    def __init__(self, database: Database, plan: Plan, cell: str) -> None:
        self.database = database
        self.plan = plan
        self.cell = plan.cells[cell]
        self.entry = plan.entries[cell]
        self.name = search_name(plan.name, cell)
        self.wanted = plan.study.trials
        self.space = {axis: plan.study.space[axis] for axis in self.cell.searched}

    def trials(self) -> list[Trial]:
        """Return the trials that are about what the cell now is."""
        trials = self.database.trials(self.name)
        return [each for each in trials if each.cell and each.key == self.entry["key"]]

    def check(self) -> None:
        """Refuse axes that trials of the search have drawn from in another way.

        Raises:
            UsageError: an axis is new, gone, or of another kind; nothing was changed.
        """
        from optuna.distributions import check_distribution_compatibility

        if not self.database.check_own(self.name):
            return
        axes, own = self._axes(), {trial.number for trial in self.trials()}
        for trial in self.database.trials(self.name):
            drawn = self.database.distributions(trial)
            changed = sorted(axes.keys() ^ drawn.keys()) if trial.number in own else []
            for axis in axes.keys() & drawn.keys():
                try:
                    check_distribution_compatibility(drawn[axis], axes[axis])
                except ValueError:
                    changed.append(axis)
            if changed:
                were, now = (some.get(changed[0], "not searched") for some in (drawn, axes))
                raise UsageError(
                    f"{self.name} has trials, and {changed[0]} was {were} where it is now {now}: "
                    "of a search with trials only low, high and the number of trials may change. "
                    "Keep its axes as they were, or give the study another name."
                )

    def diverged(self) -> list[Trial]:
        """Return the complete trials, where no trial at all has a value."""
        own = self.trials()
        none = all(trial.value is None for trial in own)
        return [trial for trial in own if none and trial.status == "complete"]

    def prepare(self) -> None:
        """Make the optuna study; where all axes are choices, add a trial for every combination."""
        self.database.make_study(self.name)
        if any(each.choices is None for each in self.space.values()):
            return
        axes = self._axes()
        tried = [trial.values for trial in self.trials()]
        every = itertools.product(*(each.choices for each in axes.values()))
        for combination in itertools.islice(every, self.wanted):
            values = dict(zip(self.space, combination, strict=True))
            if values not in tried:
                self.database.add(self._trial(values), axes)

    def next_trial(self, most: int | None) -> Trial | None:
        """Return a trial to run, or None where all have begun; `most` are of all searches."""
        trials = self.trials()
        begun, wanted = count_begun(trials), self.wanted
        if most is not None:
            wanted = min(wanted, most // len(self.plan.searches))
        for trial in trials:
            free = trial.begun or trial.retry_of is not None or begun < wanted
            if trial.status == "waiting" and free and (taken := self.database.take(trial)):
                return taken
        planned = sum(trial.retry_of is None for trial in trials)
        return self._ask() if planned < self.wanted and begun < wanted else None

    def add_best(self) -> None:
        """Once its trials are over, add the best values to the study, on the study's seeds."""
        trials = self.trials()
        first = [trial for trial in trials if trial.retry_of is None]
        if len(first) < self.wanted or any(t.status in ("waiting", "running") for t in trials):
            return
        if (winner := best(trials)) is None:
            return
        cell = self.plan.with_values(self.cell.name, winner.values)
        about = {"key": cell.key, "protocol": cell.protocol, "best_of": self.entry["key"]}
        own = []
        for trial in self.database.trials(self.plan.name):
            if trial.cell != cell.name or trial.status == "withdrawn":
                continue
            if all(getattr(trial, name) == value for name, value in about.items()):
                own.append(trial)
            elif trial.status == "waiting":
                self.database.withdraw(trial)
        seeds = self.entry["seeds"]
        new = Trial.planned(self.plan.name, self.entry, seeds, values=winner.values, **about)
        self.database.add_missing(new, own)

    def _trial(self, values: dict[str, Any], **about: Any) -> Trial:
        seeds = self.plan.study.tuning_seeds
        return Trial.planned(self.name, self.entry, seeds, values=values, is_search=True, **about)

    def _axes(self) -> dict[str, Any]:
        """Return the distribution of every axis, choices as a config has them."""
        from optuna import distributions as of

        axes: dict[str, Any] = {}
        for axis, one in self.space.items():
            if one.choices is not None:
                cells = [self.cell.with_values({axis: each}) for each in one.choices]
                choices = [cell.config.flat()[axis] for cell in cells]
                axes[axis] = of.CategoricalDistribution(choices)
            else:
                kind: Any = of.IntDistribution if one.whole else of.FloatDistribution
                axes[axis] = kind(one.low, one.high, log=one.log)
        return axes

    def _ask(self) -> Trial:
        """Return a trial with values drawn by TPE, counting running trials as bad ones."""
        import optuna

        drawn = len(self.database.trials(self.name))
        sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        storage = self.database.storage
        study = optuna.load_study(study_name=self.name, storage=storage, sampler=sampler)
        with warnings.catch_warnings():  # the heartbeat is ours, and no Study.optimize beats
            warnings.simplefilter("ignore")
            asked = study.ask()
        trial = self._trial(self._draw(asked), id=asked._trial_id, number=asked.number)
        return self.database.adopt(trial)

    def _draw(self, trial: OptunaTrial) -> dict[str, Any]:
        """Return values drawn for all axes, those of the free ones before those `at_most` them."""
        axes = self._axes()
        values: dict[str, Any] = {}
        for axis, one in sorted(self.space.items(), key=lambda each: bool(each[1].at_most)):
            if one.choices is not None:
                values[axis] = trial.suggest_categorical(axis, axes[axis].choices)
                continue
            high = min(axes[axis].high, values.get(str(one.at_most), axes[axis].high))
            suggest: Any = trial.suggest_int if one.whole else trial.suggest_float
            high = int(high) if one.whole else high
            values[axis] = suggest(axis, axes[axis].low, high, log=one.log)
        return values
