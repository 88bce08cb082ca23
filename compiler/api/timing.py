"""How long the launches of a program for a CPU take, beside what the machine allows; loaded when
somebody asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..codegen.cpu.target import CpuTarget
from ..inspect.machine import call_seconds, limits
from ..inspect.moving import Movers, can_move
from ..inspect.profile import Profile, profile
from ..inspect.views import Compilation
from ..runtime.program import Program

Array = npt.NDArray[Any]

CLOCK_STEP: Final = 1e-8
"""Seconds that no launch is said to be faster than."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times a program. What its methods do stands at those of `Executable`."""

    compilation: Compilation[CpuTarget]
    program: Program

    @property
    def threads(self) -> int:
        return self.program.pool.threads

    @property
    def clock(self) -> Callable[[], int]:
        """Nanoseconds: on one thread of that, so that others on the machine do not count."""
        return time.thread_time_ns if self.threads == 1 else time.perf_counter_ns

    def profile(self, feeds: Sequence[Array], rounds: int, moved: bool) -> Profile:
        c, clock = self.compilation, self.clock
        movers = None
        if moved and self.threads == 1:
            rows = self.profile_of([[1.0] * len(c.launches)]).rows
            some = {k: x for k, (x, r) in enumerate(zip(c.launches, rows, strict=True))
                    if 2 * r.memory_seconds > r.compute_seconds and can_move(x)}  # fmt: skip
            movers = Movers(some, c.target, clock)
        runs = self.runs(feeds, rounds, movers)
        of_movers = {} if movers is None else {k: _net(t, clock) for k, t in movers.times().items()}
        return self._made(np.median(runs, axis=0).tolist(), of_movers, runs)

    def profile_of(self, samples: Sequence[Sequence[float]]) -> Profile:
        return self._made(np.median(samples, axis=0).tolist(), samples=samples)

    @property
    def _made(self) -> Callable[..., Profile]:
        c = self.compilation
        return partial(profile, c.graph, c.launches, c.plan.arena_bytes, limits(self.threads),
                       target=c.target.arithmetic)  # fmt: skip

    def runs(
        self, feeds: Sequence[Array], rounds: int, movers: Movers | None = None
    ) -> list[list[float]]:  # fmt: skip
        """The seconds of every launch in each of so many runs."""
        clock = self.clock

        def given() -> Sequence[Array]:  # programs with donated inputs destroy them
            return [np.array(a) for a in feeds] if self.compilation.plan.regions else feeds

        runs = []
        for _ in range(max(1, rounds)):
            runs.append([_net(t, clock) for t in self.program.timed(given(), clock)[1]])
            if movers is not None:
                self.program.timed(given(), clock, movers.before)
                movers.turn += 1
        return runs


def _net(nanoseconds: float, clock: Callable[[], int]) -> float:
    """Seconds without what timing itself costs."""
    return max(nanoseconds / 1e9 - call_seconds(clock), CLOCK_STEP)
