"""How long a kernel's own instructions keep a core busy at least, read off its Kernel IR.

Multiply-adds are not all that a core has to issue. Per class of instructions (`CLASSES`), vectors
are counted that the kernel's expressions, loads and stores need, and divided by what the machine
was measured to do of that class (`machine.Rates`). Different classes run side by side, so that the
slowest one is the least time: a bound on throughput (as in Treibig, Hager and Wellein's
execution-cache-memory model, or Intel's IACA), which knows no latencies. Nothing is counted twice
that a compiler could share or move out of a loop: an expression costs once per round of the
innermost loop on which it depends. Not counted at all: scalars, addresses, moves between registers,
and branches on data. So a kernel can be slower than this, and never faster.

What an operation consists of is asked of the code generator: it writes it, and the lines are
counted. There is no second table of costs.

Where lanes are idle, their instructions are needed nevertheless: the share of the multiply-add peak
(`profile.of_peak`) tells the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, Scalar
from ...ops.traverse import substitute, walk
from ...ops.types import DType, i64
from ..codegen.cpu.arithmetic import call, convert
from ..codegen.cpu.llvm_text import Arithmetic, Function, Value
from ..codegen.cpu.registers import Registers
from ..kernels.ir import (
    Buffer,
    Declare,
    For,
    If,
    Kernel,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    Transpose,
    statements,
)
from ..kernels.pieces import stride
from .machine import CLASSES, Rates

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.float64]
"""Full vectors by class."""

WINDOW: Final = 4096
"""Parts of a kernel that take so many instructions, several times what a core looks ahead, run one
after the other: each has a bound of its own. Smaller ones may overlap."""

SAMPLES: Final = 4096
"""Loops whose bounds depend on others have as many rounds as in the mean over so many cases."""

_NONE: Final[Mapping[Buffer, Array]] = MappingProxyType({})

AT: Final = {name: k for k, name in enumerate(CLASSES)}


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds that the instructions of a kernel take at least, by what binds: the arithmetic units
    (of vectors), or the ports that load and store."""

    arithmetic: float = 0.0
    loads: float = 0.0
    stores: float = 0.0

    def __add__(self, other: Busy) -> Busy:
        return Busy(self.arithmetic + other.arithmetic, self.loads + other.loads,
                    self.stores + other.stores)  # fmt: skip

    def __mul__(self, times: float) -> Busy:
        return Busy(self.arithmetic * times, self.loads * times, self.stores * times)

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.loads + self.stores

    @property
    def bound(self) -> str:
        """ "arithmetic", "loads" or "stores": what binds for longest."""
        named = {"arithmetic": self.arithmetic, "loads": self.loads, "stores": self.stores}
        return max(named, key=lambda k: named[k])


NOTHING: Final = Busy()


def busy(
    kernel: Kernel, target: Arithmetic, rates: Rates, tables: Mapping[Buffer, Array] = _NONE
) -> Busy:
    """What a machine with these rates needs at least for a kernel's instructions. tables: constants
    that tell how often loops run; without them such loops count for nothing."""
    out = Busy()
    for phase in kernel.phases:
        fixed, loose = _least(counted(phase, target, rates.vector_bytes, tables), rates)
        out = out + fixed + _bound(loose, rates)
    return out


def _least(frame: Frame, rates: Rates) -> tuple[Busy, Counts]:
    """Of all executions of a frame within one round of its parent: the seconds of parts that stand
    for themselves, and the vectors of the rest."""
    fixed, loose = Busy(), frame.counts.copy()
    for inner in frame.inner:
        more, counts = _least(inner, rates)
        fixed, loose = fixed + more, loose + counts
    if loose.sum() * frame.rounds >= WINDOW:
        fixed, loose = fixed + _bound(loose, rates), np.zeros(len(CLASSES))
    times = frame.rounds * frame.times
    return fixed * times, loose * times


def _bound(counts: Counts, rates: Rates) -> Busy:
    """The class that takes longest."""
    r = rates
    n = dict(zip(CLASSES, counts.tolist(), strict=True))
    pipes = n["multiply"] + n["add"] + n["simple"] + n["shuffle"]
    arithmetic = max(
        n["multiply"] / r.multiply, n["add"] / r.add, n["shuffle"] / r.shuffle, pipes / r.any,
        n["divide"] / r.divide + n["sqrt"] / r.sqrt,
    )  # fmt: skip
    loads, stores = n["load"] / r.load + n["broadcast"] / r.broadcast, n["store"] / r.store
    if arithmetic >= max(loads, stores):
        return Busy(arithmetic=arithmetic)
    return Busy(loads=loads) if loads >= stores else Busy(stores=stores)


