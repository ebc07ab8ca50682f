"""The contract that every variant must keep, as `glas-bench check` and the tests run it.

Each promise is a function of a `Subject` that raises `Broken` with what is wrong. All run in
float64 at tiny sizes on the CPU, in a second or two per variant.
"""

from __future__ import annotations

import inspect
import io
import itertools
import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glas_bench.core import rollout, streams
from glas_bench.likelihood import Bernoulli, Categorical, Likelihood
from glas_bench.model import (
    BaseSettings,
    Bound,
    Glas,
    Normal,
    StandardNormal,
    StandardUniform,
    State,
    Step,
    Terms,
    Uniform,
    matches,
)
from glas_bench.registry import Variant, line_in

PIXELS, CLASSES, IMAGES = 36, 3, 4
FEW_PIXELS = 9
"""Of which all images are gone through."""
SMALL: dict[str, Likelihood] = {"bernoulli": Bernoulli(), "categorical": Categorical(symbols=3)}
"""Likelihoods of `LIKELIHOODS` at tiny size; a variant keeps every promise under each."""
TINY = {"steps": 3, "hidden": 6, "sample_size": 3, "latent_size": 5, "filter_size": 2}


class Broken(Exception):  # noqa: N818 - a finding
    """A variant does not keep a promise."""


class Run(NamedTuple):
    """What a rollout went through."""

    terms: Terms
    steps: list[Step]
    canvas_BP: Tensor  # the last


class Subject:
    """A variant at tiny size, with data of a likelihood and noise."""

    labels = torch.arange(IMAGES) % CLASSES

    def __init__(self, variant: Variant, likelihood: str = "bernoulli") -> None:
        self.variant = variant
        self.likelihood = likelihood
        self.x = _some(SMALL[likelihood], PIXELS)

    @cached_property
    def settings(self) -> BaseSettings:
        """The variant's settings at tiny size."""
        cls = self.variant.cls.Settings
        return cls(**{key: value for key, value in TINY.items() if key in cls.model_fields})

    def model(self, seed: int = 0) -> Glas:
        """Return a new model of this seed, in float64 and training mode."""
        sizes = PIXELS, CLASSES
        likelihood = SMALL[self.likelihood]
        return rollout.build(self.variant.cls, self.settings, *sizes, seed, likelihood).double()

    @staticmethod
    def noise(model: Glas, draws: int = 1, seed: int = 0) -> Tensor:
        """Return noise [T, K, B, Z] in float64."""
        shape = (model.steps, draws, IMAGES, model.noise_size)
        return streams.normal(shape, seed, "contract-noise").double()

    @staticmethod
    def run(model: Glas, x: Tensor, target: Tensor, noise: Tensor) -> Run:
        """Return a rollout."""
        steps: list[Step] = []
        canvas = target

        def trace(t: int, state: State, step: Step) -> None:
            nonlocal canvas
            del t
            steps.append(step)
            canvas = state.generation.canvas

        terms = rollout.rollout(model, x, target, Subject.labels, noise, trace=trace)
        return Run(terms, steps, canvas)

    def scoring(self, model: Glas) -> Glas:
        """Return the model in scoring mode, with frozen statistics."""
        rollout.freeze_statistics(model, self.x, self.labels, self.noise(model))
        return model.eval()


def check(variant: Variant) -> dict[str, str | None]:
    """Return by promise what is wrong with a variant; None where it keeps the promise."""
    subjects = [Subject(variant, name) for name in SMALL]
    found = {}
    for promise, function in PROMISES.items():
        problems = (_problem(function, subject) for subject in subjects)
        found[promise] = next(filter(None, problems), None)
    return found


def _problem(function: Callable[[Subject], Any], subject: Subject) -> str | None:
    """Return why a promise is not kept, or None."""
    where = "" if subject.likelihood == "bernoulli" else "of text: "
    try:
        function(subject)
    except Broken as broken:
        return f"{where}{broken}"
    except Exception as error:  # any error of a variant's code is a finding
        path = subject.variant.path
        line = line_in(error, path)
        place = f" ({path.name}, line {line})" if line else ""
        return f"{where}{type(error).__name__}: {error}{place}"
    return None


