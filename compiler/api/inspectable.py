"""What every program shows of its compilation, whatever it is for."""

from __future__ import annotations

from typing import Generic

from ..graph.ir import Graph
from ..inspect.memory import MemoryUse, memory_use
from ..inspect.views import Compilation, TargetT
from ..kernels.ir import Launch
from ..memory.plan import MemoryPlan
from ..passes.base import Stage


class Inspectable(Generic[TargetT]):
    """A program that keeps what it was compiled from."""

    def __init__(self, compilation: Compilation[TargetT]) -> None:
        self._compilation = compilation

    @property
    def graph(self) -> Graph:
        """The graph after all passes."""
        return self._compilation.graph

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan: arena_bytes, lower_bound_bytes, unshared_bytes, levers(), check().

        Printed, it says what no less would do for, and what every decision saved.
        """
        return self._compilation.plan

    def memory_use(self) -> MemoryUse:
        """Bytes of results, scratch and constants by type of operator; prints as a table."""
        c = self._compilation
        return memory_use(c.graph, c.launches, c.plan)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The graph after every pass, with milliseconds."""
        return tuple(self._compilation.stages)

    def _nodes(self, launch: Launch) -> tuple[str, ...]:
        """The model nodes that a launch computes, each once."""
        ops = self.graph.ops
        return tuple(dict.fromkeys(s for j in launch.ops for s in ops[j].source))
