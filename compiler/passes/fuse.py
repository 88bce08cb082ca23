"""Group operators into kernels.

Groups grow from a seed along the order of the ops. A seed is a contraction, which takes in what
can run on its result while it is in registers, or any operator that has an expression, which grows
into the largest neighbourhood that one loop nest computes without repeating work. Growth may pass
through states with several results (a softmax does: exp feeds both the sum and the quotient); the
last state that one kernel can serve is taken.

What keeps an op out of a group is a predicate that gives the reason as text, "" where there is
none; nothing is kept of it here. `why.py` runs the same growth again and listens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...ops.operator import (
    Contraction,
    Elementwise,
    Injective,
    Opaque,
    Recurrence,
    Reduction,
    View,
)
from ...ops.types import DType, f32, f64
from ..graph.ir import Graph, Op
from .attention import WHOLE, AttentionKernel, attention_from, moves_result, scaling
from .base import Pass
from .convolutions import is_channel_choice

LOOKAHEAD = 16  # ops a group may grow by before it must be one kernel again
MOST_OPS = 64
MOST_RESULTS = 4


@dataclass(frozen=True, slots=True)
class Fuse(Pass):
    """Assign `Op.group` and bring the members of each group together in the order of ops.

    attention: what the target's kernel for whole attentions takes, if it has one. products: the
    element types of contractions that templates of their own compute. choices: whether kernels of
    convolutions read channels in any order."""

    attention: AttentionKernel | None = WHOLE
    products: tuple[DType, ...] = (f32, f64)
    choices: bool = True

    def run(self, graph: Graph) -> Graph:
        return Fuser(graph, self.attention, self.products, self.choices).run()


def is_contraction(graph: Graph, op: Op, products: Sequence[DType]) -> bool:
    """Whether a contraction template computes this op (layout assignment marks convolutions by a
    blocked result)."""
    trait = op.definition.trait(Contraction)
    if trait is None or graph.type(op.outputs[0]).dtype not in products:
        return False
    if trait.kind == "conv":
        return graph.type(op.outputs[0]).layout.is_blocked
    return trait.kind == "matmul"


def too_large(best: Sequence[int], members: Sequence[int]) -> str:
    """Why a group stops growing, whatever reads it."""
    if len(members) > MOST_OPS:
        return f"the kernel has {MOST_OPS} ops already"
    if len(members) - len(best) > LOOKAHEAD:
        return f"the last {LOOKAHEAD} ops before it made no single kernel"
    return ""


class Fuser:
    """One run of the pass. group: of each op, None as long as it has none."""

    def __init__(
        self, graph: Graph, attention: AttentionKernel | None, products: Sequence[DType],
        choices: bool = True,
    ) -> None:  # fmt: skip
        self.graph, self.products, self.choices = graph, products, choices
        self.kernel = attention
        self.ops = graph.ops
        self.at = {o: k for k, op in enumerate(self.ops) for o in op.outputs}
        self.ancestors: list[int] = []
        for op in self.ops:
            bits = 0
            for n in op.reads:
                if n in self.at:
                    bits |= self.ancestors[self.at[n]] | 1 << self.at[n]
            self.ancestors.append(bits)
        self.users: dict[str, list[int]] = {}
        for k, op in enumerate(self.ops):
            for n in dict.fromkeys(op.reads):
                self.users.setdefault(n, []).append(k)
        self.group: list[int | None] = [None] * len(self.ops)

    def run(self) -> Graph:
        groups: list[list[int]] = []
        for contraction in (True, False):  # contractions choose their epilogues first
            for k, op in enumerate(self.ops):
                if self.group[k] is not None or self.multiplies(op) is not contraction:
                    continue
                members = (
                    (self.attention(k) or self.contraction(k)) if contraction else self.nest(k)
                )
                for m in members:
                    self.group[m] = len(groups)
                groups.append(members)
                self.contract(members, groups)
        return self.ordered(groups)

    def multiplies(self, op: Op) -> bool:
        return is_contraction(self.graph, op, self.products)

    def contract(self, members: Sequence[int], groups: Sequence[Sequence[int]]) -> None:
        """From now on whatever follows one member follows all of them: without that, two groups
        could wait for each other."""
        if len(members) == 1:
            return
        changed: list[Sequence[int]] = [members]
        while changed:
            group = changed.pop()
            mine = together = 0
            for m in group:
                mine |= 1 << m
                together |= self.ancestors[m] | 1 << m
            touched: set[int] = set()
            for k, bits in enumerate(self.ancestors):
                if (bits & mine or mine >> k & 1) and bits | together != bits:
                    self.ancestors[k] = bits | together & ~(1 << k)
                    g = self.group[k]
                    if g is not None and len(groups[g]) > 1 and not mine >> k & 1:
                        touched.add(g)
            changed += [groups[g] for g in touched if self._uneven(groups[g])]

    def _uneven(self, group: Sequence[int]) -> bool:
        mine = sum(1 << m for m in group)
        return len({self.ancestors[m] | mine for m in group}) > 1

    def refuse(self, seed: int, c: int, why: str) -> None:
        """Called when the group that grows from an op does not take in op c, which reads it."""

    # ---------------------------------------------------------------- growth

    def contraction(self, k: int) -> list[int]:
        """The anchor, index maps on its operands (matmul), and what runs on its result."""
        op = self.ops[k]
        is_matmul = op.definition.trait(Contraction).kind == "matmul"  # type: ignore[union-attr]
        prologue = self.prologue(k) if is_matmul else self.choice(k)
        best, members = [k], [k]
        for c in self.readers(members):
            if why := too_large(best, members):
                self.refuse(k, c, why)
                break
            if why := self.circles(c, [*prologue, *members]) or self.no_epilogue(c, k):
                self.refuse(k, c, why)
                continue
            members.append(c)
            if why := self.several_results(members):
                self.refuse(k, c, why)
            else:
                best = list(members)
        return [*prologue, *best]

    def no_epilogue(self, c: int, k: int) -> str:
        """Why op c cannot run on the result of contraction k while it is in registers."""
        op, out = self.ops[c], self.graph.type(self.ops[k].outputs[0])
        if not op.has(Elementwise):
            return "only elementwise ops run on a contraction's result in registers"
        t = self.graph.type(op.outputs[0])
        if t.dims != out.dims:
            return "its result has another shape than the contraction's"
        if t.layout != out.layout:
            return "its result has another layout than the contraction's"
        return "it has several results" if len(op.outputs) > 1 else ""

    def several_results(self, members: Sequence[int]) -> str:
        """Why a contraction's kernel, which writes one blob, cannot end here."""
        return "" if len(self.live(members)) == 1 else (
            "with it, more than one result would be read by others"
        )  # fmt: skip

    def attention(self, k: int) -> list[int]:
        """Both products of an attention that begins with op k, all between them, index maps on
        their operands, and what moves or changes the result element by element; [] for others."""
        found = attention_from(self.graph, self.ops[k]) if self.kernel else None
        if found is None or not self.multiplies(found.second):
            return []
        if self.kernel is None or not self.kernel.takes(self.graph, found):
            return []
        second = self.at[found.second.outputs[0]]
        parts = {k, second, *(self.at[op.outputs[0]] for op in found.between)}
        parts.update(self.prologue(k, self.kernel.scales), self.prologue(second))
        members: list[int] = []
        for m in sorted(parts):
            if self.group[m] is not None or self.circles(m, members):
                return []
            if self.graph.type(self.ops[m].outputs[0]).layout.is_blocked:
                return []
            members.append(m)
        blob, moved = found.second.outputs[0], False
        while self.users.get(blob, ()) and blob not in self.graph.outputs:
            c, kind = self.users[blob][0], self.graph.type(blob)
            op = self.ops[c]
            out = self.graph.type(op.outputs[0])
            moves = moves_result(self.graph, op)
            pointwise = op.has(Elementwise) and out.dims == kind.dims and not moved
            single = len(self.users[blob]) == 1 and len(op.outputs) == 1
            if not single or not (moves or pointwise) or out.layout.is_blocked:
                break
            if self.group[c] is not None or self.circles(c, members):
                break
            members.append(c)
            blob, moved = op.outputs[0], moved or moves
        return members

    def prologue(self, k: int, scales: bool = False) -> list[int]:
        """Index maps (transposes, reshapes, slices) that only this op reads, producers first; and
        what multiplies by numbers between them."""
        found: list[int] = []
        for n in self.ops[k].reads:
            reader, at = k, self.at.get(n)
            while at is not None and self.group[at] is None:
                many, source = [at], self.ops[at].reads[0] if self.ops[at].reads else ""
                if not self._is_index_map(at, reader):
                    scaled = scaling(self.graph, self.ops[at]) if scales else None
                    if scaled is None or self.users[self.ops[at].outputs[0]] != [reader]:
                        break
                    many, source = [self.at[op.outputs[0]] for op in scaled[0]], scaled[1]
                found += [m for m in many if m not in found]  # one value may be both operands
                reader, at = many[0], self.at.get(source)
        return sorted(found)

    def choice(self, k: int) -> list[int]:
        """The op that picks input channels for a convolution, if it serves nothing else. Winograd
        kernels read channels in their order."""
        x = self.ops[k].reads[0]
        at = self.at.get(x)
        if at is None or self.group[at] is not None or x in self.graph.outputs:
            return []
        if self.ops[k].attr("winograd") or not self.choices:
            return []
        fits = is_channel_choice(self.graph, self.ops[at]) and self.users[x] == [k]
        return [at] if fits and self.graph.type(x).layout.is_blocked else []

    def _is_index_map(self, at: int, reader: int) -> bool:
        """Whether op `at` only rearranges one blob, for one reader."""
        op = self.ops[at]
        if len(op.outputs) != 1 or len(op.reads) != 1 or op.outputs[0] in self.graph.outputs:
            return False
        moves = op.has(View) or op.has(Injective)
        return (
            moves and op.definition.compute is not None and (self.users[op.outputs[0]] == [reader])
        )

    def nest(self, k: int) -> list[int]:
        if self.stands_alone(k) or self.is_concat(k):
            return [k]
        best, members = [k], [k]
        for c in self.readers(members):
            if why := too_large(best, members):
                self.refuse(k, c, why)
                break
            if why := self.stands_alone(c) or self.circles(c, members) or self.apart(c, members):
                self.refuse(k, c, why)
                continue
            members.append(c)
            if why := self.several_nests(members):
                self.refuse(k, c, why)
            else:
                best = list(members)
            if self.is_concat(c):
                break
        return best

    def readers(self, members: Sequence[int]) -> Iterator[int]:
        """Ops without a group that read results of the members, which may become more, in order."""
        waiting: list[int] = []
        seen: set[int] = set()
        known = 0
        while known < len(members) or waiting:
            for m in members[known:]:
                for n in self.ops[m].outputs:
                    for c in self.users.get(n, ()):
                        if c not in seen and self.group[c] is None:
                            seen.add(c)
                            heapq.heappush(waiting, c)
            known = len(members)
            if waiting:
                yield heapq.heappop(waiting)

    def circles(self, c: int, members: Sequence[int]) -> str:
        """Why op c cannot be among the members: a path leaves them and comes back through it."""
        mine = 0
        for m in members:
            mine |= 1 << m
        for n in self.ops[c].reads:
            p = self.at.get(n)
            if p is not None and not mine >> p & 1 and self.ancestors[p] & mine:
                return "another of its operands is made, elsewhere, of what the kernel makes"
        return ""

    def live(self, members: Sequence[int]) -> list[str]:
        """Blobs that others read, or the caller."""
        inside = set(members)
        return [
            o for m in members for o in self.ops[m].outputs
            if o in self.graph.outputs or any(u not in inside for u in self.users.get(o, ()))
        ]  # fmt: skip

    # ---------------------------------------------------------------- what one loop nest can do

    def stands_alone(self, k: int) -> str:
        """Why op k is no part of a loop nest with others."""
        op = self.ops[k]
        if op.has(View) and not op.has(Elementwise):
            return "a view takes no kernel"
        if op.definition.compute is None or (op.has(Opaque) and not self.is_concat(k)):
            return "there is no expression for one element of the result"
        return "a recurrence has a kernel of its own" if op.has(Recurrence) else ""

    def is_concat(self, k: int) -> bool:
        trait = self.ops[k].definition.trait(Opaque)
        return trait is not None and trait.kind == "concat"

    def reduces(self, k: int) -> bool:
        """Whether an element of op k combines several elements of its inputs."""
        op = self.ops[k]
        return not op.has(Elementwise) and not op.has(Injective)

    def whole_axes(self, k: int) -> tuple[object, ...] | None:
        """Shape and axes of a reduction over whole axes; None for windows and the like."""
        op = self.ops[k]
        if not op.has(Reduction) or "axes" not in op.attributes:
            return None
        x = self.graph.type(op.reads[0])
        axes = op.attr("axes")
        chosen = range(x.rank) if axes is None else (a % x.rank for a in axes)
        return (x.dims, frozenset(chosen))

    def apart(self, c: int, members: Sequence[int]) -> str:
        """Why op c cannot follow the members in one nest without repeating their work."""
        op = self.ops[c]
        if self.is_concat(c):
            reducing = any(self.reduces(m) for m in members)
            return "a concatenation takes in no reduction, window or sum" if reducing else ""
        if op.has(Elementwise):
            return self._other_rows(c, members)
        if any(self.reduces(m) for m in members):
            if self.whole_axes(c) is None:
                return "it would compute the reduction before it once for each of its own elements"
            return self._other_reduction(c, members)
        if op.has(Injective):
            inside = {o for m in members for o in self.ops[m].outputs}
            feeding = [self.at[n] for n in op.reads if n in inside]
            total = self.graph.type(op.outputs[0]).size
            larger = any(total > self.graph.type(self.ops[m].outputs[0]).size for m in feeding)
            return "it repeats elements, which would be computed as often" if larger else ""
        if self.whole_axes(c) is None:
            return "its windows overlap, so that elements would be computed once for each of them"
        return ""

    def _other_reduction(self, c: int, members: Sequence[int]) -> str:
        mine = self.whole_axes(c)
        same = all(self.whole_axes(m) == mine for m in members if self.reduces(m))
        return "" if same else "it reduces another shape, or over other axes, than the kernel does"

    def _other_rows(self, c: int, members: Sequence[int]) -> str:
        """Elementwise op c after windows or products must keep their shape; after reductions over
        whole axes it may broadcast their results back over those axes."""
        out = self.graph.type(self.ops[c].outputs[0])
        for m in members:
            if not self.reduces(m):
                continue
            whole = self.whole_axes(m)
            result = self.graph.type(self.ops[m].outputs[0])
            if whole is None and (out.dims, out.layout) != (result.dims, result.layout):
                # windows slide best along the layout that was chosen for them
                what = "shape" if out.dims != result.dims else "layout"
                return f"its result has another {what} than that of the windows or sums before it"
            if whole is not None and out.dims not in (result.dims, whole[0]):
                return "it has neither the shape of the reduction before it nor that of its operand"
        return ""

    def several_nests(self, members: Sequence[int]) -> str:
        """Why one kernel cannot serve: it has a single result, or several of one shape and
        layout."""
        live = self.live(members)
        if len(live) > 1 and any(self.is_concat(m) for m in members):
            return "others read what it joins, and a concatenation is its kernel's one result"
        if len({self.graph.type(o).dims for o in live}) != 1:
            return "with it, results of different shapes would be read by others"
        if len({self.graph.type(o).layout for o in live}) != 1:
            return "with it, results in different layouts would be read by others"
        return "with it, others would read too many results" if len(live) > MOST_RESULTS else ""

    # ---------------------------------------------------------------- result

    def ordered(self, groups: list[list[int]]) -> Graph:
        """Groups in an order in which they can run, close to the original one."""
        waits: list[set[int]] = [set() for _ in groups]
        users: list[set[int]] = [set() for _ in groups]
        for k, op in enumerate(self.ops):
            mine = self.group[k]
            assert mine is not None
            for n in op.reads:
                other = self.group[self.at[n]] if n in self.at else None
                if other is not None and other != mine:
                    waits[mine].add(other)
                    users[other].add(mine)
        ready = [(members[-1], g) for g, members in enumerate(groups) if not waits[g]]
        heapq.heapify(ready)
        ops: list[Op] = []
        count = 0
        while ready:
            _, g = heapq.heappop(ready)
            ops += [self.ops[m].with_group(count) for m in sorted(groups[g])]
            count += 1
            for u in users[g]:
                waits[u].discard(g)
                if not waits[u]:
                    heapq.heappush(ready, (groups[u][-1], u))
        old = self.graph
        return Graph(old.name, old.inputs, old.outputs, tuple(ops), old.blobs)
