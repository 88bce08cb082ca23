"""The tables of the records, and every question that is asked of them.

A question is a function that takes a connection last. Text of SQL is put together from what stands
in this file alone; values go to SQLite as parameters.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from .outcome import Failure, Measurement, Outcome
from .row import Row, preferred
from .task import Candidate, Key, canonical

Templates = Mapping[str, int]
"""Templates that rows are wanted of, with the version that each has now."""

VERSION: Final = 1
"""Of the tables. A file with a higher one was written by a newer Tilewright."""
_TABLES: Final = """
CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    numerics TEXT NOT NULL,
    device TEXT NOT NULL,
    problem TEXT NOT NULL,
    UNIQUE (problem, numerics, device));
CREATE INDEX keys_by_digest ON keys (digest);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY,
    key INTEGER NOT NULL REFERENCES keys (id),
    template TEXT NOT NULL,
    version INTEGER NOT NULL,
    config TEXT NOT NULL,
    is_default INTEGER NOT NULL,
    seconds REAL,
    low REAL,
    high REAL,
    rounds INTEGER,
    contaminated INTEGER,
    failure TEXT,
    detail TEXT,
    features TEXT NOT NULL,
    date TEXT NOT NULL,
    versions TEXT NOT NULL,
    origin TEXT NOT NULL,
    UNIQUE (key, template, version, config));
CREATE INDEX rows_by_time ON rows (key, seconds, template, version);
CREATE INDEX defaults ON rows (key) WHERE is_default;
"""
_KEY: Final = "k.problem, k.device, k.numerics"
_ROW: Final = (
    "r.template, r.version, r.config, r.is_default, r.seconds, r.low, r.high, r.rounds, "
    "r.contaminated, r.failure, r.detail, r.features, r.date, r.versions, r.origin"
)
_SELECT: Final = f"SELECT {_KEY}, {_ROW} FROM keys k JOIN rows r ON r.key = k.id "
_ORDER: Final = "ORDER BY k.problem, k.device, k.numerics, r.template, r.version, r.config"
_ORDER_IN_KEY: Final = "ORDER BY k.id, r.template, r.version, r.config"
_FASTEST: Final = (
    "SELECT {} FROM rows r WHERE r.key = k.id AND r.seconds IS NOT NULL AND ({}) "
    "ORDER BY r.seconds LIMIT 1"
)
_CHOSEN: Final = f"""
WITH bound AS (
    SELECT k.id AS key, ? * ({_FASTEST.format("r.seconds", "{mine}")}) AS most
    FROM keys k WHERE {{asked}}),
chosen AS (
    SELECT r.id FROM bound CROSS JOIN rows r ON r.key = bound.key
    WHERE r.seconds <= bound.most AND ({{mine}})
    UNION
    SELECT r.id FROM bound CROSS JOIN rows r INDEXED BY defaults ON r.key = bound.key
    WHERE r.is_default AND ({{mine}}))
