"""The pure parts of measuring: intervals, what counts as disturbed, what becomes of samples."""

from __future__ import annotations

import random

import pytest

from tilewright.autotune.outcome import Measurement
from tilewright.autotune.statistics import (
    Sample,
    are_apart,
    interval,
    measurement,
    median,
    per_run,
    quartile,
    sampled,
)


@pytest.mark.parametrize(("count", "rank"), [
    (1, 1), (2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (20, 6), (50, 18), (100, 40)
])  # fmt: skip
def test_interval_is_of_known_ranks(count: int, rank: int) -> None:
    """As in tables of the sign test, e.g. 6 to 15 of 20 and 40 to 61 of 100."""
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    assert interval(values) == (rank, count + 1 - rank)


def test_interval_holds_the_median_as_often_as_promised() -> None:
    """Of a skewed distribution whose median is 1."""
    rng = random.Random(7)
    for count in (6, 10, 25):
        held = 0
        for _ in range(2000):
            low, high = interval([2 ** rng.gauss(0, 1) for _ in range(count)])
            held += low <= 1 <= high
        assert 0.945 < held / 2000 < 0.99


def test_interval_holds_the_quartile_as_often_as_promised() -> None:
    """Of a skewed distribution whose lower quartile is 1."""
    rng = random.Random(8)
    for count in (16, 25, 64):
        held = 0
        for _ in range(2000):
            low, high = interval([2 ** (rng.gauss(0, 1) + 0.67449) for _ in range(count)], 0.25)
            held += low <= 1 <= high
        assert 0.945 < held / 2000 < 0.99


def test_ends_of_the_interval_of_few_samples() -> None:
    assert interval([3, 1, 2], 0.25) == (1, 3)
    assert interval([5.0], 0.25) == (5, 5)
    assert interval(range(1, 11), 0.25) == (1, 6)  # 2 % of the time 6 or more of ten lie below
    assert interval(range(1, 13), 0.25) == (1, 7)
    assert interval(range(1, 14), 0.25) == (1, 7)  # 2.4 % of the time none of 13 lies below


def test_lower_quartile() -> None:
    assert quartile([7]) == 7
    assert quartile([2, 1]) == 1
    assert quartile([5, 1, 4, 2, 3]) == 2
    assert quartile(range(1, 9)) == 2
    assert quartile(range(1, 101)) == 25


def test_a_time_is_the_same_where_more_than_half_of_the_samples_are_slow() -> None:
    """As others on the last cache and on memory make them, of whom no clock tells."""
    quiet = [Sample(1.0 + k / 1000) for k in range(16)]
    slow = [Sample(1.5)] * 20
    assert measurement([*quiet, *slow]).seconds <= measurement(quiet).seconds * 1.01


def test_median() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 9]) == 3


@pytest.mark.parametrize(("wall", "cpu", "switches", "alone", "seconds", "calm"), [
    (100e-6, 99.8e-6, 0, True, 100e-6, True),
    (100e-6, 101e-6, 0, True, 100e-6, True),  # reading the clocks counts as CPU time
    (100e-6, 98e-6, 0, True, 100e-6, True),  # less than 3 us
    (4100e-6, 100e-6, 0, True, 100e-6, False),  # someone had the processor for 4 ms
    (10e-3, 9.9e-3, 0, True, 10e-3, True),
    (10e-3, 9.7e-3, 0, True, 9.7e-3, False),
    (100e-6, 99e-6, 1, True, 100e-6, False),
    (100e-6, 60e-6, 0, False, 100e-6, True),  # it waited for its own helpers
    (100e-6, 60e-6, 2, False, 100e-6, False),
])  # fmt: skip
def test_interrupted_samples(
    wall: float, cpu: float, switches: int, alone: bool, seconds: float, calm: bool
) -> None:
    sample = sampled(wall, cpu, switches, 1.0, alone)
    assert (sample.seconds, sample.is_calm) == (seconds, calm)


def test_strain_is_pressure() -> None:
    assert sampled(1.0, 1.0, 0, 0.98, True) == Sample(1.0)
    assert sampled(1.0, 1.0, 0, 1.02, True).is_calm
    assert not sampled(1.0, 1.0, 0, 1.1, True).is_calm
    assert Sample(1.0, 0.05).pressed(0.2) == Sample(1.0, 0.25)
    assert Sample(1.0).pressed(-0.1) == Sample(1.0)


def test_per_run() -> None:
    assert per_run(Sample(1.0, 0.5), 4) == Sample(0.25, 0.5)


def test_only_calm_samples_count() -> None:
    samples = [Sample(float(k)) for k in range(1, 6)] + [Sample(90.0, 1.0)] * 7
    assert measurement(samples) == Measurement(2.0, 1.0, 4.0, 5, False)


def test_too_few_calm_samples_are_contaminated() -> None:
    """Then the calmer half counts."""
    samples = [Sample(9.0, 0.9), Sample(2.0, 0.2), Sample(1.0), Sample(8.0, 0.8), Sample(3.0, 0.3)]
    assert measurement(samples) == Measurement(1.0, 1.0, 3.0, 3, True)


def test_few_samples_that_are_all_calm_are_enough() -> None:
    assert measurement([Sample(1.0)]) == Measurement(1.0, 1.0, 1.0, 1, False)
    assert not measurement([Sample(1.0), Sample(2.0)]).contaminated
    assert measurement([Sample(1.0), Sample(2.0, 0.5)]).contaminated


def test_apart() -> None:
    def m(low: float, high: float) -> Measurement:
        return Measurement((low + high) / 2, low, high, 9)

    assert are_apart(m(1, 2), m(2.1, 3)) and are_apart(m(2.1, 3), m(1, 2))
    assert not are_apart(m(1, 2), m(2, 3))
    assert not are_apart(m(1, 4), m(2, 3))
