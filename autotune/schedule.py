"""Which task gets the next seconds of a budget.

What a second brings is the share of the model's run time that a task stands for, times the share
of it that more searching is expected to save, over what the next request costs. All three change
as outcomes come in: a task that became faster weighs less, a search that has seen much expects
less, and costs are learned. Nothing here runs anything or looks at a clock.

A search that is cut off may leave it open whether its winner is faster than the default or was only
lucky. So a schedule also settles: runs those in doubt (`choice.doubtful`) again, and nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .choice import doubtful
from .outcome import Failure, Measurement, Outcome
from .runner import Request, Search
from .task import Task

WORTHWHILE: Final = 5e-4
"""Less than that share of the model's run time is not worth searching for, all tasks together."""

DOUBT: Final = 3e-3
"""The share of a task's time that is expected to be lost by choosing its winner from few samples;
what a search that expects no gain any more asks for is worth that."""

MOST_ROUNDS: Final = 128
MOST_TIMES: Final = 4
"""Samples that settling takes of a candidate, and how often it asks for more of them."""

_PRIOR: Final = 2.0
"""Candidates that the average of all tasks counts for in the cost of one."""


@dataclass(eq=False, slots=True)
class Job:
    """A task, its share of the model's run time with its default, and how far its search is.

    outcomes: by place in the space, those on record among them. recorded: places known before.
    tried: places run since it began. seconds, units: time spent, and candidates it was spent on.
    pending: what is to be run next; heard: what came of it from runners that are gone. unsure:
    whether that is to make sure of the winner, and no request of the search. aside: the one of the
    search that waits meanwhile. settled: how often those in doubt were run again.
    """

    task: Task
    weight: float
    search: Search
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    recorded: frozenset[int] = frozenset()
    tried: set[int] = field(default_factory=set)
    seconds: float = 0.0
    units: int = 0
    busy: bool = False
    closed: bool = False
    pending: Request | None = None
    heard: list[tuple[int, Outcome]] = field(default_factory=list)
    unsure: bool = False
    aside: Request | None = None
    settled: int = 0

    @property
    def default(self) -> float | None:
        """Seconds of the default, where it was measured."""
        found = self.outcomes.get(0)
        return found.seconds if isinstance(found, Measurement) else None

    @property
    def best(self) -> int | None:
        """The place of the least time so far; the first of equals."""
        times = {k: o.seconds for k, o in self.outcomes.items() if isinstance(o, Measurement)}
        return min(times, key=lambda k: (times[k], k)) if times else None

    @property
    def best_seconds(self) -> float | None:
        found = None if self.best is None else self.outcomes[self.best]
        return found.seconds if isinstance(found, Measurement) else None

    @property
    def share(self) -> float:
        """Of the time that the model took with defaults: what the task takes now."""
        best = self.best_seconds
        return self.weight * best / self.default if best and self.default else self.weight

    @property
    def gain(self) -> float:
        """Of the same time, what more searching is expected to save."""
        return 0.0 if self.closed else self.share * self.search.remaining_gain()

    @property
    def failed(self) -> int:
        return sum(isinstance(self.outcomes.get(k), Failure) for k in self.tried)


