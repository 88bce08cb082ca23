"""Meeting a memory limit: which steps must run another way, and what to say when none will do.

A step may be run in several ways, which read and write the same buffers, but differ in scratch and
in what they allow to be computed in place. Either changes the bytes alive in that step alone, since
live ranges follow from who reads and writes what. So steps are looked at one by one, and the bound
of an order of execution cannot be made lower than the largest, over all steps, of the least bytes
that any way of running the step takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import MemoryLimitError
from ..text import printable
from .buffers import BufferSpec, Step
from .plan import MemoryPlan, step_bytes

Ways = Callable[[int], Iterable[Step]]
"""By the number of a step, the other ways of running it, the preferred one first."""

_SHOWN = 12
"""Buffers that an error message lists."""


def least_bound(steps: Sequence[Step], buffers: Sequence[BufferSpec], ways: Ways) -> int:
    """The lowest bound that this order of execution can have, in bytes.

    Ways are asked for only where the steps that need more leave it open whether they matter.
    """
    alive = step_bytes(steps, buffers)
    bound = 0
    for number in sorted(range(len(steps)), key=lambda n: -alive[n]):
        if alive[number] <= bound:
            break
        bound = max(bound, _best(steps, buffers, number, alive[number], ways, bound)[1])
    return bound


@dataclass(frozen=True, slots=True)
class Change:
    """To run a step in another way, by its position in `ways`, saves so many bytes there."""

    way: int
    saved: int


def lowered(
    steps: Sequence[Step], buffers: Sequence[BufferSpec], ways: Ways, limit: int
) -> dict[int, Change]:
    """The steps to run in another way, by number.

    Only steps with more than `limit` bytes alive are changed: to the first way that meets the
    limit, or, where there is none, to the first of those that take the least.
    """
    found = {}
    for number, size in enumerate(step_bytes(steps, buffers)):
        if size > limit:
            way, least = _best(steps, buffers, number, size, ways, limit)
            if way >= 0:
                found[number] = Change(way, size - least)
    return found


def _best(
    steps: Sequence[Step], buffers: Sequence[BufferSpec], number: int, now: int, ways: Ways,
    limit: int,
) -> tuple[int, int]:  # fmt: skip
    """(position of a way, or -1 for the present one; bytes alive in the step then)."""
    best, least = -1, now
    for position, step in enumerate(ways(number)):
        changed = [*steps[:number], step, *steps[number + 1 :]]
        size = step_bytes(changed, buffers)[number]
        if size < least:
            best, least = position, size
        if size <= limit:
            break
    return best, least


def refusal(
    made: MemoryPlan, limit: int, kernels: Sequence[str], any_order: bool
) -> MemoryLimitError:  # fmt: skip
    """Why `limit` bytes can't be met, from the smallest plan there is.

    kernels: lines on how else the step could run that needs most. any_order: whether it is proved
    that no order of execution has a lower bound, however the steps are run.
    """
    step = f"step {made.peak_step} '{printable(made.steps[made.peak_step].name)}'"
    alive = [f"  {size:>14}  {printable(name)}" for name, size in made.peak[:_SHOWN]]
    if len(made.peak) > _SHOWN:
        rest = sum(size for _, size in made.peak[_SHOWN:])
        alive.append(f"  {rest:>14}  in {len(made.peak) - _SHOWN} smaller ones")
    if not made.optimal:
        proof = f"{made.lower_bound_bytes} bytes would do, but no such packing was found."
    elif made.regions:
        proof = "In other places of donated inputs less might do, but no such plan was found."
    elif made.arena_bytes > made.alive_bytes:
        proof = "These kernels can't be packed tighter; whether others can is not known."
    elif any_order:
        proof = "No order of execution and no choice of kernels takes less."
    else:
        proof = "In this order of execution no choice of kernels takes less."
    lines = [
        f"memory limit of {limit} bytes can't be met: the least is {made.arena_bytes}.",
        f"Most is alive in {step}, in bytes:",
        *alive,
        *kernels,
        proof,
        f"Raise the limit to {made.arena_bytes}, or lower the batch size.",
    ]
    return MemoryLimitError("\n".join(lines), made.arena_bytes)
