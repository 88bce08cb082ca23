"""The packer against brute force, against greedy by size, and on instances with a known optimum."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.errors import OptionError
from tilewright.compiler.memory import Packing, exact, pack, packer

from .instances import GAP, Buffer, adversarial, clash, meet, perfect, training


def rounded(buffers: list[Buffer], alignment: int) -> list[Buffer]:
    return [(low, high, -(-size // alignment) * alignment) for low, high, size in buffers]


def assert_valid(buffers: list[Buffer], packing: Packing, alignment: int = 1) -> None:
    solid = rounded(buffers, alignment)
    assert all(offset >= 0 and offset % alignment == 0 for offset in packing.offsets)
    assert clash(solid, packing.offsets) == []
    tops = [x + size for x, (_, _, size) in zip(packing.offsets, solid, strict=True)]
    assert packing.height == max(tops, default=0)
    assert packing.optimal == (packing.height == packing.lower_bound)
    assert packing.most_alive == most_alive(solid) <= packing.lower_bound <= packing.height


def most_alive(buffers: list[Buffer]) -> int:
    sums = [sum(size for low, high, size in buffers if low <= at < high) for at, _, _ in buffers]
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


def shapes(max_size: int, count: int) -> st.SearchStrategy[list[Buffer]]:
    one = st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, max_size))
    return st.lists(one.map(lambda t: (t[0], t[0] + t[1], t[2])), min_size=1, max_size=count)


@settings(max_examples=60, deadline=None)
@given(shapes(5, 6))
def test_proves_the_optimum_that_brute_force_finds(buffers: list[Buffer]) -> None:
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    assert packing.optimal
    orders = itertools.permutations(range(len(buffers)))
    assert packing.height == min(first_fit(buffers, order) for order in orders)


@settings(max_examples=60, deadline=None)
@given(shapes(300, 40), st.sampled_from([1, 64]), st.sampled_from([0, 300]))
def test_valid_and_never_worse_than_greedy(
    buffers: list[Buffer], alignment: int, placements: int
) -> None:
    packing = pack(buffers, alignment=alignment, placements=placements)
    assert_valid(buffers, packing, alignment)
    assert packing.height <= greedy_by_size(rounded(buffers, alignment))


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
@pytest.mark.parametrize(("pieces", "times"), [(12, 10), (40, 30)])
def test_perfect_rectangles(seed: int, pieces: int, times: int) -> None:
    buffers = perfect(seed, pieces, times, 1000)
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    assert packing.height == packing.lower_bound == packing.most_alive == 1000


@pytest.mark.parametrize(("seed", "pieces"), [(0, 150), (4, 150), (4, 250), (6, 250), (6, 400)])
def test_hundreds_of_buffers_within_a_capacity(seed: int, pieces: int) -> None:
    """The skylines need 2 to 11 % more."""
    buffers = adversarial(seed, pieces)
    assert pack(buffers, placements=0).height > 1.02 * 2**20
    packing = pack(buffers, 2**20)
    assert_valid(buffers, packing)
    assert packing.height == 2**20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layers", [50, 150])
def test_training_steps_need_no_search(seed: int, layers: int) -> None:
    buffers = training(seed, layers)
    packing = pack(buffers, placements=0)
    assert_valid(buffers, packing, 64)
    assert packing.height == packing.most_alive < greedy_by_size(rounded(buffers, 64))


@pytest.mark.parametrize("scale", [1, 1000, 2**40])
def test_a_gap_between_bound_and_optimum_is_proved(scale: int) -> None:
    buffers = [(low, high, size * scale) for low, high, size in GAP]
    packing = pack(buffers, alignment=1)
    assert_valid(buffers, packing)
    assert packing.optimal
    assert (packing.most_alive, packing.height) == (7 * scale, 8 * scale)


def test_a_capacity_that_nothing_fits_is_proved_to_be_one() -> None:
    packing = pack(GAP, 7, alignment=1)
    assert packing.lower_bound == packing.height == 8
    assert pack(GAP, 7, alignment=1, placements=0).lower_bound == 7


def test_parts_of_time_are_packed_one_by_one() -> None:
    twice = [*GAP, *((low + 20, high + 20, size) for low, high, size in GAP), (40, 41, 9)]
    packing = pack(twice, alignment=1)
    assert_valid(twice, packing)
    assert packing.height == packing.most_alive == 9
    assert pack(twice[:-1], alignment=1).lower_bound == 8


def test_heights_in_between_are_found() -> None:
    """Where the bound is out of reach, the arena gets smaller nevertheless: here, from 1.20 times
    the bound to 1.12."""
    buffers = perfect(3, 100, 60, 2**20, unit=1024)
    packing = pack(buffers, placements=1600)
    assert_valid(buffers, packing)
    assert pack(buffers, placements=0).height > 1.19 * 2**20
    assert 2**20 == packing.lower_bound < packing.height < 1.15 * 2**20


def test_time_limit_of_zero_leaves_greedy() -> None:
    buffers = perfect(0, 12, 10, 1000)
    packing = pack(buffers, time_limit=0.0, alignment=1)
    assert_valid(buffers, packing)
    assert packing.height == greedy_by_size(buffers) > 1000


@pytest.mark.parametrize("ticks", [3, 30, 300])
def test_the_time_limit_ends_every_stage(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once each time that it is read, however fast the machine is."""
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    buffers = perfect(0, 160, 70, 2**20)
    packing = pack(buffers, time_limit=float(ticks))
    assert_valid(buffers, packing, 64)
    assert packing.height <= greedy_by_size(rounded(buffers, 64))
    assert next(clock) < ticks + 20


def test_placements_bound_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = exact.search

    def counted(*arguments):
        outcome = real(*arguments)
        used.append(outcome.used)
        return outcome

    monkeypatch.setattr(packer, "search", counted)
    pack(perfect(1, 120, 60, 2**20), placements=1500)
    assert len(used) > 1
    assert 1400 < sum(used) <= 1500


def test_a_capacity_that_greedy_meets_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = perfect(0, 12, 10, 1000)
    greedy = greedy_by_size(buffers)
    assert pack(buffers, capacity=greedy - 1, alignment=1).height < greedy
    assert pack(buffers, capacity=1, alignment=1).height == 1000
    monkeypatch.setattr(packer, "improve", None)
    monkeypatch.setattr(packer, "search", None)
    assert pack(buffers, capacity=greedy, alignment=1).height == greedy


def test_same_problem_same_offsets() -> None:
    buffers = perfect(1, 120, 60, 2**20)
    first = pack(buffers, placements=1500)
    assert not first.optimal  # so that all stages ran
    assert pack(buffers, placements=1500) == first


def test_nothing_and_empty_buffers() -> None:
    assert pack([]) == Packing((), 0, 0, True, 0)
    assert pack([(0, 1, 0), (0, 5, 0)]) == Packing((0, 0), 0, 0, True, 0)
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
