"""A program run launch by launch: what each kernel found in memory, and what it left there.

Each launch is compared with the float64 reference of its own ops on what it read. So an error is
seen where it is made, however much later kernels would amplify or hide it. What it read is compared
with what was written, bit by bit, so that memory that changed in between is seen as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.types import TensorType
from ..errors import DeviceLostError
from ..graph.evaluate import evaluate_op, narrow
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.select import group_of
from ..tuning.alone import Filled, difference, filled
from ..tuning.memory import logical
from ..tuning.reference import Reference
from .making import Steps
from .repro import problem_at

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class WrongResult:
    """A launch whose result is not what its ops make of what it read. blob: the result. problem:
    the launch alone, with what it read."""

    launch: int
    blob: str
    why: str
    problem: Filled


@dataclass(frozen=True, slots=True)
class WrongMemory:
    """A launch that found other bytes than those that were written. blob: what it read. writer: the
    launch that made it, None for inputs and constants. changed: the launch that wrote over it; or
    behind which its memory was given up, if `given_up`; None where neither is it: writer and reader
    look in different places."""

    launch: int
    blob: str
    writer: int | None
    changed: int | None = None
    given_up: bool = False


class _Seen(Exception):
    """Something is wrong: no need to go on."""

    def __init__(self, found: WrongResult | WrongMemory) -> None:
        super().__init__()
        self.found = found


class Watched(Exception):
    """What a launch raised. launch: its number."""

    def __init__(self, launch: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.launch, self.cause = launch, cause


def watch(
    c: Compilation[Any], steps: Steps, device: Device, feeds: Mapping[str, Array]
) -> tuple[WrongResult | WrongMemory | None, Sequence[Array]]:
    """The first thing that is wrong in a run, if any; and the outputs of a run to the end.

    feeds: an array for every input, as the program wants them. Raises Watched where the program
    does.
    """
    arrays = [feeds[n].copy() for n in c.graph.inputs]
    check = _Checker(c, steps, device, feeds)
    try:
        results = steps.run(arrays, check.before, check.after)
    except _Seen as e:
        found = e.found
        if isinstance(found, WrongMemory):
            found = _explained(c, steps, feeds, found, check.value(found.blob))
        return found, []
    except DeviceLostError as e:
        raise Watched(check.running, e) from e
    return None, results


def _read(steps: Steps, address: int, kind: TensorType) -> Array:
    """A copy of what lies there, as a logical array."""
    raw = steps.read(address, kind.span * kind.dtype.bytes)
    return np.array(logical(np.frombuffer(raw, kind.dtype.numpy), kind))


def same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bits; all NaNs are one."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(
        a, b, equal_nan=a.dtype.kind == "f")  # fmt: skip


class _Checker:
    """values: what each blob should hold, by what was seen written, or computed for views."""

    def __init__(
        self, c: Compilation[Any], steps: Steps, device: Device, feeds: Mapping[str, Array]
    ) -> None:
        self.c, self.steps, self.device = c, steps, device
        self.running = 0
        self.values = dict(feeds)
        self.read: dict[str, Array] = {}
        self.writer: dict[str, int] = {}

    def value(self, blob: str) -> Array:
        g = self.c.graph
        if blob not in self.values:
            held = g.blobs[blob].value
            if held is not None:
                return held
            op = g.producer[blob]  # a view, a cut, a join: no code
            made = evaluate_op(op, [None if n is None else self.value(n) for n in op.inputs], False)
            for n, y in zip(op.outputs, made, strict=True):
                self.values[n] = narrow(y, g.type(n).dtype)
        return self.values[blob]

    def _held(self, k: int, at: Sequence[int], *, written: bool) -> dict[str, Array]:
        """What lies in the parameters that are blobs, which the launch writes, or reads."""
        launch = self.c.launches[k]
        return {n: _read(self.steps, where, self.c.graph.type(n))
                for n, b, where in zip(launch.args, launch.kernel.params, at, strict=True)
                if isinstance(n, str) and (b.role == "out") == written}  # fmt: skip

    def before(self, k: int, at: Sequence[int]) -> None:
        self.running = k
        self.read = self._held(k, at, written=False)
        for n, x in self.read.items():
            if not same(x, self.value(n)):
                raise _Seen(WrongMemory(k, n, self.writer.get(n)))

    def after(self, k: int, at: Sequence[int]) -> None:
        g, written = self.c.graph, self._held(k, at, written=True)
        self.values |= written
        self.writer |= dict.fromkeys(written, k)
        group = group_of(g, self.c.launches[k])
        problem = problem_at(self.c, k, self.device)
        named = dict(zip(problem.names, group.names, strict=True))
        arrays = {n: self.read[named[n]] if named[n] in self.read else self.value(named[n])
                  for n in problem.described.inputs}  # fmt: skip
        full = filled(problem, arrays)
        reference = Reference(full)
        for n in problem.outputs:
            why = difference(reference, self.c.launches[k], {n: written[named[n]]})
            if why:
                why = why.replace(f"output {n}:", f"%{named[n]} is", 1)
                raise _Seen(WrongResult(k, named[n], why, full))


def _explained(
    c: Compilation[Any], steps: Steps, feeds: Mapping[str, Array], found: WrongMemory, want: Array,
) -> WrongMemory:  # fmt: skip
    """Who changed the memory of a blob between its writer and its reader: another run, with an eye
    on it."""
    where = 0
    kind = c.graph.type(found.blob)
    verdict: tuple[int, bool] | None = None

    def look(k: int, at: Sequence[int], behind: bool) -> None:
        nonlocal where, verdict
        if behind and k == found.writer:
            where = at[c.launches[k].args.index(found.blob)]
        elif (where and verdict is None and k <= found.launch
              and not same(_read(steps, where, kind), want)):  # fmt: skip
            verdict = (k, False) if behind else (k - 1, True)

    if found.writer is None:
        return found
    arrays = [feeds[n].copy() for n in c.graph.inputs]
    steps.run(arrays, lambda k, at: look(k, at, False), lambda k, at: look(k, at, True))
    if verdict is None:
        return found
    return WrongMemory(found.launch, found.blob, found.writer, *verdict)
