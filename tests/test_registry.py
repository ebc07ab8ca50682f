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

# Every run folder holds one of these: another hash makes its runs another variant's.
HASHES = {
    "cauchy": "df607bd6949b401104b695688aff2f2fe00c5db5d3ada5c75ef23d5f38bf43c4",
    "chi2": "082a87f401390578cbe6d68b7ceda0faf061dbf5123a263b0e6550eb44c627da",
    "content": "79b33b3e1b3480b7c83df585c70e4d5b0f6d54739bd783aa215abd92d25024e5",
    "draw": "b99624192d957d6b41053e1da457f765b38ff1b4d7b8cc696159fe81d98b66b9",
    "fixed-random": "de9d8f92f508cc3c124b75a18ecf5440b362d96d97bb1795688e3f1be2c7c27b",
    "fixed-supervised": "3d4188f6ab86c63cf451682322507457d1dfccba98aceb0acd9b2749d17af436",
    "gaussian": "e8a512bce128a7a1b8ddc0e9aedd4d4fbb27fa2fe33f85ab57e00bb1c16d6510",
    "grid": "9961dfb2a00b4c5b480e7a5a43b1b2bf248d52893852740d9631cebf3a5b0996",
    "hellinger": "35e82a933d49cf80aafd99cd477f2246f7af89940db38faae5c9b234a5e9b177",
    "hellinger-renyi": "b5a0604a1069ee82954d56f340b0269acacb7da9feb9c9fd76f227e36726dd3c",
    "masked-canvas": "958d3a273eb813143a830cb7c1f139fd7f1c60bff9fb515d9b64c621aa2e15f6",
    "masked-progressive": "b850e19baea2b12c33fe510eb6f061be90bf078ad0d4cdfafc998a0ec1a6d8e6",
    "min-chi2": "6b4d5da6ac0ac0b59d98dd00ded69495e29923be055a83b90c89cca892de576d",
    "min-chi2-kl": "78947160298189231bbb9d7f0f5101a6f05eaae2ee9a67f39877fe1929d4f6e1",
    "no-attention": "34f96eb73ea3015e76ed5a8c6bcf769908de0fc80d495aada6db86d5becbf793",
    "plausible-canvas": "37369483913555615b8889c5d7dd3c23c95a9b93abe447b4653a85c722b32df9",
    "sigmoid": "2769de2797c6aba17699e2a3700ff72c7a0c71de09b54cfcd7565d8273e9cdbd",
    "softmax": "5c102d9fa0b171edc850365ab140c7d6920782fb7d4c981b8bb3723837b391c2",
    "tandem-supervised": "d3b90967eb674bdc2c6c5f911e9080d0ca03e2bb647032a471255159e15278c2",
    "uniform-chi2": "e86741811767f43d5f803d36cbf4e56697eea17a6a77e26db2da3f737c2fb63f",
    "uniform-kl": "effc819bf9c317a97a95789edd6280396d8b74b861f5bc0faaf9199b915c56e2",
    "uniform-pit": "3134a4a48bcab9cf9e78a20eb29ddad7ac80266733f48f8078a450175c797790",
    "vae": "2d2ff8a9f30262120121822489b00631422e88147cb316adffe20dd4399da901",
}

SOURCE = '"""One line."""\nfrom glas_bench.model import Glas\n\n\nclass Mine(Glas):\n    pass\n'


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
    assert {name: registry.find(name).source_hash for name in HASHES} == HASHES
    assert {name.replace("-", "_") for name in HASHES} == stems


def test_hyphen_and_underscore_are_one() -> None:
    assert registry.find("fixed_random") == registry.find("fixed-random")


def test_names_import_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("glas_bench.variants.")]:
        monkeypatch.delitem(sys.modules, name)
    assert registry.names()
    assert not [name for name in sys.modules if name.startswith("glas_bench.variants.")]


