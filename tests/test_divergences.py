"""The closed forms against quadrature, torch.distributions and each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, Uniform, kl_divergence

from glas_bench.divergences import (
    kl_normal,
    kl_uniform,
    log1p_chi2_normal,
    min_chi2_kl,
    min_chi2_log_prob,
    moment_chi2,
    renyi_normal,
    squared_hellinger_normal,
)

pytestmark = pytest.mark.usefixtures("float64")

close = torch.testing.assert_close
MEANS = st.floats(-6, 6)
STDS = st.floats(0.02, 8)
few = settings(max_examples=40, deadline=None, derandomize=True)


def integral(function, ends):
    """Composite Gauss-Legendre quadrature, 40 nodes between every two neighbours of `ends`."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    low, high = np.array(list(itertools.pairwise(sorted(set(ends))))).T
    half = (high - low) / 2
    values = function((low + half)[:, None] + half[:, None] * nodes)
    return math.fsum((values @ weights) * half)


def around(mean, std):
    """Ends of panels that hold a Gaussian factor to the last digit."""
    return mean + std * np.linspace(-14, 14, 29)


def log_normal(z, mean=0.0, std=1.0):
    return -(((z - mean) / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2


def at(function, *values):
    return function(*map(torch.tensor, values)).item()


# --- Gaussians -------------------------------------------------------------------------------


@few
@given(MEANS, STDS)
@example(0.0, 1.0)
@example(1e-3, 1.0)
def test_kl_and_hellinger_are_their_integrals_and_kl_is_torchs(m, s):
    def kl(z):
        return np.exp(log_normal(z, m, s)) * (log_normal(z, m, s) - log_normal(z))

    def squared_distance_of_the_roots(z):
        return (np.exp(log_normal(z, m, s) / 2) - np.exp(log_normal(z) / 2)) ** 2

    digits = {"rel": 1e-9, "abs": 1e-14}
    assert at(kl_normal, m, s) == pytest.approx(integral(kl, around(m, s)), **digits)
    torchs = kl_divergence(Normal(torch.tensor(m), torch.tensor(s)), Normal(0.0, 1.0))
    assert at(kl_normal, m, s) == pytest.approx(torchs.item(), **digits)
    half = integral(squared_distance_of_the_roots, (*around(m, s), *around(0, 1))) / 2
    assert at(squared_hellinger_normal, m, s) == pytest.approx(half, **digits)


def log_of_power_integral(m, s, alpha):
    """ln int q^a p^(1-a): a Gaussian up to a factor, which is taken out at its peak."""

    def exponent(z):
        return alpha * log_normal(z, m, s) + (1 - alpha) * log_normal(z)

    variance = alpha + (1 - alpha) * s * s
    mean = alpha * m / variance
    peak = exponent(np.array(mean))
    area = integral(lambda z: np.exp(exponent(z) - peak), around(mean, s / math.sqrt(variance)))
    return math.log(area) + float(peak)


@few
@given(st.floats(-3, 3), st.floats(0.05, 1.4))
@example(0.0, 1.0)
def test_log1p_chi2_is_the_log_of_the_integral_of_q_squared_over_p(m, s):
    expected = log_of_power_integral(m, s, 2)
    assert at(log1p_chi2_normal, m, s) == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert moment_chi2(torch.tensor(m), 0.0, 1.0) <= expected + 1e-12  # its lower bound


@few
@given(st.floats(-3, 3), st.floats(0.1, 3), st.floats(0.02, 4))
def test_renyi_is_the_log_of_the_integral_of_q_to_the_a(m, s, alpha):
    assume(abs(alpha - 1) > 0.01)
    assume(alpha + (1 - alpha) * s * s > 0.02)
    got = at(lambda mean, std: renyi_normal(mean, std, alpha), m, s)
    expected = log_of_power_integral(m, s, alpha) / (alpha - 1)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@few
@given(MEANS, STDS)
def test_renyi_passes_through_the_named_divergences(m, s):
    q = torch.tensor(m), torch.tensor(s)
    close(renyi_normal(*q, 1), kl_normal(*q), rtol=0, atol=0)
    close(renyi_normal(*q, 1 - 1e-9), kl_normal(*q), rtol=1e-6, atol=1e-9)
    assert renyi_normal(*q, 0).abs() < 1e-14
    hellinger = squared_hellinger_normal(*q)
    if hellinger < 0.999:  # -2 ln(1 - H^2) loses its digits where H^2 is next to 1
        close(renyi_normal(*q, 0.5), -2 * torch.log1p(-hellinger), rtol=1e-12, atol=1e-14)


def test_chi2_and_renyi_are_infinite_outside_their_domain_with_finite_gradients():
    mean = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0], requires_grad=True)
    std = torch.tensor([1.5, 40, 2**0.5 + 1e-6, 2**0.5 - 1e-6, 1], requires_grad=True)
    value = log1p_chi2_normal(mean, std)
    assert value.isinf().tolist() == [True, True, True, False, False]
    assert (value > 0).all()
    slopes = torch.autograd.grad(value.sum(), (mean, std))
    assert all(slope.isfinite().all() for slope in slopes)
    assert slopes[0][3] > 1e4  # the wall that keeps s^2 below 2
    # V = a + (1 - a) s^2 vanishes at s^2 = a / (a - 1)
    edge = math.sqrt(3 / 2)
    for std, alpha, finite in (
        (edge + 1e-9, 3.0, False),
        (edge - 1e-9, 3.0, True),
        (1e6, 0.9, True),  # below order 1 there is no edge
    ):
        value = renyi_normal(torch.tensor(0.1), torch.tensor(std), alpha)
        assert value.isfinite() == finite
        assert finite or value == math.inf
    on_edge = torch.tensor(1.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    value = renyi_normal(*on_edge, 1.125)  # V = 9/8 - 9/8 exactly
    assert value.isinf()
    assert torch.autograd.grad(value, on_edge) == (0, 0)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_renyi_refuses_an_order_that_is_none(alpha):
    with pytest.raises(ValueError, match="not negative"):
        renyi_normal(torch.zeros(1), torch.ones(1), alpha)


NORMAL_FORMS = {
    "kl": (kl_normal, 3.0),
    "hellinger": (squared_hellinger_normal, 3.0),
    "chi2": (log1p_chi2_normal, 1.4),
    "renyi-0.3": (lambda m, s: renyi_normal(m, s, 0.3), 3.0),
    "renyi-1.2": (lambda m, s: renyi_normal(m, s, 1.2), 2.4),
}


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        *(
            (form, [[0.0, 1e-3, -2.0, 0.5, 0.0, 3.0], [1.0, 1.0, 1e-2, widest, 0.7, 0.3]])
            for form, widest in NORMAL_FORMS.values()
        ),
        (lambda mean: moment_chi2(mean, 0.3, 0.7), [[-3.0, -0.2, 0.3, 3.0]]),
        (min_chi2_log_prob, [[0.3, -1, 4, -2, 0.7, -0.16], [0, 0.2, 1.5, -0.6, -0.3, 1.5]]),
        (min_chi2_kl, [[1e-3, -0.0199, 0.0201, 0.4, -1, 3, 15, -17]]),
    ],
)
def test_gradients_are_right_everywhere_inside(function, inputs):
    leaves = [torch.tensor(values, dtype=torch.float64).requires_grad_() for values in inputs]
    assert torch.autograd.gradcheck(function, leaves, eps=1e-8, rtol=1e-4)


