"""The general template for GPUs: who computes what, how wide accesses are, windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.kernels import gpu_partial
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_nest import GpuNest
from tilewright.compiler.kernels.template import Config

from ..codegen.cuda.programs import gpu_launches
from .gpu_support import array, check, graph_of


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


def even(g: GraphBuilder) -> Value:
    """Rows of a multiple of four, with a factor for every seven elements."""
    return g.relu(g.input("x", (8, 7)) * g.input("f", (8, 1)) + g.input("x2", (8, 7)))


def halves(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (3, 80), "f16"), axis=1)


def slid(step: int, pads: int) -> Callable[[GraphBuilder], Value]:
    """A depthwise convolution of which neighbours share what they read."""

    def build(g: GraphBuilder) -> Value:
        x, w = g.input("x", (1, 3, 7, 8 * step)), g.constant(array(3, 1, 3, 3), name="w")
        return g.relu(g.conv(x, w, group=3, pads=pads, strides=step))

    return build


def pairs(g: GraphBuilder) -> Value:
    """Largest elements and their places, in windows of two by two."""
    return g.max_pool(g.input("x", (1, 2, 8, 8)), kernel_shape=2, strides=2)


def few_columns(g: GraphBuilder) -> Value:
    """A block makes all four of a row."""
    return g.matmul(g.input("x", (5, 68)), g.input("w", (68, 4)))


@pytest.mark.parametrize(
    "build",
    [softmax, columns, pooling, everything, pointwise, even, halves, slid(1, 1), slid(2, 1),
     slid(1, 0), pairs, few_columns],
)  # fmt: skip
def test_the_nest(build: Callable[[GraphBuilder], Value]) -> None:
    graph = graph_of(build)
    space = GpuNest().space(graph, graph.ops, graph.outputs, GPU)
    assert GpuNest().default(graph, graph.ops, graph.outputs, GPU) in space
    launches = check(GpuNest(), graph, space)
    if build in (softmax, pointwise):
        assert all(launch.kernel.inplace for launch in launches)


@pytest.mark.parametrize(
    "build",
    [
        lambda g: g.softmax(g.input("x", (3, 37, 12)), axis=1),
        lambda g: g.reduce_sum(g.input("x", (37, 10)), axes=(0,)),
        lambda g: g.softmax(g.input("x", (35, 16), "f16"), axis=0),
        lambda g: g.reduce_max(g.relu(g.input("x", (2, 3, 33, 8))), axes=(0, 2)),
        lambda g: g.reduce_mean(g.input("x", (70, 9), "f64"), axes=(0,)),
    ],
    ids=["softmax", "sum", "halves", "two axes", "doubles"],
)  # fmt: skip
def test_columns(build: Callable[[GraphBuilder], Value]) -> None:
    """Numbers of columns and of elements that fill neither blocks nor threads."""
    graph = graph_of(build)
    space = GpuNest().space(graph, graph.ops, graph.outputs, GPU)
    found = [c for c in space if c["per"] == "columns"]
    each = max(c["each"] for c in found)
    some = [{"per": "columns", "down": d, "across": a, "each": each} for d, a in ((8, 8), (2, 16))]
    check(GpuNest(), graph, [*some, {**some[0], "each": 1}])
    assert GpuNest().default(graph, graph.ops, graph.outputs, GPU) in found
    assert (each == 1) is (graph.type("x").dims[-1] == 9), "rows begin at multiples of 16 bytes"


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("build", "phases"),
    [
        (lambda g, n: g.exp(g.reduce_sum(g.sin(g.input("x", (n, 1003))), axes=(1,)) / 99.0), 2),
        (lambda g, n: g.reduce_max(g.input("x", (503, 4 * n)), axes=(0,)) * g.input("z", (1,)), 2),
        (lambda g, n: g.softmax(g.input("x", (n, 421)), axis=1), 4),
        (lambda g, n: g.softmax(g.input("x", (417, 2 * n)), axis=0), 4),
    ],
    ids=["sum", "columns", "softmax", "softmax of columns"],
)  # fmt: skip
def test_long_reductions_fall_into_parts(
    build: Callable[[GraphBuilder, int], Value], phases: int, rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of rows and of columns; what is left over is added by the kernel that needs the result."""
    monkeypatch.setattr(gpu_partial, "PART", 50)
    graph = graph_of(lambda g: build(g, rows))
    config = GpuNest().default(graph, graph.ops, graph.outputs, GPU)
    assert config["parts"] >= 5
    (launch,) = check(GpuNest(), graph, [config])
    assert len(launch.kernel.phases) == phases
    assert max(launch.kernel.items) > 1


