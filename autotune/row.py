"""A row of the records: what came of one candidate of one problem, where, when and with what.

A row has one form as data, a flat JSON object, which is what files for exchange hold and what is
checked before a row is kept: `FIELDS` says what may stand in it. Of two rows of the same candidate
for the same key, `preferred` says which one stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from .errors import TunerError
from .outcome import FAILURE_KINDS, Failure, Measurement, Outcome
from .task import Candidate, Key, canonical

_NO_NUMBERS: Final[Mapping[str, float]] = MappingProxyType({})
_NO_TEXTS: Final[Mapping[str, str]] = MappingProxyType({})
FAULTS: Final = ("wrong", "crash")
"""Failures that no other measurement makes up for: the candidate did harm once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Rows are equal where all that they hold is.

    is_default: the problem's default at the time. features: numbers that describe the problem.
    date: of the outcome, in UTC, like 2026-01-31T23:59:59Z. versions: of the software that made and
    timed the candidate, by name. origin: who found it out, for people.
    """

    key: Key
    candidate: Candidate
    outcome: Outcome
    is_default: bool = False
    features: Mapping[str, float] = field(default_factory=lambda: _NO_NUMBERS, hash=False)
    date: str = "1970-01-01T00:00:00Z"
    versions: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS, hash=False)
    origin: str = ""

    @property
    def device(self) -> str:
        """What it was measured on."""
        return self.key.device

    @property
    def seconds(self) -> float | None:
        """The time, None for a failure."""
        return self.outcome.seconds if isinstance(self.outcome, Measurement) else None

    @property
    def identity(self) -> tuple[str, str, str, str, int, str]:
        """What there is one row of; also the order in which rows are listed."""
        key, candidate = self.key, self.candidate
        return (key.problem, key.device, key.numerics, candidate.template, candidate.version,
                candidate.text)  # fmt: skip


def preferred(a: Row, b: Row) -> Row:
    """Of two rows with one identity the one to keep, whatever the order of the two.

    A fault stays (`FAULTS`), for it may show only once in many runs. Otherwise a measurement goes
    before a failure, an undisturbed one before a contaminated one, then more rounds, then the newer
    date; where all of these agree, the larger text.
    """
    return max(a, b, key=_rank)


def combined(rows: Iterable[Row]) -> list[Row]:
    """One row of each identity, in order: the same for any order of the rows."""
    kept: dict[tuple[str, str, str, str, int, str], Row] = {}
    for row in rows:
        there = kept.get(row.identity)
        kept[row.identity] = row if there is None else preferred(there, row)
    return [kept[k] for k in sorted(kept)]


def _rank(row: Row) -> tuple[bool, bool, bool, int, str, str]:
    found = row.outcome
    if isinstance(found, Measurement):
        good = (False, True, not found.contaminated, found.rounds)
    else:
        good = (found.kind in FAULTS, False, False, 0)
    return (*good, row.date, canonical(to_data(row)))


def to_data(row: Row) -> dict[str, Any]:
    """The row as a JSON object; `from_data` makes the row again."""
    key, candidate, found = row.key, row.candidate, row.outcome
    data: dict[str, Any] = {
        "problem": key.problem, "device": key.device, "numerics": key.numerics,
        "template": candidate.template, "version": candidate.version,
        "config": dict(candidate.config), "default": row.is_default,
    }  # fmt: skip
    return data | outcome_to_data(found) | {
        "features": dict(row.features), "date": row.date, "versions": dict(row.versions),
        "origin": row.origin,
    }  # fmt: skip


def from_data(data: object) -> Row:
    """The row that a JSON object stands for. Raises TunerError, which names the field."""
    d = _checked(data)
    return Row(
        Key(d["problem"], d["device"], d["numerics"]),
        Candidate(d["template"], d["version"], d["config"]), _outcome(d), d["default"],
        {k: float(v) for k, v in d["features"].items()}, d["date"], d["versions"], d["origin"],
    )  # fmt: skip


def outcome_to_data(found: Outcome) -> dict[str, Any]:
    """The fields of a row that hold its outcome; `outcome_from_data` makes it again."""
    if isinstance(found, Failure):
        return {"failure": found.kind, "detail": found.detail}
    return {"seconds": found.seconds, "low": found.low, "high": found.high,
            "rounds": found.rounds, "contaminated": found.contaminated}  # fmt: skip


def outcome_from_data(data: object) -> Outcome:
    """The outcome that a JSON object of these fields alone stands for. Raises TunerError, which
    names the field."""
    return _outcome(_checked(data, shared=False))


def _outcome(d: Mapping[str, Any]) -> Outcome:
    if "failure" in d:
        return Failure(d["failure"], d["detail"])
    return Measurement(float(d["seconds"]), float(d["low"]), float(d["high"]), d["rounds"],
                       d["contaminated"])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a row as data. kind: a name in `KINDS`. most: how long a text, how large a
    number, how many entries. of: in every row ("all"), or in measurements or failures only."""

    name: str
    kind: str
    most: float
    of: str
    meaning: str


