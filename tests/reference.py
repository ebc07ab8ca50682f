"""The model and its training loop, written plainly in float64 from the equations.

Nothing here comes from the package: one image at a time, one time step at a time, whole kernels,
no shortcuts. The head of glas_bench/model.py gives the equations; DRAW (Gregor et al. 2015),
section 3.2, the filter; Kingma & Ba 2015, algorithm 1, the optimiser.
"""

import math

import torch

TERMS = ("recon", "charge", "log_ratio")


def affine(p, layer, value):
    return p[f"{layer}.weight"] @ value + p[f"{layer}.bias"]


def lstm(kernel, bias, inputs, hidden, cell):
    """One LSTM step for one row; gates in the order input, forget, candidate, output."""
    gates = torch.cat([inputs, hidden]) @ kernel + bias
    size = hidden.shape[0]
    enter = 1 / (1 + torch.exp(-gates[:size]))
    forget = 1 / (1 + torch.exp(-gates[size : 2 * size]))
    candidate = torch.tanh(gates[2 * size : 3 * size])
    leave = 1 / (1 + torch.exp(-gates[3 * size :]))
    cell = forget * cell + enter * candidate
    return leave * torch.tanh(cell), cell


def centres(R, L, offset, log_stride, grid):
    """Centres of the kernels, one number each, 0-based."""
    stride = (L - 1) / max(R - 1, 1)
    first, middle = -(R + 1) / 2, (L + 1) / 2 * (offset + 1)
    if grid == "original":
        stride = L - 1 / max(R - 1, 1)
    if grid == "centred":
        first, middle = -(R - 1) / 2, middle - 1
    return [middle + (first + i) * stride * torch.exp(log_stride) for i in range(R)]


def filter_matrix(kind, R, L, offset, log_stride, scale, grid, floor):
    """F, row by row and entry by entry."""
    rows = []
    for centre in centres(R, L, offset, log_stride, grid):
        entries = []
        for a in range(L):
            if kind == "cauchy":
                s = torch.exp(scale)
                entries.append(1 / (math.pi * s * (1 + ((a - centre) / s) ** 2)))
            elif kind == "gaussian":
                entries.append(torch.exp(-((a - centre) ** 2) / (2 * torch.exp(scale))))
            else:  # a line
                entries.append(scale * (a - centre))
        row = torch.stack(entries)
        total = row.sum()
        rows.append(row / (torch.clamp(total, min=1e-3) if floor == "1e-3" else total))
    return torch.stack(rows)


def both_axes(numbers, kind, R, L, grid, floor):
    """F_y, F_x and the gain from the five numbers of a filter's layer."""
    g_x, g_y, log_stride, scale, log_gain = numbers
    F_y, F_x = (filter_matrix(kind, R, L, g, log_stride, scale, grid, floor) for g in (g_y, g_x))
    return F_y, F_x, torch.exp(log_gain)


def attend(p, e, kind, **filters):
    """One read from the latent matrix, or e itself."""
    if kind == "none":
        return e
    F_y, F_x, gain = both_axes(affine(p, "filter", e), kind, **filters)
    return gain * (F_y @ p["latent"] @ F_x.T).reshape(-1)


def charge(kind, m, s):
    """What a step is charged."""
    if kind == "kl":
        return ((m**2 + s**2 - 1 - torch.log(s**2)) / 2).sum()
    affinity = torch.sqrt(2 * s / (1 + s**2)) * torch.exp(-(m**2) / (4 * (1 + s**2)))
    return (1 - affinity).sum()


def drawn(p, a, eps):
    """A draw from N(mean, std^2) of a read, with mean, std and log q(z) / p(z)."""
    m, s = affine(p, "mean", a), torch.exp(affine(p, "log_std", a))
    z = m + s * eps
    log_q = -0.5 * ((z - m) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    return z, m, s, (log_q - log_p).sum()


def cross_entropy(o, x):
    """-log p(x) of pixels with logits o."""
    prob = 1 / (1 + torch.exp(-o))
    return -(x * torch.log(prob) + (1 - x) * torch.log(1 - prob)).sum()


def glas(
    p,
    x,
    noise_TZ,
    *,
    divergence="kl",
    look=attend,
    see=None,
    give=lambda so_far: so_far[-1],
    paint=lambda p, d: affine(p, "write", d),
    generates=True,
    **filters,
):
    """One image through the recurrence; returns recon, charge, log q/p.

    The last five arguments replace a part: the read of the latent matrix, what the encoder sees,
    what the decoder is given of the draws so far, what it paints, and whether it runs at all.
    """
    parts = ("x", "error", "decoder", "hidden") if see is None else ("read", "decoder", "hidden")
    enc = torch.cat([p[f"encoder.kernels.{part}"] for part in parts])
    dec = torch.cat([p["decoder.kernels.input"], p["decoder.kernels.hidden"]])
    h_e = c_e = d = c_d = torch.zeros_like(p["decoder.kernels.hidden"][:, 0])
    o = torch.zeros_like(x)
    charged = ratio = torch.zeros((), dtype=torch.float64)
    so_far = []
    for eps in noise_TZ:
        x_err = x - 1 / (1 + torch.exp(-o))
        seen = torch.cat([x, x_err]) if see is None else see(p, x, x_err, d)
        h_e, c_e = lstm(enc, p["encoder.bias"], torch.cat([seen, d]), h_e, c_e)
        z, m, s, log_ratio = drawn(p, look(p, h_e, **filters), eps)
        so_far.append(z)
        charged = charged + charge(divergence, m, s)
        ratio = ratio + log_ratio
        if generates:
            d, c_d = lstm(dec, p["decoder.bias"], give(so_far), d, c_d)
            o = o + paint(p, d)
    return cross_entropy(o, x), charged, ratio


def vae(p, x, eps, **_):
    """One image through the MLP VAE."""

    def mlp(name, value):
        return torch.tanh(affine(p, f"{name}.2", torch.tanh(affine(p, f"{name}.0", value))))

    z, m, s, log_ratio = drawn(p, mlp("encoder", x), eps[0])
    o = affine(p, "write", mlp("decoder", z))
    return cross_entropy(o, x), charge("kl", m, s), log_ratio


def clip(gradients, groups, limit):
    """Clip each group of gradients as one concatenated tensor; returns new gradients."""
    clipped = dict(gradients)
    for group in groups:
        norm = math.sqrt(sum(float((gradients[name] ** 2).sum()) for name in group))
        for name in group:
            clipped[name] = gradients[name] * min(1.0, limit / norm if norm > 0 else 1.0)
    return clipped


class Adam:
    """Algorithm 1 of Kingma & Ba, entry by entry."""

    def __init__(self, parameters):
        self.m = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.v = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.t = 0

    def step(self, parameters, gradients, rate):
        """Return the parameters after one step."""
        self.t += 1
        moved = {}
        for name, value in parameters.items():
            g = gradients[name]
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
            m_hat = self.m[name] / (1 - 0.9**self.t)
            v_hat = self.v[name] / (1 - 0.999**self.t)
            moved[name] = value - rate * m_hat / (torch.sqrt(v_hat) + 1e-8)
        return moved
