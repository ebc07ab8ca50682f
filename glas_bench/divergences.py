"""Divergences of a posterior q from the prior: closed forms, in nats, one value per element.

Every function maps tensors of one (broadcast) shape to a tensor of that shape; the caller sums over
dimensions and steps. The prior p is N(0, 1) unless a docstring names U(0, 1); `mean` is m, of
either sign, and `std` is s > 0. An infinite divergence is `inf` with a zero gradient; inside the
domain the gradient is finite; nan stays nan. All functions run under `torch.func.vmap`,
`torch.compile` and autograd in float32 and float64. Differences that vanish at q = p are formed
before rounding: the error there is of the order of eps (s - 1), not eps.

Sources: Renyi divergences between Gaussians, Gil, Alajaji & Linder 2013 (Information Sciences 249),
and their order, van Erven & Harremoes 2014 (arXiv 1206.2459); the moment bound and the min-chi2
sampler, `glas/model/sample.py` of github.com/dojoteef/glas.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


# --- q = N(mean, std^2) against p = N(0, 1) --------------------------------------------------


def kl_normal(mean: Tensor, std: Tensor) -> Tensor:
    """KL(q||p) = (m^2 + s^2 - 1 - ln s^2) / 2 for q = N(m, s^2).

    Computed as (m^2 + (s - 1)^2) / 2 + (s - 1 - ln s), three terms that are not negative.
    """
    return (mean.square() + (std - 1).square()) / 2 + (std - 1 - torch.log(std))


def squared_hellinger_normal(mean: Tensor, std: Tensor) -> Tensor:
    """H^2(q, p) = 1 - BC = half of int (sqrt q - sqrt p)^2, for q = N(m, s^2); in [0, 1].

        BC = sqrt(2 s / (1 + s^2)) exp(-m^2 / (4 (1 + s^2)))

    As in the original code (`glas/utils/ops.py`). A sum of it over dimensions is not the H^2 of the
    product, which is 1 - prod BC and saturates.
    """
    # 1 + s^2 = 2 s + (s - 1)^2, so the square root is 1 / sqrt(1 + (s - 1)^2 / (2 s)).
    log_bc = -torch.log1p((std - 1) * ((std - 1) / (2 * std))) / 2
    log_bc = log_bc - mean.square() / (4 * (1 + std.square()))
    return -torch.expm1(log_bc)


def log1p_chi2_normal(mean: Tensor, std: Tensor) -> Tensor:
    """ln(1 + chi2(q||p)) = m^2 / (2 - s^2) - ln s - ln(2 - s^2) / 2 for q = N(m, s^2).

    The Renyi divergence of order 2: an upper bound of KL(q||p), additive over dimensions, infinite
    for s^2 >= 2.
    """
    return renyi_normal(mean, std, 2.0)


def renyi_normal(mean: Tensor, std: Tensor, alpha: float) -> Tensor:
    """Renyi divergence D_a(q||p) = ln E_p[(q/p)^a] / (a - 1) for q = N(m, s^2).

        D_a = a m^2 / (2 V) + ln(V) / (2 (1 - a)) - ln s,    V = a + (1 - a) s^2

    D_a grows with a. D_1 = KL, D_2 = ln(1 + chi2), D_1/2 = -2 ln(1 - H^2), D_0 = 0. It is infinite
    where V <= 0, which takes a > 1.

    Raises:
        ValueError: a negative or non-finite alpha.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be finite and not negative: got {alpha}")
    if alpha == 1:
        return kl_normal(mean, std)
    variance = alpha + (1 - alpha) * std.square()
    outside = variance <= 0
    V = torch.where(outside, 1.0, variance)
    # ln V is accurate as a log1p around s = 1, and as a log around V = 0.
    excess = (1 - alpha) * (std - 1) * (std + 1)
    near = ~outside & (excess.abs() < 0.5)
    log_V = torch.where(near, torch.log1p(torch.where(near, excess, 0.0)), torch.log(V))
    divergence = alpha * mean.square() / (2 * V) + log_V / (2 * (1 - alpha)) - torch.log(std)
    return torch.where(outside, math.inf, divergence)


# --- uniform and other laws ------------------------------------------------------------------


def kl_uniform(low: Tensor, high: Tensor) -> Tensor:
    """KL(q||p) = -ln(high - low) for q = U(low, high), p = U(0, 1).

    It equals ln(1 + chi2(q||p)), and every Renyi divergence of order above 0; a shift of the whole
    interval has no gradient. It is infinite where q leaves [0, 1] or is empty.
    """
    outside = (low < 0) | (high > 1) | (low >= high)
    return torch.where(outside, math.inf, -torch.log(torch.where(outside, 1.0, high - low)))


