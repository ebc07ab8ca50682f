"""What `evaluate` and `samples` do: score a finished run again, and draw it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glas_bench import display, environment, evaluate, signals
from glas_bench.commands import Answer
from glas_bench.errors import unknown
from glas_bench.record import RunFolder, find_run
from glas_bench.runs import pictures
from glas_bench.runs.finished import FinishedSeed, load_finished
from glas_bench.runs.seed import checkpoint_seconds
from glas_bench.text import aligned, number, screen_width

ESTIMATORS = (*evaluate.ESTIMATORS, "ais")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `evaluate` is asked for."""

    results: Path
    run: str  # a path, or an unambiguous prefix of a run's name or key
    estimators: str  # comma-separated, of `ESTIMATORS`
    samples: int | None  # K; by default the run's own
    images: int | None  # by default the run's own, and 100 for ais
    temperatures: int  # N of ais
    chains: int  # of ais
    seed: int | None  # by default every finished one
    device: str


def carry_out(request: Request) -> Answer:
    """Score the finished seeds of a run; protocols that are scored already are read back.

    The document has one row for each seed, and one for each seed scored by AIS. The exit code is 3
    where a seed is left out because a file of it is broken.

    Raises:
        UsageError: no such run, seed or estimator, or a number out of range.
        RunError: another process works in the folder, or it cannot be loaded.
    """
    names = [name.strip() for name in request.estimators.split(",")]
    for name in names:
        if name not in ESTIMATORS:
            raise unknown("estimator", name, ESTIMATORS)
    path = find_run(request.results, request.run)
    device = environment.choose_device(request.device)
    own = [name for name in names if name != "ais"]
    rows: list[dict[str, Any]] = []
    texts = []
    try:
        with RunFolder.at(path).locked(), display.make_display() as shown, signals.graceful():
            seeds = load_finished(path, request.seed, device)
            record = seeds[0].record
            environment.prepare_torch(record.config.threads, evaluate.PRECISION)
            if own:
                rows += [_by_weights(each, request, own, shown) for each in seeds]
                texts.append(weights_text(rows))
            if "ais" in names:
                from glas_bench.ais.verdict import scores_text

                refereed = [_by_ais(each, request, shown) for each in seeds]
                rows += refereed
                texts.append(scores_text(refereed))
    except signals.Stopped:
        resume = "stopped; finished work is kept, and the same command resumes"
        return Answer("", None, signals.exit_code(), [resume])
    code = 3 if record.problems else 0
    return Answer("\n\n".join(texts), {"seeds": rows}, code, record.problems)


def _by_weights(
    finished: FinishedSeed, request: Request, estimators: list[str], shown: display.Display
) -> dict[str, Any]:
    """Return the scores of a seed by importance weights."""
    scorer = evaluate.Scorer(
        finished.model,
        finished.record.config,
        finished.splits,
        finished.seed,
        samples=request.samples,
        images=request.images,
        estimators=estimators,
    )

    def tick(stage: str, done: int, total: int) -> None:
        _show(finished, shown, {"event": "score", "stage": stage, "done": done, "total": total})

    folder = finished.record.seeds[finished.seed].folder
    scores = evaluate.score_into(folder, scorer, tick, checkpoint_seconds())
    return {"seed": finished.seed, "protocol_key": scorer.key, **scores}


def _by_ais(finished: FinishedSeed, request: Request, shown: display.Display) -> dict[str, Any]:
    """Return the scores of a seed by annealed importance sampling."""
    from glas_bench.ais.referee import Referee, score_into

    referee = Referee(
        finished.model,
        finished.record.config,
        finished.splits,
        finished.seed,
        images=request.images,
        temperatures=request.temperatures,
        chains=request.chains,
    )
    folder = finished.record.seeds[finished.seed].folder
    scores = score_into(
        folder, referee, lambda event: _show(finished, shown, event), checkpoint_seconds()
    )
    return {"seed": finished.seed, "protocol_key": referee.key, "estimator": "ais", **scores}


def _show(finished: FinishedSeed, shown: display.Display, event: dict[str, Any]) -> None:
    """Show an event.

    Raises:
        Stopped: the process was asked to stop.
    """
    signals.check()
    shown.show(f"{finished.record.path.name} seed {finished.seed}", event)


def weights_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the scores as a table, nats per image: every estimator for each K of the sweep."""
    sweeps = [
        (row, q, prefix, row.get(f"{prefix}iw_sweep") or {})
        for row in rows
        for q, prefix in (("own", ""), ("refit", "refit_"))
    ]
    sizes = sorted({size for *_, sweep in sweeps for size in sweep}, key=int)
    head = ["seed", "q", "images", "elbo", *(f"iw, K={size}" for size in sizes), "v", "ESS"]
    table = [
        [
            str(row["seed"]),
            q,
            str(row["images"]),
            number(row[f"{prefix}elbo"]),
            *(number(sweep.get(size)) for size in sizes),
            number(row[f"{prefix}v_mean"]),
            number(row[f"{prefix}ess_mean"], 1),
        ]
        for row, q, prefix, sweep in sweeps
        if any(value is not None for value in sweep.values())
    ]
    lines = aligned([head, *table])
    for row in rows:
        if row["nll"] is not None:
            by = "own q" if row["nll_from"] == "iw" else "the refitted q"
            bound = ", a bound only" if row["nll_bound_only"] else ""
            lines.append(f"seed {row['seed']}: nll {number(row['nll'])} by {by}{bound}")
    if any(row["bound_only"] or row.get("refit_bound_only") for row in rows):
        lines += ["", "a bound only: twice the draws lowered it by more than 0.1 nats."]
    return "\n".join(lines)


def draw(results: Path, run: str, seed: int | None, images: int | None) -> Iterator[str]:
    """Draw the finished seeds of a run; yield lines of text as they form, and the pictures' paths.

    Raises:
        UsageError: no such run or seed.
        RunError: the run cannot be loaded.
    """
    finished = load_finished(find_run(results, run), seed)
    traced = [pictures.trace(each, images) for each in finished]
    for each, traces in zip(finished, traced, strict=True):
        if pictures.is_text(each):
            yield from _forming(each.title, traces)
    for each, traces in zip(finished, traced, strict=True):
        yield from map(str, pictures.draw(each.folder, each, traces))


def _forming(title: str, traces: pictures.Traces) -> Iterator[str]:
    """Yield the likeliest line at each step, a row a step, of samples and of reconstructions."""
    highlights = screen_width() is not None and not os.environ.get("NO_COLOR")
    yield f"{title}: the likeliest line at each step"
    yield "Characters that changed since the step before are " + (
        "highlighted." if highlights else "marked below by ^."
    )
    of_x = [*pictures.written(traces.x_BP)[0]]
    for what, canvases_TBP in (("sample", traces.prior_TBP), ("test line", traces.canvases_TBP)):
        made = [pictures.written(each)[0] for each in canvases_TBP]
        for b in range(canvases_TBP.shape[1]):
            lines = [each[b] for each in made]
            yield from ("", f"{what} {b + 1}")
            changed = set(pictures.changes(lines))
            for row, line in enumerate(lines):
                marks = [(row, place) in changed for place in range(len(line))]
                pairs = [*zip(line, marks, strict=True)]
                if highlights:
                    line = "".join(f"\033[7m{c}\033[0m" if new else c for c, new in pairs)
                yield f"{f't={row + 1}':>5}  {line}".rstrip()
                if any(marks) and not highlights:
                    yield " " * 7 + "".join(" ^"[new] for new in marks).rstrip()
            if what == "test line":
                yield f" true  {of_x[b]}".rstrip()
    yield ""
