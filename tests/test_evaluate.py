"""The yardstick against exact likelihoods, and what it must never do."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import local, tiny_splits, training

from glas_bench import config, evaluate, registry
from glas_bench.core import rollout
from glas_bench.model import Glas, Normal
from glas_bench.record import Partial
from glas_bench.signals import Stopped
from glas_bench.yardstick import refit, weights

pytestmark = pytest.mark.usefixtures("real_valued")

SIGMA = 0.5


class LinearGaussian(Glas):
    """x ~ N(sum_t A z_t, SIGMA^2 I): log p(x) is known exactly."""

    generative = ("decoder", "write", "loading")

    def build_generation(self):
        super().build_generation()
        self.loading = torch.nn.Parameter(torch.empty(self.pixels, self.sample_size))
        torch.nn.init.normal_(self.loading, std=0.5)

    def generate(self, generation, z_BZ, t):
        return generation._replace(canvas=generation.canvas + z_BZ @ self.loading.T)

    def log_likelihood(self, canvas_BP, target_BP):
        # not by torch.distributions, which copies from the host and waits for a GPU
        standardised = (target_BP - canvas_BP) / SIGMA
        return -(0.5 * standardised**2 + math.log(SIGMA * math.sqrt(2 * math.pi))).sum(-1)

    def exact_nll(self, x_BP):
        loading = self.loading.detach().double()
        noise = SIGMA**2 * torch.eye(self.pixels, dtype=torch.float64)
        covariance = self.steps * loading @ loading.T + noise
        exact = torch.distributions.MultivariateNormal(
            torch.zeros(self.pixels, dtype=torch.float64), covariance
        )
        return -exact.log_prob(x_BP.double())


class ExactPosterior(LinearGaussian):
    """One step, and q is the posterior itself: every weight equals p(x)."""

    bounds_nll = True

    def infer(self, context, state, t):
        _, read, recognition = super().infer(context, state, t)
        precision = torch.eye(self.sample_size).to(read) + (
            self.loading.T @ self.loading / SIGMA**2
        )
        mean = context.x @ self.loading @ torch.linalg.inv(precision) / SIGMA**2
        std = torch.linalg.inv(precision).diagonal().sqrt().expand_as(mean)
        return Normal(mean, std), read, recognition


class Careless(ExactPosterior):
    """q is far from the posterior, so that a refitted recogniser is chosen."""

    def infer(self, context, state, t):
        q, read, recognition = super().infer(context, state, t)
        return Normal(q.mean + 2, q.std), read, recognition


def scorer(cls, samples=10, seed=0, rows=None, estimators=("iw",), precision="fp32", **sizes):
    variant = cls if not isinstance(cls, type) else local(cls)
    tiny = {"steps": 2, "hidden": 4, "sample_size": 2, "latent_size": 3, "filter_size": 2, **sizes}
    own = variant.cls.Settings.model_fields
    given = {k: v for k, v in tiny.items() if k in own}
    resolved = config.resolve(
        variant, preset="smoke", overrides={**given, "samples": samples, "precision": precision}
    )
    splits = tiny_splits(pixels=3)
    model = rollout.build(
        variant.cls, variant.cls.Settings(**resolved.settings), 3, splits.classes, seed
    )
    return evaluate.Scorer(model, resolved, splits, seed, rows=rows, estimators=estimators)


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    found = scorer(ExactPosterior, samples=7, steps=1, sample_size=1)
    scores, per_image = found.score()
    exact = found.model.exact_nll(found.splits.test.images.float()).numpy()
    np.testing.assert_allclose(per_image["iw"], exact, rtol=1e-5)
    np.testing.assert_allclose(per_image["elbo"], exact, rtol=1e-5)
    np.testing.assert_allclose(per_image["v"], 0, atol=1e-8)
    np.testing.assert_allclose(per_image["ess"], 7, rtol=1e-5)
    assert scores["bound_only"] is False
    assert scores["iw"] == pytest.approx(exact.mean(), rel=1e-5)


def test_importance_weights_reach_the_exact_likelihood_from_above():
    """Loose q, 4 latent dimensions: the elbo is far above, K weights come down to log p(x)."""
    found = scorer(LinearGaussian, samples=20_000)
    scores, per_image = found.score()
    exact = found.model.exact_nll(found.splits.test.images.float()).numpy()
    assert scores["elbo"] > exact.mean() + 0.2
    sweep = [scores["iw_sweep"][str(k)] for k in evaluate.sweep_sizes(20_000)]
    assert all(a >= b - 0.02 for a, b in itertools.pairwise(sweep))
    assert sweep[0] > exact.mean() + 0.2
    error = np.abs(per_image["iw"] - exact)
    spread = np.sqrt(1 / per_image["ess"])
    assert (error < 5 * spread).all()
    assert error.mean() < 0.05


def test_weights_hold_the_sampled_ratio_and_not_the_analytic_kl():
    found = scorer(registry.find("cauchy"), samples=1, latent_init="normal")
    with torch.inference_mode():
        noise = found.test.noise(found.model, 0, "evaluation-elbo", 1)
        x = found.splits.test.images.float()
        terms = rollout.rollout(found.model, x, x, None, noise)
    _, per_image = found.score()
    sampled = (terms.recon + terms.log_ratio)[0].double().numpy()
    analytic = (terms.recon + terms.charge)[0].double().numpy()
    np.testing.assert_allclose(per_image["elbo"], sampled, rtol=1e-6)
    assert np.abs(per_image["elbo"] - analytic).max() > 0.01


@pytest.mark.parametrize("rows", [1, 6, 25, 10_000])
@pytest.mark.parametrize("name", ["cauchy", "uniform-pit"])
def test_scores_do_not_depend_on_the_chunk_size(name, rows):
    whole = scorer(registry.find(name), samples=12).score()[1]
    chunked = scorer(registry.find(name), samples=12, rows=rows).score()[1]
    assert whole.keys() == chunked.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(chunked[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_exactly_k_weights_are_used_and_fewer_are_the_first_of_them():
    few = scorer(registry.find("cauchy"), samples=101).score()[0]
    many = scorer(registry.find("cauchy"), samples=203)
    with torch.inference_mode():
        x = many.splits.test.images.float()
        blocks = [many.test.noise(many.model, 0, "evaluation-iw", 100, b) for b in range(3)]
        noise = torch.cat(blocks, 1)
        log_w = rollout.rollout(many.model, x, x, None, noise).log_w.double()
    for k, scores in ((101, few), (203, many.score()[0])):
        expected = evaluate.importance_weighted_nll(log_w[:k]).mean()
        assert scores["iw"] == pytest.approx(float(expected), rel=1e-6)
        assert scores["samples"] == k


def test_another_seed_draws_other_noise():
    a, b = (scorer(registry.find("cauchy")) for _ in range(2))
    b.seed = 1
    assert a.score()[0]["elbo"] != b.score()[0]["elbo"]


class NotANumber(Glas):
    """Finite in training mode, not a number in scoring."""

    def log_likelihood(self, canvas_BP, target_BP):
        value = super().log_likelihood(canvas_BP, target_BP)
        return value if self.training else value * math.nan


def test_an_infinite_elbo_is_a_status_and_never_a_number():
    scores, per_image = scorer(registry.find("uniform-chi2")).score()
    assert scores["elbo"] is None
    assert scores["elbo_status"] == "infinite"
    assert np.isposinf(per_image["elbo"]).any()
    assert np.isposinf(per_image["iw"]).any()
    assert (per_image["ess"][np.isposinf(per_image["iw"])] == 0).all()
    assert scores["bound_only"] is True


def test_not_a_number_is_a_failure():
    with pytest.raises(evaluate.NotFinite, match="not a number"):
        scorer(NotANumber).score()


@pytest.mark.parametrize("stage", ["own-q", "fit", "choice-own-q", "choice-refit", "refit"])
def test_a_stopped_scoring_goes_on_to_the_same_bits(tmp_path, stage):
    """Stopped at any piece of work of any stage, and once more wherever it has got to then."""

    def scored(tick=lambda stage, done, total: None):
        one = scorer(registry.find("cauchy"), 6, rows=12, estimators=evaluate.ESTIMATORS)
        return one.score(Partial(tmp_path, one.key, every=0), tick)

    whole = scorer(registry.find("cauchy"), 6, rows=12, estimators=evaluate.ESTIMATORS).score()
    seen = []

    def stop(at, done, total):
        seen.append((at, done))
        if at == stage and done >= min(2, total):
            raise Stopped

    for _ in range(2):
        with contextlib.suppress(Stopped):
            scored(stop)
    assert any(at == stage for at, _ in seen)
    again = []
    resumed = scored(lambda at, done, total: again.append((at, done)))
    assert not set(again) & set(seen), "finished pieces are not done again"
    for scores, _ in (resumed, whole):
        del scores["seconds"], scores["seconds_by"]
    assert resumed[0] == whole[0]
    for name, values in whole[1].items():
        assert np.array_equal(values, resumed[1][name], equal_nan=True), name


def test_a_stopped_scoring_goes_on_in_parts_of_another_size(tmp_path):
    """As on another device: kept work may end inside a part."""

    def stop(at, done, total):
        if at == "own-q" and done >= 2:
            raise Stopped

    def scored(rows, tick=lambda stage, done, total: None):
        one = scorer(registry.find("cauchy"), 6, rows=rows)
        return one.score(Partial(tmp_path, one.key, every=0), tick)

    with contextlib.suppress(Stopped):
        scored(12, stop)
    resumed = scored(30)[1]
    for name, values in scorer(registry.find("cauchy"), 6, rows=30).score()[1].items():
        np.testing.assert_allclose(resumed[name], values, rtol=1e-5, err_msg=name)


def test_partial_work_of_another_protocol_or_damaged_is_ignored(tmp_path):
    one = scorer(registry.find("cauchy"), samples=6)
    kept = Partial(tmp_path, one.key, every=0)
    one.score(kept)
    assert len(kept.load("own-q")["iw"]) == 8
    assert Partial(tmp_path, "other").load("own-q") == {}
    path = next(tmp_path.glob("*.partial.pt"))
    path.write_bytes(path.read_bytes()[:50])
    assert kept.load("own-q") == {}
    (tmp_path / f"{one.key}.own-q.partial.npz").touch()  # of an older version
    kept.remove()
    assert not list(tmp_path.glob("*.partial.*"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=30), st.floats(-100, 100))
def test_weights_against_plain_arithmetic(log_w, shift):
    log_w_KB = torch.tensor(log_w, dtype=torch.float64)[:, None]
    top = max(log_w)
    weights = np.exp(np.array(log_w) - top)
    nll = -(math.log(weights.mean()) + top)
    ess = weights.sum() ** 2 / (weights**2).sum()
    for found, expected in (
        (evaluate.importance_weighted_nll(log_w_KB), nll),
        (evaluate.effective_sample_size(log_w_KB), ess),
        (evaluate.importance_weighted_nll(log_w_KB + shift), nll - shift),
    ):
        assert found.tolist() == [pytest.approx(expected, rel=1e-7, abs=1e-7)]


@pytest.mark.parametrize("ways", [("eager",), ("captured", "eager")])
def test_weights_of_a_program_are_those_of_a_rollout(ways):
    """What an image's own recogniser holds goes in at every call, and is there after it."""
    trained = training("cauchy").model  # 3 steps, 20 pixels, 3 latents
    recogniser = refit.Recogniser.of(trained, 0)
    torch.manual_seed(0)
    x = (torch.rand(4, 20) < 0.5).float()
    messages = []
    log_w = weights.Weights(messages.append, ways)
    with torch.inference_mode():
        for _ in range(3):
            noise = torch.randn(3, 5, 4, 3)
            recogniser.shift = shift = (torch.randn(4, 3, 3), torch.randn(4, 3, 3))
            found = log_w(recogniser, x, None, noise)
            wide = weights.with_shift(noise, shift)
            torch.testing.assert_close(found, rollout.rollout(recogniser, x, x, None, wide).log_w)
            plain = log_w(trained, x, None, noise)
            torch.testing.assert_close(plain, rollout.rollout(trained, x, x, None, noise).log_w)
    assert len(log_w.programs) == 2
    assert len(messages) == 2 * (len(ways) - 1)


