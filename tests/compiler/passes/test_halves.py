"""Passes over graphs of half floats: bf16 is stored as bits, and computed with in f32 between
casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Array, Graph
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.channel_order import ChannelOrder
from tilewright.compiler.passes.fold_constants import FoldConstants
from tilewright.compiler.passes.fold_scales import FoldScales
from tilewright.ops.types import DType, bf16, f16

HALVES = pytest.mark.parametrize("kind", [f16, bf16], ids=str)
ULP = {f16: 2.0**-11, bf16: 2.0**-8}


def feeds_of(graph: Graph) -> dict[str, Array]:
    return {n: bits_of(some(9, *graph.type(n).dims)) if graph.type(n).dtype is bf16
            else some(9, *graph.type(n).dims).astype(graph.type(n).dtype.numpy)
            for n in graph.inputs}  # fmt: skip


def operators(graph: Graph) -> list[str]:
    """All but copies that name an output."""
    return [op.operator for op in graph.ops if op.operator != "identity"]


def held(b: GraphBuilder, kind: DType, values: Any) -> Value:
    a = np.asarray(values, np.float64)
    return b.constant(bits_of(a) if kind is bf16 else a.astype(np.float16), dtype=kind)


def some(seed: int, *dims: int) -> Array:
    return np.random.default_rng(seed).standard_normal(dims)


def wide(b: GraphBuilder, x: Value) -> Value:
    return b.cast(x, to="f32") if x.type.dtype is bf16 else x


def normalized(b: GraphBuilder, x: Value, scale: Array) -> Value:
    """A batch norm as the importer has it: bf16 between casts."""
    c, kind = len(scale), x.type.dtype
    params = [held(b, kind, v) for v in (scale, some(5, c), some(6, c), some(7, c) ** 2 + 0.5)]
    y = b.batch_normalization(*(wide(b, v) for v in (x, *params)))
    return b.cast(y, to="bf16") if kind is bf16 else y


def folded(kind: DType, scale: Array, c: int = 5) -> tuple[Graph, Graph]:
    b = GraphBuilder("g")
    x = b.input("x", (2, 3, 4, 4), kind)
    y = normalized(b, b.conv(x, held(b, kind, some(1, c, 3, 3, 3)), pads=1), scale)
    z = b.relu(wide(b, y))
    b.output(b.cast(z, to="bf16") if kind is bf16 else z, "y")
    graph = b.build()
    return graph, run_pipeline([FoldConstants(), FoldScales()], graph)[0]


@HALVES
def test_a_batch_norm_goes_into_the_weights(kind: DType) -> None:
    graph, result = folded(kind, some(3, 5))
    assert [o for o in operators(result) if o != "cast"] == ["conv", "relu"]
    feeds = feeds_of(graph)
    want, got = evaluate(graph, feeds)["y"], evaluate(result, feeds)["y"]
    assert np.abs(got - want).max() <= 4 * ULP[kind] * np.abs(want).max()
    weights = result.blobs[result.ops[0].inputs[1] or ""]
    assert weights.type.dtype is kind
    part = np.empty((2, 3, 3, 3), kind.numpy)
    weights.content.write(part, (slice(1, 3),))  # type: ignore[union-attr]
    assert np.array_equal(part, weights.value[1:3])  # type: ignore[index]


@pytest.mark.parametrize("factor", [1e-6, 6e4])
def test_weights_that_half_floats_cannot_hold_are_left_alone(factor: float) -> None:
    _, result = folded(f16, np.array([1, 1, factor, 1, 1]))
    assert operators(result) == ["conv", "cast", "mul", "add", "cast", "relu"]
    _, result = folded(bf16, np.array([1, 1, factor, 1, 1]))
    assert set(operators(result)) == {"conv", "relu", "cast"}


def test_a_channel_of_zeros_may_be_folded() -> None:
    _, result = folded(f16, np.array([1, 1, 0, 1, 1]))
    assert set(operators(result)) == {"conv", "relu"}


def test_a_batch_norm_alone_is_computed_in_float32() -> None:
    b = GraphBuilder("g")
    b.output(normalized(b, b.relu(b.input("x", (2, 3, 4, 4), f16)), some(3, 3)), "y")
    graph = b.build()
    result, _ = run_pipeline([FoldScales()], graph)
    assert operators(result) == ["relu", "cast", "mul", "add", "cast"]
    feeds = feeds_of(graph)
    want, got = evaluate(graph, feeds)["y"], evaluate(result, feeds)["y"]
    assert np.abs(got - want).max() <= ULP[f16] * np.abs(want).max()


def test_a_cast_that_is_more_than_a_rounding_ends_a_chain() -> None:
    b = GraphBuilder("g")
    y = b.conv(b.input("x", (1, 2, 3, 3), f16), held(b, f16, some(1, 2, 2, 1, 1)))
    whole = b.cast(b.cast(y, to="i32"), to="f16")
    b.output(whole * held(b, f16, 2.0), "y")
    graph = b.build()
    result, _ = run_pipeline([FoldScales()], graph)
    assert operators(result) == ["conv", "cast", "cast", "mul"]


def test_shuffled_channels_of_bf16() -> None:
    b = GraphBuilder("g")
    x = b.input("x", (1, 4, 5, 5), bf16)
    y = b.transpose(b.reshape(x, shape=(1, 2, 2, 5, 5)), perm=(0, 2, 1, 3, 4))
    y = b.reshape(y, shape=(1, 4, 5, 5))
    y = b.conv(y, held(b, bf16, some(1, 4, 1, 3, 3)), held(b, bf16, some(2, 4)), group=4)
    b.output(b.conv(y, held(b, bf16, some(3, 6, 4, 1, 1))), "y")
    graph = b.build()
    result, _ = run_pipeline([ChannelOrder(), FoldConstants()], graph)
    assert operators(result) == ["conv", "conv"]
    feeds = feeds_of(graph)
    assert np.array_equal(evaluate(graph, feeds)["y"], evaluate(result, feeds)["y"])


def test_an_output_that_is_a_constant_of_bf16() -> None:
    b = GraphBuilder("g")
    b.input("x", (1,), "f32")
    b.output(b.transpose(held(b, bf16, some(1, 2, 3)), perm=(1, 0)), "y")
    graph = b.build()
    result, _ = run_pipeline([FoldConstants()], graph)
    assert result.type("y") == graph.type("y") and not [o for o in result.ops if o.reads == ("x",)]
    feeds = feeds_of(graph)
    assert np.array_equal(evaluate(graph, feeds)["y"], evaluate(result, feeds)["y"])


@HALVES
def test_what_a_matrix_product_keeps_is_added_in_a_type_that_adds(kind: DType) -> None:
    b = GraphBuilder("g")
    y = b.matmul(b.input("x", (4, 3), kind), held(b, kind, some(1, 3, 5)))
    shift, scale = held(b, kind, some(2, 5)), held(b, kind, some(3, 5))
    y = (wide(b, y) + wide(b, shift)) * wide(b, scale)
    b.output(b.cast(y, to="bf16") if kind is bf16 else y, "y")
    graph = b.build()
    result, _ = run_pipeline([FoldConstants(), FoldScales()], graph)
    assert [o for o in operators(result) if o != "cast"] == ["matmul", "add"]
    feeds = feeds_of(graph)
    want, got = evaluate(graph, feeds)["y"], evaluate(result, feeds)["y"]
    assert np.abs(got - want).max() <= 4 * ULP[kind] * np.abs(want).max()
