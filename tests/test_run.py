"""`run` with real processes: killed, stopped, doubled and damaged, it ends at the same numbers."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import Glas, alive, answers, children, sets, timeless, until

from glas_bench import data, registry, study
from glas_bench.environment import cores
from glas_bench.record import RunFolder, SeedFolder, load_run, read_checkpoint
from glas_bench.runs import seed as seed_process

SIZES = {"steps": 2, "hidden": 16, "samples": 40}


def cell(variant="cauchy", **changes):
    """Return the command that runs a tiny cell."""
    values = sets(**{**SIZES, **changes})
    return ["run", "--variant", str(variant), "--preset", "smoke", *values, "--no-mirror", "--json"]


def as_table(command):
    """Return the command that prints a table in place of the document."""
    return [part for part in command if part != "--json"]


CELL = cell()
EVERY_STEP = {"GLAS_BENCH_CHECKPOINT_SECONDS": 0}
STEPS = 62  # two epochs of 31

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches /proc")


# --------------------------------------------------------------------------- what is compared


def run_folder(results):
    """Return the only run folder below a results folder."""
    (folder,) = (results / "runs").iterdir()
    return folder


def seed_folder(results, seed=0):
    return SeedFolder(run_folder(results) / f"seed-{seed}", seed)


def same_place(results, other, seed=0):
    """Return where a seed will lie below `results`, as one of the same cell does elsewhere."""
    return SeedFolder(results / "runs" / run_folder(other).name / f"seed-{seed}", seed)


def found_in(folder):
    """Return all that a seed's folder says, clocks left out."""
    (checkpoint,) = folder.checkpoints()
    state = read_checkpoint(checkpoint)
    assert state is not None
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {
        "model": state["model"],
        "step": state["position"]["step"],
        "metrics": [timeless(row) for row in folder.metrics()],
        "scores": {key: timeless(scores) for key, scores in folder.all_scores().items()},
        "per_image": folder.per_image(),
        "status": folder.status()["status"],
        # pictures are drawn where there is matplotlib
        "files": {str(path.relative_to(folder.path)) for path in files if path.suffix != ".png"},
    }


def assert_same(folder, other):
    """Hold two seeds' folders to be equal to the bit, clocks left out."""
    got, expected = found_in(folder), found_in(other)
    for name in ("model", "per_image"):
        a, b = got.pop(name), expected.pop(name)
        assert list(a) == list(b)
        assert len(a) > 5
        for key in a:
            x, y = np.asarray(a[key]), np.asarray(b[key])
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert x.tobytes() == y.tobytes(), f"{name} {key}"
    assert got == expected
    assert got["status"] == "complete"
    assert got["step"] == STEPS
    assert [row["epoch"] for row in got["metrics"]] == [1, 2]


