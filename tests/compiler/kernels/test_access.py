"""Which kernels go element by element, as is said of them."""

from __future__ import annotations

import logging

import pytest

from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.access import element_by_element
from tilewright.compiler.kernels.ir import Buffer, Kernel, Phase, Store, loop
from tilewright.compiler.kernels.select import select
from tilewright.compiler.passes.fuse import Fuse
from tilewright.ops.expr import Expr, cast, var
from tilewright.ops.types import f32, i32, i64

from .support import AVX2, graph_of

N = 48
I = var("i", N)  # noqa: E741


def notes(read: Expr, write: Expr = I) -> tuple[str, ...]:
    x, y = Buffer("x", f32, 4096, "in"), Buffer("y", f32, 4096, "out")
    body = loop(I, (Store(y, write, x[read]),), "vector", lanes=8)
    phase = Phase(1, var("item", 1), (body,))
    return element_by_element(Kernel("test", 1, (), (x, y), (phase,)))


def test_lanes_far_apart_are_noted() -> None:
    assert notes(I * 7) == ("x is gathered",)
    assert notes(I, I * 7) == ("y is scattered",)
    assert notes(I % 5 * 100 + I // 5) == ("x is gathered",)


def test_windows_and_broadcasts_are_not() -> None:
    assert notes(I) == notes(I * 0) == notes(I * 2 + 5) == notes(47 - I) == notes(I // 2) == ()
    assert notes((I + 3) // 8 * 64 + (I + 3) % 8) == ()


def test_indices_that_are_data_are_not() -> None:
    ix = Buffer("ix", i32, N, "in")
    assert notes(cast(ix[I], i64)) == ()


def test_a_kernel_that_goes_element_by_element_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def every_ninth(g: GraphBuilder) -> None:
        x = g.input("x", (700,))
        g.output(g.slice(x, starts=(0,), ends=(700,), axes=(0,), steps=(9,)))

    def transposed(g: GraphBuilder) -> None:
        g.output(g.transpose(g.input("x", (64, 64)), perm=(1, 0)))

    def said(graph: Graph) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, "tilewright"):
            select(Fuse().run(graph), AVX2)
        return caplog.text

    assert "slice: x0 is gathered element by element" in said(graph_of(every_ninth))
    assert said(graph_of(transposed)) == ""
