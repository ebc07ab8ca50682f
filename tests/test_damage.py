"""Random damages to a results folder: what is broken is named, what is sound keeps its numbers.

    DAMAGES=1000 DAMAGE_SEED=7 python -m pytest tests/test_damage.py

tries more of them. Permissions mean nothing to root: a folder in the file's place stands for them.
Pages are made without figures and without the mirror, which take most of the time.
"""

import os
import random
import shutil

import pytest
from conftest import Glas
from quick.budget import QUICK

from glas_bench import evaluate
from glas_bench.record import find_runs, load_run
from glas_bench.report import csv_file, figures
from glas_bench.tracking import sync

COUNT = int(os.environ.get("DAMAGES", "100"))
SEED = int(os.environ.get("DAMAGE_SEED", "0"))
HEALED = int(os.environ.get("DAMAGES", "10"))
"""The first of them are swept again; where more are asked for, all."""

STUDY = """
name: damaged
question: What is left of a damaged folder?
version: 1
preset: smoke
baseline: cauchy
variants: [cauchy, gaussian]
set: {hidden: 2, latent_size: 6, sample_size: 2, filter_size: 2, samples: 4, images: 16,
      epochs: 1, batch: 2000, steps: 2}
seeds: 0-1
"""


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def cut(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def take(path, draw):
    if os.geteuid():
        path.chmod(0)
    else:
        path.unlink()
        path.mkdir()


def swap(path, draw):
    """Replace a file by that of another seed or cell, where there is one of its name."""
    others = [p for p in path.parents[2].rglob(path.name) if p != path and p.is_file()]
    path.write_bytes(draw.choice(sorted(others) or [path]).read_bytes())


HARMS = {
    "flip": flip,
    "empty": lambda path, draw: path.write_bytes(b""),
    "cut": cut,
    "remove": lambda path, draw: path.unlink(),
    "double": lambda path, draw: path.write_bytes(2 * path.read_bytes()),
    "copy": lambda path, draw: shutil.copy(path, path.with_stem(f"{path.stem} copy")),
    "take": take,
    "swap": swap,
}


@pytest.fixture(scope="module")
def sound(packed, tmp_path_factory):
    """The command with a swept study, reported once."""
    command = Glas(tmp_path_factory.mktemp("damage"))
    (command.folder / "damaged.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BUDGET", QUICK)
        patch.setattr(figures.Drawing, "picture", lambda self, kind="png": b"")
        patch.setattr(sync, "sync", lambda *_, **__: sync.SyncReport())
        patch.setenv("GLAS_BENCH_CORES", "1")  # seeds are trained in this process
        patch.chdir(command.folder)
        ended = command.here("sweep", "damaged.yaml", "--workers", 1, "--no-mirror")
        assert ended.code == 0, ended.err
        assert command.here("report", "damaged").code == 0
        yield command


def read(results):
    """Return the rows of the page by cell and seed."""
    rows = csv_file.read(results / "report" / "damaged.csv")
    return {(row["cell"], row["seed"]): row for row in rows}


def owner(path):
    """Return the cell and seed of a file of a run; the seed is empty for a file of the cell."""
    parts = path.parts
    if "runs" not in parts:
        return None
    seed = next((part for part in parts if part.startswith("seed-")), "seed-")
    return parts[parts.index("runs") + 1].rpartition("-")[0], seed.removeprefix("seed-")


def files(results):
    """Return what may be damaged."""
    ours = (path for path in results.rglob("*") if path.is_file())
    kept = {"report", "fetched"}
    names = [path.relative_to(results) for path in ours if "lock" not in path.name]
    return sorted(name for name in names if not kept & set(name.parts))


def own_numbers(results):
    """Return the names of the numbers of a seed."""
    record = load_run(find_runs(results)[0])
    return {number.name for number in record.seeds[0].numbers(record.protocol_of(0))}


@pytest.mark.parametrize("number", range(COUNT))
def test_a_damage_is_healed_or_named(sound, tmp_path, number):
    draw = random.Random(f"{SEED}/{number}")
    truth, columns = read(sound.results), own_numbers(sound.results)
    here = Glas(tmp_path)
    shutil.copytree(sound.results, here.results, ignore=shutil.ignore_patterns("report"))
    harm = draw.choice(sorted(HARMS))
    folders = sorted({name.parent for name in files(here.results)})
    folder = draw.choice(folders)
    name = draw.choice([name for name in files(here.results) if name.parent == folder])
    HARMS[harm](here.results / name, draw)
    what = f"{harm} {name}"

    ended = here.here("report", "damaged")
    if "studies" in name.parts and ended.code:
        assert "damaged.json" in ended.err or harm == "remove", (what, ended.err)
        return
    assert ended.code in (0, 3), (what, ended.code, ended.err)
    assert "Traceback" not in ended.err, (what, ended.err)
    if owner(name) is None:
        status = here.here("status", "damaged")
        assert status.code in (0, 1, 2, 3), what
        assert "Traceback" not in status.err, (what, status.err)
    rows = read(here.results) if (here.results / "report" / "damaged.csv").exists() else {}
    hurt = owner(name)
    for place, right in truth.items():
        row = rows.get(place, {"status": "named by its study"})
        if row["status"] == "complete":
            for column in columns:
                assert row.get(column) == right.get(column), (what, place, column)
            continue
        assert ended.code == 3, (what, place, row["status"])
        spot = name.name if hurt is None or not hurt[1] else f"seed-{hurt[1]}"
        assert spot in ended.err, (what, place, ended.err)
        assert hurt is None or hurt in (place, (place[0], "")), (what, place, row["status"])
    if ended.code == 0 and name.suffix != ".png":  # a picture is no number
        assert rows == truth, what

    if hurt and number < HEALED:
        swept = here.here("sweep", "damaged.yaml", "--workers", 1, "--no-mirror")
        assert swept.code == 0 or name.name in swept.err + swept.out, (what, swept.out, swept.err)
        if swept.code == 0:
            ended = here.here("report", "damaged")
            assert ended.code == 0, (what, ended.err)
            assert {row["nll"] for row in read(here.results).values()} == {
                row["nll"] for row in truth.values()
            }, what
