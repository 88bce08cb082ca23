"""What the memory planner is told: kernel launches, the buffers they touch, and who may share.

The description is neutral: it knows steps and byte counts, not graphs or kernels. A buffer that is
not listed (a graph input, a constant, an output array of the caller) is external: names that are
not planned are ignored wherever they occur, and so are views of them.

Time is the index of a step in execution order. A buffer is alive from the first step that touches
it to the last one, both included, or to the end of the run if it is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import PlanError


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel launch.

    `scratch` is private memory of this launch in bytes, undefined before and after. `inplace` holds
    (written, read) names of buffers that the kernel allows to be the same memory, byte for byte, if
    what was read is not needed afterwards.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scratch: int = 0
    inplace: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """A buffer to place, or a view: `bytes` bytes at `alias_offset` within `alias_of`.

    A view may have gaps: `rows` stretches of `bytes` bytes each, `pitch` bytes from one to the
    next. Steps may write a buffer part by part, through views that do not overlap.
    """

    name: str
    bytes: int
    alias_of: str | None = None
    alias_offset: int = 0
    rows: int = 1
    pitch: int = 0

    @property
    def extent(self) -> int:
        """Bytes from the first one to the last, gaps included."""
        return (self.rows - 1) * self.pitch + self.bytes


@dataclass(frozen=True, slots=True)
class LiveRange:
    """One block of memory, alive at steps `first` to `last`, both included.

    `members` are the buffers that live in it one after another, each computed in place of the one
    before; the block is named after the oldest. Views are not listed: they follow their root.
    """

    name: str
    first: int
    last: int
    bytes: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a name are: `bytes` bytes at `offset` within the planned buffer `root`, in
    each of `rows` stretches."""

    root: str
    offset: int
    bytes: int
    rows: int = 1


