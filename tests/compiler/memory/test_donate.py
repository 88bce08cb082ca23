"""Blocks in the memory of donated inputs: what moves, and that wrong regions are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from types import MappingProxyType

import pytest

from tilewright.compiler.errors import PlanError
from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.donate import plan_donated
from tilewright.compiler.memory.plan import Lever, MemoryPlan, plan


def line(*sizes: int) -> tuple[list[Step], list[BufferSpec]]:
    """x -> b0 -> b1 -> ... -> y, where x and y are the caller's."""
    names = ["x", *(f"b{k}" for k in range(len(sizes))), "y"]
    steps = [Step(f"s{k}", (a,), (b,)) for k, (a, b) in enumerate(zip(names, names[1:]))]  # noqa: B905, RUF007
    return steps, [BufferSpec(f"b{k}", size) for k, size in enumerate(sizes)]


def places(result: MemoryPlan) -> dict[str, int]:
    (region,) = result.regions
    return dict(region.offsets)


def test_what_begins_after_the_last_read_may_move() -> None:
    steps, buffers = line(640, 640, 640)
    result = plan_donated(steps, buffers, {"x": 640})
    assert plan(steps, buffers).arena_bytes == 1280
    assert result.arena_bytes == 640 == result.donation_saved_bytes
    assert "b0" not in places(result), "the step that writes it still reads x"
    result.check()


def test_what_is_too_large_stays() -> None:
    steps, buffers = line(640, 704, 640)
    assert plan_donated(steps, buffers, {"x": 640}).regions == ()
    assert plan_donated(steps, buffers, {"x": 703}).arena_bytes == 1344
    assert plan_donated(steps, buffers, {"x": 704}).arena_bytes == 640


def test_results_take_the_inputs_place_in_the_step_that_reads_it_last() -> None:
    steps, buffers = line(640)
    allowed = [replace(steps[0], inplace=(("b0", "x"),)), steps[1]]
    assert plan_donated(steps, buffers, {"x": 640}).arena_bytes == 640
    result = plan_donated(allowed, buffers, {"x": 640})
    assert result.arena_bytes == 0
    assert places(result) == {"x": 0, "b0": 0}
    assert "of the donated input 'x'" in str(result), "there is no arena, but this"
    assert result.regions[0].ranges[0].members == ("x", "b0")


def test_views_follow_what_they_look_into() -> None:
    steps = [
        Step("a", ("x",), ("b0",)), Step("b", ("half",), ("b1",)), Step("c", ("b0", "b1"), ("b2",)),
        Step("d", ("part", "b2"), ("y",)),
    ]  # fmt: skip
    buffers = [
        BufferSpec("half", 320, "x", 320), BufferSpec("b0", 640), BufferSpec("b1", 64),
        BufferSpec("b2", 640), BufferSpec("part", 64, "b2", 128),
    ]  # fmt: skip
    result = plan_donated(steps, buffers, {"x": 640})
    at = places(result)
    assert at["half"] == 320 and at["b2"] == 0 and at["part"] == 128
    assert "b1" not in at, "step b reads x through half"
    result.check()


def test_several_blocks_share_a_region() -> None:
    steps = [
        Step("a", ("x",), ("b0",)), Step("b", ("b0",), ("b1",)), Step("c", ("b0",), ("b2",)),
        Step("d", ("b0", "b1", "b2"), ("y",)),
    ]  # fmt: skip
    buffers = [BufferSpec("b0", 64), BufferSpec("b1", 640), BufferSpec("b2", 640)]
    result = plan_donated(steps, buffers, {"x": 1300})
    assert result.arena_bytes == 64
    assert sorted(places(result).items()) == [("b1", 0), ("b2", 640), ("x", 0)]


def test_kept_buffers_stay() -> None:
    steps, buffers = line(640, 640, 640)
    result = plan_donated(steps, buffers, {"x": 640}, keep=("b1", "b2"))
    assert {"b1", "b2"} <= set(result.offsets)


def test_an_input_that_nobody_reads_is_free_from_the_start() -> None:
    steps, buffers = line(640)
    result = plan_donated(steps, buffers, {"unused": 640})
    assert result.arena_bytes == 0
    assert places(result) == {"unused": 0, "b0": 0}


