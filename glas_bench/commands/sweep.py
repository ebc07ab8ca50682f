"""What `sweep` and `status` do, from their arguments to what they print and exit with."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glas_bench import config, decide, environment, signals, study
from glas_bench.commands import Answer
from glas_bench.errors import AlreadyRunning, GlasBenchError, RunError, UsageError, unknown
from glas_bench.processes import OnEvent, repeating
from glas_bench.record import note_of, note_study, read_note
from glas_bench.report import plans
from glas_bench.runs.cells import check_memory, check_results
from glas_bench.runs.cost import core_hours
from glas_bench.runs.seed import checkpoint_seconds
from glas_bench.study import Study
from glas_bench.study.claims import METRICS, Claim
from glas_bench.sweep import storage
from glas_bench.sweep.database import Database, StorageDown
from glas_bench.sweep.plan import Document, Plan, digest, outdated, plan_document, rejudged
from glas_bench.sweep.queue import Queue
from glas_bench.sweep.status import (
    seconds_at_most,
    seconds_left,
    skipped_line,
    status_document,
    table,
    wrapped,
)
from glas_bench.sweep.trial import Trial
from glas_bench.sweep.view import make_view
from glas_bench.sweep.worker import (
    Job,
    Limits,
    Problem,
    check_workers,
    default_workers,
    finished,
    run_workers,
    work,
)
from glas_bench.text import count, seed_ranges, settings
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
    seeds: str | None = None
    workers: int | None = None
    max_trials: int | None = None
    """Of the study's whole life."""
    extend: bool = False
    retry: str | None = None
    pruner: str | None = None
    """Of searches."""
    decide: bool = False
    """Whether to add seeds for undecided claims."""
    max_hours: float | None = None
    """After which no seed is begun."""
    device: str = "cpu"
    mirror: bool = False

    @property
    def command(self) -> str:
        """The command that was given, as far as it says what is run."""
        given = {name: getattr(self, name) for name in ("preset", "dataset", "seeds")}
        options = [f"--{name} {shlex.quote(value)}" for name, value in given.items() if value]
        options += ["--decide"] * self.decide
        return " ".join(["glas-bench sweep", shlex.quote(self.study), *options])

    def load(self, precision: str | None = None) -> Study:
        """Lay the study out; `precision` is of cells for which it names none."""
        seeds = None if self.seeds is None else config.parse_seeds(self.seeds)
        return study.load(self.study, self.preset, self.dataset, seeds=seeds, precision=precision)


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
    check_workers(device, request.workers or 1)
    loaded = _load(request, device)
    if request.decide:
        _check_decidable(request, loaded)
    if request.pruner and not loaded.space:
        raise UsageError(f"--pruner: {loaded.name} has no key `space`, so no trials to prune")
    check_results(request.results, room=False)  # workers look for room
    with signals.graceful(), contextlib.closing(Database(url)) as database:
        plan = Plan(loaded, request.results)
        sweep = Sweep(request, device, plan, Queue(database))
        sweep.enqueue()
        return sweep.answer(sweep.run())


def _load(request: Request, device: str) -> Study:
    """Lay a study out in the device's precision, where it names none.

    Raises:
        UsageError: it names one that the device does not have.
    """
    loaded = request.load(environment.default_precision(device))
    searched = loaded.space.get("precision")
    choices = (searched.choices if searched else None) or ()
    for precision in {cell.config.precision for cell in loaded.cells} | set(map(str, choices)):
        environment.check_precision(precision, device)
    for cell in loaded.cells:
        check_memory(cell, device)
    return loaded


