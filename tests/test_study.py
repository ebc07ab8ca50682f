"""Study files: what they plan, what they refuse and on which line; what their claims compare."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from glas_bench import config, registry, study
from glas_bench.errors import UsageError
from glas_bench.study import Study

HEAD = """\
name: some
question: Which?
version: 1
preset: smoke
"""


def write(folder: Path, body: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(HEAD + textwrap.dedent(body))
    return path


Load = Callable[..., Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the study of this body, below `HEAD`."""
    return lambda body, **about: study.load(str(write(tmp_path, body)), **about)


def names(found: Study) -> list[str]:
    return [cell.name for cell in found.cells]


def refusal(folder: Path, body: str) -> str:
    with pytest.raises(UsageError) as caught:
        study.load(str(write(folder, body)))
    return str(caught.value)


# --------------------------------------------------------------------------- what is planned


def test_a_grid_is_the_product_of_its_axes(load: Load) -> None:
    found = load("""\
        variants: [cauchy, fixed-random]
        grid: {filter_size: [1, 5], grid: [original, centred]}
        seeds: 0-2
        """)
    expected = [
        f"{variant} filter_size={size} grid={grid}"
        for variant, size, grid in itertools.product(
            ["cauchy", "fixed-random"], [1, 5], ["original", "centred"]
        )
    ]
    assert names(found) == expected
    assert found.seeds == [0, 1, 2]
    first = found.cells[0]
    assert first.params == {"filter_size": 1, "grid": "original"}
    assert first.config == config.resolve(
        registry.find("cauchy"), preset="smoke", study={"filter_size": 1, "grid": "original"}
    )
    assert all(cell.baseline is None for cell in found.cells)


def test_a_baseline_is_matched_and_planned_where_the_grid_does_not_hold_it(load: Load) -> None:
    found = load("""\
        baseline: {variant: cauchy, charge_weight: 1}
        variants: [hellinger, {variant: masked-progressive, rate: [0.5, 2]}]
        grid: {filter_size: [2, 5]}
        seeds: 0
        """)
    expected = {}
    for size in (2, 5):
        baseline = f"cauchy filter_size={size} charge_weight=1.0"
        expected[baseline] = None
        for one in ("hellinger", "masked-progressive rate=0.5", "masked-progressive rate=2.0"):
            expected[f"{one} filter_size={size}"] = baseline
    assert {cell.name: cell.baseline for cell in found.cells} == expected
    assert len(names(found)) == len(expected)


def test_a_baseline_in_the_grid_is_planned_once(load: Load) -> None:
    found = load("""\
        baseline: {variant: cauchy, charge_weight: 1}
        variants: [cauchy, {variant: cauchy, charge_weight: 0.25}]
        seeds: 0
        """)
    assert {cell.name: cell.baseline for cell in found.cells} == {
        "cauchy": None,
        "cauchy charge_weight=0.25": "cauchy",
    }


def test_what_is_set_reaches_the_baseline_of_a_variant_without_that_setting(load: Load) -> None:
    """An axis that a variant lacks does not: its baseline is as published."""
    found = load("""\
        baseline: cauchy
        variants: [hellinger, content]
        set: {filter_size: 3}
        grid: {grid: [centred]}
        skip:
          - {variant: content, axis: filter_size, reason: no filter}
          - {variant: content, axis: grid, reason: no grid}
        seeds: 0
        """)
    baselines = {cell.name: cell.baseline for cell in found.cells if cell.baseline}
    assert baselines == {"hellinger grid=centred": "cauchy grid=centred", "content": "cauchy"}
    for name in baselines.values():
        assert found.by_name[name].config.settings["filter_size"] == 3
    alone = load("""\
        baseline: cauchy
        variants: [cauchy, content]
        set: {filter_size: 3}
        skip: [{variant: content, axis: filter_size, reason: no filter}]
        seeds: 0
        """)
    assert {cell.name: cell.baseline for cell in alone.cells} == {
        "cauchy": None,
        "content": "cauchy",
    }


def test_skips(load: Load) -> None:
    found = load("""\
        variants: [cauchy, content, gaussian]
        grid: {filter_size: [2, 5], grid: [original, centred]}
        skip:
          - {variant: content, axis: filter_size, reason: no filter}
          - {variant: content, axis: grid, reason: no grid}
          - {variant: gaussian, filter_size: 2, grid: centred, reason: too long}
        seeds: 0
        """)
    assert "content" in names(found)
    assert "gaussian filter_size=2 grid=centred" not in names(found)
    assert len(names(found)) == 4 + 1 + 3
    assert [(one.variant, one.axis, one.reason) for one in found.skipped] == [
        ("content", "filter_size", "no filter"),
        ("content", "grid", "no grid"),
        ("gaussian", None, "too long"),
    ]


