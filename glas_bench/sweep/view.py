"""What a sweep shows while it runs: a table on a terminal, plain lines elsewhere.

Both are given the events of this command's own workers, and now and then the status of all cells,
including those that other machines run.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from glas_bench.display import Shown, on_terminal
from glas_bench.sweep import status
from glas_bench.text import duration, number, seed_ranges, shortened

STYLES = {"running": "bold", "failed": "red", "waiting": "dim", "not_applicable": "dim"}


def make_view() -> View:
    """Return a table or plain lines."""
    return on_terminal(Table, View)


class View(Shown):
    """Plain lines: one when a cell begins, one when it ends, and a count now and then."""

    EVERY = 30.0

    def __init__(self) -> None:
        self.counted, self.counts = time.monotonic(), ""  # when they were shown last, and which
        self.cells: list[dict[str, Any]] = []
        self.caption = ""

    def show(self, event: dict[str, Any]) -> None:
        """Show a worker's event."""
        kind = event["event"]
        if kind == "begin":
            seeds = event.get("seeds", ())
            about = f", seed{'s' * (len(seeds) > 1)} {seed_ranges(seeds)}" if seeds else ""
            self.say(f"{event['name']}: running{about}")
        elif kind == "back":
            self.say(f"{event['cell']}: given back, {event['reason']}")
        elif kind == "end":
            self.say(f"{event['name']}: {ending(event)}")
        self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        """Say what is worth a line on any display."""
        if event["event"] == "lost":
            self.say(event["reason"])
        elif event["event"] == "seed" and event["of"]["event"] == "note":
            self.say(f"{event['name']}: {event['of']['text']}")

    def refresh(
        self, document: dict[str, Any], left: float | None, most: float | None = None
    ) -> None:
        """Show the document of `status`, and about how many seconds are left, if known.

        Where claims get seeds until they are decided, `left` is of the seeds planned by now, and
        `most` of those to the last look of all claims that are undecided.
        """
        self.cells = document["cells"]
        self.caption = status.summary(document)
        if left:
            self.caption += f"; about {duration(left)} left"
        if left and most and most > left:
            self.caption += f" to the next look, {duration(most)} to the last one"
        if time.monotonic() - self.counted >= self.EVERY and self.caption != self.counts:
            self.counted, self.counts = time.monotonic(), self.caption
            self.say(self.caption)

    def say(self, text: str) -> None:
        """Show a line; from any thread."""
        print(f"{text}\n", end="", file=sys.stderr, flush=True)


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

    def show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            self.progress[event["cell"]] = f"{event['name']}, starting"
        elif kind == "seed":
            if progress := _progress(event["of"]):
                self.progress[event["cell"]] = f"seed {event['seed']}: {progress}"
        elif kind in ("end", "back"):
            self.progress.pop(event["cell"], None)
        self._note(event)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def render(self) -> Any:
        """Return the table as it is now; of a long study, failed and running cells first."""
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False)
        room = max(12, self.console.width - 50)  # so much for the other columns and progress
        short = shortened([cell["cell"] for cell in self.cells], room)
        widths = {"cell": max(map(len, short.values()), default=4)}  # of all cells: none jumps
        widths |= {"status": len("not applicable"), "seeds": 5, "nll": 7}
        for column, width in widths.items():
            side: Any = "left" if column == "cell" else "right"
            grid.add_column(column, no_wrap=True, justify=side, min_width=width)
        grid.add_column("", no_wrap=True, overflow="ellipsis")
        for cell in _window(self.cells, max(3, self.console.height - 4)):
            here = self.progress.get(cell["cell"])
            shown = {**cell, "status": "running"} if here else cell
            note = here or (cell["status"] == "running" and cell.get("worker")) or cell["reason"]
            _, *rest = status.row(shown)
            grid.add_row(short[cell["cell"]], *rest, note or "", style=STYLES.get(shown["status"]))
        return Group(grid, Text(self.caption, style="italic"))


def _window(cells: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """Return at most `rows` cells: running and failed ones first, all in the order of the plan."""
    rank = {"running": 0, "failed": 1, "waiting": 2, "complete": 3}
    order = sorted(range(len(cells)), key=lambda i: (rank.get(cells[i]["status"], 4), i))
    return [cells[index] for index in sorted(order[:rows])]


def _progress(event: dict[str, Any]) -> str | None:
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
    numbers = event["numbers"]
    scores = [f"{name} {number(numbers[name])}" for name in ("nll", "iw") if name in numbers]
    text = ", ".join([event["status"], *scores[:1], duration(event["seconds"])])
    return f"{text}; {event['reason']}" if event["reason"] else text
