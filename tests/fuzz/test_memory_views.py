"""What is said of the memory of random graphs agrees with itself."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tilewright.compiler.api.compile import analyse
from tilewright.compiler.inspect.alternatives import copied, unfused
from tilewright.compiler.inspect.arena import draw
from tilewright.compiler.inspect.memory import memory_use
from tilewright.compiler.memory.plan import plan

from .graphs import random_graph


@pytest.mark.parametrize("seed", range(12))
def test_tables_charts_and_levers_of_random_graphs(seed: int) -> None:
    c = analyse(random_graph(seed, 10 + 4 * seed), threads=1)
    total = memory_use(c.graph, c.launches, c.plan).total
    assert total.results + total.scratch == c.plan.unshared_bytes
    assert total.at_bound == c.plan.alive_bytes
    for without in (unfused, copied):
        other = plan(*without(c.graph, c.launches))  # and verified
        assert other.unshared_bytes >= c.plan.unshared_bytes
    for lever in c.plan.levers()[:3]:
        assert lever.saved >= 0, "what the planner itself decides never costs"
    root = ET.fromstring(draw(c.plan, "net"))
    boxes = sum(1 for e in root.iter("{http://www.w3.org/2000/svg}rect") if len(e))
    assert boxes == sum(1 for block in c.plan.ranges if block.bytes)
