"""What a page's markdown is made of: tables, footnotes, numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Notes:
    """The footnotes of a section, numbered as they come up."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a note."""
        text = " ".join(text.split())
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.prefix}-{self.texts.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        """Yield the notes themselves, each a paragraph."""
        for place, text in enumerate(self.texts, 1):
            yield f"[^{self.prefix}-{place}]: {text}"
            yield ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a markdown table's lines, and an empty one."""
    cut = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in cut), ""]


def without(
    columns: Sequence[str], rows: Sequence[Sequence[str]], name: str
) -> tuple[list[str], list[list[str]]]:
    """Return a table without a column, which says the same in every row."""
    place = columns.index(name)
    narrow = [[*row[:place], *row[place + 1 :]] for row in (columns, *rows)]
    return narrow[0], narrow[1:]


def plain(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a number as a table has it."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"
