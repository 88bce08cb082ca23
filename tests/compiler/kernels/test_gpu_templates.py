"""The templates for GPUs, config by config, simulated and compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_nest import GpuNest
from tilewright.compiler.kernels.gpu_tiles import TILES, GpuTiles, contraction_of
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config, KernelTemplate

from ..codegen.cuda.programs import gpu_launches, simulated
from .support import remembered

rng = np.random.default_rng(11)


def array(*dims: int, dtype: Any = np.float32) -> Any:
    return rng.standard_normal(dims).astype(dtype)


def graph_of(build: Callable[[GraphBuilder], Value]) -> Graph:
    g = GraphBuilder("test")
    g.output(build(g), "y")
    return gpu_launches(g.build())[0]


def check(template: KernelTemplate, graph: Graph, configs: Sequence[Config]) -> list[Launch]:
    """Every config gives the right numbers, also where results may take an operand's memory."""
    feeds = {n: array(*graph.type(n).dims, dtype=graph.type(n).dtype.numpy) for n in graph.inputs}
    expected = evaluate(graph, feeds)["y"]
    launches = []
    for config in configs:
        assert template.matches(graph, graph.ops, graph.outputs)
        launch = template.instantiate(graph, graph.ops, graph.outputs, GPU, config)
        launch = remembered(launch, template, graph, graph.outputs, GPU)
        for alias in (None, *launch.kernel.inplace):
            got = simulated(graph, launch, feeds, alias)
            limit = 1e-5 if graph.type("y").dtype.bits == 32 else 1e-12
            np.testing.assert_allclose(got, expected, limit, limit * np.abs(expected).max(),
                                       err_msg=f"{config}, alias {alias}")  # fmt: skip
        launches.append(launch)
    return launches


# --------------------------------------------------------------------------- the general nest


def softmax(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (5, 70)), axis=1)


def columns(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (2, 40, 3)), axis=1)


def pooling(g: GraphBuilder) -> Value:
    return g.max_pool(g.input("x", (1, 2, 6, 5)), kernel_shape=3, pads=1)


def everything(g: GraphBuilder) -> Value:
    return g.reduce_sum(g.input("x", (7, 11, 5)), axes=(0, 1, 2), keepdims=0)


def pointwise(g: GraphBuilder) -> Value:
    return g.tanh(g.input("x", (3, 50)) + g.input("z", (50,)))


@pytest.mark.parametrize("build", [softmax, columns, pooling, everything, pointwise])
def test_the_nest(build: Callable[[GraphBuilder], Value]) -> None:
    graph = graph_of(build)
    space = GpuNest().space(graph, graph.ops, graph.outputs, GPU)
    assert GpuNest().default(graph, graph.ops, graph.outputs, GPU) in space
    launches = check(GpuNest(), graph, space)
    if build in (softmax, pointwise):
        assert all(launch.kernel.inplace for launch in launches)


def preferred(build: Callable[[GraphBuilder], Value]) -> Config:
    graph = graph_of(build)
    return GpuNest().default(graph, graph.ops, graph.outputs, GPU)


def test_who_computes_a_row() -> None:
    """A block where a row is long, a thread where it is short or there are threads enough."""

    def rows(m: int, n: int) -> Config:
        return preferred(lambda g: g.softmax(g.input("x", (m, n)), axis=1))

    assert rows(100_000, 10) == {"per": "thread"}
    assert rows(16, 1000) == {"per": "block", "threads": 256}
    assert rows(16, 100) == {"per": "block", "threads": 64}
    assert preferred(pooling) == {"per": "thread"}
    long = preferred(lambda g: g.reduce_sum(g.input("x", (8, 8, 4096)), axes=(2,)))
    assert long == {"per": "block", "threads": 256}
    # sums down the columns: threads side by side read side by side
    assert preferred(lambda g: g.reduce_sum(g.input("x", (512, 8192)), axes=(0,))) == {
        "per": "thread"
    }


def test_weights_of_a_product_with_a_vector_lie_along_the_sum() -> None:
    graph = graph_of(product(1, 50, 70))
    (launch,) = check(GpuNest(), graph, [{"per": "block", "threads": 32}])
    assert preferred(product(1, 4096, 4096)) == {"per": "block", "threads": 256}
    source = kernel_source(launch.kernel).text
    assert "x1[item * 70 + k1]" in source


def test_large_sums_take_two_phases() -> None:
    graph = graph_of(lambda g: g.reduce_sum(g.input("x", (1 << 18,)), axes=(0,), keepdims=0))
    (launch,) = gpu_launches(graph)[1]
    assert len(launch.kernel.phases) == 2 and launch.kernel.params[-1].role == "scratch"


