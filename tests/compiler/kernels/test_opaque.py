"""Arg max, top k, running sums, scatters and unpooling, compiled, against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.errors import GraphError
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.compiler.kernels.scan import CumulativeSum
from tilewright.compiler.kernels.scatter import Scatter
from tilewright.compiler.kernels.sorting import ArgReduce, TopK
from tilewright.compiler.kernels.template import KernelTemplate
from tilewright.compiler.kernels.unpool import Unpool
from tilewright.ops import library as _library  # noqa: F401  registers every operator
from tilewright.ops.operator import REGISTRY, Opaque
from tilewright.ops.samples import cases
from tilewright.ops.types import Layout, boolean, f16, f32, f64, u8

from .native import check, graph_of
from .support import AVX2, check_launch, with_layouts

TEMPLATES: dict[str, KernelTemplate] = {
    "argreduce": ArgReduce(), "sort": TopK(), "scan": CumulativeSum(), "scatter": Scatter(),
    "unpool": Unpool(),
}  # fmt: skip


def template_of(operator: str) -> KernelTemplate:
    trait = REGISTRY[operator].trait(Opaque)
    assert trait is not None
    return TEMPLATES[trait.kind]


OPERATORS = sorted(
    name for name, op in REGISTRY.items()
    if (trait := op.trait(Opaque)) is not None and trait.kind != "concat"
)  # fmt: skip
rng = np.random.default_rng(7)


def rounded(*shape: int) -> Any:
    """Few distinct numbers, so that there are ties."""
    return np.round(rng.standard_normal(shape) * 2).astype(np.float32)


def sprinkled(*shape: int) -> Any:
    """Ties, infinities and NaN."""
    x = rounded(*shape)
    places = rng.random(shape)
    x[places < 0.2] = np.nan
    x[places > 0.9] = np.inf
    x[(places > 0.8) & (places < 0.9)] = -np.inf
    return x


@pytest.mark.parametrize("dtype", [f32, f64, u8, boolean, f16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_samples(name: str, dtype: Any) -> None:
    tried = 0
    for case in cases(REGISTRY[name], dtype):
        try:
            graph, feeds = graph_of(name, case.inputs, case.constant, **case.attrs)
        except GraphError:
            continue
        loose = 2e-3 if dtype is f16 else case.tolerance
        check(template_of(name), graph, feeds, tolerance=loose)
        tried += 1
    assert tried or dtype is boolean


@pytest.mark.parametrize("name", OPERATORS)
def test_every_access_is_inside_and_items_do_not_meet(name: str) -> None:
    """The interpreter checks bounds, roles, and that no item sees what another one writes."""
    template = template_of(name)
    for case in cases(REGISTRY[name], f32):
        graph, feeds = graph_of(name, case.inputs, case.constant, **case.attrs)
        launch = template.instantiate(graph, graph.ops, graph.outputs, AVX2, {})
        check_launch(graph, launch, feeds)


@pytest.mark.parametrize("name", OPERATORS)
def test_blocked_tensors_are_left_to_others(name: str) -> None:
    template = template_of(name)
    case = next(iter(cases(REGISTRY[name], f32)))
    graph, _ = graph_of(name, case.inputs, case.constant, **case.attrs)
    blocked = with_layouts(graph, {graph.inputs[0]: Layout(0, 8)})
    assert template.matches(graph, graph.ops, graph.outputs)
    assert not template.matches(blocked, blocked.ops, blocked.outputs)


# --------------------------------------------------------------------------- arg max, arg min


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("name", ["arg_max", "arg_min"])
def test_arg_finds_the_first_or_the_last_of_ties_and_nan(name: str, last: int) -> None:
    for x in (
        sprinkled(9, 37),
        sprinkled(4, 1),
        sprinkled(3, 16),
        rounded(5, 100),
        np.full((2, 20), -np.inf, np.float32),
        np.full((2, 20), np.nan, np.float32),
    ):
        for axis in (0, 1):
            graph, feeds = graph_of(name, [x], axis=axis, select_last_index=last)
            check(ArgReduce(), graph, feeds)


def test_arg_of_large_tensors_is_shared_out() -> None:
    for shape, axis in (((40, 2000), 1), ((7, 30, 400), 1), ((300, 301), 0)):
        graph, feeds = graph_of("arg_max", [rounded(*shape)], axis=axis)
        assert check(ArgReduce(), graph, feeds).kernel.phases[0].items > 1


def test_arg_of_extreme_integers() -> None:
    for kind in (np.int64, np.uint64, np.int8):
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        x = np.array([[least, most, most], [least, least, least]], kind)
        for name in ("arg_max", "arg_min"):
            for axis in (0, 1):
                graph, feeds = graph_of(name, [x], axis=axis)
                check(ArgReduce(), graph, feeds)


# --------------------------------------------------------------------------- top k


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_orders_ties_and_nan(largest: int) -> None:
    for x, k in (
        (sprinkled(5, 40), 11),
        (sprinkled(5, 40), 40),
        (rounded(3, 500), 7),
        (sprinkled(2, 700), 1),
        (np.full((1, 90), np.nan, np.float32), 3),
    ):
        graph, feeds = graph_of("top_k", [x], k=k, largest=largest)
        check(TopK(), graph, feeds)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_sorted_rows(largest: int) -> None:
    """The order in which every element enters the heap, and the one in which none does."""
    x = np.stack([np.arange(300), np.arange(300)[::-1]]).astype(np.int64)
    for k in (1, 2, 3, 64, 299, 300):
        graph, feeds = graph_of("top_k", [x], k=k, largest=largest)
        check(TopK(), graph, feeds)


def test_top_k_along_other_axes_and_without_readers() -> None:
    x = rounded(40, 13, 50)
    graph, feeds = graph_of("top_k", [x], k=5, axis=1)
    assert check(TopK(), graph, feeds).kernel.phases[0].items > 1
    for only in graph.outputs:
        check(TopK(), graph, feeds, outputs=[only])
    graph, feeds = graph_of("top_k", [x], k=0, axis=1)
    check(TopK(), graph, feeds)


# --------------------------------------------------------------------------- running sums


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_of_many_shapes(exclusive: int, reverse: int) -> None:
    for shape, axis in (
        ((9, 21), 1),
        ((200, 190), 1),
        ((3, 50, 33), 1),
        ((60, 700), 0),
        ((0, 3), 1),
        ((8, 1), 1),
    ):
        x = rng.standard_normal(shape)
        graph, feeds = graph_of("cum_sum", [x], axis=axis, exclusive=exclusive, reverse=reverse)
        launch = check(CumulativeSum(), graph, feeds, tolerance=1e-12)
        assert launch.kernel.inplace == ((1, 0),)


# --------------------------------------------------------------------------- scatter


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter_elements_where_updates_meet(reduction: str) -> None:
    """Few places and many updates, large enough for several items."""
    for shape, dims, axis in (
        ((4, 900), (20, 900), 0),
        ((600, 5), (600, 15), 1),
        ((3, 2, 700), (2, 12, 650), 1),
        ((50, 3), (4000, 3), 0),
    ):
        data, updates = rng.uniform(0.9, 1.1, shape), rng.uniform(0.9, 1.1, dims)
        indices = rng.integers(-shape[axis], shape[axis], dims)
        graph, feeds = graph_of("scatter_elements", [data, indices, updates], axis=axis,
                                reduction=reduction)  # fmt: skip
        launch = check(Scatter(), graph, feeds, tolerance=1e-12)
        assert (launch.kernel.phases[1].items > 1) == (dims != (4000, 3))


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_nd_where_updates_meet(reduction: str) -> None:
    for shape, lead, depth in (((6, 5), (400,), 2), ((3, 40, 9), (7, 5), 1), ((4, 3000), (20,), 1)):
        data = rng.standard_normal(shape)
        updates = rng.standard_normal((*lead, *shape[depth:]))
        low = [rng.integers(-n, n, lead) for n in shape[:depth]]
        graph, feeds = graph_of("scatter_nd", [data, np.stack(low, -1), updates],
                                reduction=reduction)  # fmt: skip
        check(Scatter(), graph, feeds, tolerance=1e-12)


def test_indices_outside_are_moved_to_the_edge() -> None:
    data, updates = rounded(5, 4), rounded(3, 4)
    indices = np.array([[99, -99, 2, 0], [-6, 5, 1, 3], [1 << 40, -(1 << 40), 4, -5]])
    inside = np.clip(np.where(indices < 0, indices + 5, indices), 0, 4)
    graph, feeds = graph_of("scatter_elements", [data, indices, updates])
    want = REGISTRY["scatter_elements"].reference(data, inside, updates, axis=0, reduction="none")
    check(Scatter(), graph, feeds, want={graph.outputs[0]: want})
    graph, feeds = graph_of("scatter_nd", [data, indices[:, :1], updates])
    want = REGISTRY["scatter_nd"].reference(data, inside[:, :1], updates, reduction="none")
    check(Scatter(), graph, feeds, want={graph.outputs[0]: want})


def test_scatter_without_updates_copies() -> None:
    data = rounded(5, 4)
    graph, feeds = graph_of(
        "scatter_elements", [data, np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32)]
    )
    check(Scatter(), graph, feeds)


def test_data_that_is_read_twice_is_not_overwritten() -> None:
    from_zero = np.arange(6, dtype=np.int64)
    graph, _ = graph_of("scatter_elements", [from_zero, from_zero, from_zero])
    launch = Scatter().instantiate(graph, graph.ops, graph.outputs, AVX2, {})
    assert launch.kernel.inplace
    op = graph.ops[0]
    same = type(graph)(
        "same", graph.inputs, graph.outputs,
        (type(op)(op.operator, (op.inputs[0], op.inputs[0], op.inputs[2]), op.outputs, op.attrs),),
        graph.blobs,
    )  # fmt: skip
    launch = Scatter().instantiate(same, same.ops, same.outputs, AVX2, {})
    assert not launch.kernel.inplace
    assert len(launch.kernel.params) == 3


# --------------------------------------------------------------------------- unpooling


def test_unpool_keeps_the_last_and_drops_what_is_outside() -> None:
    x = rounded(2, 30, 40)
    indices = rng.integers(-50, 2 * 30 * 50 + 50, x.shape)
    graph, feeds = graph_of("max_unpool", [x, indices], output_shape=(2, 30, 50))
    check(Unpool(), graph, feeds)


@pytest.mark.parametrize("astray", ["", "near", "far"])
@pytest.mark.parametrize("kernel, strides", [((2, 2), 2), ((3, 2), (2, 2)), ((), 1)], ids=str)
@pytest.mark.parametrize("blocked", [False, True])
def test_unpool_in_parts(blocked: bool, kernel: tuple[int, ...], strides: Any, astray: str) -> None:
    """Indices in their own windows; a few in others of their channel, or in none of it."""
    n, c, h, w = 2, 11, 6, 5
    shape = (n, c, 14, 11)
    rows = rng.integers(0, 2, (n, c, h, w)) + 2 * np.arange(h).reshape(-1, 1)
    columns = rng.integers(0, 2, (n, c, h, w)) + 2 * np.arange(w)
    indices = (np.arange(n * c).reshape(n, c, 1, 1) * 14 + rows) * 11 + columns // 2 * 2
    if astray == "near":
        indices[0, 3, 2, 1] += 2
        indices[1, 10, 1, 4] -= 2
        indices[1, 9, 1, 3] = indices[1, 9, 1, 2]
    elif astray == "far":
        indices[0, 3, 2, 1:4] = (-1, np.prod(shape), 14 * 11 * c + 5)
        indices[1, 10, 5, 4] = 0
    graph, feeds = graph_of("max_unpool", [rounded(n, c, h, w), indices], kernel_shape=kernel,
                            strides=strides, output_shape=shape)  # fmt: skip
    if not blocked:
        check(Unpool(), graph, feeds)
        return
    graph = with_layouts(graph, dict.fromkeys(graph.blobs, Layout(1, 8)))
    assert Unpool().matches(graph, graph.ops, graph.outputs)
    launch = Unpool().instantiate(graph, graph.ops, graph.outputs, AVX2, {})
    assert ("missed" in kernel_text(launch.kernel)) == (kernel == (2, 2))
    check_launch(graph, launch, feeds)
