"""Which line of a kernel's text each instruction comes from, as LLVM's debug information.

The text of a kernel (`kernels.printer.kernel_text`) has one line per statement, so a statement's
line follows from its place. Code made with line numbers is the code that runs, instruction by
instruction: LLVM promises that debug information changes nothing, and it is added only when someone
wants to look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Final

from ...kernels.ir import For, If, Kernel, Phase, Stmt
from ...kernels.printer import symbol
from .llvm_text import LOOP_TAIL, Arithmetic, Function
from .lower import Lowering, phase_symbols


def phase_starts(kernel: Kernel) -> tuple[int, ...]:
    """The line of the kernel's text on which each phase begins; the first line is 1."""
    at = 2 + len(kernel.params)
    found = []
    for phase in kernel.phases:
        found.append(at)
        at += 1 + _height(phase.body)
    return tuple(found)


def _height(body: Iterable[Stmt]) -> int:
    return sum(1 + _inner(s) for s in body)


def _inner(s: Stmt) -> int:
    """Lines below the one that a statement begins on."""
    if isinstance(s, For):
        return _height(s.body)
    if isinstance(s, If):
        return _height(s.then) + (1 + _height(s.otherwise) if s.otherwise else 0)
    return 0


def statement_lines(kernel: Kernel) -> Iterator[tuple[int, Stmt]]:
    """Every statement of a kernel with its line."""
    for phase, start in zip(kernel.phases, phase_starts(kernel), strict=True):
        yield from _placed(phase.body, start + 1)


def _placed(body: Iterable[Stmt], at: int) -> Iterator[tuple[int, Stmt]]:
    for s in body:
        yield at, s
        if isinstance(s, For):
            yield from _placed(s.body, at + 1)
        elif isinstance(s, If):
            yield from _placed(s.then, at + 1)
            yield from _placed(s.otherwise, at + 2 + _height(s.then))
        at += 1 + _inner(s)


class Lines:
    """The lines of a phase's statements. One object may stand in several places of a kernel, so
    that a statement's line depends on the one that holds it."""

    def __init__(self, phase: Phase, start: int) -> None:
        self._found: dict[tuple[int, int], int] = {}
        self._note(phase.body, start, start + 1)

    def _note(self, body: Iterable[Stmt], holder: int, at: int) -> int:
        for s in body:
            self._found.setdefault((holder, id(s)), at)
            if isinstance(s, For):
                self._note(s.body, at, at + 1)
            elif isinstance(s, If):
                then = self._note(s.then, at, at + 1)
                self._note(s.otherwise, at, then + 1)
            at += 1 + _inner(s)
        return at

    def of(self, s: Stmt, holder: int) -> int:
        """The line of a statement inside of the one that begins on line `holder`."""
        return self._found[holder, id(s)]


class Located(Lowering):
    """A lowering that notes which line of the kernel's text its instructions come from."""

    def __init__(
        self, kernel: Kernel, phase: Phase, name: str, target: Arithmetic, start: int
    ) -> None:  # fmt: skip
        self._lines, self._line = Lines(phase, start), start
        super().__init__(kernel, phase, name, target)

    def body(self, stmts: Iterable[Stmt]) -> None:
        holder = self._line
        for s in stmts:
            self.passing = {}
            self._line = self._lines.of(s, holder)
            self.f.begin(self._line)
            self.statement(s)
            self._line = holder
            self.f.begin(holder)


def numbered_text(kernel: Kernel, target: Arithmetic) -> str:
    """As `lower.module_text`, with debug information that names lines of the kernel's text."""
    starts, names = phase_starts(kernel), phase_symbols(kernel)
    functions = [
        Located(kernel, phase, name, target, start).f
        for phase, name, start in zip(kernel.phases, names, starts, strict=True)
    ]
    number = count(2)  # `LOOP_TAIL` has those before
    file, unit, kind, version = (next(number) for _ in range(4))
    tail = [
        f'!{file} = !DIFile(filename: "{symbol(kernel)}", directory: "")',
        f"!{unit} = distinct !DICompileUnit(language: DW_LANG_C, file: !{file}, "
        "isOptimized: true, emissionKind: LineTablesOnly)",
        f"!{kind} = !DISubroutineType(types: !{{null}})",
        f'!{version} = !{{i32 2, !"Debug Info Version", i32 3}}',
        f"!llvm.dbg.cu = !{{!{unit}}}",
        f"!llvm.module.flags = !{{!{version}}}",
    ]
    texts = []
    for function, start, name in zip(functions, starts, names, strict=True):
        scope = next(number)
        tail.append(
            f'!{scope} = distinct !DISubprogram(name: "{name}", file: !{file}, line: {start}, '
            f"type: !{kind}, unit: !{unit}, spFlags: DISPFlagDefinition)"
        )
        places: dict[int, int] = {}
        lines = list(_numbered(function, places, number))
        tail += [f"!{n} = !DILocation(line: {line}, scope: !{scope})" for line, n in places.items()]
        texts.append(function.text(function.head.removesuffix("{") + f"!dbg !{scope} {{", lines))
    declared = sorted({d for f in functions for d in f.declarations})
    return "\n\n".join([*texts, "\n".join(declared), LOOP_TAIL + "\n".join(tail) + "\n"])


def _numbered(function: Function, places: dict[int, int], number: Iterator[int]) -> Iterator[str]:
    for line, origin in function.origins():
        if not origin or not line.startswith("  "):  # a label
            yield line
            continue
        if origin not in places:
            places[origin] = next(number)
        yield f"{line}, !dbg !{places[origin]}"


# --------------------------------------------------------------------------- read back

_LOCATION: Final = re.compile(r"^\s*\.loc\s+\d+\s+(\d+)")
_DIRECTIVE: Final = re.compile(r"^\s*(\.|#|//|;)")
_LABEL: Final = re.compile(r"^[.\w$]+:")


def assembly_by_line(listing: str) -> Mapping[int, tuple[str, ...]]:
    """The instructions of an assembly listing by the line of the kernel's text that they come from;
    0 where none is named. In the order of the listing."""
    found: dict[int, list[str]] = {}
    at = 0
    for line in listing.splitlines():
        located = _LOCATION.match(line)
        if located:
            at = int(located[1])
        elif line.strip() and not _DIRECTIVE.match(line) and not _LABEL.match(line):
            found.setdefault(at, []).append(line.partition("#")[0].strip())
    return {n: tuple(instructions) for n, instructions in found.items()}
