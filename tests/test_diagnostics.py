"""Diagnostics against closed forms and plain float64 loops, on models whose answers are known."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import local, tiny_splits, training

from glas_bench import data, registry
from glas_bench.core import rollout, streams, train
from glas_bench.likelihood import Bernoulli
from glas_bench.model import Glas, Normal, StandardUniform, Uniform
from glas_bench.yardstick import diagnostics
from glas_bench.yardstick.diagnostics import DRAWS, diagnose, footprint_perplexity

pytestmark = pytest.mark.usefixtures("real_valued")

STEPS, SIZE, TEST_IMAGES = 3, 3, 8  # of test_train.TINY and tiny_splits


def diagnosed(variant, splits=None, seed=0, **overrides):
    run = training(variant, splits=splits, seed=seed, **overrides)
    return diagnose(run.model, run.config, run.splits, seed), run


def noise_of(seed, draws=DRAWS, steps=STEPS, size=SIZE):
    """The noise of test images in float64, [B, K, T, Z], from the streams alone."""
    keys = streams.keys(seed, "diagnostics", range(TEST_IMAGES))
    return streams.normals(keys, draws * steps * size).reshape(-1, draws, steps, size).double()


def rolled_out(run, seed=0, draws=DRAWS, **about):
    """The rollout of test images with that noise."""
    x = run.splits.test.images.float()
    noise = noise_of(seed, draws, run.model.steps, run.model.noise_size)
    noise_TKBZ = noise.float().permute(2, 1, 0, 3)
    with torch.inference_mode():
        return rollout.rollout(run.model, x, x, run.splits.test.labels, noise_TKBZ, **about)


def assert_close(found, expected, tolerance):
    """Compare all fractions of two diagnoses."""
    for key, value in expected.scores.items():
        if isinstance(value, float):
            assert found.scores[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


SQUARE = tiny_splits(pixels=36)


# --------------------------------------------------------------------------- known posteriors


class Posterior(Glas):
    """A variant whose q_t the test writes down: `q(x, z_{t-1}, t)`; it charges nothing."""

    def charge(self, q, p, z):
        return z.new_zeros(len(z))

    def begin_generation(self, rows):
        start = super().begin_generation(rows)
        return start._replace(memory={"z": start.canvas.new_zeros(rows, self.sample_size)})

    def decoder_input(self, generation, z_BZ, t):
        return z_BZ, {"z": z_BZ}

    def infer(self, context, state, t):
        _, read, recognition = super().infer(context, state, t)
        return self.q(context.x, state.generation.memory["z"], t), read, recognition


MEANS = torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.0, 0.0], [3.0, 0.25, -0.125]])
STDS = torch.tensor([[1.0, 0.5, 2.0], [1.0, 1.0, 1.0], [0.01, 1.5, 0.75]])


class Fixed(Posterior):
    """q_t is the same whatever x."""

    def q(self, x, before, t):
        rows = len(x)
        return Normal(MEANS[t].expand(rows, -1), STDS[t].expand(rows, -1))


class Law:
    """A normal law that does not say so."""

    def __init__(self, centre, scale=1.0):
        self.centre = centre
        self.scale = scale

    def sample(self, noise):
        return self.centre + self.scale * noise

    def log_prob(self, z):
        return torch.distributions.Normal(self.centre, self.scale).log_prob(z)


class Telling(Law):
    """The same with a closed form, a wrong one, so that one sees where a number is from."""

    def kl(self, p):
        return self.centre * 10


class Unnamed(Fixed):
    law = Law

    def q(self, x, before, t):
        return self.law(*super().q(x, before, t))


class Named(Unnamed):
    law = Telling


M, S, EPS = MEANS.double().numpy(), STDS.double().numpy(), noise_of(3).numpy()
SAMPLED = -(EPS**2) / 2 - np.log(S) + (M + S * EPS) ** 2 / 2


@pytest.mark.parametrize(
    ("cls", "expected", "source", "tolerance"),
    [
        (Fixed, (M**2 + S**2 - 1) / 2 - np.log(S), "closed form", {"rtol": 1e-6}),
        (Named, 10 * M, "closed form", {"rtol": 1e-6}),
        (Unnamed, SAMPLED.mean((0, 1)), "draws", {"rtol": 1e-4, "atol": 1e-5}),
    ],
)
def test_kl_is_a_closed_form_entry_by_entry_or_else_sampled(cls, expected, source, tolerance):
    found, _ = diagnosed(local(cls), seed=3)
    np.testing.assert_allclose(found.arrays["kl_per_step_dimension"], expected, **tolerance)
    np.testing.assert_allclose(found.scores["kl_per_step"], expected.sum(1), **tolerance)
    np.testing.assert_allclose(found.scores["kl"], expected.sum(), **tolerance)
    assert (found.scores["kl_status"], found.scores["kl_from"]) == ("finite", source)


class Whole(Unnamed):
    """log q/p that is no sum over dimensions."""

    def log_ratio(self, q, p, z):
        return super().log_ratio(q, p, z) + 0.5


def test_a_ratio_of_the_variants_own_is_taken_whole():
    found, _ = diagnosed(local(Whole), seed=3)
    parts = diagnosed(local(Unnamed), seed=3)[0].scores["kl_per_step"]
    np.testing.assert_allclose(found.scores["kl_per_step"], np.array(parts) + 0.5, rtol=1e-5)
    assert "kl_per_step_dimension" not in found.arrays
    assert found.scores["kl_from"] == "draws"


class Strip(Posterior):
    """Uniform q: of width 1/4 in [0, 1], at a place that x gives; `outside` at the last step."""

    outside = False

    def prior(self):
        return StandardUniform()

    def q(self, x, before, t):
        place = 0.75 * x[:, :SIZE]
        low = place - self.outside * (t == STEPS - 1).float()
        return Uniform(low, low + 0.25, torch.full_like(low, math.log(0.25)))


class Astray(Strip):
    outside = True


def test_uniform_posteriors_have_a_closed_form_and_the_priors_scale():
    found, run = diagnosed(local(Strip))
    np.testing.assert_allclose(found.arrays["kl_per_step_dimension"], math.log(4), rtol=1e-6)
    place = 0.75 * run.splits.test.images[:, :SIZE].double().numpy()
    expected = np.broadcast_to(place.var(0, ddof=1) * 12, (STEPS, SIZE))
    np.testing.assert_allclose(found.arrays["active_variance"], expected, rtol=1e-5, atol=1e-9)


def test_where_q_leaves_the_prior_kl_is_a_status_and_no_number():
    found, _ = diagnosed(local(Astray))
    assert (found.scores["kl"], found.scores["kl_status"]) == (None, "infinite")
    assert found.scores["kl_per_step"][-1] is None
    np.testing.assert_allclose(found.scores["kl_per_step"][:-1], SIZE * math.log(4), rtol=1e-6)
    assert found.scores["permuted_elbo"] is found.scores["permuted_elbo_change"] is None


@pytest.mark.parametrize("name", ["cauchy", "uniform-kl", "min-chi2-kl", "vae"])
def test_kl_is_what_an_honest_charge_charges(name):
    found, run = diagnosed(name, seed=1)
    terms = rolled_out(run, 1)
    assert found.scores["kl"] == pytest.approx(float(terms.charge.double().mean()), rel=1e-4)
    assert found.scores["kl_from"] == "closed form"


# --------------------------------------------------------------------------- active units

LOADING = torch.zeros(20, SIZE)
LOADING[0, 0], LOADING[1, 1], LOADING[2, 1], LOADING[3, 2] = 1.0, 0.5, -2.0, 0.18
LOADED = (tiny_splits().test.images.float() @ LOADING).double().numpy()
VARIANCE = LOADED.var(0, ddof=1)


class LinearMean(Posterior):
    """The mean is linear in x, a hundredth more of it at every step."""

    def q(self, x, before, t):
        mean = (1 + t / 100) * (x @ LOADING)
        return Normal(mean, torch.full_like(mean, 0.5))


def test_active_units_of_a_linear_mean_are_known_exactly():
    found, _ = diagnosed(local(LinearMean))
    assert 0.005 < VARIANCE[2] < 0.009
    assert VARIANCE[:2].min() > 0.02
    expected = np.stack([(1 + t / 100) ** 2 * VARIANCE for t in range(STEPS)])
    np.testing.assert_allclose(found.arrays["active_variance"], expected, rtol=1e-5, atol=1e-9)
    assert found.scores["active_units"] == 6
    assert found.scores["active_dimensions"] == 2
    assert found.scores["active_units_of"] == STEPS * SIZE
    assert "from means" in found.scores["active_units_rule"]


class Wandering(Posterior):
    """The mean is 0.2 times that of `LinearMean`, and from there on the last draw."""

    def q(self, x, before, t):
        mean = torch.where(t > 0, before, 0.2 * x @ LOADING)
        return Normal(mean, torch.ones_like(mean))


class Unsaid(Posterior):
    """A law that keeps its mean, 0.2 times that of `LinearMean`, to itself."""

    def q(self, x, before, t):
        return Law(0.2 * x @ LOADING)


@pytest.mark.parametrize("cls", [Wandering, Unsaid])
def test_what_draws_disagree_on_is_no_activity(cls):
    """Over 40 seeds the variance is that of x alone; the draws would add a quarter or more."""
    run = training(local(cls))
    each = (diagnose(run.model, run.config, run.splits, seed) for seed in range(40))
    found = np.stack([one.arrays["active_variance"] for one in each])
    error = found.mean(0) - 0.04 * VARIANCE
    spread = found.std(0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(error) < 4.5 * spread + 1e-6).all()
    assert 4.5 * spread[1].max() < 0.25
    assert spread[2].min() > 0  # there is something to disagree on


class WidePrior(LinearMean):
    """A prior ten times as wide as the standard one, that the harness does not know."""

    def prior(self):
        return Law(0.0, 10.0)


def test_activity_is_measured_in_the_priors_variance():
    narrow, wide = (diagnosed(local(cls))[0] for cls in (LinearMean, WidePrior))
    np.testing.assert_allclose(
        100 * wide.arrays["active_variance"], narrow.arrays["active_variance"], rtol=0.15
    )
    assert wide.scores["kl_from"] == "draws"


# --------------------------------------------------------------------------- effective dimensions

ROTATION = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)))[0]


class Rotated(LinearMean):
    """`LinearMean` in other axes."""

    def q(self, x, before, t):
        q = super().q(x, before, t)
        return Normal(q.mean @ ROTATION, q.std)


class OneDirection(LinearMean):
    """All units move together: one dimension, however many units are active."""

    def q(self, x, before, t):
        q = super().q(x, before, t)
        mean = q.mean[:, :1].expand(-1, SIZE) + t  # every step around another centre
        return Normal(mean, q.std)


def test_effective_dimensions_are_the_participation_ratio_in_any_axes():
    covariance = np.cov(LOADED, rowvar=False)
    exact = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert 1.05 < exact < 2
    plain, rotated, one = (
        diagnosed(local(cls))[0].scores for cls in (LinearMean, Rotated, OneDirection)
    )
    assert plain["effective_dimensions"] == pytest.approx(exact, rel=1e-5)
    assert rotated["effective_dimensions"] == pytest.approx(exact, rel=1e-5)
    assert rotated["active_dimensions"] > plain["active_dimensions"]
    assert one["effective_dimensions"] == pytest.approx(1, abs=1e-4)
    assert one["active_dimensions"] == SIZE


def test_a_collapsed_posterior_has_no_effective_dimension():
    assert diagnosed(local(Fixed))[0].scores["effective_dimensions"] == 0


def test_products_of_different_draws_against_a_plain_loop():
    centre = torch.randn(DRAWS, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    pairs = [(j, k) for j in range(DRAWS) for k in range(DRAWS) if j != k]
    expected = sum(centre[j, i, :, None] * centre[k, i] for i in range(5) for j, k in pairs)
    found = diagnostics._products(centre)
    torch.testing.assert_close(found, expected / len(pairs))


# --------------------------------------------------------------------------- canvases, gates


def test_recon_per_step_scores_the_canvas_of_every_step():
    found, run = diagnosed("cauchy")
    canvases = []
    rolled_out(run, trace=lambda t, state, step: canvases.append(state.generation.canvas))
    targets = run.splits.test.images.float().repeat(DRAWS, 1)
    nll = torch.nn.functional.binary_cross_entropy_with_logits
    expected = [float(nll(each, targets, reduction="sum")) / len(targets) for each in canvases]
    assert found.scores["recon_per_step"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "case", ["sigmoid columns", "sigmoid cells", "softmax columns", "softmax cells", "content"]
)
def test_gate_perplexity_counts_the_cells_that_gates_read(case):
    """Gates that are all alike read every cell, one gate that is far above the rest its own."""
    name, _, gates = case.partition(" ")
    run = training(name, splits=SQUARE, **({"gates": gates} if gates else {}))
    model, size = run.model, len(run.model.latent)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scores = diagnose(model, run.config, SQUARE, 0).scores
    assert scores["gate_perplexity"] == pytest.approx(size**2, rel=1e-5)
    assert scores["footprint_perplexity"] is None
    with torch.no_grad():
        if name == "content":
            model.latent.copy_(torch.eye(size))
            model.key.bias[0] = 1.0
            model.strength.bias.fill_(200.0)
        else:
            model.gates.bias.fill_(-30.0 if name == "sigmoid" else 0.0)
            model.gates.bias[1] = 60.0
    scores = diagnose(model, run.config, SQUARE, 0).scores
    assert scores["gate_perplexity"] == pytest.approx(1 if gates == "cells" else size, rel=1e-5)


# --------------------------------------------------------------------------- footprints


def plain_perplexity(rows_y, rows_x):
    """exp of the entropy of the whole outer product, cell by cell."""
    cells = torch.outer(*(rows.double().abs().sum(0) for rows in (rows_y, rows_x)))
    share = cells[cells > 0] / cells.sum()
    return math.exp(-float((share * share.log()).sum()))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**30))
def test_perplexity_equals_a_sum_over_all_cells(filter_size, size, seed):
    rows = torch.randn(2, 3, filter_size, size, generator=torch.Generator().manual_seed(seed))
    rows = torch.where(rows.abs() < 0.3, 0.0, rows) + 1e-9
    found = footprint_perplexity(*rows)
    for b in range(3):
        assert float(found[b]) == pytest.approx(plain_perplexity(*rows[:, b]), rel=1e-5)


class Looking(Posterior):
    """Looks at one cell where the first pixel is on, at none where it is off."""

    def q(self, x, before, t):
        return Normal(x[:, :SIZE], torch.ones_like(x[:, :SIZE]))

    def encode(self, context, state):
        return context.x[:, :1] * torch.ones(8), state.recognition.cell

    def filter_rows(self, e_BH):
        rows = torch.zeros(len(e_BH), 2, 4)
        rows[:, :, 2] = e_BH[:, :1]
        return rows, rows, e_BH[:, 0]


def test_a_look_beside_the_matrix_is_counted_and_left_out_of_the_mean():
    found, run = diagnosed(local(Looking))
    off = 1 - float(run.splits.test.images[:, 0].float().mean())
    assert 0 < off < 1
    assert found.scores["footprint_perplexity"] == pytest.approx(1)
    assert found.scores["footprint_perplexity_per_step"] == pytest.approx([1] * STEPS)
    assert found.scores["footprint_nowhere_share"] == pytest.approx(off)
    assert found.scores["footprint_cells"] == 16


def test_a_models_footprint_is_the_mean_over_images_and_draws():
    found, run = diagnosed("cauchy", seed=2, filter_size=3)
    steps = []

    def trace(t, state, step):
        rows_y, rows_x, _ = run.model.filter_rows(state.recognition.hidden)
        pairs = zip(rows_y, rows_x, strict=True)
        steps.append(np.mean([plain_perplexity(*pair) for pair in pairs]))

    rolled_out(run, 2, trace=trace)
    np.testing.assert_allclose(found.scores["footprint_perplexity_per_step"], steps, rtol=1e-5)
    assert found.scores["footprint_perplexity"] == pytest.approx(np.mean(steps), rel=1e-5)
    assert 1 < found.scores["footprint_perplexity"] < found.scores["footprint_cells"] == 16
    assert found.scores["footprint_nowhere_share"] == 0


# --------------------------------------------------------------------------- the shuffled matrix


@pytest.mark.parametrize("name", ["cauchy", "fixed-random", "content"])
def test_the_shuffled_elbo_is_that_of_models_with_a_shuffled_matrix(name):
    found, run = diagnosed(name, seed=4, latent_init="normal")

    def elbo():
        terms = rolled_out(run, 4, draws=1)
        return float((terms.recon + terms.log_ratio).mean())

    plain, kept = elbo(), run.model.latent.detach().clone()
    generator = streams.generator(4, "diagnostics-permutation")
    shuffled = []
    for _ in range(diagnostics.PERMUTATIONS):
        order = torch.randperm(16, generator=generator)
        with torch.no_grad():
            run.model.latent.copy_(kept.flatten()[order].view(4, 4))
        shuffled.append(elbo())
    expected = np.mean(shuffled)
    assert np.std(shuffled) > 1e-4
    assert found.scores["permuted_elbo"] == pytest.approx(expected, rel=1e-5)
    assert found.scores["permuted_elbo_change"] == pytest.approx(expected - plain, abs=1e-4)
    assert abs(found.scores["permuted_elbo_change"]) > 1e-3


# --------------------------------------------------------------------------- failure


class Dial(Posterior):
    """recon lies `gain` nats below the Bernoulli's 500, and q costs `cost` nats in all."""

    gain, cost = 0.0, 0.0

    def q(self, x, before, t):
        mean = x.new_zeros(len(x), SIZE)
        mean[:, 0] = math.sqrt(2 * self.cost / STEPS)
        return Normal(mean, torch.ones_like(mean))

    def log_likelihood(self, canvas_BP, target_BP):
        return canvas_BP.new_full((len(canvas_BP),), self.gain - 500)


