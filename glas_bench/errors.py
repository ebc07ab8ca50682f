"""Errors that are shown as one message, and their exit codes.

A message gives what was given, what is allowed, the nearest name, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlasBenchError(Exception):
    """An error that is shown as one message without a traceback."""

    exit_code = 1


class UsageError(GlasBenchError):
    """A command, key, value, name or file that cannot be used as given (exit code 2)."""

    exit_code = 2


class DataError(GlasBenchError):
    """Data that is missing, broken, or cannot be fetched or cached (exit code 1)."""


class RunError(GlasBenchError):
    """A run that cannot continue: a locked or read-only folder, a broken record (exit code 1)."""


class NewerRecord(GlasBenchError):  # noqa: N818 - no damage, so nothing that heals catches it
    """A file of a results folder that a newer version wrote (exit code 1)."""


class AlreadyRunning(RunError):  # noqa: N818 - a state of the world
    """Another process holds the run folder (exit code 1)."""


def nearest(got: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the allowed name nearest to ``got``, or nothing."""
    match = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown(kind: str, got: str, allowed: Iterable[str]) -> UsageError:
    """Return the error for a name that is not allowed."""
    names = sorted(allowed)
    return UsageError(
        f"unknown {kind} {got!r}.{nearest(got, names)} Allowed: {', '.join(names) or 'none'}."
    )
