"""Kernel IR to LLVM IR text.

Expressions are lowered SPMD style: outside a vector loop everything is scalar; inside, an
expression that depends on the loop's variable becomes a vector and every other one stays scalar and
is splat where it meets a vector. A load whose offset moves by one element per lane is a vector
load, any other varying offset a gather. Partial rounds run under a mask.

Locals whose indices are static once loops are unrolled live in registers, in SSA form; the others
on the stack. Equal expressions are lowered once per region of straight-line code: what only reads
constants, inputs and loop variables stays known until the region ends, what reads locals or written
buffers until the end of the statement. Addresses are a moving part, computed once per region, plus
a constant that costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

from ....ops.expr import Expr, bounds, index, linear, var
from ....ops.traverse import walk
from ....ops.types import boolean, i64
from ...errors import LoweringError
from ...kernels.access import is_multiple
from ...kernels.ir import (
    Buffer,
    Comment,
    Declare,
    For,
    If,
    Kernel,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    Transpose,
    statements,
)
from ...kernels.printer import symbol
from . import spread
from .arithmetic import call, convert, lanes_reduce
from .llvm_text import ATTRIBUTES, LOOP_TAIL, Arithmetic, Function, Loop, Value, number
from .registers import Held, Registers
from .transpose import transposed


@dataclass(frozen=True, slots=True)
class Sum:
    """An index as a linear combination of atoms, given with their factors, and a constant."""

    terms: tuple[tuple[Expr, int], ...]
    constant: int


class Lowering:
    """Lowers one phase of a kernel into one function `void f(ptr table, i64 item)`."""

    def __init__(self, kernel: Kernel, phase: Phase, name: str, target: Arithmetic) -> None:
        self.kernel = kernel
        parameters = "ptr noalias nocapture readonly %table, i64 %item"
        self.f = Function(name, parameters, ATTRIBUTES, target)
        self.values: dict[Expr, Value] = {phase.item: Value("%item", i64)}
        self.unrolled: dict[Expr, int] = {}
        self.lanes: spread.Lanes | None = None
        self.pointers: dict[Buffer, str] = {}
        self.registers = Registers(phase)
        self.locals: dict[Local, str] = {}
        self.known: dict[object, Value] = {}
        self.learnt: list[list[object]] = [[]]
        self.passing: dict[object, Value] = {}
        self.constants: dict[Expr, Value] = {}
        self.sums: dict[Expr, Sum] = {}
        self.rounds_seen = 0
        self.written = {
            s.buffer for p in kernel.phases for s in statements(p.body) if isinstance(s, Store)
        }
        self._unstable: dict[Expr, bool] = {}
        self._lane_local: dict[Expr, bool] = {}
        if phase.items == 1:
            self.values[phase.item] = number(0)
        for k, b in enumerate(kernel.params):
            slot = self.f.raw(f"getelementptr ptr, ptr %table, i64 {k}")
            self.pointers[b] = self.f.raw(f"load ptr, ptr {slot}, align 8")
        self.body(phase.body)

    # ---------------------------------------------------------------- statements

    @contextmanager
    def region(self) -> Iterator[None]:
        """Code that may not run, or runs several times: what it learns is forgotten after it."""
        self.learnt.append([])
        saved, self.passing = self.passing, {}
        with self.f.scope():
            yield
        self.passing = saved
        for key in self.learnt.pop():
            del self.known[key]

    def body(self, stmts: Iterable[Stmt]) -> None:
        for s in stmts:
            self.passing = {}
            self.statement(s)

    def statement(self, s: Stmt) -> None:
        if isinstance(s, For):
            {"serial": self.serial, "unroll": self.unroll, "vector": self.vector}[s.kind](s)
        elif isinstance(s, Set):
            self.set(s)
        elif isinstance(s, Store):
            self.store(s)
        elif isinstance(s, Declare):
            if s.local in self.registers:
                self.registers.forget(s.local)
            elif s.local not in self.locals:
                loc = s.local
                self.locals[loc] = self.f.stack(loc.dtype, loc.lanes, prod(loc.shape))
        elif isinstance(s, If):
            self.branch(s)
        elif isinstance(s, Transpose):
            self.transpose(s.local)
        elif isinstance(s, Prefetch):
            self.f.prefetch(self.element(s.buffer, s.offset), s.far)
        elif not isinstance(s, Comment):
            raise LoweringError(f"the CPU has no lowering for the statement {type(s).__name__}")

    def serial(self, s: For) -> None:
        lo, hi = self.scalar(s.lo), self.scalar(s.hi)
        if lo.number is not None and hi.number is not None:
            if hi.number <= lo.number:
                return
            if hi.number - lo.number <= s.step:
                self._bound(s.var, lo, s.body)
                return
        b0, b1 = bounds(s.lo), bounds(s.hi)
        sure = b0 is not None and b1 is not None and b0[1] < b1[0]
        with self.rounds(lo, hi, s.step, sure, s.body) as i:
            self._bound(s.var, i, s.body)

    @contextmanager
    def rounds(
        self, lo: Value, hi: Value, step: int, sure: bool, body: tuple[Stmt, ...]
    ) -> Iterator[Value]:
        """A loop over `body`, which is lowered inside; gives the loop's variable."""
        registers = self.registers
        places = registers.carried(body)
        loop: Loop
        with self.f.counted(lo, hi, step, sure, registers.holding(places)) as loop:
            registers.begin(places, loop.carried)
            with self.region():
                yield loop.var
            loop.carried[:] = registers.end(places, (body,))
        registers.begin(places, loop.carried)

    def _bound(self, v: Expr, value: Value, body: Iterable[Stmt]) -> None:
        if value.number is not None:
            self._unrolled_once(v, value.number, body)
            return
        self.values[v] = value
        self.body(body)
        del self.values[v]

    def _unrolled_once(self, v: Expr, value: int, body: Iterable[Stmt]) -> None:
        self.values[v] = number(value)
        self.unrolled[v] = value
        self.body(body)
        del self.unrolled[v], self.values[v]

    def unroll(self, s: For) -> None:
        lo, hi = self.scalar(s.lo), self.scalar(s.hi)
        if lo.number is None or hi.number is None:
            raise LoweringError(f"the unrolled loop over {s.var!r} has no static bounds")
        for k in range(lo.number, hi.number, s.step):
            self._unrolled_once(s.var, k, s.body)

    def branch(self, s: If) -> None:
        c = self.scalar(s.condition)
        if c.text in ("true", "false"):
            self.body(s.then if c.text == "true" else s.otherwise)
            return
        yes, no, end = self.f.labels("yes", "no", "fi")
        self.f.branch(c, (yes, no))
        before = self.registers.held
        ends: list[tuple[Held, str]] = []
        for label, arm in ((yes, s.then), (no, s.otherwise)):
            self.f.label(label)
            self.registers.held = dict(before)
            with self.region():
                self.body(arm)
            self.registers.end((), (s.then, s.otherwise))
            ends.append((self.registers.held, self.f.block))
            self.f.jump(end)
        self.f.label(end)
        self.registers.merge(self.f, ends)

    def vector(self, s: For) -> None:
        if self.lanes is not None:
            raise LoweringError(f"vector loops cannot nest (over {s.var!r})")
        lo, hi, n = self.scalar(s.lo), self.scalar(s.hi), s.lanes
        if lo.number is not None and hi.number is not None:
            whole = max(0, hi.number - lo.number) // n * n
            if whole == n:
                self._round(s, lo, n, None)
            elif whole:
                with self.rounds(lo, number(lo.number + whole), n, True, s.body) as i:
                    self._round(s, i, n, None)
            rest = hi.number - lo.number - whole
            if rest > 0:
                on = ", ".join("i1 true" if k < rest else "i1 false" for k in range(n))
                with self.region():
                    self._round(s, number(lo.number + whole), n, Value(f"<{on}>", boolean, n))
            return
        if (s.hi - s.lo) is index(n):
            self._round(s, lo, n, None)
            return
        even = is_multiple(s.lo, n) and is_multiple(s.hi, n)
        end = hi if even else self.f.sub(hi, number(n - 1))
        with self.rounds(lo, end, n, False, s.body) as i:
            self._round(s, i, n, None)
        if even:
            return
        span = self.f.sub(hi, lo)
        rest_value = self.f.op("srem", span, number(n))
        start = self.f.sub(hi, rest_value)
        some = self.f.compare("sgt", rest_value, number(0))
        before, block = self.registers.held, self.f.block
        self.registers.held = dict(before)
        with self.f.when(some):
            with self.region():
                mask = self.f.compare("slt", self.f.iota(n), rest_value)
                self._round(s, start, n, mask)
            self.registers.end((), (s.body,))
            ends = [(self.registers.held, self.f.block), (before, block)]
        self.registers.merge(self.f, ends)

    def _round(self, s: For, first: Value, count: int, mask: Value | None) -> None:
        self.lanes = spread.Lanes(s.var, first, count, mask, self._base(s, first, count))
        self.body(s.body)
        self.lanes = None

    def _base(self, s: For, first: Value, count: int) -> Expr:
        """The loop's variable in lane 0 as index arithmetic can work with it."""
        if first.number is not None:
            return index(first.number)
        name, lo, hi = s.var.payload
        self.rounds_seen += 1
        name = f"{name}.{self.rounds_seen}"
        if not is_multiple(s.lo, count):
            base = var(name, hi - lo, lo)
            self.values[base] = first
            return base
        steps = var(name, -(-hi // count) - lo // count, lo // count)
        self.values[steps] = self.f.op("ashr", first, number(count.bit_length() - 1))
        return steps * count

    def set(self, s: Set) -> None:
        loc = s.local
        value = self.lower(s.value)
        if loc.lanes:
            value = self.f.splat(value, loc.lanes)
        elif value.lanes:
            raise LoweringError(f"a vector is assigned to the scalar local {loc.name}")
        mask = self.lanes.mask if self.lanes is not None and loc.lanes else None
        if loc.dtype is i64 and not value.lanes and value.number is None:
            value = self.f.opaque(value)  # an index that is computed once, here
        if loc in self.registers:
            flat = self._flat(loc, s.where)
            if mask is not None:
                value = self.f.select(mask, value, self.registers.get(loc, flat))
            self.registers.put(loc, flat, value)
            return
        at = self._local_pointer(loc, s.where)
        align = 64 if loc.lanes else loc.dtype.bytes
        if mask is not None:
            value = self.f.select(mask, value, self.f.load(at, loc.dtype, loc.lanes, 1))
        self.f.store(value, at, min(align, max(loc.lanes, 1) * loc.dtype.bytes))

    def transpose(self, loc: Local) -> None:
        if loc not in self.registers or loc.shape != (loc.lanes,):
            raise LoweringError(f"the local {loc.name} is not a square of registers")
        rows = [self.registers.get(loc, k) for k in range(loc.lanes)]
        for k, row in enumerate(transposed(self.f, rows)):
            self.registers.put(loc, k, row)

    def _flat(self, loc: Local, where: tuple[Expr, ...]) -> int:
        """The static index of a local's element in a register."""
        at = 0
        for i, d in zip(where, loc.shape, strict=True):
            n = i.payload if i.op == "const" else self.unrolled.get(i)
            if n is None:
                n = self.scalar(i).number
            if n is None:
                raise LoweringError(f"the index {i!r} of the local {loc.name} is not static")
            at = at * d + n
        return at

    def _local_pointer(self, loc: Local, where: tuple[Expr, ...]) -> str:
        if loc not in self.locals:
            raise LoweringError(f"the local {loc.name} is used before it is declared")
        at = number(0)
        for i, d in zip(where, loc.shape, strict=True):
            at = self.f.add(self.f.mul(at, number(d)), self.scalar(i))
        step = number(max(loc.lanes, 1))
        return self.f.element(self.locals[loc], loc.dtype, self.f.mul(at, step))

    def store(self, s: Store) -> None:
        b = s.buffer
        value = self.lower(s.value)
        if self.lanes is None:
            if value.lanes:
                raise LoweringError(f"a vector is stored to {b.name} outside a vector loop")
            self.f.store(value, self.element(b, s.offset))
            return
        n, mask = self.lanes.count, self.lanes.mask
        stride = self.stride(s.offset)
        if stride == 0:
            raise LoweringError(f"all lanes store to one place of {b.name}")
        value = self.f.splat(value, n)
        if stride == 1:
            p = self.f.element(self.pointers[b], b.dtype, *self._moving(s.offset))
            if mask is None:
                self.f.store(value, p, b.dtype.bytes)
            else:
                self.f.masked_store(value, p, mask)
            return
        places = self.f.pointers(self.pointers[b], b.dtype, self.lower(s.offset))
        self.f.scatter(value, places, mask or self.f.const(True, boolean, n))

    # ---------------------------------------------------------------- expressions

    def scalar(self, e: Expr) -> Value:
        """A uniform value."""
        value = self.lower(e)
        if value.lanes:
            raise LoweringError(f"{e!r} must not differ between lanes")
        return value

    def lower(self, e: Expr) -> Value:
        if e.op == "const":
            found = self.constants.get(e)
            if found is None:
                found = self.constants[e] = self.f.const(e.payload, e.dtype)
            return found
        if e.op == "var":
            return self.variable(e)
        if e.op == "load" and isinstance(e.payload, Local) and e.payload in self.registers:
            return self.registers.get(e.payload, self._flat(e.payload, e.args))
        if self.unstable(e):  # known within one statement, where nothing that it reads changes
            found = self.passing.get(e)
            if found is None:
                found = self.passing[e] = self.compute(e)
            return found
        key: object = e
        if self.unrolled and not e.free.isdisjoint(self.unrolled):
            key = (e, *map(self.unrolled.get, e.free))
        if self.lanes is not None and self.varying(e):
            mask = self.lanes.mask
            key = (key, self.lanes.first.text, self.lanes.count, mask and mask.text)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self.compute(e)
            self.learnt[-1].append(key)
        return found

    def variable(self, e: Expr) -> Value:
        found = self.values.get(e)
        if found is not None:
            return found
        if self.lanes is not None and e is self.lanes.var:
            return self.f.add(self.lanes.first, self.f.iota(self.lanes.count))
        raise LoweringError(f"the variable {e!r} is used outside its loop")

    def unstable(self, e: Expr) -> bool:
        """Whether the value may change between statements."""
        found = self._unstable.get(e)
        if found is None:
            mine = e.op == "load" and (isinstance(e.payload, Local) or e.payload in self.written)
            found = self._unstable[e] = mine or any(self.unstable(a) for a in e.args)
        return found

    def varying(self, e: Expr) -> bool:
        """Whether lanes may differ in e."""
        if self.lanes is None:
            return False
        return self.lanes.var in e.free or self._reads_lanes(e)

    def _reads_lanes(self, e: Expr) -> bool:
        found = self._lane_local.get(e)
        if found is None:
            mine = e.op == "load" and isinstance(e.payload, Local) and e.payload.lanes > 0
            found = self._lane_local[e] = mine or any(self._reads_lanes(a) for a in e.args)
        return found

    def compute(self, e: Expr) -> Value:
        if e.op == "load":
            if isinstance(e.payload, Local):
                loc = e.payload
                width = min(64, max(loc.lanes, 1) * loc.dtype.bytes)
                return self.f.load(self._local_pointer(loc, e.args), loc.dtype, loc.lanes, width)
            return self.load(e.payload, e.args[0])
        if e.op == "select":
            return self.select(e)
        if e.dtype is i64 and e.op in ("add", "mul") and not self.varying(e):
            return self._sum(e)
        if e.op == "cast":
            return convert(self.f, self.lower(e.args[0]), e.dtype)
        if e.op in ("hsum", "hprod", "hmax", "hmin"):
            return lanes_reduce(self.f, e.op[1:], self.lower(e.args[0]))
        nonnegative = all((b := bounds(a)) is not None and b[0] >= 0 for a in e.args)
        return call(self.f, e.op, [self.lower(a) for a in e.args], e.dtype, nonnegative)

    def _sum(self, e: Expr) -> Value:
        """A uniform index: moving parts first, the constant last, so that neighbours share them."""
        if len(self._linear(e).terms) == 1 and self._linear(e).terms[0][0] is e:
            return call(self.f, e.op, [self.lower(a) for a in e.args], e.dtype, False)
        moving, fixed = self._moving(e)
        return self.f.add(moving, number(fixed))

    def _linear(self, e: Expr) -> Sum:
        found = self.sums.get(e)
        if found is None:
            terms, constant = linear(e)
            found = self.sums[e] = Sum(tuple(terms.items()), constant)
        return found

    def _moving(self, e: Expr) -> tuple[Value, int]:
        """A uniform index, or that of lane 0, as what is not static plus a number."""
        total = self._linear(e)
        fixed, parts = total.constant, []
        for atom, factor in total.terms:
            if self.lanes is not None and atom is self.lanes.var:
                one = self.lanes.first
            else:
                one = self.lower(atom)
            if one.number is not None:
                fixed += one.number * factor
            else:
                parts.append((one, factor))
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0], fixed
        key = ("sum", *[(one.text, factor) for one, factor in parts])
        moving = self.known.get(key)
        if moving is None:
            moving = number(0)
            for one, factor in parts:
                moving = self.f.add(moving, self.f.mul(one, number(factor)))
            self.known[key] = moving
            self.learnt[-1].append(key)
        return moving, fixed

    def element(self, b: Buffer, at: Expr) -> str:
        """The address of an element at a uniform offset."""
        if self.varying(at):
            raise LoweringError(f"{at!r} must not differ between lanes")
        return self.f.element(self.pointers[b], b.dtype, *self._moving(at))

    def stride(self, at: Expr) -> int | None:
        """How far an offset moves from lane to lane, where that is 0 or 1; else None."""
        assert self.lanes is not None
        if not self.varying(at):
            return 0
        lane, terms = self.lanes.var, self._linear(at).terms
        if any(factor != 1 if atom is lane else self.varying(atom) for atom, factor in terms):
            return None
        return 1 if any(atom is lane for atom, _ in terms) else None

    def load(self, b: Buffer, at: Expr) -> Value:
        if b not in self.pointers:
            raise LoweringError(f"the kernel has no parameter {b.name}")
        if self.lanes is None:
            return self.f.load(self.element(b, at), b.dtype, 0)
        stride = self.stride(at)
        if stride is None:
            return self._spread(b, at) or self._gather(b, at)
        where, more = self._moving(at)
        if stride:
            return self._vector(b, where, more, self.lanes.mask)
        return self.f.load(self.f.element(self.pointers[b], b.dtype, where, more), b.dtype, 0)

    def _vector(self, b: Buffer, where: Value, more: int, mask: Value | None) -> Value:
        assert self.lanes is not None
        p = self.f.element(self.pointers[b], b.dtype, where, more)
        if mask is None:
            return self.f.load(p, b.dtype, self.lanes.count, b.dtype.bytes)
        return self.f.masked_load(p, b.dtype, self.lanes.count, mask)

    def _gather(self, b: Buffer, at: Expr) -> Value:
        assert self.lanes is not None
        n, mask = self.lanes.count, self.lanes.mask
        places = self.f.pointers(self.pointers[b], b.dtype, self.lower(at))
        return self.f.gather(places, b.dtype, n, mask or self.f.const(True, boolean, n))

    def _spread(self, b: Buffer, at: Expr) -> Value | None:
        """A load of lanes at distances that are known now; None where they are not, or too far."""
        assert self.lanes is not None
        lanes, mask = self.lanes, self.lanes.mask
        if self._reads_lanes(at):
            return None
        known = {v: index(k) for v, k in self.unrolled.items() if v in at.free}
        found = spread.plan(at, lanes, known, b.elements)
        if found is None:
            return None
        where, more = self._moving(found[0])
        loaded = []
        for w in found[1]:
            on = spread.window_mask(self.f, mask, w, lanes.count)
            key = ("window", b, where.text, more + w.start, on and on.text)
            value = self.known.get(key)
            if value is None:
                value = self._vector(b, where, more + w.start, on)
                if b not in self.written:
                    self.known[key] = value
                    self.learnt[-1].append(key)
            loaded.append((w, value))
        return spread.assemble(self.f, loaded)

    def select(self, e: Expr) -> Value:
        c = self.lower(e.args[0])
        arms = e.args[1:]
        if c.text in ("true", "false"):
            return self.lower(arms[0] if c.text == "true" else arms[1])
        if not any(n.op == "load" and isinstance(n.payload, Buffer) for n in walk(*arms)):
            return self.f.select(c, self.lower(arms[0]), self.lower(arms[1]))
        if c.lanes:
            return self._masked_select(c, arms)
        width = self.lanes.count if self.lanes is not None and any(map(self.varying, arms)) else 0
        labels = self.f.labels("yes", "no", "phi")
        self.f.branch(c, labels[:2])
        found = []
        for label, arm in zip(labels, arms, strict=False):
            self.f.label(label)
            with self.region():
                value = self.f.splat(self.lower(arm), width)
            found.append((value, self.f.block))
            self.f.jump(labels[2])
        self.f.label(labels[2])
        return self.f.phi(found)

    def _masked_select(self, c: Value, arms: tuple[Expr, ...]) -> Value:
        assert self.lanes is not None
        outer, n = self.lanes, self.lanes.count
        values = []
        for k, arm in enumerate(arms):
            mask = c if k == 0 else self.f.op("xor", c, self.f.const(True, boolean, n))
            if outer.mask is not None:
                mask = self.f.op("and", mask, outer.mask)
            self.lanes = replace(outer, mask=mask)
            with self.region():
                values.append(self._guarded(arm, mask))
            self.lanes = outer
        return self.f.select(c, values[0], values[1])

    def _guarded(self, arm: Expr, mask: Value) -> Value:
        """An arm whose uniform loads may only happen if some lane wants them."""
        if not any(n.op == "load" and isinstance(n.payload, Buffer) and not self.varying(n.args[0])
                   for n in walk(arm)):  # fmt: skip
            return self.lower(arm)
        n = mask.lanes
        bits = self.f.raw(f"bitcast {mask} to i{n}")
        some = Value(self.f.raw(f"icmp ne i{n} {bits}, 0"), boolean)
        yes, end = self.f.labels("some", "phi")
        before = self.f.block
        self.f.branch(some, (yes, end))
        self.f.label(yes)
        with self.region():
            value = self.f.splat(self.lower(arm), n)
        inner = self.f.block
        self.f.jump(end)
        self.f.label(end)
        zero = Value("zeroinitializer", value.dtype, n)
        return self.f.phi([(zero, before), (value, inner)])


def phase_symbols(kernel: Kernel) -> tuple[str, ...]:
    """The function that runs each phase."""
    return tuple(f"{symbol(kernel)}_p{k}" for k in range(len(kernel.phases)))


def module_text(kernel: Kernel, target: Arithmetic) -> str:
    """The LLVM module of one kernel: one function for every phase.

    target: what it computes in one instruction (`CpuTarget.arithmetic`): results may differ in the
    last place.
    Raises LoweringError naming the template where the Kernel IR is not valid.
    """
    functions: list[str] = []
    declarations: set[str] = set()
    for phase, name in zip(kernel.phases, phase_symbols(kernel), strict=True):
        try:
            made = Lowering(kernel, phase, name, target).f
        except LoweringError as e:
            raise LoweringError(f"kernel template {kernel.template}: {e}") from e
        functions.append(made.finish())
        declarations |= made.declarations
    return "\n\n".join([*functions, "\n".join(sorted(declarations)), LOOP_TAIL])
