"""Which taps of a window lie inside the input, against the places counted one by one."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.kernels.edges import Axis, axes, runs
from tilewright.ops.expr import Expr, index
from tilewright.ops.windows import slide


@st.composite
def drawn_axes(draw: st.DrawFn) -> Axis:
    n, kernel, stride, dilation = (draw(st.integers(1, m)) for m in (9, 5, 3, 3))
    begin, end = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    room = n + begin + end - (kernel - 1) * dilation - 1
    return Axis(n, max(room, 0) // stride + 1, kernel, stride, dilation, begin)


def inside(a: Axis) -> set[tuple[int, int]]:
    """(place, tap) of all taps that fall on the input."""
    return {
        (p, t) for p, t in product(range(a.output), range(a.kernel))
        if 0 <= p * a.stride + t * a.dilation - a.begin < a.input
    }  # fmt: skip


@given(drawn_axes(), st.integers(1, 6))
def test_runs_cover_the_taps_inside(a: Axis, size: int) -> None:
    found: list[tuple[int, int]] = []
    tiles = 0
    for run in runs(a, size):
        assert run.first == tiles and run.count > 0
        tiles += run.count
        for tile, t in product(range(run.first, tiles), run.taps):
            assert 0 <= t.lo < t.hi <= run.size
            found += [(tile * size + r, k)
                      for r in range(t.lo, t.hi)
                      for k in range(t.first, t.first + t.count)]  # fmt: skip
    assert tiles == -(-a.output // size)
    assert sorted(found) == sorted(inside(a))
    assert len(found) == a.taps
    assert a.is_covered == (len({p for p, _ in found}) == a.output)


@given(drawn_axes())
def test_spans_are_the_taps_inside(a: Axis) -> None:
    def number(e: Expr) -> int:
        assert e.op == "const"
        return int(e.payload)

    found = set()
    for p in range(a.output):
        lo, hi = map(number, a.span(index(p)))
        found |= {(p, t) for t in range(lo, hi)}
    assert found == inside(a)
    assert a.is_padded == (len(found) < a.output * a.kernel)


def test_tiles_away_from_the_edges_share_their_code() -> None:
    (a,) = axes(slide((28,), 3, pads=1))
    assert [(r.first, r.count, len(r.taps)) for r in runs(a, 4)] == [
        (0, 1, 2),
        (1, 5, 1),
        (6, 1, 2),
    ]
    assert [len(r.taps) for r in runs(a, 28)] == [3]
    (plain,) = axes(slide((30,), 3))
    assert [(r.count, len(r.taps)) for r in runs(plain, 8)] == [(3, 1), (1, 1)]
