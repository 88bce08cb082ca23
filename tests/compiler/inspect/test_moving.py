"""Kernels that only move what a launch reads and writes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import timing
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.inspect.machine import Limits, MemoryLevel
from tilewright.compiler.inspect.moving import STREAMS, Movers, can_move, mover
from tilewright.compiler.kernels.ir import Buffer, Kernel
from tilewright.ops.types import f32, i64

from ..codegen.running import run

LANES = host().lanes(4)
SIZES = (1, LANES, 7 * LANES + 3, 131 * LANES + 5, 1000 * LANES)


def some(n: int, inplace: tuple[tuple[int, int], ...] = ()) -> Kernel:
    params = (
        Buffer("x", f32, n, "in"), Buffer("w", f32, 3 * n, "const"),
        Buffer("s", f32, 64, "scratch"), Buffer("y", f32, n, "out"), Buffer("z", i64, n, "out"),
    )  # fmt: skip
    return Kernel("some", 1, (), params, (), inplace=inplace)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("n", SIZES)
def test_all_vectors_of_outputs_are_written_and_nothing_else(n: int, streams: int) -> None:
    made = mover(some(n), LANES, streams)
    old = np.full(2 * n, -1, np.int32)
    arrays: list[Any] = [np.ones(n, np.int32), np.ones(3 * n, np.int32), None, old[:n], old]
    x, w, _, *out = run(made, arrays)
    assert (x == 1).all() and (w == 1).all()
    for y in out:
        whole = len(y) // LANES * LANES
        assert (y[:whole] != -1).all() and (y[whole:] == -1).all()


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("n", SIZES)
def test_what_is_overwritten_in_place_stays(n: int, streams: int) -> None:
    made = mover(some(n, ((3, 0),)), LANES, streams)
    shared = np.arange(n, dtype=np.int32)
    out = run(made, [shared, np.ones(3 * n, np.int32), None, shared, None])
    np.testing.assert_array_equal(out[3], shared)


def program() -> tw.Executable:
    """A product, and pointwise ops that may run in place."""
    g = tw.Graph()
    x = g.input("x", (8, 512))
    y = g.matmul(x, g.parameter("w", np.eye(512, dtype=np.float32)))
    g.output(g.cum_sum(g.exp(g.cum_sum(g.softmax(y, axis=-1), axis=-1)), axis=-1), "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    return exe


def test_movers_run_ahead_of_launches_and_change_no_result() -> None:
    exe = program()
    launches = dict(enumerate(exe._compilation.launches))
    assert all(map(can_move, launches.values()))
    assert any(x.kernel.inplace for x in launches.values())
    movers = Movers(launches, host(), time.perf_counter_ns)
    x = np.random.default_rng(0).standard_normal((8, 512), np.float32)
    for movers.turn in range(len(STREAMS)):
        (got,), times = exe._program.timed([x], time.perf_counter_ns, movers.before)
        np.testing.assert_array_equal(got, exe(x))
        assert len(times) == len(launches)
    assert movers.times().keys() == launches.keys()
    assert min(movers.times().values()) > 0


def test_a_profile_says_what_moving_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Limits(1, 1e12, (MemoryLevel("DRAM", None, 1e9, 1e9, 1e9),))
    monkeypatch.setattr(timing, "limits", lambda threads: slow)  # whatever the machine has
    exe = program()
    rows = exe.profile(rounds=2, moved=True).rows
    assert all(r.moved_seconds and r.of_moving for r in rows if r.bound == "memory")
    assert any(r.bound == "memory" for r in rows)
    assert all(r.of_moving is None for r in exe.profile(rounds=2).rows)
    assert "of_moving" in rows[0].as_json()


def test_parts_of_a_concatenation_are_not_moved() -> None:
    g = tw.Graph()
    a, b = g.input("a", (2, 3, 40)), g.input("b", (2, 5, 40))
    joined = g.concat(g.softmax(a, axis=-1), g.softmax(b, axis=-1), axis=1)
    g.output(g.cum_sum(joined, axis=-1), "y")
    exe = tw.compile(g, threads=1)
    assert isinstance(exe, tw.Executable)
    *parts, whole = exe._compilation.launches
    assert len(parts) == 2 and not any(map(can_move, parts)) and can_move(whole)
