"""The entry point: what must happen before heavy imports."""

import os
import sys
import warnings
from pathlib import Path

from glas_bench import signals


def main() -> None:
    """Run `glas-bench`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    try:
        os.getcwd()
    except OSError:
        print("error: the current folder was removed; change to another one", file=sys.stderr)
        sys.exit(2)
    signals.install()
    # By default a seed has one thread of numpy's BLAS. OpenBLAS reads this when it is loaded; more
    # threads (`--threads`) take threadpoolctl, which a bare machine may lack.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Nothing is drawn on a screen, and a notebook's back end, which its children inherit, may not
    # be installed here.
    os.environ["MPLBACKEND"] = "Agg"
    # Packages warn: PYTHONWARNINGS=error would make that the end of a run.
    os.environ.pop("PYTHONWARNINGS", None)
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error"]  # type: ignore[index]
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a sign that a locale lacks is no error
        stream.reconfigure(errors="backslashreplace")
    from glas_bench.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
