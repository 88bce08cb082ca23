"""What every program shows of its compilation, whatever it is for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from ..graph.ir import Graph
from ..inspect.memory import MemoryUse, memory_use
from ..inspect.views import Compilation, TargetT
from ..kernels.ir import Launch
from ..memory.plan import MemoryPlan
from ..passes.base import Stage

if TYPE_CHECKING:
    from ..inspect.profile import Profile
    from .explaining import Page


@dataclass(frozen=True, slots=True)
class CompileStats:
    """How long the parts of a compilation took, in seconds, and what the store saved."""

    read: float
    passes: float
    kernels: float
    objects: float
    link: float
    built: int
    distinct: int

    @property
    def stations(self) -> dict[str, float]:
        """What came after the passes, by name."""
        return {"choose kernels, plan memory": self.kernels, "build or load code": self.objects,
                "pack constants, link": self.link}  # fmt: skip

    @property
    def total(self) -> float:
        return self.read + self.passes + self.kernels + self.objects + self.link


class Inspectable(Generic[TargetT]):
    """A program that keeps what it was compiled from."""

    stats: CompileStats

    def __init__(self, compilation: Compilation[TargetT]) -> None:
        self._compilation = compilation

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be pickled or copied; save it with "
                        "exe.save(path), and tw.load(path) it elsewhere")  # fmt: skip

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

    @property
    def nodes(self) -> dict[str, tuple[int, ...]]:
        """The model's nodes, each with the numbers of the kernels that compute it."""
        from .explaining import nodes

        return nodes(self._compilation)

    def explain(
        self, *, op: str | None = None, kernel: str | None = None
    ) -> Page:  # fmt: skip
        """A page about a node of the model, or about a kernel ("k12", or its name); print it.

        What passes made of the node, the kernels that compute it, why their ops share them and the
        neighbours do not, where their data lie, and their loops; a CPU's with the number of
        instructions of each line. Raises OptionError with the nearest names for an unknown one.
        """
        from .explaining import page

        return page(self._compilation, op, kernel)

    def ir(self, level: str = "graph", *, op: str | None = None, kernel: str | None = None) -> str:
        """The program as text; what a level has of one model node (op) or kernel, if either is
        given.

        level: "graph", "fused", "memory", "kernels", "source"; for CPUs "llvm" and "asm", for GPUs
        "ptx" and "sass"; or the graph after a pass ("fold_scales"; "02_fold_constants" where it
        runs more than once). Raises OptionError for what there is not, TargetError for "sass"
        without the tools for it.
        """
        if op is None and kernel is None:
            return self._view(self._compilation, level)
        from .explaining import part

        return part(self._compilation, level, op, kernel, self._view)

    def trace(self, profile: Profile, name: str = "") -> dict[str, Any]:
        """A profile as a trace for chrome://tracing or Perfetto, as JSON values; with it how long
        the parts of compiling took, and the bytes alive. name: of the model."""
        from .explaining import trace

        return trace(profile, self.plan, self.stages, self.stats.stations,
                     name or self.graph.name)  # fmt: skip

    @abstractmethod
    def _view(self, c: Compilation[TargetT], level: str) -> str:
        """A level of a compilation that this program's is, or is a part of."""

    def _nodes(self, launch: Launch) -> tuple[str, ...]:
        """The model nodes that a launch computes, each once."""
        ops = self.graph.ops
        return tuple(dict.fromkeys(s for j in launch.ops for s in ops[j].source))
