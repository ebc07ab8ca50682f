"""One seed from its first step to its scores, in this process; and as a process of its own.

Here are the clock, the checkpoints and the run folder that the training core knows nothing of.
As a process (`python -m glas_bench.runs.worker`) it reads a job, one JSON line on stdin, tells its
progress in JSON lines on stdout, and ends when stdin closes: it cannot outlive its parent. Both
halves are here because the second is no more than the first behind two pipes.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from glas_bench import processes, signals
from glas_bench.config import RunConfig, config_key, protocol_key
from glas_bench.errors import GlasBenchError, RunError, UsageError

if TYPE_CHECKING:
    from glas_bench.core.train import Diverged, Training
    from glas_bench.data import Splits
    from glas_bench.evaluate import Scorer
    from glas_bench.record import SeedFolder
    from glas_bench.registry import Variant

Tell = Callable[[dict[str, Any]], None]

TELL_EVERY = 0.2
"""Seconds between signs of life."""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The process was asked to stop; all work is saved."""


@dataclass(frozen=True)
class Job:
    """All that a process needs to run one seed of a cell."""

    variant: str  # a name, or a path to a file
    config: dict[str, Any]
    results: str
    key: str
    seed: int
    device: str
    data_file: str | None = None


def checkpoint_seconds() -> float:
    """Return the seconds between checkpoints; the last step of all is always one.

    Raises:
        UsageError: GLAS_BENCH_CHECKPOINT_SECONDS is set and is no number of seconds.
    """
    text = os.environ.get("GLAS_BENCH_CHECKPOINT_SECONDS", "20")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(
            f"GLAS_BENCH_CHECKPOINT_SECONDS={text}: give a number of seconds, 0 or more"
        )
    return seconds


def run_seed(
    folder: SeedFolder, variant: Variant, config: RunConfig, splits: Splits, tell: Tell
) -> str:
    """Train and score one seed, going on from whatever its folder holds; return its status.

    Args:
        folder: the seed's folder; its cell's lock is held by this process or its parent.
        variant: as found by the registry.
        config: the cell.
        splits: the data, on the device to train on.
        tell: called with events for a display: `{"event": "train" | "epoch" | "score", ...}`.

    Raises:
        GlasBenchError: the folder cannot be written, or the like.
    """
    prepare_torch(config.threads, config.precision)
    if status := finished(folder, config):
        return status
    return conclude(sit_down(folder, variant, config, splits, tell))


def sit_down(
    folder: SeedFolder, variant: Variant, config: RunConfig, splits: Splits, tell: Tell
) -> Sitting:
    """Return a seed as its folder left it, ready to go on; arguments as in `run_seed`."""
    from glas_bench.core.train import Training

    folder.path.mkdir(parents=True, exist_ok=True)
    training = Training(variant, config, splits, folder.seed)
    _note_environment(folder, str(training.device))
    return Sitting(folder, training, tell)


def conclude(sitting: Sitting) -> str:
    """Train what is left of a seed, score it, and return its status."""
    from glas_bench import evaluate
    from glas_bench.core.train import Diverged

    try:
        sitting.train()
        sitting.score()
    except Diverged as diverged:
        sitting.set_status("diverged", step=diverged.step, reason=diverged.reason)
        return "diverged"
    except Stopped:
        sitting.set_status("interrupted")
        return "interrupted"
    except evaluate.NotFinite as error:
        sitting.set_status("failed", reason=str(error))
        return "failed"
    sitting.set_status("complete")
    sitting.draw()
    return "complete"


def finished(folder: SeedFolder, config: RunConfig) -> str | None:
    """Return the status of a seed that has nothing left to do, or None.

    A broken `status.json` or score is no finished work: the seed goes on from its checkpoint.
    """
    from glas_bench import evaluate

    try:
        status = folder.status()["status"]
        if status == "diverged":
            return "diverged"
        scores = folder.scores(protocol_key(evaluate.protocol(config)))
    except (RunError, KeyError):
        return None
    return "complete" if status == "complete" and scores is not None else None


