"""Give blobs places in other blobs: concatenations without copies, and cuts that are views.

What a concatenation joins is written by its producers where it belongs; what cannot be (inputs of
the graph, constants, results that lie elsewhere already) is copied there, by one kernel together
with the pointwise ops that fusion put in front of the concatenation. Nothing is left to do for the
concatenation itself. One that is part of another one passes its place on. In the other direction, a
slice or a split whose results are contiguous along one axis names parts of its input.

A part lies in the steps of the whole, which its type tells; kernels know no more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ...ops.operator import Contraction, Opaque, Recurrence, View
from ...ops.types import TensorType
from ..graph.ir import Blob, Graph, Inside, Op, Role
from ..graph.storage import is_view
from .base import Pass
from .cuts import cuts, holds_whole_blocks

MOST_RUNS = 4096  # stretches of memory that the memory plan describes one by one
SHORTEST = 64  # bytes of a stretch; loops over shorter ones would cost more than a copy


@dataclass(frozen=True, slots=True)
class Place(Pass):
    """Runs behind fusion: a kernel that reads or writes a part must be known to manage that.

    align: parts begin at multiples of that many bytes.
    """

    align: int = 1

    def run(self, graph: Graph) -> Graph:
        return _Placer(graph, self.align).run()


class _Placer:
    def __init__(self, graph: Graph, align: int) -> None:
        self.graph, self.align = graph, align
        self.blobs = dict(graph.blobs)
        self.groups = list(graph.groups)
        self.maker = {o: g for g, ops in enumerate(self.groups) for op in ops for o in op.outputs}
        self.readers: dict[str, set[int]] = {}
        for g, ops in enumerate(self.groups):
            for op in ops:
                for n in op.reads:
                    self.readers.setdefault(n, set()).add(g)
        self.changed = False

    def run(self) -> Graph:
        # the outermost first: a concatenation hands its place on to what it joins
        made = {g: list(self.join(g)) for g in reversed(range(len(self.groups)))}
        for g in range(len(self.groups)):
            self.cut(g)
        if not self.changed:
            return self.graph
        parts = [ops for g in sorted(made) for ops in made[g] if ops]
        ops = tuple(op.with_group(k) for k, part in enumerate(parts) for op in part)
        old = self.graph
        return Graph(old.name, old.inputs, old.outputs, ops, self.blobs)

    # ---------------------------------------------------------------- concatenations

    def join(self, g: int) -> Iterator[Sequence[Op]]:
        """The groups that take the place of group g, which may end in a concatenation."""
        *before, op = self.groups[g]
        parts = self.parts(op) if _is_concat(op) else None
        if parts is None or not any(self.may_write(op, n, t) for n, t, _ in parts):
            yield self.groups[g]
            return
        self.changed = True
        out = op.outputs[0]
        reads: list[str] = []
        for n, kind, start in parts:
            inside = Inside(out, start)
            mine = self.maker.get(n) == g and self.blobs[n].inside is None
            if mine or self.may_write(op, n, kind):
                self.blobs[n] = replace(self.blobs[n], type=kind, inside=inside)
                reads.append(n)
                continue
            copy = self.fresh(f"{n}_in_{out}")
            self.blobs[copy] = Blob(copy, kind, inside=inside)
            before.append(Op("reformat", (n,), (copy,), name=op.name, source=op.source))
            reads.append(copy)
        yield before
        yield (replace(op, inputs=tuple(reads)),)

    def parts(self, op: Op) -> list[tuple[str, TensorType, int]] | None:
        """(blob, its type as a part, where it begins) of all inputs of a concatenation; None where
        they cannot all be parts."""
        whole = self.blobs[op.outputs[0]].type
        a = op.attr("axis") % whole.rank
        if whole.layout.is_part and whole.layout.along != a:
            return None
        extent = whole.layout.extent or whole.dims[a]
        layout = whole.layout.part(a, extent)
        kinds = [self.blobs[n].type.with_layout(layout) for n in op.reads]
        ends = list(accumulate(t.dims[a] for t in kinds))
        starts = [e - t.dims[a] for e, t in zip(ends, kinds, strict=True)]
        if len(kinds) < 2 or not all(
            self.is_describable(t, a, s, whole.dims[a]) for t, s in zip(kinds, starts, strict=True)
        ):
            return None
        return list(zip(op.reads, kinds, starts, strict=True))

    def may_write(self, op: Op, blob: str, kind: TensorType) -> bool:
        """Whether the kernel that makes a blob may write it as this part of op's result."""
        b, g = self.blobs[blob], self.maker.get(blob)
        if b.role is not Role.INTERMEDIATE or blob in self.graph.outputs or g is None:
            return False
        if b.inside is not None or op.reads.count(blob) > 1 or b.type.layout != kind.layout.order:
            return False
        if g == self.maker[op.outputs[0]] or is_view(self.graph, self.graph.producer[blob]):
            return False
        everyone = {g, *self.readers[blob]}
        return kind.is_dense or all(_follows_types(self.groups[e]) for e in everyone)

    def fresh(self, stem: str) -> str:
        name, k = stem, 0
        while name in self.blobs:
            k += 1
            name = f"{stem}.{k}"
        return name

    # ---------------------------------------------------------------- slices and splits

    def cut(self, g: int) -> None:
        """Let the results of group g, a slice or a split alone, be parts of its input."""
        if len(self.groups[g]) != 1:
            return
        op = self.groups[g][0]
        found = cuts(self.graph, op)
        if found is None or self.blobs[op.reads[0]].is_constant:
            return
        source = op.reads[0]
        whole = self.blobs[source].type
        made: dict[str, Blob] = {}
        for n, cut in zip(op.outputs, found, strict=True):
            b, old = self.blobs[n], whole.layout
            if b.inside is not None or n in self.graph.outputs or b.type.layout != old.order:
                return
            if old.is_part and old.along != cut.axis:
                return
            layout = old.part(cut.axis, old.extent or whole.dims[cut.axis])
            kind = b.type.with_layout(layout)
            if not self.is_describable(kind, cut.axis, cut.start, whole.dims[cut.axis]):
                return
            readers = self.readers.get(n, ())
            if not kind.is_dense and not all(_follows_types(self.groups[e]) for e in readers):
                return
            made[n] = replace(b, type=kind, inside=Inside(source, cut.start))
        self.blobs |= made
        self.changed = True

    def is_describable(self, kind: TensorType, axis: int, start: int, whole: int) -> bool:
        """Whether memory plan and kernels can deal with a part."""
        rows, each, _ = kind.runs
        blocks = holds_whole_blocks(kind.layout, axis, start, kind.dims[axis], whole)
        if not kind.size or not blocks or kind.position(axis, start) % self.align:
            return False
        return rows == 1 or (rows <= MOST_RUNS and each >= SHORTEST)


def _follows_types(ops: Sequence[Op]) -> bool:
    """Whether a group's kernel finds every element by its blob's type: all do that compute
    expressions; views and templates for one opaque operator take a blob for dense memory."""
    return not any(
        (op.has(View) and len(ops) == 1)
        or op.has(Recurrence)
        or op.definition.compute is None
        or (op.has(Opaque) and not _is_concat(op))
        for op in ops if op.definition.trait(Contraction) is None
    )  # fmt: skip


def _is_concat(op: Op) -> bool:
    trait = op.definition.trait(Opaque)
    return trait is not None and trait.kind == "concat"