@pytest.mark.parametrize("name", NORMAL_FORMS)
def test_gradients_vanish_at_the_prior_and_are_finite_for_the_narrowest_posteriors(name):
    function, _ = NORMAL_FORMS[name]
    at_prior = torch.tensor(0.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    assert torch.autograd.grad(function(*at_prior), at_prior) == (0, 0)  # q = p is the minimum
    mean = torch.tensor([0.0, 5.0, -30.0], dtype=torch.float32, requires_grad=True)
    std = torch.tensor([1e-8, 1e-12, 1e-15], dtype=torch.float32, requires_grad=True)
    value = function(mean, std)
    assert value.isfinite().all()
    for slope in torch.autograd.grad(value.sum(), (mean, std)):
        assert slope.isfinite().all()


@pytest.mark.parametrize(("name", "rtol"), [("kl", 1e-3), ("hellinger", 1e-5), ("chi2", 2e-3)])
def test_float32_keeps_its_digits_next_to_the_prior(name, rtol):
    """Written as they are printed, the forms have an error of 1e-7, more than these values."""
    function, _ = NORMAL_FORMS[name]
    mean = torch.tensor([0.0, 3e-4, 3e-4, 0.0], dtype=torch.float32)
    std = torch.tensor([1.0, 1.0, 1 - 2e-4, 1 + 5e-4], dtype=torch.float32)
    value = function(mean, std)
    assert value.dtype == torch.float32
    exact = function(mean.double(), std.double())
    assert (exact[1:] < 6e-7).all()
    close(value.double(), exact, rtol=rtol, atol=0)
    assert value[0] == 0


# --- uniform laws and the moment bound -------------------------------------------------------


@few
@given(st.floats(0, 1), st.floats(0, 1))
@example(0.0, 1.0)
def test_kl_uniform_is_what_torch_says(a, b):
    low, high = min(a, b), max(a, b)
    assume(high - low > 1e-6)
    got = at(kl_uniform, low, high)
    q = Uniform(torch.tensor(low), torch.tensor(high))
    assert got == pytest.approx(kl_divergence(q, Uniform(0.0, 1.0)).item(), rel=1e-12, abs=1e-15)


def test_kl_uniform_is_infinite_where_q_sticks_out_or_is_empty():
    low = torch.tensor([-1e-9, 0.5, 0.5, 0.7, -0.5, 0.25], requires_grad=True)
    high = torch.tensor([0.5, 1 + 1e-9, 0.5, 0.2, 1.5, 0.75], requires_grad=True)
    value = kl_uniform(low, high)
    assert value[:5].isinf().all()
    assert (value > 0).all()
    assert value[5].item() == pytest.approx(math.log(2))
    slopes = torch.autograd.grad(value.sum(), (low, high))
    assert slopes[0].tolist() == [0, 0, 0, 0, 0, 2]
    assert slopes[1].tolist() == [0, 0, 0, 0, 0, -2]


def test_moment_chi2_and_its_missing_order_with_kl():
    assert moment_chi2(torch.tensor(0.4), 0.5, 1 / 12).item() == pytest.approx(0.113, abs=5e-4)
    charge = moment_chi2(torch.tensor([0.0, 2.0, 1.0]), 0.0, 1.0)
    assert charge.tolist() == pytest.approx([0, 1.6094379, 0.6931472])
    kl = kl_normal(torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.1, 1.0, 1.0]))
    assert (charge < kl).tolist() == [True, True, False]
    tensors = moment_chi2(torch.tensor(0.4), torch.tensor(0.5), torch.tensor(1 / 12))
    assert tensors == moment_chi2(torch.tensor(0.4), 0.5, 1 / 12)


