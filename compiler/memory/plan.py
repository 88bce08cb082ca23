"""The memory plan of a compiled graph: one arena, an offset per buffer, and a proof of both.

Buffers alive at different times share bytes (offsets by live range, see `packer`), and a result
takes the place of an operand that dies with it where the kernel allows that, as Caffe2's memonger
does for whole blobs. Every plan is run through the verifier of `verify` before anybody sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

from ..errors import MemoryLimitError
from .buffers import BufferSpec, LiveRange, Place, Step, choose_inplace, live_ranges, resolve
from .order import reorder as lower_order
from .packer import Packing, pack
from .verify import verify

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""

_SHOWN = 12
"""Buffers that an error message lists."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where everything lies. All sizes and offsets are bytes; the arena itself must be aligned.

    `offsets` has every buffer and view that some step touches, and the scratch of each step under
    the name "<step>.scratch" (with "#" and the step number behind it where that name is taken);
    `scratch` has the same per step number, None for steps without. `inplace` holds the (written,
    read) pairs that share their place. `ranges` are the blocks that were packed, scratch included.

    Sizes are rounded up to `alignment` in `arena_bytes`, in `lower_bound_bytes` (the largest sum
    alive in one step: no arena for this order and these in-place pairs is smaller), in
    `unshared_bytes` (every buffer and scratch on its own) and in `peak`, the (name, bytes) alive in
    step number `peak_step` (-1 if there are no steps), which sum to the lower bound.

    `steps` stand in the order of execution, `order` has the number of each in the order that was
    given, and `given_bound_bytes` is the lower bound of that one. `order_proved` says that no order
    has a lower bound than this; False where nobody knows, or where none was looked for.
    """

    steps: tuple[Step, ...]
    buffers: tuple[BufferSpec, ...]
    keep: tuple[str, ...]
    alignment: int
    offsets: Mapping[str, int]
    scratch: tuple[int | None, ...]
    inplace: tuple[tuple[str, str], ...]
    ranges: tuple[LiveRange, ...]
    arena_bytes: int
    lower_bound_bytes: int
    unshared_bytes: int
    peak_step: int
    peak: tuple[tuple[str, int], ...]
    order: tuple[int, ...]
    given_bound_bytes: int
    order_proved: bool

    @property
    def optimal(self) -> bool:
        """True if no packing is smaller, which is proved by the lower bound being met."""
        return self.arena_bytes == self.lower_bound_bytes

    @property
    def apart_bound_bytes(self) -> int:
        """What the lower bound of this order would be if no result took an operand's place."""
        return _Lives.of(self.steps, self.buffers, self.keep, False).bound(self.alignment)

    def check(self) -> None:
        """Verify the plan again, independently of how it was made; raises PlanError."""
        verify(
            self.steps,
            self.buffers,
            self.offsets,
            self.scratch,
            self.arena_bytes,
            self.keep,
            alignment=self.alignment,
        )

    def __str__(self) -> str:
        """A certificate: totals, the step that sets the bound, then every block by offset."""
        how = "optimal" if self.optimal else "above the bound"
        share = 100 * self.arena_bytes / self.unshared_bytes if self.unshared_bytes else 100.0
        lines = [
            f"memory plan: {len(self.steps)} steps, {len(self.ranges)} blocks,"
            f" {len(self.inplace)} in place, aligned to {self.alignment}",
            f"  arena     {_size(self.arena_bytes)}   {how}, {share:.1f} % of unshared",
            f"  bound     {_size(self.lower_bound_bytes)}   {_moment(self.steps, self.peak_step)}",
            f"  unshared  {_size(self.unshared_bytes)}",
        ]
        if self.peak:
            lines.append("alive at the bound:")
            lines += [f"  {_size(size)}  {_plain(name)}" for name, size in self.peak]
        if self.ranges:
            lines.append(f"blocks: {'offset':>14} {'bytes':>14}  {'steps':>11}  buffers")
        for block in sorted(self.ranges, key=lambda block: (self.offsets[block.name], block.first)):
            who = " = ".join(_plain(member) for member in block.members or (block.name,))
            alive, offset = f"{block.first}..{block.last}", self.offsets[block.name]
            lines.append(f"        {offset:>14} {block.bytes:>14}  {alive:>11}  {who}")
        return "\n".join(lines)


