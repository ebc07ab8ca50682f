"""What `report` does: from its arguments to pages, and to its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glas_bench.record import runs_by_study, write_atomically
from glas_bench.report import compare, csv_file, fail_if, figures, page, plans, record_figures
from glas_bench.report.plans import Plan
from glas_bench.report.records import Run, planned_rows
from glas_bench.report.table import Row, TableRow, complete, coverage, table_rows
from glas_bench.study.claims import SHARES
from glas_bench.tracking import mlflow_store as store
from glas_bench.tracking.address import experiment_name, sqlite_file, tracking_uri
from glas_bench.tracking.sync import sync_all

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for."""

    references: Sequence[str]
    results: Path
    out: Path | None
    fail_if: Sequence[str] = ()
    tell: Tell = lambda message: None
    """Called with each thing that the pages have to go without."""
    debug: bool = False


@dataclass
class Answer:
    """What was made."""

    out: Path
    pages: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """A line a page, and what tripped."""
    exit_code: int = 0


@dataclass
class _Page:
    """A page's rows with the figures that they need others' data for."""

    rows: list[Row]
    looks: list[figures.Drawing] = field(default_factory=list)
    beside: Path | None = None
    """Where a csv came from, whose figures lie beside it."""


def carry_out(request: Request) -> Answer:
    """Make the pages.

    Raises:
        UsageError: no such study or file, a csv that is none of ours, a condition that cannot be
            read or means no cell.
        RunError: the record cannot be read, or the pages cannot be written.
    """
    conditions = [fail_if.read(text) for text in request.fail_if]
    out = request.out or request.results / "report"
    files = [Path(each) for each in request.references if each.endswith(".csv")]
    names = [each for each in request.references if not each.endswith(".csv")]
    made = [_Page(csv_file.read(path), beside=path.parent) for path in files]
    problems: list[str] = []
    if names or not files:
        made += _from_record(request, names, problems)
    tripped = [
        line
        for one in conditions
        for line in fail_if.tripped(one, [cell for each in made for cell in table_rows(each.rows)])
    ]
    answer = Answer(out)
    for each in made:
        answer.pages.append(_write(each, out))
        answer.lines.append(_line(each.rows))
    text, unread = page.index(out)
    _put(out / "README.md", text.encode())
    for problem in (*problems, *unread):
        request.tell(problem)
    answer.lines += [f"tripped: {line}" for line in tripped]
    counts = [complete(table_rows(each.rows)) for each in made]
    whole = all(done == planned for done, planned in counts)
    failed = any(row["status"] == "failed" for each in made for row in each.rows)
    answer.exit_code = 4 if tripped else 0 if whole and not failed and not problems else 3
    return answer


def _line(rows: Sequence[Row]) -> str:
    found = table_rows(rows)
    return f"{rows[0]['study']}: {coverage(found)}; {page.verdicts(found)}"


# --------------------------------------------------------------------------- from the record


def _from_record(request: Request, names: Sequence[str], problems: list[str]) -> list[_Page]:
    """Return the pages of studies, or of all that there is."""
    results, debug = request.results, request.debug
    if names:
        wanted = plans.asked(names, results)
    else:
        problems += _sync(request, [*plans.noted(results), None], set())[0]
        ours, foreign = store.experiments(results, debug=debug) if _is_begun(results) else ([], [])
        wanted, unplanned = plans.everything(ours, results)
        problems += unplanned
        for name in foreign:
            request.tell(f"experiment {name}: none of its runs is of glas-bench; left out")
    if not wanted:
        return []
    experiments = [plan.name for plan in wanted]
    frame = store.read_runs(results, experiments, missing_ok=True, debug=debug)
    if names:
        own = [None if name == experiment_name() else name for name in experiments]
        failures, changed = _sync(request, own, set(frame.attrs["known"]))
        problems += failures
        if changed:
            frame = store.read_runs(results, experiments, missing_ok=True, debug=debug)
    runs: dict[str, list[Run]] = {}
    for run in frame.to_dict("records"):
        runs.setdefault(str(run["experiment"]), []).append(run)  # type: ignore[arg-type]
    for text in frame.attrs["left_out"]:
        request.tell(text)
    made = []
    for plan in wanted:
        prefix = f"{plan.name}: "
        left_out = [t.removeprefix(prefix) for t in frame.attrs["left_out"] if t.startswith(prefix)]
        one = _make(plan, runs.get(plan.name, []), left_out, request)
        if one is None:
            request.tell(f"{plan.name}: no runs yet")
        else:
            made.append(one)
    return made


