"""The GLAS recurrence: the base class of every variant, with the methods to override (seams).

Akoury 2017, README and `glas/model/` of github.com/dojoteef/glas; the recurrence is that of DRAW
(Gregor et al. 2015, section 2, arXiv 1502.04623) with a read from a learned latent matrix:

    x'_t = x - sigmoid(o_{t-1})                     what the canvas still misses; o_0 = 0
    e_t  = LSTM_enc([x, x'_t, d_{t-1}])
    a_t  = A(e_t, latent matrix)                    attention
    q_t  = N(mean(a_t), exp(log_std(a_t))^2)        z_t ~ q_t; in generation z_t ~ N(0, I)
    d_t  = LSTM_dec(z_t)
    o_t  = o_{t-1} + W d_t + b
    objective = -log p(x | o_T) + charge_weight sum_t charge(q_t, p) + aux

p(x | o_T) belongs to the data (`likelihood`): Bernoulli pixels, or characters, whose mean replaces
the sigmoid.

A model is a deterministic function of (parameters, x, noise): the core passes all randomness as
standard-normal noise. The core also runs the time loop: it calls `begin` once, `step` T times,
`finish` once. `step` must run under `torch.func.vmap`: no writes into slices of new tensors, no
branches on data, no random numbers. `State` holds everything that changes over time, in two halves:
`generate` gets the generative half only, so that p(x|z) cannot depend on the recogniser.

Shape suffixes: B rows (images x draws), P pixels, H hidden units, L side of the latent matrix,
R side of the filter, A size of a read, Z size of a sample, T steps, K draws per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from glas_bench import divergences, filters
from glas_bench.likelihood import LIKELIHOODS, Likelihood
from glas_bench.ops import linear

Memory = dict[str, Tensor]


# --------------------------------------------------------------------------- settings


class BaseSettings(BaseModel):
    """Settings of every variant; a variant's own `Settings` adds fields to one of these classes.

    A preset does not override a default that a variant's file declares.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sample_size: int = Field(25, ge=1, description="Z, size of a sample z_t")
    charge_weight: float = Field(
        1.0, ge=0, description="weight of the charge; below 1 the objective bounds nothing"
    )


class RecurrentSettings(BaseSettings):
    """Sizes of the recurrence."""

    steps: int = Field(64, ge=1, description="T, steps of the recurrence")
    hidden: int = Field(256, ge=1, description="H, units of each LSTM")


class LatentSettings(RecurrentSettings):
    """A learned latent matrix to read from."""

    latent_size: int = Field(9, ge=1, description="L, side of the latent matrix")
    latent_init: Literal["1e-3", "0.1", "1", "normal"] = Field(
        "1e-3", description="the latent matrix starts as U(0, this), or as N(0, 1)"
    )

    @field_validator("latent_init", mode="before")
    @classmethod
    def _number_as_name(cls, value: object) -> object:
        """Accept numbers: YAML reads 0.1 and 1 as numbers and 1e-3 as text."""
        names = {0.001: "1e-3", 0.1: "0.1", 1.0: "1"}
        return names.get(float(value), value) if isinstance(value, int | float) else value


class FilterSettings(LatentSettings):
    """A filter of R x R kernels over the latent matrix."""

    filter_size: int = Field(5, ge=1, description="R, side of the filter; at most latent_size")
    grid: Literal["original", "slip-mended", "centred"] = Field(
        "original",
        description="where the kernels are: as published, without its precedence slip, or as DRAW",
    )
    floor: Literal["1e-3", "logsumexp"] = Field(
        "1e-3", description="rows are divided by max(their sum, 1e-3), or normalised exactly"
    )
    filter_init: Literal["glorot", "small"] = Field(
        "glorot", description="weights of the filter's layer: Glorot, or Glorot x 0.01"
    )

    @field_validator("floor", mode="before")
    @classmethod
    def _floor_as_name(cls, value: object) -> object:
        return "1e-3" if isinstance(value, float) and value == 1e-3 else value

    def model_post_init(self, _: object) -> None:
        """Raise ValueError for a filter that is larger than the matrix."""
        if self.filter_size > self.latent_size:
            raise ValueError(
                f"filter_size {self.filter_size} is larger than latent_size {self.latent_size}: "
                "a filter reads inside the latent matrix"
            )


