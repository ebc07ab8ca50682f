"""The recurrence against the plain float64 reference: values and gradients, at random sizes."""

import math

import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glas_bench import registry
from glas_bench.core import rollout, streams
from glas_bench.model import Glas, Normal, StandardNormal, Uniform

close = torch.testing.assert_close
ARMS = {
    "cauchy": {"kind": "cauchy"},
    "gaussian": {"kind": "gaussian"},
    "fixed-random": {"kind": "cauchy"},
    "hellinger": {"kind": "cauchy", "divergence": "hellinger"},
    "no-attention": {"kind": "none"},
    "vae": {"kind": "none"},
}


def make(name, seed=0, pixels=9, classes=0, sizes=None, **own):
    """A variant's model in float64, with its own settings and those of the sizes that it has."""
    cls = registry.find(name).cls if isinstance(name, str) else name
    fields = cls.Settings.model_fields
    sizes = {key: value for key, value in (sizes or {}).items() if key in fields}
    return rollout.build(cls, cls.Settings(**{**sizes, **own}), pixels, classes, seed).double()


def normals(*shape, seed=0):
    return streams.normal(shape, seed, "test").double()


def batch(model, draws=1, images=2, seed=0):
    """Return binary x [B, P] and noise [T, K, B, Z]."""
    x = (normals(images, model.pixels, seed=seed + 1) > 0.3).double()
    return x, normals(model.steps, draws, images, model.noise_size, seed=seed + 2)


def rolled(model, x, noise, labels=None, **phase):
    """Return the terms of one rollout, and the state and outputs of its steps."""
    seen = []

    def trace(t, state, step):
        seen.append((state, step))

    return rollout.rollout(model, x, x, labels, noise, trace=trace, **phase), seen


def assert_as_plain(model, terms, objective_B, plain):
    """Compare terms and gradients with those of plain loops.

    `plain(p, b)` returns an image's terms by name, given leaves p in place of the parameters.
    """
    objective_B.mean().backward()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    p = {key: value.detach().clone().requires_grad_() for key, value in tensors.items()}
    objective = 0
    for b in range(len(objective_B)):
        found = plain(p, b)
        for name, value in found.items():
            close(getattr(terms, name)[0, b], value, rtol=1e-9, atol=1e-9)
        charge = model.settings.charge_weight * found.get("charge", 0)
        objective = objective + found.get("recon", 0) + charge + found.get("aux", 0)
    (objective / len(objective_B)).backward()
    for name, parameter in model.named_parameters():
        got, expected = (
            torch.zeros_like(each) if each.grad is None else each.grad
            for each in (parameter, p[name])
        )
        close(got, expected, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


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


@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=12, deadline=None)
@given(size=sizes(), seed=st.integers(0, 999), pixels=st.integers(1, 9), images=st.integers(1, 3))
def test_values_and_gradients_equal_the_reference(name, size, seed, pixels, images):
    model = make(name, seed, pixels, sizes=size)
    generator = torch.Generator().manual_seed(seed)
    x = torch.bernoulli(torch.full((images, pixels), 0.4, dtype=torch.float64), generator=generator)
    shape = (model.steps, 1, images, model.sample_size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    terms = rollout.rollout(model, x, x, None, noise)
    run = reference.vae if name == "vae" else reference.glas
    about = {"R": size["filter_size"], "L": size["latent_size"], **ARMS[name]}
    about |= {key: size[key] for key in ("grid", "floor")}

    def plain(p, b):
        return dict(zip(reference.TERMS, run(p, x[b], noise[:, 0, b], **about), strict=True))

    assert_as_plain(model, terms, model.objective(terms), plain)


def test_initialisation_is_glorot_with_the_fans_of_the_concatenated_kernel():
    model = make("cauchy", pixels=784, steps=2, hidden=64, sample_size=25)
    kernel = torch.cat([piece.detach().flatten() for piece in model.encoder.kernels.values()])
    limit = math.sqrt(6 / (784 + 784 + 64 + 64 + 4 * 64))
    assert 0.999 * limit < kernel.abs().max() <= limit
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
    glorot, small = (make("cauchy", hidden=8, filter_init=init) for init in ("glorot", "small"))
    close(small.filter.weight, glorot.filter.weight * 0.01)


def test_variants_of_one_seed_start_alike_where_they_share_layers():
    a, b, other = make("cauchy", 3), make("no-attention", 3), make("cauchy", 4)
    assert torch.equal(a.encoder.kernels["x"], b.encoder.kernels["x"])
    assert torch.equal(a.write.weight, b.write.weight)
    assert not torch.equal(a.write.weight, other.write.weight)


def test_the_fixed_latent_is_a_buffer_and_the_learned_one_a_parameter():
    fixed, learned = make("fixed-random"), make("cauchy")
    assert "latent" in dict(fixed.named_buffers())
    assert "latent" in dict(learned.named_parameters())
    assert torch.equal(fixed.latent, learned.latent)


@settings(max_examples=50, deadline=None)
@given(m=st.floats(-3, 3), s=st.floats(1e-3, 4), z=st.floats(-5, 5))
def test_laws_are_those_of_torch_distributions(m, s, z):
    m, s, z = (torch.tensor([value], dtype=torch.float64) for value in (m, s, z))
    assume(z != m and z != m + s)  # there an open end is torch's habit
    for own, torchs in (
        (Normal(m, s), torch.distributions.Normal(m, s)),
        (StandardNormal(), torch.distributions.Normal(0.0, 1.0)),
        (Uniform(m, m + s, s.log()), torch.distributions.Uniform(m, m + s, validate_args=False)),
    ):
        close(own.log_prob(z), torchs.log_prob(z))
        close(own.sample(z), torchs.icdf(torch.special.ndtr(z)), rtol=1e-7, atol=1e-8)


def test_whether_an_objective_bounds_is_decided_by_cell_and_by_what_a_file_overrides():
    class Silent(Glas):
        def charge(self, q, p, z):
            return q.mean.abs().sum(-1)

    class Declares(Glas):
        bounds_nll = True

        def charge(self, q, p, z):
            return super().charge(q, p, z)

    class Reads(Glas):
        def log_kernel(self, centres_BR, log_scale_B):
            return super().log_kernel(centres_BR, log_scale_B)

    full, quarter = Glas.Settings(), Glas.Settings(charge_weight=0.25)
    for cls, holds in ((Glas, True), (Silent, None), (Declares, True), (Reads, True)):
        assert cls.bound(full).holds is holds, cls
    assert "charge" in Silent.bound(full).reason
    assert Glas.bound(quarter).holds is False
    assert "charge_weight 0.25" in Glas.bound(quarter).reason


def test_a_filter_larger_than_the_matrix_is_refused():
    with pytest.raises(ValueError, match="filter_size 6 is larger than latent_size 5"):
        Glas.Settings(filter_size=6, latent_size=5)
