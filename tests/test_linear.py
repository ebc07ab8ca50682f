"""Products: recorded against plain ones, for every variant; every backend against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glas_bench import contract, registry
from glas_bench.core import rollout
from glas_bench.model import LSTM, Linear
from glas_bench.ops import linear


def gradients(subject, model, precision=None, **about):
    """Return the objective of a rollout and the gradients of all parameters."""
    noise = subject.noise(model, model.draws)
    labels = subject.labels
    for parameter in model.parameters():
        parameter.grad = None
    x = subject.x.to(next(model.parameters()).dtype)
    with precision or linear.precision("fp32"):
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


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 3) for name in registry.names()), ("cauchy", 1), ("cauchy", 2)]
)
def test_recorded_products_give_the_gradients_of_plain_ones(name, steps):
    """A tape that is too short goes on in pieces."""
    subject = contract.Subject(registry.find(name))
    plain = gradients(subject, subject.model())
    tape = linear.Tape(steps)
    model = subject.model()
    for _ in range(2):  # what the first rollout took is used again
        assert_alike(gradients(subject, model, linear.precision("fp32", tape)), plain)


def test_a_phase_without_generation_trains_recognition_alone():
    subject = contract.Subject(registry.find("fixed-supervised"))
    about = {"generates": False, "auxiliary": type(subject.model()).cross_entropy}
    plain = gradients(subject, subject.model(), **about)
    tape = linear.precision("fp32", linear.Tape(3))
    found = gradients(subject, subject.model(), tape, **about)
    assert_alike(found, plain)
    assert found[1]["decoder.bias"] is None
    assert found[1]["encoder.kernels.x"].any()


def test_a_call_that_nothing_came_of_counts_nothing():
    torch.manual_seed(0)
    layer = Linear(3, 2)
    value = torch.randn(4, 3)
    tape = linear.Tape(3)
    with linear.precision("fp32", tape):
        layer(value)
        layer(2 * value).sum().backward()
        first = layer.weight.grad.clone()
    torch.testing.assert_close(first, (2 * value).sum(0).expand(2, 3))
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 4.0))


def test_frozen_weights_have_no_gradient_and_pass_it_on():
    torch.manual_seed(0)
    layer = Linear(3, 2).requires_grad_(False)
    value = torch.randn(4, 3, requires_grad=True)
    with linear.precision("fp32", linear.Tape(1)):
        layer(value).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(value.grad, layer.weight.sum(0).expand(4, 3))


@pytest.mark.parametrize("tape", [None, linear.Tape(3)], ids=["plain", "recorded"])
def test_bf16_products_are_near_and_added_up_in_float32(tape):
    subject = contract.Subject(registry.find("cauchy"))
    exact = gradients(subject, subject.model().float())
    near = gradients(subject, subject.model().float(), linear.precision("bf16", tape))
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
    tape = linear.Tape(2)
    with linear.precision("fp32", tape):
        lstm.gates(lstm.bias, input=value, hidden=zeros).sum().backward()
    (kernel,) = tape.kernels.values()
    assert (kernel.zero_calls, kernel.zeros_from) == (1, 1)
    assert not lstm.kernels["hidden"].grad.any()
    torch.testing.assert_close(lstm.kernels["input"].grad, value.sum(0)[:, None].expand(3, 16))


def test_a_cast_weight_is_that_of_now_and_of_this_mode():
    torch.manual_seed(0)
    layer, value = Linear(3, 2), torch.randn(4, 3)
    with linear.precision("bf16"):
        with torch.inference_mode():
            first = layer(value).clone()
        layer(value).sum().backward()  # what inference has cast cannot be used here
        assert layer.bias.grad is not None
        with torch.no_grad():
            torch.testing.assert_close(layer(value), first)
            layer.weight.mul_(2)
            torch.testing.assert_close(layer(value), 2 * first)  # the bias is 0


# --------------------------------------------------------------------------- backends

SIZES = st.integers(1, 70)


def close(found, exact, dtype):
    assert found.dtype == dtype
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    scale = exact.abs().max().item() + 1
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=rounding * scale)


PACKED = [each for each in (torch.float32, torch.bfloat16) if linear.has_onednn(each)]
"""What this CPU can multiply packed: bfloat16 takes AVX-512."""


@given(SIZES, SIZES, SIZES, st.sampled_from(PACKED), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_packed_kernel_multiplies_as_any_other(rows, inputs, outputs, dtype, spare):
    torch.manual_seed(rows)
    left = torch.randn(rows, inputs + spare).to(dtype)[:, :inputs]
    kernel = torch.randn(inputs, outputs + spare).to(dtype)[:, :outputs]
    bias, base = torch.randn(outputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    exact = left.double() @ kernel.double()
    packed = linear.Packed(kernel, rows)
    close(packed.multiply(left), exact, dtype)
    close(packed.multiply(left, bias), exact + bias.double(), dtype)
    close(packed.multiply(left, base), exact + base.double(), dtype)
    close(linear.matmul(left, kernel), exact, dtype)
    transposed = linear.Packed(kernel.mT, rows)
    close(transposed.multiply(base), base.double() @ kernel.mT.double(), dtype)


@pytest.mark.parametrize(
    ("shape", "rows", "calls", "dtype", "pays"),
    [
        ((256, 512), 128, 32, torch.float32, True),
        ((256, 512), 128, 32, torch.bfloat16, torch.bfloat16 in PACKED),
        ((256, 512), 128, 31, torch.float32, False),  # its layout would cost more than it saves
        ((256, 511), 128, 32, torch.float32, False),
        ((256, 512), 1025, 32, torch.float32, False),
        ((256, 512), 128, 32, torch.float64, False),  # oneDNN has none
    ],
)
def test_a_kernel_is_packed_where_that_pays(shape, rows, calls, dtype, pays):
    assert linear.Packed.pays(torch.empty(shape, dtype=dtype), rows, calls) == pays


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("base", ["bias", "rows"])
def test_a_recorded_rollout_with_packed_kernels_has_the_gradients_of_float64(precision, base):
    torch.manual_seed(0)
    layer = Linear(256, 512)
    recurrent = Linear(512, 256)
    value = torch.randn(8, 256)
    rows = None if base == "bias" else torch.randn(8, 512)

    def gradients(dtype):
        for one in (layer, recurrent):
            one.to(dtype).zero_grad()
        start = value.detach().to(dtype).requires_grad_()
        now = start
        for _ in range(33):  # one more than the tape expects
            first = layer.bias if rows is None else rows.to(dtype)
            wide = linear.add(first, [(now, layer.weight)], transposed=True)
            now = torch.tanh(recurrent(torch.tanh(wide)))
        now.square().sum().backward()
        weights = [layer.weight.grad, recurrent.weight.grad, recurrent.bias.grad, start.grad]
        return [gradient.double().clone() for gradient in weights]

    exact = gradients(torch.float64)
    tape = linear.Tape(32)
    with linear.precision(precision, tape):
        found = gradients(torch.float32)
    for kernel in tape.kernels.values():
        kind = linear.Packed if kernel.dtype in PACKED else type(None)
        assert [type(packed) for packed in kernel.packed.values()] == [kind] * 2
    allowed = 1e-4 if precision == "fp32" else 0.1
    for mine, true in zip(found, exact, strict=True):
        assert (mine - true).norm() / true.norm() < allowed


def test_rows_may_lie_in_any_way():
    torch.manual_seed(0)
    packed = linear.Packed(kernel := torch.randn(24, 40), 6)
    some = [
        torch.ones(()).expand(6, 24),  # the gradient of a sum
        torch.randn(24).expand(6, 24),
        torch.randn(6, 1).expand(6, 24),
        torch.randn(24, 6).mT,
        torch.randn(6, 48)[:, ::2],
    ]
    for left in some:
        exact = left.double() @ kernel.double()
        close(packed.multiply(left), exact, torch.float32)
        close(linear.matmul(left, kernel), exact, torch.float32)
        base = torch.randn(40).expand(6, 40)
        close(packed.multiply(left, base), exact + base.double(), torch.float32)
