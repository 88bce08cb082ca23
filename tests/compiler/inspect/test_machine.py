"""Measured limits of the machine, and what they say of a kernel. Nothing here depends on speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.compiler.inspect.machine import (
    Limits,
    MemoryLevel,
    cache_sizes,
    call_seconds,
    limits,
)

NEAR = MemoryLevel("L1", 1000, 100.0, 50.0, 80.0)
FAR = MemoryLevel("DRAM", None, 10.0, 5.0, 8.0)


def test_limits_are_measured_once() -> None:
    found = limits(1)
    assert found is limits(1)
    assert found.threads == 1 and found.flops > 1e8
    assert [x.name for x in found.levels][-1] == "DRAM"
    sizes = [x.bytes for x in found.levels[:-1]]
    assert sizes == sorted(sizes) and None not in sizes
    assert all(min(x.read, x.write, x.copy) > 1e7 for x in found.levels)


def test_the_level_of_a_footprint() -> None:
    made = Limits(1, 64.0, (NEAR, FAR))
    assert made.level(0) is NEAR and made.level(1000) is NEAR
    assert made.level(1001) is FAR
    assert made.peak(4) == 64.0 and made.peak(8) == 32.0
    assert made.peak(2) == 64.0, "half floats are added up in float32"


def test_reads_and_writes_pair_up_as_copies() -> None:
    assert NEAR.seconds(100, 0) == 1.0
    assert NEAR.seconds(0, 100) == 2.0
    assert NEAR.seconds(40, 40) == 1.0
    assert NEAR.seconds(140, 40) == 2.0


def cache(folder: Path, index: int, **files: str) -> None:
    entry = folder / f"index{index}"
    entry.mkdir(parents=True)
    for name, text in files.items():
        (entry / name).write_text(text + "\n")


def test_cache_sizes_as_the_system_tells_them(tmp_path: Path) -> None:
    cache(tmp_path, 0, type="Data", level="1", size="48K", shared_cpu_list="0")
    cache(tmp_path, 1, type="Instruction", level="1", size="32K", shared_cpu_list="0")
    cache(tmp_path, 2, type="Unified", level="2", size="2M", shared_cpu_list="0-1")
    cache(tmp_path, 3, type="Unified", level="3", size="32768K", shared_cpu_list="0,4")
    # Two hyperthreads of a core share its second cache: to one thread it is its own.
    assert cache_sizes(tmp_path) == (
        ("L1", 48 << 10, False), ("L2", 2 << 20, False), ("L3", 32 << 20, True),
    )  # fmt: skip


@pytest.mark.parametrize("size", ["", "many", "0K"])
def test_cache_sizes_where_the_system_tells_nothing(tmp_path: Path, size: str) -> None:
    cache(tmp_path, 0, type="Data", level="1", size=size, shared_cpu_list="0")
    found = cache_sizes(tmp_path)
    assert [name for name, _, _ in found] == ["L1", "L2", "L3"]


def test_what_timing_a_call_costs() -> None:
    ticks = iter(range(10**6))
    assert call_seconds(lambda: next(ticks) * 1000) == pytest.approx(1e-6)
