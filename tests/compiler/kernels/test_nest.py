"""Loop nests: which loops they become, where reductions go, that each element is written once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect import interpret
from tilewright.compiler.kernels import nest, partial
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import For, Kernel, Launch, Store, statements
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.ops.types import Layout

from .support import DEVICES, check_launch, graph_of, stored, with_layouts

Array = np.ndarray[Any, Any]
BLOCKED = Layout(1, 8)
AVX2 = DEVICES["avx2"]


def softmax(g: GraphBuilder, x: Value, axis: int) -> Value:
    e = g.exp(x - g.reduce_max(x, axes=(axis,), keepdims=1))
    return e / g.reduce_sum(e, axes=(axis,), keepdims=1)


def layer_norm(g: GraphBuilder, x: Value) -> Value:
    centred = x - g.reduce_mean(x, axes=(-1,), keepdims=1)
    variance = g.reduce_mean(centred * centred, axes=(-1,), keepdims=1)
    n = x.type.dims[-1]
    return centred / g.sqrt(variance + 1e-5) * g.input("scale", (n,)) + g.input("bias", (n,))


def concatenation(g: GraphBuilder) -> Value:
    x, y = g.input("x", (2, 3, 5)), g.input("y", (2, 4, 5))
    return g.concat(x, g.relu(y), g.input("z", (2, 1, 5)), axis=1)


MAKERS: dict[str, Callable[[GraphBuilder], Value]] = {
    "softmax": lambda g: softmax(g, g.input("x", (5, 21)), 1),
    "softmax_outer": lambda g: softmax(g, g.input("x", (3, 5, 21)), 1),
    "layer_norm": lambda g: layer_norm(g, g.input("x", (4, 37))),
    "max_pool": lambda g: g.max_pool(
        g.input("x", (1, 12, 7, 9)), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)
    ),
    "max_pool_block": lambda g: g.max_pool(
        g.input("x", (1, 8, 9, 9)), kernel_shape=(3, 3), strides=(2, 2)
    ),
    "lrn": lambda g: g.op("lrn", g.input("x", (2, 29, 3, 5)), size=5, alpha=0.5),
    "lrn_wide": lambda g: g.op("lrn", g.input("x", (1, 16, 7)), size=20, alpha=0.5, beta=0.5),
    "to_planar": lambda g: g.op("reformat", g.input("x", (2, 29, 5, 7))),
    "to_blocked": lambda g: g.op("reformat", g.input("x", (2, 29, 5, 7))) * 2.0,
    "attention_heads": lambda g: g.transpose(g.input("x", (2, 19, 3, 21)), perm=(0, 2, 3, 1)),
    "concat": concatenation,
    "transposed_add": lambda g: (
        g.transpose(g.input("x", (9, 13)), perm=(1, 0)) + g.input("y", (13, 9))
    ),
    "pointwise": lambda g: g.tanh((g.input("x", (3, 5, 7)) + g.input("y", (5, 1))) * 2.0),
    "mean_of_all": lambda g: g.reduce_mean(g.input("x", (3, 5, 7)), keepdims=0),
    "long_rows": lambda g: layer_norm(g, g.input("x", (3, 301))),
    "peak": lambda g: g.reduce_max(g.input("x", (2, 150)), axes=(1,), keepdims=0),
    "scalar": lambda g: g.exp(g.input("x", ())),
    "empty": lambda g: g.relu(g.input("x", (0, 3))),
    "rows": lambda g: g.reduce_sum(g.input("x", (7, 3)), axes=(0,), keepdims=0),
    "flipped": lambda g: g.slice(
        g.input("x", (4, 9)), starts=(8,), ends=(-10,), axes=(1,), steps=(-2,)
    ),
    "padded": lambda g: g.pad(g.input("x", (3, 5)), pads=(1, 2, 2, 3), mode="reflect"),
    "resized": lambda g: g.op("space_to_depth", g.input("x", (1, 2, 6, 4)), blocksize=2),
}
_POOLED = {"x": BLOCKED, "max_pool": BLOCKED}
_NORMALISED = {"x": BLOCKED, "lrn": BLOCKED}
LAYOUTS: dict[str, Mapping[str, Layout]] = {
    "max_pool": _POOLED, "max_pool_block": _POOLED, "lrn": _NORMALISED, "lrn_wide": _NORMALISED,
    "to_planar": {"x": BLOCKED}, "to_blocked": {"reformat": BLOCKED, "mul": BLOCKED},
}  # fmt: skip


def group(name: str) -> Graph:
    def build(g: GraphBuilder) -> None:
        g.output(MAKERS[name](g))

    return with_layouts(graph_of(build), LAYOUTS.get(name, {}))


def launch_of(graph: Graph, device: Device = AVX2) -> Launch:
    template = nest.Nest()
    assert template.matches(graph, graph.ops, graph.outputs)
    return template.instantiate(graph, graph.ops, graph.outputs, device, {})


def feeds(graph: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(graph.type(n).dims).astype(np.float32) for n in graph.inputs}


def loops(kernel: Kernel) -> list[tuple[int, str]]:
    """(rounds, kind) of all loops, outer first."""
    found = [s for p in kernel.phases for s in statements(p.body) if isinstance(s, For)]
    return [(s.var.payload[2] - s.var.payload[1], s.kind) for s in found]


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often the interpreter stores to each (buffer, offset)."""
    count: Counter[tuple[str, int]] = Counter()
    original = interpret._Machine.store

    def counting(self: Any, buffer: Any, at: Any, value: Any) -> None:
        where = np.broadcast_to(at, self.width or 1)
        count.update((buffer.name, int(k)) for k in where)
        original(self, buffer, at, value)

    monkeypatch.setattr(interpret._Machine, "store", counting)
    return count


