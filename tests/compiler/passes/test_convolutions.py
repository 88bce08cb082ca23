"""Which convolutions go to which kernel, in which layout, with what around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.select import select
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import cpu_pipeline

BLOCK = 16


def weights(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def compiled(g: GraphBuilder) -> tuple[Graph, list[str]]:
    """The graph after all passes, and the templates of its kernels."""
    graph = g.build()
    final, _ = run_pipeline(cpu_pipeline(BLOCK), graph)
    x = {n: weights(*graph.type(n).dims) for n in graph.inputs}
    for n, y in evaluate(graph, x).items():
        np.testing.assert_allclose(evaluate(final, x)[n], y, 1e-5, 1e-5)
    return final, [launch.kernel.template for launch in select(final, Device(64, 32, 1))]


@pytest.mark.parametrize(
    ("channels", "out", "group", "template"),
    [
        (32, 32, 32, "depthwise_conv"),
        (8, 8, 8, "nest"),  # fewer channels than one block
        (32, 64, 32, "grouped_conv"),  # two results per channel
        (24, 24, 3, "grouped_conv"),
        (64, 32, 2, "direct_conv"),  # whole blocks per group
    ],
)
def test_constant_weights_need_no_unfolding(
    channels: int, out: int, group: int, template: str
) -> None:
    g = GraphBuilder()
    x = g.input("x", (1, channels, 6, 5))
    g.output(g.conv(x, weights(out, channels // group, 3, 3), pads=1, group=group), name="y")
    assert template in compiled(g)[1]


def unit(g: GraphBuilder, x: Value) -> Value:
    """A unit of ShuffleNet: grouped, shuffled, depthwise, grouped, and x."""
    h = g.relu(g.conv(x, weights(24, 6, 1, 1), group=4))
    n, c, *space = h.shape
    h = g.reshape(h, shape=(n, 4, c // 4, *space))
    h = g.reshape(g.transpose(h, perm=(0, 2, 1, 3, 4)), shape=(n, c, *space))
    h = g.conv(h, weights(24, 1, 3, 3), pads=1, group=24)
    out: Value = g.relu(g.conv(h, weights(24, 6, 1, 1), group=4) + x)
    return out


def test_a_shuffle_between_convolutions_costs_no_kernel() -> None:
    g = GraphBuilder()
    g.output(unit(g, unit(g, g.input("x", (1, 24, 5, 5)))), name="y")
    final, templates = compiled(g)
    made = [t for t in templates if t != "nest"]
    assert made == ["grouped_conv", "depthwise_conv", "grouped_conv"] * 2
    moves = [op.operator for op in final.ops if op.operator in ("gather", "transpose", "reformat")]
    assert moves == ["reformat", "gather", "gather"], "of x, and into two convolutions"
    assert templates.count("nest") == 2, "the reformat, and the last relu, into row-major order"


def test_operands_come_in_the_layout_of_the_result() -> None:
    """The residual shares the reformat that the convolution's input has."""
    g = GraphBuilder()
    x = g.input("x", (1, 32, 4, 4))
    g.output(g.relu(g.conv(x, weights(32, 32, 1, 1)) + x), name="y")
    final, _ = compiled(g)
    (add,) = [op for op in final.ops if op.operator == "add"]
    assert all(final.type(n).layout.is_blocked for n in add.reads)
    assert sum(op.operator == "reformat" for op in final.ops) == 1, "of x"