def test_a_run_in_bf16_is_scored_in_fp32_under_a_protocol_of_its_own():
    scorers = [
        scorer(registry.find("cauchy"), estimators=("iw", "refit"), precision=precision, hidden=16)
        for precision in ("fp32", "bf16")
    ]
    assert scorers[0].key != scorers[1].key  # such runs were once scored in bf16
    assert "precision" not in scorers[0].protocol
    assert scorers[1].protocol["precision"] == "fp32"
    exact, same = (each.score()[1] for each in scorers)
    for name in ("elbo", "iw", "refit_iw", "nll"):
        np.testing.assert_array_equal(same[name], exact[name])


def test_what_draws_still_gain_marks_a_bound_and_v_does_not():
    log_w_KB = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    assert weights.variance(log_w_KB).tolist() == pytest.approx([4, 0])
    for half, gain, bound_only in ((90.09, 0.09, False), (90.2, 0.2, True), (math.inf, None, True)):
        values = {"iw_5": np.full(20, half), "iw_10": np.full(20, 90.0), "v": np.full(20, 25.0)}
        found = evaluate._weight_health(values | {"ess": np.arange(20.0)}, samples=10)
        assert found["doubling_gain"] == (None if gain is None else pytest.approx(gain))
        assert found["bound_only"] is bound_only
        assert found["ess_mean"] == found["ess_median"] == 9.5


