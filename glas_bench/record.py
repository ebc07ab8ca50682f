"""The run folder, which is the result: written atomically, locked, and read back.

    <results>/runs/<variant>-<config_key>/config.yaml  environment.json  lock  tracking.json
        /seed-0/status.json  metrics.jsonl  checkpoint-*.pt  per_image.npz  samples.png
               /environment.json (only where it differs from the cell's)
        /seed-0/eval/<protocol_key>.json

Every file appears whole or not at all: it is written under another name, flushed to the disk and
renamed. Only `metrics.jsonl` grows; a torn last line is ignored. Checkpoints hold tensors and plain
values, carry a digest, and are loaded with `weights_only=True`, so that loading runs no code.

Beside it: statuses and how they join, half-done scorings, and the notes of studies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Required, TypedDict, TypeGuard, cast

import yaml

from glas_bench.config import RunConfig
from glas_bench.errors import AlreadyRunning, RunError, UsageError, nearest

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
"""Version of the files of a run folder."""

STATUSES = (
    "waiting",
    "training",
    "scoring",
    "complete",
    "diverged",
    "failed",
    "interrupted",
    "not_applicable",
)
"""Statuses of a seed."""

FINISHED = frozenset({"complete", "diverged", "not_applicable"})
"""Statuses after which nothing is left to do."""

AFTER_TRAINING = ("scoring", "complete", "failed", "interrupted")
"""Statuses allowed after training."""

_PRECEDENCE = (
    *("not_applicable", "running", "training", "scoring", "waiting"),
    *("failed", "interrupted", "pruned", "diverged", "complete"),
)

KEPT_CHECKPOINTS = 2


# --------------------------------------------------------------------------- statuses


def join_statuses(statuses: Iterable[str]) -> str:
    """Return a cell's status from those of its seeds or trials; `waiting` where there are none.

    Work that goes on or is left comes before failures, failures before what is finished. Besides
    `STATUSES` a trial may be `running` or `pruned`.
    """
    return min(statuses, key=_PRECEDENCE.index, default="waiting")


def count_statuses(statuses: Sequence[str]) -> dict[str, int]:
    """Return how many seeds have each status, in the order of `STATUSES`."""
    return {each: statuses.count(each) for each in STATUSES if each in statuses}


# --------------------------------------------------------------------------- what the files hold


class Status(TypedDict, total=False):
    """`status.json`: how far a seed is."""

    schema: int
    status: Required[str]  # one of STATUSES
    reason: str  # why it failed or diverged
    step: int  # updates done; of a diverged seed, the one that was not finite
    epoch: int
    seconds: float  # of training
    images_per_second: float | None
    peak_memory_bytes: int
    parameters: int
    device: str
    updated: float  # Unix seconds


class Summary(TypedDict, total=False):
    """The scores that `run` reports: means over test images, nats per image unless stated.

    None, as in JSON, where there is no such number or none that is finite.
    """

    objective: float | None
    recon: float | None
    charge: float | None
    aux: float | None
    elbo: float | None
    elbo_status: str  # finite, infinite or undefined
    iw: float | None  # bound from `samples` weights by the variant's own q
    iw_status: str
    refit_iw: float | None  # the same by the recogniser that was fitted to the decoder
    refit_elbo: float | None
    nll: float | None  # the smaller of iw and refit_iw, chosen on validation images
    nll_from: str  # iw or refit_iw
    nll_bound_only: bool
    refit_last_gain: float | None  # of the fit's last tenth
    validation_nll: float | None
    objective_gap: float | None  # nll less the objective, where that bounds nothing
    failed: bool  # to reconstruct
    ais: float | None
    v_mean: float | None  # Var(log w), nats squared; mean over images
    v_over_10_share: float | None  # share of images, 0 to 1
    ess_mean: float | None  # effective sample size, weights
    refit_v_mean: float | None
    refit_v_over_10_share: float | None
    refit_ess_mean: float | None
    bound_only: bool  # whether v_over_10_share is above 5 %
    iw_sweep: dict[str, float | None]  # by number of weights
    images: int


class Scores(Summary, total=False):
    """`eval/<protocol_key>.json`; fields that other versions wrote are there too, untyped."""

    schema: int
    time: float  # when scoring ended, Unix seconds
    protocol: dict[str, Any]  # estimators, samples, images and the like
    split: str
    samples: int  # weights an image
    bounds_nll: bool | None
    bound_reason: str
    ess_median: float | None
    refit_ess_median: float | None
    refit_bound_only: bool
    refit_iw_status: str
    refit_iw_sweep: dict[str, float | None]
    refit_steps: int
    refit_total_steps: int
    refit_converged: bool
    validation_iw: float | None
    validation_refit_iw: float | None
    seconds: float  # of scoring
    seconds_by: dict[str, float]

    diagnosed_images: int
    diagnosed_draws: int  # of each image
    kl: float | None  # E KL(q || p), the sum over time steps
    kl_status: str
    kl_from: str  # closed form or draws
    kl_per_step: list[float | None]
    active_units: int  # pairs of time step and dimension
    active_units_of: int
    active_units_rule: str
    active_dimensions: int
    footprint_perplexity: float | None  # cells of the latent matrix
    footprint_perplexity_per_step: list[float | None]
    footprint_cells: int
    footprint_nowhere_share: float | None  # share of reads, 0 to 1
    permuted_elbo: float | None
    permuted_elbo_change: float | None
    failed_reason: str
    validation_recon: float | None
    validation_kl: float | None
    validation_bernoulli: float | None
    canvas_variance: list[float | None]  # of sigmoid(o_t) between samples, by time step

    ais_status: str  # accepted or refused
    ais_error: float | None
    change: float | None  # from N to 2N temperatures
    change_error: float | None
    gap: float | None  # between the two ways on simulated images
    gap_error: float | None
    paired: dict[str, dict[str, float | None]]  # AIS less each estimate on the same images


class Number(NamedTuple):
    """A final number of a seed."""

    name: str
    value: float
    time: float  # when it was written, Unix seconds
    weights: int | None = None  # of a sweep: by how many


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value of a JSON document is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold: the value, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


# --------------------------------------------------------------------------- writing


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` on a new file, which replaces `path` when it is whole on the disk.

    Raises:
        RunError: the folder cannot be written or the disk is full; nothing half-written remains.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON document atomically; numbers that are not finite raise ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"cannot read {path}: it holds no JSON object")
    return value


# --------------------------------------------------------------------------- a seed's folder


class SeedFolder:
    """The folder of one seed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed

    # ---- status

    def status(self) -> Status:
        """Return `status.json`; without one, the seed is waiting."""
        if not (self.path / "status.json").is_file():
            return {"status": "waiting"}
        return cast(Status, read_json(self.path / "status.json"))

    def set_status(self, status: str, **about: Any) -> None:
        """Write `status.json`: the status, and other fields of `Status`.

        A complete seed stays complete while it is scored again, however that ends, until it is
        trained again.
        """
        assert status in STATUSES, status
        if status in AFTER_TRAINING and self._is_complete():
            return
        value = {"schema": SCHEMA, "status": status, **about, "updated": time.time()}
        write_json(self.path / "status.json", value)

    def _is_complete(self) -> bool:
        try:
            return self.status().get("status") == "complete"
        except RunError:
            return False

    def finished(self, protocol: str) -> str | None:
        """Return `complete` or `diverged` where nothing is left to do, else None.

        With a broken `status.json` or score, the seed continues from its checkpoint.

        Args:
            protocol: key of the protocol to score by.
        """
        try:
            status = str(self.status()["status"])
            scored = status == "complete" and self.scores(protocol) is not None
        except (RunError, KeyError):
            return None
        return status if scored or status == "diverged" else None

    def remove_leftovers(self) -> None:
        """Remove files that killed processes left half-written. The caller holds the lock."""
        for folder in (self.path, self.path / "eval"):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    # ---- metrics

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row an epoch, without a torn last line."""
        try:
            text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            return [json.loads(line) for line in whole.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.path / 'metrics.jsonl'}: {error}") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add the row of a finished epoch."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path / 'metrics.jsonl'}: {error}") from error

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the rows of the first `epochs` epochs, those of a checkpoint."""
        rows = [row for row in self.metrics() if row["epoch"] <= epochs]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_atomically(self.path / "metrics.jsonl", lambda file: file.write(text.encode()))

    # ---- checkpoints

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        by_step = [
            (int(match[1]), path)
            for path in self.path.glob("checkpoint-*.pt")
            if (match := re.fullmatch(r"checkpoint-(\d+)\.pt", path.name))
        ]
        return [path for _, path in sorted(by_step, reverse=True)]

    def save_checkpoint(self, step: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint; remove those of later steps, and all but the newest `keep`.

        Training is behind a later step only if that checkpoint is broken.
        """
        path = self.path / f"checkpoint-{step:08d}.pt"
        write_checkpoint(path, state)
        there = self.checkpoints()
        kept = [each for each in there if each.name <= path.name][:keep]
        for other in there:
            if other not in kept:
                other.unlink(missing_ok=True)
        return path

    def load_checkpoint(self, device: Any = "cpu") -> dict[str, Any] | None:
        """Return the state of the newest checkpoint whose digest matches, or None.

        Raises:
            RunError: the disk or the memory fails; starting over would lose the checkpoints.
        """
        for path in self.checkpoints():
            if (state := read_checkpoint(path, device)) is not None:
                return state
        return None

    # ---- scores

    def scores(self, protocol: str) -> Scores | None:
        """Return the scores of a protocol, or None where it has not been scored."""
        path = self.path / "eval" / f"{protocol}.json"
        return cast(Scores, read_json(path)) if path.is_file() else None

    def all_scores(self) -> dict[str, Scores]:
        """Return the scores of every protocol by its key."""
        paths = sorted(self.path.glob("eval/*.json"))
        return {path.stem: cast(Scores, read_json(path)) for path in paths}

    def save_scores(
        self, protocol: str, scores: Mapping[str, Any], per_image: Mapping[str, np.ndarray]
    ) -> None:
        """Write per-image values and then, last of all, the scores."""
        import numpy as np

        kept = self.per_image()
        kept.update({f"{protocol}/{name}": values for name, values in per_image.items()})
        write_atomically(
            self.path / "per_image.npz",
            lambda file: np.savez_compressed(file, **kept),  # type: ignore[arg-type]
        )
        write_json(
            self.path / "eval" / f"{protocol}.json",
            {"schema": SCHEMA, "time": time.time(), **scores},
        )

    def per_image(self, protocol: str | None = None) -> dict[str, np.ndarray]:
        """Return per-image values, nats [images], by `<protocol>/<name>`; a protocol's by name."""
        import numpy as np

        path = self.path / "per_image.npz"
        if not path.is_file():
            return {}
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            values = {name: stored[name] for name in stored.files}
        if protocol is None:
            return values
        prefix = f"{protocol}/"
        return {
            name.removeprefix(prefix): value
            for name, value in values.items()
            if name.startswith(prefix)
        }


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
            for key in value:
                sha.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values atomically, with its digest."""
    import torch

    payload = {"schema": SCHEMA, "digest": digest(state), "state": dict(state)}
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any] | None:
    """Return a checkpoint's state, or None where it is missing or broken.

    Raises:
        RunError: the disk fails, or there is not enough memory.
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
        state = payload["state"]
        sound = payload["schema"] == SCHEMA and payload["digest"] == digest(state)
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
    """Return nested containers with their tensors on a device."""
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
        key: the protocol's key; states of another protocol are ignored.
        every: seconds between writes; `due` says when they have passed.
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
        if self.folder is None:
            return {}
        return read_checkpoint(self._path(self.folder, name, shared), device) or {}

    def keep(self, name: str, state: Mapping[str, Any], *, shared: bool = False) -> None:
        """Replace the state kept under a name.

        Args:
            name: of the work.
            state: tensors and plain values, nested.
            shared: whether every protocol uses the state; `remove` leaves it.
        """
        if self.folder is not None:
            write_checkpoint(self._path(self.folder, name, shared), state)
            self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the protocol's own states, in the format of older versions too."""
        if self.folder is not None:
            for path in self.folder.glob(f"{self.key}.*partial.*"):
                path.unlink(missing_ok=True)

    def _path(self, folder: Path, name: str, shared: bool) -> Path:
        return folder / (f"{name}.pt" if shared else f"{self.key}.{name}.partial.pt")


# --------------------------------------------------------------------------- a cell's folder


class RunFolder:
    """The folder of a cell, with a folder for each seed."""

    def __init__(self, results: Path, variant: str, key: str) -> None:
        self.path = results / "runs" / f"{variant}-{key}"
        self.key = key

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Return the run folder at any path."""
        folder = cls.__new__(cls)
        folder.path = path.resolve()
        folder.key = path.resolve().name.rpartition("-")[2]
        return folder

    def seed(self, seed: int) -> SeedFolder:
        """Return the folder of a seed."""
        return SeedFolder(self.path / f"seed-{seed}", seed)

    def prepare(self, config: RunConfig, about: Mapping[str, Any]) -> None:
        """Write `config.yaml`, with what `about` says of the cell, where it does not exist yet."""
        if not (self.path / "config.yaml").is_file():
            document = {"schema": SCHEMA, "config_key": self.key, **about}
            document["config"] = config.model_dump()
            text = yaml.safe_dump(document, sort_keys=False)
            write_atomically(self.path / "config.yaml", lambda file: file.write(text.encode()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder's lock; yield its file descriptor for child processes to inherit.

        The lock belongs to the open file: it is released when the last process with the descriptor
        ends, however it ends.

        Raises:
            AlreadyRunning: another process works in the folder.
            RunError: the lock file cannot be written or locked.
        """
        import fcntl

        path = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise AlreadyRunning(
                    f"already running: {holder or 'another process'} works in {self.path}. "
                    "Wait for it, or stop it; its work is kept."
                ) from error
            except OSError as error:  # a file system without locks, and the like
                raise RunError(f"cannot lock {path}: {error.strerror}") from error
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            except OSError as error:
                raise RunError(f"cannot write {path}: {error.strerror}") from error
            yield descriptor
        finally:
            os.close(descriptor)


# --------------------------------------------------------------------------- reading a run


@dataclass(frozen=True)
class SeedRecord:
    """One seed of a run, read back."""

    seed: int
    status: str
    about: Status
    metrics: list[dict[str, Any]]  # one row an epoch
    scores: dict[str, Scores]  # by protocol key
    environment: dict[str, Any]  # where it differs from the cell's; else empty
    folder: SeedFolder

    def per_image(self, protocol: str | None = None) -> dict[str, np.ndarray]:
        """Return per-image values, nats [images]."""
        return self.folder.per_image(protocol)

    @property
    def began(self) -> float:
        """When training began, Unix seconds."""
        if not self.metrics:
            return self.ended
        return float(self.metrics[0]["time"]) - (self.metrics[0].get("seconds") or 0.0)

    @property
    def ended(self) -> float:
        """When the last file was written, Unix seconds; scores of a complete seed do not count."""
        last = self.metrics[-1]["time"] if self.metrics else 0.0
        return max(self.about.get("updated", 0.0), float(last))

    @property
    def ais(self) -> tuple[str | None, Scores]:
        """Key and scores of the newest protocol by AIS; None and nothing where there is none."""
        newest = max(
            (
                (scores.get("time", 0.0), key)
                for key, scores in self.scores.items()
                if _by_ais(scores)
            ),
            default=None,
        )
        return (None, {}) if newest is None else (newest[1], self.scores[newest[1]])

    def numbers(self, protocol: str | None) -> Iterator[Number]:
        """Yield the final numbers: of training, of the scores by one protocol, of the newest AIS.

        A mapping's are named `<field>/<key>`, but a sweep over the number of weights keeps its
        name. All of AIS's begin with `ais`; `ais` itself, and `ais_less_<estimate>`, its difference
        to an estimate on the same images, are there only if it was accepted.
        """
        for name in ("seconds", "peak_memory_bytes", "parameters"):
            if is_number(value := self.about.get(name)):
                yield Number(name, float(value), self.ended)
        scores = self.scores.get(protocol or "", {})
        time = scores.get("time", 0.0)
        for name, value in scores.items():
            if name in ("schema", "time", "protocol"):
                continue
            if is_number(value):  # `seconds` alone are those of training
                yield Number("scoring_seconds" if name == "seconds" else name, float(value), time)
            elif isinstance(value, Mapping):
                for key, part in value.items():
                    if is_number(part) and str(key).isdecimal():
                        yield Number(name, float(part), time, int(key))
                    elif is_number(part):
                        yield Number(f"{name}/{key}", float(part), time)
        yield from _ais_numbers(self.ais[1])

    def words(self, protocol: str | None) -> dict[str, Any]:
        """Return what is no number of the scores by one protocol: statuses, flags, the protocol.

        Every field of `Scores` has a place, None where it is absent or a number.
        """
        scores = self.scores.get(protocol or "", {})
        words = {
            name: value
            for name, value in scores.items()
            if isinstance(value, str | bool) or name == "protocol"
        }
        key, ais = self.ais
        own = {"protocol_key": protocol if scores else None, "ais_protocol_key": key}
        return {
            **dict.fromkeys(Scores.__annotations__),
            **words,
            **own,
            "ais_status": ais.get("ais_status"),
        }


def _by_ais(scores: Scores) -> bool:
    return scores.get("protocol", {}).get("estimators") == ["ais"]


def _ais_numbers(scores: Scores) -> Iterator[Number]:
    protocol = scores.get("protocol", {})
    values: dict[str, Any] = {**scores, **{n: protocol.get(n) for n in ("chains", "temperatures")}}
    if scores.get("ais_status") == "accepted":
        for estimate, one in scores.get("paired", {}).items():
            values[f"less_{estimate}"] = one["difference"]
            values[f"less_{estimate}_error"] = one["error"]
    else:
        values.pop("ais", None)
    for name, value in values.items():
        if is_number(value) and name not in ("schema", "time"):
            full = name if name.startswith("ais") else f"ais_{name}"
            yield Number(full, float(value), scores.get("time", 0.0))


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read back."""

    path: Path
    config: RunConfig
    config_key: str
    about: dict[str, Any]  # the rest of config.yaml: source_hash, data_hash, bound and the like
    environment: dict[str, Any]
    seeds: dict[int, SeedRecord]

    def protocol_of(self, seed: int, wanted: str | None = None) -> str | None:
        """Return the key of the protocol whose scores represent a seed; None if it has no scores.

        It is `wanted` where the seed was scored by it. Otherwise, of the protocols that most seeds
        of the cell were scored by, and on most test images, it is the newest that ranks (has
        `nll`), or the newest. AIS alone never represents a seed.
        """
        own = self.seeds[seed].scores
        if wanted in own:
            return wanted
        seeds = Counter(key for each in self.seeds.values() for key in each.scores)

        def order(key: str) -> tuple[int, float, bool, float, str]:
            scores = own[key]
            images = scores.get("protocol", {}).get("images", "all")
            size = math.inf if images == "all" else float(images)
            return seeds[key], size, scores.get("nll") is not None, scores.get("time", 0.0), key

        return max((key for key in own if not _by_ais(own[key])), key=order, default=None)


def load_run(path: str | Path) -> RunRecord:
    """Read a run folder.

    Args:
        path: `<results>/runs/<variant>-<config_key>`.

    Raises:
        UsageError: it has no `config.yaml`.
        RunError: a file is broken, or was written by a newer version.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise UsageError(f"{path} is no run folder: it has no config.yaml")
    try:
        document = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        if document.pop("schema") > SCHEMA:
            raise RunError(f"{path} was written by a newer glas-bench; update this one")
        config = RunConfig(**document.pop("config"))
        key = document.pop("config_key")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"cannot read {path / 'config.yaml'}: {error}") from error
    seeds = {}
    for folder in path.glob("seed-*"):
        if match := re.fullmatch(r"seed-(\d+)", folder.name):
            seeds[int(match[1])] = _read_seed(SeedFolder(folder, int(match[1])))
    return RunRecord(
        path=path,
        config=config,
        config_key=key,
        about=document,
        environment=_read_environment(path),
        seeds=dict(sorted(seeds.items())),
    )


