"""The direction of all imports: the rules of docs/architecture.md, checked for every file.

Imports inside functions and for types alone count too: files that need them cannot be read apart.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "sparsec": "sparsec",
    "compiler": "sparsec.compiler",
    "runtime": "sparsec.runtime",
    "serving": "sparsec.serving",
    "pruning": "sparsec.pruning",
    "templates": "sparsec.templates",
}

BASE = {
    *("errors", "paths", "arguments", "console", "scratch", "positions", "interface", "_start"),
    *("stopping", "targets", "microarchitectures", "tile_registers"),
    *("sentence_files", "hub", "progress"),
}
ABOVE_COMPILER = BASE | {"compiler", "runtime"}
EVERYTHING = ABOVE_COMPILER | {
    *("cache", "ort", "facade", "session", "serving", "pruning", "templates", "ray", "cli"),
}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    **dict.fromkeys(BASE - {"errors"}, BASE),
    "templates": set(),
    "runtime": BASE,
    "compiler": BASE | {"templates", "runtime"},
    "cache": ABOVE_COMPILER,
    "ort": ABOVE_COMPILER,
    "facade": ABOVE_COMPILER | {"cache", "ort"},
    "session": ABOVE_COMPILER | {"facade"},
    "serving": ABOVE_COMPILER | {"cache", "ort", "facade"},
    "pruning": ABOVE_COMPILER | {"cache", "ort", "facade", "serving"},
    "ray": ABOVE_COMPILER | {"cache", "ort", "facade", "serving"},
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "": EVERYTHING - {"cli"},  # sparsec itself
}
"""Part of the package -> parts that its files may import beside their own."""

NARROWER = [
    ("compiler", "runtime", {"runtime", "runtime.artifact", "runtime.cpu"}),
    ("serving", "compiler", {"compiler.frontend"}),
]
"""Where one part may import of another, only these modules."""

STAGES = {"frontend", "padding", "passes", "lowering", "codegen"}
FORBIDDEN: dict[str, set[str]] = {
    "ir": STAGES,
    "ops": STAGES,
    "editor": STAGES,
    "interpreter": STAGES,
    "axes": STAGES,
    "toolchain": STAGES,
    "frontend": STAGES - {"frontend"},
    "padding": STAGES - {"padding"},
    "passes": {"frontend", "padding", "codegen"},
    "lowering": STAGES - {"lowering"},
}
"""Stage of the compiler -> stages that its files must not import."""

CIRCLES = ("sparsec.runtime",)
"""Packages whose files import each other on purpose: the Engine with the check of artifacts."""


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.suffix in (".py", ".pyx"):
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join((package, *inner)).removesuffix(".__init__")] = path
    return found


def _python(path: Path) -> str:
    """The imports of a Cython file as Python, or a Python file as it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    lines = re.findall(r"^\s*((?:from sparsec[\w.]* )?import [\w., ]+)$", text, re.MULTILINE)
    return "\n".join(lines)


def _names(path: Path) -> Iterator[str]:
    """Full names of all that a file imports."""
    for node in ast.walk(ast.parse(_python(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports."""
    modules = _modules()
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for name in _names(path):
            if name.split(".")[0] != "sparsec":
                continue
            while name not in modules:
                name = name.rpartition(".")[0]
            if name != module:
                found[module].add(name)
    return found


IMPORTS = _imports()
ARROWS = [(a, b) for a, targets in IMPORTS.items() for b in sorted(targets)]


def _part(module: str, depth: int = 1) -> str:
    return ".".join(module.split(".")[depth : depth + 1])


def test_all_files_are_read() -> None:
    assert {f"sparsec.runtime.{name}" for name in ("_engine", "_loader", "_rows")} <= set(IMPORTS)
    assert "sparsec.serving._words" in IMPORTS
    assert "sparsec.runtime.artifact" in IMPORTS["sparsec.runtime._engine"]
    assert {_part(module) for module in IMPORTS} <= set(ALLOWED)


def test_parts_import_as_the_rule_says() -> None:
    wrong = [
        (a, b)
        for a, b in ARROWS
        if _part(b) not in {"", _part(a)} and _part(b) not in ALLOWED[_part(a)]
    ]
    assert not wrong


@pytest.mark.parametrize(("reader", "read", "modules"), NARROWER)
def test_parts_that_see_little_of_another(reader: str, read: str, modules: set[str]) -> None:
    seen = {
        b.removeprefix("sparsec.") for a, b in ARROWS if _part(a) == reader and _part(b) == read
    }
    assert seen
    assert seen <= modules


def test_stages_of_the_compiler_import_no_later_one() -> None:
    wrong = [
        (a, b)
        for a, b in ARROWS
        if _part(a) == _part(b) == "compiler" and _part(b, 2) in FORBIDDEN.get(_part(a, 2), ())
    ]
    assert not wrong


def test_lowering_decides_and_holds_no_c() -> None:
    """What prints C is in `compiler/codegen/`, which reads decisions and is not read by them."""
    for module, path in _modules().items():
        if _part(module) == "compiler" and _part(module, 2) == "lowering":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not re.search(r";\s*$|^#include|\bv[fi]_\w+\(", node.value), module
            assert "sparsec.compiler.templates" not in IMPORTS[module]


def test_only_the_compiler_and_what_is_above_it_need_onnx() -> None:
    """An artifact is served where there is no ONNX."""
    for module, path in _modules().items():
        if _part(module) in BASE | {"runtime"}:
            assert not any(name.split(".")[0] == "onnx" for name in _names(path)), module


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_files_import_each_other_nowhere_else() -> None:
    # `sparsec` itself is lazy, and read for its version.
    graph = {
        a: {b for b in targets if b != "sparsec"}
        for a, targets in IMPORTS.items()
        if a != "sparsec"
    }
    reached = {module: _reached(graph, module) for module in graph}
    circles = {module for module in graph if module in reached[module]}
    meant = {m for m in circles if m.startswith(CIRCLES)}
    assert circles == meant
