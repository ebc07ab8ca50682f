"""What `run` tells: the seeds of a cell as rows, beside the baseline's, with the difference.

Numbers are nats per image on the test split. One JSON document and one text table are made of the
same rows, which are read back from the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glas_bench import stats
from glas_bench.record import SeedFolder, Summary, load_run
from glas_bench.study import Cell
from glas_bench.text import aligned, number
from glas_bench.yardstick.refit import STILL_GAINING

METRICS = ("nll", "elbo", "iw")
"""What two cells are compared by, the ranked number first."""


def document(cell: Cell, results: Path, outcomes: dict[Any, Any]) -> dict[str, Any]:
    """Return a cell's part of the JSON document.

    Args:
        cell: what was run.
        results: where its run folder is.
        outcomes: statuses by (config_key, seed), as `cells.run_cells` returns them.
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
    scores = folder.scores(protocol) if status == "complete" else None
    row: dict[str, Any] = {"seed": folder.seed, "status": status}
    row |= {name: (scores or {}).get(name) for name in Summary.__annotations__}
    row["seconds"] = about.get("seconds")
    row["scoring_seconds"] = (scores or {}).get("seconds")
    row["images_per_second"] = about.get("images_per_second")
    row["step"] = about.get("step")
    row["reason"] = outcome.get("reason", about.get("reason"))
    return row


def differences(cell: Cell, baseline: Cell, results: Path) -> dict[str, Any]:
    """Return cell minus baseline for each of `METRICS`, paired by image over seeds both finished.

    Returns:
        By metric: estimate, low, high (95 %), p, seeds, images, diverged (seeds left out because
        an arm diverged), label, resolvable (nats that so many seeds can tell apart, null with one
        seed); null with a reason where the two cannot be compared.
    """
    folders = [each.folder(results) for each in (cell, baseline)]
    values = [
        {seed: folder.seed(seed).per_image(each.protocol) for seed in cell.seeds}
        for each, folder in zip((cell, baseline), folders, strict=True)
    ]
    diverged = sum(
        any(folder.seed(seed).status()["status"] == "diverged" for folder in folders)
        for seed in cell.seeds
    )
    found = {}
    for metric in METRICS:
        a, b = (
            {seed: images[metric] for seed, images in arm.items() if metric in images}
            for arm in values
        )
        found[metric] = _difference(stats.pair_arms(metric, a, b), diverged)
    return found


def _difference(pairs: stats.Pairs | str, diverged: int) -> dict[str, Any]:
    if isinstance(pairs, str):
        return {"estimate": None, "reason": pairs}
    try:
        result = stats.paired_difference(pairs.a_SB, pairs.b_SB, diverged=diverged)
        resolution = stats.resolvable(result)
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
        "resolvable": resolution.nats,
    }


# --------------------------------------------------------------------------- as text


def text(documents: Sequence[dict[str, Any]], difference: dict[str, Any] | None) -> str:
    """Return the table that `run` prints, with its footnotes."""
    settings = documents[0]["config"]
    images = next(
        (row["images"] for doc in documents for row in doc["seeds"] if row["images"]), None
    )
    origin = documents[0]["data_origin"]
    stand_in = "" if origin in (None, "published") else f", {origin}, not the published data"
    head = (
        f"{settings['dataset']} ({settings['binarisation']}{stand_in}), test split"
        + (f", {images} images" if images else "")
        + f"; {settings['epochs']} epochs; nats per image, lower is better"
    )
    columns = [
        "variant",
        "seed",
        "status",
        "nll",
        "v of nll",
        "ESS",
        "elbo",
        f"iw (K={settings['samples']})",
        "refit iw",
        "objective",
        "gap",
        "train s",
        "score s",
    ]
    rows = [_cells(doc, row) for doc in documents for row in doc["seeds"]]
    lines = [head, "", *aligned([columns, *rows]), *_footnotes(documents)]
    if difference is not None:
        lines += ["", *_difference_lines(documents, difference)]
    return "\n".join(lines)


def _cells(doc: dict[str, Any], row: dict[str, Any]) -> list[str]:
    objective = number(row["objective"])
    if doc["bounds_nll"] is not True and row["objective"] is not None:
        objective = f"({objective})"
    iw = number(row["iw"]) + ("*" if row["bound_only"] else "")
    nll = number(row["nll"]) + ("*" if row["nll_bound_only"] else "")
    statuses = {"infinite": "inf", "undefined": "none"}
    prefix = "refit_" if row["nll_from"] == "refit_iw" else ""
    names = [f"{prefix}v_mean", f"{prefix}ess_mean"] if row["nll_from"] else []
    v, ess = [row[name] for name in names] or [None, None]
    elbo = statuses.get(str(row["elbo_status"]), number(row["elbo"]))
    return [
        doc["variant"],
        str(row["seed"]),
        row["status"],
        nll,
        number(v),
        number(ess, 1),
        elbo,
        statuses.get(str(row["iw_status"]), iw),
        number(row["refit_iw"]),
        objective,
        number(row["objective_gap"]),
        number(row["seconds"], 0),
        number(row["scoring_seconds"], 0),
    ]


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
            if row["reason"]:
                step = f" at step {row['step']}" if row["status"] == "diverged" else ""
                notes.append(
                    f"{doc['variant']}, seed {row['seed']}: {row['status']}{step}, {row['reason']}."
                )
            if row["failed"]:
                notes.append(f"{doc['variant']}, seed {row['seed']}: failed to reconstruct.")
            if (row["refit_last_gain"] or 0.0) > STILL_GAINING:
                notes.append(
                    f"{doc['variant']}, seed {row['seed']}: the refit was still gaining, "
                    f"{row['refit_last_gain']:.2f} nats in its last tenth."
                )
    if any(row["bound_only"] or row["nll_bound_only"] for doc in documents for row in doc["seeds"]):
        notes.append("* bound only: over 5 % of the images have Var(log w) > 10.")
    return ["", *notes] if notes else []


def _difference_lines(documents: Sequence[dict[str, Any]], difference: dict[str, Any]) -> list[str]:
    lines = [f"{documents[0]['variant']} minus {documents[1]['variant']}, paired by image:"]
    for metric, found in difference.items():
        if found["estimate"] is None:
            lines.append(f"  {metric}: no difference, {found['reason']}")
        elif "low" not in found:
            lines.append(f"  {metric}: {found['estimate']:+.2f} ({found['reason']})")
        else:
            lines.append(
                f"  {metric}: {found['estimate']:+.2f}  95 % interval "
                f"[{found['low']:+.2f}, {found['high']:+.2f}]  p = {found['p']:.2g}  "
                f"({found['label']})"
            )
    known = difference[METRICS[0]]
    if known.get("resolvable") is not None:
        lines.append(
            f"  with {len(known['seeds'])} seeds you can resolve about "
            f"{known['resolvable']:.2g} nats of {METRICS[0]}"
        )
    return lines
