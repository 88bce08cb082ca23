"""The direct convolution template against float64 references, in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import Hints, run_kernel
from tilewright.compiler.kernels.conv import PARTIAL, DirectConv
from tilewright.compiler.kernels.conv_group import conv_group
from tilewright.compiler.kernels.conv_tiles import Vectors
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import For, Prepared, statements
from tilewright.ops.types import Layout

from .native import Native, host_device
from .support import AVX2, AVX512, DEVICES, NEON, check_group, logical, stored, with_layouts

DIRECT = DirectConv()


def conv_graph(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    device: Device,
    *,
    bias: bool = True,
    relu: bool = False,
    residual: bool = False,
    planar: bool = False,
    dtype: str = "float32",
    **attrs: Any,
) -> tuple[Graph, dict[str, Any]]:
    """conv [+ residual] [relu], blobs blocked as the device likes."""
    rng = np.random.default_rng(sum(x_shape) + sum(w_shape))
    blocked = Layout(1, device.channel_block)
    g = GraphBuilder("conv")
    x = g.input("x", x_shape, dtype)
    feeds = {"x": rng.standard_normal(x_shape).astype(dtype)}
    weights = [rng.standard_normal(w_shape).astype(dtype)]
    if bias:
        weights.append(rng.standard_normal(w_shape[0]).astype(dtype))
    y = g.op("conv", x, *weights, **attrs)
    layouts = {} if planar else {"x": blocked}
    if residual:
        r = g.input("r", y.shape, dtype)
        layouts["r"] = blocked
        feeds["r"] = rng.standard_normal(y.shape).astype(dtype)
        y = g.op("add", y, r)
    if relu:
        y = g.op("relu", y)
    g.output(y, name="y")
    graph = g.build()
    kept = [op for op in graph.ops if op.operator != "identity"]
    layouts |= {o: blocked for op in kept for o in op.outputs}
    return with_layouts(_without_identity(graph), layouts), feeds


def _without_identity(graph: Graph) -> Graph:
    """Drop the identity that only names the output."""
    last = graph.ops[-1]
    assert last.operator == "identity"
    names = tuple(last.reads)
    return Graph(graph.name, graph.inputs, names, graph.ops[:-1], graph.blobs)


CASES = {
    "3x3": dict(x_shape=(1, 16, 8, 8), w_shape=(32, 16, 3, 3), relu=True),
    "tails": dict(x_shape=(1, 19, 7, 9), w_shape=(37, 19, 3, 2), relu=True),
    "pointwise": dict(x_shape=(1, 21, 5, 6), w_shape=(33, 21, 1, 1), relu=True, residual=True),
    "strided": dict(x_shape=(2, 16, 9, 8), w_shape=(16, 16, 3, 3), strides=(2, 3), residual=True),
    "pointwise strided": dict(x_shape=(1, 16, 7, 7), w_shape=(48, 16, 1, 1), strides=2),
    "dilated": dict(x_shape=(1, 8, 9, 9), w_shape=(16, 8, 3, 3), dilations=(2, 3), bias=False),
    "planar": dict(x_shape=(1, 3, 11, 12), w_shape=(20, 3, 7, 7), strides=2, planar=True),
    "planar 1x1": dict(x_shape=(2, 3, 4, 5), w_shape=(16, 3, 1, 1), planar=True),
    "1-d": dict(x_shape=(2, 17, 14), w_shape=(24, 17, 3), relu=True, residual=True),
    "3-d": dict(x_shape=(1, 5, 4, 5, 6), w_shape=(17, 5, 2, 3, 2), relu=True),
    "3-d batch": dict(x_shape=(2, 3, 3, 4, 4), w_shape=(16, 3, 2, 2, 2), strides=(1, 2, 1)),
    "padded": dict(x_shape=(2, 19, 6, 9), w_shape=(37, 19, 3, 3), pads=1, relu=True),
    "padded unevenly": dict(x_shape=(1, 16, 5, 7), w_shape=(20, 16, 4, 3), pads=(0, 2, 3, 1)),
    "padded and strided": dict(x_shape=(1, 20, 9, 11), w_shape=(16, 20, 3, 5), pads=(1, 2),
                               strides=(2, 3), residual=True),
    "padded and dilated": dict(x_shape=(1, 8, 7, 6), w_shape=(16, 8, 3, 3), pads=(2, 3),
                               dilations=(2, 3), strides=(1, 2), bias=False),
    "padded beyond the window": dict(x_shape=(1, 6, 3, 2), w_shape=(17, 6, 2, 3), pads=(3, 4),
                                     relu=True),
    "window beyond the input": dict(x_shape=(1, 16, 2, 2), w_shape=(32, 16, 5, 5), pads=2),
    "padded pointwise": dict(x_shape=(1, 16, 4, 3), w_shape=(16, 16, 1, 1), pads=(1, 0, 2, 1)),
    "padded planar": dict(x_shape=(2, 3, 13, 12), w_shape=(20, 3, 7, 7), pads=3, strides=2,
                          planar=True),
    "padded 1-d": dict(x_shape=(2, 17, 14), w_shape=(24, 17, 5), pads=(4, 1), dilations=2),
    "padded 3-d": dict(x_shape=(2, 5, 3, 4, 5), w_shape=(17, 5, 3, 3, 2), pads=(1, 1, 1, 2, 1, 0),
                       strides=(2, 1, 1), relu=True),
    "padded one channel": dict(x_shape=(1, 1, 4, 4), w_shape=(3, 1, 3, 1), pads=(1, 0)),
    "same": dict(x_shape=(1, 9, 5, 8), w_shape=(16, 9, 2, 4), auto_pad="SAME_UPPER", strides=2),
    "one channel": dict(x_shape=(1, 1, 5, 5), w_shape=(1, 1, 3, 3), relu=True, residual=True),
    "one place": dict(x_shape=(1, 40, 1, 1), w_shape=(72, 40, 1, 1)),
    "chains": dict(x_shape=(1, 83, 4, 5), w_shape=(20, 83, 3, 3), pads=1, relu=True),
    "double": dict(x_shape=(1, 18, 4, 5), w_shape=(24, 18, 2, 3), dtype="float64", residual=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str) -> None:
    check_group(DIRECT, *conv_graph(device=AVX512, **CASES[name]), device=AVX512, most=5)


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine(machine: str) -> None:
    device = DEVICES[machine]
    for name in ("pointwise", "padded unevenly", "double"):
        check_group(DIRECT, *conv_graph(device=device, **CASES[name]), device=device, most=2)


@pytest.mark.parametrize("name", ["padded", "padded and strided", "padded planar", "chains"])
def test_every_config_gives_the_same_bits(name: str) -> None:
    """Terms are added in one order, with or without edges, whatever the tile."""
    case = dict(CASES[name])
    block = host_device().channel_block
    case["w_shape"] = (3 * block, *case["w_shape"][1:])
    graph, feeds = conv_graph(device=host_device(), **case)
    feeds = {n: stored(v, graph.type(n)) for n, v in feeds.items()}
    op = (graph, graph.ops, graph.outputs, host_device())
    bits = set()
    for config in DIRECT.space(*op):
        bits.add(Native(graph, DIRECT.instantiate(*op, config))(feeds)[graph.outputs[0]].tobytes())
    assert len(bits) == 1


HALVED = {
    "planar": dict(x_shape=(1, 3, 9, 11), w_shape=(24, 3, 3, 3), pads=1, strides=2, planar=True,
                   relu=True),
    "pointwise": dict(x_shape=(1, 19, 5, 6), w_shape=(40, 19, 1, 1), relu=True, residual=True),
    "last of a block": dict(x_shape=(2, 16, 4, 5), w_shape=(52, 16, 2, 3), pads=1),
}  # fmt: skip


@pytest.mark.parametrize("name", HALVED)
def test_halves_of_vectors_agree(name: str) -> None:
    device = replace(AVX512, halves=1)
    graph, feeds = conv_graph(device=device, **HALVED[name])
    for launch in check_group(DIRECT, graph, feeds, device, most=6):
        body = launch.kernel.phases[0].body
        lanes = {s.lanes for s in statements(body) if isinstance(s, For) and s.kind == "vector"}
        assert lanes == {8}


def test_halves_of_vectors_give_the_same_bits() -> None:
    whole, half = (replace(host_device(), halves=n) for n in (0, 1))
    block = whole.channel_block
    case = dict(CASES["chains"])
    case["w_shape"] = (block * 5 // 2, *case["w_shape"][1:])
    graph, feeds = conv_graph(device=whole, **case)
    feeds = {n: stored(v, graph.type(n)) for n, v in feeds.items()}
    (out,) = graph.outputs
    bits = set()
    for device in whole, half:
        op = (graph, graph.ops, graph.outputs, device)
        for config in DIRECT.space(*op)[::6]:
            found = Native(graph, DIRECT.instantiate(*op, config))(feeds)[out]
            bits.add(logical(found.reshape(-1), graph.type(out)).tobytes())
    assert len(bits) == 1


@pytest.mark.parametrize(("channels", "lanes", "count"), [
    (8, 8, 1), (16, 16, 1), (17, 8, 3), (25, 16, 2), (32, 16, 2), (104, 8, 13), (1000, 16, 63),
])  # fmt: skip
def test_vectors_are_halved_where_that_leaves_fewer_lanes_idle(
    channels: int, lanes: int, count: int
) -> None:
    def vectors(device: Device, **case: Any) -> tuple[int, int]:
        shape: dict[str, Any] = dict(x_shape=(1, 16, 2, 2), w_shape=(channels, 16, 1, 1))
        graph, _ = conv_graph(device=device, **{**shape, **case})
        found = conv_group(graph, graph.ops, graph.outputs)
        assert found is not None
        made = Vectors.of(found, device)
        assert made.lanes * made.count >= channels
        return made.lanes, made.count

    halving = replace(AVX512, halves=1)
    assert vectors(halving) == (lanes, count)
    assert vectors(AVX512) == (16, -(-channels // 16))
    assert vectors(halving, dtype="float64")[0] == 8, "blocks of two vectors stay whole"


@pytest.mark.parametrize(("channels", "window"), [(512, 3), (2048, 1)])
def test_long_sums_err_little(channels: int, window: int) -> None:
    """Each addition is off by at most half a unit of its partial sum, the root mean square of which
    is 2/5 or less of a roundoff. A chain of n terms has partial sums of sqrt(n / 2) times a term on
    average, which c chains of n / c terms and the sum over them bring to sqrt(n / 2c + c / 2): here
    a fifth to a third of one long chain's."""
    shape = (1, channels, 7, 7)
    graph, feeds = conv_graph(
        shape, (32, channels, window, window), host_device(), bias=False, pads=window // 2
    )
    op = (graph, graph.ops, graph.outputs, host_device())
    launch = DIRECT.instantiate(*op, DIRECT.default(*op))
    (name,) = graph.outputs
    found = Native(graph, launch)({n: stored(v, graph.type(n)) for n, v in feeds.items()})[name]
    wanted = evaluate(graph, feeds)[name]
    error = logical(found.reshape(-1), graph.type(name)) - wanted
    terms = channels * window**2
    longest = 2 * PARTIAL  # at most: what is left over goes on behind the last partial sum
    bound = 0.5 * 2.0**-24 * np.sqrt(longest / 2 + terms / longest)
    assert np.sqrt(np.mean(error**2)) <= bound * np.sqrt(np.mean(wanted**2))


