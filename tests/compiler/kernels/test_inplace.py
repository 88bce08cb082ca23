"""What kernels allow to be overwritten; every kernel is run that way, items in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels import nest
from tilewright.compiler.kernels.inplace import overwritable
from tilewright.compiler.kernels.ir import Buffer, If, Launch, Phase, Stmt, Store, loop
from tilewright.compiler.kernels.winograd import Winograd
from tilewright.ops.expr import compare, var
from tilewright.ops.types import Layout, f32

from .support import AVX512, DEVICES, check_launch, graph_of, with_layouts
from .test_nest import softmax
from .test_winograd import tolerance, winograd_graph

NEST = nest.Nest()
BLOCKED = Layout(1, 8)


def allowed(launch: Launch) -> set[tuple[str, str]]:
    return {(str(launch.args[y]), str(launch.args[x])) for y, x in launch.kernel.inplace}


def checked(graph: Graph) -> set[tuple[str, str]]:
    """What the general template allows, after it ran that way."""
    launch = NEST.instantiate(graph, graph.ops, graph.outputs, DEVICES["avx2"], {})
    rng = np.random.default_rng(1)
    feeds = {n: rng.standard_normal(graph.type(n).dims).astype(np.float32) for n in graph.inputs}
    check_launch(graph, launch, feeds, 1e-5)
    return allowed(launch)


def layer_norm(g: GraphBuilder, x: Value) -> Value:
    centred = x - g.reduce_mean(x, axes=(-1,), keepdims=1)
    return centred / g.sqrt(g.reduce_mean(centred * centred, axes=(-1,), keepdims=1) + 0.1)


ROWS: dict[str, Callable[[GraphBuilder, Value], Value]] = {
    "softmax": lambda g, x: softmax(g, x, -1),
    "softmax over columns": lambda g, x: softmax(g, x, 0),
    "layer norm": layer_norm,
    "minus the mean": lambda g, x: x - g.reduce_mean(x, axes=(1,), keepdims=1),
    "two rows' sum": lambda g, x: x + g.reduce_sum(g.input("z", (7, 40)), axes=(1,), keepdims=1),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shared_out", [False, True])
def test_a_row_is_overwritten_when_it_has_been_read(
    name: str, shared_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared_out:
        monkeypatch.setattr(nest, "SERIAL_WORK", 20)
        monkeypatch.setattr(nest, "LEAST_WORK", 10)
    graph = graph_of(lambda g: g.output(ROWS[name](g, g.input("x", (7, 40)))))
    found = checked(graph)
    assert (graph.outputs[0], "x") in found
    assert ("z" in graph.inputs) == ((graph.outputs[0], "z") in found)


@pytest.mark.parametrize("channels", [16, 21])
def test_blocks_and_a_tail_are_overwritten_in_two_phases(channels: int) -> None:
    """The last channels, which do not fill a block, are a phase of their own."""
    graph = graph_of(lambda g: g.output(g.relu(g.input("x", (2, channels, 3, 5)))))
    blocked = with_layouts(graph, {"x": BLOCKED, "relu": BLOCKED})
    assert checked(blocked) == {("relu", "x")}


def test_two_results_of_one_operand() -> None:
    """Each may take the operand's place if the other one does not read it afterwards."""

    def build(g: GraphBuilder) -> None:
        x = g.input("x", (4, 10))
        g.output(x + 1.0)
        g.output(g.exp(x))

    found = checked(graph_of(build))
    assert found, "the one that is computed last, at least"


@pytest.mark.parametrize(
    "make",
    [
        lambda g: g.max_pool(g.input("y", (1, 8, 6, 6)), kernel_shape=(3, 3), pads=1),
        lambda g: g.input("x", (7, 7)) + g.transpose(g.input("y", (7, 7)), perm=(1, 0)),
        lambda g: g.slice(g.input("y", (9,)), starts=(8,), ends=(-10,), axes=(0,), steps=(-1,)),
        lambda g: g.input("x", (4, 6)) + g.reduce_sum(g.input("y", (4, 6)), axes=None, keepdims=1),
        lambda g: softmax(g, g.input("x", (5, 5)) + g.reduce_max(
            g.input("y", (5, 5)), axes=(0,), keepdims=1), 1),
    ],
    ids=["window", "transposed", "flipped", "everything", "other rows"],
)  # fmt: skip
def test_what_others_still_read_is_not_overwritten(make: Callable[[GraphBuilder], Any]) -> None:
    assert "y" not in {x for _, x in checked(graph_of(lambda g: g.output(make(g))))}