def test_reductions_that_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many rows, short ones, and where one of them is over something else."""
    monkeypatch.setattr(gpu_partial, "PART", 50)
    for build in (
        lambda g: g.reduce_sum(g.input("x", (600, 500)), axes=(1,)),
        lambda g: g.reduce_sum(g.input("x", (3, 99)), axes=(1,)),
        lambda g: g.softmax(g.softmax(g.input("x", (300, 301)), axis=0), axis=1),
    ):
        assert "parts" not in preferred(build)


@pytest.mark.parametrize(
    "build",
    [
        lambda g: g.transpose(g.input("x", (2, 33, 47), "f16"), perm=(0, 2, 1)),
        lambda g: g.transpose(g.input("x", (64, 64)), perm=(1, 0)),
        lambda g: g.transpose(g.input("x", (3, 32, 32)), perm=(0, 2, 1)) + 1.0,
        lambda g: (g.transpose(g.input("x", (2, 35, 42)), perm=(0, 2, 1)) + g.input("b", (35,)))
        * g.input("s", (42, 1)) + g.input("r", (2, 42, 35)),
    ],
    ids=["halves", "squares", "square", "others"],
)  # fmt: skip
def test_what_is_transposed_goes_through_shared_memory(
    build: Callable[[GraphBuilder], Value],
) -> None:
    """Also where a block reads all that it overwrites, and where it does not."""
    graph = graph_of(build)
    config = GpuNest().default(graph, graph.ops, graph.outputs, GPU)
    assert config == {"per": "square", "each": 1}
    (launch,) = check(GpuNest(), graph, [config])
    source = kernel_source(launch.kernel)
    assert source.entries[0].shared_bytes >= 33 * 32 * 2


def preferred(build: Callable[[GraphBuilder], Value]) -> Config:
    graph = graph_of(build)
    return GpuNest().default(graph, graph.ops, graph.outputs, GPU)


def test_who_computes_a_row() -> None:
    """A block where a row is long, a thread where it is short or there are threads enough."""

    def rows(m: int, n: int) -> Config:
        return preferred(lambda g: g.softmax(g.input("x", (m, n)), axis=1))

    def block(threads: int, wide: int) -> Config:
        return {"per": "block", "threads": threads, "each": 1, "wide": wide}

    assert rows(100_000, 10) == {"per": "thread", "each": 1}
    assert rows(16, 1001) == block(256, 1)
    assert rows(16, 4096) == block(256, 4)
    assert rows(16, 102) == block(32, 2)
    assert preferred(pooling) == {"per": "thread", "each": 1}
    long = preferred(lambda g: g.reduce_sum(g.input("x", (8, 8, 4096)), axes=(2,)))
    assert long == block(256, 4)
    # sums down the columns: threads side by side read side by side, several of them a column
    assert preferred(lambda g: g.reduce_sum(g.input("x", (512, 32768)), axes=(0,))) == {
        "per": "columns", "down": 8, "across": 32, "each": 4
    }  # fmt: skip
    assert preferred(lambda g: g.reduce_sum(g.input("x", (512, 1024)), axes=(0,))) == {
        "per": "columns", "down": 64, "across": 2, "each": 4
    }  # fmt: skip
    assert preferred(lambda g: g.reduce_sum(g.input("x", (512, 1 << 20)), axes=(0,))) == {
        "per": "thread", "each": 4
    }  # fmt: skip
    # a softmax of a few very long rows in parts, of many in blocks
    assert rows(8, 50257) == {**block(512, 1), "parts": 12}
    assert rows(800, 50257) == block(1024, 1)
    assert preferred(lambda g: g.softmax(g.input("x", (8, 21, 64, 64)), axis=1)) == {
        "per": "columns", "down": 4, "across": 64, "each": 4
    }  # fmt: skip


def test_weights_of_a_product_with_a_vector_lie_along_the_sum() -> None:
    def product(m: int, n: int, k: int) -> Callable[[GraphBuilder], Value]:
        return lambda g: g.matmul(g.input("x", (m, k)), g.constant(array(k, n), name="w"))

    graph = graph_of(product(1, 50, 70))
    (launch,) = check(GpuNest(), graph, [{"per": "block", "threads": 32, "each": 1, "wide": 2}])
    found = preferred(product(1, 4096, 4096))
    assert found == {"per": "block", "threads": 256, "each": 1, "wide": 4}
    source = kernel_source(launch.kernel).text
    assert "= x1[item * 70 + k1 * 2 + v]" in source


def test_neighbours_are_computed_together() -> None:
    """As many as fill 16 bytes, if there are threads enough; windows are read once."""

    def each(build: Callable[[GraphBuilder], Value]) -> int:
        return int(preferred(build)["each"])

    assert each(lambda g: g.relu(g.input("x", (64, 1000)))) == 4
    assert each(lambda g: g.relu(g.input("x", (64, 1000), "f16"))) == 8
    assert each(lambda g: g.relu(g.input("x", (64, 999)) + g.input("z", (64, 1)))) == 4
    assert each(lambda g: g.relu(g.input("x", (63, 999)))) == 1
    assert each(lambda g: g.relu(g.input("x", (64, 100)))) == 1, "threads are few"
    assert each(lambda g: g.transpose(g.input("x", (64, 8, 64)), perm=(1, 0, 2))) == 4

    def pooled(width: int, step: int) -> int:
        return each(lambda g: g.max_pool(g.input("x", (1, 64, 64, width)), kernel_shape=3,
                                         strides=step, pads=1))  # fmt: skip

    assert pooled(64, 1) == 4
    assert pooled(63, 1) == 1, "elements of one thread may lie in two rows"
    assert pooled(64, 2) == 1, "threads side by side would read far apart"


def test_large_sums_take_two_phases() -> None:
    graph = graph_of(lambda g: g.reduce_sum(g.input("x", (1 << 18,)), axes=(0,), keepdims=0))
    (launch,) = gpu_launches(graph)[1]
    assert len(launch.kernel.phases) == 2 and launch.kernel.params[-1].role == "scratch"
