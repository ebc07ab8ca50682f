"""Live progress on stderr: bars on a terminal, plain lines elsewhere or without rich."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from glas_bench.text import duration, number


class Display(Protocol):
    """Shows the events of seeds."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, name: str, event: dict[str, Any]) -> None:
        """Show an event of the seed of this name."""


def make_display() -> Display:
    """Return bars where stderr is a terminal and rich is installed, plain lines otherwise."""
    if sys.stderr.isatty():
        try:
            return Bars()
        except ImportError:
            pass
    return Lines()


def ending(event: dict[str, Any]) -> str:
    """Return the status that a seed ended with, and its reason."""
    reason = event.get("reason")
    return f"{event['status']}: {reason}" if reason else str(event["status"])


class Lines:
    """One line for each epoch, and one every 15 seconds in between."""

    EVERY = 15.0

    def __init__(self) -> None:
        self.shown_at: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, name: str, event: dict[str, Any]) -> None:
        """Print what the event says, if it is time to."""
        kind = event["event"]
        if kind == "epoch":
            self.shown_at[name] = time.monotonic()
            left = event["epochs"] - event["epoch"]
            self._line(
                f"{name}: epoch {event['epoch']}/{event['epochs']}, "
                f"objective {number(event['objective'])}, validation "
                f"{event['validation_kind']} {number(event['validation'])}, "
                f"{event['images_per_second']:.0f} images/s, "
                f"{duration(event['seconds'] / event['epoch'] * left)} left"
            )
        elif kind in ("train", "score") and self._due(name):
            what = "training" if kind == "train" else f"scoring, {event['stage']}"
            known = kind == "score" and "seconds_left" in event
            left = f", {duration(event['seconds_left'])} left" if known else ""
            self._line(f"{name}: {what}, {event['done']} of {event['total']}{left}")
        elif kind == "note":
            self._line(f"{name}: {event['text']}")
        elif kind == "end":
            self._line(f"{name}: {ending(event)}")

    def _due(self, name: str) -> bool:
        if time.monotonic() - self.shown_at.setdefault(name, time.monotonic()) < self.EVERY:
            return False
        self.shown_at[name] = time.monotonic()
        return True

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bars:
    """One bar a seed: epoch, objective, validation, images/s, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.tasks: dict[str, Any] = {}
        self.started: dict[str, float] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[about]}"),
            console=Console(stderr=True),
            refresh_per_second=5,
        )

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, name: str, event: dict[str, Any]) -> None:
        """Move the seed's bar."""
        if event["event"] == "note":
            self.progress.console.print(f"{name}: {event['text']}", highlight=False, markup=False)
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=None, about="starting")
        task = self.tasks[name]
        if event["event"] == "train":
            about = (
                f"epoch {event['epoch']}/{event['epochs']}  "
                f"objective {number(event.get('objective'))}  "
                f"validation {number(event.get('validation'))}  "
                f"{event['images_per_second']:.0f} images/s  "
                f"{duration(event['seconds_left'])} left"
            )
            self.progress.update(task, completed=event["done"], total=event["total"], about=about)
        elif event["event"] == "score":
            self._score(name, event)
        elif event["event"] == "end":
            self.progress.update(task, total=1, completed=1, about=ending(event))

    def _score(self, name: str, event: dict[str, Any]) -> None:
        now = time.monotonic()
        stage = f"{name} {event['stage']}"
        spent = now - self.started.setdefault(stage, now)
        left = spent / max(event["done"], 1) * (event["total"] - event["done"])
        left = event.get("seconds_left", left)
        about = f"scoring, {event['stage']} {event['done']}/{event['total']}  {duration(left)} left"
        self.progress.update(
            self.tasks[name], completed=event["done"], total=event["total"], about=about
        )
