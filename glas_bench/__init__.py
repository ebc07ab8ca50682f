"""glas-bench: which change to a recurrent VAE really helps?

What a result goes through, in this order:

    study       a question as YAML: its cells, its claims
    config      one cell: a variant, its settings, a budget    (registry finds variants)
    data        a name becomes verified splits
    model       the recurrence and its seams                   (filters, divergences, variants)
    core        trains it: a seed alone, or a stack of them    (ops does the arithmetic)
    evaluate    scores it on the one yardstick                 (yardstick has its parts)
    ais         the referee, which needs no q
    record      the run folder: the result
    decide      verdicts on a study's claims                   (sequential)
    tracking    mirrors run folders to MLflow, and fetches those of other machines
    report      tables, verdicts, figures                      (stats)

`runs` takes a cell from its config to finished seeds, and `sweep` a study to its last cell.
`commands` holds what each command does, `cli` its options. `contract` is what a variant must
satisfy. `docs/architecture.md` has the whole map, and `tests/test_layering.py` says which package
may import which.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glas_bench.model import Glas as Glas
    from glas_bench.record import load_run as load_run

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what a variant's author and a notebook need when it is first asked for."""
    if name == "Glas":
        from glas_bench.model import Glas

        return Glas
    if name == "load_run":
        from glas_bench.record import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
