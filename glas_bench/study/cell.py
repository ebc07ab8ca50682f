"""Cells: a variant under one config, with its seeds; from a study file or a command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench.config import RunConfig, config_key, protocol_key, resolve
from glas_bench.errors import UsageError
from glas_bench.record import RunFolder

if TYPE_CHECKING:
    from glas_bench.data import Splits
    from glas_bench.registry import Variant


@dataclass(frozen=True)
class Cell:
    """One variant under one config, with the seeds to run.

    Where axes are searched (`searched`), the config holds their defaults; `with_values` puts the
    best values in their place.
    """

    name: str
    """Unique in its study: the variant and the settings that differ between cells."""
    variant: Variant
    params: dict[str, Any]
    """The settings in the name."""
    config: RunConfig
    seeds: tuple[int, ...]
    baseline: str | None = None
    """Name of the cell that it is compared with; None for a baseline itself."""
    not_applicable: str | None = None
    """Why the variant cannot run on the data set, or None where it can."""
    searched: tuple[str, ...] = ()
    """Axes that are searched."""
    key: str = ""
    """config_key, which names the run folder; empty until the data is known."""

    @property
    def identity(self) -> str:
        """What makes two cells of a study the same one."""
        about = [self.variant.source_hash, self.config.model_dump(), self.searched]
        return json.dumps(about, sort_keys=True)

    @property
    def protocol(self) -> str:
        """The protocol_key of the scores that the config asks for."""
        from glas_bench import evaluate

        return protocol_key(evaluate.protocol(self.config))

    def on(self, splits: Splits) -> Cell:
        """Return the cell on this data, with its key.

        Raises:
            UsageError: the variant or a setting does not fit the data.
        """
        from glas_bench.core import train

        train.check_applicable(self.variant, self.config, splits)
        return replace(self, key=config_key(self.config, self.variant.source_hash, splits.hash))

    def folder(self, results: Path) -> RunFolder:
        """Return its run folder below a results folder; the data is known (`on`)."""
        assert self.key, f"{self.name}: its data is not known yet"
        return RunFolder(results, self.variant.name, self.key)

    def finished(self, results: Path) -> dict[int, str | None]:
        """Return by seed how it ended, or None where there is work left to do."""
        folder, protocol = self.folder(results), self.protocol
        if not folder.is_sound():
            return dict.fromkeys(self.seeds)
        return {seed: folder.seed(seed).finished(protocol) for seed in self.seeds}

    def with_seeds(self, seeds: Sequence[int]) -> Cell:
        """Return the cell with other seeds."""
        return replace(self, seeds=tuple(seeds))

    def with_values(self, values: Mapping[str, Any]) -> Cell:
        """Return the cell with these settings, which are no longer searched; it has no key yet.

        Raises:
            UsageError: a value is not allowed.
        """
        flat = {key: value for key, value in self.config.flat().items() if key != "variant"}
        return replace(
            self,
            params={**self.params, **values},
            config=resolve(self.variant, study={**flat, **values}),
            searched=tuple(axis for axis in self.searched if axis not in values),
            key="",
        )


def by_hand(
    variant: Variant,
    baseline: Variant | None,
    seeds: Sequence[int],
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Return the cells of a study that has no file: a variant and, if any, its baseline.

    Both have the same seeds and preset (by default `quick`); the baseline takes those of the
    overrides that it has.

    Raises:
        UsageError: the two are the same or have one name, a setting or its value is not allowed,
            or the variant cannot run on the data set.
    """
    from glas_bench.core import train

    if baseline is not None and baseline.source_hash == variant.source_hash:
        raise UsageError(f"--baseline {baseline.reference}: it is the variant itself")
    if baseline is not None and baseline.name == variant.name:
        file = next(each for each in (variant, baseline) if each.reference != each.name).path
        raise UsageError(
            f"--baseline {baseline.reference}: the variant has the name {variant.name} too; "
            f"rename the file {file}"
        )
    resolved = resolve(variant, preset=preset, overrides=overrides)
    cells = [Cell(variant.name, variant, {}, resolved, tuple(seeds))]
    if baseline is not None:
        own = keys_of(baseline)
        shared = {key: value for key, value in (overrides or {}).items() if key in own}
        resolved = resolve(baseline, preset=preset, overrides=shared)
        other = Cell(baseline.name, baseline, {}, resolved, tuple(seeds))
        cells = [replace(cells[0], baseline=baseline.name), other]
    for cell in cells:
        train.check_applicable(cell.variant, cell.config)
    return cells


def keys_of(variant: Variant) -> set[str]:
    """Return the keys that can be set for a variant."""
    run = set(RunConfig.model_fields) - {"variant", "settings"}
    return run | set(variant.cls.Settings.model_fields)
