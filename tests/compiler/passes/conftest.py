"""Golden files of passes: the graph before and after, as text.

    # passes: canonicalize dead_code
    graph before(...) -> (...) { ... }
    ---
    graph before(...) -> (...) { ... }

`pytest --update-golden` writes what is below the line anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.graph.text import parse, to_text

GOLDEN = Path(__file__).parent / "golden"
LINE = "---\n"


@pytest.fixture
def golden_pair(request: pytest.FixtureRequest) -> Callable[[str, Callable[..., Graph]], None]:
    """`golden_pair("file", rewrite)`: rewrite(graph, names of passes) of the upper graph must print
    as the lower one."""
    update = request.config.getoption("--update-golden")

    def check(name: str, rewrite: Callable[..., Graph]) -> None:
        path = GOLDEN / f"{name}.txt"
        head, _, expected = path.read_text(encoding="utf-8").partition(LINE)
        first = head.splitlines()[0]
        assert first.startswith("# passes: "), f"{path.name} must start with '# passes: a b c'"
        text = to_text(rewrite(parse(head), first.removeprefix("# passes: ").split()))
        if update:
            path.write_text(head + LINE + text, encoding="utf-8")
            return
        assert text == expected, f"{path.name} differs; if that is meant: pytest --update-golden"

    return check
