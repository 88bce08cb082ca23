"""Whether the kernels of every GPU template are right: fresh problems, several configs of each.

A problem's sizes are random, odd ones among them; what a kernel computes is compared with the
references in float64, five times, and all times must give the same bits (`tuning/gpu_bench.py`, the
code that checks what the tuner tries).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import tilewright as tw
from tilewright.autotune.outcome import Failure
from tilewright.autotune.task import Candidate
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GpuDevice, gpu_device
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.kernels.template import KernelTemplate, Objecting
from tilewright.compiler.options import Numerics
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.runtime.cuda_device import all_facts
from tilewright.compiler.tuning.gpu_bench import GpuBench
from tilewright.compiler.tuning.problem import Problem, candidate, problem_of

Row = dict[str, Any]
FLOATS: Final = ("f32", "f16", "bf16")


class Sizes:
    """Random sizes: `any` may be odd, `even` is a multiple of 8; `tiny` ones for the simulator."""

    def __init__(self, seed: int, tiny: bool) -> None:
        self._random = random.Random(seed)
        self.tiny = tiny

    def any(self, most: int) -> int:
        most = max(most // 16, 3) if self.tiny else most
        return self._random.randint(max(most // 4, 2), most)

    def even(self, most: int) -> int:
        return -(-self.any(most) // 8) * 8

    def of(self, odd: bool, most: int) -> int:
        return self.any(most) | 1 if odd else self.even(most)

    def chosen(self, space: list[Any], count: int) -> list[Any]:
        return self._random.sample(space, min(count, len(space)))


@dataclass(frozen=True)
class Case:
    """A graph whose groups a template may serve."""

    name: str
    build: Callable[[Sizes], Graph]
    numerics: Numerics = "standard"


class Mixed:
    """A graph in one type. In bf16, contractions take it as it is, and all else is computed in f32
    between casts, as the importer has it."""

    def __init__(self, name: str, kind: str) -> None:
        self.g, self.kind = tw.Graph(name), kind

    def input(self, name: str, dims: tuple[int, ...]) -> Any:
        return self.g.input(name, dims, self.kind)

    def constant(self, name: str, dims: tuple[int, ...]) -> Any:
        kinds = {"f16": np.float16, "f64": np.float64}
        made = self.g.constant(_some(dims).astype(kinds.get(self.kind, np.float32)), name=name)
        return self.g.cast(made, to="bf16") if self.kind == "bf16" else made

    def wide(self, x: Any) -> Any:
        return self.g.cast(x, to="f32") if self.kind == "bf16" else x

    def some(self, name: str, dims: tuple[int, ...]) -> Any:
        """An input to compute with."""
        return self.wide(self.input(name, dims))

    def built(self, y: Any) -> Graph:
        self.g.output(self.g.cast(y, to="bf16") if self.kind == "bf16" else y, "y")
        return self.g.build()


def matmul(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("matmul", kind)
    m, n, k = (s.of(odd, 700) for _ in range(3))
    x, w = a.input("x", (m, k)), a.input("w", (k, n))
    whole = kind in ("i8", "u8")
    return a.built(a.g.matmul_integer(x, w) if whole else a.g.relu(a.wide(a.g.matmul(x, w))))


def integers(kind: str, odd: bool, s: Sizes) -> Graph:
    """x w' of bytes."""
    a = Mixed("integers", kind)
    m, n, k = (2 * s.of(odd, 350) for _ in range(3))
    w = a.g.transpose(a.input("w", (n, k)), perm=(1, 0))
    return a.built(a.g.matmul_integer(a.input("x", (m, k)), w))


def dense(kind: str, odd: bool, s: Sizes) -> Graph:
    """relu(x w' + b) + r, batches of it."""
    a = Mixed("dense", kind)
    m, n, k = (s.of(odd, 300) for _ in range(3))
    x, w = a.input("x", (2, m, k)), a.input("w", (2, n, k))
    y = a.wide(a.g.matmul(x, a.g.transpose(w, perm=(0, 2, 1)))) + a.some("b", (n,))
    return a.built(a.g.relu(y) + a.some("r", (2, m, n)))


def packed(kind: str, odd: bool, s: Sizes) -> Graph:
    """A matrix times weights, which are stored as kernels read them."""
    a = Mixed("packed", kind)
    m, n, k = (s.of(odd, 500) for _ in range(3))
    y = a.g.matmul(a.input("x", (m, k)), a.constant("w", (k, n)))
    return a.built(a.g.relu(a.wide(y)))


