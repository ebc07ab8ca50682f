"""Attention, masks and taught matrices: each variant against plain float64 loops, and its promises.

`reference.glas` is one image through the recurrence, with the parts that these variants change left
open; what stands in them is written from the papers and the design's table.
"""

import functools
import itertools

import pytest
import reference
import test_model
import torch
from reference import affine
from test_model import assert_as_plain, batch, close, normals, rolled
from test_train import training

from glas_bench import config, registry
from glas_bench.core import train
from glas_bench.errors import UsageError
from glas_bench.model import matches

PIXELS, CLASSES = 16, 3
LABELS = torch.arange(2)
SIZE = {"steps": 3, "hidden": 4, "sample_size": 2, "latent_size": 4, "filter_size": 2}


def make(name, seed=0, pixels=PIXELS, shaken=False, **own):
    """A tiny model; `shaken` moves its biases away from zero, so that no path is dead."""
    model = test_model.make(name, seed, pixels, CLASSES, SIZE, **own)
    with torch.no_grad():
        for key, parameter in model.named_parameters() if shaken else ():
            if key.endswith("bias"):
                parameter.add_(0.3 * normals(*parameter.shape, seed=seed + len(key)))
    return model


def run(model, seed=0, **phase):
    """One rollout with everything that it went through."""
    return rolled(model, *batch(model, seed=seed), LABELS, **phase)


# --- the reference: what stands in place of a part of `reference.glas` -------------------------


def filters(own, kind="cauchy"):
    sizes = {"R": own.filter_size, "L": own.latent_size}
    return {"kind": kind, "grid": own.grid, "floor": own.floor, **sizes}


def gated(squash, own):
    L = own.latent_size

    def look(p, e):
        gates = squash(affine(p, "gates", e)).reshape(-1, L)  # one row for all, or each its own
        rows = [gates[0 if own.gates == "columns" else i] for i in range(L)]
        return torch.cat([rows[i] * p["latent"][i] for i in range(L)])

    return {"look": look}


def content(own):
    del own

    def look(p, e):
        key, beta = affine(p, "key", e), affine(p, "strength", e)[0]
        rows = [row / row.square().sum().sqrt() for row in p["latent"]]
        scores = [torch.exp(beta * (row * key).sum() / key.square().sum().sqrt()) for row in rows]
        return torch.cat(
            [score / sum(scores) * row for score, row in zip(scores, rows, strict=True)]
        )

    return {"look": look}


def masked(own):
    L = own.latent_size
    mask = [[0.0] * L for _ in range(L)]

    def look(p, e):
        F_y, F_x, gain = reference.both_axes(affine(p, "filter", e), **filters(own))
        left = 1 - torch.tensor(mask, dtype=torch.float64)
        read = gain * (F_y @ (left * p["latent"]) @ F_x.T).reshape(-1)
        y, x = F_y.detach().sum(0).tolist(), F_x.detach().sum(0).tolist()
        whole = sum(y) * sum(x)
        for i, j in itertools.product(range(L), repeat=2):
            share = own.rate * (L * L / own.steps) * y[i] * x[j] / whole
            mask[i][j] += (1 - mask[i][j]) * min(1.0, share)
        return read

    return {"look": look}


def draw(own):
    """DRAW, equations 19 to 29."""
    side = 3

    def both_axes(p, layer, N, d):
        numbers = affine(p, layer, d)
        return reference.both_axes(numbers, "gaussian", N, side, "centred", own.floor)

    def see(p, x, error, d):
        F_y, F_x, gain = both_axes(p, "read_filter", own.read_size, d)
        return torch.cat(
            [gain * (F_y @ each.reshape(side, side) @ F_x.T).reshape(-1) for each in (x, error)]
        )

    def paint(p, d):
        F_y, F_x, gain = both_axes(p, "write_filter", own.write_size, d)
        w = affine(p, "write", d).reshape(own.write_size, own.write_size)
        return (F_y.T @ w @ F_x).reshape(-1) / gain

    return {"look": lambda p, e: e, "see": see, "paint": paint}


def canvas(own):
    def give(so_far):
        unfilled = torch.zeros((own.steps - len(so_far)) * own.sample_size, dtype=torch.float64)
        return torch.cat([*so_far, unfilled])

    return {**filters(own), "give": give}


