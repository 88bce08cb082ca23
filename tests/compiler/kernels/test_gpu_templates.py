"""The templates for GPUs, config by config, simulated and compared with float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_tiles import TILES, GpuTiles, contraction_of
from tilewright.compiler.kernels.template import Config

from ..codegen.cuda.programs import gpu_launches, simulated
from .gpu_support import array, check, graph_of


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


@pytest.mark.parametrize("n", [28, 27])
def test_sums_in_parts(n: int) -> None:
    """Two kernels, the second of which makes the results; none where the bits must not depend on
    the config."""
    build = product(9, n, 96)
    graph = graph_of(lambda g: g.relu(build(g)) + g.input("r", (9, n)))
    (launch,) = check(GpuTiles(), graph, [{**TILES[-1], "parts": 2}])
    assert len(launch.kernel.phases) == 2 and launch.kernel.params[-1].role == "scratch"
    given = graph, graph.ops, graph.outputs, GPU
    assert {c["parts"] for c in GpuTiles().space(*given)} == {1, 2}
    assert {c["parts"] for c in GpuTiles(one_order=True).space(*given)} == {1}


def test_long_sums_of_few_elements_fall_into_parts() -> None:
    def parts(m: int, n: int, k: int) -> int:
        graph = graph_of(product(m, n, k))
        return int(GpuTiles().default(graph, graph.ops, graph.outputs, GPU)["parts"])

    assert parts(512, 49, 4608) == 12
    assert parts(4096, 4096, 4096) == parts(512, 49, 64) == 1


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
    assert tile(1024, 1024) == (64, 64)
    assert tile(64, 25088) == (64, 128), "no rows are left empty"
    assert tile(768, 768) == (32, 32)


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