# --------------------------------------------------------------------------- distributions


class Distribution(Protocol):
    """The methods of q and p, elementwise over [B, Z].

    A q may have `kl(p)` too, in nats: diagnostics then use it instead of the sampled log q/p.
    """

    def sample(self, noise: Tensor, /) -> Tensor:
        """Map standard-normal noise [B, Z] to a reparameterised draw [B, Z]."""

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Return log density in nats, [B, Z]; -inf outside the support."""


class Normal(NamedTuple):
    """N(mean, std^2), elementwise."""

    mean: Tensor  # [B, Z]
    std: Tensor  # [B, Z]

    def sample(self, noise: Tensor, /) -> Tensor:
        """Return mean + std * noise."""
        return self.mean + self.std * noise

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Return the log density in nats."""
        standardised = (z - self.mean) / self.std
        return -0.5 * (standardised.square() + math.log(2 * math.pi)) - self.std.log()


class StandardNormal(NamedTuple):
    """N(0, 1), elementwise: the prior of the published model."""

    mean: float = 0.0
    std: float = 1.0

    def sample(self, noise: Tensor, /) -> Tensor:
        """Return the noise itself."""
        return noise

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Return the log density in nats."""
        return -0.5 * (z.square() + math.log(2 * math.pi))


class Uniform(NamedTuple):
    """U(low, high), elementwise."""

    low: Tensor  # [B, Z]
    high: Tensor  # [B, Z]
    log_width: Tensor  # [B, Z] ln(high - low), more precise than the difference

    def sample(self, noise: Tensor, /) -> Tensor:
        """Return low + (high - low) Phi(noise), never outside [low, high] by rounding."""
        low, high = self.low.to(noise.dtype), self.high.to(noise.dtype)
        return torch.lerp(low, high, torch.special.ndtr(noise))

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Return the log density in nats; the ends belong to the support."""
        inside = (self.low <= z) & (z <= self.high)
        return torch.where(inside, -self.log_width, -math.inf)


class StandardUniform(NamedTuple):
    """U(0, 1), elementwise, as Phi of standard-normal noise."""

    def sample(self, noise: Tensor, /) -> Tensor:
        """Return Phi(noise)."""
        uniform: Tensor = torch.special.ndtr(noise)
        return uniform

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Return the log density in nats; the ends belong to the support."""
        return torch.where((z >= 0) & (z <= 1), 0.0, -math.inf).to(z.dtype)


# --------------------------------------------------------------------------- states and terms


class Context(NamedTuple):
    """The inputs of a rollout, constant over time."""

    x: Tensor  # [B, P] input of the recogniser
    target: Tensor  # [B, P] the x of log p(x|z)
    labels: Tensor | None  # [B] int64, where the data has labels
    products: Memory  # rows computed once, e.g. the part of the gates from x


class Generation(NamedTuple):
    """The generative half of the state."""

    canvas: Tensor  # [B, P] o_t, logits
    hidden: Tensor  # [B, H] d_t
    cell: Tensor  # [B, H]
    memory: Memory  # rows that a variant adds


class Recognition(NamedTuple):
    """The recogniser's half of the state."""

    hidden: Tensor  # [B, H] e_t
    cell: Tensor  # [B, H]
    memory: Memory  # rows that a variant adds


class State(NamedTuple):
    """Everything that changes over time."""

    recognition: Recognition
    generation: Generation


class Step(NamedTuple):
    """The output of one step."""

    charge: Tensor  # [B] nats
    log_ratio: Tensor  # [B] sampled log q(z_t)/p(z_t), nats; zeros where q has no density
    read: Tensor  # [B, A]
    q: Any  # the posterior of this step
    z: Tensor  # [B, Z]


