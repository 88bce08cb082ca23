"""Decoding ONNX tensors to numpy arrays, from the message itself or from external data files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops import types as t
from ...ops.types import DType, TensorType
from ..errors import ModelError
from ..graph.mapped import MappedFile, contents
from .onnx_proto import Message

Array = npt.NDArray[Any]

# TensorProto.DataType, by number.
DTYPES: Final[dict[int, DType]] = {
    1: t.f32, 2: t.u8, 3: t.i8, 4: t.u16, 5: t.i16, 6: t.i32, 7: t.i64, 9: t.boolean,
    10: t.f16, 11: t.f64, 12: t.u32, 13: t.u64, 16: t.bf16,
}  # fmt: skip
FOREIGN_DTYPES: Final[dict[int, str]] = {
    0: "undefined", 8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn",
    18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip

# The repeated field that holds the elements of each type when there is no raw_data, and the numpy
# type of one entry. 16-bit floats travel as the bits of an int32.
_FIELDS: Final[dict[DType, tuple[str, Any]]] = {
    t.f32: ("float_data", np.float32),
    t.f64: ("double_data", np.float64),
    t.i64: ("int64_data", np.int64),
    t.u32: ("uint64_data", np.uint64),
    t.u64: ("uint64_data", np.uint64),
    **dict.fromkeys(
        (t.i8, t.i16, t.i32, t.u8, t.u16, t.boolean, t.f16, t.bf16), ("int32_data", np.int32)
    ),
}
MAX_BYTES: Final = 1 << 46
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_NONE: Final[Mapping[int, Array]] = MappingProxyType({})


class ForeignType(Exception):
    """A value that the compiler has no tensor type for; says which. Never leaves the frontend."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A value known while importing: its elements and their type (bfloat16 as raw bits)."""

    array: Array
    dtype: DType

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.array.shape)


def known(value: npt.ArrayLike) -> Known:
    array = np.asarray(value)
    return Known(array, t.dtype_of(array.dtype))


def dtype_named(number: int, what: str) -> DType:
    """The element type of a TensorProto.DataType. Raises ForeignType, or ModelError for a number
    that ONNX does not define."""
    if number in DTYPES:
        return DTYPES[number]
    if number in FOREIGN_DTYPES:
        raise ForeignType(FOREIGN_DTYPES[number])
    raise ModelError(f"{what} has the element type number {number}, which ONNX does not define")


def checked_size(dims: Iterable[int], dtype: DType, what: str) -> int:
    """The number of elements. Raises ModelError for negative or absurdly large dimensions."""
    sizes = tuple(dims)
    if any(d < 0 for d in sizes):
        raise ModelError(f"{what} has a negative dimension: {list(sizes)}")
    if prod(max(d, 1) for d in sizes) * dtype.bytes > MAX_BYTES:
        raise ModelError(f"{what} of shape {list(sizes)} is larger than any machine's memory")
    return prod(sizes)


@dataclass(frozen=True)
class ExternalFiles:
    """The files that a model keeps tensors in. Only files inside the model's folder are opened."""

    folder: Path | None
    _maps: dict[Path, MappedFile | bytes] = field(default_factory=dict, repr=False)

    @cached_property
    def _root(self) -> Path:
        return Path(os.path.realpath(self.folder or "."))

    @property
    def are_open(self) -> bool:
        """Whether any of them was opened."""
        return bool(self._maps)

    def bytes_at(self, location: str, offset: int, length: int, what: str) -> memoryview:
        """A read-only view of a part of a file. Raises ModelError naming the tensor."""
        data = self._open(location, what)
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ModelError(
                f"{what}: bytes {offset} to {offset + length} of external data file {location!r} "
                f"are needed, but the file has {len(data)} bytes"
            )
        return memoryview(data)[offset : offset + length]

    def check(self) -> None:
        """Raises ModelError when a file was written to since it was opened."""
        for data in self._maps.values():
            if isinstance(data, MappedFile):
                data.check()

    def size(self, location: str, what: str) -> int:
        return len(self._open(location, what))

    def _open(self, location: str, what: str) -> MappedFile | bytes:
        path = self._resolve(location, what)
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = contents(file, f"external data file {location!r}")
            except (OSError, ValueError) as e:
                raise ModelError(
                    f"{what}: external data file {location!r} cannot be read: {e}"
                ) from e
        return self._maps[path]

    def _resolve(self, location: str, what: str) -> Path:
        """Names such as `../x`, `/etc/x` or a link that leads out would let a model read any file
        of the machine into its weights."""
        if self.folder is None:
            raise ModelError(
                f"{what} lies in the external data file {location!r}, but the model was given as "
                "an object or bytes, so its folder is not known: give the path of the model file"
            )
        parts = location.replace("\\", "/").split("/")
        path = Path(os.path.realpath(self._root / location)) if "\0" not in location else None
        inside = path is not None and path.is_relative_to(self._root)
        if not location or ".." in parts or Path(location).is_absolute() or not inside:
            raise ModelError(
                f"{what}: external data file {location!r} lies outside the model's folder "
                f"{str(self.folder)!r}, which is not allowed; put it next to the model"
            )
        assert path is not None
        if not path.is_file():
            raise ModelError(f"{what}: external data file {location!r} does not exist")
        return path


