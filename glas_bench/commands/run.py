"""What `run` does, from names to numbers: resolve, refuse, train and score, mirror, compare."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench import config, data, display, environment, registry, signals
from glas_bench.config import RunConfig
from glas_bench.core import train
from glas_bench.errors import UsageError
from glas_bench.registry import Variant
from glas_bench.runs import cells, outcome, worker
from glas_bench.runs.cells import Cell
from glas_bench.tracking.mirror import Mirror

if TYPE_CHECKING:
    from glas_bench.data import Splits

PATIENCE = 120.0
"""Seconds that a finished run waits for its record to be mirrored."""

PATIENCE_WHEN_STOPPED = 10.0
"""The same after SIGTERM or Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for."""

    variant: str
    baseline: str | None
    data_file: Path | None
    preset: str | None
    seeds: list[int]
    overrides: dict[str, Any]  # of `--set`, and of the options that say a setting
    device: str
    fresh: bool
    mirror: bool
    results: Path


@dataclass(frozen=True)
class Answer:
    """What came of it: the variant's rows first, the baseline's after them if there is one."""

    documents: list[dict[str, Any]]
    difference: dict[str, Any] | None
    mirror_problem: str | None

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document that `--json` prints."""
        whole = dict(self.documents[0])
        if len(self.documents) == 2:
            whole |= {"baseline": self.documents[1], "difference": self.difference}
        return {**whole, "mirror_problem": self.mirror_problem}

    @property
    def text(self) -> str:
        """The table, with where the record lies."""
        records = [f"record: {doc['folder']}" for doc in self.documents]
        return "\n".join([outcome.text(self.documents, self.difference), *records])

    @property
    def exit_code(self) -> int:
        """0 complete, 1 nothing is, 3 something failed or is not mirrored, or the signal's own."""
        if signals.requested():
            return signals.exit_code()
        done = [row["status"] == "complete" for doc in self.documents for row in doc["seeds"]]
        if not any(done):
            return 1
        return 0 if all(done) and not self.mirror_problem else 3


def carry_out(request: Request) -> Answer:
    """Run what is missing of a variant, and of its baseline beside it.

    Raises:
        UsageError: something of the request cannot be used; nothing was trained.
        DataError: the data cannot be had.
        RunError: a folder is locked, or cannot be written.
    """
    worker.checkpoint_seconds()  # refused now rather than by every seed
    variants = _variants(request)
    device = environment.choose_device(request.device)
    configs = [_resolve(variant, variants[0], request, device) for variant in variants]
    for variant, resolved in zip(variants, configs, strict=True):
        train.check_applicable(variant, resolved)
        environment.check_precision(resolved.precision, device)
    cells.check_results(request.results)
    first = configs[0]
    splits = data.load(first.dataset, first.binarisation, request.data_file, progress=True)
    planned = [
        cells.make_cell(variant, resolved, splits, request.results)
        for variant, resolved in zip(variants, configs, strict=True)
    ]
    outcomes, problem = _run_watched(planned, splits, device, request)
    documents = [outcome.document(cell, request.seeds, outcomes) for cell in planned]
    difference = None
    if len(planned) == 2:
        difference = outcome.differences(planned[0], planned[1], request.seeds)
    return Answer(documents, difference, problem)


def _variants(request: Request) -> list[Variant]:
    found = [registry.find(name) for name in (request.variant, request.baseline) if name]
    if len(found) == 2 and found[0].source_hash == found[1].source_hash:
        raise UsageError(f"--baseline {request.baseline}: it is the variant itself")
    return found


def _resolve(variant: Variant, first: Variant, request: Request, device: str) -> RunConfig:
    """Resolve a config; a baseline takes those overrides that it has a setting for."""
    overrides = {"precision": environment.default_precision(device), **request.overrides}
    if variant is not first:
        own = set(variant.cls.Settings.model_fields) | set(RunConfig.model_fields)
        overrides = {key: value for key, value in overrides.items() if key in own}
    return config.resolve(variant, preset=request.preset, overrides=overrides)


def _run_watched(
    planned: list[Cell], splits: Splits, device: str, request: Request
) -> tuple[dict[Any, Any], str | None]:
    """Run the cells with a display and a mirror; return outcomes and the mirror's problem."""
    with contextlib.ExitStack() as stack:
        mirror = None
        if request.mirror:
            folders = [cell.folder.path for cell in planned]
            mirror = stack.enter_context(Mirror(request.results, folders))
        with display.make_display() as shown:

            def watch(cell: Cell, seed: int, event: dict[str, Any]) -> None:
                shown.show(f"{cell.variant.name} seed {seed}", event)

            outcomes = cells.run_cells(
                [(cell, request.seeds) for cell in planned],
                splits,
                device=device,
                preset=request.preset or config.DEFAULT_PRESET,
                data_file=request.data_file,
                fresh=request.fresh,
                watch=watch,
            )
        if mirror is None:
            return outcomes, None
        report = mirror.finish(PATIENCE_WHEN_STOPPED if signals.requested() else PATIENCE)
    problems = [message for _, message in report.failures]
    return outcomes, problems[0] if problems else None