# --------------------------------------------------------------------------- counting


@dataclass(eq=False, slots=True)
class Frame:
    """A loop that is not unrolled. rounds: of one execution; times: executions in a round of the
    loop around it; counts: vectors of one round, without inner loops."""

    rounds: float
    times: float
    counts: Counts = field(default_factory=lambda: np.zeros(len(CLASSES)))
    inner: list[Frame] = field(default_factory=list)
    seen: dict[object, float] = field(default_factory=dict)

    def total(self) -> Counts:
        """Vectors of all rounds and executions."""
        inside = sum((f.total() for f in self.inner), self.counts)
        return inside * (self.rounds * self.times)


@dataclass(frozen=True, eq=False, slots=True)
class _Level:
    """A loop around what is being counted. frame: none if it is unrolled. changes: the locals and
    buffers that its body writes."""

    var: Expr
    rounds: float
    changes: frozenset[Local | Buffer]
    frame: Frame | None


def counted(
    phase: Phase, target: Arithmetic, vector_bytes: int, tables: Mapping[Buffer, Array] = _NONE
) -> Frame:
    """The vectors that all items of a phase need, by class and loop."""
    made = _Counter(phase, target, vector_bytes, tables)
    made.body(phase.body, 1.0)
    frame = made.path[0].frame
    assert frame is not None
    return frame


