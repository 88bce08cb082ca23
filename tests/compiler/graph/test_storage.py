"""Which results are other blobs' memory."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.graph.storage import aliases
from tilewright.ops.types import Layout, TensorType, f32


@pytest.mark.parametrize(
    ("dims", "layout", "expected"),
    [
        ((2, 21, 3, 5), Layout(), True),
        ((1, 32, 1, 1), Layout(1, 16), True),
        ((3, 32, 1, 1), Layout(1, 16), True),
        ((3, 32), Layout(1, 16), True),
        ((1, 32, 1, 2), Layout(1, 16), False),
        ((1, 21, 1, 1), Layout(1, 16), False),
    ],
)
def test_blocks_of_channels_at_one_place_lie_in_order(
    dims: tuple[int, ...], layout: Layout, expected: bool
) -> None:
    kind = TensorType(f32, dims, layout)
    assert kind.is_in_order == expected
    if expected:
        assert np.prod(kind.physical_shape) == np.prod(dims)


def classifier(channels: int) -> Graph:
    """Convolution, mean over places, product: the mean leaves blocks of channels."""
    rng = np.random.default_rng(0)

    def weights(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims).astype(np.float32)

    g = tw.Graph("classifier")
    x = g.conv(g.input("x", (2, 3, 6, 6)), weights(channels, 3, 3, 3))
    x = g.flatten(g.global_average_pool(x))
    g.output(g.matmul(x, weights(channels, 10)), "y")
    return g.build()


@pytest.mark.parametrize("channels", [48, 45])
def test_a_change_of_layout_that_moves_nothing_is_a_view(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    graph = classifier(channels)
    exe = tw.compile(graph)
    changes = [op for op in exe.graph.ops if op.operator == "reformat"]
    assert changes
    moved = [op.outputs[0] for op in changes if op.outputs[0] not in aliases(exe.graph)]
    assert bool(moved) == (channels == 45)
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(exe(x), evaluate(graph, {"x": x})["y"], 1e-5, 1e-5)
