"""Concatenations written in place by their producers, and cuts that are views: what the pass
decides, and that whole programs still compute what they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.builder import Value, rename_blobs
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph, Inside
from tilewright.compiler.graph.text import parse, to_text
from tilewright.compiler.graph.verify import verify
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.cuts import Cut, cuts
from tilewright.compiler.passes.pipeline import cpu_pipeline

rng = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def conv(g: tw.Graph, x: Value, channels: int, taps: int = 1) -> Value:
    w = weights(channels, x.type.dims[1], taps, taps)
    return g.relu(g.conv(x, w, weights(channels), pads=taps // 2))


def graph_of(build: Callable[[tw.Graph, Value], object], *shape: int) -> Graph:
    g = tw.Graph()
    made = build(g, g.input("x", shape))
    for k, y in enumerate(made if isinstance(made, tuple) else (made,)):
        g.output(y, f"y{k}")  # type: ignore[arg-type]
    return g.build()


def check(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> tw.Executable:
    """Compiled code against float64. Each output sums at most some hundred products of numbers
    around 1 in float32: errors stay below 1e-5 of the largest."""
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    exe = tw.compile(graph)
    x = rng.standard_normal(graph.type("x").dims).astype(np.float32)
    found = exe(x)
    found = found if isinstance(found, (tuple, list)) else (found,)
    expected = evaluate(graph, {"x": x})
    for y, name in zip(found, graph.outputs, strict=True):
        want = expected[name]
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
    return exe


def fire(g: tw.Graph, x: Value) -> Value:
    s = conv(g, x, 16)
    return g.max_pool(g.concat(conv(g, s, 32), conv(g, s, 48, 3), axis=1), kernel_shape=(2, 2))


def dense_block(g: tw.Graph, x: Value) -> Value:
    """Each layer reads all that was made before it."""
    h = conv(g, x, 32)
    for _ in range(3):
        scaled = g.relu(g.mul(h, weights(h.type.dims[1], 1, 1) + 1))
        h = g.concat(h, conv(g, conv(g, scaled, 16), 16, 3), axis=1)
    return g.reduce_mean(g.neg(h), axes=(2, 3))


def inception(g: tw.Graph, x: Value) -> Value:
    """Branches of several kinds, one of them two joined ones."""
    s = conv(g, x, 32)
    pooled = g.max_pool(s, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    twice = g.concat(conv(g, s, 16, 3), conv(g, s, 16), axis=1)
    return conv(g, g.concat(conv(g, s, 48), twice, pooled, conv(g, pooled, 16), axis=1), 19)


def odd_channels(g: tw.Graph, x: Value) -> Value:
    return conv(g, g.concat(conv(g, x, 7), conv(g, x, 3, 3), conv(g, x, 1), axis=1), 5)


def last_one_odd(g: tw.Graph, x: Value) -> Value:
    h = g.concat(conv(g, x, 16), conv(g, x, 21, 3), axis=1)
    return conv(g, h, 3)


def along(axis: int) -> Callable[[tw.Graph, Value], object]:
    def build(g: tw.Graph, x: Value) -> Value:
        pooled = g.max_pool(g.abs(x), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        return g.softmax(g.concat(g.softmax(x, axis=1), pooled, x, axis=axis), axis=-1)

    return build


def convolutions_along(axis: int) -> Callable[[tw.Graph, Value], object]:
    def build(g: tw.Graph, x: Value) -> Value:
        h = g.concat(conv(g, x, 16, 3), conv(g, x, 16), axis=axis)
        return g.max_pool(conv(g, h, 20), kernel_shape=(2, 2))

    return build


def same_twice(g: tw.Graph, x: Value) -> Value:
    h = conv(g, x, 16)
    return conv(g, g.concat(h, conv(g, h, 32), h, axis=1), 16)


def in_two(g: tw.Graph, x: Value) -> tuple[Value, Value]:
    a, b, c = conv(g, x, 16), conv(g, x, 32, 3), conv(g, x, 16, 3)
    return conv(g, g.concat(a, b, axis=1), 16), conv(g, g.concat(c, a, axis=1), 16)


def joined_output(g: tw.Graph, x: Value) -> tuple[Value, Value]:
    a = g.reduce_max(x, axes=(2, 3), keepdims=0)
    b = g.reduce_mean(x, axes=(2, 3), keepdims=0)
    y = g.concat(a, b, axis=-1)
    return y, g.reduce_sum(y, axes=(1,))


def part_is_read_and_returned(g: tw.Graph, x: Value) -> tuple[Value, Value, Value]:
    a, b = conv(g, x, 16), conv(g, x, 16, 3)
    y = conv(g, g.concat(a, b, axis=1), 8)
    return y, g.neg(b), g.reduce_max(a, axes=(1,))


def part_is_an_output(g: tw.Graph, x: Value) -> tuple[Value, Value]:
    a, b = conv(g, x, 16), conv(g, x, 16, 3)
    return conv(g, g.concat(a, b, axis=1), 8), a


def with_input_and_constant(g: tw.Graph, x: Value) -> Value:
    a = g.max_pool(x, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    c = g.constant(weights(*x.type.dims))
    return g.softmax(g.concat(x, a, c, g.exp(x), axis=1), axis=1)


def skips(g: tw.Graph, x: Value) -> Value:
    """Written early, joined late."""
    a = conv(g, x, 16, 3)
    b = conv(g, g.max_pool(a, kernel_shape=(2, 2), strides=2), 32, 3)
    up = g.resize(b, sizes=a.type.dims, mode="nearest")
    return conv(g, g.concat(a, up, axis=1), 4)


def halves(g: tw.Graph, x: Value) -> Value:
    """Channels split, each part convolved, joined again."""
    h = conv(g, x, 48)
    a, b = g.split(h, axis=1, split=(16, 32))
    return conv(g, g.concat(conv(g, a, 16, 3), conv(g, b, 16), axis=1), 7)


def rows_cut(g: tw.Graph, x: Value) -> Value:
    h = conv(g, x, 16)
    top = g.slice(h, starts=(0,), ends=(3,), axes=(2,))
    right = g.slice(h, starts=(2,), ends=(99,), axes=(3,))
    return g.add(g.reduce_sum(conv(g, top, 16, 3), axes=(2, 3)),
                 g.reduce_sum(conv(g, right, 16), axes=(2, 3)))  # fmt: skip


def cut_of_an_input(g: tw.Graph, x: Value) -> Value:
    a, b = g.split(x, axis=1, split=(1, x.type.dims[1] - 1))
    return g.add(g.softmax(a, axis=-1), g.reduce_max(b, axes=(1,)))


def cut_of_a_join(g: tw.Graph, x: Value) -> Value:
    h = g.concat(conv(g, x, 16), conv(g, x, 32, 3), axis=1)
    return conv(g, g.slice(h, starts=(16,), ends=(32,), axes=(1,)), 5)


def products(g: tw.Graph, x: Value) -> Value:
    """Matrix products into columns of one matrix."""
    n = x.type.dims[0]
    flat = g.reshape(x, shape=(n, -1, x.type.dims[-1]))
    a = g.matmul(flat, weights(x.type.dims[-1], 24))
    b = g.matmul(flat, weights(x.type.dims[-1], 40))
    return g.matmul(g.concat(a, b, axis=-1), weights(64, 5))


def viewed(g: tw.Graph, x: Value) -> Value:
    """A reshape behind the join, and one in front of it."""
    a, b = g.softmax(x, axis=1), g.max_pool(x, kernel_shape=(1, 1))
    flat = g.reshape(g.concat(a, b, axis=1), shape=(x.type.dims[0], -1))
    return g.softmax(g.concat(flat, g.reshape(a, shape=(x.type.dims[0], -1)), axis=1), axis=-1)


def opaque_reader(g: tw.Graph, x: Value) -> Value:
    """Sorting reads dense memory only."""
    a = g.softmax(x, axis=1)
    y = g.concat(a, g.max_pool(x, kernel_shape=(1, 1)), axis=1)
    places = g.arg_max(a, axis=1)
    return g.add(g.cast(places, to="f32"), g.reduce_max(y, axes=(1,)))


BUILDS = {
    **{f.__name__: f for f in (
        fire, dense_block, inception, odd_channels, last_one_odd, same_twice, in_two,
        joined_output, part_is_read_and_returned, part_is_an_output, with_input_and_constant,
        skips, halves, rows_cut, cut_of_an_input, cut_of_a_join, products, viewed, opaque_reader,
    )},
    **{f"along_{a}": along(a) for a in (0, 1, 2, -1)},
    **{f"convolutions_along_{a}": convolutions_along(a) for a in (0, 2, -1)},
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_programs_compute_the_same(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    check(graph_of(BUILDS[name], batch, 5, 7, 6), monkeypatch)


# --------------------------------------------------------------------------- what is decided


def final(build: Callable[[tw.Graph, Value], object], *shape: int) -> Graph:
    made, _ = run_pipeline(cpu_pipeline(16), graph_of(build, *shape))
    again = parse(to_text(made), {n: made.blobs[n].value for n in made.constants})  # type: ignore[misc]
    assert to_text(again) == to_text(made)
    assert {n: b.inside for n, b in again.blobs.items()} == {
        n: b.inside for n, b in made.blobs.items()
    }
    return made


def test_renaming_keeps_parts_in_their_whole() -> None:
    graph = final(fire, 1, 5, 7, 6)
    renamed = rename_blobs(graph, {n: f"{n} of old" for n in graph.blobs})
    verify(renamed)
    assert places(renamed) == places(graph)
    assert renamed.structural_key() == graph.structural_key()


def places(graph: Graph) -> list[tuple[str, int]]:
    """(operator that made it, first index) of every part."""
    return [
        (graph.producer[n].operator, b.inside.start)
        for n, b in graph.blobs.items() if b.inside is not None
    ]  # fmt: skip


def test_convolutions_write_into_what_joins_them() -> None:
    graph = final(fire, 2, 5, 7, 6)
    assert places(graph) == [("relu", 0), ("relu", 32)]
    join = next(op for op in graph.ops if op.operator == "concat")
    assert [str(graph.type(n)) for n in join.reads] == [
        "f32[2,32,7,6]@1x16@1/80", "f32[2,48,7,6]@1x16@1/80",
    ]  # fmt: skip


def test_a_chain_of_joins_is_one_blob() -> None:
    graph = final(dense_block, 1, 5, 7, 6)
    kinds = [b.type for b in graph.blobs.values() if b.inside is not None]
    assert {t.layout.extent for t in kinds} == {80}
    assert sorted(places(graph)) == [
        ("concat", 0), ("concat", 0), ("relu", 0), ("relu", 32), ("relu", 48), ("relu", 64),
    ]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_placing_saves_launches_traffic_and_memory(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    exe = check(graph_of(dense_block, batch, 5, 3, 4), monkeypatch)
    assert not any(set(k.ops) == {"concat"} for k in exe.kernels)
    assert not any(step.scratch for step in exe.plan.steps), "places too few for other algorithms"
    # one whole of 80 channels, and at most a layer's input of 64 and its 16 inner channels
    each = batch * 3 * 4 * 4
    assert exe.plan.arena_bytes == exe.plan.lower_bound_bytes <= (80 + 64 + 16) * each * 1.2


def test_a_blob_is_placed_once_and_copied_elsewhere() -> None:
    for build, copies in ((same_twice, 2), (in_two, 1)):
        graph = final(build, 1, 5, 7, 6)
        assert [op for op, _ in places(graph)].count("reformat") == copies, build.__name__


def test_opaque_kernels_and_views_get_dense_memory() -> None:
    for build in (opaque_reader, viewed):
        for batch in (1, 3):
            graph = final(build, batch, 5, 7, 6)
            for op in graph.ops:
                if op.operator in ("arg_max", "reshape"):
                    assert all(graph.type(n).is_dense for n in op.reads), (build, batch)
    assert places(final(opaque_reader, 1, 5, 7, 6))


def test_short_stretches_are_joined_by_a_kernel() -> None:
    graph = final(along(-1), 1, 5, 7, 6)
    assert places(graph) == []


def test_splits_of_whole_blocks_are_views() -> None:
    graph = final(halves, 1, 5, 7, 6)
    assert sorted(places(graph)) == [("relu", 0), ("relu", 16), ("split", 0), ("split", 16)]
    graph = final(cut_of_a_join, 3, 5, 7, 6)
    assert sorted(places(graph)) == [("relu", 0), ("relu", 16), ("slice", 16)]


def test_what_a_cut_is() -> None:
    def of(**attrs: object) -> tuple[Cut, ...] | None:
        graph = graph_of(lambda g, x: g.slice(x, **attrs), 4, 9)
        return cuts(graph, graph.ops[0])

    assert of(starts=(2,), ends=(5,), axes=(1,)) == (Cut(1, 2),)
    assert of(starts=(-1,), ends=(99,), axes=(0,)) == (Cut(0, 3),)
    assert of(starts=(0,), ends=(9,), axes=(1,), steps=(2,)) is None
    assert of(starts=(1, 1), ends=(3, 3)) is None
    assert of(starts=(3,), ends=(-99,), axes=(0,), steps=(-1,)) is None
    graph = graph_of(lambda g, x: g.split(x, axis=1, split=(4, 5)), 4, 9)
    assert cuts(graph, graph.ops[0]) == (Cut(1, 0), Cut(1, 4))
    graph = graph_of(lambda g, x: g.transpose(x, perm=(1, 0)), 4, 9)
    assert cuts(graph, graph.ops[0]) is None


def test_inside_is_part_of_the_structure() -> None:
    graph = final(fire, 1, 5, 7, 6)
    name, blob = next((n, b) for n, b in graph.blobs.items() if b.inside is not None)
    moved = replace(blob, inside=Inside(blob.inside.blob, 16))  # type: ignore[union-attr]
    other = Graph(graph.name, graph.inputs, graph.outputs, graph.ops, {**graph.blobs, name: moved})
    assert other.structural_key() != graph.structural_key()
