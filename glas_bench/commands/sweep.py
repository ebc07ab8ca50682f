"""What `sweep` and `status` do, from their arguments to what they print and exit with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glas_bench import config, environment, signals, study
from glas_bench.commands import Answer
from glas_bench.errors import AlreadyRunning, RunError, UsageError, unknown
from glas_bench.processes import OnEvent
from glas_bench.record import note_study
from glas_bench.runs.cells import check_results
from glas_bench.runs.seed import checkpoint_seconds
from glas_bench.study import Cell, Study
from glas_bench.sweep import storage
from glas_bench.sweep.database import Database, StorageDown
from glas_bench.sweep.plan import Document, Plan, digest, plan_document
from glas_bench.sweep.queue import Queue
from glas_bench.sweep.status import seconds_left, skipped_line, status_document, table
from glas_bench.sweep.trial import Trial
from glas_bench.sweep.view import View, make_view
from glas_bench.sweep.worker import Job, finished, work
from glas_bench.sweep.workers import default_workers, run_workers
from glas_bench.text import seed_ranges
from glas_bench.tracking.address import sqlite_file
from glas_bench.tracking.mirror import Mirror

REFRESH = 2.0
"""Seconds after which the status of all cells is read again."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for."""

    study: str
    preset: str | None
    dataset: str | None
    storage: str | None
    results: Path
    seeds: list[int] | None = None
    workers: int | None = None
    most: int | None = None
    """Trials of the study's whole life."""
    extend: bool = False
    retry_failed: bool = False
    device: str = "cpu"
    mirror: bool = False


def request(
    *, seeds: str | None, max_trials: int | None, retry: str | None, **given: Any
) -> Request:
    """Return the request of a command line; `given` are further fields of it.

    Raises:
        UsageError: the seeds cannot be parsed.
    """
    return Request(
        seeds=None if seeds is None else config.parse_seeds(seeds),
        most=max_trials,
        retry_failed=retry == "failed",
        **given,
    )


# --------------------------------------------------------------------------- sweep


def carry_out(request: Request) -> Answer:
    """Run what is missing of a study.

    Raises:
        UsageError: something of the request or the study cannot be used; nothing was run.
        DataError: the data cannot be had.
        RunError: the results or the database cannot be written.
    """
    checkpoint_seconds()  # refused now rather than by every seed
    url = storage.storage_url(request.storage, request.results)
    device = environment.choose_device(request.device)
    loaded = _load(request, device)
    check_results(request.results)
    with signals.graceful(), contextlib.closing(Database(url)) as database:
        queue, plan = Queue(database), Plan(loaded, request.results)
        queue.plan(plan, extend=request.extend, retry_failed=request.retry_failed)
        queue.settle(plan, lambda trial: finished(plan, trial))
        gone = queue.renew(plan, lambda trial: _is_gone(plan, queue, trial))
        problems = _run(plan, queue, request, device, url, gone)
        return _answer(plan, queue, problems, request.most)


def _load(request: Request, device: str) -> Study:
    """Lay a study out in the device's precision, where it names none.

    Raises:
        UsageError: it names one that the device does not have.
    """
    precision = environment.default_precision(device)
    loaded = study.load(
        request.study, request.preset, request.dataset, seeds=request.seeds, precision=precision
    )
    searched = loaded.space.get("precision")
    choices = (searched.choices if searched else None) or ()
    for precision in {cell.config.precision for cell in loaded.cells} | set(map(str, choices)):
        environment.check_precision(precision, device)
    return loaded


def _is_gone(plan: Plan, queue: Queue, trial: Trial) -> bool:
    """Return whether a finished trial's results ought to be in this results folder and are not.

    Of a database that machines share, another may have them: a folder must be there, unfinished.
    """
    if finished(plan, trial) is not None:
        return False
    folder = plan.cell_of(trial).folder(plan.results)
    if not (folder.path / "config.yaml").is_file():
        return queue.database.file is not None
    try:
        with folder.locked():
            return True
    except AlreadyRunning:  # another process makes it again
        return False


