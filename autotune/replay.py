"""A runner that plays recordings back, and what strategies make of them.

Nothing is timed, so strategies are compared in no time and exactly: every outcome of every
candidate is known. Jitter may be injected, to see what a search and the choice of a winner do
where times are noisy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .choice import MARGIN, winner
from .errors import TunerError
from .outcome import Measurement, Outcome
from .recording import Recording
from .runner import Request, Strategy
from .statistics import Sample, measurement
from .task import Candidate, Task


class ReplayRunner:
    """Runs the candidates of recordings: their outcomes are those on record, with intervals that
    shrink as more rounds are wanted than are on record.

    jitter: every sample is off by a random share of up to so much, up or down; outcomes are then
    the statistics of those samples. order: the places of each task as they were first asked for.
    Raises TunerError for a task that no recording is of.
    """

    def __init__(
        self, recordings: Iterable[Recording], jitter: float = 0.0, seed: int = 0
    ) -> None:  # fmt: skip
        self._recordings = {r.task.key: r for r in recordings}
        self._jitter, self._rng = jitter, Random(seed)
        self._samples: dict[tuple[str, int], list[Sample]] = {}
        self.order: dict[str, list[int]] = {}

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        """Outcomes at once, whatever the deadline."""
        recording = self._recordings.get(task.key)
        if recording is None:
            raise TunerError(f"nothing is recorded of the task {task.label!r}")
        order = self.order.setdefault(task.key.digest, [])
        for place in request.candidates:
            if place not in order:
                order.append(place)
            yield place, self._outcome(recording, place, request.rounds)

    def stop(self) -> None:
        """There is nothing to end: outcomes come at once."""

    def close(self) -> None:
        """Nothing is held."""

    def _outcome(self, recording: Recording, place: int, rounds: int) -> Outcome:
        outcome = recording.outcomes[place]
        if not isinstance(outcome, Measurement):
            return outcome
        samples = self._samples.setdefault((recording.task.key.digest, place), [])
        for _ in range(rounds):
            off = self._rng.uniform(-self._jitter, self._jitter)
            samples.append(Sample(outcome.seconds * (1 + off)))
        if self._jitter:
            return measurement(samples)
        part = min(1.0, math.sqrt(outcome.rounds / len(samples)))
        low = outcome.seconds - part * (outcome.seconds - outcome.low)
        high = outcome.seconds + part * (outcome.high - outcome.seconds)
        return Measurement(outcome.seconds, low, high, len(samples))


@dataclass(frozen=True, slots=True)
class Trace:
    """What a search did with a recording.

    order: places as they were first run. outcomes: what the search knows in the end. rounds:
    samples that were taken, of all candidates together. gains: what the search expected to save,
    after so many places as stand beside it; only where it was asked.
    """

    recording: Recording
    order: tuple[int, ...]
    outcomes: dict[int, Outcome]
    rounds: int
    gains: tuple[tuple[int, float], ...]

    @property
    def winner(self) -> Candidate:
        """What the task gets."""
        return self.choice()

    def choice(self, margin: float = MARGIN) -> Candidate:
        """What the task gets with that margin."""
        task = self.recording.task
        return winner(task.default, {task.space[k]: o for k, o in self.outcomes.items()}, margin)

    @property
    def curve(self) -> tuple[float, ...]:
        """Element k: the best time of the whole space over the best of the first k + 1 places that
        were run. A curve stays level behind its last place."""
        return curve(self.recording, self.order)


def curve(recording: Recording, order: Iterable[int]) -> tuple[float, ...]:
    """The best of the space over the best so far, going through places in that order; 0 before any
    has a time."""
    times, best = recording.seconds, recording.best
    least, out = math.inf, []
    for place in order:
        least = min(least, times.get(place, math.inf))
        out.append(best / least)
    return tuple(out)


def trace(
    recording: Recording, strategy: Strategy, starts: Sequence[int] = (), *,
    jitter: float = 0.0, seed: int = 0, gains: bool = False,
) -> Trace:  # fmt: skip
    """Search a recording until the strategy has seen enough. gains: ask each time what it expects
    to save."""
    runner = ReplayRunner([recording], jitter, seed)
    search = strategy.search(recording.task, (), starts)
    outcomes: dict[int, Outcome] = {}
    order = runner.order.setdefault(recording.task.key.digest, [])
    rounds, told = 0, []
    while True:
        if gains:
            told.append((len(order), search.remaining_gain()))
        request = search.ask()
        if request is None:
            return Trace(recording, tuple(order), outcomes, rounds, tuple(told))
        heard = list(runner.run(recording.task, request, math.inf))
        rounds += request.rounds * len(request.candidates)
        outcomes.update(heard)
        search.tell(heard)


def within(curve: Sequence[float], places: int) -> float:
    """How good the best of that many places is: what a curve says of a budget."""
    return curve[min(places, len(curve)) - 1] if curve and places > 0 else 0.0


def share(size: int, part: float) -> int:
    """That part of a space of so many candidates, rounded up: one at least."""
    return max(1, math.ceil(part * size - 1e-9))
