"""The verifier accepts what builders make and says what is wrong with anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.errors import GraphError
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.ir import Blob, Graph, Inside, Op, Role
from tilewright.compiler.graph.verify import NOTHING, _Verifier, verify
from tilewright.ops.types import Layout, SymDim, TensorType, f32, f64

from ...fuzz.graphs import random_graph


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_random_graphs_are_well_formed(seed: int, ops: int) -> None:
    verify(random_graph(seed, ops))


def chain() -> Graph:
    """x -> a -> b -> c -> y, and w."""
    b = GraphBuilder("net")
    v = b.input("x", (2, 3))
    v = b.op("add", v, b.constant(np.ones((2, 3), np.float32), "w"), name="Add_0", out=("a",))
    for n in ("b", "c"):
        v = b.op("relu", v, name=f"node {n}", out=(n,))
    b.output(b.op("transpose", v, out=("y",)))
    return b.build()


def with_blob(g: Graph, name: str, blob: Blob | None) -> Graph:
    blobs = {n: b for n, b in g.blobs.items() if n != name}
    return replace(g, blobs=blobs if blob is None else {**blobs, name: blob})


def change(blob: str, /, **fields: Any) -> Callable[[Graph], Graph]:
    return lambda g: with_blob(g, blob, replace(g.blobs[blob], **fields))


def with_op(k: int, **fields: Any) -> Callable[[Graph], Graph]:
    def edit(g: Graph) -> Graph:
        ops = list(g.ops)
        ops[k] = replace(ops[k], **fields)
        return replace(g, ops=tuple(ops))

    return edit


def lost(name: str) -> Callable[[Graph], Graph]:
    return lambda g: with_blob(g, name, None)


CASES: list[tuple[Callable[[Graph], Graph], str]] = [
    (lambda g: replace(g, inputs=("x", "q")), "there is no blob 'q', which is an input"),
    (lambda g: replace(g, outputs=("q",)), "there is no blob 'q', which is an output"),
    (lambda g: replace(g, outputs=()), "there are no outputs"),
    (lambda g: replace(g, inputs=("x", "x")), "the input 'x' is listed twice"),
    (lambda g: replace(g, inputs=()), "role 'input' but is not among the inputs"),
    (lambda g: replace(g, inputs=("x", "w")), "the input 'w' has the role 'constant'"),
    (change("w", content=None), "the constant 'w': f32[2,3] has no array"),
    (change("w", content=np.ones((3, 2), np.float32)), "holds an array float32[3, 2]"),
    (change("w", content=np.ones((2, 3))), "holds an array float64[2, 3]"),
    (change("a", content=np.ones((2, 3), np.float32)), "which only constants and state may have"),
    (change("a", name="b"), "the blob 'b' stands under the name 'a'"),
    (change("a", type=TensorType(f32, (2, -3))), "has a negative dimension"),
    (change("a", type=TensorType(f32, (2, 3), Layout(2, 8))), "blocked along an axis"),
    (
        change("b", type=TensorType(f64, (2, 3))),
        "relu (node 'node b') of (f32[2,3]): its output 'b' is stored as f64[2,3] but it gives "
        "f32[2,3]",
    ),
    (change("b", role=Role.STATE), "it writes 'b', which has the role 'state'"),
    (lambda g: with_blob(g, "z", Blob("z", TensorType(f32, ()))), "no op writes the blob 'z'"),
    (lost("a"), "it writes 'a', and there is no such blob"),
    (lost("w"), "add (node 'Add_0') of (f32[2,3], ?): it reads 'w', and there is no such blob"),
    (lambda g: replace(g, ops=g.ops[::-1]), "transpose (making 'y') of (f32[2,3]): it reads 'c', "
                                            "which is written only by a later op"),
    (lambda g: replace(g, ops=g.ops[1:]), "it reads 'a', which no op writes"),
    (lambda g: replace(g, ops=(*g.ops, g.ops[1])), "it writes 'b', which is written already"),
    (with_op(1, inputs=("b",)), "it reads 'b', its own result"),
    (with_op(1, outputs=("b", "c")), "it has 2 outputs, not 1"),
    (with_op(1, outputs=()), "it has no outputs"),
    (with_op(1, operator="rellu"), "there is no such operator"),
    (with_op(1, operator="clip", inputs=("a", None)), "absent inputs at the end must be left out"),
    (with_op(1, inputs=("a", "a")), "relu takes 1 inputs, got 2"),
    (with_op(3, attrs=()), "its attributes {} should be {'perm': None}"),
    (with_op(3, attrs=(("perm", (0, 0)),)), "perm [0, 0] does not permute the 2 axes of f32[2,3]"),
    (with_op(3, attrs=(("perm", [1, 0]),)), "do not fit (TypeError: unhashable type"),
    (with_op(3, attrs=(("perm", 1.5),)), "do not fit (TypeError"),
    (with_op(3, attrs=(("prem", None),)), "transpose has no attribute 'prem'"),
    (with_op(1, group=-1), "its group -1 is negative"),
]  # fmt: skip


def test_the_graph_that_is_broken_below_is_fine() -> None:
    verify(chain())


@pytest.mark.parametrize(("edit", "why"), CASES, ids=[w[:40] for _, w in CASES])
def test_what_is_wrong_is_said(edit: Callable[[Graph], Graph], why: str) -> None:
    good = chain()
    for after in (NOTHING, verify(good)):
        with pytest.raises(GraphError) as e:
            verify(edit(good), after)
        assert why in str(e.value)
        assert str(e.value).startswith("graph 'net': ")


def test_what_is_the_same_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    good = chain()
    sound = verify(good)
    seen: list[str] = []
    monkeypatch.setattr(_Verifier, "check_blob", lambda self, name, blob: seen.append(name))
    monkeypatch.setattr(_Verifier, "check_meaning", lambda self, op: seen.append(op.operator))
    verify(good, sound)
    assert seen == []
    verify(change("b", type=TensorType(f32, (3, 2)))(good), sound)
    assert seen == ["b", "relu", "relu"]
    verify(with_op(0, name="other")(good), sound)
    assert seen[3:] == ["add"]


def test_a_graph_that_was_changed_in_place_is_noticed() -> None:
    g = chain()
    sound = verify(g)
    g.blobs["b"] = replace(g.blobs["b"], type=TensorType(f64, (2, 3)))  # type: ignore[index]
    with pytest.raises(GraphError, match="stored as f64"):
        verify(g, sound)


def test_dimensions_of_one_name_have_one_range() -> None:
    blobs = {
        n: Blob(n, TensorType(f32, (SymDim("N", 1, hi),)), Role.INPUT)
        for n, hi in (("x", 8), ("y", 9))
    }
    with pytest.raises(GraphError, match="the dimension 'N' has other bounds in 'y'"):
        verify(Graph("g", ("x", "y"), ("x",), (), blobs))


def test_constants_that_nothing_reads_are_allowed() -> None:
    g = chain()
    verify(with_blob(g, "v", replace(g.blobs["w"], name="v")))


def grouped(*groups: int | None) -> Graph:
    """Groups for the ops a, b, c, y of the chain."""
    g = chain()
    ops = tuple(op.with_group(k) for op, k in zip(g.ops, groups, strict=True))
    return replace(g, ops=ops)


@pytest.mark.parametrize("groups", [(0, 0, 0, 0), (0, 0, 1, 1), (None, 5, 5, None), (3, 1, 1, 2)])
def test_convex_groups_are_fine(groups: tuple[int | None, ...]) -> None:
    verify(grouped(*groups))


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        (
            (0, None, 0, None),
            "group 0 cannot run as one kernel: relu (node 'node b') reads its 'a', then group 0 "
            "reads its 'b'",
        ),
        (
            (None, 1, None, 1),
            "group 1 cannot run as one kernel: relu (node 'node c') reads its 'b', then group 1 "
            "reads its 'c'",
        ),
        (
            (4, 2, 2, 4),
            "group 4 cannot run as one kernel: group 2 reads its 'a', then group 4 reads its 'c'",
        ),
    ],
)
def test_groups_that_need_their_own_result_are_refused(
    groups: tuple[int | None, ...], why: str
) -> None:
    with pytest.raises(GraphError) as e:
        verify(grouped(*groups))
    steps = str(e.value)
    assert why in steps or "group 2 cannot run as one kernel: group 4 reads its 'c'" in steps


def test_groups_that_need_each_other_are_refused() -> None:
    b = GraphBuilder("g")
    x, y = b.input("x", (3,)), b.input("y", (3,))
    p, q = b.relu(x), b.relu(y)
    b.output(b.neg(q))
    b.output(b.neg(p))
    g = b.build()
    crossed = tuple(op.with_group(k) for op, k in zip(g.ops, (0, 1, 0, 1), strict=True))
    with pytest.raises(GraphError, match="cannot run as one kernel"):
        verify(replace(g, ops=crossed))


def test_operators_out_of_order_are_found_however_long_the_graph() -> None:
    ops = tuple(Op("relu", (f"v{k}",), (f"v{k + 1}",)) for k in range(2000))
    blobs = {f"v{k}": Blob(f"v{k}", TensorType(f32, (1,))) for k in range(2001)}
    blobs["v0"] = replace(blobs["v0"], role=Role.INPUT)
    g = Graph("long", ("v0",), ("v2000",), tuple(op.with_group(0) for op in ops), blobs)
    verify(g)
    with pytest.raises(GraphError, match="written only by a later op"):
        verify(replace(g, ops=ops[::-1]))


def joined(**places: tuple[Layout, Inside | None]) -> Graph:
    """[p, q] joined to w, of which v is cut again; `places` say otherwise for some of them."""
    b = GraphBuilder("joined")
    x = b.input("x", (2, 16, 4))
    p = b.op("exp", x, out=("p",))
    q = b.op("concat", x, x, axis=1, out=("q",))
    w = b.op("concat", p, q, axis=1, out=("w",))
    v = b.op("slice", w, starts=(16,), ends=(32,), axes=(1,), out=("v",))
    b.output(b.op("reduce_max", v, out=("y",)))
    g = b.build()
    order = Layout(1, 16)
    part = order.part(1, 48)
    chosen = {
        "p": (part, Inside("w", 0)), "q": (part, Inside("w", 16)), "w": (order, None),
        "v": (part, Inside("w", 16)), **places,
    }  # fmt: skip
    blobs = {
        n: replace(b, type=b.type.with_layout(chosen[n][0]), inside=chosen[n][1])
        if n in chosen else b for n, b in g.blobs.items()
    }  # fmt: skip
    return replace(g, blobs=blobs)


def test_parts_are_well_formed() -> None:
    verify(joined())
    verify(joined(v=(Layout(1, 16), None)))


@pytest.mark.parametrize(
    ("message", "name", "layout", "inside"),
    [
        ("is a part of nothing", "p", Layout(1, 16, 1, 48), None),
        ("is in a blob, but is no part", "p", Layout(1, 16), Inside("w", 0)),
        ("along an axis that it does not have", "p", Layout(1, 16, 3, 48), Inside("w", 0)),
        ("no such blob", "p", Layout(1, 16, 1, 48), Inside("nobody", 0)),
        ("neither is made of the other", "v", Layout(1, 16, 1, 48), Inside("q", 0)),
        ("does not look like a part", "p", Layout(0, 0, 1, 48), Inside("w", 0)),
        ("does not look like a part", "p", Layout(1, 16, 2, 4), Inside("w", 0)),
        ("it leaves", "p", Layout(1, 16, 1, 64), Inside("w", 0)),
        ("it leaves", "q", Layout(1, 16, 1, 48), Inside("w", 32)),
        ("whole blocks", "v", Layout(1, 16, 1, 48), Inside("w", 8)),
        ("only intermediate results", "y", Layout(0, 0, 0, 4), Inside("v", 0)),
    ],
)
def test_faults_of_parts(message: str, name: str, layout: Layout, inside: Inside | None) -> None:
    with pytest.raises(GraphError, match=message):
        verify(joined(**{name: (layout, inside)}))