class _Lives(NamedTuple):
    """What has to be packed for the steps in one order: blocks of buffers, and private scratch."""

    steps: tuple[Step, ...]
    pairs: tuple[tuple[str, str], ...]
    blocks: tuple[LiveRange, ...]
    private: tuple[LiveRange, ...]

    @classmethod
    def of(
        cls, steps: tuple[Step, ...], buffers: tuple[BufferSpec, ...], keep: tuple[str, ...],
        inplace: bool,
    ) -> _Lives:  # fmt: skip
        pairs = choose_inplace(steps, buffers, keep) if inplace else ()
        blocks = live_ranges(steps, buffers, keep, pairs)
        numbers = [number for number, step in enumerate(steps) if step.scratch]
        labels = _scratch_labels(steps, numbers, {spec.name for spec in buffers})
        return cls(steps, pairs, blocks, tuple(
            LiveRange(label, number, number, steps[number].scratch)
            for label, number in zip(labels, numbers, strict=True)
        ))  # fmt: skip

    @property
    def ranges(self) -> tuple[LiveRange, ...]:
        return (*self.blocks, *self.private)

    def bound(self, alignment: int) -> int:
        return max(_heights(self.ranges, len(self.steps), alignment), default=0)

    def packed(self, alignment: int) -> Packing:
        return pack([(r.first, r.last + 1, r.bytes) for r in self.ranges], alignment=alignment)


def plan(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    limit: int | None = None,
    *,
    keep: Collection[str] = (),
    alignment: int = ALIGNMENT,
    reorder: bool = True,
    inplace: bool = True,
) -> MemoryPlan:
    """Place the buffers and the scratch of the steps in one arena, verified.

    `limit` is the largest arena in bytes that will do, `keep` names buffers that must survive the
    last step. `reorder` lets the plan run the steps in another order if that lowers the bound,
    `inplace` lets results take the place of operands. Raises MemoryLimitError if the arena would be
    larger than the limit, and PlanError if the description is malformed (or, which would be a bug
    here, the plan is wrong).
    """
    steps, buffers, keep = tuple(steps), tuple(buffers), tuple(keep)
    lives = given = _Lives.of(steps, buffers, keep, inplace)
    given_bound = given.bound(alignment)
    order, proved = tuple(range(len(steps))), False
    if reorder:
        found = lower_order(steps, buffers, keep, alignment=alignment, inplace=inplace)
        if found.order != order:
            other = tuple(steps[number] for number in found.order)
            lives = _Lives.of(other, buffers, keep, inplace)
        order, proved = found.order, found.proved
    packing = lives.packed(alignment)
    if lives is not given and packing.height > given_bound:
        before = given.packed(alignment)
        if before.height <= packing.height:  # the lower bound does not help if it is not met
            lives, packing, order, proved = given, before, tuple(range(len(steps))), False
    result = _placed(lives, packing, buffers, keep, alignment, order, given_bound, proved)
    result.check()
    if limit is not None and result.arena_bytes > limit:
        raise MemoryLimitError(_over_limit(result, limit))
    return result


