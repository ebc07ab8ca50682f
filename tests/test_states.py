"""Where cells stand: joined from trials, counted, timed and shown."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabricated
import pytest
from rich.console import Console

from glas_bench import registry, study
from glas_bench.record import RunFolder
from glas_bench.sweep import status, view, worker_id
from glas_bench.sweep.plan import VERSIONS, differences, digest, outdated
from glas_bench.sweep.trial import Trial

Document = dict[str, Any]


ALIKE: Document = {"variant": "cauchy", "key": "k", "protocol": "p", "seeds": [0, 1]}


def entry(cell: str = "cauchy", **about: Any) -> Document:
    more = {"params": {}, "baseline": None, "not_applicable": None, "searched": [], "cost": 10.0}
    return {"cell": cell, **ALIKE, **more, **about}


def plan_of(*entries: Document, **about: Any) -> Document:
    plan: Document = {"name": "some", "question": "Which?", "version": 1, "preset": "quick"}
    plan |= {"dataset": "mnist-5k", "seeds": [0, 1], "tuning_seeds": [7, 8], "trials": 3}
    skipped = [{"variant": "content", "params": {}, "axis": "grid", "reason": "has none"}]
    plan |= {"skipped": skipped, "space": {}, "claims": [], "cells": list(entries)}
    return {**plan, **about}


def trial(state: str = "complete", number: int = 0, **about: Any) -> Trial:
    more = {"study": "some", "cell": "cauchy", "settings": "", "begun": True}
    return Trial(**{**ALIKE, **more, "status": state, "number": number, **about})


def cell_of(*trials: Trial, **about: Any) -> Document:
    """Return the only cell of a study's status."""
    (cell,) = status.status_document(plan_of(entry(**about)), trials)["cells"]
    assert isinstance(cell, dict)
    return cell


def seeds_of(cell: Document) -> list[str]:
    return [each["status"] for each in cell["seeds"]]


def seconds_left(plan: Document, trials: list[Trial]) -> float | None:
    return status.seconds_left(plan, trials, status.status_document(plan, trials))


DONE: Document = {"outcomes": {"0": "complete", "1": "diverged"}}


@pytest.mark.parametrize(
    ("trials", "joined", "seeds"),
    [
        ([], "waiting", ["waiting", "waiting"]),
        ([trial("waiting")], "waiting", ["waiting", "waiting"]),
        ([trial("running")], "running", ["running", "running"]),
        ([trial(**DONE)], "complete", ["complete", "diverged"]),
        ([trial("failed", outcomes={"0": "complete", "1": "failed"})], "failed",
         ["complete", "failed"]),
        # a seed that was added later
        ([trial(seeds=[0], **DONE)], "waiting", ["complete", "waiting"]),
        ([trial(seeds=[0], **DONE), trial("running", 1, seeds=[1])], "running",
         ["complete", "running"]),
        # run once more
        ([trial("failed"), trial("waiting", 1, retry_of=0)], "waiting", ["waiting", "waiting"]),
        ([trial("failed"), trial("complete", 1, retry_of=0, **DONE)], "complete",
         ["complete", "diverged"]),
        # what the cell was before it changed, and what the study no longer wants
        ([trial(key="old", **DONE)], "waiting", ["waiting", "waiting"]),
        ([trial("withdrawn")], "waiting", ["waiting", "waiting"]),
        ([trial("not_applicable")], "not_applicable", ["not_applicable"] * 2),
    ],
)  # fmt: skip
def test_a_cells_status_is_joined_from_its_trials(
    trials: list[Trial], joined: str, seeds: list[str]
) -> None:
    cell = cell_of(*trials)
    assert (cell["status"], seeds_of(cell)) == (joined, seeds)


def test_a_search_until_its_best_is_known() -> None:
    tried = [
        trial(state, number, is_search=True, seeds=[7, 8])
        for number, state in enumerate(("complete", "failed", "running"))
    ]
    cell = cell_of(*tried, searched=["steps"])
    assert (cell["status"], cell["reason"]) == ("running", "search: 2 of 3 trials, 1 failed")
    assert seeds_of(cell) == ["waiting", "waiting"]
    best = trial(key="best", best_of="k", **DONE)
    edited = trial(key="best", best_of="as it was before", **DONE)
    newer = trial("waiting", 1, key="better", best_of="k")
    over = [replace(each, status="complete", value=9.0 - each.number) for each in tried]
    failed = [trial("failed", n, is_search=True) for n in range(3)]
    for others, joined in (
        ([*over, edited], "waiting"),
        ([*over, best], "complete"),
        ([*over[:2], best], "waiting"),  # more trials are wanted than before
        ([*over, best, newer], "waiting"),
        (failed, "failed"),
        ([*failed, trial("waiting", 3, is_search=True, retry_of=0)], "waiting"),
    ):
        assert cell_of(*others, searched=["steps"])["status"] == joined


