"""Reads a tree of Python files without importing it: who imports whom, where, and when.

`read_package` gives one `Source` per module; the `*_problems` functions each check one house rule
and return a sentence per breach, so that a test can show all of them at once.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

Floors = Sequence[Collection[str]]


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target, as an absolute dotted name."""

    target: str
    line: int
    lazy: bool  # inside a function: runs when that is called
    typing: bool  # under `if TYPE_CHECKING`: never runs


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its dotted name, its file, and what it imports."""

    name: str
    path: Path
    imports: tuple[Import, ...]


def python_files(root: Path) -> Iterator[Path]:
    """Every .py file below `root`, except in hidden folders, build output and environments."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            skipped = path.name.startswith(".") or path.name in {"build", "dist", "__pycache__"}
            if not skipped and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
                yield from python_files(path)
        elif path.suffix == ".py":
            yield path


def read_package(root: Path, package: str, folders: Iterable[str]) -> dict[str, Source]:
    """Parse the package that lies in `root`: the files there and those below `folders`."""
    paths = sorted(root.glob("*.py"))
    for folder in folders:
        if (root / folder).is_dir():
            paths += python_files(root / folder)
    names = {path: _module_name(path, root, package) for path in paths}
    modules = frozenset(names.values())
    return {name: Source(name, path, _imports(path, name, modules)) for path, name in names.items()}


def _module_name(path: Path, root: Path, package: str) -> str:
    parts = (package, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, name: str, modules: frozenset[str]) -> tuple[Import, ...]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*stem, *([node.module] if node.module else [])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                target = member if member in modules else base
                found.append(Import(target, node.lineno, lazy, typing))
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing)
        else:
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                visit(child, lazy, typing)

    visit(tree, False, False)
    return tuple(found)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def within(name: str, package: str) -> bool:
    """Whether the dotted `name` is `package` or lies in it."""
    return name == package or name.startswith(package + ".")


def floor_problems(
    sources: Mapping[str, Source], package: str, floors: Floors, strangers: Collection[str]
) -> list[str]:
    """Imports that go upward, imports between two of the `strangers`, and modules on no floor.

    `floors` lists dotted names relative to `package`, the ground first. The package's own face and
    `__main__` stand above all of them. An `__init__.py` that only holds floors stands on the
    lowest that it holds, so that importing a low module never runs a high one.
    """

    def unit(name: str) -> tuple[int, str] | None:
        if name in (package, f"{package}.__main__"):
            return len(floors), name
        for level, units in enumerate(floors):
            for each in units:
                if within(name, f"{package}.{each}"):
                    return level, each
                if within(f"{package}.{each}", name):
                    return level, name.removeprefix(package + ".")
        return None

    problems = []
    for source in sources.values():
        mine = unit(source.name)
        if mine is None:
            problems.append(f"{source.name} is on no floor: add it to the table")
            continue
        for item in source.imports:
            if not within(item.target, package):
                continue
            theirs = unit(item.target)
            if theirs is None:
                continue  # reported once, as a module of its own
            upward = theirs[0] > mine[0]
            strange = theirs[1] != mine[1] and {theirs[1], mine[1]} <= set(strangers)
            if upward or strange:
                why = "which is above it" if upward else "of which it must know nothing"
                problems.append(f"{source.name}:{item.line} imports {item.target}, {why}")
    return problems


def import_graph(sources: Mapping[str, Source]) -> nx.DiGraph:
    """Edges of what runs at import time: importing `a.b.c` runs `a` and `a.b` as well.

    Packages that the importing module lies in are running already, and draw no edge of that kind.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(sources)
    for source in sources.values():
        for item in source.imports:
            if item.lazy or item.typing or item.target not in sources:
                continue
            if item.target != source.name:
                graph.add_edge(source.name, item.target)
            parts = item.target.split(".")
            for end in range(1, len(parts)):
                parent = ".".join(parts[:end])
                if parent in sources and not within(source.name, parent):
                    graph.add_edge(source.name, parent)
    return graph


def cycle_problems(sources: Mapping[str, Source]) -> list[str]:
    """Groups of modules that import each other, in a circle or directly."""
    components = nx.strongly_connected_components(import_graph(sources))
    circles = sorted(sorted(each) for each in components if len(each) > 1)
    return ["import cycle: " + ", ".join(each) for each in circles]


def lazy_problems(sources: Mapping[str, Source], optional: Collection[str]) -> list[str]:
    """Imports inside functions, other than of `optional` packages and modules."""
    return [
        f"{source.name}:{item.line} imports {item.target} inside a function"
        for source in sources.values()
        for item in source.imports
        if item.lazy and not item.typing and not any(within(item.target, o) for o in optional)
    ]


def length_problems(root: Path, limit: int) -> list[str]:
    """Python files below `root` with more than `limit` lines."""
    problems = []
    for path in python_files(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            problems.append(f"{path.relative_to(root)} has {lines} lines, {limit} are allowed")
    return problems
