"""A kernel line by line: its Kernel IR, what each line reads and writes, the instructions made of
it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...ops.traverse import walk
from ..codegen.cpu.assemble import assembly
from ..codegen.cpu.origins import assembly_by_line, numbered_text, statement_lines
from ..codegen.cpu.target import CpuTarget
from ..graph.ir import Op
from ..kernels.ir import Buffer, Kernel, Prepared, Stmt, Store, expressions
from ..kernels.printer import kernel_text
from .views import Compilation


@dataclass(frozen=True, slots=True)
class Line:
    """A line of Kernel IR, the first of a kernel being number 1. reads, writes: parameters of the
    kernel, by name. instructions: of the machine, in the order in which they stand; none where the
    line computes nothing by itself, or nobody asked."""

    number: int
    text: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()


def listing(kernel: Kernel, target: CpuTarget | None = None) -> tuple[Line, ...]:
    """The lines of a kernel. target: the instructions are wanted, for this machine; those that
    belong to no line (what a function begins and ends with) are left out."""
    made = {} if target is None else assembly_by_line(
        assembly(numbered_text(kernel, target.arithmetic), target))  # fmt: skip
    touched = {at: _touches(s) for at, s in statement_lines(kernel)}
    return tuple(
        Line(k, text, *touched.get(k, ((), ())), made.get(k, ()))
        for k, text in enumerate(kernel_text(kernel).splitlines(), 1)
    )


def _touches(s: Stmt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    read = {
        e.payload.name: None for e in walk(*expressions(s))
        if e.op == "load" and isinstance(e.payload, Buffer)
    }  # fmt: skip
    return tuple(read), (s.buffer.name,) if isinstance(s, Store) else ()


def parameters_of(c: Compilation[Any], number: int, ops: Sequence[Op]) -> frozenset[str]:
    """The parameters of a launch that hold what some of its ops read or write. Where that is
    nothing, because all of it stays in registers: what the launch writes."""
    launch = c.launches[number]
    blobs = {n for op in ops for n in (*op.reads, *op.outputs)}
    params = [(p, _blobs(a)) for p, a in zip(launch.kernel.params, launch.args, strict=True)]
    found = frozenset(p.name for p, named in params if blobs.intersection(named))
    return found or frozenset(p.name for p, _ in params if p.role == "out")


def _blobs(arg: str | Prepared | None) -> Collection[str]:
    return () if arg is None else (arg,) if isinstance(arg, str) else arg.blobs


def shown(lines: Sequence[Line], marked: Collection[str] = ()) -> list[str]:
    """The lines for people, each with its number and how many instructions were made of it; ">"
    where it reads or writes one of the marked parameters."""
    wide = len(str(len(lines)))
    out = []
    for line in lines:
        mark = ">" if any(n in marked for n in (*line.reads, *line.writes)) else " "
        count = len(line.instructions) or ""
        out.append(f"{line.number:>{wide}} {count:>5} {mark} {line.text}".rstrip())
    return out


def interleaved(lines: Sequence[Line]) -> list[str]:
    """The lines, each above the instructions that were made of it."""
    wide = len(str(len(lines)))
    out = []
    for line in lines:
        out.append(f"{line.number:>{wide}} {line.text}")
        out += [f"{'':{wide}}     {' '.join(i.split())}" for i in line.instructions]
    return out
