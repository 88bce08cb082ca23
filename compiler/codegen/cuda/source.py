"""Kernel IR to Python source in the dialect of Numba CUDA, one function per phase.

A phase that is written for one thread becomes what it says (`per_thread`); the items of others are
spread over threads (`lanes`).

The source reads like the Kernel IR. What Python has no sign for, or gives another meaning than the
operators of `ops.expr`, are functions of the dialect (see `dialect`), and so is what only GPUs have
(see `intrinsics`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import LoweringError
from ...kernels.ir import Kernel
from ...kernels.printer import symbol
from .entry import MOST_BLOCKS, Entry
from .lanes import Lanes
from .per_thread import PerThread


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one kernel: a function for every entry, whose arguments are the buffers."""

    text: str
    entries: tuple[Entry, ...]


def kernel_source(kernel: Kernel) -> Source:
    """Raises LoweringError naming the template where the Kernel IR has no form on a GPU."""
    entries: list[Entry] = []
    parts: list[str] = []
    for k, phase in enumerate(kernel.phases):
        form = PerThread if phase.threads else Lanes
        try:
            entry, text = form(kernel, phase, f"{symbol(kernel)}_p{k}").finish()
            if entry.blocks > MOST_BLOCKS:
                raise LoweringError(f"{entry.blocks} blocks; a grid has {MOST_BLOCKS} at most")
        except LoweringError as e:
            raise LoweringError(f"kernel template {kernel.template}: {e}") from e
        entries.append(entry)
        parts.append(text)
    return Source("\n\n".join(parts), tuple(entries))
