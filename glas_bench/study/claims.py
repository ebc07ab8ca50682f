"""Claims: what a write-up says happened, as a comparison that a study can judge.

    elbo(gaussian, grid=original) > elbo(cauchy, grid=original)
    share(fixed-random, filter_size=1, escape_epoch <= 5) > escaped_share(cauchy, filter_size=1)
    footprint_perplexity(cauchy) < 20.25 cells
    objective(hellinger) < ais(hellinger)
    elbo(gaussian, grid=original) - elbo(cauchy, grid=original)
        > elbo(gaussian, grid=centred) - elbo(cauchy, grid=centred)

Each side is a signed sum of terms METRIC(VARIANT, setting=value, ...) and numbers, all in one unit.
A term names as many settings as it means; an axis of the study that a term leaves out is gone
through value by value, the same value in every term.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from glas_bench.config import AmbiguousNumberError, YamlLoader
from glas_bench.errors import UsageError, unknown


class Metric(NamedTuple):
    """What a claim may be about."""

    unit: str
    per_image: bool = False


METRICS = {
    "nll": Metric("nats", per_image=True),  # the ranked upper bound of -log p(x)
    "elbo": Metric("nats", per_image=True),  # -ELBO with the variant's own q
    "iw": Metric("nats", per_image=True),  # importance-weighted bound with the variant's own q
    "refit_iw": Metric("nats", per_image=True),  # importance-weighted bound with the common q
    "ais": Metric("nats", per_image=True),  # annealed importance sampling
    "objective": Metric("nats", per_image=True),  # beside a bound of the same model
    "kl": Metric("nats"),  # KL(q || p), the sum over steps
    "effective_dimensions": Metric("dimensions"),  # participation ratio of E_q z over images
    "active_units": Metric("units"),  # units of z whose mean varies over images
    "footprint_perplexity": Metric("cells"),  # of the latent matrix that a filter reads
    "gate_perplexity": Metric("cells"),  # of the latent matrix that gates read
    "early_canvas_variance": Metric("variance"),  # of samples' pixels, first quarter of steps
    "escape_epoch": Metric("epochs"),  # the first to paint more than the mean image; else past all
    "failed_share": Metric("share"),  # of seeds that could not reconstruct
    "escaped_share": Metric("share"),  # of seeds that left the mean image
    "share": Metric("share"),  # of seeds that meet a condition, e.g. effective_dimensions >= 1.5
}
"""By name; `per_image` where each test image has a value."""

SHARES = frozenset(name for name, metric in METRICS.items() if metric.unit == "share")
"""Metrics that are shares of seeds."""

BESIDE_OBJECTIVE = ("ais", "nll", "refit_iw", "iw", "elbo")
"""Bounds of -log p(x) that an objective of the same model may be compared with."""

FORM = (
    "METRIC(VARIANT, setting=value, ...) < METRIC(VARIANT, ...), or with >, a number in place of a "
    "side, or sums with + and -"
)
_ITEM = re.compile(
    r"\s*(?P<sign>[+-]?)\s*(?:(?P<metric>[A-Za-z][\w-]*)\s*\((?P<inside>[^()]*)\)"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[a-z]*))\s*"
)
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"([\w-]+)\s*(>=|<=|>|<)\s*(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class Condition:
    """What a seed meets, for a share."""

    metric: str
    sign: str
    value: float

    def holds(self, value: float) -> bool:
        """Return whether a seed with this value meets it."""
        return bool(SIGNS[self.sign](value, self.value))

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.value:g}"


@dataclass(frozen=True)
class Term:
    """A metric of a variant with some settings."""

    sign: int
    metric: str
    variant: str
    settings: dict[str, Any]
    condition: Condition | None = None

    def __str__(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        condition = [str(self.condition)] if self.condition else []
        return ", ".join([self.variant, *settings, *condition])


@dataclass(frozen=True)
class Expectation:
    """A claim's `expect`, parsed: the sum of terms, less a constant, is above or below 0."""

    terms: tuple[Term, ...]
    constant: float
    direction: int
    """Sign that the claim predicts: -1 or +1."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it names, each once."""
        return tuple(dict.fromkeys(term.metric for term in self.terms))

    @property
    def unit(self) -> str:
        """Of its terms."""
        return METRICS[self.terms[0].metric].unit


@dataclass(frozen=True)
class Comparison:
    """The cells that a claim is about, by name, one a term, and where: the axes gone through."""

    cells: tuple[str, ...]
    at: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim with the cells that decide it."""

    number: int
    """Its place in the study, from 1."""
    text: str
    source: str
    expect: str
    margin: float
    """The smallest difference that matters, in the unit of the metric."""
    among_escaped: bool
    """Whether it is about seeds that left the mean image even where arms' shares of them differ."""
    preset: str | None
    """The only preset at which it is judged, if it is about a budget."""
    expectation: Expectation
    comparisons: tuple[Comparison, ...]