def _some(likelihood: Likelihood, pixels: int) -> Tensor:
    """Return seeded images [B, P], float64; of binary ones four pixels in ten are ink.

    With most seeds the original's bare grid, which multiplies rows by 1000, overflows at tiny size.
    """
    seed = 0 if likelihood.name == "bernoulli" else 2
    generator = streams.generator(seed, "contract")
    uniform = torch.rand(IMAGES, pixels, generator=generator, dtype=torch.float64)
    return likelihood.draw(torch.full_like(uniform, 0.4).logit(), torch.special.ndtri(uniform))


def _require(condition: object, problem: str) -> None:
    if not condition:
        raise Broken(problem)


def _same(a: Terms, b: Terms, problem: str) -> None:
    """Require the same terms, to the bit; the problem follows the name of a term."""
    for name, value in a._asdict().items():
        _require(torch.equal(value, getattr(b, name)), f"{name} {problem}")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


# --------------------------------------------------------------------------- the promises


def declares_itself(subject: Subject) -> None:
    """It has a docstring, settings with charge_weight, and class attributes of the right types."""
    cls = subject.variant.cls
    _require(subject.variant.docstring, "the file has no docstring that describes the change")
    _require(
        inspect.isclass(cls.Settings) and issubclass(cls.Settings, BaseSettings),
        f"Settings must be a subclass of glas_bench.model.BaseSettings, got {cls.Settings!r}",
    )
    _require(cls.bounds_nll in (True, False, None), "bounds_nll must be True, False or None")
    for field in ("has_density", "needs_labels", "latent_trained"):
        value = getattr(cls, field)
        _require(isinstance(value, bool), f"{field} must be True or False, got {value!r}")
    _require(isinstance(cls.draws, int) and cls.draws >= 1, "draws must be a whole number >= 1")


def splits_its_parameters(subject: Subject) -> None:
    """It has generative parameters, and every prefix in `generative` matches some."""
    model = subject.model()
    names = [name for name, _ in model.named_parameters()]
    _require(names, "it has no parameters")
    for prefix in model.generative:
        _require(
            any(matches(name, (prefix,)) for name in names),
            f"generative names {prefix!r}, but no parameter begins with it; there are "
            f"{', '.join(sorted({name.partition('.')[0] for name in names}))}",
        )


def returns_nats_per_image(subject: Subject) -> None:
    """Every term has shape [K, B] and no NaN; recon, charge and aux are finite."""
    model = subject.model()
    draws = max(model.draws, 2)
    terms = subject.run(model, subject.x, subject.x, subject.noise(model, draws)).terms
    for name, value in terms._asdict().items():
        _require(not value.isnan().any(), f"{name} is not a number")
        _require(name == "log_ratio" or value.isfinite().all(), f"{name} is not finite")
    objective = model.objective(terms)
    shape = list(objective.shape)
    _require(shape == [IMAGES], f"objective must have shape [B] = [{IMAGES}], got {shape}")
    _require(objective.isfinite().all(), "the objective is not finite")


def charges_each_row(subject: Subject) -> None:
    """charge and log_ratio return one number per row at every step: the rollout refuses others."""
    model = subject.model()
    subject.run(model, subject.x, subject.x, subject.noise(model))


def trains_every_parameter(subject: Subject) -> None:
    """Every parameter that a phase trains gets a finite gradient that is not all zero."""
    reached: set[str] = set()
    trained: set[str] = set()
    for phase in subject.model().phases(10):
        model = subject.model()
        noise = subject.noise(model, model.draws)
        x, labels = subject.x, subject.labels
        terms = rollout.rollout(
            model, x, x, labels, noise, generates=phase.generates, auxiliary=phase.auxiliary
        )
        objective = phase.objective(model, terms) if phase.objective else model.objective(terms)
        objective.mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if matches(name, phase.frozen):
                continue
            trained.add(name)
            if parameter.grad is not None:
                _require(parameter.grad.isfinite().all(), f"gradient of {name} is not finite")
                if (parameter.grad != 0).any():
                    reached.add(name)
    _require(trained == reached, f"no gradient reaches {', '.join(sorted(trained - reached))}")


def draws_nothing_itself(subject: Subject) -> None:
    """It is a function of (parameters, x, noise), without randomness or memory of its own."""
    model = subject.model()
    noise = subject.noise(model)
    before = torch.get_rng_state()
    first, second = (subject.run(model, subject.x, subject.x, noise).terms for _ in range(2))
    _require(
        torch.equal(before, torch.get_rng_state()),
        "it draws random numbers; all randomness must come from the noise it is given",
    )
    _same(first, second, "differs between two calls with the same arguments")


