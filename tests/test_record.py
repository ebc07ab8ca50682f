"""The run folder: whole files or none, sound checkpoints or none, one process at a time."""

import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import timeless
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glas_bench import record
from glas_bench.config import RunConfig
from glas_bench.errors import GlasBenchError, NewerRecord, RunError, UsageError
from glas_bench.record import RunFolder, load_run
from glas_bench.sweep.database import Database
from glas_bench.tracking.address import locked

CONFIG = RunConfig(variant="mine", dataset="mnist-5k", binarisation="static", settings={"steps": 2})


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path, "mine", "0123456789ab")
    folder.prepare(CONFIG, {"variant": "mine", "bounds_nll": None})
    return folder


@pytest.fixture
def seed(run):
    folder = run.seed(3)
    folder.set_status("training", step=1)
    return folder


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_complete_seed_stays_so_whatever_becomes_of_another_scoring(seed):
    seed.set_status("complete", step=9)
    before = seed.status()
    for status in ("scoring", "interrupted", "failed", "complete"):
        seed.set_status(status, reason="of a scoring with more weights")
        assert seed.status() == before
    seed.set_status("training", step=0)
    seed.set_status("interrupted", step=1)
    assert seed.status()["status"] == "interrupted"
    (seed.path / "status.json").write_text("{")
    seed.set_status("failed", reason="x")
    assert seed.status()["reason"] == "x"
    with pytest.raises(AssertionError):
        seed.set_status("finished")  # no such status


@pytest.mark.parametrize(
    ("statuses", "joint"),
    [
        ("", "waiting"),
        ("complete", "complete"),
        ("complete diverged complete", "diverged"),
        ("failed complete interrupted", "failed"),
        ("failed waiting", "waiting"),
        ("scoring waiting training", "training"),
        ("failed running pruned", "running"),
        ("complete not_applicable", "not_applicable"),
        (" ".join(record.STATUSES), "not_applicable"),
    ],
)
def test_statuses_join_into_a_cell_s(statuses, joint):
    assert record.join_statuses(statuses.split()) == joint


# --------------------------------------------------------------------------- whole or not at all


def write_half_and_die(file):
    file.write(b"new, but only ha")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_while_writing_leaves_the_old_file(seed):
    path = seed.path / "status.json"
    before = path.read_bytes()
    about = {"target": record.write_atomically, "args": (path, write_half_and_die)}
    process = multiprocessing.get_context("spawn").Process(**about)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(hidden(seed.path)) == 1
    seed.remove_leftovers()
    assert hidden(seed.path) == []
    assert path.read_bytes() == before


