"""Compiles kernels for this machine and compares them with the operators' references in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cpu import assemble, link, lower, target
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import Launch, Prepared
from tilewright.compiler.kernels.template import Config, KernelTemplate

from .support import remembered

Array = np.ndarray[Any, Any]
GUARD = 64  # bytes before and behind every buffer that no kernel may change


def host_device(threads: int = 2) -> Device:
    cpu = target.host()
    return Device(cpu.vector_bits // 8, cpu.tile_registers, threads)


class Memory:
    """A buffer between guards, at an address that is only as aligned as its elements are."""

    def __init__(self, dtype: Any, elements: int) -> None:
        kind = np.dtype(dtype)
        self.raw = np.full(2 * GUARD + elements * kind.itemsize + 64, 0xA5, np.uint8)
        start = -self.raw.ctypes.data % 64 + GUARD + kind.itemsize % 64
        self.inside = slice(start, start + elements * kind.itemsize)
        self.array = self.raw[self.inside].view(kind)
        if kind.kind == "f":
            self.array.fill(np.nan)

    def check(self, name: str) -> None:
        outside = np.delete(self.raw, np.r_[self.inside])
        assert (outside == 0xA5).all(), f"written outside of {name}"


class Native:
    """A launch compiled for this machine."""

    def __init__(self, graph: Graph, launch: Launch) -> None:
        self.graph, self.launch = graph, launch
        kernel = launch.kernel
        names = lower.phase_symbols(kernel)
        cpu = target.host()
        image = assemble.build_object(lower.module_text(kernel, cpu.arithmetic), cpu)
        self.linked = link.link([image], names) if names else None
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self.phases = [
            (p.items, kind(self.linked.address(n)))  # type: ignore[union-attr]
            for p, n in zip(kernel.phases, names, strict=True)
        ]

    def __call__(
        self, feeds: dict[str, Array], alias: tuple[int, int] | None = None
    ) -> dict[str, Array]:
        """The outputs by name. alias: positions of an output and an input that share memory."""
        rng = np.random.default_rng(0)
        memory: list[Memory] = []
        for p, a in zip(self.launch.kernel.params, self.launch.args, strict=True):
            memory.append(Memory(p.dtype.numpy, p.elements))
            if p.role in ("in", "const"):
                value = self._value(a, feeds)
                assert (value.size, value.dtype) == (p.elements, p.dtype.numpy), p
                memory[-1].array[:] = value.reshape(-1)
        if alias is not None:
            memory[alias[0]] = memory[alias[1]]
        table = (ctypes.c_void_p * len(memory))(*[m.array.ctypes.data for m in memory])
        for items, function in self.phases:
            for k in rng.permutation(items):
                function(ctypes.addressof(table), int(k))
        out = {}
        for k, (m, p, a) in enumerate(
            zip(memory, self.launch.kernel.params, self.launch.args, strict=True)
        ):
            m.check(p.name)
            if p.role == "out":
                assert isinstance(a, str)
                kind = self.graph.type(a)  # with lanes behind the last channel: as it lies there
                out[a] = m.array.reshape(kind.dims) if m.array.size == kind.size else m.array
            elif p.role in ("in", "const") and (alias is None or k != alias[1]):
                given = self._value(a, feeds).reshape(-1)
                np.testing.assert_array_equal(m.array, given, f"{p.name} was changed")
        return out

    def _value(self, a: str | Prepared | None, feeds: dict[str, Array]) -> Array:
        if isinstance(a, Prepared):
            return np.asarray(a.make(*(self.graph.blobs[b].value for b in a.blobs)))
        assert a is not None
        value = self.graph.blobs[a].value
        return feeds[a] if value is None else value


def graph_of(
    operator: str, inputs: Sequence[Array | None], constant: Iterable[int] = (), **attrs: Any
) -> tuple[Graph, dict[str, Array]]:
    """A graph of one op, and what to feed it."""
    g = GraphBuilder()
    feeds: dict[str, Array] = {}
    values: list[Any] = []
    for k, x in enumerate(inputs):
        if x is None:
            values.append(None)
        elif k in tuple(constant):
            values.append(g.constant(x))
        else:
            values.append(g.input(f"a{k}", x.shape, x.dtype))
            feeds[f"a{k}"] = x
    made = g.op(operator, *values, **attrs)
    for v in made if isinstance(made, tuple) else (made,):
        g.output(v)
    return g.build(), feeds


def check(
    template: KernelTemplate, graph: Graph, feeds: dict[str, Array], *,
    outputs: Sequence[str] | None = None, config: Config | None = None,
    device: Device | None = None, tolerance: float = 1e-5, want: dict[str, Array] | None = None,
) -> Launch:  # fmt: skip
    """Compile and run the graph's only op, on its own memory and aliased as the kernel allows.

    tolerance: of float results, as a fraction of the largest one. want: the results, the
    reference's if absent.
    """
    (op,), device = graph.ops, device or host_device()
    read = tuple(graph.outputs if outputs is None else outputs)
    assert template.matches(graph, [op], read)
    chosen = template.default(graph, [op], read, device) if config is None else config
    launch = template.instantiate(graph, [op], read, device, chosen)
    launch = remembered(launch, template, graph, read, device)
    native = Native(graph, launch)
    expected = evaluate(graph, feeds) if want is None else want
    for alias in (None, *launch.kernel.inplace):
        got = native(feeds, alias)
        assert set(got) == set(read)
        for name, y in got.items():
            truth = expected[name]
            what = f"{op.operator} {op.attrs} {name} {chosen} alias {alias}"
            if y.dtype.kind != "f":
                np.testing.assert_array_equal(y, truth, what)
                continue
            finite = truth[np.isfinite(truth)]
            limit = tolerance * np.abs(finite).max() if finite.size else 0
            np.testing.assert_allclose(y.astype(np.float64), truth, 0, limit, err_msg=what)
    return launch