def test_a_search_names_its_winner_or_why_it_has_none() -> None:
    about: Document = {"is_search": True, "seeds": [7, 8], "seconds": 70.0}
    tried = [
        trial(number=n, values={"steps": n}, value=[9.0, 5.0, None][n], **about) for n in range(3)
    ]
    best = trial(number=3, key="best", best_of="k", **DONE)
    document = status.status_document(plan_of(entry(searched=["steps"])), [*tried, best])
    (cell,) = document["cells"]
    assert (cell["status"], cell["config_key"]) == ("complete", "best")
    won = {"trial": 1, "values": {"steps": 1}, "status": "complete"}
    assert cell["search"]["winner"] == {**won, "validation_nll": 5.0, "seconds": 70.0}
    assert len(cell["search"]["trials"]) == 3
    line = "cauchy: best of 3 trials is steps=1, validation nll 5.00 in 1:10"
    assert line in status.table(document).splitlines()
    why = "seed 7 diverged: loss is not finite"
    diverged = [replace(each, value=None, reason=why) for each in tried]
    cell = cell_of(*diverged, searched=["steps"])
    assert cell["status"] == "failed"
    assert cell["reason"] == f"search: 3 of 3 trials; none has a number: {why}"


def test_a_trial_whose_process_was_killed_is_interrupted() -> None:
    own = worker_id.own_id()
    assert cell_of(trial("running", owner=own))["status"] == "running"
    killed = cell_of(trial("running", owner=own | {"began": own["began"] - 100.0}))
    assert (killed["status"], seeds_of(killed)) == ("waiting", ["interrupted"] * 2)
    assert killed["reason"].startswith(f"interrupted: pid {own['pid']} on ")
    elsewhere = own | {"began": 0.0, "room": "of another machine"}
    assert cell_of(trial("running", owner=elsewhere))["status"] == "running"


def test_seconds_left() -> None:
    """From the seconds a finished trial took for its cost, shared by those that run now."""
    plan = plan_of(entry(), entry("gaussian", cost=20.0))
    done = trial(**DONE, seconds=40.0)  # 10 a seed: 2 s a unit of cost
    assert seconds_left(plan, []) is None
    assert seconds_left(plan, [done]) == 80.0
    resumed = trial(**DONE, seconds=40.0, worked=1)  # the other seed was finished before
    assert seconds_left(plan, [resumed]) == 160.0
    running = [
        trial("running", n, cell="gaussian", seeds=[n - 1], owner={"pid": n, "host": "here"})
        for n in (1, 2)
    ]
    assert seconds_left(plan, [done, *running]) == 40.0


def test_the_table_of_status_has_reasons_skips_and_counts() -> None:
    done = trial(**DONE, numbers={"nll": 123.456}, reason="seed 1 diverged: nan")
    text = status.table(status.status_document(plan_of(entry(), entry("gaussian")), [done]))
    assert "cauchy    complete    2/2  123.46" in text
    assert "cauchy: seed 1 diverged: nan" in text
    assert "skipped: content without grid: has none" in text
    assert text.endswith("2 cells: 1 complete, 1 waiting")


def test_differences_of_plans() -> None:
    old = plan_of(entry(), entry("gaussian"))
    new = plan_of(entry(seeds=[0, 1, 2], key="other"), entry("content"), version=2)
    assert differences(old, new) == [
        "new cells: content",
        "cells that are gone: gaussian",
        "cells that train otherwise: cauchy",
        "cells with other seeds: cauchy",
        "version 2 where it was 1",
    ]
    assert digest(old) != digest(new)
    assert digest(old) == digest({**old, "question": "Really?", "skipped": []})
    more = plan_of(entry(seeds=[0, 1, 2]), entry("gaussian"), seeds=[0, 1, 2])
    assert digest(old) != digest(more)
    assert digest(old, seeds=False) == digest(more, seeds=False)
    assert digest(old) == digest({**old, **VERSIONS})  # versions alone make no other plan
    assert differences(old, {**old, **VERSIONS}) == []


