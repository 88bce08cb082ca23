"""ONNX operators that are defined by other ones: functions of the model, and of the standard."""

from __future__ import annotations

from typing import Any, Final

from ..errors import ModelError
from .onnx_call import Call
from .onnx_proto import Message, domain_of, messages
from .onnx_scope import Node
from .onnx_tensors import DTYPES

Key = tuple[str, str, str]  # domain, name, overload

_NUMBERS: Final = {dtype: number for number, dtype in DTYPES.items()}


def functions_by_key(model: Message, label: str) -> dict[Key, Message]:
    """The functions that a model brings along. Raises ModelError when one is defined twice."""
    out: dict[Key, Message] = {}
    for f in model.functions:
        key = (domain_of(f.domain), f.name, getattr(f, "overload", ""))
        if key in out:
            raise ModelError(f"{label}: the function {f.name!r} of {f.domain!r} is defined twice")
        out[key] = f
    return out


def schema_function(node: Node, call: Call) -> Message | None:
    """The body that the ONNX standard gives for an operator, None if it has none.

    Only reached for operators without a converter, so a usual model never pays for loading the
    schemas.
    """
    import onnx.defs

    try:
        schema: Any = onnx.defs.get_schema(node.op_type, call.version, node.domain)
    except Exception:  # SchemaError, which is no public name in every version
        return None
    body = b""
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= call.version]
        if versions:
            body = schema.get_function_with_opset_version(max(versions))
    elif schema.has_context_dependent_function:
        versions = [
            v for v in schema.context_dependent_function_opset_versions if v <= call.version
        ]
        if versions:
            body = schema.get_context_dependent_function_with_opset_version(
                max(versions), _resolved(node, call), [_type_of(v) for v in call.inputs]
            )
    return _parsed(body, schema) if body else None


def may_have_definition(node: Node, version: int) -> bool:
    """Whether the ONNX standard gives a body for this operator, for some types of its inputs."""
    import onnx.defs

    try:
        schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
    except Exception:  # as above
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _parsed(body: bytes, schema: Message) -> Message:
    """The body with the schema's default attributes, which are not part of it."""
    function = messages().FunctionProto()
    function.ParseFromString(body)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            default = function.attribute_proto.add()
            default.ParseFromString(attribute.default_value.SerializeToString())
            default.name = name
    return function


def _resolved(node: Node, call: Call) -> bytes:
    """The node with references to attributes of an enclosing function replaced by values."""
    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    for a in proto.attribute:
        if a.ref_attr_name:
            name, value = a.name, call.attrs.get(a.name)
            a.Clear()
            a.name = name
            if isinstance(value, int):
                a.i, a.type = value, a.INT
            elif isinstance(value, float):
                a.f, a.type = value, a.FLOAT
            elif isinstance(value, str):
                a.s, a.type = value.encode(), a.STRING
    kept = [a for a in proto.attribute if a.type]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    return bytes(proto.SerializeToString())


def _type_of(value: object) -> bytes:
    kind = messages().TypeProto()
    if value is not None:
        t = value.type  # type: ignore[attr-defined]
        kind.tensor_type.elem_type = _NUMBERS[t.dtype]
        kind.tensor_type.shape.SetInParent()
        for d in t.dims:
            kind.tensor_type.shape.dim.add().dim_value = d
    return bytes(kind.SerializeToString())
