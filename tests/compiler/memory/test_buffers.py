"""Live ranges, views and the choice of in-place pairs, on programs small enough to do by hand."""

from __future__ import annotations

import pytest

from tilewright.compiler.errors import PlanError
from tilewright.compiler.memory.buffers import (
    BufferSpec,
    LiveRange,
    Place,
    Step,
    choose_inplace,
    live_ranges,
    resolve,
)

A, B, C = BufferSpec("a", 100), BufferSpec("b", 100), BufferSpec("c", 40)


def chain(*inplace: tuple[str, str]) -> list[Step]:
    return [
        Step("0", ("x",), ("a",)),
        Step("1", ("a",), ("b",), inplace=inplace),
        Step("2", ("b",), ("y",)),
    ]


def test_ranges_run_from_first_write_to_last_read() -> None:
    assert live_ranges(chain(), [A, B]) == (
        LiveRange("a", 0, 1, 100, ("a",)),
        LiveRange("b", 1, 2, 100, ("b",)),
    )


def test_dead_results_live_one_step_and_kept_ones_to_the_end() -> None:
    steps = [Step("0", (), ("a", "b")), Step("1", (), ("c",)), Step("2", (), ())]
    spans = {r.name: (r.first, r.last) for r in live_ranges(steps, [A, B, C], keep=("b",))}
    assert spans == {"a": (0, 0), "b": (0, 2), "c": (1, 1)}


def test_in_place_results_join_the_block_of_their_operand() -> None:
    steps = [*chain(("b", "a")), Step("3", ("b",), ("d",), inplace=(("d", "b"),))]
    buffers = [A, B, BufferSpec("d", 100)]
    assert live_ranges(steps, buffers) == (LiveRange("a", 0, 3, 100, ("a", "b", "d")),)
    assert len(live_ranges(steps, buffers, inplace=())) == 3


def test_views_of_views_extend_their_root() -> None:
    steps = [Step("0", (), ("a",)), Step("1", ("a",), ("c",)), Step("2", ("w", "c"), ())]
    views = [BufferSpec("w", 8, "v", 16), BufferSpec("v", 50, "a", 32)]
    assert resolve([A, *views])["w"] == Place("a", 48, 8)
    assert live_ranges(steps, [*views, A, C])[0] == LiveRange("a", 0, 2, 100, ("a",))


def test_external_names_and_views_of_them_are_ignored() -> None:
    steps = [Step("0", ("input", "view"), ("a", "output"))]
    assert "view" not in resolve([A, BufferSpec("view", 4, "input", 4)])
    assert live_ranges(steps, [A, BufferSpec("view", 4, "input", 4)], keep=("output",)) == (
        LiveRange("a", 0, 0, 100, ("a",)),
    )


def test_a_root_assembled_through_views_lives_from_the_first_piece() -> None:
    pieces = [BufferSpec("p", 40, "a"), BufferSpec("q", 60, "a", 40)]
    steps = [Step("0", (), ("p",)), Step("1", (), ("q",)), Step("2", ("a",), ())]
    assert live_ranges(steps, [A, *pieces]) == (LiveRange("a", 0, 2, 100, ("a",)),)


def test_pair_is_taken_when_the_operand_dies() -> None:
    assert choose_inplace(chain(("b", "a")), [A, B]) == (("b", "a"),)


@pytest.mark.parametrize(
    ("why", "steps", "buffers", "keep"),
    [
        ("read again later", [*chain(("b", "a")), Step("3", ("a",), ())], [A, B], ()),
        ("kept to the end", chain(("b", "a"))[:2], [A, B], ("a",)),
        ("sizes differ", chain(("b", "a")), [A, BufferSpec("b", 99)], ()),
        ("operand is external", chain(("b", "a")), [B], ()),
        ("result is external", chain(("b", "a")), [A], ()),
        (
            "read through a second name",
            [
                Step("0", (), ("a",)),
                Step("1", ("a", "v"), ("b",), inplace=(("b", "a"),)),
                Step("2", ("b",), ()),
            ],
            [A, B, BufferSpec("v", 50, "a", 50)],
            (),
        ),
        (
            "view alive later",
            [*chain(("b", "a")), Step("3", ("v",), ())],
            [A, B, BufferSpec("v", 50, "a", 50)],
            (),
        ),
        (
            "operand is a part of its root",
            [
                Step("0", (), ("a",)),
                Step("1", ("v",), ("c",), inplace=(("c", "v"),)),
                Step("2", ("c",), ()),
            ],
            [A, C, BufferSpec("v", 40, "a", 20)],
            (),
        ),
        (
            "result has content already",
            [
                Step("0", (), ("a", "b")),
                Step("1", ("a",), ("b",), inplace=(("b", "a"),)),
                Step("2", ("b",), ()),
            ],
            [A, B],
            (),
        ),
    ],
)
def test_pair_is_left_when(
    why: str, steps: list[Step], buffers: list[BufferSpec], keep: tuple[str, ...]
) -> None:
    assert choose_inplace(steps, buffers, keep) == (), why


