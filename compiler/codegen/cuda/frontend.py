"""Numba's front end: generated source -> LLVM IR. No device, driver or toolkit takes part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

from ....ops.types import u8
from ...errors import LoweringError
from ...kernels.ir import Buffer
from .dialect import namespace, pointer
from .operations import stored_as
from .source import Source
from .target import CudaTarget
from .unroll import unrolled

_DECLARED: Final = re.compile(r'^declare .*@"?(tw\.[\w.]+)"?\(', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lowered:
    """One function as LLVM IR: `text` defines `name`, which takes a place for a return value and
    then the buffers; `calls` are the dialect's functions that it calls."""

    name: str
    text: str
    calls: tuple[str, ...]


def lowered(source: Source, params: Sequence[Buffer], target: CudaTarget) -> tuple[Lowered, ...]:
    """Every entry of a kernel. Raises LoweringError where Numba does not accept the source, and
    TargetError where there is no Numba."""
    functions: dict[str, Any] = dict(namespace())
    exec(compile(source.text, "<kernel>", "exec"), functions)
    kinds = tuple(pointer(stored_as(b.dtype)) for b in params)
    lines = source.text.splitlines()
    return tuple(
        _lowered(functions[e.name], (*kinds, *(pointer(u8) for _ in e.tensor_maps)), target, lines)
        for e in source.entries
    )


def _lowered(
    function: FunctionType, kinds: Sequence[Any], target: CudaTarget, lines: Sequence[str]
) -> Lowered:  # fmt: skip
    from numba import types
    from numba.core.errors import NumbaError
    from numba.cuda.compiler import compile_cuda

    try:
        made = compile_cuda(function, types.void, tuple(kinds), cc=target.capability,
                            nvvm_options={"opt": 3})  # fmt: skip
        (text,) = made.library.llvm_strs
    except NumbaError as e:
        raise LoweringError(f"Numba refuses {function.__name__}: {e}") from e
    text = unrolled(text, function, lines)
    return Lowered(made.fndesc.llvm_func_name, text, tuple(sorted(set(_DECLARED.findall(text)))))
