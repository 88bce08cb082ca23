"""Compares kernels, run by the interpreter, with the operators' references in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import run_kernel
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import Launch, Prepared
from tilewright.compiler.kernels.known import record_of, restored
from tilewright.compiler.kernels.printer import symbol
from tilewright.compiler.kernels.template import Config, KernelTemplate
from tilewright.ops.types import Layout, TensorType

Feeds = dict[str, Any]

AVX512 = Device(64, 32, 2)
AVX2 = Device(32, 16, 2)
NEON = Device(16, 32, 2)
DEVICES = {"avx512": AVX512, "avx2": AVX2, "neon": NEON, "sse": Device(16, 16, 1)}


def with_layouts(graph: Graph, layouts: Mapping[str, Layout]) -> Graph:
    """The same graph with some blobs stored in another way."""
    blobs = {
        n: replace(b, type=b.type.with_layout(layouts[n])) if n in layouts else b
        for n, b in graph.blobs.items()
    }
    return Graph(graph.name, graph.inputs, graph.outputs, graph.ops, blobs)


def blocked_group(g: GraphBuilder, device: Device) -> Graph:
    """The graph under construction as one group: without the identity that names its output, every
    blob but constants blocked as the device likes."""
    graph = g.build()
    ops = graph.ops[:-1]
    graph = Graph(graph.name, graph.inputs, ops[-1].outputs, ops, graph.blobs)
    blobs = (n for n, b in graph.blobs.items() if b.value is None)
    return with_layouts(graph, dict.fromkeys(blobs, Layout(1, device.channel_block)))


def stored(value: Any, kind: TensorType) -> Any:
    """A logical array as it lies in memory, flat; lanes past the last channel are NaN,
    or the largest integer."""
    value = np.asarray(value, kind.dtype.numpy)
    if not kind.layout.is_blocked:
        return np.ascontiguousarray(value).reshape(-1)
    a, b = kind.layout.axis, kind.layout.block
    more = -value.shape[a] % b
    widths = [(0, more if k == a else 0) for k in range(value.ndim)]
    nothing = np.nan if value.dtype.kind == "f" else np.iinfo(value.dtype).max
    value = np.pad(value, widths, constant_values=nothing)
    split = value.reshape(*value.shape[:a], -1, b, *value.shape[a + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, a + 1, -1)).reshape(-1)


def logical(flat: Any, kind: TensorType) -> Any:
    """The inverse of `stored`, without the padding lanes."""
    split = flat.reshape(kind.physical_shape)
    if not kind.layout.is_blocked:
        return split
    a = kind.layout.axis
    joined = np.moveaxis(split, -1, a + 1)
    joined = joined.reshape(*joined.shape[:a], -1, *joined.shape[a + 2 :])
    return np.take(joined, np.arange(kind.dims[a]), a)


def remembered(
    launch: Launch, template: KernelTemplate, graph: Graph, outputs: Sequence[str], device: Device
) -> Launch:  # fmt: skip
    """The launch of all ops of a graph, bound as its record says: nothing is lost on the way."""
    names = tuple(graph.blobs)
    record = json.loads(json.dumps(record_of(launch, names)))
    back = restored(record, (template,), graph, graph.ops, outputs, names, device)
    assert back is not None
    assert back.args == launch.args
    for name in ("template", "version", "config", "params", "items", "inplace", "flops", "bytes",
                 "own_flops"):  # fmt: skip
        assert getattr(back.kernel, name) == getattr(launch.kernel, name), name
    assert symbol(back.kernel) == symbol(launch.kernel)
    return replace(launch, args=back.args)


def check_launch(graph: Graph, launch: Launch, feeds: Feeds, tolerance: float = 0.0) -> None:
    """Run the kernel; every output agrees with the reference, aliased as `inplace` allows, too."""
    expected = evaluate(graph, feeds)

    def argument(arg: str | Prepared | None) -> Any:
        if arg is None or (isinstance(arg, str) and arg in outputs):
            return None
        if isinstance(arg, Prepared):
            made = arg.make(*(graph.blobs[b].value for b in arg.blobs))
            return np.ascontiguousarray(made).reshape(-1)
        value = graph.blobs[arg].value
        return stored(feeds[arg] if value is None else value, graph.type(arg)).copy()

    outputs = {a for a, b in zip(launch.args, launch.kernel.params, strict=True)
               if isinstance(a, str) and b.role == "out"}  # fmt: skip
    for alias in (None, *launch.kernel.inplace):
        arrays = [argument(a) for a in launch.args]
        if alias is not None:
            arrays[alias[0]] = arrays[alias[1]]
        done = run_kernel(launch.kernel, arrays, seed=len(arrays))
        for arg, found in zip(launch.args, done, strict=True):
            if arg in outputs:
                kind = graph.type(arg)
                limit = tolerance or (1e-5 if kind.dtype.bits == 32 else 1e-12)
                np.testing.assert_allclose(
                    logical(found, kind), expected[arg], limit, limit,
                    err_msg=f"{arg} with {launch.kernel.config} alias {alias}",
                )  # fmt: skip


def check_group(
    template: KernelTemplate, graph: Graph, feeds: Feeds, device: Device, most: int = 0,
    tolerance: float = 0.0,
) -> list[Launch]:  # fmt: skip
    """All ops of a graph as one group, under every config of the space (or the first `most`)."""
    ops, outputs = graph.ops, graph.outputs
    assert template.matches(graph, ops, outputs)
    space = template.space(graph, ops, outputs, device)
    default = template.default(graph, ops, outputs, device)
    assert default in space
    assert len({tuple(sorted(c.items())) for c in space}) == len(space), "a config twice"
    chosen: list[Config] = [default, *(c for c in space if c != default)]
    launches = []
    for config in chosen[:most] if most else chosen:
        launch = template.instantiate(graph, ops, outputs, device, config)
        launch = remembered(launch, template, graph, outputs, device)
        check_launch(graph, launch, feeds, tolerance)
        launches.append(launch)
    return launches


def graph_of(build: Callable[[GraphBuilder], None]) -> Graph:
    g = GraphBuilder("test")
    build(g)
    return g.build()
