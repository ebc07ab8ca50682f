"""Sweeps on sqlite and PostgreSQL: planned once, run once, given back, taken over, extended."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from conftest import QUICKLY, Ended, Glas, children, sets, trials_at, until
from optuna.trial import TrialState
from quick.budget import QUICK
from services import Postgres

from glas_bench import environment, evaluate, registry, study
from glas_bench.commands import sweep as sweeping
from glas_bench.errors import RunError, UsageError
from glas_bench.record import load_run, note_of, note_study
from glas_bench.sweep import status, storage, worker, worker_id
from glas_bench.sweep.database import PATIENCE_AT_FIRST, Database, StorageDown
from glas_bench.sweep.plan import Document, Plan, digest
from glas_bench.sweep.queue import MOST_LOST, WATCHED_BEATS, Queue
from glas_bench.sweep.trial import Progress, Trial

HEAD = """\
name: tiny
question: Does it?
version: 1
preset: smoke
set: {batch: 2000, images: 16, steps: 1, hidden: 8, samples: 5}
"""
TINY = HEAD + "variants: [cauchy, gaussian]\nseeds: 0\n"
ALONE = TINY.replace(", gaussian", "")

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches /proc")


def write(glas: Glas, text: str) -> Path:
    path = glas.folder / "tiny.yaml"
    path.write_text(text)
    return path


def sweep(glas: Glas, text: str | None = None, *arguments: object, code: int = 0) -> Ended:
    """Sweep inside this process, without a mirror; print JSON, and exit with this code."""
    if text is not None:
        write(glas, text)
    ended = glas.here("sweep", glas.folder / "tiny.yaml", "--json", "--no-mirror", *arguments)
    assert ended.code == code, ended.err
    return ended


def start(glas: Glas, workers: int, text: str, **environment: object) -> subprocess.Popen[str]:
    """Start a sweep in a process of its own, scored in a moment."""
    write(glas, text)
    command = ("sweep", "tiny.yaml", "--workers", workers, "--no-mirror")
    return glas.start(*command, **environment, **QUICKLY)


def run_job(path: Path, glas: Glas, key: str) -> None:
    """Do the job of a worker process on a CPU."""
    job = worker.Job(study=str(path), results=str(glas.results), digest=key)
    worker.run_job(job, lambda event: None)


def command(queue: Queue, plan: Plan) -> sweeping.Sweep:
    """Return the sweep of a planned study on a CPU."""
    about: dict[str, Any] = dict.fromkeys(("preset", "dataset", "storage"))
    request = sweeping.Request(study=str(plan.study.path), results=plan.results, **about)
    return sweeping.Sweep(request, "cpu", plan, queue)


def cells(ended: Ended) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for cell in ended.json["cells"]}


def statuses(ended: Ended) -> dict[str, str]:
    return {name: cell["status"] for name, cell in cells(ended).items()}


def seeds_of(cell: dict[str, Any]) -> dict[int, str]:
    return {each["seed"]: each["status"] for each in cell["seeds"]}


def trials(glas: Glas, name: str = "tiny") -> list[optuna.trial.FrozenTrial]:
    return trials_at(storage.storage_url(None, glas.results), name)


def times(glas: Glas) -> dict[str, int]:
    """Return when each score was written, by run folder and seed."""
    scores = sorted(glas.results.glob("runs/*/seed-*/eval/*.json"))
    return {f"{path.parts[-4]}/{path.parts[-3]}": path.stat().st_mtime_ns for path in scores}


@pytest.fixture
def quick_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit recognisers for a moment: what is swept here is not looked at. In this process alone."""
    monkeypatch.setattr(evaluate, "BUDGET", QUICK)
    monkeypatch.setenv("GLAS_BENCH_CORES", "1")  # seeds one after another, in this process


quick = pytest.mark.usefixtures("quick_scoring")

OPEN: list[Database] = []


@pytest.fixture(autouse=True)
def _close_queues() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


# --------------------------------------------------------------------------- from first to last


@quick
def test_a_study_is_run_to_its_last_cell_and_then_nothing_is_left(glas: Glas) -> None:
    ended = sweep(glas, TINY)
    assert ended.json["study"] == "tiny"
    assert ended.json["counts"] == {"complete": 2}
    first = cells(ended)["cauchy"]
    assert seeds_of(first) == {0: "complete"}
    assert (first["variant"], first["params"], first["reason"]) == ("cauchy", {}, None)
    assert (glas.results / "runs" / f"cauchy-{first['config_key']}").is_dir()
    assert "gaussian: running" in ended.err
    before = times(glas)
    again = sweep(glas)
    assert "running" not in again.err
    assert times(glas) == before
    assert cells(again) == cells(ended)
    shown = glas.here("status", glas.folder / "tiny.yaml", "--json")
    assert shown.json["cells"] == ended.json["cells"]
    (trial, _) = trials(glas)
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["cell"] == trial.user_attrs["variant"] == "cauchy"
    assert trial.user_attrs["seeds"] == "0"
    assert str(os.getpid()) in trial.user_attrs["worker"]
    assert trial.user_attrs["elbo"] == pytest.approx(first["elbo"])
    assert trial.value is not None
    assert 100 < trial.value < 600


def test_status_before_the_first_sweep_and_of_no_study(glas: Glas) -> None:
    write(glas, TINY)
    ended = glas.here("status", glas.folder / "tiny.yaml", "--json")
    assert set(statuses(ended).values()) == {"waiting"}
    assert not glas.results.exists()
    text = glas.here("status", "filter_size", "--preset", "smoke")
    assert "12 cells: 12 waiting" in text.out
    assert "5 claims: no verdict; preset smoke gives none" in text.out
    wrong = glas.here("status", "filtr-size")
    assert wrong.code == 2
    assert "Did you mean 'filter-size'?" in wrong.err


