"""Where objects keep what native code reads of numpy's arrays and of the tuple that lists them.

These offsets follow from CPython's object header and numpy's C interface (PyArrayObject_fields),
but nothing here is taken for granted: they count only after reading a number of arrays through them
gave what the arrays' own attributes say. Elsewhere, arrays are asked in Python, which takes longer.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

_log: Final = logging.getLogger("tilewright")
_WORD: Final = 8

READABLE: Final = 0x101
"""Flags of an array that kernels can read where it lies: C-contiguous, aligned."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Bytes from the start of an object to what it holds. Of an array: type (of the object), data,
    rank (32 bits), dims (an address), dtype (an object's address), flags (32 bits); items: the
    first of a tuple."""

    type: int
    data: int
    rank: int
    dims: int
    dtype: int
    flags: int
    items: int


@cache
def fields() -> Fields | None:
    """The offsets in this process; None, with a line in the log, where they are not those known."""
    found = _expected()
    if found is None or not _hold(found):
        _log.warning(
            "numpy %s keeps its arrays in another way than expected: calls ask every array in "
            "Python, which takes about 1 us longer", np.__version__,
        )  # fmt: skip
        return None
    return found


def _expected() -> Fields | None:
    head = object.__basicsize__
    if sys.implementation.name != "cpython" or sys.maxsize != 2**63 - 1 or head % _WORD:
        return None
    of_array = dict(zip(
        ("data", "rank", "dims", "strides", "base", "dtype", "flags"),
        range(head, head + 7 * _WORD, _WORD), strict=True,
    ))  # fmt: skip
    del of_array["strides"], of_array["base"]
    return Fields(type=head - _WORD, items=tuple.__basicsize__, **of_array)


def _hold(f: Fields) -> bool:
    """Whether arrays of all kinds read right."""
    if np.ndarray.__basicsize__ < f.flags + _WORD:
        return False
    whole = np.arange(24, dtype=np.float32)
    frozen = whole.copy()
    frozen.flags.writeable = False
    arrays: tuple[np.ndarray[Any, Any], ...]
    arrays = (whole, whole[3:], whole[:0], whole[::2], whole.reshape(2, 3, 4), frozen,
              whole.reshape(4, 6).T, np.zeros((), np.int64), np.zeros(3, ">f8"),
              np.zeros(9, np.uint8)[1:].view(np.float64))  # fmt: skip
    listed = id(arrays) + f.items
    return all(
        _word(listed + k * _WORD) == id(a) and _reads(f, a) for k, a in enumerate(arrays)
    )  # fmt: skip


def _reads(f: Fields, a: np.ndarray[Any, Any]) -> bool:
    at = id(a)
    dims = _word(at + f.dims)
    strides = _word(at + f.dims + _WORD)  # right behind the dims, or these aren't where dims are
    return (
        _word(at + f.type) == id(np.ndarray)
        and _word(at + f.data) == a.ctypes.data
        and _half(at + f.rank) == a.ndim
        and strides - dims == a.ndim * _WORD
        and all(_word(dims + k * _WORD) == n for k, n in enumerate(a.shape))
        and _word(at + f.dtype) == id(a.dtype)
        and _half(at + f.flags) == a.flags.num
    )


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _half(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


# --------------------------------------------------------------------------- addresses

_WORDS: Final = 1 << 57


def _from_interface(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


def _reader() -> Callable[[np.ndarray[Any, Any]], int]:
    """Reads the word `data` of the object, from all the words that could be addressed."""
    known = fields()
    if known is None:
        return _from_interface
    memory = (ctypes.c_uint64 * _WORDS).from_address(0)
    data = known.data

    def from_object(array: np.ndarray[Any, Any]) -> int:
        return memory[(id(array) + data) // _WORD]

    return from_object


address: Final = _reader()
"""The address of an array's first element: `array.ctypes.data` in a seventh of its 0.7 us."""
