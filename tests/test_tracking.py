"""The MLflow mirror, on real parts: sqlite files, an MLflow server, processes that are killed."""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import until
from fabricated import BEGAN, epoch
from services import Server, free_port

from glas_bench import registry
from glas_bench.commands import sync as command
from glas_bench.config import RunConfig, check_settings, protocol_key
from glas_bench.errors import RunError, UsageError
from glas_bench.record import RunFolder, find_runs, load_run, note_study, runs_by_study, write_json
from glas_bench.report.records import runs_of
from glas_bench.text import redact
from glas_bench.tracking import entries
from glas_bench.tracking import mlflow_store as store
from glas_bench.tracking.address import experiment_name, tracking_uri
from glas_bench.tracking.mirror import Mirror
from glas_bench.tracking.served import Served
from glas_bench.tracking.sync import FILES, Fetched, SyncReport, fetch, sync


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A store with tables and nothing in them: making it takes seconds."""
    place = tmp_path_factory.mktemp("tables")
    with store.quiet_mlflow():
        store.Store(place)
    return place / "mlflow.db"


@pytest.fixture
def results(tables, tmp_path):
    shutil.copy(tables, tmp_path)
    return tmp_path


# --------------------------------------------------------------------------- fabricated runs


def make_run(results, variant="cauchy", about=(), **settings):
    """Write a cell's folder with the record's own writers."""
    settings = {"steps": 4, "hidden": 64, **settings}
    sizes = {"dataset": "mnist-5k", "binarisation": "static", "epochs": 3, "settings": settings}
    config = RunConfig(variant=variant, **sizes)
    folder = RunFolder(results, variant, protocol_key(config.model_dump()))
    made = {"variant": variant, "data_hash": "d", "core_version": 1, "preset": "smoke"}
    bound = {"bounds_nll": True, "bound_reason": "for a test"}
    folder.prepare(config, {**made, **bound, **dict(about)})
    git = {"commit": "c0ffee", "dirty": True}
    write_json(folder.path / "environment.json", {"device": "cpu: test", "git": git})
    return folder


def train(seed, epochs, at=BEGAN):
    """Add rows of these epochs, the first of which ends at a time."""
    for i, e in enumerate(epochs):
        validation = None if e == 1 else 201.0 - e
        epoch(seed, e, 200.0 - e, validation, 10.0, at + 2.0 * i)
    seed.set_status("training", epoch=epochs[-1], step=31 * epochs[-1], seconds=2.0 * epochs[-1])


def score(seed, samples=10, **scores):
    """Score a trained seed; return the protocol's key."""
    protocol = {"samples": samples}
    values = {"elbo": 150.0, "elbo_status": "finite", "iw": 148.5, "iw_status": "finite"}
    values |= {"objective": 150.0, "recon": 140.0, "charge": 10.0, "aux": 0.0, "nll": None}
    values |= {"iw_sweep": {"1": 150.0, "5": None}, "bound_only": False, "v_mean": 1.5}
    values |= {"split": "test", "images": 20, "samples": samples, "protocol": protocol, **scores}
    key = protocol_key(protocol)
    images = np.random.default_rng([seed.seed, samples]).normal(148.5, 5, 20)
    seed.save_scores(key, {**values, "seconds": 0.5}, {"iw": images, "elbo": images + 1})
    seed.set_status("complete", epoch=3, step=93, seconds=6.0)
    return key


def finished(results, seeds=1, variant="cauchy", **settings):
    """Write a trained and scored cell."""
    folder = make_run(results, variant, **settings)
    for seed in range(seeds):
        train(folder.seed(seed), range(1, 4))
        score(folder.seed(seed))
    return folder


# --------------------------------------------------------------------------- reading the store


def opened(results):
    with store.quiet_mlflow():
        found = store.Store(results)
        found.use(experiment_name())
    return found


def runs(results):
    """All active runs of the store by name; two of one name fail."""
    found = opened(results).runs(experiment_name())
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), sorted(run.info.run_name for run in found)
    return named


def histories(results):
    """Everything ever logged, by run and metric."""
    client = opened(results).client
    return {
        (name, metric): [
            (point.step, point.value, point.timestamp)
            for point in client.get_metric_history(run.info.run_id, metric)
        ]
        for name, run in runs(results).items()
        for metric in run.data.metrics
    }