def test_status_judges_the_claims_of_a_study_of_ones_own_by_its_name(glas: Glas) -> None:
    """As `report` does: from the file that its note names; without that, it says so."""
    claim = "{text: t, source: s, expect: nll(gaussian) > nll(cauchy)}"
    path = write(glas, f"dataset: mnist-5k\n{TINY}claims: [{claim}]\n")
    for preset in (None, "laptop"):
        loaded = study.load(str(path), preset)
        queue = opened(storage.storage_url(None, glas.results))
        queue.plan(Plan(loaded, glas.results), extend=False, retry_failed=False)
        about = {"file": str(path), "preset": loaded.preset, "dataset": loaded.dataset}
        note_study(glas.results, loaded.name, {}, **about, seeds="0")
    for words in ((), ("--preset", "laptop")):
        by_file = glas.here("status", path, *words, "--json").json
        assert len(by_file["claims"]) == 1
        assert glas.here("status", "tiny", *words, "--json").json == by_file
    assert by_file["study"] == "tiny@laptop"
    assert glas.here("status", "tiny@laptop", "--json").json == by_file
    path.rename(glas.folder / "moved.yaml")
    text = " ".join(glas.here("status", "tiny").out.split())
    assert f"1 claim not judged: the study's file {path} is not there; give its path" in text
    note_of(glas.results, "tiny").unlink()
    text = " ".join(glas.here("status", "tiny").out.split())
    assert f"1 claim not judged: {glas.results} has no note of its file" in text


def test_a_dry_run_prints_the_cells_and_opens_nothing(glas: Glas) -> None:
    ended = glas.here("sweep", "filter_size", "--dry-run", "--preset", "smoke")
    assert ended.code == 0
    assert "\ncauchy filter_size=1 grid=centred\n" in ended.out
    assert "\nclaim 2: " in ended.out
    assert ended.out.rstrip().endswith("filter-size@smoke: 12 cells, 60 runs of a seed")
    assert not glas.results.exists()
    document = glas.here("sweep", "filter_size", "--dry-run", "--json").json
    assert (document["count"], len(document["cells"])) == (12, 12)


@quick
def test_what_run_has_made_counts_at_once(glas: Glas) -> None:
    made = glas.here(
        "run", "--variant", "cauchy", "--preset", "smoke", "--no-mirror", "--json",
        *sets(batch=2000, images=16, steps=1, hidden=8, samples=5),
    )  # fmt: skip
    assert made.code == 0
    before = times(glas)
    ended = sweep(glas, TINY)
    assert "cauchy: running" not in ended.err
    assert before.items() <= times(glas).items()
    assert cells(ended)["cauchy"]["config_key"] == made.json["config_key"]
    other = sweep(glas, TINY.replace("name: tiny", "name: other"))  # nor is another study's run
    assert "running" not in other.err
    sweep(glas, TINY.replace("name: tiny", "name: more").replace("seeds: 0", "seeds: 0-1"))
    worked = [trial.user_attrs["worked"] for trial in trials(glas, "more")]
    assert worked == [1, 1]  # of two seeds each: the other was there


def test_not_applicable_is_listed_and_complete(glas: Glas) -> None:
    text = TINY.replace("[cauchy, gaussian]", "[fixed-supervised]") + "dataset: mnist-static\n"
    (cell,) = sweep(glas, text).json["cells"]
    assert cell["status"] == "not_applicable"
    assert "needs labels" in cell["reason"]


# --------------------------------------------------------------------------- failures

FRAGILE = '''\
from pathlib import Path

from glas_bench.model import Glas


class Fragile(Glas):
    """Fails while a file is there."""

    def build_recognition(self):
        if Path({path!r}).exists():
            raise RuntimeError("a cable is loose")
        super().build_recognition()
'''


@quick
def test_a_failed_cell_keeps_its_reason_and_is_run_again_when_asked(glas: Glas) -> None:
    broken = glas.folder / "broken"
    broken.touch()
    (glas.folder / "fragile.py").write_text(FRAGILE.format(path=str(broken)))
    ended = sweep(glas, TINY.replace("cauchy,", "./fragile.py,"), code=3)
    assert statuses(ended) == {"fragile": "failed", "gaussian": "complete"}
    assert "a cable is loose" in cells(ended)["fragile"]["reason"]
    broken.unlink()
    assert statuses(sweep(glas, code=3))["fragile"] == "failed"  # not without being asked
    retried = sweep(glas, None, "--retry", "failed")
    assert statuses(retried)["fragile"] == "complete"
    assert cells(retried)["fragile"]["reason"] is None
    assert Counter(t.state.name for t in trials(glas)) == {"COMPLETE": 2, "FAIL": 1}
    sweep(glas, None, "--retry", "failed")
    assert len(trials(glas)) == 3