@pytest.mark.parametrize(
    ("gain", "cost", "density", "reasons"),
    [
        (20.01, 1.01, True, ()),
        (19.99, 1.01, True, ("recon",)),
        (20.01, 0.99, True, ("KL",)),
        (20.01, 0.99, False, ()),
        (19.99, 0.99, False, ("recon",)),
        (0.0, 0.0, True, ("recon", "KL")),
        (math.nan, 5.0, True, ("recon",)),
        (-math.inf, 5.0, True, ("recon",)),
    ],
)
def test_a_model_has_failed_by_recon_or_by_kl(gain, cost, density, reasons, monkeypatch):
    monkeypatch.setattr(Bernoulli, "baseline_nll", lambda *_: torch.tensor([500.0]))
    cls = type("Dialled", (Dial,), {"gain": gain, "cost": cost, "has_density": density})
    scores = diagnosed(local(cls))[0].scores
    assert scores["failed"] is bool(reasons)
    reason = scores["failed_reason"] or ""
    assert (scores["failed_reason"] is None) == (reasons == ())
    assert tuple(word for word in ("recon", "KL") if word in reason) == reasons
    assert scores["validation_baseline"] == 500
    if math.isfinite(gain):
        assert scores["validation_recon"] == pytest.approx(500 - gain)
    if density:
        assert scores["validation_kl"] == pytest.approx(cost, rel=1e-5, abs=1e-9)
    else:
        assert scores["validation_kl"] is None