def _run(
    plan: Plan, queue: Queue, request: Request, device: str, url: str, gone: Sequence[str]
) -> list[tuple[int, str]]:
    """Run workers with a view and a mirror; return exit codes and reasons of what went wrong."""
    problems: list[tuple[int, str]] = []
    with contextlib.ExitStack() as stack:
        mirror = None
        folders = _note(plan, queue)
        if request.mirror:
            mirror = stack.enter_context(Mirror(plan.results, folders, experiment=plan.name))
        with make_view() as view, _refreshing(plan, queue, view):
            for name in gone:
                view.say(f"{name}: was complete, and its results are gone from {plan.results}")

            def on_event(event: dict[str, Any]) -> None:
                if event["event"] == "lost":
                    view.say(str(event["reason"]))
                if event["event"] == "begin" and plan.cells[event["cell"]].searched:
                    with contextlib.suppress(RunError):  # it is noted again at the end
                        _follow(plan, queue, mirror)
                view.show(event)

            try:
                problems += _work(plan, queue, request, device, url, on_event)
            except StorageDown as error:
                problems.append((3, f"{error}; the run folders have everything: sweep again"))
        _follow(plan, queue, mirror)
        if mirror is not None:
            report = mirror.finish()
            problems += [(3, message) for _, message in report.failures[:1]]
    return problems


def _work(
    plan: Plan, queue: Queue, request: Request, device: str, url: str, on_event: OnEvent
) -> list[tuple[int, str]]:
    """Work in this process, or have several do it; return what went wrong with those."""
    workers = request.workers or _workers(plan, queue, device)
    if workers == 1:
        work(plan, queue, device, request.most, on_event)
        return []
    job = Job(
        study=str(plan.study.path.resolve()),
        preset=request.preset,
        dataset=request.dataset,
        seeds=request.seeds,
        results=str(request.results.resolve()),
        device=device,
        digest=digest(plan.document),
        most=request.most,
    )
    return run_workers(job, workers, url, on_event)


def _workers(plan: Plan, queue: Queue, device: str) -> int:
    """Return how many workers this machine gets for the cells that wait."""
    left = 0
    for cell in _status(plan, queue)[0]["cells"]:
        if cell["status"] == "waiting":  # a search has many trials to share
            left += plan.study.trials if plan.cells[cell["cell"]].searched else 1
    threads = max(cell.config.threads for cell in plan.study.cells)
    return default_workers(device, left, threads)


def _status(plan: Plan, queue: Queue) -> tuple[Document, float | None]:
    """Return the status document of a planned study, and the seconds left."""
    read = queue.read(plan.name)
    assert read is not None
    document = status_document(*read)
    return document, seconds_left(*read, document)


@contextlib.contextmanager
def _refreshing(plan: Plan, queue: Queue, view: View) -> Iterator[None]:
    """Show the status of all cells now and then."""
    stop = threading.Event()

    def refresh() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):  # the database is away: it is tried again
                view.refresh(*_status(plan, queue))
            stop.wait(REFRESH)

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _follow(plan: Plan, queue: Queue, mirror: Mirror | None) -> None:
    """Note and mirror the run folders that searches have added by now."""
    for folder in _note(plan, queue) if plan.searches else ():
        if mirror is not None:
            mirror.add(folder)


def _note(plan: Plan, queue: Queue) -> list[Path]:
    """Write down what the study is and which run folders are its own; return them."""
    loaded = plan.study
    about = {"file": str(loaded.path.resolve()), "preset": loaded.preset}
    about |= {"dataset": loaded.dataset, "seeds": seed_ranges(loaded.seeds)}
    cells = {cell.folder(plan.results).path: cell.protocol for cell in _cells(plan, queue)}
    note_study(plan.results, plan.name, cells, **about)
    return list(cells)


def _cells(plan: Plan, queue: Queue) -> Iterator[Cell]:
    """Return the cells known from the start, and those that searches have run so far."""
    yield from (cell for cell in plan.cells.values() if cell.key and not cell.searched)
    if not plan.searches:
        return
    with contextlib.suppress(StorageDown):
        read = queue.read(plan.name)
        for trial in read[1] if read else ():
            if trial.values and trial.begun and trial.cell in plan.cells:
                yield plan.cell_of(trial)