def test_a_skip_and_a_claim_know_a_number_however_it_is_written(load: Load) -> None:
    found = load("""\
        baseline: cauchy
        variants: [cauchy, gaussian]
        grid: {learning_rate: [1e-3, 1e-4], floor: [1e-3, logsumexp]}
        skip: [{variant: gaussian, learning_rate: "0.001", reason: diverges}]
        seeds: 0-1
        claims:
          - {text: t, source: s, expect: "elbo(gaussian, floor=.001) > elbo(cauchy, floor=1e-3)"}
        """)
    assert len(found.cells) == 6
    assert len(found.claims[0].comparisons) == 1


def test_another_preset_or_data_set_makes_another_study(load: Load) -> None:
    body = "variants: [cauchy, fixed-supervised]\nseeds: 0\n"
    assert load(body).name == "some"
    assert load(body, preset="smoke").name == "some"
    assert load(body, dataset="mnist-5k").name == "some"
    assert load(body, preset="laptop").name == "some@laptop"
    both = load(body, preset="paper", dataset="omniglot")
    assert both.name == "some@paper@omniglot"
    assert {cell.config.dataset for cell in both.cells} == {"omniglot"}
    assert not load(body).verdicts
    assert both.verdicts


def test_what_is_not_applicable_is_listed(load: Load) -> None:
    found = load("variants: [cauchy, fixed-supervised]\nseeds: 0\n", preset="laptop")
    assert found.by_name["cauchy"].not_applicable is None
    assert "needs labels" in str(found.by_name["fixed-supervised"].not_applicable)


def test_set_dataset_and_a_file_beside_the_study(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '"""Mine."""\nfrom glas_bench.model import Glas\n\n\nclass Mine(Glas):\n    """Mine."""\n'
    )
    found = load("""\
        dataset: omniglot
        set: {steps: 2, learning_rate: 3e-4}
        variants: [./mine.py]
        seeds: [3, 1]
        """)
    (cell,) = found.cells
    assert cell.variant.path == (tmp_path / "mine.py").resolve()
    assert (cell.config.dataset, cell.config.learning_rate) == ("omniglot", 3e-4)
    assert cell.config.settings["steps"] == 2
    assert (cell.name, cell.params, found.seeds) == ("mine", {}, [1, 3])


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    """Whatever is set for them: claims and tables know a variant by its name."""
    source = registry.find("cauchy").path.read_text()
    (tmp_path / "cauchy.py").write_text(source + "\n\nOTHER = True\n")
    body = """\
        variants: [cauchy, {variant: ./cauchy.py, filter_size: 2}]
        seeds: 0
        """
    where = f"{tmp_path / 'some.yaml'}:5: "
    assert refusal(tmp_path, body) == f"{where}cauchy has the name cauchy too; rename the file"
    (tmp_path / "cauchy.py").write_text(source)
    assert names(study.load(str(write(tmp_path, body)))) == ["cauchy", "cauchy filter_size=2"]


def test_a_search(load: Load, tmp_path: Path) -> None:
    body = """\
    baseline: {variant: cauchy, latent_size: 9, filter_size: 5}
    variants: [cauchy, gaussian]
    space:
      latent_size: {low: 8, high: 32}
      filter_size: {low: 1, high: 16, at_most: latent_size}
    trials: 7
    tuning_seeds: 1000-1001
    seeds: 0
    claims:
      - {text: t, source: s, expect: nll(cauchy) < nll(gaussian)}
      - {text: t, source: s, expect: "nll(cauchy, latent_size=9, filter_size=5) > nll(cauchy)"}
    """
    found = load(body)
    assert {cell.name: cell.searched for cell in found.cells} == {
        "cauchy latent_size=9 filter_size=5": (),
        "cauchy": ("latent_size", "filter_size"),
        "gaussian": ("latent_size", "filter_size"),
    }
    assert (found.trials, found.tuning_seeds) == (7, [1000, 1001])
    assert found.claims[0].comparisons[0].cells == ("cauchy", "gaussian")
    assert found.claims[1].comparisons[0].cells[0] == "cauchy latent_size=9 filter_size=5"
    assert "filter_size 16 is larger" in refusal(
        tmp_path, body.replace(", at_most: latent_size", "")
    )
    changed = found.by_name["cauchy"].with_values({"latent_size": 16, "filter_size": 3})
    assert (changed.config.settings["latent_size"], changed.config.epochs) == (16, 2)
    assert (changed.searched, changed.key) == ((), "")


