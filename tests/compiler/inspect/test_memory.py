"""Memory by type of operator, and programs without one of the decisions that save memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.inspect.alternatives import copied, unfused
from tilewright.compiler.inspect.memory import MemoryUse, OperatorMemory, memory_use
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.memory.plan import plan

KIB = 1024


def joined() -> tw.Graph:
    """Two softmaxes of an input, joined and summed up: [64, 64] in float32 is 16 KiB."""
    g = tw.Graph("net")
    x = g.input("x", (64, 64))
    w = g.parameter("w", np.arange(64, dtype=np.float32))
    y = g.softmax(x, axis=-1)
    z = g.softmax(x * w, axis=-1)
    g.output(g.reduce_sum(g.exp(g.concat(y, z, axis=0)), axes=(0,)), "y")
    return g


def convolved() -> tw.Graph:
    """A convolution with Winograd's scratch, its activation, then a mean."""
    g = tw.Graph("net")
    x = g.input("x", (1, 64, 28, 28))
    h = g.relu(g.conv(x, g.parameter("w", np.ones((64, 64, 3, 3), np.float32)), pads=1))
    g.output(g.global_average_pool(h), "y")
    return g


def use(c: Compilation) -> MemoryUse:
    return memory_use(c.graph, c.launches, c.plan)


def test_rows_by_hand() -> None:
    c = analyse(joined(), threads=1)
    rows = {r.operator: r for r in use(c).rows}
    assert rows["concat"] == OperatorMemory("concat", 1, results=32 * KIB, at_bound=32 * KIB)
    assert rows["div"] == OperatorMemory("div", 2, views=32 * KIB)
    assert rows["mul"] == OperatorMemory("mul", 1, fused=16 * KIB, weights=256)
    sums = rows["reduce_sum"]
    assert (sums.ops, sums.results) == (3, 0), "outputs are the caller's"
    assert sums.fused == 2 * 64 * 4, "of the softmaxes; outputs are in memory"
    assert next(iter(rows)) == "concat", "those that take most come first"


@pytest.mark.parametrize("graph", [joined, convolved])
def test_sums_are_those_of_the_plan(graph: Callable[[], tw.Graph]) -> None:
    c = analyse(graph(), threads=1)
    total = use(c).total
    assert total.results + total.scratch == c.plan.unshared_bytes
    assert total.at_bound == c.plan.alive_bytes
    assert total.ops == len(c.graph.ops)


def test_what_lies_in_donated_inputs_counts() -> None:
    """Two products by a constant, one of them in the input's memory."""
    g = tw.Graph("net")
    turn = g.constant(np.roll(np.eye(64, dtype=np.float32), 1, axis=1))
    h = g.input("x", (64, 64))
    for _ in range(4):
        h = g.matmul(h, turn)
    g.output(h, "y")
    exe, plain = (tw.compile(g, threads=1, donate=names) for names in (["x"], []))
    assert isinstance(exe, tw.Executable) and isinstance(plain, tw.Executable)
    assert exe.plan.regions and not plain.plan.regions
    total, before = exe.memory_use().total, plain.memory_use().total
    assert total.results + total.scratch == exe.plan.unshared_bytes
    assert (total.results, total.fused) == (before.results, before.fused)
    assert total.at_bound == exe.plan.alive_bytes < before.at_bound


def test_scratch_belongs_to_the_sum_of_products() -> None:
    c = analyse(convolved(), threads=1)
    (launch,) = (x for x in c.launches if x.kernel.template == "winograd")
    assert len(launch.ops) > 1, "the test needs a fused group with scratch"
    rows = {r.operator: r for r in use(c).rows}
    assert rows["conv"].scratch == sum(s.scratch for s in c.plan.steps) > 0
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
    """exp(x) + 1, squared: one kernel, or three whose results take one another's place."""
    g = tw.Graph("net")
    h = g.exp(g.input("x", (256, 256))) + 1.0
    g.output(h * h, "y")
    c = analyse(g, threads=1)
    assert c.plan.arena_bytes == 0
    assert len(c.launches) == 1 and len(unfused(c.graph, c.launches)[0]) == 3
    assert bound(unfused(c.graph, c.launches)) == 256 * KIB


def test_without_fusion_scratch_stays() -> None:
    c = analyse(convolved(), threads=1)
    steps, _ = unfused(c.graph, c.launches)
    assert len(steps) > len(c.plan.steps)
    assert sum(s.scratch for s in steps) == sum(s.scratch for s in c.plan.steps) > 0


def test_without_parts_a_concatenation_copies() -> None:
    """Both halves and the whole, instead of the whole alone."""
    c = analyse(joined(), threads=1)
    assert c.plan.lower_bound_bytes == 32 * KIB
    assert bound(copied(c.graph, c.launches)) == 64 * KIB
    assert len(copied(c.graph, c.launches)[0]) == len(c.launches) + 1


def test_without_views_a_reshape_copies() -> None:
    g = tw.Graph("net")
    h = g.softmax(g.input("x", (64, 64)), axis=-1)
    h = g.reshape(h, shape=(16, 256))
    g.output(g.softmax(h, axis=-1), "y")
    c = analyse(g, threads=1)
    assert c.plan.lower_bound_bytes == 16 * KIB
    assert bound(copied(c.graph, c.launches)) == 32 * KIB


def test_a_concatenation_that_copies_anyway_stays() -> None:
    """An input of the graph cannot lie in a concatenation."""
    g = tw.Graph("net")
    x = g.input("x", (64, 64))
    g.output(g.reduce_sum(g.concat(x, g.softmax(x, axis=-1), axis=0), axes=(0,)), "y")
    c = analyse(g, threads=1)
    assert any(op.operator == "reformat" for op in c.graph.ops), "the test needs a copy"
    assert bound(copied(c.graph, c.launches)) == c.plan.lower_bound_bytes == 32 * KIB


@pytest.mark.parametrize("without", [unfused, copied])
def test_they_are_programs_that_can_be_planned(without: object) -> None:
    c = analyse(joined(), threads=1)
    made = plan(*without(c.graph, c.launches))  # type: ignore[operator]
    made.check()
    assert made.unshared_bytes >= c.plan.unshared_bytes