def starts_from_its_seed(subject: Subject) -> None:
    """A seed fixes the initial parameters, and another seed gives others."""
    first, second, other = subject.model(0), subject.model(0), subject.model(1)
    for name, value in first.state_dict().items():
        same = torch.equal(value, second.state_dict()[name])
        _require(same, f"{name} differs between two models of the same seed")
    differs = any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())
    _require(differs, "two seeds give the same initial parameters")


def survives_saving(subject: Subject) -> None:
    """Its state, saved and loaded weights-only, gives a model of another seed the same bits."""
    model, other = subject.scoring(subject.model(0)), subject.model(1).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    noise = subject.noise(model)
    a, b = (subject.run(each, subject.x, subject.x, noise).terms for each in (model, other))
    _same(a, b, "changes: it depends on something that is neither a parameter nor a buffer")


def generates_without_x(subject: Subject) -> None:
    """The prior and the generative half alone give a finite canvas [B, P]."""
    model = subject.scoring(subject.model())
    z_TBZ = rollout.sample_prior(model, subject.noise(model)[:, 0])
    canvas = rollout.generate(model, z_TBZ)
    _require(
        tuple(canvas.shape) == (IMAGES, PIXELS),
        f"a generated canvas must be [B, P] = {[IMAGES, PIXELS]}, got {list(canvas.shape)}",
    )
    _require(canvas.isfinite().all(), "a generated canvas is not finite")


def keeps_the_recogniser_out(subject: Subject) -> None:
    """log p(x|z) depends on z, the target and the generative parameters only, to the bit."""
    model = subject.scoring(subject.model())
    noise = subject.noise(model)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not model.is_generative(name):
                parameter.add_(0.05 * streams.normal(tuple(parameter.shape), 0, name))
        seen = subject.run(model, 1 - subject.x, subject.x, noise)
        model.load_state_dict(kept)
        subject.run(model, subject.x, subject.x, noise)
        alone = rollout.generate(model, torch.stack([step.z for step in seen.steps]))
        recon = -model.log_likelihood(alone, subject.x)
    _require(
        torch.equal(alone, seen.canvas_BP),
        "the canvas is not a function of z and the generative parameters only: perturbing the "
        "recogniser's parameters or its x with z fixed changes it; see `generative`",
    )
    _require(
        torch.equal(recon, seen.terms.recon[0]),
        "recon is not -log p(x|z) of the canvas that z generates",
    )


def stacks_over_seeds(subject: Subject) -> None:
    """vmap over stacked seeds gives the values and gradients of the loop over them."""
    models = [subject.model(seed) for seed in (0, 1)]
    noise = torch.stack(
        [subject.noise(model, model.draws, seed=seed) for seed, model in enumerate(models)]
    )
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = subject.model()

    def objective(model: Glas, noise_TKBZ: Tensor) -> Tensor:
        terms = rollout.rollout(model, subject.x, subject.x, subject.labels, noise_TKBZ)
        return model.objective(terms).mean()

    program = rollout.Program(skeleton, objective)

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], noise: Tensor) -> Tensor:
        tensors = {f"model.{key}": value for key, value in {**parameters, **buffers}.items()}
        result: Tensor = torch.func.functional_call(program, tensors, (noise,))
        return result

    stacked = torch.func.vmap(torch.func.grad_and_value(one))(parameters, buffers, noise)
    for seed, model in enumerate(models):
        alone = objective(model, noise[seed])
        alone.backward()  # type: ignore[no-untyped-call]
        _require(
            _close(stacked[1][seed], alone), "the objective under vmap differs from the loop's"
        )
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            same = _close(stacked[0][name][seed], gradient)
            _require(same, f"the gradient of {name} under vmap differs from the loop's")


def scores_each_image(subject: Subject) -> None:
    """In scoring, an image's terms do not depend on the other images and draws of the batch."""
    model = subject.scoring(subject.model())
    noise = subject.noise(model, draws=2)
    whole = subject.run(model, subject.x, subject.x, noise).terms
    for draw, image in itertools.product(range(2), range(IMAGES)):
        rows = slice(image, image + 1)
        x, labels = subject.x[rows], subject.labels[rows]
        part = rollout.rollout(model, x, x, labels, noise[:, draw : draw + 1, rows])
        for name, value in part._asdict().items():
            same = _close(value[0, 0], getattr(whole, name)[draw, image])
            _require(same, f"{name} of an image depends on the rest of the batch")


