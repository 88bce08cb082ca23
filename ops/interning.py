"""The table of interned objects: each is in it as long as somebody holds it."""

from __future__ import annotations

from threading import RLock
from typing import Any, Final
from weakref import ref


class Entry(ref[Any]):
    """A weak reference that knows its place in the table, and leaves it with its object."""

    __slots__ = ("key",)
    key: tuple[Any, ...]


# A WeakValueDictionary would take twice the time per lookup, and compiling makes many.
table: Final[dict[tuple[Any, ...], Entry]] = {}
_changing: Final = RLock()  # not a plain lock: while one is added, memory of others may be freed


def interned(key: tuple[Any, ...], new: Any) -> Any:
    """What is in the table by this key, else `new`, which then is. Of all threads that come with
    something new at once, one puts it there."""
    with _changing:
        entry = table.get(key)
        found = None if entry is None else entry()
        if found is not None:
            return found
        entry = table[key] = Entry(new, _drop)
        entry.key = key
        return new


def _drop(
    entry: Entry, table: dict[tuple[Any, ...], Entry] = table, _changing: Any = _changing
) -> None:
    """Defaults, as globals are gone when the last entries leave: while the interpreter ends."""
    with _changing:
        if table.get(entry.key) is entry:
            del table[entry.key]
