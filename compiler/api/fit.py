"""Meeting a memory limit with other kernels, where those chosen for speed need too much.

Of a launch at which more is alive than the limit allows, the other kernels for the same ops are
tried, the fastest first: configs with less scratch, then other templates. All other launches stay
as they are. If packing is all that fails, it is tried again with the limit as its aim. If that is
not enough, the launches are put into the order that is best for the leanest kernels there are. What
cannot be made to fit is refused with the smallest program found, whose size is a limit that can be
met.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from ..graph.ir import Graph
from ..inspect.alternatives import alternatives as without_decisions
from ..kernels.alternatives import alternatives
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..kernels.select import Names, group_of, rebound
from ..memory.buffers import BufferSpec, Step
from ..memory.limit import least_bound, lowered, refusal
from ..memory.plan import MemoryPlan
from ..options import Options
from ..runtime.program import memory_step, plan_memory, scratch_bytes
from ..text import printable

logger = logging.getLogger("tilewright")

Program = tuple[tuple[Launch, ...], MemoryPlan]
Planner = Callable[[Sequence[Launch], bool, int | None], MemoryPlan]
"""The plan for launches; whether they may be put into another order; bytes of arena that will do,
None for as few as can be."""


def with_memory(
    graph: Graph, launches: Sequence[Launch], device: Device, options: Options
) -> Program:  # fmt: skip
    """The launches in the order of their plan, and the plan. Where a memory limit asks for it,
    other kernels take the place of some. Raises MemoryLimitError."""

    def planned(
        launches: Sequence[Launch], reorder: bool, capacity: int | None = None
    ) -> MemoryPlan:  # fmt: skip
        return plan_memory(graph, launches, reorder=reorder, inplace=options.inplace,
                           donate=options.donate, capacity=capacity)  # fmt: skip

    plan, limit = planned(launches, options.reorder), options.memory_limit
    ordered = tuple(launches[k] for k in plan.order)
    if limit is not None and plan.arena_bytes > limit:
        ordered, plan = fit(graph, ordered, plan, planned, device, options, limit)
    return ordered, replace(plan, alternatives=without_decisions(graph, ordered, options))


def fit(
    graph: Graph, launches: Sequence[Launch], plan: MemoryPlan, planner: Planner, device: Device,
    options: Options, limit: int,
) -> Program:  # fmt: skip
    """The launches with as few replaced as `limit` bytes of arena ask for, and their plan.

    launches: the fastest kernels in the order of `plan`, which is too large. Raises
    MemoryLimitError when neither kernels nor the order of execution can meet the limit.
    """
    search = _Search(_Choices(graph, launches, device, options), plan.buffers, planner, options)
    smallest: Program | None = None
    for chosen, made in search.programs(tuple(launches), limit):
        if made.arena_bytes <= limit:
            for launch in chosen:
                if launch.note:
                    logger.info("%s: %s", printable(launch.label), launch.note)
            return chosen, made
        if smallest is None or made.arena_bytes < smallest[1].arena_bytes:
            smallest = chosen, made
    assert smallest is not None
    chosen, made = smallest
    described = [search.choices.described(chosen[made.peak_step])]
    raise refusal(made, limit, described, made.arena_bytes == search.floor)


class _Choices:
    """The kernels that there are for every launch, made as they are asked for."""

    def __init__(
        self, graph: Graph, launches: Sequence[Launch], device: Device, options: Options
    ) -> None:
        self.graph, self.device, self.numerics = graph, device, options.numerics
        self.defaults = {x.ops: x for x in launches}
        self._made: dict[object, tuple[Names, list[Launch], Iterator[Launch]]] = {}

    def others(self, launch: Launch) -> Iterator[Launch]:
        """Launches other than the default one for the same ops, the fastest first. Equal groups
        share kernels."""
        group = group_of(self.graph, launch)
        key, names = group.shape, group.names
        if key not in self._made:
            default = self.defaults[launch.ops]
            more = alternatives(self.graph, default, self.device, self.numerics)
            self._made[key] = names, [], more
        own, made, more = self._made[key]
        for position in count():
            if position == len(made):
                made += islice(more, 1)
            if position == len(made):
                return
            found = rebound(made[position], own, names)
            yield replace(found, ops=launch.ops, label=launch.label)

    def leanest(self, launch: Launch) -> tuple[Launch, bool]:
        """The launch with the least scratch, and whether none allows to share what it does not."""
        every = [self.defaults[launch.ops], *self.others(launch)]
        best = min(every, key=lambda x: (scratch_bytes(x), -len(_shared(x))))
        return best, all(_shared(x) <= _shared(best) for x in every)

    def described(self, launch: Launch) -> str:
        """What a launch computes and could run as."""
        sizes: dict[str, list[int]] = {}
        for x in (self.defaults[launch.ops], *self.others(launch)):
            sizes.setdefault(x.kernel.template, []).append(scratch_bytes(x))
        listed = ", ".join(
            f"{name} {min(found)}" + (f" to {max(found)}" if len(set(found)) > 1 else "")
            for name, found in sizes.items()
        )
        ops = " + ".join(self.graph.ops[k].operator for k in launch.ops)
        return f"It computes {ops}. Kernels for that and the bytes of their scratch: {listed}."


def _shared(launch: Launch) -> frozenset[tuple[object, object]]:
    """The (written, read) blobs that a launch allows to share memory."""
    return frozenset((launch.args[y], launch.args[x]) for y, x in launch.kernel.inplace)


@dataclass
class _Search:
    """Programs for the same graph, from the fastest to the one with the smallest arena.

    floor: a bound that is proved for all of them, 0 if there is none.
    """

    choices: _Choices
    buffers: Sequence[BufferSpec]
    planner: Planner
    options: Options
    floor: int = 0

    def programs(self, launches: tuple[Launch, ...], limit: int) -> Iterator[Program]:
        yield from self.in_order(launches, limit)
        other = self.reordered(launches) if self.options.reorder else launches
        if other != launches:
            yield from self.in_order(other, limit)

    def reordered(self, launches: tuple[Launch, ...]) -> tuple[Launch, ...]:
        """The launches in the order that suits the leanest kernels."""
        lean, complete = zip(*map(self.choices.leanest, launches), strict=True)
        plan = self.planner(lean, True, None)
        if plan.order_proved and all(complete) and not plan.regions:
            self.floor = plan.alive_bytes
        return tuple(launches[k] for k in plan.order)

    def in_order(self, launches: tuple[Launch, ...], limit: int) -> Iterator[Program]:
        """The program that changes no more than the limit asks for; and the smallest one, which
        does not depend on the limit, so that what it needs can always be met."""
        steps = list(map(self._step, launches))

        def ways(number: int) -> Iterator[Step]:
            return map(self._step, self.choices.others(launches[number]))

        least = least_bound(steps, self.buffers, ways)
        for bound in dict.fromkeys((max(limit, least), least)):
            chosen = list(launches)
            for number, change in lowered(steps, self.buffers, ways, bound).items():
                new = next(islice(self.choices.others(launches[number]), change.way, None))
                chosen[number] = _noted(launches[number], new, change.saved)
            plan = self.planner(chosen, False, None)
            yield tuple(chosen), plan
            if plan.lower_bound_bytes <= limit < plan.arena_bytes:
                yield tuple(chosen), self.planner(chosen, False, limit)

    def _step(self, launch: Launch) -> Step:
        step = memory_step(launch)
        return step if self.options.inplace else replace(step, inplace=())


def _noted(old: Launch, new: Launch, saved: int) -> Launch:
    """The new launch with a note of what is other than in the old one."""
    if new.kernel.template == old.kernel.template:
        before = dict(old.kernel.config)
        changes = ", ".join(
            f"{k}={v} instead of {before[k]}" for k, v in new.kernel.config if v != before[k]
        )
    else:
        changes = f"{new.kernel.template} instead of {old.kernel.template}"
    return replace(new, note=f"memory limit: {changes} saves {saved} bytes", origin="")
