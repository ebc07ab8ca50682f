"""The command's first lines: what must be said before anything heavy is imported."""

import os

from glas_bench import signals


def main() -> None:
    """Run `glas-bench`."""
    signals.install()
    # A seed has one thread of numpy's BLAS unless `--threads` says more, which takes threadpoolctl:
    # a bare machine may lack that, and OpenBLAS reads this when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from glas_bench.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
