"""Constants in the form that kernels read, made once when a program is linked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops import expr
from ..errors import MemoryLimitError
from ..graph.arrays import ALIGNMENT, paged_empty
from ..graph.ir import Blob, Deferred, Graph
from ..graph.mapped import file_of
from ..graph.storage import aliases, place_in
from ..kernels import ir
from ..kernels.ir import Launch, Prepared
from ..memory.buffers import round_up
from ..store import source_digest
from .side_by_side import side_by_side

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
            root, _ = place_in(shared, arg)
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
    graph: Graph, launches: Sequence[Launch], threads: int, ready: Ready | None = None,
    known: Ready | None = None,
) -> dict[Constant, Array]:  # fmt: skip
    """Every constant that kernels read, packed as they want it, dense and on cache lines.

    Those that are `ready` (in a file that is to have all of them) or `known` (of other programs),
    and fit, are used where they are. What was read of files for one of the
    others is given back before the next. Raises MemoryLimitError.
    """
    distinct = constants_of(graph, launches)
    found = _fitting(launches, {**(ready or {}), **(known or {})}, graph)
    packed = [what for what in distinct if isinstance(what, Prepared)]
    missing = sum(what not in found for what in packed)
    if ready is not None and missing:
        _log.info("%d of %d weights are not in the file as kernels of this machine read them;"
                  " they are packed now", missing, len(packed))  # fmt: skip
    return found | _made(graph, launches, [x for x in distinct if x not in found], threads)


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


def _made(graph: Graph, launches: Sequence[Launch], distinct: Sequence[Constant], threads: int
          ) -> dict[Constant, Array]:  # fmt: skip
    """Constants prepared now: next to each other, since the system gives a large piece of memory in
    large pages, each of which is a fault instead of hundreds."""
    usable = {what: _usable(graph.blobs[what]) for what in distinct if isinstance(what, str)}
    found: dict[Constant, Array] = {what: w for what, w in usable.items() if w is not None}
    missing = [what for what in distinct if what not in found]
    places = _places(missing, graph, launches)

    def make(what: Constant) -> Array:
        blobs = [graph.blobs[n] for n in ((what,) if isinstance(what, str) else what.blobs)]
        contents, out = [b.content for b in blobs], places[what]
        if not isinstance(what, str):
            what.make(*contents, out=out)
        elif isinstance(contents[0], Deferred):
            contents[0].write(out, ())
        else:
            out[...] = contents[0]
        for b in blobs:
            b.release()
        return out

    def size(what: Constant) -> int:
        names = (what,) if isinstance(what, str) else what.blobs
        return sum(graph.type(n).nbytes for n in names)

    found |= {what: make(what) for what in missing if size(what) >= _LARGE}
    rest = sorted((what for what in missing if what not in found), key=size, reverse=True)
    little = sum(map(size, rest)) < _LARGE
    with side_by_side(1 if little else threads) as mapped:  # arrays are copied beside Python
        return found | dict(zip(rest, mapped(make, rest), strict=True))


def _usable(blob: Blob) -> Array | None:
    """A constant's own array, if kernels can read it where it is: in memory, dense and on a cache
    line."""
    value = blob.content
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
        return None
    return value if value.ctypes.data % ALIGNMENT == 0 and file_of(value) is None else None


def _places(
    missing: Sequence[Constant], graph: Graph, launches: Sequence[Launch]
) -> dict[Constant, Array]:
    """Where constants are to be: one piece of memory, each on cache lines of its own."""
    params = {arg: b for x in launches for arg, b in zip(x.args, x.kernel.params, strict=True)
              if isinstance(arg, Prepared)}  # fmt: skip
    kinds: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
        (graph.type(what).dims, graph.type(what).dtype.numpy) if isinstance(what, str)
        else ((params[what].elements,), params[what].dtype.numpy)
        for what in missing
    ]  # fmt: skip
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in kinds]
    ends = list(accumulate(round_up(n, ALIGNMENT) for n in sizes))
    room = allocated((ends[-1] if ends else 0,), np.uint8)
    starts = [0, *ends]
    return {
        what: room[at : at + n].view(dtype).reshape(shape)
        for what, (shape, dtype), at, n in zip(missing, kinds, starts[:-1], sizes, strict=True)
    }  # fmt: skip


def allocated(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Uninitialised memory on a cache line, in large pages. Raises MemoryLimitError."""
    try:
        return paged_empty(shape, dtype)
    except MemoryError as e:
        raise MemoryLimitError(f"no memory for the arena or a constant: {e}") from e