def test_failure_is_judged_on_the_images_and_noise_of_validation():
    found, run = diagnosed("uniform-pit")
    kind, value = run.validate()
    assert kind == "recon"
    assert found.scores["validation_recon"] == pytest.approx(value, rel=1e-6)
    plain, run = diagnosed(local(Unnamed), seed=5)
    elbo = plain.scores["validation_recon"] + plain.scores["validation_kl"]
    assert elbo == pytest.approx(run.validate()[1], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.booleans(), st.integers(0, 2**30))
def test_the_pixelwise_bernoulli_against_its_formula(rows, pixels, grey, seed):
    generator = torch.Generator().manual_seed(seed)
    train_images, images = torch.rand(2, rows, pixels, generator=generator)
    if not grey:
        train_images, images = ((part > 0.5).to(torch.uint8) for part in (train_images, images))
    found = Bernoulli().baseline_nll(train_images, images)
    assert found.dtype == torch.float64
    ink, x = (train_images.double().numpy().sum(0) + 1) / (rows + 2), images.double().numpy()
    expected = -(x * np.log(ink) + (1 - x) * np.log(1 - ink)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# --------------------------------------------------------------------------- samples


class Summing(Glas):
    """o_t is the sum of the draws so far, twenty pixels, and q does not matter."""

    def generate(self, generation, z_BZ, t):
        return generation._replace(canvas=generation.canvas + z_BZ[:, :1] * torch.arange(20.0))


def test_the_canvases_variance_against_a_plain_loop():
    found, _ = diagnosed(local(Summing), seed=6)
    noise = streams.normal((STEPS, 64, SIZE), 6, "diagnostics-prior").double().numpy()
    for t in range(STEPS):
        logits = noise[: t + 1, :, :1].sum(0) * np.arange(20)
        ink = 1 / (1 + np.exp(-logits))
        variance = ink.var(0, ddof=1).mean()
        assert found.scores["canvas_variance"][t] == pytest.approx(variance, rel=1e-4)


# --------------------------------------------------------------------------- every variant


@pytest.fixture(scope="module")
def keys():
    """The names of the scores of `cauchy`, which tests/frozen holds."""
    return set(diagnosed("cauchy")[0].scores)


@pytest.mark.parametrize("name", registry.names())
def test_every_variant_is_diagnosed_and_left_as_it_was(name, keys):
    run = training(name, splits=SQUARE)
    model = run.model
    with torch.inference_mode(), train.scoring(model, run.config, SQUARE):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        generator = torch.get_rng_state()
        first = diagnose(model, run.config, SQUARE, 0)
        assert torch.equal(generator, torch.get_rng_state())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    again = diagnose(model, run.config, SQUARE, 0)
    text = json.dumps(first.scores, allow_nan=False)
    assert text == json.dumps(again.scores, allow_nan=False)
    scores = first.scores
    assert set(scores) == keys
    for key, value in first.arrays.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, again.arrays[key], err_msg=key)
    shape = first.arrays["active_variance"].shape
    assert shape == (model.steps, scores["active_units_of"] // model.steps)
    assert (scores["footprint_cells"] is not None) == model.has_filter
    assert (scores["kl_status"] == "undefined") == (not model.has_density or name == "grid")
    if name != "grid":  # diverges at its first step
        assert ("kl_per_step_dimension" in first.arrays) == model.has_density
        finite = hasattr(model, "latent") and scores["kl_status"] == "finite"
        assert (scores["permuted_elbo"] is not None) == finite
        assert scores["validation_recon"] is not None
        assert None not in scores["canvas_variance"]
    other = diagnose(model, run.config, SQUARE, 1).scores
    assert other["canvas_variance"] != scores["canvas_variance"] or name == "grid"


def test_rows_at_once_change_nothing(monkeypatch):
    whole, run = diagnosed("cauchy", latent_init="normal")
    monkeypatch.setattr(diagnostics, "ROWS", 3 * DRAWS)  # three images at once, of eight
    found = diagnose(run.model, run.config, run.splits, 0)
    assert_close(found, whole, 1e-4)
    for key, array in whole.arrays.items():
        np.testing.assert_allclose(found.arrays[key], array, rtol=1e-4, atol=1e-6)


def test_large_splits_are_stood_for_by_a_seeded_draw(monkeypatch):
    monkeypatch.setattr(diagnostics, "IMAGES", 5)
    found, _ = diagnosed(local(LinearMean))
    assert found.scores["diagnosed_images"] == 5
    rows = data.random_subset(TEST_IMAGES, 5, "diagnostics")
    variance = LOADED[rows].var(0, ddof=1)
    np.testing.assert_allclose(found.arrays["active_variance"][0], variance, rtol=1e-5, atol=1e-9)


def test_grey_targets_and_reduced_precision_are_diagnosed():
    splits = tiny_splits("soft")
    found, _ = diagnosed("cauchy", splits=splits, precision="bf16")
    assert found.scores["validation_baseline"] == pytest.approx(
        float(Bernoulli().baseline_nll(splits.train.images, splits.validation.images).mean())
    )
    assert found.scores["kl_status"] == "finite"


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    run = training("cauchy", latent_init="normal")
    here = diagnose(run.model, run.config, run.splits, 0)
    there = diagnose(run.model.cuda(), run.config, run.splits.to("cuda"), 0)
    assert_close(there, here, 1e-3)
