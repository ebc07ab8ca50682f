"""What `run` prints: the seeds of a cell as rows, beside the baseline's, with the difference.

Numbers are nats per image on the test split. The JSON document and the table are made of the same
rows, which are read from the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glas_bench import data, stats
from glas_bench.record import SeedFolder, Summary, load_run, nll_prefix
from glas_bench.study import Cell
from glas_bench.text import aligned, calibrated, count, data_origin, number, p_value, paragraph
from glas_bench.yardstick.refit import STILL_GAINING

METRICS = ("nll", "elbo", "iw")
"""The metrics that two cells are compared by, the ranked one first."""


NARROW = ("score s", "train s", "gap", "v of nll", "ESS", "refit iw", "objective", "bits/char")
"""Columns that a narrow terminal goes without, the first one first."""


def document(cell: Cell, results: Path, outcomes: dict[Any, Any]) -> dict[str, Any]:
    """Return a cell's part of the JSON document.

    `outcomes` are statuses by (config_key, seed), as `cells.run_cells` returns them.
    """
    folder = cell.folder(results)
    about = load_run(folder.path).about
    return {
        "variant": cell.variant.name,
        "dataset": cell.config.dataset,
        "data_origin": about.get("data_origin"),
        "config_key": cell.key,
        "protocol_key": cell.protocol,
        "folder": str(folder.path),
        "config": cell.config.flat(),
        "bounds_nll": about.get("bounds_nll"),
        "bound_reason": about.get("bound_reason"),
        "seeds": [
            seed_row(folder.seed(seed), cell.protocol, outcomes.get((cell.key, seed), {}))
            for seed in cell.seeds
        ],
    }


def seed_row(folder: SeedFolder, protocol: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return one seed's status and numbers, null where there is none."""
    about = folder.status()
    status = outcome.get("status", about["status"])
    scores: Mapping[str, Any] = (folder.scores(protocol) if status == "complete" else None) or {}
    return {
        "seed": folder.seed,
        "status": status,
        **{name: scores.get(name) for name in Summary.__annotations__},
        "seconds": about.get("seconds"),
        "scoring_seconds": scores.get("seconds"),
        "images_per_second": about.get("images_per_second"),
        "step": about.get("step"),
        "reason": outcome.get("reason", about.get("reason")),
    }


def differences(cell: Cell, baseline: Cell, results: Path) -> dict[str, Any]:
    """Return cell minus baseline for each of `METRICS`, paired by image over seeds both finished.

    Returns:
        By metric: estimate, low, high (95 %), p, seeds, images, diverged (seeds left out because
        an arm diverged), label, resolvable (nats that these seeds can tell apart, null with one
        seed); null with a reason where the two cannot be compared.
    """
    folders = [each.folder(results) for each in (cell, baseline)]
    scored = [
        {
            seed: scores
            for seed in cell.seeds
            if (scores := folder.seed(seed).scores(each.protocol)) is not None
        }
        for each, folder in zip((cell, baseline), folders, strict=True)
    ]
    values = [
        {seed: folder.seed(seed).per_image(each.protocol) for seed in arm}
        for each, folder, arm in zip((cell, baseline), folders, scored, strict=True)
    ]
    both = scored[0].keys() & scored[1].keys()
    apart = stats.different_draws(arm[seed].get("iw_samples") for arm in scored for seed in both)
    diverged = sum(
        any(folder.seed(seed).status()["status"] == "diverged" for folder in folders)
        for seed in cell.seeds
    )
    by_metric = {}
    for metric in METRICS:
        a, b = (
            {seed: images[metric] for seed, images in arm.items() if metric in images}
            for arm in values
        )
        pairs = stats.pair_arms(metric, a, b)
        if metric == "iw" and apart:
            pairs = apart
        by_metric[metric] = _difference(pairs, diverged)
    return by_metric


def _difference(pairs: stats.Pairs | str, diverged: int) -> dict[str, Any]:
    if isinstance(pairs, str):
        return {"estimate": None, "reason": pairs}
    try:
        result = stats.paired_difference(pairs.a_SB, pairs.b_SB, diverged=diverged)
        resolvable = stats.resolvable(result)
    except ImportError as error:  # a bare machine has no scipy
        estimate = float((pairs.a_SB - pairs.b_SB).mean())
        return {"estimate": estimate, "reason": f"no interval: {error}"}
    return {
        "estimate": result.estimate,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "seeds": pairs.seeds,
        "images": result.images,
        "diverged": diverged,
        "label": result.label,
        "resolvable": resolvable,
    }