def moment_chi2(mean: Tensor, prior_mean: Tensor | float, prior_var: Tensor | float) -> Tensor:
    """ln(1 + (E_q X - E_p X)^2 / Var_p X): the charge of three variants of the original.

    By Hammersley, Chapman and Robbins a *lower* bound of ln(1 + chi2(q||p)), which is an upper
    bound of KL(q||p): this charge can be less or more than KL. U(0, 1) has mean 1/2, variance 1/12.
    """
    return torch.log1p((mean - prior_mean) ** 2 / prior_var)


# --- the min-chi2 sampler: z = s (1 + m s), s ~ N(0, 1) ---------------------------------------


def min_chi2_log_prob(z: Tensor, mean: Tensor) -> Tensor:
    """Log density of z = s (1 + m s), s ~ N(0, 1): mean m, variance 1 + 2 m^2.

    Two values of s lead to one z, s_1 = 2 z / (1 + r) and s_2 = -1/m - s_1, hence

        f(z) = (phi(s_1) + phi(s_2)) / r,    r = sqrt(1 + 4 m z)
             = phi(s_1) (1 + exp(-r / (2 m^2))) / r

    and the last line stays exact as m -> 0, where the law is N(0, 1). The support ends at z = -1 /
    (4 m), where the density has an integrable pole; a z within four roundings of it counts as on
    it, with r = sqrt(eps), because the sampler's own draws are rounded to either side. Outside the
    log density is -inf.
    """
    r_squared = 1 + 4 * mean * z
    eps = torch.finfo(r_squared.dtype).eps
    outside = r_squared <= -4 * eps
    r = torch.sqrt(torch.where(outside, 1.0, r_squared).clamp(min=eps))
    s_1 = 2 * z / (1 + r)
    # The share of the second root underflows long before 2 m^2 / r falls to 1e-3.
    width = 2 * mean.square() / r
    felt = width > 1e-3
    second = torch.where(felt, torch.log1p(torch.exp(-1 / torch.where(felt, width, 1.0))), 0.0)
    log_prob = -(s_1.square() + LOG_2PI) / 2 + second - torch.log(r)
    return torch.where(outside, -math.inf, log_prob)


_SERIES_BELOW = 0.02
# KL / m^2 in powers of m^2: 3/2 + 4 sum_k (4 m^2)^(k-1) (2k-1)!! / (2k), from -E ln|1 + 2 m s|
_SERIES = (3.5, 12.0, 160.0, 3360.0, 96768.0)
_EXPANSION_ABOVE = 16.0
_EXPANSION_CONSTANT = (np.euler_gamma + math.log(2)) / 2
_KNOTS = 512
_KNOT_STEP = math.log(_EXPANSION_ABOVE / _SERIES_BELOW) / (_KNOTS - 1)


