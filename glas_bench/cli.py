"""The commands: parse, call, print. Heavy imports happen inside them.

Exit codes: 0 all that was asked is complete; 1 it failed; 2 usage or config; 3 finished, but some
seeds failed or could not be mirrored; 4 a --fail-if holds; 75 checkpointed after SIGTERM; 130 after
Ctrl-C.

One file, though it grows with the commands: what a user can type is read in one place, and what a
command does beyond parsing and printing stands in a module of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from glas_bench import __version__
from glas_bench.errors import GlasBenchError, UsageError, unknown

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """A group that names the nearest command for one that it does not know."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or refuse with the nearest name."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(str(unknown("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)


def common(function: F) -> F:
    """Add the options that every command takes."""
    results = click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("results/local"),
        envvar="GLAS_BENCH_RESULTS",
        show_default=True,
        help="Where everything goes (GLAS_BENCH_RESULTS).",
    )
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
    )
    return results(debug(function))


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    del parameter
    if value:
        ctx.find_root().obj = "debug"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glas-bench")
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
)
def cli() -> None:
    """Which change to a recurrent VAE really helps? Train, score and compare its variants."""


# --------------------------------------------------------------------------- run


@cli.command(short_help="Train and score one variant, and a baseline beside it.")
@click.option("--variant", required=True, help="A variant's name, or the path of its file.")
@click.option("--baseline", help="A variant to run beside it and subtract.")
@click.option("--dataset", help="mnist-5k, mnist-static or omniglot; the preset's unless said.")
@click.option(
    "--data-file",
    type=click.Path(path_type=Path),
    help="For omniglot alone: a .mat of chardata.mat's layout, or a packed .npz, in its stead.",
)
@click.option("--preset", help="smoke, quick (default), laptop, short or paper.")
@click.option("--seeds", default="0", show_default=True, help="0, 0-2 or 0,3,5-7.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting: epochs, batch, learning_rate, samples (K), images, ..., or one of the "
    "variant's own (glas-bench variants NAME); repeatable.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", help="fp32 (a CPU's), tf32 (a GPU's) or bf16, of products.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads a seed; 1 unless said.")