SELECT {_KEY}, {_ROW}
FROM chosen CROSS JOIN rows r ON r.id = chosen.id JOIN keys k ON k.id = r.key
{_ORDER_IN_KEY}
"""
"""Reads the rows that are wanted and no others: joins keep the order that stands here."""
_INSERT: Final = (
    "INSERT OR REPLACE INTO rows (key, template, version, config, is_default, seconds, low, high, "
    "rounds, contaminated, failure, detail, features, date, versions, origin) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_log: Final = logging.getLogger("tilewright")


class Damaged(Exception):
    """The file is no whole file of records; says why."""


class Newer(Exception):
    """The file has a version that is not known here; says so."""


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether rows can be read; no if the file is empty. Raises Newer, Damaged."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise Newer(f"is of version {version}, this Tilewright knows {VERSION} only: it is left "
                    "alone. Upgrade, or set TILEWRIGHT_CACHE to another directory")  # fmt: skip
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and version != VERSION:
        raise Damaged("it holds something else")
    return bool(tables)


def make_tables(connection: sqlite3.Connection) -> None:
    """Make an empty file one of records."""
    connection.execute("PRAGMA journal_mode = WAL")
    with _transaction(connection):
        for statement in _TABLES.split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def check(connection: sqlite3.Connection) -> None:
    """Ask for every column, and write what is there already: what cannot be kept fails."""
    connection.execute(f"{_SELECT} LIMIT 0")
    with _transaction(connection):
        connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def merge(rows: Sequence[Row], connection: sqlite3.Connection) -> int:
    """Keep rows, all or none, where they go before what is there; how many did."""
    changed, ids = 0, dict[Key, int]()
    with _transaction(connection):
        for row in rows:
            if row.key not in ids:
                ids[row.key] = _key_id(row.key, connection)
            written = (ids[row.key], *_written(row))
            there = connection.execute(
                f"{_SELECT} WHERE r.key = ? AND r.template = ? AND r.version = ? AND r.config = ?",
                written[:4],
            ).fetchall()
            old = next(_read(there), None)
            if old is None or preferred(old, row) is row:
                connection.execute(_INSERT, written)
                changed += 1
    return changed


def _key_id(key: Key, connection: sqlite3.Connection) -> int:
    values = (key.problem, key.device, key.numerics)
    connection.execute(
        "INSERT OR IGNORE INTO keys (problem, device, numerics, digest) VALUES (?, ?, ?, ?)",
        (*values, key.digest),
    )
    found = connection.execute(
        "SELECT id FROM keys WHERE problem = ? AND device = ? AND numerics = ?", values
    ).fetchone()
    if found is None:
        raise Damaged("a key that was written is not found")
    return int(found[0])


def of_many(
    keys: Sequence[Key], templates: Templates | None, within: float | None,
    connection: sqlite3.Connection,
) -> dict[Key, list[Row]]:  # fmt: skip
    """Rows of each key. within: only defaults, and what takes at most that many times the least."""
    digests = sorted({key.digest for key in keys})
    mine, names = _only(templates)
    asked = f"k.digest IN ({_marks(len(digests))})"
    if within is None:
        query = f"{_SELECT} WHERE {asked} AND ({mine}) {_ORDER_IN_KEY}"
        values: list[Any] = [*digests, *names]
    else:
        query = _CHOSEN.format(asked=asked, mine=mine)
        values = [within, *names, *digests, *names, *names]
    found: dict[Key, list[Row]] = {key: [] for key in keys}
    nowhere: list[Row] = []  # rows of another key whose digest is the same
    key, into = None, nowhere
    for row in _read(connection.execute(query, values).fetchall()):
        if row.key is not key:  # looked up once for all its rows, which are neighbours
            key, into = row.key, found.get(row.key, nowhere)
        into.append(row)
    return found


def winners(
    key: Key, templates: Templates | None, connection: sqlite3.Connection
) -> list[Row]:  # fmt: skip
    """The fastest row of each other problem of the key's device and numerics."""
    condition, names = _only(templates)
    return _rows(
        f"k.device = ? AND k.numerics = ? AND k.problem <> ? AND r.id = "
        f"({_FASTEST.format('r.id', condition)})",
        [key.device, key.numerics, key.problem, *names], connection,
    )  # fmt: skip


def elsewhere(
    key: Key, templates: Templates | None, connection: sqlite3.Connection
) -> list[Row]:  # fmt: skip
    """Rows of the same problem and numerics from other devices."""
    condition, names = _only(templates)
    return _rows(
        f"k.problem = ? AND k.numerics = ? AND k.device <> ? AND ({condition}) {_ORDER}",
        [key.problem, key.numerics, key.device, *names], connection,
    )  # fmt: skip


def every(digest: str, connection: sqlite3.Connection) -> list[Row]:
    """Rows of the keys whose digests begin like this."""
    return _rows(f"substr(k.digest, 1, ?) = ? {_ORDER}", (len(digest), digest), connection)


