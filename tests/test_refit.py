"""The common recogniser: it reaches what exact answers say, changes nothing, and is never chosen
by what it is judged on."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from test_evaluate import LinearGaussian, scorer

from glas_bench import config, evaluate, registry
from glas_bench.core import rollout
from glas_bench.model import LSTM, Glas, Linear, Normal, StandardUniform
from glas_bench.record import Partial
from glas_bench.yardstick import refit
from glas_bench.yardstick.weights import Images, NotFinite, with_shift

pytestmark = pytest.mark.usefixtures("real_valued")

STEPS = {"image_steps": 100, "image_steps_an_epoch": 100}
LONG = refit.Budget(share=80.0, learning_rate=5e-3, patience=10, **STEPS)


class CollapsedQ(LinearGaussian):
    """A recogniser that says nothing: q is the prior, whatever x."""

    bounds_nll = True

    def posterior(self, read, t):
        zeros = read.new_zeros(read.shape[0], self.sample_size)
        return Normal(zeros, zeros + 1)


class UniformPrior(LinearGaussian):
    """z ~ U(0, 1), and a q that leaves that support."""

    bounds_nll = False

    def prior(self):
        return StandardUniform()

    def exact_nll(self, x_BP):
        """By quadrature over the single latent."""
        nodes, weights = np.polynomial.legendre.leggauss(400)
        z = torch.tensor((nodes + 1) / 2)[:, None]
        canvas = z @ self.loading.detach().double().T
        log_p = self.log_likelihood(canvas[:, None], x_BP.double()[None])
        return -torch.logsumexp(log_p + torch.tensor(np.log(weights / 2))[:, None], 0)


def refitting(cls, samples, **sizes):
    return scorer(cls, samples, estimators=evaluate.ESTIMATORS, **sizes)


@pytest.mark.parametrize(
    ("cls", "sizes"),
    [(CollapsedQ, {"sample_size": 1}), (UniformPrior, {"steps": 1, "sample_size": 1})],
)
def test_a_refit_reaches_the_exact_likelihood_where_the_own_q_does_not(cls, sizes, monkeypatch):
    monkeypatch.setattr(evaluate, "BUDGET", LONG)
    found = refitting(cls, 2000, **sizes)
    scores, per_image = found.score()
    exact = found.model.exact_nll(found.splits.test.images.float()).numpy()
    error = np.abs(per_image["refit_iw"] - exact)
    assert (error < 4 / np.sqrt(per_image["refit_ess"])).all()
    assert error.mean() < 0.1
    assert scores["refit_elbo"] > scores["refit_iw"]
    assert scores["elbo_status"] == "infinite" or scores["elbo"] > scores["refit_elbo"] + 1


class Wide(Glas):
    """A decoder that is twice as wide as the encoder."""

    def build_recognition(self):
        hidden = self.settings.hidden
        self.encoder = LSTM(hidden, x=self.pixels, error=self.pixels, decoder=2 * hidden)
        self.build_heads(self.build_attention())

    def build_generation(self):
        self.decoder = LSTM(2 * self.settings.hidden, input=self.decoder_input_size)
        self.write = Linear(2 * self.settings.hidden, self.pixels)

    def begin_generation(self, rows):
        start = super().begin_generation(rows)
        zeros = start.canvas.new_zeros(rows, 2 * self.settings.hidden)
        return start._replace(hidden=zeros, cell=zeros)


def test_a_decoder_of_another_width_is_refitted():
    scores, _ = refitting(Wide, 4).score()
    assert scores["nll"] > 0


def test_a_refit_leaves_the_model_as_it_is():
    found = refitting(registry.find("cauchy"), 3)
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    state = torch.get_rng_state()
    found.score()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_choice_is_made_on_validation_once_for_all_images():
    """Where validation says own q, the refit's smaller number on test does not count."""
    found = refitting(registry.find("cauchy"), 5)
    scores, per_image = found.score()
    own = found._own("choice-iw", "choice-own-q", 5)(found.validation, Partial())
    assert scores["validation_iw"] == pytest.approx(own["iw"].mean(), rel=1e-12)
    for validation, chosen in (((10.0, 11.0), "iw"), ((11.0, 10.0), "refit_iw")):
        choice = {"validation_iw": validation[0], "validation_refit_iw": validation[1]}
        values = dict(per_image)
        summary = found._refit_summary(values, choice)
        assert summary["nll_from"] == chosen
        assert summary["nll"] == values[chosen].mean()
        assert np.array_equal(values["nll"], values[chosen])
        assert summary["validation_nll"] == 10.0
    splits, rows = found.splits, list(found.validation.names)
    assert len(set(rows)) == len(splits.test.images) // 5
    assert torch.equal(found.validation.pixels_NP, splits.validation.images[rows])
    assert not torch.equal(found.validation.pixels_NP, splits.test.images[rows])


