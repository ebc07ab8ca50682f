"""Plain text: numbers, durations, sizes, seeds, settings, aligned tables; no passwords."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals, or `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


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


def settings(params: Mapping[str, Any]) -> str:
    """Return settings as `key=value key=value`."""
    return " ".join(f"{key}={setting(value)}" for key, value in params.items())


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of aligned columns, the first row as its header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (rows[0], rule, *rows[1:])
    ]


def redact(text: str) -> str:
    """Return a text with the user and password of every address in it masked."""
    text = re.sub(r"(?<=://)[^\s'\"<>]*@", "***@", text)
    secret = r"([?&;][^=&\s]*(?:pass|pwd|token|secret|key|odbc_connect)[^=&\s]*=)[^&;\s'\"]+"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)
