"""Where a study's database is: sqlite on one machine, PostgreSQL from many."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from glas_bench.errors import UsageError
from glas_bench.tracking.address import redact, sqlite_file

VARIABLE = "OPTUNA_STORAGE"

NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs",
    "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "afs", "orangefs", "pvfs2", "fuse.s3fs", "ncpfs",
}  # fmt: skip
"""File systems whose locks sqlite cannot rely on (sqlite.org/faq.html, question 5)."""

DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def storage_url(given: str | None, results: Path) -> str:
    """Return the database's address: `--storage`, else OPTUNA_STORAGE, else sqlite in the results.

    Raises:
        UsageError: it is neither sqlite nor PostgreSQL, or sqlite on a network file system.
    """
    text = given or os.environ.get(VARIABLE) or f"sqlite:///{results.resolve() / 'optuna.db'}"
    scheme, separator, rest = text.partition("://")
    base, _, driver = scheme.partition("+")
    if not separator or base not in ("sqlite", *DRIVERS) or not rest.strip("/"):
        raise UsageError(
            f"--storage {redact(text)}: write postgresql://user@host/database (a password in "
            f"{VARIABLE}, PGPASSWORD or ~/.pgpass) or sqlite:///path/optuna.db"
        )
    if base in DRIVERS:
        return f"{scheme if driver else DRIVERS[base]}://{rest}"
    path = sqlite_file(text)
    if path is None:
        raise UsageError(f"--storage {text}: a study wants a file, e.g. sqlite:///optuna.db")
    kind = file_system(path.resolve())
    if kind in NETWORK:
        raise UsageError(
            f"--storage {text}: {path.resolve().parent} is on a network file system ({kind}), "
            "where sqlite's locks do not hold and the database breaks sooner or later. Give a "
            "path on a local disk, or share a PostgreSQL database: "
            "--storage postgresql://user@host/database"
        )
    return f"sqlite:///{path.resolve()}"


def file_system(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the file system that a path lies on, or None where that is not told.

    Args:
        path: absolute.
        mounts: in the form of /proc/self/mountinfo, which it is unless given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    best, kind = -1, None
    for line in mounts.splitlines():
        about, _, source = line.partition(" - ")
        fields = about.split()
        if len(fields) < 5 or not source:
            continue
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(point) and len(Path(point).parts) >= best:
            best, kind = len(Path(point).parts), source.split()[0]
    return kind


def has_password(url: str) -> bool:
    """Tell whether an address carries a password.

    Raises:
        UsageError: it is no address.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(
            f"--storage {redact(url)}: {error}; in a password write [ ] / : @ and the like as %5B, "
            f"%5D, %2F, %3A, %40, or give it in PGPASSWORD or ~/.pgpass"
        ) from error
    return bool(parts.password) or "password=" in parts.query


def without_storage(arguments: list[str], url: str) -> list[str] | None:
    """Return a command line without its `--storage URL`, or None where it is not in there."""
    if f"--storage={url}" in arguments:
        return [each for each in arguments if each != f"--storage={url}"]
    for index, each in enumerate(arguments[:-1]):
        if each == "--storage" and arguments[index + 1] == url:
            return [*arguments[:index], *arguments[index + 2 :]]
    return None
