"""The commands: what each does, from a request to an answer; `cli` parses and prints.

The only package that may import every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a command prints and exits with."""

    text: str
    document: Any = None
    """Printed as JSON with `--json`, in place of the text."""
    exit_code: int = 0
    problems: Sequence[str] = ()
    """Lines for stderr."""
    tracebacks: Sequence[str] = ()
    """Of what failed, printed on stderr with `--debug`."""
