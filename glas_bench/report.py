"""A first report: what the MLflow record holds, as markdown tables; the same rows, the same bytes.

Numbers are nats per image on the test split, means over the seeds that finished. Rows that differ
in data, binarisation, precision, K or budget never share a table: each such group is a section
that says what it is. A cell without numbers stays, marked.

One page is made here from its rows to its footnotes, which is why the file is long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

BASELINE = "cauchy"
LOOKS = ("smoke", "quick")
"""Presets whose sections give no verdicts."""

PerImage = Mapping[tuple[str, int], "np.ndarray"]
"""Values of the ranked metric by (config_key, seed), nats [images]."""

KEYS = {
    "data": "tags.dataset",
    "contents": "tags.data_hash",
    "binarisation": "tags.binarisation",
    "precision": "params.precision",
    "K": "samples",
    "epochs": "params.epochs",
    "T": "params.steps",
    "H": "params.hidden",
    "B": "params.batch",
    "core": "tags.core_version",
    "look": "look",
}
"""What rows of one table have in common, and the column that says it."""

_NO_AXES = {"variant", "seed", "samples", "dataset", "binarisation", "precision"} | {
    column.removeprefix("params.") for column in KEYS.values()
}


@dataclass
class Cell:
    """A cell's seeds as the record has them."""

    variant: str
    key: str
    seeds: list[dict[str, Any]]
    common: tuple[str, ...]  # the values of KEYS
    params: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The seeds that ended with numbers."""
        return [seed for seed in self.seeds if seed["status"] == "complete"]

    def mean(self, metric: str) -> float | None:
        """Return the mean over finished seeds, if each of them has the number."""
        values = [_number(seed, f"metrics.{metric}") for seed in self.finished]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation over finished seeds, if there are two."""
        mean, count = self.mean(metric), len(self.finished)
        if mean is None or count < 2:
            return None
        squares = sum((seed[f"metrics.{metric}"] - mean) ** 2 for seed in self.finished)
        return math.sqrt(squares / (count - 1))

    def status(self, metric: str) -> str:
        """Return `finite`, `infinite` or `undefined`; the worst of the seeds'."""
        told = {_text(seed, f"tags.{metric}_status") for seed in self.finished}
        return next((word for word in ("infinite", "undefined") if word in told), "finite")

    def says(self, tag: str) -> str:
        """Return a tag that all seeds share."""
        return _text(self.seeds[0], f"tags.{tag}")


class _Notes:
    """The footnotes of a section, numbered as they come up."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a note."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.prefix}-{self.texts.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        for number, text in enumerate(self.texts, 1):
            yield f"[^{self.prefix}-{number}]: {text}"


# --------------------------------------------------------------------------- page


def write(
    results: Path,
    out: Path,
    experiments: Sequence[str] | None = None,
    *,
    tell: Callable[[str], None] = lambda message: None,
    debug: bool = False,
) -> Path:
    """Sync the results folder, then write `<out>/README.md` from the record; return its path.

    Args:
        results: the results folder.
        out: where the page goes.
        experiments: of the MLflow store; that of `addresses.experiment_name` unless given.
        tell: called with each thing that the page has to go without: a folder that could not be
            mirrored, a run that was left out.
        debug: let mlflow's own messages through.

    Raises:
        RunError: the store cannot be read, or the page cannot be written.
        UsageError: no such experiment.
    """
    from glas_bench.record import write_atomically
    from glas_bench.tracking import store
    from glas_bench.tracking.sync import sync_all

    frame = store.read_runs(results, experiments, debug=debug)
    synced = sync_all(results, known=set(frame.attrs["known"]), debug=debug)
    if synced.changed:
        frame = store.read_runs(results, experiments, debug=debug)
    missing = [f"{Path(folder).name}: {message}" for folder, message in synced.failures]
    for message in (*missing, *frame.attrs["left_out"]):
        tell(message)
    done = [row for row in _rows(frame) if row["status"] == "complete"]
    values = store.per_image(done, results, ("iw", "nll"), debug=debug)
    parts = [head(frame), table(frame, values)]
    if frame.attrs["left_out"]:
        parts.append("Left out:\n\n" + "".join(f"- {text}\n" for text in frame.attrs["left_out"]))
    if missing:
        parts.append("Not mirrored, so not here:\n\n" + "".join(f"- {text}\n" for text in missing))
    page = out / "README.md"
    try:
        write_atomically(page, lambda file: file.write("\n".join(parts).encode()))
    except OSError as error:
        raise RunError(f"cannot write {page}: {error.strerror}") from error
    return page


def head(frame: pd.DataFrame) -> str:
    """Return the title with what the numbers are, the newest run's date, commits and devices."""
    rows = _rows(frame)
    lines = ["# glas-bench report", ""]
    if not rows:
        return "\n".join([*lines, "No runs yet: `glas-bench run --variant hellinger`.", ""])
    newest = max(_number(row, "end") or _number(row, "start") or 0.0 for row in rows)
    date = datetime.fromtimestamp(newest / 1000, UTC).date().isoformat()
    commits = {
        _text(row, "tags.git_commit")[:12]
        + (" with uncommitted changes" if _text(row, "tags.git_dirty") == "true" else "")
        for row in rows
        if _text(row, "tags.git_commit")
    }
    lines += [
        "Nats per image on the test split, lower is better, of the last epoch's parameters: means "
        "over finished seeds, ± their standard deviation.",
        "",
        f"- newest run: {date}",
        f"- commit: {', '.join(sorted(commits)) or 'unknown'}",
        f"- device: {_all(rows, 'tags.device')}",
        f"- data from: {_all(rows, 'tags.data_origin')}",
        "",
    ]
    return "\n".join(lines)


