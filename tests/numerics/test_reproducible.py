"""numerics="reproducible": the same bits for every config, thread count and batch position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import recall
from tilewright.compiler.kernels import select
from tilewright.compiler.kernels.template import Config

Array = np.ndarray[Any, Any]


def _weights(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    fan = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def convolutions(batch: int) -> Any:
    """3x3, strided, pointwise, grouped and depthwise convolutions, channels that fill no block."""
    g = tw.Graph("convolutions")
    x = g.input("x", (batch, 3, 19, 17))
    h = g.relu(g.conv(x, _weights(21, 3, 3, 3), _weights(21), pads=1))
    h = g.relu(g.add(h, g.conv(h, _weights(21, 21, 3, 3), pads=1)))
    h = g.max_pool(h, kernel_shape=(3, 3), strides=(2, 2))
    h = g.conv(h, _weights(32, 21, 1, 1))
    h = g.relu(g.conv(h, _weights(32, 1, 3, 3), group=32, pads=1))
    h = g.conv(h, _weights(32, 16, 3, 3), group=2, strides=(2, 2), pads=1)
    g.output(g.softmax(g.reshape(g.global_average_pool(h), shape=(batch, 32)), axis=-1), name="y")
    return g


def products(batch: int) -> Any:
    """Deep and thin matrix products, attention, normalisation."""
    g = tw.Graph("products")
    x = g.input("x", (batch, 23, 48))
    q, k, v = (g.matmul(x, _weights(48, 40)) for _ in range(3))
    scores = g.softmax(g.matmul(q, g.transpose(k, perm=(0, 2, 1))), axis=-1)
    h = g.matmul(g.matmul(scores, v), _weights(40, 1100))
    thin = g.matmul(g.matmul(h, _weights(1100, 5)), _weights(5, 48))
    h = g.add(g.matmul(g.tanh(h), _weights(1100, 48)), thin)
    g.output(g.layer_normalization(g.add(x, h), _weights(48), _weights(48), axis=-1), name="y")
    return g


def recurrence(batch: int) -> Any:
    """A GRU over seven steps. Its batch axis is the second."""
    g = tw.Graph("recurrence")
    x = g.input("x", (7, batch, 11))
    y = g.gru(x, _weights(1, 39, 11), _weights(1, 39, 13), hidden_size=13)
    g.output(y[0] if isinstance(y, tuple) else y, name="y")
    return g


def sums(batch: int) -> Any:
    """A sum so long that it is taken in two steps."""
    g = tw.Graph("sums")
    g.output(g.reduce_sum(g.input("x", (batch, 210_000)), axes=(1,)), name="y")
    return g


NETS: dict[str, Callable[[int], Any]] = {
    "convolutions": convolutions, "products": products, "recurrence": recurrence,
}  # fmt: skip


class Nth:
    """A template that runs with the `number`-th config of its space."""

    def __init__(self, template: Any, number: int) -> None:
        self.template, self.number = template, number
        self.largest = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.template, name)

    def default(self, *problem: Any) -> Config:
        space = self.template.space(*problem)
        self.largest = max(self.largest, len(space))
        config: Config = space[self.number % len(space)]
        return config


def _run(g: Any, x: Array, **options: Any) -> Array:
    """The bits of the result."""
    y: Array = tw.compile(g, numerics="reproducible", **options)(x)
    return y.view(np.uint32)


def _input(name: str, batch: int) -> Array:
    shape = {"convolutions": (batch, 3, 19, 17), "products": (batch, 23, 48),
             "recurrence": (7, batch, 11), "sums": (batch, 210_000)}[name]  # fmt: skip
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_every_config_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a tuner picks: all kernels with config 0 of their spaces, then config 1, and so on
    until each has been through all of its own."""
    g, x = NETS[name](2), _input(name, 2)
    want = _run(g, x)
    templates = select.TEMPLATES
    number, most = 0, 1
    while number < most:
        chosen = tuple(Nth(t, number) for t in templates)
        monkeypatch.setattr(select, "TEMPLATES", chosen)
        monkeypatch.setattr(recall, "templates_fingerprint", lambda k=number: f"config {k}")
        np.testing.assert_array_equal(_run(g, x), want, f"config {number}")
        number, most = number + 1, max(t.largest for t in chosen)
    assert most > 2


@pytest.mark.parametrize("name", NETS)
def test_every_thread_count_gives_the_same_bits(name: str) -> None:
    g, x = NETS[name](3), _input(name, 3)
    want = _run(g, x, threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(_run(g, x, threads=threads), want, f"{threads} threads")


@pytest.mark.parametrize("name", [*NETS, "sums"])
def test_every_batch_position_gives_the_same_bits(name: str) -> None:
    """A batch of five and its members one by one."""
    x = _input(name, 5)
    into, out = (1, 2) if name == "recurrence" else (0, 0)
    net = NETS.get(name, sums)
    together = _run(net(5), x)
    for k in range(5):
        alone = _run(net(1), np.ascontiguousarray(x.take([k], into)))
        np.testing.assert_array_equal(together.take([k], out), alone, f"member {k}")


def short_sums(batch: int, terms: int, apart: int) -> Any:
    """Sums over few elements, `apart` places from each other."""
    g = tw.Graph("short")
    x = g.slice(g.input("x", (batch, terms, apart)), starts=(0,), ends=(1,), axes=(2,))
    g.output(g.reduce_sum(g.reshape(x, shape=(batch, terms)), axes=(1,)), name="y")
    return g.build()


@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize("terms", [3, 5, 7, 8, 13, 17])
def test_sums_of_a_few_do_not_depend_on_the_size_of_the_batch(terms: int, apart: int) -> None:
    """Lanes are those of the sum's own axis, or of the batch if that changes no order."""
    x = np.random.default_rng(6).standard_normal((19, terms, apart)).astype(np.float32)
    alone = [_run(short_sums(1, terms, apart), x[k : k + 1]) for k in range(19)]
    np.testing.assert_array_equal(_run(short_sums(19, terms, apart), x), np.concatenate(alone))
