"""What every variant must satisfy: behind `glas-bench check` and the tests, without pytest.

Each check is a function of a `Subject`, named as the promise that it holds a variant to; it
raises `Broken` with what is wrong. All run in float64 at tiny sizes, on the CPU, in a second or
two a variant. A new file is checked by all of them with no edit anywhere. The file is as long as
the list of promises.
"""

from __future__ import annotations

import inspect
import io
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glas_bench.core import rollout, streams
from glas_bench.model import BaseSettings, Glas, State, Step, Terms, matches
from glas_bench.registry import Variant

PIXELS, CLASSES, IMAGES = 36, 3, 4
TINY = {"steps": 3, "hidden": 6, "sample_size": 3, "latent_size": 5, "filter_size": 2}


class Broken(Exception):  # noqa: N818 - a finding
    """A promise that a variant does not keep."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    promise: str
    problem: str | None  # None: kept


@dataclass(frozen=True)
class Run:
    """A rollout with what it went through."""

    terms: Terms
    z_TBZ: Tensor
    canvas_BP: Tensor


class Subject:
    """A variant at tiny size with data and noise to try it on."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        generator = streams.generator(0, "contract")
        uniform = torch.rand(IMAGES, PIXELS, generator=generator, dtype=torch.float64)
        self.x = (uniform < 0.4).double()
        self.labels = torch.arange(IMAGES) % CLASSES

    @cached_property
    def settings(self) -> BaseSettings:
        """The variant's settings at tiny size, or its defaults where it allows no other."""
        cls = self.variant.cls.Settings
        return cls(**{key: value for key, value in TINY.items() if key in cls.model_fields})

    def model(self, seed: int = 0) -> Glas:
        """Return a fresh model of this seed, in float64 and training mode."""
        return rollout.build(self.variant.cls, self.settings, PIXELS, CLASSES, seed).double()

    def noise(self, model: Glas, draws: int = 1, images: int = IMAGES, seed: int = 0) -> Tensor:
        """Return noise [T, K, B, Z] in float64."""
        shape = (model.steps, draws, images, model.noise_size)
        return streams.normal(shape, seed, "contract-noise").double()

    def run(self, model: Glas, x: Tensor, target: Tensor, noise: Tensor) -> Run:
        """Run a rollout and keep its latents and last canvas."""
        z: list[Tensor] = []
        canvas: list[Tensor] = []

        def trace(t: int, state: State, step: Step) -> None:
            del t
            z.append(step.z)
            canvas.append(state.generation.canvas)

        terms = rollout.rollout(model, x, target, self.labels, noise, trace=trace)
        return Run(terms, torch.stack(z), canvas[-1])

    def scoring(self, model: Glas) -> Glas:
        """Return the model in scoring mode, its running statistics frozen."""
        rollout.freeze_statistics(model, self.x, self.labels, self.noise(model))
        return model.eval()


def check(variant: Variant) -> list[Finding]:
    """Hold a variant to every promise; one finding each, in order."""
    subject = Subject(variant)
    findings = []
    for promise, function in PROMISES.items():
        try:
            function(subject)
            problem = None
        except Broken as broken:
            problem = str(broken)
        except Exception as error:  # whatever a variant's code raises is a finding about it
            problem = f"{type(error).__name__}: {error}{_where(error, variant.path)}"
        findings.append(Finding(promise, problem))
    return findings


