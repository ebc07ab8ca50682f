"""The training core against a plain reference loop; what it does at every kind of end."""

import math
from pathlib import Path

import pytest
import reference
import torch

from glas_bench import config, registry
from glas_bench.core import streams, train
from glas_bench.data import Split, Splits
from glas_bench.errors import UsageError
from glas_bench.model import Glas, Phase
from glas_bench.registry import Variant

TINY = {"steps": 3, "hidden": 8, "sample_size": 3, "latent_size": 4, "filter_size": 2, "batch": 8}


def tiny_splits(binarisation="static", labels=True, pixels=20, images=40):
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(images, pixels, generator=generator)
    marks = torch.arange(images) % 10 if labels else None
    height = max(h for h in range(1, math.isqrt(pixels) + 1) if pixels % h == 0)

    def split(rows, train_split=False):
        bits = (grey[rows] > 0.6).to(torch.uint8)
        images = grey[rows] if train_split and binarisation != "static" else bits
        return Split(images, None if marks is None else marks[rows], None)

    return Splits(
        name="mnist-5k",
        binarisation=binarisation,
        origin="made up for a test",
        hash="0" * 64,
        classes=10 if labels else 0,
        pixels=pixels,
        image_shape=(height, pixels // height),
        train=split(slice(0, 24), train_split=True),
        validation=split(slice(24, 32)),
        test=split(slice(32, 40)),
    )


def training(variant="cauchy", seed=0, splits=None, **overrides):
    found = variant if isinstance(variant, Variant) else registry.find(variant)
    own = found.cls.Settings.model_fields
    values = {k: v for k, v in TINY.items() if k in own or k == "batch"}
    resolved = config.resolve(found, preset="smoke", overrides={**values, **overrides})
    return train.Training(found, resolved, splits or tiny_splits(), seed)


def local(cls):
    """A variant that lives in this file."""
    return Variant("local", cls, Path(__file__), "local")


def finish(run, stop=math.inf):
    """Train to the end, or to a step; return the epochs' means with what validation measured."""
    rows = []
    while not run.finished and run.at.step < stop:
        run.step()
        if run.epoch_done:
            rows.append({**run.end_epoch(), "validation": run.validate()[1]})
    return rows


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def assert_bits(one, other):
    """Assert that two trainings have the same parameters and buffers to the bit."""
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


def reloaded(run, path, **about):
    """Return a new training that continues from the state of another, which goes through a file."""
    torch.save(run.state(), path / "state.pt")
    again = training(run.variant, run.seed, **about)
    again.load(torch.load(path / "state.pt", weights_only=True))
    return again


@pytest.mark.parametrize("limit", [5.0, 0.5])
def test_steps_equal_a_plain_float64_loop(limit, monkeypatch):
    """Order, noise, clipping of the concatenated kernels, Adam and the schedule, for 7 steps."""
    monkeypatch.setattr(train, "CLIP_NORM", limit)
    run = training(epochs=3, decay_epochs=1, learning_rate=1e-2)
    parameters = {k: v.detach().double() for k, v in run.model.named_parameters()}
    adam = reference.Adam(parameters)
    groups = [
        [k for k in parameters if k.startswith("encoder.kernels")],
        [k for k in parameters if k.startswith("decoder.kernels")],
        *([k] for k in parameters if ".kernels." not in k),
    ]
    pixels = run.splits.train.images.double()
    for step in range(7):
        epoch, batch = divmod(step, 3)
        order = torch.randperm(24, generator=streams.generator(0, "order", epoch))
        rows = order[batch * 8 : batch * 8 + 8]
        noise = streams.normal((3, 1, 8, 3), 0, "noise", block=step).double()
        leaves = {k: v.clone().requires_grad_() for k, v in parameters.items()}
        objective = 0
        for b, row in enumerate(rows):
            recon, charged, _ = reference.glas(
                leaves,
                pixels[row],
                noise[:, 0, b],
                kind="cauchy",
                R=2,
                L=4,
                grid="original",
                floor="1e-3",
                divergence="kl",
            )
            objective = objective + (recon + charged) / 8
        objective.backward()
        gradients = reference.clip({k: v.grad for k, v in leaves.items()}, groups, limit)
        parameters = adam.step(parameters, gradients, max(1e-2 * 0.1**epoch, 1e-5))
        before = run.at.sums["objective"]
        run.step()
        torch.testing.assert_close(
            torch.tensor(run.at.sums["objective"] - before),
            objective.detach().float(),
            rtol=1e-4,
            atol=1e-4,
        )
        if run.epoch_done:
            run.end_epoch()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), parameters[name].float(), rtol=2e-3, atol=2e-4, msg=name
        )


def test_the_schedule_steps_down_to_a_floor():
    run = training(epochs=250, learning_rate=1e-3)
    rates = []
    for epoch in (0, 74, 75, 149, 150, 224, 225, 249):
        run.at.epoch = epoch
        rates.append(run.learning_rate)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-5, 1e-5])
    low = training(epochs=250, learning_rate=1e-6)
    low.at.epoch = 200
    assert low.learning_rate == pytest.approx(1e-6)


def test_the_last_partial_batch_of_an_epoch_is_left_out():
    run = training(batch=10, epochs=2)
    assert len(finish(run)) == 2
    assert run.at.step == 4  # of 24 images


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_resumed_at_any_step_ends_at_the_same_bits(stop, tmp_path):
    whole = training(epochs=2)
    rows = finish(whole)
    first = training(epochs=2)
    kept = finish(first, stop)
    second = reloaded(first, tmp_path, epochs=2)
    assert kept + finish(second) == rows
    assert_bits(second, whole)


