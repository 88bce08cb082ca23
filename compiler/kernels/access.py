"""How far apart the lanes of a load or a store are, and what that costs.

A load whose lanes lie at known distances needs windows: vectors of memory that hold the elements of
all lanes. Windows never touch memory that a gather would be kept from: they start at multiples of
the vector width where the buffer consists of whole vectors and the alignment is known, and
otherwise stay between the first and the last element read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...ops.expr import Expr, linear, var
from ...ops.traverse import substitute, walk
from .ir import Buffer, For, If, Kernel, Local, Stmt, Store, expressions
from .pieces import stride

MOST_WINDOWS = 4  # with more of them a gather is as good


@dataclass(frozen=True, slots=True)
class Window:
    """A vector of memory at `start` elements from lane 0's, of which the first `width` elements may
    be read. lanes: (lane, its position) of all lanes it holds the elements of."""

    start: int
    width: int
    lanes: tuple[tuple[int, int], ...]


def distances(
    at: Expr, lane: Expr, base: Expr, count: int, known: Mapping[Expr, Expr]
) -> tuple[Expr, tuple[int, ...]] | None:
    """(offset of lane 0, distance of every lane from it) where `lane` is base, base + 1, ...; None
    unless all distances are numbers. known: variables with a value."""
    zero = substitute(at, {**known, lane: base})
    apart = [0]
    for k in range(1, count):
        terms, d = linear(substitute(at, {**known, lane: base + k}) - zero)
        if terms:
            return None
        apart.append(d)
    return zero, tuple(apart)


def windows(apart: Sequence[int], elements: int, residue: int | None) -> tuple[Window, ...] | None:
    """The fewest windows over lanes at these distances, None if more than MOST_WINDOWS. residue:
    lane 0's offset modulo the vector width, if known."""
    n = width = len(apart)
    starts: list[int] = []
    if residue is not None and elements % n == 0:
        starts = sorted({(d + residue) // n * n - residue for d in apart})
    else:
        low, high = min(apart), max(apart)
        width = min(n, high - low + 1)
        for d in sorted(set(apart)):
            if not starts or d >= starts[-1] + width:
                starts.append(min(d, high + 1 - width))
    if len(starts) > MOST_WINDOWS:
        return None
    lanes: dict[int, list[tuple[int, int]]] = {s: [] for s in starts}
    for k, d in enumerate(apart):
        start = max(s for s in starts if s <= d)
        lanes[start].append((k, d - start))
    return tuple(Window(s, width, tuple(held)) for s, held in lanes.items() if held)


def residue_of(at: Expr, n: int) -> int | None:
    """at modulo n, where that is the same for all values of its variables."""
    terms, constant = linear(at)
    return None if any(f % n for f in terms.values()) else constant % n


def is_multiple(e: Expr, n: int) -> bool:
    """Whether e is surely a multiple of n."""
    if e.op in ("min", "max"):
        return all(is_multiple(a, n) for a in e.args)
    terms, constant = linear(e)
    return constant % n == 0 and all(k % n == 0 for k in terms.values())


# --------------------------------------------------------------------------- what is slow


def element_by_element(kernel: Kernel) -> tuple[str, ...]:
    """Buffers that vector loops read or write one element at a time, as "x0 is gathered", although
    all offsets are known: another layout or loop order would be faster."""
    found = dict.fromkeys(s for p in kernel.phases for s in _slow(p.body, None, {}))
    return tuple(found)


def _slow(body: Iterable[Stmt], lanes: For | None, known: Mapping[Expr, Expr]) -> Iterator[str]:
    for s in body:
        if lanes is not None:
            loads = [n for e in expressions(s) for n in walk(e) if n.op == "load"]
            for n in loads:
                if isinstance(n.payload, Buffer) and _is_apart(n, lanes, known):
                    yield f"{n.payload.name} is gathered"
            if isinstance(s, Store) and _is_scattered(s, lanes):
                yield f"{s.buffer.name} is scattered"
        if isinstance(s, For):
            first = {s.var: s.lo} if s.kind == "unroll" else {}
            inner = s if s.kind == "vector" else lanes
            yield from _slow(s.body, inner, {**known, **first})
        elif isinstance(s, If):
            yield from _slow((*s.then, *s.otherwise), lanes, known)


def _is_scattered(s: Store, lanes: For) -> bool:
    return stride(s.offset, lanes.var) != 1 and not _depends_on_data(s.offset)


def _is_apart(load: Expr, lanes: For, known: Mapping[Expr, Expr]) -> bool:
    """Whether a load needs a gather. known: one value of each unrolled variable."""
    at, v, n = load.args[0], lanes.var, lanes.lanes
    if v not in at.free or stride(at, v) in (0, 1) or _depends_on_data(at):
        return False
    name, lo, hi = v.payload
    aligned = is_multiple(lanes.lo, n)
    steps = var(f"{name}.", -(-hi // n) - lo // n, lo // n) if aligned else var(f"{name}.", hi, lo)
    found = distances(at, v, steps * n if aligned else steps, n, known)
    return (
        found is None or windows(found[1], load.payload.elements, residue_of(found[0], n)) is None
    )


def _depends_on_data(at: Expr) -> bool:
    return any(n.op == "load" and isinstance(n.payload, (Buffer, Local)) for n in walk(at))