def _check_decidable(request: Request, loaded: Study) -> None:
    """Refuse to decide what has no claims, gives no verdicts, one image, or has its seeds fixed.

    Raises:
        UsageError: one of these.
    """
    if not loaded.claims:
        raise UsageError(
            f"--decide: {loaded.name} has no claims; give it some, or leave the option out"
        )
    if not loaded.verdicts:
        raise UsageError(
            f"--decide: preset {loaded.preset} gives no verdicts; "
            "add --preset laptop, short or paper"
        )
    if request.seeds is not None:
        raise UsageError("--decide adds the seeds itself; leave --seeds out")
    single = {cell.name for cell in loaded.cells if cell.config.images == 1}
    for claim in loaded.claims:
        by_image = any(METRICS[metric].per_image for metric in claim.expectation.metrics)
        if by_image and any(single & set(each.cells) for each in claim.comparisons):
            raise UsageError(
                f"--decide: claim {claim.number} compares means over images, and one image has no "
                "spread; set images to at least 2"
            )


@dataclass
class Sweep:
    """A study, its queue, and how this command works on it: `enqueue`, `run`, `answer`."""

    request: Request
    device: str
    plan: Plan
    queue: Queue
    lost: Sequence[str] = ()
    """Cells that were complete and whose results are gone."""
    mirror: Mirror | None = None
    judged: tuple[list[Document], list[Document]] = ([], [])
    """Cells of the status document, and the verdicts on claims when they were so."""

    def __post_init__(self) -> None:
        request = self.request
        hours = request.max_hours
        until = None if hours is None else time.time() + 3600 * hours
        self.limits = Limits(
            device=self.device, most=request.max_trials, until=until, pruner=request.pruner
        )

    def enqueue(self, again: bool = False) -> None:
        """Store the plan and its trials; end those whose results are there, repeat lost ones.

        `again` where this command did so before: what has failed since is not repeated.

        Raises:
            UsageError: the study has another plan and is not to be extended.
        """
        if self.request.decide:
            self.plan = self.plan.with_seeds(self.seeds_to_run())
        request = self.request
        self.plan = plan = self.queue.plan(
            self.plan,
            extend=request.extend,
            retry_failed=request.retry == "failed" and not again,
            more_seeds=request.decide,
        )
        self.queue.settle(plan, lambda trial: finished(plan, trial))
        self.lost = self.queue.renew(plan, self.is_gone)

    def is_gone(self, trial: Trial) -> bool:
        """Return whether a finished trial's results ought to be in the results folder and are not.

        Of a database that machines share, another may have them: a folder must be there,
        unfinished.
        """
        if finished(self.plan, trial) is not None:
            return False
        folder = self.plan.cell_of(trial).folder(self.plan.results)
        if not (folder.path / "config.yaml").is_file():
            return self.queue.database.file is not None
        try:
            with folder.locked():
                return True
        except AlreadyRunning:  # another process makes it again
            return False

    def run(self) -> list[Problem]:
        """Run workers with a view and a mirror; return what went wrong."""
        problems: list[Problem] = []
        with contextlib.ExitStack() as stack:
            folders = self.note()
            if self.request.mirror:
                mirror = Mirror(self.plan.results, folders, experiment=self.plan.name)
                self.mirror = stack.enter_context(mirror)
            with make_view() as view, repeating(lambda: view.refresh(*self.status()), REFRESH):
                for name in self.lost:
                    where = self.plan.results
                    view.say(f"{name}: was complete, and its results are gone from {where}")

                def on_event(event: dict[str, Any]) -> None:
                    if event["event"] == "begin" and self.plan.cells[event["cell"]].searched:
                        with contextlib.suppress(RunError):  # it is noted again at the end
                            self.note()
                    view.show(event)

                try:
                    problems += self.work(on_event)
                    while not problems and (added := self.add_seeds()):
                        view.say(added)
                        problems += self.work(on_event)
                except StorageDown as error:
                    problems.append((3, f"{error}; the run folders have everything: sweep again"))
            if self.plan.searches:
                self.note()
            if self.mirror is not None:
                failures = self.mirror.finish().failures
                problems += [(3, message) for _, message in failures[:1]]
        return problems

    def work(self, on_event: OnEvent) -> list[Problem]:
        """Work in this process, or have several do it; return what went wrong with those."""
        request, plan = self.request, self.plan
        workers = request.workers or self.workers()
        if workers == 1:
            work(plan, self.queue, self.limits, on_event)
            return []
        job = Job(
            **asdict(self.limits),
            study=str(plan.study.path.resolve()),
            preset=request.preset,
            dataset=request.dataset,
            seeds=list(plan.study.seeds) if request.seeds else None,
            results=str(plan.results.resolve()),
            digest=digest(plan.document),
            by_cell={cell.name: list(cell.seeds) for cell in plan.study.cells},
        )
        return run_workers(job, workers, self.queue.database.url, on_event)

    def workers(self) -> int:
        """Return how many workers this machine gets for the cells that wait."""
        left = 0
        for cell in self.status()[0]["cells"]:
            if cell["status"] == "waiting":  # a search has many trials to share
                left += self.plan.study.trials if self.plan.cells[cell["cell"]].searched else 1
        threads = max(cell.config.threads for cell in self.plan.study.cells)
        return default_workers(self.device, left, threads)

    def status(self) -> tuple[Document, float | None, float | None]:
        """Return the status document, and the seconds left: of what is planned, and at most."""
        read = self.queue.read(self.plan.name)
        assert read is not None
        document = status_document(*read, self.plan.results)
        loaded, (cells, judged) = self.plan.study, self.judged
        if cells != document["cells"]:
            judged = verdicts(loaded, document, self.plan.results)
            self.judged = document["cells"], judged
        most = None
        if self.request.decide:
            longest = decide.seeds_at(loaded, loaded.looks[-1])
            wanting = {cell for one in judged if one["wanted"] for cell in one["cells"]}
            most = seconds_at_most(*read, dict.fromkeys(wanting, longest), self.plan.results)
        return {**document, "claims": judged}, seconds_left(*read, document), most

    def seeds_to_run(self) -> dict[str, list[int]]:
        """Return by cell the seeds that its claims' looks take."""
        loaded = self.plan.study
        keys: dict[str, str | None] = {cell.name: cell.key for cell in self.plan.cells.values()}
        if self.plan.searches and (read := self.queue.read(self.plan.name)):
            found = {cell["cell"]: cell["config_key"] for cell in status_document(*read)["cells"]}
            keys |= {name: found.get(name) for name in self.plan.searches}
        judged = decide.judge(loaded, decide.arms_in(loaded, keys, self.plan.results))
        return decide.seeds_to_run(loaded, judged)

    def add_seeds(self) -> str:
        """Plan the seeds of the next looks; return which, as a line; empty where there are none."""
        if not self.request.decide or signals.requested() or self.limits.is_over:
            return ""
        before = {cell.name: set(cell.seeds) for cell in self.plan.study.cells}
        new = {cell: set(seeds) - before[cell] for cell, seeds in self.seeds_to_run().items()}
        if not any(new.values()):
            return ""
        self.enqueue(again=True)
        more = ", ".join(f"{cell} {seed_ranges(list(each))}" for cell, each in new.items() if each)
        judged = self.status()[0]["claims"]
        return f"{decide.summary(judged)}; the next look takes seeds of {more}"

    def note(self) -> list[Path]:
        """Write down what the study is and which run folders are its own; mirror and return them.

        Searches add folders as they go; what they have tried is noted too, for the page.
        """
        loaded, results = self.plan.study, self.plan.results
        cells = [cell for cell in self.plan.cells.values() if cell.key and not cell.searched]
        read = None
        with contextlib.suppress(StorageDown):
            read = self.queue.read(self.plan.name) if self.plan.searches else None
        about: Document = {"file": str(loaded.path.resolve()), "preset": loaded.preset}
        about |= {"dataset": loaded.dataset, "seeds": seed_ranges(loaded.seeds)}
        about |= {"question": loaded.question, "command": self.request.command}
        if read:
            ran = [trial for trial in read[1] if trial.values and trial.begun]
            cells += [self.plan.cell_of(trial) for trial in ran if trial.cell in self.plan.cells]
            shown = status_document(*read)["cells"]
            about["searches"] = {each["cell"]: each["search"] for each in shown if "search" in each}
        own = {cell.folder(results).path: cell for cell in cells}
        about["names"] = {
            path.name: f"{cell.variant.name} {settings(cell.params)}".strip()
            for path, cell in own.items()
        }
        note_study(
            results, self.plan.name, {path: cell.protocol for path, cell in own.items()}, **about
        )
        if self.mirror is not None:
            for folder in own:
                self.mirror.add(folder)
        return list(own)

    def answer(self, problems: Sequence[Problem]) -> Answer:
        """Return the status of all cells, and what went wrong."""
        reasons = [reason for _, reason in problems]
        try:
            document, *_ = self.status()
        except StorageDown as error:
            code = signals.exit_code() if signals.requested() else 3
            document = {"study": self.plan.name, "cells": []}
            return Answer(self.plan.name, document, code, reasons or [str(error)])
        limited = self.limits.most is not None or self.limits.until is not None
        code = exit_code(document["counts"], problems, limited)
        text = table(document)
        left = _left(document["counts"]) or any(one["wanted"] for one in document["claims"])
        if self.limits.is_over and left:
            text += "\n--max-hours is over; the same command goes on"
        return Answer(text, {**document, "problems": reasons}, code, reasons)


