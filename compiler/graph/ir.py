"""The graph: an immutable list of typed operators over named blobs.

Blobs carry types and roles; Ops name an operator, its attributes, the blobs they read and write,
and the model nodes they came from. Ops stand in an order in which they can run. Passes never change
a graph: they build another one (`builder.py`), sharing blobs and constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.operator import Operator, Trait
from ...ops.operator import get as get_operator
from ...ops.types import TensorType
from .arrays import aligned_empty, freeze
from .mapped import file_of

Array = npt.NDArray[Any]


class Role(Enum):
    """What a blob is to the program."""

    INPUT = "input"
    CONSTANT = "constant"
    PARAMETER = "parameter"  # a constant that training may update
    STATE = "state"  # kept between calls, updated in place
    INTERMEDIATE = "intermediate"


@dataclass(frozen=True, slots=True)
class Inside:
    """A place in another blob's memory: from index `start` on, along the axis that the layout of
    the part names."""

    blob: str
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Deferred:
    """A constant that is computed whenever it is asked for, and not kept.

    Weights are nearly all of a model's memory. A pass that changes them says how, so that they are
    read, changed and packed for their kernel one at a time. sources: the constants that it reads.
    write: write(out, where) puts the part that slices along the first axes choose into an array of
    its shape.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sources: tuple[Blob, ...]
    write: Callable[[Array, tuple[slice, ...]], None] = field(repr=False)

    def make(self) -> Array:
        """All of it, row-major."""
        out = aligned_empty(self.shape, self.dtype)
        self.write(out, ())
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A named value. Constants hold their array (row-major, read-only), or how to compute it.
    inside: where its memory is, if it is a part of another blob."""

    name: str
    type: TensorType
    role: Role = Role.INTERMEDIATE
    content: Array | Deferred | None = None
    inside: Inside | None = None

    @property
    def is_constant(self) -> bool:
        return self.content is not None

    @property
    def value(self) -> Array | None:
        """The array; a deferred one is computed now."""
        if isinstance(self.content, Deferred):
            return freeze(self.content.make())
        return self.content

    def release(self) -> None:
        """Give back memory that can be had again: what was read of files. Arrays stay valid."""
        if isinstance(self.content, Deferred):
            for blob in self.content.sources:
                blob.release()
        elif self.content is not None:
            file = file_of(self.content)
            if file is not None:
                file.release(self.content)

    def check(self) -> None:
        """Raises ModelError when the file that a constant lies in was written to since."""
        if isinstance(self.content, Deferred):
            for blob in self.content.sources:
                blob.check()
        elif self.content is not None:
            file = file_of(self.content)
            if file is not None:
                file.check()

    def digest(self) -> str:
        """A short content hash of a constant's bytes."""
        if self.value is None:
            return ""
        return content_digest(self.value)


def content_digest(value: Array) -> str:
    """sha256 over the row-major bytes, 16 hex digits. Zero-strided arrays hash one element."""
    if value.size and not any(value.strides) and value.ndim:
        data = np.ascontiguousarray(value.reshape(-1)[:1])
        return hashlib.sha256(b"splat" + data.tobytes()).hexdigest()[:16]
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Op:
    """One use of an operator.

    inputs: blob names, None for an absent optional input. attrs: complete, values hashable.
    name: the model node's name. source: the model nodes it stands for (several after rewrites).
    group: the fusion group, None before fusion. reads: the blobs read, without the absent ones.
    """

    operator: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    source: tuple[str, ...] = ()
    group: int | None = None
    reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ins = self.inputs
        reads = tuple(n for n in ins if n is not None) if None in ins else ins
        object.__setattr__(self, "reads", reads)

    @property
    def definition(self) -> Operator:
        return get_operator(self.operator)

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.attrs)

    def attr(self, name: str) -> Any:
        return dict(self.attrs)[name]

    def has(self, trait: type[Trait]) -> bool:
        return self.definition.has(trait)

    def with_group(self, group: int | None) -> Op:
        return replace(self, group=group)


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole program. `inputs` and `outputs` are blob names in call order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    blobs: Mapping[str, Blob] = field(repr=False)

    def type(self, blob: str) -> TensorType:
        return self.blobs[blob].type

    def input_types(self, op: Op) -> tuple[TensorType | None, ...]:
        return tuple(None if n is None else self.blobs[n].type for n in op.inputs)

    def output_types(self, op: Op) -> tuple[TensorType, ...]:
        return tuple(self.blobs[n].type for n in op.outputs)

    @cached_property
    def producer(self) -> Mapping[str, Op]:
        """The op that writes each blob; inputs and constants have none."""
        return {o: op for op in self.ops for o in op.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Op, ...]]:
        """The ops that read each blob, in order; one entry per op."""
        out: dict[str, list[Op]] = {n: [] for n in self.blobs}
        for op in self.ops:
            for n in dict.fromkeys(op.reads):
                out[n].append(op)
        return {n: tuple(v) for n, v in out.items()}

    @cached_property
    def constants(self) -> tuple[str, ...]:
        return tuple(n for n, b in self.blobs.items() if b.role in (Role.CONSTANT, Role.PARAMETER))

    @cached_property
    def groups(self) -> tuple[tuple[Op, ...], ...]:
        """Ops by fusion group, in order of their last member; an op without a group is alone."""
        table: dict[object, list[Op]] = {}
        for k, op in enumerate(self.ops):
            key: object = ("alone", k) if op.group is None else op.group
            members = table.pop(key, [])
            table[key] = [*members, op]
        return tuple(tuple(v) for v in table.values())

    @cached_property
    def derived(self) -> dict[object, Any]:
        """What others found out about this graph and will ask for again; gone when it is."""
        return {}

    def is_constant(self, blob: str | None) -> bool:
        return blob is not None and self.blobs[blob].is_constant

    def structural_key(self) -> str:
        """A hash of the structure, types, attributes and constants; blob and node names do not
        matter, so that equal graphs under other names share one key."""
        ids: dict[str, int] = {}
        h = hashlib.sha256()

        def number(n: str) -> int:
            if n not in ids:
                ids[n] = len(ids)
                b = self.blobs[n]
                h.update(f"{ids[n]}:{b.type}:{b.role.value}:{b.digest()};".encode())
                if b.inside is not None:
                    h.update(f"{ids[n]} in {number(b.inside.blob)}+{b.inside.start};".encode())
            return ids[n]

        h.update(f"in {[number(n) for n in self.inputs]};".encode())
        for op in self.ops:
            ins = [None if n is None else number(n) for n in op.inputs]
            outs = [number(n) for n in op.outputs]
            h.update(f"{op.operator}{ins}{outs}{op.attrs}{op.group};".encode())
        h.update(f"out {[number(n) for n in self.outputs]}".encode())
        return h.hexdigest()
