"""Graphs around one attention, for the kernels of GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.options import Numerics

from ..codegen.cuda.programs import gpu_launches

NUMBERS: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


class Maker:
    """Builds a graph with one output; inputs are random. In bf16 only products are computed, all
    else in f32 between casts, as the importer has it."""

    def __init__(self, kind: str, seed: int = 11) -> None:
        self.g, self.kind = GraphBuilder("attention"), kind
        self.feeds: dict[str, Any] = {}
        self.rng = np.random.default_rng(seed)
        self.number = NUMBERS.get(kind, np.float32)

    def input(self, *dims: int, kind: str | None = None, value: Any = None) -> Value:
        name, kind = f"x{len(self.feeds)}", kind or self.kind
        x = self.rng.standard_normal(dims) if value is None else value
        self.feeds[name] = bits_of(x) if kind == "bf16" else x.astype(NUMBERS[kind])
        return self.g.input(name, dims, kind)

    @property
    def plain(self) -> str:
        """The type in which pointwise operators compute."""
        return "f32" if self.kind == "bf16" else self.kind

    def wide(self, x: Value) -> Value:
        return self.g.cast(x, to="f32") if self.kind == "bf16" else x

    def narrow(self, x: Value) -> Value:
        return self.g.cast(x, to="bf16") if self.kind == "bf16" else x

    def attend(
        self, q: Value, k: Value, v: Value, mask: Value | None = None, scale: float = 0.3,
        across: bool = False,
    ) -> Value:  # fmt: skip
        """k: one row per key, as v; or one column, if across."""
        rank = len(k.shape)
        swap = (*range(rank - 2), rank - 1, rank - 2)
        scores = self.wide(q @ (k if across else self.g.transpose(k, perm=swap)))
        scores = scores * self.number(scale)
        scores = scores if mask is None else scores + mask
        return self.narrow(self.g.softmax(scores, axis=-1)) @ v


Build = Callable[[Maker], Value]


def made(build: Build, kind: str, numerics: Numerics = "standard") -> tuple[Graph, Maker]:
    """The graph behind the passes for GPUs, and who made it."""
    t = Maker(kind)
    t.g.output(build(t), "y")
    return gpu_launches(t.g.build(), numerics)[0], t


def expected(graph: Graph, t: Maker) -> Any:
    with np.errstate(all="ignore"):
        return evaluate(graph, t.feeds)["y"]


def heads(t: Maker, batch: int = 2, mask: Any = None) -> Value:
    """Heads cut out of rows and put together again; sizes that fill no tile."""

    def cut(length: int) -> Value:
        x = t.g.reshape(t.input(batch, length, 2 * 24), shape=(batch, length, 2, 24))
        return t.g.transpose(x, perm=(0, 2, 1, 3))

    for_all = t.input(batch, 1, 19, 43, kind=t.plain, value=mask)
    y = t.attend(cut(19), cut(43), cut(43), for_all)
    return t.g.reshape(t.g.transpose(y, perm=(0, 2, 1, 3)), shape=(batch, 19, 48))


def rooted(t: Maker, scale: float = 0.5) -> Value:
    """Queries and keys are scaled by a root each, as PyTorch has it; the keys once transposed."""

    def scaled(x: Value) -> Value:
        return t.narrow(t.wide(x) * t.number(scale))

    q, k, v = t.input(18, 16), t.input(35, 16), t.input(35, 16)
    return t.attend(scaled(q), scaled(t.g.transpose(k, perm=(1, 0))), v, across=True)


def _whole(t: Maker) -> Value:
    """Whole tiles, no mask, two widths."""
    return t.attend(t.input(32, 32), t.input(64, 32), t.input(64, 16))


def _wide(t: Maker) -> Value:
    """More columns than are multiplied at once, which fill no group of them."""
    return t.attend(t.input(17, 16), t.input(34, 16), t.input(34, 72))


def _odd(t: Maker) -> Value:
    """Nothing lies in pieces of 16 bytes; an epilogue."""
    y = t.wide(t.attend(t.input(1, 17, 13), t.input(1, 33, 13), t.input(1, 33, 9)))
    return t.g.relu(y + t.input(1, 17, 9, kind=t.plain))


def _across(t: Maker) -> Value:
    """Keys that are neighbours in memory."""
    return t.attend(t.input(18, 16), t.input(16, 35), t.input(35, 16), across=True)


def _shared(t: Maker) -> Value:
    """All heads have the same keys and values: their rows are one matrix."""
    return t.attend(t.input(2, 3, 7, 16), t.input(2, 1, 21, 16), t.input(2, 1, 21, 16))


def _constant(t: Maker) -> Value:
    k, v = (t.g.constant(t.rng.standard_normal((37, n)).astype(t.number)) for n in (16, 24))
    return t.attend(t.input(5, 16), t.narrow(k), t.narrow(v))


def _one_row(t: Maker) -> Value:
    return t.attend(t.input(2, 1, 16), t.input(2, 67, 16), t.input(2, 67, 16))


def _hidden(t: Maker) -> Value:
    """Keys that are masked out: all of some rows, all of the first round, all of the last."""
    mask = np.zeros((20, 70))
    mask[0], mask[3:9, :40], mask[9:12, 30:], mask[12:, ::2] = (-np.inf,) * 4
    q, k, v = t.input(20, 16), t.input(70, 16), t.input(70, 16)
    return t.attend(q, k, v, t.input(20, 70, kind=t.plain, value=mask))


def _large(t: Maker) -> Value:
    """Scores that grow from key to key and whose powers are no finite numbers."""
    rise = np.linspace(-300, 300, 70)[None]
    return t.attend(t.input(17, 16), t.input(70, 16), t.input(70, 16),
                    t.input(1, 70, kind=t.plain, value=rise))  # fmt: skip


CASES: dict[str, Build] = {
    f.__name__.removeprefix("_"): f
    for f in (heads, _whole, _wide, _odd, _across, _shared, _constant, _one_row, _hidden, _large)
}
