"""Run folders read back, and notes of the studies that they belong to."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench.config import RunConfig, check_settings, config_key
from glas_bench.errors import GlasBenchError, RunError, UsageError, nearest
from glas_bench.record.files import os_errors, read_json, write_json
from glas_bench.record.folders import RunFolder, SeedFolder
from glas_bench.record.scores import Number, Scores, Status, is_number
from glas_bench.text import aligned, duration, number

if TYPE_CHECKING:
    import numpy as np

    from glas_bench.model import Glas


@dataclass(frozen=True, repr=False)
class SeedRecord:
    """One seed of a run, read back."""

    seed: int
    status: str
    about: Status
    metrics: list[dict[str, Any]]  # one row an epoch
    scores: dict[str, Scores]  # by protocol key
    environment: dict[str, Any]  # where it differs from the cell's; else empty
    folder: SeedFolder
    broken: str = ""  # which file is, and the cure; such a seed is failed and has no numbers

    def per_image(self, protocol: str | None = None) -> dict[str, np.ndarray]:
        """Return per-image values, nats [images]."""
        return self.folder.per_image(protocol)

    def __repr__(self) -> str:
        scores: Any = max(self.scores.values(), key=lambda each: each.get("time", 0.0), default={})
        numbers = [f"{n} {number(scores[n])}" for n in ("nll", "elbo") if is_number(scores.get(n))]
        return ", ".join([f"seed {self.seed}: {self.status}", *numbers])

    def model(self, device: str = "cpu") -> Glas:
        """Return the trained model in evaluation mode; it needs no data.

        The recogniser of a variant with running statistics (`statistics_of`) needs training images
        first, see `core.train.scoring`; sampling from the prior does not.

        Raises:
            RunError: the seed is not complete, its checkpoint is gone, or the variant's source or
                the training core has changed since.
        """
        import torch

        from glas_bench import data, registry
        from glas_bench.likelihood import LIKELIHOODS

        if self.status != "complete":
            raise RunError(
                f"seed {self.seed} is {self.status}: it has no finished model yet; finish it first"
            )
        path = self.folder.path.parent
        config, key, about = RunFolder.at(path).config()
        variant = registry.find(str(about.get("reference", config.variant)))
        if config_key(config, variant.source_hash, about["data_hash"]) != key:
            raise RunError(
                f"{path}: {variant.path.name} or the training core has changed since; "
                "check out the commit that made it (see its environment.json)"
            )
        state = self.folder.load_checkpoint(device)
        if state is None:
            raise RunError(
                f"{path}: seed {self.seed} has no sound checkpoint; `run --fresh` trains it again"
            )
        of = data.info(config.dataset)
        settings = check_settings(variant, config.settings)
        with torch.random.fork_rng(devices=[]):
            pixels = math.prod(about.get("image_shape", (28, 28)))
            model = variant.cls(settings, pixels, of.classes)
        model.likelihood = LIKELIHOODS[of.likelihood]
        model.load_state_dict(state["model"])
        return model.eval().to(device)

    @property
    def began(self) -> float:
        """When training began, Unix seconds."""
        if not self.metrics:
            return self.ended
        return self._time(0) - (self.metrics[0].get("seconds") or 0.0)

    @property
    def ended(self) -> float:
        """When the last file was written, Unix seconds; scores of a complete seed do not count."""
        return max(self.about.get("updated", 0.0), self._time(-1) if self.metrics else 0.0)

    def _time(self, row: int) -> float:
        return float(self.metrics[row].get("time") or 0.0)

    @property
    def ais(self) -> tuple[str | None, Scores]:
        """Key and scores of AIS by its newest protocol, one that was accepted if there is one.

        None and nothing where there is none.
        """
        by_ais = {key: scores for key, scores in self.scores.items() if _by_ais(scores)}

        def order(key: str) -> tuple[bool, float, str]:
            scores = by_ais[key]
            return scores.get("ais_status") == "accepted", scores.get("time", 0.0), key

        key = max(by_ais, key=order, default=None)
        return key, by_ais.get(key or "", {})

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
        """Return the fields of one protocol's scores that are not numbers: statuses, flags, itself.

        Every field of `Scores` has a place, None where it is absent or a number.
        """
        scores = self.scores.get(protocol or "", {})
        words: dict[str, Any] = dict.fromkeys(Scores.__annotations__)
        for name, value in scores.items():
            if isinstance(value, str | bool) or name == "protocol":
                words[name] = value
        words["protocol_key"] = protocol if scores else None
        words["ais_protocol_key"], ais = self.ais
        words["ais_status"] = ais.get("ais_status")
        return words


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


@dataclass(frozen=True, repr=False)
class RunRecord:
    """A run folder, read back; shown as a small table, nats per image on the test split."""

    path: Path
    config: RunConfig
    config_key: str
    about: dict[str, Any]  # the rest of config.yaml: source_hash, data_hash, bound and the like
    environment: dict[str, Any]
    seeds: dict[int, SeedRecord]
    broken: str = ""  # that environment.json is

    def __repr__(self) -> str:
        names = ("nll", "elbo", "iw", "refit_iw", "objective")
        rows = [["seed", "status", *names, "training"]]
        for seed, one in self.seeds.items():
            scores: Any = one.scores.get(self.protocol_of(seed) or "", {})
            spent = one.about.get("seconds")
            time = "-" if spent is None else duration(spent)
            numbers = [number(scores.get(name)) for name in names]
            rows.append([str(seed), one.status, *numbers, time])
        about = f"{self.config.dataset}, {self.config.binarisation}"
        return "\n".join([f"{self.path.name} ({about})", *aligned(rows)])

    @property
    def problems(self) -> list[str]:
        """Which of its files are broken, each with the cure."""
        broken = (self.broken, *(seed.broken for seed in self.seeds.values()))
        return [each for each in broken if each]

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


def load_run(path: str | Path, results: str | Path | None = None) -> RunRecord:
    """Read a run folder.

    A seed with a broken file is failed, without numbers: see `SeedRecord.broken`.

    Args:
        path: `<results>/runs/<variant>-<config_key>`, or a copy of it by any name; or, where there
            is no such folder, an unambiguous prefix of the name or key of a run in `results`.
        results: the results folder; by default `GLAS_BENCH_RESULTS`, otherwise `results/local`.

    Raises:
        UsageError: it is no run folder, or no run, or more than one, has that prefix.
        RunError: `config.yaml` is missing or broken.
        NewerRecord: a newer version wrote it.
    """
    text, path = str(path), Path(path)
    if not text or (len(path.parts) == 1 and not path.is_dir()):
        results = results or os.environ.get("GLAS_BENCH_RESULTS") or "results/local"
        path = find_run(Path(results), text)
    elif not _is_run(path):
        raise _no_run(path)
    folder = RunFolder.at(path)
    try:
        config, key, about = folder.config()
    except RunError as error:
        raise RunError(f"{error}. {_AGAIN}") from error
    folder.key = key
    folder.settle_if_free()
    environment, broken = _read_environment(path)
    seeds = {n: _read_seed(folder.seed(n)) for n in folder.seeds()}
    return RunRecord(path, config, key, about, environment, seeds, broken)


_AGAIN = "Run the command that made this run again: it rewrites the file"


def _read_environment(folder: Path) -> tuple[dict[str, Any], str]:
    """Return `environment.json`, empty where it is missing or broken, and what is wrong with it."""
    try:
        return read_json(folder / "environment.json"), ""
    except GlasBenchError as error:
        return {}, f"{error}. {_AGAIN}"


def _read_seed(folder: SeedFolder) -> SeedRecord:
    here, _ = _read_environment(folder.path)
    try:
        about, scores, rows = folder.read()
    except GlasBenchError as error:
        why = f"{error}. Seed {folder.seed} is left out"
        if isinstance(error, RunError):
            why += (
                ": give the command that ran it again; if that does not help, "
                f"remove {folder.path} first, and it is trained again"
            )
        failed: Status = {"status": "failed", "reason": why}
        return SeedRecord(folder.seed, "failed", failed, [], {}, here, folder, why)
    return SeedRecord(folder.seed, about["status"], about, rows, scores, here, folder)


def find_runs(results: Path) -> list[Path]:
    """Return all run folders below `<results>/runs`, sorted by name.

    Those that cannot be read, or have lost their `config.yaml`, are among them.
    """
    paths = sorted((results / "runs").glob("*"))
    return [path for path in paths if _has_seeds(path) or (path / "config.yaml").exists()]


def _has_seeds(path: Path) -> bool:
    try:
        return any(re.fullmatch(r"seed-\d+", name) for name in os.listdir(path))
    except NotADirectoryError:
        return False
    except PermissionError:  # reading it says more
        return True


def _is_run(path: Path) -> bool:
    """Return whether a folder is a run's, sound or broken, and not another program's.

    Its name ends in a key and it has a seed or the lock, or its `config.yaml` has a `config_key`.
    """
    with os_errors(f"read {path}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if RunFolder.at(path).key and (_has_seeds(path) or (path / "lock").is_file()):
            return True
        text = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        return re.search("^config_key:", text, re.MULTILINE) is not None
    return False


def _no_run(path: Path) -> UsageError:
    has = "its config.yaml has no config_key"
    if not (path / "config.yaml").exists():
        has = "it has no config.yaml" if path.is_dir() else "there is no such folder"
    again = f". {_AGAIN}" if path.is_dir() and _has_seeds(path) else ""
    return UsageError(f"{path} is no run folder: {has}{again}")


def find_run(results: Path, text: str) -> Path:
    """Return a run folder by its path, or by an unambiguous prefix of its name or key.

    Raises:
        UsageError: the text is empty, no run folder fits, or more than one.
    """
    if not text.strip():
        raise UsageError(
            "the name of a run is empty; give its path, or the beginning of its name or key "
            "(`glas-bench runs` lists them)"
        )
    if _is_run(Path(text)):
        return Path(text)
    known = [path.name for path in find_runs(results)]
    fits = [n for n in known if n.startswith(text) or n.rpartition("-")[2].startswith(text)]
    if len(fits) > 1:
        raise UsageError(f"{text!r} is the beginning of more than one run: {', '.join(fits)}")
    path = results / "runs" / fits[0] if fits else Path(text)
    if fits and _is_run(path):
        return path
    if path.is_dir():
        raise _no_run(path)
    variants = {name.rpartition("-")[0] for name in known}
    raise UsageError(
        f"no run {text!r} below {results / 'runs'}.{nearest(text, variants)} "
        f"There are: {', '.join(known) or 'none; make one with glas-bench run'}."
    )


# --------------------------------------------------------------------------- notes of studies


def note_study(results: Path, study: str, folders: Mapping[Path, str], **about: Any) -> None:
    """Write `<results>/studies/<study>.json`: which run folders belong to a study.

    A folder that was noted before stays noted, whether or not the study still plans it.

    Args:
        results: the results folder.
        study: its name.
        folders: its run folders, each with the key of the protocol that the study scores by.
        about: what is needed to load the study again: `file`, `preset`, `dataset` and `seeds`; its
            `question` and `command`; `names` of the folders; and `searches`, by cell.
    """
    protocols: dict[str, str] = {}
    with contextlib.suppress(RunError):  # a broken one is made again
        protocols = dict(read_note(results, study).get("folders", {}))
    protocols |= {path.name: key for path, key in folders.items()}
    document = {"study": study, **about, "folders": dict(sorted(protocols.items()))}
    write_json(note_of(results, study), document)


def note_of(results: Path, study: str) -> Path:
    """Return the path of a study's note, whether or not it exists."""
    return results / "studies" / f"{study}.json"