def test_groups() -> None:
    graph, feeds = conv_graph((1, 48, 5, 5), (48, 16, 3, 3), AVX2, group=3, relu=True)
    check_group(DIRECT, graph, feeds, AVX2, most=3)
    graph, feeds = conv_graph((1, 10, 5, 5), (32, 5, 3, 3), NEON, group=2, planar=True)
    check_group(DIRECT, graph, feeds, NEON, most=3)


def test_declines() -> None:
    def matches(**case: Any) -> bool:
        graph, _ = conv_graph(device=AVX512, **{**CASES["3x3"], **case})
        return DIRECT.matches(graph, graph.ops, graph.outputs)

    assert matches()
    assert not matches(group=2, w_shape=(32, 8, 3, 3)), "groups must be whole channel blocks"


def test_a_residual_that_is_also_the_input_is_not_overwritten() -> None:
    blocked = Layout(1, 16)
    g = GraphBuilder("loop")
    x = g.input("x", (1, 16, 3, 3))
    w = np.random.default_rng(0).standard_normal((16, 16, 1, 1)).astype(np.float32)
    y = g.op("add", g.op("conv", x, w), x)
    g.output(y)
    graph = with_layouts(g.build(), dict.fromkeys(("x", "conv", "add"), blocked))
    feeds = {"x": np.ones((1, 16, 3, 3), np.float32)}
    for launch in check_group(DIRECT, graph, feeds, AVX512, most=2):
        assert not launch.kernel.inplace
    graph, feeds = conv_graph(device=AVX512, **CASES["pointwise"])
    assert all(launch.kernel.inplace for launch in check_group(DIRECT, graph, feeds, AVX512, 1))


