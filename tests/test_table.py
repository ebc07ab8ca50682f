"""What `run` prints of scored seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_decide import CLAIM, GRID, arms, plan, seeds

from glas_bench.record import Summary
from glas_bench.runs import table as printed

ABOUT = ("seconds", "scoring_seconds", "images_per_second", "step", "reason")


def table(**scores: Any) -> tuple[dict[str, str], str]:
    """The row of one seed by column, and all that is printed."""
    row = {**dict.fromkeys(Summary.__annotations__), "seed": 0, "status": "complete", **scores}
    config = {"dataset": "mnist-5k", "binarisation": "static", "epochs": 2, "samples": 10}
    document = {
        "variant": "cauchy",
        "config": config,
        "data_origin": "published",
        "bounds_nll": True,
        "bound_reason": "",
        "seeds": [{**dict.fromkeys(ABOUT), **row}],
    }
    text = printed.text([document], None)
    head, _, first = text.splitlines()[2:5]
    names = head.replace("v of nll", "v_of_nll").replace("refit iw", "refit_iw")
    names = names.replace("iw (K=10)", "iw").replace("train s", "train").replace("score s", "score")
    return dict(zip(names.split(), first.split(), strict=True)), text


@pytest.mark.parametrize(
    ("source", "v", "ess"), [("iw", "25.00", "5.4"), ("refit_iw", "14.00", "9.6"), (None, "-", "-")]
)
def test_v_and_ess_are_of_the_weights_of_nll(source: str | None, v: str, ess: str) -> None:
    weights = {"v_mean": 25.0, "ess_mean": 5.4, "refit_v_mean": 14.0, "refit_ess_mean": 9.6}
    found, _ = table(nll_from=source, **weights)
    assert (found["v_of_nll"], found["ESS"]) == (v, ess)


@pytest.mark.parametrize(("gain", "noted"), [(0.34, True), (0.05, False), (None, False)])
def test_a_refit_that_was_still_gaining_has_a_footnote(gain: float | None, noted: bool) -> None:
    _, text = table(nll_from="refit_iw", refit_last_gain=gain)
    assert ("seed 0: the refit was still gaining, 0.34 nats in its last tenth." in text) == noted


def test_k_of_iw_is_what_each_row_was_scored_with() -> None:
    """Ten draws suffice where nll comes from the refit."""
    found, _ = table(iw=90.0, iw_samples=10)
    assert found["iw"] == "90.00"
    row = {**dict.fromkeys(Summary.__annotations__), "iw": 90.0, "iw_samples": 100}
    about = {"variant": "a", "config": {"dataset": "mnist-5k"}, "bounds_nll": True}
    cells = printed._row(about, {**row, **dict.fromkeys(ABOUT), "seed": 0, "status": ""}, None)
    assert cells["iw"] == "90.00 (K=100)"


def test_iw_of_different_k_is_not_subtracted(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    names = [f"{variant} {GRID}" for variant in ("gaussian", "cauchy")]
    scored = [seeds(91.0, count=2, iw_samples=100), seeds(90.0, count=2, iw_samples=10)]
    there = arms(planned, tmp_path / "results", dict(zip(names, scored, strict=True)))
    cells = [
        dataclasses.replace(
            there[name].cell,
            seeds=[0, 1],
            key=there[name].seeds[0].folder.path.parent.name.rpartition("-")[2],
        )
        for name in names
    ]
    found = printed.differences(*cells, tmp_path / "results")
    assert found["nll"]["estimate"] == pytest.approx(1, abs=1)
    assert found["iw"] == {"estimate": None, "reason": "iw of different K: 10 and 100"}


def test_a_difference_is_printed_with_sign_interval_and_pairs() -> None:
    found: dict[str, Any] = {"estimate": -1.25, "low": -2.0, "high": -0.5, "p": 0.004}
    found |= {"seeds": [0, 1, 2], "label": "3 seeds x 500 images", "resolvable": 0.31}
    differences: dict[str, Any] = {
        "nll": found,
        "elbo": {"estimate": None, "reason": "no seed of both has elbo"},
        "iw": {"estimate": 2.0, "reason": "no interval: no scipy"},
    }
    names = [
        {"variant": name, "config": {"dataset": "mnist-5k"}} for name in ("hellinger", "cauchy")
    ]
    assert printed._difference_lines(names, differences) == [
        "hellinger minus cauchy, paired by image:",
        "  nll: -1.25  95 % interval [-2.00, -0.50]  p = 0.004  (3 seeds x 500 images)",
        "  elbo: no difference, no seed of both has elbo",
        "  iw: +2.00 (no interval: no scipy)",
        "  with 3 seeds you can resolve about 0.31 nats of nll",
    ]
