"""The memory plan of a compiled graph: one arena, an offset per buffer, and a proof of both.

Buffers alive at different times share bytes (offsets by live range, see `packer`), and a result
takes the place of an operand that dies with it where the kernel allows that, as Caffe2's memonger
does for whole blobs. Every plan is run through the verifier of `verify` before anybody sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NamedTuple

from ..text import printable
from .buffers import (
    BufferSpec,
    LiveRange,
    Place,
    Step,
    choose_inplace,
    live_ranges,
    resolve,
    round_up,
)
from .order import reorder as lower_order
from .packer import Packing, pack
from .regions import Region, verify_all

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""

_PLACEMENTS, _WORK = 2000, 10**6
"""Placements of the packer's exact search where no capacity has to be met, also times the number of
blocks: below a second, and models as a rule need none of it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a program asks for: the least of an arena in its order, and the sum of all buffers
    and scratch."""

    bound: int
    unshared: int


@dataclass(frozen=True, slots=True)
class Lever:
    """What one decision saved, in bytes: `saved` of the most that is alive in one step, which would
    be `without` if all other decisions stood; `avoided` of all buffers together. Negative where it
    costs."""

    name: str
    without: int
    saved: int
    avoided: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where everything lies. All sizes and offsets are bytes; the arena itself must be aligned.

    `offsets` has every buffer and view that some step touches, and the scratch of each step under
    the name "<step>.scratch" (with "#" and the step number behind it where that name is taken);
    `scratch` has the same per step number, None for steps without. `inplace` holds the (written,
    read) pairs that share their place. `ranges` are the blocks that were packed, scratch included.

    Sizes are rounded up to `alignment` in `arena_bytes`, in `lower_bound_bytes` (no arena for this
    order and these in-place pairs is smaller), in `unshared_bytes` (every buffer and scratch on its
    own) and in `peak`, the (name, bytes) alive in step number `peak_step` (-1 if there are no
    steps), which sum to `alive_bytes`.

    `steps` stand in the order of execution, `order` has the number of each in the order that was
    given, and `given_bound_bytes` is the lower bound of that one. `order_proved` says that no order
    has a lower bound than this; False where nobody knows, or where none was looked for because the
    plan may not reorder (`may_reorder`).

    `alternatives` tell the needs of the same program without a decision that was taken before
    planning, by its name. They are asked when `levers` is.

    `regions` are donated inputs that hold blocks as well, which none of the other fields but
    `steps` and `unshared_bytes` count; `undonated` is the plan without them.
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
    may_reorder: bool = True
    alternatives: Mapping[str, Callable[[], Needs]] = field(
        default_factory=dict, repr=False, compare=False
    )
    regions: tuple[Region, ...] = ()
    undonated: MemoryPlan | None = None

    @property
    def donation_saved_bytes(self) -> int:
        """By how much donated inputs make the arena smaller."""
        return 0 if self.undonated is None else self.undonated.arena_bytes - self.arena_bytes

    @property
    def alive_bytes(self) -> int:
        """The largest sum alive in one step, which anybody can add up. The lower bound may be above
        it, if the packer proved that by search."""
        return sum(size for _, size in self.peak)

    @property
    def gap_bytes(self) -> int:
        """How much smaller an arena might be in this order: nothing if the plan is optimal."""
        return self.arena_bytes - self.lower_bound_bytes

    @property
    def optimal(self) -> bool:
        """True if no packing is smaller, which is proved by the lower bound being met."""
        return self.arena_bytes == self.lower_bound_bytes

    @property
    def given(self) -> tuple[Step, ...]:
        """The steps in the order in which they were given."""
        found = dict(zip(self.order, self.steps, strict=True))
        return tuple(found[number] for number in range(len(found)))

    @property
    def apart_bound_bytes(self) -> int:
        """What the lower bound would be if no result took an operand's place."""
        found = needs(self.given, self.buffers, self.keep, alignment=self.alignment,
                      reorder=self.may_reorder, inplace=False)  # fmt: skip
        return found.bound

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

    def levers(self) -> tuple[Lever, ...]:
        """What every decision saved; sharing and donation, of the arena itself. Donation comes
        last: the others count without it."""
        if self.undonated is not None:
            plain = replace(self.undonated, alternatives=self.alternatives)
            donation = Lever("donation", plain.arena_bytes, self.donation_saved_bytes, 0)
            return (*plain.levers(), donation)
        joined = {member: block.bytes for block in self.ranges for member in block.members[1:]}
        replaced = sum(round_up(size, self.alignment) for size in joined.values())
        found = [
            Lever("sharing", self.unshared_bytes, self.unshared_bytes - self.arena_bytes, 0),
            self._lever("in place", self.apart_bound_bytes, replaced),
            self._lever("reordering", self.given_bound_bytes, 0),
        ]
        for name, without in self.alternatives.items():
            other = without()
            found.append(self._lever(name, other.bound, other.unshared - self.unshared_bytes))
        return tuple(found)

    def _lever(self, name: str, without: int, avoided: int) -> Lever:
        return Lever(name, without, without - self.alive_bytes, avoided)

    def certificate(self) -> str:
        """Totals, the step that sets the bound, what each decision saved, who is alive there."""
        share = 100 * self.arena_bytes / self.unshared_bytes if self.unshared_bytes else 100.0
        how = "optimal" if self.optimal else "above the bound"
        proof = _moment(self.steps, self.peak_step)
        if self.lower_bound_bytes > self.alive_bytes:
            proof = f"proved by search; {self.alive_bytes} B are alive in {proof}"
        packed = "no packing is smaller" if self.optimal else "no smaller packing was found"
        order = "no other order needs less" if self.order_proved else "other orders might need less"
        lines = [
            f"memory plan: {len(self.steps)} steps, {len(self.ranges)} blocks,"
            f" {len(self.inplace)} in place, aligned to {self.alignment}",
            f"  arena     {_size(self.arena_bytes)}   {how}, {share:.1f} % of unshared",
            f"  bound     {_size(self.lower_bound_bytes)}   {proof}",
            f"  gap       {_size(self.gap_bytes)}   {packed}; {order}",
            f"  unshared  {_size(self.unshared_bytes)}",
            f"saved:      {'of the arena':>27}   {'of all buffers':>27}",
            *(
                f"  {x.name:<10}{_size(x.saved)}   {_size(x.avoided) if x.avoided else ''}".rstrip()
                for x in self.levers()
            ),
        ]
        if self.peak:
            lines.append("alive at the bound:")
            lines += [f"  {_size(size)}  {printable(name)}" for name, size in self.peak]
        return "\n".join(lines)

    def blocks(self) -> str:
        """A line per block, by offset: where it lies, when it is alive, who lives there."""
        lines = [f"blocks: {'offset':>14} {'bytes':>14}  {'steps':>11}  buffers"]
        for block in sorted(self.ranges, key=lambda block: (self.offsets[block.name], block.first)):
            who = " = ".join(printable(member) for member in block.members or (block.name,))
            alive, offset = f"{block.first}..{block.last}", self.offsets[block.name]
            lines.append(f"        {offset:>14} {block.bytes:>14}  {alive:>11}  {who}")
        lines += [str(region) for region in self.regions]
        return "\n".join(lines)

    def __str__(self) -> str:
        """The certificate, and all blocks."""
        blocks = [self.blocks()] if self.ranges or self.regions else []
        return "\n".join([self.certificate(), *blocks])

    def as_json(self) -> dict[str, Any]:
        """All of it, as what JSON has forms for."""
        bound = {"step": self.peak_step, "name": "", "alive": []}
        if self.peak_step >= 0:
            bound["name"] = self.steps[self.peak_step].name
            bound["alive"] = [{"name": name, "bytes": size} for name, size in self.peak]
        return {
            "arena_bytes": self.arena_bytes,
            "lower_bound_bytes": self.lower_bound_bytes,
            "gap_bytes": self.gap_bytes,
            "unshared_bytes": self.unshared_bytes,
            "order_proved": self.order_proved,
            "alignment": self.alignment,
            "bound": bound,
            "levers": [asdict(lever) for lever in self.levers()],
            "steps": [step.name for step in self.steps],
            "blocks": [
                {"offset": self.offsets[block.name], **asdict(block)} for block in self.ranges
            ],
            "regions": [region.as_json() for region in self.regions],
        }


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

    def packed(self, alignment: int, capacity: int | None) -> Packing:
        return pack_blocks(self.ranges, alignment, capacity)


