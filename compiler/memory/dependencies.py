"""Which steps must stay in front of which: the partial order that any order of execution respects.

Two steps may change places unless one writes bytes that the other reads or writes. Bytes are looked
at through views down to what holds them in the end, planned or external, so that parts of one
buffer may be written in any order, and a read of one part waits for that part alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .buffers import BufferSpec, Step

_ENDLESS = 1 << 62
"""Bytes of an external buffer, whose size nobody told."""


@dataclass(frozen=True, slots=True)
class _Region:
    """`rows` stretches of `bytes` bytes, `pitch` apart, from `offset` on in `root`."""

    root: str
    offset: int
    bytes: int
    rows: int
    pitch: int

    def meets(self, other: _Region) -> bool:
        """Whether the two may have a byte in common. True where telling would take a search, and
        for what has no bytes: it is not read before its root is there either."""
        if not self.bytes or not other.bytes:
            return True
        first, second = (self, other) if self.offset <= other.offset else (other, self)
        apart = second.offset - first.offset
        if apart >= (first.rows - 1) * first.pitch + first.bytes:
            return False
        if first.rows > 1 and (first.rows, first.pitch) == (second.rows, second.pitch):
            within = apart % first.pitch
            return within < first.bytes or within + second.bytes > first.pitch
        return True


def predecessors(steps: Sequence[Step], buffers: Iterable[BufferSpec]) -> list[int]:
    """Per step, as a bit mask, the steps of the given order that must have run before it.

    Not all of them: what a predecessor waits for may be missing. The description must be one that
    `buffers.resolve` accepts.
    """
    specs = {spec.name: spec for spec in buffers}
    regions: dict[str, _Region] = {}
    written: dict[str, list[tuple[int, _Region]]] = {}
    read: dict[str, list[tuple[int, _Region]]] = {}
    found = [0] * len(steps)
    roots = {_region(name, specs, regions).root for step in steps for name in step.writes}
    for number, step in enumerate(steps):
        before = 0
        for name in dict.fromkeys(step.reads):
            region = _region(name, specs, regions)
            if region.root in roots:
                before |= _met(region, written.get(region.root, ()))
                read.setdefault(region.root, []).append((number, region))
        for name in dict.fromkeys(step.writes):
            region = _region(name, specs, regions)
            before |= _met(region, written.get(region.root, ()))
            before |= _met(region, read.get(region.root, ()))
            written.setdefault(region.root, []).append((number, region))
        found[number] = before & ~(1 << number)
    return found


def _met(region: _Region, earlier: Iterable[tuple[int, _Region]]) -> int:
    mask = 0
    for number, other in earlier:
        if not mask >> number & 1 and region.meets(other):
            mask |= 1 << number
    return mask


def _region(name: str, specs: Mapping[str, BufferSpec], known: dict[str, _Region]) -> _Region:
    if name not in known:
        spec = specs.get(name)
        if spec is None:
            known[name] = _Region(name, 0, _ENDLESS, 1, 0)
        else:
            root, offset = name, 0
            while (at := specs.get(root)) is not None and at.alias_of is not None:
                root, offset = at.alias_of, offset + at.alias_offset
            known[name] = _Region(root, offset, spec.bytes, spec.rows, spec.pitch)
    return known[name]