# --- the min-chi2 sampler --------------------------------------------------------------------


def test_min_chi2_log_prob_by_its_two_roots():
    """f(z) = [phi((-1 + r)/(2 m)) + phi((-1 - r)/(2 m))] / r, as the density is usually written."""
    z = torch.linspace(-7, 7, 97, requires_grad=True)
    for m in (0.04, -0.2, 0.5, -1.7, 6.0):
        r = torch.sqrt((1 + 4 * m * z).clamp(min=0))
        roots = torch.stack([(-1 + r) / (2 * m), (-1 - r) / (2 * m)])
        density = torch.exp(-roots.square() / 2).sum(0) / math.sqrt(2 * math.pi) / r
        inside, outside = 1 + 4 * m * z > 1e-9, 1 + 4 * m * z < -1e-9
        mean = torch.full_like(z, m, requires_grad=True)
        got = min_chi2_log_prob(z, mean)
        close(got.exp()[inside], density[inside], rtol=1e-9, atol=0)
        assert (got[outside] == -math.inf).all()
        for slope in torch.autograd.grad(got.sum(), (z, mean)):
            assert not slope[outside].any()
        assert inside.any()
        assert outside.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_chi2_log_prob_is_continuous_at_zero(dtype):
    z = torch.linspace(-5, 5, 41, dtype=dtype)
    normal = Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)).log_prob(z)
    for m in (0.0, 1e-8, -1e-8, 1e-30):
        mean = torch.full_like(z, m, requires_grad=True)
        got = min_chi2_log_prob(z, mean)
        close(got, normal, rtol=1e-6, atol=2e-6)
        (slope,) = torch.autograd.grad(got.sum(), mean)
        # the first-order perturbation of the normal law is m (He_1 + He_3) = m (z^3 - 2 z)
        close(slope, z**3 - 2 * z, rtol=1e-4, atol=1e-4)


