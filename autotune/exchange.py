"""Rows as files that go from machine to machine: JSON lines, data only.

The first line says what the file is and how many rows follow; then comes one row a line
(`row.FIELDS`), in order and once each, so that the same rows make the same bytes. Where a secret
key is shared, a last line holds the HMAC-SHA256 of all lines before it: whoever has the key can
tell that the file comes from somebody who has it, and that nothing was changed.

    {"tilewright": "records", "format": 1, "rows": 2}
    {"problem": ..., "device": ..., "template": ..., "config": {...}, "seconds": ..., ...}
    {"problem": ..., "device": ..., "template": ..., "config": {...}, "failure": "crash", ...}
    {"hmac-sha256": "9f86d0818..."}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from .errors import TunerError
from .row import Row, combined, from_data, to_data
from .task import canonical

FORMAT: Final = 1
MOST_BYTES: Final = 500_000_000
MOST_LINE_BYTES: Final = 4_000_000
LEAST_KEY_BYTES: Final = 16
_SIGNATURE: Final = "hmac-sha256"
_SIGNED: Final = re.compile(rb'\{"hmac-sha256":"([0-9a-f]{64})"\}\n?')


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file holds: rows, each identity once, and whether it was signed at all. Whether the
    signature is right is known only where a key was given."""

    rows: tuple[Row, ...]
    signed: bool


def dump(rows: Iterable[Row], key: bytes | None = None) -> bytes:
    """A file with the rows, signed if there is a key.

    Raises TunerError for a key that is too short.
    """
    kept = [canonical(to_data(row)) for row in combined(rows)]
    header = canonical({"tilewright": "records", "format": FORMAT, "rows": len(kept)})
    body = "".join(line + "\n" for line in [header, *kept]).encode("ascii")
    if key is None:
        return body
    return body + canonical({_SIGNATURE: _sign(body, key)}).encode("ascii") + b"\n"


def load(data: bytes, key: bytes | None = None) -> Loaded:
    """The rows of a file, all of it checked first: the signature, if there is a key, before
    anything else is looked at.

    Raises TunerError, which names the line and the field, for anything that is not as `dump` would
    have it; with a key also for files that are not signed, signed with another key, or changed.
    """
    if len(data) > MOST_BYTES:
        raise TunerError(f"{len(data)} bytes are too many, {MOST_BYTES} are allowed")
    at = data.rstrip(b"\n").rfind(b"\n") + 1
    signature = _SIGNED.fullmatch(data, at)
    if key is not None:
        if signature is None:
            raise TunerError(
                "the file is not signed, and a key is set: only signed files are taken"
            )
        if not hmac.compare_digest(_sign(data[:at], key), signature[1].decode()):
            raise TunerError("the signature is wrong: the file was changed after it was signed, "
                             "or signed with another key")  # fmt: skip
    lines = (data[:at] if signature else data).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    count = _header(lines[0] if lines else b"")
    rows = [_at(n, line) for n, line in enumerate(lines[1:], 2)]
    if len(rows) != count:
        raise TunerError(f"line 1, field 'rows': says {count}, but {len(rows)} follow: "
                         "the file is not whole")  # fmt: skip
    return Loaded(tuple(combined(rows)), signature is not None)


def _sign(body: bytes, key: bytes) -> str:
    if len(key) < LEAST_KEY_BYTES:
        raise TunerError(
            f"a key of {len(key)} bytes can be guessed: take {LEAST_KEY_BYTES} or more"
        )
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _header(line: bytes) -> int:
    """How many rows follow."""
    try:
        data = _parse(line)
    except TunerError as e:
        raise TunerError(f"line 1: {e}") from None
    if not isinstance(data, dict) or data.get("tilewright") != "records":
        raise TunerError("line 1: not a file of records: it has no line that says so")
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise TunerError(f"line 1, field 'format': {data.get('format')!r} is not known, only "
                         f"{FORMAT}; was the file written by a newer Tilewright?")  # fmt: skip
    count = data.get("rows")
    if type(count) is not int or count < 0 or len(data) != 3:
        raise TunerError("line 1, field 'rows': expected the number of rows, and nothing else")
    return count


def _at(number: int, line: bytes) -> Row:
    try:
        return from_data(_parse(line))
    except TunerError as e:
        text = str(e)
        join = ", " if text.startswith("field ") else ": "
        raise TunerError(f"line {number}{join}{text}") from None


def _parse(line: bytes) -> Any:
    """One JSON value. Raises TunerError for what JSON does not have or says twice."""
    if len(line) > MOST_LINE_BYTES:
        raise TunerError(f"{len(line)} bytes are too many, {MOST_LINE_BYTES} are allowed")
    try:
        return json.loads(line.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except TunerError:
        raise
    except (ValueError, RecursionError) as e:
        raise TunerError(f"no JSON: {e}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(n for k, (n, _) in enumerate(pairs) if n in dict(pairs[:k]))
        raise TunerError(f"field {twice[:64]!r}: stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise TunerError(f"{name} is no number of JSON")
