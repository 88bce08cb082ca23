"""Makers of one or a few ONNX nodes each, for `onnx_models`: the operators that compute."""

from __future__ import annotations

from math import prod

import numpy as np

from .onnx_models import Grower, Known, maker

# --------------------------------------------------------------------------- elementwise


@maker(3)
def unary(g: Grower, x: Known) -> None:
    plain = [
        "Relu", "Sigmoid", "Tanh", "Abs", "Neg", "LeakyRelu", "Softplus", "Erf", "Sin", "Cos",
        "Elu", "Identity", "HardSigmoid", "Softsign", "Selu", "ThresholdedRelu", "Atan",
    ]  # fmt: skip
    plain += ["HardSwish"] if g.opset >= 14 else []
    plain += ["Celu"] if g.opset >= 12 else []
    plain += ["Mish"] if g.opset >= 18 else []
    plain += ["Gelu"] if g.opset >= 20 else []
    name = g.pick.choice(plain)
    if name == "ThresholdedRelu":
        at = g.cut(x)
        if at is not None:
            g.add(name, x, alpha=at)
    elif name == "Gelu":
        g.add(name, x, approximate=g.pick.choice(["none", "tanh"]))
    elif name in ("LeakyRelu", "Elu"):
        g.add(name, x, alpha=g.pick.choice([0.01, 0.2, 1.0]))
    else:
        g.add(name, x)


@maker()
def positive(g: Grower, x: Known) -> None:
    """Functions of |x| + c, away from their singularities."""
    inner = g.op("Add", g.op("Abs", x), g.number(0.5))
    name = g.pick.choice(["Sqrt", "Log", "Reciprocal", "Pow", "Pow"])
    if name == "Pow":
        g.add("Pow", inner, g.number(g.pick.choice([0.5, 1, 2, 3, 1.5, -1])))
    else:
        g.add(name, inner)


@maker()
def bounded(g: Grower, x: Known) -> None:
    """Functions that amplify what comes in, fed with what cannot be large."""
    inner = g.op("Tanh", x)
    name = g.pick.choice(["Exp", "Asin", "Acos", "Tan", "Sinh", "Cosh", "Atanh"])
    if name in ("Asin", "Acos", "Atanh"):
        inner = g.op("Mul", inner, g.number(0.8))
    g.add(name, inner)


@maker()
def clip(g: Grower, x: Known) -> None:
    lo, hi = -g.pick.random(), 0.5 + g.pick.random()
    bounds = [g.array(np.float32(v)) if g.pick.random() < 0.8 else None for v in (lo, hi)]
    g.add("Clip", x, *bounds)


@maker(3)
def with_constant(g: Grower, x: Known) -> None:
    """Arithmetic with a constant that broadcasts, per channel as often as not."""
    shape = list(x.shape[g.pick.randint(0, max(x.rank - 1, 0)) :])
    kind = g.pick.random()
    if kind < 0.4 and x.rank > 1:
        shape = [x.shape[1], *(1 for _ in x.shape[2:])]
    elif kind < 0.6:
        shape = []
    elif kind < 0.8:
        shape = [d if g.pick.random() < 0.5 else 1 for d in shape]
    operator = g.pick.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"])
    c = g.weights(*shape, lo=0.5, hi=2)
    if operator != "Div" and g.pick.random() < 0.3:
        g.add(operator, c, x)
    else:
        g.add(operator, x, c)


@maker(3)
def binary(g: Grower, x: Known) -> None:
    fitting = [k for k in g.pool if g.broadcasts(x.shape, k.shape)]
    if not fitting:
        return
    y = g.pick.choice(fitting)
    g.add(g.pick.choice(["Add", "Sub", "Mul", "Max", "Min"]), x, y)


@maker()
def prelu(g: Grower, x: Known) -> None:
    if x.rank > 1:
        g.add("PRelu", x, g.weights(x.shape[1], *(1 for _ in x.shape[2:])))


@maker()
def variadic(g: Grower, x: Known) -> None:
    same = [k for k in g.pool if k.shape == x.shape]
    values = [g.pick.choice(same) for _ in range(g.pick.randint(1, 4))]
    g.add(g.pick.choice(["Sum", "Max", "Min", "Mean"]), *values)


