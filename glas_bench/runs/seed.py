"""One seed from its first step to its scores, in this process; and as a process of its own.

Here are the clock, the checkpoints and the run folder, of which the training core knows nothing.
As a process (`python -m glas_bench.runs.seed`) it is a child of `processes`.
"""

from __future__ import annotations

import math
import os
import re
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import processes, signals
from glas_bench.config import RunConfig
from glas_bench.environment import describe, peak_bytes, prepare_torch
from glas_bench.errors import GlasBenchError, RunError, UsageError
from glas_bench.processes import OnEvent
from glas_bench.record import (
    KEPT_CHECKPOINTS,
    RunFolder,
    SeedFolder,
    finite,
    read_json,
    write_json,
)
from glas_bench.signals import Stopped
from glas_bench.text import byte_size

if TYPE_CHECKING:
    from glas_bench.core.train import Diverged, Training
    from glas_bench.data import Splits
    from glas_bench.evaluate import Scorer
    from glas_bench.study import Cell

LESS = "lower batch, steps, hidden, latent_size or sample_size"

TELL_EVERY = 0.2
"""Seconds between two events of progress."""


def checkpoint_seconds(device: str = "cpu") -> float:
    """Return the seconds between checkpoints; the last step of all is always one.

    By default 20, and 120 for the stacks of a GPU, whose checkpoints hold all seeds.

    Raises:
        UsageError: GLAS_BENCH_CHECKPOINT_SECONDS is set and is no number of seconds.
    """
    default = "120" if device.startswith("cuda") else "20"
    text = os.environ.get("GLAS_BENCH_CHECKPOINT_SECONDS", default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(
            f"GLAS_BENCH_CHECKPOINT_SECONDS={text}: give a number of seconds, 0 or more"
        )
    return seconds


def run_seed(cell: Cell, folder: SeedFolder, splits: Splits, tell: OnEvent) -> str:
    """Train and score one seed from wherever its folder left it; return its status.

    Args:
        cell: what to run; this process or its parent holds its lock.
        folder: the seed's folder.
        splits: the data, on the device to train on.
        tell: called with events for a display: `{"event": "train" | "epoch" | "score", ...}`.

    Raises:
        GlasBenchError: the folder cannot be written, for example.
    """
    prepare_torch(cell.config.threads, cell.config.precision)
    if status := folder.finished(cell.protocol):
        return status
    return open_seed(cell, folder, splits, tell).conclude()


def open_seed(cell: Cell, folder: SeedFolder, splits: Splits, tell: OnEvent) -> SeedRun:
    """Return a seed as its folder left it, ready to continue; arguments as in `run_seed`."""
    from glas_bench.core.train import Training

    folder.path.mkdir(parents=True, exist_ok=True)
    training = Training(cell.variant, cell.config, splits, folder.seed)
    of_cell = folder.path.parent / "environment.json"
    own = folder.path / "environment.json"
    if of_cell.is_file():
        here = describe(str(training.device))
        if read_json(of_cell) != here:
            write_json(own, here)
        else:
            own.unlink(missing_ok=True)
    return SeedRun(folder, training, tell)


class SeedRun:
    """A seed that is trained and scored by this process."""

    def __init__(self, folder: SeedFolder, training: Training, tell: OnEvent) -> None:
        self.folder = folder
        self.training = training
        self.tell = tell
        self.reported = self.saved = time.monotonic()
        self.every = checkpoint_seconds(str(training.device))
        self.last: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.diverged: Diverged | None = None
        self.reload()

    def reload(self) -> None:
        """Return to the last checkpoint, or to the start where there is none.

        Raises:
            RunError: there is one, and the disk or the memory does not let it be read.
        """
        from glas_bench.core.train import Training

        state = self.folder.load_checkpoint(self.training.device)
        if state is not None:
            self.training.load(state)
        elif self.training.at.step or self.training.at.batch:
            old = self.training
            self.training = Training(old.variant, old.config, old.splits, old.seed)
        if state is None and self.folder.checkpoints():
            self.note(f"seed {self.training.seed} starts over: none of its checkpoints is sound")
        self.folder.remove_leftovers()
        epochs = self.training.at.epoch
        rows = (state or {}).get("metrics")  # none in checkpoints of older versions
        rows = self.folder.metrics() if rows is None and epochs else rows or []
        self.rows = [row for row in rows if row["epoch"] <= epochs]
        self.folder.write_metrics(self.rows)

    def note(self, text: str) -> None:
        """Report something that is no progress."""
        self.tell({"event": "note", "text": text})

    def set_status(self, status: str, **about: Any) -> None:
        """Write the status, with position, speed, the most memory held, and parameters."""
        at, device = self.training.at, str(self.training.device)
        about = {"step": at.step, **about, "epoch": at.epoch, "seconds": round(at.seconds, 3)}
        about |= {"device": device, "images_per_second": self._speed()}
        about["peak_memory_bytes"] = peak_bytes(device)
        about["parameters"] = sum(each.numel() for each in self.training.model.parameters())
        self.folder.set_status(status, **about)

    def conclude(self) -> str:
        """Train what is left, score, and return the status."""
        from glas_bench.core.train import Diverged
        from glas_bench.evaluate import NotFinite

        try:
            self.train()
            self.score()
        except Diverged as diverged:
            self.set_status("diverged", step=diverged.step, reason=diverged.reason)
            return "diverged"
        except Stopped:
            self.set_status("interrupted")
            return "interrupted"
        except NotFinite as error:
            self.set_status("failed", reason=str(error))
            return "failed"
        self.set_status("complete", protocol=self.scorer().key)
        self.draw()
        return "complete"

    # ---- training

    def train(self) -> None:
        """Take all steps that are left.

        Raises:
            Diverged: a step is not finite; it may have been taken in a stack.
            Stopped: the process was asked to stop.
        """
        training = self.training
        if self.diverged is not None:
            raise self.diverged
        if training.finished:
            return
        self.set_status("training")
        while not training.finished:
            if signals.requested():
                self.checkpoint()
                raise Stopped
            started = time.perf_counter()
            training.step()
            training.at.seconds += time.perf_counter() - started
            if training.at.batch == training.steps_per_epoch:
                self.end_epoch()
            if training.finished or time.monotonic() - self.saved >= self.every:
                self.checkpoint()
            self.tell_training()

    def end_epoch(self, validated: tuple[str, float] | None = None) -> None:
        """Close an epoch and write its row; `validated` is its validation where it is known."""
        training = self.training
        phase, rate = training.phase.name, training.learning_rate
        kind, value = "none", math.nan  # a phase that generates nothing has nothing to validate
        if training.phase.generates:
            kind, value = validated or training.validate()
        means = training.end_epoch() | {"validation": value}
        row = {
            "epoch": training.at.epoch,
            "phase": phase,
            "step": training.at.step,
            **{name: finite(value) for name, value in means.items()},
            "validation_kind": kind,
            "learning_rate": rate,
            "seconds": round(training.at.seconds, 3),
            "images_per_second": self._speed(),
            "time": time.time(),
        }
        self.folder.append_metrics(row)
        self.rows.append(row)
        self.last = {"objective": row["objective"], "validation": row["validation"]}
        self.tell({"event": "epoch", "epochs": training.config.epochs, **row})

    def checkpoint(self) -> None:
        """Save the training; the last checkpoint holds only what scoring needs."""
        state = {**self.training.state(), "metrics": self.rows}
        if self.training.finished:
            state.pop("optimiser")
        keep = 1 if self.training.finished else KEPT_CHECKPOINTS
        self.folder.save_checkpoint(self.training.at.step, state, keep)
        self.saved = time.monotonic()

    def _speed(self) -> float:
        at = self.training.at
        return round(at.step * self.training.config.batch / max(at.seconds, 1e-9), 1)

    def tell_training(self, taken: int = 0) -> None:
        """Report the progress of training, now and then; `taken` steps are not counted yet."""
        training = self.training
        if not self._is_due(training.finished):
            return
        done = training.at.step + taken
        left = training.total_steps - done
        event = {
            "event": "train",
            "done": done,
            "total": training.total_steps,
            "epoch": min(training.at.epoch + 1, training.config.epochs),
            "epochs": training.config.epochs,
            "images_per_second": self._speed(),
            "seconds_left": left * training.at.seconds / max(training.at.step, 1),
        }
        self.tell(event | self.last)

    def _is_due(self, at_once: bool) -> bool:
        """Return whether to report progress, at once or every so often."""
        if due := at_once or time.monotonic() - self.reported >= TELL_EVERY:
            self.reported = time.monotonic()
        return due

    # ---- scoring

    def score(self) -> None:
        """Score the last epoch's parameters and store the numbers, last of all."""
        from glas_bench.evaluate import PRECISION, score_into

        prepare_torch(self.training.config.threads, PRECISION)
        self.set_status("scoring")
        score_into(self.folder, self.scorer(), self.tell_scoring, self.every)

    def scorer(self) -> Scorer:
        """Return the scorer of the parameters."""
        from glas_bench.evaluate import Scorer

        training = self.training
        given = training.model, training.config, training.splits, training.seed
        return Scorer(*given, tell=self.note)

    def tell_scoring(self, stage: str, done: int, total: int) -> None:
        """Report the progress of scoring, now and then.

        Raises:
            Stopped: the process was asked to stop.
        """
        signals.check()
        if self._is_due(done == total):
            self.tell({"event": "score", "stage": stage, "done": done, "total": total})

    def draw(self) -> None:
        """Draw samples beside the scores, where matplotlib is installed."""
        from glas_bench.runs.pictures import Subject, draw

        training = self.training
        title = f"{self.folder.path.parent.name}, seed {training.seed}"
        subject = Subject(title, training.model, training.config, training.splits, training.seed)
        try:
            draw(self.folder.path, subject)
        except ImportError:  # `samples RUN` draws them later, elsewhere
            pass
        except Exception as error:  # the numbers are there, and no picture is worth them
            self.note(f"seed {training.seed} has no pictures: {type(error).__name__}: {error}")


def _place(error: Exception) -> str:
    """Return ` (FILE, line N)` of the last line of a variant that an error went through."""
    package = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        own = path.is_relative_to(package) and package / "variants" not in path.parents
        if path.is_file() and not own and "-packages" not in path.parent.as_posix():
            return f" ({path}, line {frame.lineno})"
    return ""


def note_failure(folder: SeedFolder, error: Exception, variant: str) -> dict[str, Any]:
    """Write a failed seed's status, as far as the disk allows, and return it."""
    reason = str(error)
    if wanted := re.search(r"you tried to allocate (\d+) bytes", reason):
        reason = f"out of memory: {byte_size(int(wanted[1]))} more are not free; {LESS}"
    elif not isinstance(error, GlasBenchError):
        reason = (
            f"{type(error).__name__}: {error}{_place(error)}; `glas-bench check {variant}` may "
            "tell more"
        )
    failure = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
    try:
        folder.set_status(**failure)
    except GlasBenchError as second:
        failure["reason"] += f" (and its status could not be written: {second})"
    return failure


# --------------------------------------------------------------------------- as a process


@dataclass(frozen=True)
class SeedOrder:
    """All that a process needs to run one seed of a cell."""

    variant: str
    """A name, or the path of a file."""
    config: dict[str, Any]
    results: str
    key: str
    seed: int
    device: str
    data_file: str | None = None


def _serve(order: dict[str, Any], tell: OnEvent, _inbox: object) -> int:
    tell({"event": "end", **carry_out(SeedOrder(**order), tell)})
    return 0


def carry_out(order: SeedOrder, tell: OnEvent) -> dict[str, Any]:
    """Run a seed from names alone; return its status, with a reason where there is one."""
    from glas_bench import data, registry
    from glas_bench.study import Cell

    config = RunConfig(**order.config)
    folder = RunFolder(Path(order.results), config.variant, order.key).seed(order.seed)
    try:
        prepare_torch(config.threads, config.precision)
        data_file = Path(order.data_file) if order.data_file else None
        splits = data.load(config.dataset, config.binarisation, data_file)
        variant = registry.find(order.variant)
        cell = Cell(variant.name, variant, {}, config, (order.seed,)).on(splits)
        if cell.key != order.key:
            raise RunError(
                f"{variant.path}, the data or glas-bench changed since the command began; "
                "run it again"
            )
        return {"status": run_seed(cell, folder, splits.to(order.device), tell)}
    except Exception as error:  # whatever it is becomes this seed's status, not a lost traceback
        return note_failure(folder, error, order.variant)


if __name__ == "__main__":
    processes.serve(_serve)
