"""Programs whose kernels run in another order, or on other memory, compute the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.build import choose, link, optimise
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.errors import PlanError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.options import options
from tilewright.compiler.runtime.program import plan_memory
from tilewright.compiler.store import Store


def compiled(graph: Graph, **switches: bool) -> tw.Executable:
    """With NaN in the arena before every call."""
    switched = options(numerics="reproducible", threads=2, **switches)
    target, chosen = host(), replace(switched, poison=True)
    stages = optimise(graph, target, chosen, 0.0)
    made = choose(stages, target, chosen)
    return link(made, Store(), None, read=0.0, passes=0.0, kernels=0.0)


def breadth_first() -> Graph:
    """All branches grow before the first one falls; a sum and a softmax behind them."""
    rng = np.random.default_rng(0)
    g = tw.Graph("branches")
    x = g.input("x", (1, 8, 12, 12))

    def conv(v: tw.Value, out: int, inside: int, size: int) -> tw.Value:
        w = rng.standard_normal((out, inside, size, size)).astype(np.float32) / 8
        return g.relu(g.conv(v, w, pads=size // 2))

    large = [conv(x, 64, 8, 1) for _ in range(4)]
    small = [conv(v, 8, 64, 3) for v in large]
    total = small[0]
    for v in small[1:]:
        total = g.add(total, v)
    g.output(g.softmax(total, axis=1), "y")
    return g.build()


def test_another_order_and_other_memory_give_the_same_bits() -> None:
    graph = breadth_first()
    exe = compiled(graph)
    plain = compiled(graph, reorder=False, inplace=False)
    assert sorted(exe.plan.order) == list(range(len(exe.kernels)))
    assert exe.plan.order != tuple(range(len(exe.kernels)))
    assert exe.plan.order_proved
    assert exe.plan.lower_bound_bytes < 0.75 * exe.plan.given_bound_bytes
    assert plain.plan.order == tuple(range(len(exe.kernels)))
    assert plain.plan.inplace == ()
    assert exe.plan.arena_bytes < 0.75 * plain.plan.arena_bytes
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((1, 8, 12, 12)).astype(np.float32)
        y = exe(x)
        np.testing.assert_array_equal(y, plain(x))
        np.testing.assert_allclose(y, evaluate(graph, {"x": x})["y"], 1e-5, 1e-6)


def test_kernels_are_listed_in_the_order_in_which_they_run() -> None:
    graph = breadth_first()
    exe, plain = compiled(graph), compiled(graph, reorder=False)
    assert [k.ops for k in exe.kernels] == [plain.kernels[k].ops for k in exe.plan.order]
    rows = exe.profile(rounds=1).rows
    assert len(rows) == len(exe.kernels)


def test_saved_programs_and_second_compilations_run_in_the_same_order(tmp_path: Path) -> None:
    exe = tw.compile(breadth_first())
    assert tw.compile(breadth_first()).plan.order == exe.plan.order
    exe.save(tmp_path / "p.tw")
    again = tw.load(tmp_path / "p.tw")
    assert again.plan.order == exe.plan.order
    x = np.random.default_rng(1).standard_normal((1, 8, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(again(x), exe(x))


def test_the_verifier_knows_a_wrong_order() -> None:
    """Launches before those that they wait for: their operands were never written."""
    exe = compiled(breadth_first())
    plan = exe.plan
    for k in range(1, len(plan.steps)):
        if set(plan.steps[k].reads) & set(plan.steps[k - 1].writes):
            steps, scratch = list(plan.steps), list(plan.scratch)
            steps[k - 1 : k + 1] = steps[k], steps[k - 1]
            scratch[k - 1 : k + 1] = scratch[k], scratch[k - 1]
            with pytest.raises(PlanError, match="never written"):
                replace(plan, steps=tuple(steps), scratch=tuple(scratch)).check()
            return
    raise AssertionError("no step reads what the one before it wrote")


def test_limits_are_met_by_reordering() -> None:
    graph = breadth_first()
    limit = compiled(graph, reorder=False).plan.arena_bytes - 1
    exe = tw.compile(graph, numerics="reproducible", threads=2, memory_limit=limit)
    assert exe.plan.arena_bytes <= limit


def test_rows_and_columns_are_normalised_in_place() -> None:
    """One block of memory where two took turns."""
    g = tw.Graph("turns")
    x = g.input("x", (48, 64))
    for axis in (0, 1, 0, 1):
        x = g.softmax(x, axis=axis)
    g.output(x, "y")
    graph = g.build()
    exe = compiled(graph)
    assert len(exe.plan.inplace) == 2
    assert exe.plan.lower_bound_bytes == 48 * 64 * 4
    assert exe.plan.apart_bound_bytes == 2 * exe.plan.lower_bound_bytes
    values = np.random.default_rng(1).standard_normal((48, 64)).astype(np.float32)
    np.testing.assert_array_equal(exe(values), compiled(graph, inplace=False)(values))


def test_a_plan_can_be_made_without() -> None:
    exe = compiled(breadth_first())
    launches = exe._compilation.launches
    given = [launches[exe.plan.order.index(k)] for k in range(len(launches))]
    made = plan_memory(exe.graph, given, reorder=False, inplace=False)
    assert (made.order, made.inplace) == (tuple(range(len(launches))), ())