@maker()
def steps(g: Grower, x: Known) -> None:
    """Rounding, of values that are not near an edge."""
    name = g.pick.choice(["Floor", "Ceil", "Round", "Sign"])
    shifted = x.array + 0.5 if name == "Round" else x.array
    edges = np.abs(shifted - np.round(shifted)) if name != "Sign" else np.abs(shifted)
    if x.array.size and edges.min() > 1e-3:
        g.add(name, x)


# --------------------------------------------------------------------------- other element types


@maker(2)
def where(g: Grower, x: Known) -> None:
    """A comparison, perhaps with logic around it, and what it chooses."""
    at = g.cut(x)
    if at is None:
        return
    name = g.pick.choice(["Less", "Greater", *(["LessOrEqual", "GreaterOrEqual"] * (g.opset > 11))])
    mask = g.op(name, x, g.array(np.float32(at)))
    if g.pick.random() < 0.3:
        mask = g.op("Not", mask)
    masks = [k for k in g.others if k.array.dtype == bool and g.broadcasts(k.shape, mask.shape)]
    if masks and g.pick.random() < 0.4:
        mask = g.op(g.pick.choice(["And", "Or", "Xor"]), mask, g.pick.choice(masks))
    g.keep(mask)
    if g.pick.random() < 0.3:
        g.keep(g.op("Cast", mask, to=1))
        return
    others = [k for k in g.pool if g.broadcasts(k.shape, mask.shape)]
    y = g.pick.choice(others) if others and g.pick.random() < 0.6 else g.number(0.25)
    if g.broadcasts(np.broadcast_shapes(mask.shape, y.shape), x.shape):
        g.keep(g.op("Where", mask, *((x, y) if g.pick.random() < 0.5 else (y, x))))


@maker(2)
def integers(g: Grower, x: Known) -> None:
    """Float to integer, some integer arithmetic, and back."""
    scaled = g.op("Mul", x, g.number(4))
    if x.array.size == 0 or np.abs(scaled.array - np.round(scaled.array)).min() < 2e-3:
        return
    kind = g.pick.choice([6, 7])  # int32, int64
    dtype = np.int32 if kind == 6 else np.int64
    y = g.op("Cast", scaled, to=kind)
    for _ in range(g.pick.randint(0, 3)):
        name = g.pick.choice(["Add", "Sub", "Mul", "Div", "Mod", "Abs", "Neg", "Max", "Min"])
        if name in ("Abs", "Neg"):
            y = g.op(name, y)
            continue
        if name in ("Max", "Min") and g.opset < 12:
            continue
        peers = [k for k in g.others if k.array.dtype == dtype and g.broadcasts(k.shape, y.shape)]
        if peers and name not in ("Div", "Mod") and g.pick.random() < 0.5:
            other = g.pick.choice(peers)
        else:
            other = g.array(np.array(g.pick.randint(1, 5), dtype))
        if name == "Mod":
            y = g.op(name, y, other, fmod=g.pick.randint(0, 1))
        else:
            y = g.op(name, y, other)
        if np.abs(y.array).max() > 10000:
            y = g.op("Mod", y, g.array(np.array(97, dtype)))
    g.keep(y)
    g.keep(g.op("Cast", y, to=1))


@maker()
def with_integers(g: Grower, x: Known) -> None:
    """Integer values again: movement, comparison, reduction."""
    found = [k for k in g.others if k.array.dtype in (np.int32, np.int64) and k.rank]
    if not found:
        return
    y = g.pick.choice(found)
    choice = g.pick.randint(0, 3)
    if choice == 0:
        order = list(range(y.rank))
        g.pick.shuffle(order)
        g.keep(g.op("Transpose", y, perm=order))
    elif choice == 1:
        bound = g.array(np.array(g.pick.randint(-2, 3), y.array.dtype))
        g.keep(g.op(g.pick.choice(["Equal", "Less", "Greater"]), y, bound))
    elif choice == 2 and y.array.dtype == np.int32:
        g.keep(reduce(g, g.pick.choice(["ReduceSum", "ReduceMax", "ReduceMin"]), y, (0,), 1))
    else:
        g.keep(g.op("Cast", y, to=1))


