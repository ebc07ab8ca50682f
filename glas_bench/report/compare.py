"""Cells compared image by image: differences, Holm's correction, ranks, and verdicts on claims.

Results are written into the rows, so that the csv has them: `nll_difference`, `nll_low`,
`nll_high`, `nll_p`, `nll_p_holm`, `nll_pairs` (how many seeds and images) or `nll_apart` (why there
is no difference), the same for every metric that the study compares by; `rank`, `rank_to` and
`ranked_by`; and in `claims`, as JSON, the claims of which a cell is the left side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from glas_bench.report.table import Row, TableRow, differing, tables
from glas_bench.stats import (
    ALPHA,
    PairedDifference,
    Verdict,
    holm,
    mcnemar_exact,
    pair_arms,
    paired_difference,
    share_verdict,
    verdict,
)
from glas_bench.study import Study
from glas_bench.study.claims import SHARES, Claim, Pair
from glas_bench.text import setting

Values = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""By metric and (config_key, seed): nats [images]."""

NONE = "no verdict"


@dataclass(frozen=True)
class Shares:
    """The seeds of two cells that failed to reconstruct, paired by seed."""

    failed: tuple[int, int]
    """In a and in b."""
    only_a: int
    only_b: int
    seeds: int
    """Seeds that both finished."""
    diverged: int
    """Seeds left out because one diverged."""

    @property
    def estimate(self) -> float:
        """a's share minus b's."""
        return (self.only_a - self.only_b) / self.seeds

    @property
    def p(self) -> float:
        """Two-sided p-value of equal shares."""
        return mcnemar_exact(self.only_a, self.only_b)

    @property
    def label(self) -> str:
        """How many seeds failed, of how many."""
        counts = " against ".join(f"{some} of {self.seeds}" for some in self.failed)
        return f"{counts} seeds" + (f"; {self.diverged} diverged" if self.diverged else "")


@dataclass
class Comparison:
    """a minus b by one metric, or the reason why they cannot be compared."""

    metric: str
    result: PairedDifference | Shares | None = None
    why_not: str = ""
    seeds: int = 0
    """Seeds that ended in both, finished or diverged."""
    p_holm: float | None = None
    family: int = 1
    """How many comparisons `p_holm` was adjusted over."""


@dataclass
class Comparisons:
    """The comparisons of a page, each made once; those of one metric are one family."""

    values: Values
    made: dict[tuple[Any, ...], Comparison] = field(default_factory=dict)

    def of(self, metric: str, a: TableRow, b: TableRow) -> Comparison:
        """Return a minus b; b minus a is another comparison."""
        identity = (metric, a.place, b.place)
        if identity not in self.made:
            self.made[identity] = compare(metric, a, b, self.values)
        return self.made[identity]

    def correct(self) -> None:
        """Adjust the p-values of each metric by Holm; a pair counts once, in either direction."""
        families: dict[str, dict[frozenset[Any], list[Comparison]]] = {}
        for (metric, *pair), comparison in sorted(self.made.items(), key=lambda item: item[0]):
            if comparison.result is not None:
                families.setdefault(metric, {}).setdefault(frozenset(pair), []).append(comparison)
        for family in families.values():
            p_values = [each[0].result.p for each in family.values() if each[0].result is not None]
            for comparisons, p in zip(family.values(), holm(p_values), strict=True):
                for comparison in comparisons:
                    comparison.p_holm, comparison.family = p, len(family)


def compare(metric: str, a: TableRow, b: TableRow, values: Values) -> Comparison:
    """Return a minus b, paired by the seeds, and the images, that both have."""
    comparison = Comparison(metric)
    if why := differing(a.common, b.common):
        comparison.why_not = f"they differ in {why} and cannot be compared"
        return comparison
    ended = [
        {int(row["seed"]): row for row in cell.seeds if row["status"] in ("complete", "diverged")}
        for cell in (a, b)
    ]
    both = [(ended[0][seed], ended[1][seed]) for seed in sorted(ended[0].keys() & ended[1].keys())]
    done = [pair for pair in both if all(row["status"] == "complete" for row in pair)]
    comparison.seeds = len(both)
    diverged = len(both) - len(done)
    result = (
        _shares(done, diverged)
        if metric in SHARES
        else _difference(metric, a, b, done, diverged, values)
    )
    if isinstance(result, str):
        comparison.why_not = result
    else:
        comparison.result = result
    return comparison


def _shares(done: Sequence[tuple[Row, Row]], diverged: int) -> Shares | str:
    flags = [(x.get("failed", ""), y.get("failed", "")) for x, y in done]
    flags = [pair for pair in flags if all(pair)]
    if not flags:
        return "no seed of both was checked"
    return Shares(
        failed=(sum(x == "true" for x, _ in flags), sum(y == "true" for _, y in flags)),
        only_a=flags.count(("true", "false")),
        only_b=flags.count(("false", "true")),
        seeds=len(flags),
        diverged=diverged,
    )


