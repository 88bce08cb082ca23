"""Constants in the form that kernels read, made once when a program is linked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops import expr
from ..errors import MemoryLimitError
from ..graph.arrays import ALIGNMENT, aligned_empty
from ..graph.ir import Graph
from ..graph.mapped import file_of
from ..graph.storage import aliases
from ..kernels import ir
from ..kernels.ir import Launch, Prepared
from ..store import source_digest

Array = npt.NDArray[Any]
Constant = str | Prepared
Ready = Mapping[str | tuple[tuple[str, ...], str], Array]
"""Constants as kernels read them, by blob, or by blobs and recipe."""

_log: Final = logging.getLogger("tilewright")

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


@cache
def packing_fingerprint() -> str:
    """A hash of the source that decides what a recipe makes of arrays: the templates, and the
    operators that some recipes apply."""
    folders = (Path(ir.__file__).parent, Path(expr.__file__).parent)
    return source_digest(file for folder in folders for file in sorted(folder.glob("*.py")))


def prepare(
    graph: Graph, launches: Sequence[Launch], threads: int, ready: Ready | None = None
) -> dict[Constant, Array]:
    """Every constant that kernels read, packed as they want it, dense and on cache lines.

    Those that are `ready`, and fit, are used where they are. What was read of files for one of the
    others is given back before the next. Raises MemoryLimitError.
    """
    distinct = constants_of(graph, launches)
    found = _fitting(launches, ready or {}, graph)
    packed = [what for what in distinct if isinstance(what, Prepared)]
    missing = sum(what not in found for what in packed)
    if ready is not None and missing:
        _log.info("%d of %d weights are not in the file as kernels of this machine read them;"
                  " they are packed now", missing, len(packed))  # fmt: skip
    return found | _made(graph, [what for what in distinct if what not in found], threads)


def _fitting(launches: Sequence[Launch], ready: Ready, graph: Graph) -> dict[Constant, Array]:
    """The constants that are ready, and are what kernels expect."""
    found: dict[Constant, Array] = {}
    for launch in launches:
        for arg, buffer in zip(launch.args, launch.kernel.params, strict=True):
            if arg is None or arg in found:
                continue
            array = ready.get((arg.blobs, arg.recipe) if isinstance(arg, Prepared) else arg)
            if (
                array is not None
                and array.dtype == buffer.dtype.numpy
                and array.size == buffer.elements
                and array.ctypes.data % ALIGNMENT == 0
                and (isinstance(arg, Prepared) or graph.blobs[arg].is_constant)
            ):
                found[arg] = array
    return found


def _made(graph: Graph, distinct: Sequence[Constant], threads: int) -> dict[Constant, Array]:
    """Constants prepared now."""

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