class _Counter:
    def __init__(
        self, phase: Phase, target: Arithmetic, vector_bytes: int, tables: Mapping[Buffer, Array]
    ) -> None:
        self.target, self.vector_bytes, self.tables = target, vector_bytes, tables
        self.registers = Registers(phase)
        self.indices = _indices(phase)
        whole = Frame(phase.items, 1.0)
        self.path = [_Level(phase.item, phase.items, _changes(phase.body), whole)]
        self.lanes: For | None = None
        self.reads: dict[Expr, frozenset[Local | Buffer]] = {}
        self.passing: dict[object, float] = {}

    def body(self, stmts: Iterable[Stmt], weight: float) -> None:
        """weight: how often the statements run, in the mean, whenever they are reached."""
        for s in stmts:
            self.passing = {}
            if isinstance(s, For):
                self.loop(s, weight)
            elif isinstance(s, If):
                share = self.mean(s.condition)
                if share is not None:
                    self.body(s.then, weight * share)
                    self.body(s.otherwise, weight * (1 - share))
            elif isinstance(s, Set):
                self.value(s.value, weight, wide=s.local.lanes > 0)
                if s.local.lanes and s.local not in self.registers:
                    self.place(s, "store", self.width(s.local.lanes, s.local.dtype), weight)
            elif isinstance(s, Store):
                self.value(s.value, weight, wide=self.lanes is not None)
                if self.lanes is not None:
                    width = self.width(self.lanes.lanes, s.buffer.dtype)
                    self.place(s, "store", width, weight)
            elif isinstance(s, Transpose):
                n = s.local.lanes
                steps = n * (n.bit_length() - 1)
                self.place(s, "shuffle", steps * self.width(n, s.local.dtype), weight)

    def loop(self, s: For, weight: float) -> None:
        step = s.lanes if s.kind == "vector" else s.step
        rounds = self.mean(s.hi - s.lo, step)
        if not rounds:
            return
        unrolled = s.kind == "unroll" or (rounds <= 1 and (s.hi - s.lo).is_const)
        frame = None
        if not unrolled:
            times = weight
            for level in reversed(self.path):
                if level.frame is not None:
                    frame = Frame(rounds, times)
                    level.frame.inner.append(frame)
                    break
                times *= level.rounds
            weight = 1.0
        outer = self.lanes
        if s.kind == "vector":
            self.lanes = s
        self.path.append(_Level(s.var, rounds, _changes(s.body), frame))
        self.body(s.body, weight)
        self.path.pop()
        self.lanes = outer

    def width(self, lanes: int, dtype: DType) -> float:
        return lanes * dtype.bytes / self.vector_bytes

    # ---------------------------------------------------------------- expressions

    def value(self, e: Expr, weight: float, wide: bool) -> None:
        """Count what a value needs. wide: it is wanted in all lanes."""
        if e.dtype is i64 or e.op in ("const", "var"):
            return
        varies = self.varying(e)
        if not varies:
            if wide and e.op == "load" and isinstance(e.payload, Buffer):
                self.place(e, "broadcast", 1.0, weight)
            return
        lanes = self.lanes_of(e)
        if e.op == "load":
            self.load(e, lanes, weight)
            return
        if e.op in ("hsum", "hmax", "hmin", "hprod"):
            self.value(e.args[0], weight, wide=False)
            return
        arms = e.args
        if e.op == "select":
            arms = self.select(e, lanes, weight)
        else:
            args = tuple((a.dtype, a.payload if a.is_const else None) for a in e.args)
            for name, size in operation(e.op, args, e.dtype, lanes, self.target):
                self.place(e, name, size / self.vector_bytes, weight)
        for a in arms:
            self.value(a, weight, wide=True)

    def select(self, e: Expr, lanes: int, weight: float) -> tuple[Expr, ...]:
        """Count a choice; gives what it needs in any case."""
        condition, *arms = e.args
        if self.varying(condition):
            if not set(arms) <= set(condition.args):  # else it is a maximum or a minimum
                self.place(e, "simple", self.width(lanes, e.dtype), weight)
            return e.args
        share = self.mean(condition)
        if share is not None:
            self.value(arms[0], weight * share, wide=True)
            self.value(arms[1], weight * (1 - share), wide=True)
        return ()

    def load(self, e: Expr, lanes: int, weight: float) -> None:
        if isinstance(e.payload, Local):
            if e.payload not in self.registers:
                self.place(e, "load", self.width(e.payload.lanes, e.dtype), weight)
            return
        assert self.lanes is not None
        if self.lanes.var not in e.args[0].free:
            return  # lanes that a local tells: a gather, of which little can be said
        width = self.width(lanes, e.dtype)
        self.place(e, "load", width, weight)
        if stride(e.args[0], self.lanes.var) != 1:
            self.place(e, "shuffle", width, weight)

    def lanes_of(self, e: Expr) -> int:
        if self.lanes is not None:
            return self.lanes.lanes
        held = [n.payload.lanes for n in walk(e) if n.op == "load" and isinstance(n.payload, Local)]
        return max(held)

    def varying(self, e: Expr) -> bool:
        if self.lanes is not None and self.lanes.var in e.free:
            return True
        return any(isinstance(x, Local) and x.lanes for x in self.reading(e))

    def reading(self, e: Expr) -> frozenset[Local | Buffer]:
        found = self.reads.get(e)
        if found is None:
            mine = frozenset({e.payload} if e.op == "load" else ())
            found = self.reads[e] = mine.union(*map(self.reading, e.args))
        return found

    def place(self, what: Expr | Stmt, name: str, vectors: float, weight: float) -> None:
        """Count an instruction in the innermost loop on which it depends: others outside of it can
        have it once, and unrolled ones once per value that it uses."""
        last = 0
        repeated: list[_Level] = []
        for k, level in enumerate(self.path):
            if isinstance(what, Stmt) or self.depends(what, level):
                if level.frame is not None:
                    last, repeated = k, []
                else:
                    repeated.append(level)
        frame = self.path[last].frame
        assert frame is not None
        amount = weight * vectors * math.prod(level.rounds for level in repeated)
        if isinstance(what, Expr):
            key = (what, name, *map(id, repeated))
            stable = not any(isinstance(x, Local) or x.is_written for x in self.reading(what))
            seen = frame.seen if stable else self.passing
            before = seen.get(key, 0.0)
            seen[key] = max(amount, before)
            amount -= min(amount, before)
        frame.counts[AT[name]] += amount

    def depends(self, e: Expr, level: _Level) -> bool:
        return level.var in e.free or not level.changes.isdisjoint(self.reading(e))

    # ---------------------------------------------------------------- index arithmetic

    def mean(self, e: Expr, step: int = 1) -> float | None:
        """The mean of ceil(e / step), at least 0, over all values of the variables; None where it
        depends on data."""
        e = substitute(e, self.indices)
        if any(n.op == "load" and n.payload not in self.tables for n in walk(e)):
            return None
        over = sorted(e.free, key=repr)
        ranges = [(v.payload[1], v.payload[2]) for v in over]
        grids: Sequence[Array]
        if math.prod(hi - lo for lo, hi in ranges) <= SAMPLES:
            grids = np.meshgrid(*(np.arange(lo, hi) for lo, hi in ranges), indexing="ij")
        else:
            rng = np.random.default_rng(0)
            grids = [rng.integers(lo, hi, SAMPLES) for lo, hi in ranges]
        found = self.evaluate(e, dict(zip(over, grids, strict=True))).astype(np.int64)
        return float(np.mean(np.maximum(-(-found // step), 0)))

    def evaluate(self, e: Expr, values: dict[Expr, Array]) -> Array:
        if e.op == "const":
            return np.asarray(e.payload)
        if e.op == "var":
            return values[e]
        inner = [self.evaluate(a, values) for a in e.args]
        if e.op == "load":
            return self.tables[e.payload].take(inner[0], mode="clip")
        out: Array = _INDEX[e.op](*inner)
        return out


def _changes(body: Iterable[Stmt]) -> frozenset[Local | Buffer]:
    inner = list(statements(body))
    out: set[Local | Buffer] = {s.local for s in inner if isinstance(s, (Set, Transpose, Declare))}
    return frozenset(out | {s.buffer for s in inner if isinstance(s, Store)})


def _indices(phase: Phase) -> dict[Expr, Expr]:
    """What the locals hold in which templates keep an index, by how they are read."""
    sets: dict[Local, list[Expr]] = {}
    for s in statements(phase.body):
        if isinstance(s, Set) and s.local.dtype is i64 and not s.local.shape:
            sets.setdefault(s.local, []).append(s.value)
    out: dict[Expr, Expr] = {}
    for local, values in sets.items():
        if len(values) == 1:
            out[local.value] = substitute(values[0], out)
    return out


_INDEX: Final[dict[str, Callable[..., Any]]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floordiv": np.floor_divide,
    "mod": np.mod, "min": np.minimum, "max": np.maximum, "and": np.logical_and,
    "or": np.logical_or, "not": np.logical_not, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "select": np.where,
}  # fmt: skip


# --------------------------------------------------------------------------- operations

_CLASS: Final = {
    "fmul": "multiply", "fadd": "add", "fsub": "add", "fdiv": "divide",
    "shufflevector": "shuffle", "bitcast": "", "insertelement": "", "extractelement": "",
    "fneg": "", "freeze": "",
}  # fmt: skip
_CALLED: Final = {"fma": "multiply", "sqrt": "sqrt", "x86": "multiply"}
_LINE: Final = re.compile(r"(%\w+) = (\w+)(?:.*@llvm\.(\w+))?")
_TYPE: Final = re.compile(r"<(\d+) x (?!i1>)(\w+)>")
_BYTES: Final = {"half": 2, "float": 4, "double": 8}


def width_of(element: str) -> int:
    """Bytes of an element type of LLVM."""
    return _BYTES.get(element) or int(element[1:]) // 8


@cache
def operation(
    op: str, args: tuple[tuple[DType, Scalar | None], ...], dtype: DType, lanes: int,
    target: Arithmetic,
) -> tuple[tuple[str, int], ...]:  # fmt: skip
    """Bytes of vectors, by class, that go through an operation as the code generator writes it. A
    comparison and the choice between what it compares are one instruction; what the C library does
    is not counted. args: their types, and the values of constants."""
    f = Function("f", "", "", target)
    given = [
        Value(f"%a{k}", t, lanes) if value is None else f.const(value, t)
        for k, (t, value) in enumerate(args)
    ]
    if op == "cast":
        convert(f, given[0], dtype)
    else:
        call(f, op, given, dtype, False)
    out: dict[str, int] = {}
    compared: dict[str, str] = {}
    for line in f.lines:
        found, kind = _LINE.search(line), _TYPE.search(line)
        if found is None or kind is None:
            continue
        name, word, called = found.groups()
        what = _CLASS.get(word, "simple")
        if word == "call":
            what = _CALLED.get(called, "simple") if called else ""
        elif word == "fcmp":
            compared[name] = line
        elif word == "select":
            condition, *arms = (part.split(" ")[-1] for part in line.split(", "))
            if condition in compared and all(a in compared[condition] for a in arms):
                what = "add"  # with the comparison, which was counted already
                out["simple"] -= int(kind[1]) * width_of(kind[2])
        if what:
            out[what] = out.get(what, 0) + int(kind[1]) * width_of(kind[2])
    return tuple((name, size) for name, size in out.items() if size)


__all__ = ["WINDOW", "Busy", "Frame", "busy", "counted", "operation"]
