"""Which operators share a kernel, and that groups can always be put in an order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilewright as tw
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.verify import verify
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import cpu_pipeline

from ...fuzz.graphs import random_graph

BLOCK = 16
rng = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def groups(build: Callable[[tw.Graph, Value], Value], *shape: int) -> list[str]:
    """The operators of each group after the whole pipeline, joined by spaces; views left out."""
    g = tw.Graph()
    g.output(build(g, g.input("x", shape)), "y")
    final, _ = run_pipeline(cpu_pipeline(BLOCK), g.build())
    return [" ".join(op.operator for op in ops) for ops in final.groups]


def test_softmax_is_one_group() -> None:
    assert groups(lambda g, x: g.softmax(x, axis=-1), 4, 7) == ["reduce_max sub exp reduce_sum div"]


def test_layer_normalisation_with_its_residual_is_one_group() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        return g.layer_normalization(g.relu(x) + x, weights(24), weights(24), axis=-1)

    assert len(groups(build, 2, 5, 24)) == 1


def test_convolution_takes_its_epilogue() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        h = g.relu(g.conv(g.relu(x), weights(32, 16, 1, 1), weights(32)))
        return g.neg(g.conv(h, weights(16, 32, 3, 3), pads=1))

    assert groups(build, 1, 16, 6, 6) == ["relu reformat", "conv relu", "conv", "neg"]


def test_residual_add_joins_the_last_convolution() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        h = g.relu(g.conv(x, weights(16, 16, 1, 1)))
        z = g.relu(g.conv(h, weights(16, 16, 1, 1)) + h)
        return g.conv(z, weights(16, 16, 1, 1))

    assert "conv add relu" in groups(build, 1, 16, 5, 5)


def test_matmul_reads_through_a_transpose() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        return g.matmul(g.relu(x), g.transpose(g.exp(x), perm=(0, 2, 1)))

    assert "transpose matmul" in groups(build, 2, 3, 4)


def test_windows_do_not_repeat_their_producers() -> None:
    """exp would run once per tap if it were part of the pooling's group."""

    def build(g: tw.Graph, x: Value) -> Value:
        return g.max_pool(g.exp(x), kernel_shape=(3, 3))

    assert groups(build, 1, 4, 9, 9) == ["exp", "max_pool"]


def test_reductions_over_other_axes_stay_apart() -> None:
    def build(g: tw.Graph, x: Value) -> Value:
        centred = x - g.reduce_mean(x, axes=(1,))
        return g.reduce_max(centred, axes=(0,))

    assert len(groups(build, 8, 9)) == 2


def test_groups_never_wait_for_each_other() -> None:
    """a1 -> a2 and b1 -> b2 are connected, and a1 -> b2, b1 -> a2 cross between them."""

    def build(g: tw.Graph, x: Value) -> Value:
        a1, b1 = g.exp(x), g.reduce_sum(x, axes=(0,))
        a2 = g.mul(a1, b1)
        b2 = g.reduce_max(g.add(a1, b1), axes=(1,))
        return g.add(a2, b2)

    assert groups(build, 6, 5)


@given(seed=st.integers(0, 100_000), ops=st.integers(5, 60))
def test_random_graphs_keep_their_ops_and_stay_ordered(seed: int, ops: int) -> None:
    graph = random_graph(seed, ops)
    final, stages = run_pipeline(cpu_pipeline(BLOCK), graph)
    verify(final)
    *_, before, fused = (s.graph for s in stages if s.name in ("dead_code", "fuse"))
    assert sorted(op.outputs for op in fused.ops) == sorted(op.outputs for op in before.ops)
    for graph in (fused, final):
        order = [op.group for op in graph.ops]
        assert order == sorted(order), "members of a group must stand together"  # type: ignore[type-var]


@pytest.mark.parametrize("channels", [16, 20])
def test_layouts_are_blocked_around_convolutions_and_row_major_outside(channels: int) -> None:
    g = tw.Graph()
    x = g.input("x", (1, channels, 8, 8))
    h = g.relu(g.conv(x, weights(channels, channels, 3, 3), pads=1))
    p = g.max_pool(h, kernel_shape=(2, 2), strides=2)
    g.output(g.conv(p, weights(8, channels, 1, 1)), "y")
    final, _ = run_pipeline(cpu_pipeline(BLOCK), g.build())
    layouts = {op.operator: final.type(op.outputs[0]).layout.is_blocked for op in final.ops}
    assert layouts["conv"] and layouts["max_pool"] and layouts["relu"]
    assert not final.type("x").layout.is_blocked and not final.type("y").layout.is_blocked
