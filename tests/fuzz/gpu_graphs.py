"""Random small graphs of what kernels for GPUs find hard: odd sizes, short and long rows, any axes,
several element types, windows of all kinds, places in concatenations, chains of products."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.ir import Array, Graph

FLOATS = ("f32", "f32", "f16", "bf16")
INTEGERS = ("i32", "i64", "u8", "i8", "i16")
ROWS = (1, 2, 3, 7, 31, 32, 33, 64, 129, 1025)


def gpu_graph(seed: int) -> Graph:
    """A graph of one to about a dozen operators. The same for the same seed."""
    return _Maker(seed).graph()


def gpu_feeds(graph: Graph, seed: int) -> dict[str, Array]:
    """Inputs: floats from -1 to 1, small integers."""
    rng = np.random.default_rng(seed)
    return {n: _values(rng, graph.type(n).dims, graph.type(n).dtype.name) for n in graph.inputs}


def _values(rng: np.random.Generator, dims: tuple[int, ...], kind: str) -> Array:
    if kind == "bf16":
        return bits_of(rng.uniform(-1, 1, dims).astype(np.float32))
    if kind in ("f16", "f32", "f64"):
        return rng.uniform(-1, 1, dims).astype({"f16": "f2", "f32": "f4", "f64": "f8"}[kind])
    if kind == "bool":
        return rng.random(dims) < 0.7
    low = 0 if kind.startswith("u") else -5
    return rng.integers(low, 6, dims).astype(kind.replace("i", "int").replace("u", "uint"))


class _Maker:
    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.g = GraphBuilder(f"gpu_{seed}")

    def graph(self) -> Graph:
        made = self.pick.choice(_FAMILIES)(self)
        for k, v in enumerate(made):
            self.g.output(v, f"y{k}")
        return self.g.build()

    # ---------------------------------------------------------------- parts

    def input(self, *dims: int, kind: str = "f32") -> Value:
        x: Value = self.g.input(f"x{len(self.g.inputs)}", dims, kind)
        return x

    def constant(self, *dims: int, kind: str = "f32", size: float = 1.0) -> Value:
        """Of about 1 / sqrt(size)."""
        x = (self.rng.uniform(-1, 1, dims) * 1.7 / np.sqrt(size)).astype(np.float32)
        if kind == "bf16":
            return self.g.cast(self.g.constant(x), to="bf16")
        return self.g.constant(x.astype(np.float16 if kind == "f16" else np.float32))

    def dims(self, rank: int, most: int = 2000) -> tuple[int, ...]:
        """Sizes of a modest product."""
        found: list[int] = []
        for _ in range(rank):
            left = most // max(int(np.prod(found)), 1)
            found.append(self.pick.choice([d for d in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
                                           if d <= max(left, 1)]))  # fmt: skip
        self.pick.shuffle(found)
        return tuple(found)

    def after(self, x: Value, kind: str) -> Value:
        """What often follows: in float32 where the type has no arithmetic of its own."""
        wide = self.g.cast(x, to="f32") if kind == "bf16" else x
        for _ in range(self.pick.randint(0, 3)):
            choice = self.pick.randint(0, 5)
            if choice == 0:
                wide = self.g.relu(wide)
            elif choice == 1:
                wide = self.g.sigmoid(wide)
            elif choice == 2:
                dims = tuple(d if self.pick.random() < 0.5 else 1 for d in wide.shape)
                wide = self.g.add(
                    wide, self.constant(*dims, kind="f16" if kind == "f16" else "f32")
                )
            elif choice == 3:
                wide = self.g.mul(
                    wide, self.input(*wide.shape, kind="f16" if kind == "f16" else "f32")
                )
            elif choice == 4:
                wide = self.turned(wide)
            else:
                wide = self.g.tanh(wide)
        return self.g.cast(wide, to="bf16") if kind == "bf16" and self.pick.random() < 0.5 else wide

    def turned(self, x: Value) -> Value:
        order = list(range(len(x.shape)))
        self.pick.shuffle(order)
        made: Value = self.g.transpose(x, perm=tuple(order))
        return made

    # ---------------------------------------------------------------- families

    def conv(self) -> list[Value]:
        kind, pick = self.pick.choice(FLOATS), self.pick
        group = pick.choice((1, 1, 1, 2, 3, 8))
        channels = group * pick.choice((1, 3, 4, 8, 16) if group == 1 else (1, 1, 2, 8))
        out = group * pick.choice((1, 3, 8, 16, 20) if group == 1 else (1, 2, 8))
        size = (pick.randint(3, 11), pick.randint(3, 11))
        window = (pick.choice((1, 1, 2, 3, 3)), pick.choice((1, 1, 3, 3)))
        if pick.random() < 0.3:
            window = (1, 1)
        spread = (pick.choice((1, 1, 2)), pick.choice((1, 1, 2)))
        pads = tuple(pick.randint(0, (w - 1) * d) for w, d in zip(window, spread, strict=True))
        x: Value = self.input(pick.choice((1, 1, 2, 3)), channels, *size, kind=kind)
        if any((w - 1) * d + 1 > s + 2 * p
               for w, d, s, p in zip(window, spread, size, pads, strict=True)):  # fmt: skip
            spread = (1, 1)
            pads = tuple(w // 2 for w in window)
        weights = self.constant(out, channels // group, *window, kind=kind,
                                size=channels // group * window[0] * window[1])  # fmt: skip
        bias = [self.constant(out, kind=kind)] if pick.random() < 0.5 else []
        steps = (pick.randint(1, 3), pick.randint(1, 2))
        y: Value = self.g.conv(x, weights, *bias, pads=(*pads, *pads), dilations=spread,
                               strides=steps, group=group)  # fmt: skip
        y = self.after(y, kind)
        if pick.random() < 0.3 and kind in ("f16", "f32") and len(y.shape) == 4:
            second = self.constant(8, y.shape[1], 1, 1, kind=kind, size=y.shape[1])
            return [y, self.g.conv(y, second)]
        return [y]

    def product(self) -> list[Value]:
        kind, pick = self.pick.choice(FLOATS), self.pick
        m, n, k = (pick.choice((1, 2, 5, 8, 16, 17, 32, 40, 65, 72)) for _ in range(3))
        batch = pick.choice(((), (), (2,), (3, 2)))
        x = self.input(*batch, *((k, m) if (across := pick.random() < 0.3) else (m, k)), kind=kind)
        over = (*range(len(batch)), len(batch) + 1, len(batch))
        x = self.g.transpose(x, perm=over) if across else x
        if pick.random() < 0.5:
            y = self.g.matmul(x, self.constant(k, n, kind=kind, size=k))
        else:
            w = self.input(
                *batch, *((n, k) if (turn := pick.random() < 0.5) else (k, n)), kind=kind
            )
            y = self.g.matmul(x, self.g.transpose(w, perm=over) if turn else w)
        return [self.after(y, kind)]

    def attention(self) -> list[Value]:
        kind, pick = pick_half(self.pick), self.pick
        batch, heads, width = pick.randint(1, 2), pick.randint(1, 3), pick.choice((4, 8, 16))
        rows, keys = pick.choice((1, 3, 8, 17)), pick.choice((1, 5, 16, 33))

        def split(length: int) -> Value:
            x = self.input(batch, length, heads * width, kind=kind)
            x = self.g.reshape(x, shape=(batch, length, heads, width))
            made: Value = self.g.transpose(x, perm=(0, 2, 1, 3))
            return made

        q, k, v = split(rows), split(keys), split(keys)
        s = self.g.matmul(q, self.g.transpose(k, perm=(0, 1, 3, 2)))
        s = self.g.mul(s, np.asarray(width**-0.5, s.dtype.numpy))
        if pick.random() < 0.5:
            mask = self.input(batch, 1, 1, keys, kind="bool")
            s = self.g.where(mask, s, np.asarray(-1e4, s.dtype.numpy))
        y = self.g.matmul(self.g.softmax(s, axis=-1), v)
        y = self.g.reshape(
            self.g.transpose(y, perm=(0, 2, 1, 3)), shape=(batch, rows, heads * width)
        )
        return [self.after(y, kind)]

    def rows(self) -> list[Value]:
        """Softmax and normalisation over rows of all lengths, along any axis."""
        kind, pick = pick_half(self.pick), self.pick
        length = pick.choice(ROWS)
        dims = [*self.dims(pick.randint(0, 2), 12 if length > 100 else 60)]
        axis = pick.randint(0, len(dims))
        dims.insert(axis, length)
        x = self.after(self.input(*dims, kind=kind), kind)
        operator = pick.randint(0, 2)
        if operator == 0:
            return (
                [self.after(self.g.softmax(x, axis=axis), kind)] if x.shape == tuple(dims) else [x]
            )
        if operator == 1 and len(x.shape) > 0 and x.shape[-1] > 2:
            n = x.shape[-1]
            scale, shift = self.constant(n, kind=kind), self.constant(n, kind=kind)
            return [self.after(self.g.layer_normalization(x, scale, shift, axis=-1), kind)]
        mean = self.g.reduce_mean(x, axes=(axis,), keepdims=1)
        return [self.after(self.g.sub(x, mean), kind), mean]

    def reduction(self) -> list[Value]:
        pick = self.pick
        kind = pick.choice((*FLOATS[1:3], *INTEGERS[:2]))
        dims = self.dims(pick.randint(1, 4))
        x = self.input(*dims, kind=kind)
        if kind.startswith("f"):
            x = self.after(x, kind)
        axes = tuple(pick.sample(range(len(dims)), pick.randint(1, len(dims))))
        operator = pick.choice(("sum", "mean", "max", "min", "prod") if kind[0] == "f" else
                               ("sum", "max", "min"))  # fmt: skip
        y = self.g.op(f"reduce_{operator}", x, axes=axes, keepdims=(keep := pick.randint(0, 1)))
        if keep and kind[0] == "f":
            return [self.after(self.g.add(x, y), kind)]
        return [y, self.g.cast(y, to="f32")]

    def choices(self) -> list[Value]:
        """Comparisons, booleans, conversions, broadcasts."""
        pick = self.pick
        kind = pick.choice(INTEGERS[:2])
        dims = self.dims(pick.randint(1, 4))

        def part(of: str) -> Value:
            skip = pick.randint(0, len(dims) - 1)
            return self.input(*(d if pick.random() < 0.6 else 1 for d in dims[skip:]), kind=of)

        x, y = self.input(*dims, kind=kind), part(kind)
        test = self.g.op(pick.choice(("less", "greater", "equal")), x, y)
        test = self.g.logical_or(test, part("bool"))
        z = self.g.where(test, self.g.add(x, y), self.g.mul(x, x))
        to = pick.choice(("f32", "f16", "i32", "i64", "u8", "i8", "bool"))
        return [z, test, self.g.cast(z, to=to) if to != "u8" else self.g.cast(test, to=to)]

    def places(self) -> list[Value]:
        """Results that are parts of others, along any axis, read again as parts."""
        pick, kind = self.pick, self.pick.choice(("f32", "f16"))
        dims = [*self.dims(pick.randint(2, 4), 300)]
        axis = pick.randrange(len(dims))
        parts = []
        for _ in range(pick.randint(2, 3)):
            dims[axis] = pick.choice((1, 2, 3, 4, 8, 16))
            parts.append(self.g.relu(self.input(*dims, kind=kind)))
        whole = self.g.concat(*parts, axis=axis)
        n = whole.shape[axis]
        cut = pick.choice((4, 8, pick.randint(1, n - 1)))
        cut = min(cut, n - 1)
        a, b = self.g.split(whole, axis=axis, split=(cut, n - cut))
        a, b = self.after(a, kind), self.g.sigmoid(b)
        if pick.random() < 0.5:
            return [a, self.g.concat(b, whole, axis=axis)]
        return [a, b, self.g.reduce_sum(whole, axes=(axis,))]

    def windows(self) -> list[Value]:
        pick, kind = self.pick, self.pick.choice(("f32", "f16"))
        x = self.input(pick.randint(1, 2), pick.choice((1, 3, 8)), pick.randint(4, 9),
                       pick.randint(4, 9), kind=kind)  # fmt: skip
        window = (pick.randint(1, 3), pick.randint(2, 3))
        kind_of = pick.choice(("max_pool", "average_pool"))
        y = self.g.op(kind_of, self.after4(x), kernel_shape=window,
                      strides=(pick.randint(1, 3), pick.randint(1, 2)),
                      pads=tuple(pick.randint(0, w - 1) for w in (*window, *window)))  # fmt: skip
        return [self.after(y, kind)]

    def after4(self, x: Value) -> Value:
        made: Value = self.g.relu(x) if self.pick.random() < 0.5 else x
        return made

    def picking(self) -> list[Value]:
        """Gathers, running sums, largest elements."""
        pick = self.pick
        dims = self.dims(pick.randint(1, 3), 300)
        axis = pick.randrange(len(dims))
        x, n = self.input(*dims), dims[axis]
        which = pick.randint(0, 3)
        if which == 0:
            at = self.g.constant(self.rng.integers(-n, n, self.dims(pick.randint(0, 2), 30)))
            return [self.after(self.g.gather(x, at, axis=axis), "f32")]
        if which == 1:
            return [self.g.cum_sum(x, axis=axis)]
        if which == 2:
            kind = pick.choice(("arg_max", "arg_min"))
            return [self.g.op(kind, x, axis=axis, keepdims=pick.randint(0, 1))]
        values, found = self.g.top_k(x, k=pick.randint(1, n), axis=axis)
        return [values, found]


def pick_half(pick: random.Random) -> str:
    """float32 or float16."""
    return pick.choice(("f32", "f16"))


_FAMILIES: list[Callable[[_Maker], list[Value]]] = [
    _Maker.conv, _Maker.conv, _Maker.conv, _Maker.product, _Maker.product, _Maker.attention,
    _Maker.rows, _Maker.rows, _Maker.reduction, _Maker.choices, _Maker.places, _Maker.places,
    _Maker.windows, _Maker.picking,
]  # fmt: skip
