"""The commands: options and help.

What a command does is in `glas_bench.commands`, imported inside it, so that `--help` is quick.

Exit codes: 0 complete; 1 failed; 2 usage or config; 3 finished, but some seeds or cells failed or
could not be mirrored; 4 a --fail-if holds; 75 checkpointed after SIGTERM; 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from glas_bench import __version__, completion
from glas_bench.errors import GlasBenchError, unknown

if TYPE_CHECKING:
    from glas_bench.commands import Answer

F = TypeVar("F", bound=Callable[..., Any])


class PathType(click.Path):
    """A path; a `~` that the shell left in it, in quotes, is the home folder, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; databases, records and messages can hold only UTF-8."""
        path = os.path.expanduser(os.fspath(value))
        try:
            os.path.abspath(path).encode()
        except UnicodeEncodeError:
            self.fail(f"{os.path.abspath(path)!a} is no UTF-8; use a folder of another name")
        return super().convert(path, param, ctx)


class Commands(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or raise with the nearest name."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(str(unknown("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)


# --------------------------------------------------------------------------- shared options


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that applies these, the first one outermost."""
    return lambda function: functools.reduce(lambda f, add: add(f), reversed(decorators), function)


debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
results_option = functools.partial(
    click.option,
    "--results",
    type=PathType(file_okay=False, path_type=Path),
    default=Path("results/local"),
    envvar="GLAS_BENCH_RESULTS",
    show_default=True,
    help="Folder of all results (GLAS_BENCH_RESULTS).",
)
common = options(results_option(), debug_option)
without_results = options(results_option(expose_value=False), debug_option)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
mirror_option = click.option(
    "--mirror/--no-mirror", default=True, help="Mirror to MLflow (default)."
)
log_model_option = click.option(
    "--log-model",
    is_flag=True,
    help="Log each complete seed's model to MLflow too, for mlflow.pyfunc.load_model.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), help="One seed; by default all finished ones."
)
study_options = options(
    click.argument("study", shell_complete=completion.studies),
    click.option(
        "--preset",
        help="Use this preset in place of the study's own; the study is then STUDY@PRESET.",
        shell_complete=completion.presets,
    ),
    click.option(
        "--dataset",
        help="Use this data set in place of the preset's; the study is then STUDY@DATASET.",
        shell_complete=completion.datasets,
    ),
    click.option(
        "--storage",
        metavar="URL",
        help="Database, postgresql://user@host/database if machines share it, without a "
        "password. By default OPTUNA_STORAGE, which may hold one, otherwise <results>/optuna.db.",
    ),
    json_option,
)


def debugging() -> bool:
    """Return whether --debug is given, before or after the command."""
    return "--debug" in sys.argv


def show(make: Callable[[], Answer], as_json: bool = False, indent: int | None = None) -> NoReturn:
    """Print the answer of a command and exit with its code.

    With `as_json` the document is all that stdout gets.
    """
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        answer = make()
    text = answer.text
    if as_json and answer.document is not None:
        text = json.dumps(answer.document, allow_nan=False, indent=indent)
    if text:
        click.echo(text)
    for problem in (*(answer.tracebacks if debugging() else ()), *answer.problems):
        click.echo(problem, err=True)
    sys.exit(answer.exit_code)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect everything printed on stdout, by a variant's file for instance, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glas-bench")
@debug_option
def cli() -> None:
    """Which change to a recurrent VAE really helps? Train, score and compare its variants."""


# --------------------------------------------------------------------------- run, sweep, status


