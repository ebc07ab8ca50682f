"""Gradients of weights from one product over all steps, against autograd's own in float64."""

import torch

from glas_bench.model import LSTM, Linear
from glas_bench.ops import deferral, linear

SEEDS, STEPS, ROWS = 3, 4, 5


class Recurrent(torch.nn.Module):
    """A layer used twice a step, a kernel that is no parameter, a base that is one of rows."""

    def __init__(self):
        super().__init__()
        self.lstm = LSTM(4, input=3)
        self.twice = Linear(4, 4)
        self.scale = torch.nn.Parameter(torch.ones(4, 3))

    def forward(self, value, hidden, cell):
        value = torch.tanh(linear.add(value, [(hidden, 2 * self.scale)]))
        gates = self.lstm.gates(self.lstm.bias, input=value, hidden=self.twice(hidden))
        hidden, cell = self.lstm(gates, cell)
        return self.twice(hidden), cell


def test_deferred_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    layer = Recurrent().double()
    names = dict(layer.named_parameters())
    stacks = {name: torch.randn(SEEDS, *p.shape).double() for name, p in names.items()}
    for stack in stacks.values():
        stack.requires_grad_()
    value = torch.randn(SEEDS, ROWS, 3).double()
    start = torch.randn(2, SEEDS, ROWS, 4).double()
    trained = {name: stack for name, stack in stacks.items() if name != "lstm.kernels.input"}

    def run(step):
        hidden, cell = start
        for _ in range(STEPS):
            hidden, cell = step(hidden, cell)
        return (hidden * start[0]).sum()

    def plain(tensors, value, hidden, cell):
        return torch.func.functional_call(layer, tensors, (value, hidden, cell))

    mapped = torch.func.vmap(plain)
    loss = run(lambda hidden, cell: mapped(stacks, value, hidden, cell))
    exact = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    calls = deferral.list_calls(lambda: layer(value[0], *start[:, 0]), names)
    assert [call and (call.kernels, call.bias) for call in calls] == [
        None,
        (("twice.weight",), "twice.bias"),
        (("lstm.kernels.input", "lstm.kernels.hidden"), "lstm.bias"),
        (("twice.weight",), "twice.bias"),
    ]
    kernels = deferral.stacked_kernels(calls, stacks, None)
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    all_given, all_taps = [], []

    def deferred(tensors, kernels, taps, value, hidden, cell):
        of_step = deferral.Deferral(calls, kernels, taps)
        with linear.precision("fp32", of_step.add):
            return plain(tensors, value, hidden, cell), of_step.given

    def step(hidden, cell):
        taps = [zero.expand(SEEDS, call.rows, call.out) for call in calls if call]
        state, given = torch.func.vmap(deferred)(stacks, kernels, taps, value, hidden, cell)
        all_given.append(given)
        all_taps.append(taps)
        return state

    loss = run(step)
    taps = [tap for of_step in all_taps for tap in of_step]
    made = torch.autograd.grad(loss, [*trained.values(), *taps], allow_unused=True)
    early = dict(zip(trained, made, strict=False))
    left = iter(made[len(trained) :])
    arrived = [[next(left) for _ in of_step] for of_step in all_taps]
    late = deferral.gradients(calls, trained, all_given, arrived)
    assert set(late) == {"twice.weight", "twice.bias", "lstm.kernels.hidden", "lstm.bias"}
    assert {name for name, gradient in early.items() if gradient is not None} == {"scale"}
    for name, gradient in exact.items():
        torch.testing.assert_close(late.get(name, early[name]), gradient, rtol=1e-10, atol=1e-10)
