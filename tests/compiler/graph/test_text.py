"""Graphs print as text that parses back to the same graph."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.errors import TextError
from tilewright.compiler.graph.builder import GraphBuilder, rename_blobs
from tilewright.compiler.graph.ir import Array, Blob, Graph, Inside, Role
from tilewright.compiler.graph.text import parse, to_text
from tilewright.compiler.graph.verify import verify
from tilewright.ops.types import Layout, SymDim, TensorType, f32

from ...fuzz.graphs import random_graph

NASTY = [
    '__import__("os")',
    "a b",
    '"',
    "\n",
    "%x",
    "as",
    "",
    "1",
    "é",
    "# model: x",
    "\ud800",
    "_",
]


def arrays(graph: Graph) -> dict[str, Array]:
    return {n: b.value for n, b in graph.blobs.items() if b.value is not None}


def assert_equal(a: Graph, b: Graph) -> None:
    assert (a.name, a.inputs, a.outputs, a.ops) == (b.name, b.inputs, b.outputs, b.ops)
    assert a.blobs.keys() == b.blobs.keys()
    for n, x in a.blobs.items():
        y = b.blobs[n]
        assert (x.name, x.type, x.role, x.digest()) == (y.name, y.type, y.role, y.digest())
    assert a.structural_key() == b.structural_key()


def disguise(graph: Graph, pick: random.Random, names: list[str]) -> Graph:
    """The graph under other names, with roles, sources and groups that the generator leaves out."""
    fresh = dict.fromkeys([*names, *(f"b{k}" for k in range(len(graph.blobs)))])
    chosen = pick.sample(list(fresh), len(graph.blobs))
    graph = rename_blobs(graph, dict(zip(graph.blobs, chosen, strict=True)))
    ops = []
    for op in graph.ops:
        name = pick.choice([*names, op.name])
        source = pick.choice([(), (name,), tuple(pick.choices(names, k=2))])
        ops.append(replace(op, name=name, source=source, group=pick.choice([None, None, 0, 1, 7])))
    blobs = {
        n: replace(b, role=pick.choice([Role.CONSTANT, Role.PARAMETER, Role.STATE]))
        if b.value is not None else b
        for n, b in graph.blobs.items()
    }  # fmt: skip
    return replace(graph, name=pick.choice(names), ops=tuple(ops), blobs=blobs)


@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.lists(st.text(max_size=6) | st.sampled_from(NASTY), min_size=2, max_size=12),
)
def test_random_graphs_come_back(seed: int, ops: int, names: list[str]) -> None:
    graph = disguise(random_graph(seed, ops), random.Random(seed), names)
    text = to_text(graph)
    again = parse(text, arrays(graph))
    assert_equal(again, graph)
    assert to_text(again) == text


@given(st.integers(0, 10_000), st.data())
def test_damaged_text_is_never_anything_but_a_text_error(seed: int, data: st.DataObject) -> None:
    graph = random_graph(seed, 4)
    text = to_text(graph)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 9))
    put = data.draw(st.text(max_size=3) | st.sampled_from(["{", "]", "%", '"', ",", "-1", "inf"]))
    try:
        parse(text[:at] + put + text[at + cut :], arrays(graph))
    except TextError as e:
        assert "line " in str(e) and "^" in str(e)


def small() -> Graph:
    b = GraphBuilder("net")
    x = b.input("x", (1, 3, 8, 8))
    w = b.parameter("w", np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3))
    bias = b.constant(np.array([0.5, -1, 0, 1e-20], np.float32), "b")
    c = b.op("conv", x, w, bias, name="Conv_0", strides=(2, 2), pads=(1, 1, 1, 1))
    y = b.op("relu", c, name="r", source=("Relu_1", "b"), out=("y",))
    b.output(y)
    g = b.build()
    return replace(g, ops=tuple(op.with_group(3) for op in g.ops))


LOOK = """\
graph net(%x: f32[1,3,8,8]) -> (%y: f32[1,4,4,4]) {
  param @w: f32[4,3,3,3] = sha256:87ddbe1e06ea8fcd
  const @b: f32[4] = [0.5, -1.0, 0.0, 1e-20]
  group 3 {
    %Conv_0 = conv(%x, @w, @b) {strides=[2, 2], pads=[1, 1, 1, 1]} : f32[1,4,4,4]  # model: Conv_0
    %y = relu(%Conv_0)                                   : f32[1,4,4,4]  # model: Relu_1 + b as r
  }
}
"""


def test_the_look() -> None:
    assert to_text(small()) == LOOK


def test_groups_that_are_scattered_are_marked() -> None:
    b = GraphBuilder("g")
    v = b.input("x", (3,))
    for _ in range(3):
        v = b.relu(v)
    b.output(v)
    g = b.build()
    groups = zip(g.ops, (7, None, 7), strict=True)
    g = replace(g, ops=tuple(op.with_group(k) for op, k in groups))
    assert "group 7" not in to_text(g)
    assert to_text(g).count("group=7") == 2
    assert_equal(parse(to_text(g)), g)


def test_attributes_keep_the_type_that_their_default_has_not() -> None:
    b = GraphBuilder("g")
    b.output(b.reshape(b.input("x", (3,)), shape=(3, 1), allowzero=False))
    g = b.build()
    assert repr(parse(to_text(g)).ops) == repr(g.ops)


def test_absent_inputs_and_several_outputs() -> None:
    b = GraphBuilder("g")
    x = b.input("x", (4, 6))
    top = b.constant(np.float32(1))
    first, second = b.split(b.clip(x, None, top), split=(1, 3))
    b.output(first)
    b.output(second)
    text = to_text(b.build())
    assert "clip(%x, _, @c)" in text
    assert "%split, %split_1 = split(%clip) {split=[1, 3]}" in text
    assert_equal(parse(text), b.build())


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38], np.float32),
        np.array([0.1, 1e-310], np.float64),
        np.array([6e-8, 65504], np.float16),
        np.array([[True, False]]),
        np.array([-(1 << 63), (1 << 63) - 1]),
        np.array([(1 << 64) - 1], np.uint64),
        np.zeros((2, 0), np.int8),
        np.broadcast_to(np.float32(1.1), (1000, 1000)),
        np.broadcast_to(np.int64(-3), (1,)),
    ],
)
def test_small_constants_and_splats_print_in_full(value: Array) -> None:
    b = GraphBuilder("g")
    x = b.constant(value, "x")
    b.output(b.identity(x), "y")
    text = to_text(b.build())
    assert "sha256" not in text
    again = parse(text)
    assert again.blobs["x"].value is not None
    assert again.blobs["x"].value.tobytes() == np.asarray(value).tobytes()
    assert_equal(again, b.build())


def test_what_text_cannot_say_goes_by_hash() -> None:
    odd_nan = np.array([0x7FC00001], np.uint32).view(np.float32)
    b = GraphBuilder("g")
    b.output(b.identity(b.constant(odd_nan, "x")), "y")
    text = to_text(b.build())
    assert "sha256" in text
    assert_equal(parse(text, {"x": odd_nan}), b.build())


def test_symbolic_dimensions_layouts_and_state() -> None:
    dims = (SymDim("batch size", 1, 8), SymDim("n", 2), SymDim("free"), 3)
    blobs = {
        "x": Blob("x", TensorType(f32, dims, Layout(3, 16)), Role.INPUT),
        "s": Blob("s", TensorType(f32, (2,)), Role.STATE),
    }
    graph = Graph("g", ("x",), ("x", "s"), (), blobs)
    text = to_text(graph)
    assert text.startswith('dim "batch size" in 1..8\ndim n in 2..\ngraph g(')
    assert_equal(parse(text), graph)


def test_parts_say_where_they_lie() -> None:
    text = """graph g(%x: f32[1,4]) -> (%y: f32[1,9]) {
  %a = exp(%x)                                         : f32[1,4]@1/9 in %"the whole"+0
  %b = pad(%x) {pads=[0, 0, 0, 1]}                     : f32[1,5]@1/9 in %"the whole"+4
  %"the whole" = concat(%a, %b) {axis=1}               : f32[1,9]
  %y = neg(%"the whole")                               : f32[1,9]
}
"""
    graph = parse(text)
    assert graph.blobs["b"].inside == Inside("the whole", 4)
    assert graph.type("b").layout == Layout(0, 0, 1, 9)
    assert to_text(graph) == text
    for wrong in ("f32[1,4]@1/9 in %a", "f32[1,4]@1/9 in 4", "f32[1,4]@2/9", "f32[1,4]@1/0"):
        with pytest.raises(TextError):
            parse(text.replace('f32[1,4]@1/9 in %"the whole"+0', wrong))


def test_long_headers_take_a_line_per_value() -> None:
    b = GraphBuilder("g")
    for k in range(9):
        b.input(f"a_rather_long_name_{k}", (1, 2, 3, 4))
    b.output(b.relu(b.blobs and b.op("relu", np.zeros(3, np.float32))), "y")
    text = to_text(b.build())
    assert max(map(len, text.splitlines())) < 100
    assert_equal(parse(text), b.build())


def test_comments_and_blanks_mean_nothing() -> None:
    text = to_text(small())
    spread = text.replace(" ", "  ").replace("group", "# a comment\n  group").replace(":  ", ":\t")
    spread = spread.replace("  #  model:\t", "# model: ")
    assert_equal(parse(spread, arrays(small())), small())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("conv(", "conw(", "line 5, column 15: there is no operator 'conw'; did you mean conv?"),
        ("strides=", "stride=", "conv has no attribute 'stride'"),
        ("pads=[1, 1, 1, 1]", "strides=[1]", "the attribute 'strides' is given twice"),
        ("pads=[1", "pads=[-1", "conv: "),
        ("relu(%Conv_0)", "relu(%Conv_1)", "no blob 'Conv_1' is defined before this; did you mean"),
        ("relu(%Conv_0)", "relu(@Conv_0)", "'Conv_0' has the role 'intermediate': write %Conv_0"),
        ("%y = relu", "%x = relu", "the blob 'x' is defined twice"),
        ("%y = relu", "%y, %z = relu", "relu has 1 outputs, not 2"),
        ("%y: f32[1,4,4,4]", "%y: f32[1,4,4,5]", "the output is f32[1,4,4,4]"),
        ("%y: f32[1,4,4,4]", "%w: f32[1,4,4,4]", "'w' has the role 'parameter': write @w"),
        ("  : f32[1,4,4,4]", "  : f32[1,4,4]", "relu gives f32[1,4,4,4]"),
        ("sha256:87", "sha256:zz", "has the hash 87ddbe1e06ea8fcd"),
        ("f32[4,3,3,3]", "f32[4,3,9]", "the array given in `constants` is float32[4, 3, 3, 3]"),
        ("[0.5, -1.0, 0.0, 1e-20]", "[0.5, -1.0]", "f32[4] has 4 elements, here are 2"),
        ("[0.5, -1.0, 0.0, 1e-20]", "[0, 0, 0, True]", "True is no element of f32"),
        ("+ b as r", "a", "expected node names with '+' between"),
        ("group 3 {", "group x {", "expected the group's number"),
        ("param @w", "param @x", "the blob 'x' is defined twice"),
    ],
)
def test_errors_say_where_and_why(old: str, new: str, why: str) -> None:
    text = to_text(small())
    assert old in text
    with pytest.raises(TextError) as e:
        parse(text.replace(old, new), arrays(small()))
    assert why in str(e.value)


def test_missing_constants_are_named() -> None:
    with pytest.raises(TextError) as e:
        parse(to_text(small()))
    assert str(e.value) == (
        "line 2, column 28: the array of 'w' is not in the text: it has to be given by name "
        "in `constants`, or under its hash in the .npz file beside the text, which "
        "`tilewright inspect --out` writes\n"
        "  |   param @w: f32[4,3,3,3] = sha256:87ddbe1e06ea8fcd\n"
        "  |                            ^^^^^^"
    )


def test_parsed_graphs_are_well_formed() -> None:
    verify(parse(to_text(small()), arrays(small())))
