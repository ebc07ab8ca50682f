"""The one loop over time, from a model's `begin` to its `finish`, and its uses.

Training, scoring, pictures and the contract suite share it. Rows are ordered draw by draw: row
k * B + b is draw k of image b. Shape suffixes as in `model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glas_bench.core import streams
from glas_bench.likelihood import Likelihood
from glas_bench.model import BaseSettings, Context, Generation, Glas, Linear, State, Step, Terms

Trace = Callable[[int, State, Step], None]
Auxiliary = Callable[[Any, Context, State], Tensor]
Decode = Callable[[Generation, Tensor, Tensor], Generation]
StepOf = Callable[[Context, State, Tensor, Tensor], tuple[State, Step]]


def build(
    variant: type[Glas],
    settings: BaseSettings,
    pixels: int,
    classes: int,
    seed: int,
    likelihood: Likelihood | None = None,
) -> Glas:
    """Make a model with the initial parameters of `seed`, for data of this likelihood.

    Every layer draws from a stream named after it, so variants that share a layer start it alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.derive(seed, "initialisation"))
        model = variant(settings, pixels, classes)
    model.likelihood = likelihood or model.likelihood
    reinitialise(model, seed)
    return model


def reinitialise(model: Glas, seed: int) -> None:
    """Draw all parameters of `model` again, as at the start of a run with this seed."""
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            if callable(getattr(module, "reset_parameters", None)):
                torch.manual_seed(streams.derive(seed, "initialisation", name))
                module.reset_parameters()