@pytest.mark.parametrize(
    ("stored", "cells", "why"),
    [
        (VERSIONS, set(), ""),
        (VERSIONS | {"core_version": 1}, {"cauchy", "gaussian"}, "core 1, protocol"),
        ({}, {"cauchy", "gaussian"}, "an older one; now core"),
    ],
)
def test_cells_that_another_version_planned(stored: Document, cells: set[str], why: str) -> None:
    plan = plan_of(entry(), entry("gaussian"), **stored)
    assert outdated(plan, None)[0] == cells
    assert why in outdated(plan, None)[1]


# --------------------------------------------------------------------------- shown


def claim(number: int = 1, verdict: str = "undecided", **about: Any) -> Document:
    looks = [{"number": 1, "seeds": 5, "low": -1.0, "high": 3.0, "estimate": 1.0}]
    more = {"expect": "elbo(a) >\n  elbo(b)", "at": {"grid": "original"}, "unit": "nats"}
    more |= {"looks": looks, "planned": [5, 8], "why": "", "outlook": ""}
    return {"claim": number, "verdict": verdict, **more, **about}


def test_claims_have_lines_of_their_own_that_fit_a_terminal() -> None:
    plan = plan_of(entry(), entry("gaussian"))
    document = status.status_document(plan, [trial(**DONE)])
    short = "look 2 of 4 waits for 8 seeds of each arm: gaussian has 2"
    document["claims"] = [
        claim(outlook=f"{short}; {'seeds ' * 20}"),
        claim(2, "no verdict", looks=[], why="it is about preset short", at={}),
    ]
    assert status.table(document).splitlines()[-10:] == [
        "claim 1: elbo(a) > elbo(b), grid=original",
        "    undecided at look 1 of 2 (5 seeds): +1.00 nats [-1.00, +3.00]",
        f"    {short}",
        f"    {'seeds ' * 12}".rstrip(),
        f"        {'seeds ' * 8}".rstrip(),
        "claim 2: elbo(a) > elbo(b)",
        "    no verdict",
        "    it is about preset short",
        "",
        "2 cells: 1 complete, 1 waiting; 2 of 4 seeds; 0 of 1 claims decided",
    ]
    document["claims"] = document["claims"][1:] * 2
    assert "\n\n2 claims: no verdict; it is about preset short\n\n" in status.table(document)


def test_seeds_and_time_to_the_next_look_and_to_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(entry(), entry("gaussian"))
    trials = [trial(**DONE, seconds=40.0), trial("running", 1, cell="gaussian")]
    assert status.seconds_at_most(plan, trials, {"gaussian": [0, 1, 2]}) == 60.0
    assert status.seconds_at_most(plan, trials, {"cauchy": [0, 1, 2]}) == 60.0
    monkeypatch.setattr(view.View, "EVERY", 0.0)
    shown = view.View()
    shown.show({"event": "begin", "cell": "gaussian", "name": "gaussian", "seeds": [0, 1]})
    document = status.status_document(plan, trials) | {"claims": [claim()]}
    document["cells"][1]["seeds"][0]["status"] = "complete"  # a seed of two is over
    left = status.seconds_left(plan, trials, document)
    shown.refresh(document, left, 40.0)
    assert capsys.readouterr().err.splitlines() == [
        "gaussian: running, seeds 0,1",
        "2 cells: 1 complete, 1 running; 3 of 4 seeds; 0 of 1 claims decided; about 20 s left "
        "to the next look, 40 s to the last one",
    ]


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_seeds_that_have_ended_count_before_their_trial_does(state: str, tmp_path: Path) -> None:
    """A trial is all missing seeds of a cell; a killed one waits with those that it finished."""
    (made,) = study.by_hand(registry.find("cauchy"), None, [0], preset="smoke")
    about = {"key": "0123456789ab", "seeds": [0, 1, 2, 3]}
    folder = RunFolder(tmp_path, "cauchy", about["key"])
    folder.prepare(made.config, {})
    for seed, word in ((0, "complete"), (1, "diverged"), (2, "training")):
        fabricated.status(folder.seed(seed), word)
    fabricated.status(folder.seed(3), "complete")
    protocol = fabricated.score(folder.seed(0), made.config, fabricated.Arm())
    plan = plan_of(entry(**about, protocol=protocol))
    own = trial(state, **about, protocol=protocol, owner=worker_id.own_id())
    (cell,) = status.status_document(plan, [own], tmp_path)["cells"]
    # seed 3 has no scores by this protocol
    assert seeds_of(cell) == ["complete", "diverged", state, state]
    assert cell["status"] == state


