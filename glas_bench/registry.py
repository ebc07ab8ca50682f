"""Variants: built in, installed (entry point group `glas_bench.variants`), or given as a file.

Adding a file registers it: its stem, with hyphens, is the variant's name, and the one public
subclass of `Glas` that it defines is the variant.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import itertools
import sys
import tokenize
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from glas_bench.errors import UsageError, unknown

if TYPE_CHECKING:
    from glas_bench.model import Glas

BUILT_IN = Path(__file__).parent / "variants"
ENTRY_POINTS = "glas_bench.variants"
_PREFIX = "glas_bench_user_"
_loaded_helpers: set[str] = set()
_LAYOUT = {tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

ESTIMATOR = "as its file says; split unverified"
"""Estimator of a number in a variant's `published`; the file's docstring says what it measures."""


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A published number of a variant, in nats per image, as its source gives it.

    GLAS's `eval.py` averages the training loss over one draw, on the `train` part by default, and
    no configuration names the part that its README's numbers are of: none of them is `verified`.
    """

    dataset: str
    nats: float
    estimator: str
    split: str = "not established"
    source: str
    verified: bool = False
    steps: int | None = 64
    """T; None where it is unknown."""
    bound: bool = False
    """Whether the source gives it as an upper bound of -log p(x)."""
    remark: str = ""
    grey: bool = False
    """Whether its targets are grey, as those of binarisation `soft`."""
    is_elbo: bool = True
    """Whether it is comparable with `elbo`; otherwise with `beside`."""
    beside: str = "objective"
    """Our number that it corresponds to where that is not `elbo`."""
    epochs: int | None = 250
    """Epochs of training in the original code; None where the source is another."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings other than the variant's defaults, written as a run's parameters."""


@dataclass(frozen=True)
class Variant:
    """A variant: its name, its class, and its file."""

    name: str
    cls: type[Glas]
    path: Path
    reference: str  # finds it in another process: the name, or the file's path

    @cached_property
    def source_hash(self) -> str:
        """SHA-256 of the code of the variant, of its bases, and of modules of the user's own.

        Those are what a file imports, at any depth, that is neither installed nor of this package.

        Editing comments, docstrings and descriptive attributes (`model.DESCRIPTIVE`) does not
        invalidate runs. `find` computes it at once, for the file may be edited after its import.
        """
        from glas_bench.model import Glas

        digest = hashlib.sha256()
        bases = self.cls.__mro__[: self.cls.__mro__.index(Glas)]
        for base in bases:
            digest.update(code_alone(_source(Path(inspect.getfile(base)))).encode() + b"\0")
        for name, path in sorted(_helpers(bases).items()):
            digest.update(f"{name}\0{code_alone(_source(path))}\0".encode())
        return digest.hexdigest()

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The published numbers: `citations` of the class, then what else `published` declares."""
        known = tuple(Citation(**each) for each in self.cls.citations)
        cited = {(each.dataset, each.nats) for each in known}
        cite = partial(
            Citation, estimator=ESTIMATOR, source="the variant's file", steps=None, epochs=None
        )
        rest = (pair for pair in self.cls.published.items() if pair not in cited)
        return (*known, *(cite(dataset=dataset, nats=nats) for dataset, nats in rest))

    @property
    def summary(self) -> str:
        """The first line of the docstring of the variant's file (or class)."""
        return self.docstring.strip().partition("\n")[0]

    @property
    def docstring(self) -> str:
        """The docstring of the variant's file, or of its class."""
        module = sys.modules[self.cls.__module__]
        text = module.__doc__ or self.cls.__doc__
        if text is None and sys.flags.optimize > 1:  # PYTHONOPTIMIZE=2 leaves docstrings out
            text = ast.get_docstring(ast.parse(inspect.getsource(module)))
        return inspect.cleandoc(text or "")


def _source(path: Path) -> str:
    """Return a file's text, decoded as Python does: by its coding cookie, without a BOM."""
    with tokenize.open(path) as file:
        return file.read()


def _helpers(bases: Iterable[type]) -> dict[str, Path]:
    """Return the user's own modules that files of these classes import, at any depth, by name."""
    left = [(base.__module__, Path(inspect.getfile(base))) for base in bases]
    seen = {path.resolve() for _, path in left}
    helpers: dict[str, Path] = {}
    while left:
        importer, path = left.pop()
        is_package = path.stem == "__init__"
        package = importer if is_package else importer.rpartition(".")[0]
        for name in _imports(_source(path), package):
            found = _own_file(name)
            if found is not None and found not in seen:
                seen.add(found)
                helpers[name] = found
                left.append((name, found))
    return helpers


def _imports(source: str, package: str) -> Iterator[str]:
    """Yield the absolute names that Python source may import as modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(dots, package) if node.level else dots
            except ImportError:
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _own_file(name: str) -> Path | None:
    """Return the source of a module that is neither installed nor Python's nor of this package."""
    if name.partition(".")[0] in {*sys.stdlib_module_names, "glas_bench", "torch"}:
        return None
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if module is None:
        with contextlib.suppress(Exception):  # a name in a module is no module
            spec = importlib.util.find_spec(name)
            origin = spec and spec.origin
    if not origin or not origin.endswith(".py") or not Path(origin).is_file():
        return None
    path = Path(origin).resolve()
    return None if {"site-packages", "dist-packages"} & set(path.parts) else path


