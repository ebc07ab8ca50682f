"""Running cells: their seeds as one stack, in this process, or side by side.

On a GPU the seeds of a cell train in the command's own process, as one stack. On a CPU a single
seed runs in that process too; several seeds, or a cell beside its baseline, run each in a child
process with its own threads, as many at a time as there are processors. Children inherit the lock
of their cell's folder, which is free when the last of them has ended.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import contract, environment, signals
from glas_bench.config import CORE_VERSION, check_settings, differing
from glas_bench.data import info
from glas_bench.data.parse import PIXELS
from glas_bench.errors import GlasBenchError, RunError, UsageError
from glas_bench.processes import Order, Pool
from glas_bench.record import write_json
from glas_bench.runs.seed import LESS, SeedOrder, note_failure, run_seed
from glas_bench.text import byte_size

if TYPE_CHECKING:
    from glas_bench.data import Splits
    from glas_bench.study import Cell

Watch = Callable[["Cell", int, dict[str, Any]], None]
"""Called with a cell, a seed and an event of it."""

Outcomes = dict[tuple[str, int], dict[str, Any]]
"""By (config_key, seed): the status, with a reason where there is one."""


def check_results(results: Path, *, room: bool = True) -> None:
    """Refuse, before any training, a results folder that cannot be written or has no room.

    Without `room` nothing is to be trained, and a full disk does not matter.

    Raises:
        RunError: with what to do.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results) as probe:
            probe.write(b"\0" * 4096 * room)
            probe.flush()
    except OSError as error:
        raise RunError(
            f"cannot write into {results}: {error.strerror or error}. "
            "Choose another folder with --results or GLAS_BENCH_RESULTS."
        ) from error
    free = shutil.disk_usage(results).free
    if room and free < (needed := 200 * 2**20):
        raise RunError(
            f"only {free / 2**20:.0f} MiB are free below {results} and a run wants "
            f"{needed / 2**20:.0f} MiB. Make room, or choose another folder with --results."
        )


def check_memory(cell: Cell, device: str, pixels: int = PIXELS) -> None:
    """Refuse, before anything is allocated, a model that this machine cannot train.

    `pixels` is P, known of a user's own images once they are read. Counted are its parameters with
    their gradients and Adam's two moments, and the states and draws that a step keeps: less than
    training takes.

    Raises:
        UsageError: these alone take more than its memory, or the variant refuses the size.
    """
    import torch

    settings = check_settings(cell.variant, cell.config.settings)
    try:
        with torch.device("meta"):
            model = cell.variant.cls(settings, pixels, info(cell.config.dataset).classes)
    except ValueError as error:  # it says what it needs, square images for instance
        raise UsageError(f"{cell.name}: {error}") from error
    except Exception:  # a variant that computes with numbers as it is made; training says more
        return
    sizes = cell.config.flat()
    states = sizes.get("hidden", 0) + sizes.get("sample_size", 0)
    kept = 2 * cell.config.batch * sizes.get("steps", 1) * states
    needed = 4 * (4 * sum(each.numel() for each in model.parameters()) + kept)
    if needed > (most := environment.memory_bytes(device)):
        raise UsageError(
            f"{cell.name}: a step of training takes at least {byte_size(needed)} of memory, and "
            f"{device} has {byte_size(most)}; {LESS}"
        )


def run_cells(
    cells: Sequence[Cell],
    splits: Splits,
    results: Path,
    *,
    device: str,
    preset: str | None,
    data_file: Path | None = None,
    fresh: bool = False,
    watch: Watch = lambda cell, seed, event: None,
) -> Outcomes:
    """Train and score what is missing of the cells' seeds.

    Args:
        cells: all on the same data.
        splits: that data, on the CPU.
        results: where the run folders are.
        device: where to train.
        preset: for the record.
        data_file: where the data came from, if it is not a published file.
        fresh: start over; what these seeds had goes when the new results are complete.
        watch: called with every event.

    Returns:
        The outcome of every seed, `interrupted` if the process was asked to stop before it began.

    Raises:
        RunError: another process works in a folder, or a folder cannot be written.
    """
    with contextlib.ExitStack() as stack, signals.graceful():
        locks = {cell.key: stack.enter_context(cell.folder(results).locked()) for cell in cells}
        data_file = data_file.resolve() if data_file else None
        run = _Run(splits, results, device, preset, data_file, watch)
        left: list[Cell] = []
        for cell in cells:
            run.describe(cell)
            cell.folder(results).settle()
            for seed in cell.seeds if fresh else ():
                cell.folder(results).set_aside(seed)
            finished = cell.finished(results)
            for seed, status in finished.items():
                if status:
                    run.end(cell, seed, {"status": status})
            if rest := [seed for seed, status in finished.items() if not status]:
                left.append(cell.with_seeds(rest))
        if device.startswith("cuda"):
            run.stacked(left)
        elif sum(len(cell.seeds) for cell in left) == 1:
            run.here(left[0])
        else:
            run.side_by_side(left, locks)
        for cell in cells:
            for seed in cell.folder(results).settle():
                outcome = run.outcomes[cell.key, seed]
                why = outcome.get("reason", "asked to stop")
                outcome["reason"] = f"{why}; the results from before --fresh are kept"
        return run.outcomes


