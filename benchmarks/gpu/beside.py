"""Kernels beside those of cuBLAS, cuDNN and PyTorch, on the same arrays in the same process.

Every result is compared with float64 on the device before its time counts. Calls are queued while
the device waits, so that what the host does is no part of a time. Rates are of the operations that
the definition needs, whatever a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from lab import Lab, spread

import tilewright as tw
from tilewright.compiler.graph.ir import Graph

Row = dict[str, Any]
LIMITS: Final = {"f32": 1e-4, "tf32": 4e-3, "f16": 8e-3, "bf16": 3e-2, "f64": 1e-10}
"""Of errors, relative to the largest result."""


@dataclass(frozen=True)
class Timed:
    """What is computed: `what` names a rival. kind: of the elements, "tf32" is f32 under "reduced".
    flops, nbytes: that the definition needs."""

    name: str
    what: str
    kind: str
    dims: tuple[tuple[int, ...], ...]
    flops: int
    out: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def element(self) -> str:
        return "f32" if self.kind == "tf32" else self.kind

    @property
    def numerics(self) -> str:
        return "reduced" if self.kind == "tf32" else "standard"

    @property
    def nbytes(self) -> int:
        size = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}[self.element]
        return size * sum(int(np.prod(d)) for d in (*self.dims, self.out))

    def graph(self, weights: Any = None) -> Graph:
        """Operands are inputs, so that both sides read the same arrays; but the weights of a
        convolution, an array of numpy's (default: zeros), are packed as kernels read them."""
        g = tw.Graph(self.what)
        a = [g.input(f"x{k}", d, self.element) for k, d in enumerate(self.dims[: self.inputs])]
        if self.what == "conv":
            kind = np.float16 if self.kind == "f16" else np.float32
            a.append(g.constant(np.zeros(self.dims[1], kind) if weights is None else weights))
        g.output(_BUILD[self.what](g, *a, **self.settings), "y")
        return g.build()

    @property
    def inputs(self) -> int:
        return 1 if self.what == "conv" else len(self.dims)


def _conv(g: Any, x: Any, w: Any, stride: int = 1, padding: int = 0, groups: int = 1) -> Any:
    return g.conv(x, w, strides=stride, pads=padding, group=groups)


def _attention(g: Any, q: Any, k: Any, v: Any) -> Any:
    axes = (0, 1, 3, 2)
    scores = g.matmul(q, g.transpose(k, perm=axes))
    if scores.dtype.name != "bf16":
        scores = scores * g.constant(np.array(q.shape[-1] ** -0.5, scores.dtype.numpy))
        return g.matmul(g.softmax(scores, axis=-1), v)
    wide = g.cast(scores, to="f32") * g.constant(np.float32(q.shape[-1] ** -0.5))
    return g.matmul(g.cast(g.softmax(wide, axis=-1), to="bf16"), v)


def _wide(compute: Callable[..., Any]) -> Callable[..., Any]:
    """In f32 where elements are bf16, with which no operator computes."""

    def made(g: Any, *arrays: Any) -> Any:
        if arrays[0].dtype.name != "bf16":
            return compute(g, *arrays)
        return g.cast(compute(g, *(g.cast(a, to="f32") for a in arrays)), to="bf16")

    return made


_BUILD: Final[dict[str, Callable[..., Any]]] = {
    "matmul": lambda g, a, b: g.matmul(a, b),
    "linear": lambda g, a, b: g.matmul(a, g.transpose(b, perm=(1, 0))),
    "conv": _conv,
    "attention": _attention,
    "softmax": _wide(lambda g, x: g.softmax(x, axis=-1)),
    "normalised": _wide(lambda g, x, s, b: g.layer_normalization(x, s, b)),
    "added": _wide(lambda g, x, z: g.relu(x + z)),
}


def matmul(kind: str, m: int, n: int, k: int, transposed: bool = False) -> Timed:
    what = "linear" if transposed else "matmul"
    right = (n, k) if transposed else (k, n)
    return Timed(f"{what} {kind} {m}x{n}x{k}", what, kind, ((m, k), right), 2 * m * n * k, (m, n))


