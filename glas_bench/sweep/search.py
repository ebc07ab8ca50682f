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

from glas_bench.sweep.database import Database
from glas_bench.sweep.plan import Plan
from glas_bench.sweep.trial import Trial, count_begun, search_name

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution
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

    def prepare(self) -> None:
        """Make the optuna study; where all axes are choices, add a trial for every combination."""
        self.database.make_study(self.name)
        choices = self._choices()
        if len(choices) < len(self.space):
            return
        tried = [trial.values for trial in self.trials()]
        every = itertools.product(*(choices[axis].choices for axis in self.space))
        for combination in itertools.islice(every, self.wanted):
            values = dict(zip(self.space, combination, strict=True))
            if values not in tried:
                self.database.add(self._trial(values), choices)

    def next_trial(self, most: int | None) -> Trial | None:
        """Return a trial to run, or None where all have begun; `most` are of all searches."""
        trials = self.trials()
        begun, wanted = count_begun(trials), self.wanted
        if most is not None:
            wanted = min(wanted, most // len(self.plan.searches))
        for trial in trials:
            free = trial.status == "waiting" and (trial.begun or begun < wanted)
            if free and (taken := self.database.take(trial)):
                return taken
        planned = sum(trial.retry_of is None for trial in trials)
        return self._ask() if planned < self.wanted and begun < wanted else None

    def add_best(self) -> None:
        """Once its trials are over, add the best values to the study, on the study's seeds."""
        trials = self.trials()
        first = [trial for trial in trials if trial.retry_of is None]
        if len(first) < self.wanted or any(t.status in ("waiting", "running") for t in trials):
            return
        done = [trial for trial in trials if trial.status == "complete"]
        ranked = [(t.value, t.number, t.values) for t in done if t.value is not None]
        if not ranked:
            return
        values = min(ranked, key=lambda each: each[:2])[2]
        best = self.plan.with_values(self.cell.name, values)
        about = {"key": best.key, "protocol": best.protocol, "best_of": self.entry["key"]}
        own = []
        for trial in self.database.trials(self.plan.name):
            if trial.cell != best.name or trial.status == "withdrawn":
                continue
            if all(getattr(trial, name) == value for name, value in about.items()):
                own.append(trial)
            elif trial.status == "waiting":
                self.database.withdraw(trial)
        seeds = self.entry["seeds"]
        new = Trial.planned(self.plan.name, self.entry, seeds, values=values, **about)
        self.database.add_missing(new, own)

    def _trial(self, values: dict[str, Any], **about: Any) -> Trial:
        seeds = self.plan.study.tuning_seeds
        return Trial.planned(self.name, self.entry, seeds, values=values, is_search=True, **about)

    def _choices(self) -> dict[str, CategoricalDistribution]:
        """Return the distributions of axes that are choices, with values as a config has them."""
        from optuna.distributions import CategoricalDistribution

        return {
            axis: CategoricalDistribution(
                [self.cell.with_values({axis: each}).config.flat()[axis] for each in choices]
            )
            for axis, dimension in self.space.items()
            if (choices := dimension.choices) is not None
        }

    def _ask(self) -> Trial:
        """Return a trial with values drawn by TPE, counting running trials as bad ones."""
        import optuna

        drawn = len(self.database.trials(self.name))
        sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        study = optuna.load_study(
            study_name=self.name, storage=self.database.storage, sampler=sampler
        )
        with warnings.catch_warnings():  # the heartbeat is ours, and no Study.optimize beats
            warnings.simplefilter("ignore")
            asked = study.ask()
        trial = self._trial(self._draw(asked), id=asked._trial_id, number=asked.number)
        return self.database.adopt(trial)

    def _draw(self, trial: OptunaTrial) -> dict[str, Any]:
        """Return values drawn for all axes, those of the free ones before those `at_most` them."""
        choices = self._choices()
        values: dict[str, Any] = {}
        for axis, dimension in sorted(self.space.items(), key=lambda each: bool(each[1].at_most)):
            if axis in choices:
                values[axis] = trial.suggest_categorical(axis, choices[axis].choices)
                continue
            assert dimension.low is not None
            assert dimension.high is not None
            high = min(dimension.high, values.get(str(dimension.at_most), dimension.high))
            if dimension.whole:
                low = int(dimension.low)
                values[axis] = trial.suggest_int(axis, low, int(high), log=dimension.log)
            else:
                values[axis] = trial.suggest_float(axis, dimension.low, high, log=dimension.log)
        return values