def exit_code(counts: Mapping[str, int], problems: Sequence[Problem], limited: bool) -> int:
    """Return a sweep's exit code from its numbers of cells by status; `limited` may leave some."""
    if signals.requested():
        return signals.exit_code()
    if _left(counts) and (problems or not limited):
        return max((code for code, _ in problems), default=1)
    return 3 if counts.get("failed") or any(code == 3 for code, _ in problems) else 0


def _left(counts: Mapping[str, int]) -> int:
    return counts.get("waiting", 0) + counts.get("running", 0)


# --------------------------------------------------------------------------- dry run, status


def dry_run(request: Request) -> Answer:
    """Lay a study out and run nothing; neither data nor database is opened."""
    storage.refuse_password(request.storage)
    loaded = request.load()
    if request.decide:
        _check_decidable(request, loaded)
    rows = []
    for cell in loaded.cells:
        about = cell.not_applicable and f"not applicable: {cell.not_applicable}"
        if cell.searched:
            about = f"search of {', '.join(cell.searched)}: {count(loaded.trials, 'trial')}"
        rows.append((cell.name, about or (f"against {cell.baseline}" if cell.baseline else "")))
    width = max(len(name) for name, _ in rows)
    runs = sum(len(cell.seeds) for cell in loaded.cells if not cell.not_applicable)
    searches = sum(bool(cell.searched) for cell in loaded.cells)
    runs += searches * loaded.trials * len(loaded.tuning_seeds)
    plan = plan_document(loaded, loaded.cells)
    lines = [
        *(f"{name.ljust(width)}  {about}".rstrip() for name, about in rows),
        *(skipped_line(skip) for skip in plan["skipped"]),
        *(line for claim in loaded.claims for line in _claim_lines(claim)),
        f"{loaded.name}: {count(len(loaded.cells), 'cell')}, {count(runs, 'run')} of a seed",
    ]
    prices = _prices(loaded) if loaded.verdicts and loaded.claims else {}
    lines += [
        f"with --decide {text}: {hours:.1f} core hours here" for text, hours in prices.items()
    ]
    shown = ("cell", "variant", "params", "seeds", "baseline", "searched", "not_applicable")
    document = {
        "study": loaded.name,
        **{key: plan[key] for key in ("question", "version", "preset", "dataset")},
        "count": len(loaded.cells),
        "runs": runs,
        "core_hours": list(prices.values()),
        "cells": [{key: cell[key] for key in shown} for cell in plan["cells"]],
    }
    return Answer("\n".join(lines), document)