def parse(text: str) -> Expectation:
    """Parse an `expect`.

    Raises:
        UsageError: it has not that form, or compares what cannot be compared.
    """
    sides = re.split(r"([<>])(?![^(]*\))", text)
    if len(sides) != 3:
        raise UsageError(f"{text!r} cannot be read; write {FORM}")
    left, sign, right = sides
    terms: list[Term] = []
    constants: list[tuple[float, str]] = []
    for side, factor in ((left, 1), (right, -1)):
        at = 0
        while at < len(side) or at == 0:
            match = _ITEM.match(side, at)
            if match is None or (at and not match["sign"]):
                raise UsageError(f"{text!r} cannot be read; write {FORM}")
            signed = factor * (-1 if match["sign"] == "-" else 1)
            if match["metric"]:
                terms.append(_term(signed, match["metric"], match["inside"]))
            else:
                constants.append((signed * float(match["number"]), match["unit"]))
            at = match.end()
    if not terms:
        raise UsageError(f"{text!r} names no metric; write {FORM}")
    expectation = Expectation(
        tuple(terms), -sum(value for value, _ in constants) or 0.0, -1 if sign == "<" else 1
    )
    _check(expectation, [unit for _, unit in constants if unit], bool(constants))
    return expectation


def _term(sign: int, metric: str, inside: str) -> Term:
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    variant, *rest = (part.strip() for part in re.split(r",(?![^\[]*\])", inside))
    if not variant or "=" in variant:
        raise UsageError(f"({inside}) names no variant; write {FORM}")
    settings: dict[str, Any] = {}
    condition = None
    for part in rest:
        if metric == "share" and (match := _CONDITION.fullmatch(part)):
            if condition is not None:
                raise UsageError(f"share takes one condition, ({inside}) has two")
            name, sign_of, limit = match.groups()
            allowed = [one for one in METRICS if one not in SHARES and one != "objective"]
            if name not in allowed:
                raise unknown("metric", name, allowed)
            condition = Condition(name, sign_of, float(limit))
            continue
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"{part!r} is no setting=value; write {FORM}")
        if key in settings:
            raise UsageError(f"{key} is named twice in ({inside})")
        try:
            settings[key] = yaml.load(value, YamlLoader)
        except AmbiguousNumberError as error:
            raise UsageError(f"{part!r}: {error.problem}") from error
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{part!r}: the value cannot be read") from error
    if metric == "share" and condition is None:
        raise UsageError(
            f"share({inside}) has no condition; write share(VARIANT, effective_dimensions >= 1.5)"
        )
    return Term(sign, metric, variant, settings, condition)


def _check(expectation: Expectation, units: list[str], constant: bool) -> None:
    """Refuse sums of different units, and objectives beside anything but their model's bound."""
    metrics, terms = expectation.metrics, expectation.terms
    by_unit = {METRICS[name].unit: name for name in metrics}
    if len(by_unit) > 1:
        (unit, name), (other_unit, other) = list(by_unit.items())[:2]
        raise UsageError(
            f"{name} is in {unit} and {other} in {other_unit}: they cannot be compared"
        )
    for unit in units:
        if unit != expectation.unit:
            raise UsageError(f"{metrics[0]} is in {expectation.unit}, and the number in {unit}")
    same = len({(term.variant, str(term.settings)) for term in terms}) == 1
    if "objective" in metrics:
        others = {term.metric for term in terms} - {"objective"}
        if not (len(terms) == 2 and same and others <= {*BESIDE_OBJECTIVE} and others):
            raise UsageError(
                "an objective is comparable with a bound of the same model only, as in "
                f"objective(V) < ais(V); bounds: {', '.join(BESIDE_OBJECTIVE)}"
            )
    if expectation.unit == "nats" and len(metrics) > 1 and not same:
        raise UsageError(
            f"{' and '.join(metrics)} of different models cannot be compared; name one metric"
        )
    number = expectation.constant * terms[0].sign
    if expectation.unit == "share":
        if len(terms) + constant != 2 or (not constant and terms[0].sign == terms[1].sign):
            raise UsageError("shares are compared two at a time, or one with a number")
        if constant and not 0 <= number <= 1:
            raise UsageError(f"a share is between 0 and 1, got {number:g}")
    elif constant and len(terms) == 1 and number < 0 and expectation.unit != "nats":
        raise UsageError(f"{metrics[0]} is never below 0, got {number:g}")