def _where(error: Exception, path: Path) -> str:
    """Return the last line of the variant's own file in the traceback, if it is in it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    return f" ({path.name}, line {lines[-1]})" if lines else ""


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise Broken(problem)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


# --------------------------------------------------------------------------- the promises


def tells_itself(subject: Subject) -> None:
    """It has a docstring, settings that know charge_weight, and a known answer on its bound."""
    cls = subject.variant.cls
    _need(bool(subject.variant.docstring), "the file has no docstring saying what changes")
    _need(
        inspect.isclass(cls.Settings) and issubclass(cls.Settings, BaseSettings),
        f"Settings must be a subclass of glas_bench.model.BaseSettings, got {cls.Settings!r}",
    )
    _need(cls.bounds_nll in (True, False, None), "bounds_nll must be True, False or None")
    for field in ("has_density", "needs_labels", "latent_trained"):
        value = getattr(cls, field)
        _need(isinstance(value, bool), f"{field} must be True or False, got {value!r}")
    _need(isinstance(cls.draws, int) and cls.draws >= 1, "draws must be a whole number >= 1")


def divides_its_parameters(subject: Subject) -> None:
    """It has generative parameters, and every declared prefix names some."""
    model = subject.model()
    names = [name for name, _ in model.named_parameters()]
    _need(bool(names), "it has no parameters")
    for prefix in model.generative:
        _need(
            any(matches(name, (prefix,)) for name in names),
            f"generative names {prefix!r}, but no parameter begins so; there are "
            f"{', '.join(sorted({name.partition('.')[0] for name in names}))}",
        )


def gives_nats_per_image(subject: Subject) -> None:
    """Every term has shape [K, B] and no NaN; recon, charge and aux are finite."""
    model = subject.model()
    draws = max(model.draws, 2)
    terms = subject.run(model, subject.x, subject.x, subject.noise(model, draws)).terms
    for name, value in terms._asdict().items():
        _need(not bool(value.isnan().any()), f"{name} is not a number")
        _need(name == "log_ratio" or bool(value.isfinite().all()), f"{name} is not finite")
    objective = model.objective(terms)
    _need(
        tuple(objective.shape) == (IMAGES,),
        f"objective must have shape [B] = [{IMAGES}], got {list(objective.shape)}",
    )
    _need(bool(objective.isfinite().all()), "the objective is not finite")


def charges_rows_apart(subject: Subject) -> None:
    """charge and log_ratio give one number a row at every step."""
    model = subject.model()

    def trace(t: int, state: State, step: Step) -> None:
        del state
        for name in ("charge", "log_ratio"):
            shape = list(getattr(step, name).shape)
            _need(
                shape == [IMAGES],
                f"{name} must have shape [B] = [{IMAGES}] at step {t}, got {shape}"
                + ("; did it forget .sum(-1)?" if len(shape) == 2 else ""),
            )

    noise = subject.noise(model)
    rollout.rollout(model, subject.x, subject.x, subject.labels, noise, trace=trace)


def trains_every_parameter(subject: Subject) -> None:
    """Every parameter that some phase trains gets a finite gradient that is not all zero."""
    reached: set[str] = set()
    wanted: set[str] = set()
    for phase in subject.model().phases(10):
        model = subject.model()
        noise = subject.noise(model, model.draws)
        terms = rollout.rollout(
            model,
            subject.x,
            subject.x,
            subject.labels,
            noise,
            generates=phase.generates,
            auxiliary=phase.auxiliary,
        )
        objective = phase.objective(model, terms) if phase.objective else model.objective(terms)
        objective.mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if matches(name, phase.frozen):
                continue
            wanted.add(name)
            if parameter.grad is not None:
                _need(bool(parameter.grad.isfinite().all()), f"gradient of {name} is not finite")
                if bool((parameter.grad != 0).any()):
                    reached.add(name)
    _need(wanted == reached, f"no gradient reaches {', '.join(sorted(wanted - reached))}")


def draws_nothing_itself(subject: Subject) -> None:
    """It is a function of (parameters, x, noise): no randomness of its own, no memory."""
    model = subject.model()
    noise = subject.noise(model)
    before = torch.get_rng_state()
    first = subject.run(model, subject.x, subject.x, noise)
    untouched = bool(torch.equal(before, torch.get_rng_state()))
    _need(untouched, "it draws random numbers; all randomness must come from the noise handed in")
    second = subject.run(model, subject.x, subject.x, noise)
    for name, value in first.terms._asdict().items():
        same = torch.equal(value, getattr(second.terms, name))
        _need(same, f"{name} differs between two calls with the same arguments")


def starts_the_same(subject: Subject) -> None:
    """The same seed gives the same initial parameters, another seed others."""
    first, second, other = subject.model(0), subject.model(0), subject.model(1)
    for name, value in first.state_dict().items():
        same = torch.equal(value, second.state_dict()[name])
        _need(same, f"{name} differs between two models of the same seed")
    differs = any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())
    _need(differs, "two seeds give the same initial parameters")


def survives_saving(subject: Subject) -> None:
    """Saved, loaded weights-only and put into a model of another seed, it gives the same bits."""
    model, other = subject.scoring(subject.model(0)), subject.model(1).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    noise = subject.noise(model)
    a = subject.run(model, subject.x, subject.x, noise).terms
    b = subject.run(other, subject.x, subject.x, noise).terms
    for name in Terms._fields:
        _need(
            torch.equal(getattr(a, name), getattr(b, name)),
            f"{name} changes: it depends on something that is neither parameter nor buffer",
        )


def generates_without_x(subject: Subject) -> None:
    """The prior and the generative half alone give a finite canvas of the right shape."""
    model = subject.scoring(subject.model())
    z_TBZ = rollout.sample_prior(model, subject.noise(model)[:, 0])
    canvas = rollout.generate(model, z_TBZ)
    _need(
        tuple(canvas.shape) == (IMAGES, PIXELS),
        f"a generated canvas must be [B, P] = {[IMAGES, PIXELS]}, got {list(canvas.shape)}",
    )
    _need(bool(canvas.isfinite().all()), "a generated canvas is not finite")


def keeps_the_recogniser_out(subject: Subject) -> None:
    """log p(x|z) depends on z, the target and generative parameters alone, to the bit."""
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
        alone = rollout.generate(model, seen.z_TBZ)
        recon = -model.log_likelihood(alone, subject.x)
    _need(
        torch.equal(alone, seen.canvas_BP),
        "the canvas is not a function of z and the generative parameters alone: perturbing the "
        "recogniser's parameters or its x, with z held, changes it; see `generative`",
    )
    _need(
        torch.equal(recon, seen.terms.recon[0]),
        "recon is not -log p(x|z) of the canvas that z generates",
    )


def stacks_over_seeds(subject: Subject) -> None:
    """vmap over stacked seeds equals the loop: values and gradients."""
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
        _need(_close(stacked[1][seed], alone), "the objective under vmap differs from the loop's")
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            same = _close(stacked[0][name][seed], gradient)
            _need(same, f"the gradient of {name} under vmap differs from the loop's")


def scores_rows_apart(subject: Subject) -> None:
    """In scoring, an image's terms do not depend on the other images or draws beside it."""
    model = subject.scoring(subject.model())
    noise = subject.noise(model, draws=2)
    whole = subject.run(model, subject.x, subject.x, noise).terms
    labels = subject.labels
    for draw in range(2):
        for image in range(IMAGES):
            rows = slice(image, image + 1)
            x = subject.x[rows]
            part = rollout.rollout(model, x, x, labels[rows], noise[:, draw : draw + 1, rows])
            for name in Terms._fields:
                _need(
                    _close(getattr(part, name)[0, 0], getattr(whole, name)[draw, image]),
                    f"{name} of an image depends on what else is in the batch",
                )


