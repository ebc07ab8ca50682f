"""What `report` does: from its arguments to pages, and to its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glas_bench import commands
from glas_bench.errors import GlasBenchError, RunError, UsageError, nearest
from glas_bench.record import RunRecord, load_run, runs_by_study, write_atomically
from glas_bench.report import (
    compare,
    csv_file,
    fail_if,
    figures,
    html_page,
    latex,
    page,
    plans,
    record_figures,
    results_json,
    verdicts,
)
from glas_bench.report.plans import Plan
from glas_bench.report.records import Run, per_image, rows_of, runs_of, variants_of
from glas_bench.report.table import COMPARED, Row, complete, coverage, table_rows
from glas_bench.text import winner_line
from glas_bench.tracking import mlflow_store, sync
from glas_bench.tracking.address import experiment_name, sqlite_file, tracking_uri

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `report`."""

    references: Sequence[str]
    results: Path
    out: Path | None
    fail_if: Sequence[str] = ()
    html: bool = False
    """Also write each page as one HTML file."""
    latex: bool = False
    """Also write its tables as LaTeX."""
    as_json: bool = False
    """Also write its results as JSON."""
    formats: Sequence[str] = ()
    """In which each figure is written beside PNG: svg, pdf."""
    tell: Tell = lambda message: None
    """Called with a line on everything that the pages lack."""
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer(commands.Answer):
    """A line per page, and the conditions that tripped."""

    out: Path


@dataclass
class _Page:
    """A page's rows, and the figures that are drawn from records."""

    rows: list[Row]
    drawings: list[figures.Drawing] = field(default_factory=list)
    beside: Path | None = None
    """Where a csv came from, whose figures lie beside it."""


def carry_out(request: Request) -> Answer:
    """Make the pages.

    Raises:
        UsageError: no such study or file, a csv that `report` did not write, a condition that
            cannot be parsed or is about no cell.
        RunError: the pages cannot be written.
    """
    conditions = [fail_if.read(text) for text in request.fail_if]
    out = request.out or request.results / "report"
    files = [Path(each) for each in request.references if each.endswith(".csv")]
    names = [each for each in request.references if not each.endswith(".csv")]
    made = [_Page(csv_file.read(path), beside=path.parent) for path in files]
    problems: list[str] = []
    if names or not files:
        made += _from_record(request, names, problems)
    every = [cell for each in made for cell in table_rows(each.rows)]
    tripped = [line for one in conditions for line in fail_if.tripped(one, every)]
    _check_own(out, [each.rows[0]["study"] for each in made])
    written, lines, code = [], [], 0
    for each in made:
        study = each.rows[0]["study"]
        own = _write(each, request, out)
        cells = table_rows(each.rows)
        about = {"coverage": coverage(cells), "verdicts": verdicts.in_one_line(cells)}
        written.append({"study": study, **about, "files": own})
        lines.append(f"{study}: {about['coverage']}; {about['verdicts']}")
        done, planned = complete(cells)
        if done < planned or any(row["status"] == "failed" for row in each.rows):
            code = 3
    unread = _write_index(request, out)
    for problem in (*problems, *unread):
        request.tell(problem)
    lines += [f"tripped: {line}" for line in tripped]
    if tripped or problems:
        code = 4 if tripped else 3
    more = [name for each in written for name in each["files"][2:]]
    return Answer(
        text="\n".join(lines),
        document={"out": str(out), "pages": written, "tripped": tripped},
        exit_code=code,
        problems=[", ".join([f"written to {out / f'{page.INDEX}.md'}", *more])],
        out=out,
    )