def test_a_cell_left_by_a_dead_worker_counts_for_how_many_are_wanted(
    glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: two cells were left, one of them by a worker that was killed, and one worker began."""
    monkeypatch.setattr(environment, "cores", lambda: 8)
    queue, plan = planned(glas, TINY)
    trial = claimed(queue, plan)
    queue.settle(plan, lambda _: None)
    assert command(queue, plan).workers() == 1  # this process is there and runs it
    abandon(queue, trial, gone=True)
    queue.settle(plan, lambda _: None)
    assert command(queue, plan).workers() == 2


@pytest.mark.parametrize("trouble", ["workers die", "cuda no longer answers"])
def test_a_cell_that_breaks_worker_after_worker_fails_at_last(glas: Glas, trouble: str) -> None:
    queue, plan = planned(glas, ALONE)
    for _ in range(MOST_LOST):
        trial = claimed(queue, plan)
        if trouble == "workers die":
            abandon(queue, trial, gone=True)
        else:
            queue.give_back(trial, trouble)
    assert queue.claim(plan) == (None, False)
    (cell,) = status_of(queue)["cells"]
    assert cell["status"] == "failed"
    expected = trouble.replace("workers die", f"{MOST_LOST} workers died over it")
    assert expected in cell["reason"]


@quick
def test_what_is_gone_from_the_results_is_run_again(glas: Glas) -> None:
    ended = sweep(glas, TINY)
    folder = glas.results / "runs" / f"gaussian-{cells(ended)['gaussian']['config_key']}"
    before = times(glas)
    shutil.rmtree(folder)
    again = sweep(glas)
    assert "gaussian: was complete, and its results are gone" in again.err
    assert "cauchy: running" not in again.err
    assert sorted(times(glas)) == sorted(before)
    assert statuses(again) == statuses(ended)
    assert len(trials(glas)) == 3
    assert "running" not in sweep(glas).err


def test_of_a_shared_database_another_machine_may_have_the_results(glas: Glas) -> None:
    queue, plan = planned(glas, ALONE)
    trial = claimed(queue, plan)
    queue.finish(replace(trial, status="complete", value=1.0))
    assert command(queue, plan).is_gone(trial)
    queue.database.file = None  # as on PostgreSQL
    assert not command(queue, plan).is_gone(trial)
    folder = plan.cells["cauchy"].folder(glas.results)
    folder.prepare(plan.cells["cauchy"].config, {})  # `run --fresh`, which was killed
    assert command(queue, plan).is_gone(trial)
    with folder.locked():
        assert not command(queue, plan).is_gone(trial)


@quick
@pytest.mark.parametrize("trouble", ["the card is lost", "no process can be started"])
def test_a_machine_in_trouble_does_not_fail_the_study(
    glas: Glas, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def lost(*_: object) -> None:
        raise RunError(trouble)

    def run_trial(plan: Plan, trial: Trial, *_: object) -> Trial:
        if trouble == "no process can be started":
            raise OSError(12, trouble)
        return replace(trial, status="failed", reason="CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_trial", run_trial)
        patch.setattr(environment, "check_answers", lost)
        for _ in range(2):
            assert trouble in sweep(glas, TINY, code=1).err
        waiting = glas.here("status", glas.folder / "tiny.yaml", "--json")
        assert statuses(waiting) == {"cauchy": "waiting", "gaussian": "waiting"}
    sweep(glas)


def test_cells_left_by_workers_that_died_are_no_success() -> None:
    left = {"waiting": 2}
    lost = [(1, "worker 0 was killed by signal 9")]
    assert sweeping.exit_code(left, lost, limited=True) == 1
    assert sweeping.exit_code(left, [], limited=True) == 0  # as many trials as were asked for
    assert sweeping.exit_code(left, [], limited=False) == 1


# --------------------------------------------------------------------------- changed studies


@quick
def test_a_changed_study_is_refused_and_extended_only_when_asked(glas: Glas) -> None:
    sweep(glas, TINY)
    before = times(glas)
    wider = TINY.replace("gaussian]", "gaussian, hellinger]")
    refused = sweep(glas, wider, "--seeds", "0-1", code=2).err
    for part in ("new cells: hellinger", "cells with other seeds: cauchy, gaussian", "--extend"):
        assert part in refused
    assert times(glas) == before
    extended = sweep(glas, wider, "--seeds", "0-1", "--extend")
    both = {0: "complete", 1: "complete"}
    seeds = {name: seeds_of(cell) for name, cell in cells(extended).items()}
    assert seeds == dict.fromkeys(["cauchy", "gaussian", "hellinger"], both)
    assert before.items() <= times(glas).items()  # what was there was not run again
    assert len(times(glas)) == 6
    by_cell = Counter((t.user_attrs["cell"], t.user_attrs["seeds"]) for t in trials(glas))
    assert by_cell == {
        ("cauchy", "0"): 1, ("cauchy", "1"): 1, ("gaussian", "0"): 1, ("gaussian", "1"): 1,
        ("hellinger", "0,1"): 1,
    }  # fmt: skip
    sweep(glas, None, "--seeds", "0-1")
    assert "planned already" in sweep(glas, TINY, code=2).err


@quick
def test_texts_may_change_and_claims_may_not(glas: Glas) -> None:
    claim = "claims: [{text: a, source: b, expect: nll(cauchy) < nll(gaussian)}]\n"
    sweep(glas, TINY + claim, "--max-trials", 1)
    sweep(glas, TINY.replace("Does it?", "Well?") + claim, "--max-trials", 1)
    assert "other claims" in sweep(glas, TINY + claim.replace("<", ">"), code=2).err


@quick
def test_what_is_no_longer_wanted_is_not_run(glas: Glas) -> None:
    sweep(glas, TINY, "--max-trials", 1)
    fewer = sweep(glas, ALONE, "--extend")
    assert list(cells(fewer)) == ["cauchy"]
    assert len(times(glas)) == 1
    back = sweep(glas, TINY, "--extend")
    assert statuses(back) == {"cauchy": "complete", "gaussian": "complete"}


@quick
def test_max_trials_is_the_total_of_the_study(glas: Glas) -> None:
    text = TINY.replace("gaussian]", "gaussian, hellinger]")
    for most, expected in ((1, 1), (1, 1), (2, 2), (3, 3)):
        ended = sweep(glas, text, "--max-trials", most)
        assert ended.json["counts"].get("complete") == expected


# --------------------------------------------------------------------------- searches

SEARCH = (
    HEAD
    + """\
baseline: {variant: cauchy, latent_size: 9, filter_size: 5}
variants: [cauchy, gaussian]
space:
  latent_size: {low: 4, high: 12}
  filter_size: {low: 1, high: 6, at_most: latent_size}
trials: 3
tuning_seeds: 1000-1001
seeds: 0
"""
)


@quick
def test_a_search_gives_each_variant_the_same_and_reports_the_best_on_other_seeds(
    glas: Glas,
) -> None:
    some = sweep(glas, SEARCH, "--max-trials", 4)
    assert [len(trials(glas, f"tiny/{name}")) for name in ("cauchy", "gaussian")] == [2, 2]
    assert statuses(some)["cauchy"] == "waiting"
    assert cells(some)["cauchy"]["reason"] == "search: 2 of 3 trials"
    assert set(statuses(sweep(glas)).values()) == {"complete"}
    for name in ("cauchy", "gaussian"):
        tried = trials(glas, f"tiny/{name}")
        assert [trial.state for trial in tried] == [TrialState.COMPLETE] * 3
        for trial in tried:
            assert trial.params["filter_size"] <= min(6, trial.params["latent_size"])
            assert trial.user_attrs["seeds"] == "1000,1001"
        best = min(tried, key=lambda trial: (trial.value, trial.number))
        (reported,) = (t for t in trials(glas) if t.user_attrs["cell"] == name)
        assert reported.user_attrs["seeds"] == "0"
        won = {f"{key}={value}" for key, value in best.params.items()}
        assert won <= set(reported.user_attrs["settings"].split())
        key = reported.system_attrs["glas_bench:about"]["key"]
        run = load_run(glas.results / "runs" / f"{name}-{key}")
        assert {0} <= set(run.seeds) <= {0, 1000, 1001}
        assert {key: run.config.settings[key] for key in best.params} == best.params
    assert "running" not in sweep(glas).err


@quick
def test_what_a_search_runs_is_noted_however_it_ends(
    glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial = worker.run_trial

    def once(*arguments: Any) -> Trial:
        monkeypatch.setattr(worker, "run_trial", out_of_room)
        return run_trial(*arguments)

    def out_of_room(*_: object) -> Trial:
        raise RunError("no room")

    monkeypatch.setattr(worker, "run_trial", once)
    sweep(glas, SEARCH, code=1)
    noted = json.loads((glas.results / "studies" / "tiny.json").read_text())["folders"]
    made = {path.name for path in (glas.results / "runs").iterdir()}
    assert len(made) == 1
    assert made <= set(noted)


def test_a_trials_value_is_the_validation_nll_and_no_diverging_setting_wins(glas: Glas) -> None:
    """A cell that is reported has a value all the same: of the seeds that have one."""
    plan = Plan(study.load(str(write(glas, TINY))), glas.results)
    cell = plan.cells["cauchy"]
    trial = Trial.planned("tiny", plan.entries["cauchy"], [0, 1])
    for seed, value in ((0, 90.0), (1, 92.0)):
        folder = cell.folder(glas.results).seed(seed)
        scores = {"nll": 1.0, "validation_nll": value}
        folder.save_scores(cell.protocol, scores, {})
        folder.set_status("complete", step=1)
    both: dict[int, dict[str, Any]] = {0: {"status": "complete"}, 1: {"status": "complete"}}
    searched = replace(trial, is_search=True)
    assert worker.end_of(searched, cell, glas.results, both).value == 91
    both[1] = {"status": "diverged"}
    ended = worker.end_of(trial, cell, glas.results, both)
    assert (ended.status, ended.value) == ("complete", 90)  # a diverged seed counts as finished
    assert ended.outcomes == {"0": "complete", "1": "diverged"}
    assert worker.end_of(searched, cell, glas.results, both).value is None


@quick
def test_an_edited_variant_is_searched_again(glas: Glas) -> None:
    variant = glas.folder / "mine.py"
    variant.write_text(registry.find("gaussian").path.read_text())
    text = SEARCH.replace("trials: 3", "trials: 1").replace("gaussian]", "./mine.py]")
    assert cells(sweep(glas, text))["mine"]["nll"] > 0
    variant.write_text(variant.read_text() + "EDITED = True\n")
    extended = sweep(glas, None, "--max-trials", 1, "--extend")  # no trial for either search
    assert statuses(extended)["mine"] == "waiting"
    assert "nll" not in cells(extended)["mine"]
    sweep(glas)


@quick
def test_choices_alone_are_each_tried_once(glas: Glas) -> None:
    choices = "space: {learning_rate: {choices: [3e-4, 3e-3]}}\ntuning_seeds: 1000\n"
    sweep(glas, ALONE + choices)
    tried = trials(glas, "tiny/cauchy")
    assert [trial.params["learning_rate"] for trial in tried] == [3e-4, 3e-3]
    assert trials(glas)[0].user_attrs["settings"] == "learning_rate=0.003"


def searching(axis: str, count: int) -> str:
    return f"{ALONE}space: {{learning_rate: {{{axis}}}}}\ntuning_seeds: 1000\ntrials: {count}\n"


PLAIN = "low: 1.0e-4, high: 1.0e-2"


@quick
def test_an_axis_of_a_search_with_trials_cannot_change(glas: Glas) -> None:
    sweep(glas, searching(PLAIN, 1))
    database = glas.results / "optuna.db"
    kept = dump(database)
    for other in (f"{PLAIN}, log: true", "choices: [1.0e-4, 1.0e-3]"):
        ended = sweep(glas, searching(other, 2), "--extend", "--workers", 2, code=2)
        assert "tiny/cauchy has trials, and learning_rate was FloatDistribution" in ended.err
        assert "give the study another name" in ended.err
    another = searching(PLAIN, 2).replace("space: {", "space: {filter_size: {low: 1, high: 4}, ")
    assert "filter_size was not searched" in sweep(glas, another, "--extend", code=2).err
    assert dump(database) == kept
    moved = sweep(glas, searching("low: 1.0e-3, high: 1.0e-1", 2), "--extend")  # a range may
    assert statuses(moved) == {"cauchy": "complete"}
    assert len(trials(glas, "tiny/cauchy")) == 2


@quick
def test_a_search_in_which_every_trial_diverges_has_failed(glas: Glas) -> None:
    ended = sweep(glas, searching("low: 1.0e+30, high: 1.0e+36, log: true", 2), code=3)
    (cell,) = cells(ended).values()
    assert cell["status"] == "failed"
    assert "search: 2 of 2 trials; none has a number: seed 1000 diverged" in cell["reason"]
    assert cell["search"]["winner"] is None
    assert len(trials(glas, "tiny/cauchy")) == 2
    sweep(glas, None, "--retry", "failed", code=3)
    repeated = trials(glas, "tiny/cauchy")
    assert [(trial.state.name, trial.value) for trial in repeated] == [("COMPLETE", math.inf)] * 4


@quick
def test_a_page_names_the_winner_of_a_search_and_draws_it(glas: Glas) -> None:
    ended = sweep(glas, searching(PLAIN, 2))
    won = cells(ended)["cauchy"]["search"]["winner"]
    least = min(trials(glas, "tiny/cauchy"), key=lambda trial: trial.value or 0.0)
    assert (won["trial"], won["validation_nll"]) == (least.number, least.value)
    assert glas.here("report", "tiny").code == 0
    page = (glas.results / "report" / "tiny.md").read_text()
    assert f"best of 2 trials is learning_rate={won['values']['learning_rate']}" in page
    picture = glas.results / "report" / "figures" / "tiny-search-cauchy.png"
    assert picture.name in page
    assert picture.stat().st_size > 1000


# --------------------------------------------------------------------------- stopped and killed

SLOW = TINY.replace("batch: 2000", "epochs: 12")


def is_training(glas: Glas) -> Callable[[], bool]:
    return lambda: bool(list(glas.results.glob("runs/*/seed-0/checkpoint-*.pt")))


@quick
@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_gives_cells_back_and_they_go_on(
    glas: Glas, workers: int, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone on sqlite; side by side on PostgreSQL, whose password nothing shows."""
    if workers > 1:
        monkeypatch.setenv("OPTUNA_STORAGE", postgres.fresh())
    first = start(glas, workers, SLOW, GLAS_BENCH_CHECKPOINT_SECONDS=0)
    until(is_training(glas), first)
    for pid in (first.pid, *children(first.pid)):
        assert Postgres.PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    first.terminate()
    ended = glas.ended(first)
    assert ended.code == 75, ended.err
    assert "given back" in ended.err
    assert Postgres.PASSWORD not in ended.out + ended.err
    assert {trial.state for trial in trials(glas)} == {TrialState.WAITING}
    assert all(t.system_attrs.get("glas_bench:lost", 0) == 0 for t in trials(glas))
    paths = glas.results.glob("runs/*/seed-0/status.json")
    stopped = [json.loads(path.read_text()) for path in paths]
    assert {each["status"] for each in stopped} == {"interrupted"}
    assert max(each["step"] for each in stopped) > 0  # a second worker may have just begun
    sweep(glas)
    assert Counter(trial.state.name for trial in trials(glas)) == {"COMPLETE": 2}


@quick
@linux
def test_a_killed_sweep_is_taken_up_at_once_where_it_was(glas: Glas) -> None:
    first = start(glas, 1, SLOW, GLAS_BENCH_CHECKPOINT_SECONDS=0)
    until(is_training(glas), first)
    first.kill()
    first.wait()
    assert [t.state.name for t in trials(glas)] == ["RUNNING", "WAITING"]
    sweep(glas)
    assert [t.system_attrs.get("glas_bench:lost", 0) for t in trials(glas)] == [1, 0]
    assert len(trials(glas)) == 2
    (folder,) = glas.results.glob("runs/cauchy-*")
    rows = load_run(folder).seeds[0].metrics
    assert [row["epoch"] for row in rows] == list(range(1, 13))


@linux
def test_a_worker_that_is_killed_is_reported_and_the_others_go_on(glas: Glas) -> None:
    running = start(glas, 2, SLOW)
    until(is_training(glas), running)
    os.kill(children(running.pid)[0], signal.SIGKILL)
    ended = glas.ended(running)
    assert ended.code == 0, ended.err
    assert "was killed by signal 9" in ended.err
    assert Counter(trial.state.name for trial in trials(glas)) == {"COMPLETE": 2}


def test_a_cell_that_another_command_runs_is_left_to_it(glas: Glas) -> None:
    plan = Plan(study.load(str(write(glas, TINY))), glas.results)
    with plan.cells["cauchy"].folder(glas.results).locked():
        running = start(glas, 1, TINY)
        until(lambda: len(times(glas)) == 1, running)  # gaussian, meanwhile
    ended = glas.ended(running)
    assert ended.code == 0, ended.err
    assert "cauchy: given back, already running" in ended.err


def test_workers_divide_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLAS_BENCH_CORES", "1")
    assert environment.cores() == 1
    monkeypatch.setenv("GLAS_BENCH_CORES", "100000")
    assert environment.cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(environment, "cores", lambda: 8)
    for cells, threads, expected in ((24, 1, 8), (24, 3, 2), (3, 1, 3), (0, 16, 1)):
        assert worker.default_workers("cpu", cells, threads) == expected


def test_workers_that_would_share_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: 2)
    for device, most in (("cpu", 9), ("cuda", 2), ("cuda:1", 1)):
        worker.check_workers(device, most)
    for device, words in (("cuda", "--workers 9 on 2 GPUs"), ("cuda:1", "on 1 GPU: the seeds")):
        with pytest.raises(UsageError, match=words):
            worker.check_workers(device, 9)


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (TINY.replace("5}", "5, precision: tf32}"), (), "precision tf32: for GPUs only"),
        (TINY + "grid: {precision: [fp32, tf32]}\n", (), "precision tf32: for GPUs only"),
        (TINY + "space: {precision: {choices: [fp32, tf32]}}\ntuning_seeds: 1000\n", (),
         "precision tf32: for GPUs only"),
        (TINY, ("--pruner", "median"), "tiny has no key `space`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_planned(
    glas: Glas, text: str, arguments: tuple[str, ...], words: str
) -> None:
    assert words in sweep(glas, text, *arguments, code=2).err
    assert not glas.results.exists()


