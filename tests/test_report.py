"""The report: what shares a table, what is marked and judged, and that the bytes are the same."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
import yaml
from conftest import Glas
from fabricated import Arm

from glas_bench import config, decide, registry, study
from glas_bench.commands import report
from glas_bench.errors import RunError, UsageError
from glas_bench.record import RunRecord, SeedFolder, SeedRecord, load_run, note_study
from glas_bench.report import (
    columns,
    compare,
    csv_file,
    fail_if,
    figures,
    html_page,
    latex,
    page,
    plans,
    record_figures,
    records,
    results_json,
)
from glas_bench.report.table import Row, TableRow, table_rows
from glas_bench.tracking import mlflow_store as store
from glas_bench.yardstick import refit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SCHEMA = ROOT / "docs/results.schema.json"
GOLDEN = Path(__file__).with_name("golden_report.md")


# --------------------------------------------------------------------------- rows made by hand


ROW = yaml.safe_load(f"""
{{schema: "{records.SCHEMA}", study: mine, status: complete, dataset: mnist-static, data_hash: d1,
 binarisation: static, core_version: 2, samples: 100, protocol_key: p1, bounds_nll: "yes",
 elbo_status: finite, iw_status: finite, params.precision: fp32, params.epochs: 10,
 params.steps: 8, params.hidden: 256, params.batch: 128, nll: 90.0, nll_from: refit_iw, iw: 90.5,
 elbo: 92.0, objective: 92.0, v_mean: 1.25, refit_v_mean: 0.75, seconds: 61.0,
 ended: "2026-01-01"}}