def test_what_cannot_be_written_leaves_the_old_file(seed):
    path = seed.path / "status.json"
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"cannot write .*status\.json: No space left"):
        record.write_atomically(path, full)
    with pytest.raises(RunError, match="cannot write"):
        record.write_json(path / "below.json", {})
    with pytest.raises(RunError, match="cannot write"), RunFolder(path, "a", "b").locked():
        pass
    assert path.read_bytes() == before
    assert hidden(seed.path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_not_written(seed, value):
    seed.append_metrics({"epoch": 1, "objective": 2.0})
    before = {path: path.read_bytes() for path in seed.path.iterdir()}
    for write in (
        lambda: seed.set_status("complete", seconds=value),
        lambda: seed.append_metrics({"epoch": 2, "objective": value}),
        lambda: record.write_json(seed.path / "status.json", {"deep": [{"down": value}]}),
    ):
        with pytest.raises(ValueError, match="JSON"):
            write()
    assert {path: path.read_bytes() for path in seed.path.iterdir()} == before


# --------------------------------------------------------------------------- metrics

ROWS = [{"epoch": epoch, "objective": 100.0 / epoch, "validation": None} for epoch in (1, 2, 3)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_torn_line_is_left_out(seed, cut):
    path = seed.path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    assert seed.metrics() == []
    for row in ROWS:
        seed.append_metrics(row)
    content = path.read_bytes()
    cut %= len(content) + 1
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert seed.metrics() == ROWS[:whole]
    seed.write_metrics(seed.metrics()[:2])
    assert seed.metrics() == ROWS[: min(whole, 2)]
    seed.append_metrics(ROWS[2])
    assert seed.metrics() == [*ROWS[: min(whole, 2)], ROWS[2]]


@pytest.mark.parametrize("line", [b"{broken}\n", b"\xff\xfe\n", b"\0\0\0\n"])
def test_a_broken_line_is_an_error_by_name(run, seed, line):
    (seed.path / "metrics.jsonl").write_bytes(line + b'{"epoch": 2}\n')
    with pytest.raises(RunError, match=r"cannot read .*seed-3/metrics\.jsonl"):
        seed.metrics()
    assert "cannot read" in load_run(run.path).seeds[3].broken


# --------------------------------------------------------------------------- checkpoints


def make_state(value=0.5):
    return {
        "model": {
            "weight": torch.tensor([[value, -0.0], [math.nan, math.inf]]),
            "half": torch.tensor([1.0, value], dtype=torch.bfloat16),
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
        },
        "optimiser": {"state": {0: {"step": torch.tensor(7.0)}}, "groups": [{"lr": 1e-3}]},
        "position": {"epoch": 2, "sums": {"objective": 0.1 + 0.2}},
        "phase": "main",
    }


def assert_newest(seed, value):
    assert record.digest(seed.load_checkpoint()) == record.digest(make_state(value))


def test_a_checkpoint_comes_back_to_the_bit_and_to_its_seed_alone(run, seed):
    path = seed.save_checkpoint(5, make_state(), keep=2)
    assert_newest(seed, 0.5)
    state = seed.load_checkpoint()
    assert torch.signbit(state["model"]["weight"][0, 1])
    assert state["position"] == make_state()["position"]
    run.seed(4).path.mkdir()
    shutil.copy(path, run.seed(4).path)
    assert run.seed(4).load_checkpoint() is None


CHANGES = [
    lambda s: s["model"]["weight"].view(torch.int32)[0, 0].bitwise_xor_(1),
    lambda s: s["model"]["weight"][0, 1].zero_(),  # -0.0 becomes 0.0
    lambda s: s["model"]["half"][1].mul_(1.01),
    lambda s: s["model"]["flag"].logical_not_(),
    lambda s: s["model"].update(empty=torch.zeros(3, 0)),
    lambda s: s["model"].update(half=s["model"]["half"].half()),
    lambda s: s["model"].update(weight=s["model"]["weight"].reshape(4)),
    lambda s: s["model"].update(other=s["model"].pop("weight")),
    lambda s: s["model"].pop("flag"),
    lambda s: s["optimiser"]["state"][0]["step"].add_(1),
    lambda s: s["optimiser"]["groups"][0].update(lr=1.0000001e-3),
    lambda s: s["position"].update(epoch=3),
    lambda s: s["position"]["sums"].update(objective=0.3),
    lambda s: s.update(phase="other"),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_the_digest_sees_every_change(seed, change):
    seed.save_checkpoint(4, make_state(0.25), keep=2)
    path = seed.save_checkpoint(5, make_state(), keep=2)
    payload = torch.load(path, weights_only=True)
    change(payload["state"])
    assert record.digest(payload["state"]) != payload["digest"]
    torch.save(payload, path)
    assert record.read_checkpoint(path) is None
    assert_newest(seed, 0.25)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.booleans())
@example(place=84, flip=2, cut=False)  # its schema, which looks newer then
def test_a_damaged_checkpoint_is_sound_or_none(seed, place, flip, cut):
    path = seed.save_checkpoint(5, make_state(), keep=1)
    content = bytearray(path.read_bytes())
    place %= len(content)
    if cut:
        del content[place:]
    else:
        content[place] ^= flip
    path.write_bytes(content)
    state = record.read_checkpoint(path)
    assert state is None or record.digest(state) == record.digest(make_state())
    assert not cut or state is None


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_loading_runs_no_code(seed, tmp_path):
    path = seed.path / "checkpoint-00000005.pt"
    state = {**make_state(), "trap": Trap(tmp_path / "sprung")}
    torch.save({"schema": 1, "digest": record.digest(state), "state": state}, path)
    assert seed.load_checkpoint() is None
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)  # the trap works
    assert (tmp_path / "sprung").exists()


def test_what_cannot_be_read_now_is_no_damage(seed, monkeypatch):
    path = seed.save_checkpoint(5, make_state(), keep=1)

    def no_room(*_, **__):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", no_room)
        with pytest.raises(RunError, match="Nothing was started over"):
            seed.load_checkpoint()
    torch.save({"schema": 2, "parts": "in another layout"}, path)
    with pytest.raises(NewerRecord):
        seed.load_checkpoint()
    path.unlink()
    path.mkdir()  # reading it is an error of the disk
    with pytest.raises(RunError, match=r"cannot read .*checkpoint-00000005"):
        seed.load_checkpoint()


def test_checkpoints_further_on_that_are_torn_displace_none(seed):
    for step in (100, 200):
        seed.save_checkpoint(step, make_state(step), keep=2).write_bytes(b"torn")
    assert seed.load_checkpoint() is None
    seed.save_checkpoint(50, make_state(50), keep=2)
    assert_newest(seed, 50)


def test_the_newest_checkpoints_are_kept(seed):
    foreign = [seed.path / name for name in ("checkpoint-x.pt", "checkpoint-9.pt.tmp")]
    for path in foreign:
        path.write_text("")
    for step in (9, 10, 100):
        seed.save_checkpoint(step, make_state(step), keep=2)
    assert [int(path.stem[-8:]) for path in seed.checkpoints()] == [100, 10]
    seed.save_checkpoint(101, make_state(101), keep=1)
    assert [int(path.stem[-8:]) for path in seed.checkpoints()] == [101]
    assert all(path.exists() for path in foreign)
    assert hidden(seed.path) == []


# --------------------------------------------------------------------------- scores


def test_scores_come_last_and_side_by_side(seed, monkeypatch):
    one, two = np.arange(4.0), np.arange(4.0) + 0.5
    seed.save_scores("aaa", {"iw": 1.5}, {"iw": one})
    seed.save_scores("bbb", {"iw": 2.0, "elbo": None}, {"iw": two, "elbo": one})
    assert timeless(seed.scores("aaa")) == {"schema": 1, "iw": 1.5}
    assert set(seed.all_scores()) == {"aaa", "bbb"}
    assert seed.scores("ccc") is None
    assert np.array_equal(seed.per_image("aaa")["iw"], one)
    assert set(seed.per_image("bbb")) == {"iw", "elbo"}
    assert set(seed.per_image()) == {"aaa/iw", "bbb/iw", "bbb/elbo"}
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(RunError, match=r"per_image\.npz"):
        seed.save_scores("ddd", {"iw": 1.0}, {"iw": one})
    assert seed.scores("ddd") is None
    assert set(seed.per_image()) == {"aaa/iw", "bbb/iw", "bbb/elbo"}


def test_all_that_scoring_writes_is_typed_and_a_newer_score_survives(run, seed):
    frozen = Path(__file__).parent / "frozen"
    written = record.read_json(frozen / "golden.json")["scores"].values()
    assert set().union(*(each["scores"] for each in written)) <= set(record.Scores.__annotations__)
    (eval,) = frozen.glob("results/runs/gaussian-*/seed-0/eval/*.json")
    stored = record.read_json(eval)
    seed.save_scores("aaa", {**stored, "newer": 2.0, "newer_status": "finite"}, {})
    found = load_run(run.path).seeds[3]
    numbers = {each.name: each.value for each in found.numbers("aaa")}
    assert numbers["newer"] == 2.0
    assert numbers["scoring_seconds"] == stored["seconds"]
    assert numbers["iw_sweep"] == stored["iw"]  # by most weights
    assert found.words("aaa")["newer_status"] == "finite"
    assert set(record.Scores.__annotations__) <= set(found.words(None))
    assert not any(value for value in found.words(None).values())


# --------------------------------------------------------------------------- the lock


def holder(*descriptors):
    command = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, pass_fds=descriptors, **pipes)
    assert process.stdout.readline() == b"up\n"
    return process


