"""Fits of several seeds in one program: each as it would be alone, to rounding."""

import pytest
import torch
from test_refit import fit

from glas_bench import registry
from glas_bench.contract import Subject
from glas_bench.core import rollout
from glas_bench.core.stack import Rollout, Stack
from glas_bench.core.stacked import StackedTraining
from glas_bench.ops import linear
from glas_bench.record import Partial
from glas_bench.yardstick import refit
from glas_bench.yardstick.weights import NotFinite

SEEDS = (0, 1, 2)
SHORT = refit.Budget(share=6.0, learning_rate=5e-3)


def together(fits, partial=None, tick=lambda *_: None, **about):
    partial = partial or [Partial() for _ in fits]
    refit.fit_stacked(fits, "fit", partial, tick, **about)
    return fits


def alone(budget=SHORT, seed=0, **about):
    one = fit(budget, seed, **about)
    one.run("fit", Partial(), lambda *_: None)
    return one


def assert_same(one, other):
    assert one.at.step == other.at.step
    assert one.best_step == other.best_step
    assert one.elbo == pytest.approx(other.elbo, rel=1e-4)
    for name, value in other.best.items():
        torch.testing.assert_close(one.best[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_each_seed_is_fitted_as_alone(binarisation):
    fits = together([fit(SHORT, seed, binarisation) for seed in SEEDS])
    for seed, one in zip(SEEDS, fits, strict=True):
        assert_same(one, alone(SHORT, seed, binarisation=binarisation))
        assert one.finished
        assert one.at.seconds > 0


def test_a_seed_that_stalls_stops_and_the_others_go_on():
    budget = refit.Budget(share=8.0, learning_rate=5.0, checks=20, patience=2)
    fits = together([fit(budget, seed) for seed in SEEDS])
    for seed, one in zip(SEEDS, fits, strict=True):
        expected = alone(budget, seed)
        assert one.finished
        assert (one.at.step, len(one.elbo)) == (expected.at.step, len(expected.elbo))
    assert len({one.at.step for one in fits}) > 1  # they do not all stop together


def test_fits_that_stand_apart_catch_up_from_what_is_kept(tmp_path):
    places = [Partial(tmp_path / str(seed), "key", every=0) for seed in SEEDS]
    for place in places:
        place.folder.mkdir()

    class Interrupted(Exception):  # noqa: N818 - no error
        pass

    def stop(stage, done, total):
        if done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(SHORT, 1).run("fit", places[1], stop)
    seen = []
    fits = together(
        [fit(SHORT, seed) for seed in SEEDS], places, lambda stage, done, total: seen.append(done)
    )
    assert seen[:4] == [1, 2, 3, 4]  # the two behind come to where the third stood
    for seed, one, place in zip(SEEDS, fits, places, strict=True):
        assert_same(one, alone(SHORT, seed))
        again = fit(SHORT, seed)
        again.resume("fit", place)
        assert again.finished
        assert again.best_step == one.best_step


def test_one_that_is_not_finite_is_left_to_fail_alone(tmp_path):
    fits = [fit(SHORT, seed) for seed in SEEDS]
    with torch.no_grad():
        fits[1].optimiser.parameters["mean.bias"].fill_(1e20)  # its square is infinite
    together(fits)
    assert [one.finished for one in fits] == [True, False, True]
    for seed in (0, 2):
        assert_same(fits[seed], alone(SHORT, seed))
    with pytest.raises(NotFinite, match="of a fit"):
        fits[1].run("fit", Partial(), lambda *_: None)


def test_a_stack_keeps_no_casts_from_step_to_step():
    fits = [fit(SHORT, seed) for seed in SEEDS]
    for one in fits:
        one.config = one.config.model_copy(update={"precision": "bf16"})
    with linear.precision("bf16"):  # as in scoring
        stack = StackedTraining(fits)
        for _ in range(2):
            stack.step()
            assert stack.collect() == {}
            stack.end_epoch()
        assert linear._current.casts == {}


def test_every_variants_decoder_can_be_fitted_under_vmap():
    for name in registry.names():
        subject = Subject(registry.find(name))
        model = subject.model().float()
        recogniser = refit.Recogniser.of(model, 0)
        stack = Stack([recogniser, refit.Recogniser.of(model, 1)])
        run = Rollout(stack)
        x = subject.x.float().expand(2, *subject.x.shape)
        noise = torch.randn(2, recogniser.steps, 1, x.shape[1], recogniser.noise_size)
        terms = run(stack.tensors, x, None, noise)
        with torch.no_grad():
            plain = rollout.rollout(recogniser, x[0], x[0], None, noise[0])
        torch.testing.assert_close(terms.recon[0], plain.recon, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(terms.charge[0], plain.charge)
