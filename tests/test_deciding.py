"""`sweep --decide` with real processes: the same verdicts however often it is killed or joined."""

from __future__ import annotations

import re
import runpy
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import QUICKLY, Ended, Glas, trials_at, until
from quick.budget import QUICK

from glas_bench import evaluate
from glas_bench.errors import UsageError
from glas_bench.record import load_run
from glas_bench.report import csv_file
from glas_bench.sweep import storage

FROZEN = Path(__file__).parent / "frozen"
SCRIPTS = Path(__file__).parents[1] / "scripts"
read_back = runpy.run_path(str(SCRIPTS / "runs_from_csv.py"))["read_back"]
TEXT = """\
name: deciding
question: Which claims are settled?
version: 1
preset: laptop
dataset: mnist-5k
set: {epochs: 1, hidden: 4, samples: 2, images: 16, steps: 2, latent_size: 4, sample_size: 2,
      filter_size: 2, batch: 500}
variants: [cauchy, gaussian]
seeds: 0,1
"""
CLAIMS = """\
looks: [2, 3, 4]
claims:
  - {text: At the first look., source: here, expect: early_canvas_variance(gaussian) < 100}
  - {text: At the second., source: here, expect: failed_share(gaussian) > 0.1}
  - {text: Never. All seeds are equal., source: here, expect: active_units(cauchy) < 100 units}
  - {text: Of no seed., source: here, expect: elbo(cauchy) < 600}
"""
STUDY = TEXT + CLAIMS
COMMAND = ("sweep", "deciding.yaml", "--no-mirror", "--workers", 1)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Score in a moment, and train seeds one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BUDGET", QUICK)
        patch.setenv("GLAS_BENCH_CORES", "1")
        patch.setenv("GLAS_BENCH_BEAT_SECONDS", "0.5")  # waits are shorter
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, packed: Any) -> tuple[Glas, Ended]:
    """A command whose one worker went to the end, and what it printed."""
    glas = Glas(tmp_path_factory.mktemp("alone"))
    (glas.folder / "deciding.yaml").write_text(STUDY)
    return glas, sweep(glas, "--decide")


@pytest.fixture
def alone(first: tuple[Glas, Ended]) -> Glas:
    """The command over the results of one worker that went to the end."""
    return first[0]


def sweep(glas: Glas, *arguments: object, code: int = 0) -> Ended:
    """Sweep inside this process."""
    ended = glas.here("sweep", glas.folder / "deciding.yaml", "--no-mirror", *arguments)
    assert ended.code == code, ended.err
    return ended


def status(glas: Glas) -> dict[str, Any]:
    return glas.here("status", glas.folder / "deciding.yaml", "--json").json


def trials(glas: Glas) -> list[optuna.trial.FrozenTrial]:
    return trials_at(storage.storage_url(None, glas.results), "deciding")


def seeds(document: dict[str, Any]) -> dict[str, dict[int, str]]:
    """Return by cell the status of every seed."""
    return {
        cell["cell"]: {each["seed"]: each["status"] for each in cell["seeds"]}
        for cell in document["cells"]
    }


def epochs(glas: Glas) -> dict[str, dict[int, list[int]]]:
    """Return by variant and seed the epochs that were trained."""
    return {
        path.name.rpartition("-")[0]: {
            seed: [row["epoch"] for row in record.metrics]
            for seed, record in load_run(path).seeds.items()
        }
        for path in (glas.results / "runs").iterdir()
    }


def test_one_worker_goes_on_until_each_claim_is_decided_or_cannot_be(
    first: tuple[Glas, Ended],
) -> None:
    document, out, err = status(first[0]), first[1].out, first[1].err
    words = [(one["verdict"], len(one["looks"])) for one in document["claims"]]
    assert words == [("reproduced", 1), ("reproduced", 2), ("undecided", 3), ("undecided", 1)]
    # seeds go to the cells of undecided claims alone
    four = dict.fromkeys(range(4), "complete")
    assert seeds(document) == {"cauchy": four, "gaussian": dict.fromkeys(range(3), "complete")}
    assert "cauchy: running, seeds 0,1" in err
    assert "1 of 4 claims decided; the next look takes seeds of cauchy 2, gaussian 2" in err
    assert "2 of 4 claims decided; the next look takes seeds of cauchy 3\n" in err
    wanted = "claim 2: failed_share(gaussian) > 0.1\n    reproduced at look 2 of 3 (3 seeds): "
    assert wanted in out
    assert "    0 of 2 seeds of cauchy left the mean image, so means do not decide" in out
    assert "all seeds of cauchy are equal: how far others may lie is not known" in out
    assert "2 cells: 2 complete; 7 of 7 seeds; 2 of 4 claims decided" in out
    assert max(map(len, out.splitlines())) < 80