def test_one_process_at_a_time(run):
    with run.locked():
        said = (run.path / "lock").read_text()
        with pytest.raises(RunError) as caught, run.locked():
            pass
        assert f"already running: pid {os.getpid()} on " in str(caught.value)
        assert str(run.path) in str(caught.value)
        assert (run.path / "lock").read_text() == said
    (run.path / "lock").write_text("pid 1 on a machine with a long name, which was killed\n")
    with run.locked():
        assert (run.path / "lock").read_text() == said


def test_the_lock_is_its_children_s_too(run):
    with run.locked() as descriptor:
        heir, other = holder(descriptor), holder()
    with pytest.raises(RunError, match="already running"), run.locked():
        pass
    heir.kill()
    heir.communicate()
    with run.locked():
        pass
    assert other.poll() is None
    other.communicate(b"")


# --------------------------------------------------------------------------- reading back


def test_a_run_reads_back(run, seed):
    for row in ROWS:
        seed.append_metrics(row)
    seed.save_scores("aaa", {"iw": 1.5}, {"iw": np.arange(4.0)})
    seed.set_status("complete", step=9)
    run.seed(10).set_status("diverged", step=3, reason="the objective is not finite")
    (run.path / "seed-x").mkdir()
    record.write_json(run.path / "environment.json", {"device": "cpu"})
    run.prepare(CONFIG.model_copy(update={"samples": 3}), {})  # it is written once
    found = load_run(str(run.path))
    assert found.config == CONFIG
    assert found.config_key == run.key
    assert found.about == {"variant": "mine", "bounds_nll": None}
    assert found.environment == {"device": "cpu"}
    assert list(found.seeds) == [3, 10]
    assert found.seeds[3].metrics == ROWS
    scores = {key: timeless(each) for key, each in found.seeds[3].scores.items()}
    assert scores == {"aaa": {"schema": 1, "iw": 1.5}}
    assert np.array_equal(found.seeds[3].per_image("aaa")["iw"], np.arange(4.0))
    assert (found.seeds[10].status, found.seeds[10].about["step"]) == ("diverged", 3)
    assert record.find_runs(run.path.parents[1]) == [run.path]
    with pytest.raises(UsageError, match=r"is no run folder: it has no config\.yaml"):
        load_run(run.path.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "newer glas-bench"),
        ({"config": {**CONFIG.model_dump(), "colour": "red"}}, "edited"),
        *(
            (change, r"cannot read .*config\.yaml")
            for change in (
                *({"schema": None}, {"config": None}, {"config": {"variant": "mine"}}),
                *("[1, 2]", "", "a: [", "!!python/object/apply:os.getcwd []"),
            )
        ),
    ],
    ids=str,
)
def test_a_broken_config_is_an_error_by_name(run, seed, change, said):
    path = run.path / "config.yaml"
    if isinstance(change, dict):
        document = yaml.safe_load(path.read_text())
        path.write_text(json.dumps({**document, **change}))
    else:
        path.write_text(change)
    with pytest.raises(GlasBenchError, match=said):
        load_run(run.path)


