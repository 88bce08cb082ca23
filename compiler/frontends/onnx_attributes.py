"""Attributes of ONNX nodes as plain Python values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..errors import ModelError
from .onnx_proto import Message
from .onnx_tensors import ExternalFiles, ForeignType, decode

# AttributeProto.AttributeType by number, and the field that holds the value. Kinds whose second
# entry is None have no meaning for any operator that can be compiled.
_KINDS: Final[dict[int, tuple[str, str | None]]] = {
    1: ("float", "f"), 2: ("int", "i"), 3: ("string", "s"), 4: ("tensor", "t"), 5: ("graph", "g"),
    6: ("floats", "floats"), 7: ("ints", "ints"), 8: ("strings", "strings"),
    9: ("tensors", None), 10: ("graphs", None), 11: ("sparse tensor", None),
    12: ("sparse tensors", None), 13: ("type", None), 14: ("types", None),
}  # fmt: skip
_PYTHON: Final[Mapping[type, str]] = {int: "an int", float: "a float", str: "a string",
                                      tuple: "a list", bool: "a bool"}  # fmt: skip


def read_attributes(
    node: Message, files: ExternalFiles, where: str, outer: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All attributes of a node: int, float, str, tuples of them, `Known` for tensors, the message
    itself for graphs, and a ForeignType instance for what cannot be represented.

    outer: the attributes of the call, inside the body of an ONNX function; a reference to one that
    the call leaves out counts as absent. Raises ModelError naming the node.
    """
    return read_attributes_of(node.attribute, files, where, outer)


def read_attributes_of(
    attributes: Iterable[Message], files: ExternalFiles, where: str,
    outer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`read_attributes` of a list of attributes, such as the defaults of a function."""
    out: dict[str, Any] = {}
    for a in attributes:
        if a.name in out:
            raise ModelError(f"{where} has the attribute {a.name!r} twice")
        if a.ref_attr_name:
            if outer is None:
                raise ModelError(
                    f"{where}: attribute {a.name!r} refers to {a.ref_attr_name!r} of a function, "
                    "but the node is not in a function"
                )
            if a.ref_attr_name in outer:
                out[a.name] = outer[a.ref_attr_name]
        else:
            out[a.name] = _value(a, files, where)
    return out


def _value(a: Message, files: ExternalFiles, where: str) -> Any:
    number = a.type or _guess(a)
    if number not in _KINDS:
        raise ModelError(f"{where}: attribute {a.name!r} has type number {number}, unknown to ONNX")
    kind, field = _KINDS[number]
    if field is None:
        return ForeignType(f"attribute {a.name!r} holds {kind}")
    # A scalar at its default may be left out of the message, but not for another kind of value.
    absent = len(field) == 1 and not a.HasField(field)
    if absent and (kind in ("tensor", "graph") or any(a.HasField(f) for f in "fistg")):
        raise ModelError(f"{where}: attribute {a.name!r} says it is a {kind}, but holds none")
    value = getattr(a, field)
    try:
        if kind == "string":
            return value.decode()
        if kind == "strings":
            return tuple(v.decode() for v in value)
    except UnicodeDecodeError:
        raise ModelError(f"{where}: attribute {a.name!r} is no valid UTF-8 text") from None
    if kind == "tensor":
        try:
            return decode(value, files, f"{where}: the tensor of attribute {a.name!r}")
        except ForeignType as e:
            return ForeignType(f"attribute {a.name!r} is a tensor of {e}")
    return tuple(value) if kind in ("floats", "ints") else value


def _guess(a: Message) -> int:
    """Models older than IR version 2 do not say the type."""
    for number, field in ((1, "f"), (2, "i"), (3, "s"), (4, "t"), (5, "g")):
        if a.HasField(field):
            return number
    return next((n for n, f in ((6, "floats"), (7, "ints"), (8, "strings")) if getattr(a, f)), 7)


def matching(value: Any, default: Any, name: str, where: str) -> Any:
    """An attribute value, checked against the type of the operator's default.

    A float may be given as int, a bool as 0 or 1, and a list where the default is one number for
    all axes. Without a natural default (None) anything passes. Raises ModelError.
    """
    kind = type(default)
    if kind not in _PYTHON or isinstance(value, kind):
        return value
    if isinstance(value, tuple) and kind is int and all(isinstance(v, int) for v in value):
        return value
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is bool and isinstance(value, int):
        return value != 0
    raise ModelError(
        f"{where}: attribute {name!r} must be {_PYTHON[kind]}, but the model has {value!r}"
    )
