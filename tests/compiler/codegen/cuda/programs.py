"""Whole graphs as programs for a GPU, run in the simulator in an arena as planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.operations import stored_as
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.graph.storage import aliases
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.ir import Buffer, Launch, Prepared
from tilewright.compiler.kernels.select import select
from tilewright.compiler.kernels.template import KernelTemplate
from tilewright.compiler.memory.buffers import round_up
from tilewright.compiler.memory.plan import MemoryPlan
from tilewright.compiler.options import Numerics
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.runtime.program import plan_memory

from .simulate import run_source

ALIGNMENT = 64


def gpu_launches(
    source: Graph, numerics: Numerics = "standard",
    templates: Sequence[KernelTemplate] | None = None,
) -> tuple[Graph, tuple[Launch, ...]]:  # fmt: skip
    """A graph after the passes for GPUs, and its kernels, by the templates that serve where none
    are given."""
    graph, _ = run_pipeline(gpu_pipeline(numerics), source)
    return graph, select(
        graph, GPU, templates=templates or gpu_templates(numerics), numerics=numerics
    )


def run_graph(
    source: Graph, feeds: Mapping[str, Any], seed: int = 0, numerics: Numerics = "standard",
    templates: Sequence[KernelTemplate] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The outputs of a graph that is compiled for a GPU and simulated. Raises SimError."""
    graph, launches = gpu_launches(source, numerics, templates)
    plan = plan_memory(graph, launches)
    memory = _Memory(graph, plan, feeds)
    for number in plan.order:
        launch = launches[number]
        code = kernel_source(launch.kernel)
        buffers = memory.bound(launch, plan.order.index(number))
        run_source(code.text, code.entries, buffers, seed)
    return {n: memory.outputs[n].reshape(graph.type(n).dims) for n in graph.outputs}


def simulated(
    graph: Graph, launch: Launch, feeds: Mapping[str, Any], alias: tuple[int, int] | None = None,
    source: Source | None = None, seed: int = 0,
) -> Any:  # fmt: skip
    """The result of a launch for all ops of a graph with one output. alias: positions of parameters
    (written, read) that are the same memory. source: to be run instead of the kernel's own."""
    arrays: list[Any] = []
    for arg, b in zip(launch.args, launch.kernel.params, strict=True):
        if isinstance(arg, Prepared):
            value = arg.make(*(graph.blobs[n].content for n in arg.blobs))
        elif arg is None or arg in graph.outputs:
            value = np.full(b.elements, 77)
        else:
            value = feeds[arg] if arg in feeds else graph.blobs[arg].value
        arrays.append(_flat(value, b.dtype.numpy).view(stored_as(b.dtype).numpy).copy())
    if alias is not None:
        arrays[alias[0]] = arrays[alias[1]]
    code = source or kernel_source(launch.kernel)
    named = zip(launch.kernel.params, arrays, strict=True)
    run_source(code.text, code.entries, [(b.name, a, b.is_written) for b, a in named], seed)
    (name,) = graph.outputs
    kind = graph.type(name)
    return arrays[launch.args.index(name)].view(kind.dtype.numpy).reshape(kind.dims)


class _Memory:
    def __init__(self, graph: Graph, plan: MemoryPlan, feeds: Mapping[str, Any]) -> None:
        self.graph, self.plan = graph, plan
        self.alias = aliases(graph)
        self.arena = np.full(plan.arena_bytes + ALIGNMENT, 0xFF, np.uint8)  # all floats are NaN
        self.inputs = {n: _flat(feeds[n], graph.type(n).dtype.numpy) for n in graph.inputs}
        self.outputs = {n: np.full(graph.type(n).size, 0, graph.type(n).dtype.numpy)
                        for n in graph.outputs}  # fmt: skip

    def bound(self, launch: Launch, position: int) -> list[tuple[str, Any, bool]]:
        """The launch's buffers, as the simulator takes them."""
        scratch = self.plan.scratch[position] or 0
        found = []
        for arg, b in zip(launch.args, launch.kernel.params, strict=True):
            if arg is None:
                array = self._elements(self.arena, scratch, b)
                scratch += round_up(b.nbytes, ALIGNMENT)
            elif isinstance(arg, Prepared):
                made = arg.make(*(self.graph.blobs[n].content for n in arg.blobs))
                array = self._elements(_flat(made, b.dtype.numpy), 0, b)
            else:
                array = self._blob(arg, b)
            found.append((b.name, array, b.is_written))
        return found

    def _blob(self, name: str, b: Buffer) -> Any:
        root, inner = name, 0
        while root in self.alias:
            a = self.alias[root]
            root, inner = a.of, inner + a.offset
        blob = self.graph.blobs[root]
        if blob.is_constant:
            return self._elements(_flat(blob.value, blob.type.dtype.numpy), inner, b)
        for known in (self.inputs, self.outputs):
            if root in known:
                return self._elements(known[root], inner, b)
        return self._elements(self.arena, self.plan.offsets[root] + inner, b)

    def _elements(self, memory: Any, at: int, b: Buffer) -> Any:
        raw = memory.view(np.uint8)[at : at + b.nbytes]
        return raw.view(stored_as(b.dtype).numpy)


def _flat(value: Any, dtype: Any) -> Any:
    return np.ascontiguousarray(value, dtype).reshape(-1)
