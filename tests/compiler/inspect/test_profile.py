"""What a profile says of launches whose times are given."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.inspect.machine import Limits, MemoryLevel
from tilewright.compiler.inspect.profile import WIDTH, Profile, profile, reuse_distances, work

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
    return profile(c.graph, c.launches, c.plan.arena_bytes, limits, seconds)


def test_traffic_is_split_by_where_it_goes() -> None:
    exe = program()
    c = exe._compilation
    product, softmax = (work(c.graph, x) for x in c.launches)
    assert (product.constant, product.read, product.written) == (
        64 * 64 * 4,
        8 * 64 * 4,
        8 * 64 * 4,
    )
    assert product.flops == product.own_flops == 2 * 8 * 64 * 64
    assert (softmax.constant, softmax.read, softmax.written) == (0, 8 * 64 * 4, 8 * 64 * 4)


def test_shares_of_the_limits() -> None:
    made = of(program(), [100e-6, 20e-6])
    product, softmax = made.rows
    # 2 * 8 * 64 * 64 operations at 1e9 a second; 16 KiB of constants and as much of blobs from L2
    assert product.of_peak == pytest.approx(65536e-9 / 100e-6)
    assert product.memory_seconds == pytest.approx((16384 + 4096) / 4e9)
    assert product.bound == "arithmetic" and product.of_limit == product.of_peak
    assert product.gflops == pytest.approx(65536 / 100e-6 / 1e9)
    # its 4 KiB fit into L1, but not together with what the product touched
    assert softmax.level == "L2"
    assert softmax.memory_seconds == pytest.approx(4096 / 4e9)
    assert product.share == pytest.approx(100 / 120)
    least = product.compute_seconds + max(softmax.compute_seconds, softmax.memory_seconds)
    assert made.of_limit == pytest.approx(least / 120e-6)


def test_an_algorithm_that_needs_fewer_multiply_adds_is_not_faster_than_the_machine() -> None:
    c = program()._compilation
    product, softmax = c.launches
    kernel = replace(product.kernel, own_flops=30_000)
    launches = [replace(product, kernel=kernel), softmax]
    row, _ = profile(c.graph, launches, c.plan.arena_bytes, LIMITS, [50e-6, 20e-6]).rows
    assert row.gflops == pytest.approx(65536 / 50e-6 / 1e9), "more than the peak of 1 GFLOP/s"
    assert row.of_peak == pytest.approx(30e-6 / 50e-6)


@pytest.mark.parametrize(("nearest", "level"), [(22528, "L1"), (22527, "DRAM")])
def test_a_program_that_fits_has_all_its_data_near(nearest: int, level: str) -> None:
    made = Limits(1, 1e12, (replace(LIMITS.levels[0], bytes=nearest), LIMITS.levels[2]))
    # 16 KiB of constants, 2 of arena, 2 each of input and output
    for row in of(program(), [1e-6, 1e-6], made).rows:
        assert (row.level, row.constant_level) == (level, level)


def test_what_comes_round_once_is_as_far_as_the_whole_program() -> None:
    exe = program()
    c = exe._compilation
    works = [work(c.graph, x) for x in c.launches]
    # the softmax: since the product began, 20 KiB of that and 4 of its own
    assert reuse_distances(c.graph, c.launches, works, MIB) == [MIB, 24576]


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


def test_it_prints_within_its_width() -> None:
    g = tw.Graph()
    x = g.input("x", (8, 64))
    for _ in range(3):
        x = g.softmax(g.exp(x), axis=-1)
    g.output(x, "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    text = str(exe.profile(rounds=2))
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in ("GFLOP/s", "of peak", "of core", "of mem", "bound by", "operators", "DRAM"):
        assert part in text


def test_names_of_a_model_stay_on_their_line() -> None:
    first, *_ = of(program(), [1e-4, 1e-4]).rows
    odd = replace(first, label="a\nb\x1b[31m" * 20)
    plain = str(Profile((replace(first, label="a"),), LIMITS))
    text = str(Profile((odd,), LIMITS))
    assert len(text.splitlines()) == len(plain.splitlines())
    assert "\x1b" not in text and max(map(len, text.splitlines())) == WIDTH


def test_programs_read_it_as_json() -> None:
    made = of(program(), [100e-6, 20e-6])
    back = json.loads(json.dumps(made.as_json()))
    assert [r["bound"] for r in back["rows"]] == [r.bound for r in made.rows]
    assert back["rows"][0]["flops"] == 65536
    assert back["limits"]["levels"][0]["name"] == "L1"
    assert back["operators"][0]["launches"] == 1
