"""Attention, masks and taught matrices: each variant against plain float64 loops, and its promises.

`reference.glas` is one image through the recurrence, with the parts that these variants change left
open; what stands in them is written entry by entry from the papers and the design's table.
"""

import functools
import itertools
import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import training
from torch.nn import functional as F

from glas_bench import config, registry
from glas_bench.core import rollout, streams
from glas_bench.errors import UsageError
from glas_bench.model import matches

PIXELS, CLASSES, IMAGES = 16, 3, 2
SIZE = {"steps": 3, "hidden": 4, "sample_size": 2, "latent_size": 4, "filter_size": 2}
few = settings(max_examples=20, deadline=None, derandomize=True)


def make(name, seed=0, pixels=PIXELS, **own):
    cls = registry.find(name).cls
    sized = {key: value for key, value in SIZE.items() if key in cls.Settings.model_fields}
    return rollout.build(cls, cls.Settings(**{**sized, **own}), pixels, CLASSES, seed).double()


def normals(*shape, seed=0):
    return streams.normal(shape, seed, "test").double()


def data(model, seed=0, images=IMAGES):
    x = (normals(images, model.pixels, seed=seed + 1) > 0.3).double()
    return (
        x,
        torch.arange(images) % CLASSES,
        normals(model.steps, 1, images, model.noise_size, seed=seed + 2),
    )


def run(model, seed=0, images=IMAGES, **phase):
    """One rollout with everything that it went through."""
    x, labels, noise = data(model, seed, images)
    seen = []
    terms = rollout.rollout(
        model, x, x, labels, noise, trace=lambda t, state, step: seen.append((state, step)), **phase
    )
    return terms, seen


# --- the reference ---------------------------------------------------------------------------


def plain(p, x, noise_TZ, attend, **parts):
    """One image through time; returns -log p(x|z) and the summed KL."""
    return reference.glas(p, x, noise_TZ, look=attend, **parts)[:2]


def five(p, layer, vector):
    """g_x, g_y, log_stride, log_scale, log_gain."""
    return p[f"{layer}.weight"] @ vector + p[f"{layer}.bias"]


def cauchy_rows(own, p, e):
    g_x, g_y, log_stride, log_scale, log_gain = five(p, "filter", e)
    rows = [
        reference.filter_matrix(
            "cauchy", own.filter_size, own.latent_size, g, log_stride, log_scale, own.grid, "1e-3"
        )
        for g in (g_y, g_x)
    ]
    return *rows, log_gain


def cauchy(own):
    sizes = {"R": own.filter_size, "L": own.latent_size}
    return functools.partial(reference.attend, kind="cauchy", grid=own.grid, floor="1e-3", **sizes)


def bare_grid(own):
    L = own.latent_size

    def rows(g, log_stride, scale):
        made = []
        for c in reference.centres(own.filter_size, L, g, log_stride, own.grid):
            line = torch.stack([scale * (a - c) for a in range(L)])
            total = line.sum()
            made.append(line / (total if total > 1e-3 else 1e-3))
        return torch.stack(made)

    def attend(p, e):
        g_x, g_y, log_stride, scale, log_gain = five(p, "filter", e)
        F_y, F_x = rows(g_y, log_stride, scale), rows(g_x, log_stride, scale)
        return torch.exp(log_gain) * (F_y @ p["latent"] @ F_x.T).reshape(-1)

    return attend


def gated(squash, own):
    L = own.latent_size

    def attend(p, e):
        gates = squash(p["gates.weight"] @ e + p["gates.bias"])
        cell = (lambda i, j: j) if own.gates == "columns" else (lambda i, j: i * L + j)
        return torch.stack(
            [gates[cell(i, j)] * p["latent"][i, j] for i in range(L) for j in range(L)]
        )

    return attend


def content(own):
    def attend(p, e):
        key = p["key.weight"] @ e + p["key.bias"]
        beta = (p["strength.weight"] @ e + p["strength.bias"])[0]
        rows = [row / row.square().sum().sqrt() for row in p["latent"]]
        scores = [torch.exp(beta * (row * key).sum() / key.square().sum().sqrt()) for row in rows]
        return torch.cat(
            [score / sum(scores) * row for score, row in zip(scores, rows, strict=True)]
        )

    return attend