def code_alone(source: str) -> str:
    """Return Python source without comments, docstrings, blank lines and descriptive attributes.

    The text is cut: how Python renders a syntax tree differs between its versions.
    """
    lines = io.StringIO(source).readlines()
    offsets = [0, *itertools.accumulate(map(len, lines))]
    descriptive = _descriptive_lines(source)
    code: list[str] = []
    statement: list[tokenize.TokenInfo] = []
    cuts: list[tuple[int, int]] = []
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type == tokenize.COMMENT:
            row, end = (offsets[token.start[0] - i] for i in (1, 0))
            before = lines[token.start[0] - 1][: token.start[1]].rstrip()
            cuts.append((row + len(before), end - 1) if before else (row, end))
        elif token.type == tokenize.NEWLINE:
            is_docstring = all(each.type == tokenize.STRING for each in statement)
            is_descriptive = statement[0].start[0] in descriptive and not any(
                each.string == ";" for each in statement
            )
            if not (is_docstring or is_descriptive):
                start = offsets[statement[0].start[0] - 1]
                end = offsets[statement[-1].end[0] - 1] + statement[-1].end[1]
                code.append(_without(source, cuts, start, end))
            statement, cuts = [], []
        elif token.type not in _LAYOUT:
            statement.append(token)
    return "\n".join(code)


def _descriptive_lines(source: str) -> set[int]:
    """Return the lines on which a class body begins to assign a literal to a descriptive name."""
    from glas_bench.model import DESCRIPTIVE

    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    lines = set()
    for statement in itertools.chain.from_iterable(node.body for node in classes):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in DESCRIPTIVE:
                with contextlib.suppress(ValueError):
                    ast.literal_eval(value)
                    lines.add(statement.lineno)
    return lines


def _without(source: str, cuts: list[tuple[int, int]], start: int, end: int) -> str:
    """Return source[start:end] without the cuts, which are in order."""
    kept = []
    for first, last in cuts:
        if start < first < end:
            kept.append(source[start:first])
            start = last
    return "".join([*kept, source[start:end]])


def names() -> list[str]:
    """Return the names of all built-in and installed variants, sorted, without importing them."""
    return sorted({*_built_in(), *_installed()})


def find(reference: str) -> Variant:
    """Return the variant of this name, or of this path to a Python file.

    Raises:
        UsageError: no such name or file, or the file does not define exactly one variant.
    """
    variant = _find(reference)
    _ = variant.source_hash
    return variant


def _find(reference: str) -> Variant:
    if reference.endswith(".py") or "/" in reference:
        return _from_file(Path(reference))
    name = reference.replace("_", "-")
    for modules in (_built_in, _installed):
        if module_name := modules().get(name):
            module = importlib.import_module(module_name)
            path = Path(str(module.__file__))
            return Variant(name, _only_variant(module, path), path, name)
    if Path(f"{reference}.py").is_file():
        raise UsageError(
            f"unknown variant {reference!r}. There is a file of that name here: "
            f"write --variant ./{reference}.py"
        )
    raise unknown("variant", reference, names())


def _built_in() -> dict[str, str]:
    stems = [path.stem for path in BUILT_IN.glob("[!_]*.py")]
    return {stem.replace("_", "-"): f"glas_bench.variants.{stem}" for stem in stems}


def _installed() -> dict[str, str]:
    points = entry_points(group=ENTRY_POINTS)
    return {point.name.replace("_", "-"): point.module for point in points}


def _from_file(path: Path) -> Variant:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {kind}; give a variant's name or the path of a Python file.")
    path = path.resolve()
    name = path.stem.replace("_", "-")
    module_name = f"{_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    for helper in _loaded_helpers:  # an edited one is imported again
        sys.modules.pop(helper, None)
    _loaded_helpers.clear()
    keeps_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        # A bytecode cache would miss an edit of the same size in the same second.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        line = line_in(error, path)
        place = f"{path}:{line}" if line else path
        raise UsageError(
            f"{place}: importing it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.dont_write_bytecode = keeps_none
    cls = _only_variant(module, path)
    _loaded_helpers.update(each for each in _helpers([cls]) if not each.startswith(_PREFIX))
    return Variant(name, cls, path, str(path))


def line_in(error: BaseException, path: Path) -> int | None:
    """Return the innermost line of an error's traceback that lies in the file, if there is one."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [each.lineno for each in frames if Path(each.filename).resolve() == path.resolve()]
    return lines[-1] if lines else None


def _only_variant(module: ModuleType, path: Path) -> type[Glas]:
    from glas_bench.model import Glas

    defined = {
        value  # a class with two names counts once
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Glas)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    if len(defined) == 1:
        return defined.pop()
    got = ", ".join(sorted(cls.__name__ for cls in defined)) or "none"
    raise UsageError(
        f"{path}: a variant's file defines exactly one public subclass of glas_bench.model.Glas; "
        f"got {got}. Begin a helper class's name with an underscore."
    )
