"""The matrix product template against float64 references, in the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import Hints, run_kernel
from tilewright.compiler.kernels.matmul import AHEAD, LINE, STREAMED, Gemm, cold_slots
from tilewright.compiler.kernels.matmul_group import pack_panels

from .support import AVX2, AVX512, DEVICES, NEON, check_group, check_launch

GEMM = Gemm()


class Maker:
    """Builds a graph around one product; its last value is the output."""

    def __init__(self, dtype: str = "float32") -> None:
        self.g, self.feeds, self.dtype = GraphBuilder("gemm"), dict[str, Any](), dtype
        self.rng = np.random.default_rng(7)

    def array(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def input(self, *shape: int) -> Value:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.array(*shape)
        return self.g.input(name, shape, self.dtype)

    def constant(self, *shape: int) -> Value:
        return self.g.constant(self.array(*shape))

    def finish(self, *values: Value) -> tuple[Graph, dict[str, Any]]:
        for v in values:
            self.g.output(v)
        return self.g.build(), self.feeds


Build = Callable[[Maker], Any]


def _mlp(t: Maker) -> Any:
    return t.g.relu(t.input(9, 20) @ t.constant(20, 37) + t.constant(37))


def _residual(t: Maker) -> Any:
    x, r = t.input(2, 9, 12), t.input(2, 9, 24)
    return x @ t.constant(12, 24) + r


def _vector(t: Maker) -> Any:
    return t.input(1, 40) @ t.constant(40, 70) + t.constant(70)


def _runtime(t: Maker) -> Any:
    return t.input(35, 11) @ t.input(11, 21)


def _transposed_right(t: Maker) -> Any:
    return t.input(3, 35, 37) @ t.g.transpose(t.input(3, 21, 37), perm=(0, 2, 1))


def _transposed_left(t: Maker) -> Any:
    return t.g.transpose(t.input(9, 34), perm=(1, 0)) @ t.input(9, 5)


def _heads(t: Maker) -> Any:
    """Attention's second product: heads are split on the way in and joined on the way out."""
    p = t.input(2, 3, 7, 7)
    v = t.g.transpose(t.g.reshape(t.input(2, 7, 48), shape=(2, 7, 3, 16)), perm=(0, 2, 1, 3))
    return t.g.reshape(t.g.transpose(p @ v, perm=(0, 2, 1, 3)), shape=(2, 7, 48))


def _scores(t: Maker) -> Any:
    q = t.g.transpose(t.g.reshape(t.input(2, 5, 24), shape=(2, 5, 3, 8)), perm=(0, 2, 1, 3))
    k = t.g.transpose(t.g.reshape(t.input(2, 6, 24), shape=(2, 6, 3, 8)), perm=(0, 2, 3, 1))
    return (q @ k) * np.asarray(0.25, np.float32) + t.input(2, 1, 1, 6)


def _broadcast(t: Maker) -> Any:
    return t.input(4, 1, 5, 6) @ t.input(3, 6, 9)


def _scattered_left(t: Maker) -> Any:
    """The left operand's offset is not affine: (4, 9) is a window of (6, 6)."""
    x = t.g.reshape(t.g.slice(t.input(7, 9), starts=(0, 1), ends=(6, 7), axes=(0, 1)),
                    shape=(4, 9))  # fmt: skip
    return x @ t.input(9, 17)


def _constant_view(t: Maker) -> Any:
    return t.input(6, 10) @ t.g.transpose(t.constant(18, 10), perm=(1, 0))


def _batched_constant(t: Maker) -> Any:
    return t.input(3, 6, 10) @ t.constant(3, 10, 18)


def _row(t: Maker) -> Any:
    return t.input(6) @ t.input(2, 6, 19)


def _split_columns(t: Maker) -> Any:
    """The result's columns become two axes, which change places with the rows."""
    y = t.input(1, 5, 9) @ t.constant(9, 32)
    return t.g.transpose(t.g.reshape(y, shape=(1, 5, 2, 16)), perm=(0, 2, 1, 3))


def _both(t: Maker) -> Any:
    y = t.input(5, 9) @ t.constant(9, 20)
    return y, t.g.tanh(y)


CASES: dict[str, Build] = {
    f.__name__[1:]: f
    for f in (_mlp, _residual, _vector, _runtime, _transposed_right, _transposed_left, _heads,
              _scores, _broadcast, _scattered_left, _constant_view, _batched_constant, _row,
              _split_columns, _both)
}  # fmt: skip


def graph_of(build: Build, dtype: str = "float32") -> tuple[Graph, dict[str, Any]]:
    t = Maker(dtype)
    made = build(t)
    return t.finish(*(made if isinstance(made, tuple) else (made,)))


@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str) -> None:
    check_group(GEMM, *graph_of(CASES[name]), device=AVX512)


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine_and_type(machine: str) -> None:
    for dtype in ("float32", "float64"):
        check_group(GEMM, *graph_of(_mlp, dtype), device=DEVICES[machine], most=3)
        check_group(GEMM, *graph_of(_transposed_right, dtype), device=DEVICES[machine], most=2)


def test_sums_rest_in_the_output_between_blocks_of_k() -> None:
    graph, feeds = graph_of(_residual)
    config = GEMM.default(graph, graph.ops, graph.outputs, AVX2) | {"kc": 5}
    launch = GEMM.instantiate(graph, graph.ops, graph.outputs, AVX2, config)
    assert not launch.kernel.inplace
    check_launch(graph, launch, feeds)