def conv(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("conv", kind)
    c, k, size = s.of(odd, 96), s.of(odd, 160), s.of(odd, 36)
    before = a.g.relu(a.some("x", (2, c, size, size)))  # so that passes choose how it lies
    before = a.g.cast(before, to="bf16") if kind == "bf16" else before
    y = a.g.conv(before, a.constant("w", (k, c, 3, 3)), pads=1, strides=2 if odd else 1)
    return a.built(a.g.relu(a.wide(y)))


def window(kind: str, odd: bool, s: Sizes) -> Graph:
    """relu(conv 3x3 + b + r), as in a residual network."""
    a = Mixed("window", kind)
    c, k, size = s.of(odd, 96), s.of(odd, 160), s.of(odd, 60)
    y = a.g.conv(a.input("x", (3, c, size, size)), a.constant("w", (k, c, 3, 3)),
                 a.constant("b", (k,)), pads=1)  # fmt: skip
    return a.built(a.g.relu(a.wide(y) + a.some("r", (3, k, size, size))))


def depthwise(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("depthwise", kind)
    c, size, taps = s.of(odd, 96), s.of(odd, 56), 5 if odd else 3
    before = a.g.relu(a.some("x", (2, c, size, size)))  # so that passes choose how it lies
    before = a.g.cast(before, to="bf16") if kind == "bf16" else before
    w = a.constant("w", (c, 1, taps, taps))
    y = a.g.conv(before, w, group=c, pads=taps // 2, strides=2 if odd else 1)
    return a.built(a.g.relu(a.wide(y)))


def attention(kind: str, odd: bool, s: Sizes) -> Graph:
    return _attention("attention", kind, odd, s.of(odd, 400), s.of(odd, 400))


def decoding(kind: str, odd: bool, s: Sizes) -> Graph:
    """Of one row, whose keys fall into parts."""
    return _attention("decoding", kind, odd, 1, s.of(odd, 4000))


def _attention(name: str, kind: str, odd: bool, m: int, n: int) -> Graph:
    """Heads cut out of rows, a mask for all of them, and rows put together again."""
    a = Mixed(name, kind)
    heads, width = (3, 21) if odd else (4, 64)

    def cut(name: str, length: int) -> Any:
        x = a.g.reshape(a.input(name, (2, length, heads * width)), shape=(2, length, heads, width))
        return a.g.transpose(x, perm=(0, 2, 1, 3))

    q, k, v = cut("q", m), cut("k", n), cut("v", n)
    scores = a.wide(a.g.matmul(q, a.g.transpose(k, perm=(0, 1, 3, 2))))
    scores = scores * np.asarray(width**-0.5, np.float16 if kind == "f16" else np.float32)
    weights = a.g.softmax(scores + a.some("mask", (2, 1, m, n)), axis=-1)
    weights = a.g.cast(weights, to="bf16") if kind == "bf16" else weights
    y = a.g.transpose(a.g.matmul(weights, v), perm=(0, 2, 1, 3))
    return a.built(a.wide(a.g.reshape(y, shape=(2, m, heads * width))))


def pool(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("pool", kind)
    size = s.of(odd, 100)
    x = a.some("x", (2, s.any(48), size, size))
    return a.built(a.g.max_pool(x, kernel_shape=(3, 3), strides=(2, 2), pads=1))


def pool_of_channels(kind: str, odd: bool, s: Sizes) -> Graph:
    """Behind a convolution, which leaves channels side by side."""
    a = Mixed("pool", kind)
    c, size = s.of(odd, 48), s.of(odd, 100)
    y = a.g.conv(a.input("x", (2, c, size, size)), a.constant("w", (2 * c + 8, c, 1, 1)))
    return a.built(a.g.max_pool(a.wide(y), kernel_shape=(3, 3), strides=(2, 2), pads=1))


def rows(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("rows", kind)
    return a.built(a.g.softmax(a.some("x", (s.any(300), s.of(odd, 3000))), axis=1))


def normalised(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("normalised", kind)
    n = s.of(odd, 2000)
    x, scale, bias = a.some("x", (s.any(200), n)), a.some("scale", (n,)), a.some("bias", (n,))
    return a.built(a.g.layer_normalization(x, scale, bias))


def pointwise(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("pointwise", kind)
    n = s.of(odd, 3000)
    x = a.some("x", (s.any(200), n))
    return a.built(a.g.tanh(x * a.some("z", (n,))) + x)


def vector(kind: str, odd: bool, s: Sizes) -> Graph:
    a = Mixed("vector", kind)
    k, n = s.of(odd, 2000), s.of(odd, 2000)
    return a.built(a.g.matmul(a.some("x", (1, k)), a.some("w", (k, n))))


def recurrent(what: str, s: Sizes) -> Graph:
    g = tw.Graph(what)
    gates = {"gru": 3, "lstm": 4}[what]
    hidden, width, steps = s.any(110), s.any(80), s.any(20)
    w, r = (g.constant(_some((1, gates * hidden, n)), name=f"w{k}")
            for k, n in enumerate((width, hidden)))  # fmt: skip
    x = g.input("x", (steps, s.any(4), width))
    more = {"linear_before_reset": 1} if what == "gru" else {}
    g.output(getattr(g, what)(x, w, r, hidden_size=hidden, **more)[0], "y")
    return g.build()


def unpooled(s: Sizes) -> Graph:
    g = tw.Graph("unpooled")
    size = s.even(64)
    x = g.input("x", (1, s.any(20), size, size))
    y, places = g.max_pool(x, kernel_shape=(2, 2), strides=(2, 2), indices=1)
    g.output(g.max_unpool(y, places, kernel_shape=2, strides=2), "y")
    return g.build()


def sorted_rows(what: str, s: Sizes) -> Graph:
    g = tw.Graph(what)
    x = g.input("x", (s.any(60), s.any(900)))
    if what == "arg_max":
        g.output(g.arg_max(x, axis=1), "y")
    elif what == "cumsum":
        g.output(g.cum_sum(x, axis=1), "y")
    else:
        found = g.top_k(x, k=2, axis=1)
        g.output(found[0], "y")
        g.output(found[1], "places")
    return g.build()


def scattered(s: Sizes) -> Graph:
    g = tw.Graph("scattered")
    rows_, n = s.any(40), s.any(300)
    x = g.input("x", (rows_, n))
    places = g.constant(np.arange(rows_ * n).reshape(rows_, n)[:, ::-1] % rows_, name="places")
    g.output(g.scatter_elements(x, places, g.input("z", (rows_, n)), axis=0), "y")
    return g.build()


def _some(dims: tuple[int, ...]) -> Any:
    values = np.random.default_rng(math.prod(dims)).standard_normal(dims)
    return (values * 0.2).astype(np.float32)


def _each(builder: Any, kinds: tuple[str, ...], numerics: Numerics = "standard") -> list[Case]:
    def case(kind: str, odd: bool) -> Case:
        name = f"{builder.__name__} {kind} {'odd' if odd else 'even'}"
        return Case(name, lambda s: builder(kind, odd, s), numerics)

    return [case(kind, odd) for kind in kinds for odd in (False, True)]


_HALF: Final = ("f16", "bf16")
_TENSOR_CORES: Final = [
    *_each(matmul, _HALF), *_each(matmul, ("f32",), "reduced"), *_each(matmul, ("i8", "u8")),
    *_each(integers, ("i8",)),
    *_each(dense, _HALF), *_each(dense, ("f32",), "reduced"), *_each(packed, _HALF),
    *_each(packed, ("f32",), "reduced"), *_each(conv, _HALF),
    *_each(conv, ("f32",), "reduced"),
]  # fmt: skip
CASES: Final[dict[str, list[Case]]] = {
    "gpu_wgmma": _TENSOR_CORES,
    "gpu_mma": _TENSOR_CORES,
    "gpu_attention_wgmma": _each(attention, _HALF),
    "gpu_attention_mma": [
        c for b in (attention, decoding)
        for c in (*_each(b, _HALF), *_each(b, ("f32",), "reduced"))
    ],
    "gpu_attention_tiles": [c for b in (attention, decoding) for c in _each(b, ("f32",))],
    "gpu_winograd": _each(window, ("f32",)),
    "gpu_tiles": [*_each(matmul, ("f32", "f64")), *_each(dense, ("f32",)), *_each(conv, ("f32",))],
    "gpu_strips": [*_each(depthwise, FLOATS), *_each(pool_of_channels, _HALF)],
    "gpu_nest": [c for b in (rows, normalised, pointwise, pool, vector)
                 for c in _each(b, FLOATS)],
    "gpu_recurrent": [Case("gru", lambda s: recurrent("gru", s)),
                      Case("lstm", lambda s: recurrent("lstm", s))],
    "recurrent": [Case("gru", lambda s: recurrent("gru", s)),
                  Case("lstm", lambda s: recurrent("lstm", s))],
    "gpu_unpool": [Case("unpool", unpooled)],
    "unpool": [Case("unpool", unpooled)],
    "arg": [Case("arg_max", lambda s: sorted_rows("arg_max", s))],
    "top_k": [Case("top_k", lambda s: sorted_rows("top_k", s))],
    "scan": [Case("cumsum", lambda s: sorted_rows("cumsum", s))],
    "scatter": [Case("scatter", scattered)],
}  # fmt: skip


class Only(Problem):
    """A problem of which one template's candidates are asked for, whichever goes first."""

    template: KernelTemplate

    @property
    def _templates(self) -> tuple[KernelTemplate, ...]:  # type: ignore[override]
        return (self.template,)


def problem(case: Case, family: str, device: GpuDevice, sizes: Sizes) -> Only | str:
    """The group of a case that a template matches; or why it matches none."""
    templates = {t.name: t for t in gpu_templates(case.numerics, device.capability)}
    graph, _ = run_pipeline(gpu_pipeline(case.numerics), case.build(sizes))
    template, said = templates.get(family), []
    if template is None:
        return "this device has no use for the template"
    for group in coded_groups(graph):
        p = problem_of(graph, group.ops, group.outputs, device, case.numerics)
        if template.matches(p.graph, p.ops, p.outputs):
            made = Only(p.described, p.constants, p.device, p.numerics, p.arguments)
            object.__setattr__(made, "template", template)
            return made
        if isinstance(template, Objecting):
            said.append(f"{p.label}: {template.objection(p.graph, p.ops, p.outputs)}")
    return "; ".join(said) or "it takes none of its groups"


def candidates(p: Only, sizes: Sizes, count: int) -> list[Candidate]:
    """The default and some others."""
    given = p.graph, p.ops, p.outputs, p.device
    default = p.template.default(*given)
    others = [c for c in p.template.space(*given) if c != default]
    return [candidate(p.template, c) for c in (default, *sizes.chosen(others, count - 1))]


def check(
    family: str, seed: int, first: int = 0, tiny: bool = False, configs: int = 3,
    cases: int | None = None,
) -> Iterator[Row]:  # fmt: skip
    """A row before every case and one for each of its candidates. first: cases to leave out.

    A candidate that faults ends the process: what the last row named is what did it."""
    device = gpu_device(all_facts()[0].capability)
    for number, case in enumerate(CASES[family][:cases]):
        if number < first:
            continue
        name = f"{family}: {case.name}"
        yield {"at": name, "number": number}
        try:
            sizes = Sizes(seed * 1000 + number, tiny)
            p = problem(case, family, device, sizes)
            if isinstance(p, str):
                yield {"name": name, "skipped": p}
                continue
            yield from _checked(name, p, candidates(p, sizes, configs))
        except Exception as e:
            yield {"name": name, "error": f"{type(e).__name__}: {e}"}


def prepare(family: str, seed: int, arch: str, configs: int = 3) -> Iterator[Row]:
    """The code that `check` will ask for on a device of an architecture."""
    device = gpu_device(CudaTarget(arch).capability)
    for number, case in enumerate(CASES[family]):
        yield {"at": f"{family}: {case.name}", "number": number}
        sizes = Sizes(seed * 1000 + number, False)
        p = problem(case, family, device, sizes)
        if isinstance(p, str):
            continue
        for place, c in enumerate(candidates(p, sizes, configs)):
            try:
                _bench(p).build(place, c)
            except Exception as e:
                yield {"name": f"{family}: {case.name}: {c.config}",
                       "error": f"{type(e).__name__}: {e}"}  # fmt: skip


def _bench(p: Only) -> GpuBench:
    bench = GpuBench(p.text, lambda *what: None)
    bench.problem = p
    return bench


def _checked(name: str, p: Only, wanted: list[Candidate]) -> Iterator[Row]:
    bench = _bench(p)
    bench.prepare()
    for place, c in enumerate(wanted):
        config = " ".join(f"{k}={v}" for k, v in dict(c.config).items())
        label = f"{name}: {p.label}: {config}"
        yield {"at": label}
        outcomes = [o for found in bench.measure([(place, c)], [2], math.inf)
                    for _, o in found]  # fmt: skip
        bad = next((o for o in outcomes if isinstance(o, Failure)), None)
        if bad is not None:
            yield {"name": label, "error": f"{bad.kind}: {bad.detail}"}
        elif not outcomes:
            yield {"name": label, "error": "no outcome"}
        else:
            yield {"name": label, "ok": True, "seconds": min(o.seconds for o in outcomes)}
