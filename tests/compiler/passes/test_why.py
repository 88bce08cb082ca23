"""Fusion's reasons: every seam has one, they are the right ones, and listening changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilewright as tw
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.passes.attention import WHOLE
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.fuse import Fuse
from tilewright.compiler.passes.pipeline import cpu_pipeline
from tilewright.compiler.passes.why import Reasons, reasons

from ...fuzz.graphs import random_graph

rng = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def before_fusion(graph: Graph) -> tuple[Graph, Graph]:
    """The graph that fusion is given, and what it makes of it."""
    _, stages = run_pipeline(cpu_pipeline(16), graph)
    at = next(k for k, s in enumerate(stages) if isinstance(s.by, Fuse))
    return stages[at - 1].graph, stages[at].graph


def told(build: Callable[[tw.Graph, Value], Value], *shape: int) -> Reasons:
    g = tw.Graph()
    g.output(build(g, g.input("x", shape)), "y")
    return reasons(before_fusion(g.build())[0], Fuse())


def seam(found: Reasons, before: str, after: str) -> str:
    """The reason between two operators."""
    whys = {s.why for s in found.seams if (s.before.operator, s.after.operator) == (before, after)}
    assert len(whys) == 1, whys
    return whys.pop()


@given(seed=st.integers(0, 100_000), ops=st.integers(5, 60))
def test_every_op_and_every_seam_has_a_reason(seed: int, ops: int) -> None:
    graph, fused = before_fusion(random_graph(seed, ops))
    found = reasons(graph, Fuse())
    group = {o: op.group for op in fused.ops for o in op.outputs}
    assert found.together.keys() == {op.outputs[0] for op in graph.ops}
    assert all(found.together.values()) and all(s.why for s in found.seams)
    edges = {(n, op.outputs[0]) for op in graph.ops for n in op.reads
             if n in group and group[n] != group[op.outputs[0]]}  # fmt: skip
    assert {(s.blob, s.after.outputs[0]) for s in found.seams} == edges


def test_what_follows_another_convolution_waits_in_memory() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        h = g.relu(g.conv(x, weights(32, 16, 1, 1)))
        return g.conv(h, weights(16, 32, 1, 1))

    found = told(build, 1, 16, 6, 6)
    assert "only elementwise ops" in seam(found, "relu", "conv")
    assert "once for each tap" in seam(found, "reformat", "conv")
    relu = next(s.before.outputs[0] for s in found.seams if s.before.operator == "relu")
    assert "while that is in registers" in found.together[relu]


def test_a_reduction_that_feeds_two_consumers_of_other_shapes() -> None:
    """The mean is read by others and so is what the loops go on to compute: two shapes."""

    def build(g: tw.Graph, x: Value) -> Value:
        mean = g.reduce_mean(x, axes=(1,))
        g.output(mean, "mean")
        return g.exp(x - mean)

    why = seam(told(build, 8, 9), "reduce_mean", "sub")
    assert "results of different shapes would be read by others" in why
    assert "%mean f32[8,1]" in why


def test_a_second_reduction_over_other_axes() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        return g.reduce_max(x - g.reduce_mean(x, axes=(1,)), axes=(0,))

    assert "over other axes" in seam(told(build, 8, 9), "sub", "reduce_max")


def test_a_window_over_what_was_computed() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        return g.max_pool(g.exp(x), kernel_shape=(3, 3))

    assert "windows overlap" in seam(told(build, 1, 4, 9, 9), "exp", "max_pool")


def test_another_layout_than_the_contractions() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        return g.matmul(g.transpose(g.relu(x @ weights(8, 8)), perm=(1, 0)), weights(6, 5))

    found = told(build, 6, 8)
    assert "only elementwise" in seam(found, "relu", "transpose")


@pytest.mark.parametrize("attention", [True, False])
def test_what_is_inside_of_an_attention(attention: bool) -> None:
    g = tw.Graph()
    x = g.input("x", (5, 7))
    y = g.softmax(g.matmul(x, g.transpose(x, perm=(1, 0))), axis=-1) @ x
    g.output(g.relu(y), "y")
    graph, _ = before_fusion(g.build())
    found = reasons(graph, Fuse(WHOLE if attention else None))
    parts = [w for w in found.together.values() if w == "a part of the attention"]
    assert bool(parts) is attention