def _claim_lines(claim: Claim) -> list[str]:
    text = f"claim {claim.number}: {' '.join(claim.expect.split())}"
    about = []
    if len(claim.comparisons) > 1:
        about.append(f"{len(claim.comparisons)} comparisons")
    if claim.margin:
        about.append(f"margin {claim.margin:g} {claim.expectation.unit}")
    if claim.among_escaped:
        about.append("among seeds that left the mean image")
    if claim.preset:
        about.append(f"judged with preset {claim.preset} alone")
    return [*wrapped(text), *(wrapped(", ".join(about), "    ") if about else [])]


def _prices(loaded: Study) -> dict[str, float]:
    """Return the core hours to the first and to the last look, by a text with their seeds."""
    hours = {cell.name: core_hours(cell) for cell in loaded.cells if not cell.not_applicable}
    first, last = loaded.looks[0], loaded.looks[-1]
    to_first = sum(first * each for each in hours.values())
    more = sum((last - first) * each for name, each in hours.items() if name in loaded.compared)
    return {
        f"to the first look ({first} seeds of each cell)": to_first,
        f"to the last look (at most {last} seeds of the cells that claims name)": to_first + more,
    }


def status(request: Request) -> Answer:
    """Report how far every cell of a study is, as its database knows.

    A study that the database does not have is laid out from its file: all of it waits.

    Raises:
        UsageError: there is no such study, neither there nor as a file.
        RunError: the file of a study that was begun is no longer what it was.
    """
    url = storage.storage_url(request.storage, request.results)
    loaded, problem = _find(request)
    name = loaded.name if loaded else request.study
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
            raise problem or unknown("study", name, {*known, *study.shipped()})
        read = plan_document(loaded, loaded.cells), []
    document = status_document(*read, request.results)
    lines = [_outdated(document, read[0], loaded)]
    if loaded is not None:
        lines.append(rejudged(read[0], plan_document(loaded, loaded.cells)))
    if any(lines):
        document["outdated"] = "; ".join(filter(None, lines))
    if loaded is not None:
        document["claims"] = verdicts(loaded, document, request.results)
    elif claims := read[0]["claims"]:
        why = problem or f"{request.results} has no note of its file; give the file's path"
        document["unjudged"] = f"{count(len(claims), 'claim')} not judged: {why}"
    return Answer(table(document), document)


