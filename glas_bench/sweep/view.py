"""What a sweep shows while it runs: a table on a terminal, plain lines elsewhere.

Both are given the events of this command's own workers, and now and then the status of all cells,
including those that other machines run.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from glas_bench.sweep import status
from glas_bench.text import duration, number

STYLES = {"running": "bold", "failed": "red", "waiting": "dim", "not_applicable": "dim"}


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
        self.counted = time.monotonic()
        self.counts = ""  # when they were shown last, and which
        self.cells: list[dict[str, Any]] = []
        self.caption = ""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, event: dict[str, Any]) -> None:
        """Show a worker's event."""
        kind = event["event"]
        if kind == "begin":
            self.say(f"{event['name']}: running")
        elif kind == "back":
            self.say(f"{event['cell']}: given back, {event['reason']}")
        elif kind == "end":
            self.say(f"{event['name']}: {ending(event)}")
        self._say_note(event)

    def _say_note(self, event: dict[str, Any]) -> None:
        if event["event"] == "seed" and event["of"]["event"] == "note":
            self.say(f"{event['name']}: {event['of']['text']}")

    def refresh(self, document: dict[str, Any], left: float | None) -> None:
        """Show the status of all cells.

        Args:
            document: of `status.status_document`.
            left: about how many seconds the rest takes, if known.
        """
        self.cells = document["cells"]
        self.caption = status.summary(document)
        if left:
            self.caption += f"; about {duration(left)} left"
        if time.monotonic() - self.counted >= self.EVERY and self.caption != self.counts:
            self.counted, self.counts = time.monotonic(), self.caption
            self.say(self.caption)

    def say(self, text: str) -> None:
        """Show a line, whatever else is shown."""
        with self.lock:
            print(text, file=sys.stderr, flush=True)


class Table(View):
    """A table of all cells with their status, and the progress of cells that run here."""

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
            if progress := _progress(event["of"]):
                self.progress[event["cell"]] = f"seed {event['seed']}: {progress}"
        elif kind in ("end", "back"):
            self.progress.pop(event["cell"], None)
        self._say_note(event)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def render(self) -> Any:
        """Return the table as it is now; of a long study, failed and running cells first."""
        from rich.table import Table as Grid

        grid = Grid(box=None, pad_edge=False)
        for column in ("cell", "status", "seeds", "nll"):
            grid.add_column(column, no_wrap=True, justify="left" if column == "cell" else "right")
        grid.add_column("", no_wrap=True, overflow="ellipsis")
        for cell in _window(self.cells, max(3, self.console.height - 4)):
            here = self.progress.get(cell["cell"])
            shown = {**cell, "status": "running"} if here else cell
            note = here or (cell["status"] == "running" and cell.get("worker")) or cell["reason"]
            grid.add_row(*status.row(shown), note or "", style=STYLES.get(shown["status"]))
        grid.caption = self.caption or None
        grid.caption_justify = "left"
        return grid


def _window(cells: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """Return at most so many cells: running and failed ones first, all in the order of the plan."""
    rank = {"running": 0, "failed": 1, "waiting": 2, "complete": 3}
    order = sorted(range(len(cells)), key=lambda i: (rank.get(cells[i]["status"], 4), i))
    return [cells[index] for index in sorted(order[:rows])]


def _progress(event: dict[str, Any]) -> str | None:
    """Return a seed's event in a few words."""
    if event["event"] == "train":
        return (
            f"epoch {event['epoch']}/{event['epochs']}  {event['images_per_second']:.0f} images/s  "
            f"{duration(event['seconds_left'])} left"
        )
    if event["event"] == "score":
        return f"scoring {event['done']}/{event['total']} images"
    return None


def ending(event: dict[str, Any]) -> str:
    """Return how a cell ended: status, nll (else iw), duration, reason."""
    text = str(event["status"])
    for name in ("nll", "iw"):
        if name in event["numbers"]:
            text += f", {name} {number(event['numbers'][name])}"
            break
    text += f", {duration(event['seconds'])}"
    return f"{text}; {event['reason']}" if event["reason"] else text
