"""The time loops of RNN, GRU and LSTM, compiled, against their references in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.kernels.ir import Prepared
from tilewright.compiler.kernels.recurrent import Product, Recurrent, ScanKernel, pack
from tilewright.ops import library as _library  # noqa: F401  registers every operator
from tilewright.ops.cells import CELLS, DIRECTIONS, Activation, Cell
from tilewright.ops.operator import REGISTRY
from tilewright.ops.samples import cases
from tilewright.ops.types import f32, f64

from .native import Native, check, graph_of, host_device
from .support import AVX2, check_launch

BY_NAME = {c.name: c for c in CELLS}
TEMPLATE = Recurrent()
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)


def layer(
    cell: Cell, steps: int, batch: int, h: int, *, direction: str = "forward",
    kind: Any = np.float32, bias: bool = True, states: bool = False, lens: Any = None,
    constant: tuple[int, ...] = (1, 2), functions: tuple[Activation, ...] = (), **attrs: Any,
) -> Any:  # fmt: skip
    """A graph of one scan with random tensors, and its feeds."""
    rng = np.random.default_rng(h * batch + steps)
    d, n = len(DIRECTIONS[direction]), cell.gates

    def f(*shape: int, scale: float = 1.0) -> Any:
        return (rng.standard_normal(shape) * scale).astype(kind)

    chosen = (functions or tuple(map(Activation, cell.activations))) * d
    inputs = [f(d, steps, batch, n * h), f(d, n * h, h, scale=h**-0.5),
              f(d, n * h) if bias else None, lens]  # fmt: skip
    if states:
        inputs += [f(d, batch, h) for _ in range(cell.states)]
        inputs += [f(d, 3 * h)] * (cell.states > 1)
    return graph_of(
        f"{cell.name}_scan", inputs, constant, direction=direction,
        activations=tuple(a.name for a in chosen), alphas=tuple(a.alpha for a in chosen),
        betas=tuple(a.beta for a in chosen), **attrs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@every_cell
def test_samples(cell: Cell, dtype: Any) -> None:
    for case in cases(REGISTRY[f"{cell.name}_scan"], dtype):
        graph, feeds = graph_of(f"{cell.name}_scan", case.inputs, case.constant, **case.attrs)
        check(TEMPLATE, graph, feeds, tolerance=case.tolerance if dtype is f32 else 1e-12)


@every_cell
def test_half_floats_are_computed_in_float32(cell: Cell) -> None:
    """A layer of f16, bidirectional, with states."""
    rng = np.random.default_rng(3)

    def f(*dims: int) -> Any:
        return (rng.standard_normal(dims) / 3).astype(np.float16)

    g, n, (t, many, size, h) = tw.Graph("g"), cell.gates, (5, 2, 4, 6)
    feeds = {"x": f(t, many, size), **{f"s{k}": f(2, many, h) for k in range(cell.states)}}
    x, *states = (g.input(k, v.shape, "f16") for k, v in feeds.items())
    w, r, b = (g.constant(f(2, *d)) for d in ((n * h, size), (n * h, h), (2 * n * h,)))
    for k, y in enumerate(g.op(cell.name, x, w, r, b, None, *states, direction="bidirectional")):
        g.output(y, f"y{k}")
    graph = g.build()
    got = tw.compile(graph)(*feeds.values())
    for y, want in zip(got, evaluate(graph, feeds).values(), strict=True):
        assert y.dtype == np.float16 and np.abs(y - want).max() <= 2**-9 * np.abs(want).max()


@every_cell
def test_every_access_is_inside_and_items_do_not_meet(cell: Cell) -> None:
    """The interpreter checks bounds, roles, and that no item sees what another one writes."""
    switches = [{cell.switch: k} for k in (0, 1)] if cell.switch else [{}]
    for switch in switches:
        for constant in ((1, 2), ()):
            graph, feeds = layer(
                cell, 2, 3, 3, direction="bidirectional", kind=np.float64, states=True,
                lens=np.array([1, 9, 0]), constant=constant, **switch,
            )  # fmt: skip
            config = TEMPLATE.default(graph, graph.ops, graph.outputs, AVX2)
            launch = TEMPLATE.instantiate(graph, graph.ops, graph.outputs, AVX2, config)
            check_launch(graph, launch, feeds)


@every_cell
def test_every_config_gives_the_same_bits(cell: Cell) -> None:
    """Odd numbers of rows make tiles overlap and chunks differ in size."""
    graph, feeds = layer(cell, 3, 7, 19)
    device = host_device(threads=3)
    space = TEMPLATE.space(graph, graph.ops, graph.outputs, device)
    assert TEMPLATE.default(graph, graph.ops, graph.outputs, device) in space
    assert {c["chunks"] for c in space} >= {1, 3, 6}
    first = check(TEMPLATE, graph, feeds, config=space[0], device=device)
    want = Native(graph, first)(feeds)
    for config in space[1:]:
        launch = TEMPLATE.instantiate(graph, graph.ops, graph.outputs, device, config)
        for name, y in Native(graph, launch)(feeds).items():
            assert y.tobytes() == want[name].tobytes(), f"{name} differs under {config}"


def _turning(device: Any) -> Any:
    """A device whose first cache is too small for any weights."""
    return replace(device, l1_bytes=64)


@every_cell
def test_steps_that_read_weights_in_turn_forwards_and_backwards(cell: Cell) -> None:
    """Several blocks of columns, with steps that are left over behind whole rounds."""
    attrs = {cell.switch: 1} if cell.switch else {}
    for constant in ((1, 2), ()):
        graph, feeds = layer(
            cell, 4, 3, 10, direction="bidirectional", kind=np.float64, constant=constant, **attrs
        )
        op, device = (graph, graph.ops, graph.outputs), _turning(AVX2)
        config = {"chunks": 1, "rows": 3}
        launch = TEMPLATE.instantiate(*op, device, config)
        assert "s % 2 == 0" in str(launch.kernel)
        assert "s % 2 == 0" not in str(TEMPLATE.instantiate(*op, AVX2, config).kernel)
        check_launch(graph, launch, feeds)


@every_cell
def test_turns_do_not_depend_on_the_config(cell: Cell) -> None:
    attrs = {cell.switch: 1} if cell.switch else {}
    graph, feeds = layer(cell, 3, 7, 19, **attrs)
    device = _turning(host_device(threads=3))
    first, *others = TEMPLATE.space(graph, graph.ops, graph.outputs, device)
    want = Native(graph, check(TEMPLATE, graph, feeds, config=first, device=device))(feeds)
    for config in others:
        launch = TEMPLATE.instantiate(graph, graph.ops, graph.outputs, device, config)
        for name, y in Native(graph, launch)(feeds).items():
            assert y.tobytes() == want[name].tobytes(), f"{name} differs under {config}"


def test_where_weights_are_read_in_turn() -> None:
    """Neither where the first cache holds them, nor where they come from beyond the second, nor
    where a step multiplies twice."""

    def turns(name: str, h: int, **attrs: int) -> bool:
        graph, _ = layer(BY_NAME[name], 2, 1, h, **attrs)
        config = {"chunks": 1, "rows": 1}
        return ScanKernel(graph, graph.ops[0], graph.outputs, device, config).turn

    device = replace(AVX2, l1_bytes=32 << 10, l2_bytes=1 << 20)
    assert [turns("lstm", h) for h in (45, 46, 256, 257)] == [False, True, True, False]
    assert turns("gru", 100, linear_before_reset=1)
    assert not turns("gru", 100, linear_before_reset=0)


@pytest.mark.parametrize("size", [(4, 1, 1), (5, 3, 33), (3, 2, 64), (2, 5, 200)], ids=str)
@every_cell
def test_sizes(cell: Cell, size: tuple[int, int, int]) -> None:
    """From one unit to several column blocks, on two widths of vectors."""
    for device in (host_device(), AVX2):
        graph, feeds = layer(cell, *size, direction="bidirectional")
        check(TEMPLATE, graph, feeds, device=device)


@every_cell
def test_switch_states_peepholes_and_clip(cell: Cell) -> None:
    switches = [{cell.switch: k} for k in (0, 1)] if cell.switch else [{}]
    for switch in switches:
        for clip in (None, 0.3):
            graph, feeds = layer(cell, 6, 2, 21, states=True, clip=clip, **switch)
            check(TEMPLATE, graph, feeds)


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@every_cell
def test_sequences_of_different_lengths(cell: Cell, direction: str) -> None:
    """Lengths from nothing to more than there are steps."""
    for kind in (np.int32, np.int64):
        lens = np.array([4, 0, 7, 1, 99], kind)
        graph, feeds = layer(cell, 7, 5, 9, direction=direction, lens=lens, states=True)
        check(TEMPLATE, graph, feeds, tolerance=1e-5)


@every_cell
def test_weights_that_are_not_constant(cell: Cell) -> None:
    for batch, h in ((1, 5), (3, 40)):
        graph, feeds = layer(cell, 3, batch, h, direction="bidirectional", constant=())
        launch = check(TEMPLATE, graph, feeds)
        assert len(launch.kernel.phases) > 1
        assert not any(isinstance(a, Prepared) for a in launch.args)


@every_cell
def test_outputs_that_nobody_reads(cell: Cell) -> None:
    graph, feeds = layer(cell, 4, 2, 6, states=True, lens=np.array([2, 4], np.int32))
    for only in graph.outputs:
        launch = check(TEMPLATE, graph, feeds, outputs=[only])
        assert sum(b.role == "out" for b in launch.kernel.params) == 1
    launch = check(TEMPLATE, graph, feeds)
    assert len(launch.kernel.inplace) == cell.states


def test_a_state_that_is_read_twice_keeps_its_memory() -> None:
    graph, feeds = layer(BY_NAME["lstm"], 3, 2, 5, states=True)
    op = graph.ops[0]
    inputs = (*op.inputs[:5], op.inputs[4], *op.inputs[6:])
    op = type(op)(op.operator, inputs, op.outputs, op.attrs)
    same = type(graph)("same", graph.inputs, graph.outputs, (op,), graph.blobs)
    assert not check(TEMPLATE, same, feeds).kernel.inplace


@every_cell
def test_nothing_to_do(cell: Cell) -> None:
    for steps, batch, h in ((0, 2, 3), (2, 0, 3)):
        graph, feeds = layer(cell, steps, batch, h, states=True)
        check(TEMPLATE, graph, feeds)


def test_every_activation() -> None:
    names = ("relu", "tanh", "sigmoid", "softsign", "softplus", "affine", "leakyrelu",
             "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")  # fmt: skip
    for name in names:
        graph, feeds = layer(BY_NAME["rnn"], 3, 2, 18, functions=(Activation(name, 0.4, 0.3),))
        check(TEMPLATE, graph, feeds)


def test_packed_columns() -> None:
    r = np.arange(2 * 12 * 4, dtype=np.float32).reshape(2, 12, 4)
    p = Product.of(first=2, count=9, at=0, rows=1, lanes=4, registers=16, tag="")
    packed = pack(r, p.first, p.count, p.blocks, p.width)
    assert packed.shape == (2, p.blocks, 4, p.width)
    for d in range(2):
        for column in range(p.padded):
            got = packed[d, column // p.width, :, column % p.width]
            np.testing.assert_array_equal(got, r[d, 2 + column] if column < 9 else np.zeros(4))


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6])
def test_tiles_fit_into_registers(rows: int, registers: int) -> None:
    for count in (1, 30, 60, 100, 300, 999, 5000):
        p = Product.of(0, count, 0, rows, 8, registers, "")
        assert p.padded >= count > p.padded - p.blocks * 8
        assert 0 < p.rest <= p.vectors
        assert 0 <= ((p.blocks - 1) * p.vectors + p.rest) * 8 - count < 8
        sums = rows * p.vectors * p.chains
        assert sums + 1 + (p.vectors if rows > 1 else 1) <= registers or p.vectors == 1