class Schedule:
    """The tasks of a session, and what to do next."""

    def __init__(self, jobs: Sequence[Job], worthwhile: float = WORTHWHILE) -> None:
        self.jobs = tuple(jobs)
        self.worthwhile = worthwhile
        self.short = False  # whether time ran out for a request
        self.settling = False

    def settle(self) -> None:
        """From now on try nothing new, and make sure of winners."""
        self.settling = True
        for job in self.jobs:
            if not job.busy:
                job.pending, job.aside = None, job.pending

    def explore(self) -> None:
        """Go on searching where that was left."""
        self.settling = False
        for job in self.jobs:
            if not job.busy and (job.unsure or job.pending is None):
                job.pending, job.aside, job.unsure = job.aside, None, False

    def next(self, device: str | None = None) -> Job | None:
        """The job whose pending request brings most per second, now busy; None when none is worth
        it. device: only tasks of this device."""
        exploring = self.gain >= self.worthwhile
        best: tuple[float, Job] | None = None
        for job in self.jobs:
            if job.busy or device not in (None, job.task.key.device):
                continue
            value = self._value(job, exploring)
            if value > 0.0 and (best is None or value > best[0]):
                best = value, job
        if best is None:
            return None
        best[1].busy = True
        return best[1]

    def _value(self, job: Job, exploring: bool) -> float:
        """What the job's next request brings per second: a gain, or certainty."""
        if self.settling:
            if job.pending is None:
                job.pending, job.unsure = _unsure(job), True
            return job.share * DOUBT / self.cost(job, job.pending) if job.pending else 0.0
        if job.closed:
            return 0.0
        gain = job.search.remaining_gain()
        if gain == 0.0 and job.outcomes:
            gain = DOUBT
        elif not exploring:
            return 0.0
        request = self._asked(job)
        return 0.0 if request is None else job.share * gain / self.cost(job, request)

    def heard(self, job: Job, place: int, outcome: Outcome) -> None:
        """An outcome has come in."""
        job.outcomes[place] = outcome
        job.tried.add(place)

    def finished(self, job: Job, heard: Sequence[tuple[int, Outcome]], seconds: float) -> None:
        """The pending request came to an end after so many seconds. One of which nothing was heard
        will not be repeated, and its task is left alone: no time was left for it."""
        unsure = job.unsure
        job.busy, job.pending, job.unsure = False, None, False
        told, job.heard = [*job.heard, *heard], []
        job.seconds += seconds
        job.units += len(dict(heard))
        job.settled += unsure
        if told:
            (job.search.learn if unsure else job.search.tell)(told)
        else:
            job.closed = self.short = True
            job.settled = MOST_TIMES

    def given_back(self, job: Job, heard: Sequence[tuple[int, Outcome]]) -> None:
        """Who ran the pending request is gone. What was heard counts, the rest is still wanted."""
        job.busy = False
        if job.pending is None:
            return
        job.heard += heard
        missing = tuple(k for k in job.pending.candidates if k not in dict(heard))
        if missing:
            job.pending = replace(job.pending, candidates=missing)
        else:
            self.finished(job, (), 0.0)

    def cost(self, job: Job, request: Request) -> float:
        """Expected seconds of a request."""
        units = sum(j.units for j in self.jobs)
        average = sum(j.seconds for j in self.jobs) / units if units else 1.0
        each = (_PRIOR * average + job.seconds) / (_PRIOR + job.units)
        return max(1e-9, each * len(request.candidates))

    def _asked(self, job: Job) -> Request | None:
        if job.pending is None:
            job.pending = job.search.ask()
            job.closed = job.pending is None
        return job.pending

    # ---------------------------------------------------------------- the model as a whole

    @property
    def share(self) -> float:
        """What the model takes now, of the time that it took with defaults; the mean of devices."""
        return 1.0 - sum(j.weight - j.share for j in self.jobs) / self._devices

    @property
    def speedup(self) -> float:
        return 1.0 / max(self.share, 1e-9)

    @property
    def gain(self) -> float:
        """The share of the model's present time that more searching is expected to save."""
        return sum(j.gain for j in self.jobs) / self._devices / max(self.share, 1e-9)

    @property
    def _devices(self) -> int:
        return len({j.task.key.device for j in self.jobs}) or 1


def _unsure(job: Job) -> Request | None:
    """Those that may or may not be the winner, with twice the samples that they have."""
    task = job.task
    times = {task.space[k]: o for k, o in job.outcomes.items() if isinstance(o, Measurement)}
    places = tuple(task.places[c] for c in doubtful(task.default, times))
    if not places or job.settled >= MOST_TIMES:
        return None
    least = min(times[task.space[k]].rounds for k in places)
    rounds = min(least, MOST_ROUNDS - least)
    return Request(places, rounds) if rounds > 0 else None
