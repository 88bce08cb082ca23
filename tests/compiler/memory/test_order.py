"""Orders of execution against every other order, by brute force and by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.memory.buffers import BufferSpec, Step, live_ranges, resolve
from tilewright.compiler.memory.order import Ordering, reorder

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
