"""The main path in the ways of a GPU, against the eager one.

Each body runs as captured CUDA graphs where there is a GPU, in every precision. On a CPU it runs
with its parts compiled as far as torch's compiler traces and differentiates them: the kernels stay
torch's own (`aot_eager`), for generating others takes minutes. `SLOW_TESTS=1` compiles every
variant and every body (5 minutes); otherwise it is `cauchy` alone that is compiled on a CPU.
"""

import math
import os
from typing import NamedTuple

import pytest
import torch
import torch._dynamo.utils
from test_stacked import OneExplodes
from test_train import TwoStep, local, tiny_splits, training

from glas_bench import environment
from glas_bench.ais.decoder import log_likelihood_for
from glas_bench.core import streams
from glas_bench.core.stacked import StackedTraining
from glas_bench.core.train import scoring
from glas_bench.ops import programs
from glas_bench.record import Partial
from glas_bench.yardstick import refit
from glas_bench.yardstick.weights import Images, Weights

pytestmark = pytest.mark.filterwarnings("default")  # the compiler's own

SEEDS = (3, 0)
VARIANTS = ("cauchy", "draw", "uniform-pit", "masked-progressive")


class Place(NamedTuple):
    device: str
    way: str
    precision: str

    def __str__(self):
        return "-".join(self)

    @property
    def close(self):
        """The largest relative difference from the eager way."""
        return {"fp32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}[self.precision]


SLOW = bool(os.environ.get("SLOW_TESTS"))
GPU = [
    pytest.param(Place("cuda", "captured", precision), marks=pytest.mark.gpu)
    for precision in ("fp32", "tf32", "bf16")
]
COMPILED = [Place("cpu", "compiled", "fp32"), *GPU]
QUICK = [Place("cpu", "compiled" if SLOW else "eager", "fp32"), *GPU]


def compiled(body):
    """Run a body for every variant."""
    some = pytest.mark.parametrize("variant", VARIANTS)
    places = pytest.mark.parametrize("place", COMPILED, indirect=True, ids=str)
    return some(places(body))


quick = pytest.mark.parametrize("place", QUICK, indirect=True, ids=str)


@pytest.fixture
def place(request, monkeypatch):
    where = request.param
    variant = request.node.callspec.params.get("variant", VARIANTS[0])
    if where.device == "cpu" and variant != VARIANTS[0] and not SLOW:
        pytest.skip("compiling another variant takes a while: SLOW_TESTS=1 does")
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    threads = torch.get_num_threads()
    if where.device == "cpu":
        monkeypatch.setattr(programs, "BACKEND", "aot_eager")
    environment.prepare_torch(1, where.precision)
    yield where
    environment.prepare_torch(threads)
    torch.set_flush_denormal(False)
    assert not counts["graph_break"]


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def stack(place, way, variant="cauchy", seeds=SEEDS, **overrides):
    """Return a stack that must run in one way."""
    splits = tiny_splits(pixels=25).to(place.device)
    about = {"epochs": 2, "precision": place.precision, **overrides}
    return StackedTraining([training(variant, seed, splits, **about) for seed in seeds], ways=[way])


def differ(place, one, other):
    """Return the norm of the difference of two lists of tensors, relative to the second."""
    first, second = (
        torch.cat([t.detach().double().flatten().cpu() for t in each]) for each in (one, other)
    )
    assert bool(second.isfinite().all())
    return float((first - second).norm() / second.norm()) / place.close


def moments(whole):
    """Return what Adam has gathered of all gradients."""
    return [s["exp_avg"] for one in whole.trainings for s in one.optimiser.state.values()]


def run_to_end(whole):
    """Finish a stack; return its epochs' means and validations."""
    values = []
    while not whole.finished:
        whole.step()
        if whole.epoch_done:
            whole.collect()
            if whole.phase.generates:
                values += [value for _, value in whole.validate()]
            values += [mean for means in whole.end_epoch().values() for mean in means.values()]
    return torch.tensor(values)


@compiled
def test_training_and_validation_are_the_eager_ones(place, variant):
    fast, eager = (stack(place, way, variant) for way in (place.way, "eager"))
    for whole in (fast, eager):
        whole.step()
        whole.collect()
    assert differ(place, moments(fast), moments(eager)) < 1
    assert differ(place, [run_to_end(fast)], [run_to_end(eager)]) < 1
    assert fast.program.way == place.way
    made = graphs()
    run_to_end(stack(place, place.way, variant, (5, 6), learning_rate=1e-4, steps=5))
    assert graphs() == made


@quick
def test_phases_follow_one_another(place):
    fast, eager = (stack(place, way, local(TwoStep), epochs=3) for way in (place.way, "eager"))
    first = fast.program
    assert differ(place, [run_to_end(fast)], [run_to_end(eager)]) < 1
    assert fast.program is not first
    assert fast.program.way == place.way


@quick
def test_a_stack_resumes(place, tmp_path):
    fast, eager = (stack(place, way) for way in (place.way, "eager"))
    for _ in range(2):
        fast.step()
    fast.collect()
    again = stack(place, place.way)
    for i, (old, new) in enumerate(zip(fast.trainings, again.trainings, strict=True)):
        torch.save(old.state(), tmp_path / f"{i}.pt")
        new.load(torch.load(tmp_path / f"{i}.pt", weights_only=True))
    resumed = StackedTraining(again.trainings, ways=[place.way])
    assert differ(place, [run_to_end(resumed)], [run_to_end(eager)]) < 1
    assert differ(place, moments(resumed), moments(eager)) < 1
    run_to_end(fast)
    assert differ(place, moments(fast), moments(resumed)) < 0.1


@quick
def test_a_seed_diverges_and_the_others_go_on(place):
    found = []
    for way in (place.way, "eager"):
        whole = stack(place, way, local(OneExplodes), seeds=(3, 0, 5), epochs=1)
        with torch.no_grad():
            whole.stack.parameters["write.bias"][1].fill_(5)
        run_to_end(whole)
        found.append((whole, {i: (one.step, one.reason) for i, one in whole.diverged.items()}))
    (fast, diverged), (eager, expected) = found
    assert diverged == expected == {1: (1, "the objective is not finite")}
    assert differ(place, moments(fast), moments(eager)) < 1
    assert [one.at.step for one in fast.trainings] == [3, 1, 3]


def scored(place, way, variant, **overrides):
    """Return weights, gradients of AIS, fits of all seeds and refined images."""
    splits = tiny_splits(pixels=25).to(place.device)
    about = {"precision": place.precision, **overrides}
    of = [training(variant, seed, splits, **about) for seed in SEEDS]
    images = Images(splits.validation.images, None, tuple(range(len(splits.validation.images))))
    x, model, ways = images.as_float(), of[0].model, [way]
    budget = refit.Budget(share=3.0, learning_rate=5e-3, image_steps=2, image_learning_rate=0.1)
    noise = images.noise(model, 0, "test", 5)
    latents = streams.normal((3, len(x), model.steps * model.noise_size), 0, "test")
    with scoring(model, of[0].config, splits):
        values = [Weights(ways=ways)(model, x, None, noise)]
        walk = log_likelihood_for(model, ways=ways)(x)
        values += [each.clone() for each in walk.value_and_slope(latents.to(place.device))]
        fits = [refit.Fit(o.model, o.config, splits, o.seed, images, budget) for o in of]
        refit.fit_stacked(fits, "fit", [Partial() for _ in fits], ways=ways)
        recogniser = fits[0].result()
        values += refit.Refiner(recogniser, budget, ways=ways)(images, 0, "test")
    return [value[value.isfinite()] for value in values]


@compiled
def test_scoring_is_the_eager_one(place, variant):
    found = [scored(place, way, variant) for way in (place.way, "eager")]
    for one, other in zip(*found, strict=True):
        if len(other):  # q of uniform-pit has no density
            assert differ(place, [one], [other]) < 1
            assert float(other.detach().abs().max()) > 0
    made = graphs()
    scored(place, place.way, variant, steps=5)
    assert graphs() == made


@pytest.mark.gpu
def test_what_waits_for_the_device_raises_before_a_capture():
    total, messages = torch.zeros(2, device="cuda"), []

    def build(compiled):
        return lambda x: total.add_(x) * (1.0 if float(x.sum()) > 0 else math.nan)

    cuda = torch.device("cuda")
    ways = ("captured uncompiled", "eager")
    waits = programs.Program(build, cuda, kept=lambda: [total], tell=messages.append, ways=ways)
    one = torch.ones(2, device="cuda")
    assert waits(one).tolist() == [1, 1]
    assert waits(one).tolist() == [2, 2]
    assert (waits.way, len(messages)) == ("eager", 1)
    after = programs.Program(lambda compiled: torch.sin, cuda, ways=["captured uncompiled"])
    assert after(one).tolist() == torch.sin(one).tolist()
