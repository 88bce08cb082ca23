"""Where an inference spends its time, and how near to the machine's limits every kernel comes.

A launch needs at least as long as its multiply-adds take at the measured peak, at least as long as
the instructions that its kernel issues keep the busiest unit of a core (`instructions.py`), and at
least as long as its least traffic takes from and to memory. The largest of these is its limit (the
roofline model: Williams, Waterman and Patterson, CACM 52(4), 2009).

Which memory? The nearest level that holds all that was touched since the data were (their reuse
distance: Mattson et al., IBM Systems Journal 9(2), 1970). For what another launch wrote or read,
that is the traffic of the launches in between and of both. Constants and inputs come round once in
an inference: for them it is all that the program touches, constants, arena, and the caller's
arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Self

import numpy.typing as npt

from ...autotune.statistics import interval
from ..codegen.cpu.llvm_text import Arithmetic
from ..graph.ir import Graph
from ..graph.storage import aliases, place_in
from ..kernels.ir import Buffer, Kernel, Launch, Prepared
from ..text import human_time, printable, table
from .instructions import NOTHING, Busy, busy
from .machine import Limits, MemoryLevel
from .views import kernel_name

WIDTH = 120
"""Columns of a printed profile."""

_NONE: Final[Mapping[int, float]] = MappingProxyType({})
_USUAL: Final = Arithmetic()


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch has to do at least: operations, bytes. own_flops: what its algorithm leaves of
    the operations. read: from blobs that other launches (or the caller) wrote."""

    flops: int
    own_flops: int
    constant: int
    read: int
    written: int
    element_bytes: int

    @property
    def bytes(self) -> int:
        return self.constant + self.read + self.written


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One launch.

    seconds: median time. flops: of the problem as it is defined; own_flops: of the multiply-adds
    that the kernel does, fewer with Winograd's algorithm. compute_seconds, memory_seconds: the
    least that the kernel's own multiply-adds and its traffic could take. level, constant_level: the
    memory that its blobs and its constants are taken to come from. operators: what the model's ops
    are called, in order, each once. moved_seconds: what only moving its bytes took in its place
    (`moving.py`), where that was measured. low, high: the interval that holds the true median with
    95 % confidence, where there are samples. nodes: the model nodes that it computes, each once.
    busy: the least that all of its instructions could take.
    """

    kernel: str
    template: str
    label: str
    operators: tuple[str, ...]
    seconds: float
    share: float
    flops: int
    own_flops: int
    bytes: int
    compute_seconds: float
    memory_seconds: float
    level: str
    constant_level: str
    moved_seconds: float | None = None
    low: float | None = None
    high: float | None = None
    nodes: tuple[str, ...] = ()
    busy: Busy = NOTHING

    @property
    def gflops(self) -> float:
        """Of the problem as it is defined, whatever the algorithm: may exceed the peak."""
        return self.flops / max(self.seconds, 1e-12) / 1e9

    @property
    def gbytes(self) -> float:
        return self.bytes / max(self.seconds, 1e-12) / 1e9

    @property
    def core_seconds(self) -> float:
        """The least time with all data in the nearest memory."""
        return max(self.compute_seconds, self.busy.seconds)

    @property
    def bound(self) -> str:
        """What takes longest at least: "arithmetic", "loads" or "stores" of a core (of data in the
        nearest memory), or "memory"."""
        if self.memory_seconds > self.core_seconds:
            return "memory"
        return "arithmetic" if self.compute_seconds >= self.busy.seconds else self.busy.bound

    @property
    def of_core(self) -> float:
        """Share of what a core issues at most."""
        return self.core_seconds / max(self.seconds, 1e-12)

    @property
    def of_peak(self) -> float:
        """Share of the multiply-add peak that the kernel's own multiply-adds reach."""
        return self.compute_seconds / max(self.seconds, 1e-12)

    @property
    def of_bandwidth(self) -> float:
        """Share of the memory's bandwidth."""
        return self.memory_seconds / max(self.seconds, 1e-12)

    @property
    def of_moving(self) -> float | None:
        """The time of only moving its bytes over its own; more than 1 where the kernel's order of
        reading suits the machine better."""
        moved = self.moved_seconds
        return None if moved is None else moved / max(self.seconds, 1e-12)

    @property
    def least_seconds(self) -> float:
        """What the limits allow; the time itself where that is less. Kernels can need less traffic
        than their problem is counted with: a gather reads part of its table."""
        return min(max(self.core_seconds, self.memory_seconds), self.seconds)

    @property
    def of_limit(self) -> float:
        """Share of the limit that binds, at most 1."""
        return self.least_seconds / max(self.seconds, 1e-12)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "gflops": self.gflops, "gbytes": self.gbytes, "bound": self.bound,
            "of_peak": self.of_peak, "of_core": self.of_core, "of_bandwidth": self.of_bandwidth,
            "of_limit": self.of_limit, "of_moving": self.of_moving,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """Launches taken together. of_limit: least seconds over seconds."""

    launches: int
    seconds: float
    share: float
    gflops: float
    gbytes: float
    of_limit: float

    @classmethod
    def of(cls, rows: Sequence[ProfileRow], **named: Any) -> Self:
        """Those of some launches. named: what else the row has."""
        seconds = sum(r.seconds for r in rows)
        whole = max(seconds, 1e-12)
        return cls(
            len(rows), seconds, sum(r.share for r in rows),
            sum(r.flops for r in rows) / whole / 1e9, sum(r.bytes for r in rows) / whole / 1e9,
            of_limit(rows), **named,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OperatorRow(Totals):
    """All launches that compute the same operators."""

    operators: tuple[str, ...]


def totals_table(rows: Sequence[tuple[str, Totals]], title: str) -> str:
    """Named rows for people. title: of the column of names, the last one."""
    cells = [(f"{r.seconds * 1e6:.1f}", f"{r.share:.1%}", f"{r.gflops:.1f}", f"{r.gbytes:.1f}",
              f"{r.of_limit:.0%}", r.launches, what) for what, r in rows]  # fmt: skip
    return table(cells, ("us", "share", "GFLOP/s", "GB/s", "of limit", "launches", title), "rrrrrr")


@dataclass(frozen=True, slots=True)
class Profile:
    """Launches in execution order, and the limits of the machine they are compared with.

    rounds: how many runs the times are medians of, 0 where nobody knows. low, high: the interval of
    the median run, all launches together.
    """

    rows: tuple[ProfileRow, ...]
    limits: Limits
    rounds: int = 0
    low: float | None = None
    high: float | None = None

    @property
    def seconds(self) -> float:
        """Of all launches together: an inference without its call and its copies."""
        return sum(r.seconds for r in self.rows)

    @property
    def of_limit(self) -> float:
        """Least seconds of all launches over their seconds."""
        return of_limit(self.rows)

    def by_operator(self) -> tuple[OperatorRow, ...]:
        """Launches that compute equal operators taken together, longest first."""
        groups: dict[tuple[str, ...], list[ProfileRow]] = {}
        for r in self.rows:
            groups.setdefault(r.operators, []).append(r)
        found = (OperatorRow.of(rows, operators=names) for names, rows in groups.items())
        return tuple(sorted(found, key=lambda r: -r.seconds))

    def as_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "low": self.low, "high": self.high,
                "rounds": self.rounds, "of_limit": self.of_limit, "limits": asdict(self.limits),
                "rows": [r.as_json() for r in self.rows],
                "operators": [asdict(r) for r in self.by_operator()]}  # fmt: skip

    def __str__(self) -> str:
        kernels = table(
            [
                (f"{r.seconds * 1e6:.1f}", f"{r.share:.1%}", f"{r.gflops:.1f}", f"{r.of_peak:.0%}",
                 f"{r.of_core:.0%}", f"{r.gbytes:.1f}", f"{r.of_bandwidth:.0%}",
                 r.level if r.bound == "memory" else r.bound, r.kernel, printable(r.label))
                for r in sorted(self.rows, key=lambda r: -r.seconds)
            ],
            ("us", "share", "GFLOP/s", "of peak", "of core", "GB/s", "of mem", "bound by", "kernel",
             "nodes"),
            "rrrrrrr",
        )  # fmt: skip
        operators = totals_table(
            [(" + ".join(r.operators), r) for r in self.by_operator()], "operators"
        )
        text = f"{kernels}\n\n{operators}\n\n{self._summary()}"
        return "\n".join(map(_clipped, text.splitlines()))

    def _summary(self) -> str:
        levels = ", ".join(f"{x.name} {x.read / 1e9:.0f}" for x in self.limits.levels)
        n, unit = self.limits.threads, self.limits.unit
        return (f"{human_time(self.seconds)} in {len(self.rows)} launches, {self.of_limit:.0%} of "
                f"the machine's limits\n{n} {unit}{'s' if n > 1 else ''}: peak "
                f"{self.limits.flops / 1e9:.0f} GFLOP/s, reads GB/s: {levels}")  # fmt: skip


