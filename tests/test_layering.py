"""Imports go one way; what is heavy, or one machine's own, stays where it belongs."""

import ast
import os
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glas_bench"

# A package (or a module beside the packages) imports from the rows above its own and from nowhere
# else, whether at its head, inside a function or for type checking alone.
LAYERS = (
    ("errors", "ops", "sequential", "signals", "stats", "text"),
    ("display", "divergences", "filters", "likelihood", "processes"),
    ("data", "model"),
    ("registry",),
    ("config",),
    ("core", "environment", "record"),
    ("contract", "yardstick"),
    ("evaluate",),
    ("ais", "study"),
    ("decide", "runs", "tracking"),
    ("report", "sweep"),
    ("commands", "completion"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who may import what a bare machine may lack, or what takes long to import.
OWNERS = {
    "mlflow": {"tracking.mlflow_store"},
    "optuna": {"sweep.database", "sweep.search"},
    "sqlalchemy": {"sweep.database", "tracking.mlflow_store"},  # comes with both
    "pandas": {f"report.{name}" for name in ("csv_file", "figures", "record_figures")},
    "PIL": {"data.images", "report.figures"},
    "markdown_it": {"report.html_page"},
    "seaborn": {"report.figures", "report.record_figures"},
    "matplotlib": {"report.figures", "report.record_figures", "runs.pictures"},
    "scipy": {"decide", "sequential", "stats", "data.parse"},
    "mlxtend": {"data.parse"},
    "pooch": {"data.sources"},
    "requests": {"data.sources"},  # comes with pooch
    "psutil": {"sweep.storage", "sweep.worker_id"},
    "rich": {"display", "sweep.view"},
    "filelock": {"tracking.address", "sweep.database"},
    "threadpoolctl": {"environment"},
    "click": {"cli", "completion"},
}
ANYWHERE = {"torch", "numpy", "pydantic", "yaml"}
FOR_VARIANTS = {"torch", "pydantic"}
SEAMS = {"model", "filters", "divergences"}


OWN = (path for path in PACKAGE.rglob("*.py") if "variants" not in path.parts)
MODULES = sorted(path for path in OWN if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    """Return a module's name inside the package, e.g. `data.sources`."""
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
        if package == "glas_bench":
            options = (".".join(rest[:2]), *rest[:1])
            known = (each for each in options if each in NAMES | {"variants"})
            found.update([*known][:1])
    return found


def foreign(path: Path) -> set[str]:
    """Return the third-party packages that a file imports."""
    own = {*sys.stdlib_module_names, "glas_bench"}
    return {name.partition(".")[0] for name in imports(path)} - own


VARIANTS = sorted((ROOT / "variants").glob("*.py"))
named = pytest.mark.parametrize("path", MODULES, ids=name_of)


def package_of(name: str) -> str:
    """Return the package of a module, or the module itself where it stands beside the packages."""
    return name.partition(".")[0]


def test_the_ladder_is_short() -> None:
    assert len(LAYERS) <= 14
    assert set(RANK) == set(map(package_of, NAMES))


@named
def test_packages_import_one_way(path: Path) -> None:
    mine = package_of(name_of(path))
    others = {package_of(other) for other in own(path)} - {mine}
    wrong = {other for other in others if RANK.get(other, 99) >= RANK[mine]}
    assert not wrong, f"{name_of(path)}: {mine} stands above, or beside, {sorted(wrong)}"


def test_no_modules_import_each_other() -> None:
    graph = {name_of(path): own(path) - {name_of(path)} for path in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


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
    of_others = {name for name in imports(path) if name.startswith("glas_bench.variants")}
    taken = {name.rpartition(".")[2] for name in of_others}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert taken <= {ast.unparse(base) for node in classes for base in node.bases}


def test_the_checks_above_see_something() -> None:
    assert {"cauchy", "hellinger", "vae"} <= {path.stem for path in VARIANTS}
    assert "registry" in own(PACKAGE / "config.py")  # for type checking alone
    assert "data" in own(PACKAGE / "config.py")  # inside a function
    assert "mlflow" in foreign(PACKAGE / "tracking" / "mlflow_store.py")
    assert (PACKAGE / "variants").resolve() == (ROOT / "variants").resolve()


# --------------------------------------------------------------------------- the whole project

UNSEEN = {"build", "dist", "local"}


def files() -> list[Path]:
    """Return every file of the project, hidden and ignored folders left out."""
    found = []
    for folder, below, names in os.walk(ROOT):
        seen = (n for n in below if not n.startswith(("__", ".")) and not n.endswith(".egg-info"))
        below[:] = [name for name in seen if name not in UNSEEN]
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
