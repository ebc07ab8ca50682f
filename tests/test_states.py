"""Where cells stand: joined from trials, counted, timed and shown."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from glas_bench.sweep import states, view
from glas_bench.sweep.plan import Item, differences, digest
from glas_bench.sweep.states import State
from glas_bench.sweep.trials import Row


def item(cell: str = "cauchy", **about: Any) -> Item:
    values: dict[str, Any] = {
        "cell": cell,
        "variant": cell.split()[0],
        "params": {},
        "key": "k",
        "protocol": "p",
        "seeds": [0, 1],
        "baseline": None,
        "not_applicable": None,
        "searched": [],
        "cost": 10.0,
    }
    return Item(**{**values, **about})


def document(*items: Item, **about: Any) -> dict[str, Any]:
    return {
        "name": "some",
        "question": "Which?",
        "version": 1,
        "preset": "quick",
        "dataset": "mnist-5k",
        "seeds": [0, 1],
        "tuning_seeds": [7, 8],
        "trials": 3,
        "space": {},
        "skipped": [{"variant": "content", "params": {}, "axis": "grid", "reason": "has none"}],
        "claims": [],
        "cells": [asdict(each) for each in items],
        **about,
    }


def row(state: str = "complete", number: int = 0, **about: Any) -> Row:
    values: dict[str, Any] = {
        "study": "some",
        "number": number,
        "state": state,
        "cell": "cauchy",
        "key": "k",
        "protocol": "p",
        "seeds": [0, 1],
        "retry_of": None,
        "is_search": False,
        "of": None,
        "withdrawn": False,
        "begun": True,
        "values": {},
        "value": None,
        "about": {},
        "owner": None,
    }
    return Row(**{**values, **about})


def state(*rows: Row, **about: Any) -> State:
    (found,) = states.states(document(item(**about)), rows)
    return found


DONE = {"outcomes": {"0": "complete", "1": "diverged"}}


@pytest.mark.parametrize(
    ("rows", "status", "seeds"),
    [
        ([], "waiting", ["waiting", "waiting"]),
        ([row("waiting")], "waiting", ["waiting", "waiting"]),
        ([row("running")], "running", ["running", "running"]),
        ([row(about=DONE)], "complete", ["complete", "diverged"]),
        ([row("failed", about={"outcomes": {"0": "complete", "1": "failed"}})], "failed",
         ["complete", "failed"]),
        # a seed that was added later
        ([row(seeds=[0], about=DONE)], "waiting", ["complete", "waiting"]),
        ([row(seeds=[0], about=DONE), row("running", 1, seeds=[1])], "running",
         ["complete", "running"]),
        # run once more
        ([row("failed"), row("waiting", 1, retry_of=0)], "waiting", ["waiting", "waiting"]),
        ([row("failed"), row("complete", 1, retry_of=0, about=DONE)], "complete",
         ["complete", "diverged"]),
        # what the cell was before it changed, and what the study no longer wants
        ([row(key="old", about=DONE)], "waiting", ["waiting", "waiting"]),
        ([row("pruned", withdrawn=True)], "waiting", ["waiting", "waiting"]),
        ([row("pruned", about={"status": "not_applicable"})], "not_applicable",
         ["not_applicable"] * 2),
    ],
)  # fmt: skip
def test_states_are_joined_from_trials(rows: list[Row], status: str, seeds: list[str]) -> None:
    found = state(*rows)
    assert (found.status, list(found.seeds.values())) == (status, seeds)


def test_a_search_until_its_best_is_known() -> None:
    tried = [
        row(is_search=True, seeds=[7, 8]),
        row("failed", 1, is_search=True, seeds=[7, 8]),
        row("running", 2, is_search=True, seeds=[7, 8]),
    ]
    found = state(*tried, searched=["steps"])
    assert (found.status, found.reason) == ("running", "search: 2 of 3 trials, 1 failed")
    assert list(found.seeds.values()) == ["waiting", "waiting"]
    best = row(key="best", of="k", about=DONE)
    edited = row(key="best", of="as it was before", about=DONE)
    assert state(*tried[:2], edited, searched=["steps"]).status == "waiting"
    assert state(*tried[:2], best, searched=["steps"]).status == "complete"
    newer = row("waiting", 1, key="better", of="k")
    assert state(*tried[:2], best, newer, searched=["steps"]).status == "waiting"
    lost = [row("failed", n, is_search=True) for n in range(3)]
    assert state(*lost, searched=["steps"]).status == "failed"


def test_seconds_left() -> None:
    """From the seconds a finished trial took for its cost, shared by those that run now."""
    whole = document(item(), item("gaussian", cost=20.0))
    done = row(about={**DONE, "seconds": 40.0})  # 10 a seed: 2 s a unit of cost
    rows = [done]
    assert states.seconds_left(whole, [], states.states(whole, [])) is None
    assert states.seconds_left(whole, rows, states.states(whole, rows)) == 80.0
    resumed = row(about={**DONE, "seconds": 40.0, "worked": 1})  # the other seed was there before
    assert states.seconds_left(whole, [resumed], states.states(whole, [resumed])) == 160.0
    two = [
        done,
        row("running", 1, cell="gaussian", seeds=[0], owner={"token": "a"}),
        row("running", 2, cell="gaussian", seeds=[1], owner={"token": "b"}),
    ]
    assert states.seconds_left(whole, two, states.states(whole, two)) == 40.0


def test_the_table_of_status_has_reasons_skips_and_counts() -> None:
    whole = document(item(), item("gaussian"))
    rows = [row(about={**DONE, "nll": 123.456, "reason": "seed 1 diverged: nan"})]
    text = states.text(whole, states.states(whole, rows))
    assert "cauchy    complete    2/2  123.46" in text
    assert "cauchy: seed 1 diverged: nan" in text
    assert "skipped: content without grid: has none" in text
    assert text.endswith("2 cells: 1 complete, 1 waiting")


def test_differences_of_plans() -> None:
    old = document(item(), item("gaussian"))
    new = document(item(seeds=[0, 1, 2], key="other"), item("content"), version=2)
    assert differences(old, new) == [
        "new cells: content",
        "cells that are gone: gaussian",
        "cells that train otherwise: cauchy",
        "cells with other seeds: cauchy",
        "version 2 where it was 1",
    ]
    assert digest(old) != digest(new)
    assert digest(old) == digest({**old, "question": "Really?", "skipped": []})


# --------------------------------------------------------------------------- shown


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view.View, "EVERY", 0.0)
    shown = view.View()
    about = {"numbers": {"nll": 99.5, "iw": 100.0}, "seconds": 61.0, "reason": None}
    shown.show({"event": "begin", "cell": "cauchy", "name": "cauchy"})
    shown.show({"event": "seed", "cell": "cauchy", "seed": 0, "of": {"event": "train"}})
    shown.show({"event": "end", "name": "cauchy", "status": "complete", **about})
    whole = document(item(), item("gaussian"))
    shown.refresh(states.states(whole, [row(about=DONE)]), 75.0)
    assert capsys.readouterr().err.splitlines() == [
        "cauchy: running",
        "cauchy: complete, nll 99.50, 1:01",
        "2 cells: 1 complete, 1 waiting; about 1:15 left",
    ]


def test_the_table_shows_progress_and_what_runs_elsewhere() -> None:
    shown = view.Table()
    shown.console = Console(file=io.StringIO(), width=110, height=40, force_terminal=False)
    whole = document(item(), item("gaussian"), item("content"))
    rows = [
        row("running", owner={"pid": 1, "host": "here"}),
        row("running", 1, cell="gaussian", owner={"pid": 77, "host": "far"}),
    ]
    shown.refresh(states.states(whole, rows), 3700.0)
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


def test_a_long_study_shows_what_runs_and_failed_first() -> None:
    items = [item(f"cell-{index}") for index in range(50)]
    rows = [row("running", 1, cell="cell-40"), row("failed", 2, cell="cell-45")]
    found = view._window(states.states(document(*items), rows), 5)
    assert [each.item.cell for each in found] == [
        "cell-0",
        "cell-1",
        "cell-2",
        "cell-40",
        "cell-45",
    ]
