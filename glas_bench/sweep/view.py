"""What a sweep shows while it runs: a table on a terminal, plain lines elsewhere.

Both are told the events of this command's own workers, and now and then where all cells stand,
those of other machines among them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from glas_bench.sweep.states import State, summary
from glas_bench.text import duration, number


def make_view() -> View:
    """Return a table where stderr is a terminal and rich is installed, plain lines otherwise."""
    if sys.stderr.isatty():
        try:
            return Table()
        except ImportError:
            pass
    return View()


class View:
    """Plain lines: one when a cell begins, one when it ends, and a count now and then."""

    EVERY = 30.0

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: Sequence[State] = ()
        self.left: float | None = None
        self.counted = time.monotonic()
        self.last = ""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, event: dict[str, Any]) -> None:
        """Take note of a worker's event."""
        kind = event["event"]
        if kind == "begin":
            self._line(f"{event['name']}: running")
        elif kind == "back":
            self._line(f"{event['cell']}: given back, {event['reason']}")
        elif kind == "end":
            self._line(f"{event['name']}: {ending(event)}")
        self._say_note(event)

    def _say_note(self, event: dict[str, Any]) -> None:
        if event["event"] == "seed" and event["of"]["event"] == "note":
            self._line(f"{event['name']}: {event['of']['text']}")

    def refresh(self, found: Sequence[State], left: float | None) -> None:
        """Take note of where all cells stand, and of the seconds left."""
        self.found, self.left = found, left
        told = f"{summary(found)}{_remaining(left)}"
        if time.monotonic() - self.counted >= self.EVERY and told != self.last:
            self.counted, self.last = time.monotonic(), told
            self._line(told)

    def say(self, text: str) -> None:
        """Show a line, whatever else is shown."""
        self._line(text)

    def _line(self, text: str) -> None:
        with self.lock:
            print(text, file=sys.stderr, flush=True)


class Table(View):
    """A table of all cells with their states, those that run with their progress."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self.progress: dict[str, str] = {}
        self.console = Console(stderr=True)
        self.live = Live(
            console=self.console, get_renderable=self.render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Table:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            self.progress[event["cell"]] = f"{event['name']}, starting"
        elif kind == "seed":
            if told := _told(event["of"]):
                self.progress[event["cell"]] = f"seed {event['seed']}: {told}"
        elif kind in ("end", "back"):
            self.progress.pop(event["cell"], None)
        self._say_note(event)

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def render(self) -> Any:
        """Return the table as it is now; of a long study, what runs and what is next to it."""
        from rich.table import Table as Grid

        grid = Grid(box=None, pad_edge=False)
        for column in ("cell", "status", "seeds", "nll"):
            grid.add_column(column, no_wrap=True, justify="left" if column == "cell" else "right")
        grid.add_column("", no_wrap=True, overflow="ellipsis")
        rows = max(3, self.console.height - 4)
        for state in _window(self.found, rows):
            done = sum(status in ("complete", "diverged") for status in state.seeds.values())
            running = state.item.cell in self.progress
            grid.add_row(
                state.item.cell,
                "running" if running else state.status.replace("_", " "),
                f"{done}/{len(state.seeds)}",
                number(state.numbers.get("nll")),
                self.progress.get(state.item.cell) or _elsewhere(state),
                style=STYLES.get("running" if running else state.status),
            )
        grid.caption = f"{summary(self.found)}{_remaining(self.left)}" if self.found else None
        grid.caption_justify = "left"
        return grid


STYLES = {"running": "bold", "failed": "red", "waiting": "dim", "not_applicable": "dim"}


def _window(found: Sequence[State], rows: int) -> list[State]:
    """Return at most so many states: failed and running ones first, then the nearest to them."""
    if len(found) <= rows:
        return list(found)
    rank = {"running": 0, "failed": 1, "waiting": 2, "complete": 3}
    chosen = sorted(range(len(found)), key=lambda i: (rank.get(found[i].status, 4), i))[:rows]
    return [found[index] for index in sorted(chosen)]


def _told(event: dict[str, Any]) -> str | None:
    """Return a seed's event in a few words."""
    if event["event"] == "train":
        return (
            f"epoch {event['epoch']}/{event['epochs']}  {event['images_per_second']:.0f} images/s  "
            f"{duration(event['seconds_left'])} left"
        )
    if event["event"] == "score":
        return f"scoring {event['done']}/{event['total']} images"
    return None


def _elsewhere(state: State) -> str:
    if state.status == "running" and state.owner:
        return f"pid {state.owner['pid']} on {state.owner['host']}"
    return state.reason or ""


def _remaining(left: float | None) -> str:
    return "" if not left else f"; about {duration(left)} left"


def ending(event: dict[str, Any]) -> str:
    """Return how a cell ended, in words."""
    told = str(event["status"])
    for name in ("nll", "iw"):
        if name in event["numbers"]:
            told += f", {name} {number(event['numbers'][name])}"
            break
    told += f", {duration(event['seconds'])}"
    return f"{told}; {event['reason']}" if event["reason"] else told
