"""Gradients of weights from one product over all steps, against autograd's own in float64."""

import torch
from test_model import make, normals

from glas_bench.core import rollout
from glas_bench.core.stack import Rollout, Stack
from glas_bench.model import Glas, Linear
from glas_bench.ops import linear


class Recurrent(Glas):
    """A layer used twice a step, and a call of which one kernel is a parameter and one is not."""

    def build_recognition(self):
        super().build_recognition()
        self.twice = Linear(9, 9)
        self.scale = torch.nn.Parameter(torch.ones(9, 9))

    def attend(self, e_BH, memory, t):
        read, memory = super().attend(e_BH, memory, t)
        read = self.twice(torch.tanh(self.twice(read)))
        return linear.add(read, [(read, 2 * self.scale), (read, self.scale)]), memory


def test_deferred_gradients_are_those_of_autograd():
    models = [make(Recurrent, seed, steps=4, hidden=4, filter_size=3) for seed in (0, 1, 2)]
    for model in models:
        for name in ("encoder.kernels.error", "decoder.bias"):
            model.get_parameter(name).requires_grad_(False)
    x = (normals(3, 5, 9) > 0).double()
    noise = normals(3, 4, 2, 5, models[0].noise_size)
    stack = Stack(models)
    trained = {name: each for name, each in stack.parameters.items() if each.requires_grad}
    run = Rollout(stack, defers=True)
    objective = stack.call(lambda model, terms: model.objective(terms).mean())
    value = objective(stack.tensors, run(stack.tensors, x, None, noise)).sum()
    found = run.gradients(value, trained)

    calls = [call and (call.kernels, call.bias) for call in run.calls]
    twice = (("twice.weight",), "twice.bias")
    encoder = tuple(f"encoder.kernels.{name}" for name in ("error", "decoder", "hidden"))
    assert calls[0] == (encoder, None)  # its base holds a row for each image
    assert calls[2:5] == [twice, twice, None]
    for i, model in enumerate(models):
        terms = rollout.rollout(model, x[i], x[i], None, noise[i])
        model.objective(terms).mean().backward()
        for name in trained:
            exact = model.get_parameter(name).grad
            torch.testing.assert_close(found[name][i], exact, rtol=1e-10, atol=1e-10)
