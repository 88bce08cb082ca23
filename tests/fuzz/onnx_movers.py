"""Makers of ONNX nodes that move elements, for `onnx_models`: shapes, slices, indices."""

from __future__ import annotations

from math import prod

import numpy as np

from .onnx_models import Grower, Known, maker


@maker(2)
def reshape(g: Grower, x: Known) -> None:
    n = x.array.size
    if not n:
        return
    shape: list[int] = []
    for _ in range(g.pick.randint(1, 4)):
        shape.append(g.pick.choice([k for k in range(1, n + 1) if n % k == 0 and k <= 64]))
        n //= shape[-1]
    shape.insert(g.pick.randint(0, len(shape)), n)
    if g.pick.random() < 0.3:
        shape[g.pick.randint(0, len(shape) - 1)] = -1
    g.add("Reshape", x, g.ints(*shape))


@maker()
def flatten(g: Grower, x: Known) -> None:
    g.add("Flatten", x, axis=g.pick.randint(0, x.rank))


@maker()
def reshape_by_shape(g: Grower, x: Known) -> None:
    """The shape arithmetic that exporters leave in: Shape, Gather, Unsqueeze, Concat, Reshape."""
    if x.rank < 2 or not x.array.size:
        return
    shape = g.op("Shape", x)
    first = g.op("Gather", shape, g.array(np.array(0, np.int64)), axis=0)
    row = unsqueeze(g, first, 0)
    g.add("Reshape", x, g.op("Concat", row, g.ints(-1), axis=0))


def unsqueeze(g: Grower, x: Known, *axes: int) -> Known:
    if g.opset >= 13:
        return g.op("Unsqueeze", x, g.ints(*axes))
    return g.op("Unsqueeze", x, axes=list(axes))


@maker()
def unit_axes(g: Grower, x: Known) -> None:
    ones = [k for k, d in enumerate(x.shape) if d == 1]
    if ones and g.pick.random() < 0.6:
        axes = ones[: g.pick.randint(1, len(ones))]
        if g.opset >= 13:
            g.add("Squeeze", x, g.ints(*axes))
        else:
            g.add("Squeeze", x, axes=axes)
    elif x.rank < 5:
        g.keep(unsqueeze(g, x, g.pick.randint(0, x.rank)))


@maker(2)
def transpose(g: Grower, x: Known) -> None:
    order = list(range(x.rank))
    g.pick.shuffle(order)
    if order:
        g.add("Transpose", x, perm=order)


@maker()
def cut_out(g: Grower, x: Known) -> None:
    axes = [k for k, d in enumerate(x.shape) if d > 1]
    if axes:
        a = g.pick.choice(axes)
        start = g.pick.randint(0, x.shape[a] - 1)
        end, step = g.pick.randint(start + 1, x.shape[a]), g.pick.randint(1, 2)
        if g.pick.random() < 0.2:
            start, end, step = -1, -x.shape[a] - 1, -1
        elif g.pick.random() < 0.3:
            end = 1 << 40
        more = [g.ints(step)] if step != 1 or g.pick.random() < 0.5 else []
        g.add("Slice", x, g.ints(start), g.ints(end), g.ints(a - x.rank), *more)


@maker(2)
def concat(g: Grower, x: Known) -> None:
    if not x.rank:
        return
    axis = g.pick.randint(0, x.rank - 1)
    fitting = [
        k for k in g.pool
        if k.rank == x.rank
        and all(p == q or a == axis for a, (p, q) in enumerate(zip(k.shape, x.shape, strict=True)))
    ]  # fmt: skip
    chosen = [g.pick.choice(fitting) for _ in range(g.pick.randint(0, 3))]
    if sum(k.array.size for k in chosen) + x.array.size <= g.room:
        g.add("Concat", x, *chosen, axis=axis)


@maker()
def split(g: Grower, x: Known) -> None:
    axes = [k for k, d in enumerate(x.shape) if d > 1]
    if not axes:
        return
    a = g.pick.choice(axes)
    n = x.shape[a]
    if n % 2 == 0 and g.pick.random() < 0.4:
        more = dict(num_outputs=2) if g.opset >= 18 else {}
        parts = g.ops("Split", 2, x, axis=a, **more)
    else:
        first = g.pick.randint(1, n - 1)
        sizes = [first, n - first]
        if g.opset >= 13:
            parts = g.ops("Split", 2, x, g.ints(*sizes), axis=a)
        else:
            parts = g.ops("Split", 2, x, axis=a, split=sizes)
    for p in parts:
        g.keep(p)


