"""Every variant keeps every promise, and each promise catches a file that breaks it."""

import textwrap

import pytest
from conftest import sets

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
    assert contract.check(registry.find(name)) == dict.fromkeys(contract.PROMISES)


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
    "sums to one": """
        def log_likelihood(self, canvas_BP, target_BP):
            return super().log_likelihood(canvas_BP, target_BP) / self.pixels
    """,
    "weighs by densities": """
        def log_ratio(self, q, p, z):
            return (q.log_prob(z) - p.log_prob(z)).mean(-1)
    """,
    "charges at least the kl": """
        bounds_nll = True
        def charge(self, q, p, z):
            return 0.5 * super().charge(q, p, z)
    """,
    "draws what it weighs": """
        def draw_pixels(self, canvas_BP, noise_BP):
            return (canvas_BP > 0).to(canvas_BP.dtype)
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


def idea(folder, body):
    """Return the file of a variant of this body."""
    path = folder / "idea.py"
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n")
    return path


def problems(folder, body):
    """Return by promise what is wrong with a variant of this body."""
    return contract.check(registry.find(str(idea(folder, body))))


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
    body = "def attend(self, e_BH, memory, t):\n    return e_BH @ self.nowhere, memory"
    found = problems(tmp_path, body).values()
    assert any("nowhere" in (each or "") and "idea.py, line 12" in (each or "") for each in found)


NO_DENSITY = {
    "half": "def log_likelihood(self, c, t): return 0.5 * super().log_likelihood(c, t)",
    "smoothed": "def log_likelihood(self, c, t): return super().log_likelihood(c, 0.9 * t + 0.05)",
    "of real numbers": """
        def log_likelihood(self, c, t):
            return torch.distributions.Normal(c.sigmoid(), 0.3).log_prob(t).sum(-1)
    """,
    "learned": """
        def build_generation(self):
            super().build_generation()
            self.beta = nn.Parameter(torch.ones(()))
        def log_likelihood(self, c, t): return self.beta * super().log_likelihood(c, t)
    """,
    "scoring alone": """
        def log_likelihood(self, c, t):
            return super().log_likelihood(c, t) * (1 if self.training else 0.5)
    """,
    "finish": """
        def finish(self, context, state):
            outcome = super().finish(context, state)
            return outcome._replace(recon=outcome.recon / self.pixels)
    """,
    "ratio zero": "def log_ratio(self, q, p, z): return torch.zeros_like(z[:, 0])",
    "ratio swapped": "def log_ratio(self, q, p, z): return -super().log_ratio(q, p, z)",
    "free bits": """
        def step(self, *inputs):
            state, step = super().step(*inputs)
            return state, step._replace(log_ratio=step.log_ratio.clamp(min=0.1))
    """,
    "wide prior, charged as N(0, 1)": (
        "def prior(self): return Normal(torch.zeros(()), torch.full((), 2.0))"
    ),
    "not normalised": """
        class _Q(Normal):
            def log_prob(self, z): return -0.5 * ((z - self.mean) / self.std).square()
        def posterior(self, read_BA, t): return self._Q(*super().posterior(read_BA, t))
    """,
}
DENSITY = {
    "temperature": "def log_likelihood(self, c, t): return super().log_likelihood(c / 2, t)",
    "clamped": """
        def log_likelihood(self, c, t):
            p = c.sigmoid().clamp(1e-7, 1 - 1e-7)
            return torch.where(t > 0.5, p, 1 - p).log().sum(-1)
    """,
    "wide prior": """
        def prior(self): return Normal(torch.zeros(()), torch.full((), 2.0))
        def charge(self, q, p, z): return self.log_ratio(q, p, z)
    """,
    "own q": """
        class _Q(Normal): pass
        def posterior(self, read_BA, t): return self._Q(*super().posterior(read_BA, t))
    """,
}


LAPLACE = """
    class _Q(Normal):
        def sample(self, noise):
            u = torch.special.ndtr(noise) - 0.5
            return self.mean - self.std * u.sign() * torch.log1p(-2 * u.abs())
        def log_prob(self, z):
            return -(z - self.mean).abs() / self.std - torch.log(2 * self.std)
    def infer(self, context, state, t):
        q, read, recognition = super().infer(context, state, t)
        return self._Q(q.mean, q.std), read, recognition
"""


def test_a_q_of_infer_alone_needs_a_charge_of_its_own(tmp_path):
    """The charge of a Normal is less than the KL of this density."""
    cls = registry.find(str(idea(tmp_path, LAPLACE))).cls
    found = contract.bound(cls, cls.Settings())
    assert found.holds is None
    assert "less than the KL divergence" in found.reason


@pytest.mark.parametrize("name", [*NO_DENSITY, *DENSITY])
def test_only_densities_bound(name, tmp_path):
    body = "bounds_nll = True\n" + textwrap.dedent({**NO_DENSITY, **DENSITY}[name])
    cls = registry.find(str(idea(tmp_path, body))).cls
    assert contract.bound(cls, cls.Settings()).holds is (None if name in NO_DENSITY else True)


def test_what_is_no_density_has_no_rank(glas, tmp_path):
    """`log_likelihood` as a mean: no nll and no bound; `log_ratio` as one: nll by the refit."""
    numbers = {}
    for name in ("sums to one", "weighs by densities"):
        path = idea(tmp_path, BROKEN[name])
        sizes = sets(epochs=1, steps=2, hidden=4, batch=2000, samples=2, images=5)
        end = glas.here(
            "run", "--variant", path, "--preset", "smoke", *sizes, "--no-mirror", "--json"
        )
        assert end.code == 0, end.err
        assert end.json["bounds_nll"] is None
        numbers[name] = end.seeds[0]
    first, second = numbers.values()
    assert {first[n] for n in ("elbo", "iw", "refit_iw", "nll", "failed")} == {None}
    assert second["elbo"] is second["iw"] is None
    assert second["nll"] == second["refit_iw"] > 50
    page = glas.here("report")
    text = (glas.results / "report" / "glas-bench.md").read_text()
    assert page.code == 0
    assert "no log-probability" in text
