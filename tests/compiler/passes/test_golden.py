"""Each pass against the graphs in golden/: read those files to see what a pass does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.passes.base import Pass, run_pipeline
from tilewright.compiler.passes.canonicalize import Canonicalize
from tilewright.compiler.passes.channel_order import ChannelOrder
from tilewright.compiler.passes.channels_last import ChannelsLast
from tilewright.compiler.passes.cse import CommonSubexpressions
from tilewright.compiler.passes.dce import DeadCode
from tilewright.compiler.passes.decompose import Decompose
from tilewright.compiler.passes.fold_constants import FoldConstants
from tilewright.compiler.passes.fold_scales import FoldScales
from tilewright.ops.types import f32

from ...fuzz.graphs import random_feeds
from .conftest import GOLDEN

PASSES: dict[str, Pass] = {
    p.name: p
    for p in (
        Canonicalize(),
        ChannelOrder(),
        ChannelsLast((f32,)),
        CommonSubexpressions(),
        DeadCode(),
        Decompose(),
        FoldConstants(),
        FoldScales(),
    )
}


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("*.txt")))
def test_golden(name: str, golden_pair: Callable[[str, Callable[..., Graph]], None]) -> None:
    def rewrite(graph: Graph, names: list[str]) -> Graph:
        result, _ = run_pipeline([PASSES[n] for n in names], graph)
        feeds = random_feeds(graph, 1)
        before, after = evaluate(graph, feeds), evaluate(result, feeds)
        for n, y in before.items():
            np.testing.assert_allclose(after[n], y, rtol=1e-5, atol=1e-6)
        return result

    golden_pair(name, rewrite)
