"""Whatever a user's machine does: odd paths, locales, warnings, a display, no home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Glas
from sqlalchemy import make_url

from glas_bench import environment
from glas_bench.data import cache, parse, sources
from glas_bench.errors import DataError
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


def test_a_users_images_that_are_inverted_lying_or_blank() -> None:
    """Of many alphabets, and as the case's file has them: 378 images, nearly all of one."""
    small = Path(__file__).parents[2] / "shared" / "data" / "chardata_small.mat"
    if not small.is_file():
        pytest.skip("no stand-in of Omniglot here")
    arrays = parse.omniglot(small.read_bytes(), small)
    for part in ("train", "validation", "test"):
        assert parse.doubts(arrays[f"{part}.grey"], arrays[f"{part}.labels"], small) == ""
    whole, alphabets = arrays["train.grey"], arrays["train.labels"]
    for rows in (np.arange(400), np.flatnonzero(alphabets == 0)):
        grey, labels = whole[rows], alphabets[rows]
        assert parse.doubts(grey, labels, small) == ""
        assert "inverted?" in parse.doubts(1 - grey, labels, small)
        square = grey.reshape(-1, 28, 28)
        for turned in (square.transpose(0, 2, 1), np.rot90(square, 1, (1, 2)), square[:, ::-1]):
            found = parse.doubts(turned.reshape(-1, 784), labels, small)
            assert "lying on their side?" in found
        for blank in (0 * grey, 0 * grey + 1):
            with pytest.raises(DataError, match=f"its {len(grey)} images are blank"):
                parse.doubts(blank, labels, small)
        grey = grey.copy()
        grey[:3], grey[3] = 0, 1 - grey[3]
        assert "3 blank and 1 inverted images" in parse.doubts(grey, labels, small)


def test_data_that_lies_elsewhere_than_asked_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLAS_BENCH_DATA", "/nope")
    cache.published("mnist-5k")
    assert "GLAS_BENCH_DATA is '/nope', which does not exist" in capsys.readouterr().err


def test_a_user_without_a_name_and_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert sources.cache_folder().name == "glas-bench-4000000"


FIGURE = """
from glas_bench.report import figures
def draw():
    figure, axes = figures.panels(3, 2, 2)
    axes[0].plot([1, 2, -3])
    return figure
import hashlib
print(hashlib.sha256(figures.Drawing("n", "t", "c", draw).picture()).hexdigest())
"""


def test_a_figure_has_the_same_bytes_under_a_users_matplotlibrc(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.size: 20\nsavefig.bbox: tight\nsavefig.facecolor: black\n"
    )
    command = [sys.executable, "-c", FIGURE]
    drawn = {subprocess.check_output(command, cwd=folder) for folder in (tmp_path, Path("/"))}
    assert len(drawn) == 1


def test_a_users_environment_does_not_reach_a_command(bare_glas: Glas) -> None:
    ended = bare_glas(
        "variants",
        "hellinger",
        PYTHONWARNINGS="error",
        PYTHONIOENCODING="ascii",
        PYTHONOPTIMIZE="2",
        MPLBACKEND="module://not_installed",
    )
    assert (ended.code, ended.err) == (0, "")
    assert "Hellinger" in ended.out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("{} variants >&-", 0, ""),
        ("{} variants nosuch >&- 2>&-", 2, ""),
        ("{} variants <&-", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; {} doctor", 2, "the current folder was removed"),
    ],
)
def test_streams_and_folders_that_are_gone(
    shell: str, code: int, words: str, tmp_path: Path
) -> None:
    command = shell.format(f"{sys.executable} -m glas_bench")
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "bug in glas-bench" not in ended.stderr


def test_a_tilde_in_quotes_and_a_path_that_is_no_utf_8(bare_glas: Glas) -> None:
    folder = bare_glas.folder
    quoted = bare_glas("sync", "--results", "~/some", HOME=folder / "home")
    assert "~" not in {path.name for path in folder.iterdir()}, quoted
    wrong = bare_glas("run", "--variant", "vae", "--results", "caf\udce9")
    assert wrong.code == 2
    assert "is no UTF-8" in wrong.err


def test_a_package_that_is_too_old_is_named(bare_glas: Glas) -> None:
    old = bare_glas.folder / "old"
    for file, text in {
        "optuna-3.9.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: optuna\nVersion: 3.9.0\n",
        "optuna/__init__.py": "",
    }.items():
        (old / file).parent.mkdir(parents=True)
        (old / file).write_text(text)
    swept = bare_glas("sweep", "smoke", "--no-mirror", PYTHONPATH=old)
    assert swept.code == 1
    assert "too old for glas-bench: pip install 'optuna>=" in swept.err
    assert "bug" not in swept.err
    assert "too old: pip install 'optuna>=" in bare_glas("doctor", PYTHONPATH=old).out
    assert not environment.outdated()


def test_an_installed_build_names_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.git_state()["commit"] is None
    (tmp_path / "COMMIT").write_text("0123abc\n")  # as setup.py writes it into a wheel
    built = {"commit": "0123abc", "dirty": None, "reason": "a build of it"}
    assert environment.git_state() == built
