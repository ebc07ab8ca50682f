"""Every variant keeps every promise, and each promise catches a file that breaks it."""

import textwrap

import pytest

from glas_bench import contract, registry

HEAD = '''
"""A broken idea."""
import torch
from torch import nn
from glas_bench.model import *
from glas_bench.model import Glas

GENERATOR = torch.Generator()

class Idea(Glas):
'''


@pytest.mark.parametrize("name", registry.names())
def test_variant_keeps_the_contract(name):
    findings = contract.check(registry.find(name))
    assert len(findings) == len(contract.PROMISES)
    assert {f.promise: f.problem for f in findings if f.problem} == {}


BROKEN = {
    "declares itself": "bounds_nll = 'perhaps'",
    "splits its parameters": "generative = ('decoder', 'wirte')",
    "returns nats per image": """
        def log_likelihood(self, canvas_BP, target_BP):
            return super().log_likelihood(canvas_BP, target_BP) * float('nan')
    """,
    "charges each row": """
        bounds_nll = False
        def charge(self, q, p, z):
            return q.mean.square()
    """,
    "trains every parameter": """
        def build_generation(self):
            super().build_generation()
            self.write_more = nn.Linear(3, 3)
    """,
    "draws nothing itself": """
        def paint(self, d_BH):
            return self.write(d_BH) + 0.1 * torch.randn(1, dtype=d_BH.dtype)
    """,
    "starts from its seed": """
        def reset_parameters(self):
            super().reset_parameters()
            with torch.no_grad():
                self.latent.copy_(torch.rand(self.latent.shape, generator=GENERATOR))
    """,
    "survives saving": """
        def paint(self, d_BH):
            return self.write(d_BH) * self.factor
        def reset_parameters(self):
            super().reset_parameters()
            self.factor = 1 + float(torch.rand(()))
    """,
    "generates without x": """
        def begin_recognition(self, x):
            self.seen = x
            return super().begin_recognition(x)
        def begin_generation(self, rows):
            if not hasattr(self, 'seen'):
                raise RuntimeError('I need an x')
            return super().begin_generation(rows)
    """,
    "keeps the recogniser out": """
        def begin_recognition(self, x):
            self.seen = x
            return super().begin_recognition(x)
        def begin_generation(self, rows):
            start = super().begin_generation(rows)
            if hasattr(self, 'seen') and len(self.seen) == rows:
                start = start._replace(canvas=start.canvas + self.seen)
            return start
    """,
    "stacks over seeds": """
        def paint(self, d_BH):
            if float(d_BH.sum()) > 1e9:
                return 0 * self.write(d_BH)
            return self.write(d_BH)
    """,
    "scores each image": """
        bounds_nll = False
        def charge(self, q, p, z):
            return super().charge(q, p, z).mean().expand(len(z))
    """,
    "splits its epochs": """
        def phases(self, epochs):
            return (Phase('one', 1), Phase('two', epochs))
    """,
    "fills its statistics": """
        statistics_of = ('moments',)
        def build_recognition(self):
            super().build_recognition()
            self.register_buffer('moments', torch.zeros(self.steps, 2))
        def statistics(self, read_BA):
            return {'moments': torch.zeros(2)}
    """,
}


def problems(folder, body):
    """Return by promise what is wrong with a variant of this body."""
    path = folder / "broken_idea.py"
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n")
    return {f.promise: f.problem for f in contract.check(registry.find(str(path)))}


@pytest.mark.parametrize("promise", contract.PROMISES)
def test_a_broken_variant_is_reported(promise, tmp_path):
    found = problems(tmp_path, BROKEN[promise])
    assert found[promise], f"{promise!r} was not reported: {found}"


def test_a_gradient_that_vmap_loses_is_reported(tmp_path):
    body = """
        def paint(self, d_BH):
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(d_BH)
            return self.write(d_BH.detach() if wrapped else d_BH)
    """
    assert "under vmap differs" in problems(tmp_path, body)["stacks over seeds"]


def test_an_error_names_the_line(tmp_path):
    body = "def attend(self, e_BH, memory, t):\n    return e_BH @ self.missing, memory"
    found = problems(tmp_path, body).values()
    assert any("missing" in (each or "") and "idea.py, line 12" in (each or "") for each in found)
