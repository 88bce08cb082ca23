"""Who wins: the first of those that are surely within the margin of the fastest."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tilewright.autotune.choice import doubtful, winner
from tilewright.autotune.outcome import Failure, Outcome
from tilewright.autotune.task import Candidate

from .made import candidate, timed

D = candidate(x=5)
A, B, C = candidate(x=1), candidate(x=2), candidate("s", x=9)


def test_the_default_keeps_its_place_within_the_margin() -> None:
    assert winner(D, {D: timed(1.029), B: timed(1.0)}) == D
    assert winner(D, {D: timed(1.031), B: timed(1.0)}) == B


def test_ties_go_to_the_first_in_order() -> None:
    """By template, then by the text of the config, whatever was measured first."""
    assert winner(D, {D: timed(1.2), B: timed(1.0), A: timed(1.02)}) == A
    assert winner(D, {A: timed(1.0), B: timed(1.01), C: timed(1.029), D: timed(1.2)}) == C
    assert winner(D, {A: timed(1.0), C: timed(1.05)}) == A


def test_what_may_be_no_tie_is_none() -> None:
    """2.5 % slower, but known to 1 % only: it may be beyond the margin."""
    assert winner(D, {D: timed(1.025, 0.01), B: timed(1.0)}) == B
    assert winner(D, {D: timed(1.9), A: timed(1.015, 0.1), B: timed(1.0)}) == B
    assert winner(D, {D: timed(1.9), A: timed(1.015, 0.01), B: timed(1.0)}) == A


def test_a_gain_of_a_third_of_the_margin_is_not_worth_a_change() -> None:
    """However little is known of the default's time."""
    assert winner(D, {D: timed(1.009, 0.2), B: timed(1.0)}) == D
    assert winner(D, {D: timed(1.011, 0.2), B: timed(1.0)}) == B


def test_the_default_where_nothing_has_a_time() -> None:
    assert winner(D, {}) == D
    assert winner(D, {D: Failure("crash"), A: Failure("wrong")}) == D
    assert winner(D, {D: Failure("crash"), A: timed(3.0)}) == A


def test_who_is_in_doubt() -> None:
    assert doubtful(D, {}) == []
    assert doubtful(D, {D: timed(1.0), A: timed(0.99)}) == []
    assert doubtful(D, {D: timed(1.5, 0.01), A: timed(1.0, 0.01)}) == []
    # the default may be within the margin or not
    assert doubtful(D, {D: timed(1.03, 0.005), A: timed(1.0)}) == [D, A]
    # B comes behind A, but may be faster by more than the margin
    assert doubtful(D, {D: timed(1.5), A: timed(1.0), B: timed(1.01, 0.05)}) == [B, A]
    assert doubtful(D, {D: timed(1.5), A: timed(1.0), B: timed(1.01, 0.03)}) == []
    # the winner ties with the fastest; a third one may change that
    times: dict[Candidate, Outcome] = {D: timed(1.0), B: timed(0.99), A: timed(1.02, 0.08)}
    assert set(doubtful(D, times)) == {A, B, D}


@given(
    st.lists(st.tuples(st.floats(0.5, 2), st.floats(0, 0.3)), min_size=1, max_size=8),
    st.floats(0, 0.1), st.integers(0, 1000),
)  # fmt: skip
def test_the_winner_is_within_the_margin_and_depends_on_nothing_else(
    times: list[tuple[float, float]], margin: float, seed: int
) -> None:
    space = [candidate(x=k) for k in range(len(times))]
    outcomes: dict[Candidate, Outcome] = {c: timed(*t) for c, t in zip(space, times, strict=True)}
    default = space[-1]
    won = winner(default, outcomes, margin)
    best = min(t for t, _ in times)
    assert outcomes[won].seconds <= best * (1 + margin)  # type: ignore[union-attr]
    pairs = list(outcomes.items())
    random.Random(seed).shuffle(pairs)
    assert winner(default, dict(pairs), margin) == won
    outcomes[candidate(x=-1)] = timed(best * 2)
    assert winner(default, outcomes, margin) == won
    if not doubtful(default, outcomes, margin):  # then times within their intervals change nothing
        again = {c: timed(t * (1 + w * 0.1 * random.Random(f"{seed}{c}").uniform(-1, 1)), w)
                 for c, (t, w) in zip(space, times, strict=True)}  # fmt: skip
        chosen = dict(zip(space, times, strict=True))[winner(default, again, margin)]
        assert chosen[0] * (1 - chosen[1]) <= best * (1 + margin)
