"""The command's first lines: signals are answered before anything heavy is imported."""

from glas_bench import signals


def main() -> None:
    """Run `glas-bench`."""
    signals.install()
    from glas_bench.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
