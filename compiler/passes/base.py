"""What a pass is, and how a list of them runs."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..errors import GraphError
from ..graph.ir import Graph
from ..graph.verify import verify


@dataclass(slots=True)
class Fuel:
    """A budget of rewrites, to bisect a miscompile: with n of them, only the first n are done.

    left: None allows all. last: what the last counted rewrite was.
    """

    left: int | None = None
    last: str = ""

    def take(self, what: str) -> bool:
        """Whether the rewrite that `what` describes may be done."""
        if self.left is None:
            return True
        if self.left <= 0:
            return False
        self.left -= 1
        self.last = what
        return True


UNLIMITED: Final = Fuel()


class Pass(Protocol):
    """A rewrite of whole graphs: a frozen dataclass whose fields are its options.

    `run` returns a valid graph that computes the same outputs, or the graph it was given when there
    is nothing to do. It never changes a graph.
    """

    @property
    def name(self) -> str:
        """As it stands in lists of stages and in file names: FoldScales is "fold_scales"."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @abstractmethod
    def run(self, graph: Graph) -> Graph: ...


class OptionalPass(Pass):
    """A pass that no later stage relies on. It asks `fuel.take()` before each of its rewrites."""

    @abstractmethod
    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph as a pass left it. milliseconds: of the pass alone, without verification. by: the
    pass, None where the graph came in."""

    name: str
    graph: Graph = field(repr=False)
    milliseconds: float
    changed: bool
    by: Pass | None = None


def run_pipeline(
    passes: Iterable[Pass], graph: Graph, fuel: Fuel = UNLIMITED
) -> tuple[Graph, tuple[Stage, ...]]:
    """Run the passes in order, verifying the graph before the first and after each of them.

    Raises GraphError when the given graph is not well formed, and when a pass breaks one: that is a
    bug of the pass, and is named so.
    """
    sound = verify(graph)
    stages = []
    for p in passes:
        start = time.perf_counter()
        result = p.run(graph, fuel) if isinstance(p, OptionalPass) else p.run(graph)
        milliseconds = (time.perf_counter() - start) * 1e3
        changed = not _same(graph, result)
        if changed:
            try:
                sound = verify(result, sound)
            except GraphError as e:
                raise GraphError(
                    f"the pass {p.name} broke the graph, which is a bug in Tilewright: {e}. "
                    f"TILEWRIGHT_FUEL=n allows only the first n rewrites; the last one was "
                    f"{fuel.last or 'not counted'}"
                ) from e
            graph = result
        stages.append(Stage(p.name, graph, milliseconds, changed, p))
    return graph, tuple(stages)


def _same(a: Graph, b: Graph) -> bool:
    """Equal in every field; arrays are compared by identity, not by content."""
    if a is b:
        return True
    if (a.name, a.inputs, a.outputs, a.ops) != (b.name, b.inputs, b.outputs, b.ops):
        return False
    return a.blobs.keys() == b.blobs.keys() and all(
        (x.type, x.role, x.inside) == (y.type, y.role, y.inside) and x.content is y.content
        for x, y in ((x, b.blobs[n]) for n, x in a.blobs.items())
    )