""")


def row(variant: str = "cauchy", seed: int = 0, cell: str = "", **values: Any) -> Row:
    """A seed as the csv has it; `params_x` names the column `params.x`."""
    cell = cell or variant
    own = {"cell": cell, "variant": variant, "config_key": f"key-{cell}", "seed": seed}
    own |= {"is_baseline": "yes" if variant == "cauchy" else ""}
    named = {re.sub("^params_", "params.", name): value for name, value in values.items()}
    every = {**ROW, **own, **named}
    return {name: "" if value is None else str(value) for name, value in every.items()}


def render(*given: Row, **values: Any) -> str:
    """Rank the rows and return the page."""
    made = list(given)
    compare.write_ranks(table_rows(made), values)
    return page.render(made)


def table_of(text: str, head: str = "| rank |") -> list[dict[str, str]]:
    """The rows of all tables with this head, each as text by column."""
    found: list[dict[str, str]] = []
    names: list[str] = []
    for line in text.replace("\u00a0", " ").splitlines():
        parts = [part.strip() for part in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        if line.startswith(head) or not line.startswith("|"):
            names = parts if line.startswith(head) else []
        elif names and not line.startswith("|---"):
            found.append(dict(zip(names, parts, strict=True)))
    return found


def column(text: str, name: str, head: str = "| rank |") -> list[tuple[str, str]]:
    """Variant and text of a column, by row."""
    return [(one["variant"].strip("`"), one[name]) for one in table_of(text, head)]


def notes(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if re.match(r"\[\^[\w-]+\]: ", line))


GAINS = {"doubling_gain": 0.5, "refit_doubling_gain": 0.1}
NO_DENSITY = {"elbo_status": "undefined", "iw_status": "undefined", "elbo": None, "iw": None}


@pytest.mark.parametrize(
    ("name", "wanted", "note", "given"),
    [
        (  # more draws would lower it
            "nll (K = 100)",
            {"hellinger": "**90.00 iw**[^1-1]", "vae": "**95.00 refit_iw**"},
            "only a bound",
            [row("vae", nll=95.0), row("hellinger", nll_bound_only="true", nll_from="iw")],
        ),
        (
            "iw",
            {"cauchy": "90.50 ± 0.00[^1-1]", "vae": "90.50 ± 0.00"},
            "]: iw of different K: 10 and 100",
            [row(name, s, iw_samples=k)
             for name, ks in (("cauchy", (10, 100)), ("vae", (10, 10))) for s, k in enumerate(ks)],
        ),
        (  # v is of the weights that the ranked number came from
            "v of nll (gain)",
            {"cauchy": "9.50 (0.30)", "uniform-pit": "36.00 (1.00)"},
            "",
            [row("cauchy", 0, v_mean=25.0, refit_v_mean=14.0, **GAINS),
             row("cauchy", 1, v_mean=5.0, refit_v_mean=14.0, nll_from="iw", **GAINS),
             row("uniform-pit", v_mean=None, refit_v_mean=36.0, refit_doubling_gain=1.0)],
        ),
        (  # iw ranks where a row with weights lacks nll
            "iw (K = 100)",
            {"vae": "**90.00**", "cauchy": "**95.00**"},
            "",
            [row("cauchy", iw=95, nll=80), row("vae", iw=90, nll=None)],
        ),
        (
            "v of iw (gain)",
            {"vae": "5.00", "cauchy": "25.00"},
            "",
            [row("cauchy", iw=95, nll=80, v_mean=25.0), row("vae", iw=90, nll=None, v_mean=5.0)],
        ),
        (
            "elbo",
            {"cauchy": "92.00", "uniform-pit": "undefined[^1-1]"},
            "has no density",
            [row("cauchy"), row("uniform-pit", nll=95.0, **NO_DENSITY)],
        ),
    ],
)  # fmt: skip
def test_a_table_shows_and_notes(
    name: str, wanted: dict[str, str], note: str, given: list[Row]
) -> None:
    text = render(*given)
    assert column(text, name) == [*wanted.items()]
    assert note in notes(text)


def test_what_the_referee_found_stands_beside_nll() -> None:
    assert "The referee" not in render(row("cauchy", nll=90.0))
    about = {"ais_images": 20, "ais_temperatures": 400, "ais_chains": 16}
    about |= {"ais_change": 0.04, "ais_change_error": 0.07, "ais_gap": -0.02, "ais_gap_error": 0.09}
    about |= {"params_samples": 100, "params_images": "all"}
    own, other = (json.dumps({"samples": k, "images": "all"}) for k in (100, 1000))
    less = {"ais_less_nll": -0.904, "ais_less_nll_error": 0.23, "protocol": own}
    text = render(
        row("cauchy", 0, nll=120.64, ais_status="accepted", ais=125.15, **about, **less),
        row("cauchy", 1, nll=120.0),
        row("vae", nll=95.0, ais_status="refused", **{**about, "ais_gap": 3.0}),
        row("chi2", nll=97.0, ais_status="accepted", **about, **{**less, "protocol": other}),
    )
    _, _, section = text.partition("## The referee\n")
    section, _, _ = section.partition("\n## ")
    shared = ("20", "400 (16)", "+0.04 ± 0.07")
    rest = ("-0.02 ± 0.09", "accepted", "120.64", "-0.90 ± 0.23", "119.74")
    assert [[*one.values()] for one in table_of(section, "| variant |")] == [
        ["`cauchy`", "0", *shared, *rest],
        ["`vae`", "0", *shared, "+3.00 ± 0.09", "refused", "95.00", "–", "–"],
        ["`chi2`", "0", *shared, "-0.02 ± 0.09", "accepted", "97.00", "–[^ais-1]", "–"],
    ]
    why = "[^ais-1]: AIS was compared with other scores of the run, by another K or on other images"
    assert notes(section) == why


def test_a_refit_that_still_gained_is_reported() -> None:
    assert columns.STILL_GAINING == refit.STILL_GAINING
    gains = (0.05, 0.34, 0.2)
    text = render(
        *(row("cauchy", seed, refit_last_gain=gain) for seed, gain in enumerate(gains)),
        row("vae", refit_last_gain=0.05),
        row("chi2", refit_last_gain=0.9, nll_from="iw"),
    )
    assert "2 of the 4 refits that nll comes from still gained more than 0.1 nats" in text
    assert "up to 0.34" in text
    found = column(text, "last gain of the refit", "| variant | parameters |")
    assert found == [("cauchy", "0.34"), ("chi2", "–"), ("vae", "0.05")]
    settled = render(row("vae", refit_last_gain=0.05))
    assert "still gained" not in settled


def test_one_of_a_kind_has_no_plural() -> None:
    one = row(params_epochs=1, updates=1, images=1, refit_last_gain=0.2)
    text = render(one)
    assert "budget: 1 epoch, 1 update, B = 128" in text
    assert "mnist-static, static binarisation, 1 test image\n" in text
    assert "The one refit that nll comes from still gained more than" in text
    assert "coverage: 1 of 1 cell complete (seeds: 1 complete)" in text
    assert not re.search(r"(?<![.\d])1 [a-z]+s\b", text)
    about = {"params_epochs": 2, "updates": 2, "images": 2, "refit_last_gain": 0.2}
    two = render(row(**about), row("vae", **about))
    for words in ("2 epochs, 2 updates", "2 test images", "2 of the 2 refits", "2 of 2 cells"):
        assert words in two


def test_a_row_may_have_the_places_between_what_is_better_and_what_is_worse() -> None:
    """Each row is a nat worse than the one before, which two seeds do not show; two nats are.

    That one seed ranks nothing is on the golden page of runs by hand.
    """
    base_B = np.random.default_rng(0).normal(90, 10, 200)
    own = {"a": (0.0, 0.0), "b": (0.9, 1.1), "c": (2.0, 2.0), "d": (2.9, 3.1), "e": (-9.0, 20.0)}
    given = [
        row(name, seed, nll=90 + np.mean(offs)) for name, offs in own.items() for seed in (0, 1)
    ]
    given += [row("apart", seed, nll=94.0) for seed in (7, 8)]
    offs = {(f"key-{name}", seed): own[name][seed] for name in own for seed in (0, 1)}
    offs |= {("key-apart", seed): 4.0 for seed in (7, 8)}
    text = render(*given, nll={key: base_B + off for key, off in offs.items()})
    places = {"a": "1–4", "b": "1–5", "c": "2–6", "d": "3–6", "apart": "1–6", "e": "1–6"}
    assert column(text, "rank") == [*places.items()]
    # where a bound is loose, its row may lie below those that are lower
    loose = [one | {"refit_v_mean": "12"} if one["variant"] == "d" else one for one in given]
    text = render(*loose, nll={key: base_B + off for key, off in offs.items()})
    places = {"a": "1–5", "b": "1–6", "c": "2–6", "d": "1–6", "apart": "1–6", "e": "1–6"}
    assert column(text, "rank") == [*places.items()]
    assert "A row whose v is above 10, or whose weights gain more than 0.2 nats" in text


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("dataset", "omniglot", "data"),
        ("data_hash", "other", "the data's contents"),
        ("binarisation", "dynamic", "binarisation"),
        ("params_precision", "bf16", "precision"),
        ("samples", 1000, "K"),
        ("protocol_key", "p2", "the scoring protocol"),
        ("params_epochs", 250, "epochs"),
        ("params_steps", 64, "T"),
        ("params_hidden", 64, "H"),
        ("params_batch", 32, "B"),
        ("core_version", 1, "version of the core"),
        ("look", "look", "preset"),
    ],
)
def test_what_is_not_comparable_never_shares_a_table(name: str, value: Any, why: str) -> None:
    text = render(row("cauchy"), row("vae"), row("hellinger", **{name: value}))
    assert f"differ in {why} are" in text
    parts = [[one["variant"] for one in table_of(part)] for part in text.split("\n### ")[1:]]
    assert sorted(parts) == [["`cauchy`", "`vae`"], ["`hellinger`"]]
    headings = re.findall(r"^### \d+\. (.*)$", text, re.M)
    assert len(set(headings)) == 2


def test_columns_and_remarks_are_there_only_where_they_say_something() -> None:
    plain = render(row("cauchy"), row("vae", aux=0.0))
    assert not {"aux", "tuned", "gap"} & table_of(plain)[0].keys()
    assert "Every row is untuned" in plain
    assert "A look at the harness" not in plain
    varied = render(
        row("cauchy", tuned="20 trials"), row("vae", aux=1.5, bounds_nll="no", objective=70.0)
    )
    assert [(one["aux"], one["gap"], one["tuned"]) for one in table_of(varied)] == [
        ("–", "–", "tuned[^1-1]"),
        ("1.50", "+20.00", "untuned"),
    ]
    for remark in ("Every row is untuned", columns.GAP):
        assert (remark in plain) != (remark in varied)
    assert "A look at the harness, no verdicts" in render(row(look="look"))


def figure_of(name: str, *given: Row) -> tuple[Any, str]:
    """A figure that is drawn from rows, and its caption."""
    (drawing,) = [each for each in figures.from_csv(given) if each.name == name]
    return drawing.draw(), drawing.caption


def forest(*given: Row) -> tuple[Any, str]:
    """The only axis of the figure of differences, and its caption."""
    figure, caption = figure_of("differences", *given)
    (axis,) = figure.axes
    return axis, caption


ENDS = {"nll_difference": 0.5, "nll_low": 0.1, "nll_high": 0.9, "nll_p_bh": 0.01}


def test_more_cells_than_a_figure_can_take() -> None:
    about = {"effective_dimensions": 2, "objective": 70.0, **ENDS}
    given = [row("vae", cell=str(i), settings=f'{{"n": "{i}"}}', **about) for i in range(70)]
    for name in ("differences", "objective"):
        figure, caption = figure_of(name, *given)
        assert caption.endswith("The best 60 of 70 cells.")
        assert len(figure.axes[0].get_yticks()) == 60
    (legend,) = figure_of("modes", *given)[0].legends
    assert len(legend.get_texts()) == figures.MOST_NAMES


def test_a_charge_is_drawn_as_its_objective_counts_it() -> None:
    """A collapsed seed does not stretch the picture."""
    given = [
        row("min-chi2", 0, charge=10.0, kl=30.0, least_kl_per_charge=2.725),
        row("min-chi2", 1, charge=1e-5, kl=2e-5, least_kl_per_charge=2.725),
        row("cauchy", charge=20.0, kl=20.0),
        row("cauchy", cell="c", charge=32.0, kl=32.0, params_charge_weight=0.25,
            settings='{"charge_weight": "0.25"}'),
    ]  # fmt: skip
    figure, caption = figure_of("charge", *given)
    assert "the sampler of `min-chi2` can cost: 2.725 times its charge." in caption
    assert caption.endswith("1 of 4 seeds lie below 0.1 nats.")
    (axis,) = figure.axes
    assert axis.get_ylim()[0] > 1
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.lines[:3]}
    assert points == {
        "min-chi2": [[10, 30]],
        "cauchy": [[20, 20]],
        "cauchy (charge_weight = 0.25)": [[8, 32]],
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*points]
    assert [each.name for each in figures.from_csv(given[2:])] == ["objective"]


def test_outliers_do_not_press_the_others_together() -> None:
    """They are arrows: the ends of a wide interval, and a single seed."""
    pairs = [(-2.0, 1.0), (-1.0, 3.0), (-1.0, 2.0), (-90.0, 60.0)]
    ends = {"nll_difference": 0.1, "nll_p_bh": 1.0}
    wide = [
        row("vae", cell=str(i), nll_low=low, nll_high=high, **ends)
        for i, (low, high) in enumerate(pairs)
    ]
    ends |= {"nll_low": -2.0, "nll_high": 2.0}
    seeds = [row("cauchy", seed, cell="c", nll=100.0) for seed in range(2)]
    for i, far in enumerate((1.0, 1.5, 300.0)):
        about = {"cell": str(i), "compared_with": "c", **ends}
        seeds += [row("vae", seed, nll=100.0 + far * seed, **about) for seed in range(2)]
    for given, arrows in ((wide, ["<", ">"]), (wide[:3], []), (seeds, [">"])):
        axis, caption = forest(*given)
        assert axis.get_xlim()[1] < 10
        markers = [line.get_marker() for line in axis.get_lines()]
        assert [marker for marker in markers if marker in ("<", ">")] == arrows
        assert ("An arrow: beyond the picture." in caption) == bool(arrows)


def test_the_seeds_behind_a_difference_are_drawn() -> None:
    """One seed that collapsed makes a wide interval; that it was one is seen, wherever it lies."""
    ends = {"nll_difference": 20.0, "nll_low": -30.0, "nll_high": 70.0, "nll_p_bh": 0.7}
    given = [row("cauchy", seed, cell="c", nll=100.0 + seed) for seed in range(5)]
    given += [
        row("gaussian", seed, cell="g", compared_with="c", nll=100.0 + seed + off, **ends)
        for seed, off in enumerate((1.0, -1.0, 2.0, 98.0, 0.0))
    ]
    alone = (given[0], given[5])  # a seed alone is its own estimate
    for rows, wanted in ((given, [[1.0, -1.0, 2.0, 98.0, 0.0]]), (alone, [])):
        axis, caption = forest(*rows)
        strokes = [line for line in axis.get_lines() if line.get_marker() == "|"]
        assert [list(line.get_xdata()) for line in strokes] == wanted
        assert ("Upright strokes: single seeds." in caption) == bool(wanted)
        assert axis.get_xlim()[1] > 98 or not wanted


def test_an_interval_of_one_seed_is_drawn_as_another_kind() -> None:
    pairs = {"a": "one seed: images only; 1 diverged", "b": "3 seeds x 500 images"}
    axis, caption = forest(
        *(row("vae", cell=cell, nll_pairs=text, **ENDS) for cell, text in pairs.items())
    )
    shown = [(line.get_linestyle(), line.get_marker()) for line in axis.get_lines()[1:]]
    assert shown == [(":", "None"), ("None", "x"), ("-", "None"), ("None", "o")]
    assert "A cross: one seed" in caption


def panelled(given: list[Row], curves: list[tuple[float, float]]) -> tuple[Any, list[Any], str]:
    """A figure of curves of two points, one a row; its panels, and its caption."""
    keys = [(one["config_key"], int(one["seed"])) for one in given]
    series = {key: list(enumerate(curve, 1)) for key, curve in zip(keys, curves, strict=True)}
    some = table_rows(given)
    about = ("x", "X", "", ("x", "y"), some, series, figures.Styles(some))
    (drawing,) = record_figures._panelled(*about)
    figure = drawing.draw()
    return figure, [axis for axis in figure.axes if axis.lines], drawing.caption


def test_curves_show_every_seed() -> None:
    given = [row("cauchy", seed) for seed in range(3)]
    figure, (axis,), caption = panelled(given, [(90.0, end) for end in (80.0, 130.0, 180.0)])
    assert sorted(line.get_ydata()[1] for line in axis.lines) == [80, 130, 130, 180]
    assert caption == " Bold lines are means over seeds, thin ones single seeds."
    assert not figure.legends  # its title names the only line


def test_a_variant_s_lines_are_named_as_in_tables() -> None:
    size = record_figures.MOST_LINES
    about = [{}, *({"settings": f'{{"draws": "{n}"}}'} for n in range(size))]
    given = [row("vae", cell=f"c{i}", **more) for i, more in enumerate(about)]
    figure, axes, _ = panelled(given, [(90.0, 80.0)] * len(given))
    assert [axis.get_title() for axis in axes] == ["vae (1)", "vae (2)"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["vae", *(f"vae (draws = {n})" for n in range(size))]


def test_a_curve_has_its_own_baseline_beside_it() -> None:
    """`centred` is compared with the centred baseline, whatever else the page has."""
    given = []
    for grid, variant in (("original", "gaussian"), ("centred", "draw")):
        settings = json.dumps({"grid": grid})
        given.append(row("cauchy", cell=f"cauchy-{grid}", settings=settings))
        given.append(row(variant, cell=grid, compared_with=f"cauchy-{grid}", settings=settings))
    _, axes, caption = panelled(given, [(y, y) for y in (10.0, 30.0, 20.0, 40.0)])
    found = {
        axis.get_title(): {line.get_label(): line.get_ydata()[0] for line in axis.lines}
        for axis in axes
    }
    assert found["gaussian"]["baseline: cauchy (grid = original)"] == 10
    assert found["draw"] == {
        "baseline: cauchy (grid = centred)": 20,
        "draw (grid = centred)": 40,
    }
    assert "the baseline that a curve is compared with" in caption


def test_one_outlier_does_not_flatten_fifteen_panels() -> None:
    tops = [*(150.0 + i for i in range(14)), 9000.0]
    _, axes, caption = panelled([row(f"v{i}") for i in range(15)], [(top, 100.0) for top in tops])
    assert [axis.get_ylim()[1] < 200 for axis in axes] == [True] * 14 + [False]
    assert axes[-1].get_ylim()[1] > 9000
    assert axes[-1].get_title() == "v14 (own scale)"
    assert "(own scale) in its title" in caption


def test_a_variant_has_one_colour_everywhere_and_its_own_marker() -> None:
    names = ["gaussian", "cauchy", *(f"v{i}" for i in range(20))]
    about = {"effective_dimensions": 2.0, "compared_with": "cauchy", **ENDS}
    rows = [row(name, **about) for name in names]
    styles = figures.Styles(table_rows(rows))
    assert styles.variants[0] == "cauchy"  # the baseline comes first
    assert len({(styles.colour(name), styles.marker(name)) for name in names}) == len(names)
    points = {line.get_label(): line for line in figure_of("modes", *rows)[0].axes[0].lines}
    axis, _ = forest(*rows)
    places = dict(
        zip((text.get_text() for text in axis.get_yticklabels()), axis.get_yticks(), strict=True)
    )
    for name in names:
        (line,) = [one for one in axis.lines if one.get_xydata().tolist() == [[0.5, places[name]]]]
        assert line.get_color() == points[name].get_color() == styles.colour(name)


def record_of(path: Path, cell: str, seed: int = 0, **values: Any) -> SeedRecord:
    """A seed's record, with nothing in it but what is given."""
    empty: dict[str, Any] = {"about": {"status": "complete"}, "metrics": [], "scores": {}}
    about = {"seed": seed, "status": "complete", **empty, "environment": {}, **values}
    return SeedRecord(folder=SeedFolder(path / cell, seed), **about)


