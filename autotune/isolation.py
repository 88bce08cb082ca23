"""Runs candidates in worker processes, so that nothing they do harms the tuner.

Builders make code, several at a time. Then they sleep, and one worker checks and times the
candidates of the request, side by side. Whoever crashes, hangs, takes too much memory or answers
nonsense is ended, and its candidate has failed; the rest of the request is done again by a new
worker. Samples arrive round by round and stay here, so that they survive whoever took them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import Final

from .errors import TunerError
from .outcome import Failure, Outcome
from .runner import Request
from .statistics import Sample, measurement
from .task import Candidate, Task
from .workers import (
    Built,
    Death,
    Done,
    Event,
    Failing,
    Limits,
    Sampled,
    Worker,
    listen,
    wanted,
)

EXCUSED: Final = 3
"""Deaths in a row that no candidate is to blame for, of workers that did not start or were ended
from outside; then it does not go on."""

GRACE: Final = 0.25
"""Seconds behind a deadline for what is on its way."""

REMEMBERED: Final = 16
"""Builds that tell how long the next will take."""

Known = tuple[str, Candidate]


class IsolatedRunner:
    """A Runner (`runner.py`) for one device.

    argv: the program of the workers (`serving.py`). builders: processes that build at the same
    time; with 0 of them the worker that measures builds as well, which is for code that it could
    not get from others. environment: of the workers (default: this process's). device, origin: what
    a session reads (`session.Session`); None runs tasks of any device.

    It is used by one thread, but for `stop`. Workers are started when they are needed, and serve
    many tasks.
    """

    def __init__(
        self, argv: Sequence[str], *, limits: Limits | None = None, builders: int = 2,
        environment: Mapping[str, str] | None = None, device: str | None = None,
        origin: str = "local",
    ) -> None:  # fmt: skip
        self.argv, self.environment = tuple(argv), environment
        self.device, self.origin = device, origin
        self.limits = Limits() if limits is None else limits
        self._most = builders
        self._builders: list[Worker] = []
        self._measurer: Worker | None = None
        self._built: set[Known] = set()
        self._samples: dict[Known, list[Sample]] = {}
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._excused = 0
        self._stopped = threading.Event()

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        """As `Runner.run`. Raises TunerError for places that the space does not have, and if
        workers cannot be started."""
        places = list(dict.fromkeys(request.candidates))
        if not all(0 <= k < len(task.space) for k in places):
            raise TunerError(f"the space has {len(task.space)} candidates; asked for {places}")
        if self._most:
            self._ready_measurer().ask("prepare", task.key.digest, task.payload)
            failed = set()
            for place, failure in self._build(task, places, deadline):
                failed.add(place)
                yield place, failure
            places = [k for k in places if k not in failed and self._is_built(task, k)]
        yield from self._measure(task, places, request.rounds, deadline)

    def stop(self) -> None:
        """From any thread: end soon what `run` is doing, and begin nothing new."""
        self._stopped.set()

    def close(self) -> None:
        """End all workers."""
        for worker in (*self._builders, *filter(None, (self._measurer,))):
            worker.close()
        self._builders, self._measurer = [], None

    def __enter__(self) -> IsolatedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- building

    def _build(
        self, task: Task, places: Sequence[int], deadline: float
    ) -> Iterator[tuple[int, Failure]]:
        """Have builders make code of what has none; yields what could not be built."""
        name = task.key.digest
        queue = deque(k for k in places if not self._is_built(task, k))
        doing: dict[Worker, tuple[int, float]] = {}  # place, and since when
        try:
            while queue or doing:
                now = time.monotonic()
                while queue and len(doing) < self._most and now + self._typical() <= deadline:
                    place = queue.popleft()
                    worker = self._free_builder(doing)
                    doing[worker] = place, now
                    worker.ask("build", name, task.payload,
                               wanted=[wanted(place, task.space[place])])  # fmt: skip
                if not doing or now >= deadline or self._stopped.is_set():
                    return
                for worker, event in listen(list(doing), deadline, self._stopped.is_set):
                    place, since = doing[worker]
                    if isinstance(event, Built):
                        self._excused = 0
                        self._built.add((name, task.space[place]))
                        self._durations.append(time.monotonic() - since)
                        for each in self._builders:
                            each.limits = self.limits.among(self._typical())
                    elif isinstance(event, Failing):
                        yield place, event.failure
                    elif isinstance(event, Done):
                        self._excused = 0
                        del doing[worker]
                    elif isinstance(event, Death):
                        del doing[worker]
                        self._builders.remove(worker)
                        failure = self._judged(event)
                        if failure is None:
                            queue.appendleft(place)
                        else:
                            yield place, failure
        finally:
            for worker in doing:
                worker.close()
                self._builders.remove(worker)

    def _is_built(self, task: Task, place: int) -> bool:
        return (task.key.digest, task.space[place]) in self._built

    def _typical(self) -> float:
        """Seconds that a build takes."""
        return median(self._durations) if self._durations else 0.0

    def _free_builder(self, doing: Collection[Worker]) -> Worker:
        for worker in self._builders:
            if worker not in doing:
                return worker
        self._builders.append(self._start())
        return self._builders[-1]

    # ---------------------------------------------------------------- measuring

    def _measure(
        self, task: Task, places: Sequence[int], rounds: int, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:
        """Have candidates measured: failures at once, times when all is done, or time is up."""
        name = task.key.digest
        missing = dict.fromkeys(places, rounds)  # samples that are still wanted
        failed: set[int] = set()
        together = True
        while missing and time.monotonic() < deadline and not self._stopped.is_set():
            asked = tuple(missing) if together else (next(iter(missing)),)
            failures: dict[int, Failure] = {}
            death = None
            for event in self._asked(task, asked, missing, deadline):
                if isinstance(event, Sampled):
                    for place, sample in event.samples:
                        if place in asked:
                            self._samples.setdefault((name, task.space[place]), []).append(sample)
                            missing[place] -= sample.is_calm
                            if sample.is_calm:  # it gets further
                                self._excused = 0
                elif isinstance(event, Failing) and event.place in asked:
                    failures[event.place] = event.failure
                elif isinstance(event, Done):
                    self._excused = 0
                elif isinstance(event, Death):
                    death = event
            why = None if death is None else self._judged(death)
            if death is not None and why is not None:
                blamed = _blamed(death, asked)
                failures |= dict.fromkeys(blamed, why)
                together = together and bool(blamed)  # whoever it was, alone it will be known
            for place, failure in failures.items():
                failed.add(place)
                self._samples.pop((name, task.space[place]), None)
                yield place, failure
            over = asked if death is None else tuple(k for k in asked if missing[k] <= 0)
            missing = {k: n for k, n in missing.items() if k not in failed and k not in over}
        for place in places:
            samples = self._samples.get((name, task.space[place]))
            if samples and place not in failed:
                yield place, measurement(samples)

    def _asked(
        self, task: Task, places: Sequence[int], rounds: Mapping[int, int], deadline: float
    ) -> Iterator[Event]:
        """What the worker that measures says to a request; it has answered, or is ended."""
        worker = self._ready_measurer()
        worker.ask("measure", task.key.digest, task.payload,
                   wanted=[wanted(k, task.space[k]) for k in places],
                   rounds=[rounds[k] for k in places], deadline=deadline)  # fmt: skip
        try:
            while worker.busy:
                found = listen([worker], deadline + GRACE, self._stopped.is_set)
                if not found:
                    return
                for _, event in found:
                    yield event
        finally:
            if worker.busy or not worker.alive:
                worker.close()
                self._measurer = None

    def _ready_measurer(self) -> Worker:
        if self._measurer is None:
            self._measurer = self._start()
        return self._measurer

    # ---------------------------------------------------------------- workers

    def _start(self) -> Worker:
        try:
            return Worker(self.argv, self.limits, self.environment)
        except OSError as e:
            raise TunerError(f"cannot start a worker, {' '.join(self.argv)}: {e}") from e

    def _judged(self, death: Death) -> Failure | None:
        """Why the candidate has failed whose worker died; None where it is not to blame.

        Raises TunerError if workers die before they can answer anything.
        """
        if death.started and not death.innocent:
            self._excused = 0
            return death.failure
        self._excused += 1
        if self._excused < EXCUSED:
            return None
        if death.started:
            return death.failure
        command = " ".join(self.argv)
        raise TunerError(f"workers do not start ({command}): {death.failure.detail}")


def _blamed(death: Death, asked: Sequence[int]) -> Sequence[int]:
    """Whose fault a death was; nobody's where that cannot be said."""
    if death.step == "prepare" or len(asked) == 1:
        return asked
    return (death.place,) if death.place in asked else ()
