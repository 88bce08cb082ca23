"""What was built before: a content-addressed store of bytes on disk.

An entry's name is the SHA-256 of its key, an ordered list of named fields (source text, target,
versions, options: everything that decides the bytes). The entry carries the whole key and a
checksum, so a damaged or foreign file is noticed, moved to `quarantine/` and built again. Entries
appear by rename, complete or not at all; any number of processes may share a directory.

No fault of the cache fails a compile: whatever the disk does, the worst case is building again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "TILEWRIGHT_CACHE"
"""The cache directory; empty or "off" switches the store off."""

KeyField = tuple[str, str | int]
Key = Sequence[KeyField]
"""Ordered named fields, e.g. `[("source", text), ("llvm", "22.1.0"), ("opt", 2)]`."""

_log: Final = logging.getLogger("tilewright")

_MAGIC: Final = b"tilewright store 1\n"
_LENGTHS: Final = struct.Struct("<QQ")  # bytes of key, bytes of payload
_DIGEST_BYTES: Final = 32
_PROLOGUE_BYTES: Final = len(_MAGIC) + _DIGEST_BYTES + _LENGTHS.size
_MAX_ENTRY_BYTES: Final = 1 << 30
_MAX_QUARANTINED: Final = 16
_STALE_SECONDS: Final = 3600.0


def cache_directory() -> Path | None:
    """The user's cache directory, which may not exist yet; None if caching is switched off.

    TILEWRIGHT_CACHE, else XDG_CACHE_HOME/tilewright, else ~/.cache/tilewright.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        return None if chosen.strip().lower() in ("", "off") else Path(chosen).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the XDG specification says to ignore relative ones
        return Path(shared) / "tilewright"
    try:
        return Path.home() / ".cache" / "tilewright"
    except RuntimeError:  # no home directory
        return None


def source_digest(files: Iterable[Path]) -> str:
    """A field for keys: a hash of the code that decides what an entry holds, so that a change to it
    makes new entries. What the files hold and their order count, not where they lie."""
    h = hashlib.sha256()
    for file in files:
        h.update(file.read_bytes())
    return h.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored artifact: its name (hash of the key), its key, and its bytes on disk."""

    name: str
    key: tuple[KeyField, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a key that the nearest stored entry has otherwise; None means it lacks it."""

    field: str
    wanted: str | int | None
    stored: str | int | None

    def __str__(self) -> str:
        return f"{self.field}: wanted {_shown(self.wanted)}, stored {_shown(self.stored)}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a key is a hit or a miss. `nearest` is the entry that differs in the fewest fields."""

    hit: bool
    nearest: str | None
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if self.hit:
            return f"hit: {self.nearest}"
        if self.nearest is None:
            return "miss: nothing is stored"
        if not self.differences:
            return f"miss: nearest is {self.nearest}, which has another order of the fields"
        return "\n  ".join([f"miss: nearest is {self.nearest}", *map(str, self.differences)])