def min_chi2_kl(mean: Tensor) -> Tensor:
    """KL of the min-chi2 sampler's law to N(0, 1), a smooth even function of m.

    With t = 1 + 2 m s, the density of z at its own draw gives

        KL = 3/2 m^2 + E_s[ln(1 + exp(-t / (2 m^2))) - ln|t|],    s ~ N(0, 1)

    It is m^2 times a ratio that falls smoothly from 7/2 to 3/2: a series below m = 0.02, a cubic
    Hermite spline in ln m with exact slopes above, and an expansion in 1/m beyond m = 16. The
    relative error is below 5e-9 in float64 and 1e-6 in float32. The spline's table is computed at
    the first call (about 0.1 s) and cached per device and dtype.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    m = mean.abs().to(dtype)
    m_square = m.square()

    x = m.clamp(max=_SERIES_BELOW).square()
    series = torch.zeros_like(x)
    for coefficient in reversed(_SERIES):
        series = series * x + coefficient

    inverse = 1 / m.clamp(_EXPANSION_ABOVE, 1e15).square()
    expansion = 1.5 + inverse * (
        torch.log(inverse) / 2 + _EXPANSION_CONSTANT - inverse / 4 + inverse.square() / 48
    )

    position = torch.log(m.clamp(_SERIES_BELOW, _EXPANSION_ABOVE) / _SERIES_BELOW) / _KNOT_STEP
    # a nan mean must give nan, not an index out of bounds
    knot = position.detach().floor().clamp(0, _KNOTS - 2).nan_to_num(0.0)
    u = position - knot
    # [..., 4] polynomial coefficients of the interval, lowest power first
    table = _spline_table(m.device, dtype)
    c_0, c_1, c_2, c_3 = F.embedding(knot.to(torch.int64), table).unbind(-1)
    spline = c_0 + u * (c_1 + u * (c_2 + u * c_3))

    ratio = torch.where(m > _EXPANSION_ABOVE, expansion, spline)
    return (m_square * torch.where(m < _SERIES_BELOW, series, ratio)).to(mean.dtype)


def min_chi2_kl_knots() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the knots of `min_chi2_kl`: log-spaced |m|, with KL and dKL/dm by quadrature.

    E ln|1 + 2 m s| = ln(2 m) + E ln|s + a| with a = 1 / (2 m). The last term has no singularity as
    its value at 0 plus the integral of its derivative, sqrt(2) D(a / sqrt 2), with Dawson's
    function D. The other expectation is smooth on the scale of m, where the trapezoid rule
    converges exponentially.

    Returns:
        m, KL in nats and dKL/dm, each of shape `[512]`, float64.
    """
    m = _SERIES_BELOW * np.exp(_KNOT_STEP * np.arange(_KNOTS))
    a = 1 / (2 * m)

    # E ln|s + a|, integrated from 0 over the intervals between the knots, smallest a first
    ends = np.concatenate([[0.0], a[::-1]])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = np.diff(ends) / 2
    slopes = _log_moment_slope((ends[:-1] + half)[:, None] + half[:, None] * nodes)
    log_moment = -_EXPANSION_CONSTANT + np.cumsum((slopes @ weights) * half)[::-1]

    # E ln(1 + e^-x), x = t / (2 m^2)
    s = np.linspace(-12, 12, 961)
    phi = np.exp(-(s**2) / 2) / math.sqrt(2 * math.pi) * (s[1] - s[0])
    x = (a[:, None] + s) / m[:, None]
    softplus = np.logaddexp(0, -x) @ phi
    # d/dm of ln(1 + e^-x) is sigmoid(-x) (2 a + s) / m^2
    sigmoid = np.exp(-np.logaddexp(0, x))
    softplus_slope = (sigmoid * (2 * a[:, None] + s)) @ phi / m**2

    kl = 1.5 * m**2 + softplus - np.log(2 * m) - log_moment
    slope = 3 * m + softplus_slope - 1 / m + _log_moment_slope(a) / (2 * m**2)
    return m, kl, slope


def _log_moment_slope(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """d/da E ln|s + a|, s ~ N(0, 1): sqrt(2) D(a / sqrt 2), D(x) = e^(-x^2) int_0^x e^(t^2) dt.

    D by Rybicki's sum over odd n, sum_n e^(-(x - n h)^2) / n / sqrt(pi), exact to e^-(pi/2h)^2
    (Numerical Recipes, section 6.10).
    """
    h = 0.2
    x = a[..., None] / math.sqrt(2)
    n = np.arange(1, 161, 2)
    terms = (np.exp(-((x - n * h) ** 2)) - np.exp(-((x + n * h) ** 2))) / n
    dawson: NDArray[np.float64] = terms.sum(-1) / math.sqrt(math.pi)
    return math.sqrt(2) * dawson


@functools.cache
def _spline_coefficients() -> NDArray[np.float64]:
    """Cubic Hermite coefficients of KL / m^2 in ln m, `[511, 4]`, lowest power first."""
    m, kl, slope = min_chi2_kl_knots()
    value = kl / m**2
    tangent = (slope / m - 2 * value) * _KNOT_STEP  # d(KL / m^2) / d ln m, per knot step
    rise = np.diff(value)
    start, end = tangent[:-1], tangent[1:]
    return np.stack([value[:-1], start, 3 * rise - 2 * start - end, start + end - 2 * rise], -1)


_TABLES: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _spline_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    key = device, dtype
    if key not in _TABLES:
        # a tensor made in inference mode cannot be saved for a backward pass
        with torch.inference_mode(False):
            _TABLES[key] = torch.from_numpy(_spline_coefficients()).to(device, dtype)
    return _TABLES[key]


# A constant for torch.compile, which would otherwise trace numpy. torch.compiler's
# assume_constant_result does no more than this, but importing it takes seconds (dynamo).
_spline_table._dynamo_marked_constant = True  # type: ignore[attr-defined]
