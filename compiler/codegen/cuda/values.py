"""Expressions as lines of the source of one function: names, operands, choices between values.

Values that are used more than once get names, where they are first needed: what a `select` guards
stays behind its condition.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ....ops.expr import Expr, bounds, index
from ....ops.traverse import walk
from ...errors import LoweringError
from ...kernels.ir import Buffer, Kernel, Local
from .barriers import JOINING
from .dialect import FUNCTIONS
from .intrinsics import INTRINSICS
from .operations import ATOM, TERNARY, Text, from_memory, literal, operation

LONG: Final = 64  # characters from which an operand gets a name
_TAKEN: Final = frozenset((*keyword.kwlist, *dir(builtins), *FUNCTIONS, *INTRINSICS, "cuda", "np"))


class Values:
    """The lines of a function, and the names in them."""

    def __init__(self, kernel: Kernel) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.used = {*_TAKEN, *(b.name for b in kernel.params)}
        self.locals: dict[Local, str] = {}
        self.variables: dict[Expr, str] = {}
        self.ended: set[Expr] = set()  # variables of loops that are over
        self.counts: dict[Expr, int] = {}
        self.known: dict[Expr, str] = {}
        self.inline = 0

    def join(self, e: Expr) -> str:
        """The name of a value that combines the lanes of a local."""
        raise LoweringError(f"{e!r} combines lanes where there are none")

    # ---------------------------------------------------------------- text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indented lines below `head`; names that are given there are forgotten behind them."""
        self.line(head)
        self.depth += 1
        before, start = dict(self.known), len(self.lines)
        yield
        if len(self.lines) == start:
            self.line("pass")
        self.known = before
        self.depth -= 1

    def fresh(self, stem: str) -> str:
        """A name that nothing else has."""
        stem = re.sub(r"\W", "_", stem)
        name, k = stem, 1
        while name in self.used:
            k += 1
            name = f"{stem}_{k}"
        self.used.add(name)
        return name

    def variable(self, v: Expr) -> str:
        """The name of a variable whose loop begins here."""
        self.ended.discard(v)
        found = self.variables.get(v)
        if found is None:
            found = self.variables[v] = self.fresh(v.payload[0])
        return found

    # ---------------------------------------------------------------- values

    def prepare(self, *roots: Expr) -> None:
        """Count how often every part of a statement is used."""
        self.known, self.counts = {}, {}
        for n in walk(*roots):
            for a in n.args:
                self.counts[a] = self.counts.get(a, 0) + 1
        for r in roots:
            self.counts[r] = self.counts.get(r, 0) + 1

    def text(self, e: Expr, rank: int = 0) -> str:
        """e as an operand of something that binds as tightly as `rank`."""
        found = self.value(e)
        return found.text if found.rank >= rank else f"({found.text})"

    def root(self, e: Expr) -> str:
        """The value of a statement, which needs no name."""
        self.counts[e] -= 1
        made = self.value(e) if e in self.known or e.op in (*JOINING, "select") else self._made(e)
        return made.text

    def value(self, e: Expr) -> Text:
        if e in self.known:
            return Text(self.known[e], ATOM)
        if e.op in JOINING:
            self.known[e] = self.join(e)
            return Text(self.known[e], ATOM)
        if e.op == "select" and not self.inline and self._takes_lines(e):
            return self._choice(e)
        made = self._made(e)
        if self.inline or not self._wants_name(e, made.text):
            return made
        return self._named(e, made.text)

    def _named(self, e: Expr, text: str) -> Text:
        name = self.fresh("v")
        self.line(f"{name} = {text}")
        self.known[e] = name
        return Text(name, ATOM)

    def _wants_name(self, e: Expr, text: str) -> bool:
        if e.op in ("const", "var") or _is_plain(e):
            return False
        return self.counts.get(e, 0) > 1 or len(text) > LONG

    def _made(self, e: Expr) -> Text:
        if e.op == "const":
            return literal(e)
        if e.op == "var":
            if e not in self.variables or e in self.ended:
                raise LoweringError(f"the variable {e!r} is used outside its loop")
            return Text(self.variables[e], ATOM)
        if e.op == "load":
            found = self.element(e.payload, e.args)
            return Text(from_memory(found, e.dtype) if e.args else found, ATOM)
        if e.op == "select":
            c = self.text(e.args[0], TERNARY + 1)
            self.inline += 1
            yes, no = (self.text(a, TERNARY + 1) for a in e.args[1:])
            self.inline -= 1
            return Text(f"{yes} if {c} else {no}", TERNARY)
        if e.op == "reduce":
            raise LoweringError(f"{e!r} is still a reduction")
        small = all((b := bounds(a)) is not None and b[0] >= 0 and b[1] < 1 << 32 for a in e.args)
        return operation(e, [self.value(a) for a in e.args], small)

    def element(self, source: Buffer | Local, at: tuple[Expr, ...]) -> str:
        name = source.name if isinstance(source, Buffer) else self.locals.get(source)
        if name is None:
            raise LoweringError(f"the local {source.name} is used before it is declared")
        return f"{name}[{', '.join(map(self.text, at))}]" if at else name

    def _takes_lines(self, e: Expr) -> bool:
        """Whether an arm of a select is too much for an expression: something in it needs lines of
        its own, is used again, or is long."""
        arms = walk(*e.args[1:])
        return len(arms) > 24 or any(
            n.op in JOINING or (n.op == "select" and n is not e)
            or (self.counts.get(n, 0) > 1 and n.op not in ("const", "var") and not _is_plain(n))
            for n in arms
        )  # fmt: skip

    def _choice(self, e: Expr) -> Text:
        condition, yes, no = e.args
        name = self.fresh("v")
        with self.block(f"if {self.text(condition)}:"):
            self.line(f"{name} = {self.text(yes)}")
        with self.block("else:"):
            self.line(f"{name} = {self.text(no)}")
        self.known[e] = name
        return Text(name, ATOM)


def _is_plain(e: Expr) -> bool:
    """Whether writing e again is shorter than a name for it: scalars, and sums of few indices."""
    if e.op == "load":
        return isinstance(e.payload, Local) and all(a.op in ("const", "var") for a in e.args)
    if e.op == "cast":
        return e.args[0].op in ("const", "var")
    return e.dtype is index(0).dtype and e.op in ("add", "mul") and len(walk(e)) <= 5
