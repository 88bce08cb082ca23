"""Kernels of a GPU template, simulated with every config and compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
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
            limit = {16: 2e-3, 32: 1e-5, 64: 1e-12}[graph.type("y").dtype.bits]
            np.testing.assert_allclose(got, expected, limit, limit * np.abs(expected).max(),
                                       err_msg=f"{config}, alias {alias}")  # fmt: skip
        launches.append(launch)
    return launches
