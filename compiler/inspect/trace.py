"""From a node of the model to the kernels that compute it, and from a kernel to the nodes.

Every op of every stage names the model nodes that it stands for, and every launch the ops that it
computes; here both are followed in both directions. What is asked for by a wrong name is answered
with the nearest right ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...ops.types import TensorType
from ..errors import OptionError
from ..graph.ir import Graph, Op
from ..graph.storage import aliases, needs_no_code, place_in
from ..graph.text import format_op
from ..kernels.ir import Prepared
from ..passes.fuse import Fuse
from ..passes.why import Reasons, reasons
from ..text import human_bytes, nearest
from .views import Compilation, kernel_name

Where = Literal["arena", "input", "output", "constant", "packed constant", "scratch"]


@dataclass(frozen=True, slots=True)
class Step:
    """What stood for a model node after a pass that changed it: ops as text, none once it is gone.
    milliseconds: of the pass."""

    stage: str
    milliseconds: float
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter of a launch is.

    parameter: the kernel's name of it; role: in, out, const or scratch. blobs: of the graph,
    several where a constant is packed of them. offset: bytes from the start of the arena, or of the
    input, output or constant that it lies in (`root`). first, last: the launches from which to
    which its memory is taken; those of the arena only.
    """

    parameter: str
    role: str
    blobs: tuple[str, ...]
    type: TensorType | None
    where: Where
    root: str
    offset: int
    bytes: int
    first: int = -1
    last: int = -1

    def __str__(self) -> str:
        """Without the names of blobs."""
        size = human_bytes(self.bytes)
        if self.where in ("arena", "scratch"):
            end = self.offset + self.bytes
            return f"arena {self.offset}..{end} ({size}), launches k{self.first} to k{self.last}"
        at = f" at {self.offset}" if self.offset else ""
        return f"{self.where}{at} ({size})"


# --------------------------------------------------------------------------- by name


def model_nodes(c: Compilation[Any]) -> tuple[str, ...]:
    """The nodes of the model that an op was made of, in the order of ops, each once."""
    return tuple(dict.fromkeys(s for op in c.source.ops for s in op.source))


def node_named(c: Compilation[Any], name: str) -> str:
    """The model node that is meant: its own name, that of an op, or of a blob that it makes.

    Raises OptionError with the nearest names for what is none.
    """
    nodes = model_nodes(c)
    if name in nodes:
        return name
    for graph in (c.source, *(s.graph for s in c.stages)):
        for op in graph.ops:
            if op.source and (name == op.name or name.removeprefix("%") in op.outputs):
                return op.source[0]
    known = (*nodes, *(n for op in c.source.ops for n in op.outputs))
    raise OptionError(f"the model has no node {name!r}{nearest(name, known)}; "
                      "`tilewright inspect MODEL --nodes` lists them")  # fmt: skip


def launch_named(c: Compilation[Any], name: str) -> int:
    """The number of the launch that is meant: "k12", "12", or the name of its kernel or how that
    begins. Of launches of one kernel it is the first.

    Raises OptionError with the nearest names for what is none.
    """
    number = name.removeprefix("k")
    if number.isdecimal() and int(number) < len(c.launches):
        return int(number)
    names = [kernel_name(x) for x in c.launches]
    if name in names:
        return names.index(name)
    found = dict.fromkeys(n for n in names if name and n.startswith(name))
    if len(found) == 1:
        return names.index(next(iter(found)))
    if found:
        raise OptionError(f"several kernels begin with {name!r}: {', '.join(found)}")
    raise OptionError(f"there is no kernel {name!r}{nearest(name, names)}; the launches are "
                      f"k0 to k{len(names) - 1}")  # fmt: skip


# --------------------------------------------------------------------------- node -> kernel


def ops_of(graph: Graph, node: str) -> tuple[int, ...]:
    """The ops of a graph that stand for a model node, by number."""
    return tuple(k for k, op in enumerate(graph.ops) if node in op.source)