def _difference(
    metric: str,
    a: TableRow,
    b: TableRow,
    done: Sequence[tuple[Row, Row]],
    diverged: int,
    values: Values,
) -> PairedDifference | str:
    """Return the difference over the seeds that both finished, or why there is none."""
    for cell in (a, b):
        if (status := cell.status(metric)) != "finite":
            return f"{metric} of {cell.label} is {status}"
    protocols = {row.get("ais_protocol_key", "") for pair in done for row in pair} - {""}
    if metric == "ais" and len(protocols) > 1:
        return "they were scored by different protocols of AIS"
    if not {row["seed"] for row in a.seeds} & {row["seed"] for row in b.seeds}:
        return "they have no seed in common"
    there, images = values.get(metric, {}), values.get("image", {})
    arms: tuple[dict[int, np.ndarray], ...] = ({}, {})
    for pair in done:
        keys = [(row["config_key"], int(row["seed"])) for row in pair]
        x, y = (images.get(key) for key in keys)
        if metric == "ais" and (x is None or y is None or not np.array_equal(x, y)):
            continue
        for arm, key in zip(arms, keys, strict=True):
            if key in there:
                arm[key[1]] = there[key]
    pairs = pair_arms(metric, *arms)
    if isinstance(pairs, str):
        return pairs
    return paired_difference(pairs.a_SB, pairs.b_SB, diverged=diverged)


# --------------------------------------------------------------------------- all of a page


def write_comparisons(
    study: Study | None, cells: Sequence[TableRow], values: Values, metrics: Sequence[str]
) -> None:
    """Compare the cells of a page, judge the claims of its study, and write both into the rows.

    Cells are compared with their baselines by the metrics given; runs by hand have no study.
    """
    made = Comparisons(values)
    baselines = [(cell, other) for cell in cells if (other := baseline_of(cell, cells))]
    for cell, baseline in baselines:
        for metric in metrics:
            made.of(metric, cell, baseline)
    for _, claim, _, left, right in _claimed(study, cells) if study is not None else ():
        made.of(claim.metric, left, right)
    made.correct()
    for cell, baseline in baselines:
        columns = {"compared_with": baseline.name}
        for metric in metrics:
            about = _columns(made.of(metric, cell, baseline))
            columns |= {f"{metric}_{name}": value for name, value in about.items()}
        _write(cell, columns)
    write_ranks(cells, values)
    if study is not None:
        write_verdicts(study, cells, made)


def _write(cell: TableRow, columns: Mapping[str, str]) -> None:
    for row in cell.seeds:
        row |= columns


def baseline_of(cell: TableRow, cells: Sequence[TableRow]) -> TableRow | None:
    """Return what a cell is compared with: as planned, else the control with nearest settings."""
    if planned := cell.first.get("baseline"):
        fits = [other for other in cells if other.name == planned]
        same = [other for other in fits if other.common == cell.common]
        return next(iter(same + fits), None)
    if cell.first.get("is_baseline") or cell.first.get("preset"):  # a study plans its baselines
        return None
    controls = [
        other for other in cells if other.first.get("is_baseline") and other.common == cell.common
    ]

    def disagreements(other: TableRow) -> tuple[int, str]:
        mine, theirs = cell.first, other.first
        names = [name for name in mine if name.startswith("params.") and theirs.get(name)]
        return sum(mine[name] != theirs[name] for name in names), other.name

    return min(controls, key=disagreements, default=None)


def _columns(comparison: Comparison) -> Row:
    """Return a comparison as the csv has it."""
    result = comparison.result
    if result is None:
        return {"apart": comparison.why_not}
    assert isinstance(result, PairedDifference)
    estimate, low, high, p = result
    numbers = {"difference": estimate, "low": low, "high": high, "p": p}
    numbers |= {} if comparison.p_holm is None else {"p_holm": comparison.p_holm}
    return {name: repr(float(value)) for name, value in numbers.items()} | {"pairs": result.label}


# --------------------------------------------------------------------------- ranks


def ranked_by(cells: Sequence[TableRow]) -> str:
    """Return what a table is ranked by: nll, or iw where a row with weights lacks nll."""
    weighed = [cell for cell in cells if cell.mean("iw") is not None]
    return "iw" if any(cell.mean("nll") is None for cell in weighed) else "nll"