def profile(
    graph: Graph, launches: Sequence[Launch], arena_bytes: int, limits: Limits,
    seconds: Sequence[float], moved: Mapping[int, float] = _NONE,
    samples: Sequence[Sequence[float]] = (), target: Arithmetic = _USUAL,
) -> Profile:  # fmt: skip
    """The profile of a program whose launches took so long. moved: by launch, the seconds of only
    moving its bytes. samples: the seconds of the launches in each run, for intervals. target: what
    the kernels were made for."""
    works = [work(graph, x) for x in launches]
    arrays = sum(graph.type(n).nbytes for n in {*graph.inputs, *graph.outputs})
    whole = footprint(launches, works) + arena_bytes + arrays
    held = limits.level(whole)
    total = max(sum(seconds), 1e-12)
    rows = []
    known: dict[Kernel, Busy] = {}
    distances = reuse_distances(graph, launches, works, whole)
    for k, (launch, w, s, d) in enumerate(zip(launches, works, seconds, distances, strict=True)):
        near = limits.level(d)
        if launch.kernel not in known and limits.rates is not None:
            known[launch.kernel] = busy(launch.kernel, target, limits.rates, _tables(graph, launch))
        operators = dict.fromkeys(graph.ops[j].operator for j in launch.ops)
        nodes = dict.fromkeys(n for j in launch.ops for n in graph.ops[j].source)
        low, high = interval([run[k] for run in samples]) if samples else (None, None)
        rows.append(ProfileRow(
            kernel_name(launch), launch.kernel.template, launch.label, tuple(operators), s,
            s / total, w.flops, w.own_flops, w.bytes, w.own_flops / limits.peak(w.element_bytes),
            memory_seconds(w, near, held), near.name, held.name, moved.get(k), low, high,
            tuple(nodes), known.get(launch.kernel, NOTHING),
        ))  # fmt: skip
    low, high = interval([sum(run) for run in samples]) if samples else (None, None)
    return Profile(tuple(rows), limits, len(samples), low, high)