def _find(request: Request) -> tuple[Study | None, GlasBenchError | None]:
    """Return a study by file or name, by its note as `report` does; or why the note leads nowhere.

    Raises:
        UsageError: its file has a fault.
    """
    try:
        study.find(request.study)
    except UsageError:  # no shipped one's name: one's own, or NAME@PRESET
        name = request.study.replace("_", "-")
    else:
        return request.load(), None
    others = [each for each in (request.preset, request.dataset) if each]
    try:
        if others and not read_note(request.results, name):
            name = "@".join([name, *others])
        loaded = plans.find(name, request.results).study
    except GlasBenchError as error:
        return None, error if note_of(request.results, name).is_file() else None
    if loaded and others:
        preset = request.preset or loaded.preset
        loaded = study.load(str(loaded.path), preset, request.dataset)
    return loaded, None


def _outdated(document: Document, plan: Document, loaded: Study | None) -> str:
    """Return a line on complete cells that are not what the study now plans; empty without any."""
    names, why = outdated(plan, loaded)
    made = [each for each in document["cells"] if each["status"] == "complete"]
    stale = sum(each["cell"] in names for each in made)
    if not stale:
        return ""
    return (
        f"{stale} of {len(document['cells'])} cells were {why} and are not what the study now "
        "plans; sweep --extend runs them again"
    )


def verdicts(loaded: Study, document: Document, results: Path) -> list[Document]:
    """Return the verdicts on a study's claims, from the run folders of its cells."""
    keys = {cell["cell"]: cell["config_key"] for cell in document["cells"]}
    return [each.document() for each in decide.judge(loaded, decide.arms_in(loaded, keys, results))]
