"""Orders of execution against every other order, by brute force and by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.memory import order as order_module
from tilewright.compiler.memory import plan as plan_module
from tilewright.compiler.memory.buffers import BufferSpec, Step, live_ranges, resolve
from tilewright.compiler.memory.dependencies import predecessors
from tilewright.compiler.memory.order import Ordering, reorder
from tilewright.compiler.memory.packer import Packing, pack
from tilewright.compiler.memory.plan import plan

Program = tuple[list[Step], list[BufferSpec], tuple[str, ...]]


def program(rng: random.Random, count: int, width: int = 4) -> Program:
    """Steps that read some of the latest results; parts of larger buffers, views, scratch, offers
    to compute in place, results that nobody reads or that are kept."""
    buffers: list[BufferSpec] = []
    steps: list[Step] = []
    readable = ["input"]
    parts: list[str] = []
    for number in range(count):
        recent = readable[-width:]
        reads = rng.sample(recent, min(len(recent), rng.choice([1, 1, 1, 2, 3])))
        writes = []
        if parts:
            writes.append(parts.pop())
            if not parts:
                readable.append(writes[0].split(".")[0])
        elif rng.random() < 0.15 and number < count - 2:
            whole, each = f"w{number}", rng.choice([16, 64, 100])
            rows = rng.choice([1, 1, 3])
            buffers.append(BufferSpec(whole, 2 * each * rows))
            for k in range(2):
                part = BufferSpec(f"{whole}.{k}", each, whole, k * each, rows, 2 * each)
                buffers.append(part)
                parts.append(part.name)
            writes.append(parts.pop())
        for k in range(rng.choice([0, 1, 1, 1, 1, 2]) if not writes else 0):
            size = rng.choice([0, 1, 64, 64, 100, 200, 200, 640])
            buffers.append(BufferSpec(f"b{number}.{k}", size))
            writes.append(buffers[-1].name)
        offers = [(w, r) for w in writes for r in reads if rng.random() < 0.5]
        if rng.random() < 0.15:
            writes.append(f"output{number}")
        steps.append(
            Step(f"s{number}", tuple(reads), tuple(writes),
                 rng.choice([0, 0, 0, 50, 300]), tuple(offers))
        )  # fmt: skip
        readable += [w for w in writes if not w.startswith("output")]
        if buffers and buffers[-1].alias_of is None and rng.random() < 0.2:
            root = buffers[-1]
            low = rng.choice([0, root.bytes // 2])
            buffers.append(BufferSpec(f"v{number}", root.bytes - low, root.name, low))
            readable.append(f"v{number}")
    read = [name for step in steps for name in step.writes if name in {b.name for b in buffers}]
    keep = tuple(rng.sample(read, 1)) if read and rng.random() < 0.3 else ()
    return steps, buffers, keep


# --------------------------------------------------------------------------- oracles


def rounded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def bound(made: Program, order: Sequence[int], alignment: int = 1) -> int:
    """The largest sum of bytes alive, from the live ranges that the plan packs."""
    steps = [made[0][k] for k in order]
    ranges = live_ranges(steps, made[1], made[2])
    return max(
        rounded(step.scratch, alignment)
        + sum(rounded(r.bytes, alignment) for r in ranges if r.first <= k <= r.last)
        for k, step in enumerate(steps)
    )


def bytes_of(name: str, buffers: Sequence[BufferSpec]) -> set[tuple[str, int]]:
    """Every byte of a name, one by one."""
    specs = {b.name: b for b in buffers}
    if name not in specs:
        return {(name, 0)}
    spec, root, offset = specs[name], name, 0
    while root in specs and specs[root].alias_of is not None:
        root, offset = str(specs[root].alias_of), offset + specs[root].alias_offset
    return {(root, offset + row * spec.pitch + k)
            for row in range(spec.rows) for k in range(max(1, spec.bytes))}  # fmt: skip


def must_precede(made: Program) -> list[set[int]]:
    """The earlier steps that write what a step touches, or touch what it writes."""
    steps, buffers, _ = made
    known = {name: bytes_of(name, buffers)
             for step in steps for name in (*step.reads, *step.writes)}  # fmt: skip
    reads = [set().union(*(known[n] for n in step.reads)) for step in steps]
    writes = [set().union(*(known[n] for n in step.writes)) for step in steps]
    return [
        {u for u in range(t) if writes[u] & (reads[t] | writes[t]) or reads[u] & writes[t]}
        for t in range(len(steps))
    ]


def orders(before: list[set[int]]) -> Iterator[tuple[int, ...]]:
    """Every topological order."""

    def rest(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == len(before):
            yield done
        for t in range(len(before)):
            if t not in done and before[t] <= set(done):
                yield from rest((*done, t))

    return rest(())


def lowest(made: Program, alignment: int = 1) -> int:
    """The lowest bound of all orders: what is alive depends on which steps ran, not on their order,
    so that every set is looked at once."""
    steps, buffers, _ = made
    before = must_precede(made)
    roots = {name: place.root for name, place in resolve(buffers).items()}
    users: dict[str, set[int]] = {}
    for t, step in enumerate(steps):
        for name in (*step.reads, *step.writes):
            if name in roots:
                users.setdefault(roots[name], set()).add(t)

    def cost(done: frozenset[int], t: int) -> int:
        """Step t behind `done`, from the live ranges of an order in which it is."""
        rest = [u for u in range(len(steps)) if u not in done and u != t]
        order = [*sorted(done), t, *rest]
        ranges = live_ranges([steps[k] for k in order], buffers, made[2])
        at = len(done)
        return rounded(steps[t].scratch, alignment) + sum(
            rounded(r.bytes, alignment) for r in ranges if r.first <= at <= r.last
        )

    @cache
    def best(done: frozenset[int]) -> int:
        ready = [t for t in range(len(steps)) if t not in done and before[t] <= done]
        return min((max(cost(done, t), best(done | {t})) for t in ready), default=0)

    return best(frozenset())


def is_topological(made: Program, order: Sequence[int]) -> bool:
    before = must_precede(made)
    return sorted(order) == list(range(len(before))) and all(
        before[t] <= set(order[:k]) for k, t in enumerate(order)
    )


# --------------------------------------------------------------------------- random programs


def checked(made: Program, alignment: int = 1) -> Ordering:
    found = reorder(*made, alignment=alignment)
    given_order = range(len(made[0]))
    assert is_topological(made, found.order)
    assert found.given == bound(made, given_order, alignment)
    assert found.bound == bound(made, found.order, alignment) <= found.given
    assert found.order == tuple(given_order) or found.bound < found.given
    assert reorder(*made, alignment=alignment) == found
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_every_topological_order(seed: int, count: int) -> None:
    made = program(random.Random(seed), count)
    found = checked(made)
    best = min(bound(made, order) for order in orders(must_precede(made)))
    assert (found.bound, found.proved) == (best, True)
    assert best == lowest(made)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 12), st.sampled_from([2, 4, 12]))
def test_exact_up_to_twelve_steps(seed: int, count: int, width: int) -> None:
    made = program(random.Random(seed), count, width)
    found = checked(made, 64)
    assert (found.bound, found.proved) == (lowest(made, 64), True)


@pytest.mark.parametrize("width", [3, 12, 40])
def test_larger_programs_never_get_worse(width: int) -> None:
    """And wide ones better: random graphs in random order leave room."""
    found = [checked(program(random.Random(seed), 60, width), 64) for seed in range(4)]
    assert width < 40 or all(f.bound < f.given for f in found)


@pytest.mark.parametrize("alignment", [1, 64])
def test_the_plan_runs_the_order_that_it_names(alignment: int) -> None:
    """Permuted, verified, with the bound that was promised; and not at all if that is asked."""
    moved = 0
    for seed in range(15):
        steps, buffers, keep = program(random.Random(seed), 20, 12)
        made = plan(steps, buffers, keep=keep, alignment=alignment)
        assert made.steps == tuple(steps[k] for k in made.order)
        found = reorder(steps, buffers, keep, alignment=alignment)
        assert made.given_bound_bytes == found.given
        if made.order != tuple(range(20)):
            assert made.lower_bound_bytes == found.bound < made.given_bound_bytes
            assert made.order_proved == found.proved
            moved += 1
        still = plan(steps, buffers, keep=keep, alignment=alignment, reorder=False)
        assert still.steps == tuple(steps)
        assert still.lower_bound_bytes == still.given_bound_bytes == found.given
        assert made.arena_bytes <= still.arena_bytes
        apart = plan(steps, buffers, keep=keep, alignment=alignment, inplace=False)
        assert apart.inplace == ()
        assert apart.lower_bound_bytes == apart.apart_bound_bytes
    assert moved > 3


# --------------------------------------------------------------------------- by hand


WIDE = [f"{word}{k}" for word in ("grow", "fall") for k in range(4)] + ["sum"]


def branches(order: Sequence[str]) -> Program:
    """Four times: a large result that the next step makes small. In the end all are added up."""
    steps = {f"grow{k}": Step(f"grow{k}", ("x",), (f"large{k}",)) for k in range(4)}
    steps |= {f"fall{k}": Step(f"fall{k}", (f"large{k}",), (f"small{k}",)) for k in range(4)}
    steps["sum"] = Step("sum", tuple(f"small{k}" for k in range(4)), ("y",))
    buffers = [BufferSpec(f"large{k}", 1000) for k in range(4)]
    buffers += [BufferSpec(f"small{k}", 1) for k in range(4)]
    return [steps[name] for name in order], buffers, ()


def test_breadth_first_becomes_depth_first() -> None:
    """All four large results at once, or one of them."""
    found = reorder(*branches(WIDE))
    assert (found.given, found.bound, found.proved) == (4001, 1004, True)
    assert [WIDE[k] for k in found.order] == [
        "grow0", "fall0", "grow1", "fall1", "grow2", "fall2", "grow3", "fall3", "sum",
    ]  # fmt: skip


def test_an_order_that_is_low_enough_stays() -> None:
    deep = [f"{word}{k}" for k in (2, 0, 3, 1) for word in ("grow", "fall")]
    assert reorder(*branches([*deep, "sum"])).order == tuple(range(9))


def behind(first: Program, second: Program) -> Program:
    """One program and then another one, with other names, which reads what the first makes."""
    names = {b.name: f"2{b.name}" for b in second[1]} | {"x": "y", "y": "z"}
    steps = [
        Step(f"2{s.name}", tuple(names[n] for n in s.reads), tuple(names[n] for n in s.writes))
        for s in second[0]
    ]
    buffers = [BufferSpec(names[b.name], b.bytes) for b in second[1]]
    return [*first[0], *steps], [*first[1], *buffers, BufferSpec("y", 0)], ()


def test_only_the_part_with_the_peak_moves() -> None:
    """Two diamonds, one behind the other. The one that needs a tenth keeps its bad order."""
    large, small = branches(WIDE), branches(WIDE)
    small = small[0], [BufferSpec(b.name, -(-b.bytes // 10)) for b in small[1]], ()
    found = reorder(*behind(large, small))
    assert (found.given, found.bound, found.proved) == (4001, 1004, True)
    assert found.order[:9] != tuple(range(9))
    assert found.order[9:] == tuple(range(9, 18))
    found = reorder(*behind(small, large))
    assert (found.order[:9], found.bound) == (tuple(range(9)), 1004)


def test_nothing_moves_if_another_part_stays_as_high() -> None:
    """The second program has one order only and needs as much as the first one in a bad order."""
    fixed = [Step("a", ("x",), ("b",)), Step("c", ("b",), ("y",))], [BufferSpec("b", 4001)], ()
    made = behind(branches(WIDE), fixed)
    assert reorder(*made) == Ordering(tuple(range(11)), 4001, 4001, True)


@pytest.mark.parametrize("seed", [6, 10, 18])
def test_a_part_goes_back_where_swaps_would_not_bring_it(seed: int) -> None:
    """Parts that were made lower before another one turned out to stay as high."""
    steps, buffers, _ = program(random.Random(seed), 9, 9)
    steps = [replace(s, writes=(*s.writes, f"done {s.name}")) for s in steps]
    steps.append(Step("join", tuple(s.writes[-1] for s in steps), ("y",)))
    found = reorder(steps, buffers)
    assert found.bound < found.given
    steps += [Step("a", ("y",), ("q",)), Step("c", ("q",), ("z",))]
    buffers.append(BufferSpec("q", found.given))
    assert reorder(steps, buffers).order == tuple(range(len(steps)))


def test_few_steps_move_if_few_suffice() -> None:
    """Of seven steps that may run in any order one has to come first, before anything is alive."""
    steps = [
        Step("early", ("x",), ("e",)),
        *(Step(f"small{k}", ("x",), (f"s{k}",)) for k in range(5)),
        Step("large", ("x",), ("l",), scratch=500),
        Step("end", ("e", "l", *(f"s{k}" for k in range(5))), ("y",)),
    ]
    buffers = [
        BufferSpec("e", 300),
        BufferSpec("l", 10),
        *(BufferSpec(f"s{k}", 1) for k in range(5)),
    ]
    found = reorder(steps, buffers)
    assert (found.given, found.bound, found.proved) == (815, 510, True)
    assert found.order == (6, 0, 1, 2, 3, 4, 5, 7)


def test_what_is_computed_in_place_decides() -> None:
    """The last reader of a result may take its place. Here the other reader has to come first."""
    steps = [
        Step("make", ("x",), ("a",)),
        Step("scale", ("a",), ("b",), inplace=(("b", "a"),)),
        Step("look", ("a",), ("c",)),
        Step("join", ("b", "c"), ("y",)),
    ]
    buffers = [BufferSpec("a", 100), BufferSpec("b", 100), BufferSpec("c", 1)]
    assert reorder(steps, buffers).order == (0, 2, 1, 3)
    assert reorder(steps, buffers).bound == 101
    assert reorder(steps, buffers, inplace=False).bound == 201
    assert reorder(steps, buffers, inplace=False).order == (0, 1, 2, 3)


def test_a_whole_is_alive_from_its_first_part() -> None:
    """The part that needs much memory of its own is written before the others bring the whole."""
    part = [BufferSpec(f"p{k}", 100, "w", 100 * k) for k in range(3)]
    steps = [
        Step("first", ("x",), ("p0",)),
        Step("second", ("x",), ("p1",)),
        Step("before", ("x",), ("t",), scratch=400),
        Step("third", ("t",), ("p2",)),
        Step("read", ("w",), ("y",)),
    ]
    found = reorder(steps, [BufferSpec("w", 300), *part, BufferSpec("t", 10)])
    assert (found.given, found.bound) == (710, 410)
    assert found.order[0] == 2


def test_external_memory_is_written_and_read_in_order() -> None:
    """Results for the caller and his inputs are not planned, but steps wait for each other there;
    through views, too."""
    steps = [
        Step("a", ("in",), ("out",)),
        Step("b", ("half",), ("t",)),
        Step("c", ("in",), ("u",)),
        Step("d", ("t", "u"), ("in",)),
    ]
    half = BufferSpec("half", 8, "out", 8)
    assert predecessors(steps, [half]) == [0, 0b1, 0, 0b111]


def test_parts_that_do_not_meet_may_be_written_in_any_order() -> None:
    """Interleaved stretches, reads of one of them, of all, and from one into the next."""
    buffers = [
        BufferSpec("w", 100),
        BufferSpec("p", 8, "w", 0, rows=4, pitch=24),
        BufferSpec("q", 16, "w", 8, rows=4, pitch=24),
        BufferSpec("tail", 12, "w", 84),
        BufferSpec("across", 8, "w", 20, rows=4, pitch=24),
    ]
    steps = [
        Step("p", (), ("p",)),
        Step("q", (), ("q",)),
        Step("one", ("p",), ()),
        Step("all", ("w",), ()),
        Step("some", ("tail",), ()),
        Step("across", ("across",), ()),
    ]
    assert predecessors(steps, buffers) == [0, 0, 0b1, 0b11, 0b10, 0b11]


def test_a_budget_that_does_not_suffice_still_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    more = [reorder(*program(random.Random(seed), 40, 20)) for seed in range(8)]
    monkeypatch.setattr(order_module, "_BUDGET", 40)
    monkeypatch.setattr(order_module, "_SMALL", 0)
    assert reorder(*branches(WIDE)).bound == 1004
    found = [checked(program(random.Random(seed), 40, 20)) for seed in range(8)]
    assert any(f.bound < f.given for f in found)
    assert sum(f.bound for f in found) > sum(m.bound for m in more)
    assert not all(f.proved for f in found)


def test_an_order_whose_packing_is_no_smaller_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower bound is worth nothing if the arena does not come down to it."""
    packed: list[Packing] = []

    def poor_at_first(*args: Any, **options: Any) -> Packing:
        found = pack(*args, **options)
        packed.append(found if packed else replace(found, height=found.height + 4000))
        return packed[-1]

    program = branches(WIDE)
    assert plan(*program[:2]).order != tuple(range(9))
    monkeypatch.setattr(plan_module, "pack", poor_at_first)
    made = plan(*program[:2])
    assert len(packed) == 2
    assert (made.order, made.order_proved) == (tuple(range(9)), False)
    assert made.arena_bytes == packed[1].height < packed[0].height
    assert made.lower_bound_bytes == made.given_bound_bytes
