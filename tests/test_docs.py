"""The documents: their commands run, their names and links exist, their numbers are committed.

Every line of a `bash` block is run in a folder of its own, unless its comment says that it takes
minutes or hours or needs a GPU, a cluster or a network: of those the options are parsed, the
config of `run` is resolved and `sweep` lays out its plan. One tiny run is shared by all of them,
and by the `python` blocks.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import fabricated
import pytest
import yaml
from conftest import Glas
from test_layering import RANK
from test_report import table_of

import glas_bench
from glas_bench import config, evaluate, registry, sequential, study
from glas_bench.cli import cli
from glas_bench.commands import sweep
from glas_bench.report import fail_if
from glas_bench.study import claims
from glas_bench.text import interval

ROOT = Path(__file__).parents[1]
HEADS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = sorted([*(ROOT / name for name in HEADS), *(ROOT / "docs").glob("*.md")])
RESULTS = ROOT / "results"
ARCHIVE = RESULTS / "archive"
INDICES = [RESULTS / "README.md", RESULTS / "learned.md", ARCHIVE / "README.md"]
COSTLY = re.compile(r"\b(?:minutes?|hours?)\b|\bneeds a\b")
OTHERS = ("cp", "mkdir", "mlflow", "pre-commit", "optuna-dashboard")
OTHERS_OPTIONS = {"--backend-store-uri", "--gpus", "--strict"}
OTHERS_OPTIONS |= {"--no-deps", "--only-binary", "--python-version", "--platform", "--no-index"}
OTHERS_OPTIONS |= {"--rehearse", "--out", "--work", "--seconds"}
REMOVED = {"--growth"}
"""Options that only the change log names."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Line(NamedTuple):
    """A line of a `bash` block."""

    page: Path
    command: str
    comment: str

    @property
    def runs(self) -> bool:
        """Whether it is run here, not only parsed."""
        return not COSTLY.search(self.comment)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


LINES = [
    Line(page, command.strip(), comment)
    for page in PAGES
    for block in blocks(page, "bash")
    for command, _, comment in (text.partition("  # ") for text in block.splitlines() if text)
]
OURS = [line for line in LINES if line.command.startswith(("glas-bench", "python -m glas_bench"))]
PYTHON = [
    (str(page), code)
    for page in PAGES
    for code in blocks(page, "python")
    if "class " not in code and "RUN_ID" not in code
]
"""Blocks of Python but for a variant, which `documented` writes, and a model in a store, which
test_tracking loads."""
ONCE = list({line.command: line for line in OURS}.values())


def arguments(line: Line) -> list[str]:
    """Return what follows the name of the program."""
    words = shlex.split(line.command)
    return words[3:] if words[0] == "python" else words[1:]


# --------------------------------------------------------------------------- commands


