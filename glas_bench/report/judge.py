"""Verdicts: each claim of a study, once for every pair of cells that it is about.

They are written into the rows of the claim's left cell, as JSON in the column `claims`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from glas_bench.report.cells import Cell
from glas_bench.report.compare import Comparison, Comparisons
from glas_bench.stats import Verdict, share_verdict, verdict
from glas_bench.study import Study
from glas_bench.study.claims import SHARES, Claim, Pair
from glas_bench.text import setting

NONE = "no verdict"


def pairs(study: Study, found: Sequence[Cell]) -> Iterator[tuple[int, Claim, Pair, Cell, Cell]]:
    """Yield every claim's comparisons, by the claim's number from 1."""
    by_name: dict[str, list[Cell]] = {}
    for cell in found:
        by_name.setdefault(cell.name, []).append(cell)
    for index, claim in enumerate(study.claims, 1):
        for pair in claim.pairs:
            for left in by_name[pair.left]:
                rights = by_name[pair.right]
                same = [cell for cell in rights if cell.common == left.common]
                yield index, claim, pair, left, (same or rights)[0]


def write_verdicts(study: Study, found: Sequence[Cell], made: Comparisons) -> None:
    """Judge the claims and write what comes of it into the rows; `made` is corrected."""
    told: dict[int, list[dict[str, Any]]] = {}
    for index, claim, pair, left, right in pairs(study, found):
        comparison = made.of(claim.metric, left, right)
        judged = judge(study, claim, comparison)
        told.setdefault(id(left), []).append(
            {
                "claim": index,
                "text": " ".join(claim.text.split()),
                "source": claim.source,
                "expect": claim.expect,
                "metric": claim.metric,
                "at": {key: setting(value) for key, value in pair.at.items()},
                "left": left.title,
                "right": right.title,
                "right_cell": right.name,
                "verdict": judged.word if isinstance(judged, Verdict) else NONE,
                "why": _sides(judged.why) if isinstance(judged, Verdict) else judged,
                "untuned": _untuned(left, right),
                "slack": claim.metric == "nll"
                and comparison.difference is not None
                and any(map(_is_loose, (left, right))),
                **_numbers(comparison),
            }
        )
    for cell in found:
        if id(cell) in told:
            text = json.dumps(told[id(cell)], sort_keys=True)
            for row in cell.seeds:
                row["claims"] = text


def _sides(why: str) -> str:
    """Return a reason with the sides named as the page names them."""
    return why.replace("seeds only in a", "seeds only on the left").replace(
        "only in b", "only on the right"
    )


def _is_loose(cell: Cell) -> bool:
    """Tell whether a cell's nll is a bound only, in any seed."""
    return any(row.get("nll_bound_only") == "true" for row in cell.finished)


def _untuned(left: Cell, right: Cell) -> str:
    """Say which arms had no search of their own."""
    some = [each.label for each in (left, right) if not each.first.get("tuned")]
    return (
        "both arms are untuned"
        if len(some) == 2
        else "".join(f"{each} is untuned" for each in some)
    )


def judge(study: Study, claim: Claim, found: Comparison) -> Verdict | str:
    """Return the verdict, or in words why a study of this preset gives none."""
    if not study.verdicts:
        return f"{study.preset} is a look at the harness: sweep with --preset laptop, or more"
    if found.shares is not None:
        shares = found.shares
        return share_verdict(
            shares.only_a,
            shares.only_b,
            claim.direction,
            seeds=shares.seeds,
            diverged=shares.diverged,
            adjusted_p=found.p_holm,
            comparisons=found.family,
        )
    if found.difference is None:
        return Verdict(
            "undecided", f"{found.why_not}: numbers of both that compare would decide it"
        )
    told = verdict(found.difference, claim.direction, adjusted_p=found.p_holm)
    missing = found.seeds - found.difference.seeds - found.difference.diverged
    if not missing:
        return told
    lacks = f"{missing} of the {found.seeds} seeds that ended lack {found.metric} in an arm"
    return told._replace(why=f"{told.why}; {lacks}")


def _numbers(found: Comparison) -> dict[str, Any]:
    """Return the numbers that a verdict rests on, null where there is none."""
    if found.metric in SHARES and found.shares is not None:
        shares = found.shares
        told = " against ".join(f"{some} of {shares.seeds}" for some in shares.failed)
        lost = f"; {shares.diverged} diverged" if shares.diverged else ""
        return {
            "estimate": shares.estimate,
            "low": None,
            "high": None,
            "p": shares.p,
            "p_holm": found.p_holm,
            "pairs": f"{told} seeds{lost}",
        }
    if found.difference is None:
        return {**dict.fromkeys(("estimate", "low", "high", "p", "p_holm")), "pairs": ""}
    estimate, low, high, p = found.difference
    return {
        "estimate": estimate,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": found.p_holm,
        "pairs": found.difference.label,
    }