def _answer(
    plan: Plan, queue: Queue, problems: Sequence[tuple[int, str]], most: int | None
) -> Answer:
    reasons = [reason for _, reason in problems]
    try:
        document, _ = _status(plan, queue)
    except StorageDown as error:
        code = signals.exit_code() if signals.requested() else 3
        document = {"study": plan.name, "cells": []}
        return Answer(plan.name, document, code, reasons or [str(error)])
    code = _exit_code(document["counts"], problems, most)
    return Answer(table(document), {**document, "problems": reasons}, code, reasons)


def _exit_code(
    counts: Mapping[str, int], problems: Sequence[tuple[int, str]], most: int | None
) -> int:
    if signals.requested():
        return signals.exit_code()
    left = counts.get("waiting", 0) + counts.get("running", 0)
    if left and (problems or most is None):
        return max((code for code, _ in problems), default=1)
    return 3 if counts.get("failed") or any(code == 3 for code, _ in problems) else 0


# --------------------------------------------------------------------------- dry run, status


def dry_run(request: Request) -> Answer:
    """Lay a study out and run nothing; neither data nor database is opened."""
    storage.refuse_password(request.storage)
    loaded = study.load(request.study, request.preset, request.dataset, seeds=request.seeds)
    rows = []
    for cell in loaded.cells:
        about = cell.not_applicable and f"not applicable: {cell.not_applicable}"
        if cell.searched:
            about = f"search of {', '.join(cell.searched)}: {loaded.trials} trials"
        rows.append((cell.name, about or (f"against {cell.baseline}" if cell.baseline else "")))
    width = max(len(name) for name, _ in rows)
    runs = sum(len(cell.seeds) for cell in loaded.cells if not cell.not_applicable)
    searches = sum(bool(cell.searched) for cell in loaded.cells)
    runs += searches * loaded.trials * len(loaded.tuning_seeds)
    plan = plan_document(loaded, loaded.cells)
    lines = [
        *(f"{name.ljust(width)}  {about}".rstrip() for name, about in rows),
        *(skipped_line(skip) for skip in plan["skipped"]),
        *(f"claim: {each.expect}  ({len(each.pairs)} comparisons)" for each in loaded.claims),
        f"{loaded.name}: {len(loaded.cells)} cells, {runs} runs of a seed",
    ]
    shown = ("cell", "variant", "params", "seeds", "baseline", "searched", "not_applicable")
    document = {
        "study": loaded.name,
        **{key: plan[key] for key in ("question", "version", "preset", "dataset")},
        "count": len(loaded.cells),
        "runs": runs,
        "cells": [{key: cell[key] for key in shown} for cell in plan["cells"]],
    }
    return Answer("\n".join(lines), document)


def status(request: Request) -> Answer:
    """Report how far every cell of a study is, as its database knows.

    A study that the database does not have is laid out from its file: all of it waits.

    Raises:
        UsageError: there is no such study, neither there nor as a file.
    """
    url = storage.storage_url(request.storage, request.results)
    name, loaded = _named(request)
    file = sqlite_file(url)
    read: tuple[Document, list[Trial]] | None = None
    known: list[str] = []
    if file is None or file.is_file():
        with contextlib.closing(Database(url)) as database:
            queue = Queue(database)
            known = queue.names()
            read = queue.read(name if name in known or loaded else name.replace("_", "-"))
    if read is None:
        if loaded is None:
            raise unknown("study", name, {*known, *study.shipped()})
        read = plan_document(loaded, loaded.cells), []
    document = status_document(*read)
    return Answer(table(document), document)


def _named(request: Request) -> tuple[str, Study | None]:
    """Return a study's name and, where its file is there, the study."""
    try:
        study.find(request.study)
    except UsageError:
        return request.study, None
    loaded = study.load(request.study, request.preset, request.dataset, seeds=request.seeds)
    return loaded.name, loaded