# --------------------------------------------------------------------------- what is refused


ONE = "variants: [cauchy] | seeds: 0 | "
SEARCH = ONE + "trials: 2 | tuning_seeds: 9 | space: |   "
FAULTS = [  # line, part of the message, and what follows HEAD, with " | " between its lines
    (7, "Did you mean 'name'?", ONE + "nmae: x"),
    (1, "seeds: missing", "variants: [cauchy]"),
    (7, "'seeds' is given twice, first on line 6", ONE + "seeds: 1"),
    (6, "3-1 is empty; write 1-3", "variants: [cauchy] | seeds: 3-1"),
    (6, "write 0, 0-2 or 0,3,5-7", "variants: [cauchy] | seeds: true"),
    (7, "Did you mean 'cauchy'?", "variants: |   - cauchy |   - cauch | seeds: 0"),
    (7, "cauchy is planned twice", "variants: |   - cauchy |   - cauchy | seeds: 0"),
    (6, "write a variant's name", "variants: |   - {varint: cauchy} | seeds: 0"),
    (8, "mean 'filter_size'?", ONE + "grid: |   filtersize: [1]"),
    (8, "larger than latent", ONE + "grid: |   filter_size: [1, 12]"),
    (8, "Did you mean 'centred'?", ONE + "grid: |   grid: [centered]"),
    (7, "at least 1 item", ONE + "grid: {grid: []}"),
    (6, "list it under skip", "variants: [cauchy, content] | grid: {grid: [original]} | seeds: 0"),
    (8, "it skips nothing", ONE + "skip: |   - {variant: gaussian, grid: x, reason: y}"),
    (8, "a skip gives its reason", ONE + "grid: {steps: [2]} | skip: [{steps: 2}]"),
    (5, "batch 5000 is larger", ONE + "set: {batch: 5000}"),
    (5, "images 600: mnist-5k has 500 test", ONE + "set: {images: 600}"),
    (5, "no setting", "baseline: {variant: cauchy, rate: 1} | variants: [hellinger] | seeds: 0"),
    (7, "there is no space", ONE + "trials: 3"),
    (7, "tuning_seeds", ONE + "space: {learning_rate: {low: 1e-4, high: 1e-3}}"),
    (8, "Did you mean 'log'?", ONE + "space: |   learning_rate: {low: 1e-4, high: 1e-3, logg: 1}"),
    (8, "seeds 0 are reported on", ONE + "space: {steps: {low: 1, high: 3}} | tuning_seeds: 0-3"),
    (7, "no YAML", "variants: [cauchy] | seeds: [0"),
    (6, "1:4 would be a number in base 60", "variants: [cauchy] | seeds: 1:4"),
    (5, "0100 would be a number in base 8", "set: {epochs: 3, batch: 0100} | variants: [vae]"),
    (7, "08 would be a number", "variants: [cauchy] | grid: |   {batch: [1e3, 08]}"),
    (7, "a key is a word", ONE + "set: {{ filled }}"),
    (7, "one yardstick", ONE + "grid: {samples: [5, 10]}"),
    (5, "given twice", "preset: smok | variants: [cauchy] | seeds: 0"),
]
LIMITS = {  # of filter_size by another axis
    "latent_size may be 3, below filter_size's low 5": "latent_size: {low: 3, high: 9}",
    "latent_size may be 'original', which limits no number": "latent_size: {choices: [original]}",
    "latent_size has an at_most itself": "latent_size: {low: 3, high: 9, at_most: steps}",
}
CLAIMING = "variants: [{}] | seeds: 0 | claims: |   - {{text: t, source: s, expect: {}}}"
FAULTS += [
    (7, "looks are rising numbers of seeds from 2", ONE + "looks: [8, 5]"),
    (7, "margin: Input should be greater than or equal to 0", ONE + "margin: -1"),
    (8, "claims.0.margin: Input", CLAIMING.format("vae", "e, margin: -1")),
    (8, "claims.0.among: Input", CLAIMING.format("vae", "e, among: all")),
]
FAULTS += [
    (
        8,
        f"{variant} has no {part}: no seed of it has {metric}",
        CLAIMING.format(variant, f"{metric}({variant}) < 3"),
    )
    for variant, part, metric in (
        ("no-attention", "filter", "footprint_perplexity"),
        ("cauchy", "gates", "gate_perplexity"),
        ("uniform-pit", "density", "elbo"),
    )
]
COMPARED = {
    "nll(cauchy) < nll(gaussian": "cannot be read; write METRIC(VARIANT",
    "nll(cauchy) < nll(gausian)": "Did you mean 'gaussian'?",
    "nll(cauchy) < nll(hellinger)": "Allowed: cauchy, gaussian.",
    "nll(cauchy) < nll(cauchy)": "both sides are the same cell",
    "nll(cauchy, filter_size=3) < nll(gaussian)": "is no cell of this study",
    "nll(cauchy, filtersize=2) < nll(gaussian)": "Did you mean 'filter_size'?",
}
FAULTS += [
    (8, words, CLAIMING.format("cauchy, gaussian", f'"{expect}"') + " | grid: {filter_size: [2]}")
    for expect, words in COMPARED.items()
]
FAULTS += [
    (10, words, f"{SEARCH}filter_size: {{low: 5, high: 9, at_most: latent_size}} |   {axis}")
    for words, axis in LIMITS.items()
]


