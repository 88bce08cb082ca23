"""Whole plans: random programs run on real bytes, faults planted in good plans, a known network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.errors import PlanError
from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.plan import Lever, MemoryPlan, Needs, needs, plan
from tilewright.compiler.memory.verify import verify

Program = tuple[list[Step], list[BufferSpec], tuple[str, ...]]


@st.composite
def programs(draw: st.DrawFn, part_views: bool = True) -> Program:
    """Steps that read what exists and write new buffers; views, scratch, in-place offers, keeps."""
    sizes = st.sampled_from([0, 1, 64, 100, 100, 200, 200, 640])
    buffers: list[BufferSpec] = []
    steps: list[Step] = []
    readable = ["input"]
    for number in range(draw(st.integers(1, 9))):
        reads = draw(st.lists(st.sampled_from(readable), max_size=3))
        writes = []
        for which in range(draw(st.integers(0, 2))):
            spec = BufferSpec(f"b{number}.{which}", draw(sizes))
            buffers.append(spec)
            writes.append(spec.name)
        offers = [(w, r) for w in writes for r in dict.fromkeys(reads)]
        steps.append(
            Step(
                f"s{number}",
                tuple(reads),
                tuple([*writes, "output"]),
                draw(st.sampled_from([0, 0, 50, 300])),
                tuple(draw(st.permutations(offers))) if draw(st.booleans()) else (),
            )
        )
        readable += writes
        if writes and draw(st.booleans()):
            root = buffers[-1]
            low = draw(st.integers(0, root.bytes)) if part_views else 0
            buffers.append(BufferSpec(f"v{number}", root.bytes - low, root.name, low))
            readable.append(f"v{number}")
    made = [spec.name for spec in buffers if spec.alias_of is None]
    keep = draw(st.lists(st.sampled_from(made), max_size=1)) if made else []
    return steps, buffers, tuple(keep)


def content(place: dict[str, tuple[str, int]], spec: BufferSpec) -> bytes:
    """What the bytes of a buffer must be: a function of root buffer and position within it."""
    root, offset = place[spec.name]
    salt = crc32(root.encode())
    return bytes((salt + 7 * (offset + i)) % 251 + 1 for i in range(spec.bytes))


def run(program: Program, made: MemoryPlan) -> None:
    """Execute on real bytes: write the results, then look at operands that are not in place."""
    steps, buffers, keep = program
    specs = {spec.name: spec for spec in buffers}
    place = {b.name: (b.alias_of or b.name, b.alias_offset) for b in buffers}
    arena = bytearray(made.arena_bytes)

    def span(name: str) -> slice:
        return slice(made.offsets[name], made.offsets[name] + specs[name].bytes)

    def check(name: str) -> None:
        assert bytes(arena[span(name)]) == content(place, specs[name]), name

    for number, step in enumerate(steps):
        shared = {read for written, read in step.inplace if (written, read) in made.inplace}
        reads = [name for name in step.reads if name in specs]
        writes = [name for name in step.writes if name in specs]
        for name in reads:
            check(name)
        offset = made.scratch[number]
        assert (offset is None) == (step.scratch == 0)
        if offset is not None:
            assert made.offsets[f"{step.name}.scratch"] == offset
            arena[offset : offset + step.scratch] = bytes(step.scratch)
        for name in writes:
            arena[span(name)] = content(place, specs[name])
        for name in writes + [name for name in reads if name not in shared]:
            check(name)
        if offset is not None:
            assert arena[offset : offset + step.scratch] == bytes(step.scratch)
            arena[offset : offset + step.scratch] = b"\xff" * step.scratch
    for name in keep:
        check(name)


@settings(max_examples=120, deadline=None)
@given(programs(), st.sampled_from([1, 64]))
def test_programs_run_in_the_arena(program: Program, alignment: int) -> None:
    steps, buffers, keep = program
    made = plan(steps, buffers, keep=keep, alignment=alignment)
    run(program, made)
    assert made.lower_bound_bytes <= made.arena_bytes <= made.unshared_bytes
    assert sum(size for _, size in made.peak) == made.lower_bound_bytes
    assert made.optimal == (made.arena_bytes == made.lower_bound_bytes)
    made.check()
    assert str(made).count("\n") >= 3


def lives(program: Program) -> dict[str, tuple[int, int, int]]:
    """(first, last, bytes) of every root and of every step's scratch, counted naively."""
    steps, buffers, keep = program
    root_of = {b.name: b.alias_of or b.name for b in buffers}
    size = {b.name: b.bytes for b in buffers}
    found: dict[str, tuple[int, int, int]] = {}
    for number, step in enumerate(steps):
        for name in (*step.reads, *step.writes):
            root = root_of.get(name)
            if root is not None:
                found[root] = (found.get(root, (number,))[0], number, size[root])
        if step.scratch:
            found[f"{step.name}.scratch"] = (number, number, step.scratch)
    for name in keep:
        found[name] = (found[name][0], len(steps), size[name])
    return found