# --------------------------------------------------------------------------- tiles


def product(m: int, n: int, k: int, dtype: Any = np.float32) -> Callable[[GraphBuilder], Value]:
    def build(g: GraphBuilder) -> Value:
        kind = "f32" if dtype is np.float32 else "f64"
        return g.matmul(g.input("x", (m, k), kind), g.constant(array(k, n, dtype=dtype), name="w"))

    return build


def batched(g: GraphBuilder) -> Value:
    """Both operands transposed, one of them shared by the batch; bias, activation and residual."""
    x, w = g.input("x", (2, 10, 9)), g.input("w", (11, 10))
    y = g.matmul(g.transpose(x, perm=(0, 2, 1)), g.transpose(w, perm=(1, 0)))
    return g.relu(y + g.constant(array(11), name="b")) + g.input("r", (2, 9, 11))


def convolution(g: GraphBuilder) -> Value:
    w, b = g.constant(array(9, 3, 3, 3), name="w"), g.constant(array(9), name="b")
    return g.relu(g.conv(g.input("x", (2, 3, 8, 7)), w, b, pads=1, strides=2, dilations=2))


def groups(g: GraphBuilder) -> Value:
    return g.conv(g.input("x", (2, 4, 5, 6)), g.input("w", (16, 2, 3, 3)), group=2)


def weights_as_input(g: GraphBuilder) -> Value:
    return g.conv(g.input("x", (1, 9, 5, 5)), g.input("w", (8, 9, 1, 1)))


@pytest.mark.parametrize(
    "build", [batched, convolution, groups, weights_as_input, product(9, 8, 37)]
)
def test_tiles(build: Callable[[GraphBuilder], Value]) -> None:
    graph = graph_of(build)
    (launch,) = check(GpuTiles(), graph, TILES[-1:])
    assert gpu_launches(graph)[1][0].kernel.template == "gpu_tiles"
    if build is batched:  # the residual is read where the result is stored
        assert len(launch.kernel.inplace) == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", TILES, ids=str)
def test_every_tile(config: Config) -> None:
    """Several blocks, whole and cut."""
    check(GpuTiles(), graph_of(product(config["m"] + 9, config["n"] + 8, 20)), [config])


def test_every_tile_adds_in_one_order() -> None:
    """The bits do not depend on the tile."""
    graph = graph_of(product(20, 18, 20))
    feeds = {"x": array(20, 20)}
    launches = check(GpuTiles(), graph, TILES[-2:])
    one, other = (simulated(graph, launch, feeds) for launch in launches)
    np.testing.assert_array_equal(one, other)


def test_float64() -> None:
    graph = graph_of(product(9, 10, 11, np.float64))
    space = GpuTiles().space(graph, graph.ops, graph.outputs, GPU)
    assert all(c["tm"] * c["tn"] <= 32 for c in space)
    check(GpuTiles(), graph, space[-1:])


def test_the_default_tile_fills_the_device() -> None:
    def tile(m: int, n: int) -> tuple[int, int]:
        graph = graph_of(product(m, n, 64))
        config = GpuTiles().default(graph, graph.ops, graph.outputs, GPU)
        return config["m"], config["n"]

    assert tile(4096, 4096) == (128, 128)
    assert tile(1024, 1024) == (128, 64)
    assert tile(768, 768) == (64, 64)
    assert tile(64, 64) == (32, 32)


@pytest.mark.parametrize(
    "build",
    [
        lambda g: g.conv(g.input("x", (1, 9, 9, 9)), g.input("w", (9, 1, 3, 3)), group=9),
        product(1, 64, 64),  # too few rows for a tile
        lambda g: g.matmul(g.input("x", (20,)), g.input("w", (20,))),
        lambda g: g.reduce_sum(g.input("x", (9, 9, 9)), axes=(2,)),
        lambda g: g.softmax(g.matmul(g.input("x", (9, 9)), g.input("w", (9, 9))), axis=1),
    ],
)
def test_what_is_no_sum_of_products_for_tiles(build: Callable[[GraphBuilder], Value]) -> None:
    graph = graph_of(build)
    for launch in gpu_launches(replace(graph, ops=tuple(o.with_group(None) for o in graph.ops)))[1]:
        ops = [graph.ops[k] for k in launch.ops]
        fits = contraction_of(graph, ops, [ops[-1].outputs[0]]) is not None
        assert fits is (launch.kernel.template == "gpu_tiles")
    assert any(x.kernel.template == "gpu_nest" for x in gpu_launches(graph)[1])