def _read_environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return read_json(path) if path.is_file() else {}


def _read_seed(folder: SeedFolder) -> SeedRecord:
    about = folder.status()
    return SeedRecord(
        seed=folder.seed,
        status=about["status"],
        about=about,
        metrics=folder.metrics(),
        scores=folder.all_scores(),
        environment=_read_environment(folder.path),
        folder=folder,
    )


def find_runs(results: Path) -> list[Path]:
    """Return all run folders below `<results>/runs`, sorted by name."""
    return sorted(path.parent for path in (results / "runs").glob("*/config.yaml"))


def find_run(results: Path, text: str) -> Path:
    """Return a run folder by its path, or by an unambiguous prefix of its name or key.

    Raises:
        UsageError: no run folder fits, or more than one.
    """
    if (Path(text) / "config.yaml").is_file():
        return Path(text)
    runs = find_runs(results)
    fits = [
        path
        for path in runs
        if path.name.startswith(text) or path.name.rpartition("-")[2].startswith(text)
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = ", ".join(path.name for path in fits)
        raise UsageError(f"{text!r} is the beginning of more than one run: {names}")
    known = [path.name for path in runs]
    variants = {name.rpartition("-")[0] for name in known}
    raise UsageError(
        f"no run {text!r} below {results / 'runs'}.{nearest(text, variants)} "
        f"There are: {', '.join(known) or 'none; make one with glas-bench run'}."
    )


# --------------------------------------------------------------------------- notes of studies


def note_study(results: Path, study: str, folders: Mapping[Path, str], **about: str) -> None:
    """Write `<results>/studies/<study>.json`: which run folders belong to a study.

    A folder that was noted before stays noted, whether or not the study still plans it.

    Args:
        results: the results folder.
        study: its name.
        folders: its run folders, each with the key of the protocol that the study scores by.
        about: what is needed to load the study again: `file`, `preset`, `dataset` and `seeds`.

    Raises:
        RunError: the note cannot be written.
    """
    protocols = noted_protocols(results, study) | {path.name: key for path, key in folders.items()}
    document = {"study": study, **about, "folders": dict(sorted(protocols.items()))}
    write_json(note_of(results, study), document)


def note_of(results: Path, study: str) -> Path:
    """Return the path of a study's note, whether or not it exists."""
    return results / "studies" / f"{study}.json"


def noted_protocols(results: Path, study: str) -> dict[str, str]:
    """Return the protocol keys of a study's run folders by their names; empty without a note."""
    note = note_of(results, study)
    return dict(read_json(note)["folders"]) if note.is_file() else {}


def runs_by_study(
    results: Path, folders: Sequence[Path] | None = None
) -> dict[str | None, list[Path]]:
    """Return run folders by the studies that noted them; under None those of no study.

    Args:
        results: the results folder, which has the notes.
        folders: run folders anywhere; by default, all of the results folder.
    """
    runs = find_runs(results) if folders is None else list(folders)
    by_study: dict[str | None, list[Path]] = {}
    noted: set[str] = set()
    for path in sorted((results / "studies").glob("*.json")):
        note = read_json(path)
        by_study[note["study"]] = [run for run in runs if run.resolve().name in note["folders"]]
        noted |= set(note["folders"])
    return {**by_study, None: [run for run in runs if run.resolve().name not in noted]}
