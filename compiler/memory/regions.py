"""Memory that the caller gives away: the bytes of an input, once it was read for the last time.

A plan has an arena and may have such regions beside it. Nothing of this knows how blocks were
chosen for a region (`donate.py` does that): it says what lies where, and checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import PlanError
from .buffers import BufferSpec, LiveRange, Step, round_up
from .verify import verify


@dataclass(frozen=True, slots=True)
class Region:
    """The `bytes` bytes of a donated input, and what lies in them when it is not needed any more.

    `buffers` are the input itself and the planned buffers in its memory, views of both included;
    `offsets` says where, in bytes from the input's start. `ranges` are the blocks; the first one is
    the input's, from the start of the run to its last reader (-1 if there is none), and to that of
    the results that were computed in its place.
    """

    name: str
    bytes: int
    buffers: tuple[BufferSpec, ...]
    ranges: tuple[LiveRange, ...]
    offsets: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        blocks = [{"offset": self.offsets[block.name], **asdict(block)} for block in self.ranges]
        return {"name": self.name, "bytes": self.bytes, "blocks": blocks}

    def __str__(self) -> str:
        lines = [f"in the {self.bytes} bytes of the donated input {self.name!r}:"]
        for block in self.ranges:
            who = " = ".join(map(repr, block.members))
            alive, offset = f"{block.first}..{block.last}", self.offsets[block.name]
            lines.append(f"        {offset:>14} {block.bytes:>14}  {alive:>11}  {who}")
        return "\n".join(lines)


def verify_all(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    offsets: Mapping[str, int],
    scratch: Sequence[int | None],
    arena_bytes: int,
    regions: Sequence[Region],
    keep: Collection[str] = (),
    *,
    alignment: int = 1,
) -> None:
    """`verify` for an arena and regions. Raises PlanError.

    They are laid side by side into one space, and the caller becomes a first step, which writes the
    donated inputs. So the verifier sees any step that reads an input after something else was
    written there. What it cannot see is checked here: that nothing reaches beyond its region.
    """
    if not regions:
        verify(steps, buffers, offsets, scratch, arena_bytes, keep, alignment=alignment)
        return
    everything, where = list(buffers), dict(offsets)
    end = round_up(arena_bytes, alignment)
    for region in regions:
        everything += region.buffers
        for spec in region.buffers:
            at = region.offsets.get(spec.name)
            if at is None:
                continue
            if spec.name in where:
                raise PlanError(f"{spec.name!r} lies in two places, one of them {region.name!r}")
            if at < 0 or at + spec.extent > region.bytes:
                raise PlanError(
                    f"{spec.name!r} at bytes {at}..{at + spec.extent} leaves the {region.bytes}"
                    f" bytes of the donated input {region.name!r}"
                )
            where[spec.name] = end + at
        end += round_up(region.bytes, alignment)
    caller = Step("the caller", (), tuple(r.name for r in regions))
    verify(
        (caller, *steps), everything, where, (None, *scratch), end, keep, alignment=alignment
    )  # fmt: skip
