"""Constants that stay in the file they come from: pages are read when something needs them, and can
be given back to the system when it has taken what it needs."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ..errors import ModelError

Array = npt.NDArray[Any]

# Without it pages stay once they are read. Windows lacks it, and there a mapped file could also not
# be replaced for as long as the mapping lives.
_CAN_RELEASE: Final = hasattr(mmap, "MADV_DONTNEED")


class MappedFile(mmap.mmap):
    """A file's bytes, read only. What the file is replaced by does not show; a change within it is
    told by `check`."""

    label: str
    _file: int
    _seen: tuple[int, int]

    @property
    def _state(self) -> tuple[int, int]:
        s = os.fstat(self._file)
        return s.st_size, s.st_mtime_ns

    def check(self) -> None:
        """Raises ModelError when somebody wrote to the file since it was mapped.

        Reading the bytes of a file that became shorter would end the process.
        """
        if self._state != self._seen:
            raise ModelError(
                f"{self.label} changed while its weights were in use; compile the model again, and "
                f"replace files instead of writing into them"
            )

    def read_at(self, start: int, stop: int) -> bytes:
        """A few bytes, without mapping the pages around them."""
        return os.pread(self._file, stop - start, start)

    def release(self, array: Array) -> None:
        """Let go of the pages that an array in this file covers; they are read again on demand."""
        base = np.frombuffer(self, np.uint8).ctypes.data
        low, high = (at - base for at in np.lib.array_utils.byte_bounds(array))
        first = low // mmap.PAGESIZE * mmap.PAGESIZE
        self.madvise(mmap.MADV_DONTNEED, first, high - first)


def contents(file: BinaryIO, label: str) -> MappedFile | bytes:
    """The bytes of an open file: mapped if it is one that can be, else read. Raises OSError."""
    status = os.fstat(file.fileno())
    if not (_CAN_RELEASE and stat.S_ISREG(status.st_mode) and status.st_size):
        return file.read()
    try:
        found = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # a file system without mappings
        return file.read()
    found.label = label
    found._file = os.dup(file.fileno())
    weakref.finalize(found, os.close, found._file)
    found._seen = (status.st_size, status.st_mtime_ns)
    return found


def file_of(array: Array) -> MappedFile | None:
    """The file that an array's bytes lie in, if they do in one."""
    owner: object = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, MappedFile) else None