def divides_its_epochs(subject: Subject) -> None:
    """Its phases add up to the epochs asked for, each with a name of its own."""
    model = subject.model()
    for epochs in (1, 2, 10, 250):
        phases = model.phases(epochs)
        total = sum(phase.epochs for phase in phases)
        _need(total == epochs, f"its phases have {total} epochs in all where {epochs} are asked")
        unique = len({phase.name for phase in phases}) == len(phases)
        _need(unique, "two of its phases have the same name")


def fills_its_statistics(subject: Subject) -> None:
    """Every running statistic that it names is a buffer [T, ...] which a pass fills."""
    model = subject.model()
    for name in model.statistics_of:
        buffer = dict(model.named_buffers()).get(name)
        _need(buffer is not None, f"statistics_of names {name!r}, but there is no such buffer")
        assert buffer is not None
        right = buffer.shape[:1] == (model.steps,)
        _need(right, f"buffer {name} must be [T, ...], got {list(buffer.shape)}")
    before = {name: model.get_buffer(name).clone() for name in model.statistics_of}
    subject.scoring(model)
    for name, value in before.items():
        changed = not torch.equal(value, model.get_buffer(name))
        _need(changed, f"a pass over training images leaves {name} as it was")


PROMISES: dict[str, Callable[[Subject], Any]] = {
    function.__name__.replace("_", " "): function
    for function in (
        tells_itself,
        divides_its_parameters,
        gives_nats_per_image,
        charges_rows_apart,
        trains_every_parameter,
        draws_nothing_itself,
        starts_the_same,
        survives_saving,
        generates_without_x,
        keeps_the_recogniser_out,
        stacks_over_seeds,
        scores_rows_apart,
        divides_its_epochs,
        fills_its_statistics,
    )
}
