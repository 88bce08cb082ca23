"""The packer against brute force, against greedy by size, and on instances with a known optimum."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.errors import OptionError
from tilewright.compiler.memory import packer
from tilewright.compiler.memory.packer import Packing, pack

Buffer = tuple[int, int, int]


def meet(a: Buffer, b: Buffer) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def assert_valid(buffers: list[Buffer], packing: Packing, alignment: int = 1) -> None:
    tops = []
    for i, (buffer, offset) in enumerate(zip(buffers, packing.offsets, strict=True)):
        assert offset >= 0
        assert offset % alignment == 0
        tops.append(offset + buffer[2])
        for j in range(i):
            if meet(buffer, buffers[j]) and buffer[2] and buffers[j][2]:
                other = packing.offsets[j]
                assert offset + buffer[2] <= other or other + buffers[j][2] <= offset
    assert packing.height == max((-(-top // alignment) * alignment for top in tops), default=0)
    assert packing.optimal == (packing.height == packing.lower_bound)
    assert packing.lower_bound == most_alive(buffers, alignment)


def most_alive(buffers: list[Buffer], alignment: int = 1) -> int:
    sums = [
        sum(-(-size // alignment) * alignment for low, high, size in buffers if low <= at < high)
        for at, _, _ in buffers
    ]
    return max(sums, default=0)


def first_fit(buffers: list[Buffer], order: tuple[int, ...]) -> int:
    """Height when every buffer takes the lowest free offset; the best order is optimal."""
    offsets: dict[int, int] = {}
    for i in order:
        taken = sorted(
            (offsets[j], offsets[j] + buffers[j][2])
            for j in offsets
            if meet(buffers[i], buffers[j])
        )
        at = 0
        for low, high in taken:
            if low - at >= buffers[i][2]:
                break
            at = max(at, high)
        offsets[i] = at
    return max(offsets[i] + buffers[i][2] for i in offsets)


def greedy_by_size(buffers: list[Buffer]) -> int:
    """Pisarchyk and Lee, written from the paper: largest first, smallest gap that fits."""
    offsets: dict[int, int] = {}
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i][2], buffers[i][0])):
        size, at, best, gap = buffers[i][2], 0, None, None
        for j in sorted(offsets, key=lambda j: offsets[j]):
            if meet(buffers[i], buffers[j]):
                room = offsets[j] - at
                if room >= size and (gap is None or room < gap):
                    best, gap = at, room
                at = max(at, offsets[j] + buffers[j][2])
        offsets[i] = at if best is None else best
    return max(offsets[i] + buffers[i][2] for i in offsets)


def cut(seed: int, pieces: int, times: int, capacity: int) -> list[Buffer]:
    """A full rectangle of time x capacity, cut edge to edge: the optimum is the capacity."""
    rnd = random.Random(seed)
    parts = [(0, times, 0, capacity)]
    while len(parts) < pieces:
        weights = [(b - a) * (d - c) * rnd.random() for a, b, c, d in parts]
        a, b, c, d = parts.pop(weights.index(max(weights)))
        if b - a > 1 and (rnd.random() < 0.5 or d - c < 2):
            at = rnd.randrange(a + 1, b)
            parts += [(a, at, c, d), (at, b, c, d)]
        elif d - c > 1:
            at = rnd.randrange(c + 1, d)
            parts += [(a, b, c, at), (a, b, at, d)]
        else:
            return cut(seed + 1000, pieces, times, capacity)
    rnd.shuffle(parts)
    return [(a, b, d - c) for a, b, c, d in parts]


def shapes(max_size: int, count: int) -> st.SearchStrategy[list[Buffer]]:
    one = st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, max_size))
    return st.lists(one.map(lambda t: (t[0], t[0] + t[1], t[2])), min_size=1, max_size=count)


@settings(max_examples=60, deadline=None)
@given(shapes(5, 5))
def test_agrees_with_brute_force(buffers: list[Buffer]) -> None:
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    best = min(first_fit(buffers, order) for order in itertools.permutations(range(len(buffers))))
    assert packing.height >= best
    assert packing.optimal == (best == packing.lower_bound)


@settings(max_examples=60, deadline=None)
@given(shapes(300, 40), st.sampled_from([1, 64]))
def test_valid_and_never_worse_than_greedy(buffers: list[Buffer], alignment: int) -> None:
    packing = pack(buffers, alignment=alignment)
    assert_valid(buffers, packing, alignment)
    rounded = [(low, high, -(-size // alignment) * alignment) for low, high, size in buffers]
    assert packing.height <= greedy_by_size(rounded)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("pieces", "times"), [(12, 10), (40, 30), (120, 60)])
def test_perfect_rectangles(seed: int, pieces: int, times: int) -> None:
    buffers = cut(seed, pieces, times, 1000)
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    assert packing.lower_bound == 1000
    assert packing.height <= greedy_by_size(buffers)
    if pieces == 12:
        assert packing.optimal


@pytest.mark.parametrize("seed", range(3))
def test_dense_contention_beats_greedy(seed: int) -> None:
    """Many long-lived buffers of like sizes: greedy leaves holes that the skyline fills."""
    buffers = cut(seed, 60, 12, 1 << 20)
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    assert packing.height < greedy_by_size(buffers)


def test_time_limit_of_zero_leaves_greedy() -> None:
    buffers = cut(0, 12, 10, 1000)
    packing = pack(buffers, time_limit=0.0, alignment=1)
    assert_valid(buffers, packing)
    assert packing.height == greedy_by_size(buffers) > 1000


def test_search_backs_up_where_single_descents_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = cut(1, 30, 20, 1000)
    assert pack(buffers, alignment=1).optimal
    monkeypatch.setattr(packer, "_BUDGET", 0)
    without = pack(buffers, alignment=1)
    assert_valid(buffers, without)
    assert not without.optimal


def test_a_capacity_that_greedy_meets_ends_the_search() -> None:
    buffers = cut(0, 12, 10, 1000)
    greedy = greedy_by_size(buffers)
    assert pack(buffers, capacity=greedy, alignment=1).height == greedy
    assert pack(buffers, capacity=greedy - 1, alignment=1).height < greedy
    assert pack(buffers, capacity=1, alignment=1).height == 1000


def test_same_problem_same_offsets() -> None:
    buffers = cut(7, 100, 50, 4096)
    assert pack(buffers) == pack(buffers)


def test_nothing_and_empty_buffers() -> None:
    assert pack([]) == Packing((), 0, 0, True)
    assert pack([(0, 1, 0), (0, 5, 0)]) == Packing((0, 0), 0, 0, True)
    assert pack([(0, 2, 1), (1, 3, 65), (2, 3, 0)]).height == 64 + 128


def test_sizes_beyond_32_bits() -> None:
    packing = pack([(0, 2, 2**40), (1, 3, 2**41), (2, 4, 2**40)])
    assert packing.height == packing.lower_bound == 2**40 + 2**41


@pytest.mark.parametrize(
    ("buffers", "alignment"),
    [([(1, 1, 4)], 64), ([(0, 1, -4)], 64), ([(0, 1, 4)], 0), ([(0, 1, 2**61)], 64)],
)
def test_refuses_nonsense(buffers: list[Buffer], alignment: int) -> None:
    with pytest.raises(OptionError):
        pack(buffers, alignment=alignment)


def test_hard_instance_of_200_takes_a_fraction_of_a_second() -> None:
    """Measured 0.06 s alone on one core; the margin is for a loaded machine."""
    buffers = cut(200, 200, 200, 1 << 20)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        pack(buffers)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
