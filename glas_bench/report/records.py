"""One row a seed, from the records of runs and the plan of a page.

Every planned seed has a row, whether it has a run or not. Values are text, empty where there is
none; numbers are written so that reading gives the same number.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from glas_bench import decide, evaluate, registry
from glas_bench.config import (
    CORE_VERSION,
    NO_VERDICTS,
    SCORING,
    RunConfig,
    config_key,
    protocol_key,
)
from glas_bench.data import DATASETS
from glas_bench.errors import GlasBenchError
from glas_bench.record import RunRecord, SeedRecord
from glas_bench.registry import Variant
from glas_bench.report.plans import Plan
from glas_bench.report.table import Row
from glas_bench.runs.cost import updates
from glas_bench.study import Cell, Study
from glas_bench.text import count, plain, seed_ranges, setting

if TYPE_CHECKING:
    import numpy as np

SCHEMA = "2"
"""Version of the csv's columns."""

_SIZES = frozenset({"steps", "hidden"})
"""Settings that are budget: another value makes no other variant."""

_TRAINING = ("batch", "learning_rate", "decay_epochs", "schedule", "warmup_steps")
"""Settings of every run that the published one fixes; epochs belong to the budget."""

_ABOUT = ("data_origin", "data_hash", "source_hash", "core_version", "bound_reason")
_WORDS = (
    *("protocol_key", "protocol", "elbo_status", "iw_status", "refit_iw_status", "nll_from"),
    *("nll_bound_only", "bound_only", "failed", "failed_reason", "kl_status", "kl_from"),
    *("ais_status", "ais_protocol_key"),
)
"""Columns of scores that are no numbers."""

_BOUNDS = {True: "yes", False: "no", None: "not shown"}


@dataclass(frozen=True)
class Run:
    """A seed that was run, with the scoring that is reported of it."""

    record: RunRecord
    seed: SeedRecord

    @property
    def key(self) -> tuple[str, int]:
        """Its config_key and seed."""
        return self.record.config_key, self.seed.seed

    @property
    def variant(self) -> str:
        """Name of its variant."""
        return self.record.config.variant

    @property
    def data(self) -> tuple[str, str]:
        """Name and hash of its data."""
        return self.record.config.dataset, plain(self.record.about.get("data_hash"))


def runs_of(records: Sequence[RunRecord]) -> list[Run]:
    """Return the seeds of records, each once: the complete one of two, else the later one."""
    every = [Run(record, seed) for record in records for seed in record.seeds.values()]
    every.sort(key=lambda run: (run.seed.status == "complete", run.seed.began), reverse=True)
    runs: dict[tuple[str, str, int], Run] = {}
    for run in every:
        runs.setdefault((run.variant, *run.key), run)
    return [runs[key] for key in sorted(runs)]


def per_image(
    rows: Sequence[Row], seeds: Mapping[tuple[str, int], SeedRecord], metrics: Sequence[str]
) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """Return, by metric and (config_key, seed), the values of the images, nats [images].

    They are of the scoring that a row reports, and of seeds of its cell that the page does not
    plan, by the same protocol. A seed without a value is left out.
    """
    values: dict[str, dict[tuple[str, int], np.ndarray]] = {m: {} for m in metrics}
    own = {(row.get("config_key", ""), int(row["seed"])): row.get("protocol_key") for row in rows}
    of_cell = {key: protocol for (key, _), protocol in own.items() if protocol}
    for key, record in seeds.items():
        protocol = own.get(key) or of_cell.get(key[0])
        with contextlib.suppress(Exception):  # a broken file: the page goes without a difference
            stored = record.per_image(protocol) if protocol else {}
            for metric, by_seed in values.items():
                if metric in stored:
                    by_seed[key] = stored[metric]
    return values


def variants_of(plan: Plan, runs: Sequence[Run]) -> dict[str, Variant]:
    """Return the variants of a page by name, without those whose file is not to be found."""
    if plan.study is not None:
        return {cell.variant.name: cell.variant for cell in plan.study.cells}
    variants = {}
    for name in {run.variant for run in runs}:
        with contextlib.suppress(GlasBenchError):  # a file of the user's own, elsewhere
            variants[name] = registry.find(name)
    return variants