def test_row_major_operands_are_not_read_past_the_last_channel() -> None:
    """A scale per channel that arrives at run time, and a constant one, for 21 of 32 lanes."""
    rng = np.random.default_rng(1)
    g = GraphBuilder("scale")
    x, s = g.input("x", (1, 8, 3, 4)), g.input("s", (1, 21, 1, 1))
    w, shift = (rng.standard_normal(d).astype(np.float32) for d in ((21, 8, 2, 2), (21, 1, 1)))
    y = g.op("add", g.op("mul", g.op("conv", x, w), s), shift)
    g.output(y)
    graph = with_layouts(g.build(), dict.fromkeys(("x", "conv", "mul", "add"), Layout(1, 16)))
    feeds = {n: rng.standard_normal(graph.type(n).dims).astype(np.float32) for n in ("x", "s")}
    for launch in check_group(DIRECT, graph, feeds, AVX512, most=3):
        assert sum(isinstance(a, Prepared) for a in launch.args) == 2, "weights and shift"


WHOLE = {"parts": 1, "shares": 1, "items": "sp", "order": "oc"}  # one item


def _asked_for(
    w_shape: tuple[int, ...], device: Device, strides: int = 1, places: tuple[int, int] = (12, 12),
    **config: Any,
) -> list[set[int]]:  # fmt: skip
    """The lines of x (of 12 x 12 places) and of the weights that the default kernel, with some of
    its config replaced, prefetches in a pointwise convolution; those past their end left out."""
    x_shape = (1, w_shape[1], *places)
    graph, feeds = conv_graph(x_shape, w_shape, device, bias=False, strides=strides)
    op = (graph, graph.ops, graph.outputs, device)
    launch = DIRECT.instantiate(*op, {**DIRECT.default(*op), **config})
    x, w, _ = launch.kernel.params
    made = launch.args[1]
    assert isinstance(made, Prepared)
    arrays = [stored(feeds["x"], graph.type("x")), made.make(graph.blobs[made.blobs[0]].value)]
    hints: Hints = {}
    run_kernel(launch.kernel, [*(a.reshape(-1) for a in arrays), None], hints=hints)
    return [{at // 16 for at in hints.get(b, ()) if at < b.elements} for b in (x, w)]


def test_input_from_beyond_the_second_cache_is_asked_for_a_tile_ahead() -> None:
    """Every line of it, but those of the first tile of each channel block, whose places come from
    the end of the block before."""
    small = replace(AVX512, l2_bytes=4 * 3 * 16 * 144 - 1)
    tile = {"th": 1, "tw": 12, "nb": 2, **WHOLE}
    x, _ = _asked_for((32, 48, 1, 1), small, **tile)
    assert x == set(range(12, 3 * 144)), "lines of 16 channels, 144 a block"
    x, _ = _asked_for((32, 48, 1, 1), replace(small, l2_bytes=small.l2_bytes + 1), **tile)
    assert not x, "it fits"
    x, _ = _asked_for((16, 48, 1, 1), small, **{**tile, "nb": 1})
    assert not x, "a load for every multiply-add, and none to spare"


def test_strided_input_from_beyond_the_second_cache_is_asked_for_a_channel_block_ahead() -> None:
    """Every second line of every second row, but those of the first block."""
    small = replace(AVX512, l2_bytes=4 * 3 * 16 * 144 - 1)
    x, _ = _asked_for((32, 48, 1, 1), small, th=1, tw=6, nb=2, **WHOLE, strides=2)
    places = {r * 12 + c for r in range(0, 12, 2) for c in range(0, 12, 2)}
    assert x == {b * 144 + p for b in (1, 2) for p in places}


def test_weights_that_serve_few_tiles_are_asked_for() -> None:
    """All lines from 2 KiB behind the first one on; none where 36 tiles use them in turn."""
    shape = (32, 96, 1, 1)
    _, w = _asked_for(shape, AVX512, th=1, tw=12, nb=2, **WHOLE)
    assert w == set(range(32, 96 * 2)), "two lines of weights for each of 96 channels"
    _, w = _asked_for(shape, AVX512, th=1, tw=4, nb=2, **WHOLE)
    assert not w
    _, w = _asked_for(shape, AVX512, th=1, tw=4, nb=2, **{**WHOLE, "order": "sp"})
    assert w == set(range(32, 96 * 2)), "other panels come in between"


def test_weights_that_memory_brings_too_slowly_are_left_to_the_machine() -> None:
    """Where a line serves fewer multiply-adds than the time it takes to arrive."""
    shape = (32, 96, 1, 1)
    _, w = _asked_for(shape, AVX512, th=1, tw=7, nb=2, **WHOLE, places=(1, 7))
    assert not w
    _, w = _asked_for(shape, AVX512, th=1, tw=8, nb=2, **WHOLE, places=(1, 8))
    assert w == set(range(32, 96 * 2))
