"""Instructions that LLVM has no name for, as inline PTX in the bodies of intrinsics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .intrinsic import Body

_LETTERS: Final = {"i16": "h", "i32": "r", "i64": "l", "ptr": "l", "float": "f"}
"""Of operands, by their LLVM types."""


def asm(b: Body, text: str, *args: str) -> None:
    """text: PTX with $0, $1, ... for the arguments, which are given with their types. It stays
    where it is: it may touch any memory, and all threads that get to it do so together."""
    kinds = ",".join([*map(_letter, args), "~{memory}"])
    b.together = True
    b.do(f'call void asm sideeffect "{text}", "{kinds}"({", ".join(args)}) convergent')


def asm_in_place(b: Body, text: str, values: Sequence[str], *args: str) -> list[str]:
    """The same for PTX that changes registers: $0, $1, ... are `values`, given with their types,
    as it finds and leaves them, then (behind as many again) come the arguments. Returns the new
    values, without their types."""
    kinds = [_letter(v) for v in values]
    tied = [str(k) for k in range(len(values))]
    constraints = ",".join([*(f"={k}" for k in kinds), *tied, *map(_letter, args), "~{memory}"])
    made = "{" + ", ".join(v.split()[0] for v in values) + "}"
    given = ", ".join([*values, *args])
    b.together = True
    out = b.make(f'call {made} asm sideeffect "{text}", "{constraints}"({given}) convergent')
    return [b.make(f"extractvalue {made} {out}, {k}") for k in range(len(values))]


def asm_new(b: Body, text: str, kinds: Sequence[str], *args: str) -> list[str]:
    """The same for PTX that sets registers, whatever they held: $0, $1, ... are those of the types
    `kinds`, then come the arguments. Returns their values, without their types."""
    letters = [*(f"={_LETTERS[k]}" for k in kinds), *map(_letter, args), "~{memory}"]
    made = "{" + ", ".join(kinds) + "}"
    b.together = True
    out = b.make(f'call {made} asm sideeffect "{text}", "{",".join(letters)}"({", ".join(args)})'
                 " convergent")  # fmt: skip
    return [b.make(f"extractvalue {made} {out}, {k}") for k in range(len(kinds))]


def _letter(value: str) -> str:
    return _LETTERS[value.split()[0]]


def address(b: Body, memory: str, offset: str) -> str:
    """Where an element lies in the shared memory of the block, in bytes: "i32 %v"."""
    return f"i32 {b.make(f'ptrtoint {b.shared(memory, offset)} to i32')}"


def word(b: Body, name: str) -> str:
    """The lower half of an index: "i32 %v"."""
    return f"i32 {b.make(f'trunc i64 %{name} to i32')}"