@click.option("--fresh", is_flag=True, help="Start these seeds over, removing what they had.")
@click.option("--mirror/--no-mirror", default=True, help="Mirror to MLflow (default).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@common
def run(
    variant: str,
    baseline: str | None,
    dataset: str | None,
    data_file: Path | None,
    preset: str | None,
    seeds: str,
    pairs: tuple[str, ...],
    device: str,
    precision: str | None,
    threads: int | None,
    fresh: bool,
    mirror: bool,
    as_json: bool,
    results: Path,
) -> None:
    """Train and score one variant; print its row, and the baseline's beside it.

    The same command again shows what is finished and goes on with what is not.
    """
    from glas_bench import config
    from glas_bench.commands import run as running

    overrides = config.parse_overrides(pairs)
    said = {"precision": precision, "threads": threads, "dataset": dataset}
    for key, value in said.items():
        if value is not None:
            if key in overrides:
                raise click.UsageError(f"--{key} and --set {key} say the same; give one of them")
            overrides[key] = value
    request = running.Request(
        variant=variant,
        baseline=baseline,
        data_file=data_file,
        preset=preset,
        seeds=config.parse_seeds(seeds),
        overrides=overrides,
        device=device,
        fresh=fresh,
        mirror=mirror,
        results=results,
    )
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        answer = running.carry_out(request)
    click.echo(json.dumps(answer.document, allow_nan=False) if as_json else answer.text)
    if answer.mirror_problem:
        click.echo(answer.mirror_problem, err=True)
    sys.exit(answer.exit_code)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what anything prints meanwhile, a variant's file among it, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


# --------------------------------------------------------------------------- sweep, status


def studied(function: F) -> F:
    """Add what says which study is meant, and where its database is."""
    options = (
        click.argument("study"),
        click.option("--preset", help="Instead of the study's own: another study, STUDY@PRESET."),
        click.option("--dataset", help="Instead of the preset's: another study, STUDY@DATASET."),
        click.option(
            "--storage",
            metavar="URL",
            help="postgresql://user@host/database, shared by machines; OPTUNA_STORAGE, which "
            "also holds a password, or <results>/optuna.db unless said.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@cli.command(short_help="Run what is missing of a study.")
@studied
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes; one a GPU unless said, on a CPU as many as it has cores for.",
)
@click.option("--seeds", help="0-2 or 0,3,5-7, instead of the study's own.")
@click.option("--max-trials", type=click.IntRange(min=1), help="Of the study's whole life.")
@click.option("--dry-run", is_flag=True, help="Print the cells and their number, and run nothing.")
@click.option("--extend", is_flag=True, help="Take a changed study's plan; run only what is new.")
@click.option("--retry", type=click.Choice(["failed"]), help="Run failed cells once more.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--mirror/--no-mirror", default=True, help="Mirror to MLflow (default).")
@common
def sweep(
    study: str,
    preset: str | None,
    dataset: str | None,
    storage: str | None,
    as_json: bool,
    workers: int | None,
    seeds: str | None,
    max_trials: int | None,
    dry_run: bool,
    extend: bool,
    retry: str | None,
    device: str,
    mirror: bool,
    results: Path,
) -> None:
    """Run what is missing of a study: a YAML file, or a shipped study's name.

    The same command elsewhere with the same storage adds workers; again, it goes on with what is
    left and shows what is finished.
    """
    from glas_bench import config
    from glas_bench.commands import sweep as sweeping

    request = sweeping.Request(
        study=study,
        preset=preset,
        dataset=dataset,
        seeds=None if seeds is None else config.parse_seeds(seeds),
        workers=workers,
        storage=storage,
        most=max_trials,
        extend=extend,
        retry_failed=retry == "failed",
        device=device,
        mirror=mirror,
        results=results,
    )
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        answer = sweeping.dry_run(request) if dry_run else sweeping.carry_out(request)
    click.echo(json.dumps(answer.document, allow_nan=False) if as_json else answer.text)
    for problem in answer.problems:
        click.echo(problem, err=True)
    sys.exit(answer.exit_code)


@cli.command(short_help="Say where every cell of a study stands.")
@studied
@common
def status(
    study: str,
    preset: str | None,
    dataset: str | None,
    storage: str | None,
    as_json: bool,
    results: Path,
) -> None:
    """Say where every planned cell of a study stands; from any machine with the same storage."""
    from glas_bench.commands import sweep as sweeping

    request = sweeping.Request(
        study=study,
        preset=preset,
        dataset=dataset,
        storage=storage,
        results=results,
    )
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        answer = sweeping.status(request)
    click.echo(json.dumps(answer.document, allow_nan=False) if as_json else answer.text)


# --------------------------------------------------------------------------- variants, check


@cli.command(short_help="List the variants, or explain one.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@common
def variants(name: str | None, as_json: bool, results: Path) -> None:
    """List the variants, or explain one (a name, or the path of a file)."""
    from glas_bench import registry
    from glas_bench.commands import variants as explain

    del results
    if name is None:
        found = [explain.facts(registry.find(each)) for each in registry.names()]
        click.echo(json.dumps(found) if as_json else explain.listing(found))
        return
    facts = explain.facts(registry.find(name))
    click.echo(json.dumps(facts) if as_json else explain.page(facts))


@cli.command(short_help="Test a variant against the contract.")
@click.argument("variant")
@common
def check(variant: str, results: Path) -> None:
    """Hold a variant (a name, or the path of a file) to every promise of the contract."""
    from glas_bench import contract, registry

    del results
    found = registry.find(variant)
    findings = contract.check(found)
    for finding in findings:
        click.echo(f"{'ok    ' if finding.problem is None else 'BROKEN'}  {finding.promise}")
        if finding.problem is not None:
            click.echo(f"        {finding.problem}")
    broken = sum(finding.problem is not None for finding in findings)
    if broken:
        click.echo(f"{found.name}: {broken} of {len(findings)} promises are broken.")
        sys.exit(1)
    click.echo(f"{found.name}: all {len(findings)} promises are kept.")


# --------------------------------------------------------------------------- report, sync


@cli.command(short_help="Write pages: tables, verdicts, figures.")
@click.argument("references", nargs=-1, metavar="[STUDY ... | FILE.csv]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the pages go; <results>/report unless said.",
)
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="EXPR",
    help="Exit with 4 where it holds, e.g. 'elbo(cauchy) > 90', or 'nll_low(mine) > 0': the 95 % "
    "interval of the difference from its baseline lies above 0; repeatable.",
)
@common
def report(
    references: tuple[str, ...], out: Path | None, fail_if: tuple[str, ...], results: Path
) -> None:
    """Write pages: tables, a verdict on each claim, figures; of all studies, or of those named.

    A study is a name (unsuccessful@smoke), or its file; a page's csv is rendered again without the
    record. Exits with 3 where a planned cell is not complete.
    """
    from glas_bench.commands import report as making

    request = making.Request(
        references=references,
        results=results,
        out=out,
        fail_if=fail_if,
        tell=lambda message: click.echo(message, err=True),
        debug=click.get_current_context().find_root().obj == "debug",
    )
    answer = making.carry_out(request)
    for line in answer.lines:
        click.echo(line)
    click.echo(f"written to {answer.out / 'README.md'}", err=True)
    sys.exit(answer.exit_code)


@cli.command(short_help="Mirror run folders to MLflow.")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@common
def sync(folders: tuple[Path, ...], results: Path) -> None:
    """Mirror run folders (all of them, unless some are named) to MLflow; twice is harmless.

    What a sweep made goes to its study's experiment.
    """
    from glas_bench.record import load_run, runs_by_study
    from glas_bench.tracking import sync as mirroring

    for folder in folders:
        load_run(folder)  # what is no run folder is a mistake of the command

    places = runs_by_study(results, folders or None)
    done, failures = set(), []
    for experiment, some in places.items():
        found = mirroring.sync_all(results, some, experiment=experiment)
        failures += found.failures
        done |= {str(each) for each in some} - {name for name, _ in found.failures}
    click.echo(f"{len(done)} run folder(s) mirrored")
    for name, message in failures:
        click.echo(f"{name}: {message}", err=True)
    sys.exit(3 if failures else 0)


# --------------------------------------------------------------------------- finished runs


@cli.command(short_help="Score a finished run again, or by AIS.")
@click.argument("run")
@click.option(
    "--estimator",
    "estimators",
    default="iw,refit",
    show_default=True,
    help="A list of iw, refit and ais.",
)
@click.option(
    "-K",
    "samples",
    type=click.IntRange(min=1),
    help="Importance weights an image; the run's own unless said.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="How many test images, a seeded random draw; the run's own unless said, 100 for ais.",
)
@click.option(
    "--temperatures",
    type=click.IntRange(min=2),
    default=1000,
    show_default=True,
    help="N of ais, which walks at N and 2N.",
)
@click.option(
    "--chains",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Chains of ais for each image.",
)
@click.option("--seed", type=click.IntRange(min=0), help="One seed; all finished ones unless said.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@common
def evaluate(
    run: str,
    estimators: str,
    samples: int | None,
    images: int | None,
    temperatures: int,
    chains: int,
    seed: int | None,
    device: str,
    as_json: bool,
    results: Path,
) -> None:
    """Score a finished run again; RUN is a path, or a unique beginning of its name or key."""
    from glas_bench import signals
    from glas_bench.commands import evaluate as scoring
    from glas_bench.runs.worker import Stopped

    request = scoring.Request(
        results=results,
        run=run,
        estimators=estimators,
        samples=samples,
        images=images,
        temperatures=temperatures,
        chains=chains,
        seed=seed,
        device=device,
    )
    try:
        rows, text = scoring.score(request)
    except Stopped:
        click.echo("stopped; what is done is kept, and the same command goes on", err=True)
        sys.exit(signals.exit_code())
    click.echo(json.dumps({"seeds": rows}) if as_json else text)


@cli.command(short_help="Draw a finished run.")
@click.argument("run")
@click.option("--seed", type=click.IntRange(min=0), help="One seed; all finished ones unless said.")
@click.option(
    "--images", type=click.IntRange(1, 64), default=8, show_default=True, help="How many."
)
@common
def samples(run: str, seed: int | None, images: int, results: Path) -> None:
    """Draw a finished run: samples and reconstructions over time, and where its filter looks."""
    from glas_bench.commands import evaluate as scoring

    for path in scoring.draw(results, run, seed, images):
        click.echo(str(path))


# --------------------------------------------------------------------------- data, this machine


@cli.group(cls=Commands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """List the data sets; `datasets fetch NAME` and `datasets pack NAME FOLDER`."""
    from dataclasses import asdict

    from glas_bench import data

    if context.invoked_subcommand is not None:
        return
    found = [
        {**asdict(info), "present": data.present(name)} for name, info in data.DATASETS.items()
    ]
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        click.echo(f"{one['name']}: {one['title']}")
        click.echo(f"  size      {' / '.join(f'{size:,}' for size in one['sizes'])}")
        click.echo(f"  split     {one['split']}")
        click.echo(f"  labels    {one['labels'] or 'none'}")
        click.echo(f"  binary    {', '.join(one['binarisations'])}")
        click.echo(f"  licence   {one['licence']}")
        for address in one["source"]:
            click.echo(f"  source    {address}")
        here = one["present"] or f"no; glas-bench datasets fetch {one['name']}"
        click.echo(f"  present   {here}")


@datasets.command()
@click.argument("name")
@common
def fetch(name: str, results: Path) -> None:
    """Fetch and verify the files of a data set."""
    from glas_bench import data

    del results
    for path in data.fetch(name):
        click.echo(str(path))


@datasets.command()
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data-file", type=click.Path(path_type=Path), help="As for run.")
@common
def pack(name: str, folder: Path, data_file: Path | None, results: Path) -> None:
    """Write a data set to one file that a machine with torch and numpy alone can read."""
    from glas_bench import data

    del results
    click.echo(str(data.pack(name, folder, data_file)))


@cli.command(short_help="Say what this machine has and lacks.")
@common
def doctor(results: Path) -> None:
    """Say what this machine has, what is missing, and what mends it."""
    from glas_bench.commands import doctor as examination

    lines = examination.examine(results)
    width = max(len(line.what) for line in lines)
    for line in lines:
        click.echo(f"{line.what.ljust(width)}  {line.found}")
        if line.mend:
            click.echo(f"{' ' * width}  -> {line.mend}")


@cli.command(short_help="Measure the speed of training.")
@click.option("--variant", default="cauchy", show_default=True, help="A name, or a file.")
@click.option("--steps", default="8,64", show_default=True, help="T, a list.")
@click.option("--hidden", type=click.IntRange(1), default=256, show_default=True, help="H.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="B.")
@click.option("--seeds", default="1", show_default=True, help="S, a list: how many seeds at once.")
@click.option("--precision", help="A list of fp32, tf32 and bf16; as in training unless said.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--no-reference", is_flag=True, help="Leave the eager loops out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@common
def bench(
    variant: str,
    steps: str,
    hidden: int,
    batch: int,
    seeds: str,
    precision: str | None,
    device: str,
    no_reference: bool,
    as_json: bool,
    results: Path,
) -> None:
    """Measure the training core beside plain eager loops and this machine's limit."""
    del results
    from glas_bench import environment
    from glas_bench.commands import bench as benchmark

    chosen = environment.choose_device(device)
    sizes = {"steps": numbers("--steps", steps), "seeds": numbers("--seeds", seeds)}
    cases = [
        benchmark.Case(
            variant=variant,
            steps=many_steps,
            hidden=hidden,
            batch=batch,
            seeds=many_seeds,
            precision=each,
            device=chosen,
            reference=not no_reference,
        )
        for each in (precision or environment.default_precision(chosen)).split(",")
        for many_steps in sizes["steps"]
        for many_seeds in sizes["seeds"]
    ]
    for case in cases:
        environment.check_precision(case.precision, chosen)
    rows = []
    for case in cases:
        rows.append(benchmark.measure(case, lambda line: click.echo(line, err=True)))
        if not as_json:
            click.echo(benchmark.table(rows[-1:]))
    if as_json:
        click.echo(json.dumps({"cases": rows}))
    elif len(rows) > 1:
        click.echo("\n" + benchmark.table(rows))


def numbers(option: str, text: str) -> list[int]:
    """Parse a list of whole numbers from 1, e.g. `8,64`.

    Raises:
        UsageError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r}: write numbers from 1 with commas between, e.g. 8,64")
    return [int(part) for part in parts]


# --------------------------------------------------------------------------- the command line


def run_command_line() -> NoReturn:
    """Run the command of `sys.argv`; an error is one message, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GlasBenchError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"error: {type(error).__name__}: {error}\nThis is a fault of glas-bench, not yours: "
            "run the command again with --debug and report what it shows.",
            err=True,
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
