"""What `datasets` does: list the data sets."""

from __future__ import annotations

from dataclasses import asdict

from glas_bench import data
from glas_bench.commands import Answer


def listing() -> Answer:
    """Return the facts about every data set, and where it is here."""
    rows = [{**asdict(info), "present": data.present(name)} for name, info in data.DATASETS.items()]
    lines = []
    for row in rows:
        lines += [
            f"{row['name']}: {row['title']}",
            f"  size      {' / '.join(f'{size:,}' for size in row['sizes'])}",
            f"  split     {row['split']}",
            f"  labels    {row['labels'] or 'none'}",
            f"  binary    {', '.join(row['binarisations'])}",
            f"  licence   {row['licence']}",
            *(f"  source    {address}" for address in row["source"]),
            f"  present   {row['present'] or 'no; glas-bench datasets fetch ' + row['name']}",
        ]
    return Answer("\n".join(lines), rows)
