"""Makers of the blocks that real networks are built of, for `onnx_models`."""

from __future__ import annotations

from math import prod

import numpy as np

from .onnx_makers import reduce
from .onnx_models import Grower, Known, maker
from .onnx_movers import unsqueeze


def convolve(
    g: Grower,
    x: Known,
    out: int,
    kernel: int = 1,
    stride: int = 1,
    group: int = 1,
    norm: bool = True,
) -> Known:
    """A convolution with the borders kept, and what makes its result small again."""
    fan = x.shape[1] // group * kernel * kernel
    w = g.weights(out, x.shape[1] // group, kernel, kernel, lo=-(fan**-0.5), hi=fan**-0.5)
    more = [] if norm else [g.weights(out)]
    y = g.op("Conv", x, w, *more, strides=[stride, stride], group=group, pads=[kernel // 2] * 4)
    if norm:
        c = [g.weights(out, lo=0.5, hi=2) for _ in range(4)]
        y = g.op("BatchNormalization", y, *c)
    return y


def activate(g: Grower, x: Known) -> Known:
    kind = g.pick.choice(["Relu", "Relu", "Relu6", "SiLU", "HardSwish", "LeakyRelu", "none"])
    if kind == "Relu6":
        return g.op("Clip", x, g.array(np.float32(0)), g.array(np.float32(6)))
    if kind == "SiLU":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if kind == "HardSwish":
        y = g.op("Add", x, g.number(3))
        y = g.op("Clip", y, g.array(np.float32(0)), g.array(np.float32(6)))
        return g.op("Mul", x, g.op("Div", y, g.number(6)))
    return x if kind == "none" else g.op(kind, x)


def is_image(g: Grower, x: Known) -> bool:
    return x.rank == 4 and 0 < x.array.size <= g.room


def linear(g: Grower, x: Known, out: int, bias: bool = True) -> Known:
    n = x.shape[-1]
    y = g.op("MatMul", x, g.weights(n, out, lo=-(n**-0.5), hi=n**-0.5))
    return g.op("Add", y, g.weights(out)) if bias else y


@maker(2)
def residual(g: Grower, x: Known) -> None:
    if not is_image(g, x):
        return
    c = x.shape[1]
    y = activate(g, convolve(g, x, g.pick.choice([4, 8]), 1))
    y = activate(g, convolve(g, y, y.shape[1], 3))
    y = convolve(g, y, c, 1)
    g.keep(activate(g, g.op("Add", y, x)), x.largest)


@maker(2)
def separable(g: Grower, x: Known) -> None:
    """Expand, depthwise, squeeze and excite, project."""
    if not is_image(g, x):
        return
    c = x.shape[1]
    stride = g.pick.choice([1, 1, 2])
    y = activate(g, convolve(g, x, 2 * c))
    y = activate(g, convolve(g, y, 2 * c, 3, stride, group=2 * c))
    if g.pick.random() < 0.6:
        s = g.op("GlobalAveragePool", y)
        s = g.op("Relu", convolve(g, s, 3, norm=False))
        s = g.op(g.pick.choice(["Sigmoid", "HardSigmoid"]), convolve(g, s, 2 * c, norm=False))
        y = g.op("Mul", y, s)
    y = convolve(g, y, c)
    g.keep(g.op("Add", x, y) if stride == 1 else y, x.largest)


@maker()
def inception(g: Grower, x: Known) -> None:
    if not is_image(g, x):
        return
    branches = [activate(g, convolve(g, x, g.pick.choice([3, 4, 8]), k)) for k in (1, 3)]
    p = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    branches.append(convolve(g, p, 4))
    g.keep(g.op("Concat", *branches, *([x] if g.pick.random() < 0.5 else []), axis=1))


@maker()
def shuffle(g: Grower, x: Known) -> None:
    if not is_image(g, x) or x.shape[1] % 2:
        return
    n, c, h, w = x.shape
    y = g.op("Reshape", x, g.ints(n, 2, c // 2, h, w))
    y = g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = g.op("Reshape", y, g.ints(0, -1, h, w))
    first, second = halves(g, y, 1)
    g.keep(g.op("Concat", activate(g, convolve(g, first, c // 2, 3)), second, axis=1), x.largest)


def halves(g: Grower, x: Known, axis: int) -> tuple[Known, Known]:
    n = x.shape[axis] // 2
    if g.pick.random() < 0.5:
        cuts = [(0, n), (n, 2 * n)]
        a, b = (g.op("Slice", x, g.ints(p), g.ints(q), g.ints(axis)) for p, q in cuts)
    elif g.opset >= 13:
        a, b = g.ops("Split", 2, x, g.ints(n, n), axis=axis)
    else:
        a, b = g.ops("Split", 2, x, axis=axis, split=[n, n])
    return a, b


@maker()
def down_and_up(g: Grower, x: Known) -> None:
    """An encoder and a decoder step with the skip between them."""
    if not is_image(g, x) or x.shape[2] % 2 or x.shape[3] % 2:
        return
    y = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = activate(g, convolve(g, y, 6, 3))
    if g.pick.random() < 0.5:
        y = g.op("ConvTranspose", y, g.weights(6, 4, 2, 2, lo=-0.4, hi=0.4), strides=[2, 2])
    else:
        scales = g.array(np.array([1, 1, 2, 2], np.float32))
        mode = g.pick.choice(["nearest", "linear"])
        how = "asymmetric" if mode == "nearest" else g.pick.choice(["half_pixel", "asymmetric"])
        more = {"nearest_mode": "floor"} if mode == "nearest" else {}
        y = g.op("Resize", y, g.array(np.zeros(0, np.float32)), scales, mode=mode,
                 coordinate_transformation_mode=how, **more)  # fmt: skip
    y = g.op("Concat", y, x, axis=1)
    g.keep(activate(g, convolve(g, y, 4, 3)), x.largest)


@maker()
def classify(g: Grower, x: Known) -> None:
    if x.rank != 4 or not x.array.size:
        return
    y = g.op("GlobalAveragePool", x)
    y = g.op("Flatten", y) if g.pick.random() < 0.5 else g.op("Reshape", y, g.ints(0, -1))
    w = g.weights(5, x.shape[1])
    y = g.op("Gemm", y, w, g.weights(5), transB=1)
    g.keep(g.op("Softmax", y, axis=1) if g.pick.random() < 0.5 else y, x.largest)


# --------------------------------------------------------------------------- transformers


@maker(2)
def norm_by_parts(g: Grower, x: Known) -> None:
    """Layer or RMS normalisation as exporters before opset 17 write it."""
    if not x.rank or x.shape[-1] < 3 or x.array.std(-1).min() < 0.1:
        return
    n = x.shape[-1]
    centred = x
    if g.pick.random() < 0.7:
        centred = g.op("Sub", x, reduce(g, "ReduceMean", x, (-1,), 1))
    two = g.array(np.float32(2))
    square = g.op("Pow", centred, two) if g.pick.random() < 0.6 else g.op("Mul", centred, centred)
    variance = reduce(g, "ReduceMean", square, (-1,), 1)
    root = g.op("Sqrt", g.op("Add", variance, g.number(1e-5)))
    if g.pick.random() < 0.5:
        y = g.op("Div", centred, root)
    else:
        y = g.op("Mul", centred, g.op("Reciprocal", root))
    y = g.op("Mul", y, g.weights(n, lo=0.5, hi=2))
    g.keep(g.op("Add", y, g.weights(n)) if g.pick.random() < 0.7 else y)


@maker(2)
def gelu_by_parts(g: Grower, x: Known) -> None:
    if not x.rank:
        return  # onnxruntime's fusions of a scalar lose axes, or cannot run
    if g.pick.random() < 0.6:
        y = g.op("Div", x, g.number(2**0.5))
        y = g.op("Add", g.op("Erf", y), g.number(1))
        if g.pick.random() < 0.5:
            g.keep(g.op("Mul", g.op("Mul", x, y), g.number(0.5)))
        else:
            g.keep(g.op("Mul", g.op("Mul", x, g.number(0.5)), y))
    else:
        cube = g.op("Mul", g.op("Pow", x, g.number(3)), g.number(0.044715))
        t = g.op("Tanh", g.op("Mul", g.op("Add", x, cube), g.number(0.7978845608)))
        g.keep(g.op("Mul", g.op("Mul", x, g.number(0.5)), g.op("Add", t, g.number(1))))


def heads_of(g: Grower, x: Known, heads: int) -> Known:
    """[b, s, d] -> [b, heads, s, d / heads]"""
    b, s, d = x.shape
    y = g.op("Reshape", x, g.ints(*g.pick.choice([(b, s, heads, d // heads), (0, 0, heads, -1)])))
    return g.op("Transpose", y, perm=[0, 2, 1, 3])


@maker(3)
def attention(g: Grower, x: Known) -> None:
    if x.rank != 3 or not 1 < x.shape[1] <= 16 or x.array.size > g.room // 4:
        return
    b, s, d = x.shape
    heads, size = g.pick.choice([1, 2, 3]), g.pick.choice([4, 5, 8])
    if g.pick.random() < 0.4:
        qkv = linear(g, x, 3 * heads * size)
        n = heads * size
        if g.opset >= 13:
            q, k, v = g.ops("Split", 3, qkv, g.ints(n, n, n), axis=-1)
        else:
            q, k, v = g.ops("Split", 3, qkv, axis=-1, split=[n, n, n])
    else:
        q, k, v = (linear(g, x, heads * size, g.pick.random() < 0.7) for _ in range(3))
    q, k, v = (heads_of(g, t, heads) for t in (q, k, v))
    if size % 2 == 0 and g.pick.random() < 0.3:
        q, k = rotate(g, q), rotate(g, k)
    turned = g.op("Transpose", k, perm=[0, 1, 3, 2])
    if g.pick.random() < 0.5:
        scores = g.op("Div", g.op("MatMul", q, turned), g.number(size**0.5))
    else:
        scores = g.op("MatMul", g.op("Mul", q, g.number(size**-0.5)), turned)
    mask = g.pick.choice(["none", "add", "where", "input"])
    causal = np.tril(np.ones((s, s), bool))
    if mask == "add":
        scores = g.op("Add", scores, g.array(np.where(causal, 0, -1e9).astype(np.float32)[None]))
    elif mask == "where":
        scores = g.op("Where", g.array(causal[None, None]), scores, g.array(np.float32(-1e9)))
    elif mask == "input":
        given = g.rng.integers(0, 2, (b, s))
        given[:, 0] = 1
        m = unsqueeze(g, g.op("Cast", g.input(given), to=1), 1, 2)
        m = g.op("Mul", g.op("Sub", g.array(np.float32(1)), m), g.array(np.float32(-1e9)))
        scores = g.op("Add", scores, m)
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1 if g.opset >= 13 else 3), v)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    y = linear(g, g.op("Reshape", y, g.ints(b, s, heads * size)), d)
    g.keep(g.op("Add", x, y), x.largest)


def rotate(g: Grower, x: Known) -> Known:
    """Rotary position embedding."""
    angles = g.rng.uniform(-1, 1, (x.shape[2], x.shape[3])).astype(np.float32)
    first, second = halves(g, x, 3)
    turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
    return g.op("Add", g.op("Mul", x, g.array(np.cos(angles))),
                g.op("Mul", turned, g.array(np.sin(angles))))  # fmt: skip


@maker(2)
def mlp(g: Grower, x: Known) -> None:
    if x.rank < 2 or x.array.size > g.room // 2 or 0 in x.shape:
        return
    y = linear(g, x, 16)
    if g.pick.random() < 0.5:
        a, b = halves(g, y, x.rank - 1)
        y = g.op("Mul", a, g.op("Sigmoid", b))
    else:
        y = g.op(g.pick.choice(["Relu", "Tanh"]), y)
    g.keep(g.op("Add", linear(g, y, x.shape[-1]), x), x.largest)


@maker()
def tokens(g: Grower, x: Known) -> None:
    """Images to sequences: patches, or positions as tokens."""
    if is_image(g, x):
        n, c, h, w = x.shape
        y = g.op("Reshape", x, g.ints(n, c, h * w))
        y = g.op("Transpose", y, perm=[0, 2, 1])
        if g.pick.random() < 0.5:
            y = g.op("Concat", g.weights(n, 1, c), y, axis=1)
        g.keep(g.op("Add", y, g.weights(1, *y.shape[1:])), x.largest)
    elif x.rank == 3 and x.shape[1] in (4, 9, 16):
        side = int(x.shape[1] ** 0.5)
        y = g.op("Transpose", x, perm=[0, 2, 1])
        g.add("Reshape", y, g.ints(x.shape[0], x.shape[2], side, side))


@maker()
def recurrent(g: Grower, x: Known) -> None:
    if x.rank != 3 or prod(x.shape[:2]) > 64 or 0 in x.shape or x.shape[2] > 32:
        return
    kind, gates = g.pick.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    both, hidden = g.pick.choice([1, 2]), g.pick.choice([3, 8])
    w, r = (g.weights(both, gates * hidden, n, lo=-0.5, hi=0.5) for n in (x.shape[2], hidden))
    bias = [g.weights(both, 2 * gates * hidden)] if g.pick.random() < 0.7 else []
    way = "bidirectional" if both == 2 else g.pick.choice(["forward", "reverse"])
    more = {"linear_before_reset": g.pick.randint(0, 1)} if kind == "GRU" else {}
    count = 3 if kind == "LSTM" else 2
    y, *last = g.ops(kind, count, x, w, r, *bias, hidden_size=hidden, direction=way, **more)
    g.keep(last[0])
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    g.keep(g.op("Reshape", y, g.ints(0, 0, both * hidden)))
