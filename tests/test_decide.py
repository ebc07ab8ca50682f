"""Claims: what they may say, and what the records of seeds settle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
from fabricated import Arm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from glas_bench import decide, evaluate, sequential, study
from glas_bench.config import protocol_key
from glas_bench.decide import Verdict
from glas_bench.errors import UsageError
from glas_bench.record import load_run
from glas_bench.study.claims import Condition, parse

# --------------------------------------------------------------------------- the language

INTERACTION = (
    "elbo(gaussian, grid=original) - elbo(cauchy, grid=original) "
    "> elbo(gaussian, grid=centred) - elbo(cauchy, grid=centred)"
)


@pytest.mark.parametrize(
    ("text", "signs", "constant", "direction"),
    [
        ("elbo(gaussian) > elbo(cauchy)", [1, -1], 0, 1),
        ("footprint_perplexity(cauchy) < 20.25", [1], 20.25, -1),
        ("footprint_perplexity(cauchy) < 20.25 cells", [1], 20.25, -1),
        ("0.5 < escaped_share(fixed-random, filter_size=1)", [-1], -0.5, -1),
        ("nll(cauchy) - 1.5 nats > nll(gaussian)", [1, -1], 1.5, 1),
        (INTERACTION, [1, -1, -1, 1], 0, 1),
        ("objective(hellinger) < ais(hellinger)", [1, -1], 0, -1),
        ("gate_perplexity(sigmoid) > footprint_perplexity(cauchy)", [1, -1], 0, 1),
    ],
)
def test_claims_are_signed_sums(
    text: str, signs: list[int], constant: float, direction: int
) -> None:
    parsed = parse(text)
    assert [term.sign for term in parsed.terms] == signs
    assert (parsed.constant, parsed.direction) == (constant, direction)


def test_terms_take_settings_lists_and_one_condition() -> None:
    parsed = parse("share(cauchy, grid=[1, 2], effective_dimensions >= 1.5) > 0.5")
    (term,) = parsed.terms
    assert term.settings == {"grid": [1, 2]}
    assert term.condition == Condition("effective_dimensions", ">=", 1.5)
    assert str(term) == "cauchy, grid=[1, 2], effective_dimensions >= 1.5"


@given(st.sampled_from(["<", "<=", ">", ">="]), st.floats(-5, 5), st.floats(-5, 5))
def test_conditions_are_comparisons(sign: str, value: float, limit: float) -> None:
    assert Condition("nll", sign, limit).holds(value) == eval(f"{value!r} {sign} {limit!r}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nll(a)", "cannot be read; write METRIC"),
        ("nll(a) < nll(b) < nll(c)", "cannot be read"),
        ("nll(a) nll(b) < 3", "cannot be read"),
        ("< nll(a)", "cannot be read"),
        ("3 < 4", "names no metric"),
        ("nll() < 3", "names no variant"),
        ("nll(a, T) < 3", "'T' is no setting=value"),
        ("nll(a, T=1, T=2) < 3", "T is named twice"),
        ("foot_perplexity(a) < 3", "Did you mean 'footprint_perplexity'"),
        ("objective(a) < ais(b)", "a bound of the same model only"),
        ("objective(a) < 90", "a bound of the same model only"),
        ("objective(a) < objective(a, T=1)", "a bound of the same model only"),
        ("nll(a) < elbo(b)", "nll and elbo of different models cannot be compared"),
        ("nll(a) < footprint_perplexity(b)", "nll is in nats and footprint_perplexity in cells"),
        ("nll(a) < 20 cells", "nll is in nats, and the number in cells"),
        ("footprint_perplexity(a) < -3", "never below 0, got -3"),
        ("failed_share(a) < 2", "a share is between 0 and 1, got 2"),
        ("failed_share(a) - failed_share(b) > failed_share(c)", "two at a time"),
        ("share(a) < 1", "has no condition; write share(VARIANT"),
        ("share(a, nll > 1, nll < 3) < 1", "takes one condition"),
        ("share(a, objective > 1) < 1", "unknown metric 'objective'"),
    ],
)
def test_what_no_claim_can_say(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)


# --------------------------------------------------------------------------- studies

BODY = """
name: mine
question: Which?
version: 1
preset: laptop
variants: [cauchy, gaussian]
grid: {{grid: [original, centred]}}
seeds: 0-4
{more}
claims:
{claims}
"""


def plan(tmp_path: Path, *expects: str, more: str = "", about: str = "") -> study.Study:
    """A study of two variants on two grids with these claims."""
    claims = "\n".join(f'  - {{text: t, source: s, expect: "{each}"{about}}}' for each in expects)
    path = tmp_path / "mine.yaml"
    path.write_text(BODY.format(more=more, claims=claims))
    return study.load(str(path))


def arms(
    planned: study.Study, tmp_path: Path, given: dict[str, list[Arm]]
) -> dict[str, decide.Arm]:
    """Arms whose seeds have these scores; a seed that is None has diverged."""
    made = {}
    for cell in planned.cells:
        folder = fabricated.cell(tmp_path / "results", cell.variant, cell.config)
        for number, arm in enumerate(given.get(cell.name, [])):
            if (folder.path / f"seed-{number}").exists():
                continue
            if arm is None:
                fabricated.status(folder.seed(number), "diverged", reason="inf")
            else:
                fabricated.finish(folder, cell.config, arm, [number])
        made[cell.name] = decide.Arm(cell, load_run(folder.path).seeds)
    return made


def seeds(nll: float, spread: float = 0.5, count: int = 5, **scores: Any) -> list[Arm]:
    """Arms of single seeds around a mean."""
    draws = np.random.default_rng(round(100 * nll)).normal(0, spread, 20)
    return [
        Arm(nll=nll + d, seed_spread=0.0, scores={"effective_dimensions": 1.0, **scores})
        for d in draws[:count]
    ]


GRID = "grid=original"


def only(planned: study.Study, there: dict[str, decide.Arm]) -> Verdict:
    (verdict,) = decide.judge(planned, there)
    return verdict


def judged(
    tmp_path: Path, expect: str, *given: list[Arm], more: str = "", about: str = ""
) -> Verdict:
    """The verdict on one claim about `cauchy` and `gaussian` on the original grid."""
    planned = plan(tmp_path, expect, more=more, about=about)
    cells = (f"cauchy {GRID}", f"gaussian {GRID}")
    return only(planned, arms(planned, tmp_path, dict(zip(cells, given, strict=False))))


def estimate_of(verdict: Verdict) -> float:
    assert verdict.last is not None
    assert verdict.last.estimate is not None
    return verdict.last.estimate


CLAIM = "nll(gaussian, grid=original) > nll(cauchy, grid=original)"


def test_a_large_difference_is_settled_at_the_first_look(tmp_path: Path) -> None:
    verdict = judged(tmp_path, CLAIM, seeds(90.0), seeds(100.0))
    assert verdict.word == "reproduced"
    assert verdict.claim.margin == 2.0
    assert [look.seeds for look in verdict.looks] == [5]
    assert verdict.wanted is None
    assert verdict.last is not None
    assert verdict.last.low is not None
    assert 2 < verdict.last.low < verdict.last.estimate < verdict.last.high  # type: ignore[operator]
    document = json.loads(json.dumps(verdict.document()))
    assert document["verdict"] == "reproduced"
    assert document["cells"] == [f"gaussian {GRID}", f"cauchy {GRID}"]


def test_the_interval_is_that_of_welch_and_the_images_at_the_nominal_level(
    tmp_path: Path,
) -> None:
    planned = plan(tmp_path, CLAIM, "elbo(gaussian) > elbo(cauchy)")
    given = {f"cauchy {GRID}": seeds(90.0), f"gaussian {GRID}": seeds(100.0)}
    there = arms(planned, tmp_path, given)
    verdict = decide.judge(planned, there)[0]
    assert verdict.level == 0.05 / 3  # the second claim has a comparison on each grid
    a, b = (
        {n: record.per_image()[f"{cell.protocol}/nll"] for n, record in arm.seeds.items()}
        for arm in (there[f"gaussian {GRID}"], there[f"cauchy {GRID}"])
        for cell in [arm.cell]
    )
    expected = sequential.contrast([a, {n: -values for n, values in b.items()}])
    p = sequential.nominal_p((5, 8, 12, 20), 0.05 / 3)[0]
    assert (verdict.looks[0].low, verdict.looks[0].high) == expected.interval(p)


@pytest.mark.parametrize(
    ("other", "direction", "word"),
    [(80.0, ">", "opposite"), (90.1, ">", "no larger difference"), (80.0, "<", "reproduced")],
)
def test_other_words(tmp_path: Path, other: float, direction: str, word: str) -> None:
    expect = CLAIM.replace(">", direction)
    assert judged(tmp_path, expect, seeds(90.0, 0.2), seeds(other, 0.2)).word == word


def test_what_is_undecided_wants_the_seeds_of_the_next_look(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = {f"cauchy {GRID}": seeds(90.0, 3), f"gaussian {GRID}": seeds(93.0, 3)}
    verdict = only(planned, arms(planned, tmp_path, given))
    assert verdict.word == "undecided"
    assert "look 2 of 4 takes 8 seeds of each arm" in verdict.why
    assert verdict.wanted == 8
    assert "more seeds" in verdict.outlook
    wanted = {name: len(seeds) for name, seeds in decide.seeds_to_run(planned, [verdict]).items()}
    assert wanted.pop(f"cauchy {GRID}") == wanted.pop(f"gaussian {GRID}") == 8
    assert set(wanted.values()) == {5}


def test_a_verdict_is_frozen_whatever_later_seeds_say(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = {f"cauchy {GRID}": seeds(90.0), f"gaussian {GRID}": seeds(100.0)}
    first = only(planned, arms(planned, tmp_path, given))
    later = {
        f"cauchy {GRID}": given[f"cauchy {GRID}"] + seeds(120.0, count=15),
        f"gaussian {GRID}": given[f"gaussian {GRID}"] + seeds(80.0, count=15),
    }
    again = only(planned, arms(planned, tmp_path, later))
    assert first.document() == again.document()


def test_it_depends_on_no_order_and_on_no_other_arm(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = {f"cauchy {GRID}": seeds(90.0, 3), f"gaussian {GRID}": seeds(93.0, 3)}
    there = arms(planned, tmp_path, given)
    turned = {
        name: dataclasses.replace(arm, seeds=dict(reversed(arm.seeds.items())))
        for name, arm in reversed(there.items())
    }
    del turned["cauchy grid=centred"]
    assert [v.document() for v in decide.judge(planned, there)] == [
        v.document() for v in decide.judge(planned, turned)
    ]


def test_a_look_waits_for_its_last_seed(tmp_path: Path) -> None:
    verdict = judged(tmp_path, CLAIM, seeds(90.0, count=4), seeds(100.0))
    assert verdict.word == "undecided"
    assert verdict.why == f"look 1 of 4 takes 5 seeds of each arm: cauchy {GRID} has 4"
    assert verdict.wanted == 5


def test_seeds_follow_the_studys_own(tmp_path: Path) -> None:
    planned = dataclasses.replace(plan(tmp_path, CLAIM), own_seeds=[3, 10, 11])
    assert decide.seeds_at(planned, 2) == [3, 10]
    assert decide.seeds_at(planned, 5) == [3, 10, 11, 12, 13]


# --------------------------------------------------------------------------- the hurdle


def collapsed(count: int) -> list[Arm]:
    return [Arm(nll=206.0 + i, scores={"failed": True}) for i in range(count)]


def test_means_are_over_seeds_that_left_the_mean_image(tmp_path: Path) -> None:
    verdict = judged(tmp_path, CLAIM, seeds(90.0), seeds(100.0, count=4) + collapsed(1))
    assert verdict.word == "reproduced"
    assert verdict.escaped == ((4, 5), (5, 5))
    assert estimate_of(verdict) == pytest.approx(10, abs=1)


def test_shares_that_differ_clearly_withhold_a_verdict_on_means(tmp_path: Path) -> None:
    some, more = (seeds(90.0, count=12), seeds(100.0, count=3) + collapsed(9)), "looks: [12, 20]"
    verdict = judged(tmp_path, CLAIM, *some, more=more)
    assert verdict.word == "undecided"
    assert "3 of 12 seeds of gaussian" in verdict.looks[0].why
    assert "among: escaped" in verdict.looks[0].why
    assert len(verdict.looks) == 1
    assert (verdict.wanted, verdict.outlook) == (None, "")
    conditional = judged(tmp_path, CLAIM, *some, more=more, about=", among: escaped")
    assert conditional.word == "reproduced"
    shares = CLAIM.replace("nll", "escaped_share").replace(">", "<")
    assert judged(tmp_path, shares, *some, more=more).word == "reproduced"


def test_a_claim_gets_no_more_seeds_once_shares_differ_clearly(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = {f"cauchy {GRID}": seeds(90.0), f"gaussian {GRID}": collapsed(5)}
    first = only(planned, arms(planned, tmp_path, given))
    assert "0 of 5 seeds of gaussian" in first.looks[0].why  # p of Fisher's test is .0079
    assert "no seeds are added" in first.why
    assert set(map(len, decide.seeds_to_run(planned, [first]).values())) == {5}
    one_more = {
        f"cauchy {GRID}": seeds(90.0),
        f"gaussian {GRID}": [*collapsed(4), *seeds(90.5)[:1]],
    }
    (tmp_path / "other").mkdir()
    verdict = only(planned, arms(planned, tmp_path / "other", one_more))
    assert verdict.wanted == 8  # p is .048: a mean takes two seeds, and more may come
    later = {
        f"cauchy {GRID}": seeds(90.0, count=8),
        f"gaussian {GRID}": collapsed(5) + seeds(80.0, count=3),
    }
    (tmp_path / "later").mkdir()
    assert only(planned, arms(planned, tmp_path / "later", later)).document() == first.document()


def test_epochs_of_escape_are_compared_by_a_log_rank_test(tmp_path: Path) -> None:
    given = [
        [Arm(nll=nll + i, scores={"escape_epoch": epoch}) for i, epoch in enumerate(epochs)]
        for nll, epochs in ((90.0, (1, 1, 1, 1, 1)), (91.0, (1, 2, 2, None, 2)))
    ]
    verdict = judged(tmp_path, CLAIM, *given)
    last = plan(tmp_path, CLAIM).cells[0].config.epochs
    censored = scipy_stats.CensoredData.right_censored([1, 2, 2, last, 2], [0, 0, 0, 1, 0])
    expected = scipy_stats.logrank(x=censored, y=[1] * 5).pvalue
    assert verdict.escape_p == pytest.approx(float(expected))
    (tmp_path / "same").mkdir()
    same = judged(tmp_path / "same", CLAIM, collapsed(5), collapsed(5))
    assert same.escape_p is None


def test_a_diverged_seed_did_not_leave_the_mean_image(tmp_path: Path) -> None:
    some = [*seeds(90.0, count=4), None]
    verdict = judged(tmp_path, CLAIM, some, seeds(100.0))  # type: ignore[arg-type]
    assert verdict.word == "reproduced"
    assert verdict.escaped == ((5, 5), (4, 5))


def test_all_seeds_collapsed_or_diverged_give_no_number(tmp_path: Path) -> None:
    verdict = judged(tmp_path, CLAIM, collapsed(20), collapsed(20))
    assert verdict.word == "undecided"
    assert "0 of 20 seeds of gaussian" in verdict.why
    assert verdict.outlook == "no look is left"


# --------------------------------------------------------------------------- other claims


def test_a_number_is_compared_with_one_arm(tmp_path: Path) -> None:
    expect = "footprint_perplexity(cauchy, grid=original) < 20.25 cells"
    given = [Arm(scores={"footprint_perplexity": 64.0 + i}) for i in range(5)]
    verdict = judged(tmp_path, expect, given)
    assert verdict.word == "opposite"
    assert verdict.claim.margin == 0
    assert estimate_of(verdict) == pytest.approx(66 - 20.25)


def test_an_interaction_is_judged_over_four_arms(tmp_path: Path) -> None:
    planned = plan(tmp_path, INTERACTION)
    means = {
        "gaussian grid=original": 110.0,
        "cauchy grid=original": 95.0,
        "gaussian grid=centred": 96.0,
        "cauchy grid=centred": 95.5,
    }
    given = {name: seeds(mean, 0.3) for name, mean in means.items()}
    verdict = only(planned, arms(planned, tmp_path, given))
    assert verdict.word == "reproduced"
    assert estimate_of(verdict) == pytest.approx(14.5, abs=1)


@pytest.mark.parametrize(("dimensions", "word"), [(1.1, "reproduced"), (2.4, "undecided")])
def test_shares_of_seeds_that_meet_a_condition(
    tmp_path: Path, dimensions: float, word: str
) -> None:
    expect = (
        "share(gaussian, grid=original, effective_dimensions >= 1.5) "
        "< share(cauchy, grid=original, effective_dimensions >= 1.5)"
    )
    given = (
        seeds(90.0, count=12, effective_dimensions=2.2),
        seeds(91.0, count=12, effective_dimensions=dimensions),
    )
    assert judged(tmp_path, expect, *given, more="looks: [8, 12]").word == word


def test_a_share_is_compared_with_a_number_exactly(tmp_path: Path) -> None:
    expect = "escaped_share(cauchy, grid=original) > 0.2"
    verdict = judged(tmp_path, expect, seeds(90.0, count=12), more="looks: [12]")
    assert verdict.word == "reproduced"
    assert verdict.last is not None
    assert verdict.last.low == pytest.approx(0.025 ** (1 / 12) - 0.2)


def test_a_seed_that_never_escaped_counts_as_one_epoch_past_all(tmp_path: Path) -> None:
    expect = "escape_epoch(cauchy, grid=original) > 3 epochs"
    given = [Arm(scores={"escape_epoch": epoch}) for epoch in (None, 10, 12, 14, 9)]
    epochs = plan(tmp_path, expect).cells[0].config.epochs
    expected = (epochs + 1 + 10 + 12 + 14 + 9) / 5 - 3
    assert estimate_of(judged(tmp_path, expect, given)) == pytest.approx(expected)


def ais(tmp_path: Path, planned: study.Study, lower: float, gap: float) -> dict[str, decide.Arm]:
    """Five seeds of `cauchy` with AIS on a dozen of their images."""
    there = arms(planned, tmp_path, {f"cauchy {GRID}": seeds(90.0, 0.3)})
    arm = there[f"cauchy {GRID}"]
    order = evaluate.scored_images(10_000, "all").numpy()
    for seed in arm.seeds.values():
        values = seed.per_image()[f"{arm.cell.protocol}/objective"]
        protocol = {"estimators": ["ais"], "temperatures": 1000, "chains": 16}
        scores = {"protocol": protocol, "ais_status": "accepted", "gap": gap, "gap_error": 0.0}
        chosen = np.arange(11, -1, -1)
        arrays = {"ais": values[chosen] + lower, "image": order[chosen]}
        seed.folder.save_scores(protocol_key(protocol), scores, arrays)
    return {
        arm.name: dataclasses.replace(arm, seeds=load_run(arm.seeds[0].folder.path.parent).seeds)
    }


@pytest.mark.parametrize(
    ("lower", "gap", "word"),
    [(5.0, 0.1, "reproduced"), (5.0, 4.0, "undecided"), (-5.0, 0.1, "opposite")],
)
def test_an_objective_is_compared_with_ais_on_the_same_images_and_its_gap_is_slack(
    tmp_path: Path, lower: float, gap: float, word: str
) -> None:
    planned = plan(tmp_path, "objective(cauchy, grid=original) < ais(cauchy, grid=original)")
    verdict = only(planned, ais(tmp_path, planned, lower, gap))
    assert verdict.word == word
    assert estimate_of(verdict) == pytest.approx(-lower)


def test_without_ais_a_claim_says_how_to_get_it(tmp_path: Path) -> None:
    expect = "objective(cauchy, grid=original) < ais(cauchy, grid=original)"
    verdict = judged(tmp_path, expect, seeds(90.0))
    assert verdict.word == "undecided"
    assert "--estimator ais" in verdict.why
    assert verdict.wanted is None  # more seeds would lack it too


@pytest.mark.parametrize(("k", "word"), [(10, "reproduced"), (100, "undecided")])
def test_iw_is_compared_at_one_k(tmp_path: Path, k: int, word: str) -> None:
    """It has K draws where nll comes from it, and 10 elsewhere; more draws lower it."""
    expect = "iw(gaussian, grid=original) > iw(cauchy, grid=original)"
    verdict = judged(tmp_path, expect, seeds(90.0, iw_samples=k), seeds(100.0, iw_samples=10))
    assert verdict.word == word
    assert ("iw of different K: 10 and 100" in verdict.why) == (k == 100)
    assert verdict.wanted is None  # more seeds would differ too


def test_k_of_a_seed_that_never_escaped_does_not_matter(tmp_path: Path) -> None:
    expect = "iw(gaussian, grid=original) > iw(cauchy, grid=original)"
    collapsed = Arm(nll=205.0, scores={"failed": True, "iw_samples": 100})
    given = [*seeds(100.0, count=4, iw_samples=10), collapsed]
    assert judged(tmp_path, expect, seeds(90.0, iw_samples=10), given).word == "reproduced"


def test_smoke_and_quick_give_no_verdicts(tmp_path: Path) -> None:
    planned = dataclasses.replace(plan(tmp_path, CLAIM), preset="quick")
    verdict = only(planned, {})
    assert verdict.word == "no verdict"
    assert verdict.why.startswith("quick is a look at the harness")


@pytest.mark.parametrize(
    ("more", "about", "message"),
    [
        ("looks: [8, 5]", "", "mine.yaml:9: looks"),
        ("looks: [1, 5]", "", "rising numbers of seeds from 2"),
        ("margin: -1", "", "mine.yaml:9: margin"),
        ("", ", margin: -1", "mine.yaml:11: claims.0.margin"),
        ("", ", among: all", "mine.yaml:11: claims.0.among"),
    ],
)
def test_faults_in_a_study_name_their_line(
    tmp_path: Path, more: str, about: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, CLAIM, more=more, about=about)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "metric", "message"),
    [
        ("no-attention", "footprint_perplexity", "no-attention has no filter"),
        ("cauchy", "gate_perplexity", "cauchy has no gates"),
        ("uniform-pit", "elbo", "uniform-pit has no density"),
    ],
)
def test_a_metric_that_no_seed_has_is_refused(
    tmp_path: Path, variant: str, metric: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nquestion: Q?\nversion: 1\nvariants: [{variant}]\nseeds: 0-4\n"
        f"claims:\n  - {{text: t, source: s, expect: {metric}({variant}) < 3}}\n"
    )
    with pytest.raises(UsageError) as caught:
        study.load(str(path))
    assert f"mine.yaml:7: {message}" in str(caught.value)
    assert f"no seed of it has {metric}" in str(caught.value)