def parsed(words: list[str]) -> click.Context:
    """Parse a command as the command line does, without running it."""
    command: click.Command = cli
    context = click.Context(cli, info_name="glas-bench", **cli.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, below, words = command.resolve_command(context, words)
        assert below is not None
        command = below
        context = click.Context(command, info_name=name, parent=context)
    return command.make_context(context.info_name, list(words), parent=context.parent)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, packed: object) -> Iterator[Glas]:
    """A folder as the documents assume it: their own examples, and one finished run."""
    glas = Glas(tmp_path_factory.mktemp("documented"))
    glas.results = glas.folder / "results" / "local"
    (variant,) = blocks(ROOT / "README.md", "python")
    (glas.folder / "reverse_kl.py").write_text(variant)
    (glas.folder / "which_filter.yaml").write_text(blocks(ROOT / "docs" / "studies.md", "yaml")[0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(glas.folder)
        ended = glas.here("run", "--variant", "cauchy", "--preset", "smoke", "--no-mirror")
        assert ended.code == 0, ended.err
        assert (
            glas.here("report", "smoke", "--json", "--out", "pages").code == 3
        )  # some cells have not run
        yield glas
    glas.close()


def folder(glas: Glas) -> Path:
    """Return the run folder of the shared run."""
    return min((glas.results / "runs").glob("cauchy-*"), key=lambda path: path.stat().st_ctime)


def test_the_blocks_are_seen() -> None:
    assert len(ONCE) > 30
    assert len([line for line in ONCE if line.runs]) > 15
    named = {arguments(line)[0] for line in OURS}
    assert named == set(cli.commands)


@pytest.mark.parametrize("line", ONCE, ids=lambda line: f"{line.page.stem}: {line.command}")
def test_the_command_works(documented: Glas, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(documented)
    text = line.command.replace("cauchy-<key>", run.name)
    words = [run.name if word == "RUN" else word for word in arguments(line._replace(command=text))]
    values = parsed(words).params
    for text in values.get("fail_if", ()):
        fail_if.read(text)
    if line.runs:
        ended = documented.here(*words)
        wanted = {0, 3, 4} if words[0] == "report" else {0}
        assert ended.code in wanted, ended.err
        assert "\nerror: " not in f"\n{ended.err}"
    elif words[0] == "sweep":
        if "--dry-run" not in words:  # one command with it times its cells here
            monkeypatch.setattr(sweep, "core_hours", lambda cell: 1.0)
        assert documented.here(*words, "--dry-run").code == 0
    elif words[0] == "run":
        variant = registry.find(values["variant"])
        about = {name: values[name] for name in ("preset", "dataset")}
        config.resolve(variant, overrides=config.parse_overrides(values["pairs"]), **about)
        config.parse_seeds(values["seeds"])


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=lambda value: Path(value).stem)
def test_the_code_works(documented: Glas, tmp_path: Path, page: str, code: str) -> None:
    runs = []
    for name, nll in (("cauchy", 90.0), ("gaussian", 95.0)):
        variant = registry.find(name)
        made = config.resolve(variant, preset="laptop")
        arm = fabricated.cell(tmp_path, variant, made)
        fabricated.finish(arm, made, fabricated.Arm(nll), list(range(5)))
        runs.append(arm.path)
    names = {"RUNS": runs, "KEY": config.protocol_key(evaluate.protocol(made))}
    exec(compile(code.replace("cauchy-<key>", folder(documented).name), page, "exec"), names)


def test_the_table_of_run_has_the_documented_columns(documented: Glas) -> None:
    ended = documented.here("run", "--variant", "cauchy", "--preset", "smoke", "--no-mirror")
    heads = [line for line in ended.out.splitlines() if line.startswith("variant ")]
    wanted = blocks(ROOT / "docs" / "numbers.md", "text")[0]
    assert [head.split() for head in heads] == [wanted.split()]


def test_other_programs_are_called_rightly() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    project = (ROOT / "pyproject.toml").read_text()
    for line in (each for each in LINES if each not in OURS):
        words = shlex.split(line.command)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), line
        elif words[0] == "export":
            assert words[1].partition("=")[0] in variables(), line
        elif words[0] == "sbatch":
            script = next(word for word in words[1:] if not word.startswith("-"))
            assert (ROOT / script).is_file(), line
            parsed(["sweep", *words[words.index(script) + 1 :]])
        elif words[0] == "python":
            command = [sys.executable, ROOT / words[1], "--help"]
            helped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert all(word in helped.stdout for word in words if word.startswith("--")), line
        elif words[0].startswith("scripts/"):
            assert (ROOT / words[0]).is_file(), line
            assert not line.runs, line
        elif words[0] == "pip":
            for extra in re.findall(r"\[(\w+)\]", line.command):
                assert re.search(rf"^{extra} = \[", project, re.M), line
        else:
            assert words[0] in OTHERS, line
            assert not line.runs or words[0] in ("cp", "mkdir", "mlflow"), line


def test_study_files_of_the_documents_are_valid(tmp_path: Path) -> None:
    whole, search = blocks(ROOT / "docs" / "studies.md", "yaml")
    left_out = ("grid", "skip", "claims")
    values = {k: value for k, value in yaml.safe_load(whole).items() if k not in left_out}
    values |= yaml.safe_load(search) | {"variants": ["cauchy", "gaussian"]}
    path = tmp_path / "searched.yaml"
    path.write_text(yaml.safe_dump(values))
    assert study.load(str(path)).trials == 40


# --------------------------------------------------------------------------- names


def variables() -> set[str]:
    """Return the environment variables that the program reads."""
    sources = [*(ROOT / "glas_bench").rglob("*.py"), *(ROOT / "slurm").iterdir()]
    pattern = r"\b(?:GLAS_BENCH_|MLFLOW_|OPTUNA_)[A-Z_]*[A-Z]\b"
    return {name for path in sources for name in re.findall(pattern, path.read_text())}


def options(command: click.Command = cli) -> set[str]:
    """Return every option of every command."""
    below = getattr(command, "commands", {}).values()
    own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return own.union({"--help", "--version"}, *map(options, below))


@each_page
def test_every_name_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    log = page.name == "CHANGELOG.md"
    assert named <= options() | OTHERS_OPTIONS | (REMOVED if log else set())
    assert set(re.findall(r"--preset (\w+)", text)) <= set(config.PRESETS)
    assert set(re.findall(r"(?<!_)GLAS_BENCH_[A-Z_]*[A-Z]", text)) <= variables()
    for path in re.findall(r"`((?:glas_bench|tests|docs|studies|results|slurm)/[\w./@-]+)`", text):
        assert "/local" in path or (ROOT / path).exists(), path


def test_lists_are_complete() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    shipped, metrics = (
        set(re.findall(r"`([\w-]+)`", re.search(f"{head} (.*?)[;.]\\s", text, re.S)[1]))  # type: ignore[index]
        for head in ("Shipped studies are", "Metrics of claims are")
    )
    assert shipped == {path.stem.replace("_", "-") for path in (ROOT / "studies").glob("*.yaml")}
    assert metrics == set(claims.METRICS)
    numbers = (ROOT / "docs" / "numbers.md").read_text()
    row = r"^\| `(\w+)` \| `([\w-]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|"
    presets = {name: rest for name, *rest in re.findall(row, numbers, re.M)}
    keys = ("dataset", "steps", "hidden", "epochs", "samples")
    assert presets == {
        name: [str(values[key]) for key in keys] for name, values in config.PRESETS.items()
    }
    own = {name for name in variables() if name.startswith("GLAS_BENCH_")}
    assert variables() & {*re.findall(r"`(GLAS_BENCH_\w+)`", numbers)} == own


def test_the_map_of_the_package_is_whole() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.M)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    inside = [path for path in (ROOT / "glas_bench").iterdir() if path.name != "py.typed"]
    there = {path.stem for path in inside} - {"studies"}
    assert set(listed) == {name for name in there if not name.startswith("_")}
    ranks = [RANK.get(name, 0) for name in listed if name != "variants"]
    assert ranks == sorted(ranks)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as public hosts make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", [*PAGES, *INDICES], ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_linked_from_the_first() -> None:
    text = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.relative_to(ROOT)})" in text, page


