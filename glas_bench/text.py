"""Plain text: numbers, durations, sizes, seeds, settings, aligned tables; no passwords."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals, or `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(estimate: float, low: float, high: float, unit: str = "") -> str:
    """Return `+1.83 nats [-3.18, +6.83]`: two decimals, or as many as show a narrow interval."""
    width = high - low
    digits = 2 if width <= 0 else max(2, math.ceil(1 - math.log10(width)))
    first, *ends = (f"{each:+.{digits}f}" for each in (estimate, low, high))
    return f"{first}{unit and ' '}{unit} [{', '.join(ends)}]"


def duration(seconds: float) -> str:
    """Return seconds as `1:02:03`, `2:03` or `4 s`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def byte_size(number: int) -> str:
    """Return bytes as `1.5 GiB` or `20 MiB`."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**29 else f"{number / 2**20:.0f} MiB"


def seed_ranges(seeds: Sequence[int]) -> str:
    """Return seeds in the form that `--seeds` takes: `0-4`, `0,1` or `0-2,7`."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )


def setting(value: Any) -> str:
    """Return a setting's value as YAML writes it: `true` for True, `3` for 3."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def plain(value: Any) -> str:
    """Return text as it is, None as no text, and any other value as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, default=str)


def settings(params: Mapping[str, Any]) -> str:
    """Return settings as `key=value key=value`."""
    return " ".join(f"{key}={setting(value)}" for key, value in params.items())


def p_value(p: float) -> str:
    """Return `p = 0.012`, or `p < 1e-16`: below that a number says nothing."""
    return "p < 1e-16" if p < 1e-16 else f"p = {p:.2g}"


def data_origin(origin: str | None) -> str:
    """Return what a heading adds for data that is not the published one; nothing for that."""
    if origin in (None, "", "published"):
        return ""
    stands_in = ", not the published data" if str(origin).startswith("stand-in") else ""
    return f", {origin}{stands_in}"


def bits_per_character(nats: float, characters: int) -> float:
    """Return bits per character from nats."""
    return nats / (characters * math.log(2))


def calibrated(unigram: float, bigram: float) -> str:
    """Return, for tables of text, what models without latents give on the same lines."""
    one, two = (bits_per_character(nats, 28) for nats in (unigram, bigram))
    return (
        f"On the same lines a place-wise unigram has {unigram:.2f} nats ({one:.2f} bits per "
        f"character) and a bigram {bigram:.2f} ({two:.2f}). Characters are independent given the "
        "canvas: compare nothing here with the numbers of language models."
    )


def count(number: int, noun: str) -> str:
    """Return `1 epoch` or `2 epochs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def screen_width() -> int | None:
    """Return the columns of the terminal that stdout is, or None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def paragraph(text: str) -> str:
    """Return a text with its lines broken between words where they leave the terminal."""
    width = screen_width()
    if width is None:
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def shortened(names: Sequence[str], width: int) -> dict[str, str]:
    """Return each name, shortened to at most `width` columns; no two look alike."""
    for head in (width // 2 - 1, 0, width - 2):  # columns left of the dots
        each = {name: _cut(name, width, head) for name in names}
        if len(set(each.values())) == len(each):
            return each
    return {
        name: _cut(f"{number} {name}", width, width - 2)
        for number, name in enumerate(dict.fromkeys(names), 1)
    }


def _cut(name: str, width: int, head: int) -> str:
    if len(name) <= width:
        return name
    return f"{name[:head]}..{name[len(name) - width + head + 2 :]}"


def aligned(rows: Sequence[Sequence[str]], drop: Sequence[str] = ()) -> list[str]:
    """Return a table as lines of aligned columns, the first row as its header.

    On a terminal that is too narrow, columns of `drop` are left out, the first one first; then the
    names in the first column are shortened.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    over = sum(widths) + 2 * len(widths) - 2 - (screen_width() or 10**6)
    if over > 0 and (leave := [name for name in drop if name in rows[0]]):
        out = rows[0].index(leave[0])
        return aligned([[*row[:out], *row[out + 1 :]] for row in rows], leave[1:])
    if over > 0 and widths[0] - over >= 12:
        short = shortened([row[0] for row in rows[1:]], widths[0] - over)
        rows = [rows[0], *([short[row[0]], *row[1:]] for row in rows[1:])]
        widths[0] -= over
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (rows[0], rule, *rows[1:])
    ]


def winner_line(cell: str, search: Mapping[str, Any]) -> str:
    """Return what a search found, in one line; nothing where it found nothing."""
    if not (won := search["winner"]):
        return ""
    return (
        f"{cell}: best of {count(len(search['trials']), 'trial')} is {settings(won['values'])}, "
        f"validation nll {number(won['validation_nll'])} in {duration(won['seconds'])}"
    )


def redact(text: str) -> str:
    """Return a text with the user and password of every address in it masked."""
    text = re.sub(r"(?<=://)[^\s'\"<>]*@", "***@", text)
    secret = r"([?&;][^=&\s]*(?:pass|pwd|token|secret|key|odbc_connect)[^=&\s]*=)[^&;\s'\"]+"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)