def rows_of(plan: Plan, runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Return the rows of a page, and remarks on runs that are in no row."""
    if plan.study is None:
        rows, remarks = list(_by_hand(plan, runs)), []
    else:
        rows = list(_planned(plan, plan.study, runs))
        remarks = list(_left_out(plan, plan.study, rows, runs))
    return rows, remarks + list(_other_protocols(rows, runs))


def _other_protocols(rows: Sequence[Row], runs: Sequence[Run]) -> Iterator[str]:
    """Yield which runs of the rows have scores by other protocols too, which no row shows."""
    shown = {(row.get("config_key"), row["seed"]): row.get("protocol_key") for row in rows}
    others: dict[str, set[str]] = {}
    for run in runs:
        row = shown.get((run.key[0], str(run.seed.seed)))
        for key, scores in run.seed.scores.items():
            if row and key != row and key != run.seed.ais[0] and "samples" in scores:
                about = f"K = {scores['samples']}, {count(scores.get('images', 0), 'image')}"
                others.setdefault(about, set()).add(run.record.path.name)
    for about, names in sorted(others.items()):
        yield (
            f"scored with {about} too, which no table here shows: {', '.join(sorted(names))}; "
            "`glas-bench evaluate RUN` with these `-K` and `--images` prints those scores"
        )


def _planned(plan: Plan, study: Study, runs: Sequence[Run]) -> Iterator[Row]:
    """Yield a row for every planned seed, and for every data that a cell was run on."""
    skipped = [
        {"variant": each.variant, "axis": each.axis, "params": each.params, "why": each.reason}
        for each in study.skipped
    ]
    constant = {
        "schema": SCHEMA,
        "study": study.name,
        "question": study.question,
        "command": plan.command,
        "study_version": str(study.version),
        "preset": study.preset,
        "verdicts": "yes" if study.verdicts else "no",
        "look": _look(study.preset),  # whatever preset a run was made under
        "seeds": seed_ranges(study.seeds),
        "skipped": json.dumps(skipped, default=str),
        "axes": json.dumps(_axes(study)),
    }
    baselines = {cell.baseline for cell in study.cells}
    looks = decide.seeds_at(study, study.looks[-1]) if study.claims else []
    tuned = f"{count(study.trials, 'trial')} on seeds {seed_ranges(study.tuning_seeds)}"
    for cell in study.cells:
        about = constant | {
            "cell": cell.name,
            "variant": cell.variant.name,
            "settings": json.dumps({key: setting(value) for key, value in cell.params.items()}),
            "baseline": cell.baseline or "",
            "is_baseline": "yes" if cell.name in baselines else "",
            "tuned": f"{', '.join(cell.searched)}: {tuned}" if cell.searched else "",
        }
        for by_seed in _places(study, cell, runs) or [{}]:
            for seed in sorted({*study.seeds, *(by_seed.keys() & set(looks))}):
                run = by_seed.get(seed)
                row = _waiting(cell) if run is None else _row(run, cell.protocol)
                row |= about | {"seed": str(seed)}
                yield row | _described(cell.variant, row, searched=bool(cell.searched))


def _waiting(cell: Cell) -> Row:
    """Return what is known of a cell without a run."""
    return {
        **{f"params.{key}": plain(value) for key, value in cell.config.flat().items()},
        "samples": plain(cell.config.samples),
        "dataset": cell.config.dataset,
        "binarisation": cell.config.binarisation,
        "core_version": plain(CORE_VERSION),
        "source_hash": cell.variant.source_hash,
        "status": "not_applicable" if cell.not_applicable else "waiting",
        "reason": cell.not_applicable or "",
    }


def _places(study: Study, cell: Cell, runs: Sequence[Run]) -> list[dict[int, Run]]:
    """Return a planned cell's runs by seed, once for each data that it was run on."""
    places = []
    for data in sorted({run.data for run in runs if run.data[0] == cell.config.dataset}):
        key: str | None = config_key(cell.config, cell.variant.source_hash, data[1])
        if cell.searched:
            key = _best_key(study, cell, [run for run in runs if run.data == data])
        by_seed = {run.seed.seed: run for run in runs if run.key[0] == key}
        if set(by_seed) & set(study.seeds):
            places.append(by_seed)
    return places


def _best_key(study: Study, cell: Cell, runs: Sequence[Run]) -> str | None:
    """Return the key of the newest run of a search's best values, on the reporting seeds."""
    left_out = {*cell.searched, *SCORING}
    wanted = {key: value for key, value in cell.config.flat().items() if key not in left_out}
    fits = [
        run
        for run in runs
        if run.variant == cell.variant.name
        and run.record.about.get("source_hash") == cell.variant.source_hash
        and run.seed.seed in study.seeds
        and wanted.items() <= run.record.config.flat().items()
    ]
    newest = max(fits, key=lambda run: (run.seed.began, run.key[0]), default=None)
    return newest.key[0] if newest is not None else None


def _left_out(plan: Plan, study: Study, rows: Sequence[Row], runs: Sequence[Run]) -> Iterator[str]:
    """Yield how many runs no planned seed asks for, and why they are left out."""
    taken = {(row.get("config_key"), row["seed"]) for row in rows}
    rest = [run for run in runs if (run.key[0], str(run.key[1])) not in taken]
    tuning = [run for run in rest if run.seed.seed in study.tuning_seeds]
    if tuning:
        yield f"{count(len(tuning), 'run')} of the search not reported: they chose the settings"
    variants = variants_of(plan, ())
    why = Counter(_why(study, variants, run) for run in rest if run not in tuning)
    for reason, number in sorted(why.items()):
        yield f"{count(number, 'run')} {'is' if number == 1 else 'are'} left out: {reason}"


def _why(study: Study, variants: Mapping[str, Variant], run: Run) -> str:
    about = run.record.about
    if run.variant not in variants:
        return f"the study has no variant {run.variant}"
    if (core := plain(about.get("core_version"))) != str(CORE_VERSION):
        return f"made by version {core} of the training core"
    if about.get("source_hash") != variants[run.variant].source_hash:
        return f"the file of {run.variant} has changed since"
    if run.seed.seed not in study.seeds:
        return f"seed {run.seed.seed} is not planned"
    return f"the study plans no such cell of {run.variant}"


def _axes(study: Study) -> list[str]:
    """Return the axes whose numbers the study goes through, e.g. `filter_size`."""
    values: dict[str, set[Any]] = {}
    for cell in study.cells:
        for key, value in cell.params.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(key, set()).add(value)
    return sorted(key for key, some in values.items() if len(some) > 1)


def _by_hand(plan: Plan, runs: Sequence[Run]) -> Iterator[Row]:
    axes = _differing(runs)
    variants = variants_of(plan, runs)
    for run in sorted(runs, key=_by_settings):
        flat = run.record.config.flat()
        row = {
            **_row(run, protocol_key(evaluate.protocol(run.record.config))),
            "schema": SCHEMA,
            "study": plan.name,
            "cell": f"{run.variant} {run.key[0]}",
            "settings": json.dumps({key: plain(flat[key]) for key in axes if key in flat}),
            "verdicts": "no",
        }
        if (variant := variants.get(run.variant)) is not None:
            row |= {"is_baseline": "yes" if variant.cls.is_control else ""}
            row |= _described(variant, row)
        yield row


def _by_settings(run: Run) -> tuple[str, list[tuple[str, str]], str, int]:
    """Return what sorts runs by what they are: a key's hash changes with the code."""
    settings = [(name, plain(value)) for name, value in sorted(run.record.config.flat().items())]
    return run.variant, settings, *run.key


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings, sizes aside, in which runs of one variant and data differ."""
    no_axes = {"variant", "seed", "dataset", "binarisation", "precision", "threads"}
    no_axes |= {"epochs", "batch", *_SIZES, *SCORING}
    values: dict[tuple[str, str, str], set[str]] = {}
    for run in runs:
        for name, value in run.record.config.flat().items():
            if name not in no_axes:
                values.setdefault((run.variant, run.data[0], name), set()).add(plain(value))
    return sorted({name for (_, _, name), some in values.items() if len(some) > 1})


def _row(run: Run, wanted: str = "") -> Row:
    """Return what the record of a run holds, as text; scores by `wanted` come before others."""
    record, seed = run.record, run.seed
    config, about = record.config, record.about
    protocol = record.protocol_of(seed.seed, wanted)
    words = seed.words(protocol)
    environment = seed.environment or record.environment
    git = environment.get("git") or {}
    is_published = (
        about.get("data_origin") in (None, "", "published") and config.dataset in DATASETS
    )
    row = {f"params.{key}": plain(value) for key, value in config.flat().items()}
    row |= {name: plain(about.get(name)) for name in _ABOUT}
    row |= {name: plain(words[name]) for name in _WORDS}
    row |= _numbers(seed, protocol)
    row |= {
        "variant": run.variant,
        "config_key": run.key[0],
        "seed": str(seed.seed),
        "params.seed": str(seed.seed),
        "status": seed.status,
        "reason": " ".join(plain(seed.about.get("reason")).split()),
        "diverged_step": plain(seed.about.get("step")) if seed.status == "diverged" else "",
        "dataset": config.dataset,
        "binarisation": config.binarisation,
        "bounds_nll": _BOUNDS[about.get("bounds_nll")],
        "samples": _whole(row.get("samples")) or plain(config.samples),
        "images": _whole(row.get("images")),
        "commit": plain(git.get("commit"))[:12],
        "dirty": "yes" if git.get("dirty") else "",
        "device": plain(environment.get("device")),
        "read_from": plain(seed.about.get("read_from")),
        "ended": _day(seed),
        "look": _look(plain(about.get("preset"))),
        "updates": str(updates(config)) if is_published else "",
    }
    return row


def _numbers(seed: SeedRecord, protocol: str | None) -> Row:
    """Return the final numbers of a seed; of a sweep over K, the one of the largest K."""
    numbers = sorted(seed.numbers(protocol), key=lambda number: number.weights or 0)
    row = {number.name: repr(number.value) for number in numbers if "/" not in number.name}
    if protocol is None:
        row = {name: text for name, text in row.items() if name == "seconds"}
    last: Mapping[str, Any] = seed.metrics[-1] if seed.metrics else seed.about
    if speed := last.get("images_per_second"):
        row["images_per_second"] = repr(float(speed))
    return row


def _described(variant: Variant, row: Row, *, searched: bool = False) -> Row:
    """Return what the class of a variant adds to a row: published numbers, and what it charges.

    A row is as published where each of its variant's own settings, sizes aside, is the default or
    that of a published number; `departs` has what else that number's setting has otherwise.
    """
    fields = variant.cls.Settings.model_fields
    own = {key: plain(each.default) for key, each in fields.items() if key not in _SIZES}
    fixed = {key: plain(RunConfig.model_fields[key].default) for key in _TRAINING}
    if row["dataset"] == "omniglot":
        fixed["decay_epochs"] = "100"
    if "hidden" in fields:
        fixed["hidden"] = plain(fields["hidden"].default)
    published = []
    for number in map(asdict, variant.citations):
        there = {**own, **number.pop("settings")}
        values = {key: row.get(f"params.{key}", "") for key in there}
        if searched or any(value not in (own[key], there[key]) for key, value in values.items()):
            continue
        wanted = there | fixed
        number["departs"] = {k: v for k, v in wanted.items() if row.get(f"params.{k}", "") != v}
        published.append(number)
    is_own = all(row.get(f"params.{key}", "") == value for key, value in own.items())
    return {
        "published": json.dumps(published),
        "as_published": "yes" if published or (is_own and not searched) else "",
        "least_kl_per_charge": plain(variant.cls.least_kl_per_charge),
    }


def _look(preset: str) -> str:
    return "look" if preset in NO_VERDICTS else ""


def _day(seed: SeedRecord) -> str:
    """Return the day on which a seed was last written; of one that is not over, began."""
    last = seed.began if seed.status in ("waiting", "training", "scoring") else seed.ended
    return datetime.fromtimestamp(last, UTC).date().isoformat()


def _whole(text: str | None) -> str:
    return str(int(float(text))) if text else ""
