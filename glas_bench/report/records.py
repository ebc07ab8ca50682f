"""One row a seed: MLflow's runs brought together with what was planned.

Every planned seed has a row, whether it has a run or not. Values are text, empty where there is
nothing: what is written to the csv is what everything else is made from.

The file is as long as a row is wide: every column is made here.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from glas_bench import registry
from glas_bench.config import CORE_VERSION, NO_VERDICTS, SCORING, RunConfig, config_key
from glas_bench.data import DATASETS
from glas_bench.errors import GlasBenchError
from glas_bench.registry import Variant
from glas_bench.report import published
from glas_bench.report.plans import Plan
from glas_bench.report.table import Row
from glas_bench.study import Cell, Study
from glas_bench.text import seed_ranges, setting

SCHEMA = "1"
"""Version of the csv's columns."""

Run = Mapping[str, Any]
"""A row of `tracking.store.read_runs`."""

BASELINE = "cauchy"
"""What runs by hand are compared with."""

_SIZES = frozenset({"steps", "hidden"})
"""Settings that are budget: another value makes no other variant."""

_TRAINING = ("batch", "learning_rate", "decay_epochs")
"""What every run has that the published setting fixes; epochs are told with the budget."""

_CLOCKS = ("metrics.time", "metrics.learning_rate")
"""What says nothing of a result."""

_TAGS = (
    *("dataset", "binarisation", "data_hash", "data_origin", "source_hash", "core_version"),
    *("protocol_key", "protocol", "bounds_nll", "bound_reason", "elbo_status", "iw_status"),
    *("refit_iw_status", "nll_from", "nll_bound_only", "bound_only", "failed", "failed_reason"),
    *(
        "kl_status",
        "kl_from",
        "ais_status",
        "ais_protocol_key",
        "reason",
        "diverged_step",
        "device",
    ),
)