def masked(own):
    L, mask = own.latent_size, None

    def attend(p, e):
        nonlocal mask
        if mask is None:
            mask = [[0.0] * L for _ in range(L)]
        F_y, F_x, log_gain = cauchy_rows(own, p, e)
        left = 1 - torch.tensor(mask, dtype=torch.float64)
        read = torch.exp(log_gain) * (F_y @ (left * p["latent"]) @ F_x.T).reshape(-1)
        y, x = F_y.detach().sum(0).tolist(), F_x.detach().sum(0).tolist()
        whole = sum(y[i] * x[j] for i in range(L) for j in range(L))
        for i in range(L):
            for j in range(L):
                share = own.rate * (L * L / own.steps) * y[i] * x[j] / whole
                mask[i][j] += (1 - mask[i][j]) * min(1.0, share)
        return read

    return attend


def draw_rows(numbers, N, side, own):
    """DRAW, equations 19 to 26, counting pixels and kernels from 1 as the paper does."""
    g_x, g_y, log_stride, log_variance, log_gain = numbers

    def rows(g):
        made = []
        stride = (side - 1) / max(N - 1, 1) * torch.exp(log_stride)
        centre = (side + 1) / 2 * (g + 1)
        for i in range(1, N + 1):
            mu = centre + (i - N / 2 - 0.5) * stride
            row = torch.stack(
                [
                    torch.exp(-((a - mu) ** 2) / (2 * torch.exp(log_variance)))
                    for a in range(1, side + 1)
                ]
            )
            made.append(row / (row.sum().clamp(min=1e-3) if own.floor == "1e-3" else row.sum()))
        return made

    return rows(g_y), rows(g_x), torch.exp(log_gain)


def draw_see(own, p, x, error, d):
    """Equation 27."""
    N, side = own.read_size, math.isqrt(len(x))
    F_y, F_x, gain = draw_rows(five(p, "read_filter", d), N, side, own)
    cells = [(b, a) for b in range(side) for a in range(side)]
    return torch.stack(
        [
            gain * sum(F_y[j][b] * image[b * side + a] * F_x[i][a] for b, a in cells)
            for image in (x, error)
            for j in range(N)
            for i in range(N)
        ]
    )


def draw_paint(own, side, p, d):
    """Equations 28 and 29."""
    N = own.write_size
    w = p["write.weight"] @ d + p["write.bias"]
    F_y, F_x, gain = draw_rows(five(p, "write_filter", d), N, side, own)
    patch = [(j, i) for j in range(N) for i in range(N)]
    return torch.stack(
        [
            sum(F_y[j][b] * w[j * N + i] * F_x[i][a] for j, i in patch) / gain
            for b in range(side)
            for a in range(side)
        ]
    )


def draw(own):
    return {
        "attend": lambda p, e: e,
        "see": functools.partial(draw_see, own),
        "paint": functools.partial(draw_paint, own, 3),
    }


def canvas(own):
    def give(drawn):
        unfilled = torch.zeros((own.steps - len(drawn)) * own.sample_size, dtype=torch.float64)
        return torch.cat([*drawn, unfilled])

    return {"attend": cauchy(own), "give": give}


ARMS = {
    "grid": bare_grid,
    "sigmoid": functools.partial(gated, torch.sigmoid),
    "softmax": functools.partial(gated, lambda v: torch.exp(v) / torch.exp(v).sum()),
    "content": content,
    "draw": draw,
    "masked-progressive": masked,
    "masked-canvas": canvas,
    "fixed-supervised": cauchy,
}
CASES = [
    ("grid", {"grid": "centred", "latent_init": "0.1"}),
    ("grid", {"grid": "slip-mended", "filter_size": 3, "latent_init": "1"}),
    *(
        (n, {"gates": g, "latent_init": "normal"})
        for n in ("sigmoid", "softmax")
        for g in ("columns", "cells")
    ),
    ("content", {"latent_init": "1e-3"}),
    ("content", {"latent_init": "normal"}),
    ("draw", {"read_size": 2, "write_size": 3, "sample_size": 2}),
    ("draw", {"read_size": 1, "write_size": 2, "sample_size": 2, "floor": "logsumexp"}),
    ("masked-progressive", {"latent_init": "normal"}),
    ("masked-progressive", {"latent_init": "normal", "rate": 2.0, "grid": "centred", "steps": 4}),
    ("masked-canvas", {"latent_init": "normal"}),
    ("fixed-supervised", {"latent_init": "normal"}),
]


