"""The tile of a block of `gpu_wgmma`, and who computes which part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...ops.expr import Expr, var
from ...ops.types import DType

GROUP: Final = 128  # threads that multiply together: four warps
TILE: Final = 64  # rows of one instruction


@dataclass(frozen=True, slots=True)
class Shape:
    """A config with what follows from it. kind: of the instruction, "f16" or the like; parts: of
    every sum."""

    m: int
    n: int
    stages: int
    cluster: int
    kind: str
    held: DType  # of the sums
    blocks: int
    parts: int = 1

    @property
    def part(self) -> Expr:
        """The number of the part that a block's tile is of."""
        return var("part", self.parts)

    @property
    def groups(self) -> int:
        """Of consumers."""
        return min(2, self.m // TILE)

    @property
    def tiles(self) -> int:
        """Of 64 rows, of one group."""
        return self.m // TILE // self.groups

    @property
    def sums(self) -> int:
        """Registers of a thread."""
        return self.tiles * self.n // 2

    @property
    def threads(self) -> int:
        return (self.groups + 1) * GROUP
