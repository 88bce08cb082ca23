"""The arithmetic of benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.cli.bench import (
    LONG_SECONDS,
    Latency,
    Pace,
    difference,
    differing,
    measure,
    speedup,
    typical,
)


def test_contestants_take_turns_in_changing_order() -> None:
    calls: list[str] = []

    def contestant(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            end = time.perf_counter() + 0.0015
            while time.perf_counter() < end:
                pass

        return call

    found = measure({n: contestant(n) for n in "ab"}, 4, 1.0, pace=Pace(0, 0, 1e-3))
    # one call each to see how long it takes; then each turn is an untimed and a timed call
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb" + "bbaa"
    assert len(found["a"].samples) == 4
    assert found["b"].minimum >= 0.0015


def test_a_contest_rests_and_warms_up_before_each_turn() -> None:
    moments: list[float] = []
    measure({"a": lambda: moments.append(time.perf_counter()), "b": lambda: None}, 2, 1.0)
    gaps = np.diff(moments)
    rests = np.flatnonzero(gaps > 0.05)
    assert len(rests) == 2
    assert moments[-1] - moments[rests[-1] + 1] > 0.02


def test_short_calls_are_repeated_within_a_turn() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    measure({"": call}, rounds=2, seconds=1.0)
    assert calls > 50


def test_long_calls_need_no_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    now = 0.0

    def long() -> None:
        nonlocal now
        calls.append(now)
        now += 2 * LONG_SECONDS

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    found = measure({"": long}, 3, 1.0, pace=Pace(0.1, 1.0, 1e-3), warmup=5)
    assert len(calls) == 1 + 3  # the first has used up the time for first calls
    assert found[""].median == pytest.approx(2 * LONG_SECONDS)


def test_the_number_of_rounds_follows_the_time() -> None:
    assert len(measure({"": lambda: None}, None, 0.0)[""].samples) == 3
    assert len(measure({"": lambda: None}, None, 0.1)[""].samples) > 5


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
