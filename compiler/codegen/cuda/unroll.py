"""Loops that must be unrolled, because they count registers of a thread.

LLVM unrolls what it finds worth it, which for a long body is too little; an array that is then
indexed by a variable lies in memory. So loops whose line says "# unrolled" get metadata by which
LLVM unrolls them whatever their size. Numba names blocks after places in the bytecode, which says
which line a loop begins in. The jump back gets company: LLVM merges empty blocks with others, and
forgets what their jumps said.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Sequence
from types import FunctionType
from typing import Final

MARK: Final = "  # unrolled"
_BLOCK: Final = re.compile(r'"?B(\d+)[^:]*:')
_JUMP: Final = re.compile(r'  br label %"B(\d+)"$')
_SHIFT: Final = 2  # Numba's own numbers of bytes before the first one
_NOTHING: Final = "llvm.sideeffect"


def unrolled(text: str, function: FunctionType, lines: Sequence[str]) -> str:
    """LLVM IR that Numba made of a function, with that metadata. lines: of the source."""
    starts = {at: line for at, line in _starts(function) if lines[line - 1].endswith(MARK)}
    out: list[str] = []
    made: list[str] = []
    here = 0
    for line in text.splitlines():
        if found := _BLOCK.match(line):
            here = int(found[1])
        jump = _JUMP.match(line)
        if jump and int(jump[1]) <= here and int(jump[1]) in starts:
            name = f"!{len(made) + 90000}"
            made.append(f"{name} = distinct !{{{name}, !89999}}")
            out.append(f"  call void @{_NOTHING}()")
            line += f", !llvm.loop {name}"
        out.append(line)
    if made:
        out += [f"declare void @{_NOTHING}()", '!89999 = !{!"llvm.loop.unroll.full"}', *made]
    return "\n".join(out) + "\n"


def _starts(function: FunctionType) -> list[tuple[int, int]]:
    """(block, line) of every loop: the block is named after the instruction that takes the next
    value, or what extends its argument."""
    found = []
    first: int | None = None
    for i in dis.get_instructions(function):
        first = i.offset if first is None else first
        if i.opname == "EXTENDED_ARG":
            continue
        if i.opname == "FOR_ITER" and i.positions and i.positions.lineno:
            found.append((first + _SHIFT, i.positions.lineno))
        first = None
    return found
