"""What `sync` does: mirror run folders to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glas_bench.commands import Answer
from glas_bench.record import load_run, runs_by_study
from glas_bench.text import count
from glas_bench.tracking.sync import sync


def carry_out(folders: Sequence[str], results: Path, log_model: bool = False) -> Answer:
    """Mirror these run folders, by default all; exit code 3 if one could not be mirrored.

    With `log_model` the models of complete seeds are logged too.

    A folder may also be the beginning of a run's name or key in `results`.

    Raises:
        UsageError: a folder is no run folder.
    """
    paths = [load_run(folder, results).path for folder in folders]
    done: set[str] = set()
    failures: list[tuple[str, str]] = []
    for experiment, some in runs_by_study(results, paths or None).items():
        report = sync(some, results, experiment=experiment, models=log_model)
        failures += report.failures
        done |= {str(each) for each in some} - {name for name, _ in report.failures}
    return Answer(
        f"{count(len(done), 'run folder')} mirrored",
        exit_code=3 if failures else 0,
        problems=[f"{name}: {message}" for name, message in failures],
    )
