"""Studies: a question as YAML, the cells that answer it, and the claims that it judges.

    name, question, version   what it is; raise the version whenever its cells or claims change
    preset, dataset, set      what all cells share
    variants                  names, file paths, or {variant: NAME, setting: value or [values]}
    grid                      axes that are crossed with every variant
    space, trials             axes that are searched, on tuning_seeds of their own
    baseline                  {variant: NAME, ...}: takes what it does not name from the cell it is
                              compared with, and is planned where the grid does not hold it
    skip                      {variant, axis, reason}: planned without an axis it does not have;
                              {variant, setting: value, reason}: not planned
    seeds                     0-4
    claims                    {text, source, expect}, see `claims`; of each claim also `margin`, and
                              `among: escaped` where it is about seeds that left the mean image
    looks, margin             numbers of seeds at which claims are judged, and the smallest
                              difference in nats that matters

Loading a study checks all of it: every cell's config is resolved and every claim finds its cells,
before any data is opened.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import config
from glas_bench.config import RunConfig
from glas_bench.errors import UsageError, nearest, unknown
from glas_bench.study import claims
from glas_bench.study import file as studyfile
from glas_bench.study.cell import Cell, keys_of
from glas_bench.study.claims import Claim, Comparison, Expectation, Term
from glas_bench.study.file import Dimension, Loc, Source, StudyFile
from glas_bench.text import settings as settings_text

if TYPE_CHECKING:
    from glas_bench.registry import Variant

SHIPPED = Path(__file__).parents[1] / "studies"
MOST_CORNERS = 4096


@dataclass(frozen=True)
class Skipped:
    """A combination that the study does not plan, or an axis that a variant does without."""

    variant: str
    params: dict[str, Any]
    axis: str | None
    reason: str


@dataclass(frozen=True)
class Study:
    """A study that was read, checked and laid out."""

    name: str
    """The file's name, with `@preset` and `@dataset` where they are not the file's."""
    question: str
    version: int
    preset: str
    dataset: str
    path: Path
    seeds: list[int]
    own_seeds: list[int]
    """The file's; the same unless others were asked for."""
    tuning_seeds: list[int]
    trials: int
    """Trials of every search; 0 where nothing is searched."""
    space: dict[str, Dimension]
    cells: list[Cell]
    skipped: list[Skipped]
    claims: list[Claim]
    looks: tuple[int, ...]
    """Seeds of each arm at which its claims are judged."""

    @property
    def verdicts(self) -> bool:
        """Whether its preset is one that gives verdicts."""
        return self.preset not in config.NO_VERDICTS

    def with_seeds(self, seeds: Mapping[str, Sequence[int]]) -> Study:
        """Return the study with other seeds for the cells that are named."""
        return replace(
            self, cells=[cell.with_seeds(seeds.get(cell.name, cell.seeds)) for cell in self.cells]
        )

    @cached_property
    def by_name(self) -> dict[str, Cell]:
        """The cells by name."""
        return {cell.name: cell for cell in self.cells}

    @cached_property
    def compared(self) -> set[str]:
        """Names of the cells that its claims compare."""
        return {name for claim in self.claims for each in claim.comparisons for name in each.cells}


def load(
    reference: str,
    preset: str | None = None,
    dataset: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    precision: str | None = None,
) -> Study:
    """Read a study and lay it out.

    Args:
        reference: the path of a study file, or the name of a shipped study.
        preset: in place of the file's.
        dataset: in place of the file's and the preset's.
        seeds: in place of the file's; it remains the same study.
        precision: of cells for which the file names none.

    Raises:
        UsageError: something in it cannot be used; the message names file and line.
    """
    path = find(reference)
    file, source = studyfile.read(path)
    if preset is not None and preset not in config.PRESETS:
        raise unknown("preset", preset, config.PRESETS)
    if shared := set(seeds or ()) & set(file.tuning_seeds or ()):
        raise UsageError(
            f"--seeds: {', '.join(map(str, sorted(shared)))} are the study's tuning seeds; "
            "what is tuned on is not reported on"
        )
    study = _Planner(file, source, preset or file.preset, dataset, precision).study()
    if seeds is None:
        return study
    chosen = sorted(set(seeds))
    return replace(study.with_seeds(dict.fromkeys(study.by_name, chosen)), seeds=chosen)


