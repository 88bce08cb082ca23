"""Why ops share a kernel, and why others do not: fusion run again, with somebody listening.

Nothing of this is kept while compiling. The growth of groups and its predicates are those of
`fuse.py`; what is added here is where a refusal belongs, and words for what was agreed to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ops.operator import Contraction, Elementwise, Injective
from ..graph.ir import Graph, Op
from ..text import format_type, quote
from .fuse import Fuse, Fuser


@dataclass(frozen=True, slots=True)
class Seam:
    """A blob at which one group ends and another begins. before, after: the ops that write and read
    it. why: they are not in one group."""

    blob: str
    before: Op
    after: Op
    why: str


@dataclass(frozen=True, slots=True)
class Reasons:
    """Of one run of `Fuse`. together: why each op is in its group, by its first result, which is
    its name throughout fusion. seams: all places where groups meet, in the order of ops."""

    together: Mapping[str, str]
    seams: tuple[Seam, ...]

    def around(self, ops: Sequence[Op]) -> tuple[tuple[Seam, ...], tuple[Seam, ...]]:
        """The seams before and behind a group."""
        mine = {op.outputs[0] for op in ops}
        before = tuple(s for s in self.seams if s.after.outputs[0] in mine)
        return before, tuple(s for s in self.seams if s.before.outputs[0] in mine)


def reasons(graph: Graph, fuse: Fuse) -> Reasons:
    """Why `fuse` groups the ops of a graph as it does. graph: as the pass is given it."""
    fuser = _Listener(graph, fuse)
    fuser.run()
    return fuser.told()


class _Listener(Fuser):
    """Keeps what is refused, and which op each group grew from."""

    def __init__(self, graph: Graph, fuse: Fuse) -> None:
        super().__init__(graph, fuse.attention, fuse.products)
        self.refused: dict[tuple[int, int], str] = {}
        self.last: dict[int, str] = {}  # what a seed refused in the end
        self.seeds: list[int] = []  # of the groups
        self.made: list[list[int]] = []
        self.attentions: set[int] = set()

    def refuse(self, seed: int, c: int, why: str) -> None:
        self.refused[seed, c] = self.last[seed] = why

    def attention(self, k: int) -> list[int]:
        found = super().attention(k)
        if found:
            self._grown(k, found)
            self.attentions.add(k)
        return found

    def contraction(self, k: int) -> list[int]:
        return self._grown(k, super().contraction(k))

    def nest(self, k: int) -> list[int]:
        return self._grown(k, super().nest(k))

    def _grown(self, k: int, members: list[int]) -> list[int]:
        self.seeds.append(k)
        self.made.append(members)
        return members

    def several_results(self, members: Sequence[int]) -> str:
        return self._listed(super().several_results(members), members)

    def several_nests(self, members: Sequence[int]) -> str:
        return self._listed(super().several_nests(members), members)

    # ---------------------------------------------------------------- in words

    def _listed(self, why: str, members: Sequence[int]) -> str:
        """A reason, and the blobs that are read by others."""
        blobs = [f"%{quote(n)} {format_type(self.graph.type(n))}" for n in self.live(members)]
        return f"{why}: {', '.join(blobs)}" if why and blobs else why

    def told(self) -> Reasons:
        together = {
            self.ops[m].outputs[0]: self._bond(seed, m)
            for seed, members in zip(self.seeds, self.made, strict=True) for m in members
        }  # fmt: skip
        seams = tuple(
            Seam(n, self.ops[p], op, self._apart(n, p, c))
            for c, op in enumerate(self.ops) for n in dict.fromkeys(op.reads)
            if (p := self.at.get(n)) is not None and self.group[p] != self.group[c]
        )  # fmt: skip
        return Reasons(together, seams)

    def _bond(self, seed: int, m: int) -> str:
        """Why op m is in the group that grew from a seed."""
        op, anchor = self.ops[m], self.multiplies(self.ops[seed])
        if m == seed:
            return "the contraction that the kernel is for" if anchor else "the kernel begins here"
        if seed in self.attentions:
            return "a part of the attention"
        if anchor and m < seed and m in (*self._before(seed),):
            return "it only chooses which elements of the operand are read"
        if op.has(Elementwise):
            return ("element by element on the contraction's result, while that is in registers"
                    if anchor else "element by element over the same loops")  # fmt: skip
        if self.is_concat(m):
            return "it joins what the loops compute"
        if op.has(Injective):
            return "it moves elements, none of which is computed twice"
        return ("it reduces over the same axes" if self.whole_axes(m) is not None
                else "it combines what the loops compute")  # fmt: skip

    def _before(self, seed: int) -> Sequence[int]:
        """The members of a contraction's group that come before it."""
        return [m for m in self.made[self.seeds.index(seed)] if m < seed]

    def _apart(self, blob: str, p: int, c: int) -> str:
        """Why op c, which reads a blob that op p makes, is in another group."""
        mine, other = self.group[p], self.group[c]
        assert mine is not None and other is not None
        seed, its = self.seeds[mine], self.seeds[other]
        if (seed, c) in self.refused:
            return self.refused[seed, c]
        if seed in self.attentions:
            return "an attention takes in only what moves its result, or changes it element-wise"
        if other < mine:
            return self._taken(blob, c, its)
        return self.stands_alone(seed) or (
            "a concatenation ends its kernel" if self.is_concat(p) else self.last[seed]
        )  # fmt: skip

    def _taken(self, blob: str, c: int, its: int) -> str:
        """Why a group that was there first, around the op `its`, did not take in what makes a blob
        that its op c reads."""
        anchor = self.ops[its].definition.trait(Contraction)
        if c == its or (anchor is not None and c < its):
            shared = len(self.users[blob]) > 1 or blob in self.graph.outputs
            if anchor is not None and anchor.kind == "conv":
                return "a convolution reads its operand once for each tap: it has to be in memory"
            if shared:
                return "a product takes in only index maps that nobody else reads"
            return "a product reads its operand many times: only index maps are computed on the way"
        how = "; contractions choose first" if anchor is not None else ""
        return f"the reader was in the kernel of {named(self.ops[its])} before{how}"


def named(op: Op) -> str:
    """What an op is called: after the model's node, or what it makes."""
    return repr(op.name) if op.name else f"{op.operator} -> {op.outputs[0]!r}"
