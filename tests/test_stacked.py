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


def run_to_end(whole):
    """Finish a stack as its driver does; return the epochs' means by seed."""
    rows = []
    while not whole.finished:
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
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(one)[name], value, **close, msg=name)
    assert one.at.step == other.at.step
    assert one.at.epoch == other.at.epoch
    assert set(one.optimiser.state) == set(other.optimiser.state)
    for name, state in other.optimiser.state.items():
        for key, value in state.items():
            torch.testing.assert_close(one.optimiser.state[name][key], value, **close, msg=name)


@pytest.mark.parametrize("variant", [*registry.names(), local(TwoStep)])
def test_stacked_equals_alone(variant):
    overrides = {"epochs": 2, "learning_rate": 1e-3}
    splits = tiny_splits(pixels=25)
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


def test_each_seed_draws_its_own_pixels_under_dynamic_binarisation():
    splits = tiny_splits("dynamic")
    overrides = {"epochs": 2, "binarisation": "dynamic"}
    whole = together(splits=splits, overrides=overrides)
    run_to_end(whole)
    for i, seed in enumerate(SEEDS):
        assert_same(whole.trainings[i], run_alone("cauchy", seed, splits, **overrides)[0])


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stack_resumed_alone_or_together_ends_as_undisturbed(stop, tmp_path):
    whole = together(overrides={"epochs": 2})
    for _ in range(stop):
        whole.step()
        if whole.epoch_done:
            whole.collect()
            whole.end_epoch()
    whole.collect()
    for i, one in enumerate(whole.trainings):
        torch.save(one.state(), tmp_path / f"{i}.pt")
    again = [training(seed=seed, epochs=2) for seed in SEEDS]
    for i, one in enumerate(again):
        one.load(torch.load(tmp_path / f"{i}.pt", weights_only=True))
    alone = training(seed=SEEDS[1], epochs=2)
    alone.load(torch.load(tmp_path / "1.pt", weights_only=True))
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


@pytest.mark.parametrize("place", [0, 1])  # the first is the one that says where the stack stands
def test_a_seed_that_diverges_stops_alone(place):
    variant = local(OneExplodes)
    runs = [training(variant, seed, epochs=2) for seed in SEEDS]
    alone = [training(variant, seed, epochs=2) for seed in SEEDS]
    for group in (runs, alone):
        with torch.no_grad():
            group[place].model.write.bias.fill_(5)
    whole = stacked.StackedTraining(runs)
    whole.step()
    whole.step()
    diverged = whole.collect()
    alone[place].step()
    with pytest.raises(stacked.Diverged) as stopped:
        alone[place].step()
    assert set(diverged) == {place}
    found = diverged[place]
    assert (found.step, found.reason) == (stopped.value.step, stopped.value.reason)
    assert_same(runs[place], alone[place])
    run_to_end(whole)
    assert_same(runs[place], alone[place])
    for i in {0, 1, 2} - {place}:
        list(finish(alone[i]))
        assert_same(runs[i], alone[i])


class OneExplodesAtFirst(TwoStep):
    """A first phase that is not finite for a seed that is marked."""

    def phases(self, epochs):
        def objective(model, terms):
            marked = model.write.bias.sum() > 50
            return terms.aux.mean(0) + torch.where(marked, math.inf, 0.0)

        first, main = super().phases(epochs)
        return first._replace(objective=objective), main


def test_a_seed_that_diverged_in_another_phase_does_not_say_what_is_trained():
    variant = local(OneExplodesAtFirst)
    runs, alone = ([training(variant, seed, epochs=3) for seed in SEEDS] for _ in range(2))
    with torch.no_grad():
        runs[0].model.write.bias.fill_(5)
    whole = stacked.StackedTraining(runs)
    run_to_end(whole)
    assert set(whole.diverged) == {0}
    for i in (1, 2):
        list(finish(alone[i]))
        assert_same(runs[i], alone[i])


@pytest.mark.parametrize(("cls", "steps"), [(Exploding, 1), (ExplodingGradient, 0)])
def test_divergence_is_reported_as_alone(cls, steps):
    whole = together(local(cls), overrides={"epochs": 2})
    whole.step()
    whole.step()
    whole.step()
    diverged = whole.collect()
    for i, seed in enumerate(SEEDS):
        alone = training(local(cls), seed, epochs=2)
        for _ in range(steps):
            alone.step()
        with pytest.raises(stacked.Diverged) as stopped:
            alone.step()
        assert (diverged[i].step, diverged[i].reason) == (stopped.value.step, stopped.value.reason)
        assert_same(whole.trainings[i], alone)
    assert whole.finished


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
@pytest.mark.parametrize("name", ["cauchy", "uniform-kl"])
def test_the_compiled_step_equals_the_eager_one(name):
    messages = []
    plain = together(name, overrides={"epochs": 1})
    fast = together(name, overrides={"epochs": 1}, ways=("compiled", "eager"), tell=messages.append)
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
