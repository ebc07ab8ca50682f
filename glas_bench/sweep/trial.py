"""A trial: one row of the queue, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glas_bench.text import setting, settings

NUMBERS = ("nll", "elbo", "iw", "refit_iw", "objective")
"""What a trial keeps of its scores: means over its seeds, nats per image."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A cell, the seeds to run of it, and how far that is."""

    study: str
    """The optuna study: the study's own name, or `search_name` of a search."""
    cell: str
    variant: str
    settings: str
    """As text: `key=value key=value`."""
    key: str | None
    """config_key; of a search's trial, at the defaults of the searched axes."""
    protocol: str | None
    seeds: list[int]
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the searched axes."""
    params: dict[str, Any] = field(default_factory=dict)
    """What a dashboard shows and ranks: the variant and its settings; of a search its values."""
    is_search: bool = False
    retry_of: int | None = None
    """Number of the trial whose place it takes."""
    best_of: str | None = None
    """With a search's best values: the config_key of the cell that was searched."""

    id: int = -1
    """Optuna's, unique in the database; -1 until it is stored."""
    number: int = -1
    """Its place in the optuna study."""
    status: str = "waiting"
    """waiting, running, complete, failed, pruned, not_applicable or withdrawn."""
    begun: bool = False
    """Whether it ever ran."""
    lost: int = 0
    """Workers that died over it."""
    owner: dict[str, Any] | None = None
    """The `worker_id` of the process that runs it."""

    value: float | None = None
    """Validation nll, nats per image, mean over the seeds; None where no seed has a number."""
    reason: str | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    """Status by seed."""
    numbers: dict[str, float] = field(default_factory=dict)
    """By name, of `NUMBERS`."""
    curve: dict[int, float] = field(default_factory=dict)
    """Validation by epoch, nats per image, mean over the seeds."""
    seconds: float = 0.0
    """How long it took the worker that ended it."""
    worked: int = 0
    """Seeds that this worker had to run: the others were finished before."""

    @classmethod
    def planned(
        cls, study: str, entry: Mapping[str, Any], seeds: Sequence[int], **more: Any
    ) -> Trial:
        """Return a trial of a planned cell that waits, or is over where the cell cannot run.

        `study` is the optuna study that it goes to, `entry` the cell as the plan's document has it.
        """
        more = {"key": entry["key"], "protocol": entry["protocol"], **more}
        values = more.get("values", {})
        params = values
        if not more.get("is_search"):
            known = {"variant": entry["variant"], **entry["params"], **values}
            params = {k: v if isinstance(v, int | float) else setting(v) for k, v in known.items()}
        return cls(
            study=study,
            cell=entry["cell"],
            variant=entry["variant"],
            settings=settings({**entry["params"], **values}),
            params=params,
            seeds=list(seeds),
            status="not_applicable" if entry["not_applicable"] else "waiting",
            reason=entry["not_applicable"],
            **more,
        )

    @property
    def name(self) -> str:
        """Its name in what a user sees."""
        return f"{self.cell} trial {self.number}" if self.is_search else self.cell

    def belongs(self, entry: Mapping[str, Any]) -> bool:
        """Return whether it is about what a planned cell now is."""
        if self.status == "withdrawn" or self.cell != entry["cell"]:
            return False
        if entry["searched"]:
            return bool(self.best_of == entry["key"])
        return (self.key, self.protocol) == (entry["key"], entry["protocol"])


@dataclass
class Progress:
    """How far a running trial is, shared with the thread that records it."""

    seeds: Sequence[int]
    curve: dict[int, float] = field(default_factory=dict)
    """As of `Trial`."""
    pruned: bool = False
    """Whether it is to end at its next step."""
    _values: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, seed: int, epoch: int, validation: float | None) -> None:
        """Note the validation of a seed's epoch, nats per image."""
        if validation is not None:
            values = self._values.setdefault(epoch, {})
            values[seed] = validation
            if len(values) == len(self.seeds):
                self.curve[epoch] = sum(values.values()) / len(values)


def search_name(study: str, cell: str) -> str:
    """Return the name of the optuna study that searches a cell's axes."""
    return f"{study}/{cell}"


def standing(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials whose place no other has taken."""
    repeated = {trial.retry_of for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def best(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial with the least value, the first of several; None where none has one."""
    ranked = [(trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    return min(ranked, key=lambda each: each[:2])[2] if ranked else None


def count_begun(trials: Iterable[Trial]) -> int:
    """Return how many trials ever began; a repeated one counts once."""
    return sum(trial.begun for trial in trials if trial.retry_of is None)