@cli.command(short_help="Train and score one variant, and a baseline beside it.")
@click.option(
    "--variant",
    required=True,
    help="A variant's name, or the path of its file.",
    shell_complete=completion.variants,
)
@click.option(
    "--baseline",
    help="A variant to run as well and compare with.",
    shell_complete=completion.variants,
)
@click.option(
    "--dataset",
    help="A name that `datasets` lists; by default the preset's.",
    shell_complete=completion.datasets,
)
@click.option(
    "--data-file",
    type=PathType(path_type=Path),
    help="Data of your own: images of any size (.npz, .npy, a folder of PNGs), a text in UTF-8 "
    "(.txt); with --dataset omniglot a .mat with the layout of chardata.mat; or a packed .npz.",
)
@click.option(
    "--preset",
    help="smoke, quick (default), laptop, short or paper.",
    shell_complete=completion.presets,
)
@click.option("--seeds", default="0", show_default=True, help="0, 0-2 or 0,3,5-7.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.settings,
    help="Change a setting: epochs, batch, learning_rate, samples (K), images, ..., or one of the "
    "variant's own (glas-bench variants NAME); repeatable.",
)
@device_option
@click.option(
    "--precision",
    help="Of matrix products: fp32 (default on a CPU), tf32 (default on a GPU, and only there) or "
    "bf16.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads per seed; by default 1.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Start these seeds again; the old results go once new ones are complete.",
)
@mirror_option
@log_model_option
@json_option
@common
def run(as_json: bool, **given: Any) -> None:
    """Train and score one variant; print its row, and the baseline's beside it.

    The same command again prints what is finished and resumes what is not.
    """
    from glas_bench.commands import run as command

    show(lambda: command.carry_out(command.Request(**given)), as_json)


@cli.command(short_help="Run what is missing of a study.")
@study_options
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes; by default one per GPU, on a CPU as many as its cores allow.",
)
@click.option("--seeds", help="0-2 or 0,3,5-7, instead of the study's own.")
@click.option(
    "--max-trials",
    type=click.IntRange(min=1),
    help="Most cells, and most trials of searches, over all sweeps of the study.",
)
@click.option("--decide", is_flag=True, help="Add seeds until each claim is decided or cannot be.")
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="After this many hours, finish the running seeds and stop.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the planned cells, and the core hours of claims (steps are timed); run none.",
)
@click.option("--extend", is_flag=True, help="Accept a changed study; run only the new cells.")
@click.option(
    "--pruner",
    type=click.Choice(["median", "halving"]),
    help="End trials of a search early that are worse than others were by then (validation by "
    "epoch); never seeds that are reported.",
)
@click.option("--retry", type=click.Choice(["failed"]), help="Run failed cells once more.")
@device_option
@mirror_option
@common
def sweep(as_json: bool, dry_run: bool, **given: Any) -> None:
    """Run what is missing of a study: a YAML file, or a shipped study's name.

    The same command elsewhere with the same storage adds workers. Run again, it resumes what is
    left and prints what is finished.
    """
    from glas_bench.commands import sweep as command

    act = command.dry_run if dry_run else command.carry_out
    show(lambda: act(command.Request(**given)), as_json)


@cli.command(short_help="Show the status of every cell of a study.")
@study_options
@common
def status(as_json: bool, **given: Any) -> None:
    """Show the status of every planned cell of a study; on any machine with the same storage."""
    from glas_bench.commands import sweep as command

    show(lambda: command.status(command.Request(**given)), as_json)


# --------------------------------------------------------------------------- variants, check


@cli.command(short_help="List the variants, or explain one.")
@click.argument("name", required=False, shell_complete=completion.variants)
@json_option
@without_results
def variants(name: str | None, as_json: bool) -> None:
    """List the variants, or explain one (a name, or the path of a file)."""
    from glas_bench.commands import variants as command

    show(lambda: command.carry_out(name), as_json)


@cli.command(short_help="Test a variant against the contract.")
@click.argument("variant", shell_complete=completion.variants)
@without_results
def check(variant: str) -> None:
    """Test a variant (a name, or the path of a file) against the contract (see CONTRIBUTING.md)."""
    from glas_bench.commands import check as command

    show(lambda: command.carry_out(variant))


# --------------------------------------------------------------------------- report, sync


