"""TILEWRIGHT_POISON: memory that nobody should read any more holds NaN.

Before a call the whole arena and the outputs are filled, and after every step what was used for
the last time in it, in donated inputs too. So a result that depends on memory before it is written,
after its buffer's last use, or on another buffer's bytes, shows: every float in it is NaN, every
signed integer -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..memory.buffers import LiveRange
from ..memory.plan import MemoryPlan

Array = npt.NDArray[Any]

FILL: Final = 0xFF
"""The byte: floats of any width that consist of it are NaN."""


class Poison:
    """What dies in which step of a plan."""

    def __init__(self, memory: MemoryPlan, inputs: Sequence[str]) -> None:
        # per step: the number of a donated input, None for the arena; first byte; end
        self._dies: list[list[tuple[int | None, int, int]]] = [[] for _ in memory.steps]
        for block in memory.ranges:
            self._note(None, block, memory.offsets[block.name])
        for region in memory.regions:
            for block in region.ranges:
                self._note(inputs.index(region.name), block, region.offsets[block.name])

    def _note(self, where: int | None, block: LiveRange, start: int) -> None:
        if block.last >= 0:
            self._dies[block.last].append((where, start, start + block.bytes))

    def dying(self, step: int) -> Sequence[tuple[int | None, int, int]]:
        """What a step used for the last time: the number of a donated input, or None for the arena;
        its first byte there; its end."""
        return self._dies[step]

    def before(self, arena: Array, results: Sequence[Array]) -> None:
        """Nothing was written yet."""
        arena.fill(FILL)
        for a in results:
            _bytes(a)[:] = FILL

    def after(self, step: int, arena: Array, inputs: Sequence[Array]) -> None:
        """The step has run."""
        for where, low, high in self.dying(step):
            whole = arena if where is None else _bytes(inputs[where])
            whole[low:high] = FILL


def _bytes(a: Array) -> Array:
    """A C-contiguous array as the bytes it consists of."""
    return a.reshape(-1).view(np.uint8) if a.size else np.empty(0, np.uint8)
