"""Graphs that passes made of a model file before, in this process or another, found instead of made
again.

An entry of the store holds the graph after all passes. Its weights are views of the file, or such
views times a factor; small arrays that were computed are in the entry (`graph.data`). Its key is
all that decides the graph, except that of large tensors it has the beginnings only. Passes look at
the rest of those as well, so the entry also holds a hash of the whole file. Taking it needs no
interpreter, and no more time than packing the weights, so the program is made meanwhile, and not
handed out before the hashes are known to be equal. Where they are not, everything is made anew.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from ...ops.library import BUILT_IN
from ...ops.operator import REGISTRY
from ..codegen.cpu.target import CpuTarget
from ..errors import GraphError
from ..frontends.onnx import Opened
from ..graph.data import from_data, to_data
from ..graph.ir import Graph
from ..graph.mapped import MappedFile
from ..graph.verify import verify
from ..options import VERSION, Options
from ..passes.base import Stage
from ..store import Key, Store
from .collector import paused_collector
from .deferred import Shapes, checked_shapes
from .recall import templates_fingerprint

_BEGINNING: Final = 64
"""Bytes of each large tensor that are part of the key, so that models that differ in their weights
only mostly have an entry each."""

_STRETCH: Final = 32 << 20
"""Bytes hashed in one go: a thread that comes back to the interpreter may have to wait for it. What
was read of the file is given back behind each."""


class FileRecord:
    """What the store knows about one way to compile a model file."""

    def __init__(self, file: MappedFile, key: Key, store: Store) -> None:
        self.key = key
        self._file, self._store = file, store
        self._found = ""

    def find(self) -> Graph | None:
        """The graph after all passes, None if it is not known. It is good for nothing until `holds`
        says so."""
        payload = self._store.get(self.key)
        if payload is None:
            return None
        self.begin()  # needed whatever the entry says
        try:
            entry = json.loads(payload)
            self._found = str(entry["file"])
            graph = from_data(entry["graph"], self._file)
            verify(graph)
        except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError, GraphError):
            return None
        return graph

    def begin(self) -> None:
        """Start to take the file's hash, in a thread of its own."""
        _ = self._hash

    def holds(self) -> bool:
        """Whether the file is the one that the graph found was made of. Raises ModelError when
        somebody wrote to it meanwhile."""
        found = self._hash.result()
        self._file.check()
        return found == self._found

    def keep(self, graph: Graph) -> None:
        """Store what passes made of the file, if it can be said as data."""
        data = to_data(graph, self._file)
        if data is not None:
            entry = {"file": self._hash.result(), "graph": data}
            self._file.check()
            self._store.put(self.key, json.dumps(entry, separators=(",", ":")).encode())

    @cached_property
    def _hash(self) -> Future[str]:
        thread = ThreadPoolExecutor(1)
        try:
            return thread.submit(file_hash, self._file)
        finally:
            thread.shutdown(wait=False)


def file_record(
    model: Any, shapes: Shapes | None, outputs: Sequence[str] | None, channel_block: int,
    target: CpuTarget, chosen: Options, store: Store,
) -> FileRecord | None:  # fmt: skip
    """The record of a model, None where there can be none: it was not given as a file, or is to be
    compiled in a way that a key does not describe.

    Raises OptionError for shapes that are none.
    """
    sizes = checked_shapes(shapes)
    if not isinstance(model, Opened) or model.file is None or store.directory is None:
        return None
    plain = outputs is None or all(isinstance(n, str) for n in outputs)
    own = any(BUILT_IN.get(name) is not operator for name, operator in REGISTRY.items())
    if own or not plain or chosen.fuel is not None or chosen.dump:
        return None
    beginnings = hashlib.sha256()
    for at, tensor in model.parts.tensors.items():
        beginnings.update(f"{at}:{tensor.size}:".encode() + tensor[:_BEGINNING].tobytes())
    fields: dict[str, str | int] = {
        "what": "graph of a model",
        "model": hashlib.sha256(model.parts.rest).hexdigest(),
        "tensors": beginnings.hexdigest(),
        "shapes": json.dumps(sizes, sort_keys=True),
        "outputs": json.dumps(None if outputs is None else list(outputs)),
        "numerics": chosen.numerics,
        "channels": channel_block,
        "passes": templates_fingerprint(),
        "tilewright": VERSION,
        "numpy": np.__version__,  # which computes what passes fold
    }
    fields |= {name: str(value) for name, value in target.fingerprint.items()}
    return FileRecord(model.file, tuple(fields.items()), store)


def file_hash(file: MappedFile) -> str:
    """SHA-256 of all bytes of a file."""
    h = hashlib.sha256()
    for start in range(0, len(file), _STRETCH):
        with memoryview(file) as whole, whole[start : start + _STRETCH] as part:
            h.update(part)
            file.madvise(mmap.MADV_DONTNEED, start, len(part))
    return h.hexdigest()


class Remade(Sequence[Stage]):
    """The stages of a program whose graph was found: made when somebody looks at one of them."""

    def __init__(self, make: Callable[[], Sequence[Stage]], final: Graph) -> None:
        self._make, self._final = make, final

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        with paused_collector():
            *before, last = self._make()
        return (*before, replace(last, graph=self._final))

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, k: Any) -> Any:
        return self._stages[k]
