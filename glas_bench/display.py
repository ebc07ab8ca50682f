"""Live progress of seeds on stderr: bars on a terminal, plain lines elsewhere or without rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

from glas_bench.text import duration, number, shortened

T = TypeVar("T")


def on_terminal(live: Callable[[], T], plain: Callable[[], T]) -> T:
    """Return the live display where stderr is a terminal and rich is installed, else the other."""
    if sys.stderr.isatty():
        try:
            return live()
        except ImportError:
            pass
    return plain()


class Shown:
    """Shows something while its context is open; `live` is what rich redraws, if anything."""

    live: Any = None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()


def make_display() -> Display:
    """Return bars or plain lines."""
    return on_terminal(Bars, Display)


def ending(event: dict[str, Any]) -> str:
    """Return the status that a seed ended with, and its reason."""
    reason = event.get("reason")
    return f"{event['status']}: {reason}" if reason else str(event["status"])


class Display(Shown):
    """One line for each epoch, and one every 15 seconds in between."""

    EVERY = 15.0

    def __init__(self) -> None:
        self.shown_at: dict[str, float] = {}

    def show(self, name: str, event: dict[str, Any]) -> None:
        """Show an event of the seed of this name, if it is time to."""
        kind, now = event["event"], time.monotonic()
        if kind == "epoch":
            left = event["seconds"] / event["epoch"] * (event["epochs"] - event["epoch"])
            text = (
                f"epoch {event['epoch']}/{event['epochs']}, "
                f"objective {number(event['objective'])}, validation "
                f"{event['validation_kind']} {number(event['validation'])}, "
                f"{event['images_per_second']:.0f} images/s, {duration(left)} left"
            )
        elif kind in ("train", "score"):
            if now - self.shown_at.setdefault(name, now) < self.EVERY:
                return
            what = "training" if kind == "train" else f"scoring, {event['stage']}"
            known = kind == "score" and "seconds_left" in event
            left_text = f", {duration(event['seconds_left'])} left" if known else ""
            text = f"{what}, {event['done']} of {event['total']}{left_text}"
        else:
            text = event["text"] if kind == "note" else ending(event)
        if kind in ("epoch", "train", "score"):
            self.shown_at[name] = now
        print(f"{name}: {text}", file=sys.stderr, flush=True)


class Bars(Display):
    """One bar a seed: epoch, time left and what else the terminal has room for, in one line."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self.name_width = max(16, console.width // 3)
        bar = 24 if console.width > 100 else 0
        self.room = max(8, console.width - self.name_width - bar - (2 if bar else 1))
        self.tasks: dict[str, Any] = {}
        self.started: dict[str, float] = {}
        self.live = Progress(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar_width=bar)] if bar else ()),
            TextColumn("{task.fields[about]}", markup=False),
            console=console,
            refresh_per_second=5,
        )

    def show(self, name: str, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "note":
            self.live.console.print(f"{name}: {event['text']}", highlight=False, markup=False)
            return
        short = shortened([name], self.name_width)[name]
        if name not in self.tasks:
            self.tasks[name] = self.live.add_task(short, total=None, about="starting")
        at = {"completed": event.get("done"), "total": event.get("total")}
        if kind == "train":
            parts = [
                f"epoch {event['epoch']}/{event['epochs']}",
                f"{duration(event['seconds_left'])} left",
                f"objective {number(event.get('objective'))}",
                f"validation {number(event.get('validation'))}",
                f"{event['images_per_second']:.0f} images/s",
            ]
            while len(about := "  ".join(parts)) > self.room and len(parts) > 1:
                parts.pop()
        elif kind == "score":
            stage, now = event["stage"], time.monotonic()
            spent = now - self.started.setdefault(f"{name} {stage}", now)
            left = spent / max(event["done"], 1) * (event["total"] - event["done"])
            left = event.get("seconds_left", left)
            about = f"scoring, {stage} {event['done']}/{event['total']}  {duration(left)} left"
        elif kind == "end":
            at, about = {"completed": 1, "total": 1}, ending(event)
        else:
            return
        about = about if len(about) <= self.room else f"{about[: self.room - 1]}…"
        self.live.update(self.tasks[name], about=about, **at)
