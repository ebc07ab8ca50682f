"""Imports go one way; what is heavy, or one machine's own, stays where it belongs."""

import ast
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glas_bench"

# A module imports from the rows above its own and from nowhere else, whether at its head, inside
# a function or for type checking alone.
LAYERS = (
    (
        "errors",
        "ops",
        "core",
        "yardstick",
        "runs",
        "signals",
        "core.streams",
        "ops.programs",
        "ops.adam",
        "ops.elementwise",
        "ops.gemm",
        "stats",
        "progress",
        "tracking",
    ),
    ("ais.hmc", "claims", "ops.products", "data.places", "tracking.addresses"),
    ("divergences", "filters"),
    ("ais.annealing", "model", "data.parse", "data.download"),
    ("ais", "registry", "data.packed", "core.rollout"),
    ("data", "contract"),
    ("config",),
    ("core.train", "record", "environment", "ais.decoder", "studyfile"),
    (
        "yardstick.diagnostics",
        "core.stack",
        "yardstick.unfinished",
        "tracking.entries",
        "runs.pictures",
        "study",
    ),
    ("yardstick.weights", "core.memory", "core.stacked", "processes"),
    ("yardstick.refit",),
    ("yardstick.stacked_fit",),
    ("evaluate",),
    ("runs.worker", "tracking.store", "runs.trained"),
    ("runs.together", "tracking.sync"),
    ("runs.cells", "bench"),
    ("growth",),
    ("runs.outcome", "tracking.mirror"),
    ("ais.verdict",),
    ("ais.referee",),
    ("explain", "report", "runs.rescore", "doctor", "runs.running"),
    ("report.cells", "report.markdown", "report.plans", "report.published"),
    ("report.rows", "report.compare", "report.condition"),
    ("report.judge", "report.refereed", "report.sheet"),
    ("report.page",),
    ("report.figures", "report.index"),
    ("report.looks",),
    ("report.making",),
    ("sweep", "sweep.owner"),
    ("sweep.addresses", "sweep.plan"),
    ("sweep.trials",),
    ("sweep.database",),
    ("sweep.ledger",),
    ("sweep.search",),
    ("sweep.store",),
    ("sweep.worker", "sweep.states"),
    ("sweep.crew", "sweep.view"),
    ("sweep.sweeping",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who may import what a bare machine may lack, or what takes long to import.
OWNERS = {
    "mlflow": {"tracking.store"},
    "optuna": {f"sweep.{name}" for name in ("database", "trials", "ledger", "search", "store")},
    "sqlalchemy": {"sweep.database"},  # comes with optuna
    "pandas": {"tracking.store", "report.sheet", "report.figures"},
    "PIL": {"report.figures"},
    "seaborn": {"report.figures"},
    "matplotlib": {"report.figures", "report.looks", "runs.pictures", "growth"},
    "scipy": {"stats", "data.parse"},
    "mlxtend": {"data.parse"},
    "pooch": {"data.download"},
    "requests": {"data.download"},  # comes with pooch
    "rich": {"progress", "data.download", "sweep.view"},
    "filelock": {"tracking.addresses", "data.download", "data.packed", "sweep.database"},
    "threadpoolctl": {"runs.worker"},
    "click": {"cli"},
}
ANYWHERE = {"torch", "numpy", "pydantic", "yaml"}
FOR_VARIANTS = {"torch", "pydantic"}
SEAMS = {"model", "filters", "divergences"}


MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py" and "variants" not in path.parts
)


def name_of(path: Path) -> str:
    """Return a module's name inside the package, e.g. `data.places`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = set(map(name_of, MODULES))


def imports(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for name in imports(path):
        package, *rest = name.split(".")
        if package != "glas_bench":
            continue
        for parts in (rest[:2], rest[:1]):
            if ".".join(parts) in NAMES:
                found.add(".".join(parts))
                break
        else:
            found |= {"variants"} & set(rest[:1])
    return found


def foreign(path: Path) -> set[str]:
    """Return the third-party packages that a file imports."""
    return {name.partition(".")[0] for name in imports(path)} - {
        *sys.stdlib_module_names,
        "glas_bench",
    }


VARIANTS = sorted((ROOT / "variants").glob("*.py"))
named = pytest.mark.parametrize("path", MODULES, ids=name_of)


@named
def test_imports_go_one_way(path: Path) -> None:
    name = name_of(path)
    assert name in RANK, f"give {path.name} a place in LAYERS"
    wrong = {other for other in own(path) - {name} if RANK.get(other, 99) >= RANK[name]}
    assert not wrong, f"{name} stands below, or beside, {sorted(wrong)}"


@named
def test_third_parties_have_owners(path: Path) -> None:
    for package in foreign(path) - ANYWHERE:
        assert name_of(path) in OWNERS.get(package, ()), f"{path} imports {package}"


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variants_use_the_seams_alone(path: Path) -> None:
    assert own(path) - {"variants"} <= SEAMS
    assert foreign(path) <= FOR_VARIANTS
    # Of another variant only a base is taken: a source's hash knows its bases and nothing else.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken = {
        name.rpartition(".")[2] for name in imports(path) if name.startswith("glas_bench.variants")
    }
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert taken <= {ast.unparse(base) for node in classes for base in node.bases}


def test_the_checks_above_see_something() -> None:
    assert {"cauchy", "hellinger", "vae"} <= {path.stem for path in VARIANTS}
    assert "registry" in own(PACKAGE / "config.py")  # for type checking alone
    assert "data" in own(PACKAGE / "config.py")  # inside a function
    assert "mlflow" in foreign(PACKAGE / "tracking" / "store.py")
    assert (PACKAGE / "variants").resolve() == (ROOT / "variants").resolve()


# --------------------------------------------------------------------------- the whole project

UNSEEN = {"build", "dist", "local"}


def files() -> list[Path]:
    """Return every file of the project, hidden and ignored folders left out."""
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [
            name
            for name in below
            if name not in UNSEEN
            and not name.startswith(("__", "."))
            and not name.endswith(".egg-info")
        ]
        found += [Path(folder, name) for name in names if name != ".git"]  # of a work tree
    return [*found, *(path for path in (ROOT / ".ci").glob("*") if path.is_file())]


def test_nobody_imports_variants_by_their_folder() -> None:
    sources = [path for path in files() if path.suffix == ".py"]
    assert len(sources) > 40
    for path in sources:
        assert "variants" not in {name.partition(".")[0] for name in imports(path)}, path


def test_no_room_for_odds_and_ends() -> None:
    odd = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert not [path for path in files() if path.stem.strip("_") in odd]


def test_nothing_of_this_machine_is_written_down() -> None:
    places = [str(ROOT), str(Path.home()) + "/"]
    patterns = [
        *map(re.escape, (place for place in places if len(place) > 5)),
        r"/(?:work|opt|root|mnt|srv)/\w",
        r"://[\w.-]*pypi",
        r"://[\w.-]*pythonhosted",
        r"--(?:extra-)?index-url",
    ]
    forbidden = re.compile("|".join(patterns))
    seen = 0
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a figure
        seen += 1
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}"
            assert not forbidden.search(line), f"{where}: {line.strip()}"
    assert seen > 40