def test_a_weight_alone_is_only_a_bound():
    scores, _ = scorer(ExactPosterior, samples=1, estimators=("iw", "refit")).score()
    assert scores["v_mean"] is scores["refit_v_mean"] is None
    assert scores["bound_only"] is scores["nll_bound_only"] is True


def test_where_the_own_q_is_infinite_on_test_images_the_refit_counts():
    found = scorer(ExactPosterior, samples=40, estimators=("iw", "refit"))
    values = found.score()[1]
    choice = {"validation_iw": 1.0, "validation_refit_iw": 2.0}
    assert found._refit_summary(dict(values), choice)["nll_from"] == "iw"
    lower = {**values, "refit_iw": values["iw"] - 1}
    assert found._refit_summary(lower, choice)["nll_bound_only"] is True
    infinite = {**values, "iw": np.where(np.arange(len(values["iw"])) == 0, np.inf, values["iw"])}
    scores = found._refit_summary(infinite, choice)
    assert scores["nll_from"] == "refit_iw"
    assert scores["nll"] == scores["refit_iw"] == pytest.approx(values["refit_iw"].mean())


def test_the_own_q_gets_all_draws_only_where_it_is_chosen():
    for cls, own in ((ExactPosterior, 40), (Careless, 10)):
        found = scorer(cls, samples=40, steps=1, sample_size=1, estimators=("iw", "refit"))
        scores, per_image = found.score()
        assert scores["nll_from"] == ("iw" if own == 40 else "refit_iw")
        assert scores["iw_samples"] == own
        assert f"iw_{own}" in per_image
        assert ("iw_40" in per_image) == (own == 40)
        assert "refit_iw_40" in per_image
    assert scorer(Careless, samples=40).score()[0]["iw_samples"] == 40


def test_escape_is_the_first_epoch_well_below_the_mean_image():
    def row(epoch, recon, kind="elbo"):
        return {"epoch": epoch, "recon": recon, "validation_kind": kind}

    rows = [row(1, 0.0, "none"), row(2, 199.0), row(3, None), row(4, 180.0), row(5, 150.0)]
    assert evaluate.escape_epoch(rows, 180.0) == 4
    assert evaluate.escape_epoch(rows[:3], 180.0) is None
    assert evaluate.escape_epoch(rows, None) is None
    # what an earlier phase trained may be drawn again after it
    phases = zip(rows, "aaabb", strict=True)
    assert evaluate.escape_epoch([each | {"phase": name} for each, name in phases], 199.0) == 4


def test_scoring_reports_falls_to_a_slower_way():
    run = training("cauchy")
    scorer = evaluate.Scorer(run.model, run.config, run.splits, 0, tell=print)
    assert scorer._own("evaluation-iw", "own-q", 2).log_w.tell == scorer.tell
    recogniser = refit.Recogniser.of(run.model, 0)
    weigher = refit.weigher(recogniser, 0, "p", "s", 2, scorer.budget, 100, scorer.tell)
    assert weigher.log_w.tell == scorer.tell
