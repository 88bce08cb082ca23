"""Times of launches as times of a model's nodes, operators and scopes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx import TensorProto, helper

import tilewright as tw
from tilewright.compiler.inspect.profile import ProfileRow
from tilewright.compiler.inspect.rollup import by_node, by_operator, by_scope, parts, rollup_table


def row(seconds: float, *nodes: str, flops: int = 0) -> ProfileRow:
    return ProfileRow("kernel", "nest", " + ".join(nodes), (), seconds, seconds / 10e-6, flops,
                      flops, 1000, seconds / 2, 0.0, "L1", "L1", nodes=nodes)  # fmt: skip


def test_parts_are_the_smallest_sets_that_share_no_launch() -> None:
    found = parts([("a", "b"), ("c",), ("b", "d"), (), ("e",), ("e",), ()])
    assert [(p.nodes, p.launches) for p in found] == [
        (("a", "b", "d"), (0, 2)), (("c",), (1,)), ((), (3,)), (("e",), (4, 5)), ((), (6,)),
    ]  # fmt: skip


def test_no_time_is_lost_or_counted_twice() -> None:
    rows = [row(1e-6, "a", "b"), row(2e-6, "b"), row(3e-6, "c", flops=6000), row(4e-6)]
    found = by_node(rows)
    assert [(r.what, r.launches) for r in found] == [("kernel", 1), ("a + b", 2), ("c", 1)]
    assert sum(r.seconds for r in found) == pytest.approx(10e-6)
    assert sum(r.share for r in found) == pytest.approx(1)
    assert found[2].gflops == pytest.approx(2) and found[2].of_limit == pytest.approx(0.5)


def test_operators_are_those_of_the_model_not_what_they_were_made_into() -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 8]) for n in "xy")
    nodes = [helper.make_node("Softmax", ["x"], ["y"], name="s")]
    model = helper.make_model(helper.make_graph(nodes, "net", [x], [y]), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])  # fmt: skip
    exe = tw.compile(model, threads=1)
    assert isinstance(exe, tw.Executable)
    assert len(exe.graph.ops) > 1  # several ops for one node
    (found,) = by_operator([row(1e-6, "s")], exe.stages[0].graph)
    assert found.what == "softmax"
    (nameless,) = by_operator([replace(row(1e-6), operators=("exp", "div"))], exe.stages[0].graph)
    assert nameless.what == "exp + div"


def test_a_part_belongs_to_what_its_nodes_have_in_common() -> None:
    rows = [row(1e-6, "/net/a/x"), row(2e-6, "/net/a/b/y", "/net/a/z"), row(3e-6, "/net/b/x"),
            row(1.5e-6, "/net/a/x2", "/net/b/y"), row(2.5e-6, "plain")]  # fmt: skip
    assert {r.what: r.seconds for r in by_scope(rows, 2)} == pytest.approx(
        {"/net/a": 3e-6, "/net/b": 3e-6, "/net": 1.5e-6, "/": 2.5e-6}
    )
    assert {r.what for r in by_scope(rows, 1)} == {"/net", "/"}


def test_names_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in rollup_table(by_node([row(1e-6, "a\x1b[31m")]), "nodes")
