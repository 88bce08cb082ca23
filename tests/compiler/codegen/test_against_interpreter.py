"""Compiled kernels and the Kernel IR interpreter agree: same elements written, same values.

The interpreter knows nothing of LLVM, lanes' masks or code motion, so what both get wrong together
is the kernel itself, which other tests compare with the operators' references.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.api.build import choose, optimise
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import run_kernel
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import Kernel
from tilewright.compiler.kernels.nest import Nest
from tilewright.compiler.options import options

from ...fuzz.graphs import random_graph
from .running import run

Array = np.ndarray[Any, Any]
WORK = 60_000  # element operations that the interpreter does in reasonable time


def contents(kernel: Kernel, seed: int) -> list[Array | None]:
    """Random numbers around 1 for what the kernel reads; 0 for indices."""
    rng = np.random.default_rng(seed)
    out: list[Array | None] = []
    for b in kernel.params:
        if b.is_written:
            out.append(None)
        elif b.dtype.is_float:
            out.append(rng.uniform(0.5, 1.5, b.elements).astype(b.dtype.numpy))
        else:
            out.append(np.zeros(b.elements, b.dtype.numpy))
    return out


def check(kernel: Kernel, seed: int) -> None:
    arrays = contents(kernel, seed)
    with np.errstate(all="ignore"):
        wanted = run_kernel(kernel, list(arrays), seed)
    found = run(kernel, arrays)
    for b, want, got in zip(kernel.params, wanted, found, strict=True):
        if b.role == "scratch":
            continue
        if not b.dtype.is_float:
            written = got.view(np.uint8).reshape(b.elements, -1) != 0xA5
            np.testing.assert_array_equal(got[written.any(1)], want[written.any(1)], b.name)
            continue
        untouched = (got.view(np.uint8).reshape(b.elements, -1) == 0xA5).all(1)
        np.testing.assert_array_equal(untouched | np.isnan(got), np.isnan(want), b.name)
        there = ~np.isnan(want)
        scale = np.abs(want[there & np.isfinite(want)]).max(initial=1e-30)
        np.testing.assert_allclose(got[there], want[there], 1e-5, 1e-5 * scale, err_msg=b.name)


@pytest.mark.parametrize("seed", range(8))
def test_kernels_of_random_graphs(seed: int) -> None:
    """Whatever templates make of them, layouts and fusion included."""
    graph, cpu, chosen = random_graph(seed, 12), host(), options(threads=2)
    launches = choose(optimise(graph, cpu, chosen, 0.0), cpu, chosen).launches
    small = [x.kernel for x in launches if x.kernel.flops <= WORK]
    assert small, "every kernel is too large for the interpreter"
    for k, kernel in enumerate(small):
        check(kernel, seed * 100 + k)


UNARY = ("relu", "neg", "abs", "tanh", "exp", "sqrt", "sigmoid")
shapes = st.lists(st.integers(1, 21), min_size=1, max_size=4).filter(lambda s: np.prod(s) <= 3000)


@st.composite
def nests(draw: st.DrawFn) -> Graph:
    """A chain of movement, broadcasting, one reduction and functions, as one group. Nothing moves
    what has been reduced: fusion never asks for that."""
    g = GraphBuilder("nest")
    v = g.input("x", tuple(draw(shapes)))
    kinds = ["unary", "broadcast", "transpose", "slice", "pad", "reduce", "softmax"]
    for _ in range(draw(st.integers(1, 4))):
        shape = v.type.dims
        axis = draw(st.integers(0, len(shape) - 1))
        kind = draw(st.sampled_from(kinds))
        if kind in ("reduce", "softmax"):
            kinds = ["unary", "broadcast"]
        if kind == "unary":
            v = g.op(draw(st.sampled_from(UNARY)), v)
        elif kind == "reduce":
            how = draw(st.sampled_from(("reduce_sum", "reduce_max", "reduce_mean", "reduce_min")))
            v = v + g.op(how, v, axes=(axis,), keepdims=1)
        elif kind == "transpose":
            v = g.transpose(v, perm=tuple(draw(st.permutations(range(len(shape))))))
        elif kind == "slice":
            step = draw(st.sampled_from((1, 2, -1)))
            start, end = (shape[axis] - 1, -shape[axis] - 1) if step < 0 else (0, shape[axis])
            v = g.slice(v, starts=(start,), ends=(end,), axes=(axis,), steps=(step,))
        elif kind == "pad":
            pads = [0] * (2 * len(shape))
            pads[axis], pads[axis + len(shape)] = draw(st.integers(0, 3)), draw(st.integers(0, 3))
            v = g.pad(v, pads=tuple(pads))
        elif kind == "broadcast":
            row = tuple(d if k == axis else 1 for k, d in enumerate(shape))
            v = v * g.input(f"b{len(g.ops)}", row)
        else:  # softmax
            e = g.exp(v - g.reduce_max(v, axes=(axis,), keepdims=1))
            v = e / g.reduce_sum(e, axes=(axis,), keepdims=1)
    g.output(g.identity(v))
    return g.build()


@given(nests(), st.sampled_from([(64, 32), (32, 16), (16, 32)]), st.integers(0, 1 << 30))
def test_loop_nests_of_random_shapes(graph: Graph, vector: tuple[int, int], seed: int) -> None:
    launch = Nest().instantiate(graph, graph.ops, graph.outputs, Device(*vector, 2), {})
    check(launch.kernel, seed)
