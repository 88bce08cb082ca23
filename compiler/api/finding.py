"""What a bisection says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..text import printable


@dataclass(frozen=True, slots=True)
class Finding:
    """What `bisect` found. Printed, it is a report.

    kind: the sort of culprit, "" if nothing is wrong: "pass", "memory plan", "in place",
    "template", "config", "fusion", "operator", "code generation", "store" or "runtime". name: which
    of them. blob: the first value that is out of bounds. kernel: its kernel, "" where none is to
    blame. nodes: of the model, that it comes from. fuel: TILEWRIGHT_FUEL with which the result is
    wrong, while it is right with one less; rewrite: what that rewrite does. grounds: how all that
    was found out. outputs: those that are out of bounds, with what is wrong with them. files: what
    was written.
    """

    kind: str = ""
    name: str = ""
    blob: str = ""
    kernel: str = ""
    nodes: tuple[str, ...] = ()
    fuel: int | None = None
    rewrite: str = ""
    grounds: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether anything is out of bounds."""
        return bool(self.kind)

    def __str__(self) -> str:
        if not self.is_wrong:
            return "nothing is wrong: every kernel is within the bound of its arithmetic"
        lines = [f"at fault: {self.kind} {self.name}"]
        if self.blob:
            lines.append(f"  first blob out of bounds: %{self.blob}")
        if self.kernel:
            lines.append(f"  kernel: {self.kernel}")
        if self.nodes:
            lines.append(f"  model nodes: {', '.join(self.nodes)}")
        if self.fuel is not None:
            lines.append(f"  wrong with TILEWRIGHT_FUEL={self.fuel}, right with {self.fuel - 1}; "
                         f"rewrite {self.fuel} is: {self.rewrite}")  # fmt: skip
        lines += [f"  because {g}" for g in self.grounds if g]
        lines += [f"  output {n}: {why}" for n, why in self.outputs]
        lines += [f"  written: {f}" for f in self.files]
        return "\n".join(map(printable, lines))

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {"outputs": dict(self.outputs)}
