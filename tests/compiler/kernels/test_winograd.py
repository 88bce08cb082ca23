"""The Winograd convolution template against float64 references, and the error that it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.winograd import Winograd

from .support import AVX512, DEVICES, check_group
from .test_conv import conv_graph

WINOGRAD = Winograd()

CASES: dict[str, dict[str, Any]] = {
    "even": dict(x_shape=(1, 16, 8, 8), w_shape=(32, 16, 3, 3), pads=1, relu=True),
    "no padding": dict(x_shape=(1, 16, 9, 7), w_shape=(16, 16, 3, 3)),
    "channel tails": dict(x_shape=(1, 21, 7, 5), w_shape=(19, 21, 3, 3), pads=1, residual=True),
    "one channel": dict(x_shape=(1, 1, 6, 5), w_shape=(1, 1, 3, 3), pads=1, relu=True),
    "batch": dict(x_shape=(3, 8, 5, 6), w_shape=(16, 8, 3, 3), pads=1, residual=True, relu=True),
    "one place": dict(x_shape=(2, 5, 1, 1), w_shape=(16, 5, 3, 3), pads=1),
    "wide padding": dict(x_shape=(1, 4, 3, 2), w_shape=(16, 4, 3, 3), pads=(3, 0, 2, 4)),
    "row": dict(x_shape=(1, 17, 1, 13), w_shape=(33, 17, 3, 3), pads=1, bias=False),
}


def winograd_graph(m: int, device: Any = AVX512, **case: Any) -> tuple[Graph, dict[str, Any]]:
    return conv_graph(device=device, winograd=m, **case)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str, m: int) -> None:
    check_group(WINOGRAD, *winograd_graph(m, **CASES[name]), device=AVX512, most=4)


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine(machine: str) -> None:
    device = DEVICES[machine]
    for m, name in ((2, "channel tails"), (4, "batch")):
        check_group(WINOGRAD, *winograd_graph(m, device, **CASES[name]), device=device, most=2)
