"""The seeds of a cell trained and refitted as one stack, in this process: the way of a GPU.

Each seed keeps its own folder, checkpoints, metrics, status and scores, in the formats of `seed`,
so it can be resumed alone and on another device. Seeds at different steps catch up: those furthest
behind train as a stack until they reach the next.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
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


def run_stacked(
    cell: Cell,
    folders: Sequence[SeedFolder],
    splits: Splits,
    tell: Callable[[int, dict[str, Any]], None],
    ways: Sequence[str] | None = None,
) -> dict[int, dict[str, Any]]:
    """Train and score seeds of one cell from wherever their folders left them.

    Args:
        cell: what to run; this process holds its lock.
        folders: of the seeds.
        splits: the data, on the device to train on.
        tell: called with a seed and an event, as in `seed.run_seed`.
        ways: ways to run a program, in the order they are tried; see `ops.programs`.

    Returns:
        The outcome of every seed: its status, with a reason where there is one.
    """
    prepare_torch(cell.config.threads, cell.config.precision)
    runs: list[SeedRun] = []
    outcomes: dict[int, dict[str, Any]] = {}

    @contextlib.contextmanager
    def failing(*folders: SeedFolder) -> Iterator[None]:
        """Let an error be the outcome of these seeds."""
        try:
            yield
        except Exception as error:
            for folder in folders:
                outcomes[folder.seed] = note_failure(folder, error, cell.variant.reference)

    for folder in folders:
        with failing(folder):
            if status := folder.finished(cell.protocol):
                outcomes[folder.seed] = {"status": status}
            else:
                heard = functools.partial(tell, folder.seed)
                runs.append(open_seed(cell, folder, splits, heard))
    # where it is stopped every seed has its checkpoint; `conclude` notes that it is interrupted
    with failing(*(run.folder for run in runs)), contextlib.suppress(Stopped):
        seeds = _Seeds(runs, ways)
        seeds.train()
        seeds.fit()
    for run in runs:
        if run.folder.seed not in outcomes:
            with failing(run.folder):
                outcomes[run.folder.seed] = {"status": run.conclude()}
    return outcomes


class _Seeds:
    """A cell's seeds, trained and fitted in groups that the device has room for."""

    def __init__(self, runs: list[SeedRun], ways: Sequence[str] | None) -> None:
        self.runs = runs
        self.ways = ways
        self.at_once = len(runs)
        self.noted: set[str] = set()

    def note(self, text: str) -> None:
        """Report something once, as a note of the first seed."""
        if text not in self.noted:
            self.noted.add(text)
            self.runs[0].note(text)

    def train(self) -> None:
        """Take all steps that are left.

        Raises:
            Stopped: the process was asked to stop; every seed has a checkpoint.
        """
        while active := [r for r in self.runs if r.diverged is None and not r.training.finished]:
            steps = {run.training.at.step for run in active}
            step, until = sorted({*steps, active[0].training.total_steps})[:2]
            behind = [run for run in active if run.training.at.step == step]
            train = functools.partial(self._train, until=until)
            self._attempt("training", behind[: self.at_once], train)

    def fit(self) -> None:
        """Fit the recognisers that the seeds are scored with.

        Raises:
            Stopped: the process was asked to stop.
        """
        waiting = [run for run in self.runs if run.diverged is None]
        with contextlib.suppress(torch.OutOfMemoryError):  # a seed alone raises it in `conclude`
            while group := waiting[: self.at_once]:
                if self._attempt("scoring", group, self._fit):
                    waiting = waiting[len(group) :]

    def _attempt(
        self, status: str, group: list[SeedRun], work: Callable[[list[SeedRun]], None]
    ) -> bool:
        """Do the work of a group; return whether the device had room for it.

        Where it had none, the seeds return to their checkpoints, and later groups are half as
        large.

        Raises:
            torch.OutOfMemoryError: the group is one seed.
        """
        gc.collect()  # stacks and their graphs refer to each other
        torch.cuda.empty_cache()
        for run in group:
            run.set_status(status)
        try:
            work(group)
            return True
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
        # outside of `except`, whose traceback holds what the next attempt releases
        self.at_once = len(group) // 2
        self.note(f"out of memory with {len(group)} seeds together: {self.at_once} at a time")
        for run in group:
            run.reload()
        return False

    def _fit(self, group: list[SeedRun]) -> None:
        evaluate.refit_stacked(
            [run.scorer() for run in group],
            [run.folder for run in group],
            group[0].tell_scoring,
            group[0].every,
            tell=self.note,
            ways=self.ways,
        )

    def _train(self, group: list[SeedRun], until: int) -> None:
        stack = _Stack(group, self.note, self.ways)
        while not stack.training.finished and stack.training.steps_done < until:
            if signals.requested():
                stack.checkpoint()
                raise Stopped
            stack.step()
        stack.collect()
        if not stack.training.finished:
            stack.checkpoint()


class _Stack:
    """A group of seeds that trains as one stack, its time divided among them."""

    def __init__(
        self, group: list[SeedRun], note: Callable[[str], None], ways: Sequence[str] | None
    ) -> None:
        self.group = group
        self.training = StackedTraining([run.training for run in group], tell=note, ways=ways)
        self.saved = time.monotonic()
        self.began = time.perf_counter()

    def step(self) -> None:
        """Take a step; close the epoch and save where they are due."""
        was_prepared = self.training.prepared
        self.training.step()
        if not was_prepared:  # compiling is no speed of training
            if self.training.device.type == "cuda":
                torch.cuda.synchronize(self.training.device)
            self.began = time.perf_counter()
        if self.training.epoch_done:
            self.collect()
            validated = self.training.validate() if self.training.phase.generates else None
            for i, run in self._sound():
                run.end_epoch(validated[i] if validated else None)
            self.training.go_on()
            self.began = time.perf_counter()
        if self.training.finished or time.monotonic() - self.saved >= self.group[0].every:
            self.checkpoint()
            self.saved = time.monotonic()
        for run in self.group:
            run.tell_training(self.training.taken)

    def collect(self) -> None:
        """Write what the device holds into the seeds: positions, time, and which diverged."""
        before = set(self.training.diverged)
        diverged = self.training.collect()
        spent = time.perf_counter() - self.began
        for run in self.group:
            run.training.at.seconds += spent / len(self.group)
        self.began = time.perf_counter()
        for i in set(diverged) - before:
            self.group[i].diverged = diverged[i]
            self.group[i].note(f"diverged at {diverged[i]}")

    def checkpoint(self) -> None:
        """Save every seed that has not diverged."""
        self.collect()
        for _, run in self._sound():
            run.checkpoint()

    def _sound(self) -> list[tuple[int, SeedRun]]:
        return [(i, run) for i, run in enumerate(self.group) if i not in self.training.diverged]