def reuse_distances(
    graph: Graph, launches: Sequence[Launch], works: Sequence[Work], whole: int
) -> list[int]:
    """Per launch, bytes touched since that of its blobs which was left alone longest; `whole` where
    that was in the inference before."""
    same = aliases(graph)
    touched: dict[str, int] = {}  # by blob: bytes moved before the launch that touched it last
    moved, out = 0, []
    for launch, w in zip(launches, works, strict=True):
        distance = w.bytes
        blobs: list[str] = []
        for arg, b in zip(launch.args, launch.kernel.params, strict=True):
            if not isinstance(arg, str) or _is_constant(graph, arg):
                continue
            root, _ = place_in(same, arg)
            blobs.append(root)
            if b.role != "out":
                since = moved + w.bytes - touched[root] if root in touched else whole
                distance = max(distance, min(since, max(whole, w.bytes)))
        touched.update(dict.fromkeys(blobs, moved))
        moved += w.bytes
        out.append(distance)
    return out


def work(graph: Graph, launch: Launch) -> Work:
    """What a launch has to do, its traffic split by where it goes."""
    kernel = launch.kernel
    written = sum(
        graph.type(a).nbytes for a, b in zip(launch.args, kernel.params, strict=True)
        if b.role == "out" and isinstance(a, str)
    )  # fmt: skip
    constant = sum(
        b.nbytes for a, b in zip(launch.args, kernel.params, strict=True) if _is_constant(graph, a)
    )
    # A gather reads part of its table: what the template says is the least.
    written = min(written, kernel.bytes)
    constant = min(constant, kernel.bytes - written)
    floats = [b.dtype.bytes for b in kernel.params if b.dtype.is_float]
    return Work(
        kernel.flops, kernel.own_flops or kernel.flops, constant,
        kernel.bytes - written - constant, written, max(floats, default=4),
    )  # fmt: skip


def footprint(launches: Sequence[Launch], works: Sequence[Work]) -> int:
    """Bytes of constants that an inference reads, those that launches share once."""
    shared: dict[object, int] = {}
    for launch, w in zip(launches, works, strict=True):
        names = tuple(a for a in launch.args if isinstance(a, Prepared))
        shared[names or launch] = w.constant
    return sum(shared.values())


def memory_seconds(w: Work, near: MemoryLevel, constants: MemoryLevel) -> float:
    """Least time for a launch's traffic."""
    return w.constant / min(constants.read, near.read) + near.seconds(w.read, w.written)


def _tables(graph: Graph, launch: Launch) -> dict[Buffer, npt.NDArray[Any]]:
    """The integer constants of a launch: how often loops run may stand there."""
    out = {}
    for arg, b in zip(launch.args, launch.kernel.params, strict=True):
        if b.role == "const" and not b.dtype.is_float and isinstance(arg, Prepared):
            out[b] = arg.make(*(graph.blobs[n].content for n in arg.blobs)).reshape(-1)
    return out


def _is_constant(graph: Graph, arg: str | Prepared | None) -> bool:
    if isinstance(arg, Prepared):
        return True
    return arg is not None and graph.blobs[arg].is_constant


def of_limit(rows: Iterable[ProfileRow]) -> float:
    """Share of the limits of several launches: least time over time."""
    rows = tuple(rows)
    return sum(r.least_seconds for r in rows) / max(sum(r.seconds for r in rows), 1e-12)


def _clipped(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