def times(folder):
    """Return when each file below a folder was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, packed):
    """The results folder of seeds 0 and 1, run side by side and never disturbed."""
    command = Glas(tmp_path_factory.mktemp("undisturbed"))
    ended = command(*CELL, "--seeds", "0-1")
    assert ended.code == 0, ended.err
    assert [row["status"] for row in ended.json["seeds"]] == ["complete", "complete"]
    return command.results


@pytest.fixture
def finished(glas, undisturbed):
    """The run folder of a copy of it, in the place where `glas` looks."""
    shutil.copytree(undisturbed, glas.results)
    return run_folder(glas.results)


# --------------------------------------------------------------------------- killed and stopped


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_ends_at_the_same_numbers(glas, undisturbed):
    chance = random.Random(0)
    seed = same_place(glas.results, undisturbed)

    def step():
        saved = seed.checkpoints()
        return int(saved[0].stem.partition("-")[2]) if saved else 0

    def written(pattern):
        return any(seed.path.glob(pattern))

    early, late = chance.randrange(2, 20), chance.randrange(40, 55)
    moments = {
        "in the first epoch": lambda: step() >= early,
        "at the end of the first epoch": seed.metrics,
        "while a checkpoint is written": lambda: step() >= late and written(".checkpoint*"),
        "while it scores": lambda: written("eval/*.partial.pt"),
    }
    reached = [0]
    for moment, has_come in moments.items():
        process = glas.start(*CELL, **EVERY_STEP)
        until(has_come, process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        assert glas.ended(process).code == -signal.SIGKILL, moment
        assert not written("eval/*.json"), moment
        reached.append(step())
        assert reached[-1] >= reached[-2], f"{moment}: it began again"
    assert reached[-1] == STEPS
    assert glas.here(*CELL).code == 0
    assert_same(seed, seed_folder(undisturbed))


@linux
@pytest.mark.skipif(cores() < 2, reason="seeds run one after another on one processor")
@pytest.mark.timeout(300)
def test_seeds_side_by_side_stopped_and_killed(glas, undisturbed):
    command = [*CELL, "--seeds", "0-1"]

    def young():
        return children(process.pid, "runs.seed")

    def lock_is_free():
        with open(run_folder(glas.results) / "lock") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    # stopped as soon as there is a seed's process, which cannot answer yet
    process = glas.start(*command)
    until(young, process)
    process.terminate()
    ended = glas.ended(process)
    assert ended.code == 75, ended.err
    assert {row["status"] for row in ended.json["seeds"]} == {"interrupted"}

    # the parent is killed
    process = glas.start(*command, **EVERY_STEP)
    seeds = [same_place(glas.results, undisturbed, seed) for seed in (0, 1)]
    pids = until(lambda: len(young()) == 2 and young(), process)
    held: set[int] = set()

    def all_held():
        for pid, seed in zip(pids, seeds, strict=True):
            begun = seed.status()["status"] == "training" and seed.checkpoints()
            if pid not in held and begun:
                os.kill(pid, signal.SIGSTOP)  # so that neither ends before the other begins
                held.add(pid)
        return len(held) == 2

    until(all_held, process)
    process.kill()
    process.wait()
    assert not lock_is_free()  # while they are there, the folder is theirs
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not any(map(alive, pids)) and lock_is_free(), seconds=20)
    assert {seed.status()["status"] for seed in seeds} == {"training"}

    # a seed's process is killed, and the other goes on
    process = glas.start(*command, **EVERY_STEP)
    until(lambda: len(young()) == 2, process)
    victim = max(young())
    os.kill(victim, signal.SIGKILL)
    ended = glas.ended(process)
    assert ended.code == 3
    assert sorted(row["status"] for row in ended.json["seeds"]) == ["complete", "failed"]
    (failed,) = (row for row in ended.json["seeds"] if row["status"] == "failed")
    assert "signal 9" in failed["reason"]
    assert failed["elbo"] is None
    assert load_run(run_folder(glas.results)).seeds[failed["seed"]].status == "failed"

    # and the next run completes it
    done = times(seeds[1 - failed["seed"]].path)
    ended = glas.here(*command)
    assert ended.code == 0
    assert times(seeds[1 - failed["seed"]].path) == done
    for seed in (0, 1):
        assert_same(seeds[seed], seed_folder(undisturbed, seed))


def test_a_seed_s_process_ends_when_its_stdin_closes(glas, undisturbed, packed):
    record = load_run(run_folder(undisturbed))
    order = seed_process.SeedOrder(
        "cauchy", record.config.model_dump(), str(glas.results), record.config_key, 0, "cpu"
    )
    command = [sys.executable, "-m", "glas_bench.runs.seed"]
    line = json.dumps(asdict(order)).encode() + b"\n"
    done = subprocess.run(command, input=line, stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert not (glas.results / "runs").exists()


@pytest.mark.timeout(300)
def test_sigterm_ctrl_c_and_a_second_process(glas, undisturbed):
    process = glas.start(*CELL)
    seed = same_place(glas.results, undisturbed)
    until(lambda: seed.status()["status"] == "training", process)
    second = glas.here(*CELL)
    assert second.code == 1
    assert f"already running: pid {process.pid} on " in second.err
    assert second.out == ""
    process.terminate()
    ended = glas.ended(process)
    assert ended.code == 75
    assert ended.seeds[0]["status"] == seed.status()["status"] == "interrupted"
    (checkpoint, *_) = seed.checkpoints()  # none was due: the signal's own
    assert checkpoint.name == f"checkpoint-{seed.status()['step']:08d}.pt"

    process = glas.start(*CELL)
    until(lambda: seed.status()["status"] == "scoring", process)
    process.send_signal(signal.SIGINT)
    ended = glas.ended(process)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert ended.json["seeds"][0]["elbo"] is None

    assert glas.here(*CELL).code == 0
    assert_same(seed, seed_folder(undisturbed))


def site(glas, name, code):
    """Return a folder with a module, for the path of every Python."""
    (folder := glas.folder / "site").mkdir()
    (folder / f"{name}.py").write_text(code)
    return folder


TORCH = """
import signal, sys
print(*map(signal.getsignal, (signal.SIGTERM, signal.SIGINT)), file=sys.stderr)
raise ImportError
"""


def test_signals_are_answered_before_anything_heavy_is_imported(glas):
    ended = glas("doctor", PYTHONPATH=site(glas, "torch", TORCH))
    first = ended.err.partition("\n")[0]
    assert first.count("function _handle") == 2, ended.err  # of `signals`, for both


@linux
@pytest.mark.parametrize(
    ("delay", "number"),
    [
        *((delay, signal.SIGTERM) for delay in (0.0, 0.05, 1.0)),
        *((delay, signal.SIGINT) for delay in (0.0, 0.3, 2.5)),
    ],
)
def test_a_signal_in_the_first_moments(glas, delay, number):
    process = glas.start(*cell(epochs=1000))
    until(lambda: answers(process, signal.SIGTERM), process)
    time.sleep(delay)
    process.send_signal(number)
    ended = glas.ended(process)
    assert ended.code == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert "Traceback" not in ended.err
    assert ended.out == "" or ended.seeds[0]["status"] == "interrupted"


# --------------------------------------------------------------------------- the same again


def test_finished_work_is_shown_and_not_repeated(glas, finished):
    before = times(finished / "seed-0"), times(finished / "seed-1")
    shown = glas.here(*CELL, "--seeds", "0-1")
    assert shown.code == 0
    (scores,) = seed_folder(glas.results, 1).all_scores().values()
    assert shown.seeds[1]["elbo"] == scores["elbo"]
    assert shown.seeds[1]["iw"] == scores["iw"]
    more = glas.here(*CELL, "--seeds", "0,2")  # adds to the cell
    assert more.code == 0
    assert list(more.seeds) == [0, 2]
    assert more.seeds[2]["elbo"] != more.seeds[0]["elbo"] == shown.seeds[0]["elbo"]
    assert Path(more.json["folder"]) == finished
    seeds = load_run(finished).seeds
    assert {seed: one.status for seed, one in seeds.items()} == dict.fromkeys(range(3), "complete")
    table = glas.here(*as_table(CELL))
    assert f"{shown.seeds[0]['elbo']:.2f}" in table.out
    assert (times(finished / "seed-0"), times(finished / "seed-1")) == before


def test_one_seed_alone_is_that_seed_among_others(glas, undisturbed):
    assert glas.here(*CELL, "--seeds", "1").code == 0
    assert_same(seed_folder(glas.results, 1), seed_folder(undisturbed, 1))


def test_another_k_scores_again_without_training(glas, finished):
    seed = seed_folder(glas.results)
    (checkpoint,) = seed.checkpoints()
    trained = checkpoint.stat().st_mtime_ns
    before = glas.here(*CELL)
    ended = glas.here(*cell(samples=7))
    assert ended.code == 0, ended.out
    assert seed.checkpoints() == [checkpoint]
    assert checkpoint.stat().st_mtime_ns == trained
    old, new = before.seeds[0], ended.seeds[0]
    assert new["elbo"] == old["elbo"]
    assert new["iw"] > old["iw"]  # fewer weights, a looser bound
    assert ended.json["config_key"] == before.json["config_key"]
    assert set(seed.all_scores()) == {before.json["protocol_key"], ended.json["protocol_key"]}
    assert seed.per_image(before.json["protocol_key"])["iw"].mean() == old["iw"]
    assert glas.here(*CELL).seeds == before.seeds


def test_fresh_starts_over_and_costs_no_finished_run_where_it_is_stopped(
    glas, finished, undisturbed
):
    (finished / "seed-0" / "stale").write_text("of a run before")
    before, other = times(finished / "seed-0"), times(finished / "seed-1")
    process = glas.start(*CELL, "--fresh", **EVERY_STEP)
    until(lambda: [*(finished / "seed-0").glob("checkpoint-0000000*")], process)
    process.send_signal(signal.SIGUSR1)  # as Slurm does
    ended = glas.ended(process)
    assert ended.code == 75
    assert "the results from before --fresh are kept" in ended.seeds[0]["reason"]
    assert times(finished / "seed-0") == before
    assert glas.here(*CELL, "--fresh").code == 0
    after = times(finished / "seed-0")
    assert set(before) - set(after) == {str(finished / "seed-0" / "stale")}
    assert all(after[path] > before[path] for path in after)
    assert times(finished / "seed-1") == other
    assert_same(seed_folder(glas.results), seed_folder(undisturbed))


def cauchy(config):
    return study.Cell("cauchy", registry.find("cauchy"), {}, config, (0,))


class Crash(BaseException):
    """What ends a process here, as a kill would."""


@pytest.fixture(scope="session")
def crashed_once(tmp_path_factory, packed, undisturbed):
    """The results folder of a seed whose process died at step 45, having saved each step."""
    results = tmp_path_factory.mktemp("crashed")
    record = load_run(run_folder(undisturbed))
    seed = same_place(results, undisturbed)
    RunFolder(results, "cauchy", record.config_key).prepare(record.config, record.about)

    def tell(event):
        if event.get("done") == 45:
            raise Crash

    with seed_in_this_process(), pytest.raises(Crash):
        seed_process.run_seed(cauchy(record.config), seed, packed, tell)
    return results


@contextlib.contextmanager
def seed_in_this_process():
    """Let a seed save and report at each step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GLAS_BENCH_CHECKPOINT_SECONDS", "0")
        monkeypatch.setattr(seed_process, "TELL_EVERY", 0.0)
        yield monkeypatch


