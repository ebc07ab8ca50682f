"""The recurrence against the plain float64 reference: values and gradients, at random sizes."""

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glas_bench import registry
from glas_bench.core import rollout
from glas_bench.model import Glas, Normal, StandardNormal

ARMS = {
    "cauchy": {"kind": "cauchy", "divergence": "kl"},
    "gaussian": {"kind": "gaussian", "divergence": "kl"},
    "fixed-random": {"kind": "cauchy", "divergence": "kl"},
    "hellinger": {"kind": "cauchy", "divergence": "hellinger"},
    "no-attention": {"kind": "none", "divergence": "kl"},
    "vae": {"kind": "none", "divergence": "kl"},
}


@st.composite
def sizes(draw):
    L = draw(st.integers(2, 6))
    return {
        "steps": draw(st.integers(1, 4)),
        "hidden": draw(st.integers(1, 5)),
        "sample_size": draw(st.integers(1, 4)),
        "latent_size": L,
        "filter_size": draw(st.integers(1, L)),
        "grid": draw(st.sampled_from(["original", "slip-mended", "centred"])),
        "floor": draw(st.sampled_from(["1e-3", "logsumexp"])),
        "latent_init": draw(st.sampled_from(["1e-3", "1", "normal"])),
        "charge_weight": draw(st.sampled_from([1.0, 0.25, 2.0])),
    }


def make(name, size, seed, pixels):
    variant = registry.find(name)
    fields = variant.cls.Settings.model_fields
    own = variant.cls.Settings(**{k: v for k, v in size.items() if k in fields})
    return rollout.build(variant.cls, own, pixels, 0, seed).double()


@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=12, deadline=None)
@given(size=sizes(), seed=st.integers(0, 999), pixels=st.integers(1, 9), images=st.integers(1, 3))
def test_values_and_gradients_equal_the_reference(name, size, seed, pixels, images):
    model = make(name, size, seed, pixels)
    generator = torch.Generator().manual_seed(seed)
    x = torch.bernoulli(torch.full((images, pixels), 0.4, dtype=torch.float64), generator=generator)
    shape = (model.steps, 1, images, model.sample_size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    terms = rollout.rollout(model, x, x, None, noise)
    model.objective(terms).mean().backward()

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    p = {key: value.detach().clone().requires_grad_() for key, value in tensors.items()}
    run = reference.vae if name == "vae" else reference.glas
    objective = 0
    for b in range(images):
        recon, charged, ratio, _ = run(
            p,
            x[b],
            noise[:, 0, b],
            R=size["filter_size"],
            L=size["latent_size"],
            grid=size["grid"],
            floor=size["floor"],
            **ARMS[name],
        )
        torch.testing.assert_close(terms.recon[0, b], recon, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(terms.charge[0, b], charged, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(terms.log_ratio[0, b], ratio, rtol=1e-9, atol=1e-9)
        objective = objective + recon + size["charge_weight"] * charged
    (objective / images).backward()
    for key, parameter in model.named_parameters():
        expected = p[key].grad if p[key].grad is not None else torch.zeros_like(p[key])
        got = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9, msg=lambda m, k=key: k + m)


def test_a_rollout_of_k_draws_is_k_rollouts():
    model = make("cauchy", {"steps": 3, "hidden": 5, "sample_size": 2}, 0, 7)
    x = torch.rand(4, 7, dtype=torch.float64).round()
    noise = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    whole = rollout.rollout(model, x, x, None, noise)
    for k in range(5):
        one = rollout.rollout(model, x, x, None, noise[:, k : k + 1])
        for name in whole._fields:
            torch.testing.assert_close(getattr(whole, name)[k], getattr(one, name)[0])


def test_initialisation_is_glorot_with_the_fans_of_the_concatenated_kernel():
    model = make("cauchy", {"steps": 2, "hidden": 64, "sample_size": 25}, 0, 784)
    kernel = torch.cat([piece.detach().flatten() for piece in model.encoder.kernels.values()])
    limit = math.sqrt(6 / (784 + 784 + 64 + 64 + 4 * 64))
    assert kernel.abs().max() <= limit
    assert kernel.abs().max() > 0.999 * limit
    assert abs(float(kernel.var()) / (limit**2 / 3) - 1) < 0.02
    forget = torch.zeros(256).double()
    forget[64:128] = 1
    assert torch.equal(model.encoder.bias.detach(), forget)
    assert torch.equal(model.decoder.bias.detach(), forget)
    write_limit = math.sqrt(6 / (64 + 784))
    assert 0.999 * write_limit < model.write.weight.abs().max() <= write_limit
    assert not model.write.bias.any()
    assert model.latent.min() >= 0
    assert 0.9e-3 < model.latent.max() < 1e-3


def test_filter_init_small_is_a_hundredth():
    glorot = make("cauchy", {"steps": 2, "hidden": 8, "filter_init": "glorot"}, 0, 9)
    small = make("cauchy", {"steps": 2, "hidden": 8, "filter_init": "small"}, 0, 9)
    torch.testing.assert_close(small.filter.weight, glorot.filter.weight * 0.01)


def test_variants_of_one_seed_start_alike_where_they_share_layers():
    a, b = make("cauchy", {}, 3, 20), make("no-attention", {}, 3, 20)
    assert torch.equal(a.encoder.kernels["x"], b.encoder.kernels["x"])
    assert torch.equal(a.write.weight, b.write.weight)
    assert not torch.equal(a.write.weight, make("cauchy", {}, 4, 20).write.weight)


def test_the_fixed_latent_is_a_buffer_and_the_learned_one_a_parameter():
    fixed, learned = make("fixed-random", {}, 0, 9), make("cauchy", {}, 0, 9)
    assert "latent" in dict(fixed.named_buffers())
    assert "latent" in dict(learned.named_parameters())
    assert torch.equal(fixed.latent, learned.latent)


@settings(max_examples=30, deadline=None)
@given(m=st.floats(-3, 3), s=st.floats(0.05, 3), z=st.floats(-4, 4))
def test_densities_equal_torch_distributions(m, s, z):
    m, s, z = (torch.tensor([value], dtype=torch.float64) for value in (m, s, z))
    expected = torch.distributions.Normal(m, s).log_prob(z)
    torch.testing.assert_close(Normal(m, s).log_prob(z), expected)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(StandardNormal().log_prob(z), standard)


def test_whether_an_objective_bounds_is_decided_by_cell_and_by_what_a_file_overrides():
    class Silent(Glas):
        def charge(self, q, p, z):
            return q.mean.abs().sum(-1)

    class Said(Glas):
        bounds_nll = True

        def charge(self, q, p, z):
            return super().charge(q, p, z)

    class Reads(Glas):
        def log_kernel(self, centres_BR, log_scale_B):
            return super().log_kernel(centres_BR, log_scale_B)

    full, quarter = Glas.Settings(), Glas.Settings(charge_weight=0.25)
    assert Glas.bound(full).holds is True
    assert Glas.bound(quarter).holds is False
    assert "charge_weight 0.25" in Glas.bound(quarter).reason
    assert Silent.bound(full).holds is None
    assert "charge" in Silent.bound(full).reason
    assert Said.bound(full).holds is True
    assert Reads.bound(full).holds is True


def test_a_filter_larger_than_the_matrix_is_refused():
    with pytest.raises(ValueError, match="filter_size 6 is larger than latent_size 5"):
        Glas.Settings(filter_size=6, latent_size=5)