def conv(
    kind: str, batch: int, c: int, k: int, size: int, window: int, stride: int = 1, groups: int = 1
) -> Timed:
    out = (size + stride - 1) // stride
    name = f"conv {kind} {batch}x{c}x{size}x{size} {k}x{window}x{window}/{stride}"
    return Timed(
        name if groups == 1 else f"{name} in {groups} groups", "conv", kind,
        ((batch, c, size, size), (k, c // groups, window, window)),
        2 * batch * k * out * out * c // groups * window * window, (batch, k, out, out),
        {"stride": stride, "padding": window // 2, "groups": groups},
    )  # fmt: skip


def attention(kind: str, batch: int, heads: int, length: int, width: int) -> Timed:
    dims = (batch, heads, length, width)
    return Timed(f"attention {kind} {batch}x{heads}x{length}x{width}", "attention", kind,
                 (dims,) * 3, 4 * batch * heads * length * length * width, dims)  # fmt: skip


def moved(what: str, kind: str, rows: int, n: int) -> Timed:
    more = {"softmax": (), "normalised": ((n,), (n,)), "added": ((rows, n),)}[what]
    return Timed(f"{what} {kind} {rows}x{n}", what, kind, ((rows, n), *more), 0, (rows, n))


PRODUCTS: Final = (
    *(matmul("bf16", n, n, n) for n in (8192, 4096)), matmul("bf16", 4096, 4096, 4096, True),
    matmul("f16", 8192, 8192, 8192), matmul("tf32", 4096, 4096, 4096, True),
    matmul("f32", 4096, 4096, 4096),
    *(matmul(kind, n, n, n) for n in (2048, 1024, 512) for kind in ("bf16", "f16", "f32")),
    *(matmul("tf32", n, n, n, True) for n in (8192, 2048, 1024)),
    matmul("f32", 8192, 8192, 8192), matmul("bf16", 4095, 4097, 4093),
    matmul("bf16", 16, 4096, 4096, True), matmul("bf16", 1, 4096, 4096, True),
)  # fmt: skip
_RESNET: Final = (
    (64, 64, 56, 3), (256, 64, 56, 1), (64, 256, 56, 1), (128, 128, 28, 3), (512, 128, 28, 1),
    (256, 256, 14, 3), (1024, 256, 14, 1), (512, 512, 7, 3), (2048, 512, 7, 1),
)  # fmt: skip
"""Input channels, output channels, size, window."""
_VGG: Final = ((64, 64, 224, 3), (128, 128, 112, 3), (256, 256, 56, 3), (512, 512, 28, 3))
"""Large images, for which float32 is computed by Winograd's algorithm first."""
CONVOLUTIONS: Final = (
    *(conv(kind, 32, *shape) for kind in ("f16", "f32", "tf32") for shape in _RESNET),
    conv("f16", 32, 3, 64, 224, 7, 2), conv("f32", 32, 3, 64, 224, 7, 2),
    *(conv("f32", 1, *shape) for shape in _RESNET),
    *(conv("f32", 1, *shape) for shape in _VGG),
    *(conv(kind, 32, 144, 144, 56, 3, 1, 144) for kind in ("f32", "f16")),
)  # fmt: skip
MOVING: Final = (
    *(moved(what, kind, 16384, 4096) for what in ("added", "softmax", "normalised")
      for kind in ("f32", "bf16")),
    *(moved(what, "f32", 512, 1024) for what in ("added", "softmax", "normalised")),
)  # fmt: skip
_HEADS: Final = ((4, 16, 1024, 64), (1, 32, 4096, 128), (32, 12, 128, 64))
ATTENTION: Final = (
    *(attention(kind, *shape) for shape in _HEADS for kind in ("bf16", "f16")),
    attention("f32", 4, 8, 512, 64),
)  # fmt: skip
SETS: Final = {"products": PRODUCTS, "convolutions": CONVOLUTIONS, "moving": MOVING,
               "attention": ATTENTION}  # fmt: skip


def timed(
    chosen: Sequence[Timed], lab_of: Callable[[bool], Lab],
    compile_: Callable[..., Any] = tw.compile,
) -> Iterator[Row]:  # fmt: skip
    """A row for each. lab_of(tf32) makes the lab."""
    for t in chosen:
        yield {"at": t.name}
        tf32 = t.kind == "tf32"
        try:
            yield _timed(t, lab_of(tf32), compile_)
        except Exception as e:
            yield {"name": t.name, "error": f"{type(e).__name__}: {e}"[:500]}


def _timed(t: Timed, lab: Lab, compile_: Callable[..., Any]) -> Row:
    arrays = [lab.random(d, t.element) for d in t.dims]
    given = arrays[: t.inputs]
    weights = lab.host(arrays[1]) if t.what == "conv" else None
    exe = compile_(t.graph(weights), target="cuda", numerics=t.numerics)
    out = lab.empty(t.out, t.element)

    def ours() -> None:
        exe(*given, out=out)

    ours()
    lab.wait()
    error = lab.error(t.what, arrays, out, **t.settings)
    row: Row = {
        "name": t.name, "error_of_largest": error, "flops": t.flops, "bytes": t.nbytes,
        "templates": [k.template for k in exe.kernels],
        "configs": [{n: v for n, v in k.config.items()} for k in exe.kernels],
    }  # fmt: skip
    if not error <= LIMITS[t.kind]:
        return {**row, "error": f"wrong: off by {error:.3g} of the largest result"}
    calls = {"tilewright": ours, **lab.rivals(t.what, arrays, **t.settings)}
    for cold in (False, True):
        # The same order twice, so that a clock that changes shows.
        taken = {n: lab.samples(c, cold) for n, c in calls.items()}
        again = {n: lab.samples(c, cold) for n, c in calls.items()}
        row["cold" if cold else "warm"] = {n: spread(taken[n] + again[n]) for n in calls}
    row["launch_seconds"] = exe.launch_seconds(*given, rounds=10)
    exe.close()
    best = min(v["median"] for n, v in row["warm"].items() if n != "tilewright")
    row["of_best_rival"] = best / row["warm"]["tilewright"]["median"]
    return row


def copying(lab: Lab, sizes: Sequence[int] = (1 << 30, 64 << 20, 8 << 20)) -> Iterator[Row]:
    """Bytes read and written a second by the library's copy: what memory-bound kernels stand
    beside."""
    for size in sizes:
        name = f"copy of {size >> 20} MiB"
        yield {"at": name}
        x = lab.random((size // 4,), "f32")
        (call,) = lab.rivals("copied", [x]).values()
        row: Row = {"name": name, "bytes": 2 * size}
        for cold in (False, True):
            row["cold" if cold else "warm"] = {"torch": spread(lab.samples(call, cold))}
        yield row