def test_cells_take_the_precision_of_the_device_unless_the_study_names_one(glas: Glas) -> None:
    path = str(write(glas, TINY.replace("gaussian]", "{variant: gaussian, precision: bf16}]")))
    loaded = study.load(path, precision="tf32").by_name.values()
    assert [cell.config.precision for cell in loaded] == ["tf32", "bf16"]
    assert {cell.config.precision for cell in study.load(path).cells} == {"fp32", "bf16"}


# --------------------------------------------------------------------------- the queue itself


def planned(glas: Glas, text: str, url: str | None = None) -> tuple[Queue, Plan]:
    plan = Plan(study.load(str(write(glas, text))), glas.results)
    queue = opened(url or storage.storage_url(None, glas.results))
    queue.plan(plan, extend=False, retry_failed=False)
    return queue, plan


def opened(url: str) -> Queue:
    OPEN.append(database := Database(url))
    return Queue(database)


def claimed(queue: Queue, plan: Plan) -> Trial:
    trial, _ = queue.claim(plan)
    assert trial is not None
    return trial


def status_of(queue: Queue) -> Document:
    read = queue.read("tiny")
    assert read is not None
    return status.status_document(*read)


def _start(plan: Plan, url: str, gate: Any, out: Any) -> None:
    """Be one of many first starts: plan, then claim until nothing is left."""
    gate.wait()
    try:
        queue = Queue(Database(url))
        queue.plan(plan, extend=False, retry_failed=False)
        claimed = []
        while any(answer := queue.claim(plan)):
            trial, _ = answer
            if trial is None:
                time.sleep(0.05)
                continue
            claimed.append(trial.cell)
            queue.finish(replace(trial, status="complete", value=1.0))
        out.put(claimed)
    except BaseException as error:
        out.put(repr(error))
        raise


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_ten_first_starts_plan_and_claim_each_cell_once(
    glas: Glas, kind: str, request: pytest.FixtureRequest
) -> None:
    text = TINY.replace("seeds: 0", "grid: {filter_size: [1, 2, 3, 4, 5, 6]}\nseeds: 0")
    plan = Plan(study.load(str(write(glas, text))), glas.results)
    url = storage.storage_url(None, glas.results)
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
    several = multiprocessing.get_context("fork")
    gate, out = several.Barrier(10), several.Queue()
    processes = [several.Process(target=_start, args=(plan, url, gate, out)) for _ in range(10)]
    for each in processes:
        each.start()
    answers = [out.get(timeout=300) for _ in processes]
    for each in processes:
        each.join()
    assert all(isinstance(each, list) for each in answers), answers
    assert Counter(cell for each in answers for cell in each) == dict.fromkeys(plan.entries, 1)
    ended = trials_at(url, "tiny")
    assert Counter(t.user_attrs["cell"] for t in ended) == dict.fromkeys(plan.entries, 1)
    assert {t.state for t in ended} == {TrialState.COMPLETE}


