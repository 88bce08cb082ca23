"""The depthwise convolution template against float64 references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import Hints, run_kernel
from tilewright.compiler.kernels.depthwise import WIDEST, Depthwise
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import Prepared

from .native import Native, host_device
from .support import AVX2, AVX512, DEVICES, blocked_group, check_group, stored

DEPTHWISE = Depthwise()


def depthwise_graph(
    x_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    device: Device,
    *,
    bias: bool = True,
    residual: bool = False,
    multiplier: int = 1,
    dtype: str = "float32",
    **attrs: Any,
) -> tuple[Graph, dict[str, Any]]:
    """conv [+ residual] clip, blobs blocked as the device likes."""
    rng = np.random.default_rng(sum(x_shape) + sum(kernel))
    channels = x_shape[1]
    g = GraphBuilder("depthwise")
    x = g.input("x", x_shape, dtype)
    feeds = {"x": rng.standard_normal(x_shape).astype(dtype)}
    shapes = [(channels * multiplier, 1, *kernel), *([(channels * multiplier,)] if bias else [])]
    weights = [rng.standard_normal(d).astype(dtype) for d in shapes]
    y = g.op("conv", x, *weights, group=channels, **attrs)
    if residual:
        y = g.op("add", y, g.input("r", y.shape, dtype))
        feeds["r"] = rng.standard_normal(y.shape).astype(dtype)
    y = g.op("relu", y)
    g.output(y, name="y")
    return blocked_group(g, device), feeds


CASES: dict[str, dict[str, Any]] = {
    "3x3": dict(x_shape=(1, 16, 6, 7), kernel=(3, 3), pads=1),
    "strided": dict(x_shape=(2, 19, 7, 9), kernel=(3, 3), pads=1, strides=2),
    "no padding": dict(x_shape=(1, 5, 7, 8), kernel=(3, 2), bias=False),
    "uneven padding": dict(x_shape=(1, 17, 5, 4), kernel=(2, 4), pads=(0, 3, 2, 1), residual=True),
    "dilated": dict(x_shape=(1, 16, 9, 11), kernel=(3, 3), dilations=(2, 5), pads=(2, 5, 2, 5)),
    "places without taps": dict(x_shape=(1, 8, 2, 1), kernel=(1, 2), pads=(3, 4), strides=(1, 3)),
    "same": dict(x_shape=(1, 9, 6, 5), kernel=(4, 4), auto_pad="SAME_UPPER", strides=(2, 3)),
    "5x5": dict(x_shape=(1, 24, 5, 23), kernel=(5, 5), pads=2, residual=True),
    "causal": dict(x_shape=(2, 18, 31), kernel=(5,), dilations=4, pads=(16, 0)),
    "long": dict(x_shape=(1, 7, 40), kernel=(31,), pads=15),
    "3-d": dict(x_shape=(2, 6, 4, 5, 6), kernel=(3, 2, 3), pads=1, strides=(2, 1, 1)),
    "pointwise": dict(x_shape=(2, 21, 3, 5), kernel=(1, 1), residual=True),
    "one place": dict(x_shape=(1, 33, 1, 1), kernel=(3, 3), pads=1),
    "double": dict(x_shape=(1, 18, 5, 6), kernel=(3, 3), pads=1, dtype="float64", residual=True),
}


@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str) -> None:
    check_group(DEPTHWISE, *depthwise_graph(device=AVX512, **CASES[name]), device=AVX512)


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine(machine: str) -> None:
    device = DEVICES[machine]
    for name in ("strided", "uneven padding", "causal", "double"):
        check_group(DEPTHWISE, *depthwise_graph(device=device, **CASES[name]), device=device,
                    most=2)  # fmt: skip


@pytest.mark.parametrize("name", ["strided", "dilated", "3-d"])
def test_every_config_gives_the_same_bits_in_machine_code(name: str) -> None:
    device = host_device()
    case = CASES[name]
    case = {**case, "x_shape": (case["x_shape"][0], 32, *case["x_shape"][2:])}
    graph, feeds = depthwise_graph(device=device, **case)
    flat = {n: stored(x, graph.type(n)) for n, x in feeds.items()}
    space = DEPTHWISE.space(graph, graph.ops, graph.outputs, device)
    found = set()
    for config in space:
        launch = DEPTHWISE.instantiate(graph, graph.ops, graph.outputs, device, config)
        found.add(Native(graph, launch)(flat)[graph.outputs[0]].tobytes())
    assert len(space) > 1
    assert len(found) == 1


def test_declines() -> None:
    def matches(**case: Any) -> bool:
        graph, _ = depthwise_graph(device=AVX512, **{**CASES["3x3"], **case})
        return DEPTHWISE.matches(graph, graph.ops, graph.outputs)

    assert matches()
    assert not matches(multiplier=2), "several output channels per group are a grouped convolution"
    assert not matches(kernel=(1, WIDEST + 1), pads=(0, WIDEST // 2)), "too much code"


def test_tiles_are_whole_rows_in_registers_or_short_parts() -> None:
    """For windows of 3 x 3: 28 sums, 3 weights and an input are 32 registers."""

    def width(columns: int, device: Device) -> Any:
        graph, _ = depthwise_graph((1, 16, 2, columns), (3, 3), device, pads=1)
        return DEPTHWISE.default(graph, graph.ops, graph.outputs, device)["tw"]

    assert [width(n, AVX512) for n in (1, 7, 28, 29, 56, 112)] == [1, 7, 28, 10, 14, 14]
    assert [width(n, AVX2) for n in (7, 12, 13)] == [7, 12, 7]


def asked_for(device: Device, **attrs: Any) -> set[int]:
    """The lines of 32 channels of 12 x 12 places, 12 a row, that a kernel asks for ahead."""
    graph, feeds = depthwise_graph((1, 32, 12, 12), (3, 3), AVX512, bias=False, pads=1, **attrs)
    config = DEPTHWISE.default(graph, graph.ops, graph.outputs, device)
    launch = DEPTHWISE.instantiate(graph, graph.ops, graph.outputs, device, config)
    made = next(a for a in launch.args if isinstance(a, Prepared))
    weights = made.make(graph.blobs[made.blobs[0]].value)
    arrays = [stored(feeds["x"], graph.type("x")).reshape(-1), weights.reshape(-1), None]
    hints: Hints = {}
    run_kernel(launch.kernel, arrays, hints=hints)
    x = launch.kernel.params[0]
    return {at // 16 for at in hints.get(x, ()) if at < x.elements}


def test_strided_input_from_memory_is_asked_for_two_rows_ahead() -> None:
    """Every line, but those that the first two rows of results read, also across blocks."""
    small = replace(AVX512, l2_bytes=32 * 144 - 1)
    assert asked_for(small, strides=2) == set(range(4 * 12 - 1, 2 * 144))
    assert not asked_for(replace(small, l2_bytes=small.l2_bytes + 1), strides=2), "it fits"
    assert not asked_for(small), "windows that move by single rows"
