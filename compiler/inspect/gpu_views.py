"""What a compilation for a GPU made, as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from ..codegen.cuda.assemble import disassembly
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import CudaTarget
from ..codegen.cuda.toolkit import INSTALL
from ..errors import TargetError
from ..kernels.ir import Kernel
from ..kernels.printer import kernel_text, symbol
from ..runtime.gpu_code import GpuCodes
from ..text import quote
from .stages import stage_text
from .views import COMMON, Compilation, distinct, kernel_name

Gpu = Compilation[CudaTarget]
_HEAD: Final = """\
# Numba CUDA. max, exp, f32, udiv and the like are functions of compiler/codegen/cuda/dialect.py.
"""


def source_view(c: Gpu, codes: GpuCodes) -> str:
    """The Python source of every distinct kernel, below the model nodes of its first launch."""
    parts = [_HEAD]
    for launch, kernel in distinct(c):
        count = sum(x.kernel is kernel for x in c.launches)
        again = f", and {count - 1} more" if count > 1 else ""
        parts.append(f"# {kernel_name(launch)}, model: {quote(launch.label)}{again}\n"
                     f"{kernel_source(kernel).text}")  # fmt: skip
    return "\n".join(parts)


def ptx_view(c: Gpu, codes: GpuCodes) -> str:
    """The PTX of every distinct kernel."""
    return "\n".join(
        f"// {kernel_name(launch)}: {quote(launch.label)}\n{codes.codes[symbol(kernel)].ptx}"
        for launch, kernel in distinct(c)
    )


def sass_view(c: Gpu, codes: GpuCodes) -> str:
    """The machine code of every distinct kernel. Raises TargetError where a tool is missing."""
    parts = []
    for launch, kernel in distinct(c):
        code = codes.codes[symbol(kernel)]
        if code.machine is None and code.entries:
            raise TargetError(
                f"there is no machine code: nvJitLink, which makes it of PTX, is missing: {INSTALL}"
            )
        text = "" if code.machine is None else disassembly(code.machine.cubin)
        parts.append(f"// {kernel_name(launch)}: {quote(launch.label)}\n{text}")
    return "\n".join(parts)


def gpu_code(codes: GpuCodes) -> Callable[[Kernel], dict[str, str]]:
    """What gives the texts of one kernel by level: "ir", "source", "ptx" and, where the tools for
    it are, "sass"."""

    def texts(kernel: Kernel) -> dict[str, str]:
        code = codes.codes[symbol(kernel)]
        found = {"ir": kernel_text(kernel), "source": kernel_source(kernel).text, "ptx": code.ptx}
        if code.machine is not None:
            with suppress(TargetError):  # there may be no disassembler
                found["sass"] = disassembly(code.machine.cubin)
        return found

    return texts


GPU_VIEWS: Final[Mapping[str, Callable[[Gpu, GpuCodes], str]]] = {
    "source": source_view, "ptx": ptx_view, "sass": sass_view,
}  # fmt: skip


GPU_DUMPED: Final = ("memory", "kernels", *GPU_VIEWS)
"""Levels that TILEWRIGHT_DUMP writes behind the stages, which are the others."""


def gpu_view(c: Gpu, codes: GpuCodes, level: str) -> str:
    """The text of one level, or of the graph after a pass. Raises OptionError for what there is
    not."""
    if level in GPU_VIEWS:
        return GPU_VIEWS[level](c, codes)
    if level in COMMON:
        return COMMON[level](c)
    return stage_text(c.stages, level, (*COMMON, *GPU_VIEWS))
