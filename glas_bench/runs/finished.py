"""A finished seed loaded as a model: to score it again, for pictures and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glas_bench import data, registry
from glas_bench.errors import RunError, UsageError
from glas_bench.record import RunRecord, load_run
from glas_bench.registry import Variant
from glas_bench.runs.pictures import Subject


@dataclass(frozen=True)
class FinishedSeed(Subject):
    """A trained seed with the record of its run."""

    record: RunRecord
    variant: Variant

    @property
    def folder(self) -> Path:
        """The seed's folder."""
        return self.record.seeds[self.seed].folder.path


def load_finished(path: Path, seed: int | None = None, device: str = "cpu") -> list[FinishedSeed]:
    """Return the finished seeds of a run (or the one asked for) with their trained parameters.

    Raises:
        UsageError: no run folder, or no such seed in it.
        RunError: the variant's source or the data is not what the run was made with, or the
            checkpoint is gone.
    """
    record = load_run(path)
    config = record.config
    variant = registry.find(str(record.about.get("reference", config.variant)))
    file = record.about.get("data_file")
    splits = data.load(config.dataset, config.binarisation, Path(file) if file else None)
    if splits.hash != record.about["data_hash"]:
        raise RunError(
            f"{path}: the data here ({splits.origin}) is not what it was trained on; restore that "
            "data, or train again"
        )
    splits = splits.to(device)
    found = [
        FinishedSeed(
            title=f"{record.path.name}, seed {number}",
            model=one.model(device),
            config=config,
            splits=splits,
            seed=number,
            record=record,
            variant=variant,
        )
        for number, one in record.seeds.items()
        if one.status == "complete" and seed in (None, number)
    ]
    if not found:
        have = ", ".join(f"{n} ({s.broken or s.status})" for n, s in record.seeds.items()) or "none"
        raise UsageError(f"{path}: no finished seed{'' if seed is None else f' {seed}'}; {have}")
    return found
