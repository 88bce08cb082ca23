"""What a profile says of launches whose times are given."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.inspect.machine import Limits, MemoryLevel
from tilewright.compiler.inspect.profile import Profile, profile, work

MIB = 1 << 20
LIMITS = Limits(
    1, 1e9,
    (MemoryLevel("L1", 1 << 12, 8e9, 4e9, 8e9), MemoryLevel("L2", MIB, 4e9, 2e9, 4e9),
     MemoryLevel("DRAM", None, 1e9, 1e9, 1e9)),
)  # fmt: skip


def program(n: int = 64) -> tw.Executable:
    """A product with a constant matrix, and a softmax."""
    g = tw.Graph()
    x = g.input("x", (8, n))
    w = g.parameter("w", np.eye(n, dtype=np.float32))
    g.output(g.softmax(g.matmul(x, w), axis=-1), "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    return exe


def of(exe: tw.Executable, seconds: list[float], limits: Limits = LIMITS) -> Profile:
    c = exe._compilation
    return profile(c.graph, c.launches, c.plan.arena_bytes, seconds, limits)


def test_traffic_is_split_by_where_it_goes() -> None:
    exe = program()
    c = exe._compilation
    product, softmax = (work(c.graph, x) for x in c.launches)
    assert (product.constant, product.read, product.written) == (
        64 * 64 * 4,
        8 * 64 * 4,
        8 * 64 * 4,
    )
    assert product.flops == 2 * 8 * 64 * 64
    assert (softmax.constant, softmax.read, softmax.written) == (0, 8 * 64 * 4, 8 * 64 * 4)


def test_shares_of_the_limits() -> None:
    made = of(program(), [100e-6, 2e-6])
    product, softmax = made.rows
    # 2 * 8 * 64 * 64 operations at 1e9 a second; 16 KiB of constants and as much of blobs from L2
    assert product.of_peak == pytest.approx(65536e-9 / 100e-6)
    assert product.memory_seconds == pytest.approx((16384 + 4096) / 4e9)
    assert product.bound == "compute" and product.of_limit == product.of_peak
    assert product.gflops == pytest.approx(65536 / 100e-6 / 1e9)
    # 4 KiB fit into L1
    assert softmax.level == "L1"
    assert softmax.memory_seconds == pytest.approx(4096 / 8e9)
    assert product.share == pytest.approx(100 / 102)
    least = product.compute_seconds + max(softmax.compute_seconds, softmax.memory_seconds)
    assert made.of_limit == pytest.approx(least / 102e-6)


def test_constants_come_from_where_the_program_fits() -> None:
    small = Limits(1, 1e12, (LIMITS.levels[0], LIMITS.levels[2]))
    product, softmax = of(program(), [1e-6, 1e-6], small).rows
    assert (product.level, product.constant_level) == ("DRAM", "DRAM")
    assert (softmax.level, softmax.constant_level) == ("L1", "DRAM")
    assert product.bound == "memory"


def test_operators_are_taken_together() -> None:
    g = tw.Graph()
    x = g.input("x", (8, 64))
    for k in range(3):
        x = g.matmul(x, g.parameter(f"w{k}", np.eye(64, dtype=np.float32)))
    g.output(x, "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    (row,) = of(exe, [1e-4, 2e-4, 3e-4]).by_operator()
    assert row.launches == 3 and row.share == pytest.approx(1)
    assert row.seconds == pytest.approx(6e-4)
    assert row.of_limit == pytest.approx(3 * 65536e-9 / 6e-4)


def test_it_prints_within_a_hundred_columns() -> None:
    g = tw.Graph()
    x = g.input("x" * 80, (8, 64))
    for _ in range(3):
        x = g.softmax(g.exp(x), axis=-1)
    g.output(x, "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    text = str(exe.profile(rounds=2))
    assert max(map(len, text.splitlines())) <= 100
    for part in ("GFLOP/s", "of peak", "of mem", "bound", "operators", "peak", "DRAM"):
        assert part in text


def test_programs_read_it_as_json() -> None:
    made = of(program(), [100e-6, 2e-6])
    back = json.loads(json.dumps(made.as_json()))
    assert [r["bound"] for r in back["rows"]] == [r.bound for r in made.rows]
    assert back["rows"][0]["flops"] == 65536
    assert back["limits"]["levels"][0]["name"] == "L1"
    assert back["operators"][0]["launches"] == 1