def faults(program: Program, made: MemoryPlan) -> Iterator[dict[str, int]]:
    """Offsets with one buffer moved over another that is alive at the same time: all wrong."""
    steps, buffers, _ = program
    alive = lives(program)
    for name, (first, last, size) in alive.items():
        for other, (since, until, bytes_) in alive.items():
            if name == other or not size or not bytes_ or max(first, since) > min(last, until):
                continue
            there = made.offsets[other]
            for target in (there - size + 1, there, there + bytes_ - 1):
                meeting = steps[min(max(first, since), len(steps) - 1)]
                names = {b.name: b.alias_of or b.name for b in buffers}
                offers = {(names.get(w), names.get(r)) for w, r in meeting.inplace}
                exact = target == there and size == bytes_
                if target < 0 or (exact and {(name, other), (other, name)} & offers):
                    continue
                moved = dict(made.offsets)
                moved[name] = target
                moved.update({b.name: target for b in buffers if b.alias_of == name})
                yield moved


@settings(max_examples=80, deadline=None)
@given(programs(part_views=False))
def test_every_overlap_is_caught(program: Program) -> None:
    steps, buffers, keep = program
    made = plan(steps, buffers, keep=keep)
    for moved in faults(program, made):
        scratch = [moved.get(f"{s.name}.scratch") if s.scratch else None for s in steps]
        with pytest.raises(PlanError):
            verify(steps, buffers, moved, scratch, made.arena_bytes + 10_000, keep)


def test_faults_are_really_planted() -> None:
    steps = [Step("0", (), ("a", "b"), 64), Step("1", ("a", "b"), ("c",), 64)]
    program = steps, [BufferSpec(name, 64) for name in "abc"], ()
    assert len(list(faults(program, plan(*program[:2])))) > 20


def test_whole_arena_is_shared_by_a_chain() -> None:
    """Two buffers of a chain are alive at a time, whatever its length."""
    steps = [Step(str(i), (f"b{i - 1}",), (f"b{i}",)) for i in range(50)]
    made = plan(steps, [BufferSpec(f"b{i}", 1000) for i in range(50)])
    assert made.arena_bytes == made.lower_bound_bytes == 2 * 1024
    assert made.unshared_bytes == 50 * 1024


def mobilenet_v2(inplace: bool) -> tuple[list[Step], list[BufferSpec]]:
    """The network of Sandler et al. 2018 at 1 x 3 x 224 x 224 in float32, one step per operator."""
    steps: list[Step] = []
    buffers: list[BufferSpec] = []

    def op(kind: str, reads: list[str], channels: int, side: int, share: bool = False) -> str:
        name = f"{kind}{len(steps)}"
        buffers.append(BufferSpec(name, channels * side * side * 4))
        offers = tuple((name, read) for read in reads) if share and inplace else ()
        steps.append(Step(name, tuple(reads), (name,), inplace=offers))
        return name

    def conv(x: str, channels: int, side: int, act: bool = True) -> str:
        x = op("conv", [x], channels, side)
        x = op("bn", [x], channels, side, share=True)
        return op("relu6_", [x], channels, side, share=True) if act else x

    x, side, width = conv("image", 32, 112), 112, 32
    for expand, channels, repeat, stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for index in range(repeat):
            y = conv(x, width * expand, side) if expand > 1 else x
            down = stride if index == 0 else 1
            side //= down
            y = conv(conv(y, width * expand, side), channels, side, act=False)
            same = down == 1 and width == channels
            x = op("add", [x, y], channels, side, share=True) if same else y
            width = channels
    x = op("pool", [conv(x, 1280, side)], 1280, 1)
    op("gemm", [x], 1000, 1)
    return steps, buffers


