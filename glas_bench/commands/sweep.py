"""What `sweep` and `status` do, from their arguments to what they print and exit with.

`sweep`, its dry run and `status` share a request and are one file.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glas_bench import environment, signals, study
from glas_bench.commands.run import PATIENCE, PATIENCE_WHEN_STOPPED
from glas_bench.errors import AlreadyRunning, RunError, UsageError, unknown
from glas_bench.record import note_study
from glas_bench.runs import worker
from glas_bench.runs.cells import check_results
from glas_bench.study import Cell, Study
from glas_bench.sweep import states, storage, workers
from glas_bench.sweep.database import StorageDown
from glas_bench.sweep.plan import Document, Plan, digest
from glas_bench.sweep.states import State
from glas_bench.sweep.store import Store
from glas_bench.sweep.trials import Result, Row
from glas_bench.sweep.view import View, make_view
from glas_bench.sweep.worker import Job, finished, work
from glas_bench.text import seed_ranges
from glas_bench.tracking.address import sqlite_file
from glas_bench.tracking.mirror import Mirror

REFRESH = 2.0
"""Seconds between two looks at where all cells stand."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for."""

    study: str
    preset: str | None
    dataset: str | None
    seeds: list[int] | None
    workers: int | None
    storage: str | None
    most: int | None
    extend: bool
    retry_failed: bool
    device: str
    mirror: bool
    results: Path


@dataclass(frozen=True)
class Answer:
    """Where the study stands at the end, and what went wrong besides its cells."""

    document: dict[str, Any]
    text: str
    exit_code: int
    problems: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------- sweep


def carry_out(request: Request) -> Answer:
    """Run what is missing of a study.

    Raises:
        UsageError: something of the request or the study cannot be used; nothing was run.
        DataError: the data cannot be had.
        RunError: the results or the database cannot be written.
    """
    worker.checkpoint_seconds()  # refused now rather than by every seed
    if request.most is not None and request.most < 1:
        raise UsageError(f"--max-trials {request.most}: give 1 or more")
    url = storage.storage_url(request.storage, request.results)
    device = environment.choose_device(request.device)
    found = _load(request, device)
    check_results(request.results)
    with signals.graceful(), contextlib.closing(Store(url)) as store:
        plan = Plan(found, request.results)
        store.plan(plan, extend=request.extend, retry_failed=request.retry_failed)
        store.settle(plan, lambda row: _there(plan, row))
        job = Job(
            study=str(found.path.resolve()),
            preset=request.preset,
            dataset=request.dataset,
            seeds=request.seeds,
            results=str(request.results.resolve()),
            device=device,
            digest=digest(plan.document()),
            most=request.most,
        )
        gone = store.renew(plan, lambda row: _is_gone(plan, store, row))
        count = request.workers or _workers(plan, store, device)
        problems = _run(plan, store, job, count, url, request.mirror, gone)
        return _answer(plan, store, problems, request.most)


def _load(request: Request, device: str) -> Study:
    """Lay a study out in the device's precision, where it names none.

    Raises:
        UsageError: it names one that the device does not have.
    """
    precision = environment.default_precision(device)
    found = study.load(
        request.study, request.preset, request.dataset, seeds=request.seeds, precision=precision
    )
    searched = found.space.get("precision")
    for precision in {cell.config.precision for cell in found.cells}:
        environment.check_precision(precision, device)
    for choice in (searched.choices if searched else None) or ():
        environment.check_precision(str(choice), device)
    return found


def _workers(plan: Plan, store: Store, device: str) -> int:
    read = store.read(plan.name)
    found = states.states(*read) if read else []
    # a search has many trials to share
    left = sum(
        plan.study.trials if each.item.searched else 1 for each in found if each.status == "waiting"
    )
    threads = max(cell.config.threads for cell in plan.study.cells)
    return workers.default_workers(device, left, threads)


def _there(plan: Plan, row: Row) -> Result | None:
    """Return the result of a trial whose run folder is finished, whoever made it."""
    return finished(plan.cell(row.cell, row.values or None), plan.results, row.seeds)


def _is_gone(plan: Plan, store: Store, row: Row) -> bool:
    """Tell whether a finished trial's results ought to be in this results folder and are not.

    Of a database that machines share, another may have them: a folder must be there, unfinished.
    """
    cell = plan.cell(row.cell, row.values or None)
    folder = cell.folder(plan.results)
    if finished(cell, plan.results, row.seeds) is not None:
        return False
    if not (folder.path / "config.yaml").is_file():
        return store.file is not None
    try:
        with folder.locked():
            return True
    except AlreadyRunning:  # it is being made anew
        return False


