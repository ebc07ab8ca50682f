"""RunConfig: what is trained and scored, resolved from presets, study files and `--set`.

Precedence, lowest first: preset, a default declared in the variant's file, study file,
`--dataset`, `--set`. Unknown keys, values out of range and settings that a variant does not have
raise an error that names them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glas_bench.errors import UsageError, nearest, unknown

if TYPE_CHECKING:
    from glas_bench.model import BaseSettings
    from glas_bench.registry import Variant

CORE_VERSION = 4
"""Version of the training core: raise it when a config would give other numbers."""

PROTOCOL_VERSION = 3
"""Version of the scoring protocol: raise it when a checkpoint would get other scores."""

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"dataset": "mnist-5k", "steps": 4, "hidden": 64, "epochs": 2, "samples": 10},
    "quick": {"dataset": "mnist-5k", "steps": 8, "hidden": 128, "epochs": 20, "samples": 100},
    "laptop": {
        "dataset": "mnist-static",
        "steps": 8,
        "hidden": 128,
        "epochs": 15,
        "learning_rate": 3e-3,
        "schedule": "linear",
        "warmup_steps": 1000,
        "samples": 100,
        "images": 500,  # of 10,000: their error is a quarter of a nat
    },
    "short": {
        "dataset": "mnist-static",
        "steps": 16,
        "hidden": 256,
        "epochs": 250,
        "samples": 1000,
    },
    "paper": {
        "dataset": "mnist-static",
        "steps": 64,
        "hidden": 256,
        "epochs": 250,
        "samples": 1000,
    },
}
DEFAULT_PRESET = "quick"
NO_VERDICTS = frozenset({"smoke", "quick"})
"""Presets whose pages only show the harness and give no verdicts."""

MOST_SEED, MOST_SEEDS = 2**32 - 1, 1000
"""The largest seed, and how many a command takes: each is a row of its table."""

MARGINS = {"laptop": 2.0, "short": 0.5, "paper": 0.5}
"""By preset, the smallest difference in nats that a claim is about where it names none."""

# What pydantic adds to the place of a value that may have one of several types.
_TYPE_TAG = re.compile(r"int|float|str|bool|constrained-\w+|(?:dict|list|literal|function).*\[.*")

# Names of a setting in papers and other code.
_NAMES = {
    "batch": "b batch_size",
    "learning_rate": "lr",
    "precision": "dtype",
    "samples": "k iw_samples num_samples",
    "steps": "t",
    "hidden": "h hidden_size hidden_dim",
    "latent_size": "l",
    "filter_size": "r read_size",
    "sample_size": "z z_dim latent_dim",
    "charge_weight": "beta kl_weight",
}
_SYNONYMS = {other: key for key, others in _NAMES.items() for other in others.split()}
# Set by an option of that name, or by a key of a study file.
_OPTIONS = {"seed": "seeds", "seeds": "seeds", "preset": "preset", "baseline": "baseline"}


class AmbiguousNumberError(yaml.MarkedYAMLError):
    """A number in base 60 or with a leading 0, which versions of YAML read differently."""


class YamlLoader(yaml.SafeLoader):
    """Reads what users write: 1e-3 is a number, 1:30 and 0100 raise, a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own
        first: [(tag, form) for tag, form in known if tag.endswith((":bool", ":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def ambiguous(self, node: yaml.ScalarNode) -> NoReturn:
        """Refuse a number.

        Raises:
            AmbiguousNumberError: with its line.
        """
        text = node.value
        reads = "base 60" if ":" in text else "base 8"
        raise AmbiguousNumberError(
            problem=f"{text} would be a number in {reads} (YAML 1.1); write a decimal number "
            f'without a leading 0 or a colon, a range as 0-2, or "{text}" in quotes for text',
            problem_mark=node.start_mark,
        )


for _tag, _form in {
    "!ambiguous": r"0[0-9_]+|[0-9][0-9_]*(:[0-9_]+)+(\.[0-9_]*)?",
    "tag:yaml.org,2002:int": r"0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+",
    "tag:yaml.org,2002:float": r"(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|\.inf|\.nan",
}.items():
    YamlLoader.add_implicit_resolver(
        _tag, re.compile(rf"[-+]?(?:{_form})\Z"), list("-+.0123456789")
    )
YamlLoader.add_constructor("!ambiguous", YamlLoader.ambiguous)

SCORING = frozenset({"samples", "images"})
"""Keys of a config that concern scoring only, not training."""


class RunConfig(BaseModel):
    """The config of a cell, shared by all its seeds: variant, settings, data and budget."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    variant: str = Field(description="name of the variant")
    dataset: str = Field(description="name of the data set")
    binarisation: str = Field(description="how grey pixels become binary: static, dynamic or soft")
    batch: int = Field(128, ge=1, description="B, images per step")
    epochs: int = Field(250, ge=1, description="passes over the training images")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, at the start of a phase")
    schedule: Literal["steps", "linear"] = Field(
        "steps", description="steps: x0.1 every decay_epochs; linear: falls to 0 over a phase"
    )
    warmup_steps: int = Field(
        0, ge=0, description="first steps of a phase, over which the learning rate rises"
    )
    decay_epochs: int = Field(75, ge=1, description="epochs between learning-rate steps")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of matrix products; tf32 on a GPU only"
    )
    threads: int = Field(1, ge=1, description="CPU threads per seed; more than 1 changes the bits")
    samples: int = Field(
        1000, ge=1, le=100_000, description="K, importance weights per image in scoring"
    )
    images: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="scored test images: a random draw, the same for every variant"
    )
    settings: dict[str, Any] = Field(description="the variant's own parameters, all of them")

    def flat(self) -> dict[str, Any]:
        """Return all keys on one level, with the variant's own."""
        fields = self.model_dump(exclude={"settings"})
        return {**fields, **self.settings}


def resolve(
    variant: Variant,
    *,
    preset: str | None = None,
    study: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the config of a cell.

    Args:
        variant: as returned by the registry.
        preset: a key of `PRESETS`; by default `quick`.
        study: settings of a study file.
        dataset: of `--dataset`.
        overrides: of `--set`, parsed.

    Raises:
        UsageError: an unknown preset, data set, key or value.
    """
    from glas_bench import data

    preset = preset or DEFAULT_PRESET
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    own = set(variant.cls.Settings.model_fields)
    declared = _declared_defaults(variant)
    given = {**(study or {}), **({"dataset": dataset} if dataset else {}), **(overrides or {})}
    _refuse_unknown(variant, given, own)
    filled = {
        key: value
        for key, value in PRESETS[preset].items()
        if key not in declared and (key in own or key in RunConfig.model_fields)
    }
    values = {**filled, **given}
    about = data.info(str(values["dataset"]))
    values.setdefault("binarisation", about.binarisations[0])
    if values["binarisation"] not in about.binarisations:
        raise unknown(
            f"binarisation of {about.name}", str(values["binarisation"]), about.binarisations
        )
    if about.name == "omniglot":
        values.setdefault("decay_epochs", 100)
    settings = check_settings(variant, {key: values.pop(key) for key in own & set(values)})
    try:
        return RunConfig(variant=variant.name, settings=settings.model_dump(), **values)
    except ValidationError as error:
        raise UsageError(explain(error, RunConfig)) from error


def differing(
    variant: Variant, config: RunConfig, preset: str | None, precision: str
) -> dict[str, Any]:
    """Return the settings of a cell that are not its variant's and preset's, for its name.

    `precision` is that of the device, and the binarisation that of the data set, where a user
    leaves them out.
    """
    preset = preset or DEFAULT_PRESET
    default = resolve(
        variant, preset=preset, dataset=config.dataset, overrides={"precision": precision}
    )
    usual = {**default.flat(), "dataset": PRESETS[preset]["dataset"]}
    return {key: value for key, value in config.flat().items() if value != usual.get(key)}


def check_settings(variant: Variant, values: Mapping[str, Any]) -> BaseSettings:
    """Return the variant's settings, defaults filled in.

    Raises:
        UsageError: a value that is not allowed.
    """
    fields = variant.cls.Settings.model_fields
    named = {
        key: _as_named(value, get_args(fields[key].annotation)) for key, value in values.items()
    }
    try:
        return variant.cls.Settings(**named)
    except ValidationError as error:
        raise UsageError(f"{variant.name}: {explain(error, variant.cls.Settings)}") from error


def _as_named(value: Any, names: Sequence[Any]) -> Any:
    """Return the one of these names that writes a number: "1e-3" for 0.001."""
    same = (name for name in names if isinstance(name, str) and same_value(name, value))
    return value if isinstance(value, bool) else next(same, value)


def same_value(a: Any, b: Any) -> bool:
    """Return whether two values of a setting are the same: 1e-3, 0.001 and "1e-3" are."""
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return bool(a == b) or str(a) == str(b)


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse `key=value` pairs; a value is read as YAML.

    Raises:
        UsageError: a pair without `=`, a key given twice, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key or not text.strip():
            raise UsageError(f"--set {pair!r}: write --set key=value, e.g. --set epochs=3")
        if key in values:
            raise UsageError(f"--set {key}: given twice")
        try:
            values[key] = yaml.load(text, YamlLoader)
        except AmbiguousNumberError as error:
            raise UsageError(f"--set {pair!r}: {error.problem}") from error
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"--set {pair!r}: the value is not valid YAML") from error
    return values


def meant(key: str, allowed: Collection[str]) -> str:
    """Return `` Did you mean 'x'?`` for an unknown setting, or how it is set.

    A synonym from papers takes precedence over the nearest name; empty where no name is near.
    """
    if option := _OPTIONS.get(key.lower()):
        return f" Set it with --{option}, or with {option}: in a study file."
    synonym = _SYNONYMS.get(key.lower())
    return f" Did you mean {synonym!r}?" if synonym in allowed else nearest(key, allowed)


def parse_seeds(text: str) -> list[int]:
    """Parse `0`, `0-2` or `0,3,5-7` into a sorted list without repeats.

    Raises:
        UsageError: anything else.
    """
    seeds: set[int] = set()
    count = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds {text!r}: write 0, 0-2 or 0,3,5-7")
        if max(len(first), len(last)) > len(str(MOST_SEED)) or int(last or first) > MOST_SEED:
            raise UsageError(f"--seeds {text!r}: a seed is at most {MOST_SEED}")
        low, high = int(first), int(last or first)
        if high < low:
            raise UsageError(f"--seeds {text!r}: {low}-{high} is empty; write {high}-{low}")
        count += high - low + 1
        if count > MOST_SEEDS:
            raise UsageError(f"--seeds {text!r}: more than {MOST_SEEDS} seeds; give fewer")
        seeds.update(range(low, high + 1))
    return sorted(seeds)


def config_key(config: RunConfig, source_hash: str, data_hash: str) -> str:
    """Return the identity of a trained cell, 12 hexadecimal digits.

    It depends on everything that changes the trained parameters and on nothing else: not on the
    seed, the study, a path, the device or scoring.
    """
    trained = config.model_dump(exclude={*SCORING, "variant"})
    identity = {"core": CORE_VERSION, "source": source_hash, "data": data_hash, "config": trained}
    return _digest(identity)


def protocol_key(protocol: Mapping[str, Any]) -> str:
    """Return the identity of a scoring protocol, 12 hexadecimal digits."""
    return _digest({"version": PROTOCOL_VERSION, **protocol})


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _declared_defaults(variant: Variant) -> set[str]:
    """Return the settings whose default the file of the variant, or of a base, declares."""
    from glas_bench import model

    declared: set[str] = set()
    for base in variant.cls.Settings.__mro__:
        if base.__module__ == model.__name__:
            break
        declared |= set(vars(base).get("__annotations__", {}))
    return declared


def _refuse_unknown(variant: Variant, given: Mapping[str, Any], own: set[str]) -> None:
    run_keys = set(RunConfig.model_fields) - {"variant", "settings"}
    if clash := own & run_keys:
        raise UsageError(
            f"{variant.name}: every run has a setting of the name {', '.join(sorted(clash))}; "
            "rename it in the variant's file"
        )
    fields = {**RunConfig.model_fields, **variant.cls.Settings.model_fields}
    for key, value in given.items():
        if isinstance(value, bool) and key in fields and fields[key].annotation is not bool:
            raise UsageError(f"{key}: expected a number or a name, got {str(value).lower()}")
        if key not in own | run_keys:
            raise UsageError(
                f"{variant.name} has no setting {key!r}.{meant(key, own | run_keys)} "
                f"Its own: {', '.join(sorted(own))}. Every run's: {', '.join(sorted(run_keys))}."
            )


def faults(error: ValidationError) -> list[dict[str, Any]]:
    """Return pydantic's errors, those of a value that fits none of several types as one."""
    merged: dict[Any, dict[str, Any]] = {}
    for index, fault in enumerate(error.errors()):
        place, message = fault["loc"][:-1], fault["msg"].partition(",")[0]
        if not (place and _TYPE_TAG.fullmatch(str(fault["loc"][-1]))):
            merged[index] = {**fault}
        elif place in merged:
            merged[place]["msg"] += f" or {message.removeprefix('Input should be ')}"
        else:
            merged[place] = {**fault, "loc": place, "msg": message}
    return list(merged.values())


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return pydantic's errors as one line, with what is allowed."""
    lines = []
    for fault in faults(error):
        name = ".".join(str(part) for part in fault["loc"])
        got = f", got {fault['input']!r}" if fault["loc"] and fault["type"] != "missing" else ""
        message = fault["msg"].removeprefix("Value error, ")
        hint = ""
        if fault["type"] == "extra_forbidden":
            known = sorted(model.model_fields)
            message, got = f"unknown key.{nearest(name, known)} Allowed: {', '.join(known)}", ""
        elif fault["type"] == "literal_error" and isinstance(fault["input"], str):
            field = model.model_fields.get(name)
            hint = nearest(fault["input"], map(str, get_args(field.annotation) if field else ()))
        lines.append(f"{name}: {message}{got}.{hint}" if name else f"{message}.")
    return " ".join(lines)
