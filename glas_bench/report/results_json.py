"""`<study>.json`: the results of a page for programs, with a version and a schema.

The schema, docs/results.schema.json, is made from the classes here. `VERSION` rises when a field
changes its meaning, its type or its name, or goes; new fields may come under the same version.
Numbers of scores are nats per `unit` unless a name ends in its own unit; null where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glas_bench.report.page import newest
from glas_bench.report.table import (
    Row,
    TableRow,
    complete,
    seed_counts,
    table_rows,
    tables,
    unit_of,
    value_of,
)
from glas_bench.report.verdicts import claims_of

VERSION = 1
FORMAT = "glas-bench results"

SCORES = ("nll", "elbo", "iw", "refit_iw", "ais", "objective", "recon", "charge", "kl", "aux")
"""Nats; with a mean over seeds."""
OTHERS = (
    *("v_mean", "effective_dimensions", "escape_epoch", "bits_per_character", "parameters"),
    *("seconds", "scoring_seconds", "images_per_second", "peak_memory_bytes"),
)
"""Further numbers of a seed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mean(_Part):
    """A score over the finished seeds of a cell."""

    mean: float | None
    sd: float | None = Field(description="standard deviation over seeds; null for one seed")
    status: Literal["finite", "infinite", "undefined", "refused"]


class Difference(_Part):
    """A cell minus its baseline, paired by seed and test image; exploratory."""

    estimate: float | None
    low: float | None = Field(description="lower end of the 95 % interval")
    high: float | None = Field(description="upper end of the 95 % interval")
    p: float | None
    p_adjusted: float | None = Field(description="for the false discovery rate of the page")
    pairs: str | None = Field(description="seeds and images that were paired")
    why_none: str | None


class SeedResults(_Part):
    """One seed of a cell."""

    seed: int
    status: str
    reason: str | None
    config_key: str | None
    nll_from: str | None = Field(description="the estimator that nll was chosen from")
    failed: bool | None = Field(description="whether it could not reconstruct")
    numbers: dict[str, float]


class CellResults(_Part):
    """A variant under one setting, in one table."""

    cell: str
    variant: str
    settings: dict[str, str]
    is_baseline: bool
    ranks: tuple[int, int] | None = Field(description="first and last possible rank")
    bounds_nll: str = Field(description="whether its objective bounds nll: yes, no or not shown")
    tuned: str | None
    scores: dict[str, Mean]
    compared_with: str | None
    differences: dict[str, Difference]
    seeds: list[SeedResults]


class TableResults(_Part):
    """Cells that may be compared: one table of the page."""

    common: dict[str, str] = Field(description="data, K, budget and what else the rows share")
    ranked_by: str
    cells: list[CellResults]


class LookResults(_Part):
    """The interval of a claim after a number of seeds."""

    number: int
    seeds: int
    estimate: float | None
    low: float | None
    high: float | None


class ClaimResults(_Part):
    """A comparison that a claim asks for, and its verdict."""

    claim: int
    text: str
    source: str
    expect: str
    at: dict[str, str]
    cells: list[str]
    verdict: str
    why: str
    unit: str
    margin: float | None
    estimate: float | None
    low: float | None
    high: float | None
    looks: list[LookResults]


class Results(_Part):
    """The results of one study, or of the runs made by hand."""

    format: Literal["glas-bench results"]
    version: Literal[1]
    study: str
    question: str | None
    command: str | None = Field(description="repeats the study")
    verdicts: bool = Field(description="false for presets that are a first look")
    unit: Literal["image", "line"]
    newest_run: str | None = Field(description="date, UTC")
    commits: list[str] = Field(description="that the runs were made from")
    devices: list[str]
    cells_planned: int
    cells_complete: int
    seeds: dict[str, int] = Field(description="number of seeds by status")
    claims: list[ClaimResults]
    tables: list[TableResults]
    not_begun: list[str] = Field(description="planned cells without any run")
    remarks: list[str]


def render(rows: Sequence[Row]) -> str:
    """Return the JSON of a page."""
    cells = table_rows(rows)
    done, planned = complete(cells)
    groups = tables(cells)
    begun = {cell.name for group in groups for cell in group.rows}
    first = rows[0]
    commits = (
        row["commit"] + "-dirty" * bool(row.get("dirty")) for row in rows if row.get("commit")
    )
    results = Results(
        format=FORMAT,
        version=VERSION,
        study=first["study"],
        question=first.get("question") or None,
        command=first.get("command") or None,
        verdicts=first.get("verdicts") == "yes",
        unit="line" if unit_of(rows) == "line" else "image",
        newest_run=newest(rows) or None,
        commits=sorted(set(commits)),
        devices=sorted({row.get("device", "") for row in rows} - {""}),
        cells_planned=planned,
        cells_complete=done,
        seeds=seed_counts(cells),
        claims=[_claim(one) for one in claims_of(cells)],
        tables=[
            TableResults(
                common=each.common, ranked_by=each.metric, cells=list(map(_cell, each.order))
            )
            for each in groups
        ],
        not_begun=list(dict.fromkeys(cell.name for cell in cells if cell.name not in begun)),
        remarks=json.loads(first.get("remarks") or "[]"),
    )
    text = json.dumps(results.model_dump(), indent=1, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def schema() -> str:
    """Return the schema that every document of this version fits, as JSON."""
    return json.dumps(Results.model_json_schema(), indent=1) + "\n"


def _cell(cell: TableRow) -> CellResults:
    first = cell.first
    ranks = (first.get("rank"), first.get("rank_to"))
    return CellResults(
        cell=cell.name,
        variant=cell.variant,
        settings=cell.settings,
        is_baseline=bool(first.get("is_baseline")),
        ranks=(int(ranks[0]), int(ranks[1])) if ranks[0] and ranks[1] else None,
        bounds_nll=cell.says("bounds_nll"),
        tuned=first.get("tuned") or None,
        scores={
            name: Mean(mean=cell.mean(name), sd=cell.spread(name), status=cell.status(name))
            for name in SCORES
            if any(row.get(name) or row.get(f"{name}_status") for row in cell.finished)
        },
        compared_with=first.get("compared_with") or None,
        differences={
            name: _difference(first, name)
            for name in SCORES
            if first.get(f"{name}_difference") or first.get(f"{name}_apart")
        },
        seeds=[_seed(row) for row in cell.seeds],
    )


def _difference(row: Row, metric: str) -> Difference:
    return Difference(
        estimate=value_of(row, f"{metric}_difference"),
        low=value_of(row, f"{metric}_low"),
        high=value_of(row, f"{metric}_high"),
        p=value_of(row, f"{metric}_p"),
        p_adjusted=value_of(row, f"{metric}_p_bh"),
        pairs=row.get(f"{metric}_pairs") or None,
        why_none=row.get(f"{metric}_apart") or None,
    )


def _seed(row: Row) -> SeedResults:
    numbers = {name: value_of(row, name) for name in (*SCORES, *OTHERS)}
    return SeedResults(
        seed=int(row["seed"]),
        status=row["status"],
        reason=row.get("reason") or None,
        config_key=row.get("config_key") or None,
        nll_from=row.get("nll_from") or None,
        failed={"true": True, "false": False}.get(row.get("failed", "")),
        numbers={name: value for name, value in numbers.items() if value is not None},
    )


def _claim(one: Mapping[str, Any]) -> ClaimResults:
    known = {name: one[name] for name in ClaimResults.model_fields}
    names = LookResults.model_fields
    known["looks"] = [{name: look[name] for name in names} for look in one["looks"]]
    return ClaimResults(**known)