# --------------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MAKERS)
def test_groups_agree_with_the_reference(name: str, device: str) -> None:
    """Alone and with every input in place that the kernel says may be."""
    graph = group(name)
    check_launch(graph, launch_of(graph, DEVICES[device]), feeds(graph), 1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_every_element_is_written_exactly_once(name: str, stores: Counter[tuple[str, int]]) -> None:
    graph = group(name)
    launch = launch_of(graph)
    check_launch(graph, Launch(_alone(launch.kernel), launch.args, ()), feeds(graph), 1e-5)
    (out,) = (b for b in launch.kernel.params if b.role == "out")
    size = graph.type(graph.outputs[0]).size
    assert set(stores.values()) <= {1} and len(stores) == size
    assert {name for name, _ in stores} <= {out.name}


def _alone(kernel: Kernel) -> Kernel:
    """The kernel without in-place pairs, so that it is run once."""
    return Kernel(kernel.template, kernel.version, kernel.config, kernel.params, kernel.phases)


def test_lanes_past_the_last_channel_are_left_alone(stores: Counter[tuple[str, int]]) -> None:
    """12 channels in blocks of 8: half of the last block belongs to nobody."""
    graph = group("max_pool")
    check_launch(graph, launch_of(graph), feeds(graph), 1e-5)
    padding = [k for _, k in stores if k >= 4 * 5 * 8 and k % 8 >= 4]
    assert not padding


SPREAD: dict[str, Callable[[GraphBuilder], Value]] = {
    **MAKERS,
    "transposed_add": lambda g: (
        g.transpose(g.input("x", (40, 33)), perm=(1, 0)) + g.input("y", (33, 40))
    ),
    "column": lambda g: g.exp(g.input("x", (6, 7, 10)) + g.input("y", (7, 1))),
    "flat": lambda g: g.exp(g.input("x", (1001,))),
    "permuted": lambda g: g.transpose(g.input("x", (9, 7, 5)), perm=(2, 0, 1)),
    "wide_rows": lambda g: g.reduce_max(g.input("x", (9, 40)), axes=(0,), keepdims=0),
    "window": lambda g: g.average_pool(g.input("x", (1, 3, 9, 9)), kernel_shape=(3, 3), pads=1),
}


UNSHARED = ("scalar", "empty", "mean_of_all", "rows", "peak")  # less than a vector of results


@pytest.mark.parametrize("device", ["avx512", "neon"])
@pytest.mark.parametrize("name", [n for n in SPREAD if n not in UNSHARED])
def test_parallel_items_run_in_any_order(
    name: str, device: str, stores: Counter[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter shuffles them, and refuses what another item of the phase has written."""
    monkeypatch.setattr(nest, "SERIAL_WORK", 20)
    monkeypatch.setattr(nest, "ITEM_WORK", 10)
    graph = with_layouts(graph_of(lambda g: g.output(SPREAD[name](g))), LAYOUTS.get(name, {}))
    launch = launch_of(graph, DEVICES[device])
    assert 1 < max(p.items for p in launch.kernel.phases) <= nest.MAX_ITEMS
    check_launch(graph, Launch(_alone(launch.kernel), launch.args, ()), feeds(graph), 1e-5)
    assert set(stores.values()) == {1} and len(stores) == graph.type(graph.outputs[0]).size


def test_small_work_is_one_item() -> None:
    for name in MAKERS:
        assert {p.items for p in launch_of(group(name)).kernel.phases} <= {1}


def test_reductions_of_rows_count_as_work() -> None:
    """Three passes over each row, not one: a normalisation is shared that pointwise is not."""

    def made(fn: Callable[[GraphBuilder, Value], Value]) -> Launch:
        return launch_of(graph_of(lambda g: g.output(fn(g, g.input("x", (8, 1024))))))

    assert made(layer_norm).kernel.items[0] > 1
    assert made(lambda g, x: x * 2.0).kernel.items == (1,)


# --------------------------------------------------------------------------- which loops


def test_axes_that_all_accesses_walk_as_one_become_one_loop() -> None:
    def made(fn: Callable[[GraphBuilder], Value]) -> list[tuple[int, str]]:
        graph = graph_of(lambda g: g.output(fn(g)))
        return loops(launch_of(graph).kernel)

    assert made(lambda g: g.exp(g.input("x", (3, 5, 7)))) == [(105, "vector")]
    # a row that is broadcast keeps its axis, the others merge
    assert made(lambda g: g.input("x", (3, 5, 7)) + g.input("y", (7,))) == [
        (15, "serial"), (7, "vector"),
    ]  # fmt: skip
    # a column: lanes walk the last axis, the first two cannot merge with it
    assert made(lambda g: g.input("x", (3, 5, 7)) + g.input("y", (5, 1))) == [
        (3, "serial"), (5, "serial"), (7, "vector"),
    ]  # fmt: skip
    # two axes that move together stay together
    assert made(lambda g: g.transpose(g.input("x", (3, 5, 3)), perm=(2, 0, 1))) == [
        (3, "serial"), (15, "vector"),
    ]  # fmt: skip
    assert made(lambda g: g.exp(g.input("x", (1, 4, 1, 6)))) == [(24, "vector")]


def test_a_reduction_is_computed_once_per_row() -> None:
    """The loops over what it does not depend on stand behind it."""
    kernel = launch_of(group("softmax")).kernel
    order = [type(s).__name__ for s in kernel.phases[0].body]
    assert order == ["For"]
    (row,) = kernel.phases[0].body
    assert isinstance(row, For) and row.kind == "serial"
    inner = [s for s in row.body if isinstance(s, For)]
    assert [s.kind for s in inner] == ["vector"] * 3, "maximum, sum, quotient: three passes"
    assert isinstance(inner[-1].body[-1], Store)


def test_columns_are_reduced_in_lanes_of_the_output() -> None:
    """Neighbouring sums run in neighbouring lanes when that is how the input lies."""
    wide = graph_of(lambda g: g.output(g.reduce_sum(g.input("x", (40, 64)), axes=(0,), keepdims=0)))
    assert loops(launch_of(wide).kernel) == [(64, "vector"), (40, "serial")]


@pytest.mark.parametrize(
    "name", ["softmax", "softmax_outer", "layer_norm", "max_pool_block", "concat", "transposed_add"]
)
def test_kernel_text(name: str, golden: Callable[[str, str], None]) -> None:
    golden(kernel_text(launch_of(group(name)).kernel), f"kernels/nest_{name}.txt")


# --------------------------------------------------------------------------- in place


def pairs(fn: Callable[[GraphBuilder], Value]) -> set[tuple[str, str]]:
    launch = launch_of(graph_of(lambda g: g.output(fn(g))))
    args = launch.args
    return {(str(args[y]), str(args[x])) for y, x in launch.kernel.inplace}


def test_inputs_read_only_where_they_are_written_may_be_the_output() -> None:
    assert pairs(lambda g: g.relu(g.input("x", (3, 5)))) == {("relu", "x")}
    both = pairs(lambda g: g.input("x", (3, 5)) + g.input("y", (3, 5)))
    assert both == {("add", "x"), ("add", "y")}
    assert pairs(lambda g: g.input("x", (3, 5)) * g.input("y", (1, 5))) == {("mul", "x")}


@pytest.mark.parametrize(
    "make",
    [
        lambda g: g.transpose(g.input("y", (4, 4)), perm=(1, 0)),
        lambda g: g.slice(g.input("y", (9,)), starts=(8,), ends=(-10,), axes=(0,), steps=(-1,)),
        lambda g: g.cast(g.input("y", (8,)), to="f16"),
        lambda g: g.input("x", (3, 3)) + g.transpose(g.input("y", (3, 3)), perm=(1, 0)),
    ],
    ids=["transpose", "flip", "narrower", "transposed_add"],
)
def test_what_is_still_needed_is_not_overwritten(make: Callable[[GraphBuilder], Value]) -> None:
    """y is read elsewhere than it is written, or does not fit."""
    assert "y" not in {x for _, x in pairs(make)}


def test_a_reduction_taken_out_of_its_guard_is_guarded_itself() -> None:
    """The padding is too wide to be split off the loop over rows."""
    b = GraphBuilder()
    x = b.input("x", (7, 3, 5))
    b.output(b.pad(x - b.reduce_max(x, axes=(2,), keepdims=1), pads=(6, 0, 0, 0, 0, 0)))
    g = b.build()
    kernel = nest.Nest().instantiate(g, g.ops, g.outputs, Device(16, 16, 1), {}).kernel
    assert "(x0[i0 * 15 + i1 * 5 + r0_3 - 90] if 0 <= i0 - 6 else -inf)" in kernel_text(kernel)


# --------------------------------------------------------------------------- sliding windows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [(2, 3), (3, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("operator", ["max_pool", "average_pool"])
def test_windows_that_overlap_share_their_columns(
    operator: str, stride: int, kernel: tuple[int, int], device: str
) -> None:
    """Borders, whole rounds and what is left of them; more results than registers hold."""

    def build(g: GraphBuilder) -> None:
        x = g.input("x", (1, 19, 9, 31))
        g.output(g.op(operator, x, kernel_shape=kernel, strides=stride, pads=(1, 0, 0, 1)))

    graph = with_layouts(graph_of(build), {"x": BLOCKED, operator: BLOCKED})
    launch = launch_of(graph, DEVICES[device])
    check_launch(graph, launch, feeds(graph), 1e-5)
    assert ("result" in kernel_text(launch.kernel)) == (stride < kernel[1])


@pytest.mark.parametrize("size", [2, 3])
def test_windows_from_memory_are_asked_for_two_rows_ahead(size: int) -> None:
    """Lines of 16 channels that lie in memory: those that are read first two rows of results on."""

    def asked(l2_bytes: int, stride: int = 2) -> set[tuple[int, int]]:
        graph = with_layouts(
            graph_of(lambda g: g.output(g.average_pool(
                g.input("x", (1, 16, 20, 14)), kernel_shape=(size, size), strides=stride
            ))),
            {"x": Layout(1, 16), "average_pool": Layout(1, 16)},
        )  # fmt: skip
        launch = launch_of(graph, replace(DEVICES["avx512"], l2_bytes=l2_bytes))
        hints: interpret.Hints = {}
        x = feeds(graph)["x"]
        interpret.run_kernel(launch.kernel, [stored(x, graph.type("x")), None], hints=hints)
        return {divmod(at // 16, 14) for at in hints.get(launch.kernel.params[0], ())}

    nbytes = 16 * 20 * 14 * 4
    found = asked(nbytes // 4 - 1)
    assert found.issuperset(
        (row, column) for row in range(4 + size - 2, 20) for column in range(12)
    )
    assert min(found) >= (4 + size - 2, 0), "what comes before is read at once"
    assert not asked(nbytes // 4), "it stays in a cache"
    assert not asked(nbytes // 4 - 1, stride=1)


@pytest.fixture
def first_read(monkeypatch: pytest.MonkeyPatch) -> dict[int, None]:
    """Where the interpreter reads the first input, in the order of first reads."""
    places: dict[int, None] = {}
    original = interpret._Machine.touch

    def noting(self: Any, buffer: Any, at: Any, what: str) -> Any:
        where = original(self, buffer, at, what)
        if buffer.name == "x0":
            places.update((int(k), None) for k in np.ravel(where))
        return where

    monkeypatch.setattr(interpret._Machine, "touch", noting)
    return places


WINDOWS_BY_ROWS = {  # (size, stride, pads)
    "2x2s2": ((2, 2), (2, 2), (0, 0, 0, 0)),
    "3x3s2": ((3, 3), (2, 2), (0, 0, 0, 0)),
    "3x3s2_padded": ((3, 3), (2, 2), (1, 1, 1, 1)),
    "3x2s3": ((3, 2), (3, 2), (0, 0, 0, 1)),
    "4x3s3": ((4, 3), (3, 2), (1, 0, 2, 1)),
    "2x1s3": ((2, 1), (3, 2), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("l1_bytes", [32 << 10, 1 << 10], ids=["local", "own"])
@pytest.mark.parametrize("epilogue", ["", "relu", "cast"])
@pytest.mark.parametrize("window", WINDOWS_BY_ROWS)
def test_maxima_of_windows_that_move_by_rows_read_row_by_row(
    window: str, epilogue: str, l1_bytes: int, first_read: dict[int, None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two images, a block that channels do not fill, borders, NaNs. What one item reads of a block,
    beyond windows at the border, is first read in the order of memory; many items, in any order,
    find the same."""
    size, stride, pads = WINDOWS_BY_ROWS[window]

    def build(g: GraphBuilder) -> None:
        x = g.input("x", (2, 11, 13, 15))
        y = g.max_pool(x, kernel_shape=size, strides=stride, pads=pads)
        if epilogue:
            y = g.relu(y) if epilogue == "relu" else g.cast(y, to="i32")
        g.output(y)

    names = ("x", "max_pool", "relu", "cast")
    graph = with_layouts(graph_of(build), dict.fromkeys(names, BLOCKED))
    given = feeds(graph)
    if epilogue != "cast":
        given["x"][np.random.default_rng(1).random(given["x"].shape) < 0.02] = np.nan
    device = replace(AVX2, l1_bytes=l1_bytes, l2_bytes=256)
    for items in (1, 32):
        monkeypatch.setattr(nest, "SERIAL_WORK", 20 if items > 1 else 1 << 30)
        monkeypatch.setattr(nest, "ITEM_WORK", 10)
        launch = launch_of(graph, device)
        assert (launch.kernel.items[0] > 1) == (items > 1)
        check_launch(graph, launch, given, 1e-30)
        if items == 1:
            inner = range(size[0] if pads[0] else 0, 13 - (size[0] if pads[2] else 0))
            for block in range(4):  # of channels of an image
                rows = range(block * 13 + inner.start, block * 13 + inner.stop)
                found = [k // 8 for k in first_read if k // (15 * 8) in rows]
                assert found == sorted(found) and len(set(found)) > 60


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, 1), (4, 2)], ids=str)
def test_what_second_caches_hold_or_overlaps_by_more_is_read_at_once(
    size: int, stride: int
) -> None:
    """Sweeps pay only where they make one stream of several."""

    def text(l2_bytes: int, l1_bytes: int = 32 << 10) -> str:
        graph = with_layouts(
            graph_of(lambda g: g.output(g.max_pool(
                g.input("x", (1, 8, 10, 16)), kernel_shape=(size, size), strides=stride
            ))),
            {"x": BLOCKED, "max_pool": BLOCKED},
        )  # fmt: skip
        device = replace(AVX2, l1_bytes=l1_bytes, l2_bytes=l2_bytes // 2)
        assert device.threads == 2
        return kernel_text(launch_of(graph, device).kernel)

    nbytes = 8 * 10 * 16 * 4
    whole = text(nbytes)
    assert (whole != text(nbytes - 2)) == ((size, stride) == (3, 2))
    assert text(nbytes - 2, 256) == whole, "too long a row"


def test_a_result_has_one_order_of_additions_wherever_it_is_computed() -> None:
    """Borders, whole rounds and the rest: the same numbers in every window give the same mean."""
    row = np.random.default_rng(3).standard_normal(2).astype(np.float32)
    image = np.broadcast_to(row[np.arange(41) % 2], (1, 8, 9, 41)).copy()
    graph = with_layouts(
        graph_of(lambda g: g.output(
            g.average_pool(g.input("x", image.shape), kernel_shape=(3, 4), strides=2)
        )),
        {"x": BLOCKED, "average_pool": BLOCKED},
    )  # fmt: skip
    launch = launch_of(graph)
    arrays = [stored(image, graph.type("x")), None]
    found = interpret.run_kernel(launch.kernel, arrays)[1]
    assert np.unique(found).size == 1


# --------------------------------------------------------------------------- few results


@pytest.mark.parametrize("device", ["avx512", "neon"])
@pytest.mark.parametrize("shape, axes", [((6, 50), None), ((2, 6, 25), (1, 2)), ((301,), None),
                                         ((9, 3, 11), (0, 2))], ids=str)  # fmt: skip
def test_large_reductions_to_few_results_are_shared_out(
    shape: tuple[int, ...], axes: tuple[int, ...] | None, device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(partial, "LEAST_WORK", 60)
    monkeypatch.setattr(nest, "SERIAL_WORK", 20)
    monkeypatch.setattr(nest, "LEAST_WORK", 10)

    def build(g: GraphBuilder) -> None:
        x = g.input("x", shape)
        g.output(g.sqrt(g.abs(g.reduce_mean(x * x, axes=axes, keepdims=0))) + 1.0)

    graph = graph_of(build)
    launch = launch_of(graph, DEVICES[device])
    check_launch(graph, launch, feeds(graph), 1e-5)
    assert [b.role for b in launch.kernel.params] == ["in", "out", "scratch"]
    first, second = launch.kernel.phases
    assert first.items > 1 and second.items == 1