def test_what_donation_saves_is_told_last() -> None:
    steps, buffers = line(640, 640, 640)
    result = plan_donated(steps, buffers, {"x": 640})
    *others, donation = result.levers()
    assert donation == Lever("donation", 1280, 640, 0)
    assert tuple(others) == plan(steps, buffers).levers()
    assert "donation" in result.certificate()
    facts = result.as_json()["regions"]
    assert facts[0]["name"] == "x" and len(facts[0]["blocks"]) == len(result.regions[0].ranges)


def test_the_order_is_that_of_the_plan_without() -> None:
    """Two branches that are best run one after the other; a small result moves into x."""
    steps = [
        Step("a", ("x",), ("b0",)), Step("b", ("x",), ("b1",)),
        Step("c", ("b0",), ("b2",)), Step("d", ("b1",), ("b3",)), Step("e", ("b2", "b3"), ("y",)),
    ]  # fmt: skip
    buffers = [BufferSpec("b0", 640), BufferSpec("b1", 640), BufferSpec("b2", 64),
               BufferSpec("b3", 64)]  # fmt: skip
    plain, result = plan(steps, buffers), plan_donated(steps, buffers, {"x": 64})
    assert plain.order != tuple(range(5))
    assert result.order == plain.order and result.steps == plain.steps
    assert result.arena_bytes < plain.arena_bytes
    assert result.given_bound_bytes == plain.given_bound_bytes
    given = plan_donated(steps, buffers, {"x": 64}, reorder=False)
    assert given.order == tuple(range(5))


def test_results_stay_apart_in_regions_too() -> None:
    steps, buffers = line(640)
    allowed = [replace(steps[0], inplace=(("b0", "x"),)), steps[1]]
    assert plan_donated(allowed, buffers, {"x": 640}, inplace=False).regions == ()


def moved(result: MemoryPlan, name: str, at: int) -> MemoryPlan:
    """The plan with one block of its region elsewhere."""
    (region,) = result.regions
    offsets = MappingProxyType({**region.offsets, name: at})
    return replace(result, regions=(replace(region, offsets=offsets),))


def test_the_verifier_knows_regions() -> None:
    steps, buffers = line(640, 128, 640)
    result = plan_donated(steps, buffers, {"x": 640})
    inside = next(n for n in places(result) if n != "x")
    with pytest.raises(PlanError, match="leaves the 640 bytes of the donated input 'x'"):
        moved(result, inside, 576).check()
    with pytest.raises(PlanError, match="leaves the 640 bytes"):
        moved(result, inside, -64).check()
    early = replace(result, steps=(*steps[:2], Step("again", ("x", "b1"), ("b2",)), *steps[3:]))
    with pytest.raises(PlanError, match=r"'x' at bytes .* is read by step 'again'"):
        early.check()
    (region,) = result.regions
    with pytest.raises(PlanError, match="'b0' lies in two places"):
        replace(result, regions=(
            replace(region, buffers=(*region.buffers, buffers[0]),
                    offsets=MappingProxyType({**region.offsets, "b0": 0})),
        )).check()  # fmt: skip


def test_the_text_says_what_lies_there() -> None:
    steps, buffers = line(640, 640, 640)
    text = str(plan_donated(steps, buffers, {"x": 640}))
    assert "in the 640 bytes of the donated input 'x':" in text
    assert "2..3  'b" in text or "1..2  'b" in text


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_never_get_worse(seed: int) -> None:
    """Verified while planned; here once more, and against the plan without donation."""
    rng = random.Random(seed)
    names, steps, buffers = ["x", "z"], [], []
    for k in range(rng.randint(2, 14)):
        reads = tuple(dict.fromkeys(rng.choices(names[-5:], k=rng.randint(1, 3))))
        allowed = ((f"b{k}", rng.choice(reads)),) if rng.random() < 0.5 else ()
        steps.append(Step(f"s{k}", reads, (f"b{k}",), rng.choice([0, 0, 100]), allowed))
        buffers.append(BufferSpec(f"b{k}", rng.choice([64, 100, 640, 1000])))
        names.append(f"b{k}")
    result = plan_donated(steps, buffers, {"x": 640, "z": rng.choice([1000, 64])})
    plain = plan(steps, buffers)
    result.check()
    assert result.arena_bytes + result.donation_saved_bytes == plain.arena_bytes
    assert result.arena_bytes <= plain.arena_bytes
    assert result.unshared_bytes == plain.unshared_bytes
