"""The plan verifier on hand-made plans, each wrong in one way."""

from __future__ import annotations

import pytest

from tilewright.compiler.errors import PlanError
from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.verify import verify

BUFFERS = [
    BufferSpec("a", 64),
    BufferSpec("b", 64),
    BufferSpec("c", 64),
    BufferSpec("v", 32, "a", 32),
]
STEPS = [
    Step("make", ("x",), ("a",)),
    Step("next", ("a",), ("b",), scratch=64, inplace=(("b", "a"),)),
    Step("last", ("v", "b"), ("c",)),
]
GOOD = {"a": 0, "b": 64, "c": 128, "v": 32}


def judge(
    steps: list[Step] = STEPS,
    offsets: dict[str, int] | None = None,
    scratch: int | None = 128,
    arena: int = 192,
    keep: tuple[str, ...] = (),
    buffers: list[BufferSpec] = BUFFERS,
) -> None:
    verify(steps, buffers, GOOD | (offsets or {}), [None, scratch, None], arena, keep, alignment=64)


def test_good_plan_passes() -> None:
    judge()
    judge(keep=("a", "b", "c"))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("'v' at bytes 32..64 is read by step 'last'.* hold 'b'", {"offsets": {"b": 0}}),
        ("'c' at bytes 64..128 over its operand 'b'", {"offsets": {"c": 64}}),
        ("scratch of next' at bytes 64..128 overlaps 'b'", {"scratch": 64}),
        ("scratch of next' at bytes 0..64 overlaps 'a'", {"scratch": 0}),
        ("leaves the arena of 128", {"arena": 128}),
        ("leaves the arena", {"offsets": {"c": -64}}),
        ("not aligned", {"offsets": {"c": 130}, "arena": 300}),
        ("not byte 32 onwards", {"offsets": {"v": 0}}),
        ("have no place", {"scratch": None}),
    ],
)
def test_faults(message: str, changes: dict[str, object]) -> None:
    with pytest.raises(PlanError, match=message):
        judge(**changes)  # type: ignore[arg-type]


def test_kept_buffers_are_read_at_the_end() -> None:
    steps = [*STEPS, Step("more", (), ("d",))]
    buffers = [*BUFFERS, BufferSpec("d", 8)]
    verify(steps, buffers, GOOD | {"d": 0}, [None, 128, None, None], 192)
    with pytest.raises(PlanError, match=r"'a' .* the end of the run.* bytes 0\.\.8 hold 'd'"):
        verify(steps, buffers, GOOD | {"d": 0}, [None, 128, None, None], 192, ("a",))


def test_scratch_over_a_buffer_needed_later() -> None:
    steps = [STEPS[0], Step("next", (), ("b",), scratch=64), STEPS[2]]
    with pytest.raises(PlanError, match=r"'v' at bytes 32\.\.64.*'scratch of next'"):
        judge(steps, scratch=0)


def test_scratch_is_not_mistaken_for_a_buffer_of_that_name() -> None:
    name = "scratch of s"
    steps = [Step("0", (), (name,)), Step("s", (), (), scratch=64), Step("2", (name,), ())]
    verify(steps, [BufferSpec(name, 64)], {name: 0}, [None, 64, None], 128)
    with pytest.raises(PlanError, match="hold 'scratch of s', written by step 's'"):
        verify(steps, [BufferSpec(name, 64)], {name: 0}, [None, 0, None], 128)


def test_in_place_is_legal_when_offered_and_the_operand_dies() -> None:
    steps = [STEPS[0], STEPS[1], Step("last", ("b",), ("c",))]
    judge(steps, {"b": 0})
    silent = [STEPS[0], Step("next", ("a",), ("b",), scratch=64), steps[2]]
    with pytest.raises(PlanError, match="does not allow that"):
        judge(silent, {"b": 0})


def test_in_place_must_be_exact() -> None:
    with pytest.raises(PlanError, match="may at most share it exactly"):
        verify(
            [STEPS[0], STEPS[1], Step("last", ("b",), ("c",))],
            BUFFERS,
            {"a": 0, "v": 32, "b": 32, "c": 128},
            [None, 256, None],
            512,
        )


def test_in_place_under_another_name_of_the_operand() -> None:
    steps = [STEPS[0], Step("next", ("a", "v"), ("b",), scratch=64, inplace=(("b", "a"),))]
    with pytest.raises(PlanError, match="over its operand 'v'"):
        verify(steps, BUFFERS, GOOD | {"b": 0}, [None, 128], 192)


def test_two_results_on_one_place() -> None:
    with pytest.raises(PlanError, match="over its other result 'b'"):
        verify([Step("s", (), ("b", "c"))], BUFFERS, GOOD | {"c": 64}, [None], 192)


def test_reads_of_bytes_never_written() -> None:
    with pytest.raises(PlanError, match=r"bytes 0\.\.32 were never written"):
        verify([Step("s", (), ("v",)), Step("t", ("a",), ())], BUFFERS, GOOD, [None] * 2, 192)