def seed_run(results, folder):
    return runs(results)[f"{folder.path.name} seed 0"]


def epochs(results, folder, seed=0):
    return histories(results)[f"{folder.path.name} seed {seed}", "train/objective"]


def synced(results):
    """Write and mirror a trained and scored cell."""
    folder = finished(results)
    assert_ok(sync([folder.path], results), 1)
    return folder


def sync_all(results):
    return sync(find_runs(results), results)


def sync_in_a_process(results, limit=""):
    """Sync as the command does, with nothing imported yet; nothing but the report is printed."""
    work = "print(as_line(sync_all(Path(sys.argv[1]))))"
    script = f"from test_tracking import as_line, sync_all\n{limit}\n{work}"
    return SyncReport(**json.loads(run_script(script, results)))


def run_script(script, *arguments):
    head = "import os, sys; from pathlib import Path\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.stderr == ""
    return done.stdout


def as_line(report):
    return json.dumps(asdict(report))


def assert_ok(report, runs):
    assert report.failures == []
    assert report.runs == runs


# --------------------------------------------------------------------------- sync to sqlite


def test_a_folder_becomes_a_parent_and_its_seeds(results):
    folder = finished(results, seeds=2)
    assert_ok(sync([folder.path], results), 1)
    by_name = runs(results)
    name = folder.path.name
    assert sorted(by_name) == [name, f"{name} seed 0", f"{name} seed 1"]
    parent, child = by_name[name], by_name[f"{name} seed 1"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.info.start_time == round((BEGAN - 2) * 1000)
    assert child.info.end_time - child.info.start_time == 6500  # trained 6 s, scored half a second
    assert parent.info.end_time - parent.info.start_time == 13_000
    assert child.data.params.items() >= {"epochs": "3", "samples": "1000", "seed": "1"}.items()
    tags = {"git_commit": "c0ffee", "git_dirty": "true", "bounds_nll": "yes"}
    assert child.data.tags.items() >= {**tags, "elbo_status": "finite"}.items()
    assert child.data.metrics.items() >= {"iw": 148.5, "yardstick/v_mean": 1.5}.items()
    assert not {"nll", "seconds", "train/seconds"} & set(child.data.metrics)
    assert histories(results)[f"{name} seed 1", "iw"][0][0] == 0  # a bar in MLflow's charts
    points = epochs(results, folder, 1)
    assert points == [(e, 200.0 - e, round((BEGAN + 2 * (e - 1)) * 1000)) for e in (1, 2, 3)]
    assert [step for step, *_ in histories(results)[f"{name} seed 1", "validation/elbo"]] == [2, 3]
    assert (results / "artifacts").is_dir()


def test_a_cell_has_means_a_name_a_description_and_its_data(results):
    differs = {"differs": {"filter_size": 3}, "reference": "cauchy", "data_file": None}
    folder = make_run(results, filter_size=3, about=differs)
    for seed, nll in enumerate((100.0, 103.0)):
        train(folder.seed(seed), range(1, 4))
        key = score(folder.seed(seed), nll=nll)
    folder.seed(2).set_status("diverged", step=7)  # has no numbers
    about = {"question": "A tiny filter?", "command": "glas-bench sweep mine.yaml"}
    names = {folder.path.name: "cauchy size=3"}
    note_study(results, "mine", {folder.path: key}, **about, names=names)
    assert_ok(sync([folder.path], results, experiment="mine"), 1)
    assert_ok(sync([folder.path], results), 1)
    there = opened(results)
    tags = there.client.get_experiment_by_name("mine").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "A tiny filter?"
    of_study = {run.info.run_name: run for run in there.runs("mine")}
    by_hand = {run.info.run_name: run for run in there.runs("glas-bench")}
    assert sorted(of_study) == ["cauchy size=3", *(f"cauchy size=3 seed {n}" for n in range(3))]
    assert "cauchy preset=smoke filter_size=3 seed 2" in by_hand
    parent = of_study["cauchy size=3"]
    assert (parent.data.metrics["nll"], parent.data.metrics["iw"]) == (101.5, 148.5)
    assert [each.dataset.name for each in parent.inputs.dataset_inputs] == [
        f"mnist-5k {split}" for split in ("train", "validation", "test")
    ]
    run = "    glas-bench run --variant cauchy --preset smoke --seeds 0-2 --set filter_size=3"
    described = parent.data.tags["mlflow.note.content"]
    assert described.startswith("**A tiny filter?**")
    assert described.endswith(run)
    assert by_hand["cauchy preset=smoke filter_size=3"].data.tags["mlflow.note.content"] == (
        f"The same again:\n\n{run}"
    )


def test_twice_is_harmless(results):
    folder = finished(results, seeds=2)
    assert fetch(results, "glas-bench") == Fetched([], [])
    assert_ok(sync([folder.path], results), 1)
    before = histories(results)
    assert sync([folder.path], results) == SyncReport(1, [], 0)
    os.utime(folder.path / "config.yaml")  # looks new, is not
    assert sync([folder.path], results).changed == 1
    assert histories(results) == before
    (folder.path / "tracking.json").unlink()  # its runs are created again, and count once
    assert_ok(sync([folder.path], results), 1)
    assert fetch(results, "glas-bench") == Fetched([folder.path], [])
    assert fetch(results, "elsewhere") == Fetched([], [])
    assert not (results / "fetched").exists()  # what is here is not fetched


def test_an_answer_that_was_lost_doubles_nothing(results):
    folder = synced(results)
    before = histories(results)
    path = folder.path / "tracking.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"id": document["id"]}))  # as if killed before the ids were kept
    folder.seed(0).write_metrics(folder.seed(0).metrics()[:1])
    train(folder.seed(0), range(2, 4), at=BEGAN + 500)  # and resumed meanwhile
    folder.seed(0).set_status("complete", epoch=3, step=93, seconds=6.0)
    assert_ok(sync([folder.path], results), 1)
    assert histories(results) == before


def test_a_deleted_database_is_rebuilt(tmp_path):
    folder = synced(tmp_path)
    before = histories(tmp_path)
    (tmp_path / "mlflow.db").unlink()
    assert sync([folder.path], tmp_path).changed == 1
    assert histories(tmp_path) == before
    rows = sqlite3.connect(tmp_path / "mlflow.db").execute("SELECT count(*) FROM runs").fetchone()
    assert rows == (2,)  # in the file that is there, not in the deleted one


def test_a_run_is_mirrored_by_the_beginning_of_its_name(results):
    folder = finished(results)
    answer = command.carry_out([Path(folder.path.name[:9])], results)
    assert (answer.text, answer.exit_code) == ("1 run folder mirrored", 0)
    with pytest.raises(UsageError, match=f"'nowhere' below {re.escape(str(results))}"):
        command.carry_out([Path("nowhere")], results)


def test_a_run_that_is_gone_or_of_another_training_is_created_again(results):
    folder = synced(results)
    first = seed_run(results, folder).info.run_id
    opened(results).client.delete_run(first)
    assert sync([folder.path], results).changed == 1
    again = seed_run(results, folder)
    assert again.info.run_id != first
    assert again.data.metrics["iw"] == 148.5
    shutil.rmtree(folder.seed(0).path)
    train(folder.seed(0), range(1, 2), at=BEGAN + 500)
    assert_ok(sync([folder.path], results), 1)
    other = seed_run(results, folder)
    assert other.info.run_id != again.info.run_id
    assert "iw" not in other.data.metrics


def test_a_moved_results_folder_is_mirrored_again(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    folder = finished(old)
    assert_ok(sync_in_a_process(old), 1)
    before = histories(old)
    old.rename(new)
    assert sync_all(new) == SyncReport(1, [], 1)
    assert histories(new) == before
    run = seed_run(new, folder)
    assert run.info.artifact_uri.startswith((new / "artifacts").as_uri() + "/")
    assert store.experiments(new) == (["glas-bench"], [])
    assert sync_all(new) == SyncReport(1, [], 0)
    assert not old.exists()


def test_numbers_are_of_the_newest_scoring_and_in_a_study_of_its_own_protocol(results):
    folder = synced(results)
    (own,) = folder.seed(0).all_scores()
    note_study(results, "mine", {folder.path: own}, file="x", preset="quick", seeds="0")
    note_study(results, "mine", {}, file="x", preset="quick", seeds="0")  # the folder stays noted
    assert runs_by_study(results, [folder.path]) == {"mine": [folder.path], None: []}
    new = score(folder.seed(0), samples=50, iw=147.0, elbo=None, elbo_status="undefined")
    for experiment, *wanted in (
        ("mine", own, 148.5, {"samples": 10}, "finite"),
        ("glas-bench", new, 147.0, {"samples": 50}, "undefined"),
    ):
        assert_ok(sync([folder.path], results, experiment=experiment), 1)
        (run,) = (run.data for run in opened(results).runs(experiment) if "seed" in run.data.params)
        key, protocol = run.tags["protocol_key"], json.loads(run.tags["protocol"])
        assert [key, run.metrics["iw"], protocol, run.tags["elbo_status"]] == wanted
    assert "elbo" not in shown(folder)[0]  # of the other scoring, and no number of this one


def test_seeds_of_a_cell_stay_together(results):
    folder = finished(results, seeds=2)
    before = shown(folder)[0]["iw"]
    key = score(folder.seed(0), samples=5000, iw=1.0)
    assert shown(folder)[0]["iw"] == before  # seed 1 has none of it
    score(folder.seed(1), samples=5000, iw=2.0)
    assert shown(folder)[0]["iw"] == 1.0
    assert shown(folder)[1]["protocol_key"] == key


def test_a_complete_run_stands_for_a_seed_before_one_begun_later(results):
    folder = synced(results)
    half = make_run(results.parent / "elsewhere")
    train(half.seed(0), range(1, 2), at=BEGAN + 5000)
    half.seed(0).set_status("interrupted", step=31)
    assert half.path.name == folder.path.name
    assert_ok(sync([half.path], results), 1)
    folders = fetch(results, "glas-bench").folders
    assert [path.name for path in folders] == [folder.path.name] * 2
    (run,) = runs_of([load_run(path) for path in folders])
    assert run.seed.status == "complete"


def shown(folder):
    """Return the final numbers and tags of seed 0."""
    record = load_run(folder.path)
    entry = entries.of_seed(record, record.seeds[0], {})
    return {each.name.removeprefix("yardstick/"): each.value for each in entry.numbers}, entry.tags


def test_ais_stands_beside_a_run_s_own_scores_and_has_a_number_only_if_accepted(results):
    folder = finished(results)
    (own,) = folder.seed(0).all_scores()
    protocol = {"estimators": ["ais"], "chains": 16, "temperatures": 400}
    about = {"protocol": protocol, "ais": 99.0, "ais_error": 1.25, "gap": 0.75}
    about["paired"] = {
        "nll": {"difference": -0.5, "error": 0.25, "corrected": 98.0},
        "iw": {"difference": -2.0, "error": None, "corrected": None},
    }
    less = {"ais_less_nll": -0.5, "ais_less_nll_error": 0.25, "ais_less_iw": -2.0}
    for status, accepted in (("refused", {}), ("accepted", {"ais": 99.0, **less})):
        folder.seed(0).save_scores("0" * 12, {**about, "ais_status": status}, {})
        numbers, tags = shown(folder)
        by_ais = {name: value for name, value in numbers.items() if name.startswith("ais")}
        always = {"ais_error": 1.25, "ais_gap": 0.75, "ais_chains": 16, "ais_temperatures": 400}
        assert by_ais == {**always, **accepted}
        assert (tags["ais_status"], tags["ais_protocol_key"]) == (status, "0" * 12)
        assert (numbers["iw"], tags["protocol_key"]) == (148.5, own)


@pytest.mark.parametrize(
    ("others", "scored", "iw"),
    [
        (True, [(5, 1.0, True)], 148.5),  # of fewer images
        (True, [("all", 2.0, True)], 2.0),
        (True, [("all", 2.0, False)], 2.0),
        (True, [("all", 2.0, True), ("all", 3.0, False)], 2.0),  # one that ranks comes first
        (True, [("all", 2.0, False), ("all", 3.0, False)], 3.0),
        (False, [(2000, 2.0, True), (40, 3.0, True)], 2.0),  # none of all images: of most
    ],
)
def test_the_scores_that_represent_a_seed(results, others, scored, iw):
    folder = finished(results)
    if not others:
        shutil.rmtree(folder.seed(0).path / "eval")
    for i, (images, value, ranks) in enumerate(scored):
        scores = {"protocol": {"images": images}, "iw": value, "nll": value if ranks else None}
        folder.seed(0).save_scores(str(i) * 12, scores, {})
    assert shown(folder)[0]["iw"] == iw


def test_nothing_that_is_not_finite_is_logged(results):
    folder = finished(results)
    path = next((folder.seed(0).path / "eval").glob("*.json"))
    scores = json.loads(path.read_text()) | {"elbo": math.inf, "elbo_status": "infinite"}
    path.write_text(json.dumps(scores | {"v_mean": math.nan}))
    for old in (path, folder.seed(0).path / "status.json"):  # as an older version wrote them
        plain = json.loads(old.read_text())
        old.write_text(json.dumps({n: plain[n] for n in plain.keys() - {"digest", "metrics"}}))
    with open(folder.seed(0).path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 4, "objective": math.inf, "time": BEGAN + 9}) + "\n")
    assert_ok(sync([folder.path], results), 1)
    values = [value for points in histories(results).values() for _, value, _ in points]
    assert all(abs(value) < 1e300 for value in values)  # sqlite keeps inf as the largest double
    run = seed_run(results, folder)
    assert not {"elbo", "yardstick/v_mean"} & set(run.data.metrics)
    assert run.data.tags["elbo_status"] == "infinite"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        *(("complete", "FINISHED"), ("diverged", "FAILED"), ("failed", "FAILED")),
        *(("interrupted", "KILLED"), ("scoring", "RUNNING"), ("waiting", "SCHEDULED")),
    ],
)
def test_statuses(tmp_path, status, word):
    folder = make_run(tmp_path)
    folder.seed(0).set_status(status, step=7, reason="because " * 2000)
    record = load_run(folder.path)
    entry = entries.of_seed(record, record.seeds[0], {})
    assert entry.status == word
    assert entry.tags["status"] == status
    assert len(entry.tags["reason"] or "") == entries.MOST_TEXT
    assert (entry.end is None) == (word in ("RUNNING", "SCHEDULED"))
    assert (entry.tags["diverged_step"] == "7") == (status == "diverged")
    assert entries.of_cell(record, {}).status == word


