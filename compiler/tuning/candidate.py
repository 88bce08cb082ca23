"""One candidate of a problem in this process: its code, its memory, and runs of it.

A kernel is run as a model would find it: outputs in memory that has been used before, inputs just
written, weights in main memory, and where inputs are a call's arguments, everything (`cold.py`).
Several runs in a row, for kernels that are too short for the clock, have inputs, outputs and
constants of their own, so that each finds them so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...autotune.outcome import Failure
from ...autotune.serving import Failed
from ..graph.arrays import aligned_empty
from ..graph.ir import Graph
from ..graph.storage import aliases, place_in
from ..inspect.machine import cache_sizes
from ..kernels.ir import Launch, Prepared
from ..runtime.constants import Constant, constants_of
from ..runtime.driver import Frame, driver
from ..runtime.objects import Objects
from ..runtime.poison import FILL
from ..runtime.threads import ThreadPool, thread_pool
from . import faults
from .cold import flush
from .memory import logical, store
from .problem import Problem

Array = npt.NDArray[Any]
Blobs = Mapping[str, Array]


class Sets:
    """Inputs and outputs of a problem as they lie in memory, as many times as somebody wants them.
    All candidates share them."""

    def __init__(self, graph: Graph, feeds: Mapping[str, Array]) -> None:
        self.graph = graph
        self.inputs = {n: _poisoned(graph, n) for n in graph.inputs}
        for n, flat in self.inputs.items():
            store(flat, graph.type(n), feeds[n])
        self._sets: list[dict[str, Array]] = []

    def get(self, k: int) -> Blobs:
        """Number k."""
        while len(self._sets) <= k:
            names = (*self.graph.inputs, *self.graph.outputs)
            self._sets.append({n: _poisoned(self.graph, n) for n in names})
            self.write(len(self._sets) - 1)
        return self._sets[k]

    def poison(self, k: int) -> None:
        """Fill the outputs with what no kernel computes."""
        for n in self.graph.outputs:
            self._sets[k][n].view(np.uint8).fill(FILL)

    def write(self, k: int) -> None:
        """Write the inputs anew."""
        for n, flat in self.inputs.items():
            self._sets[k][n][...] = flat


class Constants:
    """Constants of a problem as kernels read them, each made once for all candidates."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._made: dict[Constant, Array] = {}

    def of(self, launch: Launch) -> dict[Constant, Array]:
        """Those that a launch reads."""
        return {what: self._get(what) for what in constants_of(self.graph, (launch,))}

    def forget(self) -> None:
        """Give up what nobody uses."""
        self._made.clear()

    def _get(self, what: Constant) -> Array:
        if what not in self._made:
            blobs = self.graph.blobs
            made = (what.make(*(blobs[n].content for n in what.blobs))
                    if isinstance(what, Prepared) else blobs[what].value)  # fmt: skip
            self._made[what] = _copy(np.asarray(made))
        return self._made[what]