def drawn(
    folder: Path, given: list[Row], *pictures: str, metrics: Any = None, **values: Any
) -> dict[str, figures.Drawing]:
    """The figures of the records of rows, by name; `metrics` are by cell, all else is of each."""
    records = {}
    for one in given:
        own = values | ({"metrics": metrics[one["cell"]]} if metrics else {})
        record = record_of(folder, one["cell"], **own)
        records[one["config_key"], 0] = record
        for name in pictures:
            fabricated.picture(record.folder.path / f"{name}.png")
    known = {one["variant"] for one in given} & set(registry.names())
    variants = {name: registry.find(name) for name in known}
    found = record_figures.from_records(table_rows(given), records, variants)
    return {each.name: each for each in found}


def titles(drawing: figures.Drawing) -> list[str]:
    """The titles of its panels."""
    return [title for axis in drawing.draw().axes if (title := axis.get_title())]


@pytest.mark.parametrize(
    ("kind", "title", "curves"),
    [("elbo", "uniform-pit", 2), ("recon", "uniform-pit (recon alone)", 1)],
)
def test_a_reconstruction_alone_has_no_elbo_beside_it(
    tmp_path: Path, kind: str, title: str, curves: int
) -> None:
    metrics = {
        name: [  # the last was not finite
            {"epoch": epoch, "validation": value, "validation_kind": own}
            for epoch, value in enumerate((90.0, 80.0, None), 1)
        ]
        for name, own in {"cauchy": "elbo", "uniform-pit": kind, "vae": "elbo"}.items()
    }
    given = [row(name, compared_with="cauchy") for name in metrics]
    figure = drawn(tmp_path, given, metrics=metrics)["curves"].draw()
    found = {axis.get_title(): len(axis.lines) for axis in figure.axes if axis.lines}
    assert found == {"cauchy": 1, title: curves, "vae": 2}


