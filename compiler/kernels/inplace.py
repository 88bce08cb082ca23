"""Which inputs a kernel's outputs may overwrite, read off the kernel's own loops.

An element of an input may be gone once the output's element in the same place is stored. So every
load must come before that store: in an earlier phase, or within the round of the loops that stores
it. Two forms of loads are recognised in one phase, from the offsets of loads and stores:

* of the very element that is stored later in the same round (pointwise operators);
* of a row that the round stores completely when it has read all it needs, as softmax and layer
  normalisation do.

All this holds for kernels that store every element of an output at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...ops.expr import Expr, bounds, linear, var
from ...ops.traverse import substitute, walk
from .ir import Buffer, Call, For, If, Let, Phase, Set, Stmt, Store, expressions, statements
from .vectors import spelled_out

Trail = tuple[tuple[int, object], ...]
"""The way to a statement, as (position in its body, statement), the outermost first. What is only
done otherwise stands under that branch instead of the `If`."""


@dataclass(frozen=True, slots=True)
class _Access:
    """A load or a store: at which offset, in which phase, in which statement."""

    at: Expr
    phase: int
    trail: Trail


def overwritable(
    params: Sequence[Buffer], phases: Sequence[Phase]
) -> tuple[tuple[int, int], ...]:  # fmt: skip
    """The pairs (output, input) of parameter positions that may be the same memory."""
    bodies = [spelled_out(p.body) for p in phases]
    hidden = {a for body in bodies for s in statements(body) if isinstance(s, Call)
              for a in s.args if isinstance(a, Buffer)}  # fmt: skip
    pairs = [
        (j, k)
        for j, y in enumerate(params)
        for k, x in enumerate(params)
        if (y.role, x.role) == ("out", "in")
        and (y.nbytes, y.dtype.bytes) == (x.nbytes, x.dtype.bytes)
        and not {x, y} & hidden  # intrinsics touch buffers at places that are not seen here
    ]
    if not pairs:
        return ()
    loads: dict[Buffer, list[_Access]] = {params[k]: [] for _, k in pairs}
    stores: dict[Buffer, list[_Access]] = {params[j]: [] for j, _ in pairs}
    read_back: set[Buffer] = set()
    items = [{v for v in (phase.item, phase.thread) if v is not None} for phase in phases]
    for number, body in enumerate(bodies):
        known = _set_once(body)
        items[number].update(known.values(), _named(body))
        for statement, trail in _statements(body):
            for e in walk(*expressions(statement)):
                if e.op == "load" and e.payload in loads:
                    at = substitute(e.args[0], known)
                    loads[e.payload].append(_Access(at, number, trail))
                elif e.op == "load" and e.payload in stores:
                    read_back.add(e.payload)
            if isinstance(statement, Store) and statement.buffer in stores:
                at = substitute(statement.offset, known)
                stores[statement.buffer].append(_Access(at, number, trail))
    return tuple(
        (j, k)
        for j, k in pairs
        if params[j] not in read_back
        and all(_in_time(load, stores[params[j]], items) for load in loads[params[k]])
    )  # fmt: skip


def _set_once(body: Sequence[Stmt]) -> dict[Expr, Expr]:
    """Variables for the locals that are set once, outside of all loops and branches, by the value
    that they hold."""
    sets = [s.local for s in statements(body) if isinstance(s, Set) and not s.where]
    return {s.local.value: var(s.local.name, 1 << 62) for s in body
            if isinstance(s, Set) and not s.where and sets.count(s.local) == 1}  # fmt: skip


def _named(body: Iterable[Stmt]) -> Iterator[Expr]:
    """Indices that get their names outside of all loops: of one item, there is one of each."""
    for s in body:
        if isinstance(s, Let):
            yield s.var
        elif isinstance(s, If):
            yield from _named((*s.then, *s.otherwise))


def _statements(body: Iterable[Stmt], way: Trail = ()) -> Iterator[tuple[Stmt, Trail]]:
    for position, s in enumerate(body):
        here = (*way, (position, s))
        yield s, here
        if isinstance(s, For):
            yield from _statements(s.body, here)
        elif isinstance(s, If):
            yield from _statements(s.then, here)
            yield from _statements(s.otherwise, (*way, (position, s.otherwise)))


def _in_time(load: _Access, stores: Sequence[_Access], items: Sequence[set[Expr]]) -> bool:
    """Whether nothing is stored where the load reads before it has. items: the variables that say
    in every phase who runs."""
    item = items[load.phase]
    if any(s.phase == load.phase and _is_row_of(load, s, item) for s in stores):
        return True
    return all(s.phase > load.phase or not _may_meet(load.at, s.at) for s in stores)


def _may_meet(x: Expr, y: Expr) -> bool:
    a, b = bounds(x), bounds(y)
    return a is None or b is None or (a[0] <= b[1] and b[0] <= a[1])


def _is_row_of(load: _Access, store: _Access, item: set[Expr]) -> bool:
    """Whether one round of the loops around both loads first, and then stores all that it loads."""
    depth = 0
    for one, other in zip(load.trail, store.trail, strict=False):
        if one[1] is not other[1]:
            break
        depth += 1
    together = depth == len(load.trail) == len(store.trail)
    if depth < len(load.trail) and load.trail[depth][0] >= store.trail[depth][0]:
        return False  # behind the store, in it, or only done where it is not
    if together and load.at is store.at:
        return True
    inner = [s for _, s in store.trail[depth:-1]]
    whole = [s for s in inner if isinstance(s, For) and _is_whole(s)]
    if len(whole) != len(inner) or _reads(load.at) or _reads(store.at):
        return False
    mine, first = linear(load.at)
    theirs, other_first = linear(store.at)
    if first != other_first:
        return False
    common = {*item, *(s.var for _, s in store.trail[:depth] if isinstance(s, For))}
    row = sorted((c, s.var.payload[1:]) for s in whole for v, c in theirs.items() if v is s.var)
    read = sorted((c, v.payload[1:]) for v, c in mine.items() if v.op == "var" and v not in common)
    rest = {v: c for v, c in theirs.items() if v.free <= common}
    return (
        rest == {v: c for v, c in mine.items() if v.free <= common}
        and len(rest) + len(row) == len(theirs)
        and len(rest) + len(read) == len(mine)
        and row == read
    )


def _reads(e: Expr) -> bool:
    """Whether an offset depends on what a local or a buffer holds."""
    return any(n.op == "load" for n in walk(e))


def _is_whole(loop: For) -> bool:
    """Whether a loop runs over all of its variable's range, one by one."""
    _, first, end = loop.var.payload
    lo, hi = bounds(loop.lo), bounds(loop.hi)
    return loop.step == 1 and lo == (first, first) and hi == (end, end)
