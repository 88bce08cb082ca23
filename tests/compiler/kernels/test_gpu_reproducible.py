"""Under "reproducible", GPU kernels give the same bits whatever the config, and wherever in a batch
a sample stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.tuning.problem import problem_of

from ..codegen.cuda.programs import gpu_launches, run_graph, simulated
from .gpu_support import array, graph_of

Build = Callable[[GraphBuilder], Value]


def constant(g: GraphBuilder, *dims: int) -> Value:
    """The same values in every graph."""
    made = np.random.default_rng(sum(dims)).standard_normal(dims).astype(np.float32)
    return g.constant(made, name=f"c{'x'.join(map(str, dims))}")


def softmax(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (3, 72)), axis=1)


def softmax_of_columns(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (2, 40, 6)), axis=1)


def normalised(g: GraphBuilder) -> Value:
    x = g.input("x", (3, 68))
    return g.layer_normalization(x, constant(g, 68), constant(g, 68), axis=-1)


def sums(g: GraphBuilder) -> Value:
    return g.reduce_sum(g.input("x", (4, 136)), axes=(1,))


def sums_of_columns(g: GraphBuilder) -> Value:
    return g.reduce_sum(g.input("x", (140, 8)), axes=(0,))


def pooled(g: GraphBuilder) -> Value:
    return g.average_pool(g.input("x", (1, 2, 8, 8)), kernel_shape=3, pads=1)


def depthwise(g: GraphBuilder) -> Value:
    w = constant(g, 3, 1, 3, 3)
    return g.relu(g.conv(g.input("x", (1, 3, 7, 8)), w, group=3, pads=1))


def pointwise(g: GraphBuilder) -> Value:
    return g.tanh(g.input("x", (8, 8)) * g.input("s", (8, 1)) + g.input("z", (8, 8)))


def halves(g: GraphBuilder) -> Value:
    return g.softmax(g.input("x", (2, 80), "f16"), axis=1)


def product(g: GraphBuilder) -> Value:
    return g.relu(g.matmul(g.input("x", (9, 70)), constant(g, 70, 11)) + constant(g, 11))


def thin(g: GraphBuilder) -> Value:
    return g.matmul(g.input("x", (1, 70)), constant(g, 70, 9))


def convolution(g: GraphBuilder) -> Value:
    return g.conv(g.input("x", (1, 3, 6, 6)), constant(g, 9, 3, 3, 3), pads=1)


def half_product(g: GraphBuilder) -> Value:
    return g.matmul(g.input("x", (16, 40), "f16"), g.input("w", (40, 24), "f16"))


def gru(g: GraphBuilder) -> Value:
    w, r = (constant(g, 1, 39, n) for n in (5, 13))
    y: Value = g.gru(g.input("x", (3, 1, 5)), w, r, hidden_size=13)[0]
    return y


def running(g: GraphBuilder) -> Value:
    return g.cum_sum(g.input("x", (3, 40)), axis=1)


PROBLEMS: dict[Build, str] = {
    softmax: "gpu_nest", softmax_of_columns: "gpu_nest", normalised: "gpu_nest", sums: "gpu_nest",
    sums_of_columns: "gpu_nest", pooled: "gpu_nest", depthwise: "gpu_nest",
    pointwise: "gpu_nest", halves: "gpu_nest", product: "gpu_tiles", thin: "gpu_tiles",
    convolution: "gpu_tiles", half_product: "gpu_mma", gru: "gpu_recurrent", running: "scan",
}  # fmt: skip


def bits_of(build: Build, most: int | None) -> set[bytes]:
    """The results of the configs that a tuner chooses from, of those with the smallest tiles if
    there are more than `most`."""
    name = PROBLEMS[build]
    graph = graph_of(build)
    problems = [problem_of(graph, group.ops, group.outputs, GPU, "reproducible")
                for group in coded_groups(graph)]  # fmt: skip
    (problem,) = (p for p in problems if p.default().template == name)
    space = sorted(problem.space(), key=lambda c: c.config.get("m", 0) * c.config.get("n", 0))
    assert {c.template for c in space} == {name}
    inner = problem.graph
    feeds = {n: array(*inner.type(n).dims, dtype=inner.type(n).dtype.numpy) for n in inner.inputs}
    return {simulated(inner, problem.instantiate(c), feeds).tobytes() for c in space[:most]}


@pytest.mark.parametrize("build", PROBLEMS, ids=lambda b: b.__name__)
def test_every_config_gives_the_same_bits(build: Build) -> None:
    assert len(bits_of(build, 2 if PROBLEMS[build] in ("gpu_tiles", "gpu_mma") else None)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [b for b, t in PROBLEMS.items() if t in ("gpu_tiles", "gpu_mma")],
    ids=lambda b: b.__name__,
)  # fmt: skip
def test_every_tile_gives_the_same_bits(build: Build) -> None:
    assert len(bits_of(build, None)) == 1


def test_other_orders_are_other_configs() -> None:
    """What the test above would find if spaces were not restricted."""
    graph = graph_of(softmax)
    feeds = {"x": array(3, 72)}
    given = graph, graph.ops, graph.outputs, GPU
    nest = next(t for t in gpu_templates("standard") if t.name == "gpu_nest")
    found = {simulated(graph, nest.instantiate(*given, c), feeds).tobytes()
             for c in nest.space(*given)}  # fmt: skip
    assert len(found) > 1


# --------------------------------------------------------------------------- batches


def batch_of(build: Callable[[GraphBuilder, Value, int], Value], *dims: int) -> Any:
    """A graph over a batch of samples of some dims."""

    def made(batch: int) -> Any:
        g = tw.Graph("g")
        g.output(build(g, g.input("x", (batch, *dims)), batch), "y")
        return g.build()

    return made, dims


BATCHES = {
    "rows": batch_of(lambda g, x, b: g.softmax(x, axis=-1), 70),
    "columns": batch_of(lambda g, x, b: g.softmax(x, axis=1), 40, 3),
    "normalised": batch_of(
        lambda g, x, b: g.layer_normalization(x, constant(g, 50), constant(g, 50), axis=-1), 50
    ),
    "pool": batch_of(lambda g, x, b: g.global_average_pool(x), 3, 7, 7),
    "window": batch_of(lambda g, x, b: g.average_pool(x, kernel_shape=3), 2, 5, 6),
    "thin product": batch_of(lambda g, x, b: g.matmul(x, constant(g, 40, 10)), 40),
    "thinnest product": batch_of(lambda g, x, b: g.matmul(x, constant(g, 40, 1)), 40),
    "batched product": batch_of(lambda g, x, b: g.matmul(x, constant(g, 40, 9)), 3, 40),
    "convolution of points": batch_of(lambda g, x, b: g.conv(x, constant(g, 9, 8, 1, 1)), 8, 1, 1),
    "convolution": batch_of(lambda g, x, b: g.conv(x, constant(g, 4, 3, 3, 3), pads=1), 3, 4, 4),
    "depthwise": batch_of(
        lambda g, x, b: g.conv(x, constant(g, 3, 1, 3, 3), group=3, pads=1), 3, 4, 4
    ),
    "long": batch_of(lambda g, x, b: g.reduce_sum(x, axes=(1,)), 600),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_sample_has_the_same_bits_in_every_batch(name: str) -> None:
    """Nine of them, so that no dimension is below what templates ask for, and one alone."""
    made, dims = BATCHES[name]
    x = array(9, *dims)
    together = run_graph(made(9), {"x": x}, numerics="reproducible")["y"]
    for k in (8,):
        (alone,) = run_graph(made(1), {"x": x[k : k + 1]}, numerics="reproducible")["y"]
        assert together[k].tobytes() == alone.tobytes(), f"sample {k}"


def test_who_computes_a_row_does_not_depend_on_how_many_there_are() -> None:
    """As it does under other numerics."""

    def order(rows: int, numerics: Any) -> object:
        graph = graph_of(lambda g: g.reduce_sum(g.input("x", (rows, 60, 50)), axes=(1,)))
        (launch,) = gpu_launches(graph, numerics)[1]
        config = dict(launch.kernel.config)
        config.pop("each")
        return config

    assert order(1, "reproducible") == order(1000, "reproducible")
    assert order(1, "standard") != order(1000, "standard")
