"""Max unpooling on GPUs: indices as a pooling leaves them, and others."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw

from ..codegen.cuda.programs import gpu_launches, run_graph

rng = np.random.default_rng(5)


@pytest.mark.parametrize("shape", [(6, 8), (7, 9)])
@pytest.mark.parametrize("kind", ["own windows", "astray", "outside"])
def test_indices(shape: tuple[int, int], kind: str) -> None:
    """Of several elements for one place the last one stays; those outside are left out."""
    g = tw.Graph("unpool")
    h, w = shape
    x, ix = g.input("x", (2, 3, h // 2, w // 2)), g.input("ix", (2, 3, h // 2, w // 2), "i64")
    g.output(g.max_unpool(x, ix, kernel_shape=2, strides=2, output_shape=(2, 3, h, w)), "y")
    graph = g.build()
    (launch,) = gpu_launches(graph)[1]
    assert launch.kernel.template == "gpu_unpool" and launch.kernel.items[0] >= 6 * h * w // 4
    values = rng.standard_normal((2, 3, h // 2, w // 2)).astype(np.float32)
    plane = np.arange(6).reshape(2, 3, 1, 1) * h * w
    row = 2 * np.arange(h // 2).reshape(-1, 1) + rng.integers(0, 2, (2, 3, h // 2, w // 2))
    column = 2 * np.arange(w // 2) + rng.integers(0, 2, (2, 3, h // 2, w // 2))
    places = plane + row * w + column
    if kind == "astray":
        places[0, 0, 0, 0] = places[1, 2, -1, -1]
        places[1, 1] = 5
    if kind == "outside":
        places[0, 1, 0, 0], places[1, 0, 1, 1] = -1, 6 * h * w
    want = np.zeros(6 * h * w, np.float32)
    for to, v in zip(places.reshape(-1), values.reshape(-1), strict=True):
        if 0 <= to < want.size:
            want[to] = v
    got = run_graph(graph, {"x": values, "ix": places})["y"]
    np.testing.assert_array_equal(got.reshape(-1), want)
