"""A small typed emitter of LLVM IR text: values, arithmetic, memory, loops and branches.

Text, not llvmlite's object builder: it is ten times faster to make and reads the same in a dump.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from ....ops.types import DType, boolean, f32, i32, i64

ATTRIBUTES: Final = 'nounwind "no-trapping-math"="true" "prefer-vector-width"="512" "stackrealign"'
"""stackrealign: what registers have no room for lies on cache lines of the stack. The system aligns
stacks to 16 bytes only, so that vectors of 64 would mostly lie on two lines each."""

LOOP_TAIL = """\
!0 = distinct !{!0, !1}
!1 = !{!"llvm.loop.unroll.disable"}
"""


class Value(NamedTuple):
    """An SSA value or literal. lanes == 0: a scalar. number: set when it is a known i64."""

    text: str
    dtype: DType
    lanes: int = 0
    number: int | None = None

    @property
    def type(self) -> str:
        return register_type(self.dtype, self.lanes)

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


_SCALAR = {"f16": "half", "bf16": "i16", "f32": "float", "f64": "double", "bool": "i1"}


def scalar_type(dtype: DType) -> str:
    return _SCALAR.get(dtype.name) or f"i{dtype.bits}"


@lru_cache(1 << 8)
def register_type(dtype: DType, lanes: int) -> str:
    one = scalar_type(dtype)
    return f"<{lanes} x {one}>" if lanes else one


@lru_cache(1 << 8)
def memory_type(dtype: DType, lanes: int) -> str:
    """Booleans take a byte in memory."""
    one = "i8" if dtype is boolean else scalar_type(dtype)
    return f"<{lanes} x {one}>" if lanes else one


def literal(value: float | int | bool, dtype: DType) -> str:
    """The value, rounded to the element type, as LLVM writes it."""
    if dtype is boolean:
        return "true" if value else "false"
    if not dtype.is_float:
        return str(int(value))
    exact = float(value)
    if dtype.name == "f16":
        return f"0xH{_bits(exact, '<e'):04X}"
    if dtype.name == "bf16":  # an i16 to LLVM; nearest even, and NaN stays NaN
        bits = _bits(exact, "<f")
        odd = bits >> 16 & 1
        return str(0x7FC0 if exact != exact else (bits + 0x7FFF + odd) >> 16)
    if dtype is f32:
        exact = struct.unpack("<f", _bits(exact, "<f").to_bytes(4, "little"))[0]
    return f"0x{_bits(exact, '<d'):016X}"


def _bits(value: float, kind: str) -> int:
    """The bits of the nearest number of a `struct` format."""
    if value != value:
        value = math.nan  # of all NaNs the one that has no sign
    try:
        packed = struct.pack(kind, value)
    except OverflowError:
        packed = struct.pack(kind, math.copysign(math.inf, value))
    return int.from_bytes(packed, "little")


@lru_cache(1 << 12)
def number(value: int) -> Value:
    return Value(str(value), i64, 0, value)


@lru_cache(1 << 8)
def poison(dtype: DType, lanes: int) -> Value:
    """What a register holds before anything was written to it."""
    return Value("poison", dtype, lanes)


@dataclass(slots=True)
class Loop:
    """A loop under construction.

    var: its variable. carried: values that change from round to round: inside the loop, what they
    are when a round begins; the body leaves there what they are when it ends; after the loop, what
    they are then.
    """

    var: Value
    carried: list[Value] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a target computes in one instruction. fma: multiply-adds in one rounding; without them
    they take two, a call per element being the other way. rsqrt14: estimates of reciprocal square
    roots that are 14 bits right, in vectors of any width and for all numbers."""

    fma: bool = True
    rsqrt14: bool = False


