"""How far every cell of a study is: the JSON document of `status`, and what is made from it."""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glas_bench import decide
from glas_bench.errors import RunError
from glas_bench.record import FINISHED, RunFolder, join_statuses
from glas_bench.sweep import worker_id
from glas_bench.sweep.plan import Document
from glas_bench.sweep.trial import NUMBERS, Trial, best, standing
from glas_bench.text import aligned, count, number, winner_line

STATUSES = ("complete", "running", "waiting", "failed", "pruned", "not_applicable")


def status_document(
    plan: Document, trials: Sequence[Trial], results: Path | None = None
) -> Document:
    """Return the JSON document of `status` from the stored plan and all trials, searches' too.

    The seeds of a trial are in the database once all of them have ended; those that have ended
    before are read from the run folders in `results`.
    """
    trials = [_interrupted(trial) for trial in trials]
    cells = [_cell(plan, entry, trials, results) for entry in plan["cells"]]
    by_status = Counter(cell["status"] for cell in cells)
    return {
        "study": plan["name"],
        **{key: plan[key] for key in ("question", "version", "preset", "dataset")},
        "cells": cells,
        "skipped": plan["skipped"],
        "counts": {each: by_status[each] for each in STATUSES if by_status[each]},
    }


def _interrupted(trial: Trial) -> Trial:
    """Return a trial, as one that waits again if it runs and its process has ended."""
    if trial.status != "running" or not trial.owner or not worker_id.is_gone(trial.owner):
        return trial
    outcomes = dict.fromkeys(map(str, trial.seeds), "interrupted")
    reason = f"interrupted: {worker_id.described(trial.owner)} has ended; sweep again"
    return replace(trial, status="waiting", outcomes=outcomes, reason=reason)


def _cell(
    plan: Document, entry: Document, trials: Sequence[Trial], results: Path | None
) -> Document:
    own = [trial for trial in trials if not trial.is_search and trial.belongs(entry)]
    own = standing(own)
    if entry["searched"] and own:  # the best values of the last search
        own = [trial for trial in own if trial.key == own[-1].key]
    seeds = dict.fromkeys(entry["seeds"], "waiting")
    for trial in own:
        for seed in set(trial.seeds) & set(seeds):
            seeds[seed] = trial.outcomes.get(str(seed), trial.status)
    uncovered = set(seeds) - {seed for trial in own for seed in trial.seeds}
    status = join_statuses([trial.status for trial in own] + ["waiting"] * bool(uncovered))
    reasons = [trial.reason for trial in own if trial.reason]
    at_work = own
    search = _search(plan, entry, trials) if entry["searched"] else None
    if search and (not own or search["status"] in ("waiting", "running")):
        status = "waiting" if search["status"] == "complete" else search["status"]
        reasons = [search["reason"]]
        at_work = [trial for trial in trials if trial.is_search and trial.cell == entry["cell"]]
    workers = [worker_id.described(t.owner) for t in at_work if t.owner and t.status == "running"]
    key = own[-1].key if own else None if entry["searched"] else entry["key"]
    if results is not None and key and status in ("waiting", "running"):
        folder = RunFolder(results, entry["variant"], key)
        seeds |= {seed: _ended(folder, seed, entry["protocol"]) or seeds[seed] for seed in seeds}
    return {
        **{key: entry[key] for key in ("cell", "variant", "params")},
        "status": status,
        "seeds": [{"seed": seed, "status": status} for seed, status in seeds.items()],
        "reason": "; ".join(reasons) or None,
        "config_key": key,
        **({"worker": workers[0]} if workers else {}),
        **({"search": search} if search else {}),
        **_means(own),
    }


def _ended(folder: RunFolder, number: int, protocol: str) -> str | None:
    """Return how a seed has ended by its run folder, None where it has not.

    Scores are not read, as `SeedFolder.finished` does: a view asks every two seconds.
    """
    seed = folder.seed(number)
    with contextlib.suppress(RunError):  # a broken one is made again
        word = seed.status()["status"]
        scored = (seed.path / "eval" / f"{protocol}.json").is_file()
        return word if word == "diverged" or (word == "complete" and scored) else None
    return None


