"""Products on tensor cores, simulated and compared with float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_mma import MOST_SHARED, GpuMma, shared_bytes
from tilewright.compiler.kernels.gpu_mma_operands import copied_by_element, filled
from tilewright.compiler.kernels.gpu_mma_product import product_of
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.template import Config

from ..codegen.cuda.programs import gpu_launches, run_graph, simulated
from .gpu_products import (
    BYTES,
    SMALL,
    TINY,
    WORDS,
    check,
    dense,
    fed,
    integers,
    made,
    network,
    product,
    rng,
    vector,
    window,
)


@pytest.mark.parametrize(
    "graph",
    [
        product("mk,kn->mn", (32, 64), (64, 64)),
        product("mk,nk->mn", (32, 64), (64, 64)),
        product("km,kn->mn", (64, 32), (64, 64)),
        product("km,nk->mn", (64, 32), (64, 64)),
        product("mk,kn->mn", (40, 40), (40, 72)),  # pieces of 16 bytes, but no whole tiles
        product("mk,kn->mn", (33, 37), (37, 65)),  # no pieces
        product("mk,kn->mn", (33, 37), (37, 65), constant=True),
        product("mk,nk->mn", (32, 40), (65, 40), constant=True),
        product("bmk,bkn->bmn", (2, 32, 32), (2, 32, 64)),
        product("bmk,kn->bmn", (2, 8, 32), (32, 64), constant=True),
        product("mk,kn->mn", (32, 16), (16, 64)),  # fewer rounds than stages
        dense(33, 66, 48),
    ],
    ids=lambda g: "-".join(str(g.type(n)) for n in g.inputs),
)
def test_half_floats(graph: Graph) -> None:
    check(graph)


@pytest.mark.parametrize(
    "graph",
    [
        product("mk,kn->mn", (32, 32), (32, 64), "f32"),
        product("mk,nk->mn", (33, 33), (65, 33), "f32"),
        product("mk,kn->mn", (32, 36), (36, 64), "f32", constant=True),
        dense(32, 64, 32, "f32"),
    ],
    ids=lambda g: "-".join(str(g.type(n)) for n in g.inputs),
)
def test_single_floats_rounded_to_tf32(graph: Graph) -> None:
    check(graph, WORDS, tf32=True)


@pytest.mark.parametrize(
    ("left", "right"), [("i8", "i8"), ("u8", "i8"), ("i8", "u8"), ("u8", "u8")]
)
def test_integers_are_exact(left: str, right: str) -> None:
    check(integers(left, right, 33, 65, 96), BYTES)


def test_no_config_changes_a_bit() -> None:
    graph = product("mk,kn->mn", (32, 128), (128, 64))
    feeds = fed(graph)
    configs = (SMALL, {**SMALL, "stages": 2, "k": 64}, {**SMALL, "m": 64, "wm": 32, "stages": 4},
               {**SMALL, "m": 64, "n": 32, "wm": 32, "wn": 16})  # fmt: skip
    results = [simulated(graph, made(graph, c), feeds) for c in configs]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_what_it_leaves_to_others() -> None:
    def found(graph: Graph, tf32: bool = False) -> bool:
        return GpuMma(tf32).matches(graph, graph.ops, graph.outputs)

    single = product("mk,kn->mn", (32, 32), (32, 64), "f32")
    assert not found(single) and found(single, tf32=True)
    assert not found(product("mk,kn->mn", (4, 32), (32, 64)))
    assert not found(product("mk,kn->mn", (64, 32), (32, 4)))
    assert not found(vector(264, 72, constant=True)) and not found(vector(64, 72))
    squares = tw.Graph("squares")
    x = squares.input("x", (64, 512), "f16")
    squares.output(squares.reduce_sum(x * x, axes=(1,)), "y")
    assert not found(gpu_launches(squares.build())[0])
    assert not found(product("mk,kn->mn", (32, 32), (32, 64), "f64"), tf32=True)
    kinds = [[t.name for t in gpu_templates(n)] for n in ("standard", "reduced")]
    assert kinds[0] == kinds[1] and kinds[0][0] == "gpu_mma"
    assert [gpu_templates(n)[0].tf32 for n in ("reproducible", "standard", "reduced")] == [
        False, False, True,
    ]  # fmt: skip


def test_every_config_fits_every_device() -> None:
    for graph in (product("mk,kn->mn", (512, 512), (512, 512)), integers("i8", "i8", 64, 64, 64)):
        given = graph, graph.ops, graph.outputs
        found = product_of(*given, False)
        assert found is not None
        space = GpuMma().space(*given, GPU)
        assert GpuMma().default(*given, GPU) in space and len(space) > 20
        for c in space:
            assert shared_bytes(found, c) <= MOST_SHARED
            assert c["m"] % c["wm"] == c["n"] % c["wn"] == 0
        for c in space[::9]:
            entry, *added = kernel_source(made(graph, c).kernel).entries
            assert entry.shared_bytes == shared_bytes(found, c)
            assert len(added) == (c["parts"] > 1) and not any(e.shared_bytes for e in added)


def test_a_default_wastes_little() -> None:
    graph = dense(4096, 64, 256)
    assert GpuMma().default(graph, graph.ops, graph.outputs, GPU)["n"] == 64


# --------------------------------------------------------------------------- sums in parts


@pytest.mark.parametrize(
    ("graph", "parts"),
    [
        (product("mk,kn->mn", (40, 256), (256, 40)), 2),
        (product("mk,kn->mn", (24, 256), (256, 40)), 8),
        (product("bmk,nk->bmn", (2, 9, 190), (33, 190), constant=True), 3),  # zeros behind terms
        (dense(33, 34, 127), 4),  # no neighbours in memory
    ],
    ids=["two", "eight", "batches", "odd"],
)
def test_sums_in_parts(graph: Graph, parts: int) -> None:
    """Of as many rounds each, added up by a second kernel, which makes the results."""
    check(graph, {**TINY, "parts": parts})


@pytest.mark.parametrize(
    ("graph", "tile"),
    [(dense(3, 72, 264), (16, 128, 16, 32)),
     (product("mk,kn->mn", (72, 264), (264, 2)), (128, 16, 32, 16)),
     (vector(264, 72), (16, 128, 16, 32))],
    ids=["rows", "columns", "a row"],
)  # fmt: skip
def test_few_rows_and_long_sums(graph: Graph, tile: tuple[int, ...]) -> None:
    """A few rows are worth a tile: weights are read once, and not once for each."""
    (launch,) = gpu_launches(graph)[1]
    assert launch.kernel.template == "gpu_mma"
    space = GpuMma().space(graph, graph.ops, graph.outputs, GPU)
    (config,) = (c for c in space if (c["m"], c["n"], c["wm"], c["wn"]) == tile
                 and (c["stages"], c["parts"]) == (3, 1))  # fmt: skip
    check(graph, config)


@pytest.mark.parametrize("m", [1, 3])
def test_any_number_of_rows_where_all_add_in_one_order(m: int) -> None:
    """The bits of a row are those that it has among others."""
    template = GpuMma(one_order=True)
    small, large = dense(m, 40, 72), dense(20, 40, 72)
    shared = {n: b for n, b in large.blobs.items() if b.is_constant}
    small = replace(small, blobs={**small.blobs, **shared})
    feeds = fed(large)
    results = []
    for graph, rows in ((large, 20), (small, m)):
        given = graph, graph.ops, graph.outputs
        assert template.matches(*given)
        launch = template.instantiate(*given, GPU, SMALL)
        results.append(simulated(graph, launch, {n: x[:rows] for n, x in feeds.items()}))
    np.testing.assert_array_equal(results[0][:m], results[1])
    assert not GpuMma().matches(small, small.ops, small.outputs)


def test_sums_of_other_types_in_parts() -> None:
    check(product("mk,kn->mn", (32, 128), (128, 64), "f32"), {**WORDS, "parts": 2}, tf32=True)
    check(integers("i8", "u8", 33, 65, 512), {**BYTES, "parts": 4})


def test_windows_in_parts() -> None:
    """Rounds of one part may begin anywhere in a window."""
    graph = window(1, 32, 16, 5)
    feeds = fed(graph)
    (expected,) = evaluate(graph, feeds).values()
    stored = {n: np.moveaxis(x, 1, -1) for n, x in feeds.items()}
    for parts in (3, 9):
        launch = made(graph, {**TINY, "parts": parts})
        got = simulated(graph, launch, stored).reshape(-1)
        wanted = np.moveaxis(expected, 1, -1).reshape(-1)
        np.testing.assert_allclose(got, wanted, 0, 2.0**-10 * np.abs(expected).max())


def test_parts_are_added_in_order_whichever_block_is_first() -> None:
    graph = product("mk,kn->mn", (32, 512), (512, 32))
    launch, feeds = made(graph, {**TINY, "parts": 4}), fed(graph)
    results = [simulated(graph, launch, feeds, seed=k) for k in range(3)]
    assert all(np.array_equal(results[0], r) for r in results)


def test_long_sums_of_few_elements_fall_into_parts() -> None:
    def parts(template: GpuMma, m: int, n: int, k: int) -> tuple[int, set[int]]:
        graph = dense(m, n, k)
        given = graph, graph.ops, graph.outputs, GPU
        space = template.space(*given)
        default = template.default(*given)
        assert default in space
        return default["parts"], {c["parts"] for c in space}

    assert parts(GpuMma(), 64, 64, 8192)[0] > 4
    assert parts(GpuMma(), 8, 1000, 4096)[0] > 1
    assert parts(GpuMma(), 64, 64, 256)[0] == 1, "the second kernel would take longer"
    assert parts(GpuMma(), 2048, 2048, 2048) == (1, {1}), "there are tiles enough"
    assert parts(GpuMma(one_order=True), 64, 64, 8192) == (1, {1})
    (whole,) = (t for t in gpu_templates("reproducible") if t.name == "gpu_mma")
    assert whole.one_order


# --------------------------------------------------------------------------- convolutions


class Small(GpuMma):
    """With tiles that a simulator gets through."""

    def default(self, *given: Any) -> Config:
        return WORDS if self.tf32 else SMALL


def templates(tf32: bool = False) -> tuple[Any, ...]:
    kept = gpu_templates("reduced" if tf32 else "standard")
    return (Small(tf32), *kept[1:])


def run(source: Graph, tf32: bool = False) -> list[str]:
    """The templates of the network's kernels, after comparing its result with float64."""
    numerics: Any = "reduced" if tf32 else "standard"
    feeds = fed(source)
    expected = evaluate(source, feeds)["y"]
    got = run_graph(source, feeds, numerics=numerics, templates=templates(tf32))["y"]
    np.testing.assert_allclose(got, expected, 0, 2e-3 * np.abs(expected).max())
    return [x.kernel.template for x in gpu_launches(source, numerics, templates(tf32))[1]]


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 16, 5, 7), (16, 16, 3, 3), {"pads": 1}),
        ((1, 16, 9, 9), (24, 16, 3, 3), {"pads": 2, "strides": 2, "dilations": 2}),
        ((1, 32, 5, 5), (32, 16, 3, 3), {"pads": 1, "group": 2}),
        ((1, 13, 6, 6), (20, 13, 3, 3), {"pads": 1}),  # no 16 bytes of channels
        ((1, 64, 4, 4), (16, 64, 1, 1), {}),
    ],
    ids=str,
)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    source = network(x, w, **attributes)
    assert run(source) == ["gpu_nest", "gpu_mma", "gpu_mma", "gpu_nest"]  # the edges are reformats
    graph, launches = gpu_launches(source)
    assert str(graph.type(launches[1].args[-1])).endswith(f"@1x{w[0]}")


