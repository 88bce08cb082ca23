"""A tuning session: spends a budget of seconds over tasks, on one runner or several.

The caller's thread owns the searches and the records. Every runner has a thread of its own that
hands it requests and passes on what it hears, so that a signal, the end of the budget or a runner
that does not answer are noticed at once. Every outcome is recorded before anything else happens, if
nobody keeps the file locked: whatever ends a session, what it heard of is not measured again. Only
where a runner has told of nothing but failures for a while, these wait until it measures something:
the machine may be at fault, and what is on record as a failure is not tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

from .errors import RunnerLost, TunerError
from .events import Began, Ended, Event, Listed, State, Tried, Warned
from .interrupts import Stop
from .keeping import Keeper
from .outcome import Failure, Measurement, Outcome
from .records import Records
from .row import Row
from .runner import Request, Runner, Strategy
from .schedule import Job, Schedule
from .task import Task
from .transfer import starts

SETTLE: Final = 0.15
"""The last part of the time: nothing new is tried in it, only winners made sure of."""

GRACE: Final = 1.0
"""Seconds after the deadline for a runner to come back, and for one that is stopped to end."""

FEW: Final = 3
"""Failures in a row that are recorded at once."""

NEAR: Final = 2
"""Winners of that many near problems are where a search begins, and as many candidates that looked
fast while other work got in the way."""


def open_jobs(
    tasks: Sequence[tuple[Task, float]], strategy: Strategy, records: Records
) -> list[Job]:
    """A search for every task, given with its share of the run time. Outcomes on record are known
    to it, but for contaminated ones, which are measured again: the fastest of these, and what was
    found on other devices and for near problems, is where it begins."""
    jobs = []
    for task, weight in tasks:
        templates = _templates(task)
        found = on_record(task, records)
        disturbed = {k: o.seconds for k, o in found.items()
                     if isinstance(o, Measurement) and o.contaminated}  # fmt: skip
        known = {k: o for k, o in found.items() if k not in disturbed}
        rows = [*_winners(records.elsewhere(task.key, templates)),
                *records.near(task.key, task.features, NEAR, templates)]  # fmt: skip
        again = sorted(disturbed, key=lambda k: (disturbed[k], k))[:NEAR]
        first = starts(task, [*(task.space[k] for k in again), *(row.candidate for row in rows)])
        search = strategy.search(task, tuple(known.items()), first)
        jobs.append(Job(task, weight, search, known, frozenset(known)))
    return jobs


def on_record(task: Task, records: Records) -> dict[int, Outcome]:
    """What records say of a task's candidates, by place."""
    rows = records.of(task.key, _templates(task))
    return {task.places[r.candidate]: r.outcome for r in rows if r.candidate in task.places}


def _templates(task: Task) -> dict[str, int]:
    return {c.template: c.version for c in task.space}


def _winners(rows: Sequence[Row]) -> list[Row]:
    """The fastest row of each device."""
    best: dict[str, Row] = {}
    for row in rows:
        there = best.get(row.device)
        if row.seconds is not None and (
            there is None or there.seconds is None or row.seconds < there.seconds
        ):
            best[row.device] = row
    return list(best.values())


@dataclass(frozen=True, slots=True)
class _Heard:
    hand: _Hand
    place: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Done:
    hand: _Hand
    error: BaseException | None


_Message = _Heard | _Done | None


@dataclass(eq=False, slots=True)
class _Hand:
    """A runner and the thread that works with it. in_a_row: failures since it measured something;
    failures: those of them that are not recorded yet."""

    runner: Runner
    device: str | None
    origin: str
    inbox: SimpleQueue[_Message]
    orders: SimpleQueue[tuple[Task, Request, float] | None] = field(default_factory=SimpleQueue)
    job: Job | None = None
    began: float = 0.0
    heard: list[tuple[int, Outcome]] = field(default_factory=list)
    in_a_row: int = 0
    failures: list[Row] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._serve, name="tilewright tuner", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while (order := self.orders.get()) is not None:
            error: BaseException | None = None
            try:
                for place, outcome in self.runner.run(*order):
                    self.inbox.put(_Heard(self, place, outcome))
            except BaseException as e:  # whatever it is, the caller's thread deals with it
                error = e
            self.inbox.put(_Done(self, error))
        self.runner.close()