def _run(
    plan: Plan,
    store: Store,
    job: Job,
    count: int,
    url: str,
    with_mirror: bool,
    gone: Sequence[str],
) -> list[tuple[int, str]]:
    """Run workers with a view and a mirror; return exit codes and reasons of what went wrong."""
    problems: list[tuple[int, str]] = []
    with contextlib.ExitStack() as stack:
        mirror = None
        folders = _note(plan, store)
        if with_mirror:
            mirror = stack.enter_context(Mirror(plan.results, folders, experiment=plan.name))
        with make_view() as view, _refreshing(plan, store, view):
            for name in gone:
                view.say(f"{name}: was complete, and its results are gone from {plan.results}")

            def tell(event: dict[str, Any]) -> None:
                if event["event"] == "lost":
                    view.say(str(event["reason"]))
                if event["event"] == "begin" and plan.items[event["cell"]].searched:
                    with contextlib.suppress(RunError):  # it is noted again at the end
                        _follow(plan, store, mirror)
                view.show(event)

            try:
                if count == 1:
                    work(plan, store, job, tell)
                else:
                    problems += workers.run_workers(workers.jobs(job, count), url, tell)
            except StorageDown as error:
                problems.append((3, f"{error}; the run folders have everything: sweep again"))
        _follow(plan, store, mirror)
        if mirror is not None:
            report = mirror.finish(PATIENCE_WHEN_STOPPED if signals.requested() else PATIENCE)
            problems += [(3, message) for _, message in report.failures[:1]]
    return problems


def _follow(plan: Plan, store: Store, mirror: Mirror | None) -> None:
    """Note and mirror what searches have found by now."""
    for folder in _note(plan, store) if plan.searches else ():
        if mirror is not None:
            mirror.add(folder)


def _note(plan: Plan, store: Store) -> list[Path]:
    """Write down what the study is and which run folders are its own; return them."""
    found = plan.study
    where = {"file": str(found.path.resolve()), "preset": found.preset, "dataset": found.dataset}
    where["seeds"] = seed_ranges(found.seeds)
    cells = {cell.folder(plan.results).path: cell.protocol for cell in _cells(plan, store)}
    note_study(plan.results, plan.name, cells, **where)
    return list(cells)


def _cells(plan: Plan, store: Store) -> Iterator[Cell]:
    """Return the cells known from the start, and what searches have found and run so far."""
    for name, item in plan.items.items():
        if item.key and not item.searched:
            yield plan.cell(name)
    if not plan.searches:
        return
    with contextlib.suppress(StorageDown):
        read = store.read(plan.name)
        for row in read[1] if read else ():
            if row.values and row.begun and row.cell in plan.items:
                yield plan.cell(row.cell, row.values)