@cli.command(short_help="Write pages: tables, verdicts, figures.")
@click.argument(
    "references",
    nargs=-1,
    metavar="[STUDY ... | FILE.csv]",
    shell_complete=completion.studies,
)
@click.option(
    "--out",
    type=PathType(file_okay=False, path_type=Path),
    help="Folder of the pages; by default <results>/report.",
)
@click.option(
    "--fail-if",
    multiple=True,
    metavar="EXPR",
    help="Exit with 4 where it holds, e.g. 'elbo(cauchy) > 90', or 'nll_low(mine) > 0': the 95 % "
    "interval of the difference from its baseline lies above 0; repeatable.",
)
@click.option("--html", is_flag=True, help="Also write each page as one HTML file to send.")
@click.option("--latex", is_flag=True, help="Also write its tables for booktabs and siunitx.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["svg", "pdf"]),
    multiple=True,
    help="Also write each figure in this format; repeatable.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Also write STUDY.json, all results of a page; print a document instead of lines.",
)
@common
def report(**given: Any) -> None:
    """Write pages: tables, a verdict on each claim, figures; of all studies, or of those named.

    A study is a name (unsuccessful@smoke) or a file; a page's csv is rendered again without any
    run. Exits with 3 where a planned cell is not complete.
    """
    from glas_bench.commands import report as command

    def tell(message: str) -> None:
        click.echo(message, err=True)

    request = command.Request(**given, tell=tell, debug=debugging())
    show(lambda: command.carry_out(request), request.as_json, indent=2)


@cli.command(short_help="Mirror run folders to MLflow.")
@click.argument("folders", nargs=-1, type=PathType())
@log_model_option
@common
def sync(folders: tuple[str, ...], results: Path, log_model: bool) -> None:
    """Mirror run folders to MLflow, by default all of them; repeating it is harmless.

    Cells of a study go to the study's experiment.
    """
    from glas_bench.commands import sync as command

    show(lambda: command.carry_out(folders, results, log_model))


# --------------------------------------------------------------------------- finished runs


@cli.command(short_help="Score a finished run again, or by AIS.")
@click.argument("run", shell_complete=completion.runs)
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
    type=click.IntRange(1, 100_000),
    help="Importance weights per image; by default the run's own.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="Number of test images, a seeded random draw; by default the run's own, 100 for ais.",
)
@click.option(
    "--temperatures",
    type=click.IntRange(min=2),
    default=1000,
    show_default=True,
    help="N of ais, which runs with N and 2N.",
)
@click.option(
    "--chains",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Chains of ais per image.",
)
@seed_option
@device_option
@json_option
@common
def evaluate(as_json: bool, **given: Any) -> None:
    """Score a finished run again; RUN is a path, or an unambiguous prefix of its name or key."""
    from glas_bench.commands import evaluate as command

    show(lambda: command.carry_out(command.Request(**given)), as_json)


@cli.command(short_help="Draw pictures of a finished run.")
@click.argument("run", shell_complete=completion.runs)
@seed_option
@click.option(
    "--images",
    type=click.IntRange(1, 64),
    help="Number of images, by default 8; of lines of text, by default 4.",
)
@common
def samples(run: str, seed: int | None, images: int | None, results: Path) -> None:
    """Draw samples and reconstructions of a finished run over time, and where its filter looks.

    Of text it also prints the lines as they form.
    """
    from glas_bench.commands import evaluate as command

    for line in command.draw(results, run, seed, images):
        click.echo(line)


# --------------------------------------------------------------------------- data, this machine


@cli.group(cls=Commands, invoke_without_command=True)
@json_option
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """List the data sets; `datasets fetch NAME` and `datasets pack NAME FOLDER`."""
    from glas_bench.commands import datasets as command

    if context.invoked_subcommand is None:
        show(command.listing, as_json)


@datasets.command()
@click.argument("name")
@without_results
def fetch(name: str) -> None:
    """Fetch and verify the files of a data set."""
    from glas_bench import data

    for path in data.fetch(name):
        click.echo(str(path))


