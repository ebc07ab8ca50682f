"""Where the MLflow store is, and its locks.

Needs neither mlflow nor the network, so that `doctor`, sweeps and a bare node can use it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from glas_bench.errors import GlasBenchError, RunError
from glas_bench.record import created, os_errors
from glas_bench.text import redact

EXPERIMENT = "glas-bench"

LOCK_SECONDS = 60.0
"""How long to wait for another process that writes the same sqlite file or run folder."""

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(results: Path) -> str:
    """Return the address of the store; it may hold a password."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(results.resolve() / "mlflow.db")


def experiment_name(experiment: str | None = None) -> str:
    """Return the experiment of a study, or by default that of the environment, or ours."""
    return experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def error_line(error: BaseException) -> str:
    """Return an error of mlflow or SQLAlchemy as one line without passwords."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: `pip install {error.name}`, then `glas-bench sync`"
    text = " ".join(str(error).split()).partition(" [SQL:")[0] or "no message"
    if "Can't locate revision" in text:
        return (
            "the database's tables are of another program or a newer MLflow; give MLflow a "
            "database of its own (MLFLOW_TRACKING_URI), or update it, then `glas-bench sync`"
        )
    if "database is locked" in text:
        return "another program keeps the database locked"
    if request := re.match(r"API request to (\w+://[^/\s]+)\S* failed with exception", text):
        how = "in time" if "Timeout" in text or "timed out" in text else "(no connection)"
        if status := re.search(r"too many (\d{3}) error responses", text):
            return redact(f"the MLflow server at {request[1]} answers with HTTP {status[1]}")
        if "redirects" in text.lower():
            return redact(f"the MLflow server at {request[1]} redirects without end")
        return redact(f"no MLflow server answers at {request[1]} {how}")
    return redact(text if isinstance(error, GlasBenchError) else f"{type(error).__name__}: {text}")


def sqlite_url(file: Path) -> str:
    """Return the address of an sqlite file, quoted as SQLAlchemy's URL is (2.1 and later).

    Where that changes it, the driver is named: mlflow creates the folder of an `sqlite:///` address
    without reading it.
    """
    quoted = quote(str(file), safe=" +/")
    return f"sqlite{'' if quoted == str(file) else '+pysqlite'}:///{quoted}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an sqlite address, relative or absolute; None for other addresses."""
    scheme, _, rest = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not rest or rest.startswith(":memory:"):
        return None
    return Path(unquote(rest.partition("?")[0]))


def same_database(one: str, other: str) -> bool:
    """Return whether two addresses are of the same sqlite file, or of one database of a server."""
    files = [sqlite_file(each) for each in (one, other)]
    if None not in files:
        return len({file.resolve() for file in files if file}) == 1
    try:
        parts = [urlsplit(each) for each in (one, other)]
        places = {(each.hostname, each.port or 5432, each.path) for each in parts}
    except ValueError:  # opening it reports what is wrong
        return False
    return all(each.scheme.startswith("postgres") for each in parts) and len(places) == 1


def check_program(uri: str, tables: Collection[str], program: str) -> None:
    """Refuse a database whose tables are another program's: opening it would add to them.

    Raises:
        RunError: with what to do.
    """
    known = {"Optuna": {"studies", "trials", "version_info"}, "MLflow": {"experiments", "runs"}}
    there = [name for name, own in known.items() if own <= {*tables}]
    if program not in there and (there or "alembic_version" in tables):
        whose = there[0] if there else "another program"
        raise RunError(
            f"{redact(uri)} is a database of {whose}; give {program} one of its own "
            f"({'--storage' if program == 'Optuna' else 'MLFLOW_TRACKING_URI'})"
        )


def check_port(uri: str) -> None:
    """Connect to a database server's port: SQLAlchemy, through mlflow, would retry for minutes.

    Raises:
        RunError: nothing answers.
    """
    parts = urlsplit(uri)
    port = DATABASES.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()
    except OSError as error:
        raise RunError(
            f"no answer from {redact(uri)}: {error}. Start the server or correct "
            "MLFLOW_TRACKING_URI; `glas-bench sync` mirrors later"
        ) from error


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which is released when its holder ends, however it ends.

    Raises:
        RunError: another process holds it for too long, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        with os_errors(f"write {path}"):
            try:
                held.enter_context(FileLock(path, LOCK_SECONDS, created(path)))
            except Timeout:
                raise RunError(
                    f"another process has been writing {what} for {LOCK_SECONDS:.0f} s ({path}); "
                    "when it has ended, run the command again"
                ) from None
        yield
