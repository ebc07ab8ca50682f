"""A user's own images, of any size: an ``.npz``, an ``.npy`` or a folder of PNGs.

They come in splits of their own, or a seeded draw splits them. Grey images are the chances of ink,
as everywhere; binary ones are themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glas_bench.data.parse import SPLIT_SEED, SPLITS, Arrays, freeze
from glas_bench.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 50
"""Images in all, so that each split has some."""

WANTED = (
    "Give an .npz with the arrays train, validation and test, an .npz or .npy with one array, or a "
    "folder of PNGs (or of the folders train, validation and test)"
)


def read(path: Path) -> Arrays:
    """Read images [N, height, width] and split them, 8 : 1 : 1 where they come in one piece.

    Whole numbers are 0 and 1, or 0 to 255; other numbers lie in [0, 1].

    Returns:
        ``shape`` [2] int64, ``<split>.grey`` [N, P] uint8 in 255ths or float32 in [0, 1],
        ``<split>.bits`` [N, ceil(P / 8)] uint8, the frozen binarisation.

    Raises:
        DataError: nothing of that form is there, or a value or shape cannot be used.
    """
    parts = _folder(path) if path.is_dir() else _arrays(path)
    known = {name: _grey(array, f"{path}: {name}") for name, array in parts.items()}
    shapes = {name: array.shape[1:] for name, array in known.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{path}: its splits have images of different sizes: {shapes}.")
    if len(known) == 1:
        (whole,) = known.values()
        if len(whole) < LEAST:
            raise DataError(f"{path}: {len(whole)} images are too few; at least {LEAST}.")
        order = np.random.RandomState(SPLIT_SEED).permutation(len(whole))
        tenth = len(whole) // 10
        rows = np.split(order, [len(whole) - 2 * tenth, len(whole) - tenth])
        known = {split: whole[part] for split, part in zip(SPLITS, rows, strict=True)}
    arrays: Arrays = {"shape": np.array(next(iter(shapes.values())), np.int64)}
    for split in SPLITS:
        grey = known[split].reshape(len(known[split]), -1)
        if not len(grey):
            raise DataError(f"{path}: {split} is empty.")
        arrays[f"{split}.grey"] = grey
        chances = grey / np.float32(255) if grey.dtype == np.uint8 else grey
        arrays[f"{split}.bits"] = freeze(chances.astype(np.float32), split)
    if all((known[split] == known[split].flat[0]).all() for split in SPLITS):
        raise DataError(f"{path}: its images are blank: all pixels have one value. Check the file.")
    return arrays


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file: one, or those of the splits."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return {"images": loaded}
        with loaded:
            found = dict(loaded)
    except Exception as error:  # numpy and zipfile raise many kinds on a broken file
        raise DataError(f"{path} cannot be read as {path.suffix}: {error}.") from error
    if len(found) == 1:
        return found
    if missing := [split for split in SPLITS if split not in found]:
        raise DataError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}, without {', '.join(missing)}. "
            f"{WANTED}."
        )
    return {split: found[split] for split in SPLITS}


def _folder(path: Path) -> dict[str, NDArray[Any]]:
    """Return the PNGs of a folder, or of its folders train, validation and test."""
    there = [split for split in SPLITS if (path / split).is_dir()]
    if there and len(there) < len(SPLITS):
        missing = ", ".join(split for split in SPLITS if split not in there)
        raise DataError(f"{path} has {', '.join(there)} without {missing}. {WANTED}.")
    return {name: _pictures(path / name) for name in there} or {"images": _pictures(path)}


def pictures_in(path: Path) -> list[Path]:
    """Return the PNGs of a folder and of its folders, sorted by name."""
    return sorted(each for each in path.rglob("*") if each.suffix.lower() == ".png")


def _pictures(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    images: list[NDArray[np.uint8]] = []
    for each in sorted(each for each in path.iterdir() if each.suffix.lower() == ".png"):
        try:
            with Image.open(each) as picture:
                wrong = _wrong(picture)
                images.append(np.asarray(picture.convert("L")))
        except Exception as error:  # Pillow raises many kinds on a broken file
            raise DataError(
                f"{each} cannot be read as an image: {error}. Replace it, or remove it."
            ) from error
        if wrong:
            raise DataError(f"{each} {wrong}.")
        if images[-1].shape != images[0].shape:
            sizes = [" x ".join(map(str, image.shape)) for image in (images[-1], images[0])]
            raise DataError(f"{each} is {sizes[0]}, the first one {sizes[1]}; give one size.")
    if not images:
        raise DataError(f"{path} holds no PNG. {WANTED}.")
    return np.stack(images)


def _wrong(picture: Image) -> str:
    """Return why 8 bits of grey are not all of a picture, with the cure; nothing where they are."""
    if picture.mode.startswith(("I", "F")):
        return "has 16 bits a pixel; expected 8, values from 0 to 255: rescale it"
    if np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        return "has transparent pixels; expected opaque ones: lay it on a background of one colour"
    return ""


def _grey(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return images [N, height, width]: uint8 in 255ths, or float32 in [0, 1]."""
    if array.ndim == 4 and 1 in (array.shape[1], array.shape[-1]):  # one channel
        array = array.squeeze(1 if array.shape[1] == 1 else -1)
    if array.ndim != 3:
        raise DataError(f"{where} has shape {list(array.shape)}; expected [N, height, width].")
    if not array.size:
        raise DataError(f"{where} is empty.")
    if array.dtype == bool:
        return array.astype(np.float32)
    if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array)):
        raise DataError(f"{where} holds {array.dtype}; expected numbers.")
    low, high = float(array.min()), float(array.max())
    most = 1 if (array % 1).any() else 255
    if not (low >= 0 and high <= most):  # nan too
        raise DataError(
            f"{where} has values from {low:g} to {high:g}; expected 0 to {most}: rescale them."
        )
    if most == 255 and high > 1:
        return array.astype(np.uint8)
    return array.astype(np.float32)