def abandon(queue: Queue, trial: Trial, seconds: float = 0.0, *, gone: bool = False) -> None:
    """Sign a trial by another machine's process, or by one of this machine that has ended.

    Its last heartbeat was so many seconds ago.
    """
    place = {"began": 0.0} if gone else {"host": "elsewhere", "room": "elsewhere"}
    other = {**worker_id.own_id(), **place, "token": "theirs"}
    queue.database.storage.set_trial_system_attr(trial.id, "glas_bench:owner", other)
    past = "UPDATE trial_heartbeats SET heartbeat = datetime('now', :ago) WHERE trial_id = :id"
    with queue.database.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text(past), {"ago": f"-{seconds} seconds", "id": trial.id})


def test_a_trial_of_another_machine_is_watched_before_it_is_taken_over(
    glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLAS_BENCH_BEAT_SECONDS", "0.4")
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("glas_bench.sweep.queue.time", clock)
    queue, plan = planned(glas, ALONE)
    trial = claimed(queue, plan)
    abandon(queue, trial, 0)
    assert queue.claim(plan) == (None, True)
    now[0] += 60
    queue.database.storage.record_heartbeat(trial.id)
    assert queue.claim(plan) == (None, True)  # it beats: it may be alive
    abandon(queue, trial, 60)
    assert queue.claim(plan) == (None, True)  # old, but for the first time
    now[0] += 0.9
    assert queue.claim(plan) == (None, True)
    queue.database.outages += 1  # what was seen before one does not count
    now[0] += 0.9
    assert queue.claim(plan) == (None, True)
    now[0] += 0.9
    queue.database.storage.record_heartbeat(trial.id)  # it lives after all
    assert queue.claim(plan) == (None, True)
    abandon(queue, trial, 60)
    assert queue.claim(plan) == (None, True)
    now[0] += WATCHED_BEATS * queue.database.beat
    taken = claimed(queue, plan)
    assert taken.id == trial.id


def test_a_trial_that_was_taken_over_is_not_ended_by_the_worker_that_lost_it(glas: Glas) -> None:
    queue, plan = planned(glas, TINY)
    trial = claimed(queue, plan)
    other = opened(queue.database.url)
    abandon(queue, trial, 0)
    queue.database.storage.set_trial_system_attr(trial.id, "glas_bench:owner", other.database.owner)
    queue.finish(replace(trial, status="failed", reason="late"))
    queue.give_back(trial)
    assert queue.database.storage.get_trial(trial.id).state == TrialState.RUNNING
    other.finish(replace(trial, status="complete", value=1.0))
    queue.finish(replace(trial, status="failed", reason="late"))
    assert queue.database.storage.get_trial(trial.id).state == TrialState.COMPLETE


def test_a_claim_whose_answer_got_lost_is_taken_up(glas: Glas) -> None:
    queue, plan = planned(glas, TINY)
    first, second = queue.claim(plan), queue.claim(plan)
    assert first == second


def test_what_cannot_be_read_under_the_lock_is_not_blamed_on_it(glas: Glas) -> None:
    queue, plan = planned(glas, ALONE)

    def ended(_: Trial) -> Trial:
        raise PermissionError(13, "Permission denied", "config.yaml")

    with pytest.raises(PermissionError, match=r"config\.yaml"):
        queue.settle(plan, ended)


def test_cells_that_claims_compare_come_first(glas: Glas) -> None:
    claim = "{text: a, source: b, expect: effective_dimensions(gaussian) < 2 dimensions}"
    queue, plan = planned(glas, f"{TINY}claims: [{claim}]\n")
    assert claimed(queue, plan).cell == "gaussian"


def test_a_claim_cut_short_is_free_again(glas: Glas) -> None:
    queue, plan = planned(glas, ALONE)
    (trial,) = trials(glas)
    queue.database.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # and killed
    claimed(queue, plan)


def test_beating_goes_on_through_an_outage(
    postgres: Postgres, glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLAS_BENCH_BEAT_SECONDS", "0.2")
    queue, plan = planned(glas, TINY, postgres.fresh())
    trial = claimed(queue, plan)

    def last() -> Any:
        with queue.database.storage.engine.connect() as connection:
            query = "SELECT heartbeat FROM trial_heartbeats"
            return connection.execute(sqlalchemy.text(query)).scalar()

    with queue.beating(trial, Progress(trial.seeds)):
        before = last()
        until(lambda: last() > before)
        postgres.stop()
        time.sleep(0.5)
        postgres.start()
        with contextlib.suppress(sqlalchemy.exc.OperationalError):
            last()
        after = last()
        until(lambda: last() > after)
    queue.finish(replace(trial, status="complete", value=1.0))
    claimed(queue, plan)


def test_an_outage_seen_by_one_thread_leaves_no_connection_of_another_open(
    postgres: Postgres, glas: Glas
) -> None:
    queue, _ = planned(glas, TINY, url := postgres.fresh())
    database = queue.database
    failures = iter([sqlalchemy.exc.OperationalError("", None, Exception("away"))])

    def failing_once() -> None:
        for error in failures:
            raise error

    with database.storage.engine.connect():
        database.through(failing_once)
    database.close()
    viewer = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with viewer.connect() as connection:
        ask = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        until(lambda: connection.execute(sqlalchemy.text(ask)).scalar() == 1, seconds=20)


def test_a_file_that_was_replaced_by_its_copy_is_written(glas: Glas) -> None:
    queue, plan = planned(glas, TINY)
    trial = claimed(queue, plan)
    file = queue.database.file
    assert file is not None
    shutil.copy(file, copy := file.with_name("copy.db"))
    copy.replace(file)
    queue.finish(replace(trial, status="complete", value=1.0))
    assert {t.state for t in trials_at(queue.database.url, "tiny")} >= {TrialState.COMPLETE}


def test_a_database_that_stays_away_is_reported(
    postgres: Postgres, glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, plan = planned(glas, TINY, postgres.fresh())
    monkeypatch.setattr("glas_bench.sweep.database.PATIENCE", 0.5)
    monkeypatch.setattr(Database.through, "__defaults__", (0.5,))
    postgres.stop()
    try:
        with pytest.raises(StorageDown, match="does not answer") as caught:
            queue.claim(plan)
    finally:
        postgres.start()
    assert Postgres.PASSWORD not in str(caught.value)


def test_a_worker_waits_for_a_database_that_is_away_as_it_starts(
    postgres: Postgres, glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent has just seen it; a worker that gave up would be one fewer to the end."""
    queue, plan = planned(glas, ALONE, url := postgres.fresh())
    trial = claimed(queue, plan)
    queue.finish(replace(trial, status="complete", value=1.0))  # so there is nothing left to do
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    monkeypatch.setitem(Database.__init__.__kwdefaults__, "patience", 0.2)
    postgres.stop()
    back = threading.Timer(1.5, postgres.start)
    back.start()
    try:
        run_job(plan.study.path, glas, digest(plan.document))
    finally:
        back.join()


# --------------------------------------------------------------------------- addresses


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.storage_url(None, tmp_path) == f"sqlite:///{tmp_path / 'optuna.db'}"
    assert storage.storage_url("sqlite:////a/b.db", tmp_path) == "sqlite:////a/b.db"
    for scheme in ("postgres", "postgresql", "postgres+psycopg", "postgresql+psycopg"):
        monkeypatch.setenv("OPTUNA_STORAGE", f"{scheme}://me:pw@h/d")
        assert storage.storage_url(None, tmp_path) == "postgresql+psycopg://me:pw@h/d"
    assert storage.storage_url("postgresql://h/d", tmp_path) == "postgresql+psycopg://h/d"
    for wrong in ("mysql://me:secret@h/d", "optuna.db", "sqlite://", "redis://h"):
        monkeypatch.setenv("OPTUNA_STORAGE", wrong)
        with pytest.raises(UsageError, match="postgresql://user@host") as caught:
            storage.storage_url(None, tmp_path)
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="needs a file"):
        storage.storage_url("sqlite:///:memory:", tmp_path)


def test_a_study_that_somebody_else_made_is_left_alone(glas: Glas) -> None:
    """Whatever it is like, and whether it has the study's own name or that of its search."""
    url = f"sqlite:///{glas.folder / 'shared.db'}"
    theirs = optuna.create_study(study_name="tiny", storage=url, direction="maximize")
    theirs.enqueue_trial({"x": 1.0})
    theirs.ask({"x": optuna.distributions.FloatDistribution(0, 10)})
    optuna.create_study(study_name="second/cauchy", storage=url)  # has nothing yet
    optuna.create_study(study_name="third", storage=url).set_user_attr("cell", "cauchy")
    for text, name in (
        (TINY, "tiny"),
        (SEARCH.replace("name: tiny", "name: second"), "second/cauchy"),
        (TINY.replace("name: tiny", "name: third"), "third"),
    ):
        kept = dump(glas.folder / "shared.db")
        ended = glas.here("sweep", write(glas, text), "--no-mirror", "--storage", url)
        assert (ended.code, dump(glas.folder / "shared.db")) == (2, kept)
        assert f"has a study '{name}' that glas-bench did not make" in ended.err
        assert "shared.db" in ended.err
    theirs.tell(theirs.trials[0].number, 1.0)  # its owner goes on


def test_a_study_of_ours_is_known_by_its_marks(glas: Glas) -> None:
    queue, plan = planned(glas, SEARCH)
    queue.plan(plan, extend=False, retry_failed=False)
    for name in plan.studies:  # older versions marked searches by the name of their values alone
        queue.database.make_study(name)
        id = queue.database.study_id(name)
        attributes = queue.database.storage.get_study_system_attrs(id)
        assert attributes["glas_bench:made"]
        assert attributes["study:metric_names"] == ["validation nll"]


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [*database.iterdump()]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (["experiments", "runs", "alembic_version"], "is a database of MLflow; give Optuna one"),
        (["slot", "alembic_version"], "is a database of another program; give Optuna one"),
        (None, "is of another Optuna: The runtime optuna version"),
    ],
)
def test_a_database_of_another_kind_or_version_is_named(
    glas: Glas, tables: list[str] | None, message: str
) -> None:
    path = glas.folder / "some.db"
    if tables is None:
        opened(f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path)) as database:
        for table in tables or ():
            database.execute(f"create table {table} (a int)")
        if tables is None:
            database.execute("update alembic_version set version_num = 'v2.6.0.a'")
        database.commit()
    kept = dump(path)
    for command in ("sweep", "status"):
        ended = glas.here(command, write(glas, TINY), "--storage", f"sqlite:///{path}")
        assert ended.code == 1
        assert message in ended.err
        assert "some.db" in ended.err
        assert "bug" not in ended.err
    assert dump(path) == kept


@pytest.mark.parametrize(
    ("tracking", "given"),
    [
        (None, "sqlite:///{results}/mlflow.db"),
        ("sqlite:////tmp/both.db", "sqlite:////tmp/x/../both.db"),
        ("postgresql+psycopg://me:s3s@h:5432/d", "postgres://you@h/d"),
    ],
)
def test_mlflow_and_optuna_share_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: str | None, given: str
) -> None:
    if tracking:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    with pytest.raises(UsageError, match="MLflow's database"):
        storage.storage_url(given.format(results=tmp_path), tmp_path)
    assert storage.storage_url("postgresql://h/other", tmp_path)


