"""Files that appear whole or not at all: JSON documents, and checkpoints of tensors.

A file is written under another name, flushed to the disk and renamed; its permissions are those
that the umask leaves. Each carries a digest of what it holds and of the seed and cell that it
belongs to; one without, of an older version, is read as it is. Checkpoints hold tensors and plain
values, and are loaded with `weights_only=True`, so that loading runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from glas_bench.errors import NewerRecord, RunError

SCHEMA = 1
"""Version of the files of a run folder."""


@contextlib.contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Raise an OSError as the RunError `cannot <doing>: <reason>`."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {doing}: {error.strerror or error}") from error


def created(path: Path) -> int:
    """Create an empty file where there is none; return its permissions, of a new one the umask's.

    sqlite and filelock create files that a group cannot write, whatever the umask.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` on a new file, which replaces `path` when it is whole on the disk.

    Raises:
        RunError: the folder cannot be written or the disk is full; nothing half-written remains.
    """
    with os_errors(f"write {path}"), contextlib.ExitStack() as cleanup:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        cleanup.callback(temporary.unlink, missing_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        cleanup.callback(os.close, folder)
        os.fsync(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def signed(value: Mapping[str, Any], *of: Any) -> dict[str, Any]:
    """Return a document as JSON holds it, with the digest of it and of what it belongs to.

    Raises:
        ValueError: a number is not finite.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, "digest": _sha(plain, of)}


def checked(path: Path, value: dict[str, Any], *of: Any) -> dict[str, Any]:
    """Return a document that was read, without its digest; arguments as of `signed`.

    Raises:
        RunError: it is not as it was written.
        NewerRecord: a newer version wrote it.
    """
    schema = value.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerRecord(f"{path} was written by a newer glas-bench; update this one")
    right = value.pop("digest", None)
    if right not in (None, _sha(value, of)):
        raise RunError(f"cannot read {path}: damaged, edited or of another place (digest differs)")
    return value


def _sha(value: Any, of: tuple[Any, ...]) -> str:
    text = json.dumps([value, *of], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Mapping[str, Any], *of: Any) -> None:
    """Write a JSON document atomically, `signed`."""
    write_text(path, json.dumps(signed(value, *of), indent=1) + "\n")


def read_json(path: Path, *of: Any) -> dict[str, Any]:
    """Read a JSON object, and return it `checked`.

    Raises:
        RunError: the file is missing, is not a JSON object, or not as it was written.
        NewerRecord: a newer version wrote it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"cannot read {path}: it holds no JSON object")
    return checked(path, value, *of)


def digest(state: Any) -> str:
    """Return the SHA-256 of nested containers of tensors and plain values."""
    import torch

    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            sha.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, part in value.items():
                sha.update(repr(key).encode())
                add(part)
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


def write_checkpoint(path: Path, state: Mapping[str, Any], *of: Any) -> None:
    """Write a state of tensors and plain values atomically, with its digest and what it is of."""
    import torch

    payload = {"schema": SCHEMA, "of": [*of], "digest": digest(state), "state": dict(state)}
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_checkpoint(path: Path, device: Any = "cpu", *of: Any) -> dict[str, Any] | None:
    """Return a checkpoint's state, or None where it is missing, broken or of something else.

    Raises:
        RunError: the disk fails, or there is not enough memory.
        NewerRecord: a newer version wrote it.
    """
    import torch

    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(_not_now(path, error.strerror or str(error))) from error
    try:
        payload = torch.load(content, map_location="cpu", weights_only=True)
        if payload["schema"] > SCHEMA and not zipfile.ZipFile(content).testzip():
            raise NewerRecord(f"{path} was written by a newer glas-bench; update this one")
        state = payload["state"]
        own = not of or payload.get("of", [*of]) == [*of]  # older ones do not say
        sound = own and payload["digest"] == digest(state)
    except NewerRecord:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunError(_not_now(path, "no memory")) from error
    except Exception:  # a damaged file may raise anything
        return None
    try:
        return _moved(dict(state), device) if sound else None
    except torch.OutOfMemoryError as error:
        raise RunError(_not_now(path, f"no memory on {device}")) from error


def _not_now(path: Path, why: str) -> str:
    return f"cannot read {path}: {why}. Nothing was started over; give the command again."


def _moved(state: Any, device: Any) -> Any:
    import torch

    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, device) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_moved(value, device) for value in state)
    return state


class Partial:
    """Half-done work of one scoring protocol, kept beside its scores until they are stored.

    Args:
        folder: where states are kept; with None, nothing is kept.
        key: of the protocol.
        every: seconds between writes.
    """

    def __init__(self, folder: Path | None = None, key: str = "", every: float = 30) -> None:
        self.folder = folder
        self.key = key
        self.every = every
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to keep something."""
        return self.folder is not None and time.monotonic() - self._written >= self.every

    def load(self, name: str, device: Any = "cpu", *, shared: bool = False) -> dict[str, Any]:
        """Return the state kept under a name; empty if there is none, or no sound one."""
        path = self._path(name, shared)
        return (path and read_checkpoint(path, device)) or {}

    def keep(self, name: str, state: Mapping[str, Any], *, shared: bool = False) -> None:
        """Replace the state kept under a name; a shared one, for every protocol, is not removed."""
        if path := self._path(name, shared):
            write_checkpoint(path, state)
            self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the protocol's own states, in the format of older versions too."""
        if self.folder is not None:
            for path in self.folder.glob(f"{self.key}.*partial.*"):
                path.unlink(missing_ok=True)

    def _path(self, name: str, shared: bool) -> Path | None:
        return self.folder and self.folder / (
            f"{name}.pt" if shared else f"{self.key}.{name}.partial.pt"
        )