@maker()
def one_hot(g: Grower, x: Known) -> None:
    found = [k for k in g.others if k.array.dtype == np.int64 and 0 < 4 * k.array.size <= g.room]
    found = [k for k in found if k.rank]
    if found:
        y = g.pick.choice(found)
        axis = g.pick.randint(-y.rank - 1, y.rank)
        g.keep(g.op("OneHot", y, g.ints(4), g.array(np.array([0.5, 2], np.float32)), axis=axis))


@maker()
def arg(g: Grower, x: Known) -> None:
    """Positions of extremes, where no two elements are near each other."""
    if not x.rank or x.array.size == 0:
        return
    axis = g.pick.randint(0, x.rank - 1)
    ordered = np.sort(x.array, axis)
    if x.shape[axis] > 1 and np.diff(ordered, axis=axis).min() < 1e-3:
        return
    if g.pick.random() < 0.5:
        name = g.pick.choice(["ArgMax", "ArgMin"])
        g.keep(g.op(name, x, axis=axis - x.rank, keepdims=g.pick.randint(0, 1)))
    else:
        k = g.ints(g.pick.randint(1, x.shape[axis]))
        values, places = g.ops("TopK", 2, x, k, axis=axis, largest=g.pick.randint(0, 1))
        g.keep(values)
        g.keep(places)


# --------------------------------------------------------------------------- reductions


def reduce(g: Grower, name: str, x: Known, axes: tuple[int, ...], keepdims: int) -> Known:
    since = 13 if name == "ReduceSum" else 18
    if g.opset >= since:
        return g.op(name, x, g.ints(*axes), keepdims=keepdims)
    return g.op(name, x, axes=list(axes), keepdims=keepdims)


@maker(2)
def reduction(g: Grower, x: Known) -> None:
    if not x.rank:
        return
    axes = g.pick.sample(range(x.rank), g.pick.randint(1, x.rank))
    axes = [a - x.rank if g.pick.random() < 0.3 else a for a in axes]
    name = g.pick.choice(
        ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
         "ReduceSumSquare", "ReduceLogSumExp"]
    )  # fmt: skip
    g.keep(reduce(g, name, x, tuple(axes), g.pick.randint(0, 1)), x.largest)


@maker()
def reduce_everything(g: Grower, x: Known) -> None:
    g.keep(g.op(g.pick.choice(["ReduceMean", "ReduceMax"]), x, keepdims=g.pick.randint(0, 1)),
           x.largest)  # fmt: skip


@maker()
def cumulative(g: Grower, x: Known) -> None:
    if x.rank:
        axis = g.array(np.array(g.pick.randint(-x.rank, x.rank - 1), np.int64))
        g.add("CumSum", x, axis, exclusive=g.pick.randint(0, 1), reverse=g.pick.randint(0, 1))


@maker(2)
def softmax(g: Grower, x: Known) -> None:
    if x.rank:
        name = g.pick.choice(["Softmax", "Softmax", "LogSoftmax"])
        g.add(name, x, axis=g.pick.randint(-x.rank, x.rank - 1))


@maker()
def normalization(g: Grower, x: Known) -> None:
    if x.rank < 3 or prod(x.shape[2:]) < 3 or x.array.std(tuple(range(2, x.rank))).min() < 0.1:
        return
    name = g.pick.choice(["InstanceNormalization", "LRN", "GroupNormalization"])
    c = x.shape[1]
    if name == "InstanceNormalization":
        g.add(name, x, g.weights(c), g.weights(c), epsilon=1e-5)
    elif name == "LRN" and x.rank == 4:
        g.add(name, x, size=g.pick.choice([1, 3, 5]), alpha=0.1, beta=0.75, bias=1.0)
    elif name == "GroupNormalization" and g.opset >= 21:
        groups = g.pick.choice([k for k in range(1, c + 1) if c % k == 0])
        g.add(name, x, g.weights(c), g.weights(c), num_groups=groups)