def sums_to_one(subject: Subject) -> None:
    """exp log_likelihood sums to 1 over all images, and recon is -log_likelihood."""
    if problem := likelihood_problem(subject.variant.cls, subject.settings, subject.likelihood):
        raise Broken(problem)


def weighs_by_densities(subject: Subject) -> None:
    """log_ratio is log q/p of two densities, of which z is drawn."""
    if problem := ratio_problem(subject.variant.cls, subject.settings):
        raise Broken(problem)


def charges_at_least_the_kl(subject: Subject) -> None:
    """Where the objective is declared a bound, its charge is KL(q || p) or more."""
    if problem := charge_problem(subject.variant.cls, subject.settings):
        raise Broken(problem)


def draws_what_it_weighs(subject: Subject) -> None:
    """Images of draw_pixels have the probabilities of log_likelihood."""
    if problem := draw_problem(subject.variant.cls, subject.settings, subject.likelihood):
        raise Broken(problem)


def splits_its_epochs(subject: Subject) -> None:
    """The epochs of its phases add up to all epochs, and their names differ."""
    model = subject.model()
    for epochs in (1, 2, 10, 250):
        phases = model.phases(epochs)
        total = sum(phase.epochs for phase in phases)
        _require(total == epochs, f"its phases add up to epochs={total}, expected {epochs}")
        names = {phase.name for phase in phases}
        _require(len(names) == len(phases), "two of its phases have the same name")


def fills_its_statistics(subject: Subject) -> None:
    """Every name in `statistics_of` is a buffer [T, ...] that a pass fills."""
    model = subject.model()
    for name in model.statistics_of:
        buffer = dict(model.named_buffers()).get(name)
        _require(buffer is not None, f"statistics_of names {name!r}, but there is no such buffer")
        assert buffer is not None
        right = buffer.shape[:1] == (model.steps,)
        _require(right, f"buffer {name} must be [T, ...], got {list(buffer.shape)}")
    before = {name: model.get_buffer(name).clone() for name in model.statistics_of}
    subject.scoring(model)
    for name, value in before.items():
        changed = not torch.equal(value, model.get_buffer(name))
        _require(changed, f"a pass over training images leaves {name} unchanged")


# --------------------------------------------------------------------------- densities


def bound(cls: type[Glas], settings: BaseSettings, likelihood: str = "bernoulli") -> Bound:
    """Return `cls.bound(settings)`; not shown where a density of its own is none.

    Neither is it where the charge is less than the KL divergence.
    """
    declared = cls.bound(settings)
    problem = likelihood_problem(cls, settings, likelihood) or ratio_problem(cls, settings)
    problem = problem or charge_problem(cls, settings)
    return declared if problem is None or declared.holds is False else Bound(None, problem)


_MAKE_Q_AND_P = ("step", "infer", "posterior", "prior")
"""Methods of `Glas` that make q and p."""


def _overrides(cls: type[Glas], *names: str) -> bool:
    """Return whether a class has its own of any of these methods of `Glas`."""
    return any(getattr(cls, name) is not getattr(Glas, name) for name in names)


def likelihood_problem(
    cls: type[Glas], settings: BaseSettings, likelihood: str = "bernoulli"
) -> str | None:
    """Return why log_likelihood is no log-probability for this kind of data; None where it is."""
    if not _overrides(cls, "log_likelihood", "finish"):
        return None
    return _problem_of(_check_likelihood, cls, settings, likelihood)  # type: ignore[arg-type]


def ratio_problem(cls: type[Glas], settings: BaseSettings) -> str | None:
    """Return why log_ratio is not log q/p of densities; None where it is, or q has none."""
    if not _overrides(cls, "log_ratio", *_MAKE_Q_AND_P) or not cls.has_density:
        return None
    return _problem_of(_check_ratio, cls, settings, "bernoulli")  # type: ignore[arg-type]


def charge_problem(cls: type[Glas], settings: BaseSettings) -> str | None:
    """Return why the charge does not make a declared bound; None where it does or is not checked.

    Not checked: an objective of its own, and what charges and infers as `Glas` does.
    """
    changed = _overrides(cls, "charge", "log_ratio", *_MAKE_Q_AND_P)
    if not changed or not cls.has_density or _overrides(cls, "objective"):
        return None
    if cls.bound(settings).holds is not True:
        return None
    return _problem_of(_check_charge, cls, settings, "bernoulli")  # type: ignore[arg-type]


