"""Build, check and time the candidates of one problem on a GPU: what the worker of a device does
with its requests.

As on CPUs (`bench.py`), a candidate first has to compute what the float64 reference does, into
memory that was filled with NaN, and every timed run must compute the same bits. A sample is the
mean of a few runs, each timed by events on the device, whose clock has steps of half a microsecond.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import ceil
from typing import Final

from ...autotune.outcome import Failure
from ...autotune.serving import Failed, Post, Wanted, failure
from ...autotune.statistics import Sample
from ...autotune.task import Candidate
from ..codegen.cuda.target import CudaTarget, best_arch
from ..errors import DeviceLostError, LoweringError
from ..kernels import gpu_templates  # noqa: F401  from now on problems know them
from ..kernels.device import GpuDevice
from ..kernels.ir import Launch
from ..kernels.printer import symbol
from ..runtime.cuda_device import Device, device
from ..runtime.gpu_code import GpuCode, load
from ..store import Store
from .candidate import Constants
from .gpu_candidate import DeviceSets, GpuContender
from .problem import parse
from .reference import Reference

SAMPLE_SECONDS: Final = 50e-6
"""A sample is as many runs as take that long, at least: a hundred steps of the clock of events."""

MOST_RUNS: Final = 8
CHECKS: Final = 5
"""Runs of a candidate that are looked at before it is timed."""

KEPT_BYTES: Final = 1 << 30
"""Of constants and scratch of candidates that are ready to run."""

LOST_STATUS: Final = 70

Found = list[tuple[int, Sample | Failure]]


class GpuBench:
    """A Bench (`autotune/serving.py`) for the problem that a task's payload is the text of, on the
    first device that this process sees."""

    def __init__(self, payload: str, post: Post) -> None:
        self.problem = parse(payload)
        self._post = post
        self._store = Store()
        self._constants = Constants(self.problem.graph)
        self._ready: dict[tuple[int, Candidate], tuple[GpuContender, float]] = {}

    @cached_property
    def _target(self) -> CudaTarget:
        assert isinstance(self.problem.device, GpuDevice)
        return CudaTarget(f"sm_{self.problem.device.arch}", 0)

    @cached_property
    def _device(self) -> Device:
        found = device(0)
        if best_arch(found.facts.capability) != self._target.arch:
            raise Failed(Failure("refused", f"the problem is for another GPU than {found}"))
        return found

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.problem)

    @cached_property
    def _sets(self) -> DeviceSets:
        return DeviceSets(self._device, self.problem.graph, self._reference.feeds)

    @cached_property
    def _canonical(self) -> GpuContender | None:
        """The candidate whose bits all others must have; None where they may differ."""
        if self.problem.numerics != "reproducible":
            return None
        return self._made(self.problem.default())[0]

    def prepare(self) -> None:
        """Compute what candidates are compared with."""
        with self._device:
            self._sets  # noqa: B018
            self._canonical  # noqa: B018

    def build(self, place: int, candidate: Candidate) -> None:
        """Put the candidate's code into the store: that takes no device. Raises Failed."""
        self._load(candidate)

    def measure(self, wanted: Wanted, rounds: Sequence[int], deadline: float) -> Iterator[Found]:
        """As `Bench.measure`. The process ends where a candidate costs it its device, so that the
        next one has a worker that is sound."""
        try:
            yield from self._measured(wanted, rounds, deadline)
        except DeviceLostError:
            self._leave()

    def _leave(self) -> None:
        os._exit(LOST_STATUS)

    def _measured(self, wanted: Wanted, rounds: Sequence[int], deadline: float) -> Iterator[Found]:
        field: dict[int, tuple[GpuContender, int, int]] = {}
        for (place, candidate), count in zip(wanted, rounds, strict=True):
            if time.monotonic() > deadline:
                return
            try:
                with self._device:
                    made, seconds = self._contender(place, candidate)
            except DeviceLostError:
                raise
            except Exception as e:  # whatever else is wrong with a candidate
                yield [(place, failure(e, "build"))]
            else:
                runs = min(max(ceil(SAMPLE_SECONDS / max(seconds, 1e-9)), 1), MOST_RUNS)
                field[place] = made, runs, count
        for turn in range(max(rounds, default=0)):
            found: Found = []
            order = [p for p, (_, _, count) in field.items() if count > turn]
            for place in order[:: -1 if turn % 2 else 1]:
                if time.monotonic() > deadline:
                    yield found
                    return
                found.append((place, self._sample(place, *field[place][:2])))
                if isinstance(found[-1][1], Failure):
                    del field[place]
            yield found

    def _sample(self, place: int, made: GpuContender, runs: int) -> Sample | Failure:
        self._post("run", place)
        try:
            with self._device:
                seconds = 0.0
                for _ in range(runs):
                    seconds += made.run()
                    made.compare()
        except Failed as e:
            return e.failure
        return Sample(seconds / runs)

    # ---------------------------------------------------------------- one candidate

    def _contender(self, place: int, candidate: Candidate) -> tuple[GpuContender, float]:
        known = place, candidate
        if known not in self._ready:
            if sum(made.nbytes for made, _ in self._ready.values()) > KEPT_BYTES:
                self._ready.clear()
            self._post("build", place)
            loaded = self._load(candidate)
            self._post("run", place)
            self._ready[known] = self._checked(*loaded)
        return self._ready[known]

    def _load(self, candidate: Candidate) -> tuple[Launch, GpuCode]:
        try:
            launch = self.problem.instantiate(candidate)
        except LoweringError as e:
            raise Failed(Failure("refused", str(e))) from e
        codes = load((launch.kernel,), self._target, self._store)
        return launch, codes.codes[symbol(launch.kernel)]

    def _made(self, candidate: Candidate) -> tuple[GpuContender, float]:
        return self._checked(*self._load(candidate), alone=True)

    def _checked(
        self, launch: Launch, code: GpuCode, alone: bool = False
    ) -> tuple[GpuContender, float]:
        """The candidate, and the seconds of its fastest run, if its results are right time and
        again. alone: it is what others are compared with. Raises Failed."""
        made = GpuContender(self.problem, launch, code, self._target, self._constants, self._sets)
        least = made.run()
        self._reference.check(launch, self._sets.computed())
        made.keep()
        if not alone and self._canonical is not None:
            self._canonical_bits(made)
        for _ in range(1, CHECKS):
            least = min(least, made.run())
            made.compare()
        return made, least

    def _canonical_bits(self, made: GpuContender) -> None:
        assert self._canonical is not None
        for n, kept in self._canonical.results.items():
            if kept.tobytes() != made.results[n].tobytes():
                raise Failed(Failure("wrong", f"output {n} has other bits than the default's"))
