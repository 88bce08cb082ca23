"""Each pass against the graphs in golden/: read those files to see what a pass does.

`tilewright opt --pass NAME` does the same to any graph in a file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.channels_last import ChannelsLast
from tilewright.compiler.passes.pipeline import cpu_pipeline, named
from tilewright.compiler.passes.widen import Widen
from tilewright.ops.types import f32

from ...fuzz.graphs import random_feeds
from .conftest import GOLDEN

PASSES = (*cpu_pipeline(16), ChannelsLast((f32,)), Widen())


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("*.txt")))
def test_golden(name: str, golden_pair: Callable[[str, Callable[..., Graph]], None]) -> None:
    def rewrite(graph: Graph, names: list[str]) -> Graph:
        result, _ = run_pipeline(named(PASSES, names), graph)
        feeds = random_feeds(graph, 1)
        before, after = evaluate(graph, feeds), evaluate(result, feeds)
        for n, y in before.items():
            np.testing.assert_allclose(after[n], y, rtol=1e-5, atol=1e-6)
        return result

    golden_pair(name, rewrite)
