"""Small models to tune, and programs for tests to run in processes of their own."""

from __future__ import annotations

import numpy as np

import tilewright as tw


def product(rows: int = 64) -> tw.Graph:
    """y = relu(x @ w): one task, a dozen candidates."""
    g = tw.Graph("product")
    w = np.random.default_rng(0).standard_normal((256, 96), dtype=np.float32)
    g.output(g.relu(g.matmul(g.input("x", (rows, 256)), g.parameter("w", w))), "y")
    return g


def network() -> tw.Graph:
    """Three tasks of different weights, one of them with two templates; 50 candidates."""
    rng = np.random.default_rng(0)
    g = tw.Graph("network")

    def weights(name: str, *shape: int) -> str:
        return g.parameter(name, rng.standard_normal(shape, dtype=np.float32))

    h = g.relu(g.conv(g.input("x", (1, 16, 24, 24)), weights("w1", 32, 16, 3, 3), pads=1))
    h = g.relu(g.conv(h, weights("w2", 32, 32, 1, 1)))
    g.output(g.matmul(g.reshape(h, shape=(1, 32 * 24 * 24)), weights("w3", 32 * 24 * 24, 10)), "y")
    return g