@pytest.mark.parametrize("residual", [False, True])
def test_winograd_overwrites_its_input_once_all_of_it_is_transformed(residual: bool) -> None:
    """With one phase for all, tiles still read what neighbours would have written."""
    case: dict[str, Any] = dict(
        x_shape=(1, 16, 8, 8), w_shape=(16, 16, 3, 3), pads=1, residual=residual
    )
    graph, feeds = winograd_graph(4, **case)
    args = graph, graph.ops, graph.outputs, AVX512
    for phases in (1, 3):
        config = next(c for c in Winograd().space(*args) if c["phases"] == phases)
        launch = Winograd().instantiate(*args, config)
        check_launch(graph, launch, feeds, tolerance(4, case))
        assert (graph.inputs[0] in {x for _, x in allowed(launch)}) == (phases == 3)


# --------------------------------------------------------------------------- kernels by hand

X, Y = Buffer("x", f32, 8, "in"), Buffer("y", f32, 8, "out")
ROW, J, ITEM = var("i", 2), var("j", 4), var("item", 1)


def kernel(*phases: tuple[Stmt, ...]) -> tuple[tuple[int, int], ...]:
    return overwritable((X, Y), [Phase(1, ITEM, body) for body in phases])


def row(*body: Stmt) -> tuple[Stmt, ...]:
    return (loop(ROW, body),)


def test_loads_come_before_stores() -> None:
    copy = loop(J, (Store(Y, ROW * 4 + J, X[ROW * 4 + J]),))
    turned = loop(J, (Store(Y, ROW * 4 + J, X[ROW * 4 + (3 - J)]),))
    assert kernel(row(copy)) == ((1, 0),)
    assert kernel(row(turned)) == ()


def test_an_output_that_is_read_back_is_left_alone() -> None:
    """Its elements are stored more than once."""
    add = loop(J, (Store(Y, ROW * 4 + J, Y[ROW * 4 + J] + X[ROW * 4 + J]),))
    assert kernel(row(add)) == ()


def test_phases_are_in_order() -> None:
    copy = loop(J, (Store(Y, ROW * 4 + J, X[ROW * 4 + J]),))
    s = Buffer("s", f32, 8, "scratch")
    keep = loop(J, (Store(s, ROW * 4 + J, X[ROW * 4 + (3 - J)]),))
    use = loop(J, (Store(Y, ROW * 4 + J, s[ROW * 4 + J]),))
    assert kernel(row(keep), row(use)) == ((1, 0),)
    assert kernel(row(copy), row(keep)) == ()
    first = (loop(J, (Store(Y, J, X[J]),)),)
    second = (loop(J, (Store(Y, J + 4, X[J + 4]),)),)
    again = (loop(J, (Store(Y, J + 4, X[J + 3]),)),)
    assert kernel(first, second) == ((1, 0),)
    assert kernel(first, again) == ()


def test_a_row_must_be_stored_whole_by_the_round_that_read_it() -> None:
    total = Buffer("s", f32, 2, "scratch")
    read = loop(J, (Store(total, ROW, X[ROW * 4 + J]),))
    whole = loop(J, (Store(Y, ROW * 4 + J, total[ROW]),))
    half = loop(J, (Store(Y, ROW * 4 + J, total[ROW]),), hi=2)
    other = loop(J, (Store(Y, (1 - ROW) * 4 + J, total[ROW]),))
    assert kernel(row(read, whole)) == ((1, 0),)
    assert kernel(row(whole, read)) == ()
    assert kernel(row(read, half)) == ()
    assert kernel(row(read, other)) == ()


def test_a_round_that_does_not_store_may_come_too_late() -> None:
    """Every row is read in the round of the other one."""
    total = Buffer("s", f32, 8, "scratch")
    keep = loop(J, (Store(total, ROW * 4 + J, X[ROW * 4 + J]),))
    copy = loop(J, (Store(Y, ROW * 4 + J, total[ROW * 4 + J]),))
    first = compare("lt", ROW, 1)
    assert kernel(row(keep, If(first, (copy,)))) == ()
    assert kernel(row(If(first, (keep, copy)))) == ((1, 0),)
    assert kernel(row(If(first, (keep,), (copy,)))) == ()
    assert kernel(row(If(first, (copy,), (keep,)))) == ()
