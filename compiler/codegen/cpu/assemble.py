"""LLVM IR text -> object code or assembly.

Generated kernels arrive with their schedule already decided: unrolled, vectorised, tiled. So the
default pipeline only turns stack slots into registers ("sroa") and leaves the rest to instruction
selection; the loop passes of -O2 cost three times as much and undo register tiling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import llvmlite.binding as llvm

from ...errors import LoweringError
from . import unlocked
from .target import CpuTarget

PIPELINES: Final = ("none", "sroa", "o2")
"""What runs before code generation: nothing, scalar replacement only, or LLVM's own -O2."""

_DEFINED: Final = re.compile(r'^define\b[^@\n]*@(?:"([^"\n]*)"|([\w.$-]+))', re.MULTILINE)


def build_object(llvm_text: str, target: CpuTarget, pipeline: str = "sroa") -> bytes:
    """Compile one LLVM module to a relocatable object for `target`.

    Raises LoweringError, naming the module's first function, if LLVM rejects the text.
    """
    with _module(llvm_text, target, pipeline) as module:
        return unlocked.emit(target.machine(), module)


def assembly(llvm_text: str, target: CpuTarget, pipeline: str = "sroa") -> str:
    """The assembly listing of exactly what `build_object` would produce. Raises LoweringError."""
    with _module(llvm_text, target, pipeline) as module:
        return unlocked.emit(target.machine(), module, listing=True).decode()


@contextmanager
def _module(text: str, target: CpuTarget, pipeline: str) -> Iterator[llvm.ModuleRef]:
    """The verified and optimised module.

    It lives in a context of its own, so that its types and constants are freed with it, and both
    are closed here in that order: the garbage collector knows no order, and LLVM crashes in the
    wrong one.
    """
    if pipeline not in PIPELINES:
        raise ValueError(f"unknown pipeline {pipeline!r}; known are {', '.join(PIPELINES)}")
    machine = target.machine()
    with llvm.create_context() as context:
        try:
            module = unlocked.parse(text, context)
        except RuntimeError as error:
            raise _rejected(text, target, error) from None
        with module:
            module.triple = target.triple
            module.data_layout = str(machine.target_data)
            try:
                module.verify()
            except RuntimeError as error:
                raise _rejected(text, target, error) from None
            if pipeline != "none":
                _optimise(module, machine, pipeline)
            yield module


def _rejected(text: str, target: CpuTarget, error: RuntimeError) -> LoweringError:
    return LoweringError(
        f"LLVM rejected kernel {kernel_name(text)!r} for {target.cpu}: {_first_error(error)}"
    )


def kernel_name(llvm_text: str) -> str:
    """The first function that the text defines, or "<none>"."""
    found = _DEFINED.search(llvm_text)
    return (found[1] or found[2]) if found else "<none>"


def _optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine, pipeline: str) -> None:
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = pipeline == "o2"
    with tuning, llvm.create_pass_builder(machine, tuning) as builder:
        if pipeline == "o2":
            passes = builder.getModulePassManager()
        else:
            passes = llvm.create_new_module_pass_manager()
            passes.add_sroa_pass()
        with passes:
            passes.run(module, builder)


def _first_error(error: RuntimeError) -> str:
    """One line: the diagnostic, followed by the source line it points at when there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for at, line in enumerate(lines):
        if "error:" in line:
            shown = line.split("error:", 1)[1].strip()
            return f"{shown} in `{lines[at + 1]}`" if at + 1 < len(lines) else shown
    return lines[0] if lines else "no reason given"
