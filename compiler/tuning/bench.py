"""Build, check and time the candidates of one problem: what a worker does with its requests.

Every candidate first has to compute what the float64 reference does, within the bound of its
arithmetic, into memory that was filled with NaN. Short ones are looked at many times, as code that
is wrong once in a while should not be found by users. Then come timed runs, one sample of each
candidate in turn, so that all meet the same conditions. The results of every run are compared with
the first ones, bit by bit, before its time counts.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

from ...autotune.outcome import Failure
from ...autotune.serving import Failed, Post, Wanted, failure
from ...autotune.statistics import Sample, per_run, sampled
from ...autotune.task import Candidate
from ..codegen.cpu.target import host
from ..errors import LoweringError
from ..kernels.ir import Launch
from ..runtime.linux import available_processors, busy_seconds
from ..runtime.objects import Objects, load
from ..store import Store
from . import faults
from .candidate import Constants, Contender, Sets
from .probe import strain
from .problem import parse
from .reference import Reference

SAMPLE_SECONDS: Final = 100e-6
"""A sample is as many runs as take that long, at least: a thousand times the clock's step."""

MOST_RUNS: Final = 32
"""Of one sample."""

CHECKS: Final = 50
CHECK_SECONDS: Final = 10e-3
"""A candidate's results are looked at that many times before it is timed, or for that long."""

AGAIN: Final = 2
"""Times as many rounds as are wanted, at most, where other work disturbs some."""

TOGETHER_BYTES: Final = 1 << 30
"""Of constants and scratch of candidates that are timed in turn; the others follow them."""

WATCHED_SECONDS: Final = 0.1
"""What others do to all processors is looked at in stretches of that length: ten of the system's
ticks."""

FOREIGN: Final = 0.1
"""Share of the processors that others may have without being noticed: what the ticks leave open."""

Found = list[tuple[int, Sample | Failure]]


