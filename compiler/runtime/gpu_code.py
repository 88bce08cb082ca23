"""Code of GPU kernels: from the store when it was made before, else made now.

Its key says which versions of Numba and LLVM made it, and which assembler. TILEWRIGHT_GPU_CODE
names others whose code is taken as well ("numba=0.68.1,llvmlite=0.50.0,..."), so that a store that
was filled on one machine serves another one, with other versions or none of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ...ops import expr
from ..codegen import cpu, cuda
from ..codegen.cuda.assemble import Assembled, Usage, assembled, assembler, can_assemble
from ..codegen.cuda.entry import DescribedTensor, Entry
from ..codegen.cuda.frontend import lowered
from ..codegen.cuda.ptx import kernel_ptx
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import PTX_FEATURES, CudaTarget
from ..errors import OptionError
from ..kernels.ir import Kernel
from ..kernels.printer import symbol, text_digest
from ..store import Key, Store, source_digest

VARIABLE: Final = "TILEWRIGHT_GPU_CODE"
_PACKAGES: Final = ("numba", "numba-cuda", "llvmlite")
_ASSEMBLER: Final = "assembler"
Makers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GpuCode:
    """One kernel: a CUDA kernel for every phase, in one PTX module. machine: what nvJitLink made of
    it, None where that is not installed and the driver has to."""

    entries: tuple[Entry, ...]
    ptx: str
    machine: Assembled | None


@dataclass(frozen=True, slots=True)
class GpuCodes:
    """The code of every kernel by its symbol; `built` of them were made now."""

    codes: Mapping[str, GpuCode]
    built: int


_NONE: Final[Mapping[str, GpuCode]] = MappingProxyType({})


def load(
    kernels: Iterable[Kernel], target: CudaTarget, store: Store,
    progress: Callable[[int, int], None] | None = None, given: Mapping[str, GpuCode] = _NONE,
) -> GpuCodes:  # fmt: skip
    """Code for all kernels; equal ones share it. given: what is there already, by symbol; machine
    code it may lack. Raises LoweringError, and TargetError where Numba CUDA or a library that a
    kernel needs is missing."""
    distinct = {symbol(k): k for k in kernels}
    codes: dict[str, GpuCode] = {}
    built = 0
    for name, kernel in distinct.items():
        code = given.get(name)
        if code is None:
            entries, ptx, is_new = _ptx(kernel, target, store)
            code, built = GpuCode(entries, ptx, None), built + is_new
        if code.machine is None:
            code = replace(code, machine=_machine(code.ptx, target, store))
        codes[name] = code
        if progress is not None:
            progress(len(codes), len(distinct))
    return GpuCodes(codes, built)


def _ptx(kernel: Kernel, target: CudaTarget, store: Store) -> tuple[tuple[Entry, ...], str, bool]:
    key = _ptx_key(kernel, target)
    found = _found(store, key)
    if found is not None:
        return tuple(map(entry_of, found["entries"])), found["ptx"], False
    entries, ptx = _made(kernel, target)
    listed = [asdict(e) for e in entries]
    store.put(key(makers()), json.dumps({"entries": listed, "ptx": ptx}).encode())
    return entries, ptx, True


def _made(kernel: Kernel, target: CudaTarget) -> tuple[tuple[Entry, ...], str]:
    source = kernel_source(kernel)
    ptx = "" if not source.entries else kernel_ptx(
        kernel, source.entries, lowered(source, kernel.params, target), target)  # fmt: skip
    return source.entries, ptx


def differs_from_stored(kernel: Kernel, target: CudaTarget) -> bool:
    """Whether the user's store has other PTX for a kernel than is made now. Raises as `load`."""
    found = _found(Store(), _ptx_key(kernel, target))
    return found is not None and found["ptx"] != _made(kernel, target)[1]


def ptx_key(kernel: Kernel, target: CudaTarget) -> Key:
    """The key of a kernel's PTX in the store, where it was made by what is installed here."""
    return _ptx_key(kernel, target)(makers())


def _ptx_key(kernel: Kernel, target: CudaTarget) -> Callable[[Makers], Key]:
    """The key, by who made it."""
    return lambda by: _key("PTX of a kernel", target, by, symbol=symbol(kernel),
                           text=text_digest(kernel))  # fmt: skip


def entry_of(fields: dict[str, Any]) -> Entry:
    """An entry of what `asdict` made of it and JSON left of that. Raises TypeError or LookupError
    for anything else."""

    def whole(m: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in m.items()}

    maps = tuple(DescribedTensor(**whole(m)) for m in fields["tensor_maps"])
    return Entry(**{**fields, "tensor_maps": maps})


def _machine(ptx: str, target: CudaTarget, store: Store) -> Assembled | None:
    if not ptx:
        return None
    digest = hashlib.sha256(ptx.encode()).hexdigest()

    def key(by: Makers) -> Key:
        return _key("machine code of a kernel", target, by, ptx=digest, assembler=by[_ASSEMBLER])

    found = _found(store, key) if can_assemble() or _others() else None
    if found is not None:
        usage = {name: Usage(**u) for name, u in found["usage"].items()}
        losses = tuple(found["losses"])
        return Assembled(base64.b64decode(found["cubin"]), usage, losses)
    if not can_assemble():
        return None
    made = assembled(ptx, target)
    listed = {name: asdict(u) for name, u in made.usage.items()}
    text = {"usage": listed, "losses": made.losses, "cubin": base64.b64encode(made.cubin).decode()}
    store.put(key(makers()), json.dumps(text).encode())
    return made


def _found(store: Store, key: Callable[[Makers], Key]) -> dict[str, Any] | None:
    """What is stored, made by what is installed here or by others that may have made it."""
    for by in (makers(), *_others()):
        payload = store.get(key(by))
        if payload is not None:
            return json.loads(payload)
    return None


def _key(what: str, target: CudaTarget, by: Makers, **fields: str) -> Key:
    known = {"what": what, "arch": target.arch, "features": PTX_FEATURES,
             "codegen": code_fingerprint(), **fields}  # fmt: skip
    return tuple((known | {package: by[package] for package in _PACKAGES}).items())


def makers() -> Makers:
    """What makes code here, "none" for what is missing."""
    return _versions() | {_ASSEMBLER: str(assembler() or "none")}


@cache
def _versions() -> dict[str, str]:
    import importlib.metadata as metadata  # brings a parser of e-mails along

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def _others() -> tuple[Makers, ...]:
    """Those that TILEWRIGHT_GPU_CODE names. Raises OptionError."""
    text = os.environ.get(VARIABLE, "")
    named = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if text and named.keys() != {*_PACKAGES, _ASSEMBLER}:
        wanted = ",".join(f"{n}=..." for n in (*_PACKAGES, _ASSEMBLER))
        raise OptionError(f"{VARIABLE}={text!r}: expected {wanted}")
    return (named,) if named else ()


@cache
def code_fingerprint() -> str:
    """A hash of the source that decides what code comes out."""
    folders = (Path(str(cuda.__file__)).parent, Path(str(cpu.__file__)).parent)
    files = [f for folder in folders for f in sorted(folder.glob("*.py"))]
    return source_digest([Path(str(expr.__file__)), *files])
