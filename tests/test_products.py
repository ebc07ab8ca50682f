"""Recorded products against plain ones: the same values and gradients, for every variant."""

import pytest
import torch

from glas_bench import contract, registry
from glas_bench.core import rollout
from glas_bench.model import LSTM, Linear
from glas_bench.ops import products

NAMES = registry.names()


def gradients(subject, model, precision=None, **about):
    """Return the objective of a rollout and the gradients of all parameters."""
    noise = subject.noise(model, model.draws)
    labels = subject.labels
    for parameter in model.parameters():
        parameter.grad = None
    x = subject.x.to(next(model.parameters()).dtype)
    with precision or products.precision("fp32"):
        terms = rollout.rollout(model, x, x, labels, noise.to(x.dtype), **about)
        objective = model.objective(terms).mean()
        objective.backward()
    return objective.detach(), {k: p.grad for k, p in model.named_parameters()}


def assert_alike(a, b, **tolerance):
    torch.testing.assert_close(a[0], b[0], **tolerance)
    for name, gradient in a[1].items():
        other = b[1][name]
        if gradient is None or other is None:  # a kernel that has met nothing but zeros
            assert (gradient if other is None else other) is None or not gradient.any()
        else:
            torch.testing.assert_close(
                gradient, other, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


@pytest.mark.parametrize("name", NAMES)
def test_recorded_products_give_the_gradients_of_plain_ones(name):
    subject = contract.Subject(registry.find(name))
    plain = gradients(subject, subject.model())
    tape = products.Tape(3)
    model = subject.model()
    for _ in range(2):  # what the first rollout took is used again
        assert_alike(gradients(subject, model, products.recording(tape, "fp32")), plain)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_tape_that_is_too_short_goes_on_in_pieces(steps):
    subject = contract.Subject(registry.find("cauchy"))
    plain = gradients(subject, subject.model())
    tape = products.recording(products.Tape(steps), "fp32")
    assert_alike(gradients(subject, subject.model(), tape), plain)


def test_a_phase_without_generation_trains_recognition_alone():
    subject = contract.Subject(registry.find("fixed-supervised"))
    about = {"generates": False, "auxiliary": type(subject.model()).cross_entropy}
    plain = gradients(subject, subject.model(), **about)
    tape = products.recording(products.Tape(3), "fp32")
    found = gradients(subject, subject.model(), tape, **about)
    assert_alike(found, plain)
    assert found[1]["decoder.bias"] is None
    assert found[1]["encoder.kernels.x"].any()


def test_a_call_that_nothing_came_of_counts_nothing():
    torch.manual_seed(0)
    layer = Linear(3, 2)
    value = torch.randn(4, 3)
    tape = products.Tape(3)
    with products.recording(tape, "fp32"):
        layer(value)
        layer(2 * value).sum().backward()
        first = layer.weight.grad.clone()
    torch.testing.assert_close(first, (2 * value).sum(0).expand(2, 3))
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 4.0))


def test_frozen_weights_have_no_gradient_and_pass_it_on():
    torch.manual_seed(0)
    layer = Linear(3, 2).requires_grad_(False)
    value = torch.randn(4, 3, requires_grad=True)
    with products.recording(products.Tape(1), "fp32"):
        layer(value).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(value.grad, layer.weight.sum(0).expand(4, 3))


@pytest.mark.parametrize("how", ["plain", "recorded"])
def test_bf16_products_are_near_and_added_up_in_float32(how):
    subject = contract.Subject(registry.find("cauchy"))
    exact = gradients(subject, subject.model().float())
    context = {
        "plain": products.precision("bf16"),
        "recorded": products.recording(products.Tape(3), "bf16"),
    }[how]
    near = gradients(subject, subject.model().float(), context)
    assert near[0].dtype == torch.float32
    assert not torch.equal(near[0], exact[0])
    torch.testing.assert_close(near[0], exact[0], rtol=2e-2, atol=1e-2)
    for name, gradient in near[1].items():
        error = (gradient - exact[1][name]).norm() / exact[1][name].norm()
        assert gradient.dtype == torch.float32
        assert error < 0.1, (name, error)


def test_zeros_that_a_state_begins_with_are_not_multiplied():
    lstm = LSTM(4, input=3)
    zeros = torch.zeros(()).expand(5, 4)
    value = torch.randn(5, 3)
    tape = products.Tape(2)
    with products.recording(tape, "fp32"):
        lstm.gates(lstm.bias, input=value, hidden=zeros).sum().backward()
    (kernel,) = tape.kernels.values()
    assert (kernel.zero_calls, kernel.zeros_from) == (1, 1)
    assert not lstm.kernels["hidden"].grad.any()
    torch.testing.assert_close(lstm.kernels["input"].grad, value.sum(0)[:, None].expand(3, 16))


def test_a_cast_weight_is_that_of_now_and_of_this_mode():
    torch.manual_seed(0)
    layer, value = Linear(3, 2), torch.randn(4, 3)
    with products.precision("bf16"):
        with torch.inference_mode():
            first = layer(value).clone()
        layer(value).sum().backward()  # what inference has cast cannot be used here
        assert layer.bias.grad is not None
        with torch.no_grad():
            torch.testing.assert_close(layer(value), first)
            layer.weight.mul_(2)
            torch.testing.assert_close(layer(value), 2 * first)  # the bias is 0
