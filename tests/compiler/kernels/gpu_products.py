"""Products for tensor cores, and their kernels simulated and compared with float64."""

from __future__ import annotations

from typing import Any

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_mma import GpuMma
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config
from tilewright.ops.types import Layout

from ..codegen.cuda.programs import gpu_launches, simulated
from .support import remembered, with_layouts

rng = np.random.default_rng(5)
SMALL: Config = {"m": 32, "n": 64, "k": 32, "wm": 16, "wn": 32, "stages": 3, "parts": 1}
WORDS: Config = {**SMALL, "k": 16}  # of 32 bits
TINY: Config = {**SMALL, "n": 32}  # of two warps
BYTES: Config = {**SMALL, "k": 64}


def product(
    equation: str, x: tuple[int, ...], w: tuple[int, ...], dtype: str = "f16", *,
    constant: bool = False,
) -> Graph:  # fmt: skip
    """relu(einsum) of two matrices."""
    g = tw.Graph("product")
    right: Any = g.input("w", w, dtype)
    if constant:
        kind = np.float16 if dtype == "f16" else np.float32
        right = g.constant(rng.standard_normal(w).astype(kind), name="w")
    g.output(g.relu(g.einsum(g.input("x", x, dtype), right, equation=equation)), "y")
    return gpu_launches(g.build())[0]


def vector(k: int, n: int, constant: bool = False) -> Graph:
    """A vector times a matrix."""
    g = tw.Graph("vector")
    w = np.ones((k, n), np.float16)
    right = g.constant(w) if constant else g.input("w", (k, n), "f16")
    g.output(g.matmul(g.input("x", (1, k), "f16"), right), "y")
    return gpu_launches(g.build())[0]


def integers(left: str, right: str, m: int, n: int, k: int) -> Graph:
    g = tw.Graph("integers")
    g.output(g.matmul_integer(g.input("x", (m, k), left), g.input("w", (k, n), right)), "y")
    return gpu_launches(g.build())[0]


def dense(m: int, n: int, k: int, dtype: str = "f16") -> Graph:
    """relu(x w + bias) + residual."""
    g = tw.Graph("dense")
    kind = np.float16 if dtype == "f16" else np.float32
    w = g.constant(rng.standard_normal((k, n)).astype(kind), name="w")
    b = g.constant(rng.standard_normal(n).astype(kind), name="b")
    y = g.relu(g.matmul(g.input("x", (m, k), dtype), w) + b) + g.input("r", (m, n), dtype)
    g.output(y, "y")
    return gpu_launches(g.build())[0]


def fed(graph: Graph) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for n in graph.inputs:
        kind = graph.type(n)
        if kind.dtype.is_integer:
            info = np.iinfo(kind.dtype.numpy)
            feeds[n] = rng.integers(info.min, info.max, kind.dims, kind.dtype.numpy, endpoint=True)
        else:
            feeds[n] = rng.standard_normal(kind.dims).astype(kind.dtype.numpy)
    return feeds


def made(graph: Graph, config: Config, tf32: bool = False) -> Launch:
    template = GpuMma(tf32)
    given = graph, graph.ops, graph.outputs
    assert template.matches(*given)
    launch = template.instantiate(*given, GPU, config)
    return remembered(launch, template, graph, graph.outputs, GPU)


def check(graph: Graph, config: Config = SMALL, tf32: bool = False) -> None:
    feeds = fed(graph)
    expected = evaluate(graph, feeds)["y"]
    got = simulated(graph, made(graph, config, tf32), feeds)
    if got.dtype.kind == "i":
        np.testing.assert_array_equal(got, expected)
        return
    limit = 1e-3 if tf32 else 2.0**-10  # of the largest: a rounding to half, sums in float32
    np.testing.assert_allclose(got, expected, 0, limit * np.abs(expected).max())


def network(
    x: tuple[int, ...], w: tuple[int, ...], dtype: str = "f16", **attributes: Any
) -> Graph:  # fmt: skip
    """relu(conv(x) + bias), and a convolution of places after it."""
    g = tw.Graph("network")
    kind = np.float16 if dtype == "f16" else np.float32

    def constant(*dims: int) -> Any:
        return g.constant(rng.standard_normal(dims).astype(kind))

    y = g.relu(g.conv(g.input("x", x, dtype), constant(*w), constant(w[0]), **attributes))
    g.output(g.conv(y, constant(16, w[0], 1, 1) * np.asarray(0.1, kind)), "y")
    return g.build()


def window(batch: int, channels: int, results: int, size: int) -> Graph:
    """A 3x3 convolution of an image with channels last, which stay so."""
    g = tw.Graph("window")
    w = g.constant(rng.standard_normal((results, channels, 3, 3)).astype(np.float16))
    g.output(g.conv(g.input("x", (batch, channels, size, size), "f16"), w, pads=1), "y")
    graph = g.build()
    ops = graph.ops[:1]
    graph = Graph(graph.name, graph.inputs, ops[0].outputs, ops, graph.blobs)
    (out,) = graph.outputs
    return with_layouts(graph, {"x": Layout(1, channels), out: Layout(1, results)})