def test_mobilenet_v2_with_batch_norm_in_place() -> None:
    """By hand: the first expansion, 96 x 112 x 112, next to its depthwise result, 96 x 56 x 56."""
    made = plan(*mobilenet_v2(inplace=True))
    assert made.lower_bound_bytes == 96 * (112 * 112 + 56 * 56) * 4 == 6_021_120
    assert made.optimal
    assert [size for _, size in made.peak] == [96 * 112 * 112 * 4, 96 * 56 * 56 * 4]
    assert made.steps[made.peak_step].name.startswith("conv")


def test_mobilenet_v2_without() -> None:
    """By hand: batch norm reads 96 x 112 x 112 and writes as much."""
    made = plan(*mobilenet_v2(inplace=False))
    assert made.lower_bound_bytes == 2 * 96 * 112 * 112 * 4 == 9_633_792
    assert made.optimal
    allowed = plan(*mobilenet_v2(inplace=True))
    assert allowed.apart_bound_bytes == made.lower_bound_bytes
    assert plan(*mobilenet_v2(inplace=True), inplace=False).arena_bytes == made.arena_bytes
    assert made.inplace == ()


def small() -> tuple[list[Step], list[BufferSpec]]:
    steps = [
        Step("load", ("image",), ("a",)),
        Step("conv", ("a",), ("b",), scratch=100),
        Step("relu", ("b",), ("c",), inplace=(("c", "b"),)),
        Step("store", ("c",), ("probabilities",)),
    ]
    return steps, [BufferSpec("a", 1000), BufferSpec("b", 300), BufferSpec("c", 300)]


def test_peak_names_who_lives_there_after_the_step() -> None:
    steps, buffers = small()
    steps[2] = Step("relu", ("b",), ("c",), 5000, (("c", "b"),))
    made = plan(steps, buffers)
    assert made.peak_step == 2
    assert made.peak == (("relu.scratch", 5056), ("c", 320))
    assert made.inplace == (("c", "b"),)
    assert made.offsets["c"] == made.offsets["b"]


def test_certificate_reads_well_and_names_cannot_break_it() -> None:
    steps, buffers = small()
    evil = 'b"\n\x1b[2J'
    steps = [
        Step(s.name, *(tuple(evil if n == "b" else n for n in ns) for ns in (s.reads, s.writes)))
        for s in steps
    ]
    buffers = [BufferSpec(evil if b.name == "b" else b.name, b.bytes) for b in buffers]
    made = plan(steps, buffers)
    text = str(made)
    assert 'b"\\n\\x1b[2J' in text
    assert "\x1b" not in text
    assert "optimal" in text
    assert made.offsets[evil] >= 0


def two_branches() -> tuple[list[Step], list[BufferSpec]]:
    """Both branches make something large first, then something small; the second one in place."""
    steps = [
        Step("a", (), ("large",)),
        Step("b", (), ("long",), scratch=100),
        Step("c", ("large",), ("small",)),
        Step("d", ("long",), ("longer",), inplace=(("longer", "long"),)),
        Step("e", ("longer",), ("short",)),
        Step("f", ("small", "short"), ("result",)),
    ]
    sizes = {"large": 4000, "long": 3000, "longer": 3000, "small": 50, "short": 60}
    return steps, [BufferSpec(name, size) for name, size in sizes.items()]


def test_the_certificate_as_a_whole(golden: Callable[[str, str], None]) -> None:
    made = plan(*two_branches())
    made = replace(made, alternatives={"fusion": lambda: Needs(made.lower_bound_bytes - 64, 20000)})
    golden(f"{made}\n", "memory_certificate.txt")


def test_a_bound_that_a_search_proved() -> None:
    """What is alive in one step does not show it, and decisions are measured by what does."""
    made = plan(*two_branches())
    proved = replace(
        made, lower_bound_bytes=made.alive_bytes + 64, arena_bytes=made.alive_bytes + 64
    )
    assert proved.optimal and proved.gap_bytes == 0
    line = proved.certificate().splitlines()[2]
    assert line.endswith("proved by search; 4096 B are alive in step 1 'c'")
    assert proved.levers()[1:] == made.levers()[1:]