def _note_environment(folder: SeedFolder, device: str) -> None:
    """Write what this seed is made with, if it is not what its cell began with."""
    from glas_bench import environment
    from glas_bench.record import read_json, write_json

    of_cell = folder.path.parent / "environment.json"
    if of_cell.is_file() and read_json(of_cell) != (here := environment.describe(device)):
        write_json(folder.path / "environment.json", here)


class Sitting:
    """What one process does for a seed between its start and its end."""

    def __init__(self, folder: SeedFolder, training: Training, tell: Tell) -> None:
        self.folder = folder
        self.training = training
        self.tell = tell
        self.told = self.saved = time.monotonic()
        self.every = checkpoint_seconds()
        self.last: dict[str, Any] = {}
        self.diverged: Diverged | None = None
        self.reload()

    def reload(self) -> None:
        """Go back to the last checkpoint, or to the start where there is none.

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
            text = f"seed {self.training.seed} starts over: none of its checkpoints is sound"
            self.tell({"event": "note", "text": text})
        self.folder.remove_leftovers()
        self.folder.truncate_metrics(self.training.at.epoch)

    def set_status(self, status: str, **about: Any) -> None:
        """Write where the seed stands, with its speed, memory at most held, and parameters."""
        from glas_bench.environment import peak_bytes

        at = self.training.at
        about = {"step": at.step, **about, "epoch": at.epoch, "seconds": round(at.seconds, 3)}
        about["device"] = str(self.training.device)
        about["images_per_second"] = self._speed()
        about["peak_memory_bytes"] = peak_bytes(str(self.training.device))
        about["parameters"] = sum(each.numel() for each in self.training.model.parameters())
        self.folder.set_status(status, **about)

    # ---- training

    def train(self) -> None:
        """Take all steps that are left.

        Raises:
            Diverged: a step is not finite; it may have been taken beside other seeds.
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
        """Validate and close a finished epoch, and write its row.

        Args:
            validated: what validation measures and its value, where it is known already.
        """
        training = self.training
        phase, rate = training.phase.name, training.learning_rate
        kind, value = "none", math.nan  # a phase that generates nothing has nothing to validate
        if training.phase.generates:
            kind, value = validated or training.validate()
        means = training.end_epoch()
        row = {
            "epoch": training.at.epoch,
            "phase": phase,
            "step": training.at.step,
            **{name: value if math.isfinite(value) else None for name, value in means.items()},
            "validation": value if math.isfinite(value) else None,
            "validation_kind": kind,
            "learning_rate": rate,
            "seconds": round(training.at.seconds, 3),
            "images_per_second": self._speed(),
            "time": time.time(),
        }
        self.folder.append_metrics(row)
        self.last = {"objective": row["objective"], "validation": row["validation"]}
        self.tell({"event": "epoch", "epochs": training.config.epochs, **row})

    def checkpoint(self) -> None:
        """Save where training stands; the last checkpoint holds what scoring needs and no more."""
        from glas_bench.record import KEPT_CHECKPOINTS

        state = self.training.state()
        if self.training.finished:
            state.pop("optimiser")
        keep = 1 if self.training.finished else KEPT_CHECKPOINTS
        self.folder.save_checkpoint(self.training.at.step, state, keep)
        self.saved = time.monotonic()

    def _speed(self) -> float:
        at = self.training.at
        return round(at.step * self.training.config.batch / max(at.seconds, 1e-9), 1)

    def tell_training(self, taken: int = 0) -> None:
        """Tell how far training is, now and then.

        Args:
            taken: steps taken on the device that the position does not count yet.
        """
        training = self.training
        if time.monotonic() - self.told < TELL_EVERY and not training.finished:
            return
        self.told = time.monotonic()
        done = training.at.step + taken
        left = training.total_steps - done
        self.tell(
            {
                "event": "train",
                "done": done,
                "total": training.total_steps,
                "epoch": min(training.at.epoch + 1, training.config.epochs),
                "epochs": training.config.epochs,
                "images_per_second": self._speed(),
                "seconds_left": left * training.at.seconds / max(training.at.step, 1),
                **self.last,
            }
        )

    # ---- scoring

    def score(self) -> None:
        """Score the last epoch's parameters and store the numbers, last of all."""
        from glas_bench import evaluate

        self.set_status("scoring")
        evaluate.score_into(self.folder, self.scorer(), self.tell_scoring, self.every)

    def scorer(self) -> Scorer:
        """Return what scores the parameters."""
        from glas_bench import evaluate

        training = self.training
        return evaluate.Scorer(training.model, training.config, training.splits, training.seed)

    def tell_scoring(self, stage: str, done: int, total: int) -> None:
        """Tell how far scoring is, now and then.

        Raises:
            Stopped: the process was asked to stop.
        """
        if signals.requested():
            raise Stopped
        if time.monotonic() - self.told >= TELL_EVERY or done == total:
            self.told = time.monotonic()
            self.tell({"event": "score", "stage": stage, "done": done, "total": total})

    def draw(self) -> None:
        """Draw samples beside the scores, where matplotlib is there to draw with."""
        from glas_bench.runs import pictures

        training = self.training
        title = f"{self.folder.path.parent.name}, seed {training.seed}"
        subject = pictures.Subject(
            title, training.model, training.config, training.splits, training.seed
        )
        try:
            pictures.draw(self.folder.path, subject)
        except ImportError:  # `samples RUN` draws them later, elsewhere
            pass
        except Exception as error:  # the numbers are there, and no picture is worth them
            text = f"seed {training.seed} has no pictures: {type(error).__name__}: {error}"
            self.tell({"event": "note", "text": text})