def test_terms_of_one_head_after_the_other() -> None:
    """A transposition and a reshape of what lies head after head leave pieces of 16 bytes."""
    g = tw.Graph("heads")
    heads = g.transpose(g.input("x", (2, 3, 20, 24), "f16"), perm=(0, 2, 1, 3))
    w = g.constant(rng.standard_normal((72, 40)).astype(np.float16))
    g.output(g.matmul(g.reshape(heads, shape=(2, 20, 72)), w), "y")
    graph = gpu_launches(g.build())[0]
    check(graph)
    assert not copied_by_element(made(graph, SMALL).kernel)


def test_an_image_is_read_as_it_comes() -> None:
    source = network((1, 3, 11, 11), (32, 3, 3, 3), strides=2)
    assert run(source) == ["gpu_mma", "gpu_mma", "gpu_nest"]
    first, second, _ = (x.kernel for x in gpu_launches(source)[1])
    assert [b.elements for b in copied_by_element(first)] == [3 * 11 * 11]
    assert not copied_by_element(second)


@pytest.mark.parametrize(("taps", "k"), [(7, 3 * 7 * 8), (5, 3 * 5 * 8), (3, 27)])
def test_rows_of_taps_are_filled_to_pieces(taps: int, k: int) -> None:
    """With zeros behind the weights of each, where that makes few rounds more: so 16 bytes of a
    tile are of one row of the image."""
    source = network((1, 3, 11, 12), (16, 3, taps, taps), strides=2, pads=taps // 2)
    assert run(source)[0] == "gpu_mma"
    graph, launches = gpu_launches(source)
    ops = [graph.ops[j] for j in launches[0].ops]
    given = graph, ops, ops[-1].outputs
    found = filled(graph, product_of(*given, False))
    assert found.k == k and found.last == (0 if taps == 3 else taps)


def test_bf16_from_end_to_end() -> None:
    """Stored and multiplied in bf16, everything between in float32, in the same kernels."""
    g = tw.Graph("mixed")

    def constant(*dims: int) -> Any:
        return g.cast(g.constant(0.2 * rng.standard_normal(dims).astype(np.float32)), to="bf16")

    x = g.conv(g.input("x", (1, 16, 5, 5), "bf16"), constant(16, 16, 3, 3), pads=1)
    h = g.cast(g.sigmoid(g.cast(x, to="f32")), to="bf16")
    h = g.cast(g.reduce_mean(g.cast(g.conv(h, constant(24, 16, 1, 1)), to="f32"), axes=(2, 3),
                             keepdims=0), to="bf16")  # fmt: skip
    y = g.cast(g.matmul(g.concat(*(h,) * 8, axis=0), constant(24, 32)), to="f32")
    g.output(g.relu(y) + 1.0, "y")
    source = g.build()
    feeds = {"x": bits_of(rng.standard_normal((1, 16, 5, 5)))}
    expected = evaluate(source, feeds)["y"]
    got = run_graph(source, feeds, templates=templates())["y"]
    np.testing.assert_allclose(got, expected, 0, 2.0**-8 * np.abs(expected).max())
    _, launches = gpu_launches(source, templates=templates())
    used = [x.kernel.template for x in launches]
    assert used.count("gpu_mma") == 3
    cpu = tw.compile(source)(feeds["x"])
    np.testing.assert_allclose(cpu, expected, 0, 2.0**-8 * np.abs(expected).max())


def test_networks_in_single_precision_use_tf32_under_reduced() -> None:
    source = network((1, 16, 5, 7), (16, 16, 3, 3), "f32", pads=1)
    assert run(source, tf32=True) == ["gpu_nest", "gpu_mma", "gpu_mma", "gpu_nest"]
    assert {x.kernel.template for x in gpu_launches(source)[1]} == {"gpu_tiles"}


def test_channels_stay_last_between_convolutions() -> None:
    """Windows, joins, sums and pointwise operators do not go back and forth."""
    g = tw.Graph("block")
    kind = np.float16
    a = g.conv(g.input("x", (1, 16, 6, 6), "f16"), g.constant(np.ones((16, 16, 1, 1), kind)))
    b = g.max_pool(g.relu(a), kernel_shape=3, strides=1, pads=1)
    c = g.conv(g.concat(a, b, axis=1), g.constant(np.ones((16, 32, 1, 1), kind)))
    d = g.conv(c, g.constant(np.ones((16, 1, 3, 3), kind)), group=16, pads=1)
    g.output(g.reduce_mean(d + a, axes=(2, 3)), "y")
    graph, _ = gpu_launches(g.build())
    assert sum(op.operator == "reformat" for op in graph.ops) == 1
    made = [graph.type(op.outputs[0]) for op in graph.ops if op.outputs[0] not in graph.outputs]
    assert all(t.layout.block == t.dims[1] for t in made)