def test_levers_by_hand() -> None:
    made = plan(*two_branches())
    found = {lever.name: lever for lever in made.levers()}
    large, long, little = 4032, 3008, 64
    total = large + 2 * long + 2 * little + 128
    assert made.arena_bytes == max(large + little, 2 * little + long)
    assert made.gap_bytes == 0
    assert found == {
        "sharing": Lever("sharing", total, total - made.arena_bytes, 0),
        "in place": Lever("in place", 2 * long, 2 * long - made.arena_bytes, long),
        "reordering": Lever("reordering", large + long + 128, long + 128 - little, 0),
    }
    without = plan(*two_branches(), inplace=False)
    assert without.lower_bound_bytes == found["in place"].without
    assert plan(*two_branches(), reorder=False).lower_bound_bytes == found["reordering"].without


def test_what_is_needed_without_placing_it() -> None:
    made = plan(*two_branches())
    assert needs(*two_branches()) == Needs(made.lower_bound_bytes, made.unshared_bytes)
    assert needs(*two_branches(), reorder=False).bound == made.given_bound_bytes
    apart = plan(*two_branches(), inplace=False)
    assert needs(*two_branches(), inplace=False).bound == apart.lower_bound_bytes
    kept = needs(*two_branches(), keep=["large"])
    assert kept.bound == plan(*two_branches(), keep=["large"]).lower_bound_bytes > made.arena_bytes


def test_levers_keep_to_what_the_plan_may() -> None:
    """In the order given, results in place save nothing: the peak is elsewhere."""
    made = plan(*two_branches(), reorder=False)
    assert {x.name: x.saved for x in made.levers() if x.saved} == {
        "sharing": made.unshared_bytes - made.arena_bytes
    }
    assert made.given == made.steps == plan(*two_branches()).given


def test_alternatives_are_computed_when_they_are_asked_for() -> None:
    def fail() -> Needs:
        raise AssertionError

    made = replace(plan(*two_branches()), alternatives={"fusion": fail})
    assert made == plan(*two_branches()), "they say nothing of the plan itself"
    made.check()
    with pytest.raises(AssertionError):
        made.levers()


def test_facts_for_json() -> None:
    made = plan(*two_branches())
    facts = json.loads(json.dumps(made.as_json()))
    assert facts["arena_bytes"] == made.arena_bytes and facts["gap_bytes"] == 0
    assert facts["bound"]["name"] == made.steps[made.peak_step].name
    assert sum(x["bytes"] for x in facts["bound"]["alive"]) == made.lower_bound_bytes
    assert [x["name"] for x in facts["levers"]] == ["sharing", "in place", "reordering"]
    assert {x["name"]: x["offset"] for x in facts["blocks"]} == {
        block.name: made.offsets[block.name] for block in made.ranges
    }
    assert plan([], []).as_json()["bound"] == {"step": -1, "name": "", "alive": []}


def test_scratch_names_give_way_to_buffers() -> None:
    steps = [Step("s", (), ("s.scratch",), 64), Step("s", ("s.scratch",), (), 64)]
    made = plan(steps, [BufferSpec("s.scratch", 64)])
    assert set(made.offsets) == {"s.scratch", "s.scratch#0", "s.scratch#1"}
    assert made.scratch == (made.offsets["s.scratch#0"], made.offsets["s.scratch#1"])
    assert made.arena_bytes == 128


def test_no_steps() -> None:
    made = plan([], [BufferSpec("unused", 10)])
    assert (made.arena_bytes, made.unshared_bytes, made.peak_step) == (0, 0, -1)
    assert not made.offsets
    assert "no steps" in str(made)


def test_views_lie_within_their_root() -> None:
    steps = [Step("0", (), ("a",)), Step("1", ("v",), ("b",)), Step("2", ("b",), ())]
    made = plan(steps, [BufferSpec("a", 100), BufferSpec("v", 20, "a", 36), BufferSpec("b", 8)])
    assert made.offsets["v"] == made.offsets["a"] + 36