def test_the_identity_is_the_code(tmp_path: Path) -> None:
    path = tmp_path / "my_idea.py"
    path.write_text(SOURCE)
    found = registry.find(str(path))
    assert (found.name, found.reference) == ("my-idea", str(path.resolve()))
    assert found.summary == "One line."
    path.write_bytes(SOURCE.replace("\n", "\r\n").encode())
    assert registry.find(str(path)).source_hash == found.source_hash
    path.write_text(SOURCE.replace("pass", "x= 1"))  # of the same size, in the same second
    edited = registry.find(str(path))
    assert edited.source_hash != found.source_hash
    assert edited.cls.x == 1  # type: ignore[attr-defined]
    assert sorted(tmp_path.iterdir()) == [path]
    moved = tmp_path / "elsewhere" / "other_name.py"
    moved.parent.mkdir()
    moved.write_text(SOURCE)
    assert registry.find(str(moved)).source_hash == found.source_hash


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
    ("old", "new"),
    [
        ('"""A charge."""\n', '"""Another.\n\nOf more lines.\n"""\n# and a remark\n'),
        ('    """The published model, charged more."""\n\n', ""),
        ('    """What it is charged."""\n', "    'what \"it\" is' 'charged'\n\n"),
        ("  # at every step", " # once"),
        ("            # the draw\n", ""),
        ("    def charge", "    # here\n\n    def charge"),
        ("factor = 2.0", 'factor = 2.0  # """ no string'),
        ("1.5", "1.25"),
        ("    is_control = True\n", "    figures = ('samples',)  # a figure\n"),
    ],
)
def test_comments_and_docstrings_keep_the_identity(old: str, new: str) -> None:
    assert WRITTEN.count(old) == 1
    assert registry.code_alone(WRITTEN.replace(old, new)) == registry.code_alone(WRITTEN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "2.5"),
        ("two\n\n    lines", "two\n    lines"),
        ("two\n", "# two\n"),
        ("    def charge", "def charge"),
        ("# the draw\n", "the_draw,\n"),
        ("is_control = True", "is_control = True; scale = 2.0"),
        ("is_control = True", "is_control = scale = True"),
        ("is_control = True", "is_control = factor > 1"),
        ("        return", "        figures = ()\n        return"),
        ('    """What it is charged."""\n', '    x = """What it is charged."""\n'),
    ],
)
def test_all_else_changes_it(old: str, new: str) -> None:
    assert WRITTEN.count(old) == 1
    assert registry.code_alone(WRITTEN.replace(old, new)) != registry.code_alone(WRITTEN)


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
    path = tmp_path / "mine.py"
    path.write_text(
        "from glas_bench.variants.min_chi2 import MinChi2\n\n\n"
        "class Mine(MinChi2):\n    published = {'omniglot': 90.5}\n    figures = ('filter',)\n"
    )
    mine = registry.find(str(path))
    assert (mine.cls.least_kl_per_charge, mine.cls.figures) == (None, ("filter",))
    (cited,) = mine.citations
    assert (cited.dataset, cited.nats, cited.source) == ("omniglot", 90.5, "the variant's file")
    assert registry.find("min-chi2").cls.least_kl_per_charge == 2.725


def test_a_cited_number_is_given_once() -> None:
    cited = registry.find("cauchy").citations
    numbers = [(each.dataset, each.nats) for each in cited]
    assert numbers == [
        ("mnist-static", 89.67),
        ("mnist-static", 92.07),
        ("omniglot", 119.63),
        ("omniglot", 125.77),
    ]
    assert not any(each.verified for each in cited)


def test_bases_are_part_of_the_identity(tmp_path: Path) -> None:
    base, above = tmp_path / "base.py", registry.find("hellinger")
    base.write_text(
        '"""A base."""\nfrom glas_bench.variants.hellinger import Hellinger\n\n\n'
        "class Base(Hellinger):\n    pass\n"
    )
    found = registry.find(str(base))
    module = sys.modules[found.cls.__module__]
    top = tmp_path / "top.py"
    top.write_text(f"from {module.__name__} import Base\n\n\nclass Top(Base):\n    pass\n")
    before = registry.find(str(top))
    assert before.cls.__mro__[1:3] == (found.cls, above.cls)
    assert len({before.source_hash, found.source_hash, above.source_hash}) == 3
    base.write_text(base.read_text() + "    x = 1\n")
    assert registry.find(str(top)).source_hash != before.source_hash


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hellingr", ["'hellingr'", "Did you mean 'hellinger'?", "cauchy", "vae"]),
        ("xyz", ["'xyz'", "Allowed: ", "cauchy"]),
        ("no/such.py", ["no/such.py", "does not exist"]),
        ("../", ["is a folder"]),
        ("__init__", ["'__init__'"]),
    ],
)
def test_what_is_not_there(reference: str, words: list[str]) -> None:
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


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("x = 1\n", "got none"),
        ("from glas_bench.model import Glas\n", "got none"),
        ("from glas_bench.variants.cauchy import Cauchy\n", "got none"),
        (SOURCE.replace("Mine", "_Mine"), "got none"),
        (SOURCE + "class Second(Mine):\n    pass\n", "got Mine, Second"),
    ],
)
def test_exactly_one(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "some.py"
    path.write_text(text)
    assert f"{path}: a variant's file defines exactly one" in refusal(path)
    assert got in refusal(path)


def test_helpers_and_second_names_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        SOURCE.replace("class Mine(Glas)", "class _Base(Glas):\n    pass\n\n\nclass Mine(_Base)")
        + "Alias = Mine\n"
    )
    assert registry.find(str(path)).cls.__name__ == "Mine"


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
    assert (found.name, found.reference, found.path) == (
        "their-idea",
        "their-idea",
        tmp_path / "their_package.py",
    )
    assert found.cls.__name__ == "Mine"