_DETAIL_CHARACTERS: Final = 4000
FIELDS: Final = (
    Field("problem", "text", 1_000_000, "all", "what is computed, as canonical text"),
    Field("device", "text", 10_000, "all", "what it ran on, as canonical text"),
    Field("numerics", "text", 64, "all", "which answers were allowed"),
    Field("template", "text", 128, "all", "the kernel template"),
    Field("version", "count", 1_000_000_000, "all", "the template's version"),
    Field(
        "config", "values", 64, "all", "the template's choices: text, numbers, true, false, null"
    ),
    Field("default", "flag", 1, "all", "whether this is what runs without tuning"),
    Field("seconds", "time", 1e6, "measurement", "time of one run, the lower quartile"),
    Field("low", "time", 1e6, "measurement", "where the 95 % interval of it begins"),
    Field("high", "time", 1e6, "measurement", "where it ends"),
    Field("rounds", "count", 1_000_000_000, "measurement", "samples"),
    Field("contaminated", "flag", 1, "measurement", "whether other work disturbed the samples"),
    Field("failure", "failure", 16, "failure", "why there is no time: " + ", ".join(FAILURE_KINDS)),
    Field("detail", "any text", _DETAIL_CHARACTERS, "failure", "more about it, for people"),
    Field("features", "numbers", 256, "all", "numbers from 0 on that describe the problem"),
    Field("date", "date", 20, "all", "when, in UTC"),
    Field("versions", "texts", 32, "all", "versions of the software, by name"),
    Field("origin", "any text", 256, "all", "who found it out, for people"),
)
_ENTRY_CHARACTERS: Final = 256
_LARGE: Final = 2**53
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def _checked(data: object, *, shared: bool = True) -> dict[str, Any]:
    """The object, if its fields are those of a row and hold what they should. shared: with those
    that every row has."""
    if not isinstance(data, dict):
        raise TunerError("expected a JSON object")
    kind = "failure" if "failure" in data else "measurement"
    fields = [f for f in FIELDS if f.of == kind or (shared and f.of == "all")]
    for unknown in sorted(data.keys() - {f.name for f in fields}):
        raise TunerError(f"field {unknown[:64]!r}: no such field in a {kind}")
    for f in fields:
        if f.name not in data:
            raise TunerError(f"field {f.name!r}: is missing")
        complaint = KINDS[f.kind](data[f.name], f.most)
        if complaint:
            raise TunerError(f"field {f.name!r}: {complaint}")
    if "seconds" in data and not data["low"] <= data["seconds"] <= data["high"]:
        raise TunerError("field 'seconds': lies outside of the interval from low to high")
    return data


def check(row: Row) -> None:
    """Raise TunerError, which names the field, if the row holds what no row may."""
    _checked(to_data(row))


def told(outcome: Outcome) -> Outcome:
    """The outcome as a row may hold it: what a candidate printed before it failed may be anything,
    and is cut and cleaned."""
    if isinstance(outcome, Measurement):
        return outcome
    text = outcome.detail[:_DETAIL_CHARACTERS].replace("\0", "?")
    return Failure(outcome.kind, text.encode("utf-8", "replace").decode())


def _any_text(value: object, most: float) -> str:
    if type(value) is not str:
        return "expected text"
    if len(value) > most:
        return f"{len(value)} characters are too many, {most:.0f} are allowed"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a character"
    return "holds a NUL" if "\0" in value else ""


def _text(value: object, most: float) -> str:
    return _any_text(value, most) or ("" if value else "is empty")


def _number(value: object, most: float) -> str:
    fits = isinstance(value, int | float) and type(value) is not bool and 0 <= value <= most
    return "" if fits else f"expected a number from 0 to {most:g}"


def _time(value: object, most: float) -> str:
    return _number(value, most) or ("" if value else "expected more than 0 seconds")


def _count(value: object, most: float) -> str:
    fits = type(value) is int and 0 < value <= most
    return "" if fits else f"expected a whole number from 1 to {most:.0f}"


def _flag(value: object, most: float) -> str:
    return "" if type(value) is bool else "expected true or false"


def _date(value: object, most: float) -> str:
    if type(value) is str and _DATE.fullmatch(value):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return "there is no such date"
        return ""
    return "expected a date like 2026-01-31T23:59:59Z"


def _failure(value: object, most: float) -> str:
    return "" if value in FAILURE_KINDS else f"expected one of {', '.join(FAILURE_KINDS)}"


def _value(value: object, most: float) -> str:
    if value is None or type(value) is bool:
        return ""
    if type(value) is str:
        return _any_text(value, most)
    fits = isinstance(value, int | float) and -_LARGE < value < _LARGE
    return "" if fits else "expected text, a number below 2**53, true, false or null"


def _entries(each: Callable[[object, float], str], limit: float) -> Callable[[object, float], str]:
    """A check of objects whose every value passes `each`."""

    def complaint(value: object, most: float) -> str:
        if not isinstance(value, Mapping):
            return "expected an object"
        if len(value) > most:
            return f"{len(value)} entries are too many, {most:.0f} are allowed"
        for name, entry in value.items():
            wrong = _text(name, _ENTRY_CHARACTERS) or each(entry, limit)
            if wrong:
                return f"entry {str(name)[:64]!r}: {wrong}"
        return ""

    return complaint


KINDS: Final[Mapping[str, Callable[[object, float], str]]] = MappingProxyType({
    "text": _text, "any text": _any_text, "count": _count, "time": _time, "flag": _flag,
    "date": _date, "failure": _failure, "values": _entries(_value, _ENTRY_CHARACTERS),
    "numbers": _entries(_number, 1e300), "texts": _entries(_any_text, _ENTRY_CHARACTERS),
})  # fmt: skip
"""What each kind of field holds: a function of value and limit that says what is wrong, if any."""