def min_chi2_kl_by_quadrature(m):
    """E_s[ln(phi(s) + phi(-1/m - s)) - ln|1 + 2 m s| - ln phi(z)], panels graded to the log's pole.

    The terms in s^2 and z^2 are integrated by hand, 3/2 m^2, so that the value keeps its digits.
    """

    def integrand(s):
        # phi(-1/m - s) / phi(s) = exp(-(1 + 2 m s) / (2 m^2))
        second_root = np.logaddexp(0, -(1 + 2 * m * s) / (2 * m * m))
        rest = second_root - np.log(np.abs(1 + 2 * m * s)) + 2 * m * s
        return np.exp(log_normal(s)) * rest

    pole = -1 / (2 * m)
    graded = 2.0 ** -np.arange(40)
    ends = pole + np.array([0, *graded, *-graded, *m * np.linspace(-9, 9, 13)])
    return 1.5 * m * m + integral(integrand, (*around(0, 1), *ends[np.abs(ends) < 14]))


PUBLISHED_KL = [
    *((0.01, 0.000350), (0.05, 0.00883), (0.1, 0.0364), (0.2, 0.188), (0.3, 0.475), (0.5, 0.940)),
    *((1.0, 1.904), (2.0, 5.881), (5.0, 36.5), (10.0, 148.3)),
]


@pytest.mark.parametrize(("m", "published"), PUBLISHED_KL)
def test_min_chi2_kl_gives_the_table(m, published):
    got = at(min_chi2_kl, m)
    assert got == pytest.approx(published, rel=2e-3)
    assert got == pytest.approx(min_chi2_kl_by_quadrature(m), rel=5e-9)


@settings(few, max_examples=15)
@given(st.floats(math.log(2e-3), math.log(60)), st.booleans())
def test_min_chi2_kl_and_its_slope_are_those_of_the_integral(log_m, negative):
    m = math.exp(log_m)
    mean = torch.tensor(-m if negative else m, requires_grad=True)
    value = min_chi2_kl(mean)
    assert value.item() == pytest.approx(min_chi2_kl_by_quadrature(m), rel=5e-9, abs=1e-12)
    value.backward()
    h = 1e-3 * m
    f = [min_chi2_kl_by_quadrature(m + k * h) for k in (-2, -1, 1, 2)]
    slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    assert mean.grad.item() == pytest.approx(-slope if negative else slope, rel=2e-6)