def test_files_of_the_project_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == glas_bench.__version__
    assert f"## {glas_bench.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["test"]["steps"]
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in hooks["hooks"]:
        assert Path(hook["entry"].split()[0]).name in (ROOT / "Makefile").read_text()


# --------------------------------------------------------------------------- the first page


def test_the_first_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    head = "\n".join(text.splitlines()[:40])
    assert "make run" in head
    assert "make test" in head
    assert "| variant | nll | elbo |" in head
    assert f"The {len(registry.names())} variants" in head


def committed(*folders: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the name of every page committed in some folders, and the rows of its csv."""
    for path in (path for folder in folders for path in folder.glob("*.csv")):
        with path.open(newline="") as file:
            yield path.stem, list(csv.DictReader(file))


def core_hours(rows: list[dict[str, str]]) -> str:
    """Return what the rows of a csv cost."""
    seconds = sum(float(row[name] or 0) for row in rows for name in ("seconds", "scoring_seconds"))
    return f"{seconds / 3600:.1f}"


def published() -> set[str]:
    """Return the numbers of the committed csv files, written as the first page writes them."""
    made = set()
    for _, rows in committed(RESULTS, ARCHIVE):
        made.add(f"{core_hours(rows)} core hours")
        made |= {f"{float(row[m]):.2f}" for m in ("nll", "objective") for row in rows if row[m]}
        for name in {row["cell"] for row in rows}:
            cell = [row for row in rows if row["cell"] == name]
            for metric in ("nll", "elbo", "objective", "kl", "charge", "footprint_perplexity"):
                values = [float(row[metric]) for row in cell if row[metric]]
                if len(values) > 1:
                    mean = f"{statistics.mean(values):.2f}"
                    made |= {mean, f"{mean} ± {statistics.stdev(values):.2f}"}
            differences: list[list[Any]] = [
                [cell[0].get(f"{metric}_{end}") for end in ("difference", "low", "high")]
                for metric in ("nll", "elbo")
            ]
            for claim in yaml.safe_load(cell[0].get("claims") or "[]"):
                differences.append([claim[end] for end in ("estimate", "low", "high")])
            made |= {
                interval(*map(float, ends)) for ends in differences if not {None, ""} & set(ends)
            }
        for row in rows:
            if row.get("ais_status") == "accepted":
                slack, error = -float(row["ais_less_nll"]), float(row["ais_less_nll_error"])
                made.add(f"{slack:.2f} ± {error:.2f}")
                made.add(f"{float(row['nll']) - slack:.2f}")
    return made


OTHERS_NUMBERS = ("82.07", "89.67")
"""Of the write-up, on MNIST."""


@pytest.mark.parametrize(
    ("page", "least"),
    [(ROOT / "README.md", 30), (ARCHIVE / "README.md", 10), (RESULTS / "learned.md", 10)],
    ids=["first", "archive", "learned"],
)
def test_every_number_is_committed(page: Path, least: int) -> None:
    text = page.read_text()
    patterns = (
        r"\d+\.\d+ ± \d+\.\d+",
        r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]",
        r"\d+\.\d core hours",
        r"(?<![\d.+±-])(?<!± )\d+\.\d\d(?![\d.])(?! ±)",
    )
    stated = [number for pattern in patterns for number in re.findall(pattern, text)]
    assert len(stated) > least
    assert not set(stated) - published() - {"3.11", "0.25", "20.25", *OTHERS_NUMBERS}


def test_what_was_learned_fits_a_page() -> None:
    text = (RESULTS / "learned.md").read_text()
    assert len(text.splitlines()) <= 60
    for point in re.split(r"\n(?=- |#)", text.partition("\n## ")[2]):
        assert not re.search(r"\d\.\d\d", point) or re.search(r"\.md[#)]", point), point


def cells(page: Path, head: str) -> list[list[str]]:
    """Return the rows of the table that begins with a heading."""
    return [[*row.values()] for row in table_of(page.read_text(), head)]


def test_the_table_of_the_first_page_is_that_of_its_page() -> None:
    rows = cells(ROOT / "README.md", "| variant | nll | elbo |")
    path = RESULTS / "unsuccessful@laptop.md"
    page = {variant: own for _, variant, *own in cells(path, "| rank |")}
    claims_made = cells(path, "|  | claim |")
    words = {compared: verdict for _, _, compared, _, _, verdict in claims_made}
    assert len(rows) == 3
    for variant, nll, elbo, difference, meaning in rows:
        theirs, apart, _, own, *_ = page[variant]
        assert f"**{nll} " in theirs
        assert own == elbo
        assert apart.startswith(difference)
        if difference != "baseline":
            word = words[f"`nll({variant[1:-1]}) > nll(cauchy)`"]
            assert word.startswith(f"**{meaning.partition(';')[0]}")


def test_the_verdicts_of_the_first_page_are_those_of_the_pages() -> None:
    """Every comparison about the write-up with a look is there once, as one of the pages has it.

    Those that are ours alone may be left out.
    """
    judged, wanted = set(), set()
    for claim in (
        one
        for _, rows in committed(RESULTS)
        for row in rows
        for one in json.loads(row.get("claims") or "[]")
        if one["looks"]
    ):
        at = "".join(f", {key} = {value}" for key, value in claim["at"].items())
        ends = (claim["estimate"], claim["low"], claim["high"])
        ends = "–" if None in ends else interval(*ends)
        seeds = str(claim["looks"][-1]["seeds"])
        judged.add((f"`{claim['expect']}`{at}", ends, seeds, claim["verdict"]))
        if claim["source"].startswith("GLAS README"):
            wanted.add(f"`{claim['expect']}`{at}")
    shown = [tuple(row[1:]) for row in cells(ROOT / "README.md", "| the write-up says |")]
    assert set(shown) <= judged
    names = [row[0] for row in shown]
    assert len(names) == len(set(names))
    assert wanted <= set(names)


def test_no_page_mixes_protocols() -> None:
    for folder, version in ((ARCHIVE, "3"), (RESULTS, str(config.CORE_VERSION))):
        for _, rows in committed(folder):
            assert {row["core_version"] for row in rows} - {""} == {version}


def test_the_archive_lists_its_pages() -> None:
    listed = {row[0].partition("]")[0][1:]: row for row in cells(ARCHIVE / "README.md", "| page |")}
    pages = dict(committed(ARCHIVE))
    assert set(listed) == set(pages)
    for name, rows in pages.items():
        seeds = {sum(row["cell"] == cell for row in rows) for cell in {row["cell"] for row in rows}}
        assert [rows[0]["question"], *map(str, seeds), core_hours(rows)] == listed[name][1:4]


def test_statistics_has_the_numbers_of_the_code() -> None:
    text = " ".join((ROOT / "docs" / "statistics.md").read_text().split())
    *first, last = (f".{round(1e4 * p):04d}" for p in sequential.nominal_p())
    assert f"{', '.join(first)} and {last}" in text
    *first, last = map(str, sequential.LOOKS)
    assert f"{', '.join(first)} and {last} of each arm" in text
    laptop, *others = config.MARGINS.items()
    assert laptop == ("laptop", 2.0)
    assert {margin for _, margin in others} == {0.5}
    assert "2 nats at `laptop`, 0.5 at `short` and `paper`" in text