def draw_problem(
    cls: type[Glas], settings: BaseSettings, likelihood: str = "bernoulli"
) -> str | None:
    """Return why draw_pixels does not draw from log_likelihood; None where it does."""
    if not _overrides(cls, "log_likelihood", "draw_pixels"):
        return None
    return _problem_of(_check_draws, cls, settings, likelihood)  # type: ignore[arg-type]


@cache
def _problem_of(
    check: Callable[[Glas], str | None], cls: Any, settings: Any, likelihood: str
) -> str | None:
    """Return what a check finds of a tiny model with these settings."""
    most = {name: 3 for name in cls.Settings.model_fields if name.endswith("_size")}
    most |= {"steps": 3, "hidden": 6}
    fields = settings.model_dump()
    fields |= {name: min(fields[name], size) for name, size in most.items() if name in fields}
    try:
        sizes = FEW_PIXELS, CLASSES
        model = rollout.build(cls, cls.Settings(**fields), *sizes, 0, SMALL[likelihood]).double()
        with torch.no_grad():
            return check(model)
    except Exception as error:  # any error of a variant's code
        return f"its densities could not be checked: {type(error).__name__}: {error}"


def _trial(model: Glas, draws: int) -> tuple[Run, Tensor]:
    """Run a model of few pixels; return that and its images."""
    x_BP, noise = _some(model.likelihood, FEW_PIXELS), Subject.noise(model, draws, seed=1)
    rollout.freeze_statistics(model, x_BP, Subject.labels, noise[:, :1])
    return Subject.run(model, x_BP, x_BP, noise), x_BP


def _perturb(model: Glas, by: float, times: float = 1) -> None:
    """Move all parameters a little: a learned scale may be 1 at the start only."""
    for name, parameter in model.named_parameters():
        parameter.mul_(times).add_(by * streams.normal(tuple(parameter.shape), 0, name))


def _check_likelihood(model: Glas) -> str | None:
    """Sum exp log p(x|z) over all images, in training and in scoring."""
    _perturb(model, 0.1)
    every = model.likelihood.outcomes(FEW_PIXELS)
    random = 2 * streams.normal((IMAGES, FEW_PIXELS), 0, "contract").double()
    for training in (True, False):
        run, x_BP = _trial(model.train(training), 1)
        if not _close(run.terms.recon[0], -model.log_likelihood(run.canvas_BP, x_BP)):
            return "recon is not -log_likelihood of the last canvas and the image"
        canvas_BP = random.repeat_interleave(len(every), 0)
        log_p = model.log_likelihood(canvas_BP, every.repeat(IMAGES, 1))
        sums = log_p.reshape(IMAGES, -1).exp().sum(1)
        worst = float(sums[sums.log().abs().nan_to_num(torch.inf).argmax()])
        if not abs(worst - 1) < 1e-4:  # .01 nats at 784 pixels
            return (
                f"log_likelihood is no log-probability: its exp sums to {worst:.4g} over all "
                f"{len(every)} {model.likelihood.unit}s of {FEW_PIXELS} numbers, not to 1; a mean "
                "over pixels, or another loss, is none"
            )
    return None