def decode(tensor: Message, files: ExternalFiles, what: str, raw: Array | None = None) -> Known:
    """The elements of a TensorProto, without a copy where its bytes allow it.

    what: how errors call the tensor. raw: its raw data where the message does not hold it. Raises
    ModelError for a tensor whose data does not fit its type and shape, ForeignType for element
    types without numpy counterpart.
    """
    dtype = dtype_named(tensor.data_type, what)
    dims = tuple(tensor.dims)
    count = checked_size(dims, dtype, what)
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which no ONNX version supports")
    if tensor.data_location == _EXTERNAL:
        flat = _from_bytes(_external(tensor, files, count * dtype.bytes, what), dtype, count, what)
    elif raw is not None:
        flat = _from_bytes(raw.data, dtype, count, what)
    elif tensor.HasField("raw_data"):
        flat = _from_bytes(tensor.raw_data, dtype, count, what)
    else:
        flat = _from_field(tensor, dtype, count, what)
    return Known(flat.reshape(dims), dtype)


def _from_bytes(data: bytes | memoryview, dtype: DType, count: int, what: str) -> Array:
    if len(data) != count * dtype.bytes:
        raise ModelError(
            f"{what} needs {count * dtype.bytes} bytes ({count} elements of {dtype}), "
            f"but its raw data has {len(data)} bytes"
        )
    flat: Array = np.frombuffer(data, dtype.numpy.newbyteorder("<"))
    return flat.astype(dtype.numpy, copy=False)


def _from_field(tensor: Message, dtype: DType, count: int, what: str) -> Array:
    name, entry = _FIELDS[dtype]
    data = np.array(getattr(tensor, name), entry)
    if data.size != count:
        raise ModelError(
            f"{what} needs {count} elements of {dtype}, but its {name} has {data.size}"
        )
    if dtype in (t.f16, t.bf16):
        return data.astype(np.uint16).view(dtype.numpy)
    return data.astype(dtype.numpy, copy=False)


def _external(tensor: Message, files: ExternalFiles, length: int, what: str) -> memoryview:
    entries = {e.key: e.value for e in tensor.external_data}
    if "location" not in entries:
        raise ModelError(f"{what} is external, but names no file (no 'location')")
    location = entries["location"]
    try:
        offset = int(entries.get("offset", "0") or "0")
        stored = int(entries["length"]) if entries.get("length") else None
    except ValueError:
        raise ModelError(f"{what}: offset or length of its external data is no number") from None
    if stored is None:
        stored = length if offset else files.size(location, what)
    return files.bytes_at(location, offset, stored, what)


def decode_all(
    graph: Message, files: ExternalFiles, label: str, tensors: Mapping[int, Array] = _NONE
) -> dict[str, Known | str]:
    """The initializers of a graph by name; for one of a foreign type, the name of that.

    tensors: the bytes of those, by position, whose raw data the message does not hold. Raises
    ModelError for a damaged tensor, a duplicate or a missing name.
    """
    out: dict[str, Known | str] = {}
    for k, tensor in enumerate(graph.initializer):
        what = f"{label}: initializer {tensor.name!r}"
        if not tensor.name:
            raise ModelError(f"{label} has an initializer without a name")
        if tensor.name in out:
            raise ModelError(f"{what} is defined twice")
        try:
            out[tensor.name] = decode(tensor, files, what, tensors.get(k))
        except ForeignType as e:
            out[tensor.name] = f"{e}{list(tensor.dims)}"
    for sparse in graph.sparse_initializer:
        out[sparse.values.name] = f"sparse tensor{list(sparse.dims)}"
    return out
