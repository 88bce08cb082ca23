"""What contraction templates share: kernel parameters, and the ops that consume the result.

The ops behind an anchor are composed into one expression per output that reads the anchor's
element once. Where an output's indices can be computed from the anchor's (pointwise ops, but also
transposes and reshapes), the kernel stores it straight from the accumulators.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import Expr, index, linear, load
from ...ops.operator import Elementwise, Injective, View
from ...ops.traverse import substitute, transform, walk
from ...ops.types import DType
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Composer, Indices, fresh
from .ir import Buffer, Prepared, Store
from .template import traffic

Operand = Callable[[str, Indices], Expr | None]


class Params:
    """The parameters of a kernel under construction and what each is bound to."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[Hashable, tuple[Buffer, str | Prepared | None]] = {}

    def _add(self, key: Hashable, made: Buffer, arg: str | Prepared | None) -> Buffer:
        return self._found.setdefault(key, (made, arg))[0]

    def _name(self, stem: str) -> str:
        return f"{stem}{sum(1 for b, _ in self._found.values() if b.name.startswith(stem))}"

    def read(self, blob: str) -> Buffer:
        b = self.graph.blobs[blob]
        role = "const" if b.is_constant else "in"
        made = Buffer(self._name("x"), b.type.dtype, b.type.span, role)  # type: ignore[arg-type]
        return self._add(("read", blob), made, blob)

    def prepared(self, what: Prepared, dtype: DType, elements: int) -> Buffer:
        key = ("prepared", what.blobs, what.recipe)
        return self._add(key, Buffer(self._name("w"), dtype, elements, "const"), what)

    def write(self, blob: str) -> Buffer:
        t = self.graph.type(blob)
        made = Buffer(self._name("y"), t.dtype, t.span, "out")
        return self._add(("write", blob), made, blob)

    def scratch(self, dtype: DType, elements: int) -> Buffer:
        name = self._name("s")
        return self._add(("scratch", name), Buffer(name, dtype, elements, "scratch"), None)

    def lower(self, value: Expr, operand: Operand | None = None) -> Expr:
        """Loads of blobs at logical indices become loads of buffers. operand: may take over one."""

        def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if n.op != "load" or isinstance(n.payload, Buffer):
                return None
            special = None if operand is None else operand(n.payload, args)
            if special is not None:
                return special
            return self.read(n.payload)[offset(self.graph.type(n.payload), args)]

        return transform(value, visit)

    @property
    def ordered(self) -> list[tuple[Buffer, str | Prepared | None]]:
        """Inputs, then outputs, then scratch."""
        rank = {"in": 0, "const": 0, "out": 1, "scratch": 2}
        return sorted(self._found.values(), key=lambda p: rank[p[0].role])

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return tuple(b for b, _ in self.ordered)

    @property
    def args(self) -> tuple[str | Prepared | None, ...]:
        return tuple(a for _, a in self.ordered)

    @property
    def traffic(self) -> int:
        """Bytes of everything but scratch."""
        return traffic(self.graph, self.buffers, self.args)


@dataclass(frozen=True, slots=True)
class Result:
    """An output blob as a function of the anchor's indices: where its element lies, what it is."""

    blob: str
    at: Indices
    value: Expr


def results(
    graph: Graph, after: Sequence[Op], anchor: str, outputs: Sequence[str], at: Indices
) -> list[Result] | None:
    """Every output over the anchor's logical indices `at`; `load(anchor, at)` stands for the
    accumulated element. None where an output does not follow the anchor element by element."""
    if not all(_is_movable(op) for op in after):
        return None
    here = load(anchor, at, graph.type(anchor).dtype)
    composer = Composer(graph, after)
    found = []
    for name in outputs:
        if name == anchor:
            found.append(Result(name, at, here))
            continue
        kind = graph.type(name)
        if name not in composer.inside or prod(kind.dims) != prod(graph.type(anchor).dims):
            return None
        formal = fresh(kind.dims, "o")
        value = composer.element(name, formal)
        reads = {n for n in walk(value) if n.op == "load" and n.payload == anchor}
        if len(reads) != 1:
            return None
        read = reads.pop()
        inverse = _invert(read.args, graph.type(anchor).dims, at)
        if inverse is None or not all(v in inverse for v in formal if v.op == "var"):
            return None
        value = substitute(value, {**inverse, read: here})
        found.append(Result(name, tuple(inverse.get(v, v) for v in formal), value))
    return found