def _check_ratio(model: Glas) -> str | None:
    """Compare E_q[p/q f] with E_p[f] where q > 0, and E_p[q/p f] with E_q[f] where p > 0."""
    p, draws, wild = model.eval().prior(), 2000, True
    steps = _trial(model, 1)[0].steps
    cls, known = type(model), (Normal, StandardNormal, Uniform, StandardUniform)
    if not _overrides(cls, "log_ratio", "step") and all(
        type(each) in known for each in (p, *(step.q for step in steps))
    ):
        return None
    for _ in range(12):  # until q differs from p, but not so much that a mean is blind
        steps = _trial(model, draws)[0].steps
        ratios = torch.stack([step.log_ratio for step in steps]).clamp(-9, 9)
        wild = not all((step.z.abs() < 30).all() for step in steps)
        if not wild and float(ratios.std()) > 0.3:
            break
        _perturb(model, 0 if wild else 0.1, 0.5 if wild else 1)
    if wild:
        return "log_ratio could not be checked: z is too large"
    shape = (model.steps, draws * IMAGES, model.noise_size)
    for step, noise in zip(steps, streams.normal(shape, 2, "contract-noise"), strict=True):
        z_q, z_p = step.z, p.sample(noise.double())
        back = model.log_ratio(step.q, p, z_p)
        if not _close(step.log_ratio, model.log_ratio(step.q, p, z_q)):
            return "the log_ratio of a step is not that of its q, the prior and its z"
        for power in (0, 1, 2):
            f_q, f_p = (z.pow(power).mean(-1) for z in (z_q, z_p))
            pairs = (
                ((-step.log_ratio).exp() * f_q, (back > -torch.inf) * f_p),
                (back.exp() * f_p, (step.log_ratio < torch.inf) * f_q),
            )
            # One of the two ways may have no variance.
            if not min(_errors_apart(*pair) for pair in pairs) < 6:
                got, expected = (float(each.mean()) for each in pairs[0])
                return (
                    "log_ratio is not log q/p of densities that z is drawn from: the mean of "
                    f"p/q z^{power} over q is {got:.4g}, not {expected:.4g}; a mean over "
                    "dimensions is none"
                )
    return None


def _check_charge(model: Glas) -> str | None:
    """Compare the charge with E_q[log q/p], moving q from p until that is a nat or more."""
    weight, draws = model.settings.charge_weight, 2000
    for _ in range(12):
        steps = _trial(model.eval(), draws)[0].steps
        charge_R = weight * torch.stack([step.charge for step in steps]).sum(0)
        ratio_R = torch.stack([step.log_ratio for step in steps]).sum(0)
        less_R = ratio_R - charge_R
        if not less_R.isfinite().all():
            return None  # infinite where q leaves the prior, of which `ratio_problem` takes care
        error = float(less_R.std()) / math.sqrt(less_R.numel())
        if float(less_R.mean()) > 6 * error + 1e-9:
            return (
                f"its charge is less than the KL divergence that a bound takes: "
                f"{float(charge_R.mean()):.3g} nats, where log q/p is "
                f"{float(ratio_R.mean()):.3g} +- {error:.2g} on average"
            )
        if float(ratio_R.mean()) > 1:
            break
        _perturb(model, 0.1)
    return None


def _check_draws(model: Glas) -> str | None:
    """Compare drawn images with the probabilities of all images: pixels, and pairs of pixels."""
    _perturb(model, 0.1)
    every_EP = model.eval().likelihood.outcomes(FEW_PIXELS)
    canvas_1P = streams.normal((1, FEW_PIXELS), 0, "contract").double()
    p_E = model.log_likelihood(canvas_1P.expand(len(every_EP), -1), every_EP).exp()
    normals = streams.normal((4000, FEW_PIXELS), 1, "contract").double()
    x_RP = model.draw_pixels(canvas_1P.expand(len(normals), -1), normals)
    for shift in range(FEW_PIXELS):
        one, both = (each * each.roll(shift, 1) for each in (x_RP, every_EP))
        expected_P = (p_E[:, None] * both).sum(0)
        spread_P = (p_E[:, None] * (both - expected_P) ** 2).sum(0).sqrt()
        apart_P = (one.mean(0) - expected_P).abs()
        if (apart_P > 6 * spread_P / math.sqrt(len(normals)) + 1e-3).any():
            return (
                "draw_pixels does not draw from log_likelihood: pixels of its images, or pairs of "
                f"them, are off by {float(apart_P.max()):.3f} on average"
            )
    return None


def _errors_apart(a: Tensor, b: Tensor) -> float:
    """Return by how many standard errors the means of two independent samples differ."""
    error = math.sqrt(float(a.var() + b.var()) / len(a))
    return float((a.mean() - b.mean()).abs()) / (error + 1e-9)


PROMISES: dict[str, Callable[[Subject], Any]] = {
    function.__name__.replace("_", " "): function
    for function in (
        declares_itself,
        splits_its_parameters,
        returns_nats_per_image,
        charges_each_row,
        trains_every_parameter,
        draws_nothing_itself,
        starts_from_its_seed,
        survives_saving,
        generates_without_x,
        keeps_the_recogniser_out,
        stacks_over_seeds,
        scores_each_image,
        sums_to_one,
        weighs_by_densities,
        charges_at_least_the_kl,
        draws_what_it_weighs,
        splits_its_epochs,
        fills_its_statistics,
    )
}
