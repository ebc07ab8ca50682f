"""glas-bench: which change to a recurrent VAE really helps?

What a result goes through, in this order:

    study       a question as YAML: its cells, its claims      (studyfile, claims)
    config      one cell: a variant, its settings, a budget    (registry finds variants)
    data        a name becomes verified splits
    model       the recurrence and its seams                   (filters, divergences, variants)
    core        trains it: a seed alone, or a stack of them    (ops does the arithmetic)
    evaluate    scores it on the one yardstick                 (yardstick has its parts)
    ais         the referee, which needs no q
    record      the run folder: the result
    tracking    mirrors run folders to MLflow, and reads them back
    report      tables, verdicts, figures                      (stats)

`runs` takes a cell from its name to finished seeds, and `sweep` a study to its last cell; `cli` is
the commands. `contract` is what a variant must satisfy, `explain` what is known of one; `bench`
measures speed, `doctor` and `environment` know the machine; `errors`, `signals`,
`processes` and `progress` serve them all. `tests/test_layering.py` says which may import which.
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