def test_a_broken_folder_does_not_hurt_the_others(results):
    good, bad = finished(results), finished(results, variant="hellinger")
    (bad.path / "config.yaml").write_text("schema: 1\n")
    report = sync_all(results)
    assert report.runs == 1
    assert [folder for folder, _ in report.failures] == [str(bad.path)]
    assert "config.yaml" in report.failures[0][1]
    assert f"{good.path.name} seed 0" in runs(results)
    report = sync([results / "nowhere"], results)
    assert "no run folder" in report.failures[0][1]


def test_nothing_is_printed_and_the_environment_stays(tmp_path, capfd):
    folder = finished(tmp_path)
    before = dict(os.environ)
    assert_ok(sync([folder.path], tmp_path), 1)
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_timeouts_of_the_user_win(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with store.quiet_mlflow():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:s3cret@host:5432/db",
        "postgresql://me:s3c/re@t@host/db",
        "https://s3cret@host/mlflow",
        "mysql://host/db?user=me&password=s3cret",
        "mssql+pyodbc:///?odbc_connect=PWD%3Ds3cret",
    ],
)
def test_no_password_is_shown(uri):
    shown = redact(f"cannot reach '{uri}' now")
    assert "s3c" not in shown
    assert shown.startswith(f"cannot reach '{uri.partition(':')[0]}://")
    assert shown.endswith("' now")
    assert redact("sqlite:////a/b@c/mlflow.db").endswith("mlflow.db")


