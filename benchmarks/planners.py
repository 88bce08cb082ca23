"""Other ways to share memory than ours: what the memory planner is measured against.

A planner takes blocks, (first step, last step, bytes) with both steps included, and answers with an
offset for each. Sizes are multiples of the alignment already, and so are all offsets. The first
four give out whole buffers, which lie one after another and are as large as the largest block that
ever uses them; the others choose offsets in one arena, where a block may lie across what several
others left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

Block = tuple[int, int, int]
Planner = Callable[[Sequence[Block]], list[int]]


def unshared(blocks: Sequence[Block]) -> list[int]:
    """Everything on its own."""
    return [end - size for end, (_, _, size) in zip(_ends(blocks), blocks, strict=True)]


def _ends(blocks: Sequence[Block]) -> list[int]:
    return list(accumulate(size for _, _, size in blocks))


# --------------------------------------------------------------------------- whole buffers


@dataclass(slots=True)
class _Buffer:
    """What blocks share one after another. free: the first step after its last user, where those
    come in order of time."""

    bytes: int
    users: list[int]
    free: int = 0


def recycling(blocks: Sequence[Block]) -> list[int]:
    """In order of execution, each takes the buffer freed last, whatever its size: what memonger's
    fast mode for inference does (Caffe2)."""
    return _recycle(blocks, lambda free, size: free[-1])


def nearest_size(blocks: Sequence[Block]) -> list[int]:
    """In order of execution, each takes the free buffer whose size is nearest to its own: the
    greedy assignment of memonger (Caffe2)."""
    return _recycle(blocks, lambda free, size: min(free, key=lambda b: abs(b.bytes - size)))


def _recycle(
    blocks: Sequence[Block], choose: Callable[[list[_Buffer], int], _Buffer]
) -> list[int]:  # fmt: skip
    """Buffers for blocks in order of their first step; a new one where none is free."""
    buffers: list[_Buffer] = []
    for i in sorted(range(len(blocks)), key=lambda i: blocks[i][0]):
        first, last, size = blocks[i]
        free = sorted((b for b in buffers if b.free <= first), key=lambda b: b.free)
        if free:
            taken = choose(free, size)
        else:
            taken = _Buffer(0, [])
            buffers.append(taken)
        taken.bytes = max(taken.bytes, size)
        taken.free = last + 1
        taken.users.append(i)
    return _one_after_another(buffers, len(blocks))


def shared_objects(blocks: Sequence[Block]) -> list[int]:
    """Largest first, each into the smallest buffer whose users it never meets: greedy by size for
    shared objects (Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
    2020)."""
    buffers: list[_Buffer] = []
    for i in _largest_first(blocks):
        fits = [b for b in buffers if not any(_meet(blocks[i], blocks[u]) for u in b.users)]
        if fits:
            min(fits, key=lambda b: b.bytes).users.append(i)
        else:
            buffers.append(_Buffer(blocks[i][2], [i]))
    return _one_after_another(buffers, len(blocks))


def _one_after_another(buffers: Iterable[_Buffer], count: int) -> list[int]:
    offsets, at = [0] * count, 0
    for buffer in buffers:
        for i in buffer.users:
            offsets[i] = at
        at += buffer.bytes
    return offsets


# --------------------------------------------------------------------------- offsets


@dataclass(slots=True)
class _Heap:
    """Holes as (offset, bytes), in order, never adjacent; above `top` all is free."""

    top: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)

    def take(self, size: int) -> int:
        """The smallest hole that fits, else the top, with the hole that ends there."""
        fits = [hole for hole in self.holes if hole[1] >= size]
        if fits:
            at, room = min(fits, key=lambda hole: hole[1])
            self.holes.remove((at, room))
            if room > size:
                self._put(at + size, room - size)
            return at
        at = self.top
        if self.holes and sum(self.holes[-1]) == self.top:
            at = self.holes.pop()[0]
        self.top = at + size
        return at

    def give_back(self, at: int, size: int) -> None:
        end = at + size
        touching = [hole for hole in self.holes if sum(hole) == at or hole[0] == end]
        for low, room in touching:
            self.holes.remove((low, room))
            at, end = min(at, low), max(end, low + room)
        self._put(at, end - at)

    def _put(self, at: int, size: int) -> None:
        self.holes = sorted([*self.holes, (at, size)])


def best_fit_online(blocks: Sequence[Block]) -> list[int]:
    """An allocator at run time: blocks come in order of execution, each goes into the smallest hole
    that fits, and what dies is a hole for the next step, joined with those beside it."""
    heap, offsets = _Heap(), [0] * len(blocks)
    alive: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda i: blocks[i][0]):
        first, _, size = blocks[i]
        for dead in [j for j in alive if blocks[j][1] < first]:
            alive.remove(dead)
            heap.give_back(offsets[dead], blocks[dead][2])
        if size:
            offsets[i] = heap.take(size)
            alive.append(i)
    return offsets


def offsets_by_size(blocks: Sequence[Block]) -> list[int]:
    """Largest first, each into the smallest gap that fits between those it meets, else above them:
    greedy by size for offset calculation (Pisarchyk and Lee, 2020)."""
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for i in _largest_first(blocks):
        size = blocks[i][2]
        best, least, top = None, 0, 0
        for j in sorted(
            (j for j in placed if _meet(blocks[i], blocks[j])), key=lambda j: offsets[j]
        ):
            gap = offsets[j] - top
            if gap >= size and (best is None or gap < least):
                best, least = top, gap
            top = max(top, offsets[j] + blocks[j][2])
        offsets[i] = top if best is None else best
        placed.append(i)
    return offsets


def _largest_first(blocks: Sequence[Block]) -> list[int]:
    return sorted(range(len(blocks)), key=lambda i: -blocks[i][2])


def _meet(a: Block, b: Block) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


PLANNERS: Final[dict[str, Planner]] = {
    "unshared": unshared,
    "recycling": recycling,
    "nearest size": nearest_size,
    "shared objects": shared_objects,
    "best fit online": best_fit_online,
    "offsets by size": offsets_by_size,
}


# --------------------------------------------------------------------------- judging


def lower_bound(blocks: Sequence[Block]) -> int:
    """The largest sum of bytes alive in one step, which no planner can go below."""
    change: dict[int, int] = {}
    for first, last, size in blocks:
        change[first] = change.get(first, 0) + size
        change[last + 1] = change.get(last + 1, 0) - size
    return max(accumulate(change[step] for step in sorted(change)), default=0)


def height(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    """Bytes of the arena, once no two blocks overlap both in time and in place.

    Raises AssertionError naming the first two that do, and for an offset below zero.
    """
    alive: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda i: blocks[i][0]):
        first, _, size = blocks[i]
        assert offsets[i] >= 0, f"block {i} lies at {offsets[i]}"
        alive = [j for j in alive if blocks[j][1] >= first]
        for j in alive:
            apart = (offsets[i] + size <= offsets[j]
                     or offsets[j] + blocks[j][2] <= offsets[i])  # fmt: skip
            assert apart or not size or not blocks[j][2], f"blocks {j} and {i} overlap"
        alive.append(i)
    return max((o + b[2] for o, b in zip(offsets, blocks, strict=True)), default=0)
