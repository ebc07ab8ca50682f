"""Claims: what they may say, and what the records of seeds settle."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
import yaml
from fabricated import Arm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from glas_bench import decide, evaluate, sequential, study
from glas_bench.config import protocol_key
from glas_bench.decide import Verdict
from glas_bench.errors import NewerRecord, UsageError
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
        ("share(a, nll > 1.2.3) < 1", "is no setting=value"),
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


Judged = Callable[..., Verdict]


def plan(tmp_path: Path, *expects: str, more: str = "", about: str = "") -> study.Study:
    """A study of two variants on two grids with these claims."""
    claims = "\n".join(f'  - {{text: t, source: s, expect: "{each}"{about}}}' for each in expects)
    path = tmp_path / "mine.yaml"
    path.write_text(BODY.format(more=more, claims=claims))
    return study.load(str(path))


def arms(
    planned: study.Study, folder: Path, given: Mapping[str, Sequence[Arm | None]]
) -> dict[str, decide.Arm]:
    """Arms whose seeds have these scores; a seed that is None has diverged."""
    made = {}
    for cell in planned.cells:
        run = fabricated.cell(folder, cell.variant, cell.config)
        for number, arm in enumerate(given.get(cell.name, ())):
            if arm is None:
                fabricated.status(run.seed(number), "diverged", reason="inf")
            else:
                fabricated.finish(run, cell.config, arm, [number])
        made[cell.name] = decide.Arm(cell, load_run(run.path).seeds)
    return made


def seeds(nll: float, spread: float = 0.5, count: int = 5, **scores: Any) -> list[Arm]:
    """Arms of single seeds around a mean."""
    draws = np.random.default_rng(round(100 * nll)).normal(0, spread, 20)
    return [
        Arm(nll=nll + d, seed_spread=0.0, scores={"effective_dimensions": 1.0, **scores})
        for d in draws[:count]
    ]


def collapsed(count: int, **scores: Any) -> list[Arm]:
    """Arms of seeds that never left the mean image."""
    return [Arm(nll=206.0 + i, scores={"failed": True, **scores}) for i in range(count)]


def only(planned: study.Study, there: dict[str, decide.Arm]) -> Verdict:
    (verdict,) = decide.judge(planned, there)
    return verdict


GRID = "grid=original"
VARIANTS = ("gaussian", "cauchy")
ARMS = (f"cauchy {GRID}", f"gaussian {GRID}")
CLAIM = f"nll(gaussian, {GRID}) > nll(cauchy, {GRID})"


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Judge one claim by the seeds of `cauchy` and of `gaussian` on the original grid."""
    folders = (tmp_path / str(number) for number in itertools.count())

    def judge(expect: str, *given: Sequence[Arm | None], **about: str) -> Verdict:
        planned = plan(tmp_path, expect, **about)
        return only(planned, arms(planned, next(folders), dict(zip(ARMS, given, strict=False))))

    return judge


def test_a_large_difference_is_settled_at_the_first_look(judged: Judged) -> None:
    verdict = judged(CLAIM, seeds(90.0), seeds(100.0))
    assert verdict.word == "reproduced"
    assert verdict.claim.margin == 2.0
    assert [look.seeds for look in verdict.looks] == [5]
    assert verdict.wanted is None
    assert 2 < verdict.last.low < verdict.last.estimate < verdict.last.high
    document = json.loads(json.dumps(verdict.document()))
    assert document["verdict"] == "reproduced"
    assert document["cells"] == [*reversed(ARMS)]
    # later seeds change nothing
    more = (seeds(nll, count=15) for nll in (120.0, 80.0))
    later = (first + each for first, each in zip((seeds(90.0), seeds(100.0)), more, strict=True))
    assert judged(CLAIM, *later).document() == verdict.document()