def test_a_folder_of_another_program_is_no_run(tmp_path, run, seed, monkeypatch):
    """A run that lost its config.yaml is one by its name and seeds, a renamed copy by the key."""
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "exp-202401011230"  # a date is as long as a key
    theirs.mkdir()
    (theirs / "config.yaml").write_text("a: 1\n")
    for name in (str(theirs), theirs.name, f"./{theirs.name}"):
        for find in (lambda name: record.find_run(tmp_path, name), load_run):
            with pytest.raises(UsageError, match=r"no run folder: its config\.yaml has no"):
                find(name)
    shutil.copytree(theirs, run.path.parent / "project")
    with pytest.raises(UsageError, match="no run folder"):
        record.find_run(tmp_path, "pro")
    shutil.copytree(run.path, tmp_path / "backup")
    assert record.find_run(tmp_path, "backup") == Path("backup")
    (run.path / "config.yaml").unlink()
    assert record.find_run(tmp_path, str(run.path)) == run.path
    for nothing in ("", " "):
        for find in (lambda name: record.find_run(tmp_path, name), load_run):
            with pytest.raises(UsageError, match="the name of a run is empty"):
                find(nothing)


# --------------------------------------------------------------------------- ended early, shared


def test_a_killed_seed_is_interrupted_since_it_last_wrote(run, seed):
    seed.append_metrics(ROWS[0])
    with run.locked():
        assert load_run(run.path).seeds[3].status == "training"  # its process works
    for path in seed.path.iterdir():
        os.utime(path, (1e9, 1e9))
    record = load_run(run.path).seeds[3]
    assert (record.status, record.about["updated"]) == ("interrupted", 1e9)
    assert seed.status()["reason"] == "its process was killed"
    seed.set_status("scoring")
    (run.path / "lock").unlink()  # a copy fetched from MLflow, of a run that goes on elsewhere
    assert load_run(run.path).seeds[3].status == "scoring"