def test_the_rest_of_a_search_counts_whatever_waits() -> None:
    """One of three trials is over, on two seeds; the best then runs on two more."""
    plan = plan_of(entry(searched=["steps"]))
    about: Document = {"is_search": True, "seeds": [7, 8]}
    over = trial("complete", 0, **about, value=9.0, seconds=20.0)
    planned = [trial("waiting", number, **about, begun=False) for number in (1, 2)]
    assert seconds_left(plan, [over]) == 20.0 * 2 + 20.0  # drawn one by one
    assert seconds_left(plan, [over, *planned]) == 20.0 * 2 + 20.0  # all choices at once


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view.View, "EVERY", 0.0)
    shown = view.View()
    about = {"numbers": {"nll": 99.5, "iw": 100.0}, "seconds": 61.0, "reason": None}
    shown.show({"event": "begin", "cell": "cauchy", "name": "cauchy"})
    shown.show({"event": "seed", "cell": "cauchy", "seed": 0, "of": {"event": "train"}})
    shown.show({"event": "end", "name": "cauchy", "status": "complete", **about})
    plan = plan_of(entry(), entry("gaussian"))
    for _ in range(2):
        shown.refresh(status.status_document(plan, [trial(**DONE)]), 75.0)
    assert capsys.readouterr().err.splitlines() == [
        "cauchy: running",
        "cauchy: complete, nll 99.50, 1:01",
        "2 cells: 1 complete, 1 waiting; about 1:15 left",
    ]


def test_the_table_shows_progress_and_what_runs_elsewhere() -> None:
    shown = view.Table()
    shown.console = Console(file=io.StringIO(), width=110, height=40, force_terminal=False)
    trials = [
        trial("running", owner={"pid": 1, "host": "here"}),
        trial("running", 1, cell="gaussian", owner={"pid": 77, "host": "far"}),
    ]
    plan = plan_of(entry(), entry("gaussian"), entry("content"))
    shown.refresh(status.status_document(plan, trials), 3700.0)
    shown.show({"event": "begin", "cell": "cauchy", "name": "cauchy"})
    train = {"event": "train", "epoch": 2, "epochs": 9, "images_per_second": 500.0}
    train |= {"seconds_left": 65.0}
    shown.show({"event": "seed", "cell": "cauchy", "seed": 1, "of": train})
    shown.console.print(shown.render())
    text = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert "seed 1: epoch 2/9  500 images/s  1:05 left" in text
    assert "pid 77 on far" in text
    assert "3 cells: 2 running, 1 waiting; about 1:01:40 left" in text
    shown.show({"event": "end", "cell": "cauchy"})
    assert not shown.progress


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_its_terminal(width: int) -> None:
    shown = view.Table()
    shown.console = Console(file=io.StringIO(), width=width, height=40, force_terminal=False)
    names = [f"cell learning_rate=0.001 floor={number} steps=16 hidden=256" for number in range(3)]
    trials = [trial("running", owner={"pid": 1, "host": "here"}, cell=names[0])]
    trials.append(trial("failed", 1, cell=names[1], reason="RuntimeError: " + "word " * 40))
    shown.refresh(status.status_document(plan_of(*map(entry, names)), trials), 3700.0, 7400.0)
    shown.progress[names[0]] = "seed 1: epoch 200/900  500 images/s  1:05:00 left"
    shown.console.print(shown.render())
    lines = shown.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    starts = [line[:12] for line in lines[1:4]]
    assert len(set(starts)) == 3 or len({line.split("  ")[0] for line in lines[1:4]}) == 3


def test_a_long_study_shows_what_runs_and_failed_first() -> None:
    plan = plan_of(*(entry(f"cell-{index}") for index in range(50)))
    trials = [trial("running", 1, cell="cell-40"), trial("failed", 2, cell="cell-45")]
    cells = status.status_document(plan, trials)["cells"]
    names = [f"cell-{index}" for index in (0, 1, 2, 40, 45)]
    assert [cell["cell"] for cell in view._window(cells, 5)] == names
