"""The grouped convolution template against float64 references, in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.conv_group import conv_group
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.grouped import GroupedConv, parts

from .native import Native, host_device
from .support import AVX512, DEVICES, blocked_group, check_group, stored

GROUPED = GroupedConv()


def grouped_graph(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    device: Device,
    *,
    chosen: Any = None,
    residual: bool = False,
    dtype: str = "float32",
    **attrs: Any,
) -> tuple[Graph, dict[str, Any]]:
    """[choice of channels] conv [+ residual] relu [pad], blobs blocked as the device likes."""
    rng = np.random.default_rng(sum(x_shape) + sum(w_shape))
    g = GraphBuilder("grouped")
    x = g.input("x", x_shape, dtype)
    feeds = {"x": rng.standard_normal(x_shape).astype(dtype)}
    read = x if chosen is None else g.op("gather", x, np.asarray(chosen), axis=1)
    w, bias = (rng.standard_normal(d).astype(dtype) for d in (w_shape, w_shape[0]))
    y = g.op("conv", read, w, bias, **attrs)
    if residual:
        y = g.op("add", y, g.input("r", y.shape, dtype))
        feeds["r"] = rng.standard_normal(y.shape).astype(dtype)
    y = g.op("relu", y)
    g.output(y, name="y")
    return blocked_group(g, device), feeds


def order(channels: int) -> Any:
    return np.random.default_rng(channels).permutation(channels)


CASES = {
    "groups share blocks": dict(x_shape=(1, 34, 5, 6), w_shape=(34, 17, 1, 1), group=2),
    "tiny groups": dict(x_shape=(1, 32, 6, 5), w_shape=(32, 4, 3, 3), group=8, residual=True,
                        pads=1),
    "one channel per group": dict(x_shape=(1, 7, 5, 5), w_shape=(21, 1, 3, 3), group=7),
    "narrowing": dict(x_shape=(2, 36, 4, 4), w_shape=(6, 12, 2, 2), group=3, strides=2, pads=1),
    "shuffled": dict(x_shape=(1, 40, 3, 7), w_shape=(60, 10, 1, 1), group=4, chosen=order(40)),
    "shuffled, whole blocks": dict(x_shape=(1, 32, 3, 3), w_shape=(32, 16, 1, 1), group=2,
                                   chosen=order(32), residual=True),
    "some channels": dict(x_shape=(1, 29, 4, 4), w_shape=(19, 5, 1, 1), chosen=[28, 0, -2, 3, 3]),
    "dilated 1-d": dict(x_shape=(2, 18, 15), w_shape=(12, 6, 3), group=3, dilations=3),
    "3-d": dict(x_shape=(1, 10, 3, 4, 5), w_shape=(10, 5, 2, 1, 3), group=2,
                pads=1),
    "double": dict(x_shape=(1, 18, 4, 5), w_shape=(24, 9, 2, 3), group=2, dtype="float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str) -> None:
    check_group(GROUPED, *grouped_graph(device=AVX512, **CASES[name]), device=AVX512, most=4)


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine(machine: str) -> None:
    device = DEVICES[machine]
    for name in ("groups share blocks", "shuffled", "double"):
        check_group(GROUPED, *grouped_graph(device=device, **CASES[name]), device=device, most=2)


def test_every_config_gives_the_same_bits_in_machine_code() -> None:
    device = host_device()
    case = dict(x_shape=(2, 6 * 5, 7, 5), w_shape=(16 * 6, 5, 3, 2), group=6, chosen=order(30))
    graph, feeds = grouped_graph(device=device, **case)
    flat = {n: stored(x, graph.type(n)) for n, x in feeds.items()}
    found = set()
    space = GROUPED.space(graph, graph.ops, graph.outputs, device)
    for config in space:
        launch = GROUPED.instantiate(graph, graph.ops, graph.outputs, device, config)
        found.add(Native(graph, launch)(flat)[graph.outputs[0]].tobytes())
    assert len(space) > 4
    assert len(found) == 1


def test_panels_are_wide_where_all_their_vectors_read_the_same_groups() -> None:
    graph, _ = grouped_graph((1, 136, 2, 2), (136, 34, 1, 1), AVX512, group=4)
    p = conv_group(graph, graph.ops, graph.outputs)
    assert p is not None
    shape = p.channels, p.group, p.block, 16
    assert [len(x.groups) for x in parts(*shape, 1)] == [1, 1, 2, 1, 2, 1, 2, 1, 1]
    wide = [(x.first, x.vectors, *x.groups) for x in parts(*shape, 2)]
    assert wide == [
        (0, 2, 0), (7, 2, 3),
        (2, 1, 0, 1), (3, 1, 1), (4, 1, 1, 2), (5, 1, 2), (6, 1, 2, 3),
    ]  # fmt: skip


def test_declines() -> None:
    def matches(x_shape: tuple[int, ...], w_shape: tuple[int, ...], **attrs: Any) -> bool:
        graph, _ = grouped_graph(x_shape, w_shape, AVX512, **attrs)
        return GROUPED.matches(graph, graph.ops, graph.outputs)

    assert matches((1, 24, 4, 4), (24, 8, 1, 1), group=3)
    assert not matches((1, 32, 4, 4), (32, 16, 1, 1), group=2), "whole blocks need no table"
    assert not matches((1, 24, 4, 4), (24, 24, 1, 1)), "without groups it is a direct convolution"
    graph, _ = grouped_graph(device=AVX512, **CASES["shuffled"])
    assert not GROUPED.matches(graph, graph.ops[:1], graph.ops[0].outputs), "a choice alone"
