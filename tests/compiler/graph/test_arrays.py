"""Memory for constants and arenas."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.arrays import ALIGNMENT, LARGE_PAGE, aligned_empty, paged_empty


@pytest.mark.parametrize("elements", [3, LARGE_PAGE // 4, LARGE_PAGE // 4 + 5, LARGE_PAGE])
def test_memory_is_all_there_and_on_a_cache_line(elements: int) -> None:
    for make in (aligned_empty, paged_empty):
        a = make((elements, 1), np.float32)
        assert (a.shape, a.dtype) == ((elements, 1), np.float32)
        assert a.ctypes.data % ALIGNMENT == 0
        a[...] = 1
        assert a.sum() == elements


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has one size of pages")
@pytest.mark.parametrize(
    ("nbytes", "pages"), [(LARGE_PAGE - 1, 0), (LARGE_PAGE, 1), (LARGE_PAGE * 3 // 2 - 1, 1),
                          (LARGE_PAGE * 3 // 2, 2), (LARGE_PAGE * 3, 3)]
)  # fmt: skip
def test_large_pages_are_asked_for_where_half_of_one_is_used(
    monkeypatch: pytest.MonkeyPatch, nbytes: int, pages: int
) -> None:
    asked: list[tuple[int, int]] = []

    class Memory(mmap.mmap):
        def madvise(self, option: int, *where: int) -> None:
            assert option == mmap.MADV_HUGEPAGE
            start, size = where
            assert start + size <= len(self)
            asked.append((start, size // LARGE_PAGE))

    monkeypatch.setattr(mmap, "mmap", Memory)
    a = paged_empty((nbytes,), np.uint8)
    if pages:
        assert a.ctypes.data % LARGE_PAGE == 0
    assert [n for _, n in asked] == [pages] * (pages > 0)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has one size of pages")
def test_a_system_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, *_: Any) -> None:
            raise OSError("invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    a = paged_empty((LARGE_PAGE,), np.uint8)
    a[...] = 7
    assert a[-1] == 7


def test_no_memory_is_told() -> None:
    with pytest.raises(MemoryError):
        paged_empty((1 << 60,), np.uint8)
