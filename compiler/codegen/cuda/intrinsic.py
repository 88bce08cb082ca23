"""What an intrinsic of the dialect is: a statement of the source that becomes one LLVM function.

Memory is a pointer and the offset of an element, registers are an array of the thread, of which
every index is known when the function is written. So LLVM keeps them in registers, and one
statement may stand for a hundred instructions, which Numba's front end would take seconds over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ....ops.types import DTYPES, DType, boolean, i64
from ..cpu.llvm_text import memory_type, register_type

Kind = Literal["shared", "global", "memory", "registers", "index", "flag", "value", "literal",
               "map"]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = (
    "shared", "global", "memory", "registers", "index", "flag", "value", "literal", "map"
)  # fmt: skip
POINTERS: Final = ("shared", "global", "memory", "registers")
TYPED: Final = (*POINTERS, "value")
"""Parameters whose types an intrinsic is made for; literals are values that it is made for."""
PREFIX: Final = "tw."
"""Of the LLVM functions behind generated source."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """kind: memory of the block, of the device, or of either; an array of the thread; a 64-bit
    index; a boolean; a number of some type; an integer that is known; or a tensor's descriptor."""

    kind: Kind
    name: str


class Body:
    """The LLVM text of one intrinsic for given types and literals, as it is written."""

    def __init__(self, types: Mapping[str, DType], literals: Mapping[str, int]) -> None:
        self.types, self.literals = types, literals
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self.result = ""
        self.together = False  # whether all threads of a warp have to do some of it at once

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {text}")

    def make(self, text: str) -> str:
        """The name of an instruction's result."""
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def call(self, result: str, function: str, *args: str, together: bool = False) -> str:
        """A call of LLVM's own function. args: with their types. together: all threads of a warp
        have to make it at once, so that LLVM must not copy the call into both arms of a branch. It
        does not know that of every such function, nor of ours that call them."""
        kinds = ", ".join(a.rsplit(" ", 1)[0].removesuffix(" immarg") for a in args)
        self.declarations.add(f"declare {result} @{function}({kinds})")
        text = f"call {result} @{function}({', '.join(args)})" + " convergent" * together
        self.together |= together
        if result != "void":
            return self.make(text)
        self.do(text)
        return ""

    def element(self, memory: str, offset: str) -> str:
        """A pointer to an element, of no particular space."""
        return self.make(f"getelementptr {self.held(memory)}, ptr %{memory}, i64 %{offset}")

    def shared(self, memory: str, offset: str) -> str:
        """The same as "ptr addrspace(3) %v"."""
        at = self.element(memory, offset)
        return f"ptr addrspace(3) {self.make(f'addrspacecast ptr {at} to ptr addrspace(3)')}"

    def device(self, memory: str, offset: str) -> str:
        """The same as "ptr addrspace(1) %v"."""
        at = self.element(memory, offset)
        return f"ptr addrspace(1) {self.make(f'addrspacecast ptr {at} to ptr addrspace(1)')}"

    def get(self, registers: str, at: int | str) -> str:
        """A register's value, with its type. at: a number, or the name of a parameter and one."""
        kind = self.held(registers)
        return f"{kind} {self.make(f'load {kind}, ptr {self._register(registers, at)}')}"

    def put(self, registers: str, at: int | str, value: str) -> None:
        """Set a register. value: without its type."""
        where = self._register(registers, at)
        self.do(f"store {self.held(registers)} {value}, ptr {where}")

    def after(self, parameter: str, steps: int) -> str:
        """A 64-bit index some steps behind a parameter: an operand of `get` and `put`."""
        return self.make(f"add i64 %{parameter}, {steps}")

    def _register(self, registers: str, at: int | str) -> str:
        return self.make(f"getelementptr {self.held(registers)}, ptr %{registers}, i64 {at}")

    def held(self, name: str) -> str:
        """The LLVM type of a parameter's elements in memory."""
        return memory_type(self.types[name], 0)


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """takes: "shared a, index i, literal bytes"; write: adds its instructions to a body. returned:
    the element type of the array that it returns, which `Body.result` names."""

    name: str
    takes: str
    write: Callable[[Body], None]
    returned: DType | None = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        pairs = [p.split() for p in self.takes.split(",") if p.strip()]
        kinds = {k: k for k in KINDS}
        return tuple(Parameter(kinds[kind], name) for kind, name in pairs)  # type: ignore[index]

    def symbol(self, types: Mapping[str, DType], literals: Mapping[str, int]) -> str:
        """The name of the function for given types and literals, without a prefix."""
        tags = [str(literals[p.name] if p.kind == "literal" else types[p.name])
                for p in self.parameters if p.kind in (*TYPED, "literal")]  # fmt: skip
        return ".".join([self.name, *tags])

    def definition(
        self, symbol: str, types: Mapping[str, DType], literals: Mapping[str, int]
    ) -> tuple[str, frozenset[str]]:
        """(the text of the function, the declarations that it needs)."""
        body = Body(types, literals)
        self.write(body)
        given = ", ".join(
            f"{_passed(p, types)} %{p.name}" for p in self.parameters if p.kind != "literal"
        )
        result = "ptr" if self.returned else "void"
        how = "alwaysinline nounwind" + " convergent" * body.together
        head = f'define linkonce_odr {result} @"{symbol}"({given}) {how} {{'
        end = f"  ret {result} {body.result}".rstrip()
        text = "\n".join([head, *body.lines, end, "}"])
        return text, frozenset(body.declarations)


def _passed(p: Parameter, types: Mapping[str, DType]) -> str:
    if p.kind in POINTERS or p.kind == "map":
        return "ptr"
    fixed = {"index": i64, "flag": boolean}
    return register_type(fixed.get(p.kind) or types[p.name], 0)


def table(*found: Intrinsic) -> Mapping[str, Intrinsic]:
    return {i.name: i for i in found}


def definition_of(
    symbol: str, found: Intrinsic
) -> tuple[str, frozenset[str]]:  # fmt: skip
    """The definition of the function that `Intrinsic.symbol` named so."""
    tags = iter(symbol.removeprefix(PREFIX).split(".")[1:])
    types: dict[str, DType] = {}
    literals: dict[str, int] = {}
    for p in found.parameters:
        if p.kind == "literal":
            literals[p.name] = int(next(tags))
        elif p.kind in TYPED:
            types[p.name] = DTYPES[next(tags)]
    return found.definition(symbol, types, literals)
