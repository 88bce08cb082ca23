"""Checks that a graph is well formed. Runs after import, after parsing and between passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ...ops.errors import OperatorError
from ...ops.operator import REGISTRY, REMEMBERED
from ...ops.types import SymDim, TensorType
from ..errors import GraphError
from ..text import format_value
from .ir import Blob, Graph, Inside, Op, Role

_WITH_VALUE = (Role.CONSTANT, Role.PARAMETER)
_sound: set[tuple[object, ...]] = set()


@dataclass(frozen=True, slots=True)
class Verified:
    """The parts of a graph that was verified, as they were then."""

    blobs: Mapping[str, Blob]
    ops: tuple[Op, ...]


NOTHING: Final = Verified({}, ())


def verify(graph: Graph, after: Verified = NOTHING) -> Verified:
    """Raise GraphError unless all of this holds:

    * inputs and outputs exist; inputs are distinct and have the role `input`, and nothing else has;
    * every blob stands under its own name; constants and parameters have an array of their type,
      state may have one, nothing else has;
    * every intermediate blob is written by exactly one op, and nothing else is written;
    * an op reads only what is given or was written by an op before it;
    * an op's operator exists, its attributes are complete, in order and printable, and its output
      types are those that the operator infers (layouts aside);
    * a part lies within a blob that has its order in memory, begins at a whole block, and that blob
      is joined of it or it is cut from that blob;
    * no group needs, through other groups, a result of its own, so each can run as one kernel.

    Constants that nothing reads are allowed: dead, not wrong.

    after: what was verified before. A blob that is still the same object is not looked at again,
    and neither is what an op computes where it and its blobs are; how they stand together is.
    """
    _Verifier(graph, after).run()
    return Verified(dict(graph.blobs), graph.ops)


class _Verifier:
    def __init__(self, graph: Graph, after: Verified) -> None:
        self.graph = graph
        self.blobs = graph.blobs
        self.new = {n: b for n, b in graph.blobs.items() if after.blobs.get(n) is not b}
        self.known = set(map(id, after.ops))  # they are alive: no other object has one of these

    def fail(self, why: str) -> GraphError:
        return GraphError(f"graph {self.graph.name!r}: {why}")

    def fail_op(self, op: Op, why: str) -> GraphError:
        types = ", ".join(
            "-" if n is None else str(self.blobs[n].type) if n in self.blobs else "?"
            for n in op.inputs
        )
        where = f"node {op.name!r}" if op.name else f"making {', '.join(map(repr, op.outputs))}"
        return self.fail(f"{op.operator} ({where}) of ({types}): {why}")

    def run(self) -> None:
        for name, blob in self.new.items():
            self.check_blob(name, blob)
        self.check_dims()
        self.check_interface()
        written: set[str] = set()
        new = self.new.keys()
        for k, op in enumerate(self.graph.ops):
            self.check_reads(k, op, written)
            self.check_writes(op, written)
            if id(op) not in self.known or not new.isdisjoint((*op.reads, *op.outputs)):
                self.check_meaning(op)
            written.update(op.outputs)
        for name, blob in self.blobs.items():
            if blob.role is Role.INTERMEDIATE and name not in written:
                raise self.fail(f"no op writes the blob {name!r}: {blob.type}")
        for blob in self.blobs.values():
            if blob.inside is not None:
                self.check_place(blob, blob.inside)
        self.check_groups()

    # ---------------------------------------------------------------- blobs

    def check_blob(self, name: str, blob: Blob) -> None:
        def what() -> str:
            return f"the {blob.role.value} {name!r}: {blob.type}"

        if blob.name != name:
            raise self.fail(f"the blob {blob.name!r} stands under the name {name!r}")
        if any(isinstance(d, int) and d < 0 for d in blob.type.shape):
            raise self.fail(f"{what()} has a negative dimension")
        layout = blob.type.layout
        if layout.is_blocked and not 0 <= layout.axis < blob.type.rank:
            raise self.fail(f"{what()} is blocked along an axis that it does not have")
        if layout.is_part and not 0 <= layout.along < blob.type.rank:
            raise self.fail(f"{what()} is a part along an axis that it does not have")
        if layout.is_part != (blob.inside is not None):
            why = "is a part of nothing" if layout.is_part else "is in a blob, but is no part"
            raise self.fail(f"{what()} {why}")
        x = blob.content
        if x is None:
            if blob.role in _WITH_VALUE:
                raise self.fail(f"{what()} has no array")
            return
        if blob.role not in (*_WITH_VALUE, Role.STATE):
            raise self.fail(f"{what()} has an array, which only constants and state may have")
        if x.dtype != blob.type.dtype.numpy or x.shape != blob.type.shape:
            raise self.fail(f"{what()} holds an array {x.dtype}{list(x.shape)}")

    def check_place(self, part: Blob, inside: Inside) -> None:
        """Whether a part fits into what it is part of, and belongs there."""
        where = f"{part.name!r}: {part.type} in {inside.blob!r}+{inside.start}"
        whole = self.blobs.get(inside.blob)
        if whole is None:
            raise self.fail(f"{where}: there is no such blob")
        g, t, w = self.graph, part.type, whole.type
        if part.role is not Role.INTERMEDIATE or part.name in g.outputs:
            raise self.fail(f"{where}: only intermediate results may be parts")
        joined = part.name in (g.producer[whole.name].reads if whole.name in g.producer else ())
        cut = whole.name in g.producer[part.name].reads
        if not (joined or cut) or whole.is_constant:
            raise self.fail(f"{where}: neither is made of the other")
        a, layout, start = t.layout.along, t.layout, inside.start
        same = (t.dtype, layout.order, t.rank) == (w.dtype, w.layout.order, w.rank)
        if not same or any(x != y for k, (x, y) in enumerate(zip(t.dims, w.dims, strict=True))
                           if k != a):  # fmt: skip
            raise self.fail(f"{where}: it does not look like a part of {w}")
        if w.layout.is_part and w.layout.along != a:
            raise self.fail(f"{where}: parts of parts are cut along one axis")
        extent = w.layout.extent if w.layout.is_part else w.dims[a]
        if extent != layout.extent or start < 0 or start + t.dims[a] > w.dims[a]:
            raise self.fail(f"{where}: it leaves {w}")
        if layout.is_blocked and a == layout.axis:
            last = start + t.dims[a] == w.dims[a]
            if start % layout.block or (t.dims[a] % layout.block and not last):
                raise self.fail(f"{where}: it must hold whole blocks of channels")

    def check_dims(self) -> None:
        seen: dict[str, SymDim] = {}
        for name, blob in self.blobs.items():
            for d in blob.type.shape:
                if isinstance(d, SymDim) and seen.setdefault(d.name, d) != d:
                    raise self.fail(
                        f"the dimension {d.name!r} has other bounds in {name!r} than elsewhere"
                    )

    def check_interface(self) -> None:
        g = self.graph
        for what, names in (("input", g.inputs), ("output", g.outputs)):
            for n in names:
                if n not in self.blobs:
                    raise self.fail(f"there is no blob {n!r}, which is an {what}")
        if not g.outputs:
            raise self.fail("there are no outputs")
        for n in g.inputs:
            role = self.blobs[n].role
            if role is not Role.INPUT:
                raise self.fail(f"the input {n!r} has the role {role.value!r}")
            if g.inputs.count(n) > 1:
                raise self.fail(f"the input {n!r} is listed twice")
        given = set(g.inputs)
        for n, blob in self.blobs.items():
            if blob.role is Role.INPUT and n not in given:
                raise self.fail(f"the blob {n!r} has the role 'input' but is not among the inputs")

    # ---------------------------------------------------------------- ops

    def check_reads(self, k: int, op: Op, written: set[str]) -> None:
        for n in op.reads:
            if n not in self.blobs:
                raise self.fail_op(op, f"it reads {n!r}, and there is no such blob")
            if self.blobs[n].role is Role.INTERMEDIATE and n not in written:
                later = any(n in other.outputs for other in self.graph.ops[k:])
                why = "which is written only by a later op" if later else "which no op writes"
                if n in op.outputs:
                    why = "its own result"
                raise self.fail_op(op, f"it reads {n!r}, {why}")

    def check_writes(self, op: Op, written: set[str]) -> None:
        if not op.outputs:
            raise self.fail_op(op, "it has no outputs")
        for n in op.outputs:
            if n not in self.blobs:
                raise self.fail_op(op, f"it writes {n!r}, and there is no such blob")
            role = self.blobs[n].role
            if role is not Role.INTERMEDIATE:
                raise self.fail_op(op, f"it writes {n!r}, which has the role {role.value!r}")
            if n in written or op.outputs.count(n) > 1:
                raise self.fail_op(op, f"it writes {n!r}, which is written already")

    def check_meaning(self, op: Op) -> None:
        """The operator, its attributes and types. Passes keep most ops, so what was found sound is
        remembered; repr tells 1 from 1.0 and True."""
        g = self.graph
        if op.group is not None and op.group < 0:
            raise self.fail_op(op, f"its group {op.group} is negative")
        seen = op.operator, repr(op.attrs), g.input_types(op), g.output_types(op)
        if seen in _sound:
            return
        self.check_operator(op)
        if len(_sound) >= REMEMBERED:
            _sound.clear()
        _sound.add(seen)

    def check_operator(self, op: Op) -> None:
        if op.operator not in REGISTRY:
            raise self.fail_op(op, "there is no such operator")
        try:
            bound = op.definition.bind(op.attributes)
            hash(op.attrs)
            for v in bound.values():
                format_value(v)
            types = op.definition.infer_types(self.graph.input_types(op), bound)
        except OperatorError as e:
            raise self.fail_op(op, str(e)) from e
        except (TypeError, ValueError, IndexError, ArithmeticError) as e:
            why = f"its attributes {op.attributes} do not fit ({type(e).__name__}: {e})"
            raise self.fail_op(op, why) from e
        if tuple(map(repr, bound.items())) != tuple(map(repr, op.attrs)):
            raise self.fail_op(op, f"its attributes {op.attributes} should be {bound}")
        if op.inputs and op.inputs[-1] is None:
            raise self.fail_op(op, "absent inputs at the end must be left out")
        stored = self.graph.output_types(op)
        if len(types) != len(stored):
            raise self.fail_op(op, f"it has {len(stored)} outputs, not {len(types)}")
        for n, t, wanted in zip(op.outputs, stored, types, strict=True):
            if _bare(t) != _bare(wanted):
                raise self.fail_op(op, f"its output {n!r} is stored as {t} but it gives {wanted}")

    # ---------------------------------------------------------------- groups

    def check_groups(self) -> None:
        """Kahn's algorithm on the graph in which each group is one node."""
        ops = self.graph.ops
        if all(op.group is None for op in ops):
            return
        unit = {op.outputs: -1 - k if op.group is None else op.group for k, op in enumerate(ops)}
        producer = self.graph.producer
        # (from, to) -> the blob that goes from one unit to the other
        edges: dict[int, dict[int, str]] = {u: {} for u in unit.values()}
        waiting = dict.fromkeys(edges, 0)
        for op in ops:
            to = unit[op.outputs]
            for n in op.reads:
                made = producer.get(n)
                if made is None:
                    continue
                source = unit[made.outputs]
                if source != to and to not in edges[source]:
                    edges[source][to] = n
                    waiting[to] += 1
        ready = [u for u, count in waiting.items() if count == 0]
        left = set(edges)
        while ready:
            u = ready.pop()
            left.discard(u)
            for to in edges[u]:
                waiting[to] -= 1
                if waiting[to] == 0:
                    ready.append(to)
        if left:
            raise self.fail(self.describe_cycle(left, edges))

    def describe_cycle(self, left: set[int], edges: dict[int, dict[int, str]]) -> str:
        """One cycle among the units that wait for each other, as a sentence."""
        back: dict[int, int] = {}
        for u in left:
            for to in edges[u]:
                if to in left:
                    back[to] = u
        path = [next(u for u in left if u in back)]
        while path.count(path[-1]) < 2:
            path.append(back[path[-1]])
        cycle = path[path.index(path[-1]) :][::-1]
        k = next(i for i, u in enumerate(cycle) if u >= 0)
        cycle = cycle[k:-1] + cycle[:k] + [cycle[k]] if k else cycle
        steps = ", then ".join(
            f"{self.unit_name(b)} reads its {edges[a][b]!r}" for a, b in pairwise(cycle)
        )
        return f"{self.unit_name(cycle[0])} cannot run as one kernel: {steps}"

    def unit_name(self, unit: int) -> str:
        if unit >= 0:
            return f"group {unit}"
        op = self.graph.ops[-1 - unit]
        return f"{op.operator} (node {op.name!r})" if op.name else f"{op.operator}"


def _bare(t: TensorType) -> tuple[object, ...]:
    return t.dtype, t.shape
