"""Which of two rows stays does not depend on who comes first; what no row may hold is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.autotune.errors import TunerError
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.row import FIELDS, Row, combined, from_data, preferred, to_data

from .rows import KEY, candidate, odd_rows, row, rows, time


@given(odd_rows)
def test_data_comes_back(r: Row) -> None:
    assert from_data(to_data(r)) == r


@given(rows, rows, rows)
def test_which_row_stays_does_not_depend_on_the_order(a: Row, b: Row, c: Row) -> None:
    b, c = (replace(r, key=a.key, candidate=a.candidate) for r in (b, c))
    assert preferred(a, b) == preferred(b, a)
    assert preferred(a, preferred(b, c)) == preferred(preferred(a, b), c)
    assert preferred(a, a) == a


@given(st.lists(rows, max_size=12), st.randoms(use_true_random=False), st.integers(0, 12))
def test_merging_is_commutative_associative_and_idempotent(
    given_rows: list[Row], random: Any, at: int
) -> None:
    merged = combined(given_rows)
    shuffled = list(given_rows)
    random.shuffle(shuffled)
    assert combined(shuffled) == merged
    assert combined([*merged, *merged, *given_rows]) == merged
    assert combined([*combined(given_rows[:at]), *combined(given_rows[at:])]) == merged
    assert len({r.identity for r in given_rows}) == len(merged)


OLD, NEW = "2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((time(2, rounds=6), OLD), (time(1, rounds=5), NEW)),
        ((time(2), NEW), (time(1), OLD)),
        ((time(1, 2), OLD), (time(1, 9, contaminated=True), NEW)),
        ((time(1), OLD), (Failure("timeout"), NEW)),
        ((Failure("wrong"), OLD), (time(1, 99), NEW)),
        ((Failure("crash"), OLD), (Failure("build"), NEW)),
        ((Failure("build"), NEW), (Failure("build"), OLD)),
    ],
    ids=["rounds", "date", "clean", "measured", "wrong", "crash", "failures"],
)
def test_which_row_stays(better: tuple[Outcome, str], worse: tuple[Outcome, str]) -> None:
    a, b = (row(KEY, candidate(1), outcome, date=date) for outcome, date in (better, worse))
    assert preferred(a, b) is a and preferred(b, a) is a


MEASURED = to_data(row(KEY, candidate(1), time(1), features={"k": 3}, versions={"llvm": "22"}))
FAILED = to_data(row(KEY, candidate(1), Failure("wrong", "off by 3")))


def test_fields_are_those_of_the_data() -> None:
    for of, data in (("measurement", MEASURED), ("failure", FAILED)):
        assert {f.name for f in FIELDS if f.of in ("all", of)} == set(data)


def test_the_fields_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "records.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert found == [(f.name, f.of, f.kind, f"{f.most:.0f}", f.meaning) for f in FIELDS]


BAD = [
    ("problem", ""), ("problem", 3), ("problem", "x" * 1_000_001), ("problem", "a\0b"),
    ("device", "\ud800"), ("numerics", None), ("template", ["conv"]), ("version", 0),
    ("version", 1.0), ("version", True), ("version", 1 << 40), ("config", []),
    ("config", {"a": [1]}), ("config", {"a": math.inf}), ("config", {"a": 10**400}),
    ("config", {"a": "x" * 257}), ("config", {"": 1}), ("config", {str(k): k for k in range(65)}),
    ("default", 1), ("seconds", 0.0), ("seconds", -1.0), ("seconds", math.nan),
    ("seconds", math.inf), ("seconds", "1"), ("seconds", True), ("seconds", 1e7),
    ("seconds", 5.0), ("low", 0), ("high", math.inf), ("high", 0.95), ("rounds", 0),
    ("rounds", 2.5), ("contaminated", None), ("features", {"k": -1}), ("features", {"k": "1"}),
    ("features", {"k": math.nan}), ("features", {str(k): k for k in range(257)}),
    ("date", "2026-02-30T00:00:00Z"), ("date", "yesterday"), ("date", "2026-01-31T23:59:59+00:00"),
    ("date", 5), ("versions", {"llvm": 22}), ("versions", "22"), ("origin", "x" * 257),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_what_no_row_may_hold(field: str, value: Any) -> None:
    from_data(MEASURED)
    with pytest.raises(TunerError, match="field '(seconds|" + field + ")': "):
        from_data({**MEASURED, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("failure", "tired"), ("failure", None), ("failure", ["wrong"]), ("detail", "x" * 4001)],
)
def test_what_no_failure_may_hold(field: str, value: Any) -> None:
    from_data(FAILED)
    with pytest.raises(TunerError, match=f"field '{field}': "):
        from_data({**FAILED, field: value})


def test_fields_that_lack_or_are_unknown() -> None:
    for data in (MEASURED, FAILED):
        for name in data.keys() - {"failure"}:
            with pytest.raises(TunerError, match=f"field '{name}': is missing"):
                from_data({k: v for k, v in data.items() if k != name})
        with pytest.raises(TunerError, match="field 'code': no such field in a"):
            from_data({**data, "code": "import os"})
    with pytest.raises(TunerError, match="field 'seconds': no such field in a failure"):
        from_data({**FAILED, "seconds": 1.0})
    with pytest.raises(TunerError, match="expected a JSON object"):
        from_data([MEASURED])


def test_numbers_of_json_may_be_whole() -> None:
    found = from_data({**MEASURED, "seconds": 1, "low": 1, "high": 1}).outcome
    assert found == Measurement(1.0, 1.0, 1.0, 5) and isinstance(found.seconds, float)
