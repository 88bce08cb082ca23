"""What was measured before: one row per candidate of each problem on each device, in SQLite.

A row is committed before `add` returns, so a process may be killed at any moment and loses only
what it had not finished; the next one measures what is missing. Any number of processes may read
and write at once. Nothing but numbers and text is kept (`row.py`).

No fault of the file fails a caller that only wants to be faster: the worst case is measuring again.
A damaged file is set aside and a new one begun, but only where Tilewright chose its path: at any
other it may be somebody's own. One of a newer version is left alone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from . import queries
from .distance import distance
from .errors import TunerError
from .outcome import Outcome
from .queries import Damaged, Newer, Templates
from .row import Row, check, told
from .task import Candidate, Key

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

PATIENCE: Final = 1.0
"""Seconds to wait for others who use the file, where whoever asks has something better to do."""
_STRICT_PATIENCE: Final = 30.0
_AT_ONCE: Final = 500  # keys of one question
_KEPT_ASIDE: Final = 2
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log: Final = logging.getLogger("tilewright")
_warned: Final[set[tuple[str, str]]] = set()
T = TypeVar("T")


class Records:
    """The rows in the file `path`; None: nothing is kept and nothing found.

    The file appears with the first row. versions: of the software that makes and times candidates,
    kept with every row that is added. strict: faults raise TunerError instead of a warning, for
    those who came for the records and nothing else, and wait for others who use the file. own: the
    path is Tilewright's own, so that a damaged file there is set aside; else it is left alone.

    Safe to use from several threads. A forked process opens the file anew.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, versions: Mapping[str, str] | None = None,
        *, strict: bool = False, own: bool = False,
    ) -> None:  # fmt: skip
        self.path = None if path is None else Path(path)
        self.versions = dict(versions or {})
        self._strict = strict
        self._own = own
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # device and inode of the file
        self._owner = 0
        self._sound = False

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        with self._lock:
            self._drop()

    def check(self) -> None:
        """Raise TunerError unless rows can be kept; a file that is not there is made."""
        self._attempt(queries.check, None, writing=True, strict=True)

    def row(
        self, key: Key, candidate: Candidate, outcome: Outcome, *, is_default: bool = False,
        features: Mapping[str, float] | None = None, origin: str = "",
    ) -> Row:  # fmt: skip
        """A row of now, which is not kept yet. Raises TunerError for values that no row may hold:
        times that are not finite and positive, for example."""
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = Row(key, candidate, told(outcome), is_default, features or {}, date, self.versions,
                  origin)  # fmt: skip
        check(row)
        return row

    def add(
        self, key: Key, candidate: Candidate, outcome: Outcome, *, is_default: bool = False,
        features: Mapping[str, float] | None = None, origin: str = "",
    ) -> bool:  # fmt: skip
        """Keep an outcome; False if that was not possible. It is on disk when this returns.

        Where there is a row already, the one that `preferred` says stays. Raises TunerError as
        `row` does.
        """
        row = self.row(key, candidate, outcome, is_default=is_default, features=features,
                       origin=origin)  # fmt: skip
        return self.merge([row]) is not None

    def merge(self, rows: Iterable[Row]) -> int | None:
        """Keep rows, all of them or none; how many were new or went before what was there. None if
        that was not possible. Raises TunerError for values that no row may hold."""
        checked = list(rows)
        for row in checked:
            check(row)
        return self._attempt(partial(queries.merge, checked), None, writing=True)

    def of(self, key: Key, templates: Templates | None = None) -> list[Row]:
        """All rows of a key, in order. templates: only rows of these, in the version given."""
        return self.of_many([key], templates)[key.digest]

    def of_many(
        self, keys: Sequence[Key], templates: Templates | None = None, within: float | None = None
    ) -> dict[str, list[Row]]:  # fmt: skip
        """Rows of many keys, by the keys' digests; without rows, an empty list.

        within: only what can still be chosen, the defaults and what takes at most that many times
        the least time of its key (1.1: ten percent more). That makes it fast enough for compiling.
        """
        found: dict[str, list[Row]] = {key.digest: [] for key in keys}
        for at in range(0, len(keys), _AT_ONCE):
            query = partial(queries.of_many, keys[at : at + _AT_ONCE], templates, within)
            nothing: dict[Key, list[Row]] = {}
            rows = self._attempt(query, nothing, writing=False)
            found |= {key.digest: mine for key, mine in rows.items()}
        return found

    def near(
        self, key: Key, features: Mapping[str, float], count: int,
        templates: Templates | None = None,
    ) -> list[Row]:  # fmt: skip
        """The fastest rows of the nearest other problems on the same device and with the same
        numerics, the nearest first, at most `count`.

        Near is what has features in like proportion (`distance.distance`). templates: only rows of
        these, so that what is found can be a candidate.
        """
        query = partial(queries.winners, key, templates)
        far = [(distance(features, row.features), row) for row in self._rows(query)]
        known = sorted((d, row.identity, row) for d, row in far if d is not None)
        return [row for _, _, row in known[:count]]

    def elsewhere(self, key: Key, templates: Templates | None = None) -> list[Row]:
        """Rows of the same problem and numerics from other devices, in order. Which of these are of
        the same model, the caller knows."""
        query = partial(queries.elsewhere, key, templates)
        return self._rows(query)

    def rows(self, digest: str = "") -> list[Row]:
        """All rows, or those of the keys whose digests begin like this; in order."""
        return self._rows(partial(queries.every, digest))

    def prune(
        self, *, before: str | None = None, outdated: Templates | None = None,
        devices: Sequence[str] | None = None, failures: bool = False, dry: bool = False,
    ) -> int:  # fmt: skip
        """Remove rows for which all that is given holds; how many. dry: only count them.

        before: older than this date. outdated: of templates that are not among these, or of another
        version. devices: measured on one of these. failures: without a time. Raises TunerError if
        nothing is given.
        """
        if before is None and outdated is None and devices is None and not failures:
            raise TunerError("nothing says which rows to remove")
        query = partial(queries.prune, before, outdated, devices, failures, dry)
        return self._attempt(query, 0, writing=not dry)

    # How the file is opened, and what happens if that fails.

    def _rows(self, query: Callable[[sqlite3.Connection], list[Row]]) -> list[Row]:
        nothing: list[Row] = []
        return self._attempt(query, nothing, writing=False)

    def _attempt(
        self, action: Callable[[sqlite3.Connection], T], otherwise: T, *, writing: bool,
        strict: bool = False,
    ) -> T:  # fmt: skip
        """What the action returns, or `otherwise` where there is no file or it cannot be used."""
        if self.path is None:
            return otherwise
        strict = strict or self._strict
        with self._lock:
            why: Exception
            for _ in range(2):
                try:
                    connection = self._connected(self.path, writing)
                    return otherwise if connection is None else action(connection)
                except Newer as e:
                    return self._fault("newer", f"{self.path} {e}", otherwise, strict)
                except (sqlite3.Error, OSError, Damaged) as e:
                    why = e
                if not _is_damage(why):
                    break
                if not self._own:
                    text = f"{self.path} is no whole file of records ({why}): it is left alone"
                    return self._fault("foreign", text, otherwise, strict)
                try:
                    self._set_aside(self.path, str(why))
                except OSError as e:
                    why = e
                    break
            return self._fault("use", f"cannot use {self.path} ({why})", otherwise, strict)

    def _fault(self, topic: str, text: str, otherwise: T, strict: bool) -> T:
        self._drop()
        if strict:
            raise TunerError(f"records of tuning: {text}")
        _warn_once(topic, self.path, f"tuning without records: {text}")
        return otherwise

    def _connected(self, path: Path, writing: bool) -> sqlite3.Connection | None:
        """The connection, to the file that lies there now; None if there is none to read."""
        if self._connection is not None:
            if self._owner == os.getpid() and _inode(path) == self._opened:
                return self._connection
            self._drop()
        with _alone(path.parent):
            self._opened, self._owner = _inode(path), os.getpid()
            if self._opened is None and not writing:
                return None
            self._connection = _connect(path, _STRICT_PATIENCE if self._strict else PATIENCE)
            if not queries.has_tables(self._connection):
                if not writing:
                    self._drop()
                    return None
                queries.make_tables(self._connection)
            self._opened = _inode(path)
        if writing and not self._sound:
            (answer,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                raise Damaged(str(answer).splitlines()[-1])
            self._sound = True
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            if self._owner == os.getpid():
                with suppress(sqlite3.Error):
                    self._connection.close()
            else:
                # Closing would touch the file of the process that this one was forked from.
                _inherited.append(self._connection)
        self._connection, self._sound = None, False

    def _set_aside(self, path: Path, reason: str) -> None:
        """Move the damaged file away, unless somebody has done so."""
        damaged = self._opened
        self._drop()
        with _alone(path.parent):
            if damaged is None or _inode(path) != damaged:
                return
            aside = f".damaged-{time.time_ns():020d}"
            for part in ("-wal", "-shm", ""):  # a log must never meet a file that is not its own
                with suppress(FileNotFoundError):
                    os.replace(_beside(path, part), _beside(path, aside + part))
            old = sorted(p for p in path.parent.glob(f"{path.name}.damaged-*")
                         if not p.name.endswith(("-wal", "-shm")))  # fmt: skip
            for each in old[:-_KEPT_ASIDE]:
                for part in ("-wal", "-shm", ""):
                    _beside(each, part).unlink(missing_ok=True)
        _warn_once("damaged", path, f"damaged records of tuning ({reason}): set aside as "
                                    f"{path.name}{aside}, and begun anew")  # fmt: skip


_inherited: Final[list[sqlite3.Connection]] = []


def _is_damage(e: Exception) -> bool:
    """Whether the file is at fault: not a lack of room, of permission or of patience."""
    if not isinstance(e, sqlite3.Error):
        return isinstance(e, Damaged)
    code = getattr(e, "sqlite_errorcode", 0) & 0xFF
    return code in _DAMAGE or (code == sqlite3.SQLITE_ERROR and str(e).startswith("no such"))


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    """Raises sqlite3.Error. Where nothing can be written, the file is read as it lies there."""
    readonly = path.exists() and not os.access(path.parent, os.W_OK)
    name = path.absolute().as_uri() + ("?immutable=1" if readonly else "")
    connection = sqlite3.connect(name, timeout=patience, isolation_level=None,
                                 check_same_thread=False, uri=True)  # fmt: skip
    try:
        # What is committed survives the process at once, and a loss of power within seconds.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else opens, makes or sets aside a file in the folder meanwhile."""
    descriptor = None
    if fcntl is not None:
        with suppress(OSError):  # no such folder, which will be said soon; or it knows no locks
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _warn_once(topic: str, path: Path | None, text: str) -> None:
    if (topic, str(path)) not in _warned:
        _warned.add((topic, str(path)))
        _log.warning("%s", text)
