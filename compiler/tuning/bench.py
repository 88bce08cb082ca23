"""Build, check and time the candidates of one problem: what a worker does with its requests.

Every candidate first has to compute what the float64 reference does, within the bound of its
arithmetic, into memory that was filled with NaN. Short ones are looked at many times, as code that
is wrong once in a while should not be found by users. Then come timed runs, one sample of each
candidate in turn, so that all meet the same conditions, and in several rooms: which addresses data
and code lie at is luck, and part of a time. The results of every run are compared with the first
ones, bit by bit, before its time counts.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Final

from ...autotune.outcome import Failure
from ...autotune.serving import Failed, Post, Wanted, failure
from ...autotune.statistics import Sample, per_run, sampled
from ...autotune.task import Candidate
from ..codegen.cpu.target import host
from ..errors import LoweringError
from ..kernels.ir import Kernel, Launch
from ..runtime.linux import available_processors, busy_seconds
from ..runtime.objects import Objects, load
from ..store import Store
from . import faults
from .candidate import Constants, Contender, Sets
from .probe import strain
from .problem import parse
from .reference import Reference

SAMPLE_SECONDS: Final = 100e-6
"""A sample is as many runs as take about that long: a thousand times the clock's step."""

MOST_RUNS: Final = 32
"""Of one sample."""

FLOPS: Final = 1e11
BYTES: Final = 5e10
"""What a core computes, and what is read and written, in a second, roughly. How long a run takes at
least follows from the problem alone: all candidates, in any process, have the same number of runs
to a sample, so that they find the same part of their inputs in caches."""

CHECKS: Final = 50
CHECK_SECONDS: Final = 10e-3
"""A candidate's results are looked at that many times before it is timed, or for that long, which
time of other work on the same core is not part of."""

AGAIN: Final = 2
"""Times as many rounds as are wanted, at most, where other work disturbs some."""

ROOMS: Final = 4
BLOCK: Final = 8
"""A candidate is timed in memory of that many kinds, so many samples in one before those of the
next."""

ROOM_BYTES: Final = 16 << 20
"""Who moves more than that has one room: of so many pages, as many are lucky in any."""

KEPT_BYTES: Final = 1 << 30
"""Of constants and scratch of candidates that are ready to run. Where they take more, they are
given up, and candidates of one request are timed in several fields, one after another."""

WATCHED_SECONDS: Final = 0.1
"""What others do to all processors is looked at in stretches of that length: ten of the system's
ticks."""

FOREIGN: Final = 0.1
"""Share of the processors that others may have without being noticed: what the ticks leave open."""

Found = list[tuple[int, Sample | Failure]]


