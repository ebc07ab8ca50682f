"""Where the MLflow record is kept, how it is spoken of, and the manners of calling mlflow.

Needs neither mlflow nor the network, so `--help`, `doctor` and a bare node can use it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from glas_bench.errors import GlasBenchError, RunError

EXPERIMENT = "glas-bench"

LOCK_SECONDS = 60.0
"""How long to wait for another process that writes the same sqlite file or run folder."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set during our calls where the user set nothing: a dead server costs seconds, not 247 of them,
and nothing phones home."""

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(results: Path) -> str:
    """Return the address of the store, with whatever password it carries."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{results.resolve() / 'mlflow.db'}"


def experiment_name(experiment: str | None = None) -> str:
    """Return the experiment that runs belong to unless a study names another."""
    return experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def redact(text: str) -> str:
    """Return a text with the user and password of every address in it masked."""
    text = re.sub(r"(?<=://)[^\s'\"<>]*@", "***@", text)
    secret = r"([?&;][^=&\s]*(?:pass|pwd|token|secret|key|odbc_connect)[^=&\s]*=)[^&;\s'\"]+"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)


def explain(error: BaseException) -> str:
    """Return an error as one line without passwords."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: `pip install {error.name}`, then `glas-bench sync`"
    text = " ".join(str(error).split()).partition(" [SQL:")[0] or "no message"
    if found := re.match(r"API request to (\w+://[^/\s]+)\S* failed with exception", text):
        how = "in time" if "Timeout" in text or "timed out" in text else "(no connection)"
        return redact(f"no MLflow server answers at {found[1]} {how}")
    return redact(text if isinstance(error, GlasBenchError) else f"{type(error).__name__}: {text}")


class _Redacted(io.TextIOBase):
    """Passes text on with passwords masked, or swallows it."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            self.stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()


@contextlib.contextmanager
def manners(debug: bool = False) -> Iterator[None]:
    """Run mlflow with our time-outs and without its chatter, and leave no trace of that."""
    ours = [name for name in ENVIRONMENT if name not in os.environ]
    quiet = _Redacted(sys.stderr if debug else None)
    with contextlib.ExitStack() as stack:
        for name in ours:
            os.environ[name] = ENVIRONMENT[name]
            stack.callback(os.environ.pop, name, None)
        stack.enter_context(warnings.catch_warnings())
        if not debug:
            warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(quiet))
        stack.enter_context(contextlib.redirect_stderr(quiet))
        yield


# --------------------------------------------------------------------------- a store's file


_opened: dict[Path, tuple[tuple[int, int] | None, int]] = {}


def unseen(database: Path) -> str:
    """Return a path that leads to an sqlite file and not to mlflow's memory of a deleted one.

    mlflow keeps an open connection by address. When the file was deleted and made anew since, that
    connection still writes into the deleted one, so the path is spelt otherwise: `/./mlflow.db`.
    Call `seen` once the file has been opened.
    """
    inode, generation = _opened.get(database, (None, 0))
    if database in _opened and inode != _inode(database):
        generation += 1
    _opened[database] = (_inode(database), generation)
    return f"{database.parent}/{'./' * generation}{database.name}"


def seen(database: Path) -> None:
    """Note which file is open now."""
    _opened[database] = (_inode(database), _opened[database][1])


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an sqlite address, as it is written there."""
    scheme, _, rest = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not rest or rest.startswith(":memory:"):
        return None
    return Path(rest.partition("?")[0])


def knock(uri: str) -> None:
    """Try a database server's port: SQLAlchemy through mlflow would retry for minutes."""
    parts = urlsplit(uri)
    port = DATABASES.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()
    except OSError as error:
        raise RunError(f"no answer from {redact(uri)}: {error}") from error


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which is free when its holder has ended, however it ended.

    Raises:
        RunError: another process holds it for too long, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path, timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process has been writing {what} for {LOCK_SECONDS:.0f} s ({path})"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