@pytest.mark.parametrize(
    ("code", "words"), [(502, "answers with HTTP 502"), (302, "redirects without end")]
)
def test_a_server_that_answers_wrongly_is_named(code, words, tmp_path, monkeypatch):
    class Wrong(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@{address}")
        ((_, message),) = sync([finished(tmp_path).path], tmp_path).failures
        server.shutdown()
    assert f"{address} {words}" in message
    assert "s3cret" not in message


def test_a_locked_database_is_named_and_mirrored_later(tmp_path):
    folder = finished(tmp_path)
    assert_ok(sync_all(tmp_path), 1)
    score(folder.seed(0), samples=20)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        ((_, message),) = sync_all(tmp_path).failures
    assert "keeps the database locked" in message
    assert "sqlite3" not in message
    assert_ok(sync_all(tmp_path), 1)


def test_a_database_that_the_disk_had_no_room_for_is_made_later(tmp_path):
    folder = finished(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    report = sync_in_a_process(tmp_path, limit)
    assert report.runs == 0
    assert report.failures[0][0] == str(folder.path)
    assert not list(tmp_path.glob("*mlflow.db")), "half a database is left"
    assert not list(tmp_path.glob(".mlflow.db.*new*"))
    assert_ok(sync_all(tmp_path), 1)
    assert len(runs(tmp_path)) == len(list(folder.path.glob("seed-*"))) + 1


def test_ten_processes_open_a_new_store_at_once(tmp_path):
    folders = [str(finished(tmp_path, filter_size=size).path) for size in range(1, 11)]
    script = (
        "import mlflow.store.tracking.sqlalchemy_store, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # Python 3.12: threads and fork
        "from test_tracking import as_line, sync\n"
        "results, *folders = map(Path, sys.argv[1:])\n"
        "gate, open_gate = os.pipe()\n"
        "for folder in folders:\n"
        "    if os.fork() == 0:\n"
        "        os.close(open_gate); os.read(gate, 1)\n"
        "        line = as_line(sync([folder], results)) + chr(10)\n"
        "        os.write(1, line.encode()); os._exit(0)\n"
        "os.close(open_gate)\n"
        "for folder in folders: os.wait()"
    )
    lines = run_script(script, tmp_path, *folders).splitlines()
    reports = [SyncReport(**json.loads(line)) for line in lines]
    assert reports == [SyncReport(1, [], 1)] * 10
    assert len(runs(tmp_path)) == 20


# --------------------------------------------------------------------------- back to folders


def contents(folder):
    """The files of a run folder that sync uploads."""
    own = {"lock", "tracking.json", "tracking.lock"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in own]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_is_fetched_whole_or_not_at_all(results, tmp_path):
    folder = synced(results)
    origin = folder.path.rename(tmp_path / folder.path.name)
    (path,) = fetch(results, "glas-bench").folders
    assert path.name == origin.name
    assert contents(path) == contents(origin)
    files = {file: file.stat().st_ino for file in path.rglob("*")}
    assert fetch(results, "glas-bench") == Fetched([path], [])
    assert {file: file.stat().st_ino for file in path.rglob("*")} == files  # nothing was loaded
    # a sync that was killed between a file and the tag that names its digest
    run, client = seed_run(results, folder), opened(results).client
    (tmp_path / "status.json").write_text('{"status": "failed"}')
    client.log_artifact(run.info.run_id, str(tmp_path / "status.json"))
    assert fetch(results, "glas-bench") == Fetched([path], [])  # the whole copy from before
    (path / "seed-0" / "status.json").write_text("torn")
    found = fetch(results, "glas-bench")
    assert found.folders == []
    assert "is being written: status.json has changed" in found.left_out[0]
    shutil.rmtree(path)
    assert fetch(results, "glas-bench") == found
    assert not list((results / "fetched").rglob("*.json"))
    assert_ok(sync([origin], results), 1)  # nothing changed in the folder: no upload
    status = origin / "seed-0" / "status.json"
    status.write_text(status.read_text() + "\n")
    assert_ok(sync([origin], results), 1)
    assert contents(fetch(results, "glas-bench").folders[0]) == contents(origin)


@pytest.mark.parametrize("name", ["../status.json", "/etc/passwd", "eval/../../x", ""])
def test_a_run_s_tags_name_no_file_outside_its_folder(results, name):
    folder = synced(results)
    shutil.rmtree(folder.path)
    run = seed_run(results, folder)
    opened(results).client.set_tag(run.info.run_id, FILES, json.dumps({name: "0"}))
    found = fetch(results, "glas-bench")
    assert found.folders == []
    assert "is broken: no file of a run folder is named" in found.left_out[0]


def test_foreign_and_half_runs_are_left_out_by_name(results):
    folder = finished(results)
    sync_all(results)
    there = opened(results)
    client, place = there.client, there.experiment_id
    client.create_run(place, run_name="somebody's")
    client.create_run(place, run_name="older", tags={"glas_bench.schema": "0"})
    client.create_run(place, run_name="half", tags={"glas_bench.schema": "1"})
    run = seed_run(results, folder)
    client.delete_tag(run.info.run_id, FILES)
    shutil.rmtree(folder.path)
    found = fetch(results, "glas-bench")
    assert found.folders == []
    assert found.left_out == [
        f"{folder.path.name} seed 0 was mirrored without all of its files; "
        "give `glas-bench sync` where its folder is",
        "half is broken: it lacks 'glas_bench.kind'",
        "older is broken: schema 0, and 1 is read here",
        "somebody's is not of glas-bench",
    ]


# --------------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server(tables, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(tables, server.place / "server.db")
    server.start()
    yield server
    server.stop()


def test_a_server_that_was_down_is_brought_up_to_date(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a study of mine")
    first, second = make_run(tmp_path), make_run(tmp_path, "hellinger")
    train(first.seed(0), range(1, 3))
    train(second.seed(0), range(1, 2))
    assert_ok(sync_all(tmp_path), 2)
    assert seed_run(tmp_path, first).info.status == "RUNNING"
    server.stop()
    first.seed(0).write_metrics(first.seed(0).metrics()[:1])  # killed, and resumed meanwhile
    train(first.seed(0), range(2, 4), at=BEGAN + 500)
    score(first.seed(0))
    started = time.monotonic()
    report = sync_all(tmp_path)
    assert time.monotonic() - started < 120  # MLflow's own patience is twice that
    assert report.runs == 0
    assert [Path(folder) for folder, _ in report.failures] == [first.path, second.path]
    server.start()
    train(second.seed(0), range(2, 4), at=BEGAN + 2)
    score(second.seed(0))
    assert_ok(sync_all(tmp_path), 2)
    before = histories(tmp_path)
    assert sync_all(tmp_path) == SyncReport(2, [], 0)
    assert histories(tmp_path) == before
    for folder in (first, second):
        points = before[f"{folder.path.name} seed 0", "train/objective"]
        assert [step for step, *_ in points] == [1, 2, 3]
        assert seed_run(tmp_path, folder).info.status == "FINISHED"
    assert not (tmp_path / "mlflow.db").exists()
    second.path.rename(tmp_path / "moved")  # its files come from the server then
    first_too, copy = fetch(tmp_path, "a study of mine").folders
    assert (first_too, copy.name) == (first.path, second.path.name)
    assert contents(copy) == contents(tmp_path / "moved")


# --------------------------------------------------------------------------- beside a training


@pytest.fixture
def black_hole():
    """Listens and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://me:s3cret@127.0.0.1:{listener.getsockname()[1]}"


def test_the_mirror_follows_a_training(results):
    folder = make_run(results)
    missing = results / "runs" / "not-yet-there"
    with Mirror(results, [folder.path, missing], every=0.2) as mirror:
        train(folder.seed(0), range(1, 3))
        until((folder.path / "tracking.json").exists, seconds=240, every=0.1)
        train(folder.seed(0), range(3, 4), at=BEGAN + 4)
        score(folder.seed(0))
        found = finished(results, variant="hellinger")  # what a search comes upon on its way
        mirror.add(found.path)
        mirror.add(folder.path)
        report = mirror.finish(240)
    assert_ok(report, 2)
    assert (found.path / "tracking.json").exists()
    points = epochs(results, folder)
    assert [step for step, *_ in points] == [1, 2, 3]
    assert seed_run(results, folder).info.status == "FINISHED"


def test_the_mirror_gives_up_on_a_black_hole(tmp_path, black_hole, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", black_hole)
    folder = finished(tmp_path)
    with Mirror(tmp_path, [folder.path]) as mirror:
        assert mirror.child is not None
        process = mirror.child.process
        assert "s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_text()
        time.sleep(6)  # it hangs in a request by now
        started = time.monotonic()
        report = mirror.finish(3)
    assert 2.5 < time.monotonic() - started < 120  # MLflow's own patience is twice that
    assert process.poll() is not None
    (failed, message), *more = report.failures
    assert (Path(failed), more) == (folder.path, [])
    assert "no answer within 3 s" in message
    assert "glas-bench sync" in message
    assert "s3cret" not in as_line(report) + (tmp_path / "mlflow.log").read_text()


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_store_that_is_away_costs_a_sync_seconds(scheme, tmp_path, black_hole, monkeypatch):
    nobody = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", black_hole if scheme == "http" else nobody)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folders = [finished(tmp_path, filter_size=size).path for size in (1, 2, 3)]
    started = time.monotonic()
    report = sync(folders, tmp_path)
    assert time.monotonic() - started < 120  # MLflow's own patience is twice that
    assert [Path(folder) for folder, _ in report.failures] == folders
    assert "s3cret" not in as_line(report)
    with pytest.raises(RunError, match="cannot read the runs"):
        fetch(tmp_path, "glas-bench")


def test_a_mirror_that_dies_or_cannot_start_is_reported(tmp_path, monkeypatch):
    folder = finished(tmp_path)
    with Mirror(tmp_path, [folder.path]) as mirror:
        assert mirror.child is not None
        mirror.child.process.kill()
        report = mirror.finish(20)
    assert "its process died" in report.failures[0][1]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with Mirror(tmp_path, [folder.path]) as mirror:
        report = mirror.finish(20)
    assert "could not be started" in report.failures[0][1]


# --------------------------------------------------------------------------- models and notebooks

NOTEBOOK = Path(__file__).parents[1] / "docs" / "load_run.ipynb"


def test_a_seed_is_a_model_in_a_notebook_and_in_mlflow(glas, monkeypatch):
    smoke = ("--preset=smoke", "--set=steps=2", "--set=hidden=4", "--set=epochs=1", "--no-mirror")
    quickly = ("--set=images=4", "--set=samples=2")
    ended = glas.here("run", "--variant=cauchy", *smoke, *quickly, "--json")
    assert ended.code == 0, ended.err
    monkeypatch.chdir(glas.folder)
    monkeypatch.setenv("GLAS_BENCH_RESULTS", str(glas.results))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    lines = "".join("".join(each["source"]) + "\n" for each in cells if each["cell_type"] == "code")
    assert len([line for line in lines.splitlines() if line]) == 10
    lines = f"os.environ['MPLBACKEND'] = 'agg'\n{lines}print(run)\nfigure.savefig('samples.png')"
    assert run_script(lines).splitlines()[1].split()[:3] == ["seed", "status", "nll"]
    assert (glas.folder / "samples.png").stat().st_size > 1000

    ended = glas.here("sync", "--log-model")
    assert ended.code == 0, ended.err
    (run,) = (run for run in opened(glas.results).runs("glas-bench") if "seed" in run.data.params)
    with store.quiet_mlflow():
        import mlflow

        # `set_tracking_uri` would set it for good
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(glas.results))
        loaded = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    images = np.zeros((3, 784), np.float32)
    model = load_run("cauchy").seeds[0].model()
    drawn = loaded.predict(images, params={"sample": True, "seed": 5})
    assert np.array_equal(drawn, model.sample(3, seed=5).numpy())
    copies = loaded.predict(images)
    assert copies.shape == (3, 784)
    assert (copies.min() >= 0) & (copies.max() <= 1)
    assert np.array_equal(copies, loaded.predict(images))
    before = len(list((glas.results / "artifacts").rglob("MLmodel")))
    glas.here("sync", "--log-model")
    assert len(list((glas.results / "artifacts").rglob("MLmodel"))) == before == 1


def test_a_served_model_with_running_statistics_samples_alone():
    variant = registry.find("uniform-pit")
    sizes = {"steps": 2, "hidden": 4, "latent_size": 4, "filter_size": 2}
    served = Served(variant.cls(check_settings(variant, sizes), 9).eval())
    assert served.predict(np.zeros((3, 9)), {"sample": True}).shape == (3, 9)
    with pytest.raises(RunError, match="running statistics"):
        served.predict(np.zeros((3, 9)))


def test_what_has_no_model_says_so(glas):
    folder = finished(glas.results)
    train(folder.seed(1), range(1, 2))
    with pytest.raises(RunError, match="seed 1 is training: it has no finished model"):
        load_run(folder.path).seeds[1].model()
    with pytest.raises(UsageError, match="no run 'gauss' below"):
        load_run("gauss", glas.results)
    assert glas.here("run", "--variant", "cauchy", "--log-model", "--no-mirror").code == 2