ARMS = {
    "grid": functools.partial(filters, kind="line"),
    "sigmoid": functools.partial(gated, torch.sigmoid),
    "softmax": functools.partial(gated, lambda v: torch.exp(v) / torch.exp(v).sum()),
    "content": content,
    "draw": draw,
    "masked-progressive": masked,
    "masked-canvas": canvas,
    "fixed-supervised": filters,
}
NORMAL = {"latent_init": "normal"}
CASES = [
    ("grid", {"grid": "centred", "latent_init": "0.1"}),
    ("grid", {"grid": "slip-mended", "filter_size": 3, "latent_init": "1"}),
    *((n, {"gates": g, **NORMAL}) for n in ("sigmoid", "softmax") for g in ("columns", "cells")),
    ("content", {"latent_init": "1e-3"}),
    ("content", NORMAL),
    ("draw", {"read_size": 2, "write_size": 3}),
    ("draw", {"read_size": 1, "write_size": 2, "floor": "logsumexp"}),
    ("masked-progressive", NORMAL),
    ("masked-progressive", {"rate": 2.0, "grid": "centred", "steps": 4, **NORMAL}),
    ("masked-progressive", {"rate": 50.0, "grid": "slip-mended", "floor": "logsumexp", **NORMAL}),
    ("masked-progressive", {"rate": 0.5, "latent_size": 1, "filter_size": 1, **NORMAL}),
    ("masked-canvas", NORMAL),
    ("masked-canvas", {"steps": 5, "sample_size": 3, **NORMAL}),
    ("masked-canvas", {"steps": 1, "sample_size": 1, **NORMAL}),
    ("fixed-supervised", NORMAL),
]


@pytest.mark.parametrize(("name", "own"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_equal_plain_loops(name, own, seed):
    pixels = 9 if name == "draw" else PIXELS
    model = make(name, seed, pixels, shaken=True, charge_weight=0.7, **own)
    if name == "grid":  # rows that sum to less than 0 are multiplied by 1000: keep q finite
        with torch.no_grad():
            model.filter.bias[4] -= 12
    x, noise = batch(model, seed=seed)
    terms, _ = run(model, seed)
    assert not terms.aux.any()

    def plain(p, b):
        found = reference.glas(p, x[b], noise[:, 0, b], **ARMS[name](model.settings))
        return dict(zip(reference.TERMS, found, strict=True))

    assert_as_plain(model, terms, model.objective(terms), plain)


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


def test_a_mask_of_rate_0_is_the_published_model():
    (a, _), (b, _) = run(make("masked-progressive", rate=0.0)), run(make("cauchy"))
    close(a, b, rtol=1e-12, atol=0)  # a matrix for each image: the order of sums may differ
    assert not torch.equal(run(make("masked-progressive"))[0].recon, b.recon)


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


def plain_taught(model, p, x, label, noise_TZ, *, weight=1.0, **about):
    """The terms of an image; labels alone teach the matrix, from reads of their own."""
    reads = []

    def look(held, e, **how):
        reads.append(reference.attend(p, e, **how))
        return reference.attend(held, e, **how)

    held = {**p, "latent": p["latent"].detach()}
    found = reference.glas(held, x, noise_TZ, look=look, **filters(model.settings), **about)
    logits = affine(p, "head", sum(reads) / len(reads))
    missed = torch.log(torch.exp(logits).sum()) - logits[label]
    return {**dict(zip(reference.TERMS, found, strict=True)), "aux": weight * missed}


def test_the_supervised_phase_is_plain_classification():
    model = make("fixed-supervised", shaken=True, latent_init="normal")
    phase = model.phases(10)[0]
    x, noise = batch(model)
    terms, seen = run(model, generates=phase.generates, auxiliary=phase.auxiliary)
    assert not any(state.generation.hidden.any() for state, _ in seen)
    assert not terms.charge.any()
    assert not terms.log_ratio.any()

    def plain(p, b):
        found = plain_taught(model, p, x[b], LABELS[b], noise[:, 0, b], generates=False)
        return {"aux": found["aux"]}

    assert_as_plain(model, terms, phase.objective(model, terms), plain)
    touched = {k.partition(".")[0] for k, v in model.named_parameters() if v.grad is not None}
    assert touched == {"encoder", "filter", "latent", "head"}


def test_tandem_equals_plain_loops_with_the_two_matrices_apart():
    model = make("tandem-supervised", shaken=True, latent_init="normal", aux_weight=0.6)
    x, noise = batch(model)
    terms = run(model)[0]

    def plain(p, b):
        return plain_taught(model, p, x[b], LABELS[b], noise[:, 0, b], weight=0.6)

    assert_as_plain(model, terms, model.objective(terms), plain)


def test_the_supervised_matrix_is_learned_then_fixed_and_has_controls():
    run_of_two, learned = taught("supervised")
    start = training("fixed-supervised", epochs=2)
    assert not torch.equal(learned, start.model.latent)
    expected = {**start.model.state_dict(), "latent": learned}
    close(dict(run_of_two.model.state_dict()), expected, rtol=0, atol=0)
    run_of_two.model.latent.grad = None  # of the phase before
    run_of_two.step()
    assert torch.equal(run_of_two.model.latent, learned)
    assert run_of_two.model.latent.grad is None
    assert not run_of_two.model.latent.requires_grad
    assert run_of_two.at.sums["aux"] == 0

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


@pytest.mark.parametrize("name", ["fixed-supervised", "tandem-supervised"])
def test_what_labels_teach_does_not_run_without_them(name):
    resolved = config.resolve(registry.find(name), dataset="mnist-static")
    assert "needs labels" in str(train.not_applicable(registry.find(name), resolved))