def launches_of(c: Compilation[Any], node: str) -> tuple[int, ...]:
    """The launches that compute a model node, by number: none where nothing is left of it."""
    mine = set(ops_of(c.graph, node))
    return tuple(k for k, launch in enumerate(c.launches) if mine.intersection(launch.ops))


def fate(c: Compilation[Any], node: str) -> tuple[Step, ...]:
    """What became of a model node: the ops that stand for it, where a pass changed them."""
    steps: list[Step] = []
    for stage in c.stages:
        g = stage.graph
        ops = tuple(_plainly(g, g.ops[k]) for k in ops_of(g, node))
        if not steps or ops != steps[-1].ops:
            steps.append(Step(stage.name, stage.milliseconds, ops))
    return tuple(steps)


def _plainly(graph: Graph, op: Op) -> str:
    """An op on one line, without the nodes it came from."""
    text = " ".join(format_op(graph, op).partition("  # model:")[0].split())
    return text if op.group is None else f"{text}  group {op.group}"


def without_code(c: Compilation[Any], node: str) -> tuple[str, ...]:
    """The ops of a model node that no launch computes, because they take no code: views, joins of
    parts that lie where they belong."""
    mine = {id(c.graph.ops[k]) for k in ops_of(c.graph, node)}
    groups = [ops for ops in c.graph.groups if any(id(op) in mine for op in ops)]
    return tuple(_plainly(c.graph, ops[0]) for ops in groups if needs_no_code(c.graph, ops))


# --------------------------------------------------------------------------- kernel -> nodes


def ops_in(c: Compilation[Any], number: int) -> tuple[Op, ...]:
    """The ops that a launch computes, in order."""
    return tuple(c.graph.ops[k] for k in c.launches[number].ops)


def nodes_in(c: Compilation[Any], number: int) -> tuple[str, ...]:
    """The model nodes that a launch computes, each once."""
    return tuple(dict.fromkeys(s for op in ops_in(c, number) for s in op.source))


def launch_of_op(c: Compilation[Any]) -> Mapping[str, int]:
    """The launch that computes each op, by the op's first result."""
    return {c.graph.ops[j].outputs[0]: k for k, x in enumerate(c.launches) for j in x.ops}


def fusion_of(c: Compilation[Any]) -> Reasons | None:
    """Why ops share kernels, found out now. None for a program that was loaded: its passes ran
    when it was saved."""
    for before, stage in zip(c.stages, c.stages[1:], strict=False):
        if isinstance(stage.by, Fuse):
            return reasons(before.graph, stage.by)
    return None


# --------------------------------------------------------------------------- memory


def places(c: Compilation[Any], number: int) -> tuple[Place, ...]:
    """Where every parameter of a launch is."""
    launch = c.launches[number]
    shared = aliases(c.graph)
    lives = {m: r for r in c.plan.ranges for m in (r.name, *r.members)}
    donated = {n: (r.name, at) for r in c.plan.regions for n, at in r.offsets.items()}
    scratch = c.plan.scratch[number] or 0
    found = []
    for arg, b in zip(launch.args, launch.kernel.params, strict=True):
        if arg is None:
            place = Place(
                b.name, b.role, (), None, "scratch", "", scratch, b.nbytes, number, number
            )
            scratch += -(-b.nbytes // c.plan.alignment) * c.plan.alignment
        elif isinstance(arg, Prepared):
            place = Place(
                b.name, b.role, arg.blobs, None, "packed constant", arg.recipe, 0, b.nbytes
            )
        else:
            root, inner = place_in(shared, arg)
            g, kind = c.graph, c.graph.type(arg)
            where: Where = "arena"
            first = last = -1
            if g.blobs[root].is_constant:
                where = "constant"
            elif root in donated:
                where, (root, at) = "input", donated[root]
                inner += at
            elif root in g.inputs or root in g.outputs:
                where = "input" if root in g.inputs else "output"
            else:
                inner += c.plan.offsets[root]
                first, last = lives[root].first, lives[root].last
            place = Place(
                b.name, b.role, (arg,), kind, where, root, inner, kind.nbytes, first, last
            )
        found.append(place)
    return tuple(found)
