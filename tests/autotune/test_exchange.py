"""Files of records: what goes in comes out, the same rows make the same bytes, nothing else is
taken, and with a key nothing that was changed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.autotune import exchange
from tilewright.autotune.errors import TunerError
from tilewright.autotune.exchange import dump, load
from tilewright.autotune.outcome import Failure
from tilewright.autotune.row import Row, combined, to_data

from .rows import KEY, candidate, odd_rows, row, rows, time

SECRET = b"sixteen bytes or more"
OTHER = b"another key of sixteen"
ROWS = [
    row(KEY, candidate(1), time(2), is_default=True, features={"k": 3.0}),
    row(KEY, candidate(2), Failure("wrong", "off by 3")),
    row(KEY, candidate(3), time(1), versions={"llvm": "22"}, origin="somebody"),
]


@given(st.lists(odd_rows, max_size=4), st.sampled_from([None, SECRET]))
def test_rows_come_back(given_rows: list[Row], key: bytes | None) -> None:
    data = dump(given_rows, key)
    found = load(data, key)
    assert list(found.rows) == combined(given_rows) and found.signed is (key is not None)
    assert data.isascii() and data.count(b"\n") == len(found.rows) + 1 + (key is not None)


@given(st.lists(rows, max_size=6), st.lists(rows, max_size=6))
def test_merged_files_are_the_same_bytes_in_any_order(a: list[Row], b: list[Row]) -> None:
    def merged(*files: bytes) -> bytes:
        return dump(r for f in files for r in load(f).rows)

    one, other = dump(a), dump(b)
    assert merged(one, other) == merged(other, one) == dump([*a, *b])
    assert merged(merged(one, other), one) == merged(one, other)
    assert merged(one, one) == one


def test_with_a_key_only_what_was_signed_with_it_is_taken() -> None:
    signed = dump(ROWS, SECRET)
    assert load(signed, SECRET).rows == tuple(ROWS)
    assert load(signed).signed  # without a key the signature says nothing, and stops nothing
    with pytest.raises(TunerError, match="is not signed, and a key is set"):
        load(dump(ROWS), SECRET)
    with pytest.raises(TunerError, match="the signature is wrong"):
        load(signed, OTHER)
    with pytest.raises(TunerError, match="16 or more"):
        dump(ROWS, b"short")


def test_no_changed_byte_passes_a_key() -> None:
    signed = dump(ROWS, SECRET)
    for at in range(len(signed) - 1):
        changed = bytearray(signed)
        changed[at] ^= 1
        with pytest.raises(TunerError, match=r"signature is wrong|not signed"):
            load(bytes(changed), SECRET)


def test_no_lost_or_added_line_passes_a_key() -> None:
    lines = dump(ROWS, SECRET).splitlines(keepends=True)
    for at in range(len(lines)):
        for changed in (lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:]):
            with pytest.raises(TunerError):
                load(b"".join(changed), SECRET)
    with pytest.raises(TunerError):
        load(b"".join(lines) + b"{}\n", SECRET)


def test_an_unsigned_file_that_was_cut_is_noticed() -> None:
    lines = dump(ROWS).splitlines(keepends=True)
    for count in range(len(lines)):
        with pytest.raises(TunerError, match="line 1"):
            load(b"".join(lines[:count]))


def file(*lines: Any) -> bytes:
    header = {"tilewright": "records", "format": 1, "rows": len(lines)}
    texts = [x if isinstance(x, str) else json.dumps(x) for x in (header, *lines)]
    return "".join(t + "\n" for t in texts).encode("utf-8", "surrogatepass")


GOOD = to_data(ROWS[0])
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({**GOOD, "seconds": -1}, "line 3, field 'seconds': expected a number from 0"),
        ({**GOOD, "config": {"a": {}}}, "line 3, field 'config': entry 'a': expected text, a num"),
        (TEXT.replace("2,", "NaN,", 1), "line 3: NaN is no number of JSON"),
        (
            TEXT.replace('"seconds": 2', '"seconds": 1e999'),
            "line 3, field 'seconds': expected a nu",
        ),
        (TEXT.replace('"seconds": 2', '"seconds": 1' + "0" * 5000), "line 3: no JSON: Exceeds"),
        (TEXT[:-1] + ', "seconds": 1}', "line 3, field 'seconds': stands there twice"),
        (TEXT.replace('{"tile"', '{"tile": 7, "tile"'), "line 3, field 'tile': stands there twice"),
        (TEXT[:-1], "line 3: no JSON"),
        ("[" * 100_000, "line 3: no JSON"),
        ("", "line 3: no JSON"),
        ("null", "line 3: expected a JSON object"),
        ('"\ud800"', "line 3: no JSON"),
        ({**GOOD, "origin": "x" * 4_000_000}, "line 3: .* bytes are too many"),
        (json.dumps(GOOD).replace("standard", "\\ud800"), "line 3, field 'numerics': holds half"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(line: Any, complaint: str) -> None:
    assert load(file(GOOD, GOOD)).rows
    with pytest.raises(TunerError, match=complaint):
        load(file(GOOD, line))


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("", "line 1: no JSON"),
        ("{}", "line 1: not a file of records"),
        ('["records"]', "line 1: not a file of records"),
        (
            '{"tilewright": "records", "format": 2, "rows": 0}',
            "line 1, field 'format': 2 is not kn",
        ),
        ('{"tilewright": "records", "format": true, "rows": 0}', "line 1, field 'format'"),
        (
            '{"tilewright": "records", "format": 1, "rows": 1}',
            "line 1, field 'rows': says 1, but 0",
        ),
        ('{"tilewright": "records", "format": 1, "rows": -1}', "line 1, field 'rows'"),
        ('{"tilewright": "records", "format": 1, "rows": 0, "x": 1}', "line 1, field 'rows'"),
    ],
)
def test_other_files_are_refused(header: str, complaint: str) -> None:
    with pytest.raises(TunerError, match=re.escape(complaint)):
        load(header.encode() + b"\n")
    with pytest.raises(TunerError, match="line 1"):
        load(b"")
    with pytest.raises(TunerError, match="line 1: no JSON"):
        load(b"\x80\x04\x95")  # as pickles begin


def test_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_BYTES", 100)
    with pytest.raises(TunerError, match="bytes are too many, 100 are allowed"):
        load(dump(ROWS))