class Outcome(NamedTuple):
    """The scores of the last state."""

    recon: Tensor  # [B] -log p(x|z), nats
    aux: Tensor  # [B] auxiliary loss, nats


class Terms(NamedTuple):
    """The terms of a rollout with K draws per image, in nats."""

    recon: Tensor  # [K, B] -log p(x|z)
    charge: Tensor  # [K, B] sum over steps, unweighted
    log_ratio: Tensor  # [K, B] sum over steps of the sampled log q/p
    aux: Tensor  # [K, B]

    @property
    def log_w(self) -> Tensor:
        """Log importance weights of whole trajectories, log p(x, z) - log q(z|x), [K, B]."""
        return -self.recon - self.log_ratio


class Phase(NamedTuple):
    """A phase of training, with its own optimiser."""

    name: str
    epochs: int
    objective: Callable[[Any, Terms], Tensor] | None = None  # default: the model's own
    auxiliary: Callable[[Any, Context, State], Tensor] | None = None  # default: the model's own
    generates: bool = True  # False: recognition only; canvas, decoder and charge stay at zero
    keep: tuple[str, ...] = ()  # kept from the phase before; the rest is initialised again
    frozen: tuple[str, ...] = ()  # not trained in this phase


class Bound(NamedTuple):
    """Whether an objective bounds -log p(x) from above, and why."""

    holds: bool | None  # None: not shown
    reason: str


# --------------------------------------------------------------------------- layers


