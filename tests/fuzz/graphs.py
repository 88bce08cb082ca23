"""Random valid graphs of float32 operators, small and well conditioned.

Every value is computed while the graph grows, so that the generator can keep magnitudes near 1 and
avoid results that cancel: two correct implementations then agree to nearly float32's precision.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate_op
from tilewright.compiler.graph.ir import Array, Graph
from tilewright.ops.types import f32, f64

LARGEST = 4096  # elements of a value

_UNARY = [
    "relu", "sigmoid", "tanh", "abs", "neg", "leaky_relu", "softplus", "erf", "gelu", "sin", "cos",
    "elu", "identity", "hard_sigmoid", "dropout", "softsign",
]  # fmt: skip


def random_graph(seed: int, ops: int = 20) -> Graph:
    """A graph of about `ops` operators: elementwise, broadcasts, reductions, matrix products,
    convolutions, pooling, normalisations and movement. The same for the same arguments."""
    return _Grower(seed).grow(ops)


def random_feeds(graph: Graph, seed: int) -> dict[str, Array]:
    """Inputs for a random graph."""
    rng = np.random.default_rng(seed)
    return {
        n: rng.uniform(-2, 2, graph.type(n).dims).astype(graph.type(n).dtype.numpy)
        for n in graph.inputs
    }


def in_float64(graph: Graph) -> Graph:
    """The same graph of float64 values, in which rounding hides no mistake of a rewrite."""
    blobs = {
        n: b if b.type.dtype is not f32 else replace(
            b,
            type=b.type.with_dtype(f64),
            content=None if b.value is None else b.value.astype(np.float64),
        )
        for n, b in graph.blobs.items()
    }  # fmt: skip
    return replace(graph, blobs=blobs)


@dataclass(frozen=True)
class _Known:
    value: Value
    array: Array  # float64

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


class _Grower:
    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.b = GraphBuilder(f"random_{seed}")
        self.pool: list[_Known] = []
        self.arrays: dict[str, Array] = {}

    def grow(self, ops: int) -> Graph:
        shapes = [(1, 4, 8, 8), (2, 6, 5, 7), (3, 8), (2, 5, 12), (7,), (1, 3, 9, 9), (2, 3, 4, 4)]
        for k in range(self.pick.randint(1, 3)):
            shape = self.pick.choice(shapes)
            x = self.b.input(f"x{k}", shape)
            self.remember(x, self.rng.uniform(-2, 2, shape))
        while len(self.b.ops) < ops:
            # recent values are likelier: deep graphs rather than wide ones
            place = len(self.pool) - 1 - int(self.pick.expovariate(0.4))
            self.pick.choice(_MAKERS)(self, self.pool[max(place, 0)])
        read = {n for op in self.b.ops for n in op.reads}
        for k in self.pool:
            made = k.value.name not in self.b.inputs
            if made and (k.value.name not in read or self.pick.random() < 0.05):
                self.b.output(k.value)
        return self.b.build()

    # ---------------------------------------------------------------- values

    def remember(self, value: Value, array: Array) -> _Known:
        self.arrays[value.name] = array
        known = _Known(value, array)
        self.pool.append(known)
        return known

    def constant(self, *shape: int, lo: float = -1.0, hi: float = 1.0) -> Value:
        """A constant, sometimes as the result of an op over constants."""
        x = self.rng.uniform(lo, hi, shape).astype(np.float32)
        if shape and self.pick.random() < 0.1:
            order = list(range(len(shape)))
            self.pick.shuffle(order)
            turned = self.b.constant(x.transpose(np.argsort(order)).copy())
            value: Value = self.b.op("transpose", turned, perm=tuple(order))
        else:
            value = self.b.constant(x)
        self.arrays[value.name] = x.astype(np.float64)
        return value

    def add(self, operator: str, *inputs: Value, **attrs: Any) -> None:
        """Add an op, and what keeps its results in a good range."""
        name = f"{operator}_{len(self.b.ops)}" if self.pick.random() < 0.8 else ""
        made = self.b.op(operator, *inputs, name=name, **attrs)
        op = self.b.ops[-1]
        arrays: list[Array | None] = [self.arrays[v.name] for v in inputs]
        largest = max(float(np.abs(a).max()) for a in arrays if a is not None)
        results = evaluate_op(op, arrays)
        for v, y in zip(made if isinstance(made, tuple) else (made,), results, strict=True):
            self.settle(v, y, largest)

    def settle(self, v: Value, y: Array, largest: float) -> None:
        """Take a value into the pool: shifted if it cancelled, scaled if it is large."""
        if v.dtype.name != "f32":
            return
        size = float(np.abs(y).max())
        if 0 < size < 0.05 * largest:
            shift = np.float32(largest)
            v, y = self.b.op("add", v, shift), y + shift
            size = float(np.abs(y).max())
        if size > 50:
            scale = np.float32(2 / size)
            v, y = self.b.op("mul", v, scale), y * scale
        self.remember(v, y)

    # ---------------------------------------------------------------- makers

    def unary(self, x: _Known) -> None:
        self.add(self.pick.choice(_UNARY), x.value)

    def positive(self, x: _Known) -> None:
        """Functions of |x| + c, away from their singularities."""
        inner = self.b.op("add", self.b.op("abs", x.value), np.float32(0.5))
        self.arrays[inner.name] = np.abs(x.array) + 0.5
        if self.pick.random() < 0.5:
            self.add(self.pick.choice(["sqrt", "log", "reciprocal"]), inner)
        else:
            power = self.b.constant(np.float32(self.pick.choice([0.5, 1, 2, 3, 1.5, -1])))
            self.arrays[power.name] = np.asarray(self.b.blobs[power.name].value, np.float64)
            self.add("pow", inner, power)

    def exponential(self, x: _Known) -> None:
        if np.abs(x.array).max() < 4:
            self.add("exp", x.value)

    def clip(self, x: _Known) -> None:
        lo, hi = self.constant(lo=-1, hi=0), self.constant(lo=0.5, hi=1)
        self.add("clip", x.value, lo, hi)

    def with_constant(self, x: _Known) -> None:
        """Arithmetic with a constant that broadcasts, per channel as often as not."""
        shape = list(x.shape[self.pick.randint(0, max(len(x.shape) - 1, 0)) :])
        kind = self.pick.random()
        if kind < 0.4 and len(x.shape) > 1:
            shape = [x.shape[1], *(1 for _ in x.shape[2:])]
        elif kind < 0.6:
            shape = []
        elif kind < 0.8:
            shape = [d if self.pick.random() < 0.5 else 1 for d in shape]
        operator = self.pick.choice(["add", "sub", "mul", "div", "max", "min"])
        c = self.constant(*shape, lo=0.5, hi=2)
        if self.pick.random() < 0.3:
            power = self.b.constant(np.float32(self.pick.choice([0.25, 0.5, 1, 2, 4])))
            self.arrays[power.name] = np.asarray(self.b.blobs[power.name].value, np.float64)
            c = power
        turn = operator != "div" and self.pick.random() < 0.3
        self.add(operator, *((c, x.value) if turn else (x.value, c)))

    def scale_chain(self, x: _Known) -> None:
        for _ in range(self.pick.randint(2, 3)):
            self.with_constant(self.pool[-1] if self.pool[-1].shape == x.shape else x)

    def binary(self, x: _Known) -> None:
        others = [k for k in self.pool if _broadcasts(x.shape, k.shape)]
        if others:
            y = self.pick.choice(others)
            operator = self.pick.choice(["add", "sub", "mul", "max", "min"])
            self.add(operator, x.value, y.value)

    def variadic(self, x: _Known) -> None:
        same = [k.value for k in self.pool if k.shape == x.shape]
        values = [self.pick.choice(same) for _ in range(self.pick.randint(1, 4))]
        self.add(self.pick.choice(["sum", "max", "min", "mean"]), *values)

    def reduction(self, x: _Known) -> None:
        rank = len(x.shape)
        if rank:
            axes = self.pick.sample(range(rank), self.pick.randint(1, rank))
            given = tuple(a - rank if self.pick.random() < 0.3 else a for a in axes)
            operator = f"reduce_{self.pick.choice(['sum', 'mean', 'max', 'min', 'l2'])}"
            self.add(operator, x.value, axes=given, keepdims=self.pick.randint(0, 1))

    def matmul(self, x: _Known) -> None:
        if not x.shape:
            return
        k, n = x.shape[-1], self.pick.choice([1, 3, 5, 8, 16])
        weights = self.constant(k, n)
        if self.pick.random() < 0.2 and len(x.shape) > 2:
            weights = self.constant(x.shape[-3], k, n)
        self.add("matmul", x.value, weights)
        if self.pick.random() < 0.6:
            self.add("add", self.pool[-1].value, self.constant(n))
        if self.pick.random() < 0.4:
            self.scale_chain(self.pool[-1])

    def matmul_of_two(self, x: _Known) -> None:
        others = [
            k
            for k in self.pool
            if len(k.shape) > 1
            and len(x.shape) > 1
            and k.shape[-2] == x.shape[-1]
            and _broadcasts(x.shape[:-2], k.shape[:-2])
        ]
        if others:
            self.add("matmul", x.value, self.pick.choice(others).value)

    def gemm(self, x: _Known) -> None:
        if len(x.shape) != 2:
            return
        (m, k), n, transb = x.shape, self.pick.choice([1, 4, 7]), self.pick.randint(0, 1)
        c = self.constant(*self.pick.choice([(n,), (1, n), (m, n), ()]))
        y = self.constant(*((n, k) if transb else (k, n)))
        alpha, beta = self.pick.choice([1.0, 0.5]), self.pick.choice([1.0, 2.0])
        self.add("gemm", x.value, y, c, transb=transb, alpha=alpha, beta=beta)

    def conv(self, x: _Known) -> None:
        if len(x.shape) != 4:
            return
        channels, height, width = x.shape[1:]
        group = self.pick.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        out = group * self.pick.choice([1, 2, 4])
        kernel = self.pick.randint(1, min(3, height, width))
        inputs = [x.value, self.constant(out, channels // group, kernel, kernel)]
        if self.pick.random() < 0.5:
            inputs.append(self.constant(out))
        pads = tuple(self.pick.randint(0, kernel // 2) for _ in range(4))
        strides = (self.pick.randint(1, 2), self.pick.randint(1, 2))
        self.add("conv", *inputs, pads=pads, strides=strides, group=group)
        if self.pick.random() < 0.5:
            self.batch_norm(self.pool[-1])
        if self.pick.random() < 0.3:
            self.scale_chain(self.pool[-1])
        if self.pick.random() < 0.5:
            self.add("relu", self.pool[-1].value)

    def batch_norm(self, x: _Known) -> None:
        if len(x.shape) > 1:
            params = [self.constant(x.shape[1]) for _ in range(3)]
            variance = self.constant(x.shape[1], lo=0.5, hi=2)
            self.add("batch_normalization", x.value, *params, variance)

    def pool_windows(self, x: _Known) -> None:
        if len(x.shape) != 4 or min(x.shape[2:]) < 2:
            return
        kernel = self.pick.randint(2, min(3, *x.shape[2:]))
        operator = self.pick.choice(["max_pool", "average_pool"])
        pads = tuple(self.pick.randint(0, kernel // 2) for _ in range(4))
        more = {"count_include_pad": self.pick.randint(0, 1)} if operator == "average_pool" else {}
        self.add(
            operator,
            x.value,
            kernel_shape=(kernel, kernel),
            strides=(self.pick.randint(1, 2), self.pick.randint(1, 2)),
            pads=pads,
            **more,
        )

    def global_pool(self, x: _Known) -> None:
        if len(x.shape) == 4:
            self.add(self.pick.choice(["global_average_pool", "global_max_pool"]), x.value)

    def softmax(self, x: _Known) -> None:
        if x.shape:
            axis = self.pick.randint(-len(x.shape), len(x.shape) - 1)
            self.add(self.pick.choice(["softmax", "log_softmax"]), x.value, axis=axis)

    def layer_norm(self, x: _Known) -> None:
        if x.shape and x.shape[-1] > 2 and x.array.std(-1).min() > 0.1:
            n = x.shape[-1]
            self.add("layer_normalization", x.value, self.constant(n), self.constant(n), axis=-1)

    def reshape(self, x: _Known) -> None:
        n = x.array.size
        shape: list[int] = []
        for _ in range(self.pick.randint(1, 4)):
            d = self.pick.choice([k for k in range(1, n + 1) if n % k == 0 and k <= 64])
            shape.append(d)
            n //= d
        shape.insert(self.pick.randint(0, len(shape)), n)
        if self.pick.random() < 0.3:
            shape[self.pick.randint(0, len(shape) - 1)] = -1
        self.add("reshape", x.value, shape=tuple(shape))

    def unit_axes(self, x: _Known) -> None:
        ones = tuple(k for k, d in enumerate(x.shape) if d == 1)
        if ones and self.pick.random() < 0.6:
            self.add("squeeze", x.value, axes=ones[: self.pick.randint(1, len(ones))])
        elif len(x.shape) < 5:
            self.add("unsqueeze", x.value, axes=(self.pick.randint(0, len(x.shape)),))

    def transpose(self, x: _Known) -> None:
        order = list(range(len(x.shape)))
        self.pick.shuffle(order)
        if order:
            self.add("transpose", x.value, perm=tuple(order))

    def slice(self, x: _Known) -> None:
        axes = [k for k, d in enumerate(x.shape) if d > 1]
        if axes:
            a = self.pick.choice(axes)
            start = self.pick.randint(0, x.shape[a] - 1)
            end, step = self.pick.randint(start + 1, x.shape[a]), self.pick.randint(1, 2)
            if self.pick.random() < 0.2:
                start, end, step = -1, -x.shape[a] - 1, -1
            self.add("slice", x.value, starts=(start,), ends=(end,), axes=(a,), steps=(step,))

    def concat(self, x: _Known) -> None:
        if not x.shape:
            return
        axis = self.pick.randint(0, len(x.shape) - 1)
        others = [
            k
            for k in self.pool
            if len(k.shape) == len(x.shape)
            and all(
                p == q or a == axis for a, (p, q) in enumerate(zip(k.shape, x.shape, strict=True))
            )
        ]
        chosen = [self.pick.choice(others) for _ in range(self.pick.randint(0, 2))]
        if sum(k.array.size for k in chosen) + x.array.size <= LARGEST:
            self.add("concat", x.value, *(k.value for k in chosen), axis=axis)

    def split(self, x: _Known) -> None:
        axes = [k for k, d in enumerate(x.shape) if d > 1]
        if axes:
            a = self.pick.choice(axes)
            first = self.pick.randint(1, x.shape[a] - 1)
            self.add("split", x.value, axis=a, split=(first, x.shape[a] - first))

    def pad(self, x: _Known) -> None:
        pads = tuple(self.pick.randint(0, 2) for _ in range(2 * len(x.shape)))
        grown = prod(d + pads[k] + pads[k + len(x.shape)] for k, d in enumerate(x.shape))
        if x.shape and grown <= LARGEST:
            self.add("pad", x.value, pads=pads, value=self.pick.choice([0.0, 1.5]))

    def repeat(self, x: _Known) -> None:
        """Expand or tile."""
        if self.pick.random() < 0.5:
            times = tuple(self.pick.randint(1, 2) for _ in x.shape)
            if x.shape and x.array.size * prod(times) <= LARGEST:
                self.add("tile", x.value, repeats=times)
        else:
            shape = tuple(self.pick.randint(1, 3) if d == 1 else d for d in x.shape)
            shape = (2, *shape) if self.pick.random() < 0.3 and len(shape) < 4 else shape
            if prod(shape) <= LARGEST:
                self.add("expand", x.value, shape=shape)

    def again(self, x: _Known) -> None:
        """The op behind a value once more."""
        for op in reversed(self.b.ops):
            if op.outputs == (x.value.name,):
                inputs = [Value(self.b, n) for n in op.reads]
                if all(v.name in self.arrays for v in inputs):
                    self.add(op.operator, *inputs, **op.attributes)
                return


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast, to a result of modest size."""
    try:
        return prod(np.broadcast_shapes(a, b)) <= LARGEST
    except ValueError:
        return False


_Maker = Callable[[_Grower, _Known], None]
_MAKERS: list[_Maker] = [
    _Grower.unary, _Grower.unary, _Grower.positive, _Grower.exponential, _Grower.clip,
    _Grower.with_constant, _Grower.with_constant, _Grower.scale_chain, _Grower.binary,
    _Grower.binary, _Grower.variadic, _Grower.reduction, _Grower.matmul, _Grower.matmul_of_two,
    _Grower.gemm, _Grower.conv, _Grower.conv, _Grower.conv, _Grower.batch_norm,
    _Grower.pool_windows, _Grower.global_pool, _Grower.softmax, _Grower.layer_norm,
    _Grower.reshape, _Grower.reshape, _Grower.unit_axes, _Grower.transpose, _Grower.transpose,
    _Grower.slice, _Grower.concat, _Grower.split, _Grower.pad, _Grower.repeat, _Grower.again,
]  # fmt: skip
