"""Names that a shell completes: variants, presets, studies, data sets, runs and settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Names = Callable[[click.Context], Iterable[str]]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _of(names: Names) -> Complete:
    """Return a completion by names, or by paths where a path was begun."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        del param
        if incomplete.startswith((".", "/", "~")):
            return [CompletionItem(incomplete, type="file")]
        fits = [name for name in names(ctx) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in fits]

    return complete


def _variants(ctx: click.Context) -> Iterable[str]:
    from glas_bench import registry

    return registry.names()


def _presets(ctx: click.Context) -> Iterable[str]:
    from glas_bench.config import PRESETS

    return PRESETS


def _studies(ctx: click.Context) -> Iterable[str]:
    from glas_bench import study

    return study.shipped()


def _datasets(ctx: click.Context) -> Iterable[str]:
    from glas_bench.data import DATASETS

    return DATASETS


def _runs(ctx: click.Context) -> Iterable[str]:
    from glas_bench.record import find_runs

    folder = os.environ.get("GLAS_BENCH_RESULTS", "results/local")
    return [path.name for path in find_runs(Path(ctx.params.get("results") or folder))]


def _settings(ctx: click.Context) -> Iterable[str]:
    from glas_bench import registry
    from glas_bench.config import RunConfig

    fields = set(RunConfig.model_fields) - {"variant", "settings"}
    if variant := ctx.params.get("variant"):
        fields |= set(registry.find(variant).cls.Settings.model_fields)
    return sorted(f"{name}=" for name in fields)


variants, presets, studies = _of(_variants), _of(_presets), _of(_studies)
datasets, runs, settings = _of(_datasets), _of(_runs), _of(_settings)