def text(documents: Sequence[dict[str, Any]], difference: dict[str, Any] | None) -> str:
    """Return the table that `run` prints, with its footnotes."""
    settings = documents[0]["config"]
    unit = data.info(settings["dataset"]).unit
    seeds = [row for doc in documents for row in doc["seeds"]]
    draws = {row["iw_samples"] for row in seeds} - {None}
    k = draws.pop() if len(draws) == 1 else None
    rows = [_row(doc, row, k) for doc in documents for row in doc["seeds"]]
    images = next((row["images"] for row in seeds if row["images"]), 0)
    other = data_origin(documents[0]["data_origin"])
    drawn = "characters" if unit == "line" else settings["binarisation"]
    head = (
        f"{settings['dataset']} ({drawn}{other}), test split"
        + (f", {count(images, unit)}" if images else "")
        + f"; {count(settings['epochs'], 'epoch')}; K = {settings['samples']}; "
        f"nats per {unit}, lower is better"
    )
    table = aligned([list(rows[0]), *(list(row.values()) for row in rows)], NARROW)
    lines = [paragraph(head), "", *table, *map(paragraph, _footnotes(documents))]
    if difference is not None:
        lines += ["", *map(paragraph, _difference_lines(documents, difference))]
    return "\n".join(lines)


def _row(doc: dict[str, Any], row: dict[str, Any], k: int | None) -> dict[str, str]:
    """Return a seed's row by column; `k` is the number of draws of iw where all rows have one."""
    objective = number(row["objective"])
    if doc["bounds_nll"] is not True and row["objective"] is not None:
        objective = f"({objective})"
    weights = nll_prefix(row)
    v, ess = (row["nll_from"] and row[f"{weights}{name}"] for name in ("v_mean", "ess_mean"))
    statuses = {"infinite": "inf", "undefined": "none"}
    is_text = data.info(doc["config"]["dataset"]).unit == "line"
    iw = number(row["iw"]) + ("*" if row["bound_only"] else "")
    iw += f" (K={row['iw_samples']})" if k is None and row["iw_samples"] else ""
    return {
        "variant": doc["variant"],
        "seed": str(row["seed"]),
        "status": row["status"],
        "nll": number(row["nll"]) + ("*" if row["nll_bound_only"] else ""),
        **({"bits/char": number(row["bits_per_character"])} if is_text else {}),
        "v of nll": number(v),
        "ESS": number(ess, 1),
        "elbo": statuses.get(str(row["elbo_status"]), number(row["elbo"])),
        f"iw (K={k})" if k else "iw": statuses.get(str(row["iw_status"]), iw),
        "refit iw": number(row["refit_iw"]),
        "objective": objective,
        "gap": number(row["objective_gap"]),
        "train s": number(row["seconds"], 0),
        "score s": number(row["scoring_seconds"], 0),
    }


def _footnotes(documents: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    for doc in documents:
        if doc["bounds_nll"] is not True:
            what = "bounds nothing" if doc["bounds_nll"] is False else "is not shown to bound"
            notes.append(
                f"({doc['variant']}) its objective {what} and is never ranked: "
                f"{doc['bound_reason']}."
            )
        for row in doc["seeds"]:
            about = []
            if row["reason"]:
                step = f" at step {row['step']}" if row["status"] == "diverged" else ""
                about.append(f"{row['status']}{step}, {row['reason']}")
            if row["failed"]:
                about.append("failed to reconstruct")
            if (gain := row["refit_last_gain"] or 0.0) > STILL_GAINING:
                about.append(f"the refit was still gaining, {gain:.2f} nats in its last tenth")
            notes += [f"{doc['variant']}, seed {row['seed']}: {each}." for each in about]
    if any(row["bound_only"] or row["nll_bound_only"] for doc in documents for row in doc["seeds"]):
        notes.append("* a bound only: twice the draws lowered it by more than 0.1 nats.")
    scored = [row for doc in documents for row in doc["seeds"] if row["bigram_nll"]]
    notes += [calibrated(row["unigram_nll"], row["bigram_nll"]) for row in scored[:1]]
    return ["", *notes] if notes else []


def _difference_lines(documents: Sequence[dict[str, Any]], difference: dict[str, Any]) -> list[str]:
    unit = data.info(documents[0]["config"]["dataset"]).unit
    lines = [f"{documents[0]['variant']} minus {documents[1]['variant']}, paired by {unit}:"]
    for metric, about in difference.items():
        if about["estimate"] is None:
            lines.append(f"  {metric}: no difference, {about['reason']}")
        elif "low" not in about:
            lines.append(f"  {metric}: {about['estimate']:+.2f} ({about['reason']})")
        else:
            p = f"  {p_value(about['p'])}" if len(about["seeds"]) > 1 else ""
            lines.append(
                f"  {metric}: {about['estimate']:+.2f}  95 % interval "
                f"[{about['low']:+.2f}, {about['high']:+.2f}]{p}  ({about['label']})"
            )
    known = difference[METRICS[0]]
    if known.get("resolvable"):  # none of equal arms, which have no spread
        lines.append(
            f"  with {len(known['seeds'])} seeds you can resolve about "
            f"{known['resolvable']:.2g} nats of {METRICS[0]}"
        )
    return lines