def test_validation_leaves_training_as_it_was():
    a, b = training(epochs=2), training(epochs=2)
    for _ in range(2):
        a.step()
        a.validate()
        b.step()
    assert_bits(a, b)


class Exploding(Glas):
    """A charge that is not finite once a step was taken."""

    bounds_nll = False

    def charge(self, q, p, z):
        moved = self.mean.bias.abs().sum()
        return super().charge(q, p, z) + torch.where(moved > 0, math.inf, 0.0)


class ExplodingGradient(Glas):
    """A finite objective whose gradient is that of a square root at 0."""

    bounds_nll = False

    def charge(self, q, p, z):
        zero = (self.mean.bias - self.mean.bias.detach()).abs().sum()
        return super().charge(q, p, z) + zero.sqrt()


@pytest.mark.parametrize(
    ("cls", "reason", "step"), [(Exploding, "objective", 1), (ExplodingGradient, "gradient", 0)]
)
def test_a_non_finite_step_stops_before_the_optimiser_moves(cls, reason, step):
    run = training(local(cls), epochs=2)
    finish(run, step)
    before = weights(run)
    with pytest.raises(train.Diverged, match=reason) as stopped:
        run.step()
    assert stopped.value.step == run.at.step == step
    torch.testing.assert_close(weights(run), before, rtol=0, atol=0)


class TwoStep(Glas):
    """A first phase that trains labels into the latent matrix, kept and frozen in the second."""

    needs_labels = True
    bounds_nll = True

    def build_recognition(self):
        super().build_recognition()
        self.head = torch.nn.Linear(int(self.settings.filter_size) ** 2, self.classes)

    def phases(self, epochs):
        first = Phase(
            "supervised",
            1,
            objective=lambda model, terms: terms.aux.mean(0),
            generates=False,
            frozen=("decoder", "write", "mean", "log_std"),
        )
        return (first, Phase("main", epochs - 1, keep=("latent",), frozen=("latent", "head")))

    def begin_recognition(self, x):
        start = super().begin_recognition(x)
        return start._replace(memory={"sum": x.new_zeros(len(x), self.head.in_features)})

    def attend(self, e_BH, memory, t):
        read, memory = super().attend(e_BH, memory, t)
        return read, {**memory, "sum": memory["sum"] + read}

    def auxiliary(self, context, state):
        logits = self.head(state.recognition.memory["sum"] / self.steps)
        return torch.nn.functional.cross_entropy(logits, context.labels, reduction="none")

    def between_phases(self, before, after):
        assert (before.name, after.name) == ("supervised", "main")
        self.latent.data.mul_(2)


def test_phases_keep_freeze_and_restart(tmp_path):
    run = training(local(TwoStep), epochs=3)
    start = weights(run)
    for _ in range(run.steps_per_epoch):
        run.step()
    learned = run.model.latent.detach().clone()
    assert not torch.equal(learned, start["latent"])
    assert torch.equal(run.model.write.weight, start["write.weight"])
    assert not torch.equal(run.model.encoder.bias, start["encoder.bias"])
    run.end_epoch()
    assert run.phase.name == "main"
    after = weights(run)
    assert torch.equal(after["latent"], 2 * learned)
    assert torch.equal(after["encoder.bias"], start["encoder.bias"])
    assert not run.optimiser.state
    again = reloaded(run, tmp_path, epochs=3)
    for one in (run, again):
        one.step()
    assert torch.equal(run.model.latent, 2 * learned)
    assert not torch.equal(run.model.write.weight, start["write.weight"])
    assert_bits(again, run)


def test_running_statistics_are_frozen_from_training_images():
    run = training("uniform-pit", epochs=1)
    run.step()
    assert not run.model.read_mean.any()
    first = run.validate()
    frozen = run.model.read_mean.clone()
    assert frozen.any(1).all()
    assert run.validate() == first
    assert torch.equal(run.model.read_mean, frozen)
    assert run.model.training


def test_dynamic_binarisation_draws_again_each_epoch_and_alike_for_every_variant():
    splits = tiny_splits("dynamic")
    a = training(splits=splits, binarisation="dynamic")
    b = training("hellinger", splits=splits, binarisation="dynamic")
    first, second = a.epoch_images(0)[0], a.epoch_images(1)[0]
    assert set(first.unique().tolist()) == {0, 1}
    assert not torch.equal(first, second)
    assert torch.equal(first, b.epoch_images(0)[0])
    assert abs(float(first.float().mean()) - float(splits.train.images.mean())) < 0.05


def test_what_cannot_run_is_refused():
    with pytest.raises(UsageError, match=r"needs labels and mnist-static has none.*mnist-5k"):
        train.check_applicable(
            local(TwoStep), config.resolve(registry.find("cauchy"), dataset="mnist-static")
        )
    with pytest.raises(UsageError, match="batch 25 is larger than the 24 training images"):
        training(batch=25)
    with pytest.raises(UsageError, match=r"images 99: mnist-5k has \d+ test images; set images to"):
        training(images=99)


def test_the_schedule_restarts_with_every_phase():
    run = training(local(TwoStep), epochs=5, decay_epochs=2, learning_rate=1e-3)
    rates = []
    while not run.finished:
        rates.append(run.learning_rate)
        for _ in range(run.steps_per_epoch):
            run.step()
        run.end_epoch()
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4])  # two epochs, then three
