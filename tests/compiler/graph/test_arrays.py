"""Memory for arenas and constants."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from tilewright.compiler.graph.arrays import ALIGNMENT, LARGE_PAGE, large_empty


@pytest.mark.parametrize("nbytes", [1, 100_000, LARGE_PAGE // 2, 3 * LARGE_PAGE - 1])
def test_all_of_it_can_be_written(nbytes: int) -> None:
    a, b = large_empty(nbytes), large_empty(nbytes)
    assert a.shape == (nbytes,) and a.dtype == np.uint8
    a[:], b[:] = 1, 2
    assert (a == 1).all() and (b == 2).all()
    paged = nbytes >= LARGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE")
    assert a.ctypes.data % (LARGE_PAGE if paged else ALIGNMENT) == 0


def test_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    made = large_empty(LARGE_PAGE)
    made[:] = 3
    assert made.ctypes.data % ALIGNMENT == 0


def test_too_much_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        large_empty(1 << 55)
