"""How those who look for faults make programs and run them, whatever the target is.

Nothing is kept: built code stays in memory, and the user's store and records are only read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from ..codegen.cpu import lower
from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.target import CpuTarget
from ..graph.ir import Graph
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.ir import Kernel, Launch
from ..options import Options
from ..passes.base import Pass, Stage
from ..passes.pipeline import cpu_pipeline, remaining
from ..runtime.objects import object_key
from ..runtime.program import Program
from ..store import Key, Store
from ..tuning.alone import run_alone
from ..tuning.problem import Problem
from .build import choose, device_of, link, recorded_choices
from .repro import script_of

Array = npt.NDArray[Any]
Hook = Callable[[int, Sequence[int]], None]
"""Called with the number of a launch and the addresses of its parameters."""


class Aside(Store):
    """The user's store, read only; what is put is kept in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._own: dict[Key, bytes] = {}

    def get(self, key: Key) -> bytes | None:
        found = self._own.get(tuple(key))
        return super().get(key) if found is None else found

    def put(self, key: Key, payload: bytes) -> bool:
        self._own[tuple(key)] = payload
        return True


class Steps(Protocol):
    """A program that runs launch by launch."""

    def run(self, arrays: Sequence[Array], before: Hook, after: Hook) -> Sequence[Array]:
        """The outputs of one run, whose launches are each done before the next begins."""

    def read(self, address: int, count: int) -> bytes:
        """So many bytes of the program's memory, while it runs."""


class Maker(Protocol):
    """Makes programs for one target. codegen: where its code generator is; script_options: that
    `tw.bisect` needs to come to the same target."""

    codegen: str

    @property
    def device(self) -> Device:
        """As kernel templates see it."""

    @property
    def script_options(self) -> dict[str, str]: ...

    def passes(self, graph: Graph) -> Sequence[Pass]:
        """Those that a graph has not been through."""

    def made(self, stages: Sequence[Stage], chosen: Options) -> tuple[Compilation[Any], Steps]:
        """The program of the graph after the last stage. Raises as `tw.compile`."""

    def alone(self, problem: Problem, launch: Launch) -> Mapping[str, Array]:
        """The results of one launch, in memory of its own, by blob of the problem."""

    def is_stale(self, kernel: Kernel) -> bool:
        """Whether the user's store has other code for a kernel than is built now."""

    def script(self, c: Compilation[Any], number: int, data: str) -> str:
        """Of a launch alone; data: the file beside it that has its arrays."""


@dataclass(frozen=True, slots=True)
class CpuSteps:
    """A program for a CPU. counts: of the parameters of each launch."""

    program: Program
    counts: Sequence[int]

    def run(self, arrays: Sequence[Array], before: Hook, after: Hook) -> Sequence[Array]:
        def told(hook: Hook) -> Callable[[int, int], None]:
            return lambda k, at: hook(k, list((ctypes.c_uint64 * self.counts[k]).from_address(at)))

        return self.program.timed(arrays, lambda: 0, told(before), told(after))[0]

    def read(self, address: int, count: int) -> bytes:
        return ctypes.string_at(address, count)


class CpuMaker:
    """For this machine's CPU."""

    codegen = "compiler/codegen/cpu"

    def __init__(self, target: CpuTarget, chosen: Options) -> None:
        self.target, self.chosen, self.store = target, chosen, Aside()

    @property
    def device(self) -> Device:
        return device_of(self.target, self.chosen)

    @property
    def script_options(self) -> dict[str, str]:
        return {}

    def passes(self, graph: Graph) -> Sequence[Pass]:
        return remaining(cpu_pipeline(self.device.channel_block, self.chosen.numerics), graph)

    def made(self, stages: Sequence[Stage], chosen: Options) -> tuple[Compilation[Any], Steps]:
        choices = recorded_choices(stages[-1].graph, self.target, chosen)
        c = choose(stages, self.target, chosen, None, choices)
        exe = link(c, self.store, None, read=0.0, passes=0.0, kernels=0.0)
        return c, CpuSteps(exe._program, [len(x.args) for x in c.launches])

    def alone(self, problem: Problem, launch: Launch) -> Mapping[str, Array]:
        return run_alone(problem, launch, self.target, self.store)

    def is_stale(self, kernel: Kernel) -> bool:
        stored = Store().get(object_key(kernel, self.target))
        return stored is not None and stored != build_object(
            lower.module_text(kernel, self.target.arithmetic), self.target
        )

    def script(self, c: Compilation[Any], number: int, data: str) -> str:
        return script_of(c, f"k{number}", self.device, data)