def _placed(
    lives: _Lives, packing: Packing, buffers: tuple[BufferSpec, ...], keep: tuple[str, ...],
    alignment: int, order: tuple[int, ...], given_bound: int, proved: bool,
) -> MemoryPlan:  # fmt: skip
    """The plan of one packing."""
    steps, ranges, places = lives.steps, lives.ranges, resolve(buffers)
    base = {
        member: offset
        for block, offset in zip(ranges, packing.offsets, strict=True)
        for member in block.members or (block.name,)
    }
    offsets = {
        name: base[place.root] + place.offset
        for name, place in places.items()
        if place.root in base
    }
    scratch: list[int | None] = [None] * len(steps)
    for own in lives.private:
        offsets[own.name] = scratch[own.first] = base[own.name]
    peak_step, peak = _peak(steps, ranges, places, alignment)
    return MemoryPlan(
        steps=steps,
        buffers=buffers,
        keep=keep,
        alignment=alignment,
        offsets=MappingProxyType(offsets),
        scratch=tuple(scratch),
        inplace=lives.pairs,
        ranges=ranges,
        arena_bytes=packing.height,
        lower_bound_bytes=packing.lower_bound,
        unshared_bytes=sum(
            _round(block.bytes, alignment) * len(block.members or (block.name,)) for block in ranges
        ),
        peak_step=peak_step,
        peak=peak,
        order=order,
        given_bound_bytes=given_bound,
        order_proved=proved,
    )


def _scratch_labels(steps: Sequence[Step], numbers: Sequence[int], taken: set[str]) -> list[str]:
    labels: list[str] = []
    for number in numbers:
        label = f"{steps[number].name}.scratch"
        while label in taken:
            label = f"{label}#{number}"
        taken.add(label)
        labels.append(label)
    return labels


def _peak(
    steps: Sequence[Step],
    ranges: Sequence[LiveRange],
    places: Mapping[str, Place],
    alignment: int,
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """The first step with the most bytes alive, and what is alive in it, largest first."""
    heights = _heights(ranges, len(steps), alignment)
    peak_step = heights.index(max(heights)) if heights else -1
    born: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name in step.writes:
            if name in places:
                born.setdefault(places[name].root, number)
    peak = [
        (_tenant(block, born, peak_step), _round(block.bytes, alignment))
        for block in ranges
        if block.bytes and block.first <= peak_step <= block.last
    ]
    return peak_step, tuple(sorted(peak, key=lambda entry: -entry[1]))


def _heights(ranges: Iterable[LiveRange], steps: int, alignment: int) -> list[int]:
    """Bytes alive in each step."""
    change = [0] * (steps + 1)
    for block in ranges:
        change[block.first] += _round(block.bytes, alignment)
        change[block.last + 1] -= _round(block.bytes, alignment)
    return list(accumulate(change[:-1]))


def _tenant(block: LiveRange, born: Mapping[str, int], number: int) -> str:
    """The buffer that lives in the block once step `number` has run."""
    name = block.name
    for member in block.members:
        if born[member] <= number:
            name = member
    return name


def _over_limit(result: MemoryPlan, limit: int) -> str:
    moment, excess = _moment(result.steps, result.peak_step), result.lower_bound_bytes - limit
    if excess > 0:
        why = f"By itself {moment} needs {excess} bytes more than the limit"
    else:
        why = f"No packing that small was found, though {moment}, which needs most, would fit"
    alive = [f"  {size:>14}  {_plain(name)}" for name, size in result.peak[:_SHOWN]]
    if len(result.peak) > _SHOWN:
        rest = sum(size for _, size in result.peak[_SHOWN:])
        alive.append(f"  {rest:>14}  in {len(result.peak) - _SHOWN} smaller ones")
    return "\n".join(
        [
            f"memory limit of {limit} bytes can't be met: the arena takes {result.arena_bytes}"
            f" bytes, the lower bound for this order of execution is {result.lower_bound_bytes}.",
            f"{why}. Alive there, in bytes:",
            *alive,
            f"Raise the limit to {result.arena_bytes}, or lower the batch size.",
        ]
    )


def _moment(steps: Sequence[Step], number: int) -> str:
    return f"step {number} '{_plain(steps[number].name)}'" if number >= 0 else "no steps"


def _size(size: int) -> str:
    return f"{size:>14} B {size / 2**20:>10.3f} MiB"


def _plain(name: str) -> str:
    """Names come from models: nothing in them may break a line or steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _round(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