def _means(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the means over the complete seeds of all trials of a cell, nats per image.

    A number that some trial with complete seeds lacks is left out.
    """
    counts = [list(trial.outcomes.values()).count("complete") for trial in trials]
    scored = [(trial, some) for trial, some in zip(trials, counts, strict=True) if some]
    return {
        name: sum(trial.numbers[name] * some for trial, some in scored)
        / sum(some for _, some in scored)
        for name in NUMBERS
        if scored and all(name in trial.numbers for trial, _ in scored)
    }


def _search(plan: Document, entry: Document, trials: Sequence[Trial]) -> Document:
    """Return how far a cell's search is, its trials, and its winner or None.

    A winner has the least validation nll of all, nats per image; seconds are those of its trial.
    """
    about = entry["cell"], entry["key"]
    own = standing([t for t in trials if t.is_search and (t.cell, t.key) == about])
    by_status = Counter(trial.status for trial in own)
    done = by_status["complete"] + by_status["failed"] + by_status["pruned"]
    winner = best(own)
    status = "running" if by_status["running"] else "waiting"
    reason = f"search: {done} of {count(plan['trials'], 'trial')}"
    reason += "".join(f", {by_status[s]} {s}" for s in ("pruned", "failed") if by_status[s])
    if done >= plan["trials"] and not (by_status["running"] or by_status["waiting"]):
        status = "complete" if winner else "failed"
        if winner is None:
            reason += f"; none has a number: {own[0].reason or 'all diverged or failed'}"
    return {
        "status": status,
        "reason": reason,
        "winner": _tried(winner) if winner else None,
        "trials": [_tried(trial) for trial in own],
    }


def _tried(trial: Trial) -> Document:
    about = {"trial": trial.number, "values": trial.values, "status": trial.status}
    return {**about, "validation_nll": trial.value, "seconds": trial.seconds}


def seconds_at_most(
    plan: Document,
    trials: Sequence[Trial],
    seeds: Mapping[str, Sequence[int]],
    results: Path | None = None,
) -> float | None:
    """Return about how long the rest would take if cells had these seeds."""
    entries = plan["cells"]
    cells = [{**each, "seeds": seeds.get(each["cell"], each["seeds"])} for each in entries]
    plan = {**plan, "cells": cells}
    return seconds_left(plan, trials, status_document(plan, trials, results))


def seconds_left(plan: Document, trials: Sequence[Trial], status: Document) -> float | None:
    """Return about how long the rest takes, or None where nothing is known yet.

    From the seconds that finished trials took for each unit of cost, and the workers of now.
    """
    entries = {entry["cell"]: entry for entry in plan["cells"]}
    spent = work = 0.0
    for trial in trials:
        if trial.status == "complete" and trial.seconds > 0 and trial.cell in entries:
            spent += trial.seconds
            work += entries[trial.cell]["cost"] * (trial.worked or len(trial.seeds))
    if not work:
        return None
    left = 0.0
    for cell in status["cells"]:
        if cell["status"] in ("waiting", "running"):
            entry = entries[cell["cell"]]
            runs = sum(each["status"] in ("waiting", "running") for each in cell["seeds"])
            if entry["searched"]:
                over = Counter(each["status"] for each in cell["search"]["trials"])
                done = over["complete"] + over["failed"] + over["pruned"]
                runs += len(plan["tuning_seeds"]) * max(plan["trials"] - done, 0)
            left += entry["cost"] * runs
    workers = {str(trial.owner) for trial in trials if trial.status == "running"}
    return left * spent / work / max(len(workers), 1)


WIDTH = 79
"""Columns of text below a table."""


def summary(status: Document) -> str:
    """Return how many cells have each status, how many seeds are over and claims decided."""
    counts = ", ".join(f"{cells} {name}" for name, cells in status["counts"].items())
    text = f"{count(len(status['cells']), 'cell')}: {counts.replace('_', ' ')}"
    if not (claims := decide.summary(status.get("claims", ()))):
        return text
    seeds = [each["status"] for cell in status["cells"] for each in cell["seeds"]]
    done = sum(each in FINISHED for each in seeds)
    return f"{text}; {done} of {len(seeds)} seeds; {claims}"


def row(cell: Document) -> list[str]:
    """Return a cell's columns: name, status, finished of all seeds, nll."""
    done = sum(each["status"] in FINISHED for each in cell["seeds"])
    return [
        cell["cell"],
        cell["status"].replace("_", " "),
        f"{done}/{len(cell['seeds'])}",
        number(cell.get("nll")),
    ]


def table(status: Document) -> str:
    """Return the table of `status`, with reasons and skipped combinations below it."""
    rows = [[*row(cell), number(cell.get("elbo"))] for cell in status["cells"]]
    notes = [f"{cell['cell']}: {cell['reason']}" for cell in status["cells"] if cell["reason"]]
    searches = {cell["cell"]: cell["search"] for cell in status["cells"] if "search" in cell}
    notes += filter(None, (winner_line(*each) for each in searches.items()))
    notes += [skipped_line(skip) for skip in status["skipped"]]
    lines = aligned([["cell", "status", "seeds", "nll", "elbo"], *rows], ["elbo"])
    notes += [*wrapped(status.get("outdated", "")), *wrapped(status.get("unjudged", ""))]
    judged = status.get("claims", ())
    claims = [line for one in judged for line in claim_lines(one)]
    if judged and not decide.summary(judged) and len({one["why"] for one in judged}) == 1:
        counted = count(len(judged), "claim")
        claims = wrapped(f"{counted}: {judged[0]['verdict']}; {judged[0]['why']}")
    parts = [[f"{status['study']}: {status['question']}"], lines, notes, claims, [summary(status)]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def claim_lines(one: Mapping[str, Any]) -> list[str]:
    """Return a claim and, indented below it, its verdict, why, and what more seeds would do."""
    below = [decide.finding(one), *one["why"].split("; "), *one["outlook"].split("; ")]
    return [
        *wrapped(decide.heading(one)),
        *(line for part in below if part for line in wrapped(part, "    ")),
    ]


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a text as lines that fit a terminal."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def skipped_line(skip: Mapping[str, Any]) -> str:
    """Return a combination that is not planned, with the reason."""
    params = "".join(f" {key}={value}" for key, value in skip["params"].items())
    where = f" without {skip['axis']}" if skip["axis"] else params
    return f"skipped: {skip['variant']}{where}: {skip['reason']}"