def test_pictures_that_are_left_out_are_counted(tmp_path: Path) -> None:
    """The footprints' own scales are mentioned too: they are drawn one by one."""
    given = [row(f"v{i}") for i in range(11)]
    few = drawn(tmp_path, given[:8], "filter")["filter"]
    assert few.caption.endswith("each picture has its own scale.")
    drawn(tmp_path, given[8:10], "filter")
    many = drawn(tmp_path, given)["filter"]  # the last has no picture
    assert many.caption.endswith("each picture has its own scale. The first 8 of 10 cells.")
    assert len(titles(many)) == 8


LINES = {"dataset": "text-kjv", "binarisation": "none"}


@pytest.mark.parametrize(
    ("picture", "variants", "about", "wanted"),
    [
        ("filter", "vae vae gaussian gaussian gaussian gaussian", {}, "gaussian " * 3 + "vae"),
        ("samples", "vae draw cauchy", {}, "cauchy vae draw"),  # every cell, the baseline first
        # of text three, those first that name samples
        ("samples", "no-attention vae draw cauchy gaussian", LINES, "cauchy draw no-attention"),
    ],
)
def test_which_pictures_come_first(
    tmp_path: Path, picture: str, variants: str, about: dict[str, str], wanted: str
) -> None:
    given = [row(name, cell=f"c{i}", **about) for i, name in enumerate(variants.split())]
    assert titles(drawn(tmp_path, given, picture)[picture]) == wanted.split()


def test_pictures_of_text_are_lines(tmp_path: Path) -> None:
    scores = {"p1": {"canvas_variance": [0.1, 0.2], "kl_per_step": [1.0, 2.0]}}
    names = ("samples", "reconstructions", "entropy", "filter")
    text, images = (
        drawn(tmp_path, [row("cauchy", **about)], *names, scores=scores) for about in (LINES, {})
    )
    steps = {"kl-per-step", "canvas-variance"}
    assert set(text) == {*names, *steps}
    assert set(images) == {"samples", "filter", *steps}
    for drawing in text.values():
        assert drawing.picture()
        about = " ".join(drawing.about("study").values())
        assert "image" not in about
        assert "sigmoid" not in about
    assert "test lines" in text["kl-per-step"].about("s")["caption"]
    assert "test images" in images["kl-per-step"].about("s")["caption"]


def run_of(cell: Any, variant: registry.Variant, **about: Any) -> records.Run:
    """A complete seed of a config, scored by elbo and by AIS."""
    scores = {"p1": {"elbo": 92.0, "objective": 92.0}, "a1": {"protocol": {"estimators": ["ais"]}}}
    seed = record_of(Path(), variant.name, scores=scores)
    about |= {"data_hash": "d1", "data_origin": "published", "source_hash": variant.source_hash}
    key = config.config_key(cell, variant.source_hash, "d1")
    return records.Run(RunRecord(Path(), cell, key, about, {}, {0: seed}), seed)


def plan_of(tmp_path: Path, **values: Any) -> plans.Plan:
    """A study of one's own, read from its file."""
    file = tmp_path / "mine.yaml"
    about = {"name": "mine", "question": "?", "version": 1, "baseline": "cauchy", "seeds": "0"}
    file.write_text(json.dumps(about | values))
    return plans.Plan("mine", study.load(str(file)))


def test_the_preset_of_a_study_makes_a_first_look(tmp_path: Path) -> None:
    """A cell that `run` made under `quick`, at the settings of `laptop`, is a cell of laptop's."""
    plan = plan_of(tmp_path, preset="laptop", variants=["cauchy", "vae"])
    assert plan.study is not None
    runs = [
        run_of(cell.config, cell.variant, preset=preset)
        for cell, preset in zip(plan.study.cells, ("quick", "laptop"), strict=True)
    ]
    made, _ = records.rows_of(plan, runs)
    assert [(one["status"], one["look"]) for one in made] == [("complete", "")] * 2
    assert {one["ais_protocol_key"] for one in made} == {"a1"}  # by which AIS is compared


SOFT = {"dataset": "omniglot", "binarisation": "soft"}


@pytest.mark.parametrize(
    ("variant", "overrides", "differences", "why"),
    [
        ("cauchy", {}, ["+2.33", "-0.07"], ""),  # 92.00 for 89.67 and 92.07
        ("cauchy", {"grid": "centred"}, [], ""),
        ("cauchy", {"charge_weight": 0.25}, [], ""),
        ("cauchy", {"sample_size": 50}, [], ""),
        ("cauchy", {"hidden": 64}, ["not alike"] * 2, "H = 64 here, 256 there"),
        ("cauchy", {"batch": 32}, ["not alike"] * 2, "B = 32 here, 128 there"),
        ("cauchy", {"learning_rate": 0.01}, ["not alike"] * 2, "_rate = 0.01 here, 0.001 there"),
        ("cauchy", {"epochs": 10}, ["not alike"] * 2, "10 epochs here, 250 in the original's code"),
        # DRAW is no code of the original and has its own z
        ("no-attention", {"sample_size": 100}, ["+4.60"], ""),  # 92.00 for 87.40
        ("no-attention", {}, ["not alike"], "Z = 25 here, 100 there"),
        ("draw", {"epochs": 10}, ["not alike"], "10 epochs here, unknown there"),
        # grey targets are those of `soft` alone, and a charge that bounds nothing is no elbo
        ("cauchy", SOFT, ["-27.63", "not alike"], ""),  # 92.00 for 119.63
        ("cauchy", SOFT | {"binarisation": "dynamic"}, ["not alike"] * 2, "dynamic targets here"),
        ("min-chi2", SOFT, ["not alike"] * 2, "it corresponds to objective, which is 92.00 here"),
    ],
)
def test_only_the_published_setting_is_alike(
    variant: str, overrides: dict[str, Any], differences: list[str], why: str
) -> None:
    """Of a run by hand at the paper's setting but for these."""
    found = registry.find(variant)
    run = run_of(config.resolve(found, preset="paper", overrides=overrides), found)
    (made,), _ = records.rows_of(plans.Plan("glas-bench", None), [run])
    text = page.render([made])
    shown = column(text, "difference of the elbo", "| variant | published |")
    assert [each.partition("[")[0] for _, each in shown] == differences
    assert why in notes(text)


@pytest.mark.parametrize(("settings", "yes"), [({}, True), ({"learning_rate": 0.01}, False),
                                               ({"grid": "centred"}, False)])  # fmt: skip