class Linear(nn.Linear):
    """A linear layer with Glorot-uniform weights (times `scale`) and zero bias."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        """Draw the weights again from torch's global generator."""
        nn.init.xavier_uniform_(self.weight, gain=self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Return value @ weight^T + bias, [B, outputs]."""
        return linear.add(self.bias, [(value, self.weight)], transposed=True)


class LSTM(nn.Module):
    """An LSTM cell (Hochreiter & Schmidhuber 1997, forget gates of Gers et al. 2000).

    Its kernel [inputs + H, 4H] is stored in parts, one per input, so that the product with an
    input that is constant over time is computed once. Glorot fans and gradient clipping treat the
    parts as one tensor. The order of the gates is input, forget, candidate, output; the forget
    bias starts at 1.
    """

    def __init__(self, hidden: int, **inputs: int) -> None:
        super().__init__()
        self.hidden = hidden
        sizes = {**inputs, "hidden": hidden}
        self.kernels = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(size, 4 * hidden)) for name, size in sizes.items()}
        )
        self.bias = nn.Parameter(torch.empty(4 * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel again, with the fans of the concatenated kernel."""
        fan_in = sum(kernel.shape[0] for kernel in self.kernels.values())
        limit = math.sqrt(6 / (fan_in + 4 * self.hidden))
        for kernel in self.kernels.values():
            nn.init.uniform_(kernel, -limit, limit)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[self.hidden : 2 * self.hidden])

    def gates(self, base: Tensor, **inputs: Tensor) -> Tensor:
        """Add the products of `inputs` [B, size] with their kernels to `base` ([4H] or [B, 4H])."""
        return linear.add(base, [(value, self.kernels[name]) for name, value in inputs.items()])

    def forward(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new hidden state and cell, [B, H] each, from gates [B, 4H]."""
        return linear.lstm(gates, cell)


# --------------------------------------------------------------------------- the model

_MEANT_FOR_THE_BOUND = frozenset(
    {"charge", "posterior", "prior", "log_ratio", "objective", "auxiliary", "step", "finish"}
)

DESCRIPTIVE = ("citations", "least_kl_per_charge", "is_control", "figures")
"""Class attributes for the pages of reports, which change no number.

- `citations`: published numbers, each the keyword arguments of `registry.Citation`;
- `least_kl_per_charge`: the least possible ratio of KL to charge, where it is known;
- `is_control`: whether the report compares runs by hand with this variant;
- `figures`: figures of the report ("samples", "filter") that show this variant first.

They are not inherited. `registry.code_alone` leaves out assignments of literals to them, so that
editing one does not change the variant's `source_hash`.
"""


class Glas(nn.Module):
    """The published GLAS, and the base class of every variant: override the method you change.

    Class attributes that a variant may declare:

    - `Settings`: its settings, a subclass of one of the classes above;
    - `bounds_nll`: whether its objective bounds -log p(x) (at charge_weight >= 1). For a class that
      overrides charge, posterior, prior or the objective it is "not shown" by default;
    - `why`: one sentence that explains `bounds_nll`;
    - `has_density`: whether q has a density; without one there is no elbo and no iw;
    - `needs_labels`: whether training needs labels;
    - `draws`: trajectories per image in training; a setting of that name takes precedence;
    - `generative`: prefixes of the names of the parameters that p(x|z) uses; all others belong to
      the recogniser;
    - `statistics_of`: names of running statistics, see `statistics`;
    - `latent_trained`: False keeps the latent matrix fixed as it was drawn, a buffer;
    - `write_up`: what the write-up says happened;
    - `published`: its numbers by data set, in nats;
    - those of `DESCRIPTIVE`.

    Args:
        settings: an instance of the variant's `Settings`.
        pixels: P.
        classes: number of labels, 0 where the data has none.
    """

    Settings: ClassVar[type[BaseSettings]] = FilterSettings
    bounds_nll: ClassVar[bool | None] = True
    why: ClassVar[str] = "the charge is the KL divergence: the objective is the negative ELBO"
    has_density: bool = True
    needs_labels: ClassVar[bool] = False
    draws: int = 1
    generative: ClassVar[tuple[str, ...]] = ("decoder", "write")
    statistics_of: ClassVar[tuple[str, ...]] = ()
    latent_trained: ClassVar[bool] = True
    likelihood: Likelihood = LIKELIHOODS["bernoulli"]  # the core sets that of the data
    write_up: ClassVar[str] = ""
    published: ClassVar[dict[str, float]] = {}
    citations: ClassVar[list[dict[str, Any]]] = []
    least_kl_per_charge: ClassVar[float | None] = None
    is_control: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]] = ()

    # A variant may assign other modules.
    encoder: Any
    mean: Any
    log_std: Any
    latent: Any
    filter: Any
    decoder: Any
    write: Any

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        changed = sorted(_MEANT_FOR_THE_BOUND & set(vars(cls)))
        if changed and "bounds_nll" not in vars(cls):
            cls.bounds_nll = None
            cls.why = f"it overrides {', '.join(changed)} and does not declare bounds_nll"
        elif "bounds_nll" in vars(cls) and "why" not in vars(cls):
            cls.why = "declared by the variant"
        for name in DESCRIPTIVE:
            if name not in vars(cls):
                setattr(cls, name, getattr(Glas, name))

    def __init__(self, settings: Any, pixels: int, classes: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.pixels = pixels
        self.classes = classes
        self.steps: int = getattr(settings, "steps", 1)
        self.sample_size: int = settings.sample_size
        self.draws = getattr(settings, "draws", self.draws)
        self.build_recognition()
        self.build_generation()

    # ---- building

    def build_recognition(self) -> None:
        """Make the encoder, what it attends to, and the heads of q."""
        hidden = self.settings.hidden
        self.encoder = LSTM(hidden, x=self.pixels, error=self.pixels, decoder=hidden)
        self.build_heads(self.build_attention())

    def build_heads(self, read_size: int) -> None:
        """Make the heads, from a read [B, A] to the parameters of q."""
        self.mean = Linear(read_size, self.sample_size)
        self.log_std = Linear(read_size, self.sample_size)

    def build_attention(self) -> int:
        """Make the latent matrix and the filter; return A, the size of a read."""
        self.build_latent()
        scale = 0.01 if self.settings.filter_init == "small" else 1.0
        self.filter = Linear(self.settings.hidden, 5, scale)
        return int(self.settings.filter_size) ** 2

    def build_latent(self) -> None:
        """Make the latent matrix [L, L]: a parameter, or a buffer if it is not trained."""
        matrix = torch.empty(self.settings.latent_size, self.settings.latent_size)
        if self.latent_trained:
            self.latent = nn.Parameter(matrix)
        else:
            self.register_buffer("latent", matrix)
        self.reset_parameters()

    def build_generation(self) -> None:
        """Make the decoder and the layer that writes on the canvas."""
        self.decoder = LSTM(self.settings.hidden, input=self.decoder_input_size)
        self.write = Linear(self.settings.hidden, self.pixels)

    def reset_parameters(self) -> None:
        """Draw the model's own parameters again, the latent matrix; layers draw theirs."""
        if not hasattr(self, "latent"):
            return
        with torch.no_grad():
            if self.settings.latent_init == "normal":
                self.latent.normal_()
            else:
                self.latent.uniform_(0, float(self.settings.latent_init))

    @property
    def has_filter(self) -> bool:
        """Whether `filter_rows` reads from the latent matrix."""
        return hasattr(self, "filter") and hasattr(self, "latent")

    @property
    def decoder_input_size(self) -> int:
        """Size of the decoder's input at a step."""
        return self.sample_size

    @property
    def noise_size(self) -> int:
        """Standard-normal numbers per row and step."""
        return self.sample_size

    @classmethod
    def is_generative(cls, name: str) -> bool:
        """Return whether a parameter or buffer of this name belongs to p(x|z)."""
        return matches(name, cls.generative)

    @classmethod
    def bound(cls, settings: BaseSettings) -> Bound:
        """Return whether the objective with these settings bounds -log p(x) from above."""
        if cls.bounds_nll and settings.charge_weight < 1:
            return Bound(False, f"charge_weight {settings.charge_weight:g} is below 1")
        return Bound(cls.bounds_nll, cls.why)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        """Divide the epochs of training into phases."""
        return (Phase("main", epochs),)

    def between_phases(self, before: Phase, after: Phase) -> None:
        """Change kept parameters in place before `after` begins; the global generator is seeded."""
        del before, after

    # ---- the interface of the core

    def begin(
        self, x: Tensor, target: Tensor, labels: Tensor | None = None
    ) -> tuple[Context, State]:
        """Prepare a rollout for x and target [B, P] and labels [B]."""
        recognition = self.begin_recognition(x)
        generation = self.begin_generation(x.shape[0])
        return Context(x, target, labels, self.products(x)), State(recognition, generation)

    def step(
        self, context: Context, state: State, noise_BZ: Tensor, t: Tensor
    ) -> tuple[State, Step]:
        """Infer q_t, draw z_t from it and write on the canvas: one step of training.

        `state` is that after step t - 1; t counts from 0, an int64 tensor [].
        """
        q, read, recognition = self.infer(context, state, t)
        p = self.prior()
        z = q.sample(noise_BZ)
        generation = self.generate(state.generation, z, t)
        state = State(recognition, generation)
        memory = self.observe(context, state, t)
        state = State(recognition._replace(memory=memory), generation)
        return state, Step(self.charge(q, p, z), self.log_ratio(q, p, z), read, q, z)

    def finish(self, context: Context, state: State) -> Outcome:
        """Score the last canvas against the target."""
        recon = -self.log_likelihood(state.generation.canvas, context.target)
        return Outcome(recon, self.auxiliary(context, state))

    # ---- recognition

    def begin_recognition(self, x: Tensor) -> Recognition:
        """Return the recogniser's first state for x [B, P]."""
        zeros = x.new_zeros(()).expand(x.shape[0], self.settings.hidden)
        return Recognition(zeros, zeros, {})

    def products(self, x: Tensor) -> Memory:
        """Compute once what x contributes at every step: the gates' part from x, [B, 4H]."""
        return {"gates": self.encoder.gates(self.encoder.bias, x=x)}

    def infer(self, context: Context, state: State, t: Tensor) -> tuple[Any, Tensor, Recognition]:
        """Return q_t, the read [B, A] that it depends on, and the recogniser's next state."""
        hidden, cell = self.encode(context, state)
        read, memory = self.attend(hidden, state.recognition.memory, t)
        return self.posterior(read, t), read, Recognition(hidden, cell, memory)

    def encode(self, context: Context, state: State) -> tuple[Tensor, Tensor]:
        """Return e_t = LSTM_enc([x, x - E[x|o], d]) and its cell, [B, H] each."""
        error = self.error_image(context, state)
        gates = self.encoder.gates(
            context.products["gates"],
            error=error,
            decoder=state.generation.hidden,
            hidden=state.recognition.hidden,
        )
        hidden, cell = self.encoder(gates, state.recognition.cell)
        return hidden, cell

    def error_image(self, context: Context, state: State) -> Tensor:
        """Return the error image x - E[x|o] of the last canvas, [B, P]."""
        return context.x - self.likelihood.mean(state.generation.canvas)

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        """Read from the latent matrix: return a_t [B, A] and the recogniser's memory."""
        rows_y, rows_x, log_gain = self.filter_rows(e_BH)
        return filters.read_matrix(self.latent, rows_y, rows_x, log_gain), memory

    def gate_weights(self, e_BH: Tensor) -> Tensor | None:
        """Return how much each cell of the latent matrix is read, [B, L * L]; None without gates.

        For the diagnostics of a variant whose attention is no filter; only shares matter.
        """
        del e_BH
        return None

    def filter_rows(self, e_BH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the filter's rows F_y and F_x, [B, R, L] each, and log_gain [B].

        One linear layer gives offsets g_x, g_y, log_stride, log_scale and log_gain (DRAW,
        equation 21; `glas/model/attention.py`).
        """
        g_x, g_y, log_stride, log_scale, log_gain = self.filter(e_BH).unbind(-1)
        size = self.settings.latent_size

        offsets_2B = torch.stack([g_y, g_x])  # both axes at once
        centres = filters.grid_centres(
            self.settings.filter_size, size, offsets_2B, log_stride, self.settings.grid
        )
        rows_y, rows_x = self.kernel_rows(centres, log_scale).unbind()
        return rows_y, rows_x, log_gain

    def kernel_rows(self, centres_BR: Tensor, scale_B: Tensor) -> Tensor:
        """Return the rows [B, R, L] of kernels with these centres and the filter's fourth number.

        Elementwise over leading axes: centres [2, B, R] of both axes give rows [2, B, R, L].
        """
        return filters.normalise_rows(self.log_kernel(centres_BR, scale_B), self.settings.floor)

    def log_kernel(self, centres_BR: Tensor, log_scale_B: Tensor) -> Tensor:
        """Return the log of the unnormalised filter, [B, R, L]: a Cauchy kernel."""
        return filters.cauchy_log_kernel(centres_BR, self.settings.latent_size, log_scale_B)

    def posterior(self, read_BA: Tensor, t: Tensor) -> Any:
        """Return q_t, a `Distribution`, from a read: a diagonal normal."""
        del t
        return Normal(self.mean(read_BA), self.log_std(read_BA).exp())

    def observe(self, context: Context, state: State, t: Tensor) -> Memory:
        """Return the recogniser's memory after step t has written on the canvas."""
        del context, t
        return state.recognition.memory

    def statistics(self, read_BA: Tensor) -> Memory:
        """Return the moments of a batch of reads that scoring keeps fixed, by name.

        The names in `statistics_of` are buffers [T, ...], which the core fills before scoring in
        one pass over fixed training images. In training mode a variant uses those of the batch.
        """
        del read_BA
        return {}

    # ---- prior and generation

    def prior(self) -> Any:
        """Return p(z_t), a `Distribution`: N(0, I)."""
        return StandardNormal()

    @torch.no_grad()
    def sample(self, images: int, seed: int = 0) -> Tensor:
        """Return E[x | o_T] of draws from the prior, [images, P]; the same seed, the same draws."""
        device = next(self.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        state = self.begin_generation(images)
        for t in torch.arange(self.steps, device=device):
            noise = torch.randn(images, self.noise_size, generator=generator).to(device)
            state = self.generate(state, self.prior().sample(noise), t)
        return self.likelihood.mean(state.canvas)

    def begin_generation(self, rows: int) -> Generation:
        """Return the first generative state for B = rows; the canvas is zero."""
        like = next(self.parameters())
        zeros = like.new_zeros(()).expand(rows, self.settings.hidden)
        return Generation(like.new_zeros(rows, self.pixels), zeros, zeros, {})

    def generate(self, generation: Generation, z_BZ: Tensor, t: Tensor) -> Generation:
        """Run the decoder on z_t and add to the canvas."""
        generation = self.decode(generation, z_BZ, t)
        return generation._replace(canvas=generation.canvas + self.paint(generation.hidden))

    def decode(self, generation: Generation, z_BZ: Tensor, t: Tensor) -> Generation:
        """Run the decoder on z_t without writing on the canvas."""
        given, memory = self.decoder_input(generation, z_BZ, t)
        gates = self.decoder.gates(self.decoder.bias, input=given, hidden=generation.hidden)
        hidden, cell = self.decoder(gates, generation.cell)
        return Generation(generation.canvas, hidden, cell, memory)

    def decoder_input(
        self, generation: Generation, z_BZ: Tensor, t: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the decoder's input [B, decoder_input_size] and the generative memory."""
        del t
        return z_BZ, generation.memory

    def paint(self, d_BH: Tensor) -> Tensor:
        """Return the increment of the canvas at step t, W d_t + b, [B, P]."""
        added: Tensor = self.write(d_BH)
        return added

    # ---- costs, nats per image

    def charge(self, q: Any, p: Any, z: Tensor) -> Tensor:
        """Return the charge of q_t for its distance from the prior, [B] nats: KL(q || N(0, I)).

        q is the posterior, with `q.mean` and `q.std` [B, Z] for a normal, p the prior, z the draw.
        """
        del p, z
        return divergences.kl_normal(q.mean, q.std).sum(-1)

    def log_ratio(self, q: Any, p: Any, z: Tensor) -> Tensor:
        """Return the sampled log q(z)/p(z), [B] nats; zeros where q has no density."""
        if not self.has_density:
            return z.new_zeros(z.shape[0])
        ratio: Tensor = (q.log_prob(z) - p.log_prob(z)).sum(-1)
        return ratio

    def log_likelihood(self, canvas_BP: Tensor, target_BP: Tensor) -> Tensor:
        """Return log p(x|z), [B] nats: the data's `likelihood` of the canvas."""
        return self.likelihood.log_prob(canvas_BP, target_BP)

    def draw_pixels(self, canvas_BP: Tensor, noise_BP: Tensor) -> Tensor:
        """Map standard-normal noise to a draw x [B, P] from p(x|z), as in `log_likelihood`."""
        return self.likelihood.draw(canvas_BP, noise_BP)

    def auxiliary(self, context: Context, state: State) -> Tensor:
        """Return an auxiliary loss with its weight, [B] nats; a bound needs it to be >= 0."""
        del state
        return context.target.new_zeros(context.target.shape[0])

    def objective(self, terms: Terms) -> Tensor:
        """Return the training objective, [B] nats: recon + charge_weight * charge + aux."""
        weight = self.settings.charge_weight
        mean: Tensor = (terms.recon + weight * terms.charge + terms.aux).mean(0)
        return mean


def matches(name: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a dotted name is one of the prefixes or below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