def _from_record(request: Request, names: Sequence[str], problems: list[str]) -> list[_Page]:
    """Return the pages of studies, or of all that there is."""
    results = request.results
    folders = runs_by_study(results)
    if not (_has_store(results) or folders[None] or len(folders) > 1):
        others = [path.parent.name for path in results.resolve().parent.glob("*/runs")]
        raise UsageError(
            f"there are no results in {results}.{nearest(results.name, others)} Name their folder "
            "with --results, or make some with `glas-bench run` or `glas-bench sweep`"
        )
    found = [plans.find(name, results) for name in names]
    wanted = {plan.name: plan for plan in found or _every_plan(request, folders, problems)}
    made = []
    for plan in wanted.values():
        study = None if plan.name == experiment_name() else plan.name
        own = folders.get(study, [])
        mirrored = sync.sync(own, results, experiment=study, debug=request.debug)
        for folder, message in mirrored.failures:
            problems.append(f"not mirrored: {Path(folder).name}: {message}")
        records, left_out = _records(request, plan.name, own, problems)
        for text in left_out:
            request.tell(f"{plan.name}: {text}")
        searches = plans.searches(plan.name, results)
        if one := _make(plan, runs_of(records), left_out, searches):
            made.append(one)
        else:
            request.tell(f"{plan.name}: no runs yet")
    return made


def _every_plan(
    request: Request, folders: Mapping[str | None, Sequence[Path]], problems: list[str]
) -> list[Plan]:
    names = [experiment_name(name) for name, some in folders.items() if some]
    if _has_store(request.results):
        try:
            shared, foreign = mlflow_store.experiments(request.results, debug=request.debug)
            names += shared
            for name in foreign:
                request.tell(f"experiment {name}: none of its runs is of glas-bench; left out")
        except RunError as error:
            problems.append(str(error))
    wanted = []
    for name in sorted({*names, *plans.noted(request.results)}):
        try:
            wanted.append(plans.find(name, request.results))
        except GlasBenchError as error:
            wanted += [Plan(name, None)] * (name in names)  # its runs have a page without a plan
            problems.append(f"{name}: {error}")
    return wanted


def _records(
    request: Request, experiment: str, own: Sequence[Path], problems: list[str]
) -> tuple[list[RunRecord], list[str]]:
    """Return the records of an experiment's runs, and why some of its runs have none.

    They are of this machine, and of others that share its MLflow store.
    """
    folders = {folder.resolve(): None for folder in own}
    left_out: list[str] = []
    if _has_store(request.results):
        try:
            fetched = sync.fetch(request.results, experiment, debug=request.debug)
            folders |= {folder.resolve(): None for folder in fetched.folders}
            left_out = fetched.left_out
        except RunError as error:
            problems += [str(error)] if str(error) not in problems else []
    records, broken = [], []
    for folder in folders:
        try:
            records.append(record := load_run(folder))
            broken += record.problems
        except GlasBenchError as error:
            broken.append(str(error))
    problems += [each for each in broken if not any(each in known for known in problems)]
    return records, left_out


def _has_store(results: Path) -> bool:
    """Return whether there is an MLflow store: a report makes none where nothing was run."""
    file = sqlite_file(tracking_uri(results))
    return file is None or file.is_file()


def _make(
    plan: Plan, runs: Sequence[Run], left_out: Sequence[str], searches: Mapping[str, Any]
) -> _Page | None:
    """Return a page's rows, compared and judged; None where there are none."""
    rows, remarks = rows_of(plan, runs)
    if not rows:
        return None
    remarks += [f"left out: {text}" for text in left_out]
    remarks += filter(None, (winner_line(*each) for each in searches.items()))
    cells = table_rows(rows)
    done = {(row["config_key"], int(row["seed"])) for cell in cells for row in cell.finished}
    reported = {run.key: run.seed for run in runs if run.key in done}
    claims = plan.study.claims if plan.study is not None else ()
    metrics = {metric for claim in claims for metric in claim.expectation.metrics} & set(COMPARED)
    compared = sorted(metrics | {compare.ranked_by(cells)} | ({"elbo"} if not claims else set()))
    values = per_image(rows, {run.key: run.seed for run in runs}, [*compared, "iw", "nll"])
    compare.write_comparisons(cells, values, compared)
    if plan.study is not None:
        verdicts.write(plan.study, cells, {run.key: run.seed for run in runs})
    drawings = list(record_figures.from_records(cells, reported, variants_of(plan, runs)))
    drawings += record_figures.of_searches(searches)
    about = [each.about(plan.name) for each in (*figures.from_csv(rows), *drawings)]
    constant = {"figures": json.dumps(about), "remarks": json.dumps(remarks) if remarks else ""}
    for row in rows:
        row |= constant
    return _Page(rows, drawings)