def test_again_it_runs_nothing_and_prints_the_same(first: tuple[Glas, Ended]) -> None:
    alone, ended = first
    again = sweep(alone, "--decide")
    assert again.out == ended.out
    assert "running" not in again.err
    assert alone.here("status", alone.folder / "deciding.yaml").out == ended.out


def test_a_sweep_of_a_decided_study_names_decide(alone: Glas) -> None:
    refused = sweep(alone, code=2).err
    assert "cells with other seeds: cauchy, gaussian" in refused
    assert "With --decide it keeps the seeds that it has" in refused
    assert len(seeds(status(alone))["cauchy"]) == 4


@pytest.mark.parametrize(
    ("were", "now", "changed"),
    [
        ("[2, 3, 4]", "[2, 4]", "looks [2, 4] where it was [2, 3, 4]"),
        ("failed_share(gaussian) > 0.1", "failed_share(gaussian) > 0.1, margin: 0.2", "margins ["),
    ],
)
def test_looks_and_margins_that_change_after_results_are_refused(
    alone: Glas, were: str, now: str, changed: str
) -> None:
    file = alone.folder / "deciding.yaml"
    try:
        file.write_text(STUDY.replace(were, now))
        refused = sweep(alone, "--decide", code=2).err
        assert f"  {changed}" in refused
        assert "chosen after results were seen, they no longer keep the error rate" in refused
        assert "chosen after results" in " ".join(alone.here("status", file).out.split())
    finally:
        file.write_text(STUDY)


def test_two_side_by_side_of_which_one_is_killed_and_one_that_joins_late(
    alone: Glas, bare_glas: Glas
) -> None:
    glas = bare_glas
    (glas.folder / "deciding.yaml").write_text(STUDY)
    both = [glas.start(*COMMAND, "--decide", **QUICKLY) for _ in range(2)]

    def running() -> int | None:
        """Return the process that runs a seed of the second look."""
        owners = {
            trial.system_attrs["glas_bench:owner"]["pid"]
            for trial in trials(glas)
            if trial.state.name == "RUNNING"
            and trial.system_attrs["glas_bench:about"]["seeds"] == [2]
            and trial.system_attrs.get("glas_bench:owner")
        }
        return next(iter(owners), None)

    until(lambda: list(glas.results.glob("runs/*/seed-1/eval/*.json")))  # the database is there
    pid = until(running, every=0.05)
    (killed,) = (each for each in both if each.pid == pid)
    (other,) = (each for each in both if each.pid != pid)
    killed.kill()
    late = glas.start(*COMMAND, "--decide", **QUICKLY)
    killed.communicate()
    ended = [glas.ended(each) for each in (other, late)]
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]

    wanted, got = status(alone), status(glas)
    assert got["claims"] == wanted["claims"]
    assert seeds(got) == seeds(wanted)
    assert epochs(glas) == epochs(alone)  # each seed was trained once, and no other
    done = [t for t in trials(glas) if t.state.name == "COMPLETE"]
    each_once = Counter(
        (t.user_attrs["cell"], seed)
        for t in done
        for seed in t.system_attrs["glas_bench:about"]["seeds"]
    )
    assert set(each_once.values()) == {1}
    assert sum(t.system_attrs.get("glas_bench:lost", 0) for t in done) == 1
    for each in ended:
        assert "2 of 4 claims decided" in each.out


def test_a_search_chooses_settings_and_its_claims_get_seeds(bare_glas: Glas, packed: Any) -> None:
    more = """\
space: {learning_rate: {choices: [1e-3, 1e-2]}}
tuning_seeds: 100
looks: [2, 3]
claims:
  - {text: t, source: s, expect: failed_share(gaussian) > 0.1}
  - {text: t, source: s, expect: early_canvas_variance(gaussian) < 100}
"""
    searched = TEXT.replace("[cauchy, gaussian]", "[gaussian]") + more
    (bare_glas.folder / "deciding.yaml").write_text(searched)
    ended = sweep(bare_glas, "--decide", "--workers", 1)
    assert "2 of 2 claims decided" in ended.out
    document = status(bare_glas)
    (cell,) = document["cells"]
    assert cell["search"]["winner"]["values"].keys() == {"learning_rate"}
    assert seeds(document) == {"gaussian": dict.fromkeys(range(3), "complete")}