def test_a_study_is_as_published_by_all_that_it_sets(
    tmp_path: Path, settings: dict[str, Any], yes: bool
) -> None:
    """What `set:` changes is on no axis, and a searched value is nobody's default."""
    about: dict[str, Any] = {"preset": "paper", "variants": ["cauchy"]}
    made, _ = records.rows_of(plan_of(tmp_path, **about, set=settings), [])
    alike = [one for one in json.loads(made[0]["published"]) if not one["departs"]]
    assert bool(alike) == yes
    about |= {"space": {"learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}}, "trials": 2}
    made, _ = records.rows_of(plan_of(tmp_path, **about, tuning_seeds="1000"), [])
    assert [one["as_published"] for one in made if one["tuned"]] == [""]


# --------------------------------------------------------------------------- comparisons


def seeds_of(name: str, **values: Any) -> list[Row]:
    return [row(name, seed, **values) for seed in range(5)]


def test_p_is_adjusted_over_all_comparisons_of_a_metric_but_those_of_one_seed() -> None:
    given = [one for name in ("left", "right", "other") for one in seeds_of(name)]
    given += seeds_of("alone")[:1]
    cells = table_rows(given)
    for cell in cells:
        cell.write({"baseline": "" if cell.name == "right" else "right"})
    rng = np.random.default_rng(3)
    base_B = rng.normal(90, 10, 200)
    more = {"left": 0.4, "right": 0.0, "other": np.arange(200) % 7, "alone": 9.0}
    values = {
        (f"key-{name}", seed): base_B + off + rng.normal(0, 0.2) + rng.normal(0, 1, 200)
        for name, off in more.items()
        for seed in range(5)
    }
    compare.write_comparisons(cells, {"nll": values}, ["nll"])
    left, _, other, alone = (cell.first for cell in cells)
    p, p_bh = ([float(first[f"nll_{n}"]) for first in (left, other)] for n in ("p", "p_bh"))
    assert p[1] < p[0]
    assert p_bh == pytest.approx([p[0], 2 * p[1]])
    assert float(alone["nll_low"]) > 8
    assert not alone.keys() & {"nll_p", "nll_p_bh"}


@pytest.mark.parametrize(
    ("left", "right", "metric", "why"),
    [
        ({}, {"params_steps": 64}, "nll", "differ in T"),
        ({"elbo_status": "infinite", "elbo": None}, {}, "elbo", "elbo of left is infinite"),
        ({"iw_samples": 10}, {"iw_samples": 100}, "iw", "iw of different K: 10 and 100"),
    ],
)
def test_cells_that_cannot_be_compared_say_why(
    left: dict[str, Any], right: dict[str, Any], metric: str, why: str
) -> None:
    cells = table_rows([*seeds_of("left", **left), *seeds_of("right", **right)])
    assert why in compare.compare(metric, *cells, {})


def test_seeds_without_values_of_images_are_compared_by_their_means() -> None:
    """The estimate is that of all seeds, and the interval no narrower than it ought to be."""
    rng = np.random.default_rng(4)
    image_B, truth = rng.normal(0, 10, 300), 1.0
    covered = []
    for _ in range(200):
        known = {
            (f"key-{name}", seed): off + image_B + rng.normal(0, 0.5) + rng.normal(0, 2, 300)
            for name, off in (("left", 91.0), ("right", 90.0))
            for seed in range(5)
        }
        given = [row(key[4:], seed, nll=known[key, seed].mean()) for key, seed in known]
        cells = table_rows(given)
        whole = compare.compare("nll", *cells, {"nll": known})
        few = {key: values for key, values in known.items() if key[1] < 2}
        found = compare.compare("nll", *cells, {"nll": few})
        assert found.estimate == pytest.approx(whole.estimate)
        assert found.label == "5 seeds x 300 images, 3 of the seeds by their means"
        covered.append(found.low < truth < found.high)
        beyond = {(key, seed + 5 * (key == "key-left")): v for (key, seed), v in few.items()}
        other = compare.compare("nll", *cells, {"nll": beyond})  # seeds that are not planned
        assert (other.estimate, other.seeds) == (pytest.approx(whole.estimate), 5)
    assert np.mean(covered) > 0.93
    assert isinstance(compare.compare("nll", *cells, {"nll": {}}), str)


def test_a_seed_that_stands_apart_is_no_cell_of_its_own() -> None:
    given = [row("cauchy", 0), row("cauchy", 1, status="scoring"), row("cauchy", 2), row("vae")]
    given[2]["protocol_key"] = "p2"
    text = render(*given)
    assert "coverage: 1 of 2 cells complete (seeds: 3 complete, 1 scoring)" in text
    seeds = [counts.partition("[")[0] for _, counts in column(text, "seeds")]
    assert seeds == ["1 of 3", "1 of 1", "1 of 3"]
    assert "the other seeds of `cauchy` are in another table" in text


# --------------------------------------------------------------------------- csv


def test_a_csv_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    """Its capitals, BOM and line ends are read; what it wrote in its own way is refused."""
    path = tmp_path / "mine.csv"
    row = {"schema": records.SCHEMA, "study": "mine", "cell": "a", "variant": "a", "seed": "0"}
    row |= {"status": "complete", "failed": "true", "nll": "244.68", "config_key": "12345e678901"}
    text = csv_file.write([row]).decode()
    for damaged in (text.replace("true", "TRUE"), text.replace("true", "True")):
        path.write_bytes(damaged.replace("\n", "\r\n").encode("utf-8-sig"))
        assert csv_file.read(path) == [row]
    for old, new in (
        ("true", "WAHR"),
        ("244.68", '"244,68"'),
        ("244.68", "#NUM!"),
        ("12345e678901", "1.2345E+678905"),
        (",0,complete", ",0,Complete"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UsageError, match="spreadsheet"):
            csv_file.read(path)


def test_a_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    """What is of the whole page is written once, and read everywhere."""
    odd = ('a "quoted", | odd\treason', "NA", "")
    about = {"figures": '[{"file": "f.png", "title": "t", "caption": "of the whole page"}]'}
    given = [
        row(reason=text, nll=nll, **about)
        for text, nll in zip(odd, (90, 0.1 + 0.2, None), strict=True)
    ]
    path = tmp_path / "mine.csv"
    path.write_bytes(csv_file.write(given))
    assert path.read_text().count("of the whole page") == 1
    found = csv_file.read(path)
    for one, wanted in zip(found, given, strict=True):
        assert {k: v for k, v in one.items() if v} == {k: v for k, v in wanted.items() if v}
    assert csv_file.write(found) == path.read_bytes()
    assert page.render(found) == page.render(given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no csv of `glas-bench report`: it lacks schema"),
        ("", "cannot be read as csv"),
        ('a,b\n"1,2\n', "cannot be read as csv"),
        ("schema,study,cell,variant,seed,status\n", "it has no rows"),
        ("schema,study,cell,variant,seed,status\n9,s,c,v,0,complete\n", "another version"),
        ("schema,study,cell,variant,seed,status\n2,s,c,v,x,complete\n", ":2: seed 'x'"),
    ],
)
def test_a_file_that_is_none_of_ours(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        csv_file.read(path)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_a_committed_page_is_what_its_csv_gives(path: Path) -> None:
    rows = csv_file.read(path)
    assert page.render(rows) == path.with_suffix(".md").read_text()
    assert csv_file.write(rows) == path.read_bytes()
    drawn = [each.about(rows[0]["study"]) for each in figures.from_csv(rows)]
    assert drawn == page.figures_of(rows)[: len(drawn)]


def alike(one: Any, other: Any) -> bool:
    """Compare JSON: an interval's last digit depends on the processor, all else is equal."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*@laptop.csv")))
def test_committed_runs_come_to_the_verdicts_of_their_page(name: str) -> None:
    rows = csv_file.read(RESULTS / f"{name}.csv")
    planned = plans.find(name, RESULTS).study
    assert planned is not None
    keys: dict[str, str | None] = dict.fromkeys({row["cell"] for row in rows})
    # the row of a seed that waits has no key
    keys |= {row["cell"]: row["config_key"] for row in rows if row["config_key"]}
    arms = decide.arms_in(planned, keys, RESULTS)
    for row in (row for row in rows if row["status"] == "complete"):
        scores = arms[row["cell"]].scores(int(row["seed"]))
        assert scores
        on_csv = [float(row[name]) if row[name] else None for name in ("nll", "elbo")]
        assert [scores["nll"], scores["elbo"]] == on_csv
    shown = [one for row in rows for one in json.loads(row.get("claims") or "[]")]
    on_page = {(one["claim"], str(one["at"])): one for one in shown}
    judged = decide.judge(planned, arms)
    assert len(judged) == len(on_page)
    for verdict in judged:
        one = json.loads(json.dumps(verdict.document()))
        of_page = on_page[one["claim"], str(one["at"])]
        assert alike(one, {name: of_page[name] for name in one})


def test_the_committed_index_is_that_of_its_pages() -> None:
    pages, problems = page.read_pages(RESULTS)
    drawn = [each.about(page.INDEX) for each in figures.of_pages(pages.values())]
    assert page.index(pages, drawn, has_archive=True) == (RESULTS / "README.md").read_text()
    assert problems == []
    assert all((RESULTS / "figures" / one["file"]).is_file() for one in drawn)


# --------------------------------------------------------------------------- --fail-if


def test_fail_if() -> None:
    found = table_rows(
        [
            row("cauchy", elbo=92.0, settings='{"grid": "original"}', failed="true"),
            row("cauchy", cell="b", elbo=89.0, settings='{"grid": "centred"}', params_rate="1.0"),
            row("u", elbo=None, elbo_status="infinite"),
            row("w", status="failed", elbo=None),
            row("better", nll_difference="-3", nll_low="-4", nll_high="-2", params_rate="1.0"),
            row("open", nll_difference="-1", nll_low="-4", nll_high="2"),
            row("lonely", nll_apart="they have no seed in common"),
            row("half", failed="false"),
            *(row("half", seed, status="diverged", failed=None) for seed in (1, 2, 3)),
        ]
    )
    for text, count in [
        ("elbo(cauchy) > 90", 1),
        ("elbo(cauchy) < 95", 2),
        ("elbo(cauchy, grid=centred) > 90", 0),
        ("elbo(cauchy, rate=1) < 90", 1),
        ("failed_share(cauchy, grid=original) > 0.5", 1),
        ("failed_share(half) > 0.7", 1),  # a diverged seed has failed
        ("escaped_share(half) < 0.3", 1),
        ("elbo(u) > 1e6", 1),
        ("elbo(u) < 1e6", 0),
        ("elbo(w) > 90", 1),
        ("nll_low(better) > 0", 0),
        ("nll_high( better, rate=1 ) > 0", 0),
        ("nll_difference(better) < -2", 1),
        ("nll_high(open) > 0", 1),
    ]:
        assert len(fail_if.tripped(fail_if.read(text), found)) == count, text
    for wrong, message in [
        ("elbo(cauchy) == 90", "write METRIC"),
        ("elbo(cauchy) > many", "write METRIC"),
        ("loss(cauchy) > 90", "unknown metric 'loss'"),
        ("objective(cauchy) > 90", "a bound of the same model only"),
        ("objective_low(cauchy) > 90", "a bound of the same model only"),
        ("nll(a) - nll(b) > 0", "write METRIC"),
        ("nll(a) > nll(b)", "nll_difference, nll_low, nll_high"),
        ("failed_share_low(cauchy) > 0", "compared by nll, elbo, iw, refit_iw alone"),
        ("ais_low(cauchy) > 0", "compared by nll, elbo, iw, refit_iw alone"),
        ("share(cauchy, kl > 1) < 1", "write METRIC"),
    ]:
        with pytest.raises(UsageError, match=re.escape(message)):
            fail_if.read(wrong)
    for name, why in [("lonely", "no seed in common"), ("cauchy, rate=1", "with no baseline")]:
        (message,) = fail_if.tripped(fail_if.read(f"nll_low({name}) > 0"), found)
        assert why in message
    with pytest.raises(UsageError, match="Did you mean 'cauchy'"):
        fail_if.tripped(fail_if.read("elbo(couchy) > 1"), found)
    with pytest.raises(UsageError, match="no cell of cauchy has grid = other"):
        fail_if.tripped(fail_if.read("elbo(cauchy, grid=other) > 1"), found)


# --------------------------------------------------------------------------- a whole store

STUDY = """
name: golden
question: Does the report tell all?
version: 1
preset: laptop
set: {epochs: 2}
baseline: cauchy
variants: [cauchy, gaussian, hellinger, uniform-chi2, masked-canvas, chi2]
seeds: 0-4
claims:
  - {text: Gaussian is worse., source: nobody, expect: elbo(gaussian) > elbo(cauchy)}
  - {text: Hellinger is better., source: nobody, expect: nll(hellinger) < nll(cauchy)}
  - {text: Masks fail., source: nobody, expect: failed_share(masked-canvas) > failed_share(cauchy)}
"""

ARMS = {
    "cauchy": Arm(90.0),
    "gaussian": Arm(95.0, gap=4.0),
    "hellinger": Arm(93.0, objective=80.0, scores={"charge": 6.0}),
    "uniform-chi2": Arm(
        99.0,
        objective=70.0,
        scores={"elbo": None, "elbo_status": "infinite", "iw": None, "iw_status": "infinite"},
    ),
    "masked-canvas": Arm(91.0, scores={"failed": True}),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a study and by hand, on two data sets, with all that can be amiss."""
    results = tmp_path_factory.mktemp("golden")
    file = results / "golden.yaml"
    file.write_text(STUDY)
    plan = study.load(str(file))
    folders = []
    for cell in plan.cells:
        arm = ARMS.get(cell.variant.name)
        if arm is None:
            continue  # chi2 has not been begun
        folder = fabricated.cell(results, cell.variant, cell.config)
        folders.append(folder.path)
        seeds = {"gaussian": [0, 1, 2, 3], "hellinger": [0, 1, 2, 4]}.get(cell.variant.name)
        fabricated.finish(folder, cell.config, arm, plan.seeds if seeds is None else seeds)
        if cell.variant.name == "gaussian":
            fabricated.train(folder.seed(4), cell.config)
            fabricated.status(folder.seed(4), "diverged", step=77, reason="not\nfinite")
        if cell.variant.name == "masked-canvas":
            shutil.rmtree(folder.seed(3).path)
            fabricated.status(folder.seed(3), "failed", reason="its process ended by signal 9")
    about = {"file": str(file), "preset": plan.preset, "dataset": plan.dataset}
    note_study(results, plan.name, dict.fromkeys(folders, ""), **about)
    for dataset, data in (("mnist-static", "d1"), ("omniglot", "o1")):
        for name in ("cauchy", "vae"):
            variant = registry.find(name)
            resolved = config.resolve(
                variant, preset="short", dataset=dataset, overrides={"epochs": 2}
            )
            folder = fabricated.cell(results, variant, resolved, "short", data)
            fabricated.finish(folder, resolved, Arm(100.0 if name == "vae" else 99.0), [0])
    with store.quiet_mlflow():
        there = store.Store(results)
        there.use("somebody-elses")
        there.client.create_run(there.experiment_id, run_name="a stranger")
        there.use("golden")
        there.client.create_run(there.experiment_id, run_name="a stranger")
        there.client.create_run(
            there.experiment_id, run_name="broken", tags={"glas_bench.schema": "1"}
        )
    return results


EVERYTHING: dict[str, Any] = {"html": True, "latex": True, "as_json": True}
EVERYTHING["formats"] = ("svg", "pdf")
SUFFIXES = {".md", ".csv", ".html", ".tex", ".json", ".png", ".svg", ".pdf"}


def pages(
    results: Path, *references: Any, out: Path | None = None, **about: Any
) -> tuple[report.Answer, list[str]]:
    """Make pages; return the answer, and what was said meanwhile."""
    messages: list[str] = []
    names = list(map(str, references))
    request = report.Request(
        references=names, results=results, out=out, tell=messages.append, **about
    )
    return report.carry_out(request), messages


@pytest.fixture(scope="module")
def made(golden: Path) -> tuple[report.Answer, list[str]]:
    """The pages of that store, made once, and what was said meanwhile."""
    return pages(golden, **EVERYTHING)


@pytest.fixture(scope="module")
def folder(made: tuple[report.Answer, list[str]]) -> Path:
    return made[0].out


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_golden_pages(made: tuple[report.Answer, list[str]]) -> None:
    """To take new pages: GOLDEN_REPORT=1 python -m pytest tests/test_report.py -k golden."""
    answer, messages = made
    names = ("README.md", "golden.md", "glas-bench.md")
    text = "\n\n".join((answer.out / name).read_text(encoding="utf-8") for name in names)
    if os.environ.get("GOLDEN_REPORT"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert answer.exit_code == 3
    assert len(csv_file.read(answer.out / "golden.csv")) == 6 * 5  # one row a planned seed
    assert any("somebody-elses" in line for line in messages)
    assert any("a stranger is not of glas-bench" in line for line in messages)
    assert any("broken is broken" in line for line in messages)


def test_a_claim_on_a_cell_that_has_not_begun_names_that_cell_alone(
    golden: Path, tmp_path: Path
) -> None:
    claim = "claims: [{text: Chi2 is better., source: nobody, expect: nll(chi2) < nll(cauchy)}]"
    (tmp_path / "late.yaml").write_text(STUDY[: STUDY.index("claims:")] + claim)
    pages(golden, tmp_path / "late.yaml", out=tmp_path)
    [verdict] = json.loads(csv_file.read(tmp_path / "golden.csv")[-1]["claims"])
    assert verdict["verdict"] == "undecided"
    assert verdict["why"].endswith("chi2 has 0")
    assert "(nobody) | `nll(chi2) < nll(cauchy)` | –" in (tmp_path / "README.md").read_text()


def test_two_reports_are_the_same_bytes(golden: Path, folder: Path, tmp_path: Path) -> None:
    pages(golden, "golden", out=tmp_path, **EVERYTHING)
    again = files(tmp_path)
    once = files(folder)
    assert {Path(name).suffix for name in again} == SUFFIXES
    assert {name for name in again if name.endswith(".png")}
    for name, content in again.items():
        if name != "README.md":  # the index knows one study less here
            assert content == once[name], name


def test_the_page_from_the_csv_is_the_page_from_mlflow(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_store(*_: object, **__: object) -> None:
        raise AssertionError("the csv is all that it takes")

    monkeypatch.setattr(store, "Store", no_store)
    csvs = (folder / f"{name}.csv" for name in ("golden", "glas-bench"))
    wanted = EVERYTHING | {"formats": ()}
    answer, _ = pages(tmp_path / "nowhere", *csvs, out=tmp_path / "out", **wanted)
    assert answer.exit_code == 3
    again, once = files(tmp_path / "out"), files(folder)
    assert again == {name: once[name] for name in once if not name.endswith((".svg", ".pdf"))}


def test_runs_of_another_machine_make_the_same_csv(
    golden: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is here is the study's file and the address of the MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{golden / 'mlflow.db'}")
    pages(tmp_path, golden / "golden.yaml", out=tmp_path / "out")
    assert not (tmp_path / "runs").exists()
    once, again = (each / "golden.csv" for each in (folder, tmp_path / "out"))
    assert again.read_bytes() == once.read_bytes()


def test_a_store_that_cannot_be_read_leaves_the_runs_of_this_machine(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    answer, problems = pages(golden, "golden", out=tmp_path)
    assert answer.exit_code == 3
    assert "coverage: 3 of 6 cells complete" in (tmp_path / "golden.md").read_text()
    assert sum("cannot read the runs in http://127.0.0.1:9" in line for line in problems) == 1


def test_the_index_keeps_pages_that_were_not_asked_for(folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "other.csv").write_text("a\n1\n")
    pages, problems = page.read_pages(out)
    assert page.index(pages, [], has_archive=False) == (out / "README.md").read_text()
    assert len(problems) == 1


def test_the_figure_of_several_pages_draws_a_seed_once() -> None:
    def of_page(study: str, *given: Row) -> list[TableRow]:
        return table_rows([one | {"study": study, "effective_dimensions": "2"} for one in given])

    def seeds_of(*pages: list[TableRow]) -> dict[str, int]:
        (drawing,) = figures.of_pages(pages)
        (axis,) = drawing.draw().axes
        return {str(each.get_label()): len(each.get_xdata()) for each in axis.lines}

    one = of_page("one", row(seed=0), row(seed=1), row("vae", seed=0, nll=95.0))
    other = of_page("other", row(seed=1), row(seed=2), row("vae", cell="b", seed=0, nll=94.0))
    assert seeds_of(one, other) == {"cauchy": 3, "vae": 2}
    assert list(figures.of_pages([one])) == []  # the page's own figure shows the same
    longer = of_page("longer", row(seed=3, params_epochs=20))
    assert list(figures.of_pages([one, longer])) == []  # no table in common


# --------------------------------------------------------------------------- as a user


class Reader(HTMLParser):
    """What a browser would fetch, link to, and find on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.counts: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] += 1
        found = dict(attrs)
        self.targets += [found[name] for name in ("src", "href") if name in found]
        self.ids += [found["id"]] if "id" in found else []


@pytest.mark.parametrize("study", ["golden", "glas-bench"])
def test_the_html_page_is_one_file_that_has_all_of_the_markdown(folder: Path, study: str) -> None:
    text, markdown = ((folder / f"{study}.{end}").read_text() for end in ("html", "md"))
    found = Reader(text)
    tables = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(found.ids) == len(set(found.ids))
    wanted = {f"#{name}" for name in found.ids}
    inside = [one for one in found.targets if one.startswith("data:image/png;base64,")]
    assert set(found.targets) - set(inside) <= wanted  # nothing is fetched, no link is dead
    assert len(inside) == markdown.count("![")
    assert found.counts["h3"] == len(re.findall(r"^### ", markdown, re.M))
    assert found.counts["tr"] == len(tables)
    bars = sum(len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables)
    assert found.counts["td"] + found.counts["th"] == bars  # all rows are as wide as their head
    assert "[^" not in text.partition("<main>")[2].partition("<script>")[0]
    assert all(
        f'id="note-{name}"' in text for name in re.findall(r"^\[\^(.+?)\]: ", markdown, re.M)
    )


def test_a_page_that_says_html_shows_it_as_text() -> None:
    one = row("cauchy", status="failed", reason="<script>alert(1)</script>")
    text = html_page.render("mine", page.render([one]), {})
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_the_schema_of_results_is_the_committed_one() -> None:
    """Without another VERSION, only new fields may come: then write `results_json.schema()`."""
    assert results_json.schema() == SCHEMA.read_text()


def test_results_fit_their_schema_and_are_those_of_the_csv(folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")  # of the extra `test`
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for name in ("golden", "glas-bench"):
        document = json.loads((folder / f"{name}.json").read_text())
        validator.validate(document)
        rows = csv_file.read(folder / f"{name}.csv")
        seeds = {
            (cell["cell"], seed["seed"], seed["numbers"].get("nll"))
            for table in document["tables"]
            for cell in table["cells"]
            for seed in cell["seeds"]
        }
        wanted = {
            (one["cell"], int(one["seed"]), float(one["nll"]) if one["nll"] else None)
            for one in rows
            if one["cell"] not in document["not_begun"]
        }
        assert seeds == wanted
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(document | {"version": 2})


def test_what_papers_print(folder: Path) -> None:
    text = (folder / "golden.tex").read_text()
    (best,) = [line for line in text.splitlines() if "cauchy & " in line]
    assert re.search(r"& 90\.\d\d\(\d{3,}\) & \{--\} & ", best)
    assert re.search(r"70\.\d\d\(\d+\) \{\\textsuperscript\{\\dag\}\}", text)
    escaped = latex.render([row("a_b%", settings='{"x": "1"}')])
    assert r"a\_b\% (x = 1) & 90.00 & 92.00" in escaped


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX with siunitx")
def test_latex_tables_compile(folder: Path, tmp_path: Path) -> None:
    names = ("golden", "glas-bench")
    body = "".join(rf"\input{{{folder / name}.tex}}" for name in names)
    head = r"\documentclass{article}\usepackage{booktabs,siunitx}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + body + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("name", ["README.md", "golden.md", "golden.csv", "golden.html"])
def test_what_is_not_a_page_is_not_overwritten(name: str, bare_glas: Glas) -> None:
    path = bare_glas.folder / "mine.csv"
    path.write_bytes(csv_file.write([row(study="golden", figures="[]")]))
    out = bare_glas.folder / "project"
    options = ("--out", out, "--html", "--latex", "--json")
    for _ in range(2):  # its own pages are
        done = bare_glas.here("report", path, *options)
        assert done.code == 0
    (one,) = json.loads(done.out)["pages"]
    assert {Path(file).suffix for file in one["files"]} == {".csv", ".md", ".html", ".tex", ".json"}
    (out / "golden.html").write_text("<!-- glas-bench, of old -->")
    assert bare_glas.here("report", path, "--out", out).code == 0  # no file is older than its page
    assert "<main>" in (out / "golden.html").read_text()
    (out / name).write_text("my own notes, all of them\n")
    refused = bare_glas.here("report", path, "--out", out)
    assert refused.code == 2
    assert f"{out / name} is not of glas-bench" in refused.err
    assert (out / name).read_text() == "my own notes, all of them\n"


def test_a_study_from_sweep_to_report(glas: Glas) -> None:
    (glas.folder / "tiny.yaml").write_text(
        "name: tiny\nquestion: Does it?\nversion: 1\npreset: smoke\n"
        "set: {steps: 2, hidden: 16, epochs: 1, samples: 3}\nbaseline: cauchy\n"
        "variants: [cauchy]\ngrid: {filter_size: [2, 5]}\nseeds: 0\n"
    )
    study_file = glas.folder / "tiny.yaml"
    done = glas("sweep", study_file, "--json")
    assert done.code == 0, done.err
    first_report = glas.here("report", "--fail-if", "elbo(cauchy) > 9000")
    assert first_report.code == 0, first_report.err
    assert "tiny: 2 of 2 cells complete (seeds: 2 complete)" in first_report.out
    out = glas.results / "report"
    text = (out / "tiny.md").read_text()
    assert "`glas-bench sweep tiny.yaml`" in text
    assert "tiny-samples.png" in text
    assert "tiny-filter.png" in text
    assert "tiny-axis-filter_size.png" in text
    tripped = glas.here("report", "tiny", "--fail-if", "nll(cauchy, filter_size=2) > 1")
    assert tripped.code == 4
    assert "tripped: nll(cauchy, filter_size=2) > 1" in tripped.out
    for arguments, words in [
        (("nothing",), "unknown study 'nothing'"),
        (("tiny", "--fail-if", "elbo(cauchy)"), "write METRIC"),
        (("tiny", "--fail-if", "elbo(vae) > 1"), "unknown variant of these pages 'vae'"),
        (("smoke@nopreset",), "unknown preset or data set"),
        (("none.csv",), "there is no file none.csv"),
    ]:
        wrong = glas.here("report", *arguments)
        assert wrong.code == 2, wrong.err
        assert words in wrong.err


@pytest.mark.parametrize("arguments", [(), ("smoke",), ("glas-bench", "--html")])
def test_a_folder_without_results_gets_no_pages(bare_glas: Glas, arguments: Any) -> None:
    (bare_glas.folder / "empty").mkdir()
    (bare_glas.results / "runs").mkdir(parents=True)
    for name, meant in (("reslts", " Did you mean 'results'?"), ("empty", "")):
        wrong = bare_glas.here("report", *arguments, "--results", bare_glas.folder / name)
        assert wrong.code == 2
        assert f"there are no results in {bare_glas.folder / name}.{meant} Name" in wrong.err
        assert wrong.err.count("\n") == 1
    assert files(bare_glas.folder) == {}


def test_plans_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    name, command = "grid-slip@laptop", "glas-bench sweep grid-slip --preset laptop"
    one = plans.find("grid_slip@laptop", tmp_path)
    assert (one.name, one.command) == (name, f"{command} --decide")
    about = {"file": str(study.shipped()["grid-slip"]), "preset": "laptop"}
    note_study(tmp_path, name, {}, **about, dataset="mnist-static", seeds="0-2")
    fewer = plans.find(name, tmp_path)
    assert fewer.command == f"{command} --seeds 0-2"
    for alike in ("grid_slip@laptop", "grid-slip@laptop@mnist-static"):
        assert plans.find(alike, tmp_path) == fewer
    mine = tmp_path / "my_own.yaml"
    mine.write_text("name: my-own\nquestion: q?\nversion: 1\nvariants: [cauchy]\nseeds: 0\n")
    note_study(tmp_path, "my-own", {}, file=str(mine), preset="quick", dataset="mnist-5k")
    assert plans.find("my_own", tmp_path) == plans.find("my-own", tmp_path)
    assert plans.find("glas-bench", tmp_path).study is None  # runs by hand
    with pytest.raises(UsageError, match="Did you mean 'grid-slip'"):
        plans.find("grid-slop", tmp_path)


@pytest.mark.parametrize(
    "where", ["dataset: mnist-static", "set: {dataset: mnist-static}", "grid: {dataset: [%s]}"]
)
def test_a_study_keeps_its_name_wherever_it_names_its_data(tmp_path: Path, where: str) -> None:
    axis = where % "mnist-static, mnist-5k" if "%" in where else where
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nquestion: q?\nversion: 1\nvariants: [cauchy]\nseeds: 0\n{axis}\n")
    planned = study.load(str(path))
    note_study(tmp_path, "mine", {}, file=str(path), preset="quick", dataset=planned.dataset)
    assert plans.find("mine", tmp_path).study == planned
    path.write_text(path.read_text().replace("mnist-static", "omniglot"))
    with pytest.raises(RunError, match=r"mine\.yaml is now the study mine on omniglot"):
        plans.find("mine", tmp_path)
    if axis == where:
        assert study.load(str(path), dataset="omniglot").name == "mine"
        assert study.load(str(path), dataset="mnist-5k").name == "mine@mnist-5k"


def test_a_study_file_has_the_seeds_it_was_swept_with(tmp_path: Path) -> None:
    shipped = study.shipped()["grid-slip"].resolve()
    note_study(tmp_path, "grid-slip", {}, file=str(shipped), seeds="0-2")
    swept = plans.find(str(shipped), tmp_path)
    assert swept.command == "glas-bench sweep grid-slip --seeds 0-2"
    copy = plans.find(shutil.copy(shipped, str(tmp_path)), tmp_path)
    assert copy.command == "glas-bench sweep grid-slip"
    assert plans.find("grid-slip", tmp_path) == swept


def test_a_run_that_is_scored_again_stays_beside_its_neighbours(tmp_path: Path) -> None:
    """The report has the protocol of the run, and names what is scored by another one too."""
    folders = []
    for name in ("cauchy", "gaussian"):
        variant = registry.find(name)
        resolved = config.resolve(variant, preset="laptop")
        folders.append(fabricated.cell(tmp_path, variant, resolved))
        fabricated.finish(folders[-1], resolved, Arm(90.0), [0])
    seed = folders[0].seed(0)
    (key,) = seed.all_scores()
    again = seed.all_scores()[key] | {"samples": 50, "nll": 89.0, "time": 2e9}
    seed.save_scores("abc", again, {"nll": np.full(4, 89.0)})
    runs = records.runs_of([load_run(folder.path) for folder in folders])
    made, remarks = records.rows_of(plans.Plan("glas-bench", None), runs)
    assert {row["protocol_key"] for row in made} == {key}
    (remark,) = remarks
    assert remark.startswith("scored with K = 50, ")
    assert folders[0].path.name in remark
    assert folders[1].path.name not in remark
