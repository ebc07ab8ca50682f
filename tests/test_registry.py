"""Variants are found by name, by file and by entry point; their identity is their code."""

import importlib
import io
import sys
import tokenize
from pathlib import Path

import pytest

from glas_bench import registry
from glas_bench.errors import UsageError
from glas_bench.model import DESCRIPTIVE

SOURCE = '"""One line."""\nfrom glas_bench.model import Glas\n\n\nclass Mine(Glas):\n    pass\n'


def write(path: Path, source: str = SOURCE) -> registry.Variant:
    """Write the file of a variant; return that."""
    path.write_text(source)
    return registry.find(str(path))


def refusal(reference: object) -> str:
    with pytest.raises(UsageError) as caught:
        registry.find(str(reference))
    return str(caught.value)


def test_every_file_is_a_variant() -> None:
    stems = {path.stem for path in registry.BUILT_IN.glob("*.py")} - {"__init__"}
    names = registry.names()
    assert names == sorted(names)
    assert {name.replace("-", "_") for name in names} >= stems
    for name in names:
        found = registry.find(name)
        assert (found.name, found.reference) == (name, name)
        assert found.path.stem.replace("_", "-") == name
        assert found.cls.__module__ == f"glas_bench.variants.{found.path.stem}"
        assert found.summary.endswith(".")
    assert len({registry.find(name).source_hash for name in names}) == len(names)
    assert registry.find("fixed_random") == registry.find("fixed-random")


def test_names_import_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("glas_bench.variants.")]:
        monkeypatch.delitem(sys.modules, name)
    assert registry.names()
    assert not [name for name in sys.modules if name.startswith("glas_bench.variants.")]


def test_the_identity_is_the_code(tmp_path: Path) -> None:
    path = tmp_path / "my_idea.py"
    found = write(path)
    identity = (found.name, found.reference, found.summary)
    assert identity == ("my-idea", str(path.resolve()), "One line.")
    edited = write(path, SOURCE.replace("pass", "x= 1"))  # of the same size, in the same second
    assert edited.source_hash != found.source_hash
    assert edited.cls.x == 1  # type: ignore[attr-defined]
    assert sorted(tmp_path.iterdir()) == [path]
    moved = tmp_path / "elsewhere" / "other_name.py"
    moved.parent.mkdir()
    assert write(moved).source_hash == found.source_hash


WRITTEN = '''\
"""A charge."""

from glas_bench import Glas


class Charged(Glas):
    """The published model, charged more."""

    WORDS = """two

    lines"""
    citations = (
        {"dataset": "mnist-static", "nats": 1.5},
    )
    is_control = True
    factor = 2.0
    """What it is charged."""

    def charge(self, q, p, z):
        return self.factor * super().charge(  # at every step
            q,
            p,
            # the draw
            z,
        )
'''


@pytest.mark.parametrize(
    ("same", "old", "new"),
    [
        # comments, docstrings and descriptions
        (True, '"""A charge."""\n', '"""Another.\n\nOf more lines.\n"""\n# and a remark\n'),
        (True, '    """The published model, charged more."""\n\n', ""),
        (True, '    """What it is charged."""\n', "    'what \"it\" is' 'charged'\n\n"),
        (True, "  # at every step", " # once"),
        (True, "            # the draw\n", ""),
        (True, "    def charge", "    # here\n\n    def charge"),
        (True, "factor = 2.0", 'factor = 2.0  # """ no string'),
        (True, "1.5", "1.25"),
        (True, "    is_control = True\n", "    figures = ('samples',)  # a figure\n"),
        # all else
        (False, "2.0", "2.5"),
        (False, "two\n\n    lines", "two\n    lines"),
        (False, "two\n", "# two\n"),
        (False, "    def charge", "def charge"),
        (False, "# the draw\n", "the_draw,\n"),
        (False, "is_control = True", "is_control = True; scale = 2.0"),
        (False, "is_control = True", "is_control = scale = True"),
        (False, "is_control = True", "is_control = factor > 1"),
        (False, "        return", "        figures = ()\n        return"),
        (False, '    """What it is charged."""\n', '    x = """What it is charged."""\n'),
    ],
)
def test_code_alone_is_the_identity(same: bool, old: str, new: str) -> None:
    assert WRITTEN.count(old) == 1
    code, edited = (registry.code_alone(text) for text in (WRITTEN, WRITTEN.replace(old, new)))
    assert (code == edited) == same


