"""Code of GPU kernels as members of a saved program, and how it is found there again.

A kernel is three members that other tools read as well: its PTX; its machine code, where that was
made; and a JSON document with how its CUDA kernels are launched. They are used for the very kernel
that they were made of, for its architecture and by the same code generator. The packages that made
them need not be of the same version here, nor be here: neither PTX nor machine code refers to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from ..codegen.cuda.assemble import Assembled, Usage
from ..codegen.cuda.entry import Entry
from ..codegen.cuda.target import PTX_FEATURES, CudaTarget
from ..kernels.ir import Kernel
from ..kernels.printer import symbol, text_digest
from ..store import Key
from .gpu_code import GpuCode, GpuCodes, code_fingerprint, entry_of

Member = tuple[str, Key, bytes]
"""A file name, what decides whether it fits, and its content."""

_LAUNCH: Final = "launches"
_PTX: Final = "ptx"
_CUBIN: Final = "cubin"


def members(kernels: Iterable[Kernel], codes: GpuCodes, target: CudaTarget) -> Iterator[Member]:
    """All of the code of some kernels, each kernel once."""
    for name, kernel in {symbol(k): k for k in kernels}.items():
        code = codes.codes[name]
        document: dict[str, Any] = {"entries": [asdict(e) for e in code.entries]}
        if code.machine is not None:
            usage = {entry: asdict(u) for entry, u in code.machine.usage.items()}
            document["machine"] = {"usage": usage, "losses": code.machine.losses}
            yield f"{name}.cubin", _key(kernel, target, _CUBIN), code.machine.cubin
        yield f"{name}.json", _key(kernel, target, _LAUNCH), json.dumps(document).encode()
        yield f"{name}.ptx", _key(kernel, target, _PTX), code.ptx.encode()


def found(
    kernels: Iterable[Kernel], target: CudaTarget, get: Callable[[Key], bytes | None]
) -> Mapping[str, GpuCode]:
    """The code of those kernels that `get` has the members of, by symbol. Raises ValueError,
    TypeError, LookupError or AttributeError for what `members` did not make."""
    have = {}
    for name, kernel in {symbol(k): k for k in kernels}.items():
        document, ptx = (get(_key(kernel, target, what)) for what in (_LAUNCH, _PTX))
        if document is not None and ptx is not None:
            have[name] = _code(json.loads(document), ptx, get(_key(kernel, target, _CUBIN)))
    return have


def _code(document: Any, ptx: bytes, cubin: bytes | None) -> GpuCode:
    entries = tuple(map(_sound, map(entry_of, document["entries"])))
    told, machine = document.get("machine"), None
    if told is not None and cubin is not None:
        usage = {str(name): Usage(**u) for name, u in told["usage"].items()}
        machine = Assembled(cubin, usage, tuple(map(str, told["losses"])))
    return GpuCode(entries, ptx.decode(), machine)


def _sound(e: Entry) -> Entry:
    """An entry whose numbers are some."""
    numbers = (e.blocks, e.threads, e.shared_bytes, e.cluster, e.resident)
    if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(e.name, str):
        raise ValueError(f"a CUDA kernel is not launched so: {e}")
    return e


def _key(kernel: Kernel, target: CudaTarget, what: str) -> Key:
    return (
        ("what", f"{what} of a saved kernel"), ("symbol", symbol(kernel)),
        ("text", text_digest(kernel)), ("arch", target.arch), ("features", PTX_FEATURES),
        ("codegen", code_fingerprint()),
    )  # fmt: skip
