"""Layered drawings: edges go down, nodes keep their distance, chains are straight."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.inspect.page import layers
from tilewright.compiler.inspect.page.layers import NARROW, layout

Edges = list[tuple[int, int]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges]:
    """Nodes numbered in an order that edges follow, then shuffled."""
    count = draw(st.integers(1, 24))
    names = draw(st.permutations(range(count)))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    found = draw(st.lists(pairs, max_size=50))
    return count, list({(names[min(p)], names[max(p)]): None for p in found if p[0] != p[1]})


@given(graphs())
def test_edges_go_down_and_nothing_overlaps(graph: tuple[int, Edges]) -> None:
    count, edges = graph
    drawn = layout(count, edges)
    rows: dict[int, list[tuple[float, float]]] = {}
    for node in range(count):
        rows.setdefault(drawn.layer[node], []).append((drawn.x[node], 1.0))
        for k, x in enumerate(drawn.ways.get(node, ()), 1):
            rows.setdefault(drawn.layer[node] + k, []).append((x, NARROW))
    for a, b in edges:
        assert drawn.layer[a] < drawn.layer[b]
        if drawn.layer[b] - drawn.layer[a] > 1:  # a waypoint in every layer between
            assert len(drawn.ways[a]) >= drawn.layer[b] - drawn.layer[a] - 1
    for row in rows.values():
        row.sort()
        for (x, wide), (y, broad) in pairwise(row):
            assert y - x >= (wide + broad) / 2 - 1e-6
    assert min(x for row in rows.values() for x, _ in row) >= 0


def test_nodes_stand_below_their_lowest_predecessor_and_near_their_first_reader() -> None:
    # 0 -> 1 -> 2 -> 3, and 4, which nobody writes and 3 alone reads
    drawn = layout(5, [(0, 1), (1, 2), (2, 3), (0, 3), (4, 3)])
    assert drawn.layer == (0, 1, 2, 3, 2)


def test_a_chain_with_detours_is_straight() -> None:
    """Residual networks: what runs beside the chain must not push it aside, block by block."""
    edges = [(k, k + 1) for k in range(300)] + [(k, k + 3) for k in range(0, 297, 3)]
    drawn = layout(301, edges)
    assert max(drawn.x) - min(drawn.x) < 0.5


def test_edges_do_not_cross_where_they_need_not() -> None:
    drawn = layout(6, [(0, 3), (1, 4), (2, 5), (0, 4), (1, 5)])
    first, second = (sorted(row, key=lambda n: drawn.x[n]) for row in ([0, 1, 2], [3, 4, 5]))
    assert [n + 3 for n in first] == second


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        layout(3, [(0, 1), (1, 2), (2, 1)])


def test_too_many_waypoints_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST_WAYPOINTS", 3)
    edges = [(k, k + 1) for k in range(9)] + [(0, 9), (2, 5)]
    drawn = layout(10, edges)
    assert drawn.ways.keys() == {2}  # the shorter one


def test_nothing_to_draw() -> None:
    assert layout(0, []).layer == ()
