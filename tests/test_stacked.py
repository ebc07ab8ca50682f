"""Seeds that train together against each alone: the same numbers, the same ends."""

import contextlib
import math

import pytest
import torch
from conftest import needs_compiler
from test_train import (
    Exploding,
    ExplodingGradient,
    TwoStep,
    local,
    reloaded,
    tiny_splits,
    training,
    weights,
)

from glas_bench import registry
from glas_bench.core import stacked
from glas_bench.model import Glas
from glas_bench.ops import programs

SEEDS = (3, 0, 5)


def together(variant="cauchy", seeds=SEEDS, splits=None, overrides=None, **about):
    runs = [training(variant, seed, splits, **(overrides or {})) for seed in seeds]
    return stacked.StackedTraining(runs, **about)


def run_to_end(whole, stop=math.inf):
    """Train a stack to its end, or to a step, as its driver does; return the means by seed."""
    rows = []
    while not whole.finished and whole.steps_done < stop:
        whole.step()
        if whole.epoch_done:
            whole.collect()
            rows.append(whole.end_epoch())
    return rows


def finish(run):
    """Yield the epochs' means of a training until its end."""
    while not run.finished:
        run.step()
        if run.epoch_done:
            yield run.end_epoch()


def run_alone(variant, seed, splits=None, **overrides):
    """Return a training at its end, or before the step that it diverged at, and its means."""
    alone = training(variant, seed, splits, **overrides)
    rows = []
    with contextlib.suppress(stacked.Diverged):
        rows.extend(finish(alone))
    return alone, rows


def assert_same(one, other, **tolerance):
    close = {"rtol": 2e-4, "atol": 2e-6, **tolerance}
    torch.testing.assert_close(weights(one), weights(other), **close)
    torch.testing.assert_close(one.optimiser.state, other.optimiser.state, **close)
    assert (one.at.step, one.at.epoch) == (other.at.step, other.at.epoch)


@pytest.mark.parametrize(
    ("variant", "binarisation"),
    [*((name, "static") for name in (*registry.names(), local(TwoStep))), ("cauchy", "dynamic")],
)
def test_stacked_equals_alone(variant, binarisation):
    """Under dynamic binarisation each seed draws its own pixels."""
    overrides = {"epochs": 2, "learning_rate": 1e-3, "binarisation": binarisation}
    splits = tiny_splits(binarisation, pixels=25)
    whole = together(variant, splits=splits, overrides=overrides)
    rows = run_to_end(whole)
    # what standardises its reads has gradients that are nothing but rounding, and Adam's steps
    # along them, up to the learning rate each, this way or that
    close = {"atol": 2 * 1e-3 * 6} if variant == "uniform-pit" else {}
    for i, seed in enumerate(SEEDS):
        alone, expected = run_alone(variant, seed, splits, **overrides)
        assert_same(whole.trainings[i], alone, **close)
        for row, want in zip(rows, expected, strict=False):
            assert row[i] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stack_resumed_alone_or_together_ends_as_undisturbed(stop, tmp_path):
    whole = together(overrides={"epochs": 2})
    run_to_end(whole, stop)
    whole.collect()
    again = [reloaded(one, tmp_path, epochs=2) for one in whole.trainings]
    alone = reloaded(whole.trainings[1], tmp_path, epochs=2)
    run_to_end(stacked.StackedTraining(again))
    list(finish(alone))
    run_to_end(whole)
    for i, seed in enumerate(SEEDS):
        undisturbed = run_alone("cauchy", seed, epochs=2)[0]
        assert_same(again[i], undisturbed)
        assert_same(whole.trainings[i], undisturbed)
    assert_same(alone, again[1])


class OneExplodes(Glas):
    """Not finite from the second step on, for the seed whose parameter is marked."""

    bounds_nll = False

    def charge(self, q, p, z):
        moved = (self.mean.bias.abs().sum() > 0) & (self.write.bias.sum() > 50)
        return super().charge(q, p, z) + torch.where(moved, math.inf, 0.0)


class OneExplodesAtFirst(TwoStep):
    """A first phase that is not finite for a seed that is marked."""

    def phases(self, epochs):
        def objective(model, terms):
            marked = model.write.bias.sum() > 50
            return terms.aux.mean(0) + torch.where(marked, math.inf, 0.0)

        first, main = super().phases(epochs)
        return first._replace(objective=objective), main


@pytest.mark.parametrize(
    ("cls", "marked", "ends"),
    [
        (OneExplodes, 0, {0: 1}),  # it is the first that says where the stack stands
        (OneExplodes, 1, {1: 1}),
        (OneExplodesAtFirst, 0, {0: 0}),  # nor does it say which phase comes
        (Exploding, None, {0: 1, 1: 1, 2: 1}),
        (ExplodingGradient, None, {0: 0, 1: 0, 2: 0}),
    ],
)
def test_a_seed_that_diverges_stops_as_alone_and_the_others_go_on(cls, marked, ends):
    runs, alone = ([training(local(cls), seed, epochs=2) for seed in SEEDS] for _ in range(2))
    with torch.no_grad():
        for group in (runs, alone) if marked is not None else ():
            group[marked].model.write.bias.fill_(5)
    whole = stacked.StackedTraining(runs)
    whole.step()
    whole.step()
    assert {i: diverged.step for i, diverged in whole.collect().items()} == ends
    run_to_end(whole)
    assert whole.finished
    assert set(whole.diverged) == set(ends)
    for i, one in enumerate(alone):
        with pytest.raises(stacked.Diverged) if i in ends else contextlib.nullcontext() as stopped:
            list(finish(one))
        if i in ends:
            assert whole.diverged[i].reason == stopped.value.reason
        assert_same(runs[i], one)