class Store:
    """The entries below one cache directory (default `cache_directory()`).

    Nothing is created before the first `put`. A directory that is a symbolic link or belongs to
    someone else is not used: the store warns once and then holds nothing.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = cache_directory() if directory is None else Path(directory)

    def get(self, key: Key) -> bytes | None:
        """The bytes stored under `key`, or None. A damaged entry is quarantined and is None."""
        text = _encode(key)
        folder = self._folder("entries", create=False)
        if folder is None:
            return None
        path = folder / _name(text)
        try:
            return _read(path, text)
        except FileNotFoundError:
            return None
        except _Damaged as damage:
            self._quarantine(path, str(damage))
        except OSError as error:
            _warn_once("disk", "cannot read cache entry %s (%s); building instead", path, error)
        return None

    def put(self, key: Key, payload: bytes) -> bool:
        """Store `payload` under `key`; False if that was not possible."""
        text = _encode(key)
        entries = self._folder("entries", create=True)
        staging = self._folder("staging", create=True)
        image = _image(text, payload)
        if entries is None or staging is None or len(image) > _MAX_ENTRY_BYTES:
            return False
        try:
            _sweep(staging)
            _publish(image, staging, entries / _name(text))
        except OSError as error:
            _warn_once("disk", "cannot write to the cache in %s (%s)", self.directory, error)
            return False
        return True

    def get_or_build(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """The stored bytes, or those of `build()`, which are then stored if possible."""
        found = self.get(key)
        if found is None:
            found = build()
            self.put(key, found)
        return found

    def entries(self) -> tuple[Entry, ...]:
        """All readable entries, by name. Payloads are not verified."""
        found = []
        for path in self._paths("entries"):
            try:
                with _open(path) as (descriptor, size):
                    _, key, _ = _take_key(descriptor, size)
                found.append(Entry(path.name, tuple((n, v) for n, v in json.loads(key)), size))
            except (OSError, ValueError, TypeError, _Damaged):
                continue
        return tuple(sorted(found, key=lambda entry: entry.name))

    @property
    def size(self) -> int:
        """Bytes on disk, entries and leftovers together."""
        total = 0
        for folder in ("entries", "staging", "quarantine"):
            for path in self._paths(folder):
                try:
                    total += path.lstat().st_size
                except OSError:
                    continue
        return total

    def clear(self) -> int:
        """Remove everything; how many entries that were."""
        removed = sum(_remove(path) for path in self._paths("entries"))
        for folder in ("staging", "quarantine"):
            for path in self._paths(folder):
                _remove(path)
        return removed

    def explain(self, key: Key) -> Explanation:
        """Whether `key` is stored; if not, how it differs from the nearest entry."""
        text, wanted = _encode(key), dict(key)
        name = _name(text)
        nearest: tuple[str, tuple[Difference, ...]] | None = None
        for entry in self.entries():
            stored = dict(entry.key)
            fields = dict.fromkeys((*wanted, *stored))
            differences = tuple(
                Difference(field, wanted.get(field), stored.get(field))
                for field in fields
                if wanted.get(field) != stored.get(field)
            )
            if entry.name == name:
                return Explanation(True, name, ())
            if nearest is None or len(differences) < len(nearest[1]):
                nearest = entry.name, differences
        return Explanation(False, *(nearest or (None, ())))

    def beside(self, name: str, *, create: bool = False) -> Path | None:
        """Where a file of others lies in the cache directory, or would lie; None if the directory
        or the file cannot be trusted. create: make the directory if there is none."""
        if self.directory is not None and not create and not os.path.lexists(self.directory):
            return self.directory / name
        return self._trusted(name, _check_file, create=create)

    def _folder(self, name: str, *, create: bool) -> Path | None:
        """A folder of the cache, checked anew; None if there is none that can be trusted."""

        def check(path: Path) -> None:
            if create and not os.path.lexists(path):
                path.mkdir(mode=0o700, exist_ok=True)
            _check_directory(path)

        return self._trusted(name, check, create=create)

    def _trusted(
        self, name: str, check: Callable[[Path], None], *, create: bool
    ) -> Path | None:  # fmt: skip
        """What is called `name` in the cache directory, if that is ours and the check passes."""
        if self.directory is None:
            return None
        try:
            if create:
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                if not os.path.lexists(self.directory):
                    self.directory.mkdir(mode=0o700, exist_ok=True)
            _check_directory(self.directory)
            check(self.directory / name)
        except (OSError, _Untrusted) as error:
            if create or not isinstance(error, FileNotFoundError):
                _warn_once("folder", "not caching in %s: %s", self.directory, error)
            return None
        return self.directory / name

    def _paths(self, name: str) -> Iterator[Path]:
        folder = self._folder(name, create=False)
        if folder is None:
            return
        try:
            yield from sorted(folder.iterdir())
        except OSError:
            return

    def _quarantine(self, path: Path, reason: str) -> None:
        """Move a damaged entry aside, keeping the latest few for whoever wants to know why."""
        _warn_once("damaged", "damaged cache entry %s (%s); building it again", path, reason)
        folder = self._folder("quarantine", create=True)
        try:
            if folder is not None:
                os.replace(path, folder / f"{time.time_ns():020d}-{path.name}")
                for old in sorted(folder.iterdir())[:-_MAX_QUARANTINED]:
                    _remove(old)
                return
        except FileNotFoundError:
            return  # another process has moved it already
        except OSError:
            pass
        _remove(path)


class _Damaged(Exception):
    """The file is not a whole entry of this key; says why."""


class _Untrusted(Exception):
    """The directory could be under someone else's control; says why."""