def leaves(model):
    return {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}


def shaken(model, seed=0):
    """Biases away from zero, so that no path is dead."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.3 * normals(*parameter.shape, seed=seed + len(name)))
    return model


def assert_gradients(model, p):
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(p[name]) if p[name].grad is None else p[name].grad
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            got, expected, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("name", "own"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_equal_plain_loops(name, own, seed):
    model = shaken(
        make(name, seed, 9 if name == "draw" else PIXELS, charge_weight=0.7, **own), seed
    )
    if name == "grid":  # rows that sum to less than 0 are multiplied by 1000: keep q finite
        with torch.no_grad():
            model.filter.bias[4] -= 12
    x, labels, noise = data(model, seed)
    terms = rollout.rollout(model, x, x, labels, noise)
    model.objective(terms).mean().backward()
    p = leaves(model)
    objective = 0.0
    for b in range(IMAGES):
        hooks = ARMS[name](model.settings)
        hooks = hooks if isinstance(hooks, dict) else {"attend": hooks}
        recon, charge = plain(p, x[b], noise[:, 0, b], **hooks)
        torch.testing.assert_close(terms.recon[0, b], recon, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(terms.charge[0, b], charge, rtol=1e-9, atol=1e-9)
        objective = objective + (recon + 0.7 * charge) / IMAGES
    assert not terms.aux.any()
    objective.backward()
    assert_gradients(model, p)


# --- grid, gates, content, draw --------------------------------------------------------------


def test_the_bare_grid_refuses_a_logarithm_and_says_why():
    found = registry.find("grid")
    with pytest.raises(UsageError, match=r"floor: .*of either sign and have no logarithm"):
        config.resolve(found, overrides={"floor": "logsumexp"})
    assert config.resolve(found, overrides={"floor": 1e-3}).settings["floor"] == "1e-3"


def test_draw_takes_its_own_size_of_sample_and_square_images_alone():
    settings_of = config.resolve(registry.find("draw"), preset="smoke").settings
    assert (settings_of["sample_size"], settings_of["grid"]) == (100, "centred")
    with pytest.raises(ValueError, match="20 pixels are no square"):
        make("draw", pixels=20, write_size=2)


# --- the masks -------------------------------------------------------------------------------


@few
@given(
    rate=st.sampled_from([0.0, 0.5, 1.0, 2.0, 50.0]),
    steps=st.integers(1, 6),
    size=st.integers(1, 5),
    grid=st.sampled_from(["original", "slip-mended", "centred"]),
    floor=st.sampled_from(["1e-3", "logsumexp"]),
    gain=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_masks_grow_stay_in_0_to_1_and_carry_no_gradient(
    rate, steps, size, grid, floor, gain, seed
):
    own = {"latent_size": size, "filter_size": (size + 1) // 2, "grid": grid, "floor": floor}
    model = shaken(make("masked-progressive", seed, rate=rate, steps=steps, **own), seed)
    with torch.no_grad():
        model.filter.bias[3] += gain
    _, seen = run(model, seed)
    masks = [torch.zeros(IMAGES, size, size).double()]
    masks += [state.recognition.memory["mask"] for state, _ in seen]
    for before, after in itertools.pairwise(masks):
        assert not after.requires_grad
        assert (after >= before).all()
        assert (after <= 1).all()
        removed = (after - before).sum((-2, -1))
        assert (removed <= rate * size * size / steps + 1e-9).all()
    assert bool(masks[-1].any()) == (rate > 0)


def test_a_mask_of_rate_0_is_the_published_model():
    (a, _), (b, _) = run(make("masked-progressive", rate=0.0)), run(make("cauchy"))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(run(make("masked-progressive"))[0].recon, b.recon)


@few
@given(steps=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_canvas_of_latents_fills_each_cell_once_and_is_charged_once(steps, size, seed):
    model = shaken(make("masked-canvas", seed, steps=steps, sample_size=size), seed)
    assert model.decoder.kernels["input"].shape == (steps * size, 4 * SIZE["hidden"])
    terms, seen = run(model, seed)
    charge = torch.zeros(IMAGES).double()
    for t, (state, step) in enumerate(seen):
        latents = state.generation.memory["latents"]
        assert latents.shape == (IMAGES, steps, size)
        assert not latents[:, t + 1 :].any()
        for earlier in range(t + 1):
            assert torch.equal(latents[:, earlier], seen[earlier][1].z)
        m, s = step.q.mean, step.q.std
        charge += ((m**2 + s**2 - 1) / 2 - s.log()).sum(-1)
    torch.testing.assert_close(terms.charge[0], charge)


# --- matrices that labels teach --------------------------------------------------------------


def taught(source, epochs=2, **own):
    """A run of `fixed-supervised`, or of another variant, at the end of its first epoch."""
    found = training("fixed-supervised", epochs=epochs, latent_from=source, **own)
    for _ in range(found.steps_per_epoch):
        found.step()
    learned = found.model.latent.detach().clone()
    found.end_epoch()
    return found, learned


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, {"main": 1}),
        (2, {"supervised": 1, "main": 1}),
        (10, {"supervised": 1, "main": 9}),
        (20, {"supervised": 2, "main": 18}),
        (250, {"supervised": 25, "main": 225}),
    ],
)
def test_a_tenth_of_the_epochs_is_supervised(epochs, expected):
    phases = make("fixed-supervised").phases(epochs)
    assert {phase.name: phase.epochs for phase in phases} == expected
    assert all(matches("latent", phase.frozen) == (phase.name == "main") for phase in phases)
    first = make("fixed-supervised", latent_from="cauchy").phases(epochs)[0]
    assert first.name == ("main" if epochs == 1 else "cauchy")
    assert make("tandem-supervised").phases(epochs)[0].epochs == epochs


def test_the_supervised_phase_is_plain_classification():
    model = shaken(make("fixed-supervised", latent_init="normal"))
    phase = model.phases(10)[0]
    x, labels, noise = data(model)
    terms, seen = run(model, generates=phase.generates, auxiliary=phase.auxiliary)
    phase.objective(model, terms).mean().backward()
    assert not any(state.generation.hidden.any() for state, _ in seen)
    assert not terms.charge.any()
    assert not terms.log_ratio.any()
    p = leaves(model)
    total = 0.0
    for b in range(IMAGES):
        reads = []
        attend = cauchy(model.settings)

        def kept(p, e, attend=attend, reads=reads):
            reads.append(attend(p, e))
            return reads[-1]

        plain(p, x[b], noise[:, 0, b], kept, generates=False)
        logits = p["head.weight"] @ (sum(reads) / len(reads)) + p["head.bias"]
        missed = torch.log(torch.exp(logits).sum()) - logits[labels[b]]
        torch.testing.assert_close(terms.aux[0, b], missed)
        total = total + missed / IMAGES
    total.backward()
    assert_gradients(model, p)
    touched = {k.partition(".")[0] for k, v in model.named_parameters() if v.grad is not None}
    assert touched == {"encoder", "filter", "latent", "head"}


def test_the_supervised_matrix_is_learned_then_fixed():
    run_of_two, learned = taught("supervised")
    start = training("fixed-supervised", epochs=2)
    assert not torch.equal(learned, start.model.latent)
    for name, value in run_of_two.model.state_dict().items():
        expected = learned if name == "latent" else start.model.state_dict()[name]
        assert torch.equal(value, expected), name
    run_of_two.model.latent.grad = None  # of the phase before
    run_of_two.step()
    assert torch.equal(run_of_two.model.latent, learned)
    assert run_of_two.model.latent.grad is None
    assert not run_of_two.model.latent.requires_grad
    assert run_of_two.at.sums["aux"] == 0


def test_the_controls_of_the_supervised_matrix():
    _, learned = taught("supervised")
    permuted, before = taught("permuted")
    assert torch.equal(before, learned)
    shuffled = permuted.model.latent
    assert not torch.equal(shuffled, learned)
    assert torch.equal(shuffled.flatten().sort().values, learned.flatten().sort().values)

    random, before = taught("random")
    assert torch.equal(before, learned)
    assert torch.equal(random.model.latent, training("fixed-random").model.latent)

    unlabelled, before = taught("cauchy")
    control = training("cauchy", epochs=2)
    for _ in range(control.steps_per_epoch):
        control.step()
    assert torch.equal(before, control.model.latent)
    assert torch.equal(unlabelled.model.latent, before)
    assert not torch.equal(before, learned)


def test_in_tandem_the_matrix_learns_from_the_labels_alone():
    model = shaken(make("tandem-supervised", latent_init="normal", aux_weight=0.6))
    x, labels, noise = data(model)
    terms = rollout.rollout(model, x, x, labels, noise)
    names, tensors = zip(*model.named_parameters(), strict=True)

    def gradient(value):
        found = torch.autograd.grad(value.mean(), tensors, retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(tensor) if part is None else part
            for name, tensor, part in zip(names, tensors, found, strict=True)
        }

    whole, labels_alone = gradient(model.objective(terms)), gradient(terms.aux)
    bound_alone = gradient(terms.recon + terms.charge)
    assert torch.equal(whole["latent"], labels_alone["latent"])
    assert labels_alone["latent"].all()
    assert not bound_alone["latent"].any()
    for name in ("encoder.kernels.x", "filter.weight", "decoder.bias", "write.weight", "mean.bias"):
        assert bound_alone[name].any(), name
        assert labels_alone[name].any(), name
        torch.testing.assert_close(whole[name], bound_alone[name] + labels_alone[name])


def test_tandem_equals_plain_loops_with_the_two_matrices_apart():
    model = shaken(make("tandem-supervised", latent_init="normal", aux_weight=0.6))
    x, labels, noise = data(model)
    terms = rollout.rollout(model, x, x, labels, noise)
    model.objective(terms).mean().backward()
    p = leaves(model)
    p_held = {**p, "latent": p["latent"].detach()}
    objective = 0.0
    for b in range(IMAGES):
        reads = []
        attend = cauchy(model.settings)

        def kept(held, e, attend=attend, reads=reads):
            reads.append(attend(p, e))
            return attend(held, e)

        recon, charge = plain(p_held, x[b], noise[:, 0, b], kept)
        logits = p["head.weight"] @ (sum(reads) / len(reads)) + p["head.bias"]
        missed = torch.log(torch.exp(logits).sum()) - logits[labels[b]]
        torch.testing.assert_close(terms.recon[0, b], recon)
        torch.testing.assert_close(terms.aux[0, b], 0.6 * missed)
        objective = objective + (recon + charge + 0.6 * missed) / IMAGES
    objective.backward()
    assert_gradients(model, p)


def test_tandem_of_no_weight_costs_nothing_and_labels_cost_something():
    free = run(make("tandem-supervised", aux_weight=0.0))[0]
    assert not free.aux.any()
    terms = run(make("tandem-supervised"))[0]
    assert (terms.aux > 0).all()
    assert torch.equal(terms.recon, free.recon)
    logits = torch.zeros(IMAGES, CLASSES).double()  # the head's bias is 0 and reads are tiny
    expected = F.cross_entropy(logits, torch.arange(IMAGES), reduction="none")
    torch.testing.assert_close(terms.aux[0], expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["fixed-supervised", "tandem-supervised"])
def test_what_labels_teach_does_not_run_without_them(name):
    resolved = config.resolve(registry.find(name), dataset="mnist-static")
    from glas_bench.core import train

    assert "needs labels" in str(train.not_applicable(registry.find(name), resolved))
