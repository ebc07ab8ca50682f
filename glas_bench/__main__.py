"""The entry point: what must happen before heavy imports."""

import os

from glas_bench import signals


def main() -> None:
    """Run `glas-bench`."""
    signals.install()
    # By default a seed has one thread of numpy's BLAS. OpenBLAS reads this when it is loaded; more
    # threads (`--threads`) take threadpoolctl, which a bare machine may lack.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from glas_bench.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
