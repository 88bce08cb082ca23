"""Kernels that need less memory than the default: what there is, in which order, and that it computes
the same."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright.compiler.kernels.conv_group import conv_group
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import falling
from tilewright.compiler.kernels.winograd import Winograd
from tilewright.compiler.kernels.winograd_configs import scratch_elements

from .support import DEVICES
from .test_winograd import CASES, winograd_graph

LARGE = dict(x_shape=(1, 64, 56, 56), w_shape=(64, 64, 3, 3), pads=1)


def scratch(launch: Launch) -> int:
    return sum(b.nbytes for b in launch.kernel.params if b.role == "scratch")


def test_falling_keeps_what_is_faster_or_smaller_than_all_else() -> None:
    found = [(3.0, 5, {"n": 0}), (1.0, 9, {"n": 1}), (2.0, 9, {"n": 2}), (4.0, 6, {"n": 3}),
             (5.0, 1, {"n": 4}), (1.0, 12, {"n": 5})]  # fmt: skip
    assert [c["n"] for c in falling(found)] == [1, 0, 4]
    assert falling([]) == []


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", [LARGE, *CASES.values()])
def test_winograd_knows_its_scratch_and_its_lean_configs_have_less(
    case: dict[str, Any], m: int, machine: str
) -> None:
    device = DEVICES[machine]
    graph, _ = winograd_graph(m, device, **case)
    problem = graph, graph.ops, graph.outputs
    p = conv_group(*problem)
    assert p is not None
    lean = Winograd().lean(*problem, device)
    sizes = []
    for config in [Winograd().default(*problem, device), *lean]:
        sizes.append(scratch(Winograd().instantiate(*problem, device, config)))
        assert sizes[-1] == 4 * scratch_elements(p, device, config)
    assert sizes == sorted(set(sizes), reverse=True)
    assert lean or case is not LARGE
