"""Who runs candidates.

A runner stands between searches, which want numbers, and whatever makes and times candidates:
worker processes, machines far away, or a recording that is played back (`replay.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .outcome import Outcome
from .task import Task


@dataclass(frozen=True, slots=True)
class Request:
    """Candidates to run side by side, so that they meet the same conditions.

    candidates: their places in the task's space. rounds: samples wanted of each; a candidate that
    was sampled before gets these in addition, and its outcome is of all of them.
    """

    candidates: tuple[int, ...]
    rounds: int


class Runner(Protocol):
    """Runs candidates of tasks."""

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        """Outcomes by place in the space, as they become known; a place may come again with more
        samples in it, and those that no time was left for do not come at all.

        deadline: of `time.monotonic()`; nothing is begun that would not end by then.
        """

    def stop(self) -> None:
        """From any thread: end soon what `run` is doing, and begin nothing new."""

    def close(self) -> None:
        """Give up what it holds: processes, connections."""


class Search(Protocol):
    """Decides what to run next. One object per task and tuning; strategies make them."""

    def ask(self) -> Request | None:
        """What to run next; None when it has seen enough."""

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """What came of the last request: maybe not of all of it."""

    def learn(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """What came of candidates that it did not ask for; the last request still stands."""

    def remaining_gain(self) -> float:
        """The share of the best time so far that more searching is expected to save, 0 to 1."""


class Strategy(Protocol):
    """Makes searches."""

    @property
    def name(self) -> str:
        """What people call it."""

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> Search:  # fmt: skip
        """A search of the task's space. known: outcomes that are recorded, which it need not ask
        for. starts: places to look at first, such as winners of near problems."""
