"""Meeting a memory limit with other kernels, where those chosen for speed need too much.

Of a launch at which more is alive than the limit allows, the other kernels for the same ops are
tried, the fastest first: configs with less scratch, then other templates. All other launches stay
as they are. If that does not suffice, the launches are put into the order that is best for the
leanest kernels there are. What cannot be made to fit is refused with the smallest program found,
whose size is a limit that can be met.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from ..graph.ir import Graph
from ..kernels.alternatives import alternatives
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..kernels.select import Names, live_outputs, rebound, shape_of
from ..memory.buffers import Step
from ..memory.limit import Change, least_bound, lowered, refusal
from ..memory.plan import MemoryPlan
from ..options import Options
from ..runtime.program import memory_buffers, memory_step, plan_memory, scratch_bytes

logger = logging.getLogger("tilewright")

Program = tuple[tuple[Launch, ...], MemoryPlan]


def fit(
    graph: Graph, launches: Sequence[Launch], device: Device, options: Options, limit: int
) -> Program:
    """The launches with as few replaced as `limit` bytes of arena ask for, and their plan.

    Raises MemoryLimitError when neither kernels nor the order of execution can meet the limit.
    """
    search = _Search(_Choices(graph, launches, device, options), options)
    smallest: Program | None = None
    for chosen, plan in search.programs(launches, limit):
        if plan.arena_bytes <= limit:
            for launch in chosen:
                if launch.note:
                    logger.info("%s: %s", launch.label, launch.note)
            return chosen, plan
        if smallest is None or plan.arena_bytes < smallest[1].arena_bytes:
            smallest = chosen, plan
    assert smallest is not None
    chosen, plan = smallest
    described = [search.choices.described(chosen[plan.peak_step])]
    raise refusal(plan, limit, described, plan.arena_bytes == search.floor)


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
        ops = [self.graph.ops[k] for k in launch.ops]
        key, names = shape_of(self.graph, ops, live_outputs(self.graph, ops))
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


class _Search:
    """Programs for the same graph, from the fastest to the one with the smallest arena.

    floor: a bound that is proved for all of them, 0 if there is none.
    """

    def __init__(self, choices: _Choices, options: Options) -> None:
        self.choices, self.options = choices, options
        self.floor = 0

    def programs(self, launches: Sequence[Launch], limit: int) -> Iterator[Program]:
        given = _Order(tuple(launches), self.choices, self.options)
        yield from given.programs(limit)
        other = self.reordered(given) if self.options.reorder else None
        if other is not None:
            yield from other.programs(limit)

    def reordered(self, given: _Order) -> _Order | None:
        """The order that suits the leanest kernels; None if it is the given one."""
        lean, complete = zip(*map(self.choices.leanest, given.launches), strict=True)
        plan = plan_memory(self.choices.graph, lean, inplace=self.options.inplace)
        if plan.order_proved and all(complete):
            self.floor = plan.lower_bound_bytes
        launches = tuple(given.launches[k] for k in plan.order)
        return None if launches == given.launches else replace(given, launches=launches)


@dataclass(frozen=True)
class _Order:
    """Launches with their default kernels in an order that stays."""

    launches: tuple[Launch, ...]
    choices: _Choices
    options: Options

    def programs(self, limit: int) -> Iterator[Program]:
        """The program that changes no more than the limit asks for; and the smallest one, which
        does not depend on the limit, so that what it needs can always be met."""
        steps = list(map(self._step, self.launches))
        buffers = memory_buffers(self.choices.graph)
        least = least_bound(steps, buffers, self._ways)
        for bound in dict.fromkeys((max(limit, least), least)):
            yield self._changed(lowered(steps, buffers, self._ways, bound))

    def _changed(self, changes: Mapping[int, Change]) -> Program:
        chosen = list(self.launches)
        for number, change in changes.items():
            old = self.launches[number]
            new = next(islice(self.choices.others(old), change.way, None))
            chosen[number] = _noted(old, new, change.saved)
        return tuple(chosen), plan_memory(
            self.choices.graph,
            chosen,
            reorder=False,
            inplace=self.options.inplace,
            donate=self.options.donate,
        )

    def _ways(self, number: int) -> Iterator[Step]:
        return map(self._step, self.choices.others(self.launches[number]))

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
    return replace(new, note=f"memory limit: {changes} saves {saved} bytes")