@dataclass(slots=True)
class _Room:
    """Memory that candidates are timed in, and those that are ready to run there.

    Which addresses, and which pages, inputs, results, constants and code lie at is luck, and a
    kernel is up to a few hundredths slower or faster for it: by as much processes would disagree
    that time in one such place only.
    """

    sets: Sets
    constants: Constants
    ready: dict[tuple[int, Candidate], tuple[Contender, float]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of constants and scratch of all that is ready to run, as if nothing were shared."""
        return sum(made.nbytes for made, _ in self.ready.values())

    def clear(self) -> None:
        """Give up what is ready to run."""
        self.ready.clear()
        self.constants.forget()


class ProblemBench:
    """A Bench (`autotune/serving.py`) for the problem that a task's payload is the text of.

    Raises TextError for text that is none.
    """

    def __init__(self, payload: str, post: Post) -> None:
        self.problem = parse(payload)
        self._alone = self.problem.device.threads == 1  # kernels run on the calling thread only
        self._post = post
        self._target = host()
        self._store = Store()
        self._rooms: list[_Room] = []
        self._blocks = 0  # that have ended

    # ---------------------------------------------------------------- made once

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.problem)

    @cached_property
    def _kernel(self) -> Kernel:
        """The default's: all candidates' have the same work to do at least."""
        return self.problem.instantiate(self.problem.default()).kernel

    @property
    def _room(self) -> _Room:
        """Where candidates are timed now."""
        number = self._blocks % (ROOMS if self._kernel.bytes <= ROOM_BYTES else 1)
        while len(self._rooms) <= number:
            graph = self.problem.graph
            self._rooms.append(_Room(Sets(graph, self._reference.feeds), Constants(graph)))
        return self._rooms[number]

    @cached_property
    def _canonical(self) -> Contender | None:
        """The candidate whose bits all others must have, run once; None where they may differ."""
        if self.problem.numerics != "reproducible":
            return None
        made = self._contender(self.problem.default(), ())
        self._checked(made)
        return made

    @cached_property
    def _runs(self) -> int:
        """Of one sample of any candidate."""
        threads = self.problem.device.threads
        seconds = max(self._kernel.flops / (FLOPS * threads), self._kernel.bytes / BYTES)
        return min(max(ceil(SAMPLE_SECONDS / max(seconds, 1e-9)), 1), MOST_RUNS)

    def prepare(self) -> None:
        """Compute what candidates are compared with."""
        self._room.sets.get(0)
        self._canonical  # noqa: B018

    # ---------------------------------------------------------------- one candidate

    def build(self, place: int, candidate: Candidate) -> None:
        """Put the candidate's code into the store. Raises Failed."""
        self._load(candidate, faults.faults_of(place, candidate))

    def contender(self, place: int, candidate: Candidate) -> tuple[Contender, float]:
        """The candidate, built and checked, and the seconds of a run with warm caches. Those that
        were made before are kept for a while. Raises Failed, LoweringError, MemoryError."""
        ready, known = self._room.ready, (place, candidate)
        if known not in ready:
            self._post("build", place)
            made = self._contender(candidate, faults.faults_of(place, candidate))
            others = (room.ready[known] for room in self._rooms if known in room.ready)
            ready[known] = made, self._check(place, made, next(others, None))
        return ready[known]

    def _load(self, candidate: Candidate, given: Sequence[str]) -> tuple[Launch, Objects]:
        try:
            launch = self.problem.instantiate(candidate)
        except LoweringError as e:
            raise Failed(Failure("refused", str(e))) from e
        faults.in_build(given)
        return launch, load((launch.kernel,), self._target, self._store)

    def _contender(self, candidate: Candidate, given: Sequence[str]) -> Contender:
        launch, objects = self._load(candidate, given)
        room = self._room
        return Contender(self.problem, launch, objects, room.constants.of(launch), room.sets, given)

    def _check(
        self, place: int, made: Contender, other: tuple[Contender, float] | None = None
    ) -> float:
        """Seconds of its fastest run, if its results are right time and again; once, where they
        were in another room. Raises Failed."""
        self._post("run", place)
        if other is not None:
            made.results, least = other[0].results, other[1]
            self._run_once(made)
            made.compare(1)
            return least
        least = self._checked(made)
        for n, kept in made.results.items():
            if self._canonical is not None and not self._canonical.agree(n, kept):
                raise Failed(Failure("wrong", f"output {n} has other bits than the default's"))
        end = time.thread_time() + CHECK_SECONDS
        for _ in range(1, CHECKS):
            if time.thread_time() > end:
                break
            self._post("run", place)
            least = min(least, self._run_once(made))
            made.compare(1)
        return least

    def _checked(self, made: Contender) -> float:
        """Seconds of its first run, whose results are compared with the truth. Raises Failed."""
        seconds = self._run_once(made)
        self._reference.check(made.launch, made.computed())
        made.keep()
        return seconds

    def _run_once(self, made: Contender) -> float:
        address = made.address(1)
        self._room.sets.poison(0)
        start = time.perf_counter()
        made.run(address)
        seconds = time.perf_counter() - start
        made.spoil(1)
        return seconds

    # ---------------------------------------------------------------- several, side by side

    def measure(self, wanted: Wanted, rounds: Sequence[int], deadline: float) -> Iterator[Found]:
        """As `Bench.measure`."""
        missing = {place: count for (place, _), count in zip(wanted, rounds, strict=True)}
        while any(missing.values()) and time.monotonic() < deadline:
            some = [(w, min(missing[w[0]], BLOCK)) for w in wanted if missing[w[0]]]
            for found in self._block(some, deadline):
                yield found
                missing |= {place: 0 for place, what in found if isinstance(what, Failure)}
            missing = {place: max(count - BLOCK, 0) for place, count in missing.items()}
            self._blocks += 1

    def _block(
        self, wanted: Sequence[tuple[tuple[int, Candidate], int]], deadline: float
    ) -> Iterator[Found]:
        """Samples in one room."""
        queue = list(wanted)
        while queue and time.monotonic() < deadline:
            entrants: list[_Entrant] = []
            while queue and time.monotonic() < deadline and self._bytes < KEPT_BYTES:
                (place, candidate), count = queue.pop(0)
                try:
                    contender, seconds = self.contender(place, candidate)
                except Exception as e:  # whatever else is wrong with a candidate
                    yield [(place, failure(e, "build"))]
                else:
                    entrants.append(_Entrant(place, contender, count, self._runs * seconds))
            yield from self._rounds(entrants, deadline)
            if self._bytes >= KEPT_BYTES:
                for room in self._rooms:
                    room.clear()

    @property
    def _bytes(self) -> int:
        return sum(room.nbytes for room in self._rooms)

    def _rounds(self, entrants: Sequence[_Entrant], deadline: float) -> Iterator[Found]:
        """A sample of each, in turn, until all have as many calm ones as are wanted. Samples are
        told of when it is known what others did meanwhile."""
        watch = _Watch(self._alone)
        held: list[tuple[_Entrant, Sample | Failure]] = []
        for turn in range(AGAIN * max((e.missing for e in entrants), default=0)):
            for entrant in entrants[:: -1 if turn % 2 else 1]:
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
        contender, runs = entrant.contender, self._runs
        begin = time.perf_counter()
        contender.refresh(runs)
        address = contender.address(runs)
        alone = self._alone
        whose = resource.RUSAGE_THREAD if alone else resource.RUSAGE_SELF
        self._post("run", entrant.place)
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
    """A candidate in a field. missing: samples that are still wanted. seconds: what one takes, with
    all that is around it."""

    place: int
    contender: Contender
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
        found.append((entrant.place, told))
    return found


def _count(entrant: _Entrant, outcome: Sample | Failure, by: int) -> None:
    """Change the number of missing samples by a calm one. After a failure nothing is missing."""
    if isinstance(outcome, Failure):
        entrant.missing = 0
    elif outcome.is_calm:
        entrant.missing += by
