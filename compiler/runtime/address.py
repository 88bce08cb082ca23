"""Where numpy's arrays lie in memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_DATA: Final[int] = object.__basicsize__
_WORD: Final = 8
_WORDS: Final = 1 << 57


def _from_interface(array: Array) -> int:
    return int(array.ctypes.data)


def _reader() -> Callable[[Array], int]:
    """Reads the member `data` of PyArrayObject_fields, which numpy's C interface has behind the
    header that all objects begin with: a word of memory, of all that could be addressed."""
    if sys.implementation.name != "cpython" or sys.maxsize < _WORDS * _WORD:
        return _from_interface
    memory = (ctypes.c_uint64 * _WORDS).from_address(0)

    def from_object(array: Array) -> int:
        return memory[(id(array) + _DATA) // _WORD]

    whole = np.zeros(8, np.uint8)
    known = not (id(whole) + _DATA) % _WORD and all(
        from_object(a) == _from_interface(a) for a in (whole, whole[3:], whole[:0])
    )
    return from_object if known else _from_interface


address: Final = _reader()
"""The address of an array's first element. `array.ctypes.data` takes 0.7 us, a third of what a call
of a small program takes altogether; reading the object takes 0.1 us."""
