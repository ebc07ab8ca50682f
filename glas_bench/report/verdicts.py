"""Claims: their verdicts, and how a page shows them.

The rows of a cell hold, in `claims`, as JSON, the claims of which it is the left side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glas_bench.report.columns import DIFFERENCES, Notes, budget, interval, p_value, table
from glas_bench.report.compare import Comparison, Comparisons, Shares
from glas_bench.report.table import TableRow
from glas_bench.stats import Verdict, share_verdict, verdict
from glas_bench.study import Study
from glas_bench.study.claims import Claim, Pair
from glas_bench.text import setting

NONE = "no verdict"

STATISTICS = (
    f"{DIFFERENCES} A claim is *reproduced* when that p is below .05 and the whole 95 % interval "
    "lies more than 0.5 nats on the side that it predicts, *not reproduced* when the whole "
    "interval lies short of that, and otherwise *undecided*. Shares of seeds are compared by "
    "McNemar's exact test, without a margin. A verdict needs five seeds; at most one in five may "
    "have diverged."
)


def claimed(
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


def write(study: Study, cells: Sequence[TableRow], made: Comparisons) -> None:
    """Judge the claims and write the verdicts into the rows of their left sides."""
    judged: dict[int, list[dict[str, Any]]] = {}
    for number, claim, pair, left, right in claimed(study, cells):
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
            cell.write({"claims": json.dumps(judged[id(cell)], sort_keys=True)})


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


# --------------------------------------------------------------------------- on a page


def claims_of(cells: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return all judged comparisons of a page, by claim."""
    claims = [one for cell in cells for one in json.loads(cell.first.get("claims") or "[]")]
    return sorted(claims, key=lambda one: one["claim"])


def section(cells: Sequence[TableRow]) -> str:
    """Return the section on claims; nothing where there are none."""
    claims = claims_of(cells)
    if not claims:
        return ""
    by_name = {cell.name: cell for cell in cells}
    notes = Notes("c")
    rows = []
    for before, one in zip([None, *claims], claims, strict=False):
        is_new = before is None or one["claim"] != before["claim"]
        rows.append(
            {
                "": str(one["claim"]) if is_new else "",
                "claim": f"{one['text']} ({one['source']})" if is_new else "",
                "as a comparison": f"{one['left']} {'>' if '>' in one['expect'] else '<'} "
                f"{one['right']}",
                "metric": one["metric"],
                "left minus right [95 %]": _measured(one, notes),
                "verdict": f"**{one['verdict']}**{notes.mark(_why(one))}",
                "budget": budget(by_name[one["right_cell"]].first),
            }
        )
    lines = ["## Claims", ""]
    without = []
    if len({row["budget"] for row in rows}) == 1:
        lines += [f"At this budget: {rows[0]['budget']}.", ""]
        without = ["budget"]
    return "\n".join([*lines, *table(rows, without), STATISTICS, "", *notes.lines()])


def _measured(one: Mapping[str, Any], notes: Notes) -> str:
    if one["estimate"] is None:
        return "–"
    if one["low"] is None:
        return f"{one['estimate']:+.2f} ({one['pairs']}), p = {p_value(one['p_holm'])}"
    return interval(one["estimate"], one["low"], one["high"], one["p_holm"]) + notes.mark(
        f"paired over {one['pairs']}"
    )


def _why(one: Mapping[str, Any]) -> str:
    why = str(one["why"])
    if one["verdict"] != NONE and one["untuned"]:
        why += f"; {one['untuned']}"
    if one.get("slack"):
        why += "; part of the difference may be slack of the bounds"
    return why


def in_one_line(cells: Sequence[TableRow]) -> str:
    """Return the verdicts in one line."""
    claims = claims_of(cells)
    if not claims:
        return "no claims"
    if {one["verdict"] for one in claims} == {NONE}:
        return f"no verdicts: {claims[0]['why'].partition(':')[0]}"
    by_claim: dict[tuple[int, str], list[str]] = {}
    for one in claims:
        at = ", ".join(f"{key} = {value}" for key, value in one["at"].items())
        word = one["verdict"] + (f" ({at})" if at else "")
        by_claim.setdefault((one["claim"], one["expect"]), []).append(word)
    return "; ".join(f"`{text}`: {', '.join(words)}" for (_, text), words in by_claim.items())