@pytest.mark.parametrize(
    "url", [f"postgresql://me{x}" for x in (":s3s@h/d", "@h/d?password=s3s", ":s3[s@h/d")]
)
@pytest.mark.parametrize("command", ["sweep", "sweep --dry-run", "status"])
def test_a_password_on_the_command_line_is_refused(glas: Glas, command: str, url: str) -> None:
    ended = glas.here(*command.split(), write(glas, TINY), "--storage", url)
    assert ended.code == 2
    assert "s3" not in ended.err
    for other in ("OPTUNA_STORAGE", "PGPASSWORD", "~/.pgpass"):
        assert other in ended.err
    assert ("%5B" in ended.err) == ("[" in url)


def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [("/home", "ext3"), ("/", "ext4"), ("/home", "nfs4"), ("/home/local", "xfs")]
    mounts.append(("/media/two words", "cifs"))
    named = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: named)
    for path, kind in (
        ("/var/optuna.db", "ext4"),
        ("/home/me/results/optuna.db", "nfs4"),  # mounted over ext3, and later
        ("/home/local/optuna.db", "xfs"),
        ("/homework/optuna.db", "ext4"),
        ("/media/two words/optuna.db", "cifs"),
    ):
        assert storage.file_system(Path(path)) == kind
    monkeypatch.setattr(storage, "file_system", lambda path: "nfs4")
    with pytest.raises(UsageError, match=r"network file system \(nfs4\).*--storage postgresql"):
        storage.storage_url(None, tmp_path)
    assert storage.storage_url("postgresql://h/d", tmp_path)


