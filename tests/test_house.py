"""One home and one name for each concept, and plain English."""

import ast
import re

import pytest
from test_layering import MODULES, ROOT, files, name_of

from glas_bench import record, registry

TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
FORMER = {
    *("Beside", "Crew", "Deck", "Item", "Ledger", "PlannedCell", "Result", "Row", "Sitting"),
    *("StackedFit", "State", "Store", "Task"),
}
"""Former types of a cell, a queue row, a seed's results or a process: now `Cell`, `Trial`,
`SeedRecord`, `EpochBatches`, `SeedRun`, `ChildProcess`."""
OTHERS = {"model": {"State"}}
"""The state of the recurrence is another concept."""
NAMED = {
    "cli": {"cauchy"},  # the default of `bench --variant`
    "filters": {"grid"},  # the argument, not the variant
    "study.plan": {"grid"},  # a key of study files
    "yardstick.refit": {"no-attention"},  # the common recogniser, part of the protocol
}
WORDS = re.compile(r"\b(?:told|whoever|unless said|anew|is said)\b", re.IGNORECASE)
PROSE = {".py", ".md", ".yaml", ".toml"}


def walk(kind):
    """Return (module, node) for every node of a kind in the package."""
    return [
        (name, node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kind)
    ]


def test_each_concept_has_one_type():
    named = {(name, node.name.lstrip("_")) for name, node in walk(ast.ClassDef)}
    former = {(name, one) for name, one in named if one in FORMER - OTHERS.get(name, set())}
    assert not {each for each in former if not each[0].startswith("tracking.")}
    homes = {"Cell": "study.", "Trial": "sweep.", "SeedRecord": "record", "Scores": "record"}
    for concept, home in homes.items():
        at = {name for name, one in named if one == concept}
        assert len(at) == 1, (concept, at)
        assert at.pop().startswith(home), concept


def test_one_module_starts_processes():
    at = {name for name, node in walk(ast.Attribute) if node.attr == "Popen"}
    assert at == {"processes"}


def test_record_alone_says_which_statuses_are_final_and_how_they_join():
    """Elsewhere no collection holds the final statuses, or more than three of a seed's."""
    others = {
        "tracking.entries",  # MLflow's word for each
        "report.page",  # their words in its coverage
        "sweep.status",  # the order of a cell's in the counts
    }
    for name, node in walk((ast.Tuple, ast.List, ast.Set, ast.Dict)):
        parts = node.keys if isinstance(node, ast.Dict) else node.elts
        words = {each.value for each in parts if isinstance(each, ast.Constant)}
        few = len(words & set(record.STATUSES)) <= 3 and not words >= record.FINISHED
        assert few or name in {"record.scores", *others}, f"{name}:{node.lineno}: {words}"


def test_no_variant_is_named_in_the_plumbing():
    names = set(registry.names())
    for name, node in walk(ast.Constant):
        if isinstance(node.value, str) and node.value in names - NAMED.get(name, set()):
            pytest.fail(f"{name}:{node.lineno} names the variant {node.value!r}")


@pytest.mark.parametrize(
    "folder", ["glas_bench", "variants", "studies", "docs", "results", "tests", ""]
)
def test_plain_english(folder):
    for path in files():
        inside = ROOT / folder in path.parents if folder else path.parent == ROOT
        if not inside or path.suffix not in PROSE or path.name == "test_house.py":
            continue
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        found = WORDS.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {text[found.start() - 30 : found.end() + 30]}"