def pack_blocks(
    blocks: Sequence[LiveRange], alignment: int = ALIGNMENT, capacity: int | None = None
) -> Packing:
    """With all of the packer's effort if there is a capacity to meet, else with little."""
    ranges = [(block.first, block.last + 1, block.bytes) for block in blocks]
    if capacity is not None:
        return pack(ranges, capacity, alignment=alignment)
    placements = min(_PLACEMENTS, _WORK // max(1, len(ranges)))
    return pack(ranges, alignment=alignment, placements=placements)


def plan(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    *,
    keep: Collection[str] = (),
    alignment: int = ALIGNMENT,
    reorder: bool = True,
    inplace: bool = True,
    capacity: int | None = None,
) -> MemoryPlan:
    """Place the buffers and the scratch of the steps in one arena, verified.

    `keep` names buffers that must survive the last step. `reorder` lets the plan run the steps in
    another order if that lowers the bound, `inplace` lets results take the place of operands. An
    arena of `capacity` bytes will do, so that the packing is searched for there, not at the bound,
    and for up to ten seconds; without one, nobody waits longer than one for the last per cent.
    Raises PlanError if the description is malformed (or, which would be a bug here, the plan is
    wrong).
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
    packing = lives.packed(alignment, capacity)
    if lives is not given and packing.height > given_bound:
        before = given.packed(alignment, capacity)
        if before.height <= packing.height:  # the lower bound does not help if it is not met
            lives, packing, order, proved = given, before, tuple(range(len(steps))), False
    result = _placed(lives, packing, buffers, keep, alignment, order, given_bound, proved, reorder)
    result.check()
    return result


def needs(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    keep: Collection[str] = (),
    *,
    alignment: int = ALIGNMENT,
    reorder: bool = True,
    inplace: bool = True,
) -> Needs:
    """What `plan` would have to place, without placing it."""
    steps, buffers, keep = tuple(steps), tuple(buffers), tuple(keep)
    if reorder:
        bound = lower_order(steps, buffers, keep, alignment=alignment, inplace=inplace).bound
    else:
        bound = _Lives.of(steps, buffers, keep, inplace).bound(alignment)
    apart = _Lives.of(steps, buffers, keep, False)
    unshared = sum(round_up(block.bytes, alignment) for block in apart.ranges)
    return Needs(bound, unshared)


def step_bytes(
    steps: Sequence[Step], buffers: Iterable[BufferSpec], *, alignment: int = ALIGNMENT
) -> list[int]:
    """The bytes alive in each step; the largest is the lower bound of this order."""
    lives = _Lives.of(tuple(steps), tuple(buffers), (), True)
    return _heights(lives.ranges, len(steps), alignment)


def _placed(
    lives: _Lives, packing: Packing, buffers: tuple[BufferSpec, ...], keep: tuple[str, ...],
    alignment: int, order: tuple[int, ...], given_bound: int, proved: bool,
    may_reorder: bool,
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
            round_up(block.bytes, alignment) * len(block.members or (block.name,))
            for block in ranges
        ),
        peak_step=peak_step,
        peak=peak,
        order=order,
        given_bound_bytes=given_bound,
        order_proved=proved,
        may_reorder=may_reorder,
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
        (_tenant(block, born, peak_step), round_up(block.bytes, alignment))
        for block in ranges
        if block.bytes and block.first <= peak_step <= block.last
    ]
    return peak_step, tuple(sorted(peak, key=lambda entry: -entry[1]))


def _heights(ranges: Iterable[LiveRange], steps: int, alignment: int) -> list[int]:
    """Bytes alive in each step."""
    change = [0] * (steps + 1)
    for block in ranges:
        change[block.first] += round_up(block.bytes, alignment)
        change[block.last + 1] -= round_up(block.bytes, alignment)
    return list(accumulate(change[:-1]))


def _tenant(block: LiveRange, born: Mapping[str, int], number: int) -> str:
    """The buffer that lives in the block once step `number` has run."""
    name = block.name
    for member in block.members:
        if born[member] <= number:
            name = member
    return name


def _moment(steps: Sequence[Step], number: int) -> str:
    return f"step {number} '{printable(steps[number].name)}'" if number >= 0 else "no steps"


def _size(size: int) -> str:
    return f"{size:>14} B {size / 2**20:>10.3f} MiB"
