"""Rows to keep, exchange and merge: plain ones, and any that there may be."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tilewright.autotune.outcome import FAILURE_KINDS, Failure, Measurement, Outcome
from tilewright.autotune.row import Row
from tilewright.autotune.task import Candidate, Key

KEY = Key(
    "conv 3x3\n  of 'quotes' and \"others\"; DROP TABLE rows; --", '{"kind":"cpu"}', "standard"
)


def key(problem: str, device: str = KEY.device, numerics: str = "standard") -> Key:
    return Key(problem, device, numerics)


def candidate(tile: int, template: str = "conv", version: int = 1) -> Candidate:
    return Candidate(template, version, {"tile": tile, "order": "a'b\"c", "pack": None, "x": 0.5})


def time(seconds: float, rounds: int = 5, contaminated: bool = False) -> Measurement:
    return Measurement(seconds, seconds * 0.9, seconds * 1.1, rounds, contaminated)


def row(k: Key, c: Candidate, outcome: Outcome, **rest: Any) -> Row:
    return Row(k, c, outcome, **{"date": "2026-01-31T23:59:59Z", **rest})


_seconds = st.floats(1e-9, 1e3)
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
_names = st.text("abcd.\n\"'\\é\U0001f600", min_size=1, max_size=4)
_values = st.one_of(
    st.none(), st.booleans(), _texts, st.integers(-(2**53) + 1, 2**53 - 1), st.floats(-1e15, 1e15)
)
_measurements = st.builds(
    lambda times, rounds, contaminated: Measurement(times[1], times[0], times[2], rounds,
                                                    contaminated),
    st.tuples(_seconds, _seconds, _seconds).map(sorted), st.integers(1, 3), st.booleans(),
)  # fmt: skip
_failures = st.builds(Failure, st.sampled_from(FAILURE_KINDS), _texts)

# Few keys, candidates, rounds and dates, so that rows meet others of the same.
rows = st.builds(
    Row,
    st.builds(Key, st.sampled_from("pq"), st.sampled_from("de"), st.just("standard")),
    st.builds(
        Candidate, st.sampled_from(["conv", "gemm"]), st.integers(1, 2),
        st.sampled_from([{"tile": 1}, {"tile": 2}]),
    ),
    st.one_of(_measurements, _failures),
    st.booleans(),
    st.dictionaries(_names, st.floats(0, 1e6), max_size=2),
    st.dates().map(lambda d: f"{d.isoformat()}T00:00:00Z")
    | st.sampled_from(["2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"]),
    st.dictionaries(_names, _texts, max_size=2),
    _texts,
)  # fmt: skip

# Every kind of value, for what must come back as it went.
odd_rows = st.builds(
    Row,
    st.builds(Key, _names, _names, _names),
    st.builds(Candidate, _names, st.integers(1, 9), st.dictionaries(_names, _values, max_size=4)),
    st.one_of(_measurements, _failures),
    st.booleans(),
    st.dictionaries(_names, st.floats(0, 1e6), max_size=2),
    st.dates().map(lambda d: f"{d.isoformat()}T00:00:00Z"),
    st.dictionaries(_names, _texts, max_size=2),
    _texts,
)  # fmt: skip
