"""Successive halving, from the cost model's best candidates to their neighbours.

A heat is a few candidates side by side: with few rounds each, then the better half with twice as
many, and so on until one is left (Jamieson and Talwalkar, AISTATS 2016). The first heat holds the
default, the starts and those that the cost model ranks first. The winner of a heat meets its
neighbours in the next one; where it has none left, the cost model's next ones. That ends when what
is left untried promises too little. Then whoever may be the winner gets so many rounds that
`choice.winner` does not depend on chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..choice import MARGIN
from ..outcome import Outcome
from ..runner import Request
from ..task import Task
from .survey import Survey
from .expectation import expected_gain, predictions
from .moves import neighbours


@dataclass(frozen=True, slots=True)
class Halving:
    """width: candidates of a heat. rounds: samples of each at first. most: samples that any gets.
    enough: the expected gain below which nothing new is tried. margin: of `choice.winner`."""

    width: int = 4
    rounds: int = 8
    most: int = 128
    enough: float = 0.01
    margin: float = MARGIN
    name: Final = "halving"

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> HalvingSearch:
        return HalvingSearch(self, Survey(task, known), starts)


class HalvingSearch:
    """One search; see the module."""

    def __init__(self, how: Halving, survey: Survey, starts: Sequence[int]) -> None:
        self._how, self._survey, self._starts = how, survey, starts
        self._moves = neighbours(survey.task.space)
        self._heat: list[int] = []
        self._settling = False

    def ask(self) -> Request | None:
        if not self._settling:
            request = self._half() or self._next_heat()
            if request is not None:
                return request
            self._settling = True
        return self._settle()

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Places that nothing is told of are left alone from now on."""
        self._survey.tell(outcomes)
        self._survey.tried.update(self._heat)

    def remaining_gain(self) -> float:
        return 0.0 if self._settling else expected_gain(self._survey, self._survey.untried)

    # ---------------------------------------------------------------- heats

    def _half(self) -> Request | None:
        """The better half of the heat again, until one is left."""
        times = self._survey.measured
        running = sorted((k for k in self._heat if k in times), key=lambda k: times[k].seconds)
        self._heat = running[: (len(running) + 1) // 2] if len(running) > 1 else []
        return self._more(self._heat) if len(self._heat) > 1 else None

    def _next_heat(self) -> Request | None:
        survey, best = self._survey, self._survey.best
        new = self._new()[: self._how.width - (best is not None)]
        if not new or (survey.tried and self.remaining_gain() < self._how.enough):
            return None
        self._heat = new if best is None else [best, *new]
        return Request(tuple(self._heat), self._how.rounds)

    def _new(self) -> list[int]:
        """What to try next: the first ones, then neighbours of the best, then anything."""
        survey = self._survey
        best = survey.best
        if best is None:
            return survey.first(self._starts)
        means, _ = predictions(survey, survey.untried)
        starts = [k for k in self._starts if k in means]
        near = sorted((k for k in self._moves[best] if k in means), key=means.__getitem__)
        return list(dict.fromkeys([*starts, *near, *sorted(means, key=means.__getitem__)]))

    def _more(self, places: Sequence[int]) -> Request | None:
        """So many rounds that each of the places has twice what the least sampled one has."""
        least = min(self._survey.measured[k].rounds for k in places)
        rounds = min(least, self._how.most - least)
        return Request(tuple(places), rounds) if rounds > 0 else None

    # ---------------------------------------------------------------- the end

    def _settle(self) -> Request | None:
        return None
