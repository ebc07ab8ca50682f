"""What a seed's files say: its status, and the scores as scoring writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Required, TypedDict, TypeGuard

STATUSES = (
    *("waiting", "training", "scoring"),
    *("complete", "diverged", "failed", "interrupted", "not_applicable"),
)
"""Statuses of a seed."""

FINISHED = frozenset({"complete", "diverged", "not_applicable"})
"""Statuses after which nothing is left to do."""

AFTER_TRAINING = ("scoring", "complete", "failed", "interrupted")
"""Statuses allowed after training."""

_PRECEDENCE = (
    *("not_applicable", "running", "training", "scoring", "waiting"),
    *("failed", "interrupted", "pruned", "diverged", "complete"),
)


class Status(TypedDict, total=False):
    """`status.json`: how far a seed is."""

    schema: int
    status: Required[str]  # one of STATUSES
    reason: str  # why it failed or diverged
    traceback: str  # of a failed seed
    protocol: str  # of a complete seed, whose scores have to be there
    metrics: str  # SHA-256 of metrics.jsonl, of a finished seed
    step: int  # updates done; of a diverged seed, the one that was not finite
    epoch: int
    seconds: float  # of training
    images_per_second: float | None
    peak_memory_bytes: int
    parameters: int
    device: str
    read_from: str  # csv of a page that the numbers were read from; see scripts/runs_from_csv.py
    updated: float  # Unix seconds


def nll_prefix(scores: Mapping[str, Any]) -> str:
    """Return how the names of the scores of the weights begin that `nll` was computed from."""
    return "refit_" if scores.get("nll_from") == "refit_iw" else ""


def join_statuses(statuses: Iterable[str]) -> str:
    """Return a cell's status from those of its seeds or trials; `waiting` where there are none.

    Work that goes on or is left comes before failures, failures before what is finished. Besides
    `STATUSES` a trial may be `running` or `pruned`.
    """
    return min(statuses, key=_PRECEDENCE.index, default="waiting")


def count_statuses(statuses: Sequence[str]) -> dict[str, int]:
    """Return how many seeds have each status, in the order of `STATUSES`."""
    return {each: statuses.count(each) for each in STATUSES if each in statuses}


class Summary(TypedDict, total=False):
    """The scores that `run` reports: means over test images, nats per image unless stated.

    None, as in JSON, where there is no such number or none that is finite.
    """

    objective: float | None
    recon: float | None
    charge: float | None
    aux: float | None
    elbo: float | None
    elbo_status: str  # finite, infinite or undefined
    iw: float | None  # bound from `samples` weights by the variant's own q
    iw_status: str
    refit_iw: float | None  # the same by the recogniser that was fitted to the decoder
    refit_elbo: float | None
    nll: float | None  # the smaller of iw and refit_iw, chosen on validation images
    nll_from: str  # iw or refit_iw
    nll_bound_only: bool
    refit_last_gain: float | None  # of the fit's last tenth
    validation_nll: float | None
    objective_gap: float | None  # nll less the objective, where that bounds nothing
    bits_per_character: float | None  # of text: nll in bits, over the characters of a line
    unigram_nll: float | None  # of text: by place, a model without latents on the same lines
    bigram_nll: float | None
    failed: bool  # to reconstruct
    ais: float | None
    v_mean: float | None  # Var(log w), nats squared; mean over images
    doubling_gain: float | None  # nats that all draws gain over half of them
    ess_mean: float | None  # effective sample size, weights
    refit_v_mean: float | None
    refit_doubling_gain: float | None
    refit_ess_mean: float | None
    bound_only: bool  # whether doubling_gain is above 0.1 nats
    iw_samples: int | None  # draws of the variant's own q
    effective_dimensions: float | None  # of E_q z_t over images
    escape_epoch: int | None  # first epoch that paints more than the mean image
    iw_sweep: dict[str, float | None]  # by number of weights
    images: int


class Scores(Summary, total=False):
    """`eval/<protocol_key>.json`; fields that other versions wrote are there too, untyped."""

    schema: int
    time: float  # when scoring ended, Unix seconds
    protocol: dict[str, Any]  # estimators, samples, images and the like
    split: str
    samples: int  # weights an image
    bounds_nll: bool | None
    bound_reason: str
    ess_median: float | None
    refit_ess_median: float | None
    refit_bound_only: bool
    refit_iw_status: str
    refit_iw_sweep: dict[str, float | None]
    refit_steps: int
    refit_total_steps: int
    refit_converged: bool
    validation_iw: float | None
    validation_refit_iw: float | None
    seconds: float  # of scoring
    seconds_by: dict[str, float]

    diagnosed_images: int
    diagnosed_draws: int  # of each image
    kl: float | None  # E KL(q || p), the sum over time steps
    kl_status: str
    kl_from: str  # closed form or draws
    kl_per_step: list[float | None]
    active_units: int  # pairs of time step and dimension
    active_units_of: int
    active_units_rule: str
    active_dimensions: int
    footprint_perplexity: float | None  # cells of the latent matrix
    footprint_perplexity_per_step: list[float | None]
    footprint_cells: int
    footprint_nowhere_share: float | None  # share of reads, 0 to 1
    gate_perplexity: float | None  # cells of the latent matrix
    recon_per_step: list[float | None]  # of the canvas after each step
    permuted_elbo: float | None
    permuted_elbo_change: float | None
    failed_reason: str
    validation_recon: float | None
    validation_kl: float | None
    validation_baseline: float | None  # recon of the training means alone, no model at all
    canvas_variance: list[float | None]  # of E[x|o_t] between samples, by time step
    early_canvas_variance: float | None  # its mean over the first quarter of steps

    ais_status: str  # accepted or refused
    ais_error: float | None
    change: float | None  # from N to 2N temperatures
    change_error: float | None
    gap: float | None  # between the two ways on simulated images
    gap_error: float | None
    paired: dict[str, dict[str, float | None]]  # AIS less each estimate on the same images


class Number(NamedTuple):
    """A final number of a seed."""

    name: str
    value: float
    time: float  # when it was written, Unix seconds
    weights: int | None = None  # of a sweep: by how many


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value of a JSON document is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold: the value, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None