@pytest.mark.parametrize("ended", ["complete", "interrupted", "failed", None])
def test_what_starts_over_keeps_the_old_results_until_it_is_finished(run, seed, ended):
    seed.set_status("complete", step=9)
    with run.locked():
        run.set_aside(3)
        assert seed.status() == {"status": "waiting"}
        if ended:
            seed.path.mkdir()
            seed.set_status(ended, step=1)
    record = load_run(run.path).seeds[3]  # the process was killed: who reads puts it right
    assert (record.status, record.about["step"]) == ("complete", 1 if ended == "complete" else 9)
    assert hidden(run.path) == []


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, mask):
    old = os.umask(mask)
    try:
        folder = RunFolder(tmp_path / "a", "mine", "0123456789ab")
        folder.prepare(CONFIG, {"variant": "mine"})
        with folder.locked():
            folder.seed(0).set_status("training")
            folder.seed(0).append_metrics(ROWS[0])
        with locked(tmp_path / "a" / "some.lock", "it"):
            pass
        Database(f"sqlite:///{tmp_path / 'a' / 'optuna.db'}").close()
    finally:
        os.umask(old)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*.*")}
    assert len(files) >= 4
    assert set(files.values()) == {0o666 & ~mask}
    assert (folder.path / "lock").stat().st_mode & 0o777 == 0o666 & ~mask


# --------------------------------------------------------------------------- broken files

DAMAGED = "edited|cannot read|missing|belong|newer"


