"""`<study>.tex`: the tables of a page as papers print them, for booktabs and siunitx."""

from __future__ import annotations

import re
from collections.abc import Sequence

from glas_bench.report.table import (
    Row,
    Table,
    TableRow,
    drawn_as,
    table_rows,
    tables,
    unit_of,
)

HEAD = r"""% glas-bench report of {study}: \input this file. The preamble needs
% \usepackage{{booktabs,siunitx}}
"""
DAGGER = r"{\textsuperscript{\dag}}"
CAPTION = (
    r"{study}: {data}, {sizes}. Negative log-likelihoods on the test split, nats per {unit}, "
    r"lower is better; mean $\pm$ standard deviation over seeds.{more}"
)
RANKS = " Rank: the ranks that a row may have."
COMPARED = r" $\Delta$: paired difference from the baseline with its 95\,\% interval, exploratory."
HIDES = r" \textsuperscript{\dag}The objective is not shown to bound the negative log-likelihood."
_SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def render(rows: Sequence[Row]) -> str:
    """Return the LaTeX of a page's tables, each a floating `table` with a label."""
    study = rows[0]["study"]
    groups = tables(table_rows(rows))
    made = (_table(study, place, group) for place, group in enumerate(groups, 1))
    return HEAD.format(study=study) + "".join(made)


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


def _table(study: str, place: int, group: Table) -> str:
    order, common = group.order, group.common
    columns = [("l", "variant", [_escaped(cell.label) for cell in order])]
    if is_ranked := any(cell.first.get("rank") for cell in order):
        columns.insert(0, ("r", "rank", [_ranks(cell) for cell in order]))
    for metric in dict.fromkeys([group.metric, "elbo"]):
        columns.append(_numbers(metric, [_measured(cell, metric) for cell in order]))
        if metric in group.compared:
            columns += _differences(metric, order)
    columns.append(_numbers("objective", [_objective(cell) for cell in order]))
    columns.append(("r", "seeds", [f"{len(c.finished)}/{len(c.seeds)}" for c in order]))
    hides = any(DAGGER in text for text in columns[-2][2])
    caption = CAPTION.format(
        study=_escaped(study),
        data=_escaped(f"{common['data']}, {drawn_as(common['binarisation'])}"),
        sizes=", ".join(f"{name} = {common[name] or 'none'}" for name in ("K", "epochs", "T", "H")),
        unit=unit_of([cell.first for cell in order]),
        more=RANKS * is_ranked + COMPARED * bool(group.compared) + HIDES * hides,
    )
    label = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    body = zip(*(texts for _, _, texts in columns), strict=True)
    lines = [
        "",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}-{place}}}",
        rf"\begin{{tabular}}{{@{{}}{' '.join(kind for kind, *_ in columns)}@{{}}}}",
        r"\toprule",
        " & ".join(f"{{{name}}}" for _, name, _ in columns) + r" \\",
        r"\midrule",
        *(" & ".join(texts) + r" \\" for texts in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _numbers(name: str, texts: list[str]) -> tuple[str, str, list[str]]:
    """Return a column that siunitx aligns, as wide as its numbers."""
    found = [re.match(r"[+-]?(\d+)\.\d+(?:\((\d+)\))?", text) for text in texts]
    whole = max((len(match[1]) for match in found if match), default=1)
    spread = max((len(match[2] or "") for match in found if match), default=0)
    shape = f"{'+' * any(t[0] in '+-' for t in texts)}{whole}.2" + f"({spread})" * bool(spread)
    return f"S[table-format={shape},separate-uncertainty,retain-explicit-plus]", name, texts


def _ranks(cell: TableRow) -> str:
    ranks = dict.fromkeys((cell.first.get("rank", ""), cell.first.get("rank_to", "")))
    return "--".join(ranks) if cell.escaped else "--"


def _measured(cell: TableRow, metric: str) -> str:
    """Return mean and standard deviation, as siunitx reads them: 98.02(29) for 98.02 +- 0.29."""
    mean, spread = cell.mean(metric), cell.spread(metric)
    if mean is None:
        infinite = bool(cell.finished) and cell.status(metric) == "infinite"
        return r"{$\infty$}" if infinite else "{--}"
    return f"{mean:.2f}" + (f"({spread:.2f})".replace(".", "") if spread is not None else "")


def _objective(cell: TableRow) -> str:
    text = _measured(cell, "objective")
    bounds = cell.mean("objective") is None or cell.says("bounds_nll") == "yes"
    return text if bounds else f"{text} {DAGGER}"


def _differences(metric: str, order: Sequence[TableRow]) -> list[tuple[str, str, list[str]]]:
    """Return a column of differences from the baseline, and one of their intervals."""
    found = [cell.difference(metric) for cell in order]
    estimates = [f"{one[0]:+.2f}" if one else "{--}" for one in found]
    intervals = [f"$[{one[1]:.2f},\\,{one[2]:.2f}]$" if one else "" for one in found]
    return [_numbers(r"$\Delta$", estimates), ("r", r"95\,\%", intervals)]
