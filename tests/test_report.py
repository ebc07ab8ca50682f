"""The first report: what shares a table, what is marked, and that the bytes are the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_tracking import finished, make_run, score, train

from glas_bench import report
from glas_bench.tracking import store
from glas_bench.tracking.sync import sync_all


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


def row(variant: str = "cauchy", seed: int = 0, key: str = "", **values: Any) -> dict[str, Any]:
    """A seed as `read_runs` gives it; `tags_x`, `params_x` and `metrics_x` name columns."""
    given = {
        "run_id": f"{variant}{key}{seed}",
        "variant": variant,
        "config_key": key or f"key-{variant}",
        "seed": seed,
        "status": "complete",
        "start": 1_760_000_000_000,
        "end": 1_760_000_100_000,
        "tags.dataset": "mnist-static",
        "tags.binarisation": "static",
        "tags.bounds_nll": "yes",
        "tags.elbo_status": "finite",
        "tags.iw_status": "finite",
        "params.precision": "fp32",
        "params.samples": "100",
        "params.epochs": "10",
        "params.steps": "8",
        "params.hidden": "256",
        "params.batch": "128",
        "params.seed": str(seed),
        "metrics.iw": 90.0,
        "metrics.elbo": 92.0,
        "metrics.objective": 92.0,
        "metrics.samples": 100.0,
        "metrics.v_mean": 1.25,
        "metrics.seconds": 61.0,
    }
    named = {
        name.replace("_", ".", 1) if name.startswith(("tags_", "params_", "metrics_")) else name: v
        for name, v in values.items()
    }
    return {**given, **named}


def page(*rows: dict[str, Any], **per_image: Any) -> str:
    return report.table(pd.DataFrame(rows), per_image)


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def rows_of(text: str) -> list[list[str]]:
    """The cells of all table rows but the heads."""
    cut = [[part.strip() for part in line[1:-1].split("|")] for line in lines(text, "|")]
    return [cells for cells in cut if cells[0] not in ("#", "---")]


def test_rows_are_ranked_by_iw_and_means_are_over_seeds() -> None:
    text = page(
        row("vae", metrics_iw=95.0),
        row("cauchy", 0, metrics_iw=90.0),
        row("cauchy", 1, metrics_iw=91.0),
        row("hellinger", metrics_iw=89.0, tags_bound_only="true"),
    )
    ranks = [(cells[0], cells[1], cells[2].partition("[")[0]) for cells in rows_of(text)]
    assert ranks == [
        ("1", "`hellinger`", "**89.00"),
        ("2", "`cauchy`", "**90.50 ± 0.71**"),
        ("3", "`vae`", "**95.00**"),
    ]
    assert "| iw (K = 100) |" in text
    assert "a bound only" in lines(text, "[^1-1]:")[0]
    assert len(lines(text, "## ")) == 1


def test_nll_ranks_where_every_row_has_it() -> None:
    rows = [row("cauchy", metrics_nll=89.5), row("vae", metrics_iw=89.9, metrics_nll=88.0)]
    assert [cells[1] for cells in rows_of(page(*rows))] == ["`vae`", "`cauchy`"]
    del rows[1]["metrics.nll"]
    rows[1]["metrics.iw"] = 95.0
    text = page(*rows)
    assert "| iw (K = 100) |" in text
    assert [cells[1] for cells in rows_of(text)] == ["`cauchy`", "`vae`"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"tags_dataset": "omniglot"}, "data"),
        ({"tags_data_hash": "other"}, "the data's contents"),
        ({"tags_binarisation": "dynamic"}, "binarisation"),
        ({"params_precision": "bf16"}, "precision"),
        ({"metrics_samples": 1000.0}, "K"),
        ({"params_epochs": "250"}, "epochs"),
        ({"params_steps": "64"}, "T"),
        ({"params_hidden": "64"}, "H"),
        ({"params_batch": "32"}, "B"),
        ({"tags_core_version": "2"}, "version of the core"),
        ({"tags_preset": "quick"}, "preset"),
    ],
)
def test_what_is_not_comparable_never_shares_a_table(other: dict[str, Any], why: str) -> None:
    text = page(row("cauchy"), row("vae"), row("hellinger", **other))
    assert len(lines(text, "## ")) == 2
    assert f"differ in {why} are" in text
    tables = [[cells[1] for cells in rows_of(part)] for part in text.split("## ")[1:]]
    assert sorted(tables) == [["`cauchy`", "`vae`"], ["`hellinger`"]]


def test_one_cell_scored_with_two_k_is_not_averaged() -> None:
    text = page(row(seed=0), row(seed=1, metrics_samples=1000.0, metrics_iw=80.0))
    assert [cells[2] for cells in rows_of(text)] == ["**90.00**", "**80.00**"]


@pytest.mark.parametrize("preset", ["smoke", "quick", "laptop"])
def test_a_look_gives_no_verdicts(preset: str) -> None:
    heading = lines(page(row(tags_preset=preset)), "## ")[0]
    assert heading.endswith("a look at the harness, no verdicts") == (preset != "laptop")


def test_infinite_and_undefined_are_told_and_not_ranked() -> None:
    none = {"metrics_elbo": None, "metrics_iw": None}
    infinite = row("uniform", tags_elbo_status="infinite", tags_iw_status="infinite", **none)
    undefined = row("pit", tags_elbo_status="undefined", tags_iw_status="undefined", **none)
    text = page(row("cauchy"), undefined, infinite)
    first, second, third = rows_of(text)
    assert first[1] == "`cauchy`"
    assert (second[0], second[1], third[0], third[1]) == ("", "`pit`", "", "`uniform`")
    assert second[2].startswith("undefined[^1-")
    assert third[2].startswith("∞[^1-")
    assert third[4].startswith("∞[^1-")
    assert any("leaves the prior's support" in line for line in lines(text, "[^1-"))
    assert any("has no density" in line for line in lines(text, "[^1-"))


def test_an_objective_that_bounds_nothing_is_struck_through() -> None:
    text = page(
        row("cauchy"),
        row("hellinger", tags_bounds_nll="no", tags_bound_reason="2 H^2 <= KL."),
        row("mine", tags_bounds_nll="not shown"),
    )
    objective = {cells[1]: cells[6] for cells in rows_of(text)}
    assert objective["`cauchy`"] == "92.00"
    assert objective["`hellinger`"].startswith("~~92.00~~[^1-")
    assert objective["`mine`"].startswith("~~92.00~~[^1-")
    assert "does not bound the negative log-likelihood: 2 H^2 <= KL\n" in text
    assert "`mine` is not shown to bound" in text


def test_failed_and_diverged_seeds_stay_and_are_no_numbers() -> None:
    lost = {"metrics_iw": None, "metrics_elbo": None, "metrics_objective": None}
    text = page(
        row(seed=0),
        row(seed=1, status="diverged", tags_diverged_step="17", tags_reason="loss is nan", **lost),
        row("vae", status="failed", tags_reason="disk\nfull", **lost),
    )
    cauchy, vae = rows_of(text)
    assert cauchy[2] == "**90.00**"
    assert cauchy[7].startswith("1 of 2, 1 diverged[^1-")
    assert (vae[0], vae[2], vae[4], vae[6]) == ("", "–", "–", "–")
    assert vae[7].startswith("0 of 1, 1 failed[^1-")
    assert "`cauchy`, seed 1: diverged, step 17, loss is nan\n" in text
    assert "`vae`, seed 0: failed, disk full\n" in text


def test_settings_that_differ_are_told_and_the_baseline_shares_them() -> None:
    same = {"params_charge_weight": "1.0"}
    cells = [
        row("cauchy", key="a", params_grid="original", **same),
        row("cauchy", key="b", params_grid="centred", metrics_iw=88.0, **same),
        row("gaussian", key="c", params_grid="centred", metrics_iw=89.0, **same),
    ]
    images = {("a", 0): np.full(5, 90.0), ("b", 0): np.arange(5.0), ("c", 0): np.arange(5.0) + 1}
    found = {cells[1]: cells[3] for cells in rows_of(page(*cells, iw=images))}
    assert found["`cauchy` (grid = original)"] == "baseline"
    assert found["`gaussian` (grid = centred)"].startswith("+1.00 [+1.00, +1.00], p = 0")
    images["c", 0] = np.full(5, np.inf)
    found = {cells[1]: cells[3] for cells in rows_of(page(*cells, iw=images))}
    assert found["`gaussian` (grid = centred)"] == "–"


def test_a_difference_pairs_the_seeds_that_both_finished() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(90, 5, (3, 50)), rng.normal(89, 5, (3, 50))
    rows = [row("cauchy", seed) for seed in (0, 1, 2)]
    rows += [row("vae", seed, status="complete" if seed else "diverged") for seed in (0, 1, 2)]
    images = {("key-cauchy", s): b[s] for s in range(3)} | {("key-vae", s): a[s] for s in range(3)}
    text = page(*rows, iw=images)
    told = next(cells[3] for cells in rows_of(text) if cells[1] == "`vae`")
    assert told.startswith(f"{(a - b)[1:].mean():+.2f} [")
    assert "2 seeds x 50 images" in text


def test_the_page_is_made_of_the_record_and_is_the_same_twice(tmp_path: Path) -> None:
    finished(tmp_path, seeds=2)
    finished(tmp_path, variant="hellinger")
    failed = make_run(tmp_path, variant="vae")
    train(failed.seed(0), range(1, 2))
    failed.seed(0).set_status("diverged", step=40, reason="the loss is not finite", epoch=1)
    told: list[str] = []
    first = report.write(tmp_path, tmp_path / "report", tell=told.append)
    text = first.read_text()
    assert told == []
    assert "newest run: 20" in text
    assert "commit: c0ffee with uncommitted changes" in text
    assert {cells[1] for cells in rows_of(text)} == {"`cauchy`", "`hellinger`", "`vae`"}
    assert "iw (K = 10)" in text
    assert "`vae`, seed 0: diverged, step 40, the loss is not finite" in text
    with_tracking = store.read_runs(tmp_path)
    assert len(with_tracking) == 4
    second = report.write(tmp_path, tmp_path / "again")
    assert second.read_bytes() == first.read_bytes()
    (tmp_path / "mlflow.db").unlink()  # rebuilt by the implicit sync
    assert report.write(tmp_path, tmp_path / "third").read_bytes() == first.read_bytes()
    # A new scoring is seen without asking, and what cannot be mirrored is told.
    more = make_run(tmp_path, filter_size=3)
    train(more.seed(0), range(1, 4))
    score(more.seed(0))
    (failed.path / "tracking.json").unlink()
    (failed.path / "tracking.json").mkdir()
    page = report.write(tmp_path, tmp_path / "report", tell=told.append)
    assert len(told) == 1
    assert failed.path.name in told[0]
    assert "Not mirrored, so not here:" in page.read_text()
    assert "`cauchy`" in page.read_text()
    assert len(store.read_runs(tmp_path)) == 5


def test_no_runs_yet(tmp_path: Path) -> None:
    assert sync_all(tmp_path).runs == 0
    assert "No runs yet" in report.head(store.read_runs(tmp_path))
    assert report.table(store.read_runs(tmp_path)) == ""