def test_min_chi2_kl_at_its_ends():
    mean = torch.tensor([0.0, 1e-8, 1e-4, -1e-4, 1e3, 1e6], requires_grad=True)
    value = min_chi2_kl(mean)
    assert value[0] == 0
    close(value[:4], 3.5 * mean[:4].square(), rtol=1e-6, atol=0)
    assert value[2] == value[3]
    wide = 1.5 * mean[4:] ** 2 - mean[4:].log() + (np.euler_gamma + math.log(2)) / 2
    close(value[4:], wide, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), mean)
    close(slope[:4], 7 * mean[:4], rtol=1e-6, atol=0)
    assert min_chi2_kl(torch.tensor(1e25, dtype=torch.float32)) == math.inf
    close(slope[4:], 3 * mean[4:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("joint", [0.02, 16.0])
def test_min_chi2_kl_has_no_step_where_its_pieces_meet(joint):
    mean = torch.tensor([joint * (1 - 1e-12), joint * (1 + 1e-12)], requires_grad=True)
    value = min_chi2_kl(mean)
    (slope,) = torch.autograd.grad(value.sum(), mean)
    assert value[1].item() == pytest.approx(value[0].item(), rel=1e-9)
    assert slope[1].item() == pytest.approx(slope[0].item(), rel=1e-8)


def test_min_chi2_kl_is_never_less_than_2_7254_times_the_published_charge():
    mean = torch.linspace(0.01, 12, 120_000)
    ratio = min_chi2_kl(mean) / torch.log1p(mean.square())
    assert ratio.min().item() == pytest.approx(2.7254, abs=5e-5)
    assert mean[ratio.argmin()].item() == pytest.approx(1.097, abs=1e-3)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_min_chi2_kl_in_other_dtypes(dtype, rtol):
    mean = torch.tensor([1e-3, 0.0201, 0.14, 0.6, 3.0, 40.0], dtype=dtype)
    value = min_chi2_kl(mean)
    assert value.dtype == dtype
    close(value.double(), min_chi2_kl(mean.double()), rtol=rtol, atol=0)


def test_the_table_born_in_inference_mode_serves_training(monkeypatch):
    tables = {}
    monkeypatch.setattr("glas_bench.divergences._TABLES", tables)
    with torch.inference_mode():
        min_chi2_kl(torch.tensor(0.5))
    assert [table.is_inference() for table in tables.values()] == [False]
    mean = torch.tensor(0.5, requires_grad=True)
    min_chi2_kl(mean).backward()
    assert mean.grad is not None


# --- every form alike ------------------------------------------------------------------------

FORMS = {
    **{name: form for name, (form, _) in NORMAL_FORMS.items()},
    "kl_uniform": lambda m, s: kl_uniform(m / 9, s / 3),
    "moment_chi2": lambda m, s: moment_chi2(m, 0.5, 1 / 12) + 0 * s,
    "min_chi2_log_prob": min_chi2_log_prob,
    "min_chi2_kl": lambda m, s: min_chi2_kl(m) + 0 * s,
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture
def draws():
    """A mean and a standard deviation for each of 4 x 3 x 5 elements."""
    generator = torch.Generator().manual_seed(3)
    mean, log_variance = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))
    return mean, torch.exp(log_variance / 2)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_forms_are_elementwise_and_vmap_changes_nothing(form, draws, dtype, rtol):
    """Broadcast arguments, and an infinite neighbour, change no element."""
    mean, std = (x.to(dtype) for x in draws)
    pairs = zip(mean.flatten(), std.flatten(), strict=True)
    alone = torch.stack([form(m, s) for m, s in pairs]).view_as(mean)
    stacked = torch.func.vmap(form)(mean, std)
    assert stacked.dtype == dtype
    close(stacked, alone, rtol=rtol, atol=0)
    close(form(mean, std), alone, rtol=rtol, atol=0)
    row = std[:1, :1]
    close(form(mean, row), form(mean, row.expand_as(mean)), rtol=rtol, atol=0)
    # down to scalars, and through the gradient
    slope = torch.func.vmap(torch.func.grad(form))(mean.flatten(), std.flatten())
    leaf = mean.clone().requires_grad_()
    (expected,) = torch.autograd.grad(form(leaf, std).sum(), leaf)
    close(slope, expected.flatten(), rtol=1e-4, atol=1e-6)


def test_one_graph_holds_the_form(form, draws):
    torch.compiler.reset()
    compiled = torch.compile(torch.func.vmap(form), fullgraph=True, backend="aot_eager")
    close(compiled(*draws), form(*draws))


def test_nan_stays_nan(form):
    """A diverged seed must not pass for an infinite divergence."""
    assert math.isnan(at(form, math.nan, 1.0))
    assert math.isnan(at(form, 1.0, math.nan))


@pytest.mark.gpu
def test_forms_on_a_cuda_device_and_in_a_cuda_graph(form, draws):
    expected = form(*draws)
    mean, std = (x.cuda() for x in draws)
    close(form(mean, std).cpu(), expected, rtol=1e-10, atol=1e-14)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = form(mean, std)
    graph.replay()
    close(captured.cpu(), expected, rtol=1e-10, atol=1e-14)
