"""The judge of memory plans: runs the steps on bytes that remember who wrote them.

It shares no code with the planner and knows nothing of live ranges. Two memories are kept side by
side: the ideal one, where every root buffer has an address space of its own, and the arena. Both
map ranges of bytes to the step that wrote them. A plan is right when every read finds in the arena
exactly what it would have found in the ideal memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import PlanError
from .buffers import BufferSpec, Step


@dataclass(frozen=True, slots=True)
class _Mark:
    """Who wrote a byte: root buffer or scratch, step number, where byte 0 of the root lies, and
    under which name it was written."""

    owner: str
    step: int
    base: int
    name: str


_BLANK = _Mark("memory that nobody wrote", -1, 0, "")


class _Bytes:
    """A map from every address to a mark, as sorted runs."""

    __slots__ = ("_marks", "_starts")

    def __init__(self) -> None:
        self._starts = [0]
        self._marks = [_BLANK]

    def write(self, low: int, high: int, mark: _Mark) -> None:
        if low >= high:
            return
        after = self._marks[bisect_right(self._starts, high) - 1]
        first = bisect_right(self._starts, low - 1)
        last = bisect_right(self._starts, high)
        self._starts[first:last] = [low, high]
        self._marks[first:last] = [mark, after]

    def read(self, low: int, high: int) -> list[tuple[int, int, _Mark]]:
        """The runs within low..high (end excluded), clipped to it."""
        runs: list[tuple[int, int, _Mark]] = []
        at = bisect_right(self._starts, low) - 1
        while low < high:
            end = self._starts[at + 1] if at + 1 < len(self._starts) else high
            runs.append((low, min(end, high), self._marks[at]))
            low, at = end, at + 1
        return runs


@dataclass(frozen=True, slots=True)
class _Range:
    """A name resolved: `rows` runs of `bytes` bytes, `pitch` apart, from `low` on in the arena and
    from `inner` on within `root`."""

    name: str
    root: str
    inner: int
    low: int
    bytes: int
    rows: int = 1
    pitch: int = 0

    @property
    def high(self) -> int:
        """The end of the last run."""
        return self.low + (self.rows - 1) * self.pitch + self.bytes

    def runs(self, start: int) -> Iterator[tuple[int, int]]:
        """(low, high) of every run, the first of which begins at `start`."""
        for _ in range(self.rows):
            yield start, start + self.bytes
            start += self.pitch

    def meets(self, other: _Range) -> bool:
        if max(self.low, other.low) >= min(self.high, other.high):
            return False
        theirs = other.runs(other.low)
        there = next(theirs)
        for low, high in self.runs(self.low):
            while there[1] <= low:
                following = next(theirs, None)
                if following is None:
                    return False
                there = following
            if max(low, there[0]) < min(high, there[1]):
                return True
        return False

    def same(self, other: _Range) -> bool:
        """Whether both cover the same bytes of the arena."""
        gaps = (self.rows, self.rows > 1 and self.pitch)
        return (self.low, self.bytes) == (other.low, other.bytes) and gaps == (
            other.rows, other.rows > 1 and other.pitch
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name!r} at bytes {self.low}..{self.high}"


def verify(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    offsets: Mapping[str, int],
    scratch: Sequence[int | None],
    arena_bytes: int,
    keep: Collection[str] = (),
    *,
    alignment: int = 1,
) -> None:
    """Raise PlanError unless the steps, run in the arena, read what they would read unshared.

    `offsets` are arena offsets in bytes per planned name, views included; `scratch` one offset per
    step, None where the step asks for no scratch. Checked: everything lies inside the arena and is
    aligned; views lie within their root where they should; every byte read, and every byte kept to
    the end, is the one last written to it; what a step writes stays clear of what it reads, except
    exact in-place pairs that the step allows, of its other results and of its scratch; a buffer
    written part by part is written once, no part over another.
    """
    ranges = _locate(list(buffers), offsets, arena_bytes, alignment)
    if len(scratch) != len(steps):
        raise PlanError(f"the plan has scratch offsets for {len(scratch)} of {len(steps)} steps")
    ideal: dict[str, _Bytes] = {}
    arena = _Bytes()
    for number, step in enumerate(steps):
        where = f"step {step.name!r} (number {number})"
        reads = [_need(name, ranges, where) for name in step.reads if name in ranges]
        writes = [_need(name, ranges, where) for name in step.writes if name in ranges]
        for item in reads:
            _check_content(item, ideal, arena, steps, where)
        own = _scratch_range(step, scratch[number], arena_bytes, alignment, where)
        _check_apart(step, reads, writes, own, where)
        if own is not None:
            arena.write(own.low, own.high, _Mark(own.name, number, own.low, own.name))
        for item in writes:
            mark = _Mark(item.root, number, item.low - item.inner, item.name)
            inner = ideal.setdefault(item.root, _Bytes())
            for low, high in item.runs(item.inner):
                _check_fresh(item, inner, low, high, steps, where)
                inner.write(low, high, mark)
            for low, high in item.runs(item.low):
                arena.write(low, high, mark)
    for name in keep:
        if name in ranges:
            where = "the end of the run, which keeps it"
            _check_content(_need(name, ranges, where), ideal, arena, steps, where)


def _locate(
    specs: Sequence[BufferSpec], offsets: Mapping[str, int], arena_bytes: int, alignment: int
) -> dict[str, _Range | None]:
    """Where every planned name lies; None for one without an offset, which no step may touch."""
    known = {spec.name: spec for spec in specs}
    ranges: dict[str, _Range | None] = {}
    for spec in specs:
        root, inner = spec, 0
        for _ in specs:
            if root.alias_of is None or root.alias_of not in known:
                break
            inner += root.alias_offset
            root = known[root.alias_of]
        if root.alias_of is not None:
            if root.alias_of in known:
                raise PlanError(f"buffer {spec.name!r} is a view of itself")
            continue
        low, base = offsets.get(spec.name), offsets.get(root.name)
        if low is None or base is None:
            ranges[spec.name] = None
            continue
        placed = _Range(spec.name, root.name, inner, low, spec.bytes, spec.rows, spec.pitch)
        if low != base + inner or placed.high > base + root.bytes:
            raise PlanError(
                f"view {placed} is not byte {inner} onwards of {root.name!r},"
                f" which lies at bytes {base}..{base + root.bytes}"
            )
        _check_inside(placed, arena_bytes, alignment if root is spec else 1)
        ranges[spec.name] = placed
    return ranges


def _check_inside(item: _Range, arena_bytes: int, alignment: int) -> None:
    if item.low < 0 or item.high > arena_bytes:
        raise PlanError(f"{item} leaves the arena of {arena_bytes} bytes")
    if item.low % alignment:
        raise PlanError(f"{item} is not aligned to {alignment} bytes")


def _need(name: str, ranges: Mapping[str, _Range | None], where: str) -> _Range:
    found = ranges[name]
    if found is None:
        raise PlanError(f"{name!r} has no place in the arena but is touched by {where}")
    return found


def _scratch_range(
    step: Step, offset: int | None, arena_bytes: int, alignment: int, where: str
) -> _Range | None:
    if not step.scratch:
        return None
    if offset is None:
        raise PlanError(f"the {step.scratch} bytes of scratch of {where} have no place")
    label = f"scratch of {step.name}"
    own = _Range(label, label, 0, offset, step.scratch)
    _check_inside(own, arena_bytes, alignment)
    return own


def _check_fresh(
    item: _Range, inner: _Bytes, low: int, high: int, steps: Sequence[Step], where: str
) -> None:  # fmt: skip
    """What is written under one name is not written over under another."""
    for start, end, old in inner.read(low, high):
        if old is not _BLANK and old.name != item.name:
            raise PlanError(
                f"{where} writes {item} over bytes {start}..{end} of {item.root!r}, which step"
                f" {steps[old.step].name!r} (number {old.step}) wrote as {old.name!r}"
            )


def _check_content(
    item: _Range,
    ideal: Mapping[str, _Bytes],
    arena: _Bytes,
    steps: Sequence[Step],
    where: str,
) -> None:
    """Every byte of the item carries the mark that the ideal memory has for it."""
    shift = item.low - item.inner
    inner = ideal.get(item.root, _Bytes())
    expected = (x for low, high in item.runs(item.inner) for x in inner.read(low, high))
    for low, high, wanted in expected:
        if wanted is _BLANK:
            raise PlanError(
                f"{item} is read by {where}, but its bytes {low - item.inner}..{high - item.inner}"
                " were never written"
            )
        for start, end, found in arena.read(low + shift, high + shift):
            if found != wanted:
                raise PlanError(
                    f"{item} is read by {where}, but bytes {start}..{end} hold {found.owner!r},"
                    f" written by step {steps[found.step].name!r} (number {found.step}), not what"
                    f" step {steps[wanted.step].name!r} (number {wanted.step}) wrote there"
                )


def _check_apart(
    step: Step,
    reads: Sequence[_Range],
    writes: Sequence[_Range],
    own: _Range | None,
    where: str,
) -> None:
    """Within a step: results against operands and each other, scratch against all."""
    allowed = set(step.inplace)
    for number, new in enumerate(writes):
        for old in reads:
            if new.name == old.name or not new.meets(old):
                continue
            exact = new.same(old)
            if not exact or (new.name, old.name) not in allowed:
                why = "does not allow that" if exact else "may at most share it exactly"
                raise PlanError(f"{where} writes {new} over its operand {old}, and {why}")
        for other in writes[:number]:
            if new.meets(other):
                raise PlanError(f"{where} writes {new} over its other result {other}")
    if own is not None:
        for item in (*reads, *writes):
            if own.meets(item):
                raise PlanError(f"the {own} overlaps {item}, which {where} uses")
