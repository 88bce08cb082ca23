"""Where every parameter of every launch lies: in the arena, a constant, or an array of the caller.

Addresses are not known here, so the same places serve a CPU's memory and a device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.arrays import ALIGNMENT
from ..graph.ir import Graph
from ..graph.storage import aliases, place_in
from ..kernels.ir import Launch, Prepared
from ..memory.buffers import round_up
from ..memory.plan import MemoryPlan
from .constants import Constant


@dataclass(frozen=True, slots=True)
class Place:
    """`offset` bytes behind the start of something: the arena, `constant`, or array number `array`
    of a call, inputs first, then outputs."""

    offset: int
    constant: Constant | None = None
    array: int | None = None

    @property
    def in_arena(self) -> bool:
        return self.constant is None and self.array is None


def places(graph: Graph, launches: Sequence[Launch], memory: MemoryPlan) -> list[tuple[Place, ...]]:
    """The places of each launch's parameters. launches: in the plan's order."""
    shared = aliases(graph)
    donated = {
        name: Place(at, array=graph.inputs.index(region.name))
        for region in memory.regions for name, at in region.offsets.items()
    }  # fmt: skip

    def of_blob(name: str) -> Place:
        root, inner = place_in(shared, name)
        if graph.blobs[root].is_constant:
            return Place(inner, constant=root)
        if root in donated:
            found = donated[root]
            return Place(found.offset + inner, array=found.array)
        if root in graph.inputs:
            return Place(inner, array=graph.inputs.index(root))
        if root in graph.outputs:
            return Place(inner, array=len(graph.inputs) + graph.outputs.index(root))
        return Place(memory.offsets[root] + inner)

    made = []
    for number, launch in enumerate(launches):
        scratch = memory.scratch[number] or 0
        found = []
        for arg, buffer in zip(launch.args, launch.kernel.params, strict=True):
            if arg is None:
                found.append(Place(scratch))
                scratch += round_up(buffer.nbytes, ALIGNMENT)
            else:
                found.append(Place(0, constant=arg) if isinstance(arg, Prepared) else of_blob(arg))
        made.append(tuple(found))
    return made