def read_note(results: Path, study: str) -> dict[str, Any]:
    """Return the note of a study; empty where there is none.

    Raises:
        RunError: it is broken.
    """
    path = note_of(results, study)
    if not path.exists():
        return {}
    try:
        note = read_json(path)
        if note.get("study") != study or not isinstance(note.get("folders"), dict):
            raise RunError(f"cannot read {path}: it is no note of {study}")
    except RunError as error:
        raise RunError(f"{error}. Sweep {study} again, and it is written again") from error
    return note


def runs_by_study(
    results: Path, folders: Sequence[Path] | None = None
) -> dict[str | None, list[Path]]:
    """Return run folders by the studies that `results` notes; under None those of no study.

    Args:
        results: the results folder.
        folders: run folders anywhere; by default, all of the results folder.
    """
    runs = {run: run.resolve().name for run in (find_runs(results) if folders is None else folders)}
    by_study: dict[str | None, list[Path]] = {}
    noted: set[Path] = set()
    for path in sorted((results / "studies").glob("*.json")):
        try:
            names = read_note(results, path.stem).get("folders", {})
        except RunError:  # which runs belong to no study is not known either
            by_study[path.stem], noted = [], set(runs)
            continue
        by_study[path.stem] = [run for run, name in runs.items() if name in names]
        noted |= {*by_study[path.stem]}
    return {**by_study, None: [run for run in runs if run not in noted]}