@contextlib.contextmanager
def _refreshing(plan: Plan, store: Store, view: View) -> Iterator[None]:
    """Tell a view from time to time where all cells stand."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):  # the database is away: the next look may do
                read = store.read(plan.name)
                assert read is not None
                found = states.states(*read)
                view.refresh(found, states.seconds_left(*read, found))
                store.storage.remove_session()
            stop.wait(REFRESH)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _answer(
    plan: Plan, store: Store, problems: Sequence[tuple[int, str]], most: int | None
) -> Answer:
    told = [reason for _, reason in problems]
    try:
        read = store.read(plan.name)
    except StorageDown as error:
        read = None
        told = told or [str(error)]
    if read is None:
        code = signals.exit_code() if signals.requested() else 3
        return Answer({"study": plan.name, "cells": []}, plan.name, code, told)
    found = states.states(*read)
    document = {**states.document_of(read[0], found), "problems": told}
    code = _exit_code(found, problems, most)
    return Answer(document, states.text(read[0], found), code, told)


def _exit_code(
    found: Sequence[State], problems: Sequence[tuple[int, str]], most: int | None
) -> int:
    if signals.requested():
        return signals.exit_code()
    left = sum(each.status in ("waiting", "running") for each in found)
    if left and (problems or most is None):
        return max((code for code, _ in problems), default=1)
    if any(each.status == "failed" for each in found):
        return 3
    return 3 if any(code == 3 for code, _ in problems) else 0


# --------------------------------------------------------------------------- dry run, status


def dry_run(request: Request) -> Answer:
    """Lay a study out and run nothing; neither data nor database is opened."""
    found = study.load(request.study, request.preset, request.dataset, seeds=request.seeds)
    rows = []
    for cell in found.cells:
        about = cell.not_applicable and f"not applicable: {cell.not_applicable}"
        if cell.searched:
            about = f"search of {', '.join(cell.searched)}: {found.trials} trials"
        baseline = f"against {cell.baseline}" if cell.baseline else ""
        rows.append((cell.name, about or baseline))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {about}".rstrip() for name, about in rows]
    for skip in found.skipped:
        what = f"without {skip.axis}" if skip.axis else " ".join(map(str, skip.params.items()))
        lines.append(f"skipped: {skip.variant} {what}: {skip.reason}")
    for claim in found.claims:
        lines.append(f"claim: {claim.expect}  ({len(claim.pairs)} comparisons)")
    runs = sum(len(found.seeds) for cell in found.cells if not cell.not_applicable)
    searches = [cell for cell in found.cells if cell.searched]
    runs += len(searches) * found.trials * len(found.tuning_seeds)
    total = f"{found.name}: {len(found.cells)} cells, {runs} runs of a seed"
    document = {
        "study": found.name,
        "question": found.question,
        "version": found.version,
        "preset": found.preset,
        "dataset": found.dataset,
        "count": len(found.cells),
        "runs": runs,
        "cells": [
            {
                "cell": cell.name,
                "variant": cell.variant.name,
                "params": cell.params,
                "seeds": found.seeds,
                "baseline": cell.baseline,
                "searched": list(cell.searched),
                "not_applicable": cell.not_applicable,
            }
            for cell in found.cells
        ],
    }
    return Answer(document, "\n".join([*lines, total]), 0)


def status(request: Request) -> Answer:
    """Say where every cell of a study stands, as its database knows.

    A study that the database does not have is laid out from its file: all of it waits.

    Raises:
        UsageError: there is no such study, neither there nor as a file.
    """
    url = storage.storage_url(request.storage, request.results)
    name, planned = _named(request)
    file = sqlite_file(url)
    read: tuple[Document, list[Row]] | None = None
    known: list[str] = []
    if file is None or file.is_file():
        with contextlib.closing(Store(url, read_only=True)) as store:
            known = store.names()
            wanted = name if name in known or planned is not None else name.replace("_", "-")
            read = store.read(wanted)
    if read is None:
        if planned is None:
            raise unknown("study", name, {*known, *study.shipped()})
        read = _waiting(planned), []
    found = states.states(*read)
    return Answer(states.document_of(read[0], found), states.text(read[0], found), 0)


def _named(request: Request) -> tuple[str, Study | None]:
    """Return a study's name and, where its file is at hand, the study."""
    try:
        study.find(request.study)
    except UsageError:
        return request.study, None
    found = study.load(request.study, request.preset, request.dataset, seeds=request.seeds)
    return found.name, found


def _waiting(found: Study) -> Document:
    """Return the plan of a study that has not begun; its data is not opened."""
    from dataclasses import asdict

    from glas_bench.sweep.plan import Item

    items = [
        Item(
            cell=cell.name,
            variant=cell.variant.name,
            params=cell.params,
            key=None,
            protocol=None,
            seeds=found.seeds,
            baseline=cell.baseline,
            not_applicable=cell.not_applicable,
            searched=list(cell.searched),
            cost=1.0,
        )
        for cell in found.cells
    ]
    return {
        "name": found.name,
        "question": found.question,
        "version": found.version,
        "preset": found.preset,
        "dataset": found.dataset,
        "trials": found.trials,
        "tuning_seeds": found.tuning_seeds,
        "skipped": [asdict(each) for each in found.skipped],
        "cells": [asdict(item) for item in items],
    }


# --------------------------------------------------------------------------- passwords


def hide_password(given: str | None) -> None:
    """Take a password off this process's command line: start it anew with OPTUNA_STORAGE set."""
    if given is None or not storage.has_password(given):
        return
    arguments = storage.without_storage(sys.orig_argv, given)
    if arguments is not None:
        os.execve(sys.executable, arguments, {**os.environ, storage.VARIABLE: given})
