"""Takes the large tensors out of a serialized model before protobuf parses the rest.

Weights are nearly all bytes of a model. protobuf would copy them into its message, and once more
when the field is read; here they stay where they are, in the mapped file. Of the wire format
(https://protobuf.dev/programming-guides/encoding) only the path to them is walked: the graph of the
model (field 7), its initializers (field 5), their raw_data (field 9). Whatever looks odd on that
path is left to protobuf as it is, which then says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..graph.mapped import MappedFile

Array = npt.NDArray[Any]
LARGE: Final = 1 << 14
"""Bytes from which a tensor is worth the detour."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Split:
    """A model of `size` bytes without the raw data of large initializers, and that data by the
    initializer's position, as bytes."""

    size: int
    rest: bytes
    tensors: dict[int, Array]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field at bytes at..stop, whose contents begin at `start`."""

    number: int
    wire: int
    at: int
    start: int
    stop: int


class _OddError(Exception):
    """The bytes are no message, or one that this module does not understand."""


def split(data: bytes | MappedFile) -> Split:
    """Split a serialized model; the tensors are views of it."""
    size = len(data)
    try:
        return _split(data, size)
    except _OddError:
        return Split(size, data[:], {})


def _split(data: bytes | MappedFile, size: int) -> Split:
    graphs = [f for f in _fields(data, 0, size) if f.number == _GRAPH]
    if len(graphs) != 1 or graphs[0].wire != _LENGTH:
        raise _OddError
    graph = graphs[0]
    kept: list[bytes] = []
    tensors: dict[int, Array] = {}
    position, done = 0, graph.start
    for f in _fields(data, graph.start, graph.stop):
        if f.number != _INITIALIZER:
            continue
        raw = _raw_data(data, f)
        if raw is not None:
            tensors[position] = np.frombuffer(data, np.uint8, raw.stop - raw.start, raw.start)
            front = _bytes(data, f.start, raw.at)
            back = _bytes(data, raw.stop, f.stop)
            kept += [_bytes(data, done, f.at), _encoded(_INITIALIZER, front + back)]
            done = f.stop
        position += 1
    if not tensors:
        raise _OddError
    kept.append(_bytes(data, done, graph.stop))
    before, behind = _bytes(data, 0, graph.at), _bytes(data, graph.stop, size)
    return Split(size, before + _encoded(_GRAPH, b"".join(kept)) + behind, tensors)


def _raw_data(data: bytes | MappedFile, tensor: _Field) -> _Field | None:
    """The raw data of an initializer if it is large."""
    if tensor.wire != _LENGTH:
        raise _OddError
    if tensor.stop - tensor.start < LARGE:
        return None
    found = [f for f in _fields(data, tensor.start, tensor.stop) if f.number == _RAW_DATA]
    if len(found) != 1 or found[0].wire != _LENGTH or found[0].stop - found[0].start < LARGE:
        return None
    return found[0]


def _fields(data: bytes | MappedFile, at: int, end: int) -> Iterator[_Field]:
    """The fields of the message at bytes at..end, without those inside them."""
    while at < end:
        head = _bytes(data, at, min(at + 20, end))  # a tag and a length take at most ten bytes each
        tag, n = _varint(head, 0)
        wire = tag & 7
        if wire == _VARINT:
            start, stop = at + n, at + _varint(head, n)[1]
        elif wire == _LENGTH:
            length, n = _varint(head, n)
            start, stop = at + n, at + n + length
        elif wire in (_FIXED32, _FIXED64):
            start, stop = at + n, at + n + (4 if wire == _FIXED32 else 8)
        else:
            raise _OddError
        if stop > end:
            raise _OddError
        yield _Field(tag >> 3, wire, at, start, stop)
        at = stop


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends) of a number in groups of seven bits, the lowest first."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _OddError


def _encoded(number: int, contents: bytes) -> bytes:
    """A field of bytes."""
    out = bytearray([number << 3 | _LENGTH])
    length = len(contents)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + contents


def _bytes(data: bytes | MappedFile, start: int, stop: int) -> bytes:
    return data[start:stop] if isinstance(data, bytes) else data.read_at(start, stop)