def round_up(size: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `size`."""
    return -(-size // alignment) * alignment


def resolve(buffers: Iterable[BufferSpec]) -> dict[str, Place]:
    """Map every planned name, through views of views, to its place in a root; skip external ones.

    Raises PlanError for a duplicate name, a negative size or offset, rows that overlap or that a
    buffer of its own has, a cycle of views, and a view that reaches past the end of what it looks
    into.
    """
    specs: dict[str, BufferSpec] = {}
    for spec in buffers:
        if spec.name in specs:
            raise PlanError(f"buffer {spec.name!r} is listed twice; each needs a name of its own")
        if spec.bytes < 0 or spec.alias_offset < 0:
            raise PlanError(
                f"buffer {spec.name!r} has {spec.bytes} bytes at view offset {spec.alias_offset};"
                " neither may be negative"
            )
        if spec.rows != 1 and (spec.alias_of is None or spec.rows < 1 or spec.pitch < spec.bytes):
            raise PlanError(
                f"buffer {spec.name!r} has {spec.rows} rows of {spec.bytes} bytes, {spec.pitch}"
                " apart; only views have rows, and they must not overlap"
            )
        specs[spec.name] = spec
    places: dict[str, Place] = {}
    for spec in specs.values():
        place = _follow(spec, specs)
        if place is not None:
            places[spec.name] = place
    return places


def _follow(spec: BufferSpec, specs: dict[str, BufferSpec]) -> Place | None:
    offset, at, seen = 0, spec, {spec.name}
    while at.alias_of is not None:
        target = specs.get(at.alias_of)
        if target is None:
            return None
        if target.name in seen:
            raise PlanError(f"buffer {spec.name!r} is a view of itself, through {target.name!r}")
        gaps = target.rows != 1
        if gaps and (at.rows, at.pitch) != (target.rows, target.pitch):
            raise PlanError(f"view {at.name!r} does not have the rows of {target.name!r}")
        end = at.alias_offset + (at.bytes if gaps else at.extent)
        if end > target.bytes:
            raise PlanError(
                f"view {at.name!r} covers bytes {at.alias_offset}..{end}"
                f" of {target.name!r}, which has only {target.bytes}"
            )
        seen.add(target.name)
        offset, at = offset + at.alias_offset, target
    return Place(at.name, offset, spec.bytes, spec.rows)


def live_ranges(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    keep: Collection[str] = (),
    inplace: Sequence[tuple[str, str]] | None = None,
) -> tuple[LiveRange, ...]:
    """The blocks of memory that the steps need, in order of their first step.

    Views count as uses of their root. `inplace` lists the (written, read) pairs to join into one
    block, as `choose_inplace` returns them; by default it is asked, `()` joins nothing. `keep`
    names buffers whose content must survive the last step. Scratch is not included; nor are buffers
    that no step touches. Raises PlanError for a malformed description and for a read of a buffer
    never written.
    """
    listed = tuple(buffers)
    places = resolve(listed)
    spans = _spans(steps, places, keep)
    if inplace is None:
        inplace = choose_inplace(steps, listed, keep)
    chains = {root: [root] for root in spans}
    for written, read in inplace:
        chain = chains[places[read].root]
        chain.append(places[written].root)
        chains[places[written].root] = chain
    sizes = {place.root: places[place.root].bytes for place in places.values()}
    blocks = [
        LiveRange(
            root,
            min(spans[member][0] for member in chains[root]),
            max(spans[member][1] for member in chains[root]),
            sizes[root],
            tuple(chains[root]),
        )
        for root in spans
        if chains[root][0] == root
    ]
    return tuple(sorted(blocks, key=lambda block: block.first))


def choose_inplace(
    steps: Sequence[Step], buffers: Iterable[BufferSpec], keep: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """The (written, read) pairs to compute in place: each first legal one in execution order.

    A pair is legal when both are planned, both cover their whole root and have equal bytes, the
    read root dies and the written root is born at this step, neither is taken by another pair of
    the step, and the step touches neither of them under any other name. Joining such a pair can
    only lower the sum of live bytes at each step, so taking all of them never raises the bound.
    """
    places = resolve(buffers)
    spans = _spans(steps, places, keep)
    kept = {places[name].root for name in keep if name in places}
    chosen: list[tuple[str, str]] = []
    for index, step in enumerate(steps):
        taken: set[str] = set()
        for written, read in shareable(step, index, places):
            new, old = places[written].root, places[read].root
            dies = spans[old][1] == index and old not in kept
            born = spans[new][0] == index
            if dies and born and not {new, old} & taken:
                taken |= {new, old}
                chosen.append((written, read))
    return tuple(chosen)


def shareable(
    step: Step, number: int, places: Mapping[str, Place]
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """The pairs of a step that its kernel and their sizes allow to share memory, whatever runs
    before and after. Raises PlanError for a pair that the step does not write and read."""
    names = set(step.reads) | set(step.writes)
    for written, read in step.inplace:
        if written not in step.writes or read not in step.reads:
            raise PlanError(
                f"step {step.name!r} (number {number}) allows {written!r} in place of {read!r},"
                " but does not write the one and read the other"
            )
        new, old = places.get(written), places.get(read)
        if new is None or old is None or new.root == old.root:
            continue
        whole = new.bytes == old.bytes == places[new.root].bytes == places[old.root].bytes
        if not (whole and new.rows == old.rows == 1 and new.bytes):
            continue
        others = (places.get(name) for name in names - {written, read})
        if not any(other and other.root in (new.root, old.root) for other in others):
            yield written, read


def _spans(
    steps: Sequence[Step], places: dict[str, Place], keep: Collection[str]
) -> dict[str, tuple[int, int]]:
    """First and last step that touches each root."""
    spans: dict[str, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        if step.scratch < 0:
            raise PlanError(f"step {step.name!r} (number {index}) asks for {step.scratch} bytes")
        for name in step.reads:
            place = places.get(name)
            if place is None:
                continue
            if place.root not in spans:
                raise PlanError(
                    f"step {step.name!r} (number {index}) reads {name!r},"
                    " which no earlier step writes"
                )
            spans[place.root] = (spans[place.root][0], index)
        for name in step.writes:
            place = places.get(name)
            if place is not None:
                spans[place.root] = (spans.get(place.root, (index, index))[0], index)
    for name in keep:
        place = places.get(name)
        if place is None:
            continue
        if place.root not in spans:
            raise PlanError(f"buffer {name!r} is to be kept, but no step writes it")
        spans[place.root] = (spans[place.root][0], len(steps) - 1)
    return spans