def write_ranks(cells: Sequence[TableRow], values: Values) -> None:
    """Write into the rows which ranks they may have: after the rows shown to be better, and before
    those shown to be worse.

    So Mogstad, Romano, Shaikh and Wilhelm 2024, section 3, form confidence sets of ranks; here
    each pair is tested at its own level, so a set holds of its row alone, not of all at once.
    """
    for table in tables(cells):
        metric = ranked_by(table.rows)
        order = [cell for cell in table.rows if cell.mean(metric) is not None]
        better, worse = [0] * len(order), [0] * len(order)
        for (i, a), (j, b) in combinations(enumerate(order), 2):
            if sign := _shown(metric, a, b, values):
                better[i if sign > 0 else j] += 1
                worse[j if sign > 0 else i] += 1
        for above, below, cell in zip(better, worse, order, strict=True):
            ranks = {"rank": str(1 + above), "rank_to": str(len(order) - below)}
            _write(cell, ranks | {"ranked_by": metric})


def _shown(metric: str, a: TableRow, b: TableRow, values: Values) -> int:
    """Return the sign of a minus b where it is shown with p not adjusted, else 0.

    One seed distinguishes images, not what another seed would give.
    """
    seeds = [{row["seed"] for row in cell.finished} for cell in (a, b)]
    if len(seeds[0] & seeds[1]) < 2:
        return 0
    result = compare(metric, a, b, values).result
    if result is None or result.seeds < 2 or result.p >= ALPHA:
        return 0
    return 1 if result.estimate > 0 else -1


# --------------------------------------------------------------------------- verdicts


def _claimed(
    study: Study, cells: Sequence[TableRow]
) -> Iterator[tuple[int, Claim, Pair, TableRow, TableRow]]:
    """Yield every comparison that a claim is about, with the claim's number from 1."""
    by_name: dict[str, list[TableRow]] = {}
    for cell in cells:
        by_name.setdefault(cell.name, []).append(cell)
    for number, claim in enumerate(study.claims, 1):
        for pair in claim.pairs:
            for left in by_name[pair.left]:
                rights = by_name[pair.right]
                same = [cell for cell in rights if cell.common == left.common]
                yield number, claim, pair, left, (same or rights)[0]


def write_verdicts(study: Study, cells: Sequence[TableRow], made: Comparisons) -> None:
    """Judge the claims and write the verdicts into the rows of their left sides."""
    judged: dict[int, list[dict[str, Any]]] = {}
    for number, claim, pair, left, right in _claimed(study, cells):
        comparison = made.of(claim.metric, left, right)
        answer = judge(study, claim, comparison)
        word, why = (NONE, answer) if isinstance(answer, str) else answer
        why = why.replace("seeds only in a", "seeds only on the left")
        why = why.replace("only in b", "only on the right")
        untuned = [each.label for each in (left, right) if not each.first.get("tuned")]
        loose = any(
            row.get("nll_bound_only") == "true" for each in (left, right) for row in each.finished
        )
        judged.setdefault(id(left), []).append(
            {
                "claim": number,
                "text": " ".join(claim.text.split()),
                "source": claim.source,
                "expect": claim.expect,
                "metric": claim.metric,
                "at": {key: setting(value) for key, value in pair.at.items()},
                "left": left.title,
                "right": right.title,
                "right_cell": right.name,
                "verdict": word,
                "why": why,
                "untuned": "both arms are untuned"
                if len(untuned) == 2
                else "".join(f"{each} is untuned" for each in untuned),
                "slack": claim.metric == "nll" and comparison.result is not None and loose,
                **_numbers(comparison),
            }
        )
    for cell in cells:
        if id(cell) in judged:
            _write(cell, {"claims": json.dumps(judged[id(cell)], sort_keys=True)})


def judge(study: Study, claim: Claim, comparison: Comparison) -> Verdict | str:
    """Return the verdict, or why a study of this preset gives none."""
    if not study.verdicts:
        return f"{study.preset} is a look at the harness: sweep with --preset laptop, or more"
    result, p = comparison.result, comparison.p_holm
    if result is None:
        why = f"{comparison.why_not}: comparable numbers of both would decide it"
        return Verdict("undecided", why)
    if isinstance(result, Shares):
        return share_verdict(
            result.only_a,
            result.only_b,
            claim.direction,
            seeds=result.seeds,
            diverged=result.diverged,
            adjusted_p=p,
            comparisons=comparison.family,
        )
    answer = verdict(result, claim.direction, adjusted_p=p)
    missing = comparison.seeds - result.seeds - result.diverged
    if not missing:
        return answer
    metric = comparison.metric
    lacks = f"{missing} of the {comparison.seeds} seeds that ended lack {metric} in an arm"
    return answer._replace(why=f"{answer.why}; {lacks}")


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers that a verdict rests on, null where there is none."""
    result = comparison.result
    names = ("estimate", "low", "high", "p")
    if result is None:
        return {**dict.fromkeys((*names, "p_holm")), "pairs": ""}
    shown = (result.estimate, None, None, result.p) if isinstance(result, Shares) else result
    about = {"p_holm": comparison.p_holm, "pairs": result.label}
    return {**dict(zip(names, shown, strict=True)), **about}
