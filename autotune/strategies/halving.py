"""Successive halving over heats, each of the most promising candidates that are left.

A heat is a few candidates side by side: all with few rounds, the better half with twice as many,
and so on until one is left (Jamieson and Talwalkar, AISTATS 2016). The first heat holds the
default, the starts, and those that the cost model likes best; later ones the best so far and those
from which most is expected, given what is known (`belief.py`). When all that is left promises too
little, those that lost in their first samples get some more, and those that may yet win run until
`choice.winner` is certain. What that teaches may make another heat worthwhile; the search ends when
nothing of all this is left to do, so that a search that begins with all its outcomes asks for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..choice import MARGIN, doubtful, place, winner
from ..outcome import Measurement, Outcome
from ..runner import Request
from ..task import Candidate, Task
from .survey import Survey

DOUBT: Final = 0.002
"""What it is worth to know the winner for certain, as a share of its time."""


HASTY: Final = 0.2
HASTY_ROUNDS: Final = 16
"""Who is slower by that share, and has fewer samples, may have met others at work."""


@dataclass(frozen=True, slots=True)
class Halving:
    """width: candidates of a heat. rounds: samples of each at first. most: samples that any gets.
    enough: the expected gain below which nothing new is tried. margin: of `choice.winner`."""

    width: int = 4
    rounds: int = 8
    most: int = 256
    enough: float = 0.005
    margin: float = MARGIN
    name: Final = "halving"

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> HalvingSearch:
        return HalvingSearch(self, Survey(task, known), starts)


class HalvingSearch:
    """One search; see the module."""

    def __init__(self, how: Halving, survey: Survey, starts: Sequence[int]) -> None:
        self._how, self._survey = how, survey
        self._starts = [k for k in dict.fromkeys([0, *starts]) if k not in survey.tried]
        self._heat: list[int] = []
        self._halving = False  # whether the heat is to be halved
        self._again: set[int] = set()  # who had more samples than its haste gave it

    def ask(self) -> Request | None:
        request = self._half() or self._next_heat()
        self._halving = request is not None
        return request or self._earlier() or self._hasty() or self._settle()

    def tell(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Places that nothing is told of are left alone from now on."""
        self.learn(outcomes)
        self._survey.give_up(self._heat)

    def learn(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        self._survey.tell(outcomes)

    def remaining_gain(self) -> float:
        return max(self._survey.gain if self._goes_on else 0.0,
                   DOUBT if self._doubtful else 0.0)  # fmt: skip

    # ---------------------------------------------------------------- heats

    def _half(self) -> Request | None:
        """The better half of the heat again, until one is left."""
        if not self._halving:
            return None
        times = self._survey.measured
        running = sorted((k for k in self._heat if k in times), key=lambda k: times[k].seconds)
        self._heat = running[: (len(running) + 1) // 2] if len(running) > 1 else []
        return self._more(self._heat) if len(self._heat) > 1 else None

    @property
    def _goes_on(self) -> bool:
        """Whether there is enough to gain from candidates that nobody tried."""
        survey = self._survey
        return bool(self._starts) or not survey.tried or survey.gain >= self._how.enough

    def _next_heat(self) -> Request | None:
        survey, how = self._survey, self._how
        if not self._goes_on:
            return None
        best = survey.best
        room = how.width - (best is not None)
        new, self._starts = self._starts[:room], self._starts[room:]
        new += survey.promising(room - len(new), new)
        if not new:
            return None
        self._heat = new if best is None else [best, *new]
        return Request(tuple(self._heat), how.rounds)

    def _more(self, places: Sequence[int]) -> Request | None:
        """So many rounds that the least sampled one has twice what it has."""
        least = min(self._survey.measured[k].rounds for k in places)
        rounds = min(least, self._how.most - least)
        return Request(tuple(places), rounds) if rounds > 0 else None

    # ---------------------------------------------------------------- the end

    def _earlier(self) -> Request | None:
        """Candidates that nobody tried, that would win if they tie, and are believed to: with them
        the winner does not depend on the way that the search went."""
        survey, how = self._survey, self._how
        if survey.best is None:
            return None
        limit = math.log(survey.measured[survey.best].seconds * (1 + how.margin))
        found = [k for k in survey.untried if survey.posterior.mean[k] <= limit]
        return self._beside_the_best(sorted(self._before_the_winner(found), key=self._place),
                                     how.rounds)  # fmt: skip

    def _hasty(self) -> Request | None:
        """Candidates that would win if they tie, and that looked a little slower in their first
        samples only: others may have been at work then, and were not while the best ran."""
        survey, times = self._survey, self._survey.measured
        if survey.best is None:
            return None
        limit = times[survey.best].seconds * (1 + HASTY)
        found = [k for k, m in times.items() if m.seconds <= limit
                 and m.rounds < HASTY_ROUNDS and k not in self._again]  # fmt: skip
        request = self._beside_the_best(
            sorted(self._before_the_winner(found), key=lambda k: times[k].seconds), HASTY_ROUNDS
        )
        if request is not None:
            self._again.update(request.candidates)
        return request

    def _place(self, k: int) -> tuple[bool, str, str]:
        """Where a candidate stands in the order that ties go by."""
        task = self._survey.task
        return place(task.default, task.space[k])

    def _before_the_winner(self, places: Sequence[int]) -> list[int]:
        """Those that would win if they tie."""
        won = self._place(self._winner)
        return [k for k in places if self._place(k) < won]

    def _beside_the_best(self, found: Sequence[int], rounds: int) -> Request | None:
        """A heat of the first of these and the best; none where nobody is found."""
        best = self._survey.best
        if best is None or not found:
            return None
        self._heat = [best, *found[: self._how.width - 1]]
        return Request(tuple(self._heat), rounds)

    def _settle(self) -> Request | None:
        """Those in doubt once more, until nobody is or they have run often enough."""
        self._heat = self._doubtful
        return self._more(self._heat) if self._heat else None

    @property
    def _doubtful(self) -> list[int]:
        task = self._survey.task
        return [task.places[c] for c in doubtful(task.default, self._outcomes, self._how.margin)]

    @property
    def _winner(self) -> int:
        task = self._survey.task
        return task.places[winner(task.default, self._outcomes, self._how.margin)]

    @property
    def _outcomes(self) -> dict[Candidate, Measurement]:
        space = self._survey.task.space
        return {space[k]: m for k, m in self._survey.measured.items()}
