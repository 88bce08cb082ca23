"""A program: launches bound to memory and native code, ready to run."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, MemoryLimitError
from ..graph.arrays import ALIGNMENT
from ..graph.ir import Graph
from ..graph.storage import aliases
from ..kernels.ir import Launch, Prepared
from ..memory.buffers import BufferSpec, Step
from ..memory.plan import MemoryPlan, plan
from .address import address
from .constants import Constant, allocated
from .driver import Frame, driver
from .objects import Objects
from .threads import thread_pool

Array = npt.NDArray[Any]


def scratch_bytes(launch: Launch) -> int:
    """What a kernel needs besides its blobs, every buffer on a cache line of its own."""
    return sum(_round(b.nbytes) for b in launch.kernel.params if b.role == "scratch")


def _round(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def plan_memory(graph: Graph, launches: Sequence[Launch], limit: int | None = None) -> MemoryPlan:
    """One arena for everything that is neither input, output nor constant.

    Raises MemoryLimitError when `limit` bytes do not suffice.
    """
    shared = aliases(graph)
    external = {*graph.inputs, *graph.outputs, *graph.constants}
    specs = [
        BufferSpec(n, a.bytes, a.of, a.offset, a.rows, a.pitch)
        if (a := shared.get(n)) is not None else BufferSpec(n, b.type.nbytes)
        for n, b in graph.blobs.items() if n not in external
    ]  # fmt: skip
    steps = []
    for k, launch in enumerate(launches):
        named = [(a, b) for a, b in zip(launch.args, launch.kernel.params, strict=True)
                 if isinstance(a, str)]  # fmt: skip
        pairs = tuple(
            (str(launch.args[y]), str(launch.args[x]))
            for y, x in launch.kernel.inplace
            if isinstance(launch.args[y], str) and isinstance(launch.args[x], str)
        )
        steps.append(Step(
            f"{k}: {launch.label}",
            tuple(a for a, b in named if b.role != "out"),
            tuple(a for a, b in named if b.role == "out"),
            scratch_bytes(launch),
            pairs,
        ))  # fmt: skip
    return plan(steps, specs, limit)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an executable."""

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{list(map(str, self.shape))}".replace("'", "")


