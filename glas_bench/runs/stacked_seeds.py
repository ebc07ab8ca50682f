"""The seeds of a cell in this process, trained and refitted as one stack: what a GPU is given.

Each seed keeps its own folder, checkpoints, metrics, status and scores, in the formats of `seed`,
so that it can be resumed alone, and on another device. Seeds that stand apart catch up: those
furthest behind train together until they reach the next.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glas_bench import evaluate, signals
from glas_bench.core.stacked import StackedTraining
from glas_bench.data import Splits
from glas_bench.environment import prepare_torch
from glas_bench.record import SeedFolder
from glas_bench.runs.seed import SeedRun, note_failure, open_seed
from glas_bench.signals import Stopped
from glas_bench.study import Cell

Tell = Callable[[int, dict[str, Any]], None]
"""Called with a seed and an event of `seed`."""


def run_stacked(
    cell: Cell,
    folders: Sequence[SeedFolder],
    splits: Splits,
    tell: Tell,
    ways: Sequence[str] | None = None,
) -> dict[int, dict[str, Any]]:
    """Train and score seeds of one cell, going on from whatever their folders hold.

    Args:
        cell: what to run.
        folders: of the seeds; their cell's lock is held by this process.
        splits: the data, on the device to train on.
        tell: told of every event, as in `seed.run_seed`, and of notes `{"event": "note", ...}`.
        ways: what is tried, see `ops.programs`.

    Returns:
        For every seed its status, with a reason where there is one.
    """
    prepare_torch(cell.config.threads, cell.config.precision)
    sittings: dict[int, SeedRun] = {}
    outcomes: dict[int, dict[str, Any]] = {}
    for folder in folders:
        seed = folder.seed
        if status := folder.finished(cell.protocol):
            outcomes[seed] = {"status": status}
            continue
        try:
            heard = functools.partial(tell, seed)
            sittings[seed] = open_seed(cell, folder, splits, heard)
        except Exception as error:
            outcomes[seed] = note_failure(folder, error, cell.variant.reference)
    try:
        seeds = _Seeds(list(sittings.values()), ways)
        seeds.train()
        seeds.fit()
    except Stopped:
        pass  # every sitting has its checkpoint; `conclude` says so
    except Exception as error:
        return outcomes | {
            seed: note_failure(one.folder, error, cell.variant.reference)
            for seed, one in sittings.items()
        }
    for seed, sitting in sittings.items():
        try:
            outcomes[seed] = {"status": sitting.conclude()}
        except Exception as error:  # one seed's failure is its own
            outcomes[seed] = note_failure(sitting.folder, error, cell.variant.reference)
    return outcomes


class _Seeds:
    """A cell's seeds and the stacks that they train in."""

    def __init__(self, sittings: list[SeedRun], ways: Sequence[str] | None) -> None:
        self.sittings = sittings
        self.ways = ways
        self.at_once = len(sittings)
        self.said: set[str] = set()

    def note(self, text: str) -> None:
        """Tell something once, of the first seed."""
        if text not in self.said:
            self.said.add(text)
            self.sittings[0].tell({"event": "note", "text": text})

    def train(self) -> None:
        """Take all steps that are left.

        Raises:
            Stopped: the process was asked to stop; every seed has a checkpoint.
        """
        while active := [one for one in self.sittings if _goes_on(one)]:
            steps = {one.training.at.step for one in active}
            step, until = sorted({*steps, active[0].training.total_steps})[:2]
            behind = [one for one in active if one.training.at.step == step]
            train = functools.partial(self._train, until=until)
            self._attempt("training", behind[: self.at_once], train)

    def fit(self) -> None:
        """Fit the recognisers that the seeds are scored with.

        Raises:
            Stopped: the process was asked to stop.
        """
        waiting = [one for one in self.sittings if one.diverged is None]
        with contextlib.suppress(torch.OutOfMemoryError):  # a seed alone raises it in `conclude`
            while group := waiting[: self.at_once]:
                if self._attempt("scoring", group, self._fit):
                    waiting = waiting[len(group) :]

    def _attempt(
        self, status: str, group: list[SeedRun], work: Callable[[list[SeedRun]], None]
    ) -> bool:
        """Do the work of a group; return whether the device had room for it.

        Where it had none, the seeds go back to their checkpoints, and later groups are half as
        large.

        Raises:
            torch.OutOfMemoryError: the group is one seed.
        """
        gc.collect()  # stacks and their graphs refer to each other
        torch.cuda.empty_cache()
        for one in group:
            one.set_status(status)
        try:
            work(group)
            return True
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
        # out of `except`, whose traceback holds what the next attempt releases
        self.at_once = len(group) // 2
        self.note(f"out of memory with {len(group)} seeds together: {self.at_once} at a time")
        for one in group:
            one.reload()
        return False

    def _fit(self, group: list[SeedRun]) -> None:
        evaluate.refit_stacked(
            [one.scorer() for one in group],
            [one.folder for one in group],
            group[0].tell_scoring,
            group[0].every,
            tell=self.note,
            ways=self.ways,
        )

    def _train(self, group: list[SeedRun], until: int) -> None:
        trainings = [one.training for one in group]
        stack = StackedTraining(trainings, tell=self.note, ways=self.ways)
        clock = _Clock(group)
        saved = time.monotonic()
        while not stack.finished and stack.steps_done < until:
            if signals.requested():
                _collect(stack, group, clock)
                _checkpoint(stack, group)
                raise Stopped
            stack.step()
            if stack.epoch_done:
                _collect(stack, group, clock)
                found = stack.validate() if stack.phase.generates else None
                for i, one in enumerate(group):
                    if i not in stack.diverged:
                        one.end_epoch(found[i] if found else None)
                stack.go_on()
                clock.start()
            if stack.finished or time.monotonic() - saved >= group[0].every:
                _collect(stack, group, clock)
                _checkpoint(stack, group)
                saved = time.monotonic()
            for one in group:
                one.tell_training(stack.taken)
        _collect(stack, group, clock)
        if not stack.finished:
            _checkpoint(stack, group)


class _Clock:
    """Time that a group has spent in training steps, shared out among its seeds."""

    def __init__(self, group: list[SeedRun]) -> None:
        self.group = group
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.began = time.perf_counter()

    def share(self) -> None:
        """Give every seed its part of the time since the last call."""
        spent = time.perf_counter() - self.began
        for one in self.group:
            one.training.at.seconds += spent / len(self.group)
        self.start()


def _collect(stack: StackedTraining, group: list[SeedRun], clock: _Clock) -> None:
    before = set(stack.diverged)
    found = stack.collect()
    clock.share()
    for i in set(found) - before:
        group[i].diverged = found[i]
        group[i].tell({"event": "note", "text": f"diverged at {found[i]}"})


def _checkpoint(stack: StackedTraining, group: list[SeedRun]) -> None:
    for i, one in enumerate(group):
        if i not in stack.diverged:
            one.checkpoint()


def _goes_on(sitting: SeedRun) -> bool:
    return sitting.diverged is None and not sitting.training.finished
