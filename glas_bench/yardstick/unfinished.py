"""What a stopped scoring goes on from: per-image values by stage, and fitted recognisers."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glas_bench.record import read_checkpoint, write_atomically, write_checkpoint

PerImage = dict[str, np.ndarray]
"""Values by name, [images] each."""


class Unfinished:
    """Half-done work of one scoring protocol.

    Args:
        folder: where it is kept; None keeps nothing.
        key: the protocol's; what another protocol left is not taken up.
        every: seconds between writes; the end of a stage is always written.
    """

    def __init__(self, folder: Path | None = None, key: str = "", every: float = 30) -> None:
        self.folder = folder
        self.key = key
        self.every = every
        self._written = time.monotonic()

    # ---- values of the images done so far

    def values(self, stage: str) -> PerImage:
        """Return what a stage has found so far, or nothing."""
        if self.folder is None:
            return {}
        try:
            with open(self._path(stage), "rb") as file, np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return {}

    def keep(self, stage: str, chunks: Sequence[PerImage], *, done: bool) -> None:
        """Keep what a stage has found so far, if it is done or it is time to."""
        if self.folder is not None and self._due(done):
            values = joined(chunks)
            write_atomically(self._path(stage), lambda file: np.savez(file, **values))  # type: ignore[arg-type]

    # ---- states

    def state(self, name: str, device: Any = "cpu") -> dict[str, Any] | None:
        """Return a state that was kept under this name, or None."""
        if self.folder is None:
            return None
        return read_checkpoint(self.folder / f"{name}.pt", device)

    def keep_state(self, name: str, state: Mapping[str, Any], *, done: bool) -> None:
        """Keep a state, if it is done or it is time to. It outlives the protocol's end."""
        if self.folder is not None and self._due(done):
            write_checkpoint(self.folder / f"{name}.pt", state)

    def due(self) -> bool:
        """Tell whether it is time to keep something."""
        return self.folder is not None and time.monotonic() - self._written >= self.every

    def remove(self) -> None:
        """Remove what the protocol's stages kept, once its scores are stored."""
        if self.folder is not None:
            for path in self.folder.glob(f"{self.key}.*.partial.npz"):
                path.unlink(missing_ok=True)

    def _path(self, stage: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.key}.{stage}.partial.npz"

    def _due(self, done: bool) -> bool:
        if done or self.due():
            self._written = time.monotonic()
            return True
        return False


def joined(chunks: Sequence[PerImage]) -> PerImage:
    """Join the values of consecutive chunks of images."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
