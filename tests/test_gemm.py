"""Products by oneDNN's own layout and by numpy, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glas_bench.model import Linear
from glas_bench.ops import gemm, products

SIZES = st.integers(1, 70)


def close(found, exact, dtype):
    assert found.dtype == dtype
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    scale = exact.abs().max().item() + 1
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=rounding * scale)


@given(SIZES, SIZES, SIZES, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_packed_kernel_multiplies_as_any_other(rows, inputs, outputs, dtype, spare):
    torch.manual_seed(rows)
    left = torch.randn(rows, inputs + spare).to(dtype)[:, :inputs]
    kernel = torch.randn(inputs, outputs + spare).to(dtype)[:, :outputs]
    bias, base = torch.randn(outputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    exact = left.double() @ kernel.double()
    packed = gemm.Packed(kernel, rows)
    close(packed.multiply(left), exact, dtype)
    close(packed.multiply(left, bias), exact + bias.double(), dtype)
    close(packed.multiply(left, base), exact + base.double(), dtype)
    close(gemm.matmul(left, kernel), exact, dtype)
    transposed = gemm.Packed(kernel.mT, rows)
    close(transposed.multiply(base), base.double() @ kernel.mT.double(), dtype)


@pytest.mark.parametrize(
    ("shape", "rows", "calls", "dtype", "pays"),
    [
        ((256, 512), 128, 32, torch.float32, True),
        ((256, 512), 128, 32, torch.bfloat16, True),
        ((256, 512), 128, 31, torch.float32, False),  # its layout would cost more than it saves
        ((256, 511), 128, 32, torch.float32, False),
        ((256, 512), 1025, 32, torch.float32, False),
        ((256, 512), 128, 32, torch.float64, False),  # oneDNN has none
    ],
)
def test_a_kernel_is_packed_where_that_pays(shape, rows, calls, dtype, pays):
    assert gemm.Packed.pays(torch.empty(shape, dtype=dtype), rows, calls) == pays


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
            wide = products.add(first, [(now, layer.weight)], transposed=True)
            now = torch.tanh(recurrent(torch.tanh(wide)))
        now.square().sum().backward()
        weights = [layer.weight.grad, recurrent.weight.grad, recurrent.bias.grad, start.grad]
        return [gradient.double().clone() for gradient in weights]

    exact = gradients(torch.float64)
    tape = products.Tape(32)
    with products.recording(tape, precision):
        found = gradients(torch.float32)
    for kernel in tape.kernels.values():
        assert [type(packed) for packed in kernel.packed.values()] == [gemm.Packed] * 2
    allowed = 1e-4 if precision == "fp32" else 0.1
    for mine, true in zip(found, exact, strict=True):
        assert (mine - true).norm() / true.norm() < allowed


def test_rows_may_lie_in_any_way():
    torch.manual_seed(0)
    packed = gemm.Packed(kernel := torch.randn(24, 40), 6)
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
        close(gemm.matmul(left, kernel), exact, torch.float32)
        base = torch.randn(40).expand(6, 40)
        close(packed.multiply(left, base), exact + base.double(), torch.float32)
