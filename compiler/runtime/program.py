"""A program: launches bound to memory and native code, ready to run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy import empty, ndarray

from ..errors import InputError, MemoryLimitError
from ..graph.arrays import ALIGNMENT
from ..graph.ir import Graph
from ..graph.storage import aliases
from ..kernels.ir import Launch
from ..memory.buffers import BufferSpec, Step, round_up
from ..memory.donate import plan_donated
from ..memory.plan import MemoryPlan
from .arrays import (
    Stretches,
    TensorSpec,
    aligned_copy,
    as_array,
    bounds,
    check_result,
    fitted,
    meet,
    reusable,
    shared_result,
)
from .constants import Constant
from .contexts import Bindings, Context, Contexts
from .driver import driver
from .fields import address
from .objects import Objects
from .places import places
from .poison import Poison
from .threads import thread_pool

Array = npt.NDArray[Any]


def scratch_bytes(launch: Launch) -> int:
    """What a kernel needs besides its blobs, every buffer on a cache line of its own."""
    return sum(round_up(b.nbytes, ALIGNMENT) for b in launch.kernel.params if b.role == "scratch")


def plan_memory(
    graph: Graph, launches: Sequence[Launch], *, reorder: bool = True, inplace: bool = True,
    donate: Sequence[str] = (), capacity: int | None = None,
) -> MemoryPlan:  # fmt: skip
    """One arena for everything that is neither input, output nor constant.

    The plan is for the launches in its own `order`. reorder, inplace, capacity: as for `plan`.
    donate: inputs whose memory may be used as well.
    """
    steps = [memory_step(launch) for launch in launches]
    donated = {n: graph.type(n).nbytes for n in donate}
    return plan_donated(steps, memory_buffers(graph), donated, reorder=reorder, inplace=inplace,
                        capacity=capacity)  # fmt: skip


def memory_buffers(graph: Graph) -> list[BufferSpec]:
    """What the arena may have to hold, and views of that."""
    shared = aliases(graph)
    external = {*graph.inputs, *graph.outputs, *graph.constants}
    return [
        BufferSpec(n, a.bytes, a.of, a.offset, a.rows, a.pitch)
        if (a := shared.get(n)) is not None else BufferSpec(n, b.type.nbytes)
        for n, b in graph.blobs.items() if n not in external
    ]  # fmt: skip


def memory_step(launch: Launch) -> Step:
    """A launch as the memory planner sees it."""
    args = launch.args
    named = [(a, b) for a, b in zip(args, launch.kernel.params, strict=True) if isinstance(a, str)]
    pairs = tuple(
        (y, x) for j, k in launch.kernel.inplace
        if isinstance(y := args[j], str) and isinstance(x := args[k], str)
    )  # fmt: skip
    return Step(
        launch.label,
        tuple(a for a, b in named if b.role != "out"),
        tuple(a for a, b in named if b.role == "out"),
        scratch_bytes(launch),
        pairs,
    )


class Program:
    """Native code, constants and arenas.

    Calls from several threads run at once, each in a context of its own (`contexts`); where steps
    are shared among the threads of the pool, one caller at a time has the helpers.
    """

    def __init__(
        self, graph: Graph, launches: Sequence[Launch], memory: MemoryPlan, objects: Objects,
        constants: Mapping[Constant, Array], threads: int | None = None, poison: bool = False,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.launches = tuple(launches)
        self.memory = memory
        self.inputs = tuple(_spec(graph, n) for n in graph.inputs)
        self.outputs = tuple(_spec(graph, n) for n in graph.outputs)
        self._wanted = tuple((s.dtype, s.shape) for s in self.inputs)
        self._made = tuple((s.dtype, s.shape) for s in self.outputs)
        self.pool = thread_pool(threads)
        self.constants = constants
        self._fixed = Stretches(constants.values())
        self.spans: list[tuple[int, int]] = []  # the steps of each launch
        # (entry of the table, number of input or output, bytes from its start)
        self._slots: list[tuple[int, int, int]] = []
        self._destroyed = tuple(graph.inputs.index(r.name) for r in memory.regions)
        self._poison = Poison(memory, graph.inputs) if poison else None
        self._keep = objects
        self._run = driver().run
        plain = not poison and not memory.regions
        self._enter = driver().enter if plain else None
        bound = self._bindings(objects)
        self._shares = any(items > 1 for *_, items in bound.steps)
        self.contexts = Contexts(bound, self.pool)
        self.contexts.give(self.contexts.take())  # too large an arena is told now, not in a call

    def _bindings(self, objects: Objects) -> Bindings:
        table = np.zeros(max(sum(len(launch.args) for launch in self.launches), 1), np.uint64)
        in_arena: dict[int, int] = {}
        steps: list[tuple[int, int, int]] = []
        slot = 0
        for launch, found in zip(
            self.launches, places(self.graph, self.launches, self.memory), strict=True
        ):
            first = len(steps)
            for entry, items in zip(
                objects.addresses(launch.kernel), launch.kernel.items, strict=True
            ):
                steps.append((entry, slot, items))
            self.spans.append((first, len(steps)))
            for at, place in enumerate(found, slot):
                if place.array is not None:
                    self._slots.append((at, place.array, place.offset))
                elif place.constant is not None:
                    table[at] = self.constants[place.constant].ctypes.data + place.offset
                else:
                    in_arena[at] = place.offset
            slot += len(found)
        where = np.fromiter(in_arena, np.intp, len(in_arena))
        offsets = np.fromiter(in_arena.values(), np.uint64, len(in_arena))
        return Bindings(self._wanted, table, self._slots, (where, offsets), steps,
                        self.memory.arena_bytes)  # fmt: skip

    # ---------------------------------------------------------------- calls

    def __call__(self, arrays: Sequence[Array], out: Sequence[Array | None] = ()) -> list[Array]:
        """Run once. arrays: one per input, in order, any strides. out: one per output, an array to
        write it into or None; by default all are new. Returns the outputs.

        Raises InputError, MemoryLimitError.
        """
        enter = self._enter
        if enter is None or out or len(arrays) != len(self._wanted):
            return self._checked(arrays, out)
        results = _new(self._made)
        objects = (*arrays, *results)
        try:
            context = self.contexts.idle.pop()
        except IndexError:
            context = self.contexts.take()
        try:
            if self._shares:
                self.pool.start()
            done = enter(context.entry, id(objects))
        finally:
            self.contexts.give(context)
        return results if done else self._checked(arrays, out)

    def _checked(self, arrays: Sequence[Array], out: Sequence[Array | None]) -> list[Array]:
        """Run once, whatever the arrays are."""
        if self._poison is not None:
            return self._stepwise(arrays, out)[0]
        _kept, results, at = self._bound(arrays, out)
        context = self.contexts.take()
        try:
            self._point(context, at)
            self._run(context.whole)
        finally:
            self.contexts.give(context)
        return results

    def timed(
        self, arrays: Sequence[Array], clock: Callable[[], int],
        before: Callable[[int, int], None] | None = None,
        after: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Array], list[int]]:  # fmt: skip
        """Run once, launch by launch; also returns what `clock` (in ns) measured for each. before,
        after: called ahead of and behind each with its number and the address of its table of
        pointers."""
        return self._stepwise(arrays, (), clock, before, after)

    def _stepwise(
        self, arrays: Sequence[Array], out: Sequence[Array | None],
        clock: Callable[[], int] = perf_counter_ns,
        before: Callable[[int, int], None] | None = None,
        after: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Array], list[int]]:  # fmt: skip
        ready, results, at = self._bound(arrays, out)
        context = self.contexts.take()
        times = []
        try:
            self._point(context, at)
            if self._poison is not None:
                self._poison.before(context.arena, results)
            for k, (first, end) in enumerate(self.spans):
                frame = context.frame(first, end)
                if before is not None:
                    before(k, context.pointers(first))
                start = clock()
                self._run(ctypes.addressof(frame))
                times.append(clock() - start)
                if after is not None:
                    after(k, context.pointers(first))
                if self._poison is not None:
                    self._poison.after(k, context.arena, ready)
        finally:
            self.contexts.give(context)
        return results, times

    def _bound(
        self, arrays: Sequence[Array], out: Sequence[Array | None]
    ) -> tuple[list[Array], list[Array], list[int]]:
        """(inputs as kernels can read them, outputs, the addresses of all of them)."""
        if len(arrays) != len(self.inputs):
            listed = ", ".join(map(str, self.inputs))
            raise InputError(f"{len(arrays)} arrays for {len(self.inputs)} inputs: {listed}")
        ready: list[Array] = []
        at: list[int] = []
        for k, (dtype, shape) in enumerate(self._wanted):
            a = arrays[k]
            if type(a) is not ndarray:
                a = as_array(self.inputs[k].name, a)
            if a.dtype != dtype or a.shape != shape:
                a = fitted(self.inputs[k], a)
            flags = a.flags
            if not (flags.carray or (flags.c_contiguous and flags.aligned)):
                a = np.require(np.array(a, order="C", copy=True), requirements=("C", "A"))
            ready.append(a)
            at.append(address(a))
        for k in self._destroyed:
            if not reusable(ready, k):
                ready[k] = aligned_copy(ready[k])
                at[k] = address(ready[k])
        results = self._given(out, ready) if out else _new(self._made)
        at += map(address, results)
        return ready, results, at

    def _given(self, out: Sequence[Array | None], ready: Sequence[Array]) -> list[Array]:
        """The outputs of a call that brings some. Raises InputError unless they fit, and each has
        its memory to itself: kernels write outputs while they still read inputs."""
        taken = [(bounds(a), "an input") for a in ready]
        results = []
        for spec, a in zip(self.outputs, out, strict=True):
            if a is None:
                (a,) = _new([(spec.dtype, spec.shape)])
            else:
                check_result(spec, a)
                own = bounds(a)
                for other, what in taken:
                    if meet(own, other):
                        raise shared_result(spec, what)
                if self._fixed.meet(own):
                    raise shared_result(spec, "a constant of the program")
                taken.append((own, "another output's"))
            results.append(a)
        return results

    def _point(self, context: Context, at: Sequence[int]) -> None:
        """Write the addresses of this call's arrays where kernels look for them."""
        entries = context.entries
        for slot, k, inner in self._slots:
            entries[slot] = at[k] + inner
        if self._shares:
            self.pool.start()


def _new(kinds: Iterable[tuple[np.dtype[Any], tuple[int, ...]]]) -> list[Array]:
    """Arrays of so many dtypes and shapes. Raises MemoryLimitError."""
    made = []
    try:
        for dtype, shape in kinds:
            made.append(empty(shape, dtype))
    except MemoryError as e:
        raise MemoryLimitError(f"no memory for an output: {e}") from e
    return made


def _spec(graph: Graph, name: str) -> TensorSpec:
    t = graph.type(name)
    return TensorSpec.of(name, t.dims, t.dtype)