def shipped() -> dict[str, Path]:
    """Return the shipped studies by name."""
    return {path.stem.replace("_", "-"): path for path in sorted(SHIPPED.glob("*.yaml"))}


def find(reference: str) -> Path:
    """Return the file of a study: a path, or the name of a shipped one.

    Raises:
        UsageError: there is none.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or "/" in reference:
        if path.is_file():
            return path
        known = shipped().get(path.stem.replace("_", "-"))
        if known and path.parts[:-1] in ((), ("studies",)):
            return known  # as if in the checkout
        raise UsageError(
            f"there is no study file {reference}.{nearest(path.stem, shipped())} "
            f"Shipped: {', '.join(shipped())}."
        )
    if known := shipped().get(reference.replace("_", "-")):
        return known
    raise unknown("study", reference, shipped())


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


# --------------------------------------------------------------------------- laying out


@dataclass(frozen=True)
class _Entry:
    """An item of `variants`, or the baseline: a variant with settings of its own."""

    loc: Loc
    variant: Variant
    settings: dict[str, Any]


@dataclass
class _Planner:
    file: StudyFile
    source: Source
    preset: str
    dataset: str | None
    precision: str | None

    def __post_init__(self) -> None:
        self.cells: dict[str, Cell] = {}  # by identity
        self.variants: dict[str, Variant] = {}  # by name
        self.skipped: list[Skipped] = []
        self.listed: set[str] = set()  # identities of what `variants` asks for
        self.used: set[int] = set()  # skips that were needed
        written = self.file.baseline
        self.baseline = None if written is None else self._entry(("baseline",), written)

    def study(self) -> Study:
        """Lay out all cells, then find those of every claim."""
        for index, item in enumerate(self.file.variants):
            entry = self._entry(("variants", index), item)
            listed = {k: v if isinstance(v, list) else [v] for k, v in entry.settings.items()}
            for values in _product(listed):
                one = replace(entry, settings=values)
                for settings in self._settings(one):
                    self._plan(one, settings)
        for index, skip in enumerate(self.file.skip):
            if index not in self.used:
                raise self.source.error(("skip", index), f"{skip}: it skips nothing")
        claimed = [self._claim(index) for index in range(len(self.file.claims))]
        cells = list(self.cells.values())
        if not cells:
            raise self.source.error(("variants",), "everything is skipped")
        trials = 0
        if any(cell.searched for cell in cells):
            combinations = math.prod(len(each.choices or ()) for each in self.file.space.values())
            # of choices alone each combination once; `file` refuses a range without trials
            trials = min(each for each in (combinations, self.file.trials) if each)
        return Study(
            name=self._name(),
            question=self.file.question,
            version=self.file.version,
            preset=self.preset,
            dataset=cells[0].config.dataset,
            path=self.source.path,
            seeds=self.file.seeds,
            own_seeds=self.file.seeds,
            tuning_seeds=self.file.tuning_seeds or [],
            trials=trials,
            space=self.file.space,
            cells=cells,
            skipped=self.skipped,
            claims=claimed,
            looks=tuple(self.file.looks),
        )

    def _name(self) -> str:
        """Return the study's name; another preset or data set makes another study."""
        preset = config.PRESETS[self.preset]["dataset"]
        own = self.file.fixed.get("dataset") or self.file.dataset or preset
        parts = [self.file.name]
        if self.preset != self.file.preset:
            parts.append(self.preset)
        if self.dataset is not None and self.dataset != own:
            parts.append(self.dataset)
        return "@".join(parts)

    # ---- variants

    def _entry(self, loc: Loc, item: str | dict[str, Any]) -> _Entry:
        settings = {} if isinstance(item, str) else dict(item)
        name = item if isinstance(item, str) else settings.pop("variant", None)
        if not isinstance(name, str):
            raise self.source.error(loc, "write a variant's name, or {variant: NAME, key: value}")
        shared = sorted(set(settings) & {*self.file.grid, *self.file.fixed})
        if shared and loc[0] != "baseline":
            raise self.source.error(
                (*loc, shared[0]), f"{shared[0]} is an axis of the study or set for all of it"
            )
        variant = self._find(loc, name)
        known = self.variants.setdefault(variant.name, variant)
        if known.source_hash != variant.source_hash:
            raise self.source.error(
                loc, f"{known.reference} has the name {variant.name} too; rename the file"
            )
        return _Entry(loc, variant, settings)

    def _find(self, loc: Loc, name: str) -> Variant:
        from glas_bench import registry

        if name.endswith(".py") or "/" in name:
            beside = self.source.path.parent / name
            name = str(beside if beside.is_file() else Path(name))
        try:
            return registry.find(name)
        except UsageError as error:
            raise self.source.error(loc, error) from error

    # ---- settings

    def _settings(self, entry: _Entry) -> Iterator[dict[str, Any]]:
        """Return what is set in every cell of an entry: the study's, the axes', its own."""
        fixed = {k: v for k, v in self.file.fixed.items() if self._has(entry, ("set", k))}
        axes = {k: v for k, v in self.file.grid.items() if self._has(entry, ("grid", k))}
        for at in _product(axes):
            params = {**entry.settings, **at}
            if not self._is_skipped(entry.variant.name, params):
                yield {**fixed, **params}

    def _has(self, entry: _Entry, loc: Loc) -> bool:
        """Return whether a variant has an axis; a study lists under `skip` one that it has not."""
        key, variant, own = str(loc[1]), entry.variant.name, keys_of(entry.variant)
        if key in own:
            return True
        for index, skip in enumerate(self.file.skip):
            if skip.get("axis") == key and skip.get("variant") == variant:
                if index not in self.used:
                    self._skip(index, variant, {}, key)
                return False
        raise self.source.error(
            loc,
            f"{variant} has no setting {key!r}.{config.meant(key, own)} If it is to run without, "
            f"list it under skip: {{variant: {variant}, axis: {key}, reason: ...}}",
        )

    def _is_skipped(self, variant: str, params: dict[str, Any]) -> bool:
        for index, skip in enumerate(self.file.skip):
            wanted = {k: v for k, v in skip.items() if k not in ("variant", "axis", "reason")}
            if "axis" in skip or skip.get("variant", variant) != variant:
                continue
            if not wanted:
                raise self.source.error(("skip", index), "name an axis, or settings: key: value")
            if all(k in params and config.same_value(params[k], v) for k, v in wanted.items()):
                self._skip(index, variant, params)
                return True
        return False

    def _skip(
        self, index: int, variant: str, params: dict[str, Any], axis: str | None = None
    ) -> None:
        reason = self.file.skip[index].get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise self.source.error(("skip", index), "a skip gives its reason")
        self.used.add(index)
        self.skipped.append(Skipped(variant, params, axis, reason))

    # ---- cells

    def _plan(self, entry: _Entry, settings: dict[str, Any]) -> None:
        """Plan a cell, and before it the one that it is compared with."""
        cell = self._cell(entry, settings)
        if cell.identity in self.listed:
            raise self.source.error(entry.loc, f"{cell.name} is planned twice")
        self.listed.add(cell.identity)
        baseline = self._compared_with(entry, settings)
        if baseline is not None and baseline.identity != cell.identity:
            self._add(baseline, entry)
            cell = replace(cell, baseline=baseline.name)
        self._add(cell, entry)

    def _add(self, cell: Cell, entry: _Entry) -> None:
        if cell.identity in self.cells:
            return
        if any(known.name == cell.name for known in self.cells.values()):
            raise self.source.error(entry.loc, f"two cells have the name {cell.name!r}")
        self.cells[cell.identity] = cell

    def _compared_with(self, entry: _Entry, settings: dict[str, Any]) -> Cell | None:
        if self.baseline is None:
            return None
        own = keys_of(self.baseline.variant)
        for key in self.baseline.settings:
            if key not in own:
                raise self.source.error(("baseline", key), _no_setting(self.baseline.variant, key))
        given = {**self.file.fixed, **settings, **self.baseline.settings}
        taken = {key: value for key, value in given.items() if key in own}
        baseline = self._cell(self.baseline, taken, entry.loc)
        return self.cells.get(baseline.identity, baseline)

    def _cell(self, entry: _Entry, settings: dict[str, Any], loc: Loc | None = None) -> Cell:
        """Return a cell; `loc` is where the file asks for it, by default at its entry."""
        from glas_bench.core import train

        loc = loc or entry.loc
        free = [key for key in self.file.space if key not in entry.settings]
        searched = tuple(key for key in free if self._has(entry, ("space", key)))
        try:
            resolved = self._resolve(entry.variant, settings)
        except UsageError as error:
            named = [key for key in settings if re.search(rf"\b{re.escape(key)}\b", str(error))]
            raise self.source.error(self._where(loc, named), error) from error
        flat = resolved.flat()
        params = {key: flat[key] for key in settings if key not in self.file.fixed}
        for key in sorted(config.SCORING & {*params, *searched}):
            raise self.source.error(
                self._where(loc, [key]),
                f"{key} says how a cell is scored, not what it is; a study has one yardstick, so "
                f"give it under set. iw_sweep has every K up to samples already",
            )
        reason = train.not_applicable(entry.variant, resolved)
        if reason is None:
            try:
                train.check_applicable(entry.variant, resolved)
            except UsageError as error:
                raise self.source.error(loc, error) from error
        cell = Cell(
            f"{entry.variant.name} {settings_text(params)}".rstrip(),
            entry.variant,
            params,
            resolved,
            tuple(self.file.seeds),
            not_applicable=reason,
            searched=searched,
        )
        self._check_corners(cell)
        return cell

    def _resolve(self, variant: Variant, settings: dict[str, Any]) -> RunConfig:
        shared = {"precision": self.precision, "dataset": self.file.dataset}
        given = {**{key: value for key, value in shared.items() if value}, **settings}
        return config.resolve(variant, preset=self.preset, study=given, dataset=self.dataset)

    def _where(self, loc: Loc, keys: Sequence[str]) -> Loc:
        """Return where the first of these settings stands, or loc."""
        places = (place for k in keys for place in ((*loc, k), ("grid", k), ("set", k)))
        return next((place for place in places if place in self.source.lines), loc)

    def _check_corners(self, cell: Cell) -> None:
        """Refuse a range whose ends, in any combination, are not allowed."""
        if not cell.searched:
            return
        space = {key: self.file.space[key] for key in cell.searched}
        ends = {key: each.choices or [each.low, each.high] for key, each in space.items()}
        for values in itertools.islice(_product(ends), MOST_CORNERS):
            for key, each in space.items():
                if each.at_most in values:
                    values[key] = min(values[key], values[each.at_most])
            try:
                cell.with_values(values)
            except UsageError as error:
                at = ", ".join(f"{key} = {value}" for key, value in values.items())
                raise self.source.error(("space",), f"{cell.name} at {at}: {error}") from error

    # ---- claims

    def _claim(self, index: int) -> Claim:
        written = self.file.claims[index]
        loc: Loc = ("claims", index, "expect")
        if written.preset is not None and written.preset not in config.PRESETS:
            error = unknown("preset", written.preset, config.PRESETS)
            raise self.source.error(("claims", index, "preset"), error)
        try:
            expectation = claims.parse(written.expect)
            comparisons = tuple(self._comparisons(expectation))
            by_name = {cell.name: cell for cell in self.cells.values()}
            for comparison in comparisons:
                for cell, term in zip(comparison.cells, expectation.terms, strict=True):
                    _check_has(by_name[cell], term)
        except UsageError as error:
            raise self.source.error(loc, error) from error
        margin = written.margin
        if margin is None and expectation.unit == "nats":
            margin = self.file.margin
            margin = config.MARGINS.get(self.preset) if margin is None else margin
        return Claim(
            number=index + 1,
            text=written.text,
            source=written.source,
            expect=written.expect,
            margin=margin or 0.0,
            among_escaped=written.among == "escaped",
            preset=written.preset,
            expectation=expectation,
            comparisons=comparisons,
        )

    def _comparisons(self, expectation: Expectation) -> Iterator[Comparison]:
        """Return the cells that a claim compares, once per value of every axis left out."""
        left_out = set[str]().union(
            *(keys_of(self._variant_of(term)) - set(term.settings) for term in expectation.terms)
        )
        seen = set()
        for at in _product({k: v for k, v in self.file.grid.items() if k in left_out}):
            cells = tuple(self._look_up(term, at) for term in expectation.terms)
            if None in cells or cells in seen:
                continue
            asked = [(term.metric, str(term.condition)) for term in expectation.terms]
            if len({*zip(cells, asked, strict=True)}) < len(cells):
                raise UsageError(f"both sides are the same cell, {cells[0]}")
            seen.add(cells)
            yield Comparison(tuple(str(cell) for cell in cells), at)
        if not seen:
            raise UsageError("all that it compares is skipped")

    def _variant_of(self, term: Term) -> Variant:
        known = {cell.variant.name: cell.variant for cell in self.cells.values()}
        if term.variant not in known:
            raise unknown("variant of this study", term.variant, known)
        return known[term.variant]

    def _look_up(self, term: Term, at: dict[str, Any]) -> str | None:
        """Return the name of the cell that a term means at these values; None if it is skipped."""
        variant = self._variant_of(term)
        own = keys_of(variant)
        for key in term.settings:
            if key not in own:
                raise UsageError(_no_setting(variant, key))
        values = {key: value for key, value in at.items() if key in own} | term.settings
        for skipped in self.skipped:
            if skipped.variant == variant.name and skipped.axis is None:
                params = skipped.params.items()
                if all(config.same_value(values.get(key), value) for key, value in params):
                    return None
        fixed = {key: value for key, value in self.file.fixed.items() if key in own}
        resolved = self._resolve(variant, {**fixed, **values})
        same = [
            cell
            for cell in self.cells.values()
            if replace(cell, variant=variant, config=resolved).identity == cell.identity
            and not set(cell.searched) & set(term.settings)
        ]
        if not same:
            got = ", ".join([term.variant, *(f"{key}={value}" for key, value in values.items())])
            own_cells = [c.name for c in self.cells.values() if c.name.split()[0] == term.variant]
            raise UsageError(
                f"({got}) is no cell of this study.{nearest(got.replace(', ', ' '), own_cells)} "
                f"There are: {', '.join(own_cells)}."
            )
        return max(same, key=lambda cell: len(cell.searched)).name


