"""The table of environment variables is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tilewright.compiler.options import ENVIRONMENT

ROOT = Path(__file__).parents[2]
OURS = re.compile(r"TILEWRIGHT_[A-Z_]+")


def sources() -> Iterator[Path]:
    for folder in ("ops", "autotune", "compiler"):
        yield from (ROOT / folder).rglob("*.py")


def test_every_variable_that_is_named_is_in_the_table() -> None:
    named = {v for file in sources() for v in OURS.findall(file.read_text(encoding="utf-8"))}
    assert {v.rstrip("_") for v in named} == {v for v in ENVIRONMENT if v.startswith("TILEWRIGHT_")}


def test_every_variable_that_is_read_by_its_name_is_in_the_table() -> None:
    """os.environ.get("X"), os.environ["X"]; names in constants are caught above."""
    read = {}
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            given: ast.expr | None = None
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                given = node.slice
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "os.environ.get", "os.getenv"
            ):  # fmt: skip
                given = node.args[0]
            if isinstance(given, ast.Constant):
                read[given.value] = file.name
    assert read and read.keys() <= ENVIRONMENT.keys(), read