def repeat_rows(tree: Any, times: int) -> Any:
    """Repeat every tensor of nested (named) tuples and dicts along its rows, draw by draw."""
    if isinstance(tree, Tensor):
        return tree.repeat(times, *[1] * (tree.dim() - 1))
    if isinstance(tree, dict):
        return {key: repeat_rows(value, times) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [repeat_rows(part, times) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def rollout(
    model: Glas,
    x_BP: Tensor,
    target_BP: Tensor,
    labels_B: Tensor | None,
    noise_TKBZ: Tensor,
    *,
    generates: bool = True,
    auxiliary: Auxiliary | None = None,
    trace: Trace | None = None,
    step: StepOf | None = None,
) -> Terms:
    """Run K trajectories an image through time.

    Args:
        model: any variant.
        x_BP: images as the recogniser sees them, float in [0, 1].
        target_BP: images as log p(x|z) sees them.
        labels_B: labels where the data has them.
        noise_TKBZ: standard-normal noise; there is no other randomness.
        generates: False leaves canvas and decoder at zero and charges nothing (a recognition-only
            phase, in which q may be anything).
        auxiliary: a phase's auxiliary loss in place of the model's own, [B] nats.
        trace: called after each step with (t, state, step) for diagnostics and pictures.
        step: takes a step in place of the model's own, e.g. compiled; its q is not used.

    Returns:
        Terms of shape [K, B] each, nats.

    Raises:
        ValueError: a variant's charge or log_ratio is not one number a row.
    """
    steps, draws, images, _ = noise_TKBZ.shape
    noise_TBZ = noise_TKBZ.flatten(1, 2)
    context, state = model.begin(x_BP, target_BP, labels_B)
    if draws > 1:
        context, state = repeat_rows(context, draws), repeat_rows(state, draws)
    silent = state.generation
    take = step or model.step
    times = torch.arange(steps, device=x_BP.device)
    charge = log_ratio = context.target.new_zeros(draws * images)
    for t, (time, noise_BZ) in enumerate(zip(times.unbind(), noise_TBZ.unbind(), strict=True)):
        state, now = take(context, state, noise_BZ, time)
        for name, value in (("charge", now.charge), ("log_ratio", now.log_ratio)):
            if value.shape != charge.shape:
                raise ValueError(
                    f"{name} must have shape [B] = {list(charge.shape)}, one number a row, got "
                    f"{list(value.shape)}" + "; is .sum(-1) missing?" * (value.dim() == 2)
                )
        if generates:
            charge = charge + now.charge
            log_ratio = log_ratio + now.log_ratio
        else:
            state = state._replace(generation=silent)
        if trace is not None:
            trace(t, state, now)
    recon, aux = model.finish(context, state)
    if auxiliary is not None:
        aux = auxiliary(model, context, state)
    shape = (draws, images)
    return Terms(*(part.reshape(shape) for part in (recon, charge, log_ratio, aux)))


def generate(
    model: Glas,
    z_TBZ: Tensor,
    trace: Callable[[int, Generation], None] | None = None,
    step: Decode | None = None,
) -> Tensor:
    """Decode given latents alone, without any x; return the last canvas, logits [B, P].

    `step` takes the place of the model's own `generate`, e.g. compiled.
    """
    generation = model.begin_generation(z_TBZ.shape[1])
    take = step or model.generate
    times = torch.arange(z_TBZ.shape[0], device=z_TBZ.device)
    for t, (time, z_BZ) in enumerate(zip(times.unbind(), z_TBZ.unbind(), strict=True)):
        generation = take(generation, z_BZ, time)
        if trace is not None:
            trace(t, generation)
    return generation.canvas


def canvas_is_a_sum(model: Glas) -> bool:
    """Return whether `summed_canvas` gives what `generate` gives.

    The decoder must not read its canvas: tried out on two draws, with a canvas of NaN.
    """
    kind, write = type(model), model.write
    if kind.paint is not Glas.paint or kind.generate is not Glas.generate:
        return False
    if type(write) not in (Linear, nn.Linear) or write.bias is None:
        return False
    noise_TBZ = streams.normal((model.steps, 2, model.noise_size), 0, "canvas").to(write.weight)
    with torch.no_grad():
        z_TBZ = sample_prior(model, noise_TBZ)
        begun = model.begin_generation(2)
        unread = begun._replace(canvas=torch.full_like(begun.canvas, torch.nan))
        summed_BP = begun.canvas + _painted(model, unread, z_TBZ, model.decode)
        return torch.allclose(summed_BP, generate(model, z_TBZ), rtol=1e-3, atol=1e-3)


def summed_canvas(model: Glas, z_TBZ: Tensor, step: Decode | None = None) -> Tensor:
    """Return what `generate` returns, faster, of a model for which `canvas_is_a_sum`.

    A canvas that is a sum of W d_t + b needs one product with W, of the sum of the d_t. `step`
    takes the place of the model's own `decode`, e.g. compiled.
    """
    generation = model.begin_generation(z_TBZ.shape[1])
    return generation.canvas + _painted(model, generation, z_TBZ, step or model.decode)


def _painted(model: Glas, generation: Generation, z_TBZ: Tensor, take: Decode) -> Tensor:
    """Return what all steps paint, [B, P]."""
    total_BH = torch.zeros_like(generation.hidden)
    times = torch.arange(z_TBZ.shape[0], device=z_TBZ.device)
    for time, z_BZ in zip(times.unbind(), z_TBZ.unbind(), strict=True):
        generation = take(generation, z_BZ, time)
        total_BH = total_BH + generation.hidden
    bias_P = len(z_TBZ) * model.write.bias
    painted: Tensor = nn.functional.linear(total_BH, model.write.weight, bias_P)
    return painted


def sample_prior(model: Glas, noise_TBZ: Tensor) -> Tensor:
    """Map standard-normal noise to latents of the prior, [T, B, Z]."""
    prior = model.prior()
    return torch.stack([prior.sample(noise_BZ) for noise_BZ in noise_TBZ.unbind()])


def statistics(model: Glas) -> dict[str, Tensor]:
    """Return running statistics [T, ...] by name, those of a model within the model too."""
    models = ((at, each) for at, each in model.named_modules() if isinstance(each, Glas))
    return {
        f"{at}.{name}".lstrip("."): each.get_buffer(name)
        for at, each in models
        for name in each.statistics_of
    }


def freeze_statistics(
    model: Glas, x_BP: Tensor, labels_B: Tensor | None, noise_TKBZ: Tensor
) -> None:
    """Fill the model's running statistics from one pass over a fixed chunk of training images."""
    if not model.statistics_of:
        return
    collected: dict[str, list[Tensor]] = {name: [] for name in model.statistics_of}

    def keep(t: int, state: State, step: Step) -> None:
        del t, state
        for name, value in model.statistics(step.read).items():
            collected[name].append(value)

    was_training = model.training
    model.train()
    with torch.no_grad():
        rollout(model, x_BP, x_BP, labels_B, noise_TKBZ, trace=keep)
        for name, values in collected.items():
            model.get_buffer(name).copy_(torch.stack(values))
    model.train(was_training)


class Program(nn.Module):
    """A function of a model as a module, so that `torch.func.functional_call` can swap tensors."""

    def __init__(self, model: Glas, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Call the function on the model."""
        return self.function(self.model, *args)
