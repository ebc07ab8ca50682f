"""What `run` does, from names to numbers: resolve, refuse, train and score, mirror, compare."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import config, data, display, environment, registry, signals, study
from glas_bench.commands import Answer
from glas_bench.errors import UsageError
from glas_bench.runs import table
from glas_bench.runs.cells import check_memory, check_results, run_cells
from glas_bench.runs.cost import core_hours
from glas_bench.runs.seed import checkpoint_seconds
from glas_bench.study import Cell
from glas_bench.text import count, duration
from glas_bench.tracking.mirror import Mirror

if TYPE_CHECKING:
    from glas_bench.data import Splits


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for."""

    variant: str
    baseline: str | None
    dataset: str | None
    data_file: Path | None
    preset: str | None
    seeds: str
    pairs: tuple[str, ...]  # of `--set`
    device: str
    precision: str | None
    threads: int | None
    fresh: bool
    mirror: bool
    log_model: bool
    results: Path

    def overrides(self) -> dict[str, Any]:
        """Return the settings by `--set`, `--dataset`, `--precision` and `--threads`.

        Raises:
            UsageError: a pair cannot be parsed, or a setting is given twice.
        """
        settings = config.parse_overrides(self.pairs)
        for key in ("precision", "threads", "dataset"):
            if (value := getattr(self, key)) is not None:
                if key in settings:
                    raise UsageError(f"--{key} and --set {key} set the same; give one of them")
                settings[key] = value
        if self.data_file is not None and (name := data.name_of(self.data_file)):
            settings.setdefault("dataset", name)
        return settings


def carry_out(request: Request) -> Answer:
    """Run what is missing of a variant, and of its baseline beside it.

    The exit code is that of a signal, 1 if no seed is complete, 3 if one is not or is not mirrored.

    Raises:
        UsageError: something of the request cannot be used; nothing was trained.
        DataError: the data cannot be had.
        RunError: a folder is locked, or cannot be written.
    """
    overrides, seeds = request.overrides(), config.parse_seeds(request.seeds)
    checkpoint_seconds()  # refused now rather than by every seed
    if request.log_model and not request.mirror:
        raise UsageError("--log-model logs to MLflow; leave --no-mirror out")
    variant = registry.find(request.variant)
    baseline = registry.find(request.baseline) if request.baseline else None
    device = environment.choose_device(request.device)
    cells = study.by_hand(
        variant,
        baseline,
        seeds,
        preset=request.preset,
        overrides={"precision": environment.default_precision(device), **overrides},
    )
    for cell in cells:
        environment.check_precision(cell.config.precision, device)
        check_memory(cell, device)
    first = cells[0].config
    splits = data.load(first.dataset, first.binarisation, request.data_file, progress=True)
    for cell in cells:
        check_memory(cell, device, splits.pixels)
    cells = [cell.on(splits) for cell in cells]
    done = [all(cell.finished(request.results).values()) for cell in cells]
    check_results(request.results, room=request.fresh or not all(done))
    if device == "cpu" and not all(done) and (text := _estimate(cells, splits, request)):
        print(text, file=sys.stderr, flush=True)
    outcomes, problem = _run_watched(cells, splits, device, request)
    documents = [table.document(cell, request.results, outcomes) for cell in cells]
    document, difference = documents[0] | {}, None
    if len(cells) == 2:
        difference = table.differences(cells[0], cells[1], request.results)
        document |= {"baseline": documents[1], "difference": difference}
    document["mirror_problem"] = problem
    records = [f"record: {each['folder']}" for each in documents]
    text = "\n".join([table.text(documents, difference), *records])
    complete = [row["status"] == "complete" for each in documents for row in each["seeds"]]
    states = [cell.folder(request.results).seed(s).status() for cell in cells for s in cell.seeds]
    tracebacks = [str(each["traceback"]) for each in states if "traceback" in each]  # failed ones
    if signals.requested():
        code = signals.exit_code()
    elif not any(complete):
        code = 1
    else:
        code = 0 if all(complete) and not problem else 3
    return Answer(text, document, code, [problem] if problem else [], tracebacks)


def _estimate(cells: list[Cell], splits: Splits, request: Request) -> str | None:
    """Return about how long the seeds that are left take; None of a variant that cannot step."""
    hours, seeds = 0.0, 0
    for cell in cells:
        finished = cell.finished(request.results).values()
        left = sum(request.fresh or not status for status in finished)
        with contextlib.suppress(Exception):  # its seeds report it
            hours += left * core_hours(cell, splits) if left else 0.0
            seeds += left
    if not seeds:
        return None
    threads = max(cell.config.threads for cell in cells)
    at_a_time = min(seeds, max(1, environment.cores() // threads))
    return (
        f"about {duration(3600 * hours / at_a_time)} for {count(seeds, 'seed')}, {at_a_time} at a "
        "time (a few steps were timed)"
    )


def _run_watched(
    cells: list[Cell], splits: Splits, device: str, request: Request
) -> tuple[dict[Any, Any], str | None]:
    """Run the cells with a display and a mirror; return outcomes and the mirror's problem."""
    with contextlib.ExitStack() as stack:
        mirror = None
        if request.mirror:
            folders = [cell.folder(request.results).path for cell in cells]
            mirror = stack.enter_context(Mirror(request.results, folders, models=request.log_model))
        with display.make_display() as shown:

            def watch(cell: Cell, seed: int, event: dict[str, Any]) -> None:
                shown.show(f"{cell.variant.name} seed {seed}", event)

            outcomes = run_cells(
                cells,
                splits,
                request.results,
                device=device,
                preset=request.preset or config.DEFAULT_PRESET,
                data_file=request.data_file,
                fresh=request.fresh,
                watch=watch,
            )
        if mirror is None:
            return outcomes, None
        report = mirror.finish()
    problems = [message for _, message in report.failures]
    return outcomes, problems[0] if problems else None