class ProblemBench:
    """A Bench (`autotune/serving.py`) for the problem that a task's payload is the text of.

    Raises TextError for text that is none.
    """

    def __init__(self, payload: str, post: Post) -> None:
        self.problem = parse(payload)
        self._post = post
        self._target = host()
        self._store = Store()
        self._constants = Constants(self.problem.graph)

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.problem)

    @cached_property
    def _sets(self) -> Sets:
        return Sets(self.problem.graph, self._reference.feeds)

    def prepare(self) -> None:
        """Compute the reference."""
        self._sets.get(0)

    def build(self, place: int, candidate: Candidate) -> None:
        """Put the candidate's code into the store. Raises Failed."""
        self._load(place, candidate)

    def _load(self, place: int, candidate: Candidate) -> tuple[Launch, Objects]:
        try:
            launch = self.problem.instantiate(candidate)
        except LoweringError as e:
            raise Failed(Failure("refused", str(e))) from e
        faults.in_build(faults.faults_of(place, candidate))
        return launch, load((launch.kernel,), self._target, self._store)

    # ---------------------------------------------------------------- measuring

    @property
    def _alone(self) -> bool:
        """Whether kernels run on the calling thread alone."""
        return self.problem.device.threads == 1

    def measure(
        self, wanted: Wanted, rounds: Sequence[int], deadline: float
    ) -> Iterator[Found]:  # fmt: skip
        """As `Bench.measure`."""
        queue = list(zip(wanted, rounds, strict=True))
        while queue and time.monotonic() < deadline:
            field: list[_Entrant] = []
            while queue and sum(e.contender.nbytes for e in field) < TOGETHER_BYTES:
                if time.monotonic() >= deadline:
                    break
                (place, candidate), count = queue.pop(0)
                try:
                    field.append(self._entrant(place, candidate, count))
                except Exception as e:  # whatever else is wrong with a candidate
                    yield [(place, failure(e, "build"))]
            yield from self._rounds(field, deadline)
            self._constants.forget()

    def _entrant(self, place: int, candidate: Candidate, rounds: int) -> _Entrant:
        """The candidate, built and checked. Raises Failed, LoweringError, MemoryError."""
        self._post("build", place)
        launch, objects = self._load(place, candidate)
        contender = Contender(place, candidate, self.problem, launch, objects,
                              self._constants.of(launch), self._sets)  # fmt: skip
        seconds = self._check(contender)
        runs = min(max(ceil(SAMPLE_SECONDS / seconds), 1), MOST_RUNS)
        return _Entrant(contender, runs, rounds, runs * seconds)

    def _check(self, contender: Contender) -> float:
        """Seconds of its fastest run, if its results are right. Raises Failed."""
        address = contender.address(1)
        begin = time.perf_counter()
        least = float("inf")
        for number in range(CHECKS):
            self._post("run", contender.place)
            self._sets.poison(0)
            start = time.perf_counter()
            contender.run(address)
            least = min(least, time.perf_counter() - start)
            contender.spoil(1)
            if number == 0:
                self._reference.check(contender.launch, contender.computed())
                contender.keep()
                begin = time.perf_counter()
            else:
                contender.compare(1)
            if time.perf_counter() - begin > CHECK_SECONDS and number:
                break
        return least

    def _rounds(self, field: Sequence[_Entrant], deadline: float) -> Iterator[Found]:
        """A sample of each, in turn, until all have as many calm ones as are wanted. Samples are
        told of when it is known what others did meanwhile."""
        watch = _Watch(self._alone)
        held: list[tuple[_Entrant, Sample | Failure]] = []
        for turn in range(AGAIN * max((e.missing for e in field), default=0)):
            for entrant in field[:: -1 if turn % 2 else 1]:
                if entrant.missing <= 0:
                    continue
                if time.monotonic() + entrant.seconds > deadline:
                    yield _told(held, 0.0)
                    return
                held.append((entrant, self._sample(entrant)))
                _count(*held[-1], -1)
            share = watch.foreign()
            if share is not None:
                yield _told(held, share)
                held = []
        yield _told(held, 0.0)

    def _sample(self, entrant: _Entrant) -> Sample | Failure:
        contender, runs = entrant.contender, entrant.runs
        begin = time.perf_counter()
        contender.refresh(runs)
        address = contender.address(runs)
        alone = self._alone
        whose = resource.RUSAGE_THREAD if alone else resource.RUSAGE_SELF
        self._post("run", contender.place)
        before = strain()
        switches = resource.getrusage(whose).ru_nivcsw
        cpu = time.thread_time_ns()
        wall = time.perf_counter_ns()
        contender.run(address)
        wall = time.perf_counter_ns() - wall
        cpu = time.thread_time_ns() - cpu
        switches = resource.getrusage(whose).ru_nivcsw - switches
        strained = max(before, strain())
        try:
            contender.spoil(runs)
            contender.compare(runs)
        except Failed as e:
            return e.failure
        entrant.seconds = time.perf_counter() - begin
        return per_run(sampled(wall / 1e9, cpu / 1e9, switches, strained, alone), runs)


@dataclass(slots=True)
class _Entrant:
    """A candidate in a field. runs: in one sample. missing: samples that are still wanted. seconds:
    what one takes, with all that is around it."""

    contender: Contender
    runs: int
    missing: int
    seconds: float


class _Watch:
    """Sees how much others have of all processors, for kernels that run on all of them: a thread
    that comes late because its processor is taken shows in no clock of ours."""

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._start()

    def _start(self) -> None:
        self._busy = None if self._alone else busy_seconds()
        self._own, self._wall = time.process_time(), time.perf_counter()

    def foreign(self) -> float | None:
        """The share that others had since it was asked last, 0 where it is small; None as long as
        that cannot be told, and it has to be asked again."""
        if self._busy is None:
            return 0.0
        wall = time.perf_counter() - self._wall
        if wall < WATCHED_SECONDS:
            return None
        busy = (busy_seconds() or self._busy) - self._busy
        own = time.process_time() - self._own
        self._start()
        share = (busy - own) / (wall * available_processors())
        return share if share > FOREIGN else 0.0


def _told(held: Sequence[tuple[_Entrant, Sample | Failure]], share: float) -> Found:
    """What came of some rounds, in which others had that share of the processors."""
    found: Found = []
    for entrant, outcome in held:
        _count(entrant, outcome, 1)
        told = outcome.pressed(share) if isinstance(outcome, Sample) else outcome
        _count(entrant, told, -1)
        found.append((entrant.contender.place, told))
    return found


def _count(entrant: _Entrant, outcome: Sample | Failure, by: int) -> None:
    """Change the number of missing samples by a calm one. After a failure nothing is missing."""
    if isinstance(outcome, Failure):
        entrant.missing = 0
    elif outcome.is_calm:
        entrant.missing += by
