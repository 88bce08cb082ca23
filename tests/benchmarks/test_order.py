"""The comparison of orders: what it prints, and the networks that it is about."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tilewright.compiler.api.build import choose, link, optimise
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.options import options
from tilewright.compiler.store import Store

from .scripts import script

models, order = map(script, ("models", "order"))


def compiled(graph: Graph, **switches: bool) -> Executable:
    """With NaN in the arena before every call."""
    target, chosen = host(), replace(options(threads=2, **switches), poison=True)
    stages = optimise(graph, target, chosen, 0.0)
    made = choose(stages, target, chosen)
    return link(made, Store(), None, read=0.0, passes=0.0, kernels=0.0)


def test_a_line_has_every_bound(capsys: pytest.CaptureFixture[str]) -> None:
    program = order.random_graph(random.Random(12), 12)
    order.report("random", program)
    name, kernels, apart, given, lowest, proved, *_, others = capsys.readouterr().out.split()
    assert (name, kernels, proved) == ("random", "12", "yes")
    assert float(lowest) == float(others) < float(given) == float(apart)
    assert round(program.bound() / 2**20, 3) == float(given)


def test_an_order_by_depth_keeps_dependencies() -> None:
    program = order.random_graph(random.Random(1), 30)
    for other in (program.breadth_first(), program.shuffled(random.Random(2))):
        written: set[str] = {"x"}
        for step in other.steps:
            assert written.issuperset(step.reads)
            written.update(step.writes)
        assert sorted(s.name for s in other.steps) == sorted(s.name for s in program.steps)


def test_copies_and_what_takes_new_memory_are_listed() -> None:
    lines = order.sharing(analyse(models.path("shufflenet")))
    assert "in place of an operand" in lines[0]
    assert any("apart" in line and "depthwise_conv" in line for line in lines)
    lines = order.sharing(analyse(models.path("squeezenet")))
    assert not any("copies" in line for line in lines), "concatenations are written in place"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v1", "inception_v2"])
def test_branches_of_inception_in_another_order(name: str) -> None:
    """Behind the stem, which sets the bound of the whole network, the branches do."""
    graph = order.from_fork(analyse(models.path(name)).source)
    exe, plain = compiled(graph), compiled(graph, reorder=False, inplace=False)
    assert exe.plan.order_proved
    assert exe.plan.lower_bound_bytes < exe.plan.given_bound_bytes
    assert exe.plan.arena_bytes < plain.plan.arena_bytes
    x = np.random.default_rng(5).standard_normal(exe.inputs[0].shape).astype(np.float32)
    np.testing.assert_array_equal(exe(x), plain(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_networks_compute_the_same_bits_in_place(name: str) -> None:
    graph, feeds = analyse(models.path(name)).source, models.sample(name)
    found = compiled(graph).run(feeds)
    for output, y in compiled(graph, reorder=False, inplace=False).run(feeds).items():
        np.testing.assert_array_equal(found[output], y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v1", "inception_v2", "densenet121", "resnet50"])
def test_no_order_of_these_networks_needs_less(name: str) -> None:
    """Whatever order the model is written in."""
    c = analyse(models.path(name))
    assert c.plan.order_proved
    program = order.Program.of(c)
    for other in (program.breadth_first(), program.shuffled(random.Random(3))):
        found = order.reorder(other.steps, other.buffers, alignment=order.ALIGNMENT)
        assert (found.bound, found.proved) == (c.plan.lower_bound_bytes, True)