@pytest.fixture
def crashed(glas, crashed_once):
    """A copy of it, in the place where `glas` looks."""
    shutil.copytree(crashed_once, glas.results)
    seed = seed_folder(glas.results)
    assert [path.stem[-2:] for path in seed.checkpoints()] == ["45", "44"]
    return seed


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "emptied"])
def test_damaged_and_torn_files_are_made_good(glas, crashed, undisturbed, damage):
    newest, older = crashed.checkpoints()
    content = bytearray(newest.read_bytes())
    if damage == "a bit flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[0 if damage == "emptied" else len(content) // 2 :]
    newest.write_bytes(content)
    with open(crashed.path / "metrics.jsonl", "a") as metrics:
        metrics.write('{"epoch": 2, "objec')
    (crashed.path / ".status.json.x1y2z3.tmp").write_text('{"sta')
    (crashed.path / "status.json").write_text("")
    assert len(crashed.metrics()) == 1
    state = crashed.load_checkpoint()
    assert state is not None
    assert state["position"]["step"] == 44
    assert older.exists()
    assert glas.here(*CELL).code == 0
    assert_same(crashed, seed_folder(undisturbed))


def test_killed_between_the_last_weight_and_the_scores(glas, crashed, undisturbed, packed):
    def die(*_):
        raise Crash

    found = load_run(crashed.path.parent).config
    with seed_in_this_process() as monkeypatch:
        monkeypatch.setattr(SeedFolder, "save_scores", die)
        with pytest.raises(Crash):
            seed_process.run_seed(cauchy(found), crashed, packed, lambda event: None)
    assert list(crashed.path.glob("eval/*.partial.pt"))
    ended = glas.here(*CELL)
    assert ended.code == 0, ended.out
    assert_same(crashed, seed_folder(undisturbed))


