"""A sweep in a storm: workers killed, database and tracking server restarted, nothing lost.

Real processes, a real PostgreSQL, a real MLflow server. Moments are drawn at random;
GLAS_BENCH_STORMS says how many storms there are, one by default. Cells are small and scored in a
moment, so that a storm is over in one minute.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICKLY, Glas, children, trials_at, until
from services import Postgres, Server

from glas_bench.record import RunRecord, load_run

STORMS = int(os.environ.get("GLAS_BENCH_STORMS", "1"))
CELLS = 12
LONG = 540.0

STUDY = """\
name: storm
question: Is anything lost?
version: 1
preset: smoke
set: {steps: 1, hidden: 8, samples: 5}
baseline: cauchy
variants: [cauchy, hellinger]
grid: {filter_size: [1, 2, 3], grid: [original, centred]}
seeds: 0
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds its processes in /proc"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, packed: Any) -> Path:
    """The results of the same study on sqlite, nothing amiss."""
    command = Glas(tmp_path_factory.mktemp("undisturbed"))
    (command.folder / "storm.yaml").write_text(STUDY)
    sweep = command.start("sweep", "storm.yaml", "--workers", 2, "--no-mirror", **QUICKLY)
    code, _, err = outcome(sweep)
    assert code == 0, err
    return command.results


def outcome(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LONG)
    return process.returncode, out, err


def complete(results: Path) -> int:
    return len(list(results.glob("runs/*/seed-0/eval/[0-9a-f]*.json")))


def numbers(record: RunRecord) -> tuple[Any, ...]:
    """Return all that a cell's only seed has, clocks left out."""
    seed = record.seeds[0]

    def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
        clocks = {"seconds", "seconds_by", "time", "images_per_second"}
        return {key: value for key, value in row.items() if key not in clocks}

    rows = [timeless(row) for row in seed.metrics]
    scores = {key: timeless(each) for key, each in seed.scores.items()}
    images = {key: np.asarray(values).tobytes() for key, values in seed.per_image().items()}
    return seed.status, rows, scores, images


class Weather:
    """What happens to a sweep, in an order and at moments drawn at random."""

    def __init__(self, seed: int, glas: Glas, postgres: Postgres, mlflow: Server) -> None:
        self.rng = random.Random(seed)
        self.glas, self.postgres, self.mlflow = glas, postgres, mlflow
        self.log: list[str] = []
        self.began = time.monotonic()

    def events(self) -> list[tuple[int, str]]:
        """Return what happens, each once so many cells are complete."""
        kinds = ("kill", "kill", "restart", "restart", "mlflow down")
        return sorted((self.rng.randrange(0, CELLS // 2), kind) for kind in kinds)

    def happen(self, kind: str, sweep: Any) -> None:
        time.sleep(self.rng.random())
        if kind == "kill":
            os.kill(self.rng.choice(workers_of(sweep)), signal.SIGKILL)
        elif kind == "restart":
            self.postgres.stop()
            time.sleep(self.rng.uniform(0, 3))
            self.postgres.start()
        else:
            self.mlflow.stop()
        at = time.monotonic() - self.began
        self.log.append(f"{at:.1f} s: {kind} at {complete(self.glas.results)} complete")


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def workers_of(sweep: Any) -> list[int]:
    return [pid for pid in children(sweep.pid) if b"sweep.worker" in command_of(pid)]


@pytest.mark.parametrize("storm", range(STORMS))
def test_nothing_is_lost_and_nothing_done_twice(
    storm: int, glas: Glas, undisturbed: Path, postgres: Postgres, mlflow_server: Server
) -> None:
    from mlflow import MlflowClient

    if mlflow_server.process is None:
        mlflow_server.start()
    seed = random.SystemRandom().randrange(10**6)
    print(f"storm {storm}: seed {seed}")  # pytest shows it where the storm fails
    weather = Weather(seed, glas, postgres, mlflow_server)
    url = postgres.fresh()
    (glas.folder / "storm.yaml").write_text(STUDY)
    environment: dict[str, object] = {
        "OPTUNA_STORAGE": url,
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "NO_PROXY": "127.0.0.1",
        "GLAS_BENCH_CHECKPOINT_SECONDS": 0.1,
        **QUICKLY,
    }
    sweep = glas.start("sweep", "storm.yaml", "--workers", 4, **environment)
    until(lambda: len(workers_of(sweep)) == 4, sweep, every=0.05)
    for after, kind in weather.events():
        until(lambda after=after: complete(glas.results) >= after, sweep, LONG, every=0.05)
        assert sweep.poll() is None, weather.log
        weather.happen(kind, sweep)
        cells_of = [command_of(pid) for pid in children(sweep.pid)]
        assert not any(Postgres.PASSWORD.encode() in each for each in cells_of)
    back = weather.rng.random() < 0.5  # else it comes back when the sweep is over
    if back:
        mlflow_server.start()
    code, out, err = outcome(sweep)
    if not back:
        mlflow_server.start()
    took = time.monotonic() - weather.began
    assert code in ((0, 3) if back else (3,)), (weather.log, err)
    assert Postgres.PASSWORD not in out + err

    # Optuna: every cell complete, exactly once
    trials = trials_at(url, "storm")
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    by_cell = Counter(trial.user_attrs["cell"] for trial in trials)
    assert (len(by_cell), set(by_cell.values())) == (CELLS, {1})
    lost = sum(trial.system_attrs.get("glas_bench:lost", 0) for trial in trials)

    # run folders: the numbers of an undisturbed sweep, to the bit
    calm, stormy = (
        {path.name: load_run(path) for path in (results / "runs").iterdir()}
        for results in (undisturbed, glas.results)
    )
    assert set(calm) == set(stormy)
    for name, record in calm.items():
        assert numbers(stormy[name]) == numbers(record), name
        assert [row["epoch"] for row in stormy[name].seeds[0].metrics] == [1, 2]

    # MLflow, after sync
    code_of_sync, _, err = outcome(glas.start("sync", **environment))
    assert code_of_sync == 0, err
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    experiment = client.get_experiment_by_name("storm")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = Counter(run.data.tags["glas_bench.kind"] for run in runs)
    assert kinds == {"cell": CELLS, "seed": CELLS}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:  # the next storm is mirrored into the same experiment
        client.delete_run(run.info.run_id)

    print(
        f"storm {storm} (seed {seed}): {len(trials)} trials, {len(by_cell)} cells complete once, "
        f"{len(stormy)} run folders equal to the bit, {dict(kinds)} MLflow runs, "
        f"{lost} cells taken over; {took:.1f} s, exit {code}; {'; '.join(weather.log)}"
    )
