"""The same program without one of the decisions that save memory: what the memory plan's certificate
compares with. Nothing here ever runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..graph.ir import Graph, Op
from ..graph.storage import needs_no_code
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..kernels.select import select
from ..memory.buffers import BufferSpec, Step
from .program import memory_buffers, memory_step

Needs = tuple[Sequence[Step], Sequence[BufferSpec]]


def unfused(graph: Graph, device: Device) -> Needs:
    """A kernel for every op, so that every result is in memory.

    Raises LoweringError where an op has a kernel only together with others.
    """
    alone = Graph(graph.name, graph.inputs, graph.outputs,
                  tuple(op.with_group(None) for op in graph.ops), graph.blobs)  # fmt: skip
    steps = [memory_step(k, launch) for k, launch in enumerate(select(alone, device))]
    return steps, memory_buffers(alone)


def copied(graph: Graph, launches: Sequence[Launch]) -> Needs:
    """Views and parts of other blobs as blobs of their own: reshapes, slices, splits and
    concatenations copy.

    What a kernel copies into a concatenation already stays as it is: there, one copy is enough.
    """
    of = {launch.ops: memory_step(k, launch) for k, launch in enumerate(launches)}
    position = {id(op): k for k, op in enumerate(graph.ops)}
    steps = []
    for ops in graph.groups:
        step = of.get(tuple(position[id(op)] for op in ops))
        steps.append(_copying(graph, ops) if step is None else step)
    buffers = [
        spec if spec.alias_of is None or _is_copy(graph, spec.name)
        else BufferSpec(spec.name, spec.bytes * spec.rows)
        for spec in memory_buffers(graph)
    ]  # fmt: skip
    return steps, buffers


def _copying(graph: Graph, ops: Sequence[Op]) -> Step:
    """The step of a group that needs no code."""
    assert needs_no_code(graph, ops)
    reads = tuple(n for op in ops for n in op.reads)
    return Step(ops[0].name, reads, tuple(n for op in ops for n in op.outputs))


def _is_copy(graph: Graph, blob: str) -> bool:
    maker = graph.producer.get(blob)
    return graph.blobs[blob].inside is not None and maker is not None and (
        maker.operator == "reformat"
    )  # fmt: skip
