"""What a session needs of the world, without the world: a clock, runners, a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tilewright.autotune.errors import RunnerLost
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Candidate, Key, Task


class Clock:
    """Seconds that pass when somebody spends them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def task(name: str, count: int = 4, device: str = "cpu", size: float = 1.0) -> Task:
    """A task whose candidates are numbered."""
    space = tuple(Candidate("t", 1, {"n": k}) for k in range(count))
    return Task(Key(name, device, "standard"), space, features={"size": size}, label=name)


def measured(seconds: float) -> Measurement:
    return Measurement(seconds, seconds * 0.99, seconds * 1.01, 9)


@dataclass
class Bench:
    """A runner. times: seconds by task and place, or a failure. cost: what running one takes."""

    clock: Clock
    times: dict[str, Sequence[float | Failure]]
    cost: float = 1.0
    device: str | None = None
    origin: str = "here"
    lost_after: int | None = None
    during: Callable[[str, int], None] = lambda name, place: None
    ran: list[tuple[str, int]] = field(default_factory=list)
    stopped: bool = False
    closed: bool = False

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        for place in request.candidates:
            if self.clock.now + self.cost > deadline:
                return
            if self.lost_after is not None and len(self.ran) >= self.lost_after:
                raise RunnerLost("pulled the plug")
            self.clock.now += self.cost
            self.ran.append((task.key.problem, place))
            self.during(task.key.problem, place)
            found = self.times[task.key.problem][place]
            yield place, found if isinstance(found, Failure) else measured(found)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


@dataclass
class Unsure(Bench):
    """Intervals are wide at first; samples add up."""

    rounds: dict[tuple[str, int], int] = field(default_factory=dict)

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        for place, found in super().run(task, request, deadline):
            assert isinstance(found, Measurement)
            key = task.key.problem, place
            self.rounds[key] = n = self.rounds.get(key, 0) + request.rounds
            off = found.seconds * 0.2 / n
            yield place, Measurement(found.seconds, found.seconds - off, found.seconds + off, n)


class InOrder:
    """A strategy: every candidate once, `step` at a time; a constant gain for each that is left."""

    name = "in order"

    def __init__(self, step: int = 1, gain: float = 0.1) -> None:
        self.step, self.gain = step, gain
        self.starts: list[tuple[int, ...]] = []

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> _Walk:  # fmt: skip
        self.starts.append(tuple(starts))
        seen = dict(known)
        return _Walk([k for k in range(len(task.space)) if k not in seen], self.step, self.gain)


@dataclass
class _Walk:
    left: list[int]
    step: int
    gain: float

    def ask(self) -> Request | None:
        return Request(tuple(self.left[: self.step]), 3) if self.left else None

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        heard = dict(outcomes)
        self.left = [k for k in self.left if k not in heard]

    def learn(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        self.tell(outcomes)

    def remaining_gain(self) -> float:
        return self.gain * len(self.left)


class Surer(InOrder):
    """Two candidates, then the second one again, from which nothing is to be gained."""

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> _Walk:  # fmt: skip
        return _Sure([0, 1], 1, self.gain)


@dataclass
class _Sure(_Walk):
    times: int = 0

    def ask(self) -> Request | None:
        return super().ask() or (Request((1,), 9) if self.times < 3 else None)

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        super().tell(outcomes)
        self.times += 1