def test_a_wrong_password_is_reported_at_once_and_not_repeated(
    postgres: Postgres, glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", postgres.url(password="s3same"))
    began = time.monotonic()
    ended = sweep(glas, TINY, code=1)
    assert "authentication failed" in ended.err
    assert "s3same" not in ended.err + ended.out
    assert time.monotonic() - began < PATIENCE_AT_FIRST  # that long an outage is waited for


def test_a_file_that_is_no_database(glas: Glas) -> None:
    glas.results.mkdir()
    (glas.results / "optuna.db").write_text("x" * 5000)
    assert "not a database" in sweep(glas, TINY, code=1).err


# --------------------------------------------------------------------------- small parts


def test_owners() -> None:
    me = worker_id.own_id()
    assert not worker_id.is_gone(me)
    assert worker_id.is_gone({**me, "began": "1"})  # its pid was given to another process since
    assert not worker_id.is_gone({**me, "room": "another machine", "began": "1"})
    assert str(os.getpid()) in worker_id.described(me)


def test_a_beat_that_is_no_number_is_refused(glas: Glas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLAS_BENCH_BEAT_SECONDS", "often")
    assert "GLAS_BENCH_BEAT_SECONDS=often" in sweep(glas, TINY, code=2).err


def test_a_study_edited_under_its_workers_is_noticed(glas: Glas) -> None:
    with pytest.raises(RunError, match="changed since the command began"):
        run_job(write(glas, TINY), glas, "of another plan")


SCRIPT = Path(__file__).parents[1] / "slurm" / "sweep.sbatch"


def test_the_batch_script() -> None:
    assert len([line for line in SCRIPT.read_text().splitlines() if line and line[0] != "#"]) <= 12
    beside = Path(sys.executable).parent / "shellcheck"
    tool = beside if beside.is_file() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([tool, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (3, False)])
def test_the_batch_script_passes_the_signal_on_and_requeues_on_75(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    """With stand-ins for Slurm and for the sweep, which ends so when it is asked to stop."""
    for name, text in (
        ("scontrol", f'echo "$*" > {tmp_path}/requeued'),
        (
            "glas-bench",
            f"trap 'sleep 0.3; exit {code}' TERM; echo \"$*\" > {tmp_path}/started\n"
            "while :; do sleep 0.05; done",
        ),
    ):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}
    process = subprocess.Popen(
        ["bash", SCRIPT, "some-study", "--preset", "short"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    started, again = tmp_path / "started", tmp_path / "requeued"
    until(lambda: started.is_file() and started.read_text())
    assert started.read_text().strip() == "sweep some-study --preset short"
    process.terminate()
    assert process.wait(timeout=30) == code
    assert (again.read_text() if again.is_file() else "") == "requeue 11_3\n" * requeued


# --------------------------------------------------------------------------- as a dashboard sees it

GRID = TINY + "grid: {filter_size: [1, 3], grid: [original, centred]}\n"


@pytest.mark.parametrize("server", [False, True], ids=["sqlite", "postgres"])
def test_settings_are_parameters_and_what_is_new_fits_beside_them(
    server: bool, glas: Glas, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres").fresh() if server else None
    queue, plan = planned(glas, GRID, url)
    for nll in (100.0, 90.0):
        trial = claimed(queue, plan)
        queue.finish(replace(trial, status="complete", value=nll, curve={1: nll + 9, 2: nll}))
    before = [each.params for each in trials_at(queue.database.url, "tiny")]
    assert before[1] == {"variant": "cauchy", "filter_size": 1, "grid": "centred"}
    wider = GRID.replace("gaussian]", "gaussian, fixed-random]").replace("[1, 3]", "[1, 3, 5]")
    plan = Plan(study.load(str(write(glas, wider))), glas.results)
    queue.plan(plan, extend=True, retry_failed=False)
    after = trials_at(queue.database.url, "tiny")
    assert len(after) == 18
    assert [each.params for each in after[:8]] == before
    axes = after[0].distributions
    assert all(each.distributions == axes for each in after)  # what importance is ranked over
    assert after[1].intermediate_values == {1: 99.0, 2: 90.0}
    assert claimed(queue, plan).params == before[2]


def test_an_axis_of_numbers_can_become_one_of_words(glas: Glas) -> None:
    queue, _ = planned(glas, ALONE)
    (first,) = queue.database.trials("tiny")
    values = [2, 2, 5, 0.5, "all"]
    for value in values:
        queue.database.add(replace(first, params={"images": value}))
    rows = trials(glas)[1:]
    assert [each.params["images"] for each in rows] == values
    assert len({str(each.distributions) for each in rows}) == 1


PRUNED = (
    ALONE.replace("batch: 2000", "epochs: 8, batch: 500")
    + """\
trials: 6
tuning_seeds: 1000
space: {learning_rate: {choices: [0.01, 0.011, 0.012, 0.013, 0.014, 1.0e-7]}}
"""
)


@quick
def test_a_pruner_ends_the_worst_trial_of_a_search_and_no_seed_that_is_reported(
    glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLAS_BENCH_BEAT_SECONDS", "0.1")
    ended = sweep(glas, PRUNED, "--pruner", "median")
    tried = trials(glas, "tiny/cauchy")
    assert tried[-1].state is TrialState.PRUNED
    assert 0 < len(tried[-1].intermediate_values) < 8
    assert {each.state for each in tried[:5]} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert [*tried[0].intermediate_values] == [*range(1, 9)]
    (reported,) = trials(glas)
    assert len(reported.intermediate_values) == 8
    search = cells(ended)["cauchy"]["search"]
    assert search["trials"][-1]["status"] == "pruned"
    assert "pruned" in search["reason"]
    assert statuses(sweep(glas)) == {"cauchy": "complete"}  # nothing is left to do
