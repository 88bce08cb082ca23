"""The exact search against trying all offsets, and what it may not do on the way."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.memory import exact
from tilewright.compiler.memory.exact import Outcome
from tilewright.compiler.memory.sections import Problem

from .instances import GAP, Buffer, adversarial, clash, fits, perfect


def search(buffers: list[Buffer], capacity: int, budget: int = 20_000) -> Outcome:
    """The outcome, whose packing has been looked at if there is one."""
    outcome = exact.search(Problem.of(buffers), capacity, budget, time.monotonic() + 60)
    assert outcome.used <= budget
    if outcome.offsets is not None:
        offsets = outcome.offsets.tolist()
        assert not outcome.impossible
        assert clash(buffers, offsets) == []
        assert min(offsets) >= 0
        assert max(x + size for x, (_, _, size) in zip(offsets, buffers, strict=True)) <= capacity
    return outcome


@st.composite
def dense(draw: st.DrawFn) -> tuple[list[Buffer], int]:
    """Buffers that fill the capacity at every step: some end there, and new ones take the room."""
    capacity = draw(st.integers(4, 9))
    alive: list[tuple[int, int]] = []
    made: list[Buffer] = []
    steps = draw(st.integers(2, 7))
    for now in range(steps):
        stay = []
        for since, size in alive:
            if draw(st.booleans()):
                stay.append((since, size))
            else:
                made.append((since, now, size))
        alive = stay
        while (room := capacity - sum(size for _, size in alive)) and len(made) + len(alive) < 18:
            alive.append((now, draw(st.integers(1, min(room, 4)))))
    made += [(since, steps, size) for since, size in alive]
    return made, capacity


@settings(max_examples=150, deadline=None)
@given(dense(), st.integers(-1, 1))
def test_agrees_with_trying_all_offsets(made: tuple[list[Buffer], int], more: int) -> None:
    buffers, capacity = made[0], made[1] + more
    outcome = search(buffers, capacity)
    assert (outcome.offsets is not None) == fits(buffers, capacity)
    assert (outcome.offsets is None) == outcome.impossible


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(-1, 1), st.integers(-1, 1)), max_size=2))
def test_agrees_near_a_gap(changes: list[tuple[int, int, int]]) -> None:
    """Problems that differ little from one that needs more than is alive: some do, some don't."""
    buffers = list(GAP)
    for which, longer, larger in changes:
        first, end, size = buffers[which]
        buffers[which] = (first, max(first + 1, end + longer), max(1, size + larger))
    for capacity in (7, 8):
        outcome = search(buffers, capacity)
        assert outcome.impossible != fits(buffers, capacity)
        assert outcome.impossible == (outcome.offsets is None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 40), st.sampled_from([12, 40, 200]), st.booleans())
def test_what_fits_is_not_refused(seed: int, pieces: int, capacity: int, room: bool) -> None:
    buffers = perfect(seed, pieces, 20, capacity, alike=0.2)
    if room:
        buffers = [(a, b - (b - a > 1 and i % 5 == 0), n) for i, (a, b, n) in enumerate(buffers)]
    assert not search(buffers, capacity, 1000).impossible


def test_the_gap_is_one() -> None:
    assert not fits(GAP, 7)
    assert fits(GAP, 8)
    assert search(GAP, 7).impossible
    assert search(GAP, 8).offsets is not None


@pytest.mark.parametrize("where", [-70, 20])
def test_regions_are_not_searched_for_each_others_sake(where: int) -> None:
    """A hopeless region and a large one with many packings: going back step by step would run
    through these."""
    small = [(a, b, 50 * size) for a, b, size in GAP]
    large = [(a + where, b + where, 5 * size) for a, b, size in perfect(1, 60, 60, 50)]
    alone = search(small, 350)
    both = search([*small, *large], 350)
    assert alone.impossible
    assert both.impossible
    assert both.used < 2 * alone.used + len(large)


def test_a_full_trail_gives_up_and_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search would have to go back further than it remembers."""
    monkeypatch.setattr(exact, "_MEMORY", 0)
    monkeypatch.setattr(exact, "_DEPTH", 1)
    for budget in (100, 1000):
        outcome = search(GAP, 7, budget)
        assert (outcome.offsets, outcome.impossible) == (None, False)
    assert search(GAP, 8).offsets is not None


def test_attempts_differ() -> None:
    problem, later = Problem.of(adversarial(2, 250)), time.monotonic() + 60
    found = [exact.search(problem, 2**21, 1000, later, attempt).offsets for attempt in (0, 0, 1)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[2] is not None
    assert found[0].tolist() == found[1].tolist() != found[2].tolist()


def test_parts_have_no_buffer_in_common() -> None:
    problem = Problem.of([(0, 2, 3), (1, 3, 4), (3, 5, 1), (5, 6, 7), (5, 9, 1)])
    assert [part.tolist() for part in problem.parts()] == [[0, 1], [2], [3, 4]]
    last = problem.among(list(problem.parts())[-1])
    assert (last.start.tolist(), last.end.tolist(), last.bound) == ([0, 0], [1, 1], 8)