@pytest.mark.parametrize("name", ["cauchy", "uniform-pit"])
def test_a_stack_validates_each_seed_as_alone(name, monkeypatch):
    monkeypatch.setattr(stacked, "VALIDATION_ROWS", 3)  # of eight images
    whole = together(name, splits=tiny_splits(pixels=25), overrides={"epochs": 1})
    whole.step()
    whole.collect()
    for one, (kind, value) in zip(whole.trainings, whole.validate(), strict=True):
        wanted = one.validate()
        assert (kind, value) == (wanted[0], pytest.approx(wanted[1], rel=1e-5))


@needs_compiler
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_the_compiled_step_equals_the_eager_one():  # test_gpu has `cauchy`
    messages = []
    about = {"overrides": {"epochs": 1}}
    plain = together("uniform-kl", **about)
    fast = together("uniform-kl", **about, ways=("compiled", "eager"), tell=messages.append)
    run_to_end(plain)
    run_to_end(fast)
    assert messages == []
    assert fast.program.way == "compiled"
    for one, other in zip(fast.trainings, plain.trainings, strict=True):
        assert_same(one, other)


def test_what_cannot_be_captured_falls_back_and_is_reported():
    messages = []
    calls = []
    total = torch.zeros(1)

    def build(compiled):
        def function(value):
            calls.append(compiled)
            total.add_(value)
            if compiled:
                raise RuntimeError("no compiler here")
            return total.clone()

        return function

    program = programs.Program(
        build, torch.device("cpu"), kept=lambda: [total], tell=messages.append, ways=programs.WAYS
    )
    one = torch.ones(1)
    assert program(one).item() == 1
    assert program(one).item() == 2
    assert calls.count(False) == 2
    assert [line.split(":")[0] for line in messages] == [
        "no CUDA graph of the compiled step",
        "no CUDA graph",
        "not compiled",
    ]
    assert "no compiler here" in messages[2]
    assert program.way == "eager"


def test_after_a_failed_capture_nothing_is_captured(monkeypatch):
    monkeypatch.setattr(programs, "_captures_failed", True)
    messages = []
    program = programs.Program(
        lambda compiled: torch.sin, torch.device("cpu"), tell=messages.append, ways=programs.WAYS
    )
    assert program(torch.zeros(1)).item() == 0
    assert program.way == "compiled"
    assert messages == []  # the failure itself was reported


def test_a_graph_that_the_device_has_no_room_for_is_out_of_memory():
    def build(compiled):
        raise RuntimeError("CUDA error: out of memory")

    program = programs.Program(build, torch.device("cpu"), ways=["compiled", "eager"])
    with pytest.raises(torch.OutOfMemoryError):
        program(torch.zeros(1))
    assert program.way == "compiled"  # no slower way has more room


def test_few_steps_are_not_worth_compiling():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert programs.ways_on(cuda, programs.FEW_STEPS) == programs.WAYS
    assert programs.ways_on(cuda, 5850) == ("captured uncompiled", "eager")
    assert programs.ways_on(cpu, 10**6) == ("eager",)


def test_bf16_stacks_as_it_runs_alone():
    overrides = {"epochs": 1, "precision": "bf16"}
    whole = together(overrides=overrides)
    (row,) = run_to_end(whole)
    (exact,) = run_to_end(together(overrides={"epochs": 1}))
    for i, seed in enumerate(SEEDS):
        _, (alone,) = run_alone("cauchy", seed, **overrides)
        assert row[i]["objective"] == pytest.approx(alone["objective"], rel=1e-3)
        assert row[i] != exact[i]


def test_gradients_of_all_steps_are_added_up_in_float32():
    """Of the same products in bf16, as near to those in fp32 as the path of a CPU comes."""
    found = {}
    for precision in ("fp32", "bf16"):
        about = {"precision": precision, "steps": 32, "hidden": 32}
        run = training(seed=0, **about)
        run.step()
        found[precision, "alone"] = run.optimiser.state["write.weight"]["exp_avg"]
        whole = stacked.StackedTraining([training(seed=0, **about)])
        whole.step()
        whole.collect()
        (run,) = whole.trainings
        found[precision, "stacked"] = run.optimiser.state["write.weight"]["exp_avg"]
    exact = found["fp32", "alone"]
    off = {way: float((found["bf16", way] - exact).norm()) for way in ("alone", "stacked")}
    assert off["stacked"] < 1.5 * off["alone"]