def _check_has(cell: Cell, term: Term) -> None:
    """Refuse a metric that no seed of a cell can have.

    Raises:
        UsageError: its recogniser has no density, no filter or no gates.
    """
    metrics = {term.metric, term.condition.metric if term.condition else term.metric}
    lacks = [(name, "density") for name in ("elbo", "iw", "kl") if not cell.variant.cls.has_density]
    if metrics & {"footprint_perplexity", "gate_perplexity"}:
        import torch

        from glas_bench import data
        from glas_bench.core import rollout
        from glas_bench.data.parse import PIXELS

        settings = config.check_settings(cell.variant, cell.config.settings)
        classes = data.info(cell.config.dataset).classes
        model = rollout.build(cell.variant.cls, settings, PIXELS, classes, seed=0)
        if not model.has_filter:
            lacks.append(("footprint_perplexity", "filter"))
        hidden = torch.zeros(1, model.settings.hidden)
        if not hasattr(model, "latent") or model.gate_weights(hidden) is None:
            lacks.append(("gate_perplexity", "gates"))
    for metric, part in lacks:
        if metric in metrics:
            raise UsageError(f"{cell.variant.name} has no {part}: no seed of it has {metric}")


def _no_setting(variant: Variant, key: str) -> str:
    own = keys_of(variant)
    has = ", ".join(sorted(own))
    return f"{variant.name} has no setting {key!r}.{config.meant(key, own)} It has: {has}."
