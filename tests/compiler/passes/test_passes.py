"""Passes keep what a graph computes, take their fuel, and leave alone what they must not touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.errors import GraphError
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Array, Graph, Role
from tilewright.compiler.graph.text import to_text
from tilewright.compiler.graph.verify import verify
from tilewright.compiler.passes.base import Fuel, OptionalPass, Pass, run_pipeline
from tilewright.compiler.passes.canonicalize import Canonicalize
from tilewright.compiler.passes.channel_order import ChannelOrder
from tilewright.compiler.passes.cse import CommonSubexpressions
from tilewright.compiler.passes.dce import DeadCode
from tilewright.compiler.passes.decompose import Decompose, is_composite
from tilewright.compiler.passes.fold_constants import FoldConstants
from tilewright.compiler.passes.fold_scales import FoldScales
from tilewright.compiler.passes.resampling import SeparateAxes
from tilewright.ops.operator import REGISTRY
from tilewright.ops.samples import cases
from tilewright.ops.types import f32

from ...fuzz.graphs import in_float64, random_feeds, random_graph

ALL: list[Pass] = [
    Decompose(),
    Canonicalize(),
    FoldConstants(),
    CommonSubexpressions(),
    DeadCode(),
    FoldScales(),
    ChannelOrder(),
    SeparateAxes(),
]
OPTIONAL = [p for p in ALL if isinstance(p, OptionalPass)]
ids = [p.name for p in ALL]


def worst(a: Graph, b: Graph, feeds: dict[str, Array]) -> float:
    """The largest difference of outputs, relative to each output's largest element."""
    before, after = evaluate(a, feeds), evaluate(b, feeds)
    assert list(before) == list(after)
    out = 0.0
    for n, x in before.items():
        assert a.type(n) == b.type(n)
        out = max(out, float(np.abs(after[n] - x).max() / max(np.abs(x).max(), 1e-30)))
    return out


@pytest.mark.parametrize("p", ALL, ids=ids)
@given(seed=st.integers(0, 100_000), ops=st.integers(3, 40))
def test_each_pass_keeps_the_results(p: Pass, seed: int, ops: int) -> None:
    # in float64 nothing but a mistake can make a difference
    graph = in_float64(random_graph(seed, ops))
    result, (stage,) = run_pipeline([p], graph)
    assert stage.name == p.name
    assert result.inputs == graph.inputs
    assert worst(graph, result, random_feeds(graph, seed)) < 1e-9


@given(seed=st.integers(0, 100_000), ops=st.integers(5, 60))
def test_all_passes_together_keep_the_results(seed: int, ops: int) -> None:
    graph = random_graph(seed, ops)
    result, stages = run_pipeline([*ALL, *ALL], graph)
    # constants are rounded to float32, which badly conditioned graphs magnify
    assert worst(graph, result, random_feeds(graph, seed)) < 1e-4
    assert len(stages) == 2 * len(ALL)
    assert not any(is_composite(op.definition) for op in result.ops)


@pytest.mark.parametrize("p", OPTIONAL, ids=[p.name for p in OPTIONAL])
@given(seed=st.integers(0, 100_000), left=st.integers(0, 12))
def test_any_amount_of_fuel_gives_a_right_graph(p: OptionalPass, seed: int, left: int) -> None:
    graph = in_float64(random_graph(seed, 20))
    fuel = Fuel(left)
    result = p.run(graph, fuel)
    verify(result)
    assert worst(graph, result, random_feeds(graph, seed)) < 1e-9
    used = left - (fuel.left or 0)
    assert bool(used) == bool(fuel.last)
    if used == 0:
        assert DeadCode().run(result).ops == DeadCode().run(graph).ops


@pytest.mark.parametrize("p", [*OPTIONAL, Decompose()], ids=lambda p: p.name)
@given(seed=st.integers(0, 100_000))
def test_a_second_run_changes_nothing(p: Pass, seed: int) -> None:
    once, _ = run_pipeline([p, DeadCode()], random_graph(seed, 20))
    _, (stage, _) = run_pipeline([p, DeadCode()], once)
    assert not stage.changed or to_text(DeadCode().run(stage.graph)) == to_text(once)


# --------------------------------------------------------------------------- pipeline


@dataclass(frozen=True)
class Spoil(OptionalPass):
    def run(self, graph: Graph, fuel: Fuel = Fuel()) -> Graph:  # noqa: B008
        assert fuel.take("spoil: everything")
        return replace(graph, ops=graph.ops[1:])


