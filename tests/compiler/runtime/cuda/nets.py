"""Small models for a simulated GPU."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.ir import Graph

rng = np.random.default_rng(5)
X = rng.standard_normal((1, 3, 6, 6)).astype(np.float32)
A = rng.standard_normal((4, 40)).astype(np.float32)


def convnet() -> Graph:
    """A convolution, a pool, a classifier: constants, several launches, an arena."""
    r = np.random.default_rng(6)
    g = tw.Graph("net")
    x = g.input("x", (1, 3, 6, 6))
    w = g.constant(r.standard_normal((4, 3, 3, 3)).astype(np.float32), name="w")
    y = g.relu(g.conv(x, w, pads=1), name="secret_layer")
    y = g.max_pool(y, kernel_shape=(2, 2), strides=(2, 2))
    v = g.constant(r.standard_normal((36, 5)).astype(np.float32), name="v")
    g.output(g.softmax(g.matmul(g.reshape(y, shape=(1, 36)), v), axis=1), "prob")
    return g.build()


def rows() -> Graph:
    """One kernel: softmax of rows."""
    g = tw.Graph("rows")
    g.output(g.softmax(g.input("x", (4, 40)), axis=1), "y")
    return g.build()


def two() -> Graph:
    """Two inputs, two outputs of different types."""
    g = tw.Graph("two")
    a, b = g.input("a", (4, 40)), g.input("b", (4, 40))
    s = g.softmax(g.add(a, b), axis=1)
    g.output(s, "s")
    g.output(g.arg_max(s, axis=1, keepdims=0), "best")
    return g.build()


def softmax(x: np.ndarray) -> np.ndarray:
    """The truth of `rows`."""
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