def finish(folder, value):
    folder.append_metrics(ROWS[0])
    folder.save_scores("aaa", {"nll": value}, {"nll": np.full(4, value)})
    folder.save_scores("bbb", {"nll": value + 1}, {"nll": np.full(4, value + 1)})
    folder.set_status("complete", step=9, protocol="aaa")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BREAKS = {
    "per_image of garbage": lambda a, b: (a / "per_image.npz").write_text("hi\n"),
    "per_image of another": lambda a, b: shutil.copy(b / "per_image.npz", a),
    "per_image lost": lambda a, b: (a / "per_image.npz").unlink(),
    "scores edited": lambda a, b: edit(a / "eval" / "aaa.json", nll=1.0),
    "scores cut": lambda a, b: (a / "eval" / "aaa.json").write_text('{"nll": 1'),
    "scores of another": lambda a, b: shutil.copy(b / "eval" / "aaa.json", a / "eval"),
    "scores of another protocol": lambda a, b: shutil.copy(
        a / "eval" / "bbb.json", a / "eval" / "aaa.json"
    ),
    "scores newer": lambda a, b: edit(a / "eval" / "aaa.json", schema=2),
    "scores lost": lambda a, b: (a / "eval" / "aaa.json").unlink(),
    "status edited": lambda a, b: edit(a / "status.json", seconds=1.0),
    "status of another": lambda a, b: shutil.copy(b / "status.json", a),
    "status newer": lambda a, b: edit(a / "status.json", schema=2),
    "status emptied": lambda a, b: (a / "status.json").write_text(""),
    "status no object": lambda a, b: (a / "status.json").write_text("[]"),
    "status cut": lambda a, b: (a / "status.json").write_text('{"status": '),
    "status lost": lambda a, b: (a / "status.json").unlink(),
    "metrics edited": lambda a, b: (a / "metrics.jsonl").write_text('{"epoch": 1}\n'),
    "metrics lost": lambda a, b: (a / "metrics.jsonl").unlink(),
    "all of another": lambda a, b: [shutil.rmtree(a), shutil.copytree(b, a)],
    "a file in its place": lambda a, b: [shutil.rmtree(a), a.write_text("")],
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_seed_with_a_broken_file_is_left_out_and_named(run, seed, how):
    other = run.seed(4)
    other.path.mkdir()
    finish(seed, 90.0)
    finish(other, 91.0)
    BREAKS[how](seed.path, other.path)
    found = load_run(run.path)
    broken, sound = found.seeds[3], found.seeds[4]
    assert (broken.status, broken.scores, broken.metrics) == ("failed", {}, [])
    assert re.search(DAMAGED, broken.broken)
    assert str(seed.path) in broken.broken
    assert "newer" in how or "give the command that ran it again" in broken.broken
    assert [sound.status, *sound.scores] == ["complete", "aaa", "bbb"]
    assert broken.broken in found.problems
    if "newer" in how:  # nothing of it is written over
        with pytest.raises(NewerRecord):
            seed.finished("aaa")
    else:
        assert seed.finished("aaa") is None


def test_a_copy_by_hand_beside_the_files_hurts_nothing(run, seed):
    finish(seed, 90.0)
    for name in ("eval/aaa.json", "status.json", "metrics.jsonl", "per_image.npz"):
        path = seed.path / name
        shutil.copy(path, path.with_stem(f"{path.stem} copy"))
    shutil.copytree(seed.path, run.path / "seed-3 copy")
    shutil.copytree(run.path, run.path.with_name("backup"))
    record.write_json(run.path / "environment.json", {})
    assert load_run(run.path).problems == []
    assert load_run(run.path.with_name("backup")).seeds[3].status == "complete"


@pytest.mark.parametrize("how", ["edited", "of another cell", "lost"])
def test_preparing_a_run_again_mends_its_config(run, seed, how):
    path = run.path / "config.yaml"
    right = path.read_text()
    other = RunFolder(run.path.parents[1], "other", "ba9876543210")
    other.prepare(CONFIG, {"variant": "other"})
    if how == "edited":
        path.write_text(right.replace("batch: 128", "batch: 64"))
    elif how == "lost":
        path.unlink()
    else:
        shutil.copy(other.path / "config.yaml", path)
    assert run.path in record.find_runs(run.path.parents[1])
    with pytest.raises(
        GlasBenchError, match="Run the command that made this run again: it rewrites"
    ):
        load_run(run.path)
    run.prepare(CONFIG, {"variant": "mine", "bounds_nll": None})
    assert path.read_text() == right


def test_a_broken_note_of_a_study_does_not_hide_the_others(run, tmp_path):
    record.note_study(tmp_path, "one", {run.path: "aaa"}, seeds="0")
    record.note_study(tmp_path, "two", {run.path: "aaa"}, seeds="0")
    edit(record.note_of(tmp_path, "one"), seeds="0-9")
    assert record.runs_by_study(tmp_path) == {"one": [], "two": [run.path], None: []}
    with pytest.raises(RunError, match="Sweep one again"):
        record.read_note(tmp_path, "one")
    record.note_study(tmp_path, "one", {run.path: "aaa"}, seeds="0")
    assert record.read_note(tmp_path, "one")["seeds"] == "0"
