"""Where a study's database is: sqlite on one machine, PostgreSQL from many."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from glas_bench.errors import UsageError
from glas_bench.text import redact
from glas_bench.tracking.address import same_database, sqlite_file, sqlite_url, tracking_uri

VARIABLE = "OPTUNA_STORAGE"

NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs",
    "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "afs", "orangefs", "pvfs2", "fuse.s3fs", "ncpfs",
}  # fmt: skip
"""File systems whose locks sqlite cannot rely on (sqlite.org/faq.html, question 5)."""

POSTGRES = ("postgresql", "postgres")


def storage_url(given: str | None, results: Path) -> str:
    """Return the database's address: `--storage`, else OPTUNA_STORAGE, else sqlite in the results.

    Raises:
        UsageError: it is neither sqlite nor PostgreSQL, it is sqlite on a network file system, it
            is MLflow's, or `--storage` holds a password.
    """
    refuse_password(given)
    text = given or os.environ.get(VARIABLE) or sqlite_url(results.resolve() / "optuna.db")
    scheme, separator, rest = text.partition("://")
    base, _, driver = scheme.partition("+")
    if not separator or base not in ("sqlite", *POSTGRES) or not rest.strip("/"):
        raise UsageError(
            f"--storage {redact(text)}: write postgresql://user@host/database (a password in "
            f"{VARIABLE}, PGPASSWORD or ~/.pgpass) or sqlite:///path/optuna.db"
        )
    if same_database(text, tracking_uri(results)):
        raise UsageError(
            f"--storage {redact(text)} is MLflow's database (MLFLOW_TRACKING_URI); "
            "give Optuna one of its own"
        )
    if base in POSTGRES:
        return f"postgresql+{driver or 'psycopg'}://{rest}"
    path = sqlite_file(text)
    if path is None:
        raise UsageError(f"--storage {text}: a study needs a file, e.g. sqlite:///optuna.db")
    kind = file_system(path.resolve())
    if kind in NETWORK:
        raise UsageError(
            f"--storage {text}: {path.resolve().parent} is on a network file system ({kind}), "
            "where sqlite's locks do not hold and the database breaks sooner or later. Give a "
            "path on a local disk, or share a PostgreSQL database: "
            "--storage postgresql://user@host/database"
        )
    return sqlite_url(path.resolve())


def file_system(path: Path) -> str | None:
    """Return the type of the file system that an absolute path lies on, or None if unknown."""
    import psutil

    deepest, kind = 0, None
    for each in psutil.disk_partitions(all=True):  # of two at one mount point the later one is seen
        depth = len(Path(each.mountpoint).parts)
        if depth >= deepest and path.is_relative_to(each.mountpoint):
            deepest, kind = depth, each.fstype
    return kind


def refuse_password(given: str | None) -> None:
    """Refuse `--storage` with a password.

    Raises:
        UsageError: with what to do.
    """
    try:
        parts = urlsplit(given or "")
    except ValueError as error:
        raise UsageError(
            f"--storage {redact(given or '')}: {error}; in a password write [ ] / : @ and the like "
            f"as %5B, %5D, %2F, %3A, %40, and give it in {VARIABLE}, PGPASSWORD or ~/.pgpass"
        ) from error
    if parts.password or "password=" in parts.query:
        raise UsageError(
            f"--storage {redact(given or '')}: every user of the machine can read a password on "
            f"the command line. Give the whole address in {VARIABLE}, or the password in "
            "PGPASSWORD or ~/.pgpass."
        )