def statements(source: str) -> list[list[str]]:
    """Return the words of every statement that is no docstring and no descriptive attribute."""
    layout = {tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: list[list[tokenize.TokenInfo]] = [[]]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            found.append([])
        elif token.type not in layout:
            found[-1].append(token)
    return [
        [token.string for token in each]
        for each in found
        if any(token.type != tokenize.STRING for token in each)
        and not (each[0].string in DESCRIPTIVE and each[1].string == "=")
    ]


def test_no_code_is_lost() -> None:
    files = [*registry.BUILT_IN.parent.rglob("*.py"), *registry.BUILT_IN.glob("*.py")]
    assert len(files) > 100
    for path in files:
        source = path.read_text(encoding="utf-8")
        assert statements(registry.code_alone(source)) == statements(source), path


def test_descriptions_are_not_inherited(tmp_path: Path) -> None:
    controls = [name for name in registry.names() if registry.find(name).cls.is_control]
    assert controls == ["cauchy"]
    mine = write(
        tmp_path / "mine.py",
        "from glas_bench.variants.min_chi2 import MinChi2\n\n\n"
        "class Mine(MinChi2):\n    published = {'omniglot': 90.5}\n    figures = ('filter',)\n",
    )
    assert (mine.cls.least_kl_per_charge, mine.cls.figures) == (None, ("filter",))
    (cited,) = mine.citations
    assert (cited.dataset, cited.nats, cited.source) == ("omniglot", 90.5, "the variant's file")
    assert registry.find("min-chi2").cls.least_kl_per_charge == 2.725


def test_a_cited_number_is_given_once() -> None:
    cited = registry.find("cauchy").citations
    numbers = [(each.dataset, each.nats) for each in cited]
    mnist, omniglot = (89.67, 92.07), (119.63, 125.77)
    assert numbers == [*(("mnist-static", n) for n in mnist), *(("omniglot", n) for n in omniglot)]
    assert not any(each.verified for each in cited)


def test_bases_are_part_of_the_identity(tmp_path: Path) -> None:
    base, above = tmp_path / "base.py", registry.find("hellinger")
    found = write(
        base,
        '"""A base."""\nfrom glas_bench.variants.hellinger import Hellinger\n\n\n'
        "class Base(Hellinger):\n    pass\n",
    )
    top = tmp_path / "top.py"
    source = f"from {found.cls.__module__} import Base\n\n\nclass Top(Base):\n    pass\n"
    before = write(top, source)
    assert before.cls.__mro__[1:3] == (found.cls, above.cls)
    assert len({before.source_hash, found.source_hash, above.source_hash}) == 3
    base.write_text(base.read_text() + "    x = 1\n")
    assert registry.find(str(top)).source_hash != before.source_hash


def test_what_is_not_there() -> None:
    for reference, *words in (
        ("hellingr", "'hellingr'", "Did you mean 'hellinger'?", "cauchy", "vae"),
        ("xyz", "'xyz'", "Allowed: ", "cauchy"),
        ("no/such.py", "no/such.py", "does not exist"),
        ("../", "is a folder"),
        ("__init__", "'__init__'"),
    ):
        said = refusal(reference)
        assert all(word in said for word in words), said


def test_a_file_named_without_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_idea.py").write_text(SOURCE)
    assert "write --variant ./my_idea.py" in refusal("my_idea")
    Path("notes.txt").write_text(SOURCE)
    assert "must end in .py" in refusal("./notes.txt")
    assert registry.find("./my_idea.py").cls.__name__ == "Mine"
    assert registry.find("my_idea.py").cls.__name__ == "Mine"


def test_exactly_one(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    for text, got in (
        ("x = 1\n", "got none"),
        ("from glas_bench.model import Glas\n", "got none"),
        ("from glas_bench.variants.cauchy import Cauchy\n", "got none"),
        (SOURCE.replace("Mine", "_Mine"), "got none"),
        (SOURCE + "class Second(Mine):\n    pass\n", "got Mine, Second"),
    ):
        path.write_text(text)
        assert f"{path}: a variant's file defines exactly one" in refusal(path)
        assert got in refusal(path)
    helped = SOURCE.replace("class Mine(Glas)", "class _Base(Glas):\n    pass\nclass Mine(_Base)")
    assert write(path, helped + "Alias = Mine\n").cls.__name__ == "Mine"


def test_an_error_elsewhere_is_told_where_it_was_met(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("def f(:\n")
    path = tmp_path / "outer.py"
    path.write_text(f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\nimport inner\n")
    try:
        assert f"{path}:4: importing it failed with SyntaxError" in refusal(path)
    finally:
        sys.path.remove(str(tmp_path))


def test_installed_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(SOURCE)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[glas_bench.variants]\ntheir_idea = their_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "their-idea" in registry.names()
    found = registry.find("their-idea")
    assert (found.name, found.reference) == ("their-idea", "their-idea")
    assert (found.path, found.cls.__name__) == (tmp_path / "their_package.py", "Mine")


CALLS_A_HELPER = """
from glas_bench import Glas
from helper_of_mine import SCALE


class Mine(Glas):
    scale = SCALE
"""


def test_modules_of_the_users_own_are_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper, and what it imports in turn, wherever in its code; comments are not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from . import b\n")
    (package / "b.py").write_text("X = 1\n")

    def identity(helper: str) -> tuple[str, float]:
        (tmp_path / "helper_of_mine.py").write_text(helper)
        variant = write(tmp_path / "mine.py", CALLS_A_HELPER)
        return variant.source_hash, variant.cls.scale  # type: ignore[attr-defined]

    code = "import json, numpy\nSCALE = 1\ndef later():\n    from package_of_mine import a\n"
    first = identity(code)
    assert identity(code + "# a comment\n") == first
    changed = identity(code.replace("SCALE = 1", "SCALE = 2"))  # same size, same second
    assert changed[0] != first[0]
    assert changed[1] == 2
    assert identity(code) == first
    (package / "b.py").write_text("X = 2\n")
    assert identity(code)[0] != first[0]


def test_source_is_decoded_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"

    def identity(content: bytes) -> str:
        path.write_bytes(content)
        return registry.find(str(path)).source_hash

    plain = identity(SOURCE.encode())
    assert identity(b"\xef\xbb\xbf" + SOURCE.encode()) == plain
    assert identity(SOURCE.replace("\n", "\r\n").encode()) == plain
    latin = "# -*- coding: latin-1 -*-\n" + SOURCE.replace("One", "M\xe9thode")
    assert identity(latin.encode("latin-1")) == plain
    other = SOURCE.replace("pass", "word = '\xe9'")
    cookie = "# vim: set fileencoding=cp1252 :\n"
    assert identity((cookie + other).encode("cp1252")) == identity(other.encode())