def _is_movable(op: Op) -> bool:
    known = op.has(Elementwise) or op.has(Injective) or op.has(View)
    return known and op.definition.compute is not None


def _invert(read: Indices, dims: tuple[int, ...], at: Indices) -> dict[Expr, Expr] | None:
    """Variables v such that read(v) = at, for mixed-radix index arithmetic; None for any other."""
    known: dict[Expr, Expr] = {}
    digits: dict[Expr, list[tuple[int, int, Expr]]] = {}
    for e, d, here in zip(read, dims, at, strict=True):
        if d == 1:
            continue
        digit = _digit(e, d)
        if digit is not None:
            v, unit = digit
            digits.setdefault(v, []).append((unit, d, here))
            continue
        terms, c = linear(e)
        step = d
        for v, factor in sorted(terms.items(), key=lambda t: -t[1]):
            if v.op != "var" or v in known or v.payload[1] or step != factor * v.payload[2]:
                return None
            known[v] = here // factor % v.payload[2] if step != d else here // factor
            step = factor
        if c or step != 1:
            return None
    for v, parts in digits.items():
        if v in known:
            return None
        unit, total = 1, index(0)
        for factor, d, here in sorted(parts, key=lambda p: p[0]):
            if factor != unit:
                return None
            total, unit = total + here * factor, unit * d
        if unit != v.payload[2] or v.payload[1]:
            return None
        known[v] = total
    return known


def _digit(e: Expr, extent: int) -> tuple[Expr, int] | None:
    """(v, unit) for an index v // unit % extent of a variable v."""
    if e.op == "mod" and e.args[1].is_const and e.args[1].payload == extent:
        e = e.args[0]
    unit = 1
    if e.op == "floordiv" and e.args[1].is_const:
        e, unit = e.args[0], int(e.args[1].payload)
    return (e, unit) if e.op == "var" else None


def lowered(
    params: Params, found: Sequence[Result], anchor: str, operand: Operand | None = None
) -> list[Store]:
    """The stores of all results over the anchor's indices; loads of the anchor are kept."""
    kind = params.graph.type(anchor).dtype

    def source(blob: str, at: Indices) -> Expr | None:
        if blob == anchor:
            return load(anchor, at, kind)
        return None if operand is None else operand(blob, at)

    return [
        Store(params.write(r.blob), offset(params.graph.type(r.blob), r.at),
              params.lower(r.value, source))
        for r in found
    ]  # fmt: skip


def place(store: Store, where: dict[Expr, Expr]) -> Store:
    """A store with its variables (and the anchor's element) replaced."""
    return Store(store.buffer, substitute(store.offset, where), substitute(store.value, where))


def inplace(
    params: Params, stores: Sequence[Store], busy: Sequence[Buffer], early: Sequence[Buffer] = ()
) -> tuple[tuple[int, int], ...]:
    """Pairs (output, input) that may share memory: the input is read only by the one store, at the
    place stored to. busy: inputs that the contraction itself reads. early: those that it reads in a
    phase before the one that stores, and the store perhaps."""
    if len(stores) != 1:
        return ()
    target = stores[0]
    order = params.buffers
    pairs = []
    for k, x in enumerate(order):
        reads = [n for n in walk(target.value) if n.op == "load" and n.payload == x]
        fits = x.nbytes == target.buffer.nbytes and x.dtype.bytes == target.buffer.dtype.bytes
        same = bool(reads or x in early) and all(n.args[0] is target.offset for n in reads)
        if x.role == "in" and x not in busy and fits and same:
            pairs.append((order.index(target.buffer), k))
    return tuple(pairs)
