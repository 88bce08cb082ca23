"""What templates say of the time that their configs take."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.conv import DirectConv
from tilewright.compiler.kernels.depthwise import Depthwise
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.grouped import GroupedConv
from tilewright.compiler.kernels.matmul import Gemm
from tilewright.compiler.kernels.template import Estimating
from tilewright.compiler.kernels.winograd import Winograd

from . import test_matmul as matmul
from .support import AVX512
from .test_conv import conv_graph
from .test_depthwise import depthwise_graph
from .test_grouped import grouped_graph

ONE = replace(AVX512, threads=1)
KERNELS = {
    "direct": DirectConv(), "grouped": GroupedConv(), "depthwise": Depthwise(),
    "winograd 2": Winograd(), "winograd 4": Winograd(), "matmul": Gemm(),
}  # fmt: skip


def problem(name: str, batch: int = 1) -> Graph:
    """A 3x3 convolution of 64 channels, or a product of as many columns."""
    shape: dict[str, Any] = {"x_shape": (batch, 64, 28, 28), "device": AVX512, "pads": 1}
    match name.split():
        case ["matmul"]:
            return matmul.graph_of(lambda t: t.input(784 * batch, 64) @ t.constant(64, 64))[0]
        case ["depthwise"]:
            return depthwise_graph(**shape, kernel=(3, 3))[0]
        case ["grouped"]:
            return grouped_graph(**shape, w_shape=(64, 8, 3, 3), group=8)[0]
        case ["winograd", m]:
            return conv_graph(**shape, w_shape=(64, 64, 3, 3), winograd=int(m))[0]
        case _:
            return conv_graph(**shape, w_shape=(64, 64, 3, 3))[0]


def estimates(name: str, graph: Graph, device: Device = ONE) -> list[float]:
    """Of the whole space, the default first."""
    template: Any = KERNELS[name]
    assert isinstance(template, Estimating)
    args = graph, graph.ops, graph.outputs, device
    configs = [template.default(*args), *template.space(*args)]
    return [template.estimate(*args, config) for config in configs]


each_kernel = pytest.mark.parametrize("name", KERNELS)


@each_kernel
def test_no_config_beats_the_multiply_adds(name: str) -> None:
    """A slot holds one multiply-add of a vector; of Winograd's, those that it does."""
    graph = problem(name)
    args = graph, graph.ops, graph.outputs, ONE
    template: Any = KERNELS[name]
    kernel = template.instantiate(*args, template.default(*args)).kernel
    found = estimates(name, graph)
    assert min(found) >= (kernel.own_flops or kernel.flops) / 2 / 16
    assert max(found) < math.inf


@each_kernel
def test_the_default_is_among_the_best(name: str) -> None:
    default, *space = estimates(name, problem(name))
    assert default <= 1.1 * min(space)


@each_kernel
def test_more_work_takes_longer_and_threads_share_it(name: str) -> None:
    small, large = problem(name, 1), problem(name, 8)
    assert estimates(name, large)[0] > 4 * estimates(name, small)[0]
    two = estimates(name, large, AVX512)[0]
    assert 0.4 < two / estimates(name, large)[0] < 0.8


def test_algorithms_compare() -> None:
    """F(4) needs the fewest multiply-adds, F(2) more, a direct sum the most."""
    found = [estimates(n, problem(n, 4))[0] for n in ("winograd 4", "winograd 2", "direct")]
    assert found == sorted(found)
