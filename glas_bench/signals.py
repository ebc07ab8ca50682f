"""SIGTERM, Ctrl-C and the like: end at once, or at the next step where there is work to save.

Installed before anything heavy is imported. Outside a `graceful` block the process ends with the
signal's exit code; inside one the request is noted, the work checkpoints, and the command ends with
the same code. A second SIGTERM or Ctrl-C ends at once.

A closed terminal sends SIGHUP; Slurm sends SIGUSR1 or SIGUSR2 ahead of a job's time limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

EXIT_CODES: dict[int, int] = {
    signal.SIGINT: 130,
    **dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), 75),
}


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The process was asked to stop; all work is saved."""


_graceful = 0
_second_ends = True
_requested: int | None = None


def install(*, second_ends: bool = True) -> None:
    """Take over these signals, but for a SIGHUP that nohup has ignored.

    A child process goes on after a second one: Slurm signals it, and then so does its parent.
    """
    global _second_ends
    _second_ends = second_ends
    for number in EXIT_CODES:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, _frame: object) -> None:
    global _requested
    urgent = _second_ends and number in (signal.SIGINT, signal.SIGTERM)
    if _graceful == 0 or (_requested is not None and urgent):
        os._exit(EXIT_CODES[number])
    _requested = _requested or number


def requested() -> bool:
    """Return whether the process was asked to stop."""
    return _requested is not None


def check() -> None:
    """Raise `Stopped` if the process was asked to stop."""
    if requested():
        raise Stopped


def exit_code() -> int:
    """Return the exit code that belongs to the signal received."""
    assert _requested is not None
    return EXIT_CODES[_requested]


@contextlib.contextmanager
def graceful() -> Iterator[None]:
    """Answer a first signal by noting it: the work inside looks at `requested`."""
    global _graceful
    _graceful += 1
    try:
        yield
    finally:
        _graceful -= 1