def _all(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return ", ".join(sorted({_text(row, name) for row in rows} - {""})) or "unknown"


# --------------------------------------------------------------------------- tables


def table(frame: pd.DataFrame, per_image: Mapping[str, PerImage] | None = None) -> str:
    """Return the sections of `store.read_runs`' rows, one table each.

    Args:
        frame: one row a seed.
        per_image: by metric, what the differences from the baseline are paired by.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells(frame):
        groups.setdefault(cell.common, []).append(cell)
    text = []
    if len(groups) > 1:
        text += [
            f"{len(groups)} tables: rows that differ in {_differing(list(groups))} are not "
            "comparable and never share one.",
            "",
        ]
    for number, common in enumerate(sorted(groups, key=lambda c: tuple(map(_order, c))), 1):
        text += _section(number, dict(zip(KEYS, common, strict=True)), groups[common], per_image)
    return "\n".join(text)


def cells(frame: pd.DataFrame) -> list[Cell]:
    """Return the cells of a frame, sorted; a seed that two experiments hold counts once."""
    seeds: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in sorted(_rows(frame), key=lambda row: (_number(row, "start") or 0, row["run_id"])):
        row["samples"] = _samples(row)
        row["look"] = "look" if _text(row, "tags.preset") in LOOKS else ""
        seeds.setdefault((row["variant"], row["config_key"]), {})[int(row["seed"])] = row
    found = []
    for (variant, key), by_seed in sorted(seeds.items()):
        rows = [by_seed[seed] for seed in sorted(by_seed)]
        for common in sorted({_common(row) for row in rows}):
            same = [row for row in rows if _common(row) == common]
            params = {
                name.removeprefix("params."): str(value)
                for name, value in sorted(same[0].items())
                if name.startswith("params.") and _is_there(value)
            }
            found.append(Cell(variant, key, same, common, params))
    return found


def _section(
    number: int, common: dict[str, str], group: list[Cell], per_image: Mapping[str, PerImage] | None
) -> list[str]:
    notes = _Notes(str(number))
    finite = [cell for cell in group if cell.mean("iw") is not None]
    metric = "nll" if finite and all(cell.mean("nll") is not None for cell in finite) else "iw"
    differ = _axes(group)
    order = sorted(group, key=lambda cell: (_last(cell.mean(metric)), cell.variant, cell.key))
    title = f"## {number}. {common['data']}, {common['binarisation']} binarisation"
    lines = [title + (": a look at the harness, no verdicts" if common["look"] else ""), ""]
    shown = [f"{name} = {common[name] or 'none'}" for name in ("K", "epochs", "T", "H", "B")]
    lines += [f"{common['precision']}, {', '.join(shown)}.", ""]
    ranked = f"{metric} (K = {common['K']})" if metric == "iw" else metric
    columns = ["#", "variant", ranked, f"minus {BASELINE} [95 %]", "elbo", "v", "objective"]
    lines += ["| " + " | ".join([*columns, "seeds", "seconds"]) + " |"]
    lines += ["|" + "---|" * (len(columns) + 2)]
    values = (per_image or {}).get(metric, {})
    for place, cell in enumerate(order, 1):
        rank = str(place) if cell.mean(metric) is not None else ""
        row = [rank, *_row(cell, metric, differ, notes)]
        row.insert(3, _difference(cell, _baseline(cell, group), values, notes))
        lines.append("| " + " | ".join(row) + " |")
    return [*lines, "", *notes.lines(), ""]


def _row(cell: Cell, metric: str, differ: Sequence[str], notes: _Notes) -> list[str]:
    """Return a row without its rank and difference."""
    settings = ", ".join(f"{name} = {cell.params[name]}" for name in differ if name in cell.params)
    return [
        f"`{cell.variant}`" + (f" ({settings})" if settings else ""),
        _ranked(cell, metric, notes),
        _estimate(cell, "elbo", notes),
        _v(cell),
        _objective(cell, notes),
        _seeds(cell, notes),
        _plain(cell.mean("seconds"), 0),
    ]


def _ranked(cell: Cell, metric: str, notes: _Notes) -> str:
    text = _estimate(cell, metric, notes)
    if cell.mean(metric) is None:
        return text
    tag = "tags.nll_bound_only" if metric == "nll" else "tags.bound_only"
    if any(_text(seed, tag) == "true" for seed in cell.finished):
        text += notes.mark(
            "a bound only: the log weights of over 5 % of the images have a variance above 10"
        )
    return f"**{text}**"


def _estimate(cell: Cell, metric: str, notes: _Notes) -> str:
    """Return mean and spread, or the footnoted reason for their absence."""
    mean, spread, status = cell.mean(metric), cell.spread(metric), cell.status(metric)
    if not cell.finished:
        return "–"
    if status == "infinite":
        return "∞" + notes.mark(
            f"infinite {metric}: the recogniser leaves the prior's support, where p(z) = 0"
        )
    if status == "undefined" and mean is None:
        return "undefined" + notes.mark(f"undefined {metric}: the recogniser has no density")
    return _plain(mean) + (f" ± {spread:.2f}" if spread is not None else "")


def _v(cell: Cell) -> str:
    share = cell.mean("v_over_10_share")
    wide = f" ({100 * share:.0f} % over 10)" if share else ""
    return _plain(cell.mean("v_mean")) + wide


def _objective(cell: Cell, notes: _Notes) -> str:
    """Return what was optimised, struck through where it says nothing of the likelihood."""
    text = _plain(cell.mean("objective"))
    if text == "–" or cell.says("bounds_nll") == "yes":
        return text
    reason = cell.says("bound_reason").rstrip(".")
    why = f": {reason}" if reason else ""
    word = "does not bound" if cell.says("bounds_nll") == "no" else "is not shown to bound"
    return f"~~{text}~~" + notes.mark(
        f"the objective of `{cell.variant}` {word} the negative log-likelihood{why}"
    )


def _seeds(cell: Cell, notes: _Notes) -> str:
    """Return n of N with every other status, each footnoted with its reason."""
    text = f"{len(cell.finished)} of {len(cell.seeds)}"
    others = [seed for seed in cell.seeds if seed["status"] != "complete"]
    for status in sorted({str(seed["status"]) for seed in others}):
        these = [seed for seed in others if seed["status"] == status]
        text += f", {len(these)} {status}"
        for seed in these:
            step = _text(seed, "tags.diverged_step")
            reason = " ".join(_text(seed, "tags.reason").split())
            why = ", ".join(part for part in (f"step {step}" if step else "", reason) if part)
            if why:
                text += notes.mark(f"`{cell.variant}`, seed {int(seed['seed'])}: {status}, {why}")
    return text


# --------------------------------------------------------------------------- differences


def _baseline(cell: Cell, group: Sequence[Cell]) -> Cell | None:
    """Return the baseline cell that agrees with this one in most settings; none for its like."""
    if cell.variant == BASELINE:
        return None
    candidates = [other for other in group if other.variant == BASELINE]

    def disagreements(other: Cell) -> tuple[int, str]:
        shared = set(other.params) & set(cell.params) - {"variant", "seed"}
        return sum(other.params[name] != cell.params[name] for name in shared), other.key

    return min(candidates, key=disagreements, default=None)


def _difference(cell: Cell, baseline: Cell | None, values: PerImage, notes: _Notes) -> str:
    import numpy as np

    from glas_bench.stats import paired_difference

    if baseline is None:
        return "baseline" if cell.variant == BASELINE else "–"
    ours, theirs = (
        {int(seed["seed"]) for seed in each.finished if (each.key, int(seed["seed"])) in values}
        for each in (cell, baseline)
    )
    both = sorted(ours & theirs)
    arms = [[values[each.key, seed] for seed in both] for each in (cell, baseline)]
    if not both or not all(np.isfinite(row).all() for arm in arms for row in arm):
        return "–"
    if len({row.shape for arm in arms for row in arm}) > 1:
        return "–"
    result = paired_difference(np.stack(arms[0]), np.stack(arms[1]))
    estimate, low, high, p = result
    mark = notes.mark(f"paired by image and seed; {result.label}")
    return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.2g}{mark}"


# --------------------------------------------------------------------------- small parts


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _common(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_text(row, column) for column in KEYS.values())


def _samples(row: Mapping[str, Any]) -> str:
    """Return the K that a row was scored with, else the one that it was meant to be."""
    scored = _number(row, "metrics.samples")
    return _text(row, "params.samples") if scored is None else str(int(scored))


def _axes(group: Sequence[Cell]) -> list[str]:
    """Return the parameters in which the rows of a table differ."""
    names = sorted({name for cell in group for name in cell.params} - _NO_AXES)
    return [
        name
        for name in names
        if len({cell.params[name] for cell in group if name in cell.params}) > 1
    ]


def _differing(groups: Sequence[tuple[str, ...]]) -> str:
    names = {"contents": "the data's contents", "core": "version of the core", "look": "preset"}
    return ", ".join(
        names.get(name, name)
        for name, values in zip(KEYS, zip(*groups, strict=True), strict=True)
        if len(set(values)) > 1
    )


def _order(text: str) -> tuple[float, str]:
    """Return what sorts numbers as numbers."""
    return (float(text), "") if text.isdecimal() else (-1.0, text)


def _last(value: float | None) -> float:
    return math.inf if value is None else value


def _plain(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return str(value) if _is_there(value) else ""


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if value is not None and _is_there(value) else None