def _is_begun(results: Path) -> bool:
    """Tell whether there is a store: a report makes none where nothing was run."""
    file = sqlite_file(tracking_uri(results))
    return file is None or file.is_file()


def _sync(
    request: Request, experiments: Sequence[str | None], known: set[str]
) -> tuple[list[str], int]:
    """Bring these experiments' run folders up to date in MLflow.

    Returns:
        What went wrong, and how many folders had something new.
    """
    failures: list[str] = []
    changed = 0
    places = runs_by_study(request.results)
    for name in experiments:
        if not places.get(name):
            continue
        found = sync_all(
            request.results,
            places[name],
            experiment=name,
            known=known or None,
            debug=request.debug,
        )
        changed += found.changed
        failures += [f"{Path(folder).name}: {message}" for folder, message in found.failures]
    return [f"not mirrored, so it may be missing: {text}" for text in failures], changed


def _make(
    plan: Plan, runs: Sequence[Run], left_out: Sequence[str], request: Request
) -> _Page | None:
    """Return a page's rows, judged; None where there is nothing to have a page of."""
    rows, remarks = planned_rows(plan, runs)
    if not rows:
        return None
    remarks = [*remarks, *(f"left out: {text}" for text in left_out)]
    found = table_rows(rows)
    by_key = {(str(run["config_key"]), int(run["seed"])): run for run in runs}
    reported = [
        by_key[row["config_key"], int(row["seed"])] for cell in found for row in cell.finished
    ]
    metrics = _metrics(plan, found)
    arrays = sorted({*metrics, "iw", "nll"} - SHARES) + (["image"] if "ais" in metrics else [])
    values = store.per_image(reported, request.results, arrays, debug=request.debug)
    compare.write_comparisons(plan.study, found, values, sorted(metrics - SHARES))
    seen = list(record_figures.Looks(found, reported, request.results).drawings())
    told = [each.about(plan.name) for each in (*figures.from_csv(rows), *seen)]
    constant = {"figures": json.dumps(told), "remarks": json.dumps(remarks) if remarks else ""}
    for row in rows:
        row |= constant
    return _Page(rows, seen)


def _metrics(plan: Plan, found: Sequence[TableRow]) -> set[str]:
    """Return what a page's cells are compared by: the ranked number, and what claims are about."""
    own = {claim.metric for claim in plan.study.claims} if plan.study is not None else {"elbo"}
    return own | {compare.ranked_by(found)}


# --------------------------------------------------------------------------- writing


def _write(made: _Page, out: Path) -> Path:
    """Write a page with its csv and figures; return the page's path."""
    study = made.rows[0]["study"]
    path = out / f"{study}.csv"
    _put(path, csv_file.write(made.rows))
    rows = csv_file.read(path)  # a page is made from its csv, whoever made that
    drawn = {each.file(study): each.png for each in (*figures.from_csv(rows), *made.looks)}
    wanted = [one["file"] for one in page.figures_of(rows)]
    for name in wanted:
        target = out / "figures" / name
        if name in drawn:
            _put(target, drawn[name]())
        elif made.beside is not None:
            _copy(made.beside / "figures" / name, target)
    _put(out / f"{study}.md", page.render(rows).encode())
    return out / f"{study}.md"


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _put(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, lambda file: file.write(content))