def test_a_root_assembled_from_views() -> None:
    buffers = [*BUFFERS, BufferSpec("u", 32, "a")]
    steps = [Step("p", (), ("u",)), Step("q", (), ("v",)), Step("r", ("a",), ("b",))]
    verify(steps, buffers, GOOD | {"u": 0}, [None] * 3, 192)
    clobber = [*steps[:2], Step("c", (), ("c",)), steps[2]]
    with pytest.raises(PlanError, match=r"bytes 0\.\.32 hold 'c'"):
        verify(clobber, buffers, GOOD | {"u": 0, "c": 0}, [None] * 4, 192)


def test_dead_bytes_may_be_reused_before_the_rest_of_the_buffer() -> None:
    """Only the second half of a is read later: writing over the first half changes no answer."""
    steps = [STEPS[0], Step("mid", (), ("h",)), Step("last", ("v",), ("c",))]
    verify(steps, [*BUFFERS, BufferSpec("h", 32)], GOOD | {"h": 0}, [None] * 3, 192)


def test_rewriting_a_buffer_starts_a_new_generation() -> None:
    steps = [STEPS[0], Step("b", (), ("b",)), Step("again", ("b",), ("a",)), Step("e", ("a",), ())]
    verify(steps, BUFFERS, GOOD | {"b": 0, "a": 64, "v": 96}, [None] * 4, 192)
    with pytest.raises(PlanError):
        verify([*steps, Step("f", ("b",), ())], BUFFERS, GOOD | {"b": 0}, [None] * 5, 192)


def test_touched_buffer_without_offset_and_missing_scratch_list() -> None:
    with pytest.raises(PlanError, match="no place in the arena"):
        verify(STEPS[:1], BUFFERS, {}, [None], 0)
    with pytest.raises(PlanError, match="0 of 1 steps"):
        verify(STEPS[:1], BUFFERS, GOOD, [], 192)


def test_cyclic_views() -> None:
    loop = [BufferSpec("p", 1, "q"), BufferSpec("q", 1, "p")]
    with pytest.raises(PlanError, match="view of itself"):
        verify([], loop, {}, [], 0)


# --------------------------------------------------------------------------- parts with gaps

JOINED = [
    BufferSpec("w", 192),
    BufferSpec("p", 16, "w", 0, rows=4, pitch=48),
    BufferSpec("q", 32, "w", 16, rows=4, pitch=48),
    BufferSpec("o", 64),
]
JOIN = [Step("p", (), ("p",)), Step("q", ("p",), ("q",)), Step("use", ("w",), ("o",))]
AT = {"w": 0, "p": 0, "q": 16, "o": 192}


def test_parts_between_each_other_make_a_whole() -> None:
    verify(JOIN, JOINED, AT, [None] * 3, 256)


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        (r"'w' .* read by step 'use'.* bytes 40\.\.48 were never written",
         BufferSpec("q", 24, "w", 16, rows=4, pitch=48)),
        (r"bytes 160\.\.192 were never written", BufferSpec("q", 32, "w", 16, rows=3, pitch=48)),
        ("is not byte 16 onwards", BufferSpec("q", 32, "w", 16, rows=4, pitch=56)),
        (r"'q' .* over its operand 'p'", BufferSpec("q", 32, "w", 16, rows=4, pitch=44)),
    ],
)  # fmt: skip
def test_faults_of_parts(message: str, spec: BufferSpec) -> None:
    buffers = [spec if b.name == "q" else b for b in JOINED]
    at = AT | {"q": spec.alias_offset}
    with pytest.raises(PlanError, match=message):
        verify(JOIN, buffers, at, [None] * 3, 256)


def test_a_part_over_another_part() -> None:
    buffers = [
        BufferSpec("q", 32, "w", 8, rows=4, pitch=48) if b.name == "q" else b for b in JOINED
    ]
    steps = [JOIN[0], Step("q", (), ("q",)), JOIN[2]]
    wanted = r"'q' .* over bytes 8\.\.16 of 'w', which step 'p' .* wrote as 'p'"
    with pytest.raises(PlanError, match=wanted):
        verify(steps, buffers, AT | {"q": 8}, [None] * 3, 256)


def test_foreign_bytes_in_the_gaps_of_a_part_are_found() -> None:
    """A blob between the runs of p harms nobody until q is read or p's own bytes are hit."""
    steps = [JOIN[0], Step("x", (), ("x",)), *JOIN[1:]]
    for at, size, harmless in ((16, 32, True), (8, 32, False), (40, 16, False)):
        buffers = [*JOINED, BufferSpec("x", size)]
        if harmless:
            verify(steps, buffers, AT | {"x": at}, [None] * 4, 256)
        else:
            with pytest.raises(PlanError, match=r"'p' .* hold 'x', written by step 'x'"):
                verify(steps, buffers, AT | {"x": at}, [None] * 4, 256)


def test_a_part_is_no_place_to_compute_in() -> None:
    """Memory joined row by row with a dense operand of as many bytes is not the same memory."""
    steps = [JOIN[0], Step("q", (), ("q",)), Step("r", ("p",), ("o",), inplace=(("o", "p"),))]
    with pytest.raises(PlanError, match="may at most share it exactly"):
        verify(steps, JOINED, AT | {"o": 0}, [None] * 3, 256)