# --------------------------------------------------------------------------- diverging


def test_a_seed_that_diverges_is_a_status(glas):
    command = cell(learning_rate="1e30")
    ended = glas.here(*command)
    assert ended.code == 1
    row = ended.seeds[0]
    assert row["status"] == "diverged"
    assert row["step"] > 0
    assert "not finite" in row["reason"]
    numbers = ("objective", "recon", "elbo", "iw", "nll", "refit_iw", "ais")
    assert [row[name] for name in numbers] == [None] * len(numbers)
    seed = seed_folder(glas.results)
    assert not (seed.path / "eval").exists()
    before = times(seed.path)
    again = glas.here(*command)
    assert (again.code, again.seeds) == (1, ended.seeds)
    assert times(seed.path) == before
    table = glas.here(*as_table(command))
    assert f"diverged at step {row['step']}, {row['reason']}" in table.out


HALF_DIVERGES = '''"""Its charge has no value where the frozen matrix happens to start high."""
import os
import torch
from glas_bench.model import Glas

print("a word on stdout while it is imported")

class Half(Glas):
    latent_trained = False

    def charge(self, q, p, z):
        os.write(1, b"and one below Python\\n")
        return super().charge(q, p, z) + 0 * torch.log(0.00053 - self.latent.mean())
'''


