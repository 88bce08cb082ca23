"""Memory by type of operator, and programs without one of the decisions that save memory."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.inspect.alternatives import copied, unfused
from tilewright.compiler.inspect.memory import MemoryUse, OperatorMemory, memory_use
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.memory.plan import plan

KIB = 1024


def convolved() -> tw.Graph:
    """Two branches of a convolution each, joined, then a mean: [1, 32, 32, 32] in float32 is 128 KiB."""
    g = tw.Graph("net")
    x = g.input("x", (1, 32, 32, 32))
    w = np.ones((32, 32, 1, 1), np.float32)
    y = g.relu(g.conv(x, g.parameter("v", w)))
    z = g.relu(g.conv(x, g.parameter("w", 2 * w)))
    g.output(g.global_average_pool(g.concat(y, z, axis=1)), "y")
    return g


def use(c: Compilation) -> MemoryUse:
    return memory_use(c.graph, c.launches, c.plan)


def test_rows_by_hand() -> None:
    c = analyse(convolved(), threads=1)
    rows = {r.operator: r for r in use(c).rows}
    assert rows["concat"] == OperatorMemory("concat", 1, results=256 * KIB, at_bound=256 * KIB)
    assert rows["relu"] == OperatorMemory("relu", 2, views=256 * KIB)
    assert rows["conv"].fused == 256 * KIB
    assert rows["conv"].weights == 2 * 32 * 32 * 4
    assert rows["global_average_pool"].results == 0, "outputs are the caller's"
    assert next(iter(rows)) == "concat", "those that take most come first"


def test_sums_are_those_of_the_plan() -> None:
    c = analyse(convolved(), threads=1)
    total = use(c).total
    assert total.results + total.scratch == c.plan.unshared_bytes
    assert total.at_bound == c.plan.lower_bound_bytes
    assert total.ops == len(c.graph.ops)


def test_scratch_belongs_to_the_sum_of_products() -> None:
    g = tw.Graph("net")
    x = g.input("x", (1, 64, 28, 28))
    h = g.relu(g.conv(x, g.parameter("w", np.ones((64, 64, 3, 3), np.float32)), pads=1))
    g.output(g.global_average_pool(h), "y")
    c = analyse(g, threads=1)
    (launch,) = (x for x in c.launches if x.kernel.template == "winograd")
    assert len(launch.ops) > 1, "the test needs a fused group with scratch"
    rows = {r.operator: r for r in use(c).rows}
    assert rows["conv"].scratch == c.plan.unshared_bytes - rows["relu"].results > 0
    assert rows["relu"].scratch == 0


def test_the_table_has_shares_and_totals() -> None:
    rows = (OperatorMemory("conv", 2, results=3 * KIB, scratch=KIB, weights=5),
            OperatorMemory("relu", 1, fused=KIB))  # fmt: skip
    assert str(MemoryUse(rows)).splitlines() == [
        "operator  ops  results  scratch      %  at bound    fused  views  weights",
        "conv        2  3.0 KiB  1.0 KiB  100.0         -        -      -      5 B",
        "relu        1        -        -    0.0         -  1.0 KiB      -        -",
        "total       3  3.0 KiB  1.0 KiB  100.0         -  1.0 KiB      -      5 B",
    ]
    assert MemoryUse(rows).as_json()[0]["results"] == 3 * KIB


# ----------------------------------------------------------------------------- alternatives


def bound(needs: tuple) -> int:
    return plan(*needs).lower_bound_bytes


def test_without_fusion_every_result_is_in_memory() -> None:
    """exp(x) + 1, squared: one kernel without memory, or two results of which one is written over."""
    g = tw.Graph("net")
    h = g.exp(g.input("x", (256, 256))) + 1.0
    g.output(h * h, "y")
    c = analyse(g, threads=1)
    assert c.plan.arena_bytes == 0
    assert len(c.launches) == 1 and len(unfused(c.graph, c.launches)[0]) == 3
    assert bound(unfused(c.graph, c.launches)) == 256 * KIB


def test_without_fusion_scratch_stays() -> None:
    g = tw.Graph("net")
    x = g.input("x", (1, 64, 28, 28))
    g.output(g.relu(g.conv(x, g.parameter("w", np.ones((64, 64, 3, 3), np.float32)), pads=1)), "y")
    c = analyse(g, threads=1)
    assert c.plan.arena_bytes > 0
    steps, _ = unfused(c.graph, c.launches)
    assert sum(s.scratch for s in steps) == sum(s.scratch for s in c.plan.steps)


def test_without_parts_a_concatenation_copies() -> None:
    """Both halves and the whole, instead of the whole alone."""
    c = analyse(convolved(), threads=1)
    assert c.plan.lower_bound_bytes == 256 * KIB
    assert bound(copied(c.graph, c.launches)) == 512 * KIB
    assert len(copied(c.graph, c.launches)[0]) == len(c.launches) + 1


def test_without_views_a_reshape_copies() -> None:
    g = tw.Graph("net")
    h = g.softmax(g.input("x", (64, 64)), axis=-1)
    h = g.reshape(h, shape=(16, 256))
    g.output(g.softmax(h, axis=-1), "y")
    c = analyse(g, threads=1)
    assert c.plan.lower_bound_bytes == 16 * KIB
    assert bound(copied(c.graph, c.launches)) == 32 * KIB


def test_what_had_to_be_copied_anyway_is_copied_once() -> None:
    """An input of the graph cannot lie in a concatenation."""
    g = tw.Graph("net")
    x = g.input("x", (1, 32, 32, 32))
    y = g.relu(g.conv(x, g.parameter("w", np.ones((32, 32, 1, 1), np.float32))))
    g.output(g.global_average_pool(g.concat(x, y, axis=1)), "y")
    c = analyse(g, threads=1)
    assert bound(copied(c.graph, c.launches)) == (256 + 128) * KIB


@pytest.mark.parametrize("without", [unfused, copied])
def test_they_are_programs_that_can_be_planned(without: object) -> None:
    c = analyse(convolved(), threads=1)
    made = plan(*without(c.graph, c.launches))  # type: ignore[operator]
    made.check()
    assert made.unshared_bytes >= c.plan.unshared_bytes