def test_panels() -> None:
    b = np.arange(2 * 3 * 11).reshape(2, 3, 11)
    flat = pack_panels(b, 4, 8)
    assert flat.shape == (2 * 3 * 12,)
    assert flat[:8].tolist() == b[0, 0, :8].tolist()
    assert flat[24:28].tolist() == [*b[0, 0, 8:].tolist(), 0]


def test_declines() -> None:
    t = Maker()
    graph, _ = t.finish(t.input(4, 5) @ t.input(5))
    assert not GEMM.matches(graph, graph.ops, graph.outputs), "one column: a reduction is better"
    t = Maker("int32")
    graph, _ = t.finish(t.input(4, 5) @ t.input(5, 4))
    assert not GEMM.matches(graph, graph.ops, graph.outputs)
    assert NEON.lanes() == 4


@pytest.mark.parametrize("rows", [1, 6, 26])
@pytest.mark.parametrize("kc", [0, 7])
def test_every_panel_is_asked_for_before_it_is_read(rows: int, kc: int) -> None:
    """By the tiles of the panel before, or by a lone tile a little ahead of its own steps."""
    steps, columns = 23, 70
    t = Maker()
    graph, feeds = t.finish(t.input(rows, steps) @ t.constant(steps, columns))
    config = GEMM.default(graph, graph.ops, graph.outputs, AVX2)
    config |= {"mr": min(rows, 6), "nb": 2, "kc": kc, "order": "n"}
    launch = GEMM.instantiate(graph, graph.ops, graph.outputs, AVX2, config)
    panels = next(b for b in launch.kernel.params if b.role == "const")
    arrays = [feeds[a].reshape(-1) if isinstance(a, str) and a in feeds
              else np.zeros(b.elements, np.float32) if b is panels else None
              for a, b in zip(launch.args, launch.kernel.params, strict=True)]  # fmt: skip
    hints: Hints = {}
    run_kernel(launch.kernel, arrays, hints=hints)
    line = LINE // 4
    asked = {at // line for at in hints[panels]}
    first = steps * config["nb"] * AVX2.lanes() if rows > config["mr"] else AHEAD // 4
    assert asked.issuperset(range(first // line, panels.elements // line))


def test_few_rows_take_constants_from_memory_once() -> None:
    """A panel that is larger than the second cache would come from beyond it for every tile."""

    def tile(rows: int, steps: int, columns: int = 1024) -> tuple[int, int]:
        t = Maker()
        graph, _ = t.finish(t.input(rows, steps) @ t.constant(steps, columns))
        config = GEMM.default(graph, graph.ops, graph.outputs, AVX512)
        return config["mr"], config["nb"]

    far = STREAMED * AVX512.l2_bytes // 1024 // 4 + 8
    assert tile(1, far) == (1, 1) and tile(4, far) == (4, 1)
    assert tile(8, far) == (8, 3)
    assert tile(1, 256)[1] > 1, "cached panels are best wide"
    assert tile(8, 1024, 1024)[0] < 8, "rows that share a cache set"


def test_what_a_tile_waits_for_memory() -> None:
    assert cold_slots(1, 1, 1) == cold_slots(4, 1, 1), "memory sets the pace"
    assert cold_slots(1, 2, 1) > 2 * cold_slots(1, 1, 1), "in bursts it serves worse"
    assert cold_slots(1, 1, 0.5) < cold_slots(1, 1, 1), "half a line"
    assert cold_slots(30, 1, 1) > 30, "work hides it"


def test_rows_that_share_a_cache_set() -> None:
    """Eight rows a page apart stay in a cache of twelve ways; one of eight has no room for them."""
    t = Maker()
    graph, _ = t.finish(t.input(8, 1024) @ t.constant(1024, 96))

    def rows(ways: int) -> int:
        device = replace(AVX512, l1_ways=ways)
        return int(GEMM.default(graph, graph.ops, graph.outputs, device)["mr"])

    assert rows(12) == 8
    assert rows(8) <= 6


@pytest.mark.parametrize("name", ["runtime", "transposed_right"])
def test_packed_panels_have_no_holes(name: str) -> None:
    """Lanes past the last column take part in the arithmetic: leftovers there can be slow."""
    graph, feeds = graph_of(CASES[name])
    config = GEMM.default(graph, graph.ops, graph.outputs, AVX512) | {"pack": True}
    launch = GEMM.instantiate(graph, graph.ops, graph.outputs, AVX512, config)
    params = launch.kernel.params
    arrays = [feeds[a].reshape(-1) if a in feeds else None for a in launch.args]
    done = run_kernel(launch.kernel, arrays)
    panels = [x for x, b in zip(done, params, strict=True) if b.role == "scratch"]
    assert len(panels) == 1 and not np.isnan(panels[0]).any()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1000), (200, 10), (200, 1000)])
def test_orders_differ_in_spaces(rows: int, columns: int) -> None:
    """One panel, or one tile of rows, has no order: no kernel is timed twice."""
    t = Maker()
    graph, _ = t.finish(t.input(rows, 64) @ t.constant(64, columns))
    given = graph, graph.ops, graph.outputs, AVX512
    several = [c["mr"] < rows and 16 * c["nb"] < columns for c in GEMM.space(*given)]
    orders = [c["order"] for c in GEMM.space(*given)]
    assert all(ok or order == "n" for ok, order in zip(several, orders, strict=True))
    assert ("m" in orders) == any(several)
