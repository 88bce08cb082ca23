"""Which steps run another way under a limit: random programs against every combination there is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.memory import plan as plan_module
from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.limit import Change, least_bound, lowered, refusal
from tilewright.compiler.memory.packer import pack
from tilewright.compiler.memory.plan import plan, step_bytes

Problem = tuple[list[Step], list[BufferSpec], list[list[Step]]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Steps that read up to two of the last buffers and write one, and other ways of running them,
    with more or less scratch and some results in place of operands."""
    steps: list[Step] = []
    buffers: list[BufferSpec] = []
    ways: list[list[Step]] = []
    for number in range(draw(st.integers(1, 5))):
        near = [spec.name for spec in buffers[-3:]]
        reads = tuple(
            draw(st.lists(st.sampled_from(near), max_size=2, unique=True)) if near else ()
        )
        name = f"b{number}"
        buffers.append(BufferSpec(name, draw(st.sampled_from([64, 64, 100, 300]))))

        def way(number: int = number, reads: tuple[str, ...] = reads, name: str = name) -> Step:
            offers = tuple((name, read) for read in reads if draw(st.booleans()))
            return Step(f"s{number}", reads, (name,), draw(st.sampled_from([0, 70, 400])), offers)

        steps.append(way())
        ways.append([way() for _ in range(draw(st.integers(0, 2)))])
    return steps, buffers, ways


@given(problems())
def test_the_largest_sum_alive_is_the_bound_of_the_plan(problem: Problem) -> None:
    steps, buffers, _ = problem
    assert max(step_bytes(steps, buffers)) == plan(steps, buffers, reorder=False).lower_bound_bytes


@given(problems())
def test_no_combination_has_a_lower_bound(problem: Problem) -> None:
    steps, buffers, ways = problem
    every = product(*([step, *others] for step, others in zip(steps, ways, strict=True)))
    best = min(max(step_bytes(chosen, buffers)) for chosen in every)
    assert least_bound(steps, buffers, ways.__getitem__) == best


@given(problems(), st.integers(0, 1200))
def test_only_steps_above_the_limit_change_and_to_the_first_way_that_fits(
    problem: Problem, limit: int
) -> None:
    steps, buffers, ways = problem
    before = step_bytes(steps, buffers)
    found = lowered(steps, buffers, ways.__getitem__, limit)
    changed = [ways[n][found[n].way] if n in found else step for n, step in enumerate(steps)]
    after = step_bytes(changed, buffers)
    assert all(found[n].saved == before[n] - after[n] > 0 for n in found)
    for number, others in enumerate(ways):
        alone = [
            step_bytes([*steps[:number], other, *steps[number + 1 :]], buffers)[number]
            for other in others
        ]
        if before[number] <= limit:
            assert number not in found
        elif any(size <= limit for size in alone):
            assert found[number].way == next(k for k, size in enumerate(alone) if size <= limit)
        else:
            assert after[number] == min([before[number], *alone])
    if limit >= least_bound(steps, buffers, ways.__getitem__):
        assert max(after) <= limit


def test_steps_that_cannot_matter_are_not_asked() -> None:
    """The second step stays above all that the others can need, whatever they do."""
    steps = [Step("0", (), ("a",), 300), Step("1", ("a",), ("b",)), Step("2", ("b",), (), 300)]
    buffers = [BufferSpec("a", 640), BufferSpec("b", 640)]
    asked: list[int] = []

    def ways(number: int) -> list[Step]:
        asked.append(number)
        return [replace(steps[number], scratch=0)]

    assert least_bound(steps, buffers, ways) == 1280
    assert lowered(steps, buffers, ways, 1280) == {}
    assert set(asked) == {1}


def test_the_first_way_that_fits_is_taken_even_if_a_later_one_takes_less() -> None:
    steps, buffers = [Step("0", (), ("a",), 640)], [BufferSpec("a", 64)]
    others = [replace(steps[0], scratch=size) for size in (512, 320, 128, 256)]
    for limit, way in ((640, 0), (400, 1), (384, 1), (383, 2), (192, 2), (100, 2)):
        found = lowered(steps, buffers, lambda _: others, limit)
        assert found == {0: Change(way, 640 - others[way].scratch)}


def test_refusal_names_step_buffers_and_bytes_and_nothing_in_names_can_break_it() -> None:
    evil = 'b"\n\x1b[2J'
    steps = [Step("load", (), ("a",)), Step(f"conv {evil}", ("a",), (evil,), scratch=100)]
    made = plan(steps, [BufferSpec("a", 1000), BufferSpec(evil, 300)])
    text = str(refusal(made, 1471, ["it is what it is"], False))
    assert text == (
        "memory limit of 1471 bytes can't be met: the least is 1472.\n"
        "Most is alive in step 1 'conv b\"\\n\\x1b[2J', in bytes:\n"
        "            1024  a\n"
        '             320  b"\\n\\x1b[2J\n'
        '             128  conv b"\\n\\x1b[2J.scratch\n'
        "it is what it is\n"
        "In this order of execution no choice of kernels takes less.\n"
        "Raise the limit to 1472, or lower the batch size."
    )


def test_refusal_lists_the_largest_of_many() -> None:
    names = [f"b{k}" for k in range(20)]
    made = plan([Step("all", (), tuple(names))], [BufferSpec(n, 64) for n in names])
    text = str(refusal(made, 100, [], False))
    assert text.count("64  b") == 12
    assert f"{8 * 64:>14}  in 8 smaller ones" in text


def test_refusal_admits_a_packing_above_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four buffers whose bound is 6 units; with no time to search, greedy by size needs 7."""
    monkeypatch.setattr(plan_module, "pack", partial(pack, time_limit=0.0))
    steps = [
        Step("0", (), ("a", "b")),
        Step("1", ("b",), ("d",)),
        Step("2", ("d",), ()),
        Step("3", ("a",), ("c",)),
        Step("4", (), ()),
        Step("5", ("c",), ()),
    ]
    buffers = [BufferSpec(n, 64 * units) for n, units in zip("abcd", (2, 2, 3, 2), strict=True)]
    made = plan(steps, buffers)
    assert (made.arena_bytes, made.lower_bound_bytes) == (7 * 64, 6 * 64)
    assert not made.optimal
    assert "384 bytes would do, but no such packing was found" in str(refusal(made, 400, [], False))
    monkeypatch.undo()
    assert plan(steps, buffers).optimal


def test_refusal_claims_of_kernels_only_what_is_proved_of_all_of_them() -> None:
    """A search can prove that a packing is the best, but it looks at one choice of kernels."""
    made = plan([Step("0", (), ("a",))], [BufferSpec("a", 640)])
    assert "No order of execution and no choice of kernels takes less" in str(
        refusal(made, 1, [], True)
    )
    above = replace(made, arena_bytes=704, lower_bound_bytes=704)
    text = str(refusal(above, 1, [], False))
    assert "These kernels can't be packed tighter" in text and "no choice" not in text
