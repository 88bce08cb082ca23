"""The arithmetic of benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.cli.bench import (
    ALONE,
    CONTEST,
    LONG_SECONDS,
    Latency,
    Pace,
    difference,
    differing,
    measure,
    speedup,
    typical,
)


class Clock:
    """Seconds that pass where somebody sleeps or calls; reading it takes a nanosecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        self.now += 1e-9
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made.read)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


def test_contestants_take_turns_in_changing_order(clock: Clock) -> None:
    calls: list[str] = []

    def contestant(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            clock.sleep(0.0015)

        return call

    found = measure({n: contestant(n) for n in "ab"}, 4, 1.0, pace=Pace(0, 0, 1e-3))
    # one call each to see how long it takes; then each turn is an untimed and a timed call
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb" + "bbaa"
    assert len(found["a"].samples) == 4
    assert found["b"].minimum == pytest.approx(0.0015, rel=1e-5)


def test_a_contest_rests_and_warms_up_before_each_turn(clock: Clock) -> None:
    moments: list[float] = []

    def call() -> None:
        moments.append(clock.now)
        clock.sleep(1e-3)

    measure({"a": call, "b": lambda: clock.sleep(1e-3)}, 2, 1.0)
    gaps = np.diff(moments)
    rests = np.flatnonzero(gaps > 0.05)
    assert len(rests) == 2
    between = 3 * CONTEST.rest + 2 * (CONTEST.warm + CONTEST.timed)  # b has two turns in a row
    assert gaps[rests] == pytest.approx([CONTEST.rest, between], abs=5e-3)
    turns = np.split(np.array(moments), rests + 1)
    calls = round((CONTEST.warm + CONTEST.timed) / 1e-3)
    assert [len(t) for t in turns] == pytest.approx([1, calls, calls], abs=2)


def test_short_calls_are_repeated_within_a_turn(clock: Clock) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.sleep(1e-5)

    found = measure({"": call}, rounds=2, seconds=1.0)
    assert calls == pytest.approx(1 + 2 * (1 + ALONE.timed / 1e-5), abs=2)
    assert found[""].samples == pytest.approx([1e-5, 1e-5], rel=1e-3)


def test_long_calls_need_no_warming_up(clock: Clock) -> None:
    calls: list[float] = []

    def long() -> None:
        calls.append(clock.now)
        clock.sleep(2 * LONG_SECONDS)

    found = measure({"": long}, 3, 1.0, pace=Pace(0.1, 1.0, 1e-3), warmup=5)
    assert len(calls) == 1 + 3  # the first has used up the time for first calls
    assert found[""].median == pytest.approx(2 * LONG_SECONDS)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (0.1, 50), (100.0, 1000)])
def test_the_number_of_rounds_follows_the_time(clock: Clock, seconds: float, rounds: int) -> None:
    """A turn is an untimed and a timed call of a millisecond each."""
    found = measure({"": lambda: clock.sleep(1e-3)}, None, seconds)
    assert len(found[""].samples) == pytest.approx(rounds, abs=1)


def test_statistics() -> None:
    latency = Latency((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (latency.minimum, latency.median) == (1.0, 3.0)
    assert latency.spread == pytest.approx(1 / 3)
    assert Latency((2.0,)).spread == 0.0
    # one disturbed round counts as one round
    assert speedup(Latency((1.0, 1.0, 9.0)), Latency((2.0, 2.0, 2.0))) == 2.0


def test_difference_is_relative_to_the_largest_magnitude() -> None:
    x = np.array([1.0, -200.0, 3.0])
    assert difference([x], [x]) == 0.0
    assert difference([x + [0, 0, 1]], [x]) == pytest.approx(1 / 200)
    assert difference([x], [x[:2]]) == float("inf")
    assert difference([x], [x, x]) == float("inf")
    odd = np.array([np.nan, np.inf, -np.inf])
    assert difference([odd], [odd]) == 0.0
    assert difference([np.array([np.nan])], [np.array([1.0])]) != 0.0
    assert difference([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0.0


def test_the_part_that_differs() -> None:
    x = np.arange(8.0)
    assert differing([x], [x]) == 0.0
    assert differing([x + 0.006], [x]) == 0.0  # within a thousandth of 7
    assert differing([x + 0.008], [x]) == 1.0
    assert differing([np.where(x == 3, 9, x)], [x]) == 1 / 8
    odd = np.array([np.nan, np.inf, 1.0, 1.0])
    assert differing([odd], [odd]) == 0.0
    assert differing([odd], [np.array([0.0, 0.0, 1.0, 1.0])]) == 0.5
    assert differing([x], [x[:2]]) == 1.0
    assert differing([np.zeros(0)], [np.zeros(0)]) == 0.0


def test_the_typical_difference_is_that_of_most_elements() -> None:
    x = np.arange(8.0)
    assert typical([x], [x]) == 0.0
    assert typical([np.where(x < 3, 99, x)], [x]) == 0.0
    assert typical([np.where(x < 5, x + 0.7, x)], [x]) == pytest.approx(0.1)
    assert typical([x, x + 7], [x, x]) == 1.0, "the worst output"
    assert typical([np.full(3, np.nan)], [np.ones(3)]) == np.inf
    assert typical([np.array([np.nan, np.inf])], [np.array([np.nan, np.inf])]) == 0.0
    assert typical([x], [x[:2]]) == np.inf and typical([x], []) == np.inf
    assert typical([np.zeros(0)], [np.zeros(0)]) == 0.0