@pytest.mark.timeout(300)
def test_one_of_two_seeds_diverges_beside_a_baseline(glas):
    elsewhere = glas.folder / "a place of mine"
    elsewhere.mkdir()
    (elsewhere / "half.py").write_text(HALF_DIVERGES)
    command = cell("./half.py", epochs=1)
    alone = glas(*command, cwd=elsewhere)
    assert alone.code == 0, alone.err
    assert alone.out.count("\n") == 1
    assert alone.json["dataset"] == "mnist-5k"
    assert alone.seeds[0]["elbo_status"] == "finite"
    numbers = [alone.seeds[0][name] for name in ("objective", "elbo", "iw", "refit_iw", "nll")]
    assert all(isinstance(number, float) for number in numbers)
    assert "a word on stdout" in alone.err
    assert "below Python" in alone.err

    ended = glas(*command, "--seeds", "0-1", "--baseline", "vae", cwd=elsewhere)
    assert ended.code == 3, ended.err
    assert ended.out.count("\n") == 1
    assert ended.seeds[0] == alone.seeds[0]
    assert ended.json["bounds_nll"] is None
    diverged = ended.seeds[1]
    assert (diverged["status"], diverged["step"], diverged["elbo"]) == ("diverged", 0, None)
    baseline = ended.json["baseline"]
    assert [row["status"] for row in baseline["seeds"]] == ["complete", "complete"]
    assert baseline["config_key"] != ended.json["config_key"]
    k, other = ended.seeds[0]["iw_samples"], baseline["seeds"][0]["iw_samples"]
    assert k != other  # the nll of one comes from iw, that of the other does not
    assert ended.json["difference"]["iw"]["estimate"] is None
    assert "iw of different K" in ended.json["difference"]["iw"]["reason"]
    for metric in ("nll", "elbo"):
        difference = ended.json["difference"][metric]
        expected = ended.seeds[0][metric] - baseline["seeds"][0][metric]
        assert difference["estimate"] == pytest.approx(expected, abs=1e-9)
        assert difference["low"] < difference["estimate"] < difference["high"]
        assert (difference["seeds"], difference["images"]) == ([0], 500)
        assert difference["diverged"] == 1
        assert difference["resolvable"] is None
        assert "1 diverged" in difference["label"]

    table = glas.here(*as_table(cell(elsewhere / "half.py", epochs=1)))
    assert "half minus" not in table.out
    assert f"{alone.seeds[0]['iw']:.2f}" in table.out


def test_a_file_edited_meanwhile_is_not_trained_under_its_old_name(glas, packed):
    path = glas.folder / "half.py"
    path.write_text(HALF_DIVERGES)
    variant = registry.find(str(path))
    (planned,) = study.by_hand(variant, None, [0], preset="smoke", overrides={**SIZES, "epochs": 1})
    one = planned.on(packed)
    order = seed_process.SeedOrder(
        str(path), one.config.model_dump(), str(glas.results), one.key, seed=0, device="cpu"
    )
    path.write_text(HALF_DIVERGES.replace("0.00053", "0.00063"))
    with seed_in_this_process():
        ended = seed_process.carry_out(order, lambda event: None)
    seed = one.folder(glas.results).seed(0)
    assert ended["status"] == seed.status()["status"] == "failed"
    assert "changed since the command began" in ended["reason"]
    assert seed.checkpoints() == []


# --------------------------------------------------------------------------- before any training


