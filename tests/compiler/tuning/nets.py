"""Small networks whose groups are of every kind: what templates serve, most layouts and types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.compiler.api.build import device_of
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.select import Group, coded_groups

Array = np.ndarray[Any, Any]


def weights(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    fan = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def residual(g: Any) -> None:
    """A stem, strided, pointwise and 3x3 convolutions, a residual, an odd number of channels."""
    x = g.input("x", (2, 3, 19, 17))
    h = g.relu(g.conv(x, weights(24, 3, 3, 3), weights(24), pads=1))
    h = g.relu(g.add(h, g.conv(h, weights(24, 24, 3, 3), pads=1)))
    h = g.max_pool(h, kernel_shape=(3, 3), strides=(2, 2))
    h = g.conv(h, weights(21, 24, 1, 1))
    h = g.conv(h, weights(32, 21, 3, 3), strides=(2, 2), pads=1)
    pooled = g.reshape(g.global_average_pool(h), shape=(2, 32))
    g.output(g.softmax(g.matmul(pooled, weights(32, 10)), axis=-1), name="y")


def branches(g: Any) -> None:
    """Parts of a concatenation, groups, depthwise, shuffled channels."""
    x = g.input("x", (1, 32, 12, 12))
    a = g.relu(g.conv(x, weights(32, 32, 3, 3), pads=1))
    b = g.relu(g.conv(x, weights(16, 32, 1, 1)))
    h = g.concat(a, b, axis=1)
    h = g.conv(h, weights(48, 1, 3, 3), group=48, pads=1)
    h = g.conv(h, weights(48, 12, 1, 1), group=4)
    order = np.arange(48).reshape(4, 12).T.reshape(-1)
    h = g.conv(g.gather(g.relu(h), order, axis=1), weights(48, 12, 1, 1), group=4)
    g.output(g.sigmoid(h), name="y")


def attention(g: Any) -> None:
    """Products of two kinds, attention, normalisation, a scale that kernels write out."""
    x = g.input("x", (2, 23, 48))
    q, k, v = (g.matmul(x, weights(48, 40)) for _ in range(3))
    scores = g.mul(g.matmul(q, g.transpose(k, perm=(0, 2, 1))), np.float32(0.158))
    h = g.matmul(g.matmul(g.softmax(scores, axis=-1), v), weights(40, 48))
    g.output(g.layer_normalization(g.add(x, h), weights(48), weights(48), axis=-1), name="y")


def sequence(g: Any) -> None:
    """A GRU, a scan, sorting, integers and booleans."""
    x = g.input("x", (7, 2, 11))
    y = g.gru(x, weights(1, 39, 11), weights(1, 39, 13), hidden_size=13)
    y = y[0] if isinstance(y, tuple) else y
    flat = g.reshape(y, shape=(7, 26))
    top = g.top_k(g.gather(flat, np.array([5, 1, 1, 25]), axis=1), k=3)
    g.output(top[0], name="values")
    g.output(top[1], name="places")
    g.output(g.greater(g.cum_sum(flat, axis=1), np.float32(0.5)), name="over")


NETS: dict[str, Callable[[Any], None]] = {
    "residual": residual, "branches": branches, "attention": attention, "sequence": sequence,
}  # fmt: skip


def net(name: str) -> Any:
    g = tw.Graph(name)
    NETS[name](g)
    return g


@cache
def analysed(name: str, numerics: str = "standard", threads: int = 2) -> Compilation:
    return analyse(net(name), numerics=numerics, threads=threads, tune=False)


def device(c: Compilation) -> Device:
    return device_of(c.target, c.options)


def groups(c: Compilation) -> Iterator[Group]:
    yield from coded_groups(c.graph)