def two_ops() -> Graph:
    b = GraphBuilder("two")
    b.output(b.neg(b.exp(b.input("x", (3,)))), "y")
    return b.build()


def test_names_of_passes() -> None:
    assert ids == [
        "decompose",
        "canonicalize",
        "fold_constants",
        "common_subexpressions",
        "dead_code",
        "fold_scales",
        "channel_order",
        "separate_axes",
    ]


def test_stages_keep_every_graph() -> None:
    g = two_ops()
    result, stages = run_pipeline([DeadCode(), Canonicalize()], g)
    assert [(s.name, s.changed) for s in stages] == [("dead_code", False), ("canonicalize", True)]
    assert stages[0].graph is g
    assert stages[1].graph is result
    assert all(s.milliseconds >= 0 for s in stages)


def test_a_broken_graph_names_the_pass_and_the_last_rewrite() -> None:
    with pytest.raises(GraphError) as e:
        run_pipeline([Spoil()], two_ops(), Fuel(3))
    assert "the pass spoil broke the graph" in str(e.value)
    assert "TILEWRIGHT_FUEL" in str(e.value) and "spoil: everything" in str(e.value)


def test_a_broken_graph_that_is_given_is_no_fault_of_a_pass() -> None:
    g = two_ops()
    with pytest.raises(GraphError) as e:
        run_pipeline([DeadCode()], replace(g, ops=g.ops[1:]))
    assert "the pass" not in str(e.value)


def test_fuel() -> None:
    fuel = Fuel(2)
    assert [fuel.take(w) for w in "abc"] == [True, True, False]
    assert (fuel.left, fuel.last) == (0, "b")
    assert all(Fuel().take("x") for _ in range(5))


# --------------------------------------------------------------------------- decompose


def test_operators_with_expressions_or_templates_stay() -> None:
    assert is_composite(REGISTRY["softmax"])
    assert not is_composite(REGISTRY["relu"])
    assert not is_composite(REGISTRY["conv"])
    assert not is_composite(REGISTRY["batch_normalization"])


@pytest.mark.parametrize("name", sorted(n for n, d in REGISTRY.items() if is_composite(d)))
def test_every_composite_operator_ends_in_others(name: str) -> None:
    tried = 0
    for case in cases(REGISTRY[name], f32):
        b = GraphBuilder("one")
        arrays = [x for x in case.inputs if x is not None]
        values = iter([b.input(f"x{k}", x.shape, x.dtype) for k, x in enumerate(arrays)])
        ins = [None if x is None else next(values) for x in case.inputs]
        try:
            out = b.op(name, *ins, name="node", source=("a", "b"), **case.attrs)
        except GraphError:
            continue
        for v in out if isinstance(out, tuple) else (out,):
            b.output(v)
        graph = b.build()
        result, _ = run_pipeline([Decompose()], graph)
        assert not any(is_composite(op.definition) for op in result.ops)
        assert {op.source for op in result.ops if op.operator != "identity"} <= {("a", "b")}
        tried += 1
    assert tried


# --------------------------------------------------------------------------- what must stay


def built(make: Callable[[GraphBuilder, Value], Value], *shape: int, dtype: str = "f32") -> Graph:
    b = GraphBuilder("g")
    b.output(make(b, b.input("x", shape or (2, 3), dtype)), "y")
    return b.build()


def operators(graph: Graph) -> list[str]:
    return [op.operator for op in graph.ops]


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda b, x: b.add(x, np.float32(0.0)), ["add"]),  # turns -0.0 into 0.0
        (lambda b, x: b.mul(x, np.ones((4, 1, 1), np.float32)), ["mul"]),  # broadcasts
        (lambda b, x: b.div(x, np.float32(3)), ["div"]),
        (lambda b, x: b.div(x, np.float32(2.0**-149)), ["div"]),  # 2**149 is no float32
        (lambda b, x: b.div(x, np.array([2, 3, 4], np.float32)), ["div"]),
        (lambda b, x: b.pow(x, np.array([2, 3, 2], np.float32)), ["pow"]),
        (lambda b, x: b.div(np.float32(4), x), ["div"]),
        (lambda b, x: b.sub(np.float32(4), x), ["sub"]),
        (lambda b, x: b.slice(x, starts=(-1,), ends=(-99,), steps=(-1,)), ["slice"]),
        (lambda b, x: b.pad(x, pads=(1, 0, -1, 0)), ["pad"]),
        (lambda b, x: b.transpose(b.relu(b.transpose(x))), ["transpose", "relu", "transpose"]),
        (lambda b, x: b.mean(x, x), ["add", "mul"]),
        (lambda b, x: b.exp(b.div(x, np.float32(3))), ["div", "exp"]),  # multiplies the error
        (lambda b, x: b.erf(b.div(np.float32(3), x)), ["div", "erf"]),
        (lambda b, x: b.erf(b.div(x, np.array([[0], [3]], np.float32))), ["div", "erf"]),
        (lambda b, x: b.erf(b.div(x, np.float32(1e-39))), ["div", "erf"]),  # few digits
        (lambda b, x: b.identity(x), ["identity"]),  # the output needs a name of its own
    ],
)
def test_what_canonicalization_leaves(
    make: Callable[[GraphBuilder, Value], Value], left: list[str]
) -> None:
    result, _ = run_pipeline([Canonicalize(), DeadCode()], built(make))
    assert operators(result) == left


