"""What a program needs of its kernels, kept as data, so that it can run again without writing them.

A kernel's body is needed to make native code and to be read by people. Who finds the native code
stored needs neither: how the kernel is called, what it is bound to and how much it works is enough.
A record holds that for one fusion group; it is found by the digest of all that templates may look
at, and is good for one version of the templates and one device only (see `api.recall`). The body is
written when someone asks for it after all, by the same template with the same config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, get_args

from ...ops.types import DTYPES
from ..errors import LoweringError
from ..graph.ir import Graph, Op
from .device import Device
from .ir import Buffer, Kernel, Launch, Phase, Prepared, Role, Unwritten
from .printer import text_digest
from .recipe import RECIPES, Recipe, following
from .template import KernelTemplate

Record = Mapping[str, Any]
Names = Sequence[str]
_ROLES: Final = get_args(Role)
_NUMBERS: Final = ("version", "flops", "bytes", "own_flops")


def shape_digest(shape: object) -> str:
    """A name for a group's shape (see `select.shape_of`); repr tells apart what is not equal."""
    return hashlib.sha256(repr(shape).encode()).hexdigest()


# --------------------------------------------------------------------------- to data


def record_of(launch: Launch, names: Names) -> Record | None:
    """A launch as JSON values, blobs by their place in `names`; None where that cannot say all."""
    number = {n: k for k, n in enumerate(names)}
    kernel = launch.kernel
    args: list[object] = []
    for a in launch.args:
        if isinstance(a, Prepared):
            if not isinstance(a.make, Recipe):
                return None
            args.append([a.make.name, [number[b] for b in a.blobs], _listed(a.make.arguments)])
        else:
            args.append(None if a is None else number[a])
    record = {
        "template": kernel.template,
        "config": _listed(kernel.config),
        "params": [[b.name, b.dtype.name, b.elements, b.role] for b in kernel.params],
        "args": args,
        "items": list(kernel.items),
        "text": text_digest(kernel),
        "inplace": _listed(kernel.inplace),
        **{name: getattr(kernel, name) for name in _NUMBERS},
    }
    return record if _tupled(record["config"]) == kernel.config else None


def _listed(value: object) -> object:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


# --------------------------------------------------------------------------- and back


def restored(
    record: Record, templates: Iterable[KernelTemplate], graph: Graph, ops: Sequence[Op],
    outputs: Sequence[str], names: Names, device: Device,
) -> Launch | None:  # fmt: skip
    """The launch that a record was made of, bound to a group of the same shape; None if the record
    is not well formed or of another template than there is."""
    try:
        template = next(t for t in templates if t.name == record["template"])
        args = tuple(_argument(a, names) for a in record["args"])
        params = tuple(
            Buffer(str(name), DTYPES[dtype], _natural(elements), _ROLES[_ROLES.index(role)])
            for name, dtype, elements, role in record["params"]
        )
        for a, b in zip(args, params, strict=True):
            if isinstance(a, str) and (b.dtype, b.elements) != _extent(graph, a):
                return None
        config = tuple((str(k), v) for k, v in _tupled(record["config"]))
        inplace = tuple((_natural(y), _natural(x)) for y, x in record["inplace"])
        if any(k >= len(params) for pair in inplace for k in pair):
            return None
        items, text = tuple(map(_natural, record["items"])), str(record["text"])
        numbers = {name: _natural(record[name]) for name in _NUMBERS}
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return None
    if numbers["version"] != template.version:
        return None
    write = partial(_written, template, graph, ops, outputs, device, config, text)
    kernel = Kernel(template.name, config=config, params=params, inplace=inplace,
                    phases=Unwritten(items, text, write), **numbers)  # fmt: skip
    return Launch(kernel, args, ())


def _argument(value: Any, names: Names) -> str | Prepared | None:
    if value is None:
        return None
    if isinstance(value, int):
        return names[_natural(value)]
    name, blobs, arguments = value
    if name not in RECIPES:
        raise ValueError(name)
    made = Recipe(name, tuple((str(k), v) for k, v in _tupled(arguments)))
    return following([names[_natural(k)] for k in blobs], made)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _extent(graph: Graph, blob: str) -> tuple[object, int]:
    t = graph.type(blob)
    return t.dtype, t.span


def _written(
    template: KernelTemplate, graph: Graph, ops: Sequence[Op], outputs: Sequence[str],
    device: Device, config: tuple[tuple[str, Any], ...], text: str,
) -> Sequence[Phase]:  # fmt: skip
    made = template.instantiate(graph, ops, outputs, device, dict(config)).kernel
    if text_digest(made) != text:
        raise LoweringError(
            f"a stored description of the kernel {template.name} ({dict(config)}) is of another "
            f"kernel, which is a bug in Tilewright; `tilewright cache clear` removes it"
        )
    return made.phases
