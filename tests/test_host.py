"""Whatever a user's machine does: odd paths, locales, warnings, a display, no home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from glas_bench.sweep import storage
from glas_bench.sweep.database import Database
from glas_bench.tracking.address import sqlite_file, sqlite_url, tracking_uri
from glas_bench.tracking.mlflow_store import Store

ODD = ("x%2Fy", "what?", "ha#sh", "a b", "me@host:3", "ünï–字", "qu'o\"te", "50%", "a+b", "a&b=c;d")


@pytest.mark.parametrize("name", ODD)
def test_any_folder_name_works_in_an_address(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    url = storage.storage_url(None, folder)
    assert sqlite_file(url) == folder / "optuna.db"
    assert make_url(url).database == str(folder / "optuna.db")
    assert storage.storage_url(url, tmp_path) == url
    assert sqlite_file(tracking_uri(folder)) == folder / "mlflow.db"
    Database(url).close()
    assert {path.name for path in folder.iterdir()} >= {"optuna.db"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore:.*noload")  # in mlflow
def test_mlflow_keeps_its_database_in_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "x%2Fy what?#me@ü"
    Store(folder).use("some")
    assert (folder / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    Store(folder).use("some")
    assert make_url(sqlite_url(Path("a%b/c.db"))).database == "a%b/c.db"


def glas(
    *arguments: str, folder: Path, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, with these variables (None: unset)."""
    changed = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-m", "glas_bench", *arguments],
        cwd=folder,
        env={key: value for key, value in changed.items() if value is not None},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
