"""Meeting a memory limit with other kernels, where those chosen for speed need too much.

Of a launch at which more is alive than the limit allows, the other kernels for the same ops are
tried, the fastest first: configs with less scratch, then other templates. All other launches stay
as they are. What cannot be made to fit is refused with the smallest program there is, whose size is
then a limit that can be met.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..graph.ir import Graph
from ..kernels.alternatives import alternatives
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..memory.buffers import Step
from ..memory.limit import least_bound, lowered, refusal
from ..memory.plan import MemoryPlan
from ..options import Options
from ..runtime.program import memory_buffers, memory_step, plan_memory, scratch_bytes

logger = logging.getLogger("tilewright")

Program = tuple[tuple[Launch, ...], MemoryPlan]


def fit(
    graph: Graph, launches: Sequence[Launch], device: Device, options: Options, limit: int
) -> Program:
    """The launches with as few replaced as `limit` bytes of arena ask for, and their plan, in the
    order in which they are given.

    Raises MemoryLimitError when no choice of kernels meets the limit.
    """
    found = _Fitting(graph, launches, device, options)
    least = found.least()
    for bound in dict.fromkeys((max(limit, least), least)):
        chosen, plan = found.program(bound)
        if plan.arena_bytes <= limit:
            _report(launches, chosen)
            return chosen, plan
    raise refusal(plan, limit, found.described(plan.peak_step))


class _Fitting:
    """The launches of a program, and lazily what could stand in for each."""

    def __init__(
        self, graph: Graph, launches: Sequence[Launch], device: Device, options: Options
    ) -> None:
        self.graph, self.launches = graph, tuple(launches)
        self.device, self.options = device, options
        self.steps = list(map(self.step, launches))
        self.buffers = memory_buffers(graph)
        self._made: dict[int, list[Launch]] = {}
        self._more: dict[int, Iterator[Launch]] = {}

    def step(self, launch: Launch) -> Step:
        step = memory_step(launch)
        return step if self.options.inplace else replace(step, inplace=())

    def others(self, number: int) -> Iterator[Launch]:
        """Other launches for the same ops, the fastest first. Each is made once."""
        if number not in self._made:
            self._made[number] = []
            self._more[number] = alternatives(
                self.graph, self.launches[number], self.device, self.options.numerics
            )
        made = self._made[number]
        position = 0
        while True:
            if position == len(made):
                launch = next(self._more[number], None)
                if launch is None:
                    return
                made.append(launch)
            yield made[position]
            position += 1

    def ways(self, number: int) -> Iterator[Step]:
        return map(self.step, self.others(number))

    def least(self) -> int:
        """The lowest bound, in bytes."""
        return least_bound(self.steps, self.buffers, self.ways)

    def program(self, bound: int) -> Program:
        """The program whose bound is this, or as near as can be."""
        chosen = list(self.launches)
        for number, change in lowered(self.steps, self.buffers, self.ways, bound).items():
            new = self._made[number][change.way]
            chosen[number] = _noted(self.launches[number], new, change.saved)
        return tuple(chosen), plan_memory(
            self.graph, chosen, reorder=False, inplace=self.options.inplace
        )

    def described(self, number: int) -> list[str]:
        """The kernels that a launch could have, and their scratch."""
        if number < 0:
            return []
        sizes: dict[str, list[int]] = {}
        for x in (self.launches[number], *self.others(number)):
            sizes.setdefault(x.kernel.template, []).append(scratch_bytes(x))
        listed = ", ".join(
            f"{name} {min(found)}" + (f" to {max(found)}" if len(set(found)) > 1 else "")
            for name, found in sizes.items()
        )
        return [f"Kernels that can be used there, with bytes of scratch: {listed}."]


def _noted(old: Launch, new: Launch, saved: int) -> Launch:
    """The new launch with a note of what is other than in the old one."""
    if new.kernel.template == old.kernel.template:
        before = dict(old.kernel.config)
        changes = ", ".join(
            f"{k}={v} instead of {before[k]}" for k, v in new.kernel.config if v != before[k]
        )
    else:
        changes = f"{new.kernel.template} instead of {old.kernel.template}"
    return replace(new, note=f"memory limit: {changes} saves {saved} bytes")


def _report(before: Sequence[Launch], after: Sequence[Launch]) -> None:
    for old, new in zip(before, after, strict=True):
        if old is not new:
            logger.info("%s: %s", new.label, new.note)