@maker()
def layer_norm(g: Grower, x: Known) -> None:
    if g.opset >= 17 and x.rank and x.shape[-1] > 2 and x.array.std(-1).min() > 0.1:
        n = x.shape[-1]
        shift = [g.weights(n)] if g.pick.random() < 0.7 else []
        g.add("LayerNormalization", x, g.weights(n), *shift, axis=-1)


# --------------------------------------------------------------------------- products, windows


@maker(2)
def matmul(g: Grower, x: Known) -> None:
    if not x.rank or x.shape[-1] == 0:
        return
    k, n = x.shape[-1], g.pick.choice([1, 3, 5, 8, 16, 33])
    lead = (x.shape[-3],) if g.pick.random() < 0.2 and x.rank > 2 else ()
    if g.pick.random() < 0.1:
        y = g.add("MatMul", x, g.weights(k))
    else:
        y = g.add("MatMul", x, g.weights(*lead, k, n))
    if y.rank and g.pick.random() < 0.6:
        g.add("Add", y, g.weights(y.shape[-1]))


@maker()
def matmul_of_two(g: Grower, x: Known) -> None:
    fitting = [
        k for k in g.pool
        if k.rank > 1 and x.rank > 1 and k.shape[-2] == x.shape[-1]
        and g.broadcasts(x.shape[:-2], k.shape[:-2]) and x.array.size * k.shape[-1] < 20 * g.room
    ]  # fmt: skip
    if fitting:
        g.add("MatMul", x, g.pick.choice(fitting))


@maker()
def with_itself(g: Grower, x: Known) -> None:
    if x.rank > 1 and x.array.size * x.shape[-2] < 20 * g.room:
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        g.add("MatMul", x, g.op("Transpose", x, perm=order))


@maker()
def gemm(g: Grower, x: Known) -> None:
    if x.rank != 2 or 0 in x.shape:
        return
    transa, transb = g.pick.randint(0, 1), g.pick.randint(0, 1)
    m, k = reversed(x.shape) if transa else x.shape
    n = g.pick.choice([1, 4, 7])
    bias = [g.weights(*g.pick.choice([(n,), (1, n), (m, n), (), (m, 1)]))]
    bias = bias if g.pick.random() < 0.8 else []
    y = g.weights(*((n, k) if transb else (k, n)))
    alpha, beta = g.pick.choice([1.0, 0.5]), g.pick.choice([1.0, 2.0])
    g.add("Gemm", x, y, *bias, transA=transa, transB=transb, alpha=alpha, beta=beta)


@maker()
def einsum(g: Grower, x: Known) -> None:
    if g.opset < 12 or x.rank not in (2, 3) or 0 in x.shape:
        return
    k = x.shape[-1]
    if x.rank == 3:
        w = g.weights(x.shape[0], k, 4) if g.pick.random() < 0.5 else g.weights(k, 4)
        g.add("Einsum", x, w, equation="bij,bjk->bik" if w.rank == 3 else "bij,jk->bki")
    else:
        g.add("Einsum", x, g.weights(5, k), equation="ij,kj->ki")


