"""The attention template against float64 references, in the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.attention import Attend
from tilewright.compiler.passes.decompose import Decompose

from .support import AVX512, DEVICES, check_group

ATTEND = Attend()
Feeds = dict[str, Any]


class Maker:
    """Builds a graph around one attention."""

    def __init__(self, dtype: str = "float32") -> None:
        self.g, self.feeds, self.dtype = GraphBuilder("attention"), Feeds(), dtype
        self.rng = np.random.default_rng(11)

    def input(self, *shape: int) -> Value:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.rng.standard_normal(shape).astype(self.dtype)
        return self.g.input(name, shape, self.dtype)

    def attend(self, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
        """k: one row per key, as v."""
        rank = len(k.shape)
        swap = (*range(rank - 2), rank - 1, rank - 2)
        scores = (q @ self.g.transpose(k, perm=swap)) * np.asarray(0.3, self.dtype)
        return self.g.softmax(scores if mask is None else scores + mask, axis=-1) @ v


def _heads(t: Maker) -> Value:
    """Heads cut out of rows and put together again: no copy in front of the kernel or behind."""

    def cut(x: Value) -> Value:
        return t.g.transpose(t.g.reshape(x, shape=(2, 9, 3, 5)), perm=(0, 2, 1, 3))

    y = t.attend(cut(t.input(2, 9, 15)), cut(t.input(2, 9, 15)), cut(t.input(2, 9, 15)))
    return t.g.reshape(t.g.transpose(y, perm=(0, 2, 1, 3)), shape=(2, 9, 15))


def _many_rows(t: Maker) -> Value:
    return t.attend(t.input(2, 37, 8), t.input(2, 35, 8), t.input(2, 35, 21))


def _masked(t: Maker) -> Value:
    return t.attend(t.input(2, 7, 6), t.input(2, 18, 6), t.input(2, 18, 4), t.input(1, 7, 18))


def _hidden(t: Maker) -> Value:
    """Keys that are masked out altogether."""
    mask = np.zeros((5, 19), t.dtype)
    mask[:, 7:] = -np.inf
    q, k, v = t.input(5, 6), t.input(19, 6), t.input(19, 17)
    return t.g.relu(t.attend(q, k, v, t.g.constant(mask)))


def _large(t: Maker) -> Value:
    """Scores whose powers are no finite numbers. Their spacing of 7.6e-6 is within tolerance."""
    q, k, v = t.input(5, 6), t.input(19, 6), t.input(19, 17)
    return t.attend(q, k, v, t.g.constant(np.full((5, 19), 100, t.dtype)))


def _one_row(t: Maker) -> Value:
    return t.attend(t.input(3, 1, 8), t.input(3, 33, 8), t.input(3, 33, 16))


def _shared_keys(t: Maker) -> Value:
    """All heads have the same keys and values: their rows are one matrix."""
    return t.attend(t.input(4, 6, 8), t.input(1, 10, 8), t.input(1, 10, 12))


def _constant_keys(t: Maker) -> Value:
    k = t.g.constant(t.rng.standard_normal((13, 4)).astype(t.dtype))
    v = t.g.constant(t.rng.standard_normal((13, 20)).astype(t.dtype))
    return t.attend(t.input(11, 4), k, v)


CASES: dict[str, Callable[[Maker], Value]] = {
    f.__name__[1:]: f
    for f in (_heads, _many_rows, _masked, _hidden, _large, _one_row, _shared_keys, _constant_keys)
}


def graph_of(build: Callable[[Maker], Value], dtype: str = "float32") -> tuple[Graph, Feeds]:
    t = Maker(dtype)
    t.g.output(build(t))
    return Decompose().run(t.g.build()), t.feeds


@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str) -> None:
    check_group(ATTEND, *graph_of(CASES[name]), device=AVX512)


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_machine_and_type(machine: str, dtype: str) -> None:
    for build in (_heads, _masked):
        check_group(ATTEND, *graph_of(build, dtype), device=DEVICES[machine], most=2)


def test_scores_take_no_more_memory_than_items_need() -> None:
    graph, _ = graph_of(lambda t: t.attend(t.input(1, 300, 8), t.input(1, 200, 8),
                                           t.input(1, 200, 8)))  # fmt: skip
    config = ATTEND.default(graph, graph.ops, graph.outputs, AVX512)
    launch = ATTEND.instantiate(graph, graph.ops, graph.outputs, AVX512, config | {"items": 3})
    keys = -(-200 // AVX512.lanes()) * AVX512.lanes()
    sheet = next(b for b in launch.kernel.params if b.role == "scratch")
    assert sheet.elements == 3 * config["mr"] * keys


def test_declines_weights_that_others_read() -> None:
    t = Maker()
    q, k, v = t.input(5, 6), t.input(6, 19), t.input(19, 17)
    weights = t.g.softmax(q @ k, axis=-1)
    t.g.output(weights)
    t.g.output(weights @ v)
    graph = Decompose().run(t.g.build())
    assert not ATTEND.matches(graph, graph.ops, graph.outputs)


@pytest.mark.parametrize("heads", [3, 4])
def test_values_are_packed_where_their_rows_share_cache_sets(heads: int) -> None:
    """Rows of 4 heads are 4096 bytes apart, those of 3 heads 3072."""

    def build(t: Maker) -> Value:
        def cut(x: Value) -> Value:
            return t.g.transpose(t.g.reshape(x, shape=(64, heads, 256)), perm=(1, 0, 2))

        return t.attend(*(cut(t.input(64, heads * 256)) for _ in range(3)))

    graph, _ = graph_of(build)
    config = ATTEND.default(graph, graph.ops, graph.outputs, AVX512)
    launch = ATTEND.instantiate(graph, graph.ops, graph.outputs, AVX512, config)
    assert config["pack"] is (heads == 4)
    assert len(launch.kernel.phases) == (3 if heads == 4 else 2)