def test_the_learning_rate_of_a_fit_is_held_and_then_falls_to_0():
    one = fit(refit.Budget(share=100.0, learning_rate=2e-3))
    rates = [one.learning_rate_at(0, one.total_steps * k // 4) for k in range(5)]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3, 1e-3, 0])


def test_the_steps_of_an_image_lower_its_elbo_and_know_no_other_image():
    found = scorer(LinearGaussian)
    budget = refit.Budget(image_steps=200, image_learning_rate=0.05)
    recogniser = refit.Recogniser.of(found.model, 0).requires_grad_(False)
    shift = refit.Refiner(recogniser, budget)(found.test, 0, "test")
    noise = found.test.noise(recogniser, 0, "elsewhere", 100)
    x = found.test.as_float()

    def elbo(noise):
        return -rollout.rollout(recogniser, x, x, None, noise).log_w.mean(0)

    gain = elbo(noise) - elbo(with_shift(noise, shift))
    assert (gain > 0.05).all()
    alone = refit.Refiner(recogniser, budget)(found.test[3:4], 0, "test")
    for part, whole in zip(alone, shift, strict=True):
        torch.testing.assert_close(part[0], whole[3], rtol=1e-3, atol=1e-4)


def test_the_weights_are_not_drawn_with_the_noise_of_the_steps(monkeypatch):
    """The same noise would flatter q: few draws, many steps, and a bound that is none."""
    found = refitting(CollapsedQ, 2)
    seen = []
    noise = Images.noise

    def spy(self, model, seed, purpose, *rest):
        seen.append(purpose)
        return noise(self, model, seed, purpose, *rest)

    monkeypatch.setattr(Images, "noise", spy)
    found.score()
    assert {"evaluation-refit", "evaluation-refit-refine"} <= set(seen)
    assert {"choice-refit", "choice-refit-refine", "refit-validation"} <= set(seen)
    drawn = [noise(found.test, found.model, 0, purpose, 1) for purpose in set(seen)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def fit(budget, seed=0, binarisation=None, cls=LinearGaussian):
    one = scorer(cls)
    splits = one.splits
    if binarisation is not None:
        grey = torch.rand(24, 3, generator=torch.Generator().manual_seed(1))
        train = dataclasses.replace(splits.train, images=grey)
        splits = dataclasses.replace(splits, binarisation=binarisation, train=train)
    return refit.Fit(one.model, one.config, splits, seed, one.validation, budget)


def test_the_best_look_is_kept_and_stalling_ends_the_fit():
    """Steps that grow worse: the parameters that come back are those of the best look."""
    budget = refit.Budget(share=8.0, learning_rate=5.0, checks=20, patience=2)
    one = fit(budget)
    recogniser = one.run("fit", Partial(), lambda *_: None)
    elbo, best = one.elbo, int(np.argmin(one.elbo))
    assert one.best_step == one.marks[best]
    assert len(elbo) < 20
    assert len(elbo) - 1 - best == 2
    assert elbo[-1] > elbo[best]
    one.elbo = []
    one.check()
    assert one.elbo == [pytest.approx(elbo[best], rel=1e-6)]
    assert not any(parameter.requires_grad for parameter in recogniser.parameters())


@pytest.mark.parametrize(
    ("elbo", "gain", "converged"),
    [
        ([5.0, 4.0, 3.0], 1.0, False),
        ([5.0, 3.0, 2.95], 0.05, True),
        ([5.0, 3.0, 3.5], 0.0, True),
        ([5.0], None, None),
    ],
)
def test_a_gain_in_the_last_tenth_is_said(elbo, gain, converged):
    one = fit(LONG)
    one.elbo = elbo
    assert one.last_gain == (None if gain is None else pytest.approx(gain))
    assert one.converged is converged


@pytest.mark.parametrize("binarisation", ["dynamic", "soft"])
def test_the_recogniser_is_trained_on_binary_images(binarisation):
    one = fit(refit.Budget(share=3.0), binarisation=binarisation)
    first, second = (one.epoch_images(epoch)[0] for epoch in (0, 1))
    assert set(first.unique().tolist()) == {0, 1}
    assert not torch.equal(first, second)


def test_seeds_fit_by_streams_of_their_own():
    first, again, other = fit(LONG), fit(LONG), fit(LONG, seed=1)
    assert torch.equal(first._batch()[2], again._batch()[2])
    assert not torch.equal(first._batch()[2], other._batch()[2])
    weights = [one.model.encoder.kernels["x"] for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_budget_and_steps_are_the_same_for_every_arm_and_in_the_protocol():
    cauchy = config.resolve(registry.find("cauchy"), preset="quick")
    assert evaluate.protocol(cauchy)["refit"] == {
        "recogniser": "no-attention",
        **dataclasses.asdict(refit.Budget()),
        "validation_images": 250,
    }
    smoke = config.resolve(registry.find("cauchy"), preset="smoke")
    assert evaluate.protocol(smoke)["refit"] == evaluate.protocol(cauchy)["refit"]
    steps = [refit.Budget().after(each.epochs).image_steps for each in (smoke, cauchy)]
    assert steps == [10, 50]
    without = evaluate.protocol(cauchy, estimators=("iw",))
    assert "refit" not in without
    assert config.protocol_key(evaluate.protocol(cauchy)) != config.protocol_key(without)
    for name in ("hellinger", "uniform-pit", "vae", "masked-canvas"):
        resolved = config.resolve(registry.find(name), preset="quick")
        assert evaluate.protocol(resolved) == evaluate.protocol(cauchy)


def test_a_fit_that_is_not_finite_is_a_failure():
    class Broken(LinearGaussian):
        def log_likelihood(self, canvas_BP, target_BP):
            return super().log_likelihood(canvas_BP, target_BP) * math.nan

    with pytest.raises(NotFinite, match="not finite at step 0 of a fit"):
        fit(LONG, cls=Broken).run("fit", Partial(), lambda *_: None)