def _check_own(out: Path, studies: Sequence[str]) -> None:
    """Check that no file is overwritten that is not an earlier page.

    Raises:
        UsageError: one is not.
    """
    heads = {out / f"{page.INDEX}.md": {page.TITLE}}
    for study in studies:
        heads[out / f"{study}.md"] = {f"# {study}"}
        heads[out / f"{study}.csv"] = set(csv_file.NEEDED)
        for name in ("html", "tex", "json"):
            heads[out / f"{study}.{name}"] = {"glas-bench"}
    for path, wanted in heads.items():
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                first, second = file.readline().rstrip("\n"), file.readline()
        except OSError:  # there is none, or writing will say more
            continue
        known = {first, *first.split(","), "glas-bench" * ("glas-bench" in first + second)}
        if not wanted <= known:
            raise UsageError(f"{path} is not of glas-bench; give another folder with --out")


def _write(made: _Page, request: Request, out: Path) -> list[str]:
    """Write a page, all that is asked for beside it, and its figures; return the files' names."""
    study = made.rows[0]["study"]
    content = csv_file.write(made.rows)
    _put(out / f"{study}.csv", content)
    rows = csv_file.read(out / f"{study}.csv")  # a page is made from its csv alone
    markdown = page.render(rows)
    pictures = _figures(made, request, rows, out / "figures")
    files = {"csv": content, "md": markdown.encode()}
    others: dict[str, tuple[bool, Callable[[], str]]] = {
        "html": (request.html, lambda: html_page.render(study, markdown, pictures)),
        "tex": (request.latex, lambda: latex.render(rows)),
        "json": (request.as_json, lambda: results_json.render(rows)),
    }
    for suffix, (wanted, render) in others.items():
        if wanted or (out / f"{study}.{suffix}").is_file():  # an earlier one is not left behind
            files[suffix] = render().encode()
    for suffix, content in files.items():
        _put(out / f"{study}.{suffix}", content)
    return [f"{study}.{suffix}" for suffix in files]


def _figures(made: _Page, request: Request, rows: Sequence[Row], folder: Path) -> dict[str, bytes]:
    """Write the figures of a page in every format; return the PNGs by file name."""
    study = made.rows[0]["study"]
    drawn = {each.file(study): each for each in (*figures.from_csv(rows), *made.drawings)}
    pictures: dict[str, bytes] = {}
    missing = []
    for name in (one["file"] for one in page.figures_of(rows)):
        for kind in ("png", "svg", "pdf"):
            file = str(Path(name).with_suffix(f".{kind}"))
            if kind not in ("png", *request.formats) and not (folder / file).is_file():
                continue
            if name in drawn:
                picture = drawn[name].picture(kind)
            elif made.beside is not None and (made.beside / "figures" / file).is_file():
                picture = (made.beside / "figures" / file).read_bytes()
            else:
                missing.append(file)
                continue
            _put(folder / file, picture)
            if kind == "png":
                pictures[name] = picture
    if missing:
        request.tell(f"{study}: drawn from the record, not from a csv: {', '.join(missing)}")
    return pictures


def _write_index(request: Request, out: Path) -> list[str]:
    """Write the list of all pages in a folder, with its figures; return which csv it lacks."""
    pages, problems = page.read_pages(out)
    drawings = list(figures.of_pages(pages.values()))
    for each in drawings:
        for kind in ("png", *request.formats):
            path = (out / "figures" / each.file(page.INDEX)).with_suffix(f".{kind}")
            _put(path, each.picture(kind))
    about = [each.about(page.INDEX) for each in drawings]
    text = page.index(pages, about, (out / page.ARCHIVE).is_file())
    _put(out / f"{page.INDEX}.md", text.encode())
    return problems


def _put(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, lambda file: file.write(content))