def test_the_interval_is_that_of_welch_and_the_images_at_the_nominal_level(
    tmp_path: Path,
) -> None:
    planned = plan(tmp_path, CLAIM, "elbo(gaussian) > elbo(cauchy)")
    there = arms(planned, tmp_path, dict(zip(ARMS, (seeds(90.0), seeds(100.0)), strict=True)))
    verdict = decide.judge(planned, there)[0]
    assert verdict.level == 0.05 / 3  # the second claim has a comparison on each grid
    b, a = (
        {n: seed.per_image()[f"{arm.protocol}/nll"] for n, seed in arm.seeds.items()}
        for arm in map(there.__getitem__, ARMS)
    )
    expected = sequential.contrast([a, {n: -values for n, values in b.items()}])
    p = sequential.nominal_p((5, 8, 12, 20), 0.05 / 3)[0]
    assert (verdict.looks[0].low, verdict.looks[0].high) == expected.interval(p)


def test_a_claim_that_seeds_are_not_likely_to_decide_gets_none(judged: Judged) -> None:
    both = [seeds(nll, spread=2.0, count=20) for nll in (90.0, 92.0)]
    there = judged(CLAIM, *(each[:12] for each in both))
    assert (there.word, there.wanted, len(there.looks)) == ("undecided", None, 3)
    wanted = r"more seeds, .* decide with probability at most 0\.0[0-4]: none are added"
    assert re.fullmatch(wanted, there.why)
    assert "would probably be decided by now" in there.outlook
    # one that is likely enough to be decided gets more
    assert judged(CLAIM, *(each[:5] for each in both)).wanted == 8
    # and where they are there, the look is taken
    assert len(judged(CLAIM, *both).looks) == 4


def forget(arm: decide.Arm, *numbers: int) -> None:
    """Leave these seeds without values of single images, as seeds of a page's csv are."""
    for number in numbers:
        path = arm.seeds[number].folder.path
        key, scores = next(iter(arm.seeds[number].scores.items()))
        (path / "per_image.npz").unlink()
        arm.seeds[number].folder.save_scores(key, scores, {})


