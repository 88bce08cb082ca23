"""Equal groups share a kernel, whatever their blobs are called; different ones never do."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.evaluate import evaluate

rng = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_repeated_blocks_share_kernels_and_keep_their_own_weights() -> None:
    g = tw.Graph()
    x: Value = g.input("x", (1, 16, 6, 6))
    for _ in range(4):
        x = g.relu(g.conv(x, weights(16, 16, 3, 3) * 0.1, weights(16), pads=1)) + x
    g.output(x, "y")
    exe = tw.compile(g)
    assert exe.stats.distinct < len(exe.kernels)
    a = rng.standard_normal((1, 16, 6, 6)).astype(np.float32)
    truth = evaluate(g.build(), {"x": a})["y"]
    assert np.abs(exe(a) - truth).max() < 1e-5 * np.abs(truth).max()


def test_scalars_that_kernels_write_out_tell_groups_apart() -> None:
    g = tw.Graph()
    x = g.input("x", (5, 7))
    g.output(g.softmax(x * 2.0, axis=0), "a")
    g.output(g.softmax(x * 3.0, axis=0), "b")
    exe = tw.compile(g)
    a = rng.standard_normal((5, 7)).astype(np.float32)
    got, truth = exe.run({"x": a}), evaluate(g.build(), {"x": a})
    for n in ("a", "b"):
        np.testing.assert_allclose(got[n], truth[n], rtol=1e-5, atol=1e-7)


def test_the_same_blob_twice_is_not_two_blobs() -> None:
    g = tw.Graph()
    x, y = g.input("x", (4, 4)), g.input("y", (4, 4))
    g.output(g.softmax(x * x, axis=0), "a")
    g.output(g.softmax(x * y, axis=0), "b")
    exe = tw.compile(g)
    feeds = {"x": weights(4, 4), "y": weights(4, 4)}
    got, truth = exe.run(feeds), evaluate(g.build(), feeds)
    for n in ("a", "b"):
        np.testing.assert_allclose(got[n], truth[n], rtol=1e-5, atol=1e-7)