class Program:
    """Native code, constants and an arena. Calls from several threads are served one by one."""

    def __init__(
        self, graph: Graph, launches: Sequence[Launch], memory: MemoryPlan, objects: Objects,
        constants: Mapping[Constant, Array], threads: int | None = None, poison: bool = False,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.launches = tuple(launches)
        self.memory = memory
        self.poison = poison
        self.inputs = tuple(_spec(graph, n) for n in graph.inputs)
        self.outputs = tuple(_spec(graph, n) for n in graph.outputs)
        self.pool = thread_pool(threads)
        self._alias = aliases(graph)
        self.constants = constants
        self._lock = threading.Lock()
        self._arena = allocated((memory.arena_bytes,), np.uint8)
        # (slot of the table, number of input or output, bytes from its start)
        self._slots: list[tuple[int, int, int]] = []
        width = sum(len(launch.args) for launch in launches)
        self._table = np.zeros(max(width, 1), np.uint64)
        steps: list[tuple[int, int, int]] = []
        self.spans: list[tuple[int, int]] = []  # the steps of each launch
        slot = 0
        for k, launch in enumerate(launches):
            base = self._table.ctypes.data + slot * 8
            first = len(steps)
            for entry, phase in zip(
                objects.addresses(launch.kernel), launch.kernel.phases, strict=True
            ):
                steps.append((entry, base, phase.items))
            self.spans.append((first, len(steps)))
            self._bind(k, launch, slot)
            slot += len(launch.args)
        self._steps = np.array(steps or [(0, 0, 0)], np.uint64)
        self._keep = objects
        self._run = driver().run
        self._shares = any(items > 1 for *_, items in steps)
        self._frame = self._framed(0, len(steps))
        self._whole = ctypes.addressof(self._frame)

    def _framed(self, first: int, end: int) -> Frame:
        """Steps first..end as the driver takes them. Without shared steps no worker is woken."""
        pool = self.pool
        return Frame(
            pool.address, pool.run_address, pool.wake_address if self._shares else None,
            self._steps.ctypes.data + first * 24, end - first,
        )  # fmt: skip

    def _bind(self, number: int, launch: Launch, slot: int) -> None:
        g = self.graph
        scratch = self.memory.scratch[number] or 0
        for j, (arg, buffer) in enumerate(zip(launch.args, launch.kernel.params, strict=True)):
            at = slot + j
            if arg is None:
                self._table[at] = self._arena.ctypes.data + scratch
                scratch += _round(buffer.nbytes)
            elif isinstance(arg, Prepared):
                self._table[at] = self.constants[arg].ctypes.data
            else:
                root, inner = arg, 0
                while root in self._alias:
                    alias = self._alias[root]
                    root, inner = alias.of, inner + alias.offset
                if root in self.constants:
                    self._table[at] = self.constants[root].ctypes.data + inner
                elif root in g.inputs:
                    self._slots.append((at, g.inputs.index(root), inner))
                elif root in g.outputs:
                    self._slots.append((at, len(g.inputs) + g.outputs.index(root), inner))
                else:
                    self._table[at] = self._arena.ctypes.data + self.memory.offsets[root] + inner

    # ---------------------------------------------------------------- calls

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once. arrays: one per input, in order, any strides. Returns new arrays."""
        _kept, results, at = self._bound(arrays)
        with self._lock:
            self._point(at)
            self._run(self._whole)
        return results

    def timed(
        self, arrays: Sequence[Array], clock: Any,
        before: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Array], list[int]]:  # fmt: skip
        """Run once, launch by launch; also returns what `clock` (in ns) measured for each. before:
        called ahead of each with its number and the address of its table of pointers."""
        _kept, results, at = self._bound(arrays)
        times = []
        with self._lock:
            self._point(at)
            for k, (first, end) in enumerate(self.spans):
                frame = self._framed(first, end)
                if before is not None:
                    before(k, int(self._steps[first][1]))
                start = clock()
                self._run(ctypes.addressof(frame))
                times.append(clock() - start)
        return results, times

    def _bound(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array], list[int]]:
        """(inputs as kernels can read them, new outputs, the addresses of all of them)."""
        if len(arrays) != len(self.inputs):
            listed = ", ".join(map(str, self.inputs))
            raise InputError(f"{len(arrays)} arrays for {len(self.inputs)} inputs: {listed}")
        ready, results, at = [], [], []
        for k, spec in enumerate(self.inputs):
            a = arrays[k]
            if type(a) is not np.ndarray:
                a = as_array(spec.name, a)
            if a.dtype != spec.dtype or a.shape != spec.shape:
                raise _misfit(spec, a)
            flags = a.flags
            if not (flags.c_contiguous and flags.aligned):
                a = np.require(np.array(a, order="C", copy=True), requirements=("C", "A"))
            ready.append(a)
            at.append(address(a))
        for spec in self.outputs:
            try:
                a = np.empty(spec.shape, spec.dtype)
            except MemoryError as e:
                raise MemoryLimitError(f"no memory for output {spec.name!r}: {e}") from e
            results.append(a)
            at.append(address(a))
        return ready, results, at

    def _point(self, at: Sequence[int]) -> None:
        """Write the addresses of this call's arrays where kernels look for them."""
        table = self._table
        for slot, k, inner in self._slots:
            table[slot] = at[k] + inner
        if self._shares:
            self.pool.start()
        if self.poison:
            self._arena.fill(0xFF)  # every float that no kernel wrote is NaN


def as_array(name: str, given: Any) -> Array:
    """What was given for an input, as numpy sees it. Raises InputError."""
    try:
        return np.asarray(given)
    except Exception as e:  # whatever the object's own conversion raises
        raise InputError(
            f"input {name!r}: a {type(given).__name__} cannot be read as an array: {e}"
        ) from e


def _misfit(spec: TensorSpec, a: Array) -> InputError:
    if a.dtype != spec.dtype:
        return InputError(
            f"input {spec.name!r} must be {spec.dtype}, got {a.dtype}{list(a.shape)}; "
            f"convert it with .astype({str(spec.dtype)!r})"
        )
    return InputError(
        f"input {spec.name!r} must have shape {list(spec.shape)}, got {list(a.shape)}"
    )


def _spec(graph: Graph, name: str) -> TensorSpec:
    t = graph.type(name)
    return TensorSpec(name, t.dims, t.dtype.numpy)


def by_name(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> list[Any]:
    """Arrays in input order. Raises InputError for a missing or an unknown name."""
    known = [s.name for s in specs]
    missing = [n for n in known if n not in feeds]
    if missing or len(feeds) != len(known):
        unknown = [n for n in feeds if n not in known]
        what = f"no array for {missing}" if missing else f"there is no input {unknown}"
        raise InputError(f"{what}; the inputs are {known}")
    return [feeds[n] for n in known]
