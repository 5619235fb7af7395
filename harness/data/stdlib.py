"""The running Python's standard library as text: its code without docstrings, and its documentation.

Docstrings belong to `python_docs` alone: were they also in `python_code`, documentation held out for evaluation would
be trained on through the code. Nothing is imported but `pydoc_data`; modules are parsed. Both sources follow the
installed Python, so their identity may change when Python is upgraded.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GENERATOR_VERSION = 1
CODE_CHARACTERS = 8000
"""A code document ends with the statement that takes it past this many characters."""

_INSTALLED = {"site-packages", "dist-packages"}
_TESTS = {"test", "tests", "idle_test"}
_TABLES = {"encodings", "pydoc_data", "__phello__", "__pycache__"}
_LEFT_OUT = _INSTALLED | _TESTS | _TABLES
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    code: tuple[str, ...]
    documentation: str


def version() -> str:
    """What the two sources depend on: the generator's rules and the Python that is read."""
    return f"{GENERATOR_VERSION} {sys.version}"


def python_code() -> Iterator[str]:
    """The library's `.py` files in the order of their names, without docstrings.

    Tests, installed packages, character tables (`encodings`) and files that do not parse are left out. A file longer
    than `CODE_CHARACTERS` becomes several documents, cut between top-level statements, or between the statements of
    a class that is too long itself.
    """
    for module in _modules():
        yield from module.code


def python_docs() -> Iterator[str]:
    """One document per module: the docstrings of the module, its classes and functions under their signatures.

    After them the language reference that `help()` shows, one document per topic.
    """
    for module in _modules():
        if module.documentation:
            yield module.documentation
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield topics.topics[name].strip() + "\n"


@cache
def _modules() -> tuple[_Module, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    return tuple(module for path in _files(root) if (module := _read(root, path)) is not None)


def _files(root: Path) -> list[Path]:
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = [p for p in paths if not _LEFT_OUT & set(p.parts) and not p.parts[0].startswith("config-")]
    return sorted(kept, key=lambda path: path.as_posix())


def _read(root: Path, path: Path) -> _Module | None:
    try:
        with tokenize.open(root / path) as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old files
            tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return _Module(name, tuple(_code_documents(text, tree)), _documentation(name, tree))


# --- code


def _code_documents(text: str, tree: ast.Module) -> Iterator[str]:
    lines = text.splitlines(keepends=True)
    for line in _docstring_lines(tree):
        lines[line] = ""
    document = ""
    start = 0
    for stop in [*_cuts(tree.body, lines), len(lines)]:
        document += "".join(lines[start:stop])
        start = stop
        if len(document) >= CODE_CHARACTERS:
            yield document.strip("\n") + "\n"
            document = ""
    if document.strip():
        yield document.strip("\n") + "\n"


def _cuts(body: list[ast.stmt], lines: list[str]) -> Iterator[int]:
    """Lines (from 0) at which a document may end: behind each statement, inside a class that is too long too."""
    for statement in body:
        start, stop = statement.lineno - 1, statement.end_lineno or statement.lineno
        if isinstance(statement, ast.ClassDef) and sum(map(len, lines[start:stop])) > CODE_CHARACTERS:
            yield from _cuts(statement.body, lines)
        else:
            yield stop


def _docstring_lines(node: ast.AST) -> Iterator[int]:
    """Lines (from 0) that docstrings fill. A docstring that shares a line with code or is a whole body stays."""
    for child in _definitions(node):
        yield from _docstring_lines(child)
    expression = _docstring(node)
    body = getattr(node, "body", [])
    if expression is None or (len(body) == 1 and not isinstance(node, ast.Module)):
        return
    first, last = expression.lineno, expression.end_lineno or expression.lineno
    own_lines = not isinstance(node, _Definition) or first > node.lineno
    if own_lines and (len(body) == 1 or body[1].lineno > last):
        yield from range(first - 1, last)


def _docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if not body or not isinstance(body[0], ast.Expr):
        return None
    value = body[0].value
    return body[0] if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Classes and functions that stand in a body, also inside its `if`, `try`, `with` and loops."""
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, []):
            if isinstance(child, _Definition):
                yield child
            else:
                yield from _definitions(child)


# --- documentation


def _documentation(name: str, tree: ast.Module) -> str:
    entries = list(_entries(tree, ""))
    summary = ast.get_docstring(tree)
    if not entries and not summary:
        return ""
    head = f"Module {name}\n" + (f"\n{summary}\n" if summary else "")
    return head + "".join(f"\n{entry}\n" for entry in entries)


def _entries(node: ast.AST, prefix: str) -> Iterator[str]:
    """`signature`, then its docstring indented, for each documented definition, depth first in the file's order."""
    for child in _definitions(node):
        documentation = ast.get_docstring(child)
        if documentation:
            indented = "\n".join(f"    {line}".rstrip() for line in documentation.splitlines())
            yield f"{_signature(child, prefix)}\n{indented}"
        if isinstance(child, ast.ClassDef):
            yield from _entries(child, f"{prefix}{child.name}.")


def _signature(node: _Definition, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {prefix}{node.name}({bases})" if bases else f"class {prefix}{node.name}"
    return f"{prefix}{node.name}({ast.unparse(node.args)})"