def test_max_hours_stops_and_the_same_command_goes_on(alone: Glas, bare_glas: Glas) -> None:
    glas = bare_glas
    (glas.folder / "deciding.yaml").write_text(STUDY)
    stopped = sweep(glas, "--decide", "--max-hours", 1e-9)
    assert "2 cells: 2 waiting" in stopped.out
    assert "--max-hours is over; the same command goes on" in stopped.out
    assert not list(glas.results.glob("runs/*/seed-*/eval/*.json"))
    shutil.copytree(alone.results / "runs", glas.results / "runs", dirs_exist_ok=True)
    went_on = sweep(glas, "--decide", "--max-hours", 1)
    assert "running" not in went_on.err  # all is there
    assert status(glas)["claims"] == status(alone)["claims"]


def test_a_sweep_goes_on_from_the_csv_of_a_page(
    alone: Glas, bare_glas: Glas, tmp_path: Path
) -> None:
    file = bare_glas.folder / "deciding.yaml"
    file.write_text(STUDY)
    page, new = tmp_path / "page", tmp_path / "new"
    assert alone.here("report", alone.folder / "deciding.yaml", "--out", page).code == 0
    rows = csv_file.read(page / "deciding.csv")
    csv = page / "deciding.csv"
    csv.write_bytes(csv_file.write([row for row in rows if row["seed"] != "3"]))  # of look 2
    assert read_back(csv, bare_glas.results, str(file)) == (6, 0)
    assert read_back(csv, bare_glas.results, str(file)) == (0, 6)

    sweep(bare_glas, "--decide")
    assert seeds(status(bare_glas)) == seeds(status(alone))
    trained = {name: [n for n in own if own[n]] for name, own in epochs(bare_glas).items()}
    assert trained == {"cauchy": [3], "gaussian": []}
    words = [[one["verdict"] for one in status(each)["claims"]] for each in (alone, bare_glas)]
    assert words[0] == words[1]

    assert bare_glas.here("report", file, "--out", new).code == 0
    again = csv_file.read(new / "deciding.csv")
    made = {"claims", "figures", "remarks"}
    for old, row in zip(rows, again, strict=True):
        assert bool(row["read_from"]) == (row["seed"] != "3")
        if row["read_from"]:
            same = old.keys() - made
            assert {name: row.get(name, "") for name in same} == {name: old[name] for name in same}
    facts = r"deciding.csv` \(sha256 [0-9a-f]{12}\), without values .* or curves: 6 seeds"
    assert re.search(facts, (new / "deciding.md").read_text())


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"config_key": "0123456789ab"}, "was trained or scored otherwise than this version does"),
        ({"protocol_key": "0123456789ab"}, "was trained or scored otherwise than this version"),
        ({"study": "glas-bench"}, "has runs of no study"),
        ({"study": "atention"}, "Did you mean 'attention'"),
    ],
)
def test_rows_that_are_of_no_cell_are_refused(
    edit: dict[str, str], why: str, alone: Glas, bare_glas: Glas
) -> None:
    file, csv = alone.folder / "deciding.yaml", bare_glas.folder / "deciding.csv"
    assert alone.here("report", file, "--out", csv.parent).code == 0
    rows = [{**row, **edit} for row in csv_file.read(csv)]
    csv.write_bytes(csv_file.write(rows))
    with pytest.raises(UsageError, match=why):
        read_back(csv, bare_glas.results, None if "study" in edit else str(file))
    assert not bare_glas.results.exists()


@pytest.mark.parametrize(
    ("text", "arguments", "wanted"),
    [
        (STUDY, ("--preset", "quick"), "--decide: preset quick gives no verdicts"),
        (TEXT, (), "--decide: deciding has no claims; give it some"),
        (STUDY.replace("images: 16", "images: 1"), (), "claim 4 compares means over images, and"),
        (STUDY, ("--seeds", "0-4"), "--decide adds the seeds itself; leave --seeds out"),
        (STUDY, ("--max-hours", "0"), "'--max-hours': 0.0 is not in the range x>0"),
        (STUDY.replace("[2, 3, 4]", "[4, 3]"), (), r"deciding.yaml:\d+: looks"),
    ],
)
def test_wrong_input_is_one_line(
    text: str, arguments: tuple[object, ...], wanted: str, bare_glas: Glas
) -> None:
    (bare_glas.folder / "deciding.yaml").write_text(text)
    for more in ((), ("--dry-run",)):
        err = sweep(bare_glas, "--decide", *arguments, *more, code=2).err.strip()
        assert re.search(wanted, err.splitlines()[-1]), err
        assert not bare_glas.results.exists()


def test_a_folder_of_another_version_is_not_passed_off_as_what_is_planned(bare_glas: Glas) -> None:
    shutil.copytree(FROZEN / "results", bare_glas.results)
    ended = bare_glas.here("status", FROZEN / "frozen.yaml")
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "3 of 4 cells were made by another version of the training core or protocol" in text
    assert "(an older one; now core " in text