def test_a_folder_that_cannot_be_written_or_has_no_room_is_said_first(glas, monkeypatch):
    (glas.folder / "file").write_text("")
    ended = glas.here(*CELL, "--results", glas.folder / "file" / "below")
    assert ended.code == 1
    assert f"cannot write into {glas.folder / 'file' / 'below'}" in ended.err
    assert "--results" in ended.err
    assert "epoch" not in ended.err
    full = shutil.disk_usage(glas.folder)._replace(free=5 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    ended = glas.here(*CELL)
    assert ended.code == 1
    assert "only 5 MiB are free" in ended.err
    assert not (glas.results / "runs").exists()


# --------------------------------------------------------------------------- a file of one's own

MY_IDEA = '''"""Twice the charge: a line of a file that lies anywhere."""

from glas_bench.model import Glas


class MyIdea(Glas):
    bounds_nll = True

    def charge(self, q, p, z):
        return 2 * super().charge(q, p, z)
'''


def broken(glas, text):
    path = glas.folder / "broken.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("arms", [("./cauchy.py", "cauchy"), ("cauchy", "./cauchy.py")])
def test_a_changed_copy_beside_the_built_in_variant_needs_another_name(glas, arms, monkeypatch):
    source = registry.find("cauchy").path.read_text()
    (glas.folder / "cauchy.py").write_text(source.replace("Cauchy", "Other"))
    monkeypatch.chdir(glas.folder)
    ended = glas.here("run", "--variant", arms[0], "--baseline", arms[1], "--preset", "smoke")
    assert ended.code == 2
    file = glas.folder.resolve() / "cauchy.py"
    assert f"the variant has the name cauchy too; rename the file {file}" in ended.err
    assert not glas.results.exists()


def test_a_file_of_ten_lines(glas, monkeypatch):
    (glas.folder / "my_idea.py").write_text(MY_IDEA)
    assert len(MY_IDEA.splitlines()) == 10
    monkeypatch.chdir(glas.folder)
    ended = glas.here(*cell("./my_idea.py", epochs=1))
    assert ended.code == 0, ended.err
    assert ended.json["variant"] == "my-idea"
    assert ended.json["bounds_nll"] is True
    twice = glas.here(*cell(epochs=1, charge_weight=2))
    assert ended.seeds[0]["elbo"] == twice.seeds[0]["elbo"]
    assert ended.seeds[0]["charge"] == 2 * twice.seeds[0]["charge"]
    checked = glas.here("check", "./my_idea.py")
    assert (checked.code, checked.err) == (0, "")
    assert "my-idea: all" in checked.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class MyIdea(Glas:\n    pass\n", "broken.py:1: importing it failed with SyntaxError"),
        ("x = 1\n\ny = x / 0\n", "broken.py:3: importing it failed with ZeroDivisionError"),
        ("import sys\nsys.exit(0)\n", "broken.py:2: importing it failed with SystemExit"),
        ("import no_such_thing\n", "broken.py:1: importing it failed with ModuleNotFoundError"),
        ("x = 1\n", "exactly one public subclass of glas_bench.model.Glas; got none"),
        (MY_IDEA + "class Other(Glas):\n    pass\n", "got MyIdea, Other"),
        (MY_IDEA + "b'\\xff'.decode()\n", "broken.py:11: importing it failed with UnicodeDecode"),
    ],
    ids=lambda value: None if "\n" in value else value[:24],
)
def test_a_broken_file_is_refused_with_its_error(glas, text, message):
    path = broken(glas, text)
    for command in (cell(path), ["check", path]):
        ended = glas.here(*command)
        assert ended.code == 2
        assert message in ended.err
        assert str(path) in ended.err
        assert "Traceback" not in ended.err
    assert not glas.results.exists()


@pytest.mark.parametrize("charge", ["q.mean.square()", "q.nothing"])
def test_a_faulty_charge_is_a_status_and_an_error_names_its_line(glas, charge):
    path = broken(glas, MY_IDEA.replace("2 * super().charge(q, p, z)", charge))
    checked = glas.here("check", path)
    assert checked.code == 1
    assert "BROKEN" in checked.out
    assert "charge" in checked.out
    ended = glas.here(*cell(path))
    assert ended.code == 1
    assert ended.seeds[0]["status"] == "failed"
    assert "Traceback" not in ended.err
    if charge == "q.nothing":
        assert f"has no attribute 'nothing' ({path}, line 10)" in ended.seeds[0]["reason"]
        debugged = glas.here(*cell(path), "--debug")
        assert debugged.code == 1
        assert f'File "{path}", line 10, in charge' in debugged.err


# --------------------------------------------------------------------------- a bare machine

BLOCK = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in NAMES:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def test_a_bare_machine_trains_and_scores(glas, undisturbed, packed):
    lacking = "mlflow optuna pandas seaborn matplotlib scipy mlxtend rich pooch requests filelock "
    names = (lacking + "psutil threadpoolctl").split()
    bare = site(glas, "sitecustomize", f"NAMES = {names}\n{BLOCK}")
    (carried := glas.folder / "carried").mkdir()
    data.pack("mnist-5k", carried)
    cache = glas.folder / "cache"
    ended = glas(*CELL, PYTHONPATH=bare, GLAS_BENCH_DATA=carried, XDG_CACHE_HOME=cache)
    assert ended.code == 0, ended.err
    assert "epoch 2/2" in ended.err
    assert_same(seed_folder(glas.results), seed_folder(undisturbed))