class Contender:
    """A candidate that can be run. Its results go into `sets`. given: what `faults.py` makes of
    TILEWRIGHT_FAULT for it."""

    def __init__(
        self, problem: Problem, launch: Launch, objects: Objects,
        constants: Mapping[Constant, Array], sets: Sets, given: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.launch = launch
        self._graph, self._sets = problem.graph, sets
        self._first = problem.arguments  # a kernel that reads them is among the first of a call
        self._alias = aliases(problem.graph)
        self._faults = given
        self._codes = faults.in_run(given)
        self._entries = tuple(
            zip(objects.addresses(launch.kernel), launch.kernel.items, strict=True)
        )
        self._objects = objects  # keeps the code in memory
        self._constants = [dict(constants)]
        self._scratch = {
            k: aligned_empty((b.elements,), b.dtype.numpy)
            for k, b in enumerate(launch.kernel.params) if b.role == "scratch"
        }  # fmt: skip
        self._pool: ThreadPool = thread_pool(problem.device.threads)
        self._run = driver().run
        self._frames: dict[int, tuple[Frame, Any]] = {}
        self._runs = 0
        self.results: Blobs = {}

    @property
    def nbytes(self) -> int:
        """Of constants and scratch."""
        held = (*self._constants[0].values(), *self._scratch.values())
        return sum(a.nbytes for a in held)

    def refresh(self, runs: int) -> None:
        """Bring the memory of the first sets into the state that a model would leave it in."""
        self._prepare(runs)
        for k in range(runs):
            self._sets.poison(k)
            _flush(self._constants[k].values())
        for k in range(runs):
            self._sets.write(k)
        if self._first:
            names = (*self._first, *self._graph.outputs)
            for k in range(runs):
                _flush(self._sets.get(k)[n] for n in names)

    def spoil_scratch(self) -> None:
        """Fill scratch with what no kernel computes: nobody may read it before writing it."""
        for array in self._scratch.values():
            array.view(np.uint8).fill(FILL)

    def address(self, runs: int) -> int:
        """What `run` takes for that many runs."""
        self._prepare(runs)
        return ctypes.addressof(self._frames[runs][0])

    def run(self, address: int) -> None:
        """Run as often as `address` was made for, in one native call."""
        self._run(address)

    def spoil(self, runs: int) -> None:
        """Do to the results of the last runs what TILEWRIGHT_FAULT asks for."""
        for k in range(runs):
            self._runs += 1
            if self._faults:
                made = self._sets.get(k)
                faults.in_results(self._faults, self._runs, [made[n] for n in self._graph.outputs])

    def computed(self) -> dict[str, Array]:
        """The results in the first set, as logical arrays."""
        made = self._sets.get(0)
        return {n: logical(made[n], self._graph.type(n)) for n in self._graph.outputs}

    def keep(self) -> None:
        """What was computed is what all other runs have to compute."""
        made = self._sets.get(0)
        self.results = {n: made[n].copy() for n in self._graph.outputs}

    def agree(self, name: str, other: Array) -> bool:
        """Whether an output that lies in other memory has the bits that were kept. Padding lanes
        and gaps between rows do not count."""
        kept, kind = self.results[name], self._graph.type(name)
        if _same(kept, other):
            return True
        return _same(*(np.ascontiguousarray(logical(flat, kind)) for flat in (kept, other)))

    def compare(self, runs: int) -> None:
        """Raise Failed where results of the last runs are not those that were kept, bit by bit."""
        for k in range(runs):
            made = self._sets.get(k)
            for n in self.results:
                if not self.agree(n, made[n]):
                    number = self._runs - runs + k + 1
                    what = f"run {number} computed another {n} than the first one"
                    raise Failed(Failure("wrong", what))

    def _prepare(self, runs: int) -> None:
        """Memory and the driver's steps for that many runs in a row."""
        if runs in self._frames:
            return
        while len(self._constants) < runs:
            self._constants.append({what: _copy(a) for what, a in self._constants[0].items()})
        tables = np.array([self._table(k) for k in range(runs)], np.uint64)
        steps = []
        for k in range(runs):
            at = tables.ctypes.data + k * tables.strides[0]
            steps += [(code, at, 1) for code in self._codes]
            steps += [(code, at, items) for code, items in self._entries]
        bound = np.array(steps, np.uint64)
        pool = self._pool
        wake = pool.wake_address if any(items > 1 for *_, items in steps) else None
        frame = Frame(pool.address, pool.run_address, wake, bound.ctypes.data, len(steps))
        if wake is not None:
            pool.start()
        self._frames[runs] = frame, (tables, bound)

    def _table(self, k: int) -> list[int]:
        """The addresses of the kernel's parameters in set k."""
        blobs, constants = self._sets.get(k), self._constants[k]
        out = []
        for number, arg in enumerate(self.launch.args):
            if arg is None:
                out.append(self._scratch[number].ctypes.data)
                continue
            if isinstance(arg, Prepared):
                out.append(constants[arg].ctypes.data)
                continue
            root, inner = place_in(self._alias, arg)
            array = constants[root] if root in constants else blobs[root]
            out.append(array.ctypes.data + inner)
        return out


def _poisoned(graph: Graph, name: str) -> Array:
    kind = graph.type(name)
    made = aligned_empty((kind.span,), kind.dtype.numpy)
    made.view(np.uint8).fill(FILL)
    return made


def _copy(array: Array) -> Array:
    made = aligned_empty(array.shape, array.dtype)
    made[...] = array
    return made


def _flush(arrays: Iterable[Array]) -> None:
    """Bring arrays to main memory."""
    for array in arrays:
        if array.nbytes < _FLUSHED:
            flush()(array.ctypes.data, array.nbytes)


def _same(a: Array, b: Array) -> bool:
    """Whether two contiguous arrays hold the same bytes."""
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


_FLUSHED: Final = 2 * max(size for _, size, _ in cache_sizes())
"""Arrays larger than that push their own beginning out of the caches."""