@pytest.mark.parametrize("function", ["erf", "tanh"])
@pytest.mark.parametrize("divisor", [np.float32(2**0.5), np.array([3, -7, 1e30], np.float32)])
def test_division_before_a_bounded_function_becomes_a_product(
    function: str, divisor: np.ndarray
) -> None:
    def made(b: GraphBuilder, x: Value) -> Value:
        return getattr(b, function)(b.div(x, divisor))

    result, _ = run_pipeline([Canonicalize(), DeadCode()], built(made))
    assert operators(result) == ["mul", function]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    [got], [want] = (list(evaluate(g, {"x": x}).values()) for g in (result, built(made)))
    # 1 / c rounds by half a unit; f moves by no more than its argument, relative to its size
    np.testing.assert_allclose(got, want, rtol=2.0**-24)


@pytest.mark.parametrize("first", [True, False])
def test_scales_of_both_operands_move_behind_a_product(first: bool) -> None:
    def made(b: GraphBuilder, x: Value) -> Value:
        root = np.array([0.3], np.float32)
        right = b.transpose(x, perm=(1, 0))
        left = b.mul(root, x) if first else b.mul(x, root)
        return b.matmul(left, b.mul(right, root))

    result, _ = run_pipeline([Canonicalize(), DeadCode()], built(made))
    assert operators(result) == ["transpose", "matmul", "mul", "mul"]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    [got], [want] = (list(evaluate(g, {"x": x}).values()) for g in (result, built(made)))
    np.testing.assert_allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize("perm", [(2, 0, 1), None])
@pytest.mark.parametrize("axis", [0, -1])
def test_parts_of_a_transposed_blob_are_transposed_apart(
    perm: tuple[int, ...] | None, axis: int
) -> None:
    def made(also: bool) -> Graph:
        b = GraphBuilder("g")
        moved = b.transpose(b.input("x", (4, 6, 8)), perm=perm)
        half = moved.type.dims[axis] // 2
        for k, part in enumerate(b.split(moved, axis=axis, split=(half, half))):
            b.output(b.exp(part), f"y{k}")
        if also:
            b.output(b.relu(moved), "z")
        return b.build()

    result, _ = run_pipeline([Canonicalize(), DeadCode()], made(False))
    assert sorted(operators(result)) == ["exp", "exp", "split", "transpose", "transpose"]
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    got, want = (evaluate(g, {"x": x}) for g in (result, made(False)))
    for name, y in want.items():
        np.testing.assert_array_equal(got[name], y)
    result, _ = run_pipeline([Canonicalize(), DeadCode()], made(True))
    assert operators(result).count("transpose") == 1, "something reads all of it"


@pytest.mark.parametrize("scale", [np.float32(0), np.float32(1e-30), np.float32([1, 2, 3])])
def test_scales_that_stay_before_a_product(scale: np.ndarray) -> None:
    def made(b: GraphBuilder, x: Value) -> Value:
        return b.matmul(b.mul(x, scale), b.transpose(x, perm=(1, 0)))

    result, _ = run_pipeline([Canonicalize(), DeadCode()], built(made))
    assert operators(result)[-1] == "matmul"


def test_integer_powers_keep_their_operator() -> None:
    graph = built(lambda b, x: b.pow(x, np.int64(2)), dtype="i64")
    assert operators(Canonicalize().run(graph)) == ["pow"]