def _rows(where: str, values: Sequence[Any], connection: sqlite3.Connection) -> list[Row]:
    """Rows for which a condition holds."""
    return list(_read(connection.execute(f"{_SELECT} WHERE {where}", values).fetchall()))


def prune(
    before: str | None, outdated: Templates | None, devices: Sequence[str] | None, failures: bool,
    dry: bool, connection: sqlite3.Connection,
) -> int:  # fmt: skip
    """Remove rows for which all that is given holds, and say how many."""
    conditions: list[str] = []
    values: list[Any] = []
    if before is not None:
        conditions.append("r.date < ?")
        values.append(before)
    if outdated is not None:
        current, names = _only(outdated)
        conditions.append(f"NOT ({current})")
        values += names
    if devices is not None:
        conditions.append(f"k.device IN ({_marks(len(devices))})")
        values += devices
    if failures:
        conditions.append("r.failure IS NOT NULL")
    which = f"FROM rows r JOIN keys k ON r.key = k.id WHERE {' AND '.join(conditions)}"
    if dry:
        (count,) = connection.execute(f"SELECT count(*) {which}", values).fetchone()
        return int(count)
    with _transaction(connection):
        gone = connection.execute(f"DELETE FROM rows WHERE id IN (SELECT r.id {which})", values)
        connection.execute("DELETE FROM keys WHERE id NOT IN (SELECT key FROM rows)")
    with suppress(sqlite3.OperationalError):  # others may be reading
        connection.execute("VACUUM")
    return gone.rowcount


def _only(templates: Templates | None) -> tuple[str, list[Any]]:
    """A condition, and its values, that rows are of these templates."""
    if templates is None:
        return "1", []
    each = ["(r.template = ? AND r.version = ?)"] * len(templates)
    return " OR ".join(each) or "0", [v for pair in templates.items() for v in pair]


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _written(row: Row) -> tuple[Any, ...]:
    """The values of `_INSERT` after the key."""
    found, candidate = row.outcome, row.candidate
    result: tuple[Any, ...]
    if isinstance(found, Measurement):
        result = (found.seconds, found.low, found.high, found.rounds, found.contaminated, None,
                  None)  # fmt: skip
    else:
        result = (None, None, None, None, None, found.kind, found.detail)
    return (
        candidate.template, candidate.version, candidate.text, row.is_default, *result,
        canonical(dict(row.features)), row.date, canonical(dict(row.versions)), row.origin,
    )  # fmt: skip


def _read(found: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
    """Rows of what `_SELECT` finds. One that is none is left out, and replaced when its candidate
    is measured again."""
    objects: dict[str, Any] = {}  # neighbours have the same features and versions

    def parsed(text: str) -> Any:
        if text not in objects:
            objects[text] = dict(json.loads(text))
        return objects[text]

    key = Key("", "", "")
    for problem, device, numerics, template, version, config, is_default, *rest in found:
        seconds, low, high, rounds, contaminated, kind, detail, *about = rest
        if (problem, device, numerics) != (key.problem, key.device, key.numerics):
            key = Key(problem, device, numerics)
        outcome: Outcome
        if seconds is None:
            outcome = Failure(kind, detail)
        else:
            outcome = Measurement(seconds, low, high, rounds, bool(contaminated))
        features, date, versions, origin = about
        try:
            if seconds is not None and not _is_time(seconds, low, high, rounds):
                raise ValueError(f"{seconds!r} is no time")
            candidate = Candidate(template, version, dict(json.loads(config)))
            row = Row(key, candidate, outcome, bool(is_default), parsed(features), date,
                      parsed(versions), origin)  # fmt: skip
        except (ValueError, TypeError, RecursionError) as e:
            _log.warning("a row of the records cannot be read and is left out: %s", e)
            continue
        yield row


def _is_time(seconds: Any, low: Any, high: Any, rounds: Any) -> bool:
    """Whether the numbers of a measurement are such: a column of SQLite may hold anything."""
    numbers = type(seconds) is type(low) is type(high) is float and type(rounds) is int
    return numbers and 0 < low <= seconds <= high