@dataclass
class _Run:
    """Runs seeds, and keeps their outcomes."""

    splits: Splits
    results: Path
    device: str
    preset: str | None
    data_file: Path | None
    watch: Watch
    outcomes: Outcomes = field(default_factory=dict)

    def describe(self, cell: Cell) -> None:
        """Write what the cell is and is made with, where its folder does not say so yet."""
        variant, splits = cell.variant, self.splits
        settings = check_settings(variant, cell.config.settings)
        bound = contract.bound(variant.cls, settings, splits.likelihood.name)
        precision = environment.default_precision(self.device)
        about = {
            "variant": variant.name,
            "reference": variant.reference,
            "data_file": str(self.data_file) if self.data_file else None,
            "source_hash": variant.source_hash,
            "data_hash": splits.hash,
            "data_origin": splits.origin,
            "image_shape": list(splits.image_shape),
            "core_version": CORE_VERSION,
            "preset": self.preset,
            "differs": differing(variant, cell.config, self.preset, precision),
            "bounds_nll": bound.holds,
            "bound_reason": bound.reason,
        }
        folder = cell.folder(self.results)
        folder.prepare(cell.config, about)
        if not folder.is_sound():
            write_json(folder.path / "environment.json", environment.describe(self.device))

    def end(self, cell: Cell, seed: int, outcome: dict[str, Any]) -> None:
        """Note and report the outcome of a seed."""
        self.outcomes[cell.key, seed] = outcome
        self.watch(cell, seed, {"event": "end", **outcome})

    def here(self, cell: Cell) -> None:
        """Run a cell's only seed in this process."""
        (seed,) = cell.seeds
        folder, splits = cell.folder(self.results).seed(seed), self.splits.to(self.device)
        try:
            status = run_seed(cell, folder, splits, lambda event: self.watch(cell, seed, event))
            outcome: dict[str, Any] = {"status": status}
        except Exception as error:  # a seed's failure is a status, as in a process of its own
            outcome = note_failure(folder, error, cell.variant.reference)
        self.end(cell, seed, outcome)

    def stacked(self, cells: Sequence[Cell]) -> None:
        """Run the seeds of each cell in this process, as one stack."""
        from glas_bench.runs.stacked_seeds import run_stacked

        splits = self.splits.to(self.device)
        for cell in cells:
            folders = [cell.folder(self.results).seed(seed) for seed in cell.seeds]
            tell = functools.partial(self.watch, cell)
            for seed, outcome in run_stacked(cell, folders, splits, tell).items():
                self.end(cell, seed, outcome)

    def side_by_side(self, cells: Sequence[Cell], locks: dict[str, int]) -> None:
        """Run every seed in a child process."""
        by_key = {cell.key: cell for cell in cells}

        def tell(place: tuple[str, int], event: dict[str, Any]) -> None:
            if event["event"] == "end":
                self.outcomes[place] = {name: event[name] for name in event if name != "event"}
            self.watch(by_key[place[0]], place[1], event)

        def ended(place: tuple[str, int], how: str | None) -> None:
            if place in self.outcomes:
                return
            outcome = {"status": "interrupted"}
            if how is not None:
                outcome = {"status": "failed", "reason": f"its process {how}"}
            cell = by_key[place[0]]
            with contextlib.suppress(GlasBenchError):
                cell.folder(self.results).seed(place[1]).set_status(**outcome)
            self.end(cell, place[1], outcome)

        orders = {}
        for cell in cells:
            for seed in cell.seeds:
                order = SeedOrder(
                    variant=cell.variant.reference,
                    config=cell.config.model_dump(),
                    results=str(self.results.resolve()),
                    key=cell.key,
                    seed=seed,
                    device=self.device,
                    data_file=str(self.data_file) if self.data_file else None,
                )
                orders[cell.key, seed] = Order(
                    "glas_bench.runs.seed", asdict(order), pass_fds=[locks[cell.key]]
                )
        threads = max((cell.config.threads for cell in cells), default=1)
        for place in Pool(tell, ended).run(orders, max(1, environment.cores() // threads)):
            self.outcomes[place] = {"status": "interrupted", "reason": "not begun"}