@datasets.command()
@click.argument("name")
@click.argument("folder", type=PathType(file_okay=False, path_type=Path))
@click.option(
    "--data-file", type=PathType(path_type=Path), help="Data of your own, as in `run --data-file`."
)
@without_results
def pack(name: str, folder: Path, data_file: Path | None) -> None:
    """Write a data set to one file that a machine with only torch and numpy can read."""
    from glas_bench import data

    click.echo(str(data.pack(name, folder, data_file)))


@cli.command(short_help="List the shipped studies.")
@click.option("--preset", help="Instead of each study's own.", shell_complete=completion.presets)
@json_option
@without_results
def studies(preset: str | None, as_json: bool) -> None:
    """List the shipped studies: cells, claims, the core hours that they take here, question."""
    from glas_bench.commands import lists

    show(lambda: lists.studies(preset), as_json)


@cli.group(
    invoke_without_command=True,
    short_help="List the runs of a results folder; `runs remove RUN`.",
)
@json_option
@common
@click.pass_context
def runs(context: click.Context, as_json: bool, results: Path) -> None:
    """List runs: data, status of the seeds, size on disk, age; `runs remove RUN` removes some."""
    from glas_bench.commands import lists

    if context.invoked_subcommand is None:
        show(lambda: lists.runs(results), as_json)


@runs.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=completion.runs)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def remove(names: tuple[str, ...], yes: bool, results: Path) -> None:
    """Remove runs from the disk, given by path or by the beginning of name or key.

    What MLflow holds of them stays.
    """
    from glas_bench.commands import lists

    found = lists.to_remove(results, names)
    if not yes:
        for each in found:
            click.echo(each["path"])
        click.confirm(f"remove with all seeds: {len(found)}", abort=True)
    show(lambda: lists.remove(found))


@cli.command(short_help="Show what this machine has and lacks.")
@json_option
@common
def doctor(as_json: bool, results: Path) -> None:
    """Show what this machine has, what is missing, and how to fix it."""
    from glas_bench.commands import doctor as command

    show(lambda: command.carry_out(results), as_json)


@cli.command(short_help="Measure the speed of training.")
@click.option("--variant", default="cauchy", show_default=True, help="A name, or a file.")
@click.option("--steps", default="8,64", show_default=True, help="T, a list.")
@click.option("--hidden", type=click.IntRange(1), default=256, show_default=True, help="H.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="B.")
@click.option(
    "--seeds",
    default="1",
    show_default=True,
    help="How many seeds train at once (S): a number or a list, 1,2.",
)
@click.option("--precision", help="A list of fp32, tf32 and bf16; by default as in training.")
@device_option
@click.option("--no-reference", is_flag=True, help="Leave out the eager loops.")
@json_option
@without_results
def bench(as_json: bool, **given: Any) -> None:
    """Measure the training core beside plain eager loops and this machine's limit."""
    from glas_bench.commands import bench as command

    rows = []
    for case in command.cases(**given):
        rows.append(command.measure(case, lambda line: click.echo(line, err=True)))
        if not as_json:
            click.echo(command.table(rows[-1:]))
    if as_json:
        click.echo(json.dumps({"cases": rows}))
    elif len(rows) > 1:
        click.echo("\n" + command.table(rows))


# --------------------------------------------------------------------------- the command line


def run_command_line() -> NoReturn:
    """Run the command in `sys.argv`; errors are one message, tracebacks only with --debug."""
    try:
        code = cli.main(prog_name="glas-bench", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GlasBenchError as error:
        if debugging():
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if debugging():
            raise
        from glas_bench import environment

        advice = "This is a bug in glas-bench: run the command again with --debug and report it."
        if old := environment.outdated():
            wanted = " ".join(f"'{each}'" for each in old.values())
            advice = f"Installed packages are too old for glas-bench: pip install {wanted}"
        click.echo(f"error: {type(error).__name__}: {error}\n{advice}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
