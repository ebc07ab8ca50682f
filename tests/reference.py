"""The model and its training loop, written plainly in float64 from the equations.

Nothing here comes from the package: one image at a time, one time step at a time, whole kernels,
no shortcuts. The head of glas_bench/model.py gives the equations; DRAW (Gregor et al. 2015),
section 3.2, the filter; Kingma & Ba 2015, algorithm 1, the optimiser.
"""

import math

import torch


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
    if grid == "original":
        stride, first, middle = L - 1 / max(R - 1, 1), -(R + 1) / 2, (L + 1) / 2 * (offset + 1)
    elif grid == "slip-mended":
        stride, first, middle = (L - 1) / max(R - 1, 1), -(R + 1) / 2, (L + 1) / 2 * (offset + 1)
    else:
        stride = (L - 1) / max(R - 1, 1)
        first, middle = -(R - 1) / 2, (L + 1) / 2 * (offset + 1) - 1
    return [middle + (first + i) * stride * torch.exp(log_stride) for i in range(R)]


def filter_matrix(kind, R, L, offset, log_stride, log_scale, grid, floor):
    """F, row by row and entry by entry."""
    rows = []
    for centre in centres(R, L, offset, log_stride, grid):
        entries = []
        for a in range(L):
            if kind == "cauchy":
                s = torch.exp(log_scale)
                entries.append(1 / (math.pi * s * (1 + ((a - centre) / s) ** 2)))
            else:
                entries.append(torch.exp(-((a - centre) ** 2) / (2 * torch.exp(log_scale))))
        row = torch.stack(entries)
        total = row.sum()
        rows.append(row / (torch.clamp(total, min=1e-3) if floor == "1e-3" else total))
    return torch.stack(rows)


def attend(p, e, kind, R, L, grid, floor):
    """One read from the latent matrix, or e itself."""
    if kind == "none":
        return e
    numbers = p["filter.weight"] @ e + p["filter.bias"]
    g_x, g_y, log_stride, log_scale, log_gain = numbers
    F_y = filter_matrix(kind, R, L, g_y, log_stride, log_scale, grid, floor)
    F_x = filter_matrix(kind, R, L, g_x, log_stride, log_scale, grid, floor)
    return torch.exp(log_gain) * (F_y @ p["latent"] @ F_x.T).reshape(-1)


def charge(kind, m, s):
    """What a step is charged."""
    if kind == "kl":
        return ((m**2 + s**2 - 1 - torch.log(s**2)) / 2).sum()
    affinity = torch.sqrt(2 * s / (1 + s**2)) * torch.exp(-(m**2) / (4 * (1 + s**2)))
    return (1 - affinity).sum()


def glas(
    p,
    x,
    noise_TZ,
    *,
    divergence="kl",
    look=None,
    see=None,
    give=None,
    paint=None,
    generates=True,
    **filters,
):
    """One image through the recurrence; returns recon, charge, log q/p, canvas.

    The last five arguments replace a part: the read of the latent matrix, what the encoder sees,
    what the decoder is given of the draws so far, what it paints, and whether it runs at all.
    """
    parts = ("x", "error", "decoder", "hidden") if see is None else ("read", "decoder", "hidden")
    enc = torch.cat([p[f"encoder.kernels.{part}"] for part in parts])
    dec = torch.cat([p["decoder.kernels.input"], p["decoder.kernels.hidden"]])
    h_e = c_e = d = c_d = torch.zeros_like(p["decoder.kernels.hidden"][:, 0])
    o = torch.zeros_like(x)
    charged = ratio = torch.zeros((), dtype=torch.float64)
    drawn = []
    for eps in noise_TZ:
        x_err = x - 1 / (1 + torch.exp(-o))
        seen = torch.cat([x, x_err]) if see is None else see(p, x, x_err, d)
        h_e, c_e = lstm(enc, p["encoder.bias"], torch.cat([seen, d]), h_e, c_e)
        a = attend(p, h_e, **filters) if look is None else look(p, h_e)
        m = p["mean.weight"] @ a + p["mean.bias"]
        s = torch.exp(p["log_std.weight"] @ a + p["log_std.bias"])
        z = m + s * eps
        drawn.append(z)
        charged = charged + charge(divergence, m, s)
        log_q = -0.5 * ((z - m) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
        log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        ratio = ratio + (log_q - log_p).sum()
        if generates:
            d, c_d = lstm(dec, p["decoder.bias"], z if give is None else give(drawn), d, c_d)
            o = o + (p["write.weight"] @ d + p["write.bias"] if paint is None else paint(p, d))
    prob = 1 / (1 + torch.exp(-o))
    recon = -(x * torch.log(prob) + (1 - x) * torch.log(1 - prob)).sum()
    return recon, charged, ratio, o


def vae(p, x, eps, **_):
    """One image through the MLP VAE."""

    def mlp(name, value):
        value = torch.tanh(p[f"{name}.0.weight"] @ value + p[f"{name}.0.bias"])
        return torch.tanh(p[f"{name}.2.weight"] @ value + p[f"{name}.2.bias"])

    a = mlp("encoder", x)
    m = p["mean.weight"] @ a + p["mean.bias"]
    s = torch.exp(p["log_std.weight"] @ a + p["log_std.bias"])
    z = m + s * eps[0]
    log_q = -0.5 * ((z - m) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    o = p["write.weight"] @ mlp("decoder", z) + p["write.bias"]
    prob = 1 / (1 + torch.exp(-o))
    recon = -(x * torch.log(prob) + (1 - x) * torch.log(1 - prob)).sum()
    return recon, charge("kl", m, s), (log_q - log_p).sum(), o


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
