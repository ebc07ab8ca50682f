"""What `variants` does: list all variants, or explain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic.fields import FieldInfo

from glas_bench import contract, registry
from glas_bench.commands import Answer
from glas_bench.registry import ESTIMATOR, Variant
from glas_bench.text import aligned

WORDS = {True: "yes", False: "no", None: "not shown"}
SETTINGS = "settings and their defaults (a preset sets steps and hidden unless the file does):"


def carry_out(reference: str | None) -> Answer:
    """Explain a variant, by default list all.

    Raises:
        UsageError: no such variant.
    """
    if reference is None:
        every = [facts(registry.find(name)) for name in registry.names()]
        return Answer(listing(every), every)
    one = facts(registry.find(reference), checked=True)
    return Answer(page(one), one)


def facts(variant: Variant, *, checked: bool = False) -> dict[str, Any]:
    """Return what a variant declares, JSON-ready; its densities are checked, or taken as said."""
    cls = variant.cls
    bound = contract.bound(cls, cls.Settings()) if checked else cls.bound(cls.Settings())
    return {
        "name": variant.name,
        "summary": variant.summary,
        "docstring": variant.docstring,
        "file": str(variant.path),
        "bounds_nll": bound.holds,
        "bound_reason": bound.reason,
        "has_density": cls.has_density,
        "needs_labels": cls.needs_labels,
        "generative": list(cls.generative),
        "write_up": cls.write_up or None,
        "published": [
            {"dataset": name, "nats": value, "estimator": ESTIMATOR}
            for name, value in cls.published.items()
        ],
        "settings": {
            name: {
                "default": field.get_default(call_default_factory=True),
                "allowed": allowed(field),
                "about": field.description or "",
            }
            for name, field in cls.Settings.model_fields.items()
        },
    }


def allowed(field: FieldInfo) -> str:
    """Return the allowed values of a field, e.g. `whole number >= 1`."""
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str | int | float) for choice in choices):
        return " | ".join(str(choice) for choice in choices)
    kind = {int: "whole number", float: "number", bool: "true | false", str: "text"}.get(
        field.annotation,  # type: ignore[arg-type]
        str(field.annotation),
    )
    signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
    limits = [
        f"{sign} {getattr(part, name.lower()):g}"
        for part in field.metadata
        for name, sign in signs.items()
        if type(part).__name__ == name
    ]
    return " ".join([kind, *limits])


def listing(every: Sequence[dict[str, Any]]) -> str:
    """Return the list of variants as lines."""
    head = ["variant", "bounds NLL?", "q has a density?", "what changes"]
    rows = [
        [one["name"], WORDS[one["bounds_nll"]], WORDS[one["has_density"]], one["summary"]]
        for one in every
    ]
    lines = aligned([head[:3], *(row[:3] for row in rows)])
    last = [head[3], "-" * len(head[3]), *(row[3] for row in rows)]
    width = max(len(line) for line in lines)
    return "\n".join(f"{a.ljust(width)}  {b}" for a, b in zip(lines, last, strict=True))


def page(one: dict[str, Any]) -> str:
    """Return the page of one variant."""
    lines = [f"{one['name']}  ({one['file']})", "", one["docstring"], "", SETTINGS]
    for name, setting in one["settings"].items():
        lines.append(f"  {name} = {setting['default']}  ({setting['allowed']})")
        lines.append(f"      {setting['about']}")
    lines += [
        "",
        f"objective bounds NLL: {WORDS[one['bounds_nll']]}; {one['bound_reason']}",
        f"q has a density: {WORDS[one['has_density']]}",
        f"needs labels: {WORDS[one['needs_labels']]}",
        f"generative parameters: {', '.join(one['generative'])}; the rest is recognition",
        f"what the write-up says happened: {one['write_up'] or 'nothing'}",
    ]
    for number in one["published"]:
        lines.append(f"published on {number['dataset']}: {number['nats']} nats ({ESTIMATOR})")
    return "\n".join(lines)
