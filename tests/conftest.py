"""What the tests share: a cache of their own, and the command as a user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from services import Postgres

# Tensors of the tests are small and other processes train beside them: threads would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler"
)

LONG = 120.0
"""Seconds after which a command, or what is awaited of one, counts as lost."""


LONGEST = ("sweep", "report", "storm", "docs", "run", "damage", "stacked_seeds", "tracking")
"""Files that take minutes, which begin first: in the end no core waits for one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; skip what needs a GPU where there is none."""
    import torch

    first = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests a cache of their own and none of the user's settings."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in list(os.environ):
            if name.startswith(("GLAS_BENCH_", "MLFLOW_", "OPTUNA_")):
                monkeypatch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _alike_in_any_order() -> None:
    """Undo what earlier tests left in torch: its generator, denormals set to zero, its threads."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
        sys.modules["torch"].set_flush_denormal(False)
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def real_valued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models of real-valued x, whose likelihoods are known exactly, be scored."""
    from glas_bench import contract

    for name in ("likelihood_problem", "ratio_problem", "charge_problem", "draw_problem"):
        monkeypatch.setattr(contract, name, lambda *_: None)


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 torch's default type."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def packed(_away_from_the_user: None) -> Any:
    """mnist-5k, parsed into the cache once; commands started later read it in milliseconds."""
    from glas_bench import data

    return data.load("mnist-5k")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests; each takes a database of its own, and leaves it running."""
    server = Postgres()
    yield server
    server.remove()


_PATHS = str(Path(__file__).parent / "quick"), os.environ.get("PYTHONPATH")
QUICKLY = {"PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}
"""Environment of a sweep that scores in a moment, in all its processes."""


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout: anything else there is an error."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def seeds(self) -> dict[int, dict[str, Any]]:
        """The rows of the JSON document by seed."""
        return {row["seed"]: row for row in self.json["seeds"]}


class Glas:
    """The command, with a results folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: object, **about: Any) -> Ended:
        """Run `python -m glas_bench ...` to its end."""
        return self.ended(self.start(*arguments, **about))

    def start(
        self, *arguments: object, cwd: Path | None = None, **environment: object
    ) -> subprocess.Popen[str]:
        """Start `python -m glas_bench ...`; it is killed when the test ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "glas_bench", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.folder,
            env={**self._environment(), **{k: str(v) for k, v in environment.items()}},
        )
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a started command."""
        out, err = process.communicate(timeout=LONG)
        return Ended(process.returncode, out, err)

    def here(self, *arguments: object) -> Ended:
        """Run the command line inside this process, where torch is imported already."""
        import torch

        from glas_bench import cli

        out, err = io.StringIO(), io.StringIO()
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sys, "argv", ["glas-bench", *map(str, arguments)])
            for name, value in self._environment().items():
                monkeypatch.setenv(name, value)
            try:
                with (
                    contextlib.redirect_stdout(out),
                    contextlib.redirect_stderr(err),
                    pytest.raises(SystemExit) as caught,
                ):
                    cli.run_command_line()
            finally:
                torch.set_num_threads(threads)
                torch.set_flush_denormal(False)
        return Ended(int(caught.value.code or 0), out.getvalue(), err.getvalue())

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "GLAS_BENCH_RESULTS": str(self.results)}

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def bare_glas(tmp_path: Path) -> Iterator[Glas]:
    """The command where no data is wanted."""
    command = Glas(tmp_path)
    yield command
    command.close()


@pytest.fixture
def glas(bare_glas: Glas, packed: Any) -> Glas:
    """The command with data at hand."""
    return bare_glas


def until(
    condition: Callable[[], Any],
    process: subprocess.Popen[str] | None = None,
    seconds: float = LONG,
    every: float = 0.005,
) -> Any:
    """Wait until a condition holds and return it; the process must not end before.

    Looking takes processor time from what is looked at: `every` says how many seconds lie between.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        if ended:
            assert process is not None
            pytest.fail(f"it ended with {process.returncode}: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain")
        time.sleep(every)


def trials_at(url: str, study: str) -> list[Any]:
    """Return a study's trials as anyone with optuna reads them."""
    import optuna

    storage = optuna.storages.RDBStorage(url)
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()


def children(pid: int, command: str = "") -> list[int]:
    """Return the processes that a process has started and that run, those of a command line."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if alive(child.pid) and command in " ".join(child.cmdline()):
                found.append(child.pid)
    return sorted(found)


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def answers(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Tell whether a process has taken over a signal."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an epoch, or scores, without what it took to make them."""
    clocks = {"seconds", "seconds_by", "time", "images_per_second"}
    return {name: value for name, value in row.items() if name not in clocks}


def sets(**values: object) -> Sequence[str]:
    """Return `--set key=value` for each."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
