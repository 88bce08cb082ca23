"""Every candidate, with equal rounds: what other strategies are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..outcome import Outcome
from ..runner import Request
from ..task import Task
from .survey import Survey


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Runs the whole space, `together` candidates side by side, `rounds` samples of each."""

    rounds: int = 16
    together: int = 8
    name: Final = "exhaustive"

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> InOrder:
        survey = Survey(task, known)
        order = dict.fromkeys([0, *starts, *task.ranked()])
        return InOrder(survey, list(order), self.rounds, self.together)


class InOrder:
    """A search that goes through untried places in a given order, whatever comes out."""

    def __init__(
        self, survey: Survey, order: Sequence[int], rounds: int, together: int
    ) -> None:  # fmt: skip
        self._survey = survey
        self._order = [k for k in order if k not in survey.tried]
        self._rounds, self._together = rounds, together

    def ask(self) -> Request | None:
        batch = tuple(self._order[: self._together])
        del self._order[: self._together]
        return Request(batch, self._rounds) if batch else None

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        self.learn(outcomes)

    def learn(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        self._survey.tell(outcomes)

    def remaining_gain(self) -> float:
        return self._survey.gain