def test_one_operand_serves_one_result() -> None:
    steps = [
        Step("0", (), ("a", "d")),
        Step("1", ("a", "d"), ("b", "c"), inplace=(("b", "a"), ("c", "a"), ("b", "d"), ("c", "d"))),
        Step("2", ("b", "c"), ()),
    ]
    buffers = [BufferSpec(name, 64) for name in "abcd"]
    assert choose_inplace(steps, buffers) == (("b", "a"), ("c", "d"))


def test_reshaped_operand_may_be_overwritten() -> None:
    steps = [
        Step("0", (), ("a",)),
        Step("1", ("flat",), ("b",), inplace=(("b", "flat"),)),
        Step("2", ("b",), ()),
    ]
    assert choose_inplace(steps, [A, B, BufferSpec("flat", 100, "a")]) == (("b", "flat"),)


@pytest.mark.parametrize(
    ("message", "steps", "buffers", "keep"),
    [
        ("listed twice", [], [A, A], ()),
        ("negative", [], [BufferSpec("a", -1)], ()),
        ("negative", [], [A, BufferSpec("v", 1, "a", -1)], ()),
        ("view of itself", [], [BufferSpec("p", 1, "q"), BufferSpec("q", 1, "p")], ()),
        ("has only 100", [], [A, BufferSpec("v", 60, "a", 41)], ()),
        ("no earlier step writes", [Step("s", ("a",), ())], [A], ()),
        ("no earlier step writes", [Step("s", ("a",), ("a",))], [A], ()),
        ("no step writes it", [], [A], ("a",)),
        ("-1 bytes", [Step("s", (), (), scratch=-1)], [], ()),
        ("does not write", [Step("s", (), ("a",), inplace=(("a", "b"),))], [A, B], ()),
    ],
)
def test_malformed_descriptions(
    message: str, steps: list[Step], buffers: list[BufferSpec], keep: tuple[str, ...]
) -> None:
    with pytest.raises(PlanError, match=message):
        live_ranges(steps, buffers, keep)


def test_parts_of_parts_have_the_rows_of_the_whole() -> None:
    whole = BufferSpec("w", 192)
    p = BufferSpec("p", 32, "w", 16, rows=4, pitch=48)
    inner = BufferSpec("i", 8, "p", 24, rows=4, pitch=48)
    assert resolve([whole, p, inner])["i"] == Place("w", 40, 8, 4)
    for wrong in (
        BufferSpec("i", 8, "p", 25, rows=4, pitch=48),  # reaches into the gap
        BufferSpec("i", 8, "p", 0, rows=3, pitch=48),
        BufferSpec("i", 8, "p"),
        BufferSpec("i", 8, "w", 24, rows=5, pitch=48),  # reaches past the end
        BufferSpec("i", 8, "w", 0, rows=2, pitch=7),
        BufferSpec("i", 8, rows=2, pitch=16),
    ):
        with pytest.raises(PlanError, match="'i'"):
            resolve([whole, p, wrong])


def test_a_whole_lives_from_its_first_part_to_the_last_read_of_any() -> None:
    parts = [BufferSpec("p", 50, "a"), BufferSpec("q", 50, "a", 50)]
    steps = [Step("0", (), ("p",)), Step("1", ("p",), ("q",)), Step("2", ("a",), ("c",)),
             Step("3", ("q",), ("d",))]  # fmt: skip
    ranges = live_ranges(steps, [A, *parts, C, BufferSpec("d", 8)])
    assert ranges[0] == LiveRange("a", 0, 3, 100, ("a",))


def test_parts_are_not_computed_in_place() -> None:
    """Neither into a part nor over one, even where the bytes are as many."""
    rows = BufferSpec("p", 25, "a", 0, rows=2, pitch=50)
    for part in (BufferSpec("p", 50, "a"), rows):
        size = BufferSpec("s", part.bytes * part.rows)
        into = [Step("0", (), ("s",)), Step("1", ("s",), ("p",), inplace=(("p", "s"),))]
        over = [Step("0", (), ("p",)), Step("1", ("p",), ("s",), inplace=(("s", "p"),))]
        assert choose_inplace(into, [A, part, size]) == ()
        assert choose_inplace(over, [A, part, size]) == ()
