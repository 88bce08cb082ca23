"""What a session needs of the world, without the world: a clock, runners, records, a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def task(name: str, count: int = 4, device: str = "cpu") -> Task:
    """A task whose candidates are numbered."""
    space = tuple(Candidate("t", 1, {"n": k}) for k in range(count))
    return Task(Key(name, device, "standard"), space, label=name)


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

    def close(self) -> None:
        self.closed = True


@dataclass
class Row:
    candidate: Candidate
    outcome: Outcome


@dataclass
class Notebook:
    """Records in a dictionary."""

    rows: dict[tuple[Key, Candidate], tuple[Outcome, str]] = field(default_factory=dict)
    hints: list[Row] = field(default_factory=list)

    def of(self, key: Key) -> list[Row]:
        return [Row(c, o) for (k, c), (o, _) in self.rows.items() if k == key]

    def near(self, key: Key, features: dict[str, float], count: int) -> list[Row]:
        return self.hints[:count]

    def elsewhere(self, key: Key) -> list[Row]:
        return []

    def add(self, key: Key, candidate: Candidate, outcome: Outcome, **more: Any) -> None:
        assert more["is_default"] == (candidate.config["n"] == 0)
        self.rows[key, candidate] = outcome, more["origin"]


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

    def remaining_gain(self) -> float:
        return self.gain * len(self.left)