@pytest.mark.parametrize(("line", "words", "body"), FAULTS)
def test_errors_name_the_line(tmp_path: Path, line: int, words: str, body: str) -> None:
    message = refusal(tmp_path, body.replace(" | ", "\n") + "\n")
    assert message.startswith(f"{tmp_path / 'some.yaml'}:{line}: "), message
    assert words in message


def test_all_faults_of_the_schema_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "variants: []\nseeds: x\nclaims: [{text: a, sorce: b}]\n")
    assert len(message.splitlines()) == 5  # of them a missing source and a missing expect
    assert "Did you mean 'source'?" in message


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("filtersize", r"Did you mean 'filter-size'\?"),
        ("studies/filtr_size.yaml", r"Did you mean 'filter-size'\?"),
        ("./none.yaml", "there is no study file"),
    ],
)
def test_no_study_of_that_name(reference: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        study.find(reference)


# --------------------------------------------------------------------------- claims


def test_a_claim_names_cells_by_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pydantic import Field\nfrom glas_bench import Glas\n\nclass Mine(Glas):\n"
        "    class Settings(Glas.Settings):\n        widths: list[int] = Field([1, 2])\n"
    )
    body = (
        f"variants: [{tmp_path / 'mine.py'}]\ngrid: {{widths: [[1, 2], [3]]}}\nseeds: 0\n"
        'claims: [{text: t, source: s, expect: "nll(mine, widths=[3]) > nll(mine, widths=[1,2])"}]'
    )
    ((claim,), names) = (loaded := study.load(str(write(tmp_path, body)))).claims, loaded.by_name
    assert set(names) == {"mine widths=[1, 2]", "mine widths=[3]"}
    assert [each.cells for each in claim.comparisons] == [("mine widths=[3]", "mine widths=[1, 2]")]


def test_an_axis_left_out_is_gone_through_value_by_value(load: Load) -> None:
    found = load("""\
        variants: [cauchy, fixed-random, content]
        grid: {filter_size: [1, 2], grid: [original, centred]}
        skip:
          - {variant: content, axis: filter_size, reason: none}
          - {variant: content, axis: grid, reason: none}
          - {variant: fixed-random, filter_size: 2, grid: centred, reason: why not}
        seeds: 0
        claims:
          - text: a
            source: b
            expect: failed_share(fixed-random, filter_size=1) < failed_share(cauchy, filter_size=2)
          - {text: a, source: b, expect: elbo(fixed-random) > elbo(cauchy)}
          - {text: a, source: b, expect: "elbo(content) > elbo(cauchy, filter_size=1)"}
          - text: a
            source: b
            expect: nll(cauchy, grid=centred) < nll(cauchy, grid=original)
        """)
    first, second, third, fourth = found.claims
    assert (first.expectation.metrics, first.expectation.direction) == (("failed_share",), -1)
    assert [(*each.cells, each.at) for each in first.comparisons] == [
        (f"fixed-random filter_size=1 grid={g}", f"cauchy filter_size=2 grid={g}", {"grid": g})
        for g in ("original", "centred")
    ]
    assert second.expectation.direction == 1
    assert [each.at for each in second.comparisons] == [
        {"filter_size": 1, "grid": "original"},
        {"filter_size": 1, "grid": "centred"},
        {"filter_size": 2, "grid": "original"},  # the fourth is skipped
    ]
    assert [each.cells for each in third.comparisons] == [
        ("content", "cauchy filter_size=1 grid=original"),
        ("content", "cauchy filter_size=1 grid=centred"),
    ]
    assert [each.at for each in fourth.comparisons] == [{"filter_size": 1}, {"filter_size": 2}]


