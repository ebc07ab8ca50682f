"""The schema of a study file, with the line of everything in it.

One error names every fault with its line: an unknown key, a key given twice, a value of the wrong
kind. `plan` checks what the names in it mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from glas_bench import sequential
from glas_bench.config import PRESETS, AmbiguousNumberError, YamlLoader, faults, parse_seeds
from glas_bench.errors import UsageError, nearest, unknown

Loc = tuple[int | str, ...]
Number = int | float


def _seeds(value: object) -> object:
    """Read seeds: 0, "0-2", "0,3,5-7" or a list."""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("write 0, 0-2 or 0,3,5-7")
    try:
        return parse_seeds(str(value))
    except UsageError as error:
        raise ValueError(str(error).removeprefix("--seeds ")) from error


Seeds = Annotated[list[int], BeforeValidator(_seeds)]
Looks = Annotated[list[int], AfterValidator(sequential.check_looks)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


RESERVED = {
    "glas-bench": "the experiment of what `run` makes",
    "readme": "the index of the pages",
}
"""Names that no study may have, with what has them."""


class Dimension(_Strict):
    """An axis to search: a range, whole numbers where both ends are, or choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    at_most: str | None = Field(None, description="another axis, whose value this stays within")
    choices: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.at_most:
                raise ValueError("give choices, or low and high, not both")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, got low {self.low}")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class ClaimText(_Strict):
    """A claim as it is written."""

    text: str = Field(min_length=1)
    source: str = Field(min_length=1)
    expect: str = Field(min_length=1)
    margin: Number | None = Field(None, ge=0)
    among: Literal["escaped"] | None = None
    preset: str | None = Field(None, description="the only one at which it is judged")


class StudyFile(_Strict):
    """A study as it is written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)
    question: str = Field(min_length=1)
    version: int = Field(ge=1)
    preset: str = "quick"
    dataset: str | None = None
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    baseline: str | dict[str, Any] | None = None
    variants: list[str | dict[str, Any]] = Field(min_length=1)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    space: dict[str, Dimension] = Field(default_factory=dict)
    trials: int | None = Field(None, ge=1)
    seeds: Seeds
    tuning_seeds: Seeds | None = None
    skip: list[dict[str, Any]] = Field(default_factory=list)
    claims: list[ClaimText] = Field(default_factory=list)
    looks: Looks = list(sequential.LOOKS)
    margin: Number | None = Field(None, ge=0)


@dataclass(frozen=True)
class Source:
    """A YAML file that knows its lines."""

    path: Path
    value: Any
    lines: dict[Loc, int]

    def error(self, loc: Sequence[int | str], message: object) -> UsageError:
        """Return an error about what is at `loc`, with its line."""
        return UsageError(f"{self.path}:{self.line(loc)}: {message}")

    def line(self, loc: Sequence[int | str]) -> int:
        """Return the line of what is at `loc`, or of the nearest thing around it."""
        place = tuple(loc)
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


def read(path: Path) -> tuple[StudyFile, Source]:
    """Read a study file.

    Raises:
        UsageError: it cannot be read, or does not fit the schema; the message names every line.
    """
    source = _read_yaml(path)
    if not isinstance(source.value, dict):
        expected = "a study is a mapping: name, question, version, variants, seeds, ..."
        raise source.error((), expected)
    try:
        file = StudyFile(**source.value)
    except ValidationError as error:
        lines = [_fault(source, fault) for fault in faults(error)]
        raise UsageError("\n".join(dict.fromkeys(lines))) from error
    if file.preset not in PRESETS:
        raise source.error(("preset",), unknown("preset", file.preset, PRESETS))
    by_hand = os.environ.get("MLFLOW_EXPERIMENT_NAME", "").casefold()
    taken = {by_hand: "MLFLOW_EXPERIMENT_NAME, the experiment of what `run` makes", **RESERVED}
    if file.name in taken:
        what = taken[file.name]
        raise source.error(("name",), f"{file.name} is reserved ({what}); use another name")
    _check_search(file, source)
    return file, source


def _check_search(file: StudyFile, source: Source) -> None:
    """Refuse a search without seeds or trials of its own, and those without a search."""
    if not file.space:
        for key in ("trials", "tuning_seeds"):
            if key in source.value:
                raise source.error((key,), f"{key} belongs to a search, and there is no space")
        return
    if file.tuning_seeds is None:
        raise source.error(("space",), "a search takes tuning_seeds of its own, e.g. 1000-1002")
    if shared := set(file.tuning_seeds) & set(file.seeds):
        raise source.error(
            ("tuning_seeds",),
            f"seeds {', '.join(map(str, sorted(shared)))} are reported on; tune on others",
        )
    if file.trials is None and any(each.choices is None for each in file.space.values()):
        raise source.error(("space",), "a search takes a number of trials, e.g. trials: 40")
    for key, dimension in file.space.items():
        if dimension.at_most is not None:
            _check_at_most(file, source, key, dimension)


def _check_at_most(file: StudyFile, source: Source, key: str, dimension: Dimension) -> None:
    """Refuse a limit that is no number, or that may leave nothing to draw from."""
    most, loc = str(dimension.at_most), ("space", key, "at_most")
    if most not in file.space:
        raise source.error(loc, unknown("axis of space", most, file.space))
    other = file.space[most]
    if other.at_most is not None:
        raise source.error(loc, f"{most} has an at_most itself; limit {key} by {other.at_most}")
    least = [other.low] if other.choices is None else other.choices
    for value in least:
        if not isinstance(value, Number) or isinstance(value, bool):
            raise source.error(loc, f"{most} may be {value!r}, which limits no number")
        if value < (dimension.low or 0):
            raise source.error(loc, f"{most} may be {value}, below {key}'s low {dimension.low}")


def _read_yaml(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=YamlLoader)
        lines: dict[Loc, int] = {(): 1}
        if node is not None:
            _mark(path, node, (), lines)
        return Source(path, yaml.load(text, YamlLoader), lines)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is no UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = "" if isinstance(error, AmbiguousNumberError) else "no YAML: "
        raise UsageError(f"{path}{line}: {what}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no YAML: {error}") from error


def _mark(path: Path, node: yaml.Node, loc: Loc, lines: dict[Loc, int]) -> None:
    """Note the line of a node and of all below it; refuse a key that is given twice."""
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(
                    f"{path}:{line}: a key is a word, not a list or a mapping (a template that is "
                    "not filled in?)"
                )
            at = (*loc, key.value)
            if at in lines:
                raise UsageError(
                    f"{path}:{line}: {key.value!r} is given twice, first on line {lines[at]}"
                )
            lines[at] = line
            _mark(path, value, at, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(path, value, (*loc, index), lines)


def _fault(source: Source, fault: Any) -> str:
    """Return the message of a fault that pydantic reports."""
    loc: Loc = tuple(fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        models: dict[Any, type[BaseModel]] = {"space": Dimension, "claims": ClaimText}
        model = models[loc[0]] if len(loc) > 1 else StudyFile
        allowed = sorted(field.alias or name for name, field in model.model_fields.items())
        message = f"unknown key.{nearest(str(loc[-1]), allowed)} Allowed: {', '.join(allowed)}."
    elif fault["type"] == "missing":
        message = "missing"
    elif fault["type"] != "value_error":
        message += f", got {fault['input']!r}"
    return f"{source.path}:{source.line(loc)}: {'.'.join(map(str, loc))}: {message}"