def test_a_mask_that_is_read_is_made() -> None:
    b = GraphBuilder("g")
    y, mask = b.dropout(b.input("x", (2, 3)))
    b.output(b.where(mask, y, np.float32(0)), "y")
    result, _ = run_pipeline([Canonicalize(), DeadCode()], b.build())
    assert operators(result) == ["constant_of_shape", "where"]


def test_state_is_not_folded() -> None:
    g = built(lambda b, x: b.add(b.neg(b.constant(np.float32(2), "s")), x))
    blobs = {**g.blobs, "s": replace(g.blobs["s"], role=Role.STATE)}
    assert operators(FoldConstants().run(replace(g, blobs=blobs))) == operators(g)
    assert operators(FoldConstants().run(g)) != operators(g)


def test_large_results_are_not_folded_unless_their_inputs_are_as_large() -> None:
    big = np.arange(1000, dtype=np.float32)
    outer = built(lambda b, x: b.reduce_sum(b.mul(b.constant(big[:, None]), big) + x), 1, 1)
    assert "mul" in operators(FoldConstants(max_bytes=1000).run(outer))
    negated = built(lambda b, x: b.add(b.neg(b.constant(big)), x), 1)
    assert "neg" not in operators(FoldConstants(max_bytes=1000).run(negated))


def test_indices_out_of_range_are_left_to_the_kernel() -> None:
    graph = built(lambda b, x: b.add(b.gather(b.constant(np.ones(3, np.float32)), np.int64(7)), x))
    assert "gather" in operators(FoldConstants().run(graph))


def test_attributes_of_other_types_are_not_common() -> None:
    b = GraphBuilder("g")
    x = b.input("x", (3,))
    for alpha in (0.0, -0.0):
        b.output(b.leaky_relu(x, alpha=alpha))
    assert operators(CommonSubexpressions().run(b.build())) == ["leaky_relu", "leaky_relu"]


W = np.ones((4, 3, 1, 1), np.float32)
C = np.full((4, 1, 1), 2, np.float32)


@pytest.mark.parametrize(
    ("make", "folds"),
    [
        (lambda b, x: b.mul(b.conv(x, W), C), True),
        (lambda b, x: b.mul(C, b.conv(x, W)), True),
        (lambda b, x: b.div(C, b.conv(x, W)), False),
        (lambda b, x: b.mul(b.conv(x, W), np.ones((4, 5, 1), np.float32)), False),
        (lambda b, x: b.mul(b.conv(x, W), np.ones((2, 4, 1, 1), np.float32)), False),
        (lambda b, x: b.mul(b.conv(x, W), np.ones((1, 1, 1, 1, 1), np.float32)), False),
        (lambda b, x: b.div(b.conv(x, W), np.float32(0)), False),  # weights would be infinite
        (lambda b, x: b.mul(b.conv(x, W), b.reduce_max(x)), False),  # no constant
        (lambda b, x: b.mul(b.conv(x, b.relu(b.constant(W))), C), False),  # weights are none yet
        (lambda b, x: b.mul(b.conv(x, W, b.reduce_max(x, keepdims=0) * C[:, 0, 0]), C),
         False),
        (lambda b, x: b.add(b.matmul(x, np.ones((5, 4), np.float32)), np.float32(1)), False),
        (lambda b, x: b.mul(b.matmul(x, np.ones((5, 4), np.float32)), np.float32(2)), True),
        (lambda b, x: b.mul(b.matmul(np.ones((4, 5), np.float32), x), np.float32(2)), False),
        (lambda b, x: b.mul(b.matmul(x, np.ones(5, np.float32)), np.float32(2)), False),
        (lambda b, x: b.mul(b.relu(x), np.float32(2)), False),
    ],
)  # fmt: skip
def test_where_scales_fold(make: Callable[[GraphBuilder, Value], Value], folds: bool) -> None:
    graph = built(make, 1, 3, 5, 5)
    result = FoldScales().run(graph)
    assert (len(result.ops) < len(graph.ops)) == folds
    with np.errstate(invalid="ignore"):
        assert not worst(graph, result, random_feeds(graph, 0)) > 1e-6


def test_results_that_are_outputs_or_read_twice_do_not_fold() -> None:
    b = GraphBuilder("g")
    c = b.conv(b.input("x", (1, 3, 5, 5)), W)
    b.output(c, "seen")
    b.output(b.mul(c, C), "y")
    b.output(b.neg(b.mul(c, C)), "z")
    assert FoldScales().run(b.build()) is not None
    assert operators(FoldScales().run(b.build())).count("mul") == 2
