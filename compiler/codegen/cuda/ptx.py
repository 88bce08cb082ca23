"""LLVM IR -> PTX, by the code generator for NVIDIA GPUs that comes with llvmlite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

import llvmlite.binding as llvm

from ...errors import LoweringError, TargetError
from ...kernels.ir import Buffer, Kernel
from .entry import Entry
from .frontend import Lowered
from .intrinsic import PREFIX
from .library import definition
from .target import ALIGNMENT, PTX_FEATURES, CudaTarget
from .toolkit import INSTALL, part
from .warpgroup_chains import TABLE as CHAINS
from .warpgroups import EXACT

TRIPLE: Final = "nvptx64-nvidia-cuda"
_SHARED: Final = re.compile(r"^(@.* = addrspace\(3\) global .*), align \d+$", re.MULTILINE)
_DESCRIPTOR: Final = 'ptr byval([128 x i8]) align 64 "nvvm.grid_constant"'
"""A tensor map stays where the launch put it: it has an address without being copied."""
_NVIDIA: Final = re.compile(r"@__nv_\w+")


def kernel_ptx(
    kernel: Kernel, entries: Sequence[Entry], functions: Sequence[Lowered], target: CudaTarget
) -> str:
    """One PTX module with all phases of a kernel.

    Raises LoweringError if LLVM rejects the code, and TargetError if the kernel calls a function
    that libdevice has and this machine has no libdevice.
    """
    texts = [f.text for f in functions]
    texts.append(_library({name for f in functions for name in f.calls}))
    shared = _shared_memory(kernel)
    texts += [_entry(e, f, kernel.params, shared) for e, f in zip(entries, functions, strict=True)]
    try:  # a module has to go before its context, whatever happens
        with llvm.create_context() as context, _parsed(texts[0], context) as module:
            for text in texts[1:]:
                module.link_in(_parsed(text, context))
            if any(_NVIDIA.search(text) for text in texts):
                _link_libdevice(module, context)
            return _generated(module, entries, functions, target)
    except RuntimeError as e:
        raise LoweringError(f"LLVM rejects kernel {entries[0].name} for {target}: {e}") from e


def _parsed(text: str, context: llvm.ContextRef) -> llvm.ModuleRef:
    """A module that keeps its variables to itself; arrays in shared memory begin at multiples of 16
    bytes, so that neighbouring words are read together."""
    module = llvm.parse_assembly(_SHARED.sub(r"\1, align 16", text), context)
    for g in module.global_variables:
        if not g.is_declaration:
            g.linkage = "internal"
    return module


def _shared_memory(kernel: Kernel) -> frozenset[Buffer]:
    """Parameters that a caller may place where another one lies."""
    return frozenset(kernel.params[k] for pair in kernel.inplace for k in pair)


def _library(names: set[str]) -> str:
    made = [definition(n) for n in sorted(names)]
    declared = sorted(frozenset[str]().union(*(d for _, d in made)))
    return "\n\n".join([*(text for text, _ in made), *declared])


def _entry(
    entry: Entry, function: Lowered, params: Sequence[Buffer], shared: frozenset[Buffer]
) -> str:
    """The kernel around a function, with what is known of its grid and its memory. Where boxes of
    tensors are copied, loads are to stay between the barriers where they are: ptxas would bring all
    loads of what nobody writes forward, to where accumulators take most registers."""
    written = [b.is_written for b in params]
    shared = frozenset(params) if entry.tensor_maps else shared
    names = [f"%{b.name}" for b in params] + [f"%map{k}" for k in range(len(entry.tensor_maps))]
    taken = ", ".join([
        *(f"ptr {'' if b in shared else 'noalias '}{'' if w or b in shared else 'readonly '}"
          f"align {ALIGNMENT} %{b.name}" for b, w in zip(params, written, strict=True)),
        *(f'{_DESCRIPTOR} {name}' for name in names[len(params):]),
    ])  # fmt: skip
    given = ", ".join(["ptr %place", *(f"ptr {name}" for name in names)])
    kinds = ", ".join(["ptr"] * (len(names) + 1))
    grid = f'"nvvm.reqntid"="{entry.threads}"'
    if entry.cluster > 1:
        grid += f' "nvvm.cluster_dim"="{entry.cluster}"'
    resident = entry.resident or int(any("_registers." in name for name in function.calls))
    if resident:  # threads hand registers on: ptxas has to know how many there are at first
        grid += f' "nvvm.minctasm"="{resident}"'
    return (
        f'declare i32 @"{function.name}"({kinds})\n'
        f'define ptx_kernel void @"{entry.name}"({taken}) {grid} {{\n'
        "  %place = alloca ptr\n"
        f'  %code = call i32 @"{function.name}"({given})\n'
        "  ret void\n}\n"
    )


def _generated(
    module: llvm.ModuleRef, entries: Sequence[Entry], functions: Sequence[Lowered],
    target: CudaTarget,
) -> str:  # fmt: skip
    kept, bodies = {e.name for e in entries}, {f.name for f in functions}
    machine = _machine(_arch(functions, target))
    module.triple = TRIPLE
    module.data_layout = str(machine.target_data)
    for f in module.functions:
        if not f.is_declaration and f.name not in kept:
            f.linkage = "internal"
        if f.name in bodies:
            f.add_function_attribute("alwaysinline")
    module.verify()
    # Level 3 has a pass (call site splitting) that copies what stands ahead of a call into both
    # arms of a branch, a barrier too: parts of a warp would then wait at different ones.
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    with (
        tuning,
        llvm.create_pass_builder(machine, tuning) as builder,
        builder.getModulePassManager() as passes,
    ):
        passes.run(module, builder)
    text: str = machine.emit_assembly(module)
    return text


def _arch(functions: Sequence[Lowered], target: CudaTarget) -> str:
    """The target's name, with an "a" where code is for it alone and not for newer devices."""
    called = {name.removeprefix(PREFIX).partition(".")[0] for f in functions for name in f.calls}
    return target.arch + "a" if called & {*EXACT, *CHAINS} else target.arch


@cache
def _machine(arch: str) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        family = llvm.Target.from_triple(TRIPLE)
    except RuntimeError as e:
        raise TargetError(f"this llvmlite has no code generator for NVIDIA GPUs: {e}") from None
    return family.create_target_machine(cpu=arch, features=PTX_FEATURES, opt=3)


def _link_libdevice(module: llvm.ModuleRef, context: llvm.ContextRef) -> None:
    path = part("libdevice")
    if path is None:
        wanted = sorted(f.name for f in module.functions
                        if f.is_declaration and f.name.startswith("__nv_"))  # fmt: skip
        raise TargetError(f"the kernel calls {', '.join(wanted)} of NVIDIA's libdevice, which this"
                          f" machine does not have: {INSTALL}")  # fmt: skip
    module.link_in(llvm.parse_bitcode(path.read_bytes(), context))