def _encode(key: Key) -> bytes:
    """The key as canonical JSON: ASCII, one way to write each key."""
    fields = [[name, value] for name, value in key]
    for name, value in fields:
        if not isinstance(name, str) or type(value) not in (str, int):
            raise TypeError(f"store key field {name!r}={value!r}: expected str = str or int")
    if len({name for name, _ in fields}) < len(fields):
        raise ValueError("a store key names a field twice")
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _name(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _image(text: bytes, payload: bytes) -> bytes:
    """An entry file: magic, checksum of all that follows, lengths, key, payload."""
    return b"".join((_MAGIC, _checksum(text, payload), _lengths(text, payload), text, payload))


def _lengths(text: bytes, payload: bytes) -> bytes:
    return _LENGTHS.pack(len(text), len(payload))


def _checksum(text: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(_lengths(text, payload))
    digest.update(text)
    digest.update(payload)
    return digest.digest()


@contextmanager
def _open(path: Path) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file of ours; never follows a link or waits at a pipe."""
    if path.is_symlink():
        raise _Damaged("a symbolic link")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Damaged("not a regular file")
        if _foreign(status):
            raise _Damaged(f"owned by user {status.st_uid}")
        if not _PROLOGUE_BYTES <= status.st_size <= _MAX_ENTRY_BYTES:
            raise _Damaged(f"{status.st_size} bytes long")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _take(descriptor: int, count: int) -> bytes:
    """Exactly `count` bytes from the file's current position."""
    parts = []
    while count:
        part = os.read(descriptor, count)
        if not part:
            raise _Damaged("truncated")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _take_key(descriptor: int, size: int) -> tuple[bytes, bytes, int]:
    """(checksum, key, bytes of payload) from the start of an entry of `size` bytes."""
    prologue = _take(descriptor, _PROLOGUE_BYTES)
    if not prologue.startswith(_MAGIC):
        raise _Damaged("not an entry of this version")
    key_bytes, payload_bytes = _LENGTHS.unpack(prologue[-_LENGTHS.size :])
    if _PROLOGUE_BYTES + key_bytes + payload_bytes != size:
        raise _Damaged("its length does not fit its header")
    return prologue[len(_MAGIC) : -_LENGTHS.size], _take(descriptor, key_bytes), payload_bytes


def _read(path: Path, text: bytes) -> bytes:
    """The payload of the entry with the encoded key `text`, verified. Raises OSError, _Damaged."""
    with _open(path) as (descriptor, size):
        checksum, stored, payload_bytes = _take_key(descriptor, size)
        if stored != text:
            raise _Damaged("it holds another key")
        payload = _take(descriptor, payload_bytes)
    if checksum != _checksum(text, payload):
        raise _Damaged("its checksum is wrong")
    return payload


def _publish(image: bytes, staging: Path, path: Path) -> None:
    """Write to a private file, force it to disk, rename: readers see all of it or nothing."""
    descriptor, name = tempfile.mkstemp(dir=staging)  # mode 0600
    try:
        try:
            rest = memoryview(image)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except BaseException:
        _remove(Path(name))
        raise


def _sweep(staging: Path) -> None:
    """Remove what killed processes left behind. Young files may be another's work in progress."""
    oldest = time.time() - _STALE_SECONDS
    for path in staging.iterdir():
        with suppress(OSError):  # published or removed by its owner in the meantime
            if path.lstat().st_mtime < oldest:
                _remove(path)


def _remove(path: Path) -> bool:
    """Remove a file, link or folder; False if that is not possible."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return False
    return True


def _foreign(status: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()


def _check_directory(path: Path) -> None:
    """Raises _Untrusted unless `path` is a directory of ours; takes others' write access away."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _Untrusted(f"{path} is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise _Untrusted(f"{path} is not a directory")
    if _foreign(status):
        raise _Untrusted(f"{path} belongs to user {status.st_uid}")
    if hasattr(os, "geteuid") and status.st_mode & 0o022:
        path.chmod(stat.S_IMODE(status.st_mode) & ~0o022)


def _check_file(path: Path) -> None:
    """Raises _Untrusted unless `path` is a file of ours, or nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise _Untrusted(f"{path} is not a regular file")
    if _foreign(status):
        raise _Untrusted(f"{path} belongs to user {status.st_uid}")


def _shown(value: str | int | None) -> str:
    """A field's value in a short line; long texts by their beginning and hash."""
    if value is None:
        return "nothing"
    text = str(value)
    if len(text) <= 60 and "\n" not in text:
        return repr(value)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{text[:40]!r}... ({len(text)} characters, sha256 {digest})"


_warned: Final[set[str]] = set()


def _warn_once(topic: str, message: str, *values: object) -> None:
    """At most one warning per topic and process: a sick cache is news only once."""
    if topic not in _warned:
        _warned.add(topic)
        _log.warning(message, *values)
