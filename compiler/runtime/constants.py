"""Constants in the form that kernels read, made once when a program is linked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import MemoryLimitError
from ..graph.arrays import ALIGNMENT, aligned_empty
from ..graph.ir import Graph
from ..graph.mapped import file_of
from ..graph.storage import aliases
from ..kernels.ir import Launch, Prepared

Array = npt.NDArray[Any]
Constant = str | Prepared

_LARGE: Final = 1 << 25
"""Bytes from which a constant is prepared alone: what it is made from and what is made of it are in
memory together."""


def constants_of(graph: Graph, launches: Sequence[Launch]) -> tuple[Constant, ...]:
    """What kernels read of constants, each thing once."""
    shared = aliases(graph)
    found: dict[Constant, None] = {}
    for arg in (a for launch in launches for a in launch.args):
        if isinstance(arg, Prepared):
            found[arg] = None
        elif arg is not None:
            root = arg
            while root in shared:
                root = shared[root].of
            if graph.blobs[root].is_constant:
                found[root] = None
    return tuple(found)


def prepare(graph: Graph, launches: Sequence[Launch], threads: int) -> dict[Constant, Array]:
    """Every constant that kernels read, packed as they want it, dense and on cache lines.

    What was read of files for one is given back before the next. Raises MemoryLimitError.
    """

    def make(what: Constant) -> Array:
        blobs = [graph.blobs[n] for n in ((what,) if isinstance(what, str) else what.blobs)]
        made = blobs[0].value if isinstance(what, str) else what.make(*(b.content for b in blobs))
        assert made is not None
        settled = _settled(made)
        for b in blobs:
            b.release()
        return settled

    def size(what: Constant) -> int:
        names = (what,) if isinstance(what, str) else what.blobs
        return sum(graph.type(n).nbytes for n in names)

    distinct = constants_of(graph, launches)
    made = {what: make(what) for what in distinct if size(what) >= _LARGE}
    rest = [what for what in distinct if what not in made]
    if threads == 1 or sum(map(size, rest)) < _LARGE:
        return made | {what: make(what) for what in rest}
    with ThreadPoolExecutor(threads) as pool:  # copying arrays does not hold the interpreter
        return made | dict(zip(rest, pool.map(make, rest), strict=True))


def _settled(value: Array) -> Array:
    """A constant in memory of its own or the graph's, dense and on a cache line."""
    dense = np.ascontiguousarray(value)
    if dense.ctypes.data % ALIGNMENT == 0 and file_of(dense) is None:
        return dense
    out = allocated(dense.shape, dense.dtype)
    out[...] = dense
    return out


def allocated(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Uninitialised memory on a cache line. Raises MemoryLimitError."""
    try:
        return aligned_empty(shape, dtype)
    except MemoryError as e:
        raise MemoryLimitError(f"no memory for the arena or a constant: {e}") from e