class Function:
    """One function under construction.

    Instructions without side effects are written once: asking again for the same one in a place
    that the first dominates (see `scope`) gives its result.
    """

    def __init__(
        self, name: str, parameters: str, attributes: str, target: Arithmetic = Arithmetic()
    ) -> None:
        self.head = f"define void @{name}({parameters}) {attributes} {{"
        self.entry: list[str] = []
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self.block = "start"
        self.target = target
        self._n = 0
        self._values: dict[str, Value] = {}
        self._pointers: dict[str, str] = {}
        self._learnt: list[list[str]] = [[]]
        self._origins: list[tuple[int, int]] = []

    def finish(self) -> str:
        return self.text(self.head, self.lines)

    def text(self, head: str, lines: Sequence[str]) -> str:
        """The function with other lines in the place of its own."""
        return "\n".join(
            [head, "entry:", *self.entry, "  br label %start", "start:", *lines, "  ret void", "}"]
        )

    # ---------------------------------------------------------------- where lines come from

    def begin(self, origin: int) -> None:
        """What is written from now on has this origin, a number above 0."""
        self._origins.append((len(self.lines), origin))

    def origins(self) -> Iterator[tuple[str, int]]:
        """Every line of the body with its origin; 0 before the first `begin`."""
        waiting, origin = iter((*self._origins, (len(self.lines), 0))), 0
        at, following = next(waiting)
        for k, line in enumerate(self.lines):
            while k >= at:
                origin = following
                at, following = next(waiting)
            yield line, origin

    # ---------------------------------------------------------------- primitives

    def _name(self) -> str:
        self._n += 1
        return f"%v{self._n}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def make(self, text: str, dtype: DType, lanes: int) -> Value:
        name = self._name()
        self.lines.append(f"  {name} = {text}")
        return Value(name, dtype, lanes)

    def raw(self, text: str) -> str:
        name = self._name()
        self.lines.append(f"  {name} = {text}")
        return name

    def pure(self, text: str, dtype: DType, lanes: int) -> Value:
        """The result of an instruction that has no side effects."""
        found = self._values.get(text)
        if found is None:
            found = self._values[text] = self.make(text, dtype, lanes)
            self._learnt[-1].append(text)
        return found if found.dtype is dtype else Value(found.text, dtype, lanes)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Code that does not dominate what follows it: its results are forgotten there."""
        self._learnt.append([])
        yield
        for text in self._learnt.pop():
            self._values.pop(text, None)
            self._pointers.pop(text, None)

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def stack(self, dtype: DType, lanes: int, count: int) -> str:
        name = self._name()
        self.entry.append(f"  {name} = alloca [{count} x {memory_type(dtype, lanes)}], align 64")
        return name

    def call(self, function: str, dtype: DType, lanes: int, *args: Value) -> Value:
        """Call a function whose arguments and result are values."""
        result = register_type(dtype, lanes)
        kinds = [a.type for a in args]
        self.declarations.add(f"declare {result} @{function}({', '.join(kinds)})")
        given = ", ".join([f"{t} {a.text}" for t, a in zip(kinds, args, strict=True)])
        return self.make(f"call {result} @{function}({given})", dtype, lanes)

    # ---------------------------------------------------------------- constants and shapes

    def const(self, value: float | int | bool, dtype: DType, lanes: int = 0) -> Value:
        one = literal(value, dtype)
        if not lanes:
            n = int(value) if dtype is i64 else None
            return Value(one, dtype, 0, n)
        return Value(f"splat ({scalar_type(dtype)} {one})", dtype, lanes)

    def splat(self, x: Value, lanes: int) -> Value:
        if x.lanes or not lanes:
            return x
        if not x.text.startswith("%"):
            return Value(f"splat ({x.type} {x.text})", x.dtype, lanes)
        vector = register_type(x.dtype, lanes)
        one = self.pure(f"insertelement {vector} poison, {x}, i64 0", x.dtype, lanes).text
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.pure(f"shufflevector {vector} {one}, {vector} poison, {zeros}", x.dtype, lanes)

    def match(self, *values: Value) -> tuple[Value, ...]:
        lanes = max([v.lanes for v in values])
        return tuple([v if v.lanes == lanes else self.splat(v, lanes) for v in values])

    def iota(self, lanes: int) -> Value:
        return Value("<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">", i64, lanes)

    def opaque(self, x: Value) -> Value:
        """x, of which LLVM no longer knows how it was computed. If it saw through the indices that
        templates keep in locals, its loop strength reduction would weigh every way of stepping all
        addresses through all loops, which takes longer than the rest of code generation."""
        return self.make(f"freeze {x}", x.dtype, x.lanes)

    def extract(self, x: Value, k: int) -> Value:
        return self.pure(f"extractelement {x}, i64 {k}", x.dtype, 0)

    def shuffle(self, a: Value, b: Value | None, order: Sequence[int | None]) -> Value:
        """Lanes of a and b by their positions, a's first; any lane for None."""
        n = len(order)
        other = "poison" if b is None else b.text
        picks = ", ".join("i32 poison" if k is None else f"i32 {k}" for k in order)
        text = f"shufflevector {a}, {a.type} {other}, <{n} x i32> <{picks}>"
        return self.pure(text, a.dtype, n)

    # ---------------------------------------------------------------- arithmetic

    def op(self, op: str, a: Value, b: Value, dtype: DType | None = None) -> Value:
        a, b = self.match(a, b)
        return self.pure(f"{op} {a.type} {a.text}, {b.text}", dtype or a.dtype, a.lanes)

    def add(self, a: Value, b: Value) -> Value:
        if a.number is not None and b.number is not None:
            return number(a.number + b.number)
        if a.number == 0:
            return b
        if b.number == 0:
            return a
        return self.op("add", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        if a.number is not None and b.number is not None:
            return number(a.number - b.number)
        return a if b.number == 0 else self.op("sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        if a.number is not None and b.number is not None:
            return number(a.number * b.number)
        if a.number == 1:
            return b
        if b.number == 1:
            return a
        return self.op("mul", a, b)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, in one rounding where the target has the instruction."""
        if not self.target.fma:
            return self.op("fadd", self.op("fmul", a, b), c)
        a, b, c = self.match(a, b, c)
        return self.call(self.intrinsic("fma", a), a.dtype, a.lanes, a, b, c)

    def intrinsic(self, name: str, like: Value) -> str:
        kind = f"{'f' if like.dtype.is_float else 'i'}{like.dtype.bits}"
        return f"llvm.{name}.{f'v{like.lanes}' if like.lanes else ''}{kind}"

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        a, b = self.match(a, b)
        kind = "fcmp" if a.dtype.is_float else "icmp"
        return self.pure(f"{kind} {predicate} {a.type} {a.text}, {b.text}", boolean, a.lanes)

    def select(self, c: Value, a: Value, b: Value) -> Value:
        lanes = max(c.lanes, a.lanes, b.lanes)
        a, b = self.splat(a, lanes), self.splat(b, lanes)
        return self.pure(f"select {c}, {a}, {b}", a.dtype, lanes)

    def convert(self, how: str, x: Value, dtype: DType) -> Value:
        return self.pure(f"{how} {x} to {register_type(dtype, x.lanes)}", dtype, x.lanes)

    # ---------------------------------------------------------------- memory

    def element(self, base: str, dtype: DType, at: Value, more: int = 0) -> str:
        """The address of element at + more. What `more` adds becomes part of the instruction that
        reads or writes there."""
        if at.number is not None:
            at, more = number(at.number + more), 0
        place = self._element(base, dtype, at.text)
        return self._element(place, dtype, str(more)) if more else place

    def _element(self, base: str, dtype: DType, at: str) -> str:
        if at == "0":
            return base
        text = f"getelementptr {memory_type(dtype, 0)}, ptr {base}, i64 {at}"
        found = self._pointers.get(text)
        if found is None:
            found = self._pointers[text] = self.raw(text)
            self._learnt[-1].append(text)
        return found

    def load(self, pointer: str, dtype: DType, lanes: int, align: int | None = None) -> Value:
        kind = memory_type(dtype, lanes)
        text = f"load {kind}, ptr {pointer}, align {align or dtype.bytes}"
        if dtype is not boolean:
            return self.make(text, dtype, lanes)
        byte = self.raw(text)
        zero = "zeroinitializer" if lanes else "0"
        return self.make(f"icmp ne {kind} {byte}, {zero}", boolean, lanes)

    def in_memory(self, x: Value) -> str:
        """x as it is stored, with its type."""
        if x.dtype is not boolean:
            return str(x)
        kind = memory_type(boolean, x.lanes)
        return f"{kind} {self.raw(f'zext {x} to {kind}')}"

    def store(self, x: Value, pointer: str, align: int | None = None) -> None:
        self.emit(f"store {self.in_memory(x)}, ptr {pointer}, align {align or x.dtype.bytes}")

    def _masked(self, kind: str, dtype: DType, lanes: int) -> tuple[str, str]:
        vector = memory_type(dtype, lanes)
        one = "i8" if dtype is boolean else scalar_type(dtype)
        name = {"half": "f16", "float": "f32", "double": "f64"}.get(one, one)
        return f"llvm.masked.{kind}.v{lanes}{name}", vector

    def masked_load(self, pointer: str, dtype: DType, lanes: int, mask: Value) -> Value:
        name, vector = self._masked("load", dtype, lanes)
        self.declarations.add(f"declare {vector} @{name}.p0(ptr, i32, <{lanes} x i1>, {vector})")
        text = (f"call {vector} @{name}.p0(ptr {pointer}, i32 {dtype.bytes}, {mask}, "
                f"{vector} zeroinitializer)")  # fmt: skip
        return self._from_memory(text, dtype, lanes)

    def masked_store(self, x: Value, pointer: str, mask: Value) -> None:
        name, vector = self._masked("store", x.dtype, x.lanes)
        self.declarations.add(f"declare void @{name}.p0({vector}, ptr, i32, <{x.lanes} x i1>)")
        self.emit(f"call void @{name}.p0({self.in_memory(x)}, ptr {pointer}, "
                  f"i32 {x.dtype.bytes}, {mask})")  # fmt: skip

    def pointers(self, base: str, dtype: DType, at: Value) -> str:
        """One pointer per lane."""
        return self.raw(f"getelementptr {memory_type(dtype, 0)}, ptr {base}, {at}")

    def gather(self, pointers: str, dtype: DType, lanes: int, mask: Value) -> Value:
        name, vector = self._masked("gather", dtype, lanes)
        self.declarations.add(
            f"declare {vector} @{name}.v{lanes}p0(<{lanes} x ptr>, i32, <{lanes} x i1>, {vector})"
        )
        text = (f"call {vector} @{name}.v{lanes}p0(<{lanes} x ptr> {pointers}, "
                f"i32 {dtype.bytes}, {mask}, {vector} zeroinitializer)")  # fmt: skip
        return self._from_memory(text, dtype, lanes)

    def scatter(self, x: Value, pointers: str, mask: Value) -> None:
        name, vector = self._masked("scatter", x.dtype, x.lanes)
        n = x.lanes
        self.declarations.add(
            f"declare void @{name}.v{n}p0({vector}, <{n} x ptr>, i32, <{n} x i1>)"
        )
        self.emit(f"call void @{name}.v{n}p0({self.in_memory(x)}, <{n} x ptr> {pointers}, "
                  f"i32 {x.dtype.bytes}, {mask})")  # fmt: skip

    def _from_memory(self, text: str, dtype: DType, lanes: int) -> Value:
        if dtype is not boolean:
            return self.make(text, dtype, lanes)
        kind = memory_type(dtype, lanes)
        return self.make(f"icmp ne {kind} {self.raw(text)}, zeroinitializer", boolean, lanes)

    def prefetch(self, pointer: str, far: bool = False) -> None:
        """Bring a line into the first cache, or into the second only."""
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.emit(
            f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {2 if far else 3}, i32 1)"
        )

    # ---------------------------------------------------------------- control flow

    @contextmanager
    def counted(
        self, lo: Value, hi: Value, step: int, sure: bool, carried: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """for i in lo..hi by step; sure: at least one round is known to happen.

        carried: what the values that change from round to round are before the loop.
        """
        self._n += 1
        k = self._n
        body, done = f"loop{k}", f"done{k}"
        before = self.block
        if sure:
            self.emit(f"br label %{body}")
        else:
            some = self.compare("slt", lo, hi)
            self.emit(f"br {some}, label %{body}, label %{done}")
        self.label(body)
        where = len(self.lines)
        self.lines += [""] * (1 + len(carried))
        rounds = [Value(self._name(), v.dtype, v.lanes) for v in carried]
        loop = Loop(Value(f"%i{k}", i64), list(rounds))
        yield loop
        after = self.raw(f"add nsw i64 {loop.var.text}, {step}")
        again = self.raw(f"icmp slt i64 {after}, {hi.text}")
        self.emit(f"br i1 {again}, label %{body}, label %{done}, !llvm.loop !0")
        i, last = loop.var.text, self.block
        self.lines[where] = f"  {i} = phi i64 [{lo.text}, %{before}], [{after}, %{last}]"
        ends = list(zip(carried, loop.carried, strict=True))
        for line, (r, (first, end)) in enumerate(zip(rounds, ends, strict=True), where + 1):
            self.lines[line] = (
                f"  {r.text} = phi {r.type} [{first.text}, %{before}], [{end.text}, %{last}]"
            )
        self.label(done)
        if not sure:
            loop.carried[:] = [self.phi([(first, before), (end, last)]) for first, end in ends]

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        self._n += 1
        k = self._n
        self.emit(f"br {condition}, label %then{k}, label %end{k}")
        self.label(f"then{k}")
        yield
        self.emit(f"br label %end{k}")
        self.label(f"end{k}")

    def branch(self, condition: Value, arms: Sequence[str]) -> None:
        self.emit(f"br {condition}, label %{arms[0]}, label %{arms[1]}")

    def labels(self, *stems: str) -> list[str]:
        self._n += 1
        return [f"{s}{self._n}" for s in stems]

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")

    def phi(self, arms: Sequence[tuple[Value, str]]) -> Value:
        first = arms[0][0]
        pairs = ", ".join(f"[{v.text}, %{b}]" for v, b in arms)
        return self.make(f"phi {first.type} {pairs}", first.dtype, first.lanes)


__all__ = ["ATTRIBUTES", "LOOP_TAIL", "Function", "Loop", "Value", "i32", "literal", "memory_type",
           "number", "register_type", "scalar_type"]  # fmt: skip