def planned_rows(plan: Plan, runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Return a page's rows and what is to be said of runs that are on no row.

    Args:
        plan: of the page.
        runs: of its experiment.
    """
    if plan.study is None:
        return list(_by_hand(plan, runs)), []
    found = _Study(plan, plan.study, runs)
    return list(found.rows()), list(found.notes())


# --------------------------------------------------------------------------- a study


class _Study:
    """A study's planned seeds with the runs that are theirs."""

    def __init__(self, plan: Plan, study: Study, runs: Sequence[Run]) -> None:
        self.plan = plan
        self.study = study
        self.runs = runs
        self.taken: set[str] = set()
        self.baselines = {cell.baseline for cell in study.cells}
        self.by_key: dict[str, list[Run]] = {}
        for run in runs:
            self.by_key.setdefault(str(run["config_key"]), []).append(run)
        self.hashes = sorted(
            {(_text(run, "tags.dataset"), _text(run, "tags.data_hash")) for run in runs}
        )

    def rows(self) -> Iterator[Row]:
        """Yield a row for every planned seed, and for every data that a cell was run on."""
        constant = self._constant()
        for cell in self.study.cells:
            about = constant | self._about(cell)
            places = self._places(cell) or [{}]
            for place in places:
                for seed in self.study.seeds:
                    yield self._row(cell, about, place.get(seed), seed)

    def _row(self, cell: Cell, about: Row, run: Run | None, seed: int) -> Row:
        if run is not None:
            self.taken.add(str(run["run_id"]))
            row = {**_of_run(run), **about, "seed": str(seed)}
            return row | _beside_published(cell.variant, row, searched=bool(cell.searched))
        status = "not_applicable" if cell.not_applicable else "waiting"
        config = cell.config
        row = {
            **{f"params.{key}": _told(value) for key, value in config.flat().items()},
            "samples": _told(config.samples),
            "dataset": config.dataset,
            "binarisation": config.binarisation,
            "core_version": _told(CORE_VERSION),
            "source_hash": cell.variant.source_hash,
            **about,
            "seed": str(seed),
            "status": status,
            "reason": cell.not_applicable or "",
        }
        return row | _beside_published(cell.variant, row, searched=bool(cell.searched))

    def _places(self, cell: Cell) -> list[dict[int, Run]]:
        """Return a planned cell's runs by seed, once for each data that it was run on."""
        found = []
        for dataset, data_hash in self.hashes:
            if dataset != cell.config.dataset:
                continue
            if cell.searched:
                keyed = self._searched(cell, data_hash)
            else:
                key = config_key(cell.config, cell.variant.source_hash, data_hash)
                keyed = self.by_key.get(key, [])
            by_seed = {int(run["seed"]): run for run in keyed}
            if set(by_seed) & set(self.study.seeds):
                found.append(by_seed)
        return found

    def _searched(self, cell: Cell, data_hash: str) -> list[Run]:
        """Return the runs of a search's best values: on the reporting seeds, the newest of them."""
        wanted = {
            f"params.{key}": _told(value)
            for key, value in cell.config.flat().items()
            if key not in (*cell.searched, *SCORING)
        }
        fits = [
            run
            for run in self.runs
            if run["variant"] == cell.variant.name
            and _text(run, "tags.source_hash") == cell.variant.source_hash
            and _text(run, "tags.data_hash") == data_hash
            and int(run["seed"]) in self.study.seeds
            and all(_text(run, key) == value for key, value in wanted.items())
        ]
        newest = max(fits, key=lambda run: (run["start"], run["config_key"]), default=None)
        return [run for run in fits if newest and run["config_key"] == newest["config_key"]]

    def _constant(self) -> Row:
        study = self.study
        skipped = [
            {"variant": each.variant, "axis": each.axis, "params": each.params, "why": each.reason}
            for each in study.skipped
        ]
        return {
            "schema": SCHEMA,
            "study": study.name,
            "question": study.question,
            "command": self.plan.command,
            "study_version": str(study.version),
            "preset": study.preset,
            "verdicts": "yes" if study.verdicts else "no",
            "look": _look(study.preset),  # whatever preset a run was made under
            "seeds": seed_ranges(study.seeds),
            "skipped": json.dumps(skipped, default=str),
            "axes": json.dumps(_axes(study)),
        }

    def _about(self, cell: Cell) -> Row:
        tuned = ""
        if cell.searched:
            seeds = seed_ranges(self.study.tuning_seeds)
            axes = ", ".join(cell.searched)
            tuned = f"{axes}: {self.study.trials} trials on seeds {seeds}"
        return {
            "cell": cell.name,
            "variant": cell.variant.name,
            "settings": json.dumps({key: setting(value) for key, value in cell.params.items()}),
            "baseline": cell.baseline or "",
            "is_baseline": "yes" if cell.name in self.baselines else "",
            "tuned": tuned,
        }

    def notes(self) -> Iterator[str]:
        """Yield what is to be said of runs that no planned seed asks for."""
        rest = [run for run in self.runs if str(run["run_id"]) not in self.taken]
        tuning = [run for run in rest if int(run["seed"]) in self.study.tuning_seeds]
        if tuning:
            yield f"{len(tuning)} runs of the search are not reported: they chose the settings"
        sources = {cell.variant.name: cell.variant.source_hash for cell in self.study.cells}
        why = Counter(self._why(run, sources) for run in rest if run not in tuning)
        for reason, count in sorted(why.items()):
            yield f"{count} {'run is' if count == 1 else 'runs are'} left out: {reason}"

    def _why(self, run: Run, sources: Mapping[str, str]) -> str:
        variant = str(run["variant"])
        if variant not in sources:
            return f"the study has no variant {variant}"
        if _text(run, "tags.core_version") != str(CORE_VERSION):
            return f"made by version {_text(run, 'tags.core_version')} of the training core"
        if _text(run, "tags.source_hash") != sources[variant]:
            return f"the file of {variant} has changed since"
        if int(run["seed"]) not in self.study.seeds:
            return f"seed {run['seed']} is not planned"
        return f"the study plans no such cell of {variant}"


def _axes(study: Study) -> list[str]:
    """Return the axes whose numbers the study goes through, e.g. `filter_size`."""
    values: dict[str, set[Any]] = {}
    for cell in study.cells:
        for key, value in cell.params.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(key, set()).add(value)
    return sorted(key for key, found in values.items() if len(found) > 1)


# --------------------------------------------------------------------------- by hand


def _by_hand(plan: Plan, runs: Sequence[Run]) -> Iterator[Row]:
    """Yield the rows of runs that no study planned."""
    differ = _differing(runs)
    variants: dict[str, Variant | None] = {}
    for run in sorted(runs, key=_by_settings):
        name = str(run["variant"])
        if name not in variants:
            variants[name] = None
            with contextlib.suppress(GlasBenchError):  # a file of the user's own, elsewhere
                variants[name] = registry.find(name)
        settings = {
            key.removeprefix("params."): _text(run, key) for key in differ if _text(run, key)
        }
        row = {
            **_of_run(run),
            "schema": SCHEMA,
            "study": plan.name,
            "cell": f"{name} {run['config_key']}",
            "settings": json.dumps(settings),
            "is_baseline": "yes" if name == BASELINE else "",
            "verdicts": "no",
        }
        variant = variants[name]
        yield row | (_beside_published(variant, row) if variant is not None else {})


def _by_settings(run: Run) -> tuple[str, list[tuple[str, str]], str, int]:
    """Return what sorts runs by what they are: a key's hash changes with the code."""
    about = [(name, _text(run, name)) for name in sorted(run) if name.startswith("params.")]
    settings = [(name, text) for name, text in about if name != "params.seed"]
    return str(run["variant"]), settings, str(run["config_key"]), int(run["seed"])


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the parameters, sizes aside, that two runs of one variant and data have otherwise."""
    no_axes = {"variant", "seed", "dataset", "binarisation", "precision", "threads"}
    no_axes |= {"epochs", "batch", *_SIZES, *SCORING}
    values: dict[tuple[str, str, str], set[str]] = {}
    for run in runs:
        for name in run:
            if name.startswith("params.") and name.removeprefix("params.") not in no_axes:
                alike = str(run["variant"]), _text(run, "tags.dataset"), name
                values.setdefault(alike, set()).add(_text(run, name))
    return sorted({name for (_, _, name), found in values.items() if len(found) > 1})


# --------------------------------------------------------------------------- one run


def _of_run(run: Run) -> Row:
    """Return what a run itself says."""
    row = {name: _text(run, f"tags.{name}") for name in _TAGS}
    row |= {name: _text(run, name) for name in run if name.startswith("params.")}
    row |= {
        name.removeprefix("metrics."): _text(run, name)
        for name in run
        if name.startswith("metrics.") and "/" not in name and name not in _CLOCKS
    }
    row["variant"] = str(run["variant"])
    row["config_key"] = str(run["config_key"])
    row["seed"] = str(int(run["seed"]))
    row["status"] = str(run["status"])
    row["samples"] = _whole(row.get("samples")) or _text(run, "params.samples")
    row["images"] = _whole(row.get("images"))
    row["commit"] = _text(run, "tags.git_commit")[:12]
    row["dirty"] = "yes" if _text(run, "tags.git_dirty") == "true" else ""
    row["ended"] = _date(run)
    row["look"] = _look(_text(run, "tags.preset"))
    row["updates"] = _updates(row)
    row["reason"] = " ".join(row["reason"].split())
    return row


def _beside_published(variant: Variant, row: Row, *, searched: bool = False) -> Row:
    """Return the published numbers that a row may stand beside, and whether it is as published.

    It is where each of its variant's own settings, sizes aside, is the default, or what a number is
    of. What of that number's setting it does not have is told, for the page to say (`departs`).
    """
    fields = variant.cls.Settings.model_fields
    own = {key: _told(each.default) for key, each in fields.items() if key not in _SIZES}
    plain_run = {key: _told(RunConfig.model_fields[key].default) for key in _TRAINING}
    if row["dataset"] == "omniglot":
        plain_run["decay_epochs"] = "100"
    hidden = {"hidden": _told(fields["hidden"].default)} if "hidden" in fields else {}
    told = []
    for number in published.of_variant(variant.name, variant.cls.published):
        there = {**own, **number.pop("settings")}
        values = {key: row.get(f"params.{key}", "") for key in there}
        if searched or any(value not in (own[key], there[key]) for key, value in values.items()):
            continue
        wanted = {**there, **plain_run, **hidden}
        number["departs"] = {
            key: value for key, value in wanted.items() if row.get(f"params.{key}", "") != value
        }
        told.append(number)
    is_own = all(row.get(f"params.{key}", "") == value for key, value in own.items())
    return {
        "published": json.dumps(told),
        "as_published": "yes" if told or (is_own and not searched) else "",
    }


def _updates(row: Row) -> str:
    """Return the optimiser's steps of a run on published data."""
    info = DATASETS.get(row["dataset"])
    if info is None or row["data_origin"] not in ("", "published"):
        return ""
    try:
        return str(info.sizes[0] // int(row["params.batch"]) * int(row["params.epochs"]))
    except (KeyError, ValueError):
        return ""


def _look(preset: str) -> str:
    return "look" if preset in NO_VERDICTS else ""


def _date(run: Run) -> str:
    """Return when a run was last written, as a date: hours say nothing to a reader."""
    for name in ("end", "start"):
        if _text(run, name):
            return datetime.fromtimestamp(float(run[name]) / 1000, UTC).date().isoformat()
    return ""


def _told(value: Any) -> str:
    """Return a setting as `tracking.entries` writes it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _text(run: Run, name: str) -> str:
    """Return a value as text that gives the same number again; empty where there is none."""
    value = run.get(name)
    if value is None or value != value:
        return ""
    return repr(float(value)) if name.startswith("metrics.") else str(value)


def _whole(text: str | None) -> str:
    return str(int(float(text))) if text else ""