@maker(3)
def conv(g: Grower, x: Known) -> None:
    spatial = x.rank - 2
    if spatial not in (1, 2, 3) or 0 in x.shape:
        return
    channels, sizes = x.shape[1], x.shape[2:]
    group = g.pick.choice([k for k in (1, 1, 2, 3, channels) if channels % k == 0])
    out = group * g.pick.choice([1, 2, 4, *([8, 16] if channels < 8 else [])])
    dilations = [g.pick.choice([1, 1, 1, 2]) for _ in sizes]
    kernel = [g.pick.randint(1, max(1, min(3, (d - 1) // r + 1)))
              for d, r in zip(sizes, dilations, strict=True)]  # fmt: skip
    inputs = [x, g.weights(out, channels // group, *kernel)]
    if g.pick.random() < 0.5:
        inputs.append(g.weights(out))
    attrs = dict(strides=[g.pick.randint(1, 2) for _ in sizes], group=group, kernel_shape=kernel)
    if g.pick.random() < 0.2 and dilations == [1] * spatial and min(kernel) > 1:
        attrs["auto_pad"] = g.pick.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    else:
        attrs["pads"] = [g.pick.randint(0, 2) for _ in range(2 * spatial)]
        attrs["dilations"] = dilations
    y = g.op("Conv", *inputs, **attrs)
    if y.array.size <= 4 * g.room:
        g.keep(y, x.largest)


@maker()
def conv_transpose(g: Grower, x: Known) -> None:
    spatial = x.rank - 2
    if spatial not in (1, 2) or 0 in x.shape or x.array.size > g.room // 4:
        return
    channels = x.shape[1]
    group = g.pick.choice([k for k in (1, 1, 2, channels) if channels % k == 0])
    kernel = [g.pick.randint(1, 3) for _ in range(spatial)]
    strides = [g.pick.randint(1, 2) for _ in range(spatial)]
    inputs = [x, g.weights(channels, g.pick.choice([1, 2]), *kernel)]
    if g.pick.random() < 0.5:
        inputs.append(g.weights(inputs[1].shape[1] * group))
    attrs = dict(strides=strides, group=group)
    if g.pick.random() < 0.5:
        attrs["output_padding"] = [s - 1 for s in strides]
    g.add("ConvTranspose", *inputs, **attrs)


@maker()
def batch_norm(g: Grower, x: Known) -> None:
    if x.rank > 1:
        params = [g.weights(x.shape[1]) for _ in range(3)]
        g.add("BatchNormalization", x, *params, g.weights(x.shape[1], lo=0.5, hi=2))


@maker(2)
def windows(g: Grower, x: Known) -> None:
    spatial = x.rank - 2
    if spatial not in (1, 2, 3) or min(x.shape[2:]) < 2:
        return
    kernel = [g.pick.randint(1, min(3, d)) for d in x.shape[2:]]
    name = g.pick.choice(["MaxPool", "AveragePool"])
    strides = [g.pick.randint(1, min(2, k)) for k in kernel]
    attrs = dict(kernel_shape=kernel, strides=strides)
    if g.pick.random() < 0.2:
        attrs["auto_pad"] = g.pick.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    else:
        attrs["pads"] = [g.pick.randint(0, k // 2) for _ in range(2) for k in kernel]
    if name == "AveragePool":
        attrs["count_include_pad"] = g.pick.randint(0, 1)
    # onnxruntime averages over the whole window where ceil_mode lets one stand over the edge, and
    # with pads its shape inference and its kernels do not agree
    elif g.pick.random() < 0.3 and not any(attrs.get("pads", [1])):
        attrs["ceil_mode"] = 1
    g.add(name, x, **attrs)


@maker()
def global_pool(g: Grower, x: Known) -> None:
    if 2 < x.rank < 6 and 0 not in x.shape:  # as many axes as onnxruntime pools over
        g.add(g.pick.choice(["GlobalAveragePool", "GlobalMaxPool"]), x)


@maker()
def resize(g: Grower, x: Known) -> None:
    if x.rank != 4 or x.array.size > g.room // 6:
        return
    mode = g.pick.choice(["nearest", "linear", "cubic"])
    attrs = dict(mode=mode)
    transforms = ["asymmetric", "half_pixel", "align_corners"]
    if mode == "nearest":
        attrs["nearest_mode"] = g.pick.choice(["floor", "round_prefer_floor"])
        transforms = ["asymmetric"]
    attrs["coordinate_transformation_mode"] = g.pick.choice(transforms)
    if g.pick.random() < 0.5:
        scales = g.array(np.array([1, 1, *(g.pick.choice([2.0, 1.0, 3.0]) for _ in "ab")], "f4"))
        g.add("Resize", x, g.array(np.zeros(0, np.float32)), scales, **attrs)
    else:
        sizes = [d * g.pick.choice([1, 2]) for d in x.shape[2:]]
        empty = g.array(np.zeros(0, np.float32))
        g.add("Resize", x, empty, None if g.opset >= 13 else empty, g.ints(*x.shape[:2], *sizes),
              **attrs)  # fmt: skip
