"""The memory plan of a compiled graph: one arena, an offset per buffer, and a proof of both.

Buffers alive at different times share bytes (offsets by live range, see `packer`), and a result
takes the place of an operand that dies with it where the kernel allows that, as Caffe2's memonger
does for whole blobs. Every plan is run through the verifier of `verify` before anybody sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import MemoryLimitError
from .buffers import BufferSpec, LiveRange, Place, Step, choose_inplace, live_ranges, resolve
from .packer import pack
from .regions import Region, verify_all

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

    `regions` are donated inputs that hold blocks as well, which none of the other fields but
    `steps` and `unshared_bytes` count; `donation_saved_bytes` is what the arena is smaller by.
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
    regions: tuple[Region, ...] = ()
    donation_saved_bytes: int = 0

    @property
    def optimal(self) -> bool:
        """True if no packing is smaller, which is proved by the lower bound being met."""
        return self.arena_bytes == self.lower_bound_bytes

    def check(self) -> None:
        """Verify the plan again, independently of how it was made; raises PlanError."""
        verify_all(
            self.steps,
            self.buffers,
            self.offsets,
            self.scratch,
            self.arena_bytes,
            self.regions,
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
        lines += [str(region) for region in self.regions]
        return "\n".join(lines)


def plan(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    limit: int | None = None,
    *,
    keep: Collection[str] = (),
    alignment: int = ALIGNMENT,
) -> MemoryPlan:
    """Place the buffers and the scratch of the steps in one arena, verified.

    `limit` is the largest arena in bytes that will do, `keep` names buffers that must survive the
    last step. Raises MemoryLimitError if the arena would be larger than the limit, and PlanError if
    the description is malformed (or, which would be a bug here, the plan is wrong).
    """
    steps, buffers, keep = tuple(steps), tuple(buffers), tuple(keep)
    pairs = choose_inplace(steps, buffers, keep)
    blocks = live_ranges(steps, buffers, keep, pairs)
    places = resolve(buffers)
    numbers = [number for number, step in enumerate(steps) if step.scratch]
    labels = _scratch_labels(steps, numbers, {spec.name for spec in buffers})
    private = [
        LiveRange(label, number, number, steps[number].scratch)
        for label, number in zip(labels, numbers, strict=True)
    ]
    ranges = (*blocks, *private)
    packing = pack([(r.first, r.last + 1, r.bytes) for r in ranges], alignment=alignment)

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
    offsets.update((label, base[label]) for label in labels)
    by_number = dict(zip(numbers, labels, strict=True))
    peak_step, peak = _peak(steps, ranges, places, alignment)
    result = MemoryPlan(
        steps=steps,
        buffers=buffers,
        keep=keep,
        alignment=alignment,
        offsets=MappingProxyType(offsets),
        scratch=tuple(
            base[by_number[number]] if number in by_number else None for number in range(len(steps))
        ),
        inplace=pairs,
        ranges=ranges,
        arena_bytes=packing.height,
        lower_bound_bytes=packing.lower_bound,
        unshared_bytes=sum(
            _round(block.bytes, alignment) * len(block.members or (block.name,)) for block in ranges
        ),
        peak_step=peak_step,
        peak=peak,
    )
    result.check()
    if limit is not None and result.arena_bytes > limit:
        raise MemoryLimitError(_over_limit(result, limit))
    return result


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
    change = [0] * (len(steps) + 1)
    for block in ranges:
        change[block.first] += _round(block.bytes, alignment)
        change[block.last + 1] -= _round(block.bytes, alignment)
    alive, most, peak_step = 0, -1, -1
    for number in range(len(steps)):
        alive += change[number]
        if alive > most:
            most, peak_step = alive, number
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
