"""Build, check and time the candidates of one problem on a GPU: what the worker of a device does
with its requests.

As on CPUs (`bench.py`), a candidate first has to compute what the float64 reference does, into
memory that was filled with NaN, and every timed run must compute the same bits. A sample is the
mean of a few runs, each timed by events on the device, whose clock has steps of half a microsecond.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

from ...autotune.outcome import Failure
from ...autotune.serving import Failed, Post, Wanted, failure
from ...autotune.statistics import Sample
from ...autotune.task import Candidate
from ..codegen.cuda.target import CudaTarget, best_arch
from ..errors import DeviceLostError, DeviceMemoryError, LoweringError
from ..kernels import gpu_templates  # noqa: F401  from now on problems know them
from ..kernels.device import GpuDevice
from ..kernels.ir import Launch
from ..kernels.printer import symbol
from ..runtime.cuda_device import Device, device
from ..runtime.gpu_code import GpuCode, load
from ..store import Store
from . import faults
from .candidate import Constants
from .gpu_candidate import DeviceSets, GpuContender
from .problem import parse
from .reference import Reference

SAMPLE_SECONDS: Final = 50e-6
"""A sample is as many runs as take that long, at least: a hundred steps of the clock of events."""

MOST_RUNS: Final = 8
CHECKS: Final = 5
MOST_CHECKS: Final = 50
CHECK_SECONDS: Final = 50e-3
"""Runs of a candidate that are looked at before it is timed: so many at least, and more while that
takes no longer."""

KEPT_BYTES: Final = 1 << 30
"""Of constants and scratch of candidates that are ready to run. Where they take more, or more than
the device has, they are given up, and candidates of one request are timed in several fields, one
after another."""

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
        made = self._made(self.problem.default(), ())
        self._checked(made)
        return made

    def prepare(self) -> None:
        """Compute what candidates are compared with."""
        try:
            with self._device:
                self._sets  # noqa: B018
                self._canonical  # noqa: B018
        except DeviceLostError as e:
            self._leave(e)

    def build(self, place: int, candidate: Candidate) -> None:
        """Put the candidate's code into the store: that takes no device. Raises Failed."""
        self._load(candidate, faults.faults_of(place, candidate))

    def measure(self, wanted: Wanted, rounds: Sequence[int], deadline: float) -> Iterator[Found]:
        """As `Bench.measure`. The process ends where a candidate costs it its device, so that the
        next one has a worker that is sound."""
        queue = deque((place, c, n) for (place, c), n in zip(wanted, rounds, strict=True))
        try:
            while queue and time.monotonic() < deadline:
                field: list[_Entrant] = []
                for found in self._fill(field, queue, deadline):
                    yield [found]
                yield from self._rounds(field, deadline)
                if queue:
                    self._ready.clear()
                    self._constants.forget()
        except DeviceLostError as e:
            self._leave(e)

    def _leave(self, why: DeviceLostError) -> None:
        """End the process. What it prints last, its parent passes on."""
        print(why, file=sys.stderr, flush=True)
        os._exit(LOST_STATUS)

    def _fill(
        self, field: list[_Entrant], queue: deque[tuple[int, Candidate, int]], deadline: float
    ) -> Iterator[tuple[int, Failure]]:
        """Make candidates ready as long as there is memory for them; what fails with that."""
        while queue and time.monotonic() < deadline:
            if sum(made.nbytes for made, _ in self._ready.values()) > KEPT_BYTES:
                return
            place, candidate, count = queue[0]
            try:
                with self._device:
                    made, seconds = self._contender(place, candidate)
            except DeviceLostError:
                raise
            except DeviceMemoryError as e:
                if self._ready:
                    return  # without these, it may have enough
                yield place, Failure("memory", str(e))
            except Exception as e:  # whatever else is wrong with a candidate
                yield place, failure(e, "build")
            else:
                runs = min(max(ceil(SAMPLE_SECONDS / max(seconds, 1e-9)), 1), MOST_RUNS)
                field.append(_Entrant(place, made, runs, count))
            queue.popleft()

    def _rounds(self, field: Sequence[_Entrant], deadline: float) -> Iterator[Found]:
        """A sample of each, in turn, until all have as many as are wanted."""
        for turn in range(max((e.missing for e in field), default=0)):
            found: Found = []
            for entrant in field[:: -1 if turn % 2 else 1]:
                if time.monotonic() > deadline:
                    yield found
                    return
                if entrant.missing > 0:
                    sample = self._sample(entrant)
                    entrant.missing = 0 if isinstance(sample, Failure) else entrant.missing - 1
                    found.append((entrant.place, sample))
            yield found

    def _sample(self, entrant: _Entrant) -> Sample | Failure:
        try:
            with self._device:
                seconds = 0.0
                for _ in range(entrant.runs):
                    self._post("run", entrant.place)
                    seconds += entrant.made.run()
                    entrant.made.compare()
        except Failed as e:
            return e.failure
        return Sample(seconds / entrant.runs)

    # ---------------------------------------------------------------- one candidate

    def _contender(self, place: int, candidate: Candidate) -> tuple[GpuContender, float]:
        known = place, candidate
        if known not in self._ready:
            self._post("build", place)
            given = faults.faults_of(place, candidate)
            made = self._made(candidate, given)
            self._ready[known] = made, self._check(place, made)
        return self._ready[known]

    def _load(self, candidate: Candidate, given: Sequence[str]) -> tuple[Launch, GpuCode]:
        try:
            launch = self.problem.instantiate(candidate)
        except LoweringError as e:
            raise Failed(Failure("refused", str(e))) from e
        faults.in_build(given)
        codes = load((launch.kernel,), self._target, self._store)
        return launch, codes.codes[symbol(launch.kernel)]

    def _made(self, candidate: Candidate, given: Sequence[str]) -> GpuContender:
        launch, code = self._load(candidate, given)
        return GpuContender(self.problem, launch, code, self._target, self._constants, self._sets,
                            given)  # fmt: skip

    def _check(self, place: int, made: GpuContender) -> float:
        """Seconds of its fastest run, if its results are right time and again. Raises Failed."""
        self._post("run", place)
        least = self._checked(made)
        if self._canonical is not None:
            self._canonical_bits(made)
        end = time.monotonic() + CHECK_SECONDS
        for number in range(1, max(CHECKS, MOST_CHECKS)):
            if number >= CHECKS and time.monotonic() > end:
                break
            self._post("run", place)
            least = min(least, made.run())
            made.compare()
        return least

    def _checked(self, made: GpuContender) -> float:
        """Seconds of its first run, whose results are compared with the truth. Raises Failed."""
        seconds = made.run()
        self._reference.check(made.launch, self._sets.computed())
        made.keep()
        return seconds

    def _canonical_bits(self, made: GpuContender) -> None:
        assert self._canonical is not None
        for n, kept in self._canonical.results.items():
            if kept.tobytes() != made.results[n].tobytes():
                raise Failed(Failure("wrong", f"output {n} has other bits than the default's"))


@dataclass(slots=True)
class _Entrant:
    """A candidate in a field. runs: in one sample. missing: samples that are still wanted."""

    place: int
    made: GpuContender
    runs: int
    missing: int