# --------------------------------------------------------------------------- what is shipped

SHIPPED = {
    "smoke": 4,
    "unsuccessful": 10,
    "masks": 16,
    "pilot": 7,
    "text": 3,
    "attention": 13,
    "grid-slip": 4,
    "grid-parts": 10,
    "filter-size": 12,
    "latent-init": 8,
    "uniform-prior": 4,
    "divergence": 6,
    "divergence-orders": 7,
    "supervised": 5,
    "depth": 6,
    "original-search": 3,
    "published": 12,
}


def test_what_is_shipped() -> None:
    assert set(study.shipped()) == set(SHIPPED)
    assert study.SHIPPED.resolve() == (Path(__file__).parents[1] / "studies").resolve()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies(name: str) -> None:
    found = study.load(name.replace("-", "_"), "smoke")
    assert found.name == (name if name == "smoke" else f"{name}@smoke")
    assert len(found.cells) == SHIPPED[name]
    assert found.question.endswith("?")
    for claim in found.claims:
        assert claim.source.startswith(("GLAS README", "glas-bench"))
        assert claim.comparisons
    baselines = {cell.baseline for cell in found.cells} - {None}
    assert {found.by_name[str(each)].variant.name for each in baselines} <= {"cauchy"}
    for preset in ("quick", "laptop", "paper"):  # at home, and where there are no labels
        assert study.load(name, preset).cells


def test_claims_about_attention_masks_and_fixed_latents_are_judged_on_their_own_q() -> None:
    """They change q alone (design: "poor optimisation" is elbo, "cannot reconstruct" a share)."""
    of_q = {"gaussian", "sigmoid", "softmax", "content", "masked-progressive", "masked-canvas"} | {
        "masked-gradient"
    }
    for name in study.shipped():
        for claim in study.load(name).claims:
            left, unit = claim.expectation.terms[0], claim.expectation.unit
            if left.variant == "fixed-random":
                assert unit in ("share", "epochs")
            elif unit == "nats" and claim.preset is None and left.variant != "cauchy":
                metric = "elbo" if left.variant in of_q else "nll"
                assert left.metric in (metric, "objective")


@pytest.mark.parametrize(
    ("name", "parts"),
    [  # the headline on every grid; every part of the mending alone
        ("grid-slip", [" grid=original", " grid=centred"]),
        (
            "grid-parts",
            ["", *(" grid=slip-mended", " grid=centred", " floor=logsumexp", " filter_init=small")],
        ),
    ],
)
def test_gaussian_is_judged_against_cauchy_at_each_setting(name: str, parts: list[str]) -> None:
    compared = [each.cells for claim in study.load(name).claims for each in claim.comparisons]
    assert compared[: len(parts)] == [(f"gaussian{part}", f"cauchy{part}") for part in parts]


def test_importing_studies_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, glas_bench.study; print({'torch', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_other_seeds_are_the_same_study_and_never_those_of_tuning():
    found = study.load("grid-slip", seeds=[2, 0, 1])
    assert (found.name, found.seeds, found.own_seeds) == ("grid-slip", [0, 1, 2], [0, 1, 2, 3, 4])
    searching = study.load("original-search")
    with pytest.raises(UsageError, match="what is tuned on is not reported on"):
        study.load("original-search", seeds=searching.tuning_seeds[:1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, f"{name} is reserved") for name in ("glas-bench", "readme", "mine-by-hand")),
        *((name, "name: String should match pattern") for name in ("README", "Glas-Bench")),
        ("a" * 250, "name: String should have at most 80 characters"),  # as a folder
    ],
)
def test_names_of_other_pages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Mine-by-hand")
    path = tmp_path / "some.yaml"
    path.write_text(HEAD.replace("some", name) + "variants: [cauchy]\nseeds: 0\n")
    with pytest.raises(UsageError, match=f"some.yaml:1: {words}"):
        study.load(str(path))
