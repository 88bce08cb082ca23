"""Packed constants that programs of one model have in common.

A model with open dimensions becomes a program for every set of shapes. Their kernels mostly read
the same weights in the same form, so each form is made once and every program reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..graph.ir import Blob, Deferred, Graph
from ..graph.mapped import file_of
from ..graph.scaled import Scaled
from ..kernels.ir import Launch, Prepared
from .constants import Constant, Ready, constants_of

Array = npt.NDArray[Any]

_WORTH: Final = 1 << 12
"""Bytes of a constant from which it is shared."""


class CommonConstants:
    """Constants as kernels read them, by what they are made of and by which recipe."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Array] = {}

    def ready(self, graph: Graph, launches: Sequence[Launch]) -> tuple[Ready, Mapping[Any, Any]]:
        """Those that exist, for `prepare`, and the keys for `keep` of those that do not."""
        found: dict[Any, Array] = {}
        new: dict[Constant, Hashable] = {}
        for what in constants_of(graph, launches):
            names, recipe = ((what,), "") if isinstance(what, str) else (what.blobs, what.recipe)
            if sum(graph.type(n).nbytes for n in names) < _WORTH:
                continue
            key = (*(_identity(graph.blobs[n]) for n in names), recipe)
            if key in self._made:
                found[(names, recipe) if isinstance(what, Prepared) else what] = self._made[key]
            else:
                new[what] = key
        return found, new

    def keep(self, new: Mapping[Any, Any], made: Mapping[Constant, Array]) -> None:
        """Share from now on what was made of the constants in `new`."""
        for what, key in new.items():
            self._made.setdefault(key, made[what])


def _identity(blob: Blob) -> Hashable:
    """Equal for constants of equal bytes and types. Constants in files are known by their place,
    which takes no reading; the key keeps the file mapped."""
    x = blob.content
    if isinstance(x, Deferred) and isinstance(x.write, Scaled):
        s = x.write
        return "scaled", _identity(s.weights), s.factor.tobytes(), s.axis
    array = blob.value
    assert array is not None
    file = file_of(array)
    if file is not None:
        return file, array.ctypes.data, array.shape, array.strides, array.dtype
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(data.data).digest(), array.shape, array.dtype