def test_seeds_without_values_of_images_have_the_spread_of_the_others(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    there = arms(planned, tmp_path, dict(zip(ARMS, (seeds(90.0), seeds(90.5)), strict=True)))
    whole = only(planned, there)
    gaussian, cauchy = (there[name] for name in reversed(ARMS))
    forget(cauchy, 0, 1, 2, 3)
    forget(gaussian, 0, 1)
    verdict = only(planned, there)
    assert verdict.word == whole.word == "undecided"
    assert verdict.looks[0].estimate == pytest.approx(whole.looks[0].estimate, abs=1e-9)

    stored = [
        {n: seed.per_image().get(f"{arm.protocol}/nll") for n, seed in arm.seeds.items()}
        for arm in (gaussian, cauchy)
    ]
    about = [np.mean([v for v in own.values() if v is not None], 0) for own in stored]
    images = (about[0] - about[1]).std(ddof=1) / np.sqrt(fabricated.IMAGES)
    means = [
        [seed.scores[arm.protocol]["nll"] for seed in arm.seeds.values()]
        for arm in (gaussian, cauchy)
    ]
    welch = scipy_stats.ttest_ind(*means, equal_var=False)
    p = sequential.nominal_p((5, 8, 12, 20), 0.05)[0]
    low, high = welch.confidence_interval(1 - p)
    share = (images * scipy_stats.norm.isf(p / 2)) ** 2
    half = np.sqrt(((high - low) / 2) ** 2 + share)
    assert (verdict.looks[0].high - verdict.looks[0].low) / 2 == pytest.approx(half, rel=1e-6)

    forget(cauchy, 4)
    (look,) = only(planned, there).looks
    assert (look.word, look.low) == ("undecided", None)
    assert look.why == f"no seed of {cauchy.name} has values of two images: score two or more"


@pytest.mark.parametrize(
    ("other", "direction", "word"),
    [(80.0, ">", "opposite"), (90.1, ">", "no larger difference"), (80.0, "<", "reproduced")],
)
def test_other_words(judged: Judged, other: float, direction: str, word: str) -> None:
    expect = CLAIM.replace(">", direction)
    assert judged(expect, seeds(90.0, 0.2), seeds(other, 0.2)).word == word


def test_what_is_undecided_wants_the_seeds_of_the_next_look(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    there = arms(planned, tmp_path, dict(zip(ARMS, (seeds(90.0, 3), seeds(93.0, 3)), strict=True)))
    verdict = only(planned, there)
    assert verdict.word == "undecided"
    assert "look 2 of 4 waits for 8 seeds of each arm" in verdict.why
    assert verdict.wanted == 8
    assert "more seeds" in verdict.outlook
    wanted = {name: len(seeds) for name, seeds in decide.seeds_to_run(planned, [verdict]).items()}
    assert [wanted.pop(name) for name in ARMS] == [8, 8]
    assert set(wanted.values()) == {5}
    # neither order nor another arm matters
    turned = {
        name: dataclasses.replace(arm, seeds=dict(reversed(arm.seeds.items())))
        for name, arm in reversed(there.items())
    }
    del turned["cauchy grid=centred"]
    assert only(planned, turned).document() == verdict.document()


def test_a_look_waits_for_its_last_seed(judged: Judged) -> None:
    verdict = judged(CLAIM, seeds(90.0, count=4), seeds(100.0))
    assert verdict.word == "undecided"
    assert verdict.why == f"look 1 of 4 waits for 5 seeds of each arm: cauchy {GRID} has 4"
    assert verdict.wanted == 5


def test_seeds_follow_the_studys_own(tmp_path: Path) -> None:
    planned = dataclasses.replace(plan(tmp_path, CLAIM), own_seeds=[3, 10, 11])
    assert decide.seeds_at(planned, 2) == [3, 10]
    assert decide.seeds_at(planned, 5) == [3, 10, 11, 12, 13]
    # those that a search chose settings by are reported of nothing
    planned = dataclasses.replace(planned, tuning_seeds=[12, 14])
    assert decide.seeds_at(planned, 5) == [3, 10, 11, 13, 15]


def test_a_metric_without_images_is_subtracted_from_each_image(judged: Judged) -> None:
    """`kl` has one number a seed, `elbo` one an image."""
    mine = [dataclasses.replace(one, scores={"kl": 20.0}) for one in seeds(90.0)]
    for expect, sign in (
        (f"kl(cauchy, {GRID}) < elbo(cauchy, {GRID})", -1),
        (f"elbo(cauchy, {GRID}) > kl(cauchy, {GRID})", 1),
    ):
        verdict = judged(expect, mine)
        elbo = np.mean(
            [fabricated.per_image(one, n).mean() + one.gap for n, one in enumerate(mine)]
        )
        assert verdict.looks[0].estimate == pytest.approx(sign * (elbo - 20.0))
        assert verdict.word == "reproduced"
        assert verdict.looks[0].high - verdict.looks[0].low > 1  # the images' error is there


def test_images_of_own_data_are_compared_where_it_is_known_which_they_are(tmp_path: Path) -> None:
    planned = plan(tmp_path, f"elbo(cauchy, {GRID}) > kl(cauchy, {GRID})")
    there = arms(planned, tmp_path, {ARMS[0]: seeds(90.0)})[ARMS[0]]
    config = there.cell.config.model_copy(update={"dataset": "images"})
    own = dataclasses.replace(there, cell=dataclasses.replace(there.cell, config=config))
    assert only(planned, {own.name: own}).word == "reproduced"
    some = {"protocol": {"images": fabricated.IMAGES}}
    few = [dataclasses.replace(one, scores=some) for one in seeds(90.0)]
    there = arms(planned, tmp_path / "few", {ARMS[0]: few})[ARMS[0]]
    own = dataclasses.replace(there, cell=own.cell)
    why = "which images of images were scored is not recorded: set images to all"
    assert only(planned, {own.name: own}).looks[0].why == why


def test_equal_seeds_are_given_no_more(judged: Judged) -> None:
    same = [dataclasses.replace(one, scores={"active_units": 200}) for one in seeds(90.0)]
    verdict = judged(f"active_units(gaussian, {GRID}) > active_units(cauchy, {GRID})", same, same)
    assert (verdict.word, verdict.wanted) == ("undecided", None)
    assert verdict.why == "both sides are equal on every seed"


def test_a_later_seed_without_a_metric_undoes_no_look(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = dict(zip(ARMS, (seeds(90.0, count=6), seeds(100.0, count=6)), strict=True))
    there = arms(planned, tmp_path, given)
    forget(there[ARMS[0]], 0)
    whole = only(planned, there)
    late = there[ARMS[0]].seeds[5].folder
    (late.path / "per_image.npz").write_bytes(b"broken")
    assert only(planned, there).word == whole.word == "reproduced"


def test_records_of_a_newer_version_are_named(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    cell = planned.by_name[ARMS[0]]
    run = fabricated.cell(tmp_path, cell.variant, cell.config)
    about = yaml.safe_load((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(yaml.safe_dump(about | {"schema": 99}))
    with pytest.raises(NewerRecord, match="newer"):
        decide.arms_in(planned, {cell.name: run.key}, tmp_path)


# --------------------------------------------------------------------------- the hurdle


@pytest.mark.parametrize("lost", [*collapsed(1), None], ids=["collapsed", "diverged"])
def test_means_are_over_seeds_that_left_the_mean_image(judged: Judged, lost: Arm | None) -> None:
    verdict = judged(CLAIM, seeds(90.0), [*seeds(100.0, count=4), lost])
    assert verdict.word == "reproduced"
    assert verdict.escaped == ((4, 5), (5, 5))
    assert verdict.last.estimate == pytest.approx(10, abs=1)


def test_shares_that_differ_clearly_withhold_a_verdict_on_means(judged: Judged) -> None:
    some, more = (seeds(90.0, count=12), seeds(100.0, count=3) + collapsed(9)), "looks: [12, 20]"
    verdict = judged(CLAIM, *some, more=more)
    assert verdict.word == "undecided"
    assert "3 of 12 seeds of gaussian" in verdict.looks[0].why
    assert "among: escaped" in verdict.looks[0].why
    assert len(verdict.looks) == 1
    assert (verdict.wanted, verdict.outlook) == (None, "")
    assert judged(CLAIM, *some, more=more, about=", among: escaped").word == "reproduced"
    shares = CLAIM.replace("nll", "escaped_share").replace(">", "<")
    assert judged(shares, *some, more=more).word == "reproduced"


def test_a_claim_gets_no_more_seeds_once_shares_differ_clearly(
    judged: Judged, tmp_path: Path
) -> None:
    first = judged(CLAIM, seeds(90.0), collapsed(5))
    assert "0 of 5 seeds of gaussian" in first.looks[0].why  # p of Fisher's test is .0079
    assert "no seeds are added" in first.why
    assert set(map(len, decide.seeds_to_run(plan(tmp_path, CLAIM), [first]).values())) == {5}
    one_more = judged(CLAIM, seeds(90.0), [*collapsed(4), *seeds(90.5)[:1]])
    assert one_more.wanted == 8  # p is .048: a mean takes two seeds, and more may come
    later = judged(CLAIM, seeds(90.0, count=8), collapsed(5) + seeds(80.0, count=3))
    assert later.document() == first.document()


def test_epochs_of_escape_are_compared_by_a_log_rank_test(judged: Judged, tmp_path: Path) -> None:
    given = [
        [Arm(nll=nll + i, scores={"escape_epoch": epoch}) for i, epoch in enumerate(epochs)]
        for nll, epochs in ((90.0, (1, 1, 1, 1, 1)), (91.0, (1, 2, 2, None, 2)))
    ]
    last = plan(tmp_path, CLAIM).cells[0].config.epochs
    censored = scipy_stats.CensoredData.right_censored([1, 2, 2, last, 2], [0, 0, 0, 1, 0])
    expected = scipy_stats.logrank(x=censored, y=[1] * 5).pvalue
    assert judged(CLAIM, *given).escape_p == pytest.approx(float(expected))
    assert judged(CLAIM, collapsed(5), collapsed(5)).escape_p is None


def test_a_diverged_seed_is_censored_where_it_diverged(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = [
        [Arm(nll=90.0 + i, scores={"escape_epoch": epoch}) if epoch else None for i, epoch in each]
        for each in (enumerate((4, 4, 4, 4, 5)), enumerate((5, 5, 5, 5, 0)))
    ]
    there = arms(planned, tmp_path, dict(zip(ARMS, given, strict=True)))
    diverged = there[ARMS[1]].seeds[4].folder
    for epoch in (1, 2, 3):
        fabricated.epoch(diverged, epoch, 200.0, None, 0.0, fabricated.BEGAN)
    there[ARMS[1]] = decide.Arm(there[ARMS[1]].cell, load_run(diverged.path.parent).seeds)
    censored = scipy_stats.CensoredData.right_censored([5, 5, 5, 5, 3], [0, 0, 0, 0, 1])
    expected = scipy_stats.logrank(x=censored, y=[4, 4, 4, 4, 5]).pvalue
    assert only(planned, there).escape_p == pytest.approx(float(expected))


def test_all_seeds_collapsed_or_diverged_give_no_number(judged: Judged) -> None:
    verdict = judged(CLAIM, collapsed(20), collapsed(20))
    assert verdict.word == "undecided"
    assert "0 of 20 seeds of gaussian" in verdict.why
    assert verdict.outlook == "no look is left"


# --------------------------------------------------------------------------- other claims


def test_a_number_is_compared_with_one_arm(judged: Judged) -> None:
    expect = f"footprint_perplexity(cauchy, {GRID}) < 20.25 cells"
    verdict = judged(expect, [Arm(scores={"footprint_perplexity": 64.0 + i}) for i in range(5)])
    assert verdict.word == "opposite"
    assert verdict.claim.margin == 0
    assert verdict.last.estimate == pytest.approx(66 - 20.25)


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
    assert verdict.last.estimate == pytest.approx(14.5, abs=1)


@pytest.mark.parametrize(("dimensions", "word"), [(1.1, "reproduced"), (2.4, "undecided")])
def test_shares_of_seeds_that_meet_a_condition(
    judged: Judged, dimensions: float, word: str
) -> None:
    sides = (f"share({name}, {GRID}, effective_dimensions >= 1.5)" for name in VARIANTS)
    given = (
        seeds(90.0, count=12, effective_dimensions=2.2),
        seeds(91.0, count=12, effective_dimensions=dimensions),
    )
    assert judged(" < ".join(sides), *given, more="looks: [8, 12]").word == word


def test_shares_that_more_seeds_are_not_likely_to_decide_get_none(judged: Judged) -> None:
    shares = CLAIM.replace("nll", "escaped_share").replace(">", "<")
    alike = judged(shares, seeds(90.0, count=8), seeds(100.0, count=8))
    assert (alike.word, alike.wanted, len(alike.looks)) == ("undecided", None, 2)
    assert alike.why.endswith("decide with probability less than .01: none are added")
    apart = judged(shares, seeds(90.0), seeds(100.0, count=2) + collapsed(3))
    assert (apart.word, apart.wanted) == ("undecided", 8)


def test_a_share_is_compared_with_a_number_exactly(judged: Judged) -> None:
    expect = f"escaped_share(cauchy, {GRID}) > 0.2"
    verdict = judged(expect, seeds(90.0, count=12), more="looks: [12]")
    assert verdict.word == "reproduced"
    assert verdict.last.low == pytest.approx(0.025 ** (1 / 12) - 0.2)


def test_a_seed_that_never_escaped_counts_as_one_epoch_past_all(
    judged: Judged, tmp_path: Path
) -> None:
    expect = f"escape_epoch(cauchy, {GRID}) > 3 epochs"
    given = [Arm(scores={"escape_epoch": epoch}) for epoch in (None, 10, 12, 14, 9)]
    epochs = plan(tmp_path, expect).cells[0].config.epochs
    expected = (epochs + 1 + 10 + 12 + 14 + 9) / 5 - 3
    assert judged(expect, given).last.estimate == pytest.approx(expected)


def test_a_claim_in_a_large_family_is_withheld_as_alone(tmp_path: Path) -> None:
    others = (f"elbo({name}, {GRID}) < {90 + i} nats" for i in range(4) for name in VARIANTS)
    planned = plan(tmp_path, CLAIM, *others, more="looks: [8, 12]")
    given = seeds(90.0, count=8), collapsed(6) + seeds(100.0, count=2)
    there = arms(planned, tmp_path, dict(zip(ARMS, given, strict=True)))
    verdict = decide.judge(planned, there)[0]
    assert "2 of 8 seeds of gaussian" in verdict.why  # Fisher's p is .007
    assert verdict.wanted is None


LOOSE = {"refit_v_mean": 240.0}


def scored_by_ais(
    seed: Any, difference: float, status: str = "accepted", error: float | None = 0.1
) -> None:
    """Give a seed AIS, this far from its nll, with an error of .1 and a gap of .05 +- .05 nats."""
    protocol = {"estimators": ["ais"], "temperatures": 1000, "chains": 16}
    paired = {"nll": {"difference": difference, "error": error}}
    scores = {"protocol": protocol, "ais_status": status, "paired": paired}
    scores |= {"gap": 0.05, "gap_error": 0.05}
    values = {"ais": np.ones(2), "image": np.arange(2)}
    seed.folder.save_scores(protocol_key(protocol), scores, values)


@pytest.mark.parametrize(
    ("loose", "by_ais", "slack", "word"),
    [
        ("gaussian", {}, None, "undecided"),
        ("gaussian", {2: (-1.0, "refused")}, None, "undecided"),
        ("gaussian", {2: (-1.0, "accepted")}, 1.35, "reproduced"),
        ("gaussian", {1: (-19.0, "accepted"), 3: (-17.0, "accepted")}, 18.35, "undecided"),
        ("gaussian", {1: (3.0, "accepted")}, 0.15, "reproduced"),  # above nll: it is no tighter
        ("cauchy", {0: (-30.0, "accepted")}, 30.35, "reproduced"),  # the other end moves
        ("neither", {}, 0.0, "reproduced"),
    ],
)
def test_an_nll_that_is_only_a_bound_needs_ais_which_widens_the_interval(
    tmp_path: Path, loose: str, by_ais: dict[int, Any], slack: float | None, word: str
) -> None:
    planned = plan(tmp_path, CLAIM)
    given = {
        f"{name} {GRID}": seeds(nll, **(LOOSE if name == loose else {"refit_v_mean": 9.0}))
        for name, nll in zip(VARIANTS, (100.0, 90.0), strict=True)
    }
    there = arms(planned, tmp_path, given)
    if by_ais:
        arm = there[f"{loose} {GRID}"]
        for number, found in by_ais.items():
            scored_by_ais(arm.seeds[number], *found)
        records = load_run(arm.seeds[0].folder.path.parent).seeds
        there[arm.name] = dataclasses.replace(arm, seeds=records)
    verdict = only(planned, there)
    assert verdict.word == word
    if slack is None:
        assert verdict.last is None
        assert "the variance of its log weights is 240, and" in verdict.why
        assert "--seed 0 --estimator ais" in verdict.why
        assert verdict.wanted is None
    else:
        assert verdict.last.slack == pytest.approx(slack)
        assert verdict.wanted is None  # where it is undecided, more seeds leave the slack
        b, a = (
            {n: seed.per_image()[f"{arm.protocol}/nll"] for n, seed in arm.seeds.items()}
            for arm in map(there.__getitem__, ARMS)
        )
        tight = sequential.contrast([a, {n: -values for n, values in b.items()}])
        low, high = tight.interval(sequential.nominal_p(verdict.planned, verdict.level)[0])
        assert verdict.last.low == pytest.approx(low - slack * (loose == "gaussian"))
        assert verdict.last.high == pytest.approx(high + slack * (loose == "cauchy"))


@pytest.mark.parametrize(
    "weights",
    [
        {"refit_v_mean": None},  # a weight is 0, or alone
        {"refit_v_mean": 9.0, "refit_doubling_gain": 0.4},  # of few weights
    ],
)
def test_weights_that_are_few_or_infinitely_apart_make_no_more_than_a_bound(
    judged: Judged, weights: dict[str, Any]
) -> None:
    verdict = judged(CLAIM, seeds(90.0), seeds(100.0, **weights))
    assert (verdict.word, verdict.last) == ("undecided", None)
    assert "nll of gaussian grid=original is only a bound" in verdict.why
    below = f"share(cauchy, {GRID}, nll < 95) > share(gaussian, {GRID}, nll < 95)"
    assert judged(below, seeds(90.0), seeds(90.0)).last is not None
    verdict = judged(below, seeds(90.0), seeds(100.0, **weights))
    assert (verdict.word, verdict.last) == ("undecided", None)
    assert "seeds are counted by it" in verdict.why


def test_ais_of_one_image_does_not_measure_slack(tmp_path: Path) -> None:
    planned = plan(tmp_path, CLAIM)
    given = dict(zip(ARMS, (seeds(90.0), seeds(100.0, **LOOSE)), strict=True))
    there = arms(planned, tmp_path, given)
    arm = there[ARMS[1]]
    scored_by_ais(arm.seeds[0], -1.0, error=None)
    records = load_run(arm.seeds[0].folder.path.parent).seeds
    there[arm.name] = dataclasses.replace(arm, seeds=records)
    verdict = only(planned, there)
    assert (verdict.word, verdict.last) == ("undecided", None)
    assert "AIS of one image has no error" in verdict.why


def test_whole_numbers_that_are_equal_in_an_arm_have_no_interval(judged: Judged) -> None:
    expect = f"escape_epoch(gaussian, {GRID}) < escape_epoch(cauchy, {GRID})"

    def at(*epochs: int | None) -> list[Arm]:
        return [Arm(scores={"escape_epoch": epoch}) for epoch in epochs]

    verdict = judged(expect, at(2, 2, 2, 2, 2), at(3, 3, 3, 3, 4))
    assert (verdict.word, verdict.last, verdict.wanted) == ("undecided", None, 8)
    assert "all seeds of cauchy grid=original are equal" in verdict.looks[0].why
    assert judged(expect, at(2, 2, 2, 3, 2), at(3, 3, 3, 3, 4)).last is not None
    # one that diverged never escaped
    never = judged(expect, at(3, 3, 3, 3, 4), [*at(2, 2, 2, 3), None]).last
    assert never is not None
    assert never.estimate == pytest.approx((2 + 2 + 2 + 3 + 16) / 5 - 3.2)


FOOTPRINT = f"footprint_perplexity(gaussian, {GRID}) < footprint_perplexity(cauchy, {GRID})"


def test_seeds_that_diverged_withhold_a_verdict_in_any_unit(judged: Judged) -> None:
    wide = [Arm(scores={"footprint_perplexity": 60.0 + i}) for i in range(8)]
    narrow = [Arm(scores={"footprint_perplexity": 10.0 + i}) for i in range(8)]
    assert judged(FOOTPRINT, wide, narrow, more="looks: [8]").word == "reproduced"
    verdict = judged(FOOTPRINT, wide, [*narrow[:2], *[None] * 6], more="looks: [8]")
    assert (verdict.word, verdict.escaped) == ("undecided", ((2, 8), (8, 8)))
    assert "2 of 8 seeds of gaussian grid=original and 8 of 8" in verdict.why
    assert "did not diverge: that differs clearly" in verdict.why


def test_beside_a_number_an_arm_has_no_seed_that_does_not_count(judged: Judged) -> None:
    expect = f"nll(cauchy, {GRID}) < 120 nats"
    assert judged(expect, seeds(90.0)).word == "reproduced"
    verdict = judged(expect, [*seeds(90.0, count=4), *collapsed(1)])
    assert (verdict.word, verdict.wanted) == ("undecided", None)
    assert "4 of 5 seeds of cauchy grid=original left the mean image, so means" in verdict.why


def test_arms_that_do_not_escape_get_no_more_seeds(judged: Judged) -> None:
    verdict = judged(CLAIM, collapsed(12), collapsed(12))
    assert (verdict.word, verdict.last, verdict.wanted) == ("undecided", None, None)
    assert verdict.why.endswith("none are added")
    assert judged(CLAIM, collapsed(5), collapsed(5)).wanted == 8


BY_AIS = f"objective(cauchy, {GRID}) < ais(cauchy, {GRID})"


def ais(tmp_path: Path, planned: study.Study, lower: float, gap: float) -> dict[str, decide.Arm]:
    """Five seeds of `cauchy` with AIS on a dozen of their images."""
    arm = arms(planned, tmp_path, {ARMS[0]: seeds(90.0, 0.3)})[ARMS[0]]
    order = evaluate.scored_images(10_000, "all").numpy()
    for seed in arm.seeds.values():
        values = seed.per_image()[f"{arm.cell.protocol}/objective"]
        protocol = {"estimators": ["ais"], "temperatures": 1000, "chains": 16}
        scores = {"protocol": protocol, "ais_status": "accepted", "gap": gap, "gap_error": 0.0}
        chosen = np.arange(11, -1, -1)
        off = lower + 0.1 * (seed.seed - 2)
        arrays = {"ais": values[chosen] + off, "image": order[chosen]}
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
    planned = plan(tmp_path, BY_AIS)
    verdict = only(planned, ais(tmp_path, planned, lower, gap))
    assert verdict.word == word
    assert verdict.last.estimate == pytest.approx(-lower)


def test_without_ais_a_claim_says_how_to_get_it(judged: Judged) -> None:
    verdict = judged(BY_AIS, seeds(90.0))
    assert verdict.word == "undecided"
    assert "--estimator ais" in verdict.why
    assert verdict.wanted is None  # more seeds would lack it too


@pytest.mark.parametrize(
    ("others", "word"),
    [
        (seeds(90.0, iw_samples=10), "reproduced"),
        (seeds(90.0, iw_samples=100), "undecided"),
        # of a seed that never escaped it does not matter
        ([*seeds(90.0, count=4, iw_samples=10), *collapsed(1, iw_samples=100)], "reproduced"),
    ],
)
def test_iw_is_compared_at_one_k(judged: Judged, others: list[Arm], word: str) -> None:
    """It has K draws where nll comes from it, and 10 elsewhere; more draws lower it."""
    verdict = judged(CLAIM.replace("nll", "iw"), others, seeds(100.0, iw_samples=10))
    assert verdict.word == word
    assert ("iw of different K: 10 and 100" in verdict.why) == (word == "undecided")
    assert verdict.wanted is None  # more seeds would differ too


def test_smoke_and_quick_give_no_verdicts(tmp_path: Path) -> None:
    planned = dataclasses.replace(plan(tmp_path, CLAIM), preset="quick")
    verdict = only(planned, {})
    assert verdict.word == "no verdict"
    assert verdict.why.startswith("preset quick gives none")