def prepare_torch(threads: int, precision: str = "fp32") -> None:
    """Set what the numbers and the speed of a process hang on."""
    import torch

    with warnings.catch_warnings():
        # deprecated, but torch's compiler reads it, and fails where the setting that takes its
        # place was used (pytorch issue 166387)
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.set_num_threads(threads)
    _limit_blas(threads)
    torch.set_flush_denormal(True)
    _keep_freed_memory()


def _limit_blas(threads: int) -> None:
    """Limit numpy's BLAS, which makes some of the products (see `ops.linear`)."""
    import numpy  # noqa: F401 - it must be there to be limited

    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # a bare machine, where it stays at the one that `__main__` sets
        return
    threadpool_limits(threads, user_api="blas")


def _keep_freed_memory() -> None:
    """Let a step take its tensors from what the last one freed, not anew from the system (glibc).

    Pages that are given back and taken again cost a few per cent of a step.
    """
    import ctypes

    trim_threshold, mmap_threshold, most = -1, -3, 2**30
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, most)
        libc.mallopt(mmap_threshold, most)


# --------------------------------------------------------------------------- as a process


def main() -> NoReturn:
    """Run the job given on stdin."""
    processes.serve(_serve)


def _serve(order: dict[str, Any], tell: Tell, inbox: object) -> int:
    del inbox
    tell({"event": "end", **_run_job(Job(**order), tell)})
    return 0


def _run_job(job: Job, tell: Tell) -> dict[str, Any]:
    from glas_bench import data, registry
    from glas_bench.record import RunFolder

    folder = RunFolder(Path(job.results), job.config["variant"], job.key).seed(job.seed)
    try:
        config = RunConfig(**job.config)
        prepare_torch(config.threads, config.precision)
        data_file = Path(job.data_file) if job.data_file else None
        splits = data.load(config.dataset, config.binarisation, data_file)
        variant = registry.find(job.variant)
        if config_key(config, variant.source_hash, splits.hash) != job.key:
            raise RunError(
                f"{variant.path}, the data or glas-bench has changed since the command was given; "
                "give it again"
            )
        status = run_seed(folder, variant, config, splits.to(job.device), tell)
        return {"status": status}
    except Exception as error:  # whatever it is becomes this seed's status, not a lost traceback
        return note_failure(folder, error, job.variant)


def note_failure(folder: SeedFolder, error: Exception, variant: str) -> dict[str, Any]:
    """Write a failed seed's status, as far as the disk allows, and return it."""
    reason = str(error)
    if not isinstance(error, GlasBenchError):
        reason = f"{type(error).__name__}: {error}; `glas-bench check {variant}` may tell more"
    failure = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
    try:
        folder.set_status(**failure)
    except GlasBenchError as second:
        failure["reason"] += f" (and its status could not be written: {second})"
    return failure


if __name__ == "__main__":
    main()