@maker()
def pad(g: Grower, x: Known) -> None:
    mode = g.pick.choice(["constant", "constant", "edge", "reflect"])
    widest = [2 if mode != "reflect" else min(d - 1, 2) for d in x.shape]
    pads = [g.pick.randint(0, max(w, 0)) for w in (*widest, *widest)]
    if mode == "constant" and g.pick.random() < 0.2:
        pads = [-1 if d > 2 else 0 for d in x.shape] + [0] * x.rank
    grown = prod(d + pads[k] + pads[k + x.rank] for k, d in enumerate(x.shape))
    if x.array.size and x.rank and grown <= g.room:
        value = [g.array(np.float32(1.5))] if mode == "constant" and g.pick.random() < 0.5 else []
        g.add("Pad", x, g.ints(*pads), *value, mode=mode)


@maker()
def repeat(g: Grower, x: Known) -> None:
    if g.pick.random() < 0.5:
        times = [g.pick.randint(1, 2) for _ in x.shape]
        if x.rank and x.array.size * prod(times) <= g.room:
            g.add("Tile", x, g.ints(*times))
        return
    shape = [g.pick.randint(1, 3) if d == 1 else d for d in x.shape]
    shape = [2, *shape] if g.pick.random() < 0.3 and x.rank < 4 else shape
    if shape and prod(shape) <= g.room:
        g.add("Expand", x, g.ints(*shape))


@maker()
def depth_and_space(g: Grower, x: Known) -> None:
    if x.rank != 4:
        return
    if x.shape[1] % 4 == 0:
        g.add("DepthToSpace", x, blocksize=2, mode=g.pick.choice(["DCR", "CRD"]))
    elif x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        g.add("SpaceToDepth", x, blocksize=2)


@maker()
def triangle(g: Grower, x: Known) -> None:
    if g.opset >= 14 and x.rank > 1:
        k = g.array(np.array(g.pick.randint(-2, 2), np.int64))
        g.add("Trilu", x, k, upper=g.pick.randint(0, 1))


@maker(2)
def gather(g: Grower, x: Known) -> None:
    if not x.rank or 0 in x.shape:
        return
    axis = g.pick.randint(0, x.rank - 1)
    n = x.shape[axis]
    name = g.pick.choice(["Gather", "Gather", "GatherElements", "GatherND"])
    if name == "Gather":
        shape = g.pick.choice([(), (1,), (3,), (2, 2)])
        indices = g.rng.integers(-n, n, shape)
        if x.array.size // n * indices.size <= g.room:
            g.add(name, x, g.array(indices.astype(g.pick.choice([np.int32, np.int64]))), axis=axis)
    elif name == "GatherElements":
        shape = tuple(g.pick.randint(1, d) for d in x.shape)
        g.add(name, x, g.array(g.rng.integers(-n, n, shape)), axis=axis)
    else:
        depth = g.pick.randint(1, x.rank)
        indices = np.stack([g.rng.integers(0, x.shape[a], 4) for a in range(depth)], -1)
        if prod(x.shape[depth:]) * 4 <= g.room:
            g.add(name, x, g.array(indices))


@maker()
def lookup(g: Grower, x: Known) -> None:
    """Rows of a table, by indices that come from the caller or were computed."""
    found = [k for k in g.others if k.array.dtype in (np.int32, np.int64) and k.array.size <= 64]
    if found and g.pick.random() < 0.7:
        y = g.pick.choice(found)
        kind = y.array.dtype
        y = g.op("Mod", y, g.array(np.array(9, kind)))  # of the sign of the divisor
    else:
        y = g.input(g.rng.integers(0, 9, g.pick.choice([(4,), (2, 5)])))
    g.keep(g.op("Gather", g.weights(9, g.pick.choice([1, 8, 12])), y, axis=0))


@maker()
def scatter(g: Grower, x: Known) -> None:
    if not x.rank or 0 in x.shape:
        return
    if g.pick.random() < 0.5:
        rows = g.rng.choice(x.shape[0], g.pick.randint(1, x.shape[0]), replace=False)
        updates = g.weights(len(rows), *x.shape[1:])
        more = dict(reduction=g.pick.choice(["none", "add", "mul"])) if g.opset >= 16 else {}
        g.add("ScatterND", x, g.array(rows[:, None]), updates, **more)
    else:
        axis = g.pick.randint(0, x.rank - 1)
        order = np.argsort(g.rng.uniform(size=x.shape), axis)
        indices = order[tuple(slice(g.pick.randint(1, d)) for d in x.shape)]
        g.add("ScatterElements", x, g.array(indices), g.weights(*indices.shape), axis=axis)
