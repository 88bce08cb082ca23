"""Other planners: valid on anything, never below the bound, and on small cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.memory.packer import pack

from .scripts import script

planners = script("planners")

Blocks = list[tuple[int, int, int]]


@st.composite
def instances(draw: st.DrawFn) -> Blocks:
    """Blocks alive somewhere in twelve steps, of few sizes, none among them, in any order."""
    return [
        (first, min(first + draw(st.integers(0, 6)), 11), 64 * draw(st.sampled_from([0, 1, 2, 5])))
        for first in draw(st.lists(st.integers(0, 11), max_size=14))
    ]


@settings(max_examples=150, deadline=None)
@given(instances())
def test_all_are_valid_and_none_is_below_the_bound(blocks: Blocks) -> None:
    bound, most = planners.lower_bound(blocks), sum(size for *_, size in blocks)
    ours = pack([(first, last + 1, size) for first, last, size in blocks])
    assert ours.lower_bound == bound
    assert planners.height(blocks, ours.offsets) == ours.height
    for name, planner in planners.PLANNERS.items():
        assert bound <= planners.height(blocks, planner(blocks)) <= most, name
    assert planners.height(blocks, planners.unshared(blocks)) == most


def heights(blocks: Blocks) -> dict[str, int]:
    return {n: planners.height(blocks, p(blocks)) for n, p in planners.PLANNERS.items()}


def test_whole_buffers_grow_and_cannot_be_divided() -> None:
    """Two small ones at a time, and a large one before and after: by hand."""
    blocks = [(0, 0, 400), (1, 1, 200), (1, 1, 200), (2, 2, 400)]
    found = heights(blocks)
    assert found["unshared"] == 1200
    # one of the small ones goes where the first was, the other into a buffer of its own
    for name in ("recycling", "nearest size", "shared objects"):
        assert found[name] >= 600, name
    assert found["shared objects"] == 600
    assert found["best fit online"] == found["offsets by size"] == 400


def test_the_nearest_size_beats_the_latest() -> None:
    """A large and a small buffer are free; a large and a small block follow."""
    blocks = [(0, 0, 900), (0, 0, 100), (1, 1, 900), (1, 1, 100)]
    assert heights(blocks)["nearest size"] == 1000
    assert heights(blocks)["recycling"] == 900 + 900


def test_an_allocator_cannot_look_ahead() -> None:
    """What lives long comes to lie above a hole that is too small for what follows."""
    blocks = [(0, 0, 100), (0, 3, 100), (1, 2, 200), (3, 3, 300)]
    found = heights(blocks)
    assert planners.lower_bound(blocks) == 400
    assert found["best fit online"] == 500 and found["offsets by size"] == 400


def test_holes_are_joined() -> None:
    blocks = [(0, 0, 100), (0, 1, 100), (0, 0, 100), (0, 3, 50), (2, 3, 300)]
    offsets = planners.best_fit_online(blocks)
    assert offsets[4] == 0 and planners.height(blocks, offsets) == 350


@pytest.mark.parametrize("offsets", [[0, 50], [0, 0], [-1, 200]])
def test_overlaps_are_seen(offsets: list[int]) -> None:
    with pytest.raises(AssertionError):
        planners.height([(0, 1, 100), (1, 2, 100)], offsets)
    assert planners.height([(0, 0, 100), (1, 2, 100)], [0, 50]) == 150
