"""Interpolation along several axes becomes one step per axis where rows are gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.passes.base import Fuel
from tilewright.compiler.passes.resampling import SeparateAxes
from tilewright.ops.types import Layout


def net(shape: tuple[int, ...], dtype: str = "f32", **attrs: Any) -> Graph:
    g = tw.Graph("net")
    g.output(g.resize(g.input("x", shape, dtype), **attrs), "y")
    return g.build()


def extents(graph: Graph) -> list[tuple[int, ...]]:
    """Of what each resize makes."""
    return [graph.type(op.outputs[0]).dims for op in graph.ops if op.operator == "resize"]


LINEAR = {"mode": "linear"}
SEPARATED = [
    ((1, 3, 5, 7), {"sizes": (1, 3, 10, 9), **LINEAR}),
    ((1, 3, 5, 7), {"sizes": (1, 3, 5, 14), **LINEAR}),  # one axis is one step
    ((2, 3, 5, 7), {"scales": (1.0, 1.0, 2.5, 0.6), "mode": "cubic"}),
    ((1, 2, 5, 6), {"scales": (1.0, 1.0, 1.3, 1.7), "sizes": (1, 2, 7, 11), **LINEAR}),
    ((1, 2, 5, 6), {"sizes": (1, 2, 7, 11), "mode": "cubic", "exclude_outside": 1}),
    ((1, 2, 3, 4, 5), {"sizes": (1, 2, 6, 5, 8), **LINEAR}),
    ((4, 6), {"sizes": (5, 13), **LINEAR}),
]


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric",
                                         "half_pixel_symmetric", "pytorch_half_pixel"])  # fmt: skip
@pytest.mark.parametrize("case", SEPARATED, ids=range(len(SEPARATED)))
def test_values_stay_as_they_are(case: tuple[tuple[int, ...], Any], coordinates: str) -> None:
    shape, attrs = case
    graph = net(shape, "f64", coordinate_transformation_mode=coordinates, **attrs)
    x = np.random.default_rng(0).standard_normal(shape)
    found = SeparateAxes().run(graph)
    made = extents(found)
    assert len(made) == sum(a != b for a, b in zip(shape, graph.type("y").dims, strict=True))
    assert all(sum(a != b for a, b in zip(before, after, strict=True)) == 1
               for before, after in zip([shape, *made], made, strict=False))  # fmt: skip
    np.testing.assert_allclose(evaluate(found, {"x": x})["y"], evaluate(graph, {"x": x})["y"],
                               rtol=1e-12, atol=1e-12)  # fmt: skip


def test_no_bit_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = net((1, 3, 9, 11), sizes=(1, 3, 23, 37), mode="cubic")
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 11), np.float32)
    two = tw.compile(graph)
    monkeypatch.setenv("TILEWRIGHT_FUEL", "0")
    one = tw.compile(graph)
    assert (len(two.kernels), len(one.kernels)) == (2, 1)
    np.testing.assert_array_equal(two(x), one(x))


@pytest.mark.parametrize("attrs", [
    {"sizes": (1, 3, 2, 14), **LINEAR},  # most of the rows would be for nothing
    {"sizes": (1, 6, 10, 7), **LINEAR},  # rows stay as they are
    {"sizes": (1, 3, 10, 14), "mode": "nearest"},
    {"sizes": (1, 3, 10, 14), "dtype": "f16", **LINEAR},
    {"sizes": (1, 3, 10, 14), "coordinate_transformation_mode": "tf_crop_and_resize",
     "roi": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0), **LINEAR},
])  # fmt: skip
def test_what_stays_one_step(attrs: dict[str, Any]) -> None:
    graph = net((1, 3, 5, 7), **attrs)
    assert SeparateAxes().run(graph).ops == graph.ops


def test_lanes_of_channels_gather_nothing() -> None:
    g = tw.Graph("net")
    x = g.input("x", (1, 3, 8, 8))
    w = g.parameter("w", np.ones((32, 3, 3, 3), np.float32))
    v = g.parameter("v", np.ones((32, 32, 3, 3), np.float32))
    h = g.resize(g.conv(x, w), scales=(1.0, 1.0, 2.0, 2.0), **LINEAR)
    g.output(g.conv(h, v), "y")
    final = tw.compile(g).graph
    assert extents(final) == [(1, 32, 12, 12)]
    (op,) = [op for op in final.ops if op.operator == "resize"]
    assert isinstance(final.type(op.outputs[0]).layout, Layout)
    assert final.type(op.outputs[0]).layout.is_blocked


def test_it_takes_fuel() -> None:
    graph = net((1, 3, 5, 7), sizes=(1, 3, 10, 9), **LINEAR)
    fuel = Fuel(1)
    assert len(extents(SeparateAxes().run(graph, fuel))) == 2
    assert len(extents(SeparateAxes().run(graph, fuel))) == 1
