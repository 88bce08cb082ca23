"""The same program without one of the decisions that save memory: what a memory plan's certificate
compares with. Nothing here ever runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from ...ops.operator import Contraction, Elementwise, Opaque, Recurrence
from ..graph.ir import Graph, Op
from ..graph.storage import needs_no_code
from ..kernels.ir import Launch
from ..memory.buffers import BufferSpec, Step
from ..memory.plan import Needs, needs
from ..options import Options
from ..runtime.program import memory_buffers, memory_step, scratch_bytes

Described = tuple[list[Step], list[BufferSpec]]


def alternatives(
    graph: Graph, launches: Sequence[Launch], options: Options
) -> Mapping[str, Callable[[], Needs]]:
    """By the name of a decision, what tells the needs of the program without it.

    launches: in execution order. The steps may be reordered as those of the program itself.
    """

    def needed(without: Callable[[Graph, Sequence[Launch]], Described]) -> Needs:
        steps, buffers = without(graph, launches)
        return needs(steps, buffers, reorder=options.reorder, inplace=options.inplace)

    return {"fusion": cache(partial(needed, unfused)), "views": cache(partial(needed, copied))}


def unfused(graph: Graph, launches: Sequence[Launch]) -> Described:
    """A step for every op, and all results in memory. Results of elementwise ops may take the place
    of operands of their own type; scratch stays with the op that the kernel is made for."""
    alone = Graph(graph.name, graph.inputs, graph.outputs,
                  tuple(op.with_group(None) for op in graph.ops), graph.blobs)  # fmt: skip
    of, steps = _by_ops(graph, launches), []
    for ops in graph.groups:
        launch = of.get(tuple(map(id, ops)))
        if launch is not None and len(ops) == 1:
            steps.append(memory_step(launch))
            continue
        main = main_op(ops)
        for op in ops:
            if not needs_no_code(alone, (op,)):
                scratch = scratch_bytes(launch) if launch is not None and op is main else 0
                steps.append(Step(op.name, op.reads, op.outputs, scratch, _inplace(graph, op)))
    return steps, memory_buffers(alone)


def main_op(ops: Sequence[Op]) -> Op:
    """The op of a group that its kernel is made for: what follows a sum of products is done as its
    results are stored."""
    kinds = (Contraction, Recurrence, Opaque)
    return next((op for op in ops if any(op.has(kind) for kind in kinds)), ops[-1])


def _inplace(graph: Graph, op: Op) -> tuple[tuple[str, str], ...]:
    if not op.has(Elementwise) or len(op.outputs) != 1:
        return ()
    out = op.outputs[0]
    return tuple((out, n) for n in dict.fromkeys(op.reads) if graph.type(n) == graph.type(out))


def copied(graph: Graph, launches: Sequence[Launch]) -> Described:
    """Views and parts of other blobs as blobs of their own: reshapes, slices, splits and
    concatenations copy. A concatenation that copies some of its parts anyway stays as it is."""
    mixed = {
        b.inside.blob for n, b in graph.blobs.items()
        if b.inside is not None and graph.producer[n].operator == "reformat"
    }  # fmt: skip

    def stays(blob: str) -> bool:
        inside = graph.blobs[blob].inside
        return inside is not None and inside.blob in mixed

    of, steps = _by_ops(graph, launches), []
    for ops in graph.groups:
        launch = of.get(tuple(map(id, ops)))
        if launch is not None:
            steps.append(memory_step(launch))
        elif not any(map(stays, ops[0].reads)):
            steps.append(Step(ops[0].name, ops[0].reads, ops[0].outputs))
    buffers = [
        spec if spec.alias_of is None or stays(spec.name)
        else BufferSpec(spec.name, spec.bytes * spec.rows)
        for spec in memory_buffers(graph)
    ]  # fmt: skip
    return steps, buffers


def _by_ops(graph: Graph, launches: Sequence[Launch]) -> Mapping[tuple[int, ...], Launch]:
    """The launch of each group that needs code, by the ids of the group's ops."""
    return {tuple(id(graph.ops[k]) for k in launch.ops): launch for launch in launches}
