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

FIRST_LOOP: Final = 1000  # the number of metadata that Numba has not used
_UNROLLED: Final = re.compile(
    r'(call void @"?tw\.unrolled"?\(\)(?:\n(?!\S)(?!  br )[^\n]*)*\n  br label [^\n]*)'
)
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
    return tuple(
        _lowered(functions[e.name], (*kinds, *(pointer(u8) for _ in e.tensor_maps)), target)
        for e in source.entries
    )


def _lowered(function: FunctionType, kinds: Sequence[Any], target: CudaTarget) -> Lowered:
    from numba import types
    from numba.core.errors import NumbaError
    from numba.cuda.compiler import compile_cuda

    try:
        made = compile_cuda(function, types.void, tuple(kinds), cc=target.capability,
                            nvvm_options={"opt": 3})  # fmt: skip
        (text,) = made.library.llvm_strs
    except NumbaError as e:
        raise LoweringError(f"Numba refuses {function.__name__}: {e}") from e
    text = _unrolled(text)
    return Lowered(made.fndesc.llvm_func_name, text, tuple(sorted(set(_DECLARED.findall(text)))))


def _unrolled(text: str) -> str:
    """Loops whose bodies end with `unrolled()` get the metadata that has LLVM unroll them
    (LLVM Language Reference, "llvm.loop.unroll.full"): on the branch back to their heads."""
    loops = 0

    def marked(m: re.Match[str]) -> str:
        nonlocal loops
        loops += 1
        return f"{m[1]}, !llvm.loop !{FIRST_LOOP + loops}"

    text = _UNROLLED.sub(marked, text)
    if loops:
        text += f'\n!{FIRST_LOOP} = !{{!"llvm.loop.unroll.full"}}\n'
    for k in range(FIRST_LOOP + 1, FIRST_LOOP + 1 + loops):
        text += f"!{k} = distinct !{{!{k}, !{FIRST_LOOP}}}\n"
    return text
