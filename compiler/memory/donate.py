"""Which blocks go into the memory of donated inputs, so that the arena becomes smaller.

First, results that a kernel may compute in place of an operand take the input's place, as they take
one another's. Then, as long as it helps: at the step with the most bytes alive in the arena, the
largest block that begins when a region is free, and fits there, moves into it. When no block of
that step can move, moving others would not lower the peak.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from .buffers import BufferSpec, LiveRange, Place, Step, live_ranges, resolve, round_up
from .plan import ALIGNMENT, MemoryPlan, plan
from .regions import Region


def plan_donated(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    donated: Mapping[str, int],
    *,
    keep: Collection[str] = (),
    alignment: int = ALIGNMENT,
    reorder: bool = True,
    inplace: bool = True,
    capacity: int | None = None,
) -> MemoryPlan:
    """A plan that uses the memory of external buffers which the steps may destroy.

    `donated` has their bytes by name. Otherwise as `plan`, which it never does worse than, and
    whose order of steps it keeps. Blocks in regions start at multiples of `alignment` from the
    region's start, whatever that is aligned to. Raises as `plan`.
    """
    buffers = tuple(buffers)
    plain = plan(steps, buffers, keep=keep, alignment=alignment, reorder=reorder, inplace=inplace,
                 capacity=capacity)  # fmt: skip
    if not donated:
        return plain
    regions = choose_regions(plain.steps, buffers, donated, keep, alignment, inplace)
    moved = {spec.name for region in regions for spec in region.buffers}
    rest = [spec for spec in buffers if spec.name not in moved]
    best = plan(plain.steps, rest, keep=keep, alignment=alignment, reorder=False, inplace=inplace,
                capacity=capacity)  # fmt: skip
    if best.arena_bytes >= plain.arena_bytes:
        return plain
    result = replace(
        best,
        order=plain.order,
        given_bound_bytes=plain.given_bound_bytes,
        may_reorder=plain.may_reorder,
        unshared_bytes=plain.unshared_bytes,
        regions=regions,
        undonated=plain,
    )
    result.check()
    return result


@dataclass(slots=True)
class _Room:
    """A region being filled: blocks and where they are."""

    bytes: int
    taken: list[tuple[LiveRange, int]] = field(default_factory=list)

    def offset(self, block: LiveRange, alignment: int) -> int | None:
        """The lowest place for a block, None if there is none."""
        at = 0
        met = (
            (start, start + other.bytes) for other, start in self.taken
            if other.first <= block.last and block.first <= other.last
        )  # fmt: skip
        for start, end in sorted(met):
            if at + block.bytes <= start:
                break
            at = max(at, round_up(end, alignment))
        return at if at + block.bytes <= self.bytes else None


def choose_regions(
    steps: Sequence[Step],
    buffers: Sequence[BufferSpec],
    donated: Mapping[str, int],
    keep: Collection[str],
    alignment: int,
    inplace: bool = True,
) -> tuple[Region, ...]:
    """The regions of all donated inputs, each with what was moved into it."""
    specs = (*(BufferSpec(name, size) for name, size in donated.items()), *buffers)
    caller = Step("the caller", (), tuple(donated))
    blocks = [
        replace(b, first=b.first - 1, last=b.last - 1)  # the caller's step is number -1
        for b in live_ranges((caller, *steps), specs, keep, None if inplace else ())
    ]
    rooms = {b.name: _Room(b.bytes, [(b, 0)]) for b in blocks if b.name in donated}
    kept = set(keep)
    movable = [b for b in blocks if b.name not in donated and b.bytes and not kept & {*b.members}]
    stay = [b for b in blocks if b.name not in donated and b not in movable]
    load = [round_up(step.scratch, alignment) for step in steps]
    for b in (*movable, *stay):
        _add(load, b, round_up(b.bytes, alignment))
    by_size = sorted(rooms.values(), key=lambda room: room.bytes)
    while load:
        peak = load.index(max(load))
        chosen = _largest(movable, peak, by_size, alignment)
        if chosen is None:
            break
        block, room, at = chosen
        room.taken.append((block, at))
        movable.remove(block)
        _add(load, block, -round_up(block.bytes, alignment))
    places = resolve(specs)
    return tuple(_region(name, room, specs, places) for name, room in rooms.items())


def _largest(
    movable: Sequence[LiveRange], step: int, rooms: Sequence[_Room], alignment: int
) -> tuple[LiveRange, _Room, int] | None:
    """The largest block alive in a step that fits into a room, the smallest that takes it."""
    alive = (b for b in movable if b.first <= step <= b.last)
    for block in sorted(alive, key=lambda b: -b.bytes):
        for room in rooms:
            at = room.offset(block, alignment)
            if at is not None:
                return block, room, at
    return None


def _add(load: list[int], block: LiveRange, size: int) -> None:
    for k in range(max(0, block.first), block.last + 1):
        load[k] += size


def _region(
    name: str, room: _Room, specs: Sequence[BufferSpec], places: Mapping[str, Place]
) -> Region:  # fmt: skip
    base = {m: at for block, at in room.taken for m in (block.name, *block.members)}
    inside = [s for s in specs if s.name in places and places[s.name].root in base]
    offsets = {s.name: base[places[s.name].root] + places[s.name].offset for s in inside}
    ranges = tuple(replace(b, first=max(0, b.first)) for b, _ in room.taken)
    return Region(name, room.bytes, tuple(inside), ranges, MappingProxyType(offsets))
