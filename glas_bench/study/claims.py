"""Claims: what a write-up says happened, as a comparison that a study can judge.

    failed_share(fixed-random, filter_size=1) < failed_share(fixed-random, filter_size=5)

Both sides name the same metric, a variant, and as many of its settings as they mean. An axis of the
study that a side leaves out is gone through value by value, the same value on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from glas_bench.errors import UsageError, nearest, unknown

METRICS = {
    "nll": "the ranked upper bound of -log p(x)",
    "elbo": "-ELBO with the variant's own q",
    "iw": "importance-weighted bound with the variant's own q",
    "refit_iw": "importance-weighted bound with the common recogniser",
    "ais": "annealed importance sampling",
    "failed_share": "share of seeds that could not reconstruct",
}
"""What a claim may be about: estimators in nats per image, and shares of seeds."""

SHARES = frozenset({"failed_share"})
"""Those that are shares of seeds, judged without a margin."""

FORM = "METRIC(VARIANT, setting=value, ...) < METRIC(VARIANT, ...), or the same with >"
_SIDE = r"\s*([\w-]+)\s*\(([^()]*)\)\s*"


@dataclass(frozen=True)
class Reference:
    """One side of a claim."""

    variant: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(
            [self.variant, *(f"{key}={value}" for key, value in self.settings.items())]
        )


@dataclass(frozen=True)
class Expectation:
    """A claim's `expect`, parsed."""

    metric: str
    left: Reference
    right: Reference
    direction: int
    """Sign of left minus right that the claim predicts: -1 or +1."""


@dataclass(frozen=True)
class Pair:
    """Two cells that a claim compares, by name, and where: values of the axes gone through."""

    left: str
    right: str
    at: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim with the cells that decide it."""

    text: str
    source: str
    expect: str
    expectation: Expectation
    pairs: tuple[Pair, ...]

    @property
    def metric(self) -> str:
        """The metric that the claim is about, a key of `METRICS`."""
        return self.expectation.metric

    @property
    def direction(self) -> int:
        """Sign of left minus right that the claim predicts."""
        return self.expectation.direction


def parse(text: str) -> Expectation:
    """Parse an `expect`.

    Raises:
        UsageError: it has not that form, or names a metric that no claim can be about.
    """
    match = re.fullmatch(f"{_SIDE}([<>]){_SIDE}", text)
    if match is None:
        raise UsageError(f"{text!r} cannot be read; write {FORM}")
    metric, left, sign, other, right = match.groups()
    for name in (metric, other):
        if name == "objective":
            raise UsageError(
                "objectives are not comparable and no claim can be about them; "
                f"name one of {', '.join(sorted(METRICS))}"
            )
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    if metric != other:
        raise UsageError(f"{metric} and {other} cannot be compared; name one metric on both sides")
    return Expectation(metric, _reference(left), _reference(right), -1 if sign == "<" else 1)


def _reference(text: str) -> Reference:
    variant, *pairs = (part.strip() for part in text.split(","))
    if not variant or "=" in variant:
        raise UsageError(f"({text}) names no variant; write {FORM}")
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"{pair!r} is no setting=value; write {FORM}")
        if key in settings:
            raise UsageError(f"{key} is named twice in ({text})")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{pair!r}: the value cannot be read") from error
    return Reference(variant, settings)


def no_such_cell(reference: Reference, cells: list[str]) -> UsageError:
    """Return the error for a side that is no cell of the study."""
    got = " ".join([reference.variant, *(f"{k}={v}" for k, v in reference.settings.items())])
    own = [name for name in cells if name.split()[0] == reference.variant]
    return UsageError(
        f"({reference}) is no cell of this study.{nearest(got, own or cells)} "
        f"There are: {', '.join(own or cells)}."
    )