class Session:
    """One search over all jobs. `run` once.

    deadline: by `clock`; requests are handed out until then. records: every outcome goes there at
    once. report: hears what happens, in the thread that called `run`. Runners with an attribute
    `device` get tasks of that device only; `origin` says in records who measured.
    """

    def __init__(
        self, jobs: Sequence[Job], runners: Sequence[Runner], deadline: float, records: Records,
        *, report: Callable[[Event], None] = lambda event: None, stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic, began: float | None = None,
    ) -> None:  # fmt: skip
        self.schedule = Schedule(jobs)
        self.stop = stop or Stop()
        self._records = records
        self._keeper = Keeper(records, clock)
        self._report = report
        self._clock = clock
        self._deadline = deadline
        self._began = clock() if began is None else began
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._hands = [
            _Hand(r, getattr(r, "device", None), getattr(r, "origin", "local"), self._inbox)
            for r in runners
        ]

    def run(self) -> str:
        """Search until the deadline, until nothing is left to gain, or until asked to stop; why it
        ended, as in `events.Ended`. Runners are closed. Work of one that raises RunnerLost or
        TunerError goes to the others; what else a runner raises is raised."""
        jobs = self.schedule.jobs
        listed = tuple(Listed(j.task.label, j.weight, len(j.task.space), len(j.recorded),
                              j.default, j.best_seconds) for j in jobs)  # fmt: skip
        self._report(Began(listed, self.state()))
        self.stop.wake = lambda: self._inbox.put(None)
        crew = list(self._hands)
        try:
            for hand in crew:
                hand.start()
            why = self._search(crew)
        finally:
            self.stop.wake = None
            self._dismiss()
            lost = self._keeper.close()
        unsure = sum(len(hand.failures) for hand in self._hands)
        if unsure and self._records.path is not None:
            self._report(Warned(f"{unsure} failures are not recorded, as nothing could be measured"
                                " after them: the machine may be at fault"))  # fmt: skip
        if lost:
            self._report(Warned(f"{lost} outcomes could not be kept in {self._records.path}, and "
                                "will be measured again"))  # fmt: skip
        self._report(Ended(why, self.state()))
        return why

    def state(self) -> State:
        """How far it is."""
        s, now = self.schedule, self._clock()
        return State(
            now - self._began, max(0.0, self._deadline - now), sum(len(j.tried) for j in s.jobs),
            sum(j.failed for j in s.jobs), sum(len(j.recorded) for j in s.jobs), s.speedup, s.gain,
        )  # fmt: skip

    def _search(self, crew: list[_Hand]) -> str:
        schedule, last = self.schedule, False
        settle_at = self._before_the_end()
        while True:
            if self.stop.is_set():
                self._drain(crew)
                return "interrupted"
            if self._clock() >= settle_at and not schedule.settling:
                schedule.settle()
            for hand in crew:
                if hand.job is None and self._clock() < self._deadline:
                    self._hand_out(hand)
            if not crew:
                return "runners"
            if all(hand.job is None for hand in crew):
                if last or self._clock() >= self._deadline:
                    short = schedule.short or self._clock() >= self._deadline
                    return "budget" if short else "searched"
                if schedule.settling:  # all is certain, and there is time left
                    schedule.explore()
                    settle_at = self._before_the_end()
                else:  # nothing is left to search for
                    schedule.settle()
                    last = True
                continue
            try:
                left = self._deadline + GRACE - self._clock()
                self._take(self._inbox.get(timeout=max(0.0, left)), crew)
            except Empty:
                self._report(Warned("a runner did not come back at the end of the budget"))
                return "budget"

    def _before_the_end(self) -> float:
        """When to begin settling."""
        return self._deadline - SETTLE * max(0.0, self._deadline - self._clock())

    def _hand_out(self, hand: _Hand) -> None:
        job = self.schedule.next(hand.device)
        if job is None or job.pending is None:
            return
        hand.job, hand.heard, hand.began = job, [], self._clock()
        hand.orders.put((job.task, job.pending, self._deadline))

    def _take(self, message: _Message, crew: list[_Hand]) -> None:
        match message:
            case _Heard(hand, place, outcome) if hand.job is not None:
                hand.heard.append((place, outcome))
                self._keep(hand, hand.job, place, outcome)
            case _Done(hand, error) if hand.job is not None:
                job, hand.job = hand.job, None
                if any(isinstance(o, Measurement) for _, o in hand.heard):
                    self._believe(hand)
                if error is None:
                    self.schedule.finished(job, hand.heard, self._clock() - hand.began)
                elif isinstance(error, (RunnerLost, TunerError)):
                    self.schedule.given_back(job, hand.heard)
                    crew.remove(hand)
                    left = f"{len(crew)} left" if crew else "none is left"
                    self._report(Warned(f"a runner is lost ({error}); {left}"))
                else:
                    raise error

    def _keep(self, hand: _Hand, job: Job, place: int, outcome: Outcome) -> None:
        """Record an outcome, then count it."""
        task = job.task
        late = isinstance(outcome, Failure) and outcome.kind == "timeout" \
            and self._clock() >= self._deadline  # fmt: skip
        if not late:  # it might have come in time with more of it
            self._keep_row(hand, self._records.row(
                task.key, task.space[place], outcome, is_default=place == 0,
                features=task.features, origin=hand.origin,
            ))  # fmt: skip
        self.schedule.heard(job, place, outcome)
        best = job.best
        self._report(Tried(
            self.schedule.jobs.index(job), task.label, str(task.space[place]), outcome,
            job.default, job.best_seconds, "" if best is None else str(task.space[best]),
            len(job.outcomes), job.search.remaining_gain(), self.state(),
        ))  # fmt: skip

    def _keep_row(self, hand: _Hand, row: Row) -> None:
        if isinstance(row.outcome, Failure):
            hand.in_a_row += 1
            if hand.in_a_row > FEW:
                hand.failures.append(row)
                return
        self._keeper.add(row)
        if isinstance(row.outcome, Measurement):
            self._believe(hand)

    def _believe(self, hand: _Hand) -> None:
        """Record the failures that a runner told of: it measures others."""
        for row in hand.failures:
            self._keeper.add(row)
        hand.failures.clear()
        hand.in_a_row = 0

    def _drain(self, crew: list[_Hand]) -> None:
        """What came in before the wish to stop still counts."""
        while True:
            try:
                self._take(self._inbox.get_nowait(), crew)
            except Empty:
                return

    def _dismiss(self) -> None:
        """Stop and close all runners; what they say from now on is not heard."""
        for hand in self._hands:
            hand.runner.stop()
            hand.orders.put(None)
        until = time.monotonic() + GRACE
        for hand in self._hands:
            if hand.thread is not None:
                hand.thread.join(max(0.0, until - time.monotonic()))
