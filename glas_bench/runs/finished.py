"""A finished seed loaded as a model: to score it again, for pictures and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glas_bench import data, registry
from glas_bench.config import config_key
from glas_bench.core.train import Training
from glas_bench.data import Splits
from glas_bench.errors import RunError, UsageError
from glas_bench.model import Glas
from glas_bench.record import RunRecord, load_run
from glas_bench.registry import Variant
from glas_bench.runs.pictures import Subject


@dataclass(frozen=True)
class FinishedSeed:
    """A trained model, with all that it was made from."""

    record: RunRecord
    variant: Variant
    splits: Splits
    seed: int
    model: Glas

    @property
    def folder(self) -> Path:
        """The seed's folder."""
        return self.record.seeds[self.seed].folder.path

    @property
    def subject(self) -> Subject:
        """The model as `pictures.draw` takes it."""
        title = f"{self.record.path.name}, seed {self.seed}"
        return Subject(title, self.model, self.record.config, self.splits, self.seed)


def load_finished(path: Path, seed: int | None = None, device: str = "cpu") -> list[FinishedSeed]:
    """Return the finished seeds of a run (or the one asked for) with their trained parameters.

    Raises:
        UsageError: no run folder, or no such seed in it.
        RunError: the variant's source or the data is not what the run was made with, or the
            checkpoint is gone.
    """
    record = load_run(path)
    variant = registry.find(str(record.about.get("reference", record.config.variant)))
    file = record.about.get("data_file")
    splits = data.load(
        record.config.dataset, record.config.binarisation, Path(file) if file else None
    )
    if splits.hash != record.about["data_hash"]:
        raise RunError(f"{path}: the data here is not what it was trained on ({splits.origin})")
    if config_key(record.config, variant.source_hash, splits.hash) != record.config_key:
        raise RunError(
            f"{path}: {variant.path.name} or the training core has changed since; "
            "check out the commit that made it (see its environment.json)"
        )
    splits = splits.to(device)
    found = []
    for number, one in record.seeds.items():
        if one.status == "complete" and seed in (None, number):
            training = Training(variant, record.config, splits, number)
            state = one.folder.load_checkpoint(training.device)
            if state is None:
                raise RunError(
                    f"{path}: seed {number} has no sound checkpoint; `run --fresh` trains it again"
                )
            training.load(state)
            found.append(FinishedSeed(record, variant, splits, number, training.model))
    if not found:
        have = ", ".join(f"{n} ({s.broken or s.status})" for n, s in record.seeds.items()) or "none"
        raise UsageError(f"{path}: no finished seed{'' if seed is None else f' {seed}'}; {have}")
    return found
