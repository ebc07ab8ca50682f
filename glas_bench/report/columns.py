"""The tables of results on a page, and the markdown that its other tables are made of too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from glas_bench.report.table import NBSP, Row, Table, TableRow, draws_of, value_of
from glas_bench.stats import LOOSE, LOOSE_GAIN, ONE_SEED, different_draws
from glas_bench.text import count, duration, p_value

COLUMNS = (
    "elbo: the negative ELBO, one draw from the variant's own q; iw: the importance-weighted bound "
    "with draws from it, 10 where nll comes from refit_iw, else K; refit_iw: the same with K draws "
    "from a common q that was refitted to the frozen decoder; objective: what training minimised, "
    "struck through where it is not shown to bound; v: Var(log w) of the importance weights that "
    "{metric} comes from, mean over images, and the nats that all draws gained over half of them; "
    "failed: seeds with a validation recon not {failed}, or under 1 nat of KL."
)
FAILED = "20 nats better than the pixel-wise Bernoulli"
FAILED_TEXT = "8 nats better than the place-wise unigram"
"""What `likelihood` has as `gain` and `baseline`, without its torch."""

DIFFERENCES = (
    "Differences from a baseline are exploratory: no verdict rests on them. They are paired by "
    "image and by seed. Interval and p come from the two-way (seed x image) random-effects "
    "variance; with one seed, from images alone. Each interval is of one comparison; p is adjusted "
    "for the false discovery rate over all comparisons of that metric on the page (Benjamini and "
    "Hochberg 1995)."
)

DIMENSIONS = (
    "dimensions: seeds by their effective dimensions of E_q z (participation ratio, rounded)."
)

GAP = "gap: nll minus an objective that is not shown to bound, which hides at most this much."

STILL_GAINING = 0.1
"""Nats in the last tenth of a refit, as in `yardstick.refit`, which imports torch."""

RANKS = (
    "Rows are sorted by {metric}. rank: the possible ranks of a row, after all rows shown to be "
    "better and before all rows shown to be worse (paired difference, more than one seed, p < .05, "
    "not adjusted)."
)

NOT_WORSE = (
    " A row whose v is above {loose:g}, or whose weights gain more than {gain:g} nats over half of "
    "them, is not shown to be worse: its {metric} may lie far above -log p(x)."
)


class Notes:
    """The footnotes of a section, numbered in the order in which they are made."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a note."""
        text = " ".join(text.split())
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.prefix}-{self.texts.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        """Yield the notes themselves, each a paragraph."""
        for place, text in enumerate(self.texts, 1):
            yield f"[^{self.prefix}-{place}]: {text}"
            yield ""


def table(rows: Sequence[Mapping[str, str]], without: Collection[str] = ()) -> list[str]:
    """Return the lines of a markdown table, and an empty one; the keys of the rows are columns."""
    columns = [name for name in rows[0] if name not in without]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        texts = (row[name].replace("|", "\\|").replace("\n", " ") for name in columns)
        lines.append("| " + " | ".join(texts) + " |")
    return [*lines, ""]


def decimal(
    value: float | None, digits: int = 2, *, error: float | None = None, signed: bool = False
) -> str:
    """Return a number, ± its error where it has one; a dash for None."""
    if value is None:
        return "–"
    more = "" if error is None else f"{NBSP}±{NBSP}{error:.2f}"
    return f"{value:{'+' if signed else ''}.{digits}f}{more}"


def listed(texts: Iterable[str]) -> str:
    """Return the different texts in one line; `unknown` where there are none."""
    return ", ".join(sorted(set(texts) - {""})) or "unknown"


def measured(cell: TableRow, metric: str, notes: Notes) -> str:
    """Return mean and spread of a cell, or the footnoted reason for their absence."""
    mean, status = cell.mean(metric), cell.status(metric)
    if not cell.finished:
        return "–"
    if status == "infinite":
        return "∞" + notes.mark(
            f"infinite {metric}: the recogniser leaves the prior's support, where p(z) = 0"
        )
    if status == "undefined" and mean is None:
        return "undefined" + notes.mark(f"undefined {metric}: the recogniser has no density")
    return decimal(mean, error=cell.spread(metric))


def results(place: int, group: Table, planned: Mapping[str, int]) -> list[str]:
    """Return the lines of a table below its heading.

    Args:
        place: of the table on its page, from 1.
        group: its cells.
        planned: number of seeds by name of a cell.
    """
    common = group.common
    notes = Notes(str(place))
    order, metric = group.order, group.metric
    names = {cell.name: cell.title for cell in order}
    rows = [
        {
            "rank": _ranks(cell, notes),
            "variant": cell.title,
            f"{metric} (K = {common['K']})": _ranked(cell, metric, notes),
            "bits per character": decimal(cell.mean("bits_per_character")),
            **{
                f"{name} minus baseline [95 %]": _difference(cell, name, names, notes)
                for name in group.compared
            },
            "elbo": measured(cell, "elbo", notes),
            "iw": measured(cell, "iw", notes) + _mixed_draws(cell, notes),
            f"v of {metric} (gain)": _v(cell, metric),
            "objective": _objective(cell, notes),
            "gap": _gap(cell),
            "aux": decimal(cell.mean("aux") or None),
            "seeds": _seeds(cell, planned[cell.name], notes),
            "failed": _failed(cell),
            "dimensions": _dimensions(cell),
            "tuned": f"tuned{notes.mark(tuned)}"
            if (tuned := cell.first.get("tuned"))
            else "untuned",
        }
        for cell in order
    ]
    shown = [f"{name} = {common[name] or 'none'}" for name in ("K", "epochs", "T", "H", "B")]
    lines = [f"{common['precision'] or 'fp32'}, {', '.join(shown)}.", ""]
    if all_untuned := not any(cell.first.get("tuned") for cell in order):
        lines += ["Every row is untuned: no learning rate was searched.", ""]
    all_bound = all(cell.says("bounds_nll") == "yes" for cell in order)
    empty = {"tuned": all_untuned, "gap": all_bound}
    empty["dimensions"] = not any(row["dimensions"] for row in rows)
    is_text = any(cell.mean("bits_per_character") for cell in order)
    empty["bits per character"] = not is_text
    empty["aux"] = not any(cell.mean("aux") for cell in order)
    columns = COLUMNS.format(metric=metric, failed=FAILED_TEXT if is_text else FAILED)
    about = [columns, *([] if all_bound else [GAP]), *_draws(order)]
    about += [] if empty["dimensions"] else [DIMENSIONS]
    lines += [*table(rows, [name for name in empty if empty[name]]), " ".join(about), ""]
    if sum(bool(cell.first.get("rank")) for cell in order) > 1:
        ranks = RANKS + NOT_WORSE * any(cell.is_loose(metric) for cell in order)
        lines += [ranks.format(metric=metric, loose=LOOSE, gain=LOOSE_GAIN), ""]
    if metric == "nll":
        lines += _still_gaining(order)
    return [*lines, *_costs(order, notes), *notes.lines()]


def _mixed_draws(cell: TableRow, notes: Notes) -> str:
    """Mark a mean of iw over seeds whose nll comes from iw and others."""
    why = different_draws(draws_of(cell.finished))
    return notes.mark(why) if why else ""


def _draws(cells: Sequence[TableRow]) -> list[str]:
    """Say which rows train with several draws an image, whose steps cost as many times more."""
    several: dict[str, dict[str, None]] = {}
    for cell in cells:
        draws = cell.first.get("params.draws", "")
        if draws.isdecimal() and int(draws) > 1:
            several.setdefault(draws, {})[f"`{cell.variant}`"] = None
    return [
        f"{', '.join(names)} trains with {draws} draws per image: {draws} times the work of a step."
        for draws, names in several.items()
    ]


def _ranks(cell: TableRow, notes: Notes) -> str:
    if not cell.escaped:
        return "–" + notes.mark("not ranked: no seed left the mean image")
    first, last = cell.first.get("rank", ""), cell.first.get("rank_to", "")
    return first if first == last else f"{first}–{last}"


def _dimensions(cell: TableRow) -> str:
    """Return how many seeds have 0, 1, 2, ... effective dimensions, e.g. `1: 3, 2: 2`."""
    values = [value_of(row, "effective_dimensions") for row in cell.finished]
    count = Counter(round(value) for value in values if value is not None)
    return ", ".join(f"{dimensions}: {seeds}" for dimensions, seeds in sorted(count.items()))


def _ranked(cell: TableRow, metric: str, notes: Notes) -> str:
    text = measured(cell, metric, notes)
    if cell.mean(metric) is None:
        return text
    tag = "bound_only"
    if metric == "nll":
        tag = "nll_bound_only"
        text += f" {' / '.join(sorted({row.get('nll_from', '') for row in cell.finished} - {''}))}"
    if not any(row.get(tag) == "true" for row in cell.finished):
        return f"**{text}**"
    why = "only a bound: twice the draws lowered it by more than 0.1 nats"
    return f"**{text}**{notes.mark(why)}"


def _difference(cell: TableRow, metric: str, names: Mapping[str, str], notes: Notes) -> str:
    first = cell.first
    if not first.get("compared_with"):
        return "baseline" if first.get("is_baseline") else "–"
    if (found := cell.difference(metric)) is None:
        why = first.get(f"{metric}_apart") if cell.finished else None
        return "–" + (notes.mark(f"no difference in {metric}: {why}") if why else "")
    estimate, low, high, p = found
    text, pairs = f"{estimate:+.2f}{NBSP}[{low:+.2f},{NBSP}{high:+.2f}]", first[f"{metric}_pairs"]
    if p is not None and not pairs.startswith(ONE_SEED):  # images say nothing of another seed
        text += f", {p_value(p).replace(' ', NBSP)}"
    return text + notes.mark(f"paired over {pairs}, against {names[first['compared_with']]}")


def _v(cell: TableRow, metric: str) -> str:
    """Return Var(log w) of the weights that the ranked number came from, and their last gain."""
    mean, gain = (cell.weights(name, metric) for name in ("v_mean", "doubling_gain"))
    return decimal(mean) + (f"{NBSP}({decimal(gain)})" if gain is not None else "")


def _objective(cell: TableRow, notes: Notes) -> str:
    """Return what was optimised, struck through where it bounds nothing."""
    objective, bounds = cell.mean("objective"), cell.says("bounds_nll")
    if objective is None or bounds == "yes":
        return decimal(objective)
    reason = cell.says("bound_reason").rstrip(".")
    word = "does not bound" if bounds == "no" else "is not shown to bound"
    note = f"the objective of {cell.title} {word} the negative log-likelihood"
    return f"~~{decimal(objective)}~~" + notes.mark(note + (f": {reason}" if reason else ""))


def _gap(cell: TableRow) -> str:
    objective, nll = cell.mean("objective"), cell.mean("nll")
    if objective is None or nll is None or cell.says("bounds_nll") == "yes":
        return "–"
    if cell.says("binarisation") == "soft":  # whose objective is of grey images
        return "–"
    return decimal(nll - objective, signed=True)


def _seeds(cell: TableRow, planned: int, notes: Notes) -> str:
    """Return n of N planned with every other status, each footnoted with its reason."""
    text = f"{len(cell.finished)} of {planned}"
    if len(cell.seeds) < planned:
        text += notes.mark(f"the other seeds of {cell.title} are in another table")
    for status, some in cell.count.items():
        if status == "complete":
            continue
        word = status.replace("_", " ")
        text += f", {some} {word}"
        by_reason: dict[str, list[str]] = {}
        for row in cell.seeds:
            step = f"step {row['diverged_step']}" if row.get("diverged_step") else ""
            reason = ", ".join(filter(None, (step, row.get("reason", ""))))
            if row["status"] == status and reason:
                by_reason.setdefault(reason, []).append(row["seed"])
        for reason, seeds in by_reason.items():
            who = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
            text += notes.mark(f"{cell.title}, {who}: {word}, {reason}")
    return text


def _failed(cell: TableRow) -> str:
    failed, checked = cell.failed_share()
    return f"{failed} of {checked}" if checked else "–"


def _gains(cell: TableRow) -> list[float]:
    """Return what the refits that nll comes from gained in their last tenth, nats per image."""
    refitted = [row for row in cell.finished if row.get("nll_from") == "refit_iw"]
    return [gain for row in refitted if (gain := value_of(row, "refit_last_gain")) is not None]


def _still_gaining(cells: Sequence[TableRow]) -> list[str]:
    """Return a line where refits that nll comes from had not settled."""
    gains = [gain for cell in cells for gain in _gains(cell)]
    large = [gain for gain in gains if gain > STILL_GAINING]
    if not large:
        return []
    which = f"{len(large)} of the {len(gains)} refits" if len(gains) > 1 else "The one refit"
    return [
        f"{which} that nll comes from still gained more than "
        f"{STILL_GAINING} nats of elbo in their last tenth, up to {max(large):.2f} (the next table "
        "has the largest gain of each row). Each image is fitted further before it is weighed, so "
        "nll may be looser by less.",
        "",
    ]


def _costs(order: Sequence[TableRow], notes: Notes) -> list[str]:
    """Return what the rows cost, as a table of its own: machines may differ."""
    cells = [cell for cell in order if cell.finished]
    if not cells:
        return []
    devices = [listed(row.get("device", "") for row in cell.finished) for cell in cells]
    differ = "the rows ran on different machines: times and speeds are not comparable"
    mark = notes.mark(differ) if len(set(devices)) > 1 else ""

    def mean(cell: TableRow, column: str, text: Callable[[float], str]) -> str:
        value = cell.mean(column)
        return "–" if value is None else text(value)

    rows = [
        {
            "variant": cell.title,
            "parameters": mean(cell, "parameters", "{:,.0f}".format),
            "training": mean(cell, "seconds", duration),
            "scoring": mean(cell, "scoring_seconds", duration),
            "images/s per seed": mean(cell, "images_per_second", "{:.0f}".format),
            "peak memory": mean(cell, "peak_memory_bytes", lambda n: f"{n / 2**20:,.0f} MiB"),
            "last gain of the refit": decimal(max(_gains(cell), default=None)),
            f"device{mark}": device,
        }
        for cell, device in zip(cells, devices, strict=True)
    ]
    return ["Means per seed:", "", *table(rows, () if mark else ("device",))]


def budget(row: Row) -> str:
    """Return the budget of a row: epochs, updates, sizes and precision."""
    counts = (("params.epochs", "epoch"), ("updates", "update"))
    sizes = (("params.batch", "B"), ("params.steps", "T"), ("params.hidden", "H"))
    parts = [count(int(row[name]), word) for name, word in counts if row.get(name)]
    parts += [f"{word} = {row[name]}" for name, word in sizes if row.get(name)]
    return ", ".join([*parts, row.get("params.precision", "")]).rstrip(", ")
